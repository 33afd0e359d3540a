/* The S3 backend before a store that takes only so many requests at once; the store counts them. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "http_load.h"
#include "store/store.h"
#include "store_contract.h"

TestSuite(store_s3_load, .fini = test_leak_check, .timeout = 120);

#define CONNECTIONS_N 64u

static struct http_load *load;
static struct ds_store *store;

static void set_up(unsigned connections_n)
{
	struct ds_store_options options = {.timeout_ms = 60000, .connections_n = connections_n};
	struct ds_diag diag = {0};

	setenv("AWS_ACCESS_KEY_ID", "ACCESSKEY", 1);
	setenv("AWS_SECRET_ACCESS_KEY", "SECRET", 1);
	load = http_load_new();
	options.endpoint = http_load_url(load);
	cr_assert_eq(ds_store_open("s3://bucket", &options, false, &store, &diag), 0);
}

static void tear_down(void)
{
	store = ds_store_unref(store);
	load = http_load_free(load);
}

/* Readers that each want one range after the other, until they are told to stop. */
struct readers {
	pthread_mutex_t mutex;
	pthread_cond_t over;
	unsigned running_n, done_n, failed_n, left_n;
	bool must_stop;
	struct reader {
		struct readers *readers;
		struct ds_store_req req;
		struct ds_buf buf;
	} reader[CONNECTIONS_N];
};

static void submit(struct reader *reader);

static void read_is_done(struct ds_store_req *req)
{
	struct reader *reader = req->ctx;
	struct readers *readers = reader->readers;
	bool goes_on;

	pthread_mutex_lock(&readers->mutex);
	readers->done_n++;
	readers->failed_n += req->result < 0 || strcmp(ds_buf_str(&reader->buf), "0123") != 0;
	goes_on = !readers->must_stop && readers->left_n;
	readers->left_n -= goes_on;
	readers->running_n -= !goes_on;
	pthread_cond_broadcast(&readers->over);
	pthread_mutex_unlock(&readers->mutex);
	if (goes_on)
		submit(reader);
}

static void submit(struct reader *reader)
{
	ds_buf_clear(&reader->buf);
	reader->req = (struct ds_store_req){.op = DS_STORE_GET,
					    .key = "k",
					    .len_bytes = 4,
					    .into = &reader->buf,
					    .done = read_is_done,
					    .ctx = reader};
	ds_store_submit(store, &reader->req);
}

/* reads_n in all. */
static void start(struct readers *readers, unsigned reads_n)
{
	pthread_mutex_init(&readers->mutex, NULL);
	pthread_cond_init(&readers->over, NULL);
	readers->running_n = CONNECTIONS_N;
	readers->left_n = reads_n - CONNECTIONS_N;
	for (unsigned i = 0; i < CONNECTIONS_N; i++) {
		readers->reader[i].readers = readers;
		ds_buf_init(&readers->reader[i].buf, 100);
		submit(&readers->reader[i]);
	}
}

static void finish(struct readers *readers, bool must_stop)
{
	pthread_mutex_lock(&readers->mutex);
	readers->must_stop = must_stop;
	while (readers->running_n)
		pthread_cond_wait(&readers->over, &readers->mutex);
	pthread_mutex_unlock(&readers->mutex);
	for (unsigned i = 0; i < CONNECTIONS_N; i++)
		ds_buf_release(&readers->reader[i].buf);
	cr_assert_eq(readers->failed_n, 0);
}

static struct ds_store_stats stats(void)
{
	struct ds_store_stats found;

	ds_store_get_stats(store, &found);
	return found;
}

Test(store_s3_load, connections_are_kept)
{
	enum { READS_N = 2000 };
	static struct readers readers;

	set_up(CONNECTIONS_N);
	start(&readers, READS_N);
	finish(&readers, false);
	cr_assert_eq(readers.done_n, READS_N);
	cr_assert_eq(http_load_counts(load).answered_n, READS_N);
	cr_assert_leq(http_load_counts(load).connections_n, CONNECTIONS_N);
	tear_down();
}

