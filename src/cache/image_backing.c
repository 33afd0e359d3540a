/*
 * Handing the data of an image to the kernel, as the file that it is (FUSE passthrough).
 *
 * INV-1 What was found counts only if the disk side was the image's at the time of begin, and is at that of take: then this process has
 *       had the shared lock on byte 0 of the map all the while, and nobody has taken a bit of the map back. Nobody stays in the gate
 *       meanwhile: who closes it waits for those inside with the image's mutex, which they might come to want.
 * INV-2 Every slot is claimed before `data` is given out: those with bytes as trusted ones, those of zeros for nothing. A claim
 *       stays within the boot, so that nobody can fill anything else afterwards, whatever manifest he believes.
 * INV-3 What stands for zeros reads as zeros: a chunk whose claim was dropped with its boot, before it was there, may have left its bytes.
 * INV-4 Flagged `handed out` first: from then on nobody punches, in whatever process or boot.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cache/cache_internal.h"
#include "util/file.h"

int ds_image_backing_begin(struct ds_image *image, bool may_wait,
			   struct ds_image_backing *ret_backing)
{
	struct ds_image_disk *disk =
		may_wait ? ds_image_enter(image, false) : ds_image_enter_now(image);
	int r = 0;

	if (!disk)
		return may_wait || !image->cache->dir ? -ENOENT : -EAGAIN;
	if (ds_image_disk_is_sound(disk)) {
		atomic_fetch_add(&disk->refs_n, 1);
		*ret_backing = (struct ds_image_backing){.image = image,
							 .disk = disk,
							 .number = disk->number};
	} else {
		r = -ENOENT;
	}
	ds_image_leave(image);
	return r;
}

void ds_image_backing_end(struct ds_image_backing *backing)
{
	ds_image_disk_unref(backing->disk);
	backing->disk = NULL;
}

int ds_image_backing_has(struct ds_image_backing *backing, const struct ds_image_slot *slot,
			 bool may_wait)
{
	enum ds_image_state state;

	if (!ds_image_slot_is_sane(backing->image, slot))
		return -ENODATA;
	state = may_wait ? ds_image_disk_look(backing->disk, slot)
			 : ds_image_disk_look_now(backing->disk, slot);
	if (state == DS_IMAGE_NOT_NOW)
		return -EAGAIN;
	return state == DS_IMAGE_READY ? 0 : -ENODATA;
}

/* In the gate, if the image has the disk side that was looked at. */
static bool enter_again(struct ds_image_backing *backing)
{
	struct ds_image_disk *disk = ds_image_enter_now(backing->image);

	if (disk && disk != backing->disk)
		ds_image_leave(backing->image);
	return disk == backing->disk;
}

/* With the claim, and no lock: who might write there holds another claim. */
static int check_zeros(int fd, uint64_t off, uint64_t end)
{
	uint64_t found;
	int r = ds_image_find_byte(fd, off, end, &found);

	return r < 0 ? r : found < end ? -ENODATA : 0;
}

int ds_image_backing_add_zeros(struct ds_image_backing *backing, uint32_t slot, uint64_t raw_off,
			       uint64_t len_bytes)
{
	/* One byte stands for them all; no chunk has this digest. */
	struct ds_image_slot claim = {.slot = slot, .raw_off = raw_off, .raw_len_bytes = 1};
	struct ds_image_disk *disk = backing->disk;
	int r;

	if (slot >= disk->layout.slots_n || raw_off >= disk->layout.size_bytes || len_bytes == 0 ||
	    len_bytes > disk->layout.size_bytes - raw_off)
		return -DS_E_MISMATCH;
	if (!enter_again(backing))
		return -ESTALE;
	r = ds_map_claim(disk, &claim, 1);
	ds_image_leave(backing->image);
	return r < 0 ? r : check_zeros(disk->data_fd, raw_off, raw_off + len_bytes);
}

/* Nobody sees what the kernel reads: all of it is used now. */
static void touch_all(struct ds_image_disk *disk)
{
	uint64_t now = ds_cache_now_ms();

	disk->used_ms = now;
	for (size_t i = 0; i < DS_IMAGE_SEGMENTS_MAX; i++)
		if (disk->segment_used_ms[i])
			disk->segment_used_ms[i] = now;
	disk->is_stamped = true;
}

/* A description of the map of its own, with the shared lock on byte 0. -1: it cannot be had. */
static int open_hold(const struct ds_image_disk *disk)
{
	char path[40];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", disk->map_fd);
	fd = openat(AT_FDCWD, path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd >= 0 && ds_map_lock(fd, F_RDLCK, DS_MAP_LOCK_USE) < 0)
		ds_close_ptr(&fd);
	return fd;
}

static int take(struct ds_image_disk *disk, int *ret_data_fd, int *ret_hold_fd)
{
	uint32_t flags = DS_IMAGE_HANDED_OUT;
	int fd, r = 0;

	if (!disk->is_handed_out)
		r = ds_pwrite_full(disk->map_fd, &flags, sizeof(flags),
				   offsetof(struct ds_map_header, flags));
	if (r < 0)
		return r;
	disk->is_handed_out = true;
	fd = fcntl(disk->data_fd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	touch_all(disk);
	*ret_data_fd = fd;
	*ret_hold_fd = open_hold(disk);
	return 0;
}

int ds_image_backing_take(struct ds_image_backing *backing, int *ret_data_fd, int *ret_hold_fd)
{
	int r;

	if (!enter_again(backing))
		return -ESTALE;
	r = take(backing->disk, ret_data_fd, ret_hold_fd);
	ds_image_leave(backing->image);
	return r;
}
