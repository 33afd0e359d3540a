/*
 * Opening a manifest as a hostile file, and the pool of connections.
 *
 * INV-1: SQLite sees no byte before the file's header was checked, and runs no statement on user
 * tables before the schema's text was compared.
 * INV-2: a connection is in the pool or in one call's hands, never in both; `want` is set only in the
 * latter case.
 * INV-3: opening starts afresh each time: a page that is not local closes the half-open connection.
 */
#include "manifest/manifest_impl.h"

#include <string.h>

#include "codec/page_index.h"

/*
 * What a connection holds of pages. Of an 8 KiB manifest about one page of 128 is an inner one of a B-tree, and those should stay while
 * leaves pass through. Pages read for each look-up at random (manifest_bench): of 100,000 rows 1.8; of 10,000,000 with 1 MiB 3.7, with
 * 4 MiB 2.8, with 8 MiB 2.2. CPU time of one reader's look-ups in 10,000,000 files against 100,000, with 20 threads: a connection for each
 * thread, 4 MiB: 1.52 x; as few as are in use at one moment 1.36 x; with 8 MiB 1.27 x.
 *
 * All together hold at most CACHE_ALL_KIB, in equal shares: there are as many as were ever in use at one moment, which is one for each
 * processor that is busy with the mount, but more where threads wait for the disk or are stopped in the middle of one. A connection
 * takes its share anew whenever it is used.
 */
#define CACHE_MIN_KIB	     256u
#define CACHE_WANTED_MIN_KIB 1024u
#define CACHE_MAX_KIB	     8192u
#define CACHE_ALL_KIB	     16384u
#define CACHE_SHARE	     128u
_Static_assert(CACHE_ALL_KIB / DS_LANES_N >= CACHE_MIN_KIB, "all that may be idle are within it");

/* A statement that takes over a million steps of the virtual machine without a row runs away. */
#define TICKS_MAX 100u

static uint16_t be16(const uint8_t *p)
{
	return (uint16_t)(p[0] << 8 | p[1]);
}

