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

TestSuite(fetch, .fini = support_clean, .timeout = 120);
Test(fetch, a_chunk_is_fetched_once_and_then_local)
{
	struct bench bench;

	bench_open(&bench, 10, 5000, false, NULL);
	cr_assert_eq(fetch(&bench, 3), 0);
	cr_assert_eq(bench.store->gets_n, 1);
	cr_assert(support_read(bench.image, &bench.pack, 3, false));
	cr_assert_eq(fetch(&bench, 3), 0);
	cr_assert_eq(bench.store->gets_n, 1);
	cr_assert_eq(stats_of(&bench).chunks_n, 1);
	bench_close(&bench);
}

Test(fetch, M14_a_hundred_waiters_of_one_chunk_cost_one_get)
{
	struct want wants[100];
	struct bench bench;

	bench_open(&bench, 10, 5000, false, NULL);
	hold(&bench);
	for (size_t i = 0; i < 100; i++)
		start(&bench, &wants[i], 3, 20000);
	fault_store_wait_held(bench.store, 1);
	cr_assert_eq(stats_of(&bench).waiting_n, 100);
	fault_store_release(bench.store);
	for (size_t i = 0; i < 100; i++)
		cr_assert_eq(want_wait(&wants[i]), 0);
	cr_assert_eq(bench.store->gets_n, 1);
	cr_assert_eq(stats_of(&bench).joined_n, 99);
	cr_assert_eq(stats_of(&bench).waiting_n, 0);
	bench_close(&bench);
}

static size_t queued_n(struct bench *bench)
{
	size_t n = 0;

	pthread_mutex_lock(&bench->fetcher->mutex);
	ds_list_for_each (node, &bench->fetcher->locked.demand)
		n++;
	pthread_mutex_unlock(&bench->fetcher->mutex);
	return n;
}

Test(fetch, neighbours_that_wait_in_the_queue_travel_together)
{
	/* One large chunk fills the budget, so that the others gather. */
	struct ds_fetcher_options options = {.inflight_bytes_max = DS_KIB(200)};
	struct want blocker, wants[20];
	struct support_pack large;
	struct stored_pack stored;
	struct ds_image *image;
	struct bench bench;

	bench_open(&bench, 100, DS_KIB(4), true, &options);
	support_pack_init(&large, 6, 1, DS_KIB(100), true);
	stored_pack_init(&stored, &large, 0, 1, bench.memory);
	image = support_image(bench.cache, &large);
	hold(&bench);
	want_start(&blocker, bench.fetcher, image, &large, &stored, 0, 20000);
	fault_store_wait_held(bench.store, 1);
	for (uint32_t i = 0; i < 20; i++)
		start(&bench, &wants[i], 40 + (i * 7) % 20, 20000);
	while (queued_n(&bench) < 20)
		ds_sleep_ms(1);
	fault_store_release(bench.store);
	cr_assert_eq(want_wait(&blocker), 0);
	for (uint32_t i = 0; i < 20; i++)
		cr_assert_eq(want_wait(&wants[i]), 0);
	cr_assert_eq(bench.store->gets_n, 2);
	cr_assert_eq(stats_of(&bench).gets_n, 2);
	ds_image_unref(image);
	stored_pack_release(&stored);
	support_pack_release(&large);
	bench_close(&bench);
}

Test(fetch, what_is_in_flight_stays_within_the_budget)
{
	struct ds_fetcher_options options = {.inflight_bytes_max = DS_KIB(100)};
	struct want wants[40];
	struct bench bench;

	bench_open(&bench, 40, DS_KIB(20), true, &options);
	hold(&bench);
	for (uint32_t i = 0; i < 40; i++)
		start(&bench, &wants[i], i, 20000);
	fault_store_wait_held(bench.store, 1);
	for (int i = 0; i < 20; i++) {
		cr_assert_leq(stats_of(&bench).inflight_bytes, DS_KIB(100));
		ds_sleep_ms(1);
	}
	fault_store_release(bench.store);
	for (uint32_t i = 0; i < 40; i++)
		cr_assert_eq(want_wait(&wants[i]), 0);
	cr_assert_eq(support_count(bench.image, &bench.pack, false), 40);
	bench_close(&bench);
}

