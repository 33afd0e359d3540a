/* Version records. */
#include <criterion/criterion.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "repo/record.h"
#include "repo_support.h"
#include "store_contract.h"
#include "util/mem.h"

TestSuite(record, .fini = test_leak_check);

static struct ds_chunk_ref chunk(unsigned n, uint32_t ordinal, uint64_t off)
{
	return (struct ds_chunk_ref){.digest = test_digest(n),
				     .pack = test_digest(99),
				     .ordinal = ordinal,
				     .stored_off = off,
				     .stored_len_bytes = 50,
				     .raw_len_bytes = 100};
}

static struct ds_record *sample(void)
{
	struct ds_record *record = ds_calloc(1, sizeof(*record));

	record->parents = ds_calloc(2, sizeof(*record->parents));
	record->parents[0] = test_digest(1);
	record->parents[1] = test_digest(2);
	record->parents_n = 2;
	record->time = (struct ds_time){.s = TEST_START_S, .ns = 5999999};
	record->author = ds_strdup("someone");
	record->message = ds_strdup("two\nlines \xc3\xa9");
	record->has_fingerprint = true;
	record->fingerprint = test_digest(3);
	record->totals = (struct ds_version_totals){1, 2, 3, UINT64_C(1) << 60, 5};
	record->schema = 1;
	record->page_size = 16384;
	record->pages_n = 77;
	record->index = chunk(4, 3, 200);
	for (uint32_t i = 0; i < DS_PREFETCH_MAX; i++)
		record->prefetch[i] = chunk(5 + i, i, 8 + 50 * i);
	record->prefetch_n = DS_PREFETCH_MAX;
	return record;
}

static bool same_chunk(const struct ds_chunk_ref *a, const struct ds_chunk_ref *b)
{
	return ds_digest_equal(&a->digest, &b->digest) && ds_digest_equal(&a->pack, &b->pack) &&
	       a->ordinal == b->ordinal && a->stored_off == b->stored_off &&
	       a->stored_len_bytes == b->stored_len_bytes && a->raw_len_bytes == b->raw_len_bytes;
}

Test(record, what_was_encoded_is_read_back)
{
	struct ds_buf buf = DS_BUF_INIT(DS_RECORD_MAX);
	struct ds_record *in = sample(), *out;
	struct ds_digest id;

	cr_assert_eq(ds_record_encode(in, NULL, &buf), 0);
	cr_assert_eq(ds_digest_of(buf.data, buf.len_bytes, &id), 0);
	cr_assert(ds_digest_equal(&id, &in->id));
	cr_assert_eq(ds_record_parse(buf.data, buf.len_bytes, &id, &out, NULL), 0);
	cr_assert(ds_digest_equal(&out->id, &id));
	cr_assert_eq(out->parents_n, 2);
	cr_assert(ds_digest_equal(&out->parents[1], &in->parents[1]));
	cr_assert_eq(ds_time_compare(out->time, in->time), 0);
	cr_assert_eq(out->time.ns, 5000000);
	cr_assert_str_eq(out->author, in->author);
	cr_assert_str_eq(out->message, in->message);
	cr_assert(out->has_fingerprint);
	cr_assert(ds_digest_equal(&out->fingerprint, &in->fingerprint));
	cr_assert_eq(memcmp(&out->totals, &in->totals, sizeof(in->totals)), 0);
	cr_assert_eq(out->page_size, 16384);
	cr_assert_eq(out->pages_n, 77);
	cr_assert(same_chunk(&out->index, &in->index));
	cr_assert_eq(out->prefetch_n, DS_PREFETCH_MAX);
	cr_assert(same_chunk(&out->prefetch[63], &in->prefetch[63]));
	cr_assert(json_equal(out->json, in->json));
	cr_assert(json_is_array(json_object_get(out->json, "inputs")));
	cr_assert(json_is_null(json_object_get(out->json, "transform")));
	ds_record_free(in);
	ds_record_free(out);
	ds_buf_release(&buf);
}

Test(record, D13_two_records_of_the_same_are_two_versions)
{
	struct ds_buf a = DS_BUF_INIT(DS_RECORD_MAX), b = DS_BUF_INIT(DS_RECORD_MAX);
	struct ds_record *record = sample();
	struct ds_digest first;

	cr_assert_eq(ds_record_encode(record, NULL, &a), 0);
	first = record->id;
	cr_assert_eq(ds_record_encode(record, NULL, &b), 0);
	cr_assert(!ds_digest_equal(&first, &record->id));
	ds_record_free(record);
	ds_buf_release(&a);
	ds_buf_release(&b);
}

