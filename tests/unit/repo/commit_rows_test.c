/*
 * Rows of the parent's manifest that are not had, since the stat cache knows what they say.
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "commit_support.h"
#include "manifest/builder.h"
#include "suite.h"
#include "util/clock.h"
#include "util/error.h"
#include "util/str.h"

DS_SUITE(commit_rows);

enum { FILES_N = 400 };

static unsigned lists_n;
static unsigned wrong_counts_n; /* so many times a manifest has an entry too many */

int __real_ds_builder_list(struct ds_builder *builder, uint64_t dir, ds_manifest_list_fn *fn,
			   void *ctx);
int __wrap_ds_builder_list(struct ds_builder *builder, uint64_t dir, ds_manifest_list_fn *fn,
			   void *ctx);
int __real_ds_builder_entries_n(struct ds_builder *builder, uint64_t *ret_n);
int __wrap_ds_builder_entries_n(struct ds_builder *builder, uint64_t *ret_n);
struct ds_time __real_ds_real_now(void);
struct ds_time __wrap_ds_real_now(void);

int __wrap_ds_builder_list(struct ds_builder *builder, uint64_t dir, ds_manifest_list_fn *fn,
			   void *ctx)
{
	lists_n++;
	return __real_ds_builder_list(builder, dir, fn, ctx);
}

int __wrap_ds_builder_entries_n(struct ds_builder *builder, uint64_t *ret_n)
{
	int r = __real_ds_builder_entries_n(builder, ret_n);

	if (r == 0 && wrong_counts_n) {
		wrong_counts_n--;
		++*ret_n;
	}
	return r;
}

/* All files have settled: box_settle without its wait. */
struct ds_time __wrap_ds_real_now(void)
{
	return ds_time_add_ns(__real_ds_real_now(), 5 * (int64_t)DS_NS_PER_S);
}

static const char *file_path(unsigned i)
{
	static char path[40];

	snprintf(path, sizeof(path), "dir/%05u", i);
	return path;
}

/* The tree: a directory of many files, and one that is a link, with two versions. */
static void init(struct box *box)
{
	box_init(box);
	box->options.mtime = true;
	box_mkdir(box, "dir");
	for (unsigned i = 0; i < FILES_N; i++)
		box_fill(box, file_path(i), i, i % 7 * 100);
	box_link(box, "dir/00020", "dir/link");
	box_symlink(box, "dir/00021", "dir/symlink");
	box_mkdir(box, "dir/sub");
	box_fill(box, "dir/sub/file", 1, 10);
	box_commit(box);
	box_check(box, NULL);
	lists_n = 0;
}

/* What is committed is what is there, and so many directories were listed for it. */
static void commit(struct box *box, unsigned wanted_lists_n, uint64_t changed_n)
{
	lists_n = 0;
	box_commit(box);
	cr_assert(!box->result.unchanged);
	cr_assert_eq(box->result.added_n + box->result.changed_n + box->result.removed_n, changed_n,
		     "%llu, %llu, %llu", (unsigned long long)box->result.added_n,
		     (unsigned long long)box->result.changed_n,
		     (unsigned long long)box->result.removed_n);
	cr_assert_eq(lists_n, wanted_lists_n);
	box_check(box, NULL);
}

/* The root, which has but one name, and `sub` are listed each time; a directory with a name less once more, for what goes. */
Test(commit_rows, of_what_is_known_are_not_had)
{
	struct box box;

	init(&box);
	for (unsigned i = 0; i < 10; i++)
		box_fill(&box, file_path(i * 30), 1000 + i, 1000);
	commit(&box, 2, 10);
	cr_assert_eq(box.result.read_bytes, 10 * 1000);
	box_fill(&box, "dir/new", 1, 1);
	box_fill(&box, "dir/sub/file", 2, 20);
	commit(&box, 2, 2);
	box_remove(&box, "dir/00033");
	commit(&box, 3, 1);
	/* One goes, one comes. */
	box_rename(&box, "dir/00034", "dir/00034-other");
	commit(&box, 3, 2);
	box_chmod(&box, "dir/00040", 0755);
	box_set_mtime(&box, "dir/00041", 1000, 7);
	commit(&box, 2, 1);
	/* Links come, change and go. */
	box_link(&box, "dir/00042", "dir/second");
	commit(&box, 2, 1);
	box_fill(&box, "dir/second", 77, 300);
	commit(&box, 2, 2);
	box_remove(&box, "dir/00042");
	commit(&box, 3, 1);
	box_remove(&box, "dir/link");
	commit(&box, 3, 1);
	/* A file becomes a directory. */
	box_remove(&box, "dir/00050");
	box_mkdir(&box, "dir/00050");
	box_fill(&box, "dir/00050/file", 1, 10);
	commit(&box, 2, 2);
	box_remove(&box, "dir");
	box_fill(&box, "other", 1, 1);
	box_commit(&box);
	box_check(&box, NULL);
	box_release(&box);
}

