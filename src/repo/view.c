/*
 * Opening a view, its look-ups in the manifest, and how one chunk is read. File contents are in
 * view_read.c.
 */
#include "repo/view_internal.h"

#include <errno.h>
#include <string.h>

#include "util/error.h"
#include "util/mem.h"

/*
 * A version that is not more than this part of the memory is read ahead of an epoch, and may be in the page cache twice; a larger one
 * is read past it.
 */
#define MEMORY_PARTS 4u

int ds_view_open(struct ds_repo *repo, struct ds_cache *cache, struct ds_fetcher *fetcher,
		 const struct ds_record *record, bool blocking, uint64_t timeout_ms,
		 struct ds_view **ret_view, struct ds_diag *reterr_diag)
{
	struct ds_view *view = ds_calloc(1, sizeof(*view));
	struct ds_cache_stats stats;
	int r;

	if (!view)
		return -ENOMEM;
	if (record->schema > DS_MANIFEST_SCHEMA) {
		ds_free(view);
		return ds_diag_set(reterr_diag, -DS_E_TOO_NEW, NULL, "manifest schema %llu",
				   (unsigned long long)record->schema);
	}
	view->repo = ds_repo_ref(repo);
	view->cache = ds_cache_ref(cache);
	view->fetcher = fetcher;
	view->is_blocking = blocking;
	view->timeout_ms = timeout_ms ? timeout_ms : 60000;
	view->version = record->id;
	view->page_size = record->page_size;
	view->pages_n = record->pages_n;
	view->index_root = record->index;
	ds_cache_get_stats(cache, &stats);
	view->fits_cache = record->totals.bytes <= stats.capacity_bytes;
	view->fits_memory = record->totals.bytes <= ds_memory_bytes() / MEMORY_PARTS;
	pthread_mutex_init(&view->mutex, NULL);
	view_streams_init(view);
	view->runs_ahead =
		stats.capacity_bytes / VIEW_AHEAD_BUDGETS_MIN >= view->streams.budget_bytes;
	r = view_images_init(view);
	if (r == 0)
		r = ds_map_new(&view->locked.backed);
	if (r == 0)
		r = view_pages_init(view);
	if (r == 0)
		r = ds_manifest_new(&view->source, &view->manifest);
	if (r < 0) {
		ds_view_close(view);
		return ds_diag_set(reterr_diag, r, NULL, "cannot open the version");
	}
	view_pages_prefetch(view, record);
	*ret_view = view;
	return 0;
}

struct ds_view *ds_view_close(struct ds_view *view)
{
	if (!view)
		return NULL;
	ds_manifest_free(view->manifest);
	view_pages_release(view);
	for (size_t i = 0; i < VIEW_RECENT_N; i++)
		if (view->locked.recent[i].bytes)
			ds_chunk_bytes_unref(view->locked.recent[i].bytes);
	view_images_release(view);
	ds_map_free(view->locked.backed, ds_free);
	view_streams_release(view);
	pthread_mutex_destroy(&view->mutex);
	ds_cache_unref(view->cache);
	ds_repo_unref(view->repo);
	ds_free(view);
	return NULL;
}

const struct ds_digest *ds_view_version(const struct ds_view *view)
{
	return &view->version;
}

struct ds_manifest *ds_view_manifest(struct ds_view *view)
{
	return view->manifest;
}

const struct ds_page_source *ds_view_page_source(struct ds_view *view)
{
	return &view->source;
}

static struct ds_chunk_bytes *recent_find(struct ds_view *view, const struct ds_digest *digest)
{
	struct ds_chunk_bytes *bytes = NULL;

	pthread_mutex_lock(&view->mutex);
	for (size_t i = 0; i < VIEW_RECENT_N && !bytes; i++)
		if (view->locked.recent[i].bytes &&
		    ds_digest_equal(&view->locked.recent[i].digest, digest))
			bytes = ds_chunk_bytes_ref(view->locked.recent[i].bytes);
	pthread_mutex_unlock(&view->mutex);
	return bytes;
}

/*
 * Keeps the bytes in memory, in place of the oldest: a view without a disk cache must not fetch a
 * page for every row.
 */
