/*
 * AWS's published SigV4 vectors: SIGV4_VECTORS names their directory (scripts/fetch_vectors.sh puts
 * them there). A plain program: exit status 77 and a reason where they are not to be had.
 *
 * The vectors are for services in general, which normalise a path before it is encoded and signed;
 * S3 does not. That step is therefore done here, where a vector asks for it.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <fcntl.h>
#include <unistd.h>

#include "store/s3_sign.h"
#include "util/file.h"
#include "util/mem.h"

#define PAIRS_MAX 64

static char *read_text(const char *dir, const char *name)
{
	struct ds_buf buf = DS_BUF_INIT(1 << 20);
	_ds_cleanup_free_ char *path = ds_asprintf("%s/%s", dir, name);

	if (!path || ds_file_read_at(AT_FDCWD, path, &buf) < 0) {
		fprintf(stderr, "%s/%s cannot be read\n", dir, name);
		exit(1);
	}
	(void)ds_buf_reserve(&buf, 1);
	return (char *)ds_buf_steal(&buf);
}

/* The text of "name": "text" in a flat JSON object; NULL: there is none. */
static char *json_text(const char *json, const char *name)
{
	char pattern[64];
	const char *at;

	snprintf(pattern, sizeof(pattern), "\"%s\": \"", name);
	at = strstr(json, pattern);
	if (!at)
		return NULL;
	at += strlen(pattern);
	return ds_strndup(at, strcspn(at, "\""));
}

static void decode(char *text)
{
	char *to = text;

	for (; *text; text++) {
		unsigned byte;

		if (*text == '%' && sscanf(text + 1, "%2x", &byte) == 1) {
			*to++ = (char)byte;
			text += 2;
		} else {
			*to++ = *text;
		}
	}
	*to = '\0';
}

/* RFC 3986, 5.2.4, and runs of slashes as one. In place. */
static void normalise(char *path)
{
	char *copy = ds_strdup(path), *save = NULL, *to = path;
	size_t len = strlen(copy);
	int is_dir =
		len && (copy[len - 1] == '/' || (len > 1 && strcmp(copy + len - 2, "/.") == 0) ||
			(len > 2 && strcmp(copy + len - 3, "/..") == 0));

	for (char *part = strtok_r(copy, "/", &save); part; part = strtok_r(NULL, "/", &save)) {
		if (strcmp(part, ".") == 0)
			continue;
		if (strcmp(part, "..") == 0) {
			while (to > path && *--to != '/')
				;
			continue;
		}
		*to++ = '/';
		to = stpcpy(to, part);
	}
	if (to == path || is_dir)
		*to++ = '/';
	*to = '\0';
	ds_free(copy);
}

struct request {
	char *text, *method, *path, *body;
	struct ds_s3_pair query[PAIRS_MAX], headers[PAIRS_MAX];
	size_t query_n, headers_n;
};

static void parse_query(struct request *request, char *query)
{
	char *save = NULL;

	for (char *pair = strtok_r(query, "&", &save); pair; pair = strtok_r(NULL, "&", &save)) {
		char *value = strchr(pair, '=');

		if (value)
			*value++ = '\0';
		else
			value = strchr(pair, '\0');
		decode(pair);
		decode(value);
		request->query[request->query_n++] = (struct ds_s3_pair){pair, value};
	}
}

static void parse_request(struct request *request)
{
	char *line = request->text, *next = strchr(line, '\n'), *query, *version;

	*next++ = '\0';
	request->method = line;
	request->path = strchr(line, ' ');
	*request->path++ = '\0';
	version = strstr(request->path, " HTTP/");
	*version = '\0';
	query = strchr(request->path, '?');
	if (query) {
		*query++ = '\0';
		parse_query(request, query);
	}
	decode(request->path);
	while (next && *next && *next != '\n') {
		char *value;

		line = next;
		next = strchr(line, '\n');
		/* A line that begins with a blank goes on with the value before. */
		while (next && (next[1] == ' ' || next[1] == '\t'))
			next = strchr(next + 1, '\n');
		if (next)
			*next++ = '\0';
		value = strchr(line, ':');
		*value++ = '\0';
		request->headers[request->headers_n++] = (struct ds_s3_pair){line, value};
	}
	request->body = next && *next == '\n' ? next + 1 : strchr(request->text, '\0');
}

static int compare(const char *name, const char *what, const char *got, const char *expected)
{
	if (strcmp(got, expected) == 0)
		return 0;
	fprintf(stderr, "%s: the %s is\n%s\nand not\n%s\n", name, what, got, expected);
	return 1;
}

