#include "repo/repo.h"

#include <string.h>

#include "repo/refs.h"
#include "repo/repo_internal.h"
#include "repo/sealed.h"
#include "util/mem.h"
#include "util/random.h"
#include "util/str.h"

#define MARKER_KEY   "dsfs.json"
#define PROBE_KEY    "probe.json"

#define LOCK_LOOK_MS 100u

/* The first release that reads format 1. */
#define FORMAT_NEEDS "0.1.0"

struct ds_repo {
	_Atomic unsigned refs_n;
	struct ds_store *store;
	struct ds_uuid id;
	char *default_branch;
};

static void json_release(json_t **object)
{
	json_decref(*object);
}
#define _cleanup_json_ __attribute__((cleanup(json_release)))

struct ds_repo *ds_repo_ref(struct ds_repo *repo)
{
	repo->refs_n++;
	return repo;
}

struct ds_repo *ds_repo_unref(struct ds_repo *repo)
{
	if (!repo || --repo->refs_n > 0)
		return NULL;
	ds_store_unref(repo->store);
	ds_free(repo->default_branch);
	ds_free(repo);
	return NULL;
}

struct ds_store *ds_repo_store(const struct ds_repo *repo)
{
	return repo->store;
}

const struct ds_uuid *ds_repo_id(const struct ds_repo *repo)
{
	return &repo->id;
}

const char *ds_repo_default_branch(const struct ds_repo *repo)
{
	return repo->default_branch;
}

static int repo_new(struct ds_store *store, const struct ds_uuid *id, const char *default_branch,
		    struct ds_repo **ret_repo)
{
	struct ds_repo *repo = ds_calloc(1, sizeof(*repo));

	if (!repo)
		return -ENOMEM;
	repo->refs_n = 1;
	repo->id = *id;
	repo->default_branch = ds_strdup(default_branch);
	if (!repo->default_branch) {
		ds_free(repo);
		return -ENOMEM;
	}
	repo->store = ds_store_ref(store);
	*ret_repo = repo;
	return 0;
}

static int marker_parse(const struct ds_buf *buf, struct ds_uuid *ret_id, json_t **ret_object,
			const char **ret_default_branch, struct ds_diag *reterr_diag)
{
	json_t *object;
	int r;

	r = ds_sealed_parse(buf->data, buf->len_bytes, MARKER_KEY, &object, NULL, reterr_diag);
	if (r < 0)
		return r;
	r = ds_json_uuid(object, "repository", ret_id, reterr_diag);
	if (r == 0)
		r = ds_json_string(object, "default_branch", DS_REF_NAME_MAX, ret_default_branch,
				   reterr_diag);
	if (r == 0 && ds_ref_name_check(*ret_default_branch, NULL) < 0)
		r = ds_diag_set(reterr_diag, -DS_E_MALFORMED, NULL,
				"`default_branch` is not the name of a branch");
	if (r < 0) {
		json_decref(object);
		return ds_diag_set(reterr_diag, r, MARKER_KEY, NULL);
	}
	*ret_object = object;
	return 0;
}

/* There is no marker: what lies there instead, for the person who mistyped a prefix. */
static int no_repo(struct ds_store *store, struct ds_diag *reterr_diag)
{
	struct ds_store_listing listing = {0};
	struct ds_store_req req = {.op = DS_STORE_LIST,
				   .key = "",
				   .listing = &listing,
				   .list_max_n = 3};
	_ds_cleanup_buf_ struct ds_buf text = DS_BUF_INIT(200);
	const char *url = ds_store_url(store);
	char quoted[80];

	if (!reterr_diag)
		return -DS_E_NO_REPO;
	if (ds_store_perform(store, &req) < 0) {
		ds_diag_set(reterr_diag, -DS_E_NO_REPO, url,
			    "the store answers, but has no " MARKER_KEY " there");
	} else if (listing.objects_n == 0) {
		ds_diag_set(reterr_diag, -DS_E_NO_REPO, url, "the store answers; nothing is there");
	} else {
		for (size_t i = 0; i < listing.objects_n; i++) {
			const char *key = listing.objects[i].key;

			ds_quote(key, strlen(key), quoted, sizeof(quoted));
			if (ds_buf_appendf(&text, "%s%s", i ? ", " : "", quoted) < 0)
				break;
		}
		ds_diag_set(reterr_diag, -DS_E_NO_REPO, url,
			    "the store answers, but has no " MARKER_KEY " there; there is %s%s",
			    ds_buf_str(&text), listing.objects_n == req.list_max_n ? " ..." : "");
	}
	ds_store_listing_release(&listing);
	return -DS_E_NO_REPO;
}

int ds_repo_open_store(struct ds_store *store, struct ds_repo **ret_repo,
		       struct ds_diag *reterr_diag)
{
	_ds_cleanup_buf_ struct ds_buf buf = DS_BUF_INIT(DS_SEALED_MAX);
	_cleanup_json_ json_t *object = NULL;
	const char *default_branch;
	struct ds_uuid id;
	int r;

