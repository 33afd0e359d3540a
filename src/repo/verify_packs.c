/*
 * Packs: tables, notes, where a chunk is, and every byte of what is there.
 *
 * INV-1: a pack's table was checked against the pack's id before anything is taken from it.
 * INV-2: `toc` may be dropped between two calls (TOC_CHUNKS_MAX bounds what is in memory); nobody holds a pointer into it over a call.
 */
#include <stdio.h>
#include <string.h>

#include "repo/verify_internal.h"
#include "util/mem.h"
#include "util/str.h"
#include "util/work.h"

#define TAIL_LEN       DS_KIB(128) /* a pack of 1,600 chunks has a table of 64 KiB */
#define RUN_LEN	       DS_MIB(8)   /* of one GET */
#define TOC_CHUNKS_MAX (4u << 20)  /* 56 bytes each: 224 MiB */
#define NOTES_MAX      16u	   /* schema/README.md: notes chain, up to 16 */
#define THREADS_MAX    4u
#define OBJECT_MAX     (DS_PACK_MAX + DS_MIB(1))
/* Head, table, list of packs, two numbers per chunk, digest. */
#define MOVED_MAX DS_MIB(128)

static const char pack_magic[] = "dsfspak1";

static void drop_toc(struct verify *verify, struct verify_pack *pack)
{
	if (!pack->toc)
		return;
	pthread_mutex_lock(&verify->mutex);
	verify->toc_chunks_n -= pack->toc->chunks_n;
	pthread_mutex_unlock(&verify->mutex);
	ds_free(pack->toc);
	ds_free(pack->targets);
	pack->toc = NULL;
	pack->targets = NULL;
}

void ds_verify_pack_free(void *value)
{
	struct verify_pack *pack = value;

	ds_free(pack->toc);
	ds_free(pack->targets);
	ds_map_free(pack->bad_chunks, NULL);
	ds_free(pack);
}

struct verify_pack *ds_verify_pack(struct verify *verify, const struct ds_digest *id)
{
	struct verify_pack *pack = ds_map_get(verify->packs, id->bytes, DS_DIGEST_LEN);

	if (pack)
		return pack;
	pack = ds_calloc(1, sizeof(*pack));
	if (!pack)
		return NULL;
	pack->id = *id;
	if (ds_map_put(verify->packs, id->bytes, DS_DIGEST_LEN, pack, NULL) < 0) {
		ds_free(pack);
		return NULL;
	}
	return pack;
}

static int get(struct verify *verify, struct ds_store_req *req)
{
	return ds_store_perform(ds_repo_store(verify->repo), req);
}

static void keep_toc(struct verify *verify, struct verify_pack *pack, struct ds_pack_toc *toc)
{
	pack->toc = toc;
	pthread_mutex_lock(&verify->mutex);
	verify->toc_chunks_n += toc->chunks_n;
	pthread_mutex_unlock(&verify->mutex);
}

/* Once, however often its table is read. */
static void count(struct verify *verify, struct verify_pack *pack)
{
	if (pack->is_counted)
		return;
	pack->is_counted = true;
	pthread_mutex_lock(&verify->mutex);
	verify->result.packs_n++;
	verify->result.chunks_n += pack->toc ? pack->toc->chunks_n : 0;
	pthread_mutex_unlock(&verify->mutex);
}

/* The table of a pack that is there: 0, -DS_E_ABSENT, damage, or what the store said. */
static int load_object(struct verify *verify, struct verify_pack *pack, const char *key,
		       struct ds_diag *diag)
{
	_ds_cleanup_buf_ struct ds_buf buf = DS_BUF_INIT(DS_MIB(64));
	struct ds_store_req req = {.op = DS_STORE_GET,
				   .key = key,
				   .len_bytes = TAIL_LEN,
				   .from_end = true,
				   .into = &buf};
	struct ds_pack_toc *toc;
	uint64_t off, len, size;
	int r;

	r = get(verify, &req);
	*diag = req.diag;
	if (r < 0)
		return r;
	size = pack->object_len_bytes = req.object_size_bytes;
	r = ds_pack_toc_locate(buf.data, buf.len_bytes, size, &off, &len);
	if (r < 0)
		return ds_diag_set(diag, r, key, "no table of contents at its end");
	if (off < size - buf.len_bytes) {
		ds_buf_clear(&buf);
		req = (struct ds_store_req){
			.op = DS_STORE_GET, .key = key, .off = off, .len_bytes = len, .into = &buf};
		r = get(verify, &req);
		*diag = req.diag;
		if (r < 0)
			return r;
		r = ds_pack_toc_parse(buf.data, buf.len_bytes, &pack->id, &toc);
	} else {
		r = ds_pack_toc_parse(buf.data + (off - (size - buf.len_bytes)), (size_t)len,
				      &pack->id, &toc);
	}
	if (r < 0)
		return ds_diag_set(diag, r, key, "table of contents");
	if (toc->object_len_bytes != size) {
		ds_free(toc);
		return ds_diag_set(diag, -DS_E_MALFORMED, key,
				   "it measures %llu bytes, its table says otherwise",
				   (unsigned long long)size);
	}
	keep_toc(verify, pack, toc);
	count(verify, pack);
	return 0;
}

