/*
 * The base of all stores: opening by URL, references, blocking calls over asynchronous ones, and
 * what was learned of the store's clock.
 */
#include "store/store.h"

#include <assert.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "store/store_backend.h"
#include "util/mem.h"
#include "util/str.h"

/*
 * INV-1 The estimate is never ahead of the store's clock by more than that clock's own jumps: what
 *       an answer says was true before it arrived, and whole seconds are cut.
 * INV-2 Small steps back (up to 2 s: whole seconds, slow answers) are not taken.
 * INV-3 A jump (more than 5 min either way) is taken when a second answer in a row says it too: a single wrong date
 *       would put its time into a record for good, or make old packs look young.
 */
struct ds_store_clock {
	pthread_mutex_t mutex;
	struct {
		bool is_known;
		struct ds_time time;
		uint64_t mono_ns; /* when it was `time` */
		/* The last answer's, if it was a jump; else .s 0. */
		struct ds_time doubt;
		uint64_t doubt_ns;
	} locked;
};

#define LOOK_MS	     100u
#define STEP_BACK_NS (2 * (int64_t)DS_NS_PER_S)
#define JUMP_NS	     (5 * 60 * (int64_t)DS_NS_PER_S)

int ds_store_init(struct ds_store *store, const struct ds_store_ops *ops, const char *url,
		  uint64_t timeout_ms)
{
	struct ds_store_clock *clock = ds_calloc(1, sizeof(*clock));
	char *copy = ds_strdup(url);

	if (!clock || !copy) {
		ds_free(clock);
		ds_free(copy);
		return -ENOMEM;
	}
	pthread_mutex_init(&clock->mutex, NULL);
	store->ops = ops;
	store->refs_n = 1;
	store->url = copy;
	store->timeout_ms = timeout_ms ? timeout_ms : DS_STORE_TIMEOUT_MS;
	store->clock = clock;
	store->interrupted = NULL;
	return 0;
}

void ds_store_release(struct ds_store *store)
{
	pthread_mutex_destroy(&store->clock->mutex);
	ds_free(store->clock);
	ds_free(store->url);
}

struct ds_store *ds_store_ref(struct ds_store *store)
{
	unsigned before = store->refs_n++;

	assert(before > 0);
	return store;
}

struct ds_store *ds_store_unref(struct ds_store *store)
{
	if (store && --store->refs_n == 0)
		store->ops->destroy(store);
	return NULL;
}

/* The two hex digits at `text`, or -1. */
static int hex_byte(const char *text)
{
	int value = 0;

	for (int i = 0; i < 2; i++) {
		char c = text[i];

		value *= 16;
		if (c >= '0' && c <= '9')
			value += c - '0';
		else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
			value += (c | 0x20) - 'a' + 10;
		else
			return -1;
	}
	return value;
}

/* The path of file:///path, with percent-encoding undone (RFC 8089). */
static int path_of_file_url(const char *url, char **ret_path, struct ds_diag *reterr_diag)
{
	const char *from = url + strlen("file://");
	char *path, *to;

	if (ds_starts_with(from, "localhost/"))
		from += strlen("localhost");
	if (*from != '/')
		return ds_diag_set(reterr_diag, -DS_E_USAGE, url,
				   "a file URL has three slashes: file:///path");
	path = to = ds_malloc(strlen(from) + 1);
	if (!path)
		return -ENOMEM;
	while (*from) {
		int byte = (unsigned char)*from;

		if (*from == '%') {
			byte = hex_byte(from + 1);
			from += 2;
		}
		if (byte <= 0) {
			ds_free(path);
			return ds_diag_set(reterr_diag, -DS_E_USAGE, url,
					   "bad percent-encoding (a percent sign is %%25)");
		}
		*to++ = (char)byte;
		from++;
	}
	*to = '\0';
	*ret_path = path;
	return 0;
}

