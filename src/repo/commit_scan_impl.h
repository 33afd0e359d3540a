/*
 * For commit_scan.c (the threads) and commit_scan_dir.c (one directory).
 *
 * INV-1  Pending directories are a stack: whoever is free takes the newest, so that the walk is depth first and few are pending.
 * INV-2  An item holds its parent's descriptor only while fewer than HANDLES_MAX are held; else it is opened from the root, step by
 *        step. So the number of open descriptors does not depend on the tree.
 * INV-3  Nodes of a directory are an array that does not move once its subdirectories are pending.
 */
#ifndef DS_REPO_COMMIT_SCAN_IMPL_H
#define DS_REPO_COMMIT_SCAN_IMPL_H

#include <sys/stat.h>

#include "repo/commit_stat.h"
#include "repo/commit_watch.h"
#include "util/list.h"
#include "util/map.h"

struct dir_handle { /* an open directory, counted by the items of its subdirectories */
	_Atomic unsigned refs_n;
	int fd;
};

struct dir_item {
	struct ds_list node; /* in the stack */
	struct commit_node *dir;
	struct dir_handle *parent; /* NULL: open it from the root */
	char *path;		   /* relative to the root, "" for it; for messages and excludes */
};

struct scan {
	const struct ds_commit_options *options;
	const struct commit_stat *stat; /* NULL: none */
	struct commit_tree *tree;
	bool has_avoid;
	dev_t avoid_dev;
	ino_t avoid_ino;
	bool is_root; /* who reads everything */
	pthread_mutex_t mutex;
	pthread_cond_t changed; /* for the threads */
	pthread_cond_t ended;	/* for the caller */
	struct {
		struct ds_list stack;
		unsigned active_n, threads_n;
		unsigned handles_n; /* counted once for each directory that is kept open */
		int result;
		struct ds_diag diag;
		struct ds_map *links; /* (dev, ino) -> struct commit_links */
		uint64_t entries_n, unknown_n;
	} locked;
};

/* Reads the open directory of an item: fills in dir's children. -ENOMEM, -DS_E_SOURCE_REFUSED or _CHANGED (noted by scan_fail), or an errno: it
 * cannot be read. */
int scan_read_dir(struct scan *scan, struct commit_node *dir, int fd, const char *path);
/* In byte order, each once: readdir(3) may give a name twice that was made anew meanwhile. Returns how many there are. */
size_t scan_sort_names(char **names, size_t n);
/* A symlink's target into its node; -ENOENT if it is gone, or no symlink any more. */
int scan_read_target(struct scan *scan, int dir_fd, struct commit_node *node);
/* What has a name but cannot be read is left out of the tree; -DS_E_SOURCE_CHANGED, noted, if it is gone by now, or something else, and
 * -ENOMEM as it is. skip_unreadable does not matter: what was replaced is there. */
int scan_reject(struct scan *scan, struct commit_node *node, const char *path, int r);
/* The first failure counts. */
void scan_fail(struct scan *scan, int code, const char *path, const char *detail);

#endif
