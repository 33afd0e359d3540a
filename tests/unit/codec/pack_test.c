#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <string.h>

#include "codec/pack.h"
#include "codec_support.h"
#include "util/bytes.h"
#include "util/error.h"

TestSuite(pack, .fini = test_leaks_abort);

/* The bytes and ids here were computed from schema/README.md by another program: a manifest pack of
 * three chunks, 1,000 times 'a' as 14 bytes of LZ4, "one" and "two"; its 16 random bytes are 0..15. */
#define RUN_DIGEST "41edece42d63e8d9bf515a9ba6932e1c20cbc9f5a5d134645adb5db1b9737ea3"
#define ONE_DIGEST "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
#define TWO_DIGEST "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3"
#define NONCE	   "000102030405060708090a0b0c0d0e0f"
#define TABLE_BODY                               \
	"0100000003000000" RUN_DIGEST "e8030000" \
	"0e000000" ONE_DIGEST "03000000"         \
	"03000000" TWO_DIGEST "03000000"         \
	"03000000"
static const char table_hex[] = "64736673746f6331" NONCE TABLE_BODY;
static const char id_hex[] = "0fd2b65d0609fd05b36b501c8268ffd1e4f6c32cf011dbf51913320650647660";

#define TABLE_LEN	152u
#define TABLE_HEAD_LEN	32u
#define TABLE_ENTRY_LEN 40u

static struct ds_digest id_of(const void *table, size_t len)
{
	struct ds_digest id;

	cr_assert_eq(ds_digest_of(table, len, &id), 0);
	return id;
}

/* Parses a copy of exactly this size with the id that it has: what a writer with a grudge can do. */
static int parse(const void *table, size_t len, struct ds_pack_toc **ret_toc)
{
	struct ds_digest id = id_of(table, len);
	uint8_t *copy = support_copy(table, len);
	int r = ds_pack_toc_parse(copy, len, &id, ret_toc);

	free(copy);
	return r;
}

static void expect_malformed(const void *table, size_t len, const char *what, size_t i)
{
	struct ds_pack_toc *toc = NULL;

	cr_assert_eq(parse(table, len, &toc), -DS_E_MALFORMED, "%s %zu", what, i);
	cr_assert_null(toc);
}

Test(pack, a_table_made_by_another_program_is_read)
{
	struct ds_pack_toc *toc = NULL;
	struct ds_digest id;
	size_t len;
	uint8_t *table = support_hex(table_hex, &len);

	cr_assert_eq(ds_digest_parse(id_hex, &id), 0);
	cr_assert_eq(ds_pack_toc_parse(table, len, &id, &toc), 0);
	cr_assert_eq(toc->kind, DS_PACK_MANIFEST);
	cr_assert_eq(toc->chunks_n, 3);
	cr_assert_eq(toc->object_len_bytes, 188);
	cr_assert_eq(toc->raw_len_bytes, 1006);
	support_digest_is(&toc->entries[0].digest, RUN_DIGEST);
	support_digest_is(&toc->entries[1].digest, ONE_DIGEST);
	support_digest_is(&toc->entries[2].digest, TWO_DIGEST);
	cr_assert_eq(toc->entries[0].stored_off, 8);
	cr_assert_eq(toc->entries[1].stored_off, 22);
	cr_assert_eq(toc->entries[2].stored_off, 25);
	cr_assert_eq(toc->entries[0].stored_len_bytes, 14);
	cr_assert_eq(toc->entries[0].raw_len_bytes, 1000);
	cr_assert_eq(toc->entries[1].raw_off, 1000);
	cr_assert_eq(toc->entries[2].raw_off, 1003);
	ds_free(toc);
	free(table);
}

