#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache/cache_internal.h"
#include "cache_support.h"
#include "util/clock.h"
#include "util/file.h"
#include "util/mem.h"

TestSuite(image, .fini = support_clean, .timeout = 120);

Test(image, what_was_filled_is_read_back_whole_and_in_parts)
{
	struct ds_cache *cache = support_open(support_path("c"), DS_MIB(64), 1);
	struct support_pack pack;
	struct ds_image *image;
	uint8_t want[5000], have[5000];

	support_pack_init(&pack, 7, 100, 5000, false);
	image = support_image(cache, &pack);
	cr_assert_eq(support_count(image, &pack, true), 0);
	cr_assert_eq(support_fill_all(image, &pack), 100);
	cr_assert_eq(support_count(image, &pack, false), 100);
	for (uint32_t i = 0; i < 100; i++) {
		size_t len = pack.slots[i].raw_len_bytes, off = len / 3;

		cr_assert(ds_image_has(image, &pack.slots[i]));
		support_bytes(&pack, i, want);
		cr_assert_eq(ds_image_read(image, &pack.slots[i], off, len - off, false, have), 0);
		cr_assert_arr_eq(want + off, have, len - off);
		cr_assert_eq(ds_image_read_now(image, &pack.slots[i], off, len - off, have), 0);
		cr_assert_arr_eq(want + off, have, len - off);
	}
	ds_image_unref(image);
	ds_cache_unref(cache);
	support_pack_release(&pack);
}

/* All that is asked for by who must not wait. */
static void check_not_now(struct ds_image *image, const struct ds_image_slot *slot)
{
	struct ds_image_direct direct;
	uint8_t data[10];
	bool has;

	cr_assert_eq(ds_image_read_now(image, slot, 0, 10, data), -EAGAIN);
	cr_assert_eq(ds_image_has_now(image, slot, &has), -EAGAIN);
	cr_assert_eq(ds_image_direct_begin(image, slot, 0, 10, DS_KIB(64), &direct), -EAGAIN);
	cr_assert_eq(image->disk, NULL);
}

Test(image, who_must_not_wait_opens_nothing_and_meets_no_lock)
{
	struct ds_cache *cache = support_open(support_path("c"), DS_MIB(64), 1);
	struct support_pack pack;
	uint64_t before_ns;
	struct ds_image *image;
	uint8_t data[5000];
	int dir_fd, map_fd;
	bool has = false;

	support_pack_init(&pack, 7, 20, 5000, true);
	image = support_image(cache, &pack);
	cr_assert_eq(support_fill(image, &pack, 3), 0);
	ds_image_unref(image);
	ds_cache_unref(cache);
	/* As held by an evictor that was stopped. */
	cr_assert_eq(support_images(support_path("c"), 0, &dir_fd), 1);
	map_fd = openat(dir_fd, "map", O_RDWR | O_CLOEXEC);
	cr_assert_eq(ds_map_lock(map_fd, F_WRLCK, DS_MAP_LOCK_USE), 0);
	cache = support_open(support_path("c"), DS_MIB(64), 1);
	image = support_image(cache, &pack);
	before_ns = ds_mono_ns();
	check_not_now(image, &pack.slots[3]);
	cr_assert_lt(ds_mono_ns() - before_ns, 500 * (uint64_t)DS_NS_PER_MS);
	/* And within this process, by who waits for that one: else this would be for ever. */
	pthread_mutex_lock(&image->mutex);
	check_not_now(image, &pack.slots[3]);
	pthread_mutex_unlock(&image->mutex);
	cr_assert_eq(ds_map_lock(map_fd, F_UNLCK, DS_MAP_LOCK_USE), 0);
	check_not_now(image, &pack.slots[3]);
	/* When somebody has opened it, all is there. */
	cr_assert_eq(ds_image_read(image, &pack.slots[3], 0, 5000, false, data), 0);
	pthread_mutex_lock(&image->mutex);
	cr_assert_eq(ds_image_read_now(image, &pack.slots[3], 0, 5000, data), 0);
	cr_assert_eq(ds_image_has_now(image, &pack.slots[3], &has), 0);
	cr_assert(has);
	cr_assert_eq(ds_image_has_now(image, &pack.slots[4], &has), 0);
	cr_assert_not(has);
	pthread_mutex_unlock(&image->mutex);
	close(map_fd);
	close(dir_fd);
	ds_image_unref(image);
	ds_cache_unref(cache);
	support_pack_release(&pack);
}

