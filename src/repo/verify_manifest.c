/*
 * One version: its record against its manifest, the manifest for itself, and every chunk that it refers to against the pack's table.
 */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "manifest/manifest.h"
#include "repo/verify_internal.h"
#include "util/file.h"
#include "util/mem.h"
#include "util/str.h"

#define EXTENTS_N 256u

struct walk {
	struct verify *verify;
	struct ds_manifest *manifest;
	struct ds_map *packs; /* number -> struct verify_pack */
	uint64_t *dirs;	      /* still to be listed */
	size_t dirs_n, capacity_n;
	bool is_damaged; /* some pages are not there */
};

static int read_page(void *ctx, void *want, uint64_t page, void *ret_page)
{
	const struct verify_pages *pages = ctx;
	size_t n;
	int r;

	if (page >= pages->pages_n || pages->bad[page])
		return -DS_E_CORRUPT;
	r = ds_pread_full(pages->fd, ret_page, pages->page_size, page * pages->page_size, &n);
	if (r < 0)
		return r;
	return n == pages->page_size ? 0 : -EIO;
}

static const void *mapping(void *ctx)
{
	struct verify_pages *pages = ctx;

	return pages->mapping;
}

/* The whole file, if all of it is right. */
static void map_pages(struct verify_pages *pages)
{
	void *at;

	if (pages->bad_n > 0)
		return;
	pages->mapping_len = (size_t)(pages->pages_n * pages->page_size);
	at = mmap(NULL, pages->mapping_len, PROT_READ, MAP_SHARED, pages->fd, 0);
	pages->mapping = at == MAP_FAILED ? NULL : at;
}

static void find_row(void *ctx, const char *text)
{
	struct verify *verify = ctx;

	ds_verify_find(verify, verify->version_key, "%s", text);
}

/* What a manifest that cannot be read says: damage of pages has its findings already. */
static int note(struct walk *walk, int r, const char *what)
{
	if (r == 0 || (walk->is_damaged && r == -DS_E_CORRUPT))
		return 0;
	if (!ds_verify_is_damage(r))
		return ds_verify_fail(walk->verify, r, NULL);
	ds_verify_find(walk->verify, walk->verify->version_key, "%s: %s", what, ds_strerror(r));
	return 0;
}

static int check_pack_row(void *ctx, const struct ds_pack_row *row)
{
	struct walk *walk = ctx;
	struct verify *verify = walk->verify;
	struct verify_pack *pack = ds_verify_pack(verify, &row->id);
	char id[DS_DIGEST_TEXT_MAX];
	int r;

	if (!pack || ds_map_put(walk->packs, &row->number, sizeof(row->number), pack, NULL) < 0)
		return ds_verify_fail(verify, -ENOMEM, NULL);
	pack->is_wanted = true;
	r = ds_verify_pack_load(verify, pack);
	if (r < 0 || !pack->toc)
		return r;
	if (row->size_bytes != pack->object_len_bytes || row->chunks_n != pack->toc->chunks_n ||
	    row->raw_bytes != pack->toc->raw_len_bytes || pack->toc->kind != DS_PACK_DATA)
		ds_verify_find(verify, verify->version_key,
			       "table `pack`, %u: not what the table of pack %s says", row->number,
			       ds_digest_format(&row->id, id));
	return 0;
}

static int check_chunk(struct walk *walk, const struct ds_entry_chunk *chunk,
		       const struct ds_digest *digest, uint64_t raw_len, uint64_t raw_off,
		       const char *what)
{
	const struct verify_pack *pack = ds_map_get(walk->packs, &chunk->pack, sizeof(chunk->pack));
	struct ds_chunk_ref ref = {.digest = *digest,
				   .ordinal = chunk->ordinal,
				   .stored_off = chunk->stored_off,
				   .stored_len_bytes = chunk->stored_len_bytes,
				   .raw_len_bytes = (uint32_t)raw_len};
	bool ok;

	if (!pack || raw_len > DS_CHUNK_MAX)
		return 0; /* found by the manifest's own check */
	ref.pack = pack->id;
	return ds_verify_ref(walk->verify, &ref, raw_off, what, NULL, &ok);
}

static int check_extents(struct walk *walk, const struct ds_entry *entry, const char *what)
{
	_ds_cleanup_free_ struct ds_extent *extents = ds_calloc(EXTENTS_N, sizeof(*extents));
	uint64_t off = 0;
	int r = 0;

	if (!extents)
		return ds_verify_fail(walk->verify, -ENOMEM, NULL);
	while (r == 0 && off < entry->size_bytes) {
		size_t n = 0;

		r = ds_manifest_extents(walk->manifest, NULL, entry->ino, off,
					entry->size_bytes - off, extents, EXTENTS_N, &n);
		if (r == -DS_E_IMPORTED) {
			walk->verify->result.imported_n++;
			return 0;
		}
		if (r < 0)
			return note(walk, r, what);
		if (n == 0)
			return 0;
		for (size_t i = 0; r == 0 && i < n; i++) {
			if (!extents[i].is_zeros)
				r = check_chunk(walk, &extents[i].chunk, &extents[i].digest,
						extents[i].len_bytes, UINT64_MAX, what);
		}
		off = extents[n - 1].off + extents[n - 1].len_bytes;
	}
	return r;
}

