#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "manifest_support.h"
#include "util/mem.h"

static void end(void)
{
	support_clean();
	support_check_leaks();
}

TestSuite(builder, .fini = end);

static struct ds_entry directory(uint64_t parent, const char *name)
{
	struct ds_entry entry = {.type = DS_ENTRY_DIRECTORY, .parent = parent};

	entry.name_len = (uint8_t)strlen(name);
	strcpy(entry.name, name);
	return entry;
}

Test(builder, an_empty_tree_has_a_root_and_nothing_else)
{
	struct ds_builder *builder;
	struct support_source source;
	struct ds_manifest *manifest;
	struct ds_entry root;
	uint64_t value = 1;

	cr_assert_eq(ds_builder_create(support_path("m"), 4096, &builder), 0);
	cr_assert_eq(ds_builder_finish(builder), 0);
	ds_builder_free(builder);
	support_source_load(&source, support_path("m"));
	cr_assert_eq(ds_manifest_new(&source.source, &manifest), 0);
	cr_assert_eq(ds_manifest_check(manifest, NULL, NULL), 0);
	cr_assert_eq(ds_manifest_get(manifest, NULL, DS_ROOT_ID, &root), 0);
	cr_assert_eq(root.type, DS_ENTRY_DIRECTORY);
	cr_assert_eq(root.nlink, 2);
	cr_assert_eq(root.name_len, 0);
	cr_assert_eq(root.size_bytes, 0);
	cr_assert_eq(ds_manifest_total(manifest, NULL, "files", &value), 0);
	cr_assert_eq(value, 0);
	cr_assert_eq(ds_manifest_lookup(manifest, NULL, DS_ROOT_ID, "x", 1, &root), -ENOENT);
	cr_assert_eq(ds_manifest_lookup(manifest, NULL, DS_ROOT_ID, "", 0, &root), -ENOENT);
	cr_assert_eq(ds_manifest_lookup(manifest, NULL, 0, "", 0, &root), -ENOENT);
	cr_assert_eq(ds_manifest_get(manifest, NULL, 2, &root), -ENOENT);
	ds_manifest_free(manifest);
	support_source_release(&source);
}

Test(builder, random_changes_give_the_same_tree_as_in_memory, .timeout = 600)
{
	const char *text = getenv("DSFS_TEST_SEED");
	uint64_t first_seed = text ? strtoull(text, NULL, 0) : 1;

	for (uint64_t seed = first_seed; seed < first_seed + 6; seed++) {
		struct ds_builder *builder;
		struct model model;

		fprintf(stderr, "seed %llu\n", (unsigned long long)seed);
		model_init(&model, seed);
		unlink(support_path("m"));
		cr_assert_eq(ds_builder_create(support_path("m"), 4096u << (seed % 3), &builder),
			     0);
		for (unsigned version = 0; version < 4; version++) {
			struct support_source source;
			struct ds_manifest *manifest;
			unsigned changes = version ? 100 : 700;

			if (version > 0)
				cr_assert_eq(ds_builder_open(support_path("m"), &builder), 0);
			/* Ids start after the largest in use. */
			model.next_id = DS_ENTRY_ID_FIRST;
			for (size_t i = 0; i < model.names_n; i++)
				model.next_id = DS_MAX(model.next_id, model.names[i].id + 1);
			for (unsigned i = 0; i < changes; i++)
				model_change(&model, builder);
			model_check_builder(&model, builder);
			model_seal(&model, builder);
			cr_assert_eq(ds_builder_finish(builder), 0);
			ds_builder_free(builder);

			support_source_load(&source, support_path("m"));
			cr_assert_eq(ds_manifest_new(&source.source, &manifest), 0);
			model_check_manifest(&model, manifest, NULL);
			source.is_mapped = true;
			model_check_manifest(&model, manifest, NULL);
			cr_assert_eq(support_verify(manifest), 0);
			ds_manifest_free(manifest);
			support_source_release(&source);
		}
		model_release(&model);
	}
}

