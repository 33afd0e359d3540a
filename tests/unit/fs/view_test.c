#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/clock.h"
#include "repo/view_internal.h"
#include "view_support.h"

TestSuite(view, .fini = support_clean, .timeout = 240);

#define LARGE VIEW_FILES_N

static void check_all(struct ds_view *view)
{
	for (unsigned i = 0; i < VIEW_FILES_N; i++)
		cr_assert_eq(view_check_file(view, i, 0, 40000, 20000), 0, "file %u", i);
	for (uint64_t off = 0; off < VIEW_LARGE_SIZE + 1000000; off += 999999)
		cr_assert_eq(view_check_file(view, LARGE, off, 1 << 20, 20000), 0);
}

Test(view, a_cold_one_gives_everything_right_and_then_from_the_cache_alone)
{
	struct view_bench bench;
	unsigned gets_n;

	view_bench_init(&bench);
	cr_assert_eq(view_bench_open(&bench, support_path("c"), DS_MIB(256), 1, false), 0);
	check_all(bench.view);
	view_bench_settle(&bench);
	gets_n = bench.store->gets_n;
	check_all(bench.view);
	cr_expect_eq(bench.store->gets_n, gets_n);
	view_bench_close(&bench);

	/* Of another boot: checked anew, not fetched anew. */
	cr_assert_eq(view_bench_open(&bench, support_path("c"), DS_MIB(256), 2, false), 0);
	check_all(bench.view);
	cr_expect_eq(bench.store->gets_n, gets_n);
	view_bench_close(&bench);
	view_bench_release(&bench);
}

Test(view, without_a_disk_each_run_gets_further)
{
	struct view_bench bench;

	view_bench_init(&bench);
	cr_assert_eq(view_bench_open(&bench, NULL, 0, 1, false), 0);
	cr_assert_eq(view_check_file(bench.view, 7, 0, 40000, 20000), 0);
	/* 9 MiB at once: more chunks than one demand may name. */
	cr_assert_eq(view_check_file(bench.view, LARGE, 0, VIEW_LARGE_SIZE, 20000), 0);
	view_bench_close(&bench);
	view_bench_release(&bench);
}

Test(view, a_cache_smaller_than_what_is_read_is_no_obstacle)
{
	struct view_bench bench;

	view_bench_init(&bench);
	cr_assert_eq(view_bench_open(&bench, support_path("c"), 300000, 1, false), 0);
	for (unsigned i = 0; i < VIEW_FILES_N; i += 3)
		cr_assert_eq(view_check_file(bench.view, i, 0, 40000, 20000), 0, "file %u", i);
	cr_assert_eq(view_check_file(bench.view, LARGE, 0, VIEW_LARGE_SIZE, 20000), 0);
	view_bench_close(&bench);
	view_bench_release(&bench);
}

static int call_get_root(struct ds_demand *demand, void *ctx)
{
	struct ds_entry entry;

	return ds_view_get(ctx, demand, DS_ROOT_ID, &entry);
}

/* Takes the manifest's pages from the cache, and leaves their index. */
static void forget_pages(const char *cache_dir)
{
	unsigned found_n = 0, images_n = 1;

	for (unsigned i = 0; i < images_n; i++) {
		char magic[15] = "";
		int image_fd = -1, fd;

		images_n = support_images(cache_dir, i, &image_fd);
		cr_assert_geq(image_fd, 0);
		fd = openat(image_fd, "data", O_RDONLY | O_CLOEXEC);
		if (fd >= 0 && pread(fd, magic, sizeof(magic), 0) == (ssize_t)sizeof(magic) &&
		    memcmp(magic, "SQLite format 3", sizeof(magic)) == 0) {
			cr_assert_eq(unlinkat(image_fd, "data", 0), 0);
			cr_assert_eq(unlinkat(image_fd, "map", 0), 0);
			found_n++;
		}
		close(fd);
		close(image_fd);
	}
	cr_assert_eq(found_n, 1);
}

