/* The S3 backend: keys, clocks, lists, connections and their faults; each test counts its faults. */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <dirent.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "s3_script.h"
#include "store_contract.h"
#include "util/mem.h"
#include "util/random.h"

TestSuite(store_s3, .fini = test_leak_check, .timeout = 60);

/* ---- keys and clocks */

static const char skewed[] =
	"HTTP/1.1 403 F\r\nDate: Sat, 21 Nov 2026 03:47:27 GMT\r\nContent-Length: 55\r\n\r\n"
	"<Error><Code>RequestTimeTooSkewed</Code></Error>       ";

Test(store_s3, C05_the_clock_is_learned_from_the_answer)
{
	struct ds_time now;
	char value[64];

	set_up();
	http_script_add(script, HTTP_KEEP, "%s", skewed);
	http_script_is_fault(script);
	good_range("0-3/10", "0123");
	expect(get_range(0, 4), 0);
	header_of(1, "x-amz-date", value, sizeof(value));
	cr_assert_eq(strncmp(value, "20261121T0347", 13), 0, "%s", value);
	cr_assert_eq(stats().retries_n, 0);
	cr_assert_eq(ds_store_now(store, &now, NULL), 0);
	end();
}

Test(store_s3, C05_a_clock_that_stays_wrong_is_told)
{
	set_up();
	http_script_add(script, HTTP_KEEP, "%s", skewed);
	http_script_is_fault(script);
	http_script_forever(script);
	expect(get_range(0, 4), -DS_E_AUTH);
	cr_assert_eq(diag.attempts, 2);
	end();
}

/* The time of the store after an answer with this date. */
static int64_t now_after(const char *date)
{
	struct ds_time now;

	http_script_add(script, HTTP_KEEP,
			"HTTP/1.1 206 P\r\nContent-Range: bytes 0-3/10\r\nDate: %s GMT\r\n"
			"Content-Length: 4\r\n\r\n0123",
			date);
	http_script_is_fault(script);
	expect(get_range(0, 4), 0);
	cr_assert_eq(ds_store_now(store, &now, NULL), 0);
	return now.s;
}

static void is_near(int64_t s, int64_t wanted_s)
{
	cr_assert(s >= wanted_s && s < wanted_s + 60, "%lld, not %lld", (long long)s,
		  (long long)wanted_s);
}

Test(store_s3, one_wrong_date_is_not_believed_two_in_a_row_are)
{
	const int64_t today = 1795232847, later = 4070908800, before = 978307200;

	set_up();
	is_near(now_after("Sat, 21 Nov 2026 03:47:27"), today);
	is_near(now_after("Thu, 01 Jan 2099 00:00:00"), today);
	is_near(now_after("Sat, 21 Nov 2026 03:47:28"), today);
	is_near(now_after("Mon, 01 Jan 2001 00:00:00"), today);
	is_near(now_after("Thu, 01 Jan 2099 00:00:00"), today);
	is_near(now_after("Sat, 21 Nov 2026 03:47:29"), today);
	is_near(now_after("Thu, 01 Jan 2099 00:00:00"), today);
	is_near(now_after("Thu, 01 Jan 2099 00:00:00"), later);
	is_near(now_after("Mon, 01 Jan 2001 00:00:00"), later);
	is_near(now_after("Mon, 01 Jan 2001 00:00:01"), before);
	/* A step of a few minutes is nothing that needs to be believed. */
	is_near(now_after("Mon, 01 Jan 2001 00:04:00"), before + 240);
	is_near(now_after("Mon, 01 Jan 2001 00:00:00"), before);
	end();
}

