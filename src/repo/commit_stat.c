/*
 * File: "dsfsstat", u32 version, u32 zero, u64 entries, entries of 96 bytes in order of their keys, digest of all before.
 * Entry: first 16 bytes of the path's digest, u64 device, inode, size, i64 and u32 of mtime and of ctime, digest.
 */
#include "repo/commit_stat.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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
	struct ds_buf data;
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

static bool parse(struct commit_stat *stat)
{
	struct ds_cursor cursor = ds_cursor_of(stat->data.data, stat->data.len_bytes);
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
	if (ds_digest_of(stat->data.data, stat->data.len_bytes - DS_DIGEST_LEN, &digest) < 0 ||
	    memcmp(digest.bytes, stat->data.data + stat->data.len_bytes - DS_DIGEST_LEN,
		   DS_DIGEST_LEN) != 0)
		return false;
	stat->entries = cursor.at;
	stat->entries_n = n;
	return true;
}

int commit_stat_load(const char *state_dir, const char *source, struct commit_stat **ret_stat)
{
	struct commit_stat *stat = ds_calloc(1, sizeof(*stat));
	_ds_cleanup_free_ char *path = state_dir ? file_path(state_dir, source) : NULL;

	if (!stat)
		return -ENOMEM;
	ds_buf_init(&stat->data, STAT_FILE_MAX);
	if (path && (ds_file_read_at(AT_FDCWD, path, &stat->data) < 0 || !parse(stat))) {
		ds_buf_clear(&stat->data);
		stat->entries_n = 0;
	}
	*ret_stat = stat;
	return 0;
}

struct commit_stat *commit_stat_free(struct commit_stat *stat)
{
	if (!stat)
		return NULL;
	ds_buf_release(&stat->data);
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

static int compare_entries(const void *a, const void *b)
{
	return memcmp(a, b, 16);
}

static bool is_settled(const struct commit_tree *tree, struct ds_time time)
{
	return ds_time_compare(ds_time_add_ns(time, STAT_SETTLED_NS), tree->scanned) < 0;
}

static int build(const struct commit_tree *tree, struct ds_buf *buf)
{
	const struct commit_node *root = &tree->root;
	struct commit_node *node = (struct commit_node *)(uintptr_t)root;
	struct ds_digest digest;
	uint64_t n = 0;
	int r = ds_buf_append(buf, STAT_MAGIC, 8);

	if (r == 0)
		r = ds_buf_append_le32(buf, STAT_VERSION);
	if (r == 0)
		r = ds_buf_append_le32(buf, 0);
	if (r == 0)
		r = ds_buf_append_le64(buf, 0);
	for (; r == 0 && node; node = commit_node_next(root, node, true)) {
		const struct commit_node *content = commit_node_content(node);
		_ds_cleanup_free_ char *path = NULL;
		uint8_t raw[STAT_ENTRY_LEN];

		if (node->type != DS_ENTRY_FILE || node->reject || !content->is_done ||
		    content->is_uncached || !is_settled(tree, content->mtime) ||
		    !is_settled(tree, content->ctime))
			continue;
		path = commit_node_path(node);
		r = path ? ds_digest_of(path, strlen(path), &digest) : -ENOMEM;
		if (r < 0)
			break;
		memcpy(raw, digest.bytes, 16);
		put_identity(raw + 16, content);
		memcpy(raw + 64, content->digest.bytes, DS_DIGEST_LEN);
		r = ds_buf_append(buf, raw, sizeof(raw));
		n++;
	}
	if (r < 0)
		return r;
	qsort(buf->data + STAT_HEAD_LEN, n, STAT_ENTRY_LEN, compare_entries);
	ds_put_le64(buf->data + 16, n);
	r = ds_digest_of(buf->data, buf->len_bytes, &digest);
	return r < 0 ? r : ds_buf_append(buf, digest.bytes, DS_DIGEST_LEN);
}

void commit_stat_save(const char *state_dir, const char *source, const struct commit_tree *tree)
{
	_ds_cleanup_free_ char *path = state_dir ? file_path(state_dir, source) : NULL;
	_ds_cleanup_buf_ struct ds_buf buf = DS_BUF_INIT(STAT_FILE_MAX);
	_ds_cleanup_close_ int dir_fd = -1;
	char *slash = path ? strrchr(path, '/') : NULL;

	if (!slash || build(tree, &buf) < 0)
		return;
	*slash = '\0';
	if (ds_mkdir_p(AT_FDCWD, path, 0700) < 0)
		return;
	dir_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir_fd >= 0)
		ds_file_write_atomic(dir_fd, slash + 1, buf.data, buf.len_bytes, 0600,
				     DS_FILE_REPLACE, false);
}
