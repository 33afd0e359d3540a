#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "codec/dedup.h"
#include "codec_support.h"
#include "util/bytes.h"
#include "util/error.h"
#include "util/mem.h"

TestSuite(dedup, .fini = test_leaks_abort);

/* Computed from schema/README.md by another program: digests of "a", "b", "c" in "pack 1" and "pack
 * 2", for "version 1", "version 2" or none; covers "covered". */
static const char object_hex[] = "6473667364757031020000000200000001000000000000000400000000000000"
				 "be955617dac3a89aee7058a1cca9ef93617148273b677c694b3bbf87367ef35d"
				 "885d1cb8b13fda1c5639f283815cc61320afeac4e5736ce80dca3760c6bcbca5"
				 "b19f8edae2ee6c225b7278b289c2823ab9accfa225c5d67c4bef270b88ea55f0"
				 "f4761aa023c3639dc371a2336ee3514ab6236bad28c5a0ebf2e52fb6e42030d1"
				 "2d3c822d9399e7ac0eac840fa8567eb0d7a376e8235d38c96529f1c40e647697"
				 "2e7d2c03a9507ae2000000000300000002000000"
				 "3e23e8160039594a010000000200000000000000"
				 "ca978112ca1bbdca000000000100000001000000"
				 "ca978112ca1bbdca010000000400000000000000";
static const char id_hex[] = "5762680595a57398df0c5c2590a8263da7fc0028e1ecabdba6faab0b4a8e2b0c";

#define HEAD_LEN   32u
#define ROW_OFF(i) (HEAD_LEN + 5 * 32 + (i)*20)
#define OBJECT_MAX DS_MIB(64)

static struct ds_digest id_of(const void *data, size_t len)
{
	struct ds_digest id;

	cr_assert_eq(ds_digest_of(data, len, &id), 0);
	return id;
}

/* With the id that these bytes have: what a writer with a grudge can do. */
static int parse(const void *data, size_t len, struct ds_dedup **ret_dedup)
{
	struct ds_digest id = id_of(data, len);

	return ds_dedup_parse(data, len, &id, ret_dedup);
}

static void add(struct ds_dedup_builder *builder, const char *digest, const char *pack,
		uint32_t ordinal, const char *version)
{
	struct ds_digest d = support_digest_of(digest), p = support_digest_of(pack), v;

	if (version)
		v = support_digest_of(version);
	cr_assert_eq(ds_dedup_builder_add(builder, &d, &p, ordinal, version ? &v : NULL), 0);
}

/* The n-th hit for a digest is this one; ordinal UINT32_MAX: there is none. */
static void expect_hit(const struct ds_dedup *dedup, const char *digest, int n, const char *pack,
		       uint32_t ordinal, const char *version)
{
	struct ds_digest d = support_digest_of(digest), p = support_digest_of(pack), v;
	struct ds_dedup_hit hit;
	size_t cursor = 0;
	bool found = true;

	for (int i = 0; i <= n && found; i++)
		found = ds_dedup_find(dedup, &d, &cursor, &hit);
	cr_assert_eq(found, ordinal != UINT32_MAX, "%s %d", digest, n);
	if (!found)
		return;
	cr_assert(ds_digest_equal(&hit.pack, &p), "%s %d", digest, n);
	cr_assert_eq(hit.ordinal, ordinal);
	cr_assert_eq(hit.has_version, version != NULL);
	v = version ? support_digest_of(version) : (struct ds_digest){0};
	cr_assert(ds_digest_equal(&hit.version, &v));
}

static void expect_none(const struct ds_dedup *dedup, const char *digest, int n)
{
	expect_hit(dedup, digest, n, "", UINT32_MAX, NULL);
}

