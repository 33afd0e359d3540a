/*
 * Many threads that want, abandon, prefetch and wait, over two fetchers with one cache directory, while the store stalls,
 * fails and spoils bytes. Every chunk that comes is compared; every want ends exactly once, or is abandoned and does
 * not end; freeing a fetcher in the middle of it ends all.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "cache/fetch_internal.h"
#include "fetch_support.h"
#include "stress.h"

#define THREADS 4
#define SLOTS	80
#define WANTS	24

static struct stress stress;
static struct support_pack pack;
static struct stored_pack stored, moved;
static struct fault_store *store;
static struct ds_fetcher *fetchers[2];
static struct ds_image *images[2];
static _Atomic uint64_t ok_n, failed_n, abandoned_n;
static _Atomic bool stop;

static void one_round(struct ds_prng *prng)
{
	static const unsigned timeouts_ms[] = {1, 20, 20000};
	struct want wants[WANTS];
	bool is_abandoned[WANTS] = {false};
	size_t which = ds_prng_below(prng, 2);
	uint32_t first = (uint32_t)ds_prng_below(prng, SLOTS);
	struct ds_fetch_target targets[8];

	for (uint32_t i = 0; i < 8; i++)
		targets[i] = target_of(images[which], &pack, &stored, (first + i * 3) % SLOTS);
	if (ds_prng_below(prng, 4) == 0)
		ds_fetcher_prefetch(fetchers[which], targets, 8);
	if (ds_prng_below(prng, 16) == 0)
		ds_fetcher_pull(fetchers[which], images[which], &stored.id);
	for (uint32_t i = 0; i < WANTS; i++)
		want_start(&wants[i], fetchers[which], images[which], &pack, &stored,
			   (first + i / 2) % SLOTS, timeouts_ms[ds_prng_below(prng, 3)]);
	for (uint32_t i = 0; i < WANTS; i += 1 + (uint32_t)ds_prng_below(prng, 8)) {
		is_abandoned[i] = ds_fetcher_abandon(fetchers[which], &wants[i].waiter);
		abandoned_n += is_abandoned[i];
	}
	for (uint32_t i = 0; i < WANTS; i++) {
		if (is_abandoned[i]) {
			STRESS_CHECK(!wants[i].is_over);
		} else if (want_wait(&wants[i]) == 0) {
			ok_n++;
		} else {
			/* Malformed: a note or a table of contents was spoilt twice. */
			switch (wants[i].result) {
			case -DS_E_TIMEOUT:
			case -DS_E_SERVER:
			case -DS_E_CORRUPT:
			case -DS_E_MALFORMED:
				break;
			default:
				fprintf(stderr, "%s\n", ds_strerror(wants[i].result));
				abort();
			}
			failed_n++;
		}
	}
	if (ds_prng_below(prng, 3) == 0)
		ds_cache_make_room(images[which]->cache, DS_KIB(300));
}

static void *thread(void *arg)
{
	struct ds_prng prng = {.state = stress.seed * 1000 + (uint64_t)(uintptr_t)arg};

	/* A machine may stand still for all of the time: then for up to a minute more, until something was shown. */
	while (ds_mono_ns() < stress.until_ns ||
	       ((ok_n <= 100 || abandoned_n <= 10) &&
		ds_mono_ns() < stress.until_ns + 60 * (uint64_t)DS_NS_PER_S))
		one_round(&prng);
	return NULL;
}

static void *weather(void *arg)
{
	struct ds_prng prng = {.state = stress.seed + 77};

	(void)arg;
	while (!stop) {
		uint64_t what = ds_prng_below(&prng, 4);

		pthread_mutex_lock(&store->mutex);
		store->hold = what == 0;
		store->fail = -DS_E_SERVER;
		store->fail_n = what == 1 ? 3 : 0;
		store->flip_n = what == 2 ? 2 : 0;
		pthread_mutex_unlock(&store->mutex);
		ds_sleep_ms(5 + ds_prng_below(&prng, 20));
		fault_store_release(store);
		ds_sleep_ms(ds_prng_below(&prng, 10));
	}
	return NULL;
}

