/*
 * Scanning: several threads over a stack of directories. The invariants stand in commit_scan_impl.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "repo/commit_scan_impl.h"
#include "util/error.h"
#include "util/mem.h"
#include "util/work.h"

#define HANDLES_MAX 128u
#define THREADS_MAX 256u

static void handle_unref(struct scan *scan, struct dir_handle *handle)
{
	if (!handle || --handle->refs_n)
		return;
	close(handle->fd);
	ds_free(handle);
	pthread_mutex_lock(&scan->mutex);
	scan->locked.handles_n--;
	pthread_mutex_unlock(&scan->mutex);
}

void scan_fail(struct scan *scan, int code, const char *path, const char *detail)
{
	pthread_mutex_lock(&scan->mutex);
	if (scan->locked.result == 0) {
		scan->locked.result = code;
		ds_diag_set(&scan->locked.diag, code, path, "%s", detail ? detail : "");
	}
	pthread_mutex_unlock(&scan->mutex);
}

int scan_reject(struct scan *scan, struct commit_node *node, const char *path, int r)
{
	bool is_gone = r == -ENOENT || r == -ENOTDIR || r == -ELOOP || r == -ESTALE;

	if (r == -ENOMEM)
		return r;
	if (!is_gone)
		return commit_node_reject(scan->tree, node, REJECT_UNREADABLE, strerror(-r));
	scan_fail(scan, -DS_E_SOURCE_CHANGED, path,
		  "it vanished, or was replaced, while the source was scanned");
	return -DS_E_SOURCE_CHANGED;
}

static void free_item(struct scan *scan, struct dir_item *item)
{
	handle_unref(scan, item->parent);
	ds_free(item->path);
	ds_free(item);
}

static int new_item(struct commit_node *dir, const char *parent_path, struct dir_item **ret_item)
{
	struct dir_item *item = ds_calloc(1, sizeof(*item));

	if (item)
		item->path =
			ds_asprintf("%s%s%s", parent_path, parent_path[0] ? "/" : "", dir->name);
	if (!item || !item->path) {
		ds_free(item);
		return -ENOMEM;
	}
	item->dir = dir;
	*ret_item = item;
	return 0;
}

/* Takes the descriptor, if it may be kept (INV-2). */
static struct dir_handle *keep_handle(struct scan *scan, int *take_fd)
{
	struct dir_handle *handle;
	bool may;

	pthread_mutex_lock(&scan->mutex);
	may = scan->locked.handles_n < HANDLES_MAX;
	scan->locked.handles_n += may;
	pthread_mutex_unlock(&scan->mutex);
	handle = may ? ds_calloc(1, sizeof(*handle)) : NULL;
	if (!handle) {
		pthread_mutex_lock(&scan->mutex);
		scan->locked.handles_n -= may;
		pthread_mutex_unlock(&scan->mutex);
		return NULL;
	}
	handle->fd = *take_fd;
	handle->refs_n = 1;
	*take_fd = -1;
	return handle;
}

/* The subdirectories become pending, the first one on top. */
static int push_children(struct scan *scan, struct commit_node *dir, const char *path, int *take_fd)
{
	struct dir_handle *handle = NULL;
	struct ds_list items;
	bool tried = false;
	int r = 0;

	ds_list_init(&items);
	for (uint32_t i = 0; i < dir->children_n && r == 0; i++) {
		struct commit_node *child = &dir->children[i];
		struct dir_item *item;

		if (child->type != DS_ENTRY_DIRECTORY || child->reject)
			continue;
		r = new_item(child, path, &item);
		if (r < 0)
			break;
		if (!tried)
			handle = keep_handle(scan, take_fd);
		tried = true;
		item->parent = handle;
		if (handle)
			handle->refs_n++;
		ds_list_push_back(&items, &item->node);
	}
	pthread_mutex_lock(&scan->mutex);
	ds_list_splice(&items, &scan->locked.stack);
	ds_list_splice(&scan->locked.stack, &items);
	pthread_cond_broadcast(&scan->changed);
	pthread_mutex_unlock(&scan->mutex);
	handle_unref(scan, handle);
	return r;
}

