/* Logs of entries: append, head, at, list. Attacks INV-1 and INV-2 of ref_log.c. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "repo_support.h"
#include "store_contract.h"
#include "util/mem.h"
#include "util/str.h"

TestSuite(refs_log, .fini = test_leak_check);

static struct test_store store;
static struct ds_repo *repo;

static void open_repo(void)
{
	struct ds_store *base = test_store_new(&store);

	cr_assert_eq(ds_repo_init_store(base, NULL, &repo, NULL), 0);
	ds_store_unref(base);
	test_store_reset(&store);
}

static void close_repo(void)
{
	repo = ds_repo_unref(repo);
}

static void put(const char *key, const char *text)
{
	cr_assert_eq(ds_store_put(store.inner, key, text, strlen(text), NULL), 0);
}

static void drop(const char *key)
{
	struct ds_store_req req = {.op = DS_STORE_DELETE, .key = key};

	cr_assert_eq(ds_store_perform(store.inner, &req), 0);
}

Test(refs_log, entries_are_numbered_and_chained)
{
	struct ds_ref_entry first, second, head;

	open_repo();
	first = test_append(repo, DS_REF_BRANCH, "main", 1);
	test_now = test_time(10);
	second = test_append(repo, DS_REF_BRANCH, "main", 2);
	cr_assert_eq(first.number, 1);
	cr_assert_eq(second.number, 2);
	cr_assert(ds_digest_is_zero(&first.previous));
	cr_assert(ds_digest_equal(&second.previous, &first.self));
	cr_assert_eq(second.time.s, TEST_START_S + 10);
	cr_assert_eq(ds_ref_head(repo, DS_REF_BRANCH, "main", &head, NULL), 0);
	cr_assert(ds_digest_equal(&head.self, &second.self));
	cr_assert(ds_digest_equal(&head.version, &second.version));
	close_repo();
}

Test(refs_log, time_never_goes_back)
{
	struct ds_ref_entry entry;

	open_repo();
	test_now = test_time(100);
	test_append(repo, DS_REF_BRANCH, "main", 1);
	test_now = test_time(50);
	entry = test_append(repo, DS_REF_BRANCH, "main", 2);
	cr_assert_eq(entry.time.s, TEST_START_S + 100);
	close_repo();
}

Test(refs_log, a_hint_that_cannot_be_read_is_none)
{
	static const int faults[] = {-EINVAL, -EIO, -DS_E_DENIED, -DS_E_NETWORK, -DS_E_CORRUPT};
	struct ds_diag diag = {0};
	struct ds_ref_entry head;

	open_repo();
	for (unsigned n = 1; n <= 5; n++)
		test_append(repo, DS_REF_BRANCH, "main", n);
	for (size_t i = 0; i < DS_ARRAY_SIZE(faults); i++) {
		test_store_reset(&store);
		store.fail_at = 0;
		store.fail_with = faults[i];
		cr_assert_eq(ds_ref_head(repo, DS_REF_BRANCH, "main", &head, &diag), 0);
		cr_assert_eq(store.failed_n, 1);
		cr_assert_eq(head.number, 5);
		cr_assert_eq(diag.code, 0, "left behind: %s", diag.object);
	}
	test_store_reset(&store);
	store.fail_at = 0;
	store.fail_with = -DS_E_INTERRUPTED;
	cr_assert_eq(ds_ref_head(repo, DS_REF_BRANCH, "main", &head, &diag), -DS_E_INTERRUPTED);
	close_repo();
}

Test(refs_log, the_head_is_found_from_any_hint)
{
	static const char *const hints[] = {
		NULL,	"1\n", "2\n", "7\n", "13\n", "12\n",	     "14\n",
		"99\n", "0\n", "x",   "",    "12",   "9999999999\n", "99999999999999999999999\n"};
	struct ds_ref_entry head;

	open_repo();
	for (unsigned n = 1; n <= 13; n++) {
		test_append(repo, DS_REF_BRANCH, "a b", n);
		for (size_t i = 0; i < DS_ARRAY_SIZE(hints); i++) {
			if (hints[i])
				put("hints/branches/a%20b", hints[i]);
			else
				drop("hints/branches/a%20b");
			cr_assert_eq(ds_ref_head(repo, DS_REF_BRANCH, "a b", &head, NULL), 0);
			cr_assert_eq(head.number, n, "hint %s: %u instead of %u", hints[i],
				     (unsigned)head.number, n);
		}
	}
	close_repo();
}

Test(refs_log, a_good_hint_makes_it_three_requests)
{
	struct ds_ref_entry head;

	open_repo();
	for (unsigned n = 1; n <= 40; n++)
		test_append(repo, DS_REF_BRANCH, "main", n);
	test_store_reset(&store);
	cr_assert_eq(ds_ref_head(repo, DS_REF_BRANCH, "main", &head, NULL), 0);
	cr_assert_eq(store.calls_n, 3);
	close_repo();
}

Test(refs_log, of_two_writers_one_has_a_conflict)
{
	struct ds_ref_entry head, mine, theirs;

	open_repo();
	head = test_append(repo, DS_REF_BRANCH, "main", 1);
	cr_assert_eq(test_try_append(repo, DS_REF_BRANCH, "main", &head, 2, false, &theirs), 0);
	cr_assert_eq(test_try_append(repo, DS_REF_BRANCH, "main", &head, 3, false, &mine),
		     -DS_E_CONFLICT);
	/* The same version does not make it ours. */
	cr_assert_eq(test_try_append(repo, DS_REF_BRANCH, "main", &head, 2, false, &mine),
		     -DS_E_CONFLICT);
	close_repo();
}

