/*
 * Files that change while they are read (D14, I08): read again, or refused; never torn.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "commit_support.h"
#include "repo/commit_read_impl.h"
#include "repo/commit_scan_impl.h"
#include "suite.h"
#include "util/clock.h"
#include "util/error.h"
#include "util/mem.h"

DS_SUITE(commit_read);

struct fiddle {
	struct box *box;
	_Atomic int left_n; /* how often the file changes */
	_Atomic int reads_n;
	void (*change)(struct fiddle *fiddle);
};

static void was_read(void *ctx, const struct commit_node *file)
{
	struct fiddle *fiddle = ctx;

	cr_assert_str_eq(file->name, "file");
	fiddle->reads_n++;
	if (fiddle->left_n-- > 0)
		fiddle->change(fiddle);
}

/* Reads a source whose file changes so often. The digest on success is that of what is there then. */
static int read_changing(struct fiddle *fiddle, int times, size_t len,
			 void (*change)(struct fiddle *fiddle))
{
	struct box *box = fiddle->box;
	struct ds_version_totals totals;
	struct ds_digest fingerprint;
	struct commit_tree tree;
	struct commit_read read = {.options = &box->options,
				   .tree = &tree,
				   .memory_bytes = 1 << 20,
				   .was_read = was_read,
				   .was_read_ctx = fiddle};
	int r;

	fiddle->left_n = times;
	fiddle->reads_n = 0;
	fiddle->change = change;
	box_remove(box, "file");
	box_fill(box, "file", 7, len);
	ds_diag_clear(&box->diag);
	r = commit_scan(&box->options, NULL, NULL, NULL, &tree, &box->diag);
	if (r == 0)
		r = commit_read_files(&read, &box->diag);
	if (r == 0)
		r = commit_tree_hash(&tree);
	if (r == 0) {
		cr_assert_eq(ds_fingerprint_directory(&box->options, &fingerprint, &totals, NULL),
			     0);
		cr_assert(ds_digest_equal(&fingerprint, &tree.root.digest));
	}
	commit_tree_release(&tree);
	return r;
}

static void whole_path(const struct fiddle *fiddle, char *path, size_t size)
{
	snprintf(path, size, "%s/file", fiddle->box->source);
}

static void rewrite(struct fiddle *fiddle)
{
	box_fill(fiddle->box, "file", (uint64_t)fiddle->reads_n + 50, 1000);
}

static void grow(struct fiddle *fiddle)
{
	box_fill(fiddle->box, "file", (uint64_t)fiddle->reads_n + 50, (5 << 20) + 10);
}

static void empty(struct fiddle *fiddle)
{
	box_fill(fiddle->box, "file", 1, 0);
}

/* The same size, and the old mtime put back: ctime tells. */
static void rewrite_slyly(struct fiddle *fiddle)
{
	struct timespec times[2];
	char path[200];
	struct stat st;

	whole_path(fiddle, path, sizeof(path));
	cr_assert_eq(stat(path, &st), 0);
	times[0] = st.st_atim;
	times[1] = st.st_mtim;
	box_fill(fiddle->box, "file", (uint64_t)fiddle->reads_n + 50, (size_t)st.st_size);
	cr_assert_eq(utimensat(AT_FDCWD, path, times, 0), 0);
}

/* Another file of the same name: what was opened did not change. */
static void replace(struct fiddle *fiddle)
{
	char path[200], temporary[200];

	whole_path(fiddle, path, sizeof(path));
	snprintf(temporary, sizeof(temporary), "%s/new", fiddle->box->dir);
	cr_assert_eq(rename(path, temporary), 0);
	box_fill(fiddle->box, "file", 99, 500);
}

static void vanish(struct fiddle *fiddle)
{
	box_remove(fiddle->box, "file");
}

static void become_fifo(struct fiddle *fiddle)
{
	char path[200];

	box_remove(fiddle->box, "file");
	whole_path(fiddle, path, sizeof(path));
	cr_assert_eq(mkfifo(path, 0600), 0);
}

static void become_directory(struct fiddle *fiddle)
{
	box_remove(fiddle->box, "file");
	box_mkdir(fiddle->box, "file");
}

