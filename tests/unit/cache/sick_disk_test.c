/*
 * F04: every system call of the cache fails, once or from then on. The calls are wrapped by the linker (see meson.build).
 * Whatever fails: what is read is right or a miss, and a disk that is well again is used again. Needs a TMPDIR that has
 * O_DIRECT: tests/lib/with_o_direct.sh.
 */
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "cache/cache_survey.h"
#include "cache_support.h"
#include "util/clock.h"
#include "util/file.h"

TestSuite(sick_disk, .fini = support_clean, .timeout = 300);

#define SLOTS 10
/* Linux 6.5. */
#define SYS_CACHESTAT 451

static _Atomic int64_t fail_at = -1; /* calls until one fails; -1: none */
static _Atomic bool fail_on;	     /* from then on all */
static _Atomic int fail_errno;
static _Atomic uint64_t failed_n;
/* Only calls of this thread: the keeper's would make the count differ from run to run. */
static __thread bool is_sick;
static const char *refused_name; /* of this name no file can be opened: no descriptor is left */
static uint32_t fs_type;	 /* what statfs(2) is to say; 0: the truth */
static uint64_t directs_n;	 /* reads past the page cache that went well */

static bool fails(void)
{
	int64_t left;

	if (!is_sick || fail_at < 0)
		return false;
	left = fail_at--;
	if (left > 0)
		return false;
	if (fail_on)
		fail_at = 0;
	failed_n++;
	errno = fail_errno;
	return true;
}

#define WRAP(type, name, parameters, arguments)                \
	type __real_##name parameters;                         \
	type __wrap_##name parameters;                         \
	type __wrap_##name parameters                          \
	{                                                      \
		return fails() ? -1 : __real_##name arguments; \
	}

WRAP(ssize_t, pread64, (int fd, void *data, size_t n, off_t off), (fd, data, n, off))
WRAP(ssize_t, pwrite64, (int fd, const void *data, size_t n, off_t off), (fd, data, n, off))
WRAP(ssize_t, preadv64v2, (int fd, const struct iovec *iov, int n, off_t off, int flags),
     (fd, iov, n, off, flags))
WRAP(int, fallocate64, (int fd, int mode, off_t off, off_t len), (fd, mode, off, len))
WRAP(int, ftruncate64, (int fd, off_t len), (fd, len))
WRAP(int, renameat, (int from_fd, const char *from, int to_fd, const char *to),
     (from_fd, from, to_fd, to))
WRAP(int, renameat2, (int from_fd, const char *from, int to_fd, const char *to, unsigned flags),
     (from_fd, from, to_fd, to, flags))
WRAP(int, mkdirat, (int fd, const char *name, mode_t mode), (fd, name, mode))
WRAP(int, unlinkat, (int fd, const char *name, int flags), (fd, name, flags))
WRAP(int, fchmod, (int fd, mode_t mode), (fd, mode))
WRAP(int, fchmodat, (int fd, const char *name, mode_t mode, int flags), (fd, name, mode, flags))
WRAP(int, fstat64, (int fd, struct stat64 *st), (fd, st))
WRAP(int, fstatat64, (int fd, const char *name, struct stat64 *st, int flags),
     (fd, name, st, flags))

int __real_openat64(int fd, const char *name, int flags, ...);
int __wrap_openat64(int fd, const char *name, int flags, ...);
int __wrap_openat64(int fd, const char *name, int flags, ...)
{
	va_list args;
	mode_t mode;

	va_start(args, flags);
	mode = flags & O_CREAT ? va_arg(args, mode_t) : 0;
	va_end(args);
	if (is_sick && refused_name && strcmp(name, refused_name) == 0) {
		failed_n++;
		errno = EMFILE;
		return -1;
	}
	return fails() ? -1 : __real_openat64(fd, name, flags, mode);
}

int __real_fcntl64(int fd, int what, ...);
int __wrap_fcntl64(int fd, int what, ...);
int __wrap_fcntl64(int fd, int what, ...)
{
	va_list args;
	void *arg;

	va_start(args, what);
	arg = va_arg(args, void *);
	va_end(args);
	return fails() ? -1 : __real_fcntl64(fd, what, arg);
}

