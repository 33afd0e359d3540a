/*
 * Warming: its life, and the window of chunks under way. What is wanted is found by view_warm_tree.c.
 *
 * Chunks gather in a batch, are sorted by their places in the store, and are sent in portions of half the window, so that
 * those that lie side by side travel in one GET. The window grows while chunks come soon after they were sent, and
 * shrinks when they take long: what demand asks for shares the line with it.
 *
 * INV-1 A want is in `busy` from before it is given to the fetcher until its callback is over, or it was abandoned.
 * INV-2 Only the thread that runs it sends, abandons, tells of failures, and looks into the manifest.
 */
#include "repo/view_warm_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "util/clock.h"
#include "util/error.h"
#include "util/mem.h"
#include "util/str.h"

#define TIMEOUT_MS     60000u
#define TICK_MS	       100u
#define WINDOW_MIN     DS_MIB(4)
#define WINDOW_START   DS_MIB(8)
#define SOON_MS	       500u
#define LONG_MS	       1500u
#define LOST_BYTES_MAX DS_MIB(64) /* it is no use to go on when so much did not stay */
#define PORTION_N      512u

/* ---- waiting */

static void note_error_locked(struct ds_warm *warm, int error, const struct ds_diag *diag)
{
	if (warm->locked.error)
		return;
	warm->locked.error = error;
	if (diag)
		warm->locked.diag = *diag;
}

/* What is known of why nothing comes: of any of those that are under way. */
static int why_it_stalls(struct ds_warm *warm, struct ds_diag *ret_diag)
{
	for (size_t i = 0; i < WARM_WANTS; i++) {
		int error = ds_fetcher_why(warm->view->fetcher, &warm->wants[i].fetch, ret_diag);

		if (ds_error_is_retryable(error))
			return error;
	}
	ds_diag_clear(ret_diag);
	return -DS_E_TIMEOUT;
}

static void end_stalled(struct ds_warm *warm)
{
	unsigned long long s = warm->options.timeout_ms / 1000;
	struct ds_diag cause = {0}, diag;
	int error = why_it_stalls(warm, &cause);

	diag = cause;
	ds_diag_set(&diag, error, NULL, "nothing has come from the store for %llu s%s%s", s,
		    cause.detail[0] ? ": " : "", cause.detail);
	pthread_mutex_lock(&warm->mutex);
	note_error_locked(warm, error, &diag);
	pthread_mutex_unlock(&warm->mutex);
}

/* Whether nothing comes, for us or for anybody else of this mount. */
static void look_for_stall(struct ds_warm *warm)
{
	uint64_t timeout_ms = warm->options.timeout_ms, now = ds_mono_ns();
	struct ds_fetcher_stats stats;
	bool is_stalled = false;

	ds_fetcher_get_stats(warm->view->fetcher, &stats);
	pthread_mutex_lock(&warm->mutex);
	if (stats.chunks_n != warm->locked.chunks_n || ds_list_is_empty(&warm->locked.busy)) {
		warm->locked.chunks_n = stats.chunks_n;
		warm->locked.moved_ns = now;
	} else {
		is_stalled = now > warm->locked.moved_ns + timeout_ms * DS_NS_PER_MS &&
			     !warm->locked.error;
	}
	pthread_mutex_unlock(&warm->mutex);
	if (is_stalled)
		end_stalled(warm);
}

int warm_check(struct ds_warm *warm)
{
	struct ds_warm_progress progress;
	uint64_t now = ds_mono_ns();
	int r;

	if (now >= warm->ticked_ns + TICK_MS * DS_NS_PER_MS) {
		warm->ticked_ns = now;
		look_for_stall(warm);
		ds_warm_get_progress(warm, &progress);
		if (warm->options.tick && warm->options.tick(warm->options.ctx, &progress))
			warm->is_stopped = true;
	}
	pthread_mutex_lock(&warm->mutex);
	if (warm->is_stopped)
		note_error_locked(warm, -DS_E_INTERRUPTED, NULL);
	r = warm->locked.error;
	pthread_mutex_unlock(&warm->mutex);
	return r;
}