static void become_symlink(struct fiddle *fiddle)
{
	box_remove(fiddle->box, "file");
	box_symlink(fiddle->box, "/etc/passwd", "file");
}

static const size_t sizes[] = {1000, (6 << 20) + 5};

Test(commit_read, D14_a_file_that_changed_once_is_read_again)
{
	void (*const changes[])(struct fiddle * fiddle) = {rewrite, grow, empty, rewrite_slyly};
	struct fiddle fiddle = {0};
	struct box box;

	box_init(&box);
	box_fill(&box, "file", 1, 1);
	fiddle.box = &box;
	for (size_t i = 0; i < DS_ARRAY_SIZE(changes); i++)
		for (size_t s = 0; s < DS_ARRAY_SIZE(sizes); s++) {
			cr_assert_eq(read_changing(&fiddle, 1, sizes[s], changes[i]), 0);
			cr_assert_eq(fiddle.reads_n, 2);
			cr_assert_eq(read_changing(&fiddle, 2, sizes[s], changes[i]), 0);
			cr_assert_eq(fiddle.reads_n, 3);
		}
	box_release(&box);
}

Test(commit_read, D14_a_file_that_does_not_stand_still_is_refused)
{
	struct fiddle fiddle = {0};
	struct box box;

	box_init(&box);
	box_fill(&box, "file", 1, 1);
	fiddle.box = &box;
	for (size_t s = 0; s < DS_ARRAY_SIZE(sizes); s++) {
		cr_assert_eq(read_changing(&fiddle, 1000, sizes[s], rewrite_slyly),
			     -DS_E_SOURCE_CHANGED);
		cr_assert_eq(fiddle.reads_n, 3);
		cr_assert_str_eq(box.diag.object, "\"file\"");
	}
	box_release(&box);
}

Test(commit_read, D14_a_file_that_is_no_file_any_more_is_refused)
{
	void (*const changes[])(struct fiddle * fiddle) = {vanish, become_fifo, become_directory,
							   become_symlink};
	struct fiddle fiddle = {0};
	struct box box;

	box_init(&box);
	box_fill(&box, "file", 1, 1);
	fiddle.box = &box;
	for (size_t i = 0; i < DS_ARRAY_SIZE(changes); i++)
		cr_assert_eq(read_changing(&fiddle, 1, 1000, changes[i]), -DS_E_SOURCE_CHANGED);
	box_release(&box);
}

static bool diag_has(const struct ds_diag *diag, const char *part)
{
	char text[800];

	return strstr(ds_diag_format(diag, text, sizeof(text)), part);
}

Test(commit_read, a_file_that_vanished_after_the_scan_is_called_so)
{
	struct fiddle fiddle = {0};
	struct commit_tree tree;
	struct box box;

	box_init(&box);
	box_mkdir(&box, "dir");
	box_fill(&box, "file", 1, 1);
	fiddle.box = &box;
	cr_assert_eq(read_changing(&fiddle, 1, 1000, vanish), -DS_E_SOURCE_CHANGED);
	cr_assert(diag_has(&box.diag, "vanished"));
	box_fill(&box, "dir/in", 1, 1000);
	for (unsigned i = 0; i < 2; i++) {
		struct commit_read read = {.options = &box.options,
					   .tree = &tree,
					   .memory_bytes = 1 << 20};

		/* What is gone is not unreadable. */
		box.options.skip_unreadable = i == 1;
		box_mkdir(&box, "gone");
		box_fill(&box, "gone/file", 1, 1000);
		ds_diag_clear(&box.diag);
		cr_assert_eq(commit_scan(&box.options, NULL, NULL, NULL, &tree, &box.diag), 0);
		box_remove(&box, "gone");
		cr_assert_eq(commit_read_files(&read, &box.diag), -DS_E_SOURCE_CHANGED);
		cr_assert(diag_has(&box.diag, "vanished"));
		cr_assert(diag_has(&box.diag, "gone/file"));
		commit_tree_release(&tree);
	}
	box_release(&box);
}