static uint32_t be32(const uint8_t *p)
{
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* SQLite's file format, section 1.3; everything that we do not write ourselves is refused. */
static int check_header(struct ds_sql *sql, const struct ds_page_source *source,
			const uint8_t *header)
{
	static const uint8_t zeros[20];
	uint32_t page_size = be16(header + 16);

	if (memcmp(header, "SQLite format 3", 16) != 0)
		return ds_sql_malformed(sql, "not an SQLite file");
	if (be32(header + 68) != DS_MANIFEST_APPLICATION_ID)
		return ds_sql_malformed(sql, "not a manifest");
	if (be32(header + 60) > DS_MANIFEST_SCHEMA) {
		ds_diag_clear(&sql->diag);
		return ds_diag_set(&sql->diag, -DS_E_TOO_NEW, NULL,
				   "schema number %u, this build reads up to %u", be32(header + 60),
				   DS_MANIFEST_SCHEMA);
	}
	if (be32(header + 60) != DS_MANIFEST_SCHEMA)
		return ds_sql_malformed(sql, "schema number");
	if (page_size == 1)
		page_size = 65536;
	if (page_size != source->page_size)
		return ds_sql_malformed(sql, "page size");
	if (be32(header + 28) != source->pages_n || be32(header + 24) != be32(header + 92))
		return ds_sql_malformed(sql, "number of pages");
	/* Rollback journal, no reserved bytes, the fixed fractions, schema format 4, no
	 * auto-vacuum, UTF-8, expansion space zero. */
	if (memcmp(header + 18, "\1\1\0\100\40\40", 6) != 0 || be32(header + 44) != 4 ||
	    be32(header + 52) != 0 || be32(header + 56) != 1 || be32(header + 64) != 0 ||
	    memcmp(header + 72, zeros, sizeof(zeros)) != 0)
		return ds_sql_malformed(sql, "file header");
	return 0;
}

/* Reading the tables is all that a statement may do; the pragmas are those of conn_open and of
 * verify. */
static int authorize(void *ctx, int action, const char *a, const char *b, const char *database,
		     const char *trigger)
{
	static const char *const pragmas[] = {"cache_size", "cell_size_check", "integrity_check",
					      "mmap_size"};

	if (trigger)
		return SQLITE_DENY;
	if (action == SQLITE_SELECT || action == SQLITE_READ)
		return SQLITE_OK;
	for (size_t i = 0; action == SQLITE_PRAGMA && i < DS_ARRAY_SIZE(pragmas); i++) {
		if (strcmp(a, pragmas[i]) == 0)
			return SQLITE_OK;
	}
	return SQLITE_DENY;
}

static unsigned cache_kib(const struct ds_manifest *manifest)
{
	const struct ds_page_source *source = &manifest->source;
	uint64_t wanted = source->pages_n * source->page_size / CACHE_SHARE / 1024;
	unsigned n = atomic_load_explicit(&manifest->conns_n, memory_order_relaxed);
	unsigned share = CACHE_ALL_KIB / DS_MAX(n, 1u);

	wanted = DS_MIN(DS_MAX(wanted, (uint64_t)CACHE_WANTED_MIN_KIB), (uint64_t)CACHE_MAX_KIB);
	return DS_MAX((unsigned)DS_MIN(wanted, (uint64_t)share), CACHE_MIN_KIB);
}

static int set_cache(struct ds_manifest *manifest, struct ds_conn *conn)
{
	unsigned kib = cache_kib(manifest);
	char pragma[64];
	int r;

	if (kib == conn->cache_kib)
		return 0;
	sqlite3_snprintf(sizeof(pragma), pragma, "PRAGMA cache_size = -%u", kib);
	r = ds_sql_exec(&conn->sql, pragma);
	if (r == 0)
		conn->cache_kib = kib;
	return r;
}

static int conn_open(struct ds_manifest *manifest, struct ds_conn *conn)
{
	struct ds_sql *sql = &conn->sql;
	int rc, r;

	r = manifest->source.read_page(manifest->source.ctx, conn->reader.want, 0,
				       conn->reader.header);
	if (r < 0) {
		conn->reader.error = r;
		return ds_sql_fail(sql, SQLITE_IOERR_READ);
	}
	r = check_header(sql, &manifest->source, conn->reader.header);
	if (r < 0)
		return r;
	rc = ds_vfs_open(&conn->reader, &sql->db);
	if (rc != SQLITE_OK)
		return ds_sql_fail(sql, rc);
	sqlite3_set_authorizer(sql->db, authorize, NULL);
	r = ds_sql_harden(sql);
	if (r < 0)
		return r;
	r = ds_sql_exec(sql, "PRAGMA cell_size_check = ON; PRAGMA mmap_size = 0");
	if (r == 0)
		r = set_cache(manifest, conn);
	if (r == 0)
		r = ds_sql_check_schema(sql);
	if (r == 0)
		r = ds_sql_prepare_reads(sql);
	return r;
}

static struct ds_conn *conn_free(struct ds_manifest *manifest, struct ds_conn *conn)
{
	atomic_fetch_sub_explicit(&manifest->conns_n, 1, memory_order_relaxed);
	ds_sql_close(&conn->sql);
	ds_free(conn->reader.header);
	ds_free(conn);
	return NULL;
}

static void note_error(struct ds_manifest *manifest, const struct ds_diag *diag)
{
	pthread_mutex_lock(&manifest->lock);
	manifest->locked.error = *diag;
	pthread_mutex_unlock(&manifest->lock);
}

int ds_conn_take(struct ds_manifest *manifest, void *want, struct ds_conn **ret_conn)
{
	struct ds_conn *conn = ds_lanes_take(&manifest->conns);
	int r;

	if (conn) {
		conn->reader.want = want;
		/* What goes wrong with it goes wrong with the call, too. */
		set_cache(manifest, conn);
		*ret_conn = conn;
		return 0;
	}

	r = ds_sql_init();
	if (r < 0)
		return r;
	conn = ds_calloc(1, sizeof(*conn));
	if (!conn)
		return -ENOMEM;
	atomic_fetch_add_explicit(&manifest->conns_n, 1, memory_order_relaxed);
	conn->reader.source = &manifest->source;
	conn->reader.want = want;
	conn->reader.header = ds_malloc(manifest->source.page_size);
	conn->sql.source_error = &conn->reader.error;
	conn->sql.ticks_max = TICKS_MAX;
	r = conn->reader.header ? conn_open(manifest, conn) : -ENOMEM;
	if (r < 0) {
		if (r != -DS_E_NOT_LOCAL && conn->sql.diag.code)
			note_error(manifest, &conn->sql.diag);
		conn_free(manifest, conn);
		return r;
	}
	*ret_conn = conn;
	return 0;
}

int ds_conn_put(struct ds_manifest *manifest, struct ds_conn *conn, int r)
{
	if (r < 0 && conn->sql.diag.code == r)
		note_error(manifest, &conn->sql.diag);
	conn->sql.diag.code = 0;
	conn->reader.want = NULL;
	conn->reader.error = 0;
	if (conn->sql.is_broken || !ds_lanes_put(&manifest->conns, conn))
		conn_free(manifest, conn);
	return r;
}

int ds_manifest_new(const struct ds_page_source *source, struct ds_manifest **ret_manifest)
{
	struct ds_manifest *manifest;

	if (source->page_size < 512 || source->page_size > 65536 ||
	    (source->page_size & (source->page_size - 1)) || source->pages_n == 0 ||
	    source->pages_n > DS_MANIFEST_PAGES_MAX)
		return -DS_E_MALFORMED;
	manifest = ds_calloc(1, sizeof(*manifest));
	if (!manifest)
		return -ENOMEM;
	manifest->source = *source;
	pthread_mutex_init(&manifest->lock, NULL);
	*ret_manifest = manifest;
	return 0;
}

struct ds_manifest *ds_manifest_free(struct ds_manifest *manifest)
{
	struct ds_conn *conn;

	if (!manifest)
		return NULL;
	while ((conn = ds_lanes_take(&manifest->conns)))
		conn_free(manifest, conn);
	pthread_mutex_destroy(&manifest->lock);
	ds_free(manifest);
	return NULL;
}

void ds_manifest_error(struct ds_manifest *manifest, struct ds_diag *ret_diag)
{
	pthread_mutex_lock(&manifest->lock);
	*ret_diag = manifest->locked.error;
	pthread_mutex_unlock(&manifest->lock);
}

int ds_manifest_check(struct ds_manifest *manifest, void *want, struct ds_diag *reterr_diag)
{
	struct ds_conn *conn;
	struct ds_entry root;
	int r;

	r = ds_conn_take(manifest, want, &conn);
	if (r == 0) {
		r = ds_read_get(&conn->sql, DS_ROOT_ID, &root);
		if (r == -ENOENT)
			r = ds_sql_malformed(&conn->sql, "no root");
		r = ds_conn_put(manifest, conn, r);
	}
	if (r < 0 && r != -DS_E_NOT_LOCAL && reterr_diag) {
		ds_manifest_error(manifest, reterr_diag);
		/* Another thread's failure may have been the last. */
		if (reterr_diag->code != r)
			ds_diag_clear(reterr_diag);
		reterr_diag->code = r;
	}
	return r;
}
