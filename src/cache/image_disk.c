/*
 * The files of one image: images/XX/NAME/{data,map}.
 *
 * An image enters the cache complete, by the rename of a directory made in tmp/, and leaves it by a rename
 * back into tmp/, where it is deleted. Whatever else is found under its name (another type of file, another
 * owner, another size, a second hard link, a header that does not fit) is damage: it is moved away, and
 * the image counts as not there. Nothing is opened that could block (O_NONBLOCK, O_NOFOLLOW).
 *
 * INV-1 Who holds the shared lock on byte 0 and then found the directory under its name uses an image that is not
 *       being removed: removing takes the exclusive lock first.
 * INV-2 The map's pages are allocated when it is made, so that no later write to it needs room.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache/cache_internal.h"
#include "util/clock.h"
#include "util/file.h"
#include "util/random.h"
#include "util/str.h"

/* No map of a pack is larger (DS_PACK_CHUNKS_MAX); nor is that of a file of a terabyte, but where it is cut finely. */
#define MAP_FREE_BYTES DS_MIB(64)
#define OPEN_FLAGS     (O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY)
#define DIR_FLAGS      (O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)

void ds_image_path(const struct ds_digest *name, char *ret_dir, char *ret_name)
{
	ds_hex_encode(name->bytes, 1, ret_dir);
	ds_digest_format(name, ret_name);
}

int ds_image_open_parent(struct ds_cache_root *root, const char *dir, bool create, int *ret_fd)
{
	struct stat st;
	int fd;

	for (int tries = 0;; tries++) {
		fd = openat(root->images_fd, dir, DIR_FLAGS);
		if (fd >= 0 || tries == 2)
			break;
		if (errno == ENOTDIR || errno == ELOOP) {
			/* Not a directory: not ours. */
			if (unlinkat(root->images_fd, dir, 0) < 0 && errno != ENOENT)
				return -errno;
		} else if (errno != ENOENT) {
			return -errno;
		}
		if (!create)
			return -ENOENT;
		if (mkdirat(root->images_fd, dir, 0700) < 0) {
			if (errno != EEXIST)
				return -errno;
		} else if (fchmodat(root->images_fd, dir, 0700, 0) < 0) { /* whatever the umask */
			return -errno;
		}
	}
	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) < 0 || st.st_uid != geteuid()) {
		close(fd);
		return -EPERM;
	}
	*ret_fd = fd;
	return 0;
}

int ds_image_throw_away(struct ds_cache_root *root, int parent_fd, const char *name)
{
	char tmp[32];

	snprintf(tmp, sizeof(tmp), "old-%016llx", (unsigned long long)ds_random_u64());
	if (renameat(parent_fd, name, root->tmp_fd, tmp) < 0)
		return errno == ENOENT ? 0 : -errno;
	return ds_rmtree_at(root->tmp_fd, tmp);
}

static uint64_t claims_bytes(const struct ds_image_disk *disk)
{
	return (uint64_t)disk->layout.slots_n * sizeof(disk->claims[0]);
}

struct ds_image_disk *ds_image_disk_unref(struct ds_image_disk *disk)
{
	if (disk && atomic_fetch_sub(&disk->refs_n, 1) == 1) {
		int direct_fd;

		ds_image_disk_unmap(disk);
		ds_close_ptr(&disk->data_fd);
		ds_close_ptr(&disk->map_fd);
		direct_fd = disk->direct_fd;
		ds_close_ptr(&direct_fd);
		pthread_mutex_destroy(&disk->claim_mutex);
		if (disk->claims)
			atomic_fetch_sub(&disk->cache->copied_bytes, claims_bytes(disk));
		ds_free(disk->claims);
		ds_free(disk->filling);
		ds_free(disk->states);
		ds_free(disk);
	}
	return NULL;
}

/* Room for the claims, while there is any: it is left to those who came first, since whoever else had it would be read no more often than
 * they are. What is checked by each process cannot do without. */
static int claims_new(struct ds_image_disk *disk)
{
	struct ds_cache *cache = disk->cache;
	uint64_t bytes = claims_bytes(disk);
	bool must = disk->layout.checks_anew;

	if (atomic_fetch_add(&cache->copied_bytes, bytes) + bytes <= cache->copied_max_bytes ||
	    must)
		disk->claims = ds_calloc(disk->layout.slots_n, sizeof(disk->claims[0]));
	if (disk->claims)
		return 0;
	atomic_fetch_sub(&cache->copied_bytes, bytes);
	return must ? -ENOMEM : 0;
}