Test(refs_log, D02_a_lost_reply_is_cleared_up_by_the_writer)
{
	struct ds_ref_entry head, entry;

	open_repo();
	head = test_append(repo, DS_REF_BRANCH, "main", 1);
	store.fail_at = store.calls_n;
	store.fail_after = true;
	store.fail_with = -DS_E_NETWORK;
	cr_assert_eq(test_try_append(repo, DS_REF_BRANCH, "main", &head, 2, false, &entry), 0);
	cr_assert_eq(store.failed_n, 1);
	cr_assert_eq(entry.number, 2);
	/* The store sent it again and met its own object. */
	store.fail_at = store.calls_n;
	store.fail_with = -DS_E_PRESENT;
	head = entry;
	cr_assert_eq(test_try_append(repo, DS_REF_BRANCH, "main", &head, 3, false, &entry), 0);
	cr_assert_eq(store.failed_n, 2);
	cr_assert_eq(entry.number, 3);
	cr_assert_eq(ds_ref_head(repo, DS_REF_BRANCH, "main", &head, NULL), 0);
	cr_assert(ds_digest_equal(&head.self, &entry.self));
	close_repo();
}

Test(refs_log, A25_an_entry_that_the_store_swallows_is_not_acknowledged)
{
	struct ds_ref_entry head, entry;

	open_repo();
	head = test_append(repo, DS_REF_BRANCH, "main", 1);
	store.swallow_refs = true;
	cr_assert_eq(test_try_append(repo, DS_REF_BRANCH, "main", &head, 2, false, &entry),
		     -DS_E_CORRUPT);
	cr_assert_eq(test_try_append(repo, DS_REF_TAG, "v1", NULL, 2, false, &entry),
		     -DS_E_CORRUPT);
	store.swallow_refs = false;
	cr_assert_eq(test_try_append(repo, DS_REF_BRANCH, "main", &head, 2, false, &entry), 0);
	cr_assert_eq(entry.number, 2);
	close_repo();
}

