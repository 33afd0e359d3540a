/*
 * Commit from end to end, on a store in memory.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "commit_support.h"
#include "pack_mover.h"
#include "suite.h"
#include "repo/refs.h"
#include "util/file.h"
#include "util/mem.h"

DS_SUITE(commit);

static struct ds_digest root_of(struct box *box)
{
	struct ds_digest fingerprint;
	struct ds_version_totals totals;

	cr_assert_eq(ds_fingerprint_directory(&box->options, &fingerprint, &totals, NULL), 0);
	return fingerprint;
}

Test(commit, what_was_committed_is_read_back)
{
	struct box box;

	box_init(&box);
	box_make_tree(&box);
	box_commit(&box);
	cr_assert_eq(box.result.number, 1);
	cr_assert(!box.result.unchanged);
	cr_assert_eq(box.result.added_n, box.result.totals.files_n + box.result.totals.symlinks_n);
	cr_assert_gt(box.progress_n, 0);
	box_check(&box, NULL);
	box_release(&box);
}

Test(commit, works_on_a_directory_store)
{
	struct box box;

	box_init_dir(&box);
	box_make_tree(&box);
	box_commit(&box);
	box_check(&box, NULL);
	box_remove(&box, "dir");
	box_commit(&box);
	box_check(&box, "2");
	box_release(&box);
}

Test(commit, an_empty_directory_is_a_version)
{
	struct box box;

	box_init(&box);
	box_commit(&box);
	cr_assert_eq(box.result.number, 1);
	cr_assert_eq(box.result.totals.files_n, 0);
	box_check(&box, NULL);
	box_release(&box);
}

Test(commit, every_kind_of_change_is_committed)
{
	struct box box;

	box_init(&box);
	box_make_tree(&box);
	box_commit(&box);
	box_fill(&box, "size-1", 300, 5000);	  /* content */
	box_chmod(&box, "size-2", 0755);	  /* executable bit */
	box_set_mtime(&box, "size-4095", 77, 88); /* time */
	box_remove(&box, "dir.txt");		  /* gone */
	box_fill(&box, "dir.new", 301, 100);	  /* new */
	box_remove(&box, "dir0");		  /* file to directory */
	box_mkdir(&box, "dir0");
	box_fill(&box, "dir0/in", 302, 100);
	box_remove(&box, "empty"); /* directory to symlink */
	box_symlink(&box, "elsewhere", "empty");
	box_remove(&box, "dangling"); /* symlink to file */
	box_fill(&box, "dangling", 303, 100);
	box_fill(&box, "dir/sub/file", 304, 2000); /* through one of three names */
	box_remove(&box, "a-hard-link");	   /* a link breaks */
	box_fill(&box, "a-hard-link", 305, 10);
	box_link(&box, "size-1", "dir/sub/new-link");	   /* and another is made */
	box_fill(&box, "size-4194305", 306, DS_CHUNK_MAX); /* large to small */
	box_fill(&box, "size-65536", 307, DS_CHUNK_MAX + 5);
	box_commit(&box);
	cr_assert_eq(box.result.number, 2);
	box_check(&box, NULL);
	/* And back again. */
	box_remove(&box, "dir0");
	box_fill(&box, "dir0", 202, 1000);
	box_remove(&box, "dir");
	box_fill(&box, "dir", 308, 1);
	box_commit(&box);
	box_check(&box, NULL);
	cr_assert_eq(box_verify(&box, true), 3);
	box_release(&box);
}

Test(commit, counts_what_was_added_changed_and_removed)
{
	struct box box;

	box_init(&box);
	box_fill(&box, "same", 1, 10);
	box_fill(&box, "changed", 2, 10);
	box_fill(&box, "removed", 3, 10);
	box_mkdir(&box, "dir");
	box_fill(&box, "dir/a", 4, 10);
	box_fill(&box, "dir/b", 5, 10);
	box_commit(&box);
	cr_assert_eq(box.result.added_n, 5);
	box_fill(&box, "changed", 6, 10);
	box_remove(&box, "removed");
	box_fill(&box, "added", 7, 10);
	box_remove(&box, "dir");
	box_fill(&box, "dir", 8, 10);
	box_commit(&box);
	cr_assert_eq(box.result.added_n, 2);
	cr_assert_eq(box.result.changed_n, 1);
	cr_assert_eq(box.result.removed_n, 3);
	box_release(&box);
}

