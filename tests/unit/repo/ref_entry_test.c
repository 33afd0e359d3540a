/* Names of refs and the bytes of entries. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "repo/sealed.h"
#include "repo_support.h"
#include "store_contract.h"
#include "util/mem.h"

TestSuite(ref_entry, .fini = test_leak_check);

static struct test_store store;
static struct ds_repo *repo;

static void open_repo(void)
{
	struct ds_store *base = test_store_new(&store);

	cr_assert_eq(ds_repo_init_store(base, NULL, &repo, NULL), 0);
	ds_store_unref(base);
}

Test(ref_entry, good_names)
{
	static const char *const names[] = {
		"main",	   "v2.1",    "a b",	 "\xc3\xa9",   "release-2026", "1234567a",
		"abcdefg", "v1%",     "2026-01", "2026-13-01", "x.",	       "_",
		"12-",	   "deadbee", "1.0",	 "~",	       "a\\b",	       "HEAD",
	};

	for (size_t i = 0; i < DS_ARRAY_SIZE(names); i++) {
		bool ok = ds_ref_name_check(names[i], NULL) == 0;

		/* Seven digits and a letter of hex are eight hex digits. */
		cr_assert_eq(ok, strcmp(names[i], "1234567a") != 0, "%s", names[i]);
	}
}

Test(ref_entry, bad_names)
{
	static const char *const names[] = {
		"",
		"a/b",
		"a@b",
		"a:b",
		"a,b",
		"a\nb",
		"a\x7f",
		"\x01",
		"\xc2\x85",
		"\xff",
		"\xc3",
		"0",
		"42",
		"12345678901234567890",
		"deadbeef",
		"DEADBEEF",
		"0123456789abcdef",
		"2026-01-01",
		"2026-01-01T10:00",
		".a",
		".",
		"..",
		"-a",
		"-",
	};

	for (size_t i = 0; i < DS_ARRAY_SIZE(names); i++) {
		struct ds_diag diag = {0};

		cr_assert_eq(ds_ref_name_check(names[i], &diag), -DS_E_USAGE, "%s", names[i]);
		cr_assert(diag.detail[0]);
	}
}

Test(ref_entry, the_encoded_name_is_bounded)
{
	char name[DS_REF_NAME_MAX + 2];

	memset(name, 'g', sizeof(name));
	name[DS_REF_NAME_MAX + 1] = '\0';
	cr_assert_eq(ds_ref_name_check(name, NULL), -DS_E_USAGE);
	name[DS_REF_NAME_MAX] = '\0';
	cr_assert_eq(ds_ref_name_check(name, NULL), 0);
	memset(name, ' ', 67);
	name[67] = '\0';
	cr_assert_eq(ds_ref_name_check(name, NULL), -DS_E_USAGE);
	name[66] = '\0';
	cr_assert_eq(ds_ref_name_check(name, NULL), 0);
}

Test(ref_entry, keys)
{
	char *key = ds_ref_key(DS_REF_BRANCH, "a b\xc3\xa9%_.-", 42);

	cr_assert_str_eq(key, "refs/branches/a%20b%C3%A9%25_.-/0000000042");
	ds_free(key);
	key = ds_ref_key(DS_REF_TAG, "v1", UINT64_C(9999999999));
	cr_assert_str_eq(key, "refs/tags/v1/9999999999");
	ds_free(key);
}

static struct ds_ref_entry sample(enum ds_ref_kind kind, uint64_t number, bool deleted)
{
	struct ds_ref_entry entry = {.kind = kind,
				     .name = "a b",
				     .number = number,
				     .is_deleted = deleted,
				     .writer = test_uuid(5),
				     .time = {.s = TEST_START_S, .ns = 123456789}};

	if (!deleted)
		entry.version = test_digest(1);
	if (number > 1)
		entry.previous = test_digest(2);
	return entry;
}

Test(ref_entry, what_was_encoded_is_read_back)
{
	open_repo();
	for (int i = 0; i < 5; i++) {
		struct ds_ref_entry in =
			sample(i & 1 ? DS_REF_TAG : DS_REF_BRANCH, i < 2 ? 1 : 2, i == 3 || i == 4);
		struct ds_buf buf = DS_BUF_INIT(DS_SEALED_MAX);
		struct ds_ref_entry out;
		struct ds_digest self;

		cr_assert_eq(ds_ref_entry_encode(repo, &in, &buf), 0);
		cr_assert_eq(in.time.ns, 123000000);
		cr_assert_eq(ds_digest_of(buf.data, buf.len_bytes, &self), 0);
		cr_assert(ds_digest_equal(&self, &in.self));
		cr_assert_eq(ds_ref_entry_parse(repo, in.kind, in.name, in.number, buf.data,
						buf.len_bytes, &out, NULL),
			     0);
		cr_assert_eq(out.kind, in.kind);
		cr_assert_str_eq(out.name, in.name);
		cr_assert_eq(out.number, in.number);
		cr_assert_eq(out.is_deleted, in.is_deleted);
		cr_assert_eq(ds_time_compare(out.time, in.time), 0);
		cr_assert_eq(memcmp(out.writer.bytes, in.writer.bytes, DS_UUID_LEN), 0);
		cr_assert(ds_digest_equal(&out.version, &in.version));
		cr_assert(ds_digest_equal(&out.previous, &in.previous));
		cr_assert(ds_digest_equal(&out.self, &in.self));
		ds_buf_release(&buf);
	}
	ds_repo_unref(repo);
}

