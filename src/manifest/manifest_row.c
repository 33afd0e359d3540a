/*
 * INV-1: no value of a row leaves this file unchecked: its type, its range, and what other columns
 * of the same row demand. What needs other rows (counts, contiguous extents, a pack's size) is
 * checked where those are read, or by verify.
 */
#include "manifest/manifest_row.h"

#include <string.h>

#include "codec/pack.h"

bool ds_name_is_valid(const char *name, size_t len)
{
	if (len == 0 || len > DS_NAME_MAX)
		return false;
	if (name[0] == '.' && (len == 1 || (len == 2 && name[1] == '.')))
		return false;
	return !memchr(name, '/', len) && !memchr(name, '\0', len);
}

unsigned ds_size_class(uint64_t size_bytes)
{
	return size_bytes ? 64 - (unsigned)__builtin_clzll(size_bytes) : 0;
}

/*
 * Columns are asked by way of their sqlite3_value: once, not for each of type, length and value. Such a value is not protected from
 * other threads (sqlite3_column_value), but a connection has one at a time.
 */
static bool take_u64(sqlite3_stmt *stmt, int col, uint64_t min, uint64_t max, uint64_t *ret_value)
{
	sqlite3_value *column = sqlite3_column_value(stmt, col);
	int64_t value;

	if (sqlite3_value_type(column) != SQLITE_INTEGER)
		return false;
	value = sqlite3_value_int64(column);
	if (value < 0 || (uint64_t)value < min || (uint64_t)value > max)
		return false;
	*ret_value = (uint64_t)value;
	return true;
}

static bool take_u32(sqlite3_stmt *stmt, int col, uint32_t min, uint32_t max, uint32_t *ret_value)
{
	uint64_t value;

	if (!take_u64(stmt, col, min, max, &value))
		return false;
	*ret_value = (uint32_t)value;
	return true;
}

static bool take_blob(sqlite3_stmt *stmt, int col, size_t min, size_t max, const void **ret_data,
		      size_t *ret_len)
{
	sqlite3_value *column = sqlite3_column_value(stmt, col);
	size_t len;

	if (sqlite3_value_type(column) != SQLITE_BLOB)
		return false;
	len = (size_t)sqlite3_value_bytes(column);
	if (len < min || len > max)
		return false;
	*ret_data = sqlite3_value_blob(column);
	*ret_len = len;
	return len == 0 || *ret_data;
}

static bool take_digest(sqlite3_stmt *stmt, int col, struct ds_digest *ret_digest)
{
	const void *data;
	size_t len;

	if (!take_blob(stmt, col, DS_DIGEST_LEN, DS_DIGEST_LEN, &data, &len))
		return false;
	memcpy(ret_digest->bytes, data, DS_DIGEST_LEN);
	return true;
}

static bool are_null(sqlite3_stmt *stmt, int first, int last)
{
	for (int col = first; col <= last; col++) {
		if (sqlite3_column_type(stmt, col) != SQLITE_NULL)
			return false;
	}
	return true;
}

/* Columns pack, ordinal, stored_off, stored_len. */
static bool take_chunk(sqlite3_stmt *stmt, int col, uint64_t raw_len_bytes,
		       struct ds_entry_chunk *ret_chunk)
{
	return take_u32(stmt, col, 1, UINT32_MAX, &ret_chunk->pack) &&
	       take_u32(stmt, col + 1, 0, DS_PACK_CHUNKS_MAX - 1, &ret_chunk->ordinal) &&
	       take_u64(stmt, col + 2, DS_PACK_HEAD_LEN, DS_PACK_MAX, &ret_chunk->stored_off) &&
	       take_u32(stmt, col + 3, 1, (uint32_t)raw_len_bytes, &ret_chunk->stored_len_bytes) &&
	       ret_chunk->stored_off + ret_chunk->stored_len_bytes <= DS_PACK_MAX;
}

