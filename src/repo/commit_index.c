#include "repo/commit_index.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "repo/commit_batch.h"
#include "util/error.h"
#include "util/file.h"
#include "util/map.h"
#include "util/mem.h"
#include "util/str.h"

#define OBJECT_MAX DS_GIB(1)
#define LEVELS_MAX 16u
#define WINDOW	   8u
#define KEY_MAX	   96

struct index_object {
	struct ds_digest id;
	unsigned level;
	struct ds_buf data;
	struct ds_dedup *dedup; /* NULL: not read, or not to be had */
	bool is_covered;
};

struct commit_index {
	struct ds_repo *repo;
	int dir_fd; /* of the local copies; -1: none */
	struct index_object *objects;
	size_t objects_n;
};

static void release_object(struct index_object *object)
{
	object->dedup = ds_dedup_free(object->dedup);
	ds_buf_release(&object->data);
}

struct commit_index *commit_index_free(struct commit_index *index)
{
	if (!index)
		return NULL;
	for (size_t i = 0; i < index->objects_n; i++)
		release_object(&index->objects[i]);
	ds_free(index->objects);
	if (index->dir_fd >= 0)
		close(index->dir_fd);
	ds_repo_unref(index->repo);
	ds_free(index);
	return NULL;
}

/* STATE/index/REPOSITORY; -1 if it cannot be had. */
static int open_dir(const char *state_dir, const struct ds_repo *repo)
{
	_ds_cleanup_free_ char *path = NULL;
	char id[2 * DS_UUID_LEN + 1];

	if (!state_dir)
		return -1;
	ds_hex_encode(ds_repo_id(repo)->bytes, DS_UUID_LEN, id);
	path = ds_asprintf("%s/index/%s", state_dir, id);
	if (!path || ds_mkdir_p(AT_FDCWD, path, 0700) < 0)
		return -1;
	return open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

static void format_key(const struct index_object *object, char *key, size_t size)
{
	char text[DS_DIGEST_TEXT_MAX];

	snprintf(key, size, "index/%u/%s", object->level, ds_digest_format(&object->id, text));
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

static int parse_object(struct index_object *object)
{
	int r = ds_dedup_parse(object->data.data, object->data.len_bytes, &object->id,
			       &object->dedup);

	if (r < 0)
		ds_buf_release(&object->data);
	return r;
}

static bool load_local(struct commit_index *index, struct index_object *object)
{
	char text[DS_DIGEST_TEXT_MAX];

	ds_buf_init(&object->data, OBJECT_MAX);
	if (index->dir_fd < 0 || ds_file_read_at(index->dir_fd, ds_digest_format(&object->id, text),
						 &object->data) < 0) {
		ds_buf_release(&object->data);
		return false;
	}
	return parse_object(object) == 0;
}

static void save_local(const struct commit_index *index, const struct index_object *object)
{
	char text[DS_DIGEST_TEXT_MAX];

	if (index->dir_fd >= 0)
		ds_file_write_atomic(index->dir_fd, ds_digest_format(&object->id, text),
				     object->data.data, object->data.len_bytes, 0600,
				     DS_FILE_REPLACE, false);
}

struct fetch {
	struct commit_index *index;
	struct index_object **wanted;
};

static void start_get(void *ctx, struct commit_batch_slot *slot)
{
	struct fetch *fetch = ctx;

	ds_buf_init(&slot->buf, OBJECT_MAX);
	format_key(fetch->wanted[slot->idx], slot->key, sizeof(slot->key));
	slot->req.op = DS_STORE_GET;
	slot->req.len_bytes = DS_STORE_LEN_ALL;
	slot->req.into = &slot->buf;
}

static int finish_get(void *ctx, struct commit_batch_slot *slot)
{
	struct fetch *fetch = ctx;
	struct index_object *object = fetch->wanted[slot->idx];

	if (slot->req.result < 0)
		return 0;
	object->data = slot->buf;
	slot->buf = (struct ds_buf){0};
	if (parse_object(object) == 0)
		save_local(fetch->index, object);
	return 0;
}

/* Reads the uncovered objects of a level; notes what they cover. */
static int load_level(struct commit_index *index, unsigned level, struct ds_map *covered,
		      const struct commit_watch *watch)
{
	struct fetch fetch = {.index = index};
	struct commit_batch batch = {.window = WINDOW,
				     .start = start_get,
				     .finish = finish_get,
				     .ctx = &fetch};
	static char mark;
	int r;

	fetch.wanted = ds_calloc(index->objects_n + 1, sizeof(struct index_object *));
	if (!fetch.wanted)
		return -ENOMEM;
	for (size_t i = 0; i < index->objects_n; i++) {
		struct index_object *object = &index->objects[i];

		if (object->level != level)
			continue;
		object->is_covered = ds_map_get(covered, &object->id, sizeof(object->id)) != NULL;
		if (!object->is_covered && !load_local(index, object))
			fetch.wanted[batch.n++] = object;
	}
	r = commit_batch_run(ds_repo_store(index->repo), &batch, watch);
	ds_free(fetch.wanted);
	for (size_t i = 0; r == 0 && i < index->objects_n; i++) {
		const struct index_object *object = &index->objects[i];

		if (object->level != level || !object->dedup)
			continue;
		for (size_t c = 0; r == 0 && c < ds_dedup_covers_n(object->dedup); c++)
			r = ds_map_put(covered, ds_dedup_covered(object->dedup, c), DS_DIGEST_LEN,
				       &mark, NULL);
	}
	return r;
}

/* An object may cover others of its own level: what was left on the way is read in vain at most once. */
static void drop_covered(struct commit_index *index, const struct ds_map *covered)
{
	for (size_t i = 0; i < index->objects_n; i++) {
		struct index_object *object = &index->objects[i];

		if (!ds_map_get(covered, &object->id, sizeof(object->id)))
			continue;
		object->is_covered = true;
		release_object(object);
	}
}

/* Local copies that no commit will ask for again. */
static void drop_local(const struct commit_index *index, const struct ds_map *covered)
{
	struct dirent *entry;
	DIR *dir;
	int fd = index->dir_fd < 0 ? -1 : fcntl(index->dir_fd, F_DUPFD_CLOEXEC, 0);

	dir = fd < 0 ? NULL : fdopendir(fd);
	if (!dir && fd >= 0)
		close(fd);
	while (dir && (entry = readdir(dir))) {
		struct ds_digest id;

		if (ds_digest_parse(entry->d_name, &id) == 0 &&
		    ds_map_get(covered, &id, sizeof(id)))
			unlinkat(index->dir_fd, entry->d_name, 0);
	}
	if (dir)
		closedir(dir);
}

static int list_objects(struct commit_index *index)
{
	struct ds_store_listing listing = {0};
	struct ds_store_req req = {.op = DS_STORE_LIST, .key = "index/", .listing = &listing};

	/* A LIST that fails may leave rows of its first pages. */
	if (ds_store_perform(ds_repo_store(index->repo), &req) < 0) {
		ds_store_listing_release(&listing);
		return 0;
	}
	index->objects = ds_calloc(listing.objects_n + 1, sizeof(*index->objects));
	for (size_t i = 0; index->objects && i < listing.objects_n; i++) {
		struct index_object *object = &index->objects[index->objects_n];

		if (parse_key(listing.objects[i].key, &object->level, &object->id) == 0)
			index->objects_n++;
	}
	ds_store_listing_release(&listing);
	return index->objects ? 0 : -ENOMEM;
}

int commit_index_load(struct ds_repo *repo, const char *state_dir, const struct commit_watch *watch,
		      struct commit_index **ret_index)
{
	struct commit_index *index = ds_calloc(1, sizeof(*index));
	struct ds_map *covered = NULL;
	int r;

	if (!index)
		return -ENOMEM;
	index->repo = ds_repo_ref(repo);
	index->dir_fd = open_dir(state_dir, repo);
	r = list_objects(index);
	if (r == 0)
		r = ds_map_new(&covered);
	/* From the top: what is merged covers what is below. */
	for (unsigned level = LEVELS_MAX; r == 0 && level-- > 0;)
		r = load_level(index, level, covered, watch);
	if (r == 0) {
		drop_covered(index, covered);
		drop_local(index, covered);
		*ret_index = index;
	} else {
		commit_index_free(index);
	}
	ds_map_free(covered, NULL);
	return r;
}

bool commit_index_next(const struct commit_index *index, const struct ds_digest *digest,
		       struct commit_index_cursor *cursor, struct ds_dedup_hit *ret_hit)
{
	for (; cursor->object < index->objects_n; cursor->object++, cursor->entry = 0) {
		const struct index_object *object = &index->objects[cursor->object];

		if (object->dedup && ds_dedup_find(object->dedup, digest, &cursor->entry, ret_hit))
			return true;
	}
	return false;
}

/* Builds and puts an object; it becomes one of the index's. */
static int put_object(struct commit_index *index, struct ds_dedup_builder *builder, unsigned level)
{
	struct index_object object = {.level = level}, *grown;
	char key[KEY_MAX];
	int r;

	grown = ds_reallocarray(index->objects, index->objects_n + 1, sizeof(*grown));
	if (!grown)
		return -ENOMEM;
	index->objects = grown;
	ds_buf_init(&object.data, OBJECT_MAX);
	r = ds_dedup_builder_finish(builder, &object.data, &object.id);
	if (r == 0) {
		format_key(&object, key, sizeof(key));
		r = ds_store_put_if_absent(ds_repo_store(index->repo), key, object.data.data,
					   object.data.len_bytes, NULL);
	}
	if (r == 0 || r == -DS_E_PRESENT)
		r = parse_object(&object);
	if (r < 0) {
		release_object(&object);
		return r;
	}
	save_local(index, &object);
	index->objects[index->objects_n++] = object;
	return 0;
}

/* Eight uncovered objects of a level become one of the next, as often as it goes. */
static void merge_levels(struct commit_index *index)
{
	for (unsigned level = 0; level + 1 < LEVELS_MAX; level++) {
		struct index_object *chosen[DS_DEDUP_MERGE_N];
		size_t chosen_idx[DS_DEDUP_MERGE_N], n = 0;
		struct ds_dedup_builder *builder = NULL;
		int r;

		for (size_t i = 0; i < index->objects_n && n < DS_DEDUP_MERGE_N; i++) {
			chosen[n] = &index->objects[i];
			chosen_idx[n] = i;
			n += chosen[n]->level == level && chosen[n]->dedup;
		}
		if (n < DS_DEDUP_MERGE_N)
			continue;
		r = ds_dedup_builder_new(&builder);
		for (size_t i = 0; r == 0 && i < n; i++)
			r = ds_dedup_builder_merge(builder, chosen[i]->dedup, &chosen[i]->id);
		if (r == 0)
			r = put_object(index, builder, level + 1);
		ds_dedup_builder_free(builder);
		if (r < 0)
			return;
		/* The array may have moved. */
		for (size_t i = 0; i < n; i++) {
			index->objects[chosen_idx[i]].is_covered = true;
			release_object(&index->objects[chosen_idx[i]]);
		}
	}
}

void commit_index_add(struct commit_index *index, struct ds_dedup_builder *builder,
		      const struct ds_digest *covers, size_t covers_n)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < covers_n; i++)
		r = ds_dedup_builder_cover(builder, &covers[i]);
	if (r == 0)
		r = put_object(index, builder, 0);
	if (r < 0)
		return;
	/* What this commit left on the way may have been listed. */
	for (size_t i = 0; i < index->objects_n; i++)
		for (size_t c = 0; c < covers_n; c++)
			if (ds_digest_equal(&index->objects[i].id, &covers[c]))
				release_object(&index->objects[i]);
	merge_levels(index);
}
