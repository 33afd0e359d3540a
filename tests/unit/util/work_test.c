#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>

#include "test_leaks.h"
#include "util/mem.h"
#include "util/work.h"

TestSuite(work, .fini = test_leaks_abort, .timeout = 30);

static _Atomic int ran_n;
static sem_t at_gate, gate;

static void count(struct ds_work_item *item)
{
	(void)item;
	ran_n++;
}

/* Says that it is here, and waits. */
static void block(struct ds_work_item *item)
{
	(void)item;
	sem_post(&at_gate);
	sem_wait(&gate);
}

static void init_gate(void)
{
	sem_init(&at_gate, 0, 0);
	sem_init(&gate, 0, 0);
}

Test(work, every_item_runs_once_and_free_waits_for_them)
{
	static struct ds_work_item items[10000];
	struct ds_work *work = NULL;

	cr_assert_eq(ds_work_new(4, "test", &work), 0);
	for (size_t i = 0; i < DS_ARRAY_SIZE(items); i++) {
		items[i].run = count;
		ds_work_submit(work, &items[i], i % 3 == 0);
	}
	cr_assert_null(ds_work_free(work));
	cr_assert_eq(ran_n, DS_ARRAY_SIZE(items));
	cr_assert_null(ds_work_free(NULL));
}

static char order[16];
static size_t order_n;

struct named {
	struct ds_work_item item;
	char name;
};

static void note(struct ds_work_item *item)
{
	order[order_n++] = ds_container_of(item, struct named, item)->name;
}

/* One worker, who is in `blocker` until the gate opens; behind that the items, those in capitals as urgent ones. */
static struct ds_work *start_blocked(struct ds_work_item *blocker, struct named *items, size_t n)
{
	struct ds_work *work = NULL;

	init_gate();
	cr_assert_eq(ds_work_new(1, "test", &work), 0);
	ds_work_submit(work, blocker, false);
	sem_wait(&at_gate);
	for (size_t i = 0; i < n; i++) {
		items[i].item.run = note;
		ds_work_submit(work, &items[i].item, items[i].name < 'a');
	}
	return work;
}

Test(work, urgent_items_overtake_and_equals_keep_their_order)
{
	struct named items[] = {
		{.name = 'a'}, {.name = 'b'}, {.name = 'C'}, {.name = 'D'}, {.name = 'e'}};
	struct ds_work_item blocker = {.run = block};
	struct ds_work *work = start_blocked(&blocker, items, DS_ARRAY_SIZE(items));

	cr_assert_eq(ds_work_waiting_n(work), 5);
	sem_post(&gate);
	ds_work_free(work);
	cr_assert_str_eq(order, "CDabe");
}

Test(work, an_item_that_waits_can_be_hastened)
{
	struct named items[] = {
		{.name = 'a'}, {.name = 'B'}, {.name = 'c'}, {.name = 'd'}, {.name = 'E'}};
	struct ds_work_item blocker = {.run = block}, last = {.run = block};
	struct ds_work *work = start_blocked(&blocker, items, DS_ARRAY_SIZE(items));

	ds_work_submit(work, &last, false);
	/* Behind those that are urgent already, which stay where they are; not one that runs. */
	ds_work_hasten(work, &items[3].item);
	ds_work_hasten(work, &items[1].item);
	ds_work_hasten(work, &items[3].item);
	ds_work_hasten(work, &blocker);
	cr_assert_eq(ds_work_waiting_n(work), 6);
	sem_post(&gate);
	sem_wait(&at_gate);
	/* Nor one that has run. */
	ds_work_hasten(work, &items[0].item);
	cr_assert_eq(ds_work_waiting_n(work), 0);
	sem_post(&gate);
	ds_work_free(work);
	cr_assert_str_eq(order, "BEdac");
}

Test(work, items_run_side_by_side)
{
	struct ds_work_item blockers[4];
	struct ds_work *work = NULL;

	init_gate();
	cr_assert_eq(ds_work_new(4, "test", &work), 0);
	for (int i = 0; i < 4; i++) {
		blockers[i].run = block;
		ds_work_submit(work, &blockers[i], false);
	}
	/* All four are there at once, or this waits until the time limit. */
	for (int i = 0; i < 4; i++)
		sem_wait(&at_gate);
	cr_assert_eq(ds_work_waiting_n(work), 0);
	for (int i = 0; i < 4; i++)
		sem_post(&gate);
	ds_work_free(work);
}

static struct ds_work *again_work;

static void again(struct ds_work_item *item)
{
	if (++ran_n < 1000)
		ds_work_submit(again_work, item, ran_n & 1);
}

static void run_and_free(struct ds_work_item *item)
{
	ran_n++;
	ds_free(item);
}

Test(work, run_may_resubmit_or_free_its_item)
{
	struct ds_work_item item = {.run = again};

	cr_assert_eq(ds_work_new(2, "test", &again_work), 0);
	ds_work_submit(again_work, &item, false);
	ds_work_free(again_work);
	cr_assert_eq(ran_n, 1000);
	cr_assert_eq(ds_work_new(2, "test", &again_work), 0);
	for (int i = 0; i < 100; i++) {
		struct ds_work_item *freed = ds_calloc(1, sizeof(*freed));

		freed->run = run_and_free;
		ds_work_submit(again_work, freed, false);
	}
	ds_work_free(again_work);
	cr_assert_eq(ran_n, 1100);
}

static sigset_t mask;
static char name[16];

static void look(struct ds_work_item *item)
{
	(void)item;
	pthread_sigmask(SIG_SETMASK, NULL, &mask);
	pthread_getname_np(pthread_self(), name, sizeof(name));
}

/* A signal has to reach the thread that waits for it, never a worker. */
Test(work, threads_block_signals_and_bear_the_name)
{
	struct ds_work_item item = {.run = look};
	struct ds_work *work = NULL;
	sigset_t own;

	cr_assert_eq(ds_work_new(1, "dsfs-test", &work), 0);
	ds_work_submit(work, &item, false);
	ds_work_free(work);
	cr_assert(sigismember(&mask, SIGTERM));
	cr_assert(sigismember(&mask, SIGHUP));
	cr_assert_eq(strncmp(name, "dsfs-test", 9), 0);
	pthread_sigmask(SIG_SETMASK, NULL, &own);
	cr_assert_not(sigismember(&own, SIGTERM));
}

Test(work, J01_no_memory_is_an_error)
{
	struct ds_work *work = NULL;

	ds_mem_fail_after(0, 0);
	cr_assert_eq(ds_work_new(4, "test", &work), -ENOMEM);
	ds_mem_fail_after(-1, 0);
	cr_assert_null(work);
}

Test(work, there_is_at_least_one_CPU)
{
	cr_assert_geq(ds_cpu_count(), 1);
}
