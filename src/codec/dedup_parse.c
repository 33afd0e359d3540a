#include <errno.h>

#include "codec/dedup_format.h"
#include "util/bytes.h"
#include "util/error.h"
#include "util/mem.h"

static int check_entries(const struct ds_dedup *dedup)
{
	const uint8_t *at = dedup->entries;

	for (uint64_t i = 0; i < dedup->entries_n; i++, at += DEDUP_ENTRY_LEN) {
		if (ds_get_le32(at + 8) >= dedup->packs_n ||
		    ds_get_le32(at + 16) > dedup->versions_n)
			return -DS_E_MALFORMED;
		if (i && memcmp(at - DEDUP_ENTRY_LEN, at, DS_DEDUP_PREFIX_LEN) > 0)
			return -DS_E_MALFORMED;
	}
	return 0;
}

int ds_dedup_parse(const void *data, size_t len_bytes, const struct ds_digest *id,
		   struct ds_dedup **ret_dedup)
{
	struct ds_cursor cursor = ds_cursor_of(data, len_bytes);
	struct ds_dedup *dedup;
	struct ds_digest found;
	const uint8_t *magic;
	uint32_t reserved;
	int r;

	r = ds_digest_of(data, len_bytes, &found);
	if (r < 0)
		return r;
	if (!ds_digest_equal(&found, id))
		return -DS_E_CORRUPT;
	dedup = ds_calloc(1, sizeof(*dedup));
	if (!dedup)
		return -ENOMEM;
	magic = ds_cursor_take(&cursor, DEDUP_MAGIC_LEN);
	dedup->packs_n = ds_cursor_le32(&cursor);
	dedup->versions_n = ds_cursor_le32(&cursor);
	dedup->covers_n = ds_cursor_le32(&cursor);
	reserved = ds_cursor_le32(&cursor);
	dedup->entries_n = ds_cursor_le64(&cursor);
	if (cursor.failed || reserved || memcmp(magic, DEDUP_MAGIC, DEDUP_MAGIC_LEN) != 0 ||
	    dedup->packs_n > DEDUP_IDS_MAX || dedup->versions_n > DEDUP_IDS_MAX ||
	    dedup->covers_n > DEDUP_IDS_MAX || dedup->entries_n > DEDUP_ENTRIES_MAX) {
		ds_free(dedup);
		return -DS_E_MALFORMED;
	}
	dedup->packs = ds_cursor_take(&cursor, (size_t)dedup->packs_n * DS_DIGEST_LEN);
	dedup->versions = ds_cursor_take(&cursor, (size_t)dedup->versions_n * DS_DIGEST_LEN);
	dedup->covers = ds_cursor_take(&cursor, (size_t)dedup->covers_n * DS_DIGEST_LEN);
	dedup->entries = ds_cursor_take(&cursor, (size_t)dedup->entries_n * DEDUP_ENTRY_LEN);
	r = cursor.failed || cursor.left_bytes ? -DS_E_MALFORMED : check_entries(dedup);
	if (r < 0) {
		ds_free(dedup);
		return r;
	}
	*ret_dedup = dedup;
	return 0;
}

struct ds_dedup *ds_dedup_free(struct ds_dedup *dedup)
{
	ds_free(dedup);
	return NULL;
}

void ds_dedup_hit_at(const struct ds_dedup *dedup, uint64_t i, struct ds_dedup_hit *ret_hit)
{
	const uint8_t *at = dedup->entries + i * DEDUP_ENTRY_LEN;
	uint32_t pack = ds_get_le32(at + 8), version = ds_get_le32(at + 16);

	*ret_hit = (struct ds_dedup_hit){
		.ordinal = ds_get_le32(at + 12),
		.has_version = version != 0,
	};
	memcpy(ret_hit->pack.bytes, dedup->packs + (size_t)pack * DS_DIGEST_LEN, DS_DIGEST_LEN);
	if (version)
		memcpy(ret_hit->version.bytes,
		       dedup->versions + (size_t)(version - 1) * DS_DIGEST_LEN, DS_DIGEST_LEN);
}

/* First entry whose prefix is not below the digest's. */
static uint64_t lower_bound(const struct ds_dedup *dedup, const struct ds_digest *digest)
{
	uint64_t low = 0, high = dedup->entries_n;

	while (low < high) {
		uint64_t middle = low + (high - low) / 2;

		if (memcmp(dedup->entries + middle * DEDUP_ENTRY_LEN, digest->bytes,
			   DS_DEDUP_PREFIX_LEN) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

bool ds_dedup_find(const struct ds_dedup *dedup, const struct ds_digest *digest, size_t *cursor,
		   struct ds_dedup_hit *ret_hit)
{
	/* The cursor is 0 at first, then one more than the entry that follows the last hit. */
	uint64_t i = *cursor ? *cursor - 1 : lower_bound(dedup, digest);

	if (i >= dedup->entries_n ||
	    memcmp(dedup->entries + i * DEDUP_ENTRY_LEN, digest->bytes, DS_DEDUP_PREFIX_LEN) != 0)
		return false;
	ds_dedup_hit_at(dedup, i, ret_hit);
	*cursor = i + 2;
	return true;
}

size_t ds_dedup_covers_n(const struct ds_dedup *dedup)
{
	return dedup->covers_n;
}

const struct ds_digest *ds_dedup_covered(const struct ds_dedup *dedup, size_t i)
{
	/* A struct of bytes has no alignment to respect. */
	return (const struct ds_digest *)(dedup->covers + i * DS_DIGEST_LEN);
}
