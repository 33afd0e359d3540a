/*
 * Readers of more than the cache holds: a part stays, in whatever order they read; and who reads something else gets the cache.
 */
#include <criterion/criterion.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cache/cache_internal.h"
#include "cache_support.h"
#include "util/clock.h"
#include "util/mem.h"
#include "util/random.h"

TestSuite(scan, .fini = support_clean, .timeout = 120);

#define PACKS	   8u
#define SLOTS	   32u
#define CHUNK	   DS_KIB(64)
#define DATA_BYTES ((uint64_t)PACKS * SLOTS * CHUNK)
#define HOUR	   UINT64_C(3600000)
/* Their maps, and what is less than a chunk at the end. */
#define ALLOWANCE 4u

/* What goes is to be seen, and goes when a test says so. */
void __wrap_ds_cache_start_keeper(struct ds_cache *cache);
void __wrap_ds_cache_start_keeper(struct ds_cache *cache)
{
	(void)cache;
}

enum order { CYCLIC, SHUFFLED };

static void packs_init(struct support_pack *packs, unsigned n, uint32_t slots_n, uint64_t seed)
{
	for (unsigned i = 0; i < n; i++) {
		support_pack_init(&packs[i], seed + i, slots_n, CHUNK, true);
		packs[i].layout.yields = true;
	}
}

static void packs_release(struct support_pack *packs, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		support_pack_release(&packs[i]);
}

/* Reads all once, fills what is not there; how many were. */
static unsigned epoch(struct ds_cache *cache, const struct support_pack *packs, unsigned packs_n,
		      enum order order, uint64_t seed)
{
	unsigned slots_n = packs[0].layout.slots_n, n = packs_n * slots_n, hits = 0;
	unsigned *list = calloc(n, sizeof(list[0]));
	struct ds_prng prng = {.state = seed};

	for (unsigned i = 0; i < n; i++) {
		unsigned j = order == SHUFFLED ? (unsigned)ds_prng_below(&prng, i + 1) : i;

		list[i] = list[j];
		list[j] = i;
	}
	for (unsigned i = 0; i < n; i++) {
		const struct support_pack *pack = &packs[list[i] / slots_n];
		struct ds_image *image = support_image(cache, pack);

		if (support_read(image, pack, list[i] % slots_n, true))
			hits++;
		else
			support_fill(image, pack, list[i] % slots_n);
		ds_image_unref(image);
	}
	free(list);
	return hits;
}

static void check_scan(enum order order, unsigned packs_n, uint32_t slots_n)
{
	struct ds_cache *cache = support_open(support_path("c"), DATA_BYTES / 4, 1);
	unsigned wanted = PACKS * SLOTS / 4 - ALLOWANCE;
	struct support_pack packs[PACKS];
	struct ds_cache_stats before, after;

	packs_init(packs, packs_n, slots_n, 100);
	for (uint64_t i = 0; i < 6; i++) {
		unsigned hits;

		ds_cache_get_stats(cache, &before);
		hits = epoch(cache, packs, packs_n, order, 7 + i);
		ds_cache_get_stats(cache, &after);
		cr_log_info("epoch %u: %u of %u", (unsigned)i, hits, PACKS * SLOTS);
		cr_assert_leq(support_allocated(support_path("c")), DATA_BYTES / 4 + CHUNK,
			      "%llu KiB",
			      (unsigned long long)support_allocated(support_path("c")) / 1024);
		if (i == 0)
			continue;
		cr_assert_geq(hits, wanted, "epoch %u: %u hits", (unsigned)i, hits);
		/* And nothing is written for what would not stay. */
		cr_assert_leq(after.fills_n - before.fills_n, ALLOWANCE);
		cr_assert_eq(after.evictions_n, before.evictions_n);
	}
	cr_assert(ds_cache_is_refusing(cache));
	ds_cache_unref(cache);
	packs_release(packs, packs_n);
}

