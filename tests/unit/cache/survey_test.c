/*
 * Counting, pruning and checking a cache directory, beside those who use it.
 */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cache/cache_internal.h"
#include "cache/cache_survey.h"
#include "cache_support.h"
#include "util/clock.h"
#include "util/mem.h"
#include "util/random.h"

TestSuite(survey, .fini = support_clean, .timeout = 120);

#define SLOTS 16u
#define CHUNK DS_KIB(64)

static struct ds_cache *open_cache(void)
{
	return support_open(support_path("c"), DS_MIB(64), 1);
}

static void fill(struct ds_cache *cache, struct support_pack *pack, uint64_t seed)
{
	struct ds_image *image;

	support_pack_init(pack, seed, SLOTS, CHUNK, true);
	image = support_image(cache, pack);
	cr_assert_eq(support_fill_all(image, pack), SLOTS);
	ds_image_unref(image);
}

static unsigned count(struct ds_cache *cache, const struct support_pack *pack)
{
	struct ds_image *image = support_image(cache, pack);
	unsigned n = support_count(image, pack, true);

	ds_image_unref(image);
	return n;
}

/* A bit of the only image's data. */
static void flip(uint64_t off)
{
	uint8_t byte;
	int dir_fd, fd;

	cr_assert_eq(support_images(support_path("c"), 0, &dir_fd), 1);
	fd = openat(dir_fd, "data", O_RDWR | O_CLOEXEC);
	cr_assert_eq(pread(fd, &byte, 1, (off_t)off), 1);
	byte ^= 1;
	cr_assert_eq(pwrite(fd, &byte, 1, (off_t)off), 1);
	close(fd);
	close(dir_fd);
}

struct finding {
	unsigned chunks_n, images_n;
	uint64_t off;
};

static void note(void *ctx, const char *file, bool is_chunk, uint64_t off, uint64_t len_bytes)
{
	struct finding *finding = ctx;

	cr_assert_not_null(strstr(file, "images/"));
	finding->chunks_n += is_chunk;
	finding->images_n += !is_chunk;
	finding->off = off;
	cr_assert_eq(len_bytes, is_chunk ? CHUNK : 0);
}

static struct ds_check_result check_cache(struct ds_cache *cache, struct finding *finding)
{
	struct ds_check_options options = {.finding = note, .ctx = finding, .wait_ms = 100};
	struct ds_check_result result;

	*finding = (struct finding){0};
	cr_assert_eq(ds_cache_check(cache, &options, &result), 0);
	cr_assert_eq(result.findings_n, finding->chunks_n + finding->images_n);
	return result;
}

static int add(void *ctx, const struct ds_survey_image *image)
{
	*(struct ds_survey_image *)ctx = *image;
	return 0;
}

Test(survey, an_image_is_what_it_was_made_as)
{
	struct ds_cache *cache = open_cache();
	struct ds_survey_image found = {0};
	struct support_pack pack;
	struct ds_image *image;

	support_pack_init(&pack, 7, SLOTS, CHUNK, true);
	pack.layout.kind = DS_IMAGE_FILE;
	image = support_image(cache, &pack);
	for (uint32_t i = 0; i < 5; i++)
		support_fill(image, &pack, i);
	cr_assert_eq(ds_cache_survey(cache, NULL, add, &found), 0);
	cr_assert(found.has_kind && found.kind == DS_IMAGE_FILE);
	cr_assert_eq(found.chunks_n, 5);
	cr_assert_eq(found.present_bytes, 5 * CHUNK);
	cr_assert_eq(found.trusted_bytes, 5 * CHUNK);
	cr_assert_eq(found.allocated_bytes, support_allocated(support_path("c")));
	cr_assert(found.is_in_use && !found.is_handed_out && !found.is_damaged);
	ds_image_unref(image);
	ds_cache_unref(cache);
	/* In another boot nothing of it was checked. */
	cache = support_open(support_path("c"), DS_MIB(64), 2);
	cr_assert_eq(ds_cache_survey(cache, NULL, add, &found), 0);
	cr_assert_eq(found.present_bytes, 5 * CHUNK);
	cr_assert_eq(found.trusted_bytes, 0);
	cr_assert(!found.is_in_use);
	ds_cache_unref(cache);
	support_pack_release(&pack);
}