Test(pack, a_pack_is_written_as_the_format_says)
{
	size_t run_len, len;
	uint8_t *run = support_hex("1f610100ffffffd2506161616161", &run_len), *table;
	struct ds_digest run_digest, one = support_digest_of("one"), two = support_digest_of("two");
	struct ds_pack_writer *writer = NULL;
	struct ds_digest id;
	struct ds_buf object;
	uint64_t off;
	uint32_t ordinal;

	cr_assert_eq(ds_digest_parse(RUN_DIGEST, &run_digest), 0);
	cr_assert_eq(ds_pack_writer_new(DS_PACK_MANIFEST, NULL, &writer), 0);
	cr_assert_eq(ds_pack_writer_len_bytes(writer), 8 + TABLE_HEAD_LEN + 8);
	cr_assert_eq(ds_pack_writer_add(writer, &run_digest, run, 14, 1000, &ordinal, &off), 0);
	cr_assert_eq(ordinal, 0);
	cr_assert_eq(off, 8);
	cr_assert_eq(ds_pack_writer_add(writer, &one, "one", 3, 3, &ordinal, &off), 0);
	cr_assert_eq(ordinal, 1);
	cr_assert_eq(off, 22);
	cr_assert_eq(ds_pack_writer_add(writer, &two, "two", 3, 3, &ordinal, &off), 0);
	cr_assert_eq(ordinal, 2);
	cr_assert_eq(off, 25);
	cr_assert_eq(ds_pack_writer_chunks_n(writer), 3);
	cr_assert_eq(ds_pack_writer_raw_bytes(writer), 1006);
	cr_assert_eq(ds_pack_writer_len_bytes(writer), 188);
	cr_assert_eq(ds_pack_writer_close(writer, &id, &object), 0);
	cr_assert_null(ds_pack_writer_free(writer));

	/* All but the random bytes is as computed elsewhere. */
	cr_assert_eq(object.len_bytes, 188);
	support_bytes_are(object.data, 28,
			  "6473667370616b31"
			  "1f610100ffffffd2506161616161"
			  "6f6e6574776f");
	table = support_hex(table_hex, &len);
	memcpy(table + 8, object.data + 28 + 8, 16);
	cr_assert_arr_eq(object.data + 28, table, TABLE_LEN);
	support_bytes_are(object.data + 180, 8, "9800000000000000");
	run_digest = id_of(object.data + 28, TABLE_LEN);
	cr_assert(ds_digest_equal(&run_digest, &id));
	free(table);
	free(run);
	ds_buf_release(&object);
}

Test(pack, two_packs_of_the_same_chunks_have_different_ids)
{
	struct ds_digest one = support_digest_of("one"), ids[2];

	for (int i = 0; i < 2; i++) {
		struct ds_pack_writer *writer = NULL;
		struct ds_buf object;
		uint32_t ordinal;
		uint64_t off;

		cr_assert_eq(ds_pack_writer_new(DS_PACK_DATA, NULL, &writer), 0);
		cr_assert_eq(ds_pack_writer_add(writer, &one, "one", 3, 3, &ordinal, &off), 0);
		cr_assert_eq(ds_pack_writer_close(writer, &ids[i], &object), 0);
		ds_pack_writer_free(writer);
		ds_buf_release(&object);
	}
	cr_assert_not(ds_digest_equal(&ids[0], &ids[1]));
}

