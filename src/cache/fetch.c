/*
 * The fetcher's interface. States, owners and invariants: fetch_internal.h.
 */
#include <assert.h>
#include <string.h>

#include "cache/fetch_internal.h"
#include "util/clock.h"

#define STASH_BYTES_MAX DS_MIB(8)

/* ---- calls */

static void call_done(struct ds_store_req *req)
{
	struct ds_fetch_call *call = req->ctx;
	struct ds_fetcher *fetcher = call->fetcher;

	pthread_mutex_lock(&fetcher->mutex);
	call->is_over = true;
	ds_list_remove(&call->node);
	if (ds_list_is_empty(&fetcher->locked.calls))
		pthread_cond_broadcast(&fetcher->idle);
	pthread_mutex_unlock(&fetcher->mutex);
	call->over(call);
}

static void cancel_now_locked(struct ds_fetch_call *call)
{
	if (call->is_submitted && !call->is_over)
		ds_store_cancel(call->fetcher->store, &call->req);
}

void ds_fetch_cancel_locked(struct ds_fetch_call *call)
{
	if (call->is_cancelled)
		return;
	call->is_cancelled = true;
	cancel_now_locked(call);
}

void ds_fetch_hasten_locked(struct ds_fetch_call *call)
{
	call->is_hastened = true;
	if (call->is_submitted && !call->is_over)
		ds_store_hasten(call->fetcher->store, &call->req);
}

void ds_fetch_submit(struct ds_fetcher *fetcher, struct ds_fetch_call *call)
{
	call->fetcher = fetcher;
	call->req.done = call_done;
	call->req.ctx = call;
	pthread_mutex_lock(&fetcher->mutex);
	ds_list_push_back(&fetcher->locked.calls, &call->node);
	/* A batch can be seen, and be unwanted, before it comes here. */
	call->is_cancelled |= fetcher->locked.is_ending;
	pthread_mutex_unlock(&fetcher->mutex);
	ds_store_submit(fetcher->store, &call->req);
	pthread_mutex_lock(&fetcher->mutex);
	call->is_submitted = true;
	if (call->is_cancelled)
		cancel_now_locked(call);
	else if (call->is_hastened)
		ds_fetch_hasten_locked(call);
	pthread_mutex_unlock(&fetcher->mutex);
}

struct blocking_call {
	struct ds_fetch_call call;
	bool is_over;
	pthread_mutex_t mutex;
	pthread_cond_t wake;
};

static void blocking_over(struct ds_fetch_call *call)
{
	struct blocking_call *blocking = ds_container_of(call, struct blocking_call, call);

	pthread_mutex_lock(&blocking->mutex);
	blocking->is_over = true;
	pthread_cond_signal(&blocking->wake);
	pthread_mutex_unlock(&blocking->mutex);
}

int ds_fetch_perform(void *fetcher, struct ds_store_req *req)
{
	struct blocking_call blocking = {.call = {.req = *req, .over = blocking_over},
					 .mutex = PTHREAD_MUTEX_INITIALIZER,
					 .wake = PTHREAD_COND_INITIALIZER};

	ds_fetch_submit(fetcher, &blocking.call);
	pthread_mutex_lock(&blocking.mutex);
	while (!blocking.is_over)
		pthread_cond_wait(&blocking.wake, &blocking.mutex);
	pthread_mutex_unlock(&blocking.mutex);
	*req = blocking.call.req;
	return req->result;
}

/* ---- start and end */

