/*
 * The store: object storage behind one interface. Backends: S3 (store_s3*.c), a directory
 * (store_dir.c), memory (store_memory.c).
 *
 * A request is a struct of the caller. ds_store_submit starts it and returns at once; `done` is
 * called exactly once, later, from a thread of the store (never from within submit or cancel), and
 * may submit again but must not block. Until then the request and everything that it points to
 * belong to the store. ds_store_perform is the same for callers that may block. Retries (full
 * jitter, token bucket), signing, checking of lengths and of Content-Range happen inside, until the
 * request's deadline.
 *
 * Keys are relative to the store's prefix, are never empty (but for LIST), hold no NUL, and are
 * passed as they are (percent-encoded names are the caller's business): "packs/ab/abcd...". A PUT is
 * refused (-EINVAL) by every backend when one of them could not hold the key: empty, "." and ".."
 * components, components over 255 bytes or beginning with ".tmp-", keys over 900 bytes, "lock" and
 * what lies below it. No key may be the directory of another one ("a" and "a/b").
 * DELETE of what is not there succeeds.
 *
 * Errors of a request (`result`, with `diag` saying more): 0;
 * -DS_E_ABSENT (404); -DS_E_PRESENT (put if absent, and it is there: 412, or 409 that persists);
 * -DS_E_DENIED (403); -DS_E_AUTH (wrong keys or signature); -DS_E_NO_BUCKET; -DS_E_UNSUPPORTED;
 * -DS_E_THROTTLED, -DS_E_SERVER, -DS_E_NETWORK when the deadline passed while that was the last
 * answer, -DS_E_TIMEOUT when there was none; -DS_E_PROTOCOL after a few nonsensical answers, or one
 * that trying again cannot mend (wrong region); -DS_E_LIMIT (object larger than the buffer's
 * maximum); -DS_E_MALFORMED (the object ends before the range that was asked); -DS_E_LATE (signed_at
 * was too long ago); -DS_E_INTERRUPTED (cancelled); -ENOMEM. The directory backend also gives errnos
 * of the disk. A 403 where listing is not allowed may mean absence: see the design; that judgement
 * is the repo layer's.
 *
 * On an error `into` and `listing` are as they were before.
 *
 * A PUT if absent whose reply was lost is sent again and may then meet its own object:
 * -DS_E_PRESENT does not prove that somebody else won. Callers compare what is there.
 */
#ifndef DS_STORE_STORE_H
#define DS_STORE_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "util/buf.h"
#include "util/clock.h"
#include "util/diag.h"
#include "util/list.h"

enum ds_store_op { DS_STORE_GET, DS_STORE_PUT, DS_STORE_HEAD, DS_STORE_LIST, DS_STORE_DELETE };

#define DS_STORE_LEN_ALL UINT64_MAX

struct ds_store_object { /* one row of a LIST */
	char *key;	 /* relative to the store's prefix */
	uint64_t size_bytes;
	struct ds_time modified; /* the store's clock */
};

struct ds_store_listing {
	struct ds_store_object *objects; /* in byte order of keys */
	size_t objects_n;
	size_t capacity_n;
};
void ds_store_listing_release(struct ds_store_listing *listing);

struct ds_store_req {
	/* set by the caller; everything else zero */
	enum ds_store_op op;
	const char *key; /* LIST: prefix, may be "" */
	/* GET: from byte `off`, DS_STORE_LEN_ALL (to the end) or exactly len_bytes bytes: an object
	 * that ends before is -DS_E_MALFORMED. With from_end: the last len_bytes bytes, or all if there
	 * are fewer; off is ignored. */
	uint64_t off;
	uint64_t len_bytes;
	bool from_end;
	struct ds_buf *into; /* GET: appended here; its maximum bounds what is accepted */
	const void *body;    /* PUT; a long one aligned to 4,096 spares a directory a copy */
	size_t body_len_bytes;
	bool if_absent; /* PUT */
	/* PUT, S3: every attempt is signed with this time of the store's clock (.s 0: each with the
	 * time at which it is sent), so that S3 refuses it 15 minutes later however long the writer
	 * was stopped in between: -DS_E_LATE. Memory does the same by its clock; a directory does not. */
	struct ds_time signed_at;
	struct ds_store_listing *listing; /* LIST: rows are appended, all pages */
	size_t list_max_n;		  /* LIST: stop after so many rows; 0: all */
	const char *list_after;		  /* LIST: only keys after this one; NULL: all */
	uint64_t deadline_ns; /* monotonic; 0: the store's default of 60 s from submit */
	bool is_urgent;	      /* demand overtakes prefetch where something has to wait */
	/* PUT: no deadline_ns; it fails when the store's default has passed since the last headway of any
	 * such PUT: bytes beyond those that went out before, or an answer that took one. So a large one
	 * gets over a slow line, and a store that only refuses is not asked for ever (S3; the others set
	 * it no limit). */
	bool by_headway;
	bool is_last_will; /* performed although the store's `interrupted` is set */
	void (*done)(struct ds_store_req *req); /* submit only */
	void *ctx;