Test(refs_log, D03_own_entry_is_known_with_others_on_top)
{
	struct ds_ref_entry head, entry, other = {.kind = DS_REF_BRANCH, .name = "main"};

	open_repo();
	head = test_append(repo, DS_REF_BRANCH, "main", 1);
	other.version = test_digest(2);
	other.writer = test_uuid(7);
	cr_assert_eq(ds_ref_append(repo, &head, &other, (struct ds_time){0}, &entry, NULL), 0);
	test_append(repo, DS_REF_BRANCH, "main", 3);
	/* The same operation, once more. */
	cr_assert_eq(ds_ref_append(repo, &head, &other, (struct ds_time){0}, &entry, NULL), 0);
	cr_assert_eq(entry.number, 2);
	cr_assert(ds_digest_equal(&entry.version, &other.version));
	close_repo();
}

Test(refs_log, nothing_is_put_after_the_limit)
{
	struct ds_ref_entry wanted = {.kind = DS_REF_BRANCH, .name = "main"}, entry;

	open_repo();
	wanted.version = test_digest(1);
	wanted.writer = test_uuid(1);
	test_now = test_time(101);
	cr_assert_eq(ds_ref_append(repo, NULL, &wanted, test_time(100), &entry, NULL), -DS_E_LATE);
	cr_assert_eq(ds_ref_head(repo, DS_REF_BRANCH, "main", &entry, NULL), -DS_E_NO_VERSION);
	/* In time, but held up between the check and the store: S3 refuses the signature. */
	test_now = test_time(99);
	store.hold_put_s = 15 * 60 + 1;
	cr_assert_eq(ds_ref_append(repo, NULL, &wanted, test_time(100), &entry, NULL), -DS_E_LATE);
	test_now = test_time(100);
	store.hold_put_s = 0;
	cr_assert_eq(ds_ref_append(repo, NULL, &wanted, test_time(100), &entry, NULL), 0);
	close_repo();
}

/* The first try's answer was lost, and the second came when the store did not take the signature any more. */
Test(refs_log, D02_an_entry_that_was_made_before_it_was_late_is_made)
{
	struct ds_ref_entry wanted = {.kind = DS_REF_BRANCH, .name = "main"}, other, head, entry;
	struct ds_diag diag = {0};

	open_repo();
	head = test_append(repo, DS_REF_BRANCH, "main", 1);
	wanted.version = test_digest(2);
	wanted.writer = test_uuid(7);
	store.fail_at = store.calls_n;
	store.fail_after = true;
	store.fail_with = -DS_E_LATE;
	cr_assert_eq(ds_ref_append(repo, &head, &wanted, test_time(100), &entry, &diag), 0);
	cr_assert_eq(store.failed_n, 1);
	cr_assert_eq(diag.code, 0);
	cr_assert_eq(entry.number, 2);
	/* Somebody else's, made before. */
	other = wanted;
	other.writer = test_uuid(8);
	store.fail_at = store.calls_n;
	store.fail_after = false;
	cr_assert_eq(ds_ref_append(repo, &head, &other, test_time(100), &entry, NULL),
		     -DS_E_CONFLICT);
	cr_assert_eq(store.failed_n, 2);
	/* None. */
	head = entry;
	store.fail_at = store.calls_n;
	cr_assert_eq(ds_ref_append(repo, &head, &other, test_time(100), &entry, &diag), -DS_E_LATE);
	cr_assert_eq(diag.code, -DS_E_LATE);
	close_repo();
}

Test(refs_log, a_tag_is_spent_once_deleted)
{
	struct ds_ref_entry tag, gone, entry;

	open_repo();
	tag = test_append(repo, DS_REF_TAG, "v1", 1);
	cr_assert_eq(test_try_append(repo, DS_REF_TAG, "v1", NULL, 2, false, &entry),
		     -DS_E_CONFLICT);
	cr_assert_eq(test_try_append(repo, DS_REF_TAG, "v1", &tag, 2, false, &entry),
		     -DS_E_PRESENT);
	cr_assert_eq(test_try_append(repo, DS_REF_TAG, "v2", NULL, 2, true, &entry),
		     -DS_E_NO_VERSION);
	cr_assert_eq(test_try_append(repo, DS_REF_TAG, "v1", &tag, 0, true, &gone), 0);
	cr_assert_eq(gone.number, 2);
	cr_assert(gone.is_deleted);
	cr_assert_eq(test_try_append(repo, DS_REF_TAG, "v1", &gone, 2, false, &entry),
		     -DS_E_CLOSED);
	cr_assert_eq(ds_ref_head(repo, DS_REF_TAG, "v1", &entry, NULL), 0);
	cr_assert(entry.is_deleted);
	close_repo();
}

