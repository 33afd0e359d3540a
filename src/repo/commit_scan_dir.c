/*
 * Scanning one directory: its names in byte order, and what stat(2) says about each.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "repo/commit_scan_impl.h"
#include "util/error.h"
#include "util/mem.h"

/* A pattern with a slash fits the path from the source on, one without fits names anywhere; a slash at the end means
 * nothing, one at the start anchors. */
static bool is_excluded(const struct scan *scan, const char *path, const char *name)
{
	for (const char *const *at = scan->options->excludes; at && *at; at++) {
		size_t len = strlen(*at);
		char pattern[4097];

		while (len > 1 && (*at)[len - 1] == '/')
			len--;
		if (len >= sizeof(pattern))
			continue;
		memcpy(pattern, *at, len);
		pattern[len] = '\0';
		if (!strchr(pattern, '/')
			    ? fnmatch(pattern, name, 0) == 0
			    : fnmatch(pattern + (pattern[0] == '/'), path, FNM_PATHNAME) == 0)
			return true;
	}
	return false;
}

static const char *special_kind(mode_t mode)
{
	return S_ISFIFO(mode)	? "is a FIFO"
	       : S_ISSOCK(mode) ? "is a socket"
	       : S_ISBLK(mode)	? "is a block device"
	       : S_ISCHR(mode)	? "is a character device"
				: "is of an unknown type";
}

int scan_read_target(struct scan *scan, int dir_fd, struct commit_node *node)
{
	char target[DS_TARGET_MAX + 2];
	ssize_t n = readlinkat(dir_fd, node->name, target, sizeof(target));

	/* readlink(2): EINVAL: it is no symlink; any more, that is. */
	if (n < 0)
		return errno == EINVAL ? -ENOENT : -errno;
	if (n == 0 || n > (ssize_t)DS_TARGET_MAX)
		return -ENAMETOOLONG;
	target[n] = '\0';
	node->target = ds_arena_memdup(scan->tree->arena, target, (size_t)n + 1);
	if (!node->target)
		return -ENOMEM;
	node->size_bytes = (uint64_t)n;
	node->is_done = true;
	return ds_digest_of(node->target, (size_t)n, &node->digest);
}

static int grow_links(struct commit_links *links)
{
	uint32_t capacity_n = links->capacity_n ? links->capacity_n * 2 : 4;
	struct commit_node **nodes;

	if (links->nodes_n < links->capacity_n)
		return 0;
	nodes = ds_reallocarray(links->nodes, capacity_n, sizeof(*nodes));
	if (!nodes)
		return -ENOMEM;
	links->nodes = nodes;
	links->capacity_n = capacity_n;
	return 0;
}

static bool is_alike(const struct commit_node *a, const struct commit_node *b)
{
	return a->size_bytes == b->size_bytes && ds_time_compare(a->mtime, b->mtime) == 0 &&
	       ds_time_compare(a->ctime, b->ctime) == 0;
}

static int note_link_locked(struct scan *scan, struct commit_node *node)
{
	uint64_t key[2] = {node->dev, node->ino};
	struct commit_links *links = ds_map_get(scan->locked.links, key, sizeof(key));
	int r;

	if (!links) {
		links = ds_calloc(1, sizeof(*links));
		r = links ? ds_map_put(scan->locked.links, key, sizeof(key), links, NULL) : -ENOMEM;
		if (r < 0) {
			ds_free(links);
			return r;
		}
		links->next = scan->tree->links;
		scan->tree->links = links;
	}
	r = grow_links(links);
	if (r < 0)
		return r;
	if (links->nodes_n && !is_alike(links->nodes[0], node))
		links->is_unsure = true;
	links->nodes[links->nodes_n++] = node;
	node->links = links;
	return 0;
}

static int fill_file(struct scan *scan, struct commit_node *node, const struct stat *st)
{
	int r;

	node->type = DS_ENTRY_FILE;
	node->size_bytes = (uint64_t)st->st_size;
	node->is_executable = (st->st_mode & 0111) != 0;
	if (st->st_nlink == 1)
		return 0;
	pthread_mutex_lock(&scan->mutex);
	r = note_link_locked(scan, node);
	pthread_mutex_unlock(&scan->mutex);
	return r;
}