int __real_fstatfs64(int fd, struct statfs64 *fs);
int __wrap_fstatfs64(int fd, struct statfs64 *fs);
int __wrap_fstatfs64(int fd, struct statfs64 *fs)
{
	int r = __real_fstatfs64(fd, fs);

	if (fs_type)
		fs->f_type = fs_type;
	return r;
}

/* Past the page cache, out of which nobody is ill. */
static void read_direct(struct ds_image *image, const struct support_pack *pack)
{
	uint8_t want[5000], *have = aligned_alloc(4096, 4 * 4096);
	struct ds_image_direct direct;
	ssize_t n;

	is_sick = false;
	for (unsigned i = 0; i < 3; i++) {
		int dir_fd, data_fd;

		support_images(support_path("c"), i, &dir_fd);
		data_fd = dir_fd < 0 ? -1 : openat(dir_fd, "data", O_RDONLY | O_CLOEXEC);
		if (data_fd >= 0) {
			fdatasync(data_fd);
			posix_fadvise(data_fd, 0, 0, POSIX_FADV_DONTNEED);
			close(data_fd);
		}
		if (dir_fd >= 0)
			close(dir_fd);
	}
	is_sick = true;
	if (ds_image_direct_begin(image, &pack->slots[1], 0, 5000, 4 * 4096, &direct) == 0) {
		n = pread(direct.fd, have, direct.len_bytes, (off_t)direct.off);
		if (ds_image_direct_end(&direct, n < 0 ? -errno : n) == 0) {
			support_bytes(pack, 1, want);
			cr_assert_eq(memcmp(have + direct.skip_bytes, want, 5000), 0);
			directs_n++;
		}
	}
	free(have);
}

static void session(const struct support_pack *packs, uint8_t boot)
{
	uint8_t boot_id[16] = {boot};
	struct ds_cache_options options = {.dir = support_path("c"),
					   .capacity_bytes = DS_KIB(100),
					   .free_floor_percent = 1,
					   .boot_id = boot_id};
	struct ds_cache *cache;

	if (ds_cache_open(&options, &cache, NULL) < 0)
		return;
	for (size_t i = 0; i < 3; i++) {
		struct ds_image *image = support_image(cache, &packs[i]);
		uint8_t data[10];

		support_fill(image, &packs[i], 1);
		support_read(image, &packs[i], 1, true);
		ds_image_read_now(image, &packs[i].slots[1], 0, 10, data);
		read_direct(image, &packs[i]);
		support_fill_all(image, &packs[i]);
		support_count(image, &packs[i], true);
		ds_image_unref(image);
	}
	ds_cache_make_room(cache, DS_KIB(60));
	ds_cache_unref(cache);
}

static void check_well(const struct support_pack *pack)
{
	struct ds_cache *cache = support_open(support_path("c"), DS_MIB(1), 2);
	struct ds_image *image = support_image(cache, pack);

	support_count(image, pack, true);
	for (uint32_t i = 0; i < SLOTS; i++) {
		int r = support_fill(image, pack, i);

		cr_assert_eq(r, 0, "slot %u: %s", i, ds_strerror(r));
	}
	cr_assert_eq(support_count(image, pack, true), SLOTS);
	ds_image_unref(image);
	ds_cache_unref(cache);
}

static void every_call_fails(int error, bool on)
{
	struct support_pack packs[3];
	uint64_t delivered = 0;
	int64_t n;

	for (uint64_t i = 0; i < 3; i++)
		support_pack_init(&packs[i], i, SLOTS, 5000, true);
	for (n = 0; n < 5000; n += 1 + n / 50) {
		uint64_t before = failed_n;

		fail_errno = error;
		fail_on = on;
		fail_at = n;
		is_sick = true;
		session(packs, (uint8_t)(n % 2));
		is_sick = false;
		fail_at = -1;
		fprintf(stderr, "n %ld\n", (long)n);
		check_well(&packs[n % 3]);
		if (failed_n == before)
			break;
		delivered++;
		/* From nothing, and from what the last session left. */
		if (n % 3 == 0)
			cr_assert_eq(ds_rmtree_at(AT_FDCWD, support_path("c")), 0);
	}
	cr_assert_lt(n, 5000);
	cr_assert_gt(delivered, 50);
	printf("%llu sessions with a failure of errno %d, %llu failures; %llu reads past the page "
	       "cache\n",
	       (unsigned long long)delivered, error, (unsigned long long)failed_n,
	       (unsigned long long)directs_n);
	/* Nothing is read so where the kernel does not tell what is in the page cache. */
	if (syscall(SYS_CACHESTAT, -1, NULL, NULL, 0) == 0 || errno != ENOSYS)
		cr_assert_gt(directs_n, 0, "nothing was read past the page cache");
	for (size_t i = 0; i < 3; i++)
		support_pack_release(&packs[i]);
}

