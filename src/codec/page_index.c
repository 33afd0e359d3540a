#include "codec/page_index.h"

#include <errno.h>

#include "codec/pack.h"
#include "util/bytes.h"
#include "util/error.h"
#include "util/mem.h"

#define NODE_MAGIC     "dsfsidx1"
#define NODE_MAGIC_LEN 8u
#define NODE_ENTRY_LEN 56u

/* Pages that one node of a level covers. Levels are few enough for 64 bits. */
static uint64_t span_of(unsigned level)
{
	uint64_t span = DS_PAGE_INDEX_FANOUT;

	while (level--)
		span *= DS_PAGE_INDEX_FANOUT;
	return span;
}

unsigned ds_page_index_levels_n(uint64_t pages_n)
{
	unsigned levels_n = 1;

	while (span_of(levels_n - 1) < pages_n)
		levels_n++;
	return levels_n;
}

uint64_t ds_page_index_level_nodes_n(uint64_t pages_n, unsigned level)
{
	uint64_t span = span_of(level);

	return (pages_n + span - 1) / span;
}

uint64_t ds_page_index_nodes_n(uint64_t pages_n)
{
	unsigned levels_n = ds_page_index_levels_n(pages_n);

	return ds_page_index_node_number(pages_n, levels_n - 1, 0) + 1;
}

uint64_t ds_page_index_node_number(uint64_t pages_n, unsigned level, uint64_t i)
{
	uint64_t number = i;

	while (level--)
		number += ds_page_index_level_nodes_n(pages_n, level);
	return number;
}

static bool is_zeros(const struct ds_chunk_ref *entry)
{
	return entry->stored_len_bytes == 0;
}

/* Number of the entry's pack: 0 for the node's own. Adds it to the list if it is new. */
static int number_of(struct ds_buf *ids, const struct ds_chunk_ref *entry, uint32_t *ret_number)
{
	size_t n = ids->len_bytes / DS_DIGEST_LEN;
	int r;

	*ret_number = 0;
	if (is_zeros(entry) || ds_digest_is_zero(&entry->pack))
		return 0;
	for (size_t i = n; i > 0; i--)
		if (memcmp(ids->data + (i - 1) * DS_DIGEST_LEN, entry->pack.bytes, DS_DIGEST_LEN) ==
		    0) {
			*ret_number = (uint32_t)i;
			return 0;
		}
	r = ds_buf_append(ids, entry->pack.bytes, DS_DIGEST_LEN);
	if (r == 0)
		*ret_number = (uint32_t)n + 1;
	return r;
}

static int append_entry(struct ds_buf *rows, const struct ds_chunk_ref *entry, uint32_t number)
{
	uint8_t raw[NODE_ENTRY_LEN] = {0};

	if (!is_zeros(entry)) {
		memcpy(raw, entry->digest.bytes, DS_DIGEST_LEN);
		ds_put_le32(raw + 32, number);
		ds_put_le32(raw + 36, entry->ordinal);
		ds_put_le64(raw + 40, entry->stored_off);
		ds_put_le32(raw + 48, entry->stored_len_bytes);
	}
	ds_put_le32(raw + 52, entry->raw_len_bytes);
	return ds_buf_append(rows, raw, sizeof(raw));
}

int ds_page_index_node_encode(uint32_t level, uint64_t first_page,
			      const struct ds_chunk_ref *entries, uint32_t entries_n,
			      struct ds_buf *buf)
{
	_ds_cleanup_buf_ struct ds_buf ids = DS_BUF_INIT(DS_PAGE_INDEX_NODE_MAX);
	_ds_cleanup_buf_ struct ds_buf rows = DS_BUF_INIT(DS_PAGE_INDEX_NODE_MAX);
	size_t start = buf->len_bytes;
	int r = 0;

	for (uint32_t i = 0; i < entries_n && r == 0; i++) {
		uint32_t number;

		r = number_of(&ids, &entries[i], &number);
		if (r == 0)
			r = append_entry(&rows, &entries[i], number);
	}
	if (r == 0)
		r = ds_buf_append(buf, NODE_MAGIC, NODE_MAGIC_LEN);
	if (r == 0)
		r = ds_buf_append_le32(buf, level);
	if (r == 0)
		r = ds_buf_append_le32(buf, entries_n);
	if (r == 0)
		r = ds_buf_append_le64(buf, first_page);
	if (r == 0)
		r = ds_buf_append_le32(buf, (uint32_t)(ids.len_bytes / DS_DIGEST_LEN));
	if (r == 0)
		r = ds_buf_append_le32(buf, 0);
	if (r == 0)
		r = ds_buf_append(buf, ids.data, ids.len_bytes);
	if (r == 0)
		r = ds_buf_append(buf, rows.data, rows.len_bytes);
	if (r < 0)
		ds_buf_truncate(buf, start);
	return r;
}

