#include <criterion/criterion.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cache/cache_internal.h"
#include "cache_support.h"
#include "util/clock.h"
#include "util/file.h"
#include "util/random.h"

TestSuite(evict, .fini = support_clean, .timeout = 120);

#define IMAGES 20

static void packs_init(struct support_pack *packs, uint32_t slots_n, uint32_t len)
{
	for (uint64_t i = 0; i < IMAGES; i++)
		support_pack_init(&packs[i], 100 + i, slots_n, len, true);
}

static void packs_release(struct support_pack *packs)
{
	for (size_t i = 0; i < IMAGES; i++)
		support_pack_release(&packs[i]);
}

static unsigned fill_image(struct ds_cache *cache, const struct support_pack *pack)
{
	struct ds_image *image = support_image(cache, pack);
	unsigned n = support_fill_all(image, pack);

	ds_image_unref(image);
	return n;
}

static unsigned count_image(struct ds_cache *cache, const struct support_pack *pack)
{
	struct ds_image *image = support_image(cache, pack);
	unsigned n = support_count(image, pack, true);

	ds_image_unref(image);
	return n;
}

Test(evict, F09_the_quota_holds_and_what_is_left_is_right)
{
	struct ds_cache *cache = support_open(support_path("c"), DS_MIB(6), 1);
	struct support_pack packs[IMAGES];
	struct ds_cache_stats stats;
	unsigned left = 0;

	packs_init(packs, 16, DS_KIB(64));
	for (size_t i = 0; i < IMAGES; i++) {
		cr_assert_eq(fill_image(cache, &packs[i]), 16);
		/* One block, as the scenario says. */
		cr_assert_leq(support_allocated(support_path("c")), DS_MIB(6) + DS_KIB(64));
	}
	cr_assert_eq(count_image(cache, &packs[IMAGES - 1]), 16);
	for (size_t i = 0; i < IMAGES; i++)
		left += count_image(cache, &packs[i]);
	cr_assert_geq(left, 4 * 16);
	ds_cache_get_stats(cache, &stats);
	cr_assert_gt(stats.evictions_n, 0);
	cr_assert_eq(stats.fill_failures_n, 0);
	ds_cache_unref(cache);
	packs_release(packs);
}

Test(evict, T22_the_account_is_what_the_disk_says)
{
	struct ds_cache *cache = support_open(support_path("c"), DS_MIB(6), 1);
	struct support_pack packs[IMAGES];
	struct ds_cache_stats stats;
	struct ds_cache_root *root;
	uint64_t disk;

	packs_init(packs, 64, 5000);
	for (size_t i = 0; i < IMAGES; i++)
		fill_image(cache, &packs[i]);
	ds_cache_get_stats(cache, &stats);
	disk = support_allocated(support_path("c"));
	/* Chunks share blocks at their ends: rather too much. */
	cr_assert_geq(stats.used_bytes + DS_KIB(512), disk);
	root = ds_cache_root_get(cache);
	pthread_mutex_lock(&cache->evict_mutex);
	cr_assert_eq(ds_evict_scan_locked(cache, root), 0);
	pthread_mutex_unlock(&cache->evict_mutex);
	ds_cache_root_unref(root);
	ds_cache_get_stats(cache, &stats);
	cr_assert_eq(stats.used_bytes, disk);
	cr_assert_eq(stats.images_n, support_images(support_path("c"), 0, NULL));
	ds_cache_unref(cache);
	/* And the next process knows it without a walk. */
	cache = support_open(support_path("c"), DS_MIB(6), 1);
	ds_cache_get_stats(cache, &stats);
	cr_assert_eq(stats.used_bytes, disk);
	ds_cache_unref(cache);
	packs_release(packs);
}

/* Ages the n-th image by its number in the map, so that the order is known. */
static void set_used(const struct ds_digest *name, uint64_t used_ms)
{
	char dir[3], hex[DS_DIGEST_TEXT_MAX], path[512];
	int fd;

	ds_image_path(name, dir, hex);
	snprintf(path, sizeof(path), "%s/images/%s/%s/map", support_path("c"), dir, hex);
	fd = open(path, O_RDWR | O_CLOEXEC);
	cr_assert_geq(fd, 0);
	cr_assert_eq(pwrite(fd, &used_ms, 8, offsetof(struct ds_map_header, used_ms)), 8);
	close(fd);
}

