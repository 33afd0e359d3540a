/*
 * Adding, changing and removing names. The invariants stand in builder_impl.h.
 */
#include "manifest/builder_impl.h"

#include <string.h>

#include "codec/pack.h"

/* Makes `dir` the directory whose counts are being changed. -ENOENT, -ENOTDIR. */
static int begin_parent(struct ds_builder *builder, uint64_t dir)
{
	struct ds_entry entry;
	int r;

	if (builder->pending.id == dir)
		return 0;
	r = builder_flush_pending(builder);
	if (r == 0)
		r = ds_read_get(&builder->sql, dir, &entry);
	if (r < 0)
		return r;
	if (entry.type != DS_ENTRY_DIRECTORY)
		return -ENOTDIR;
	builder->pending.id = dir;
	return 0;
}

static enum ds_row_type row_type(const struct ds_entry *entry)
{
	switch (entry->type) {
	case DS_ENTRY_DIRECTORY:
		return DS_ROW_DIRECTORY;
	case DS_ENTRY_SYMLINK:
		return DS_ROW_SYMLINK;
	default:
		return entry->is_executable ? DS_ROW_EXECUTABLE : DS_ROW_FILE;
	}
}

/* Columns type .. target of W_ADD and W_SET, from parameter 6 on. */
static void bind_contents(sqlite3_stmt *stmt, const struct ds_entry *entry, size_t extents_n,
			  const char *target, size_t target_len)
{
	sqlite3_bind_int64(stmt, 6, row_type(entry));
	sqlite3_bind_int64(stmt, 7, entry->mtime.s);
	sqlite3_bind_int64(stmt, 8, entry->mtime.ns);
	sqlite3_bind_int64(stmt, 9, (sqlite3_int64)entry->size_bytes);
	sqlite3_bind_blob(stmt, 10, entry->digest.bytes, DS_DIGEST_LEN, SQLITE_STATIC);
	if (entry->type == DS_ENTRY_FILE && extents_n > 0) {
		sqlite3_bind_int64(stmt, 16, (sqlite3_int64)extents_n);
	} else if (entry->type == DS_ENTRY_FILE && entry->size_bytes > 0) {
		sqlite3_bind_int64(stmt, 11, entry->chunk.pack);
		sqlite3_bind_int64(stmt, 12, entry->chunk.ordinal);
		sqlite3_bind_int64(stmt, 13, (sqlite3_int64)entry->chunk.stored_off);
		sqlite3_bind_int64(stmt, 14, entry->chunk.stored_len_bytes);
		sqlite3_bind_int64(stmt, 15, (sqlite3_int64)entry->chunk.raw_off);
	} else if (entry->type == DS_ENTRY_SYMLINK) {
		sqlite3_bind_blob(stmt, 17, target, (int)target_len, SQLITE_STATIC);
	}
}

static bool chunk_is_valid(const struct ds_entry_chunk *chunk, uint64_t raw_len_bytes)
{
	return chunk->pack > 0 && chunk->ordinal < DS_PACK_CHUNKS_MAX &&
	       chunk->stored_off >= DS_PACK_HEAD_LEN && chunk->stored_len_bytes > 0 &&
	       chunk->stored_len_bytes <= raw_len_bytes;
}

/* What a caller must get right: the reader refuses all else. */
static void assert_contents(const struct ds_entry *entry, const struct ds_extent *extents,
			    size_t extents_n, const char *target, size_t target_len)
{
	uint64_t end = 0;

	assert(entry->mtime.ns < DS_NS_PER_S);
	assert(entry->size_bytes <= DS_FILE_SIZE_MAX && extents_n <= UINT32_MAX);
	if (entry->type == DS_ENTRY_SYMLINK) {
		assert(target_len >= 1 && target_len <= DS_TARGET_MAX);
		assert(!memchr(target, '\0', target_len));
	}
	if (entry->type != DS_ENTRY_FILE)
		return;
	assert((extents_n > 0) == (entry->size_bytes > DS_CHUNK_MAX));
	for (size_t i = 0; i < extents_n; i++) {
		assert(extents[i].off == end && extents[i].len_bytes > 0);
		assert(extents[i].is_zeros ||
		       (extents[i].len_bytes <= DS_CHUNK_MAX &&
			chunk_is_valid(&extents[i].chunk, extents[i].len_bytes)));
		end += extents[i].len_bytes;
	}
	assert(extents_n == 0 || end == entry->size_bytes);
	assert(extents_n > 0 || entry->size_bytes == 0 ||
	       (chunk_is_valid(&entry->chunk, entry->size_bytes) &&
		entry->chunk.raw_off <= INT64_MAX));
}

