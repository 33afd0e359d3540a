/*
 * Local state of commits: where it lies, and a private temporary directory that a killed commit's successor cleans up.
 *
 * Blocks on the local disk.
 */
#ifndef DS_REPO_COMMIT_STATE_H
#define DS_REPO_COMMIT_STATE_H

#include "util/diag.h"

struct commit_state {
	char *dir;   /* NULL: none is kept */
	char *tmp;   /* private, made by init */
	int lock_fd; /* held while tmp is ours */
};

/* wanted NULL: /var/cache/dsfs for root, else $XDG_CACHE_HOME/dsfs or ~/.cache/dsfs; "": none. A directory that cannot be
 * written is as none. The temporary directory is made in it, or in $TMPDIR or /var/tmp. */
int commit_state_init(struct commit_state *state, const char *wanted, struct ds_diag *reterr_diag);
void commit_state_release(struct commit_state *state);

#endif