/* The columns of an entry, relative to the first. */
enum {
	COL_ID,
	COL_PARENT,
	COL_NAME,
	COL_TYPE,
	COL_MTIME_S,
	COL_MTIME_NS,
	COL_NLINK,
	COL_SIZE,
	COL_DIGEST,
	COL_PACK,
	COL_ORDINAL,
	COL_STORED_OFF,
	COL_STORED_LEN,
	COL_RAW_OFF,
	COL_EXTENTS,
	COL_TARGET,
	COL_LINK,
};

static const char *check_name(sqlite3_stmt *stmt, int col, struct ds_entry *entry)
{
	const void *name;
	size_t len;

	if (entry->id == DS_ROOT_ID) {
		if (!take_u64(stmt, col + COL_PARENT, 0, 0, &entry->parent))
			return "the root has a parent";
		if (!take_blob(stmt, col + COL_NAME, 0, 0, &name, &len))
			return "the root has a name";
		return NULL;
	}
	if (!take_u64(stmt, col + COL_PARENT, DS_ROOT_ID, DS_ENTRY_ID_MAX, &entry->parent) ||
	    entry->parent == 2 || entry->parent == entry->id)
		return "parent";
	if (!take_blob(stmt, col + COL_NAME, 1, DS_NAME_MAX, &name, &len) ||
	    !ds_name_is_valid(name, len))
		return "name";
	memcpy(entry->name, name, len);
	entry->name_len = (uint8_t)len;
	return NULL;
}

static const char *check_file(sqlite3_stmt *stmt, int col, struct ds_entry *entry)
{
	if (entry->size_bytes <= DS_CHUNK_MAX &&
	    are_null(stmt, col + COL_EXTENTS, col + COL_EXTENTS)) {
		if (entry->size_bytes == 0)
			return are_null(stmt, col + COL_PACK, col + COL_RAW_OFF) ? NULL : "chunk";
		if (!take_chunk(stmt, col + COL_PACK, entry->size_bytes, &entry->chunk) ||
		    !take_u64(stmt, col + COL_RAW_OFF, 0,
			      DS_PACK_CHUNKS_MAX * DS_CHUNK_MAX - entry->size_bytes,
			      &entry->chunk.raw_off))
			return "chunk";
		return NULL;
	}
	/* More than one chunk, or (later) a small file that was imported. */
	if (!are_null(stmt, col + COL_PACK, col + COL_RAW_OFF))
		return "chunk";
	/* Whoever gives the file an image makes room for as many slots. */
	if (!take_u32(stmt, col + COL_EXTENTS, 1, UINT32_MAX, &entry->extents_n) ||
	    entry->extents_n > ds_extents_max(entry->size_bytes))
		return "extents";
	return NULL;
}

static const char *check_attrs(sqlite3_stmt *stmt, int col, enum ds_row_type type,
			       struct ds_entry *entry)
{
	uint32_t nlink_min = type == DS_ROW_DIRECTORY ? 2 : 1;
	uint32_t nlink_max = type == DS_ROW_SYMLINK ? 1 : UINT32_MAX;
	sqlite3_value *mtime_s = sqlite3_column_value(stmt, col + COL_MTIME_S);

	if (sqlite3_value_type(mtime_s) != SQLITE_INTEGER ||
	    !take_u32(stmt, col + COL_MTIME_NS, 0, DS_NS_PER_S - 1, &entry->mtime.ns))
		return "mtime";
	entry->mtime.s = sqlite3_value_int64(mtime_s);
	if (!take_u32(stmt, col + COL_NLINK, nlink_min, nlink_max, &entry->nlink))
		return "nlink";
	if (!take_u64(stmt, col + COL_SIZE, 0, DS_FILE_SIZE_MAX, &entry->size_bytes))
		return "size";
	return NULL;
}

static const char *check_inode(sqlite3_stmt *stmt, int col, enum ds_row_type type,
			       struct ds_entry *entry, struct ds_row_extra *extra)
{
	const char *reason = check_attrs(stmt, col, type, entry);

