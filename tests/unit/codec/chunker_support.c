#include "chunker_support.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "codec/chunker.h"
#include "codec_support.h"
#include "util/bytes.h"

static void add_segment(struct chunker_file *file, char kind, size_t len, struct ds_prng *prng)
{
	uint8_t *at;

	if (file->len + len >= file->capacity) {
		file->capacity = 2 * (file->len + len) + 1;
		file->data = realloc(file->data, file->capacity);
		cr_assert_not_null(file->data);
	}
	at = file->data + file->len;
	file->len += len;
	memset(at, kind == 'o', len);
	if (kind == 'z' || kind == 'o' || !len)
		return;
	support_fill(prng, at, len);
	for (size_t i = 0; i < len && kind == 't'; i++)
		at[i] &= 7;
	at[0] |= 1;
	at[len - 1] |= 1;
}

struct chunker_file chunker_file_of(const char *segments, uint64_t seed)
{
	struct ds_prng prng = {.state = seed};
	struct chunker_file file = {0};

	while (*segments) {
		char kind = *segments++, *end;

		add_segment(&file, kind, strtoul(segments, &end, 10), &prng);
		segments = *end ? end + 1 : end;
	}
	return file;
}

struct chunker_file chunker_random_file(struct ds_prng *prng)
{
	static const size_t around[] = {
		1, 4096, DS_ZEROS_MIN, DS_CHUNK_MIN, DS_CHUNK_TARGET, DS_CHUNK_MAX};
	struct chunker_file file = {0};

	while (file.len <= DS_CHUNK_MAX) {
		size_t len = around[ds_prng_below(prng, DS_ARRAY_SIZE(around))];

		if (ds_prng_below(prng, 2))
			len = 1 + (size_t)ds_prng_below(prng, 2 * len);
		else
			len = len + (size_t)ds_prng_below(prng, 3) - (len > 1);
		add_segment(&file, "rtzzo"[ds_prng_below(prng, 5)], len, prng);
	}
	return file;
}

void chunker_extents_release(struct chunker_extents *extents)
{
	free(extents->all);
	*extents = (struct chunker_extents){0};
}

int chunker_extents_add(void *ctx, uint64_t off, const void *data, uint64_t len_bytes)
{
	struct chunker_extents *extents = ctx;
	struct chunker_extent extent = {.len = len_bytes, .is_zeros = !data};

	cr_assert_eq(off, extents->off);
	cr_assert_gt(len_bytes, 0);
	if (data) {
		cr_assert_leq(len_bytes, DS_CHUNK_MAX);
		cr_assert_eq(ds_digest_of(data, len_bytes, &extent.digest), 0);
	} else {
		cr_assert_geq(len_bytes, DS_ZEROS_MIN);
	}
	extents->off += len_bytes;
	extents->all = realloc(extents->all, (extents->n + 1) * sizeof(extent));
	cr_assert_not_null(extents->all);
	extents->all[extents->n++] = extent;
	return 0;
}

void chunker_expect_equal(const struct chunker_extents *found,
			  const struct chunker_extents *expected)
{
	for (size_t i = 0; i < found->n && i < expected->n; i++) {
		cr_assert_eq(found->all[i].len, expected->all[i].len,
			     "extent %zu: %llu bytes, expected %llu", i,
			     (unsigned long long)found->all[i].len,
			     (unsigned long long)expected->all[i].len);
		cr_assert_eq(found->all[i].is_zeros, expected->all[i].is_zeros);
		cr_assert(ds_digest_equal(&found->all[i].digest, &expected->all[i].digest));
	}
	cr_assert_eq(found->n, expected->n);
}

static bool all_zero(const uint8_t *data, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (data[i])
			return false;
	return true;
}

void chunker_run(const struct chunker_file *file, uint64_t piece, bool holes,
		 struct chunker_extents *ret_extents)
{
	struct ds_prng prng = {.state = piece};
	bool random = piece != UINT64_MAX && piece & CHUNKER_RANDOM_PIECES;
	struct ds_chunker *chunker = NULL;

	cr_assert_eq(ds_chunker_new(chunker_extents_add, ret_extents, &chunker), 0);
	for (size_t at = 0; at < file->len;) {
		size_t n =
			random ? 1 + ds_prng_below(&prng, UINT64_C(1) << ds_prng_below(&prng, 21))
			       : piece;

		n = DS_MIN(n, file->len - at);
		if (holes && all_zero(file->data + at, n))
			cr_assert_eq(ds_chunker_feed_zeros(chunker, n), 0);
		else
			cr_assert_eq(ds_chunker_feed(chunker, file->data + at, n), 0);
		at += n;
	}
	cr_assert_eq(ds_chunker_finish(chunker), 0);
	ds_chunker_free(chunker);
	cr_assert_eq(ret_extents->off, file->len);
}

static void cut_stretch(const uint8_t *at, size_t left, const uint64_t *gear,
			struct chunker_extents *extents)
{
	while (left) {
		size_t n = left;

		if (left > 256 * 1024) {
			uint64_t h = 0;

			for (n = 256 * 1024; n < left && n < 4096 * 1024;) {
				h = (h << 1) + gear[at[n]];
				n++;
				if ((h >> (n <= 1024 * 1024 ? 42 : 46)) == 0)
					break;
			}
		}
		chunker_extents_add(extents, extents->off, at, n);
		at += n;
		left -= n;
	}
}

void chunker_reference(const struct chunker_file *file, struct chunker_extents *ret_extents)
{
	size_t stretch = 0, at = 0;
	uint64_t gear[256];

	for (unsigned i = 0; i < 256; i++) {
		uint8_t text[11] = "dsfs-gear-";
		struct ds_digest digest;

		text[10] = (uint8_t)i;
		cr_assert_eq(ds_digest_of(text, sizeof(text), &digest), 0);
		gear[i] = ds_get_le64(digest.bytes);
	}
	while (at < file->len) {
		size_t run = 0;

		while (at + run < file->len && file->data[at + run] == 0)
			run++;
		if (run >= 65536) {
			cut_stretch(file->data + stretch, at - stretch, gear, ret_extents);
			chunker_extents_add(ret_extents, at, NULL, run);
			stretch = at + run;
		}
		at += run ? run : 1;
	}
	cut_stretch(file->data + stretch, at - stretch, gear, ret_extents);
}
