/*
 * What the reading and the building side share of SQLite: a connection with its prepared
 * statements, the settings that a hostile file is opened with, and the translation of SQLite's
 * results into our codes. Inside this layer only.
 *
 * Threads: a struct ds_sql belongs to one thread at a time (its connection has no mutex).
 */
#ifndef DS_MANIFEST_MANIFEST_SQL_H
#define DS_MANIFEST_MANIFEST_SQL_H

#include <sqlite3.h>
#include <stdbool.h>

#include "util/diag.h"

/* A value longer than this is refused: names, targets, paths and reasons are all far shorter. */
#define DS_SQL_LENGTH_MAX 131072

/* Statements that read; a builder appends its own from DS_SQL_READS_N on. */
enum ds_sql_read {
	DS_SQL_LOOKUP,	    /* parent, name */
	DS_SQL_GET,	    /* id */
	DS_SQL_LIST,	    /* parent, after name */
	DS_SQL_LIST_ATTRS,  /* parent, after name */
	DS_SQL_EXTENT_AT,   /* file, off: the last extent that begins at or before off */
	DS_SQL_EXTENT_FROM, /* file, off: those that begin at or after off */
	DS_SQL_PACK,	    /* number */
	DS_SQL_PACKS,	    /* after number */
	DS_SQL_META,	    /* key */
	DS_SQL_REJECTS,
	DS_SQL_READS_N,
};
#define DS_SQL_MAX 40

struct ds_sql {
	sqlite3 *db;
	/* The page source's error of the present call, 0 if none; NULL: an ordinary file. */
	const int *source_error;
	/* A result that may have left the connection useless: the pool drops it. */
	bool is_broken;
	/* Ten thousands of steps since the last row, and after how many a statement is stopped
	 * because it runs away (0: never). */
	unsigned ticks, ticks_max;
	struct ds_diag diag; /* of the last failure other than -DS_E_NOT_LOCAL */
	sqlite3_stmt *stmts[DS_SQL_MAX];
};

/* Library set-up, once per process; cheap afterwards. -ENOMEM. */
int ds_sql_init(void);

/* Limits and defensive settings for a connection that was just opened, before its first
 * statement. */
int ds_sql_harden(struct ds_sql *sql);
/* Compares the whole text of the schema with ours. -DS_E_MALFORMED. */
int ds_sql_check_schema(struct ds_sql *sql);
int ds_sql_prepare(struct ds_sql *sql, unsigned i, const char *text);
int ds_sql_prepare_reads(struct ds_sql *sql);
int ds_sql_exec(struct ds_sql *sql, const char *text);
/* Finalizes everything and closes; fine on a zeroed struct. */
void ds_sql_close(struct ds_sql *sql);

/* One step. At an error the statement was reset and the code is ours; a caller that leaves a row
 * behind calls sqlite3_reset itself. */
int ds_sql_step(struct ds_sql *sql, sqlite3_stmt *stmt, bool *ret_has_row);
/* A statement without rows, stepped to its end and reset. */
int ds_sql_run(struct ds_sql *sql, sqlite3_stmt *stmt);

/* Our code for an SQLite result, noted in sql->diag. */
int ds_sql_fail(struct ds_sql *sql, int rc);
/* -DS_E_MALFORMED with a reason. */
int ds_sql_malformed(struct ds_sql *sql, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

#endif
