/*
 * The queue: which chunks travel in one GET, the slots' locks, and what becomes of an answer. States and
 * owners: fetch_internal.h.
 *
 * Demand goes before prefetch. A queued chunk takes along those that lie directly before and behind it in the pack,
 * found by two maps from (pack, offset) to the flight that starts or ends there.
 */
#include <assert.h>
#include <string.h>

#include "cache/fetch_internal.h"
#include "util/clock.h"
#include "util/random.h"

#define RETRY_MIN_MS	50u
#define RETRY_MAX_MS	2000u
#define POLL_MIN_MS	2u
#define POLL_MAX_MS	50u
#define PATIENCE_MAX_MS 10000u /* with a lock that another process holds */
#define QUIET_GET_MS	60000u /* deadline of a GET that nobody waits for, or nobody in a hurry */
#define MOVED_MAX	4u     /* times that a pack may go while we fetch from it */
/* Decoded and filled together: what stays in a core's cache between the two. */
#define RUN_BYTES DS_KIB(512)

struct place {
	struct ds_digest pack;
	uint64_t off;
};

static struct place place_of(const struct ds_flight *flight, bool end)
{
	struct place place;

	memset(&place, 0, sizeof(place));
	place.pack = flight->at.pack;
	place.off = flight->at.stored_off + (end ? flight->at.stored_len_bytes : 0);
	return place;
}

/* Of several at one place the first is noted, the others travel by themselves; so they do without memory. */
static bool note_place(struct ds_map *map, const struct place *place, struct ds_flight *flight)
{
	return !ds_map_get(map, place, sizeof(*place)) &&
	       ds_map_put(map, place, sizeof(*place), flight, NULL) == 0;
}

void ds_flight_enqueue_locked(struct ds_flight *flight)
{
	struct ds_fetcher *fetcher = flight->fetcher;
	struct place start = place_of(flight, false), end = place_of(flight, true);

	flight->state = DS_FLIGHT_QUEUED;
	ds_list_push_back(flight->is_prefetch ? &fetcher->locked.prefetch : &fetcher->locked.demand,
			  &flight->node);
	if (!flight->travels_alone) {
		flight->is_start_noted = note_place(fetcher->locked.starts, &start, flight);
		flight->is_end_noted = note_place(fetcher->locked.ends, &end, flight);
	}
	ds_fetch_kick_locked(fetcher);
}

void ds_flight_dequeue_locked(struct ds_flight *flight)
{
	struct ds_fetcher *fetcher = flight->fetcher;
	struct place start = place_of(flight, false), end = place_of(flight, true);

	ds_list_remove(&flight->node);
	if (flight->is_start_noted)
		ds_map_remove(fetcher->locked.starts, &start, sizeof(start));
	if (flight->is_end_noted)
		ds_map_remove(fetcher->locked.ends, &end, sizeof(end));
	flight->is_start_noted = flight->is_end_noted = false;
}

void ds_flight_enqueue(struct ds_flight *flight)
{
	struct ds_fetcher *fetcher = flight->fetcher;
	bool is_unwanted;

	/* It is taken again when its turn comes. */
	ds_image_unlock_slot(&flight->lock);
	pthread_mutex_lock(&fetcher->mutex);
	fetcher->locked.inflight_bytes -= flight->cost_bytes;
	flight->cost_bytes = 0;
	is_unwanted = ds_flight_is_unwanted_locked(flight);
	if (is_unwanted)
		ds_flight_remove_from_map_locked(flight);
	else
		ds_flight_enqueue_locked(flight);
	pthread_mutex_unlock(&fetcher->mutex);
	if (is_unwanted)
		ds_flight_finish(flight, -DS_E_INTERRUPTED, NULL);
}

static uint64_t cost_of(const struct ds_flight *flight)
{
	return (uint64_t)flight->at.stored_len_bytes + flight->at.raw_len_bytes;
}

