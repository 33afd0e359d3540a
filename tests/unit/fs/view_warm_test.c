/*
 * Warming a view: all of it is here afterwards, for a few GETs; it ends when it is told to, when memory is short, when the
 * store does not answer, and when the cache does not keep what comes.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "repo/view_warm.h"
#include "util/clock.h"
#include "view_support.h"

TestSuite(view_warm, .fini = support_clean, .timeout = 240);

#define LARGE	VIEW_FILES_N
#define FILES_N (VIEW_FILES_N + 1 + VIEW_LINKS_N)

struct told {
	struct ds_warm_progress progress;
	unsigned begins_n, failed_n;
	char failed[64];
	unsigned ticks_left_n; /* then it is stopped; 0: never */
};

static void on_begin(void *ctx, const struct ds_warm_progress *progress)
{
	struct told *told = ctx;

	told->begins_n++;
	cr_assert_gt(progress->files_total_n, 0);
	cr_assert_eq(progress->fetched_bytes, 0);
}

static void on_failed(void *ctx, const char *path, const struct ds_diag *diag)
{
	struct told *told = ctx;

	told->failed_n++;
	snprintf(told->failed, sizeof(told->failed), "%s", path);
	cr_assert_eq(diag->code, -DS_E_CORRUPT);
}

static bool on_tick(void *ctx, const struct ds_warm_progress *progress)
{
	struct told *told = ctx;

	(void)progress;
	return told->ticks_left_n && --told->ticks_left_n == 0;
}

static int run(struct view_bench *bench, const char *path, uint64_t timeout_ms, struct told *told)
{
	const char *paths[] = {path};
	struct ds_warm_options options = {
		.paths = paths,
		.paths_n = path ? 1 : 0,
		.timeout_ms = timeout_ms,
		.begins = on_begin,
		.failed = on_failed,
		.tick = on_tick,
		.ctx = told,
	};
	struct ds_warm *warm;
	int r = ds_warm_new(bench->view, &options, &warm);

	if (r < 0)
		return r;
	r = ds_warm_run(warm, NULL);
	ds_warm_get_progress(warm, &told->progress);
	ds_warm_free(warm);
	return r;
}

static void check_all(struct ds_view *view)
{
	for (unsigned i = 0; i < VIEW_FILES_N; i++)
		cr_assert_eq(view_check_file(view, i, 0, 40000, 20000), 0, "file %u", i);
	for (uint64_t off = 0; off < VIEW_LARGE_SIZE; off += 999999)
		cr_assert_eq(view_check_file(view, LARGE, off, 1 << 20, 20000), 0);
}

/* Of the manifest too, also what no walk over the tree has met. */
static void check_pages(struct ds_view *view)
{
	const struct ds_page_source *source = ds_view_page_source(view);
	struct ds_demand demand;
	uint8_t page[65536];

	cr_assert_leq(source->page_size, sizeof(page));
	ds_demand_init(&demand, view);
	for (uint64_t i = 0; i < source->pages_n; i++)
		cr_assert_eq(source->read_page(source->ctx, &demand, i, page), 0, "page %llu",
			     (unsigned long long)i);
	ds_demand_release(&demand);
}

Test(view_warm, then_nothing_is_fetched_any_more_in_whatever_boot)
{
	struct told told = {0};
	struct view_bench bench;
	unsigned gets_n;

	view_bench_init(&bench);
	cr_assert_eq(view_bench_open(&bench, support_path("c"), DS_MIB(256), 1, false), 0);
	cr_assert_eq(run(&bench, NULL, 0, &told), 0);
	cr_expect_eq(told.begins_n, 1);
	cr_expect_eq(told.progress.files_n, FILES_N);
	cr_expect_eq(told.progress.files_total_n, FILES_N);
	cr_expect_eq(told.progress.fetched_bytes, told.progress.bytes_total);
	cr_expect(told.progress.is_over && !told.progress.is_incomplete);
	gets_n = bench.store->gets_n;
	/* Of 3 MiB of manifest in pages of 4 KiB, and 13 of data. */
	cr_expect_leq(gets_n, 25, "%u", gets_n);
	check_all(bench.view);
	check_pages(bench.view);
	cr_expect_eq(bench.store->gets_n, gets_n);
	view_bench_close(&bench);
	for (uint8_t boot = 1; boot <= 2; boot++) {
		cr_assert_eq(view_bench_open(&bench, support_path("c"), DS_MIB(256), boot, false),
			     0);
		told = (struct told){0};
		cr_assert_eq(run(&bench, NULL, 0, &told), 0);
		cr_expect_eq(told.progress.files_n, FILES_N);
		/* In another boot it is checked first, and was there all the same. */
		cr_expect_eq(told.progress.here_bytes, told.progress.bytes_total, "in boot %u",
			     boot);
		cr_expect_eq(told.progress.fetched_bytes, 0, "in boot %u", boot);
		check_all(bench.view);
		cr_expect_eq(bench.store->gets_n, gets_n, "in boot %u", boot);
		view_bench_close(&bench);
	}
	view_bench_release(&bench);
}