/* Has what is in the cache stay in the page cache, out of which a host may take what nobody has mapped: until the test's end. */
static void hold_pages(const char *cache_dir)
{
	static const char *const names[] = {"data", "map"};
	unsigned images_n = 1;

	for (unsigned i = 0; i < images_n; i++) {
		int image_fd = -1;

		images_n = support_images(cache_dir, i, &image_fd);
		cr_assert_geq(image_fd, 0);
		for (size_t k = 0; k < DS_ARRAY_SIZE(names); k++) {
			int fd = openat(image_fd, names[k], O_RDONLY | O_CLOEXEC);
			struct stat st;

			cr_assert_eq(fstat(fd, &st), 0);
			cr_assert_neq(mmap(NULL, (size_t)st.st_size, PROT_READ,
					   MAP_SHARED | MAP_POPULATE, fd, 0),
				      MAP_FAILED);
			close(fd);
		}
		close(image_fd);
	}
}

static int call_total(struct ds_demand *demand, void *ctx)
{
	uint64_t files_n;
	int r = ds_view_total(ctx, demand, "files", &files_n);

	if (r == 0)
		cr_assert_eq(files_n, VIEW_FILES_N + 1 + VIEW_LINKS_N);
	return r;
}

/* What a mount looks at before it begins (fs_kernel.c). */
Test(view, totals_cost_no_get_once_the_list_is_fetched_and_that_costs_one)
{
	struct view_bench bench;
	struct view_run run;
	unsigned gets_n;

	view_bench_init(&bench);
	gets_n = bench.store->gets_n + 1;
	cr_assert_eq(view_bench_open(&bench, support_path("c"), DS_MIB(256), 1, false), 0);
	cr_expect_eq(bench.store->gets_n, gets_n);
	ds_view_fetch_listed(bench.view, bench.record);
	cr_assert_eq(view_run(bench.view, 20000, call_total, bench.view, &run), 0);
	cr_expect_gt(run.waits_n, 0);
	view_bench_settle(&bench);
	cr_expect_eq(bench.store->gets_n, gets_n, "a new one's: %u", bench.store->gets_n - gets_n);
	view_bench_close(&bench);

	forget_pages(support_path("c"));
	cr_assert_eq(view_bench_open(&bench, support_path("c"), DS_MIB(256), 1, false), 0);
	cr_expect_eq(bench.store->gets_n, gets_n, "the root is here");
	ds_view_fetch_listed(bench.view, bench.record);
	ds_view_fetch_listed(bench.view, bench.record);
	cr_expect_eq(bench.store->gets_n, gets_n + 1);
	cr_assert_eq(view_run(bench.view, 20000, call_total, bench.view, &run), 0);
	cr_expect_gt(run.waits_n, 0);
	view_bench_settle(&bench);
	cr_expect_eq(bench.store->gets_n, gets_n + 1);
	view_bench_close(&bench);
	view_bench_release(&bench);
}

/* What a thread of FUSE calls: it neither waits nor asks the store for anything. */
Test(view, T43_without_may_check_a_miss_is_told_at_once_and_nothing_is_fetched)
{
	struct view_bench bench;
	struct ds_demand demand;
	struct ds_entry entry;
	uint8_t data[100];
	unsigned gets_n;
	uint64_t ino;
	size_t n;

	view_bench_init(&bench);
	cr_assert_eq(view_bench_open(&bench, support_path("c"), DS_MIB(256), 1, false), 0);
	view_bench_settle(&bench);
	gets_n = bench.store->gets_n;
	ds_demand_init(&demand, bench.view);
	demand.may_check = false;
	cr_expect_eq(ds_view_get(bench.view, &demand, DS_ROOT_ID, &entry), -DS_E_NOT_LOCAL);
	cr_expect_eq(demand.targets_n, 0);
	cr_expect_eq(bench.store->gets_n, gets_n);
	/* Once it is local, it is answered in the same way. */
	cr_assert_eq(view_run(bench.view, 20000, call_get_root, bench.view, NULL), 0);
	cr_expect_eq(ds_view_get(bench.view, &demand, DS_ROOT_ID, &entry), 0);
	cr_assert_eq(view_find(bench.view, 9, 20000, &ino), 0);
	view_bench_settle(&bench);
	gets_n = bench.store->gets_n;
	cr_expect_eq(ds_view_read(bench.view, &demand, ino, 0, sizeof(data), data, &n),
		     -DS_E_NOT_LOCAL);
	cr_expect_eq(demand.targets_n, 0);
	cr_expect_eq(bench.store->gets_n, gets_n);
	cr_assert_eq(view_check_file(bench.view, 9, 0, 100, 20000), 0);
	cr_expect_eq(ds_view_read(bench.view, &demand, ino, 0, sizeof(data), data, &n), 0);
	cr_expect(n == 100 && view_file_is_right(9, 0, data, n));
	ds_demand_release(&demand);
	view_bench_close(&bench);
	view_bench_release(&bench);
}