Test(fetch, prefetch_has_no_room_beside_demand)
{
	struct ds_fetcher_options options = {.inflight_bytes_max = DS_KIB(16)};
	struct ds_fetch_target targets[2];
	struct bench bench;
	struct want first, last;

	bench_open(&bench, 40, DS_KIB(8), true, &options);
	hold(&bench);
	start(&bench, &first, 0, 20000);
	fault_store_wait_held(bench.store, 1);
	/* No room for prefetch beside it. */
	targets[0] = target_of(bench.image, &bench.pack, &bench.stored, 10);
	targets[1] = target_of(bench.image, &bench.pack, &bench.stored, 20);
	ds_fetcher_prefetch(bench.fetcher, targets, 2);
	start(&bench, &last, 30, 20000);
	fault_store_release(bench.store);
	cr_assert_eq(want_wait(&first), 0);
	cr_assert_eq(want_wait(&last), 0);
	cr_assert_not(ds_image_has(bench.image, &bench.pack.slots[10]));
	ds_fetcher_prefetch(bench.fetcher, targets, 2);
	/* A want joins what was prefetched, and is served. */
	cr_assert_eq(fetch(&bench, 10), 0);
	bench_close(&bench);
}

static unsigned hastened_n(struct bench *bench)
{
	unsigned n;

	pthread_mutex_lock(&bench->store->mutex);
	n = bench->store->hastened_n;
	pthread_mutex_unlock(&bench->store->mutex);
	return n;
}

Test(fetch, a_want_hastens_the_prefetch_that_it_joins)
{
	struct ds_fetch_target target;
	uint64_t deadline_ns = ds_deadline_in_ms(20000);
	struct want wants[2];
	struct bench bench;

	bench_open(&bench, 10, DS_KIB(8), true, NULL);
	hold(&bench);
	target = target_of(bench.image, &bench.pack, &bench.stored, 5);
	ds_fetcher_prefetch(bench.fetcher, &target, 1);
	fault_store_wait_held(bench.store, 1);
	cr_assert_eq(hastened_n(&bench), 0);
	start(&bench, &wants[0], 5, 20000);
	while (hastened_n(&bench) == 0 && ds_mono_ns() < deadline_ns)
		ds_sleep_ms(1);
	start(&bench, &wants[1], 5, 20000);
	fault_store_release(bench.store);
	for (unsigned i = 0; i < 2; i++)
		cr_assert_eq(want_wait(&wants[i]), 0);
	cr_assert_eq(hastened_n(&bench), 1);
	bench_close(&bench);
}

Test(fetch, T28_prefetch_is_bounded_and_leaves_room_for_demand)
{
	struct ds_fetcher_options options = {.inflight_bytes_max = DS_KIB(160),
					     .coalesce_bytes_max = DS_KIB(4)};
	struct ds_fetch_target targets[500];
	struct bench bench;
	struct want want;
	size_t flights_n;

	bench_open(&bench, 600, DS_KIB(4), true, &options);
	hold(&bench);
	for (uint32_t i = 0; i < 500; i++)
		targets[i] = target_of(bench.image, &bench.pack, &bench.stored, i);
	ds_fetcher_prefetch(bench.fetcher, targets, 500);
	pthread_mutex_lock(&bench.fetcher->mutex);
	flights_n = bench.fetcher->locked.flights_n;
	pthread_mutex_unlock(&bench.fetcher->mutex);
	cr_assert_leq(flights_n, 40);
	/* 120 KiB of it set out, 8 KiB each. */
	fault_store_wait_held(bench.store, 15);
	start(&bench, &want, 599, 20000);
	fault_store_wait_held(bench.store, 16);
	fault_store_release(bench.store);
	cr_assert_eq(want_wait(&want), 0);
	bench_close(&bench);
}

/* ---- deadlines and abandoning */