Test(builder, the_same_input_gives_the_same_bytes)
{
	struct support_source a, b;
	struct model model;

	model_build(&model, support_path("a"), 4096, 99, 600);
	model_release(&model);
	model_build(&model, support_path("b"), 4096, 99, 600);
	model_release(&model);
	support_source_load(&a, support_path("a"));
	support_source_load(&b, support_path("b"));
	cr_assert_eq(a.source.pages_n, b.source.pages_n);
	cr_assert_arr_eq(a.data, b.data, a.source.pages_n * a.source.page_size);
	support_source_release(&a);
	support_source_release(&b);
}

static unsigned changed_pages(const struct support_source *a, const struct support_source *b)
{
	unsigned n = 0;

	cr_assert_eq(a->source.pages_n, b->source.pages_n);
	for (uint64_t i = 0; i < a->source.pages_n; i++)
		n += memcmp(a->data + i * a->source.page_size, b->data + i * a->source.page_size,
			    a->source.page_size) != 0;
	return n;
}

Test(builder, pages_that_no_changed_row_touches_stay_equal)
{
	struct support_source before, after;
	struct ds_builder *builder;
	struct model model;
	struct ds_time time = {.s = 12345};
	char name[32];

	model_init(&model, 5);
	cr_assert_eq(ds_builder_create(support_path("m"), 4096, &builder), 0);
	for (unsigned i = 0; i < 5000; i++) {
		snprintf(name, sizeof(name), "file-%06u", i);
		model_add(&model, builder, DS_ROOT_ID, name, strlen(name), DS_ENTRY_FILE, 1 + i);
	}
	model_seal(&model, builder);
	cr_assert_eq(ds_builder_finish(builder), 0);
	ds_builder_free(builder);
	support_source_load(&before, support_path("m"));
	cr_assert(before.source.pages_n > 100);

	/* Opened and finished without a change: nothing but the header's change counter may
	 * differ. */
	cr_assert_eq(ds_builder_open(support_path("m"), &builder), 0);
	cr_assert_eq(ds_builder_finish(builder), 0);
	ds_builder_free(builder);
	support_source_load(&after, support_path("m"));
	cr_assert(changed_pages(&before, &after) <= 1);
	support_source_release(&after);

	/* One row, changed in place: its leaf, and page 0. */
	cr_assert_eq(ds_builder_open(support_path("m"), &builder), 0);
	cr_assert_eq(ds_builder_set_mtime(builder, 2500, time), 0);
	cr_assert_eq(ds_builder_finish(builder), 0);
	ds_builder_free(builder);
	support_source_load(&after, support_path("m"));
	cr_assert_eq(changed_pages(&before, &after), 2);
	support_source_release(&after);

	/* New contents too: also the totals and the packs. */
	cr_assert_eq(ds_builder_open(support_path("m"), &builder), 0);
	model.next_id = 5003;
	cr_assert_eq(ds_builder_remove(builder, 3000), 0);
	cr_assert_eq(ds_builder_finish(builder), 0);
	ds_builder_free(builder);
	support_source_load(&after, support_path("m"));
	cr_assert(changed_pages(&before, &after) <= 9);
	support_source_release(&after);
	support_source_release(&before);
	model_release(&model);
}

Test(builder, finish_leaves_a_plain_file_with_a_rollback_header)
{
	struct support_source source;
	struct model model;
	char journal[200];

	model_build(&model, support_path("m"), 4096, 3, 300);
	model_release(&model);
	support_source_load(&source, support_path("m"));
	cr_assert_eq(source.data[18], 1);
	cr_assert_eq(source.data[19], 1);
	snprintf(journal, sizeof(journal), "%s-journal", support_path("m"));
	cr_assert_neq(access(journal, F_OK), 0);
	support_source_release(&source);
}