struct pinning {
	struct ds_view *view;
	uint64_t ino;
	uint8_t *data;
	size_t n, targets_n; /* of the run before */
	unsigned pins_n;
	size_t runs_n, wanted_n, pinned_n; /* of those that wanted several chunks */
};

static int call_read_pinning(struct ds_demand *demand, void *ctx)
{
	struct pinning *pinning = ctx;
	unsigned pins_n = 0;
	int r;

	ds_list_for_each (node, &demand->pins)
		pins_n++;
	if (pinning->targets_n > 1) {
		pinning->runs_n++;
		pinning->wanted_n += pinning->targets_n;
		pinning->pinned_n += pins_n - pinning->pins_n;
	}
	pinning->pins_n = pins_n;
	r = ds_view_read(pinning->view, demand, pinning->ino, 0, VIEW_LARGE_SIZE, pinning->data,
			 &pinning->n);
	pinning->targets_n = demand->targets_n;
	return r;
}

static struct pinning read_pinning(const char *cache_dir)
{
	struct pinning pinning = {.data = malloc(VIEW_LARGE_SIZE)};
	struct view_bench bench;

	view_bench_init(&bench);
	cr_assert_eq(view_bench_open(&bench, cache_dir, DS_MIB(256), 1, false), 0);
	pinning.view = bench.view;
	cr_assert_eq(view_find(bench.view, LARGE, 20000, &pinning.ino), 0);
	cr_assert_eq(view_run(bench.view, 20000, call_read_pinning, &pinning, NULL), 0);
	cr_assert_eq(pinning.n, VIEW_LARGE_SIZE);
	cr_assert(view_file_is_right(LARGE, 0, pinning.data, pinning.n));
	view_bench_close(&bench);
	view_bench_release(&bench);
	free(pinning.data);
	return pinning;
}

/* Each holds the whole buffer that it was received in, however long another takes. */
Test(view, what_the_cache_took_is_not_held_while_another_chunk_is_waited_for)
{
	struct pinning pinning = read_pinning(support_path("c"));

	cr_assert_gt(pinning.wanted_n, 2 * pinning.runs_n);
	/* One of each run, or none would get further where what is stored is evicted at once. */
	cr_assert_eq(pinning.pinned_n, pinning.runs_n);
	pinning = read_pinning(NULL);
	cr_assert_gt(pinning.wanted_n, 2);
	cr_assert_eq(pinning.pinned_n, pinning.wanted_n);
}

static void never(struct ds_demand *demand, int result, void *ctx)
{
	(void)demand;
	(void)result;
	(void)ctx;
	abort();
}

Test(view, an_abandoned_wait_calls_nobody_back_and_its_demand_may_go)
{
	struct view_bench bench;
	struct ds_fetcher_stats stats;
	struct ds_demand demand;
	uint8_t data[100];
	uint64_t ino;
	size_t n;

	view_bench_init(&bench);
	cr_assert_eq(view_bench_open(&bench, support_path("c"), DS_MIB(256), 1, false), 0);
	cr_assert_eq(view_find(bench.view, 9, 20000, &ino), 0);
	/* The chunk's pack is known, so that the chunk itself is what misses. */
	cr_assert_eq(view_check_file(bench.view, 8, 0, 100, 20000), 0);
	bench.store->hold = true;
	for (unsigned round = 0; round < 20; round++) {
		ds_demand_init(&demand, bench.view);
		cr_assert_not(ds_demand_abandon(&demand), "there is no wait yet");
		cr_assert_eq(ds_view_read(bench.view, &demand, ino, 0, sizeof(data), data, &n),
			     -DS_E_NOT_LOCAL);
		cr_assert_eq(ds_demand_wait(&demand, ds_deadline_in_ms(60000), never, NULL), 0);
		cr_assert(ds_demand_abandon(&demand));
		cr_assert_not(ds_demand_abandon(&demand), "it was taken back before");
		ds_demand_release(&demand);
	}
	ds_fetcher_get_stats(bench.fetcher, &stats);
	cr_expect_eq(stats.waiting_n, 0);
	fault_store_release(bench.store);
	cr_assert_eq(view_check_file(bench.view, 9, 0, 100, 20000), 0);
	view_bench_close(&bench);
	view_bench_release(&bench);
}

