#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <string.h>

#include "codec/pack.h"
#include "codec_support.h"
#include "util/bytes.h"
#include "util/error.h"

TestSuite(pack_moved, .fini = test_leaks_abort);

/* Computed from schema/README.md by another program: the table of pack_test.c; its chunk 0 went to
 * ordinal 7 of "pack 1", chunk 1 is gone, chunk 2 went to the last ordinal of "pack 2". */
static const char table_hex[] =
	"64736673746f6331000102030405060708090a0b0c0d0e0f0100000003000000"
	"41edece42d63e8d9bf515a9ba6932e1c20cbc9f5a5d134645adb5db1b9737ea3e80300000e000000"
	"7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed0300000003000000"
	"3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f30300000003000000";
static const char note_hex[] =
	"647366736d6f763198000000"
	"64736673746f6331000102030405060708090a0b0c0d0e0f0100000003000000"
	"41edece42d63e8d9bf515a9ba6932e1c20cbc9f5a5d134645adb5db1b9737ea3e80300000e000000"
	"7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed0300000003000000"
	"3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f30300000003000000"
	"02000000"
	"be955617dac3a89aee7058a1cca9ef93617148273b677c694b3bbf87367ef35d"
	"885d1cb8b13fda1c5639f283815cc61320afeac4e5736ce80dca3760c6bcbca5"
	"0100000007000000000000000000000002000000ffff0f00"
	"cf0d1129281e8b17dd28d103828856a8b6a6b4a76fee4cb27d3baa6a54e092be";
static const char id_hex[] = "0fd2b65d0609fd05b36b501c8268ffd1e4f6c32cf011dbf51913320650647660";

#define TABLE_LEN   152u
#define TABLE_OFF   12u
#define IDS_N_OFF   (TABLE_OFF + TABLE_LEN)
#define TARGETS_OFF (IDS_N_OFF + 4 + 64)
#define NOTE_LEN    288u

static struct ds_digest old_id(void)
{
	struct ds_digest id;

	cr_assert_eq(ds_digest_parse(id_hex, &id), 0);
	return id;
}

/* Parses a copy of exactly this size. */
static int parse(const void *note, size_t len, const struct ds_digest *id,
		 struct ds_pack_moved *ret_moved)
{
	uint8_t *copy = support_copy(note, len);
	int r = ds_pack_moved_parse(copy, len, id, ret_moved);

	free(copy);
	return r;
}

/* With the sum at the end made right again: what a writer with a grudge can do. */
static void expect_error(uint8_t *note, size_t len, int error, const char *what, size_t i)
{
	struct ds_pack_moved moved = {0};
	struct ds_digest id = old_id(), sum;

	cr_assert_eq(ds_digest_of(note, len - 32, &sum), 0);
	memcpy(note + len - 32, sum.bytes, 32);
	cr_assert_eq(parse(note, len, &id, &moved), error, "%s %zu", what, i);
	cr_assert_null(moved.toc);
	cr_assert_null(moved.targets);
}

Test(pack_moved, a_note_made_by_another_program_is_read)
{
	struct ds_digest id = old_id(), first = support_digest_of("pack 1"),
			 second = support_digest_of("pack 2");
	struct ds_pack_moved moved = {0};
	size_t len;
	uint8_t *note = support_hex(note_hex, &len);

	cr_assert_eq(len, NOTE_LEN);
	cr_assert_eq(parse(note, len, &id, &moved), 0);
	cr_assert_eq(moved.toc->chunks_n, 3);
	cr_assert_eq(moved.toc->kind, DS_PACK_MANIFEST);
	cr_assert_eq(moved.toc->entries[2].stored_off, 25);
	cr_assert(ds_digest_equal(&moved.targets[0].pack, &first));
	cr_assert_eq(moved.targets[0].ordinal, 7);
	cr_assert(ds_digest_is_zero(&moved.targets[1].pack));
	cr_assert(ds_digest_equal(&moved.targets[2].pack, &second));
	cr_assert_eq(moved.targets[2].ordinal, 0xfffff);
	ds_pack_moved_release(&moved);
	cr_assert_null(moved.toc);
	ds_pack_moved_release(&moved);
	free(note);
}

