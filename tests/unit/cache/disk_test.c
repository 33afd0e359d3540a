/*
 * Full, read-only and shared disks: each a tmpfs of its own in the mount namespace that own_mounts.sh gives.
 */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "cache_support.h"
#include "util/clock.h"

TestSuite(disk, .fini = support_clean, .timeout = 300);

#define SLOTS  40
#define IMAGES 20

/* Everything can be filled again, at the latest after the pause that trouble with a disk costs. */
static void fill_again(struct ds_image *image, const struct support_pack *pack)
{
	uint64_t deadline = ds_deadline_in_ms(10000);

	while (support_fill_all(image, pack) < SLOTS) {
		cr_assert_lt(ds_mono_ns(), deadline, "the image cannot be filled any more");
		usleep(50000);
	}
	cr_assert_eq(support_count(image, pack, true), SLOTS);
}

/* Opens, fills and reads on a disk of our own; whatever fails, nothing wrong is read. */
static bool try_disk(const char *dir)
{
	uint8_t boot_id[16] = {1};
	struct ds_cache_options options = {.dir = dir,
					   .capacity_bytes = DS_MIB(64),
					   .free_floor_percent = 1,
					   .boot_id = boot_id};
	struct support_pack packs[3];
	struct ds_cache *cache = NULL;
	unsigned filled = 0;
	struct ds_diag diag = {0};
	int r = ds_cache_open(&options, &cache, &diag);

	if (r < 0) {
		cr_assert_neq(diag.detail[0], 0);
		return false;
	}
	for (uint64_t i = 0; i < 3; i++) {
		struct ds_image *image;

		support_pack_init(&packs[i], i, SLOTS, 5000, false);
		image = support_image(cache, &packs[i]);
		filled += support_fill_all(image, &packs[i]);
		support_count(image, &packs[i], true);
		ds_image_unref(image);
	}
	ds_cache_unref(cache);
	/* And another process finds no half of anything. */
	if (ds_cache_open(&options, &cache, NULL) == 0) {
		for (uint64_t i = 0; i < 3; i++) {
			struct ds_image *image = support_image(cache, &packs[i]);

			support_count(image, &packs[i], true);
			ds_image_unref(image);
		}
		ds_cache_unref(cache);
	}
	for (uint64_t i = 0; i < 3; i++)
		support_pack_release(&packs[i]);
	return filled == 3 * SLOTS;
}

static void try_disks(const char *prefix, const char *suffix, unsigned from, unsigned to,
		      unsigned step)
{
	bool was_full = false, was_whole = false;

	for (unsigned n = from; n <= to; n += step) {
		char options[64], dir[320];
		bool whole;

		snprintf(options, sizeof(options), "%s%u%s", prefix, n, suffix);
		snprintf(dir, sizeof(dir), "%s", support_path("t"));
		cr_assert(support_tmpfs(dir, options));
		whole = try_disk(support_path("t/c"));
		was_full |= !whole;
		was_whole |= whole;
		cr_assert_eq(umount2(dir, MNT_DETACH), 0);
	}
	/* Else nothing was shown. */
	cr_assert(was_full);
	cr_assert(was_whole);
}

Test(disk, F01_the_disk_is_full_at_every_write)
{
	try_disks("size=", "k", 4, 800, 4);
}

Test(disk, F02_the_disk_has_no_inodes_left)
{
	try_disks("size=8m,nr_inodes=", "", 2, 20, 1);
}

Test(disk, F01_a_disk_that_fills_up_while_it_is_used)
{
	struct support_pack pack;
	struct ds_image *image;
	struct ds_cache *cache;
	char path[400];
	int fd;

	cr_assert(support_tmpfs(support_path("t"), "size=4m"));
	cache = support_open(support_path("t/c"), DS_MIB(64), 1);
	support_pack_init(&pack, 7, SLOTS, 5000, false);
	image = support_image(cache, &pack);
	for (uint32_t i = 0; i < SLOTS / 2; i++)
		cr_assert_eq(support_fill(image, &pack, i), 0);
	snprintf(path, sizeof(path), "%s", support_path("t/other"));
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	for (off_t off = 0; posix_fallocate(fd, off, 4096) == 0; off += 4096)
		;
	close(fd);
	support_fill_all(image, &pack);
	support_count(image, &pack, true);
	cr_assert_eq(unlink(path), 0);
	fill_again(image, &pack);
	ds_image_unref(image);
	ds_cache_unref(cache);
	support_pack_release(&pack);
}

