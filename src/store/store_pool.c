/*
 * The pool that makes a blocking backend asynchronous: see store_backend.h.
 *
 * States of a request, in req->internal under the mutex: WAITING (on a list; cancel moves it to
 * `cancelled`), RUNNING (cancel does nothing: local work is short), NULL (over).
 * INV-1 A request on a list is WAITING or CANCELLED. INV-2 done is called without the mutex, by a
 * thread of the pool. INV-3 threads_n falls only in free.
 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>

#include "store/store_backend.h"
#include "util/mem.h"

static char mark_waiting, mark_cancelled, mark_running;

struct ds_store_pool {
	struct ds_store *store;
	void (*run)(struct ds_store *store, struct ds_store_req *req);
	char name[16];
	unsigned threads_max;
	pthread_mutex_t mutex;
	pthread_cond_t wake;
	struct {
		struct ds_list cancelled, urgent, normal;
		size_t waiting_n;
		unsigned threads_n, idle_n;
		bool is_ending;
	} locked;
	pthread_t threads[];
};

static struct ds_store_req *next_locked(struct ds_store_pool *pool)
{
	struct ds_list *lists[] = {&pool->locked.cancelled, &pool->locked.urgent,
				   &pool->locked.normal};

	for (size_t i = 0; i < DS_ARRAY_SIZE(lists); i++) {
		struct ds_store_req *req;

		if (ds_list_is_empty(lists[i]))
			continue;
		req = ds_list_entry(lists[i]->next, struct ds_store_req, node);
		ds_list_remove(&req->node);
		pool->locked.waiting_n--;
		return req;
	}
	return NULL;
}

static void run_one(struct ds_store_pool *pool, struct ds_store_req *req, bool is_cancelled)
{
	if (is_cancelled)
		req->result = -DS_E_INTERRUPTED;
	else if (ds_mono_ns() >= req->deadline_ns)
		req->result = -DS_E_TIMEOUT;
	else
		pool->run(pool->store, req);
	pthread_mutex_lock(&pool->mutex);
	req->internal = NULL;
	pthread_mutex_unlock(&pool->mutex);
	ds_store_complete(pool->store, req);
}

static void *pool_thread(void *arg)
{
	struct ds_store_pool *pool = arg;

	pthread_setname_np(pthread_self(), pool->name);
	pthread_mutex_lock(&pool->mutex);
	for (;;) {
		struct ds_store_req *req = next_locked(pool);
		bool is_cancelled;

		if (!req) {
			if (pool->locked.is_ending)
				break;
			pool->locked.idle_n++;
			pthread_cond_wait(&pool->wake, &pool->mutex);
			pool->locked.idle_n--;
			continue;
		}
		is_cancelled = req->internal == &mark_cancelled || pool->locked.is_ending;
		req->internal = &mark_running;
		pthread_mutex_unlock(&pool->mutex);
		run_one(pool, req, is_cancelled);
		pthread_mutex_lock(&pool->mutex);
	}
	pthread_mutex_unlock(&pool->mutex);
	return NULL;
}

int ds_store_pool_new(struct ds_store *store, unsigned threads_max, const char *name,
		      void (*run)(struct ds_store *store, struct ds_store_req *req),
		      struct ds_store_pool **ret_pool)
{
	struct ds_store_pool *pool =
		ds_calloc(1, sizeof(*pool) + threads_max * sizeof(pool->threads[0]));

	if (!pool)
		return -ENOMEM;
	pool->store = store;
	pool->run = run;
	pool->threads_max = threads_max;
	snprintf(pool->name, sizeof(pool->name), "%s", name);
	pthread_mutex_init(&pool->mutex, NULL);
	pthread_cond_init(&pool->wake, NULL);
	ds_list_init(&pool->locked.cancelled);
	ds_list_init(&pool->locked.urgent);
	ds_list_init(&pool->locked.normal);
	*ret_pool = pool;
	return 0;
}

struct ds_store_pool *ds_store_pool_free(struct ds_store_pool *pool)
{
	if (!pool)
		return NULL;
	pthread_mutex_lock(&pool->mutex);
	pool->locked.is_ending = true;
	pthread_cond_broadcast(&pool->wake);
	pthread_mutex_unlock(&pool->mutex);
	for (unsigned i = 0; i < pool->locked.threads_n; i++)
		pthread_join(pool->threads[i], NULL);
	pthread_cond_destroy(&pool->wake);
	pthread_mutex_destroy(&pool->mutex);
	ds_free(pool);
	return NULL;
}

static int add_thread_locked(struct ds_store_pool *pool)
{
	sigset_t all, old;
	int r;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&pool->threads[pool->locked.threads_n], NULL, pool_thread, pool);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r == 0)
		pool->locked.threads_n++;
	return -r;
}

int ds_store_pool_start(struct ds_store_pool *pool)
{
	int r = 0;

	pthread_mutex_lock(&pool->mutex);
	if (pool->locked.threads_n == 0)
		r = add_thread_locked(pool);
	pthread_mutex_unlock(&pool->mutex);
	return r;
}

void ds_store_pool_submit(struct ds_store_pool *pool, struct ds_store_req *req)
{
	/* Without any thread nobody could call done; it can only be tried again. */
	while (ds_store_pool_start(pool) < 0)
		ds_sleep_ms(50);
	pthread_mutex_lock(&pool->mutex);
	req->internal = &mark_waiting;
	ds_list_push_back(req->is_urgent ? &pool->locked.urgent : &pool->locked.normal, &req->node);
	pool->locked.waiting_n++;
	/* One more thread where the idle ones do not suffice; if that fails, those that run do. */
	if (pool->locked.waiting_n > pool->locked.idle_n &&
	    pool->locked.threads_n < pool->threads_max && !pool->locked.is_ending)
		add_thread_locked(pool);
	pthread_cond_signal(&pool->wake);
	pthread_mutex_unlock(&pool->mutex);
}

void ds_store_pool_cancel(struct ds_store_pool *pool, struct ds_store_req *req)
{
	pthread_mutex_lock(&pool->mutex);
	if (req->internal == &mark_waiting) {
		req->internal = &mark_cancelled;
		ds_list_remove(&req->node);
		ds_list_push_back(&pool->locked.cancelled, &req->node);
	}
	pthread_mutex_unlock(&pool->mutex);
}

void ds_store_pool_hasten(struct ds_store_pool *pool, struct ds_store_req *req)
{
	pthread_mutex_lock(&pool->mutex);
	if (req->internal == &mark_waiting && !req->is_urgent) {
		req->is_urgent = true;
		ds_list_remove(&req->node);
		ds_list_push_back(&pool->locked.urgent, &req->node);
	}
	pthread_mutex_unlock(&pool->mutex);
}
