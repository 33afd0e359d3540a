/* Helpers of the codec's tests. All abort the test that calls them with something impossible. */
#pragma once

#include "codec/digest.h"
#include "test_leaks.h"
#include "util/random.h"

/* The bytes of a text of hex digits, in a block of exactly their size, so that a read beyond them is
 * seen. The caller frees. */
uint8_t *support_hex(const char *hex, size_t *ret_len_bytes);
/* A copy of exactly this size; the caller frees. */
uint8_t *support_copy(const void *data, size_t len_bytes);

struct ds_digest support_digest_of(const char *text);
/* Asserts that these are the digits. */
void support_digest_is(const struct ds_digest *digest, const char *hex);
void support_bytes_are(const void *data, size_t len_bytes, const char *hex);

/* DSFS_TEST_SEED, or a new one; printed, so that what it showed can be shown again. */
uint64_t support_seed(void);
/* The generator's numbers as little-endian bytes. */
void support_fill(struct ds_prng *prng, uint8_t *data, size_t len_bytes);