static void rest_locked(struct ds_warm *warm)
{
	uint64_t until_ns = ds_deadline_in_ms(TICK_MS);
	struct timespec until = {.tv_sec = (time_t)(until_ns / DS_NS_PER_S),
				 .tv_nsec = (long)(until_ns % DS_NS_PER_S)};

	pthread_cond_timedwait(&warm->wake, &warm->mutex, &until);
}

/* ---- the manifest */

static void on_answer(struct ds_demand *demand, int result, void *ctx)
{
	struct ds_warm *warm = ctx;

	(void)demand;
	pthread_mutex_lock(&warm->mutex);
	warm->locked.is_answered = true;
	warm->locked.answer = result;
	pthread_cond_signal(&warm->wake);
	pthread_mutex_unlock(&warm->mutex);
}

static int wait_demand(struct ds_warm *warm)
{
	bool is_abandoned = false, is_answered;
	int r;

	warm->locked.is_answered = false;
	r = ds_demand_wait(&warm->demand, ds_deadline_in_ms(warm->options.timeout_ms), on_answer,
			   warm);
	if (r < 0)
		return r;
	for (;;) {
		pthread_mutex_lock(&warm->mutex);
		if (!warm->locked.is_answered && !is_abandoned)
			rest_locked(warm);
		else if (!warm->locked.is_answered)
			pthread_cond_wait(&warm->wake, &warm->mutex);
		is_answered = warm->locked.is_answered;
		r = warm->locked.answer;
		pthread_mutex_unlock(&warm->mutex);
		if (is_answered)
			return r;
		if (is_abandoned || warm_check(warm) == 0)
			continue;
		if (ds_demand_abandon(&warm->demand))
			return warm_check(warm);
		/* The answer is on its way. */
		is_abandoned = true;
	}
}

int warm_call(struct ds_warm *warm, warm_call_fn *call, void *ctx)
{
	int r;

	ds_demand_init(&warm->demand, warm->view);
	while ((r = call(warm, ctx)) == -DS_E_NOT_LOCAL) {
		r = wait_demand(warm);
		if (r < 0)
			break;
	}
	if (r < 0)
		*warm->diag = warm->demand.diag;
	ds_demand_release(&warm->demand);
	return r;
}

/* ---- what is over */

static void count_failed_locked(struct ds_warm *warm, uint64_t ino, int code,
				const struct ds_diag *diag)
{
	struct warm_failure *failure = ds_calloc(1, sizeof(*failure));

	warm->locked.progress.failed_n++;
	if (!warm->locked.damage)
		warm->locked.damage = code;
	/* Without memory it is counted and not told. */
	if (!failure)
		return;
	failure->ino = ino;
	if (diag)
		failure->diag = *diag;
	failure->diag.code = code;
	ds_list_push_back(&warm->locked.failures, &failure->node);
}

void warm_file_failed(struct ds_warm *warm, uint64_t ino, int code)
{
	pthread_mutex_lock(&warm->mutex);
	count_failed_locked(warm, ino, code, warm->diag);
	pthread_mutex_unlock(&warm->mutex);
	ds_diag_clear(warm->diag);
}

void warm_file_over_locked(struct ds_warm *warm, struct warm_file *file)
{
	if (--file->left_n > 0)
		return;
	warm->locked.progress.files_n++;
	ds_image_unref(file->image);
	ds_free(file);
}

static void chunk_over_locked(struct ds_warm *warm, const struct warm_chunk *chunk)
{
	if (chunk->file)
		warm_file_over_locked(warm, chunk->file);
	else
		warm->locked.progress.files_n += chunk->ino != 0;
}

/* Of the data, not of the way to it: the other files may be whole. */
static bool is_damage(int error)
{
	return error == -DS_E_CORRUPT || error == -DS_E_MALFORMED || error == -DS_E_ABSENT ||
	       error == -DS_E_MISMATCH || error == -DS_E_LIMIT || error == -DS_E_IMPORTED;
}

