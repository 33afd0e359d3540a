/*
 * Handing the data of an image to the kernel, as the file that it is (FUSE passthrough).
 *
 * INV-1 Between begin and end nobody takes a bit of the map back: this process keeps the disk side, and with it the shared
 *       lock on byte 0.
 * INV-2 Every slot is claimed before `data` is given out: those with bytes as trusted ones, those of zeros for nothing. A claim
 *       stays within the boot, so that nobody can fill anything else afterwards, whatever manifest he believes.
 * INV-3 Flagged `handed out` first: from then on nobody punches, in whatever process or boot.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "cache/cache_internal.h"
#include "util/file.h"

int ds_image_backing_begin(struct ds_image *image, struct ds_image_backing *ret_backing)
{
	struct ds_image_disk *disk = ds_image_enter(image, false);

	if (!disk)
		return -ENOENT;
	if (!ds_image_disk_is_sound(disk)) {
		ds_image_leave(image);
		return -ENOENT;
	}
	*ret_backing = (struct ds_image_backing){.image = image,
						 .disk = disk,
						 .dev = disk->map_dev,
						 .ino = disk->map_ino};
	return 0;
}

void ds_image_backing_end(struct ds_image_backing *backing)
{
	ds_image_leave(backing->image);
}

bool ds_image_backing_has(struct ds_image_backing *backing, const struct ds_image_slot *slot)
{
	return ds_image_look(backing->image, slot) == DS_IMAGE_READY;
}

int ds_image_backing_add_zeros(struct ds_image_backing *backing, uint32_t slot, uint64_t raw_off)
{
	/* One byte stands for them all; no chunk has this digest. */
	struct ds_image_slot claim = {.slot = slot, .raw_off = raw_off, .raw_len_bytes = 1};
	struct ds_image_disk *disk = backing->disk;

	if (slot >= disk->layout.slots_n || raw_off >= disk->layout.size_bytes)
		return -DS_E_MISMATCH;
	return ds_map_claim(disk, &claim, 1);
}

/* Nobody sees what the kernel reads: all of it is used now. */
static void touch_all(struct ds_image_disk *disk)
{
	uint64_t now = ds_cache_now_ms();

	disk->used_ms = now;
	for (size_t i = 0; i < DS_IMAGE_SEGMENTS_MAX; i++)
		if (disk->segment_used_ms[i])
			disk->segment_used_ms[i] = now;
}

int ds_image_backing_take(struct ds_image_backing *backing, int *ret_fd)
{
	struct ds_image_disk *disk = backing->disk;
	uint32_t flags = DS_IMAGE_HANDED_OUT;
	int fd, r;

	r = ds_pwrite_full(disk->map_fd, &flags, sizeof(flags),
			   offsetof(struct ds_map_header, flags));
	if (r < 0)
		return r;
	fd = fcntl(disk->data_fd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	touch_all(disk);
	*ret_fd = fd;
	return 0;
}
