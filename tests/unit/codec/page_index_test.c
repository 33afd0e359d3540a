#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "codec/pack.h"
#include "codec/page_index.h"
#include "codec_support.h"
#include "util/bytes.h"
#include "util/error.h"

TestSuite(page_index, .fini = test_leaks_abort);

/* Computed from schema/README.md by another program. A manifest of 516 pages of 4,096 bytes has two
 * leaves and a root; this is the second leaf (pages 512..515: in "pack 1", zeros, in the node's own
 * pack, in "pack 2") and the root (children in "pack 2" and in its own pack). */
static const char leaf_hex[] = "647366736964783100000000040000000002000000000000"
			       "0200000000000000"
			       "be955617dac3a89aee7058a1cca9ef93617148273b677c694b3bbf87367ef35d"
			       "885d1cb8b13fda1c5639f283815cc61320afeac4e5736ce80dca3760c6bcbca5"
			       "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
			       "010000000500000008000000000000006400000000100000"
			       "0000000000000000000000000000000000000000000000000000000000000000"
			       "000000000000000000000000000000000000000000100000"
			       "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3"
			       "000000000900000039300000000000000010000000100000"
			       "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
			       "02000000ffff0f0038ffff3f000000006400000000100000";
static const char root_hex[] = "647366736964783101000000020000000000000000000000"
			       "0100000000000000"
			       "885d1cb8b13fda1c5639f283815cc61320afeac4e5736ce80dca3760c6bcbca5"
			       "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
			       "01000000030000006300000000000000e803000038700000"
			       "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3"
			       "00000000040000004b04000000000000c800000008010000";

#define PAGES_N	    516u
#define PAGE_SIZE   4096u
#define HEAD_LEN    32u
#define ENTRY_LEN   56u
#define LEAF_OFF(i) (HEAD_LEN + 64 + (i)*ENTRY_LEN)
#define ROOT_OFF(i) (HEAD_LEN + 32 + (i)*ENTRY_LEN)

static int parse(const void *data, size_t len, uint64_t pages_n, uint32_t page_size, uint32_t level,
		 uint64_t i, struct ds_page_index_node **ret_node)
{
	struct ds_digest own = support_digest_of("own pack");
	uint8_t *copy = support_copy(data, len);
	int r = ds_page_index_node_parse(copy, len, &own, pages_n, page_size, level, i, ret_node);

	free(copy);
	return r;
}

static int parse_leaf(const void *data, size_t len, struct ds_page_index_node **ret_node)
{
	return parse(data, len, PAGES_N, PAGE_SIZE, 0, 1, ret_node);
}

static int parse_root(const void *data, size_t len, struct ds_page_index_node **ret_node)
{
	return parse(data, len, PAGES_N, PAGE_SIZE, 1, 0, ret_node);
}

Test(page_index, nodes_made_by_another_program_are_read)
{
	struct ds_digest own = support_digest_of("own pack"), first = support_digest_of("pack 1"),
			 second = support_digest_of("pack 2"), one = support_digest_of("one");
	struct ds_page_index_node *node = NULL;
	size_t len;
	uint8_t *data = support_hex(leaf_hex, &len);

	cr_assert_eq(parse_leaf(data, len, &node), 0);
	free(data);
	cr_assert_eq(node->level, 0);
	cr_assert_eq(node->entries_n, 4);
	cr_assert_eq(node->first_page, 512);
	cr_assert(ds_digest_equal(&node->entries[0].digest, &one));
	cr_assert(ds_digest_equal(&node->entries[0].pack, &first));
	cr_assert_eq(node->entries[0].ordinal, 5);
	cr_assert_eq(node->entries[0].stored_off, 8);
	cr_assert_eq(node->entries[0].stored_len_bytes, 100);
	cr_assert_eq(node->entries[0].raw_len_bytes, 4096);
	cr_assert_eq(node->entries[1].stored_len_bytes, 0);
	cr_assert_eq(node->entries[1].raw_len_bytes, 4096);
	cr_assert(ds_digest_is_zero(&node->entries[1].pack));
	cr_assert(ds_digest_equal(&node->entries[2].pack, &own));
	cr_assert_eq(node->entries[2].stored_off, 12345);
	cr_assert(ds_digest_equal(&node->entries[3].pack, &second));
	cr_assert_eq(node->entries[3].ordinal, 0xfffff);
	ds_free(node);

	data = support_hex(root_hex, &len);
	cr_assert_eq(parse_root(data, len, &node), 0);
	free(data);
	cr_assert_eq(node->level, 1);
	cr_assert_eq(node->entries_n, 2);
	cr_assert_eq(node->first_page, 0);
	cr_assert(ds_digest_equal(&node->entries[0].pack, &second));
	cr_assert_eq(node->entries[0].raw_len_bytes, 28728);
	cr_assert(ds_digest_equal(&node->entries[1].pack, &own));
	ds_free(node);
}

