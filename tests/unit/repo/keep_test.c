/* The rules of keeping, case by case. Attacks INV-1 to INV-3 of keep.c; the simulation attacks all of them together. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "repo/keep.h"
#include "repo/sealed.h"
#include "repo_support.h"
#include "store_contract.h"
#include "util/mem.h"
#include "util/str.h"

TestSuite(keep, .fini = test_leak_check);

#define H   3600
#define DAY (24 * H)

/* Logs under construction. */
static struct ds_ref_entry entries[64];
static size_t entries_n;
static struct ds_policy_entry policies[8];
static size_t policies_n;
static struct ds_keep *keep;

static void entry(const char *name, enum ds_ref_kind kind, int64_t at_s, unsigned version)
{
	struct ds_ref_entry *e = &entries[entries_n];

	*e = (struct ds_ref_entry){.kind = kind, .number = 1, .time = test_time(at_s)};
	snprintf(e->name, sizeof(e->name), "%s", name);
	if (entries_n && strcmp(e[-1].name, name) == 0 && e[-1].kind == kind)
		e->number = e[-1].number + 1;
	e->is_deleted = version == 0;
	if (version)
		e->version = test_digest(version);
	entries_n++;
}

static void branch(const char *name, int64_t at_s, unsigned version)
{
	entry(name, DS_REF_BRANCH, at_s, version);
}

static void tag(const char *name, int64_t at_s, unsigned version)
{
	entry(name, DS_REF_TAG, at_s, version);
}

/* keep_entries, keep_s: -1 for null. */
static void policy(int64_t at_s, uint64_t grace_s, int64_t keep_entries, int64_t keep_s)
{
	policies[policies_n] = (struct ds_policy_entry){.number = policies_n + 1,
							.grace_s = grace_s,
							.has_keep_entries = keep_entries >= 0,
							.has_keep_s = keep_s >= 0,
							.keep_entries = (uint64_t)keep_entries,
							.keep_s = (uint64_t)keep_s,
							.time = test_time(at_s)};
	policies_n++;
}

/* Judges at a time, by what there was then. */
static void at(int64_t s)
{
	struct ds_ref_entry there[64];
	struct ds_keep_input input = {.entries = there, .policies = policies};

	for (size_t i = 0; i < entries_n; i++) {
		if (entries[i].time.s <= test_time(s).s)
			there[input.entries_n++] = entries[i];
	}
	while (input.policies_n < policies_n && policies[input.policies_n].time.s <= test_time(s).s)
		input.policies_n++;
	keep = ds_keep_free(keep);
	cr_assert_eq(ds_keep_new(&input, test_time(s), &keep), 0);
}

static void done(void)
{
	keep = ds_keep_free(keep);
}

/* "K": kept; "n": dropped, may be named; "m": must still be marked; "-": dropped; "?": unknown. */
static char state(unsigned version)
{
	struct ds_digest id = test_digest(version);
	bool may_name = ds_keep_may_name(keep, &id), must_mark = ds_keep_must_mark(keep, &id);

	switch (ds_keep_state_of(keep, &id, &(struct ds_time){0})) {
	case DS_KEEP_KEPT:
		cr_assert(may_name && must_mark && ds_keep_is_base(keep, &id));
		return 'K';
	case DS_KEEP_DROPPED:
		cr_assert(!ds_keep_is_base(keep, &id));
		cr_assert(must_mark || !may_name);
		return may_name ? 'n' : must_mark ? 'm' : '-';
	case DS_KEEP_UNKNOWN:
		cr_assert(!may_name && !must_mark && !ds_keep_is_base(keep, &id));
		return '?';
	}
	return 0;
}

#define expect_states(s, text)                                                                     \
	do {                                                                                       \
		at(s);                                                                             \
		for (unsigned v = 1; v <= strlen(text); v++)                                       \
			cr_assert_eq(state(v), text[v - 1], "version %u at %ld: %c instead of %c", \
				     v, (long)(s), state(v), text[v - 1]);                         \
	} while (0)

