/* Input: a table of contents; also taken as the tail of a pack. */
#include "codec/pack.h"
#include "fuzz.h"

static void check(const struct ds_pack_toc *toc, size_t table_len)
{
	uint64_t off = DS_PACK_HEAD_LEN, raw_off = 0;

	FUZZ_CHECK(toc->chunks_n <= DS_PACK_CHUNKS_MAX);
	for (uint32_t i = 0; i < toc->chunks_n; i++) {
		const struct ds_pack_entry *entry = &toc->entries[i];

		FUZZ_CHECK(entry->stored_off == off && entry->raw_off == raw_off);
		FUZZ_CHECK(entry->raw_len_bytes >= 1 && entry->raw_len_bytes <= DS_CHUNK_MAX);
		FUZZ_CHECK(entry->stored_len_bytes >= 1 &&
			   entry->stored_len_bytes <= entry->raw_len_bytes);
		off += entry->stored_len_bytes;
		raw_off += entry->raw_len_bytes;
	}
	FUZZ_CHECK(toc->raw_len_bytes == raw_off);
	FUZZ_CHECK(toc->object_len_bytes == off + table_len + DS_PACK_TRAILER_LEN);
	FUZZ_CHECK(toc->object_len_bytes <= DS_PACK_MAX);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t *table = fuzz_copy(data, size);
	struct ds_pack_toc *toc = NULL;
	uint64_t off, len;
	struct ds_digest id;

	FUZZ_CHECK(ds_digest_of(table, size, &id) == 0);
	if (ds_pack_toc_parse(table, size, &id, &toc) == 0) {
		check(toc, size);
		ds_free(toc);
	}
	for (uint64_t object_len = size; object_len <= DS_PACK_MAX; object_len += DS_MIB(341))
		if (ds_pack_toc_locate(table, size, object_len, &off, &len) == 0)
			FUZZ_CHECK(off >= DS_PACK_HEAD_LEN && len > 0 &&
				   off + len + DS_PACK_TRAILER_LEN == object_len);
	fuzz_free(table);
	return 0;
}
