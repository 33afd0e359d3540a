/*
 * What came back for one attempt of an op, and what to do about it. Of the network thread.
 *
 * An S3 error is believed only from an S3 error document, a 404 for a GET only with such a document
 * or without any body (a proxy's page about a missing host proves nothing).
 */
#include <stdio.h>
#include <string.h>

#include "store/s3_op.h"
#include "util/mem.h"
#include "util/str.h"

#define PROTOCOL_TRIES	4u
#define CONFLICT_TRIES	8u
#define EMPTY_PAGES_MAX 100u
/* Beyond this S3 refuses a signature, and a HEAD cannot say that this was why. */
#define SKEW_MAX_S 840

static struct s3_verdict verdict(enum s3_next next, int code)
{
	return (struct s3_verdict){.next = next, .code = code};
}

/* ---- verdicts */

static void say(struct s3_op *op, int code, const char *text)
{
	op->req->diag.detail[0] = '\0';
	ds_diag_set(&op->req->diag, code, op->req->key, "%s", text);
}

/* As `code` for now; after too many tries of the kind, for good. */
static struct s3_verdict try_again(unsigned *tries_n, unsigned tries_max, int code)
{
	return verdict((*tries_n)++ < tries_max ? S3_RETRY : S3_DONE, code);
}

static struct s3_verdict nonsense(struct s3_op *op, const char *text)
{
	say(op, -DS_E_PROTOCOL, text);
	return try_again(&op->protocol_n, PROTOCOL_TRIES, -DS_E_PROTOCOL);
}

static void slow_down(struct s3_op *op, bool is_trouble)
{
	ds_s3_pacer_slow_down(&op->s3->pacer, is_trouble, op->s3->active_n + 1, op->started_ns,
			      ds_mono_ns());
}

/* As `code`, and perhaps there were too many at once. */
static struct s3_verdict trouble(struct s3_op *op, int code)
{
	slow_down(op, true);
	return verdict(S3_RETRY, code);
}

static struct s3_verdict judge_failure(struct s3_op *op)
{
	struct ds_http_transfer *transfer = &op->transfer;
	int code = transfer->result;

	if (code == -DS_E_TIMEOUT && op->last_error)
		return verdict(S3_DONE, op->last_error);
	if (code != -DS_E_MALFORMED && code != -DS_E_LIMIT)
		say(op, code, transfer->error);
	switch (code) {
	case -DS_E_PROTOCOL:
		return try_again(&op->protocol_n, PROTOCOL_TRIES, code);
	case -DS_E_MALFORMED: /* perhaps the answer lied about the size */
		return try_again(&op->protocol_n, 1, code);
	case -DS_E_NETWORK:
		break;
	default:
		return verdict(S3_DONE, code);
	}
	if (transfer->is_final)
		return verdict(S3_DONE, code);
	/* The server had closed a connection that we kept: no fault. */
	if (transfer->is_reused && !transfer->is_stall && transfer->header_bytes == 0 &&
	    op->reused_n++ == 0)
		return verdict(S3_RETRY_NOW, code);
	if (!transfer->is_stall)
		return trouble(op, code);
	op->stall_n++;
	return verdict(S3_RETRY, code);
}

static bool is_one_of(const char *code, const char *const *codes)
{
	for (; *codes; codes++)
		if (strcmp(code, *codes) == 0)
			return true;
	return false;
}

/* Names the right region if the answer does. */
static bool say_region(struct s3_op *op, const struct ds_s3_error *error)
{
	char region[64], text[160];

	if (!ds_http_header(&op->transfer, "x-amz-bucket-region", 0, region, sizeof(region)))
		snprintf(region, sizeof(region), "%s", error->region);
	if (!ds_s3_is_region(region) || strcmp(region, op->s3->region) == 0)
		return false;
	snprintf(text, sizeof(text), "the bucket is in region %.40s: give region=%.40s", region,
		 region);
	say(op, -DS_E_PROTOCOL, text);
	return true;
}