Test(pack, an_object_is_aligned_and_its_memory_serves_the_next)
{
	struct ds_buf object = {0}, none = DS_BUF_INIT(100);
	struct ds_digest one = support_digest_of("one"), id;
	uint8_t *chunk = calloc(1, DS_CHUNK_MAX), *memory = NULL;
	uint32_t ordinal;
	uint64_t off;

	for (int i = 0; i < 3; i++) {
		struct ds_pack_writer *writer = NULL;

		cr_assert_eq(ds_pack_writer_new(DS_PACK_DATA, &object, &writer), 0);
		cr_assert_null(object.data, "it was taken");
		for (int j = 0; j < 8; j++)
			cr_assert_eq(ds_pack_writer_add(writer, &one, chunk,
							(uint32_t)DS_CHUNK_MAX - 100, DS_CHUNK_MAX,
							&ordinal, &off),
				     0);
		cr_assert_eq(ordinal, 7);
		cr_assert_eq(off, 8 + 7 * (DS_CHUNK_MAX - 100));
		cr_assert_eq(ds_pack_writer_close(writer, &id, &object), 0);
		ds_pack_writer_free(writer);
		cr_assert_eq((uintptr_t)object.data % DS_PACK_ALIGN, 0);
		cr_assert(i == 0 || object.data == memory, "the same memory");
		cr_assert_arr_eq(object.data, "dsfspak1", 8);
		memory = object.data;
	}
	/* What has grown by somebody else's rules is left alone. */
	cr_assert_eq(ds_buf_append_str(&none, "x"), 0);
	{
		struct ds_pack_writer *writer = NULL;

		cr_assert_eq(ds_pack_writer_new(DS_PACK_DATA, &none, &writer), 0);
		ds_pack_writer_free(writer);
	}
	cr_assert_str_eq(ds_buf_str(&none), "x");
	ds_buf_release(&none);
	ds_buf_release(&object);
	free(chunk);
}

/* Random chunks in, out through the table and ds_chunk_decode. */
Test(pack, what_was_packed_is_found_again)
{
	struct ds_prng prng = {.state = support_seed()};
	static uint8_t raw[20000], stored[20000], back[20000];
	struct ds_pack_writer *writer = NULL;
	uint32_t chunks_n = 300, ordinal;
	struct ds_pack_toc *toc = NULL;
	struct ds_digest id, digest;
	uint64_t off, len, raw_off = 0, start = prng.state;
	struct ds_buf object;

	cr_assert_eq(ds_pack_writer_new(DS_PACK_DATA, NULL, &writer), 0);
	for (int pass = 0; pass < 2; pass++) {
		prng.state = start;
		for (uint32_t i = 0; i < chunks_n; i++) {
			size_t n = 1 + ds_prng_below(&prng, sizeof(raw));
			uint8_t mask = ds_prng_below(&prng, 2) ? 3 : 255;

			support_fill(&prng, raw, n);
			for (size_t j = 0; j < n; j++)
				raw[j] &= mask;
			cr_assert_eq(ds_digest_of(raw, n, &digest), 0);
			if (pass == 0) {
				size_t m = ds_chunk_encode(raw, n, stored);

				cr_assert_eq(ds_pack_writer_add(writer, &digest, stored,
								(uint32_t)m, (uint32_t)n, &ordinal,
								&off),
					     0);
				cr_assert_eq(ordinal, i);
				continue;
			}
			cr_assert_eq(toc->entries[i].raw_len_bytes, n);
			cr_assert_eq(toc->entries[i].raw_off, raw_off);
			raw_off += n;
			cr_assert_eq(ds_chunk_decode(object.data + toc->entries[i].stored_off,
						     toc->entries[i].stored_len_bytes, n,
						     &toc->entries[i].digest, back),
				     0);
			cr_assert_arr_eq(back, raw, n);
		}
		if (pass == 1)
			break;
		len = ds_pack_writer_len_bytes(writer);
		cr_assert_eq(ds_pack_writer_close(writer, &id, &object), 0);
		cr_assert_eq(object.len_bytes, len);
		cr_assert_eq(ds_pack_toc_locate(object.data, len, len, &off, &len), 0);
		cr_assert_eq(ds_pack_toc_parse(object.data + off, len, &id, &toc), 0);
		cr_assert_eq(toc->chunks_n, chunks_n);
		cr_assert_eq(toc->object_len_bytes, object.len_bytes);
	}
	cr_assert_eq(toc->raw_len_bytes, raw_off);
	ds_free(toc);
	ds_pack_writer_free(writer);
	ds_buf_release(&object);
}

