/*
 * Reading an image past the page cache.
 *
 * What a file is read for keeps the bytes itself (the kernel, for the files of a mount), so that those of the image
 * would lie in the page cache twice, be copied once more, and drive others out. And who reads with O_DIRECT can have
 * the kernel read while he goes on: a buffered read of what is not there waits.
 *
 * Where there is memory for all of it, the opposite is faster: large reads in order into the page cache, ahead of those who want it
 * in whatever order (ds_image_read_ahead).
 *
 * INV-1 What is in the page cache is read from there.
 * INV-2 Bytes count only if the disk side was the image's at the time of begin, and is at that of end: then this process
 *       has had the shared lock on byte 0 of the map all the while, and nobody has punched them out.
 * INV-3 Nothing is taken for damage here: whatever fails is read again by ds_image_read, which judges.
 * INV-4 Begin and end open no image and take no lock: they are for threads that must not wait.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cache/cache_internal.h"
#include "util/file.h"
#include "util/mem.h"

/* Where the file system does not say: blocks of nearly all disks. What wants more is read as ever. */
#define ALIGN_MAX 4096u

/* Large enough to be read at the speed of the disk, and so little that who waits for something else meanwhile does not wait long: a
 * disk that serves one request after the other takes 1 ms for as much. Measured with files of 20-110 KB on such a (virtual) disk,
 * 4 readers, 11 rounds of an epoch: 9,050 to 12,950 files/s; 2 MiB in steps of 512 KiB: 7,730 to 11,930, the lower ones where few but
 * these reads got through; 512 KiB in steps of 128: as fast as 1 MiB, for 10 to 20 % more CPU. Larger is worse with 16 readers, too
 * (files/s as against none, 2, 4, 8 MiB: 1.12, 0.94, 0.81). */
#define AHEAD_BYTES DS_MIB(1)
#define AHEAD_STEP  DS_KIB(256)
/* Of what it is advised to read the kernel takes no more than the larger of the device's largest request and its read-ahead
 * (mm/readahead.c, force_page_cache_ra); by default this is the read-ahead. */
#define ADVISED_MIN DS_KIB(128)

/* Linux 6.5; its number is the same on all architectures but alpha. */
#if !defined(SYS_cachestat) && !defined(__alpha__)
#define SYS_cachestat 451
#endif

/* As in linux/mman.h, which may be older. */
struct cache_range {
	uint64_t off, len_bytes;
};

struct cache_state {
	uint64_t cached_n, dirty_n, writeback_n, evicted_n, recently_evicted_n; /* pages */
};

/* Whether all of it is in the page cache; also if the kernel does not tell. Starts no read, as RWF_NOWAIT does. */
static bool is_in_page_cache(struct ds_image_disk *disk, uint64_t off, size_t len_bytes)
{
#ifdef SYS_cachestat
	struct cache_range range = {.off = off, .len_bytes = len_bytes};
	struct cache_state state;
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);

	if (syscall(SYS_cachestat, disk->data_fd, &range, &state, 0) == 0)
		return state.cached_n >= (off + len_bytes - 1) / page - off / page + 1;
	if (errno == ENOSYS || errno == EPERM)
		atomic_store(&disk->is_never_direct, true);
#else
	(void)disk, (void)off, (void)len_bytes;
#endif
	return true;
}

/* Of offsets and lengths, as the file system says: less is read in vain where it takes sectors. 0: it cannot, or not from
 * memory that is aligned to a page. */
static uint32_t align_of(int fd)
{
#ifdef STATX_DIOALIGN
	struct statx st;

	if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &st) == 0 &&
	    (st.stx_mask & STATX_DIOALIGN))
		return st.stx_dio_offset_align > ALIGN_MAX || st.stx_dio_mem_align > ALIGN_MAX
			       ? 0
			       : st.stx_dio_offset_align;
#endif
	return ALIGN_MAX;
}

/* Another description of the same file, which may have been unlinked. -1: it cannot be had, now or ever. */
static int open_direct(struct ds_image_disk *disk)
{
	uint32_t align = align_of(disk->data_fd);
	char path[40];
	int fd = -1;

	if (align) {
		atomic_store(&disk->direct_align, align);
		snprintf(path, sizeof(path), "/proc/self/fd/%d", disk->data_fd);
		fd = openat(AT_FDCWD, path, O_RDONLY | O_DIRECT | O_NONBLOCK | O_CLOEXEC);
	}
	/* Out of descriptors, say, is not for ever. */
	if (!align || (fd < 0 && (errno == EINVAL || errno == EOPNOTSUPP)))
		atomic_store(&disk->is_never_direct, true);
	return fd;
}

