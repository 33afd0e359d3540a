#include "repo_support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/mem.h"
#include "util/random.h"
#include "util/str.h"

struct ds_time test_now = {.s = TEST_START_S};

static struct ds_time test_real(void *ctx)
{
	(void)ctx;
	return test_now;
}

static uint64_t test_mono(void *ctx)
{
	(void)ctx;
	return ds_mono_ns();
}

const struct ds_clock test_clock = {.mono_ns = test_mono, .real = test_real};

struct ds_time test_time(int64_t s_after_start)
{
	return (struct ds_time){.s = TEST_START_S + s_after_start};
}

static struct test_store *store_of(struct ds_store *store)
{
	return ds_container_of(store, struct test_store, base);
}

/* Whether the call that begins now is one that fails. */
static bool is_failing(struct test_store *store)
{
	long at = store->calls_n++;

	return store->fail_at >= 0 &&
	       (at == store->fail_at || (store->fail_sticky && at > store->fail_at));
}

static int fail(struct test_store *store, struct ds_store_req *req)
{
	store->failed_n++;
	return ds_diag_set(&req->diag, store->fail_with, req->key, "injected");
}

static void store_perform(struct ds_store *base, struct ds_store_req *req)
{
	struct test_store *store = store_of(base);
	bool if_absent = req->if_absent, failing = is_failing(store);
	int r;

	if (failing && !store->fail_after) {
		req->result = fail(store, req);
		return;
	}
	if (store->deny_list && req->op == DS_STORE_LIST) {
		req->result = ds_diag_set(&req->diag, -DS_E_DENIED, req->key, NULL);
		return;
	}
	if (store->before)
		store->before(store, req);
	if (store->ignore_absent)
		req->if_absent = false;
	if (req->op == DS_STORE_PUT && ds_starts_with(req->key, "refs/"))
		test_now.s += store->hold_put_s;
	if (store->swallow_refs && req->op == DS_STORE_PUT && ds_starts_with(req->key, "refs/")) {
		req->result = 0;
		return;
	}
	r = ds_store_perform(store->inner, req);
	req->if_absent = if_absent;
	if (r == -DS_E_ABSENT && store->deny_list)
		r = -DS_E_DENIED;
	req->result = failing ? fail(store, req) : r;
}

/* An asynchronous request that passes through. */
struct passing {
	struct test_store *store;
	void (*done)(struct ds_store_req *req);
	void *ctx;
	int injected; /* 0: none */
};

static void passed(struct ds_store_req *req)
{
	struct passing *passing = req->ctx;
	struct test_store *store = passing->store;

	req->done = passing->done;
	req->ctx = passing->ctx;
	if (req->result == -DS_E_ABSENT && store->deny_list)
		req->result = -DS_E_DENIED;
	if (passing->injected)
		req->result = passing->injected;
	free(passing);
	ds_store_complete(&store->base, req);
}

static void store_submit(struct ds_store *base, struct ds_store_req *req)
{
	struct test_store *store = store_of(base);
	struct passing *passing = malloc(sizeof(*passing)); /* not a failing one */

	cr_assert_not_null(passing);
	*passing = (struct passing){.store = store, .done = req->done, .ctx = req->ctx};
	if (is_failing(store) || (store->deny_list && req->op == DS_STORE_LIST)) {
		store->failed_n++;
		passing->injected = store->fail_with ? store->fail_with : -DS_E_DENIED;
	}
	req->done = passed;
	req->ctx = passing;
	ds_store_submit(store->inner, req);
}

static void store_cancel(struct ds_store *base, struct ds_store_req *req)
{
	ds_store_cancel(store_of(base)->inner, req);
}

static void store_destroy(struct ds_store *base)
{
	struct test_store *store = store_of(base);

	ds_store_unref(store->inner);
	ds_store_release(base);
}

static void store_stats(struct ds_store *base, struct ds_store_stats *ret_stats)
{
	ds_store_get_stats(store_of(base)->inner, ret_stats);
}

static int store_now(struct ds_store *base, struct ds_time *ret_now)
{
	return ds_store_now(store_of(base)->inner, ret_now, NULL);
}

static const struct ds_store_ops store_ops = {
	.submit = store_submit,
	.cancel = store_cancel,
	.perform = store_perform,
	.destroy = store_destroy,
	.get_stats = store_stats,
	.now = store_now,
};

struct ds_store *test_store_new(struct test_store *store)
{
	*store = (struct test_store){.fail_at = -1};
	test_now = test_time(0);
	cr_assert_eq(ds_store_init(&store->base, &store_ops, "test:", 0), 0);
	cr_assert_eq(ds_store_memory_new(NULL, &test_clock, &store->inner), 0);
	return &store->base;
}

void test_store_reset(struct test_store *store)
{
	store->calls_n = 0;
	store->failed_n = 0;
	store->fail_at = -1;
	store->fail_after = store->fail_sticky = store->deny_list = store->ignore_absent = false;
	store->swallow_refs = false;
	store->fail_with = 0;
	store->hold_put_s = 0;
	store->before = NULL;
}

struct ds_digest test_digest(unsigned n)
{
	struct ds_digest digest;

	cr_assert_eq(ds_digest_of(&n, sizeof(n), &digest), 0);
	return digest;
}

struct ds_uuid test_uuid(unsigned n)
{
	struct ds_uuid uuid;
	struct ds_prng prng = {.state = n};

	for (size_t i = 0; i < DS_UUID_LEN; i++)
		uuid.bytes[i] = (uint8_t)ds_prng_next(&prng);
	return uuid;
}

int test_try_append(struct ds_repo *repo, enum ds_ref_kind kind, const char *name,
		    const struct ds_ref_entry *head, unsigned version, bool deleted,
		    struct ds_ref_entry *ret_entry)
{
	struct ds_ref_entry wanted = {.kind = kind,
				      .is_deleted = deleted,
				      .version = test_digest(version)};

	ds_random_bytes(wanted.writer.bytes, DS_UUID_LEN);
	snprintf(wanted.name, sizeof(wanted.name), "%s", name);
	return ds_ref_append(repo, head, &wanted, (struct ds_time){0}, ret_entry, NULL);
}

struct ds_ref_entry test_append(struct ds_repo *repo, enum ds_ref_kind kind, const char *name,
				unsigned version)
{
	struct ds_ref_entry head, entry;
	int r = ds_ref_head(repo, kind, name, &head, NULL);

	cr_assert(r == 0 || r == -DS_E_NO_VERSION);
	r = test_try_append(repo, kind, name, r == 0 ? &head : NULL, version, version == 0, &entry);
	cr_assert_eq(r, 0, "append: %s", ds_strerror(r));
	return entry;
}
