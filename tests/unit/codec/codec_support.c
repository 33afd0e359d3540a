#include "codec_support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/bytes.h"
#include "util/str.h"

uint8_t *support_hex(const char *hex, size_t *ret_len_bytes)
{
	size_t len = strlen(hex) / 2;
	uint8_t *data = malloc(len ? len : 1);

	cr_assert_not_null(data);
	cr_assert_eq(ds_hex_decode(hex, data, len), 0);
	*ret_len_bytes = len;
	return data;
}

uint8_t *support_copy(const void *data, size_t len_bytes)
{
	uint8_t *copy = malloc(len_bytes ? len_bytes : 1);

	cr_assert_not_null(copy);
	if (len_bytes)
		memcpy(copy, data, len_bytes);
	return copy;
}

struct ds_digest support_digest_of(const char *text)
{
	struct ds_digest digest;

	cr_assert_eq(ds_digest_of(text, strlen(text), &digest), 0);
	return digest;
}

void support_digest_is(const struct ds_digest *digest, const char *hex)
{
	char text[DS_DIGEST_TEXT_MAX];

	cr_assert_str_eq(ds_digest_format(digest, text), hex);
}

void support_bytes_are(const void *data, size_t len_bytes, const char *hex)
{
	char *text = malloc(2 * len_bytes + 1);

	cr_assert_not_null(text);
	ds_hex_encode(data, len_bytes, text);
	cr_assert_str_eq(text, hex);
	free(text);
}

uint64_t support_seed(void)
{
	const char *text = getenv("DSFS_TEST_SEED");
	uint64_t seed = text ? strtoull(text, NULL, 0) : ds_random_u64();

	fprintf(stderr, "DSFS_TEST_SEED=%llu\n", (unsigned long long)seed);
	return seed;
}

void support_fill(struct ds_prng *prng, uint8_t *data, size_t len_bytes)
{
	for (size_t i = 0; i < len_bytes; i += 8) {
		uint8_t raw[8];

		ds_put_le64(raw, ds_prng_next(prng));
		memcpy(data + i, raw, len_bytes - i < 8 ? len_bytes - i : 8);
	}
}
