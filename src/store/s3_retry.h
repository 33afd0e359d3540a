/*
 * How often and how many at once: backoff, the token bucket that paces retries, and the number of
 * connections.
 *
 * Backoff is full jitter from 50 ms to 5 s ("Exponential Backoff And Jitter", AWS Architecture
 * Blog). A retry takes a token; the bucket holds 100, gets 10 in a second and one for every success,
 * so that half of all requests may fail for ever, while in an outage no more than 10 requests a second
 * go out. An empty bucket makes retries wait and never fail.
 *
 * The number of requests at once follows additive increase and multiplicative decrease, as TCP's window
 * does (RFC 5681): half of what ran when the store asks to slow down, once for all that was on its way
 * then; one more for each round trip without that, and for no less than 50 ms: from 1 to 64 in 3.2 s at
 * least, and a store that takes N at once refuses a few of each N / 2 * 50 ms, not of each N / 2 round trips.
 * Other trouble (no connection, a broken one, an error of the server) halves too, but not below an
 * eighth: it may be the way and not the number. A transfer that stands still changes nothing: after an
 * outage it may do so for long, and then few like it would be in everybody's way.
 *
 * Pure state of one thread; the time and the random source are given.
 */
#ifndef DS_STORE_S3_RETRY_H
#define DS_STORE_S3_RETRY_H

#include <stdbool.h>
#include <stdint.h>

#include "util/random.h"

struct ds_s3_pacer {
	struct ds_prng prng;
	double tokens;
	uint64_t filled_ns; /* when tokens was right */
	unsigned connections, connections_max;
	unsigned successes_n; /* since the last change of connections */
	uint64_t changed_ns, decreased_ns;
};

void ds_s3_pacer_init(struct ds_s3_pacer *pacer, unsigned connections_max, uint64_t seed,
		      uint64_t now_ns);
/* Delay before try number attempt_n + 1, attempt_n from 1. */
uint64_t ds_s3_pacer_backoff_ns(struct ds_s3_pacer *pacer, unsigned attempt_n);
/* Takes a token for a retry; if there is none, false and when there will be one. */
bool ds_s3_pacer_take(struct ds_s3_pacer *pacer, uint64_t now_ns, uint64_t *ret_when_ns);
void ds_s3_pacer_succeeded(struct ds_s3_pacer *pacer, uint64_t now_ns);
/* A request that was sent at sent_ns failed, one of running_n: for the store was asked too much, or
 * (is_trouble) for another reason that may have to do with how much is asked. */
void ds_s3_pacer_slow_down(struct ds_s3_pacer *pacer, bool is_trouble, unsigned running_n,
			   uint64_t sent_ns, uint64_t now_ns);
/* How many requests may run at once, at least 1. */
unsigned ds_s3_pacer_connections(const struct ds_s3_pacer *pacer);

/* Retry-After in seconds, or as a date against the answer's own Date; 0 if it is neither, at most
 * 30 s. `text` and `date` may be NULL. */
uint64_t ds_s3_retry_after_ns(const char *text, const char *date);

#endif