Test(commit_read, a_name_that_vanished_during_the_scan_is_called_so)
{
	const int gone[] = {ENOENT, ENOTDIR, ELOOP, ESTALE};
	struct ds_commit_options options = {0};
	struct commit_tree tree = {.root_fd = -1};
	struct scan scan = {.options = &options, .tree = &tree, .mutex = PTHREAD_MUTEX_INITIALIZER};
	struct commit_node node = {0};

	cr_assert_eq(ds_arena_new(NULL, &tree.arena), 0);
	cr_assert_eq(scan_reject(&scan, &node, "closed", -EACCES), 0);
	cr_assert_eq(node.reject, REJECT_UNREADABLE);
	cr_assert_eq(scan_reject(&scan, &node, "dir/gone", -ENOENT), -DS_E_SOURCE_CHANGED);
	cr_assert_eq(scan.locked.result, -DS_E_SOURCE_CHANGED);
	cr_assert(diag_has(&scan.locked.diag, "vanished"));
	cr_assert(diag_has(&scan.locked.diag, "dir/gone"));
	/* What is gone is not unreadable. */
	options.skip_unreadable = true;
	node.reject = REJECT_NONE;
	for (size_t i = 0; i < DS_ARRAY_SIZE(gone); i++)
		cr_assert_eq(scan_reject(&scan, &node, "gone", -gone[i]), -DS_E_SOURCE_CHANGED);
	cr_assert_eq(node.reject, REJECT_NONE);
	cr_assert_eq(scan_reject(&scan, &node, "closed", -EACCES), 0);
	commit_tree_release(&tree);
}

