/* The S3 backend on a real S3 server: AWS_* and BUCKET are in the environment. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store_contract.h"
#include "util/mem.h"
#include "util/random.h"

TestSuite(store_radosgw, .fini = test_leak_check, .timeout = 120);

/* A prefix of its own for each, since all share a bucket. */
static struct ds_store *open_new(void)
{
	struct ds_store *store = NULL;
	struct ds_diag diag = {0};
	char url[128], line[512];
	int r;

	snprintf(url, sizeof(url), "s3://%s/test %016llx", getenv("BUCKET"),
		 (unsigned long long)ds_random_u64());
	r = ds_store_open(url, NULL, false, &store, &diag);
	cr_assert_eq(r, 0, "%s", ds_diag_format(&diag, line, sizeof(line)));
	return store;
}

#define T(name)                                        \
	Test(store_radosgw, name)                      \
	{                                              \
		struct ds_store *store = open_new();   \
                                                       \
		contract_##name(store);                \
		cr_assert_null(ds_store_unref(store)); \
	}
STORE_CONTRACT(T)

static int open_with(const char *bucket, const struct ds_store_options *options,
		     struct ds_store **ret_store)
{
	char url[128];

	snprintf(url, sizeof(url), "s3://%s/x", bucket);
	return ds_store_open(url, options, false, ret_store, NULL);
}

Test(store_radosgw, a_bucket_that_is_not_there_is_said_to_be_so)
{
	struct ds_store_listing listing = {0};
	struct ds_store_req list = {.op = DS_STORE_LIST, .key = "", .listing = &listing};
	struct ds_buf buf = DS_BUF_INIT(10);
	struct ds_store *store = NULL;
	struct ds_diag diag = {0};

	cr_assert_eq(open_with("no-such-bucket-here", NULL, &store), 0);
	cr_assert_eq(ds_store_get(store, "k", &buf, &diag), -DS_E_NO_BUCKET);
	cr_assert_str_eq(diag.s3_code, "NoSuchBucket");
	cr_assert_eq(diag.http_status, 404);
	cr_assert_eq(diag.attempts, 1);
	cr_assert_eq(ds_store_put(store, "k", "v", 1, NULL), -DS_E_NO_BUCKET);
	cr_assert_eq(ds_store_perform(store, &list), -DS_E_NO_BUCKET);
	ds_buf_release(&buf);
	ds_store_listing_release(&listing);
	ds_store_unref(store);
}

Test(store_radosgw, C04_wrong_keys_are_told_at_once_and_not_repeated)
{
	struct ds_buf buf = DS_BUF_INIT(10);
	struct ds_store *store = NULL;
	struct ds_store_stats stats;
	struct ds_diag diag = {0};
	char line[1024];

	setenv("AWS_SECRET_ACCESS_KEY", "wrongsecretwrongsecret", 1);
	cr_assert_eq(open_with(getenv("BUCKET"), NULL, &store), 0);
	cr_assert_eq(ds_store_get(store, "k", &buf, &diag), -DS_E_AUTH);
	cr_assert_str_eq(diag.s3_code, "SignatureDoesNotMatch");
	ds_diag_format(&diag, line, sizeof(line));
	cr_assert_null(strstr(line, "wrongsecret"));
	cr_assert_null(strstr(line, getenv("AWS_ACCESS_KEY_ID")));
	ds_store_get_stats(store, &stats);
	cr_assert_leq(stats.requests_n[DS_STORE_GET], 2);
	cr_assert_eq(stats.failures_n, 1);
	store = ds_store_unref(store);

	setenv("AWS_ACCESS_KEY_ID", "NOSUCHKEYATALL", 1);
	cr_assert_eq(open_with(getenv("BUCKET"), NULL, &store), 0);
	cr_assert_eq(ds_store_get(store, "k", &buf, &diag), -DS_E_AUTH);
	cr_assert_str_eq(diag.s3_code, "InvalidAccessKeyId");
	ds_store_unref(store);
	ds_buf_release(&buf);
}

Test(store_radosgw, virtual_host_addressing_works)
{
	struct ds_store_options options = {.addressing = DS_STORE_ADDRESSING_VIRTUAL};
	const char *endpoint = getenv("AWS_ENDPOINT_URL");
	struct ds_store *store = NULL;
	struct ds_diag diag = {0};
	char local[128], line[512];
	struct ds_buf buf = DS_BUF_INIT(10);
	int r;

	snprintf(local, sizeof(local), "http://localhost%s", strrchr(endpoint, ':'));
	options.endpoint = local;
	cr_assert_eq(open_with(getenv("BUCKET"), &options, &store), 0);
	r = ds_store_put(store, "virtual", "v", 1, &diag);
	cr_assert_eq(r, 0, "%s", ds_diag_format(&diag, line, sizeof(line)));
	cr_assert_eq(ds_store_get(store, "virtual", &buf, NULL), 0);
	store = ds_store_unref(store);
	cr_assert_eq(open_with(getenv("BUCKET"), NULL, &store), 0);
	cr_assert_eq(ds_store_get(store, "virtual", &buf, NULL), 0);
	cr_assert_str_eq(ds_buf_str(&buf), "vv");
	ds_buf_release(&buf);
	ds_store_unref(store);
}

struct put {
	struct ds_store_req req;
	_Atomic unsigned *left_n;
	char key[128];
};

static void put_done(struct ds_store_req *req)
{
	struct put *put = req->ctx;

	(*put->left_n)--;
}

