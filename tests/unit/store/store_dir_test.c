#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "store_contract.h"
#include "util/file.h"
#include "util/mem.h"
#include "util/random.h"

TestSuite(store_dir, .fini = test_leak_check);

static char root[64];

static struct ds_store *open_new(void)
{
	struct ds_store *store = NULL;

	strcpy(root, "/tmp/dsfs-store-dir-XXXXXX");
	cr_assert_not_null(mkdtemp(root));
	cr_assert_eq(ds_store_open(root, NULL, false, &store, NULL), 0);
	return store;
}

static void close_and_remove(struct ds_store *store)
{
	cr_assert_null(ds_store_unref(store));
	cr_assert_eq(ds_rmtree_at(AT_FDCWD, root), 0);
}

#define T(name)                                      \
	Test(store_dir, name)                        \
	{                                            \
		struct ds_store *store = open_new(); \
                                                     \
		contract_##name(store);              \
		close_and_remove(store);             \
	}
STORE_CONTRACT(T)

static const char *in_root(const char *name)
{
	static char path[2][256];
	static int i;

	i = !i;
	snprintf(path[i], sizeof(path[i]), "%s/%s", root, name);
	return path[i];
}

Test(store_dir, open_makes_a_directory_only_if_it_is_told_to)
{
	struct ds_store *store = open_new(), *other = NULL;
	struct ds_diag diag = {0};
	char url[128];

	cr_assert_eq(ds_store_open(in_root("x/y"), NULL, false, &other, &diag), -DS_E_NO_REPO);
	cr_assert(strstr(diag.object, "x/y"));
	cr_assert_eq(ds_store_open(in_root("x/y"), NULL, true, &other, NULL), 0);
	cr_assert_str_eq(ds_store_local_path(other), in_root("x/y"));
	cr_assert_str_eq(ds_store_url(other), in_root("x/y"));
	cr_assert_eq(ds_store_put(other, "k", "v", 1, NULL), 0);
	other = ds_store_unref(other);
	snprintf(url, sizeof(url), "file://%s/x/%%79", root);
	cr_assert_eq(ds_store_open(url, NULL, false, &other, NULL), 0);
	cr_assert_str_eq(ds_store_local_path(other), in_root("x/y"));
	other = ds_store_unref(other);
	cr_assert_eq(ds_store_open(in_root("x/y/k"), NULL, true, &other, NULL), -DS_E_NO_REPO);
	cr_assert_eq(ds_store_open("file://host/x", NULL, true, &other, NULL), -DS_E_USAGE);
	cr_assert_eq(ds_store_open("file:///x%zz", NULL, true, &other, NULL), -DS_E_USAGE);
	cr_assert_eq(ds_store_open("file:///x%00", NULL, true, &other, NULL), -DS_E_USAGE);
	cr_assert_eq(ds_store_open("http://x/y", NULL, true, &other, NULL), -DS_E_USAGE);
	cr_assert_eq(ds_store_open("", NULL, true, &other, NULL), -DS_E_USAGE);
	close_and_remove(store);
}

Test(store_dir, links_and_special_files_in_the_store_are_refused)
{
	struct ds_store *store = open_new();
	struct ds_buf buf = DS_BUF_INIT(100);
	struct ds_store_listing listing = {0};
	struct ds_store_req list = {.op = DS_STORE_LIST, .key = "", .listing = &listing};
	struct ds_diag diag = {0};

	cr_assert_eq(ds_store_put(store, "real/k", "v", 1, NULL), 0);
	cr_assert_eq(symlink("/etc/passwd", in_root("file")), 0);
	cr_assert_eq(symlink("/etc", in_root("dir")), 0);
	cr_assert_eq(symlink("real", in_root("inside")), 0);
	cr_assert_eq(mkfifo(in_root("fifo"), 0600), 0);
	cr_assert_eq(ds_store_get(store, "file", &buf, &diag), -ELOOP);
	cr_assert(strstr(diag.object, root), "the path is named: %s", diag.object);
	cr_assert_eq(ds_store_get(store, "dir/passwd", &buf, NULL), -ELOOP);
	cr_assert_eq(ds_store_get(store, "inside/k", &buf, NULL), -ELOOP);
	cr_assert_eq(ds_store_put(store, "inside/l", "v", 1, NULL), -ELOOP);
	cr_assert_eq(ds_store_get(store, "fifo", &buf, NULL), -EINVAL);
	cr_assert_eq(ds_store_perform(store, &list), 0);
	cr_assert_eq(listing.objects_n, 1);
	cr_assert_str_eq(listing.objects[0].key, "real/k");
	ds_store_listing_release(&listing);
	ds_buf_release(&buf);
	close_and_remove(store);
}

