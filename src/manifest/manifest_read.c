/*
 * Reading rows over one connection, for the reader's pool and for the builder alike.
 *
 * INV-1: every function leaves its statements reset, whatever happened.
 * INV-2: nothing is kept between calls, so that a call which ended with -DS_E_NOT_LOCAL is simply
 * made again.
 */
#include "manifest/manifest_row.h"

#include <assert.h>
#include <string.h>

#include "codec/content.h"

/*
 * DS_SQL_LOOKUP, DS_SQL_LIST and DS_SQL_LIST_ATTRS give the name that the index has, then the row:
 * whether there is one, and whether it says the same.
 */
static int check_indexed(struct ds_sql *sql, sqlite3_stmt *stmt, uint64_t parent,
			 const struct ds_entry *entry)
{
	sqlite3_value *column = sqlite3_column_value(stmt, 0);
	const void *name = sqlite3_value_blob(column);
	size_t len = (size_t)sqlite3_value_bytes(column);

	if (entry->parent != parent || entry->name_len != len ||
	    (len && (!name || memcmp(entry->name, name, len) != 0)))
		return ds_sql_malformed(sql, "entry %llu: another name in the index of names",
					(unsigned long long)entry->id);
	return 0;
}

static int check_has_row(struct ds_sql *sql, sqlite3_stmt *stmt, uint64_t parent)
{
	if (sqlite3_column_type(stmt, 1) == SQLITE_NULL)
		return ds_sql_malformed(sql, "directory %llu: a name in the index of names only",
					(unsigned long long)parent);
	return 0;
}

static int take_indexed(struct ds_sql *sql, sqlite3_stmt *stmt, uint64_t parent,
			struct ds_entry *ret_entry, struct ds_row_extra *ret_extra)
{
	int r = check_has_row(sql, stmt, parent);

	if (r == 0)
		r = ds_row_entry(sql, stmt, 1, ret_entry, ret_extra);
	return r < 0 ? r : check_indexed(sql, stmt, parent, ret_entry);
}

static int get_row(struct ds_sql *sql, uint64_t id, struct ds_entry *ret_entry,
		   struct ds_row_extra *ret_extra, struct ds_buf *target)
{
	sqlite3_stmt *stmt = sql->stmts[DS_SQL_GET];
	bool has_row;
	int r;

	if (id > DS_ENTRY_ID_MAX)
		return -ENOENT;
	sqlite3_bind_int64(stmt, 1, (sqlite3_int64)id);
	r = ds_sql_step(sql, stmt, &has_row);
	if (r < 0)
		return r;
	r = has_row ? ds_row_entry(sql, stmt, 0, ret_entry, ret_extra) : -ENOENT;
	if (r == 0 && target && ret_extra->target)
		r = ds_buf_append(target, ret_extra->target, ret_extra->target_len);
	sqlite3_reset(stmt);
	return r;
}

/* Gives a further name what the row of the first says. */
static int follow_link(struct ds_sql *sql, const struct ds_row_extra *extra, struct ds_entry *entry)
{
	struct ds_row_extra first_extra;
	struct ds_entry first;
	int r;

	if (!extra->link)
		return 0;
	r = get_row(sql, extra->link, &first, &first_extra, NULL);
	if (r == -ENOENT || (r == 0 && (first_extra.link || first.type != DS_ENTRY_FILE)))
		return ds_sql_malformed(sql, "entry %llu: a further name of what is no file",
					(unsigned long long)entry->id);
	if (r < 0)
		return r;
	entry->type = first.type;
	entry->is_executable = first.is_executable;
	entry->mtime = first.mtime;
	entry->nlink = first.nlink;
	entry->size_bytes = first.size_bytes;
	entry->digest = first.digest;
	entry->chunk = first.chunk;
	entry->extents_n = first.extents_n;
	return 0;
}

/* Binds a name; NULL is the empty one, which sorts before all others. */
static void bind_name(sqlite3_stmt *stmt, const char *name, size_t len)
{
	sqlite3_bind_blob(stmt, 2, name ? name : "", (int)len, SQLITE_STATIC);
}

int ds_read_lookup(struct ds_sql *sql, uint64_t parent, const char *name, size_t name_len,
		   struct ds_entry *ret_entry)
{
	sqlite3_stmt *stmt = sql->stmts[DS_SQL_LOOKUP];
	struct ds_row_extra extra;
	struct ds_entry entry;
	bool has_row;
	int r;