static bool fits_budget_locked(const struct ds_fetcher *fetcher, const struct ds_flight *flight)
{
	uint64_t max = fetcher->inflight_bytes_max;

	/* Prefetch leaves a quarter to demand. One alone always fits. */
	if (flight->is_prefetch)
		max = max / 4 * 3;
	return fetcher->locked.inflight_bytes == 0 ||
	       fetcher->locked.inflight_bytes + cost_of(flight) <= max;
}

void ds_flight_uncount_ahead_locked(struct ds_flight *flight)
{
	flight->fetcher->locked.ahead_bytes -= flight->ahead_bytes;
	flight->ahead_bytes = 0;
}

static struct ds_flight *first_locked(struct ds_fetcher *fetcher)
{
	struct ds_list *list = &fetcher->locked.demand;
	struct ds_flight *flight;

	if (fetcher->locked.is_ending || fetcher->locked.gets_n >= DS_FETCH_GETS_MAX)
		return NULL;
	if (ds_list_is_empty(list)) {
		/* What nobody waits for yet leaves room for what somebody will. */
		list = &fetcher->locked.prefetch;
		if (ds_list_is_empty(list) || fetcher->locked.gets_n >= DS_FETCH_GETS_MAX / 2)
			return NULL;
	}
	flight = ds_list_entry(list->next, struct ds_flight, node);
	return fits_budget_locked(fetcher, flight) ? flight : NULL;
}

void ds_fetch_kick_locked(struct ds_fetcher *fetcher)
{
	if (!first_locked(fetcher))
		return;
	for (unsigned i = 0; i < fetcher->dispatchers_n; i++) {
		struct ds_fetch_dispatcher *dispatcher = &fetcher->dispatchers[i];

		if (dispatcher->is_busy)
			continue;
		dispatcher->is_busy = true;
		ds_work_submit(fetcher->workers, &dispatcher->work, true);
		return;
	}
}

static void take_locked(struct ds_flight *flight, struct ds_list *list, bool at_end)
{
	ds_flight_dequeue_locked(flight);
	ds_flight_uncount_ahead_locked(flight);
	flight->state = DS_FLIGHT_CLAIMING;
	flight->cost_bytes = cost_of(flight);
	flight->fetcher->locked.inflight_bytes += flight->cost_bytes;
	flight->fetcher->locked.stats.inflight_most_bytes =
		DS_MAX(flight->fetcher->locked.stats.inflight_most_bytes,
		       flight->fetcher->locked.inflight_bytes);
	if (at_end)
		ds_list_push_back(list, &flight->node);
	else
		ds_list_push_front(list, &flight->node);
}

/* Takes the next chunk and its neighbours; false: nothing to do now. */
static bool pick_locked(struct ds_fetcher *fetcher, struct ds_list *ret_list)
{
	struct ds_flight *flight = first_locked(fetcher), *next;
	struct place start, end;
	uint64_t len;

	if (!flight)
		return false;
	fetcher->locked.gets_n++;
	start = place_of(flight, false);
	end = place_of(flight, true);
	len = flight->at.stored_len_bytes;
	take_locked(flight, ret_list, true);
	if (flight->travels_alone)
		return true;
	for (int forward = 1; forward >= 0; forward--) {
		struct ds_map *map = forward ? fetcher->locked.starts : fetcher->locked.ends;
		struct place *at = forward ? &end : &start;

		while ((next = ds_map_get(map, at, sizeof(*at))) &&
		       len < fetcher->coalesce_bytes_max && fits_budget_locked(fetcher, next)) {
			*at = place_of(next, forward);
			len += next->at.stored_len_bytes;
			take_locked(next, ret_list, forward);
		}
	}
	return true;
}

/* ---- claiming */

enum claim { CLAIM_FETCH, CLAIM_GONE };

