/*
 * Opening, reading and finishing. The invariants stand in builder_impl.h.
 *
 * The file is written without a journal and without fsync: whoever crashes begins anew.
 */
#include "manifest/builder_impl.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "codec/content.h"

/* Pages are written in place when the cache is full. A tree that is added in order touches few
 * pages at a time; changes all over a tree of a million rows (about 120 MB) want most of them. */
#define CACHE_KIB 65536

/* The longest statement, the scan for further names, takes about 10 steps for each row: after 10^10
 * the b-tree has more rows than a manifest can. */
#define TICKS_MAX 1000000u

#define SET_COLUMNS                                                                               \
	"type, mtime_s, mtime_ns, size, digest, pack, ordinal, stored_off, stored_len, raw_off, " \
	"extents, target"

static const char *const write_texts[W_END - DS_SQL_READS_N] = {
	[W_ADD - DS_SQL_READS_N] = "INSERT INTO entry (id, parent, name, nlink, link, " SET_COLUMNS
				   ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, "
				   "?13, ?14, ?15, ?16, ?17)",
	[W_SET - DS_SQL_READS_N] =
		"UPDATE entry SET type = ?6, mtime_s = ?7, mtime_ns = ?8, size = ?9, digest = ?10,"
		" pack = ?11, ordinal = ?12, stored_off = ?13, stored_len = ?14, raw_off = ?15,"
		" extents = ?16, target = ?17 WHERE id = ?1",
	[W_SET_COUNTS - DS_SQL_READS_N] =
		"UPDATE entry SET nlink = nlink + ?2, size = size + ?3 WHERE id = ?1",
	[W_SET_NLINK - DS_SQL_READS_N] = "UPDATE entry SET nlink = ?2 WHERE id = ?1",
	[W_SET_DIGEST - DS_SQL_READS_N] =
		"UPDATE entry SET digest = ?2, mtime_s = ?3, mtime_ns = ?4 WHERE id = ?1",
	[W_SET_MTIME - DS_SQL_READS_N] =
		"UPDATE entry SET mtime_s = ?2, mtime_ns = ?3 WHERE id = ?1",
	[W_SET_LINK - DS_SQL_READS_N] = "UPDATE entry SET link = ?2 WHERE id = ?1",
	[W_PROMOTE - DS_SQL_READS_N] = "UPDATE entry SET (link, nlink, uid, gid, mode, " SET_COLUMNS
				       ") = (SELECT NULL, nlink, uid, gid, mode, " SET_COLUMNS
				       " FROM entry WHERE id = ?2) WHERE id = ?1",
	[W_REMOVE - DS_SQL_READS_N] = "DELETE FROM entry WHERE id = ?1",
	[W_EXTENT_ADD - DS_SQL_READS_N] =
		"INSERT OR REPLACE INTO extent (file, off, slot, len, digest, pack, ordinal,"
		" stored_off, stored_len) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
	[W_EXTENT_REMOVE - DS_SQL_READS_N] = "DELETE FROM extent WHERE file = ?1 AND off = ?2",
	[W_EXTENT_MOVE - DS_SQL_READS_N] = "UPDATE extent SET file = ?2 WHERE file = ?1",
	[W_XATTR_REMOVE - DS_SQL_READS_N] = "DELETE FROM xattr WHERE entry = ?1",
	[W_XATTR_MOVE - DS_SQL_READS_N] = "UPDATE xattr SET entry = ?2 WHERE entry = ?1",
	[W_PACK_PUT - DS_SQL_READS_N] =
		"INSERT OR REPLACE INTO pack (number, id, size, chunks, raw, live)"
		" VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
	[W_PACK_REMOVE - DS_SQL_READS_N] = "DELETE FROM pack WHERE number = ?1",
	[W_META_PUT - DS_SQL_READS_N] = "INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)",
	[W_META_REMOVE - DS_SQL_READS_N] = "DELETE FROM meta WHERE key = ?1",
	[W_REJECT_PUT - DS_SQL_READS_N] = "INSERT INTO reject (path, reason) VALUES (?1, ?2)",
	[W_REJECT_CLEAR - DS_SQL_READS_N] = "DELETE FROM reject",
	[W_MAX_ID - DS_SQL_READS_N] = "SELECT max(id) FROM entry",
	[W_ENTRIES_N - DS_SQL_READS_N] = "SELECT count(*) FROM entry",
	[W_LINKS_FILL - DS_SQL_READS_N] =
		"INSERT INTO temp.name_of SELECT link, id FROM entry WHERE type = 4",
	[W_LINK_PUT - DS_SQL_READS_N] = "INSERT INTO temp.name_of VALUES (?1, ?2)",
	[W_LINK_REMOVE - DS_SQL_READS_N] = "DELETE FROM temp.name_of WHERE ino = ?1 AND id = ?2",
	[W_LINK_NEXT - DS_SQL_READS_N] =
		"SELECT id FROM temp.name_of WHERE ino = ?1 AND id > ?2 ORDER BY id LIMIT 1",
};