	if (parent > DS_ENTRY_ID_MAX || !ds_name_is_valid(name, name_len))
		return -ENOENT;
	sqlite3_bind_int64(stmt, 1, (sqlite3_int64)parent);
	bind_name(stmt, name, name_len);
	r = ds_sql_step(sql, stmt, &has_row);
	if (r < 0)
		return r;
	r = has_row ? take_indexed(sql, stmt, parent, &entry, &extra) : -ENOENT;
	sqlite3_reset(stmt);
	if (r == 0)
		r = follow_link(sql, &extra, &entry);
	if (r == 0)
		*ret_entry = entry;
	return r;
}

int ds_read_get(struct ds_sql *sql, uint64_t ino, struct ds_entry *ret_entry)
{
	struct ds_row_extra extra;
	struct ds_entry entry;
	int r = get_row(sql, ino, &entry, &extra, NULL);

	if (r < 0)
		return r;
	if (extra.link)
		return -ENOENT;
	*ret_entry = entry;
	return 0;
}

int ds_read_name(struct ds_sql *sql, uint64_t id, struct ds_entry *ret_entry)
{
	struct ds_row_extra extra;
	struct ds_entry entry;
	int r = get_row(sql, id, &entry, &extra, NULL);

	if (r == 0)
		r = follow_link(sql, &extra, &entry);
	if (r == 0)
		*ret_entry = entry;
	return r;
}

/* The present row of a listing. */
typedef int take_fn(struct ds_sql *sql, sqlite3_stmt *stmt, uint64_t dir,
		    struct ds_entry *ret_entry);

static int take_entry(struct ds_sql *sql, sqlite3_stmt *stmt, uint64_t dir,
		      struct ds_entry *ret_entry)
{
	struct ds_row_extra extra;
	int r = take_indexed(sql, stmt, dir, ret_entry, &extra);

	return r < 0 ? r : follow_link(sql, &extra, ret_entry);
}

static int take_attrs(struct ds_sql *sql, sqlite3_stmt *stmt, uint64_t dir,
		      struct ds_entry *ret_entry)
{
	bool is_link;
	int r = check_has_row(sql, stmt, dir);

	if (r == 0)
		r = ds_row_attrs(sql, stmt, 1, ret_entry, &is_link);
	if (r == 0)
		r = check_indexed(sql, stmt, dir, ret_entry);
	/* Seldom: all of the row, then. */
	if (r == 0 && is_link)
		r = ds_read_name(sql, ret_entry->id, ret_entry);
	return r;
}

static int list(struct ds_sql *sql, sqlite3_stmt *stmt, take_fn *take, uint64_t dir,
		const char *after_name, size_t after_len, ds_manifest_list_fn *fn, void *ctx)
{
	struct ds_entry entry;
	char last[DS_NAME_MAX];
	size_t last_len = 0;
	bool has_row;
	int r;

	if (dir > DS_ENTRY_ID_MAX)
		return 0;
	assert(after_len <= sizeof(last));
	if (after_name) {
		memcpy(last, after_name, after_len);
		last_len = after_len;
	}
	sqlite3_bind_int64(stmt, 1, (sqlite3_int64)dir);
	bind_name(stmt, after_name, after_len);
	for (;;) {
		r = ds_sql_step(sql, stmt, &has_row);
		if (r < 0 || !has_row)
			break;
		r = take(sql, stmt, dir, &entry);
		if (r < 0)
			break;
		/* A damaged b-tree may lead to one page twice: no listing without end. */
		if (ds_name_compare(last, last_len, entry.name, entry.name_len) >= 0) {
			r = ds_sql_malformed(sql, "directory %llu: names out of order",
					     (unsigned long long)dir);
			break;
		}
		last_len = entry.name_len;
		memcpy(last, entry.name, last_len);
		r = fn(ctx, &entry);
		if (r != 0)
			break;
	}
	sqlite3_reset(stmt);
	return r > 0 ? 0 : r;
}

int ds_read_list(struct ds_sql *sql, uint64_t dir, const char *after_name, size_t after_len,
		 ds_manifest_list_fn *fn, void *ctx)
{
	return list(sql, sql->stmts[DS_SQL_LIST], take_entry, dir, after_name, after_len, fn, ctx);
}

