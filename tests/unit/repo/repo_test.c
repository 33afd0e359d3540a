/* Locators, sealed JSON, opening and making a repository. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "repo/locator.h"
#include "repo/sealed.h"
#include "repo_support.h"
#include "store_contract.h"
#include "util/mem.h"
#include "util/str.h"

TestSuite(repo, .fini = test_leak_check);
TestSuite(locator, .fini = test_leak_check);
TestSuite(sealed, .fini = test_leak_check);

Test(locator, splits_at_the_last_at_after_the_last_slash)
{
	static const struct {
		const char *text, *url, *selector;
	} cases[] = {
		{"s3://bucket/imagenet", "s3://bucket/imagenet", NULL},
		{"s3://bucket/imagenet@v2.1", "s3://bucket/imagenet", "v2.1"},
		{"s3://bucket@3", "s3://bucket", "3"},
		{"s3://bucket/a@b/c", "s3://bucket/a@b/c", NULL},
		{"/data/a@b/", "/data/a@b/", NULL},
		{"/data/a@b@c", "/data/a@b", "c"},
		{"repo@main:42", "repo", "main:42"},
		{"repo@2026-01-01T10:00:00+01:00", "repo", "2026-01-01T10:00:00+01:00"},
		{"./x y@2026-01-01 10:00", "./x y", "2026-01-01 10:00"},
		{"file:///a/b@deadbeef", "file:///a/b", "deadbeef"},
		{".", ".", NULL},
	};

	for (size_t i = 0; i < DS_ARRAY_SIZE(cases); i++) {
		struct ds_locator locator;

		cr_assert_eq(ds_locator_parse(cases[i].text, &locator, NULL), 0, "%s",
			     cases[i].text);
		cr_assert_str_eq(locator.url, cases[i].url);
		if (cases[i].selector)
			cr_assert_str_eq(locator.selector, cases[i].selector);
		else
			cr_assert_null(locator.selector);
		ds_locator_release(&locator);
	}
}

Test(locator, refuses_what_names_nothing)
{
	static const char *const cases[] = {"", "@", "@v1", "repo@", "s3://b/c@", "a\nb", "a\x7f"};

	for (size_t i = 0; i < DS_ARRAY_SIZE(cases); i++) {
		struct ds_locator locator;
		struct ds_diag diag = {0};

		cr_assert_eq(ds_locator_parse(cases[i], &locator, &diag), -DS_E_USAGE, "%s",
			     cases[i]);
		cr_assert(diag.detail[0]);
	}
}

static int seal(const char *json, struct ds_buf *buf)
{
	struct ds_digest digest;
	char text[DS_DIGEST_TEXT_MAX];

	ds_buf_clear(buf);
	cr_assert_eq(ds_buf_appendf(buf, "%s\n", json), 0);
	cr_assert_eq(ds_digest_of(buf->data, buf->len_bytes, &digest), 0);
	return ds_buf_appendf(buf, "%s\n", ds_digest_format(&digest, text));
}

Test(sealed, what_was_sealed_is_read_back)
{
	struct ds_buf buf = DS_BUF_INIT(DS_SEALED_MAX);
	json_t *object = json_pack("{s:i, s:s, s:n}", "format", 1, "b", "x\n\xc3\xa9/", "a");
	struct ds_digest digest, expected;
	json_t *parsed;

	cr_assert_eq(ds_sealed_encode(object, &buf), 0);
	cr_assert(ds_starts_with(ds_buf_str(&buf),
				 "{\"format\":1,\"b\":\"x\\n\xc3\xa9/\",\"a\":null}\n"),
		  "%s", ds_buf_str(&buf));
	cr_assert_eq(ds_sealed_parse(buf.data, buf.len_bytes, "k", &parsed, &digest, NULL), 0);
	cr_assert(json_equal(parsed, object));
	cr_assert_eq(ds_digest_of(buf.data, buf.len_bytes, &expected), 0);
	cr_assert(ds_digest_equal(&digest, &expected));
	json_decref(parsed);
	json_decref(object);
	ds_buf_release(&buf);
}

Test(sealed, A14_every_flipped_bit_is_refused)
{
	struct ds_buf buf = DS_BUF_INIT(DS_SEALED_MAX);

	cr_assert_eq(seal("{\"format\":1,\"x\":\"abc\"}", &buf), 0);
	for (size_t bit = 0; bit < 8 * buf.len_bytes; bit++) {
		struct ds_diag diag = {0};
		json_t *parsed;
		int r;

		buf.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
		r = ds_sealed_parse(buf.data, buf.len_bytes, "the key", &parsed, NULL, &diag);
		cr_assert(r == -DS_E_CORRUPT || r == -DS_E_MALFORMED, "bit %zu: %d", bit, r);
		cr_assert_str_eq(diag.object, "\"the key\"");
		buf.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	for (size_t len = 0; len < buf.len_bytes; len++) {
		json_t *parsed;

		cr_assert_lt(ds_sealed_parse(buf.data, len, "k", &parsed, NULL, NULL), 0);
	}
	ds_buf_release(&buf);
}

Test(sealed, refuses_what_is_not_one_object)
{
	static const char *const cases[] = {
		"",
		"[]",
		"1",
		"{\"format\":1}{}",
		"{\"format\":1,\"format\":1}",
		"{}",
		"{\"format\":\"1\"}",
		"{\"format\":0}",
		"{\"format\":-1}",
		"{\"format\":1.0}",
		"{\"format\":1,\"a\":\"\xff\"}",
		"{\"format\":1,\"a\":\"\\u0000\"}",
		"{\"format\":1,\n\"a\":1}",
		"{\"format\":1,\"a\":99999999999999999999999}",
	};
	struct ds_buf buf = DS_BUF_INIT(DS_SEALED_MAX);

	for (size_t i = 0; i < DS_ARRAY_SIZE(cases); i++) {
		json_t *parsed;

		cr_assert_eq(seal(cases[i], &buf), 0);
		cr_assert_eq(ds_sealed_parse(buf.data, buf.len_bytes, "k", &parsed, NULL, NULL),
			     -DS_E_MALFORMED, "%s", cases[i]);
	}
	ds_buf_release(&buf);
}

Test(sealed, a_newer_format_is_refused_with_the_release_that_reads_it)
{
	struct ds_buf buf = DS_BUF_INIT(DS_SEALED_MAX);
	struct ds_diag diag = {0};
	json_t *parsed;

	cr_assert_eq(seal("{\"format\":2,\"needs\":\"3.1.4\"}", &buf), 0);
	cr_assert_eq(ds_sealed_parse(buf.data, buf.len_bytes, "k", &parsed, NULL, &diag),
		     -DS_E_TOO_NEW);
	cr_assert(strstr(diag.detail, "3.1.4"), "%s", diag.detail);
	cr_assert_eq(seal("{\"format\":99999999}", &buf), 0);
	cr_assert_eq(ds_sealed_parse(buf.data, buf.len_bytes, "k", &parsed, NULL, &diag),
		     -DS_E_TOO_NEW);
	ds_buf_release(&buf);
}

Test(sealed, over_64_KiB_is_neither_written_nor_read)
{
	struct ds_buf buf = DS_BUF_INIT(1 << 20);
	struct ds_buf text = DS_BUF_INIT(1 << 20);
	json_t *object, *parsed;

	for (size_t i = 0; i < 66000; i++)
		cr_assert_eq(ds_buf_append_byte(&text, 'x'), 0);
	object = json_pack("{s:i, s:s}", "format", 1, "a", ds_buf_str(&text));
	cr_assert_eq(ds_sealed_encode(object, &buf), -DS_E_LIMIT);
	cr_assert_eq(buf.len_bytes, 0);
	json_decref(object);
	ds_buf_clear(&text);
	cr_assert_eq(ds_buf_append_str(&text, "{\"format\":1,\"a\":\""), 0);
	for (size_t i = 0; i < 66000; i++)
		cr_assert_eq(ds_buf_append_byte(&text, 'x'), 0);
	cr_assert_eq(ds_buf_append_str(&text, "\"}"), 0);
	cr_assert_eq(seal(ds_buf_str(&text), &buf), 0);
	cr_assert_eq(ds_sealed_parse(buf.data, buf.len_bytes, "k", &parsed, NULL, NULL),
		     -DS_E_MALFORMED);
	ds_buf_release(&buf);
	ds_buf_release(&text);
}

/* Opening and making. */

