#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "test_leaks.h"
#include "util/error.h"
#include "util/file.h"
#include "util/mem.h"

static char root[256];
static int root_fd = -1;

static void init(void)
{
	const char *tmp = getenv("TMPDIR");

	snprintf(root, sizeof(root), "%s/util-file-XXXXXX", tmp ? tmp : "/tmp");
	cr_assert_not_null(mkdtemp(root));
	root_fd = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cr_assert_geq(root_fd, 0);
}

static void fini(void)
{
	ds_close_ptr(&root_fd);
	ds_rmtree_at(AT_FDCWD, root);
	test_leaks_abort();
}

TestSuite(file, .init = init, .fini = fini, .timeout = 30);

static void write_file(const char *name, const char *text)
{
	cr_assert_eq(ds_file_write_atomic(root_fd, name, text, strlen(text), 0644, DS_FILE_REPLACE,
					  false),
		     0);
}

static void expect_file(const char *name, const char *text)
{
	struct ds_buf buf = DS_BUF_INIT(1 << 20);

	cr_assert_eq(ds_file_read_at(root_fd, name, &buf), 0);
	cr_assert_str_eq(ds_buf_str(&buf), text);
	ds_buf_release(&buf);
}

static size_t names_n(void)
{
	DIR *dir = opendir(root);
	size_t n = 0;

	while (readdir(dir))
		n++;
	closedir(dir);
	return n - 2;
}

Test(file, a_new_file_is_made_once)
{
	struct stat st;

	umask(022);
	cr_assert_eq(ds_file_write_atomic(root_fd, "a", "one", 3, 0640, DS_FILE_NEW_ONLY, true), 0);
	cr_assert_eq(ds_file_write_atomic(root_fd, "a", "two", 3, 0640, DS_FILE_NEW_ONLY, true),
		     -EEXIST);
	expect_file("a", "one");
	cr_assert_eq(names_n(), 1);
	cr_assert_eq(fstatat(root_fd, "a", &st, 0), 0);
	cr_assert_eq(st.st_mode & 07777, 0640);
	cr_assert_eq(st.st_nlink, 1);
}

Test(file, a_file_is_replaced_whole)
{
	write_file("a", "a long text");
	cr_assert_eq(ds_file_write_atomic(root_fd, "a", "", 0, 0600, DS_FILE_REPLACE, true), 0);
	expect_file("a", "");
	cr_assert_eq(names_n(), 1);
}

Test(file, a_write_that_fails_leaves_nothing_and_changes_nothing)
{
	write_file("a", "old");
	cr_assert_eq(mkdirat(root_fd, "dir", 0755), 0);
	cr_assert_lt(ds_file_write_atomic(root_fd, "dir", "x", 1, 0600, DS_FILE_REPLACE, false), 0);
	cr_assert_eq(ds_file_write_atomic(root_fd, "dir", "x", 1, 0600, DS_FILE_NEW_ONLY, false),
		     -EEXIST);
	cr_assert_eq(ds_file_write_atomic(root_fd, "no/such", "x", 1, 0600, DS_FILE_REPLACE, false),
		     -ENOENT);
	cr_assert_eq(ds_file_write_atomic(-1, "a", "x", 1, 0600, DS_FILE_REPLACE, false), -EBADF);
	expect_file("a", "old");
	cr_assert_eq(names_n(), 2);
}

Test(file, H03_a_planted_link_is_neither_followed_nor_written_through)
{
	write_file("secret", "secret");
	cr_assert_eq(symlinkat("secret", root_fd, "link"), 0);
	cr_assert_eq(ds_file_write_atomic(root_fd, "link", "x", 1, 0600, DS_FILE_NEW_ONLY, false),
		     -EEXIST);
	expect_file("secret", "secret");
	cr_assert_eq(ds_file_write_atomic(root_fd, "link", "x", 1, 0600, DS_FILE_REPLACE, false),
		     0);
	expect_file("secret", "secret");
	expect_file("link", "x");
	cr_assert_eq(unlinkat(root_fd, "link", 0), 0);
	cr_assert_eq(symlinkat("secret", root_fd, "link"), 0);
	struct ds_buf buf = DS_BUF_INIT(100);

	cr_assert_eq(ds_file_read_at(root_fd, "link", &buf), -ELOOP);
	ds_buf_release(&buf);
}

Test(file, only_regular_files_are_read_and_nothing_blocks)
{
	struct ds_buf buf = DS_BUF_INIT(100);

	cr_assert_eq(mkfifoat(root_fd, "fifo", 0600), 0);
	cr_assert_eq(mkdirat(root_fd, "dir", 0700), 0);
	cr_assert_eq(ds_file_read_at(root_fd, "fifo", &buf), -EINVAL);
	cr_assert_eq(ds_file_read_at(root_fd, "dir", &buf), -EINVAL);
	cr_assert_eq(ds_file_read_at(AT_FDCWD, "/dev/zero", &buf), -EINVAL);
	cr_assert_eq(ds_file_read_at(root_fd, "none", &buf), -ENOENT);
	ds_buf_release(&buf);
}