Test(record, extra_fields_are_kept_and_cannot_replace_ours)
{
	json_t *extra = json_pack("{s:{s:s}, s:s, s:[], s:i}", "labels", "split", "train", "later",
				  "x", "parents", "format", 7);
	struct ds_buf buf = DS_BUF_INIT(DS_RECORD_MAX);
	struct ds_record *in = sample(), *out;
	const json_t *labels;

	cr_assert_eq(ds_record_encode(in, extra, &buf), 0);
	cr_assert_eq(ds_record_parse(buf.data, buf.len_bytes, &in->id, &out, NULL), 0);
	labels = json_object_get(out->json, "labels");
	cr_assert_str_eq(json_string_value(json_object_get(labels, "split")), "train");
	cr_assert_str_eq(json_string_value(json_object_get(out->json, "later")), "x");
	cr_assert_eq(out->parents_n, 2);
	json_decref(extra);
	ds_record_free(in);
	ds_record_free(out);
	ds_buf_release(&buf);
}

Test(record, no_fingerprint_is_null)
{
	struct ds_buf buf = DS_BUF_INIT(DS_RECORD_MAX);
	struct ds_record *in = sample(), *out;

	in->has_fingerprint = false;
	in->prefetch_n = 0;
	in->parents_n = 0;
	cr_assert_eq(ds_record_encode(in, NULL, &buf), 0);
	cr_assert_eq(ds_record_parse(buf.data, buf.len_bytes, &in->id, &out, NULL), 0);
	cr_assert(!out->has_fingerprint);
	cr_assert_eq(out->prefetch_n, 0);
	cr_assert_eq(out->parents_n, 0);
	ds_record_free(in);
	ds_record_free(out);
	ds_buf_release(&buf);
}

Test(record, text_that_is_not_UTF_8_is_refused)
{
	struct ds_buf buf = DS_BUF_INIT(DS_RECORD_MAX);
	struct ds_record *in = sample();

	in->message[0] = '\xff';
	cr_assert_eq(ds_record_encode(in, NULL, &buf), -DS_E_USAGE);
	ds_record_free(in);
	ds_buf_release(&buf);
}

/* Parses the sample with one field changed (path "a.b"; NULL value: taken away). */
static int parse_changed(const char *path, json_t *value)
{
	struct ds_buf buf = DS_BUF_INIT(DS_RECORD_MAX);
	struct ds_record *in = sample(), *out;
	const char *dot = strchr(path, '.');
	json_t *object;
	struct ds_digest id;
	char *text;
	int r;

	cr_assert_eq(ds_record_encode(in, NULL, &buf), 0);
	object = in->json;
	for (; dot; path = dot + 1, dot = strchr(path, '.')) {
		char name[32];

		snprintf(name, sizeof(name), "%.*s", (int)(dot - path), path);
		object = json_object_get(object, name);
		cr_assert_not_null(object);
	}
	if (value)
		json_object_set_new(object, path, value);
	else
		json_object_del(object, path);
	text = json_dumps(in->json, JSON_COMPACT);
	cr_assert_eq(ds_digest_of(text, strlen(text), &id), 0);
	r = ds_record_parse(text, strlen(text), &id, &out, NULL);
	if (r == 0)
		ds_record_free(out);
	free(text);
	ds_record_free(in);
	ds_buf_release(&buf);
	return r;
}

Test(record, unknown_fields_are_passed_over_and_wrong_ones_refused)
{
	cr_assert_eq(parse_changed("later", json_pack("{s:[i]}", "x", 1)), 0);
	cr_assert_eq(parse_changed("manifest.later", json_true()), 0);
	cr_assert_eq(parse_changed("manifest.schema", json_integer(9)), 0);
	cr_assert_eq(parse_changed("labels", NULL), 0);
	cr_assert_eq(parse_changed("format", json_integer(2)), -DS_E_TOO_NEW);
	cr_assert_eq(parse_changed("format", NULL), -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("parents", json_null()), -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("parents", json_pack("[s]", "x")), -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("time", NULL), -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("author", json_null()), -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("fingerprint", json_string("x")), -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("fingerprint", NULL), -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("totals", NULL), -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("totals.files", json_integer(-1)), -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("manifest.page_size", json_integer(5000)), -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("manifest.page_size", json_integer(2048)), -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("manifest.page_size", json_integer(131072)), -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("manifest.pages", json_integer(0)), -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("manifest.pages", json_integer(INT64_MAX)), -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("manifest.index", json_null()), -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("manifest.index.raw", json_integer(200000)), -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("manifest.index.raw", json_integer(49)), -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("manifest.index.stored", json_integer(0)), -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("manifest.index.offset", json_integer(7)), -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("manifest.index.ordinal", json_integer(1 << 20)),
		     -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("prefetch", json_null()), -DS_E_MALFORMED);
	cr_assert_eq(parse_changed("prefetch", json_array()), 0);
}

