/*
 * Logs of entries: finding the head without LIST, and appending by put-if-absent.
 *
 * INV-1: a log has no gaps, so that "entry n is there" is true up to the head and false beyond; doubling and bisection rest on it.
 * INV-2: who created an entry is known by its `writer`, never by what it says.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "repo/refs.h"
#include "repo/repo_internal.h"
#include "repo/sealed.h"
#include "util/mem.h"
#include "util/str.h"

#define LAST_LOOK_MS 2000u

/* Bytes of an entry; -DS_E_ABSENT. `buf` holds nothing else afterwards. */
static int entry_read(struct ds_repo *repo, enum ds_ref_kind kind, const char *name,
		      uint64_t number, struct ds_buf *buf, struct ds_diag *reterr_diag)
{
	_ds_cleanup_free_ char *key = ds_ref_key(kind, name, number);
	int r;

	if (!key)
		return -ENOMEM;
	ds_buf_clear(buf);
	r = ds_repo_get_small(repo, key, buf, reterr_diag);
	if (r == -DS_E_LIMIT)
		return ds_diag_set(reterr_diag, -DS_E_MALFORMED, key, "over 64 KiB");
	return r;
}

int ds_ref_get(struct ds_repo *repo, enum ds_ref_kind kind, const char *name, uint64_t number,
	       struct ds_ref_entry *ret_entry, struct ds_diag *reterr_diag)
{
	_ds_cleanup_buf_ struct ds_buf buf = DS_BUF_INIT(DS_SEALED_MAX);
	int r;

	if (number == 0 || number > DS_ENTRY_NUMBER_MAX)
		return ds_diag_set(reterr_diag, -DS_E_NO_VERSION, name,
				   "there is no entry %" PRIu64, number);
	r = entry_read(repo, kind, name, number, &buf, reterr_diag);
	if (r == -DS_E_ABSENT)
		return ds_diag_set(reterr_diag, -DS_E_NO_VERSION, name,
				   "there is no entry %" PRIu64, number);
	if (r < 0)
		return r;
	return ds_ref_entry_parse(repo, kind, name, number, buf.data, buf.len_bytes, ret_entry,
				  reterr_diag);
}

static char *hint_key(const char *name)
{
	_ds_cleanup_free_ char *encoded = ds_percent_encode(name, strlen(name), false);

	return encoded ? ds_asprintf("hints/branches/%s", encoded) : NULL;
}

/* 1 if there is no hint that can be read and makes sense. */
static int hint_read(struct ds_repo *repo, const char *name, uint64_t *ret_number)
{
	_ds_cleanup_buf_ struct ds_buf buf = DS_BUF_INIT(64);
	_ds_cleanup_free_ char *key = hint_key(name);
	uint64_t number;
	int r;

	if (!key)
		return -ENOMEM;
	*ret_number = 1;
	r = ds_repo_get_small(repo, key, &buf, NULL);
	if (r < 0)
		return r == -ENOMEM || r == -DS_E_INTERRUPTED ? r : 0;
	if (buf.len_bytes > 0 && buf.data[buf.len_bytes - 1] == '\n')
		ds_buf_truncate(&buf, buf.len_bytes - 1);
	if (ds_parse_u64(ds_buf_str(&buf), DS_ENTRY_NUMBER_MAX, &number) == 0 && number > 0)
		*ret_number = number;
	return 0;
}

static void hint_write(struct ds_repo *repo, const char *name, uint64_t number)
{
	_ds_cleanup_free_ char *key = hint_key(name);
	char text[32];

	if (!key)
		return;
	snprintf(text, sizeof(text), "%" PRIu64 "\n", number);
	ds_store_put(ds_repo_store(repo), key, text, strlen(text), NULL);
}

/* The search for a head: `low` is there, its bytes in `buf`; `high` is not (0: not known yet). */
struct search {
	struct ds_repo *repo;
	enum ds_ref_kind kind;
	const char *name;
	uint64_t low, high;
	struct ds_buf *buf, *spare;
};

