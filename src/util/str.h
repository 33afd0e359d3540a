/*
 * Text: hex, quoting for logs, strict numbers, sizes and durations as people write them, and
 * percent-encoding of names. Pure functions; any thread; none blocks.
 */
#ifndef DS_UTIL_STR_H
#define DS_UTIL_STR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Lower-case hex; `ret_text` has room for 2 * len + 1. */
void ds_hex_encode(const void *data, size_t len_bytes, char *ret_text);
/* Exactly 2 * len_bytes lower-case digits and then the end of the string, else -EINVAL. */
int ds_hex_decode(const char *text, void *ret_data, size_t len_bytes);

/*
 * Quotes bytes for one line of a log or of text output: double quotes around, and \n, \t, \\, \",
 * \xHH for everything that is not printable ASCII or well-formed UTF-8, and for what in that turns
 * the direction of text or ends lines. Cut with "..." if it does not
 * fit. Always NUL-terminated; size at least 8. Returns buf.
 */
const char *ds_quote(const char *data, size_t len_bytes, char *buf, size_t size);
/* The same without the surrounding quotes. */
const char *ds_escape(const char *data, size_t len_bytes, char *buf, size_t size);

/* Question marks for all that ds_escape would write as \n, \t or \xHH: for a line that is put together already. */
void ds_defuse(char *text);

/* Whether the bytes are well-formed UTF-8 (no overlong forms, no surrogates; RFC 3629). */
bool ds_is_utf8(const char *data, size_t len_bytes);

/* Decimal digits only, no sign, no space, the whole string; -EINVAL or -ERANGE (> max). */
int ds_parse_u64(const char *text, uint64_t max, uint64_t *ret_value);

/* "4096", "500G", "1.5T", "64KiB", "10MB": a number and an optional unit of powers of 1024
 * (K M G T P, with or without "iB" or "B"). No space, no sign. -EINVAL or -ERANGE. */
int ds_parse_size(const char *text, uint64_t *ret_bytes);

/* "90", "90s", "15m", "2h", "7d", "250ms" to milliseconds; a bare number is seconds. */
int ds_parse_duration_ms(const char *text, uint64_t *ret_ms);

/* "1.5 GiB", "312 B" for people. Returns buf. */
const char *ds_format_size(uint64_t bytes, char *buf, size_t size);

/* Percent-encoding with upper-case hex of every byte outside [A-Za-z0-9._-] and, with keep_slash,
 * '/'. New string or NULL (out of memory). */
char *ds_percent_encode(const char *data, size_t len_bytes, bool keep_slash);
/* Exact reverse of the first: refuses what ds_percent_encode would not have written (lower-case
 * hex, needless escapes, %00). -EINVAL, -ENOMEM. */
int ds_percent_decode(const char *text, char **ret_name);

bool ds_starts_with(const char *text, const char *prefix);
bool ds_ends_with(const char *text, const char *suffix);

#endif