int builder_give_up(struct ds_builder *builder, int r)
{
	if (!builder->failed)
		builder->failed = r;
	return r;
}

int builder_run(struct ds_builder *builder, sqlite3_stmt *stmt)
{
	int r = ds_sql_run(&builder->sql, stmt);

	if (r < 0 && r != -EEXIST)
		builder_give_up(builder, r);
	return r;
}

int builder_count(struct ds_builder *builder, uint64_t *value, int64_t change)
{
	uint64_t sum = *value + (uint64_t)change;

	if (change < 0 ? *value < (uint64_t)-change : sum > INT64_MAX)
		return builder_give_up(builder,
				       ds_sql_malformed(&builder->sql, "the counts are not right"));
	*value = sum;
	return 0;
}

int builder_flush_pending(struct ds_builder *builder)
{
	sqlite3_stmt *stmt = builder->sql.stmts[W_SET_COUNTS];
	int r;

	if (builder->pending.nlink_change == 0 && builder->pending.size_change == 0)
		return 0;
	sqlite3_bind_int64(stmt, 1, (sqlite3_int64)builder->pending.id);
	sqlite3_bind_int64(stmt, 2, builder->pending.nlink_change);
	sqlite3_bind_int64(stmt, 3, builder->pending.size_change);
	r = builder_run(builder, stmt);
	if (r < 0)
		return r;
	builder->pending.nlink_change = builder->pending.size_change = 0;
	return 0;
}

void builder_apply_pending(const struct ds_builder *builder, struct ds_entry *entry)
{
	if (entry->id != builder->pending.id)
		return;
	entry->nlink += (uint32_t)builder->pending.nlink_change;
	entry->size_bytes += (uint64_t)builder->pending.size_change;
}

static int open_database(struct ds_builder *builder, const char *path, uint32_t page_size)
{
	struct ds_sql *sql = &builder->sql;
	char pragmas[400];
	int rc, r;

	/* Not with SQLITE_OPEN_NOFOLLOW, which refuses a link anywhere in the path. */
	rc = sqlite3_open_v2(path, &sql->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL);
	if (rc != SQLITE_OK)
		return ds_sql_fail(sql, rc);
	/* Before the defensive setting, which would not let the journal be switched off.
	 * secure_delete fills with zeros what is freed, so that nothing of an older version
	 * stays in a page. */
	sqlite3_snprintf(
		sizeof(pragmas), pragmas,
		"PRAGMA page_size = %u; PRAGMA auto_vacuum = NONE; PRAGMA encoding = 'UTF-8';"
		" PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = OFF;"
		" PRAGMA synchronous = OFF; PRAGMA temp_store = MEMORY;"
		" PRAGMA secure_delete = ON; PRAGMA cell_size_check = ON;"
		" PRAGMA cache_size = %d; BEGIN EXCLUSIVE",
		page_size, -CACHE_KIB);
	r = ds_sql_exec(sql, pragmas);
	if (r == 0)
		r = ds_sql_harden(sql);
	return r;
}

static int prepare(struct ds_builder *builder)
{
	struct ds_sql *sql = &builder->sql;
	int r;

	_Static_assert(W_END <= DS_SQL_MAX, "room for all statements");
	r = ds_sql_exec(sql, "CREATE TEMP TABLE name_of (ino INTEGER NOT NULL, id INTEGER NOT NULL,"
			     " PRIMARY KEY (ino, id)) WITHOUT ROWID");
	if (r == 0)
		r = ds_sql_prepare_reads(sql);
	for (unsigned i = DS_SQL_READS_N; r == 0 && i < W_END; i++)
		r = ds_sql_prepare(sql, i, write_texts[i - DS_SQL_READS_N]);
	return r;
}

