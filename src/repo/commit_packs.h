/*
 * The packs of a commit: filled in the order of calls, uploaded several at once within a memory budget, and known afterwards by an
 * index, whether they are new or were there before.
 *
 * Threads: one at a time; uploads run on the store's threads.
 */
#ifndef DS_REPO_COMMIT_PACKS_H
#define DS_REPO_COMMIT_PACKS_H

#include "codec/pack.h"
#include "repo/commit_tree.h"
#include "repo/commit_watch.h"

struct commit_pack {
	struct ds_digest id; /* zero while it is being filled */
	uint64_t size_bytes;
	uint32_t chunks_n;
	uint64_t raw_bytes;
	bool is_new;		 /* this commit put it */
	uint32_t builder_number; /* in the manifest that is being built; 0: not there yet */
};

struct commit_packs;

/* The watch is kept by reference. */
int commit_packs_new(struct ds_repo *repo, enum ds_pack_kind kind, uint64_t memory_bytes,
		     const struct commit_watch *watch, struct commit_packs **ret_packs);
/* Waits for what is on its way. */
struct commit_packs *commit_packs_free(struct commit_packs *packs);
/* The commit failed: gives what is on its way a moment, and leaves an advisory index object for what has arrived. NULL is
 * allowed. */
void commit_packs_abandon(struct commit_packs *packs);

/* Appends a chunk to the pack that is open; a full pack is closed and its upload starts: may block until others are
 * done. Errors of earlier uploads come back here. */
int commit_packs_add(struct commit_packs *packs, const struct ds_digest *digest, const void *stored,
		     uint32_t stored_len_bytes, uint32_t raw_len_bytes,
		     struct commit_place *ret_place);
/* Closes the open pack, if it has any chunk, and waits for all uploads. */
int commit_packs_flush(struct commit_packs *packs);
/* The first error of any upload (also -DS_E_INTERRUPTED), with its diag; 0. */
int commit_packs_result(struct commit_packs *packs, struct ds_diag *reterr_diag);

/* Opens a pack if none is, or if the open one has less than `bytes` left below its limit; from now on the pack is not closed by
 * commit_packs_add, so that what follows lies in one. Gives its index. */
int commit_packs_make_room(struct commit_packs *packs, uint64_t bytes, uint32_t *ret_pack);

/* A pack that is there already; gives its index, the same for the same id. */
int commit_packs_known(struct commit_packs *packs, const struct ds_digest *id, uint64_t size_bytes,
		       uint32_t chunks_n, uint64_t raw_bytes, uint32_t *ret_pack);
/* By index; valid until the next call that adds. */
struct commit_pack *commit_packs_get(struct commit_packs *packs, uint32_t pack);
uint32_t commit_packs_count(const struct commit_packs *packs);
/* Of packs that have arrived. */
uint64_t commit_packs_uploaded_bytes(struct commit_packs *packs);
/* Ids of the advisory index objects that were left for uploads, for the versioned one to cover. */
const struct ds_digest *commit_packs_left(const struct commit_packs *packs, size_t *ret_n);

/* HEAD of every new pack: there, and of its size. -DS_E_CORRUPT with the key: the store lied (A25). */
int commit_packs_look(struct commit_packs *packs, struct ds_diag *reterr_diag);

#endif