static int open_dir(struct scan *scan, const struct dir_item *item)
{
	int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
	int fd;

	if (!item->parent)
		return commit_node_open(scan->tree, item->dir);
	fd = openat(item->parent->fd, item->dir->name, flags);
	return fd < 0 ? -errno : fd;
}

static bool is_short_of(int r)
{
	return r == -ENOMEM || r == -EMFILE || r == -ENFILE;
}

/* While the nodes are still in a cache of the processor. Returns how many are not known. */
static uint64_t ask_stat(struct scan *scan, struct commit_stat_dir *known,
			 const struct dir_item *item)
{
	return scan->stat ? commit_stat_ask(scan->stat, known, item->path, item->dir) : 0;
}

/*
 * Rejects files that cannot be read: the whole list is wanted now, not one by one when they are read. What the stat cache knows is not
 * read, and has cost its one stat; a chmod changes the ctime, so that the file is not known.
 */
static int ask_access(struct scan *scan, int fd, const struct dir_item *item,
		      uint64_t *ret_rejected_n)
{
	*ret_rejected_n = 0;
	if (scan->is_root)
		return 0;
	for (uint32_t i = 0; i < item->dir->children_n; i++) {
		struct commit_node *child = &item->dir->children[i];
		_ds_cleanup_free_ char *path = NULL;
		int r;

		if (child->type != DS_ENTRY_FILE || child->reject ||
		    (child->is_known && !scan->options->rehash) ||
		    faccessat(fd, child->name, R_OK, AT_EACCESS | AT_SYMLINK_NOFOLLOW) == 0)
			continue;
		r = -errno;
		path = ds_asprintf("%s%s%s", item->path, item->path[0] ? "/" : "", child->name);
		r = path ? scan_reject(scan, child, path, r) : -ENOMEM;
		if (r < 0)
			return r;
		*ret_rejected_n += !child->is_known;
	}
	return 0;
}

/* With the children of an open directory filled in. */
static int ask_files(struct scan *scan, struct commit_stat_dir *known, int fd,
		     const struct dir_item *item)
{
	uint64_t unknown_n = ask_stat(scan, known, item), rejected_n;
	int r = ask_access(scan, fd, item, &rejected_n);

	if (scan->stat) {
		pthread_mutex_lock(&scan->mutex);
		scan->locked.unknown_n += unknown_n - rejected_n;
		pthread_mutex_unlock(&scan->mutex);
	}
	return r;
}

static void scan_dir(struct scan *scan, struct dir_item *item, struct commit_stat_dir *known)
{
	struct commit_node *dir = item->dir;
	int fd = open_dir(scan, item);
	int r = fd < 0 ? fd : scan_read_dir(scan, dir, fd, item->path);

	if (r < 0 && r != -DS_E_SOURCE_REFUSED && r != -DS_E_SOURCE_CHANGED && !is_short_of(r) &&
	    dir->parent) {
		/* What of it was read already goes; its array stays, since links may point into it. */
		dir->children_n = 0;
		r = scan_reject(scan, dir, item->path, r);
	} else if (r == 0) {
		r = ask_files(scan, known, fd, item);
		if (r == 0)
			r = push_children(scan, dir, item->path, &fd);
	}
	if (r < 0)
		scan_fail(scan, r, item->path, NULL);
	if (fd >= 0)
		close(fd);
}

struct scan_thread {
	struct ds_work_item work;
	struct scan *scan;
};

