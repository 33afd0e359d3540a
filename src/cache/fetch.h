/*
 * The fetcher: brings chunks from the store into images, once for all who wait.
 *
 * A want names a chunk and where it goes. If it is in flight already (in this process, or in another one of the
 * host, seen by the slot's lock), the waiter joins; else the chunk is queued. Queued chunks that lie side by
 * side in a pack travel in one range GET. Received bytes are decoded and verified on worker threads, written to the image, and then each
 * waiter's `done` is called, from a worker or the timer's thread, with the raw bytes, so that it can be answered even if the image could not take them.
 *
 * A pack that answers "absent" (or "denied") leads to its `.moved` note, which may chain; bytes that do not fit their digest are fetched anew once, then
 * the want fails with -DS_E_CORRUPT.
 *
 * Every waiter has a deadline: past it, done gets -DS_E_TIMEOUT (or the error of the last attempt if there was one), also
 * if the store never answers. No thread of the caller ever waits, except in ds_fetch_blocking.
 *
 * Threads: any. done must not block for long; it may call ds_fetcher_want.
 */
#ifndef DS_CACHE_FETCH_H
#define DS_CACHE_FETCH_H

#include "cache/cache.h"
#include "codec/chunk.h"
#include "store/store.h"
#include "util/list.h"

/* Raw bytes of one chunk, verified, counted, read-only. */
struct ds_chunk_bytes {
	_Atomic unsigned refs_n;
	uint32_t len_bytes;
	uint8_t *data;
	struct ds_fetch_buffer *buffer; /* where they were received, with others; NULL: own */
	uint8_t own[];
};
/* Own, not yet set: by the caller, before he shares them. */
int ds_chunk_bytes_new(uint32_t len_bytes, struct ds_chunk_bytes **ret_bytes);
struct ds_chunk_bytes *ds_chunk_bytes_ref(struct ds_chunk_bytes *bytes);
/* A reference, for who keeps them for long: of a copy, if they lie in a buffer of which they are a part. NULL: no memory. */
struct ds_chunk_bytes *ds_chunk_bytes_keep(struct ds_chunk_bytes *bytes);
struct ds_chunk_bytes *ds_chunk_bytes_unref(struct ds_chunk_bytes *bytes);

struct ds_fetch_target {
	struct ds_image *image; /* the waiter's caller holds a reference until the want is over */
	uint32_t slot;
	uint64_t raw_off;	 /* in the image */
	struct ds_chunk_ref ref; /* where it lies and what it must be */
};

struct ds_fetch_waiter {
	/* set by the caller; `diag` of an error may be NULL: nothing more is known of it */
	void (*done)(struct ds_fetch_waiter *waiter, int result, struct ds_chunk_bytes *bytes,
		     const struct ds_diag *diag);
	uint64_t deadline_ns;
	/* set before done: the bytes came from the store, for this waiter or who was first; false: they were here, if only to be checked */
	bool has_come;
	bool is_stored; /* set before done: they are in the image, too, which may be evicted at any time */
	/* the fetcher's own */
	struct ds_list node;
	struct ds_list deadline_node;
	void *flight;
};

struct ds_fetcher;

#define DS_FETCH_INFLIGHT_BYTES DS_MIB(256)

struct ds_fetcher_options {
	/* Stored and raw bytes of all flights; 0: DS_FETCH_INFLIGHT_BYTES. Wants beyond it are queued; one alone always goes. */
	uint64_t inflight_bytes_max;
	unsigned workers_n; /* 0: number of CPUs, at least 2 */
	uint64_t
		coalesce_bytes_max; /* a range GET takes no further chunk when it has as many; 0: 2 MiB */
};

/* Starts no thread before the first want. Holds references of store and cache. */
int ds_fetcher_new(struct ds_store *store, struct ds_cache *cache,
		   const struct ds_fetcher_options *options, struct ds_fetcher **ret_fetcher);
/* Ends what runs: waiters get -DS_E_INTERRUPTED. Blocks until all is over. */
struct ds_fetcher *ds_fetcher_free(struct ds_fetcher *fetcher);

/* The waiter belongs to the fetcher until done is called or ds_fetcher_abandon has returned true. `bytes` in done is valid during the call: take a reference to keep it.
 * May call done before it returns?  No: always later, from another thread. -ENOMEM (or what a thread could not be started for): not
 * taken; so is -DS_E_INTERRUPTED, while the fetcher is being freed. */