Test(view, T4_past_the_deadline_the_error_says_what_was_waited_for)
{
	struct view_bench bench;
	struct view_run run;
	uint64_t started;

	view_bench_init(&bench);
	bench.store->hold = true;
	bench.record->prefetch_n = 0;
	cr_assert_eq(view_bench_open(&bench, support_path("c"), DS_MIB(256), 1, false), 0);
	started = ds_mono_ns();
	cr_expect_eq(view_run(bench.view, 300, call_get_root, bench.view, &run), -DS_E_TIMEOUT);
	cr_expect_geq(ds_mono_ns() - started, 290 * (uint64_t)DS_NS_PER_MS);
	cr_expect(strstr(run.diag.object, "packs/"), "object: %s", run.diag.object);
	fault_store_release(bench.store);
	cr_expect_eq(view_run(bench.view, 20000, call_get_root, bench.view, &run), 0);
	view_bench_close(&bench);
	view_bench_release(&bench);
}

Test(view, bytes_that_stay_spoiled_are_corrupt_and_spoiled_once_are_right)
{
	struct view_bench bench;

	view_bench_init(&bench);
	cr_assert_eq(view_bench_open(&bench, support_path("c"), DS_MIB(256), 1, false), 0);
	bench.store->flip_n = 1;
	cr_expect_eq(view_check_file(bench.view, 9, 0, 100, 20000), 0);
	cr_expect_eq(bench.store->flipped_n, 1);
	bench.store->flip_n = 1000;
	cr_expect_eq(view_check_file(bench.view, LARGE, VIEW_ZEROS_END, 100, 20000), -DS_E_CORRUPT);
	cr_expect_gt(bench.store->flipped_n, 1);
	bench.store->flip_n = 0;
	cr_expect_eq(view_check_file(bench.view, LARGE, VIEW_ZEROS_END, 100, 20000), 0);
	view_bench_close(&bench);
	view_bench_release(&bench);
}

struct listing {
	struct ds_view *view;
	uint64_t dir, after;
	unsigned n;
};

static int add(void *ctx, const struct ds_entry *entry)
{
	struct listing *listing = ctx;
	char name[32];

	snprintf(name, sizeof(name), "%05u-", listing->n);
	if (strncmp(entry->name, name, 6) != 0)
		abort();
	listing->after = entry->id;
	listing->n++;
	return 0;
}

static int call_list(struct ds_demand *demand, void *ctx)
{
	struct listing *listing = ctx;

	return ds_view_list(listing->view, demand, listing->dir, listing->after, add, listing);
}

static int call_links(struct ds_demand *demand, void *ctx)
{
	struct listing *listing = ctx;
	struct ds_entry entry;
	int r = ds_view_walk(listing->view, demand, "links", &entry);

	if (r == 0)
		listing->dir = entry.ino;
	return r;
}

Test(view, a_listing_goes_on_after_its_last_name_through_every_miss)
{
	struct view_bench bench;
	struct listing listing = {0};
	struct view_run run;

	view_bench_init(&bench);
	cr_assert_eq(view_bench_open(&bench, support_path("c"), DS_MIB(256), 1, false), 0);
	listing.view = bench.view;
	cr_assert_eq(view_run(bench.view, 20000, call_links, &listing, NULL), 0);
	cr_assert_eq(view_run(bench.view, 20000, call_list, &listing, &run), 0);
	cr_expect_eq(listing.n, VIEW_LINKS_N);
	cr_expect_gt(run.waits_n, 3, "it never missed: nothing was tested");
	view_bench_close(&bench);
	view_bench_release(&bench);
}

struct part {
	struct listing *listing;
	unsigned end;
};

static int add_to_part(void *ctx, const struct ds_entry *entry)
{
	struct part *part = ctx;

	add(part->listing, entry);
	return part->listing->n == part->end;
}

/* As the kernel asks, with a buffer for so many names: by FUSE's thread, and only what that cannot
 * answer at all by a worker. */
