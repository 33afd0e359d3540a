/*
 * Chunks: the unit of identity and transfer. A chunk is stored raw or as one LZ4 block; it is raw
 * exactly when its stored length equals its raw length.
 *
 * Threads: pure functions, any thread; they burn CPU (about 1 ms/MiB), none blocks.
 */
#ifndef DS_CODEC_CHUNK_H
#define DS_CODEC_CHUNK_H

#include "codec/digest.h"
#include "util/mem.h"

/* Constants of format 1. */
#define DS_CHUNK_MAX	DS_MIB(4)   /* raw bytes of a chunk; a file up to this is one chunk */
#define DS_CHUNK_TARGET DS_MIB(1)   /* what the chunker aims at in larger files */
#define DS_CHUNK_MIN	DS_KIB(256) /* no cut before this, except at a zeros extent or the end */
#define DS_ZEROS_MIN	DS_KIB(64) /* a maximal run of zero bytes this long is an extent of zeros */

/* Extents of a file, at most: chunks are cut off only after DS_CHUNK_MIN, or lie between two of zeros. */
static inline uint64_t ds_extents_max(uint64_t size_bytes)
{
	return size_bytes / DS_ZEROS_MIN * 2 + 1;
}

/* Where a chunk lies in the store, and what it must be. All of it is a claim until the digest has
 * been checked. */
struct ds_chunk_ref {
	struct ds_digest digest; /* of the raw bytes */
	struct ds_digest pack;	 /* id of the pack */
	uint32_t ordinal;	 /* in the pack's table of contents */
	uint64_t stored_off;	 /* in the pack object */
	uint32_t stored_len_bytes;
	uint32_t raw_len_bytes; /* 1..DS_CHUNK_MAX */
};

/* Room that ds_chunk_encode may need for raw_len bytes. */
size_t ds_chunk_bound(size_t raw_len_bytes);

/* Compresses where it pays (saves at least 1/16), else copies. `ret_stored` has room for
 * ds_chunk_bound. raw_len is 1..DS_CHUNK_MAX. Returns the stored length; equal to raw_len: raw. */
size_t ds_chunk_encode(const void *raw, size_t raw_len_bytes, void *ret_stored);

/* Checks raw bytes against their digest: -DS_E_CORRUPT, -ENOMEM. */
int ds_chunk_check(const void *raw, size_t raw_len_bytes, const struct ds_digest *digest);

/* Decompresses into exactly raw_len bytes and checks the digest. -DS_E_MALFORMED (lengths out of
 * range, LZ4 output not exactly raw_len), -DS_E_CORRUPT (digest). `ret_raw` has room for raw_len;
 * its contents are undefined on error. */
int ds_chunk_decode(const void *stored, size_t stored_len_bytes, size_t raw_len_bytes,
		    const struct ds_digest *digest, void *ret_raw);

#endif
