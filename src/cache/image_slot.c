/*
 * Slots of an image: looking, reading. Filling: image_fill.c; handing out: image_backing.c.
 *
 * INV-1 A byte is given out only from a slot that is trusted under exactly the reader's claim.
 * INV-2 The path of a hit takes no mutex and allocates nothing.
 * INV-3 Trouble with the disk is a miss; damage makes the slot a miss for who sees the map after it.
 * INV-4 What is asked for now (ds_image_read_now, ds_image_has_now) opens nothing, takes no lock, and writes nothing: -EAGAIN sends who
 *       asks to the function that may wait. That one judges what is damage.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "cache/cache_internal.h"
#include "util/file.h"

#define STAMP_MS 100u /* how exact the times of last use are */

bool ds_image_slot_is_sane(const struct ds_image *image, const struct ds_image_slot *slot)
{
	return slot->slot < image->layout.slots_n && slot->raw_len_bytes > 0 &&
	       slot->raw_len_bytes <= DS_CHUNK_MAX &&
	       slot->raw_len_bytes <= image->layout.size_bytes &&
	       slot->raw_off <= image->layout.size_bytes - slot->raw_len_bytes;
}

void ds_image_disk_touch(struct ds_image_disk *disk, uint64_t raw_off)
{
	uint64_t now = ds_cache_now_ms();
	_Atomic uint64_t *stamp = &disk->segment_used_ms[raw_off / disk->segment_bytes];

	/* Seldom written, so that readers do not fight for the line. The image's first: who finds any stamp goes by it. */
	if (now >= atomic_load_explicit(&disk->used_ms, memory_order_relaxed) + STAMP_MS) {
		atomic_store_explicit(&disk->used_ms, now, memory_order_relaxed);
		atomic_store_explicit(&disk->is_stamped, true, memory_order_release);
	}
	if (now >= atomic_load_explicit(stamp, memory_order_relaxed) + STAMP_MS) {
		atomic_store_explicit(stamp, now, memory_order_relaxed);
		atomic_store_explicit(&disk->is_stamped, true, memory_order_release);
	}
}

static bool copy_is_claim(const struct ds_copy_claim *copy, const struct ds_image_slot *slot)
{
	return copy->raw_off == slot->raw_off && copy->raw_len_bytes == slot->raw_len_bytes &&
	       ds_digest_equal(&copy->digest, &slot->digest);
}

/* Notes a trusted slot in the private copy. */
void ds_image_disk_publish(struct ds_image_disk *disk, const struct ds_image_slot *slot)
{
	_Atomic uint8_t *state = &disk->states[slot->slot].value;
	uint8_t expected = DS_COPY_UNKNOWN;

	if (!atomic_compare_exchange_strong(state, &expected,
					    disk->claims ? DS_COPY_LOADING : DS_COPY_SEEN))
		return;
	if (disk->claims) {
		disk->claims[slot->slot] =
			(struct ds_copy_claim){.digest = slot->digest,
					       .raw_off = slot->raw_off,
					       .raw_len_bytes = slot->raw_len_bytes};
		atomic_store_explicit(state, DS_COPY_TRUSTED, memory_order_release);
	}
	atomic_fetch_add_explicit(&disk->here_n, 1, memory_order_relaxed);
}

static enum ds_image_state look(struct ds_image_disk *disk, const struct ds_image_slot *slot,
				bool may_wait)
{
	uint8_t copy = atomic_load_explicit(&disk->states[slot->slot].value, memory_order_acquire);
	uint8_t state;
	bool is_claim;
	int r;

	if (copy == DS_COPY_TRUSTED)
		return copy_is_claim(&disk->claims[slot->slot], slot) ? DS_IMAGE_READY
								      : DS_IMAGE_NOTHING;
	r = ds_map_look(disk, slot, may_wait, &state, &is_claim);
	if (r < 0 && !may_wait)
		return DS_IMAGE_NOT_NOW;
	if (r < 0 || !is_claim)
		return DS_IMAGE_NOTHING;
	if (!(state & DS_SLOT_TRUSTED) || disk->layout.checks_anew)
		return DS_IMAGE_UNCHECKED;
	if (copy == DS_COPY_UNKNOWN)
		ds_image_disk_publish(disk, slot);
	return DS_IMAGE_READY;
}