/* Of those who wait for it; 0: nobody in a hurry does. */
static uint64_t latest_deadline_locked(const struct ds_flight *flight)
{
	uint64_t latest = 0;

	ds_list_for_each (node, &flight->waiters) {
		uint64_t deadline = ds_list_entry(node, struct ds_fetch_waiter, node)->deadline_ns;

		if (deadline != DS_DEADLINE_NONE)
			latest = DS_MAX(latest, deadline);
	}
	return latest;
}

/* Another one is at it: look again soon. Not for ever: he may have been stopped. */
static enum claim wait_for_other(struct ds_flight *flight)
{
	struct ds_fetcher *fetcher = flight->fetcher;
	uint64_t now = ds_mono_ns(), deadline;
	enum claim claim = CLAIM_GONE;

	pthread_mutex_lock(&fetcher->mutex);
	if (!flight->poll_since_ns) {
		flight->poll_since_ns = now;
		flight->poll_ms = POLL_MIN_MS;
	}
	deadline = latest_deadline_locked(flight);
	if (now - flight->poll_since_ns > PATIENCE_MAX_MS * (uint64_t)DS_NS_PER_MS ||
	    (deadline && now > flight->poll_since_ns &&
	     now - flight->poll_since_ns > (deadline > now ? deadline - now : 0))) {
		claim = CLAIM_FETCH;
	} else {
		fetcher->locked.inflight_bytes -= flight->cost_bytes;
		flight->cost_bytes = 0;
		ds_flight_park_locked(flight, flight->poll_ms);
		flight->poll_ms = DS_MIN(flight->poll_ms * 2, POLL_MAX_MS);
	}
	pthread_mutex_unlock(&fetcher->mutex);
	return claim;
}

/* It is here, of another boot perhaps: a worker checks it, who has time for that. */
static void look_first(struct ds_flight *flight)
{
	struct ds_fetcher *fetcher = flight->fetcher;
	bool is_urgent;

	ds_image_unlock_slot(&flight->lock);
	flight->work.run = ds_flight_run_look;
	pthread_mutex_lock(&fetcher->mutex);
	fetcher->locked.inflight_bytes -= flight->cost_bytes;
	flight->cost_bytes = 0;
	flight->state = DS_FLIGHT_LOOKING;
	is_urgent = !flight->is_prefetch;
	pthread_mutex_unlock(&fetcher->mutex);
	ds_work_submit(fetcher->workers, &flight->work, is_urgent);
}

static enum claim claim(struct ds_flight *flight)
{
	struct ds_fetcher *fetcher = flight->fetcher;
	enum ds_image_state state;
	bool is_unwanted;
	int r;

	pthread_mutex_lock(&fetcher->mutex);
	is_unwanted = ds_flight_is_unwanted_locked(flight);
	if (is_unwanted)
		ds_flight_remove_from_map_locked(flight);
	pthread_mutex_unlock(&fetcher->mutex);
	if (is_unwanted) {
		ds_flight_finish(flight, -DS_E_INTERRUPTED, NULL);
		return CLAIM_GONE;
	}
	r = ds_image_lock_slot(flight->image, &flight->slot, &flight->lock);
	state = r == 0 || r == -EBUSY ? ds_image_look(flight->image, &flight->slot)
				      : DS_IMAGE_NOTHING;
	if (state == DS_IMAGE_UNCHECKED && !flight->is_looked_for) {
		look_first(flight);
		return CLAIM_GONE;
	}
	/* Who held it may have brought it. */
	if (state != DS_IMAGE_NOTHING && ds_flight_serve_local(flight))
		return CLAIM_GONE;
	return r == -EBUSY ? wait_for_other(flight) : CLAIM_FETCH;
}

/* ---- batches */

void ds_fetch_batch_unref(struct ds_fetch_batch *batch)
{
	if (atomic_fetch_sub(&batch->refs_n, 1) == 1) {
		ds_fetch_buffer_unref(batch->stored);
		ds_free(batch);
	}
}