Test(commit, counts_each_name_of_a_file_that_changed)
{
	struct box box;

	box_init(&box);
	box_mkdir(&box, "dir");
	box_fill(&box, "dir/first", 1,
		 10); /* in the tree's order; `m` and `z` are changed before it */
	box_link(&box, "dir/first", "dir/second");
	box_link(&box, "dir/first", "m");
	box_link(&box, "dir/first", "z");
	box_fill(&box, "k", 2, 10); /* here the first is changed first */
	box_link(&box, "k", "l");
	box_fill(&box, "same", 3, 10);
	box_link(&box, "same", "same-2");
	box_commit(&box);
	cr_assert_eq(box.result.added_n, 8);
	for (unsigned i = 0; i < 2; i++) {
		box_fill(&box, "z", 4 + i, 20);
		box_fill(&box, "l", 6 + i, 20);
		box_commit(&box);
		cr_assert_eq(box.result.changed_n, 6, "%u", (unsigned)box.result.changed_n);
		cr_assert_eq(box.result.added_n + box.result.removed_n, 0);
	}
	box_chmod(&box, "k", 0755);
	box_set_mtime(&box, "z", 77, 88);
	box_commit(&box);
	cr_assert_eq(box.result.changed_n, 2);
	box_check(&box, NULL);
	box_release(&box);
}

struct deadlines {
	uint64_t seen_ns[100];
	_Atomic unsigned n;
};

static void see_deadline(void *ctx, const struct ds_store_req *req)
{
	struct deadlines *deadlines = ctx;

	if (req->op == DS_STORE_GET && deadlines->n < DS_ARRAY_SIZE(deadlines->seen_ns))
		deadlines->seen_ns[deadlines->n++] = req->deadline_ns;
}

/* A collector moved all its packs: the manifest is found by their notes, each request with time of its own. */
Test(commit, goes_on_from_a_parent_whose_packs_were_moved)
{
	struct ds_store_listing listing = {0};
	struct ds_store_req req = {.op = DS_STORE_LIST, .key = "packs/", .listing = &listing};
	struct deadlines deadlines = {0};
	struct box box;

	box_init(&box);
	box_fill(&box, "a", 1, 100000);
	box_fill(&box, "b", 2, 100000);
	box_commit(&box);
	cr_assert_eq(ds_store_perform(box.inner, &req), 0);
	cr_assert_eq(listing.objects_n, 2, "data and manifest");
	for (size_t i = 0; i < listing.objects_n; i++)
		move_pack(box.inner, listing.objects[i].key, false);
	ds_store_listing_release(&listing);
	/* What has moved is not lost. */
	box.options.rehash = true;
	box_commit(&box);
	cr_assert(box.result.unchanged);
	box.options.rehash = false;
	box_fill(&box, "b", 3, 100);
	box.spy.before = see_deadline;
	box.spy.ctx = &deadlines;
	box_commit(&box);
	box.spy.before = NULL;
	cr_assert_eq(box.result.changed_n, 1);
	cr_assert_lt(box.result.uploaded_data_bytes, 1000, "what was moved is not put again");
	cr_assert_gt(deadlines.n, 4);
	cr_assert_lt(deadlines.n, DS_ARRAY_SIZE(deadlines.seen_ns));
	for (unsigned i = 0; i < deadlines.n; i++)
		for (unsigned j = 0; j < i; j++)
			cr_assert_neq(deadlines.seen_ns[i], deadlines.seen_ns[j]);
	box_check(&box, NULL);
	box_release(&box);
}

Test(commit, an_unchanged_tree_makes_no_version)
{
	struct ds_digest first;
	struct box box;

	box_init(&box);
	box_make_tree(&box);
	first = box_commit(&box)->version;
	box_set_mtime(&box, "size-1", 1, 2);
	spy_store_reset(&box.spy);
	box_commit(&box);
	cr_assert(box.result.unchanged);
	cr_assert_eq(box.result.number, 1);
	cr_assert(ds_digest_equal(&box.result.version, &first));
	cr_assert_eq(box.spy.puts_n, 0);
	cr_assert_eq(box.result.totals.files_n > 0, true);
	box_release(&box);
}