static int disk_new(struct ds_cache *cache, const struct ds_image_layout *layout,
		    struct ds_image_disk **ret_disk)
{
	struct ds_image_disk *disk = ds_calloc(1, sizeof(*disk));

	if (!disk)
		return -ENOMEM;
	disk->refs_n = 1;
	disk->cache = cache;
	disk->data_fd = disk->map_fd = -1;
	atomic_init(&disk->direct_fd, -1);
	disk->layout = *layout;
	disk->segment_bytes = ds_image_segment_bytes(layout->size_bytes);
	pthread_mutex_init(&disk->claim_mutex, NULL);
	disk->states = ds_calloc(layout->slots_n, sizeof(disk->states[0]));
	disk->filling = ds_calloc(layout->slots_n / 8 + 1, sizeof(disk->filling[0]));
	if (!disk->states || !disk->filling || claims_new(disk) < 0) {
		ds_image_disk_unref(disk);
		return -ENOMEM;
	}
	*ret_disk = disk;
	return 0;
}

/* ---- opening */

/* A regular file of ours with one name and this size. -DS_E_MALFORMED: something else. */
static int open_file(int dir_fd, const char *name, uint64_t size_bytes, int *ret_fd,
		     struct stat *ret_st)
{
	int fd = openat(dir_fd, name, O_RDWR | OPEN_FLAGS);

	if (fd < 0) {
		switch (errno) {
		case ENOENT:
		case ELOOP:
		case EISDIR:
		case ENXIO: /* a socket */
		case ENODEV:
			return -DS_E_MALFORMED;
		default:
			return -errno;
		}
	}
	if (fstat(fd, ret_st) < 0 || !S_ISREG(ret_st->st_mode) || ret_st->st_uid != geteuid() ||
	    ret_st->st_nlink > 1 || (uint64_t)ret_st->st_size != size_bytes) {
		close(fd);
		return -DS_E_MALFORMED;
	}
	*ret_fd = fd;
	return 0;
}

/* Whether `name` in the parent is still the directory behind dir_fd. */
static bool is_linked(int parent_fd, const char *name, int dir_fd)
{
	struct stat a, b;

	return fstatat(parent_fd, name, &a, AT_SYMLINK_NOFOLLOW) == 0 && fstat(dir_fd, &b) == 0 &&
	       a.st_ino == b.st_ino && a.st_dev == b.st_dev;
}

static int check_header(const struct ds_image_disk *disk, const struct ds_map_header *header)
{
	const struct ds_image_layout *layout = &disk->layout;

	if (memcmp(header->magic, DS_IMAGE_MAP_MAGIC, sizeof(header->magic)) != 0 ||
	    header->slots_n != layout->slots_n || header->size_bytes != layout->size_bytes ||
	    !ds_digest_equal(&header->name, &layout->name))
		return -DS_E_MALFORMED;
	return 0;
}

/* With the shared lock. On return it is shared again. -EAGAIN: somebody else is at it, or uses the image in what he
 * takes for another boot. */
static int enter_boot(struct ds_cache *cache, struct ds_image_disk *disk,
		      struct ds_map_header *header)
{
	uint64_t deadline_ns = ds_deadline_in_ms(1000);
	int r;

	for (;;) {
		r = ds_map_read_header(disk->map_fd, header);
		if (r == 0)
			r = check_header(disk, header);
		if (r < 0 || memcmp(header->boot_id, cache->boot_id, DS_BOOT_ID_LEN) == 0)
			return r;
		r = ds_map_lock(disk->map_fd, F_WRLCK, DS_MAP_LOCK_USE);
		if (r == 0) {
			r = ds_map_new_boot(disk->map_fd, &disk->layout, cache->boot_id);
			if (r < 0)
				return r;
			r = ds_map_lock(disk->map_fd, F_RDLCK, DS_MAP_LOCK_USE);
			if (r < 0)
				return r;
			continue;
		}
		if (r != -EAGAIN || ds_mono_ns() >= deadline_ns)
			return r;
		/* Two who hold it shared cannot both get it: let go for a random while. */
		ds_map_lock(disk->map_fd, F_UNLCK, DS_MAP_LOCK_USE);
		ds_sleep_ms(1 + ds_random_u64() % 8);
		r = ds_map_lock_soon(disk->map_fd, F_RDLCK, DS_MAP_LOCK_USE);
		if (r < 0)
			return r;
	}
}

