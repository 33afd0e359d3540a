/*
 * The steps of one flight, on worker threads: looking whether the chunk is at hand, decoding what came, filling
 * the image, telling who waits. States and owners: fetch_internal.h.
 */
#include <assert.h>

#include "cache/fetch_internal.h"

#define SPARES_IDLE 4u /* buffers that are kept when nothing is fetched */

bool ds_flight_is_unwanted_locked(const struct ds_flight *flight)
{
	return ds_list_is_empty(&flight->waiters) &&
	       (!flight->is_prefetch || flight->fetcher->locked.is_ending);
}

void ds_flight_remove_from_map_locked(struct ds_flight *flight)
{
	if (flight->is_in_map)
		ds_map_remove(flight->fetcher->locked.flights, &flight->key, sizeof(flight->key));
	flight->is_in_map = false;
}

void ds_flight_detach_waiter_locked(struct ds_fetcher *fetcher, struct ds_fetch_waiter *waiter)
{
	ds_list_remove(&waiter->node);
	ds_list_remove(&waiter->deadline_node);
	waiter->flight = NULL;
	fetcher->locked.stats.waiting_n--;
}

static bool is_batch_unwanted_locked(const struct ds_fetch_batch *batch)
{
	ds_list_for_each (node, &batch->flights)
		if (!ds_flight_is_unwanted_locked(ds_list_entry(node, struct ds_flight, node)))
			return false;
	return true;
}

void ds_flight_let_go_locked(struct ds_flight *flight)
{
	if (!ds_flight_is_unwanted_locked(flight))
		return;
	switch (flight->state) {
	case DS_FLIGHT_QUEUED:
		ds_flight_dequeue_locked(flight);
		break;
	case DS_FLIGHT_WAITING:
		ds_list_remove(&flight->node);
		break;
	case DS_FLIGHT_FETCHING:
		if (is_batch_unwanted_locked(flight->batch))
			ds_fetch_cancel_locked(&flight->batch->call);
		return;
	default:
		return; /* its owner looks at its next step */
	}
	ds_flight_remove_from_map_locked(flight);
	flight->state = DS_FLIGHT_DROPPED;
	flight->work.run = ds_flight_run_drop;
	ds_work_submit(flight->fetcher->workers, &flight->work, true);
}

void ds_flight_run_drop(struct ds_work_item *item)
{
	ds_flight_finish(ds_container_of(item, struct ds_flight, work), -DS_E_INTERRUPTED, NULL);
}

void ds_flight_note_error(struct ds_flight *flight, int error, const struct ds_diag *diag)
{
	struct ds_diag *noted = ds_calloc(1, sizeof(*noted)), *old;

	if (noted && diag)
		*noted = *diag;
	if (noted)
		noted->code = error;
	pthread_mutex_lock(&flight->fetcher->mutex);
	old = flight->diag;
	flight->diag = noted;
	flight->last_error = error;
	pthread_mutex_unlock(&flight->fetcher->mutex);
	ds_free(old);
}

void ds_flight_finish(struct ds_flight *flight, int result, struct ds_chunk_bytes *bytes)
{
	struct ds_fetcher *fetcher = flight->fetcher;
	struct ds_list waiters;

	assert(result == 0 || !bytes);
	ds_list_init(&waiters);
	/* The lock first: who is told may want it again at once. */
	ds_image_unlock_slot(&flight->lock);
	pthread_mutex_lock(&fetcher->mutex);
	ds_flight_remove_from_map_locked(flight);
	ds_list_for_each_safe (node, tmp, &flight->waiters) {
		struct ds_fetch_waiter *waiter = ds_list_entry(node, struct ds_fetch_waiter, node);

		ds_flight_detach_waiter_locked(fetcher, waiter);
		ds_list_push_back(&waiters, &waiter->node);
	}
	ds_flight_uncount_ahead_locked(flight);
	fetcher->locked.inflight_bytes -= flight->cost_bytes;
	ds_fetch_kick_locked(fetcher);
	pthread_mutex_unlock(&fetcher->mutex);

	while (!ds_list_is_empty(&waiters)) {
		struct ds_fetch_waiter *waiter =
			ds_list_entry(waiters.next, struct ds_fetch_waiter, node);

		ds_list_remove(&waiter->node);
		waiter->has_come = flight->has_come;
		waiter->is_stored = flight->is_stored;
		/* It may be gone when this returns. */
		waiter->done(waiter, result, bytes, result < 0 ? flight->diag : NULL);
	}
	if (flight->batch)
		ds_fetch_batch_unref(flight->batch);
	ds_image_unref(flight->image);
	ds_free(flight->diag);
	ds_free(flight);
	pthread_mutex_lock(&fetcher->mutex);
	if (fetcher->locked.flights_n == 1) {
		pthread_mutex_unlock(&fetcher->mutex);
		ds_fetch_pool_trim(fetcher->pool, SPARES_IDLE);
		pthread_mutex_lock(&fetcher->mutex);
	}
	if (--fetcher->locked.flights_n == 0)
		pthread_cond_broadcast(&fetcher->idle);
	pthread_mutex_unlock(&fetcher->mutex);
}