Test(record, prefetch_lies_side_by_side_in_one_pack)
{
	struct ds_buf buf = DS_BUF_INIT(DS_RECORD_MAX);
	struct ds_record *in = sample(), *out;

	in->prefetch[3].stored_off += UINT64_C(1) << 29;
	cr_assert_eq(ds_record_encode(in, NULL, &buf), 0);
	cr_assert_eq(ds_record_parse(buf.data, buf.len_bytes, &in->id, &out, NULL),
		     -DS_E_MALFORMED);
	in->prefetch[3].stored_off -= UINT64_C(1) << 29;
	in->prefetch[3].pack = test_digest(1);
	ds_buf_clear(&buf);
	cr_assert_eq(ds_record_encode(in, NULL, &buf), 0);
	cr_assert_eq(ds_record_parse(buf.data, buf.len_bytes, &in->id, &out, NULL),
		     -DS_E_MALFORMED);
	ds_record_free(in);
	ds_buf_release(&buf);
}

Test(record, get_checks_the_bytes)
{
	struct ds_buf buf = DS_BUF_INIT(DS_RECORD_MAX);
	struct ds_record *in = sample(), *out;
	static struct test_store store;
	struct ds_store *base = test_store_new(&store);
	char key[DS_RECORD_KEY_MAX];
	struct ds_diag diag;
	struct ds_repo *repo;

	cr_assert_eq(ds_repo_init_store(base, NULL, &repo, NULL), 0);
	cr_assert_eq(ds_record_encode(in, NULL, &buf), 0);
	ds_record_key(&in->id, key);
	cr_assert_eq(ds_record_get(repo, &in->id, &out, &diag), -DS_E_NO_VERSION);
	cr_assert(strstr(diag.object, key));
	cr_assert_eq(ds_store_put(base, key, buf.data, buf.len_bytes, NULL), 0);
	cr_assert_eq(ds_record_get(repo, &in->id, &out, NULL), 0);
	ds_record_free(out);
	buf.data[buf.len_bytes / 2] ^= 1;
	cr_assert_eq(ds_store_put(base, key, buf.data, buf.len_bytes, NULL), 0);
	cr_assert_eq(ds_record_get(repo, &in->id, &out, &diag), -DS_E_CORRUPT);
	cr_assert(strstr(diag.object, key));
	cr_assert_eq(ds_store_put(base, key, buf.data, 0, NULL), 0);
	cr_assert_eq(ds_record_get(repo, &in->id, &out, &diag), -DS_E_CORRUPT);
	ds_record_free(in);
	ds_buf_release(&buf);
	ds_repo_unref(repo);
	ds_store_unref(base);
}

Test(record, every_allocation_may_fail)
{
	struct ds_buf buf = DS_BUF_INIT(DS_RECORD_MAX);
	struct ds_record *in = sample(), *out;
	int r = -ENOMEM;

	json_set_alloc_funcs(ds_malloc, ds_free);
	for (int n = 0; r < 0; n++) {
		ds_mem_fail_after(n, false);
		r = ds_record_encode(in, NULL, &buf);
		cr_assert(r == 0 || (r == -ENOMEM && buf.len_bytes == 0), "%d: %d", n, r);
	}
	r = -ENOMEM;
	for (int n = 0; r < 0; n++) {
		ds_mem_fail_after(n, false);
		r = ds_record_parse(buf.data, buf.len_bytes, &in->id, &out, NULL);
		/* jansson takes some for bad JSON. */
		cr_assert(r == 0 || r == -ENOMEM || r == -DS_E_MALFORMED, "%d: %d", n, r);
	}
	ds_mem_fail_after(-1, false);
	ds_record_free(in);
	ds_record_free(out);
	ds_buf_release(&buf);
}