/* Else a scan that runs beside fills would let the cache grow over its quota. */
Test(scan, what_is_added_while_the_cache_is_counted_is_not_lost)
{
	struct ds_cache *cache = support_open(support_path("c"), DATA_BYTES, 1);
	struct ds_cache_root *root = ds_cache_root_get(cache);
	uint64_t mark;

	ds_cache_usage_set(cache, root, 1000, ds_cache_usage_mark(cache));
	cr_assert_eq(ds_cache_usage_get(cache, root, true), 1000);
	mark = ds_cache_usage_mark(cache);
	ds_cache_usage_add(cache, root, 300);
	ds_cache_usage_add(cache, root, -100);
	ds_cache_usage_set(cache, root, 2000, mark);
	cr_assert_eq(ds_cache_usage_get(cache, root, true), 2300);
	ds_cache_root_unref(root);
	ds_cache_unref(cache);
}

/* What is written before a scan looks, and counted while it looks. */
static uint64_t counted_late_bytes;
static unsigned walks_n, walk_takes_ms;

uint64_t __real_ds_cache_usage_mark(struct ds_cache *cache);
uint64_t __wrap_ds_cache_usage_mark(struct ds_cache *cache);
uint64_t __wrap_ds_cache_usage_mark(struct ds_cache *cache)
{
	uint64_t mark = __real_ds_cache_usage_mark(cache);
	struct ds_cache_root *root;

	walks_n++;
	ds_sleep_ms(walk_takes_ms);
	if (counted_late_bytes) {
		root = ds_cache_root_get(cache);
		ds_cache_usage_add(cache, root, (int64_t)counted_late_bytes);
		ds_cache_root_unref(root);
	}
	return mark;
}

Test(scan, nothing_goes_for_what_was_counted_twice)
{
	struct ds_cache *cache = support_open(support_path("c"), DS_MIB(1), 1);
	struct ds_cache_root *root = ds_cache_root_get(cache);
	struct support_pack pack;
	struct ds_image *image;
	unsigned filled_n;

	packs_init(&pack, 1, SLOTS, 100);
	image = support_image(cache, &pack);
	filled_n = support_fill_all(image, &pack);
	cr_assert_eq(filled_n, DS_MIB(1) / CHUNK - 1);
	counted_late_bytes = CHUNK;
	pthread_mutex_lock(&cache->evict_mutex);
	cr_assert_eq(ds_evict_scan_locked(cache, root), 0);
	pthread_mutex_unlock(&cache->evict_mutex);
	cr_assert_gt(ds_cache_usage_get(cache, root, true), DS_MIB(1));
	cr_assert_eq(ds_evict_for(cache, root, 0, false), 0);
	cr_assert_eq(support_count(image, &pack, false), filled_n);
	/* Nor of a closed image for what is counted behind the scan. */
	counted_late_bytes = 0;
	ds_image_unref(image);
	ds_cache_root_unref(root);
	ds_cache_unref(cache);
	cache = support_open(support_path("c"), DS_MIB(1), 1);
	root = ds_cache_root_get(cache);
	pthread_mutex_lock(&cache->evict_mutex);
	cr_assert_eq(ds_evict_scan_locked(cache, root), 0);
	pthread_mutex_unlock(&cache->evict_mutex);
	ds_cache_usage_add(cache, root, CHUNK);
	cr_assert_gt(ds_cache_usage_get(cache, root, true), DS_MIB(1));
	cr_assert_eq(ds_evict_for(cache, root, 0, false), 0);
	image = support_image(cache, &pack);
	cr_assert_eq(support_count(image, &pack, false), filled_n);
	/* And no more than what is too much. */
	counted_late_bytes = 16 * CHUNK;
	cache->capacity_bytes -= 4 * CHUNK;
	cr_assert_eq(ds_evict_for(cache, root, 0, false), 0);
	counted_late_bytes = 0;
	cr_assert_lt(support_count(image, &pack, false), filled_n);
	cr_assert_geq(support_count(image, &pack, false), filled_n - 6);
	ds_image_unref(image);
	ds_cache_root_unref(root);
	ds_cache_unref(cache);
	support_pack_release(&pack);
}

Test(scan, a_cyclic_scan_keeps_a_part)
{
	check_scan(CYCLIC, PACKS, SLOTS);
}

Test(scan, a_shuffled_scan_keeps_a_part)
{
	check_scan(SHUFFLED, PACKS, SLOTS);
}

