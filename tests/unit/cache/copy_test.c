/*
 * The private copy of an image's claims (image_slot.c): what is beyond its limit is read as ever.
 */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "cache/cache_internal.h"
#include "cache_support.h"
#include "util/mem.h"

TestSuite(copy, .fini = support_clean, .timeout = 120);

#define SLOTS 50

/* The keeper lets go of an image that is not sound, whenever it passes: here nobody does but the test. */
void __wrap_ds_cache_start_keeper(struct ds_cache *cache);
void __wrap_ds_cache_start_keeper(struct ds_cache *cache)
{
	(void)cache;
}

struct box {
	struct ds_cache *cache;
	struct ds_image *image;
	struct support_pack pack;
};

static void box_open(struct box *box, uint64_t copied_max_bytes, uint8_t boot)
{
	box->cache = support_open(support_path("c"), DS_MIB(64), boot);
	box->cache->copied_max_bytes = copied_max_bytes;
	box->image = support_image(box->cache, &box->pack);
}

static void box_close(struct box *box)
{
	ds_image_unref(box->image);
	ds_cache_unref(box->cache);
}

static struct ds_image_disk *disk_of(struct ds_image *image)
{
	return atomic_load(&image->disk);
}

static void detach(struct ds_image *image)
{
	pthread_mutex_lock(&image->mutex);
	cr_assert(ds_image_detach_locked(image, 0));
	pthread_mutex_unlock(&image->mutex);
}

static void check_refused(struct ds_image *image, const struct ds_image_slot *slot,
			  const char *what)
{
	uint8_t byte;
	bool has;

	cr_assert_eq(ds_image_read(image, slot, 0, 1, true, &byte), -DS_E_NOT_LOCAL, "%s", what);
	cr_assert_not(ds_image_has(image, slot), "%s", what);
	cr_assert_eq(ds_image_has_now(image, slot, &has), 0);
	cr_assert_not(has, "%s", what);
}

/* INV-1 of image_slot.c: of another claim nothing is given out, nor does it change what is. */
static void check_claims(struct box *box)
{
	for (uint32_t i = 0; i + 1 < SLOTS; i++) {
		struct ds_image_slot other = box->pack.slots[i];

		other.digest.bytes[31] ^= 1;
		check_refused(box->image, &other, "another digest");
		other = box->pack.slots[i];
		other.raw_len_bytes++;
		check_refused(box->image, &other, "another length");
		other = box->pack.slots[i];
		other.raw_off++;
		check_refused(box->image, &other, "another place");
		other = box->pack.slots[i + 1];
		other.slot = i;
		check_refused(box->image, &other, "another slot");
	}
}

static void check_all_here(struct box *box, bool is_copied)
{
	cr_assert_eq(support_count(box->image, &box->pack, false), SLOTS);
	cr_assert_eq(disk_of(box->image)->claims != NULL, is_copied);
	cr_assert(ds_image_is_whole(box->image));
	check_claims(box);
	cr_assert_eq(support_count(box->image, &box->pack, false), SLOTS);
	cr_assert(ds_image_is_whole(box->image));
}

static void fill_read_and_check_again(uint64_t copied_max_bytes, bool is_copied)
{
	struct box box;

	support_pack_init(&box.pack, 7, SLOTS, 5000, false);
	box_open(&box, copied_max_bytes, 1);
	cr_assert_eq(support_count(box.image, &box.pack, true), 0);
	cr_assert_eq(support_fill_all(box.image, &box.pack), SLOTS);
	check_all_here(&box, is_copied);
	/* Opened anew, by the same process, the next, and in the next boot. */
	detach(box.image);
	check_all_here(&box, is_copied);
	box_close(&box);
	box_open(&box, copied_max_bytes, 1);
	check_all_here(&box, is_copied);
	box_close(&box);
	box_open(&box, copied_max_bytes, 2);
	cr_assert_eq(support_count(box.image, &box.pack, false), 0);
	cr_assert_eq(support_count(box.image, &box.pack, true), SLOTS);
	check_all_here(&box, is_copied);
	box_close(&box);
	support_pack_release(&box.pack);
}

