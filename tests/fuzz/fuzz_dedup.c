/* Input: an advisory index object. */
#include <string.h>

#include "codec/dedup.h"
#include "fuzz.h"
#include "util/bytes.h"

/* Merged into a new object, what was found is found again. */
static void check(const struct ds_dedup *dedup, const struct ds_digest *id, const uint8_t *data,
		  size_t size)
{
	struct ds_dedup_builder *builder = NULL;
	struct ds_buf buf = DS_BUF_INIT(DS_MIB(64));
	struct ds_dedup *merged = NULL;
	struct ds_digest merged_id;
	uint64_t entries_n = ds_get_le64(data + 24);
	size_t covers_n = ds_dedup_covers_n(dedup);

	FUZZ_CHECK(ds_dedup_builder_new(&builder) == 0);
	FUZZ_CHECK(ds_dedup_builder_merge(builder, dedup, id) == 0);
	FUZZ_CHECK(ds_dedup_builder_finish(builder, &buf, &merged_id) == 0);
	FUZZ_CHECK(ds_dedup_parse(buf.data, buf.len_bytes, &merged_id, &merged) == 0);
	FUZZ_CHECK(ds_dedup_covers_n(merged) >= 1 && ds_dedup_covers_n(merged) <= covers_n + 1);
	for (uint64_t i = 0; i < entries_n; i++) {
		struct ds_digest digest = {0};
		struct ds_dedup_hit hit, same;
		size_t cursor = 0, n = 0;

		memcpy(digest.bytes, data + size - (entries_n - i) * 20, DS_DEDUP_PREFIX_LEN);
		while (ds_dedup_find(dedup, &digest, &cursor, &hit)) {
			size_t merged_cursor = 0;
			bool found = false;

			while (!found && ds_dedup_find(merged, &digest, &merged_cursor, &same))
				found = ds_digest_equal(&same.pack, &hit.pack) &&
					same.ordinal == hit.ordinal;
			FUZZ_CHECK(found);
			n++;
		}
		FUZZ_CHECK(n >= 1);
	}
	for (size_t i = 0; i < covers_n; i++)
		FUZZ_CHECK(ds_dedup_covered(dedup, i));
	ds_dedup_free(merged);
	ds_dedup_builder_free(builder);
	ds_buf_release(&buf);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t *copy = fuzz_copy(data, size);
	struct ds_dedup *dedup = NULL;
	struct ds_digest id;

	FUZZ_CHECK(ds_digest_of(copy, size, &id) == 0);
	if (ds_dedup_parse(copy, size, &id, &dedup) == 0) {
		/* Quadratic where prefixes are equal, hence only small ones. */
		if (size <= 4096)
			check(dedup, &id, copy, size);
		ds_dedup_free(dedup);
	}
	fuzz_free(copy);
	return 0;
}
