/*
 * What is sent for one attempt of an op: address, headers, signature. Of the network thread.
 */
#include <stdio.h>
#include <string.h>

#include "store/s3_op.h"
#include "util/mem.h"
#include "util/str.h"

#define QUERY_MAX 8

struct parts {
	const char *method;
	char *path; /* not encoded */
	struct ds_s3_pair query[QUERY_MAX];
	size_t query_n;
	struct ds_s3_pair headers[DS_S3_HEADERS_MAX]; /* signed ones */
	size_t headers_n;
	/* values that the pairs point to */
	char *prefix, *after;
	char range[64], max_keys[24], date[DS_S3_TIME_TEXT];
};

static void add_query(struct parts *parts, const char *name, const char *value)
{
	parts->query[parts->query_n++] = (struct ds_s3_pair){name, value};
}

static void add_header(struct parts *parts, const char *name, const char *value)
{
	parts->headers[parts->headers_n++] = (struct ds_s3_pair){name, value};
}

char *ds_s3_full_key(const struct s3_op *op, const char *key)
{
	return ds_asprintf("%s%s", op->s3->url.prefix, key);
}

static void set_range(const struct ds_store_req *req, struct parts *parts)
{
	unsigned long long off = req->off, len = req->len_bytes;

	if (req->from_end)
		snprintf(parts->range, sizeof(parts->range), "bytes=-%llu", len);
	else if (req->len_bytes != DS_STORE_LEN_ALL)
		snprintf(parts->range, sizeof(parts->range), "bytes=%llu-%llu", off, off + len - 1);
	else if (off)
		snprintf(parts->range, sizeof(parts->range), "bytes=%llu-", off);
	if (parts->range[0])
		add_header(parts, "range", parts->range);
}

static int set_list(struct s3_op *op, struct parts *parts)
{
	struct ds_store_req *req = op->req;
	size_t rows_n = req->listing->objects_n - op->rows_before_n;

	parts->prefix = ds_s3_full_key(op, req->key);
	if (!parts->prefix)
		return -ENOMEM;
	add_query(parts, "list-type", "2");
	add_query(parts, "encoding-type", "url");
	if (*parts->prefix)
		add_query(parts, "prefix", parts->prefix);
	if (op->token) {
		add_query(parts, "continuation-token", op->token);
	} else if (req->list_after) {
		parts->after = ds_s3_full_key(op, req->list_after);
		if (!parts->after)
			return -ENOMEM;
		add_query(parts, "start-after", parts->after);
	}
	if (req->list_max_n && req->list_max_n - rows_n < DS_S3_PAGE_MAX_ROWS) {
		snprintf(parts->max_keys, sizeof(parts->max_keys), "%zu", req->list_max_n - rows_n);
		add_query(parts, "max-keys", parts->max_keys);
	}
	return 0;
}

static int set_parts(struct s3_op *op, struct parts *parts)
{
	static const char *const methods[] = {"GET", "PUT", "HEAD", "GET", "DELETE"};
	const struct s3_store *s3 = op->s3;
	struct ds_store_req *req = op->req;

	/* A GET of no bytes has no range, but the object must be there and long enough. */
	op->is_head = req->op == DS_STORE_HEAD || op->wants_size ||
		      (req->op == DS_STORE_GET && req->len_bytes == 0);
	parts->method = op->is_head ? "HEAD" : methods[req->op];
	parts->path = ds_asprintf("%s%s%s", s3->endpoint.base_path,
				  req->op == DS_STORE_LIST ? "" : s3->url.prefix,
				  req->op == DS_STORE_LIST ? "" : req->key);
	if (!parts->path)
		return -ENOMEM;
	op->sign_time = req->op == DS_STORE_PUT && req->signed_at.s
				? req->signed_at
				: ds_store_estimate_now(&op->s3->base);
	ds_s3_format_time(op->sign_time, parts->date);
	add_header(parts, "host", s3->endpoint.host);
	add_header(parts, "x-amz-date", parts->date);
	add_header(parts, "x-amz-content-sha256", op->payload_hash);
	if (s3->config.credentials.session_token)
		add_header(parts, "x-amz-security-token", s3->config.credentials.session_token);
	if (req->op == DS_STORE_GET && !op->is_head)
		set_range(req, parts);
	if (req->op == DS_STORE_PUT)
		add_header(parts, "content-type", "application/octet-stream");
	if (req->op == DS_STORE_PUT && req->if_absent)
		add_header(parts, "if-none-match", "*");
	return req->op == DS_STORE_LIST ? set_list(op, parts) : 0;
}