Test(store_s3, L02_a_put_with_its_own_time_is_late_instead)
{
	struct ds_store_req put = {.op = DS_STORE_PUT,
				   .key = "k",
				   .if_absent = true,
				   .signed_at = {.s = 1000000000}};
	char value[64];

	set_up();
	http_script_answer(script, 503, "", "");
	http_script_is_fault(script);
	http_script_add(script, HTTP_KEEP, "%s", skewed);
	http_script_is_fault(script);
	cr_assert_eq(ds_store_perform(store, &put), -DS_E_LATE);
	for (unsigned i = 0; i < 2; i++) {
		header_of(i, "x-amz-date", value, sizeof(value));
		cr_assert_str_eq(value, "20010909T014640Z");
	}
	end();
}

Test(store_s3, C01_expired_keys_are_read_again)
{
	static const char format[] =
		"[default]\naws_access_key_id = %s\n"
		"aws_secret_access_key = " S3_SCRIPT_SECRET "\naws_session_token = T%s\n";
	char path[] = "/tmp/dsfs-credentials-XXXXXX", value[256];
	struct ds_store_options options = {.timeout_ms = 5000};
	int fd = mkstemp(path);

	set_up();
	tear_down();
	unsetenv("AWS_ACCESS_KEY_ID");
	unsetenv("AWS_SECRET_ACCESS_KEY");
	setenv("AWS_SHARED_CREDENTIALS_FILE", path, 1);
	dprintf(fd, format, "OLDKEY", "1");
	script = http_script_new();
	options.endpoint = http_script_url(script);
	cr_assert_eq(ds_store_open("s3://bucket/pre", &options, false, &store, &diag), 0);
	ds_buf_init(&buf, 100);

	/* Nothing new in the file: told at once. */
	http_script_answer(script, 400, "", "<Error><Code>ExpiredToken</Code></Error>");
	http_script_is_fault(script);
	expect(get_range(0, 4), -DS_E_AUTH);
	cr_assert_eq(diag.attempts, 1);
	/* Half-written: the old keys stay. */
	cr_assert_eq(ftruncate(fd, 30), 0);
	http_script_answer(script, 403, "", "<Error><Code>InvalidAccessKeyId</Code></Error>");
	http_script_is_fault(script);
	expect(get_range(0, 4), -DS_E_AUTH);
	cr_assert_eq(ftruncate(fd, 0), 0);
	lseek(fd, 0, SEEK_SET);
	dprintf(fd, format, "NEWKEY", "2");
	http_script_answer(script, 403, "", "<Error><Code>ExpiredToken</Code></Error>");
	http_script_is_fault(script);
	good_range("0-3/10", "0123");
	expect(get_range(0, 4), 0);
	header_of(2, "Authorization", value, sizeof(value));
	cr_assert(strstr(value, "Credential=OLDKEY/"));
	header_of(3, "Authorization", value, sizeof(value));
	cr_assert(strstr(value, "Credential=NEWKEY/"));
	cr_assert(strstr(value, "x-amz-security-token"));
	header_of(3, "x-amz-security-token", value, sizeof(value));
	cr_assert_str_eq(value, "T2");
	close(fd);
	unlink(path);
	end();
}

/* ---- lists */

static struct ds_store_listing listing;

static int list_all(void)
{
	struct ds_store_req req = {.op = DS_STORE_LIST, .key = "d/", .listing = &listing};
	int r;

	ds_store_listing_release(&listing);
	r = ds_store_perform(store, &req);
	diag = req.diag;
	return r;
}

#define ROW(key)                                                                           \
	"<Contents><Key>" key "</Key><Size>1</Size><LastModified>2026-11-21T03:47:27.000Z" \
	"</LastModified></Contents>"
#define PAGE(rows, end)                             \
	"<?xml version=\"1.0\"?><ListBucketResult " \
	"xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">" rows end "</ListBucketResult>"
#define LAST "<IsTruncated>false</IsTruncated>"
#define MORE(token) \
	"<IsTruncated>true</IsTruncated><NextContinuationToken>" token "</NextContinuationToken>"