Test(view_warm, what_was_there_in_an_earlier_boot_is_not_told_as_fetched)
{
	struct told part = {0}, told = {0};
	struct view_bench bench;

	view_bench_init(&bench);
	cr_assert_eq(view_bench_open(&bench, support_path("c"), DS_MIB(256), 1, false), 0);
	cr_assert_eq(run(&bench, "d03", 0, &part), 0);
	cr_expect_gt(part.progress.bytes_total, 0);
	cr_expect_eq(part.progress.fetched_bytes, part.progress.bytes_total);
	view_bench_close(&bench);
	cr_assert_eq(view_bench_open(&bench, support_path("c"), DS_MIB(256), 2, false), 0);
	cr_assert_eq(run(&bench, NULL, 0, &told), 0);
	cr_expect_eq(told.progress.here_bytes, part.progress.bytes_total);
	cr_expect_eq(told.progress.fetched_bytes + told.progress.here_bytes,
		     told.progress.bytes_total);
	view_bench_close(&bench);
	view_bench_release(&bench);
}

Test(view_warm, a_path_brings_itself_and_no_more)
{
	struct told told = {0};
	struct view_bench bench;
	unsigned gets_n;
	char path[64];

	view_bench_init(&bench);
	cr_assert_eq(view_bench_open(&bench, support_path("c"), DS_MIB(256), 1, false), 0);
	cr_assert_eq(run(&bench, "d03", 0, &told), 0);
	cr_expect_eq(told.progress.files_n, VIEW_FILES_N / VIEW_DIRS_N);
	view_file_path(LARGE, path, sizeof(path));
	cr_assert_eq(run(&bench, path, 0, &told), 0);
	cr_expect_eq(told.progress.files_n, 1);
	/* Without its hole. */
	cr_expect_leq(told.progress.bytes_total, VIEW_LARGE_SIZE - DS_MIB(1));
	gets_n = bench.store->gets_n;
	for (unsigned i = 3; i < VIEW_FILES_N; i += VIEW_DIRS_N)
		cr_assert_eq(view_check_file(bench.view, i, 0, 40000, 20000), 0);
	cr_expect_eq(bench.store->gets_n, gets_n);
	cr_assert_eq(run(&bench, "d03/none", 0, &told), -ENOENT);
	cr_assert_eq(run(&bench, "d03/f003/x", 0, &told), -ENOTDIR);
	/* A file of many names is one. */
	told = (struct told){0};
	cr_assert_eq(run(&bench, "links", 0, &told), 0);
	cr_expect_eq(told.progress.files_n, VIEW_LINKS_N);
	cr_expect_eq(told.progress.bytes_total, view_file_size(1));
	view_bench_close(&bench);
	view_bench_release(&bench);
}

