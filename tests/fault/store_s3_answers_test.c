/* The S3 backend against answers that a real server does not give; each test counts its faults. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "s3_script.h"
#include "store_contract.h"
#include "util/mem.h"

TestSuite(store_s3, .fini = test_leak_check, .timeout = 60);

/* ---- answers that say: later */

Test(store_s3, A01_one_temporary_error_is_not_seen)
{
	static const int statuses[] = {500, 502, 503, 504, 429, 408};
	unsigned n = 0;

	set_up();
	for (size_t i = 0; i < DS_ARRAY_SIZE(statuses); i++) {
		http_script_answer(script, statuses[i], "", i % 2 ? "" : "<html>gateway</html>");
		http_script_is_fault(script);
		good_range("0-3/10", "0123");
		expect(get_range(0, 4), 0);
		cr_assert_str_eq(ds_buf_str(&buf), "0123");
		cr_assert_eq(stats().retries_n, ++n);
		cr_assert_eq(diag.attempts, 2);
	}
	cr_assert_eq(stats().failures_n, 0);
	end();
}

Test(store_s3, A02_an_outage_beyond_the_deadline_is_told_as_what_it_is)
{
	uint64_t start = ds_mono_ns();

	set_up_with((struct ds_store_options){.timeout_ms = 1500});
	http_script_answer(script, 503, "", "<Error><Code>SlowDown</Code></Error>");
	http_script_is_fault(script);
	http_script_forever(script);
	expect(get_range(0, 4), -DS_E_THROTTLED);
	cr_assert_str_eq(diag.s3_code, "SlowDown");
	cr_assert_eq(diag.http_status, 503);
	cr_assert_gt(diag.attempts, 2);
	cr_assert_lt(ds_mono_ns() - start, 3 * (uint64_t)DS_NS_PER_S);
	end();
}

Test(store_s3, A05_retry_after_is_obeyed)
{
	uint64_t start;

	set_up();
	http_script_answer(script, 503, "Retry-After: 1\r\n", "");
	http_script_is_fault(script);
	good_range("0-3/10", "0123");
	start = ds_mono_ns();
	expect(get_range(0, 4), 0);
	cr_assert_geq(ds_mono_ns() - start, (uint64_t)DS_NS_PER_S);
	end();
}

/* Beyond the deadline: it ends at once, and says when it would have been tried. */
Test(store_s3, A05_a_retry_after_beyond_the_deadline_is_handed_out)
{
	struct ds_store_req req = {.op = DS_STORE_GET, .key = "k", .len_bytes = 4, .into = &buf};

	set_up();
	http_script_answer(script, 503, "Retry-After: 30\r\n",
			   "<Error><Code>SlowDown</Code></Error>");
	http_script_is_fault(script);
	req.deadline_ns = ds_deadline_in_ms(15000);
	cr_assert_eq(ds_store_perform(store, &req), -DS_E_THROTTLED);
	cr_assert_lt(ds_mono_ns(), req.deadline_ns);
	cr_assert_eq(req.retry_after_ns, 30 * (uint64_t)DS_NS_PER_S);
	end();
}

Test(store_s3, A05_senseless_retry_after_does_not_matter)
{
	static const char *const texts[] = {"-1", "abc", "", "1.5", "0"};
	uint64_t start;

	set_up();
	start = ds_mono_ns();
	for (size_t i = 0; i < DS_ARRAY_SIZE(texts); i++) {
		char header[64];

		snprintf(header, sizeof(header), "Retry-After: %s\r\n", texts[i]);
		http_script_answer(script, 503, header, "");
		http_script_is_fault(script);
		good_range("0-3/10", "0123");
		expect(get_range(0, 4), 0);
	}
	cr_assert_lt(ds_mono_ns() - start, 5 * (uint64_t)DS_NS_PER_S);
	end();
}

Test(store_s3, A06_an_error_or_a_page_in_a_200_is_a_server_error)
{
	static const char *const bodies[] = {
		"<?xml version=\"1.0\"?>\n<Error><Code>InternalError</Code></Error>",
		"<Error><Code>SlowDown</Code><Message>Please</Message></Error>",
		"<html>Hotel WiFi</html>",
		"<Error><Code>SomethingNew</Code></Error>",
	};

	set_up();
	for (size_t i = 0; i < DS_ARRAY_SIZE(bodies); i++) {
		http_script_answer(script, 200, "", bodies[i]);
		http_script_is_fault(script);
		http_script_answer(script, 200, "ETag: \"x\"\r\n", "");
		expect(ds_store_put(store, "k", "v", 1, &diag), 0);
	}
	cr_assert_eq(stats().retries_n, 4);
	end();
}