Test(survey, one_flipped_bit_costs_one_chunk)
{
	struct ds_cache *cache = open_cache();
	struct ds_check_result result;
	struct support_pack pack;
	struct finding finding;
	struct ds_image *image;

	fill(cache, &pack, 7);
	ds_cache_unref(cache);
	flip(3 * CHUNK + 100);
	cache = open_cache();
	result = check_cache(cache, &finding);
	cr_assert_eq(result.chunks_n, SLOTS);
	cr_assert_eq(finding.chunks_n, 1);
	cr_assert_eq(finding.off, 3 * CHUNK);
	cr_assert_eq(check_cache(cache, &finding).findings_n, 0);
	cr_assert_eq(count(cache, &pack), SLOTS - 1);
	/* And it can be brought again. */
	image = support_image(cache, &pack);
	cr_assert_eq(support_fill(image, &pack, 3), 0);
	ds_image_unref(image);
	cr_assert_eq(count(cache, &pack), SLOTS);
	ds_cache_unref(cache);
	support_pack_release(&pack);
}

/* ---- what lies between the chunks of a file: INV-3 */

/* Even slots are chunks, odd ones stand for zeros. */
static void fill_even(struct support_pack *pack, bool hand_out)
{
	struct ds_cache *cache = open_cache();
	struct ds_image_backing backing;
	struct ds_image *image;
	int fd, hold_fd;

	support_pack_init(pack, 7, SLOTS, CHUNK, true);
	pack->layout.kind = DS_IMAGE_FILE;
	image = support_image(cache, pack);
	for (uint32_t i = 0; i < SLOTS; i += 2)
		cr_assert_eq(support_fill(image, pack, i), 0);
	if (hand_out) {
		cr_assert_eq(ds_image_backing_begin(image, true, &backing), 0);
		for (uint32_t i = 1; i < SLOTS; i += 2)
			cr_assert_eq(ds_image_backing_add_zeros(&backing, i, pack->slots[i].raw_off,
								CHUNK),
				     0);
		cr_assert_eq(ds_image_backing_take(&backing, &fd, &hold_fd), 0);
		ds_image_backing_end(&backing);
		close(fd);
		close(hold_fd);
	}
	ds_image_unref(image);
	ds_cache_unref(cache);
}

static uint8_t byte_at(uint64_t off)
{
	int fd = support_data(support_path("c"), O_RDONLY);
	uint8_t byte;

	cr_assert_eq(pread(fd, &byte, 1, (off_t)off), 1);
	close(fd);
	return byte;
}

static void note_stray(void *ctx, const char *file, bool is_chunk, uint64_t off, uint64_t len_bytes)
{
	struct finding *finding = ctx;

	(void)file;
	cr_assert(is_chunk && len_bytes > 0 && len_bytes <= CHUNK);
	finding->chunks_n++;
	finding->off = off;
}

static unsigned check_stray(struct ds_cache *cache, uint64_t *ret_off)
{
	struct finding finding = {0};
	struct ds_check_options options = {.finding = note_stray, .ctx = &finding, .wait_ms = 100};
	struct ds_check_result result;

	cr_assert_eq(ds_cache_check(cache, &options, &result), 0);
	*ret_off = finding.off;
	return finding.chunks_n;
}

Test(survey, what_is_not_zeros_in_a_hole_of_a_file_goes)
{
	static const uint64_t at[] = {CHUNK, 8 * CHUNK - 1, SLOTS * CHUNK - 1};
	struct support_pack pack;
	struct ds_cache *cache;
	uint64_t off;

	fill_even(&pack, false);
	for (size_t i = 0; i < DS_ARRAY_SIZE(at); i++) {
		flip(at[i]);
		cache = open_cache();
		cr_assert_eq(check_stray(cache, &off), 1);
		cr_assert_eq(off, at[i]);
		cr_assert_eq(byte_at(at[i]), 0);
		cr_assert_eq(check_stray(cache, &off), 0);
		cr_assert_eq(count(cache, &pack), SLOTS / 2);
		ds_cache_unref(cache);
	}
	/* A chunk that is dropped leaves nothing either. */
	flip(2 * CHUNK);
	cache = open_cache();
	cr_assert_eq(check_stray(cache, &off), 1);
	cr_assert_eq(check_stray(cache, &off), 0);
	cr_assert_eq(count(cache, &pack), SLOTS / 2 - 1);
	ds_cache_unref(cache);
	support_pack_release(&pack);
}