static void fail(struct ds_flight *flight, int error, const struct ds_diag *diag)
{
	ds_flight_note_error(flight, error, diag);
	ds_flight_finish(flight, error, NULL);
}

/* If nobody waits for it, nobody can join it afterwards. */
static bool leave_quietly(struct ds_flight *flight)
{
	bool is_quiet;

	pthread_mutex_lock(&flight->fetcher->mutex);
	is_quiet = ds_list_is_empty(&flight->waiters);
	if (is_quiet)
		ds_flight_remove_from_map_locked(flight);
	pthread_mutex_unlock(&flight->fetcher->mutex);
	return is_quiet;
}

bool ds_flight_serve_local(struct ds_flight *flight)
{
	enum ds_image_state state = ds_image_look(flight->image, &flight->slot);
	struct ds_chunk_bytes *bytes;

	if (state == DS_IMAGE_NOTHING)
		return false;
	/* Nobody wants to see the bytes of what was fetched ahead. */
	if (state == DS_IMAGE_READY && leave_quietly(flight)) {
		ds_flight_finish(flight, 0, NULL);
		return true;
	}
	if (ds_chunk_bytes_new(flight->slot.raw_len_bytes, &bytes) < 0)
		return false;
	if (ds_image_read(flight->image, &flight->slot, 0, flight->slot.raw_len_bytes, true,
			  bytes->data) < 0) {
		ds_chunk_bytes_unref(bytes);
		return false;
	}
	flight->is_stored = state == DS_IMAGE_READY;
	ds_flight_finish(flight, 0, bytes);
	ds_chunk_bytes_unref(bytes);
	return true;
}

static bool serve_stashed(struct ds_flight *flight)
{
	struct ds_fetcher *fetcher = flight->fetcher;
	struct ds_chunk_bytes *bytes;
	bool is_kept;

	pthread_mutex_lock(&fetcher->mutex);
	bytes = ds_map_get(fetcher->locked.stash, flight->slot.digest.bytes, DS_DIGEST_LEN);
	is_kept = !bytes;
	if (bytes)
		ds_chunk_bytes_ref(bytes);
	else
		bytes = ds_fetch_kept_locked(fetcher, &flight->slot.digest);
	pthread_mutex_unlock(&fetcher->mutex);
	if (!bytes)
		return false;
	if (bytes->len_bytes != flight->slot.raw_len_bytes) {
		ds_chunk_bytes_unref(bytes);
		return false;
	}
	/* What is kept was not taken just before. */
	if (!is_kept)
		flight->is_stored = ds_image_fill(flight->image, &flight->slot, bytes->data) == 0;
	ds_flight_finish(flight, 0, bytes);
	ds_chunk_bytes_unref(bytes);
	return true;
}

bool ds_flight_makes_sense(const struct ds_chunk_ref *ref)
{
	return ref->raw_len_bytes > 0 && ref->raw_len_bytes <= DS_CHUNK_MAX &&
	       ref->stored_len_bytes > 0 && ref->stored_len_bytes <= ref->raw_len_bytes &&
	       ref->stored_off >= DS_PACK_HEAD_LEN && ref->stored_off <= DS_PACK_MAX &&
	       ref->stored_off + ref->stored_len_bytes <= DS_PACK_MAX;
}

static void look(struct ds_flight *flight)
{
	char key[DS_PACK_KEY_MAX];
	struct ds_diag diag = {0};

	if (!ds_flight_makes_sense(&flight->at)) {
		ds_diag_set(&diag, -DS_E_MALFORMED, ds_pack_key(&flight->at.pack, key),
			    "chunk %u is said to lie where none can lie", flight->at.ordinal);
		fail(flight, -DS_E_MALFORMED, &diag);
		return;
	}
	flight->is_looked_for = true;
	if (!ds_flight_serve_local(flight) && !serve_stashed(flight))
		ds_flight_enqueue(flight);
}

void ds_flight_run_look(struct ds_work_item *item)
{
	look(ds_container_of(item, struct ds_flight, work));
}