Test(fetch, V4_a_stalled_store_costs_each_waiter_just_its_deadline)
{
	struct want soon, late;
	struct bench bench;
	uint64_t began;

	bench_open(&bench, 10, 5000, false, NULL);
	hold(&bench);
	began = ds_mono_ns();
	start(&bench, &soon, 3, 100);
	start(&bench, &late, 3, 20000);
	cr_assert_eq(want_wait(&soon), -DS_E_TIMEOUT);
	cr_assert_geq(soon.over_ns - began, 100 * (uint64_t)DS_NS_PER_MS);
	cr_assert_lt(soon.over_ns - began, 5000 * (uint64_t)DS_NS_PER_MS);
	cr_assert_neq(soon.diag.object[0], 0);
	cr_assert_eq(late.is_over, 0);
	fault_store_release(bench.store);
	cr_assert_eq(want_wait(&late), 0);
	cr_assert_eq(stats_of(&bench).timeouts_n, 1);
	bench_close(&bench);
}

Test(fetch, a_stalled_get_is_cancelled_when_its_last_waiter_has_gone)
{
	struct want wants[10];
	struct bench bench;

	bench_open(&bench, 10, 5000, false, NULL);
	hold(&bench);
	for (size_t i = 0; i < 10; i++)
		start(&bench, &wants[i], 3, 20000);
	fault_store_wait_held(bench.store, 1);
	for (size_t i = 0; i < 9; i++)
		cr_assert(ds_fetcher_abandon(bench.fetcher, &wants[i].waiter));
	cr_assert_eq(bench.store->cancelled_n, 0);
	cr_assert(ds_fetcher_abandon(bench.fetcher, &wants[9].waiter));
	/* By the thread that is just submitting it, if it still is. */
	pthread_mutex_lock(&bench.store->mutex);
	while (bench.store->cancelled_n == 0)
		pthread_cond_wait(&bench.store->changed, &bench.store->mutex);
	pthread_mutex_unlock(&bench.store->mutex);
	/* And who comes then is served. */
	fault_store_release(bench.store);
	cr_assert_eq(fetch(&bench, 3), 0);
	for (size_t i = 0; i < 10; i++)
		cr_assert_eq(wants[i].is_over, 0);
	start(&bench, &wants[0], 3, 20000);
	cr_assert_eq(want_wait(&wants[0]), 0);
	cr_assert_not(ds_fetcher_abandon(bench.fetcher, &wants[0].waiter));
	bench_close(&bench);
}

static struct {
	_Atomic int result;
	_Atomic bool is_over;
} early;

static void on_early(struct ds_fetch_call *call)
{
	early.result = call->req.result;
	early.is_over = true;
}

Test(fetch, a_call_that_is_cancelled_before_the_store_has_it_is_cancelled)
{
	struct ds_buf buf = DS_BUF_INIT(DS_KIB(64));
	uint64_t limit_ns = ds_deadline_in_ms(20000);
	struct ds_fetch_call call = {.over = on_early};
	struct bench bench;

	bench_open(&bench, 10, 5000, false, NULL);
	/* With the store and the threads at work. */
	cr_assert_eq(fetch(&bench, 3), 0);
	hold(&bench);
	call.req = (struct ds_store_req){.op = DS_STORE_GET,
					 .key = bench.stored.key,
					 .len_bytes = 1000,
					 .into = &buf};
	ds_list_init(&call.node);
	/* As when the last who waited for a batch goes between its making and its submission. */
	pthread_mutex_lock(&bench.fetcher->mutex);
	ds_fetch_cancel_locked(&call);
	pthread_mutex_unlock(&bench.fetcher->mutex);
	ds_fetch_submit(bench.fetcher, &call);
	while (!early.is_over && ds_mono_ns() < limit_ns)
		ds_sleep_ms(1);
	cr_assert(early.is_over);
	cr_assert_eq(early.result, -DS_E_INTERRUPTED);
	cr_assert_eq(bench.store->cancelled_n, 1);
	fault_store_release(bench.store);
	wait_quiet(&bench);
	ds_buf_release(&buf);
	bench_close(&bench);
}

