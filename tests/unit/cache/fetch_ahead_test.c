/*
 * Wants of somebody who is in no hurry: they travel together, demand overtakes them, each is told how it ended, and no deadline
 * ends them.
 */
#include <criterion/criterion.h>
#include <semaphore.h>
#include <stdlib.h>

#include "fetch_bench.h"
#include "util/clock.h"

TestSuite(fetch_ahead, .fini = support_clean, .timeout = 120);

#define WANTS_MAX 200u

typedef void done_fn(struct ds_fetch_waiter *waiter, int result, struct ds_chunk_bytes *bytes,
		     const struct ds_diag *diag);

/* What a want is told by itself, for those that are told by another first. */
static done_fn *own_done;

/* Chunks from `first` on, each `step` after the one before. With `done` that is called, and calls own_done. */
static void start_ahead_by(struct bench *bench, struct want *wants, uint32_t first, uint32_t step,
			   uint32_t n, done_fn *done)
{
	struct ds_fetch_target targets[WANTS_MAX];
	struct ds_fetch_waiter *waiters[WANTS_MAX];
	size_t taken_n;

	for (uint32_t i = 0; i < n; i++) {
		want_init(&wants[i], &bench->pack, first + i * step);
		if (done) {
			own_done = wants[i].waiter.done;
			wants[i].waiter.done = done;
		}
		targets[i] = target_of(bench->image, &bench->pack, &bench->stored, wants[i].slot);
		waiters[i] = &wants[i].waiter;
	}
	cr_assert_eq(ds_fetcher_want_ahead(bench->fetcher, targets, waiters, n, &taken_n), 0);
	cr_assert_eq(taken_n, n);
}

static void start_ahead(struct bench *bench, struct want *wants, uint32_t first, uint32_t step,
			uint32_t n)
{
	start_ahead_by(bench, wants, first, step, n, NULL);
}

Test(fetch_ahead, they_travel_together_and_each_is_told)
{
	struct ds_fetcher_options options = {.coalesce_bytes_max = DS_KIB(256)};
	struct want wants[200];
	struct bench bench;

	bench_open(&bench, 200, DS_KIB(8), true, &options);
	start_ahead(&bench, wants, 0, 1, 200);
	for (uint32_t i = 0; i < 200; i++)
		cr_assert_eq(want_wait(&wants[i]), 0);
	/* 1,600 KiB in pieces of 256 at most; they gather while the first are looked at. */
	cr_assert_leq(bench.store->gets_n, 14);
	cr_assert_eq(support_count(bench.image, &bench.pack, false), 200);
	/* What is here is told at once, and not fetched. */
	start_ahead(&bench, wants, 0, 1, 200);
	for (uint32_t i = 0; i < 200; i++)
		cr_assert_eq(want_wait(&wants[i]), 0);
	cr_assert_eq(stats_of(&bench).chunks_n, 200);
	bench_close(&bench);
}

#define TOGETHER_N 32u

static struct {
	struct bench *bench;
	_Atomic unsigned calls_n;
	unsigned here_n; /* when the first was told */
} together;

static void on_together(struct ds_fetch_waiter *waiter, int result, struct ds_chunk_bytes *bytes,
			const struct ds_diag *diag)
{
	if (together.calls_n++ == 0)
		for (uint32_t i = 0; i < TOGETHER_N; i++)
			together.here_n +=
				ds_image_has(together.bench->image, &together.bench->pack.slots[i]);
	own_done(waiter, result, bytes, diag);
}

Test(fetch_ahead, they_are_filled_together)
{
	struct want wants[TOGETHER_N];
	struct bench bench;

	bench_open(&bench, TOGETHER_N, DS_KIB(8), true, NULL);
	together.bench = &bench;
	start_ahead_by(&bench, wants, 0, 1, TOGETHER_N, on_together);
	for (uint32_t i = 0; i < TOGETHER_N; i++)
		cr_assert_eq(want_wait(&wants[i]), 0);
	cr_assert_eq(together.here_n, TOGETHER_N, "%u of %u", together.here_n, TOGETHER_N);
	bench_close(&bench);
}

#define RUNS_CHUNKS 8u

static struct {
	sem_t at_first, go_on;
	_Atomic unsigned order_n;
	uint32_t order[RUNS_CHUNKS + 1];
} runs;

static void on_run(struct ds_fetch_waiter *waiter, int result, struct ds_chunk_bytes *bytes,
		   const struct ds_diag *diag)
{
	unsigned n = runs.order_n++;

	runs.order[n] = ds_container_of(waiter, struct want, waiter)->slot;
	if (n == 0) {
		sem_post(&runs.at_first);
		sem_wait(&runs.go_on);
	}
	own_done(waiter, result, bytes, diag);
}

