/*
 * The whole check. Each pass reads one table once, in its own order, and what a pass learns is
 * compared at the end:
 *
 *   SQLite's own check of pages, indices and types
 *   entries by id: each row for itself, chunks against the pack table, targets, names per inode
 *   directories from the root down: order, counts, digests, and how many entries the root leads to
 *   extents by file: without gap, content digests, references
 *   packs, totals, rejects
 *
 * INV-1: contents that cannot be read as they should are findings; only a failing source, or
 * memory, is an error.
 * INV-2: no recursion; memory for the directories still to be seen, files with several names, and
 * packs.
 */
#include "manifest/manifest_verify_impl.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "codec/pack.h"

#define FINDINGS_MAX 1000u

void verify_finding(struct verify *verify, const char *format, ...)
{
	char text[512];
	va_list ap;

	if (verify->findings_n++ >= FINDINGS_MAX)
		return;
	va_start(ap, format);
	vsnprintf(text, sizeof(text), format, ap);
	va_end(ap);
	verify->fn(verify->ctx, text);
}

int verify_note(struct verify *verify, int r)
{
	if (r != -DS_E_MALFORMED)
		return r;
	verify_finding(verify, "%s", verify->sql->diag.detail);
	return 0;
}

int verify_prepare(struct verify *verify, const char *text, sqlite3_stmt **ret_stmt)
{
	int rc = sqlite3_prepare_v2(verify->sql->db, text, -1, ret_stmt, NULL);

	return rc == SQLITE_OK ? 0 : ds_sql_fail(verify->sql, rc);
}

/* SQLite's own check gives no row for as long as all is well: it may take about 200 steps for each
 * row, and one of 20 bytes is shorter than any; in ten thousands. A b-tree whose pages are shared
 * by several parents would keep it for ever. */
static unsigned ticks_of_check(const struct ds_page_source *source)
{
	uint64_t ticks = 1000 + source->pages_n * source->page_size / 20 * 200 / 10000;

	return (unsigned)DS_MIN(ticks, (uint64_t)UINT32_MAX - 1);
}

/* What is wrong with pages comes as one text of many lines, the first of which says nothing. */
static void report_lines(struct verify *verify, const char *text)
{
	while (*text) {
		int len = (int)strcspn(text, "\n");

		if (len > 0 && *text != '*')
			verify_finding(verify, "%.*s", len, text);
		text += len + (text[len] == '\n');
	}
}

static int check_pages(struct verify *verify)
{
	sqlite3_stmt *stmt = NULL;
	bool has_row;
	int r;

	r = verify_prepare(verify, "PRAGMA main.integrity_check(1000)", &stmt);
	while (r == 0 && (r = ds_sql_step(verify->sql, stmt, &has_row)) == 0 && has_row) {
		const char *text = (const char *)sqlite3_column_text(stmt, 0);

		if (!text)
			r = ds_sql_fail(verify->sql, SQLITE_NOMEM);
		else if (strcmp(text, "ok") != 0)
			report_lines(verify, text);
	}
	sqlite3_finalize(stmt);
	return verify_note(verify, r);
}

static int load_pack(void *ctx, const struct ds_pack_row *row)
{
	struct verify *verify = ctx;

	if (verify->packs_n == verify->packs_capacity) {
		size_t capacity = DS_MAX(verify->packs_capacity * 2, (size_t)64);
		struct pack *packs = ds_reallocarray(verify->packs, capacity, sizeof(*packs));

		if (!packs)
			return -ENOMEM;
		verify->packs = packs;
		verify->packs_capacity = capacity;
	}
	verify->packs[verify->packs_n++] = (struct pack){.row = *row};
	return 0;
}

static struct pack *find_pack(struct verify *verify, uint32_t number)
{
	size_t low = 0, high = verify->packs_n;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (verify->packs[middle].row.number < number)
			low = middle + 1;
		else
			high = middle;
	}
	return low < verify->packs_n && verify->packs[low].row.number == number
		       ? &verify->packs[low]
		       : NULL;
}