Test(fetch, freeing_interrupts_who_waits_for_a_stalled_store)
{
	struct want wants[50];
	struct bench bench;
	uint64_t began;

	bench_open(&bench, 50, 5000, false, NULL);
	hold(&bench);
	for (uint32_t i = 0; i < 50; i++)
		start(&bench, &wants[i], i, 60000);
	fault_store_wait_held(bench.store, 1);
	began = ds_mono_ns();
	bench.fetcher = ds_fetcher_free(bench.fetcher);
	cr_assert_lt(ds_mono_ns() - began, 5 * (uint64_t)DS_NS_PER_S);
	for (uint32_t i = 0; i < 50; i++)
		cr_assert_eq(want_wait(&wants[i]), -DS_E_INTERRUPTED);
	bench_close(&bench);
}

/* ---- errors */

Test(fetch, a_store_that_recovers_is_invisible)
{
	struct bench bench;

	bench_open(&bench, 10, 5000, false, NULL);
	set(&bench, NULL, 0, -DS_E_SERVER, 3);
	cr_assert_eq(fetch(&bench, 3), 0);
	cr_assert_eq(bench.store->failed_n, 3);
	bench_close(&bench);
}

Test(fetch, a_deadline_after_failed_tries_tells_what_failed)
{
	uint64_t timeout_ms = 150;
	struct bench bench;
	struct want want;

	bench_open(&bench, 10, 5000, false, NULL);
	/* How many tries fit into it is for the machine; it is to be two. */
	do {
		timeout_ms *= 2;
		wait_quiet(&bench);
		set(&bench, NULL, 0, -DS_E_SERVER, 1000);
		bench.store->failed_n = 0;
		start(&bench, &want, 3, timeout_ms);
		want_wait(&want);
	} while (bench.store->failed_n < 2 && timeout_ms < 10000);
	cr_assert_geq(bench.store->failed_n, 2);
	cr_assert_eq(want.result, -DS_E_SERVER);
	bench_close(&bench);
}

/* The store has said when, and that is beyond who waits: nothing is asked of it before, whatever else would be a pause. */
Test(fetch, T9_what_the_store_is_not_to_be_asked_before_is_not_asked)
{
	struct want first, second;
	struct bench bench;
	uint64_t began;

	bench_open(&bench, 10, 5000, false, NULL);
	set(&bench, NULL, 0, -DS_E_THROTTLED, 1000);
	bench.store->fail_after_ns = 30 * (uint64_t)DS_NS_PER_S;
	start(&bench, &first, 3, 3000);
	cr_assert_eq(want_wait(&first), -DS_E_THROTTLED);
	cr_assert_eq(bench.store->gets_n, 1, "%u GETs", bench.store->gets_n);
	/* Who has time is served when it is due. */
	wait_quiet(&bench);
	set(&bench, NULL, 0, -DS_E_THROTTLED, 1);
	bench.store->fail_after_ns = 8 * (uint64_t)DS_NS_PER_S;
	began = ds_mono_ns();
	start(&bench, &second, 3, 60000);
	start(&bench, &first, 3, 4000);
	cr_assert_eq(want_wait(&first), -DS_E_THROTTLED);
	cr_assert_eq(want_wait(&second), 0);
	cr_assert_geq(second.over_ns - began, 8 * (uint64_t)DS_NS_PER_S);
	cr_assert_eq(bench.store->gets_n, 3, "%u GETs", bench.store->gets_n);
	bench_close(&bench);
}

Test(fetch, who_waits_can_be_told_why)
{
	uint64_t limit_ns = ds_deadline_in_ms(20000);
	struct ds_diag diag = {0};
	struct bench bench;
	struct want want;

	bench_open(&bench, 10, 5000, false, NULL);
	want_init(&want, &bench.pack, 3);
	cr_assert_eq(ds_fetcher_why(bench.fetcher, &want.waiter, &diag), 0);
	set(&bench, NULL, 0, -DS_E_SERVER, 1000);
	start(&bench, &want, 3, 60000);
	while (!ds_fetcher_why(bench.fetcher, &want.waiter, NULL) && ds_mono_ns() < limit_ns)
		ds_sleep_ms(1);
	cr_assert_eq(ds_fetcher_why(bench.fetcher, &want.waiter, &diag), -DS_E_SERVER);
	cr_assert_eq(diag.code, -DS_E_SERVER);
	set(&bench, NULL, 0, 0, 0);
	cr_assert_eq(want_wait(&want), 0);
	cr_assert_eq(ds_fetcher_why(bench.fetcher, &want.waiter, NULL), 0);
	bench_close(&bench);
}

