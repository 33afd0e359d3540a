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

#define TINY_N 20000u

/* A pack of very many chunks, of which no GET is answered but those of its table: until it has made all the flights that it may. */
static void pull_tiny(struct bench *bench)
{
	uint64_t limit_ns = ds_deadline_in_ms(20000);

	bench_open(bench, TINY_N, 40, true, NULL);
	pthread_mutex_lock(&bench->store->mutex);
	bench->store->match = bench->stored.key;
	bench->store->hold = true;
	bench->store->pass_n = 2; /* its table is longer than TAIL_BYTES */
	pthread_mutex_unlock(&bench->store->mutex);
	pull(bench);
	while (stats_of(bench).underway_n < DS_FETCH_PULL_FLIGHTS_MAX && ds_mono_ns() < limit_ns)
		ds_sleep_ms(1);
	cr_assert_geq(stats_of(bench).underway_n, DS_FETCH_PULL_FLIGHTS_MAX);
	fault_store_wait_held(bench->store, 1);
}

Test(fetch_pull, tiny_files_come_some_thousand_at_a_time)
{
	struct bench bench;

	pull_tiny(&bench);
	for (int i = 0; i < 100; i++) {
		uint64_t n = stats_of(&bench).underway_n;

		cr_assert_leq(n, DS_FETCH_PULL_FLIGHTS_MAX + 64, "%llu", (unsigned long long)n);
		ds_sleep_ms(3);
	}
	fault_store_release(bench.store);
	wait_quiet(&bench);
	cr_assert_eq(local_n(&bench), TINY_N);
	cr_assert_eq(stats_of(&bench).chunks_n, TINY_N);
	cr_assert_eq(stats_of(&bench).pulls_n, 1);
	bench_close(&bench);
}

Test(fetch_pull, it_ends_with_the_fetcher_while_it_pauses)
{
	struct bench bench;

	pull_tiny(&bench);
	bench_close(&bench);
	support_clean();
	/* And while it goes on: some have come, some are on their way, some are not asked for yet. */
	pull_tiny(&bench);
	fault_store_release_one(bench.store);
	while (stats_of(&bench).chunks_n == 0)
		ds_sleep_ms(1);
	fault_store_release(bench.store);
	bench_close(&bench);
}

static unsigned busy_n(struct bench *bench)
{
	unsigned n;

	pthread_mutex_lock(&bench->fetcher->mutex);
	n = bench->fetcher->locked.pulls_busy_n;
	pthread_mutex_unlock(&bench->fetcher->mutex);
	return n;
}

#define OTHERS_N 6u

Test(fetch_pull, few_at_a_time_and_a_chunk_that_was_moved_is_found_meanwhile)
{
	struct support_pack packs[OTHERS_N], moved_pack;
	struct stored_pack stored[OTHERS_N], moved, to;
	struct ds_image *images[OTHERS_N], *moved_image;
	struct bench bench;
	struct want want;

	pull_tiny(&bench);
	for (uint32_t i = 0; i < OTHERS_N; i++) {
		support_pack_init(&packs[i], 20 + i, 10, 5000, false);
		stored_pack_init(&stored[i], &packs[i], 0, 10, bench.memory);
		images[i] = support_image(bench.cache, &packs[i]);
		ds_fetcher_pull(bench.fetcher, images[i], &stored[i].id);
	}
	cr_assert_eq(stats_of(&bench).pulls_n, 4);
	cr_assert_eq(busy_n(&bench), 4);
	/* More of them wait than there are threads for them and for this. */
	support_pack_init(&moved_pack, 40, 10, 5000, false);
	stored_pack_init(&moved, &moved_pack, 0, 10, bench.memory);
	stored_pack_init(&to, &moved_pack, 0, 9, bench.memory);
	stored_pack_move(&moved, &to, bench.memory);
	moved_image = support_image(bench.cache, &moved_pack);
	want_start(&want, bench.fetcher, moved_image, &moved_pack, &moved, 3, 20000);
	cr_assert_eq(want_wait(&want), 0);
	cr_assert_eq(busy_n(&bench), 4);
	fault_store_release(bench.store);
	wait_quiet(&bench);
	cr_assert_eq(busy_n(&bench), 0);
	cr_assert_eq(local_n(&bench), TINY_N);
	/* Those that were turned away are asked for again, by whoever misses something of them. */
	for (uint32_t i = 0; i < OTHERS_N; i++) {
		cr_assert_eq(support_count(images[i], &packs[i], false), i < 3 ? 10 : 0);
		ds_fetcher_pull(bench.fetcher, images[i], &stored[i].id);
		wait_quiet(&bench);
		cr_assert_eq(support_count(images[i], &packs[i], false), 10);
	}
	cr_assert_eq(stats_of(&bench).pulls_n, 1 + OTHERS_N);
	for (uint32_t i = 0; i < OTHERS_N; i++) {
		ds_image_unref(images[i]);
		stored_pack_release(&stored[i]);
		support_pack_release(&packs[i]);
	}
	ds_image_unref(moved_image);
	stored_pack_release(&moved);
	stored_pack_release(&to);
	support_pack_release(&moved_pack);
	bench_close(&bench);
}

/* Their tables would be in memory together. */
Test(fetch_pull, of_packs_of_very_many_chunks_one_comes_at_a_time)
{
	static const uint32_t slots[] = {DS_FETCH_PULL_LARGE_N + 1, DS_FETCH_PULL_LARGE_N + 1, 10};
	struct support_pack packs[3];
	struct ds_image *images[3];
	struct bench bench;

	bench_open(&bench, 10, 5000, false, NULL);
	hold(&bench);
	for (uint32_t i = 0; i < 3; i++) {
		support_pack_init(&packs[i], 20 + i, slots[i], 4, false);
		images[i] = support_image(bench.cache, &packs[i]);
		ds_fetcher_pull(bench.fetcher, images[i], &packs[i].layout.name);
	}
	cr_assert_eq(stats_of(&bench).pulls_n, 2);
	cr_assert_eq(busy_n(&bench), 2);
	fault_store_release(bench.store);
	wait_quiet(&bench);
	ds_fetcher_pull(bench.fetcher, images[1], &packs[1].layout.name);
	cr_assert_eq(stats_of(&bench).pulls_n, 3);
	wait_quiet(&bench);
	cr_assert_eq(busy_n(&bench), 0);
	for (uint32_t i = 0; i < 3; i++) {
		ds_image_unref(images[i]);
		support_pack_release(&packs[i]);
	}
	bench_close(&bench);
}

/* Nor is one fetched, of which that was not known, since a manifest lies. */
Test(fetch_pull, the_table_of_a_pack_that_has_more_chunks_than_was_said_is_not_fetched)
{
	struct support_pack said;
	struct ds_image *image;
	struct bench bench;

	bench_open(&bench, 3000, 40, false, NULL);
	support_pack_init(&said, 20, 10, 40, false);
	image = support_image(bench.cache, &said);
	ds_fetcher_pull(bench.fetcher, image, &bench.stored.id);
	wait_quiet(&bench);
	cr_assert_eq(stats_of(&bench).pulls_n, 1);
	cr_assert_eq(bench.store->gets_n, 1, "%u GETs", bench.store->gets_n);
	cr_assert_eq(stats_of(&bench).chunks_n, 0);
	ds_image_unref(image);
	support_pack_release(&said);
	bench_close(&bench);
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