static unsigned list_in_parts(struct listing *listing, unsigned names_n)
{
	struct part part = {.listing = listing};
	unsigned on_worker_n = 0, before;
	struct ds_demand demand;
	int r;

	ds_demand_init(&demand, listing->view);
	do {
		before = listing->n;
		part.end = before + names_n;
		demand.may_check = false;
		r = ds_view_list(listing->view, &demand, listing->dir, listing->after, add_to_part,
				 &part);
		if (r == -DS_E_NOT_LOCAL && listing->n == before) {
			on_worker_n++;
			demand.may_check = true;
			r = ds_view_list(listing->view, &demand, listing->dir, listing->after,
					 add_to_part, &part);
		}
		cr_assert(r == 0 || (r == -DS_E_NOT_LOCAL && listing->n > before));
		cr_assert(!demand.is_listing);
	} while (listing->n > before);
	ds_demand_release(&demand);
	return on_worker_n;
}

Test(view, a_listing_of_what_was_here_before_seldom_leaves_the_thread_of_fuse)
{
	struct view_bench bench;
	struct listing listing = {0};
	unsigned on_worker_n, gets_n;

	view_bench_init(&bench);
	cr_assert_eq(view_bench_open(&bench, support_path("c"), DS_MIB(256), 1, false), 0);
	listing.view = bench.view;
	cr_assert_eq(view_run(bench.view, 20000, call_links, &listing, NULL), 0);
	cr_assert_eq(view_run(bench.view, 20000, call_list, &listing, NULL), 0);
	view_bench_settle(&bench);
	gets_n = bench.store->gets_n;
	view_bench_close(&bench);

	/* The pages are here; this mount has not checked them. */
	cr_assert_eq(view_bench_open(&bench, support_path("c"), DS_MIB(256), 1, false), 0);
	listing = (struct listing){.view = bench.view};
	cr_assert_eq(view_run(bench.view, 20000, call_links, &listing, NULL), 0);
	hold_pages(support_path("c"));
	on_worker_n = list_in_parts(&listing, 100);
	cr_expect_eq(listing.n, VIEW_LINKS_N);
	cr_expect_gt(on_worker_n, 0, "nothing was to be checked");
	cr_expect_lt(on_worker_n, bench.record->pages_n / 16, "%u of %llu pages", on_worker_n,
		     (unsigned long long)bench.record->pages_n);
	cr_expect_eq(bench.store->gets_n, gets_n);
	/* And now nothing is. */
	listing.n = 0;
	listing.after = 0;
	cr_expect_eq(list_in_parts(&listing, 100), 0);
	view_bench_close(&bench);
	view_bench_release(&bench);
}

Test(view, seeking_finds_data_and_holes_as_they_were_committed)
{
	struct view_bench bench;
	uint64_t off, large, small, empty;

	view_bench_init(&bench);
	cr_assert_eq(view_bench_open(&bench, support_path("c"), DS_MIB(256), 1, true), 0);
	cr_assert_eq(view_find(bench.view, LARGE, 20000, &large), 0);
	cr_assert_eq(view_find(bench.view, 9, 20000, &small), 0);
	cr_assert_eq(view_find(bench.view, 50, 20000, &empty), 0);
	cr_assert_eq(ds_view_seek(bench.view, NULL, large, 0, true, &off), 0);
	cr_expect_eq(off, 0);
	cr_assert_eq(ds_view_seek(bench.view, NULL, large, 5, false, &off), 0);
	cr_expect_eq(off, VIEW_ZEROS_END);
	cr_assert_eq(ds_view_seek(bench.view, NULL, large, VIEW_ZEROS_END + 5, true, &off), 0);
	cr_expect_eq(off, VIEW_HOLE_START);
	cr_assert_eq(ds_view_seek(bench.view, NULL, large, VIEW_HOLE_START + 1, false, &off), 0);
	cr_expect_eq(off, VIEW_HOLE_END);
	cr_assert_eq(ds_view_seek(bench.view, NULL, large, VIEW_HOLE_END, true, &off), 0);
	cr_expect_eq(off, VIEW_LARGE_SIZE);
	cr_expect_eq(ds_view_seek(bench.view, NULL, large, VIEW_LARGE_SIZE, false, &off), -ENXIO);
	cr_assert_eq(ds_view_seek(bench.view, NULL, small, 3, true, &off), 0);
	cr_expect_eq(off, view_file_size(9));
	cr_expect_eq(ds_view_seek(bench.view, NULL, empty, 0, false, &off), -ENXIO);
	cr_expect_eq(ds_view_seek(bench.view, NULL, DS_ROOT_ID, 0, false, &off), -EINVAL);
	view_bench_close(&bench);
	view_bench_release(&bench);
}