static int fill_node(struct scan *scan, int dir_fd, struct commit_node *node, const char *path)
{
	struct stat st;
	int r;

	if (fstatat(dir_fd, node->name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return scan_reject(scan, node, path, -errno);
	node->mtime = (struct ds_time){.s = st.st_mtim.tv_sec, .ns = (uint32_t)st.st_mtim.tv_nsec};
	node->ctime = (struct ds_time){.s = st.st_ctim.tv_sec, .ns = (uint32_t)st.st_ctim.tv_nsec};
	node->dev = st.st_dev;
	node->ino = st.st_ino;
	switch (st.st_mode & S_IFMT) {
	case S_IFREG:
		return fill_file(scan, node, &st);
	case S_IFDIR:
		node->type = DS_ENTRY_DIRECTORY;
		if (!scan->has_avoid || st.st_dev != scan->avoid_dev ||
		    st.st_ino != scan->avoid_ino)
			return 0;
		scan_fail(scan, -DS_E_SOURCE_REFUSED, path, "this is the repository");
		return -DS_E_SOURCE_REFUSED;
	case S_IFLNK:
		node->type = DS_ENTRY_SYMLINK;
		r = scan_read_target(scan, dir_fd, node);
		return r < 0 ? scan_reject(scan, node, path, r) : 0;
	default:
		return commit_node_reject(scan->tree, node, REJECT_SPECIAL,
					  special_kind(st.st_mode));
	}
}

static int compare_names(const void *a, const void *b)
{
	const char *const *x = a, *const *y = b;

	return strcmp(*x, *y);
}

size_t scan_sort_names(char **names, size_t n)
{
	size_t kept_n = 0;

	qsort(names, n, sizeof(*names), compare_names);
	for (size_t i = 0; i < n; i++)
		if (!kept_n || strcmp(names[kept_n - 1], names[i]) != 0)
			names[kept_n++] = names[i];
	return kept_n;
}

static int append_names(DIR *dir, struct ds_buf *block, size_t *ret_n)
{
	struct dirent *entry;
	size_t n = 0;
	int r = 0;

	for (errno = 0; r == 0 && (entry = readdir(dir)); errno = 0) {
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		if (strlen(entry->d_name) > DS_NAME_MAX)
			return -ENAMETOOLONG;
		r = ds_buf_append(block, entry->d_name, strlen(entry->d_name) + 1);
		n++;
	}
	*ret_n = n;
	return r == 0 && errno ? -errno : r;
}

/* All names of a directory, sorted. */
static int read_names(struct scan *scan, int fd, char ***ret_names, size_t *ret_n)
{
	_ds_cleanup_buf_ struct ds_buf block = DS_BUF_INIT(SIZE_MAX / 4);
	size_t n = 0, i = 0;
	char **names, *kept;
	DIR *dir;
	int r;

	fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	dir = fdopendir(fd);
	if (!dir) {
		close(fd);
		return -ENOMEM;
	}
	r = append_names(dir, &block, &n);
	closedir(dir);
	if (r < 0)
		return r;
	kept = ds_arena_memdup(scan->tree->arena, block.data, block.len_bytes);
	names = ds_calloc(n + 1, sizeof(*names));
	if (!kept || !names) {
		ds_free(names);
		return -ENOMEM;
	}
	for (char *at = kept; i < n; at += strlen(at) + 1)
		names[i++] = at;
	*ret_names = names;
	*ret_n = scan_sort_names(names, n);
	return 0;
}

int scan_read_dir(struct scan *scan, struct commit_node *dir, int fd, const char *path)
{
	_ds_cleanup_free_ char **names = NULL;
	_ds_cleanup_buf_ struct ds_buf child = DS_BUF_INIT(SIZE_MAX / 4);
	size_t n = 0, path_len;
	int r = read_names(scan, fd, &names, &n);

	if (r == 0)
		r = ds_buf_append_str(&child, path);
	if (r == 0 && path[0])
		r = ds_buf_append_byte(&child, '/');
	if (r < 0)
		return r;
	path_len = child.len_bytes;
	dir->children = ds_arena_calloc(scan->tree->arena, n, sizeof(*dir->children));
	if (!dir->children)
		return -ENOMEM;
	for (size_t i = 0; i < n && r == 0; i++) {
		struct commit_node *node = &dir->children[dir->children_n];

		ds_buf_truncate(&child, path_len);
		r = ds_buf_append_str(&child, names[i]);
		if (r < 0 || is_excluded(scan, ds_buf_str(&child), names[i]))
			continue;
		node->name = names[i];
		node->name_len = (uint8_t)strlen(names[i]);
		node->parent = dir;
		node->place.pack = COMMIT_PACK_NONE;
		dir->children_n++;
		r = fill_node(scan, fd, node, ds_buf_str(&child));
	}
	pthread_mutex_lock(&scan->mutex);
	scan->locked.entries_n += dir->children_n;
	pthread_mutex_unlock(&scan->mutex);
	return r;
}
