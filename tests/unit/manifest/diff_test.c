#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "codec/content.h"
#include "manifest_support.h"
#include "util/mem.h"

static void end(void)
{
	support_clean();
	support_check_leaks();
}

TestSuite(manifest_diff, .fini = end);

struct opened {
	struct ds_manifest_file *file;
	struct ds_manifest *manifest;
};

static void open_manifest(struct opened *opened, const char *path)
{
	struct ds_page_source source;

	cr_assert_eq(ds_manifest_file_open(path, &opened->file, &source), 0);
	cr_assert_eq(ds_manifest_new(&source, &opened->manifest), 0);
}

static void close_manifest(struct opened *opened)
{
	ds_manifest_free(opened->manifest);
	ds_manifest_file_close(opened->file);
}

/* One line per difference, "+path", "-path" or "~path". */
static int write_line(void *ctx, const char *path, size_t path_len, const struct ds_entry *old,
		      const struct ds_entry *new)
{
	struct ds_buf *buf = ctx;

	cr_assert(old || new);
	return ds_buf_appendf(buf, "%c%.*s\n", !old ? '+' : !new ? '-' : '~', (int)path_len, path);
}

static void check_diff(const char *a, const char *b, bool with_mtime, const char *expected)
{
	struct ds_buf buf = DS_BUF_INIT(1 << 20);
	struct opened old, new;

	open_manifest(&old, a);
	open_manifest(&new, b);
	cr_assert_eq(ds_manifest_diff(old.manifest, new.manifest, NULL, with_mtime, write_line,
				      &buf),
		     0);
	cr_assert_str_eq(ds_buf_str(&buf), expected);
	close_manifest(&old);
	close_manifest(&new);
	ds_buf_release(&buf);
}

static uint64_t add(struct model *model, struct ds_builder *builder, uint64_t parent,
		    const char *name, enum ds_entry_type type, uint64_t size)
{
	return model_add(model, builder, parent, name, strlen(name), type, size);
}

static uint64_t link_to(struct ds_builder *builder, uint64_t parent, const char *name, uint64_t ino)
{
	uint64_t id;

	cr_assert_eq(ds_builder_add_link(builder, parent, name, strlen(name), ino, &id), 0);
	return id;
}