/* -ESTALE: it was removed meanwhile, look again. -DS_E_MALFORMED: damage. */
static int open_in(struct ds_cache *cache, int parent_fd, const char *name, int dir_fd,
		   struct ds_image_disk *disk)
{
	const struct ds_image_layout *layout = &disk->layout;
	struct ds_map_header header;
	struct stat st;
	int r;

	r = open_file(dir_fd, "map", ds_map_len(layout->slots_n), &disk->map_fd, &st);
	if (r < 0)
		return is_linked(parent_fd, name, dir_fd) ? r : -ESTALE;
	r = ds_map_lock_soon(disk->map_fd, F_RDLCK, DS_MAP_LOCK_USE);
	if (r < 0)
		return r;
	/* Behind the lock: who evicts has a lease on it for a moment (image_evict.c). */
	r = open_file(dir_fd, "data", layout->size_bytes, &disk->data_fd, &st);
	if (r < 0)
		return is_linked(parent_fd, name, dir_fd) ? r : -ESTALE;
	r = enter_boot(cache, disk, &header);
	if (r == 0 && !is_linked(parent_fd, name, dir_fd))
		r = -ESTALE;
	if (r < 0)
		return r;
	disk->number = header.number;
	disk->is_handed_out = header.flags & DS_IMAGE_HANDED_OUT;
	disk->used_ms = header.used_ms;
	for (size_t i = 0; i < DS_IMAGE_SEGMENTS_MAX; i++)
		disk->segment_used_ms[i] = header.segment_used_ms[i];
	return 0;
}

static int open_there(struct ds_cache *cache, int parent_fd, const char *name,
		      const struct ds_image_layout *layout, struct ds_image_disk **ret_disk)
{
	_ds_cleanup_close_ int dir_fd = openat(parent_fd, name, DIR_FLAGS);
	struct ds_image_disk *disk;
	struct stat st;
	int r;

	if (dir_fd < 0)
		return errno == ENOTDIR || errno == ELOOP ? -DS_E_MALFORMED : -errno;
	if (fstat(dir_fd, &st) < 0 || st.st_uid != geteuid())
		return -DS_E_MALFORMED;
	r = disk_new(cache, layout, &disk);
	if (r < 0)
		return r;
	r = open_in(cache, parent_fd, name, dir_fd, disk);
	if (r < 0)
		disk = ds_image_disk_unref(disk);
	else
		*ret_disk = disk;
	return r;
}

/* ---- making */

/* Allocates all of it. Not every file system can; then zeros are written. */
static int allocate(int fd, uint64_t len_bytes)
{
	static const uint8_t zeros[65536];

	if (fallocate(fd, 0, 0, (off_t)len_bytes) == 0)
		return 0;
	if (errno != EOPNOTSUPP && errno != ENOSYS)
		return -errno;
	for (uint64_t off = 0; off < len_bytes;) {
		size_t n = (size_t)DS_MIN(sizeof(zeros), len_bytes - off);
		int r = ds_pwrite_full(fd, zeros, n, off);

		if (r < 0)
			return r;
		off += n;
	}
	return 0;
}

static int create_file(int dir_fd, const char *name, int *ret_fd)
{
	int fd = openat(dir_fd, name, O_RDWR | O_CREAT | O_EXCL | OPEN_FLAGS, 0600);

	if (fd < 0)
		return -errno;
	if (fchmod(fd, 0600) < 0) { /* whatever the umask */
		int r = -errno;

		close(fd);
		return r;
	}
	*ret_fd = fd;
	return 0;
}

