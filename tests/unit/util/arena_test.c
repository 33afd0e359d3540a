#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "test_leaks.h"
#include "util/arena.h"
#include "util/mem.h"
#include "util/random.h"

TestSuite(arena, .fini = test_leaks_abort);

/* In kB, as /proc/self/status says it. */
static long resident_anon(void)
{
	FILE *file = fopen("/proc/self/status", "r");
	char line[256];
	long kb = -1;

	cr_assert_not_null(file);
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, "RssAnon: %ld", &kb) == 1)
			break;
	fclose(file);
	cr_assert_geq(kb, 0);
	return kb;
}

static void fill_and_check(const char *dir)
{
	struct ds_arena *arena = NULL;
	struct ds_prng prng = {5};
	uint8_t **pieces = calloc(3000, sizeof(*pieces));
	size_t *lens = calloc(3000, sizeof(*lens));

	cr_assert_eq(ds_arena_new(dir, &arena), 0);
	for (size_t i = 0; i < 3000; i++) {
		lens[i] = ds_prng_below(&prng, i % 100 ? 2000 : 400000);
		pieces[i] = ds_arena_calloc(arena, lens[i], 1);
		cr_assert_not_null(pieces[i]);
		cr_assert_eq((uintptr_t)pieces[i] % 16, 0);
		for (size_t at = 0; at < lens[i]; at++)
			cr_assert_eq(pieces[i][at], 0);
		memset(pieces[i], (int)(i % 251 + 1), lens[i]);
	}
	for (size_t i = 0; i < 3000; i++)
		for (size_t at = 0; at < lens[i]; at++)
			cr_assert_eq(pieces[i][at], i % 251 + 1);
	cr_assert_str_eq(ds_arena_memdup(arena, "text", 5), "text");
	cr_assert_null(ds_arena_calloc(arena, SIZE_MAX / 2, 3));
	cr_assert_null(ds_arena_calloc(arena, SIZE_MAX, 1));
	cr_assert_null(ds_arena_free(arena));
	free(pieces);
	free(lens);
}

Test(arena, pieces_are_zero_aligned_and_apart)
{
	fill_and_check("/tmp");
	fill_and_check(NULL);
}

Test(arena, where_no_file_can_be_made_it_is_memory)
{
	fill_and_check("/tmp/there/is/no/such/directory");
}

Test(arena, a_file_leaves_no_name_and_takes_the_place_of_memory)
{
	char dir[] = "/tmp/dsfs-arena.XXXXXX";
	struct ds_arena *arena = NULL;
	long before;

	cr_assert_not_null(mkdtemp(dir));
	cr_assert_eq(ds_arena_new(dir, &arena), 0);
	before = resident_anon();
	for (int i = 0; i < 64; i++)
		memset(ds_arena_calloc(arena, 1, DS_MIB(1)), 1, DS_MIB(1));
	/* On the way to 64 MiB of anonymous memory it would be far over this. */
	cr_assert_lt(resident_anon() - before, 16 * 1024);
	/* Nothing is left in it, not even while the arena lives. */
	cr_assert_eq(rmdir(dir), 0);
	ds_arena_free(arena);
}

Test(arena, without_memory_it_says_so)
{
	struct ds_arena *arena = NULL;

	ds_mem_fail_after(0, 1);
	cr_assert_eq(ds_arena_new("/tmp", &arena), -ENOMEM);
	ds_mem_fail_after(1, 1);
	cr_assert_eq(ds_arena_new("/tmp", &arena), -ENOMEM);
	ds_mem_fail_after(-1, 0);
	cr_assert_eq(ds_arena_new("/tmp", &arena), 0);
	ds_mem_fail_after(0, 1);
	cr_assert_null(ds_arena_calloc(arena, 1, 1));
	ds_mem_fail_after(-1, 0);
	cr_assert_not_null(ds_arena_calloc(arena, 1, 1));
	ds_arena_free(arena);
}