static int search_look(struct search *search, uint64_t number, struct ds_diag *reterr_diag)
{
	struct ds_buf *swap;
	int r;

	r = entry_read(search->repo, search->kind, search->name, number, search->spare,
		       reterr_diag);
	if (r == -DS_E_ABSENT) {
		ds_diag_clear(reterr_diag);
		search->high = number;
		return 0;
	}
	if (r < 0)
		return r;
	search->low = number;
	swap = search->buf;
	search->buf = search->spare;
	search->spare = swap;
	return 0;
}

/* -DS_E_NO_VERSION if there is no entry at all. */
static int search_run(struct search *search, struct ds_diag *reterr_diag)
{
	uint64_t start = 1, step = 1, max;
	int r = 0;

	max = search->kind == DS_REF_TAG ? 2 : DS_ENTRY_NUMBER_MAX;
	if (search->kind == DS_REF_BRANCH)
		r = hint_read(search->repo, search->name, &start);
	if (r == 0)
		r = search_look(search, start, reterr_diag);
	if (r == 0 && search->low == 0 && start > 1) {
		/* A hint beyond the head (restored, or damaged) says nothing. */
		search->high = 0;
		r = search_look(search, 1, reterr_diag);
	}
	if (r < 0)
		return r;
	if (search->low == 0)
		return ds_diag_set(reterr_diag, -DS_E_NO_VERSION, search->name,
				   search->kind == DS_REF_TAG ? "there is no such tag"
							      : "there is no such branch");
	for (; r == 0 && search->high == 0 && search->low < max; step *= 2)
		r = search_look(search, DS_MIN(search->low + step, max), reterr_diag);
	while (r == 0 && search->high > search->low + 1)
		r = search_look(search, search->low + (search->high - search->low) / 2,
				reterr_diag);
	return r;
}

int ds_ref_head(struct ds_repo *repo, enum ds_ref_kind kind, const char *name,
		struct ds_ref_entry *ret_entry, struct ds_diag *reterr_diag)
{
	_ds_cleanup_buf_ struct ds_buf a = DS_BUF_INIT(DS_SEALED_MAX);
	_ds_cleanup_buf_ struct ds_buf b = DS_BUF_INIT(DS_SEALED_MAX);
	struct search search = {.repo = repo, .kind = kind, .name = name, .buf = &a, .spare = &b};
	int r;

	r = search_run(&search, reterr_diag);
	if (r < 0)
		return r;
	return ds_ref_entry_parse(repo, kind, name, search.low, search.buf->data,
				  search.buf->len_bytes, ret_entry, reterr_diag);
}

/* Whether the log may have an entry after `head` that says what `wanted` says. */
static int append_check(const struct ds_ref_entry *head, const struct ds_ref_entry *wanted,
			struct ds_diag *reterr_diag)
{
	int r;

	r = ds_ref_name_check(wanted->name, reterr_diag);
	if (r < 0)
		return r;
	if (head && head->number >= DS_ENTRY_NUMBER_MAX)
		return ds_diag_set(reterr_diag, -DS_E_LIMIT, wanted->name, "the log is full");
	if (wanted->kind == DS_REF_BRANCH)
		return 0;
	if (head && head->is_deleted)
		return ds_diag_set(reterr_diag, -DS_E_CLOSED, wanted->name,
				   "this tag was deleted; its name cannot be used again");
	if (head && !wanted->is_deleted)
		return ds_diag_set(reterr_diag, -DS_E_PRESENT, wanted->name,
				   "there is such a tag, and a tag never moves");
	if (!head && wanted->is_deleted)
		return ds_diag_set(reterr_diag, -DS_E_NO_VERSION, wanted->name,
				   "there is no such tag");
	return 0;
}

/* An entry whose PUT was interrupted may be there all the same. */
static int last_look(struct ds_repo *repo, const struct ds_ref_entry *entry,
		     struct ds_ref_entry *ret_there)
{
	_ds_cleanup_buf_ struct ds_buf buf = DS_BUF_INIT(DS_SEALED_MAX);
	_ds_cleanup_free_ char *key = ds_ref_key(entry->kind, entry->name, entry->number);
	struct ds_store_req req = {.op = DS_STORE_GET,
				   .key = key,
				   .len_bytes = DS_STORE_LEN_ALL,
				   .into = &buf,
				   .is_last_will = true,
				   .deadline_ns = ds_deadline_in_ms(LAST_LOOK_MS)};
	int r = key ? ds_store_perform(ds_repo_store(repo), &req) : -ENOMEM;

