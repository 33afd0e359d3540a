/*
 * Requests that cannot be answered at once.
 *
 *   RUNNING on the FUSE thread   answered from page cache; else QUEUED
 *   QUEUED to a worker           -> RUNNING there; it may wait for the disk, open an image, wait for
 *                                the locks of the cache, and hash what another boot left
 *   RUNNING on a worker          answered; else PARKED on what it misses
 *   PARKED                       delivered                       -> RUNNING on the fetch's worker
 *                                failed, or past the deadline    -> answered EIO
 *                                interrupted                     -> answered EINTR
 *                                the file system ends            -> answered EIO
 *
 * No FUSE thread waits for the network, the disk, a lock of the cache's files, or a mutex that is
 * held over any of them: with io_uring all of a core's requests would wait with it. (Where the
 * file system of the cache does not know RWF_NOWAIT, it reads the files of images that are open.)
 *
 * INV-1  A parked request is won by exactly one of: its delivery, its interrupt, the end.
 *        ds_demand_abandon decides: who gets true, or whose done is called, answers and frees.
 * INV-2  libfuse calls the interrupt callback with the request's lock held, and
 *        fuse_req_interrupt_func(req, NULL, NULL) takes that lock: it is called before a request is
 *        answered by anybody else, and never under request->mutex. So the callback never meets a
 *        request that was freed (T45).
 * INV-3  request->mutex orders the start of a wait with an interrupt that comes at the same time.
 */
#include <errno.h>
#include <string.h>

#include "fs/fs_internal.h"
#include "util/error.h"
#include "util/log.h"
#include "util/mem.h"

static void run_here(struct fs_request *request);

static void free_request(struct fs_request *request)
{
	struct ds_fs *fs = request->fs;

	/* Out of the list first: who walks it looks into demands. */
	pthread_mutex_lock(&fs->mutex);
	ds_list_remove(&request->node);
	pthread_mutex_unlock(&fs->mutex);
	ds_demand_release(&request->demand);
	pthread_mutex_destroy(&request->mutex);
	ds_free(request->name);
	ds_free(request);
	pthread_mutex_lock(&fs->mutex);
	if (--fs->locked.requests_n == 0)
		pthread_cond_broadcast(&fs->idle);
	pthread_mutex_unlock(&fs->mutex);
}

static void finish_with(struct fs_request *request, int code)
{
	fs_reply_error(request, code);
	free_request(request);
}

/* Called by libfuse with the request's lock held. */
static void on_interrupt(fuse_req_t req, void *data)
{
	struct fs_request *request = data;
	bool won;

	pthread_mutex_lock(&request->mutex);
	request->is_interrupted = true;
	won = ds_demand_abandon(&request->demand);
	pthread_mutex_unlock(&request->mutex);
	if (won)
		finish_with(request, -EINTR);
	(void)req;
}

/* Delivered, or failed. On a worker of the fetcher. */
static void on_delivered(struct ds_demand *demand, int result, void *ctx)
{
	struct fs_request *request = ctx;

	(void)demand;
	fuse_req_interrupt_func(request->req, NULL, NULL);
	/* The starter of the wait may still be inside. */
	pthread_mutex_lock(&request->mutex);
	pthread_mutex_unlock(&request->mutex);
	if (result < 0)
		finish_with(request, result);
	else
		run_here(request);
}

static void park(struct fs_request *request)
{
	struct ds_fs *fs = request->fs;
	bool is_ending, is_interrupted;
	int r = 0;

	fs->stats.parked_n += !request->was_parked;
	request->was_parked = true;
	fuse_req_interrupt_func(request->req, on_interrupt, request);
	pthread_mutex_lock(&request->mutex);
	pthread_mutex_lock(&fs->mutex);
	is_ending = fs->locked.is_ending;
	pthread_mutex_unlock(&fs->mutex);
	is_interrupted = request->is_interrupted;
	if (!is_ending && !is_interrupted)
		r = ds_demand_wait(&request->demand, request->deadline_ns, on_delivered, request);
	pthread_mutex_unlock(&request->mutex);
	/* With a wait on, the request is another's from here. */
	if (!is_ending && !is_interrupted && r == 0)
		return;
	fuse_req_interrupt_func(request->req, NULL, NULL);
	finish_with(request, is_interrupted ? -EINTR : is_ending ? -DS_E_INTERRUPTED : r);
}

