/*
 * Reading past the page cache (image_direct.c). What kernels and file systems lack is made up by wrapped calls (see
 * meson.build). Needs a TMPDIR that has O_DIRECT: tests/lib/with_o_direct.sh.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cache/cache_internal.h"
#include "cache_support.h"
#include "util/file.h"

TestSuite(direct, .fini = support_clean, .timeout = 120);

#define SLOTS	40
#define LEN_MAX 30000
#define ROOM	DS_KIB(64)

/* ---- what is lacking */

static bool no_o_direct, no_cachestat;
static struct {
	bool is_set;
	uint32_t off, mem;
} align;

int __real_openat64(int fd, const char *name, int flags, ...);
int __wrap_openat64(int fd, const char *name, int flags, ...);
int __wrap_openat64(int fd, const char *name, int flags, ...)
{
	va_list args;
	mode_t mode;

	va_start(args, flags);
	mode = flags & O_CREAT ? va_arg(args, mode_t) : 0;
	va_end(args);
	if (no_o_direct && (flags & O_DIRECT)) {
		errno = EINVAL;
		return -1;
	}
	return __real_openat64(fd, name, flags, mode);
}

int __real_statx(int fd, const char *path, int flags, unsigned mask, struct statx *st);
int __wrap_statx(int fd, const char *path, int flags, unsigned mask, struct statx *st);
int __wrap_statx(int fd, const char *path, int flags, unsigned mask, struct statx *st)
{
	int r = __real_statx(fd, path, flags, mask, st);

#ifdef STATX_DIOALIGN
	if (r == 0 && no_o_direct)
		st->stx_mask &= ~STATX_DIOALIGN;
	if (r == 0 && align.is_set) {
		st->stx_mask |= STATX_DIOALIGN;
		st->stx_dio_offset_align = align.off;
		st->stx_dio_mem_align = align.mem;
	}
#endif
	return r;
}

long __real_syscall(long number, ...);
long __wrap_syscall(long number, ...);
long __wrap_syscall(long number, ...)
{
	long a[5];
	va_list args;

	va_start(args, number);
	for (size_t i = 0; i < DS_ARRAY_SIZE(a); i++)
		a[i] = va_arg(args, long);
	va_end(args);
	if (no_cachestat && number == 451) {
		errno = ENOSYS;
		return -1;
	}
	return __real_syscall(number, a[0], a[1], a[2], a[3], a[4]);
}

/* Reads of this thread that wait for the disk: the keeper has its own. */
static _Thread_local unsigned preads_n;

ssize_t __real_pread64(int fd, void *data, size_t n, off_t off);
ssize_t __wrap_pread64(int fd, void *data, size_t n, off_t off);
ssize_t __wrap_pread64(int fd, void *data, size_t n, off_t off)
{
	preads_n++;
	return __real_pread64(fd, data, n, off);
}

/* ---- an image whose bytes are on the disk only */

struct box {
	struct support_pack pack;
	struct ds_cache *cache;
	struct ds_image *image;
	uint8_t *buffer; /* aligned */
	int data_fd;
};

static void box_init(struct box *box)
{
	box->cache = support_open(support_path("c"), DS_MIB(64), 1);
	support_pack_init(&box->pack, 7, SLOTS, LEN_MAX, false);
	box->image = support_image(box->cache, &box->pack);
	cr_assert_eq(support_fill_all(box->image, &box->pack), SLOTS);
	box->data_fd = support_data(support_path("c"), O_RDONLY);
	box->buffer = aligned_alloc(4096, ROOM);
}

static void box_release(struct box *box)
{
	free(box->buffer);
	close(box->data_fd);
	ds_image_unref(box->image);
	ds_cache_unref(box->cache);
	support_pack_release(&box->pack);
}

/* Pages of data in the page cache. */
static size_t resident_n(const struct box *box)
{
	size_t size = box->pack.layout.size_bytes, n = 0, pages_n = (size + 4095) / 4096;
	void *map = mmap(NULL, size, PROT_READ, MAP_SHARED, box->data_fd, 0);
	unsigned char *resident = malloc(pages_n);

	cr_assert_neq(map, MAP_FAILED);
	cr_assert_eq(mincore(map, size, resident), 0);
	for (size_t i = 0; i < pages_n; i++)
		n += resident[i] & 1;
	munmap(map, size);
	free(resident);
	return n;
}

