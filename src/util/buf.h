/*
 * A growable byte buffer with a maximum, for everything whose length someone else decides.
 *
 * Caller's storage: ds_buf_init, then ds_buf_release. A NUL is always kept behind the bytes, so that
 * `data` of a text is a C string (data is NULL only while nothing was ever reserved).
 * Threads: one at a time.
 */
#ifndef DS_UTIL_BUF_H
#define DS_UTIL_BUF_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

struct ds_buf {
	uint8_t *data;
	size_t len_bytes;
	size_t capacity_bytes; /* without the NUL */
	size_t max_bytes;
	size_t align_bytes; /* of data, a power of two; 0: as malloc aligns */
};

#define DS_BUF_INIT(max)           \
	{                          \
		.max_bytes = (max) \
	}

void ds_buf_init(struct ds_buf *buf, size_t max_bytes);
void ds_buf_release(struct ds_buf *buf);
#define _ds_cleanup_buf_ __attribute__((cleanup(ds_buf_release)))

/* All of these return 0, -ENOMEM, or -DS_E_LIMIT when the maximum would be passed; on an error the
 * contents are unchanged. */
int ds_buf_reserve(struct ds_buf *buf, size_t extra_bytes);
int ds_buf_append(struct ds_buf *buf, const void *data, size_t len_bytes);
int ds_buf_append_str(struct ds_buf *buf, const char *text);
int ds_buf_append_byte(struct ds_buf *buf, uint8_t byte);
int ds_buf_append_le32(struct ds_buf *buf, uint32_t value);
int ds_buf_append_le64(struct ds_buf *buf, uint64_t value);
int ds_buf_appendf(struct ds_buf *buf, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

/* Length becomes 0 (capacity stays); or is cut to `len_bytes`, which is at most the length. */
void ds_buf_clear(struct ds_buf *buf);
void ds_buf_truncate(struct ds_buf *buf, size_t len_bytes);

/* C string of the contents, "" if empty. Valid until the next change. */
const char *ds_buf_str(const struct ds_buf *buf);

/* Hands the memory to the caller (ds_free); the buffer is empty afterwards. May be NULL if empty. */
uint8_t *ds_buf_steal(struct ds_buf *buf);

#endif
