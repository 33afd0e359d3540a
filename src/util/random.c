#include "util/random.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

void ds_random_bytes(void *ret_data, size_t len_bytes)
{
	uint8_t *at = ret_data;

	while (len_bytes) {
		ssize_t n = getrandom(at, len_bytes, 0);

		if (n < 0) {
			if (errno == EINTR)
				continue;
			abort(); /* no kernel since 3.17 gets here with a valid buffer */
		}
		at += n;
		len_bytes -= (size_t)n;
	}
}

uint64_t ds_random_u64(void)
{
	uint64_t value;

	ds_random_bytes(&value, sizeof(value));
	return value;
}

uint64_t ds_prng_next(struct ds_prng *prng)
{
	uint64_t z = prng->state += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

uint64_t ds_prng_below(struct ds_prng *prng, uint64_t bound)
{
	return (uint64_t)(((unsigned __int128)ds_prng_next(prng) * bound) >> 64);
}