/* The note of a pack; parsed into `ret_moved`. */
static int load_note(struct verify *verify, const struct ds_digest *id, const char *key,
		     struct ds_pack_moved *ret_moved, struct ds_diag *diag)
{
	_ds_cleanup_buf_ struct ds_buf buf = DS_BUF_INIT(MOVED_MAX);
	struct ds_store_req req = {.op = DS_STORE_GET,
				   .key = key,
				   .len_bytes = DS_STORE_LEN_ALL,
				   .into = &buf};
	int r;

	r = get(verify, &req);
	*diag = req.diag;
	if (r < 0)
		return r;
	r = ds_pack_moved_parse(buf.data, buf.len_bytes, id, ret_moved);
	return r < 0 ? ds_diag_set(diag, r, key, NULL) : 0;
}

/* 0 with a state, and findings made; or an error that ends the check. */
static int load(struct verify *verify, struct verify_pack *pack)
{
	char key[DS_PACK_KEY_MAX];
	struct ds_pack_moved moved;
	struct ds_diag diag;
	int r;

	ds_pack_key(&pack->id, key);
	r = load_object(verify, pack, key, &diag);
	pack->state = VERIFY_PACK_THERE;
	/* 403 is absence where these credentials may not list; if the note says 403 too, it is not. */
	if (r == -DS_E_ABSENT || r == -DS_E_DENIED) {
		ds_pack_moved_key(&pack->id, key);
		r = load_note(verify, &pack->id, key, &moved, &diag);
		pack->state = VERIFY_PACK_MOVED;
		if (r == 0) {
			pack->targets = moved.targets;
			pack->object_len_bytes = moved.toc->object_len_bytes;
			keep_toc(verify, pack, moved.toc);
		}
	}
	if (r == 0)
		return 0;
	if (r == -DS_E_ABSENT) {
		pack->state = VERIFY_PACK_MISSING;
		return 0;
	}
	if (!ds_verify_is_damage(r)) {
		pack->state = VERIFY_PACK_UNSEEN;
		return ds_verify_fail(verify, r, &diag);
	}
	/* Of a bad one nothing is read again, so that this is said once. */
	pack->state = VERIFY_PACK_BAD;
	count(verify, pack);
	ds_verify_find_diag(verify, key, r, &diag);
	return 0;
}

static void make_room(struct verify *verify)
{
	size_t cursor = 0;
	void *pack;

	if (verify->toc_chunks_n <= TOC_CHUNKS_MAX)
		return;
	while (ds_map_each(verify->packs, &cursor, NULL, NULL, &pack))
		drop_toc(verify, pack);
}

int ds_verify_pack_load(struct verify *verify, struct verify_pack *pack)
{
	switch (pack->state) {
	case VERIFY_PACK_MISSING:
	case VERIFY_PACK_BAD:
		return 0;
	case VERIFY_PACK_THERE:
	case VERIFY_PACK_MOVED:
		if (pack->toc)
			return 0;
		break;
	case VERIFY_PACK_UNSEEN:
		break;
	}
	make_room(verify);
	return load(verify, pack);
}

void ds_verify_bad_chunk(struct verify *verify, struct verify_pack *pack, uint32_t ordinal, int r)
{
	static char mark;
	char key[DS_PACK_KEY_MAX];

	if (!pack->bad_chunks && ds_map_new(&pack->bad_chunks) < 0)
		pack->bad_chunks = NULL;
	if (pack->bad_chunks) {
		if (ds_map_get(pack->bad_chunks, &ordinal, sizeof(ordinal)))
			return;
		ds_map_put(pack->bad_chunks, &ordinal, sizeof(ordinal), &mark, NULL);
	}
	ds_verify_find(verify, ds_pack_key(&pack->id, key), "chunk %u: %s", ordinal,
		       ds_strerror(r));
}

static void find_missing(struct verify *verify, struct verify_pack *pack, const char *what)
{
	char key[DS_PACK_KEY_MAX];

	if (pack->is_missed)
		return;
	pack->is_missed = true;
	ds_verify_find(verify, ds_pack_key(&pack->id, key), "missing; %s of %s needs it", what,
		       verify->version_key);
}

