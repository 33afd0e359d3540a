/*
 * What the parts of the fetcher share; for src/cache only.
 *
 *   fetch.c           the interface: wants, prefetch, abandoning, stash, start and end
 *   fetch_flight.c    the steps of one flight on worker threads: look, decode, finish
 *   fetch_queue.c     choosing what travels in one GET, claiming slots, sending, answers
 *   fetch_deadline.c  the timer thread: deadlines, retries, polling of other processes' locks
 *   fetch_pull.c      whole packs ahead of demand
 *   fetch_kept.c      bytes in memory that the cache has not taken
 *   fetch_buffer.c    what GETs are received into
 *   fetch_moved.c     tables of contents, notes of packs that are gone
 *
 * A flight is one chunk on its way into one image, with all who wait for it. Its states, and who owns it in each:
 *
 *   LOOKING   a worker: is it in the image or the stash?        -> QUEUED, or done
 *             (prefetch of what is not in memory begins QUEUED: who asks has looked at the image)
 *   QUEUED    the queue                                          -> CLAIMING
 *   CLAIMING  a dispatcher: takes the slot's lock                -> FETCHING, WAITING, LOOKING, or done
 *   WAITING   the timer: another process has the lock, or a
 *             failed GET is tried again after a pause            -> QUEUED
 *   FETCHING  its batch, which is with the store, or is answered
 *             and in the workers' queue                          -> DECODING, WAITING, MOVING, or done
 *   DECODING  a worker: decode, verify, fill                     -> QUEUED (fetch it anew), or done
 *   MOVING    a thread of its own kind: follows .moved notes     -> QUEUED, or done
 *   DROPPED   a worker: nobody wants it any more                 -> done
 *
 * Everything but what the owner works on is under fetcher->mutex. No callback, no I/O and no image call
 * happens under it, but for ds_store_cancel and ds_store_hasten, whose `done` comes later from a thread of the store.
 *
 * INV-1 A waiter is on exactly one list, or `done` is being or has been called; waiter->flight says which.
 * INV-2 Every flight that a want may join is in the map; it leaves the map before its waiters are told.
 * INV-3 A request is cancelled or hastened only between its submission and its `done`, both seen under the mutex.
 */
#ifndef DS_CACHE_FETCH_INTERNAL_H
#define DS_CACHE_FETCH_INTERNAL_H

#include <pthread.h>

#include "cache/cache_internal.h"
#include "cache/fetch.h"
#include "codec/pack.h"
#include "util/map.h"
#include "util/work.h"

#define DS_FETCH_GETS_MAX 64u /* at once: as many as the store has connections */

/* A request on its way, by the fetcher's own account. */
struct ds_fetch_call {
	struct ds_list node; /* in fetcher->locked.calls while it is with the store */
	struct ds_fetcher *fetcher;
	struct ds_store_req req;
	bool is_submitted, is_over, is_cancelled, is_hastened; /* by fetcher->mutex */
	void (*over)(struct ds_fetch_call *call);	       /* on a thread of the store */
};

/* One range GET and the chunks that travel in it. */
struct ds_fetch_batch {
	_Atomic unsigned refs_n;
	struct ds_fetch_call call;
	struct ds_work_item work;
	bool is_answered; /* `work` is queued; by fetcher->mutex. The flights are FETCHING still */
	struct ds_list flights; /* in the order of their offsets */
	struct ds_fetch_buffer *stored;
	uint64_t off;
	char key[DS_PACK_KEY_MAX];
};

enum ds_flight_state {
	DS_FLIGHT_LOOKING,
	DS_FLIGHT_QUEUED,
	DS_FLIGHT_CLAIMING,
	DS_FLIGHT_WAITING,
	DS_FLIGHT_FETCHING,
	DS_FLIGHT_DECODING,
	DS_FLIGHT_MOVING,
	DS_FLIGHT_DROPPED
};

/* What makes two wants the same: also where it is said to lie, so that a lie about it fails only who told it. */
struct ds_flight_key {
	uint64_t image, raw_off, stored_off;
	uint32_t slot, raw_len_bytes, stored_len_bytes, ordinal;
	struct ds_digest digest, pack;
};

struct ds_flight {
	struct ds_list node; /* queue, timer, batch, or another's run */
	struct ds_work_item work;
	struct ds_fetcher *fetcher;
	struct ds_flight_key key;
	bool is_in_map;
	enum ds_flight_state state;
	bool is_prefetch;     /* goes on without waiters */
	uint64_t ahead_bytes; /* counted as prefetch that has not set out; 0: not */
	bool is_looked_for;   /* a worker has looked for it */
	bool has_come;	      /* from the store */
	bool is_stored;	      /* in the image */
	struct ds_list waiters;

	struct ds_image *image;
	struct ds_image_slot slot;
	struct ds_chunk_ref at; /* where it lies, as far as is known now */
	struct ds_image_lock lock;
	struct ds_fetch_batch *batch;
	struct ds_list run; /* DECODING: those that are decoded after it, by the same worker */
	/* DECODING: what is queued for it, its own work or that of the one whose run it is in; NULL: a worker is at it. Set under
	 * fetcher->mutex, before that is queued; cleared under it by who runs that. */
	struct ds_work_item *waits_as;

