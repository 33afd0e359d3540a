/*
 * The fingerprint of a directory without a repository: a commit's scan, reading and hashing.
 */
#include <errno.h>

#include "repo/commit_read.h"
#include "repo/commit_state.h"

int ds_fingerprint_directory(const struct ds_commit_options *options,
			     struct ds_digest *ret_fingerprint,
			     struct ds_version_totals *ret_totals, struct ds_diag *reterr_diag)
{
	struct commit_tree tree = {.root_fd = -1};
	struct commit_state state;
	struct commit_read read = {
		.options = options,
		.tree = &tree,
		.memory_bytes = commit_memory_bytes(options),
	};
	int r = commit_state_init(&state, "", NULL);

	if (r == -ENOMEM)
		return r;
	/* Without a temporary directory the tree is in memory, which is enough for most. */
	r = commit_scan(options, NULL, r == 0 ? state.tmp : NULL, NULL, &tree, reterr_diag);
	if (r == 0)
		r = commit_read_files(&read, reterr_diag);
	if (r == 0)
		r = commit_tree_hash(&tree);
	if (r == 0)
		r = commit_tree_count(&tree, options->source,
				      reterr_diag); /* files may have changed since the scan */
	if (r == 0) {
		*ret_fingerprint = tree.root.digest;
		*ret_totals = (struct ds_version_totals){
			.files_n = tree.files_n,
			.directories_n = tree.directories_n,
			.symlinks_n = tree.symlinks_n,
			.bytes = tree.bytes,
			.rejected_n = tree.special_n + tree.unreadable_n,
		};
	}
	commit_tree_release(&tree);
	commit_state_release(&state);
	return r;
}
