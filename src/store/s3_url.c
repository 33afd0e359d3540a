#include "store/s3_url.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "util/mem.h"
#include "util/str.h"

#define PREFIX_MAX_BYTES 512u
#define HOST_MAX_BYTES	 253u

static bool is_lower_alnum(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

static bool is_ipv4(const char *text)
{
	struct in_addr addr;

	return inet_pton(AF_INET, text, &addr) == 1;
}

/* "Bucket naming rules" of the S3 user guide. */
static const char *wrong_bucket(const char *bucket)
{
	size_t len = strlen(bucket);

	if (len == 0)
		return "the URL names no bucket";
	if (len < 3 || len > 63)
		return "a bucket's name has 3 to 63 characters";
	for (size_t i = 0; i < len; i++)
		if (!is_lower_alnum(bucket[i]) && bucket[i] != '-' && bucket[i] != '.')
			return "a bucket's name has only a-z, 0-9, '-' and '.'";
	if (!is_lower_alnum(bucket[0]) || !is_lower_alnum(bucket[len - 1]))
		return "a bucket's name begins and ends with a letter or a digit";
	if (strstr(bucket, "..") || strstr(bucket, ".-") || strstr(bucket, "-."))
		return "a bucket's name has no two dots, or dot and dash, in a row";
	if (is_ipv4(bucket))
		return "a bucket's name is no IP address";
	return NULL;
}

static const char *wrong_prefix(const char *prefix)
{
	const char *at = prefix;

	if (strlen(prefix) > PREFIX_MAX_BYTES)
		return "the prefix is too long";
	if (strpbrk(prefix, "?#"))
		return "a store's URL has no '?' and no '#'";
	for (; *at; at++)
		if ((unsigned char)*at < 0x20 || *at == 0x7f)
			return "the prefix has a control character";
	for (at = prefix; *at;) {
		size_t len = strcspn(at, "/");

		if (len == 0 || (len == 1 && at[0] == '.') ||
		    (len == 2 && strncmp(at, "..", 2) == 0))
			return "the prefix has an empty, \".\" or \"..\" component";
		at += len;
		at += *at == '/';
	}
	return NULL;
}

int ds_s3_url_parse(const char *text, struct ds_s3_url *ret_url, struct ds_diag *reterr_diag)
{
	const char *at = text + strlen("s3://");
	size_t authority_len = strcspn(at, "/"), prefix_len;
	_ds_cleanup_free_ char *bucket = NULL, *prefix = NULL;
	const char *wrong;

	if (memchr(at, '@', authority_len))
		return ds_diag_set(reterr_diag, -DS_E_USAGE, NULL,
				   "no keys in a URL: they come from the environment or from "
				   "~/.aws/credentials");
	bucket = ds_strndup(at, authority_len);
	if (!bucket)
		return -ENOMEM;
	wrong = strpbrk(bucket, "?#") ? "a store's URL has no '?' and no '#'"
				      : wrong_bucket(bucket);
	if (wrong)
		return ds_diag_set(reterr_diag, -DS_E_USAGE, bucket, "%s", wrong);
	at += authority_len;
	at += *at == '/';
	prefix_len = strlen(at);
	while (prefix_len && at[prefix_len - 1] == '/')
		prefix_len--;
	prefix = ds_asprintf("%.*s%s", (int)prefix_len, at, prefix_len ? "/" : "");
	if (!prefix)
		return -ENOMEM;
	wrong = wrong_prefix(prefix);
	if (wrong)
		return ds_diag_set(reterr_diag, -DS_E_USAGE, text, "%s", wrong);
	ret_url->bucket = bucket;
	ret_url->prefix = prefix;
	bucket = prefix = NULL;
	return 0;
}

void ds_s3_url_release(struct ds_s3_url *url)
{
	ds_free(url->bucket);
	ds_free(url->prefix);
	*url = (struct ds_s3_url){0};
}

bool ds_s3_is_region(const char *region)
{
	size_t len = strlen(region);

	for (size_t i = 0; i < len; i++)
		if (!is_lower_alnum(region[i]) && region[i] != '-')
			return false;
	return len > 0 && len <= 40;
}

/* An endpoint taken apart; host in lower case, IPv6 with its brackets. */
struct parts {
	bool is_https;
	bool is_literal; /* an IP address */
	char host[HOST_MAX_BYTES + 3];
	unsigned port; /* 0: the scheme's */
};

static const char *parse_port(const char *text, size_t len, struct parts *parts)
{
	uint64_t port;
	char copy[8];

	if (len == 0 || len >= sizeof(copy))
		return "the endpoint's port is no number";
	memcpy(copy, text, len);
	copy[len] = '\0';
	if (ds_parse_u64(copy, 65535, &port) < 0 || port == 0)
		return "the endpoint's port is not between 1 and 65535";
	parts->port = port == (parts->is_https ? 443u : 80u) ? 0 : (unsigned)port;
	return NULL;
}

static const char *parse_host(const char *text, size_t len, struct parts *parts)
{
	struct in6_addr addr6;
	size_t i;

	if (len == 0 || len > HOST_MAX_BYTES)
		return "the endpoint has no host, or one that is too long";
	for (i = 0; i < len; i++)
		parts->host[i] =
			(char)(text[i] >= 'A' && text[i] <= 'Z' ? text[i] | 0x20 : text[i]);
	parts->host[len] = '\0';
	if (parts->host[0] == '[') {
		char inner[HOST_MAX_BYTES];

		memcpy(inner, parts->host + 1, len - 2);
		inner[len - 2] = '\0';
		parts->is_literal = true;
		return inet_pton(AF_INET6, inner, &addr6) == 1
			       ? NULL
			       : "the endpoint's host is no IPv6 address (zones are not supported)";
	}
	for (i = 0; i < len; i++)
		if (!is_lower_alnum(parts->host[i]) && !strchr("-._", parts->host[i]))
			return "the endpoint's host has a character that no host has";
	parts->is_literal = is_ipv4(parts->host);
	return NULL;
}

static const char *parse_parts(const char *text, struct parts *parts)
{
	const char *host, *colon, *wrong;
	size_t len, host_len;

	*parts = (struct parts){0};
	if (strncasecmp(text, "https://", 8) == 0)
		parts->is_https = true;
	else if (strncasecmp(text, "http://", 7) != 0)
		return "the endpoint begins with neither https:// nor http://";
	host = text + (parts->is_https ? 8 : 7);
	len = strcspn(host, "/?#");
	if (memchr(host, '@', len))
		return "no keys in an endpoint's URL";
	if (host[len] && strcmp(host + len, "/") != 0)
		return "an endpoint is a scheme, a host and perhaps a port, nothing more";
	if (*host == '[') {
		const char *end = memchr(host, ']', len);

		if (!end)
			return "the endpoint's host has no closing bracket";
		host_len = (size_t)(end - host) + 1;
		if (host_len < len && host[host_len] != ':')
			return "the endpoint's port does not follow the bracket";
		colon = host_len < len ? host + host_len : NULL;
	} else {
		colon = memchr(host, ':', len);
		host_len = colon ? (size_t)(colon - host) : len;
	}
	wrong = parse_host(host, host_len, parts);
	if (!wrong && colon)
		wrong = parse_port(colon + 1, len - host_len - 1, parts);
	return wrong;
}

/* 127/8, ::1, localhost and names below it (RFC 6761). */
static bool is_loopback(const struct parts *parts)
{
	if (parts->is_literal)
		return ds_starts_with(parts->host, "127.") || strcmp(parts->host, "[::1]") == 0;
	return strcmp(parts->host, "localhost") == 0 || ds_ends_with(parts->host, ".localhost");
}

int ds_store_addressing_parse(const char *text, enum ds_store_addressing *ret_addressing)
{
	if (strcmp(text, "path") == 0)
		*ret_addressing = DS_STORE_ADDRESSING_PATH;
	else if (strcmp(text, "virtual") == 0)
		*ret_addressing = DS_STORE_ADDRESSING_VIRTUAL;
	else
		return -EINVAL;
	return 0;
}

static bool is_virtual(const struct parts *parts, const char *bucket,
		       enum ds_store_addressing addressing)
{
	if (addressing != DS_STORE_ADDRESSING_AUTO)
		return addressing == DS_STORE_ADDRESSING_VIRTUAL && !parts->is_literal;
	/* A certificate for *.s3.amazonaws.com does not hold for a bucket with dots. */
	return (ds_ends_with(parts->host, ".amazonaws.com") ||
		ds_ends_with(parts->host, ".amazonaws.com.cn")) &&
	       !strchr(bucket, '.');
}

int ds_s3_endpoint_parse(const char *text, const char *region, const char *bucket,
			 enum ds_store_addressing addressing, bool insecure_http,
			 struct ds_s3_endpoint *ret_endpoint, struct ds_diag *reterr_diag)
{
	struct ds_s3_endpoint endpoint = {0};
	char own[128], port[8] = "";
	const char *wrong;
	struct parts parts;

	if (!text) {
		snprintf(own, sizeof(own), "https://s3.%s.amazonaws.com%s", region,
			 ds_starts_with(region, "cn-") ? ".cn" : "");
		text = own;
	}
	wrong = parse_parts(text, &parts);
	if (wrong)
		return ds_diag_set(reterr_diag, -DS_E_USAGE, NULL, "%s", wrong);
	endpoint.is_loopback = is_loopback(&parts);
	if (!parts.is_https && !endpoint.is_loopback && !insecure_http)
		return ds_diag_set(
			reterr_diag, -DS_E_USAGE, parts.host,
			"plain http is used only to this machine (or with insecure_http)");
	if (parts.port)
		snprintf(port, sizeof(port), ":%u", parts.port & 0xffffu);
	if (is_virtual(&parts, bucket, addressing)) {
		endpoint.host = ds_asprintf("%s.%s%s", bucket, parts.host, port);
		endpoint.base_path = ds_strdup("/");
	} else {
		endpoint.host = ds_asprintf("%s%s", parts.host, port);
		endpoint.base_path = ds_asprintf("/%s/", bucket);
	}
	if (endpoint.host)
		endpoint.origin =
			ds_asprintf("%s%s", parts.is_https ? "https://" : "http://", endpoint.host);
	if (!endpoint.host || !endpoint.base_path || !endpoint.origin) {
		ds_s3_endpoint_release(&endpoint);
		return -ENOMEM;
	}
	*ret_endpoint = endpoint;
	return 0;
}

void ds_s3_endpoint_release(struct ds_s3_endpoint *endpoint)
{
	ds_free(endpoint->origin);
	ds_free(endpoint->host);
	ds_free(endpoint->base_path);
	*endpoint = (struct ds_s3_endpoint){0};
}
