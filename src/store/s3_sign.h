/*
 * AWS Signature Version 4 for S3, with the time as an argument.
 *
 * After "Authenticating Requests (AWS Signature Version 4)" of the S3 API reference. S3's own rules:
 * a path is percent-encoded once, byte by byte, and never normalised ("//" and "." stay).
 * Pure functions; any thread. -ENOMEM, -DS_E_LIMIT (a request of more than 64 KiB).
 */
#ifndef DS_STORE_S3_SIGN_H
#define DS_STORE_S3_SIGN_H

#include "util/buf.h"
#include "util/clock.h"

#define DS_S3_HASH_TEXT 65 /* SHA-256 in hex, with the NUL */
#define DS_S3_TIME_TEXT 17 /* "20150830T123600Z", with the NUL */
#define DS_S3_SIGN_MAX	((size_t)65536)

struct ds_s3_credentials {
	char *access_key;
	char *secret_key;
	char *session_token; /* NULL: none */
};

struct ds_s3_pair {
	const char *name;
	const char *value;
};

struct ds_s3_signing {
	const char *method;
	const char *path;		/* as it is, not encoded; begins with '/' */
	const struct ds_s3_pair *query; /* as they are; in any order */
	size_t query_n;
	const struct ds_s3_pair *headers; /* all that are to be signed, in any order and case */
	size_t headers_n;
	const char *payload_hash; /* hex, as in x-amz-content-sha256 */
	const char *region;
	const char *service; /* "s3" */
	const struct ds_s3_credentials *credentials;
	struct ds_time time; /* as in x-amz-date */
};

/* SHA-256 of some bytes in hex. */
int ds_s3_hash(const void *data, size_t len_bytes, char *ret_text);
/* As x-amz-date wants it. Years 1970 to 9999. Returns buf. */
const char *ds_s3_format_time(struct ds_time time, char *buf);

/* What goes on the wire, exactly as it is signed: the encoded path, and the query sorted by encoded
 * names and values ("" if there is none; without '?'). Appended. */
int ds_s3_append_path(struct ds_buf *into, const char *path);
int ds_s3_append_query(struct ds_buf *into, const struct ds_s3_pair *query, size_t query_n);

/* The steps of the signature; each appends its text. The last gives the value of the header
 * Authorization. The first two are public for tests. */
int ds_s3_canonical_request(const struct ds_s3_signing *signing, struct ds_buf *into);
int ds_s3_string_to_sign(const struct ds_s3_signing *signing, struct ds_buf *into);
int ds_s3_authorization(const struct ds_s3_signing *signing, struct ds_buf *into);

#endif