Test(image, a_second_process_and_a_later_one_find_it)
{
	struct ds_cache *a = support_open(support_path("c"), DS_MIB(64), 1);
	struct ds_cache *b = support_open(support_path("c"), DS_MIB(64), 1);
	struct support_pack pack;
	struct ds_image *image, *other;

	support_pack_init(&pack, 7, 20, 5000, false);
	image = support_image(a, &pack);
	other = support_image(b, &pack);
	cr_assert_eq(support_fill(image, &pack, 3), 0);
	cr_assert(support_read(other, &pack, 3, false));
	cr_assert_not(support_read(other, &pack, 4, false));
	cr_assert_eq(support_fill(image, &pack, 4), 0);
	cr_assert(support_read(other, &pack, 4, false));
	ds_image_unref(image);
	ds_image_unref(other);
	ds_cache_unref(a);
	ds_cache_unref(b);

	a = support_open(support_path("c"), DS_MIB(64), 1);
	image = support_image(a, &pack);
	cr_assert_eq(support_count(image, &pack, false), 2);
	ds_image_unref(image);
	ds_cache_unref(a);
	support_pack_release(&pack);
}

Test(image, without_a_directory_everything_misses)
{
	struct support_pack pack;
	struct ds_cache *cache;
	struct ds_image *image;

	support_pack_init(&pack, 7, 3, 5000, false);
	cr_assert_eq(ds_cache_open_none(&cache), 0);
	image = support_image(cache, &pack);
	cr_assert_lt(support_fill(image, &pack, 0), 0);
	cr_assert_not(support_read(image, &pack, 0, true));
	ds_image_unref(image);
	ds_cache_unref(cache);
	support_pack_release(&pack);
}

/* INV-1 of image_map.c */
Test(image, a_claim_that_differs_or_overlaps_is_refused)
{
	struct ds_cache *cache = support_open(support_path("c"), DS_MIB(64), 1);
	struct support_pack pack, lie;
	struct ds_image *image;

	support_pack_init(&pack, 7, 5000, 100, true);
	support_pack_init(&lie, 8, 5000, 100, true);
	image = support_image(cache, &pack);
	for (uint32_t i = 0; i < 5000; i += 1000)
		cr_assert_eq(support_fill(image, &pack, i), 0);
	/* Same slot, other digest. */
	cr_assert_eq(support_fill(image, &lie, 1000), -DS_E_MISMATCH);
	cr_assert_not(support_read(image, &lie, 1000, true));
	/* Other slots that reach into a claimed one, from below and from above, near and far. */
	for (uint32_t i = 1; i < 5000; i++) {
		struct ds_image_slot *slot = &lie.slots[i];

		if (i % 1000 == 0)
			continue;
		slot->raw_off = i / 1000 * 100000 + 50;
		cr_assert_eq(support_fill(image, &lie, i), -DS_E_MISMATCH);
		if (i < 4000) {
			slot->raw_off = (i / 1000 + 1) * 100000 - 50;
			cr_assert_eq(support_fill(image, &lie, i), -DS_E_MISMATCH);
		}
	}
	/* Out of the file, out of the map. */
	lie.slots[17].raw_off = pack.layout.size_bytes - 99;
	cr_assert_eq(support_fill(image, &lie, 17), -DS_E_MISMATCH);
	lie.slots[17].raw_off = UINT64_MAX - 50;
	cr_assert_eq(support_fill(image, &lie, 17), -DS_E_MISMATCH);
	lie.slots[17].slot = 5000;
	lie.slots[17].raw_off = 0;
	cr_assert_eq(support_fill(image, &lie, 17), -DS_E_MISMATCH);
	for (uint32_t i = 0; i < 5000; i += 1000)
		cr_assert(support_read(image, &pack, i, false));
	cr_assert_eq(support_fill_all(image, &pack), 5000);
	cr_assert_eq(support_count(image, &pack, false), 5000);
	ds_image_unref(image);
	ds_cache_unref(cache);
	support_pack_release(&pack);
	support_pack_release(&lie);
}

