/*
 * What each thread has for itself, so that threads that answer requests share no lock and no cache line.
 *
 * Threads get numbers as they come; a number picks one of DS_PER_THREAD_N lanes. Two threads with one lane are
 * slower, never wrong: all accesses are atomic. 64 lanes: a mount has some 30 threads on 2 cores.
 *
 * Threads: all functions from any; nothing blocks and nothing allocates.
 */
#ifndef DS_UTIL_PER_THREAD_H
#define DS_UTIL_PER_THREAD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DS_PER_THREAD_N 64u
#define DS_CACHE_LINE	64u

/* This thread's lane, below DS_PER_THREAD_N; the same for as long as it lives. */
unsigned ds_thread_lane(void);

/*
 * One object for each lane: who takes it has it alone until it is put back. Zeroed memory is a set of empty
 * lanes. What the objects are, and who frees them at the end (ds_lanes_take_any until NULL), is the owner's
 * business.
 */
struct ds_lanes {
	struct ds_lane {
		_Atomic(void *) item;
		char apart[DS_CACHE_LINE - sizeof(void *)];
	} lanes[DS_PER_THREAD_N];
};

/* The object of this thread's lane, or NULL: none was put there, or another thread of the lane has it. */
static inline void *ds_lanes_take(struct ds_lanes *lanes)
{
	struct ds_lane *lane = &lanes->lanes[ds_thread_lane()];

	return atomic_exchange_explicit(&lane->item, NULL, memory_order_acq_rel);
}

/* False: the lane has an object already; this one stays the caller's. */
static inline bool ds_lanes_put(struct ds_lanes *lanes, void *item)
{
	struct ds_lane *lane = &lanes->lanes[ds_thread_lane()];
	void *expected = NULL;

	return atomic_compare_exchange_strong_explicit(&lane->item, &expected, item,
						       memory_order_acq_rel, memory_order_relaxed);
}

/* Of whatever lane; for the end. */
void *ds_lanes_take_any(struct ds_lanes *lanes);

/* A counter that many threads add to and few read. Zeroed memory is 0. */
struct ds_counter {
	struct ds_counter_lane {
		_Atomic uint64_t n;
		char apart[DS_CACHE_LINE - sizeof(uint64_t)];
	} lanes[DS_PER_THREAD_N];
};

static inline void ds_counter_add(struct ds_counter *counter, uint64_t n)
{
	atomic_fetch_add_explicit(&counter->lanes[ds_thread_lane()].n, n, memory_order_relaxed);
}

/* The sum; what other threads add meanwhile may be in it or not. */
uint64_t ds_counter_get(const struct ds_counter *counter);

#endif