Test(sick_disk, F04_each_call_fails_once)
{
	every_call_fails(EIO, false);
}

Test(sick_disk, F04_each_call_fails_from_then_on)
{
	every_call_fails(EIO, true);
}

Test(sick_disk, F01_each_call_finds_the_disk_full)
{
	every_call_fails(ENOSPC, false);
}

Test(sick_disk, J02_each_call_finds_no_descriptor_left)
{
	every_call_fails(EMFILE, true);
}

/* What keeps one image from the disk says nothing of another's fills; nor is the disk well for it because it is for that. */
Test(sick_disk, F01_each_image_has_trouble_of_its_own)
{
	struct ds_cache *cache = support_open(support_path("c"), DS_MIB(64), 1);
	struct ds_cache_stats stats;
	bool was_refused = false;

	/* For 0.1 s it is not tried again: a machine that is slower than that is asked anew. */
	for (uint64_t i = 0; i < 50 && !was_refused; i++) {
		struct support_pack ill, well;
		struct ds_image *ill_image, *well_image;

		support_pack_init(&ill, 2 * i, SLOTS, 5000, true);
		support_pack_init(&well, 2 * i + 1, SLOTS, 5000, true);
		ill_image = support_image(cache, &ill);
		well_image = support_image(cache, &well);
		fail_errno = ENOSPC;
		fail_on = true;
		fail_at = 0;
		is_sick = true;
		cr_assert_lt(support_fill(ill_image, &ill, 1), 0);
		is_sick = false;
		fail_at = -1;
		cr_assert_eq(support_fill(well_image, &well, 1), 0);
		was_refused = support_fill(ill_image, &ill, 2) < 0;
		ds_image_unref(ill_image);
		ds_image_unref(well_image);
		support_pack_release(&ill);
		support_pack_release(&well);
	}
	cr_assert(was_refused);
	ds_cache_get_stats(cache, &stats);
	cr_assert_eq(stats.unstored_n, 0, "%s", ds_strerror(stats.trouble));
	cr_assert_eq(stats.trouble, 0);
	ds_cache_unref(cache);
}

/* How many images are left when all that can go has gone. */
static unsigned left_of_prune(struct ds_cache *cache)
{
	struct ds_prune_options options = {0};
	struct ds_prune_result result;

	is_sick = true;
	ds_cache_prune(cache, &options, &result);
	is_sick = false;
	return support_images(support_path("c"), 0, NULL);
}

/* evict, INV-2: what a program has open may not seem free because it cannot be looked at, nor be kept because nobody can be asked. */
Test(sick_disk, J02_what_was_handed_out_goes_as_far_as_it_can_be_told)
{
	static const char *const names[] = {"data", "map"};
	struct support_pack pack;
	struct ds_cache *cache;
	struct ds_image *image;
	int fd;

	support_pack_init(&pack, 7, SLOTS, 5000, true);
	cache = support_open(support_path("c"), DS_MIB(1), 1);
	image = support_image(cache, &pack);
	cr_assert_eq(support_fill_all(image, &pack), SLOTS);
	support_hand_out(image, &pack);
	ds_image_unref(image);
	ds_cache_unref(cache);
	cache = support_open(support_path("c"), DS_MIB(1), 1);
	fd = support_data(support_path("c"), O_RDONLY);
	cr_assert_eq(left_of_prune(cache), 1);
	for (size_t i = 0; i < DS_ARRAY_SIZE(names); i++) {
		uint64_t before = failed_n;

		refused_name = names[i];
		cr_expect_eq(left_of_prune(cache), 1, "%s", names[i]);
		cr_assert_gt(failed_n, before);
	}
	refused_name = NULL;
	/* There a lease says nothing. */
	fs_type = NFS_SUPER_MAGIC;
	cr_expect_eq(left_of_prune(cache), 0);
	fs_type = 0;
	close(fd);
	ds_cache_unref(cache);
	support_pack_release(&pack);
}