static void get_is_over(struct ds_fetcher *fetcher)
{
	pthread_mutex_lock(&fetcher->mutex);
	fetcher->locked.gets_n--;
	ds_fetch_kick_locked(fetcher);
	pthread_mutex_unlock(&fetcher->mutex);
}

void ds_flight_retry_later(struct ds_flight *flight, int error, const struct ds_diag *diag,
			   uint64_t after_ns)
{
	struct ds_fetcher *fetcher = flight->fetcher;
	uint64_t ms = DS_MIN((uint64_t)RETRY_MIN_MS << DS_MIN(flight->tries_n, 6u), RETRY_MAX_MS);
	bool goes_on;

	flight->tries_n++;
	/* A cancelled request that somebody wants again is none of its own failures. */
	if (error == -DS_E_INTERRUPTED)
		ms = 0;
	else
		ds_flight_note_error(flight, error, diag);
	ds_image_unlock_slot(&flight->lock);
	pthread_mutex_lock(&fetcher->mutex);
	/* Prefetch alone is not worth another try. */
	goes_on = !ds_list_is_empty(&flight->waiters) && !fetcher->locked.is_ending;
	if (goes_on) {
		fetcher->locked.inflight_bytes -= flight->cost_bytes;
		flight->cost_bytes = 0;
		ms = ms / 2 + ds_random_u64() % (ms / 2 + 1);
		/* The store's own rules (Retry-After, tokens) hold, whether the waiters' time lasts or not. */
		ds_flight_park_locked(flight,
				      DS_MAX(ms, (after_ns + DS_NS_PER_MS - 1) / DS_NS_PER_MS));
	} else {
		ds_flight_remove_from_map_locked(flight);
	}
	pthread_mutex_unlock(&fetcher->mutex);
	if (!goes_on)
		ds_flight_finish(flight, error, NULL);
}

/* `after_ns`: see ds_flight_retry_later. */
static void fail_flight(struct ds_flight *flight, int error, const struct ds_diag *diag,
			uint64_t after_ns)
{
	switch (error) {
	case -DS_E_ABSENT:
	case -DS_E_DENIED:
		if (flight->moved_n < MOVED_MAX) {
			ds_flight_move(flight, error, diag);
			return;
		}
		break;
	case -DS_E_MALFORMED: /* shorter than it must be */
		ds_flight_corrupt(flight, error, diag);
		return;
	case -DS_E_INTERRUPTED:
	case -EMFILE:
	case -ENFILE:
		ds_flight_retry_later(flight, error, diag, after_ns);
		return;
	default:
		if (ds_error_is_retryable(error)) {
			ds_flight_retry_later(flight, error, diag, after_ns);
			return;
		}
	}
	ds_flight_note_error(flight, error, diag);
	ds_flight_finish(flight, error, NULL);
}

static struct ds_flight *take_from_batch_locked(struct ds_fetch_batch *batch)
{
	struct ds_flight *flight;

	if (ds_list_is_empty(&batch->flights))
		return NULL;
	flight = ds_list_entry(batch->flights.next, struct ds_flight, node);
	ds_list_remove(&flight->node);
	flight->state = DS_FLIGHT_DECODING;
	return flight;
}

/* Whether somebody waits for it who does not wait for what is fetched ahead, as a warm-up does. */
static bool is_urgent_locked(const struct ds_flight *flight)
{
	return !flight->is_prefetch && !ds_list_is_empty(&flight->waiters);
}

/* Decoded by whoever has time. Under the lock, so that who wants one of them from now on finds it queued. */
static void send_run_locked(struct ds_flight *first, bool is_urgent)
{
	first->work.run = ds_flight_run_decode;
	first->waits_as = &first->work;
	ds_list_for_each (node, &first->run)
		ds_list_entry(node, struct ds_flight, node)->waits_as = &first->work;
	ds_work_submit(first->fetcher->workers, &first->work, is_urgent);
}

/* The next chunk of an answer, and behind it those that are decoded and filled together with it. One that is urgent goes by
 * itself. With `is_own` the caller decodes it; else it is another's when this returns. */
