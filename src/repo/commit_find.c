#include "repo/commit_find.h"

#include <errno.h>
#include <string.h>

#include "cache/fetch.h"
#include "repo/commit_index.h"
#include "repo/commit_noted.h"
#include "util/error.h"
#include "util/list.h"
#include "util/map.h"
#include "util/mem.h"

#define TRIES_N 3u /* for a table that was had before */

struct known_pack {		 /* what was learned of a pack that a hit or the parent named */
	struct ds_list node;	 /* in find->tables, if it has one */
	struct ds_pack_toc *toc; /* NULL: it cannot be had, or (result 0) had to make room */
	int result;		 /* why */
	bool was_had;		 /* it had one: trouble to have it again may be of this moment */
	unsigned failed_n;	 /* in a row, then */
	bool is_young, age_known;
	bool has_note, note_known; /* of a pack that is absent: it has moved */
};

struct commit_find {
	struct ds_repo *repo;
	struct commit_packs *packs;
	bool has_base;
	struct ds_digest base;
	char *state_dir;
	const struct commit_watch *watch;
	struct noted_table *own;
	struct ds_map *known;  /* pack id -> struct known_pack */
	struct ds_list tables; /* of known_pack: the last used last */
	uint64_t tables_bytes, tables_bytes_max;
	size_t for_index_n;
	struct commit_index *index; /* NULL: not loaded yet */
	struct ds_keep *keep;
	bool keep_tried;
	bool has_lost;
};

int commit_find_new(struct ds_repo *repo, struct commit_packs *packs, const struct ds_digest *base,
		    const char *state_dir, const char *scratch, uint64_t tables_bytes_max,
		    const struct commit_watch *watch, struct commit_find **ret_find)
{
	struct commit_find *find = ds_calloc(1, sizeof(*find));
	int r;

	if (!find)
		return -ENOMEM;
	find->repo = ds_repo_ref(repo);
	find->packs = packs;
	find->has_base = base != NULL;
	if (base)
		find->base = *base;
	find->watch = watch;
	find->tables_bytes_max = tables_bytes_max;
	ds_list_init(&find->tables);
	find->state_dir = state_dir ? ds_strdup(state_dir) : NULL;
	r = state_dir && !find->state_dir ? -ENOMEM : noted_table_new(scratch, &find->own);
	if (r == 0)
		r = ds_map_new(&find->known);
	if (r < 0) {
		commit_find_free(find);
		return r;
	}
	*ret_find = find;
	return 0;
}

static void free_known(void *value)
{
	struct known_pack *known = value;

	ds_free(known->toc);
	ds_free(known);
}

struct commit_find *commit_find_free(struct commit_find *find)
{
	if (!find)
		return NULL;
	commit_index_free(find->index);
	noted_table_free(find->own);
	ds_map_free(find->known, free_known);
	ds_keep_free(find->keep);
	ds_repo_unref(find->repo);
	ds_free(find->state_dir);
	ds_free(find);
	return NULL;
}

int commit_find_note(struct commit_find *find, const struct ds_digest *digest,
		     const struct commit_place *place, bool for_index)
{
	struct noted *noted = noted_table_put(find->own, digest);

	if (!noted)
		return -ENOMEM;
	noted->place = *place;
	noted->for_index = for_index;
	noted->is_referred = false;
	find->for_index_n += for_index;
	return 0;
}

void commit_find_refer_none(struct commit_find *find)
{
	for (size_t i = 0; i < noted_table_count(find->own); i++)
		noted_table_at(find->own, i)->is_referred = false;
}

void commit_find_refer(struct commit_find *find, const struct ds_digest *digest,
		       const struct commit_place *place)
{
	struct noted *noted = noted_table_get(find->own, digest);

	if (noted && noted->place.pack == place->pack && noted->place.ordinal == place->ordinal)
		noted->is_referred = true;
}

bool commit_find_own(const struct commit_find *find, const struct ds_digest *digest,
		     bool is_whole_file, struct commit_place *ret_place)
{
	const struct noted *noted = noted_table_get(find->own, digest);

	if (!noted || (is_whole_file && noted->place.raw_off == COMMIT_RAW_OFF_NONE))
		return false;
	*ret_place = noted->place;
	return true;
}

