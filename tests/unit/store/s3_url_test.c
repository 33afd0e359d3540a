#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "store/s3_url.h"
#include "store_contract.h"
#include "util/mem.h"

TestSuite(s3_url, .fini = test_leak_check);

Test(s3_url, I03_a_bucket_and_a_prefix_are_told_apart)
{
	static const struct {
		const char *text, *bucket, *prefix;
	} rows[] = {
		{"s3://bucket", "bucket", ""},
		{"s3://bucket/", "bucket", ""},
		{"s3://bucket//", "bucket", ""},
		{"s3://my.bucket-1/a", "my.bucket-1", "a/"},
		{"s3://bucket/a/b c///", "bucket", "a/b c/"},
		{"s3://bucket/a%20b/@x/\xc3\xa4", "bucket", "a%20b/@x/\xc3\xa4/"},
		{"s3://bucket/...", "bucket", ".../"},
	};

	for (size_t i = 0; i < DS_ARRAY_SIZE(rows); i++) {
		struct ds_s3_url url;

		cr_assert_eq(ds_s3_url_parse(rows[i].text, &url, NULL), 0, "%s", rows[i].text);
		cr_assert_str_eq(url.bucket, rows[i].bucket);
		cr_assert_str_eq(url.prefix, rows[i].prefix);
		ds_s3_url_release(&url);
	}
}

Test(s3_url, I03_C08_bad_urls_are_refused_with_a_reason_and_without_secrets)
{
	static const char *const texts[] = {
		"s3://",
		"s3:///x",
		"s3://ab",
		"s3://Upper/x",
		"s3://under_score/x",
		"s3://a..b/x",
		"s3://-abc/x",
		"s3://abc-/x",
		"s3://abc.-d/x",
		"s3://192.168.1.1/x",
		"s3://a123456789a123456789a123456789a123456789a123456789a123456789abcd/x",
		"s3://bucket?versioning",
		"s3://bucket/x?query=1",
		"s3://bucket/x#part",
		"s3://bucket/a/../b",
		"s3://bucket/./b",
		"s3://bucket/a//b",
		"s3://bucket//b",
		"s3://bucket/a\nb",
		"s3://bucket:80/x",
		"s3://AKIAEXAMPLE:HIDDENSECRET@bucket/x",
		"s3://HIDDENSECRET@bucket",
	};

	for (size_t i = 0; i < DS_ARRAY_SIZE(texts); i++) {
		struct ds_diag diag = {0};
		struct ds_s3_url url;
		char line[1024];

		cr_assert_eq(ds_s3_url_parse(texts[i], &url, &diag), -DS_E_USAGE, "%s", texts[i]);
		cr_assert(diag.detail[0]);
		ds_diag_format(&diag, line, sizeof(line));
		cr_assert_null(strstr(line, "HIDDENSECRET"), "%s", line);
		cr_assert_null(strchr(line, '\n'));
	}
}

static void expect_endpoint(const char *text, const char *bucket,
			    enum ds_store_addressing addressing, const char *origin,
			    const char *host, const char *base_path)
{
	struct ds_s3_endpoint endpoint;

	cr_assert_eq(ds_s3_endpoint_parse(text, "eu-west-1", bucket, addressing, true, &endpoint,
					  NULL),
		     0, "%s", text ? text : "NULL");
	cr_assert_str_eq(endpoint.origin, origin);
	cr_assert_str_eq(endpoint.host, host);
	cr_assert_str_eq(endpoint.base_path, base_path);
	ds_s3_endpoint_release(&endpoint);
}

Test(s3_url, the_bucket_goes_into_the_host_or_into_the_path)
{
	enum ds_store_addressing automatic = DS_STORE_ADDRESSING_AUTO;

	expect_endpoint(NULL, "bucket", automatic, "https://bucket.s3.eu-west-1.amazonaws.com",
			"bucket.s3.eu-west-1.amazonaws.com", "/");
	expect_endpoint(NULL, "my.bucket", automatic, "https://s3.eu-west-1.amazonaws.com",
			"s3.eu-west-1.amazonaws.com", "/my.bucket/");
	expect_endpoint(NULL, "bucket", DS_STORE_ADDRESSING_PATH,
			"https://s3.eu-west-1.amazonaws.com", "s3.eu-west-1.amazonaws.com",
			"/bucket/");
	expect_endpoint("https://S3.example.org:443/", "bucket", automatic,
			"https://s3.example.org", "s3.example.org", "/bucket/");
	expect_endpoint("https://s3.example.org:8443", "bucket", DS_STORE_ADDRESSING_VIRTUAL,
			"https://bucket.s3.example.org:8443", "bucket.s3.example.org:8443", "/");
	expect_endpoint("http://10.0.0.1:80", "bucket", DS_STORE_ADDRESSING_VIRTUAL,
			"http://10.0.0.1", "10.0.0.1", "/bucket/");
	expect_endpoint("http://[2001:DB8::1]:7480", "bucket", automatic,
			"http://[2001:db8::1]:7480", "[2001:db8::1]:7480", "/bucket/");
	expect_endpoint("https://[::1]", "bucket", automatic, "https://[::1]", "[::1]", "/bucket/");
}

