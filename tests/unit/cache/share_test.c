/*
 * Random differential test of a cache directory that many processes share: each fills, reads, evicts, closes and opens again,
 * some lie, one is killed now and then; every byte that anybody reads is compared with what it must be.
 */
#include <criterion/criterion.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cache_support.h"
#include "util/clock.h"
#include "util/random.h"

TestSuite(share, .fini = support_clean, .timeout = 120);

#define PROCESSES 8
#define THREADS	  2
#define PACKS	  28
#define AT_ONCE	  2 /* that a process works on; who has an image open keeps others from evicting it */
#define LIES	  2
#define SLOTS	  50

struct counts {
	_Atomic uint64_t hits_n, fills_n, evictions_n;
};

struct party {
	struct support_pack packs[PACKS + LIES];
	struct counts *counts;
	char dir[320];
	uint64_t seed, until_ns, first;
	uint64_t capacity_bytes;
	struct ds_cache *cache;
};

static void *party_thread(void *arg)
{
	struct party *party = arg;
	struct ds_prng prng = {.state = party->seed ^ (uint64_t)pthread_self()};

	while (ds_mono_ns() < party->until_ns) {
		const struct support_pack *pack = &party->packs[ds_prng_below(&prng, PACKS + LIES)];
		struct ds_image *image = support_image(party->cache, pack);

		for (uint64_t n = ds_prng_below(&prng, 30); n > 0; n--) {
			uint32_t slot = (uint32_t)ds_prng_below(&prng, SLOTS);

			if (support_read(image, pack, slot, true))
				party->counts->hits_n++;
			else if (support_fill(image, pack, slot) == 0)
				party->counts->fills_n++;
		}
		ds_image_unref(image);
		if (ds_prng_below(&prng, 20) == 0)
			ds_cache_make_room(party->cache, DS_KIB(100));
	}
	return NULL;
}

static int attend(void *ctx)
{
	struct party *party = ctx;
	struct ds_prng prng = {.state = party->seed};
	uint64_t until = party->until_ns;

	/* Again and again: opening is what most can go wrong with. */
	while (ds_mono_ns() < until) {
		struct ds_cache_stats stats;
		pthread_t threads[THREADS];

		party->until_ns = DS_MIN(until, ds_deadline_in_ms(150));
		party->first = ds_prng_next(&prng) % 1000;
		party->cache = support_open(party->dir, party->capacity_bytes, 1);
		for (size_t i = 0; i < THREADS; i++)
			if (pthread_create(&threads[i], NULL, party_thread, party) != 0)
				return 1;
		for (size_t i = 0; i < THREADS; i++)
			pthread_join(threads[i], NULL);
		ds_cache_get_stats(party->cache, &stats);
		party->counts->evictions_n += stats.evictions_n;
		ds_cache_unref(party->cache);
	}
	return 0;
}

