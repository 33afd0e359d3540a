#include "repo/commit_batch.h"

#include <errno.h>

#include "util/error.h"
#include "util/mem.h"

/* A flight is idle, at the store, or done (on locked.done). Only the caller's thread moves it from idle to the store and
 * from done to idle; only the store's callback moves it to done. */
struct flight {
	struct commit_batch_slot slot;
	struct ds_list node; /* locked.done */
	struct pool *pool;
	bool is_flying, is_done;
};

struct pool {
	pthread_mutex_t mutex;
	pthread_cond_t changed;
	struct {
		struct ds_list done;
	} locked;
	struct flight flights[COMMIT_BATCH_WINDOW_MAX];
};

static void on_done(struct ds_store_req *req)
{
	struct flight *flight = req->ctx;
	struct pool *pool = flight->pool;

	pthread_mutex_lock(&pool->mutex);
	flight->is_done = true;
	ds_list_push_back(&pool->locked.done, &flight->node);
	/* Under the lock: the pool may go once it is released. */
	pthread_cond_signal(&pool->changed);
	pthread_mutex_unlock(&pool->mutex);
}

static void launch(struct ds_store *store, const struct commit_batch *batch, struct flight *flight,
		   size_t idx)
{
	struct commit_batch_slot *slot = &flight->slot;

	slot->req = (struct ds_store_req){.key = slot->key};
	slot->buf = (struct ds_buf){0};
	slot->idx = idx;
	batch->start(batch->ctx, slot);
	slot->req.done = on_done;
	slot->req.ctx = flight;
	flight->is_flying = true;
	flight->is_done = false;
	ds_store_submit(store, &slot->req);
}

/* NULL: interrupted. */
static struct flight *wait_done(struct pool *pool, const struct commit_watch *watch)
{
	struct flight *flight = NULL;

	pthread_mutex_lock(&pool->mutex);
	while (ds_list_is_empty(&pool->locked.done) && !commit_is_interrupted(watch)) {
		commit_cond_wait(&pool->changed, &pool->mutex);
		pthread_mutex_unlock(&pool->mutex);
		commit_tick(watch);
		pthread_mutex_lock(&pool->mutex);
	}
	if (!ds_list_is_empty(&pool->locked.done)) {
		flight = ds_list_entry(pool->locked.done.next, struct flight, node);
		ds_list_remove(&flight->node);
	}
	pthread_mutex_unlock(&pool->mutex);
	return flight;
}

static void drain(struct ds_store *store, struct pool *pool, size_t flying_n)
{
	/* Under the lock, so that nothing is cancelled that is over. */
	pthread_mutex_lock(&pool->mutex);
	for (size_t i = 0; flying_n && i < COMMIT_BATCH_WINDOW_MAX; i++)
		if (pool->flights[i].is_flying && !pool->flights[i].is_done)
			ds_store_cancel(store, &pool->flights[i].slot.req);
	pthread_mutex_unlock(&pool->mutex);
	while (flying_n--)
		ds_buf_release(&wait_done(pool, NULL)->slot.buf);
}

int commit_batch_run(struct ds_store *store, const struct commit_batch *batch,
		     const struct commit_watch *watch)
{
	struct flight *idle[COMMIT_BATCH_WINDOW_MAX];
	size_t started_n = 0, flying_n = 0, idle_n = 0;
	struct pool *pool;
	int r = 0;

	if (!batch->n)
		return 0;
	pool = ds_calloc(1, sizeof(*pool));
	if (!pool)
		return -ENOMEM;
	pthread_mutex_init(&pool->mutex, NULL);
	commit_cond_init(&pool->changed);
	ds_list_init(&pool->locked.done);
	while (idle_n < DS_MIN(batch->window, COMMIT_BATCH_WINDOW_MAX)) {
		pool->flights[idle_n].pool = pool;
		idle[idle_n] = &pool->flights[idle_n];
		idle_n++;
	}
	while (r == 0 && (started_n < batch->n || flying_n)) {
		struct flight *flight;

		if (commit_is_interrupted(watch)) {
			r = -DS_E_INTERRUPTED;
		} else if (started_n < batch->n && idle_n) {
			launch(store, batch, idle[--idle_n], started_n++);
			flying_n++;
		} else if ((flight = wait_done(pool, watch))) {
			flying_n--;
			flight->is_flying = false;
			r = batch->finish(batch->ctx, &flight->slot);
			ds_buf_release(&flight->slot.buf);
			idle[idle_n++] = flight;
		}
	}
	drain(store, pool, flying_n);
	pthread_cond_destroy(&pool->changed);
	pthread_mutex_destroy(&pool->mutex);
	ds_free(pool);
	return r;
}