/* The descriptor, opened when it is first wanted; -1: there is none. */
static int direct_fd(struct ds_image_disk *disk)
{
	int fd = atomic_load_explicit(&disk->direct_fd, memory_order_acquire);
	int expected = -1;

	if (fd >= 0)
		return fd;
	fd = open_direct(disk);
	if (fd >= 0 && !atomic_compare_exchange_strong(&disk->direct_fd, &expected, fd)) {
		close(fd);
		fd = expected;
	}
	return fd;
}

/* Entered. */
static bool plan(struct ds_image *image, struct ds_image_disk *disk,
		 const struct ds_image_slot *slot, uint64_t off, size_t len_bytes,
		 struct ds_image_direct *ret_direct)
{
	uint64_t at = slot->raw_off + off, start, align;
	int fd;

	if (atomic_load_explicit(&disk->is_never_direct, memory_order_relaxed) ||
	    ds_image_disk_look_now(disk, slot) != DS_IMAGE_READY ||
	    is_in_page_cache(disk, at, len_bytes))
		return false;
	fd = direct_fd(disk);
	if (fd < 0)
		return false;
	align = atomic_load(&disk->direct_align);
	start = at / align * align;
	*ret_direct = (struct ds_image_direct){
		.fd = fd,
		.off = start,
		.len_bytes = (at + len_bytes + align - 1) / align * align - start,
		.skip_bytes = at - start,
		.wanted_bytes = len_bytes,
		.image = image,
		.disk = disk,
		.raw_off = slot->raw_off,
	};
	return true;
}

int ds_image_direct_begin(struct ds_image *image, const struct ds_image_slot *slot, uint64_t off,
			  size_t len_bytes, size_t room_bytes, struct ds_image_direct *ret_direct)
{
	struct ds_image_disk *disk;
	struct ds_image_direct direct;
	int r = -EAGAIN;

	assert(off <= slot->raw_len_bytes && len_bytes <= slot->raw_len_bytes - off);
	if (len_bytes == 0 || len_bytes > room_bytes || !ds_image_slot_is_sane(image, slot))
		return -EAGAIN;
	disk = ds_image_enter_now(image);
	if (!disk)
		return -EAGAIN;
	if (plan(image, disk, slot, off, len_bytes, &direct) && direct.len_bytes <= room_bytes) {
		/* The descriptor stays open; but who takes the disk side away does not wait for the disk. */
		atomic_fetch_add(&disk->refs_n, 1);
		ds_image_ref(image);
		*ret_direct = direct;
		r = 0;
	}
	ds_image_leave(image);
	return r;
}

int ds_image_direct_end(struct ds_image_direct *direct, int64_t n)
{
	struct ds_image_disk *disk = direct->disk;
	struct ds_image *image = direct->image;
	int r = -EAGAIN;

	if (n == -EINVAL || n == -EOPNOTSUPP)
		atomic_store(&disk->is_never_direct, true);
	/* The file may end within the last block. */
	if (n >= (int64_t)(direct->skip_bytes + direct->wanted_bytes) &&
	    atomic_load(&image->disk) == disk) {
		ds_image_disk_touch(disk, direct->raw_off);
		atomic_fetch_add_explicit(&image->hits_n, 1, memory_order_relaxed);
		r = 0;
	}
	ds_image_disk_unref(disk);
	direct->disk = NULL;
	direct->image = ds_image_unref(image);
	return r;
}

static bool is_all_here(const struct ds_image_disk *disk)
{
	uint64_t size = disk->layout.size_bytes;
	struct stat st;

	return fstat(disk->data_fd, &st) == 0 && (uint64_t)st.st_blocks * 512 >= size - size / 16;
}

void ds_image_read_ahead(struct ds_image *image, const _Atomic bool *stop)
{
	struct ds_image_disk *disk = ds_image_enter(image, false);
	uint64_t size = image->layout.size_bytes;
	char last;

	if (!disk)
		return;
	/* Nobody waits for this one either: what is read of files that others have now hurts nobody. */
	atomic_fetch_add(&disk->refs_n, 1);
	ds_image_leave(image);
	if (is_all_here(disk)) {
		for (uint64_t off = 0; off < size && !*stop; off += AHEAD_STEP) {
			/* What the first has had read already costs the others little. */
			for (uint64_t at = 0; at < AHEAD_STEP; at += ADVISED_MIN)
				posix_fadvise(disk->data_fd, (off_t)(off + at),
					      (off_t)(AHEAD_STEP - at), POSIX_FADV_WILLNEED);
			/* Waits for what was asked for a while ago. */
			if (off >= AHEAD_BYTES &&
			    pread(disk->data_fd, &last, 1, (off_t)(off - AHEAD_BYTES)) < 0)
				break;
		}
	}
	ds_image_disk_unref(disk);
}