static void run_here(struct fs_request *request)
{
	int r = request->run(request);

	if (r == -DS_E_NOT_LOCAL && ds_mono_ns() >= request->deadline_ns)
		r = -DS_E_TIMEOUT;
	if (r == 0)
		free_request(request);
	else if (r == -DS_E_NOT_LOCAL)
		park(request);
	else
		finish_with(request, r);
}

static void run_work(struct ds_work_item *item)
{
	run_here(ds_container_of(item, struct fs_request, work));
}

void fs_request_start_uncounted(fuse_req_t req, const struct fs_request *fields)
{
	struct ds_fs *fs = fuse_req_userdata(req);
	struct fs_request local = *fields, *request;
	int r;

	local.req = req;
	local.fs = fs;
	ds_demand_init(&local.demand, fs->view);
	local.demand.may_check = false;
	r = local.run(&local);
	ds_demand_release(&local.demand);
	if (r == 0)
		return;
	if (r != -DS_E_NOT_LOCAL) {
		fs_reply_error(&local, r);
		return;
	}
	/* It leaves this thread, and needs a life of its own. */
	request = ds_malloc(sizeof(*request));
	if (!request) {
		fs_reply_error(&local, -ENOMEM);
		return;
	}
	*request = local;
	ds_demand_init(&request->demand, fs->view);
	pthread_mutex_init(&request->mutex, NULL);
	ds_list_init(&request->node);
	request->is_interrupted = false;
	request->deadline_ns = ds_deadline_in_ms(fs->options.timeout_ms);
	request->work.run = run_work;
	request->name = fields->name ? ds_strdup(fields->name) : NULL;
	pthread_mutex_lock(&fs->mutex);
	ds_list_push_back(&fs->locked.requests, &request->node);
	fs->locked.requests_n++;
	pthread_mutex_unlock(&fs->mutex);
	if (fields->name && !request->name)
		finish_with(request, -ENOMEM);
	else
		ds_work_submit(fs->work, &request->work, true);
}

void fs_request_start(fuse_req_t req, const struct fs_request *fields)
{
	struct ds_fs *fs = fuse_req_userdata(req);

	ds_counter_add(&fs->stats.requests_n, 1);
	fs_request_start_uncounted(req, fields);
}

/*
 * A parked request, taken back: it is the caller's to answer. NULL: none is parked at this moment.
 */
static struct fs_request *take_parked_locked(struct ds_fs *fs)
{
	ds_list_for_each (node, &fs->locked.requests) {
		struct fs_request *request = ds_list_entry(node, struct fs_request, node);
		bool won;

		/* Held by who parks it just now, or interrupts it: the next look will tell. */
		if (pthread_mutex_trylock(&request->mutex) != 0)
			continue;
		won = ds_demand_abandon(&request->demand);
		pthread_mutex_unlock(&request->mutex);
		if (won)
			return request;
	}
	return NULL;
}

void fs_request_end_all(struct ds_fs *fs)
{
	struct fs_request *request;
	struct timespec soon;

	pthread_mutex_lock(&fs->mutex);
	fs->locked.is_ending = true;
	/*
	 * What is parked is taken back; what runs sees is_ending before it parks. A request is not
	 * freed while it is in the list and the list's lock is held, and abandoning takes no lock
	 * of ours.
	 */
	while (fs->locked.requests_n) {
		request = take_parked_locked(fs);
		if (request) {
			pthread_mutex_unlock(&fs->mutex);
			fuse_req_interrupt_func(request->req, NULL, NULL);
			finish_with(request, -DS_E_INTERRUPTED);
			pthread_mutex_lock(&fs->mutex);
			continue;
		}
		clock_gettime(CLOCK_MONOTONIC, &soon);
		soon.tv_nsec += 1000000;
		if (soon.tv_nsec >= 1000000000) {
			soon.tv_nsec -= 1000000000;
			soon.tv_sec++;
		}
		pthread_cond_timedwait(&fs->idle, &fs->mutex, &soon);
	}
	pthread_mutex_unlock(&fs->mutex);
}