/* Entries that node i of a level must have. */
static uint64_t expected_entries_n(uint64_t pages_n, uint32_t level, uint64_t i)
{
	uint64_t below_n = level ? ds_page_index_level_nodes_n(pages_n, level - 1) : pages_n;

	return DS_MIN(below_n - i * DS_PAGE_INDEX_FANOUT, (uint64_t)DS_PAGE_INDEX_FANOUT);
}

static int parse_entry(struct ds_cursor *cursor, const uint8_t *ids, uint32_t ids_n,
		       const struct ds_digest *own_pack, uint32_t level, uint32_t page_size,
		       struct ds_chunk_ref *entry)
{
	const uint8_t *digest = ds_cursor_take(cursor, DS_DIGEST_LEN);
	uint32_t number = ds_cursor_le32(cursor);

	*entry = (struct ds_chunk_ref){.ordinal = ds_cursor_le32(cursor)};
	entry->stored_off = ds_cursor_le64(cursor);
	entry->stored_len_bytes = ds_cursor_le32(cursor);
	entry->raw_len_bytes = ds_cursor_le32(cursor);
	if (cursor->failed || number > ids_n)
		return -DS_E_MALFORMED;
	memcpy(entry->digest.bytes, digest, DS_DIGEST_LEN);
	if (level == 0 ? entry->raw_len_bytes != page_size
		       : entry->raw_len_bytes == 0 || entry->raw_len_bytes > DS_PAGE_INDEX_NODE_MAX)
		return -DS_E_MALFORMED;
	if (is_zeros(entry))
		return level || number || entry->ordinal || entry->stored_off ||
				       !ds_digest_is_zero(&entry->digest)
			       ? -DS_E_MALFORMED
			       : 0;
	if (entry->stored_len_bytes > entry->raw_len_bytes ||
	    entry->ordinal >= DS_PACK_CHUNKS_MAX || entry->stored_off < DS_PACK_HEAD_LEN ||
	    entry->stored_off > DS_PACK_MAX - entry->stored_len_bytes)
		return -DS_E_MALFORMED;
	if (number)
		memcpy(entry->pack.bytes, ids + (size_t)(number - 1) * DS_DIGEST_LEN,
		       DS_DIGEST_LEN);
	else
		entry->pack = *own_pack;
	return 0;
}

int ds_page_index_node_parse(const void *data, size_t len_bytes, const struct ds_digest *own_pack,
			     uint64_t pages_n, uint32_t page_size, uint32_t level, uint64_t i,
			     struct ds_page_index_node **ret_node)
{
	struct ds_cursor cursor = ds_cursor_of(data, len_bytes);
	struct ds_page_index_node *node;
	const uint8_t *magic, *ids;
	uint32_t found_level, entries_n, ids_n, reserved;
	uint64_t first_page;
	int r = 0;

	magic = ds_cursor_take(&cursor, NODE_MAGIC_LEN);
	found_level = ds_cursor_le32(&cursor);
	entries_n = ds_cursor_le32(&cursor);
	first_page = ds_cursor_le64(&cursor);
	ids_n = ds_cursor_le32(&cursor);
	reserved = ds_cursor_le32(&cursor);
	if (cursor.failed || reserved || memcmp(magic, NODE_MAGIC, NODE_MAGIC_LEN) != 0 ||
	    found_level != level || first_page != i * span_of(level) || first_page >= pages_n ||
	    entries_n != expected_entries_n(pages_n, level, i) || ids_n > entries_n)
		return -DS_E_MALFORMED;
	ids = ds_cursor_take(&cursor, (size_t)ids_n * DS_DIGEST_LEN);
	if (!ids || cursor.left_bytes != (size_t)entries_n * NODE_ENTRY_LEN)
		return -DS_E_MALFORMED;
	node = ds_malloc(sizeof(*node) + entries_n * sizeof(node->entries[0]));
	if (!node)
		return -ENOMEM;
	node->level = level;
	node->entries_n = entries_n;
	node->first_page = first_page;
	for (uint32_t e = 0; e < entries_n && r == 0; e++)
		r = parse_entry(&cursor, ids, ids_n, own_pack, level, page_size, &node->entries[e]);
	if (r < 0) {
		ds_free(node);
		return r;
	}
	*ret_node = node;
	return 0;
}
