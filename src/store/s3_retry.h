/*
 * How often and how many at once: backoff, the token bucket that paces retries, and the number of
 * connections.
 *
 * Backoff is full jitter from 50 ms to 5 s ("Exponential Backoff And Jitter", AWS Architecture
 * Blog). A retry takes a token; the bucket holds 100, gets 10 in a second and one for every success,
 * so that half of all requests may fail for ever, while in an outage no more than 10 requests a second
 * go out. An empty bucket makes retries wait and never fail. Connections follow additive increase and
 * multiplicative decrease on what the store calls too fast.
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
	double connections, connections_max;
	uint64_t decreased_ns;
};

void ds_s3_pacer_init(struct ds_s3_pacer *pacer, unsigned connections_max, uint64_t seed,
		      uint64_t now_ns);
/* Delay before try number attempt_n + 1, attempt_n from 1. */
uint64_t ds_s3_pacer_backoff_ns(struct ds_s3_pacer *pacer, unsigned attempt_n);
/* Takes a token for a retry; if there is none, false and when there will be one. */
bool ds_s3_pacer_take(struct ds_s3_pacer *pacer, uint64_t now_ns, uint64_t *ret_when_ns);
void ds_s3_pacer_succeeded(struct ds_s3_pacer *pacer);
/* The store asked to slow down: halves the connections, at most once in a second. */
void ds_s3_pacer_slow_down(struct ds_s3_pacer *pacer, uint64_t now_ns);
/* How many requests may run at once, at least 1. */
unsigned ds_s3_pacer_connections(const struct ds_s3_pacer *pacer);

/* Retry-After in seconds, or as a date against the answer's own Date; 0 if it is neither, at most
 * 30 s. `text` and `date` may be NULL. */
uint64_t ds_s3_retry_after_ns(const char *text, const char *date);

#endif