/* Frees a fetcher with wants in all states. */
static void end_in_the_middle(struct ds_store *memory)
{
	struct want wants[SLOTS];
	struct ds_fetcher *fetcher;
	struct ds_cache *none;
	struct ds_image *image;

	STRESS_CHECK(ds_cache_open_none(&none) == 0);
	image = support_image(none, &pack);
	STRESS_CHECK(ds_fetcher_new(memory, none, NULL, &fetcher) == 0);
	for (uint32_t i = 0; i < SLOTS; i++)
		want_start(&wants[i], fetcher, image, &pack, &stored, i, 20000);
	ds_fetcher_free(fetcher);
	for (uint32_t i = 0; i < SLOTS; i++) {
		int r = want_wait(&wants[i]);

		STRESS_CHECK(r == 0 || r == -DS_E_INTERRUPTED);
	}
	ds_image_unref(image);
	ds_cache_unref(none);
}

/* The same with a pack of more chunks than are pulled at a time: while its table comes, while it pauses, while it goes on. */
static void end_a_pull(struct ds_store *memory, const struct support_pack *tiny,
		       const struct stored_pack *tiny_stored, uint64_t after_ms)
{
	struct ds_fetcher *fetcher;
	struct ds_cache *none;
	struct ds_image *image;

	STRESS_CHECK(ds_cache_open_none(&none) == 0);
	image = support_image(none, tiny);
	STRESS_CHECK(ds_fetcher_new(memory, none, NULL, &fetcher) == 0);
	ds_fetcher_pull(fetcher, image, &tiny_stored->id);
	ds_sleep_ms(after_ms);
	ds_fetcher_free(fetcher);
	ds_image_unref(image);
	ds_cache_unref(none);
}

static void end_pulls(struct ds_store *memory)
{
	struct support_pack tiny;
	struct stored_pack tiny_stored;

	support_pack_init(&tiny, stress.seed + 1, 3 * DS_FETCH_PULL_FLIGHTS_MAX / 2, 40, true);
	stored_pack_init(&tiny_stored, &tiny, 0, tiny.layout.slots_n, memory);
	for (uint64_t after_ms = 0; after_ms < 200; after_ms += 1 + after_ms / 2)
		end_a_pull(memory, &tiny, &tiny_stored, after_ms);
	stored_pack_release(&tiny_stored);
	support_pack_release(&tiny);
}

int main(int argc, char *argv[])
{
	struct ds_fetcher_options options = {.inflight_bytes_max = DS_KIB(200), .workers_n = 3};
	struct ds_cache *caches[2];
	struct ds_store *memory;
	pthread_t threads[THREADS], weather_thread;

	stress = stress_begin(argc, argv, 3);
	support_pack_init(&pack, stress.seed, SLOTS, 8000, false);
	STRESS_CHECK(ds_store_memory_new(NULL, NULL, &memory) == 0);
	stored_pack_init(&stored, &pack, 0, SLOTS, memory);
	store = fault_store_new(memory);
	for (size_t i = 0; i < 2; i++) {
		caches[i] = support_open(support_path("c"), DS_KIB(300), 1);
		images[i] = support_image(caches[i], &pack);
		STRESS_CHECK(ds_fetcher_new(&store->base, caches[i], &options, &fetchers[i]) == 0);
	}
	STRESS_CHECK(pthread_create(&weather_thread, NULL, weather, NULL) == 0);
	for (size_t i = 0; i < THREADS; i++)
		STRESS_CHECK(pthread_create(&threads[i], NULL, thread, (void *)(uintptr_t)i) == 0);
	/* In the middle of it the pack moves. */
	ds_sleep_ms(500);
	stored_pack_init(&moved, &pack, 0, SLOTS, memory);
	stored_pack_move(&stored, &moved, memory);
	for (size_t i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	stop = true;
	pthread_join(weather_thread, NULL);
	for (int i = 0; i < 20; i++)
		end_in_the_middle(memory);
	end_pulls(memory);
	for (size_t i = 0; i < 2; i++) {
		ds_fetcher_free(fetchers[i]);
		ds_image_unref(images[i]);
		ds_cache_unref(caches[i]);
	}
	printf("%llu right, %llu failed, %llu abandoned; %u GETs, %u failed, %u spoilt\n",
	       (unsigned long long)ok_n, (unsigned long long)failed_n,
	       (unsigned long long)abandoned_n, store->gets_n, store->failed_n, store->flipped_n);
	STRESS_CHECK(ok_n > 100 && abandoned_n > 10 && store->gets_n > 10);
	ds_store_unref(&store->base);
	ds_store_unref(memory);
	stored_pack_release(&stored);
	stored_pack_release(&moved);
	support_pack_release(&pack);
	support_clean();
	return 0;
}
