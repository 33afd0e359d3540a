#include "repo/commit_find.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cache/fetch.h"
#include "codec/dedup.h"
#include "util/error.h"
#include "util/map.h"
#include "util/mem.h"
#include "util/str.h"

#define OBJECT_MAX DS_GIB(1)
#define LEVELS_MAX 16u

struct index_object {
	struct ds_digest id;
	unsigned level;
	struct ds_buf data;
	struct ds_dedup *dedup;
	bool is_covered;
};

struct known_pack {		 /* what was learned of a pack that a hit named */
	struct ds_pack_toc *toc; /* NULL: it cannot be had */
	bool is_young, age_known;
};

struct commit_find {
	struct ds_repo *repo;
	struct commit_packs *packs;
	struct ds_map *own;   /* digest -> struct commit_place */
	struct ds_map *known; /* pack id -> struct known_pack */
	struct ds_keep *keep;
	bool keep_tried, is_loaded;
	struct index_object *objects;
	size_t objects_n;
};

int commit_find_new(struct ds_repo *repo, struct commit_packs *packs, struct commit_find **ret_find)
{
	struct commit_find *find = ds_calloc(1, sizeof(*find));
	int r;

	if (!find)
		return -ENOMEM;
	find->repo = ds_repo_ref(repo);
	find->packs = packs;
	r = ds_map_new(&find->own);
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
	for (size_t i = 0; i < find->objects_n; i++) {
		ds_dedup_free(find->objects[i].dedup);
		ds_buf_release(&find->objects[i].data);
	}
	ds_free(find->objects);
	ds_map_free(find->own, ds_free);
	ds_map_free(find->known, free_known);
	ds_keep_free(find->keep);
	ds_repo_unref(find->repo);
	ds_free(find);
	return NULL;
}

int commit_find_note(struct commit_find *find, const struct ds_digest *digest,
		     const struct commit_place *place)
{
	struct commit_place *copy = ds_memdup(place, sizeof(*place));
	void *old = NULL;
	int r = copy ? ds_map_put(find->own, digest, sizeof(*digest), copy, &old) : -ENOMEM;

	if (r < 0)
		ds_free(copy);
	ds_free(old);
	return r;
}

/* "index/3/ID" to level and id. */
static int parse_key(const char *key, unsigned *ret_level, struct ds_digest *ret_id)
{
	unsigned level;
	int n = 0;

	if (sscanf(key, "index/%2u/%n", &level, &n) != 1 || n == 0 || level >= LEVELS_MAX)
		return -EINVAL;
	*ret_level = level;
	return ds_digest_parse(key + n, ret_id);
}

static int compare_levels(const void *a, const void *b)
{
	const struct index_object *x = a, *y = b;

	return x->level < y->level ? 1 : x->level > y->level ? -1 : 0;
}

static void load_object(struct commit_find *find, struct index_object *object)
{
	char key[DS_PACK_KEY_MAX], text[DS_DIGEST_TEXT_MAX];

	snprintf(key, sizeof(key), "index/%u/%s", object->level,
		 ds_digest_format(&object->id, text));
	ds_buf_init(&object->data, OBJECT_MAX);
	if (ds_store_get(ds_repo_store(find->repo), key, &object->data, NULL) < 0)
		return;
	ds_dedup_parse(object->data.data, object->data.len_bytes, &object->id, &object->dedup);
}