int ds_fetcher_new(struct ds_store *store, struct ds_cache *cache,
		   const struct ds_fetcher_options *options, struct ds_fetcher **ret_fetcher)
{
	struct ds_fetcher *fetcher = ds_calloc(1, sizeof(*fetcher));
	pthread_condattr_t attr;

	if (!fetcher)
		return -ENOMEM;
	fetcher->inflight_bytes_max = options && options->inflight_bytes_max
					      ? options->inflight_bytes_max
					      : DS_FETCH_INFLIGHT_BYTES;
	fetcher->coalesce_bytes_max =
		options && options->coalesce_bytes_max ? options->coalesce_bytes_max : DS_MIB(2);
	fetcher->workers_n =
		options && options->workers_n ? options->workers_n : DS_MAX(ds_cpu_count(), 2u);
	fetcher->dispatchers_n = DS_MAX(fetcher->workers_n / 2, 1u);
	pthread_mutex_init(&fetcher->mutex, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&fetcher->timer_wake, &attr);
	pthread_condattr_destroy(&attr);
	pthread_cond_init(&fetcher->idle, NULL);
	ds_list_init(&fetcher->locked.demand);
	ds_list_init(&fetcher->locked.prefetch);
	ds_list_init(&fetcher->locked.waiting);
	ds_list_init(&fetcher->locked.deadlines);
	ds_list_init(&fetcher->locked.patient);
	ds_list_init(&fetcher->locked.calls);
	ds_list_init(&fetcher->locked.kept_list);
	fetcher->dispatchers = ds_calloc(fetcher->dispatchers_n, sizeof(fetcher->dispatchers[0]));
	if (!fetcher->dispatchers || ds_map_new(&fetcher->locked.flights) < 0 ||
	    ds_map_new(&fetcher->locked.starts) < 0 || ds_map_new(&fetcher->locked.ends) < 0 ||
	    ds_map_new(&fetcher->locked.stash) < 0 || ds_map_new(&fetcher->locked.pulls) < 0 ||
	    ds_map_new(&fetcher->locked.kept) < 0 || ds_moved_cache_new(&fetcher->moved) < 0 ||
	    ds_fetch_pool_new(fetcher->coalesce_bytes_max + DS_CHUNK_MAX,
			      fetcher->inflight_bytes_max / 8 * 3, &fetcher->pool) < 0) {
		ds_fetcher_free(fetcher);
		return -ENOMEM;
	}
	for (unsigned i = 0; i < fetcher->dispatchers_n; i++) {
		fetcher->dispatchers[i].work.run = ds_fetch_run_dispatch;
		fetcher->dispatchers[i].fetcher = fetcher;
	}
	fetcher->store = ds_store_ref(store);
	fetcher->cache = ds_cache_ref(cache);
	*ret_fetcher = fetcher;
	return 0;
}

int ds_fetch_start_locked(struct ds_fetcher *fetcher)
{
	int r;

	if (fetcher->locked.is_started)
		return 0;
	r = ds_store_start(fetcher->store);
	if (r == 0 && !fetcher->workers)
		r = ds_work_new(fetcher->workers_n, "dsfs-fetch", &fetcher->workers);
	if (r == 0)
		r = ds_fetch_timer_start_locked(fetcher);
	if (r == 0)
		fetcher->locked.is_started = true;
	return r;
}

/* One waiter of any flight, detached; NULL: nobody waits. */
static struct ds_fetch_waiter *take_waiter(struct ds_fetcher *fetcher)
{
	struct ds_list *list = &fetcher->locked.deadlines;
	struct ds_fetch_waiter *waiter = NULL;

	pthread_mutex_lock(&fetcher->mutex);
	if (ds_list_is_empty(list))
		list = &fetcher->locked.patient;
	if (!ds_list_is_empty(list)) {
		waiter = ds_list_entry(list->next, struct ds_fetch_waiter, deadline_node);
		ds_flight_detach_waiter_locked(fetcher, waiter);
	}
	pthread_mutex_unlock(&fetcher->mutex);
	return waiter;
}