Test(store_dir, list_leaves_out_temporary_files_and_the_lock)
{
	struct ds_store *store = open_new();
	struct ds_store_listing listing = {0};
	struct ds_store_req list = {.op = DS_STORE_LIST, .key = "", .listing = &listing};
	int fd;

	cr_assert_eq(ds_store_put(store, "a/k", "v", 1, NULL), 0);
	cr_assert_eq(ds_store_put(store, "a/lock", "v", 1, NULL), 0);
	cr_assert_eq(ds_store_lock(store, false, &fd), 0);
	close(fd);
	fd = open(in_root("a/.tmp-0123456789abcdef"), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	cr_assert_geq(fd, 0);
	close(fd);
	cr_assert_eq(ds_store_perform(store, &list), 0);
	cr_assert_eq(listing.objects_n, 2);
	cr_assert_str_eq(listing.objects[0].key, "a/k");
	cr_assert_str_eq(listing.objects[1].key, "a/lock");
	ds_store_listing_release(&listing);
	close_and_remove(store);
}

Test(store_dir, writers_share_the_lock_and_a_collector_has_it_alone)
{
	struct ds_store *store = open_new();
	int a, b, c, probe;

	cr_assert_eq(ds_store_lock(store, false, &a), 0);
	cr_assert_eq(ds_store_lock(store, false, &b), 0);
	probe = open(in_root("lock"), O_RDONLY | O_CLOEXEC);
	cr_assert_eq(flock(probe, LOCK_EX | LOCK_NB), -1);
	cr_assert_eq(ds_store_lock(store, true, &c), -EBUSY);
	close(a);
	close(b);
	cr_assert_eq(ds_store_lock(store, true, &a), 0);
	cr_assert_eq(flock(probe, LOCK_SH | LOCK_NB), -1);
	close(a);
	cr_assert_eq(flock(probe, LOCK_SH | LOCK_NB), 0);
	close(probe);
	close_and_remove(store);
}

/* This process's clock is wrong by so much; that of the file system is not. */
static int64_t skew_s;

int clock_gettime(clockid_t id, struct timespec *ret_ts)
{
	int r = (int)syscall(SYS_clock_gettime, id, ret_ts);

	if (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)
		ret_ts->tv_sec += skew_s;
	return r;
}

#define DAY_S INT64_C(86400)

Test(store_dir, the_time_is_the_file_systems)
{
	struct ds_store *store = open_new();
	struct ds_time now, wrong;

	cr_assert_eq(ds_store_now(store, &now, NULL), 0);
	for (skew_s = -2 * DAY_S; skew_s <= 2 * DAY_S; skew_s += 2 * DAY_S) {
		int64_t apart_s;

		cr_assert_eq(ds_store_now(store, &wrong, NULL), 0);
		apart_s = ds_time_diff_ns(wrong, now) / (int64_t)DS_NS_PER_S;
		cr_assert(apart_s >= 0 && apart_s < 600, "%lld s", (long long)apart_s);
		cr_assert_eq(access(root, F_OK), 0);
	}
	skew_s = 0;
	close_and_remove(store);
}

Test(store_dir, the_time_of_a_directory_that_cannot_be_written_is_this_machines)
{
	struct ds_store *store = open_new();
	struct ds_time now;

	cr_assert_eq(rmdir(root), 0);
	cr_assert_eq(ds_store_now(store, &now, NULL), 0);
	cr_assert_lt(ds_time_diff_ns(ds_real_now(), now), 60 * (int64_t)DS_NS_PER_S);
	ds_store_unref(store);
}

/* An empty file of this age. */
static void leave(const char *name, int64_t age_s)
{
	int fd = open(in_root(name), O_WRONLY | O_CREAT | O_CLOEXEC, 0400);
	struct timespec times[2] = {{.tv_sec = time(NULL) - age_s}, {.tv_sec = time(NULL) - age_s}};

	cr_assert_geq(fd, 0);
	cr_assert_eq(futimens(fd, times), 0);
	close(fd);
}

Test(store_dir, E02_what_killed_writers_left_a_day_ago_is_removed)
{
	static const char *const stay[] = {
		"a/.tmp-0000000000000001", "a/.tmp-0123",
		"a/.tmp-0123456789abcdeF", "a/.tmp-0123456789abcdef0",
		"a/tmp-0123456789abcdef",  "a/k",
	};
	struct ds_store *store = open_new();
	struct ds_store_listing listing = {0};
	struct ds_store_req list = {.op = DS_STORE_LIST, .key = "", .listing = &listing};
	struct ds_buf buf = DS_BUF_INIT(10);
	struct ds_time now;

	cr_assert_eq(ds_store_put(store, "a/k", "v", 1, NULL), 0);
	cr_assert_eq(ds_store_put(store, "b/k", "v", 1, NULL), 0);
	ds_store_unref(store);
	for (size_t i = 0; i < DS_ARRAY_SIZE(stay); i++)
		leave(stay[i], i ? 30 * DAY_S : DAY_S - 600);
	leave("a/.tmp-0123456789abcdef", DAY_S + 600);
	leave("b/.tmp-0123456789abcdef", DAY_S + 600);
	leave(".tmp-0123456789abcdef", DAY_S + 600);
	cr_assert_eq(mkdir(in_root("a/.tmp-00000000000000d1"), 0700), 0);
	/* Whoever only reads removes nothing. */
	cr_assert_eq(ds_store_open(root, NULL, false, &store, NULL), 0);
	cr_assert_eq(ds_store_get(store, "a/k", &buf, NULL), 0);
	cr_assert_eq(ds_store_perform(store, &list), 0);
	cr_assert_eq(access(in_root("a/.tmp-0123456789abcdef"), F_OK), 0);
	/* Nor does a clock that is wrong make what is young old. */
	skew_s = 10 * DAY_S;
	cr_assert_eq(ds_store_put(store, "a/l", "v", 1, NULL), 0);
	cr_assert_eq(access(in_root("a/.tmp-0123456789abcdef"), F_OK), -1);
	cr_assert_eq(access(in_root("a/.tmp-00000000000000d1"), F_OK), 0);
	for (size_t i = 0; i < DS_ARRAY_SIZE(stay); i++)
		cr_assert_eq(access(in_root(stay[i]), F_OK), 0, "%s", stay[i]);
	cr_assert_eq(access(in_root("b/.tmp-0123456789abcdef"), F_OK), 0);
	cr_assert_eq(ds_store_now(store, &now, NULL), 0);
	cr_assert_eq(access(in_root(".tmp-0123456789abcdef"), F_OK), -1);
	/* Once for each directory: it costs a look at all its names. */
	leave("a/.tmp-0123456789abcdef", DAY_S + 600);
	cr_assert_eq(ds_store_put(store, "a/m", "v", 1, NULL), 0);
	cr_assert_eq(access(in_root("a/.tmp-0123456789abcdef"), F_OK), 0);
	skew_s = 0;
	ds_store_listing_release(&listing);
	ds_buf_release(&buf);
	close_and_remove(store);
}

static int count_entries(const char *path)
{
	char command[300];
	FILE *out;
	int n = -1;

	snprintf(command, sizeof(command), "find %s -type f | wc -l", path);
	out = popen(command, "r");
	cr_assert_eq(fscanf(out, "%d", &n), 1);
	pclose(out);
	return n;
}

/* A limit on the file's size fails as a full disk does: in the middle of a write. */
Test(store_dir, F01_a_write_that_fails_leaves_nothing_and_names_the_path)
{
	struct ds_store *store = open_new();
	struct rlimit limit = {4096, RLIM_INFINITY};
	struct ds_diag diag = {0};
	char *body = calloc(1, 10000);

	signal(SIGXFSZ, SIG_IGN);
	cr_assert_eq(ds_store_put(store, "dir/small", body, 4096, NULL), 0);
	cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
	cr_assert_eq(ds_store_put_if_absent(store, "dir/big", body, 10000, &diag), -EFBIG);
	cr_assert(strstr(diag.object, "dir/big"));
	cr_assert_eq(count_entries(root), 1);
	limit.rlim_cur = RLIM_INFINITY;
	cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
	cr_assert_eq(ds_store_put_if_absent(store, "dir/big", body, 10000, NULL), 0);
	free(body);
	close_and_remove(store);
}

static uint8_t *random_pages(size_t len)
{
	struct ds_prng prng = {3};
	uint8_t *pages = aligned_alloc(4096, len);

	cr_assert_not_null(pages);
	for (size_t i = 0; i < len; i += 8) {
		uint64_t word = ds_prng_next(&prng);

		memcpy(pages + i, &word, 8);
	}
	return pages;
}

Test(store_dir, a_long_body_is_whole_whatever_its_length_and_place)
{
	static const size_t lens[] = {DS_MIB(1) - 1,	DS_MIB(1),	 DS_MIB(1) + 1,
				      DS_MIB(3) + 4095, DS_MIB(5) + 512, DS_MIB(8)};
	struct ds_store *store = open_new();
	uint8_t *pages = random_pages(DS_MIB(9));

	for (size_t i = 0; i < DS_ARRAY_SIZE(lens) * 3; i++) {
		const uint8_t *body = pages + (size_t[]){0, 1, 512}[i % 3];
		struct ds_buf buf = DS_BUF_INIT(DS_MIB(9));
		char key[32];

		snprintf(key, sizeof(key), "d/%zu", i);
		cr_assert_eq(ds_store_put_if_absent(store, key, body, lens[i / 3], NULL), 0);
		cr_assert_eq(ds_store_get(store, key, &buf, NULL), 0);
		cr_assert_eq(buf.len_bytes, lens[i / 3]);
		cr_assert(memcmp(buf.data, body, lens[i / 3]) == 0, "length %zu", lens[i / 3]);
		ds_buf_release(&buf);
	}
	free(pages);
	close_and_remove(store);
}

/* Where the directory can do it (open(2), O_DIRECT): the two that are known not to keep such pages. */
Test(store_dir, a_long_aligned_body_does_not_stay_in_the_page_cache)
{
	struct ds_store *store = open_new();
	uint8_t *pages = random_pages(DS_MIB(8));
	unsigned char resident[DS_MIB(8) / 4096];
	size_t resident_n = 0;
	struct statfs fs;
	void *map;
	int fd;

	cr_assert_eq(statfs(root, &fs), 0);
	if ((fs.f_type != EXT4_SUPER_MAGIC && fs.f_type != XFS_SUPER_MAGIC) ||
	    sysconf(_SC_PAGESIZE) != 4096) {
		fprintf(stderr, "skipped: /tmp is neither ext4 nor xfs, or its pages are larger\n");
	} else {
		cr_assert_eq(ds_store_put(store, "k", pages, DS_MIB(8), NULL), 0);
		fd = open(in_root("k"), O_RDONLY);
		map = mmap(NULL, DS_MIB(8), PROT_READ, MAP_SHARED, fd, 0);
		cr_assert_neq(map, MAP_FAILED);
		cr_assert_eq(mincore(map, DS_MIB(8), resident), 0);
		for (size_t i = 0; i < sizeof(resident); i++)
			resident_n += resident[i] & 1;
		cr_assert_eq(resident_n, 0);
		munmap(map, DS_MIB(8));
		close(fd);
	}
	free(pages);
	close_and_remove(store);
}

/* setrlimit(2): a write stops at the limit, and the next is EFBIG. */
Test(store_dir, F01_a_long_write_that_fails_half_way_leaves_nothing)
{
	static const rlim_t limits[] = {DS_MIB(1), DS_MIB(2) + 4096, DS_MIB(2) + 100};
	struct rlimit old, limit;
	struct ds_store *store = open_new();
	uint8_t *pages = random_pages(DS_MIB(4));

	signal(SIGXFSZ, SIG_IGN);
	cr_assert_eq(getrlimit(RLIMIT_FSIZE, &old), 0);
	for (size_t i = 0; i < DS_ARRAY_SIZE(limits); i++) {
		struct ds_store_listing listing = {0};
		struct ds_store_req list = {.op = DS_STORE_LIST, .key = "", .listing = &listing};

		limit = old;
		limit.rlim_cur = limits[i];
		cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
		cr_assert_eq(ds_store_put_if_absent(store, "d/k", pages, DS_MIB(4), NULL), -EFBIG);
		cr_assert_eq(setrlimit(RLIMIT_FSIZE, &old), 0);
		cr_assert_eq(ds_store_perform(store, &list), 0);
		cr_assert_eq(listing.objects_n, 0);
		ds_store_listing_release(&listing);
	}
	cr_assert_eq(ds_store_put_if_absent(store, "d/k", pages, DS_MIB(4), NULL), 0);
	free(pages);
	close_and_remove(store);
}

Test(store_dir, J02_running_out_of_descriptors_is_an_error_and_passes)
{
	struct rlimit old, limit;
	struct ds_store *store = open_new();
	struct ds_buf buf = DS_BUF_INIT(10);
	unsigned failed_n = 0;
	int fd;

	cr_assert_eq(ds_store_put(store, "a/b/k", "v", 1, NULL), 0);
	fd = dup(0);
	close(fd);
	getrlimit(RLIMIT_NOFILE, &old);
	for (rlim_t n = (rlim_t)fd;; n++) {
		int r;

		limit = old;
		limit.rlim_cur = n;
		cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
		r = ds_store_get(store, "a/b/k", &buf, NULL);
		cr_assert_eq(setrlimit(RLIMIT_NOFILE, &old), 0);
		if (r == 0)
			break;
		cr_assert_eq(r, -EMFILE);
		failed_n++;
	}
	cr_assert_gt(failed_n, 1);
	cr_assert_str_eq(ds_buf_str(&buf), "v");
	ds_buf_release(&buf);
	close_and_remove(store);
}

static int whole_life(void)
{
	struct ds_store_listing listing = {0};
	struct ds_store_req list = {.op = DS_STORE_LIST, .key = "d", .listing = &listing};
	struct ds_buf buf = DS_BUF_INIT(1000);
	struct ds_store *store = NULL;
	int r = ds_store_open(root, NULL, true, &store, NULL);

	for (int i = 0; i < 8 && r == 0; i++) {
		char key[32];

		snprintf(key, sizeof(key), "d%d/e/f%d", i / 2, i);
		r = ds_store_put(store, key, "value", 5, NULL);
	}
	if (r == 0)
		r = ds_store_get(store, "d1/e/f3", &buf, NULL);
	if (r == 0)
		r = ds_store_perform(store, &list);
	cr_assert(r == 0 ? listing.objects_n == 8 : listing.objects_n == 0);
	ds_store_listing_release(&listing);
	ds_buf_release(&buf);
	ds_store_unref(store);
	return r;
}

Test(store_dir, J01_every_failing_allocation_is_an_error_or_does_not_matter)
{
	uint64_t delivered_n = 0;
	unsigned errors_n = 0;

	ds_store_unref(open_new());
	for (int64_t n = 0;; n++) {
		uint64_t failed_n;
		int r;

		ds_mem_fail_after(n, 0);
		r = whole_life();
		failed_n = ds_mem_fail_after(-1, 0);
		delivered_n += failed_n;
		if (failed_n == 0) {
			cr_assert_eq(r, 0);
			break;
		}
		errors_n += r < 0;
		cr_assert(r == 0 || r == -ENOMEM, "allocation %d: %s", (int)n, ds_strerror(r));
	}
	cr_assert_gt(delivered_n, 20);
	cr_assert_gt(errors_n, 10);
	cr_assert_eq(ds_rmtree_at(AT_FDCWD, root), 0);
}

/* Puts objects for ever and tells the pipe of each that was acknowledged. */
static void put_until_killed(unsigned cycle, int ack_fd)
{
	struct ds_store *store = NULL;
	static char body[20000];

	if (ds_store_open(root, NULL, false, &store, NULL) < 0)
		_exit(1);
	for (unsigned i = 0;; i++) {
		size_t len = 100 + i * 977 % (sizeof(body) - 100);
		char key[64];

		snprintf(key, sizeof(key), "c%u/d%u/k%u", cycle, i % 7, i);
		memset(body, 'a' + (int)(i % 26), len);
		if ((i % 2 ? ds_store_put(store, key, body, len, NULL)
			   : ds_store_put_if_absent(store, key, body, len, NULL)) < 0)
			_exit(2);
		if (write(ack_fd, &i, sizeof(i)) != sizeof(i))
			_exit(3);
	}
}

static void expect_whole(struct ds_store *store, unsigned cycle, unsigned i, bool must_be_there)
{
	struct ds_buf buf = DS_BUF_INIT(20000);
	char key[64];
	int r;

	snprintf(key, sizeof(key), "c%u/d%u/k%u", cycle, i % 7, i);
	r = ds_store_get(store, key, &buf, NULL);
	cr_assert(r == 0 || (r == -DS_E_ABSENT && !must_be_there), "%s: %s", key, ds_strerror(r));
	if (r == 0)
		cr_assert_eq(buf.len_bytes, 100 + i * 977 % 19900, "%s is not whole", key);
	for (size_t at = 0; at < buf.len_bytes; at++)
		cr_assert_eq(buf.data[at], 'a' + i % 26);
	ds_buf_release(&buf);
}

Test(store_dir, E02_a_killed_writer_leaves_whole_objects_or_none, .timeout = 60)
{
	struct ds_store *store = open_new();
	struct ds_prng prng = {11};
	unsigned acked_n = 0;

	for (unsigned cycle = 0; cycle < 25; cycle++) {
		struct ds_store_listing listing = {0};
		struct ds_store_req list = {.op = DS_STORE_LIST, .key = "", .listing = &listing};
		unsigned i, next = 0;
		int acks[2], status;
		pid_t child;

		cr_assert_eq(pipe(acks), 0);
		child = fork();
		if (child == 0) {
			close(acks[0]);
			put_until_killed(cycle, acks[1]);
		}
		close(acks[1]);
		cr_assert_eq(read(acks[0], &i, sizeof(i)), sizeof(i));
		/* Some of more than one: how many come meanwhile is for the disk. */
		for (unsigned more = cycle % 3; more; more--) {
			expect_whole(store, cycle, i, true);
			acked_n++;
			cr_assert_eq(read(acks[0], &i, sizeof(i)), sizeof(i));
		}
		usleep((useconds_t)ds_prng_below(&prng, 20000));
		kill(child, SIGKILL);
		cr_assert_eq(waitpid(child, &status, 0), child);
		cr_assert(WIFSIGNALED(status));
		do {
			expect_whole(store, cycle, i, true);
			acked_n++;
			next = i + 1;
		} while (read(acks[0], &i, sizeof(i)) == sizeof(i));
		expect_whole(store, cycle, next, false);
		close(acks[0]);
		/* Nothing half-made is listed. */
		cr_assert_eq(ds_store_perform(store, &list), 0);
		cr_assert_leq(listing.objects_n, acked_n + cycle + 1);
		ds_store_listing_release(&listing);
	}
	cr_assert_gt(acked_n, 25);
	fprintf(stderr, "killed 25 writers, %u acknowledged objects are whole\n", acked_n);
	close_and_remove(store);
}