/* Lists index/ and reads what is not covered by a merged object. What cannot be read is as if it were not there. */
static int load(struct commit_find *find)
{
	struct ds_store_listing listing = {0};
	struct ds_store_req req = {.op = DS_STORE_LIST, .key = "index/", .listing = &listing};
	struct ds_map *covered = NULL;
	static char mark;
	int r = 0;

	if (find->is_loaded)
		return 0;
	find->is_loaded = true;
	if (ds_store_perform(ds_repo_store(find->repo), &req) < 0)
		return 0;
	find->objects = ds_calloc(listing.objects_n + 1, sizeof(*find->objects));
	r = find->objects ? ds_map_new(&covered) : -ENOMEM;
	for (size_t i = 0; r == 0 && i < listing.objects_n; i++) {
		struct index_object *object = &find->objects[find->objects_n];

		if (parse_key(listing.objects[i].key, &object->level, &object->id) == 0)
			find->objects_n++;
	}
	ds_store_listing_release(&listing);
	if (r < 0)
		return r;
	qsort(find->objects, find->objects_n, sizeof(*find->objects), compare_levels);
	for (size_t i = 0; r == 0 && i < find->objects_n; i++) {
		struct index_object *object = &find->objects[i];

		object->is_covered = ds_map_get(covered, &object->id, sizeof(object->id)) != NULL;
		if (object->is_covered)
			continue;
		load_object(find, object);
		for (size_t c = 0; object->dedup && r == 0 && c < ds_dedup_covers_n(object->dedup);
		     c++)
			r = ds_map_put(covered, ds_dedup_covered(object->dedup, c), DS_DIGEST_LEN,
				       &mark, NULL);
	}
	ds_map_free(covered, NULL);
	return r;
}

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
		/* Absent, moved or unreadable: no hit, that is all. */
		ds_fetch_toc(ds_repo_store(find->repo), id, &known->toc, NULL);
	}
	*ret_known = known;
	return 0;
}

static bool keep_has(struct commit_find *find, const struct ds_digest *version)
{
	struct ds_time now;

	if (!find->keep_tried) {
		find->keep_tried = true;
		if (ds_keep_load(find->repo, &find->keep, &now, NULL) < 0)
			find->keep = NULL;
	}
	return find->keep && ds_keep_is_base(find->keep, version);
}