Test(keep, without_policy_everything_is_kept)
{
	branch("main", 0, 1);
	branch("main", 10, 2);
	branch("main", 20, 3);
	tag("v", 30, 2);
	expect_states(1000 * DAY, "KKK?");
	done();
}

Test(keep, a_moved_branch_keeps_what_it_left)
{
	branch("main", 0, 1);
	branch("main", 10, 2);
	branch("main", 20, 1);
	expect_states(1000 * DAY, "KK");
	done();
}

Test(keep, a_deleted_tag_lets_go)
{
	tag("v", 0, 1);
	tag("v", DAY, 0);
	expect_states(DAY - 1, "K");
	expect_states(DAY, "n");
	expect_states(DAY + 7 * DAY / 2 - 1, "n");
	expect_states(DAY + 7 * DAY / 2, "m");
	expect_states(DAY + 7 * DAY - 1, "m");
	expect_states(DAY + 7 * DAY, "-");
	done();
}

Test(keep, a_closed_branch_keeps_nothing)
{
	branch("main", 0, 1);
	branch("main", 10, 2);
	branch("main", 20, 0);
	tag("v", 15, 1);
	expect_states(21, "Kn");
	done();
}

Test(keep, a_branch_that_was_opened_again_soon_keeps_its_past)
{
	branch("main", 0, 1);
	branch("main", 10, 2);
	branch("main", DAY, 0);
	branch("main", DAY + 7 * DAY / 2 - 1, 3);
	expect_states(100 * DAY, "KKK");
	done();
}

Test(keep, a_branch_that_was_opened_again_late_does_not_bring_back)
{
	branch("main", 0, 1);
	branch("main", 10, 2);
	branch("main", DAY, 0);
	branch("main", DAY + 7 * DAY / 2, 3);
	expect_states(DAY + 7 * DAY / 2, "mmK");
	expect_states(DAY + 7 * DAY, "--K");
	done();
}

Test(keep, a_branch_that_was_closed_at_once_kept_nothing)
{
	branch("main", 0, 1);
	branch("main", 0, 0);
	branch("main", 8 * DAY, 2);
	expect_states(7 * DAY - 1, "m");
	expect_states(9 * DAY, "-K");
	done();
}

Test(keep, an_entry_that_names_it_brings_back_within_a_grace)
{
	tag("a", 0, 1);
	tag("a", DAY, 0);
	tag("b", DAY + 7 * DAY - 1, 1); /* its writer looked half a grace before */
	expect_states(100 * DAY, "K");
	done();
}

Test(keep, an_entry_that_comes_later_names_nothing)
{
	tag("a", 0, 1);
	tag("a", DAY, 0);
	tag("b", 8 * DAY, 1);
	expect_states(8 * DAY, "-");
	expect_states(100 * DAY, "-");
	done();
}

Test(keep, the_newest_entries_are_kept)
{
	for (unsigned v = 1; v <= 5; v++)
		branch("main", v * DAY, v);
	policy(10 * DAY, 7 * DAY, 2, -1);
	expect_states(10 * DAY - 1, "KKKKK");
	expect_states(10 * DAY, "nnnKK");
	expect_states(20 * DAY, "---KK");
	done();
}

Test(keep, a_limit_of_0_entries_keeps_the_head)
{
	branch("main", 0, 1);
	branch("main", 1, 2);
	policy(10, 7 * DAY, 0, -1);
	expect_states(10, "nK");
	done();
}

Test(keep, what_was_superseded_lately_is_kept)
{
	branch("main", 0, 1);
	branch("main", 10 * DAY, 2);
	branch("main", 30 * DAY, 3);
	policy(20 * DAY, 7 * DAY, -1, 12 * DAY);
	expect_states(22 * DAY - 1, "K");
	expect_states(22 * DAY, "n");
	expect_states(29 * DAY, "-");
	expect_states(42 * DAY - 1, "-KK");
	expect_states(42 * DAY, "-nK");
	done();
}