static void end(struct ds_fetcher *fetcher)
{
	struct ds_list *lists[] = {&fetcher->locked.demand, &fetcher->locked.prefetch,
				   &fetcher->locked.waiting};
	struct ds_fetch_waiter *waiter;

	pthread_mutex_lock(&fetcher->mutex);
	fetcher->locked.is_ending = true;
	pthread_cond_signal(&fetcher->timer_wake);
	ds_list_for_each (node, &fetcher->locked.calls)
		ds_fetch_cancel_locked(ds_list_entry(node, struct ds_fetch_call, node));
	pthread_mutex_unlock(&fetcher->mutex);
	pthread_join(fetcher->timer, NULL);
	while ((waiter = take_waiter(fetcher))) {
		struct ds_diag diag = {.code = -DS_E_INTERRUPTED};

		waiter->done(waiter, -DS_E_INTERRUPTED, NULL, &diag);
	}
	pthread_mutex_lock(&fetcher->mutex);
	for (size_t i = 0; i < DS_ARRAY_SIZE(lists); i++)
		while (!ds_list_is_empty(lists[i]))
			ds_flight_let_go_locked(
				ds_list_entry(lists[i]->next, struct ds_flight, node));
	while (fetcher->locked.flights_n > 0 || !ds_list_is_empty(&fetcher->locked.calls))
		pthread_cond_wait(&fetcher->idle, &fetcher->mutex);
	pthread_mutex_unlock(&fetcher->mutex);
}

static void free_bytes(void *value)
{
	ds_chunk_bytes_unref(value);
}

struct ds_fetcher *ds_fetcher_free(struct ds_fetcher *fetcher)
{
	if (!fetcher)
		return NULL;
	if (fetcher->locked.is_started)
		end(fetcher);
	ds_work_free(fetcher->movers);
	ds_work_free(fetcher->workers);
	ds_moved_cache_free(fetcher->moved);
	ds_map_free(fetcher->locked.flights, NULL);
	ds_map_free(fetcher->locked.starts, NULL);
	ds_map_free(fetcher->locked.ends, NULL);
	ds_map_free(fetcher->locked.stash, free_bytes);
	ds_map_free(fetcher->locked.pulls, ds_fetch_pull_free);
	ds_fetch_kept_free(fetcher);
	ds_fetch_pool_unref(fetcher->pool);
	pthread_cond_destroy(&fetcher->timer_wake);
	pthread_cond_destroy(&fetcher->idle);
	pthread_mutex_destroy(&fetcher->mutex);
	ds_free(fetcher->dispatchers);
	ds_store_unref(fetcher->store);
	ds_cache_unref(fetcher->cache);
	ds_free(fetcher);
	return NULL;
}

/* ---- wants */

static struct ds_flight_key key_of(const struct ds_fetch_target *target)
{
	struct ds_flight_key key;

	memset(&key, 0, sizeof(key));
	key.image = (uint64_t)(uintptr_t)target->image;
	key.raw_off = target->raw_off;
	key.stored_off = target->ref.stored_off;
	key.slot = target->slot;
	key.raw_len_bytes = target->ref.raw_len_bytes;
	key.stored_len_bytes = target->ref.stored_len_bytes;
	key.ordinal = target->ref.ordinal;
	key.digest = target->ref.digest;
	key.pack = target->ref.pack;
	return key;
}

static int flight_new_locked(struct ds_fetcher *fetcher, const struct ds_fetch_target *target,
			     const struct ds_flight_key *key, bool is_prefetch,
			     struct ds_flight **ret_flight)
{
	struct ds_flight *flight = ds_calloc(1, sizeof(*flight));

	if (!flight)
		return -ENOMEM;
	if (ds_map_put(fetcher->locked.flights, key, sizeof(*key), flight, NULL) < 0) {
		ds_free(flight);
		return -ENOMEM;
	}
	flight->is_in_map = true;
	flight->fetcher = fetcher;
	flight->key = *key;
	flight->state = DS_FLIGHT_LOOKING;
	flight->is_prefetch = is_prefetch;
	if (is_prefetch) {
		flight->ahead_bytes = target->ref.raw_len_bytes;
		fetcher->locked.ahead_bytes += flight->ahead_bytes;
	}
	flight->work.run = ds_flight_run_look;
	flight->image = ds_image_ref(target->image);
	flight->slot = (struct ds_image_slot){.slot = target->slot,
					      .raw_off = target->raw_off,
					      .raw_len_bytes = target->ref.raw_len_bytes,
					      .digest = target->ref.digest};
	flight->at = target->ref;
	ds_list_init(&flight->node);
	ds_list_init(&flight->run);
	ds_list_init(&flight->waiters);
	fetcher->locked.flights_n++;
	*ret_flight = flight;
	return 0;
}

