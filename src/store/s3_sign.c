#include "store/s3_sign.h"

#include <assert.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "util/error.h"
#include "util/mem.h"
#include "util/str.h"

#define HASH_BYTES 32

int ds_s3_hash(const void *data, size_t len_bytes, char *ret_text)
{
	unsigned char hash[HASH_BYTES];

	if (!EVP_Digest(data ? data : "", len_bytes, hash, NULL, EVP_sha256(), NULL))
		return -ENOMEM;
	ds_hex_encode(hash, sizeof(hash), ret_text);
	return 0;
}

const char *ds_s3_format_time(struct ds_time time, char *buf)
{
	time_t s = (time_t)DS_MIN(DS_MAX(time.s, (int64_t)0), (int64_t)253402300799);
	struct tm tm;

	gmtime_r(&s, &tm);
	snprintf(buf, DS_S3_TIME_TEXT, "%04u%02u%02uT%02u%02u%02uZ",
		 (unsigned)(tm.tm_year + 1900) % 10000u, (unsigned)(tm.tm_mon + 1) % 100u,
		 (unsigned)tm.tm_mday % 100u, (unsigned)tm.tm_hour % 100u,
		 (unsigned)tm.tm_min % 100u, (unsigned)tm.tm_sec % 100u);
	return buf;
}