static void recent_keep(struct ds_view *view, const struct ds_digest *digest,
			struct ds_chunk_bytes *bytes)
{
	bytes = ds_chunk_bytes_keep(bytes);
	if (!bytes)
		return;
	pthread_mutex_lock(&view->mutex);
	do {
		struct view_recent *slot = &view->locked.recent[view->locked.recent_next];

		if (slot->bytes) {
			view->locked.recent_bytes -= slot->bytes->len_bytes;
			ds_chunk_bytes_unref(slot->bytes);
			slot->bytes = NULL;
		}
		if (view->locked.recent_bytes + bytes->len_bytes <= VIEW_RECENT_BYTES) {
			slot->digest = *digest;
			slot->bytes = bytes;
			view->locked.recent_bytes += bytes->len_bytes;
			bytes = NULL;
		}
		view->locked.recent_next = (view->locked.recent_next + 1) % VIEW_RECENT_N;
	} while (bytes);
	pthread_mutex_unlock(&view->mutex);
}

static int read_blocking(struct ds_view *view, struct ds_demand *demand,
			 const struct ds_fetch_target *target, uint64_t off, size_t len_bytes,
			 void *ret_data)
{
	struct ds_chunk_bytes *bytes = recent_find(view, &target->ref.digest);
	int r;

	if (!bytes) {
		r = ds_fetch_blocking(view->fetcher, target, ds_deadline_in_ms(view->timeout_ms),
				      &bytes, demand ? &demand->diag : NULL);
		if (r < 0)
			return r;
		recent_keep(view, &target->ref.digest, bytes);
	}
	memcpy(ret_data, bytes->data + off, len_bytes);
	ds_chunk_bytes_unref(bytes);
	return 0;
}

static struct ds_image_slot slot_of(const struct ds_fetch_target *target)
{
	return (struct ds_image_slot){
		.slot = target->slot,
		.raw_off = target->raw_off,
		.raw_len_bytes = target->ref.raw_len_bytes,
		.digest = target->ref.digest,
	};
}

bool view_chunk_is_local(const struct ds_fetch_target *target)
{
	struct ds_image_slot slot = slot_of(target);

	return ds_image_has(target->image, &slot);
}

int view_chunk_look(const struct ds_view *view, const struct ds_demand *demand,
		    const struct ds_fetch_target *target, bool *ret_is_local)
{
	struct ds_image_slot slot = slot_of(target);

	if (!view_may_check(view, demand))
		return ds_image_has_now(target->image, &slot, ret_is_local) < 0 ? -DS_E_NOT_LOCAL
										: 0;
	*ret_is_local = ds_image_has(target->image, &slot);
	return 0;
}

int view_chunk_check(const struct ds_fetch_target *target, void *buffer)
{
	struct ds_image_slot slot = slot_of(target);

	return ds_image_check(target->image, &slot, buffer);
}

bool view_chunk_direct(struct ds_demand *demand, const struct ds_fetch_target *target, uint64_t off,
		       size_t len_bytes)
{
	struct ds_image_slot slot = slot_of(target);

	if (off > slot.raw_len_bytes || len_bytes > slot.raw_len_bytes - off)
		return false;
	return ds_image_direct_begin(target->image, &slot, off, len_bytes,
				     demand->direct_room_bytes, &demand->direct) == 0;
}

bool view_chunk_lend(struct ds_demand *demand, const struct ds_fetch_target *target, uint64_t off,
		     size_t len_bytes)
{
	struct ds_image_slot slot = slot_of(target);
	const uint8_t *data;

	if (off > slot.raw_len_bytes || len_bytes > slot.raw_len_bytes - off ||
	    (demand->lent.image && demand->lent.image != target->image) ||
	    ds_image_lend_now(target->image, &slot, off, len_bytes, &data) < 0)
		return false;
	if (!demand->lent.image) {
		demand->lent.image = ds_image_ref(target->image);
		demand->lent.data = data;
		demand->lent.len_bytes = len_bytes;
		return true;
	}
	/* Once in the gate is enough. */
	ds_image_lend_end(target->image);
	if (data != demand->lent.data + demand->lent.len_bytes)
		return false;
	demand->lent.len_bytes += len_bytes;
	return true;
}