	r = ds_store_get(store, MARKER_KEY, &buf, reterr_diag);
	if (r == -DS_E_ABSENT)
		return no_repo(store, reterr_diag);
	if (r == -DS_E_LIMIT)
		return ds_diag_set(reterr_diag, -DS_E_MALFORMED, MARKER_KEY, "over 64 KiB");
	if (r == -DS_E_DENIED)
		return ds_diag_set(reterr_diag, r, MARKER_KEY,
				   "it may not be read, or it is not there and these credentials "
				   "may not list");
	if (r < 0)
		return r;
	r = marker_parse(&buf, &id, &object, &default_branch, reterr_diag);
	if (r < 0)
		return r;
	return repo_new(store, &id, default_branch, ret_repo);
}

int ds_repo_open(const char *url, const struct ds_store_options *options, struct ds_repo **ret_repo,
		 struct ds_diag *reterr_diag)
{
	struct ds_store *store;
	int r;

	r = ds_store_open(url, options, false, &store, reterr_diag);
	if (r < 0)
		return r;
	r = ds_repo_open_store(store, ret_repo, reterr_diag);
	ds_store_unref(store);
	return r;
}

/*
 * Whether the store refuses a put-if-absent of what is there, which is what all writing rests on. A probe that is already there (an
 * earlier init was killed) must be refused at once.
 */
static int probe(struct ds_store *store, struct ds_diag *reterr_diag)
{
	static const char body[] = "{\"format\":1,\"put_if_absent\":true}\n";
	_ds_cleanup_buf_ struct ds_buf buf = DS_BUF_INIT(DS_SEALED_MAX);
	size_t len_bytes = sizeof(body) - 1;
	int r;

	r = ds_store_put_if_absent(store, PROBE_KEY, body, len_bytes, reterr_diag);
	if (r < 0 && r != -DS_E_PRESENT)
		return r;
	r = ds_store_get(store, PROBE_KEY, &buf, reterr_diag);
	if (r == -DS_E_ABSENT)
		return ds_diag_set(reterr_diag, -DS_E_UNSUPPORTED, PROBE_KEY,
				   "the store does not give back what was put there");
	if (r < 0)
		return r;
	r = ds_store_put_if_absent(store, PROBE_KEY, body, len_bytes, reterr_diag);
	if (r == -DS_E_PRESENT) {
		ds_diag_clear(reterr_diag);
		return 0;
	}
	if (r < 0 && r != -DS_E_UNSUPPORTED)
		return r;
	/* Leave nothing in a store that cannot be used. */
	ds_store_perform(store, &(struct ds_store_req){.op = DS_STORE_DELETE, .key = PROBE_KEY});
	return ds_diag_set(reterr_diag, -DS_E_UNSUPPORTED, PROBE_KEY,
			   "the store lacks conditional writes: a second PUT with "
			   "\"If-None-Match: *\" was not refused");
}

/*
 * Refuses a place where anything else lies: a mistyped path, or what is left of a repository that lost its marker. Where listing is
 * forbidden that cannot be told.
 */
static int check_empty(struct ds_store *store, struct ds_diag *reterr_diag)
{
	struct ds_store_listing listing = {0};
	/* Two: the probe of an init that was killed may be the first. */
	struct ds_store_req req = {.op = DS_STORE_LIST,
				   .key = "",
				   .listing = &listing,
				   .list_max_n = 2};
	int r = ds_store_perform(store, &req);
	char quoted[200];

	if (r == -DS_E_DENIED || r == -EACCES)
		return 0;
	if (r < 0 && reterr_diag)
		*reterr_diag = req.diag;
	for (size_t i = 0; r == 0 && i < listing.objects_n; i++) {
		const char *key = listing.objects[i].key;

		if (strcmp(key, PROBE_KEY) == 0)
			continue;
		ds_quote(key, strlen(key), quoted, sizeof(quoted));
		r = ds_diag_set(reterr_diag, -DS_E_TAKEN, ds_store_url(store),
				"a repository is made where nothing else lies, and there is %s",
				quoted);
	}
	ds_store_listing_release(&listing);
	return r;
}

static int marker_encode(const struct ds_uuid *id, const char *default_branch, struct ds_time now,
			 struct ds_buf *buf)
{
	char uuid[2 * DS_UUID_LEN + 1], created[DS_TIME_TEXT_MAX];
	_cleanup_json_ json_t *object = NULL;

	ds_hex_encode(id->bytes, DS_UUID_LEN, uuid);
	object = json_pack("{s:i, s:s, s:s, s:s, s:s}", "format", DS_FORMAT, "needs", FORMAT_NEEDS,
			   "repository", uuid, "default_branch", default_branch, "created",
			   ds_time_format(now, created));
	return object ? ds_sealed_encode(object, buf) : -ENOMEM;
}