static void chunk_failed_locked(struct ds_warm *warm, const struct warm_chunk *chunk, int error,
				const struct ds_diag *diag)
{
	bool is_known = chunk->file && chunk->file->has_failed;

	if (!is_damage(error) || !chunk->ino) {
		note_error_locked(warm, error, diag);
		return;
	}
	if (!is_known)
		count_failed_locked(warm, chunk->ino, error, diag);
	if (chunk->file)
		chunk->file->has_failed = true;
}

static uint64_t cost_of(const struct warm_chunk *chunk)
{
	return (uint64_t)chunk->target.ref.stored_len_bytes + chunk->target.ref.raw_len_bytes;
}

/* Like TCP's: twice as much for each that came soon, half for what took long. */
static void steer_locked(struct ds_warm *warm, const struct warm_want *want)
{
	uint64_t max = DS_MAX(warm->view->streams.budget_bytes / 2, WINDOW_MIN);
	uint64_t took_ms = (ds_mono_ns() - want->sent_ns) / DS_NS_PER_MS;
	uint64_t cost = cost_of(&want->chunk);

	if (took_ms < SOON_MS)
		warm->locked.window_bytes += cost;
	else if (took_ms > LONG_MS)
		warm->locked.window_bytes -= DS_MIN(cost / 2, warm->locked.window_bytes);
	warm->locked.window_bytes = DS_MIN(DS_MAX(warm->locked.window_bytes, WINDOW_MIN), max);
}

static void want_over_locked(struct ds_warm *warm, struct warm_want *want)
{
	warm->locked.busy_bytes -= cost_of(&want->chunk);
	chunk_over_locked(warm, &want->chunk);
	ds_list_remove(&want->node);
	ds_list_push_back(&warm->locked.free, &want->node);
	pthread_cond_signal(&warm->wake);
}

static void on_fetched(struct ds_fetch_waiter *fetch, int result, struct ds_chunk_bytes *bytes,
		       const struct ds_diag *diag)
{
	struct warm_want *want = ds_container_of(fetch, struct warm_want, fetch);
	bool has_stayed = result == 0 && view_chunk_is_local(&want->chunk.target);
	uint32_t len = want->chunk.target.ref.raw_len_bytes;
	struct ds_warm *warm = want->warm;

	(void)bytes;
	pthread_mutex_lock(&warm->mutex);
	warm->locked.moved_ns = ds_mono_ns();
	steer_locked(warm, want);
	if (result < 0)
		chunk_failed_locked(warm, &want->chunk, result, diag);
	else if (!has_stayed)
		warm->locked.lost_bytes += len;
	else if (want->chunk.ino && fetch->has_come)
		warm->locked.progress.fetched_bytes += len;
	else if (want->chunk.ino)
		/* Checked only, or another process was quicker. */
		warm->locked.progress.here_bytes += len;
	want_over_locked(warm, want);
	pthread_mutex_unlock(&warm->mutex);
}

static struct warm_failure *take_failure(struct ds_warm *warm)
{
	struct warm_failure *failure = NULL;

	pthread_mutex_lock(&warm->mutex);
	if (!ds_list_is_empty(&warm->locked.failures)) {
		failure = ds_list_entry(warm->locked.failures.next, struct warm_failure, node);
		ds_list_remove(&failure->node);
	}
	pthread_mutex_unlock(&warm->mutex);
	return failure;
}

static void tell_failures(struct ds_warm *warm)
{
	struct warm_failure *failure;

	while ((failure = take_failure(warm))) {
		_ds_cleanup_free_ char *path = warm_path(warm, failure->ino);

		if (warm->options.failed && path)
			warm->options.failed(warm->options.ctx, path, &failure->diag);
		ds_free(failure);
	}
}

/* ---- sending */

