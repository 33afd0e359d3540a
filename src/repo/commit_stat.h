/*
 * The local stat cache: which content digest a file had when it was last read, by path, device, inode, size and times.
 * Derived and deletable; what does not parse is as if it were not there. An entry is only written, and so only trusted, if the
 * file had not changed within 2 s before the scan that wrote it (the clock of files ticks coarsely; git calls such entries racy),
 * and never for a digest that --trust-mtime took from the parent. Nor if somebody had the file open for writing, and it was younger than a
 * minute or lies in memory (tmpfs, ramfs, hugetlbfs): through a mapping it may change without a new time until its dirty pages are written,
 * and in memory for as long as it is mapped.
 *
 * It also knows which version the source was, and of which files the row in that version's manifest says just what the cache does: files with
 * one name and one chunk at most. A commit that starts from that version need not have those rows.
 *
 * It is asked one directory after the other, in each for the files in byte order of their names: so a tree of millions costs one walk
 * through the cache, of which a block is in memory at a time.
 *
 * Threads: asking any; else one at a time, but for saving. Blocks on the local disk.
 */
#ifndef DS_REPO_COMMIT_STAT_H
#define DS_REPO_COMMIT_STAT_H

#include "repo/commit_tree.h"

struct commit_stat;

/* A directory that is asked for; zeros at first, and left at last. Of one thread. */
struct commit_stat_dir {
	const struct commit_stat *stat;
	/* Blocks of the directory that were not had yet, in the cache's file. */
	uint64_t off, end_off;
	const uint8_t *at, *end; /* entries of the block that was had last, not looked at yet */
	uint8_t *block;
};
void commit_stat_leave(struct commit_stat_dir *dir);

/* The cache of a source directory; empty if there is none. -ENOMEM only. state_dir NULL: keeps nothing. scratch: as
 * commit_scan's, for the list of directories. */
int commit_stat_load(const char *state_dir, const char *source, const char *scratch,
		     struct commit_stat **ret_stat);
struct commit_stat *commit_stat_free(struct commit_stat *stat);
/* The version that the source was when the cache was saved; NULL: none, or it is not known. */
const struct ds_digest *commit_stat_version(const struct commit_stat *stat);
/* Fills in is_known, is_row_known and the digests of the files that have just been found in the directory at `path`. Returns how many are
 * not known. Nothing is done by that. */
uint64_t commit_stat_ask(const struct commit_stat *stat, struct commit_stat_dir *dir,
			 const char *path, struct commit_node *node);

/*
 * Replaces the file by what the tree says now; until it is whole it lies in `scratch`, of the same file system. Best effort. A thread of
 * its own does it between the two calls; until the second, which waits for it, nothing of the tree may change that the cache keeps: names,
 * times, sizes, contents, links and rejects; nor may it be matched anew. `interrupted`, if not NULL, gives it up. The first may return
 * NULL, which the second takes.
 */
struct commit_stat_saving;
struct commit_stat_saving *commit_stat_save_begin(const char *state_dir, const char *source,
						  const char *scratch,
						  const struct commit_tree *tree,
						  const volatile int *interrupted);
/* Gives it up, and waits for that. NULL is allowed; returns NULL. */
struct commit_stat_saving *commit_stat_save_drop(struct commit_stat_saving *saving);
/* version NULL: the tree is none, or the rows of its times or links are not the tree's. */
struct commit_stat_saving *commit_stat_save_end(struct commit_stat_saving *saving,
						const struct ds_digest *version);

#endif