	if (reason)
		return reason;
	if (!take_digest(stmt, col + COL_DIGEST, &entry->digest))
		return "digest";
	if (!are_null(stmt, col + COL_LINK, col + COL_LINK))
		return "link";
	if (type == DS_ROW_FILE || type == DS_ROW_EXECUTABLE) {
		if (!are_null(stmt, col + COL_TARGET, col + COL_TARGET))
			return "target";
		return check_file(stmt, col, entry);
	}
	if (!are_null(stmt, col + COL_PACK, col + COL_EXTENTS))
		return "chunk";
	if (type == DS_ROW_DIRECTORY)
		return are_null(stmt, col + COL_TARGET, col + COL_TARGET) ? NULL : "target";
	if (!take_blob(stmt, col + COL_TARGET, 1, DS_TARGET_MAX, &extra->target,
		       &extra->target_len) ||
	    extra->target_len != entry->size_bytes ||
	    memchr(extra->target, '\0', extra->target_len))
		return "target";
	return NULL;
}

/* Id, parent, name and type, and what follows from the type. */
static const char *check_head(sqlite3_stmt *stmt, int col, struct ds_entry *entry,
			      enum ds_row_type *ret_type)
{
	static const enum ds_entry_type types[DS_ROW_TYPES_N] = {
		[DS_ROW_FILE] = DS_ENTRY_FILE,
		[DS_ROW_EXECUTABLE] = DS_ENTRY_FILE,
		[DS_ROW_DIRECTORY] = DS_ENTRY_DIRECTORY,
		[DS_ROW_SYMLINK] = DS_ENTRY_SYMLINK,
	};
	const char *reason;
	uint64_t type;

	if (!take_u64(stmt, col + COL_ID, DS_ROOT_ID, DS_ENTRY_ID_MAX, &entry->id) ||
	    entry->id == 2)
		return "id";
	reason = check_name(stmt, col, entry);
	if (reason)
		return reason;
	if (!take_u64(stmt, col + COL_TYPE, 0, DS_ROW_TYPES_N - 1, &type) ||
	    (entry->id == DS_ROOT_ID && type != DS_ROW_DIRECTORY))
		return "type";
	entry->ino = entry->id;
	entry->type = types[type];
	entry->is_executable = type == DS_ROW_EXECUTABLE;
	*ret_type = (enum ds_row_type)type;
	return NULL;
}

static const char *check_entry(sqlite3_stmt *stmt, int col, struct ds_entry *entry,
			       struct ds_row_extra *extra)
{
	enum ds_row_type type;
	const char *reason = check_head(stmt, col, entry, &type);

	if (reason)
		return reason;
	if (type != DS_ROW_LINK)
		return check_inode(stmt, col, type, entry, extra);
	if (!are_null(stmt, col + COL_MTIME_S, col + COL_TARGET) ||
	    !take_u64(stmt, col + COL_LINK, DS_ENTRY_ID_FIRST, DS_ENTRY_ID_MAX, &extra->link) ||
	    extra->link == entry->id)
		return "link";
	entry->ino = extra->link;
	return NULL;
}

static void clear(struct ds_entry *entry)
{
	memset(entry, 0, offsetof(struct ds_entry, name) + 1);
}

/* NULL: the row is sound. */
static int end_entry(struct ds_sql *sql, sqlite3_stmt *stmt, int col, const char *reason,
		     struct ds_entry *entry)
{
	entry->name[entry->name_len] = '\0';
	if (!reason)
		return 0;
	if (sqlite3_errcode(sqlite3_db_handle(stmt)) == SQLITE_NOMEM)
		return ds_sql_fail(sql, SQLITE_NOMEM);
	return ds_sql_malformed(sql, "entry %lld: %s", sqlite3_column_int64(stmt, col), reason);
}

int ds_row_entry(struct ds_sql *sql, sqlite3_stmt *stmt, int col, struct ds_entry *ret_entry,
		 struct ds_row_extra *ret_extra)
{
	clear(ret_entry);
	*ret_extra = (struct ds_row_extra){0};
	return end_entry(sql, stmt, col, check_entry(stmt, col, ret_entry, ret_extra), ret_entry);
}