int view_chunk_read(struct ds_view *view, struct ds_demand *demand,
		    const struct ds_fetch_target *target, uint64_t off, size_t len_bytes,
		    void *ret_data)
{
	struct ds_image_slot slot = slot_of(target);
	struct ds_chunk_bytes *pinned = demand ? demand_pinned(demand, &slot.digest) : NULL;

	if (off > slot.raw_len_bytes || len_bytes > slot.raw_len_bytes - off)
		return -DS_E_MALFORMED;
	if (pinned) {
		if (pinned->len_bytes != slot.raw_len_bytes)
			return -DS_E_MALFORMED;
		memcpy(ret_data, pinned->data + off, len_bytes);
		return 0;
	}
	/* Trouble with the cache is a miss like any other. */
	if (!view_may_check(view, demand))
		return ds_image_read_now(target->image, &slot, off, len_bytes, ret_data) == 0
			       ? 0
			       : -DS_E_NOT_LOCAL;
	if (ds_image_read(target->image, &slot, off, len_bytes, true, ret_data) == 0)
		return 0;
	if (view->is_blocking)
		return read_blocking(view, demand, target, off, len_bytes, ret_data);
	demand_add(demand, target);
	return -DS_E_NOT_LOCAL;
}

int ds_view_lookup(struct ds_view *view, struct ds_demand *demand, uint64_t parent,
		   const char *name, size_t name_len, struct ds_entry *ret_entry)
{
	demand_clear(demand);
	return ds_manifest_lookup(view->manifest, demand, parent, name, name_len, ret_entry);
}

int ds_view_get(struct ds_view *view, struct ds_demand *demand, uint64_t ino,
		struct ds_entry *ret_entry)
{
	demand_clear(demand);
	return ds_manifest_get(view->manifest, demand, ino, ret_entry);
}

typedef int list_fn(struct ds_manifest *manifest, void *want, uint64_t dir, uint64_t after,
		    ds_manifest_list_fn *fn, void *ctx);

static int list(struct ds_view *view, struct ds_demand *demand, list_fn *run, uint64_t dir,
		uint64_t after, ds_manifest_list_fn *fn, void *ctx)
{
	int r;

	demand_clear(demand);
	if (demand)
		demand->is_listing = true;
	r = run(view->manifest, demand, dir, after, fn, ctx);
	if (demand)
		demand->is_listing = false;
	return r;
}

int ds_view_list(struct ds_view *view, struct ds_demand *demand, uint64_t dir, uint64_t after,
		 ds_manifest_list_fn *fn, void *ctx)
{
	return list(view, demand, ds_manifest_list, dir, after, fn, ctx);
}

int ds_view_list_attrs(struct ds_view *view, struct ds_demand *demand, uint64_t dir, uint64_t after,
		       ds_manifest_list_fn *fn, void *ctx)
{
	return list(view, demand, ds_manifest_list_attrs, dir, after, fn, ctx);
}

int ds_view_readlink(struct ds_view *view, struct ds_demand *demand, uint64_t ino,
		     struct ds_buf *buf)
{
	demand_clear(demand);
	return ds_manifest_readlink(view->manifest, demand, ino, buf);
}

int ds_view_total(struct ds_view *view, struct ds_demand *demand, const char *key,
		  uint64_t *ret_value)
{
	demand_clear(demand);
	return ds_manifest_total(view->manifest, demand, key, ret_value);
}

int ds_view_walk(struct ds_view *view, struct ds_demand *demand, const char *path,
		 struct ds_entry *ret_entry)
{
	struct ds_entry entry;
	int r = ds_view_get(view, demand, DS_ROOT_ID, &entry);

	while (r == 0 && *path) {
		size_t len = strcspn(path, "/");

		if (entry.type != DS_ENTRY_DIRECTORY)
			return -ENOTDIR;
		if (len > DS_NAME_MAX)
			return -ENAMETOOLONG;
		if (len)
			r = ds_view_lookup(view, demand, entry.ino, path, len, &entry);
		path += len;
		while (*path == '/')
			path++;
	}
	if (r == 0)
		*ret_entry = entry;
	return r;
}
