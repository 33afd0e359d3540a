/*
 * Scanning: one work item for each directory, on several threads. A directory's item holds its parent's descriptor until it is
 * opened, so that paths may be deeper than PATH_MAX and nothing follows a link.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "repo/commit_tree.h"
#include "util/error.h"
#include "util/file.h"
#include "util/map.h"
#include "util/mem.h"
#include "util/str.h"
#include "util/work.h"

#define FUSE_MAGIC 0x65735546 /* statfs(2) */

struct dir_handle { /* an open directory, counted by the items of its subdirectories */
	_Atomic unsigned refs_n;
	int fd;
};

struct scan {
	const struct ds_commit_options *options;
	struct commit_tree *tree;
	struct ds_work *work;
	pthread_mutex_t mutex;
	pthread_cond_t done;
	struct {
		size_t pending_n;
		int result;
		struct ds_diag diag;
		struct ds_map *links; /* (dev, ino) -> struct commit_links */
		uint64_t seen_n;
	} locked;
};

struct dir_item {
	struct ds_work_item work;
	struct scan *scan;
	struct commit_node *node;
	struct dir_handle *parent; /* NULL: the root */
	char *path;		   /* relative to the root, "" for it; for messages and excludes */
};

static void handle_unref(struct dir_handle *handle)
{
	if (handle && --handle->refs_n == 0) {
		close(handle->fd);
		ds_free(handle);
	}
}

static void scan_fail(struct scan *scan, int code, const char *path)
{
	pthread_mutex_lock(&scan->mutex);
	if (scan->locked.result == 0) {
		scan->locked.result = code;
		ds_diag_set(&scan->locked.diag, code, path, NULL);
	}
	pthread_mutex_unlock(&scan->mutex);
}

bool commit_is_excluded(const struct ds_commit_options *options, const char *path, const char *name)
{
	for (const char *const *at = options->excludes; at && *at; at++) {
		const char *pattern = *at;

		if (strchr(pattern, '/')) {
			if (fnmatch(pattern[0] == '/' ? pattern + 1 : pattern, path,
				    FNM_PATHNAME | FNM_PERIOD) == 0)
				return true;
		} else if (fnmatch(pattern, name, 0) == 0) {
			return true;
		}
	}
	return false;
}

static void warn_locked(struct scan *scan, const char *path, const char *reason)
{
	if (scan->options->warn)
		scan->options->warn(scan->options->ctx, path, reason);
}

static void reject(struct scan *scan, struct commit_node *node, const char *path,
		   enum commit_reject why, const char *reason)
{
	node->reject = (uint8_t)why;
	pthread_mutex_lock(&scan->mutex);
	if (why == REJECT_SPECIAL)
		scan->tree->special_n++;
	else
		scan->tree->unreadable_n++;
	warn_locked(scan, path, reason);
	pthread_mutex_unlock(&scan->mutex);
}

static const char *special_kind(mode_t mode)
{
	return S_ISFIFO(mode)	? "is a FIFO"
	       : S_ISSOCK(mode) ? "is a socket"
	       : S_ISBLK(mode)	? "is a block device"
	       : S_ISCHR(mode)	? "is a character device"
				: "is of an unknown type";
}

static int read_target(int dir_fd, struct commit_node *node)
{
	char target[DS_TARGET_MAX + 2];
	ssize_t n = readlinkat(dir_fd, node->name, target, sizeof(target));

	if (n < 0)
		return -errno;
	if (n == 0 || n > (ssize_t)DS_TARGET_MAX)
		return -ENAMETOOLONG;
	node->target = ds_strndup(target, (size_t)n);
	if (!node->target)
		return -ENOMEM;
	node->size_bytes = (uint64_t)n;
	node->is_done = true;
	return ds_digest_of(node->target, (size_t)n, &node->digest);
}

/* A file with several names: remembered by device and inode; sorted into tree order at the end. */
static int note_link(struct scan *scan, struct commit_node *node)
{
	uint64_t key[2] = {node->dev, node->ino};
	struct commit_links *links;
	int r = 0;

	pthread_mutex_lock(&scan->mutex);
	links = ds_map_get(scan->locked.links, key, sizeof(key));
	if (!links) {
		links = ds_calloc(1, sizeof(*links));
		r = links ? ds_map_put(scan->locked.links, key, sizeof(key), links, NULL) : -ENOMEM;
		if (r < 0) {
			ds_free(links);
			links = NULL;
		} else {
			links->next = scan->tree->links;
			scan->tree->links = links;
		}
	}
	if (links && links->nodes_n == links->capacity_n) {
		uint32_t capacity_n = links->capacity_n ? links->capacity_n * 2 : 4;
		struct commit_node **nodes =
			ds_reallocarray(links->nodes, capacity_n, sizeof(*nodes));

		if (nodes) {
			links->nodes = nodes;
			links->capacity_n = capacity_n;
		} else {
			r = -ENOMEM;
		}
	}
	if (r == 0) {
		links->nodes[links->nodes_n++] = node;
		node->links = links;
	}
	pthread_mutex_unlock(&scan->mutex);
	return r;
}