/* A symlink's own size and digest; what a new directory starts with; no executable bit where
 * there is none. */
static int complete(const struct ds_builder *builder, const char *target, size_t target_len,
		    struct ds_entry *entry)
{
	if (entry->type != DS_ENTRY_FILE)
		entry->is_executable = false;
	if (entry->type == DS_ENTRY_DIRECTORY) {
		entry->size_bytes = 0;
		entry->digest = builder->empty_digest;
	}
	if (entry->type != DS_ENTRY_SYMLINK)
		return 0;
	entry->size_bytes = target_len;
	return ds_digest_of(target, target_len, &entry->digest);
}

/* The references and totals of an inode, without its names, come (1) or go (-1). */
static int count_inode(struct ds_builder *builder, const struct ds_entry *entry, int change)
{
	int r;

	switch (entry->type) {
	case DS_ENTRY_DIRECTORY:
		return builder_count(builder, &builder->totals.directories, change);
	case DS_ENTRY_SYMLINK:
		return builder_count(builder, &builder->totals.symlinks, change);
	case DS_ENTRY_FILE:
		break;
	}
	r = builder_count(builder, &builder->totals.bytes, change * (int64_t)entry->size_bytes);
	if (r == 0 && entry->chunk.pack)
		r = builder_pack_count(builder, entry->chunk.pack, change);
	return r;
}

/* The totals that count names of files. */
static int count_file_names(struct ds_builder *builder, uint64_t size_bytes, int64_t change)
{
	int r = builder_count(builder, &builder->totals.files, change);

	return r < 0 ? r : builder_count_size(builder, size_bytes, change);
}

static int add_row(struct ds_builder *builder, uint64_t parent, const char *name, size_t name_len,
		   sqlite3_stmt *stmt, bool is_directory, uint64_t *ret_id)
{
	int r;

	assert(ds_name_is_valid(name, name_len));
	if (builder->next_id > DS_ENTRY_ID_MAX)
		return -DS_E_LIMIT;
	sqlite3_bind_int64(stmt, 1, (sqlite3_int64)builder->next_id);
	sqlite3_bind_int64(stmt, 2, (sqlite3_int64)parent);
	sqlite3_bind_blob(stmt, 3, name, (int)name_len, SQLITE_STATIC);
	r = builder_run(builder, stmt);
	if (r < 0)
		return r;
	builder->pending.size_change++;
	builder->pending.nlink_change += is_directory;
	*ret_id = builder->next_id++;
	return 0;
}

int ds_builder_add(struct ds_builder *builder, const struct ds_entry *entry,
		   const struct ds_extent *extents, size_t extents_n, const char *target,
		   size_t target_len, uint64_t *ret_id)
{
	sqlite3_stmt *stmt = builder->sql.stmts[W_ADD];
	struct ds_entry row = *entry;
	uint64_t id;
	int r = builder->failed;

	assert_contents(entry, extents, extents_n, target, target_len);
	if (row.type != DS_ENTRY_FILE || row.size_bytes == 0 || extents_n > 0)
		row.chunk.pack = 0;
	if (r == 0)
		r = complete(builder, target, target_len, &row);
	if (r == 0)
		r = begin_parent(builder, row.parent);
	if (r < 0)
		return r;
	sqlite3_clear_bindings(stmt);
	bind_contents(stmt, &row, extents_n, target, target_len);
	sqlite3_bind_int64(stmt, 4, row.type == DS_ENTRY_DIRECTORY ? 2 : 1);
	r = add_row(builder, row.parent, row.name, row.name_len, stmt,
		    row.type == DS_ENTRY_DIRECTORY, &id);
	if (r < 0)
		return r;
	r = count_inode(builder, &row, 1);
	if (r == 0 && row.type == DS_ENTRY_FILE)
		r = count_file_names(builder, row.size_bytes, 1);
	if (r == 0 && row.type == DS_ENTRY_FILE && extents_n > 0)
		r = builder_extents_set(builder, id, true, extents, extents_n);
	if (r == 0)
		*ret_id = id;
	return r;
}