Test(store_s3, list_follows_the_tokens_and_decodes_keys)
{
	set_up();
	http_script_answer(script, 200, "",
			   PAGE(ROW("pre/d/a%20b") ROW("pre/d/a%2Bb%C3%A4"),
				MORE("1/tok+en=") "<EncodingType>url</EncodingType>"));
	http_script_answer(script, 503, "", "");
	http_script_is_fault(script);
	http_script_answer(script, 200, "", PAGE("", MORE("2")));
	http_script_answer(script, 200, "", PAGE(ROW("pre/d/c%d"), LAST));
	expect(list_all(), 0);
	cr_assert_eq(listing.objects_n, 3);
	cr_assert_str_eq(listing.objects[0].key, "d/a b");
	cr_assert_str_eq(listing.objects[1].key, "d/a+b\xc3\xa4");
	cr_assert_str_eq(listing.objects[2].key, "d/c%d",
			 "not encoded, if the page does not say so");
	cr_assert(strstr(http_script_request(script, 2), "continuation-token=1%2Ftok%2Ben%3D&"));
	cr_assert(strstr(http_script_request(script, 0), "prefix=pre%2Fd%2F"));
	ds_store_listing_release(&listing);
	end();
}

Test(store_s3, A22_a_list_that_makes_no_sense_is_refused)
{
	static const char *const pages[] = {
		PAGE(ROW("pre/d/a"), "<IsTruncated>true</IsTruncated>"),
		PAGE(ROW("pre/d/a"), ""),
		PAGE(ROW("pre/d/b") ROW("pre/d/a"), LAST),
		PAGE(ROW("pre/d/a") ROW("pre/d/a"), LAST),
		PAGE(ROW("other/d/a"), LAST),
		PAGE(ROW("pre/e/a"), LAST),
		PAGE(ROW("pre/d/%zz"), LAST "<EncodingType>url</EncodingType>"),
		PAGE(ROW("pre/d/a%00"), LAST "<EncodingType>url</EncodingType>"),
		PAGE(ROW("pre/d/a") "<Contents><Key>pre/d/b</Key></Contents>", LAST),
		PAGE("<Contents><Key>pre/d/a</Key><Size>-1</Size><LastModified>2026-11-21T03:47:27Z"
		     "</LastModified></Contents>",
		     LAST),
		PAGE("<a><a><a><a><a><a><a><a><a></a></a></a></a></a></a></a></a></a>", LAST),
		"<html><body>Hotel</body></html>",
		"",
		"<ListBucketResult>",
		"<?xml version=\"1.0\"?><!DOCTYPE x [<!ENTITY a \"aaaaaaaa\"><!ENTITY b "
		"\"&a;&a;\">]>"
		"<ListBucketResult>&b;" LAST "</ListBucketResult>",
		"{\"IsTruncated\": false}",
	};

	set_up();
	for (size_t i = 0; i < DS_ARRAY_SIZE(pages); i++) {
		http_script_answer(script, 200, "", pages[i]);
		http_script_is_fault(script);
		http_script_answer(script, 200, "", PAGE(ROW("pre/d/good"), LAST));
		expect(list_all(), 0);
		cr_assert_eq(listing.objects_n, 1, "page %zu", i);
		cr_assert_str_eq(listing.objects[0].key, "d/good");
	}
	ds_store_listing_release(&listing);
	end();
}

Test(store_s3, A22_a_token_that_repeats_ends_in_an_error)
{
	set_up();
	http_script_answer(script, 200, "", PAGE(ROW("pre/d/a"), MORE("same")));
	http_script_answer(script, 200, "", PAGE("", MORE("same")));
	http_script_is_fault(script);
	http_script_forever(script);
	expect(list_all(), -DS_E_PROTOCOL);
	cr_assert_eq(listing.objects_n, 0, "nothing of it stays");
	cr_assert_lt(http_script_requests_n(script), 10);
	ds_store_listing_release(&listing);
	end();
}