static int fill_node(struct scan *scan, int dir_fd, struct commit_node *node, const char *path)
{
	struct stat st;
	int r;

	if (fstatat(dir_fd, node->name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
		reject(scan, node, path, REJECT_UNREADABLE, strerror(errno));
		return 0;
	}
	node->mtime = (struct ds_time){.s = st.st_mtim.tv_sec, .ns = (uint32_t)st.st_mtim.tv_nsec};
	node->ctime = (struct ds_time){.s = st.st_ctim.tv_sec, .ns = (uint32_t)st.st_ctim.tv_nsec};
	node->dev = st.st_dev;
	node->ino = st.st_ino;
	node->place.pack = COMMIT_PACK_NONE;
	switch (st.st_mode & S_IFMT) {
	case S_IFREG:
		node->type = DS_ENTRY_FILE;
		node->size_bytes = (uint64_t)st.st_size;
		node->is_executable = (st.st_mode & 0111) != 0;
		/* Root reads everything; for others the whole list is wanted now, not one by one later. */
		if (geteuid() != 0 &&
		    faccessat(dir_fd, node->name, R_OK, AT_EACCESS | AT_SYMLINK_NOFOLLOW) < 0) {
			reject(scan, node, path, REJECT_UNREADABLE, strerror(errno));
			return 0;
		}
		return st.st_nlink > 1 ? note_link(scan, node) : 0;
	case S_IFDIR:
		node->type = DS_ENTRY_DIRECTORY;
		return 0;
	case S_IFLNK:
		node->type = DS_ENTRY_SYMLINK;
		r = read_target(dir_fd, node);
		if (r < 0 && r != -ENOMEM) {
			reject(scan, node, path, REJECT_UNREADABLE, strerror(-r));
			r = 0;
		}
		return r;
	default:
		reject(scan, node, path, REJECT_SPECIAL, special_kind(st.st_mode));
		return 0;
	}
}

static int compare_names(const void *a, const void *b)
{
	const char *const *x = a, *const *y = b;

	return strcmp(*x, *y);
}

/* All names of a directory, sorted, in one block. */
static int read_names(int fd, char **ret_block, char ***ret_names, size_t *ret_n)
{
	_ds_cleanup_buf_ struct ds_buf block = DS_BUF_INIT(SIZE_MAX / 4);
	struct dirent *entry;
	size_t n = 0, i = 0;
	char **names;
	DIR *dir = fdopendir(dup(fd));
	int r = 0;

	if (!dir)
		return -errno;
	errno = 0;
	while (r == 0 && (entry = readdir(dir))) {
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		r = ds_buf_append(&block, entry->d_name, strlen(entry->d_name) + 1);
		n++;
		errno = 0;
	}
	if (r == 0 && errno)
		r = -errno;
	closedir(dir);
	if (r < 0)
		return r;
	names = ds_calloc(n + 1, sizeof(*names));
	if (!names)
		return -ENOMEM;
	for (char *at = (char *)block.data; i < n; at += strlen(at) + 1)
		names[i++] = at;
	qsort(names, n, sizeof(*names), compare_names);
	*ret_block = (char *)ds_buf_steal(&block);
	*ret_names = names;
	*ret_n = n;
	return 0;
}

static void submit_dir(struct scan *scan, struct commit_node *node, struct dir_handle *parent,
		       const char *path);

static int fill_children(struct scan *scan, struct commit_node *dir, struct dir_handle *handle,
			 const char *path, char **names, size_t n)
{
	int r = 0;

	dir->children = ds_calloc(n ? n : 1, sizeof(*dir->children));
	if (!dir->children)
		return -ENOMEM;
	for (size_t i = 0; i < n && r == 0; i++) {
		_ds_cleanup_free_ char *child_path =
			ds_asprintf("%s%s%s", path, path[0] ? "/" : "", names[i]);
		struct commit_node *node = &dir->children[dir->children_n];

		if (!child_path)
			return -ENOMEM;
		if (commit_is_excluded(scan->options, child_path, names[i]))
			continue;
		node->name = names[i];
		node->name_len = (uint8_t)strlen(names[i]);
		node->parent = dir;
		dir->children_n++;
		r = fill_node(scan, handle->fd, node, child_path);
	}
	return r;
}

static void scan_dir(struct dir_item *item)
{
	struct scan *scan = item->scan;
	struct commit_node *dir = item->node;
	struct dir_handle *handle = ds_calloc(1, sizeof(*handle));
	char **names = NULL;
	size_t n = 0;
	int r;

	if (!handle) {
		scan_fail(scan, -ENOMEM, item->path);
		return;
	}
	handle->refs_n = 1;
	handle->fd = item->parent ? openat(item->parent->fd, dir->name,
					   O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
				  : dup(scan->tree->root_fd);
	if (handle->fd < 0) {
		int err = errno;

		ds_free(handle);
		if (item->parent && err != EMFILE && err != ENFILE && err != ENOMEM)
			reject(scan, dir, item->path, REJECT_UNREADABLE, strerror(err));
		else
			scan_fail(scan, -err, item->path);
		return;
	}
	r = read_names(handle->fd, &dir->names, &names, &n);
	if (r == 0)
		r = fill_children(scan, dir, handle, item->path, names, n);
	ds_free(names);
	if (r < 0 && r != -ENOMEM && item->parent) {
		for (uint32_t i = 0; i < dir->children_n; i++)
			ds_free(dir->children[i].target);
		dir->children_n = 0;
		reject(scan, dir, item->path, REJECT_UNREADABLE, strerror(-r));
	} else if (r < 0) {
		scan_fail(scan, r, item->path);
	}
	for (uint32_t i = 0; r == 0 && i < dir->children_n; i++)
		if (dir->children[i].type == DS_ENTRY_DIRECTORY && !dir->children[i].reject)
			submit_dir(scan, &dir->children[i], handle, item->path);
	handle_unref(handle);
}

static void run_dir(struct ds_work_item *work)
{
	struct dir_item *item = ds_container_of(work, struct dir_item, work);
	struct scan *scan = item->scan;
	bool stop;

	pthread_mutex_lock(&scan->mutex);
	if (scan->options->interrupted && *scan->options->interrupted && scan->locked.result == 0)
		scan->locked.result = -DS_E_INTERRUPTED;
	stop = scan->locked.result != 0;
	scan->locked.seen_n++;
	pthread_mutex_unlock(&scan->mutex);
	if (!stop)
		scan_dir(item);
	handle_unref(item->parent);
	ds_free(item->path);
	ds_free(item);
	pthread_mutex_lock(&scan->mutex);
	if (--scan->locked.pending_n == 0)
		pthread_cond_broadcast(&scan->done);
	pthread_mutex_unlock(&scan->mutex);
}

static void submit_dir(struct scan *scan, struct commit_node *node, struct dir_handle *parent,
		       const char *path)
{
	struct dir_item *item = ds_calloc(1, sizeof(*item));

	if (item)
		item->path = parent ? ds_asprintf("%s%s%s", path, path[0] ? "/" : "", node->name)
				    : ds_strdup("");
	if (!item || !item->path) {
		ds_free(item);
		scan_fail(scan, -ENOMEM, path);
		return;
	}
	item->work.run = run_dir;
	item->scan = scan;
	item->node = node;
	item->parent = parent;
	if (parent)
		parent->refs_n++;
	pthread_mutex_lock(&scan->mutex);
	scan->locked.pending_n++;
	pthread_mutex_unlock(&scan->mutex);
	/* Depth first would need a stack; urgent ones overtake, which keeps few directories open. */
	ds_work_submit(scan->work, &item->work, true);
}

static int compare_paths(const void *a, const void *b)
{
	const struct commit_node *x = *(struct commit_node *const *)a;
	const struct commit_node *y = *(struct commit_node *const *)b;
	unsigned x_depth = 0, y_depth = 0;

	for (const struct commit_node *at = x; at->parent; at = at->parent)
		x_depth++;
	for (const struct commit_node *at = y; at->parent; at = at->parent)
		y_depth++;
	/* Up to the level where both have the same parent; there the order of the siblings decides. */
	for (; x_depth > y_depth; x_depth--)
		x = x->parent;
	for (; y_depth > x_depth; y_depth--)
		y = y->parent;
	while (x->parent != y->parent) {
		x = x->parent;
		y = y->parent;
	}
	return x < y ? -1 : x > y;
}

/* Names in directories that turned out to be unreadable are no names. */
static void drop_rejected(struct commit_links *links)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < links->nodes_n; i++)
		if (!links->nodes[i]->reject && !links->nodes[i]->parent->reject)
			links->nodes[n++] = links->nodes[i];
	links->nodes_n = n;
}

