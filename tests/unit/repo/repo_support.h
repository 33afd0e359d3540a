/*
 * What the tests of src/repo share: a clock that stands until it is moved, and a decorator over a store that fails, hides and forbids.
 */
#pragma once

#include "repo/refs.h"
#include "repo/repo.h"
#include "store/store.h"

/* 2026-01-01T00:00:00Z. */
#define TEST_START_S INT64_C(1767225600)

/* Time of test_clock; tests set it. */
extern struct ds_time test_now;
extern const struct ds_clock test_clock;
struct ds_time test_time(int64_t s_after_start);

/* A decorator. All fields may be set between calls. Sees each request once, in the order of submission. */
struct test_store {
	struct ds_store base;
	struct ds_store *inner;
	_Atomic long calls_n;
	long fail_at;	  /* the n-th call from now (0: the next) fails with fail_with; -1: none */
	bool fail_after;  /* after it was performed: the reply is lost */
	bool fail_sticky; /* and all later ones */
	int fail_with;	  /* e.g. -DS_E_NETWORK */
	long failed_n;	  /* how many were failed */
	bool deny_list;	  /* LIST: -DS_E_DENIED, and absent objects too, as S3 does then */
	bool ignore_absent; /* a store that takes if_absent for a plain PUT */
	bool swallow_refs;  /* a PUT of a ref is answered well and forgotten */
	int64_t hold_put_s; /* a PUT of a ref arrives so much later (moves test_now) */
	/* Called before a request is performed that the caller waits for; may change `inner`. */
	void (*before)(struct test_store *store, const struct ds_store_req *req);
};
struct ds_store *test_store_new(struct test_store *store); /* in memory, by test_clock */
void test_store_reset(struct test_store *store);	   /* no faults, counts from 0 */

/* A digest that stands for `n`. */
struct ds_digest test_digest(unsigned n);
struct ds_uuid test_uuid(unsigned n);
/* Appends; asserts success. */
struct ds_ref_entry test_append(struct ds_repo *repo, enum ds_ref_kind kind, const char *name,
				unsigned version);
/* -code or 0. */
int test_try_append(struct ds_repo *repo, enum ds_ref_kind kind, const char *name,
		    const struct ds_ref_entry *head, unsigned version, bool deleted,
		    struct ds_ref_entry *ret_entry);