/* Names that were not of the tree before, and are not any more, by the options alone. */
Test(commit_rows, names_that_are_excluded)
{
	static const char *const excludes[] = {"*00020", "00033", NULL};
	struct box box;

	init(&box);
	box.options.excludes = excludes;
	box_commit(&box);
	cr_assert_eq(box.result.removed_n, 2);
	/* The number of names of the file that has one less, too. */
	box_verify(&box, false);
	box_fill(&box, file_path(60), 1000, 1000);
	box_commit(&box);
	cr_assert_eq(box.result.removed_n, 0);
	box.options.excludes = NULL;
	commit(&box, 2, 2);
	box_release(&box);
}

/* A link from elsewhere does not count. */
Test(commit_rows, a_name_outside_the_source)
{
	struct box box;

	init(&box);
	box_link(&box, "dir/00044", "../elsewhere");
	box_link(&box, "dir/00020", "../elsewhere-too");
	box_fill(&box, file_path(61), 1000, 1000);
	box_commit(&box);
	cr_assert_eq(box.result.changed_n, 1);
	lists_n = 0;
	box_commit(&box);
	cr_assert(box.result.unchanged);
	cr_assert_eq(lists_n, 2);
	box_release(&box);
}

/* A version that differs by its times alone is made with --mtime only; the stat cache knows the new ones either way. */
Test(commit_rows, times_that_no_version_has)
{
	struct box box;

	init(&box);
	box.options.mtime = false;
	box_set_mtime(&box, "dir/00060", 1000, 7);
	box_commit(&box);
	cr_assert(box.result.unchanged);
	box_fill(&box, file_path(61), 1000, 1000);
	box.options.mtime = true;
	commit(&box, 3, 1);
	box_fill(&box, file_path(62), 1000, 1000);
	commit(&box, 2, 1);
	box_release(&box);
}

/* With --rehash, on another version than that of the cache, and without a cache all rows are had. */
Test(commit_rows, of_another_version_are_had)
{
	struct box box;

	init(&box);
	box_fill(&box, file_path(0), 1000, 1000);
	box.options.rehash = true;
	commit(&box, 3, 1);
	box.options.rehash = false;
	box.options.branch = "other";
	box.options.parent = "1";
	box_commit(&box);
	box_check(&box, "other");
	box.options.parent = NULL;
	box.options.branch = NULL;
	box_fill(&box, file_path(1), 1001, 1000);
	lists_n = 0;
	box_commit(&box);
	cr_assert_eq(lists_n, 3);
	box_check(&box, NULL);
	box_fill(&box, file_path(2), 1002, 1000);
	box.options.state_dir = "";
	commit(&box, 3, 1);
	box_release(&box);
}

/* The rows that were not had are not those of the winner, whose tree is quite another. */
Test(commit_rows, the_winner_of_a_race_has_other_rows)
{
	struct box ours, other;
	struct race race = {.other = &other, .path = "dir/00007", .left_n = 2};

	init(&ours);
	box_init_beside(&other, &ours);
	box_mkdir(&other, "dir");
	box_fill(&ours, file_path(5), 1000, 1000);
	race_begin(&race, &ours);
	box_commit(&ours);
	cr_assert_eq(ours.result.races_n, 2);
	cr_assert_eq(ours.result.uploaded_data_bytes < 3000, true);
	ours.spy.before = NULL;
	box_check(&ours, NULL);
	box_fill(&ours, file_path(6), 1001, 1000);
	commit(&ours, 2, 1);
	box_release(&other);
	box_release(&ours);
}

/* A parent that is found damaged when it is changed: all of its rows are had, and it is made from nothing. */
Test(commit_rows, of_a_damaged_parent_are_had)
{
	struct box box;
	int r;

	init(&box);
	for (unsigned times_n = 1; times_n <= 2; times_n++) {
		box_fill(&box, file_path(5), 1000 + times_n, 1000);
		wrong_counts_n = times_n;
		r = box_try_commit(&box);
		cr_assert_eq(r, 0);
		cr_assert_eq(wrong_counts_n, 0);
		cr_assert_eq(box.result.parent_is_damaged, times_n == 2);
		cr_assert_eq(box.result.read_bytes, 1000);
		box_check(&box, NULL);
	}
	box_fill(&box, file_path(6), 1001, 1000);
	commit(&box, 2, 1);
	box_release(&box);
}