Test(evict, the_least_recently_used_image_goes_first)
{
	struct ds_cache *cache = support_open(support_path("c"), DS_MIB(64), 1);
	struct ds_digest names[IMAGES];
	struct support_pack packs[IMAGES];
	struct ds_image *image;

	packs_init(packs, 16, DS_KIB(64));
	for (size_t i = 0; i < IMAGES; i++) {
		image = support_image(cache, &packs[i]);
		names[i] = image->layout.name;
		cr_assert_eq(support_fill_all(image, &packs[i]), 16);
		ds_image_unref(image);
	}
	ds_cache_unref(cache);
	/* 7 images are older than the others, in a mixed order. */
	for (size_t i = 0; i < IMAGES; i++)
		set_used(&names[i], 1000000 + (i % 3 == 0 ? 100 - i : 1000 + i));
	cache = support_open(support_path("c"), DS_MIB(20) + DS_KIB(200), 1);
	cr_assert_eq(ds_cache_make_room(cache, DS_MIB(6)), 0);
	for (size_t i = 0; i < IMAGES; i++)
		if (i % 3)
			cr_assert_eq(count_image(cache, &packs[i]), 16, "image %zu", i);
	cr_assert_eq(count_image(cache, &packs[18]), 0);
	cr_assert_eq(count_image(cache, &packs[15]), 0);
	ds_cache_unref(cache);
	packs_release(packs);
}

Test(evict, a_cache_smaller_than_one_pack_works)
{
	struct ds_cache *cache = support_open(support_path("c"), DS_MIB(1), 1);
	struct support_pack pack;
	struct ds_image *image;
	unsigned filled = 0;

	support_pack_init(&pack, 7, 512, DS_KIB(16), true);
	image = support_image(cache, &pack);
	for (int round = 0; round < 3; round++)
		for (uint32_t i = 0; i < 512; i++) {
			int r = support_fill(image, &pack, i);

			cr_assert(r == 0 || r == -ENOSPC);
			filled += r == 0;
			if (r == 0)
				cr_assert(support_read(image, &pack, i, false));
			if (i % 64 == 0)
				cr_assert_leq(support_allocated(support_path("c")),
					      DS_MIB(1) + DS_KIB(64));
		}
	/* It goes on taking new chunks instead of keeping the first ones for ever. */
	cr_assert_gt(filled, 1000);
	cr_assert_geq(support_count(image, &pack, false), 30);
	ds_image_unref(image);
	ds_cache_unref(cache);
	support_pack_release(&pack);
}

Test(evict, a_cache_smaller_than_one_chunk_takes_nothing_and_harms_nothing)
{
	struct ds_cache *cache = support_open(support_path("c"), DS_KIB(32), 1);
	struct support_pack pack;
	struct ds_image *image;

	support_pack_init(&pack, 7, 4, DS_KIB(64), true);
	image = support_image(cache, &pack);
	cr_assert_eq(support_fill_all(image, &pack), 0);
	cr_assert_eq(support_count(image, &pack, true), 0);
	ds_image_unref(image);
	ds_cache_unref(cache);
	support_pack_release(&pack);
}

/* ---- other processes */

struct user {
	const struct support_pack *pack;
	_Atomic int *phase;
	char dir[320];
};

static int use_image(void *ctx)
{
	struct user *user = ctx;
	struct ds_cache *cache = support_open(user->dir, DS_MIB(64), 1);
	struct ds_image *image = support_image(cache, user->pack);

	if (support_count(image, user->pack, false) != 16)
		return 1;
	*user->phase = 1;
	while (*user->phase == 1)
		usleep(100);
	/* Without having been asked in between: its files are still what they were. */
	return support_count(image, user->pack, false) != 16;
}

