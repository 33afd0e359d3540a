/*
 * Files for the kernel: what an image is known by, who may take it away meanwhile, and what keeps it. What is in them: image_test.c.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include "cache/cache_internal.h"
#include "cache_support.h"
#include "util/clock.h"

TestSuite(backing, .fini = support_clean, .timeout = 60);

#define SLOTS	 64
#define LEN	 DS_KIB(16)
#define CAPACITY DS_MIB(64)

struct bench {
	struct ds_cache *cache;
	struct ds_image *image;
	struct support_pack pack;
	struct ds_image_backing backing;
	int data_fd, hold_fd;
};

static void bench_init(struct bench *bench)
{
	*bench = (struct bench){.cache = support_open(support_path("c"), CAPACITY, 1)};
	support_pack_init(&bench->pack, 7, SLOTS, LEN, true);
	bench->image = support_image(bench->cache, &bench->pack);
	cr_assert_eq(support_fill_all(bench->image, &bench->pack), SLOTS);
}

static void bench_release(struct bench *bench)
{
	ds_image_unref(bench->image);
	ds_cache_unref(bench->cache);
	support_pack_release(&bench->pack);
}

static int begin(struct bench *bench)
{
	return ds_image_backing_begin(bench->image, true, &bench->backing);
}

static int take(struct bench *bench)
{
	return ds_image_backing_take(&bench->backing, &bench->data_fd, &bench->hold_fd);
}

static void give_back(struct bench *bench)
{
	close(bench->data_fd);
	close(bench->hold_fd);
}

/* All that is not in use goes. */
static int evict_all(struct bench *bench)
{
	return ds_cache_make_room(bench->cache, CAPACITY);
}

static uint64_t number_of(struct bench *bench)
{
	uint64_t number;

	cr_assert_eq(begin(bench), 0);
	number = bench->backing.number;
	ds_image_backing_end(&bench->backing);
	return number;
}

/* Also where it gets the inodes that it had. */
Test(backing, an_image_that_comes_back_has_another_number)
{
	struct bench bench;
	uint64_t first, second;

	bench_init(&bench);
	first = number_of(&bench);
	cr_assert_neq(first, 0);
	cr_assert_eq(number_of(&bench), first);
	cr_assert_eq(evict_all(&bench), 0);
	cr_assert_eq(begin(&bench), -ENOENT);
	cr_assert_eq(support_fill(bench.image, &bench.pack, 3), 0);
	second = number_of(&bench);
	cr_assert_neq(second, 0);
	cr_assert_neq(second, first);
	bench_release(&bench);
}

/* What was trusted is not any more; but who has it open goes on with the same one. */
Test(backing, an_image_of_another_boot_has_another_number)
{
	struct bench bench;
	uint64_t first;

	bench_init(&bench);
	first = number_of(&bench);
	ds_image_unref(bench.image);
	ds_cache_unref(bench.cache);
	bench.cache = support_open(support_path("c"), CAPACITY, 1);
	bench.image = support_image(bench.cache, &bench.pack);
	cr_assert_eq(number_of(&bench), first);
	ds_image_unref(bench.image);
	ds_cache_unref(bench.cache);
	bench.cache = support_open(support_path("c"), CAPACITY, 2);
	bench.image = support_image(bench.cache, &bench.pack);
	cr_assert_neq(number_of(&bench), first);
	bench_release(&bench);
}

static void *run_evict(void *bench)
{
	return (void *)(intptr_t)evict_all(bench);
}

/* Who takes it away has the image's mutex, and waits for nobody who looks at it. */
Test(backing, it_may_be_taken_away_while_it_is_looked_at)
{
	struct bench bench;
	pthread_t thread;
	void *result;

	bench_init(&bench);
	cr_assert_eq(begin(&bench), 0);
	cr_assert_eq(ds_image_backing_has(&bench.backing, &bench.pack.slots[0], true), 0);
	cr_assert_eq(pthread_create(&thread, NULL, run_evict, &bench), 0);
	cr_assert_eq(pthread_join(thread, &result), 0);
	cr_assert_eq((int)(intptr_t)result, 0);
	for (uint32_t i = 1; i < SLOTS; i++)
		ds_image_backing_has(&bench.backing, &bench.pack.slots[i], i % 2);
	cr_assert_eq(ds_image_backing_add_zeros(&bench.backing, 5, bench.pack.slots[5].raw_off,
						LEN),
		     -ESTALE);
	cr_assert_eq(take(&bench), -ESTALE);
	ds_image_backing_end(&bench.backing);
	/* Nor is one that was made anew in between taken for it. */
	cr_assert_eq(support_fill_all(bench.image, &bench.pack), SLOTS);
	cr_assert_eq(begin(&bench), 0);
	cr_assert_eq(evict_all(&bench), 0);
	cr_assert_eq(support_fill(bench.image, &bench.pack, 0), 0);
	cr_assert_eq(take(&bench), -ESTALE);
	ds_image_backing_end(&bench.backing);
	bench_release(&bench);
}

Test(backing, T26_what_is_held_is_not_evicted)
{
	struct bench bench;

	bench_init(&bench);
	cr_assert_eq(begin(&bench), 0);
	cr_assert_eq(take(&bench), 0);
	ds_image_backing_end(&bench.backing);
	cr_assert_geq(bench.hold_fd, 0);
	/* The image is detached by this; the hold is not. */
	cr_assert_eq(evict_all(&bench), -ENOSPC);
	cr_assert_eq(support_count(bench.image, &bench.pack, false), SLOTS);
	cr_assert_eq(begin(&bench), 0);
	ds_image_backing_end(&bench.backing);
	give_back(&bench);
	/* After a failure nobody looks for room for a moment. */
	while (evict_all(&bench) == -ENOSPC)
		ds_sleep_ms(10);
	cr_assert_eq(begin(&bench), -ENOENT);
	bench_release(&bench);
}

/* As FUSE's threads ask. */
Test(backing, who_must_not_wait_opens_nothing)
{
	struct bench bench;

	bench_init(&bench);
	cr_assert_eq(ds_image_backing_begin(bench.image, false, &bench.backing), 0);
	cr_assert_eq(ds_image_backing_has(&bench.backing, &bench.pack.slots[9], false), 0);
	cr_assert_eq(take(&bench), 0);
	ds_image_backing_end(&bench.backing);
	give_back(&bench);
	ds_image_detach_some(bench.cache);
	cr_assert_null(atomic_load(&bench.image->disk));
	cr_assert_eq(ds_image_backing_begin(bench.image, false, &bench.backing), -EAGAIN);
	cr_assert_null(atomic_load(&bench.image->disk));
	cr_assert_eq(begin(&bench), 0);
	ds_image_backing_end(&bench.backing);
	bench_release(&bench);
}