Test(s3_url, the_china_partition_has_a_domain_of_its_own)
{
	struct ds_s3_endpoint endpoint;

	cr_assert_eq(ds_s3_endpoint_parse(NULL, "cn-north-1", "bucket", DS_STORE_ADDRESSING_AUTO,
					  false, &endpoint, NULL),
		     0);
	cr_assert_str_eq(endpoint.origin, "https://bucket.s3.cn-north-1.amazonaws.com.cn");
	cr_assert(!endpoint.is_loopback);
	ds_s3_endpoint_release(&endpoint);
}

Test(s3_url, B08_plain_http_goes_to_this_machine_only)
{
	static const char *const local[] = {"http://127.0.0.1:7480",  "http://127.8.9.10",
					    "http://localhost:9000/", "http://[::1]:80",
					    "HTTP://LocalHost",	      "http://minio.localhost"};
	static const char *const remote[] = {"http://10.0.0.1",	     "http://s3.example.org",
					     "http://127.evil.org",  "http://localhost.evil.org",
					     "http://[2001:db8::1]", "http://127.1"};
	struct ds_s3_endpoint endpoint;

	for (size_t i = 0; i < DS_ARRAY_SIZE(local); i++) {
		cr_assert_eq(ds_s3_endpoint_parse(local[i], "r", "bucket", DS_STORE_ADDRESSING_AUTO,
						  false, &endpoint, NULL),
			     0, "%s", local[i]);
		cr_assert(endpoint.is_loopback);
		ds_s3_endpoint_release(&endpoint);
	}
	for (size_t i = 0; i < DS_ARRAY_SIZE(remote); i++) {
		cr_assert_eq(ds_s3_endpoint_parse(remote[i], "r", "bucket",
						  DS_STORE_ADDRESSING_AUTO, false, &endpoint, NULL),
			     -DS_E_USAGE, "%s", remote[i]);
		cr_assert_eq(ds_s3_endpoint_parse(remote[i], "r", "bucket",
						  DS_STORE_ADDRESSING_AUTO, true, &endpoint, NULL),
			     0);
		ds_s3_endpoint_release(&endpoint);
	}
}

Test(s3_url, I03_bad_endpoints_are_refused)
{
	static const char *const texts[] = {
		"s3.example.org",
		"ftp://x",
		"https://",
		"https://:80",
		"https://x:0",
		"https://x:65536",
		"https://x:",
		"https://x:80a",
		"https://x/base",
		"https://x?y",
		"https://x#y",
		"https://a:HIDDEN@x",
		"https://a b",
		"https://x\r\nEvil: 1",
		"https://[::1",
		"https://[::1]x",
		"https://[fe80::1%eth0]",
		"https://[]",
		"https://[1.2.3.4]",
		"https://x%2f",
	};

	for (size_t i = 0; i < DS_ARRAY_SIZE(texts); i++) {
		struct ds_s3_endpoint endpoint;
		struct ds_diag diag = {0};

		cr_assert_eq(ds_s3_endpoint_parse(texts[i], "r", "bucket", DS_STORE_ADDRESSING_AUTO,
						  true, &endpoint, &diag),
			     -DS_E_USAGE, "%s", texts[i]);
		cr_assert(diag.detail[0]);
		cr_assert_null(strstr(diag.detail, "HIDDEN"));
		cr_assert_null(strstr(diag.object, "HIDDEN"));
	}
}

Test(s3_url, regions_have_no_room_for_anything_else)
{
	cr_assert(ds_s3_is_region("us-east-1"));
	cr_assert(ds_s3_is_region("default"));
	cr_assert(!ds_s3_is_region(""));
	cr_assert(!ds_s3_is_region("evil.org/"));
	cr_assert(!ds_s3_is_region("US"));
	cr_assert(!ds_s3_is_region("a\r\nb"));
}