Test(commit, allow_empty_and_mtime_make_a_version_of_an_unchanged_tree)
{
	struct box box;

	box_init(&box);
	box_make_tree(&box);
	box_commit(&box);
	box.options.mtime = true;
	box_commit(&box);
	cr_assert(box.result.unchanged);
	box_set_mtime(&box, "dir/sub/file", 1, 2);
	box_commit(&box);
	cr_assert(!box.result.unchanged);
	cr_assert_eq(box.result.number, 2);
	cr_assert_eq(box.result.changed_n, 0);
	box_check(&box, NULL);
	/* Links alone. */
	box_remove(&box, "a-hard-link");
	box_fill(&box, "a-hard-link", 200, 1000);
	box_set_mtime(&box, "a-hard-link", 1, 2);
	box_commit(&box);
	cr_assert_eq(box.result.number, 3);
	box_check(&box, NULL);
	box.options.mtime = false;
	box.options.allow_empty = true;
	box_commit(&box);
	cr_assert_eq(box.result.number, 4);
	box_check(&box, NULL);
	box_release(&box);
}

Test(commit, the_same_tree_from_elsewhere_is_the_same)
{
	struct ds_digest first;
	struct box box;

	box_init(&box);
	box_make_tree(&box);
	box_commit(&box);
	first = box.result.fingerprint;
	box_move_elsewhere(&box);
	spy_store_reset(&box.spy);
	box_commit(&box);
	cr_assert(box.result.unchanged);
	cr_assert(ds_digest_equal(&box.result.fingerprint, &first));
	cr_assert_eq(box.spy.puts_n, 0);
	/* By the parent's rows alone: the index is not even asked for. */
	cr_assert_eq(box.spy.lists_n, 0);
	cr_assert_eq(box.result.reused_bytes, 0);
	box_release(&box);
}

Test(commit, a_large_file_keeps_its_chunks_when_a_part_changes)
{
	struct box box;
	char path[200];
	int fd;

	box_init(&box);
	box_fill(&box, "large", 1, 40 << 20);
	box_commit(&box);
	snprintf(path, sizeof(path), "%s/large", box.source);
	fd = open(path, O_WRONLY);
	cr_assert_eq(pwrite(fd, "changed", 7, 20 << 20), 7);
	close(fd);
	/* No index at all. */
	box.spy.deny = "index/";
	box_commit(&box);
	cr_assert_lt(box.result.uploaded_data_bytes, 3 * DS_CHUNK_MAX);
	box.spy.deny = NULL;
	box_check(&box, NULL);
	box_release(&box);
}

Test(commit, a_repeated_content_is_stored_once)
{
	struct box box;
	char path[40];

	box_init(&box);
	for (int i = 0; i < 10; i++) {
		snprintf(path, sizeof(path), "copy-%d", i);
		box_fill(&box, path, 1, 1000000);
	}
	box_commit(&box);
	cr_assert_lt(box.result.uploaded_data_bytes, 1100000);
	box_check(&box, NULL);
	box_release(&box);
}

Test(commit, special_files_are_refused_or_left_out)
{
	struct box box;
	char path[200];

	box_init(&box);
	box_fill(&box, "file", 1, 10);
	box_mkdir(&box, "dir");
	snprintf(path, sizeof(path), "%s/dir/fifo", box.source);
	cr_assert_eq(mkfifo(path, 0600), 0);
	cr_assert_eq(box_try_commit(&box), -DS_E_SOURCE_REFUSED);
	cr_assert_str_eq(box.warnings, "dir/fifo: is a FIFO\n");
	cr_assert_eq(box_verify(&box, true), 0);
	box.options.skip_special = true;
	box_commit(&box);
	cr_assert_eq(box.result.totals.rejected_n, 1);
	cr_assert_eq(box.result.totals.files_n, 1);
	cr_assert_eq(box_verify(&box, true), 1);
	cr_assert_eq(unlink(path), 0);
	box.options.allow_empty = true;
	box_commit(&box);
	cr_assert_eq(box.result.totals.rejected_n, 0);
	box_check(&box, NULL);
	box_release(&box);
}