Test(view, wrong_kinds_and_missing_names_have_their_own_errors)
{
	struct view_bench bench;
	struct ds_entry entry;
	uint8_t data[10];
	size_t n;

	view_bench_init(&bench);
	cr_assert_eq(view_bench_open(&bench, NULL, 0, 1, true), 0);
	cr_expect_eq(ds_view_read(bench.view, NULL, DS_ROOT_ID, 0, 10, data, &n), -EISDIR);
	cr_expect_eq(ds_view_walk(bench.view, NULL, "d01/none", &entry), -ENOENT);
	cr_expect_eq(ds_view_walk(bench.view, NULL, "d01/f001/x", &entry), -ENOTDIR);
	cr_expect_eq(ds_view_walk(bench.view, NULL, "", &entry), 0);
	cr_expect_eq(entry.ino, DS_ROOT_ID);
	cr_expect_eq(ds_view_get(bench.view, NULL, UINT64_C(1) << 39, &entry), -ENOENT);
	view_bench_close(&bench);
	view_bench_release(&bench);
}

/* Whatever allocation fails, here or in the fetcher: an error or right bytes, no hang, no leak. */
/* A manifest that lies: what is handed out to the kernel for one would be read as the other. */
Test(view, files_of_one_digest_and_different_sizes_have_images_of_their_own)
{
	struct ds_entry entries[3];
	struct ds_image *images[3], *again;
	struct view_bench bench;

	view_bench_init(&bench);
	cr_assert_eq(view_bench_open(&bench, support_path("c"), DS_MIB(256), 1, false), 0);
	entries[0] = (struct ds_entry){.digest = {{7}}, .size_bytes = DS_MIB(9), .extents_n = 4};
	entries[1] = entries[2] = entries[0];
	entries[1].size_bytes--;
	entries[2].extents_n--;
	for (unsigned i = 0; i < 3; i++)
		cr_assert_eq(view_file_image(bench.view, &entries[i], &images[i]), 0);
	cr_expect(images[0] != images[1] && images[1] != images[2] && images[2] != images[0]);
	for (unsigned i = 0; i < 3; i++) {
		cr_assert_eq(view_file_image(bench.view, &entries[i], &again), 0);
		cr_expect_eq(again, images[i], "image %u", i);
		ds_image_unref(again);
		ds_image_unref(images[i]);
	}
	view_bench_close(&bench);
	view_bench_release(&bench);
}

Test(view, any_allocation_may_fail)
{
	struct view_bench bench;
	unsigned failed_n = 0;

	view_bench_init(&bench);
	for (int64_t n = 0;; n += 1 + n / 16) {
		uint64_t injected;
		int r;

		ds_mem_fail_after(n, 0);
		r = view_bench_open(&bench, NULL, 0, 1, false);
		if (r == 0)
			r = view_check_file(bench.view, 9 + 20, 0, 20000, 20000);
		injected = ds_mem_fail_after(-1, 0);
		cr_assert(r == 0 || (r == -ENOMEM && injected), "allocation %lld: %s", (long long)n,
			  ds_strerror(r));
		view_bench_close(&bench);
		if (!injected)
			break;
		failed_n++;
	}
	cr_expect_gt(failed_n, 30);
	view_bench_release(&bench);
}

/* Of ASan; absent in other builds. Sees all allocations, whoever makes them. */
int __sanitizer_install_malloc_and_free_hooks(void (*on_malloc)(const volatile void *, size_t),
					      void (*on_free)(const volatile void *))
	__attribute__((weak));

static _Thread_local unsigned allocations_n;

static void on_malloc(const volatile void *data, size_t size)
{
	(void)data, (void)size;
	allocations_n++;
}

static void on_free(const volatile void *data)
{
	(void)data;
}

struct hit {
	struct ds_view *view;
	uint64_t parent;
	char name[64];
	size_t name_len;
	uint8_t data[40000];
};