Test(refs_log, at_finds_the_newest_entry_of_a_time)
{
	struct ds_ref_entry entry;
	struct ds_diag diag;

	open_repo();
	for (unsigned n = 1; n <= 9; n++) {
		test_now = test_time(n * 100);
		test_append(repo, DS_REF_BRANCH, "main", n);
		test_append(repo, DS_REF_BRANCH, "main", 10 + n);
	}
	cr_assert_eq(ds_ref_at(repo, "main", test_time(99), &entry, &diag), -DS_E_NO_VERSION);
	cr_assert(strstr(diag.detail, "2026-01-01T00:01:40"), "%s", diag.detail);
	for (unsigned s = 100; s <= 1000; s += 50) {
		cr_assert_eq(ds_ref_at(repo, "main", test_time(s), &entry, NULL), 0);
		cr_assert_eq(entry.number, DS_MIN(s / 100, 9u) * 2, "%u", s);
	}
	cr_assert_eq(ds_ref_at(repo, "none", test_time(99), &entry, NULL), -DS_E_NO_VERSION);
	close_repo();
}

Test(refs_log, list_gives_heads_in_order_and_passes_over_what_it_does_not_know)
{
	struct ds_ref_list list;

	open_repo();
	cr_assert_eq(ds_refs_list(repo, &list, NULL), 0);
	cr_assert_eq(list.heads_n, 0);
	ds_ref_list_release(&list);
	test_append(repo, DS_REF_TAG, "v1", 1);
	test_append(repo, DS_REF_BRANCH, "main", 1);
	test_append(repo, DS_REF_BRANCH, "main", 2);
	test_append(repo, DS_REF_BRANCH, "a", 3);
	test_append(repo, DS_REF_BRANCH, "a-b", 3);
	test_append(repo, DS_REF_BRANCH, "a b", 3);
	test_append(repo, DS_REF_BRANCH, "a b", 0);
	test_append(repo, DS_REF_TAG, "\xc3\xa9", 1);
	put("refs/branches/main/0000000003.sig", "x");
	put("refs/branches/main/3", "x");
	put("refs/branches/a%2fb/0000000001", "x");
	put("refs/branches/12/0000000001", "x");
	put("refs/remotes/x/0000000001", "x");
	put("refs/branches/x/y/0000000001", "x");
	cr_assert_eq(ds_refs_list(repo, &list, NULL), 0);
	cr_assert_eq(list.heads_n, 6);
	cr_assert_str_eq(list.heads[0].name, "a");
	cr_assert_str_eq(list.heads[1].name, "a b");
	cr_assert(list.heads[1].is_deleted);
	cr_assert_str_eq(list.heads[2].name, "a-b");
	cr_assert_str_eq(list.heads[3].name, "main");
	cr_assert_eq(list.heads[3].number, 2);
	cr_assert_str_eq(list.heads[4].name, "v1");
	cr_assert_str_eq(list.heads[5].name, "\xc3\xa9");
	cr_assert_eq(list.heads[5].kind, DS_REF_TAG);
	ds_ref_list_release(&list);
	store.deny_list = true;
	cr_assert_eq(ds_refs_list(repo, &list, NULL), -DS_E_DENIED);
	close_repo();
}

Test(refs_log, many_refs_are_listed)
{
	struct ds_ref_list list;

	open_repo();
	for (unsigned n = 0; n < 200; n++) {
		char name[32];

		snprintf(name, sizeof(name), "t%03u", n);
		test_append(repo, DS_REF_TAG, name, n + 1);
	}
	cr_assert_eq(ds_refs_list(repo, &list, NULL), 0);
	cr_assert_eq(list.heads_n, 200);
	for (unsigned n = 0; n < 200; n++) {
		struct ds_digest version = test_digest(n + 1);

		cr_assert(ds_digest_equal(&list.heads[n].version, &version));
	}
	ds_ref_list_release(&list);
	close_repo();
}