Test(dedup, an_object_made_by_another_program_is_read)
{
	struct ds_digest id, covered = support_digest_of("covered");
	struct ds_dedup *dedup = NULL;
	size_t len;
	uint8_t *data = support_hex(object_hex, &len);

	cr_assert_eq(ds_digest_parse(id_hex, &id), 0);
	cr_assert_eq(ds_dedup_parse(data, len, &id, &dedup), 0);
	expect_hit(dedup, "a", 0, "pack 1", 1, "version 1");
	expect_hit(dedup, "a", 1, "pack 2", 4, NULL);
	expect_none(dedup, "a", 2);
	expect_hit(dedup, "b", 0, "pack 2", 2, NULL);
	expect_none(dedup, "b", 1);
	expect_hit(dedup, "c", 0, "pack 1", 3, "version 2");
	expect_none(dedup, "c", 1);
	expect_none(dedup, "d", 0);
	expect_none(dedup, "", 0);
	cr_assert_eq(ds_dedup_covers_n(dedup), 1);
	cr_assert(ds_digest_equal(ds_dedup_covered(dedup, 0), &covered));
	cr_assert_null(ds_dedup_free(dedup));
	cr_assert_null(ds_dedup_free(NULL));
	free(data);
}

/* The other program's entries in its order of ids; what it covers comes from a merge. */
Test(dedup, an_object_is_written_as_the_format_says)
{
	struct ds_digest id, covered = support_digest_of("covered"), nothing_id;
	struct ds_buf buf = DS_BUF_INIT(OBJECT_MAX), nothing = DS_BUF_INIT(OBJECT_MAX);
	struct ds_dedup_builder *builder = NULL;
	struct ds_dedup *dedup = NULL;

	cr_assert_eq(ds_dedup_builder_new(&builder), 0);
	cr_assert_eq(ds_dedup_builder_finish(builder, &nothing, &nothing_id), 0);
	ds_dedup_builder_free(builder);
	support_bytes_are(nothing.data, nothing.len_bytes,
			  "6473667364757031000000000000000000000000000000000000000000000000");
	cr_assert_eq(ds_dedup_parse(nothing.data, nothing.len_bytes, &nothing_id, &dedup), 0);
	expect_none(dedup, "a", 0);
	cr_assert_eq(ds_dedup_covers_n(dedup), 0);

	cr_assert_eq(ds_dedup_builder_new(&builder), 0);
	add(builder, "a", "pack 1", 1, "version 1");
	add(builder, "b", "pack 2", 2, NULL);
	add(builder, "c", "pack 1", 3, "version 2");
	add(builder, "a", "pack 2", 4, NULL);
	cr_assert_eq(ds_dedup_builder_merge(builder, dedup, &covered), 0);
	cr_assert_eq(ds_buf_append_str(&buf, "before"), 0);
	cr_assert_eq(ds_dedup_builder_finish(builder, &buf, &id), 0);
	support_bytes_are(buf.data + 6, buf.len_bytes - 6, object_hex);
	support_digest_is(&id, id_hex);
	cr_assert_null(ds_dedup_builder_free(builder));
	cr_assert_null(ds_dedup_builder_free(NULL));
	ds_dedup_free(dedup);
	ds_buf_release(&buf);
	ds_buf_release(&nothing);
}