Test(commit, unreadable_files_and_directories_are_refused_or_left_out)
{
	uid_t uid = geteuid();
	struct box box;

	/* Root reads everything: become nobody, who owns what is made from here on. */
	if (uid == 0)
		cr_assert_eq(seteuid(65534), 0);
	box_init(&box);
	box_fill(&box, "file", 1, 10);
	box_fill(&box, "secret", 2, 10);
	box_mkdir(&box, "closed");
	box_fill(&box, "closed/in", 3, 10);
	box_link(&box, "closed/in", "linked");
	box_chmod(&box, "secret", 0);
	box_chmod(&box, "closed", 0);
	cr_assert_eq(box_try_commit(&box), -DS_E_SOURCE_REFUSED);
	cr_assert_not_null(strstr(box.warnings, "closed: Permission denied\n"));
	cr_assert_not_null(strstr(box.warnings, "secret: Permission denied\n"));
	box.options.skip_unreadable = true;
	box_commit(&box);
	cr_assert_eq(box.result.totals.rejected_n, 2);
	cr_assert_eq(box.result.totals.files_n, 2);
	cr_assert_eq(box_verify(&box, true), 1);
	box_chmod(&box, "closed", 0755);
	box_release(&box);
	cr_assert_eq(seteuid(uid), 0); /* the leak checker needs it */
}

Test(commit, excluded_paths_are_left_out)
{
	static const char *const excludes[] = {"*.tmp", "/build", "dir/*.o", "cache/", NULL};
	struct box box;

	box_init(&box);
	box_mkdir(&box, "dir");
	box_mkdir(&box, "dir/build");
	box_mkdir(&box, "dir/cache");
	box_mkdir(&box, "build");
	box_fill(&box, "keep", 1, 10);
	box_fill(&box, ".hidden.tmp", 1, 10);
	box_fill(&box, "dir/x.tmp", 2, 10);
	box_fill(&box, "dir/x.o", 3, 10);
	box_fill(&box, "dir/.y.o", 3, 10);
	box_fill(&box, "x.o", 4, 10);
	box_fill(&box, "build/in", 5, 10);
	box_fill(&box, "dir/build/in", 5, 10);
	box_fill(&box, "dir/cache/in", 6, 10);
	box.options.excludes = excludes;
	box_commit(&box);
	cr_assert_eq(box.result.totals.files_n, 3);
	cr_assert_eq(box.result.totals.directories_n, 2);
	box_remove(&box, "build");
	box_remove(&box, "dir/cache");
	box_remove(&box, "dir/x.tmp");
	box_remove(&box, ".hidden.tmp");
	box_remove(&box, "dir/x.o");
	box_remove(&box, "dir/.y.o");
	box.options.excludes = NULL;
	box_commit(&box);
	cr_assert(box.result.unchanged);
	box_release(&box);
}

Test(commit, the_source_may_not_hold_the_repository_nor_lie_in_it)
{
	struct box box;
	char inside[200], link[200];

	box_init_dir(&box);
	box.options.source = box.dir;
	cr_assert_eq(box_try_commit(&box), -DS_E_SOURCE_REFUSED);
	snprintf(inside, sizeof(inside), "%s/repo/refs", box.dir);
	cr_assert_eq(ds_mkdir_p(AT_FDCWD, inside, 0755), 0);
	box.options.source = inside;
	cr_assert_eq(box_try_commit(&box), -DS_E_SOURCE_REFUSED);
	snprintf(inside, sizeof(inside), "%s/repo", box.dir);
	cr_assert_eq(box_try_commit(&box), -DS_E_SOURCE_REFUSED);
	/* By another name. */
	snprintf(link, sizeof(link), "%s/link", box.dir);
	cr_assert_eq(symlink(box.dir, link), 0);
	box.options.source = link;
	cr_assert_eq(box_try_commit(&box), -DS_E_SOURCE_REFUSED);
	/* A neighbour whose name begins alike is none. */
	snprintf(inside, sizeof(inside), "%s/repo-2", box.dir);
	cr_assert_eq(mkdir(inside, 0755), 0);
	box.options.source = inside;
	box_commit(&box);
	box_release(&box);
}

Test(commit, a_missing_source_is_told)
{
	struct box box;

	box_init(&box);
	box.options.source = "/no/such/directory";
	cr_assert_eq(box_try_commit(&box), -ENOENT);
	box.options.source = "/dev/null";
	cr_assert_eq(box_try_commit(&box), -ENOTDIR);
	cr_assert_eq(box.spy.puts_n, 0);
	box_release(&box);
}

