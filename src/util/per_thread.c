#include "util/per_thread.h"

#define LANE_NONE UINT32_MAX

static _Atomic unsigned threads_n;
static _Thread_local unsigned own_lane = LANE_NONE;

unsigned ds_thread_lane(void)
{
	if (own_lane == LANE_NONE)
		own_lane = atomic_fetch_add_explicit(&threads_n, 1, memory_order_relaxed) %
			   DS_PER_THREAD_N;
	return own_lane;
}

void *ds_lanes_take_any(struct ds_lanes *lanes)
{
	void *item = NULL;

	for (unsigned i = 0; i < DS_PER_THREAD_N && !item; i++)
		item = atomic_exchange_explicit(&lanes->lanes[i].item, NULL, memory_order_acq_rel);
	return item;
}

uint64_t ds_counter_get(const struct ds_counter *counter)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < DS_PER_THREAD_N; i++)
		sum += atomic_load_explicit(&counter->lanes[i].n, memory_order_relaxed);
	return sum;
}
