/*
 * Many requests to the store, several at a time, by a caller that waits for all of them.
 *
 * `start` and `finish` are called in the caller's thread; finish in any order. Blocks.
 */
#ifndef DS_REPO_COMMIT_BATCH_H
#define DS_REPO_COMMIT_BATCH_H

#include "repo/commit_watch.h"
#include "store/store.h"

#define COMMIT_BATCH_KEY_MAX 160

struct commit_batch_slot {
	struct ds_store_req req;
	char key[COMMIT_BATCH_KEY_MAX];
	struct ds_buf buf; /* req.into, if start sets it up; released after finish */
	size_t idx;
};

struct commit_batch {
	size_t n;
	unsigned window; /* at most so many at once; up to COMMIT_BATCH_WINDOW_MAX */
	/* Fills in op, what goes with it, and key. */
	void (*start)(void *ctx, struct commit_batch_slot *slot);
	/* Looks at req.result. A negative value ends the whole: what runs is cancelled. */
	int (*finish)(void *ctx, struct commit_batch_slot *slot);
	void *ctx;
};
#define COMMIT_BATCH_WINDOW_MAX 32u

/* -DS_E_INTERRUPTED, -ENOMEM, or what finish returned. */
int commit_batch_run(struct ds_store *store, const struct commit_batch *batch,
		     const struct commit_watch *watch);

#endif