/* Orders the names of each linked file, and counts. */
static int settle(struct commit_tree *tree)
{
	for (struct commit_links *links = tree->links; links; links = links->next) {
		drop_rejected(links);
		if (links->nodes_n)
			qsort(links->nodes, links->nodes_n, sizeof(links->nodes[0]), compare_paths);
	}
	for (struct commit_node *node = &tree->root; node;
	     node = commit_node_next(&tree->root, node, true)) {
		if (node->reject || node == &tree->root)
			continue;
		if (node->type == DS_ENTRY_DIRECTORY)
			tree->directories_n++;
		else if (node->type == DS_ENTRY_SYMLINK)
			tree->symlinks_n++;
		else
			tree->files_n++;
		if (node->type != DS_ENTRY_FILE)
			continue;
		if (node->links && node->links->nodes_n == 1)
			node->links = NULL; /* its other names lie outside */
		if (commit_node_content(node) == node &&
		    __builtin_add_overflow(tree->bytes, node->size_bytes, &tree->bytes))
			return -EOVERFLOW;
	}
	return 0;
}

static int refuse(const struct ds_commit_options *options, const struct commit_tree *tree,
		  struct ds_diag *reterr_diag)
{
	if (tree->special_n && !options->skip_special)
		return ds_diag_set(reterr_diag, -DS_E_SOURCE_REFUSED, options->source,
				   "%llu special files; --skip-special leaves them out",
				   (unsigned long long)tree->special_n);
	if (tree->unreadable_n && !options->skip_unreadable)
		return ds_diag_set(reterr_diag, -DS_E_SOURCE_REFUSED, options->source,
				   "%llu unreadable; --skip-unreadable leaves them out",
				   (unsigned long long)tree->unreadable_n);
	return 0;
}