Test(keep, either_limit_suffices)
{
	branch("main", 0, 1);
	branch("main", DAY, 2);
	branch("main", 100 * DAY, 3);
	policy(DAY, 7 * DAY, 1, 10 * DAY);
	expect_states(11 * DAY - 1, "KK");
	expect_states(11 * DAY, "nK");
	expect_states(101 * DAY, "-KK");
	expect_states(110 * DAY, "-nK");
	policies_n = 0;
	policy(DAY, 7 * DAY, 2, 10 * DAY);
	expect_states(100 * DAY - 1, "KK");
	expect_states(100 * DAY, "nKK");
	done();
}

Test(keep, a_longer_retention_brings_back_only_what_was_dropped_lately)
{
	for (unsigned v = 1; v <= 4; v++)
		branch("main", 0, v);
	policy(DAY, 7 * DAY, 2, -1);
	policy(DAY + 7 * DAY / 2, 7 * DAY, 3, -1); /* 2 was dropped half a grace ago */
	expect_states(DAY + 7 * DAY / 2, "mmKK");
	expect_states(100 * DAY, "--KK");
	done();
	policies_n = 1;
	policy(DAY + 7 * DAY / 2 - 1, 7 * DAY, 3, -1);
	expect_states(100 * DAY, "-KKK");
	done();
}

Test(keep, a_shorter_grace_counts_when_the_longer_has_passed)
{
	policy(10 * DAY, 2 * H, -1, -1);
	cr_assert_eq(ds_keep_grace_s(policies, 0, test_time(0)), 7 * DAY);
	cr_assert_eq(ds_keep_grace_s(policies, 1, test_time(10 * DAY)), 7 * DAY);
	cr_assert_eq(ds_keep_grace_s(policies, 1, test_time(17 * DAY - 1)), 7 * DAY);
	cr_assert_eq(ds_keep_grace_s(policies, 1, test_time(17 * DAY)), 2 * H);
	policy(18 * DAY, 20 * DAY, -1, -1);
	policy(19 * DAY, 1, -1, -1);
	cr_assert_eq(ds_keep_grace_s(policies, 3, test_time(20 * DAY)), 20 * DAY);
	cr_assert_eq(ds_keep_grace_s(policies, 3, test_time(39 * DAY)), DS_GRACE_MIN_S);
	at(17 * DAY);
	done();
}

Test(keep, writers_count_on_the_newest_grace_only)
{
	tag("a", 0, 1);
	tag("a", 10 * DAY, 0);
	policy(9 * DAY, 2 * H, -1, -1);
	expect_states(10 * DAY + H - 1, "n");
	/* Until 16 days the collector still waits for 7. */
	expect_states(10 * DAY + H, "m");
	expect_states(16 * DAY - 1, "m");
	expect_states(16 * DAY, "-");
	done();
}

Test(keep, a_longer_grace_does_not_make_anything_young_again)
{
	policy(0, 2 * H, -1, -1);
	policy(20 * DAY, 7 * DAY, -1, -1);
	at(20 * DAY);
	cr_assert(!ds_keep_is_young(keep, test_time(20 * DAY - H)));
	cr_assert(ds_keep_is_young(keep, test_time(20 * DAY - H / 2 + 1)));
	cr_assert(!ds_keep_may_delete(keep, test_time(13 * DAY)));
	cr_assert(ds_keep_may_delete(keep, test_time(13 * DAY - 1)));
	at(20 * DAY + 3 * H);
	cr_assert(!ds_keep_is_young(keep, test_time(20 * DAY - H / 2)));
	cr_assert(ds_keep_is_young(keep, test_time(20 * DAY - H / 2 + 1)));
	done();
}

Test(keep, what_was_dropped_under_a_short_grace_stays_so_under_a_long_one)
{
	policy(0, 2 * H, -1, -1);
	tag("a", 5 * DAY, 1);
	tag("a", 10 * DAY, 0);
	policy(10 * DAY + 3 * H, 7 * DAY, -1, -1);
	expect_states(10 * DAY + 4 * H, "-");
	done();
}

