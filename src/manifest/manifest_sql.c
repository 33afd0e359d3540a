#include "manifest/manifest_sql.h"

#include <malloc.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "manifest/manifest.h"
#include "manifest/manifest_row.h"
#include "util/log.h"
#include "util/mem.h"

/* The progress handler runs once in so many steps of the virtual machine; a look-up takes about
 * 100. */
#define TICK_OPS 10000

/* SQLite's allocations go through util/mem.c too, so that tests make them fail. */
static void *mem_malloc(int n)
{
	return ds_malloc((size_t)n);
}

static void *mem_realloc(void *p, int n)
{
	return ds_realloc(p, (size_t)n);
}

static int mem_size(void *p)
{
	return p ? (int)malloc_usable_size(p) : 0;
}

static int mem_roundup(int n)
{
	return (n + 7) & ~7;
}

static int mem_init(void *ctx)
{
	return SQLITE_OK;
}

static void mem_shutdown(void *ctx)
{
}

static void log_line(void *ctx, int rc, const char *text)
{
	/* A page that is not local yet is an I/O error to SQLite: the ordinary course of things. */
	if ((rc & 0xff) != SQLITE_IOERR)
		ds_log_debug("sqlite: %s (%d)", text, rc);
}

static void configure(void)
{
	static const struct sqlite3_mem_methods methods = {
		.xMalloc = mem_malloc,
		.xFree = ds_free,
		.xRealloc = mem_realloc,
		.xSize = mem_size,
		.xRoundup = mem_roundup,
		.xInit = mem_init,
		.xShutdown = mem_shutdown,
	};

	/* These fail where SQLite runs already (a test that used it before us): then its
	 * defaults hold, which are right, only slower with many threads. */
	sqlite3_config(SQLITE_CONFIG_MALLOC, &methods);
	sqlite3_config(SQLITE_CONFIG_MEMSTATUS, 0); /* its counters take a global lock */
	sqlite3_config(SQLITE_CONFIG_LOG, log_line, NULL);
}

int ds_sql_init(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, configure);
	return sqlite3_initialize() == SQLITE_OK ? 0 : -ENOMEM;
}

static int count_tick(void *ctx)
{
	struct ds_sql *sql = ctx;

	return sql->ticks_max > 0 && ++sql->ticks > sql->ticks_max;
}

int ds_sql_harden(struct ds_sql *sql)
{
	static const struct {
		int option, value;
	} options[] = {
		{SQLITE_DBCONFIG_DEFENSIVE, 1},
		{SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0},
		{SQLITE_DBCONFIG_ENABLE_TRIGGER, 0},
		{SQLITE_DBCONFIG_ENABLE_VIEW, 0},
		{SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0},
		{SQLITE_DBCONFIG_ENABLE_FKEY, 0},
		{SQLITE_DBCONFIG_WRITABLE_SCHEMA, 0},
		{SQLITE_DBCONFIG_DQS_DML, 0},
		{SQLITE_DBCONFIG_DQS_DDL, 0},
	};
	/* No limit on the heap: SQLite has that per process only. These, the page cache's size
	 * and the lack of sorting bound a connection instead. */
	static const struct {
		int id, value;
	} limits[] = {
		{SQLITE_LIMIT_LENGTH, DS_SQL_LENGTH_MAX},
		{SQLITE_LIMIT_SQL_LENGTH, 10000},
		{SQLITE_LIMIT_COLUMN, 100},
		{SQLITE_LIMIT_EXPR_DEPTH, 20},
		{SQLITE_LIMIT_COMPOUND_SELECT, 3},
		{SQLITE_LIMIT_VDBE_OP, 25000},
		{SQLITE_LIMIT_FUNCTION_ARG, 8},
		{SQLITE_LIMIT_ATTACHED, 0},
		{SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 50},
		{SQLITE_LIMIT_VARIABLE_NUMBER, 40},
		{SQLITE_LIMIT_TRIGGER_DEPTH, 1},
		{SQLITE_LIMIT_WORKER_THREADS, 0},
	};

	sqlite3_extended_result_codes(sql->db, 1);
	for (size_t i = 0; i < DS_ARRAY_SIZE(limits); i++)
		sqlite3_limit(sql->db, limits[i].id, limits[i].value);
	for (size_t i = 0; i < DS_ARRAY_SIZE(options); i++) {
		int rc = sqlite3_db_config(sql->db, options[i].option, options[i].value, NULL);

		if (rc != SQLITE_OK)
			return ds_sql_fail(sql, rc);
	}
	sqlite3_progress_handler(sql->db, TICK_OPS, count_tick, sql);
	return 0;
}