Test(commit, a_wide_and_deep_tree_needs_few_descriptors)
{
	struct rlimit limit, before;
	struct box box;
	char path[5000] = "deep";
	char name[100];

	box_init(&box);
	for (int i = 0; i < 300; i++) {
		snprintf(name, sizeof(name), "w%03d", i);
		box_mkdir(&box, name);
		strcat(name, "/a");
		box_mkdir(&box, name);
		strcat(name, "/b");
		box_mkdir(&box, name);
		strcat(name, "/file");
		box_fill(&box, name, (uint64_t)i, 10);
	}
	for (int i = 0; i < 300; i++) {
		box_mkdir(&box, path);
		snprintf(name, sizeof(name), "/s%d", i % 10);
		strcat(path, name);
		box_mkdir(&box, path);
		path[strlen(path) - strlen(name)] = '\0';
		strcat(path, "/x");
	}
	cr_assert_eq(getrlimit(RLIMIT_NOFILE, &before), 0);
	limit = before;
	limit.rlim_cur = 200;
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
	box_commit(&box);
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
	cr_assert_eq(box.result.totals.files_n, 300);
	box_check(&box, NULL);
	box_release(&box);
}

Test(commit, tags_and_branches)
{
	struct ds_resolved resolved;
	struct ds_digest first;
	struct box box;

	box_init(&box);
	box_fill(&box, "file", 1, 10);
	box.options.tag = "v1";
	first = box_commit(&box)->version;
	cr_assert_eq(ds_resolve(box.repo, "v1", &resolved, NULL), 0);
	cr_assert(ds_digest_equal(&resolved.version, &first));
	/* A taken tag is seen before anything is uploaded. */
	box_fill(&box, "file", 2, 10);
	spy_store_reset(&box.spy);
	cr_assert_eq(box_try_commit(&box), -DS_E_TAKEN);
	cr_assert_eq(box.spy.puts_n, 0);
	/* A new branch starts from the default one's head. */
	box.options.tag = NULL;
	box.options.branch = "side";
	box_commit(&box);
	cr_assert_eq(box.result.number, 1);
	cr_assert_eq(box.result.changed_n, 1);
	box_check(&box, "side");
	/* An unchanged tree can be tagged. */
	box.options.tag = "v2";
	box_commit(&box);
	cr_assert(box.result.unchanged);
	cr_assert_eq(ds_resolve(box.repo, "v2", &resolved, NULL), 0);
	cr_assert(ds_digest_equal(&resolved.version, &box.result.version));
	box_release(&box);
}

static void fill_many(struct box *box, const char *dir, unsigned n)
{
	char path[64];

	box_mkdir(box, dir);
	for (unsigned i = 0; i < n; i++) {
		snprintf(path, sizeof(path), "%s/a file with a long name %04u", dir, i);
		box_fill(box, path, i + 1, 10);
	}
}

/* verify goes from version to version by time: a large manifest, a small one, the large one with most pages as they were. */
Test(commit, verify_goes_over_branches_of_different_sizes)
{
	struct box box;

	box_init(&box);
	fill_many(&box, "a", 10);
	box_commit(&box);
	box.options.branch = "small";
	box_fill(&box, "small", 1, 10);
	box_commit(&box);
	box.options.branch = NULL;
	fill_many(&box, "b", 1500);
	box_commit(&box);
	box_rename(&box, "b", "../b");
	box.options.branch = "small";
	box_fill(&box, "small", 2, 10);
	box_commit(&box);
	box.options.branch = NULL;
	box_rename(&box, "../b", "b");
	box_fill(&box, "a/new", 1, 10);
	box_commit(&box);
	cr_assert_eq(box_verify(&box, false), 5);
	box_release(&box);
}

static const char listed_key[] = "versions/"
				 "0123456789abcdef0123456789abcdef"
				 "0123456789abcdef0123456789abcdef";

static void remove_listed(void *ctx, const struct ds_store_req *req)
{
	struct ds_store_req removal = {.op = DS_STORE_DELETE, .key = listed_key};
	struct box *box = ctx;

	if (req->op == DS_STORE_GET && strcmp(req->key, listed_key) == 0)
		cr_assert_eq(ds_store_perform(box->inner, &removal), 0);
}