Test(builder, names_and_parents_that_are_missing_are_told)
{
	struct ds_entry entry = directory(DS_ROOT_ID, "d"), found;
	struct ds_builder *builder, *other;
	uint64_t dir, id;

	cr_assert_eq(ds_builder_create(support_path("m"), 16384, &builder), 0);
	cr_assert_eq(ds_builder_create(support_path("m"), 16384, &other), -EEXIST);
	cr_assert_eq(ds_builder_add(builder, &entry, NULL, 0, NULL, 0, &dir), 0);
	cr_assert_eq(dir, DS_ENTRY_ID_FIRST);
	cr_assert_eq(ds_builder_add(builder, &entry, NULL, 0, NULL, 0, &id), -EEXIST);
	entry = directory(77, "d");
	cr_assert_eq(ds_builder_add(builder, &entry, NULL, 0, NULL, 0, &id), -ENOENT);
	entry = directory(dir, "f");
	entry.type = DS_ENTRY_SYMLINK;
	cr_assert_eq(ds_builder_add(builder, &entry, NULL, 0, "to", 2, &id), 0);
	entry = directory(id, "below a symlink");
	cr_assert_eq(ds_builder_add(builder, &entry, NULL, 0, NULL, 0, &id), -ENOTDIR);
	cr_assert_eq(ds_builder_lookup(builder, dir, "g", 1, &found), -ENOENT);
	cr_assert_eq(ds_builder_lookup(builder, dir, "f", 1, &found), 0);
	cr_assert_eq(ds_builder_remove(builder, dir), 0);
	cr_assert_eq(ds_builder_lookup(builder, dir, "f", 1, &found), -ENOENT);
	cr_assert_eq(ds_builder_remove(builder, dir), -ENOENT);
	cr_assert_eq(ds_builder_total(builder, "directories"), 0);
	cr_assert_eq(ds_builder_total(builder, "symlinks"), 0);
	cr_assert_eq(ds_builder_finish(builder), 0);
	ds_builder_free(builder);
}

static void ignore_finding(void *ctx, const char *text)
{
}

static int count_difference(void *ctx, const char *path, size_t path_len,
			    const struct ds_entry *old, const struct ds_entry *new)
{
	++*(unsigned *)ctx;
	cr_assert_not(old);
	cr_assert_eq(path_len, 2 * (size_t) * (unsigned *)ctx - 1);
	return 0;
}

Test(builder, G04_a_deep_tree_needs_no_recursion)
{
	struct ds_manifest *deep_manifest, *empty_manifest;
	struct support_source deep, empty;
	unsigned differences_n = 0;
	uint64_t n;
	struct ds_builder *builder;
	struct ds_entry entry, root;
	uint64_t top = 0, id = DS_ROOT_ID;

	cr_assert_eq(ds_builder_create(support_path("m"), 4096, &builder), 0);
	for (unsigned depth = 0; depth < 20000; depth++) {
		entry = directory(id, "d");
		cr_assert_eq(ds_builder_add(builder, &entry, NULL, 0, NULL, 0, &id), 0);
		if (depth == 0)
			top = id;
	}
	cr_assert_eq(ds_builder_total(builder, "directories"), 20000);
	cr_assert_eq(ds_builder_finish(builder), 0);
	ds_builder_free(builder);

	/* Verified and compared without recursion, too. The directories' digests are not those
	 * of what they hold. */
	cr_assert_eq(ds_builder_create(support_path("empty"), 4096, &builder), 0);
	cr_assert_eq(ds_builder_finish(builder), 0);
	ds_builder_free(builder);
	support_source_load(&deep, support_path("m"));
	support_source_load(&empty, support_path("empty"));
	cr_assert_eq(ds_manifest_new(&deep.source, &deep_manifest), 0);
	cr_assert_eq(ds_manifest_new(&empty.source, &empty_manifest), 0);
	cr_assert_eq(ds_manifest_verify(deep_manifest, NULL, ignore_finding, NULL, &n), 0);
	cr_assert_eq(n, 20000);
	cr_assert_eq(ds_manifest_diff(empty_manifest, deep_manifest, NULL, true, count_difference,
				      &differences_n),
		     0);
	cr_assert_eq(differences_n, 20000);
	ds_manifest_free(deep_manifest);
	ds_manifest_free(empty_manifest);
	support_source_release(&deep);
	support_source_release(&empty);

	cr_assert_eq(ds_builder_open(support_path("m"), &builder), 0);
	cr_assert_eq(ds_builder_remove(builder, top), 0);
	cr_assert_eq(ds_builder_total(builder, "directories"), 0);
	cr_assert_eq(ds_builder_get(builder, DS_ROOT_ID, &root), 0);
	cr_assert_eq(root.nlink, 2);
	cr_assert_eq(root.size_bytes, 0);
	cr_assert_eq(ds_builder_finish(builder), 0);
	ds_builder_free(builder);
}

