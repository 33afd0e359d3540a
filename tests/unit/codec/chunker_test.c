#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "chunker_support.h"
#include "codec/chunker.h"
#include "codec/content.h"
#include "codec_support.h"
#include "util/error.h"

TestSuite(chunker, .fini = test_leaks_abort, .timeout = 120);

/*
 * A made-up file: segments "r1000" (random bytes, the first and the last not zero), "t1000" (random,
 * of eight values), "z1000" (zeros), "o1000" (all 1). The expected digests and lengths were computed
 * from schema/README.md by another program.
 */
struct known {
	const char *segments;
	uint64_t seed;
	const char *content_hex;
	uint64_t extents[16]; /* lengths, up to the first 0; ZEROS(n) for zeros */
};

#define ZEROS(n) ((UINT64_C(1) << 63) | (n))

static const struct known known[] = {
	{"r4194305",
	 1,
	 "c21eb7d87cd291bc0d38476765c1bfe4b35d738775fef8a0f51fa3b67e3abb97",
	 {594433, 1082237, 1363539, 1154096}},
	/* A run that is one byte too short belongs to the stretch. */
	{"r5242880 z65535 r1048576",
	 2,
	 "259597995aa79315fce0b7968761169072933e83cb1a843b74f19f9fcd177245",
	 {1201117, 1134444, 1203745, 478331, 285646, 1243319, 810389}},
	{"r5242880 z65536 r1048576",
	 2,
	 "857fe332020709c4d95208a73ac7ef7db77e9d05b605a66f90e7681e45bc8ba0",
	 {1201117, 1134444, 1203745, 478331, 285646, 939597, ZEROS(65536), 1048576}},
	{"r5242880 z65537 r1048576",
	 2,
	 "0f33763b88d0a8164655caa16990ce4fec5adb208b1f3bbbe2a6bd44b7a8a72e",
	 {1201117, 1134444, 1203745, 478331, 285646, 939597, ZEROS(65537), 1048576}},
	{"z65536 r100000 z65536 r5242880 z65535",
	 3,
	 "18a5433ffff7286b239728dd81d980f1c4a3dda0288f939c5a4ff5cc04ce0f0b",
	 {ZEROS(65536), 100000, ZEROS(65536), 1191049, 1104354, 1795511, 1059522, 157979}},
	/* Stretches around the smallest chunk. */
	{"r262144 z70000 r262145 z70000 r262143 z70000 r4194304",
	 4,
	 "9ac43e26e03eefd8e97d66092ce2ba469effe960647c1371e805f010bf78ef14",
	 {262144, ZEROS(70000), 262145, ZEROS(70000), 262143, ZEROS(70000), 1357483, 1366803,
	  1231187, 238831}},
	{"z5242880",
	 5,
	 "e2d578d18be43d822d9e5f01f44474c16fe27065b18483d6a94ee07d282f826a",
	 {ZEROS(5242880)}},
	/* What never gives a cut is cut at the largest chunk. */
	{"o9437184",
	 6,
	 "7c3c60e1ff250321fc1f58611fa893ae7d538bce89a00469c174c96722a9a85f",
	 {4194304, 4194304, 1048576}},
	{"z65535 r6291456 z65536",
	 7,
	 "74cf5d79e96027fe165114e70c9d2e5f37394064b14fe67a4b6d5eacc927c4f0",
	 {1062764, 1129997, 2285807, 1247708, 630715, ZEROS(65536)}},
	{"t7340032 z131072 t3145745",
	 9,
	 "daee729fbc013f0ff39b70d28defd0702d2ae8ed20ada64fdef884ed2bf56c35",
	 {834272, 1244566, 845668, 275892, 1110590, 495642, 1957847, 575555, ZEROS(131072), 1290607,
	  1351966, 484252, 18920}},
	{"r16777216",
	 11,
	 "20108d928aed9262f99e88216686beaebb9d9713ef7f566922986863b6f8e040",
	 {1477734, 1185919, 1015175, 1185189, 1866606, 1069550, 1165519, 1207548, 1178212, 1099951,
	  1080137, 1051719, 1792239, 401718}},
};

