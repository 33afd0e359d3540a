/* Made-up files, a recording callback, and the chunker's rule as a plain definition. */
#pragma once

#include "codec/chunk.h"
#include "util/random.h"

struct chunker_file {
	uint8_t *data; /* the caller frees */
	size_t len, capacity;
};

/* "r1000 z65536 ...": see chunker_test.c. */
struct chunker_file chunker_file_of(const char *segments, uint64_t seed);
struct chunker_file chunker_random_file(struct ds_prng *prng);

struct chunker_extent {
	uint64_t len;
	bool is_zeros;
	struct ds_digest digest;
};

struct chunker_extents {
	struct chunker_extent *all;
	size_t n;
	uint64_t off; /* where the next must start */
};

void chunker_extents_release(struct chunker_extents *extents);
/* The callback; ctx is a struct chunker_extents. */
int chunker_extents_add(void *ctx, uint64_t off, const void *data, uint64_t len_bytes);
void chunker_expect_equal(const struct chunker_extents *found,
			  const struct chunker_extents *expected);

/* By the chunker, in pieces of that size (with CHUNKER_RANDOM_PIECES: of any, the rest is the seed).
 * With `holes` pieces of zeros are fed as holes. */
#define CHUNKER_RANDOM_PIECES (UINT64_C(1) << 62)
void chunker_run(const struct chunker_file *file, uint64_t piece, bool holes,
		 struct chunker_extents *ret_extents);
/* By the definition in schema/README.md, over the whole file at once. */
void chunker_reference(const struct chunker_file *file, struct chunker_extents *ret_extents);
