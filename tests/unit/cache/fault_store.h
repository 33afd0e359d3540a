/*
 * A store in front of another that counts, holds, fails and spoils GETs: what a test of the fetcher needs to be in
 * control. What it does not touch goes through. Thread-safe. Everything is by the order of GETs (and HEADs) of keys that
 * contain `match`.
 */
#pragma once

#include <pthread.h>

#include "store/store.h"
#include "util/work.h"

struct fault_store {
	struct ds_store base;
	struct ds_store *inner;
	struct ds_work *thread;
	pthread_mutex_t mutex;
	pthread_cond_t changed;
	/* by mutex; set by the test */
	const char *match;	/* NULL: all */
	bool hold;		/* do not answer, not even after the deadline ... */
	unsigned pass_n;	/* ... but so many of the first ones */
	int fail;		/* answer this error ... */
	unsigned fail_n;	/* ... to so many, ... */
	uint64_t fail_after_ns; /* ... which are not to be tried again before */
	unsigned flip_n;	/* spoil one byte of so many answers */
	/* by mutex; for the test to look at */
	unsigned gets_n, held_n, held_max_n, hastened_n, cancelled_n, flipped_n, failed_n;
	struct ds_list held;
};

/* Takes a reference of inner. */
struct fault_store *fault_store_new(struct ds_store *inner);
/* Answers what is held, from then on at once. */
void fault_store_release(struct fault_store *store);
/* Answers the one that is held the longest. */
void fault_store_release_one(struct fault_store *store);
/* Blocks until so many are held, or fails the test after 20 s. */
void fault_store_wait_held(struct fault_store *store, unsigned n);