static int set_nlink(struct ds_builder *builder, uint64_t ino, uint32_t nlink)
{
	sqlite3_stmt *stmt = builder->sql.stmts[W_SET_NLINK];

	sqlite3_bind_int64(stmt, 1, (sqlite3_int64)ino);
	sqlite3_bind_int64(stmt, 2, nlink);
	return builder_run(builder, stmt);
}

static int run_with_ids(struct ds_builder *builder, enum builder_write write, uint64_t a,
			uint64_t b)
{
	sqlite3_stmt *stmt = builder->sql.stmts[write];

	sqlite3_bind_int64(stmt, 1, (sqlite3_int64)a);
	if (sqlite3_bind_parameter_count(stmt) > 1)
		sqlite3_bind_int64(stmt, 2, (sqlite3_int64)b);
	return builder_run(builder, stmt);
}

int ds_builder_add_link(struct ds_builder *builder, uint64_t parent, const char *name,
			size_t name_len, uint64_t ino, uint64_t *ret_id)
{
	sqlite3_stmt *stmt = builder->sql.stmts[W_ADD];
	struct ds_entry first;
	uint64_t id;
	int r = builder->failed;

	if (r == 0)
		r = ds_read_get(&builder->sql, ino, &first);
	if (r < 0)
		return r;
	assert(first.type == DS_ENTRY_FILE);
	if (first.nlink == UINT32_MAX)
		return -EMLINK;
	r = begin_parent(builder, parent);
	if (r < 0)
		return r;
	sqlite3_clear_bindings(stmt);
	sqlite3_bind_int64(stmt, 5, (sqlite3_int64)ino);
	sqlite3_bind_int64(stmt, 6, DS_ROW_LINK);
	r = add_row(builder, parent, name, name_len, stmt, false, &id);
	if (r == 0)
		r = set_nlink(builder, ino, first.nlink + 1);
	if (r == 0)
		r = count_file_names(builder, first.size_bytes, 1);
	if (r == 0 && builder->has_links)
		r = run_with_ids(builder, W_LINK_PUT, ino, id);
	if (r == 0)
		*ret_id = id;
	return r;
}

int ds_builder_set(struct ds_builder *builder, uint64_t ino, const struct ds_entry *entry,
		   const struct ds_extent *extents, size_t extents_n, const char *target,
		   size_t target_len)
{
	sqlite3_stmt *stmt = builder->sql.stmts[W_SET];
	struct ds_entry row = *entry, old;
	int r = builder->failed;

	assert(entry->type != DS_ENTRY_DIRECTORY);
	assert_contents(entry, extents, extents_n, target, target_len);
	if (row.type != DS_ENTRY_FILE) {
		extents_n = 0;
		row.chunk.pack = 0;
	} else if (row.size_bytes == 0 || extents_n > 0) {
		row.chunk.pack = 0;
	}
	if (r == 0)
		r = complete(builder, target, target_len, &row);
	if (r == 0)
		r = ds_read_get(&builder->sql, ino, &old);
	if (r < 0)
		return r;
	assert(old.type != DS_ENTRY_DIRECTORY);
	assert(old.type == row.type || old.nlink == 1);
	/* What comes is counted before what goes, so that a pack in both keeps its number. */
	r = count_inode(builder, &row, 1);
	if (r == 0)
		r = count_inode(builder, &old, -1);
	if (r == 0 && row.type == DS_ENTRY_FILE)
		r = count_file_names(builder, row.size_bytes, old.nlink);
	if (r == 0 && old.type == DS_ENTRY_FILE)
		r = count_file_names(builder, old.size_bytes, -(int64_t)old.nlink);
	if (r == 0 && (extents_n > 0 || old.extents_n > 0))
		r = builder_extents_set(builder, ino, false, extents, extents_n);
	if (r < 0)
		return r;
	sqlite3_clear_bindings(stmt);
	sqlite3_bind_int64(stmt, 1, (sqlite3_int64)ino);
	bind_contents(stmt, &row, extents_n, target, target_len);
	return builder_run(builder, stmt);
}

