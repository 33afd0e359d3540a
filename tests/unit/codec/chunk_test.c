#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "codec/chunk.h"
#include "codec_support.h"
#include "util/error.h"

TestSuite(chunk, .fini = test_leaks_abort);

/* 1,000 times 'a' as an LZ4 block made by hand: one literal, a match of 994 bytes one byte back, five
 * literals. */
static const char run_hex[] = "1f610100ffffffd2506161616161";
#define RUN_LEN 1000u

static struct ds_digest digest_of_run(void)
{
	uint8_t raw[RUN_LEN];
	struct ds_digest digest;

	memset(raw, 'a', sizeof(raw));
	cr_assert_eq(ds_digest_of(raw, sizeof(raw), &digest), 0);
	return digest;
}

/* Into a block of exactly that size, so that a write beyond it is seen. */
static int decode(const void *stored, size_t stored_len, size_t raw_len,
		  const struct ds_digest *digest)
{
	size_t room = raw_len <= DS_CHUNK_MAX ? raw_len : 0;
	uint8_t *raw = malloc(room ? room : 1);
	int r = ds_chunk_decode(stored, stored_len, raw_len, digest, raw);

	if (r == 0) {
		struct ds_digest found;

		cr_assert_eq(ds_digest_of(raw, raw_len, &found), 0);
		cr_assert(ds_digest_equal(&found, digest));
	}
	free(raw);
	return r;
}

Test(chunk, an_lz4_block_made_by_hand_is_read)
{
	struct ds_digest digest;
	size_t len;
	uint8_t *stored = support_hex(run_hex, &len);

	cr_assert_eq(
		ds_digest_parse("41edece42d63e8d9bf515a9ba6932e1c20cbc9f5a5d134645adb5db1b9737ea3",
				&digest),
		0);
	cr_assert_eq(decode(stored, len, RUN_LEN, &digest), 0);
	free(stored);
}

Test(chunk, equal_lengths_mean_raw)
{
	struct ds_digest digest = support_digest_of("a"), hello = support_digest_of("hello");

	cr_assert_eq(decode("a", 1, 1, &digest), 0);
	cr_assert_eq(decode("hello", 5, 5, &hello), 0);
	cr_assert_eq(decode("hellp", 5, 5, &hello), -DS_E_CORRUPT);
}

/* Random bytes, then repetitions of what came before, then text: from incompressible to all alike. */
static void make_raw(struct ds_prng *prng, uint8_t *raw, size_t len)
{
	unsigned kind = (unsigned)ds_prng_below(prng, 4);
	uint8_t mask = (uint8_t)(ds_prng_next(prng) | 1);

	support_fill(prng, raw, len);
	for (size_t i = 0; i < len && kind; i++) {
		if (kind == 1)
			raw[i] &= mask;
		else if (kind == 2)
			raw[i] = raw[i % 64];
		else if (i % 1024 > 512)
			raw[i] = raw[i - 512];
	}
}

static void round_trip(const uint8_t *raw, size_t len)
{
	uint8_t *stored = malloc(ds_chunk_bound(len));
	struct ds_digest digest;
	size_t stored_len;

	cr_assert_not_null(stored);
	stored_len = ds_chunk_encode(raw, len, stored);
	if (stored_len == len)
		cr_assert_arr_eq(stored, raw, len);
	else
		cr_assert_leq(stored_len, len - (len + 15) / 16);
	cr_assert_eq(ds_digest_of(raw, len, &digest), 0);
	cr_assert_eq(decode(stored, stored_len, len, &digest), 0);
	digest.bytes[ds_digest_is_zero(&digest)] ^= 4;
	cr_assert_eq(decode(stored, stored_len, len, &digest), -DS_E_CORRUPT);
	free(stored);
}

Test(chunk, what_was_encoded_is_decoded)
{
	struct ds_prng prng = {.state = support_seed()};
	uint8_t *raw = malloc(DS_CHUNK_MAX);

	for (size_t len = 1; len < 100; len++) {
		make_raw(&prng, raw, len);
		round_trip(raw, len);
	}
	for (int round = 0; round < 100; round++) {
		size_t len = 1 + (size_t)ds_prng_below(&prng, DS_KIB(64));

		make_raw(&prng, raw, len);
		round_trip(raw, len);
	}
	for (int round = 0; round < 4; round++) {
		make_raw(&prng, raw, DS_CHUNK_MAX);
		round_trip(raw, DS_CHUNK_MAX - (round & 1));
	}
	memset(raw, 0, DS_CHUNK_MAX);
	round_trip(raw, DS_CHUNK_MAX);
	free(raw);
}

Test(chunk, what_compresses_is_compressed_and_the_rest_is_raw)
{
	struct ds_prng prng = {.state = 7};
	uint8_t raw[DS_KIB(64)], stored[DS_KIB(64)];

	memset(raw, 'a', sizeof(raw));
	cr_assert_lt(ds_chunk_encode(raw, sizeof(raw), stored), 1000);
	cr_assert_lt(ds_chunk_encode(raw, 100, stored), 50);
	cr_assert_eq(ds_chunk_encode(raw, 1, stored), 1);
	support_fill(&prng, raw, sizeof(raw));
	cr_assert_eq(ds_chunk_encode(raw, sizeof(raw), stored), sizeof(raw));
	/* 1/32 of it repeats: not worth it. */
	memcpy(raw + sizeof(raw) - 2048, raw, 2048);
	cr_assert_eq(ds_chunk_encode(raw, sizeof(raw), stored), sizeof(raw));
	/* 1/8 is. */
	memcpy(raw + sizeof(raw) - 8192, raw + sizeof(raw) - 16384, 8192);
	cr_assert_lt(ds_chunk_encode(raw, sizeof(raw), stored), sizeof(raw) - 4096);
}