static struct test_store store;

static void put(const char *key, const char *text)
{
	cr_assert_eq(ds_store_put(store.inner, key, text, strlen(text), NULL), 0);
}

Test(repo, what_was_made_can_be_opened)
{
	struct ds_store *base = test_store_new(&store);
	struct ds_repo *made, *opened;
	struct ds_diag diag = {0};

	cr_assert_eq(ds_repo_init_store(base, "trunk", &made, &diag), 0);
	cr_assert_eq(diag.code, 0, "left behind: %s", diag.object);
	test_store_reset(&store);
	cr_assert_eq(ds_repo_open_store(base, &opened, NULL), 0);
	cr_assert_eq(store.calls_n, 1, "opening reads dsfs.json and nothing else");
	cr_assert_str_eq(ds_repo_default_branch(opened), "trunk");
	cr_assert_eq(memcmp(ds_repo_id(made), ds_repo_id(opened), DS_UUID_LEN), 0);
	cr_assert_eq(ds_repo_store(opened), base);
	ds_repo_unref(made);
	ds_repo_unref(ds_repo_ref(opened));
	ds_repo_unref(opened);
	ds_store_unref(base);
}

Test(repo, a_second_init_leaves_the_first_alone)
{
	struct ds_store *base = test_store_new(&store);
	struct ds_repo *made, *opened, *other;

	cr_assert_eq(ds_repo_init_store(base, NULL, &made, NULL), 0);
	cr_assert_eq(ds_repo_init_store(base, "x", &other, NULL), -DS_E_PRESENT);
	cr_assert_eq(ds_repo_open_store(base, &opened, NULL), 0);
	cr_assert_str_eq(ds_repo_default_branch(opened), "main");
	cr_assert_eq(memcmp(ds_repo_id(made), ds_repo_id(opened), DS_UUID_LEN), 0);
	ds_repo_unref(made);
	ds_repo_unref(opened);
	ds_store_unref(base);
}