int ds_read_list_attrs(struct ds_sql *sql, uint64_t dir, const char *after_name, size_t after_len,
		       ds_manifest_list_fn *fn, void *ctx)
{
	return list(sql, sql->stmts[DS_SQL_LIST_ATTRS], take_attrs, dir, after_name, after_len, fn,
		    ctx);
}

static int take_first(void *ctx, const struct ds_entry *entry)
{
	*(struct ds_entry *)ctx = *entry;
	return 1;
}

int ds_read_next(struct ds_sql *sql, uint64_t dir, const char *after_name, size_t after_len,
		 struct ds_entry *ret_entry)
{
	struct ds_entry entry;
	int r;

	entry.id = 0;
	r = ds_read_list(sql, dir, after_name, after_len, take_first, &entry);
	if (r < 0)
		return r;
	if (!entry.id)
		return -ENOENT;
	*ret_entry = entry;
	return 0;
}

int ds_read_readlink(struct ds_sql *sql, uint64_t ino, struct ds_buf *buf)
{
	struct ds_row_extra extra;
	struct ds_entry entry;
	int r = get_row(sql, ino, &entry, &extra, buf);

	if (r == 0 && extra.link)
		return -ENOENT;
	if (r == 0 && entry.type != DS_ENTRY_SYMLINK)
		return -EINVAL;
	return r;
}

/* Whether `extent` may follow the one that ends at `end` and has slot `slot - 1`. */
static int check_extent(struct ds_sql *sql, const struct ds_entry *entry,
			const struct ds_extent *extent, uint64_t end, uint32_t slot)
{
	uint64_t extent_end = extent->off + extent->len_bytes;
	bool is_last = extent->slot == entry->extents_n - 1;

	if (extent->off != end || extent->slot != slot || (slot == 0) != (extent->off == 0) ||
	    extent_end > entry->size_bytes || is_last != (extent_end == entry->size_bytes))
		return ds_sql_malformed(sql, "file %llu: extents with a gap or an overlap",
					(unsigned long long)entry->ino);
	return 0;
}

int ds_read_extents(struct ds_sql *sql, uint64_t ino, uint64_t off, uint64_t len_bytes,
		    struct ds_extent *ret_extents, size_t max_n, size_t *ret_n)
{
	sqlite3_stmt *at = sql->stmts[DS_SQL_EXTENT_AT];
	sqlite3_stmt *from = sql->stmts[DS_SQL_EXTENT_FROM];
	struct ds_extent extent;
	struct ds_entry entry;
	uint64_t end, asked_end;
	uint32_t slot;
	bool has_row;
	size_t n = 0;
	int r;

	r = ds_read_get(sql, ino, &entry);
	if (r < 0)
		return r;
	if (entry.type != DS_ENTRY_FILE)
		return -EINVAL;
	if (off >= entry.size_bytes || len_bytes == 0 || max_n == 0 || entry.extents_n == 0) {
		*ret_n = 0;
		return 0;
	}
	asked_end = off + DS_MIN(len_bytes, entry.size_bytes - off);

	sqlite3_bind_int64(at, 1, (sqlite3_int64)ino);
	sqlite3_bind_int64(at, 2, (sqlite3_int64)off);
	r = ds_sql_step(sql, at, &has_row);
	if (r < 0)
		return r;
	if (has_row)
		r = ds_row_extent(sql, at, ino, &extent);
	else
		r = ds_sql_malformed(sql, "file %llu: no extent at %llu", (unsigned long long)ino,
				     (unsigned long long)off);
	sqlite3_reset(at);
	if (r == 0)
		r = check_extent(sql, &entry, &extent, extent.off, extent.slot);
	if (r == 0 && extent.off + extent.len_bytes <= off)
		r = ds_sql_malformed(sql, "file %llu: no extent at %llu", (unsigned long long)ino,
				     (unsigned long long)off);
	if (r < 0)
		return r;
	ret_extents[n++] = extent;
	end = extent.off + extent.len_bytes;
	slot = extent.slot + 1;
	if (end >= asked_end || n == max_n) {
		*ret_n = n;
		return 0;
	}