static void run_thread(struct ds_work_item *work)
{
	struct scan *scan = ds_container_of(work, struct scan_thread, work)->scan;
	struct commit_stat_dir known = {0};

	pthread_mutex_lock(&scan->mutex);
	for (;;) {
		struct dir_item *item;

		while (ds_list_is_empty(&scan->locked.stack) && scan->locked.active_n)
			pthread_cond_wait(&scan->changed, &scan->mutex);
		if (ds_list_is_empty(&scan->locked.stack))
			break;
		item = ds_list_entry(scan->locked.stack.next, struct dir_item, node);
		ds_list_remove(&item->node);
		scan->locked.active_n++;
		if (scan->options->interrupted && *scan->options->interrupted &&
		    scan->locked.result == 0)
			scan->locked.result = -DS_E_INTERRUPTED;
		if (scan->locked.result == 0) {
			pthread_mutex_unlock(&scan->mutex);
			scan_dir(scan, item, &known);
			pthread_mutex_lock(&scan->mutex);
		}
		pthread_mutex_unlock(&scan->mutex);
		free_item(scan, item);
		pthread_mutex_lock(&scan->mutex);
		if (--scan->locked.active_n == 0)
			pthread_cond_broadcast(&scan->changed);
	}
	scan->locked.threads_n--;
	pthread_cond_signal(&scan->ended);
	pthread_mutex_unlock(&scan->mutex);
	commit_stat_leave(&known);
}

static void show(struct scan *scan)
{
	struct ds_commit_progress progress = {.phase = "scanning"};

	pthread_mutex_lock(&scan->mutex);
	progress.files_n = scan->locked.entries_n;
	pthread_mutex_unlock(&scan->mutex);
	if (scan->options->progress)
		scan->options->progress(scan->options->ctx, &progress);
}

static int run_threads(struct scan *scan)
{
	unsigned threads_n = scan->options->jobs_n ? scan->options->jobs_n : ds_cpu_count() + 2;
	struct scan_thread *threads;
	struct ds_work *work;
	int r;

	threads_n = DS_MIN(threads_n, THREADS_MAX);
	threads = ds_calloc(threads_n, sizeof(*threads));
	r = threads ? ds_work_new(threads_n, "dsfs-scan", &work) : -ENOMEM;
	if (r < 0) {
		ds_free(threads);
		return r;
	}
	scan->locked.threads_n = threads_n;
	for (unsigned i = 0; i < threads_n; i++) {
		threads[i].scan = scan;
		threads[i].work.run = run_thread;
		ds_work_submit(work, &threads[i].work, false);
	}
	pthread_mutex_lock(&scan->mutex);
	for (unsigned i = 1; scan->locked.threads_n; i++) {
		commit_cond_wait(&scan->ended, &scan->mutex);
		pthread_mutex_unlock(&scan->mutex);
		if (i % 2 == 0)
			show(scan);
		pthread_mutex_lock(&scan->mutex);
	}
	pthread_mutex_unlock(&scan->mutex);
	ds_work_free(work);
	ds_free(threads);
	return scan->locked.result;
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

/* Orders the names of each linked file. Names in directories that turned out to be unreadable are no names; neither is
 * a file linked whose other names lie outside. */
static void settle_links(struct commit_links *links)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < links->nodes_n; i++)
		if (!links->nodes[i]->reject && !links->nodes[i]->parent->reject)
			links->nodes[n++] = links->nodes[i];
	links->nodes_n = n;
	if (n == 1)
		links->nodes[0]->links = NULL;
	else if (n > 1)
		qsort(links->nodes, n, sizeof(links->nodes[0]), compare_paths);
}

static int count_rejects(const struct ds_commit_options *options, struct commit_tree *tree)
{
	for (struct commit_node *node = &tree->root; node;
	     node = commit_node_next(&tree->root, node, true)) {
		_ds_cleanup_free_ char *path = NULL;

		if (!node->reject)
			continue;
		if (node->reject == REJECT_SPECIAL)
			tree->special_n++;
		else
			tree->unreadable_n++;
		path = commit_node_path(node);
		if (!path)
			return -ENOMEM;
		if (options->warn)
			options->warn(options->ctx, path, node->target);
	}
	return 0;
}