enum ds_image_state ds_image_disk_look(struct ds_image_disk *disk, const struct ds_image_slot *slot)
{
	return look(disk, slot, true);
}

enum ds_image_state ds_image_disk_look_now(struct ds_image_disk *disk,
					   const struct ds_image_slot *slot)
{
	return look(disk, slot, false);
}

/* The bytes are not what they should be: gone, for other processes too. */
static void forget_slot(struct ds_image *image, struct ds_image_disk *disk,
			const struct ds_image_slot *slot)
{
	uint8_t before = atomic_exchange(&disk->states[slot->slot].value, DS_COPY_DEAD);

	image->cache->damaged_n++;
	if (before == DS_COPY_TRUSTED || before == DS_COPY_SEEN || before == DS_COPY_ZEROS)
		atomic_fetch_sub_explicit(&disk->here_n, 1, memory_order_relaxed);
	ds_map_set_state(disk, slot->slot, 0);
}

static int read_all(struct ds_image_disk *disk, void *ret_data, size_t len_bytes, uint64_t off)
{
	size_t n;
	int r = ds_pread_full(disk->data_fd, ret_data, len_bytes, off, &n);

	return r < 0 ? r : n == len_bytes ? 0 : -DS_E_CORRUPT;
}

/* A chunk from another boot or process: reads all of it, and trusts it if it fits. */
static int read_checking(struct ds_image_disk *disk, const struct ds_image_slot *slot, uint64_t off,
			 size_t len_bytes, void *ret_data)
{
	bool whole = off == 0 && len_bytes == slot->raw_len_bytes;
	_ds_cleanup_free_ uint8_t *buffer = NULL;
	struct ds_digest digest;
	uint8_t *raw = ret_data;
	int r;

	if (!whole) {
		raw = buffer = ds_malloc(slot->raw_len_bytes);
		if (!buffer)
			return -ENOMEM;
	}
	r = read_all(disk, raw, slot->raw_len_bytes, slot->raw_off);
	if (r == 0)
		r = ds_digest_of(raw, slot->raw_len_bytes, &digest);
	if (r == 0 && !ds_digest_equal(&digest, &slot->digest))
		r = -DS_E_CORRUPT;
	if (r < 0)
		return r;
	if (ds_map_set_state(disk, slot->slot, DS_SLOT_PRESENT | DS_SLOT_TRUSTED) == 0)
		ds_image_disk_publish(disk, slot);
	if (!whole)
		memcpy(ret_data, raw + off, len_bytes);
	return 0;
}

static int read_slot(struct ds_image *image, const struct ds_image_slot *slot, uint64_t off,
		     size_t len_bytes, bool may_check, void *ret_data)
{
	struct ds_image_disk *disk;
	int r;

	assert(off <= slot->raw_len_bytes && len_bytes <= slot->raw_len_bytes - off);
	if (!ds_image_slot_is_sane(image, slot))
		return -DS_E_NOT_LOCAL;
	disk = ds_image_enter(image, false);
	if (!disk)
		return -DS_E_NOT_LOCAL;
	switch (ds_image_disk_look(disk, slot)) {
	case DS_IMAGE_READY:
		r = read_all(disk, ret_data, len_bytes, slot->raw_off + off);
		break;
	case DS_IMAGE_UNCHECKED:
		r = may_check ? read_checking(disk, slot, off, len_bytes, ret_data)
			      : -DS_E_NOT_LOCAL;
		break;
	default:
		r = -DS_E_NOT_LOCAL;
	}
	if (r == 0)
		ds_image_disk_touch(disk, slot->raw_off);
	else if (r != -DS_E_NOT_LOCAL && r != -EAGAIN && r != -ENOMEM) {
		forget_slot(image, disk, slot);
		r = -DS_E_NOT_LOCAL;
	}
	ds_image_leave(image);
	return r;
}

