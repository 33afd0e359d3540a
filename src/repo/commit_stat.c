/*
 * File: "dsfsstat", u32 version, u32 zero, u64 number of directories, rows of directories in order of their keys, their entries (a
 * directory's side by side, in byte order of their names), digest of all before.
 * Row: first 16 bytes of the path's digest, u64 offset of the entries in the file, u64 their length.
 * Entry: u8 length of the name, name, u64 device, inode, size, i64 and u32 of mtime and of ctime, digest.
 */
#include "repo/commit_stat.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "codec/content.h"
#include "util/bytes.h"
#include "util/error.h"
#include "util/file.h"
#include "util/mem.h"

#define STAT_MAGIC	"dsfsstat"
#define STAT_VERSION	2u
#define STAT_HEAD_LEN	24u
#define STAT_KEY_LEN	16u
#define STAT_ROW_LEN	32u
#define IDENTITY_LEN	48u
#define STAT_FILE_MAX	DS_GIB(8)
#define STAT_SETTLED_NS (2 * DS_NS_PER_S)

struct commit_stat {
	struct ds_arena *arena;
	const uint8_t *data; /* the whole file, but for the digest */
	size_t len_bytes;
	const uint8_t *rows;
	uint64_t rows_n;
};

/* Path of the cache file; NULL if there is no memory or no such source. */
static char *file_path(const char *state_dir, const char *source)
{
	char text[DS_DIGEST_TEXT_MAX], *real = realpath(source, NULL), *path = NULL;
	struct ds_digest digest;

	if (real && ds_digest_of(real, strlen(real), &digest) == 0)
		path = ds_asprintf("%s/stat/%.32s", state_dir, ds_digest_format(&digest, text));
	free(real);
	return path;
}

static bool parse(struct commit_stat *stat, const uint8_t *data, size_t len_bytes)
{
	struct ds_cursor cursor = ds_cursor_of(data, len_bytes);
	const uint8_t *magic = ds_cursor_take(&cursor, 8);
	struct ds_digest digest;
	uint32_t version = ds_cursor_le32(&cursor);
	uint64_t n;

	ds_cursor_le32(&cursor);
	n = ds_cursor_le64(&cursor);
	if (cursor.failed || memcmp(magic, STAT_MAGIC, 8) != 0 || version != STAT_VERSION ||
	    n > STAT_FILE_MAX / STAT_ROW_LEN ||
	    cursor.left_bytes < n * STAT_ROW_LEN + DS_DIGEST_LEN)
		return false;
	if (ds_digest_of(data, len_bytes - DS_DIGEST_LEN, &digest) < 0 ||
	    memcmp(digest.bytes, data + len_bytes - DS_DIGEST_LEN, DS_DIGEST_LEN) != 0)
		return false;
	stat->data = data;
	stat->len_bytes = len_bytes - DS_DIGEST_LEN;
	stat->rows = cursor.at;
	stat->rows_n = n;
	return true;
}

/* The whole file into the arena; NULL if it cannot be had. */
static const uint8_t *read_file(struct ds_arena *arena, const char *path, size_t *ret_len)
{
	_ds_cleanup_close_ int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	struct stat st;
	uint8_t *data;

	if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) ||
	    (uint64_t)st.st_size > STAT_FILE_MAX)
		return NULL;
	data = ds_arena_calloc(arena, 1, (size_t)st.st_size);
	if (!data || ds_read_full(fd, data, (size_t)st.st_size, ret_len) < 0)
		return NULL;
	return data;
}

int commit_stat_load(const char *state_dir, const char *source, const char *scratch,
		     struct commit_stat **ret_stat)
{
	struct commit_stat *stat = ds_calloc(1, sizeof(*stat));
	_ds_cleanup_free_ char *path = state_dir ? file_path(state_dir, source) : NULL;
	const uint8_t *data;
	size_t len;

	if (!stat || ds_arena_new(scratch, &stat->arena) < 0) {
		ds_free(stat);
		return -ENOMEM;
	}
	data = path ? read_file(stat->arena, path, &len) : NULL;
	if (data && !parse(stat, data, len))
		stat->rows_n = 0;
	*ret_stat = stat;
	return 0;
}

struct commit_stat *commit_stat_free(struct commit_stat *stat)
{
	if (!stat)
		return NULL;
	ds_arena_free(stat->arena);
	ds_free(stat);
	return NULL;
}