Test(store_radosgw, a_list_of_several_pages_is_whole_and_in_order)
{
	enum { KEYS_N = 2345 };
	struct ds_store *store = open_new();
	struct put *puts = calloc(KEYS_N, sizeof(*puts));
	struct ds_store_listing listing = {0};
	struct ds_store_req list = {.op = DS_STORE_LIST, .key = "p/", .listing = &listing};
	_Atomic unsigned left_n = KEYS_N;
	struct ds_store_stats stats;
	char line[512];

	for (int i = 0; i < KEYS_N; i++) {
		/* Plus signs, spaces, percent signs and bytes beyond ASCII, as names have them. */
		snprintf(puts[i].key, sizeof(puts[i].key), "p/%02d/n%04d +%%2B&\xc3\xbc<%d>", i % 7,
			 i, i);
		puts[i].left_n = &left_n;
		puts[i].req = (struct ds_store_req){.op = DS_STORE_PUT,
						    .key = puts[i].key,
						    .body = puts[i].key,
						    .body_len_bytes = (size_t)(i % 5),
						    .if_absent = i % 2,
						    .done = put_done,
						    .ctx = &puts[i]};
		ds_store_submit(store, &puts[i].req);
	}
	while (left_n)
		ds_sleep_ms(5);
	for (int i = 0; i < KEYS_N; i++)
		cr_assert_eq(puts[i].req.result, 0, "%s",
			     ds_diag_format(&puts[i].req.diag, line, sizeof(line)));
	cr_assert_eq(ds_store_perform(store, &list), 0, "%s",
		     ds_diag_format(&list.diag, line, sizeof(line)));
	cr_assert_eq(listing.objects_n, KEYS_N);
	for (size_t i = 0; i < KEYS_N; i++) {
		const struct ds_store_object *row = &listing.objects[i];
		int number = atoi(strchr(row->key, 'n') + 1);

		cr_assert_str_eq(row->key, puts[number].key);
		cr_assert_eq(row->size_bytes, (uint64_t)(number % 5));
		cr_assert(i == 0 || strcmp(row[-1].key, row->key) < 0);
		cr_assert_neq(row->modified.s, 0);
	}
	ds_store_get_stats(store, &stats);
	cr_assert_eq(stats.requests_n[DS_STORE_LIST], 3);
	/* From the middle, stopping in the middle of the second page. */
	list.list_after = puts[700].key;
	list.list_max_n = 1200;
	ds_store_listing_release(&listing);
	cr_assert_eq(ds_store_perform(store, &list), 0);
	cr_assert_eq(listing.objects_n, 1200);
	cr_assert_gt(strcmp(listing.objects[0].key, puts[700].key), 0);
	ds_store_listing_release(&listing);
	free(puts);
	ds_store_unref(store);
}

Test(store_radosgw, C10_keys_that_normalisation_would_break_arrive)
{
	static const char *const keys[] = {"a~b",	"sp ace/x",
					   "pct%25/x",	"uni\xc3\xa4/\xf0\x9f\x98\x80",
					   "plus+plus", "semi;eq=amp&",
					   "q?h#",	"x/.y/...",
					   "c:d@e,f"};
	struct ds_store *store = open_new();
	char *longest = malloc(900);

	for (size_t i = 0; i < DS_ARRAY_SIZE(keys); i++) {
		struct ds_buf buf = DS_BUF_INIT(100);
		struct ds_store_req del = {.op = DS_STORE_DELETE, .key = keys[i]};

		cr_assert_eq(ds_store_put_if_absent(store, keys[i], keys[i], strlen(keys[i]), NULL),
			     0, "%s", keys[i]);
		cr_assert_eq(ds_store_get(store, keys[i], &buf, NULL), 0);
		cr_assert_str_eq(ds_buf_str(&buf), keys[i]);
		cr_assert_eq(ds_store_perform(store, &del), 0);
		ds_buf_release(&buf);
	}
	/* The longest that is allowed, every byte of it escaped on the wire. */
	for (int i = 0; i < 899; i++)
		longest[i] = i % 200 == 199 ? '/' : '%';
	longest[899] = '\0';
	cr_assert_eq(ds_store_put_if_absent(store, longest, "v", 1, NULL), 0);
	cr_assert_eq(ds_store_put_if_absent(store, longest, "v", 1, NULL), -DS_E_PRESENT);
	free(longest);
	ds_store_unref(store);
}

Test(store_radosgw, a_signature_from_long_ago_is_late)
{
	struct ds_store *store = open_new();
	struct ds_store_req put = {.op = DS_STORE_PUT,
				   .key = "k",
				   .body = "v",
				   .body_len_bytes = 1};
	struct ds_time now;

	cr_assert_eq(ds_store_now(store, &now, NULL), 0);
	put.signed_at = ds_time_add_ns(now, -3600 * (int64_t)DS_NS_PER_S);
	cr_assert_eq(ds_store_perform(store, &put), -DS_E_LATE, "%d", put.result);
	put.signed_at = now;
	cr_assert_eq(ds_store_perform(store, &put), 0);
	ds_store_unref(store);
}

Test(store_radosgw, a_pack_of_32_mib_goes_there_and_back)
{
	size_t len = 32u << 20;
	uint8_t *body = malloc(len);
	struct ds_prng prng = {7};
	struct ds_buf buf = DS_BUF_INIT(len);
	struct ds_store *store = open_new();

	for (size_t i = 0; i + 8 <= len; i += 8) {
		uint64_t word = ds_prng_next(&prng);

		memcpy(body + i, &word, 8);
	}
	cr_assert_eq(ds_store_put_if_absent(store, "pack", body, len, NULL), 0);
	cr_assert_eq(ds_store_get(store, "pack", &buf, NULL), 0);
	cr_assert_eq(buf.len_bytes, len);
	cr_assert_eq(memcmp(buf.data, body, len), 0);
	ds_buf_release(&buf);
	free(body);
	ds_store_unref(store);
}