Test(dedup, a_merge_keeps_what_differs_and_prefers_a_version)
{
	struct ds_digest ids[2], merged_id, again_id;
	struct ds_buf bufs[3] = {DS_BUF_INIT(OBJECT_MAX), DS_BUF_INIT(OBJECT_MAX),
				 DS_BUF_INIT(OBJECT_MAX)};
	struct ds_buf again = DS_BUF_INIT(OBJECT_MAX);
	struct ds_dedup_builder *builder = NULL;
	struct ds_dedup *dedups[2] = {0}, *merged = NULL, *twice = NULL;

	/* The writer at work, then the same with its version and something else. */
	for (int i = 0; i < 2; i++) {
		cr_assert_eq(ds_dedup_builder_new(&builder), 0);
		add(builder, "a", "pack 1", 1, i ? "version 1" : NULL);
		add(builder, "b", i ? "pack 2" : "pack 1", 2, NULL);
		add(builder, "c", "pack 1", i ? 3 : 4, "version 2");
		cr_assert_eq(ds_dedup_builder_finish(builder, &bufs[i], &ids[i]), 0);
		builder = ds_dedup_builder_free(builder);
		cr_assert_eq(ds_dedup_parse(bufs[i].data, bufs[i].len_bytes, &ids[i], &dedups[i]),
			     0);
	}
	cr_assert_eq(ds_dedup_builder_new(&builder), 0);
	for (int i = 0; i < 2; i++)
		cr_assert_eq(ds_dedup_builder_merge(builder, dedups[i], &ids[i]), 0);
	/* The same object twice makes no difference. */
	cr_assert_eq(ds_dedup_builder_merge(builder, dedups[0], &ids[0]), 0);
	cr_assert_eq(ds_dedup_builder_finish(builder, &bufs[2], &merged_id), 0);
	builder = ds_dedup_builder_free(builder);
	cr_assert_eq(ds_dedup_parse(bufs[2].data, bufs[2].len_bytes, &merged_id, &merged), 0);
	expect_hit(merged, "a", 0, "pack 1", 1, "version 1");
	expect_none(merged, "a", 1);
	expect_hit(merged, "b", 0, "pack 1", 2, NULL);
	expect_hit(merged, "b", 1, "pack 2", 2, NULL);
	expect_none(merged, "b", 2);
	expect_hit(merged, "c", 0, "pack 1", 3, "version 2");
	expect_hit(merged, "c", 1, "pack 1", 4, "version 2");
	expect_none(merged, "c", 2);
	cr_assert_eq(ds_dedup_covers_n(merged), 2);
	cr_assert(ds_digest_equal(ds_dedup_covered(merged, 0), &ids[0]));
	cr_assert(ds_digest_equal(ds_dedup_covered(merged, 1), &ids[1]));

	/* One more level covers also what the merged one covers. */
	cr_assert_eq(ds_dedup_builder_new(&builder), 0);
	cr_assert_eq(ds_dedup_builder_merge(builder, merged, &merged_id), 0);
	cr_assert_eq(ds_dedup_builder_finish(builder, &again, &again_id), 0);
	ds_dedup_builder_free(builder);
	cr_assert_eq(ds_dedup_parse(again.data, again.len_bytes, &again_id, &twice), 0);
	cr_assert_eq(ds_dedup_covers_n(twice), 3);
	cr_assert(ds_digest_equal(ds_dedup_covered(twice, 0), &merged_id));
	expect_hit(twice, "a", 0, "pack 1", 1, "version 1");
	ds_dedup_free(twice);
	ds_dedup_free(merged);
	ds_buf_release(&again);
	for (int i = 0; i < 3; i++) {
		if (i < 2)
			ds_dedup_free(dedups[i]);
		ds_buf_release(&bufs[i]);
	}
}