/* INV-1 */
Test(evict, T26_what_another_process_reads_stays)
{
	void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct user user = {.phase = page};
	struct support_pack packs[IMAGES];
	struct ds_cache *cache;
	int pid;

	packs_init(packs, 16, DS_KIB(64));
	cache = support_open(support_path("c"), DS_MIB(64), 1);
	for (size_t i = 0; i < IMAGES; i++)
		fill_image(cache, &packs[i]);
	ds_cache_unref(cache);
	user.pack = &packs[5];
	strcpy(user.dir, support_path("c"));
	pid = support_fork(use_image, &user);
	while (*user.phase == 0)
		usleep(100);
	cache = support_open(support_path("c"), DS_KIB(600), 1);
	cr_assert_eq(ds_cache_make_room(cache, DS_KIB(500)), -ENOSPC);
	cr_assert_eq(support_images(support_path("c"), 0, NULL), 1);
	cr_assert_eq(count_image(cache, &packs[5]), 16);
	*user.phase = 2;
	cr_assert_eq(support_wait(pid), 0);
	ds_cache_unref(cache);
	/* Now nobody does. */
	cache = support_open(support_path("c"), DS_KIB(600), 1);
	cr_assert_eq(ds_cache_make_room(cache, DS_KIB(500)), 0);
	ds_cache_unref(cache);
	packs_release(packs);
	munmap(page, 4096);
}

static int sit_idle(void *ctx)
{
	struct user *user = ctx;
	struct ds_cache *cache = support_open(user->dir, DS_MIB(64), 1);
	struct ds_image *image = support_image(cache, user->pack);

	if (support_count(image, user->pack, false) != 16)
		return 1;
	*user->phase = 1;
	while (*user->phase == 1)
		usleep(100);
	/* It was evicted meanwhile, and we noticed. */
	if (support_count(image, user->pack, false) != 0 ||
	    support_fill_all(image, user->pack) != 16 ||
	    support_count(image, user->pack, false) != 16)
		return 1;
	ds_image_unref(image);
	ds_cache_unref(cache);
	return 0;
}

Test(evict, what_another_process_only_keeps_open_goes_when_room_is_needed)
{
	void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct user user = {.phase = page};
	uint64_t deadline = ds_deadline_in_ms(20000);
	struct support_pack pack;
	struct ds_cache *cache;
	int pid;

	support_pack_init(&pack, 7, 16, DS_KIB(64), true);
	cache = support_open(support_path("c"), DS_MIB(64), 1);
	cr_assert_eq(fill_image(cache, &pack), 16);
	ds_cache_unref(cache);
	user.pack = &pack;
	strcpy(user.dir, support_path("c"));
	pid = support_fork(sit_idle, &user);
	while (*user.phase == 0)
		usleep(100);
	cache = support_open(support_path("c"), DS_KIB(600), 1);
	while (ds_cache_make_room(cache, DS_KIB(500)) < 0) {
		cr_assert_lt(ds_mono_ns(), deadline);
		usleep(10000);
	}
	ds_cache_unref(cache);
	*user.phase = 2;
	cr_assert_eq(support_wait(pid), 0);
	support_pack_release(&pack);
	munmap(page, 4096);
}

/* INV-2 */
Test(evict, what_the_kernel_has_is_never_punched_and_stays_while_it_is_mapped)
{
	struct ds_cache *cache = support_open(support_path("c"), DS_MIB(64), 1);
	struct support_pack pack, other;
	struct ds_image *image;
	uint8_t *want = malloc(DS_KIB(16));
	uint64_t deadline_ns = ds_deadline_in_ms(20000);
	const uint8_t *mapping;
	int dir_fd, fd;

	support_pack_init(&pack, 7, 512, DS_KIB(16), true);
	support_pack_init(&other, 8, 4, DS_KIB(16), true);
	image = support_image(cache, &pack);
	cr_assert_eq(support_fill_all(image, &pack), 512);
	support_hand_out(image, &pack);
	/* It stays, and works. */
	cr_assert_eq(support_count(image, &pack, false), 512);
	ds_image_unref(image);
	ds_cache_unref(cache);
	/* A client's mapping outlives all our locks. */
	cr_assert_eq(support_images(support_path("c"), 0, &dir_fd), 1);
	fd = openat(dir_fd, "data", O_RDONLY | O_CLOEXEC);
	mapping = mmap(NULL, pack.layout.size_bytes, PROT_READ, MAP_SHARED, fd, 0);
	cr_assert_neq(mapping, MAP_FAILED);
	cache = support_open(support_path("c"), DS_MIB(7), 2);
	cr_assert_eq(fill_image(cache, &other), 0);
	cr_assert_eq(count_image(cache, &pack), 512);
	for (uint32_t i = 0; i < 512; i++) {
		support_bytes(&pack, i, want);
		cr_assert_arr_eq(want, mapping + pack.slots[i].raw_off, DS_KIB(16));
	}
	close(fd);
	ds_cache_unref(cache);
	/* Closed, and mapped still. */
	cache = support_open(support_path("c"), DS_MIB(7), 2);
	cr_assert_lt(ds_cache_make_room(cache, DS_KIB(500)), 0);
	munmap((void *)(uintptr_t)mapping, pack.layout.size_bytes);
	while (ds_cache_make_room(cache, DS_KIB(500)) < 0) {
		cr_assert_lt(ds_mono_ns(), deadline_ns);
		usleep(10000);
	}
	cr_assert_eq(count_image(cache, &pack), 0); /* gone as a whole */
	close(dir_fd);
	ds_cache_unref(cache);
	free(want);
	support_pack_release(&pack);
	support_pack_release(&other);
}