Test(scan, a_file_larger_than_the_cache_keeps_a_part)
{
	check_scan(CYCLIC, 1, PACKS * SLOTS);
	support_clean();
	check_scan(SHUFFLED, 1, PACKS * SLOTS);
}

/* What is no data of files finds room at any time: a page of the manifest that is not there costs more than any chunk. */
Test(scan, who_does_not_yield_takes_room)
{
	struct ds_cache *cache = support_open(support_path("c"), DATA_BYTES / 4, 1);
	struct support_pack packs[PACKS], page;
	struct ds_image *image;

	packs_init(packs, PACKS, SLOTS, 100);
	epoch(cache, packs, PACKS, CYCLIC, 0);
	epoch(cache, packs, PACKS, CYCLIC, 0);
	support_pack_init(&page, 9, SLOTS, DS_KIB(16), true);
	image = support_image(cache, &page);
	cr_assert_eq(support_fill_all(image, &page), SLOTS);
	cr_assert_eq(support_count(image, &page, false), SLOTS);
	ds_image_unref(image);
	ds_cache_unref(cache);
	support_pack_release(&page);
	packs_release(packs, PACKS);
}

/* ---- several processes */

struct scanner {
	uint64_t seed;
	enum order order;
	_Atomic unsigned *begun_n;
};

static int scan_along(void *ctx)
{
	struct scanner *scanner = ctx;
	struct ds_cache *cache = support_open(support_path("c"), DATA_BYTES / 4, 1);
	unsigned wanted = PACKS * SLOTS / 4 - 2 * ALLOWANCE;
	struct support_pack packs[PACKS];
	int r = 0;

	packs_init(packs, PACKS, SLOTS, 100);
	++*scanner->begun_n;
	while (*scanner->begun_n < 2)
		usleep(100);
	for (uint64_t i = 0; i < 6; i++) {
		unsigned hits = epoch(cache, packs, PACKS, scanner->order, scanner->seed + i);

		/* The first of one may go on into the second of the other. */
		if (i >= 2 && hits < wanted) {
			fprintf(stderr, "epoch %u: %u hits\n", (unsigned)i, hits);
			r = 1;
		}
	}
	ds_cache_unref(cache);
	packs_release(packs, PACKS);
	return r;
}

static void check_two(enum order order)
{
	_Atomic unsigned *begun_n =
		mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct scanner scanners[] = {{.seed = 1000}, {.seed = 2000}};
	int pids[2];

	support_path("c");
	for (size_t i = 0; i < 2; i++) {
		scanners[i].order = order;
		scanners[i].begun_n = begun_n;
		pids[i] = support_fork(scan_along, &scanners[i]);
	}
	for (size_t i = 0; i < 2; i++)
		cr_assert_eq(support_wait(pids[i]), 0);
	munmap((void *)(uintptr_t)begun_n, 4096);
}

Test(scan, two_processes_keep_a_part_together)
{
	check_two(SHUFFLED);
	support_clean();
	check_two(CYCLIC);
}

/* ---- something else is read */

/* Whether all of the packs were there in an epoch, before it is too late. */
static bool comes_to_stay(struct ds_cache *cache, const struct support_pack *packs, unsigned n)
{
	uint64_t deadline = ds_deadline_in_ms(60000);

	while (epoch(cache, packs, n, CYCLIC, 0) < n * SLOTS)
		if (ds_mono_ns() > deadline)
			return false;
	return true;
}

Test(scan, another_process_with_other_data_gets_the_cache_at_once)
{
	struct ds_cache *cache = support_open(support_path("c"), DATA_BYTES / 4, 1);
	struct support_pack packs[PACKS], others[1];

	packs_init(packs, PACKS, SLOTS, 100);
	packs_init(others, 1, SLOTS, 500);
	for (uint64_t i = 0; i < 3; i++)
		epoch(cache, packs, PACKS, CYCLIC, i);
	ds_cache_unref(cache);
	/* The stamps are exact to a tenth of a second. */
	ds_sleep_ms(150);
	cache = support_open(support_path("c"), DATA_BYTES / 4, 1);
	epoch(cache, others, 1, CYCLIC, 0);
	cr_assert_eq(epoch(cache, others, 1, CYCLIC, 0), SLOTS);
	ds_cache_unref(cache);
	packs_release(packs, PACKS);
	packs_release(others, 1);
}