Test(survey, with_it_goes_a_file_that_the_kernel_has)
{
	struct support_pack pack;
	struct ds_cache *cache;
	uint64_t off;

	fill_even(&pack, true);
	cache = open_cache();
	cr_assert_eq(check_stray(cache, &off), 0);
	ds_cache_unref(cache);
	flip(5 * CHUNK + 7);
	cache = open_cache();
	cr_assert_eq(check_stray(cache, &off), 1);
	cr_assert_eq(off, 5 * CHUNK + 7);
	cr_assert_eq(support_images(support_path("c"), 0, NULL), 0);
	ds_cache_unref(cache);
	support_pack_release(&pack);
}

Test(survey, a_chunk_that_is_being_filled_is_not_stray)
{
	struct ds_cache *user, *cache;
	struct support_pack pack;
	struct ds_image *image;
	uint64_t off;

	fill_even(&pack, false);
	user = open_cache();
	image = support_image(user, &pack);
	cr_assert_eq(support_count(image, &pack, true), SLOTS / 2);
	cr_assert_eq(ds_map_claim(atomic_load(&image->disk), &pack.slots[7], 1), 0);
	flip(7 * CHUNK + 100);
	cache = open_cache();
	cr_assert_eq(check_stray(cache, &off), 0);
	cr_assert_eq(support_fill(image, &pack, 7), 0);
	cr_assert_eq(check_stray(cache, &off), 0);
	cr_assert_eq(support_count(image, &pack, false), SLOTS / 2 + 1);
	ds_image_unref(image);
	ds_cache_unref(user);
	ds_cache_unref(cache);
	support_pack_release(&pack);
}

/* The claim itself: what was flipped in the map must not keep the right chunk out. */
Test(survey, a_claim_that_is_wrong_does_not_stay_in_the_way)
{
	struct ds_cache *cache = open_cache();
	struct support_pack pack;
	struct finding finding;
	struct ds_image *image;
	uint8_t byte = 0xa5;
	int dir_fd, fd;

	fill(cache, &pack, 7);
	ds_cache_unref(cache);
	support_images(support_path("c"), 0, &dir_fd);
	fd = openat(dir_fd, "map", O_RDWR | O_CLOEXEC);
	cr_assert_eq(pwrite(fd, &byte, 1, (off_t)ds_map_slot_off(SLOTS, 5)), 1);
	close(fd);
	close(dir_fd);
	cache = open_cache();
	check_cache(cache, &finding);
	cr_assert_eq(finding.chunks_n, 1);
	image = support_image(cache, &pack);
	cr_assert_eq(support_fill(image, &pack, 5), 0);
	cr_assert_eq(support_count(image, &pack, false), SLOTS);
	ds_image_unref(image);
	ds_cache_unref(cache);
	support_pack_release(&pack);
}

/* INV-2: a client's mapping shows what it showed. Without damage it also stays in the cache as long. */
Test(survey, what_was_handed_out_is_unlinked_but_while_it_is_mapped)
{
	struct ds_prune_options options = {.to_bytes = DS_KIB(512)};
	uint8_t *want = malloc(CHUNK);
	struct ds_prune_result result;
	const uint8_t *mapping;
	struct support_pack pack;
	struct finding finding;
	struct ds_cache *cache;
	struct ds_image *image;
	int dir_fd, fd;

	for (int by_check = 0; by_check < 2; by_check++) {
		cache = open_cache();
		fill(cache, &pack, 7);
		image = support_image(cache, &pack);
		support_hand_out(image, &pack);
		ds_image_unref(image);
		ds_cache_unref(cache);
		support_images(support_path("c"), 0, &dir_fd);
		fd = openat(dir_fd, "data", O_RDONLY | O_CLOEXEC);
		mapping = mmap(NULL, pack.layout.size_bytes, PROT_READ, MAP_SHARED, fd, 0);
		cr_assert_neq(mapping, MAP_FAILED);
		cache = open_cache();
		if (by_check) {
			flip(3 * CHUNK + 100);
			check_cache(cache, &finding);
			cr_assert_eq(finding.chunks_n, 1);
		} else {
			cr_assert_eq(ds_cache_prune(cache, &options, &result), 0);
			cr_assert_eq(result.freed_bytes, 0);
		}
		cr_assert_eq(support_images(support_path("c"), 0, NULL), !by_check);
		for (uint32_t i = 0; i < SLOTS; i++) {
			support_bytes(&pack, i, want);
			if (!by_check || i != 3)
				cr_assert_arr_eq(want, mapping + pack.slots[i].raw_off, CHUNK);
		}
		munmap((void *)(uintptr_t)mapping, pack.layout.size_bytes);
		close(fd);
		close(dir_fd);
		if (!by_check) {
			cr_assert_eq(ds_cache_prune(cache, &options, &result), 0);
			cr_assert_gt(result.freed_bytes, SLOTS * CHUNK);
			cr_assert_eq(support_images(support_path("c"), 0, NULL), 0);
		}
		ds_cache_unref(cache);
		support_pack_release(&pack);
	}
	free(want);
}

