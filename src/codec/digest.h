/*
 * Digests: SHA-256 (FIPS 180-4) by OpenSSL, which uses the CPU's instructions.
 * Threads: any; a hasher belongs to one thread. Nothing blocks.
 */
#ifndef DS_CODEC_DIGEST_H
#define DS_CODEC_DIGEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define DS_DIGEST_LEN	   32
#define DS_DIGEST_TEXT_MAX 65 /* 64 hex digits and the NUL */

/* Also the type of every id that is a digest: versions, packs, index objects, images. */
struct ds_digest {
	uint8_t bytes[DS_DIGEST_LEN];
};

static inline bool ds_digest_equal(const struct ds_digest *a, const struct ds_digest *b)
{
	return memcmp(a->bytes, b->bytes, DS_DIGEST_LEN) == 0;
}

bool ds_digest_is_zero(const struct ds_digest *digest);

/* Whole buffer at once. -ENOMEM if OpenSSL cannot allocate. */
int ds_digest_of(const void *data, size_t len_bytes, struct ds_digest *ret_digest);

struct ds_hasher; /* heap object; -ENOMEM from _new; the others cannot fail once it exists */
int ds_hasher_new(struct ds_hasher **ret_hasher);
struct ds_hasher *ds_hasher_free(struct ds_hasher *hasher);
void ds_hasher_update(struct ds_hasher *hasher, const void *data, size_t len_bytes);
/* Gives the digest and starts afresh. */
void ds_hasher_finish(struct ds_hasher *hasher, struct ds_digest *ret_digest);

/* 64 lower-case hex digits. Room for DS_DIGEST_TEXT_MAX. Returns buf. */
const char *ds_digest_format(const struct ds_digest *digest, char *buf);
/* Exactly 64 lower-case hex digits; -EINVAL. */
int ds_digest_parse(const char *text, struct ds_digest *ret_digest);

#endif