Test(fetch, what_cannot_be_retried_fails_at_once)
{
	struct bench bench;

	bench_open(&bench, 10, 5000, false, NULL);
	set(&bench, NULL, 0, -DS_E_AUTH, 1000);
	cr_assert_eq(fetch(&bench, 3), -DS_E_AUTH);
	cr_assert_eq(bench.store->failed_n, 1);
	bench_close(&bench);
}

Test(fetch, A14_spoilt_bytes_are_fetched_anew_once)
{
	struct bench bench;
	struct want want;

	bench_open(&bench, 10, 5000, true, NULL);
	set(&bench, NULL, 1, 0, 0);
	cr_assert_eq(fetch(&bench, 3), 0);
	cr_assert_eq(bench.store->gets_n, 2);
	cr_assert_eq(stats_of(&bench).corrupt_n, 1);
	set(&bench, NULL, 1000, 0, 0);
	bench.store->gets_n = 0;
	start(&bench, &want, 4, 20000);
	cr_assert_eq(want_wait(&want), -DS_E_CORRUPT);
	cr_assert_eq(bench.store->gets_n, 2);
	cr_assert_not_null(strstr(want.diag.object, bench.stored.key));
	cr_assert_not(support_read(bench.image, &bench.pack, 4, true));
	/* V6: the store is well again. */
	set(&bench, NULL, 0, 0, 0);
	cr_assert_eq(fetch(&bench, 4), 0);
	bench_close(&bench);
}

Test(fetch, A14_a_spoilt_chunk_does_not_spoil_its_neighbours)
{
	struct ds_fetcher_options options = {.inflight_bytes_max = DS_KIB(300)};
	struct want blocker, wants[30];
	struct bench bench;
	uint8_t *object;
	struct ds_buf buf = DS_BUF_INIT(DS_MIB(1));
	unsigned right = 0;

	bench_open(&bench, 40, 5000, true, &options);
	/* One byte of chunk 17, in the store itself. */
	cr_assert_eq(ds_store_get(bench.memory, bench.stored.key, &buf, NULL), 0);
	object = buf.data;
	object[bench.stored.refs[17].stored_off + 100] ^= 1;
	cr_assert_eq(ds_store_put(bench.memory, bench.stored.key, object, buf.len_bytes, NULL), 0);
	ds_buf_release(&buf);
	hold(&bench);
	start(&bench, &blocker, 39, 20000);
	fault_store_wait_held(bench.store, 1);
	for (uint32_t i = 0; i < 30; i++)
		start(&bench, &wants[i], i, 20000);
	fault_store_release(bench.store);
	cr_assert_eq(want_wait(&blocker), 0);
	for (uint32_t i = 0; i < 30; i++) {
		int r = want_wait(&wants[i]);

		cr_assert_eq(r, i == 17 ? -DS_E_CORRUPT : 0);
		right += r == 0;
	}
	cr_assert_eq(right, 29);
	bench_close(&bench);
}

Test(fetch, a_pack_that_is_cut_is_corrupt)
{
	struct bench bench;
	struct ds_buf buf = DS_BUF_INIT(DS_MIB(1));

	bench_open(&bench, 10, 5000, true, NULL);
	cr_assert_eq(ds_store_get(bench.memory, bench.stored.key, &buf, NULL), 0);
	cr_assert_eq(ds_store_put(bench.memory, bench.stored.key, buf.data, 20000, NULL), 0);
	ds_buf_release(&buf);
	cr_assert_eq(fetch(&bench, 0), 0);
	cr_assert_eq(fetch(&bench, 9), -DS_E_CORRUPT);
	bench_close(&bench);
}