/* The two caches are as two processes: their locks are of descriptions. */
Test(survey, prune_leaves_what_others_have_open)
{
	struct ds_cache *user = open_cache(), *cache;
	struct ds_prune_options options = {0};
	struct support_pack used, other;
	struct ds_prune_result result;
	struct ds_image *image;

	fill(user, &other, 8);
	ds_cache_unref(user);
	user = open_cache();
	fill(user, &used, 7);
	image = support_image(user, &used);
	cr_assert_eq(support_count(image, &used, false), SLOTS);
	cache = open_cache();
	cr_assert_eq(ds_cache_prune(cache, &options, &result), 0);
	cr_assert_eq(result.in_use_n, 1);
	cr_assert_eq(result.evictions_n, 1);
	cr_assert_eq(result.used_bytes, support_allocated(support_path("c")));
	cr_assert_eq(support_count(image, &used, false), SLOTS);
	/* Its user lets go of it when room is wanted, and it is not read. */
	options.wait_ms = 20000;
	cr_assert_eq(ds_cache_prune(cache, &options, &result), 0);
	cr_assert_eq(result.in_use_n, 0);
	cr_assert_eq(support_allocated(support_path("c")), 0);
	cr_assert_eq(support_count(image, &used, false), 0);
	ds_image_unref(image);
	ds_cache_unref(user);
	ds_cache_unref(cache);
	support_pack_release(&used);
	support_pack_release(&other);
}

struct coming {
	struct support_pack pack;
	_Atomic bool stop, has_given_up;
};

/* Uses an image and lets go of it, time and again: as a mount does that is read. */
static void *coming_thread(void *arg)
{
	uint64_t limit_ns = ds_deadline_in_ms(20000);
	struct coming *coming = arg;

	while (!coming->stop && !coming->has_given_up) {
		struct ds_cache *cache = open_cache();
		struct ds_image *image = support_image(cache, &coming->pack);

		/* Its own cache lets go of it too when it hears that room is wanted. */
		for (unsigned i = 0; i < 25; i++) {
			if (!support_read(image, &coming->pack, 0, true))
				support_fill(image, &coming->pack, 0);
			ds_sleep_ms(10);
		}
		ds_image_unref(image);
		ds_cache_unref(cache);
		ds_sleep_ms(250);
		coming->has_given_up = ds_mono_ns() > limit_ns;
	}
	return NULL;
}

Test(survey, prune_ends_beside_who_opens_images_all_the_while)
{
	struct ds_prune_options options = {.wait_ms = 1500};
	struct ds_cache *cache = open_cache();
	struct ds_prune_result result;
	struct coming coming = {0};
	struct support_pack held;
	pthread_t thread;
	int dir_fd, fd;

	fill(cache, &held, 7);
	ds_cache_unref(cache);
	/* One is in use from the beginning to the end. */
	cr_assert_eq(support_images(support_path("c"), 0, &dir_fd), 1);
	fd = openat(dir_fd, "map", O_RDWR | O_CLOEXEC);
	cr_assert_eq(ds_map_lock(fd, F_RDLCK, DS_MAP_LOCK_USE), 0);
	support_pack_init(&coming.pack, 8, SLOTS, CHUNK, true);
	pthread_create(&thread, NULL, coming_thread, &coming);
	cache = open_cache();
	cr_assert_eq(ds_cache_prune(cache, &options, &result), 0);
	cr_assert(!coming.has_given_up);
	cr_assert_geq(result.in_use_n, 1);
	coming.stop = true;
	pthread_join(thread, NULL);
	close(fd);
	close(dir_fd);
	ds_cache_unref(cache);
	support_pack_release(&held);
	support_pack_release(&coming.pack);
}