	/* set by the store at any time: the error of the last attempt, for who wonders what it waits for; 0: there is none yet */
	_Atomic int attempt_error;
	/* set by the store before done */
	int result;
	struct ds_diag diag;
	uint64_t object_size_bytes; /* GET, HEAD: of the whole object */
	struct ds_time modified;    /* GET, HEAD */
	struct ds_time store_time;  /* the store's clock when it answered; .s 0 if it did not say */
	/* It ended before it was to be tried again: who asks for the same again waits for so long. 0: no matter */
	uint64_t retry_after_ns;

	/* the store's own */
	struct ds_list node;
	void *internal;
	bool is_time_noted; /* store_time was learned */
};

struct ds_store_stats {		/* counters since the store was opened */
	uint64_t requests_n[5]; /* by op, as sent on the wire: retries and pages count */
	uint64_t retries_n;
	uint64_t failures_n; /* requests that ended with an error other than ABSENT and PRESENT */
	uint64_t received_bytes; /* bodies */
	uint64_t sent_bytes;
};

struct ds_store;

enum ds_store_addressing {
	/* the profile's (s3, addressing_style); else virtual for AWS unless the bucket has dots, and path */
	DS_STORE_ADDRESSING_AUTO,
	DS_STORE_ADDRESSING_PATH,    /* https://host/bucket/key */
	DS_STORE_ADDRESSING_VIRTUAL, /* https://bucket.host/key */
};
/* "path", "virtual"; -EINVAL. */
int ds_store_addressing_parse(const char *text, enum ds_store_addressing *ret_addressing);

/* All but timeout_ms and interrupted concern S3 only. NULL instead of the struct, 0 and NULL in it: the defaults. */
struct ds_store_options {
	/* URL; NULL: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, the profile's endpoint_url, then AWS's
	 * own by region. */
	const char *endpoint;
	const char *region;	/* AWS_REGION, AWS_DEFAULT_REGION, the profile's, then us-east-1 */
	const char *profile;	/* AWS_PROFILE, then "default"; if given, keys in the environment
				do not count */
	bool insecure_http;	/* allow http:// to hosts other than loopback */
	uint64_t timeout_ms;	/* default deadline; 60,000 */
	unsigned connections_n; /* at most so many at once; 64 */
	enum ds_store_addressing addressing;
	/* A transfer that stands still for so long is abandoned and made anew; 10,000. */
	uint64_t stall_timeout_ms;
	/* Becomes non-zero, e.g. by a signal: from then on ds_store_perform ends within a moment with
	 * -DS_E_INTERRUPTED. NULL: never. Lives as long as the store. */
	const volatile int *interrupted;
	/* Called once, from a thread of the store, when something has been tried for 2 s in vain and still is: why
	 * ("cannot reach http://...: Connection refused"), and how long it will be tried at most. May
	 * not block. NULL: nobody is told. */
	void (*waits)(void *ctx, const char *why, uint64_t left_ms);
	void *waits_ctx;
};

/*
 * Opens the store of a URL: `s3://bucket[/prefix]`, `file:///path`, or a path. Does no I/O beyond
 * reading local configuration (credentials: environment, then ~/.aws/credentials and config) and,
 * for a directory, opening it (`create`: making it; without it, a missing directory is
 * -DS_E_NO_REPO). Threads are started by the first request, so that a process may still fork after
 * this. -DS_E_USAGE with a reason in diag for a bad URL (credentials in it, bad bucket name, plain
 * http), -DS_E_NO_KEYS without credentials, -ENOMEM, the errno of the directory.
 */
int ds_store_open(const char *url, const struct ds_store_options *options, bool create,
		  struct ds_store **ret_store, struct ds_diag *reterr_diag);
/* The path of a URL that is a directory's, into a new string; NULL if it is another store's. Looks at the
 * text alone. -DS_E_USAGE, -ENOMEM. */
int ds_store_path_of(const char *url, char **ret_path, struct ds_diag *reterr_diag);
/* For tests and simulations: a store in memory, empty. Several may share the objects of one: `share`
 * NULL or such a store. The clock gives `modified` and `store_time`; NULL: the machine's. */
int ds_store_memory_new(struct ds_store *share, const struct ds_clock *clock,
			struct ds_store **ret_store);
struct ds_store *ds_store_ref(struct ds_store *store);
/* The last unref cancels what runs, waits for its done calls, and ends the threads. Not from done.
 * NULL is allowed. Returns NULL. */
