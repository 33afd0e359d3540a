/*
 * Filling slots of an image.
 *
 * INV-1 The data are written before the bits that vouch for them, with the slot's lock.
 * INV-2 Filling together does what filling one by one would: what does not go together is tried again by itself.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "cache/cache_internal.h"
#include "util/file.h"

/* ---- locks of slots */

static void unmark_filling(struct ds_image_disk *disk, uint32_t slot)
{
	atomic_fetch_and(&disk->filling[slot / 8].value, (uint8_t) ~(1u << slot % 8));
}

static int lock_slot(struct ds_image_disk *disk, uint32_t slot)
{
	uint8_t bit = (uint8_t)(1u << slot % 8);
	int r;

	/* Locks of one description do not exclude each other, so this process has its own mark. (A
	 * description for each slot would cost thousands of descriptors.) */
	if (atomic_fetch_or(&disk->filling[slot / 8].value, bit) & bit)
		return -EBUSY;
	r = ds_map_lock(disk->map_fd, F_WRLCK, DS_MAP_LOCK_SLOT + slot);
	if (r < 0) {
		unmark_filling(disk, slot);
		return r == -EAGAIN ? -EBUSY : r;
	}
	return 0;
}

void ds_image_unlock_slot(struct ds_image_lock *lock)
{
	if (!lock->disk)
		return;
	ds_map_lock(lock->disk->map_fd, F_UNLCK, DS_MAP_LOCK_SLOT + lock->slot);
	unmark_filling(lock->disk, lock->slot);
	lock->disk = ds_image_disk_unref(lock->disk);
}

static int lock_in(struct ds_image_disk *disk, uint32_t slot, struct ds_image_lock *ret_lock)
{
	int r = lock_slot(disk, slot);

	if (r == 0) {
		atomic_fetch_add(&disk->refs_n, 1);
		*ret_lock = (struct ds_image_lock){.disk = disk, .slot = slot};
	}
	return r;
}

int ds_image_lock_slot(struct ds_image *image, const struct ds_image_slot *slot,
		       struct ds_image_lock *ret_lock)
{
	struct ds_image_disk *disk;
	int r;

	if (!ds_image_slot_is_sane(image, slot))
		return -DS_E_MISMATCH;
	disk = ds_image_enter(image, true);
	if (!disk)
		return -ENOENT;
	r = lock_in(disk, slot->slot, ret_lock);
	ds_image_leave(image);
	return r;
}

/* ---- filling */

#define TO_BE_DONE 1 /* result */

/* Gets the lock if need be. */
static int prepare(struct ds_image_disk *disk, struct ds_image_fill *fill)
{
	int r;

	/* Who holds it has looked. */
	if (fill->lock->disk == disk)
		return TO_BE_DONE;
	if (ds_image_disk_look(disk, &fill->slot) == DS_IMAGE_READY)
		return 0;
	/* Of other files: they were evicted and made anew meanwhile. */
	ds_image_unlock_slot(fill->lock);
	r = lock_in(disk, fill->slot.slot, fill->lock);
	if (r < 0)
		return r;
	/* Somebody may have filled it just before we got the lock. */
	return ds_image_disk_look(disk, &fill->slot) == DS_IMAGE_READY ? 0 : TO_BE_DONE;
}

/* Whether the second can be written in one piece with the first. */
static bool are_side_by_side(const struct ds_image_fill *a, const struct ds_image_fill *b)
{
	return b->slot.slot == a->slot.slot + 1 &&
	       b->slot.raw_off == a->slot.raw_off + a->slot.raw_len_bytes &&
	       (const uint8_t *)b->raw == (const uint8_t *)a->raw + a->slot.raw_len_bytes;
}

/* With the locks of the slots, which lie side by side as their data do. */
static int write_piece(struct ds_image *image, struct ds_image_disk *disk,
		       const struct ds_image_fill *fills, size_t n)
{
	struct ds_image_slot slots[DS_IMAGE_RUN_MAX];
	struct ds_cache_root *root;
	uint64_t rounded = 0;
	size_t len_bytes = 0;
	int r;

	for (size_t i = 0; i < n; i++) {
		slots[i] = fills[i].slot;
		len_bytes += slots[i].raw_len_bytes;
		/* Rather too much: chunks share blocks at their ends. Scans put it right. */
		rounded += (uint64_t)(slots[i].raw_len_bytes + 4095u) / 4096 * 4096;
	}
	r = ds_map_claim(disk, slots, n);
	if (r == 0)
		r = ds_pwrite_full(disk->data_fd, fills[0].raw, len_bytes, slots[0].raw_off);
	if (r == 0)
		r = ds_map_set_filled(disk, slots, n);
	if (r < 0)
		return r;
	for (size_t i = 0; i < n; i++) {
		ds_image_disk_publish(disk, &slots[i]);
		ds_image_disk_touch(disk, slots[i].raw_off);
	}
	root = ds_cache_root_get(image->cache);
	ds_cache_usage_add(image->cache, root, (int64_t)rounded);
	ds_cache_root_unref(root);
	return 0;
}

