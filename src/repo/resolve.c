/*
 * Selectors. Each kind is tried in turn: 0 found, -DS_E_NO_VERSION the next kind, anything else ends it.
 */
#include <inttypes.h>
#include <string.h>

#include "repo/record.h"
#include "repo/refs.h"
#include "repo/repo_internal.h"
#include "util/mem.h"
#include "util/str.h"

#define ID_PREFIX_MIN	8u
#define ID_LIST_MAX	100u /* rows that are looked at for an ambiguous prefix */
#define DAY_NS		(INT64_C(86400) * (int64_t)DS_NS_PER_S)
#define TEXT_MAX	300u /* of what there is; a diag holds little more */
#define TEXT_REF_MAX	60u
#define VERSIONS_PREFIX "versions/"

static int found(const struct ds_ref_entry *entry, struct ds_resolved *ret_resolved,
		 struct ds_diag *reterr_diag)
{
	if (entry->is_deleted && entry->kind == DS_REF_TAG)
		return ds_diag_set(reterr_diag, -DS_E_CLOSED, entry->name, "this tag was deleted");
	if (entry->is_deleted)
		return ds_diag_set(reterr_diag, -DS_E_CLOSED, entry->name,
				   "entry %" PRIu64 " closed this branch", entry->number);
	ret_resolved->version = entry->version;
	ret_resolved->entry = *entry;
	return 0;
}

static bool all_of(const char *text, const char *set)
{
	return *text && text[strspn(text, set)] == '\0';
}

static int try_entry(struct ds_repo *repo, const char *branch, const char *number_text,
		     struct ds_resolved *ret_resolved, struct ds_diag *reterr_diag)
{
	struct ds_ref_entry entry;
	uint64_t number;
	int r;

	if (ds_parse_u64(number_text, DS_ENTRY_NUMBER_MAX, &number) < 0)
		return -DS_E_NO_VERSION;
	r = ds_ref_get(repo, DS_REF_BRANCH, branch, number, &entry, reterr_diag);
	return r < 0 ? r : found(&entry, ret_resolved, reterr_diag);
}

/* "42" */
static int try_number(struct ds_repo *repo, const char *selector, struct ds_resolved *ret_resolved,
		      struct ds_diag *reterr_diag)
{
	if (!all_of(selector, "0123456789"))
		return -DS_E_NO_VERSION;
	return try_entry(repo, ds_repo_default_branch(repo), selector, ret_resolved, reterr_diag);
}

/* "main:42" */
static int try_branch_number(struct ds_repo *repo, const char *selector,
			     struct ds_resolved *ret_resolved, struct ds_diag *reterr_diag)
{
	const char *colon = strrchr(selector, ':');
	_ds_cleanup_free_ char *branch = NULL;
	int r;

	if (!colon || !all_of(colon + 1, "0123456789"))
		return -DS_E_NO_VERSION;
	branch = ds_strndup(selector, (size_t)(colon - selector));
	if (!branch)
		return -ENOMEM;
	r = ds_ref_name_check(branch, NULL);
	if (r < 0)
		return r == -ENOMEM ? r : -DS_E_NO_VERSION;
	return try_entry(repo, branch, colon + 1, ret_resolved, reterr_diag);
}

static int try_name(struct ds_repo *repo, enum ds_ref_kind kind, const char *name,
		    struct ds_resolved *ret_resolved, struct ds_diag *reterr_diag)
{
	struct ds_ref_entry entry;
	int r;

	r = ds_ref_name_check(name, NULL);
	if (r < 0)
		return r == -ENOMEM ? r : -DS_E_NO_VERSION;
	r = ds_ref_head(repo, kind, name, &entry, reterr_diag);
	return r < 0 ? r : found(&entry, ret_resolved, reterr_diag);
}

static int try_tag(struct ds_repo *repo, const char *selector, struct ds_resolved *ret_resolved,
		   struct ds_diag *reterr_diag)
{
	return try_name(repo, DS_REF_TAG, selector, ret_resolved, reterr_diag);
}