Test(copy, what_is_copied_is_read_from_the_copy)
{
	fill_read_and_check_again(DS_MIB(1), true);
}

Test(copy, what_is_not_copied_is_read_as_ever)
{
	fill_read_and_check_again(0, false);
}

/* Another process, say, has found damage: who copies claims sees it when he opens the image anew, who does not sees it at once. */
Test(copy, what_was_found_damaged_is_a_miss)
{
	struct box box;
	int fd;

	support_pack_init(&box.pack, 7, SLOTS, 5000, false);
	box_open(&box, 0, 1);
	cr_assert_eq(support_fill_all(box.image, &box.pack), SLOTS);
	cr_assert_eq(ds_map_set_state(disk_of(box.image), 11, 0), 0);
	cr_assert_eq(support_read(box.image, &box.pack, 11, true), 0);
	cr_assert_eq(support_count(box.image, &box.pack, true), SLOTS - 1);
	cr_assert_eq(support_fill(box.image, &box.pack, 11), 0);
	cr_assert_eq(support_count(box.image, &box.pack, true), SLOTS);
	/* And this one, when the file has become shorter. */
	fd = support_data(support_path("c"), O_RDWR);
	cr_assert_eq(ftruncate(fd, (off_t)box.pack.slots[SLOTS - 1].raw_off), 0);
	close(fd);
	cr_assert_eq(support_count(box.image, &box.pack, true), SLOTS - 1);
	cr_assert_not(ds_image_is_whole(box.image));
	box_close(&box);
	support_pack_release(&box.pack);
}

Test(copy, room_for_claims_has_a_limit_and_comes_back)
{
	const uint64_t each = SLOTS * sizeof(struct ds_copy_claim);
	struct support_pack other;
	struct ds_image *image;
	struct box box;

	support_pack_init(&box.pack, 7, SLOTS, 5000, false);
	support_pack_init(&other, 8, SLOTS, 5000, false);
	box_open(&box, each * 2 - 1, 1);
	image = support_image(box.cache, &other);
	cr_assert_eq(support_fill_all(box.image, &box.pack), SLOTS);
	cr_assert_eq(support_fill_all(image, &other), SLOTS);
	cr_assert_not_null(disk_of(box.image)->claims);
	cr_assert_null(disk_of(image)->claims);
	cr_assert_eq(box.cache->copied_bytes, each);
	detach(image);
	cr_assert_eq(box.cache->copied_bytes, each);
	detach(box.image);
	cr_assert_eq(box.cache->copied_bytes, 0);
	cr_assert_eq(support_count(image, &other, false), SLOTS);
	cr_assert_eq(support_count(box.image, &box.pack, false), SLOTS);
	cr_assert_not_null(disk_of(image)->claims);
	cr_assert_null(disk_of(box.image)->claims);
	cr_assert_eq(box.cache->copied_bytes, each);
	ds_image_unref(image);
	box_close(&box);
	support_pack_release(&box.pack);
	support_pack_release(&other);
}

/* Nothing but the copy says that this process has checked them. */
Test(copy, what_each_process_checks_is_copied_in_any_case)
{
	struct box box;

	support_pack_init(&box.pack, 7, SLOTS, 5000, false);
	box.pack.layout.checks_anew = true;
	box_open(&box, 0, 1);
	cr_assert_eq(support_fill_all(box.image, &box.pack), SLOTS);
	check_all_here(&box, true);
	detach(box.image);
	cr_assert_eq(support_count(box.image, &box.pack, false), 0);
	cr_assert_eq(support_count(box.image, &box.pack, true), SLOTS);
	check_all_here(&box, true);
	box_close(&box);
	support_pack_release(&box.pack);
}

/* ---- memory */

static uint64_t anon_bytes(void)
{
	FILE *file = fopen("/proc/self/status", "re");
	unsigned long kib = 0;
	char line[256];

	cr_assert(file);
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, "RssAnon: %lu kB", &kib) == 1)
			break;
	fclose(file);
	return (uint64_t)kib * 1024;
}