int ds_builder_set_directory(struct ds_builder *builder, uint64_t id,
			     const struct ds_digest *digest, struct ds_time mtime)
{
	sqlite3_stmt *stmt = builder->sql.stmts[W_SET_DIGEST];
	struct ds_entry old;
	int r = builder->failed;

	assert(mtime.ns < DS_NS_PER_S);
	if (r == 0)
		r = ds_read_get(&builder->sql, id, &old);
	if (r < 0)
		return r;
	if (old.type != DS_ENTRY_DIRECTORY)
		return -ENOTDIR;
	if (ds_digest_equal(&old.digest, digest) && ds_time_compare(old.mtime, mtime) == 0)
		return 0;
	sqlite3_bind_int64(stmt, 1, (sqlite3_int64)id);
	sqlite3_bind_blob(stmt, 2, digest->bytes, DS_DIGEST_LEN, SQLITE_STATIC);
	sqlite3_bind_int64(stmt, 3, mtime.s);
	sqlite3_bind_int64(stmt, 4, mtime.ns);
	return builder_run(builder, stmt);
}

int ds_builder_set_mtime(struct ds_builder *builder, uint64_t ino, struct ds_time mtime)
{
	sqlite3_stmt *stmt = builder->sql.stmts[W_SET_MTIME];
	struct ds_entry old;
	int r = builder->failed;

	assert(mtime.ns < DS_NS_PER_S);
	if (r == 0)
		r = ds_read_get(&builder->sql, ino, &old);
	if (r < 0 || ds_time_compare(old.mtime, mtime) == 0)
		return r;
	sqlite3_bind_int64(stmt, 1, (sqlite3_int64)ino);
	sqlite3_bind_int64(stmt, 2, mtime.s);
	sqlite3_bind_int64(stmt, 3, mtime.ns);
	return builder_run(builder, stmt);
}

/* The schema has no index from a file to its further names (it would cost every version pages
 * for what few need): one scan when the first file with more names loses its first one. */
static int load_links(struct ds_builder *builder)
{
	int r;

	if (builder->has_links)
		return 0;
	r = builder_run(builder, builder->sql.stmts[W_LINKS_FILL]);
	if (r == 0)
		builder->has_links = true;
	return r;
}

/* The further name of `ino` with the lowest id above `after`; -ENOENT. */
static int next_link(struct ds_builder *builder, uint64_t ino, uint64_t after, uint64_t *ret_id)
{
	sqlite3_stmt *stmt = builder->sql.stmts[W_LINK_NEXT];
	bool has_row;
	int r;

	sqlite3_bind_int64(stmt, 1, (sqlite3_int64)ino);
	sqlite3_bind_int64(stmt, 2, (sqlite3_int64)after);
	r = ds_sql_step(&builder->sql, stmt, &has_row);
	if (r < 0)
		return r;
	if (has_row)
		*ret_id = (uint64_t)sqlite3_column_int64(stmt, 0);
	sqlite3_reset(stmt);
	return has_row ? 0 : -ENOENT;
}

/* Another name of the file becomes the first: its row takes everything over, and the others
 * point to it. */
static int promote(struct ds_builder *builder, const struct ds_entry *old)
{
	uint64_t id = 0, other = 0;
	int r;

	r = load_links(builder);
	if (r == 0)
		r = next_link(builder, old->id, 0, &id);
	if (r == -ENOENT)
		r = ds_sql_malformed(&builder->sql, "file %llu: nlink",
				     (unsigned long long)old->id);
	if (r == 0)
		r = run_with_ids(builder, W_PROMOTE, id, old->id);
	if (r == 0)
		r = set_nlink(builder, id, old->nlink - 1);
	if (r == 0 && old->extents_n > 0)
		r = run_with_ids(builder, W_EXTENT_MOVE, old->id, id);
	if (r == 0)
		r = run_with_ids(builder, W_XATTR_MOVE, old->id, id);
	if (r == 0)
		r = run_with_ids(builder, W_LINK_REMOVE, old->id, id);
	while (r == 0 && (r = next_link(builder, old->id, other, &other)) == 0) {
		r = run_with_ids(builder, W_SET_LINK, other, id);
		if (r == 0)
			r = run_with_ids(builder, W_LINK_REMOVE, old->id, other);
		if (r == 0)
			r = run_with_ids(builder, W_LINK_PUT, id, other);
	}
	return r == -ENOENT ? 0 : r;
}