/* Each store call of an append fails in turn; nothing is torn, and the truth is told. */
static void append_with_faults(bool after)
{
	for (long n = 0;; n++) {
		struct ds_ref_entry head, entry, found;
		int r;

		open_repo();
		head = test_append(repo, DS_REF_BRANCH, "main", 1);
		test_store_reset(&store);
		store.fail_at = n;
		store.fail_after = after;
		store.fail_with = -DS_E_NETWORK;
		r = test_try_append(repo, DS_REF_BRANCH, "main", &head, 2, false, &entry);
		if (store.failed_n == 0) {
			cr_assert_eq(r, 0);
			cr_assert_gt(n, 1);
			close_repo();
			return;
		}
		test_store_reset(&store);
		cr_assert_eq(ds_ref_head(repo, DS_REF_BRANCH, "main", &found, NULL), 0);
		cr_assert_eq(found.number, r == 0 ? 2 : 1);
		close_repo();
	}
}

Test(refs_log, each_store_call_of_an_append_may_fail)
{
	append_with_faults(false);
}

Test(refs_log, each_reply_of_an_append_may_be_lost)
{
	append_with_faults(true);
}

Test(refs_log, when_the_store_stays_away_the_error_is_the_stores)
{
	struct ds_ref_entry head, entry;

	open_repo();
	head = test_append(repo, DS_REF_BRANCH, "main", 1);
	test_store_reset(&store);
	store.fail_at = 0;
	store.fail_sticky = true;
	store.fail_with = -DS_E_THROTTLED;
	cr_assert_eq(test_try_append(repo, DS_REF_BRANCH, "main", &head, 2, false, &entry),
		     -DS_E_THROTTLED);
	cr_assert_eq(ds_ref_head(repo, DS_REF_BRANCH, "main", &entry, NULL), -DS_E_THROTTLED);
	cr_assert_eq(ds_refs_list(repo, &(struct ds_ref_list){0}, NULL), -DS_E_THROTTLED);
	close_repo();
}

Test(refs_log, every_allocation_may_fail)
{
	struct ds_resolved resolved;
	struct ds_ref_entry head, made, found;
	struct ds_ref_list list;
	int r;

	open_repo();
	for (unsigned n = 1; n <= 5; n++)
		test_append(repo, DS_REF_BRANCH, "main", n);
	test_append(repo, DS_REF_TAG, "v1", 1);
	r = -ENOMEM;
	for (int n = 0; r < 0; n++) {
		ds_mem_fail_after(n, false);
		r = ds_refs_list(repo, &list, NULL);
		ds_mem_fail_after(-1, false);
		cr_assert(r == 0 || r == -ENOMEM, "%d: %s", n, ds_strerror(r));
	}
	cr_assert_eq(list.heads_n, 2);
	ds_ref_list_release(&list);
	r = -ENOMEM;
	for (int n = 0; r < 0; n++) {
		ds_mem_fail_after(n, false);
		r = ds_resolve(repo, "2026-01-01", &resolved, NULL);
		ds_mem_fail_after(-1, false);
		cr_assert(r == 0 || r == -ENOMEM, "%d: %s", n, ds_strerror(r));
	}
	cr_assert_eq(ds_ref_head(repo, DS_REF_BRANCH, "main", &head, NULL), 0);
	r = -ENOMEM;
	for (int n = 0; r < 0; n++) {
		ds_mem_fail_after(n, false);
		r = test_try_append(repo, DS_REF_BRANCH, "main", &head, 9, false, &made);
		ds_mem_fail_after(-1, false);
		cr_assert(r == 0 || r == -ENOMEM, "%d: %s", n, ds_strerror(r));
		cr_assert_eq(ds_ref_head(repo, DS_REF_BRANCH, "main", &found, NULL), 0);
		cr_assert_eq(found.number, r == 0 ? 6 : 5);
	}
	close_repo();
}