Test(keep, young_is_a_quarter_and_publishing_less_than_half_a_grace)
{
	at(100 * DAY);
	cr_assert(ds_keep_is_young(keep, test_time(100 * DAY - 7 * DAY / 4 + 1)));
	cr_assert(!ds_keep_is_young(keep, test_time(100 * DAY - 7 * DAY / 4)));
	cr_assert(ds_keep_is_young(keep, test_time(101 * DAY)));
	cr_assert_eq(ds_keep_grace_of(keep), 7 * DAY);
	/* 15 minutes are left for a PUT that is held up. */
	cr_assert_eq(ds_keep_publish_limit(keep, test_time(50 * DAY)).s,
		     test_time(50 * DAY + 7 * DAY / 2 - 900).s);
	done();
}

Test(keep, logs_that_cannot_be_are_refused)
{
	struct ds_keep_input input = {.entries = entries};

	branch("main", 10, 1);
	branch("main", 9, 2);
	input.entries_n = 2;
	cr_assert_eq(ds_keep_new(&input, test_time(20), &keep), -DS_E_MALFORMED);
	entries[1].time = entries[0].time;
	cr_assert_eq(ds_keep_new(&input, test_time(20), &keep), 0);
	keep = ds_keep_free(keep);
	entries[1].number = 3;
	cr_assert_eq(ds_keep_new(&input, test_time(20), &keep), -DS_E_MALFORMED);
}

Test(keep, every_allocation_may_fail)
{
	struct ds_keep_input input = {.entries = entries, .policies = policies, .policies_n = 2};
	int r = -ENOMEM;

	for (unsigned v = 1; v <= 10; v++)
		branch("main", v, v % 7 == 0 ? 0 : v);
	tag("v", 0, 3);
	input.entries_n = entries_n;
	policy(1, 7 * DAY, 2, -1);
	policy(9 * DAY, 9 * DAY, 2, DAY);
	for (int n = 0; r < 0; n++) {
		ds_mem_fail_after(n, false);
		r = ds_keep_new(&input, test_time(20 * DAY), &keep);
		cr_assert(r == 0 || r == -ENOMEM);
	}
	ds_mem_fail_after(-1, false);
	done();
}

/* Reading logs from a store. */

static struct test_store store;
static struct ds_repo *repo;

static void open_repo(void)
{
	struct ds_store *base = test_store_new(&store);

	cr_assert_eq(ds_repo_init_store(base, NULL, &repo, NULL), 0);
	ds_store_unref(base);
	test_store_reset(&store);
}

static struct ds_digest put_policy(uint64_t number, const struct ds_digest *previous,
				   const char *limits, const char *time)
{
	char repository[33], writer[33], text[DS_DIGEST_TEXT_MAX], line[600], key[64];
	struct ds_buf buf = DS_BUF_INIT(DS_SEALED_MAX);
	struct ds_digest self;
	json_t *object;

	ds_hex_encode(ds_repo_id(repo)->bytes, DS_UUID_LEN, repository);
	ds_hex_encode(test_uuid(1).bytes, DS_UUID_LEN, writer);
	snprintf(line, sizeof(line),
		 "{\"format\":1,\"repository\":\"%s\",\"number\":%u,\"previous\":%s%s%s,"
		 "\"writer\":\"%s\",\"time\":\"%s\",%s}",
		 repository, (unsigned)number, previous ? "\"" : "",
		 previous ? ds_digest_format(previous, text) : "null", previous ? "\"" : "", writer,
		 time, limits);
	object = json_loads(line, 0, NULL);
	cr_assert_not_null(object, "%s", line);
	cr_assert_eq(ds_sealed_encode(object, &buf), 0);
	json_decref(object);
	snprintf(key, sizeof(key), "policy/%010u", (unsigned)number);
	cr_assert_eq(ds_store_put(store.inner, key, buf.data, buf.len_bytes, NULL), 0);
	cr_assert_eq(ds_digest_of(buf.data, buf.len_bytes, &self), 0);
	ds_buf_release(&buf);
	return self;
}

