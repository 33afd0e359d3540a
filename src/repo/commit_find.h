/*
 * Finding chunks that are already in the store: in this commit, or by the advisory index of earlier ones (design, "Finding
 * what is already there"). A hit counts if refs and policy keep the version that it was found for, or if its pack is young; the
 * pack's table confirms the digest.
 *
 * Threads: one at a time. Blocks on the store. Trouble with the index is no error: it costs duplicates.
 */
#ifndef DS_REPO_COMMIT_FIND_H
#define DS_REPO_COMMIT_FIND_H

#include "repo/commit_packs.h"
#include "repo/commit_watch.h"
#include "repo/keep.h"

struct commit_find;

/* `base`: a version that is kept for sure (the head), or NULL. state_dir: index objects are kept there; NULL: nowhere. scratch: as
 * commit_scan's. Tables of packs that were not used lately are dropped when all together have more than tables_bytes_max: 56 bytes a
 * chunk; files are looked for in the order of their paths, in which they lie in packs. The watch is kept by reference. */
int commit_find_new(struct ds_repo *repo, struct commit_packs *packs, const struct ds_digest *base,
		    const char *state_dir, const char *scratch, uint64_t tables_bytes_max,
		    const struct commit_watch *watch, struct commit_find **ret_find);
struct commit_find *commit_find_free(struct commit_find *find);

/* Remembers where a chunk lies that this commit may refer to. `for_index`: the parent's manifest does not say so, and the index object
 * of this commit will. */
int commit_find_note(struct commit_find *find, const struct ds_digest *digest,
		     const struct commit_place *place, bool for_index);
/* The manifest that is being made names this place of a chunk; it names none. What was noted and is not named (the file changed under the
 * reader, or the winner of a race has it elsewhere) is nothing that a collector would mark for the version. */
void commit_find_refer(struct commit_find *find, const struct ds_digest *digest,
		       const struct commit_place *place);
void commit_find_refer_none(struct commit_find *find);
/* Whether it was noted; for a file of one chunk: with all that such a file's entry needs. */
bool commit_find_own(const struct commit_find *find, const struct ds_digest *digest,
		     bool is_whole_file, struct commit_place *ret_place);
/* Whether the parent's place of a chunk holds it, by the table of its pack: 1; 0: no, and from then on commit_find_has_lost;
 * or -ENOMEM. A pack that has moved, or that the store cannot tell of now, is believed in. */
int commit_find_check(struct commit_find *find, const struct ds_digest *digest,
		      uint32_t raw_len_bytes, const struct commit_place *place);
bool commit_find_has_lost(const struct commit_find *find);
/* By the index: 1: found, the place is filled in; 0: not; or an error that ends the commit (-ENOMEM, -DS_E_INTERRUPTED). */
int commit_find_stored(struct commit_find *find, const struct ds_digest *digest,
		       uint32_t raw_len_bytes, struct commit_place *ret_place);

/*
 * After the version is published: leaves the index object for what was noted, with the version where its manifest names the place,
 * without one else; it covers `left` ones. Merges eight of a level into one of the next. Best effort.
 */
void commit_find_publish(struct commit_find *find, const struct ds_digest *version,
			 const struct ds_digest *left, size_t left_n);

#endif