/* Everything but the row itself and the parent's counts. */
static int remove_contents(struct ds_builder *builder, const struct ds_entry *entry)
{
	int r = 0;

	if (entry->type == DS_ENTRY_FILE)
		r = count_file_names(builder, entry->size_bytes, -1);
	if (r < 0)
		return r;
	if (entry->ino != entry->id) {
		if (entry->nlink < 2)
			return ds_sql_malformed(&builder->sql, "file %llu: nlink",
						(unsigned long long)entry->ino);
		r = set_nlink(builder, entry->ino, entry->nlink - 1);
		if (r == 0 && builder->has_links)
			r = run_with_ids(builder, W_LINK_REMOVE, entry->ino, entry->id);
		return r;
	}
	if (entry->type == DS_ENTRY_FILE && entry->nlink > 1)
		return promote(builder, entry);
	r = count_inode(builder, entry, -1);
	if (r == 0 && entry->extents_n > 0)
		r = builder_extents_set(builder, entry->id, false, NULL, 0);
	if (r == 0)
		r = run_with_ids(builder, W_XATTR_REMOVE, entry->id, 0);
	return r;
}

/* A name without anything below it. The counts of its parent, the directory in `pending`,
 * change. */
static int remove_one(struct ds_builder *builder, const struct ds_entry *entry)
{
	int r = remove_contents(builder, entry);

	if (r == 0)
		r = run_with_ids(builder, W_REMOVE, entry->id, 0);
	if (r < 0)
		return r;
	builder->pending.size_change--;
	builder->pending.nlink_change -= entry->type == DS_ENTRY_DIRECTORY;
	return 0;
}

/* A directory that goes needs no right counts any more. */
static void drop_pending(struct ds_builder *builder, uint64_t id)
{
	if (builder->pending.id == id)
		memset(&builder->pending, 0, sizeof(builder->pending));
}

/* Empties a directory, depth first, without recursion: the way back up is each row's parent. */
static int remove_below(struct ds_builder *builder, uint64_t top)
{
	uint64_t depth = 0, dir = top;
	struct ds_entry entry;
	int r;

	for (;;) {
		r = ds_read_next(&builder->sql, dir, NULL, 0, &entry);
		if (r == 0 && entry.type == DS_ENTRY_DIRECTORY) {
			/* Only a cycle is deeper than there are directories. */
			if (++depth > builder->totals.directories)
				return ds_sql_malformed(&builder->sql, "directory %llu: a cycle",
							(unsigned long long)dir);
			dir = entry.id;
			continue;
		}
		if (r == 0) {
			r = begin_parent(builder, dir);
			if (r == 0)
				r = remove_one(builder, &entry);
		} else if (r == -ENOENT) {
			if (dir == top)
				return 0;
			r = ds_read_get(&builder->sql, dir, &entry);
			if (r < 0)
				return r;
			drop_pending(builder, dir);
			dir = entry.parent;
			depth--;
			r = begin_parent(builder, dir);
			if (r == 0)
				r = remove_one(builder, &entry);
		}
		if (r < 0)
			return r;
	}
}

int ds_builder_remove(struct ds_builder *builder, uint64_t id)
{
	struct ds_entry entry = {.id = 0};
	int r = builder->failed;

	assert(id != DS_ROOT_ID);
	if (r == 0)
		r = ds_read_name(&builder->sql, id, &entry);
	if (r < 0)
		return r;
	if (entry.type == DS_ENTRY_DIRECTORY) {
		r = remove_below(builder, id);
		drop_pending(builder, id);
	}
	if (r == 0)
		r = begin_parent(builder, entry.parent);
	if (r == 0)
		r = remove_one(builder, &entry);
	return r < 0 ? builder_give_up(builder, r) : 0;
}
