#include "util/per_cpu.h"

#include <sched.h>

unsigned ds_lane(void)
{
	int cpu = sched_getcpu();

	return cpu < 0 ? 0 : (unsigned)cpu % DS_LANES_N;
}

void *ds_lanes_take(struct ds_lanes *lanes)
{
	unsigned own = ds_lane();

	for (unsigned i = 0; i < DS_LANES_N; i++) {
		struct ds_lane *lane = &lanes->lanes[(own + i) % DS_LANES_N];
		void *item = NULL;

		if (atomic_load_explicit(&lane->item, memory_order_relaxed))
			item = atomic_exchange_explicit(&lane->item, NULL, memory_order_acquire);
		if (item)
			return item;
	}
	return NULL;
}

bool ds_lanes_put(struct ds_lanes *lanes, void *item)
{
	unsigned own = ds_lane();

	for (unsigned i = 0; i < DS_LANES_N; i++) {
		struct ds_lane *lane = &lanes->lanes[(own + i) % DS_LANES_N];
		void *expected = NULL;

		if (!atomic_load_explicit(&lane->item, memory_order_relaxed) &&
		    atomic_compare_exchange_strong_explicit(&lane->item, &expected, item,
							    memory_order_release,
							    memory_order_relaxed))
			return true;
	}
	return false;
}

uint64_t ds_counter_get(const struct ds_counter *counter)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < DS_LANES_N; i++)
		sum += atomic_load_explicit(&counter->lanes[i].n, memory_order_relaxed);
	return sum;
}
