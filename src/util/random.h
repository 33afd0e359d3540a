/*
 * Random bytes. Ids and nonces come from the kernel (getrandom(2)); what a test must be able to
 * repeat takes a struct ds_prng. Any thread for ds_random_bytes; a prng belongs to one thread.
 */
#ifndef DS_UTIL_RANDOM_H
#define DS_UTIL_RANDOM_H

#include <stddef.h>
#include <stdint.h>

/* Never fails: getrandom without flags only waits for the pool at boot. */
void ds_random_bytes(void *ret_data, size_t len_bytes);
uint64_t ds_random_u64(void);

/* SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): small, seedable, good enough for jitter and tests. */
struct ds_prng {
	uint64_t state;
};

uint64_t ds_prng_next(struct ds_prng *prng);
/* 0 <= value < bound; bound is at least 1. */
uint64_t ds_prng_below(struct ds_prng *prng, uint64_t bound);

#endif