static int read_now(struct ds_image *image, const struct ds_image_slot *slot, uint64_t off,
		    size_t len_bytes, void *ret_data)
{
	struct ds_image_disk *disk;
	int r;

	assert(off <= slot->raw_len_bytes && len_bytes <= slot->raw_len_bytes - off);
	if (!ds_image_slot_is_sane(image, slot))
		return -DS_E_NOT_LOCAL;
	disk = ds_image_enter_now(image);
	if (!disk)
		return -EAGAIN;
	switch (look(disk, slot, false)) {
	case DS_IMAGE_READY:
		r = ds_pread_now(disk->data_fd, ret_data, len_bytes, slot->raw_off + off);
		break;
	case DS_IMAGE_NOT_NOW:
		r = -EAGAIN;
		break;
	default:
		r = -DS_E_NOT_LOCAL;
	}
	if (r == 0)
		ds_image_disk_touch(disk, slot->raw_off);
	ds_image_leave(image);
	return r;
}

static int count(struct ds_image *image, int r)
{
	if (r == 0)
		atomic_fetch_add_explicit(&image->hits_n, 1, memory_order_relaxed);
	else if (r == -DS_E_NOT_LOCAL)
		atomic_fetch_add_explicit(&image->misses_n, 1, memory_order_relaxed);
	return r;
}

int ds_image_read(struct ds_image *image, const struct ds_image_slot *slot, uint64_t off,
		  size_t len_bytes, bool may_check, void *ret_data)
{
	int r = read_slot(image, slot, off, len_bytes, may_check, ret_data);

	/* Out of memory for a check is a miss too. */
	return count(image, r == -ENOMEM ? -DS_E_NOT_LOCAL : r);
}

int ds_image_read_now(struct ds_image *image, const struct ds_image_slot *slot, uint64_t off,
		      size_t len_bytes, void *ret_data)
{
	return count(image, read_now(image, slot, off, len_bytes, ret_data));
}

int ds_image_check(struct ds_image *image, const struct ds_image_slot *slot, void *buffer)
{
	if (ds_image_has(image, slot))
		return 0;
	return read_slot(image, slot, 0, slot->raw_len_bytes, true, buffer);
}

enum ds_image_state ds_image_look(struct ds_image *image, const struct ds_image_slot *slot)
{
	enum ds_image_state state = DS_IMAGE_NOTHING;
	struct ds_image_disk *disk;

	if (!ds_image_slot_is_sane(image, slot))
		return state;
	disk = ds_image_enter(image, false);
	if (disk) {
		state = ds_image_disk_look(disk, slot);
		ds_image_leave(image);
	}
	return state;
}

bool ds_image_has(struct ds_image *image, const struct ds_image_slot *slot)
{
	return ds_image_look(image, slot) == DS_IMAGE_READY;
}

int ds_image_has_now(struct ds_image *image, const struct ds_image_slot *slot, bool *ret_has)
{
	enum ds_image_state state = DS_IMAGE_NOTHING;
	struct ds_image_disk *disk;

	if (ds_image_slot_is_sane(image, slot)) {
		disk = ds_image_enter_now(image);
		if (!disk)
			return -EAGAIN;
		state = look(disk, slot, false);
		ds_image_leave(image);
	}
	if (state == DS_IMAGE_NOT_NOW)
		return -EAGAIN;
	*ret_has = state == DS_IMAGE_READY;
	return 0;
}

void ds_image_note_zeros(struct ds_image *image, uint32_t slot)
{
	struct ds_image_disk *disk = ds_image_enter_now(image);
	uint8_t expected = DS_COPY_UNKNOWN;

	if (!disk)
		return;
	if (slot < disk->layout.slots_n &&
	    atomic_load_explicit(&disk->states[slot].value, memory_order_relaxed) == expected &&
	    atomic_compare_exchange_strong(&disk->states[slot].value, &expected, DS_COPY_ZEROS))
		atomic_fetch_add_explicit(&disk->here_n, 1, memory_order_relaxed);
	ds_image_leave(image);
}

bool ds_image_is_whole(struct ds_image *image)
{
	struct ds_image_disk *disk = ds_image_enter_now(image);
	bool is_whole;

	if (!disk)
		return false;
	is_whole =
		atomic_load_explicit(&disk->here_n, memory_order_relaxed) == disk->layout.slots_n;
	ds_image_leave(image);
	return is_whole;
}
