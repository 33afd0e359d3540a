/*
 * Little-endian integers in byte arrays, and a reader that cannot run past its end. Every number in
 * a stored object is little-endian. Pure functions; any thread.
 */
#ifndef DS_UTIL_BYTES_H
#define DS_UTIL_BYTES_H

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline void ds_put_le32(uint8_t *to, uint32_t value)
{
	value = htole32(value);
	memcpy(to, &value, sizeof(value));
}

static inline void ds_put_le64(uint8_t *to, uint64_t value)
{
	value = htole64(value);
	memcpy(to, &value, sizeof(value));
}

static inline uint32_t ds_get_le32(const uint8_t *from)
{
	uint32_t value;

	memcpy(&value, from, sizeof(value));
	return le32toh(value);
}

static inline uint64_t ds_get_le64(const uint8_t *from)
{
	uint64_t value;

	memcpy(&value, from, sizeof(value));
	return le64toh(value);
}

/* Reads from left to right; after the first read past the end `failed` stays set and every further
 * read gives zeros, so that a parser checks once, at its end. */
struct ds_cursor {
	const uint8_t *at;
	size_t left_bytes;
	bool failed;
};

static inline struct ds_cursor ds_cursor_of(const void *data, size_t len_bytes)
{
	return (struct ds_cursor){.at = (const uint8_t *)data, .left_bytes = len_bytes};
}

/* Pointer to the next n bytes, or NULL (and failed) if there are not so many. */
static inline const uint8_t *ds_cursor_take(struct ds_cursor *cursor, size_t n)
{
	const uint8_t *at = cursor->at;

	if (cursor->failed || n > cursor->left_bytes) {
		cursor->failed = true;
		return NULL;
	}
	cursor->at += n;
	cursor->left_bytes -= n;
	return at;
}

static inline uint32_t ds_cursor_le32(struct ds_cursor *cursor)
{
	const uint8_t *at = ds_cursor_take(cursor, 4);

	return at ? ds_get_le32(at) : 0;
}

static inline uint64_t ds_cursor_le64(struct ds_cursor *cursor)
{
	const uint8_t *at = ds_cursor_take(cursor, 8);

	return at ? ds_get_le64(at) : 0;
}

#endif