/* In the page cache, and there to stay: a host may take out of it at any time what nobody has mapped. */
static void *hold(const struct box *box)
{
	void *map = mmap(NULL, box->pack.layout.size_bytes, PROT_READ, MAP_SHARED | MAP_POPULATE,
			 box->data_fd, 0);

	cr_assert_neq(map, MAP_FAILED);
	return map;
}

static void let_go(const struct box *box, void *map)
{
	munmap(map, box->pack.layout.size_bytes);
}

/* Bytes that this process has had read from disks. */
static uint64_t from_disk_bytes(void)
{
	unsigned long long bytes = 0;
	char line[100];
	FILE *file = fopen("/proc/self/io", "re");

	cr_assert_not_null(file);
	while (fgets(line, sizeof(line), file) && sscanf(line, "read_bytes: %llu", &bytes) != 1)
		;
	fclose(file);
	return bytes;
}

/* Out of the page cache. */
static void drop(const struct box *box)
{
	char path[40];
	int fd;

	cr_assert_eq(fdatasync(box->data_fd), 0);
	/* A page that somebody looks at just then stays. */
	for (int i = 0; i < 100 && resident_n(box) > 0; i++)
		cr_assert_eq(posix_fadvise(box->data_fd, 0, 0, POSIX_FADV_DONTNEED), 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", box->data_fd);
	fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	cr_assert_geq(fd, 0, "no O_DIRECT in TMPDIR");
	cr_assert_eq(resident_n(box), 0, "TMPDIR lives in the page cache");
	close(fd);
}

static int begin(const struct box *box, uint32_t slot, struct ds_image_direct *ret_direct)
{
	const struct ds_image_slot *wanted = &box->pack.slots[slot];

	return ds_image_direct_begin(box->image, wanted, 0, wanted->raw_len_bytes, ROOM,
				     ret_direct);
}

static int64_t read_it(const struct box *box, const struct ds_image_direct *direct)
{
	ssize_t n = pread(direct->fd, box->buffer, direct->len_bytes, (off_t)direct->off);

	return n < 0 ? -errno : n;
}

static void check_bytes(const struct box *box, uint32_t slot, uint64_t off,
			const struct ds_image_direct *direct)
{
	uint8_t *want = malloc(box->pack.slots[slot].raw_len_bytes);

	support_bytes(&box->pack, slot, want);
	cr_assert_eq(memcmp(box->buffer + direct->skip_bytes, want + off, direct->wanted_bytes), 0,
		     "wrong bytes in slot %u", slot);
	free(want);
}

/* All of it is read in the way that is always there. */
static void check_buffered(const struct box *box)
{
	struct ds_image_direct direct;

	cr_assert_eq(begin(box, 3, &direct), -EAGAIN);
	cr_assert_eq(support_count(box->image, &box->pack, false), SLOTS);
}

/* ---- tests */

Test(direct, T39_what_is_on_the_disk_is_read_past_the_page_cache)
{
	struct ds_image_direct direct;
	struct ds_cache_stats stats;
	struct box box;
	uint32_t part = 0;

	box_init(&box);
	drop(&box);
	/* Whole chunks, the last one too: the file ends within a block. */
	for (uint32_t i = 0; i < SLOTS; i++) {
		cr_assert_eq(begin(&box, i, &direct), 0, "slot %u", i);
		cr_assert_eq(direct.wanted_bytes, box.pack.slots[i].raw_len_bytes);
		cr_assert_lt(direct.skip_bytes, 4096);
		cr_assert_leq(direct.len_bytes, direct.wanted_bytes + 2 * 4096);
		cr_assert_eq(ds_image_direct_end(&direct, read_it(&box, &direct)), 0, "slot %u", i);
		check_bytes(&box, i, 0, &direct);
	}
	/* A part of one. */
	while (box.pack.slots[part].raw_len_bytes < 2000)
		part++;
	cr_assert_eq(ds_image_direct_begin(box.image, &box.pack.slots[part], 777, 1000, ROOM,
					   &direct),
		     0);
	cr_assert_eq(ds_image_direct_end(&direct, read_it(&box, &direct)), 0);
	check_bytes(&box, part, 777, &direct);
	cr_assert_eq(resident_n(&box), 0, "pages are in the page cache");
	ds_cache_get_stats(box.cache, &stats);
	cr_assert_eq(stats.hits_n, SLOTS + 1);
	cr_assert_eq(stats.misses_n, 0);
	box_release(&box);
}

Test(direct, what_is_in_the_page_cache_is_read_from_there)
{
	struct ds_image_direct direct;
	struct box box;
	uint8_t *data = malloc(LEN_MAX);
	void *held;

	box_init(&box);
	/* As the fill has left it. */
	held = hold(&box);
	for (uint32_t i = 0; i < SLOTS; i++)
		cr_assert_eq(begin(&box, i, &direct), -EAGAIN, "slot %u", i);
	let_go(&box, held);
	/* And when it was read back. */
	drop(&box);
	cr_assert_eq(begin(&box, 3, &direct), 0);
	ds_image_direct_end(&direct, -EAGAIN);
	cr_assert_eq(support_read(box.image, &box.pack, 3, false), 1);
	held = hold(&box);
	cr_assert_eq(begin(&box, 3, &direct), -EAGAIN);
	cr_assert_eq(ds_image_read_now(box.image, &box.pack.slots[3], 0,
				       box.pack.slots[3].raw_len_bytes, data),
		     0);
	let_go(&box, held);
	box_release(&box);
	free(data);
}

Test(direct, what_is_asked_for_now_is_read_by_nothing_that_waits)
{
	struct ds_image_direct direct;
	unsigned before_n, found_n = 0;
	struct box box;
	uint8_t data[1];
	bool has;

	box_init(&box);
	drop(&box);
	/* As another process, which knows of no slot yet. */
	ds_image_unref(box.image);
	ds_cache_unref(box.cache);
	box.cache = support_open(support_path("c"), DS_MIB(64), 1);
	box.image = support_image(box.cache, &box.pack);
	cr_assert(ds_image_enter(box.image, false));
	ds_image_leave(box.image);
	before_n = preads_n;
	cr_assert_gt(before_n, 0, "they are not counted");
	for (uint32_t i = 0; i < SLOTS; i++) {
		if (begin(&box, i, &direct) == 0) {
			ds_image_direct_end(&direct, -EAGAIN);
			found_n++;
		}
		ds_image_read_now(box.image, &box.pack.slots[i], 0, 1, data);
		ds_image_has_now(box.image, &box.pack.slots[i], &has);
	}
	cr_assert_eq(preads_n, before_n);
	/* The map is in the page cache since it was written. */
	cr_assert_gt(found_n, 0);
	box_release(&box);
}

Test(direct, what_is_not_here_or_not_checked_is_not_read)
{
	struct ds_image_direct direct;
	struct ds_image_slot other;
	struct box box;

	box_init(&box);
	drop(&box);
	other = box.pack.slots[3];
	other.digest.bytes[0] ^= 1;
	cr_assert_eq(ds_image_direct_begin(box.image, &other, 0, other.raw_len_bytes, ROOM,
					   &direct),
		     -EAGAIN);
	other.slot = SLOTS;
	cr_assert_eq(ds_image_direct_begin(box.image, &other, 0, other.raw_len_bytes, ROOM,
					   &direct),
		     -EAGAIN);
	/* No room for the blocks around it. */
	cr_assert_eq(ds_image_direct_begin(box.image, &box.pack.slots[3], 0,
					   box.pack.slots[3].raw_len_bytes,
					   box.pack.slots[3].raw_len_bytes, &direct),
		     -EAGAIN);
	/* Another boot: nothing is trusted. */
	ds_image_unref(box.image);
	ds_cache_unref(box.cache);
	box.cache = support_open(support_path("c"), DS_MIB(64), 2);
	box.image = support_image(box.cache, &box.pack);
	for (uint32_t i = 0; i < SLOTS; i++)
		cr_assert_eq(begin(&box, i, &direct), -EAGAIN, "slot %u", i);
	cr_assert_eq(support_count(box.image, &box.pack, true), SLOTS);
	box_release(&box);
}

Test(direct, a_read_that_fails_or_is_short_does_not_count_and_is_no_damage)
{
	struct ds_image_direct direct;
	struct box box;
	struct ds_cache_stats stats;

	box_init(&box);
	drop(&box);
	for (int i = 0; i < 4; i++) {
		cr_assert_eq(begin(&box, 3, &direct), 0);
		int64_t ends[] = {-EIO, 0, (int64_t)(direct.skip_bytes + direct.wanted_bytes) - 1,
				  -EAGAIN};

		cr_assert_eq(ds_image_direct_end(&direct, ends[i]), -EAGAIN, "%d", i);
	}
	cr_assert(ds_image_has(box.image, &box.pack.slots[3]));
	/* Neither the file system's no, which is asked no more. */
	cr_assert_eq(begin(&box, 3, &direct), 0);
	cr_assert_eq(ds_image_direct_end(&direct, -EINVAL), -EAGAIN);
	check_buffered(&box);
	ds_cache_get_stats(box.cache, &stats);
	cr_assert_eq(stats.damaged_n, 0);
	box_release(&box);
}

Test(direct, what_was_read_while_the_image_was_let_go_of_does_not_count)
{
	struct ds_image_direct direct;
	struct box box;
	int64_t n;

	box_init(&box);
	drop(&box);
	cr_assert_eq(begin(&box, 3, &direct), 0);
	/* Without the lock on the map, others may punch. Nobody waits for the read. */
	pthread_mutex_lock(&box.image->mutex);
	cr_assert(ds_image_detach_locked(box.image, 0));
	pthread_mutex_unlock(&box.image->mutex);
	n = read_it(&box, &direct);
	cr_assert_gt(n, 0, "the descriptor was closed");
	/* Opened anew meanwhile: that is another one. */
	cr_assert(ds_image_has(box.image, &box.pack.slots[3]));
	cr_assert_eq(ds_image_direct_end(&direct, n), -EAGAIN);
	cr_assert_eq(support_read(box.image, &box.pack, 3, false), 1);
	box_release(&box);
}

Test(direct, a_file_system_without_o_direct_is_read_as_ever)
{
	struct box box;

	no_o_direct = true;
	box_init(&box);
	drop(&box);
	check_buffered(&box);
	box_release(&box);
}

Test(direct, a_file_system_that_wants_too_much_is_read_as_ever)
{
	static const uint32_t aligns[][2] = {{0, 0}, {8192, 512}, {512, 65536}};

	for (size_t i = 0; i < DS_ARRAY_SIZE(aligns); i++) {
		struct box box;

		align.is_set = true;
		align.off = aligns[i][0];
		align.mem = aligns[i][1];
		box_init(&box);
		drop(&box);
		check_buffered(&box);
		box_release(&box);
		cr_assert_eq(ds_rmtree_at(AT_FDCWD, support_path("c")), 0);
	}
}

Test(direct, a_kernel_that_does_not_tell_what_is_in_the_page_cache_is_left_alone)
{
	struct box box;

	no_cachestat = true;
	box_init(&box);
	drop(&box);
	check_buffered(&box);
	box_release(&box);
}

Test(direct, an_image_is_read_ahead_whole_and_only_if_it_is_whole)
{
	_Atomic bool stop = true;
	struct support_pack pack;
	struct ds_image *image;
	uint64_t before;
	struct box box;
	void *held;

	box_init(&box);
	drop(&box);
	ds_image_read_ahead(box.image, &stop);
	cr_assert_eq(resident_n(&box), 0, "it did not stop");
	stop = false;
	before = from_disk_bytes();
	ds_image_read_ahead(box.image, &stop);
	/* Counted, as a host may have taken some of it back by now. */
	cr_assert_geq(from_disk_bytes() - before, box.pack.layout.size_bytes);
	held = hold(&box);
	check_buffered(&box);
	let_go(&box, held);
	box_release(&box);
	cr_assert_eq(ds_rmtree_at(AT_FDCWD, support_path("c")), 0);
	/* With one chunk of 40, and with none. */
	box.cache = support_open(support_path("c"), DS_MIB(64), 1);
	support_pack_init(&pack, 8, SLOTS, LEN_MAX, true);
	image = support_image(box.cache, &pack);
	ds_image_read_ahead(image, &stop);
	cr_assert_eq(support_fill(image, &pack, 3), 0);
	box.pack = pack;
	cr_assert_eq(support_images(support_path("c"), 0, &box.data_fd), 1);
	int data_fd = openat(box.data_fd, "data", O_RDONLY | O_CLOEXEC);
	close(box.data_fd);
	box.data_fd = data_fd;
	drop(&box);
	ds_image_read_ahead(image, &stop);
	cr_assert_eq(resident_n(&box), 0, "holes are in the page cache");
	close(data_fd);
	ds_image_unref(image);
	ds_cache_unref(box.cache);
	support_pack_release(&pack);
}

Test(direct, no_descriptor_is_left_open)
{
	struct ds_image_direct direct;
	struct box box;
	int before, after;

	before = open("/dev/null", O_RDONLY | O_CLOEXEC);
	close(before);
	for (int i = 0; i < 3; i++) {
		box_init(&box);
		drop(&box);
		cr_assert_eq(begin(&box, 3, &direct), 0);
		cr_assert_eq(ds_image_direct_end(&direct, read_it(&box, &direct)), 0);
		box_release(&box);
	}
	after = open("/dev/null", O_RDONLY | O_CLOEXEC);
	close(after);
	cr_assert_eq(after, before);
}
