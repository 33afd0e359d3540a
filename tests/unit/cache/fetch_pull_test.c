/*
 * Whole packs ahead of demand: few GETs, each chunk checked, demand joins, nothing when it cannot be, and an end at any time.
 */
#include <criterion/criterion.h>

#include "fetch_bench.h"
#include "util/clock.h"
#include "util/mem.h"

TestSuite(fetch_pull, .fini = support_clean, .timeout = 120);

static void pull(struct bench *bench)
{
	ds_fetcher_pull(bench->fetcher, bench->image, &bench->stored.id);
}

/* Flights and pulls are all over. */
static void wait_quiet(struct bench *bench)
{
	for (unsigned still_n = 0; still_n < 3;) {
		size_t cursor = 0;
		bool is_busy;
		void *value;

		pthread_mutex_lock(&bench->fetcher->mutex);
		is_busy = bench->fetcher->locked.flights_n > 0 ||
			  !ds_list_is_empty(&bench->fetcher->locked.calls);
		while (ds_map_each(bench->fetcher->locked.pulls, &cursor, NULL, NULL, &value))
			is_busy |= ds_fetch_pull_is_busy(value);
		pthread_mutex_unlock(&bench->fetcher->mutex);
		still_n = is_busy ? 0 : still_n + 1;
		ds_sleep_ms(1);
	}
}

static unsigned local_n(struct bench *bench)
{
	return support_count(bench->image, &bench->pack, false);
}

Test(fetch_pull, a_pack_comes_in_few_gets)
{
	struct ds_fetcher_options options = {.coalesce_bytes_max = DS_KIB(256)};
	struct bench bench;

	bench_open(&bench, 200, DS_KIB(8), true, &options);
	pull(&bench);
	wait_quiet(&bench);
	cr_assert_eq(local_n(&bench), 200);
	/* Its table, and 1,600 KiB in pieces of 256 at most; they gather while the first are looked at. */
	cr_assert_leq(bench.store->gets_n, 1 + 14);
	cr_assert_eq(stats_of(&bench).pulls_n, 1);
	/* What was brought is not brought again, and not even asked for. */
	pull(&bench);
	wait_quiet(&bench);
	cr_assert_eq(stats_of(&bench).pulls_n, 1);
	cr_assert_eq(stats_of(&bench).chunks_n, 200);
	bench_close(&bench);
}

Test(fetch_pull, demand_joins_and_overtakes)
{
	struct ds_fetcher_options options = {.coalesce_bytes_max = DS_KIB(64)};
	struct want wants[10];
	struct bench bench;

	bench_open(&bench, 100, DS_KIB(8), true, &options);
	for (uint32_t i = 0; i < 5; i++)
		start(&bench, &wants[i], i * 20, 20000);
	pull(&bench);
	for (uint32_t i = 5; i < 10; i++)
		start(&bench, &wants[i], i * 10 + 3, 20000);
	for (uint32_t i = 0; i < 10; i++)
		cr_assert_eq(want_wait(&wants[i]), 0);
	wait_quiet(&bench);
	cr_assert_eq(local_n(&bench), 100);
	cr_assert_eq(stats_of(&bench).chunks_n, 100);
	bench_close(&bench);
}

Test(fetch_pull, only_what_is_missing)
{
	struct bench bench;

	bench_open(&bench, 50, 5000, false, NULL);
	for (uint32_t i = 0; i < 50; i += 2)
		cr_assert_eq(support_fill(bench.image, &bench.pack, i), 0);
	pull(&bench);
	wait_quiet(&bench);
	cr_assert_eq(local_n(&bench), 50);
	cr_assert_eq(stats_of(&bench).chunks_n, 25);
	bench_close(&bench);
}

/* Spoilt bytes never arrive; what came spoilt once comes right later. */
Test(fetch_pull, A14_every_chunk_is_checked)
{
	struct bench bench;

	bench_open(&bench, 50, 5000, false, NULL);
	set(&bench, "packs/", 1000, 0, 0);
	pull(&bench);
	wait_quiet(&bench);
	cr_assert_gt(bench.store->flipped_n, 0);
	/* support_count aborts on a wrong byte. */
	cr_assert_lt(local_n(&bench), 50);
	set(&bench, NULL, 0, 0, 0);
	for (uint32_t i = 0; i < 50; i++)
		cr_assert_eq(fetch(&bench, i), 0);
	bench_close(&bench);
}

Test(fetch_pull, a_pack_that_is_not_there_or_another_is_left_alone)
{
	struct support_pack other;
	struct ds_image *image;
	struct bench bench;

	bench_open(&bench, 10, 5000, false, NULL);
	/* An image of another layout: somebody was told something else of this pack. */
	support_pack_init(&other, 9, 11, 5000, false);
	image = support_image(bench.cache, &other);
	ds_fetcher_pull(bench.fetcher, image, &bench.stored.id);
	wait_quiet(&bench);
	cr_assert_eq(stats_of(&bench).pulls_n, 1);
	cr_assert_eq(stats_of(&bench).chunks_n, 0);
	stored_pack_move(&bench.stored, NULL, bench.memory);
	ds_fetcher_pull(bench.fetcher, bench.image, &other.layout.name);
	wait_quiet(&bench);
	cr_assert_eq(stats_of(&bench).pulls_n, 2);
	cr_assert_eq(stats_of(&bench).chunks_n, 0);
	ds_image_unref(image);
	support_pack_release(&other);
	bench_close(&bench);
}

Test(fetch_pull, T28_none_beyond_the_budget)
{
	struct ds_fetcher_options options = {.inflight_bytes_max = DS_KIB(100)};
	struct want want;
	struct bench bench;

	bench_open(&bench, 10, DS_KIB(100), true, &options);
	hold(&bench);
	start(&bench, &want, 3, 20000);
	fault_store_wait_held(bench.store, 1);
	pull(&bench);
	cr_assert_eq(stats_of(&bench).pulls_n, 0);
	fault_store_release(bench.store);
	cr_assert_eq(want_wait(&want), 0);
	bench_close(&bench);
}

/* The end, while the table is on its way, and while chunks are. */
Test(fetch_pull, freeing_ends_it)
{
	for (int passes_n = 0; passes_n < 2; passes_n++) {
		struct bench bench;

		bench_open(&bench, 100, 5000, false, NULL);
		if (passes_n == 0)
			hold(&bench);
		pull(&bench);
		if (passes_n == 0)
			fault_store_wait_held(bench.store, 1);
		else
			ds_sleep_ms(2);
		bench_close(&bench);
		support_clean();
	}
}

Test(fetch_pull, J01_every_allocation_may_fail)
{
	unsigned failed_n = 0;
	bool whole = false;

	for (int64_t n = 0; !whole && n < 3000; n += 1 + n / 20) {
		struct bench bench;
		uint64_t failures;

		bench_open(&bench, 20, 5000, false, NULL);
		ds_mem_fail_after(n, false);
		pull(&bench);
		wait_quiet(&bench);
		failures = ds_mem_fail_after(-1, 0);
		failed_n += failures > 0;
		whole = failures == 0 && local_n(&bench) == 20;
		for (uint32_t i = 0; i < 20; i++)
			cr_assert_eq(fetch(&bench, i), 0);
		bench_close(&bench);
		support_clean();
	}
	cr_assert(whole);
	cr_assert_gt(failed_n, 10);
}
