#include <assert.h>
#include <errno.h>

#include "codec/pack.h"
#include "codec/pack_format.h"
#include "util/bytes.h"
#include "util/error.h"
#include "util/mem.h"

/* Number of a target's pack in the list, from 1; adds it if it is new. 0: gone. */
static int number_of(struct ds_buf *ids, const struct ds_digest *pack, uint32_t *ret_number)
{
	size_t n = ids->len_bytes / DS_DIGEST_LEN;
	int r;

	*ret_number = 0;
	if (ds_digest_is_zero(pack))
		return 0;
	/* Neighbours go to the same few packs: from the end. */
	for (size_t i = n; i > 0; i--)
		if (memcmp(ids->data + (i - 1) * DS_DIGEST_LEN, pack->bytes, DS_DIGEST_LEN) == 0) {
			*ret_number = (uint32_t)i;
			return 0;
		}
	r = ds_buf_append(ids, pack->bytes, DS_DIGEST_LEN);
	if (r == 0)
		*ret_number = (uint32_t)n + 1;
	return r;
}

int ds_pack_moved_encode(const void *old_table, size_t old_table_len_bytes,
			 const struct ds_pack_moved_to *targets, struct ds_buf *buf)
{
	size_t chunks_n = (old_table_len_bytes - PACK_TABLE_HEAD_LEN) / PACK_TABLE_ENTRY_LEN;
	_ds_cleanup_buf_ struct ds_buf ids = DS_BUF_INIT(DS_PACK_CHUNKS_MAX * DS_DIGEST_LEN);
	_ds_cleanup_buf_ struct ds_buf rows = DS_BUF_INIT(DS_PACK_CHUNKS_MAX * 8u);
	size_t start = buf->len_bytes;
	struct ds_digest digest;
	int r = 0;

	assert(old_table_len_bytes == PACK_TABLE_HEAD_LEN + chunks_n * PACK_TABLE_ENTRY_LEN);
	for (size_t i = 0; i < chunks_n && r == 0; i++) {
		uint32_t number;

		r = number_of(&ids, &targets[i].pack, &number);
		if (r == 0)
			r = ds_buf_append_le32(&rows, number);
		if (r == 0)
			r = ds_buf_append_le32(&rows, number ? targets[i].ordinal : 0);
	}
	if (r == 0)
		r = ds_buf_append(buf, PACK_MOVED_MAGIC, PACK_MAGIC_LEN);
	if (r == 0)
		r = ds_buf_append_le32(buf, (uint32_t)old_table_len_bytes);
	if (r == 0)
		r = ds_buf_append(buf, old_table, old_table_len_bytes);
	if (r == 0)
		r = ds_buf_append_le32(buf, (uint32_t)(ids.len_bytes / DS_DIGEST_LEN));
	if (r == 0)
		r = ds_buf_append(buf, ids.data, ids.len_bytes);
	if (r == 0)
		r = ds_buf_append(buf, rows.data, rows.len_bytes);
	if (r == 0)
		r = ds_digest_of(buf->data + start, buf->len_bytes - start, &digest);
	if (r == 0)
		r = ds_buf_append(buf, digest.bytes, DS_DIGEST_LEN);
	if (r < 0)
		ds_buf_truncate(buf, start);
	return r;
}

static int parse_targets(struct ds_cursor *cursor, const uint8_t *ids, uint32_t ids_n,
			 struct ds_pack_moved *moved)
{
	uint32_t n = moved->toc->chunks_n;

	moved->targets = ds_calloc(n, sizeof(*moved->targets));
	if (!moved->targets)
		return -ENOMEM;
	for (uint32_t i = 0; i < n; i++) {
		uint32_t number = ds_cursor_le32(cursor);

		moved->targets[i].ordinal = ds_cursor_le32(cursor);
		if (cursor->failed || number > ids_n ||
		    moved->targets[i].ordinal >= DS_PACK_CHUNKS_MAX)
			return -DS_E_MALFORMED;
		if (number)
			memcpy(moved->targets[i].pack.bytes,
			       ids + (size_t)(number - 1) * DS_DIGEST_LEN, DS_DIGEST_LEN);
	}
	return cursor->left_bytes == 0 ? 0 : -DS_E_MALFORMED;
}

int ds_pack_moved_parse(const void *data, size_t len_bytes, const struct ds_digest *id,
			struct ds_pack_moved *ret_moved)
{
	struct ds_pack_moved moved = {0};
	const uint8_t *magic, *table, *ids;
	struct ds_digest digest;
	struct ds_cursor cursor;
	uint32_t table_len, ids_n;
	int r;

	if (len_bytes < DS_DIGEST_LEN)
		return -DS_E_MALFORMED;
	len_bytes -= DS_DIGEST_LEN;
	r = ds_digest_of(data, len_bytes, &digest);
	if (r < 0)
		return r;
	if (memcmp(digest.bytes, (const uint8_t *)data + len_bytes, DS_DIGEST_LEN) != 0)
		return -DS_E_CORRUPT;
	cursor = ds_cursor_of(data, len_bytes);
	magic = ds_cursor_take(&cursor, PACK_MAGIC_LEN);
	table_len = ds_cursor_le32(&cursor);
	table = ds_cursor_take(&cursor, table_len);
	ids_n = ds_cursor_le32(&cursor);
	if (cursor.failed || memcmp(magic, PACK_MOVED_MAGIC, PACK_MAGIC_LEN) != 0 ||
	    ids_n > DS_PACK_CHUNKS_MAX)
		return -DS_E_MALFORMED;
	ids = ds_cursor_take(&cursor, (size_t)ids_n * DS_DIGEST_LEN);
	if (!ids)
		return -DS_E_MALFORMED;
	r = ds_pack_toc_parse(table, table_len, id, &moved.toc);
	if (r == 0)
		r = parse_targets(&cursor, ids, ids_n, &moved);
	if (r < 0) {
		ds_pack_moved_release(&moved);
		return r;
	}
	*ret_moved = moved;
	return 0;
}

void ds_pack_moved_release(struct ds_pack_moved *moved)
{
	ds_free(moved->toc);
	ds_free(moved->targets);
	*moved = (struct ds_pack_moved){0};
}
