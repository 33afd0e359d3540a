/*
 * Filling several slots together does what filling them one by one does: the same histories against two caches, with
 * other people's claims and locks in the way.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cache/cache_internal.h"
#include "cache_support.h"
#include "util/clock.h"
#include "util/random.h"

TestSuite(fill, .fini = support_clean, .timeout = 240);

#define SLOTS 200u

/* The bytes of all slots, back to back. */
static uint8_t *all_bytes(const struct support_pack *pack)
{
	uint8_t *data = malloc(pack->layout.size_bytes);

	for (uint32_t i = 0; i < pack->layout.slots_n; i++)
		support_bytes(pack, i, data + pack->slots[i].raw_off);
	return data;
}

struct run {
	struct ds_image_fill fills[DS_IMAGE_RUN_MAX];
	struct ds_image_lock locks[DS_IMAGE_RUN_MAX];
	uint8_t *copies[DS_IMAGE_RUN_MAX];
	size_t n;
};

/* Slots that ascend, mostly side by side; some of their bytes lie elsewhere in memory, some of their locks are held. */
static void make_run(struct run *run, struct ds_image *image, const struct support_pack *pack,
		     const uint8_t *data, struct ds_prng *prng)
{
	uint32_t slot = (uint32_t)ds_prng_below(prng, SLOTS);
	size_t most = 1 + ds_prng_below(prng, DS_IMAGE_RUN_MAX);

	memset(run, 0, sizeof(*run));
	while (slot < SLOTS && run->n < most) {
		struct ds_image_fill *fill = &run->fills[run->n];
		uint32_t len = pack->slots[slot].raw_len_bytes;

		*fill = (struct ds_image_fill){.slot = pack->slots[slot],
					       .raw = data + pack->slots[slot].raw_off,
					       .lock = &run->locks[run->n]};
		if (ds_prng_below(prng, 8) == 0) {
			run->copies[run->n] = malloc(len);
			memcpy(run->copies[run->n], fill->raw, len);
			fill->raw = run->copies[run->n];
		}
		if (ds_prng_below(prng, 2) && !ds_image_has(image, &fill->slot))
			ds_image_lock_slot(image, &fill->slot, fill->lock);
		run->n++;
		slot += ds_prng_below(prng, 16) ? 1 : 2;
	}
}

static void end_run(struct run *run)
{
	for (size_t i = 0; i < run->n; i++) {
		ds_image_unlock_slot(&run->locks[i]);
		free(run->copies[i]);
	}
}

/* Claims of somebody who takes the chunks of the pack for others, and reaches into neighbours. */
static void lie(struct ds_image *image, const struct support_pack *pack, struct ds_prng *prng,
		uint8_t *data)
{
	struct ds_image_slot slot = pack->slots[1 + ds_prng_below(prng, SLOTS - 2)];

	slot.raw_len_bytes += (uint32_t)ds_prng_below(prng, 3);
	slot.raw_off += ds_prng_below(prng, 3) - 1;
	slot.digest.bytes[0] ^= 1;
	ds_image_fill(image, &slot, data);
}

Test(fill, together_is_as_one_by_one)
{
	unsigned refused_n = 0, filled_n = 0, busy_n = 0;

	for (uint64_t seed = 1; seed <= 60; seed++) {
		struct ds_prng prng = {.state = seed};
		struct ds_cache *a, *b;
		struct ds_image *together, *single;
		struct support_pack pack;
		struct run run;
		uint8_t *data;

		support_pack_init(&pack, seed, SLOTS, 3000, false);
		data = all_bytes(&pack);
		a = support_open(support_path("a"), DS_MIB(256), 1);
		b = support_open(support_path("b"), DS_MIB(256), 1);
		together = support_image(a, &pack);
		single = support_image(b, &pack);
		for (uint64_t i = ds_prng_below(&prng, 6); i > 0; i--) {
			struct ds_prng same = prng;

			lie(together, &pack, &prng, data);
			lie(single, &pack, &same, data);
		}
		for (unsigned round = 0; round < 8; round++) {
			struct ds_image_lock busy = {0};
			uint32_t busy_slot = (uint32_t)ds_prng_below(&prng, SLOTS);

			/* Somebody else is at one of them. */
			if (!ds_image_has(together, &pack.slots[busy_slot]))
				ds_image_lock_slot(together, &pack.slots[busy_slot], &busy);
			make_run(&run, together, &pack, data, &prng);
			ds_image_fill_run(together, run.fills, run.n);
			for (size_t i = 0; i < run.n; i++) {
				int r = run.fills[i].result;

				if (busy.disk && run.fills[i].slot.slot == busy_slot) {
					cr_assert_eq(r, -EBUSY);
					busy_n++;
					continue;
				}
				cr_assert_eq(r,
					     ds_image_fill(single, &run.fills[i].slot,
							   run.fills[i].raw),
					     "seed %d, slot %u: %d", (int)seed,
					     run.fills[i].slot.slot, r);
				refused_n += r == -DS_E_MISMATCH;
				filled_n += r == 0;
			}
			end_run(&run);
			ds_image_unlock_slot(&busy);
		}
		/* What is said to be there is, in another process's eyes too, and the rest can be filled. */
		for (uint32_t i = 0; i < SLOTS; i++) {
			cr_assert_eq(support_read(together, &pack, i, false),
				     support_read(single, &pack, i, false));
			cr_assert_eq(support_fill(together, &pack, i),
				     support_fill(single, &pack, i));
		}
		ds_image_unref(together);
		ds_image_unref(single);
		ds_cache_unref(a);
		ds_cache_unref(b);
		a = support_open(support_path("a"), DS_MIB(256), 2);
		b = support_open(support_path("b"), DS_MIB(256), 2);
		together = support_image(a, &pack);
		single = support_image(b, &pack);
		for (uint32_t i = 0; i < SLOTS; i++)
			cr_assert_eq(support_read(together, &pack, i, true),
				     support_read(single, &pack, i, true));
		ds_image_unref(together);
		ds_image_unref(single);
		ds_cache_unref(a);
		ds_cache_unref(b);
		support_pack_release(&pack);
		free(data);
	}
	cr_log_info("%u filled, %u refused, %u busy", filled_n, refused_n, busy_n);
	cr_assert_gt(refused_n, 100u);
	cr_assert_gt(busy_n, 5u);
	cr_assert_gt(filled_n, 5000u);
}

