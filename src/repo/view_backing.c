/*
 * Whole files of the cache, for the kernel to read by itself.
 *
 * What is kept for an inode is what an earlier look has found: that all of the image is right, and was taken, or one chunk that was
 * missing. Neither is believed for another image than it was found in (its number): one that was evicted comes back with few of its chunks,
 * and perhaps with the same inodes.
 */
#include <errno.h>
#include <string.h>

#include "repo/view_internal.h"
#include "util/error.h"
#include "util/mem.h"

#define EXTENTS_BATCH 64u
#define BACKED_MAX    4096u /* inodes that are remembered: some 600 KiB */

struct view_backed {
	uint64_t number;
	bool is_whole;
	struct ds_image_slot missing; /* unless it is whole */
};

static bool recall(struct ds_view *view, uint64_t ino, const struct ds_image_backing *backing,
		   struct view_backed *ret_backed)
{
	struct view_backed *backed;
	bool found;

	pthread_mutex_lock(&view->mutex);
	backed = ds_map_get(view->locked.backed, &ino, sizeof(ino));
	found = backed && backing->number && backed->number == backing->number;
	if (found)
		*ret_backed = *backed;
	pthread_mutex_unlock(&view->mutex);
	return found;
}

/* Best effort: without it the next look takes longer. */
static void remember(struct ds_view *view, uint64_t ino, const struct view_backed *backed)
{
	struct view_backed *copy = ds_memdup(backed, sizeof(*backed));
	void *old = copy;

	if (!copy)
		return;
	pthread_mutex_lock(&view->mutex);
	if (ds_map_count(view->locked.backed) < BACKED_MAX ||
	    ds_map_get(view->locked.backed, &ino, sizeof(ino)))
		if (ds_map_put(view->locked.backed, &ino, sizeof(ino), copy, &old) < 0)
			old = copy;
	pthread_mutex_unlock(&view->mutex);
	ds_free(old);
}

struct look {
	struct ds_view *view;
	struct ds_demand *demand;
	struct ds_image *image;
	struct ds_image_backing backing;
	struct view_backed found;
	uint64_t off;
	uint32_t slot;
};

/* 0; -ENODATA: its chunk is not here. */
static int look_at(struct look *look, const struct ds_extent *extent)
{
	struct ds_fetch_target target;
	struct ds_image_slot *missing = &look->found.missing;
	int r;

	if (extent->off != look->off || extent->slot != look->slot || extent->len_bytes == 0)
		return -DS_E_MALFORMED;
	look->off += extent->len_bytes;
	look->slot++;
	if (extent->is_zeros) {
		r = ds_image_backing_add_zeros(&look->backing, extent->slot, extent->off,
					       extent->len_bytes);
		return r < 0 ? -ENODATA : 0;
	}
	r = view_extent_target(look->view, look->demand, look->image, extent, &target);
	if (r < 0)
		return r;
	*missing = (struct ds_image_slot){.slot = target.slot,
					  .raw_off = target.raw_off,
					  .raw_len_bytes = target.ref.raw_len_bytes,
					  .digest = target.ref.digest};
	return ds_image_backing_has(&look->backing, missing, true);
}

/* Whether all of the file is here: 0, -ENODATA, errors of the manifest. */
static int look_at_all(struct look *look, const struct ds_entry *entry)
{
	struct ds_extent extents[EXTENTS_BATCH];
	size_t n = 0;
	int r = 0;

	while (r == 0 && look->off < entry->size_bytes) {
		r = ds_manifest_extents(look->view->manifest, look->demand, entry->ino, look->off,
					entry->size_bytes - look->off, extents, EXTENTS_BATCH, &n);
		if (r == -DS_E_IMPORTED)
			return -ENODATA;
		if (r == 0 && n == 0)
			return -DS_E_MALFORMED;
		for (size_t i = 0; r == 0 && i < n; i++)
			r = look_at(look, &extents[i]);
	}
	/* All slots of the image are spoken for. */
	if (r == 0 && (look->off != entry->size_bytes || look->slot != entry->extents_n))
		return -DS_E_MALFORMED;
	return r;
}

/* With the backing begun: 0 if the kernel may have the file. */
static int check(struct look *look, const struct ds_entry *entry, bool may_wait)
{
	int r;

	if (recall(look->view, entry->ino, &look->backing, &look->found)) {
		if (look->found.is_whole)
			return 0;
		r = look->found.missing.raw_len_bytes
			    ? ds_image_backing_has(&look->backing, &look->found.missing, may_wait)
			    : 0;
		if (r == -ENODATA)
			return r;
	}
	if (!may_wait)
		return -EAGAIN;
	look->found = (struct view_backed){.number = look->backing.number};
	r = look_at_all(look, entry);
	if (r == -ENODATA)
		remember(look->view, entry->ino, &look->found);
	return r;
}

static int look_and_take(struct look *look, const struct ds_entry *entry,
			 struct ds_view_backing *ret_backing)
{
	bool may_wait = view_may_check(look->view, look->demand);
	int r = ds_image_backing_begin(look->image, may_wait, &look->backing);

	if (r < 0)
		return r;
	r = check(look, entry, may_wait);
	if (r == 0)
		r = ds_image_backing_take(&look->backing, &ret_backing->data_fd,
					  &ret_backing->hold_fd);
	/* Only what was taken is never punched. */
	if (r == 0 && !look->found.is_whole) {
		look->found.is_whole = true;
		remember(look->view, entry->ino, &look->found);
	}
	ds_image_backing_end(&look->backing);
	return r;
}

int ds_view_backing(struct ds_view *view, struct ds_demand *demand, uint64_t ino,
		    struct ds_view_backing *ret_backing)
{
	struct look look = {.view = view, .demand = demand};
	struct ds_entry entry;
	int r = ds_view_get(view, demand, ino, &entry);

	if (r < 0)
		return r;
	if (entry.type != DS_ENTRY_FILE || entry.extents_n == 0)
		return -ENODATA;
	r = view_file_image(view, &entry, &look.image);
	if (r < 0)
		return r;
	r = look_and_take(&look, &entry, ret_backing);
	if (r == -EAGAIN)
		r = -DS_E_NOT_LOCAL;
	else if (r == -ENOENT || r == -ESTALE)
		r = -ENODATA;
	ds_image_unref(look.image);
	return r;
}
