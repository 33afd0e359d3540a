/* What S3 wants that AWS's general vectors do not have; those are in sigv4_vectors_test.c. */
#include <criterion/criterion.h>
#include <string.h>

#include "store/s3_sign.h"
#include "store_contract.h"
#include "util/mem.h"

TestSuite(s3_sign, .fini = test_leak_check);

/* The keys of the examples in the S3 API reference ("Signature Calculations for the Authorization
 * Header"), which also give the expected signatures below. */
static char access_key[] = "AKIAIOSFODNN7EXAMPLE";
static char secret_key[] = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
static struct ds_s3_credentials example = {.access_key = access_key, .secret_key = secret_key};
static const struct ds_time example_time = {.s = 1369353600}; /* 2013-05-24T00:00:00Z */
#define EMPTY_HASH "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

static void expect_signature(struct ds_s3_signing *signing, const char *signature)
{
	struct ds_buf buf = DS_BUF_INIT(DS_S3_SIGN_MAX);

	signing->credentials = &example;
	signing->region = "us-east-1";
	signing->service = "s3";
	signing->time = example_time;
	cr_assert_eq(ds_s3_authorization(signing, &buf), 0);
	cr_assert(strstr(ds_buf_str(&buf), signature), "%s", ds_buf_str(&buf));
	ds_buf_release(&buf);
}

Test(s3_sign, the_reference_example_of_a_ranged_get_is_met)
{
	static const struct ds_s3_pair headers[] = {
		{"Host", "examplebucket.s3.amazonaws.com"},
		{"Range", "bytes=0-9"},
		{"x-amz-content-sha256", EMPTY_HASH},
		{"x-amz-date", "20130524T000000Z"},
	};
	struct ds_s3_signing signing = {.method = "GET",
					.path = "/test.txt",
					.headers = headers,
					.headers_n = DS_ARRAY_SIZE(headers),
					.payload_hash = EMPTY_HASH};

	expect_signature(
		&signing,
		"Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41");
}

Test(s3_sign, the_reference_example_of_a_put_is_met)
{
	static const struct ds_s3_pair headers[] = {
		{"date", "Fri, 24 May 2013 00:00:00 GMT"},
		{"host", "examplebucket.s3.amazonaws.com"},
		{"x-amz-content-sha256",
		 "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072"},
		{"x-amz-date", "20130524T000000Z"},
		{"x-amz-storage-class", "REDUCED_REDUNDANCY"},
	};
	struct ds_s3_signing signing = {.method = "PUT",
					.path = "/test$file.text",
					.headers = headers,
					.headers_n = DS_ARRAY_SIZE(headers)};
	char hash[DS_S3_HASH_TEXT];

	cr_assert_eq(ds_s3_hash("Welcome to Amazon S3.", 21, hash), 0);
	cr_assert_str_eq(hash, headers[2].value);
	signing.payload_hash = hash;
	expect_signature(
		&signing,
		"Signature=98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd");
}

Test(s3_sign, the_reference_example_of_a_list_is_met)
{
	static const struct ds_s3_pair query[] = {{"prefix", "J"}, {"max-keys", "2"}};
	static const struct ds_s3_pair headers[] = {
		{"x-amz-date", "20130524T000000Z"},
		{"x-amz-content-sha256", EMPTY_HASH},
		{"host", "examplebucket.s3.amazonaws.com"},
	};
	struct ds_s3_signing signing = {.method = "GET",
					.path = "/",
					.query = query,
					.query_n = 2,
					.headers = headers,
					.headers_n = DS_ARRAY_SIZE(headers),
					.payload_hash = EMPTY_HASH};

	expect_signature(
		&signing,
		"Signature=34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7");
}

static void expect_path(const char *path, const char *encoded)
{
	struct ds_buf buf = DS_BUF_INIT(DS_S3_SIGN_MAX);

	cr_assert_eq(ds_s3_append_path(&buf, path), 0);
	cr_assert_str_eq(ds_buf_str(&buf), encoded);
	ds_buf_release(&buf);
}

Test(s3_sign, C10_a_path_is_encoded_once_and_never_normalised)
{
	char longest[1100], encoded[3300] = "/";

	expect_path("/a b+c%20%", "/a%20b%2Bc%2520%25");
	expect_path("/a//b/./c/../d/", "/a//b/./c/../d/");
	expect_path("//", "//");
	expect_path("/~-._", "/~-._");
	expect_path("/\xc3\xa4\xff\x01?#&=;:@,$!'()*[]",
		    "/%C3%A4%FF%01%3F%23%26%3D%3B%3A%40%2C%24%21%27%28%29%2A%5B%5D");
	memset(longest, '%', 1024);
	longest[0] = '/';
	longest[1025] = longest[1024] = '\0';
	for (int i = 1; i < 1024; i++)
		strcat(encoded, "%25");
	expect_path(longest, encoded);
}

Test(s3_sign, a_query_is_sorted_by_name_and_then_by_value)
{
	static const struct ds_s3_pair query[] = {
		{"prefix", "a/b c"}, {"a-b", "2"}, {"a", "z"},	    {"a", "b"},
		{"a%", "3"},	     {"a1", "4"},  {"uploads", ""}, {"B", "5"},
	};
	struct ds_buf buf = DS_BUF_INIT(DS_S3_SIGN_MAX);

	cr_assert_eq(ds_s3_append_query(&buf, query, DS_ARRAY_SIZE(query)), 0);
	cr_assert_str_eq(ds_buf_str(&buf),
			 "B=5&a=b&a=z&a%25=3&a-b=2&a1=4&prefix=a%2Fb%20c&uploads=");
	ds_buf_release(&buf);
}

Test(s3_sign, times_are_written_as_aws_wants_them)
{
	char text[DS_S3_TIME_TEXT];

	cr_assert_str_eq(ds_s3_format_time(example_time, text), "20130524T000000Z");
	cr_assert_str_eq(ds_s3_format_time((struct ds_time){.s = 4102444799}, text),
			 "20991231T235959Z");
	cr_assert_str_eq(ds_s3_format_time((struct ds_time){.s = -5}, text), "19700101T000000Z");
}