Test(file, the_buffers_maximum_bounds_a_read)
{
	char text[200001];
	struct ds_buf buf;

	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	write_file("a", text);
	for (size_t max = 199998; max < 200003; max++) {
		ds_buf_init(&buf, max);
		cr_assert_eq(ds_file_read_at(root_fd, "a", &buf), max < 200000 ? -DS_E_LIMIT : 0,
			     "%zu", max);
		if (max >= 200000)
			cr_assert_str_eq(ds_buf_str(&buf), text);
		ds_buf_release(&buf);
	}
	/* It is appended, and counts with what is there. */
	ds_buf_init(&buf, 200003);
	cr_assert_eq(ds_buf_append_str(&buf, "1234"), 0);
	cr_assert_eq(ds_file_read_at(root_fd, "a", &buf), -DS_E_LIMIT);
	ds_buf_release(&buf);
	ds_buf_init(&buf, 0);
	write_file("empty", "");
	cr_assert_eq(ds_file_read_at(root_fd, "empty", &buf), 0);
	cr_assert_eq(ds_file_read_at(root_fd, "a", &buf), -DS_E_LIMIT);
	ds_buf_release(&buf);
}

/* A pipe gives and takes little at a time. */
Test(file, full_means_all_bytes_or_the_end)
{
	int fds[2];
	char buf[100000];
	pid_t child;
	size_t n = 7;

	cr_assert_eq(pipe2(fds, O_CLOEXEC), 0);
	child = fork();
	if (child == 0) {
		memset(buf, 'p', sizeof(buf));
		_exit(ds_write_full(fds[1], buf, sizeof(buf)) == 0 ? 0 : 1);
	}
	close(fds[1]);
	memset(buf, 0, sizeof(buf));
	cr_assert_eq(ds_read_full(fds[0], buf, 99999, &n), 0);
	cr_assert_eq(n, 99999);
	cr_assert_eq(buf[99998], 'p');
	cr_assert_eq(ds_read_full(fds[0], buf, 10, &n), 0);
	cr_assert_eq(n, 1);
	cr_assert_eq(ds_read_full(fds[0], buf, 10, &n), 0);
	cr_assert_eq(n, 0);
	close(fds[0]);
}