int ds_store_path_of(const char *url, char **ret_path, struct ds_diag *reterr_diag)
{
	if (ds_starts_with(url, "s3://")) {
		*ret_path = NULL;
		return 0;
	}
	if (ds_starts_with(url, "file://"))
		return path_of_file_url(url, ret_path, reterr_diag);
	/* Not quoted in the message: what is behind "://" may be a password. */
	if (strstr(url, "://"))
		return ds_diag_set(reterr_diag, -DS_E_USAGE, NULL,
				   "a store is s3://bucket/prefix, file:///path or a path");
	if (!*url)
		return ds_diag_set(reterr_diag, -DS_E_USAGE, NULL, "the store's URL is empty");
	*ret_path = ds_strdup(url);
	return *ret_path ? 0 : -ENOMEM;
}

static int open_backend(const char *url, const struct ds_store_options *options, bool create,
			struct ds_store **ret_store, struct ds_diag *reterr_diag)
{
	_ds_cleanup_free_ char *path = NULL;
	int r = ds_store_path_of(url, &path, reterr_diag);

	if (r < 0)
		return r;
	if (!path)
		return ds_store_s3_open(url, options, ret_store, reterr_diag);
	return ds_store_dir_open(url, path, create, options->timeout_ms, ret_store, reterr_diag);
}

int ds_store_open(const char *url, const struct ds_store_options *options, bool create,
		  struct ds_store **ret_store, struct ds_diag *reterr_diag)
{
	static const struct ds_store_options defaults;
	int r;

	if (!options)
		options = &defaults;
	r = open_backend(url, options, create, ret_store, reterr_diag);
	if (r == 0)
		(*ret_store)->interrupted = options->interrupted;
	return r;
}

/* ---- requests */

static void prepare(struct ds_store *store, struct ds_store_req *req)
{
	assert(req->key);
	assert(req->op == DS_STORE_LIST || *req->key);
	assert(req->op != DS_STORE_GET || req->into);
	assert(req->op != DS_STORE_GET || !req->from_end || req->len_bytes != DS_STORE_LEN_ALL);
	assert(req->op != DS_STORE_LIST || req->listing);
	assert(req->op != DS_STORE_PUT || req->body || req->body_len_bytes == 0);
	req->result = 0;
	ds_diag_clear(&req->diag);
	req->object_size_bytes = 0;
	req->modified = req->store_time = (struct ds_time){0};
	req->internal = NULL;
	req->is_time_noted = false;
	ds_list_init(&req->node);
	assert(!req->by_headway || req->op == DS_STORE_PUT);
	if (req->by_headway)
		req->deadline_ns = DS_DEADLINE_NONE;
	else if (!req->deadline_ns)
		req->deadline_ns = ds_deadline_in_ms(store->timeout_ms);
}

static bool is_jump(struct ds_time from, uint64_t elapsed_ns, struct ds_time to)
{
	int64_t ahead = ds_time_diff_ns(to, ds_time_add_ns(from, (int64_t)elapsed_ns));

	return ahead > JUMP_NS || ahead < -JUMP_NS;
}

static void learn(struct ds_store *store, struct ds_time time, bool is_sure)
{
	struct ds_store_clock *clock = store->clock;
	uint64_t now = ds_mono_ns();
	bool is_doubted;

	if (time.s == 0)
		return;
	pthread_mutex_lock(&clock->mutex);
	is_doubted = clock->locked.is_known && !is_sure &&
		     is_jump(clock->locked.time, now - clock->locked.mono_ns, time) &&
		     (clock->locked.doubt.s == 0 ||
		      is_jump(clock->locked.doubt, now - clock->locked.doubt_ns, time));
	if (is_doubted) {
		clock->locked.doubt = time;
		clock->locked.doubt_ns = now;
	} else {
		if (clock->locked.is_known) {
			struct ds_time carried =
				ds_time_add_ns(clock->locked.time,
					       (int64_t)(now - clock->locked.mono_ns));
			int64_t behind = ds_time_diff_ns(carried, time);

			if (behind > 0 && behind < STEP_BACK_NS)
				time = carried;
		}
		clock->locked.is_known = true;
		clock->locked.time = time;
		clock->locked.mono_ns = now;
		clock->locked.doubt = (struct ds_time){0};
	}
	pthread_mutex_unlock(&clock->mutex);
}

