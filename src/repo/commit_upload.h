/*
 * Uploads of a commit: several objects on their way at once, within a memory budget. How long they are tried: by_headway of
 * store.h.
 *
 * INV-1  At most `flights_max` objects are on their way; each holds its bytes until the store has answered. Advisory ones, which are
 *        small, do not wait for them: else packs that arrive together have no index object that names them yet.
 * INV-2  The first error stays: nothing is started after it, and every call returns it. Advisory objects fail in silence.
 *
 * Threads: the caller's one; the store's threads call back. Put and wait block; they end with -DS_E_INTERRUPTED when the watch
 * says so.
 */
#ifndef DS_REPO_COMMIT_UPLOAD_H
#define DS_REPO_COMMIT_UPLOAD_H

#include "repo/commit_watch.h"
#include "store/store.h"

struct commit_uploads;

/* The watch is kept by reference. */
int commit_uploads_new(struct ds_store *store, uint64_t memory_bytes,
		       const struct commit_watch *watch, struct commit_uploads **ret_uploads);
/* Waits for what is on its way; after an error or an interrupt that is cancelled. */
struct commit_uploads *commit_uploads_free(struct commit_uploads *uploads);

/* Put if absent of a name that nobody else can have. Takes the body, whatever comes of it. */
int commit_uploads_put(struct commit_uploads *uploads, const char *key, struct ds_buf *take_body,
		       bool is_advisory);
/* The memory of an object that has arrived, for the next one; empty if there is none. */
void commit_uploads_spare(struct commit_uploads *uploads, struct ds_buf *ret_memory);
/* Until nothing is on its way. */
int commit_uploads_wait(struct commit_uploads *uploads);
/* 0 or the first error, with its diag. */
int commit_uploads_result(struct commit_uploads *uploads, struct ds_diag *reterr_diag);
/* Gives what is on its way so much time, then cancels it. Afterwards nothing is on its way. */
void commit_uploads_stop(struct commit_uploads *uploads, uint64_t patience_ms);
/* Of objects that have arrived, advisory ones apart. */
uint64_t commit_uploads_bytes(struct commit_uploads *uploads);

#endif
