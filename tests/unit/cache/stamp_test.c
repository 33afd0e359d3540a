/*
 * The stamps of last use: what sets them, and a clock that is put back.
 */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <unistd.h>

#include "cache/cache_internal.h"
#include "cache_support.h"
#include "util/clock.h"

TestSuite(stamp, .fini = support_clean, .timeout = 120);

#define SLOTS	    32u
#define CHUNK	    DS_KIB(64)
#define CACHE_BYTES (8 * (uint64_t)SLOTS * CHUNK)
#define HOUR	    UINT64_C(3600000)
#define DAY	    (24 * HOUR)

/* Each test does what the keeper would. */
void __wrap_ds_cache_start_keeper(struct ds_cache *cache);
void __wrap_ds_cache_start_keeper(struct ds_cache *cache)
{
	(void)cache;
}

static void pack_init(struct support_pack *pack, uint64_t seed)
{
	support_pack_init(pack, seed, SLOTS, CHUNK, true);
	pack->layout.yields = true;
}

static void read_header(struct ds_map_header *ret_header)
{
	int dir_fd, fd;

	cr_assert_eq(support_images(support_path("c"), 0, &dir_fd), 1);
	fd = openat(dir_fd, "map", O_RDONLY | O_CLOEXEC);
	cr_assert_eq(ds_map_read_header(fd, ret_header), 0);
	close(fd);
	close(dir_fd);
}

/* The stamp of the image is some time old before it is set again; a part's first one is not to wait for that. */
Test(stamp, what_is_filled_as_soon_as_the_image_is_made_is_used)
{
	struct ds_cache *cache = support_open(support_path("c"), CACHE_BYTES, 1);
	struct ds_map_header header;
	struct support_pack pack;
	struct ds_image *image;
	unsigned stamped_n = 0;

	pack_init(&pack, 100);
	image = support_image(cache, &pack);
	cr_assert_eq(support_fill(image, &pack, 0), 0);
	cr_assert_eq(support_fill(image, &pack, SLOTS - 1), 0);
	ds_image_unref(image);
	ds_cache_unref(cache);
	read_header(&header);
	for (size_t i = 0; i < DS_IMAGE_SEGMENTS_MAX; i++)
		stamped_n += header.segment_used_ms[i] > 0;
	cr_assert_eq(stamped_n, 2);
	support_pack_release(&pack);
}

/* Its reads do not come here: being handed out counts as one of all of it. */
Test(stamp, what_the_kernel_reads_is_used)
{
	struct ds_cache *cache = support_open(support_path("c"), CACHE_BYTES, 1);
	struct ds_image_backing backing;
	struct ds_map_header header;
	struct support_pack pack;
	struct ds_image *image;
	uint64_t before;
	int fd, hold_fd;

	pack_init(&pack, 100);
	image = support_image(cache, &pack);
	cr_assert_eq(support_fill_all(image, &pack), SLOTS);
	ds_sleep_ms(200);
	before = ds_cache_now_ms();
	cr_assert_lt(ds_image_used_ms(image), before);
	cr_assert_eq(ds_image_backing_begin(image, true, &backing), 0);
	cr_assert_eq(ds_image_backing_take(&backing, &fd, &hold_fd), 0);
	ds_image_backing_end(&backing);
	close(fd);
	close(hold_fd);
	ds_image_unref(image);
	ds_cache_unref(cache);
	read_header(&header);
	cr_assert_geq(header.used_ms, before);
	for (size_t i = 0; i < DS_IMAGE_SEGMENTS_MAX; i++)
		cr_assert(!header.segment_used_ms[i] || header.segment_used_ms[i] >= before);
	support_pack_release(&pack);
}

/* By so much the clock is put back later on. */
static uint64_t ahead_ms;

uint64_t __real_ds_cache_now_ms(void);
uint64_t __wrap_ds_cache_now_ms(void);
uint64_t __wrap_ds_cache_now_ms(void)
{
	return __real_ds_cache_now_ms() + ahead_ms;
}

/* Another process that needs the room would wait until the clock has caught up. */
Test(stamp, an_image_is_let_go_of_when_the_clock_was_put_back)
{
	struct ds_cache *cache = support_open(support_path("c"), CACHE_BYTES, 1);
	struct ds_map_header header;
	struct support_pack pack;
	struct ds_image *image;

	pack_init(&pack, 100);
	ahead_ms = HOUR;
	image = support_image(cache, &pack);
	cr_assert_eq(support_fill_all(image, &pack), SLOTS);
	ahead_ms = 0;
	ds_image_keep(cache, 60000);
	cr_assert(atomic_load(&image->disk), "it may have been used just now");
	ds_sleep_ms(600);
	ds_image_keep(cache, 400);
	cr_assert(!atomic_load(&image->disk));
	ds_image_unref(image);
	ds_cache_unref(cache);
	read_header(&header);
	cr_assert_leq(header.used_ms, ds_cache_now_ms());
	cr_assert_gt(header.used_ms, ds_cache_now_ms() - HOUR);
	support_pack_release(&pack);
}

/* Its reader had read the clock before that. */
Test(stamp, a_part_that_is_stamped_late_does_not_stay_ahead)
{
	struct ds_cache *cache = support_open(support_path("c"), CACHE_BYTES, 1);
	struct ds_map_header header;
	struct support_pack pack;
	struct ds_image *image;
	struct ds_image_disk *disk;

	pack_init(&pack, 100);
	image = support_image(cache, &pack);
	cr_assert_eq(support_fill_all(image, &pack), SLOTS);
	disk = atomic_load(&image->disk);
	cr_assert(disk);
	atomic_store(&disk->segment_used_ms[0], ds_cache_now_ms() + HOUR);
	ds_image_keep(cache, 60000);
	ds_image_unref(image);
	ds_cache_unref(cache);
	read_header(&header);
	cr_assert_gt(header.segment_used_ms[0], 0);
	cr_assert_leq(header.segment_used_ms[0], ds_cache_now_ms());
	support_pack_release(&pack);
}

/* Its process died before it could set the stamps right. */
Test(stamp, what_was_used_later_than_now_goes_first)
{
	struct ds_cache *cache = support_open(support_path("c"), CACHE_BYTES, 1);
	struct support_pack packs[2];
	struct ds_image *image;

	for (unsigned i = 0; i < 2; i++) {
		pack_init(&packs[i], 100 + i);
		ahead_ms = i == 0 ? 2 * DAY : 0;
		image = support_image(cache, &packs[i]);
		cr_assert_eq(support_fill_all(image, &packs[i]), SLOTS);
		ds_image_flush(image);
		ds_image_unref(image);
		ds_cache_unref(cache);
		cache = support_open(support_path("c"), CACHE_BYTES, 1);
	}
	cr_assert_eq(ds_cache_make_room(cache, CACHE_BYTES - SLOTS * 3 / 2 * CHUNK), 0);
	for (unsigned i = 0; i < 2; i++) {
		image = support_image(cache, &packs[i]);
		cr_assert_eq(support_count(image, &packs[i], false) == SLOTS, i == 1, "%u", i);
		ds_image_unref(image);
	}
	ds_cache_unref(cache);
	for (unsigned i = 0; i < 2; i++)
		support_pack_release(&packs[i]);
}