Test(scan, who_turns_to_other_data_gets_the_cache_for_them)
{
	struct ds_cache *cache = support_open(support_path("c"), DATA_BYTES / 4, 1);
	struct support_pack packs[PACKS], others[1];

	packs_init(packs, PACKS, SLOTS, 100);
	packs_init(others, 1, SLOTS, 500);
	/* Longer than the stamps are exact to, shorter than a test may take. */
	cache->scan.protect_min_ms = 500;
	for (uint64_t i = 0; i < 3; i++)
		epoch(cache, packs, PACKS, SHUFFLED, i);
	cr_assert(comes_to_stay(cache, others, 1));
	ds_cache_unref(cache);
	packs_release(packs, PACKS);
	packs_release(others, 1);
}

/* Fills side by side each find room for themselves alone. */
Test(scan, for_a_byte_too_much_little_goes)
{
	struct ds_cache *cache = support_open(support_path("c"), DS_MIB(16), 1);
	struct ds_cache_root *root = ds_cache_root_get(cache);
	struct support_pack pack;
	struct ds_image *image;
	unsigned left_n;

	packs_init(&pack, 1, 200, 100);
	image = support_image(cache, &pack);
	cr_assert_eq(support_fill_all(image, &pack), 200);
	pthread_mutex_lock(&cache->evict_mutex);
	cr_assert_eq(ds_evict_scan_locked(cache, root), 0);
	pthread_mutex_unlock(&cache->evict_mutex);
	cache->capacity_bytes = ds_cache_usage_get(cache, root, true) - 1;
	cr_assert_eq(ds_evict_for(cache, root, 0, false), 0);
	left_n = support_count(image, &pack, false);
	cr_assert(left_n >= 198 && left_n < 200, "%u are left", left_n);
	ds_image_unref(image);
	ds_cache_root_unref(root);
	ds_cache_unref(cache);
	support_pack_release(&pack);
}

/* A punched part of a block frees nothing. */
Test(scan, for_a_byte_too_much_little_goes_of_small_chunks)
{
	struct ds_cache *cache = support_open(support_path("c"), DS_MIB(16), 1);
	struct ds_cache_root *root = ds_cache_root_get(cache);
	struct support_pack pack;
	struct ds_image *image;
	unsigned filled_n = 0;

	support_pack_init(&pack, 100, 4000, 5000, true);
	pack.layout.yields = true;
	image = support_image(cache, &pack);
	/* One in each part that goes by itself. */
	for (uint32_t i = 17; i < 4000; i += 17)
		filled_n += support_fill(image, &pack, i) == 0;
	cr_assert_gt(filled_n, 200);
	pthread_mutex_lock(&cache->evict_mutex);
	cr_assert_eq(ds_evict_scan_locked(cache, root), 0);
	pthread_mutex_unlock(&cache->evict_mutex);
	cache->capacity_bytes = ds_cache_usage_get(cache, root, true) - 1;
	cr_assert_eq(ds_evict_for(cache, root, 0, false), 0);
	cr_assert_lt(support_count(image, &pack, false), filled_n);
	cr_assert_gt(support_count(image, &pack, false), filled_n - 20);
	ds_image_unref(image);
	ds_cache_root_unref(root);
	ds_cache_unref(cache);
	support_pack_release(&pack);
}