Test(fetch, targets_that_make_no_sense_are_refused)
{
	struct ds_chunk_ref *ref;
	struct bench bench;

	bench_open(&bench, 10, 5000, true, NULL);
	ref = &bench.stored.refs[0];
	ref->stored_len_bytes = 0;
	cr_assert_eq(fetch(&bench, 0), -DS_E_MALFORMED);
	ref->stored_len_bytes = ref->raw_len_bytes + 1;
	cr_assert_eq(fetch(&bench, 0), -DS_E_MALFORMED);
	ref = &bench.stored.refs[1];
	ref->stored_off = UINT64_MAX - 10;
	cr_assert_eq(fetch(&bench, 1), -DS_E_MALFORMED);
	ref->stored_off = 0;
	cr_assert_eq(fetch(&bench, 1), -DS_E_MALFORMED);
	ref->stored_off = DS_PACK_MAX;
	cr_assert_eq(fetch(&bench, 1), -DS_E_MALFORMED);
	ref = &bench.stored.refs[2];
	ref->raw_len_bytes = DS_CHUNK_MAX + 1;
	cr_assert_eq(fetch(&bench, 2), -DS_E_MALFORMED);
	cr_assert_eq(bench.store->gets_n, 0);
	/* A lie about the place that could be true: never a wrong byte. */
	bench.stored.refs[3].stored_off -= 1;
	cr_assert_eq(fetch(&bench, 3), -DS_E_CORRUPT);
	bench.stored.refs[3].stored_off += 1;
	cr_assert_eq(fetch(&bench, 3), 0);
	bench_close(&bench);
}

/* ---- without a disk, stash */

Test(fetch, without_a_disk_chunks_come_all_the_same)
{
	struct ds_image *image;
	struct ds_cache *none;
	struct bench bench;
	struct want want;

	bench_open(&bench, 10, 5000, false, NULL);
	cr_assert_eq(ds_cache_open_none(&none), 0);
	image = support_image(none, &bench.pack);
	for (uint32_t i = 0; i < 10; i++) {
		want_start(&want, bench.fetcher, image, &bench.pack, &bench.stored, i, 20000);
		cr_assert_eq(want_wait(&want), 0);
	}
	ds_image_unref(image);
	ds_cache_unref(none);
	bench_close(&bench);
}

Test(fetch, the_stash_answers_without_a_request)
{
	struct ds_chunk_bytes *bytes;
	struct bench bench;

	bench_open(&bench, 10, 5000, true, NULL);
	cr_assert_eq(ds_chunk_bytes_new(5000, &bytes), 0);
	support_bytes(&bench.pack, 3, bytes->data);
	cr_assert_eq(ds_fetcher_stash(bench.fetcher, &bench.pack.slots[4].digest, bytes),
		     -DS_E_CORRUPT);
	cr_assert_eq(ds_fetcher_stash(bench.fetcher, &bench.pack.slots[3].digest, bytes), 0);
	cr_assert_eq(ds_fetcher_stash(bench.fetcher, &bench.pack.slots[3].digest, bytes), 0);
	ds_chunk_bytes_unref(bytes);
	cr_assert_eq(fetch(&bench, 3), 0);
	cr_assert_eq(bench.store->gets_n, 0);
	cr_assert(support_read(bench.image, &bench.pack, 3, false));
	bench_close(&bench);
}

Test(fetch, blocking_gives_the_bytes_or_the_reason)
{
	struct ds_chunk_bytes *bytes = NULL;
	struct ds_fetch_target target;
	struct ds_diag diag = {0};
	struct bench bench;

	bench_open(&bench, 10, 5000, true, NULL);
	target = target_of(bench.image, &bench.pack, &bench.stored, 5);
	for (int i = 0; i < 2; i++) {
		cr_assert_eq(ds_fetch_blocking(bench.fetcher, &target, ds_deadline_in_ms(20000),
					       &bytes, &diag),
			     0);
		cr_assert_eq(bytes->len_bytes, 5000);
		ds_chunk_bytes_unref(bytes);
	}
	cr_assert_eq(bench.store->gets_n, 1);
	set(&bench, NULL, 0, -DS_E_AUTH, 10);
	target = target_of(bench.image, &bench.pack, &bench.stored, 6);
	cr_assert_eq(ds_fetch_blocking(bench.fetcher, &target, ds_deadline_in_ms(20000), &bytes,
				       &diag),
		     -DS_E_AUTH);
	cr_assert_eq(diag.code, -DS_E_AUTH);
	bench_close(&bench);
}

