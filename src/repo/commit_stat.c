/*
 * File: "dsfsstat", u32 version, u32 zero; blocks of entries, a directory's side by side and in byte order of their names; rows of
 * directories in order of their keys; u64 offset of the rows, u64 their number, version (zeros: none), digest of what is from the rows on.
 * Block: u32 length of its entries, first 16 bytes of their digest, the entries.
 * Row: first 16 bytes of the path's digest, u64 offset of the first block in the file, u64 length of all blocks.
 * Entry: u8 length of the name, u8 flags, name, u64 device, inode, size, i64 and u32 of mtime and of ctime, digest.
 *
 * INV-1  A block is looked at only when its digest was found right: what is damaged is not known, nor what follows in its directory.
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
#include "util/work.h"

#define STAT_MAGIC	"dsfsstat"
#define STAT_VERSION	5u
#define STAT_HEAD_LEN	16u
#define STAT_KEY_LEN	16u
#define STAT_ROW_LEN	32u
#define TAIL_HEAD_LEN	(16u + DS_DIGEST_LEN)
#define STAT_TAIL_LEN	(TAIL_HEAD_LEN + DS_DIGEST_LEN)
#define STAT_FILE_MAX	DS_GIB(8)
#define STAT_SETTLED_NS (2 * DS_NS_PER_S)
#define ENTRY_HEAD_LEN	2u
#define IDENTITY_LEN	48u

/* Of the entries: read, checked and looked at in a cache of the processor. */
#define BLOCK_MAX      DS_KIB(128)
#define BLOCK_HEAD_LEN 20u
#define BUFFER_LEN     (4 * (BLOCK_HEAD_LEN + BLOCK_MAX))

/* The version has a row that says just this. */
#define FLAG_ROW 1u
/* The identity does not tell: in some file systems a mode changes without the times. */
#define FLAG_EXECUTABLE 2u

struct commit_stat {
	struct ds_arena *arena;
	int fd;
	uint8_t *rows;
	uint64_t rows_n;
	uint64_t rows_off; /* in the file: the end of the blocks */
	struct ds_digest version;
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

/* The rows into the arena. */
static bool load_rows(struct commit_stat *stat, uint64_t file_len)
{
	uint8_t head[STAT_HEAD_LEN], tail[STAT_TAIL_LEN];
	struct ds_digest digest;
	uint64_t n, off;
	size_t len, got;

	if (file_len < STAT_HEAD_LEN + STAT_TAIL_LEN || file_len > STAT_FILE_MAX ||
	    ds_pread_full(stat->fd, head, sizeof(head), 0, &got) < 0 || got < sizeof(head) ||
	    memcmp(head, STAT_MAGIC, 8) != 0 || ds_get_le32(head + 8) != STAT_VERSION ||
	    ds_pread_full(stat->fd, tail, sizeof(tail), file_len - sizeof(tail), &got) < 0 ||
	    got < sizeof(tail))
		return false;
	off = ds_get_le64(tail);
	n = ds_get_le64(tail + 8);
	if (n > (file_len - STAT_HEAD_LEN - STAT_TAIL_LEN) / STAT_ROW_LEN ||
	    off != file_len - STAT_TAIL_LEN - n * STAT_ROW_LEN)
		return false;
	len = n * STAT_ROW_LEN + TAIL_HEAD_LEN;
	stat->rows = ds_arena_calloc(stat->arena, 1, len);
	if (!stat->rows || ds_pread_full(stat->fd, stat->rows, len, off, &got) < 0 || got < len ||
	    ds_digest_of(stat->rows, len, &digest) < 0 ||
	    memcmp(digest.bytes, tail + TAIL_HEAD_LEN, DS_DIGEST_LEN) != 0)
		return false;
	memcpy(stat->version.bytes, tail + 16, DS_DIGEST_LEN);
	stat->rows_n = n;
	stat->rows_off = off;
	return true;
}

int commit_stat_load(const char *state_dir, const char *source, const char *scratch,
		     struct commit_stat **ret_stat)
{
	struct commit_stat *stat = ds_calloc(1, sizeof(*stat));
	_ds_cleanup_free_ char *path = state_dir ? file_path(state_dir, source) : NULL;
	struct stat st;

	if (!stat)
		return -ENOMEM;
	stat->fd = path ? open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC) : -1;
	if (ds_arena_new(scratch, &stat->arena) < 0) {
		commit_stat_free(stat);
		return -ENOMEM;
	}
	if (stat->fd >= 0 && (fstat(stat->fd, &st) < 0 || !S_ISREG(st.st_mode) ||
			      !load_rows(stat, (uint64_t)st.st_size)))
		ds_close_ptr(&stat->fd);
	*ret_stat = stat;
	return 0;
}

