/*
 * Cuts a large file into extents: zeros and content-defined chunks. Format: schema/README.md,
 * "Chunks".
 *
 * Bytes go into a buffer that starts at the current chunk. What follows the last byte that is not
 * zero may still turn out to be a run of zeros that ends the stretch; hence only what precedes it
 * is `certain`, and a cut is only looked for in there.
 *
 * INV-1  In data mode buffer[start..len) are the bytes of the current stretch that were not
 *        emitted, and its last `run` bytes are zero, run < DS_ZEROS_MIN after each step.
 * INV-2  In zeros mode the buffer is empty, and the last `zeros` >= DS_ZEROS_MIN bytes of the file
 *        were zero.
 * INV-3  scan_at and hash are the state of the search for the cut of the current chunk: positions
 *        before scan_at hold none.
 */
#include "codec/chunker.h"

#include <assert.h>
#include <errno.h>

#include "codec/chunk.h"
#include "util/bytes.h"
#include "util/mem.h"

#define BLOCK_BYTES	   4096u /* granularity of the search for zeros; no matter for the result */
#define BUFFER_BYTES	   (2 * DS_CHUNK_MAX + DS_ZEROS_MIN + BLOCK_BYTES)
#define MASK_BEFORE_TARGET (~UINT64_C(0) << (64 - 22))
#define MASK_AFTER_TARGET  (~UINT64_C(0) << (64 - 18))

struct ds_chunker {
	ds_chunker_fn *fn;
	void *ctx;
	uint64_t off; /* in the file, of the next extent */
	size_t start, len;
	uint64_t run;
	bool in_zeros;
	uint64_t zeros;
	size_t scan_at;
	uint64_t hash;
	uint64_t gear[256];
	uint8_t *buffer;
};

static int make_gear(uint64_t *gear)
{
	uint8_t text[11] = "dsfs-gear-";
	struct ds_digest digest;

	for (unsigned i = 0; i < 256; i++) {
		text[10] = (uint8_t)i;
		if (ds_digest_of(text, sizeof(text), &digest) < 0)
			return -ENOMEM;
		gear[i] = ds_get_le64(digest.bytes);
	}
	return 0;
}

int ds_chunker_new(ds_chunker_fn *fn, void *ctx, struct ds_chunker **ret_chunker)
{
	struct ds_chunker *chunker = ds_calloc(1, sizeof(*chunker));

	if (!chunker)
		return -ENOMEM;
	chunker->fn = fn;
	chunker->ctx = ctx;
	chunker->scan_at = DS_CHUNK_MIN;
	chunker->buffer = ds_malloc(BUFFER_BYTES);
	if (!chunker->buffer || make_gear(chunker->gear) < 0) {
		ds_chunker_free(chunker);
		return -ENOMEM;
	}
	*ret_chunker = chunker;
	return 0;
}

struct ds_chunker *ds_chunker_free(struct ds_chunker *chunker)
{
	if (!chunker)
		return NULL;
	ds_free(chunker->buffer);
	ds_free(chunker);
	return NULL;
}

/* Scans [scan_at, end) of the chunk; true with the chunk's length if there is a cut. */
static bool scan(struct ds_chunker *chunker, size_t end, uint64_t mask, size_t *ret_len)
{
	const uint8_t *at = chunker->buffer + chunker->start;
	const uint64_t *gear = chunker->gear;
	uint64_t hash = chunker->hash;
	size_t p = chunker->scan_at;

	for (; p < end; p++) {
		hash = (hash << 1) + gear[at[p]];
		if (!(hash & mask)) {
			*ret_len = p + 1;
			return true;
		}
	}
	chunker->scan_at = p;
	chunker->hash = hash;
	return false;
}

/* Length of the chunk that starts at `start`, 0 if more bytes must be seen first. `certain` bytes
 * from there belong to the stretch; with is_end they are all of it. */
static size_t find_cut(struct ds_chunker *chunker, size_t certain, bool is_end)
{
	size_t len;

	if (certain <= DS_CHUNK_MIN)
		return is_end ? certain : 0;
	if (chunker->scan_at < DS_CHUNK_TARGET &&
	    scan(chunker, DS_MIN(certain, (size_t)DS_CHUNK_TARGET), MASK_BEFORE_TARGET, &len))
		return len;
	if (chunker->scan_at >= DS_CHUNK_TARGET &&
	    scan(chunker, DS_MIN(certain, (size_t)DS_CHUNK_MAX), MASK_AFTER_TARGET, &len))
		return len;
	if (certain >= DS_CHUNK_MAX)
		return DS_CHUNK_MAX;
	return is_end ? certain : 0;
}

