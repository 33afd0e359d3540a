/* Selectors: each kind, their order, and what is never passed over. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "repo/record.h"
#include "repo_support.h"
#include "store_contract.h"
#include "util/mem.h"

TestSuite(resolve, .fini = test_leak_check);

#define DAY 86400

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

static void expect(const char *selector, unsigned version, uint64_t number)
{
	struct ds_digest id = test_digest(version);
	struct ds_diag diag = {0};
	struct ds_resolved resolved;
	int r = ds_resolve(repo, selector, &resolved, &diag);

	cr_assert_eq(r, 0, "%s: %s: %s", selector, ds_strerror(r), diag.detail);
	cr_assert_eq(diag.code, 0, "%s: left behind: %s %s", selector, diag.object, diag.detail);
	cr_assert(ds_digest_equal(&resolved.version, &id), "%s: another version", selector);
	cr_assert_eq(resolved.entry.number, number, "%s: entry %u", selector,
		     (unsigned)resolved.entry.number);
}

static void refuse(const char *selector, int code)
{
	struct ds_resolved resolved;
	int r = ds_resolve(repo, selector, &resolved, NULL);

	cr_assert_eq(r, -code, "%s: %s", selector, ds_strerror(r));
}

/* An object that could be a record, with this id. */
static void put_record(const char *id)
{
	char key[100];

	snprintf(key, sizeof(key), "versions/%s", id);
	cr_assert_eq(ds_store_put(store.inner, key, "{}", 2, NULL), 0);
}

Test(resolve, numbers_branches_and_tags)
{
	open_repo();
	for (unsigned v = 1; v <= 5; v++)
		test_append(repo, DS_REF_BRANCH, "main", v);
	test_append(repo, DS_REF_BRANCH, "a b", 11);
	test_append(repo, DS_REF_BRANCH, "a b", 12);
	test_append(repo, DS_REF_TAG, "v1", 2);
	expect(NULL, 5, 5);
	expect("", 5, 5);
	expect("main", 5, 5);
	expect("3", 3, 3);
	expect("0000000003", 3, 3);
	expect("main:4", 4, 4);
	expect("a b", 12, 2);
	expect("a b:1", 11, 1);
	expect("v1", 2, 1);
	refuse("0", DS_E_NO_VERSION);
	refuse("6", DS_E_NO_VERSION);
	refuse("99999999999999999999999", DS_E_NO_VERSION);
	refuse("main:6", DS_E_NO_VERSION);
	refuse("main:", DS_E_NO_VERSION);
	refuse(":1", DS_E_NO_VERSION);
	refuse("v1:1", DS_E_NO_VERSION);
	refuse("v2", DS_E_NO_VERSION);
	refuse("-x", DS_E_NO_VERSION);
	refuse("a/b", DS_E_NO_VERSION);
	refuse("a@b", DS_E_NO_VERSION);
	close_repo();
}

Test(resolve, a_tag_goes_before_a_branch_of_its_name)
{
	open_repo();
	test_append(repo, DS_REF_BRANCH, "main", 1);
	test_append(repo, DS_REF_BRANCH, "x", 2);
	test_append(repo, DS_REF_TAG, "x", 3);
	expect("x", 3, 1);
	expect("x:1", 2, 1);
	/* Deleted, it still stands before the branch. */
	test_append(repo, DS_REF_TAG, "x", 0);
	refuse("x", DS_E_CLOSED);
	expect("x:1", 2, 1);
	close_repo();
}

Test(resolve, closed_branches_and_deleted_entries_are_said_to_be_so)
{
	open_repo();
	test_append(repo, DS_REF_BRANCH, "main", 1);
	test_now = test_time(DAY);
	test_append(repo, DS_REF_BRANCH, "main", 0);
	refuse(NULL, DS_E_CLOSED);
	refuse("main", DS_E_CLOSED);
	refuse("2", DS_E_CLOSED);
	refuse("main:2", DS_E_CLOSED);
	refuse("2026-01-02", DS_E_CLOSED);
	expect("1", 1, 1);
	expect("2026-01-01", 1, 1);
	test_now = test_time(2 * DAY);
	test_append(repo, DS_REF_BRANCH, "main", 3);
	expect("main", 3, 3);
	refuse("2", DS_E_CLOSED);
	refuse("2026-01-02T12:00", DS_E_CLOSED);
	expect("2026-01-03", 3, 3);
	close_repo();
}