Test(fetch_ahead, demand_overtakes_what_has_come_and_is_not_decoded)
{
	/* One worker; chunks that are decoded two at a time (RUN_BYTES), and come with one GET. */
	struct ds_fetcher_options options = {.workers_n = 1};
	struct want wants[RUNS_CHUNKS], joined;
	struct bench bench;

	sem_init(&runs.at_first, 0, 0);
	sem_init(&runs.go_on, 0, 0);
	bench_open(&bench, RUNS_CHUNKS, DS_KIB(200), true, &options);
	start_ahead_by(&bench, wants, 0, 1, RUNS_CHUNKS, on_run);
	sem_wait(&runs.at_first);
	/* The second of the last run. */
	start(&bench, &joined, RUNS_CHUNKS - 1, 20000);
	cr_assert_eq(stats_of(&bench).joined_n, 1);
	sem_post(&runs.go_on);
	cr_assert_eq(want_wait(&joined), 0);
	for (uint32_t i = 0; i < RUNS_CHUNKS; i++)
		cr_assert_eq(want_wait(&wants[i]), 0);
	cr_assert_eq(bench.store->gets_n, 1);
	cr_assert_eq(runs.order_n, RUNS_CHUNKS);
	for (uint32_t i = 0; i < RUNS_CHUNKS; i++) {
		static const uint32_t order[RUNS_CHUNKS] = {0, 1, 6, 7, 2, 3, 4, 5};

		cr_assert_eq(runs.order[i], order[i], "%u: %u", i, runs.order[i]);
	}
	bench_close(&bench);
}

/* Until so many answers wait for the worker. */
static void wait_answers(struct bench *bench, size_t n)
{
	uint64_t limit_ns = ds_deadline_in_ms(20000);

	while (ds_work_waiting_n(bench->fetcher->workers) != n && ds_mono_ns() < limit_ns)
		ds_sleep_ms(1);
	cr_assert_eq(ds_work_waiting_n(bench->fetcher->workers), n);
}

Test(fetch_ahead, demand_overtakes_answers_that_nobody_has_looked_at)
{
	/* One worker; three GETs of two chunks, which are decoded together. */
	struct ds_fetcher_options options = {.workers_n = 1, .coalesce_bytes_max = DS_KIB(300)};
	struct want wants[6], joined;
	struct bench bench;

	sem_init(&runs.at_first, 0, 0);
	sem_init(&runs.go_on, 0, 0);
	bench_open(&bench, 6, DS_KIB(200), true, &options);
	hold(&bench);
	start_ahead_by(&bench, wants, 0, 1, 6, on_run);
	fault_store_wait_held(bench.store, 3);
	fault_store_release_one(bench.store);
	sem_wait(&runs.at_first);
	for (size_t i = 0; i < 2; i++) {
		fault_store_release_one(bench.store);
		wait_answers(&bench, i + 1);
	}
	start(&bench, &joined, 5, 20000);
	cr_assert_eq(stats_of(&bench).joined_n, 1);
	sem_post(&runs.go_on);
	cr_assert_eq(want_wait(&joined), 0);
	for (uint32_t i = 0; i < 6; i++)
		cr_assert_eq(want_wait(&wants[i]), 0);
	cr_assert_eq(bench.store->gets_n, 3);
	cr_assert_eq(runs.order_n, 6);
	for (uint32_t i = 0; i < 6; i++) {
		static const uint32_t order[6] = {0, 1, 4, 5, 2, 3};

		cr_assert_eq(runs.order[i], order[i], "%u: %u", i, runs.order[i]);
	}
	bench_close(&bench);
}

Test(fetch_ahead, demand_overtakes_and_joins)
{
	struct ds_fetcher_options options = {.inflight_bytes_max = DS_KIB(64),
					     .coalesce_bytes_max = DS_KIB(8)};
	struct want ahead[20], demand, joined;
	struct bench bench;

	bench_open(&bench, 60, DS_KIB(8), true, &options);
	hold(&bench);
	start_ahead(&bench, ahead, 0, 2, 20);
	/* Three quarters of the budget, 16 KiB each; the last is for who cannot wait. */
	fault_store_wait_held(bench.store, 3);
	cr_assert_eq(stats_of(&bench).inflight_bytes, DS_KIB(48));
	/* The last of them is wanted now: it goes before all that were there earlier. */
	start(&bench, &joined, 38, 20000);
	fault_store_wait_held(bench.store, 4);
	cr_assert_eq(stats_of(&bench).joined_n, 1);
	cr_assert_leq(stats_of(&bench).inflight_most_bytes, DS_KIB(64));
	start(&bench, &demand, 59, 20000);
	fault_store_release(bench.store);
	cr_assert_eq(want_wait(&joined), 0);
	cr_assert_eq(want_wait(&demand), 0);
	for (uint32_t i = 0; i < 20; i++)
		cr_assert_eq(want_wait(&ahead[i]), 0);
	cr_assert_eq(stats_of(&bench).chunks_n, 21);
	cr_assert_leq(stats_of(&bench).inflight_most_bytes, DS_KIB(64));
	bench_close(&bench);
}