Test(image, a_lie_about_the_layout_gets_an_image_of_its_own)
{
	struct ds_cache *cache = support_open(support_path("c"), DS_MIB(64), 1);
	struct support_pack pack, lie;
	struct ds_image *image, *other;

	support_pack_init(&pack, 7, 20, 5000, false);
	support_pack_init(&lie, 8, 10, 5000, false);
	lie.layout.name = pack.layout.name;
	other = support_image(cache, &lie);
	cr_assert_eq(support_fill_all(other, &lie), 10);
	image = support_image(cache, &pack);
	cr_assert_eq(support_fill_all(image, &pack), 20);
	cr_assert_eq(support_count(image, &pack, false), 20);
	cr_assert_eq(support_count(other, &lie, false), 10);
	ds_image_unref(image);
	ds_image_unref(other);
	ds_cache_unref(cache);
	support_pack_release(&pack);
	support_pack_release(&lie);
}

/* ---- other boots */

Test(image, F10_another_boot_trusts_only_what_it_has_checked)
{
	struct ds_cache *cache = support_open(support_path("c"), DS_MIB(64), 1);
	struct support_pack pack;
	struct ds_image *image;

	support_pack_init(&pack, 7, 50, 5000, false);
	image = support_image(cache, &pack);
	cr_assert_eq(support_fill_all(image, &pack), 50);
	ds_image_unref(image);
	ds_cache_unref(cache);
	cache = support_open(support_path("c"), DS_MIB(64), 2);
	image = support_image(cache, &pack);
	cr_assert_eq(support_count(image, &pack, false), 0);
	cr_assert_not(ds_image_has(image, &pack.slots[0]));
	cr_assert_eq(support_count(image, &pack, true), 50);
	cr_assert(ds_image_has(image, &pack.slots[0]));
	cr_assert_eq(support_count(image, &pack, false), 50);
	ds_image_unref(image);
	ds_cache_unref(cache);
	support_pack_release(&pack);
}

/* As the next process of the same boot finds it. */
/* Behind the back of the file system, while nobody has the image open. */
static void change_in_place(const struct support_pack *pack, uint32_t slot)
{
	int dir_fd, fd;

	cr_assert_eq(support_images(support_path("c"), 0, &dir_fd), 1);
	fd = openat(dir_fd, "data", O_RDWR | O_CLOEXEC);
	cr_assert_eq(pwrite(fd, "damage", 6, (off_t)pack->slots[slot].raw_off), 6);
	close(fd);
	close(dir_fd);
}

Test(image, F06_what_is_checked_anew_is_a_miss_when_it_was_changed_within_the_boot)
{
	struct ds_cache *cache = support_open(support_path("c"), DS_MIB(64), 1);
	struct support_pack pack;
	struct ds_image *image;

	support_pack_init(&pack, 7, 50, 5000, false);
	pack.layout.checks_anew = true;
	image = support_image(cache, &pack);
	cr_assert_eq(support_fill_all(image, &pack), 50);
	cr_assert_eq(support_count(image, &pack, false), 50);
	ds_image_unref(image);
	ds_cache_unref(cache);
	change_in_place(&pack, 20);
	cache = support_open(support_path("c"), DS_MIB(64), 1);
	image = support_image(cache, &pack);
	cr_assert_eq(support_count(image, &pack, false), 0);
	cr_assert_eq(support_count(image, &pack, true), 49);
	cr_assert_eq(support_count(image, &pack, false), 49);
	/* In this process the slot stays one that is checked each time. */
	cr_assert_eq(support_fill(image, &pack, 20), 0);
	cr_assert_eq(support_count(image, &pack, true), 50);
	ds_image_unref(image);
	ds_cache_unref(cache);
	support_pack_release(&pack);
}

Test(image, F06_checking_ahead_trusts_what_is_sound_and_counts_as_no_use)
{
	struct ds_cache *cache = support_open(support_path("c"), DS_MIB(64), 1);
	struct ds_cache_stats before, after;
	struct support_pack pack;
	struct ds_image *image;
	uint8_t buffer[5000];

	support_pack_init(&pack, 7, 50, 5000, false);
	pack.layout.checks_anew = true;
	image = support_image(cache, &pack);
	for (uint32_t i = 0; i < 49; i++)
		cr_assert_eq(support_fill(image, &pack, i), 0);
	ds_image_unref(image);
	ds_cache_unref(cache);
	change_in_place(&pack, 20);
	cache = support_open(support_path("c"), DS_MIB(64), 1);
	image = support_image(cache, &pack);
	ds_cache_get_stats(cache, &before);
	for (uint32_t i = 0; i < 50; i++) {
		cr_assert_leq(pack.slots[i].raw_len_bytes, sizeof(buffer));
		cr_assert_not(ds_image_has(image, &pack.slots[i]));
		for (unsigned k = 0; k < 2; k++)
			cr_assert_eq(ds_image_check(image, &pack.slots[i], buffer),
				     i == 20 || i == 49 ? -DS_E_NOT_LOCAL : 0);
	}
	ds_cache_get_stats(cache, &after);
	cr_assert_eq(after.hits_n, before.hits_n);
	cr_assert_eq(after.misses_n, before.misses_n);
	cr_assert_eq(after.damaged_n, before.damaged_n + 1);
	cr_assert_eq(support_count(image, &pack, false), 48);
	ds_image_unref(image);
	ds_cache_unref(cache);
	support_pack_release(&pack);
}