static struct s3_verdict judge_skew(struct s3_op *op)
{
	ds_store_correct_time(&op->s3->base, op->req->store_time);
	if (op->req->op == DS_STORE_PUT && op->req->signed_at.s) {
		say(op, -DS_E_LATE, "the store does not take its signature any more");
		return verdict(S3_DONE, -DS_E_LATE);
	}
	if (op->skew_n++ == 0)
		return verdict(S3_RETRY_NOW, -DS_E_AUTH);
	say(op, -DS_E_AUTH, "the clocks of this machine and the store differ too much");
	return verdict(S3_DONE, -DS_E_AUTH);
}

/* Wrong keys are tried once more if the files have others by now. */
static struct s3_verdict judge_auth(struct s3_op *op, int code)
{
	if (op->auth_n++ == 0 && ds_s3_config_reload(&op->s3->config))
		return verdict(S3_RETRY_NOW, code);
	return verdict(S3_DONE, code);
}

static struct s3_verdict judge_403(struct s3_op *op, const struct ds_s3_error *error)
{
	const struct ds_time date = op->req->store_time;

	if (error->code[0]) {
		say_region(op, error);
		return verdict(S3_DONE, -DS_E_DENIED);
	}
	/* The answer to a HEAD has no reason. */
	if (date.s && op->skew_n == 0 &&
	    (date.s - op->sign_time.s > SKEW_MAX_S || op->sign_time.s - date.s > SKEW_MAX_S))
		return judge_skew(op);
	return judge_auth(op, -DS_E_DENIED);
}

static struct s3_verdict judge_416(struct s3_op *op, const struct ds_s3_error *error)
{
	uint64_t size = error->object_size_bytes, off, len;
	bool has_size = error->has_object_size;
	struct ds_store_req *req = op->req;
	char text[128];
	int r;

	if (req->op != DS_STORE_GET || !ds_s3_has_range(req))
		return nonsense(op, "no range was asked");
	if (ds_http_header(&op->transfer, "Content-Range", 0, text, sizeof(text)) &&
	    ds_s3_parse_unsatisfied(text, &size))
		has_size = true;
	if (!has_size) {
		op->wants_size = true;
		return verdict(S3_RETRY_NOW, -DS_E_MALFORMED);
	}
	r = ds_store_get_range(req, size, &off, &len);
	if (r == 0 && len > 0)
		return nonsense(op, "the range that was refused is there");
	req->object_size_bytes = size;
	return r == -DS_E_MALFORMED ? try_again(&op->protocol_n, 1, r) : verdict(S3_DONE, r);
}

static struct s3_verdict judge_throttled(struct s3_op *op, int code)
{
	slow_down(op, false);
	return verdict(S3_RETRY, code);
}

/* By the code of an S3 error document; S3_DONE with code 0: it says nothing of its own. */
static struct s3_verdict judge_code(struct s3_op *op, const struct ds_s3_error *error)
{
	static const char *const throttled[] = {"SlowDown",
						"Throttling",
						"ThrottlingException",
						"RequestThrottled",
						"RequestLimitExceeded",
						"TooManyRequests",
						"BandwidthLimitExceeded",
						NULL};
	static const char *const server[] = {"InternalError", "ServiceUnavailable", "Busy", NULL};
	static const char *const network[] = {"RequestTimeout", "IncompleteBody", NULL};
	static const char *const protocol[] = {"BadDigest", "InvalidDigest",
					       "XAmzContentSHA256Mismatch", NULL};
	static const char *const auth[] = {"ExpiredToken",	    "InvalidAccessKeyId",
					   "SignatureDoesNotMatch", "InvalidToken",
					   "TokenRefreshRequired",  "InvalidSecurity",
					   "NotSignedUp",	    NULL};
	static const char *const region[] = {"AuthorizationHeaderMalformed", "PermanentRedirect",
					     "IllegalLocationConstraintException", NULL};
	static const char *const conflict[] = {"ConditionalRequestConflict", "OperationAborted",
					       NULL};
	const char *code = error->code;

