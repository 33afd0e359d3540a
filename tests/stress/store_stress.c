/*
 * Threads that use one store at once: blocking calls, submitted ones, cancels, and the end of a
 * store with requests under way. For the thread sanitizer; a plain program, since Criterion does not
 * run under it.
 *
 * usage: store_stress memory|dir|s3 [ROUNDS]	(s3: AWS_* and BUCKET in the environment)
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/store.h"
#include "util/file.h"
#include "util/mem.h"
#include "util/random.h"

#define THREADS_N 6u
#define KEYS_N	  24u
#define SLOTS_N	  8u

static struct ds_store *store;
static unsigned rounds_n = 150;
static _Atomic unsigned wrong_n, done_n, cancelled_n;

#define CHECK(ok, ...)                                \
	do {                                          \
		if (!(ok)) {                          \
			fprintf(stderr, __VA_ARGS__); \
			fputc('\n', stderr);          \
			wrong_n++;                    \
		}                                     \
	} while (0)

/* Every writer of a key writes the same bytes. */
static size_t body_of(unsigned key, char *body)
{
	size_t len = 10 + key * 37;

	for (size_t i = 0; i < len; i++)
		body[i] = (char)('a' + (i * 7 + key) % 26);
	return len;
}

static void key_name(unsigned key, char *name, size_t size)
{
	snprintf(name, size, "d%u/e%u/k%u", key % 3, key % 5, key);
}

struct slot {
	struct ds_store_req req;
	struct ds_buf buf;
	char key[64];
	unsigned number, again_n;
	struct worker *worker;
	bool is_busy; /* under the worker's mutex */
};

struct worker {
	pthread_t thread;
	pthread_mutex_t mutex;
	pthread_cond_t wake;
	struct ds_prng prng;
	struct slot slots[SLOTS_N];
};

static void check_body(unsigned key, const struct ds_buf *buf)
{
	char body[1024];
	size_t len = body_of(key, body);

	CHECK(buf->len_bytes == len && memcmp(buf->data, body, len) == 0, "key %u: wrong bytes",
	      key);
}

static void slot_done(struct ds_store_req *req)
{
	struct slot *slot = req->ctx;

	done_n++;
	CHECK(req->result == 0 || req->result == -DS_E_ABSENT || req->result == -DS_E_INTERRUPTED,
	      "%s: %s", slot->key, ds_strerror(req->result));
	if (req->result == 0)
		check_body(slot->number, &slot->buf);
	cancelled_n += req->result == -DS_E_INTERRUPTED;
	if (slot->again_n && req->result != -DS_E_INTERRUPTED) {
		slot->again_n--;
		ds_buf_clear(&slot->buf);
		ds_store_submit(store, req);
		return;
	}
	pthread_mutex_lock(&slot->worker->mutex);
	slot->is_busy = false;
	pthread_cond_signal(&slot->worker->wake);
	pthread_mutex_unlock(&slot->worker->mutex);
}

static void submit_or_cancel(struct worker *worker, struct slot *slot)
{
	bool is_busy;

	pthread_mutex_lock(&worker->mutex);
	is_busy = slot->is_busy;
	if (is_busy && slot->again_n == 0)
		ds_store_cancel(store, &slot->req);
	slot->is_busy = true;
	pthread_mutex_unlock(&worker->mutex);
	if (is_busy)
		return;
	slot->number = (unsigned)ds_prng_below(&worker->prng, KEYS_N);
	key_name(slot->number, slot->key, sizeof(slot->key));
	slot->again_n = 0;
	ds_buf_clear(&slot->buf);
	slot->req = (struct ds_store_req){.op = DS_STORE_GET,
					  .key = slot->key,
					  .len_bytes = DS_STORE_LEN_ALL,
					  .into = &slot->buf,
					  .is_urgent = slot->number % 2,
					  .done = slot_done,
					  .ctx = slot};
	ds_store_submit(store, &slot->req);
}