Test(store_s3, A22_a_list_without_end_is_bounded)
{
	set_up_with((struct ds_store_options){.timeout_ms = 8000});
	http_script_add(script, HTTP_CLOSE,
			"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n<ListBucketResult>");
	http_script_flood(script, 1000000000 - 18, "<Prefix>x</Prefix>");
	http_script_is_fault(script);
	http_script_answer(script, 200, "", PAGE(ROW("pre/d/good"), LAST));
	expect(list_all(), 0);
	cr_assert_lt(http_script_sent_bytes(script), 64u << 20);
	ds_store_listing_release(&listing);
	end();
}

/* ---- connections */

Test(store_s3, B02_connections_that_break_are_made_anew)
{
	set_up();
	http_script_add(script, HTTP_RESET_AT_ACCEPT, "%s", "");
	http_script_is_fault(script);
	http_script_add(script, HTTP_RESET, "%s", "");
	http_script_is_fault(script);
	http_script_add(script, HTTP_RESET, "HTTP/1.1 206 Pa");
	http_script_is_fault(script);
	http_script_add(script, HTTP_CLOSE, "HTTP/1.1 206 P\r\nContent-Range: bytes 0-3");
	http_script_is_fault(script);
	http_script_add(script, HTTP_CLOSE, "garbage\r\n\r\n");
	http_script_is_fault(script);
	http_script_add(script, HTTP_CLOSE, "%s", "");
	http_script_is_fault(script);
	good_range("0-3/10", "0123");
	expect(get_range(0, 4), 0);
	cr_assert_str_eq(ds_buf_str(&buf), "0123");
	end();
}

/* What a PUT by headway ends with, and that it ends soon. */
static int put_by_headway(void)
{
	static const char body[70000];
	struct ds_store_req put = {.op = DS_STORE_PUT,
				   .key = "k",
				   .body = body,
				   .body_len_bytes = sizeof(body),
				   .if_absent = true,
				   .by_headway = true};
	uint64_t started_ns = ds_mono_ns();

	ds_store_perform(store, &put);
	cr_assert_lt(ds_mono_ns() - started_ns, 10 * (uint64_t)DS_NS_PER_S);
	return put.result;
}

Test(store_s3, A02_a_put_by_headway_ends_where_the_store_takes_all_and_refuses)
{
	set_up_with((struct ds_store_options){.timeout_ms = 1000});
	http_script_answer(script, 503, "", "");
	http_script_is_fault(script);
	http_script_forever(script);
	cr_assert_eq(put_by_headway(), -DS_E_SERVER);
	cr_assert_gt(http_script_requests_n(script), 1);
	end();
}

Test(store_s3, A27_a_put_by_headway_ends_where_nothing_is_answered)
{
	set_up_with((struct ds_store_options){.timeout_ms = 1000});
	http_script_add(script, HTTP_HANG, "%s", "");
	http_script_is_fault(script);
	cr_assert_eq(put_by_headway(), -DS_E_TIMEOUT);
	end();
}

Test(store_s3, a_put_by_headway_is_tried_again)
{
	set_up_with((struct ds_store_options){.timeout_ms = 20000});
	http_script_answer(script, 503, "", "");
	http_script_is_fault(script);
	http_script_answer(script, 200, "", "");
	cr_assert_eq(put_by_headway(), 0);
	end();
}