void ds_flight_corrupt(struct ds_flight *flight, int error, const struct ds_diag *diag)
{
	struct ds_fetcher *fetcher = flight->fetcher;
	char key[DS_PACK_KEY_MAX];
	struct ds_diag own = {0};

	pthread_mutex_lock(&fetcher->mutex);
	fetcher->locked.stats.corrupt_n++;
	pthread_mutex_unlock(&fetcher->mutex);
	if (diag)
		own = *diag;
	ds_diag_set(&own, -DS_E_CORRUPT, ds_pack_key(&flight->at.pack, key),
		    "chunk %u at %llu (%s)", flight->at.ordinal,
		    (unsigned long long)flight->at.stored_off, ds_strerror(error));
	ds_flight_note_error(flight, -DS_E_CORRUPT, &own);
	if (flight->corrupt_n++ > 0) {
		ds_flight_finish(flight, -DS_E_CORRUPT, NULL);
		return;
	}
	/* Once more, by itself: perhaps it was spoilt on its way. */
	flight->travels_alone = true;
	ds_flight_enqueue(flight);
}

/* What is stored raw is checked, and stays, where it was received. */
static int decode(const struct ds_flight *flight, struct ds_fetch_batch *batch,
		  struct ds_chunk_bytes **ret_bytes)
{
	size_t off = flight->at.stored_off - batch->off;
	const uint8_t *stored = batch->stored->buf.data + off;
	int r;

	if (flight->at.stored_len_bytes == flight->at.raw_len_bytes) {
		r = ds_chunk_check(stored, flight->at.raw_len_bytes, &flight->at.digest);
		return r < 0 ? r
			     : ds_chunk_bytes_new_in(batch->stored, off, flight->at.raw_len_bytes,
						     ret_bytes);
	}
	r = ds_chunk_bytes_new(flight->at.raw_len_bytes, ret_bytes);
	return r < 0 ? r
		     : ds_chunk_decode(stored, flight->at.stored_len_bytes,
				       flight->at.raw_len_bytes, &flight->at.digest,
				       (*ret_bytes)->data);
}

/* Puts what is verified into the image, in one piece where it lies so, and tells who waits. */
static void fill_and_finish(struct ds_flight **flights, struct ds_chunk_bytes **bytes, size_t n)
{
	struct ds_image_fill fills[DS_IMAGE_RUN_MAX];
	struct ds_fetcher *fetcher = flights[0]->fetcher;
	uint64_t sum = 0;

	for (size_t i = 0; i < n; i++) {
		fills[i] = (struct ds_image_fill){.slot = flights[i]->slot,
						  .raw = bytes[i]->data,
						  .lock = &flights[i]->lock};
		sum += bytes[i]->len_bytes;
	}
	pthread_mutex_lock(&fetcher->mutex);
	fetcher->locked.stats.chunks_n += n;
	fetcher->locked.stats.chunk_bytes += sum;
	pthread_mutex_unlock(&fetcher->mutex);
	ds_image_fill_run(flights[0]->image, fills, n);
	for (size_t i = 0; i < n; i++) {
		/* Whether the disk took it or not, the bytes are here. */
		if (fills[i].result < 0)
			ds_fetch_keep(fetcher, &flights[i]->slot.digest, bytes[i]);
		flights[i]->has_come = true;
		flights[i]->is_stored = fills[i].result == 0;
		ds_flight_finish(flights[i], 0, bytes[i]);
		ds_chunk_bytes_unref(bytes[i]);
	}
}

void ds_flight_run_decode(struct ds_work_item *item)
{
	struct ds_flight *flight = ds_container_of(item, struct ds_flight, work);
	struct ds_fetcher *fetcher = flight->fetcher;
	struct ds_flight *good[DS_IMAGE_RUN_MAX];
	struct ds_chunk_bytes *bytes[DS_IMAGE_RUN_MAX];
	struct ds_list run;
	size_t n = 0;

	ds_list_init(&run);
	ds_list_splice(&run, &flight->run);
	ds_list_push_front(&run, &flight->node);
	if (flight->waits_as) {
		pthread_mutex_lock(&fetcher->mutex);
		ds_list_for_each (node, &run)
			ds_list_entry(node, struct ds_flight, node)->waits_as = NULL;
		pthread_mutex_unlock(&fetcher->mutex);
	}
	while (!ds_list_is_empty(&run)) {
		struct ds_fetch_batch *batch;
		int r;

		flight = ds_list_entry(run.next, struct ds_flight, node);
		ds_list_remove(&flight->node);
		batch = flight->batch;
		bytes[n] = NULL;
		r = decode(flight, batch, &bytes[n]);
		flight->batch = NULL;
		ds_fetch_batch_unref(batch);
		if (r == 0) {
			good[n++] = flight;
			continue;
		}
		ds_chunk_bytes_unref(bytes[n]);
		if (r == -DS_E_CORRUPT || r == -DS_E_MALFORMED)
			ds_flight_corrupt(flight, r, NULL);
		else
			fail(flight, r, NULL);
	}
	if (n)
		fill_and_finish(good, bytes, n);
}
