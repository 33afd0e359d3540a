#include <assert.h>
#include <stdatomic.h>

#include "cache/fetch_internal.h"

static int bytes_new(size_t room_bytes, uint32_t len_bytes, struct ds_chunk_bytes **ret_bytes)
{
	struct ds_chunk_bytes *bytes = ds_malloc(sizeof(*bytes) + room_bytes);

	if (!bytes)
		return -ENOMEM;
	atomic_init(&bytes->refs_n, 1);
	bytes->len_bytes = len_bytes;
	bytes->data = bytes->own;
	bytes->buffer = NULL;
	*ret_bytes = bytes;
	return 0;
}

int ds_chunk_bytes_new(uint32_t len_bytes, struct ds_chunk_bytes **ret_bytes)
{
	return bytes_new(len_bytes, len_bytes, ret_bytes);
}

int ds_chunk_bytes_new_in(struct ds_fetch_buffer *buffer, size_t off, uint32_t len_bytes,
			  struct ds_chunk_bytes **ret_bytes)
{
	int r = bytes_new(0, len_bytes, ret_bytes);

	if (r < 0)
		return r;
	assert(off + len_bytes <= buffer->buf.len_bytes);
	(*ret_bytes)->data = buffer->buf.data + off;
	(*ret_bytes)->buffer = ds_fetch_buffer_ref(buffer);
	return 0;
}

struct ds_chunk_bytes *ds_chunk_bytes_ref(struct ds_chunk_bytes *bytes)
{
	unsigned before = atomic_fetch_add(&bytes->refs_n, 1);

	assert(before > 0);
	return bytes;
}

struct ds_chunk_bytes *ds_chunk_bytes_keep(struct ds_chunk_bytes *bytes)
{
	struct ds_chunk_bytes *own;

	if (!bytes->buffer)
		return ds_chunk_bytes_ref(bytes);
	if (ds_chunk_bytes_new(bytes->len_bytes, &own) < 0)
		return NULL;
	memcpy(own->data, bytes->data, bytes->len_bytes);
	return own;
}

struct ds_chunk_bytes *ds_chunk_bytes_unref(struct ds_chunk_bytes *bytes)
{
	if (bytes && atomic_fetch_sub(&bytes->refs_n, 1) == 1) {
		ds_fetch_buffer_unref(bytes->buffer);
		ds_free(bytes);
	}
	return NULL;
}
