#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "manifest/manifest_impl.h"
#include "manifest_support.h"
#include "util/mem.h"

static void end(void)
{
	support_clean();
	support_check_leaks();
}

TestSuite(manifest_pages, .fini = end);

static void build(struct support_source *source, unsigned files_n)
{
	struct ds_builder *builder;
	struct model model;
	char name[64];

	model_init(&model, 7);
	cr_assert_eq(ds_builder_create(support_path("m"), 4096, &builder), 0);
	for (unsigned i = 0; i < files_n; i++) {
		snprintf(name, sizeof(name), "a-rather-long-name-of-a-file-%08u", i);
		model_add(&model, builder, DS_ROOT_ID, name, strlen(name), DS_ENTRY_FILE, 100);
	}
	model_seal(&model, builder);
	cr_assert_eq(ds_builder_finish(builder), 0);
	ds_builder_free(builder);
	model_release(&model);
	support_source_load(source, support_path("m"));
}

static int stop(void *ctx, const struct ds_entry *entry)
{
	return 1;
}

Test(manifest_pages, with_the_hot_pages_a_lookup_misses_only_leaves)
{
	struct support_want want = {.is_set = false};
	struct support_source source;
	struct ds_manifest *manifest;
	struct ds_entry entry;
	uint64_t pages[500];
	char name[64];
	size_t n;
	int r;

	build(&source, 30000);
	cr_assert_eq(ds_manifest_hot_pages(&source.source, pages, DS_ARRAY_SIZE(pages), &n), 0);
	cr_assert(n > 9 && n < 100, "%zu pages of %llu", n,
		  (unsigned long long)source.source.pages_n);
	cr_assert_eq(pages[0], 0);
	for (size_t i = 0; i < n; i++) {
		cr_assert(pages[i] < source.source.pages_n);
		for (size_t k = 0; k < i; k++)
			cr_assert_neq(pages[i], pages[k]);
	}
	cr_assert_eq(ds_manifest_new(&source.source, &manifest), 0);
	support_source_empty(&source);
	for (size_t i = 0; i < n; i++)
		atomic_store(&source.is_local[pages[i]], 1);
	/* What the first `ls` of a mount needs is all there. */
	cr_assert_eq(ds_manifest_check(manifest, &want, NULL), 0);
	cr_assert_eq(ds_manifest_list(manifest, &want, DS_ROOT_ID, 0, stop, NULL), 0);
	cr_assert_eq(ds_manifest_total(manifest, &want, "files", &(uint64_t){0}), 0);
	for (unsigned i = 0; i < 100; i++) {
		snprintf(name, sizeof(name), "a-rather-long-name-of-a-file-%08u", i * 293);
		SUPPORT_UNTIL_LOCAL(&source, want, 2, r,
				    ds_manifest_lookup(manifest, &want, DS_ROOT_ID, name,
						       strlen(name), &entry));
		cr_assert_eq(r, 0);
	}
	ds_manifest_free(manifest);
	support_source_release(&source);
}

Test(manifest_pages, the_number_is_limited_and_the_most_wanted_come_first)
{
	struct support_source source;
	uint64_t all[500], few[12];
	size_t all_n, n;

	build(&source, 30000);
	cr_assert_eq(ds_manifest_hot_pages(&source.source, all, DS_ARRAY_SIZE(all), &all_n), 0);
	for (size_t max = 0; max <= DS_ARRAY_SIZE(few); max++) {
		cr_assert_eq(ds_manifest_hot_pages(&source.source, few, max, &n), 0);
		cr_assert_eq(n, max);
		cr_assert_arr_eq(few, all, n * sizeof(*few));
	}
	support_source_release(&source);
}

Test(manifest_pages, a_small_manifest_has_few)
{
	struct support_source source;
	struct model model;
	uint64_t pages[64];
	size_t n;

	model_build(&model, support_path("m"), 16384, 1, 3);
	model_release(&model);
	support_source_load(&source, support_path("m"));
	cr_assert_eq(ds_manifest_hot_pages(&source.source, pages, DS_ARRAY_SIZE(pages), &n), 0);
	cr_assert_eq(n, source.source.pages_n);
	support_source_release(&source);
}

Test(manifest_pages, G01_damaged_pages_are_passed_over)
{
	struct support_source source;
	struct ds_prng random = {.state = 3};
	uint64_t hot[64], pages[64];
	uint8_t *copy;
	size_t hot_n, n, size;

	build(&source, 30000);
	size = source.source.pages_n * source.source.page_size;
	copy = ds_memdup(source.data, size);
	cr_assert_eq(ds_manifest_hot_pages(&source.source, hot, DS_ARRAY_SIZE(hot), &hot_n), 0);
	for (unsigned i = 0; i < 2000; i++) {
		uint64_t page = hot[1 + ds_prng_below(&random, hot_n - 1)];
		int r;

		for (unsigned k = 0; k < 20; k++)
			source.data[page * 4096 + ds_prng_below(&random, k & 1 ? 16 : 4096)] =
				(uint8_t)ds_prng_next(&random);
		r = ds_manifest_hot_pages(&source.source, pages, DS_ARRAY_SIZE(pages), &n);
		cr_assert(r == 0 || r == -DS_E_MALFORMED);
		for (size_t k = 0; r == 0 && k < n; k++)
			cr_assert(pages[k] < source.source.pages_n);
		memcpy(source.data + page * 4096, copy + page * 4096, 4096);
	}
	ds_free(copy);
	support_source_release(&source);
}

static int count_name(void *ctx, const struct ds_entry *entry)
{
	++*(unsigned *)ctx;
	return 0;
}

Test(manifest_pages, all_connections_together_keep_a_bounded_number_of_pages)
{
	struct ds_conn *conns[DS_LANES_N];
	struct support_source source;
	struct ds_manifest *manifest;
	int used, sum = 0;
	int most;

	build(&source, 30000);
	cr_assert_gt(source.source.pages_n * source.source.page_size, DS_MIB(2));
	cr_assert_eq(ds_manifest_new(&source.source, &manifest), 0);
	/* In the first round those that came early have more than their share. */
	for (unsigned round = 0; round < 2; round++) {
		sum = 0;
		for (size_t i = 0; i < DS_ARRAY_SIZE(conns); i++) {
			unsigned names_n = 0;

			cr_assert_eq(ds_conn_take(manifest, NULL, &conns[i]), 0);
			cr_assert_eq(ds_read_list(&conns[i]->sql, DS_ROOT_ID, NULL, 0, count_name,
						  &names_n),
				     0);
			cr_assert_eq(names_n, 30000);
		}
		for (size_t i = 0; i < DS_ARRAY_SIZE(conns); i++) {
			cr_assert_eq(sqlite3_db_status(conns[i]->sql.db, SQLITE_DBSTATUS_CACHE_USED,
						       &used, &most, 0),
				     SQLITE_OK);
			sum += used;
			cr_assert_eq(ds_conn_put(manifest, conns[i], 0), 0);
		}
	}
	/* Of each some pages that its statements still hold may come on top. */
	cr_assert(sum > (int)DS_MIB(8) && sum < (int)DS_MIB(18), "%d bytes of pages", sum);
	ds_manifest_free(manifest);
	support_source_release(&source);
}
