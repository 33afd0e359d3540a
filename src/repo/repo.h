/*
 * A repository: one dataset in a store. Opening reads `dsfs.json` and nothing else.
 *
 * Threads: an opened repository is read-only and may be shared. Calls that talk to the store block, up to its timeout.
 * Errors of all calls: those of the store, and -DS_E_MALFORMED, -DS_E_TOO_NEW (the diag names the release that is needed), -ENOMEM.
 */
#ifndef DS_REPO_REPO_H
#define DS_REPO_REPO_H

#include "codec/digest.h"
#include "store/store.h"

#define DS_FORMAT   1
#define DS_UUID_LEN 16

struct ds_uuid { /* 128 random bits */
	uint8_t bytes[DS_UUID_LEN];
};

struct ds_repo;

/* -DS_E_NO_REPO: there is no dsfs.json (the diag says whether the store could be reached and what lies there). */
int ds_repo_open(const char *url, const struct ds_store_options *options, struct ds_repo **ret_repo,
		 struct ds_diag *reterr_diag);
/* Over a store that is already open (takes a reference). */
int ds_repo_open_store(struct ds_store *store, struct ds_repo **ret_repo,
		       struct ds_diag *reterr_diag);
/*
 * Makes a new one: probes that put-if-absent works (a second PUT of the probe must be refused; -DS_E_UNSUPPORTED else), writes
 * probe.json, then dsfs.json by put-if-absent. default_branch NULL: "main". -DS_E_PRESENT: there is one already; -DS_E_TAKEN:
 * something else lies there (where listing is allowed).
 */
int ds_repo_init(const char *url, const struct ds_store_options *options,
		 const char *default_branch, struct ds_repo **ret_repo,
		 struct ds_diag *reterr_diag);
int ds_repo_init_store(struct ds_store *store, const char *default_branch,
		       struct ds_repo **ret_repo, struct ds_diag *reterr_diag);
struct ds_repo *ds_repo_ref(struct ds_repo *repo);
struct ds_repo *ds_repo_unref(struct ds_repo *repo);

struct ds_store *ds_repo_store(const struct ds_repo *repo);
const struct ds_uuid *ds_repo_id(const struct ds_repo *repo);
const char *ds_repo_default_branch(const struct ds_repo *repo);

/*
 * The lock that whoever writes refs holds in a directory store, against a collector, from before it looks at them
 * until it closes *ret_fd (-1: the store needs none). While another process has it for itself this waits, having
 * called `waits` once, until `interrupted` becomes non-zero: -DS_E_INTERRUPTED. Both may be NULL.
 */
int ds_repo_lock(struct ds_repo *repo, const volatile int *interrupted, void (*waits)(void *ctx),
		 void *ctx, int *ret_fd);

/*
 * GET of an object of refs/, policy/ and hints/, where 403 counts as absent once dsfs.json was read with the same
 * credentials. Appends to `into`. -DS_E_ABSENT.
 */
int ds_repo_get_small(struct ds_repo *repo, const char *key, struct ds_buf *into,
		      struct ds_diag *reterr_diag);

#endif
