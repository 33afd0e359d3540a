#include "util/work.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>

#include "util/mem.h"

struct ds_work {
	pthread_mutex_t mutex;
	pthread_cond_t wake;
	struct {
		struct ds_list urgent, normal;
		size_t waiting_n;
		bool ending;
	} locked;
	char name[16];
	unsigned threads_n;
	pthread_t threads[];
};

static void *work_thread(void *arg)
{
	struct ds_work *work = arg;

	pthread_setname_np(pthread_self(), work->name);
	pthread_mutex_lock(&work->mutex);
	for (;;) {
		struct ds_list *queue = &work->locked.urgent;
		struct ds_work_item *item;

		if (ds_list_is_empty(queue))
			queue = &work->locked.normal;
		if (ds_list_is_empty(queue)) {
			if (work->locked.ending)
				break;
			pthread_cond_wait(&work->wake, &work->mutex);
			continue;
		}
		item = ds_list_entry(queue->next, struct ds_work_item, node);
		ds_list_remove(&item->node);
		item->is_in_no_hurry = false;
		work->locked.waiting_n--;
		pthread_mutex_unlock(&work->mutex);
		item->run(item);
		pthread_mutex_lock(&work->mutex);
	}
	pthread_mutex_unlock(&work->mutex);
	return NULL;
}

int ds_work_new(unsigned threads_n, const char *name, struct ds_work **ret_work)
{
	struct ds_work *work = ds_calloc(1, sizeof(*work) + threads_n * sizeof(pthread_t));
	sigset_t all, old;
	int r = 0;

	if (!work)
		return -ENOMEM;
	pthread_mutex_init(&work->mutex, NULL);
	pthread_cond_init(&work->wake, NULL);
	ds_list_init(&work->locked.urgent);
	ds_list_init(&work->locked.normal);
	snprintf(work->name, sizeof(work->name), "%s", name);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	while (work->threads_n < threads_n && r == 0) {
		r = pthread_create(&work->threads[work->threads_n], NULL, work_thread, work);
		if (r == 0)
			work->threads_n++;
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r != 0) {
		ds_work_free(work);
		return -r;
	}
	*ret_work = work;
	return 0;
}

struct ds_work *ds_work_free(struct ds_work *work)
{
	if (!work)
		return NULL;
	pthread_mutex_lock(&work->mutex);
	work->locked.ending = true;
	pthread_cond_broadcast(&work->wake);
	pthread_mutex_unlock(&work->mutex);
	for (unsigned i = 0; i < work->threads_n; i++)
		pthread_join(work->threads[i], NULL);
	pthread_cond_destroy(&work->wake);
	pthread_mutex_destroy(&work->mutex);
	ds_free(work);
	return NULL;
}

void ds_work_submit(struct ds_work *work, struct ds_work_item *item, bool is_urgent)
{
	pthread_mutex_lock(&work->mutex);
	ds_list_push_back(is_urgent ? &work->locked.urgent : &work->locked.normal, &item->node);
	item->is_in_no_hurry = !is_urgent;
	work->locked.waiting_n++;
	pthread_cond_signal(&work->wake);
	pthread_mutex_unlock(&work->mutex);
}

void ds_work_hasten(struct ds_work *work, struct ds_work_item *item)
{
	pthread_mutex_lock(&work->mutex);
	if (item->is_in_no_hurry) {
		ds_list_remove(&item->node);
		ds_list_push_back(&work->locked.urgent, &item->node);
		item->is_in_no_hurry = false;
	}
	pthread_mutex_unlock(&work->mutex);
}

size_t ds_work_waiting_n(struct ds_work *work)
{
	size_t n;

	pthread_mutex_lock(&work->mutex);
	n = work->locked.waiting_n;
	pthread_mutex_unlock(&work->mutex);
	return n;
}

unsigned ds_cpu_count(void)
{
	cpu_set_t set;
	int n = 1;

	if (sched_getaffinity(0, sizeof(set), &set) == 0)
		n = CPU_COUNT(&set);
	return n < 1 ? 1 : (unsigned)n;
}
