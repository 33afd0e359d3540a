/*
 * Many threads over several handles of one cache directory (locks of different descriptions exclude each other as those of
 * different processes do): fill, read, evict, close under the users' hands, lie. Every byte that is read is compared.
 */
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "cache/cache_internal.h"
#include "cache_support.h"
#include "stress.h"

#define HANDLES 3
#define THREADS 4
#define PACKS	6
#define LIES	2

static struct ds_cache *caches[HANDLES];
/* The last ones have the names and layouts of the first, and other claims. */
static struct support_pack packs[PACKS + LIES];
static struct stress stress;
static _Atomic uint64_t reads_n, hits_n, fills_n, failures_n;

/* All chunks of a file, for ever; or one of its chunks is not here, or it went meanwhile. */
static bool is_handed_out(struct ds_image *image, const struct support_pack *pack)
{
	struct ds_image_backing backing;
	int fd, hold_fd, r = ds_image_backing_begin(image, true, &backing);

	if (r < 0)
		return false;
	r = ds_image_backing_has(&backing, pack->slots, true);
	if (r == 0)
		r = ds_image_backing_take(&backing, &fd, &hold_fd);
	ds_image_backing_end(&backing);
	if (r < 0)
		return false;
	close(fd);
	close(hold_fd);
	return true;
}

static void one_round(struct ds_prng *prng)
{
	struct ds_cache *cache = caches[ds_prng_below(prng, HANDLES)];
	const struct support_pack *pack = &packs[ds_prng_below(prng, PACKS + LIES)];
	struct ds_image *image = support_image(cache, pack);
	uint32_t slots_n = pack->layout.slots_n;

	for (uint64_t n = ds_prng_below(prng, 20); n > 0; n--) {
		uint32_t slot = (uint32_t)ds_prng_below(prng, slots_n);

		reads_n++;
		if (support_read(image, pack, slot, ds_prng_below(prng, 2)))
			hits_n++;
		else if (support_fill(image, pack, slot) == 0)
			fills_n++;
		else
			failures_n++;
	}
	switch (ds_prng_below(prng, 40)) {
	case 0:
		ds_cache_make_room(cache, DS_KIB(500));
		break;
	case 1:
		ds_image_detach_some(cache);
		break;
	case 2:
	case 5:
	case 6:
	case 7:
		ds_image_keep(cache, 1);
		break;
	case 3: {
		struct ds_cache_stats stats;

		ds_cache_get_stats(cache, &stats);
		break;
	}
	case 4:
		hits_n += is_handed_out(image, pack);
		break;
	}
	ds_image_unref(image);
}

static void *thread(void *arg)
{
	struct ds_prng prng = {.state = stress.seed * 1000 + (uint64_t)(uintptr_t)arg};

	/* A machine may stand still for all of the time: then for up to a minute more, until something was shown. */
	while (ds_mono_ns() < stress.until_ns ||
	       ((hits_n <= 100 || fills_n <= 100) &&
		ds_mono_ns() < stress.until_ns + 60 * (uint64_t)DS_NS_PER_S))
		one_round(&prng);
	return NULL;
}

int main(int argc, char *argv[])
{
	pthread_t threads[THREADS];

	stress = stress_begin(argc, argv, 3);
	for (uint64_t i = 0; i < PACKS + LIES; i++) {
		support_pack_init(&packs[i], stress.seed + i, 60, 6000, true);
		if (i >= PACKS)
			packs[i].layout.name = packs[i - PACKS].layout.name;
	}
	/* The second lie has other places too. */
	for (uint32_t i = 1; i < 60; i += 3)
		packs[PACKS + 1].slots[i].raw_off -= 100;
	for (size_t i = 0; i < HANDLES; i++)
		caches[i] = support_open(support_path("c"), DS_MIB(1), 1);
	for (size_t i = 0; i < THREADS; i++)
		STRESS_CHECK(pthread_create(&threads[i], NULL, thread, (void *)(uintptr_t)i) == 0);
	for (size_t i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	for (size_t i = 0; i < HANDLES; i++)
		ds_cache_unref(caches[i]);
	printf("%llu reads, %llu hits, %llu fills, %llu fills refused\n",
	       (unsigned long long)reads_n, (unsigned long long)hits_n, (unsigned long long)fills_n,
	       (unsigned long long)failures_n);
	STRESS_CHECK(hits_n > 100 && fills_n > 100);
	for (size_t i = 0; i < PACKS + LIES; i++)
		support_pack_release(&packs[i]);
	support_clean();
	return 0;
}