Test(manifest_diff, tells_what_was_added_removed_and_changed)
{
	struct ds_builder *builder;
	uint64_t a, dir, inner, file, gone, becomes;
	struct model model;

	model_init(&model, 1);
	cr_assert_eq(ds_builder_create(support_path("old"), 4096, &builder), 0);
	dir = add(&model, builder, DS_ROOT_ID, "dir", DS_ENTRY_DIRECTORY, 0);
	a = add(&model, builder, DS_ROOT_ID, "same", DS_ENTRY_DIRECTORY, 0);
	add(&model, builder, a, "file", DS_ENTRY_FILE, 10);
	inner = add(&model, builder, dir, "inner", DS_ENTRY_DIRECTORY, 0);
	file = add(&model, builder, inner, "file", DS_ENTRY_FILE, 10);
	add(&model, builder, dir, "inner.txt", DS_ENTRY_FILE, 10);
	gone = add(&model, builder, DS_ROOT_ID, "gone", DS_ENTRY_DIRECTORY, 0);
	add(&model, builder, gone, "x", DS_ENTRY_FILE, 10);
	add(&model, builder, gone, "y", DS_ENTRY_SYMLINK, 10);
	becomes = add(&model, builder, DS_ROOT_ID, "becomes", DS_ENTRY_DIRECTORY, 0);
	add(&model, builder, becomes, "z", DS_ENTRY_FILE, 0);
	model_seal(&model, builder);
	cr_assert_eq(ds_builder_finish(builder), 0);
	ds_builder_free(builder);
	support_copy(support_path("old"), support_path("new"));
	check_diff(support_path("old"), support_path("new"), false, "");
	check_diff(support_path("old"), support_path("new"), true, "");

	cr_assert_eq(ds_builder_open(support_path("new"), &builder), 0);
	/* The model follows by hand where names go. */
	cr_assert_eq(ds_builder_remove(builder, gone), 0);
	cr_assert_eq(ds_builder_remove(builder, becomes), 0);
	cr_assert_eq(ds_builder_remove(builder, file), 0);
	for (size_t i = 0; i < model.names_n;) {
		uint64_t id = model.names[i].id, parent = model.names[i].parent;

		if (id == gone || id == becomes || id == file || parent == gone ||
		    parent == becomes)
			model.names[i] = model.names[--model.names_n];
		else
			i++;
	}
	model.next_id = 1;
	for (size_t i = 0; i < model.names_n; i++)
		model.next_id = DS_MAX(model.next_id, model.names[i].id + 1);
	model.next_id = becomes + 2;
	add(&model, builder, DS_ROOT_ID, "becomes", DS_ENTRY_FILE, 20);
	add(&model, builder, inner, "file", DS_ENTRY_FILE, 20);
	a = add(&model, builder, dir, "added", DS_ENTRY_DIRECTORY, 0);
	add(&model, builder, a, "one", DS_ENTRY_FILE, 0);
	model_seal(&model, builder);
	cr_assert_eq(ds_builder_finish(builder), 0);
	ds_builder_free(builder);

	check_diff(support_path("old"), support_path("new"), false,
		   "~becomes\n-becomes/z\n+dir/added\n+dir/added/one\n~dir/inner/file\n"
		   "-gone\n-gone/x\n-gone/y\n");
	check_diff(support_path("new"), support_path("old"), false,
		   "~becomes\n+becomes/z\n-dir/added\n-dir/added/one\n~dir/inner/file\n"
		   "+gone\n+gone/x\n+gone/y\n");
	model_release(&model);
}

Test(manifest_diff, times_and_links_count_only_when_asked_for)
{
	struct ds_builder *builder;
	uint64_t dir, a, b, c, ids[4];
	struct model model;
	struct ds_time time = {.s = 1};

	model_init(&model, 1);
	cr_assert_eq(ds_builder_create(support_path("old"), 4096, &builder), 0);
	dir = add(&model, builder, DS_ROOT_ID, "dir", DS_ENTRY_DIRECTORY, 0);
	add(&model, builder, dir, "f", DS_ENTRY_FILE, 0);
	a = add(&model, builder, DS_ROOT_ID, "a", DS_ENTRY_FILE, 0);
	b = add(&model, builder, DS_ROOT_ID, "b", DS_ENTRY_FILE, 0);
	c = add(&model, builder, DS_ROOT_ID, "c", DS_ENTRY_FILE, 0);
	for (uint64_t id = a; id <= c; id++)
		cr_assert_eq(ds_builder_set_mtime(builder, id, time), 0);
	model_seal(&model, builder);
	cr_assert_eq(ds_builder_finish(builder), 0);
	ds_builder_free(builder);

	support_copy(support_path("old"), support_path("new"));
	cr_assert_eq(ds_builder_open(support_path("new"), &builder), 0);
	cr_assert_eq(ds_builder_set_mtime(builder, DS_ROOT_ID, time), 0);
	cr_assert_eq(ds_builder_set_mtime(builder, dir, time), 0);
	cr_assert_eq(ds_builder_set_mtime(builder, dir + 1, time), 0);
	cr_assert_eq(ds_builder_finish(builder), 0);
	ds_builder_free(builder);
	check_diff(support_path("old"), support_path("new"), false, "");
	check_diff(support_path("old"), support_path("new"), true, "~\n~dir\n~dir/f\n");

	/* Two pairs of names, paired otherwise; equal contents, equal counts. */
	support_copy(support_path("old"), support_path("new"));
	for (unsigned i = 0; i < 2; i++) {
		cr_assert_eq(ds_builder_open(support_path(i ? "new" : "old"), &builder), 0);
		cr_assert_eq(ds_builder_remove(builder, b), 0);
		cr_assert_eq(ds_builder_remove(builder, c), 0);
		ids[0] = a;
		ids[1] = link_to(builder, DS_ROOT_ID, "d", a);
		struct ds_entry entry = {.type = DS_ENTRY_FILE,
					 .parent = DS_ROOT_ID,
					 .mtime = time};
		entry.name_len = 1;
		entry.name[0] = 'b';
		cr_assert_eq(ds_builder_lookup(builder, DS_ROOT_ID, "a", 1, &entry), 0);
		entry.name[0] = 'b';
		cr_assert_eq(ds_builder_add(builder, &entry, NULL, 0, NULL, 0, &ids[2]), 0);
		ids[3] = link_to(builder, DS_ROOT_ID, "c", ids[2]);
		if (i == 1) {
			cr_assert_eq(ds_builder_remove(builder, ids[1]), 0);
			cr_assert_eq(ds_builder_remove(builder, ids[3]), 0);
			link_to(builder, DS_ROOT_ID, "c", a);
			link_to(builder, DS_ROOT_ID, "d", ids[2]);
		}
		cr_assert_eq(ds_builder_finish(builder), 0);
		ds_builder_free(builder);
	}
	check_diff(support_path("old"), support_path("new"), false, "");
	check_diff(support_path("old"), support_path("new"), true, "~c\n~d\n");
	check_diff(support_path("old"), support_path("old"), true, "");
	model_release(&model);
}