Test(commit_read, a_symlink_that_became_a_file_during_the_scan_is_gone)
{
	char name[] = "file";
	struct commit_node node = {.name = name};
	struct commit_tree tree = {.root_fd = -1};
	struct scan scan = {.tree = &tree};
	struct box box;
	int fd;

	box_init(&box);
	box_fill(&box, "file", 1, 10);
	fd = open(box.source, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cr_assert_geq(fd, 0);
	cr_assert_eq(ds_arena_new(NULL, &tree.arena), 0);
	cr_assert_eq(scan_read_target(&scan, fd, &node), -ENOENT);
	box_remove(&box, "file");
	cr_assert_eq(scan_read_target(&scan, fd, &node), -ENOENT);
	box_symlink(&box, "there", "file");
	cr_assert_eq(scan_read_target(&scan, fd, &node), 0);
	cr_assert_str_eq(node.target, "there");
	close(fd);
	commit_tree_release(&tree);
	box_release(&box);
}

/* readdir(3) may do so with a name that was taken away and made anew. */
Test(commit_read, a_name_that_is_listed_twice_is_one)
{
	char a[] = "a", again[] = "a", ab[] = "ab", b[] = "b";
	char *names[] = {b, ab, a, b, again, b}, *none[] = {NULL};

	cr_assert_eq(scan_sort_names(names, DS_ARRAY_SIZE(names)), 3);
	cr_assert_str_eq(names[0], "a");
	cr_assert_str_eq(names[1], "ab");
	cr_assert_str_eq(names[2], "b");
	cr_assert_eq(scan_sort_names(names, 1), 1);
	cr_assert_eq(scan_sort_names(none, 0), 0);
}

Test(commit_read, D14_a_file_replaced_after_it_was_read_may_be_either)
{
	struct fiddle fiddle = {0};
	struct ds_version_totals totals;
	struct ds_digest fingerprint;
	struct box box;

	box_init(&box);
	box_fill(&box, "file", 1, 1);
	fiddle.box = &box;
	/* rename() changes the ctime of what was open: so it is read again, and is the new one. */
	cr_assert_eq(read_changing(&fiddle, 1, 1000, replace), 0);
	cr_assert_eq(fiddle.reads_n, 2);
	cr_assert_eq(ds_fingerprint_directory(&box.options, &fingerprint, &totals, NULL), 0);
	cr_assert_eq(totals.bytes, 500);
	box_release(&box);
}

Test(commit_read, a_file_that_shrinks_below_what_was_scanned_ends)
{
	struct fiddle fiddle = {0};
	struct box box;

	box_init(&box);
	box_fill(&box, "file", 1, 1);
	fiddle.box = &box;
	cr_assert_eq(read_changing(&fiddle, 3, 9 << 20, empty), -DS_E_SOURCE_CHANGED);
	cr_assert_eq(read_changing(&fiddle, 0, 9 << 20, empty), 0);
	cr_assert_eq(fiddle.reads_n, 1);
	box_release(&box);
}

/* What commit makes of a source in which `change` is done between scan and reading; must be what is there afterwards. */
static void check_moved_links(struct box *box, void (*change)(struct box *box))
{
	struct ds_version_totals totals;
	struct ds_digest fingerprint;
	struct commit_tree tree;
	struct commit_read read = {.options = &box->options,
				   .tree = &tree,
				   .memory_bytes = 1 << 20};

	for (char name[] = "a"; name[0] <= 'd'; name[0]++)
		box_remove(box, name);
	box_fill(box, "a", 1, 1000);
	box_link(box, "a", "b");
	box_link(box, "a", "c");
	box_fill(box, "d", 2, 300);
	cr_assert_eq(commit_scan(&box->options, NULL, NULL, NULL, &tree, &box->diag), 0);
	change(box);
	cr_assert_eq(commit_read_files(&read, &box->diag), 0);
	cr_assert_eq(read.counters.files_n, 4);
	cr_assert_eq(commit_tree_hash(&tree), 0);
	cr_assert_eq(ds_fingerprint_directory(&box->options, &fingerprint, &totals, NULL), 0);
	cr_assert(ds_digest_equal(&fingerprint, &tree.root.digest));
	cr_assert_eq(commit_tree_count(&tree, box->source, NULL), 0);
	/* What has become one file may be two. */
	cr_assert_geq(tree.bytes, totals.bytes);
	commit_tree_release(&tree);
}

static void put_anew(struct box *box, const char *path, uint64_t seed)
{
	box_fill(box, "new", seed, 500 + seed);
	box_rename(box, "new", path);
}

static void replace_first_link(struct box *box)
{
	put_anew(box, "a", 50);
}

static void replace_middle_link(struct box *box)
{
	put_anew(box, "b", 51);
}

static void replace_two_links(struct box *box)
{
	put_anew(box, "a", 52);
	put_anew(box, "b", 53);
}

static void replace_links(struct box *box)
{
	replace_two_links(box);
	put_anew(box, "c", 54);
}

static void replace_link_by_link(struct box *box)
{
	box_link(box, "d", "new");
	box_rename(box, "new", "a");
}

static void replace_last_link_and_rewrite(struct box *box)
{
	put_anew(box, "c", 55);
	box_fill(box, "a", 56, 1000);
}

Test(commit_read, D14_a_name_that_left_its_links_is_read_by_itself)
{
	void (*const changes[])(struct box *
				box) = {replace_first_link,   replace_middle_link,
					replace_two_links,    replace_links,
					replace_link_by_link, replace_last_link_and_rewrite};
	struct box box;

	box_init(&box);
	for (char name[] = "a"; name[0] <= 'd'; name[0]++)
		box_fill(&box, name, 1, 1);
	for (unsigned jobs_n = 1; jobs_n <= 3; jobs_n += 2)
		for (size_t i = 0; i < DS_ARRAY_SIZE(changes); i++) {
			box.options.jobs_n = jobs_n;
			check_moved_links(&box, changes[i]);
		}
	box_release(&box);
}

static void read_dir(struct scan *scan, const struct box *box, struct commit_node *dir)
{
	char path[200];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", box->source, dir->name);
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cr_assert_geq(fd, 0);
	cr_assert_eq(scan_read_dir(scan, dir, fd, dir->name), 0);
	cr_assert_eq(dir->children_n, 1);
	close(fd);
}

/* An inode may become another file's while the source is scanned, or only get another name. */
Test(commit_read, links_that_differed_when_they_were_scanned_are_unsure)
{
	struct box box;

	box_init(&box);
	box_mkdir(&box, "x");
	box_mkdir(&box, "y");
	box_fill(&box, "x/a", 1, 1000);
	box_link(&box, "x/a", "y/b");
	for (unsigned i = 0; i < 2; i++) {
		struct commit_tree tree = {.root_fd = -1};
		struct scan scan = {.options = &box.options,
				    .tree = &tree,
				    .is_root = true,
				    .mutex = PTHREAD_MUTEX_INITIALIZER};
		char names[] = "x\0y";
		struct commit_node x = {.name = names}, y = {.name = names + 2};

		cr_assert_eq(ds_arena_new(NULL, &tree.arena), 0);
		cr_assert_eq(ds_map_new(&scan.locked.links), 0);
		read_dir(&scan, &box, &x);
		if (i == 1)
			box_set_mtime(&box, "x/a", 1000, 5);
		read_dir(&scan, &box, &y);
		cr_assert(x.children[0].links && x.children[0].links == y.children[0].links);
		cr_assert_eq(commit_node_is_unsure(&x.children[0]), i == 1);
		ds_map_free(scan.locked.links, NULL);
		commit_tree_release(&tree);
	}
	box_release(&box);
}

/* The one that is read looks as it did when it was scanned, and yet the other name was another file's. */
Test(commit_read, names_of_unsure_links_are_looked_at_again)
{
	struct ds_version_totals totals;
	struct ds_digest fingerprint;
	struct commit_tree tree;
	struct commit_node *a;
	struct stat st;
	struct box box;
	struct commit_read read = {.options = &box.options, .tree = &tree, .memory_bytes = 1 << 20};
	char path[200];

	box_init(&box);
	box_fill(&box, "a", 1, 1000);
	box_link(&box, "a", "b");
	cr_assert_eq(commit_scan(&box.options, NULL, NULL, NULL, &tree, &box.diag), 0);
	put_anew(&box, "b", 70);
	snprintf(path, sizeof(path), "%s/a", box.source);
	cr_assert_eq(stat(path, &st), 0);
	a = &tree.root.children[0];
	a->ctime = (struct ds_time){.s = st.st_ctim.tv_sec, .ns = (uint32_t)st.st_ctim.tv_nsec};
	a->links->is_unsure = true;
	cr_assert_eq(commit_read_files(&read, &box.diag), 0);
	cr_assert_eq(commit_tree_hash(&tree), 0);
	cr_assert_eq(ds_fingerprint_directory(&box.options, &fingerprint, &totals, NULL), 0);
	cr_assert(ds_digest_equal(&fingerprint, &tree.root.digest));
	commit_tree_release(&tree);
	box_release(&box);
}

static void before_record(void *ctx, const struct ds_store_req *req)
{
	struct fiddle *fiddle = ctx;

	/* The parent's is got between scan and reading. */
	if (fiddle->left_n > 0 && strncmp(req->key, "versions/", 9) == 0) {
		fiddle->left_n--;
		put_anew(fiddle->box, "a", 60);
	}
}

Test(commit_read, D14_links_that_part_during_a_commit_part_in_the_version)
{
	struct fiddle fiddle = {0};
	struct box box;

	box_init(&box);
	fiddle.box = &box;
	box_fill(&box, "a", 1, 1000);
	box_link(&box, "a", "b");
	box_link(&box, "a", "c");
	box_commit(&box);
	box_fill(&box, "other", 2, 3000);
	box.spy.before = before_record;
	box.spy.ctx = &fiddle;
	fiddle.left_n = 1;
	box_commit(&box);
	cr_assert_eq(fiddle.left_n, 0);
	box.spy.before = NULL;
	box_check(&box, NULL);
	box_release(&box);
}

/* As one long write() does: the time is stamped when it begins, bytes come until it ends. */
struct long_write {
	pthread_t thread;
	uint8_t *page;
	int fd;
};

static void *end_write(void *ctx)
{
	struct long_write *write = ctx;

	ds_sleep_ms(300);
	memset(write->page + 2048, 'B', 2048);
	munmap(write->page, 4096);
	close(write->fd);
	return NULL;
}

static void begin_write(struct long_write *write, const struct box *box)
{
	char path[200];

	snprintf(path, sizeof(path), "%s/file", box->source);
	write->fd = open(path, O_RDWR | O_CLOEXEC);
	cr_assert_geq(write->fd, 0);
	write->page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, write->fd, 0);
	cr_assert_neq(write->page, MAP_FAILED);
	memset(write->page, 'B', 2048);
	cr_assert_eq(pthread_create(&write->thread, NULL, end_write, write), 0);
}