/* ---- nonsense */

Test(store_s3, A07_a_portals_page_is_no_object)
{
	set_up();
	http_script_answer(script, 200, "Content-Type: text/html\r\n", "<html>Hotel WiFi</html>");
	refused_then_good();
	/* The same length as what was asked. */
	http_script_answer(script, 200, "", "<ht>");
	refused_then_good();
	http_script_answer(script, 404, "Content-Type: text/html\r\n", "<html>no such host</html>");
	refused_then_good();
	end();
}

Test(store_s3, A08_A15_a_range_that_was_not_asked_is_refused)
{
	static const char *const ranges[] = {
		"Content-Range: bytes 3-6/10\r\n",
		"Content-Range: bytes 0-3/10\r\n",
		"Content-Range: bytes 2-6/10\r\n",
		"Content-Range: bytes 2-4/10\r\n",
		"Content-Range: bytes 2-5/*\r\n",
		"Content-Range: bytes 2-5/4\r\n",
		"Content-Range: items 2-5/10\r\n",
		"Content-Range: bytes=2-5/10\r\n",
		"Content-Range: bytes 2-5/10x\r\n",
		"Content-Range: bytes 2-5\r\n",
		"Content-Range: bytes -5/10\r\n",
		"Content-Range: bytes 5-2/10\r\n",
		"Content-Range: bytes 2-5/99999999999999999999999\r\n",
		"Content-Range: bytes 2-5/10\r\nContent-Range: bytes 0-3/10\r\n",
		"",
	};

	set_up();
	for (size_t i = 0; i < DS_ARRAY_SIZE(ranges); i++) {
		http_script_answer(script, 206, ranges[i], "2345");
		refused_then_good();
	}
	/* The right range with the wrong number of bytes. */
	good_range("2-5/10", "23456");
	refused_then_good();
	good_range("2-5/10", "234");
	refused_then_good();
	end();
}

Test(store_s3, A08_a_store_that_goes_on_with_nonsense_fails_soon)
{
	set_up();
	good_range("0-3/10", "0123");
	http_script_is_fault(script);
	http_script_forever(script);
	expect(get_range(2, 4), -DS_E_PROTOCOL);
	cr_assert_leq(diag.attempts, 6);
	cr_assert_eq(buf.len_bytes, 0);
	end();
}