Test(disk, F03_a_read_only_disk_costs_nothing_but_the_cache)
{
	struct support_pack pack;
	struct ds_image *image;
	struct ds_cache *cache;

	cr_assert(support_tmpfs(support_path("t"), "size=4m"));
	cache = support_open(support_path("t/c"), DS_MIB(64), 1);
	support_pack_init(&pack, 7, SLOTS, 5000, false);
	image = support_image(cache, &pack);
	cr_assert_eq(support_fill_all(image, &pack), SLOTS);
	ds_image_unref(image);
	ds_cache_unref(cache);
	cr_assert_eq(mount("none", support_path("t"), NULL, MS_REMOUNT | MS_RDONLY, "size=4m"), 0);
	cache = support_open(support_path("t/c"), DS_MIB(64), 1);
	image = support_image(cache, &pack);
	support_count(image, &pack, true);
	support_fill_all(image, &pack);
	cr_assert_eq(mount("none", support_path("t"), NULL, MS_REMOUNT, "size=4m"), 0);
	fill_again(image, &pack);
	ds_image_unref(image);
	ds_cache_unref(cache);
	support_pack_release(&pack);
}

/* What was counted before cannot be added to then: it is not believed for ever. */
Test(disk, F03_a_disk_that_can_be_written_again_is_not_used_beyond_the_quota)
{
	struct support_pack pack;
	struct ds_image *image;
	struct ds_cache *cache;

	cr_assert(support_tmpfs(support_path("t"), "size=16m"));
	cache = support_open(support_path("t/c"), DS_MIB(2), 1);
	support_pack_init(&pack, 1, 4, DS_KIB(64), true);
	image = support_image(cache, &pack);
	cr_assert_eq(support_fill_all(image, &pack), 4);
	ds_image_unref(image);
	support_pack_release(&pack);
	ds_cache_unref(cache);
	cr_assert_eq(mount("none", support_path("t"), NULL, MS_REMOUNT | MS_RDONLY, "size=16m"), 0);
	cache = support_open(support_path("t/c"), DS_MIB(2), 1);
	cr_assert_eq(mount("none", support_path("t"), NULL, MS_REMOUNT, "size=16m"), 0);
	for (uint64_t i = 2; i < 34; i++) {
		support_pack_init(&pack, i, 4, DS_KIB(64), true);
		image = support_image(cache, &pack);
		cr_assert_eq(support_fill_all(image, &pack), 4);
		cr_assert_eq(support_count(image, &pack, false), 4);
		ds_image_unref(image);
		support_pack_release(&pack);
		cr_assert_leq(support_allocated(support_path("t/c")), DS_MIB(2) + DS_KIB(256),
			      "%llu bytes after %llu packs",
			      (unsigned long long)support_allocated(support_path("t/c")),
			      (unsigned long long)i);
	}
	ds_cache_unref(cache);
}

/* ---- floor */

Test(disk, F09_the_floor_holds_while_others_fill_the_disk)
{
	uint8_t boot_id[16] = {1};
	struct ds_cache_options options = {.capacity_bytes = DS_MIB(64),
					   .free_floor_percent = 40,
					   .boot_id = boot_id};
	struct support_pack packs[IMAGES];
	struct statvfs vfs;
	struct ds_cache *cache;
	char dir[320], path[400];
	int fd;

	cr_assert(support_tmpfs(support_path("t"), "size=16m"));
	strcpy(dir, support_path("t"));
	strcpy(path, support_path("t/c"));
	options.dir = path;
	cr_assert_eq(ds_cache_open(&options, &cache, NULL), 0);
	for (uint64_t i = 0; i < IMAGES; i++)
		support_pack_init(&packs[i], 100 + i, 16, DS_KIB(64), true);
	for (size_t i = 0; i < IMAGES; i++) {
		struct ds_image *image = support_image(cache, &packs[i]);

		cr_assert_eq(support_fill_all(image, &packs[i]), 16);
		ds_image_unref(image);
		cr_assert_eq(statvfs(dir, &vfs), 0);
		cr_assert_geq(vfs.f_bavail * 10, vfs.f_blocks * 4 - 160);
	}
	snprintf(path, sizeof(path), "%s/other", dir);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	cr_assert_eq(fallocate(fd, 0, 0, DS_MIB(5)), 0);
	close(fd);
	cr_assert_eq(ds_cache_make_room(cache, 0), 0);
	cr_assert_eq(statvfs(dir, &vfs), 0);
	cr_assert_geq(vfs.f_bavail * 10, vfs.f_blocks * 4);
	/* What may not be used is no room, whatever the cache has now: 16 MiB but for 40 % and what others have. */
	cr_assert_leq(ds_cache_room_bytes(cache), DS_MIB(16) * 6 / 10 - DS_MIB(5));
	cr_assert_geq(ds_cache_room_bytes(cache), DS_MIB(4));
	snprintf(path, sizeof(path), "%s/more", dir);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	cr_assert_eq(fallocate(fd, 0, 0, DS_MIB(3)), 0);
	close(fd);
	cr_assert_leq(ds_cache_room_bytes(cache), DS_MIB(16) * 6 / 10 - DS_MIB(8));
	ds_cache_unref(cache);
	for (size_t i = 0; i < IMAGES; i++)
		support_pack_release(&packs[i]);
}
