#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "test_leaks.h"
#include "util/buf.h"
#include "util/clock.h"
#include "util/file.h"
#include "util/log.h"
#include "util/mem.h"

static char root[256], path[300], moved[310];

static void init(void)
{
	const char *tmp = getenv("TMPDIR");

	snprintf(root, sizeof(root), "%s/util-log-XXXXXX", tmp ? tmp : "/tmp");
	cr_assert_not_null(mkdtemp(root));
	snprintf(path, sizeof(path), "%s/log", root);
	snprintf(moved, sizeof(moved), "%s/log.1", root);
}

static void fini(void)
{
	ds_rmtree_at(AT_FDCWD, root);
	test_leaks_abort();
}

TestSuite(log, .init = init, .fini = fini, .timeout = 30);

static struct ds_buf contents(const char *file)
{
	struct ds_buf buf = DS_BUF_INIT(1 << 20);

	cr_assert_eq(ds_file_read_at(AT_FDCWD, file, &buf), 0);
	return buf;
}

static size_t count(const struct ds_buf *buf, const char *what)
{
	size_t n = 0;

	for (const char *at = ds_buf_str(buf); (at = strstr(at, what)); at += strlen(what))
		n++;
	return n;
}

Test(log, a_file_gets_lines_with_time_and_level)
{
	struct ds_buf buf;
	struct stat st;

	umask(0);
	cr_assert_eq(ds_log_init(path, DS_LOG_INFO), 0);
	ds_log_error("one %d", 1);
	ds_log_warning("two");
	ds_log_info("three");
	ds_log_debug("four");
	buf = contents(path);
	cr_assert_eq(count(&buf, "\n"), 3);
	cr_assert_eq(count(&buf, " error: one 1\n"), 1);
	cr_assert_eq(count(&buf, " warning: two\n"), 1);
	cr_assert_eq(count(&buf, " info: three\n"), 1);
	cr_assert_eq(buf.data[10], 'T');
	ds_buf_release(&buf);
	cr_assert_eq(stat(path, &st), 0);
	cr_assert_eq(st.st_mode & 07777, 0600);
	ds_log_set_level(DS_LOG_DEBUG);
	cr_assert_eq(ds_log_get_level(), DS_LOG_DEBUG);
	ds_log_debug("five");
	ds_log_set_level(DS_LOG_ERROR);
	ds_log_warning("six");
	buf = contents(path);
	cr_assert_eq(count(&buf, "\n"), 4);
	cr_assert_eq(count(&buf, " debug: five\n"), 1);
	ds_buf_release(&buf);
	cr_assert_eq(ds_log_init("stderr", DS_LOG_INFO), 0);
}

Test(log, stderr_gets_a_prefix)
{
	int saved = dup(STDERR_FILENO), fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
	struct ds_buf buf;

	dup2(fd, STDERR_FILENO);
	ds_log_info("one");
	ds_log_error("two");
	dup2(saved, STDERR_FILENO);
	close(saved);
	close(fd);
	buf = contents(path);
	cr_assert_str_eq(ds_buf_str(&buf), "dsfs: one\ndsfs: error: two\n");
	ds_buf_release(&buf);
}

/* What a name may hold cannot make a second line, and a long one is cut. */
Test(log, one_call_is_one_line)
{
	static char big[5000];
	struct ds_buf buf;

	memset(big, 'x', sizeof(big) - 1);
	cr_assert_eq(ds_log_init(path, DS_LOG_INFO), 0);
	ds_log_info("a\nb\rc\x1b[2J");
	ds_log_info("%s", big);
	buf = contents(path);
	cr_assert_eq(count(&buf, "\n"), 2);
	cr_assert_eq(count(&buf, "info: a b c [2J\n"), 1);
	cr_assert_leq(buf.len_bytes, 2 * 2048);
	cr_assert_eq(buf.data[buf.len_bytes - 1], '\n');
	ds_buf_release(&buf);
	cr_assert_eq(ds_log_init("stderr", DS_LOG_INFO), 0);
}