	if (r < 0)
		return r;
	return ds_ref_entry_parse(repo, entry->kind, entry->name, entry->number, buf.data,
				  buf.len_bytes, ret_there, NULL);
}

/* Whether this error of reading back leaves the PUT's own answer as all that is known. */
static bool is_no_answer(int r)
{
	return ds_error_is_retryable(r) || r == -DS_E_INTERRUPTED || r == -ENOMEM;
}

/* `r`: what the PUT ended with; also 0, since a store may have swallowed what it answered well. 0 if the entry that is
 * there now is ours, or if the PUT went well and the store cannot be asked. */
static int append_settle(struct ds_repo *repo, const struct ds_ref_entry *entry, int r,
			 struct ds_ref_entry *ret_entry, struct ds_diag *reterr_diag)
{
	_ds_cleanup_free_ char *key = NULL;
	struct ds_ref_entry there;
	struct ds_diag diag = {0};
	int r_get;

	r_get = r == -DS_E_INTERRUPTED
			? last_look(repo, entry, &there)
			: ds_ref_get(repo, entry->kind, entry->name, entry->number, &there, &diag);
	if (r_get == 0 && memcmp(there.writer.bytes, entry->writer.bytes, DS_UUID_LEN) == 0) {
		*ret_entry = there;
		return 0;
	}
	if (r_get == 0)
		return ds_diag_set(reterr_diag, -DS_E_CONFLICT, entry->name,
				   "another writer made entry %" PRIu64 " first", entry->number);
	if (r == 0 && is_no_answer(r_get)) {
		*ret_entry = *entry;
		return 0;
	}
	if (r < 0 && r != -DS_E_PRESENT)
		return r; /* with its own diag */
	ds_diag_copy(reterr_diag, &diag);
	key = ds_ref_key(entry->kind, entry->name, entry->number);
	if (r_get == -DS_E_NO_VERSION && r == 0)
		return ds_diag_set(reterr_diag, -DS_E_CORRUPT, key,
				   "the store does not keep what it took");
	if (r_get == -DS_E_NO_VERSION)
		return ds_diag_set(reterr_diag, -DS_E_PROTOCOL, entry->name,
				   "entry %" PRIu64
				   " was refused as being there already, but is not there",
				   entry->number);
	return r_get;
}

static int append_put(struct ds_repo *repo, const struct ds_ref_entry *entry,
		      const struct ds_buf *buf, struct ds_time signed_at,
		      struct ds_diag *reterr_diag)
{
	_ds_cleanup_free_ char *key = ds_ref_key(entry->kind, entry->name, entry->number);
	struct ds_store_req req = {.op = DS_STORE_PUT,
				   .key = key,
				   .body = buf->data,
				   .body_len_bytes = buf->len_bytes,
				   .if_absent = true,
				   .signed_at = signed_at};
	int r;

	if (!key)
		return -ENOMEM;
	r = ds_store_perform(ds_repo_store(repo), &req);
	if (r < 0)
		ds_diag_copy(reterr_diag, &req.diag);
	return r;
}

int ds_ref_append(struct ds_repo *repo, const struct ds_ref_entry *head,
		  const struct ds_ref_entry *wanted, struct ds_time not_after,
		  struct ds_ref_entry *ret_entry, struct ds_diag *reterr_diag)
{
	_ds_cleanup_buf_ struct ds_buf buf = DS_BUF_INIT(DS_SEALED_MAX);
	bool is_limited = not_after.s != 0 || not_after.ns != 0;
	struct ds_ref_entry entry;
	struct ds_time now;
	int r;

