#include <criterion/criterion.h>
#include <pthread.h>

#include "test_leaks.h"
#include "util/mem.h"
#include "util/per_thread.h"

TestSuite(per_thread, .fini = test_leaks_abort, .timeout = 30);

#define THREADS_N (DS_PER_THREAD_N * 2 + 3) /* so that lanes are shared */
#define ROUNDS_N  2000u

static struct ds_lanes lanes;
static struct ds_counter counter;
static _Atomic unsigned made_n;

static void *note_lane(void *ctx)
{
	*(unsigned *)ctx = ds_thread_lane();
	return NULL;
}

Test(per_thread, a_thread_keeps_its_lane_and_those_that_come_together_have_different_ones)
{
	unsigned seen[DS_PER_THREAD_N - 1];
	bool taken[DS_PER_THREAD_N] = {false};
	unsigned own = ds_thread_lane();

	taken[own] = true;
	for (unsigned i = 0; i < DS_PER_THREAD_N - 1; i++) {
		pthread_t thread;

		cr_assert_eq(pthread_create(&thread, NULL, note_lane, &seen[i]), 0);
		pthread_join(thread, NULL);
		cr_assert_lt(seen[i], DS_PER_THREAD_N);
		cr_assert(!taken[seen[i]], "lane %u twice", seen[i]);
		taken[seen[i]] = true;
	}
	cr_assert_eq(ds_thread_lane(), own);
}

Test(per_thread, an_object_is_taken_once_and_a_lane_holds_one)
{
	int a, b;

	cr_assert_null(ds_lanes_take(&lanes));
	cr_assert(ds_lanes_put(&lanes, &a));
	cr_assert(!ds_lanes_put(&lanes, &b));
	cr_assert_eq(ds_lanes_take(&lanes), &a);
	cr_assert_null(ds_lanes_take(&lanes));
	cr_assert(ds_lanes_put(&lanes, &b));
	cr_assert_eq(ds_lanes_take_any(&lanes), &b);
	cr_assert_null(ds_lanes_take_any(&lanes));
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

Test(per_thread, threads_that_share_lanes_never_have_one_object_at_a_time)
{
	pthread_t threads[THREADS_N];
	struct object *object;
	uint64_t uses_n = 0, objects_n = 0;

	for (unsigned i = 0; i < THREADS_N; i++)
		cr_assert_eq(pthread_create(&threads[i], NULL, use_objects, NULL), 0);
	for (unsigned i = 0; i < THREADS_N; i++)
		pthread_join(threads[i], NULL);
	while ((object = ds_lanes_take_any(&lanes))) {
		uses_n += object->uses_n;
		objects_n++;
		ds_free(object);
	}
	cr_assert_eq(uses_n, (uint64_t)THREADS_N * ROUNDS_N);
	cr_assert_eq(objects_n, made_n);
	cr_assert_leq(objects_n, DS_PER_THREAD_N);
	cr_assert_eq(ds_counter_get(&counter), (uint64_t)THREADS_N * ROUNDS_N * 3);
}
