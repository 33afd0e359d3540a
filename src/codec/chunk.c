#include "codec/chunk.h"

#include <assert.h>
#include <lz4.h>

#include "util/error.h"

size_t ds_chunk_bound(size_t raw_len_bytes)
{
	/* What does not get smaller is stored raw, so that more room is never used. */
	return raw_len_bytes;
}

size_t ds_chunk_encode(const void *raw, size_t raw_len_bytes, void *ret_stored)
{
	int limit, n;

	assert(raw_len_bytes >= 1 && raw_len_bytes <= DS_CHUNK_MAX);
	/* With no room for more LZ4 gives up early on what does not compress. */
	limit = (int)(raw_len_bytes - (raw_len_bytes + 15) / 16);
	n = limit > 0 ? LZ4_compress_default(raw, ret_stored, (int)raw_len_bytes, limit) : 0;
	if (n > 0)
		return (size_t)n;
	memcpy(ret_stored, raw, raw_len_bytes);
	return raw_len_bytes;
}

int ds_chunk_check(const void *raw, size_t raw_len_bytes, const struct ds_digest *digest)
{
	struct ds_digest found;
	int r = ds_digest_of(raw, raw_len_bytes, &found);

	if (r < 0)
		return r;
	return ds_digest_equal(&found, digest) ? 0 : -DS_E_CORRUPT;
}

int ds_chunk_decode(const void *stored, size_t stored_len_bytes, size_t raw_len_bytes,
		    const struct ds_digest *digest, void *ret_raw)
{
	if (raw_len_bytes == 0 || raw_len_bytes > DS_CHUNK_MAX || stored_len_bytes == 0 ||
	    stored_len_bytes > raw_len_bytes)
		return -DS_E_MALFORMED;
	if (stored_len_bytes == raw_len_bytes)
		memcpy(ret_raw, stored, raw_len_bytes);
	else if (LZ4_decompress_safe(stored, ret_raw, (int)stored_len_bytes, (int)raw_len_bytes) !=
		 (int)raw_len_bytes)
		return -DS_E_MALFORMED;
	return ds_chunk_check(ret_raw, raw_len_bytes, digest);
}
