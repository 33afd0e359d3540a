#include <criterion/criterion.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "cache/fetch_internal.h"
#include "fetch_bench.h"
#include "fetch_support.h"
#include "util/clock.h"
#include "util/random.h"

TestSuite(fetch_share, .fini = support_clean, .timeout = 120);

struct shared {
	_Atomic uint64_t chunks_n, gets_n;
	_Atomic unsigned ready_n, go;
};

struct racer {
	struct shared *shared;
	const struct support_pack *pack;
	const struct stored_pack *stored;
	char store[320], cache[320];
	unsigned seed;
};

static int race(void *ctx)
{
	struct racer *racer = ctx;
	struct ds_fetcher_stats stats;
	struct ds_fetcher *fetcher;
	struct ds_store *store;
	struct ds_cache *cache;
	struct ds_image *image;
	uint32_t n = racer->pack->layout.slots_n;
	struct want *wants = calloc(n, sizeof(*wants));
	int failed = 0;

	if (ds_store_open(racer->store, NULL, false, &store, NULL) < 0)
		return 2;
	cache = support_open(racer->cache, DS_MIB(64), 1);
	image = support_image(cache, racer->pack);
	if (ds_fetcher_new(store, cache, NULL, &fetcher) < 0)
		return 2;
	racer->shared->ready_n++;
	while (!racer->shared->go)
		usleep(100);
	for (uint32_t i = 0; i < n; i++)
		want_start(&wants[i], fetcher, image, racer->pack, racer->stored,
			   (i + racer->seed * 13) % n, 30000);
	for (uint32_t i = 0; i < n; i++)
		failed |= want_wait(&wants[i]) != 0;
	ds_fetcher_get_stats(fetcher, &stats);
	racer->shared->chunks_n += stats.chunks_n;
	racer->shared->gets_n += stats.gets_n;
	ds_fetcher_free(fetcher);
	ds_image_unref(image);
	ds_cache_unref(cache);
	ds_store_unref(store);
	free(wants);
	return failed;
}

Test(fetch_share, T10_processes_that_want_the_same_fetch_it_once)
{
	struct shared *shared =
		mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct support_pack pack;
	struct stored_pack stored;
	struct racer racers[4];
	struct ds_store *store;
	int pids[4];

	support_pack_init(&pack, 9, 200, DS_KIB(20), false);
	for (size_t i = 0; i < 4; i++) {
		racers[i] = (struct racer){.shared = shared,
					   .pack = &pack,
					   .stored = &stored,
					   .seed = (unsigned)i};
		strcpy(racers[i].store, support_path("s"));
		strcpy(racers[i].cache, support_path("c"));
	}
	cr_assert_eq(ds_store_open(racers[0].store, NULL, true, &store, NULL), 0);
	stored_pack_init(&stored, &pack, 0, 200, store);
	ds_store_unref(store);
	for (size_t i = 0; i < 4; i++)
		pids[i] = support_fork(race, &racers[i]);
	while (shared->ready_n < 4)
		usleep(100);
	shared->go = 1;
	for (size_t i = 0; i < 4; i++)
		cr_assert_eq(support_wait(pids[i]), 0);
	cr_assert_eq(shared->chunks_n, 200, "%llu chunks were fetched in %llu GETs",
		     (unsigned long long)shared->chunks_n, (unsigned long long)shared->gets_n);
	stored_pack_release(&stored);
	support_pack_release(&pack);
	munmap(shared, 4096);
}

struct holder {
	const struct support_pack *pack;
	char cache[320];
	_Atomic int *holds;
};

static int hold_slot(void *ctx)
{
	struct holder *holder = ctx;
	struct ds_cache *cache = support_open(holder->cache, DS_MIB(64), 1);
	struct ds_image *image = support_image(cache, holder->pack);
	struct ds_image_lock lock = {0};

	if (ds_image_lock_slot(image, &holder->pack->slots[3], &lock) < 0)
		return 2;
	*holder->holds = 1;
	for (;;)
		pause();
}

static int start_holder(struct bench *bench)
{
	void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	_Atomic int *holds = page;
	struct holder holder = {.pack = &bench->pack, .holds = holds};
	int pid;

	strcpy(holder.cache, support_path("c"));
	pid = support_fork(hold_slot, &holder);
	while (!*holds)
		usleep(100);
	munmap(page, 4096);
	return pid;
}

Test(fetch_share, a_process_that_dies_while_it_fetches_is_replaced)
{
	struct bench bench;
	struct want want;
	int pid;

	bench_open(&bench, 10, 5000, false, NULL);
	pid = start_holder(&bench);
	start(&bench, &want, 3, 30000);
	usleep(30000);
	cr_assert_eq(want.is_over, 0);
	cr_assert_eq(bench.store->gets_n, 0);
	kill(pid, SIGKILL);
	cr_assert_eq(support_wait(pid), 128 + SIGKILL);
	cr_assert_eq(want_wait(&want), 0);
	cr_assert_eq(bench.store->gets_n, 1);
	cr_assert(support_read(bench.image, &bench.pack, 3, false));
	bench_close(&bench);
}

Test(fetch_share, a_process_that_hangs_while_it_fetches_costs_half_the_deadline)
{
	struct bench bench;
	struct want want;
	int pid;

	bench_open(&bench, 10, 5000, false, NULL);
	pid = start_holder(&bench);
	kill(pid, SIGSTOP);
	start(&bench, &want, 3, 2000);
	cr_assert_eq(want_wait(&want), 0);
	cr_assert_eq(stats_of(&bench).timeouts_n, 0);
	kill(pid, SIGKILL);
	support_wait(pid);
	bench_close(&bench);
}

/* ---- allocation failures */