void verify_chunk(struct verify *verify, uint64_t file, const struct ds_entry_chunk *chunk,
		  uint64_t raw_end)
{
	struct pack *pack = find_pack(verify, chunk->pack);

	if (!pack) {
		verify_finding(verify, "file %llu: pack %u is missing", (unsigned long long)file,
			       chunk->pack);
		return;
	}
	pack->seen_n++;
	if (chunk->ordinal >= pack->row.chunks_n ||
	    chunk->stored_off + chunk->stored_len_bytes + DS_PACK_TRAILER_LEN >
		    pack->row.size_bytes ||
	    raw_end > pack->row.raw_bytes)
		verify_finding(verify, "file %llu: a chunk beyond the end of pack %u",
			       (unsigned long long)file, chunk->pack);
}

static struct names *names_of(struct verify *verify, uint64_t ino)
{
	struct names *names = ds_map_get(verify->names, &ino, sizeof(ino));

	if (names)
		return names;
	names = ds_calloc(1, sizeof(*names));
	if (names && ds_map_put(verify->names, &ino, sizeof(ino), names, NULL) < 0) {
		ds_free(names);
		return NULL;
	}
	return names;
}

static void count_size(struct verify *verify, uint64_t size_bytes)
{
	verify->files_n++;
	verify->size_n[ds_size_class(size_bytes)]++;
}

static int check_file(struct verify *verify, const struct ds_entry *entry)
{
	static const struct ds_digest none;
	struct ds_digest empty;
	struct names *names;

	count_size(verify, entry->size_bytes);
	verify->bytes += entry->size_bytes;
	if (entry->chunk.pack)
		verify_chunk(verify, entry->ino, &entry->chunk,
			     entry->chunk.raw_off + entry->size_bytes);
	if (entry->size_bytes == 0) {
		if (ds_digest_of(&none, 0, &empty) < 0)
			return -ENOMEM;
		if (!ds_digest_equal(&empty, &entry->digest))
			verify_finding(verify, "file %llu: digest", (unsigned long long)entry->ino);
	}
	verify->extent_files_n += entry->extents_n > 0;
	if (entry->nlink == 1)
		return 0;
	names = names_of(verify, entry->ino);
	if (!names)
		return -ENOMEM;
	names->nlink = entry->nlink;
	return 0;
}

static int check_link(struct verify *verify, const struct ds_entry *link)
{
	struct ds_entry entry;
	struct names *names;
	int r;

	r = ds_read_name(verify->sql, link->id, &entry);
	if (r < 0)
		return verify_note(verify, r);
	count_size(verify, entry.size_bytes);
	names = names_of(verify, link->ino);
	if (!names)
		return -ENOMEM;
	names->nlink = entry.nlink;
	names->further_n++;
	return 0;
}

static int check_row(struct verify *verify, sqlite3_stmt *stmt)
{
	struct ds_row_extra extra;
	struct ds_digest digest;
	struct ds_entry entry;
	int64_t id = sqlite3_column_int64(stmt, 0);
	int r;

	/* No page is read twice, as in a listing. */
	if (verify->rows_n > 0 && id <= verify->last_id)
		return ds_sql_malformed(verify->sql, "entry %lld: out of order", (long long)id);
	verify->last_id = id;
	verify->rows_n++;
	r = ds_row_entry(verify->sql, stmt, 0, &entry, &extra);
	if (r < 0)
		return verify_note(verify, r);
	if (extra.link)
		return check_link(verify, &entry);
	switch (entry.type) {
	case DS_ENTRY_FILE:
		return check_file(verify, &entry);
	case DS_ENTRY_DIRECTORY:
		verify->subdirectories_n += entry.id != DS_ROOT_ID;
		return 0;
	case DS_ENTRY_SYMLINK:
		verify->symlinks_n++;
		r = ds_digest_of(extra.target, extra.target_len, &digest);
		if (r == 0 && !ds_digest_equal(&digest, &entry.digest))
			verify_finding(verify, "symlink %llu: digest",
				       (unsigned long long)entry.id);
		return r;
	}
	return 0;
}