Test(store_s3_load, T9_a_store_that_takes_few_at_once_is_asked_few_at_once)
{
	enum { LIMIT_N = 6, READS_N = 1000 };
	static struct readers readers;
	struct http_load_counts counts;

	set_up(CONNECTIONS_N);
	http_load_set_limit(load, LIMIT_N);
	start(&readers, READS_N);
	finish(&readers, false);
	counts = http_load_counts(load);
	printf("%u answered, %u refused\n", counts.answered_n, counts.refused_n);
	cr_assert_eq(readers.done_n, READS_N);
	cr_assert_gt(counts.refused_n, 0);
	/* A few at first, and now and then one that asks whether more go now. */
	cr_assert_lt(counts.refused_n, READS_N / 5);
	cr_assert_eq(stats().retries_n, counts.refused_n);
	tear_down();
}

Test(store_s3_load, T9_when_the_store_relents_it_is_asked_as_much_as_before)
{
	enum { AT_ONCE_N = 32 };
	static struct readers readers;

	set_up(AT_ONCE_N);
	http_load_set_limit(load, 2);
	start(&readers, 1u << 30);
	http_load_wait_answered(load, 100);
	cr_assert_gt(http_load_counts(load).refused_n, 0);
	http_load_set_limit(load, 0);
	/* But for the connections that are kept for what is urgent. */
	http_load_wait_most(load, AT_ONCE_N - AT_ONCE_N / 8);
	finish(&readers, true);
	tear_down();
}

static void count_done(struct ds_store_req *req)
{
	atomic_fetch_add((atomic_uint *)req->ctx, 1);
}

/* Until the store has started all that it can of what was submitted before. */
static void wait_started(const atomic_uint *done_n, struct ds_store_req *spare, unsigned spare_n)
{
	for (unsigned i = 0; i < spare_n; i++) {
		unsigned wanted_n = *done_n + 1;

		/* It ends in a round of the network thread after one that starts what is ready. */
		ds_store_cancel(store, &spare[i]);
		while (*done_n < wanted_n)
			usleep(1000);
	}
}

enum { AHEAD_N = 10, SPARE_N = 2 };

/* Two connections, and a store that answers nothing: one of ten GETs that nobody waits for has set out,
 * and then the last one is waited for, as `wants_last` makes it so. */
static void the_last_one_overtakes(void (*wants_last)(struct ds_store_req *req, atomic_uint *done_n,
						      struct ds_store_req *spare))
{
	static char keys[AHEAD_N][16];
	struct ds_store_req reqs[AHEAD_N];
	struct ds_buf bufs[AHEAD_N];
	atomic_uint done_n = 0;

	set_up(2);
	http_load_hold(load, true);
	for (unsigned i = 0; i < AHEAD_N; i++) {
		ds_buf_init(&bufs[i], 100);
		snprintf(keys[i], sizeof(keys[i]), "key-%u", i);
		reqs[i] = (struct ds_store_req){.op = DS_STORE_GET,
						.key = keys[i],
						.len_bytes = 4,
						.into = &bufs[i],
						.done = count_done,
						.ctx = &done_n};
		if (i + 1 < AHEAD_N)
			ds_store_submit(store, &reqs[i]);
		else
			wants_last(&reqs[i], &done_n, &reqs[i - SPARE_N]);
	}
	http_load_wait_now(load, 2);
	cr_assert(http_load_has_seen(load, "/key-0"));
	cr_assert(http_load_has_seen(load, "/key-9"));
	http_load_hold(load, false);
	http_load_wait_answered(load, AHEAD_N - SPARE_N);
	tear_down();
	cr_assert_eq(done_n, AHEAD_N);
	for (unsigned i = 0; i < AHEAD_N; i++)
		ds_buf_release(&bufs[i]);
}

static void submit_urgent(struct ds_store_req *req, atomic_uint *done_n, struct ds_store_req *spare)
{
	wait_started(done_n, spare, SPARE_N);
	req->is_urgent = true;
	ds_store_submit(store, req);
}

static void submit_and_hasten(struct ds_store_req *req, atomic_uint *done_n,
			      struct ds_store_req *spare)
{
	ds_store_submit(store, req);
	wait_started(done_n, spare, SPARE_N);
	cr_assert_not(http_load_has_seen(load, "/key-9"));
	ds_store_hasten(store, req);
}

Test(store_s3_load, one_of_two_connections_is_free_for_what_is_urgent)
{
	the_last_one_overtakes(submit_urgent);
}

Test(store_s3_load, what_becomes_urgent_overtakes_too)
{
	the_last_one_overtakes(submit_and_hasten);
}
