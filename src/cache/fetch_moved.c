/*
 * Where chunks lie: tables of contents, and the `.moved` notes of packs that are gone (schema/README.md, "Packs").
 *
 * What was read is kept for a while, since a pack that is gone is asked for once per chunk. Both notes and
 * tables are checked against the pack's id when they are parsed, so that keeping them proves as much as reading them.
 *
 * Lock: moved->mutex, a leaf; no I/O under it.
 */
#include <stdatomic.h>

#include "cache/fetch_internal.h"
#include "codec/pack.h"
#include "util/clock.h"

#define TAIL_BYTES DS_KIB(64) /* enough for the table of a pack of 1,600 chunks */
#define HOPS_MAX   16	      /* of a chain of notes; format */
#define KEPT_MAX   64
#define MOVERS_N   2u
#define TIMEOUT_MS 60000u
/* 12 bytes and the table, a pack id and 8 bytes for each chunk at most, and the digest. */
#define TABLE_BYTES(chunks_n) (32 + 40 * (uint64_t)(chunks_n))
#define TABLE_BYTES_MAX	      TABLE_BYTES(DS_PACK_CHUNKS_MAX)
#define NOTE_BYTES_MAX	      (16 + TABLE_BYTES_MAX + 40 * (uint64_t)DS_PACK_CHUNKS_MAX + 32)

struct io {
	int (*perform)(void *ctx, struct ds_store_req *req);
	void *ctx;
	uint64_t deadline_ns;
	uint32_t chunks_n; /* that a table must have, else it is not fetched; 0: any */
};

struct ds_moved_cache {
	pthread_mutex_t mutex;
	struct {
		struct ds_map *notes; /* struct ds_pack_moved by pack */
		struct ds_map *tocs;  /* struct ds_pack_toc by pack */
	} locked;
};

static void free_note(void *value)
{
	ds_pack_moved_release(value);
	ds_free(value);
}

struct ds_moved_cache *ds_moved_cache_free(struct ds_moved_cache *moved)
{
	if (!moved)
		return NULL;
	ds_map_free(moved->locked.notes, free_note);
	ds_map_free(moved->locked.tocs, ds_free);
	pthread_mutex_destroy(&moved->mutex);
	ds_free(moved);
	return NULL;
}

int ds_moved_cache_new(struct ds_moved_cache **ret_moved)
{
	struct ds_moved_cache *moved = ds_calloc(1, sizeof(*moved));

	if (!moved)
		return -ENOMEM;
	pthread_mutex_init(&moved->mutex, NULL);
	if (ds_map_new(&moved->locked.notes) < 0 || ds_map_new(&moved->locked.tocs) < 0) {
		ds_moved_cache_free(moved);
		return -ENOMEM;
	}
	*ret_moved = moved;
	return 0;
}

/* ---- reading */

static int get(const struct io *io, const char *key, uint64_t off, uint64_t len_bytes,
	       bool from_end, struct ds_buf *into, uint64_t *ret_size, struct ds_diag *reterr_diag)
{
	struct ds_store_req req = {.op = DS_STORE_GET,
				   .key = key,
				   .off = off,
				   .len_bytes = len_bytes,
				   .from_end = from_end,
				   .into = into,
				   .is_urgent = true,
				   .deadline_ns = io->deadline_ns};
	int r = io->perform(io->ctx, &req);

	if (r < 0 && reterr_diag)
		*reterr_diag = req.diag;
	if (r == 0 && ret_size)
		*ret_size = req.object_size_bytes;
	return r;
}

static int read_toc(const struct io *io, const struct ds_digest *pack, struct ds_pack_toc **ret_toc,
		    struct ds_diag *reterr_diag)
{
	_ds_cleanup_buf_ struct ds_buf tail = DS_BUF_INIT(TAIL_BYTES);
	_ds_cleanup_buf_ struct ds_buf table = DS_BUF_INIT(TABLE_BYTES_MAX);
	struct ds_pack_toc *toc = NULL;
	char key[DS_PACK_KEY_MAX];
	uint64_t size = 0, off, len;
	const uint8_t *at;
	int r;