	sqlite3_bind_int64(from, 1, (sqlite3_int64)ino);
	sqlite3_bind_int64(from, 2, (sqlite3_int64)end);
	while (end < asked_end && n < max_n) {
		r = ds_sql_step(sql, from, &has_row);
		if (r < 0)
			return r;
		if (has_row)
			r = ds_row_extent(sql, from, ino, &extent);
		else
			r = ds_sql_malformed(sql, "file %llu: no extent at %llu",
					     (unsigned long long)ino, (unsigned long long)end);
		if (r == 0)
			r = check_extent(sql, &entry, &extent, end, slot);
		if (r < 0)
			break;
		ret_extents[n++] = extent;
		end += extent.len_bytes;
		slot++;
	}
	sqlite3_reset(from);
	if (r == 0)
		*ret_n = n;
	return r;
}

int ds_read_pack(struct ds_sql *sql, uint32_t number, struct ds_pack_row *ret_pack)
{
	sqlite3_stmt *stmt = sql->stmts[DS_SQL_PACK];
	struct ds_pack_row pack;
	bool has_row;
	int r;

	sqlite3_bind_int64(stmt, 1, number);
	r = ds_sql_step(sql, stmt, &has_row);
	if (r < 0)
		return r;
	r = has_row ? ds_row_pack(sql, stmt, &pack) : -ENOENT;
	sqlite3_reset(stmt);
	if (r == 0)
		*ret_pack = pack;
	return r;
}

int ds_read_packs(struct ds_sql *sql, uint32_t after, ds_manifest_pack_fn *fn, void *ctx)
{
	sqlite3_stmt *stmt = sql->stmts[DS_SQL_PACKS];
	uint32_t last = after;
	struct ds_pack_row pack;
	bool has_row;
	int r;

	sqlite3_bind_int64(stmt, 1, after);
	for (;;) {
		r = ds_sql_step(sql, stmt, &has_row);
		if (r < 0 || !has_row)
			break;
		r = ds_row_pack(sql, stmt, &pack);
		if (r == 0 && pack.number <= last)
			r = ds_sql_malformed(sql, "pack %u: out of order", pack.number);
		if (r < 0)
			break;
		last = pack.number;
		r = fn(ctx, &pack);
		if (r != 0)
			break;
	}
	sqlite3_reset(stmt);
	return r > 0 ? 0 : r;
}

int ds_read_rejects(struct ds_sql *sql, ds_manifest_reject_fn *fn, void *ctx)
{
	sqlite3_stmt *stmt = sql->stmts[DS_SQL_REJECTS];
	_ds_cleanup_buf_ struct ds_buf last = DS_BUF_INIT(DS_SQL_LENGTH_MAX);
	bool has_row;
	int r;

	for (;;) {
		const char *path, *reason;
		size_t len;

		r = ds_sql_step(sql, stmt, &has_row);
		if (r < 0 || !has_row)
			break;
		path = sqlite3_column_blob(stmt, 0);
		len = (size_t)sqlite3_column_bytes(stmt, 0);
		reason = (const char *)sqlite3_column_text(stmt, 1);
		if (!path || !reason || sqlite3_column_type(stmt, 0) != SQLITE_BLOB ||
		    ds_name_compare(ds_buf_str(&last), last.len_bytes, path, len) >= 0) {
			r = ds_sql_malformed(sql, "reject: path or reason");
			break;
		}
		ds_buf_clear(&last);
		r = ds_buf_append(&last, path, len);
		if (r == 0)
			r = fn(ctx, path, len, reason);
		if (r != 0)
			break;
	}
	sqlite3_reset(stmt);
	return r > 0 ? 0 : r;
}

int ds_read_total(struct ds_sql *sql, const char *key, uint64_t *ret_value)
{
	sqlite3_stmt *stmt = sql->stmts[DS_SQL_META];
	uint64_t value = 0;
	bool has_row;
	int r;

	sqlite3_bind_text(stmt, 1, key, -1, SQLITE_STATIC);
	r = ds_sql_step(sql, stmt, &has_row);
	if (r < 0)
		return r;
	if (has_row) {
		if (sqlite3_column_type(stmt, 0) != SQLITE_INTEGER ||
		    sqlite3_column_int64(stmt, 0) < 0)
			r = ds_sql_malformed(sql, "total \"%s\"", key);
		else
			value = (uint64_t)sqlite3_column_int64(stmt, 0);
	}
	sqlite3_reset(stmt);
	if (r == 0)
		*ret_value = value;
	return r;
}