/* A record that nobody names may be removed by a collector between LIST and GET. */
Test(commit, verify_beside_a_collector)
{
	_ds_cleanup_buf_ struct ds_buf buf = DS_BUF_INIT(64);
	struct box box;

	box_init(&box);
	box_fill(&box, "file", 1, 10);
	box_commit(&box);
	cr_assert_eq(ds_store_put(box.inner, listed_key, "{}", 2, NULL), 0);
	box.spy.before = remove_listed;
	box.spy.ctx = &box;
	cr_assert_eq(box_verify(&box, false), 1);
	cr_assert_eq(ds_store_get(box.inner, listed_key, &buf, NULL), -DS_E_ABSENT);
	box_release(&box);
}

/* The commit is refused for a name before anything is uploaded. */
static void refuse_names(struct box *box, const char *branch, const char *tag, const char *taken)
{
	box->options.branch = branch;
	box->options.tag = tag;
	spy_store_reset(&box->spy);
	cr_assert_eq(box_try_commit(box), -DS_E_TAKEN, "branch %s, tag %s", branch, tag);
	cr_assert_eq(box->spy.puts_n, 0);
	cr_assert_str_eq(box->diag.object, taken);
	cr_assert(strstr(box->diag.detail, "choose another name"), "%s", box->diag.detail);
}

Test(commit, a_name_is_a_tag_or_a_branch_not_both)
{
	struct box box;

	box_init(&box);
	box_fill(&box, "file", 1, 10);
	/* The default branch's, though it has no entry yet; and the one that is being made. */
	refuse_names(&box, NULL, "main", "\"main\"");
	refuse_names(&box, "side", "main", "\"main\"");
	refuse_names(&box, "side", "side", "\"side\"");
	box.options.branch = "side";
	box.options.tag = "v1";
	box_commit(&box);
	box_fill(&box, "file", 2, 10);
	refuse_names(&box, NULL, "side", "\"side\"");
	refuse_names(&box, "v1", NULL, "\"v1\"");
	box.options.branch = "side";
	box.options.tag = "v2";
	box_commit(&box);
	box_check(&box, "side");
	box_release(&box);
}

Test(commit, a_branch_that_has_a_tags_name_already_goes_on)
{
	struct ds_ref_entry wanted = {.kind = DS_REF_TAG, .name = "main"}, made;
	struct box box;

	box_init(&box);
	box_fill(&box, "file", 1, 10);
	wanted.version = box_commit(&box)->version;
	cr_assert_eq(ds_ref_append(box.repo, NULL, &wanted, (struct ds_time){0}, &made, NULL), 0);
	box_fill(&box, "file", 2, 10);
	cr_assert_eq(box_commit(&box)->number, 2);
	box_check(&box, "main:2");
	box_release(&box);
}

Test(commit, a_parent_that_is_not_the_head_is_a_conflict)
{
	struct box box;

	box_init(&box);
	box_fill(&box, "file", 1, 10);
	box_commit(&box);
	box_fill(&box, "file", 2, 10);
	box.options.parent = "1";
	box_commit(&box);
	box_fill(&box, "file", 3, 10);
	cr_assert_eq(box_try_commit(&box), -DS_E_CONFLICT);
	/* For a new branch it is where to start. */
	box.options.branch = "side";
	box_commit(&box);
	cr_assert_eq(box.result.number, 1);
	box_check(&box, "side");
	box_release(&box);
}

Test(commit, texts_are_checked_before_anything_is_sent)
{
	struct box box;
	char *text = malloc(2 << 20);

	box_init(&box);
	box.options.message = "not utf-8 \xff";
	cr_assert_eq(box_try_commit(&box), -DS_E_USAGE);
	memset(text, 1, 2 << 20);
	text[(2 << 20) - 1] = '\0';
	box.options.message = text;
	cr_assert_eq(box_try_commit(&box), -DS_E_USAGE);
	text[DS_RECORD_MAX / 8] = '\0';
	cr_assert_eq(box.spy.calls_n, 0);
	box_commit(&box);
	box.options.message = NULL;
	box.options.branch = "..";
	cr_assert_eq(box_try_commit(&box), -DS_E_USAGE);
	free(text);
	box_release(&box);
}

