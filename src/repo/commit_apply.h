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
#include "repo/commit_tree.h"

struct commit_apply {
	const struct ds_commit_options *options;
	struct commit_tree *tree;
	struct ds_builder *builder;
	struct commit_packs *packs;
	struct commit_find *find;
	bool has_known_rows; /* the builder is the version that the stat cache told of: is_row_known holds */
	uint64_t added_n, changed_n, removed_n;
	uint64_t reused_bytes;
	struct { /* of the file that commit_match_chunk was asked for last */
		uint64_t ino;
		struct ds_entry entry;
		struct ds_extent *extents; /* by digest */
		size_t extents_n;
	} old;
};
void commit_apply_release(struct commit_apply *apply);

/*
 * Fills in old_* and is_meta_same of all nodes from the builder as it stands. With `may_reuse`, files that the stat cache (or
 * trust_mtime) vouches for get digest and place from their old row, or from the advisory index, and are done; or they are as_before
 * where the row is known without it, which is good only for changing this builder.
 */
int commit_match(struct commit_apply *apply, bool may_reuse);

/* For another builder: what is as_before is not done any more, and to be matched again. */
void commit_match_forget(struct commit_tree *tree);

/* When all is read: what the rows of files and symlinks say of their contents is compared, too. Where the rows of a parent are damaged, the
 * digests of the directories above them may be right. */
void commit_match_contents(struct commit_apply *apply);

/* Where the manifest (not changed yet) has this chunk in the file that had the node's path: 1; 0: nowhere; or an error. */
int commit_match_chunk(struct commit_apply *apply, const struct commit_node *node,
		       const struct ds_digest *digest, uint64_t len_bytes,
		       struct commit_place *ret_place);

bool commit_apply_is_interrupted(const struct commit_apply *apply);

/* Whether the row of a file of one chunk says a place in the pack's raw bytes that cannot be. Earlier builds did that, and verify
 * calls it damaged. It is made anew. */
bool commit_is_misplaced(const struct ds_entry *entry);

/* Whether exactly the same names are links of the node's file in the tree and in the manifest (after commit_match). */
bool commit_is_linked_alike(const struct commit_node *node);

/* Makes the builder's tree equal to the commit's: all files are done and all directories hashed. */
int commit_apply(struct commit_apply *apply);

#endif