Test(commit_read, D14_a_file_is_read_when_who_writes_it_is_done)
{
	struct ds_version_totals totals;
	struct ds_digest before, fingerprint;
	struct long_write write;
	struct box box;

	box_init(&box);
	box_fill(&box, "file", 1, 4096);
	begin_write(&write, &box);
	cr_assert_eq(ds_fingerprint_directory(&box.options, &before, &totals, NULL), 0);
	pthread_join(write.thread, NULL);
	cr_assert_eq(ds_fingerprint_directory(&box.options, &fingerprint, &totals, NULL), 0);
	cr_assert(ds_digest_equal(&before, &fingerprint));
	box_release(&box);
}

Test(commit_read, a_file_that_is_open_for_writing_and_rests_is_read)
{
	struct ds_version_totals totals;
	struct ds_digest fingerprint;
	struct box box;
	char path[200];
	int fd;

	box_init(&box);
	box_fill(&box, "file", 1, 4096);
	snprintf(path, sizeof(path), "%s/file", box.source);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	cr_assert_eq(ds_fingerprint_directory(&box.options, &fingerprint, &totals, NULL), 0);
	close(fd);
	box_release(&box);
}

/* INV-6: pages of a disk's file are written within the minute, and the next store is seen again; of what lies in memory they are not. */
Test(commit_read, what_is_mapped_in_memory_is_never_sure)
{
	const int64_t minute_ns = 60 * (int64_t)DS_NS_PER_S;
	int in_memory = memfd_create("dsfs-test", MFD_CLOEXEC);
	int elsewhere = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	cr_assert_geq(in_memory, 0);
	cr_assert_geq(elsewhere, 0);
	cr_assert(commit_read_is_unsure(elsewhere, false, minute_ns - 1));
	cr_assert(!commit_read_is_unsure(elsewhere, false, minute_ns));
	cr_assert(!commit_read_is_unsure(elsewhere, true, 0));
	cr_assert(commit_read_is_unsure(in_memory, false, minute_ns - 1));
	cr_assert(commit_read_is_unsure(in_memory, false, minute_ns));
	cr_assert(commit_read_is_unsure(in_memory, false, 1000000 * minute_ns));
	cr_assert(!commit_read_is_unsure(in_memory, true, 0));
	close(in_memory);
	close(elsewhere);
}