Test(commit, a_small_memory_budget_is_enough)
{
	struct box box;
	char path[40];

	box_init(&box);
	box.options.memory_bytes = 1 << 20;
	box.options.jobs_n = 8;
	box_fill(&box, "large", 1, 50 << 20);
	for (int i = 0; i < 40; i++) {
		snprintf(path, sizeof(path), "medium-%d", i);
		box_fill(&box, path, (uint64_t)i + 10, 3 << 20);
	}
	box_fill(&box, "zlarge", 2, 20 << 20);
	box_commit(&box);
	cr_assert_eq(box.result.read_bytes, (50 + 120 + 20) << 20);
	box_check(&box, NULL);
	box_release(&box);
}

Test(commit, nothing_is_left_in_the_state_directory_but_state)
{
	struct box box;
	char command[300];

	box_init(&box);
	box_make_tree(&box);
	box_commit(&box);
	snprintf(command, sizeof(command),
		 "test -z \"$(find '%s/tmp' -mindepth 1 -name 'commit-*')\"", box.state);
	cr_assert_eq(system(command), 0);
	/* What a killed commit left goes with the next one. */
	snprintf(command, sizeof(command),
		 "mkdir '%s/tmp/commit-dEad00' && touch '%s/tmp/commit-dEad00/lock'", box.state,
		 box.state);
	cr_assert_eq(system(command), 0);
	box_commit(&box);
	snprintf(command, sizeof(command), "test ! -e '%s/tmp/commit-dEad00'", box.state);
	cr_assert_eq(system(command), 0);
	/* No state at all. */
	box.options.state_dir = "";
	box.options.allow_empty = true;
	box_commit(&box);
	box_check(&box, NULL);
	box_release(&box);
}

Test(commit, the_fingerprint_of_a_directory_is_that_of_its_version)
{
	struct ds_digest fingerprint;
	struct box box;

	box_init(&box);
	box_make_tree(&box);
	fingerprint = root_of(&box);
	box_commit(&box);
	cr_assert(ds_digest_equal(&box.result.fingerprint, &fingerprint));
	box_set_mtime(&box, "size-1", 1, 1);
	fingerprint = root_of(&box);
	cr_assert(ds_digest_equal(&box.result.fingerprint, &fingerprint));
	box_chmod(&box, "size-1", 0755);
	fingerprint = root_of(&box);
	cr_assert(!ds_digest_equal(&box.result.fingerprint, &fingerprint));
	box_release(&box);
}

/* Called while the tree is there: notes how many files of our temporary directory are open. */
static void count_tmp(void *ctx, const char *path, const char *reason)
{
	char command[300];
	struct box *box = ctx;

	(void)path;
	(void)reason;
	snprintf(command, sizeof(command),
		 "ls -l /proc/%d/fd | grep -c '%s/dsfs-tmp-.*/arena-' >'%s/count'", (int)getpid(),
		 box->dir, box->dir);
	cr_assert_geq(system(command), 0);
}

/* A tree of millions need not fit into memory. */
Test(commit, the_fingerprint_keeps_the_tree_in_a_temporary_directory_where_there_is_one)
{
	struct ds_digest first, second;
	struct box box;
	char path[200], text[8] = "";
	FILE *file;

	box_init(&box);
	box_make_tree(&box);
	first = root_of(&box);
	snprintf(path, sizeof(path), "%s/fifo", box.source);
	cr_assert_eq(mkfifo(path, 0600), 0);
	box.options.skip_special = true;
	box.options.warn = count_tmp;
	cr_assert_eq(setenv("TMPDIR", box.dir, 1), 0);
	second = root_of(&box);
	cr_assert(ds_digest_equal(&first, &second));
	snprintf(path, sizeof(path), "%s/count", box.dir);
	file = fopen(path, "r");
	cr_assert(file && fgets(text, sizeof(text), file));
	fclose(file);
	cr_assert_str_eq(text, "1\n");
	snprintf(path, sizeof(path), "! ls -d '%s'/dsfs-tmp-*/commit-* 2>/dev/null", box.dir);
	cr_assert_eq(system(path), 0, "it is left behind");

	cr_assert_eq(setenv("TMPDIR", "/nowhere", 1), 0);
	second = root_of(&box);
	cr_assert(ds_digest_equal(&first, &second));
	box_release(&box);
}
