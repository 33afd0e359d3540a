/*
 * Rows: taking them out of a statement with every value checked, and the reading functions that the
 * reading and the building side have in common. Inside this layer only. Errors: -DS_E_MALFORMED
 * (the reason in sql->diag), and what a step returned.
 */
#ifndef DS_MANIFEST_MANIFEST_ROW_H
#define DS_MANIFEST_MANIFEST_ROW_H

#include "manifest/manifest.h"
#include "manifest/manifest_sql.h"

/* The columns that ds_row_attrs expects, in its order: the first of those of ds_row_entry. */
#define DS_ROW_ATTRS_COLUMNS(t)                                                          \
	t ".id, " t ".parent, " t ".name, " t ".type, " t ".mtime_s, " t ".mtime_ns, " t \
	  ".nlink, " t ".size"
#define DS_ROW_ENTRY_COLUMNS(t)                                                             \
	DS_ROW_ATTRS_COLUMNS(t)                                                             \
	", " t ".digest, " t ".pack, " t ".ordinal, " t ".stored_off, " t ".stored_len, " t \
	".raw_off, " t ".extents, " t ".target, " t ".link"
#define DS_ROW_EXTENT_COLUMNS \
	"off, slot, len, digest, pack, ordinal, stored_off, stored_len, source, source_off, file"
#define DS_ROW_EXTENT_FILE  10 /* column of the owner, which ds_row_extent does not look at */
#define DS_ROW_PACK_COLUMNS "number, id, size, chunks, raw, live"

/* Values of entry.type. */
enum ds_row_type {
	DS_ROW_FILE,
	DS_ROW_EXECUTABLE,
	DS_ROW_DIRECTORY,
	DS_ROW_SYMLINK,
	DS_ROW_LINK,
	DS_ROW_TYPES_N,
};

/* What a row has beyond an entry; the target is SQLite's memory, valid until the next step. */
struct ds_row_extra {
	uint64_t link; /* of a further name: id of the first; else 0 */
	const void *target;
	size_t target_len;
};

/* 1..DS_NAME_MAX bytes without "/" and NUL, and neither "." nor "..". */
bool ds_name_is_valid(const char *name, size_t len);
/* Number of significant bits of a size: the class of the histogram. */
unsigned ds_size_class(uint64_t size_bytes);

/* The row of a statement from column `col` on. A further name has only id, ino, parent and name
 * then (and extra.link); the rest comes from the row that it names. */
int ds_row_entry(struct ds_sql *sql, sqlite3_stmt *stmt, int col, struct ds_entry *ret_entry,
		 struct ds_row_extra *ret_extra);
/* The same without digest, chunk, extents and target, which are not looked at. Of a
 * further name, only id, parent and name are set (`ret_is_link`). */
int ds_row_attrs(struct ds_sql *sql, sqlite3_stmt *stmt, int col, struct ds_entry *ret_entry,
		 bool *ret_is_link);
/* -DS_E_IMPORTED: a part of an imported object, of which only place and length are set. */
int ds_row_extent(struct ds_sql *sql, sqlite3_stmt *stmt, uint64_t file,
		  struct ds_extent *ret_extent);
int ds_row_pack(struct ds_sql *sql, sqlite3_stmt *stmt, struct ds_pack_row *ret_pack);

/* As the functions of manifest.h that have these names. */
int ds_read_lookup(struct ds_sql *sql, uint64_t parent, const char *name, size_t name_len,
		   struct ds_entry *ret_entry);
int ds_read_get(struct ds_sql *sql, uint64_t ino, struct ds_entry *ret_entry);
/* By the id of a name, which may be a further one. */
int ds_read_name(struct ds_sql *sql, uint64_t id, struct ds_entry *ret_entry);
int ds_read_list(struct ds_sql *sql, uint64_t dir, const char *after_name, size_t after_len,
		 ds_manifest_list_fn *fn, void *ctx);
int ds_read_list_attrs(struct ds_sql *sql, uint64_t dir, const char *after_name, size_t after_len,
		       ds_manifest_list_fn *fn, void *ctx);
/* The first name after `after_name` (NULL: of all); -ENOENT at the end. */
int ds_read_next(struct ds_sql *sql, uint64_t dir, const char *after_name, size_t after_len,
		 struct ds_entry *ret_entry);
int ds_read_readlink(struct ds_sql *sql, uint64_t ino, struct ds_buf *buf);
int ds_read_extents(struct ds_sql *sql, uint64_t ino, uint64_t off, uint64_t len_bytes,
		    struct ds_extent *ret_extents, size_t max_n, size_t *ret_n);
int ds_read_pack(struct ds_sql *sql, uint32_t number, struct ds_pack_row *ret_pack);
int ds_read_packs(struct ds_sql *sql, uint32_t after, ds_manifest_pack_fn *fn, void *ctx);
int ds_read_rejects(struct ds_sql *sql, ds_manifest_reject_fn *fn, void *ctx);
int ds_read_total(struct ds_sql *sql, const char *key, uint64_t *ret_value);

#endif