static void check_known(const struct known *expected)
{
	struct chunker_file file = chunker_file_of(expected->segments, expected->seed);
	struct ds_content_hasher *hasher = NULL;
	struct chunker_extents extents = {0};
	struct ds_digest digest;

	chunker_run(&file, UINT64_MAX, false, &extents);
	cr_assert_eq(ds_content_hasher_new(file.len, &hasher), 0);
	for (size_t i = 0; i < extents.n; i++)
		ds_content_hasher_extent(hasher, extents.all[i].len,
					 extents.all[i].is_zeros ? NULL : &extents.all[i].digest);
	ds_content_hasher_finish(hasher, &digest);
	for (size_t i = 0; i < extents.n; i++)
		cr_assert_eq(extents.all[i].len | (extents.all[i].is_zeros ? ZEROS(0) : 0),
			     expected->extents[i], "%s: extent %zu has %llu bytes",
			     expected->segments, i, (unsigned long long)extents.all[i].len);
	cr_assert_eq(expected->extents[extents.n], 0, "%s", expected->segments);
	support_digest_is(&digest, expected->content_hex);
	ds_content_hasher_free(hasher);
	chunker_extents_release(&extents);
	free(file.data);
}

Test(chunker, cuts_are_where_the_format_says)
{
	for (size_t i = 0; i < DS_ARRAY_SIZE(known); i++)
		check_known(&known[i]);
}

/* 1,000 runs of zeros, none long enough, at odd places; and 70 runs that are each one byte short. */
Test(chunker, many_short_runs_of_zeros_are_data)
{
	static char segments[32 * 1000];
	struct known many = {
		.segments = segments,
		.seed = 8,
		.content_hex = "fa8ebd85d95c0998d8641cf0c8dec9d815df822f9507ba5d8529f8af3c9c7032",
		.extents = {2386338, 1084635, 1249520, 1678294, 2343720, 1238437, 1015056},
	};
	struct known longer = {
		.segments = segments,
		.seed = 10,
		.content_hex = "47127f12e15d9ec14aede7be1abe2256390f68fadb417d10471348f2f3301c16",
		.extents = {4194304, 393217},
	};
	size_t len = 0;

	for (int i = 0; i < 1000; i++)
		len += (size_t)sprintf(segments + len, "r%d z%d ", 3000 + i, 4000 + 7 * i);
	check_known(&many);
	len = (size_t)sprintf(segments, "r1 ");
	for (int i = 0; i < 70; i++)
		len += (size_t)sprintf(segments + len, "z65535 r1 ");
	check_known(&longer);
}

/* `ones` bytes of 1, which never give a cut, and then these. */
static void append(struct chunker_file *file, size_t ones, const char *hex)
{
	size_t len;
	uint8_t *data = support_hex(hex, &len);

	file->data = realloc(file->data, file->len + ones + len + 1);
	memset(file->data + file->len, 1, ones);
	memcpy(file->data + file->len + ones, data, len);
	file->len += ones + len;
	free(data);
}

static void expect_lengths(struct chunker_file *file, const uint64_t *lengths)
{
	static const uint64_t pieces[] = {UINT64_MAX, 1000};

	for (size_t p = 0; p < DS_ARRAY_SIZE(pieces); p++) {
		struct chunker_extents extents = {0};

		chunker_run(file, pieces[p], false, &extents);
		for (size_t i = 0; i < extents.n; i++)
			cr_assert_eq(extents.all[i].len, lengths[i], "extent %zu: %llu", i,
				     (unsigned long long)extents.all[i].len);
		cr_assert_eq(lengths[extents.n], 0);
		chunker_extents_release(&extents);
	}
	free(file->data);
	*file = (struct chunker_file){0};
}

/* Found by trying: a hash that starts with 0 has its 22 highest bits clear after these 7 bytes; after
 * the 64 bytes it has the 18 highest clear, but not the 22, whatever came before. */