static int count_reject(void *ctx, const char *path, size_t path_len, const char *reason)
{
	unsigned *n = ctx;

	cr_assert_eq(path_len, 5);
	cr_assert_eq(memcmp(path, "a\0b/", 4), 0);
	cr_assert_str_eq(reason, "a socket");
	cr_assert_eq(path[4], '0' + (char)(*n)++);
	return 0;
}

Test(builder, rejects_are_listed_counted_and_cleared)
{
	struct support_source source;
	struct ds_builder *builder;
	struct ds_manifest *manifest;
	unsigned n = 0;

	cr_assert_eq(ds_builder_create(support_path("m"), 4096, &builder), 0);
	cr_assert_eq(ds_builder_add_reject(builder, "a\0b/0", 5, "a socket"), 0);
	cr_assert_eq(ds_builder_add_reject(builder, "a\0b/1", 5, "a socket"), 0);
	cr_assert_eq(ds_builder_add_reject(builder, "a\0b/1", 5, "a socket"), -EEXIST);
	cr_assert_eq(ds_builder_total(builder, "rejected"), 2);
	cr_assert_eq(ds_builder_finish(builder), 0);
	ds_builder_free(builder);
	support_source_load(&source, support_path("m"));
	cr_assert_eq(ds_manifest_new(&source.source, &manifest), 0);
	cr_assert_eq(ds_manifest_rejects(manifest, NULL, count_reject, &n), 0);
	cr_assert_eq(n, 2);
	ds_manifest_free(manifest);
	support_source_release(&source);
	cr_assert_eq(ds_builder_open(support_path("m"), &builder), 0);
	cr_assert_eq(ds_builder_clear_rejects(builder), 0);
	cr_assert_eq(ds_builder_total(builder, "rejected"), 0);
	cr_assert_eq(ds_builder_finish(builder), 0);
	ds_builder_free(builder);
}

Test(builder, what_was_removed_leaves_no_bytes_behind)
{
	static const char secret[] = "the-name-of-a-file-that-nobody-may-see-again";
	struct support_source source;
	struct ds_builder *builder;
	struct model model;
	unsigned removed_n = 0;
	uint64_t id;

	model_init(&model, 3);
	cr_assert_eq(ds_builder_create(support_path("m"), 4096, &builder), 0);
	for (unsigned i = 0; i < 300; i++)
		model_change(&model, builder);
	id = model_add(&model, builder, DS_ROOT_ID, secret, strlen(secret), DS_ENTRY_FILE, 0);
	for (unsigned i = 0; i < 300; i++) {
		struct ds_entry entry = directory(DS_ROOT_ID, secret);

		entry.name_len = (uint8_t)(strlen(secret) +
					   (size_t)sprintf(entry.name + strlen(secret), "%u", i));
		cr_assert_eq(ds_builder_add(builder, &entry, NULL, 0, NULL, 0, &id), 0);
	}
	model_seal(&model, builder);
	cr_assert_eq(ds_builder_finish(builder), 0);
	ds_builder_free(builder);
	support_source_load(&source, support_path("m"));
	cr_assert(memmem(source.data, source.source.pages_n * 4096, secret, strlen(secret)));
	support_source_release(&source);

	cr_assert_eq(ds_builder_open(support_path("m"), &builder), 0);
	for (; id >= DS_ENTRY_ID_FIRST; id--) {
		struct ds_entry entry;

		if (ds_builder_get(builder, id, &entry) < 0 ||
		    strncmp(entry.name, secret, strlen(secret)) != 0)
			continue;
		cr_assert_eq(ds_builder_remove(builder, id), 0);
		removed_n++;
	}
	cr_assert_eq(removed_n, 301);
	cr_assert_eq(ds_builder_finish(builder), 0);
	ds_builder_free(builder);
	support_source_load(&source, support_path("m"));
	cr_assert_not(memmem(source.data, source.source.pages_n * 4096, secret, strlen(secret)));
	support_source_release(&source);
	model_release(&model);
}