	if (is_one_of(code, throttled))
		return judge_throttled(op, -DS_E_THROTTLED);
	if (is_one_of(code, server)) {
		slow_down(op, op->transfer.status != 503);
		return verdict(S3_RETRY, -DS_E_SERVER);
	}
	if (is_one_of(code, network))
		return trouble(op, -DS_E_NETWORK);
	if (is_one_of(code, protocol))
		return try_again(&op->protocol_n, PROTOCOL_TRIES, -DS_E_PROTOCOL);
	if (strcmp(code, "RequestTimeTooSkewed") == 0)
		return judge_skew(op);
	if (is_one_of(code, region)) {
		bool is_known = say_region(op, error);

		return verdict(S3_DONE, is_known || strcmp(code, region[0]) != 0 ? -DS_E_PROTOCOL
										 : -DS_E_AUTH);
	}
	if (is_one_of(code, auth))
		return judge_auth(op, -DS_E_AUTH);
	if (strcmp(code, "NoSuchBucket") == 0)
		return verdict(S3_DONE, -DS_E_NO_BUCKET);
	if (strcmp(code, "NotImplemented") == 0)
		return verdict(S3_DONE, -DS_E_UNSUPPORTED);
	if (is_one_of(code, conflict))
		return try_again(&op->conflict_n, CONFLICT_TRIES,
				 op->req->if_absent ? -DS_E_PRESENT : -DS_E_SERVER);
	return verdict(S3_DONE, 0);
}

static struct s3_verdict judge_404(struct s3_op *op, const struct ds_s3_error *error)
{
	switch (op->req->op) {
	case DS_STORE_GET:
	case DS_STORE_HEAD:
		if (op->side.len_bytes && !error->code[0])
			return nonsense(op, "the answer does not come from an S3 server");
		return verdict(S3_DONE, -DS_E_ABSENT);
	case DS_STORE_DELETE:
		if (op->side.len_bytes && !error->code[0])
			return nonsense(op, "the answer does not come from an S3 server");
		return verdict(S3_DONE, 0);
	default:
		return verdict(S3_DONE, -DS_E_NO_BUCKET);
	}
}

static struct s3_verdict judge_status(struct s3_op *op, const struct ds_s3_error *error)
{
	struct ds_store_req *req = op->req;
	int status = op->transfer.status;

	switch (status) {
	case 403:
		return judge_403(op, error);
	case 404:
		return judge_404(op, error);
	case 408:
		return trouble(op, -DS_E_NETWORK);
	case 409:
		return try_again(&op->conflict_n, CONFLICT_TRIES,
				 req->if_absent ? -DS_E_PRESENT : -DS_E_SERVER);
	case 412:
		return req->op == DS_STORE_PUT && req->if_absent
			       ? verdict(S3_DONE, -DS_E_PRESENT)
			       : nonsense(op, "no condition was asked");
	case 416:
		return judge_416(op, error);
	case 429:
		return judge_throttled(op, -DS_E_THROTTLED);
	case 501:
		return verdict(S3_DONE, -DS_E_UNSUPPORTED);
	case 503:
		return judge_throttled(op, error->code[0] || op->is_head ? -DS_E_THROTTLED
									 : -DS_E_SERVER);
	default:
		break;
	}
	if (status >= 500)
		return trouble(op, -DS_E_SERVER);
	if (status >= 300 && status < 400 && status != 304) {
		if (!say_region(op, error))
			say(op, -DS_E_PROTOCOL,
			    "the store sends us elsewhere: is the endpoint right?");
		return verdict(S3_DONE, -DS_E_PROTOCOL);
	}
	if (status >= 400) {
		say_region(op, error);
		/* A HEAD's 400 may be an expired token. */
		return op->is_head ? judge_auth(op, -DS_E_PROTOCOL)
				   : verdict(S3_DONE, -DS_E_PROTOCOL);
	}
	return nonsense(op, "the answer's status makes no sense here");
}

/* Access keys have no place in a log, wherever they come from. */
static bool holds_a_secret(const struct ds_s3_credentials *credentials, const char *text)
{
	return strstr(text, credentials->access_key) || strstr(text, credentials->secret_key) ||
	       (credentials->session_token && strstr(text, credentials->session_token));
}

