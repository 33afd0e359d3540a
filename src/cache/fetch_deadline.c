/*
 * The timer thread: waiters whose deadline passed, and flights that wait for another process's lock or for the
 * next try. It calls `done` itself, so that a deadline holds even if every worker is stuck in a sick disk.
 */
#include <signal.h>

#include "cache/fetch_internal.h"
#include "util/clock.h"

void ds_fetch_add_deadline_locked(struct ds_fetcher *fetcher, struct ds_fetch_waiter *waiter)
{
	struct ds_list *at = &fetcher->locked.deadlines;

	if (waiter->deadline_ns == DS_DEADLINE_NONE) {
		ds_list_push_back(&fetcher->locked.patient, &waiter->deadline_node);
		return;
	}
	/* Nearly always the latest of all. */
	while (at->prev != &fetcher->locked.deadlines &&
	       ds_list_entry(at->prev, struct ds_fetch_waiter, deadline_node)->deadline_ns >
		       waiter->deadline_ns)
		at = at->prev;
	ds_list_add_before(at, &waiter->deadline_node);
	if (fetcher->locked.deadlines.next == &waiter->deadline_node)
		pthread_cond_signal(&fetcher->timer_wake);
}

void ds_flight_park_locked(struct ds_flight *flight, uint64_t ms)
{
	struct ds_fetcher *fetcher = flight->fetcher;

	flight->state = DS_FLIGHT_WAITING;
	flight->due_ns = ds_deadline_in_ms(ms);
	ds_list_push_back(&fetcher->locked.waiting, &flight->node);
	pthread_cond_signal(&fetcher->timer_wake);
	/* Everybody may have gone while its owner was at work. */
	ds_flight_let_go_locked(flight);
}

/* One waiter whose time is over; false: none. */
static bool expire_one(struct ds_fetcher *fetcher, uint64_t now, uint64_t *ret_next_ns)
{
	struct ds_fetch_waiter *waiter;
	struct ds_flight *flight;
	struct ds_diag diag;
	char key[DS_PACK_KEY_MAX];
	int result;

	pthread_mutex_lock(&fetcher->mutex);
	if (ds_list_is_empty(&fetcher->locked.deadlines)) {
		*ret_next_ns = UINT64_MAX;
		pthread_mutex_unlock(&fetcher->mutex);
		return false;
	}
	waiter = ds_list_entry(fetcher->locked.deadlines.next, struct ds_fetch_waiter,
			       deadline_node);
	if (waiter->deadline_ns > now) {
		*ret_next_ns = waiter->deadline_ns;
		pthread_mutex_unlock(&fetcher->mutex);
		return false;
	}
	flight = waiter->flight;
	ds_flight_detach_waiter_locked(fetcher, waiter);
	fetcher->locked.stats.timeouts_n++;
	result = flight->last_error ? flight->last_error : -DS_E_TIMEOUT;
	ds_diag_clear(&diag);
	if (flight->last_error) {
		if (flight->diag)
			diag = *flight->diag;
		diag.code = result;
	} else {
		ds_diag_set(&diag, result, ds_pack_key(&flight->at.pack, key), "chunk %u",
			    flight->at.ordinal);
	}
	ds_flight_let_go_locked(flight);
	pthread_mutex_unlock(&fetcher->mutex);
	waiter->done(waiter, result, NULL, &diag);
	return true;
}

static void wake_flights_locked(struct ds_fetcher *fetcher, uint64_t now, uint64_t *next_ns)
{
	ds_list_for_each_safe (node, tmp, &fetcher->locked.waiting) {
		struct ds_flight *flight = ds_list_entry(node, struct ds_flight, node);

		if (flight->due_ns <= now) {
			ds_list_remove(&flight->node);
			ds_flight_enqueue_locked(flight);
		} else {
			*next_ns = DS_MIN(*next_ns, flight->due_ns);
		}
	}
}

static void *timer_thread(void *arg)
{
	struct ds_fetcher *fetcher = arg;

	pthread_setname_np(pthread_self(), "dsfs-timer");
	for (;;) {
		uint64_t now = ds_mono_ns(), next_ns;
		struct timespec until;
		bool is_ending;

		while (expire_one(fetcher, now, &next_ns))
			;
		pthread_mutex_lock(&fetcher->mutex);
		is_ending = fetcher->locked.is_ending;
		if (!is_ending) {
			/* What came in between looks at the list's head again. */
			if (!ds_list_is_empty(&fetcher->locked.deadlines))
				next_ns = ds_list_entry(fetcher->locked.deadlines.next,
							struct ds_fetch_waiter, deadline_node)
						  ->deadline_ns;
			else
				next_ns = UINT64_MAX;
			wake_flights_locked(fetcher, now, &next_ns);
			if (next_ns == UINT64_MAX) {
				pthread_cond_wait(&fetcher->timer_wake, &fetcher->mutex);
			} else if (next_ns > ds_mono_ns()) {
				until.tv_sec = (time_t)(next_ns / DS_NS_PER_S);
				until.tv_nsec = (long)(next_ns % DS_NS_PER_S);
				pthread_cond_timedwait(&fetcher->timer_wake, &fetcher->mutex,
						       &until);
			}
		}
		pthread_mutex_unlock(&fetcher->mutex);
		if (is_ending)
			return NULL;
	}
}

int ds_fetch_timer_start_locked(struct ds_fetcher *fetcher)
{
	sigset_t all, old;
	int r;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&fetcher->timer, NULL, timer_thread, fetcher);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -r;
}
