#include "util/str.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/mem.h"

static const char hex_lower[] = "0123456789abcdef";
static const char hex_upper[] = "0123456789ABCDEF";

void ds_hex_encode(const void *data, size_t len_bytes, char *ret_text)
{
	const uint8_t *bytes = data;

	for (size_t i = 0; i < len_bytes; i++) {
		*ret_text++ = hex_lower[bytes[i] >> 4];
		*ret_text++ = hex_lower[bytes[i] & 15];
	}
	*ret_text = '\0';
}

static int hex_value(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return -1;
}

int ds_hex_decode(const char *text, void *ret_data, size_t len_bytes)
{
	uint8_t *bytes = ret_data;

	if (strnlen(text, 2 * len_bytes + 1) != 2 * len_bytes)
		return -EINVAL;
	for (size_t i = 0; i < 2 * len_bytes; i++)
		if (hex_value(text[i]) < 0)
			return -EINVAL;
	for (size_t i = 0; i < len_bytes; i++)
		bytes[i] = (uint8_t)(hex_value(text[2 * i]) << 4 | hex_value(text[2 * i + 1]));
	return 0;
}

/* Length of the well-formed UTF-8 sequence at the start, 0 if there is none (RFC 3629, section 4). */
static size_t utf8_len(const uint8_t *at, size_t left)
{
	size_t n;
	uint32_t c;

	if (at[0] < 0x80)
		return 1;
	if (at[0] >= 0xc2 && at[0] <= 0xdf)
		n = 2, c = at[0] & 0x1fu;
	else if ((at[0] & 0xf0) == 0xe0)
		n = 3, c = at[0] & 0x0fu;
	else if (at[0] >= 0xf0 && at[0] <= 0xf4)
		n = 4, c = at[0] & 0x07u;
	else
		return 0;
	if (left < n)
		return 0;
	for (size_t i = 1; i < n; i++) {
		if ((at[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (at[i] & 0x3fu);
	}
	if (n == 3 && (c < 0x800 || (c >= 0xd800 && c <= 0xdfff)))
		return 0;
	if (n == 4 && (c < 0x10000 || c > 0x10ffff))
		return 0;
	return n;
}

bool ds_is_utf8(const char *data, size_t len_bytes)
{
	const uint8_t *at = (const uint8_t *)data;

	while (len_bytes) {
		size_t n = utf8_len(at, len_bytes);

		if (!n)
			return false;
		at += n;
		len_bytes -= n;
	}
	return true;
}

/* Well-formed, and changes more than its own place: C1 controls (U+0080..U+009F), which move terminals as C0 do, line and
 * paragraph separators, and what turns the direction of text (Unicode TR36, 2.10; Trojan Source, CVE-2021-42574). */
static bool is_mover(const uint8_t *at, size_t n)
{
	if (n == 2)
		return (at[0] == 0xc2 && at[1] < 0xa0) || (at[0] == 0xd8 && at[1] == 0x9c);
	if (n != 3 || at[0] != 0xe2)
		return false;
	return (at[1] == 0x80 &&
		(at[2] == 0x8e || at[2] == 0x8f || (at[2] >= 0xa8 && at[2] <= 0xae))) ||
	       (at[1] == 0x81 && at[2] >= 0xa6 && at[2] <= 0xa9);
}

/* Writes the escape of what stands at `at` into `out` (room for 5); returns the input used. */
static size_t escape_one(const uint8_t *at, size_t left, char *out)
{
	size_t n = utf8_len(at, left);

	if (is_mover(at, n))
		n = 0;
	if (n > 1) {
		memcpy(out, at, n);
		out[n] = '\0';
		return n;
	}
	if (at[0] == '\n') {
		strcpy(out, "\\n");
	} else if (at[0] == '\t') {
		strcpy(out, "\\t");
	} else if (at[0] == '"' || at[0] == '\\') {
		out[0] = '\\';
		out[1] = (char)at[0];
		out[2] = '\0';
	} else if (at[0] >= 0x20 && at[0] < 0x7f) {
		out[0] = (char)at[0];
		out[1] = '\0';
	} else {
		out[0] = '\\';
		out[1] = 'x';
		out[2] = hex_lower[at[0] >> 4];
		out[3] = hex_lower[at[0] & 15];
		out[4] = '\0';
	}
	return 1;
}

static const char *escape(const char *data, size_t len_bytes, char *buf, size_t size, bool quote)
{
	const uint8_t *at = (const uint8_t *)data;
	size_t room = size - 1 - (quote ? 1 : 0), len = 0, cut = 0;
	char one[8];

	if (quote)
		buf[len++] = '"';
	while (len_bytes) {
		size_t used = escape_one(at, len_bytes, one);
		size_t n = strlen(one);

		if (len + n <= room - 3)
			cut = len + n;
		if (len + n > room) {
			len = DS_MIN(DS_MAX(cut, (size_t)(quote ? 1 : 0)), room - 3);
			memcpy(buf + len, "...", 3);
			len += 3;
			break;
		}
		memcpy(buf + len, one, n);
		len += n;
		at += used;
		len_bytes -= used;
	}
	if (quote)
		buf[len++] = '"';
	buf[len] = '\0';
	return buf;
}

const char *ds_quote(const char *data, size_t len_bytes, char *buf, size_t size)
{
	return escape(data, len_bytes, buf, size, true);
}

const char *ds_escape(const char *data, size_t len_bytes, char *buf, size_t size)
{
	return escape(data, len_bytes, buf, size, false);
}

void ds_defuse(char *text)
{
	size_t left = strlen(text);

	for (uint8_t *at = (uint8_t *)text; left;) {
		size_t n = utf8_len(at, left);
		bool is_bad = n == 0 || is_mover(at, n) || *at < 0x20 || *at == 0x7f;

		n = n ? n : 1;
		if (is_bad)
			memset(at, '?', n);
		at += n;
		left -= n;
	}
}

int ds_parse_u64(const char *text, uint64_t max, uint64_t *ret_value)
{
	uint64_t value = 0;

	if (!text[0])
		return -EINVAL;
	for (const char *at = text; *at; at++)
		if (*at < '0' || *at > '9')
			return -EINVAL;
	for (const char *at = text; *at; at++)
		if (__builtin_mul_overflow(value, 10, &value) ||
		    __builtin_add_overflow(value, (uint64_t)(*at - '0'), &value))
			return -ERANGE;
	if (value > max)
		return -ERANGE;
	*ret_value = value;
	return 0;
}

/* Splits "12.5rest" into thousandths and the rest. At most three decimals count. */
static int parse_decimal(const char *text, uint64_t *ret_milli, const char **ret_rest)
{
	uint64_t value = 0, scale = 1000;
	const char *at = text;

	if (*at < '0' || *at > '9')
		return -EINVAL;
	for (; *at >= '0' && *at <= '9'; at++)
		if (__builtin_mul_overflow(value, 10, &value) ||
		    __builtin_add_overflow(value, (uint64_t)(*at - '0'), &value))
			return -ERANGE;
	if (__builtin_mul_overflow(value, 1000, &value))
		return -ERANGE;
	if (*at == '.') {
		at++;
		if (*at < '0' || *at > '9')
			return -EINVAL;
		for (; *at >= '0' && *at <= '9'; at++) {
			scale /= 10;
			if (scale &&
			    __builtin_add_overflow(value, (uint64_t)(*at - '0') * scale, &value))
				return -ERANGE;
		}
	}
	*ret_milli = value;
	*ret_rest = at;
	return 0;
}

int ds_parse_size(const char *text, uint64_t *ret_bytes)
{
	static const char units[] = "KMGTP";
	unsigned __int128 bytes;
	uint64_t milli, value;
	const char *rest, *unit;
	unsigned shift = 0;
	int r;

	/* Plain byte counts may use all 64 bits, which thousandths would not leave room for. */
	if (ds_parse_u64(text, UINT64_MAX, &value) == 0) {
		*ret_bytes = value;
		return 0;
	}
	r = parse_decimal(text, &milli, &rest);
	if (r < 0)
		return r;
	if (*rest && (unit = strchr(units, *rest & ~0x20)) && *unit) {
		shift = 10 * (unsigned)(unit - units + 1);
		rest++;
		if (*rest == 'i' && rest[1] == 'B')
			rest += 2;
		else if (*rest == 'B')
			rest++;
	} else if (*rest == 'B') {
		rest++;
	}
	if (*rest)
		return -EINVAL;
	bytes = ((unsigned __int128)milli << shift) / 1000;
	if (bytes > UINT64_MAX)
		return -ERANGE;
	*ret_bytes = (uint64_t)bytes;
	return 0;
}

int ds_parse_duration_ms(const char *text, uint64_t *ret_ms)
{
	static const struct {
		const char *unit;
		uint64_t ms;
	} units[] = {
		{"", 1000}, {"s", 1000}, {"ms", 1}, {"m", 60000}, {"h", 3600000}, {"d", 86400000},
	};
	uint64_t milli;
	const char *rest;
	int r = parse_decimal(text, &milli, &rest);

	if (r < 0)
		return r;
	for (size_t i = 0; i < DS_ARRAY_SIZE(units); i++) {
		unsigned __int128 ms;

		if (strcmp(rest, units[i].unit) != 0)
			continue;
		ms = (unsigned __int128)milli * units[i].ms / 1000;
		if (ms > UINT64_MAX)
			return -ERANGE;
		*ret_ms = (uint64_t)ms;
		return 0;
	}
	return -EINVAL;
}

const char *ds_format_size(uint64_t bytes, char *buf, size_t size)
{
	static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
	double value = (double)bytes;
	size_t i = 0;

	while (value >= 1023.95 && i + 1 < DS_ARRAY_SIZE(units)) {
		value /= 1024;
		i++;
	}
	if (i == 0)
		snprintf(buf, size, "%u B", (unsigned)bytes);
	else
		snprintf(buf, size, "%.1f %s", value, units[i]);
	return buf;
}

static bool is_plain(uint8_t c, bool keep_slash)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
	       c == '.' || c == '_' || c == '-' || (keep_slash && c == '/');
}

char *ds_percent_encode(const char *data, size_t len_bytes, bool keep_slash)
{
	char *text = ds_malloc(3 * len_bytes + 1), *out = text;

	if (!text)
		return NULL;
	for (size_t i = 0; i < len_bytes; i++) {
		uint8_t c = (uint8_t)data[i];

		if (is_plain(c, keep_slash)) {
			*out++ = (char)c;
		} else {
			*out++ = '%';
			*out++ = hex_upper[c >> 4];
			*out++ = hex_upper[c & 15];
		}
	}
	*out = '\0';
	return text;
}

int ds_percent_decode(const char *text, char **ret_name)
{
	_ds_cleanup_free_ char *name = ds_malloc(strlen(text) + 1);
	char *out = name;

	if (!name)
		return -ENOMEM;
	for (const char *at = text; *at; at++) {
		const char *high, *low;
		uint8_t c;

		if (is_plain((uint8_t)*at, false)) {
			*out++ = *at;
			continue;
		}
		if (*at != '%' || !at[1] || !at[2])
			return -EINVAL;
		high = strchr(hex_upper, at[1]);
		low = strchr(hex_upper, at[2]);
		if (!high || !low)
			return -EINVAL;
		c = (uint8_t)((high - hex_upper) << 4 | (low - hex_upper));
		if (c == 0 || is_plain(c, false))
			return -EINVAL;
		*out++ = (char)c;
		at += 2;
	}
	*out = '\0';
	*ret_name = name;
	name = NULL;
	return 0;
}

bool ds_starts_with(const char *text, const char *prefix)
{
	return strncmp(text, prefix, strlen(prefix)) == 0;
}

bool ds_ends_with(const char *text, const char *suffix)
{
	size_t n = strlen(text), m = strlen(suffix);

	return n >= m && strcmp(text + n - m, suffix) == 0;
}
