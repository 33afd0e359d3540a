/*
 * A version in a memory store behind the fault store, and a view of it that waits for nothing, as a
 * mount has. Used by the Criterion suite and by tests/stress, so that it aborts instead of
 * asserting.
 */
#pragma once

#include "cache_support.h"
#include "fault_store.h"
#include "repo/view.h"

#define VIEW_DIRS_N	 20u
#define VIEW_FILES_N	 400u  /* d00/f000 ..., file i in directory i % VIEW_DIRS_N */
#define VIEW_LINKS_N	 9000u /* of "links/...", so that the manifest's index has two levels */
#define VIEW_LARGE_SIZE	 (9u * 1024 * 1024 + 777)
#define VIEW_STREAM	 (VIEW_FILES_N + 1) /* a tree of its own: view_bench_init_stream */
#define VIEW_STREAM_SIZE (48u * 1024 * 1024 + 99)
#define VIEW_ZEROS_END	 (512u * 1024) /* of the large file, which has a hole, too */
#define VIEW_HOLE_START	 (5u * 1024 * 1024)
#define VIEW_HOLE_END	 (7u * 1024 * 1024)

struct view_bench {
	uint64_t inflight_bytes_max; /* of the fetcher; 0: its own */
	struct ds_store *memory;
	struct fault_store *store;
	struct ds_repo *repo;
	struct ds_record *record;
	struct ds_cache *cache;
	struct ds_fetcher *fetcher;
	struct ds_view *view;
};

/* Commits the tree. Once for a test; then views of it may come and go. */
void view_bench_init(struct view_bench *bench);
/* One whose only file is VIEW_STREAM. */
void view_bench_init_stream(struct view_bench *bench);
void view_bench_release(struct view_bench *bench);
/* cache_dir NULL: a cache without a disk. `boot`: as which boot of the machine. */
int view_bench_open(struct view_bench *bench, const char *cache_dir, uint64_t capacity_bytes,
		    uint8_t boot, bool blocking);
void view_bench_close(struct view_bench *bench);

/* Waits until nothing is fetched: what was fetched ahead is of no call. */
void view_bench_settle(struct view_bench *bench);

/* What file i holds, and the large ones (i == VIEW_FILES_N, VIEW_STREAM). */
uint32_t view_file_size(unsigned i);
void view_file_path(unsigned i, char *buf, size_t size);
/* Compares bytes of a file at an offset with what they must be. */
bool view_file_is_right(unsigned i, uint64_t off, const void *data, size_t len_bytes);

/*
 * A call that is made again and again as a mount does it: until it gives something else than
 * -DS_E_NOT_LOCAL.
 */
typedef int view_call_fn(struct ds_demand *demand, void *ctx);
struct view_run {
	unsigned waits_n; /* it took so many */
	struct ds_diag diag;
};
int view_run(struct ds_view *view, uint64_t timeout_ms, view_call_fn *call, void *ctx,
	     struct view_run *ret_run);

/* Looks file i up by its path from the root, one name after the other, and gives its inode. */
int view_find(struct ds_view *view, unsigned i, uint64_t timeout_ms, uint64_t *ret_ino);
/* Looks it up, reads a piece, compares; 0, or why it could not be read. Wrong bytes abort. */
int view_check_file(struct ds_view *view, unsigned i, uint64_t off, size_t len_bytes,
		    uint64_t timeout_ms);
