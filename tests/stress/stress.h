/*
 * What the stress programs share: a time limit and a seed, both printed, so that a run can be repeated. No Criterion: it
 * cannot run under TSan.
 *
 *	program [SECONDS [SEED]]
 */
#pragma once

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "util/clock.h"
#include "util/random.h"

#define STRESS_CHECK(condition)                                                                   \
	do {                                                                                      \
		if (!(condition)) {                                                               \
			fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
			abort();                                                                  \
		}                                                                                 \
	} while (0)

struct stress {
	uint64_t seed, until_ns;
	uint64_t length_ns;
};

static inline struct stress stress_begin(int argc, char *argv[], double seconds)
{
	struct stress stress;

	if (argc > 1)
		seconds = strtod(argv[1], NULL);
	stress.seed = argc > 2 ? strtoull(argv[2], NULL, 10) : ds_random_u64() % 1000000;
	stress.length_ns = (uint64_t)(seconds * 1e9);
	stress.until_ns = ds_mono_ns() + stress.length_ns;
	printf("%s %g %llu\n", argv[0], seconds, (unsigned long long)stress.seed);
	fflush(stdout);
	return stress;
}