Test(store_s3, B02_a_refused_connection_is_told_at_the_deadline)
{
	struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct ds_store_options options = {.timeout_ms = 2000};
	struct ds_store *other = NULL;
	socklen_t len = sizeof(addr);
	char url[64];

	set_up();
	http_script_add(script, HTTP_RESET_AT_ACCEPT, "%s", "");
	http_script_is_fault(script);
	http_script_answer(script, 200, "", "v");
	expect(ds_store_get(store, "k", &buf, &diag), 0);
	end();
	/* Nobody listens there, and nobody can while it is ours. */
	cr_assert_eq(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	cr_assert_eq(getsockname(fd, (struct sockaddr *)&addr, &len), 0);
	snprintf(url, sizeof(url), "http://127.0.0.1:%u", ntohs(addr.sin_port));
	options.endpoint = url;
	cr_assert_eq(ds_store_open("s3://bucket/pre", &options, false, &other, NULL), 0);
	expect(ds_store_get(other, "k", &buf, &diag), -DS_E_NETWORK);
	cr_assert_gt(diag.attempts, 1);
	ds_store_unref(other);
	close(fd);
}

/* What the store said that it waits for. */
struct said {
	unsigned n;
	char why[512];
	uint64_t left_ms, at_ns;
	volatile int is_said;
};

static void note_waits(void *ctx, const char *why, uint64_t left_ms)
{
	struct said *said = ctx;

	said->n++;
	snprintf(said->why, sizeof(said->why), "%s", why);
	said->left_ms = left_ms;
	said->at_ns = ds_mono_ns();
	said->is_said = 1;
}

Test(store_s3, B02_what_is_waited_for_is_said_once_after_2_s)
{
	struct said said;
	struct ds_store_options options = {.timeout_ms = 20000,
					   .waits = note_waits,
					   .waits_ctx = &said,
					   .interrupted = &said.is_said};
	struct ds_store_req again = {.op = DS_STORE_HEAD, .key = "k"};
	uint64_t took_ns = UINT64_MAX;
	char wanted[128];

	/* A machine may stand still just then, but not each time. */
	for (unsigned i = 0; took_ns > 2200 * (uint64_t)DS_NS_PER_MS; i++) {
		uint64_t started_ns;

		cr_assert_lt(i, 3, "said after %llu ms",
			     (unsigned long long)(took_ns / DS_NS_PER_MS));
		if (i)
			end();
		said = (struct said){0};
		set_up_with(options);
		http_script_answer(script, 503, "", "");
		http_script_is_fault(script);
		http_script_forever(script);
		started_ns = ds_mono_ns();
		expect(get_range(0, 4), -DS_E_INTERRUPTED);
		cr_assert_eq(said.n, 1);
		took_ns = said.at_ns - started_ns;
	}
	cr_assert(said.left_ms > 17000 && said.left_ms <= 20000);
	snprintf(wanted, sizeof(wanted), "%s: the store failed", http_script_url(script));
	cr_assert_eq(strncmp(said.why, wanted, strlen(wanted)), 0, "%s", said.why);
	said.is_said = 0;
	again.deadline_ns = ds_deadline_in_ms(3000);
	cr_assert_eq(ds_store_perform(store, &again), -DS_E_THROTTLED);
	cr_assert_eq(said.n, 1);
	end();
}

Test(store_s3, B02_what_mends_soon_is_not_said)
{
	struct said said = {0};
	struct ds_store_options options = {.timeout_ms = 20000,
					   .waits = note_waits,
					   .waits_ctx = &said};

	set_up_with(options);
	for (unsigned n = 0; n < 2; n++) {
		http_script_answer(script, 503, "", "");
		http_script_is_fault(script);
	}
	good_range("0-3/10", "0123");
	expect(get_range(0, 4), 0);
	cr_assert_eq(said.n, 0);
	end();
}

Test(store_s3, B04_a_kept_connection_that_died_is_no_fault)
{
	set_up();
	for (int i = 0; i < 4; i++) {
		good_range("0-3/10", "0123");
		expect(get_range(0, 4), 0);
		/* Takes the next request on the kept connection and says nothing. */
		http_script_add(script, i % 2 ? HTTP_RESET : HTTP_CLOSE, "%s", "");
		http_script_is_fault(script);
		good_range("0-3/10", "0123");
		expect(get_range(0, 4), 0);
	}
	cr_assert_eq(stats().retries_n, 0);
	end();
}

Test(store_s3, B04_a_put_over_a_dead_connection_sends_its_body_again)
{
	size_t len = 3 << 20;
	char *body = calloc(1, len);

	set_up();
	good_range("0-3/10", "0123");
	expect(get_range(0, 4), 0);
	http_script_add(script, HTTP_RESET, "%s", "");
	http_script_is_fault(script);
	http_script_answer(script, 200, "", "");
	expect(ds_store_put(store, "k", body, len, &diag), 0);
	cr_assert_eq(stats().retries_n, 0);
	cr_assert_eq(stats().sent_bytes, len);
	free(body);
	end();
}

Test(store_s3, A27_a_transfer_that_stands_still_goes_over_a_new_connection)
{
	uint64_t start = ds_mono_ns();

	set_up_with((struct ds_store_options){.timeout_ms = 20000, .stall_timeout_ms = 600});
	http_script_add(script, HTTP_HANG, "%s", "");
	http_script_is_fault(script);
	http_script_add(
		script, HTTP_HANG,
		"HTTP/1.1 206 P\r\nContent-Range: bytes 0-3/10\r\nContent-Length: 4\r\n\r\n01");
	http_script_is_fault(script);
	http_script_add(script, HTTP_KEEP,
			"HTTP/1.1 206 P\r\nContent-Range: bytes 0-3/10\r\nContent-Length: 4\r\n"
			"X-Padding: a drip without an end in sight for a long time\r\n\r\n0123");
	http_script_drip(script, 50);
	http_script_is_fault(script);
	good_range("0-3/10", "0123");
	expect(get_range(0, 4), 0);
	cr_assert_str_eq(ds_buf_str(&buf), "0123");
	cr_assert_eq(http_script_connections_n(script), 4);
	cr_assert_lt(ds_mono_ns() - start, 20 * (uint64_t)DS_NS_PER_S);
	end();
}

Test(store_s3, A27_without_any_answer_the_deadline_is_told)
{
	uint64_t start = ds_mono_ns();

	set_up_with((struct ds_store_options){.timeout_ms = 700});
	http_script_add(script, HTTP_HANG, "%s", "");
	http_script_is_fault(script);
	http_script_forever(script);
	expect(get_range(0, 4), -DS_E_TIMEOUT);
	cr_assert_lt(ds_mono_ns() - start, 2 * (uint64_t)DS_NS_PER_S);
	end();
}

Test(store_s3, A28_headers_are_bounded)
{
	set_up();
	http_script_add(script, HTTP_CLOSE, "HTTP/1.1 206 P\r\nX-Long: ");
	http_script_flood(script, 10 << 20, "x");
	refused_then_good();
	http_script_add(script, HTTP_CLOSE, "HTTP/1.1 206 P\r\n");
	http_script_flood(script, 10 << 20, "X-Many: headers\r\n");
	refused_then_good();
	http_script_add(script, HTTP_CLOSE, "HTTP/1.1 503 P\r\n");
	http_script_flood(script, 10 << 20, "X-Many: headers\r\n");
	refused_then_good();
	cr_assert_lt(http_script_sent_bytes(script), 30u << 20);
	end();
}

Test(store_s3, A29_the_body_of_an_error_is_bounded)
{
	set_up();
	http_script_add(script, HTTP_CLOSE,
			"HTTP/1.1 500 E\r\nContent-Length: 1000000000\r\n\r\n"
			"<Error><Code>InternalError</Code>");
	http_script_flood(script, 1000000000, "<x></x>");
	refused_then_good();
	cr_assert_lt(http_script_sent_bytes(script), 32u << 20);
	/* What was there of the document counts. */
	http_script_add(script, HTTP_CLOSE,
			"HTTP/1.1 404 E\r\nContent-Length: 1000000000\r\n\r\n"
			"<Error><Code>NoSuchBucket</Code>");
	http_script_flood(script, 1000000000, "<x></x>");
	http_script_is_fault(script);
	expect(get_range(0, 4), -DS_E_NO_BUCKET);
	end();
}

/* ---- order, cancelling, threads */

struct waiting {
	pthread_mutex_t mutex;
	pthread_cond_t wake;
	unsigned done_n;
};

static void count_done(struct ds_store_req *req)
{
	struct waiting *waiting = req->ctx;

	pthread_mutex_lock(&waiting->mutex);
	waiting->done_n++;
	pthread_cond_signal(&waiting->wake);
	pthread_mutex_unlock(&waiting->mutex);
}

static void wait_done(struct waiting *waiting, unsigned n)
{
	pthread_mutex_lock(&waiting->mutex);
	while (waiting->done_n < n)
		pthread_cond_wait(&waiting->wake, &waiting->mutex);
	pthread_mutex_unlock(&waiting->mutex);
}

Test(store_s3, A03_every_fifth_answer_is_an_error_and_no_request_fails)
{
	enum { GETS_N = 1000 };
	struct waiting waiting = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0};
	struct ds_store_req *reqs = calloc(GETS_N, sizeof(*reqs));
	struct ds_buf *bufs = calloc(GETS_N, sizeof(*bufs));
	static const int statuses[] = {500, 502, 504};
	struct ds_prng prng = {3};
	unsigned good_n = 0, bad_n = 0;

	set_up();
	while (good_n < GETS_N) {
		if (ds_prng_below(&prng, 5) == 0) {
			http_script_answer(script, statuses[bad_n++ % 3], "", "");
			http_script_is_fault(script);
		} else {
			http_script_answer(script, 200, "", "value");
			good_n++;
		}
	}
	for (int i = 0; i < GETS_N; i++) {
		ds_buf_init(&bufs[i], 10);
		reqs[i] = (struct ds_store_req){.op = DS_STORE_GET,
						.key = "k",
						.len_bytes = DS_STORE_LEN_ALL,
						.into = &bufs[i],
						.done = count_done,
						.ctx = &waiting};
		ds_store_submit(store, &reqs[i]);
	}
	wait_done(&waiting, GETS_N);
	for (int i = 0; i < GETS_N; i++) {
		cr_assert_eq(reqs[i].result, 0);
		cr_assert_str_eq(ds_buf_str(&bufs[i]), "value");
		ds_buf_release(&bufs[i]);
	}
	/* One request for each answer: no more retries than errors. */
	cr_assert_eq(http_script_requests_n(script), GETS_N + bad_n);
	cr_assert_eq(stats().retries_n, bad_n);
	cr_assert_eq(stats().failures_n, 0);
	free(reqs);
	free(bufs);
	end();
}