/* How many chunks from the batch's `from` on fit into the window; 0: wait. */
static size_t portion(struct ds_warm *warm, size_t from)
{
	uint64_t room = 0, len = 0;
	size_t n = 0, free_n = 0;

	pthread_mutex_lock(&warm->mutex);
	/* Half of it at once, so that they travel together. */
	if (warm->locked.busy_bytes <= warm->locked.window_bytes / 2)
		room = warm->locked.window_bytes - warm->locked.busy_bytes;
	ds_list_for_each (node, &warm->locked.free)
		if (++free_n == PORTION_N)
			break;
	while (n < free_n && from + n < warm->batch_n &&
	       (len += cost_of(&warm->batch[from + n])) <= room)
		n++;
	/* One goes always, however large. */
	if (n == 0 && room > 0 && free_n > 0)
		n = 1;
	pthread_mutex_unlock(&warm->mutex);
	return n;
}

static int send(struct ds_warm *warm, size_t from, size_t n)
{
	struct ds_fetch_target targets[PORTION_N];
	struct ds_fetch_waiter *waiters[PORTION_N];
	struct warm_want *want;
	size_t taken_n;
	int r;

	pthread_mutex_lock(&warm->mutex);
	for (size_t i = 0; i < n; i++) {
		want = ds_list_entry(warm->locked.free.next, struct warm_want, node);
		ds_list_remove(&want->node);
		ds_list_push_back(&warm->locked.busy, &want->node);
		want->chunk = warm->batch[from + i];
		want->sent_ns = ds_mono_ns();
		warm->locked.busy_bytes += cost_of(&want->chunk);
		targets[i] = want->chunk.target;
		waiters[i] = &want->fetch;
	}
	pthread_mutex_unlock(&warm->mutex);
	r = ds_fetcher_want_ahead(warm->view->fetcher, targets, waiters, n, &taken_n);
	pthread_mutex_lock(&warm->mutex);
	for (size_t i = taken_n; i < n; i++)
		want_over_locked(warm, ds_container_of(waiters[i], struct warm_want, fetch));
	pthread_mutex_unlock(&warm->mutex);
	return r;
}

/* Takes back what is under way, and waits for what cannot be taken back. */
static void abandon_all(struct ds_warm *warm)
{
	for (size_t i = 0; i < WARM_WANTS; i++) {
		struct warm_want *want = &warm->wants[i];

		if (!ds_fetcher_abandon(warm->view->fetcher, &want->fetch))
			continue;
		pthread_mutex_lock(&warm->mutex);
		want_over_locked(warm, want);
		pthread_mutex_unlock(&warm->mutex);
	}
	pthread_mutex_lock(&warm->mutex);
	while (!ds_list_is_empty(&warm->locked.busy))
		pthread_cond_wait(&warm->wake, &warm->mutex);
	pthread_mutex_unlock(&warm->mutex);
}

static int compare_places(const void *a, const void *b)
{
	const struct ds_chunk_ref *x = &((const struct warm_chunk *)a)->target.ref;
	const struct ds_chunk_ref *y = &((const struct warm_chunk *)b)->target.ref;
	int r = memcmp(x->pack.bytes, y->pack.bytes, DS_DIGEST_LEN);

	if (r != 0)
		return r;
	return x->stored_off < y->stored_off ? -1 : x->stored_off > y->stored_off;
}

/* Waits until there is room for more, or with `all` until nothing is under way. */
static int wait_window(struct ds_warm *warm, bool all)
{
	bool is_done;
	int r;

	for (;;) {
		r = warm_check(warm);
		if (r < 0)
			return r;
		tell_failures(warm);
		pthread_mutex_lock(&warm->mutex);
		is_done = ds_list_is_empty(&warm->locked.busy) ||
			  (!all && !ds_list_is_empty(&warm->locked.free) &&
			   warm->locked.busy_bytes <= warm->locked.window_bytes / 2);
		if (!is_done && !warm->locked.error)
			rest_locked(warm);
		if (warm->locked.lost_bytes > LOST_BYTES_MAX)
			note_error_locked(warm, -ENOSPC, NULL);
		pthread_mutex_unlock(&warm->mutex);
		if (is_done)
			return warm_check(warm);
	}
}

