/*
 * Reading what keep.c judges: the whole logs of policy and refs.
 *
 * The time is taken before anything is read, so that all that had appeared by then is seen; what appears while we read may be seen or
 * not, and the rules allow for that. A log is read up to the highest number that LIST gave, without a gap, and its chain is checked: what is damaged is
 * refused, since a collector must not take it for less than it was.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "repo/keep.h"
#include "repo/repo_internal.h"
#include "repo/sealed.h"
#include "util/mem.h"
#include "util/str.h"

#define POLICIES_MAX 100000u
#define ENTRIES_MAX  10000000u

static char *policy_key(uint64_t number)
{
	return ds_asprintf("policy/%010" PRIu64, number);
}

/* A limit that may be null. */
static int parse_limit(const json_t *object, const char *name, bool *ret_has, uint64_t *ret_value,
		       struct ds_diag *reterr_diag)
{
	*ret_has = !json_is_null(json_object_get(object, name));
	if (!*ret_has)
		return 0;
	return ds_json_u64(object, name, INT64_MAX, ret_value, reterr_diag);
}

static int parse_fields(struct ds_repo *repo, const json_t *object,
			const struct ds_policy_entry *before, struct ds_policy_entry *policy,
			struct ds_diag *reterr_diag)
{
	struct ds_uuid uuid;
	struct ds_digest previous;
	uint64_t number;
	int r;

	r = ds_json_uuid(object, "repository", &uuid, reterr_diag);
	if (r < 0)
		return r;
	if (memcmp(uuid.bytes, ds_repo_id(repo)->bytes, DS_UUID_LEN) != 0)
		return ds_diag_set(reterr_diag, -DS_E_MALFORMED, NULL,
				   "it is of another repository");
	r = ds_json_u64(object, "number", DS_ENTRY_NUMBER_MAX, &number, reterr_diag);
	if (r < 0)
		return r;
	if (number != policy->number)
		return ds_diag_set(reterr_diag, -DS_E_MALFORMED, NULL, "it has another number");
	if (policy->number > 1) {
		r = ds_json_digest(object, "previous", &previous, reterr_diag);
		if (r < 0)
			return r;
		if (before && !ds_digest_equal(&previous, &before->self))
			return ds_diag_set(reterr_diag, -DS_E_MALFORMED, NULL,
					   "it does not follow the entry before it");
	} else if (!json_is_null(json_object_get(object, "previous"))) {
		return ds_diag_set(reterr_diag, -DS_E_MALFORMED, NULL,
				   "`previous` of entry 1 is not null");
	}
	r = ds_json_uuid(object, "writer", &uuid, reterr_diag);
	if (r == 0)
		r = ds_json_time(object, "time", &policy->time, reterr_diag);
	if (r == 0)
		r = ds_json_u64(object, "grace_s", INT64_MAX, &policy->grace_s, reterr_diag);
	if (r == 0)
		r = parse_limit(object, "keep_entries", &policy->has_keep_entries,
				&policy->keep_entries, reterr_diag);
	if (r == 0)
		r = parse_limit(object, "keep_s", &policy->has_keep_s, &policy->keep_s,
				reterr_diag);
	if (r == 0 && before && ds_time_compare(policy->time, before->time) < 0)
		r = ds_diag_set(reterr_diag, -DS_E_MALFORMED, NULL,
				"it is older than the entry before it");
	return r;
}

int ds_policy_get(struct ds_repo *repo, uint64_t number, const struct ds_policy_entry *before,
		  struct ds_policy_entry *ret_policy, struct ds_diag *reterr_diag)
{
	_ds_cleanup_buf_ struct ds_buf buf = DS_BUF_INIT(DS_SEALED_MAX);
	_ds_cleanup_free_ char *key = policy_key(number);
	struct ds_policy_entry policy = {.number = number};
	json_t *object;
	int r;

	if (!key)
		return -ENOMEM;
	r = ds_repo_get_small(repo, key, &buf, reterr_diag);
	if (r == -DS_E_LIMIT)
		return ds_diag_set(reterr_diag, -DS_E_MALFORMED, key, "over 64 KiB");
	if (r < 0)
		return r;
	r = ds_sealed_parse(buf.data, buf.len_bytes, key, &object, &policy.self, reterr_diag);
	if (r < 0)
		return r;
	r = parse_fields(repo, object, before, &policy, reterr_diag);
	json_decref(object);
	if (r < 0)
		return ds_diag_set(reterr_diag, r, key, NULL);
	*ret_policy = policy;
	return 0;
}

int ds_policy_load(struct ds_repo *repo, struct ds_policy_entry **ret_policies,
		   size_t *ret_policies_n, struct ds_diag *reterr_diag)
{
	struct ds_policy_entry *policies = NULL, *grown;
	size_t n = 0, capacity_n = 0;
	int r;

	for (;;) {
		if (n == capacity_n) {
			capacity_n = capacity_n ? 2 * capacity_n : 4;
			grown = ds_reallocarray(policies, capacity_n, sizeof(*policies));
			if (!grown) {
				r = -ENOMEM;
				break;
			}
			policies = grown;
		}
		r = n == POLICIES_MAX
			    ? ds_diag_set(reterr_diag, -DS_E_LIMIT, "policy/", "too many entries")
			    : ds_policy_get(repo, n + 1, n ? &policies[n - 1] : NULL, &policies[n],
					    reterr_diag);
		if (r < 0)
			break;
		n++;
	}
	if (r != -DS_E_ABSENT) {
		ds_free(policies);
		return r;
	}
	ds_diag_clear(reterr_diag);
	*ret_policies = policies;
	*ret_policies_n = n;
	return 0;
}

