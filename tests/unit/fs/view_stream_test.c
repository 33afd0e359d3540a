#include <criterion/criterion.h>
#include <stdio.h>

#include "repo/view_internal.h"
#include "util/clock.h"
#include "view_support.h"

TestSuite(view_stream, .fini = support_clean, .timeout = 240);

#define PIECE DS_KIB(128) /* as a kernel without a larger readahead asks */

static uint64_t chunks_n(struct view_bench *bench)
{
	struct ds_fetcher_stats stats;

	view_bench_settle(bench);
	ds_fetcher_get_stats(bench->fetcher, &stats);
	return stats.chunks_n;
}

/* With the manifest in the cache, so that chunks of data alone are counted. */
static void open_warm(struct view_bench *bench, const char *cache_dir)
{
	cr_assert_eq(view_bench_open(bench, support_path(cache_dir), DS_GIB(1), 1, false), 0);
	cr_assert_eq(view_check_file(bench->view, VIEW_STREAM, VIEW_STREAM_SIZE - 1, 1, 20000), 0);
	(void)chunks_n(bench);
}

static void stream(struct view_bench *bench, uint64_t from, uint64_t to)
{
	for (; from < to; from += PIECE)
		cr_assert_eq(view_check_file(bench->view, VIEW_STREAM, from, PIECE, 20000), 0);
}

/* Whether the piece is in the cache; nothing is fetched for the question. (A thread of FUSE would miss what the host has taken out of
 * the page cache meanwhile.) */
static bool is_here(struct view_bench *bench, uint64_t off)
{
	struct ds_fetch_target target;
	struct ds_extent extent;
	struct ds_demand demand;
	struct ds_image *image;
	struct ds_entry entry;
	uint64_t ino;
	bool is_local;
	size_t n = 0;
	int r;

	cr_assert_eq(view_find(bench->view, VIEW_STREAM, 20000, &ino), 0);
	ds_demand_init(&demand, bench->view);
	cr_assert_eq(ds_view_get(bench->view, &demand, ino, &entry), 0);
	cr_assert_eq(view_file_image(bench->view, &entry, &image), 0);
	r = ds_manifest_extents(bench->view->manifest, &demand, ino, off, 1, &extent, 1, &n);
	if (r == 0)
		r = view_extent_target(bench->view, &demand, image, &extent, &target);
	cr_assert((r == 0 && n == 1) || r == -DS_E_NOT_LOCAL);
	is_local = r == 0 && view_chunk_is_local(&target);
	ds_image_unref(image);
	ds_demand_release(&demand);
	return is_local;
}

Test(view_stream, what_follows_is_fetched_ahead_in_a_window_that_grows)
{
	struct view_bench bench;
	uint64_t before;

	view_bench_init_stream(&bench);
	open_warm(&bench, "c");
	before = chunks_n(&bench);
	stream(&bench, 0, PIECE);
	/* Some 8 MiB, of about 1 MiB each. */
	cr_expect_geq(chunks_n(&bench) - before, 5);
	cr_expect_leq(chunks_n(&bench) - before, 16);
	cr_expect_not(is_here(&bench, DS_MIB(18)));
	stream(&bench, PIECE, DS_MIB(9));
	(void)chunks_n(&bench);
	/* 16 MiB from where half of the first 8 were used, at 5 or so. */
	cr_expect(is_here(&bench, DS_MIB(18)));
	cr_expect_not(is_here(&bench, DS_MIB(36)));
	stream(&bench, DS_MIB(9), DS_MIB(18));
	(void)chunks_n(&bench);
	cr_expect(is_here(&bench, DS_MIB(36)));
	stream(&bench, DS_MIB(18), VIEW_STREAM_SIZE);
	view_bench_close(&bench);
	view_bench_release(&bench);
}

/* The kernel's own read-ahead is sent by several threads. */
Test(view_stream, reads_out_of_order_are_one_stream)
{
	struct view_bench bench;

	view_bench_init_stream(&bench);
	open_warm(&bench, "c");
	for (uint64_t off = 0; off < DS_MIB(18); off += DS_MIB(2)) {
		stream(&bench, off + DS_MIB(1), off + DS_MIB(2));
		stream(&bench, off, off + DS_MIB(1));
	}
	(void)chunks_n(&bench);
	cr_expect(is_here(&bench, DS_MIB(36)));
	view_bench_close(&bench);
	view_bench_release(&bench);
}

Test(view_stream, T6_several_streams_in_one_file_run_ahead_each)
{
	struct view_bench bench;

	view_bench_init_stream(&bench);
	open_warm(&bench, "c");
	/* The second one begins where what is before it is here. */
	stream(&bench, DS_MIB(24) - PIECE, DS_MIB(24));
	for (uint64_t off = 0; off < DS_MIB(6); off += PIECE) {
		stream(&bench, off, off + PIECE);
		stream(&bench, DS_MIB(24) + off, DS_MIB(24) + off + PIECE);
	}
	(void)chunks_n(&bench);
	cr_expect(is_here(&bench, DS_MIB(12)));
	cr_expect(is_here(&bench, DS_MIB(36)));
	view_bench_close(&bench);
	view_bench_release(&bench);
}

Test(view_stream, random_reads_fetch_what_they_read_and_no_more)
{
	static const unsigned at_mib[] = {20, 31, 12, 40, 5, 26};
	struct view_bench bench;
	uint64_t before;

	view_bench_init_stream(&bench);
	open_warm(&bench, "c");
	before = chunks_n(&bench);
	for (size_t i = 0; i < DS_ARRAY_SIZE(at_mib); i++)
		cr_assert_eq(view_check_file(bench.view, VIEW_STREAM, DS_MIB(at_mib[i]), 100,
					     20000),
			     0);
	cr_expect_leq(chunks_n(&bench) - before, 2 * DS_ARRAY_SIZE(at_mib));
	view_bench_close(&bench);
	view_bench_release(&bench);
}

/* What was dropped for want of room in the budget is asked for again. */
Test(view_stream, what_the_budget_did_not_take_is_fetched_ahead_later)
{
	struct view_bench bench;
	struct ds_fetcher_stats stats;

	view_bench_init_stream(&bench);
	bench.inflight_bytes_max = DS_MIB(6);
	open_warm(&bench, "c");
	stream(&bench, 0, VIEW_STREAM_SIZE);
	view_bench_settle(&bench);
	ds_fetcher_get_stats(bench.fetcher, &stats);
	/* Few of the extents were waited for one by one. */
	cr_expect_gt(stats.chunks_n, 30);
	cr_expect_lt(stats.wants_n - stats.joined_n, stats.chunks_n / 2, "%llu of %llu",
		     (unsigned long long)(stats.wants_n - stats.joined_n),
		     (unsigned long long)stats.chunks_n);
	view_bench_close(&bench);
	view_bench_release(&bench);
}