Test(pack_moved, a_note_is_written_as_the_format_says)
{
	struct ds_pack_moved_to targets[3] = {{.ordinal = 7},
					      {.ordinal = 99},
					      {.ordinal = 0xfffff}};
	struct ds_buf buf = DS_BUF_INIT(DS_MIB(1));
	size_t len;
	uint8_t *table = support_hex(table_hex, &len);

	targets[0].pack = support_digest_of("pack 1");
	targets[2].pack = support_digest_of("pack 2");
	cr_assert_eq(ds_buf_append_str(&buf, "before"), 0);
	cr_assert_eq(ds_pack_moved_encode(table, len, targets, &buf), 0);
	cr_assert_eq(buf.len_bytes, 6 + NOTE_LEN);
	support_bytes_are(buf.data + 6, NOTE_LEN, note_hex);
	ds_buf_release(&buf);
	free(table);
}

/* A pack of 200 chunks that went to 5 packs, in any order. */
Test(pack_moved, what_was_written_is_read)
{
	struct ds_prng prng = {.state = support_seed()};
	struct ds_pack_moved_to targets[200];
	struct ds_buf buf = DS_BUF_INIT(DS_MIB(1)), object;
	struct ds_pack_writer *writer = NULL;
	struct ds_digest id, one = support_digest_of("one"), packs[5];
	struct ds_pack_moved moved = {0};
	uint64_t off, len;

	cr_assert_eq(ds_pack_writer_new(DS_PACK_DATA, NULL, &writer), 0);
	support_fill(&prng, packs[0].bytes, sizeof(packs));
	for (int i = 0; i < 200; i++) {
		size_t pack = (size_t)ds_prng_below(&prng, 6);
		uint32_t ordinal;

		cr_assert_eq(ds_pack_writer_add(writer, &one, "one", 3, 3, &ordinal, &off), 0);
		targets[i] = (struct ds_pack_moved_to){0};
		if (pack == 5)
			continue;
		targets[i].pack = packs[pack];
		targets[i].ordinal = (uint32_t)ds_prng_below(&prng, DS_PACK_CHUNKS_MAX);
	}
	cr_assert_eq(ds_pack_writer_close(writer, &id, &object), 0);
	cr_assert_eq(ds_pack_toc_locate(object.data, object.len_bytes, object.len_bytes, &off,
					&len),
		     0);
	cr_assert_eq(ds_pack_moved_encode(object.data + off, len, targets, &buf), 0);
	cr_assert_eq(buf.len_bytes, 12 + len + 4 + 5 * 32 + 200 * 8 + 32);
	cr_assert_eq(parse(buf.data, buf.len_bytes, &id, &moved), 0);
	cr_assert_eq(moved.toc->object_len_bytes, object.len_bytes);
	for (int i = 0; i < 200; i++) {
		cr_assert(ds_digest_equal(&moved.targets[i].pack, &targets[i].pack));
		cr_assert_eq(moved.targets[i].ordinal, targets[i].ordinal);
	}
	ds_pack_moved_release(&moved);
	ds_pack_writer_free(writer);
	ds_buf_release(&buf);
	ds_buf_release(&object);
}

