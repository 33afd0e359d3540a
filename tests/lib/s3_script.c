#include "s3_script.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct http_script *script;
struct ds_store *store;
struct ds_buf buf;
struct ds_diag diag;

void set_up_with(struct ds_store_options options)
{
	char line[512];
	int r;

	setenv("AWS_ACCESS_KEY_ID", "ACCESSKEY", 1);
	setenv("AWS_SECRET_ACCESS_KEY", S3_SCRIPT_SECRET, 1);
	setenv("HOME", "/nonexistent", 1);
	unsetenv("AWS_PROFILE");
	script = http_script_new();
	options.endpoint = http_script_url(script);
	r = ds_store_open("s3://bucket/pre", &options, false, &store, &diag);
	cr_assert_eq(r, 0, "%s", ds_diag_format(&diag, line, sizeof(line)));
	ds_buf_init(&buf, 1 << 20);
}

void set_up(void)
{
	set_up_with((struct ds_store_options){.timeout_ms = 20000});
}

void tear_down(void)
{
	cr_assert_null(ds_store_unref(store));
	http_script_free(script);
	ds_buf_release(&buf);
}

void end(void)
{
	http_script_check(script);
	tear_down();
}

int get_range(uint64_t off, uint64_t len)
{
	struct ds_store_req req = {
		.op = DS_STORE_GET, .key = "k", .off = off, .len_bytes = len, .into = &buf};
	int r;

	ds_buf_clear(&buf);
	r = ds_store_perform(store, &req);
	diag = req.diag;
	return r;
}

void expect(int r, int code)
{
	char line[1024];

	ds_diag_format(&diag, line, sizeof(line));
	cr_assert_eq(r, code, "%s, not %s: %s", ds_error_name(r), ds_error_name(code), line);
	cr_assert_null(strstr(line, S3_SCRIPT_SECRET));
	cr_assert_null(strstr(line, "ACCESSKEY"));
}

void good_range(const char *range, const char *body)
{
	char header[128];

	snprintf(header, sizeof(header), "Content-Range: bytes %s\r\n", range);
	http_script_answer(script, 206, header, body);
}

struct ds_store_stats stats(void)
{
	struct ds_store_stats now;

	ds_store_get_stats(store, &now);
	return now;
}

void header_of(unsigned idx, const char *name, char *value, size_t size)
{
	const char *at = strstr(http_script_request(script, idx), name);

	cr_assert_not_null(at, "no %s", name);
	at += strlen(name) + 2;
	snprintf(value, size, "%.*s", (int)strcspn(at, "\r"), at);
}

void refused_then_good(void)
{
	http_script_is_fault(script);
	good_range("2-5/10", "2345");
	expect(get_range(2, 4), 0);
	cr_assert_str_eq(ds_buf_str(&buf), "2345");
}