	r = append_check(head, wanted, reterr_diag);
	if (r < 0)
		return r;
	entry = (struct ds_ref_entry){.kind = wanted->kind,
				      .number = head ? head->number + 1 : 1,
				      .is_deleted = wanted->is_deleted,
				      .writer = wanted->writer};
	memcpy(entry.name, wanted->name, sizeof(entry.name));
	if (!wanted->is_deleted)
		entry.version = wanted->version;
	if (head)
		entry.previous = head->self;
	r = ds_store_now(ds_repo_store(repo), &now, reterr_diag);
	if (r < 0)
		return r;
	if (is_limited && ds_time_compare(now, not_after) > 0)
		return ds_diag_set(reterr_diag, -DS_E_LATE, entry.name, NULL);
	entry.time = head && ds_time_compare(head->time, now) > 0 ? head->time : now;
	r = ds_ref_entry_encode(repo, &entry, &buf);
	if (r < 0)
		return r;
	/* Signed with the time that was compared: the store refuses a PUT that was held up in between. */
	r = append_put(repo, &entry, &buf, is_limited ? now : (struct ds_time){0}, reterr_diag);
	if (r == 0 || r == -DS_E_PRESENT || ds_error_is_retryable(r) || r == -DS_E_INTERRUPTED)
		r = append_settle(repo, &entry, r, &entry, reterr_diag);
	if (r < 0)
		return r;
	ds_diag_clear(reterr_diag);
	if (entry.kind == DS_REF_BRANCH)
		hint_write(repo, entry.name, entry.number);
	*ret_entry = entry;
	return 0;
}

static int taken(const char *name, enum ds_ref_kind by, enum ds_ref_kind wanted,
		 struct ds_diag *reterr_diag)
{
	if (by == wanted)
		return ds_diag_set(reterr_diag, -DS_E_TAKEN, name,
				   "there is, or was, a tag of this name; a tag never moves");
	return ds_diag_set(reterr_diag, -DS_E_TAKEN, name,
			   "there is, or was, a %s of this name, and '@%s' can mean only one of "
			   "them; choose another name",
			   by == DS_REF_TAG ? "tag" : "branch", name);
}

int ds_ref_check_new(struct ds_repo *repo, enum ds_ref_kind kind, const char *name,
		     struct ds_diag *reterr_diag)
{
	static const enum ds_ref_kind kinds[] = {DS_REF_TAG, DS_REF_BRANCH};
	struct ds_ref_entry entry;
	int r;

	r = ds_ref_name_check(name, reterr_diag);
	if (r < 0)
		return r;
	/* The default branch's name is taken even before its first entry. */
	if (kind == DS_REF_TAG && strcmp(name, ds_repo_default_branch(repo)) == 0)
		return taken(name, DS_REF_BRANCH, kind, reterr_diag);
	for (size_t i = 0; i < DS_ARRAY_SIZE(kinds); i++) {
		if (kind == DS_REF_BRANCH && kinds[i] == kind)
			continue; /* the caller knows its head */
		r = ds_ref_get(repo, kinds[i], name, 1, &entry, reterr_diag);
		if (r == 0)
			return taken(name, kinds[i], kind, reterr_diag);
		if (r != -DS_E_NO_VERSION)
			return r;
		ds_diag_clear(reterr_diag);
	}
	return 0;
}

int ds_ref_at(struct ds_repo *repo, const char *branch, struct ds_time time,
	      struct ds_ref_entry *ret_entry, struct ds_diag *reterr_diag)
{
	struct ds_ref_entry entry, best;
	uint64_t low = 0, high;
	char text[DS_TIME_TEXT_MAX];
	int r;

	r = ds_ref_head(repo, DS_REF_BRANCH, branch, &entry, reterr_diag);
	if (r < 0)
		return r;
	/* Entry `low` (0: none) is not after the time, entry `high` is. */
	if (ds_time_compare(entry.time, time) <= 0) {
		*ret_entry = entry;
		return 0;
	}
	high = entry.number;
	while (high > low + 1) {
		uint64_t middle = low + (high - low) / 2;

		r = ds_ref_get(repo, DS_REF_BRANCH, branch, middle, &entry, reterr_diag);
		if (r < 0)
			return r;
		if (ds_time_compare(entry.time, time) <= 0) {
			best = entry;
			low = middle;
		} else {
			high = middle;
		}
	}
	if (low == 0) {
		r = ds_ref_get(repo, DS_REF_BRANCH, branch, 1, &entry, reterr_diag);
		if (r < 0)
			return r;
		return ds_diag_set(reterr_diag, -DS_E_NO_VERSION, branch,
				   "its first version is of %s", ds_time_format(entry.time, text));
	}
	*ret_entry = best;
	return 0;
}
