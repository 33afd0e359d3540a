/*
 * The reading functions of manifest.h: each takes a connection, reads, and gives it back.
 */
#include "manifest/manifest_impl.h"

#include <string.h>

int ds_manifest_lookup(struct ds_manifest *manifest, void *want, uint64_t parent, const char *name,
		       size_t name_len, struct ds_entry *ret_entry)
{
	struct ds_conn *conn;
	int r = ds_conn_take(manifest, want, &conn);

	if (r < 0)
		return r;
	r = ds_read_lookup(&conn->sql, parent, name, name_len, ret_entry);
	return ds_conn_put(manifest, conn, r);
}

int ds_manifest_get(struct ds_manifest *manifest, void *want, uint64_t ino,
		    struct ds_entry *ret_entry)
{
	struct ds_conn *conn;
	int r = ds_conn_take(manifest, want, &conn);

	if (r < 0)
		return r;
	r = ds_read_get(&conn->sql, ino, ret_entry);
	return ds_conn_put(manifest, conn, r);
}

typedef int read_list_fn(struct ds_sql *sql, uint64_t dir, const char *after_name, size_t after_len,
			 ds_manifest_list_fn *fn, void *ctx);

static int list(struct ds_manifest *manifest, void *want, read_list_fn *read, uint64_t dir,
		uint64_t after, ds_manifest_list_fn *fn, void *ctx)
{
	struct ds_entry last = {.name_len = 0};
	struct ds_conn *conn;
	int r = ds_conn_take(manifest, want, &conn);

	if (r < 0)
		return r;
	if (after) {
		r = ds_read_name(&conn->sql, after, &last);
		if (r == -ENOENT || (r == 0 && (last.parent != dir || after == DS_ROOT_ID)))
			r = -EINVAL;
	}
	if (r == 0)
		r = read(&conn->sql, dir, after ? last.name : NULL, last.name_len, fn, ctx);
	return ds_conn_put(manifest, conn, r);
}

int ds_manifest_list(struct ds_manifest *manifest, void *want, uint64_t dir, uint64_t after,
		     ds_manifest_list_fn *fn, void *ctx)
{
	return list(manifest, want, ds_read_list, dir, after, fn, ctx);
}

int ds_manifest_list_attrs(struct ds_manifest *manifest, void *want, uint64_t dir, uint64_t after,
			   ds_manifest_list_fn *fn, void *ctx)
{
	return list(manifest, want, ds_read_list_attrs, dir, after, fn, ctx);
}

int ds_manifest_readlink(struct ds_manifest *manifest, void *want, uint64_t ino, struct ds_buf *buf)
{
	struct ds_conn *conn;
	int r = ds_conn_take(manifest, want, &conn);

	if (r < 0)
		return r;
	r = ds_read_readlink(&conn->sql, ino, buf);
	return ds_conn_put(manifest, conn, r);
}

int ds_manifest_extents(struct ds_manifest *manifest, void *want, uint64_t ino, uint64_t off,
			uint64_t len_bytes, struct ds_extent *ret_extents, size_t max_n,
			size_t *ret_n)
{
	struct ds_conn *conn;
	int r = ds_conn_take(manifest, want, &conn);

	if (r < 0)
		return r;
	r = ds_read_extents(&conn->sql, ino, off, len_bytes, ret_extents, max_n, ret_n);
	return ds_conn_put(manifest, conn, r);
}

int ds_manifest_pack(struct ds_manifest *manifest, void *want, uint32_t number,
		     struct ds_pack_row *ret_pack)
{
	struct ds_conn *conn;
	int r = ds_conn_take(manifest, want, &conn);

	if (r < 0)
		return r;
	r = ds_read_pack(&conn->sql, number, ret_pack);
	return ds_conn_put(manifest, conn, r);
}

int ds_manifest_packs(struct ds_manifest *manifest, void *want, uint32_t after,
		      ds_manifest_pack_fn *fn, void *ctx)
{
	struct ds_conn *conn;
	int r = ds_conn_take(manifest, want, &conn);

	if (r < 0)
		return r;
	r = ds_read_packs(&conn->sql, after, fn, ctx);
	return ds_conn_put(manifest, conn, r);
}

int ds_manifest_rejects(struct ds_manifest *manifest, void *want, ds_manifest_reject_fn *fn,
			void *ctx)
{
	struct ds_conn *conn;
	int r = ds_conn_take(manifest, want, &conn);

	if (r < 0)
		return r;
	r = ds_read_rejects(&conn->sql, fn, ctx);
	return ds_conn_put(manifest, conn, r);
}

int ds_manifest_total(struct ds_manifest *manifest, void *want, const char *key,
		      uint64_t *ret_value)
{
	struct ds_conn *conn;
	int r = ds_conn_take(manifest, want, &conn);

	if (r < 0)
		return r;
	r = ds_read_total(&conn->sql, key, ret_value);
	return ds_conn_put(manifest, conn, r);
}