/* What the walk costs is bounded where it is needed at each look. */
Test(scan, the_keeper_does_not_walk_all_the_time)
{
	struct ds_cache *cache = support_open(support_path("c"), DS_MIB(16), 1);
	struct ds_cache_root *root = ds_cache_root_get(cache);
	struct support_pack pack;
	struct ds_image *image;
	uint64_t started_ns;

	packs_init(&pack, 1, 200, 100);
	image = support_image(cache, &pack);
	cr_assert_eq(support_fill_all(image, &pack), 200);
	walk_takes_ms = 40;
	cache->capacity_bytes = ds_cache_usage_get(cache, root, true) - 1;
	started_ns = ds_mono_ns();
	ds_evict_keep(cache, root);
	cr_assert_gt(walks_n, 0);
	cr_assert_leq(ds_cache_usage_get(cache, root, true), cache->capacity_bytes);
	cr_assert_geq(cache->evict.keep_again_ns, started_ns + 50 * 40 * DS_NS_PER_MS);
	cache->capacity_bytes = ds_cache_usage_get(cache, root, true) - 1;
	cache->evict.keep_again_ns = ds_deadline_in_ms(HOUR);
	walks_n = 0;
	ds_evict_keep(cache, root);
	cr_assert_eq(walks_n, 0);
	cache->evict.keep_again_ns = 0;
	ds_evict_keep(cache, root);
	cr_assert_gt(walks_n, 0);
	cr_assert_leq(ds_cache_usage_get(cache, root, true), cache->capacity_bytes);
	ds_image_unref(image);
	ds_cache_root_unref(root);
	ds_cache_unref(cache);
	support_pack_release(&pack);
}

/* How much of a list of so many chunks is there after some time of epochs of more data than the cache holds; or as soon as one of them
 * hits so often. */
static unsigned left_of_list(uint32_t chunks_n, uint64_t time_ms, unsigned enough_n)
{
	struct ds_cache *cache = support_open(support_path("c"), DATA_BYTES / 4, 1);
	struct support_pack packs[PACKS], list;
	uint64_t deadline;
	struct ds_image *image;
	unsigned hits_n = 0, left_n;

	support_pack_init(&list, 500, chunks_n, CHUNK, true);
	packs_init(packs, PACKS, SLOTS, 100);
	image = support_image(cache, &list);
	cr_assert_eq(support_fill_all(image, &list), chunks_n);
	cache->scan.protect_min_ms = 300;
	deadline = ds_deadline_in_ms(time_ms);
	for (uint64_t i = 0; ds_mono_ns() < deadline && hits_n < enough_n; i++)
		hits_n = epoch(cache, packs, PACKS, CYCLIC, i);
	left_n = support_count(image, &list, false);
	ds_image_unref(image);
	ds_cache_unref(cache);
	packs_release(packs, PACKS);
	support_pack_release(&list);
	return left_n;
}

/* As a version's list of files, which the kernel asks for seldom. */
Test(scan, what_does_not_yield_is_not_cold_to_data_of_the_same_process)
{
	cr_assert_eq(left_of_list(2, 2000, UINT_MAX), 2);
}

/* Else a list that fills the cache, after one listing of all, would leave no room for data until the mount ends. */
Test(scan, a_list_that_is_not_read_leaves_room)
{
	uint32_t most = PACKS * SLOTS / 4 - 2;

	cr_assert_leq(left_of_list(most, 60000, most / 2), most / 2);
}

/* Half of each image: its other half goes. */
Test(scan, the_cold_parts_of_an_image_go_while_others_stay)
{
	struct ds_cache *cache = support_open(support_path("c"), DS_MIB(9), 1);
	struct support_pack pack;
	uint64_t deadline = ds_deadline_in_ms(60000);
	struct ds_image *image;
	unsigned here = 0;

	/* 16 MiB, of which the cache holds 9. */
	packs_init(&pack, 1, PACKS * SLOTS, 100);
	cache->scan.protect_min_ms = 500;
	image = support_image(cache, &pack);
	for (uint32_t i = 0; i < 128; i++)
		cr_assert_eq(support_fill(image, &pack, i), 0);
	/* The last 64 of them go on being read, and so do 64 others. */
	while (here < 128) {
		cr_assert_lt(ds_mono_ns(), deadline);
		here = 0;
		for (uint32_t i = 64; i < 192; i++) {
			if (support_read(image, &pack, i, false))
				here++;
			else
				support_fill(image, &pack, i);
			cr_assert(i >= 128 || support_read(image, &pack, i, false));
		}
	}
	ds_image_unref(image);
	ds_cache_unref(cache);
	support_pack_release(&pack);
}

/* ---- the markers, by a clock of their own */

struct clocked {
	struct ds_cache_scan scan;
	uint64_t now_ms;
};

