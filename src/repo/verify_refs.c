/*
 * All logs: every entry for itself, its place in the chain, no gaps; and which versions must be whole.
 *
 * An entry that is damaged does not accuse the next one: the chain is checked between entries that are whole.
 */
#include <stdio.h>
#include <string.h>

#include "repo/sealed.h"
#include "repo/verify_internal.h"
#include "util/mem.h"

#define ENTRIES_MAX 10000000u

struct logs {
	struct verify *verify;
	struct ds_ref_entry *entries; /* logs one after the other, from number 1 without gaps */
	bool *whole;
	size_t n;
	size_t damaged_n;
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
	_ds_cleanup_free_ char *key = entry_key(ctx, i);
	char name[DS_REF_NAME_MAX + 1];
	struct ds_diag parse_diag = {0};
	int r;

	if (!key)
		return ds_verify_fail(logs->verify, -ENOMEM, NULL);
	logs->verify->result.objects_n++;
	if (result == -DS_E_ABSENT) {
		ds_verify_find(logs->verify, key, "missing, though later entries are there");
		return 0;
	}
	if (result == -DS_E_LIMIT) {
		ds_verify_find(logs->verify, key, "over 64 KiB");
		return 0;
	}
	if (result < 0)
		return ds_verify_fail(logs->verify, result, diag);
	memcpy(name, entry->name, sizeof(name));
	r = ds_ref_entry_parse(logs->verify->repo, entry->kind, name, entry->number, buf->data,
			       buf->len_bytes, entry, &parse_diag);
	if (ds_verify_is_damage(r))
		ds_verify_find_diag(logs->verify, key, r, &parse_diag);
	else if (r < 0)
		return ds_verify_fail(logs->verify, r, &parse_diag);
	logs->whole[i] = r == 0;
	return 0;
}

static int check_chains(struct logs *logs)
{
	for (size_t i = 0; i < logs->n; i++) {
		_ds_cleanup_free_ char *key = NULL;
		struct ds_diag diag = {0};
		int r;

		logs->damaged_n += !logs->whole[i];
		if (logs->entries[i].number == 1 || !logs->whole[i] || !logs->whole[i - 1])
			continue;
		r = ds_ref_chain_check(&logs->entries[i - 1], &logs->entries[i], &diag);
		if (r == 0)
			continue;
		key = entry_key(logs, i);
		if (!key)
			return ds_verify_fail(logs->verify, -ENOMEM, NULL);
		ds_verify_find_diag(logs->verify, key, r, &diag);
		logs->damaged_n++;
	}
	return 0;
}

/* From LIST: one log after the other, up to the highest number that is there. */
static int list_entries(struct logs *logs)
{
	struct ds_store_listing listing = {0};
	struct ds_store_req req = {.op = DS_STORE_LIST, .key = "refs/", .listing = &listing};
	size_t capacity_n = 0;
	int r;

	r = ds_store_perform(ds_repo_store(logs->verify->repo), &req);
	if (r < 0)
		r = ds_verify_fail(logs->verify, r, &req.diag);
	for (size_t i = 0; r == 0 && i < listing.objects_n; i++) {
		struct ds_ref_entry next = {0}, *grown;
		const struct ds_ref_entry *last = logs->n ? &logs->entries[logs->n - 1] : NULL;
		uint64_t number = 0;

		r = ds_ref_key_parse(listing.objects[i].key, &next.kind, next.name, &number);
		if (r == -ENOENT) {
			r = 0;
			continue;
		}
		if (r < 0)
			break;
		if (last && last->kind == next.kind && strcmp(last->name, next.name) == 0)
			next.number = last->number;
		/* A gap is filled, and found missing; but one from a wild number would never end. */
		if (number - next.number > listing.objects_n + 1000) {
			ds_verify_find(logs->verify, listing.objects[i].key,
				       "its number is far beyond the entry before it");
			logs->damaged_n++;
			continue;
		}
		while (r == 0 && next.number < number) {
			if (logs->n == capacity_n) {
				capacity_n = capacity_n ? 2 * capacity_n : 64;
				grown = capacity_n > ENTRIES_MAX
						? NULL
						: ds_reallocarray(logs->entries, capacity_n,
								  sizeof(*grown));
				if (!grown) {
					r = -ENOMEM;
					break;
				}
				logs->entries = grown;
			}
			next.number++;
			logs->entries[logs->n++] = next;
		}
	}
	ds_store_listing_release(&listing);
	if (r < 0)
		return ds_verify_fail(logs->verify, r, NULL);
	logs->whole = ds_calloc(logs->n + 1, sizeof(*logs->whole));
	return logs->whole ? 0 : ds_verify_fail(logs->verify, -ENOMEM, NULL);
}