static void put_identity(uint8_t *at, const struct commit_node *node)
{
	ds_put_le64(at, node->dev);
	ds_put_le64(at + 8, node->ino);
	ds_put_le64(at + 16, node->size_bytes);
	ds_put_le64(at + 24, (uint64_t)node->mtime.s);
	ds_put_le32(at + 32, node->mtime.ns);
	ds_put_le64(at + 36, (uint64_t)node->ctime.s);
	ds_put_le32(at + 44, node->ctime.ns);
}

void commit_stat_enter(struct commit_stat *stat, const char *path, struct commit_stat_dir *ret_dir)
{
	uint64_t low = 0, high = stat->rows_n, off, len;
	const uint8_t *row;
	struct ds_digest key;

	*ret_dir = (struct commit_stat_dir){.stat = stat};
	if (!stat->rows_n || ds_digest_of(path, strlen(path), &key) < 0)
		return;
	while (low < high) {
		uint64_t middle = low + (high - low) / 2;

		if (memcmp(stat->rows + middle * STAT_ROW_LEN, key.bytes, STAT_KEY_LEN) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	row = stat->rows + low * STAT_ROW_LEN;
	if (low == stat->rows_n || memcmp(row, key.bytes, STAT_KEY_LEN) != 0)
		return;
	off = ds_get_le64(row + STAT_KEY_LEN);
	len = ds_get_le64(row + STAT_KEY_LEN + 8);
	if (off > stat->len_bytes || len > stat->len_bytes - off)
		return;
	ret_dir->at = stat->data + off;
	ret_dir->end = ret_dir->at + len;
}

bool commit_stat_has(struct commit_stat_dir *dir, const struct commit_node *node,
		     struct ds_digest *ret_digest)
{
	uint8_t identity[IDENTITY_LEN];
	int order = -1;

	while (order < 0 && dir->at < dir->end) {
		size_t name_len = dir->at[0], len = 1 + name_len + IDENTITY_LEN + DS_DIGEST_LEN;
		const uint8_t *entry = dir->at;

		if (len > (size_t)(dir->end - dir->at))
			return false;
		order = ds_name_compare((const char *)entry + 1, name_len, node->name,
					node->name_len);
		if (order > 0)
			return false;
		dir->at += len;
		if (order < 0)
			continue;
		put_identity(identity, node);
		entry += 1 + name_len;
		if (memcmp(entry, identity, IDENTITY_LEN) != 0)
			return false;
		memcpy(ret_digest->bytes, entry + IDENTITY_LEN, DS_DIGEST_LEN);
	}
	return order == 0;
}

static int fill_directory(struct commit_stat *stat, struct commit_node *node, bool *ret_knows_all)
{
	_ds_cleanup_free_ char *path = commit_node_path(node);
	struct commit_stat_dir known;

	if (!path)
		return -ENOMEM;
	commit_stat_enter(stat, path, &known);
	for (uint32_t i = 0; i < node->children_n && *ret_knows_all; i++) {
		struct commit_node *file = &node->children[i];

		if (file->type == DS_ENTRY_FILE && !file->reject &&
		    commit_node_content(file) == file)
			*ret_knows_all = !commit_node_is_unsure(file) &&
					 commit_stat_has(&known, file, &file->digest);
	}
	return 0;
}

int commit_stat_fill(struct commit_stat *stat, struct commit_tree *tree, bool *ret_knows_all)
{
	struct commit_node *root = &tree->root;
	int r = 0;

	*ret_knows_all = true;
	for (struct commit_node *node = root; r == 0 && node && *ret_knows_all;
	     node = commit_node_next(root, node, true))
		if (node->children_n)
			r = fill_directory(stat, node, ret_knows_all);
	return r;
}

static bool is_settled(const struct commit_tree *tree, struct ds_time time)
{
	return ds_time_compare(ds_time_add_ns(time, STAT_SETTLED_NS), tree->scanned) < 0;
}

static bool is_kept(const struct commit_tree *tree, struct commit_node *node)
{
	const struct commit_node *content = commit_node_content(node);

	return node->type == DS_ENTRY_FILE && !node->reject && content->is_done &&
	       !content->is_uncached && is_settled(tree, content->mtime) &&
	       is_settled(tree, content->ctime);
}

/* What the file takes. */
static size_t count(const struct commit_tree *tree, uint64_t *ret_rows_n)
{
	struct commit_node *root = (struct commit_node *)(uintptr_t)&tree->root;
	const struct commit_node *last = NULL;
	size_t len = STAT_HEAD_LEN;
	uint64_t rows_n = 0;

	for (struct commit_node *node = root; node; node = commit_node_next(root, node, true)) {
		for (uint32_t i = 0; i < node->children_n; i++) {
			if (!is_kept(tree, &node->children[i]))
				continue;
			rows_n += last != node;
			last = node;
			len += 1u + node->children[i].name_len + IDENTITY_LEN + DS_DIGEST_LEN;
		}
	}
	*ret_rows_n = rows_n;
	return len + rows_n * STAT_ROW_LEN;
}

static uint8_t *put_entry(uint8_t *at, struct commit_node *node)
{
	const struct commit_node *content = commit_node_content(node);

	*at++ = node->name_len;
	memcpy(at, node->name, node->name_len);
	at += node->name_len;
	put_identity(at, content);
	memcpy(at + IDENTITY_LEN, content->digest.bytes, DS_DIGEST_LEN);
	return at + IDENTITY_LEN + DS_DIGEST_LEN;
}

static int put_row(uint8_t *row, const struct commit_node *dir, uint64_t off, uint64_t len)
{
	_ds_cleanup_free_ char *path = commit_node_path(dir);
	struct ds_digest digest;
	int r = path ? ds_digest_of(path, strlen(path), &digest) : -ENOMEM;

	if (r < 0)
		return r;
	memcpy(row, digest.bytes, STAT_KEY_LEN);
	ds_put_le64(row + STAT_KEY_LEN, off);
	ds_put_le64(row + STAT_KEY_LEN + 8, len);
	return 0;
}

static int compare_rows(const void *a, const void *b)
{
	return memcmp(a, b, STAT_KEY_LEN);
}

static int put_directories(const struct commit_tree *tree, uint8_t *data, uint64_t rows_n)
{
	struct commit_node *root = (struct commit_node *)(uintptr_t)&tree->root;
	uint8_t *row = data + STAT_HEAD_LEN, *at = row + rows_n * STAT_ROW_LEN;
	int r = 0;

	for (struct commit_node *node = root; r == 0 && node;
	     node = commit_node_next(root, node, true)) {
		uint8_t *start = at;

		for (uint32_t i = 0; i < node->children_n; i++)
			if (is_kept(tree, &node->children[i]))
				at = put_entry(at, &node->children[i]);
		if (at == start)
			continue;
		r = put_row(row, node, (uint64_t)(start - data), (uint64_t)(at - start));
		row += STAT_ROW_LEN;
	}
	if (r == 0)
		qsort(data + STAT_HEAD_LEN, rows_n, STAT_ROW_LEN, compare_rows);
	return r;
}

/* The whole file, in the arena. */
static int build(struct ds_arena *arena, const struct commit_tree *tree, uint8_t **ret_data,
		 size_t *ret_len)
{
	struct ds_digest digest;
	uint64_t rows_n;
	size_t len = count(tree, &rows_n);
	uint8_t *data;
	int r;

	if (len + DS_DIGEST_LEN > STAT_FILE_MAX)
		return -DS_E_LIMIT;
	data = ds_arena_calloc(arena, 1, len + DS_DIGEST_LEN);
	if (!data)
		return -ENOMEM;
	memcpy(data, STAT_MAGIC, 8);
	ds_put_le32(data + 8, STAT_VERSION);
	ds_put_le64(data + 16, rows_n);
	r = put_directories(tree, data, rows_n);
	if (r == 0)
		r = ds_digest_of(data, len, &digest);
	if (r < 0)
		return r;
	memcpy(data + len, digest.bytes, DS_DIGEST_LEN);
	*ret_data = data;
	*ret_len = len + DS_DIGEST_LEN;
	return 0;
}

static void save(struct ds_arena *arena, const char *dir, const char *name,
		 const struct commit_tree *tree)
{
	_ds_cleanup_close_ int dir_fd = -1;
	uint8_t *data;
	size_t len;

	if (build(arena, tree, &data, &len) < 0 || ds_mkdir_p(AT_FDCWD, dir, 0700) < 0)
		return;
	dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir_fd >= 0)
		ds_file_write_atomic(dir_fd, name, data, len, 0600, DS_FILE_REPLACE, false);
}

void commit_stat_save(const char *state_dir, const char *source, const char *scratch,
		      const struct commit_tree *tree)
{
	_ds_cleanup_free_ char *path = state_dir ? file_path(state_dir, source) : NULL;
	char *slash = path ? strrchr(path, '/') : NULL;
	struct ds_arena *arena;

	if (!slash || ds_arena_new(scratch, &arena) < 0)
		return;
	*slash = '\0';
	save(arena, path, slash + 1, tree);
	ds_arena_free(arena);
}