	ds_pack_key(pack, key);
	r = get(io, key, 0, TAIL_BYTES, true, &tail, &size, reterr_diag);
	if (r < 0)
		return r;
	r = ds_pack_toc_locate(tail.data, tail.len_bytes, size, &off, &len);
	if (r < 0)
		return ds_diag_set(reterr_diag, r, key, "the end of the pack");
	if (io->chunks_n && len != TABLE_BYTES(io->chunks_n))
		return ds_diag_set(reterr_diag, -DS_E_MISMATCH, key,
				   "the pack has another number of chunks");
	if (off >= size - tail.len_bytes) {
		at = tail.data + (off - (size - tail.len_bytes));
	} else {
		r = get(io, key, off, len, false, &table, NULL, reterr_diag);
		if (r < 0)
			return r;
		at = table.data;
	}
	r = ds_pack_toc_parse(at, (size_t)len, pack, &toc);
	if (r == 0 && toc->object_len_bytes != size) {
		ds_free(toc);
		r = -DS_E_MALFORMED;
	}
	if (r < 0)
		return ds_diag_set(reterr_diag, r, key, "the pack's table of contents");
	*ret_toc = toc;
	return 0;
}

static int read_note(const struct io *io, const struct ds_digest *pack,
		     struct ds_pack_moved *ret_note, struct ds_diag *reterr_diag)
{
	_ds_cleanup_buf_ struct ds_buf buf = DS_BUF_INIT(NOTE_BYTES_MAX);
	char key[DS_PACK_KEY_MAX];
	int r;

	ds_pack_moved_key(pack, key);
	r = get(io, key, 0, DS_STORE_LEN_ALL, false, &buf, NULL, reterr_diag);
	if (r < 0)
		return r;
	r = ds_pack_moved_parse(buf.data, buf.len_bytes, pack, ret_note);
	return r < 0 ? ds_diag_set(reterr_diag, r, key, "the note of a moved pack") : 0;
}

/* What came spoilt is fetched anew once. */
static bool is_spoilt(int error)
{
	return error == -DS_E_CORRUPT || error == -DS_E_MALFORMED;
}

/* Keeps `value` (whose ownership moves) under the pack's id, dropping all when there are too many. */
static int keep(struct ds_map *map, const struct ds_digest *pack, void *value,
		void (*free_value)(void *))
{
	void *old = NULL;
	int r;

	while (ds_map_count(map) >= KEPT_MAX) {
		size_t cursor = 0, key_len;
		struct ds_digest some;
		const void *key;
		void *dropped;

		if (!ds_map_each(map, &cursor, &key, &key_len, &dropped))
			break;
		memcpy(some.bytes, key, DS_DIGEST_LEN);
		ds_map_remove(map, some.bytes, DS_DIGEST_LEN);
		free_value(dropped);
	}
	r = ds_map_put(map, pack->bytes, DS_DIGEST_LEN, value, &old);
	if (r < 0)
		free_value(value);
	if (old)
		free_value(old);
	return r;
}

/* ---- following */

/* What the old table says of the chunk, and where the note says it went. */
static int take_step(const struct ds_pack_moved *note, const struct ds_chunk_ref *ref,
		     struct ds_pack_moved_to *ret_to)
{
	const struct ds_pack_entry *entry;

	if (ref->ordinal >= note->toc->chunks_n)
		return -DS_E_MALFORMED;
	entry = &note->toc->entries[ref->ordinal];
	if (!ds_digest_equal(&entry->digest, &ref->digest) ||
	    entry->raw_len_bytes != ref->raw_len_bytes)
		return -DS_E_MALFORMED;
	*ret_to = note->targets[ref->ordinal];
	return ds_digest_is_zero(&ret_to->pack) ? -DS_E_ABSENT : 0;
}

static int step(const struct io *io, struct ds_moved_cache *moved, const struct ds_chunk_ref *ref,
		struct ds_pack_moved_to *ret_to, bool *ret_has_note, struct ds_diag *reterr_diag)
{
	struct ds_pack_moved *note;
	char key[DS_PACK_KEY_MAX];
	int r = -DS_E_NOT_LOCAL;