Test(survey, prune_by_age_and_by_size_takes_the_oldest)
{
	struct ds_cache *cache = open_cache();
	struct ds_prune_options options = {0};
	struct ds_prune_result result;
	struct support_pack old, young;
	uint64_t size;

	fill(cache, &old, 7);
	ds_cache_unref(cache);
	ds_sleep_ms(300);
	options.before_ms = ds_cache_now_ms();
	ds_sleep_ms(300);
	cache = open_cache();
	fill(cache, &young, 8);
	ds_cache_unref(cache);
	size = support_allocated(support_path("c"));
	cache = open_cache();
	cr_assert_eq(ds_cache_prune(cache, &options, &result), 0);
	cr_assert_eq(result.evictions_n, 1);
	cr_assert_eq(count(cache, &young), SLOTS);
	cr_assert_eq(count(cache, &old), 0);
	cr_assert_eq(ds_cache_prune(cache, &options, &result), 0);
	cr_assert_eq(result.freed_bytes, 0);
	ds_cache_unref(cache);
	cache = open_cache();
	options = (struct ds_prune_options){.to_bytes = size / 8 * 3};
	cr_assert_eq(ds_cache_prune(cache, &options, &result), 0);
	cr_assert_leq(support_allocated(support_path("c")), size / 8 * 3);
	cr_assert_gt(count(cache, &young), 2);
	ds_cache_unref(cache);
	support_pack_release(&old);
	support_pack_release(&young);
}

/* ---- while others work */

#define CROWD 8u

struct crowd {
	struct support_pack packs[CROWD];
	_Atomic bool stop;
	_Atomic unsigned fills_n;
};

static void *crowd_thread(void *arg)
{
	struct ds_cache *cache = support_open(support_path("c"), DS_MIB(3), 1);
	struct crowd *crowd = arg;
	struct ds_prng prng = {.state = 5};

	while (!crowd->stop) {
		const struct support_pack *pack = &crowd->packs[ds_prng_below(&prng, CROWD)];
		struct ds_image *image = support_image(cache, pack);
		uint32_t slot = (uint32_t)ds_prng_below(&prng, SLOTS);

		if (!support_read(image, pack, slot, true))
			crowd->fills_n += support_fill(image, pack, slot) == 0;
		ds_image_unref(image);
	}
	ds_cache_unref(cache);
	return NULL;
}

Test(survey, a_check_beside_fills_and_eviction_finds_nothing)
{
	struct ds_prune_options options = {.to_bytes = DS_MIB(1)};
	struct ds_cache *cache = open_cache();
	struct ds_prune_result pruned;
	struct crowd crowd = {0};
	struct finding finding;
	pthread_t thread;
	uint64_t bytes = 0;

	for (uint64_t i = 0; i < CROWD; i++) {
		support_pack_init(&crowd.packs[i], 100 + i, SLOTS, CHUNK, true);
		crowd.packs[i].layout.kind = i % 2 ? DS_IMAGE_FILE : DS_IMAGE_PACK;
	}
	pthread_create(&thread, NULL, crowd_thread, &crowd);
	for (uint64_t deadline = ds_deadline_in_ms(1500);
	     ds_mono_ns() < deadline || bytes < DS_MIB(4) || crowd.fills_n < 100;) {
		struct ds_check_result result = check_cache(cache, &finding);

		cr_assert_eq(result.findings_n, 0);
		bytes += result.bytes;
		cr_assert_eq(ds_cache_prune(cache, &options, &pruned), 0);
	}
	crowd.stop = true;
	pthread_join(thread, NULL);
	ds_cache_unref(cache);
	for (size_t i = 0; i < CROWD; i++)
		support_pack_release(&crowd.packs[i]);
}