static uint64_t table_bytes(const struct known_pack *known)
{
	return sizeof(*known->toc) + known->toc->chunks_n * sizeof(known->toc->entries[0]);
}

/* Its table is used now; those that were not used lately make room for it. */
static void use_table(struct commit_find *find, struct known_pack *known)
{
	ds_list_remove(&known->node);
	ds_list_push_back(&find->tables, &known->node);
	while (find->tables_bytes > find->tables_bytes_max) {
		struct known_pack *oldest =
			ds_list_entry(find->tables.next, struct known_pack, node);

		if (oldest == known)
			return;
		find->tables_bytes -= table_bytes(oldest);
		ds_list_remove(&oldest->node);
		ds_free(oldest->toc);
		oldest->toc = NULL;
	}
}

/* A table is valid until the next call. */
static int get_known(struct commit_find *find, const struct ds_digest *id,
		     struct known_pack **ret_known)
{
	struct known_pack *known = ds_map_get(find->known, id, sizeof(*id));
	int r = 0;

	if (!known) {
		known = ds_calloc(1, sizeof(*known));
		r = known ? ds_map_put(find->known, id, sizeof(*id), known, NULL) : -ENOMEM;
		if (r < 0) {
			ds_free(known);
			return r;
		}
		ds_list_init(&known->node);
	}
	if (!known->toc && known->result == 0) {
		/* Absent, moved or unreadable: no hit, that is all. */
		r = ds_fetch_toc(ds_repo_store(find->repo), id, &known->toc, NULL);
		if (known->toc)
			find->tables_bytes += table_bytes(known);
		known->was_had |= known->toc != NULL;
		known->failed_n = known->toc ? 0 : known->failed_n + 1;
		if (!known->was_had || !ds_error_is_retryable(r) || known->failed_n == TRIES_N)
			known->result = r;
		r = 0;
	}
	if (known->toc)
		use_table(find, known);
	*ret_known = known;
	return 0;
}

/* NULL: what is kept cannot be told, so that no hit counts. */
static const struct ds_keep *get_keep(struct commit_find *find)
{
	struct ds_time now;

	if (!find->keep_tried) {
		find->keep_tried = true;
		if (ds_keep_load(find->repo, &find->keep, &now, NULL) < 0)
			find->keep = NULL;
	}
	return find->keep;
}

static bool is_base(struct commit_find *find, const struct ds_digest *version)
{
	const struct ds_keep *keep;

	if (find->has_base && ds_digest_equal(&find->base, version))
		return true;
	keep = get_keep(find);
	return keep && ds_keep_is_base(keep, version);
}

static bool is_young(struct commit_find *find, const struct ds_digest *id, struct known_pack *known)
{
	const struct ds_keep *keep = get_keep(find);
	char key[DS_PACK_KEY_MAX];
	struct ds_store_req req = {.op = DS_STORE_HEAD, .key = key};

	if (known->age_known)
		return known->is_young;
	known->age_known = true;
	ds_pack_key(id, key);
	if (keep && ds_store_perform(ds_repo_store(find->repo), &req) == 0)
		known->is_young = ds_keep_is_young(keep, req.modified);
	return known->is_young;
}

/* The table's row of a chunk; NULL if the pack has it not there. */
static const struct ds_pack_entry *find_chunk(const struct known_pack *known, uint32_t ordinal,
					      const struct ds_digest *digest,
					      uint32_t raw_len_bytes)
{
	const struct ds_pack_toc *toc = known->toc;
	const struct ds_pack_entry *entry;

	if (!toc || toc->kind != DS_PACK_DATA || ordinal >= toc->chunks_n)
		return NULL;
	entry = &toc->entries[ordinal];
	return ds_digest_equal(&entry->digest, digest) && entry->raw_len_bytes == raw_len_bytes
		       ? entry
		       : NULL;
}