Test(repo, a_bad_default_branch_is_refused)
{
	struct ds_store *base = test_store_new(&store);
	struct ds_repo *repo;

	cr_assert_eq(ds_repo_init_store(base, "12", &repo, NULL), -DS_E_USAGE);
	cr_assert_eq(store.calls_n, 0);
	ds_store_unref(base);
}

Test(repo, nothing_is_made_where_something_else_lies)
{
	struct ds_store *base = test_store_new(&store);
	struct ds_diag diag = {0};
	struct ds_repo *repo;

	put("train/cat.jpg", "x");
	cr_assert_eq(ds_repo_init_store(base, NULL, &repo, &diag), -DS_E_TAKEN);
	cr_assert(strstr(diag.detail, "train/cat.jpg"), "%s", diag.detail);
	/* An init that was killed has left its probe. */
	put("probe.json", "{\"format\":1,\"put_if_absent\":true}\n");
	cr_assert_eq(ds_repo_init_store(base, NULL, &repo, &diag), -DS_E_TAKEN);
	/* Where listing is forbidden it cannot be told. */
	store.deny_list = true;
	cr_assert_eq(ds_repo_init_store(base, NULL, &repo, NULL), 0);
	ds_repo_unref(repo);
	cr_assert_eq(ds_repo_init_store(base, NULL, &repo, NULL), -DS_E_PRESENT);
	ds_store_unref(base);
}