/* Random entries, many with equal prefixes, against a plain list. */
Test(dedup, random_entries_are_found_as_in_a_plain_list)
{
	struct ds_prng prng = {.state = support_seed()};
	enum { ENTRIES_N = 3000, DIGESTS_N = 1500 };
	static struct {
		uint32_t digest, pack, ordinal, version;
	} list[ENTRIES_N];
	static struct ds_digest digests[DIGESTS_N], packs[10], versions[4];
	struct ds_buf buf = DS_BUF_INIT(OBJECT_MAX);
	struct ds_dedup_builder *builder = NULL;
	struct ds_dedup *dedup = NULL;
	struct ds_digest id;
	size_t all_n = 0;

	support_fill(&prng, digests[0].bytes, sizeof(digests));
	support_fill(&prng, packs[0].bytes, sizeof(packs));
	support_fill(&prng, versions[0].bytes, sizeof(versions));
	/* The ends of the order, and neighbours that differ in the last byte of the prefix. */
	memset(digests[0].bytes, 0, 8);
	memset(digests[1].bytes, 255, 8);
	memcpy(digests[2].bytes, digests[3].bytes, 7);
	digests[2].bytes[7] = digests[3].bytes[7] ^ 1;
	cr_assert_eq(ds_dedup_builder_new(&builder), 0);
	for (int i = 0; i < ENTRIES_N; i++) {
		list[i].digest = (uint32_t)ds_prng_below(&prng, DIGESTS_N - 100);
		list[i].pack = (uint32_t)ds_prng_below(&prng, 10);
		/* Each its own ordinal, so that none is dropped. */
		list[i].ordinal = (uint32_t)i;
		list[i].version = (uint32_t)ds_prng_below(&prng, 5);
		cr_assert_eq(ds_dedup_builder_add(builder, &digests[list[i].digest],
						  &packs[list[i].pack], list[i].ordinal,
						  list[i].version ? &versions[list[i].version - 1]
								  : NULL),
			     0);
	}
	cr_assert_eq(ds_dedup_builder_finish(builder, &buf, &id), 0);
	cr_assert_eq(ds_dedup_parse(buf.data, buf.len_bytes, &id, &dedup), 0);
	for (uint32_t d = 0; d < DIGESTS_N; d++) {
		struct ds_dedup_hit hit;
		size_t cursor = 0, n = 0;

		while (ds_dedup_find(dedup, &digests[d], &cursor, &hit)) {
			cr_assert_lt(hit.ordinal, ENTRIES_N);
			cr_assert_eq(list[hit.ordinal].digest, d);
			cr_assert(ds_digest_equal(&hit.pack, &packs[list[hit.ordinal].pack]));
			cr_assert_eq(hit.has_version, list[hit.ordinal].version != 0);
			if (hit.has_version)
				cr_assert(
					ds_digest_equal(&hit.version,
							&versions[list[hit.ordinal].version - 1]));
			n++;
		}
		for (int i = 0; i < ENTRIES_N; i++)
			n -= list[i].digest == d;
		cr_assert_eq(n, 0, "digest %u", d);
		all_n += cursor ? 1 : 0;
	}
	cr_assert_gt(all_n, DIGESTS_N / 2);
	ds_dedup_builder_free(builder);
	ds_dedup_free(dedup);
	ds_buf_release(&buf);
}