static int append_encoded(struct ds_buf *into, const char *text, bool keep_slash)
{
	static const char hex[] = "0123456789ABCDEF";
	int r = 0;

	for (; *text && r == 0; text++) {
		unsigned char c = (unsigned char)*text;
		char escape[3] = {'%', hex[c >> 4], hex[c & 15]};

		if ((c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
		    strchr("-._~", c) || (keep_slash && c == '/'))
			r = ds_buf_append_byte(into, c);
		else
			r = ds_buf_append(into, escape, sizeof(escape));
	}
	return r;
}

int ds_s3_append_path(struct ds_buf *into, const char *path)
{
	return append_encoded(into, path, true);
}

static int compare_texts(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/*
 * The order is by name, then by value, both encoded. Whole "name=value" texts cannot be compared,
 * since '=' sorts behind digits and other bytes of names: until they are sorted, a separator below
 * all of them stands in for it.
 */
int ds_s3_append_query(struct ds_buf *into, const struct ds_s3_pair *query, size_t query_n)
{
	char **texts;
	int r = 0;

	if (query_n == 0)
		return 0;
	texts = ds_calloc(query_n, sizeof(*texts));
	if (!texts)
		return -ENOMEM;
	for (size_t i = 0; i < query_n && r == 0; i++) {
		struct ds_buf text = DS_BUF_INIT(DS_S3_SIGN_MAX);

		r = append_encoded(&text, query[i].name, false);
		if (r == 0)
			r = ds_buf_append_byte(&text, '\001');
		if (r == 0)
			r = append_encoded(&text, query[i].value, false);
		texts[i] = (char *)ds_buf_steal(&text);
	}
	if (r == 0)
		qsort(texts, query_n, sizeof(*texts), compare_texts);
	for (size_t i = 0; i < query_n && r == 0; i++) {
		char *separator = strchr(texts[i], '\001');

		*separator = '=';
		r = ds_buf_appendf(into, "%s%s", i ? "&" : "", texts[i]);
	}
	for (size_t i = 0; i < query_n; i++)
		ds_free(texts[i]);
	ds_free(texts);
	return r;
}

/* Trimmed, with runs of blanks as one space. */
static int append_header_value(struct ds_buf *into, const char *value)
{
	bool is_first = true;
	int r = 0;

	while (r == 0) {
		size_t len;

		value += strspn(value, " \t\r\n");
		len = strcspn(value, " \t\r\n");
		if (len == 0)
			return 0;
		if (!is_first)
			r = ds_buf_append_byte(into, ' ');
		if (r == 0)
			r = ds_buf_append(into, value, len);
		value += len;
		is_first = false;
	}
	return r;
}

static int append_lower(struct ds_buf *into, const char *name)
{
	int r = 0;

	for (; *name && r == 0; name++)
		r = ds_buf_append_byte(into, (uint8_t)(*name >= 'A' && *name <= 'Z' ? *name | 0x20
										    : *name));
	return r;
}

/*
 * Goes through the headers by name without sorting them: each round takes the smallest name that is
 * greater than the last one. There are few. NULL at the end.
 */
static const char *next_header(const struct ds_s3_signing *signing, const char *last)
{
	const char *next = NULL;

	for (size_t i = 0; i < signing->headers_n; i++) {
		const char *name = signing->headers[i].name;

		if ((!last || strcasecmp(name, last) > 0) && (!next || strcasecmp(name, next) < 0))
			next = name;
	}
	return next;
}

static int append_signed_names(const struct ds_s3_signing *signing, struct ds_buf *into)
{
	const char *name = NULL;
	int r = 0;

	for (bool first = true; r == 0 && (name = next_header(signing, name)); first = false) {
		if (!first)
			r = ds_buf_append_byte(into, ';');
		if (r == 0)
			r = append_lower(into, name);
	}
	return r;
}

/* "name:value\n" of one name; several values are joined with commas, in their order. */
static int append_header(const struct ds_s3_signing *signing, const char *name, struct ds_buf *into)
{
	const char *separator = ":";
	int r = append_lower(into, name);

	for (size_t i = 0; i < signing->headers_n && r == 0; i++) {
		if (strcasecmp(signing->headers[i].name, name) != 0)
			continue;
		r = ds_buf_append_str(into, separator);
		if (r == 0)
			r = append_header_value(into, signing->headers[i].value);
		separator = ",";
	}
	return r < 0 ? r : ds_buf_append_byte(into, '\n');
}

int ds_s3_canonical_request(const struct ds_s3_signing *signing, struct ds_buf *into)
{
	const char *name = NULL;
	int r = ds_buf_appendf(into, "%s\n", signing->method);

	if (r == 0)
		r = ds_s3_append_path(into, signing->path);
	if (r == 0)
		r = ds_buf_append_byte(into, '\n');
	if (r == 0)
		r = ds_s3_append_query(into, signing->query, signing->query_n);
	if (r == 0)
		r = ds_buf_append_byte(into, '\n');
	while (r == 0 && (name = next_header(signing, name)))
		r = append_header(signing, name, into);
	if (r == 0)
		r = ds_buf_append_byte(into, '\n');
	if (r == 0)
		r = append_signed_names(signing, into);
	if (r == 0)
		r = ds_buf_appendf(into, "\n%s", signing->payload_hash);
	return r;
}

int ds_s3_string_to_sign(const struct ds_s3_signing *signing, struct ds_buf *into)
{
	struct ds_buf request = DS_BUF_INIT(DS_S3_SIGN_MAX);
	char time[DS_S3_TIME_TEXT], hash[DS_S3_HASH_TEXT];
	int r = ds_s3_canonical_request(signing, &request);

	if (r == 0)
		r = ds_s3_hash(request.data, request.len_bytes, hash);
	if (r == 0)
		r = ds_buf_appendf(into, "AWS4-HMAC-SHA256\n%s\n%.8s/%s/%s/aws4_request\n%s",
				   ds_s3_format_time(signing->time, time), time, signing->region,
				   signing->service, hash);
	ds_buf_release(&request);
	return r;
}

static int hmac(const void *key, size_t key_len, const char *text, unsigned char *ret_mac)
{
	unsigned len = 0;

	if (!HMAC(EVP_sha256(), key, (int)key_len, (const unsigned char *)text, strlen(text),
		  ret_mac, &len))
		return -ENOMEM;
	assert(len == HASH_BYTES);
	return 0;
}

/* kSigning = HMAC(HMAC(HMAC(HMAC("AWS4" + secret, date), region), service), "aws4_request") */
static int sign(const struct ds_s3_signing *signing, const char *text, char *ret_signature)
{
	char *secret = ds_asprintf("AWS4%s", signing->credentials->secret_key);
	char time[DS_S3_TIME_TEXT];
	unsigned char key[HASH_BYTES];
	int r;

	if (!secret)
		return -ENOMEM;
	ds_s3_format_time(signing->time, time);
	time[8] = '\0';
	r = hmac(secret, strlen(secret), time, key);
	if (r == 0)
		r = hmac(key, sizeof(key), signing->region, key);
	if (r == 0)
		r = hmac(key, sizeof(key), signing->service, key);
	if (r == 0)
		r = hmac(key, sizeof(key), "aws4_request", key);
	if (r == 0)
		r = hmac(key, sizeof(key), text, key);
	if (r == 0)
		ds_hex_encode(key, sizeof(key), ret_signature);
	explicit_bzero(key, sizeof(key));
	ds_free_secret(secret);
	return r;
}

int ds_s3_authorization(const struct ds_s3_signing *signing, struct ds_buf *into)
{
	struct ds_buf text = DS_BUF_INIT(DS_S3_SIGN_MAX);
	char time[DS_S3_TIME_TEXT], signature[DS_S3_HASH_TEXT];
	int r = ds_s3_string_to_sign(signing, &text);

	if (r == 0)
		r = sign(signing, ds_buf_str(&text), signature);
	if (r == 0)
		r = ds_buf_appendf(
			into,
			"AWS4-HMAC-SHA256 Credential=%s/%.8s/%s/%s/aws4_request, SignedHeaders=",
			signing->credentials->access_key, ds_s3_format_time(signing->time, time),
			signing->region, signing->service);
	if (r == 0)
		r = append_signed_names(signing, into);
	if (r == 0)
		r = ds_buf_appendf(into, ", Signature=%s", signature);
	ds_buf_release(&text);
	return r;
}