static int run(const char *root, const char *name)
{
	struct ds_buf canonical = DS_BUF_INIT(DS_S3_SIGN_MAX), text = DS_BUF_INIT(DS_S3_SIGN_MAX);
	struct ds_buf authorization = DS_BUF_INIT(DS_S3_SIGN_MAX);
	struct ds_s3_credentials credentials = {0};
	struct ds_s3_signing signing = {.credentials = &credentials};
	struct request request = {0};
	char dir[1024], date[DS_S3_TIME_TEXT], hash[DS_S3_HASH_TEXT];
	char *context, *expected, *timestamp, *region, *service;
	int failed_n = 0;

	snprintf(dir, sizeof(dir), "%s/%s", root, name);
	context = read_text(dir, "context.json");
	request.text = read_text(dir, "request.txt");
	parse_request(&request);
	credentials.access_key = json_text(context, "access_key_id");
	credentials.secret_key = json_text(context, "secret_access_key");
	credentials.session_token = json_text(context, "token");
	timestamp = json_text(context, "timestamp");
	region = json_text(context, "region");
	service = json_text(context, "service");
	signing.region = region;
	signing.service = service;
	if (ds_time_parse(timestamp, &signing.time, NULL) < 0)
		failed_n++;
	if (strstr(context, "\"normalize\": true"))
		normalise(request.path);
	request.headers[request.headers_n++] =
		(struct ds_s3_pair){"X-Amz-Date", ds_s3_format_time(signing.time, date)};
	if (credentials.session_token && !strstr(context, "\"omit_session_token\": true"))
		request.headers[request.headers_n++] =
			(struct ds_s3_pair){"X-Amz-Security-Token", credentials.session_token};
	failed_n += ds_s3_hash(request.body, strlen(request.body), hash) < 0;
	/* Where the body is to be signed, its hash is a header as well. */
	if (strstr(context, "\"sign_body\": true"))
		request.headers[request.headers_n++] =
			(struct ds_s3_pair){"x-amz-content-sha256", hash};
	signing.method = request.method;
	signing.path = request.path;
	signing.query = request.query;
	signing.query_n = request.query_n;
	signing.headers = request.headers;
	signing.headers_n = request.headers_n;
	signing.payload_hash = hash;
	if (ds_s3_canonical_request(&signing, &canonical) < 0 ||
	    ds_s3_string_to_sign(&signing, &text) < 0 ||
	    ds_s3_authorization(&signing, &authorization) < 0)
		failed_n++;

	expected = read_text(dir, "header-canonical-request.txt");
	failed_n += compare(name, "canonical request", ds_buf_str(&canonical), expected);
	ds_free(expected);
	expected = read_text(dir, "header-string-to-sign.txt");
	failed_n += compare(name, "string to sign", ds_buf_str(&text), expected);
	ds_free(expected);
	expected = read_text(dir, "header-signature.txt");
	failed_n += compare(name, "signature",
			    strstr(ds_buf_str(&authorization), "Signature=") + strlen("Signature="),
			    expected);
	ds_free(expected);

	ds_free(context);
	ds_free(request.text);
	ds_free(credentials.access_key);
	ds_free(credentials.secret_key);
	ds_free(credentials.session_token);
	ds_free(timestamp);
	ds_free(region);
	ds_free(service);
	ds_buf_release(&canonical);
	ds_buf_release(&text);
	ds_buf_release(&authorization);
	return failed_n > 0;
}

int main(void)
{
	const char *root = getenv("SIGV4_VECTORS");
	DIR *dir = root ? opendir(root) : NULL;
	unsigned cases_n = 0, failed_n = 0;
	struct dirent *entry;

	if (!dir) {
		fprintf(stderr,
			"skipped: no vectors in SIGV4_VECTORS; run scripts/fetch_vectors.sh\n");
		return 77;
	}
	while ((entry = readdir(dir))) {
		char path[1024];

		/* Two of them lack their results. */
		snprintf(path, sizeof(path), "%s/%s/header-signature.txt", root, entry->d_name);
		if (entry->d_name[0] == '.' || access(path, R_OK) < 0)
			continue;
		cases_n++;
		failed_n += (unsigned)run(root, entry->d_name);
	}
	closedir(dir);
	printf("%u vectors, %u failed\n", cases_n, failed_n);
	return cases_n < 38 || failed_n > 0;
}