Test(resolve, dates_with_zones_and_without)
{
	open_repo();
	test_now = test_time(10 * 3600); /* 2026-01-01 10:00 UTC */
	test_append(repo, DS_REF_BRANCH, "main", 1);
	test_now = test_time(23 * 3600 + 3599);
	test_now.ns = 999000000;
	test_append(repo, DS_REF_BRANCH, "main", 2);
	test_now = test_time(DAY);
	test_append(repo, DS_REF_BRANCH, "main", 3);
	test_append(repo, DS_REF_BRANCH, "other", 9);
	/* A bare date is the end of its day. */
	expect("2026-01-01", 2, 2);
	expect("2026-01-02", 3, 3);
	expect("2030-01-01", 3, 3);
	refuse("2025-12-31", DS_E_NO_VERSION);
	expect("2026-01-01T10:00", 1, 1);
	expect("2026-01-01 10:00", 1, 1);
	expect("2026-01-01T10:00:00Z", 1, 1);
	expect("2026-01-01T11:00+01:00", 1, 1);
	expect("2026-01-01T05:00:00.5-05:00", 1, 1);
	refuse("2026-01-01T09:59:59.999Z", DS_E_NO_VERSION);
	refuse("2026-01-01T10:59+01:00", DS_E_NO_VERSION);
	expect("2026-01-01T23:59:59", 1, 1);
	expect("2026-01-02T00:00:00Z", 3, 3);
	expect("2026-01-02T01:00:00+01:00", 3, 3);
	close_repo();
}

Test(resolve, a_branch_may_look_like_the_beginning_of_a_time)
{
	open_repo();
	test_append(repo, DS_REF_BRANCH, "main", 1);
	for (unsigned v = 1; v <= 12; v++)
		test_append(repo, DS_REF_BRANCH, "2026-01-02T03", 20 + v);
	expect("2026-01-02T03:11", 31, 11);
	expect("2026-01-02T03:13", 1, 1); /* no such entry: the time */
	close_repo();
}

Test(resolve, ids_and_their_prefixes)
{
	const char *a = "12345678aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
	const char *b = "12345678abbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
	const char *c = "1234567899999999999999999999999999999999999999999999999999999999";
	struct ds_resolved resolved;
	struct ds_diag diag;
	char text[DS_DIGEST_TEXT_MAX];

	open_repo();
	test_append(repo, DS_REF_BRANCH, "main", 1);
	put_record(a);
	cr_assert_eq(
		ds_store_put(store.inner,
			     "versions/12345678aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
			     "aaaaaaaa.sig",
			     "x", 1, NULL),
		0);
	cr_assert_eq(ds_resolve(repo, "12345678", &resolved, &diag), 0, "%s", diag.detail);
	cr_assert_str_eq(ds_digest_format(&resolved.version, text), a);
	cr_assert_eq(resolved.entry.number, 0);
	put_record(b);
	cr_assert_eq(ds_resolve(repo, "12345678a", &resolved, &diag), -DS_E_AMBIGUOUS);
	cr_assert(strstr(diag.detail, "12345678aaaa") && strstr(diag.detail, "12345678abbb"), "%s",
		  diag.detail);
	cr_assert_eq(ds_resolve(repo, "12345678ab", &resolved, &diag), 0);
	cr_assert_str_eq(ds_digest_format(&resolved.version, text), b);
	cr_assert_eq(ds_resolve(repo, a, &resolved, &diag), 0);
	cr_assert_str_eq(ds_digest_format(&resolved.version, text), a);
	/* All digits and decimal. */
	put_record(c);
	cr_assert_eq(ds_resolve(repo, c, &resolved, &diag), 0);
	cr_assert_eq(ds_resolve(repo, "1234567899", &resolved, &diag), 0);
	refuse("1234567", DS_E_NO_VERSION);
	refuse("12345678c", DS_E_NO_VERSION);
	refuse("12345678A", DS_E_NO_VERSION);
	refuse("22345678aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", DS_E_NO_VERSION);
	close_repo();
}