/* What was read and is written again has the same bytes, once the own pack is unnamed again. */
Test(page_index, nodes_are_written_as_the_format_says)
{
	struct ds_digest own = support_digest_of("own pack");

	for (uint32_t level = 0; level < 2; level++) {
		struct ds_buf buf = DS_BUF_INIT(DS_PAGE_INDEX_NODE_MAX);
		struct ds_page_index_node *node = NULL;
		size_t len;
		uint8_t *data = support_hex(level ? root_hex : leaf_hex, &len);

		cr_assert_eq(level ? parse_root(data, len, &node) : parse_leaf(data, len, &node),
			     0);
		for (uint32_t i = 0; i < node->entries_n; i++)
			if (ds_digest_equal(&node->entries[i].pack, &own))
				node->entries[i].pack = (struct ds_digest){0};
		cr_assert_eq(ds_page_index_node_encode(level, node->first_page, node->entries,
						       node->entries_n, &buf),
			     0);
		support_bytes_are(buf.data, buf.len_bytes, level ? root_hex : leaf_hex);
		ds_buf_release(&buf);
		ds_free(node);
		free(data);
	}
}

Test(page_index, the_shape_is_that_of_a_tree_of_512)
{
	static const struct {
		uint64_t pages_n, nodes_n;
		unsigned levels_n;
	} shapes[] = {
		{1, 1, 1},
		{511, 1, 1},
		{512, 1, 1},
		{513, 3, 2},
		{1024, 3, 2},
		{1025, 4, 2},
		{512 * 512, 513, 2},
		{512 * 512 + 1, 513 + 2 + 1, 3},
		{512ull * 512 * 512, 512 * 512 + 512 + 1, 3},
		{512ull * 512 * 512 + 1, 512 * 512 + 1 + 513 + 2 + 1, 4},
		{DS_MANIFEST_PAGES_MAX, (1 << 21) + (1 << 12) + 8 + 1, 4},
	};

	for (size_t s = 0; s < DS_ARRAY_SIZE(shapes); s++) {
		uint64_t pages_n = shapes[s].pages_n, nodes_n = 0;

		cr_assert_eq(ds_page_index_levels_n(pages_n), shapes[s].levels_n, "%zu", s);
		cr_assert_eq(ds_page_index_nodes_n(pages_n), shapes[s].nodes_n, "%zu", s);
		cr_assert_leq(shapes[s].levels_n, DS_PAGE_INDEX_LEVELS_MAX);
		for (unsigned level = 0; level < shapes[s].levels_n; level++) {
			cr_assert_eq(ds_page_index_node_number(pages_n, level, 0), nodes_n);
			nodes_n += ds_page_index_level_nodes_n(pages_n, level);
			cr_assert_eq(ds_page_index_node_number(
					     pages_n, level,
					     ds_page_index_level_nodes_n(pages_n, level) - 1),
				     nodes_n - 1);
		}
		cr_assert_eq(ds_page_index_level_nodes_n(pages_n, shapes[s].levels_n - 1), 1);
		cr_assert_eq(nodes_n, shapes[s].nodes_n);
	}
}

