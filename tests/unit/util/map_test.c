#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "test_leaks.h"
#include "util/map.h"
#include "util/mem.h"
#include "util/random.h"

TestSuite(map, .fini = test_leaks_abort);

static char values[1000];

Test(map, what_was_put_is_got_until_it_is_removed)
{
	struct ds_map *map = NULL;
	void *old = values;

	cr_assert_eq(ds_map_new(&map), 0);
	cr_assert_null(ds_map_get(map, "a", 1));
	cr_assert_eq(ds_map_put(map, "a", 1, &values[1], &old), 0);
	cr_assert_null(old);
	cr_assert_eq(ds_map_put(map, "a\0", 2, &values[2], NULL), 0);
	cr_assert_eq(ds_map_put(map, "", 0, &values[3], NULL), 0);
	cr_assert_eq(ds_map_get(map, "a", 1), &values[1]);
	cr_assert_eq(ds_map_get(map, "a\0", 2), &values[2]);
	cr_assert_eq(ds_map_get(map, "", 0), &values[3]);
	cr_assert_eq(ds_map_put(map, "a", 1, &values[4], &old), 0);
	cr_assert_eq(old, &values[1]);
	cr_assert_eq(ds_map_count(map), 3);
	cr_assert_eq(ds_map_remove(map, "a", 1), &values[4]);
	cr_assert_null(ds_map_remove(map, "a", 1));
	cr_assert_null(ds_map_get(map, "a", 1));
	cr_assert_eq(ds_map_count(map), 2);
	cr_assert_null(ds_map_free(map, NULL));
	cr_assert_null(ds_map_free(NULL, NULL));
}

Test(map, the_key_is_copied_and_values_are_freed_if_asked)
{
	struct ds_map *map = NULL;
	char key[] = "key";

	cr_assert_eq(ds_map_new(&map), 0);
	cr_assert_eq(ds_map_put(map, key, 3, ds_strdup("value"), NULL), 0);
	key[0] = 'x';
	cr_assert_str_eq(ds_map_get(map, "key", 3), "value");
	ds_map_free(map, ds_free);
}

/* Random puts, gets and removes of 300 keys against a plain array; many removes, so that tombstones
 * fill the table again and again. */
Test(map, random_operations_agree_with_a_plain_array)
{
	struct ds_prng prng = {.state = ds_random_u64()};
	void *model[300] = {0};
	struct ds_map *map = NULL;
	size_t count = 0;

	fprintf(stderr, "seed %llu\n", (unsigned long long)prng.state);
	cr_assert_eq(ds_map_new(&map), 0);
	for (int step = 0; step < 100000; step++) {
		uint32_t key = (uint32_t)ds_prng_below(&prng, step % 20000 < 10000 ? 300 : 20);
		void *value = &values[ds_prng_below(&prng, sizeof(values))], *old = NULL;

		switch (ds_prng_below(&prng, 4)) {
		case 0:
			cr_assert_eq(ds_map_put(map, &key, sizeof(key), value, &old), 0);
			cr_assert_eq(old, model[key]);
			count += model[key] ? 0 : 1;
			model[key] = value;
			break;
		case 1:
			cr_assert_eq(ds_map_get(map, &key, sizeof(key)), model[key]);
			break;
		default:
			cr_assert_eq(ds_map_remove(map, &key, sizeof(key)), model[key]);
			count -= model[key] ? 1 : 0;
			model[key] = NULL;
		}
		cr_assert_eq(ds_map_count(map), count);
	}
	ds_map_free(map, NULL);
}

Test(map, each_shows_every_entry_once)
{
	uint8_t seen[500] = {0};
	struct ds_map *map = NULL;
	size_t cursor = 0, key_len, n = 0;
	const void *key;
	void *value;

	cr_assert_eq(ds_map_new(&map), 0);
	cr_assert_not(ds_map_each(map, &cursor, &key, &key_len, &value));
	for (uint32_t i = 0; i < 500; i++)
		cr_assert_eq(ds_map_put(map, &i, sizeof(i), &values[i], NULL), 0);
	cursor = 0;
	while (ds_map_each(map, &cursor, &key, &key_len, &value)) {
		uint32_t i;

		cr_assert_eq(key_len, sizeof(i));
		memcpy(&i, key, sizeof(i));
		cr_assert_eq(value, &values[i]);
		cr_assert_eq(seen[i]++, 0);
		n++;
	}
	cr_assert_eq(n, 500);
	cursor = 0;
	cr_assert(ds_map_each(map, &cursor, NULL, NULL, NULL));
	ds_map_free(map, NULL);
}

Test(map, J01_no_memory_leaves_the_map_as_it_was)
{
	struct ds_map *map = NULL;
	size_t failed_n = 0;

	for (int n = 0; n < 2; n++) {
		ds_mem_fail_after(n, 0);
		cr_assert_eq(ds_map_new(&map), -ENOMEM);
		cr_assert_eq(ds_mem_fail_after(-1, 0), 1);
	}
	cr_assert_eq(ds_map_new(&map), 0);
	for (uint32_t i = 0; i < 200; i++) {
		int n = 0;

		/* Growing, then the key: each fails once, then it succeeds. */
		for (;; n++) {
			int r;

			ds_mem_fail_after(n, 0);
			r = ds_map_put(map, &i, sizeof(i), &values[i], NULL);
			if (!ds_mem_fail_after(-1, 0)) {
				cr_assert_eq(r, 0);
				break;
			}
			cr_assert_eq(r, -ENOMEM);
			cr_assert_eq(ds_map_count(map), i);
			cr_assert_null(ds_map_get(map, &i, sizeof(i)));
			failed_n++;
		}
		for (uint32_t j = 0; j <= i; j++)
			cr_assert_eq(ds_map_get(map, &j, sizeof(j)), &values[j]);
	}
	cr_assert_gt(failed_n, 200);
	ds_map_free(map, NULL);
}
