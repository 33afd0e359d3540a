/*
 * The read-only VFS. SQLite takes an immutable file as one that nobody else touches: no locks, no
 * journal, no look at the change counter, and its page cache stays from one statement to the next.
 *
 * INV-1: a page that cannot be had gives SQLITE_IOERR_READ, and reader->error says why; SQLite then
 * drops the page from its cache, so that the next try asks again.
 * INV-2: no byte comes from anywhere but source->read_page and source->mapping.
 *
 * A mapping is copied from, not handed to SQLite (xFetch): SQLite keeps no page that it has mapped,
 * so that each use of one checks all its cells anew. Measured with 1,000,000 rows, look-ups at
 * random per second: mapped 68,000, copied 158,000 (read from a file 117,000); mapped without the
 * check of cells 233,000, which a hostile file forbids.
 */
#include "manifest/manifest_vfs.h"

#include <pthread.h>
#include <string.h>

#include "util/mem.h"
#include "util/random.h"

struct page_file {
	sqlite3_file base;
	struct ds_page_reader *reader;
};

/* Hands the reader to file_open, which SQLite calls within sqlite3_open_v2 on the same thread. */
static _Thread_local struct ds_page_reader *opening;

static struct ds_page_reader *reader_of(sqlite3_file *file)
{
	return ((struct page_file *)file)->reader;
}

static int file_close(sqlite3_file *file)
{
	return SQLITE_OK;
}

static int read_page(struct ds_page_reader *reader, uint64_t page, void *ret_data)
{
	const struct ds_page_source *source = reader->source;
	const uint8_t *mapping = source->mapping ? source->mapping(source->ctx) : NULL;
	int r;

	if (mapping) {
		memcpy(ret_data, mapping + page * source->page_size, source->page_size);
		return SQLITE_OK;
	}
	r = source->read_page(source->ctx, reader->want, page, ret_data);
	if (r < 0) {
		if (!reader->error)
			reader->error = r;
		return SQLITE_IOERR_READ;
	}
	return SQLITE_OK;
}

/* Less than a page: SQLite does so for the file's header only, when it opens. */
static int read_part(struct ds_page_reader *reader, uint64_t page, size_t skip, size_t len,
		     void *ret_data)
{
	_ds_cleanup_free_ uint8_t *whole = NULL;
	int rc;

	if (page == 0) {
		memcpy(ret_data, reader->header + skip, len);
		return SQLITE_OK;
	}
	whole = ds_malloc(reader->source->page_size);
	if (!whole)
		return SQLITE_IOERR_NOMEM;
	rc = read_page(reader, page, whole);
	if (rc == SQLITE_OK)
		memcpy(ret_data, whole + skip, len);
	return rc;
}

static int file_read(sqlite3_file *file, void *ret_data, int amount, sqlite3_int64 off)
{
	struct ds_page_reader *reader = reader_of(file);
	uint32_t page_size = reader->source->page_size;
	uint64_t size = reader->source->pages_n * page_size;
	uint64_t at = (uint64_t)off;
	uint8_t *to = ret_data;
	size_t left = (size_t)amount;

	while (left > 0 && at < size) {
		size_t skip = at % page_size;
		size_t len = DS_MIN(left, page_size - skip);
		int rc;

		if (len == page_size)
			rc = read_page(reader, at / page_size, to);
		else
			rc = read_part(reader, at / page_size, skip, len, to);
		if (rc != SQLITE_OK)
			return rc;
		to += len;
		at += len;
		left -= len;
	}
	if (left == 0)
		return SQLITE_OK;
	memset(to, 0, left);
	return SQLITE_IOERR_SHORT_READ;
}

static int file_write(sqlite3_file *file, const void *data, int amount, sqlite3_int64 off)
{
	return SQLITE_READONLY;
}

static int file_truncate(sqlite3_file *file, sqlite3_int64 size)
{
	return SQLITE_READONLY;
}

static int file_sync(sqlite3_file *file, int flags)
{
	return SQLITE_OK;
}