Test(store_s3, urgent_requests_overtake_and_cancelled_ones_end)
{
	struct waiting waiting = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0};
	static const char *const keys[] = {"first", "second", "third", "urgent"};
	struct ds_store_req reqs[4];
	struct ds_buf bufs[4];

	set_up_with((struct ds_store_options){.timeout_ms = 20000, .connections_n = 1});
	http_script_add(script, HTTP_HANG, "%s", "");
	http_script_is_fault(script);
	http_script_answer(script, 200, "", "urgent");
	http_script_answer(script, 200, "", "third");
	for (int i = 0; i < 4; i++) {
		ds_buf_init(&bufs[i], 100);
		reqs[i] = (struct ds_store_req){.op = DS_STORE_GET,
						.key = keys[i],
						.len_bytes = DS_STORE_LEN_ALL,
						.into = &bufs[i],
						.is_urgent = i == 3,
						.done = count_done,
						.ctx = &waiting};
		ds_store_submit(store, &reqs[i]);
		if (i == 0)
			http_script_wait(script, 1);
	}
	ds_store_cancel(store, &reqs[1]); /* waits for a connection */
	wait_done(&waiting, 1);
	cr_assert_eq(reqs[1].result, -DS_E_INTERRUPTED);
	ds_store_cancel(store, &reqs[0]); /* is on its way */
	wait_done(&waiting, 4);
	cr_assert_eq(reqs[0].result, -DS_E_INTERRUPTED);
	cr_assert_eq(reqs[2].result, 0);
	cr_assert_eq(reqs[3].result, 0);
	cr_assert(strstr(http_script_request(script, 1), "/urgent "));
	cr_assert(strstr(http_script_request(script, 2), "/third "));
	for (int i = 0; i < 4; i++)
		ds_buf_release(&bufs[i]);
	end();
}

