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
	uint64_t read_bytes;	 /* of files that were read, holes apart */
	uint64_t reused_bytes;	 /* raw bytes found in packs that were there already */
};

struct commit_read {
	const struct ds_commit_options *options;
	struct commit_tree *tree;
	/* NULL in both: digests only (ds_fingerprint_directory). */
	struct commit_find *find;
	struct commit_packs *packs;
	/* Where the version before has this chunk in the file of the same path: 1; 0: nowhere; or an error. May be NULL. */
	int (*find_old)(void *ctx, const struct commit_node *file, const struct ds_digest *digest,
			uint64_t len_bytes, struct commit_place *ret_place);
	void *ctx;
	/* For what was read and is not packed yet. */
	uint64_t memory_bytes;
	/* A seam for tests: on a worker, when a file has been read and before it is looked at again. */
	void (*was_read)(void *ctx, const struct commit_node *file);
	void *was_read_ctx;
	struct ds_commit_progress *progress; /* a copy of what is shown; may be NULL */
	struct commit_read_counters counters;
};

/* Every file of the tree is done (or rejected, with skip_unreadable) afterwards. */
int commit_read_files(struct commit_read *read, struct ds_diag *reterr_diag);

#endif