static bool is_young(struct commit_find *find, const struct ds_digest *id, struct known_pack *known)
{
	char key[DS_PACK_KEY_MAX];
	struct ds_store_req req = {.op = DS_STORE_HEAD, .key = key};
	struct ds_digest none = {0};

	if (known->age_known)
		return known->is_young;
	known->age_known = true;
	keep_has(find, &none); /* loads the policy */
	ds_pack_key(id, key);
	if (find->keep && ds_store_perform(ds_repo_store(find->repo), &req) == 0)
		known->is_young = ds_keep_is_young(find->keep, req.modified);
	return known->is_young;
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
	if (!known->toc || known->toc->kind != DS_PACK_DATA || hit->ordinal >= known->toc->chunks_n)
		return 0;
	entry = &known->toc->entries[hit->ordinal];
	if (!ds_digest_equal(&entry->digest, digest) || entry->raw_len_bytes != raw_len_bytes)
		return 0;
	if (!(hit->has_version && keep_has(find, &hit->version)) &&
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

int commit_find_has(struct commit_find *find, const struct ds_digest *digest,
		    uint32_t raw_len_bytes, struct commit_place *ret_place, bool *ret_is_own)
{
	const struct commit_place *own = ds_map_get(find->own, digest, sizeof(*digest));
	struct ds_dedup_hit hit;
	int r;

	*ret_is_own = own != NULL;
	if (own) {
		*ret_place = *own;
		return 1;
	}
	r = load(find);
	for (size_t i = 0; r == 0 && i < find->objects_n; i++) {
		size_t cursor = 0;

		if (!find->objects[i].dedup)
			continue;
		while (r == 0 && ds_dedup_find(find->objects[i].dedup, digest, &cursor, &hit))
			r = confirm(find, &hit, digest, raw_len_bytes, ret_place);
	}
	return r;
}

static int put_object(struct commit_find *find, struct ds_dedup_builder *builder, unsigned level,
		      struct ds_digest *ret_id, struct ds_buf *body)
{
	char key[DS_PACK_KEY_MAX], text[DS_DIGEST_TEXT_MAX];
	int r;

	ds_buf_init(body, OBJECT_MAX);
	r = ds_dedup_builder_finish(builder, body, ret_id);
	if (r < 0)
		return r;
	snprintf(key, sizeof(key), "index/%u/%s", level, ds_digest_format(ret_id, text));
	r = ds_store_put_if_absent(ds_repo_store(find->repo), key, body->data, body->len_bytes,
				   NULL);
	return r == -DS_E_PRESENT ? 0 : r;
}

/* The version's own object: what this commit put, covering what it left on the way. */
static int put_own(struct commit_find *find, const struct ds_digest *version,
		   const struct ds_digest *left, size_t left_n, struct index_object *ret_object)
{
	struct ds_dedup_builder *builder = NULL;
	size_t cursor = 0;
	const void *digest;
	void *value;
	int r = ds_dedup_builder_new(&builder);

	while (r == 0 && ds_map_each(find->own, &cursor, &digest, NULL, &value)) {
		const struct commit_place *place = value;
		const struct commit_pack *pack = commit_packs_get(find->packs, place->pack);

		if (pack->is_new)
			r = ds_dedup_builder_add(builder, digest, &pack->id, place->ordinal,
						 version);
	}
	for (size_t i = 0; r == 0 && i < left_n; i++)
		r = ds_dedup_builder_cover(builder, &left[i]);
	if (r == 0 && ds_dedup_builder_entries_n(builder) > 0)
		r = put_object(find, builder, 0, &ret_object->id, &ret_object->data);
	if (r == 0 && ret_object->data.len_bytes)
		r = ds_dedup_parse(ret_object->data.data, ret_object->data.len_bytes,
				   &ret_object->id, &ret_object->dedup);
	ds_dedup_builder_free(builder);
	return r;
}

/* Eight uncovered objects of a level become one of the next, as often as it goes. */
static int merge_levels(struct commit_find *find)
{
	for (unsigned level = 0; level + 1 < LEVELS_MAX; level++) {
		struct index_object *chosen[DS_DEDUP_MERGE_N];
		struct ds_dedup_builder *builder = NULL;
		struct index_object merged = {.level = level + 1}, *grown;
		size_t n = 0;
		int r;

		for (size_t i = 0; i < find->objects_n && n < DS_DEDUP_MERGE_N; i++)
			if (find->objects[i].level == level && find->objects[i].dedup &&
			    !find->objects[i].is_covered)
				chosen[n++] = &find->objects[i];
		if (n < DS_DEDUP_MERGE_N)
			continue;
		r = ds_dedup_builder_new(&builder);
		for (size_t i = 0; r == 0 && i < n; i++)
			r = ds_dedup_builder_merge(builder, chosen[i]->dedup, &chosen[i]->id);
		if (r == 0)
			r = put_object(find, builder, level + 1, &merged.id, &merged.data);
		ds_dedup_builder_free(builder);
		if (r == 0)
			r = ds_dedup_parse(merged.data.data, merged.data.len_bytes, &merged.id,
					   &merged.dedup);
		for (size_t i = 0; r == 0 && i < n; i++)
			chosen[i]->is_covered = true;
		grown = r == 0 ? ds_reallocarray(find->objects, find->objects_n + 1, sizeof(*grown))
			       : NULL;
		if (!grown) {
			ds_dedup_free(merged.dedup);
			ds_buf_release(&merged.data);
			return r < 0 ? r : -ENOMEM;
		}
		find->objects = grown;
		find->objects[find->objects_n++] = merged;
	}
	return 0;
}

void commit_find_publish(struct commit_find *find, const struct ds_digest *version,
			 const struct ds_digest *left, size_t left_n)
{
	struct index_object own = {0}, *grown;

	if (load(find) < 0 || put_own(find, version, left, left_n, &own) < 0 || !own.dedup) {
		ds_dedup_free(own.dedup);
		ds_buf_release(&own.data);
		return;
	}
	/* What this commit left on the way may have been listed meanwhile. */
	for (size_t i = 0; i < find->objects_n; i++)
		for (size_t c = 0; c < left_n; c++)
			if (ds_digest_equal(&find->objects[i].id, &left[c]))
				find->objects[i].is_covered = true;
	grown = ds_reallocarray(find->objects, find->objects_n + 1, sizeof(*grown));
	if (!grown) {
		ds_dedup_free(own.dedup);
		ds_buf_release(&own.data);
		return;
	}
	find->objects = grown;
	find->objects[find->objects_n++] = own;
	merge_levels(find);
}