/* Where a chunk of `pack` is now. *ret_ok false: there is a finding. */
static int follow(struct verify *verify, struct verify_pack *pack, uint32_t ordinal,
		  const char *what, struct verify_place *ret_place, bool *ret_ok)
{
	struct ds_digest digest = pack->toc->entries[ordinal].digest;
	uint32_t raw_len = pack->toc->entries[ordinal].raw_len_bytes;
	char key[DS_PACK_KEY_MAX];

	*ret_ok = false;
	for (unsigned notes_n = 0; pack->state == VERIFY_PACK_MOVED; notes_n++) {
		struct ds_pack_moved_to to = pack->targets[ordinal];
		struct verify_pack *next;
		int r;

		ds_pack_moved_key(&pack->id, key);
		if (ds_digest_is_zero(&to.pack) || notes_n == NOTES_MAX) {
			ds_verify_find(verify, key,
				       notes_n == NOTES_MAX
					       ? "notes lead from one to the next without end "
						 "(chunk %u; %s of %s needs it)"
					       : "chunk %u is gone; %s of %s needs it",
				       ordinal, what, verify->version_key);
			return 0;
		}
		next = ds_verify_pack(verify, &to.pack);
		if (!next)
			return ds_verify_fail(verify, -ENOMEM, NULL);
		next->is_wanted = true;
		r = ds_verify_pack_load(verify, next);
		if (r < 0)
			return r;
		if (next->state == VERIFY_PACK_MISSING)
			find_missing(verify, next, what);
		if (!next->toc)
			return 0;
		if (to.ordinal >= next->toc->chunks_n ||
		    next->toc->entries[to.ordinal].raw_len_bytes != raw_len ||
		    !ds_digest_equal(&next->toc->entries[to.ordinal].digest, &digest)) {
			ds_verify_find(verify, key, "chunk %u is not where it says", ordinal);
			return 0;
		}
		pack = next;
		ordinal = to.ordinal;
	}
	*ret_place = (struct verify_place){
		.pack = pack,
		.ordinal = ordinal,
		.stored_off = pack->toc->entries[ordinal].stored_off,
		.stored_len_bytes = pack->toc->entries[ordinal].stored_len_bytes,
		.raw_len_bytes = raw_len,
		.digest = digest,
	};
	*ret_ok = true;
	return 0;
}

int ds_verify_ref(struct verify *verify, const struct ds_chunk_ref *ref, uint64_t raw_off,
		  const char *what, struct verify_place *ret_place, bool *ret_ok)
{
	struct verify_pack *pack = ds_verify_pack(verify, &ref->pack);
	const struct ds_pack_entry *entry;
	struct verify_place place;
	char id[DS_DIGEST_TEXT_MAX];
	int r;

	*ret_ok = false;
	if (!pack)
		return ds_verify_fail(verify, -ENOMEM, NULL);
	pack->is_wanted = true;
	r = ds_verify_pack_load(verify, pack);
	if (r < 0)
		return r;
	if (pack->state == VERIFY_PACK_MISSING)
		find_missing(verify, pack, what);
	if (!pack->toc)
		return 0;
	entry = ref->ordinal < pack->toc->chunks_n ? &pack->toc->entries[ref->ordinal] : NULL;
	if (!entry || !ds_digest_equal(&entry->digest, &ref->digest) ||
	    entry->stored_off != ref->stored_off ||
	    entry->stored_len_bytes != ref->stored_len_bytes ||
	    entry->raw_len_bytes != ref->raw_len_bytes ||
	    (raw_off != UINT64_MAX && entry->raw_off != raw_off)) {
		ds_verify_find(verify, verify->version_key,
			       "%s: what it says of chunk %u of pack %s is not what the pack's "
			       "table says",
			       what, ref->ordinal, ds_digest_format(&ref->pack, id));
		return 0;
	}
	return follow(verify, pack, ref->ordinal, what, ret_place ? ret_place : &place, ret_ok);
}

int ds_verify_read_chunk(struct verify *verify, const struct verify_place *place, void *raw,
			 bool *ret_ok)
{
	_ds_cleanup_buf_ struct ds_buf buf = DS_BUF_INIT(DS_CHUNK_MAX);
	char key[DS_PACK_KEY_MAX];
	struct ds_store_req req = {.op = DS_STORE_GET,
				   .key = ds_pack_key(&place->pack->id, key),
				   .off = place->stored_off,
				   .len_bytes = place->stored_len_bytes,
				   .into = &buf};
	int r;

	*ret_ok = false;
	r = get(verify, &req);
	if (r == 0)
		r = ds_chunk_decode(buf.data, buf.len_bytes, place->raw_len_bytes, &place->digest,
				    raw);
	else if (!ds_verify_is_damage(r))
		return ds_verify_fail(verify, r, &req.diag);
	if (r == -ENOMEM)
		return ds_verify_fail(verify, r, NULL);
	if (r < 0)
		ds_verify_bad_chunk(verify, place->pack, place->ordinal, r);
	*ret_ok = r == 0;
	return 0;
}