static int set_url(struct s3_op *op, const struct parts *parts)
{
	struct ds_buf url = DS_BUF_INIT(DS_S3_SIGN_MAX);
	int r = ds_buf_append_str(&url, op->s3->endpoint.origin);

	if (r == 0)
		r = ds_s3_append_path(&url, parts->path);
	if (r == 0 && parts->query_n)
		r = ds_buf_append_byte(&url, '?');
	if (r == 0)
		r = ds_s3_append_query(&url, parts->query, parts->query_n);
	op->url = (char *)ds_buf_steal(&url);
	return r;
}

static int set_headers(struct s3_op *op, const struct parts *parts)
{
	const struct ds_s3_signing signing = {
		.method = parts->method,
		.path = parts->path,
		.query = parts->query,
		.query_n = parts->query_n,
		.headers = parts->headers,
		.headers_n = parts->headers_n,
		.payload_hash = op->payload_hash,
		.region = op->s3->region,
		.service = "s3",
		.credentials = &op->s3->config.credentials,
		.time = op->sign_time,
	};
	struct ds_buf authorization = DS_BUF_INIT(DS_S3_SIGN_MAX);
	size_t n = 0;
	int r = ds_s3_authorization(&signing, &authorization);

	for (; r == 0 && n < parts->headers_n; n++) {
		op->headers[n] =
			ds_asprintf("%s: %s", parts->headers[n].name, parts->headers[n].value);
		if (!op->headers[n])
			r = -ENOMEM;
	}
	if (r == 0) {
		op->headers[n++] = ds_asprintf("Authorization: %s", ds_buf_str(&authorization));
		/* A store that compresses by itself would break lengths. */
		op->headers[n++] = ds_strdup("Accept-Encoding: identity");
		if (!op->headers[n - 1] || !op->headers[n - 2])
			r = -ENOMEM;
	}
	op->transfer.headers_n = n;
	ds_buf_release(&authorization);
	return r;
}

int ds_s3_request_build(struct s3_op *op)
{
	struct ds_store_req *req = op->req;
	struct parts parts = {0};
	int r;

	ds_s3_request_release(op);
	r = set_parts(op, &parts);
	if (r == 0)
		r = set_url(op, &parts);
	if (r == 0)
		r = set_headers(op, &parts);
	op->transfer.method = parts.method;
	op->transfer.url = op->url;
	op->transfer.headers = (const char *const *)op->headers;
	if (req->op == DS_STORE_PUT) {
		op->transfer.body = req->body;
		op->transfer.body_len_bytes = req->body_len_bytes;
	}
	op->transfer.deadline_ns = req->deadline_ns;
	op->transfer.on_response = ds_s3_answer_on_response;
	op->transfer.ctx = op;
	ds_free(parts.path);
	ds_free(parts.prefix);
	ds_free(parts.after);
	return r;
}

void ds_s3_request_release(struct s3_op *op)
{
	ds_http_transfer_release(&op->transfer);
	op->transfer = (struct ds_http_transfer){0};
	ds_free(op->url);
	op->url = NULL;
	for (size_t i = 0; i < DS_ARRAY_SIZE(op->headers); i++) {
		/* A token is among them. */
		ds_free_secret(op->headers[i]);
		op->headers[i] = NULL;
	}
}