/* Full and part nodes of every level of a manifest of 300,000 pages. */
Test(page_index, random_nodes_are_read_as_written)
{
	struct ds_prng prng = {.state = support_seed()};
	static struct ds_chunk_ref entries[DS_PAGE_INDEX_FANOUT];
	struct ds_digest own = support_digest_of("own pack"), packs[20];
	const uint64_t pages_n = 300000;
	const uint32_t page_size = 8192;

	support_fill(&prng, packs[0].bytes, sizeof(packs));
	for (int round = 0; round < 60; round++) {
		unsigned level = (unsigned)round % ds_page_index_levels_n(pages_n);
		uint64_t nodes_n = ds_page_index_level_nodes_n(pages_n, level), span = 512;
		uint64_t i = round < 30 ? nodes_n - 1 : ds_prng_below(&prng, nodes_n);
		uint64_t below = level ? ds_page_index_level_nodes_n(pages_n, level - 1) : pages_n;
		uint32_t n = (uint32_t)DS_MIN(below - i * 512, (uint64_t)512);
		struct ds_buf buf = DS_BUF_INIT(DS_PAGE_INDEX_NODE_MAX);
		struct ds_page_index_node *node = NULL;

		for (unsigned k = 0; k < level; k++)
			span *= 512;
		for (uint32_t e = 0; e < n; e++) {
			entries[e] = (struct ds_chunk_ref){.raw_len_bytes = page_size};
			if (level)
				entries[e].raw_len_bytes =
					1 + (uint32_t)ds_prng_below(&prng, DS_PAGE_INDEX_NODE_MAX);
			else if (ds_prng_below(&prng, 5) == 0)
				continue;
			support_fill(&prng, entries[e].digest.bytes, DS_DIGEST_LEN);
			if (ds_prng_below(&prng, 2))
				entries[e].pack = packs[ds_prng_below(&prng, 20)];
			entries[e].ordinal = (uint32_t)ds_prng_below(&prng, DS_PACK_CHUNKS_MAX);
			entries[e].stored_len_bytes =
				1 + (uint32_t)ds_prng_below(&prng, entries[e].raw_len_bytes);
			entries[e].stored_off = 8 + ds_prng_below(&prng, DS_MIB(900));
		}
		cr_assert_eq(ds_page_index_node_encode(level, i * span, entries, n, &buf), 0);
		cr_assert_eq(parse(buf.data, buf.len_bytes, pages_n, page_size, level, i, &node),
			     0);
		cr_assert_eq(node->entries_n, n);
		for (uint32_t e = 0; e < n; e++) {
			if (entries[e].stored_len_bytes && ds_digest_is_zero(&entries[e].pack))
				entries[e].pack = own;
			cr_assert_eq(memcmp(&node->entries[e].digest, &entries[e].digest, 64), 0);
			cr_assert_eq(node->entries[e].ordinal, entries[e].ordinal);
			cr_assert_eq(node->entries[e].stored_off, entries[e].stored_off);
			cr_assert_eq(node->entries[e].stored_len_bytes,
				     entries[e].stored_len_bytes);
			cr_assert_eq(node->entries[e].raw_len_bytes, entries[e].raw_len_bytes);
		}
		ds_free(node);
		ds_buf_release(&buf);
	}
}

Test(page_index, a_node_of_512_packs_fits_its_limit)
{
	static struct ds_chunk_ref entries[DS_PAGE_INDEX_FANOUT];
	struct ds_buf buf = DS_BUF_INIT(DS_PAGE_INDEX_NODE_MAX);
	struct ds_page_index_node *node = NULL;

	for (uint32_t i = 0; i < DS_PAGE_INDEX_FANOUT; i++) {
		char text[16];

		snprintf(text, sizeof(text), "%u", i);
		entries[i].digest = entries[i].pack = support_digest_of(text);
		entries[i].stored_off = 8;
		entries[i].stored_len_bytes = entries[i].raw_len_bytes = PAGE_SIZE;
	}
	cr_assert_eq(ds_page_index_node_encode(0, 0, entries, DS_PAGE_INDEX_FANOUT, &buf), 0);
	cr_assert_eq(buf.len_bytes, HEAD_LEN + 512 * (32 + ENTRY_LEN));
	cr_assert_eq(parse(buf.data, buf.len_bytes, 512, PAGE_SIZE, 0, 0, &node), 0);
	cr_assert(ds_digest_equal(&node->entries[511].pack, &entries[511].pack));
	ds_free(node);
	ds_buf_release(&buf);
}

