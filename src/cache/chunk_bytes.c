#include <assert.h>
#include <stdatomic.h>

#include "cache/fetch_internal.h"

int ds_chunk_bytes_new(uint32_t len_bytes, struct ds_chunk_bytes **ret_bytes)
{
	struct ds_chunk_bytes *bytes = ds_malloc(sizeof(*bytes) + len_bytes);

	if (!bytes)
		return -ENOMEM;
	atomic_init(&bytes->refs_n, 1);
	bytes->len_bytes = len_bytes;
	*ret_bytes = bytes;
	return 0;
}

struct ds_chunk_bytes *ds_chunk_bytes_ref(struct ds_chunk_bytes *bytes)
{
	unsigned before = atomic_fetch_add(&bytes->refs_n, 1);

	assert(before > 0);
	return bytes;
}

struct ds_chunk_bytes *ds_chunk_bytes_unref(struct ds_chunk_bytes *bytes)
{
	if (bytes && atomic_fetch_sub(&bytes->refs_n, 1) == 1)
		ds_free(bytes);
	return NULL;
}