Test(image, T20_bytes_that_a_crash_lost_are_a_miss_in_the_next_boot)
{
	struct ds_cache *cache = support_open(support_path("c"), DS_MIB(64), 1);
	struct support_pack pack;
	struct ds_image *image;
	int dir_fd, fd;
	uint8_t byte;

	support_pack_init(&pack, 7, 50, 5000, false);
	image = support_image(cache, &pack);
	cr_assert_eq(support_fill_all(image, &pack), 50);
	ds_image_unref(image);
	ds_cache_unref(cache);
	cr_assert_eq(support_images(support_path("c"), 0, &dir_fd), 1);
	fd = openat(dir_fd, "data", O_RDWR | O_CLOEXEC);
	cr_assert_eq(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
			       (off_t)pack.slots[10].raw_off),
		     0);
	/* And one flipped bit in each fifth. */
	for (uint32_t i = 10; i < 50; i += 5) {
		off_t off = (off_t)(pack.slots[i].raw_off + pack.slots[i].raw_len_bytes / 2);

		cr_assert_eq(pread(fd, &byte, 1, off), 1);
		byte ^= 4;
		cr_assert_eq(pwrite(fd, &byte, 1, off), 1);
	}
	close(fd);
	close(dir_fd);
	cache = support_open(support_path("c"), DS_MIB(64), 2);
	image = support_image(cache, &pack);
	cr_assert_eq(support_count(image, &pack, true), 32);
	cr_assert_eq(support_count(image, &pack, true), 32);
	cr_assert_eq(support_fill_all(image, &pack), 50);
	cr_assert_eq(support_count(image, &pack, false), 50);
	ds_image_unref(image);
	ds_cache_unref(cache);
	support_pack_release(&pack);
}

Test(image, F10_a_planted_map_is_no_proof)
{
	struct ds_cache *cache = support_open(support_path("c"), DS_MIB(64), 1);
	struct support_pack pack;
	struct ds_image *image;
	int dir_fd, fd;

	support_pack_init(&pack, 7, 50, 5000, false);
	image = support_image(cache, &pack);
	cr_assert_eq(support_fill_all(image, &pack), 50);
	ds_image_unref(image);
	ds_cache_unref(cache);
	/* All bits set, claims as they should be, and data that are not. */
	cr_assert_eq(support_images(support_path("c"), 0, &dir_fd), 1);
	fd = openat(dir_fd, "data", O_RDWR | O_CLOEXEC);
	for (uint64_t off = 0; off < pack.layout.size_bytes; off += 100)
		cr_assert_eq(pwrite(fd, "planted", 7,
				    (off_t)DS_MIN(off, pack.layout.size_bytes - 7)),
			     7);
	close(fd);
	close(dir_fd);
	cache = support_open(support_path("c"), DS_MIB(64), 2);
	image = support_image(cache, &pack);
	support_count(image, &pack, false);
	cr_assert_eq(support_count(image, &pack, true), 0);
	ds_image_unref(image);
	ds_cache_unref(cache);
	support_pack_release(&pack);
}

Test(image, two_boots_at_once_never_share_an_image)
{
	/* Cannot happen on one host; what could is two namespaces that see different ids. */
	struct ds_cache *a = support_open(support_path("c"), DS_MIB(64), 1);
	struct ds_cache *b = support_open(support_path("c"), DS_MIB(64), 2);
	struct support_pack pack;
	struct ds_image *image, *other;

	support_pack_init(&pack, 7, 10, 5000, false);
	image = support_image(a, &pack);
	cr_assert_eq(support_fill_all(image, &pack), 10);
	other = support_image(b, &pack);
	cr_assert_eq(support_count(other, &pack, true), 0);
	cr_assert_lt(support_fill(other, &pack, 1), 0);
	cr_assert_eq(support_count(image, &pack, false), 10);
	ds_image_unref(image);
	ds_image_unref(other);
	ds_cache_unref(a);
	ds_cache_unref(b);
	support_pack_release(&pack);
}