static int emit(struct ds_chunker *chunker, const void *data, uint64_t len)
{
	int r = chunker->fn(chunker->ctx, chunker->off, data, len);

	chunker->off += len;
	return r;
}

/* Emits every chunk whose end is known. */
static int cut(struct ds_chunker *chunker, size_t stretch_len, bool is_end)
{
	size_t len;
	int r;

	while (stretch_len && (len = find_cut(chunker, stretch_len, is_end))) {
		r = emit(chunker, chunker->buffer + chunker->start, len);
		if (r < 0)
			return r;
		chunker->start += len;
		stretch_len -= len;
		chunker->scan_at = DS_CHUNK_MIN;
		chunker->hash = 0;
	}
	return 0;
}

static int end_stretch(struct ds_chunker *chunker)
{
	int r = cut(chunker, chunker->len - chunker->start - chunker->run, true);

	chunker->start = chunker->len = 0;
	chunker->run = 0;
	return r;
}

/* Appends at most BLOCK_BYTES, of which the last `run` of the whole buffer are zero then. */
static int append(struct ds_chunker *chunker, const uint8_t *data, size_t len, uint64_t run)
{
	if (chunker->len + len > BUFFER_BYTES) {
		memmove(chunker->buffer, chunker->buffer + chunker->start,
			chunker->len - chunker->start);
		chunker->len -= chunker->start;
		chunker->start = 0;
	}
	assert(chunker->len + len <= BUFFER_BYTES);
	memcpy(chunker->buffer + chunker->len, data, len);
	chunker->len += len;
	chunker->run = run;
	return cut(chunker, chunker->len - chunker->start - run, false);
}

static bool is_zero(const uint8_t *data, size_t len)
{
	return data[0] == 0 && (len == 1 || memcmp(data, data + 1, len - 1) == 0);
}

static int feed_block(struct ds_chunker *chunker, const uint8_t *data, size_t len)
{
	size_t lead = 0, tail = 0;
	int r = 0;

	if (is_zero(data, len)) {
		if (chunker->in_zeros) {
			chunker->zeros += len;
			return 0;
		}
		if (chunker->run + len < DS_ZEROS_MIN)
			return append(chunker, data, len, chunker->run + len);
		chunker->zeros = chunker->run + len;
		r = end_stretch(chunker);
		chunker->in_zeros = true;
		return r;
	}
	while (data[lead] == 0)
		lead++;
	while (data[len - 1 - tail] == 0)
		tail++;
	if (!chunker->in_zeros && chunker->run + lead >= DS_ZEROS_MIN) {
		chunker->zeros = chunker->run;
		r = end_stretch(chunker);
		chunker->in_zeros = true;
	}
	if (r == 0 && chunker->in_zeros) {
		chunker->zeros += lead;
		data += lead;
		len -= lead;
		chunker->in_zeros = false;
		r = emit(chunker, NULL, chunker->zeros);
	}
	return r < 0 ? r : append(chunker, data, len, tail);
}

int ds_chunker_feed(struct ds_chunker *chunker, const void *data, size_t len_bytes)
{
	const uint8_t *at = data;
	int r = 0;

	while (len_bytes && r == 0) {
		size_t n = DS_MIN(len_bytes, (size_t)BLOCK_BYTES);

		r = feed_block(chunker, at, n);
		at += n;
		len_bytes -= n;
	}
	return r;
}

int ds_chunker_feed_zeros(struct ds_chunker *chunker, uint64_t len_bytes)
{
	static const uint8_t zeros[BLOCK_BYTES];
	int r = 0;

	while (len_bytes && r == 0 && !chunker->in_zeros) {
		size_t n = (size_t)DS_MIN(len_bytes, (uint64_t)BLOCK_BYTES);

		r = feed_block(chunker, zeros, n);
		len_bytes -= n;
	}
	if (r == 0)
		chunker->zeros += len_bytes;
	return r;
}

int ds_chunker_finish(struct ds_chunker *chunker)
{
	if (chunker->in_zeros) {
		chunker->in_zeros = false;
		return emit(chunker, NULL, chunker->zeros);
	}
	/* A tail of zeros that is too short for an extent belongs to the stretch. */
	chunker->run = 0;
	return end_stretch(chunker);
}