/* Room for some of them only: those get it. */
Test(fill, what_does_not_fit_together_is_tried_by_itself)
{
	struct ds_cache *cache = support_open(support_path("c"), DS_MIB(1), 1);
	struct support_pack pack;
	struct ds_image *image;
	struct run run = {.n = DS_IMAGE_RUN_MAX};
	unsigned filled_n = 0;
	uint8_t *data;

	support_pack_init(&pack, 3, DS_IMAGE_RUN_MAX, DS_KIB(32), true);
	pack.layout.yields = true;
	data = all_bytes(&pack);
	image = support_image(cache, &pack);
	for (uint32_t i = 0; i < run.n; i++)
		run.fills[i] = (struct ds_image_fill){.slot = pack.slots[i],
						      .raw = data + pack.slots[i].raw_off,
						      .lock = &run.locks[i]};
	ds_image_fill_run(image, run.fills, run.n);
	for (uint32_t i = 0; i < run.n; i++) {
		cr_assert(run.fills[i].result == 0 || run.fills[i].result == -ENOSPC);
		cr_assert_eq(support_read(image, &pack, i, false), run.fills[i].result == 0,
			     "slot %u of %zu, after %u: %s", i, run.n, filled_n,
			     ds_strerror(run.fills[i].result));
		filled_n += run.fills[i].result == 0;
	}
	cr_assert_gt(filled_n, 16u);
	cr_assert_lt(filled_n, 33u);
	end_run(&run);
	ds_image_unref(image);
	ds_cache_unref(cache);
	support_pack_release(&pack);
	free(data);
}

Test(fill, a_lock_on_the_claims_that_is_never_let_go_of_is_waited_for_once)
{
	struct ds_cache *cache = support_open(support_path("c"), DS_MIB(64), 1);
	struct support_pack pack;
	struct ds_image *image;
	uint64_t before_ns, limit_ns;
	int dir_fd, map_fd;

	support_pack_init(&pack, 7, 30, 5000, true);
	image = support_image(cache, &pack);
	cr_assert_eq(support_fill(image, &pack, 0), 0);
	/* As held by somebody who was stopped while he claimed slots. */
	cr_assert_eq(support_images(support_path("c"), 0, &dir_fd), 1);
	map_fd = openat(dir_fd, "map", O_RDWR | O_CLOEXEC);
	cr_assert_eq(ds_map_lock(map_fd, F_WRLCK, DS_MAP_LOCK_CLAIM), 0);
	before_ns = ds_mono_ns();
	for (uint32_t i = 1; i <= 20; i++)
		cr_assert_eq(support_fill(image, &pack, i), -EAGAIN);
	cr_assert_lt(ds_mono_ns() - before_ns, 4 * (uint64_t)DS_NS_PER_S);
	/* Nor is it waited for later, while it is held. */
	before_ns = ds_mono_ns();
	limit_ns = ds_deadline_in_ms(1500);
	while (ds_mono_ns() < limit_ns) {
		cr_assert_eq(support_fill(image, &pack, 21), -EAGAIN);
		cr_assert_lt(ds_mono_ns() - before_ns, 700 * (uint64_t)DS_NS_PER_MS);
		ds_sleep_ms(50);
		before_ns = ds_mono_ns();
	}
	/* And when it is let go of, all is as before, a second later at most. */
	cr_assert_eq(ds_map_lock(map_fd, F_UNLCK, DS_MAP_LOCK_CLAIM), 0);
	limit_ns = ds_deadline_in_ms(5000);
	while (support_fill(image, &pack, 22) != 0 && ds_mono_ns() < limit_ns)
		ds_sleep_ms(50);
	cr_assert_eq(support_count(image, &pack, false), 2);
	cr_assert_eq(support_fill_all(image, &pack), 30);
	cr_assert_eq(support_count(image, &pack, false), 30);
	close(map_fd);
	close(dir_fd);
	ds_image_unref(image);
	ds_cache_unref(cache);
	support_pack_release(&pack);
}