int ds_sql_check_schema(struct ds_sql *sql)
{
	const char *left = ds_manifest_schema_sql;
	sqlite3_stmt *stmt = NULL;
	bool has_row;
	int rc, r;

	rc = sqlite3_prepare_v2(sql->db, "SELECT sql FROM main.sqlite_schema ORDER BY rowid", -1,
				&stmt, NULL);
	if (rc != SQLITE_OK)
		return ds_sql_fail(sql, rc);
	while ((r = ds_sql_step(sql, stmt, &has_row)) == 0 && has_row) {
		const char *text = (const char *)sqlite3_column_text(stmt, 0);
		size_t len = text ? (size_t)sqlite3_column_bytes(stmt, 0) : 0;

		/* SQLite stores each statement as it was written, without its ";". */
		if (len == 0 || strlen(left) < len + 2 || memcmp(left, text, len) != 0 ||
		    memcmp(left + len, ";\n", 2) != 0) {
			r = ds_sql_malformed(sql, "the schema is not the one of its number");
			break;
		}
		left += len + 2;
	}
	if (r == 0 && *left)
		r = ds_sql_malformed(sql, "the schema lacks a table");
	sqlite3_finalize(stmt);
	return r;
}

int ds_sql_prepare(struct ds_sql *sql, unsigned i, const char *text)
{
	int rc = sqlite3_prepare_v3(sql->db, text, -1, SQLITE_PREPARE_PERSISTENT, &sql->stmts[i],
				    NULL);

	return rc == SQLITE_OK ? 0 : ds_sql_fail(sql, rc);
}

#define LIST_FROM                                                              \
	" FROM entry n INDEXED BY entry_name LEFT JOIN entry e ON e.id = n.id" \
	" WHERE n.parent = ?1 AND n.name > ?2 ORDER BY n.name"

int ds_sql_prepare_reads(struct ds_sql *sql)
{
	/* An index and the row that it leads to are joined, so that each row's own parent and
	 * name are compared with what the index said: a hostile index cannot show a row under
	 * another name. */
	static const char *const texts[DS_SQL_READS_N] = {
		[DS_SQL_LOOKUP] = "SELECT n.name, " DS_ROW_ENTRY_COLUMNS(
			"e") " FROM entry n INDEXED BY entry_name"
			     " LEFT JOIN entry e ON e.id = n.id WHERE n.parent = ?1 AND n.name = "
			     "?2",
		[DS_SQL_GET] = "SELECT " DS_ROW_ENTRY_COLUMNS("e") " FROM entry e WHERE e.id = ?1",
		[DS_SQL_LIST] = "SELECT n.name, " DS_ROW_ENTRY_COLUMNS("e") LIST_FROM,
		[DS_SQL_LIST_ATTRS] = "SELECT n.name, " DS_ROW_ATTRS_COLUMNS("e") LIST_FROM,
		[DS_SQL_EXTENT_AT] =
			"SELECT " DS_ROW_EXTENT_COLUMNS
			" FROM extent WHERE file = ?1 AND off <= ?2 ORDER BY off DESC LIMIT 1",
		[DS_SQL_EXTENT_FROM] = "SELECT " DS_ROW_EXTENT_COLUMNS
				       " FROM extent WHERE file = ?1 AND off >= ?2 ORDER BY off",
		[DS_SQL_PACK] = "SELECT " DS_ROW_PACK_COLUMNS " FROM pack WHERE number = ?1",
		[DS_SQL_PACKS] = "SELECT " DS_ROW_PACK_COLUMNS
				 " FROM pack WHERE number > ?1 ORDER BY number",
		[DS_SQL_META] = "SELECT value FROM meta WHERE key = ?1",
		[DS_SQL_REJECTS] = "SELECT path, reason FROM reject ORDER BY path",
	};

	for (unsigned i = 0; i < DS_SQL_READS_N; i++) {
		int r = ds_sql_prepare(sql, i, texts[i]);

		if (r < 0)
			return r;
	}
	return 0;
}

