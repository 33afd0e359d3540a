/*
 * Demands: what a request misses, the wait for it, and what was delivered.
 *
 * A wait is an object of its own, counted, because an abandoned demand goes away while fetches of
 * it may still be on their way back. The last callback of its targets ends it, never the call that
 * starts it: done comes from a worker.
 *
 * INV-1  Exactly one of {the last waiter, ds_demand_abandon} sets `is_over` and with it wins the
 *        demand; afterwards no waiter touches the demand.
 * INV-2  The images of a wait's targets are referenced by the wait until all its waiters are done.
 */
#include <assert.h>
#include <errno.h>

#include "repo/view_internal.h"
#include "util/error.h"
#include "util/mem.h"

struct pin {
	struct ds_list node;
	struct ds_digest digest;
	struct ds_chunk_bytes *bytes;
};

struct wait;

struct waiter {
	struct ds_fetch_waiter fetch;
	struct wait *wait;
	struct ds_fetch_target target;
};

struct wait {
	pthread_mutex_t mutex;
	struct {
		struct ds_demand *demand; /* not to be touched once is_over */
		unsigned pending_n;	  /* targets whose callback has not come */
		unsigned refs_n;	  /* pending ones, the starter, and the demand */
		int result;
		bool is_over;
	} locked;
	void (*done)(struct ds_demand *demand, int result, void *ctx);
	void *ctx;
	size_t waiters_n, started_n;
	struct waiter waiters[DS_DEMAND_TARGETS_MAX];
};

void ds_demand_init(struct ds_demand *demand, struct ds_view *view)
{
	demand->targets_n = 0;
	demand->view = view;
	demand->wait = NULL;
	demand->may_check = true;
	demand->is_listing = false;
	demand->direct_room_bytes = 0;
	demand->direct.image = NULL;
	demand->may_be_lent = false;
	demand->lent.image = NULL;
	ds_diag_clear(&demand->diag);
	ds_list_init(&demand->pins);
}

void demand_clear(struct ds_demand *demand)
{
	if (!demand)
		return;
	for (size_t i = 0; i < demand->targets_n; i++)
		ds_image_unref(demand->targets[i].image);
	demand->targets_n = 0;
}

void demand_add(struct ds_demand *demand, const struct ds_fetch_target *target)
{
	if (!demand)
		return;
	for (size_t i = 0; i < demand->targets_n; i++)
		if (ds_digest_equal(&demand->targets[i].ref.digest, &target->ref.digest))
			return;
	if (demand->targets_n == DS_DEMAND_TARGETS_MAX)
		return;
	demand->targets[demand->targets_n] = *target;
	ds_image_ref(target->image);
	demand->targets_n++;
}

struct ds_chunk_bytes *demand_pinned(const struct ds_demand *demand, const struct ds_digest *digest)
{
	ds_list_for_each (node, &demand->pins) {
		const struct pin *pin = ds_list_entry(node, struct pin, node);

		if (ds_digest_equal(&pin->digest, digest))
			return pin->bytes;
	}
	return NULL;
}

void ds_demand_give_back(struct ds_demand *demand)
{
	if (!demand->lent.image)
		return;
	ds_image_lend_end(demand->lent.image);
	demand->lent.image = ds_image_unref(demand->lent.image);
}

static void wait_unref(struct wait *wait);

/* Forgets the wait before, if any; it is over. */
static void drop_wait(struct ds_demand *demand)
{
	if (demand->wait)
		wait_unref(demand->wait);
	demand->wait = NULL;
}

void ds_demand_release(struct ds_demand *demand)
{
	drop_wait(demand);
	demand_clear(demand);
	ds_demand_give_back(demand);
	ds_list_for_each_safe (node, next, &demand->pins) {
		struct pin *pin = ds_list_entry(node, struct pin, node);

		ds_list_remove(&pin->node);
		ds_chunk_bytes_unref(pin->bytes);
		ds_free(pin);
	}
}

static void wait_unref(struct wait *wait)
{
	unsigned refs_n;

	pthread_mutex_lock(&wait->mutex);
	refs_n = --wait->locked.refs_n;
	pthread_mutex_unlock(&wait->mutex);
	if (refs_n)
		return;
	for (size_t i = 0; i < wait->waiters_n; i++)
		ds_image_unref(wait->waiters[i].target.image);
	pthread_mutex_destroy(&wait->mutex);
	ds_free(wait);
}

static int pin_locked(struct wait *wait, const struct ds_digest *digest,
		      struct ds_chunk_bytes *bytes)
{
	struct pin *pin = ds_malloc(sizeof(*pin));

	if (!pin)
		return -ENOMEM;
	pin->digest = *digest;
	pin->bytes = ds_chunk_bytes_ref(bytes);
	ds_list_push_back(&wait->locked.demand->pins, &pin->node);
	return 0;
}