Test(page_index, every_truncation_and_every_extension_is_malformed)
{
	struct ds_page_index_node *node = NULL;
	uint8_t more[400] = {0};
	size_t len;
	uint8_t *data = support_hex(leaf_hex, &len);

	memcpy(more, data, len);
	for (size_t n = 0; n <= sizeof(more); n++)
		if (n != len)
			cr_assert_eq(parse_leaf(more, n, &node), -DS_E_MALFORMED, "%zu", n);
	cr_assert_null(node);
	free(data);
}

Test(page_index, A15_a_node_of_another_place_is_malformed)
{
	struct ds_page_index_node *node = NULL;
	size_t len, root_len;
	uint8_t *leaf = support_hex(leaf_hex, &len), *root = support_hex(root_hex, &root_len);

	cr_assert_eq(parse(leaf, len, PAGES_N, PAGE_SIZE, 0, 0, &node), -DS_E_MALFORMED);
	cr_assert_eq(parse(leaf, len, PAGES_N, PAGE_SIZE, 1, 0, &node), -DS_E_MALFORMED);
	cr_assert_eq(parse(leaf, len, PAGES_N + 1, PAGE_SIZE, 0, 1, &node), -DS_E_MALFORMED);
	cr_assert_eq(parse(leaf, len, PAGES_N - 1, PAGE_SIZE, 0, 1, &node), -DS_E_MALFORMED);
	cr_assert_eq(parse(leaf, len, 512, PAGE_SIZE, 0, 1, &node), -DS_E_MALFORMED);
	cr_assert_eq(parse(leaf, len, PAGES_N, 2 * PAGE_SIZE, 0, 1, &node), -DS_E_MALFORMED);
	cr_assert_eq(parse(root, root_len, PAGES_N, PAGE_SIZE, 0, 0, &node), -DS_E_MALFORMED);
	cr_assert_eq(parse(root, root_len, 512 * 3, PAGE_SIZE, 1, 0, &node), -DS_E_MALFORMED);
	/* The same two children, of another number of pages: not to be seen in the root. */
	cr_assert_eq(parse(root, root_len, 1000, PAGE_SIZE, 1, 0, &node), 0);
	ds_free(node);
	free(leaf);
	free(root);
}

struct change {
	size_t off;
	uint64_t value;
	unsigned width;
};

static void expect_malformed(const char *hex, const struct change *bad, size_t bad_n, bool is_root)
{
	for (size_t i = 0; i < bad_n; i++) {
		struct ds_page_index_node *node = NULL;
		size_t len;
		uint8_t *data = support_hex(hex, &len);
		int r;

		if (bad[i].width == 8)
			ds_put_le64(data + bad[i].off, bad[i].value);
		else
			ds_put_le32(data + bad[i].off, (uint32_t)bad[i].value);
		r = is_root ? parse_root(data, len, &node) : parse_leaf(data, len, &node);
		cr_assert_eq(r, -DS_E_MALFORMED, "case %zu: %d", i, r);
		cr_assert_null(node);
		free(data);
	}
}

