#include <criterion/criterion.h>
#include <pthread.h>
#include <sched.h>

#include "test_leaks.h"
#include "util/mem.h"
#include "util/per_cpu.h"

TestSuite(per_cpu, .fini = test_leaks_abort, .timeout = 30);

#define THREADS_N (DS_LANES_N + 3) /* so that it may be full */
#define ROUNDS_N  2000u

static struct ds_lanes lanes;
static struct ds_counter counter;
static _Atomic unsigned made_n;

/* So that the kernel moves this thread nowhere. */
static void stay_on_one_processor(void)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET((size_t)sched_getcpu(), &set);
	cr_assert_eq(sched_setaffinity(0, sizeof(set), &set), 0);
}

Test(per_cpu, what_was_put_back_on_this_processor_is_taken_first)
{
	struct ds_lane *lane;
	int a, b;

	stay_on_one_processor();
	lane = &lanes.lanes[(ds_lane() + DS_LANES_N - 1) % DS_LANES_N];
	lane->item = &b; /* another processor's */
	cr_assert(ds_lanes_put(&lanes, &a));
	for (unsigned i = 0; i < 100; i++) {
		cr_assert_eq(ds_lanes_take(&lanes), &a);
		cr_assert(ds_lanes_put(&lanes, &a));
	}
	cr_assert_eq(ds_lanes_take(&lanes), &a);
	cr_assert_eq(ds_lanes_take(&lanes), &b, "what is idle elsewhere is better than a new one");
	cr_assert_null(ds_lanes_take(&lanes));
}

Test(per_cpu, a_set_holds_as_many_as_it_has_lanes_and_gives_each_once)
{
	char items[DS_LANES_N + 1] = {0};
	char *item;

	cr_assert_null(ds_lanes_take(&lanes));
	for (unsigned i = 0; i < DS_LANES_N; i++)
		cr_assert(ds_lanes_put(&lanes, &items[i]));
	cr_assert(!ds_lanes_put(&lanes, &items[DS_LANES_N]));
	for (unsigned i = 0; i < DS_LANES_N; i++) {
		item = ds_lanes_take(&lanes);
		cr_assert_not_null(item);
		cr_assert_eq((*item)++, 0);
	}
	cr_assert_null(ds_lanes_take(&lanes));
}

/* Not atomic: two threads that have one object at a time would lose increments. */
struct object {
	unsigned uses_n;
};

static void *use_objects(void *ctx)
{
	(void)ctx;
	for (unsigned i = 0; i < ROUNDS_N; i++) {
		struct object *object = ds_lanes_take(&lanes);

		if (!object) {
			object = ds_calloc(1, sizeof(*object));
			made_n++;
		}
		object->uses_n++;
		ds_counter_add(&counter, 3);
		/* What finds no room is kept for the sum. */
		while (!ds_lanes_put(&lanes, object)) {
			struct object *other = ds_lanes_take(&lanes);

			if (!other)
				continue;
			object->uses_n += other->uses_n;
			ds_free(other);
			made_n--;
		}
	}
	return NULL;
}

Test(per_cpu, threads_never_have_one_object_at_a_time)
{
	pthread_t threads[THREADS_N];
	struct object *object;
	uint64_t uses_n = 0, objects_n = 0;

	for (unsigned i = 0; i < THREADS_N; i++)
		cr_assert_eq(pthread_create(&threads[i], NULL, use_objects, NULL), 0);
	for (unsigned i = 0; i < THREADS_N; i++)
		pthread_join(threads[i], NULL);
	while ((object = ds_lanes_take(&lanes))) {
		uses_n += object->uses_n;
		objects_n++;
		ds_free(object);
	}
	cr_assert_eq(uses_n, (uint64_t)THREADS_N * ROUNDS_N);
	cr_assert_eq(objects_n, made_n);
	cr_assert_leq(objects_n, DS_LANES_N);
	cr_assert_eq(ds_counter_get(&counter), (uint64_t)THREADS_N * ROUNDS_N * 3);
}
