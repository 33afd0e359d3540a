/*
 * Warming: brings what a view will be asked for into the cache ahead of use, each chunk verified on its way: all of the
 * version with its manifest, or the files at and below some paths. Afterwards they are read without the store.
 *
 * Chunks are asked for in the order in which they lie in their packs, many at once, so that they come in large range
 * GETs; demand overtakes them. What is there already is not fetched, so that a warming that was cut short, in whatever
 * way, goes on where it was. What is damaged in the store is told and passed over; trouble with the store ends it.
 *
 * Threads: new, run and free by one thread at a time; stop and get_progress by any, meanwhile.
 */
#ifndef DS_REPO_VIEW_WARM_H
#define DS_REPO_VIEW_WARM_H

#include "repo/view.h"

struct ds_warm_progress {
	bool is_over, is_incomplete;
	uint64_t files_n, files_total_n; /* a file counts once all of it is here, or has failed */
	uint64_t bytes_total;		 /* of all chunks that are wanted, each once; no zeros */
	uint64_t here_bytes,
		fetched_bytes; /* were there, as far as was looked; came from the store */
	uint64_t failed_n;     /* files of which something could not be had */
};

struct ds_warm_options {
	/* As for ds_view_walk; none: everything. They stay the caller's, and as they are while it lives. */
	const char *const *paths;
	size_t paths_n;
	/* For which nothing may come from the store before it is given up; 0: 60 s. */
	uint64_t timeout_ms;
	/* Called by ds_warm_run when it knows how much there is to do, before it fetches files; may be NULL. */
	void (*begins)(void *ctx, const struct ds_warm_progress *progress);
	/* Called by ds_warm_run for each file that is damaged; the path is relative to the root; may be NULL. */
	void (*failed)(void *ctx, const char *path, const struct ds_diag *diag);
	/* Called by ds_warm_run some ten times a second; true: stop. May be NULL. */
	bool (*tick)(void *ctx, const struct ds_warm_progress *progress);
	void *ctx;
};

struct ds_warm;

/* The view waits for nothing (it is not blocking), and outlives the warming, as its cache does. -ENOMEM. */
int ds_warm_new(struct ds_view *view, const struct ds_warm_options *options,
		struct ds_warm **ret_warm);
/* Not while it runs. */
struct ds_warm *ds_warm_free(struct ds_warm *warm);
/*
 * Blocks until all is here, or it ends early. Once only. 0; -ENOENT, -ENOTDIR: a path (the diag names it), before any file is
 * fetched; -ENOSPC: the cache cannot hold it, before any file is fetched, or did not keep it; -DS_E_CORRUPT and the
 * like: files were damaged, all others are here; -DS_E_INTERRUPTED: it was stopped; -DS_E_TIMEOUT and others of the
 * store: it was given up; nothing came, and the diag says what the store answered last, if it did.
 */
int ds_warm_run(struct ds_warm *warm, struct ds_diag *reterr_diag);
/* Makes run end soon. */
void ds_warm_stop(struct ds_warm *warm);
void ds_warm_get_progress(struct ds_warm *warm, struct ds_warm_progress *ret_progress);

#endif