Test(log, J08_a_storm_is_counted_not_written)
{
	uint64_t start = ds_mono_ns(), seconds;
	struct ds_buf buf;
	size_t lines_n;

	cr_assert_eq(ds_log_init(path, DS_LOG_DEBUG), 0);
	for (int i = 0; i < 5000; i++)
		ds_log_error("storm");
	for (int i = 0; i < 50; i++)
		ds_log_debug("not limited");
	seconds = (ds_mono_ns() - start) / DS_NS_PER_S + 2;
	buf = contents(path);
	lines_n = count(&buf, "storm");
	cr_assert_geq(lines_n, 10);
	cr_assert_leq(lines_n, 10 * seconds);
	cr_assert_eq(lines_n + ds_log_suppressed_n(), 5000);
	cr_assert_eq(count(&buf, "not limited"), 50);
	ds_buf_release(&buf);
	cr_assert_eq(ds_log_init("stderr", DS_LOG_INFO), 0);
}

Test(log, K08_after_a_rotation_lines_go_to_the_new_file)
{
	struct ds_buf buf;

	cr_assert_eq(ds_log_init(path, DS_LOG_INFO), 0);
	ds_log_info("one");
	cr_assert_eq(rename(path, moved), 0);
	ds_log_info("two");
	ds_log_reopen();
	ds_log_info("three");
	buf = contents(moved);
	cr_assert_eq(count(&buf, "one"), 1);
	cr_assert_eq(count(&buf, "two"), 1);
	cr_assert_eq(count(&buf, "three"), 0);
	ds_buf_release(&buf);
	buf = contents(path);
	cr_assert_eq(count(&buf, "three"), 1);
	ds_buf_release(&buf);
	/* Where it cannot be opened anew, the old one stays. */
	ds_rmtree_at(AT_FDCWD, root);
	ds_log_reopen();
	ds_log_info("four");
	cr_assert_eq(ds_log_init("stderr", DS_LOG_INFO), 0);
	ds_log_reopen();
}

Test(log, F12_a_sink_that_cannot_be_opened_leaves_the_old_one)
{
	struct ds_buf buf;
	char link[310];

	cr_assert_eq(ds_log_init(path, DS_LOG_INFO), 0);
	snprintf(link, sizeof(link), "%s/link", root);
	cr_assert_eq(symlink(path, link), 0);
	cr_assert_eq(ds_log_init(link, DS_LOG_DEBUG), -ELOOP);
	cr_assert_eq(ds_log_init(root, DS_LOG_DEBUG), -EISDIR);
	cr_assert_eq(mkfifo(moved, 0600), 0);
	cr_assert_eq(ds_log_init(moved, DS_LOG_DEBUG), -ENXIO);
	ds_mem_fail_after(0, 0);
	cr_assert_eq(ds_log_init(moved, DS_LOG_DEBUG), -ENOMEM);
	ds_mem_fail_after(-1, 0);
	cr_assert_eq(ds_log_get_level(), DS_LOG_INFO);
	ds_log_info("still here");
	buf = contents(path);
	cr_assert_eq(count(&buf, "still here"), 1);
	ds_buf_release(&buf);
	cr_assert_eq(ds_log_init("stderr", DS_LOG_INFO), 0);
}

Test(log, F12_a_full_disk_and_a_closed_stderr_lose_lines_and_nothing_else)
{
	int saved = dup(STDERR_FILENO);

	cr_assert_eq(ds_log_init("/dev/full", DS_LOG_INFO), 0);
	errno = EXDEV;
	ds_log_info("lost");
	cr_assert_eq(errno, EXDEV);
	cr_assert_eq(ds_log_init("stderr", DS_LOG_INFO), 0);
	close(STDERR_FILENO);
	errno = EXDEV;
	ds_log_info("lost");
	cr_assert_eq(errno, EXDEV);
	dup2(saved, STDERR_FILENO);
	close(saved);
}

static void *log_much(void *arg)
{
	for (int i = 0; i < 200; i++)
		ds_log_debug("from %s, always the same length", (char *)arg);
	return NULL;
}

Test(log, lines_of_threads_do_not_mix)
{
	static char names[4][3] = {"t0", "t1", "t2", "t3"};
	pthread_t threads[4];
	struct ds_buf buf;

	cr_assert_eq(ds_log_init(path, DS_LOG_DEBUG), 0);
	for (int i = 0; i < 4; i++)
		cr_assert_eq(pthread_create(&threads[i], NULL, log_much, names[i]), 0);
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	buf = contents(path);
	cr_assert_eq(count(&buf, "\n"), 800);
	cr_assert_eq(count(&buf, ", always the same length\n"), 800);
	for (int i = 0; i < 4; i++)
		cr_assert_eq(count(&buf, names[i]), 200);
	ds_buf_release(&buf);
	cr_assert_eq(ds_log_init("stderr", DS_LOG_INFO), 0);
}
