#include "fault_store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "util/mem.h"

struct passing {
	struct ds_work_item work;
	struct fault_store *store;
	struct ds_list node;
	struct ds_store_req *outer;
	struct ds_store_req inner;
	bool is_held, flip;
	int result;
};

static struct fault_store *store_of(struct ds_store *store)
{
	return ds_container_of(store, struct fault_store, base);
}

static void answer(struct passing *passing)
{
	struct ds_store_req *req = passing->outer;
	struct fault_store *store = passing->store;

	req->result = passing->inner.result;
	req->diag = passing->inner.diag;
	req->retry_after_ns = passing->inner.retry_after_ns;
	req->object_size_bytes = passing->inner.object_size_bytes;
	req->modified = passing->inner.modified;
	req->store_time = passing->inner.store_time;
	if (passing->flip && req->result == 0 && req->op == DS_STORE_GET && req->into->len_bytes)
		req->into->data[req->into->len_bytes / 2] ^= 0x10;
	free(passing);
	ds_store_complete(&store->base, req);
}

static void inner_done(struct ds_store_req *req)
{
	answer(ds_container_of(req, struct passing, inner));
}

static void run_failure(struct ds_work_item *item)
{
	struct passing *passing = ds_container_of(item, struct passing, work);

	passing->inner.result = passing->result;
	answer(passing);
}

/* As the request is now: it may be hastened afterwards, under the mutex. */
static void copy_locked(struct passing *passing)
{
	passing->inner = *passing->outer;
	passing->inner.done = inner_done;
	passing->inner.internal = NULL;
}

static void forward(struct passing *passing)
{
	ds_store_submit(passing->store->inner, &passing->inner);
}

static void submit(struct ds_store *base, struct ds_store_req *req)
{
	struct fault_store *store = store_of(base);
	struct passing *passing = calloc(1, sizeof(*passing));
	enum { FORWARD, HOLD, FAIL } what = FORWARD;

	passing->store = store;
	passing->outer = req;
	passing->work.run = run_failure;
	pthread_mutex_lock(&store->mutex);
	if ((req->op == DS_STORE_GET || req->op == DS_STORE_HEAD) &&
	    (!store->match || strstr(req->key, store->match))) {
		store->gets_n++;
		if (store->hold && store->pass_n > 0) {
			store->pass_n--;
		} else if (store->hold) {
			what = HOLD;
			passing->is_held = true;
			req->internal = passing;
			ds_list_push_back(&store->held, &passing->node);
			store->held_n++;
			store->held_max_n = DS_MAX(store->held_n, store->held_max_n);
			pthread_cond_broadcast(&store->changed);
		} else if (store->fail_n > 0) {
			store->fail_n--;
			store->failed_n++;
			passing->result = store->fail;
			passing->inner.retry_after_ns = store->fail_after_ns;
			what = FAIL;
		} else if (store->flip_n > 0) {
			store->flip_n--;
			store->flipped_n++;
			passing->flip = true;
		}
	}
	if (what == FORWARD)
		copy_locked(passing);
	pthread_mutex_unlock(&store->mutex);
	if (what == FAIL)
		ds_work_submit(store->thread, &passing->work, true);
	else if (what == FORWARD)
		forward(passing);
}

static void cancel(struct ds_store *base, struct ds_store_req *req)
{
	struct fault_store *store = store_of(base);
	struct passing *passing = NULL;

	pthread_mutex_lock(&store->mutex);
	/* Only what is held is worth it; the others are over in a moment. */
	ds_list_for_each (node, &store->held) {
		struct passing *it = ds_list_entry(node, struct passing, node);

		if (it->outer == req)
			passing = it;
	}
	if (passing) {
		ds_list_remove(&passing->node);
		store->held_n--;
		store->cancelled_n++;
		passing->result = -DS_E_INTERRUPTED;
		pthread_cond_broadcast(&store->changed);
	}
	pthread_mutex_unlock(&store->mutex);
	if (passing)
		ds_work_submit(store->thread, &passing->work, true);
}

static void hasten(struct ds_store *base, struct ds_store_req *req)
{
	struct fault_store *store = store_of(base);

	pthread_mutex_lock(&store->mutex);
	req->is_urgent = true;
	store->hastened_n++;
	pthread_cond_broadcast(&store->changed);
	pthread_mutex_unlock(&store->mutex);
}

static void destroy(struct ds_store *base)
{
	struct fault_store *store = store_of(base);

	ds_work_free(store->thread);
	ds_store_unref(store->inner);
	pthread_mutex_destroy(&store->mutex);
	pthread_cond_destroy(&store->changed);
	ds_store_release(&store->base);
	free(store);
}

static void get_stats(struct ds_store *base, struct ds_store_stats *ret_stats)
{
	ds_store_get_stats(store_of(base)->inner, ret_stats);
}

static const struct ds_store_ops ops = {.submit = submit,
					.cancel = cancel,
					.hasten = hasten,
					.destroy = destroy,
					.get_stats = get_stats};

struct fault_store *fault_store_new(struct ds_store *inner)
{
	struct fault_store *store = calloc(1, sizeof(*store));

	if (ds_store_init(&store->base, &ops, "fault:", 0) < 0 ||
	    ds_work_new(1, "fault-store", &store->thread) < 0)
		abort();
	store->inner = ds_store_ref(inner);
	pthread_mutex_init(&store->mutex, NULL);
	pthread_cond_init(&store->changed, NULL);
	ds_list_init(&store->held);
	return store;
}

/* False: none is held. */
static bool answer_held(struct fault_store *store, bool goes_on)
{
	struct passing *passing = NULL;

	pthread_mutex_lock(&store->mutex);
	store->hold = goes_on;
	if (!ds_list_is_empty(&store->held)) {
		passing = ds_list_entry(store->held.next, struct passing, node);
		ds_list_remove(&passing->node);
		store->held_n--;
		copy_locked(passing);
	}
	pthread_mutex_unlock(&store->mutex);
	if (passing)
		forward(passing);
	return passing;
}

void fault_store_release(struct fault_store *store)
{
	while (answer_held(store, false))
		;
}

void fault_store_release_one(struct fault_store *store)
{
	answer_held(store, true);
}

void fault_store_wait_held(struct fault_store *store, unsigned n)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 20;
	pthread_mutex_lock(&store->mutex);
	while (store->held_n < n)
		if (pthread_cond_timedwait(&store->changed, &store->mutex, &until) != 0) {
			fprintf(stderr, "%u requests are held, not %u\n", store->held_n, n);
			abort();
		}
	pthread_mutex_unlock(&store->mutex);
}
