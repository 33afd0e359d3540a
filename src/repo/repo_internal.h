/*
 * For the files of this layer only.
 */
#ifndef DS_REPO_INTERNAL_H
#define DS_REPO_INTERNAL_H

#include "repo/refs.h"
#include "repo/repo.h"

#define DS_BRANCH_DEFAULT     "main"
#define DS_ENTRY_NUMBER_MAX   UINT64_C(9999999999) /* ten digits */
#define DS_ENTRY_NUMBER_CHARS 10

/*
 * GETs n small objects, several at a time, as ds_repo_get_small does. `key` gives a new string (NULL: out of memory).
 * `each` is called in the caller's thread, in any order, with the result of each (also -DS_E_ABSENT and other errors, with the diag)
 * and its bytes; what it returns, if negative, ends the whole. Blocks.
 */
struct ds_get_many {
	size_t n;
	size_t len_max; /* of one object; larger ones: -DS_E_LIMIT */
	char *(*key)(void *ctx, size_t i);
	int (*each)(void *ctx, size_t i, int result, const struct ds_buf *buf,
		    const struct ds_diag *diag);
	void *ctx;
};
int ds_repo_get_many(struct ds_repo *repo, const struct ds_get_many *many);

/* Ten digits and the end of the string; 0 if it is anything else. */
uint64_t ds_entry_number_parse(const char *text);

/* "refs/branches/NAME/0000000042" to kind, name (room for DS_REF_NAME_MAX + 1) and number; -ENOENT for anything else that lies there
 * (signatures, what later formats add); -ENOMEM. */
int ds_ref_key_parse(const char *key, enum ds_ref_kind *ret_kind, char *ret_name,
		     uint64_t *ret_number);

/* Whether `entry` follows `before` in its log: chain and times. -DS_E_MALFORMED. */
int ds_ref_chain_check(const struct ds_ref_entry *before, const struct ds_ref_entry *entry,
		       struct ds_diag *reterr_diag);

/* Policy entry `number`; chained to `before`, if that is not NULL. -DS_E_ABSENT behind the last. */
struct ds_policy_entry;
int ds_policy_get(struct ds_repo *repo, uint64_t number, const struct ds_policy_entry *before,
		  struct ds_policy_entry *ret_policy, struct ds_diag *reterr_diag);

static inline void ds_diag_copy(struct ds_diag *to, const struct ds_diag *from)
{
	if (to)
		*to = *from;
}

#endif
