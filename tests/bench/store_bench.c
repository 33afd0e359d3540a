/*
 * bench_receive's work done by the store layer: the same ranges of the same list come through ds_store (signed,
 * over its one network thread), worker threads take their SHA-256 and write them. Prints the same line
 * of JSON, with the CPU time of the network thread alone. For scripts and by hand; not part of the tests.
 *
 *	store_bench [-c REQUESTS] [-r RANGE] [-w WORKERS] [-n] LIST OUT
 *
 * REQUESTS (16) are in flight at once; WORKERS (2); -n: neither SHA-256 nor write. URLs are
 * http://HOST[:PORT]/BUCKET/KEY, all with the same bucket; the credentials are the environment's, or none of
 * any worth.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"
#include "store/store.h"
#include "util/clock.h"
#include "util/list.h"
#include "util/mem.h"
#include "util/work.h"

#define REQUESTS_MAX 256u

struct receiver {
	struct ds_store_req req;
	struct ds_work_item work;
	struct ds_buf buf;
	uint64_t out_off;
};

static struct bench_file *objects;
static size_t objects_n;
static uint64_t range_max = 1u << 20;
static bool only_receives;
static struct ds_store *store;
static struct ds_work *workers;
static int out;
static char origin[256], bucket[64];

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t over = PTHREAD_COND_INITIALIZER;
/* under the mutex */
static size_t at_object;
static uint64_t at_off, at_out, ranges_n;
static unsigned running_n;
static struct bench_sum sum;
static double network_s;

static void submit(struct receiver *receiver);

static bool next_range(struct receiver *receiver)
{
	bool has_one = false;

	pthread_mutex_lock(&mutex);
	while (at_object < objects_n && at_off == objects[at_object].size) {
		at_object++;
		at_off = 0;
	}
	if (at_object < objects_n) {
		uint64_t len = DS_MIN(objects[at_object].size - at_off, range_max);

		receiver->req = (struct ds_store_req){.op = DS_STORE_GET,
						      .key = objects[at_object].path,
						      .off = at_off,
						      .len_bytes = len,
						      .is_urgent = true};
		receiver->out_off = at_out;
		at_off += len;
		at_out += len;
		ranges_n++;
		has_one = true;
	} else {
		running_n--;
		pthread_cond_signal(&over);
	}
	pthread_mutex_unlock(&mutex);
	return has_one;
}

static void run_work(struct ds_work_item *item)
{
	struct receiver *receiver = ds_container_of(item, struct receiver, work);
	struct bench_sum digest;

	if (!only_receives) {
		bench_sum_digest(receiver->buf.data, receiver->buf.len_bytes, &digest);
		bench_write(out, receiver->buf.data, receiver->buf.len_bytes, receiver->out_off);
		pthread_mutex_lock(&mutex);
		bench_sum_add(&sum, &digest);
		pthread_mutex_unlock(&mutex);
	}
	ds_buf_release(&receiver->buf);
	submit(receiver);
}

static void is_here(struct ds_store_req *req)
{
	struct receiver *receiver = ds_container_of(req, struct receiver, req);
	struct timespec now;

	if (req->result < 0)
		bench_die("%s: %s %s", req->key, ds_strerror(req->result), req->diag.detail);
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	network_s = (double)now.tv_sec + (double)now.tv_nsec / 1e9;
	ds_work_submit(workers, &receiver->work, false);
}

static void submit(struct receiver *receiver)
{
	if (!next_range(receiver))
		return;
	/* A buffer for each, as the fetcher has. */
	ds_buf_init(&receiver->buf, receiver->req.len_bytes);
	receiver->req.into = &receiver->buf;
	receiver->req.done = is_here;
	receiver->work.run = run_work;
	ds_store_submit(store, &receiver->req);
}

/* Cuts the URLs into origin, bucket and key. */
static void cut_urls(void)
{
	for (size_t i = 0; i < objects_n; i++) {
		char *path = objects[i].path, *host = strstr(path, "://");
		char *at = host ? strchr(host + 3, '/') : NULL,
		     *slash = at ? strchr(at + 1, '/') : NULL;

		if (!slash)
			bench_die("%s is no URL of an object", path);
		snprintf(origin, sizeof(origin), "%.*s", (int)(at - path), path);
		snprintf(bucket, sizeof(bucket), "%.*s", (int)(slash - at - 1), at + 1);
		memmove(path, slash + 1, strlen(slash));
	}
}

int main(int argc, char **argv)
{
	static struct receiver receivers[REQUESTS_MAX];
	struct ds_store_options options = {.addressing = DS_STORE_ADDRESSING_PATH};
	uint64_t requests_n = 16, workers_n = 2, start_ns;
	struct ds_diag diag = {0};
	char url[80], text[65];
	double seconds;
	int opt;

	while ((opt = getopt(argc, argv, "c:r:w:n")) != -1) {
		if (opt == 'c')
			requests_n = bench_number(optarg, REQUESTS_MAX);
		else if (opt == 'r')
			range_max = bench_number(optarg, 1u << 30);
		else if (opt == 'w')
			workers_n = bench_number(optarg, 64);
		else if (opt == 'n')
			only_receives = true;
	}
	if (argc - optind != 2 || !requests_n || !range_max || !workers_n) {
		fprintf(stderr, "usage: store_bench [-c REQUESTS] [-r RANGE] [-w WORKERS] [-n] "
				"LIST OUT\n");
		return 2;
	}
	bench_list(argv[optind], &objects, &objects_n);
	cut_urls();
	setenv("AWS_ACCESS_KEY_ID", "nobody", 0);
	setenv("AWS_SECRET_ACCESS_KEY", "nothing", 0);
	snprintf(url, sizeof(url), "s3://%s", bucket);
	options.endpoint = origin;
	options.connections_n = (unsigned)requests_n;
	if (ds_store_open(url, &options, false, &store, &diag) < 0)
		bench_die("%s: %s", url, diag.detail);
	out = open(argv[optind + 1], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (out < 0)
		bench_die("%s", argv[optind + 1]);
	if (ds_work_new((unsigned)workers_n, "worker", &workers) < 0)
		bench_die("threads");
	start_ns = ds_mono_ns();
	running_n = (unsigned)requests_n;
	for (uint64_t i = 0; i < requests_n; i++)
		submit(&receivers[i]);
	pthread_mutex_lock(&mutex);
	while (running_n)
		pthread_cond_wait(&over, &mutex);
	pthread_mutex_unlock(&mutex);
	seconds = (double)(ds_mono_ns() - start_ns) / DS_NS_PER_S;
	printf("{\"bytes\": %llu, \"ranges\": %llu, \"seconds\": %.6f, \"bytes_per_s\": %.0f, "
	       "\"cpu_s\": %.3f, \"network_cpu_s\": %.3f, \"sum\": \"%s\"}\n",
	       (unsigned long long)at_out, (unsigned long long)ranges_n, seconds,
	       (double)at_out / seconds, bench_cpu_s(), network_s,
	       only_receives ? "" : bench_sum_format(&sum, text));
	ds_work_free(workers);
	ds_store_unref(store);
	bench_list_free(objects, objects_n);
	return 0;
}