static struct ds_flight *take_run(struct ds_fetch_batch *batch, bool is_own)
{
	struct ds_fetcher *fetcher = batch->call.fetcher;
	struct ds_flight *first, *next;
	uint64_t bytes;
	bool is_urgent;
	size_t n = 1;

	pthread_mutex_lock(&fetcher->mutex);
	first = take_from_batch_locked(batch);
	is_urgent = first && is_urgent_locked(first);
	bytes = first ? first->at.raw_len_bytes : 0;
	while (first && !is_urgent && n < DS_IMAGE_RUN_MAX && !ds_list_is_empty(&batch->flights)) {
		next = ds_list_entry(batch->flights.next, struct ds_flight, node);
		bytes += next->at.raw_len_bytes;
		if (next->image != first->image || bytes > RUN_BYTES || is_urgent_locked(next))
			break;
		take_from_batch_locked(batch);
		ds_list_push_back(&first->run, &next->node);
		n++;
	}
	if (first && !is_own)
		send_run_locked(first, is_urgent || batch->call.req.is_urgent);
	pthread_mutex_unlock(&fetcher->mutex);
	return first;
}

static void fail_all(struct ds_fetch_batch *batch, int error)
{
	struct ds_fetcher *fetcher = batch->call.fetcher;
	struct ds_flight *flight;

	for (;;) {
		pthread_mutex_lock(&fetcher->mutex);
		flight = take_from_batch_locked(batch);
		pthread_mutex_unlock(&fetcher->mutex);
		if (!flight)
			return;
		flight->batch = NULL;
		ds_fetch_batch_unref(batch);
		fail_flight(flight, error, &batch->call.req.diag, batch->call.req.retry_after_ns);
	}
}

static void run_answer(struct ds_work_item *item)
{
	struct ds_fetch_batch *batch = ds_container_of(item, struct ds_fetch_batch, work);
	struct ds_fetcher *fetcher = batch->call.fetcher;
	struct ds_flight *own;

	pthread_mutex_lock(&fetcher->mutex);
	batch->is_answered = false;
	pthread_mutex_unlock(&fetcher->mutex);
	if (batch->call.req.result < 0)
		fail_all(batch, batch->call.req.result);
	/* Each run is decoded by whoever has time; one here. */
	own = take_run(batch, true);
	while (own && take_run(batch, false))
		;
	get_is_over(fetcher);
	if (own)
		ds_flight_run_decode(&own->work);
	ds_fetch_batch_unref(batch);
}

static void batch_over(struct ds_fetch_call *call)
{
	struct ds_fetch_batch *batch = ds_container_of(call, struct ds_fetch_batch, call);
	struct ds_fetcher *fetcher = call->fetcher;

	/* Under the lock, so that who wants one of its chunks from now on finds it queued. It may have been hastened when the
	 * store was done with it already. */
	pthread_mutex_lock(&fetcher->mutex);
	batch->is_answered = true;
	ds_work_submit(fetcher->workers, &batch->work, call->req.is_urgent || call->is_hastened);
	pthread_mutex_unlock(&fetcher->mutex);
}

static void send_failed(struct ds_fetcher *fetcher, struct ds_list *flights, int error)
{
	while (!ds_list_is_empty(flights)) {
		struct ds_flight *flight = ds_list_entry(flights->next, struct ds_flight, node);

		ds_list_remove(&flight->node);
		fail_flight(flight, error, NULL, 0);
	}
	get_is_over(fetcher);
}

static int batch_new(struct ds_fetcher *fetcher, const struct ds_list *flights,
		     struct ds_fetch_batch **ret_batch)
{
	struct ds_flight *first = ds_list_entry(flights->next, struct ds_flight, node);
	struct ds_fetch_batch *batch = ds_calloc(1, sizeof(*batch));
	size_t len = 0;