/* All entries of all logs; `heads` give how many each has. */
struct logs {
	struct ds_repo *repo;
	struct ds_ref_entry *entries;
	size_t entries_n;
	struct ds_diag *diag;
};

static char *entry_key(void *ctx, size_t i)
{
	const struct ds_ref_entry *entry = &((struct logs *)ctx)->entries[i];

	return ds_ref_key(entry->kind, entry->name, entry->number);
}

static int entry_each(void *ctx, size_t i, int result, const struct ds_buf *buf,
		      const struct ds_diag *diag)
{
	struct logs *logs = ctx;
	struct ds_ref_entry *entry = &logs->entries[i];
	char name[DS_REF_NAME_MAX + 1];

	if (result == -DS_E_ABSENT || result == -DS_E_LIMIT) {
		_ds_cleanup_free_ char *key = entry_key(ctx, i);

		return ds_diag_set(logs->diag, -DS_E_MALFORMED, key,
				   result == -DS_E_LIMIT ? "over 64 KiB"
							 : "it is missing, later ones are there");
	}
	if (result < 0) {
		ds_diag_copy(logs->diag, diag);
		return result;
	}
	memcpy(name, entry->name, sizeof(name));
	return ds_ref_entry_parse(logs->repo, entry->kind, name, entry->number, buf->data,
				  buf->len_bytes, entry, logs->diag);
}

int ds_ref_chain_check(const struct ds_ref_entry *before, const struct ds_ref_entry *entry,
		       struct ds_diag *reterr_diag)
{
	_ds_cleanup_free_ char *key = NULL;
	const char *fault = NULL;

	if (!ds_digest_equal(&entry->previous, &before->self))
		fault = "it does not follow the entry before it";
	else if (ds_time_compare(entry->time, before->time) < 0)
		fault = "it is older than the entry before it";
	if (!fault)
		return 0;
	key = ds_ref_key(entry->kind, entry->name, entry->number);
	return ds_diag_set(reterr_diag, -DS_E_MALFORMED, key, "%s", fault);
}

static int logs_load(struct logs *logs, const struct ds_ref_list *heads)
{
	struct ds_get_many many = {.len_max = DS_SEALED_MAX,
				   .key = entry_key,
				   .each = entry_each,
				   .ctx = logs};
	size_t n = 0;
	int r;

	for (size_t i = 0; i < heads->heads_n; i++) {
		if (heads->heads[i].number > ENTRIES_MAX - n)
			return ds_diag_set(logs->diag, -DS_E_LIMIT, "refs/", "too many entries");
		n += (size_t)heads->heads[i].number;
	}
	if (n == 0)
		return 0;
	logs->entries = ds_calloc(n, sizeof(*logs->entries));
	if (!logs->entries)
		return -ENOMEM;
	for (size_t i = 0; i < heads->heads_n; i++) {
		for (uint64_t k = 1; k <= heads->heads[i].number; k++) {
			struct ds_ref_entry *entry = &logs->entries[logs->entries_n++];

			entry->kind = heads->heads[i].kind;
			entry->number = k;
			memcpy(entry->name, heads->heads[i].name, sizeof(entry->name));
		}
	}
	many.n = n;
	r = ds_repo_get_many(logs->repo, &many);
	for (size_t i = 1; r == 0 && i < n; i++) {
		if (logs->entries[i].number > 1)
			r = ds_ref_chain_check(&logs->entries[i - 1], &logs->entries[i],
					       logs->diag);
	}
	return r;
}

int ds_keep_load(struct ds_repo *repo, struct ds_keep **ret_keep, struct ds_time *ret_now,
		 struct ds_diag *reterr_diag)
{
	_ds_cleanup_free_ struct ds_policy_entry *policies = NULL;
	struct logs logs = {.repo = repo, .diag = reterr_diag};
	struct ds_ref_list heads = {0};
	struct ds_keep_input input = {0};
	struct ds_keep *keep = NULL;
	struct ds_time now;
	int r;

	r = ds_store_now(ds_repo_store(repo), &now, reterr_diag);
	if (r == 0)
		r = ds_policy_load(repo, &policies, &input.policies_n, reterr_diag);
	if (r == 0)
		r = ds_refs_list(repo, &heads, reterr_diag);
	if (r == 0)
		r = logs_load(&logs, &heads);
	if (r == 0) {
		input.policies = policies;
		input.entries = logs.entries;
		input.entries_n = logs.entries_n;
		r = ds_keep_new(&input, now, &keep);
	}
	ds_ref_list_release(&heads);
	ds_free(logs.entries);
	if (r < 0)
		return r;
	*ret_keep = keep;
	if (ret_now)
		*ret_now = now;
	return 0;
}
