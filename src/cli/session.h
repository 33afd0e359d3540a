/*
 * What the reading commands share: a repository opened from the command line's words.
 */
#ifndef DS_CLI_SESSION_H
#define DS_CLI_SESSION_H

#include "cli/cli.h"
#include "dsfs/dsfs.h"
#include "repo/locator.h"
#include "repo/repo.h"
#include "repo/view.h"

/* Opens REPO[@V] for the layers' own calls. The locator is released by the caller. Errors are in call->diag. */
int cli_open_repo(struct cli_call *call, const char *text, struct ds_locator *ret_locator,
		  struct ds_repo **ret_repo);
/* Opens REPO[@V] through libdsfs, with the user's cache where it can be had. Errors are in call->error or call->diag. */
int cli_open_library(struct cli_call *call, const char *text, struct ds_locator *ret_locator,
		     struct dsfs_repository **ret_repository);

/* A version that is read through a cache. */
struct cli_reading {
	struct ds_repo *repo;
	struct ds_cache *cache;
	struct ds_fetcher *fetcher;
	struct ds_record *record;
	struct ds_view *view;
};
/*
 * The caller has opened repo and cache. `inflight_bytes`: of the fetcher, 0: its own; `is_blocking`, `timeout_ms`: of the view. On an
 * error too, cli_reading_close frees what there is, repo and cache included.
 */
int cli_reading_open(struct cli_reading *reading, const char *selector, uint64_t inflight_bytes,
		     bool is_blocking, uint64_t timeout_ms, struct ds_diag *reterr_diag);
void cli_reading_close(struct cli_reading *reading);

/* Says that the repository `typed` is waited for (ds_repo_lock). */
void cli_tell_locked(const struct cli_call *call, const char *typed);

/*
 * A path of a version as it was typed, relative to the root: leading, trailing and double slashes and "." do no harm. New
 * string or NULL.
 */
char *cli_clean_path(const char *path);
/* Of a list that ends with NULL. */
void cli_paths_free(char **paths);
/* The cache keeps up to three descriptors for each open image, as far as the limit allows when it is opened. */
void cli_raise_files_limit(void);

#endif