	if (!batch)
		return -ENOMEM;
	ds_list_for_each (node, flights)
		len += ds_list_entry(node, struct ds_flight, node)->at.stored_len_bytes;
	if (ds_fetch_buffer_new(fetcher->pool, len, &batch->stored) < 0) {
		ds_free(batch);
		return -ENOMEM;
	}
	ds_list_init(&batch->flights);
	ds_list_init(&batch->call.node);
	ds_list_init(&batch->work.node);
	batch->work.run = run_answer;
	batch->call.over = batch_over;
	batch->call.fetcher = fetcher;
	batch->off = first->at.stored_off;
	ds_pack_key(&first->at.pack, batch->key);
	batch->call.req = (struct ds_store_req){.op = DS_STORE_GET,
						.key = batch->key,
						.off = batch->off,
						.len_bytes = len,
						.into = &batch->stored->buf};
	*ret_batch = batch;
	return 0;
}

/* Takes the flights, which lie side by side. */
static void send(struct ds_fetcher *fetcher, struct ds_list *flights)
{
	struct ds_fetch_batch *batch;
	uint64_t deadline = 0;
	unsigned n = 0;
	int r = batch_new(fetcher, flights, &batch);

	if (r < 0) {
		send_failed(fetcher, flights, r);
		return;
	}
	pthread_mutex_lock(&fetcher->mutex);
	ds_list_splice(&batch->flights, flights);
	ds_list_for_each (node, &batch->flights) {
		struct ds_flight *flight = ds_list_entry(node, struct ds_flight, node);

		flight->state = DS_FLIGHT_FETCHING;
		flight->batch = batch;
		deadline = DS_MAX(deadline, latest_deadline_locked(flight));
		n++;
	}
	batch->refs_n = n + 2; /* the flights, the store, and this function */
	fetcher->locked.stats.gets_n++;
	pthread_mutex_unlock(&fetcher->mutex);
	batch->call.req.is_urgent = deadline != 0;
	batch->call.req.deadline_ns = deadline ? deadline : ds_deadline_in_ms(QUIET_GET_MS);
	ds_fetch_submit(fetcher, &batch->call);
	ds_fetch_batch_unref(batch);
}

static void claim_and_send(struct ds_fetcher *fetcher, struct ds_list *flights)
{
	struct ds_list run;
	uint64_t end = 0;
	bool has_get = true; /* picking counted one */

	ds_list_init(&run);
	while (!ds_list_is_empty(flights)) {
		struct ds_flight *flight = ds_list_entry(flights->next, struct ds_flight, node);
		uint64_t off = flight->at.stored_off, next_end = off + flight->at.stored_len_bytes;

		ds_list_remove(&flight->node);
		if (claim(flight) == CLAIM_GONE)
			continue;
		if (!ds_list_is_empty(&run) && off != end) {
			send(fetcher, &run);
			has_get = false;
		}
		if (!has_get) {
			pthread_mutex_lock(&fetcher->mutex);
			fetcher->locked.gets_n++;
			pthread_mutex_unlock(&fetcher->mutex);
			has_get = true;
		}
		ds_list_push_back(&run, &flight->node);
		end = next_end;
	}
	if (!ds_list_is_empty(&run))
		send(fetcher, &run);
	else if (has_get)
		get_is_over(fetcher);
}

void ds_fetch_run_dispatch(struct ds_work_item *item)
{
	struct ds_fetch_dispatcher *dispatcher =
		ds_container_of(item, struct ds_fetch_dispatcher, work);
	struct ds_fetcher *fetcher = dispatcher->fetcher;

	for (;;) {
		struct ds_list flights;
		bool has_some;

		ds_list_init(&flights);
		pthread_mutex_lock(&fetcher->mutex);
		has_some = pick_locked(fetcher, &flights);
		if (!has_some)
			dispatcher->is_busy = false;
		pthread_mutex_unlock(&fetcher->mutex);
		if (!has_some)
			return;
		claim_and_send(fetcher, &flights);
	}
}
