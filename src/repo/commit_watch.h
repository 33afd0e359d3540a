/*
 * What every wait of a commit looks at: whether it was interrupted, and that progress is shown meanwhile. Waits wake up
 * each 100 ms for it, since a signal handler can set a flag but signal no condition.
 *
 * Threads: the caller's thread of the commit.
 */
#ifndef DS_REPO_COMMIT_WATCH_H
#define DS_REPO_COMMIT_WATCH_H

#include <pthread.h>
#include <stdbool.h>
#include <time.h>

#include "util/clock.h"

#define COMMIT_TICK_MS 100u

struct commit_watch {
	const volatile int *interrupted; /* may be NULL */
	void (*tick)(
		void *ctx); /* about every COMMIT_TICK_MS while something is waited for; may be NULL */
	void *ctx;
};

static inline bool commit_is_interrupted(const struct commit_watch *watch)
{
	return watch && watch->interrupted && *watch->interrupted;
}

static inline void commit_tick(const struct commit_watch *watch)
{
	if (watch && watch->tick)
		watch->tick(watch->ctx);
}

/* A condition whose timed waits go by the monotonic clock. */
static inline void commit_cond_init(pthread_cond_t *cond)
{
	pthread_condattr_t attr;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(cond, &attr);
	pthread_condattr_destroy(&attr);
}

/* At most one tick long. */
static inline void commit_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex)
{
	uint64_t until_ns = ds_deadline_in_ms(COMMIT_TICK_MS);
	struct timespec until = {.tv_sec = (time_t)(until_ns / DS_NS_PER_S),
				 .tv_nsec = (long)(until_ns % DS_NS_PER_S)};

	pthread_cond_timedwait(cond, mutex, &until);
}

#endif