Test(pack_moved, A14_every_flipped_bit_and_every_truncation_is_seen)
{
	struct ds_pack_moved moved = {0};
	struct ds_digest id = old_id();
	size_t len;
	uint8_t *note = support_hex(note_hex, &len);

	for (size_t bit = 0; bit < 8 * len; bit++) {
		note[bit / 8] ^= (uint8_t)(1u << bit % 8);
		cr_assert_eq(parse(note, len, &id, &moved), -DS_E_CORRUPT);
		note[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	for (size_t n = 0; n < len; n++)
		cr_assert_eq(parse(note, n, &id, &moved), n < 32 ? -DS_E_MALFORMED : -DS_E_CORRUPT);
	free(note);
}

Test(pack_moved, A15_the_note_of_another_pack_is_corrupt)
{
	struct ds_pack_moved moved = {0};
	struct ds_digest other = support_digest_of("another pack");
	size_t len;
	uint8_t *note = support_hex(note_hex, &len);

	cr_assert_eq(parse(note, len, &other, &moved), -DS_E_CORRUPT);
	cr_assert_null(moved.toc);
	free(note);
}

Test(pack_moved, every_shorter_or_longer_note_with_a_right_sum_is_refused)
{
	uint8_t part[NOTE_LEN + 40];
	size_t len;
	uint8_t *note = support_hex(note_hex, &len);

	for (size_t n = 32; n <= sizeof(part); n++) {
		if (n == len)
			continue;
		memset(part, 0, sizeof(part));
		memcpy(part, note, DS_MIN(n, len) - 32);
		expect_error(part, n, -DS_E_MALFORMED, "length", n);
	}
	free(note);
}

Test(pack_moved, numbers_out_of_range_are_malformed)
{
	static const struct {
		size_t off;
		uint32_t value;
		int error;
	} bad[] = {
		{0, 0x66736465, -DS_E_MALFORMED}, /* magic */
		{8, 0, -DS_E_MALFORMED},	  /* length of the table */
		{8, UINT32_MAX, -DS_E_MALFORMED},
		{IDS_N_OFF, 0, -DS_E_MALFORMED}, /* number of packs */
		{IDS_N_OFF, 1, -DS_E_MALFORMED},
		{IDS_N_OFF, 3, -DS_E_MALFORMED},
		{IDS_N_OFF, UINT32_MAX, -DS_E_MALFORMED},
		{IDS_N_OFF, 0x08000002, -DS_E_MALFORMED}, /* times 32 is 64 modulo 2^32 */
		{TARGETS_OFF, 3, -DS_E_MALFORMED},	  /* pack number of chunk 0 */
		{TARGETS_OFF, UINT32_MAX, -DS_E_MALFORMED},
		{TARGETS_OFF + 4, 1u << 20, -DS_E_MALFORMED}, /* ordinal there */
		{TARGETS_OFF + 4, UINT32_MAX, -DS_E_MALFORMED},
		{TARGETS_OFF + 12, 1u << 20, -DS_E_MALFORMED}, /* of the chunk that is gone */
		{TABLE_OFF + 8, 1, -DS_E_CORRUPT},	       /* another table is another pack */
		{TABLE_OFF + 28, 2, -DS_E_CORRUPT},
	};

	for (size_t i = 0; i < DS_ARRAY_SIZE(bad); i++) {
		size_t len;
		uint8_t *note = support_hex(note_hex, &len);

		ds_put_le32(note + bad[i].off, bad[i].value);
		expect_error(note, len, bad[i].error, "case", i);
		free(note);
	}
}

Test(pack_moved, J01_every_failed_allocation_is_an_error)
{
	struct ds_pack_moved_to targets[3] = {{.ordinal = 7}, {.ordinal = 0}, {.ordinal = 8}};
	struct ds_buf buf = DS_BUF_INIT(DS_MIB(1));
	struct ds_pack_moved moved = {0};
	struct ds_digest id = old_id();
	size_t len, failed_n = 0;
	uint8_t *table = support_hex(table_hex, &len);
	int r;

	targets[0].pack = support_digest_of("pack 1");
	targets[2].pack = support_digest_of("pack 2");
	cr_assert_eq(ds_buf_append_str(&buf, "before"), 0);
	for (int64_t n = 0;; n++) {
		ds_mem_fail_after(n, 0);
		r = ds_pack_moved_encode(table, len, targets, &buf);
		if (!ds_mem_fail_after(-1, 0))
			break;
		cr_assert_eq(r, -ENOMEM);
		cr_assert_str_eq(ds_buf_str(&buf), "before");
		failed_n++;
	}
	cr_assert_eq(r, 0);
	cr_assert_geq(failed_n, 3);
	for (int n = 0; n < 2; n++) {
		ds_mem_fail_after(n, 0);
		r = ds_pack_moved_parse(buf.data + 6, NOTE_LEN, &id, &moved);
		cr_assert_eq(ds_mem_fail_after(-1, 0), 1);
		cr_assert_eq(r, -ENOMEM);
		cr_assert_null(moved.toc);
	}
	ds_buf_release(&buf);
	/* A buffer that is too small for the note. */
	ds_buf_init(&buf, NOTE_LEN - 1);
	cr_assert_eq(ds_pack_moved_encode(table, len, targets, &buf), -DS_E_LIMIT);
	cr_assert_eq(buf.len_bytes, 0);
	ds_buf_release(&buf);
	free(table);
}

Test(pack_moved, a_table_of_odd_length_is_a_wrong_call, .signal = SIGABRT)
{
	struct ds_pack_moved_to targets[3] = {0};
	struct ds_buf buf = DS_BUF_INIT(DS_MIB(1));
	size_t len;
	uint8_t *table = support_hex(table_hex, &len);

	ds_pack_moved_encode(table, len - 1, targets, &buf);
}