Test(view_warm, it_can_be_stopped_and_gives_up_when_nothing_comes)
{
	struct told told = {0};
	struct view_bench bench;

	view_bench_init(&bench);
	cr_assert_eq(view_bench_open(&bench, support_path("c"), DS_MIB(256), 1, false), 0);
	/* The manifest is here, the rest is not. */
	cr_assert_eq(run(&bench, "d03", 0, &told), 0);
	for (int i = 0; i < 2; i++) {
		pthread_mutex_lock(&bench.store->mutex);
		bench.store->hold = true;
		pthread_mutex_unlock(&bench.store->mutex);
		told = (struct told){.ticks_left_n = i ? 0 : 3};
		cr_assert_eq(run(&bench, NULL, i ? 300 : 20000, &told),
			     i ? -DS_E_TIMEOUT : -DS_E_INTERRUPTED);
		cr_expect(told.progress.is_over && told.progress.is_incomplete);
		fault_store_release(bench.store);
	}
	told = (struct told){0};
	cr_assert_eq(run(&bench, NULL, 20000, &told), 0);
	check_all(bench.view);
	view_bench_close(&bench);
	view_bench_release(&bench);
}

Test(view_warm, a_cache_that_cannot_hold_it_is_refused_unasked)
{
	struct told told = {0};
	struct view_bench bench;
	unsigned gets_n;

	view_bench_init(&bench);
	cr_assert_eq(view_bench_open(&bench, support_path("c"), DS_MIB(8), 1, false), 0);
	cr_assert_eq(run(&bench, "d03", 0, &told), 0);
	told = (struct told){0};
	cr_assert_eq(run(&bench, NULL, 0, &told), -ENOSPC);
	cr_expect_eq(told.begins_n, 0);
	cr_expect_eq(told.progress.fetched_bytes, 0);
	gets_n = bench.store->gets_n;
	told = (struct told){0};
	cr_assert_eq(run(&bench, NULL, 0, &told), -ENOSPC);
	cr_expect_leq(bench.store->gets_n, gets_n + 3);
	view_bench_close(&bench);
	/* Nor where there is none. */
	cr_assert_eq(view_bench_open(&bench, NULL, 0, 1, false), 0);
	cr_assert_eq(run(&bench, NULL, 0, &told), -ENOSPC);
	view_bench_close(&bench);
	view_bench_release(&bench);
}

Test(view_warm, what_is_damaged_is_named_once_and_the_rest_comes)
{
	struct told told = {0};
	struct view_bench bench;

	view_bench_init(&bench);
	cr_assert_eq(view_bench_open(&bench, support_path("c"), DS_MIB(256), 1, false), 0);
	cr_assert_eq(run(&bench, "d03", 0, &told), 0);
	pthread_mutex_lock(&bench.store->mutex);
	/* Of each answer one byte, and of what is fetched anew alone as well. */
	bench.store->flip_n = 100000;
	pthread_mutex_unlock(&bench.store->mutex);
	told = (struct told){0};
	cr_assert_eq(run(&bench, "d04", 0, &told), -DS_E_CORRUPT);
	cr_expect_gt(told.failed_n, 0);
	cr_expect_eq(told.failed_n, told.progress.failed_n);
	cr_expect_eq(strncmp(told.failed, "d04/f", 5), 0, "%s", told.failed);
	cr_expect_eq(told.progress.files_n, told.progress.files_total_n);
	cr_expect_lt(told.failed_n, told.progress.files_n);
	pthread_mutex_lock(&bench.store->mutex);
	bench.store->flip_n = 0;
	pthread_mutex_unlock(&bench.store->mutex);
	told = (struct told){0};
	cr_assert_eq(run(&bench, NULL, 0, &told), 0);
	cr_expect_eq(told.failed_n, 0);
	check_all(bench.view);
	view_bench_close(&bench);
	view_bench_release(&bench);
}

Test(view_warm, without_memory_it_ends_and_can_be_done_again)
{
	struct view_bench bench;
	unsigned ended_n = 0;

	view_bench_init(&bench);
	for (int64_t n = 0; n < 4000; n += n / 12 + 1) {
		struct told told = {0};
		uint64_t failed_n;
		int r;

		cr_assert_eq(view_bench_open(&bench, support_path("c"), DS_MIB(256), 1, false), 0);
		ds_mem_fail_after(n, n % 3 == 0);
		r = run(&bench, n % 2 ? NULL : "d05", 20000, &told);
		failed_n = ds_mem_fail_after(-1, 0);
		cr_assert(r == 0 || (failed_n && r < 0), "%lld: %d", (long long)n, r);
		ended_n += r < 0;
		view_bench_close(&bench);
	}
	cr_expect_gt(ended_n, 5);
	view_bench_release(&bench);
}
