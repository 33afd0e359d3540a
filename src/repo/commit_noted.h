/*
 * Chunks of which a commit knows where they lie: a table by digest. It takes about 12 bytes of memory for each chunk; the rest lies in
 * an arena, in the order in which it was put in.
 *
 * Threads: one at a time.
 */
#ifndef DS_REPO_COMMIT_NOTED_H
#define DS_REPO_COMMIT_NOTED_H

#include "repo/commit_tree.h"

struct noted {
	struct ds_digest digest;
	struct commit_place place;
	bool for_index;
	bool is_referred; /* the manifest names this place */
};

struct noted_table;

/* scratch: as commit_scan's. -ENOMEM. */
int noted_table_new(const char *scratch, struct noted_table **ret_table);
struct noted_table *noted_table_free(struct noted_table *table);
/* NULL: it is not there. */
struct noted *noted_table_get(const struct noted_table *table, const struct ds_digest *digest);
/* The one of this digest, new or not; of a new one all else is zero. NULL: no memory. */
struct noted *noted_table_put(struct noted_table *table, const struct ds_digest *digest);
/* In the order in which they came: i from 0 to before the count. */
size_t noted_table_count(const struct noted_table *table);
struct noted *noted_table_at(const struct noted_table *table, size_t i);

#endif