/* The chunks [first, end) with what lies before the first, in one GET. */
static int check_run(struct verify *verify, struct verify_pack *pack, uint32_t first, uint32_t end,
		     struct ds_buf *buf, uint8_t *raw)
{
	const struct ds_pack_entry *entries = pack->toc->entries;
	uint64_t off = first ? entries[first].stored_off : 0;
	uint64_t stop = end ? entries[end - 1].stored_off + entries[end - 1].stored_len_bytes
			    : DS_PACK_HEAD_LEN;
	char key[DS_PACK_KEY_MAX];
	struct ds_store_req req = {.op = DS_STORE_GET,
				   .key = ds_pack_key(&pack->id, key),
				   .off = off,
				   .len_bytes = stop - off,
				   .into = buf};
	int r;

	ds_buf_clear(buf);
	r = get(verify, &req);
	/* A collector was faster: what became of it, the versions' checks have to know. */
	if (r == -DS_E_ABSENT || r == -DS_E_DENIED) {
		drop_toc(verify, pack);
		r = load(verify, pack);
		return r < 0 ? r : 1;
	}
	if (ds_verify_is_damage(r)) {
		ds_verify_find_diag(verify, key, r, &req.diag);
		return 1;
	}
	if (r < 0)
		return ds_verify_fail(verify, r, &req.diag);
	if (off == 0 && memcmp(buf->data, pack_magic, DS_PACK_HEAD_LEN) != 0)
		ds_verify_find(verify, key, "its first bytes are not \"%s\"", pack_magic);
	for (uint32_t i = first; i < end; i++) {
		r = ds_chunk_decode(buf->data + (entries[i].stored_off - off),
				    entries[i].stored_len_bytes, entries[i].raw_len_bytes,
				    &entries[i].digest, raw);
		if (r == -ENOMEM)
			return ds_verify_fail(verify, r, NULL);
		if (r < 0)
			ds_verify_bad_chunk(verify, pack, i, r);
	}
	ds_verify_step(verify, stop - off);
	return 0;
}

/* Every byte of a pack that is there. */
static int check_data(struct verify *verify, struct verify_pack *pack)
{
	_ds_cleanup_buf_ struct ds_buf buf = DS_BUF_INIT(RUN_LEN + DS_CHUNK_MAX);
	_ds_cleanup_free_ uint8_t *raw = ds_malloc(DS_CHUNK_MAX);
	uint32_t first = 0;
	int r = 0;

	if (!raw)
		return ds_verify_fail(verify, -ENOMEM, NULL);
	do {
		const struct ds_pack_entry *entries = pack->toc->entries;
		uint32_t end = first;

		while (end < pack->toc->chunks_n &&
		       entries[end].stored_off - entries[first].stored_off < RUN_LEN)
			end++;
		r = check_run(verify, pack, first, end, &buf, raw);
		first = end;
	} while (r == 0 && first < pack->toc->chunks_n && !ds_verify_is_over(verify));
	return r < 0 ? r : 0;
}

/* One object below packs/. */
struct item {
	struct ds_work_item work;
	struct verify *verify;
	struct verify_pack *pack;
	bool is_note;
};

static void check_note(struct verify *verify, struct verify_pack *pack)
{
	struct ds_pack_moved moved;
	char key[DS_PACK_KEY_MAX];
	struct ds_diag diag;
	int r;

	/* Where the pack is gone, its note was read as its table. */
	r = load_note(verify, &pack->id, ds_pack_moved_key(&pack->id, key), &moved, &diag);
	if (r == 0)
		ds_pack_moved_release(&moved);
	else if (ds_verify_is_damage(r))
		ds_verify_find_diag(verify, key, r, &diag);
	else if (r != -DS_E_ABSENT)
		ds_verify_fail(verify, r, &diag);
	/* No item reads the table of a pack that is gone: this one says so. */
	if (ds_verify_is_damage(r) && !pack->is_listed)
		pack->state = VERIFY_PACK_BAD;
}