/* Puts the marker; after a reply that was lost, the random id tells whose it is. */
static int marker_put(struct ds_store *store, const struct ds_buf *buf, struct ds_diag *reterr_diag)
{
	_ds_cleanup_buf_ struct ds_buf there = DS_BUF_INIT(DS_SEALED_MAX);
	int r, r_get;

	r = ds_store_put_if_absent(store, MARKER_KEY, buf->data, buf->len_bytes, reterr_diag);
	if (r == 0 || (r != -DS_E_PRESENT && !ds_error_is_retryable(r)))
		return r;
	r_get = ds_store_get(store, MARKER_KEY, &there, NULL);
	if (r_get == 0 && there.len_bytes == buf->len_bytes &&
	    memcmp(there.data, buf->data, buf->len_bytes) == 0) {
		ds_diag_clear(reterr_diag);
		return 0;
	}
	if (r_get == 0 || r == -DS_E_PRESENT)
		return ds_diag_set(reterr_diag, -DS_E_PRESENT, ds_store_url(store),
				   "there is a repository already");
	return r;
}

static int check_absent(struct ds_store *store, struct ds_diag *reterr_diag)
{
	_ds_cleanup_buf_ struct ds_buf buf = DS_BUF_INIT(DS_SEALED_MAX);
	int r = ds_store_get(store, MARKER_KEY, &buf, reterr_diag);

	if (r == 0 || r == -DS_E_LIMIT)
		return ds_diag_set(reterr_diag, -DS_E_PRESENT, ds_store_url(store),
				   "there is a repository already");
	/* 403 may be absence: whether these credentials may write shows later. */
	if (r != -DS_E_ABSENT && r != -DS_E_DENIED)
		return r;
	ds_diag_clear(reterr_diag);
	return 0;
}

int ds_repo_init_store(struct ds_store *store, const char *default_branch,
		       struct ds_repo **ret_repo, struct ds_diag *reterr_diag)
{
	_ds_cleanup_buf_ struct ds_buf buf = DS_BUF_INIT(DS_SEALED_MAX);
	struct ds_time now;
	struct ds_uuid id;
	int r;

	if (!default_branch)
		default_branch = DS_BRANCH_DEFAULT;
	r = ds_ref_name_check(default_branch, reterr_diag);
	if (r == 0)
		r = check_absent(store, reterr_diag);
	if (r == 0)
		r = check_empty(store, reterr_diag);
	/* What lies there may be what somebody else has made meanwhile. */
	if (r == -DS_E_TAKEN && check_absent(store, NULL) == -DS_E_PRESENT)
		r = check_absent(store, reterr_diag);
	if (r == 0)
		r = probe(store, reterr_diag);
	if (r < 0)
		return r;
	r = ds_store_now(store, &now, reterr_diag);
	if (r < 0)
		return r;
	ds_random_bytes(id.bytes, sizeof(id.bytes));
	r = marker_encode(&id, default_branch, now, &buf);
	if (r < 0)
		return r;
	r = marker_put(store, &buf, reterr_diag);
	if (r < 0)
		return r;
	return repo_new(store, &id, default_branch, ret_repo);
}

int ds_repo_init(const char *url, const struct ds_store_options *options,
		 const char *default_branch, struct ds_repo **ret_repo, struct ds_diag *reterr_diag)
{
	struct ds_store *store;
	int r;

	/* Before a directory is made. */
	r = default_branch ? ds_ref_name_check(default_branch, reterr_diag) : 0;
	if (r == 0)
		r = ds_store_open(url, options, true, &store, reterr_diag);
	if (r < 0)
		return r;
	r = ds_repo_init_store(store, default_branch, ret_repo, reterr_diag);
	ds_store_unref(store);
	return r;
}

int ds_repo_lock(struct ds_repo *repo, const volatile int *interrupted, void (*waits)(void *ctx),
		 void *ctx, int *ret_fd)
{
	bool is_told = false;
	int r;

	while ((r = ds_store_lock(repo->store, false, ret_fd)) == -EBUSY) {
		if (!is_told && waits)
			waits(ctx);
		is_told = true;
		if (interrupted && *interrupted)
			return -DS_E_INTERRUPTED;
		ds_sleep_ms(LOCK_LOOK_MS);
	}
	return r;
}

int ds_repo_get_small(struct ds_repo *repo, const char *key, struct ds_buf *into,
		      struct ds_diag *reterr_diag)
{
	size_t start = into->len_bytes;
	int r;

	r = ds_store_get(repo->store, key, into, reterr_diag);
	if (r < 0)
		ds_buf_truncate(into, start);
	return r == -DS_E_DENIED ? -DS_E_ABSENT : r;
}