int commit_scan(const struct ds_commit_options *options, struct commit_tree *tree,
		struct ds_diag *reterr_diag)
{
	struct scan scan = {.options = options, .tree = tree};
	unsigned threads_n = options->jobs_n ? options->jobs_n : ds_cpu_count() + 2;
	struct stat st;
	int r;

	*tree = (struct commit_tree){.scanned = ds_real_now(), .root_fd = -1};
	tree->root.name = tree->root_name;
	tree->root.type = DS_ENTRY_DIRECTORY;
	tree->root_fd = open(options->source, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (tree->root_fd < 0 || fstat(tree->root_fd, &st) < 0)
		return ds_diag_set(reterr_diag, errno == ENOENT ? -ENOENT : -errno, options->source,
				   "the source cannot be opened");
	tree->root.mtime =
		(struct ds_time){.s = st.st_mtim.tv_sec, .ns = (uint32_t)st.st_mtim.tv_nsec};
	r = ds_map_new(&scan.locked.links);
	if (r == 0)
		r = ds_work_new(threads_n, "dsfs-scan", &scan.work);
	if (r < 0) {
		ds_map_free(scan.locked.links, NULL);
		return r;
	}
	pthread_mutex_init(&scan.mutex, NULL);
	pthread_cond_init(&scan.done, NULL);
	submit_dir(&scan, &tree->root, NULL, "");
	pthread_mutex_lock(&scan.mutex);
	while (scan.locked.pending_n)
		pthread_cond_wait(&scan.done, &scan.mutex);
	pthread_mutex_unlock(&scan.mutex);
	ds_work_free(scan.work);
	ds_map_free(scan.locked.links, NULL);
	pthread_cond_destroy(&scan.done);
	pthread_mutex_destroy(&scan.mutex);
	r = scan.locked.result;
	if (r < 0) {
		if (reterr_diag)
			*reterr_diag = scan.locked.diag;
		return r;
	}
	r = settle(tree);
	return r < 0 ? r : refuse(options, tree, reterr_diag);
}

int commit_check_place(const struct ds_repo *repo, const char *source, struct ds_diag *reterr_diag)
{
	const char *local = repo ? ds_store_local_path(ds_repo_store(repo)) : NULL;
	char *from = realpath(source, NULL);
	int err = errno;
	char *to = local ? realpath(local, NULL) : NULL;
	struct statfs fs;
	char magic[DS_DIGEST_TEXT_MAX];
	int r = 0;

	if (!from)
		r = ds_diag_set(reterr_diag, -err, source, "the source cannot be opened");
	if (r == 0 && to) {
		size_t from_len = strlen(from), to_len = strlen(to);

		if (strncmp(from, to, to_len) == 0 && (from[to_len] == '/' || !from[to_len]))
			r = ds_diag_set(reterr_diag, -DS_E_SOURCE_REFUSED, source,
					"the source lies inside the repository");
		else if (strncmp(to, from, from_len) == 0 && (to[from_len] == '/' || from_len == 1))
			r = ds_diag_set(reterr_diag, -DS_E_SOURCE_REFUSED, source,
					"the repository lies inside the source");
	}
	/* A dsfs mount answers for itself by an attribute of its root. */
	if (r == 0 && statfs(from, &fs) == 0 && fs.f_type == FUSE_MAGIC &&
	    getxattr(from, "user.dsfs.version", magic, sizeof(magic)) > 0)
		r = ds_diag_set(reterr_diag, -DS_E_SOURCE_REFUSED, source,
				"the source is a dsfs mount: its version is committed already");
	free(from);
	free(to);
	return r;
}