/* An answer that is not a success. */
static struct s3_verdict judge_error(struct s3_op *op)
{
	struct ds_diag *diag = &op->req->diag;
	struct ds_s3_error error;
	struct s3_verdict v;
	char text[64];

	if (ds_s3_parse_error(op->side.data, op->side.len_bytes, &error) == -ENOMEM)
		return verdict(S3_DONE, -ENOMEM);
	if (holds_a_secret(&op->s3->config.credentials, error.message))
		error.message[0] = '\0';
	snprintf(diag->s3_code, sizeof(diag->s3_code), "%s", error.code);
	if (error.request_id[0])
		snprintf(diag->request_id, sizeof(diag->request_id), "%s", error.request_id);
	say(op, 0, error.message);
	v = judge_code(op, &error);
	if (v.code == 0 && v.next == S3_DONE)
		v = judge_status(op, &error);
	if (v.next == S3_RETRY &&
	    (ds_http_header(&op->transfer, "Retry-After", 0, text, sizeof(text)) ||
	     ds_http_header(&op->transfer, "x-amz-retry-after", 0, text, sizeof(text)))) {
		char date[64];
		bool has_date = ds_http_header(&op->transfer, "Date", 0, date, sizeof(date));

		v.delay_ns = ds_s3_retry_after_ns(text, has_date ? date : NULL);
	}
	return v;
}

/* ---- successes */

static bool is_blank(const struct ds_buf *buf)
{
	return strspn(ds_buf_str(buf), " \t\r\n") == buf->len_bytes;
}

/* A 200 whose body is an error, or a page of something in between (a hotel's). */
static struct s3_verdict judge_body(struct s3_op *op)
{
	struct ds_s3_error error;
	struct s3_verdict v;
	int r;

	if (is_blank(&op->side))
		return verdict(S3_DONE, 0);
	r = ds_s3_parse_error(op->side.data, op->side.len_bytes, &error);
	if (r == -ENOMEM)
		return verdict(S3_DONE, r);
	if (r < 0) {
		say(op, -DS_E_SERVER, "the answer does not come from an S3 server");
		return verdict(S3_RETRY, -DS_E_SERVER);
	}
	v = judge_error(op);
	/* It says 200 and an error: the error is temporary unless it is known as something else. */
	if ((v.next == S3_DONE && v.code == 0) || v.code == -DS_E_PROTOCOL)
		v = verdict(S3_RETRY, -DS_E_SERVER);
	return v;
}

static struct s3_verdict judge_head(struct s3_op *op)
{
	struct ds_store_req *req = op->req;
	uint64_t off, len, size = 0;

	if (ds_s3_content_length(&op->transfer, &size) < 0)
		return nonsense(op, op->transfer.error);
	req->object_size_bytes = size;
	ds_s3_note_modified(op);
	if (req->op == DS_STORE_HEAD)
		return verdict(S3_DONE, 0);
	/* A GET of no bytes, or one that was told 416. */
	if (ds_store_get_range(req, size, &off, &len) < 0)
		return verdict(S3_DONE, -DS_E_MALFORMED);
	if (len == 0)
		return verdict(S3_DONE, 0);
	op->wants_size = false;
	return nonsense(op, "the range that was refused is there");
}

/* Rows must be below the prefix and in strict order: what is appended is what was asked. */
static int take_rows(struct s3_op *op, const struct ds_s3_page *page)
{
	struct ds_store_req *req = op->req;
	struct ds_store_listing *listing = req->listing;
	const char *prefix = op->s3->url.prefix;
	size_t prefix_len = strlen(prefix);

	for (size_t i = 0; i < page->rows.objects_n; i++) {
		const struct ds_store_object *row = &page->rows.objects[i];
		const char *key = row->key + prefix_len;
		const char *last = listing->objects_n > op->rows_before_n
					   ? listing->objects[listing->objects_n - 1].key
					   : req->list_after;
		int r;

		if (!ds_starts_with(row->key, prefix) || !ds_starts_with(key, req->key))
			return -DS_E_PROTOCOL;
		if (req->list_max_n && listing->objects_n - op->rows_before_n == req->list_max_n)
			break;
		if (!*key) /* somebody's "directory" of our prefix */
			continue;
		if (last && strcmp(last, key) >= 0)
			return -DS_E_PROTOCOL;
		r = ds_store_listing_append(listing, key, strlen(key), row->size_bytes,
					    row->modified);
		if (r < 0)
			return r;
	}
	return 0;
}