int ds_sql_exec(struct ds_sql *sql, const char *text)
{
	int rc;

	sql->ticks = 0;
	rc = sqlite3_exec(sql->db, text, NULL, NULL, NULL);
	return rc == SQLITE_OK ? 0 : ds_sql_fail(sql, rc);
}

void ds_sql_close(struct ds_sql *sql)
{
	for (unsigned i = 0; i < DS_SQL_MAX; i++) {
		sqlite3_finalize(sql->stmts[i]);
		sql->stmts[i] = NULL;
	}
	sqlite3_close(sql->db);
	sql->db = NULL;
}

int ds_sql_step(struct ds_sql *sql, sqlite3_stmt *stmt, bool *ret_has_row)
{
	int rc;

	sql->ticks = 0;
	rc = sqlite3_step(stmt);
	/* Should SQLite ever pass over a failed read, we do not. */
	if (sql->source_error && *sql->source_error)
		rc = SQLITE_IOERR_READ;
	if (rc == SQLITE_ROW || rc == SQLITE_DONE) {
		*ret_has_row = rc == SQLITE_ROW;
		return 0;
	}
	rc = ds_sql_fail(sql, rc);
	sqlite3_reset(stmt);
	return rc;
}

int ds_sql_run(struct ds_sql *sql, sqlite3_stmt *stmt)
{
	bool has_row;
	int r = ds_sql_step(sql, stmt, &has_row);

	if (r == 0)
		sqlite3_reset(stmt);
	return r;
}

static int code_of(struct ds_sql *sql, int rc)
{
	int err = 0;

	switch (rc & 0xff) {
	case SQLITE_NOMEM:
		return -ENOMEM;
	case SQLITE_FULL:
		return -ENOSPC;
	case SQLITE_READONLY:
		return -EROFS;
	case SQLITE_BUSY:
	case SQLITE_LOCKED:
		return -EBUSY;
	case SQLITE_CONSTRAINT:
		return -EEXIST;
	case SQLITE_IOERR:
	case SQLITE_CANTOPEN:
		if (rc == SQLITE_IOERR_NOMEM)
			return -ENOMEM;
		/* A damaged database file can be shorter than its header says. */
		if (rc == SQLITE_IOERR_SHORT_READ)
			return -DS_E_MALFORMED;
		if (sql->source_error || !sql->db)
			return -EIO;
		err = sqlite3_system_errno(sql->db);
		if (err == 0)
			sqlite3_file_control(sql->db, "main", SQLITE_FCNTL_LAST_ERRNO, &err);
		return err > 0 ? -err : -EIO;
	default:
		/* CORRUPT, NOTADB, TOOBIG, INTERRUPT (ran away), ERROR, AUTH, MISMATCH: the
		 * file. */
		return -DS_E_MALFORMED;
	}
}

int ds_sql_fail(struct ds_sql *sql, int rc)
{
	int code;

	if (sql->source_error && *sql->source_error) {
		code = *sql->source_error;
		if (code == -DS_E_NOT_LOCAL)
			return code;
	} else {
		code = code_of(sql, rc);
	}
	if (code != -EEXIST)
		sql->is_broken = true;
	ds_diag_clear(&sql->diag);
	ds_diag_set(&sql->diag, code, NULL, "%s",
		    (rc & 0xff) == SQLITE_INTERRUPT ? "a look-up that does not end"
						    : sqlite3_errmsg(sql->db));
	sql->diag.sqlite_code = rc;
	return code;
}

int ds_sql_malformed(struct ds_sql *sql, const char *format, ...)
{
	char text[sizeof(sql->diag.detail)];
	va_list ap;

	va_start(ap, format);
	vsnprintf(text, sizeof(text), format, ap);
	va_end(ap);
	ds_diag_clear(&sql->diag);
	return ds_diag_set(&sql->diag, -DS_E_MALFORMED, NULL, "%s", text);
}