int ds_fetcher_want(struct ds_fetcher *fetcher, const struct ds_fetch_target *target,
		    struct ds_fetch_waiter *waiter);
/*
 * The same for many at once, of somebody who is in no hurry: demand overtakes them, as it does prefetch, and those that lie side by side
 * travel together. Their deadline is DS_DEADLINE_NONE: each ends when it is fetched, cannot be had, or is abandoned; what fails in
 * passing is tried again until then. *ret_n were taken, the first ones; all if 0 is returned.
 */
int ds_fetcher_want_ahead(struct ds_fetcher *fetcher, const struct ds_fetch_target *targets,
			  struct ds_fetch_waiter *const *waiters, size_t n, size_t *ret_n);
/* Chunks that will be wanted soon, nobody waits for; what is over the budget (with what is in flight), or over some ten thousand
 * chunks, is dropped. Demand overtakes them, and a quarter of the budget is its own. A want joins them. Returns how many of the first ones were taken, or are on their way. */
size_t ds_fetcher_prefetch(struct ds_fetcher *fetcher, const struct ds_fetch_target *targets,
			   size_t targets_n);
/* All chunks of a pack, into its image, of which the caller holds a reference during the call: fetched as by ds_fetcher_prefetch, in few
 * GETs, after its table of contents, some thousand at a time. Nothing if it was asked for in the last minutes, or the budget is used up, or four
 * such calls are not over, or one for a pack of very many chunks, as this is: a later one may. Never blocks. */
void ds_fetcher_pull(struct ds_fetcher *fetcher, struct ds_image *image,
		     const struct ds_digest *pack);
/* Takes a waiter back: true: done will not be called; false: it is being called or has been. The flight goes on if others wait, else ends. */
bool ds_fetcher_abandon(struct ds_fetcher *fetcher, struct ds_fetch_waiter *waiter);
/* What a waiter waits for: the error of the last try, another is to follow; 0: there was none, or it does not wait. The diag, if given, is
 * set with an error, to as much as is known of it. */
int ds_fetcher_why(struct ds_fetcher *fetcher, const struct ds_fetch_waiter *waiter,
		   struct ds_diag *ret_diag);

/* Puts bytes that are at hand (e.g. what a mount fetched in one GET) into an in-memory stash: wants of that digest are
 * answered from it without a request. Lives as long as the fetcher; at most 8 MiB (then -DS_E_LIMIT). -DS_E_CORRUPT if the digest does not fit. */
int ds_fetcher_stash(struct ds_fetcher *fetcher, const struct ds_digest *digest,
		     struct ds_chunk_bytes *bytes);

/* Bytes that the cache did not take are kept in memory for a while: at most so many, and an eighth of what may be in flight. */
#define DS_FETCH_KEPT_MAX DS_MIB(32)
/* Whether these are among them. */
bool ds_fetcher_keeps(struct ds_fetcher *fetcher, const struct ds_digest *digest);

/* For callers that may block: image, else fetch. Gives a reference to the bytes. */
int ds_fetch_blocking(struct ds_fetcher *fetcher, const struct ds_fetch_target *target,
		      uint64_t deadline_ns, struct ds_chunk_bytes **ret_bytes,
		      struct ds_diag *reterr_diag);

struct ds_fetcher_stats {
	uint64_t wants_n, joined_n, gets_n, chunks_n, timeouts_n, corrupt_n, moved_n, pulls_n;
	uint64_t chunk_bytes;	 /* raw, of chunks_n */
	uint64_t waiting_n;	 /* now */
	uint64_t underway_n;	 /* now: chunks, also those that nobody waits for */
	uint64_t inflight_bytes; /* now */
	uint64_t inflight_bytes_max;
	uint64_t inflight_most_bytes; /* ever */
};
void ds_fetcher_get_stats(struct ds_fetcher *fetcher, struct ds_fetcher_stats *ret_stats);

/* The table of contents of a pack, from the store (one or two GETs; blocks; follows nothing). Free with ds_free. */
struct ds_pack_toc;
int ds_fetch_toc(struct ds_store *store, const struct ds_digest *pack, struct ds_pack_toc **ret_toc,
		 struct ds_diag *reterr_diag);
/* Where chunk `ordinal` of a pack lies now, after following .moved notes (blocks; 0 with *ref unchanged if the pack is still there). */
int ds_fetch_locate(struct ds_store *store, struct ds_chunk_ref *ref, struct ds_diag *reterr_diag);

#endif