static int check_entry(void *ctx, const struct ds_entry *entry)
{
	struct walk *walk = ctx;
	char name[80], what[128];
	uint64_t *grown;

	if (ds_verify_is_over(walk->verify))
		return walk->verify->error;
	if (entry->type == DS_ENTRY_DIRECTORY) {
		if (walk->dirs_n == walk->capacity_n) {
			walk->capacity_n = walk->capacity_n ? 2 * walk->capacity_n : 64;
			grown = ds_reallocarray(walk->dirs, walk->capacity_n, sizeof(*grown));
			if (!grown)
				return ds_verify_fail(walk->verify, -ENOMEM, NULL);
			walk->dirs = grown;
		}
		walk->dirs[walk->dirs_n++] = entry->id;
		return 0;
	}
	if (entry->type != DS_ENTRY_FILE)
		return 0;
	snprintf(what, sizeof(what), "entry %llu (%s)", (unsigned long long)entry->id,
		 ds_quote(entry->name, entry->name_len, name, sizeof(name)));
	if (entry->chunk.pack)
		return check_chunk(walk, &entry->chunk, &entry->digest, entry->size_bytes,
				   entry->chunk.raw_off, what);
	return entry->extents_n ? check_extents(walk, entry, what) : 0;
}

/* Every file's chunks. A tree that is none ends it: each directory has one row, so that there are no more than rows. */
static int check_chunks(struct walk *walk, uint64_t directories_n)
{
	uint64_t seen_n = 0, id = DS_ROOT_ID;
	int r;

	for (;;) {
		r = ds_manifest_list(walk->manifest, NULL, id, 0, check_entry, walk);
		if (ds_verify_is_over(walk->verify))
			return walk->verify->error;
		if (r < 0)
			return note(walk, r, "a directory cannot be listed");
		if (walk->dirs_n == 0 || seen_n++ > directories_n)
			return 0;
		id = walk->dirs[--walk->dirs_n];
	}
}

static int check_totals(struct walk *walk, const struct ds_record *record)
{
	const struct {
		const char *key;
		uint64_t value;
	} totals[] = {
		{"files", record->totals.files_n},
		{"directories", record->totals.directories_n},
		{"symlinks", record->totals.symlinks_n},
		{"bytes", record->totals.bytes},
		{"rejected", record->totals.rejected_n},
	};
	struct verify *verify = walk->verify;
	struct ds_entry root;
	int r;

	for (size_t i = 0; i < DS_ARRAY_SIZE(totals); i++) {
		uint64_t value;

		r = ds_manifest_total(walk->manifest, NULL, totals[i].key, &value);
		if (r < 0)
			return note(walk, r, "the totals cannot be read");
		if (value != totals[i].value)
			ds_verify_find(verify, verify->version_key,
				       "`%s` is %llu, in the manifest %llu", totals[i].key,
				       (unsigned long long)totals[i].value,
				       (unsigned long long)value);
	}
	r = ds_manifest_get(walk->manifest, NULL, DS_ROOT_ID, &root);
	if (r == -ENOENT) {
		ds_verify_find(verify, verify->version_key, "the manifest has no root");
		return 0;
	}
	if (r < 0)
		return note(walk, r, "the root cannot be read");
	if (record->has_fingerprint && !ds_digest_equal(&record->fingerprint, &root.digest))
		ds_verify_find(verify, verify->version_key,
			       "`fingerprint` is not the digest of the root");
	return 0;
}

static int check_manifest(struct verify *verify, const struct ds_record *record)
{
	struct ds_page_source source = {.page_size = record->page_size,
					.pages_n = record->pages_n,
					.read_page = read_page,
					.mapping = mapping,
					.ctx = &verify->pages};
	struct walk walk = {.verify = verify, .is_damaged = verify->pages.bad_n > 0};
	struct ds_diag diag = {0};
	uint64_t findings_n;
	int r;

	map_pages(&verify->pages);
	r = ds_map_new(&walk.packs);
	if (r == 0)
		r = ds_manifest_new(&source, &walk.manifest);
	if (r < 0) {
		ds_verify_fail(verify, r, NULL);
		goto out;
	}
	if (walk.is_damaged)
		ds_verify_find(verify, verify->version_key,
			       "%llu pages of its manifest cannot be read",
			       (unsigned long long)verify->pages.bad_n);
	r = ds_manifest_check(walk.manifest, NULL, &diag);
	if (ds_verify_is_damage(r)) {
		if (!walk.is_damaged)
			ds_verify_find_diag(verify, verify->version_key, r, &diag);
		r = 0;
		goto out;
	}
	if (r < 0) {
		ds_verify_fail(verify, r, &diag);
		goto out;
	}
	r = note(&walk, ds_manifest_verify(walk.manifest, NULL, find_row, verify, &findings_n),
		 "the manifest cannot be read");
	if (r == 0)
		r = note(&walk, ds_manifest_packs(walk.manifest, NULL, 0, check_pack_row, &walk),
			 "the pack table cannot be read");
	if (r == 0)
		r = check_chunks(&walk, record->totals.directories_n);
	if (r == 0)
		r = check_totals(&walk, record);
out:
	ds_manifest_free(walk.manifest);
	ds_map_free(walk.packs, NULL);
	ds_free(walk.dirs);
	return r;
}

int ds_verify_version(struct verify *verify, const struct ds_record *record)
{
	char key[DS_RECORD_KEY_MAX];
	bool ok;
	int r = 0;

	verify->version_key = ds_record_key(&record->id, key);
	verify->version_findings_n = 0;
	for (size_t i = 0; r == 0 && i < record->prefetch_n; i++)
		r = ds_verify_ref(verify, &record->prefetch[i], UINT64_MAX, "`prefetch`", NULL,
				  &ok);
	if (r == 0)
		r = ds_verify_index(verify, record, &ok);
	if (r == 0 && ok)
		r = check_manifest(verify, record);
	verify->version_key = NULL;
	return r;
}