/* -ESTALE: the files are not those of the cache any more, or were cut; else the results of all are set. */
static int try_fill(struct ds_image *image, struct ds_image_fill *fills, size_t n)
{
	struct ds_image_disk *disk = ds_image_enter(image, true);

	for (size_t i = 0; !disk && i < n; i++)
		fills[i].result = -ENOENT;
	if (!disk)
		return 0;
	if (!ds_image_disk_is_sound(disk)) {
		ds_image_leave(image);
		return -ESTALE;
	}
	for (size_t i = 0; i < n; i++)
		fills[i].result = prepare(disk, &fills[i]);
	for (size_t first = 0, next; first < n; first = next) {
		int r = fills[first].result;

		for (next = first + 1;
		     next < n && r == TO_BE_DONE && fills[next].result == TO_BE_DONE &&
		     are_side_by_side(&fills[next - 1], &fills[next]);
		     next++)
			;
		if (r == TO_BE_DONE)
			r = write_piece(image, disk, &fills[first], next - first);
		for (size_t i = first; i < next; i++)
			fills[i].result = r;
	}
	ds_image_leave(image);
	return 0;
}

static int make_room(struct ds_image *image, uint64_t bytes)
{
	struct ds_cache *cache = image->cache;
	struct ds_cache_root *root = ds_cache_root_get(cache);
	int r;

	if (!root)
		return -ENOENT;
	r = ds_evict_for(cache, root, bytes, image->layout.yields);
	ds_cache_root_unref(root);
	return r;
}

static int fill_one(struct ds_image *image, struct ds_image_fill *fill)
{
	int r = 0;

	for (int tries = 0; tries < 3; tries++) {
		r = make_room(image, fill->slot.raw_len_bytes);
		if (r < 0)
			return r;
		r = try_fill(image, fill, 1);
		if (r == 0)
			r = fill->result;
		if (r == -ENOSPC || r == -EDQUOT) {
			/* The disk is fuller than statvfs says. Once: more would only thrash. */
			if (tries > 0 || make_room(image, DS_MIB(1)) < 0)
				return r;
		} else if (r == -ESTALE) {
			pthread_mutex_lock(&image->mutex);
			/* What is cut is damage, found so when it is opened again. */
			ds_image_detach_locked(image, 0);
			pthread_mutex_unlock(&image->mutex);
		} else {
			return r;
		}
	}
	return r;
}

static void fill_together(struct ds_image *image, struct ds_image_fill *fills, size_t n)
{
	uint64_t bytes = 0;

	for (size_t i = 0; i < n; i++) {
		if (!ds_image_slot_is_sane(image, &fills[i].slot))
			return;
		bytes += fills[i].slot.raw_len_bytes;
	}
	if (make_room(image, bytes) == 0)
		try_fill(image, fills, n);
}

/* For who wants to know how soon the same chunk is wanted again. */
static void note_refused(struct ds_image *image, const struct ds_image_slot *slot)
{
	struct ds_cache *cache = image->cache;
	uint64_t key;

	memcpy(&key, slot->digest.bytes, sizeof(key));
	cache->refusals_n++;
	ds_scan_refused(&cache->scan, key | 1, ds_cache_now_ms());
}

/* What a later try, another claim or other bytes would not mend. */
static void note_trouble(struct ds_image *image, int r)
{
	struct ds_cache *cache = image->cache;
	int why = image->attach_error;

	/* No disk: that has a reason of its own. */
	if (r == -ENOENT && why < 0)
		r = why;
	switch (-r) {
	case ENOSPC:
	case EDQUOT:
		cache->no_room_n++;
		break;
	case EROFS:
	case EACCES:
	case EPERM:
	case EIO:
	case ENOENT:
	case EEXIST:
	case EMFILE:
	case ENFILE:
		cache->trouble = r;
		cache->unstored_n++;
		break;
	default:
		break;
	}
}

void ds_image_fill_run(struct ds_image *image, struct ds_image_fill *fills, size_t n)
{
	struct ds_cache *cache = image->cache;

	assert(n <= DS_IMAGE_RUN_MAX);
	for (size_t i = 0; i < n; i++)
		fills[i].result = TO_BE_DONE;
	if (cache->dir)
		ds_scan_reads(&cache->scan, ds_cache_now_ms());
	if (cache->dir && n > 1)
		fill_together(image, fills, n);
	for (size_t i = 0; i < n; i++) {
		struct ds_image_fill *fill = &fills[i];

		if (!ds_image_slot_is_sane(image, &fill->slot))
			fill->result = -DS_E_MISMATCH;
		else if (!cache->dir)
			fill->result = -ENOENT;
		else if (fill->result != 0)
			fill->result = fill_one(image, fill);
		if (fill->result == -ENOSPC && image->layout.yields)
			note_refused(image, &fill->slot);
		if (fill->result == 0)
			cache->fills_n++;
		else
			cache->fill_failures_n++;
		if (fill->result < 0 && cache->dir)
			note_trouble(image, fill->result);
	}
}

int ds_image_fill(struct ds_image *image, const struct ds_image_slot *slot, const void *raw)
{
	struct ds_image_lock lock = {0};
	struct ds_image_fill fill = {.slot = *slot, .raw = raw, .lock = &lock};

	ds_image_fill_run(image, &fill, 1);
	ds_image_unlock_slot(&lock);
	return fill.result;
}
