/*
 * The body of an answer, before its first byte: how long it may be and where it goes. Of the network
 * thread. Nothing is stored whose length and range were not checked first.
 */
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "store/s3_op.h"
#include "util/mem.h"
#include "util/str.h"

#define SIDE_ERROR_MAX_BYTES ((uint64_t)65536)
#define SIDE_PAGE_MAX_BYTES  ((uint64_t)8 << 20) /* 1,000 keys of 3,072 encoded bytes, twice over */

static int refuse(struct ds_http_transfer *transfer, const char *why)
{
	snprintf(transfer->error, sizeof(transfer->error), "%s", why);
	return -DS_E_PROTOCOL;
}

/* One value, or several equal ones, in digits alone. */
int ds_s3_content_length(struct ds_http_transfer *transfer, uint64_t *ret_len)
{
	uint64_t len = 0, other;
	char text[64];

	for (unsigned i = 0; ds_http_header(transfer, "Content-Length", i, text, sizeof(text));
	     i++) {
		if (ds_parse_u64(text, INT64_MAX, &other) < 0)
			return refuse(transfer, "the answer's Content-Length is no length");
		if (i > 0 && other != len)
			return refuse(transfer, "the answer has two different lengths");
		len = other;
		*ret_len = len;
		if (i > 8)
			return refuse(transfer, "the answer has many lengths");
	}
	return ds_http_header(transfer, "Content-Length", 0, text, sizeof(text))
		       ? 0
		       : refuse(transfer, "the answer does not say how long it is");
}

static const char *parse_number(const char *at, uint64_t *ret_value)
{
	size_t len = strspn(at, "0123456789");
	char digits[24];

	if (len == 0 || len >= sizeof(digits))
		return NULL;
	memcpy(digits, at, len);
	digits[len] = '\0';
	return ds_parse_u64(digits, INT64_MAX, ret_value) < 0 ? NULL : at + len;
}

struct content_range {
	uint64_t first, last, size_bytes;
};

/* "bytes FIRST-LAST/SIZE" (RFC 9110, 14.4), nothing else. */
static bool parse_content_range(const char *text, struct content_range *ret_range)
{
	const char *at = text;

	if (strncasecmp(at, "bytes ", 6) != 0)
		return false;
	at = parse_number(at + 6, &ret_range->first);
	if (!at || *at != '-')
		return false;
	at = parse_number(at + 1, &ret_range->last);
	if (!at || *at != '/')
		return false;
	at = parse_number(at + 1, &ret_range->size_bytes);
	return at && !*at && ret_range->first <= ret_range->last &&
	       ret_range->last < ret_range->size_bytes;
}

/* Size of the object from the "bytes * /SIZE" of a 416. */
bool ds_s3_parse_unsatisfied(const char *text, uint64_t *ret_size_bytes)
{
	const char *at;

	if (strncasecmp(text, "bytes */", 8) != 0)
		return false;
	at = parse_number(text + 8, ret_size_bytes);
	return at && !*at;
}

static void note_dates(struct s3_op *op)
{
	struct ds_time date;
	char text[64];

	if (!ds_http_header(&op->transfer, "Date", 0, text, sizeof(text)) ||
	    ds_time_parse_http(text, &date) < 0)
		return;
	op->req->store_time = date;
	ds_store_learn_time(&op->s3->base, date);
	op->req->is_time_noted = true;
}

void ds_s3_note_modified(struct s3_op *op)
{
	char text[64];

	if (ds_http_header(&op->transfer, "Last-Modified", 0, text, sizeof(text)))
		(void)ds_time_parse_http(text, &op->req->modified);
}

/* ---- the body of a GET, before its first byte */

bool ds_s3_has_range(const struct ds_store_req *req)
{
	return req->from_end || req->off || req->len_bytes != DS_STORE_LEN_ALL;
}

static int check_encoding(struct ds_http_transfer *transfer)
{
	char text[64];

	if (ds_http_header(transfer, "Content-Encoding", 0, text, sizeof(text)) && *text &&
	    strcasecmp(text, "identity") != 0)
		return refuse(transfer, "the answer is encoded (Content-Encoding)");
	if (ds_http_header(transfer, "Transfer-Encoding", 0, text, sizeof(text)))
		return refuse(transfer, "the answer does not say how long it is");
	if (ds_http_header(transfer, "Content-Type", 0, text, sizeof(text)) &&
	    strncasecmp(text, "multipart/", 10) == 0)
		return refuse(transfer, "the answer has several parts where one was asked");
	return 0;
}

static int check_partial(struct s3_op *op, uint64_t len, struct content_range *ret_range)
{
	struct ds_http_transfer *transfer = &op->transfer;
	struct ds_store_req *req = op->req;
	uint64_t want_off, want_len;
	char text[128];
	int r;

	if (!ds_s3_has_range(req))
		return refuse(transfer, "a part came where the whole object was asked");
	if (!ds_http_header(transfer, "Content-Range", 0, text, sizeof(text)) ||
	    ds_http_header(transfer, "Content-Range", 1, text, 1) ||
	    !parse_content_range(text, ret_range))
		return refuse(transfer, "a part came without saying clearly which (Content-Range)");
	r = ds_store_get_range(req, ret_range->size_bytes, &want_off, &want_len);
	if (r < 0)
		return r;
	if (ret_range->first != want_off || ret_range->last - ret_range->first + 1 != want_len)
		return refuse(transfer, "another range came than was asked");
	if (len != want_len)
		return refuse(transfer, "the answer's length is not that of its range");
	return 0;
}

/* A server that ignores ranges: its whole answer counts only where it is what was asked. */
static int check_whole(struct s3_op *op, uint64_t len)
{
	struct ds_store_req *req = op->req;
	uint64_t want_off, want_len;
	int r;

	if (req->from_end
		    ? len > req->len_bytes
		    : req->off || (req->len_bytes != DS_STORE_LEN_ALL && req->len_bytes != len))
		return refuse(&op->transfer, "the whole object came where a part was asked");
	r = ds_store_get_range(req, len, &want_off, &want_len);
	return r;
}

static int expect_body(struct s3_op *op)
{
	struct ds_http_transfer *transfer = &op->transfer;
	struct ds_store_req *req = op->req;
	struct content_range range = {0};
	uint64_t len = 0;
	int r = check_encoding(transfer);

	if (r == 0)
		r = ds_s3_content_length(transfer, &len);
	if (r == 0)
		r = transfer->status == 206 ? check_partial(op, len, &range) : check_whole(op, len);
	if (r == 0)
		r = ds_buf_reserve(req->into, len);
	if (r < 0)
		return r;
	req->object_size_bytes = transfer->status == 206 ? range.size_bytes : len;
	ds_s3_note_modified(op);
	op->body_bytes = len;
	transfer->into = req->into;
	transfer->into_max_bytes = len;
	return 0;
}

int ds_s3_answer_on_response(struct ds_http_transfer *transfer)
{
	struct s3_op *op = transfer->ctx;
	bool is_page = op->req->op == DS_STORE_LIST && transfer->status == 200;

	note_dates(op);
	if (op->req->op == DS_STORE_GET && !op->is_head &&
	    (transfer->status == 200 || transfer->status == 206))
		return expect_body(op);
	ds_buf_clear(&op->side);
	transfer->into = &op->side;
	transfer->into_max_bytes = is_page ? SIDE_PAGE_MAX_BYTES : SIDE_ERROR_MAX_BYTES;
	transfer->cut_body = !is_page;
	return 0;
}