static int make_files(struct ds_cache *cache, int dir_fd, const struct ds_image_layout *layout,
		      uint64_t *ret_allocated)
{
	_ds_cleanup_close_ int data_fd = -1, map_fd = -1;
	struct ds_map_header header = {.magic = DS_IMAGE_MAP_MAGIC,
				       .slots_n = layout->slots_n,
				       .size_bytes = layout->size_bytes,
				       .name = layout->name,
				       .used_ms = ds_cache_now_ms(),
				       .kind_plus_1 = layout->kind + 1u,
				       .number = ds_random_u64()};
	struct stat st;
	int r;

	memcpy(header.boot_id, cache->boot_id, DS_BOOT_ID_LEN);
	r = create_file(dir_fd, "data", &data_fd);
	if (r == 0 && ftruncate(data_fd, (off_t)layout->size_bytes) < 0)
		r = -errno;
	if (r == 0)
		r = create_file(dir_fd, "map", &map_fd);
	if (r == 0)
		r = allocate(map_fd, ds_map_len(layout->slots_n));
	if (r == 0)
		r = ds_pwrite_full(map_fd, &header, sizeof(header), 0);
	if (r == 0 && fstat(map_fd, &st) < 0)
		r = -errno;
	if (r == 0)
		*ret_allocated = (uint64_t)st.st_blocks * 512;
	return r;
}

static int rename_new(int from_fd, const char *from, int to_fd, const char *to)
{
	if (renameat2(from_fd, from, to_fd, to, RENAME_NOREPLACE) == 0)
		return 0;
	if (errno != EINVAL && errno != ENOSYS)
		return -errno;
	/* Without the flag: a directory with files in it is not replaced either. */
	return renameat(from_fd, from, to_fd, to) < 0 ? -errno : 0;
}

static int make_in_tmp(struct ds_cache *cache, struct ds_cache_root *root, const char *tmp,
		       const struct ds_image_layout *layout, int parent_fd, const char *name)
{
	_ds_cleanup_close_ int dir_fd = -1;
	uint64_t allocated = 0;
	int r;

	if (mkdirat(root->tmp_fd, tmp, 0700) < 0)
		return -errno;
	if (fchmodat(root->tmp_fd, tmp, 0700, 0) < 0)
		return -errno;
	dir_fd = openat(root->tmp_fd, tmp, DIR_FLAGS);
	if (dir_fd < 0)
		return -errno;
	r = make_files(cache, dir_fd, layout, &allocated);
	if (r == 0)
		r = rename_new(root->tmp_fd, tmp, parent_fd, name);
	if (r == 0) {
		ds_cache_usage_add(cache, root, (int64_t)allocated);
		cache->images_n++;
	}
	return r;
}

/* 0 also if somebody else was faster. */
static int make(struct ds_cache *cache, struct ds_cache_root *root,
		const struct ds_image_layout *layout, int parent_fd, const char *name)
{
	uint64_t map_bytes = ds_map_len(layout->slots_n);
	char tmp[32];
	int r;

	/* One manifest that lies about a file of terabytes does not get the cache. */
	if (map_bytes > MAP_FREE_BYTES && map_bytes > cache->capacity_bytes / 8)
		return -ENOSPC;
	r = ds_evict_for(cache, root, map_bytes, layout->yields);
	if (r < 0)
		return r;
	snprintf(tmp, sizeof(tmp), "new-%016llx", (unsigned long long)ds_random_u64());
	r = make_in_tmp(cache, root, tmp, layout, parent_fd, name);
	if (r < 0)
		ds_rmtree_at(root->tmp_fd, tmp);
	return r == -EEXIST || r == -ENOTEMPTY ? 0 : r;
}

/* Damage goes, unless somebody is using the image (then it is his to find out). */
static int throw_away_damaged(struct ds_cache_root *root, int parent_fd, const char *name)
{
	_ds_cleanup_close_ int dir_fd = openat(parent_fd, name, DIR_FLAGS), map_fd = -1;
	struct stat st;

	if (dir_fd >= 0)
		map_fd = openat(dir_fd, "map", O_RDWR | OPEN_FLAGS);
	if (map_fd >= 0 && fstat(map_fd, &st) == 0 && S_ISREG(st.st_mode) &&
	    ds_map_lock(map_fd, F_WRLCK, DS_MAP_LOCK_USE) == -EAGAIN)
		return -EAGAIN;
	return ds_image_throw_away(root, parent_fd, name);
}