Test(store_s3, A09_a_whole_object_instead_of_a_range_is_not_read)
{
	set_up();
	http_script_add(script, HTTP_CLOSE,
			"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
	http_script_flood(script, 1000000000, "x");
	refused_then_good();
	cr_assert_lt(http_script_sent_bytes(script), 32u << 20);
	end();
}

Test(store_s3, A09_a_whole_object_that_is_the_range_is_taken)
{
	set_up();
	http_script_answer(script, 503, "", "");
	http_script_is_fault(script);
	http_script_answer(script, 200, "", "0123");
	expect(get_range(0, 4), 0);
	cr_assert_str_eq(ds_buf_str(&buf), "0123");
	end();
}

Test(store_s3, A10_a_short_body_is_retried)
{
	static const size_t cuts[] = {0, 1, 5, 9};

	set_up();
	for (size_t i = 0; i < DS_ARRAY_SIZE(cuts); i++) {
		http_script_add(script, i % 2 ? HTTP_CLOSE : HTTP_RESET,
				"HTTP/1.1 206 P\r\nContent-Range: bytes 0-9/20\r\n"
				"Content-Length: 10\r\n\r\n%.*s",
				(int)cuts[i], "abcdefghij");
		http_script_is_fault(script);
		good_range("0-9/20", "0123456789");
		expect(get_range(0, 10), 0);
		cr_assert_str_eq(ds_buf_str(&buf), "0123456789");
	}
	cr_assert_eq(stats().retries_n, 4);
	end();
}

Test(store_s3, A10_a_whole_object_cut_short_is_retried)
{
	set_up();
	http_script_add(script, HTTP_CLOSE, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n01234");
	http_script_is_fault(script);
	http_script_answer(script, 200, "", "0123456789");
	expect(ds_store_get(store, "k", &buf, &diag), 0);
	cr_assert_str_eq(ds_buf_str(&buf), "0123456789");
	end();
}

Test(store_s3, A11_a_length_that_is_none_is_refused)
{
	static const char *const lengths[] = {
		"Content-Length: -1",
		"Content-Length: 9223372036854775808",
		"Content-Length: 12abc",
		"Content-Length: 4\r\nContent-Length: 5",
		"Content-Length: 4, 5",
		"Content-Length: +4",
		"Content-Length:",
		"X-None: 1",
		"Transfer-Encoding: chunked",
		"Transfer-Encoding: chunked\r\nContent-Length: 4",
	};

	set_up();
	for (size_t i = 0; i < DS_ARRAY_SIZE(lengths); i++) {
		http_script_add(script, HTTP_CLOSE,
				"HTTP/1.1 206 P\r\nContent-Range: bytes 2-5/10\r\n%s\r\n\r\n%s",
				lengths[i],
				strstr(lengths[i], "chunked") ? "4\r\n2345\r\n0\r\n\r\n" : "2345");
		refused_then_good();
	}
	end();
}

Test(store_s3, A11_A31_bytes_behind_an_answer_are_not_the_next_answer)
{
	set_up();
	for (int i = 0; i < 5; i++) {
		http_script_add(script, HTTP_KEEP,
				"HTTP/1.1 206 P\r\nContent-Range: bytes 2-5/10\r\n"
				"Content-Length: 4\r\n\r\n2345"
				"HTTP/1.1 206 P\r\nContent-Range: bytes 2-5/10\r\n"
				"Content-Length: 4\r\n\r\nEVIL");
		http_script_is_fault(script);
		expect(get_range(2, 4), 0);
		cr_assert_str_eq(ds_buf_str(&buf), "2345");
	}
	end();
}

Test(store_s3, A12_parts_and_encodings_are_refused)
{
	set_up();
	http_script_answer(script, 206,
			   "Content-Range: bytes 2-5/10\r\n"
			   "Content-Type: multipart/byteranges; boundary=x\r\n",
			   "2345");
	refused_then_good();
	http_script_answer(script, 206, "Content-Range: bytes 2-5/10\r\nContent-Encoding: gzip\r\n",
			   "2345");
	refused_then_good();
	end();
}

Test(store_s3, A20_odd_statuses_are_refused_and_interim_ones_passed_over)
{
	static const int statuses[] = {304, 204, 299, 202};

	set_up();
	for (size_t i = 0; i < DS_ARRAY_SIZE(statuses); i++) {
		http_script_add(script, HTTP_CLOSE, "HTTP/1.1 %d X\r\n\r\n", statuses[i]);
		refused_then_good();
	}
	http_script_add(script, HTTP_KEEP,
			"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nX-Y: z\r\n\r\n"
			"HTTP/1.1 206 P\r\nContent-Range: bytes 2-5/10\r\n"
			"Content-Length: 4\r\n\r\n2345");
	http_script_is_fault(script);
	expect(get_range(2, 4), 0);
	/* Interim answers without an end. */
	http_script_add(script, HTTP_CLOSE, "HTTP/1.1 100 Continue\r\n\r\n");
	http_script_flood(script, 100 << 20, "HTTP/1.1 100 Continue\r\n\r\n");
	refused_then_good();
	cr_assert_lt(http_script_sent_bytes(script), 32u << 20);
	end();
}

Test(store_s3, A20_416_is_an_object_that_is_too_short)
{
	struct ds_store_req tail = {
		.op = DS_STORE_GET, .key = "k", .len_bytes = 10, .from_end = true, .into = &buf};

	set_up();
	http_script_answer(script, 416, "Content-Range: bytes */3\r\n", "");
	http_script_is_fault(script);
	http_script_answer(script, 416, "Content-Range: bytes */3\r\n", "");
	expect(get_range(5, 4), -DS_E_MALFORMED);
	/* Without the size: one HEAD tells it. */
	http_script_answer(script, 416, "", "<Error><Code>InvalidRange</Code></Error>");
	http_script_is_fault(script);
	http_script_add(script, HTTP_KEEP, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
	expect(ds_store_perform(store, &tail), 0);
	cr_assert_eq(tail.object_size_bytes, 0);
	cr_assert_eq(buf.len_bytes, 0);
	cr_assert_eq(strncmp(http_script_request(script, 3), "HEAD ", 5), 0);
	/* A range that is there is refused for ever. */
	http_script_answer(script, 416, "Content-Range: bytes */100\r\n", "");
	http_script_is_fault(script);
	http_script_forever(script);
	expect(get_range(5, 4), -DS_E_PROTOCOL);
	end();
}

/* ---- elsewhere */

Test(store_s3, A21_a_redirect_is_never_followed)
{
	static const char *const targets[] = {"http://169.254.169.254/x", "file:///etc/passwd",
					      "https://elsewhere.invalid/k", "/bucket/pre/k", ""};
	struct http_script *other;

	set_up();
	other = http_script_new();
	for (size_t i = 0; i < DS_ARRAY_SIZE(targets); i++) {
		char header[128];

		snprintf(header, sizeof(header), "Location: %s\r\n",
			 *targets[i] ? targets[i] : http_script_url(other));
		http_script_answer(script, i % 2 ? 302 : 307, header, "");
		http_script_is_fault(script);
		expect(get_range(0, 4), -DS_E_PROTOCOL);
		cr_assert_eq(diag.attempts, 1);
	}
	http_script_answer(script, 301, "x-amz-bucket-region: eu-west-3\r\n", "");
	http_script_is_fault(script);
	expect(get_range(0, 4), -DS_E_PROTOCOL);
	cr_assert(strstr(diag.detail, "region=eu-west-3"));
	cr_assert_eq(http_script_connections_n(other), 0);
	http_script_free(other);
	end();
}

Test(store_s3, C05_a_wrong_region_is_told_with_the_right_one)
{
	set_up();
	http_script_answer(script, 400, "",
			   "<Error><Code>AuthorizationHeaderMalformed</Code><Message>The region is "
			   "wrong</Message><Region>ap-south-1</Region></Error>");
	http_script_is_fault(script);
	expect(get_range(0, 4), -DS_E_PROTOCOL);
	cr_assert(strstr(diag.detail, "region=ap-south-1"));
	cr_assert_eq(diag.attempts, 1);
	end();
}

/* ---- refusals */

Test(store_s3, A19_C04_a_refusal_is_not_repeated)
{
	static const struct {
		int status, code;
		const char *s3_code;
	} rows[] = {
		{403, -DS_E_DENIED, "AccessDenied"},
		{403, -DS_E_DENIED, "AllAccessDisabled"},
		{403, -DS_E_AUTH, "SignatureDoesNotMatch"},
		{403, -DS_E_AUTH, "InvalidAccessKeyId"},
		{400, -DS_E_AUTH, "ExpiredToken"},
		{400, -DS_E_PROTOCOL, "InvalidArgument"},
		{404, -DS_E_NO_BUCKET, "NoSuchBucket"},
		{404, -DS_E_ABSENT, "NoSuchKey"},
		{501, -DS_E_UNSUPPORTED, "NotImplemented"},
	};

	set_up();
	for (size_t i = 0; i < DS_ARRAY_SIZE(rows); i++) {
		char body[256];

		/* Real servers echo the access key. */
		snprintf(body, sizeof(body),
			 "<Error><Code>%s</Code><Message>about ACCESSKEY</Message>"
			 "<RequestId>tx%zu</RequestId></Error>",
			 rows[i].s3_code, i);
		http_script_answer(script, rows[i].status, "", body);
		http_script_is_fault(script);
		expect(get_range(0, 4), rows[i].code);
		cr_assert_str_eq(diag.s3_code, rows[i].s3_code);
		cr_assert_eq(diag.attempts, 1, "%s", rows[i].s3_code);
		cr_assert(strncmp(diag.request_id, "tx", 2) == 0);
	}
	end();
}

Test(store_s3, D04_409_is_tried_again_and_412_is_not)
{
	set_up();
	http_script_answer(script, 409, "",
			   "<Error><Code>ConditionalRequestConflict</Code></Error>");
	http_script_is_fault(script);
	http_script_answer(script, 200, "", "");
	expect(ds_store_put_if_absent(store, "k", "v", 1, &diag), 0);
	cr_assert(strstr(http_script_request(script, 0), "\r\nif-none-match: *\r\n"));
	http_script_answer(script, 412, "", "<Error><Code>PreconditionFailed</Code></Error>");
	http_script_is_fault(script);
	expect(ds_store_put_if_absent(store, "k", "v", 1, &diag), -DS_E_PRESENT);
	cr_assert_eq(stats().failures_n, 0);
	http_script_answer(script, 409, "",
			   "<Error><Code>ConditionalRequestConflict</Code></Error>");
	http_script_is_fault(script);
	http_script_forever(script);
	expect(ds_store_put_if_absent(store, "k", "v", 1, &diag), -DS_E_PRESENT);
	end();
}

Test(store_s3, A30_a_store_without_conditional_writes_says_so)
{
	set_up();
	http_script_answer(script, 501, "", "<Error><Code>NotImplemented</Code></Error>");
	http_script_is_fault(script);
	expect(ds_store_put_if_absent(store, "k", "v", 1, &diag), -DS_E_UNSUPPORTED);
	end();
}