/* Files of a byte each, as many as a pack has of 1 KiB. */
#define TINY_SLOTS  32768u
#define TINY_IMAGES 10u

static void fill_tiny(struct ds_image *image)
{
	static const uint8_t raw[DS_IMAGE_RUN_MAX];

	for (uint32_t first = 0; first < TINY_SLOTS; first += DS_IMAGE_RUN_MAX) {
		struct ds_image_fill fills[DS_IMAGE_RUN_MAX];
		struct ds_image_lock locks[DS_IMAGE_RUN_MAX] = {{NULL}};

		for (uint32_t i = 0; i < DS_IMAGE_RUN_MAX; i++)
			fills[i] = (struct ds_image_fill){.slot = {.slot = first + i,
								   .raw_off = first + i,
								   .raw_len_bytes = 1},
							  .raw = &raw[i],
							  .lock = &locks[i]};
		ds_image_fill_run(image, fills, DS_IMAGE_RUN_MAX);
		for (uint32_t i = 0; i < DS_IMAGE_RUN_MAX; i++) {
			cr_assert_eq(fills[i].result, 0);
			ds_image_unlock_slot(&locks[i]);
		}
	}
}

static void read_tiny(struct ds_image *image)
{
	uint8_t byte = 1;

	for (uint32_t i = 0; i < TINY_SLOTS; i++) {
		struct ds_image_slot slot = {.slot = i, .raw_off = i, .raw_len_bytes = 1};

		cr_assert_eq(ds_image_read(image, &slot, 0, 1, false, &byte), 0);
		cr_assert_eq(byte, 0);
	}
}

static void use_tiny(struct ds_cache *cache, uint8_t name, struct ds_image **ret_images)
{
	for (unsigned k = 0; k < TINY_IMAGES; k++) {
		struct ds_image_layout layout = {.name.bytes = {(uint8_t)k, name},
						 .slots_n = TINY_SLOTS,
						 .size_bytes = TINY_SLOTS};

		cr_assert_eq(ds_image_open(cache, &layout, &ret_images[k]), 0);
	}
	for (unsigned k = 0; k < TINY_IMAGES; k++)
		fill_tiny(ret_images[k]);
	for (unsigned k = 0; k < TINY_IMAGES; k++)
		read_tiny(ret_images[k]);
}

static void drop_tiny(struct ds_image **images)
{
	for (unsigned k = 0; k < TINY_IMAGES; k++)
		ds_image_unref(images[k]);
}

/* 10,000,000 files of 1 KiB lie in some 300 packs, all of which a shuffled epoch uses all the time. */
Test(copy, memory_does_not_grow_with_the_chunks_that_were_read)
{
	const uint64_t limit = DS_MIB(2), slots_n = TINY_SLOTS * TINY_IMAGES;
	struct ds_cache *cache = support_open(support_path("c"), DS_MIB(256), 1);
	struct ds_image *others[TINY_IMAGES], *images[TINY_IMAGES];
	uint64_t before, grown, map_bytes = ds_image_map_bytes(TINY_SLOTS);

	cr_assert_leq(cache->copied_max_bytes, DS_MIB(32));
	cr_assert_gt(map_bytes * TINY_IMAGES, 4 * limit);
	/* ASan's second stack (detect_stack_use_after_return) is touched by the first of these that there are. */
	cache->copied_max_bytes = 0;
	use_tiny(cache, 1, others);
	cache->copied_max_bytes = limit;
	before = anon_bytes();
	use_tiny(cache, 2, images);
	grown = anon_bytes() - before;
	fprintf(stderr, "%llu bytes for %llu chunks\n", (unsigned long long)grown,
		(unsigned long long)slots_n);
	for (unsigned k = 0; k < TINY_IMAGES; k++)
		cr_assert(ds_image_is_whole(images[k]));
	/* And 2 MiB for whatever else this process has touched meanwhile. */
	cr_assert_leq(grown, limit + slots_n * 5 / 4 + DS_MIB(2));
	drop_tiny(images);
	drop_tiny(others);
	ds_cache_unref(cache);
}