	pthread_mutex_lock(&moved->mutex);
	note = ds_map_get(moved->locked.notes, ref->pack.bytes, DS_DIGEST_LEN);
	if (note)
		r = take_step(note, ref, ret_to);
	pthread_mutex_unlock(&moved->mutex);
	if (!note) {
		note = ds_calloc(1, sizeof(*note));
		if (!note)
			return -ENOMEM;
		r = read_note(io, &ref->pack, note, reterr_diag);
		if (is_spoilt(r))
			r = read_note(io, &ref->pack, note, reterr_diag);
		if (r < 0) {
			ds_free(note);
			*ret_has_note = r != -DS_E_ABSENT && r != -DS_E_DENIED;
			return r;
		}
		r = take_step(note, ref, ret_to);
		pthread_mutex_lock(&moved->mutex);
		keep(moved->locked.notes, &ref->pack, note, free_note);
		pthread_mutex_unlock(&moved->mutex);
	}
	if (r == -DS_E_ABSENT)
		return ds_diag_set(reterr_diag, r, ds_pack_key(&ref->pack, key),
				   "the pack is gone, and chunk %u with it", ref->ordinal);
	if (r < 0)
		return ds_diag_set(reterr_diag, r, ds_pack_moved_key(&ref->pack, key),
				   "chunk %u is not what it is said to be", ref->ordinal);
	return 0;
}

static int take_place(const struct ds_pack_toc *toc, struct ds_chunk_ref *ref)
{
	const struct ds_pack_entry *entry;

	if (ref->ordinal >= toc->chunks_n)
		return -DS_E_MALFORMED;
	entry = &toc->entries[ref->ordinal];
	if (!ds_digest_equal(&entry->digest, &ref->digest) ||
	    entry->raw_len_bytes != ref->raw_len_bytes)
		return -DS_E_MALFORMED;
	ref->stored_off = entry->stored_off;
	ref->stored_len_bytes = entry->stored_len_bytes;
	return 0;
}

static int place(const struct io *io, struct ds_moved_cache *moved, struct ds_chunk_ref *ref,
		 bool may_be_kept, struct ds_diag *reterr_diag)
{
	struct ds_pack_toc *toc;
	char key[DS_PACK_KEY_MAX];
	int r = 0;

	pthread_mutex_lock(&moved->mutex);
	toc = ds_map_get(moved->locked.tocs, ref->pack.bytes, DS_DIGEST_LEN);
	if (toc && !may_be_kept) {
		ds_free(ds_map_remove(moved->locked.tocs, ref->pack.bytes, DS_DIGEST_LEN));
		toc = NULL;
	}
	if (toc)
		r = take_place(toc, ref);
	pthread_mutex_unlock(&moved->mutex);
	if (!toc) {
		r = read_toc(io, &ref->pack, &toc, reterr_diag);
		if (is_spoilt(r))
			r = read_toc(io, &ref->pack, &toc, reterr_diag);
		if (r < 0)
			return r;
		r = take_place(toc, ref);
		pthread_mutex_lock(&moved->mutex);
		keep(moved->locked.tocs, &ref->pack, toc, ds_free);
		pthread_mutex_unlock(&moved->mutex);
	}
	if (r < 0)
		return ds_diag_set(reterr_diag, r, ds_pack_key(&ref->pack, key),
				   "chunk %u is not what a note of a moved pack says",
				   ref->ordinal);
	return 0;
}

/*
 * ref->pack answered `error` (absent or denied). Follows its note, and that of the next pack if that is gone too.
 * `again`: it is not the first time, so tables that were kept may be of packs that are gone.
 */
static int follow(const struct io *io, struct ds_moved_cache *moved, struct ds_chunk_ref *ref,
		  int error, bool again, struct ds_diag *reterr_diag)
{
	struct ds_chunk_ref at = *ref;
	char key[DS_PACK_KEY_MAX];

	for (int hops = 0; hops < HOPS_MAX; hops++) {
		struct ds_pack_moved_to to;
		bool has_note = true;
		int r = step(io, moved, &at, &to, &has_note, reterr_diag);

		/* Without a note it is the pack that is missing, or forbidden. */
		if (!has_note)
			return ds_diag_set(
				reterr_diag, r == -DS_E_DENIED ? r : error,
				ds_pack_key(&at.pack, key),
				"a pack is missing, and no note says where its chunks went");
		if (r < 0)
			return r;
		at.pack = to.pack;
		at.ordinal = to.ordinal;
		r = place(io, moved, &at, !again, reterr_diag);
		if (r == 0) {
			*ref = at;
			return 0;
		}
		if (r != -DS_E_ABSENT && r != -DS_E_DENIED)
			return r;
		error = r;
	}
	return ds_diag_set(reterr_diag, -DS_E_MALFORMED, ds_pack_moved_key(&ref->pack, key),
			   "a chain of more than %d notes of moved packs", HOPS_MAX);
}

/* ---- flights */

