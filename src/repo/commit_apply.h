/*
 * The tree of a commit against a manifest: finding each node's entry of before, and changing the manifest into the tree.
 *
 * Threads: one at a time.
 */
#ifndef DS_REPO_COMMIT_APPLY_H
#define DS_REPO_COMMIT_APPLY_H

#include "manifest/builder.h"
#include "repo/commit_find.h"
#include "repo/commit_packs.h"
#include "repo/commit_stat.h"
#include "repo/commit_tree.h"

struct commit_apply {
	const struct ds_commit_options *options;
	struct commit_tree *tree;
	struct ds_builder *builder;
	struct commit_packs *packs;
	struct commit_find *find;
	const struct commit_stat *stat;
	bool meta_differs; /* times or link structure differ from the manifest's */
	uint64_t added_n, changed_n, removed_n;
	uint64_t reused_bytes;
};

/*
 * Fills in old_* of all nodes from the builder as it stands. With `may_reuse`, files that the stat cache (or trust_mtime)
 * vouches for get digest and place from their old row, or from the advisory index, and are done.
 */
int commit_match(struct commit_apply *apply, bool may_reuse);

/* Makes the builder's tree equal to the commit's: all files are done and all directories hashed. */
int commit_apply(struct commit_apply *apply);

#endif