#define CUT_AFTER_7 "2546d1d173683f"
#define CUT_AFTER_64                                                       \
	"cb618540950651be8a031118820547defd0e3dfd434bb1652adc6a68ef1dd1c3" \
	"fd5bbbff33a5ef0f4162fb8231312cbe5f151f455c6b9eed8f0c77727dccd957"

Test(chunker, the_hash_starts_afresh_with_each_chunk)
{
	static const uint64_t lengths[] = {262151, 1048577, 262151, 4194304, 0};
	struct chunker_file file = {0};

	append(&file, 262144, CUT_AFTER_7);
	append(&file, 1048577 - 64, CUT_AFTER_64);
	append(&file, 262144, CUT_AFTER_7);
	append(&file, 4194304, "");
	expect_lengths(&file, lengths);
}

Test(chunker, the_wider_mask_ends_before_the_byte_at_1_MiB)
{
	static const uint64_t not_cut[] = {4194304, 1048576, 0}, cut[] = {1048577, 4194304, 0};
	struct chunker_file file = {0};

	append(&file, 1048576 - 64, CUT_AFTER_64);
	append(&file, 4194304, "");
	expect_lengths(&file, not_cut);
	append(&file, 1048577 - 64, CUT_AFTER_64);
	append(&file, 4194304, "");
	expect_lengths(&file, cut);
}

static void expect_same(const struct chunker_file *file, uint64_t piece, bool holes,
			const struct chunker_extents *expected)
{
	struct chunker_extents found = {0};

	chunker_run(file, piece, holes, &found);
	chunker_expect_equal(&found, expected);
	chunker_extents_release(&found);
}

Test(chunker, pieces_do_not_matter)
{
	static const char *const segments[] = {
		"r1500000 z65535 r3 z65536 r700000 z65537 r1 z4095 r2000000 z65535",
		"z65536 r4200000 z300000",
		"z4194305",
		"t300000 z66000 r5000 z66000 r262144 z66000 r262145 z1 r3500000",
	};

	for (size_t i = 0; i < DS_ARRAY_SIZE(segments); i++) {
		struct chunker_file file = chunker_file_of(segments[i], 20 + i);
		struct chunker_extents expected = {0};

		chunker_reference(&file, &expected);
		expect_same(&file, UINT64_MAX, false, &expected);
		expect_same(&file, UINT64_MAX, true, &expected);
		expect_same(&file, 1, false, &expected);
		expect_same(&file, 7, false, &expected);
		expect_same(&file, 7, true, &expected);
		expect_same(&file, 4096, false, &expected);
		expect_same(&file, 4097, true, &expected);
		expect_same(&file, 65536, false, &expected);
		expect_same(&file, 1 << 20, true, &expected);
		chunker_extents_release(&expected);
		free(file.data);
	}
}

/* Lengths that lie around every limit, and zeros fed as bytes or as holes, in pieces of any size. */
Test(chunker, random_files_are_cut_as_by_the_plain_definition)
{
	struct ds_prng prng = {.state = support_seed()};

	for (int round = 0; round < 12; round++) {
		struct chunker_file file = chunker_random_file(&prng);
		struct chunker_extents expected = {0};

		chunker_reference(&file, &expected);
		expect_same(&file, UINT64_MAX, false, &expected);
		expect_same(&file, CHUNKER_RANDOM_PIECES | ds_prng_below(&prng, 1u << 30), false,
			    &expected);
		expect_same(&file, CHUNKER_RANDOM_PIECES | ds_prng_below(&prng, 1u << 30), true,
			    &expected);
		chunker_extents_release(&expected);
		free(file.data);
	}
}

Test(chunker, equal_bytes_are_cut_alike_after_what_was_inserted_before)
{
	struct chunker_file a = chunker_file_of("r8000000", 5), b = chunker_file_of("r8000100", 6);
	struct chunker_extents of_a = {0}, of_b = {0};
	size_t common_n = 0;

	memcpy(b.data + 100, a.data, a.len);
	chunker_run(&a, UINT64_MAX, false, &of_a);
	chunker_run(&b, UINT64_MAX, false, &of_b);
	for (size_t i = 0; i < of_a.n; i++)
		for (size_t j = 0; j < of_b.n; j++)
			common_n += ds_digest_equal(&of_a.all[i].digest, &of_b.all[j].digest);
	cr_assert_geq(common_n + 2, of_a.n, "%zu of %zu", common_n, of_a.n);
	chunker_extents_release(&of_a);
	chunker_extents_release(&of_b);
	free(a.data);
	free(b.data);
}

