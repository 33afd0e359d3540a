#include "repo/commit_upload.h"

#include <errno.h>
#include <stdio.h>

#include "codec/pack.h"
#include "util/error.h"
#include "util/mem.h"

#define FLIGHTS_MAX    8u
#define ADVISORIES_MAX 2u
#define KEY_MAX	       160

struct upload {
	struct ds_store_req req;
	struct commit_uploads *uploads;
	char key[KEY_MAX];
	struct ds_buf body;
	uint64_t len_bytes;
	bool is_busy, is_advisory;
};

struct commit_uploads {
	struct ds_store *store;
	const struct commit_watch *watch;
	unsigned flights_max;
	pthread_mutex_t mutex;
	pthread_cond_t changed;
	struct {
		unsigned flights_n, advisories_n;
		uint64_t bytes;
		int result;
		struct ds_diag diag;
		struct ds_buf spares[FLIGHTS_MAX]; /* memory of what has arrived */
		unsigned spares_n;
	} locked;
	struct upload uploads[FLIGHTS_MAX + ADVISORIES_MAX];
};

int commit_uploads_new(struct ds_store *store, uint64_t memory_bytes,
		       const struct commit_watch *watch, struct commit_uploads **ret_uploads)
{
	struct commit_uploads *uploads = ds_calloc(1, sizeof(*uploads));
	uint64_t fit_n = memory_bytes / (DS_PACK_TARGET + DS_CHUNK_MAX);

	if (!uploads)
		return -ENOMEM;
	uploads->store = ds_store_ref(store);
	uploads->watch = watch;
	uploads->flights_max = (unsigned)DS_MAX(DS_MIN(fit_n, (uint64_t)FLIGHTS_MAX), UINT64_C(1));
	pthread_mutex_init(&uploads->mutex, NULL);
	commit_cond_init(&uploads->changed);
	*ret_uploads = uploads;
	return 0;
}

/* On a thread of the store. */
static void on_put(struct ds_store_req *req)
{
	struct upload *upload = req->ctx;
	struct commit_uploads *uploads = upload->uploads;
	/* Nobody else makes an object of this name: what is there is our own, sent twice. */
	bool is_there = req->result == 0 || req->result == -DS_E_PRESENT;

	pthread_mutex_lock(&uploads->mutex);
	/* Pages that are there already cost as much as hashing what is written to them. */
	if (uploads->locked.spares_n < uploads->flights_max &&
	    upload->body.capacity_bytes >= DS_PACK_TARGET)
		uploads->locked.spares[uploads->locked.spares_n++] = upload->body;
	else
		ds_buf_release(&upload->body);
	upload->body = (struct ds_buf){0};
	if (is_there && !upload->is_advisory)
		uploads->locked.bytes += upload->len_bytes;
	if (!is_there && !upload->is_advisory && uploads->locked.result == 0) {
		uploads->locked.result = req->result;
		uploads->locked.diag = req->diag;
		if (!req->diag.object[0])
			ds_diag_set(&uploads->locked.diag, req->result, upload->key, NULL);
	}
	upload->is_busy = false;
	if (upload->is_advisory)
		uploads->locked.advisories_n--;
	else
		uploads->locked.flights_n--;
	pthread_cond_broadcast(&uploads->changed);
	pthread_mutex_unlock(&uploads->mutex);
}

static void release_spares(struct commit_uploads *uploads)
{
	pthread_mutex_lock(&uploads->mutex);
	while (uploads->locked.spares_n)
		ds_buf_release(&uploads->locked.spares[--uploads->locked.spares_n]);
	pthread_mutex_unlock(&uploads->mutex);
}

void commit_uploads_spare(struct commit_uploads *uploads, struct ds_buf *ret_memory)
{
	*ret_memory = (struct ds_buf){0};
	pthread_mutex_lock(&uploads->mutex);
	if (uploads->locked.spares_n)
		*ret_memory = uploads->locked.spares[--uploads->locked.spares_n];
	pthread_mutex_unlock(&uploads->mutex);
}

/* Until at most so many are on their way. */
static int wait_for(struct commit_uploads *uploads, unsigned flights_n, unsigned advisories_n)
{
	int r;

	pthread_mutex_lock(&uploads->mutex);
	while ((uploads->locked.flights_n > flights_n ||
		uploads->locked.advisories_n > advisories_n) &&
	       !commit_is_interrupted(uploads->watch)) {
		commit_cond_wait(&uploads->changed, &uploads->mutex);
		pthread_mutex_unlock(&uploads->mutex);
		commit_tick(uploads->watch);
		pthread_mutex_lock(&uploads->mutex);
	}
	if (uploads->locked.result == 0 && commit_is_interrupted(uploads->watch))
		uploads->locked.result = -DS_E_INTERRUPTED;
	r = uploads->locked.result;
	pthread_mutex_unlock(&uploads->mutex);
	return r;
}