/* What was fetched ahead is wanted now. */
static void make_urgent_locked(struct ds_flight *flight)
{
	bool is_queued = flight->state == DS_FLIGHT_QUEUED;

	if (flight->waits_as)
		ds_work_hasten(flight->fetcher->workers, flight->waits_as);
	else if (flight->state == DS_FLIGHT_FETCHING && flight->batch->is_answered)
		ds_work_hasten(flight->fetcher->workers, &flight->batch->work);
	if (!flight->is_prefetch)
		return;
	if (is_queued)
		ds_flight_dequeue_locked(flight);
	flight->is_prefetch = false;
	ds_flight_uncount_ahead_locked(flight);
	if (flight->state == DS_FLIGHT_FETCHING)
		ds_fetch_hasten_locked(&flight->batch->call);
	if (is_queued)
		ds_flight_enqueue_locked(flight);
}

static bool is_in_memory_locked(struct ds_fetcher *fetcher, const struct ds_digest *digest)
{
	return ds_map_get(fetcher->locked.stash, digest->bytes, DS_DIGEST_LEN) ||
	       ds_map_get(fetcher->locked.kept, digest->bytes, DS_DIGEST_LEN);
}

/* Who asks has looked at the image: it is queued at once, to travel together with the others. */
static void submit_ahead_locked(struct ds_flight *flight)
{
	if (is_in_memory_locked(flight->fetcher, &flight->slot.digest) ||
	    !ds_flight_makes_sense(&flight->at))
		ds_work_submit(flight->fetcher->workers, &flight->work, false);
	else
		ds_flight_enqueue_locked(flight);
}

static int want_locked(struct ds_fetcher *fetcher, const struct ds_fetch_target *target,
		       bool is_ahead, struct ds_fetch_waiter *waiter)
{
	struct ds_flight_key key = key_of(target);
	struct ds_flight *flight;
	int r;

	if (fetcher->locked.is_ending)
		return -DS_E_INTERRUPTED;
	r = ds_fetch_start_locked(fetcher);
	if (r < 0)
		return r;
	fetcher->locked.stats.wants_n++;
	flight = ds_map_get(fetcher->locked.flights, &key, sizeof(key));
	if (flight) {
		fetcher->locked.stats.joined_n++;
		if (!is_ahead)
			make_urgent_locked(flight);
	} else {
		r = flight_new_locked(fetcher, target, &key, is_ahead, &flight);
		if (r < 0)
			return r;
		if (is_ahead)
			submit_ahead_locked(flight);
		else
			ds_work_submit(fetcher->workers, &flight->work, true);
	}
	waiter->flight = flight;
	ds_list_push_back(&flight->waiters, &waiter->node);
	ds_fetch_add_deadline_locked(fetcher, waiter);
	fetcher->locked.stats.waiting_n++;
	return 0;
}

int ds_fetcher_want(struct ds_fetcher *fetcher, const struct ds_fetch_target *target,
		    struct ds_fetch_waiter *waiter)
{
	int r;

	assert(waiter->done);
	pthread_mutex_lock(&fetcher->mutex);
	r = want_locked(fetcher, target, false, waiter);
	pthread_mutex_unlock(&fetcher->mutex);
	return r;
}

int ds_fetcher_want_ahead(struct ds_fetcher *fetcher, const struct ds_fetch_target *targets,
			  struct ds_fetch_waiter *const *waiters, size_t n, size_t *ret_n)
{
	size_t taken_n = 0;
	int r = 0;

