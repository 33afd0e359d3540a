/*
 * Several small GETs at a time, for calls that block.
 *
 * A slot is idle, in flight (the store's), or done (on `done`, under the lock). Only the caller's thread moves it from
 * idle to in flight and from done to idle; only the store's callback moves it to done.
 */
#include <assert.h>
#include <pthread.h>

#include "repo/commit_watch.h"
#include "repo/repo_internal.h"
#include "util/list.h"
#include "util/mem.h"

#define SLOTS_N 32u

struct pool;

struct slot {
	struct ds_list node; /* in locked.done */
	struct pool *pool;
	struct ds_store_req req;
	struct ds_buf buf;
	char *key;
	size_t idx;
	bool in_flight; /* for the store until `is_done`, which is under the pool's lock */
	bool is_done;
};

struct pool {
	pthread_mutex_t mutex;
	pthread_cond_t cond;
	struct {
		struct ds_list done;
	} locked;
	struct slot slots[SLOTS_N];
};

static void slot_done(struct ds_store_req *req)
{
	struct slot *slot = req->ctx;
	struct pool *pool = slot->pool;

	pthread_mutex_lock(&pool->mutex);
	slot->is_done = true;
	ds_list_push_back(&pool->locked.done, &slot->node);
	pthread_cond_signal(&pool->cond); /* under the lock: the pool may go once it is released */
	pthread_mutex_unlock(&pool->mutex);
}

static int slot_start(struct ds_repo *repo, struct slot *slot, const struct ds_get_many *many,
		      size_t idx)
{
	slot->key = many->key(many->ctx, idx);
	if (!slot->key)
		return -ENOMEM;
	ds_buf_init(&slot->buf, many->len_max);
	slot->idx = idx;
	slot->req = (struct ds_store_req){.op = DS_STORE_GET,
					  .key = slot->key,
					  .len_bytes = DS_STORE_LEN_ALL,
					  .into = &slot->buf,
					  .done = slot_done,
					  .ctx = slot};
	slot->in_flight = true;
	ds_store_submit(ds_repo_store(repo), &slot->req);
	return 0;
}

/* NULL: the store was interrupted; not without one. */
static struct slot *wait_done(struct pool *pool, const struct ds_store *store)
{
	struct slot *slot = NULL;

	pthread_mutex_lock(&pool->mutex);
	while (ds_list_is_empty(&pool->locked.done) && !(store && ds_store_is_interrupted(store)))
		commit_cond_wait(&pool->cond, &pool->mutex);
	if (!ds_list_is_empty(&pool->locked.done)) {
		slot = ds_list_entry(pool->locked.done.next, struct slot, node);
		ds_list_remove(&slot->node);
	}
	pthread_mutex_unlock(&pool->mutex);
	return slot;
}

static void slot_clear(struct slot *slot)
{
	ds_buf_release(&slot->buf);
	ds_free(slot->key);
	slot->key = NULL;
	slot->in_flight = slot->is_done = false;
}

static void pool_drain(struct ds_repo *repo, struct pool *pool, size_t flying_n)
{
	/* Under the lock, so that a request that is over is not cancelled. */
	pthread_mutex_lock(&pool->mutex);
	for (size_t i = 0; flying_n && i < SLOTS_N; i++) {
		if (pool->slots[i].in_flight && !pool->slots[i].is_done)
			ds_store_cancel(ds_repo_store(repo), &pool->slots[i].req);
	}
	pthread_mutex_unlock(&pool->mutex);
	while (flying_n--)
		slot_clear(wait_done(pool, NULL));
}

int ds_repo_get_many(struct ds_repo *repo, const struct ds_get_many *many)
{
	size_t started_n = 0, flying_n = 0, idle_n = 0;
	struct slot *idle[SLOTS_N];
	struct pool *pool;
	int r = 0;

	if (many->n == 0)
		return 0;
	pool = ds_calloc(1, sizeof(*pool));
	if (!pool)
		return -ENOMEM;
	pthread_mutex_init(&pool->mutex, NULL);
	commit_cond_init(&pool->cond);
	ds_list_init(&pool->locked.done);
	for (size_t i = 0; i < SLOTS_N; i++) {
		pool->slots[i].pool = pool;
		idle[idle_n++] = &pool->slots[i];
	}
	while (r == 0 && (started_n < many->n || flying_n > 0)) {
		struct slot *slot;
		int result;

		if (started_n < many->n && idle_n > 0) {
			r = slot_start(repo, idle[idle_n - 1], many, started_n);
			if (r < 0)
				break;
			idle_n--;
			started_n++;
			flying_n++;
			continue;
		}
		slot = wait_done(pool, ds_repo_store(repo));
		if (!slot) {
			r = -DS_E_INTERRUPTED;
			break;
		}
		flying_n--;
		result = slot->req.result == -DS_E_DENIED ? -DS_E_ABSENT : slot->req.result;
		r = many->each(many->ctx, slot->idx, result, &slot->buf, &slot->req.diag);
		slot_clear(slot);
		idle[idle_n++] = slot;
	}
	pool_drain(repo, pool, flying_n);
	pthread_cond_destroy(&pool->cond);
	pthread_mutex_destroy(&pool->mutex);
	ds_free(pool);
	return r;
}