Test(store_s3, the_last_unref_ends_what_waits)
{
	struct waiting waiting = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0};
	struct ds_store_req reqs[100];
	uint64_t start;

	set_up_with((struct ds_store_options){.connections_n = 8});
	http_script_add(script, HTTP_HANG, "%s", "");
	http_script_is_fault(script);
	http_script_forever(script);
	for (int i = 0; i < 100; i++) {
		reqs[i] = (struct ds_store_req){.op = DS_STORE_HEAD,
						.key = "k",
						.is_urgent = i % 2,
						.done = count_done,
						.ctx = &waiting};
		ds_store_submit(store, &reqs[i]);
	}
	http_script_wait(script, 8);
	start = ds_mono_ns();
	store = ds_store_unref(store);
	cr_assert_lt(ds_mono_ns() - start, 2 * (uint64_t)DS_NS_PER_S);
	cr_assert_eq(waiting.done_n, 100);
	for (int i = 0; i < 100; i++)
		cr_assert_eq(reqs[i].result, -DS_E_INTERRUPTED);
	end();
}

static unsigned threads_n(void)
{
	DIR *dir = opendir("/proc/self/task");
	unsigned n = 0;

	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

Test(store_s3, J07_open_starts_no_thread_and_sends_nothing)
{
	struct ds_store_options options = {0};
	struct ds_store *other = NULL;
	unsigned before;

	set_up();
	options.endpoint = http_script_url(script);
	before = threads_n();
	cr_assert_eq(ds_store_open("s3://bucket/pre", &options, false, &other, NULL), 0);
	cr_assert_eq(threads_n(), before);
	cr_assert_eq(ds_store_start(other), 0);
	cr_assert_eq(threads_n(), before + 1);
	cr_assert_null(ds_store_unref(other));
	cr_assert_eq(threads_n(), before);
	cr_assert_eq(http_script_connections_n(script), 0);
	tear_down();
}

/* curl's own allocations are not among these. */
Test(store_s3, J01_every_failing_allocation_is_an_error)
{
	uint64_t delivered_n = 0;
	unsigned errors_n = 0;

	set_up();
	tear_down();
	for (int64_t n = 0;; n++) {
		struct ds_store_options options = {.timeout_ms = 5000, .connections_n = 2};
		uint64_t failed_n;
		int r;

		script = http_script_new();
		http_script_answer(script, 200, "", PAGE(ROW("pre/d/a"), LAST));
		good_range("0-3/10", "0123");
		http_script_answer(script, 404, "", "<Error><Code>NoSuchKey</Code></Error>");
		options.endpoint = http_script_url(script);
		ds_buf_init(&buf, 100);
		store = NULL;
		ds_mem_fail_after(n, 0);
		r = ds_store_open("s3://bucket/pre", &options, false, &store, &diag);
		if (r == 0)
			r = list_all();
		if (r == 0)
			r = get_range(0, 4);
		if (r == 0) {
			r = ds_store_get(store, "no", &buf, NULL);
			r = r == -DS_E_ABSENT ? 0 : r;
		}
		failed_n = ds_mem_fail_after(-1, 0);
		delivered_n += failed_n;
		errors_n += r < 0;
		ds_store_listing_release(&listing);
		tear_down();
		if (failed_n == 0) {
			cr_assert_eq(r, 0);
			break;
		}
		cr_assert(r == 0 || r == -ENOMEM, "allocation %d: %s", (int)n, ds_strerror(r));
	}
	cr_assert_gt(delivered_n, 100);
	cr_assert_gt(errors_n, 80);
}