	bool is_start_noted, is_end_noted; /* in the maps of neighbours */
	bool travels_alone;
	uint64_t cost_bytes; /* counted as in flight; 0: not */
	unsigned corrupt_n, moved_n, tries_n;
	uint64_t due_ns;	/* WAITING */
	uint64_t poll_since_ns; /* another one holds the lock since */
	uint64_t poll_ms;
	int last_error;	      /* of a try that will be, or was, repeated */
	int gone_error;	      /* MOVING: what the pack answered */
	struct ds_diag *diag; /* of last_error; NULL: there is none, or was no memory for it */
};
_Static_assert(sizeof(struct ds_flight) <= 512, "there may be many thousand");

struct ds_fetch_dispatcher {
	struct ds_work_item work;
	struct ds_fetcher *fetcher;
	bool is_busy;
};

struct ds_moved_cache;

struct ds_fetcher {
	struct ds_store *store;
	struct ds_cache *cache;
	uint64_t inflight_bytes_max, coalesce_bytes_max;
	unsigned workers_n;

	pthread_mutex_t mutex;
	pthread_cond_t timer_wake, idle;
	struct {
		bool is_started, is_ending;
		struct ds_map *flights;	      /* by key */
		struct ds_map *starts, *ends; /* queued flights by (pack, offset) */
		struct ds_list demand, prefetch;
		struct ds_list waiting;	  /* flights */
		struct ds_list deadlines; /* waiters, soonest first */
		struct ds_list patient;	  /* waiters without a deadline */
		struct ds_list calls;
		size_t flights_n;
		unsigned gets_n; /* batches with the store */
		uint64_t inflight_bytes;
		uint64_t ahead_bytes; /* prefetch that has not set out, queued or not */
		struct ds_map *stash; /* bytes by digest */
		uint64_t stash_bytes;
		struct ds_map *pulls; /* by pack (fetch_pull.c) */
		unsigned pulls_busy_n, pulls_large_n;
		struct ds_map *kept; /* by digest (fetch_kept.c) */
		struct ds_list kept_list;
		_Atomic uint64_t kept_bytes; /* read without the mutex too */
		struct ds_fetcher_stats stats;
	} locked;
	struct ds_fetch_pool *pool;
	struct ds_work *workers;
	struct ds_work *movers; /* wait for the store; made when first needed; by mutex */
	pthread_t timer;
	struct ds_moved_cache *moved;
	struct ds_fetch_dispatcher *dispatchers;
	unsigned dispatchers_n;
};

/* ---- fetch_pull.c */
/* No pull makes more flights (some 900 bytes each, with their places in the maps) while there are so many, whoever made them. */
#define DS_FETCH_PULL_FLIGHTS_MAX 8192u
/* Nor does prefetch: twice as many, since a pull is not to keep it out. */
#define DS_FETCH_AHEAD_FLIGHTS_MAX (2 * DS_FETCH_PULL_FLIGHTS_MAX)
/* Of packs of more chunks one is pulled at a time: the table of one has 56 bytes for each, and 40 while it comes. */
#define DS_FETCH_PULL_LARGE_N 50000u
/* Frees a value of the map. */
void ds_fetch_pull_free(void *value);
/* Whether it is not over yet. */
bool ds_fetch_pull_is_busy(const void *value);

/* ---- fetch_kept.c */
/* The cache did not take it. Takes a reference; lets go of those that were not asked for the longest. */
void ds_fetch_keep(struct ds_fetcher *fetcher, const struct ds_digest *digest,
		   struct ds_chunk_bytes *bytes);
/* A reference, or NULL. */
struct ds_chunk_bytes *ds_fetch_kept_locked(struct ds_fetcher *fetcher,
					    const struct ds_digest *digest);
void ds_fetch_kept_free(struct ds_fetcher *fetcher);

/* ---- fetch_moved.c */
int ds_fetch_movers_locked(struct ds_fetcher *fetcher);
/* As ds_fetch_toc, of a pack of so many chunks (-DS_E_MISMATCH before its table is fetched), ending early with the fetcher. On a thread
 * that may wait. */
int ds_fetch_toc_by(struct ds_fetcher *fetcher, const struct ds_digest *pack, uint32_t chunks_n,
		    uint64_t deadline_ns, struct ds_pack_toc **ret_toc);

/* ---- chunk_bytes.c */
/* A part of a buffer, which it keeps. */
int ds_chunk_bytes_new_in(struct ds_fetch_buffer *buffer, size_t off, uint32_t len_bytes,
			  struct ds_chunk_bytes **ret_bytes);

/* ---- fetch_buffer.c: counted; any thread. A buffer keeps its pool. */
struct ds_fetch_pool;
struct ds_fetch_buffer {
	_Atomic unsigned refs_n;
	struct ds_fetch_pool *pool;
	struct ds_buf buf;    /* not to be changed once it is shared */
	size_t touched_bytes; /* of its memory, before it was taken */
	size_t beyond_bytes;  /* of these, more than it may get */
};
/* `spare_len_bytes`: of the buffers that are kept to be used again. So many bytes together were ever written to, of those that are
 * kept, and behind their ends of those that are out. */
