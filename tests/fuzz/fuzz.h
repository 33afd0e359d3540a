/*
 * What the fuzz targets share. A target is one function, libFuzzer's (LLVM, "libFuzzer - a library
 * for coverage-guided fuzz testing"); without clang fuzz_replay.c calls it with each file of the
 * corpus.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "util/mem.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* As assert, but never compiled out. */
#define FUZZ_CHECK(condition)                                                                     \
	do {                                                                                      \
		if (!(condition)) {                                                               \
			fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
			abort();                                                                  \
		}                                                                                 \
	} while (0)

/* Blocks of exactly this size, so that the sanitizer sees a step beyond. */
static inline uint8_t *fuzz_alloc(size_t size)
{
	uint8_t *block = ds_calloc(1, size);

	FUZZ_CHECK(block);
	return block;
}

static inline uint8_t *fuzz_copy(const uint8_t *data, size_t size)
{
	uint8_t *copy = ds_memdup(data, size);

	FUZZ_CHECK(copy);
	return copy;
}

static inline void fuzz_free(uint8_t *block)
{
	ds_free(block);
}
