/*
 * What the cache does not take is fetched once for all its pieces, and memory for it is bounded.
 */
#include <criterion/criterion.h>

#include "fetch_bench.h"
#include "util/clock.h"
#include "util/mem.h"

TestSuite(fetch_kept, .fini = support_clean, .timeout = 120);

#define LEN DS_KIB(16)

/* A cache that takes nothing. */
static void open_refusing(struct bench *bench, uint32_t slots_n,
			  const struct ds_fetcher_options *options)
{
	bench_open(bench, slots_n, LEN, true, options);
	bench->cache->capacity_bytes = 4096;
}

static uint64_t kept_bytes(struct bench *bench)
{
	uint64_t bytes;

	pthread_mutex_lock(&bench->fetcher->mutex);
	bytes = bench->fetcher->locked.kept_bytes;
	pthread_mutex_unlock(&bench->fetcher->mutex);
	return bytes;
}

Test(fetch_kept, a_chunk_in_pieces_is_fetched_once)
{
	struct bench bench;

	/* What the disk has is not kept. */
	bench_open(&bench, 8, LEN, true, NULL);
	cr_assert_eq(fetch(&bench, 4), 0);
	cr_assert_not(ds_fetcher_keeps(bench.fetcher, &bench.pack.slots[4].digest));
	bench.cache->capacity_bytes = 4096;
	for (unsigned i = 0; i < 4; i++)
		cr_assert_eq(fetch(&bench, 3), 0);
	cr_assert_eq(stats_of(&bench).chunks_n, 2);
	cr_assert_eq(support_count(bench.image, &bench.pack, true), 1);
	cr_assert(ds_fetcher_keeps(bench.fetcher, &bench.pack.slots[3].digest));
	bench_close(&bench);
}

Test(fetch_kept, what_was_fetched_ahead_is_there_when_it_is_wanted)
{
	struct ds_fetch_target targets[8];
	struct bench bench;

	open_refusing(&bench, 8, NULL);
	for (uint32_t i = 0; i < 8; i++)
		targets[i] = target_of(bench.image, &bench.pack, &bench.stored, i);
	ds_fetcher_prefetch(bench.fetcher, targets, 8);
	for (uint32_t i = 0; i < 8; i++)
		cr_assert_eq(fetch(&bench, i), 0);
	cr_assert_eq(stats_of(&bench).chunks_n, 8);
	bench_close(&bench);
}

/* Not by their last use: in a stream that is what was read, and what was fetched ahead would go. */
Test(fetch_kept, T28_those_that_came_first_go)
{
	struct ds_fetcher_options options = {.inflight_bytes_max = 8 * 4 * LEN};
	struct bench bench;

	open_refusing(&bench, 12, &options);
	for (uint32_t i = 0; i < 12; i++) {
		cr_assert_eq(fetch(&bench, i), 0);
		cr_assert_eq(fetch(&bench, i), 0);
		cr_assert_eq(fetch(&bench, i & ~3u), 0);
		cr_assert_leq(kept_bytes(&bench), 4 * LEN);
	}
	cr_assert_eq(stats_of(&bench).chunks_n, 12);
	for (uint32_t i = 0; i < 12; i++)
		cr_assert_eq(ds_fetcher_keeps(bench.fetcher, &bench.pack.slots[i].digest), i >= 8,
			     "chunk %u", i);
	bench_close(&bench);
}

Test(fetch_kept, J01_every_allocation_may_fail)
{
	bool whole = false;

	for (int64_t n = 0; !whole && n < 2000; n++) {
		struct bench bench;
		unsigned right_n = 0;

		open_refusing(&bench, 4, NULL);
		ds_mem_fail_after(n, false);
		for (uint32_t i = 0; i < 4; i++)
			right_n += ds_fetch_ahead(bench.fetcher,
						  (struct ds_fetch_target[]){
							  target_of(bench.image, &bench.pack,
								    &bench.stored, i)},
						  1, true) == 1;
		wait_quiet(&bench);
		whole = ds_mem_fail_after(-1, 0) == 0 && right_n == 4;
		for (uint32_t i = 0; i < 4; i++)
			cr_assert_eq(fetch(&bench, i), 0);
		bench_close(&bench);
		support_clean();
	}
	cr_assert(whole);
}
