/*
 * Reading the files of a commit: several at once on workers, which chunk, hash and compress; what comes out is packed in tree
 * order by the caller's thread.
 */
#ifndef DS_REPO_COMMIT_READ_H
#define DS_REPO_COMMIT_READ_H

#include "repo/commit_find.h"
#include "repo/commit_packs.h"
#include "repo/commit_tree.h"

struct commit_read_counters {
	uint64_t files_n, bytes; /* finished, read or not */
	uint64_t read_bytes;	 /* of files that were read */
	uint64_t reused_bytes;	 /* raw bytes found in packs that were there already */
};

struct commit_read {
	const struct ds_commit_options *options;
	struct commit_tree *tree;
	/* NULL in both: digests only (ds_fingerprint_directory). */
	struct commit_find *find;
	struct commit_packs *packs;
	/* Fills in digest and place of a node without reading it: 1; 0: it must be read; or an error. */
	int (*reuse)(void *ctx, struct commit_node *node);
	void *ctx;
	uint64_t memory_bytes;
	struct commit_read_counters counters;
};

/* Every file of the tree is done (or rejected, with skip_unreadable) afterwards. */
int commit_read_files(struct commit_read *read, struct ds_diag *reterr_diag);

#endif