/* What a thread of FUSE does for a file that is looked up and read; without `reads`, its two look-ups alone. */
static unsigned hit_file(struct hit *hit, bool reads, size_t *ret_n)
{
	struct ds_demand demand;
	struct ds_entry entry;
	unsigned before = allocations_n;

	ds_demand_init(&demand, hit->view);
	demand.may_check = false;
	cr_assert_eq(ds_view_lookup(hit->view, &demand, hit->parent, hit->name, hit->name_len,
				    &entry),
		     0);
	if (reads)
		cr_assert_eq(ds_view_read(hit->view, &demand, entry.ino, 0, sizeof(hit->data),
					  hit->data, ret_n),
			     0);
	else
		cr_assert_eq(ds_view_get(hit->view, &demand, entry.ino, &entry), 0);
	ds_demand_release(&demand);
	return allocations_n - before;
}

/*
 * Debian's SQLite is built without its lookaside memory and allocates a few small blocks in each look-up, which the
 * thread's own cache of malloc serves; they are counted apart.
 */
Test(view, a_hit_of_a_small_file_allocates_nothing_but_what_sqlite_does_in_two_look_ups)
{
	static struct hit hit;
	struct view_bench bench;
	struct ds_entry dir;
	char path[64];
	size_t n;

	if (!__sanitizer_install_malloc_and_free_hooks)
		cr_skip_test("only ASan tells of allocations");
	view_bench_init(&bench);
	cr_assert_eq(view_bench_open(&bench, support_path("c"), DS_MIB(256), 1, false), 0);
	hit.view = bench.view;
	cr_assert(__sanitizer_install_malloc_and_free_hooks(on_malloc, on_free) > 0);
	for (unsigned i = 1; i < 40; i++) {
		unsigned look_ups_n, hit_n;

		view_file_path(i, path, sizeof(path));
		/* The first time makes what is kept: a connection, the pack, the image. */
		cr_assert_eq(view_check_file(bench.view, i, 0, 40000, 20000), 0);
		*strchr(path, '/') = '\0';
		cr_assert_eq(ds_view_lookup(bench.view, NULL, DS_ROOT_ID, path, strlen(path), &dir),
			     0);
		hit.parent = dir.ino;
		strcpy(hit.name, path + strlen(path) + 1);
		hit.name_len = strlen(hit.name);
		hit_file(&hit, true, &n);

		look_ups_n = hit_file(&hit, false, NULL);
		hit_n = hit_file(&hit, true, &n);
		cr_expect_eq(hit_n, look_ups_n, "file %u: %u of %u", i, hit_n, look_ups_n);
		cr_expect_leq(look_ups_n, 16, "file %u: %u", i, look_ups_n);
		cr_expect_eq(n, view_file_size(i));
		cr_expect(view_file_is_right(i, 0, hit.data, n));
	}
	view_bench_close(&bench);
	view_bench_release(&bench);
}

/* So that one look at a file brings no whole pack, however much was read before. */
Test(view, a_burst_is_no_epoch_for_who_comes_long_after_it)
{
	struct view_pace pace = {0};
	uint64_t second = 1000;

	for (unsigned i = 1; i < 8; i++)
		cr_assert(!view_pace_is_epoch(&pace, second));
	for (unsigned i = 8; i <= 64; i++)
		cr_assert(view_pace_is_epoch(&pace, second), "the %uth", i);
	/* A pause, as a trainer makes for a checkpoint. */
	cr_assert(view_pace_is_epoch(&pace, second + 2));
	cr_assert(!view_pace_is_epoch(&pace, second + 6));
	/* A clock that another thread has read before. */
	cr_assert(!view_pace_is_epoch(&pace, second + 5));
	for (unsigned i = 0; i < 1000; i++)
		cr_assert(!view_pace_is_epoch(&pace, second + 100 * i));
	for (unsigned i = 0; i < 40; i++) /* four a second are none, eight are */
		(void)view_pace_is_epoch(&pace, second + 200000 + i / 4);
	cr_assert(!view_pace_is_epoch(&pace, second + 200010));
	for (unsigned i = 0; i < 80; i++)
		(void)view_pace_is_epoch(&pace, second + 300000 + i / 8);
	cr_assert(view_pace_is_epoch(&pace, second + 300010));
}