Test(keep, logs_are_loaded_and_judged_at_the_stores_time)
{
	struct ds_policy_entry *loaded;
	struct ds_digest self;
	struct ds_time now;
	size_t n;

	open_repo();
	for (unsigned v = 1; v <= 70; v++) {
		test_now = test_time(v * H);
		test_append(repo, DS_REF_BRANCH, "main", v);
	}
	test_append(repo, DS_REF_TAG, "v1", 3);
	cr_assert_eq(ds_policy_load(repo, &loaded, &n, NULL), 0);
	cr_assert_eq(n, 0);
	ds_free(loaded);
	self = put_policy(1, NULL, "\"grace_s\":604800,\"keep_entries\":null,\"keep_s\":null",
			  "2026-01-10T00:00:00Z");
	put_policy(2, &self, "\"grace_s\":604800,\"keep_entries\":5,\"keep_s\":null,\"x\":[]",
		   "2026-01-11T00:00:00Z");
	cr_assert_eq(ds_policy_load(repo, &loaded, &n, NULL), 0);
	cr_assert_eq(n, 2);
	cr_assert(!loaded[0].has_keep_entries && !loaded[1].has_keep_s);
	cr_assert_eq(loaded[1].keep_entries, 5);
	ds_free(loaded);
	test_now = test_time(30 * DAY);
	cr_assert_eq(ds_keep_load(repo, &keep, &now, NULL), 0);
	cr_assert_eq(now.s, test_now.s);
	cr_assert_eq(state(65), '-');
	cr_assert_eq(state(66), 'K');
	cr_assert_eq(state(70), 'K');
	cr_assert_eq(state(3), 'K');
	cr_assert_eq(state(2), '-');
	done();
	ds_repo_unref(repo);
}

Test(keep, damaged_logs_are_refused_by_name)
{
	struct ds_store_req drop = {.op = DS_STORE_DELETE, .key = "refs/branches/main/0000000002"};
	struct ds_ref_entry first;
	struct ds_diag diag;
	struct ds_buf buf = DS_BUF_INIT(DS_SEALED_MAX);

	open_repo();
	test_append(repo, DS_REF_BRANCH, "main", 1);
	first = test_append(repo, DS_REF_BRANCH, "main", 2);
	test_append(repo, DS_REF_BRANCH, "main", 3);
	cr_assert_eq(ds_keep_load(repo, &keep, NULL, NULL), 0);
	keep = ds_keep_free(keep);
	cr_assert_eq(ds_store_perform(store.inner, &drop), 0);
	cr_assert_eq(ds_keep_load(repo, &keep, NULL, &diag), -DS_E_MALFORMED);
	cr_assert(strstr(diag.object, "refs/branches/main/0000000002"), "%s", diag.object);
	/* A well-formed entry of another chain. */
	first.version = test_digest(9);
	first.writer = test_uuid(9);
	cr_assert_eq(ds_ref_entry_encode(repo, &first, &buf), 0);
	cr_assert_eq(ds_store_put(store.inner, drop.key, buf.data, buf.len_bytes, NULL), 0);
	cr_assert_eq(ds_keep_load(repo, &keep, NULL, &diag), -DS_E_MALFORMED);
	cr_assert(strstr(diag.object, "refs/branches/main/0000000003"), "%s", diag.object);
	ds_buf_release(&buf);
	put_policy(1, NULL, "\"grace_s\":-1,\"keep_entries\":null,\"keep_s\":null",
		   "2026-01-10T00:00:00Z");
	cr_assert_eq(ds_keep_load(repo, &keep, NULL, &diag), -DS_E_MALFORMED);
	cr_assert(strstr(diag.object, "policy/0000000001"), "%s", diag.object);
	ds_repo_unref(repo);
}

Test(keep, each_store_call_of_loading_may_fail)
{
	open_repo();
	for (unsigned v = 1; v <= 40; v++)
		test_append(repo, DS_REF_BRANCH, "main", v);
	put_policy(1, NULL, "\"grace_s\":604800,\"keep_entries\":null,\"keep_s\":null",
		   "2026-01-10T00:00:00Z");
	for (long n = 0;; n++) {
		test_store_reset(&store);
		store.fail_at = n;
		store.fail_with = -DS_E_SERVER;
		if (ds_keep_load(repo, &keep, NULL, NULL) == 0) {
			cr_assert_eq(store.failed_n, 0);
			cr_assert_gt(n, 40);
			break;
		}
		cr_assert_eq(store.failed_n, 1);
	}
	done();
	ds_repo_unref(repo);
}