void ds_store_learn_time(struct ds_store *store, struct ds_time time)
{
	learn(store, time, false);
}

void ds_store_correct_time(struct ds_store *store, struct ds_time time)
{
	learn(store, time, true);
}

/* The estimate; false if nothing was learned yet. */
static bool estimate(struct ds_store *store, struct ds_time *ret_now)
{
	struct ds_store_clock *clock = store->clock;
	bool is_known;

	pthread_mutex_lock(&clock->mutex);
	is_known = clock->locked.is_known;
	if (is_known)
		*ret_now = ds_time_add_ns(clock->locked.time,
					  (int64_t)(ds_mono_ns() - clock->locked.mono_ns));
	pthread_mutex_unlock(&clock->mutex);
	return is_known;
}

struct ds_time ds_store_estimate_now(struct ds_store *store)
{
	struct ds_time now;

	return estimate(store, &now) ? now : ds_real_now();
}

static void note_result(struct ds_store *store, struct ds_store_req *req)
{
	/* Once for each answer, or it would confirm itself. */
	if (!req->is_time_noted)
		ds_store_learn_time(store, req->store_time);
	req->is_time_noted = true;
	if (req->result < 0) {
		req->diag.code = req->result;
		if (!req->diag.object[0])
			ds_diag_set(&req->diag, req->result, req->key, NULL);
	}
}

void ds_store_complete(struct ds_store *store, struct ds_store_req *req)
{
	note_result(store, req);
	req->done(req);
}

int ds_store_start(struct ds_store *store)
{
	return store->ops->start ? store->ops->start(store) : 0;
}

void ds_store_submit(struct ds_store *store, struct ds_store_req *req)
{
	assert(req->done);
	prepare(store, req);
	store->ops->submit(store, req);
}

void ds_store_cancel(struct ds_store *store, struct ds_store_req *req)
{
	store->ops->cancel(store, req);
}

void ds_store_hasten(struct ds_store *store, struct ds_store_req *req)
{
	if (store->ops->hasten)
		store->ops->hasten(store, req);
}

bool ds_store_is_interrupted(const struct ds_store *store)
{
	return store->interrupted && *store->interrupted;
}

struct waiter {
	pthread_mutex_t mutex;
	pthread_cond_t over;
	bool is_over;
};

static void waiter_init(struct waiter *waiter)
{
	pthread_condattr_t attr;

	pthread_mutex_init(&waiter->mutex, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&waiter->over, &attr);
	pthread_condattr_destroy(&attr);
	waiter->is_over = false;
}

static void wake_waiter(struct ds_store_req *req)
{
	struct waiter *waiter = req->ctx;

	pthread_mutex_lock(&waiter->mutex);
	waiter->is_over = true;
	pthread_cond_signal(&waiter->over);
	pthread_mutex_unlock(&waiter->mutex);
}

static void wait_over(struct ds_store *store, struct ds_store_req *req, struct waiter *waiter)
{
	bool may_cancel = store->interrupted && !req->is_last_will;

	pthread_mutex_lock(&waiter->mutex);
	while (!waiter->is_over) {
		/* A signal handler can set a flag but signal no condition. */
		uint64_t until_ns = ds_deadline_in_ms(LOOK_MS);
		struct timespec until = {.tv_sec = (time_t)(until_ns / DS_NS_PER_S),
					 .tv_nsec = (long)(until_ns % DS_NS_PER_S)};

		if (may_cancel && ds_store_is_interrupted(store)) {
			/* Under the lock that done takes: it is not over. */
			ds_store_cancel(store, req);
			may_cancel = false;
		}
		if (may_cancel)
			pthread_cond_timedwait(&waiter->over, &waiter->mutex, &until);
		else
			pthread_cond_wait(&waiter->over, &waiter->mutex);
	}
	pthread_mutex_unlock(&waiter->mutex);
}