int ds_row_attrs(struct ds_sql *sql, sqlite3_stmt *stmt, int col, struct ds_entry *ret_entry,
		 bool *ret_is_link)
{
	enum ds_row_type type;
	const char *reason;

	clear(ret_entry);
	reason = check_head(stmt, col, ret_entry, &type);
	if (!reason && type != DS_ROW_LINK)
		reason = check_attrs(stmt, col, type, ret_entry);
	*ret_is_link = !reason && type == DS_ROW_LINK;
	return end_entry(sql, stmt, col, reason, ret_entry);
}

static const char *check_piece(sqlite3_stmt *stmt, struct ds_extent *extent)
{
	if (!take_u64(stmt, 0, 0, DS_FILE_SIZE_MAX - 1, &extent->off))
		return "offset";
	if (!take_u32(stmt, 1, 0, UINT32_MAX - 1, &extent->slot))
		return "slot";
	if (!take_u64(stmt, 2, 1, DS_FILE_SIZE_MAX - extent->off, &extent->len_bytes))
		return "length";
	return NULL;
}

static const char *check_chunk_of(sqlite3_stmt *stmt, struct ds_extent *extent)
{
	extent->is_zeros = are_null(stmt, 3, 7);
	if (extent->is_zeros)
		return NULL;
	if (extent->len_bytes > DS_CHUNK_MAX)
		return "length";
	if (!take_digest(stmt, 3, &extent->digest))
		return "digest";
	if (!take_chunk(stmt, 4, extent->len_bytes, &extent->chunk))
		return "chunk";
	return NULL;
}

int ds_row_extent(struct ds_sql *sql, sqlite3_stmt *stmt, uint64_t file,
		  struct ds_extent *ret_extent)
{
	const char *reason;

	memset(ret_extent, 0, sizeof(*ret_extent));
	reason = check_piece(stmt, ret_extent);
	if (!reason && !are_null(stmt, 8, 9)) {
		ds_diag_clear(&sql->diag);
		return ds_diag_set(&sql->diag, -DS_E_IMPORTED, NULL, NULL);
	}
	if (!reason)
		reason = check_chunk_of(stmt, ret_extent);
	if (!reason)
		return 0;
	if (sqlite3_errcode(sqlite3_db_handle(stmt)) == SQLITE_NOMEM)
		return ds_sql_fail(sql, SQLITE_NOMEM);
	return ds_sql_malformed(sql, "file %llu, extent at %lld: %s", (unsigned long long)file,
				sqlite3_column_int64(stmt, 0), reason);
}

int ds_row_pack(struct ds_sql *sql, sqlite3_stmt *stmt, struct ds_pack_row *ret_pack)
{
	const char *reason = NULL;

	memset(ret_pack, 0, sizeof(*ret_pack));
	if (!take_u32(stmt, 0, 1, UINT32_MAX, &ret_pack->number))
		reason = "number";
	else if (!take_digest(stmt, 1, &ret_pack->id))
		reason = "id";
	else if (!take_u64(stmt, 2, DS_PACK_HEAD_LEN + DS_PACK_TRAILER_LEN, DS_PACK_MAX,
			   &ret_pack->size_bytes))
		reason = "size";
	else if (!take_u32(stmt, 3, 1, DS_PACK_CHUNKS_MAX, &ret_pack->chunks_n))
		reason = "chunks";
	else if (!take_u64(stmt, 4, 1, ret_pack->chunks_n * DS_CHUNK_MAX, &ret_pack->raw_bytes))
		reason = "raw";
	else if (!take_u64(stmt, 5, 1, INT64_MAX, &ret_pack->live_n))
		reason = "live";
	if (!reason)
		return 0;
	if (sqlite3_errcode(sqlite3_db_handle(stmt)) == SQLITE_NOMEM)
		return ds_sql_fail(sql, SQLITE_NOMEM);
	return ds_sql_malformed(sql, "pack %lld: %s", sqlite3_column_int64(stmt, 0), reason);
}