int ds_fetch_pool_new(size_t spare_len_bytes, uint64_t touched_max_bytes,
		      struct ds_fetch_pool **ret_pool);
struct ds_fetch_pool *ds_fetch_pool_unref(struct ds_fetch_pool *pool);
/* Frees spare ones but so many. */
void ds_fetch_pool_trim(struct ds_fetch_pool *pool, unsigned keep_n);
/* Empty, with `len_bytes` as its maximum. */
int ds_fetch_buffer_new(struct ds_fetch_pool *pool, size_t len_bytes,
			struct ds_fetch_buffer **ret_buffer);
struct ds_fetch_buffer *ds_fetch_buffer_ref(struct ds_fetch_buffer *buffer);
struct ds_fetch_buffer *ds_fetch_buffer_unref(struct ds_fetch_buffer *buffer);

/* ---- fetch.c */
/* Hands a request to the store; `over` is called later. Not under the mutex. The call stays valid until `over` was called and this
 * has returned. */
void ds_fetch_submit(struct ds_fetcher *fetcher, struct ds_fetch_call *call);
void ds_fetch_cancel_locked(struct ds_fetch_call *call);
/* Somebody waits for it now. */
void ds_fetch_hasten_locked(struct ds_fetch_call *call);
/* Starts the threads, once. */
int ds_fetch_start_locked(struct ds_fetcher *fetcher);
/* As ds_fetcher_prefetch; `is_bounded`: what is over the budget is dropped. */
size_t ds_fetch_ahead(struct ds_fetcher *fetcher, const struct ds_fetch_target *targets,
		      size_t targets_n, bool is_bounded);
/* Performs a request, blocking; ends early with the fetcher. */
int ds_fetch_perform(void *fetcher, struct ds_store_req *req);

/* ---- fetch_flight.c */
void ds_flight_run_look(struct ds_work_item *item);
/* Whether a pack can have a chunk there. */
bool ds_flight_makes_sense(const struct ds_chunk_ref *ref);
/* Of a flight and those of its run, all of one image: at most DS_IMAGE_RUN_MAX. */
void ds_flight_run_decode(struct ds_work_item *item);
void ds_flight_run_drop(struct ds_work_item *item);
/* Serves it from the image, checking if need be. False: not there. */
bool ds_flight_serve_local(struct ds_flight *flight);
/* Tells who waits and frees the flight. By its owner, not under the mutex. `bytes` is borrowed. */
void ds_flight_finish(struct ds_flight *flight, int result, struct ds_chunk_bytes *bytes);
/* Notes the error that the waiters get if no further try succeeds. */
void ds_flight_note_error(struct ds_flight *flight, int error, const struct ds_diag *diag);
/* The bytes that came were wrong. */
void ds_flight_corrupt(struct ds_flight *flight, int error, const struct ds_diag *diag);
bool ds_flight_is_unwanted_locked(const struct ds_flight *flight);
/* Nobody waits for it any more: ends it as soon as its owner allows. */
void ds_flight_let_go_locked(struct ds_flight *flight);
void ds_flight_remove_from_map_locked(struct ds_flight *flight);
/* Takes a waiter off its flight. */
void ds_flight_detach_waiter_locked(struct ds_fetcher *fetcher, struct ds_fetch_waiter *waiter);

/* ---- fetch_queue.c */
/* By its owner. Puts it into the queue, or ends it if nobody wants it. */
void ds_flight_enqueue(struct ds_flight *flight);
void ds_flight_enqueue_locked(struct ds_flight *flight);
/* By its owner: after a pause, and not before `after_ns`, if somebody still waits then; else it ends with the error. */
void ds_flight_retry_later(struct ds_flight *flight, int error, const struct ds_diag *diag,
			   uint64_t after_ns);
void ds_flight_dequeue_locked(struct ds_flight *flight);
/* It sets out, ends, or is wanted: not prefetch that waits any more. */
void ds_flight_uncount_ahead_locked(struct ds_flight *flight);
/* Makes a worker dispatch what is queued, if the budget allows. */
void ds_fetch_kick_locked(struct ds_fetcher *fetcher);
void ds_fetch_run_dispatch(struct ds_work_item *item);
void ds_fetch_batch_unref(struct ds_fetch_batch *batch);

/* ---- fetch_deadline.c */
int ds_fetch_timer_start_locked(struct ds_fetcher *fetcher);
void ds_fetch_add_deadline_locked(struct ds_fetcher *fetcher, struct ds_fetch_waiter *waiter);
/* WAITING for so long. */
void ds_flight_park_locked(struct ds_flight *flight, uint64_t ms);

/* ---- fetch_moved.c */
int ds_moved_cache_new(struct ds_moved_cache **ret_moved);
struct ds_moved_cache *ds_moved_cache_free(struct ds_moved_cache *moved);
/* The flight's pack is gone: finds where its chunk is now. */
void ds_flight_move(struct ds_flight *flight, int error, const struct ds_diag *diag);

#endif