Test(repo, opening_says_what_lies_there_instead)
{
	struct ds_store *base = test_store_new(&store);
	struct ds_diag diag = {0};
	struct ds_repo *repo;

	cr_assert_eq(ds_repo_open_store(base, &repo, &diag), -DS_E_NO_REPO);
	cr_assert(strstr(diag.detail, "nothing"), "%s", diag.detail);
	put("train/cat.jpg", "x");
	cr_assert_eq(ds_repo_open_store(base, &repo, &diag), -DS_E_NO_REPO);
	cr_assert(strstr(diag.detail, "train/cat.jpg"), "%s", diag.detail);
	store.deny_list = true;
	cr_assert_eq(ds_repo_open_store(base, &repo, &diag), -DS_E_DENIED);
	test_store_reset(&store);
	put("dsfs.json", "<html>Hotel WiFi</html>\n"); /* A07 */
	cr_assert_lt(ds_repo_open_store(base, &repo, &diag), 0);
	cr_assert_eq(diag.code, -DS_E_MALFORMED);
	ds_store_unref(base);
}

Test(repo, A30_a_store_without_conditional_writes_is_refused)
{
	struct ds_store *base = test_store_new(&store);
	struct ds_buf buf = DS_BUF_INIT(100);
	struct ds_diag diag = {0};
	struct ds_repo *repo;

	store.ignore_absent = true;
	cr_assert_eq(ds_repo_init_store(base, NULL, &repo, &diag), -DS_E_UNSUPPORTED);
	cr_assert(strstr(diag.detail, "conditional"), "%s", diag.detail);
	cr_assert_eq(ds_store_get(store.inner, "dsfs.json", &buf, NULL), -DS_E_ABSENT);
	cr_assert_eq(ds_store_get(store.inner, "probe.json", &buf, NULL), -DS_E_ABSENT);
	ds_store_unref(base);
}

static void init_with_faults(bool after)
{
	for (long n = 0;; n++) {
		struct ds_store *base = test_store_new(&store);
		struct ds_repo *repo = NULL, *opened = NULL;
		int r, r_open;

		store.fail_at = n;
		store.fail_after = after;
		store.fail_with = -DS_E_NETWORK;
		r = ds_repo_init_store(base, NULL, &repo, NULL);
		if (r == 0 && store.failed_n == 0) {
			cr_assert_gt(n, 3);
			ds_repo_unref(repo);
			ds_store_unref(base);
			return;
		}
		test_store_reset(&store);
		r_open = ds_repo_open_store(base, &opened, NULL);
		if (r == 0) {
			cr_assert_eq(r_open, 0);
			cr_assert_eq(memcmp(ds_repo_id(repo), ds_repo_id(opened), DS_UUID_LEN), 0);
		} else {
			/* Not acknowledged: it is not there, and doing it again makes it. */
			cr_assert_eq(r, -DS_E_NETWORK);
			cr_assert_eq(r_open, -DS_E_NO_REPO);
			cr_assert_eq(ds_repo_init_store(base, NULL, &repo, NULL), 0);
		}
		ds_repo_unref(repo);
		ds_repo_unref(opened);
		ds_store_unref(base);
	}
}

Test(repo, each_store_call_of_init_may_fail)
{
	init_with_faults(false);
}

Test(repo, each_reply_of_init_may_be_lost)
{
	init_with_faults(true);
}

Test(repo, every_allocation_may_fail)
{
	struct ds_store *base = test_store_new(&store);
	struct ds_repo *repo;
	int r = -ENOMEM;

	cr_assert_eq(ds_repo_init_store(base, NULL, &repo, NULL), 0);
	ds_repo_unref(repo);
	json_set_alloc_funcs(ds_malloc, ds_free);
	for (int n = 0; r < 0; n++) {
		ds_mem_fail_after(n, false);
		r = ds_repo_open_store(base, &repo, NULL);
		/* jansson takes some for bad JSON. */
		cr_assert(r == 0 || r == -ENOMEM || r == -DS_E_MALFORMED, "%d: %s", n,
			  ds_strerror(r));
	}
	ds_mem_fail_after(-1, false);
	ds_repo_unref(repo);
	ds_store_unref(base);
}
