#include "util/buf.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "util/bytes.h"
#include "util/error.h"
#include "util/mem.h"

void ds_buf_init(struct ds_buf *buf, size_t max_bytes)
{
	*buf = (struct ds_buf)DS_BUF_INIT(max_bytes);
}

void ds_buf_release(struct ds_buf *buf)
{
	ds_free(buf->data);
	buf->data = NULL;
	buf->len_bytes = 0;
	buf->capacity_bytes = 0;
}

int ds_buf_reserve(struct ds_buf *buf, size_t extra_bytes)
{
	size_t want, capacity;
	uint8_t *data;

	/* SIZE_MAX would leave no room for the NUL. */
	if (__builtin_add_overflow(buf->len_bytes, extra_bytes, &want) || want > buf->max_bytes ||
	    want == SIZE_MAX)
		return -DS_E_LIMIT;
	if (buf->data && want <= buf->capacity_bytes)
		return 0;
	capacity = DS_MAX(want, DS_MIN(buf->capacity_bytes * 2, buf->max_bytes));
	capacity = DS_MAX(capacity, DS_MIN((size_t)64, buf->max_bytes));
	if (buf->align_bytes) {
		data = ds_malloc_aligned(buf->align_bytes, capacity + 1);
		if (data && buf->data)
			memcpy(data, buf->data, buf->len_bytes);
		if (data)
			ds_free(buf->data);
	} else {
		data = ds_realloc(buf->data, capacity + 1);
	}
	if (!data)
		return -ENOMEM;
	buf->data = data;
	buf->capacity_bytes = capacity;
	buf->data[buf->len_bytes] = '\0';
	return 0;
}

int ds_buf_append(struct ds_buf *buf, const void *data, size_t len_bytes)
{
	int r = ds_buf_reserve(buf, len_bytes);

	if (r < 0)
		return r;
	if (len_bytes)
		memcpy(buf->data + buf->len_bytes, data, len_bytes);
	buf->len_bytes += len_bytes;
	buf->data[buf->len_bytes] = '\0';
	return 0;
}

int ds_buf_append_str(struct ds_buf *buf, const char *text)
{
	return ds_buf_append(buf, text, strlen(text));
}

int ds_buf_append_byte(struct ds_buf *buf, uint8_t byte)
{
	return ds_buf_append(buf, &byte, 1);
}

int ds_buf_append_le32(struct ds_buf *buf, uint32_t value)
{
	uint8_t raw[4];

	ds_put_le32(raw, value);
	return ds_buf_append(buf, raw, sizeof(raw));
}

int ds_buf_append_le64(struct ds_buf *buf, uint64_t value)
{
	uint8_t raw[8];

	ds_put_le64(raw, value);
	return ds_buf_append(buf, raw, sizeof(raw));
}

int ds_buf_appendf(struct ds_buf *buf, const char *format, ...)
{
	va_list ap;
	int n, r;

	va_start(ap, format);
	n = vsnprintf(NULL, 0, format, ap);
	va_end(ap);
	if (n < 0)
		return -EINVAL;
	r = ds_buf_reserve(buf, (size_t)n);
	if (r < 0)
		return r;
	va_start(ap, format);
	vsnprintf((char *)buf->data + buf->len_bytes, (size_t)n + 1, format, ap);
	va_end(ap);
	buf->len_bytes += (size_t)n;
	return 0;
}

void ds_buf_clear(struct ds_buf *buf)
{
	ds_buf_truncate(buf, 0);
}

void ds_buf_truncate(struct ds_buf *buf, size_t len_bytes)
{
	assert(len_bytes <= buf->len_bytes);
	buf->len_bytes = len_bytes;
	if (buf->data)
		buf->data[len_bytes] = '\0';
}

const char *ds_buf_str(const struct ds_buf *buf)
{
	return buf->data ? (const char *)buf->data : "";
}

uint8_t *ds_buf_steal(struct ds_buf *buf)
{
	uint8_t *data = buf->data;

	buf->data = NULL;
	buf->len_bytes = 0;
	buf->capacity_bytes = 0;
	return data;
}