static void item_run(struct ds_work_item *work)
{
	struct item *item = ds_container_of(work, struct item, work);
	struct verify *verify = item->verify;
	struct verify_pack *pack = item->pack;
	bool has_room;

	if (ds_verify_is_over(verify))
		return;
	if (item->is_note) {
		check_note(verify, pack);
	} else if (load(verify, pack) == 0 && pack->state == VERIFY_PACK_THERE) {
		pack->is_read = verify->options->read_data;
		if (verify->options->read_data)
			check_data(verify, pack);
	}
	pthread_mutex_lock(&verify->mutex);
	has_room = verify->toc_chunks_n <= TOC_CHUNKS_MAX;
	verify->result.objects_n++;
	pthread_mutex_unlock(&verify->mutex);
	if (!has_room && !item->is_note)
		drop_toc(verify, pack);
	ds_verify_step(verify, 0);
}

/* Runs the items on a few threads. Each pack has one item that touches its struct; a note's item does not. */
static int run_items(struct verify *verify, struct item *items, size_t n)
{
	struct ds_work *work;
	int r;

	r = ds_work_new(DS_MIN(ds_cpu_count() + 1, THREADS_MAX), "dsfs-verify", &work);
	if (r < 0)
		return ds_verify_fail(verify, r, NULL);
	for (size_t i = 0; i < n; i++) {
		items[i].work.run = item_run;
		items[i].verify = verify;
		ds_work_submit(work, &items[i].work, false);
	}
	ds_work_free(work);
	return ds_verify_is_over(verify) ? verify->error : 0;
}

/* "packs/AA/ID" or "packs/AA/ID.moved"; false for anything else. */
static bool parse_key(const char *key, struct ds_digest *ret_id, bool *ret_is_note)
{
	const char *name = strrchr(key, '/');
	char text[DS_DIGEST_TEXT_MAX], expected[DS_PACK_KEY_MAX];

	if (!name || strlen(++name) < DS_DIGEST_TEXT_MAX - 1)
		return false;
	memcpy(text, name, DS_DIGEST_TEXT_MAX - 1);
	text[DS_DIGEST_TEXT_MAX - 1] = '\0';
	if (ds_digest_parse(text, ret_id) < 0)
		return false;
	if (strcmp(key, ds_pack_key(ret_id, expected)) == 0)
		*ret_is_note = false;
	else if (strcmp(key, ds_pack_moved_key(ret_id, expected)) == 0)
		*ret_is_note = true;
	else
		return false;
	return true;
}

int ds_verify_packs(struct verify *verify)
{
	struct ds_store_listing listing = {0};
	struct ds_store_req req = {.op = DS_STORE_LIST, .key = "packs/", .listing = &listing};
	struct item *items = NULL;
	size_t n = 0;
	int r;

	r = ds_store_perform(ds_repo_store(verify->repo), &req);
	if (r < 0)
		r = ds_verify_fail(verify, r, &req.diag);
	else
		items = ds_calloc(listing.objects_n + 1, sizeof(*items));
	if (r == 0 && !items)
		r = ds_verify_fail(verify, -ENOMEM, NULL);
	for (size_t i = 0; r == 0 && i < listing.objects_n; i++) {
		struct ds_digest id;

		if (!parse_key(listing.objects[i].key, &id, &items[n].is_note))
			continue;
		items[n].pack = ds_verify_pack(verify, &id);
		if (!items[n].pack) {
			r = ds_verify_fail(verify, -ENOMEM, NULL);
			break;
		}
		items[n].pack->is_listed |= !items[n].is_note;
		n++;
	}
	ds_store_listing_release(&listing);
	verify->total_n += n;
	if (r == 0)
		r = run_items(verify, items, n);
	ds_free(items);
	return r;
}

int ds_verify_wanted_packs(struct verify *verify, bool *ret_moved)
{
	struct item *items = ds_calloc(ds_map_count(verify->packs) + 1, sizeof(*items));
	size_t cursor = 0, n = 0;
	void *value;
	int r;

	if (!items)
		return ds_verify_fail(verify, -ENOMEM, NULL);
	while (ds_map_each(verify->packs, &cursor, NULL, NULL, &value)) {
		struct verify_pack *pack = value;

		if (!pack->is_wanted || pack->is_read || pack->state != VERIFY_PACK_THERE)
			continue;
		drop_toc(verify, pack);
		items[n++].pack = pack;
	}
	verify->total_n += n;
	r = run_items(verify, items, n);
	*ret_moved = false;
	for (size_t i = 0; i < n; i++)
		*ret_moved |= items[i].pack->state == VERIFY_PACK_MOVED ||
			      items[i].pack->state == VERIFY_PACK_MISSING;
	ds_free(items);
	return r;
}