	pthread_mutex_lock(&fetcher->mutex);
	while (r == 0 && taken_n < n) {
		assert(waiters[taken_n]->done);
		waiters[taken_n]->deadline_ns = DS_DEADLINE_NONE;
		r = want_locked(fetcher, &targets[taken_n], true, waiters[taken_n]);
		taken_n += r == 0;
	}
	pthread_mutex_unlock(&fetcher->mutex);
	*ret_n = taken_n;
	return r;
}

/* False: no room, or no memory. */
static bool ahead_locked(struct ds_fetcher *fetcher, const struct ds_fetch_target *target,
			 bool is_bounded)
{
	uint64_t bytes = fetcher->locked.inflight_bytes + fetcher->locked.ahead_bytes;
	struct ds_flight_key key = key_of(target);
	struct ds_flight *flight;

	if (fetcher->locked.is_ending || ds_fetch_start_locked(fetcher) < 0)
		return false;
	if (is_bounded && (bytes >= fetcher->inflight_bytes_max ||
			   fetcher->locked.flights_n >= DS_FETCH_AHEAD_FLIGHTS_MAX))
		return false;
	if (ds_map_get(fetcher->locked.flights, &key, sizeof(key)))
		return true;
	if (flight_new_locked(fetcher, target, &key, true, &flight) < 0)
		return false;
	submit_ahead_locked(flight);
	return true;
}

size_t ds_fetch_ahead(struct ds_fetcher *fetcher, const struct ds_fetch_target *targets,
		      size_t targets_n, bool is_bounded)
{
	size_t i = 0;

	pthread_mutex_lock(&fetcher->mutex);
	while (i < targets_n && ahead_locked(fetcher, &targets[i], is_bounded))
		i++;
	pthread_mutex_unlock(&fetcher->mutex);
	return i;
}

size_t ds_fetcher_prefetch(struct ds_fetcher *fetcher, const struct ds_fetch_target *targets,
			   size_t targets_n)
{
	return ds_fetch_ahead(fetcher, targets, targets_n, true);
}

bool ds_fetcher_abandon(struct ds_fetcher *fetcher, struct ds_fetch_waiter *waiter)
{
	struct ds_flight *flight;

	pthread_mutex_lock(&fetcher->mutex);
	flight = waiter->flight;
	if (flight) {
		ds_flight_detach_waiter_locked(fetcher, waiter);
		ds_flight_let_go_locked(flight);
	}
	pthread_mutex_unlock(&fetcher->mutex);
	return flight != NULL;
}

int ds_fetcher_why(struct ds_fetcher *fetcher, const struct ds_fetch_waiter *waiter,
		   struct ds_diag *ret_diag)
{
	const struct ds_flight *flight;
	int error = 0;

	pthread_mutex_lock(&fetcher->mutex);
	flight = waiter->flight;
	if (flight)
		error = flight->last_error;
	if (error && ret_diag && flight->diag)
		*ret_diag = *flight->diag;
	else if (error && ret_diag)
		*ret_diag = (struct ds_diag){.code = error};
	/* The store tries again by itself, for as long as the request may take. */
	if (flight && !error && flight->state == DS_FLIGHT_FETCHING) {
		error = flight->batch->call.req.attempt_error;
		if (error && ret_diag) {
			ds_diag_clear(ret_diag);
			ds_diag_set(ret_diag, error, flight->batch->key, NULL);
		}
	}
	pthread_mutex_unlock(&fetcher->mutex);
	return error;
}

int ds_fetcher_stash(struct ds_fetcher *fetcher, const struct ds_digest *digest,
		     struct ds_chunk_bytes *bytes)
{
	struct ds_digest found;
	void *old = NULL;
	int r;