static int try_branch(struct ds_repo *repo, const char *selector, struct ds_resolved *ret_resolved,
		      struct ds_diag *reterr_diag)
{
	return try_name(repo, DS_REF_BRANCH, selector, ret_resolved, reterr_diag);
}

static int try_date(struct ds_repo *repo, const char *selector, struct ds_resolved *ret_resolved,
		    struct ds_diag *reterr_diag)
{
	struct ds_ref_entry entry;
	struct ds_time time;
	bool is_date;
	int r;

	if (ds_time_parse(selector, &time, &is_date) < 0)
		return -DS_E_NO_VERSION;
	if (is_date)
		time = ds_time_add_ns(time, DAY_NS - 1);
	r = ds_ref_at(repo, ds_repo_default_branch(repo), time, &entry, reterr_diag);
	return r < 0 ? r : found(&entry, ret_resolved, reterr_diag);
}

/* All 64 digits need no LIST. */
static int try_whole_id(struct ds_repo *repo, const struct ds_digest *id,
			struct ds_resolved *ret_resolved, struct ds_diag *reterr_diag)
{
	char key[DS_RECORD_KEY_MAX];
	struct ds_store_req req = {.op = DS_STORE_HEAD, .key = ds_record_key(id, key)};
	int r;

	r = ds_store_perform(ds_repo_store(repo), &req);
	if (r == -DS_E_ABSENT)
		return -DS_E_NO_VERSION;
	if (r < 0) {
		ds_diag_copy(reterr_diag, &req.diag);
		return r;
	}
	ret_resolved->version = *id;
	return 0;
}

/* Collects ids; 0, or -DS_E_AMBIGUOUS with the ids that fit. */
static int pick_id(const struct ds_store_listing *listing, const char *selector,
		   struct ds_digest *ret_id, size_t *ret_n, struct ds_diag *reterr_diag)
{
	_ds_cleanup_buf_ struct ds_buf text = DS_BUF_INIT(TEXT_MAX);
	struct ds_digest id;
	size_t n = 0;

	for (size_t i = 0; i < listing->objects_n; i++) {
		const char *name = listing->objects[i].key + strlen(VERSIONS_PREFIX);

		if (ds_digest_parse(name, &id) < 0)
			continue; /* a signature */
		if (n++ == 0)
			*ret_id = id;
		if (text.len_bytes + TEXT_REF_MAX < TEXT_MAX)
			ds_buf_appendf(&text, "%s%.20s", n > 1 ? ", " : "", name);
		else if (!ds_ends_with(ds_buf_str(&text), " ..."))
			ds_buf_append_str(&text, " ...");
	}
	*ret_n = n;
	if (n > 1)
		return ds_diag_set(reterr_diag, -DS_E_AMBIGUOUS, selector, "these begin so: %s",
				   ds_buf_str(&text));
	return 0;
}

static int try_id(struct ds_repo *repo, const char *selector, struct ds_resolved *ret_resolved,
		  struct ds_diag *reterr_diag)
{
	char prefix[sizeof(VERSIONS_PREFIX) + DS_DIGEST_TEXT_MAX] = VERSIONS_PREFIX;
	struct ds_store_listing listing = {0};
	struct ds_store_req req = {.op = DS_STORE_LIST,
				   .key = prefix,
				   .listing = &listing,
				   .list_max_n = ID_LIST_MAX};
	size_t len = strlen(selector), n = 0;
	struct ds_digest id;
	int r;

	if (len < ID_PREFIX_MIN || len >= DS_DIGEST_TEXT_MAX ||
	    !all_of(selector, "0123456789abcdef"))
		return -DS_E_NO_VERSION;
	if (ds_digest_parse(selector, &id) == 0)
		return try_whole_id(repo, &id, ret_resolved, reterr_diag);
	memcpy(prefix + strlen(VERSIONS_PREFIX), selector, len + 1);
	r = ds_store_perform(ds_repo_store(repo), &req);
	if (r < 0)
		ds_diag_copy(reterr_diag, &req.diag);
	if (r == -DS_E_DENIED)
		ds_diag_set(reterr_diag, r, selector,
			    "to find a version by the first digits of its id, the credentials must "
			    "be allowed to list; all 64 digits work without");
	if (r == 0)
		r = pick_id(&listing, selector, &id, &n, reterr_diag);
	ds_store_listing_release(&listing);
	if (r < 0)
		return r;
	if (n == 0)
		return -DS_E_NO_VERSION;
	ret_resolved->version = id;
	return 0;
}