Test(fetch_ahead, what_fails_in_passing_is_tried_again_and_damage_is_told)
{
	struct want wants[50];
	unsigned bad_n = 0;
	struct bench bench;

	bench_open(&bench, 50, 5000, false, NULL);
	set(&bench, "packs/", 0, -DS_E_SERVER, 3);
	start_ahead(&bench, wants, 0, 5, 10);
	for (uint32_t i = 0; i < 10; i++)
		cr_assert_eq(want_wait(&wants[i]), 0);
	cr_assert_eq(bench.store->failed_n, 3);
	set(&bench, "packs/", 1000, 0, 0);
	start_ahead(&bench, wants, 1, 5, 10);
	for (uint32_t i = 0; i < 10; i++) {
		bad_n += want_wait(&wants[i]) == -DS_E_CORRUPT;
		cr_assert(wants[i].result == 0 || wants[i].diag.object[0]);
	}
	cr_assert_gt(bad_n, 0);
	set(&bench, "packs/", 0, -DS_E_AUTH, 1000);
	start_ahead(&bench, wants, 2, 5, 10);
	for (uint32_t i = 0; i < 10; i++)
		cr_assert_eq(want_wait(&wants[i]), -DS_E_AUTH);
	bench_close(&bench);
}

Test(fetch_ahead, T4_those_who_wait_for_a_deadline_are_not_kept)
{
	struct want ahead[10], soon;
	struct bench bench;

	bench_open(&bench, 20, 5000, false, NULL);
	hold(&bench);
	start_ahead(&bench, ahead, 0, 1, 10);
	start(&bench, &soon, 3, 50);
	cr_assert_eq(want_wait(&soon), -DS_E_TIMEOUT);
	for (uint32_t i = 0; i < 10; i++)
		cr_assert_eq(ahead[i].is_over, 0);
	fault_store_release(bench.store);
	for (uint32_t i = 0; i < 10; i++)
		cr_assert_eq(want_wait(&ahead[i]), 0);
	bench_close(&bench);
}

Test(fetch_ahead, they_can_be_taken_back_and_end_with_the_fetcher)
{
	struct want ahead[20];
	struct bench bench;

	bench_open(&bench, 20, 5000, false, NULL);
	hold(&bench);
	start_ahead(&bench, ahead, 0, 1, 20);
	fault_store_wait_held(bench.store, 1);
	for (uint32_t i = 0; i < 10; i++)
		cr_assert(ds_fetcher_abandon(bench.fetcher, &ahead[i].waiter));
	bench.fetcher = ds_fetcher_free(bench.fetcher);
	for (uint32_t i = 0; i < 10; i++)
		cr_assert_eq(ahead[i].is_over, 0);
	for (uint32_t i = 10; i < 20; i++)
		cr_assert_eq(want_wait(&ahead[i]), -DS_E_INTERRUPTED);
	bench_close(&bench);
}

#define TINY_N (DS_FETCH_AHEAD_FLIGHTS_MAX + 4000)

/* Of tiny chunks the budget's bytes alone would let in very many. */
Test(fetch_ahead, T28_prefetch_is_bounded_in_chunks_too)
{
	struct ds_fetch_target *targets = calloc(TINY_N, sizeof(targets[0]));
	struct bench bench;

	bench_open(&bench, TINY_N, 40, true, NULL);
	hold(&bench);
	for (uint32_t i = 0; i < TINY_N; i++)
		targets[i] = target_of(bench.image, &bench.pack, &bench.stored, i);
	cr_assert_eq(ds_fetcher_prefetch(bench.fetcher, targets, TINY_N),
		     DS_FETCH_AHEAD_FLIGHTS_MAX);
	cr_assert_eq(stats_of(&bench).underway_n, DS_FETCH_AHEAD_FLIGHTS_MAX);
	fault_store_release(bench.store);
	bench_close(&bench);
	free(targets);
}
