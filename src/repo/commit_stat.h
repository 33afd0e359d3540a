/*
 * The local stat cache: which content digest a file had when it was last read, by path, device, inode, size and times.
 * Derived and deletable; what does not parse is as if it were not there. An entry is only written, and so only trusted, if the
 * file had not changed within 2 s before the scan that wrote it (the clock of files ticks coarsely; git calls such entries racy),
 * and never for a digest that --trust-mtime took from the parent. Nor if somebody had the file open for writing, and it was younger than a
 * minute or lies in memory (tmpfs, ramfs, hugetlbfs): through a mapping it may change without a new time until its dirty pages are written,
 * and in memory for as long as it is mapped.
 *
 * It is asked one directory after the other, in each for the files in byte order of their names: so a tree of millions costs one walk
 * through the cache, of which a block is in memory at a time.
 *
 * Threads: one at a time, but for saving. Blocks on the local disk.
 */
#ifndef DS_REPO_COMMIT_STAT_H
#define DS_REPO_COMMIT_STAT_H

#include "repo/commit_tree.h"

struct commit_stat;

/* Where the search for the next file of a directory starts. Entering the next directory ends it. */
struct commit_stat_dir {
	struct commit_stat *stat;
	/* Blocks of the directory that were not had yet, in the cache's file. */
	uint64_t off, end_off;
	const uint8_t *at, *end; /* entries of the block that was had last, not looked at yet */
};

/* The cache of a source directory; empty if there is none. -ENOMEM only. state_dir NULL: keeps nothing. scratch: as
 * commit_scan's, for the list of directories. */
int commit_stat_load(const char *state_dir, const char *source, const char *scratch,
		     struct commit_stat **ret_stat);
struct commit_stat *commit_stat_free(struct commit_stat *stat);
/* What is known of the directory at `path`: nothing, perhaps. */
void commit_stat_enter(struct commit_stat *stat, const char *path, struct commit_stat_dir *ret_dir);
/* The digest that the file had when it looked like this; false if it is not known. The files of a directory are asked for in byte order
 * of their names, each once; any may be left out. */
bool commit_stat_has(struct commit_stat_dir *dir, const struct commit_node *node,
		     struct ds_digest *ret_digest);
/* Gives all files the digests that they had, until one is not known; none is done by that. -ENOMEM. */
int commit_stat_fill(struct commit_stat *stat, struct commit_tree *tree, bool *ret_knows_all);
/*
 * Replaces the file by what the tree says now; until it is whole it lies in `scratch`, of the same file system. Best effort. A thread of its own does it between the two calls; until the second, which
 * waits for it, nothing that the cache keeps of the tree may change: names, times, sizes, contents, links and rejects. `interrupted`, if
 * not NULL, gives it up. The first may return NULL, which the second takes.
 */
struct commit_stat_saving;
struct commit_stat_saving *commit_stat_save_begin(const char *state_dir, const char *source,
						  const char *scratch,
						  const struct commit_tree *tree,
						  const volatile int *interrupted);
struct commit_stat_saving *commit_stat_save_end(struct commit_stat_saving *saving);

#endif