int ds_image_disk_open(struct ds_cache *cache, struct ds_cache_root *root,
		       const struct ds_image_layout *layout, bool create,
		       struct ds_image_disk **ret_disk)
{
	char dir[3], name[DS_DIGEST_TEXT_MAX];
	_ds_cleanup_close_ int parent_fd = -1;
	int r;

	ds_image_path(&layout->name, dir, name);
	r = ds_image_open_parent(root, dir, create, &parent_fd);
	if (r < 0)
		return r;
	for (int tries = 0; tries < 8; tries++) {
		r = open_there(cache, parent_fd, name, layout, ret_disk);
		if (r == -DS_E_MALFORMED) {
			cache->damaged_n++;
			r = throw_away_damaged(root, parent_fd, name);
			if (r < 0)
				return r;
			r = -ENOENT;
		}
		if (r == -ENOENT && create) {
			r = make(cache, root, layout, parent_fd, name);
			if (r < 0)
				return r;
			continue;
		}
		if (r != -ESTALE)
			return r;
	}
	return -EBUSY;
}

int ds_image_find_byte(int fd, uint64_t off, uint64_t end, uint64_t *ret_off)
{
	uint8_t piece[DS_KIB(16)];

	while (off < end) {
		off_t data = lseek(fd, (off_t)off, SEEK_DATA), hole;

		if (data < 0 && errno == ENXIO)
			break;
		off = data < 0 ? off : (uint64_t)data;
		hole = data < 0 ? -1 : lseek(fd, data, SEEK_HOLE);
		for (uint64_t stop = hole < 0 ? end : DS_MIN((uint64_t)hole, end); off < stop;) {
			size_t n, i = 0, len = (size_t)DS_MIN(sizeof(piece), stop - off);
			int r = ds_pread_full(fd, piece, len, off, &n);

			if (r < 0)
				return r;
			if (n == len && !piece[0] && memcmp(piece, piece + 1, len - 1) == 0) {
				off += len;
				continue;
			}
			while (i < n && !piece[i])
				i++;
			*ret_off = off + i;
			return 0;
		}
	}
	*ret_off = end;
	return 0;
}

void ds_image_disk_pull_back(struct ds_image_disk *disk)
{
	uint64_t now = ds_cache_now_ms();

	if (disk->used_ms > now) {
		disk->used_ms = now;
		disk->is_stamped = true;
	}
	/* Each by itself: a reader may have read the clock before it was put back, and set its stamp after we looked. */
	for (size_t i = 0; i < DS_IMAGE_SEGMENTS_MAX; i++)
		if (disk->segment_used_ms[i] > now) {
			disk->segment_used_ms[i] = now;
			disk->is_stamped = true;
		}
}

void ds_image_disk_flush(struct ds_image_disk *disk)
{
	uint64_t now = ds_cache_now_ms();
	struct ds_map_header header;

	/* Before they are read: a later one is for the next time. */
	if (!atomic_exchange(&disk->is_stamped, false))
		return;
	/* Others use it too: what they have written stays, unless ours is later, or it is ahead of the clock. */
	if (ds_map_read_header(disk->map_fd, &header) < 0)
		return;
	header.used_ms = DS_MAX((uint64_t)disk->used_ms, DS_MIN(header.used_ms, now));
	for (size_t i = 0; i < DS_IMAGE_SEGMENTS_MAX; i++) {
		uint64_t ours = disk->segment_used_ms[i];

		header.segment_used_ms[i] = DS_MIN(header.segment_used_ms[i], now);
		if (ours < header.segment_used_ms[i])
			/* Not over a use that was noted just now. */
			atomic_compare_exchange_strong(&disk->segment_used_ms[i], &ours,
						       header.segment_used_ms[i]);
		else
			header.segment_used_ms[i] = ours;
	}
	/* The two lie side by side. A failure costs a little of the order of eviction. */
	ds_pwrite_full(disk->map_fd, &header.used_ms,
		       sizeof(header.used_ms) + sizeof(header.segment_used_ms),
		       offsetof(struct ds_map_header, used_ms));
}

bool ds_image_disk_is_sound(const struct ds_image_disk *disk)
{
	struct stat st;

	return fstat(disk->data_fd, &st) == 0 && st.st_nlink == 1 &&
	       (uint64_t)st.st_size == disk->layout.size_bytes;
}
