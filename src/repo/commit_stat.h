/*
 * The local stat cache: which content digest a file had when it was last read, by path, device, inode, size and times.
 * Derived and deletable; what does not parse is as if it were not there. An entry is only written, and so only trusted, if the
 * file had not changed within 2 s before the scan that wrote it (the clock of files ticks coarsely; git calls such entries racy),
 * and never for a digest that --trust-mtime took from the parent. Nor if the file was younger than a minute and somebody had it open for
 * writing: through a mapping it may change without a new time until its dirty pages are written (on tmpfs: for as long as it is mapped).
 *
 * Threads: reading any; writing one. Blocks on the local disk.
 */
#ifndef DS_REPO_COMMIT_STAT_H
#define DS_REPO_COMMIT_STAT_H

#include "repo/commit_tree.h"

struct commit_stat;

/* The cache of a source directory; empty if there is none. -ENOMEM only. state_dir NULL: keeps nothing. scratch: as
 * commit_scan's. */
int commit_stat_load(const char *state_dir, const char *source, const char *scratch,
		     struct commit_stat **ret_stat);
struct commit_stat *commit_stat_free(struct commit_stat *stat);
/* The digest that the file had when it looked like this; false if it is not known. */
bool commit_stat_has(const struct commit_stat *stat, const char *path,
		     const struct commit_node *node, struct ds_digest *ret_digest);
/* Replaces the file by what the tree says now. Best effort. */
void commit_stat_save(const char *state_dir, const char *source, const char *scratch,
		      const struct commit_tree *tree);

#endif