static int new_builder(struct ds_builder **ret_builder)
{
	struct ds_tree_hasher *hasher;
	struct ds_builder *builder;
	int r;

	r = ds_sql_init();
	if (r < 0)
		return r;
	r = ds_tree_hasher_new(&hasher);
	if (r < 0)
		return r;
	builder = ds_calloc(1, sizeof(*builder));
	r = builder ? ds_map_new(&builder->pack_numbers) : -ENOMEM;
	if (r == 0) {
		builder->sql.ticks_max = TICKS_MAX;
		ds_tree_hasher_finish(hasher, &builder->empty_digest);
	}
	ds_tree_hasher_free(hasher);
	if (r < 0) {
		ds_builder_free(builder);
		return r;
	}
	*ret_builder = builder;
	return 0;
}

static int add_root(struct ds_builder *builder)
{
	sqlite3_stmt *stmt = builder->sql.stmts[W_ADD];

	sqlite3_clear_bindings(stmt);
	sqlite3_bind_int64(stmt, 1, DS_ROOT_ID);
	sqlite3_bind_int64(stmt, 2, 0);
	sqlite3_bind_blob(stmt, 3, "", 0, SQLITE_STATIC);
	sqlite3_bind_int64(stmt, 4, 2);
	sqlite3_bind_int64(stmt, 6, DS_ROW_DIRECTORY);
	sqlite3_bind_int64(stmt, 7, 0);
	sqlite3_bind_int64(stmt, 8, 0);
	sqlite3_bind_int64(stmt, 9, 0);
	sqlite3_bind_blob(stmt, 10, builder->empty_digest.bytes, DS_DIGEST_LEN, SQLITE_STATIC);
	return builder_run(builder, stmt);
}

int ds_builder_create(const char *path, uint32_t page_size, struct ds_builder **ret_builder)
{
	struct ds_builder *builder;
	char pragmas[100];
	int fd, r;

	assert(page_size >= 4096 && page_size <= 65536 && (page_size & (page_size - 1)) == 0);
	r = new_builder(&builder);
	if (r < 0)
		return r;
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0) {
		r = -errno;
		ds_builder_free(builder);
		return r;
	}
	close(fd);
	r = open_database(builder, path, page_size);
	if (r == 0)
		r = ds_sql_exec(&builder->sql, ds_manifest_schema_sql);
	if (r == 0) {
		sqlite3_snprintf(sizeof(pragmas), pragmas,
				 "PRAGMA application_id = %d; PRAGMA user_version = %d",
				 (int)DS_MANIFEST_APPLICATION_ID, DS_MANIFEST_SCHEMA);
		r = ds_sql_exec(&builder->sql, pragmas);
	}
	if (r == 0)
		r = prepare(builder);
	if (r == 0)
		r = add_root(builder);
	if (r < 0) {
		ds_builder_free(builder);
		unlink(path);
		return r;
	}
	builder->next_id = DS_ENTRY_ID_FIRST;
	memset(&builder->stored_totals, 0xff, sizeof(builder->stored_totals)); /* none yet */
	*ret_builder = builder;
	return 0;
}

/* Opens the file as a reader would, so that nothing hostile is left in header and schema when it
 * is opened for writing. */
static int check_parent(const char *path)
{
	struct ds_manifest_file *file;
	struct ds_manifest *manifest;
	struct ds_page_source source;
	int r;

	r = ds_manifest_file_open(path, &file, &source);
	if (r < 0)
		return r;
	r = ds_manifest_new(&source, &manifest);
	if (r == 0) {
		r = ds_manifest_check(manifest, NULL, NULL);
		ds_manifest_free(manifest);
	}
	ds_manifest_file_close(file);
	return r;
}

