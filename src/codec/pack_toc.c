#include <errno.h>
#include <stdio.h>

#include "codec/pack.h"
#include "codec/pack_format.h"
#include "util/bytes.h"
#include "util/error.h"
#include "util/mem.h"

/* One entry; sums run in toc. */
static int parse_entry(struct ds_cursor *cursor, struct ds_pack_toc *toc, uint32_t i)
{
	struct ds_pack_entry *entry = &toc->entries[i];

	memcpy(entry->digest.bytes, ds_cursor_take(cursor, DS_DIGEST_LEN), DS_DIGEST_LEN);
	entry->raw_len_bytes = ds_cursor_le32(cursor);
	entry->stored_len_bytes = ds_cursor_le32(cursor);
	if (entry->raw_len_bytes == 0 || entry->raw_len_bytes > DS_CHUNK_MAX ||
	    entry->stored_len_bytes == 0 || entry->stored_len_bytes > entry->raw_len_bytes)
		return -DS_E_MALFORMED;
	entry->stored_off = toc->object_len_bytes;
	entry->raw_off = toc->raw_len_bytes;
	toc->object_len_bytes += entry->stored_len_bytes;
	toc->raw_len_bytes += entry->raw_len_bytes;
	return 0;
}

int ds_pack_toc_parse(const void *table, size_t len_bytes, const struct ds_digest *id,
		      struct ds_pack_toc **ret_toc)
{
	struct ds_cursor cursor = ds_cursor_of(table, len_bytes);
	struct ds_pack_toc *toc;
	struct ds_digest found;
	const uint8_t *magic;
	uint32_t kind, chunks_n;
	int r;

	r = ds_digest_of(table, len_bytes, &found);
	if (r < 0)
		return r;
	if (!ds_digest_equal(&found, id))
		return -DS_E_CORRUPT;
	magic = ds_cursor_take(&cursor, PACK_MAGIC_LEN);
	ds_cursor_take(&cursor, PACK_NONCE_LEN);
	kind = ds_cursor_le32(&cursor);
	chunks_n = ds_cursor_le32(&cursor);
	if (cursor.failed || memcmp(magic, PACK_TABLE_MAGIC, PACK_MAGIC_LEN) != 0 ||
	    kind > DS_PACK_MANIFEST || chunks_n > DS_PACK_CHUNKS_MAX ||
	    cursor.left_bytes != (size_t)chunks_n * PACK_TABLE_ENTRY_LEN)
		return -DS_E_MALFORMED;
	toc = ds_malloc(sizeof(*toc) + (size_t)chunks_n * sizeof(toc->entries[0]));
	if (!toc)
		return -ENOMEM;
	*toc = (struct ds_pack_toc){
		.kind = (enum ds_pack_kind)kind,
		.chunks_n = chunks_n,
		.object_len_bytes = DS_PACK_HEAD_LEN,
	};
	for (uint32_t i = 0; i < chunks_n && r == 0; i++)
		r = parse_entry(&cursor, toc, i);
	toc->object_len_bytes += len_bytes + DS_PACK_TRAILER_LEN;
	if (r == 0 && toc->object_len_bytes > DS_PACK_MAX)
		r = -DS_E_MALFORMED;
	if (r < 0) {
		ds_free(toc);
		return r;
	}
	*ret_toc = toc;
	return 0;
}

int ds_pack_toc_locate(const void *tail, size_t tail_len_bytes, uint64_t object_len_bytes,
		       uint64_t *ret_off, uint64_t *ret_len_bytes)
{
	uint64_t len;

	if (tail_len_bytes < DS_PACK_TRAILER_LEN || tail_len_bytes > object_len_bytes ||
	    object_len_bytes > DS_PACK_MAX ||
	    object_len_bytes < DS_PACK_HEAD_LEN + PACK_TABLE_HEAD_LEN + DS_PACK_TRAILER_LEN)
		return -DS_E_MALFORMED;
	len = ds_get_le64((const uint8_t *)tail + tail_len_bytes - DS_PACK_TRAILER_LEN);
	if (len < PACK_TABLE_HEAD_LEN || len > PACK_TABLE_MAX ||
	    len > object_len_bytes - DS_PACK_HEAD_LEN - DS_PACK_TRAILER_LEN)
		return -DS_E_MALFORMED;
	*ret_off = object_len_bytes - DS_PACK_TRAILER_LEN - len;
	*ret_len_bytes = len;
	return 0;
}

const char *ds_pack_key(const struct ds_digest *id, char *buf)
{
	char text[DS_DIGEST_TEXT_MAX];

	ds_digest_format(id, text);
	snprintf(buf, DS_PACK_KEY_MAX, "packs/%.2s/%s", text, text);
	return buf;
}

const char *ds_pack_moved_key(const struct ds_digest *id, char *buf)
{
	char text[DS_DIGEST_TEXT_MAX];

	ds_digest_format(id, text);
	snprintf(buf, DS_PACK_KEY_MAX, "packs/%.2s/%s.moved", text, text);
	return buf;
}