/* ---- moved packs */

Test(fetch, notes_of_moved_packs_are_followed_up_to_16_times)
{
	struct stored_pack chain[17];
	struct bench bench;
	struct want want;

	bench_open(&bench, 10, 5000, false, NULL);
	for (size_t i = 0; i < 17; i++)
		stored_pack_init(&chain[i], &bench.pack, 0, 10, bench.memory);
	stored_pack_move(&bench.stored, &chain[0], bench.memory);
	cr_assert_eq(fetch(&bench, 0), 0);
	for (size_t i = 0; i < 15; i++)
		stored_pack_move(&chain[i], &chain[i + 1], bench.memory);
	/* Both who knew the first place, and who knew none. */
	cr_assert_eq(fetch(&bench, 1), 0);
	cr_assert_geq(stats_of(&bench).moved_n, 2);
	ds_fetcher_free(bench.fetcher);
	cr_assert_eq(ds_fetcher_new(&bench.store->base, bench.cache, NULL, &bench.fetcher), 0);
	cr_assert_eq(fetch(&bench, 2), 0);
	stored_pack_move(&chain[15], &chain[16], bench.memory);
	ds_fetcher_free(bench.fetcher);
	cr_assert_eq(ds_fetcher_new(&bench.store->base, bench.cache, NULL, &bench.fetcher), 0);
	start(&bench, &want, 3, 20000);
	cr_assert_eq(want_wait(&want), -DS_E_MALFORMED);
	for (size_t i = 0; i < 17; i++)
		stored_pack_release(&chain[i]);
	bench_close(&bench);
}

Test(fetch, A17_a_missing_pack_is_named)
{
	struct bench bench;
	struct want want;
	struct ds_store_req req = {.op = DS_STORE_DELETE};

	bench_open(&bench, 10, 5000, false, NULL);
	req.key = bench.stored.key;
	cr_assert_eq(ds_store_perform(bench.memory, &req), 0);
	start(&bench, &want, 3, 20000);
	cr_assert_eq(want_wait(&want), -DS_E_ABSENT);
	cr_assert_not_null(strstr(want.diag.object, bench.stored.key));
	bench_close(&bench);
}

Test(fetch, a_chunk_that_is_gone_for_good_is_absent)
{
	struct bench bench;

	bench_open(&bench, 10, 5000, false, NULL);
	stored_pack_move(&bench.stored, NULL, bench.memory);
	cr_assert_eq(fetch(&bench, 3), -DS_E_ABSENT);
	bench_close(&bench);
}

Test(fetch, A19_denied_leads_to_the_note_and_is_denied_if_that_is_denied_too)
{
	struct stored_pack other;
	struct bench bench;

	bench_open(&bench, 10, 5000, false, NULL);
	stored_pack_init(&other, &bench.pack, 0, 10, bench.memory);
	stored_pack_move(&bench.stored, &other, bench.memory);
	set(&bench, bench.stored.key, 0, -DS_E_DENIED, 1);
	cr_assert_eq(fetch(&bench, 3), 0);
	/* The note is known by now; another fetcher has to read it. */
	ds_fetcher_free(bench.fetcher);
	cr_assert_eq(ds_fetcher_new(&bench.store->base, bench.cache, NULL, &bench.fetcher), 0);
	set(&bench, bench.stored.key, 0, -DS_E_DENIED, 1000);
	cr_assert_eq(fetch(&bench, 4), -DS_E_DENIED);
	cr_assert_leq(bench.store->failed_n, 3);
	stored_pack_release(&other);
	bench_close(&bench);
}

Test(fetch, a_note_that_is_spoilt_is_read_anew_and_then_refused)
{
	struct stored_pack other;
	struct bench bench;

	bench_open(&bench, 10, 5000, false, NULL);
	stored_pack_init(&other, &bench.pack, 0, 10, bench.memory);
	stored_pack_move(&bench.stored, &other, bench.memory);
	set(&bench, ".moved", 1000, 0, 0);
	cr_assert_lt(fetch(&bench, 3), 0);
	cr_assert_eq(bench.store->flipped_n, 2);
	set(&bench, ".moved", 1, 0, 0);
	cr_assert_eq(fetch(&bench, 3), 0);
	cr_assert_eq(bench.store->flipped_n, 3);
	stored_pack_release(&other);
	bench_close(&bench);
}