struct commit_stat *commit_stat_free(struct commit_stat *stat)
{
	if (!stat)
		return NULL;
	ds_close_ptr(&stat->fd);
	ds_arena_free(stat->arena);
	ds_free(stat);
	return NULL;
}

const struct ds_digest *commit_stat_version(const struct commit_stat *stat)
{
	return ds_digest_is_zero(&stat->version) ? NULL : &stat->version;
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

static void enter(const struct commit_stat *stat, struct commit_stat_dir *dir, const char *path)
{
	uint64_t low = 0, high = stat->rows_n, off, len;
	const uint8_t *row;
	struct ds_digest key;

	*dir = (struct commit_stat_dir){.stat = stat, .block = dir->block};
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
	if (off > stat->rows_off || len > stat->rows_off - off)
		return;
	dir->off = off;
	dir->end_off = off + len;
}

void commit_stat_leave(struct commit_stat_dir *dir)
{
	ds_free(dir->block);
	*dir = (struct commit_stat_dir){0};
}

/* The next block of the directory; false: there is none, or it is damaged, and so nothing more is known. */
static bool load_block(struct commit_stat_dir *dir)
{
	size_t len = (size_t)DS_MIN(dir->end_off - dir->off, (uint64_t)BLOCK_HEAD_LEN + BLOCK_MAX);
	uint64_t off = dir->off;
	struct ds_digest digest;
	size_t got;
	uint32_t n;

	dir->off = dir->end_off;
	if (!dir->block)
		dir->block = ds_malloc(BLOCK_HEAD_LEN + BLOCK_MAX);
	if (len <= BLOCK_HEAD_LEN || !dir->block ||
	    ds_pread_full(dir->stat->fd, dir->block, len, off, &got) < 0 || got < len)
		return false;
	n = ds_get_le32(dir->block);
	if (!n || n > len - BLOCK_HEAD_LEN ||
	    ds_digest_of(dir->block + BLOCK_HEAD_LEN, n, &digest) < 0 ||
	    memcmp(digest.bytes, dir->block + 4, STAT_KEY_LEN) != 0)
		return false;
	dir->off = off + BLOCK_HEAD_LEN + n;
	dir->at = dir->block + BLOCK_HEAD_LEN;
	dir->end = dir->at + n;
	return true;
}

/* The files of a directory are asked for in the order of their names. */
static bool ask_file(struct commit_stat_dir *dir, struct commit_node *node)
{
	uint8_t identity[IDENTITY_LEN];
	int order = -1;

	while (order < 0 && (dir->at < dir->end || load_block(dir))) {
		const uint8_t *entry = dir->at;
		size_t name_len = entry[0];
		size_t len = ENTRY_HEAD_LEN + name_len + IDENTITY_LEN + DS_DIGEST_LEN;

		if (len > (size_t)(dir->end - dir->at))
			return false;
		order = ds_name_compare((const char *)entry + ENTRY_HEAD_LEN, name_len, node->name,
					node->name_len);
		if (order > 0)
			return false;
		dir->at += len;
		if (order < 0)
			continue;
		put_identity(identity, node);
		if (memcmp(entry + ENTRY_HEAD_LEN + name_len, identity, IDENTITY_LEN) != 0)
			return false;
		node->is_known = true;
		node->is_row_known = (entry[1] & FLAG_ROW) &&
				     !!(entry[1] & FLAG_EXECUTABLE) == node->is_executable;
		memcpy(node->digest.bytes, entry + ENTRY_HEAD_LEN + name_len + IDENTITY_LEN,
		       DS_DIGEST_LEN);
	}
	return order == 0;
}

uint64_t commit_stat_ask(const struct commit_stat *stat, struct commit_stat_dir *dir,
			 const char *path, struct commit_node *node)
{
	uint64_t unknown_n = 0;

	enter(stat, dir, path);
	for (uint32_t i = 0; i < node->children_n; i++) {
		struct commit_node *child = &node->children[i];

		if (child->type == DS_ENTRY_FILE && !child->reject)
			unknown_n += !ask_file(dir, child);
	}
	return unknown_n;
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

struct writer {
	int fd;
	uint64_t off; /* in the file, of the buffer */
	uint8_t *buffer, *at;
	uint8_t *block; /* in the buffer; NULL: none is begun */
	struct ds_arena *arena;
	uint8_t *rows;
	uint64_t rows_n, rows_capacity_n;
	struct ds_hasher *hasher; /* of the rows and the tail */
};

static uint64_t writer_off(const struct writer *writer)
{
	return writer->off + (uint64_t)(writer->at - writer->buffer);
}

static int flush(struct writer *writer)
{
	size_t len = (size_t)(writer->at - writer->buffer);
	int r = ds_write_full(writer->fd, writer->buffer, len);

	writer->off += len;
	writer->at = writer->buffer;
	if (r == 0 && writer->off > STAT_FILE_MAX)
		return -DS_E_LIMIT;
	return r;
}

/* A block of entries ends here. */
static int end_block(struct writer *writer)
{
	uint8_t *block = writer->block;
	struct ds_digest digest;
	size_t len;
	int r;

	if (!block)
		return 0;
	writer->block = NULL;
	len = (size_t)(writer->at - block - BLOCK_HEAD_LEN);
	r = ds_digest_of(block + BLOCK_HEAD_LEN, len, &digest);
	if (r < 0)
		return r;
	ds_put_le32(block, (uint32_t)len);
	memcpy(block + 4, digest.bytes, STAT_KEY_LEN);
	return writer->buffer + BUFFER_LEN - writer->at < (ptrdiff_t)(BLOCK_HEAD_LEN + BLOCK_MAX)
		       ? flush(writer)
		       : 0;
}

static int put_entry(struct writer *writer, struct commit_node *node)
{
	const struct commit_node *content = commit_node_content(node);
	size_t len = ENTRY_HEAD_LEN + node->name_len + IDENTITY_LEN + DS_DIGEST_LEN;
	uint8_t *at;
	int r = 0;

	if (writer->block &&
	    (size_t)(writer->at - writer->block) + len > BLOCK_HEAD_LEN + BLOCK_MAX)
		r = end_block(writer);
	if (r < 0)
		return r;
	if (!writer->block) {
		writer->block = writer->at;
		writer->at += BLOCK_HEAD_LEN;
	}
	at = writer->at;
	*at++ = node->name_len;
	/* A row with extents is looked at each time, also when the small file had one of an import until now. */
	*at++ = (!node->links && !node->extents_n && !node->old_has_extents ? FLAG_ROW : 0) |
		(content->is_executable ? FLAG_EXECUTABLE : 0);
	memcpy(at, node->name, node->name_len);
	at += node->name_len;
	put_identity(at, content);
	memcpy(at + IDENTITY_LEN, content->digest.bytes, DS_DIGEST_LEN);
	writer->at += len;
	return 0;
}

static int put_row(struct writer *writer, const struct commit_node *dir, uint64_t off)
{
	_ds_cleanup_free_ char *path = commit_node_path(dir);
	struct ds_digest digest;
	uint8_t *row;
	int r = path ? ds_digest_of(path, strlen(path), &digest) : -ENOMEM;

	if (r < 0)
		return r;
	if (writer->rows_n == writer->rows_capacity_n) {
		uint64_t n = DS_MAX(writer->rows_capacity_n * 2, (uint64_t)256);
		uint8_t *rows = ds_arena_calloc(writer->arena, n, STAT_ROW_LEN);

		if (!rows)
			return -ENOMEM;
		if (writer->rows_n)
			memcpy(rows, writer->rows, writer->rows_n * STAT_ROW_LEN);
		writer->rows = rows;
		writer->rows_capacity_n = n;
	}
	row = writer->rows + writer->rows_n++ * STAT_ROW_LEN;
	memcpy(row, digest.bytes, STAT_KEY_LEN);
	ds_put_le64(row + STAT_KEY_LEN, off);
	ds_put_le64(row + STAT_KEY_LEN + 8, writer_off(writer) - off);
	return 0;
}

static int put_directory(struct writer *writer, const struct commit_tree *tree,
			 const struct commit_node *dir)
{
	uint64_t off = writer_off(writer);
	int r = 0;

	for (uint32_t i = 0; r == 0 && i < dir->children_n; i++)
		if (is_kept(tree, &dir->children[i]))
			r = put_entry(writer, &dir->children[i]);
	if (r == 0)
		r = end_block(writer);
	return r < 0 || writer_off(writer) == off ? r : put_row(writer, dir, off);
}

static int compare_rows(const void *a, const void *b)
{
	return memcmp(a, b, STAT_KEY_LEN);
}

static int put_rows(struct writer *writer)
{
	size_t len = writer->rows_n * STAT_ROW_LEN;
	int r = flush(writer);

	if (r < 0)
		return r;
	if (writer->rows_n)
		qsort(writer->rows, writer->rows_n, STAT_ROW_LEN, compare_rows);
	ds_hasher_update(writer->hasher, writer->rows, len);
	return ds_write_full(writer->fd, writer->rows, len);
}

static int put_tail(struct writer *writer, const struct ds_digest *version)
{
	uint8_t tail[STAT_TAIL_LEN] = {0};
	struct ds_digest digest;

	ds_put_le64(tail, writer->off);
	ds_put_le64(tail + 8, writer->rows_n);
	if (version)
		memcpy(tail + 16, version->bytes, DS_DIGEST_LEN);
	ds_hasher_update(writer->hasher, tail, TAIL_HEAD_LEN);
	ds_hasher_finish(writer->hasher, &digest);
	memcpy(tail + TAIL_HEAD_LEN, digest.bytes, DS_DIGEST_LEN);
	return ds_write_full(writer->fd, tail, sizeof(tail));
}

struct commit_stat_saving {
	struct ds_work_item item;
	struct ds_work *work;
	struct writer writer;
	int result;	  /* of all but the tail */
	char *path, *tmp; /* of the file; and as long as it is not whole */
	const struct commit_tree *tree;
	const volatile int *interrupted;
	_Atomic bool is_dropped;
};

static int put_all(struct commit_stat_saving *saving)
{
	struct writer *writer = &saving->writer;
	const struct commit_tree *tree = saving->tree;
	struct commit_node *root = (struct commit_node *)(uintptr_t)&tree->root;
	int r = 0;

	memcpy(writer->buffer, STAT_MAGIC, 8);
	ds_put_le32(writer->buffer + 8, STAT_VERSION);
	ds_put_le32(writer->buffer + 12, 0);
	writer->at = writer->buffer + STAT_HEAD_LEN;
	for (struct commit_node *node = root; r == 0 && node;
	     node = commit_node_next(root, node, true)) {
		if (saving->is_dropped || (saving->interrupted && *saving->interrupted))
			r = -DS_E_INTERRUPTED;
		else if (node->children_n)
			r = put_directory(writer, tree, node);
	}
	return r < 0 ? r : put_rows(writer);
}

/* The directory of the cache files. */
static int make_dir(const char *path)
{
	_ds_cleanup_free_ char *dir = ds_strdup(path);

	if (!dir)
		return -ENOMEM;
	*strrchr(dir, '/') = '\0';
	return ds_mkdir_p(AT_FDCWD, dir, 0700);
}

static void run_saving(struct ds_work_item *item)
{
	struct commit_stat_saving *saving = ds_container_of(item, struct commit_stat_saving, item);

	saving->result = make_dir(saving->path);
	if (saving->result == 0)
		saving->writer.fd =
			open(saving->tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (saving->result == 0)
		saving->result = saving->writer.fd < 0 ? -errno : put_all(saving);
}

struct commit_stat_saving *commit_stat_save_begin(const char *state_dir, const char *source,
						  const char *scratch,
						  const struct commit_tree *tree,
						  const volatile int *interrupted)
{
	struct commit_stat_saving *saving = ds_calloc(1, sizeof(*saving));

	if (!saving)
		return NULL;
	saving->item.run = run_saving;
	saving->tree = tree;
	saving->interrupted = interrupted;
	saving->writer.fd = -1;
	saving->writer.buffer = ds_malloc(BUFFER_LEN);
	saving->path = state_dir ? file_path(state_dir, source) : NULL;
	saving->tmp = ds_asprintf("%s/stat-new", scratch);
	if (!saving->path || !saving->tmp || !saving->writer.buffer ||
	    ds_arena_new(scratch, &saving->writer.arena) < 0 ||
	    ds_hasher_new(&saving->writer.hasher) < 0 ||
	    ds_work_new(1, "dsfs-stat", &saving->work) < 0)
		return commit_stat_save_end(saving, NULL);
	ds_work_submit(saving->work, &saving->item, false);
	return saving;
}

struct commit_stat_saving *commit_stat_save_end(struct commit_stat_saving *saving,
						const struct ds_digest *version)
{
	struct writer *writer;
	int r;

	if (!saving)
		return NULL;
	ds_work_free(saving->work);
	writer = &saving->writer;
	if (writer->fd >= 0) {
		r = saving->is_dropped ? -DS_E_INTERRUPTED : saving->result;
		if (r == 0)
			r = put_tail(writer, version);
		if (close(writer->fd) < 0 && r == 0)
			r = -errno;
		if (r < 0 || rename(saving->tmp, saving->path) < 0)
			unlink(saving->tmp);
	}
	ds_hasher_free(writer->hasher);
	ds_arena_free(writer->arena);
	ds_free(writer->buffer);
	ds_free(saving->path);
	ds_free(saving->tmp);
	ds_free(saving);
	return NULL;
}

struct commit_stat_saving *commit_stat_save_drop(struct commit_stat_saving *saving)
{
	if (saving)
		saving->is_dropped = true;
	return commit_stat_save_end(saving, NULL);
}