	r = ds_digest_of(bytes->data, bytes->len_bytes, &found);
	if (r < 0)
		return r;
	if (!ds_digest_equal(&found, digest))
		return -DS_E_CORRUPT;
	pthread_mutex_lock(&fetcher->mutex);
	if (fetcher->locked.stash_bytes + bytes->len_bytes > STASH_BYTES_MAX)
		r = -DS_E_LIMIT;
	else
		r = ds_map_put(fetcher->locked.stash, digest->bytes, DS_DIGEST_LEN,
			       ds_chunk_bytes_ref(bytes), &old);
	if (r == -ENOMEM)
		ds_chunk_bytes_unref(bytes);
	if (r == 0 && !old)
		fetcher->locked.stash_bytes += bytes->len_bytes;
	pthread_mutex_unlock(&fetcher->mutex);
	ds_chunk_bytes_unref(old);
	return r;
}

void ds_fetcher_get_stats(struct ds_fetcher *fetcher, struct ds_fetcher_stats *ret_stats)
{
	pthread_mutex_lock(&fetcher->mutex);
	*ret_stats = fetcher->locked.stats;
	ret_stats->inflight_bytes = fetcher->locked.inflight_bytes;
	ret_stats->inflight_bytes_max = fetcher->inflight_bytes_max;
	ret_stats->underway_n = fetcher->locked.flights_n;
	pthread_mutex_unlock(&fetcher->mutex);
}

/* ---- blocking */

struct blocking_wait {
	struct ds_fetch_waiter waiter;
	pthread_mutex_t mutex;
	pthread_cond_t wake;
	bool is_over;
	int result;
	struct ds_chunk_bytes *bytes;
	struct ds_diag *diag;
};

static void wait_over(struct ds_fetch_waiter *waiter, int result, struct ds_chunk_bytes *bytes,
		      const struct ds_diag *diag)
{
	struct blocking_wait *wait = ds_container_of(waiter, struct blocking_wait, waiter);

	pthread_mutex_lock(&wait->mutex);
	wait->is_over = true;
	wait->result = result;
	wait->bytes = bytes ? ds_chunk_bytes_ref(bytes) : NULL;
	if (result < 0 && wait->diag) {
		ds_diag_clear(wait->diag);
		if (diag)
			*wait->diag = *diag;
		wait->diag->code = result;
	}
	pthread_cond_signal(&wait->wake);
	pthread_mutex_unlock(&wait->mutex);
}

static bool read_image(const struct ds_fetch_target *target, struct ds_chunk_bytes **ret_bytes)
{
	struct ds_image_slot slot = {.slot = target->slot,
				     .raw_off = target->raw_off,
				     .raw_len_bytes = target->ref.raw_len_bytes,
				     .digest = target->ref.digest};
	struct ds_chunk_bytes *bytes;

	if (ds_image_look(target->image, &slot) == DS_IMAGE_NOTHING ||
	    ds_chunk_bytes_new(slot.raw_len_bytes, &bytes) < 0)
		return false;
	if (ds_image_read(target->image, &slot, 0, slot.raw_len_bytes, true, bytes->data) < 0) {
		ds_chunk_bytes_unref(bytes);
		return false;
	}
	*ret_bytes = bytes;
	return true;
}

int ds_fetch_blocking(struct ds_fetcher *fetcher, const struct ds_fetch_target *target,
		      uint64_t deadline_ns, struct ds_chunk_bytes **ret_bytes,
		      struct ds_diag *reterr_diag)
{
	struct blocking_wait wait = {.waiter = {.done = wait_over, .deadline_ns = deadline_ns},
				     .mutex = PTHREAD_MUTEX_INITIALIZER,
				     .wake = PTHREAD_COND_INITIALIZER,
				     .diag = reterr_diag};
	int r;

	if (read_image(target, ret_bytes))
		return 0;
	r = ds_fetcher_want(fetcher, target, &wait.waiter);
	if (r < 0)
		return ds_diag_set(reterr_diag, r, NULL, "a chunk cannot be asked for");
	pthread_mutex_lock(&wait.mutex);
	while (!wait.is_over)
		pthread_cond_wait(&wait.wake, &wait.mutex);
	pthread_mutex_unlock(&wait.mutex);
	if (wait.result == 0)
		*ret_bytes = wait.bytes;
	return wait.result;
}