static bool has_note(struct commit_find *find, const struct ds_digest *id, struct known_pack *known)
{
	char key[DS_PACK_KEY_MAX];
	struct ds_store_req req = {.op = DS_STORE_HEAD, .key = key};

	if (!known->note_known) {
		ds_pack_moved_key(id, key);
		known->has_note = ds_store_perform(ds_repo_store(find->repo), &req) != -DS_E_ABSENT;
		known->note_known = true;
	}
	return known->has_note;
}

int commit_find_check(struct commit_find *find, const struct ds_digest *digest,
		      uint32_t raw_len_bytes, const struct commit_place *place)
{
	const struct ds_digest id = commit_packs_get(find->packs, place->pack)->id;
	const struct ds_pack_entry *entry;
	struct known_pack *known;
	bool is_there;
	int r = get_known(find, &id, &known);

	if (r < 0)
		return r;
	if (known->toc) {
		entry = find_chunk(known, place->ordinal, digest, raw_len_bytes);
		is_there = entry && entry->stored_off == place->stored_off &&
			   entry->stored_len_bytes == place->stored_len_bytes;
	} else if (known->result == -DS_E_ABSENT) {
		is_there = has_note(find, &id, known);
	} else {
		is_there = known->result != -DS_E_CORRUPT && known->result != -DS_E_MALFORMED;
	}
	find->has_lost |= !is_there;
	return is_there;
}

bool commit_find_has_lost(const struct commit_find *find)
{
	return find->has_lost;
}

/* 1: the hit is good, and the place is filled in. */
static int confirm(struct commit_find *find, const struct ds_dedup_hit *hit,
		   const struct ds_digest *digest, uint32_t raw_len_bytes,
		   struct commit_place *ret_place)
{
	const struct ds_pack_entry *entry;
	struct known_pack *known;
	int r = get_known(find, &hit->pack, &known);

	if (r < 0)
		return r;
	entry = find_chunk(known, hit->ordinal, digest, raw_len_bytes);
	if (!entry)
		return 0;
	if (!(hit->has_version && is_base(find, &hit->version)) &&
	    !is_young(find, &hit->pack, known))
		return 0;
	*ret_place = (struct commit_place){
		.ordinal = hit->ordinal,
		.stored_off = entry->stored_off,
		.raw_off = entry->raw_off,
		.stored_len_bytes = entry->stored_len_bytes,
	};
	r = commit_packs_known(find->packs, &hit->pack, known->toc->object_len_bytes,
			       known->toc->chunks_n, known->toc->raw_len_bytes, &ret_place->pack);
	return r < 0 ? r : 1;
}

static int load_index(struct commit_find *find)
{
	return find->index
		       ? 0
		       : commit_index_load(find->repo, find->state_dir, find->watch, &find->index);
}

int commit_find_stored(struct commit_find *find, const struct ds_digest *digest,
		       uint32_t raw_len_bytes, struct commit_place *ret_place)
{
	struct commit_index_cursor cursor = {0};
	struct ds_dedup_hit hit;
	int r = load_index(find);

	while (r == 0 && commit_index_next(find->index, digest, &cursor, &hit))
		r = commit_is_interrupted(find->watch)
			    ? -DS_E_INTERRUPTED
			    : confirm(find, &hit, digest, raw_len_bytes, ret_place);
	return r;
}

void commit_find_publish(struct commit_find *find, const struct ds_digest *version,
			 const struct ds_digest *left, size_t left_n)
{
	struct ds_dedup_builder *builder = NULL;
	int r;

	if (!find->for_index_n || load_index(find) < 0)
		return;
	r = ds_dedup_builder_new(&builder);
	for (size_t i = 0; r == 0 && i < noted_table_count(find->own); i++) {
		const struct noted *noted = noted_table_at(find->own, i);

		if (noted->for_index)
			r = ds_dedup_builder_add(
				builder, &noted->digest,
				&commit_packs_get(find->packs, noted->place.pack)->id,
				noted->place.ordinal, noted->is_referred ? version : NULL);
	}
	if (r == 0)
		commit_index_add(find->index, builder, left, left_n);
	ds_dedup_builder_free(builder);
}