Test(chunker, M05_a_hole_of_16_TiB_costs_nothing)
{
	struct chunker_file file = chunker_file_of("r5000000", 1);
	struct chunker_extents extents = {0};
	struct ds_chunker *chunker = NULL;
	uint64_t hole = UINT64_C(1) << 44, data_n = 0;
	size_t zeros_at = 0;

	cr_assert_eq(ds_chunker_new(chunker_extents_add, &extents, &chunker), 0);
	cr_assert_eq(ds_chunker_feed(chunker, file.data, file.len), 0);
	cr_assert_eq(ds_chunker_feed_zeros(chunker, hole), 0);
	cr_assert_eq(ds_chunker_feed_zeros(chunker, hole), 0);
	cr_assert_eq(ds_chunker_feed(chunker, "x", 1), 0);
	cr_assert_eq(ds_chunker_feed_zeros(chunker, 0), 0);
	cr_assert_eq(ds_chunker_finish(chunker), 0);
	while (!extents.all[zeros_at].is_zeros)
		data_n += extents.all[zeros_at++].len;
	cr_assert_eq(data_n, file.len);
	cr_assert_eq(extents.all[zeros_at].len, 2 * hole);
	cr_assert_eq(extents.n, zeros_at + 2);
	cr_assert_eq(extents.all[zeros_at + 1].len, 1);
	cr_assert_null(ds_chunker_free(chunker));
	chunker_extents_release(&extents);
	free(file.data);
}

Test(chunker, nothing_gives_nothing)
{
	struct chunker_extents extents = {0};
	struct ds_chunker *chunker = NULL;

	cr_assert_eq(ds_chunker_new(chunker_extents_add, &extents, &chunker), 0);
	cr_assert_eq(ds_chunker_feed(chunker, NULL, 0), 0);
	cr_assert_eq(ds_chunker_finish(chunker), 0);
	cr_assert_eq(extents.n, 0);
	cr_assert_null(ds_chunker_free(chunker));
	cr_assert_null(ds_chunker_free(NULL));
}

static int fail_at(void *ctx, uint64_t off, const void *data, uint64_t len_bytes)
{
	int *left = ctx;

	(void)off, (void)data, (void)len_bytes;
	return (*left)-- == 0 ? -DS_E_INTERRUPTED : 0;
}

/* Each extent's callback fails once: data, zeros, in feed, feed_zeros and finish. */
Test(chunker, an_error_of_the_callback_comes_back)
{
	struct chunker_file file = chunker_file_of("r3000000 z70000 r1500000", 4);
	int failed_n = 0;

	for (int n = 0;; n++) {
		struct ds_chunker *chunker = NULL;
		int left = n, r;

		cr_assert_eq(ds_chunker_new(fail_at, &left, &chunker), 0);
		r = ds_chunker_feed(chunker, file.data, file.len);
		if (r == 0)
			r = ds_chunker_feed_zeros(chunker, 100000);
		if (r == 0)
			r = ds_chunker_finish(chunker);
		ds_chunker_free(chunker);
		if (r == 0) {
			cr_assert_geq(left, 0);
			break;
		}
		cr_assert_eq(r, -DS_E_INTERRUPTED);
		failed_n++;
	}
	cr_assert_geq(failed_n, 5);
	free(file.data);
}

Test(chunker, no_memory_is_an_error)
{
	struct ds_chunker *chunker = NULL;

	for (int n = 0; n < 2; n++) {
		ds_mem_fail_after(n, 0);
		cr_assert_eq(ds_chunker_new(fail_at, NULL, &chunker), -ENOMEM);
		cr_assert_eq(ds_mem_fail_after(-1, 0), 1);
		cr_assert_null(chunker);
	}
}