static int stop_at_third(void *ctx, const char *path, size_t path_len, const struct ds_entry *old,
			 const struct ds_entry *new)
{
	unsigned *n = ctx;

	return ++*n == 3 ? -EINTR : 0;
}

static int count_one(void *ctx, const char *path, size_t path_len, const struct ds_entry *old,
		     const struct ds_entry *new)
{
	++*(unsigned *)ctx;
	return 1;
}

Test(manifest_diff, the_callback_can_end_it)
{
	struct model a, b;
	struct opened old, new;
	unsigned n = 0;

	model_build(&a, support_path("old"), 4096, 1, 100);
	model_build(&b, support_path("new"), 4096, 2, 100);
	open_manifest(&old, support_path("old"));
	open_manifest(&new, support_path("new"));
	cr_assert_eq(ds_manifest_diff(old.manifest, new.manifest, NULL, false, stop_at_third, &n),
		     -EINTR);
	cr_assert_eq(n, 3);
	n = 0;
	cr_assert_eq(ds_manifest_diff(old.manifest, new.manifest, NULL, false, count_one, &n), 0);
	cr_assert_eq(n, 1);
	close_manifest(&old);
	close_manifest(&new);
	model_release(&a);
	model_release(&b);
}

/* Paths with their digests of one model, in the order of a walk. */
static void walk_model(struct model *model, uint64_t dir, const char *prefix, struct ds_buf *lines)
{
	const struct model_name **list;
	size_t n;

	list = model_list(model, dir, &n);
	for (size_t i = 0; i < n; i++) {
		char *path = ds_asprintf("%s%s", prefix, list[i]->name);

		cr_assert_eq(ds_buf_appendf(lines, "+%s\n", path), 0);
		if (model_inode(model, list[i]->ino)->type == DS_ENTRY_DIRECTORY) {
			char *below = ds_asprintf("%s/", path);

			walk_model(model, list[i]->ino, below, lines);
			ds_free(below);
		}
		ds_free(path);
	}
	free(list);
}

Test(manifest_diff, a_whole_tree_is_listed_against_an_empty_one)
{
	struct ds_buf lines = DS_BUF_INIT(16 << 20);
	struct model model, empty;

	model_build(&model, support_path("new"), 4096, 4, 500);
	model_build(&empty, support_path("old"), 4096, 4, 0);
	walk_model(&model, DS_ROOT_ID, "", &lines);
	check_diff(support_path("old"), support_path("new"), false, ds_buf_str(&lines));
	ds_buf_release(&lines);
	model_release(&model);
	model_release(&empty);
}