Test(resolve, what_there_is_is_listed)
{
	struct ds_resolved resolved;
	struct ds_diag diag = {0};
	char name[32];

	open_repo();
	cr_assert_eq(ds_resolve(repo, NULL, &resolved, &diag), -DS_E_NO_VERSION);
	cr_assert(strstr(diag.detail, "no version yet"), "%s", diag.detail);
	for (unsigned v = 1; v <= 3; v++)
		test_append(repo, DS_REF_BRANCH, "main", v);
	test_append(repo, DS_REF_BRANCH, "old", 1);
	test_append(repo, DS_REF_BRANCH, "old", 0);
	test_append(repo, DS_REF_TAG, "v1.0", 1);
	cr_assert_eq(ds_resolve(repo, "nope", &resolved, &diag), -DS_E_NO_VERSION);
	cr_assert_str_eq(diag.object, "\"nope\"");
	cr_assert_str_eq(diag.detail, "branches: main (1..3), old (closed); tags: v1.0");
	for (unsigned n = 0; n < 100; n++) {
		snprintf(name, sizeof(name), "tag-number-%u", n);
		test_append(repo, DS_REF_TAG, name, 1);
	}
	cr_assert_eq(ds_resolve(repo, "nope", &resolved, &diag), -DS_E_NO_VERSION);
	cr_assert(strstr(diag.detail, " ..."), "%s", diag.detail);
	close_repo();
}

Test(resolve, where_listing_is_forbidden_403_is_absence)
{
	struct ds_digest id = test_digest(40);
	char text[DS_DIGEST_TEXT_MAX];
	struct ds_resolved resolved;
	struct ds_diag diag = {0};

	open_repo();
	for (unsigned v = 1; v <= 20; v++)
		test_append(repo, DS_REF_BRANCH, "main", v);
	test_append(repo, DS_REF_TAG, "v1", 2);
	put_record(ds_digest_format(&id, text));
	store.deny_list = true;
	expect(NULL, 20, 20);
	expect("17", 17, 17);
	expect("v1", 2, 1);
	expect("main", 20, 20);
	expect("2026-01-01", 20, 20);
	expect(text, 40, 0);
	refuse("21", DS_E_NO_VERSION);
	cr_assert_eq(ds_resolve(repo, "nope", &resolved, &diag), -DS_E_NO_VERSION);
	cr_assert(strstr(diag.detail, "main (1..20)"), "%s", diag.detail);
	text[10] = '\0';
	cr_assert_eq(ds_resolve(repo, text, &resolved, &diag), -DS_E_DENIED);
	cr_assert(strstr(diag.detail, "64 digits"), "%s", diag.detail);
	close_repo();
}

Test(resolve, A18_a_store_that_fails_is_never_no_such_version)
{
	static const char *const selectors[] = {"3",	"main:3",     "v1",
						"main", "2026-01-01", "abcdef0123"};

	open_repo();
	for (unsigned v = 1; v <= 5; v++)
		test_append(repo, DS_REF_BRANCH, "main", v);
	test_append(repo, DS_REF_TAG, "v1", 2);
	put_record("abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789");
	for (size_t i = 0; i < DS_ARRAY_SIZE(selectors); i++) {
		struct ds_resolved right;
		unsigned hints_n = 0;

		test_store_reset(&store);
		cr_assert_eq(ds_resolve(repo, selectors[i], &right, NULL), 0);
		for (long n = 0;; n++) {
			struct ds_resolved resolved;
			int r;

			test_store_reset(&store);
			store.fail_at = n;
			store.fail_with = -DS_E_SERVER;
			r = ds_resolve(repo, selectors[i], &resolved, NULL);
			if (store.failed_n == 0) {
				cr_assert_eq(r, 0);
				cr_assert_gt(n, 0);
				break;
			}
			/* Without the hint it is found, too. */
			if (r == 0) {
				cr_assert_eq(++hints_n, 1);
				cr_assert(ds_digest_equal(&resolved.version, &right.version));
				continue;
			}
			cr_assert_eq(r, -DS_E_SERVER, "%s, call %ld: %s", selectors[i], n,
				     ds_strerror(r));
		}
	}
	close_repo();
}

Test(resolve, a_damaged_entry_is_not_passed_over)
{
	open_repo();
	test_append(repo, DS_REF_BRANCH, "main", 1);
	test_append(repo, DS_REF_BRANCH, "x", 1);
	cr_assert_eq(ds_store_put(store.inner, "refs/tags/x/0000000001", "{}", 2, NULL), 0);
	refuse("x", DS_E_MALFORMED);
	close_repo();
}