static void run_move(struct ds_work_item *item)
{
	struct ds_flight *flight = ds_container_of(item, struct ds_flight, work);
	struct ds_fetcher *fetcher = flight->fetcher;
	struct io io = {.perform = ds_fetch_perform,
			.ctx = fetcher,
			.deadline_ns = ds_deadline_in_ms(TIMEOUT_MS)};
	struct ds_chunk_ref at = flight->at;
	struct ds_diag diag = {0};
	bool is_unwanted;
	int r = -DS_E_INTERRUPTED;

	pthread_mutex_lock(&fetcher->mutex);
	is_unwanted = ds_flight_is_unwanted_locked(flight);
	pthread_mutex_unlock(&fetcher->mutex);
	if (!is_unwanted)
		r = follow(&io, fetcher->moved, &at, flight->gone_error, flight->moved_n > 0,
			   &diag);
	if (r == -DS_E_INTERRUPTED || ds_error_is_retryable(r)) {
		ds_flight_retry_later(flight, r, &diag, 0);
		return;
	}
	if (r < 0) {
		ds_flight_note_error(flight, r, &diag);
		ds_flight_finish(flight, r, NULL);
		return;
	}
	pthread_mutex_lock(&fetcher->mutex);
	flight->at = at;
	flight->last_error = 0;
	flight->moved_n++;
	fetcher->locked.stats.moved_n++;
	pthread_mutex_unlock(&fetcher->mutex);
	ds_flight_enqueue(flight);
}

int ds_fetch_movers_locked(struct ds_fetcher *fetcher)
{
	return fetcher->movers ? 0 : ds_work_new(MOVERS_N, "dsfs-moved", &fetcher->movers);
}

void ds_flight_move(struct ds_flight *flight, int error, const struct ds_diag *diag)
{
	struct ds_fetcher *fetcher = flight->fetcher;
	int r;

	pthread_mutex_lock(&fetcher->mutex);
	/* Not what who gives up meanwhile is told: it may only have moved. */
	flight->gone_error = error;
	/* Threads of their own: they wait for the store, and workers must not. */
	r = ds_fetch_movers_locked(fetcher);
	if (r == 0) {
		flight->state = DS_FLIGHT_MOVING;
		flight->work.run = run_move;
		ds_work_submit(fetcher->movers, &flight->work, true);
	}
	pthread_mutex_unlock(&fetcher->mutex);
	if (r < 0) {
		ds_flight_note_error(flight, error, diag);
		ds_flight_finish(flight, error, NULL);
	}
}

/* ---- for callers that block */

static int perform_blocking(void *store, struct ds_store_req *req)
{
	return ds_store_perform(store, req);
}

static int read_toc_twice(const struct io *io, const struct ds_digest *pack,
			  struct ds_pack_toc **ret_toc, struct ds_diag *reterr_diag)
{
	int r = read_toc(io, pack, ret_toc, reterr_diag);

	return is_spoilt(r) ? read_toc(io, pack, ret_toc, reterr_diag) : r;
}

int ds_fetch_toc(struct ds_store *store, const struct ds_digest *pack, struct ds_pack_toc **ret_toc,
		 struct ds_diag *reterr_diag)
{
	struct io io = {.perform = perform_blocking, .ctx = store};

	return read_toc_twice(&io, pack, ret_toc, reterr_diag);
}

int ds_fetch_toc_by(struct ds_fetcher *fetcher, const struct ds_digest *pack, uint32_t chunks_n,
		    uint64_t deadline_ns, struct ds_pack_toc **ret_toc)
{
	struct io io = {.perform = ds_fetch_perform,
			.ctx = fetcher,
			.deadline_ns = deadline_ns,
			.chunks_n = chunks_n};

	return read_toc_twice(&io, pack, ret_toc, NULL);
}

int ds_fetch_locate(struct ds_store *store, struct ds_chunk_ref *ref, struct ds_diag *reterr_diag)
{
	struct io io = {.perform = perform_blocking, .ctx = store};
	char key[DS_PACK_KEY_MAX];
	struct ds_store_req head = {.op = DS_STORE_HEAD, .key = ds_pack_key(&ref->pack, key)};
	struct ds_moved_cache *moved = NULL;
	int r;

	r = ds_store_perform(store, &head);
	if (r < 0 && reterr_diag)
		*reterr_diag = head.diag;
	if (r != -DS_E_ABSENT && r != -DS_E_DENIED)
		return r;
	if (ds_moved_cache_new(&moved) < 0)
		return -ENOMEM;
	r = follow(&io, moved, ref, r, false, reterr_diag);
	ds_moved_cache_free(moved);
	return r;
}