int ds_store_perform(struct ds_store *store, struct ds_store_req *req)
{
	struct waiter waiter;
	void (*done)(struct ds_store_req *) = req->done;
	void *ctx = req->ctx;
	int r;

	prepare(store, req);
	if (!req->is_last_will && ds_store_is_interrupted(store))
		return req->result = ds_diag_set(&req->diag, -DS_E_INTERRUPTED, req->key, NULL);
	if (store->ops->perform) {
		store->ops->perform(store, req);
		note_result(store, req);
		return req->result;
	}
	r = ds_store_start(store);
	if (r < 0)
		return req->result =
			       ds_diag_set(&req->diag, r, req->key, "a thread cannot be started");
	waiter_init(&waiter);
	req->done = wake_waiter;
	req->ctx = &waiter;
	store->ops->submit(store, req);
	wait_over(store, req, &waiter);
	pthread_cond_destroy(&waiter.over);
	pthread_mutex_destroy(&waiter.mutex);
	/* A decorator need not pass on what it learned. */
	note_result(store, req);
	req->done = done;
	req->ctx = ctx;
	return req->result;
}

static int perform(struct ds_store *store, struct ds_store_req *req, struct ds_diag *reterr_diag)
{
	int r = ds_store_perform(store, req);

	if (r < 0 && reterr_diag)
		*reterr_diag = req->diag;
	return r;
}

int ds_store_get(struct ds_store *store, const char *key, struct ds_buf *into,
		 struct ds_diag *reterr_diag)
{
	struct ds_store_req req = {.op = DS_STORE_GET,
				   .key = key,
				   .len_bytes = DS_STORE_LEN_ALL,
				   .into = into};

	return perform(store, &req, reterr_diag);
}

static int put(struct ds_store *store, const char *key, const void *body, size_t len_bytes,
	       bool if_absent, struct ds_diag *reterr_diag)
{
	struct ds_store_req req = {.op = DS_STORE_PUT,
				   .key = key,
				   .body = body,
				   .body_len_bytes = len_bytes,
				   .if_absent = if_absent};

	return perform(store, &req, reterr_diag);
}

int ds_store_put_if_absent(struct ds_store *store, const char *key, const void *body,
			   size_t len_bytes, struct ds_diag *reterr_diag)
{
	return put(store, key, body, len_bytes, true, reterr_diag);
}

int ds_store_put(struct ds_store *store, const char *key, const void *body, size_t len_bytes,
		 struct ds_diag *reterr_diag)
{
	return put(store, key, body, len_bytes, false, reterr_diag);
}

int ds_store_now(struct ds_store *store, struct ds_time *ret_now, struct ds_diag *reterr_diag)
{
	struct ds_store_req req = {.op = DS_STORE_HEAD, .key = "dsfs.json"};
	int r;

	if (store->ops->now)
		return store->ops->now(store, ret_now);
	if (estimate(store, ret_now))
		return 0;
	/* Whatever the answer is, it has a date. */
	r = ds_store_perform(store, &req);
	if (estimate(store, ret_now))
		return 0;
	if (reterr_diag)
		*reterr_diag = req.diag;
	return r < 0 ? r
		     : ds_diag_set(reterr_diag, -DS_E_PROTOCOL, req.key, "the answer says no date");
}

void ds_store_get_stats(struct ds_store *store, struct ds_store_stats *ret_stats)
{
	store->ops->get_stats(store, ret_stats);
}

const char *ds_store_url(const struct ds_store *store)
{
	return store->url;
}

const char *ds_store_local_path(const struct ds_store *store)
{
	return store->ops->local_path ? store->ops->local_path(store) : NULL;
}

int ds_store_lock(struct ds_store *store, bool exclusive, int *ret_fd)
{
	if (store->ops->lock)
		return store->ops->lock(store, exclusive, ret_fd);
	*ret_fd = -1;
	return 0;
}