static int file_size(sqlite3_file *file, sqlite3_int64 *ret_size)
{
	const struct ds_page_source *source = reader_of(file)->source;

	*ret_size = (sqlite3_int64)(source->pages_n * source->page_size);
	return SQLITE_OK;
}

static int file_lock(sqlite3_file *file, int level)
{
	return SQLITE_OK;
}

static int file_is_reserved(sqlite3_file *file, int *ret_is)
{
	*ret_is = 0;
	return SQLITE_OK;
}

static int file_control(sqlite3_file *file, int op, void *arg)
{
	return SQLITE_NOTFOUND;
}

static int file_sector_size(sqlite3_file *file)
{
	return 4096;
}

static int file_characteristics(sqlite3_file *file)
{
	return SQLITE_IOCAP_IMMUTABLE;
}

static const sqlite3_io_methods file_methods = {
	.iVersion = 1,
	.xClose = file_close,
	.xRead = file_read,
	.xWrite = file_write,
	.xTruncate = file_truncate,
	.xSync = file_sync,
	.xFileSize = file_size,
	.xLock = file_lock,
	.xUnlock = file_lock,
	.xCheckReservedLock = file_is_reserved,
	.xFileControl = file_control,
	.xSectorSize = file_sector_size,
	.xDeviceCharacteristics = file_characteristics,
};

static int vfs_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags,
		    int *ret_flags)
{
	file->pMethods = NULL;
	/* No temporary files: no statement of ours needs one. */
	if (!opening || !(flags & SQLITE_OPEN_MAIN_DB))
		return SQLITE_CANTOPEN;
	((struct page_file *)file)->reader = opening;
	file->pMethods = &file_methods;
	if (ret_flags)
		*ret_flags = SQLITE_OPEN_READONLY | SQLITE_OPEN_MAIN_DB;
	return SQLITE_OK;
}

static int vfs_delete(sqlite3_vfs *vfs, const char *name, int sync_dir)
{
	return SQLITE_IOERR_DELETE;
}

static int vfs_access(sqlite3_vfs *vfs, const char *name, int flags, int *ret_is)
{
	*ret_is = 0;
	return SQLITE_OK;
}

static int vfs_full_name(sqlite3_vfs *vfs, const char *name, int size, char *ret_name)
{
	sqlite3_snprintf(size, ret_name, "%s", name);
	return SQLITE_OK;
}

static int vfs_randomness(sqlite3_vfs *vfs, int len, char *ret_data)
{
	ds_random_bytes(ret_data, (size_t)len);
	return len;
}

static int vfs_sleep(sqlite3_vfs *vfs, int us)
{
	return 0;
}

static int vfs_time(sqlite3_vfs *vfs, sqlite3_int64 *ret_ms)
{
	*ret_ms = 0;
	return SQLITE_OK;
}

static int vfs_last_error(sqlite3_vfs *vfs, int size, char *ret_text)
{
	return 0;
}

static sqlite3_vfs page_vfs = {
	.iVersion = 2,
	.szOsFile = sizeof(struct page_file),
	.mxPathname = 64,
	.zName = "dsfs-pages",
	.xOpen = vfs_open,
	.xDelete = vfs_delete,
	.xAccess = vfs_access,
	.xFullPathname = vfs_full_name,
	.xRandomness = vfs_randomness,
	.xSleep = vfs_sleep,
	.xGetLastError = vfs_last_error,
	.xCurrentTimeInt64 = vfs_time,
};

static int register_result = SQLITE_ERROR;

static void register_vfs(void)
{
	register_result = sqlite3_vfs_register(&page_vfs, 0);
}

int ds_vfs_open(struct ds_page_reader *reader, sqlite3 **ret_db)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	int rc;

	pthread_once(&once, register_vfs);
	if (register_result != SQLITE_OK)
		return register_result;
	opening = reader;
	rc = sqlite3_open_v2("manifest", ret_db, SQLITE_OPEN_READONLY | SQLITE_OPEN_NOMUTEX,
			     page_vfs.zName);
	opening = NULL;
	return rc;
}
