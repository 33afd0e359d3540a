/*
 * What the backends of the store share: counters, key rules, listings, and the pool that makes a
 * blocking backend asynchronous. For src/store only.
 */
#ifndef DS_STORE_STORE_BACKEND_H
#define DS_STORE_STORE_BACKEND_H

#include "store/store.h"

#define DS_STORE_TIMEOUT_MS    60000u
#define DS_STORE_KEY_MAX_BYTES 900u
/* How long S3 takes a signature for valid ("RequestTimeTooSkewed" after it). */
#define DS_STORE_SIGNATURE_LIFE_S 900

struct ds_store_counters {
	_Atomic uint64_t requests_n[5];
	_Atomic uint64_t retries_n, failures_n, received_bytes, sent_bytes;
};
void ds_store_counters_get(const struct ds_store_counters *counters,
			   struct ds_store_stats *ret_stats);
/* Counts a failure if the result is one. */
void ds_store_count_result(struct ds_store_counters *counters, int result);

/* Whether a PUT may have this key (see store.h); 0, or -EINVAL with a reason. */
int ds_store_check_key(const char *key, struct ds_diag *reterr_diag);

/* Appends a row with a copy of the key. -ENOMEM. */
int ds_store_listing_append(struct ds_store_listing *listing, const char *key, size_t key_len,
			    uint64_t size_bytes, struct ds_time modified);
/* Drops the rows from objects_n on. */
void ds_store_listing_truncate(struct ds_store_listing *listing, size_t objects_n);

/*
 * Which bytes a GET takes of an object of this size: start and length. -DS_E_MALFORMED if the object
 * ends before, -DS_E_LIMIT if `into` may not become so large.
 */
int ds_store_get_range(struct ds_store_req *req, uint64_t object_size_bytes, uint64_t *ret_off,
		       uint64_t *ret_len_bytes);

/*
 * Runs the requests of a blocking backend on a few threads, which start as they are needed. Urgent
 * requests overtake others. `run` fills in the answer and does not complete it.
 * Lock: the pool's own mutex, a leaf.
 */
struct ds_store_pool;
int ds_store_pool_new(struct ds_store *store, unsigned threads_max, const char *name,
		      void (*run)(struct ds_store *store, struct ds_store_req *req),
		      struct ds_store_pool **ret_pool);
/* Requests that wait end with -DS_E_INTERRUPTED; returns when all are over. NULL is allowed. */
struct ds_store_pool *ds_store_pool_free(struct ds_store_pool *pool);
int ds_store_pool_start(struct ds_store_pool *pool);
void ds_store_pool_submit(struct ds_store_pool *pool, struct ds_store_req *req);
void ds_store_pool_cancel(struct ds_store_pool *pool, struct ds_store_req *req);
void ds_store_pool_hasten(struct ds_store_pool *pool, struct ds_store_req *req);

/* Notes what an answer said of the store's clock, once for each answer; .s 0: nothing. A jump counts
 * when the next answer says it too. */
void ds_store_learn_time(struct ds_store *store, struct ds_time time);
/* The same of an answer by which the store itself says that the estimate is wrong: counts at once. */
void ds_store_correct_time(struct ds_store *store, struct ds_time time);
/* The time of the store as far as it is known, else the machine's. */
struct ds_time ds_store_estimate_now(struct ds_store *store);

/* Backends by kind of URL; `path` and `url` are copied. */
int ds_store_dir_open(const char *url, const char *path, bool create, uint64_t timeout_ms,
		      struct ds_store **ret_store, struct ds_diag *reterr_diag);
int ds_store_s3_open(const char *url, const struct ds_store_options *options,
		     struct ds_store **ret_store, struct ds_diag *reterr_diag);

#endif