Test(file, positioned_reads_and_writes_are_complete)
{
	_ds_cleanup_close_ int fd = openat(root_fd, "a", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	char buf[10];
	size_t n;

	cr_assert_eq(ds_pwrite_full(fd, "world", 5, 5), 0);
	cr_assert_eq(ds_pwrite_full(fd, "hello", 5, 0), 0);
	cr_assert_eq(ds_pread_full(fd, buf, 10, 3, &n), 0);
	cr_assert_eq(n, 7);
	cr_assert_arr_eq(buf, "loworld", 7);
	cr_assert_eq(ds_pread_full(fd, buf, 10, 100, &n), 0);
	cr_assert_eq(n, 0);
	cr_assert_eq(ds_pread_full(-1, buf, 10, 0, &n), -EBADF);
	cr_assert_eq(ds_pread_full(fd, buf, 10, UINT64_MAX, &n), -EINVAL);
}

Test(file, a_read_at_once_is_of_all_or_nothing)
{
	_ds_cleanup_close_ int fd = openat(root_fd, "a", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	char buf[10];

	cr_assert_eq(ds_pwrite_full(fd, "helloworld", 10, 0), 0);
	cr_assert_eq(ds_pread_now(fd, buf, 7, 3), 0);
	cr_assert_arr_eq(buf, "loworld", 7);
	cr_assert_eq(ds_pread_now(fd, buf, 8, 3), -EAGAIN);
	cr_assert_eq(ds_pread_now(fd, buf, 1, 100), -EAGAIN);
	cr_assert_eq(ds_pread_now(-1, buf, 1, 0), -EAGAIN);
}

Test(file, a_full_disk_is_an_error)
{
	_ds_cleanup_close_ int fd = open("/dev/full", O_WRONLY | O_CLOEXEC);
	int closed = -1;

	cr_assert_eq(ds_write_full(fd, "x", 1), -ENOSPC);
	cr_assert_eq(ds_write_full(fd, "", 0), 0);
	cr_assert_eq(ds_write_full(closed, "x", 1), -EBADF);
}

Test(file, directories_are_made_with_their_parents)
{
	struct stat st;
	char path[400];

	cr_assert_eq(ds_mkdir_p(root_fd, "a/b//c/", 0755), 0);
	cr_assert_eq(ds_mkdir_p(root_fd, "a/b/c", 0755), 0);
	cr_assert_eq(ds_mkdir_p(root_fd, "a", 0755), 0);
	cr_assert_eq(fstatat(root_fd, "a/b/c", &st, 0), 0);
	cr_assert(S_ISDIR(st.st_mode));
	write_file("file", "x");
	cr_assert_eq(ds_mkdir_p(root_fd, "file", 0755), -ENOTDIR);
	cr_assert_eq(ds_mkdir_p(root_fd, "file/x", 0755), -ENOTDIR);
	cr_assert_eq(ds_mkdir_p(root_fd, "", 0755), -ENOENT);
	snprintf(path, sizeof(path), "%s/abs/olute", root);
	cr_assert_eq(ds_mkdir_p(AT_FDCWD, path, 0755), 0);
	cr_assert_eq(ds_mkdir_p(AT_FDCWD, "/", 0755), 0);
	/* A link to a directory is a directory. */
	cr_assert_eq(symlinkat("a", root_fd, "link"), 0);
	cr_assert_eq(ds_mkdir_p(root_fd, "link/d", 0755), 0);
	cr_assert_eq(fstatat(root_fd, "a/d", &st, 0), 0);
	ds_mem_fail_after(0, 0);
	cr_assert_eq(ds_mkdir_p(root_fd, "m", 0755), -ENOMEM);
	ds_mem_fail_after(-1, 0);
}

Test(file, H03_removing_a_tree_does_not_follow_links)
{
	struct stat st;

	cr_assert_eq(ds_mkdir_p(root_fd, "keep", 0755), 0);
	write_file("keep-file", "x");
	cr_assert_eq(ds_mkdir_p(root_fd, "tree/a/b", 0755), 0);
	cr_assert_eq(symlinkat("../keep", root_fd, "tree/link"), 0);
	cr_assert_eq(symlinkat("../../keep-file", root_fd, "tree/a/link"), 0);
	cr_assert_eq(symlinkat("nowhere", root_fd, "tree/a/b/dangling"), 0);
	cr_assert_eq(mkfifoat(root_fd, "tree/fifo", 0600), 0);
	cr_assert_eq(ds_rmtree_at(root_fd, "tree"), 0);
	cr_assert_eq(fstatat(root_fd, "tree", &st, AT_SYMLINK_NOFOLLOW), -1);
	cr_assert_eq(fstatat(root_fd, "keep", &st, 0), 0);
	expect_file("keep-file", "x");
	cr_assert_eq(ds_rmtree_at(root_fd, "tree"), 0);
	cr_assert_eq(ds_rmtree_at(root_fd, "keep-file"), 0);
	/* A link itself, not what it leads to. */
	cr_assert_eq(symlinkat("keep", root_fd, "link"), 0);
	cr_assert_eq(ds_rmtree_at(root_fd, "link"), 0);
	cr_assert_eq(fstatat(root_fd, "keep", &st, 0), 0);
	cr_assert_eq(ds_fsync_dir(root_fd), 0);
	cr_assert_eq(ds_fsync_dir(-1), -EBADF);
}

Test(file, closing_keeps_errno_and_is_done_once)
{
	int fd = dup(root_fd);

	errno = ENOSPC;
	ds_close_ptr(&fd);
	cr_assert_eq(fd, -1);
	cr_assert_eq(errno, ENOSPC);
	ds_close_ptr(&fd);
	fd = 12345;
	ds_close_ptr(&fd);
	cr_assert_eq(errno, ENOSPC);
}

Test(file, a_lease_tells_who_else_has_it_open)
{
	int fd, writer_fd, reader_fd;

	write_file("leased", "text");
	fd = openat(root_fd, "leased", O_RDONLY | O_CLOEXEC);
	cr_assert_eq(ds_try_lease(fd, F_RDLCK), 0);
	cr_assert_eq(ds_try_lease(fd, F_WRLCK), 0);
	reader_fd = openat(root_fd, "leased", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	cr_assert_geq(reader_fd, 0, "it was given back");
	cr_assert_eq(ds_try_lease(fd, F_RDLCK), 0);
	cr_assert_eq(ds_try_lease(fd, F_WRLCK), -EAGAIN);
	close(reader_fd);
	writer_fd = openat(root_fd, "leased", O_WRONLY | O_NONBLOCK | O_CLOEXEC);
	cr_assert_eq(ds_try_lease(fd, F_RDLCK), -EAGAIN);
	close(writer_fd);
	cr_assert_eq(ds_try_lease(fd, F_RDLCK), 0);
	close(fd);
	cr_assert_eq(ds_try_lease(fd, F_RDLCK), -EBADF);
}