/* ---- what the backends share */

void ds_store_counters_get(const struct ds_store_counters *counters,
			   struct ds_store_stats *ret_stats)
{
	for (size_t i = 0; i < DS_ARRAY_SIZE(ret_stats->requests_n); i++)
		ret_stats->requests_n[i] = counters->requests_n[i];
	ret_stats->retries_n = counters->retries_n;
	ret_stats->failures_n = counters->failures_n;
	ret_stats->received_bytes = counters->received_bytes;
	ret_stats->sent_bytes = counters->sent_bytes;
}

void ds_store_count_result(struct ds_store_counters *counters, int result)
{
	if (result < 0 && result != -DS_E_ABSENT && result != -DS_E_PRESENT)
		counters->failures_n++;
}

int ds_store_check_key(const char *key, struct ds_diag *reterr_diag)
{
	const char *at = key;

	if (strlen(key) > DS_STORE_KEY_MAX_BYTES)
		return ds_diag_set(reterr_diag, -EINVAL, key, "the key is too long");
	if (strcmp(key, "lock") == 0 || ds_starts_with(key, "lock/"))
		return ds_diag_set(reterr_diag, -EINVAL, key, "the key is reserved");
	for (;;) {
		size_t len = strcspn(at, "/");

		if (len == 0 || len > 255 || (len == 1 && at[0] == '.') ||
		    (len == 2 && at[0] == '.' && at[1] == '.') || ds_starts_with(at, ".tmp-"))
			return ds_diag_set(reterr_diag, -EINVAL, key,
					   "the key has a component that is not allowed");
		at += len;
		if (!*at)
			return 0;
		at++;
	}
}

int ds_store_listing_append(struct ds_store_listing *listing, const char *key, size_t key_len,
			    uint64_t size_bytes, struct ds_time modified)
{
	char *copy;

	if (listing->objects_n == listing->capacity_n) {
		size_t capacity_n = listing->capacity_n ? listing->capacity_n * 2 : 16;
		struct ds_store_object *objects =
			ds_reallocarray(listing->objects, capacity_n, sizeof(listing->objects[0]));

		if (!objects)
			return -ENOMEM;
		listing->objects = objects;
		listing->capacity_n = capacity_n;
	}
	copy = ds_strndup(key, key_len);
	if (!copy)
		return -ENOMEM;
	listing->objects[listing->objects_n++] = (struct ds_store_object){.key = copy,
									  .size_bytes = size_bytes,
									  .modified = modified};
	return 0;
}

void ds_store_listing_truncate(struct ds_store_listing *listing, size_t objects_n)
{
	while (listing->objects_n > objects_n)
		ds_free(listing->objects[--listing->objects_n].key);
}

void ds_store_listing_release(struct ds_store_listing *listing)
{
	ds_store_listing_truncate(listing, 0);
	ds_free(listing->objects);
	*listing = (struct ds_store_listing){0};
}

int ds_store_get_range(struct ds_store_req *req, uint64_t object_size_bytes, uint64_t *ret_off,
		       uint64_t *ret_len_bytes)
{
	uint64_t off = req->off, len = req->len_bytes;

	if (req->from_end) {
		len = DS_MIN(len, object_size_bytes);
		off = object_size_bytes - len;
	} else if (off > object_size_bytes ||
		   (len != DS_STORE_LEN_ALL && len > object_size_bytes - off)) {
		return ds_diag_set(&req->diag, -DS_E_MALFORMED, req->key,
				   "the object has %llu bytes and ends before what was asked of it",
				   (unsigned long long)object_size_bytes);
	} else if (len == DS_STORE_LEN_ALL) {
		len = object_size_bytes - off;
	}
	if (len > req->into->max_bytes - req->into->len_bytes)
		return ds_diag_set(&req->diag, -DS_E_LIMIT, req->key,
				   "the object has %llu bytes, more than expected",
				   (unsigned long long)object_size_bytes);
	*ret_off = off;
	*ret_len_bytes = len;
	return 0;
}