/* ---- while others work */

struct crowd {
	struct ds_cache *cache;
	struct support_pack *packs;
	_Atomic bool stop;
	_Atomic unsigned hits_n, fills_n;
};

static void *crowd_thread(void *arg)
{
	struct crowd *crowd = arg;
	struct ds_prng prng = {.state = (uint64_t)pthread_self()};

	while (!crowd->stop) {
		const struct support_pack *pack = &crowd->packs[ds_prng_below(&prng, IMAGES)];
		struct ds_image *image = support_image(crowd->cache, pack);

		for (int i = 0; i < 8; i++) {
			uint32_t slot = (uint32_t)ds_prng_below(&prng, pack->layout.slots_n);

			if (support_read(image, pack, slot, true))
				crowd->hits_n++;
			else
				crowd->fills_n += support_fill(image, pack, slot) == 0;
		}
		ds_image_unref(image);
	}
	return NULL;
}

Test(evict, readers_and_fillers_and_eviction_side_by_side_never_give_a_wrong_byte)
{
	struct support_pack packs[IMAGES];
	struct crowd crowd = {.cache = support_open(support_path("c"), DS_MIB(3), 1),
			      .packs = packs};
	struct ds_cache_stats stats = {0};
	pthread_t threads[4];

	packs_init(packs, 32, DS_KIB(20));
	for (size_t i = 0; i < 4; i++)
		pthread_create(&threads[i], NULL, crowd_thread, &crowd);
	/* On a slow machine for up to a minute more, until something was shown. */
	for (uint64_t deadline = ds_deadline_in_ms(2000), late = ds_deadline_in_ms(60000);
	     ds_mono_ns() < deadline ||
	     (ds_mono_ns() < late &&
	      (crowd.hits_n <= 10 || crowd.fills_n <= 100 || stats.evictions_n <= 5));) {
		ds_cache_make_room(crowd.cache, DS_MIB(2));
		/* And all of it is closed under their hands. */
		ds_image_detach_some(crowd.cache);
		ds_cache_get_stats(crowd.cache, &stats);
		usleep(2000);
	}
	crowd.stop = true;
	for (size_t i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	ds_cache_get_stats(crowd.cache, &stats);
	cr_assert_gt(crowd.hits_n, 10);
	cr_assert_gt(crowd.fills_n, 100);
	cr_assert_gt(stats.evictions_n, 5);
	ds_cache_unref(crowd.cache);
	packs_release(packs);
}

/* A manifest may say of a file of petabytes that it is in a billion pieces. */
Test(evict, a_map_that_would_take_the_cache_is_not_made)
{
	struct ds_cache *cache = support_open(support_path("c"), DS_MIB(256), 1);
	struct ds_image_slot slot = {.raw_len_bytes = 1};
	static const uint32_t slots_n[] = {3u << 20, 1u << 20};
	struct ds_image *image;

	for (size_t i = 0; i < DS_ARRAY_SIZE(slots_n); i++) {
		struct ds_image_layout layout = {.name.bytes[0] = 1,
						 .slots_n = slots_n[i],
						 .size_bytes = slots_n[i]};

		cr_assert_eq(ds_image_open(cache, &layout, &image), 0);
		if (i == 0) {
			cr_assert_lt(ds_image_fill(image, &slot, "x"), 0);
			cr_assert_eq(support_allocated(support_path("c")), 0);
		} else {
			/* As large as any pack's. */
			cr_assert_eq(ds_image_fill(image, &slot, "x"), 0);
		}
		ds_image_unref(image);
	}
	ds_cache_unref(cache);
}