static int check_policies(struct verify *verify, struct ds_policy_entry **ret_policies,
			  size_t *ret_n, bool *ret_whole)
{
	struct ds_store_listing listing = {0};
	struct ds_store_req req = {.op = DS_STORE_LIST, .key = "policy/", .listing = &listing};
	struct ds_policy_entry *policies = NULL;
	uint64_t last = 0, number;
	bool is_before = false;
	int r;

	*ret_whole = true;
	r = ds_store_perform(ds_repo_store(verify->repo), &req);
	if (r < 0)
		r = ds_verify_fail(verify, r, &req.diag);
	for (size_t i = 0; r == 0 && i < listing.objects_n; i++) {
		number = ds_entry_number_parse(listing.objects[i].key + strlen("policy/"));
		last = number > 0 && number <= last + 1000 ? number : last;
	}
	if (r == 0)
		policies = ds_calloc((size_t)last + 1, sizeof(*policies));
	if (r == 0 && !policies)
		r = ds_verify_fail(verify, -ENOMEM, NULL);
	for (number = 1; r == 0 && number <= last; number++) {
		struct ds_policy_entry *policy = &policies[number - 1];
		struct ds_diag diag = {0};
		char key[32];

		snprintf(key, sizeof(key), "policy/%010llu", (unsigned long long)number);
		r = ds_policy_get(verify->repo, number, is_before ? policy - 1 : NULL, policy,
				  &diag);
		verify->result.objects_n++;
		is_before = r == 0;
		if (r == 0)
			continue;
		*ret_whole = false;
		if (r == -DS_E_ABSENT)
			ds_verify_find(verify, key, "missing, though later entries are there");
		else if (ds_verify_is_damage(r))
			ds_verify_find_diag(verify, key, r, &diag);
		else
			break;
		r = 0;
	}
	ds_store_listing_release(&listing);
	if (r < 0) {
		ds_free(policies);
		return ds_verify_fail(verify, r, NULL);
	}
	*ret_policies = policies;
	*ret_n = (size_t)last;
	return 0;
}

static int name_version(struct verify *verify, const struct ds_digest *id)
{
	static char mark;

	if (ds_map_put(verify->named, id->bytes, DS_DIGEST_LEN, &mark, NULL) < 0)
		return ds_verify_fail(verify, -ENOMEM, NULL);
	return 0;
}

/* Kept versions must be whole; where the logs are damaged, all that they name. */
static int name_versions(struct logs *logs, const struct ds_policy_entry *policies,
			 size_t policies_n, bool policies_whole)
{
	struct verify *verify = logs->verify;
	struct ds_keep_input input = {.entries = logs->entries,
				      .entries_n = logs->n,
				      .policies = policies,
				      .policies_n = policies_n};
	struct ds_keep *keep = NULL;
	struct ds_diag diag = {0};
	struct ds_time now;
	int r;

	r = ds_store_now(ds_repo_store(verify->repo), &now, &diag);
	if (r < 0)
		return ds_verify_fail(verify, r, &diag);
	if (logs->damaged_n == 0 && policies_whole) {
		r = ds_keep_new(&input, now, &keep);
		if (r < 0)
			return ds_verify_fail(verify, r, NULL);
	}
	for (size_t i = 0; r == 0 && i < logs->n; i++) {
		const struct ds_ref_entry *entry = &logs->entries[i];

		if (!logs->whole[i] || entry->is_deleted)
			continue;
		if (!keep || ds_keep_is_base(keep, &entry->version))
			r = name_version(verify, &entry->version);
	}
	ds_keep_free(keep);
	return r;
}

int ds_verify_refs(struct verify *verify)
{
	_ds_cleanup_free_ struct ds_policy_entry *policies = NULL;
	struct logs logs = {.verify = verify};
	struct ds_get_many many = {.len_max = DS_SEALED_MAX,
				   .key = entry_key,
				   .each = entry_each,
				   .ctx = &logs};
	size_t policies_n = 0;
	bool policies_whole;
	int r;

	r = check_policies(verify, &policies, &policies_n, &policies_whole);
	if (r == 0)
		r = list_entries(&logs);
	if (r == 0) {
		many.n = logs.n;
		r = ds_repo_get_many(verify->repo, &many);
		if (r < 0)
			r = ds_verify_fail(verify, r, NULL);
	}
	if (r == 0)
		r = check_chains(&logs);
	if (r == 0)
		r = name_versions(&logs, policies, policies_n, policies_whole);
	ds_free(logs.entries);
	ds_free(logs.whole);
	return r;
}