static int refuse(const struct ds_commit_options *options, const struct commit_tree *tree,
		  struct ds_diag *reterr_diag)
{
	if (tree->special_n && !options->skip_special)
		return ds_diag_set(reterr_diag, -DS_E_SOURCE_REFUSED, options->source,
				   "%llu special file%s; --skip-special leaves %s out",
				   (unsigned long long)tree->special_n,
				   tree->special_n == 1 ? "" : "s",
				   tree->special_n == 1 ? "it" : "them");
	if (tree->unreadable_n && !options->skip_unreadable)
		return ds_diag_set(reterr_diag, -DS_E_SOURCE_REFUSED, options->source,
				   "%llu unreadable; --skip-unreadable leaves %s out",
				   (unsigned long long)tree->unreadable_n,
				   tree->unreadable_n == 1 ? "it" : "them");
	return 0;
}

static int open_root(struct scan *scan, const char *avoid, const char *scratch,
		     struct ds_diag *reterr_diag)
{
	struct commit_tree *tree = scan->tree;
	struct dir_item *item;
	struct stat st;
	int r;

	*tree = (struct commit_tree){.scanned = ds_real_now(), .root_fd = -1};
	tree->root.name = tree->root_name;
	tree->root.type = DS_ENTRY_DIRECTORY;
	r = ds_arena_new(scratch, &tree->arena);
	if (r < 0)
		return r;
	tree->root_fd = open(scan->options->source, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (tree->root_fd < 0 || fstat(tree->root_fd, &st) < 0)
		return ds_diag_set(reterr_diag, -errno, scan->options->source,
				   "the source cannot be opened");
	tree->root.mtime =
		(struct ds_time){.s = st.st_mtim.tv_sec, .ns = (uint32_t)st.st_mtim.tv_nsec};
	if (avoid && stat(avoid, &st) == 0) {
		scan->has_avoid = true;
		scan->avoid_dev = st.st_dev;
		scan->avoid_ino = st.st_ino;
	}
	r = new_item(&tree->root, "", &item);
	if (r == 0)
		ds_list_push_back(&scan->locked.stack, &item->node);
	return r;
}

int commit_scan(const struct ds_commit_options *options, const char *avoid, const char *scratch,
		const struct commit_stat *stat, struct commit_tree *tree,
		struct ds_diag *reterr_diag)
{
	struct scan scan = {
		.options = options,
		.stat = stat,
		.tree = tree,
		.is_root = geteuid() == 0,
	};
	int r;

	ds_list_init(&scan.locked.stack);
	pthread_mutex_init(&scan.mutex, NULL);
	pthread_cond_init(&scan.changed, NULL);
	commit_cond_init(&scan.ended);
	r = open_root(&scan, avoid, scratch, reterr_diag);
	if (r == 0)
		r = ds_map_new(&scan.locked.links);
	if (r == 0) {
		r = run_threads(&scan);
		if (reterr_diag && scan.locked.diag.code)
			*reterr_diag = scan.locked.diag;
	}
	while (!ds_list_is_empty(&scan.locked.stack)) {
		struct dir_item *item =
			ds_list_entry(scan.locked.stack.next, struct dir_item, node);

		ds_list_remove(&item->node);
		free_item(&scan, item);
	}
	ds_map_free(scan.locked.links, NULL);
	pthread_cond_destroy(&scan.ended);
	pthread_cond_destroy(&scan.changed);
	pthread_mutex_destroy(&scan.mutex);
	if (r < 0)
		return r;
	tree->unknown_n = scan.locked.unknown_n;
	for (struct commit_links *links = tree->links; links; links = links->next) {
		settle_links(links);
		tree->unknown_n += links->nodes_n > 1 && links->is_unsure;
	}
	r = count_rejects(options, tree);
	if (r == 0)
		r = commit_tree_count(tree, options->source, reterr_diag);
	return r < 0 ? r : refuse(options, tree, reterr_diag);
}