Test(chunk, G08_lengths_out_of_range_are_malformed)
{
	struct ds_digest digest = support_digest_of("");
	uint8_t *stored = calloc(1, DS_CHUNK_MAX + 1);
	static const size_t lens[][2] = {
		{0, 0},
		{0, 1},
		{1, 0},
		{2, 1},
		{0, DS_CHUNK_MAX},
		{DS_CHUNK_MAX + 1, DS_CHUNK_MAX + 1},
		{DS_CHUNK_MAX + 1, DS_CHUNK_MAX},
		{1, DS_CHUNK_MAX + 1},
		{1, UINT32_MAX},
		{1, UINT64_C(1) << 31},
		{1, SIZE_MAX},
		{SIZE_MAX, SIZE_MAX},
		{1, UINT64_C(1) << 32 | 5},
	};

	for (size_t i = 0; i < DS_ARRAY_SIZE(lens); i++)
		cr_assert_eq(decode(stored, lens[i][0], lens[i][1], &digest), -DS_E_MALFORMED,
			     "%zu %zu", lens[i][0], lens[i][1]);
	free(stored);
}

Test(chunk, G08_a_block_that_gives_another_length_is_malformed)
{
	struct ds_digest digest = digest_of_run();
	size_t len;
	uint8_t *stored = support_hex(run_hex, &len), more[64];

	cr_assert_eq(decode(stored, len, RUN_LEN - 1, &digest), -DS_E_MALFORMED);
	cr_assert_eq(decode(stored, len, RUN_LEN + 1, &digest), -DS_E_MALFORMED);
	cr_assert_eq(decode(stored, len, 15, &digest), -DS_E_MALFORMED);
	cr_assert_eq(decode(stored, len, DS_CHUNK_MAX, &digest), -DS_E_MALFORMED);
	/* Trailing bytes: zeros, or a sequence more. */
	memset(more, 0, sizeof(more));
	memcpy(more, stored, len);
	for (size_t n = 1; n < 8; n++)
		cr_assert_eq(decode(more, len + n, RUN_LEN, &digest), -DS_E_MALFORMED);
	memcpy(more + len, stored, len);
	cr_assert_eq(decode(more, 2 * len, RUN_LEN, &digest), -DS_E_MALFORMED);
	free(stored);
}

Test(chunk, G08_a_match_before_the_start_is_malformed)
{
	struct ds_digest digest = digest_of_run();
	static const char *const blocks[] = {
		"1f610200ffffffd2506161616161", /* offset 2 after one byte */
		"1f610000ffffffd2506161616161", /* offset 0 */
		"1f61ffffffffffd2506161616161", /* offset 65535 */
		"0f0100ffffffd3506161616161",	/* no literal at all */
		"f0ffffffffffffffffffff",	/* a literal length without end */
	};

	for (size_t i = 0; i < DS_ARRAY_SIZE(blocks); i++) {
		size_t len;
		uint8_t *stored = support_hex(blocks[i], &len);
		int r = decode(stored, len, RUN_LEN, &digest);

		/* LZ4 lets an offset of 0 pass as bytes of its choice: the digest refuses those. */
		cr_assert(r == -DS_E_MALFORMED || r == -DS_E_CORRUPT, "%zu: %d", i, r);
		free(stored);
	}
}

Test(chunk, G08_a_bomb_stays_within_the_claimed_length)
{
	/* About 255 times: 4 MiB and 16 bytes of zeros from 16 KiB. */
	size_t n = (DS_CHUNK_MAX - 20) / 255, len = 0;
	uint8_t *stored = malloc(n + 32);
	struct ds_digest digest = support_digest_of("");

	stored[len++] = 0x1f;
	stored[len++] = 0;
	stored[len++] = 1;
	stored[len++] = 0;
	memset(stored + len, 255, n);
	len += n;
	stored[len++] = 100;
	stored[len++] = 0x50;
	memset(stored + len, 0, 5);
	len += 5;
	cr_assert_eq(decode(stored, len, DS_CHUNK_MAX, &digest), -DS_E_MALFORMED);
	cr_assert_eq(decode(stored, len, len + 1, &digest), -DS_E_MALFORMED);
	free(stored);
}

Test(chunk, A14_no_truncation_and_no_flipped_bit_passes)
{
	uint8_t raw[3000], whole[3000];
	struct ds_prng prng = {.state = 3};
	struct ds_digest digest;
	size_t len;

	support_fill(&prng, raw, sizeof(raw));
	for (size_t i = 0; i < sizeof(raw); i++)
		raw[i] = i % 100 < 60 ? 'x' : (uint8_t)(raw[i] & 15);
	cr_assert_eq(ds_digest_of(raw, sizeof(raw), &digest), 0);
	len = ds_chunk_encode(raw, sizeof(raw), whole);
	cr_assert_lt(len, sizeof(raw));
	for (size_t n = 0; n < len; n++) {
		uint8_t *part = support_copy(whole, n);

		cr_assert_neq(decode(part, n, sizeof(raw), &digest), 0, "first %zu bytes", n);
		free(part);
	}
	for (size_t bit = 0; bit < 8 * len; bit++) {
		uint8_t *part = support_copy(whole, len);
		int r;

		part[bit / 8] ^= (uint8_t)(1u << bit % 8);
		r = decode(part, len, sizeof(raw), &digest);
		/* Another block may say the same: then the bytes are right (decode has looked). */
		cr_assert(r == 0 || r == -DS_E_MALFORMED || r == -DS_E_CORRUPT, "bit %zu: %d", bit,
			  r);
		free(part);
	}
}
