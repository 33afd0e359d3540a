#include <criterion/criterion.h>
#include <sys/resource.h>
#include <errno.h>
#include <string.h>

#include "test_leaks.h"
#include "util/list.h"
#include "util/mem.h"
#include "util/random.h"

TestSuite(mem, .fini = test_leaks_abort);

Test(mem, the_nth_allocation_fails_once)
{
	for (int n = 0; n < 5; n++) {
		ds_mem_fail_after(n, 0);
		for (int i = 0; i < 8; i++) {
			void *block = i & 1 ? ds_calloc(1, 1) : ds_malloc(1);

			cr_assert_eq(block == NULL, i == n, "%d %d", n, i);
			ds_free(block);
		}
		cr_assert_eq(ds_mem_fail_after(-1, 0), 1);
	}
	cr_assert_eq(ds_mem_fail_after(-1, 0), 0);
}

Test(mem, sticky_means_all_from_then_on)
{
	ds_mem_fail_after(2, 1);
	for (int i = 0; i < 8; i++) {
		void *block = ds_malloc(1);

		cr_assert_eq(block == NULL, i >= 2);
		ds_free(block);
	}
	cr_assert_null(ds_strdup("x"));
	cr_assert_null(ds_asprintf("%d", 1));
	cr_assert_null(ds_memdup("x", 1));
	cr_assert_eq(ds_mem_fail_after(-1, 0), 9);
}

Test(mem, a_failed_realloc_leaves_the_block)
{
	char *block = ds_strdup("text");

	ds_mem_fail_after(0, 0);
	cr_assert_null(ds_realloc(block, 1000));
	ds_mem_fail_after(-1, 0);
	cr_assert_str_eq(block, "text");
	cr_assert_null(ds_reallocarray(block, SIZE_MAX / 2, 3));
	cr_assert_str_eq(block, "text");
	block = ds_reallocarray(block, 10, 10);
	cr_assert_str_eq(block, "text");
	ds_free(block);
}

Test(mem, sizes_that_overflow_are_refused)
{
	volatile size_t half = SIZE_MAX / 2;

	cr_assert_null(ds_reallocarray(NULL, half, 3));
}

Test(mem, nothing_is_still_a_block)
{
	void *blocks[] = {ds_malloc(0), ds_calloc(0, 8), ds_calloc(8, 0), ds_realloc(NULL, 0),
			  ds_memdup("", 0)};

	for (size_t i = 0; i < DS_ARRAY_SIZE(blocks); i++) {
		cr_assert_not_null(blocks[i]);
		ds_free(blocks[i]);
	}
	ds_free(NULL);
	ds_free_secret(NULL);
	ds_free_secret(ds_strdup("secret"));
}

Test(mem, copies_are_equal)
{
	_ds_cleanup_free_ char *a = ds_strndup("abcdef", 3);
	_ds_cleanup_free_ char *b = ds_asprintf("%s-%05d", "x", 42);
	_ds_cleanup_free_ char *c = ds_memdup("a\0b", 3);

	cr_assert_str_eq(a, "abc");
	cr_assert_str_eq(b, "x-00042");
	cr_assert_arr_eq(c, "a\0b", 3);
}

struct item {
	int value;
	struct ds_list node;
};

static void expect_items(struct ds_list *list, const char *expected)
{
	char found[32] = "";
	size_t n = 0;

	ds_list_for_each (pos, list)
		found[n++] = (char)('0' + ds_list_entry(pos, struct item, node)->value);
	cr_assert_str_eq(found, expected);
}

Test(mem, a_list_keeps_its_order)
{
	struct item items[6];
	struct ds_list list, other;

	ds_list_init(&list);
	ds_list_init(&other);
	cr_assert(ds_list_is_empty(&list));
	for (int i = 0; i < 6; i++)
		items[i].value = i;
	ds_list_push_back(&list, &items[1].node);
	ds_list_push_back(&list, &items[2].node);
	ds_list_push_front(&list, &items[0].node);
	ds_list_add_before(&items[2].node, &items[5].node);
	expect_items(&list, "0152");
	ds_list_remove(&items[5].node);
	ds_list_remove(&items[5].node);
	expect_items(&list, "012");
	ds_list_splice(&list, &other);
	expect_items(&list, "012");
	ds_list_push_back(&other, &items[3].node);
	ds_list_push_back(&other, &items[4].node);
	ds_list_splice(&list, &other);
	expect_items(&list, "01234");
	cr_assert(ds_list_is_empty(&other));
	ds_list_for_each_safe (pos, tmp, &list) {
		if (ds_list_entry(pos, struct item, node)->value % 2 == 0)
			ds_list_remove(pos);
	}
	expect_items(&list, "13");
}

/* The first numbers of SplitMix64 with the seed 0, as in other implementations. */
Test(mem, the_generator_is_SplitMix64)
{
	struct ds_prng prng = {.state = 0};

	cr_assert_eq(ds_prng_next(&prng), 0xe220a8397b1dcdaf);
	cr_assert_eq(ds_prng_next(&prng), 0x6e789e6aa1b965f4);
	cr_assert_eq(ds_prng_next(&prng), 0x06c45d188009454f);
}

Test(mem, numbers_below_a_bound_reach_all_of_them)
{
	struct ds_prng prng = {.state = 1};
	unsigned counts[7] = {0};

	for (int i = 0; i < 7000; i++) {
		uint64_t n = ds_prng_below(&prng, 7);

		cr_assert_lt(n, 7);
		counts[n]++;
	}
	for (int i = 0; i < 7; i++)
		cr_assert(counts[i] > 800 && counts[i] < 1200, "%d: %u", i, counts[i]);
	cr_assert_eq(ds_prng_below(&prng, 1), 0);
}

Test(mem, random_bytes_differ)
{
	uint8_t bytes[2][32] = {{0}};

	ds_random_bytes(bytes[0], 32);
	ds_random_bytes(bytes[1], 32);
	cr_assert_neq(memcmp(bytes[0], bytes[1], 32), 0);
	ds_random_bytes(NULL, 0);
	cr_assert_neq(ds_random_u64(), ds_random_u64());
}

Test(mem, memory_is_no_more_than_the_limit_that_is_set)
{
	uint64_t before = ds_memory_bytes();
	struct rlimit limit;

	cr_assert_gt(before, DS_MIB(1));
	cr_assert_eq(getrlimit(RLIMIT_RSS, &limit), 0);
	limit.rlim_cur = DS_KIB(64);
	cr_assert_eq(setrlimit(RLIMIT_RSS, &limit), 0);
	cr_assert_eq(ds_memory_bytes(), DS_KIB(64));
}