Test(ref_entry, an_entry_under_another_key_is_refused)
{
	struct ds_ref_entry in = sample(DS_REF_BRANCH, 2, false), out;
	struct ds_buf buf = DS_BUF_INIT(DS_SEALED_MAX);
	static struct test_store other_store;
	struct ds_store *base = test_store_new(&other_store);
	struct ds_repo *other;
	struct ds_diag diag;

	cr_assert_eq(ds_repo_init_store(base, NULL, &other, NULL), 0);
	ds_store_unref(base);
	open_repo();
	cr_assert_eq(ds_ref_entry_encode(repo, &in, &buf), 0);
	cr_assert_eq(ds_ref_entry_parse(repo, DS_REF_BRANCH, "a b", 3, buf.data, buf.len_bytes,
					&out, &diag),
		     -DS_E_MALFORMED);
	cr_assert_str_eq(diag.object, "\"refs/branches/a%20b/0000000003\"");
	cr_assert_eq(ds_ref_entry_parse(repo, DS_REF_BRANCH, "a", 2, buf.data, buf.len_bytes, &out,
					NULL),
		     -DS_E_MALFORMED);
	cr_assert_eq(ds_ref_entry_parse(repo, DS_REF_TAG, "a b", 2, buf.data, buf.len_bytes, &out,
					NULL),
		     -DS_E_MALFORMED);
	cr_assert_eq(ds_ref_entry_parse(other, DS_REF_BRANCH, "a b", 2, buf.data, buf.len_bytes,
					&out, &diag),
		     -DS_E_MALFORMED);
	cr_assert(strstr(diag.detail, "repository"));
	ds_repo_unref(other);
	ds_repo_unref(repo);
	ds_buf_release(&buf);
}

/* The sample with fields changed (NULL value: taken away), sealed anew. */
static int parse_changed(const char *name, json_t *value)
{
	struct ds_ref_entry in = sample(DS_REF_BRANCH, 2, false), out;
	struct ds_buf buf = DS_BUF_INIT(DS_SEALED_MAX);
	json_t *object;
	int r;

	cr_assert_eq(ds_ref_entry_encode(repo, &in, &buf), 0);
	cr_assert_eq(ds_sealed_parse(buf.data, buf.len_bytes, "", &object, NULL, NULL), 0);
	if (value)
		json_object_set_new(object, name, value);
	else
		json_object_del(object, name);
	ds_buf_clear(&buf);
	cr_assert_eq(ds_sealed_encode(object, &buf), 0);
	json_decref(object);
	r = ds_ref_entry_parse(repo, DS_REF_BRANCH, "a b", 2, buf.data, buf.len_bytes, &out, NULL);
	ds_buf_release(&buf);
	return r;
}

Test(ref_entry, unknown_fields_are_passed_over_and_wrong_ones_refused)
{
	open_repo();
	cr_assert_eq(parse_changed("later", json_pack("{s:[i]}", "x", 1)), 0);
	cr_assert_eq(parse_changed("deleted", json_false()), 0);
	cr_assert_eq(parse_changed("format", json_integer(2)), -DS_E_TOO_NEW);
	cr_assert_eq(parse_changed("format", NULL), -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("repository", NULL), -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("branch", NULL), -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("branch", json_integer(1)), -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("number", json_string("2")), -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("version", NULL), -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("version", json_string("ABC")), -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("deleted", json_true()), -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("deleted", json_integer(1)), -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("previous", json_null()), -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("writer", json_string("00")), -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("time", json_string("2026-01-01")), -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("time", json_string("soon")), -DS_E_MALFORMED);
	ds_repo_unref(repo);
}

Test(ref_entry, every_allocation_may_fail)
{
	struct ds_ref_entry in = sample(DS_REF_BRANCH, 2, false), out;
	struct ds_buf buf = DS_BUF_INIT(DS_SEALED_MAX);
	int r = -ENOMEM;

	open_repo();
	json_set_alloc_funcs(ds_malloc, ds_free);
	for (int n = 0; r < 0; n++) {
		ds_mem_fail_after(n, false);
		r = ds_ref_entry_encode(repo, &in, &buf);
		cr_assert(r == 0 || (r == -ENOMEM && buf.len_bytes == 0));
	}
	r = -ENOMEM;
	for (int n = 0; r < 0; n++) {
		ds_mem_fail_after(n, false);
		r = ds_ref_entry_parse(repo, DS_REF_BRANCH, "a b", 2, buf.data, buf.len_bytes, &out,
				       NULL);
		cr_assert(r == 0 || r == -ENOMEM || r == -DS_E_MALFORMED);
	}
	ds_mem_fail_after(-1, false);
	ds_buf_release(&buf);
	ds_repo_unref(repo);
}