Test(dedup, A14_every_flipped_bit_is_seen)
{
	struct ds_dedup *dedup = NULL;
	size_t len;
	uint8_t *data = support_hex(object_hex, &len);
	struct ds_digest id = id_of(data, len);

	for (size_t bit = 0; bit < 8 * len; bit++) {
		data[bit / 8] ^= (uint8_t)(1u << bit % 8);
		cr_assert_eq(ds_dedup_parse(data, len, &id, &dedup), -DS_E_CORRUPT);
		data[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	for (size_t n = 0; n < len; n++)
		cr_assert_eq(ds_dedup_parse(data, n, &id, &dedup), -DS_E_CORRUPT);
	cr_assert_null(dedup);
	free(data);
}

Test(dedup, every_truncation_and_every_extension_is_malformed)
{
	struct ds_dedup *dedup = NULL;
	size_t len;
	uint8_t *data = support_hex(object_hex, &len);

	for (size_t n = 0; n <= len + 40; n++) {
		uint8_t *part = calloc(1, n ? n : 1);

		memcpy(part, data, DS_MIN(n, len));
		if (n != len)
			cr_assert_eq(parse(part, n, &dedup), -DS_E_MALFORMED, "%zu", n);
		free(part);
	}
	cr_assert_null(dedup);
	free(data);
}

Test(dedup, numbers_out_of_range_are_malformed)
{
	static const struct {
		size_t off;
		uint64_t value;
		unsigned width;
	} bad[] = {
		{0, 0x66736465, 4}, /* magic */
		{8, 0, 4},	    /* packs */
		{8, 1, 4},
		{8, 3, 4},
		{8, UINT32_MAX, 4},
		{8, 0x08000002, 4}, /* times 32 is 64 modulo 2^32 */
		{12, 3, 4},	    /* versions */
		{12, UINT32_MAX, 4},
		{16, 0, 4}, /* covered */
		{16, UINT32_MAX, 4},
		{20, 1, 4}, /* must be zero */
		{24, 3, 8}, /* entries */
		{24, 5, 8},
		{24, 0, 8},
		{24, UINT64_MAX, 8},
		{24, 0x4000000000000004, 8}, /* times 20 is 80 modulo 2^64 */
		{ROW_OFF(0) + 8, 2, 4},	     /* pack */
		{ROW_OFF(3) + 8, UINT32_MAX, 4},
		{ROW_OFF(0) + 16, 3, 4}, /* version */
		{ROW_OFF(3) + 16, UINT32_MAX, 4},
		{ROW_OFF(1), 0, 8}, /* order */
		{ROW_OFF(1), UINT64_MAX, 8},
		{ROW_OFF(3), 0, 8},
		{ROW_OFF(0) + 4, UINT32_MAX, 4}, /* still in order, other prefix: that is fine */
	};

	for (size_t i = 0; i < DS_ARRAY_SIZE(bad); i++) {
		struct ds_dedup *dedup = NULL;
		size_t len;
		uint8_t *data = support_hex(object_hex, &len);
		bool is_fine = i == DS_ARRAY_SIZE(bad) - 1;

		if (bad[i].width == 8)
			ds_put_le64(data + bad[i].off, bad[i].value);
		else
			ds_put_le32(data + bad[i].off, (uint32_t)bad[i].value);
		cr_assert_eq(parse(data, len, &dedup), is_fine ? 0 : -DS_E_MALFORMED, "case %zu",
			     i);
		ds_dedup_free(dedup);
		free(data);
	}
}

/* Build, parse, merge, finish with each allocation failing once; what failed can be done again. */
Test(dedup, J01_every_failed_allocation_is_an_error)
{
	size_t len, failed_n = 0;
	uint8_t *data = support_hex(object_hex, &len);
	struct ds_digest id = id_of(data, len), digest = support_digest_of("a");

	for (int64_t n = 0;; n++) {
		struct ds_buf buf = DS_BUF_INIT(OBJECT_MAX);
		struct ds_dedup_builder *builder = NULL;
		struct ds_dedup *dedup = NULL, *result = NULL;
		struct ds_digest result_id;
		int r;

		ds_mem_fail_after(n, 0);
		r = ds_dedup_builder_new(&builder);
		if (r == 0)
			r = ds_dedup_parse(data, len, &id, &dedup);
		for (uint32_t i = 0; i < 100 && r == 0; i++) {
			struct ds_digest pack = {.bytes = {(uint8_t)i, 1}};

			r = ds_dedup_builder_add(builder, &digest, &pack, i, &pack);
		}
		if (r == 0)
			r = ds_dedup_builder_merge(builder, dedup, &id);
		if (r == 0)
			r = ds_dedup_builder_finish(builder, &buf, &result_id);
		if (r < 0 && dedup && builder) {
			cr_assert_eq(r, -ENOMEM);
			cr_assert_eq(buf.len_bytes, 0);
			cr_assert_eq(ds_dedup_builder_merge(builder, dedup, &id), 0);
			cr_assert_eq(ds_dedup_builder_finish(builder, &buf, &result_id), 0);
			cr_assert_eq(ds_dedup_parse(buf.data, buf.len_bytes, &result_id, &result),
				     0);
			expect_hit(result, "b", 0, "pack 2", 2, NULL);
			expect_none(result, "b", 1);
		}
		ds_dedup_free(result);
		ds_dedup_free(dedup);
		ds_dedup_builder_free(builder);
		ds_buf_release(&buf);
		if (!ds_mem_fail_after(-1, 0)) {
			cr_assert_eq(r, 0);
			break;
		}
		cr_assert_eq(r, -ENOMEM);
		failed_n++;
	}
	cr_assert_geq(failed_n, 50);
	free(data);
}