static void one_call(struct worker *worker)
{
	unsigned number = (unsigned)ds_prng_below(&worker->prng, KEYS_N);
	struct ds_store_listing listing = {0};
	struct ds_buf buf = DS_BUF_INIT(4096);
	struct ds_store_req req = {.op = DS_STORE_LIST, .key = "d1/", .listing = &listing};
	char key[64], body[1024];
	size_t len = body_of(number, body);
	struct ds_time now;
	int r = 0;

	key_name(number, key, sizeof(key));
	switch (ds_prng_below(&worker->prng, 8)) {
	case 0:
		r = ds_store_put(store, key, body, len, NULL);
		break;
	case 1:
		r = ds_store_put_if_absent(store, key, body, len, NULL);
		break;
	case 2:
		req = (struct ds_store_req){.op = DS_STORE_DELETE, .key = key};
		r = ds_store_perform(store, &req);
		break;
	case 3:
		r = ds_store_perform(store, &req);
		break;
	case 4:
		r = ds_store_now(store, &now, NULL);
		break;
	default:
		r = ds_store_get(store, key, &buf, NULL);
		if (r == 0)
			check_body(number, &buf);
	}
	CHECK(r == 0 || r == -DS_E_ABSENT || r == -DS_E_PRESENT, "%s: %s", key, ds_strerror(r));
	ds_store_listing_release(&listing);
	ds_buf_release(&buf);
}

static void *work(void *arg)
{
	struct worker *worker = arg;

	for (unsigned round = 0; round < rounds_n; round++) {
		one_call(worker);
		submit_or_cancel(worker, &worker->slots[ds_prng_below(&worker->prng, SLOTS_N)]);
	}
	for (unsigned i = 0; i < SLOTS_N; i++) {
		pthread_mutex_lock(&worker->mutex);
		while (worker->slots[i].is_busy)
			pthread_cond_wait(&worker->wake, &worker->mutex);
		pthread_mutex_unlock(&worker->mutex);
	}
	return NULL;
}

/* The last unref while requests are under way, and while their done submits more. */
static void end_under_load(struct worker *worker)
{
	for (unsigned i = 0; i < SLOTS_N; i++) {
		struct slot *slot = &worker->slots[i];

		submit_or_cancel(worker, slot);
	}
	store = ds_store_unref(store);
	for (unsigned i = 0; i < SLOTS_N; i++)
		CHECK(!worker->slots[i].is_busy, "a request outlived its store");
}

static int open_store(const char *kind, char *dir)
{
	char url[128];

	if (strcmp(kind, "memory") == 0)
		return ds_store_memory_new(NULL, NULL, &store);
	if (strcmp(kind, "dir") == 0) {
		strcpy(dir, "/tmp/dsfs-store-stress-XXXXXX");
		return mkdtemp(dir) ? ds_store_open(dir, NULL, false, &store, NULL) : -errno;
	}
	snprintf(url, sizeof(url), "s3://%s/stress-%016llx", getenv("BUCKET"),
		 (unsigned long long)ds_random_u64());
	return ds_store_open(url, NULL, false, &store, NULL);
}

int main(int argc, char **argv)
{
	struct worker *workers = calloc(THREADS_N, sizeof(*workers));
	char dir[64] = "";
	int r;

	if (argc < 2 || !workers)
		return 2;
	if (argc > 2)
		rounds_n = (unsigned)atoi(argv[2]);
	r = open_store(argv[1], dir);
	if (r < 0) {
		fprintf(stderr, "%s: %s\n", argv[1], ds_strerror(r));
		return 1;
	}
	for (unsigned i = 0; i < THREADS_N; i++) {
		struct worker *worker = &workers[i];

		pthread_mutex_init(&worker->mutex, NULL);
		pthread_cond_init(&worker->wake, NULL);
		worker->prng.state = i + 1;
		for (unsigned j = 0; j < SLOTS_N; j++) {
			worker->slots[j].worker = worker;
			ds_buf_init(&worker->slots[j].buf, 4096);
		}
		pthread_create(&worker->thread, NULL, work, worker);
	}
	for (unsigned i = 0; i < THREADS_N; i++)
		pthread_join(workers[i].thread, NULL);
	end_under_load(&workers[0]);
	for (unsigned i = 0; i < THREADS_N; i++)
		for (unsigned j = 0; j < SLOTS_N; j++)
			ds_buf_release(&workers[i].slots[j].buf);
	free(workers);
	if (dir[0])
		ds_rmtree_at(AT_FDCWD, dir);
	printf("%s: %u submitted requests done, %u of them cancelled, %u wrong\n", argv[1], done_n,
	       cancelled_n, wrong_n);
	return wrong_n > 0 || done_n == 0;
}