struct ds_store *ds_store_unref(struct ds_store *store);

/* Starts the store's threads, if they are not running. Optional: the first request does it. But a
 * request that cannot start them (EAGAIN, ENOMEM) can only block and try again, so that a daemon
 * calls this once after its fork and hears of it. */
int ds_store_start(struct ds_store *store);
void ds_store_submit(struct ds_store *store, struct ds_store_req *req);
/* Asks that the request end soon with -DS_E_INTERRUPTED; its done is still called exactly once. It
 * may already be on its way: the caller must know that done has not returned, e.g. under a lock of
 * its own that done takes. Only for submitted requests. */
void ds_store_cancel(struct ds_store *store, struct ds_store_req *req);
/* Somebody waits for it now: as if it had been submitted with is_urgent (which becomes set), if it has not
 * set out yet. The same caution as with cancel. */
void ds_store_hasten(struct ds_store *store, struct ds_store_req *req);
/* Blocks until the request is over, or cancelled because the store was interrupted (a directory looks
 * only before it begins); returns req->result. `done` is ignored. */
int ds_store_perform(struct ds_store *store, struct ds_store_req *req);
/* Whether options.interrupted is set: for callers that submit and wait by themselves. */
bool ds_store_is_interrupted(const struct ds_store *store);

/* Shorthands over ds_store_perform with the default deadline; diag may be NULL. */
int ds_store_get(struct ds_store *store, const char *key, struct ds_buf *into,
		 struct ds_diag *reterr_diag);
int ds_store_put_if_absent(struct ds_store *store, const char *key, const void *body,
			   size_t len_bytes, struct ds_diag *reterr_diag);
int ds_store_put(struct ds_store *store, const char *key, const void *body, size_t len_bytes,
		 struct ds_diag *reterr_diag);

/* Time of the store's clock now: learned from its answers and carried on by the monotonic clock; one
 * answer alone cannot move it by more than 5 minutes. The first call asks the store if nothing was
 * asked yet (blocks). S3 gives whole seconds, so that this is up to a second behind. A directory is asked
 * each time, by making and removing a file; where none can be made, its time is this machine's. */
int ds_store_now(struct ds_store *store, struct ds_time *ret_now, struct ds_diag *reterr_diag);

void ds_store_get_stats(struct ds_store *store, struct ds_store_stats *ret_stats);
/* URL as given to open, without credentials; owned by the store. */
const char *ds_store_url(const struct ds_store *store);
/* Absolute path of the directory, for a directory store; NULL otherwise. Owned by the store. */
const char *ds_store_local_path(const struct ds_store *store);
/* Directory store: takes the shared (writer) or exclusive (collector) lock on its lock file until the
 * returned descriptor is closed; -EBUSY if it cannot be had now. Other backends give -1 in *ret_fd. */
int ds_store_lock(struct ds_store *store, bool exclusive, int *ret_fd);

/* For decorators (tests) and backends: the ops table. Those marked optional may be NULL. */
struct ds_store_ops {
	int (*start)(struct ds_store *store); /* optional */
	void (*submit)(struct ds_store *store, struct ds_store_req *req);
	void (*cancel)(struct ds_store *store, struct ds_store_req *req);
	void (*hasten)(struct ds_store *store, struct ds_store_req *req); /* optional */
	/* Optional: does the request in the calling thread, without done and without
	 * ds_store_complete. */
	void (*perform)(struct ds_store *store, struct ds_store_req *req);
	void (*destroy)(struct ds_store *store);
	void (*get_stats)(struct ds_store *store, struct ds_store_stats *ret_stats);
	const char *(*local_path)(const struct ds_store *store);	  /* optional */
	int (*lock)(struct ds_store *store, bool exclusive, int *ret_fd); /* optional */
	int (*now)(struct ds_store *store, struct ds_time *ret_now);	  /* optional */
};
struct ds_store { /* first member of a backend's own struct; set up by ds_store_init */
	const struct ds_store_ops *ops;
	_Atomic unsigned refs_n;
	char *url;
	uint64_t timeout_ms;
	struct ds_store_clock *clock; /* what was learned of the store's time */
	const volatile int *interrupted;
};
/* timeout_ms 0: the default. -ENOMEM leaves nothing to release. */
int ds_store_init(struct ds_store *store, const struct ds_store_ops *ops, const char *url,
		  uint64_t timeout_ms);
void ds_store_release(struct ds_store *store); /* of the base; the backend frees itself */
/* How a backend ends a request: learns req->store_time and calls done. The caller holds no lock, and
 * must not touch the request afterwards. */
void ds_store_complete(struct ds_store *store, struct ds_store_req *req);

#endif