static void describe(const struct ds_ref_entry *entry, struct ds_buf *text)
{
	char name[TEXT_REF_MAX];

	ds_escape(entry->name, strlen(entry->name), name, 40);
	ds_buf_appendf(text, "%s%s", text->len_bytes ? ", " : "", name);
	if (entry->is_deleted)
		ds_buf_append_str(text, entry->kind == DS_REF_TAG ? " (deleted)" : " (closed)");
	else if (entry->kind == DS_REF_BRANCH)
		ds_buf_appendf(text, " (1..%" PRIu64 ")", entry->number);
}

/* What there is, for a person: "branches: main (1..42), exp (closed); tags: v1, v2". */
static int no_version(struct ds_repo *repo, const char *selector, struct ds_diag *reterr_diag)
{
	_ds_cleanup_buf_ struct ds_buf branches = DS_BUF_INIT(TEXT_MAX);
	_ds_cleanup_buf_ struct ds_buf tags = DS_BUF_INIT(TEXT_MAX);
	struct ds_ref_list list = {0};
	struct ds_ref_entry entry;

	if (!reterr_diag)
		return -DS_E_NO_VERSION;
	if (ds_refs_list(repo, &list, NULL) < 0) {
		/* Without LIST the default branch can still be asked. */
		if (ds_ref_head(repo, DS_REF_BRANCH, ds_repo_default_branch(repo), &entry, NULL) ==
		    0)
			describe(&entry, &branches);
	}
	for (size_t i = 0; i < list.heads_n; i++) {
		struct ds_buf *text = list.heads[i].kind == DS_REF_TAG ? &tags : &branches;

		if (text->len_bytes + TEXT_REF_MAX + 20 < TEXT_MAX / 2)
			describe(&list.heads[i], text);
		else if (!ds_ends_with(ds_buf_str(text), " ..."))
			ds_buf_append_str(text, " ...");
	}
	ds_ref_list_release(&list);
	ds_diag_clear(reterr_diag);
	if (branches.len_bytes == 0 && tags.len_bytes == 0)
		return ds_diag_set(reterr_diag, -DS_E_NO_VERSION, selector,
				   "the repository has no version yet");
	return ds_diag_set(reterr_diag, -DS_E_NO_VERSION, selector, "branches: %s; tags: %s",
			   branches.len_bytes ? ds_buf_str(&branches) : "none",
			   tags.len_bytes ? ds_buf_str(&tags) : "none");
}

int ds_resolve(struct ds_repo *repo, const char *selector, struct ds_resolved *ret_resolved,
	       struct ds_diag *reterr_diag)
{
	static int (*const kinds[])(struct ds_repo *, const char *, struct ds_resolved *,
				    struct ds_diag *) = {
		try_number, try_branch_number, try_tag, try_branch, try_date, try_id,
	};
	struct ds_resolved resolved = {0};
	int r = -DS_E_NO_VERSION;

	if (!selector || !*selector) {
		selector = ds_repo_default_branch(repo);
		r = try_branch(repo, selector, &resolved, reterr_diag);
	} else {
		for (size_t i = 0; i < DS_ARRAY_SIZE(kinds) && r == -DS_E_NO_VERSION; i++) {
			ds_diag_clear(reterr_diag);
			r = kinds[i](repo, selector, &resolved, reterr_diag);
		}
	}
	if (r == -DS_E_NO_VERSION)
		return no_version(repo, selector, reterr_diag);
	if (r < 0)
		return r;
	*ret_resolved = resolved;
	return 0;
}
