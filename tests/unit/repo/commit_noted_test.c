/*
 * The table of chunks that a commit knows.
 */
#include <errno.h>
#include <unistd.h>
#include "suite.h"
#include "repo/commit_noted.h"
#include "util/bytes.h"
#include "util/mem.h"

DS_SUITE(commit_noted);

/* All digests of a group of `alike` start with the same four bytes, which decide where they stand. */
static struct ds_digest digest_of(uint32_t i, uint32_t alike)
{
	struct ds_digest digest = {0};

	ds_put_le32(digest.bytes, i / alike * 2654435761u);
	ds_put_le32(digest.bytes + 28, i);
	return digest;
}

static void put_and_get(uint32_t n, uint32_t alike)
{
	struct noted_table *table = NULL;

	cr_assert_eq(noted_table_new("/tmp", &table), 0);
	for (uint32_t i = 0; i < n; i++) {
		struct ds_digest digest = digest_of(i, alike);
		struct noted *noted;

		cr_assert_null(noted_table_get(table, &digest));
		noted = noted_table_put(table, &digest);
		cr_assert_not_null(noted);
		cr_assert_eq(noted->place.ordinal, 0);
		noted->place.ordinal = i + 1;
		cr_assert_eq(noted_table_put(table, &digest), noted, "the same again");
	}
	cr_assert_eq(noted_table_count(table), n);
	for (uint32_t i = 0; i < n; i++) {
		struct ds_digest digest = digest_of(i, alike);

		cr_assert_eq(noted_table_get(table, &digest), noted_table_at(table, i));
		cr_assert_eq(noted_table_at(table, i)->place.ordinal, i + 1);
	}
	cr_assert_null(noted_table_free(table));
}

Test(commit_noted, what_was_put_is_found_and_nothing_else)
{
	put_and_get(100000, 1);
	put_and_get(5000, 50);
	put_and_get(0, 1);
}

Test(commit_noted, without_memory_it_says_so_and_keeps_what_it_has)
{
	struct noted_table *table = NULL;
	uint32_t n = 0;

	for (int64_t i = 0; i < 4; i++) {
		ds_mem_fail_after(i, 1);
		cr_assert_eq(noted_table_new("/tmp", &table), -ENOMEM);
		ds_mem_fail_after(-1, 0);
	}
	cr_assert_eq(noted_table_new(NULL, &table), 0);
	ds_mem_fail_after(3, 1);
	for (struct noted *noted;; n++) {
		struct ds_digest digest = digest_of(n, 1);

		noted = noted_table_put(table, &digest);
		if (!noted)
			break;
	}
	ds_mem_fail_after(-1, 0);
	cr_assert_gt(n, 0);
	cr_assert_eq(noted_table_count(table), n);
	for (uint32_t i = 0; i < 2 * n; i++) {
		struct ds_digest digest = digest_of(i, 1);

		cr_assert_eq(noted_table_get(table, &digest) != NULL, i < n);
	}
	noted_table_free(table);
}
