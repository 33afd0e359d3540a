/*
 * Refs: branches (numbered logs of entries) and tags (schema/README.md, "Refs").
 *
 * Committing is creating the next number by put-if-absent; exactly one writer can. Nothing is ever deleted. The calls block.
 * Threads: any. Besides the store's errors: -DS_E_NO_VERSION (no such branch, tag or entry), -DS_E_CLOSED (deleted), -DS_E_CONFLICT
 * (another writer was first), -DS_E_MALFORMED.
 */
#ifndef DS_REPO_REFS_H
#define DS_REPO_REFS_H

#include "repo/repo.h"

enum ds_ref_kind { DS_REF_BRANCH, DS_REF_TAG };

#define DS_REF_NAME_MAX 200 /* bytes, percent-encoded */

struct ds_ref_entry {
	enum ds_ref_kind kind;
	char name[DS_REF_NAME_MAX + 1];
	uint64_t number; /* from 1 */
	bool is_deleted;
	struct ds_digest version;  /* zero if deleted */
	struct ds_digest previous; /* zero for number 1 */
	struct ds_uuid writer;
	struct ds_time time;
	struct ds_digest self; /* digest of the whole bytes: the next entry's `previous` */
};

/* -DS_E_USAGE with the reason. */
int ds_ref_name_check(const char *name, struct ds_diag *reterr_diag);
/* "refs/branches/NAME/0000000042" into a new string. */
char *ds_ref_key(enum ds_ref_kind kind, const char *name, uint64_t number);

/* Encoding fills entry->self. Parsing checks kind, name, number and repository against what is expected. */
int ds_ref_entry_encode(const struct ds_repo *repo, struct ds_ref_entry *entry, struct ds_buf *buf);
int ds_ref_entry_parse(const struct ds_repo *repo, enum ds_ref_kind kind, const char *name,
		       uint64_t number, const void *data, size_t len_bytes,
		       struct ds_ref_entry *ret_entry, struct ds_diag *reterr_diag);

/* Entry `number`; -DS_E_NO_VERSION. */
int ds_ref_get(struct ds_repo *repo, enum ds_ref_kind kind, const char *name, uint64_t number,
	       struct ds_ref_entry *ret_entry, struct ds_diag *reterr_diag);
/* The highest entry, which may say deleted; -DS_E_NO_VERSION if there is none. By the hint, doubling and bisection. */
int ds_ref_head(struct ds_repo *repo, enum ds_ref_kind kind, const char *name,
		struct ds_ref_entry *ret_entry, struct ds_diag *reterr_diag);
/*
 * Creates the entry after `head` (NULL: the first). Takes version or is_deleted and writer from `wanted`; number, previous and time (the
 * store's clock, never before head's) are set here. The entry is read back: a reply that was lost is cleared up by looking for our
 * `writer`, and what was answered well and is not there is -DS_E_CORRUPT. -DS_E_CONFLICT: somebody else has that number. On success the hint is written too (best effort, branches only).
 * `not_after`: if the store's clock is later than this when the PUT is about to be signed, or if the store does not take that signature any
 * more and the entry is not found there: -DS_E_LATE ({0}: no limit).
 */
int ds_ref_append(struct ds_repo *repo, const struct ds_ref_entry *head,
		  const struct ds_ref_entry *wanted, struct ds_time not_after,
		  struct ds_ref_entry *ret_entry, struct ds_diag *reterr_diag);
/*
 * Whether a new tag or a new branch may have this name: -DS_E_TAKEN if a tag has or had it, or for a tag a branch, since selectors try tags before
 * branches. For people: another writer may take it at the same moment, and readers know what to do with both.
 */
int ds_ref_check_new(struct ds_repo *repo, enum ds_ref_kind kind, const char *name,
		     struct ds_diag *reterr_diag);
/* Newest entry at or before a time, by bisection; -DS_E_NO_VERSION if all are later. */
int ds_ref_at(struct ds_repo *repo, const char *branch, struct ds_time time,
	      struct ds_ref_entry *ret_entry, struct ds_diag *reterr_diag);

struct ds_ref_list {
	struct ds_ref_entry
		*heads; /* branches, then tags, each in byte order of names; deleted ones too */
	size_t heads_n;
};
/* Needs LIST. */
int ds_refs_list(struct ds_repo *repo, struct ds_ref_list *ret_list, struct ds_diag *reterr_diag);
void ds_ref_list_release(struct ds_ref_list *list);

/* What a selector names. */
struct ds_resolved {
	struct ds_digest version;
	struct ds_ref_entry entry; /* the branch entry or tag; number 0 if found by id only */
};
/*
 * selector NULL or "": head of the default branch. Order of kinds: schema/README.md. The diag of
 * -DS_E_NO_VERSION lists what there is (branches, tags, newest numbers), of -DS_E_AMBIGUOUS the ids that fit.
 */
int ds_resolve(struct ds_repo *repo, const char *selector, struct ds_resolved *ret_resolved,
	       struct ds_diag *reterr_diag);

#endif
