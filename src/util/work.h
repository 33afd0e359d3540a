/*
 * Work queue: a fixed set of threads that run items, urgent ones first.
 *
 * The item is embedded in the caller's struct and belongs to the queue from submit until `run`
 * is called with it; run may free or resubmit it. Threads: submit from any, also from `run`.
 */
#ifndef DS_UTIL_WORK_H
#define DS_UTIL_WORK_H

#include <stdbool.h>
#include <stddef.h>

#include "util/list.h"

struct ds_work_item {
	struct ds_list node;
	void (*run)(struct ds_work_item *item);
	bool is_in_no_hurry; /* the queue's own: it waits, and is not urgent */
};

struct ds_work;

/* Starts threads_n threads (1..256) with all signals blocked; `name` (at most 15 bytes) shows in ps.
 * -ENOMEM, or pthread_create's error: threads that did start are ended again. */
int ds_work_new(unsigned threads_n, const char *name, struct ds_work **ret_work);
/* Runs what is still queued, then ends and joins the threads. NULL is allowed. Not from `run`.
 * Returns NULL. */
struct ds_work *ds_work_free(struct ds_work *work);

/* Urgent items overtake others. Never fails, never blocks for long. */
void ds_work_submit(struct ds_work *work, struct ds_work_item *item, bool is_urgent);

/* Makes an item urgent that was submitted and may still wait; nothing if it does not. The caller knows that it
 * was not freed meanwhile. Blocks no more than submit. */
void ds_work_hasten(struct ds_work *work, struct ds_work_item *item);

/* Number of items that wait. */
size_t ds_work_waiting_n(struct ds_work *work);

/* CPUs that this process may use (sched_getaffinity), at least 1. */
unsigned ds_cpu_count(void);

#endif