Test(pack, an_empty_pack_is_read)
{
	struct ds_pack_writer *writer = NULL;
	struct ds_pack_toc *toc = NULL;
	struct ds_digest id;
	struct ds_buf object;
	uint64_t off, len;

	cr_assert_eq(ds_pack_writer_new(DS_PACK_DATA, NULL, &writer), 0);
	cr_assert_eq(ds_pack_writer_close(writer, &id, &object), 0);
	cr_assert_eq(ds_pack_toc_locate(object.data, object.len_bytes, object.len_bytes, &off,
					&len),
		     0);
	cr_assert_eq(ds_pack_toc_parse(object.data + off, len, &id, &toc), 0);
	cr_assert_eq(toc->chunks_n, 0);
	cr_assert_eq(toc->object_len_bytes, object.len_bytes);
	ds_free(toc);
	ds_pack_writer_free(writer);
	ds_buf_release(&object);
}

Test(pack, a_table_of_another_id_is_corrupt)
{
	struct ds_pack_toc *toc = NULL;
	size_t len;
	uint8_t *table = support_hex(table_hex, &len);
	struct ds_digest id = id_of(table, len);

	for (size_t bit = 0; bit < 8 * len; bit++) {
		table[bit / 8] ^= (uint8_t)(1u << bit % 8);
		cr_assert_eq(ds_pack_toc_parse(table, len, &id, &toc), -DS_E_CORRUPT);
		table[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	for (size_t n = 0; n < len; n++)
		cr_assert_eq(ds_pack_toc_parse(table, n, &id, &toc), -DS_E_CORRUPT);
	cr_assert_null(toc);
	free(table);
}

Test(pack, every_truncation_and_every_extension_of_a_table_is_malformed)
{
	uint8_t more[TABLE_LEN + 50] = {0};
	size_t len;
	uint8_t *table = support_hex(table_hex, &len);

	memcpy(more, table, len);
	for (size_t n = 0; n <= sizeof(more); n++)
		if (n != len)
			expect_malformed(more, n, "length", n);
	free(table);
}

Test(pack, numbers_out_of_range_in_a_table_are_malformed)
{
	static const struct {
		size_t off;
		uint32_t value;
	} bad[] = {
		{0, 0x66736465}, /* magic */
		{4, 0x32636f74}, /* "toc2" */
		{24, 2},	 /* kind */
		{24, UINT32_MAX},
		{28, 2}, /* count: one less, one more ... */
		{28, 4},
		{28, 0},
		{28, UINT32_MAX},
		{28, 0x20000003}, /* ... times 40 is 120 modulo 2^32 */
		{28, (1u << 20) + 1},
		{64, 0}, /* raw length of the first */
		{64, DS_CHUNK_MAX + 1},
		{64, UINT32_MAX},
		{64, 13}, /* below the stored length */
		{68, 0},  /* stored length of the first */
		{68, 1001},
		{68, UINT32_MAX},
		{148, 4}, /* of the last */
	};

	for (size_t i = 0; i < DS_ARRAY_SIZE(bad); i++) {
		size_t len;
		uint8_t *table = support_hex(table_hex, &len);

		ds_put_le32(table + bad[i].off, bad[i].value);
		expect_malformed(table, len, "case", i);
		free(table);
	}
}

/* Chunks that together pass the largest pack; one fewer does not. */
Test(pack, a_table_of_more_than_a_GiB_is_malformed)
{
	uint32_t chunks_n = 256;
	size_t len = TABLE_HEAD_LEN + chunks_n * TABLE_ENTRY_LEN;
	uint8_t *table = calloc(1, len);
	struct ds_pack_toc *toc = NULL;

	memcpy(table, "dsfstoc1", 8);
	ds_put_le32(table + 28, chunks_n);
	for (uint32_t i = 0; i < chunks_n; i++) {
		ds_put_le32(table + TABLE_HEAD_LEN + i * TABLE_ENTRY_LEN + 32, DS_CHUNK_MAX);
		ds_put_le32(table + TABLE_HEAD_LEN + i * TABLE_ENTRY_LEN + 36, DS_CHUNK_MAX);
	}
	expect_malformed(table, len, "chunks", chunks_n);
	/* The last one shorter, so that all of the object is exactly 1 GiB. */
	ds_put_le32(table + len - 4, (uint32_t)(DS_CHUNK_MAX - 8 - len - 8));
	cr_assert_eq(parse(table, len, &toc), 0);
	cr_assert_eq(toc->object_len_bytes, DS_PACK_MAX);
	cr_assert_eq(toc->raw_len_bytes, DS_PACK_MAX);
	ds_free(toc);
	ds_put_le32(table + len - 4, (uint32_t)(DS_CHUNK_MAX - 8 - len - 8) + 1);
	expect_malformed(table, len, "one byte more", 1);
	free(table);
}

Test(pack, the_table_is_located_from_the_end)
{
	uint8_t tail[40] = {0};
	uint64_t off = 77, len = 77;
	static const uint64_t bad[] = {
		0,	    31,		188 - 16 + 1,	   1000,
		UINT32_MAX, UINT64_MAX, UINT64_C(1) << 63, UINT64_MAX - 15,
	};

	ds_put_le64(tail + 32, TABLE_LEN);
	/* The last 8 bytes are enough. */
	for (size_t n = 8; n <= sizeof(tail); n++) {
		uint8_t *copy = support_copy(tail + sizeof(tail) - n, n);

		off = len = 0;
		cr_assert_eq(ds_pack_toc_locate(copy, n, 188, &off, &len), 0);
		cr_assert_eq(off, 28);
		cr_assert_eq(len, TABLE_LEN);
		free(copy);
	}
	for (size_t n = 0; n < 8; n++)
		cr_assert_eq(ds_pack_toc_locate(tail, n, 188, &off, &len), -DS_E_MALFORMED);
	for (size_t i = 0; i < DS_ARRAY_SIZE(bad); i++) {
		ds_put_le64(tail + 32, bad[i]);
		cr_assert_eq(ds_pack_toc_locate(tail, 40, 188, &off, &len), -DS_E_MALFORMED, "%zu",
			     i);
	}
	/* A table longer than any, although the object has room for it. */
	ds_put_le64(tail + 32, 32 + (1u << 20) * 40ull + 1);
	cr_assert_eq(ds_pack_toc_locate(tail, 40, DS_PACK_MAX, &off, &len), -DS_E_MALFORMED);
	ds_put_le64(tail + 32, 32 + (1u << 20) * 40ull);
	cr_assert_eq(ds_pack_toc_locate(tail, 40, DS_PACK_MAX, &off, &len), 0);
	/* Objects too short, shorter than the tail, or larger than any. */
	ds_put_le64(tail + 32, 32);
	for (uint64_t n = 0; n < 48; n++)
		cr_assert_eq(ds_pack_toc_locate(tail, 40, n, &off, &len), -DS_E_MALFORMED);
	cr_assert_eq(ds_pack_toc_locate(tail, 40, 48, &off, &len), 0);
	cr_assert_eq(off, 8);
	cr_assert_eq(ds_pack_toc_locate(tail, 40, DS_PACK_MAX + 1, &off, &len), -DS_E_MALFORMED);
	cr_assert_eq(ds_pack_toc_locate(tail, 40, UINT64_MAX, &off, &len), -DS_E_MALFORMED);
}

Test(pack, keys_are_as_the_format_says)
{
	char key[DS_PACK_KEY_MAX];
	struct ds_digest id;

	cr_assert_eq(ds_digest_parse(id_hex, &id), 0);
	cr_assert_str_eq(ds_pack_key(&id, key), "packs/0f/0fd2b65d0609fd05b36b501c8268ffd1e4f6c32cf"
						"011dbf51913320650647660");
	cr_assert_str_eq(ds_pack_moved_key(&id, key),
			 "packs/0f/0fd2b65d0609fd05b36b501c8268ffd1e4f6c32cf"
			 "011dbf51913320650647660.moved");
}

Test(pack, a_chunk_of_impossible_length_is_a_wrong_call, .signal = SIGABRT)
{
	struct ds_pack_writer *writer = NULL;
	struct ds_digest one = support_digest_of("one");
	uint32_t ordinal;
	uint64_t off;

	cr_assert_eq(ds_pack_writer_new(DS_PACK_DATA, NULL, &writer), 0);
	ds_pack_writer_add(writer, &one, "one", 3, 2, &ordinal, &off);
}

/* Every allocation in turn; what was added before a failure is still there after it. */
Test(pack, J01_a_writer_survives_every_failed_allocation)
{
	static uint8_t chunk[3000];
	struct ds_digest digest;
	uint64_t failed_n = 0;

	cr_assert_eq(ds_digest_of(chunk, sizeof(chunk), &digest), 0);
	for (int64_t n = 0;; n++) {
		struct ds_pack_writer *writer = NULL;
		struct ds_pack_toc *toc = NULL;
		struct ds_buf object;
		struct ds_digest id;
		uint64_t off, len;
		uint32_t ordinal;
		int r;

		ds_mem_fail_after(n, 0);
		r = ds_pack_writer_new(DS_PACK_DATA, NULL, &writer);
		for (uint32_t i = 0; i < 50 && r == 0; i++) {
			r = ds_pack_writer_add(writer, &digest, chunk, sizeof(chunk), sizeof(chunk),
					       &ordinal, &off);
			if (r == -ENOMEM)
				r = ds_pack_writer_add(writer, &digest, chunk, sizeof(chunk),
						       sizeof(chunk), &ordinal, &off);
			if (r == 0)
				cr_assert_eq(ordinal, i);
		}
		if (r == 0)
			r = ds_pack_writer_close(writer, &id, &object);
		if (r == -ENOMEM && writer)
			r = ds_pack_writer_close(writer, &id, &object);
		failed_n = ds_mem_fail_after(-1, 0);
		if (r == 0) {
			cr_assert_eq(ds_pack_toc_locate(object.data, object.len_bytes,
							object.len_bytes, &off, &len),
				     0);
			cr_assert_eq(ds_pack_toc_parse(object.data + off, len, &id, &toc), 0);
			cr_assert_eq(toc->chunks_n, 50);
			cr_assert_eq(toc->object_len_bytes, object.len_bytes);
			ds_free(toc);
			ds_buf_release(&object);
		} else {
			cr_assert_eq(r, -ENOMEM);
		}
		ds_pack_writer_free(writer);
		if (!failed_n) {
			cr_assert_geq(n, 10);
			break;
		}
	}
}

Test(pack, J01_parsing_without_memory_is_an_error)
{
	struct ds_pack_toc *toc = NULL;
	size_t len;
	uint8_t *table = support_hex(table_hex, &len);
	struct ds_digest id = id_of(table, len);

	ds_mem_fail_after(0, 0);
	cr_assert_eq(ds_pack_toc_parse(table, len, &id, &toc), -ENOMEM);
	cr_assert_eq(ds_mem_fail_after(-1, 0), 1);
	cr_assert_null(toc);
	free(table);
}

/* The whole limit of chunks, then one more; of the smallest chunks, so that memory stays small. */
Test(pack, a_writer_refuses_one_chunk_too_many, .timeout = 60)
{
	struct ds_digest digest = support_digest_of("x");
	struct ds_pack_writer *writer = NULL;
	struct ds_buf object;
	struct ds_digest id;
	uint32_t ordinal;
	uint64_t off;

	cr_assert_eq(ds_pack_writer_new(DS_PACK_DATA, NULL, &writer), 0);
	for (uint32_t i = 0; i < DS_PACK_CHUNKS_MAX; i++)
		if (ds_pack_writer_add(writer, &digest, "x", 1, 1, &ordinal, &off) != 0)
			cr_assert_fail("chunk %u", i);
	cr_assert_eq(ds_pack_writer_add(writer, &digest, "x", 1, 1, &ordinal, &off), -DS_E_LIMIT);
	cr_assert_eq(ds_pack_writer_close(writer, &id, &object), 0);
	ds_pack_writer_free(writer);
	ds_buf_release(&object);
}