static int check_rows(struct verify *verify)
{
	sqlite3_stmt *stmt = NULL;
	const void *key;
	size_t key_len, cursor = 0;
	void *value;
	bool has_row;
	int r;

	r = verify_prepare(verify,
			   "SELECT " DS_ROW_ENTRY_COLUMNS(
				   "e") " FROM entry e NOT INDEXED ORDER BY id",
			   &stmt);
	while (r == 0 && (r = ds_sql_step(verify->sql, stmt, &has_row)) == 0 && has_row)
		r = check_row(verify, stmt);
	sqlite3_finalize(stmt);
	while (ds_map_each(verify->names, &cursor, &key, &key_len, &value)) {
		const struct names *names = value;
		uint64_t ino;

		memcpy(&ino, key, sizeof(ino));
		if (names->nlink != names->further_n + 1)
			verify_finding(verify, "file %llu: nlink is %u, names are %llu",
				       (unsigned long long)ino, names->nlink,
				       (unsigned long long)names->further_n + 1);
	}
	return verify_note(verify, r);
}

static void check_packs(struct verify *verify)
{
	for (size_t i = 0; i < verify->packs_n; i++) {
		const struct pack *pack = &verify->packs[i];

		if (pack->row.live_n != pack->seen_n)
			verify_finding(verify, "pack %u: live is %llu, references are %llu",
				       pack->row.number, (unsigned long long)pack->row.live_n,
				       (unsigned long long)pack->seen_n);
	}
}

static int check_total(struct verify *verify, const char *key, uint64_t right)
{
	uint64_t value;
	int r = ds_read_total(verify->sql, key, &value);

	if (r < 0)
		return verify_note(verify, r);
	if (value != right)
		verify_finding(verify, "total \"%s\" is %llu, should be %llu", key,
			       (unsigned long long)value, (unsigned long long)right);
	return 0;
}

static int count_reject(void *ctx, const char *path, size_t path_len, const char *reason)
{
	struct verify *verify = ctx;

	verify->rejected_n++;
	return 0;
}

static int check_totals(struct verify *verify)
{
	const struct {
		const char *key;
		uint64_t value;
	} totals[] = {
		{"files", verify->files_n},	  {"directories", verify->subdirectories_n},
		{"symlinks", verify->symlinks_n}, {"bytes", verify->bytes},
		{"rejected", verify->rejected_n},
	};
	char key[32];
	int r = 0;

	for (size_t i = 0; r == 0 && i < DS_ARRAY_SIZE(totals); i++)
		r = check_total(verify, totals[i].key, totals[i].value);
	for (unsigned i = 0; r == 0 && i < SIZE_CLASSES_N; i++) {
		snprintf(key, sizeof(key), "size_%u", i);
		r = check_total(verify, key, verify->size_n[i]);
	}
	return r;
}

int ds_manifest_verify(struct ds_manifest *manifest, void *want, ds_manifest_finding_fn *fn,
		       void *ctx, uint64_t *ret_findings_n)
{
	struct verify verify = {.fn = fn, .ctx = ctx};
	struct ds_conn *conn;
	unsigned ticks_max;
	int r;

	r = ds_conn_take(manifest, want, &conn);
	if (r == -DS_E_MALFORMED) {
		struct ds_diag diag;

		ds_manifest_error(manifest, &diag);
		verify_finding(&verify, "%s", diag.detail);
		*ret_findings_n = verify.findings_n;
		return 0;
	}
	if (r < 0)
		return r;
	verify.sql = &conn->sql;
	ticks_max = conn->sql.ticks_max;
	conn->sql.ticks_max = ticks_of_check(&manifest->source);
	r = ds_map_new(&verify.names);
	if (r == 0)
		r = check_pages(&verify);
	if (r == 0)
		r = verify_note(&verify, ds_read_packs(&conn->sql, 0, load_pack, &verify));
	if (r == 0)
		r = check_rows(&verify);
	if (r == 0)
		r = verify_tree(&verify);
	if (r == 0)
		r = verify_extents(&verify);
	if (r == 0)
		check_packs(&verify);
	if (r == 0)
		r = verify_note(&verify, ds_read_rejects(&conn->sql, count_reject, &verify));
	if (r == 0)
		r = check_totals(&verify);
	ds_map_free(verify.names, ds_free);
	ds_free(verify.directories);
	ds_free(verify.packs);
	conn->sql.ticks_max = ticks_max;
	r = ds_conn_put(manifest, conn, r);
	if (r == 0)
		*ret_findings_n = verify.findings_n;
	return r;
}