Test(fetch, a_pack_that_moves_again_while_we_fetch_is_found_again)
{
	struct stored_pack a, b;
	struct bench bench;

	bench_open(&bench, 10, 5000, false, NULL);
	stored_pack_init(&a, &bench.pack, 0, 10, bench.memory);
	stored_pack_init(&b, &bench.pack, 0, 10, bench.memory);
	stored_pack_move(&bench.stored, &a, bench.memory);
	cr_assert_eq(fetch(&bench, 3), 0);
	/* The table of a is kept by now. */
	stored_pack_move(&a, &b, bench.memory);
	cr_assert_eq(fetch(&bench, 4), 0);
	stored_pack_release(&a);
	stored_pack_release(&b);
	bench_close(&bench);
}

Test(fetch, tables_and_places_for_callers_that_block)
{
	struct stored_pack other;
	struct ds_pack_toc *toc;
	struct ds_chunk_ref ref;
	struct ds_diag diag = {0};
	struct bench bench;

	/* 2,000 chunks: the table does not fit into the first look at the end. */
	bench_open(&bench, 2000, 10, true, NULL);
	cr_assert_eq(ds_fetch_toc(bench.memory, &bench.stored.id, &toc, NULL), 0);
	cr_assert_eq(toc->chunks_n, 2000);
	cr_assert_eq(toc->entries[1999].stored_off, bench.stored.refs[1999].stored_off);
	ds_free(toc);
	ref = bench.stored.refs[1500];
	cr_assert_eq(ds_fetch_locate(bench.memory, &ref, NULL), 0);
	cr_assert(ds_digest_equal(&ref.pack, &bench.stored.id));
	stored_pack_init(&other, &bench.pack, 0, 2000, bench.memory);
	stored_pack_move(&bench.stored, &other, bench.memory);
	cr_assert_eq(ds_fetch_locate(bench.memory, &ref, NULL), 0);
	cr_assert(ds_digest_equal(&ref.pack, &other.id));
	cr_assert_eq(ref.ordinal, 1500);
	cr_assert_eq(ds_fetch_toc(bench.memory, &bench.stored.id, &toc, &diag), -DS_E_ABSENT);
	/* A wrong ordinal is seen. */
	ref = bench.stored.refs[1500];
	ref.ordinal = 2;
	cr_assert_eq(ds_fetch_locate(bench.memory, &ref, NULL), -DS_E_MALFORMED);
	stored_pack_release(&other);
	bench_close(&bench);
}

/* ---- other processes */

Test(fetch, J01_every_allocation_may_fail)
{
	struct bench bench;
	unsigned ok = 0, failed = 0;

	bench_open(&bench, 400, 500, true, NULL);
	cr_assert_eq(fetch(&bench, 399), 0);
	for (uint32_t slot = 0; slot < 300 && ok < 20; slot++) {
		struct ds_fetch_target target =
			target_of(bench.image, &bench.pack, &bench.stored, slot);
		struct ds_chunk_bytes *bytes;
		int r;

		ds_mem_fail_after(slot, 0);
		r = ds_fetch_blocking(bench.fetcher, &target, ds_deadline_in_ms(10000), &bytes,
				      NULL);
		failed += ds_mem_fail_after(-1, 0) > 0;
		if (r == 0) {
			uint8_t want[500];

			support_bytes(&bench.pack, slot, want);
			cr_assert_arr_eq(want, bytes->data, 500);
			ds_chunk_bytes_unref(bytes);
			ok++;
		} else {
			ok = 0;
			cr_assert_eq(r, -ENOMEM);
			cr_assert_eq(ds_fetch_blocking(bench.fetcher, &target,
						       ds_deadline_in_ms(10000), &bytes, NULL),
				     0);
			ds_chunk_bytes_unref(bytes);
		}
	}
	cr_assert_geq(ok, 20);
	cr_assert_gt(failed, 3);
	bench_close(&bench);
}