/* ---- handing out */

/* The kernel's file: each slot in turn, every other one zeros. */
static int back(struct ds_image *image, const struct support_pack *pack, int *ret_fd)
{
	struct ds_image_backing backing;
	int r = ds_image_backing_begin(image, true, &backing), hold_fd;

	if (r < 0)
		return r;
	for (uint32_t i = 0; i < 20 && r == 0; i++) {
		if (i % 2)
			r = ds_image_backing_add_zeros(&backing, i, pack->slots[i].raw_off,
						       pack->slots[i].raw_len_bytes);
		else
			r = ds_image_backing_has(&backing, &pack->slots[i], true);
	}
	if (r == 0)
		r = ds_image_backing_take(&backing, ret_fd, &hold_fd);
	if (r == 0)
		close(hold_fd);
	ds_image_backing_end(&backing);
	return r;
}

Test(image, a_file_for_the_kernel_stays_as_it_is)
{
	struct ds_cache *cache = support_open(support_path("c"), DS_MIB(64), 1);
	uint8_t want[5000], have[5000];
	struct support_pack pack;
	struct ds_image *image;
	int fd;

	support_pack_init(&pack, 7, 20, 5000, true);
	image = support_image(cache, &pack);
	cr_assert_eq(back(image, &pack, &fd), -ENOENT);
	for (uint32_t i = 0; i < 18; i += 2)
		cr_assert_eq(support_fill(image, &pack, i), 0);
	cr_assert_eq(back(image, &pack, &fd), -ENODATA);
	cr_assert_eq(support_fill(image, &pack, 18), 0);
	cr_assert_eq(back(image, &pack, &fd), 0);
	/* Who believes that there is something where zeros are cannot put it there any more, in whatever process. */
	for (uint32_t i = 1; i < 20; i += 2)
		cr_assert_eq(support_fill(image, &pack, i), -DS_E_MISMATCH);
	ds_image_unref(image);
	ds_cache_unref(cache);
	cache = support_open(support_path("c"), DS_MIB(64), 1);
	image = support_image(cache, &pack);
	cr_assert_eq(support_fill(image, &pack, 5), -DS_E_MISMATCH);
	cr_assert_eq(support_count(image, &pack, false), 10);
	for (uint32_t i = 0; i < 20; i++) {
		support_bytes(&pack, i, want);
		if (i % 2)
			memset(want, 0, sizeof(want));
		cr_assert_eq(pread(fd, have, 5000, (off_t)pack.slots[i].raw_off), 5000);
		cr_assert_arr_eq(want, have, 5000);
	}
	close(fd);
	ds_image_unref(image);
	ds_cache_unref(cache);
	support_pack_release(&pack);
}

/* Somebody's other idea of the same file, which was here first, is no file for the kernel. */
Test(image, a_file_with_something_in_its_holes_is_not_for_the_kernel)
{
	struct ds_cache *cache = support_open(support_path("c"), DS_MIB(64), 1);
	struct support_pack pack;
	struct ds_image *image;
	int fd;

	support_pack_init(&pack, 7, 20, 5000, true);
	image = support_image(cache, &pack);
	for (uint32_t i = 0; i < 20; i += 2)
		cr_assert_eq(support_fill(image, &pack, i), 0);
	cr_assert_eq(support_fill(image, &pack, 7), 0);
	cr_assert_eq(back(image, &pack, &fd), -DS_E_MISMATCH);
	ds_image_unref(image);
	ds_cache_unref(cache);
	support_pack_release(&pack);
}

/* The host stops when the chunk of slot 7 was written in part, `byte` at `off` of it last, and before it was there. In the next boot nobody
 * has claimed the slot: what does the kernel get for whom it is zeros? */