Test(share, F08_many_processes_in_one_directory_never_read_a_wrong_byte)
{
	uint64_t seed = ds_random_u64() % 1000000;
	struct ds_prng prng = {.state = seed};
	struct party party = {.seed = seed};
	int pids[PROCESSES], victim;
	struct ds_image *image;
	struct ds_cache *cache;
	unsigned left = 0;

	printf("seed %llu\n", (unsigned long long)seed);
	party.counts = mmap(NULL, sizeof(struct counts), PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (uint64_t i = 0; i < PACKS + LIES; i++) {
		support_pack_init(&party.packs[i], seed + i, SLOTS, 6000, true);
		if (i >= PACKS)
			party.packs[i].layout.name = party.packs[i - PACKS].layout.name;
	}
	for (uint32_t i = 1; i < SLOTS; i += 3)
		party.packs[PACKS + 1].slots[i].raw_off -= 200;
	strcpy(party.dir, support_path("c"));
	/* How much is evicted in a round depends on who holds what, and all of it on the machine: it goes on until enough was. */
	for (unsigned round = 0;
	     round < 10 && (party.counts->evictions_n <= 10 || party.counts->hits_n <= 1000 ||
			    party.counts->fills_n <= 100);
	     round++) {
		party.until_ns = ds_deadline_in_ms(4000);
		for (size_t i = 0; i < PROCESSES; i++) {
			party.seed = ds_prng_next(&prng);
			party.capacity_bytes = DS_MIB(4) + ds_prng_below(&prng, DS_MIB(2));
			pids[i] = support_fork(attend, &party);
		}
		for (int i = 0; i < 10; i++) {
			usleep(100000 + (useconds_t)ds_prng_below(&prng, 100000));
			if (ds_mono_ns() + DS_NS_PER_S > party.until_ns)
				break; /* a busy machine: nobody may end by himself before */
			victim = (int)ds_prng_below(&prng, PROCESSES);
			kill(pids[victim], SIGKILL);
			cr_assert_eq(support_wait(pids[victim]), 128 + SIGKILL);
			party.seed = ds_prng_next(&prng);
			pids[victim] = support_fork(attend, &party);
		}
		for (size_t i = 0; i < PROCESSES; i++)
			cr_assert_eq(support_wait(pids[i]), 0);
	}
	printf("%llu hits, %llu fills, %llu evictions\n", (unsigned long long)party.counts->hits_n,
	       (unsigned long long)party.counts->fills_n,
	       (unsigned long long)party.counts->evictions_n);
	cr_assert_gt(party.counts->hits_n, 1000);
	cr_assert_gt(party.counts->fills_n, 100);
	cr_assert_gt(party.counts->evictions_n, 10);
	/* Another boot finds only what was right. */
	for (uint8_t boot = 1; boot <= 2; boot++) {
		cache = support_open(party.dir, DS_MIB(64), boot);
		for (size_t i = 0; i < PACKS + LIES; i++) {
			image = support_image(cache, &party.packs[i]);
			left += support_count(image, &party.packs[i], true);
			ds_image_unref(image);
		}
		ds_cache_unref(cache);
	}
	cr_assert_gt(left, 0);
	for (size_t i = 0; i < PACKS + LIES; i++)
		support_pack_release(&party.packs[i]);
	munmap(party.counts, sizeof(struct counts));
}

Test(share, two_who_open_first_in_a_boot_both_get_it)
{
	/* All processes meet a cache of another boot at once. */
	struct party party = {.seed = 5, .capacity_bytes = DS_MIB(64)};
	int pids[PROCESSES];

	party.counts = mmap(NULL, sizeof(struct counts), PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	strcpy(party.dir, support_path("c"));
	for (uint64_t i = 0; i < PACKS + LIES; i++)
		support_pack_init(&party.packs[i], i, SLOTS, 6000, true);
	for (uint8_t round = 0; round < 5; round++) {
		struct ds_cache *cache = support_open(party.dir, DS_MIB(64), (uint8_t)(10 + round));

		for (size_t i = 0; i < PACKS + LIES; i++) {
			struct ds_image *image = support_image(cache, &party.packs[i]);

			support_fill_all(image, &party.packs[i]);
			cr_assert_eq(support_count(image, &party.packs[i], true), SLOTS);
			ds_image_unref(image);
		}
		ds_cache_unref(cache);
		party.until_ns = ds_deadline_in_ms(200);
		for (size_t i = 0; i < PROCESSES; i++)
			pids[i] = support_fork(attend, &party); /* boot 1 */
		for (size_t i = 0; i < PROCESSES; i++)
			cr_assert_eq(support_wait(pids[i]), 0);
		/* Nobody had to do without, or had to fill anew. */
		cr_assert_eq(party.counts->fills_n, 0);
	}
	cr_assert_gt(party.counts->hits_n, 0);
	for (size_t i = 0; i < PACKS + LIES; i++)
		support_pack_release(&party.packs[i]);
	munmap(party.counts, sizeof(struct counts));
}