static struct s3_verdict judge_page(struct s3_op *op)
{
	struct ds_store_req *req = op->req;
	size_t rows_n = req->listing->objects_n;
	struct ds_s3_page page;
	struct ds_s3_error error;
	bool is_over;
	int r;

	r = ds_s3_parse_error(op->side.data, op->side.len_bytes, &error);
	if (r == 0)
		return judge_body(op);
	if (r != -ENOMEM)
		r = ds_s3_parse_page(op->side.data, op->side.len_bytes, &page);
	if (r == -DS_E_PROTOCOL)
		return nonsense(op, "the answer is no list of keys");
	if (r < 0)
		return verdict(S3_DONE, r);
	r = take_rows(op, &page);
	is_over =
		!page.is_truncated ||
		(req->list_max_n && req->listing->objects_n - op->rows_before_n >= req->list_max_n);
	if (r == 0 && !is_over) {
		op->empty_pages_n = req->listing->objects_n > rows_n ? 0 : op->empty_pages_n + 1;
		if ((op->token && strcmp(op->token, page.token) == 0) ||
		    op->empty_pages_n > EMPTY_PAGES_MAX)
			r = -DS_E_PROTOCOL;
	}
	if (r == 0) {
		ds_free(op->token);
		op->token = page.token;
		page.token = NULL;
	}
	ds_s3_page_release(&page);
	if (r == -DS_E_PROTOCOL) {
		ds_store_listing_truncate(req->listing, rows_n);
		return nonsense(op, "the list of keys is not in order or does not go on");
	}
	return r < 0 ? verdict(S3_DONE, r) : verdict(is_over ? S3_DONE : S3_NEXT_PAGE, 0);
}

static struct s3_verdict judge_answer(struct s3_op *op)
{
	struct ds_http_transfer *transfer = &op->transfer;
	int status = transfer->status;

	if (op->is_head)
		return status == 200 ? judge_head(op) : judge_error(op);
	switch (op->req->op) {
	case DS_STORE_GET:
		if (status != 200 && status != 206)
			break;
		if (transfer->received_bytes != op->body_bytes)
			return nonsense(op, "the answer is shorter than it said");
		return verdict(S3_DONE, 0);
	case DS_STORE_LIST:
		if (status == 200)
			return judge_page(op);
		break;
	default:
		if (status == 200 || status == 201 || status == 204)
			return judge_body(op);
	}
	return judge_error(op);
}

struct s3_verdict ds_s3_answer_judge(struct s3_op *op)
{
	struct ds_http_transfer *transfer = &op->transfer;
	struct ds_diag *diag = &op->req->diag;
	struct s3_verdict v;
	char text[96];

	diag->http_status = transfer->status;
	diag->attempts = op->attempts_n;
	diag->s3_code[0] = diag->request_id[0] = '\0';
	if (ds_http_header(transfer, "x-amz-request-id", 0, text, sizeof(text)))
		ds_escape(text, strlen(text), diag->request_id, sizeof(diag->request_id));
	v = transfer->result < 0 ? judge_failure(op) : judge_answer(op);
	if (v.code < 0 && v.next != S3_RETRY_NOW) {
		op->last_error = v.code;
		op->req->attempt_error = v.code;
	}
	/* A refusal is an answer as well. */
	if (transfer->result == 0 && v.next != S3_RETRY)
		ds_s3_pacer_succeeded(&op->s3->pacer, ds_mono_ns());
	return v;
}