int warm_flush(struct ds_warm *warm)
{
	size_t sent_n = 0, n;
	int r = 0;

	qsort(warm->batch, warm->batch_n, sizeof(warm->batch[0]), compare_places);
	while (r == 0 && sent_n < warm->batch_n) {
		r = wait_window(warm, false);
		n = r == 0 ? portion(warm, sent_n) : 0;
		if (n == 0)
			continue;
		r = send(warm, sent_n, n);
		sent_n += n;
	}
	if (r == 0)
		r = wait_window(warm, true);
	if (r < 0)
		abandon_all(warm);
	/* What was never sent holds its files. */
	pthread_mutex_lock(&warm->mutex);
	for (; sent_n < warm->batch_n; sent_n++)
		chunk_over_locked(warm, &warm->batch[sent_n]);
	pthread_mutex_unlock(&warm->mutex);
	warm->batch_n = 0;
	warm->batch_files_n = 0;
	tell_failures(warm);
	return r;
}

int warm_add(struct ds_warm *warm, const struct warm_chunk *chunk)
{
	if (view_chunk_is_local(&chunk->target)) {
		pthread_mutex_lock(&warm->mutex);
		if (chunk->ino)
			warm->locked.progress.here_bytes += chunk->target.ref.raw_len_bytes;
		chunk_over_locked(warm, chunk);
		pthread_mutex_unlock(&warm->mutex);
		return 0;
	}
	warm->batch[warm->batch_n++] = *chunk;
	return warm->batch_n == WARM_BATCH ? warm_flush(warm) : 0;
}

/* ---- life */

int ds_warm_new(struct ds_view *view, const struct ds_warm_options *options,
		struct ds_warm **ret_warm)
{
	struct ds_warm *warm = ds_calloc(1, sizeof(*warm));
	pthread_condattr_t attr;

	if (!warm)
		return -ENOMEM;
	warm->view = view;
	warm->options = *options;
	if (!warm->options.timeout_ms)
		warm->options.timeout_ms = TIMEOUT_MS;
	pthread_mutex_init(&warm->mutex, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&warm->wake, &attr);
	pthread_condattr_destroy(&attr);
	ds_list_init(&warm->locked.free);
	ds_list_init(&warm->locked.busy);
	ds_list_init(&warm->locked.failures);
	warm->locked.window_bytes = WINDOW_START;
	*ret_warm = warm;
	return 0;
}

struct ds_warm *ds_warm_free(struct ds_warm *warm)
{
	if (!warm)
		return NULL;
	pthread_cond_destroy(&warm->wake);
	pthread_mutex_destroy(&warm->mutex);
	ds_free(warm);
	return NULL;
}

void ds_warm_stop(struct ds_warm *warm)
{
	warm->is_stopped = true;
	pthread_mutex_lock(&warm->mutex);
	pthread_cond_signal(&warm->wake);
	pthread_mutex_unlock(&warm->mutex);
}

void ds_warm_get_progress(struct ds_warm *warm, struct ds_warm_progress *ret_progress)
{
	pthread_mutex_lock(&warm->mutex);
	*ret_progress = warm->locked.progress;
	pthread_mutex_unlock(&warm->mutex);
}

/* The memory is there while it runs only. */
static int get_memory(struct ds_warm *warm)
{
	warm->batch = ds_calloc(WARM_BATCH, sizeof(warm->batch[0]));
	warm->wants = ds_calloc(WARM_WANTS, sizeof(warm->wants[0]));
	if (!warm->batch || !warm->wants)
		return -ENOMEM;
	for (size_t i = 0; i < WARM_WANTS; i++) {
		struct warm_want *want = &warm->wants[i];

		want->warm = warm;
		want->fetch.done = on_fetched;
		ds_list_init(&want->fetch.node);
		ds_list_init(&want->fetch.deadline_node);
		ds_list_push_back(&warm->locked.free, &want->node);
	}
	return warm_tally_init(&warm->tally);
}