static int back_after_a_crash(uint64_t off, uint8_t byte)
{
	struct ds_cache *cache = support_open(support_path("c"), DS_MIB(64), 1);
	struct support_pack pack;
	struct ds_image *image;
	int fd = -1, data_fd, r;

	support_pack_init(&pack, 7, 20, 70000, true);
	image = support_image(cache, &pack);
	for (uint32_t i = 0; i < 20; i += 2)
		cr_assert_eq(support_fill(image, &pack, i), 0);
	cr_assert_eq(ds_map_claim(atomic_load(&image->disk), &pack.slots[7], 1), 0);
	data_fd = support_data(support_path("c"), O_RDWR);
	cr_assert_eq(pwrite(data_fd, &byte, 1, (off_t)(pack.slots[7].raw_off + off)), 1);
	close(data_fd);
	ds_image_unref(image);
	ds_cache_unref(cache);
	cache = support_open(support_path("c"), DS_MIB(64), 2);
	image = support_image(cache, &pack);
	cr_assert_eq(support_count(image, &pack, true), 10);
	r = back(image, &pack, &fd);
	if (fd >= 0)
		close(fd);
	ds_image_unref(image);
	ds_cache_unref(cache);
	support_pack_release(&pack);
	return r;
}

Test(image, what_a_crash_left_in_a_hole_is_not_for_the_kernel)
{
	cr_assert_eq(back_after_a_crash(0, 1), -ENODATA);
}

Test(image, nor_is_it_in_the_middle_of_the_hole)
{
	cr_assert_eq(back_after_a_crash(35000, 1), -ENODATA);
}

Test(image, nor_at_its_end)
{
	cr_assert_eq(back_after_a_crash(69999, 1), -ENODATA);
}

Test(image, zeros_that_were_written_are_zeros)
{
	cr_assert_eq(back_after_a_crash(35000, 0), 0);
}

/* As two mounts in a row: what the first has found is not believed. */
Test(image, zeros_are_looked_at_by_each_who_gives_them_to_the_kernel)
{
	struct ds_cache *cache = support_open(support_path("c"), DS_MIB(64), 1);
	struct support_pack pack;
	struct ds_image *image;
	int fd = -1, data_fd;

	support_pack_init(&pack, 7, 20, 70000, true);
	image = support_image(cache, &pack);
	for (uint32_t i = 0; i < 20; i += 2)
		cr_assert_eq(support_fill(image, &pack, i), 0);
	cr_assert_eq(back(image, &pack, &fd), 0);
	close(fd);
	ds_image_unref(image);
	ds_cache_unref(cache);
	data_fd = support_data(support_path("c"), O_RDWR);
	cr_assert_eq(pwrite(data_fd, "x", 1, (off_t)pack.slots[7].raw_off + 35000), 1);
	close(data_fd);
	cache = support_open(support_path("c"), DS_MIB(64), 1);
	image = support_image(cache, &pack);
	cr_assert_eq(back(image, &pack, &fd), -ENODATA);
	ds_image_unref(image);
	ds_cache_unref(cache);
	support_pack_release(&pack);
}

/* ---- allocation failures */

Test(image, J01_every_allocation_may_fail)
{
	uint8_t boot_id[16] = {1};
	struct ds_cache_options options = {.dir = support_path("c"),
					   .capacity_bytes = DS_MIB(64),
					   .boot_id = boot_id};
	struct support_pack pack;
	unsigned failed = 0;
	bool whole = false;

	support_pack_init(&pack, 7, 8, 5000, false);
	for (int64_t n = 0; !whole; n++) {
		struct ds_cache *cache = NULL;
		struct ds_image *image = NULL;
		uint64_t failures;
		int r;

		cr_assert_lt(n, 1000);
		ds_mem_fail_after(n, n % 2);
		r = ds_cache_open(&options, &cache, NULL);
		if (r == 0)
			r = ds_image_open(cache, &pack.layout, &image);
		cr_assert(r == 0 || r == -ENOMEM);
		if (r == 0)
			r = ds_cache_make_room(cache, 1);
		failures = ds_mem_fail_after(-1, 0);
		if (image) {
			/* Without failures by the test's own allocations: */
			uint8_t raw[5000];

			support_bytes(&pack, 3, raw);
			ds_mem_fail_after(n, n % 2);
			r = ds_image_fill(image, &pack.slots[3], raw);
			ds_image_read(image, &pack.slots[3], 1, 2, true, raw);
			failures += ds_mem_fail_after(-1, 0);
			support_count(image, &pack, true);
			whole = failures == 0 && r == 0;
		}
		failed += failures > 0;
		ds_image_unref(image);
		ds_cache_unref(cache);
	}
	cr_assert_gt(failed, 5);
	support_pack_release(&pack);
}
