#include <assert.h>
#include <errno.h>

#include "codec/pack.h"
#include "codec/pack_format.h"
#include "util/bytes.h"
#include "util/error.h"
#include "util/mem.h"
#include "util/random.h"

#define SMALL_BYTES DS_MIB(1)
#define FULL_BYTES  (DS_PACK_TARGET + DS_KIB(64)) /* with its table */

struct ds_pack_writer {
	struct ds_buf object; /* magic and chunks */
	struct ds_buf table;  /* its number of chunks is filled in by close */
	uint32_t chunks_n;
	uint64_t raw_bytes;
};

int ds_pack_writer_new(enum ds_pack_kind kind, struct ds_buf *take_memory,
		       struct ds_pack_writer **ret_writer)
{
	struct ds_pack_writer *writer = ds_calloc(1, sizeof(*writer));
	uint8_t nonce[PACK_NONCE_LEN];
	int r;

	if (!writer)
		return -ENOMEM;
	ds_buf_init(&writer->object, DS_PACK_MAX);
	writer->object.align_bytes = DS_PACK_ALIGN;
	if (take_memory && take_memory->align_bytes == DS_PACK_ALIGN) {
		writer->object.data = take_memory->data;
		writer->object.capacity_bytes = take_memory->capacity_bytes;
		take_memory->data = NULL;
		ds_buf_release(take_memory);
	}
	ds_buf_init(&writer->table, PACK_TABLE_MAX);
	ds_random_bytes(nonce, sizeof(nonce));
	r = ds_buf_append(&writer->object, PACK_MAGIC, PACK_MAGIC_LEN);
	if (r == 0)
		r = ds_buf_append(&writer->table, PACK_TABLE_MAGIC, PACK_MAGIC_LEN);
	if (r == 0)
		r = ds_buf_append(&writer->table, nonce, sizeof(nonce));
	if (r == 0)
		r = ds_buf_append_le32(&writer->table, (uint32_t)kind);
	if (r == 0)
		r = ds_buf_append_le32(&writer->table, 0);
	if (r < 0) {
		ds_pack_writer_free(writer);
		return r;
	}
	*ret_writer = writer;
	return 0;
}

struct ds_pack_writer *ds_pack_writer_free(struct ds_pack_writer *writer)
{
	if (!writer)
		return NULL;
	ds_buf_release(&writer->object);
	ds_buf_release(&writer->table);
	ds_free(writer);
	return NULL;
}

/* What has outgrown a small pack will be a full one: once is enough. */
static int reserve_object(struct ds_buf *object, size_t len_bytes)
{
	size_t want_bytes = object->len_bytes + len_bytes;

	if (want_bytes > SMALL_BYTES && want_bytes < FULL_BYTES)
		len_bytes = FULL_BYTES - object->len_bytes;
	return ds_buf_reserve(object, len_bytes);
}

int ds_pack_writer_add(struct ds_pack_writer *writer, const struct ds_digest *digest,
		       const void *stored, uint32_t stored_len_bytes, uint32_t raw_len_bytes,
		       uint32_t *ret_ordinal, uint64_t *ret_stored_off)
{
	uint64_t off = writer->object.len_bytes;
	int r;

	assert(raw_len_bytes >= 1 && raw_len_bytes <= DS_CHUNK_MAX);
	assert(stored_len_bytes >= 1 && stored_len_bytes <= raw_len_bytes);
	/* What add accepts, close can write and every reader accepts. */
	if (writer->chunks_n == DS_PACK_CHUNKS_MAX ||
	    ds_pack_writer_len_bytes(writer) + stored_len_bytes + PACK_TABLE_ENTRY_LEN >
		    DS_PACK_MAX)
		return -DS_E_LIMIT;
	/* Room for the entry first, so that nothing fails after the chunk is in. */
	r = ds_buf_reserve(&writer->table, PACK_TABLE_ENTRY_LEN);
	if (r == 0)
		r = reserve_object(&writer->object, stored_len_bytes);
	if (r == 0)
		r = ds_buf_append(&writer->object, stored, stored_len_bytes);
	if (r < 0)
		return r;
	ds_buf_append(&writer->table, digest->bytes, DS_DIGEST_LEN);
	ds_buf_append_le32(&writer->table, raw_len_bytes);
	ds_buf_append_le32(&writer->table, stored_len_bytes);
	*ret_ordinal = writer->chunks_n++;
	*ret_stored_off = off;
	writer->raw_bytes += raw_len_bytes;
	return 0;
}

uint32_t ds_pack_writer_chunks_n(const struct ds_pack_writer *writer)
{
	return writer->chunks_n;
}

uint64_t ds_pack_writer_len_bytes(const struct ds_pack_writer *writer)
{
	return writer->object.len_bytes + writer->table.len_bytes + DS_PACK_TRAILER_LEN;
}

uint64_t ds_pack_writer_raw_bytes(const struct ds_pack_writer *writer)
{
	return writer->raw_bytes;
}

int ds_pack_writer_close(struct ds_pack_writer *writer, struct ds_digest *ret_id,
			 struct ds_buf *ret_object)
{
	struct ds_buf *table = &writer->table, *object = &writer->object;
	struct ds_digest id;
	int r;

	ds_put_le32(table->data + PACK_TABLE_HEAD_LEN - 4, writer->chunks_n);
	r = ds_digest_of(table->data, table->len_bytes, &id);
	if (r == 0)
		r = ds_buf_reserve(object, table->len_bytes + DS_PACK_TRAILER_LEN);
	if (r < 0)
		return r;
	ds_buf_append(object, table->data, table->len_bytes);
	ds_buf_append_le64(object, table->len_bytes);
	*ret_id = id;
	*ret_object = *object;
	ds_buf_init(object, 0);
	return 0;
}