/* One less is pending. The last one ends the wait: its demand; else NULL. */
static struct ds_demand *count_down_locked(struct wait *wait)
{
	if (--wait->locked.pending_n > 0 || wait->locked.is_over)
		return NULL;
	wait->locked.is_over = true;
	return wait->locked.demand;
}

static void on_fetched(struct ds_fetch_waiter *fetch, int result, struct ds_chunk_bytes *bytes,
		       const struct ds_diag *diag)
{
	struct waiter *waiter = ds_container_of(fetch, struct waiter, fetch);
	struct wait *wait = waiter->wait;
	struct ds_demand *demand;

	pthread_mutex_lock(&wait->mutex);
	if (!wait->locked.is_over) {
		/* A pin holds all that was received with it, which counts in no budget any more: not for as long as another chunk takes. Of each
		 * run one is pinned, so that it gets further even if what is stored is evicted at once: who is the last is counted with the same
		 * hold of the mutex. */
		if (result == 0 && bytes && (!fetch->is_stored || wait->locked.pending_n == 1))
			result = pin_locked(wait, &waiter->target.ref.digest, bytes);
		if (result < 0 && wait->locked.result == 0) {
			wait->locked.result = result;
			if (diag)
				wait->locked.demand->diag = *diag;
		}
	}
	demand = count_down_locked(wait);
	result = wait->locked.result;
	pthread_mutex_unlock(&wait->mutex);
	if (demand)
		wait->done(demand, result, wait->ctx);
	wait_unref(wait);
}

static int wait_new(struct ds_demand *demand, uint64_t deadline_ns, struct wait **ret_wait)
{
	struct wait *wait = ds_calloc(1, sizeof(*wait));

	if (!wait)
		return -ENOMEM;
	pthread_mutex_init(&wait->mutex, NULL);
	wait->waiters_n = demand->targets_n;
	wait->locked.demand = demand;
	wait->locked.pending_n = (unsigned)demand->targets_n;
	wait->locked.refs_n = 2 + (unsigned)demand->targets_n;
	for (size_t i = 0; i < wait->waiters_n; i++) {
		struct waiter *waiter = &wait->waiters[i];

		waiter->fetch.done = on_fetched;
		waiter->fetch.deadline_ns = deadline_ns;
		waiter->wait = wait;
		waiter->target = demand->targets[i];
		ds_image_ref(waiter->target.image);
	}
	*ret_wait = wait;
	return 0;
}

/*
 * Not all targets could be asked for: takes back what was. True: all of it, and the wait is over.
 * Those that were never started still count as pending, so that the wait cannot end before this has
 * decided.
 */
static bool take_back(struct wait *wait, struct ds_fetcher *fetcher, int error)
{
	unsigned gone_n = (unsigned)(wait->waiters_n - wait->started_n);
	bool is_all;

	pthread_mutex_lock(&wait->mutex);
	wait->locked.result = error;
	pthread_mutex_unlock(&wait->mutex);
	for (size_t i = 0; i < wait->started_n; i++)
		if (ds_fetcher_abandon(fetcher, &wait->waiters[i].fetch))
			gone_n++;
	pthread_mutex_lock(&wait->mutex);
	wait->locked.pending_n -= gone_n;
	wait->locked.refs_n -= gone_n;
	is_all = wait->locked.pending_n == 0;
	if (is_all)
		wait->locked.is_over = true;
	pthread_mutex_unlock(&wait->mutex);
	return is_all;
}

int ds_demand_wait(struct ds_demand *demand, uint64_t deadline_ns,
		   void (*done)(struct ds_demand *demand, int result, void *ctx), void *ctx)
{
	struct ds_fetcher *fetcher = demand->view->fetcher;
	struct wait *wait;
	int r;

	assert(demand->targets_n > 0);
	drop_wait(demand);
	r = wait_new(demand, deadline_ns, &wait);
	if (r < 0)
		return r;
	wait->done = done;
	wait->ctx = ctx;
	demand->wait = wait;
	while (r == 0 && wait->started_n < wait->waiters_n) {
		struct waiter *waiter = &wait->waiters[wait->started_n];

		r = ds_fetcher_want(fetcher, &waiter->target, &waiter->fetch);
		if (r == 0)
			wait->started_n++;
	}
	/* What is still under way ends the wait with the error. */
	if (r < 0 && !take_back(wait, fetcher, r))
		r = 0;
	wait_unref(wait);
	return r;
}

bool ds_demand_abandon(struct ds_demand *demand)
{
	struct wait *wait = demand->wait;
	bool won;

	if (!wait)
		return false;
	pthread_mutex_lock(&wait->mutex);
	won = !wait->locked.is_over;
	wait->locked.is_over = true;
	pthread_mutex_unlock(&wait->mutex);
	if (!won)
		return false;
	/* Callbacks that are on their way find is_over. */
	for (size_t i = 0; i < wait->started_n; i++)
		if (ds_fetcher_abandon(demand->view->fetcher, &wait->waiters[i].fetch))
			wait_unref(wait);
	return true;
}
