/*
 * File: "dsfsstat", u32 version, u32 zero, u64 entries, entries of 96 bytes in order of their keys, digest of all before.
 * Entry: first 16 bytes of the path's digest, u64 device, inode, size, i64 and u32 of mtime and of ctime, digest.
 */
#include "repo/commit_stat.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/bytes.h"
#include "util/error.h"
#include "util/file.h"
#include "util/mem.h"

#define STAT_MAGIC	"dsfsstat"
#define STAT_VERSION	1u
#define STAT_HEAD_LEN	24u
#define STAT_ENTRY_LEN	96u
#define STAT_FILE_MAX	DS_GIB(4)
#define STAT_SETTLED_NS (2 * DS_NS_PER_S)

struct commit_stat {
	struct ds_arena *arena;
	const uint8_t *entries;
	uint64_t entries_n;
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
	    n > STAT_FILE_MAX / STAT_ENTRY_LEN ||
	    cursor.left_bytes != n * STAT_ENTRY_LEN + DS_DIGEST_LEN)
		return false;
	if (ds_digest_of(data, len_bytes - DS_DIGEST_LEN, &digest) < 0 ||
	    memcmp(digest.bytes, data + len_bytes - DS_DIGEST_LEN, DS_DIGEST_LEN) != 0)
		return false;
	stat->entries = cursor.at;
	stat->entries_n = n;
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
		stat->entries_n = 0;
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

bool commit_stat_has(const struct commit_stat *stat, const char *path,
		     const struct commit_node *node, struct ds_digest *ret_digest)
{
	uint64_t low = 0, high = stat->entries_n;
	uint8_t identity[48];
	struct ds_digest key;

	if (!stat->entries_n || ds_digest_of(path, strlen(path), &key) < 0)
		return false;
	while (low < high) {
		uint64_t middle = low + (high - low) / 2;

		if (memcmp(stat->entries + middle * STAT_ENTRY_LEN, key.bytes, 16) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == stat->entries_n ||
	    memcmp(stat->entries + low * STAT_ENTRY_LEN, key.bytes, 16) != 0)
		return false;
	put_identity(identity, node);
	if (memcmp(stat->entries + low * STAT_ENTRY_LEN + 16, identity, sizeof(identity)) != 0)
		return false;
	memcpy(ret_digest->bytes, stat->entries + low * STAT_ENTRY_LEN + 64, DS_DIGEST_LEN);
	return true;
}

/* An entry to be sorted, with the start of its key: entries lie in an arena, and are looked at only where that does not decide. */
struct order {
	uint64_t key;
	const uint8_t *entry;
};

static int compare_entries(const void *a, const void *b)
{
	const struct order *x = a, *y = b;

	if (x->key != y->key)
		return x->key < y->key ? -1 : 1;
	return memcmp(x->entry, y->entry, 16);
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

static int put_entry(uint8_t *at, struct commit_node *node)
{
	const struct commit_node *content = commit_node_content(node);
	_ds_cleanup_free_ char *path = commit_node_path(node);
	struct ds_digest digest;
	int r = path ? ds_digest_of(path, strlen(path), &digest) : -ENOMEM;

	if (r < 0)
		return r;
	memcpy(at, digest.bytes, 16);
	put_identity(at + 16, content);
	memcpy(at + 64, content->digest.bytes, DS_DIGEST_LEN);
	return 0;
}

/* The n entries of a tree in order of their keys, each of STAT_ENTRY_LEN. */
static int put_entries(struct ds_arena *arena, const struct commit_tree *tree, size_t n,
		       uint8_t *ret_entries)
{
	struct commit_node *root = (struct commit_node *)(uintptr_t)&tree->root;
	uint8_t *unsorted = ds_arena_calloc(arena, n, STAT_ENTRY_LEN);
	_ds_cleanup_free_ struct order *orders = ds_calloc(n, sizeof(*orders));
	size_t i = 0;
	int r = unsorted && orders ? 0 : -ENOMEM;

	for (struct commit_node *node = root; r == 0 && node;
	     node = commit_node_next(root, node, true)) {
		if (!is_kept(tree, node))
			continue;
		orders[i].entry = unsorted + i * STAT_ENTRY_LEN;
		r = put_entry(unsorted + i * STAT_ENTRY_LEN, node);
		memcpy(&orders[i].key, orders[i].entry, sizeof(orders[i].key));
		orders[i].key = be64toh(orders[i].key);
		i++;
	}
	if (r < 0)
		return r;
	qsort(orders, n, sizeof(*orders), compare_entries);
	for (i = 0; i < n; i++)
		memcpy(ret_entries + i * STAT_ENTRY_LEN, orders[i].entry, STAT_ENTRY_LEN);
	return 0;
}

/* The whole file, in the arena. */
static int build(struct ds_arena *arena, const struct commit_tree *tree, uint8_t **ret_data,
		 size_t *ret_len)
{
	struct commit_node *root = (struct commit_node *)(uintptr_t)&tree->root;
	struct ds_digest digest;
	uint8_t *data;
	size_t n = 0, len;
	int r;

	for (struct commit_node *node = root; node; node = commit_node_next(root, node, true))
		n += is_kept(tree, node);
	len = STAT_HEAD_LEN + n * STAT_ENTRY_LEN;
	if (len + DS_DIGEST_LEN > STAT_FILE_MAX)
		return -DS_E_LIMIT;
	data = ds_arena_calloc(arena, 1, len + DS_DIGEST_LEN);
	if (!data)
		return -ENOMEM;
	memcpy(data, STAT_MAGIC, 8);
	ds_put_le32(data + 8, STAT_VERSION);
	ds_put_le64(data + 16, n);
	r = put_entries(arena, tree, n, data + STAT_HEAD_LEN);
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
