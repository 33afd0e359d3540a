/*
 * Lending bytes of an image from a mapping, for who passes them on at once (to the kernel, as a reply): the copy into memory of his own
 * costs as much as all the rest of a large hit.
 *
 * INV-1 Who was lent bytes is in the image's gate: nobody takes the disk side away, nor punches it, before he gives them back.
 * INV-2 Only pages that are here and valid are lent (mincore(2)). The kernel may take one back before it is used: then it is read again,
 *       and the borrower waits for that, or, if the disk fails at just that moment, is told EFAULT: the one case in which trouble with
 *       the disk is no miss, but EIO to one reader.
 * INV-3 The mapping is made once and stays until the disk side is closed. Where there is none (no addresses are left for it, a
 *       layout that lies), bytes are copied.
 *
 * Pages that were looked at in a mapping count as memory of the process, by which the kernel chooses whom to kill for want of memory. So
 * they are given back every few seconds (ds_image_keep), and after each so many bytes; and the mappings of all images have a limit,
 * as have their tables of pages (2 MiB for each GiB).
 */
#include <assert.h>
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cache/cache_internal.h"

#define PAGES_MAX    1025u	/* 4 MiB, from anywhere in a page on */
#define FORGET_BYTES DS_MIB(64) /* lent since it was forgotten the last time */

/* The mapping; NULL: there is none. */
static const uint8_t *mapping_of(struct ds_image_disk *disk)
{
	void *mapping = atomic_load_explicit(&disk->mapping, memory_order_acquire);
	struct ds_cache *cache = disk->cache;
	void *expected = NULL;
	size_t size;

	if (mapping)
		return mapping;
	if (atomic_load_explicit(&disk->is_never_mapped, memory_order_relaxed) ||
	    disk->layout.size_bytes > SIZE_MAX / 2)
		return NULL;
	size = (size_t)disk->layout.size_bytes;
	if (atomic_fetch_add(&cache->mapped_bytes, size) + size > cache->mapped_max_bytes)
		mapping = MAP_FAILED;
	else
		mapping = mmap(NULL, size, PROT_READ, MAP_SHARED, disk->data_fd, 0);
	if (mapping == MAP_FAILED) {
		atomic_fetch_sub(&cache->mapped_bytes, size);
		atomic_store(&disk->is_never_mapped, true);
		return NULL;
	}
	if (!atomic_compare_exchange_strong(&disk->mapping, &expected, mapping)) {
		munmap(mapping, size);
		atomic_fetch_sub(&cache->mapped_bytes, size);
		mapping = expected;
	}
	return mapping;
}

void ds_image_disk_unmap(struct ds_image_disk *disk)
{
	size_t size = (size_t)disk->layout.size_bytes;

	if (!disk->mapping)
		return;
	munmap(disk->mapping, size);
	atomic_fetch_sub(&disk->cache->mapped_bytes, size);
}

void ds_image_disk_forget_lent(struct ds_image_disk *disk)
{
	if (disk->mapping && atomic_exchange(&disk->lent_bytes, 0) > 0)
		madvise(disk->mapping, (size_t)disk->layout.size_bytes, MADV_DONTNEED);
}

static bool is_here(const uint8_t *data, size_t len_bytes)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE), skip = (uintptr_t)data % page;
	size_t pages_n = (skip + len_bytes + page - 1) / page;
	unsigned char here[PAGES_MAX];

	/* Also of a mapping whose file has become shorter: not here. */
	if (pages_n > PAGES_MAX ||
	    mincore((void *)(uintptr_t)(data - skip), skip + len_bytes, here) < 0)
		return false;
	for (size_t i = 0; i < pages_n; i++)
		if (!(here[i] & 1))
			return false;
	return true;
}

int ds_image_lend_now(struct ds_image *image, const struct ds_image_slot *slot, uint64_t off,
		      size_t len_bytes, const uint8_t **ret_data)
{
	struct ds_image_disk *disk;
	const uint8_t *data;

	assert(off <= slot->raw_len_bytes && len_bytes <= slot->raw_len_bytes - off);
	if (!ds_image_slot_is_sane(image, slot))
		return -EAGAIN;
	disk = ds_image_enter_now(image);
	if (!disk)
		return -EAGAIN;
	data = ds_image_disk_look_now(disk, slot) == DS_IMAGE_READY ? mapping_of(disk) : NULL;
	if (!data || !is_here(data + slot->raw_off + off, len_bytes)) {
		ds_image_leave(image);
		return -EAGAIN;
	}
	ds_image_disk_touch(disk, slot->raw_off);
	if (atomic_fetch_add_explicit(&disk->lent_bytes, len_bytes, memory_order_relaxed) >
	    FORGET_BYTES)
		ds_image_disk_forget_lent(disk);
	atomic_fetch_add_explicit(&image->hits_n, 1, memory_order_relaxed);
	*ret_data = data + slot->raw_off + off;
	return 0;
}

void ds_image_lend_end(struct ds_image *image)
{
	ds_image_leave(image);
}