struct commit_uploads *commit_uploads_free(struct commit_uploads *uploads)
{
	if (!uploads)
		return NULL;
	/* Advisory ones may still be on their way; of what failed or was interrupted nothing is wanted any more. */
	if (commit_uploads_result(uploads, NULL) == 0)
		wait_for(uploads, 0, 0);
	commit_uploads_stop(uploads, 0);
	release_spares(uploads);
	pthread_cond_destroy(&uploads->changed);
	pthread_mutex_destroy(&uploads->mutex);
	ds_store_unref(uploads->store);
	ds_free(uploads);
	return NULL;
}

static void launch(struct commit_uploads *uploads, const char *key, struct ds_buf *take_body,
		   bool is_advisory)
{
	struct upload *upload = uploads->uploads;

	/* One is free: this thread alone makes them busy, and has waited for room. */
	pthread_mutex_lock(&uploads->mutex);
	while (upload->is_busy)
		upload++;
	upload->is_busy = true;
	if (is_advisory)
		uploads->locked.advisories_n++;
	else
		uploads->locked.flights_n++;
	pthread_mutex_unlock(&uploads->mutex);
	upload->uploads = uploads;
	upload->is_advisory = is_advisory;
	upload->body = *take_body;
	upload->len_bytes = take_body->len_bytes;
	*take_body = (struct ds_buf){0};
	snprintf(upload->key, sizeof(upload->key), "%s", key);
	upload->req = (struct ds_store_req){
		.op = DS_STORE_PUT,
		.key = upload->key,
		.body = upload->body.data,
		.body_len_bytes = upload->body.len_bytes,
		.if_absent = true,
		/* A slow line is not a dead one: 32 MiB at 1 Mbit/s take 4.5 minutes. */
		.by_headway = true,
		.is_urgent = is_advisory,
		.done = on_put,
		.ctx = upload,
	};
	ds_store_submit(uploads->store, &upload->req);
}

int commit_uploads_put(struct commit_uploads *uploads, const char *key, struct ds_buf *take_body,
		       bool is_advisory)
{
	int r = is_advisory ? wait_for(uploads, FLIGHTS_MAX, ADVISORIES_MAX - 1)
			    : wait_for(uploads, uploads->flights_max - 1, ADVISORIES_MAX);

	if (r == 0)
		launch(uploads, key, take_body, is_advisory);
	ds_buf_release(take_body);
	return r;
}

int commit_uploads_wait(struct commit_uploads *uploads)
{
	int r = wait_for(uploads, 0, 0);

	release_spares(uploads);
	return r;
}

int commit_uploads_result(struct commit_uploads *uploads, struct ds_diag *reterr_diag)
{
	int r;

	pthread_mutex_lock(&uploads->mutex);
	if (uploads->locked.result == 0 && commit_is_interrupted(uploads->watch))
		uploads->locked.result = -DS_E_INTERRUPTED;
	r = uploads->locked.result;
	if (r < 0 && uploads->locked.diag.code && reterr_diag)
		*reterr_diag = uploads->locked.diag;
	pthread_mutex_unlock(&uploads->mutex);
	return r;
}

static bool is_flying(const struct commit_uploads *uploads)
{
	return uploads->locked.flights_n || uploads->locked.advisories_n;
}

void commit_uploads_stop(struct commit_uploads *uploads, uint64_t patience_ms)
{
	uint64_t until_ns = ds_deadline_in_ms(patience_ms);

	pthread_mutex_lock(&uploads->mutex);
	while (is_flying(uploads) && ds_mono_ns() < until_ns)
		commit_cond_wait(&uploads->changed, &uploads->mutex);
	/* Under the lock that on_put takes: what is busy is not over. */
	for (size_t i = 0; i < DS_ARRAY_SIZE(uploads->uploads); i++)
		if (uploads->uploads[i].is_busy)
			ds_store_cancel(uploads->store, &uploads->uploads[i].req);
	while (is_flying(uploads))
		commit_cond_wait(&uploads->changed, &uploads->mutex);
	pthread_mutex_unlock(&uploads->mutex);
}

uint64_t commit_uploads_bytes(struct commit_uploads *uploads)
{
	uint64_t bytes;

	pthread_mutex_lock(&uploads->mutex);
	bytes = uploads->locked.bytes;
	pthread_mutex_unlock(&uploads->mutex);
	return bytes;
}