Test(page_index, G05_numbers_out_of_range_are_malformed)
{
	static const struct change in_leaf[] = {
		{0, 0x66736465, 4}, /* magic */
		{4, 0x32786469, 4}, /* "idx2" */
		{8, 1, 4},	    /* level */
		{8, UINT32_MAX, 4},
		{12, 3, 4}, /* entries */
		{12, 5, 4},
		{12, 0, 4},
		{12, UINT32_MAX, 4},
		{16, 0, 8}, /* first page */
		{16, 513, 8},
		{16, UINT64_MAX, 8},
		{24, 1, 4}, /* packs */
		{24, 3, 4},
		{24, 5, 4},
		{24, UINT32_MAX, 4},
		{24, 0x08000002, 4},	  /* times 32 is 64 modulo 2^32 */
		{28, 1, 4},		  /* must be zero */
		{LEAF_OFF(0) + 32, 3, 4}, /* pack number */
		{LEAF_OFF(0) + 32, UINT32_MAX, 4},
		{LEAF_OFF(0) + 36, 1u << 20, 4}, /* ordinal */
		{LEAF_OFF(0) + 40, 7, 8},	 /* offset */
		{LEAF_OFF(0) + 40, 0, 8},
		{LEAF_OFF(0) + 40, DS_PACK_MAX, 8},
		{LEAF_OFF(0) + 40, DS_PACK_MAX - 99, 8},
		{LEAF_OFF(0) + 40, UINT64_MAX, 8},
		{LEAF_OFF(0) + 48, 4097, 4}, /* stored length */
		{LEAF_OFF(0) + 48, UINT32_MAX, 4},
		{LEAF_OFF(0) + 48, 0, 4},    /* zeros with a digest */
		{LEAF_OFF(0) + 52, 4095, 4}, /* raw length */
		{LEAF_OFF(0) + 52, 0, 4},
		{LEAF_OFF(0) + 52, UINT32_MAX, 4},
		{LEAF_OFF(1), 1, 4}, /* zeros with something set */
		{LEAF_OFF(1) + 28, 1, 4},
		{LEAF_OFF(1) + 32, 1, 4},
		{LEAF_OFF(1) + 36, 1, 4},
		{LEAF_OFF(1) + 40, 8, 8},
		{LEAF_OFF(1) + 48, 1, 4},
		{LEAF_OFF(1) + 52, 0, 4},
	};
	static const struct change in_root[] = {
		{ROOT_OFF(0) + 48, 0, 4}, /* no zeros above the leaves */
		{ROOT_OFF(0) + 52, 0, 4},
		{ROOT_OFF(0) + 52, DS_PAGE_INDEX_NODE_MAX + 1, 4},
		{ROOT_OFF(0) + 52, UINT32_MAX, 4},
		{ROOT_OFF(0) + 52, 999, 4}, /* below the stored length */
		{16, 512, 8},
	};

	expect_malformed(leaf_hex, in_leaf, DS_ARRAY_SIZE(in_leaf), false);
	expect_malformed(root_hex, in_root, DS_ARRAY_SIZE(in_root), true);
}

Test(page_index, an_entry_of_zeros_above_the_leaves_is_malformed)
{
	struct ds_page_index_node *node = NULL;
	size_t len;
	uint8_t *data = support_hex(root_hex, &len);

	memset(data + ROOT_OFF(0), 0, 52);
	cr_assert_eq(parse_root(data, len, &node), -DS_E_MALFORMED);
	cr_assert_null(node);
	free(data);
}

Test(page_index, J01_every_failed_allocation_is_an_error)
{
	struct ds_buf buf = DS_BUF_INIT(DS_PAGE_INDEX_NODE_MAX);
	struct ds_page_index_node *node = NULL, *other = NULL;
	size_t len, failed_n = 0;
	uint8_t *data = support_hex(leaf_hex, &len);
	int r;

	cr_assert_eq(parse_leaf(data, len, &node), 0);
	ds_mem_fail_after(0, 0);
	cr_assert_eq(parse_leaf(data, len, &other), -ENOMEM);
	cr_assert_eq(ds_mem_fail_after(-1, 0), 1);
	cr_assert_null(other);
	cr_assert_eq(ds_buf_append_str(&buf, "before"), 0);
	for (int64_t n = 0;; n++) {
		ds_mem_fail_after(n, 0);
		r = ds_page_index_node_encode(0, 512, node->entries, 4, &buf);
		if (!ds_mem_fail_after(-1, 0))
			break;
		cr_assert_eq(r, -ENOMEM);
		cr_assert_str_eq(ds_buf_str(&buf), "before");
		failed_n++;
	}
	cr_assert_eq(r, 0);
	cr_assert_geq(failed_n, 3);
	ds_free(node);
	ds_buf_release(&buf);
	free(data);
}
