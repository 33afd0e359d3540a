/*
 * The extents of one file, and the references of their chunks.
 */
#include "manifest/builder_impl.h"

#include <string.h>

struct row {
	struct ds_extent extent;
	/* A part of an imported object, which another build wrote: it refers to no pack, and is only ever
	 * replaced. Only place and length are known. */
	bool is_imported;
};

/* The first row that begins at or after `off`; *ret_found says whether there is one. */
static int next_row(struct ds_builder *builder, uint64_t file, uint64_t off, struct row *ret_row,
		    bool *ret_found)
{
	sqlite3_stmt *stmt = builder->sql.stmts[DS_SQL_EXTENT_FROM];
	bool has_row;
	int r;

	sqlite3_bind_int64(stmt, 1, (sqlite3_int64)file);
	sqlite3_bind_int64(stmt, 2, (sqlite3_int64)off);
	r = ds_sql_step(&builder->sql, stmt, &has_row);
	if (r < 0)
		return r;
	if (has_row)
		r = ds_row_extent(&builder->sql, stmt, file, &ret_row->extent);
	ret_row->is_imported = r == -DS_E_IMPORTED;
	if (ret_row->is_imported)
		r = 0;
	sqlite3_reset(stmt);
	if (r == 0)
		*ret_found = has_row;
	return r;
}

static int count_chunk(struct ds_builder *builder, const struct ds_extent *extent, int change)
{
	return extent->is_zeros ? 0 : builder_pack_count(builder, extent->chunk.pack, change);
}

/* What refers to it no more. */
static int uncount_row(struct ds_builder *builder, const struct row *row)
{
	return row->is_imported ? 0 : count_chunk(builder, &row->extent, -1);
}

static int remove_row(struct ds_builder *builder, uint64_t file, const struct row *row)
{
	sqlite3_stmt *stmt = builder->sql.stmts[W_EXTENT_REMOVE];
	int r = uncount_row(builder, row);

	if (r < 0)
		return r;
	sqlite3_bind_int64(stmt, 1, (sqlite3_int64)file);
	sqlite3_bind_int64(stmt, 2, (sqlite3_int64)row->extent.off);
	return builder_run(builder, stmt);
}

static int put_row(struct ds_builder *builder, uint64_t file, const struct ds_extent *extent,
		   uint32_t slot)
{
	sqlite3_stmt *stmt = builder->sql.stmts[W_EXTENT_ADD];
	int r = count_chunk(builder, extent, 1);

	if (r < 0)
		return r;
	sqlite3_clear_bindings(stmt);
	sqlite3_bind_int64(stmt, 1, (sqlite3_int64)file);
	sqlite3_bind_int64(stmt, 2, (sqlite3_int64)extent->off);
	sqlite3_bind_int64(stmt, 3, slot);
	sqlite3_bind_int64(stmt, 4, (sqlite3_int64)extent->len_bytes);
	if (!extent->is_zeros) {
		sqlite3_bind_blob(stmt, 5, extent->digest.bytes, DS_DIGEST_LEN, SQLITE_STATIC);
		sqlite3_bind_int64(stmt, 6, extent->chunk.pack);
		sqlite3_bind_int64(stmt, 7, extent->chunk.ordinal);
		sqlite3_bind_int64(stmt, 8, (sqlite3_int64)extent->chunk.stored_off);
		sqlite3_bind_int64(stmt, 9, extent->chunk.stored_len_bytes);
	}
	return builder_run(builder, stmt);
}

static bool is_same(const struct row *row, const struct ds_extent *b, uint32_t b_slot)
{
	const struct ds_extent *a = &row->extent;

	if (row->is_imported || a->len_bytes != b->len_bytes || a->slot != b_slot ||
	    a->is_zeros != b->is_zeros)
		return false;
	return a->is_zeros ||
	       (ds_digest_equal(&a->digest, &b->digest) && a->chunk.pack == b->chunk.pack &&
		a->chunk.ordinal == b->chunk.ordinal &&
		a->chunk.stored_off == b->chunk.stored_off &&
		a->chunk.stored_len_bytes == b->chunk.stored_len_bytes);
}

int builder_extents_set(struct ds_builder *builder, uint64_t file, bool is_new,
			const struct ds_extent *extents, size_t n)
{
	struct row old;
	bool has_old = false;
	size_t i = 0;
	int r = 0;

	if (!is_new)
		r = next_row(builder, file, 0, &old, &has_old);
	while (r == 0 && (has_old || i < n)) {
		bool takes_old = has_old && (i == n || old.extent.off <= extents[i].off);
		bool takes_new = i < n && (!has_old || extents[i].off <= old.extent.off);

		if (takes_old && takes_new) {
			if (!is_same(&old, &extents[i], (uint32_t)i)) {
				/* The new reference first, so that a pack in both does not reach
				 * zero between. */
				r = put_row(builder, file, &extents[i], (uint32_t)i);
				if (r == 0)
					r = uncount_row(builder, &old);
			}
		} else if (takes_old) {
			r = remove_row(builder, file, &old);
		} else {
			r = put_row(builder, file, &extents[i], (uint32_t)i);
		}
		if (takes_new)
			i++;
		if (r == 0 && takes_old)
			r = next_row(builder, file, old.extent.off + 1, &old, &has_old);
	}
	return r < 0 ? builder_give_up(builder, r) : 0;
}
