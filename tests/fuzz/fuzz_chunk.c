/* Input: u32 raw length, then the stored bytes. */
#include <string.h>

#include "codec/chunk.h"
#include "fuzz.h"
#include "util/bytes.h"
#include "util/error.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct ds_digest digest = {0}, found;
	uint8_t *raw, *stored;
	uint32_t raw_len;
	int r;

	if (size < 4)
		return 0;
	raw_len = ds_get_le32(data);
	/* Blocks of exactly their size, so that the sanitizer sees what goes beyond. */
	raw = fuzz_alloc(raw_len <= DS_CHUNK_MAX ? raw_len : 0);
	stored = fuzz_copy(data + 4, size - 4);
	r = ds_chunk_decode(stored, size - 4, raw_len, &digest, raw);
	FUZZ_CHECK(r == -DS_E_MALFORMED || r == -DS_E_CORRUPT);
	if (r == -DS_E_CORRUPT) {
		/* With the digest of what came out it passes, and gives bytes of that digest. */
		FUZZ_CHECK(ds_digest_of(raw, raw_len, &digest) == 0);
		r = ds_chunk_decode(stored, size - 4, raw_len, &digest, raw);
		FUZZ_CHECK(r == 0 || r == -DS_E_CORRUPT);
		FUZZ_CHECK(ds_digest_of(raw, raw_len, &found) == 0);
		FUZZ_CHECK(r < 0 || ds_digest_equal(&found, &digest));
	}
	fuzz_free(stored);
	fuzz_free(raw);
	return 0;
}