static int load_next_id(struct ds_builder *builder)
{
	sqlite3_stmt *stmt = builder->sql.stmts[W_MAX_ID];
	bool has_row;
	int64_t max;
	int r;

	r = ds_sql_step(&builder->sql, stmt, &has_row);
	if (r < 0)
		return r;
	max = sqlite3_column_int64(stmt, 0);
	sqlite3_reset(stmt);
	if (max < (int64_t)DS_ROOT_ID || max > (int64_t)DS_ENTRY_ID_MAX)
		return ds_sql_malformed(&builder->sql, "entry %lld: id", (long long)max);
	builder->next_id = DS_MAX((uint64_t)max + 1, DS_ENTRY_ID_FIRST);
	return 0;
}

int ds_builder_open(const char *path, struct ds_builder **ret_builder)
{
	struct ds_builder *builder;
	int r;

	r = check_parent(path);
	if (r < 0)
		return r;
	r = new_builder(&builder);
	if (r < 0)
		return r;
	r = open_database(builder, path, 4096); /* an existing file keeps its own */
	if (r == 0)
		r = prepare(builder);
	if (r == 0)
		r = load_next_id(builder);
	if (r == 0)
		r = builder_packs_load(builder);
	if (r == 0)
		r = builder_totals_load(builder);
	if (r < 0) {
		ds_builder_free(builder);
		return r;
	}
	*ret_builder = builder;
	return 0;
}

struct ds_builder *ds_builder_free(struct ds_builder *builder)
{
	if (!builder)
		return NULL;
	ds_sql_close(&builder->sql);
	builder_packs_release(builder);
	ds_free(builder);
	return NULL;
}

const struct ds_diag *ds_builder_error(const struct ds_builder *builder)
{
	return &builder->sql.diag;
}

int ds_builder_finish(struct ds_builder *builder)
{
	int r = builder->failed;

	assert(!builder->is_finished);
	if (r == 0)
		r = builder_flush_pending(builder);
	if (r == 0)
		r = builder_packs_store(builder);
	if (r == 0)
		r = builder_totals_store(builder);
	if (r == 0)
		r = ds_sql_exec(&builder->sql, "COMMIT");
	builder->is_finished = true;
	ds_sql_close(&builder->sql);
	return r < 0 ? builder_give_up(builder, r) : 0;
}

int ds_builder_lookup(struct ds_builder *builder, uint64_t parent, const char *name,
		      size_t name_len, struct ds_entry *ret_entry)
{
	int r;

	if (builder->failed)
		return builder->failed;
	r = ds_read_lookup(&builder->sql, parent, name, name_len, ret_entry);
	if (r == 0)
		builder_apply_pending(builder, ret_entry);
	return r;
}

int ds_builder_get(struct ds_builder *builder, uint64_t ino, struct ds_entry *ret_entry)
{
	int r;

	if (builder->failed)
		return builder->failed;
	r = ds_read_get(&builder->sql, ino, ret_entry);
	if (r == 0)
		builder_apply_pending(builder, ret_entry);
	return r;
}

struct listing {
	const struct ds_builder *builder;
	ds_manifest_list_fn *fn;
	void *ctx;
};

static int list_entry(void *ctx, const struct ds_entry *entry)
{
	const struct listing *listing = ctx;
	struct ds_entry now = *entry;

	builder_apply_pending(listing->builder, &now);
	return listing->fn(listing->ctx, &now);
}

int ds_builder_list(struct ds_builder *builder, uint64_t dir, ds_manifest_list_fn *fn, void *ctx)
{
	struct listing listing = {.builder = builder, .fn = fn, .ctx = ctx};

	return builder->failed ? builder->failed
			       : ds_read_list(&builder->sql, dir, NULL, 0, list_entry, &listing);
}

int ds_builder_entries_n(struct ds_builder *builder, uint64_t *ret_n)
{
	sqlite3_stmt *stmt = builder->sql.stmts[W_ENTRIES_N];
	bool has_row;
	int r;

	if (builder->failed)
		return builder->failed;
	r = ds_sql_step(&builder->sql, stmt, &has_row);
	if (r < 0)
		return r;
	*ret_n = (uint64_t)sqlite3_column_int64(stmt, 0);
	sqlite3_reset(stmt);
	return 0;
}

int ds_builder_extents(struct ds_builder *builder, uint64_t ino, struct ds_extent *ret_extents,
		       size_t max_n, size_t *ret_n)
{
	if (builder->failed)
		return builder->failed;
	return ds_read_extents(&builder->sql, ino, 0, UINT64_MAX, ret_extents, max_n, ret_n);
}
