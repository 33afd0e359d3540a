/* Input: u32 pages, u32 number of the node in its level, u8 level, u8 binary logarithm of the page
 * size; then the node. */
#include <string.h>

#include "codec/page_index.h"
#include "fuzz.h"
#include "util/bytes.h"

#define PARAMETERS_LEN 10u

static void check(struct ds_page_index_node *node, uint64_t pages_n, uint32_t page_size,
		  uint32_t level, uint64_t i, const struct ds_digest *own)
{
	struct ds_buf buf = DS_BUF_INIT(DS_PAGE_INDEX_NODE_MAX);
	struct ds_page_index_node *again = NULL;

	for (uint32_t e = 0; e < node->entries_n; e++) {
		const struct ds_chunk_ref *entry = &node->entries[e];

		FUZZ_CHECK(entry->stored_len_bytes <= entry->raw_len_bytes);
		FUZZ_CHECK(entry->raw_len_bytes >= 1 && entry->raw_len_bytes <= DS_CHUNK_MAX);
		FUZZ_CHECK(entry->stored_len_bytes || level == 0);
	}
	/* What was read can be written, and is read alike. */
	FUZZ_CHECK(ds_page_index_node_encode(level, node->first_page, node->entries,
					     node->entries_n, &buf) == 0);
	FUZZ_CHECK(ds_page_index_node_parse(buf.data, buf.len_bytes, own, pages_n, page_size, level,
					    i, &again) == 0);
	FUZZ_CHECK(again->entries_n == node->entries_n);
	for (uint32_t e = 0; e < node->entries_n; e++) {
		/* An id of only zeros in the list stands for the own pack when it is written. */
		if (node->entries[e].stored_len_bytes && ds_digest_is_zero(&node->entries[e].pack))
			node->entries[e].pack = *own;
		FUZZ_CHECK(memcmp(&again->entries[e], &node->entries[e],
				  sizeof(again->entries[e])) == 0);
	}
	ds_free(again);
	ds_buf_release(&buf);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct ds_digest own = {.bytes = "the pack of the node"};
	struct ds_page_index_node *node = NULL;
	uint64_t pages_n, i;
	uint32_t level, page_size;
	uint8_t *copy;

	if (size < PARAMETERS_LEN)
		return 0;
	pages_n = 1 + ds_get_le32(data) % DS_MANIFEST_PAGES_MAX;
	level = data[8] % ds_page_index_levels_n(pages_n);
	i = ds_get_le32(data + 4) % ds_page_index_level_nodes_n(pages_n, level);
	page_size = 1u << (12 + data[9] % 5);
	copy = fuzz_copy(data + PARAMETERS_LEN, size - PARAMETERS_LEN);
	if (ds_page_index_node_parse(copy, size - PARAMETERS_LEN, &own, pages_n, page_size, level,
				     i, &node) == 0) {
		check(node, pages_n, page_size, level, i, &own);
		ds_free(node);
	}
	fuzz_free(copy);
	return 0;
}
