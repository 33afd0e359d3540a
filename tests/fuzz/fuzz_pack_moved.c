/* Input: a note without the sum at its end, which is added here; the id is that of the table in it. */
#include <string.h>

#include "codec/pack.h"
#include "fuzz.h"
#include "util/bytes.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t *note = fuzz_alloc(size + DS_DIGEST_LEN);
	struct ds_pack_moved moved = {0};
	struct ds_digest id, sum;
	size_t table_len = 0;

	if (size)
		memcpy(note, data, size);
	FUZZ_CHECK(ds_digest_of(note, size, &sum) == 0);
	memcpy(note + size, sum.bytes, DS_DIGEST_LEN);
	if (size >= 12)
		table_len = DS_MIN(ds_get_le32(note + 8), size - 12);
	FUZZ_CHECK(ds_digest_of(note + (size >= 12 ? 12 : 0), table_len, &id) == 0);
	if (ds_pack_moved_parse(note, size + DS_DIGEST_LEN, &id, &moved) == 0) {
		for (uint32_t i = 0; i < moved.toc->chunks_n; i++)
			FUZZ_CHECK(moved.targets[i].ordinal < DS_PACK_CHUNKS_MAX);
		ds_pack_moved_release(&moved);
	}
	FUZZ_CHECK(!moved.toc && !moved.targets);
	fuzz_free(note);
	return 0;
}
