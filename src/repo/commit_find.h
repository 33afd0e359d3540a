/*
 * Finding chunks that are already in the store: in this commit, or by the advisory index of earlier ones (design, "Finding
 * what is already there"). A hit counts if refs and policy keep the version that it was found for, or if its pack is young; the
 * pack's table confirms the digest.
 *
 * Threads: one at a time. Blocks on the store.
 */
#ifndef DS_REPO_COMMIT_FIND_H
#define DS_REPO_COMMIT_FIND_H

#include "repo/commit_packs.h"
#include "repo/keep.h"

struct commit_find;

int commit_find_new(struct ds_repo *repo, struct commit_packs *packs,
		    struct commit_find **ret_find);
struct commit_find *commit_find_free(struct commit_find *find);

/* Remembers what this commit put or took. */
int commit_find_note(struct commit_find *find, const struct ds_digest *digest,
		     const struct commit_place *place);
/* 1: found, the place is filled in; 0: not; or an error that ends the commit (-ENOMEM, -DS_E_INTERRUPTED). Trouble with the index is
 * no error. `ret_is_own`: it was put or taken by this commit already. */
int commit_find_has(struct commit_find *find, const struct ds_digest *digest,
		    uint32_t raw_len_bytes, struct commit_place *ret_place, bool *ret_is_own);

/*
 * After the version is published: leaves the index object for what it put, covering `left` ones; merges eight of a level into
 * one of the next. Best effort.
 */
void commit_find_publish(struct commit_find *find, const struct ds_digest *version,
			 const struct ds_digest *left, size_t left_n);

#endif