static void refuse_all(struct clocked *clocked, unsigned n, enum order order, uint64_t first_key)
{
	unsigned *list = calloc(n, sizeof(list[0]));
	struct ds_prng prng = {.state = clocked->now_ms};

	for (unsigned i = 0; i < n; i++) {
		unsigned j = order == SHUFFLED ? (unsigned)ds_prng_below(&prng, i + 1) : i;

		list[i] = list[j];
		list[j] = i;
	}
	for (unsigned i = 0; i < n; i++) {
		clocked->now_ms += 10;
		ds_scan_reads(&clocked->scan, clocked->now_ms);
		ds_scan_refused(&clocked->scan, first_key + list[i], clocked->now_ms);
	}
	free(list);
}

static uint64_t cold_age(struct clocked *clocked)
{
	return clocked->now_ms - ds_scan_cold_before(&clocked->scan, clocked->now_ms);
}

Test(scan, what_was_not_used_for_two_epochs_is_cold)
{
	struct clocked clocked = {.now_ms = HOUR};

	ds_scan_init(&clocked.scan);
	/* Of the first nothing is known: all that was used since its beginning stays. */
	refuse_all(&clocked, 20000, CYCLIC, 1);
	cr_assert_eq(cold_age(&clocked), 20000 * 10 - 10);
	for (unsigned i = 0; i < 4; i++) {
		refuse_all(&clocked, 20000, CYCLIC, 1);
		cr_assert_eq(cold_age(&clocked), 2 * 20000 * 10);
	}
	for (unsigned i = 0; i < 20; i++) {
		refuse_all(&clocked, 20000, SHUFFLED, 1);
		cr_assert_geq(cold_age(&clocked), 2 * 20000 * 10);
		cr_assert_leq(cold_age(&clocked), 4 * 20000 * 10);
	}
	/* A shorter one: soon after the longer is forgotten. */
	for (unsigned i = 0; i < 50; i++)
		refuse_all(&clocked, 3000, SHUFFLED, 1000000);
	cr_assert_geq(cold_age(&clocked), 2 * 3000 * 10);
	cr_assert_leq(cold_age(&clocked), 4 * 3000 * 10);
	/* And a longer one, once a marker has lived that long. */
	for (unsigned i = 0; i < 12; i++) {
		refuse_all(&clocked, 100000, CYCLIC, 5000000);
	}
	cr_assert_eq(cold_age(&clocked), 2 * 100000 * 10);
	/* After a pause all that was there before is cold. */
	clocked.now_ms += 24 * HOUR;
	ds_scan_reads(&clocked.scan, clocked.now_ms);
	clocked.now_ms += 5;
	cr_assert_eq(cold_age(&clocked), 5);
	pthread_mutex_destroy(&clocked.scan.mutex);
}

Test(scan, a_clock_that_is_put_back_makes_nothing_cold)
{
	struct clocked clocked = {.now_ms = 10 * HOUR};
	uint64_t put_back_ms;

	ds_scan_init(&clocked.scan);
	refuse_all(&clocked, 20000, CYCLIC, 1);
	/* Before this process began to read. */
	clocked.now_ms = put_back_ms = HOUR;
	refuse_all(&clocked, 10, CYCLIC, 1);
	cr_assert_leq(ds_scan_cold_before(&clocked.scan, clocked.now_ms), put_back_ms + 10);
	/* A span that is known stays; and none is made of two clocks. */
	for (unsigned i = 0; i < 2; i++)
		refuse_all(&clocked, 20000, CYCLIC, 1);
	cr_assert_eq(cold_age(&clocked), 2 * 20000 * 10);
	clocked.now_ms -= 20000 * 10;
	refuse_all(&clocked, 20000, CYCLIC, 1);
	cr_assert_eq(cold_age(&clocked), 2 * 20000 * 10);
	pthread_mutex_destroy(&clocked.scan.mutex);
}

Test(scan, what_is_never_wanted_again_makes_nothing_cold)
{
	struct clocked clocked = {.now_ms = HOUR};

	ds_scan_init(&clocked.scan);
	for (uint64_t i = 0; i < 10; i++)
		refuse_all(&clocked, 20000, SHUFFLED, 1 + i * 20000);
	cr_assert_eq(cold_age(&clocked), 10 * 20000 * 10 - 10);
	pthread_mutex_destroy(&clocked.scan.mutex);
}