struct log {
	pthread_t thread;
	_Atomic bool is_there, is_over;
	bool is_in_place;
	char path[200];
};

static void *keep_writing(void *ctx)
{
	struct log *log = ctx;
	int fd = open(log->path, O_WRONLY | O_CLOEXEC);

	for (uint64_t i = 0; !log->is_over; i++) {
		off_t end = lseek(fd, 0, SEEK_END);

		if (pwrite(fd, &i, sizeof(i), log->is_in_place ? 0 : end) < 0)
			break;
		log->is_there = true;
		ds_sleep_ms(30);
	}
	close(fd);
	return NULL;
}

/* Of the fingerprint of a source with a file that somebody keeps open and writes all the time. */
static int read_written(struct box *box, bool is_in_place)
{
	struct log log = {.is_in_place = is_in_place};
	struct ds_version_totals totals;
	struct ds_digest fingerprint;
	int r;

	snprintf(log.path, sizeof(log.path), "%s/file", box->source);
	cr_assert_eq(pthread_create(&log.thread, NULL, keep_writing, &log), 0);
	while (!log.is_there)
		ds_sleep_ms(1);
	r = ds_fingerprint_directory(&box->options, &fingerprint, &totals, NULL);
	log.is_over = true;
	pthread_join(log.thread, NULL);
	return r;
}

Test(commit_read, D14_a_log_is_read_while_it_grows)
{
	struct box box;

	box_init(&box);
	box_fill(&box, "file", 1, 1000);
	cr_assert_eq(read_written(&box, false), 0);
	cr_assert_eq(read_written(&box, true), -DS_E_SOURCE_CHANGED);
	box_release(&box);
}