static void release_memory(struct ds_warm *warm)
{
	struct warm_failure *failure;

	while ((failure = take_failure(warm)))
		ds_free(failure);
	warm_tally_release(&warm->tally);
	ds_list_init(&warm->locked.free);
	ds_free(warm->stack);
	ds_free(warm->batch);
	ds_free(warm->wants);
}

static int check_room(struct ds_warm *warm)
{
	uint64_t room = ds_cache_room_bytes(warm->view->cache);
	char needed_text[32], room_text[32];

	if (warm->needed_bytes <= room)
		return 0;
	return ds_diag_set(warm->diag, -ENOSPC, ds_cache_dir(warm->view->cache),
			   "%s are wanted, and the cache can hold %s: give a larger cache_size=, "
			   "another cache_dir=, or fewer paths",
			   ds_format_size(warm->needed_bytes, needed_text, sizeof(needed_text)),
			   ds_format_size(room, room_text, sizeof(room_text)));
}

static int has_not_stayed(struct ds_warm *warm, uint64_t lost_bytes)
{
	struct ds_cache_stats stats;
	char lost_text[32];

	ds_cache_get_stats(warm->view->cache, &stats);
	/* Trouble of before is nothing to tell now. */
	if (stats.unstored_n > warm->unstored_n && stats.trouble != -ENOSPC)
		return ds_diag_set(warm->diag, stats.trouble, ds_cache_dir(warm->view->cache),
				   "%s could not be stored in the cache: give another cache_dir=",
				   ds_format_size(lost_bytes, lost_text, sizeof(lost_text)));
	return ds_diag_set(
		warm->diag, -ENOSPC, ds_cache_dir(warm->view->cache),
		"%s did not stay in the cache: its disk is full, or others use it; give a "
		"larger cache_size=, or another cache_dir=",
		ds_format_size(lost_bytes, lost_text, sizeof(lost_text)));
}

static int run(struct ds_warm *warm)
{
	struct ds_warm_progress progress;
	int r = get_memory(warm);

	/* What names all files has to come before they can be counted: if no more than that is too much, not even that. */
	if (r == 0 && warm->options.paths_n == 0) {
		warm_tally_manifest(warm);
		r = check_room(warm);
		if (r == 0)
			r = warm_manifest(warm);
	}
	if (r == 0)
		r = warm_tree(warm, WARM_TALLY);
	if (r == 0)
		r = check_room(warm);
	if (r < 0)
		return r;
	ds_warm_get_progress(warm, &progress);
	if (warm->options.begins)
		warm->options.begins(warm->options.ctx, &progress);
	r = warm_tree(warm, WARM_FETCH);
	tell_failures(warm);
	return r;
}

int ds_warm_run(struct ds_warm *warm, struct ds_diag *reterr_diag)
{
	struct ds_warm_progress progress;
	struct ds_diag ignored = {0};
	struct ds_cache_stats stats;
	int r;

	warm->diag = reterr_diag ? reterr_diag : &ignored;
	warm->locked.moved_ns = ds_mono_ns();
	ds_cache_get_stats(warm->view->cache, &stats);
	warm->unstored_n = stats.unstored_n;
	r = run(warm);
	if ((r == 0 || r == -ENOSPC) && warm->locked.lost_bytes)
		r = has_not_stayed(warm, warm->locked.lost_bytes);
	else if (r < 0 && r == warm->locked.error)
		*warm->diag = warm->locked.diag;
	pthread_mutex_lock(&warm->mutex);
	warm->locked.progress.is_over = true;
	warm->locked.progress.is_incomplete = r < 0 || warm->locked.progress.failed_n;
	progress = warm->locked.progress;
	pthread_mutex_unlock(&warm->mutex);
	if (r == 0 && progress.failed_n) {
		ds_diag_clear(warm->diag);
		r = ds_diag_set(warm->diag, warm->locked.damage, NULL,
				"%llu of %llu files could not be had",
				(unsigned long long)progress.failed_n,
				(unsigned long long)progress.files_total_n);
	}
	release_memory(warm);
	return r;
}
