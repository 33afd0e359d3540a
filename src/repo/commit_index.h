/*
 * The advisory index as a whole: the objects below `index/` that nothing merged covers, and adding to them.
 *
 * Threads: one at a time. Blocks on the store. What cannot be read is as if it were not there.
 */
#ifndef DS_REPO_COMMIT_INDEX_H
#define DS_REPO_COMMIT_INDEX_H

#include "codec/dedup.h"
#include "repo/commit_watch.h"
#include "repo/repo.h"

struct commit_index;

/* state_dir (may be NULL): objects are kept there, so that the next commit reads only new ones. -ENOMEM, -DS_E_INTERRUPTED. */
int commit_index_load(struct ds_repo *repo, const char *state_dir, const struct commit_watch *watch,
		      struct commit_index **ret_index);
struct commit_index *commit_index_free(struct commit_index *index);

/* All hits for a digest, one after the other: start with a cursor of zeros. */
struct commit_index_cursor {
	size_t object, entry;
};
bool commit_index_next(const struct commit_index *index, const struct ds_digest *digest,
		       struct commit_index_cursor *cursor, struct ds_dedup_hit *ret_hit);

/* Puts one object of level 0 and merges what can be merged. `covers`: what it covers of this commit. Best effort. */
void commit_index_add(struct commit_index *index, struct ds_dedup_builder *builder,
		      const struct ds_digest *covers, size_t covers_n);

#endif
