/*
 * A mount whose store stops and goes, with readers that are killed: parked requests, interrupts,
 * deadlines and the end, all at once. What is read is right or EIO; the mount ends within 5 s of
 * SIGTERM whatever is parked. A third of the readers list directories, the same and others, of which
 * the mount makes the next part ahead. Where no version fits the memory (a limit of RSS), and rings can be had, what is here
 * is dropped from the page cache now and then, and has to be read past it.
 *
 *	fs_stress [SECONDS [SEED [MODE]]]	MODE as in kernel=; by the seed without one
 *
 * The daemon is a child of this program; readers are children too, so that they can be killed.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <linux/magic.h>
#include <signal.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fs/fs.h"
#include "stress.h"
#include "util/mem.h"
#include "view_support.h"

#define READERS_N 12u
#define SKIP	  77

/*
 * libfuse asserts on a channel's count before it takes the channel's lock (3.18.3, fuse_loop_mt.c,
 * fuse_chan_get).
 */
__attribute__((visibility("default"))) const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void)
{
	return "race:fuse_chan_get\n";
}

struct daemon {
	struct view_bench bench;
	uint64_t seed;
	int ready_fd;
	_Atomic bool is_over;
	pthread_t troubler;
};

static _Atomic uint64_t directs_n; /* reads past the page cache that went well */

int __real_ds_image_direct_end(struct ds_image_direct *direct, int64_t n);
int __wrap_ds_image_direct_end(struct ds_image_direct *direct, int64_t n);
int __wrap_ds_image_direct_end(struct ds_image_direct *direct, int64_t n)
{
	int r = __real_ds_image_direct_end(direct, n);

	directs_n += r == 0;
	return r;
}

/* Of an image in the cache; it may go meanwhile. */
static int drop_pages(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	int fd;

	(void)st;
	if (type == FTW_F && strcmp(path + ftw->base, "data") == 0) {
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd >= 0) {
			/* Only what is clean can be dropped. */
			fdatasync(fd);
			posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
			close(fd);
		}
	}
	return 0;
}

static bool reads_directly(void)
{
	struct rlimit limit;

	return getrlimit(RLIMIT_RSS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
	       !ds_fs_no_uring();
}

static void pause_ms(uint64_t ms)
{
	ds_sleep_ms(ms);
}

/* Lets the store stop and go on. */
static void *troubler_thread(void *ctx)
{
	struct daemon *daemon = ctx;
	struct ds_prng prng = {.state = daemon->seed};
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	while (!daemon->is_over) {
		struct fault_store *store = daemon->bench.store;

		pthread_mutex_lock(&store->mutex);
		store->hold = ds_prng_below(&prng, 3) > 0;
		store->fail = -DS_E_SERVER;
		store->fail_n = ds_prng_below(&prng, 4) ? 0 : 2;
		pthread_mutex_unlock(&store->mutex);
		pause_ms(1 + ds_prng_below(&prng, 60));
		fault_store_release(store);
		pause_ms(ds_prng_below(&prng, 20));
		if (reads_directly())
			nftw(support_path("c"), drop_pages, 8, FTW_PHYS);
	}
	fault_store_release(daemon->bench.store);
	return NULL;
}

static void on_ready(void *ctx, const char *how)
{
	struct daemon *daemon = ctx;

	(void)how;
	STRESS_CHECK(pthread_create(&daemon->troubler, NULL, troubler_thread, daemon) == 0);
	STRESS_CHECK(write(daemon->ready_fd, "", 1) == 1);
}

static int run_daemon(const char *mountpoint, uint64_t seed, enum ds_fs_mode mode, int ready_fd)
{
	struct daemon daemon = {.seed = seed, .ready_fd = ready_fd};
	struct ds_fs_options options = {.mountpoint = mountpoint,
					.source = "stress, of commas",
					.timeout_ms = 150,
					.mode = mode,
					.ready = on_ready,
					.ctx = &daemon};
	struct ds_diag diag = {0};
	char text[900];
	int r;

	view_bench_init(&daemon.bench);
	/* Small, so that what was read is missed again. */
	STRESS_CHECK(view_bench_open(&daemon.bench, support_path("c"), DS_MIB(3), 1, false) == 0);
	r = ds_fs_run(&options, daemon.bench.view, daemon.bench.record, daemon.bench.fetcher,
		      &diag);
	daemon.is_over = true;
	if (r < 0)
		fprintf(stderr, "ds_fs_run: %s\n", ds_diag_format(&diag, text, sizeof(text)));
	else
		pthread_join(daemon.troubler, NULL);
	printf("%llu reads past the page cache\n", (unsigned long long)directs_n);
	STRESS_CHECK(!reads_directly() || directs_n > 0);
	view_bench_close(&daemon.bench);
	view_bench_release(&daemon.bench);
	support_clean();
	return r < 0;
}

/*
 * EIO is an answer. Anything else is one only when the mount has ended; then the reader waits to be
 * killed.
 */
static void check_errno(const char *mountpoint)
{
	struct statfs fs;

	if (errno == EIO)
		return;
	STRESS_CHECK(statfs(mountpoint, &fs) < 0 || fs.f_type != FUSE_SUPER_MAGIC);
	for (;;)
		pause();
}

static void read_one(const char *mountpoint, unsigned i, struct ds_prng *prng)
{
	char path[512], name[64];
	uint8_t data[65536];
	uint64_t off = ds_prng_below(prng, view_file_size(i) + 1u);
	struct stat st;
	ssize_t n;
	int fd;

	view_file_path(i, name, sizeof(name));
	snprintf(path, sizeof(path), "%s/%s", mountpoint, name);
	if (ds_prng_below(prng, 4) == 0 && stat(path, &st) < 0)
		check_errno(mountpoint);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		check_errno(mountpoint);
		return;
	}
	/* The kernel's own copy would spare the daemon the work. */
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	n = pread(fd, data, sizeof(data), (off_t)off);
	if (n < 0)
		check_errno(mountpoint);
	STRESS_CHECK(n <= 0 || view_file_is_right(i, off, data, (size_t)n));
	close(fd);
}

/* "links", or one of the small ones: each of its names once, or EIO. */
static void list_one(const char *mountpoint, struct ds_prng *prng)
{
	bool is_large = ds_prng_below(prng, 4) > 0;
	unsigned which = (unsigned)ds_prng_below(prng, VIEW_DIRS_N), seen_n = 0;
	static uint8_t seen[DS_MAX(VIEW_LINKS_N, VIEW_FILES_N)];
	struct dirent *entry;
	char path[512];
	DIR *dir;

	if (is_large)
		snprintf(path, sizeof(path), "%s/links", mountpoint);
	else
		snprintf(path, sizeof(path), "%s/d%02u", mountpoint, which);
	dir = opendir(path);
	if (!dir) {
		check_errno(mountpoint);
		return;
	}
	/* The kernel keeps listings too. */
	posix_fadvise(dirfd(dir), 0, 0, POSIX_FADV_DONTNEED);
	memset(seen, 0, sizeof(seen));
	while (errno = 0, (entry = readdir(dir))) {
		unsigned i;

		if (entry->d_name[0] == '.')
			continue;
		STRESS_CHECK(sscanf(entry->d_name, is_large ? "%5u-" : "f%3u", &i) == 1);
		STRESS_CHECK(is_large ? i < VIEW_LINKS_N
				      : i < VIEW_FILES_N && i % VIEW_DIRS_N == which);
		STRESS_CHECK(seen[i]++ == 0);
		seen_n++;
	}
	if (errno)
		check_errno(mountpoint);
	else
		STRESS_CHECK(seen_n == (is_large ? VIEW_LINKS_N : VIEW_FILES_N / VIEW_DIRS_N));
	closedir(dir);
}

__attribute__((noreturn)) static void run_reader(const char *mountpoint, uint64_t seed)
{
	struct ds_prng prng = {.state = seed};
	bool lists = ds_prng_below(&prng, 3) == 0;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (lists)
		list_one(mountpoint, &prng);
	for (;;)
		read_one(mountpoint,
			 (unsigned)(ds_prng_below(&prng, 3) ? ds_prng_below(&prng, VIEW_FILES_N)
							    : VIEW_FILES_N),
			 &prng);
}

static pid_t start_reader(const char *mountpoint, uint64_t seed)
{
	pid_t pid = fork();

	STRESS_CHECK(pid >= 0);
	if (pid == 0)
		run_reader(mountpoint, seed);
	return pid;
}

/* A reader is killed at any moment, and is gone soon. */
static void kill_reader(pid_t pid)
{
	uint64_t started = ds_mono_ns();
	int status;

	STRESS_CHECK(kill(pid, SIGKILL) == 0);
	STRESS_CHECK(waitpid(pid, &status, 0) == pid);
	STRESS_CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	STRESS_CHECK(ds_mono_ns() - started < 20 * (uint64_t)DS_NS_PER_S);
}

static uint64_t listings_ahead(const char *mountpoint)
{
	char path[512], line[128];
	unsigned long long n = 0;
	FILE *file;

	snprintf(path, sizeof(path), "%s/.dsfs/stats", mountpoint);
	file = fopen(path, "re");
	STRESS_CHECK(file);
	while (fgets(line, sizeof(line), file) && sscanf(line, "listings_ahead %llu", &n) != 1)
		;
	fclose(file);
	return n;
}

int main(int argc, char *argv[])
{
	struct stress stress = stress_begin(argc, argv, 8);
	struct ds_prng prng = {.state = stress.seed};
	pid_t readers[READERS_N], daemon;
	char mountpoint[] = "/tmp/dsfs-fs-stress-XXXXXX";
	uint64_t started, took_ns, kills_n = 0, ahead_n = 0;
	const char *no_passthrough = ds_fs_no_passthrough("/tmp");
	enum ds_fs_mode mode;
	int fds[2], status;
	char byte;

	if (access("/dev/fuse", R_OK | W_OK) < 0) {
		fprintf(stderr, "/dev/fuse cannot be opened\n");
		return SKIP;
	}
	mode = (enum ds_fs_mode)(stress.seed % (no_passthrough ? 3 : 4));
	STRESS_CHECK(argc < 4 || ds_fs_mode_parse(argv[3], &mode) == 0);
	if (mode == DS_FS_PASSTHROUGH && no_passthrough) {
		fprintf(stderr, "%s\n", no_passthrough);
		return SKIP;
	}
	STRESS_CHECK(mkdtemp(mountpoint) && pipe2(fds, O_CLOEXEC) == 0);
	daemon = fork();
	STRESS_CHECK(daemon >= 0);
	if (daemon == 0) {
		close(fds[0]);
		exit(run_daemon(mountpoint, stress.seed, mode, fds[1]));
	}
	close(fds[1]);
	if (read(fds[0], &byte, 1) == 1) {
		/* Not counted: on a busy machine the mount alone may take as long. */
		stress.until_ns = ds_mono_ns() + stress.length_ns;
		for (unsigned i = 0; i < READERS_N; i++)
			readers[i] = start_reader(mountpoint, ds_prng_next(&prng));
		while (ds_mono_ns() < stress.until_ns) {
			unsigned which = (unsigned)ds_prng_below(&prng, READERS_N);

			pause_ms(ds_prng_below(&prng, 30));
			kill_reader(readers[which]);
			readers[which] = start_reader(mountpoint, ds_prng_next(&prng));
			kills_n++;
		}
		ahead_n = listings_ahead(mountpoint);
		kill(daemon, SIGTERM);
	}
	started = ds_mono_ns();
	STRESS_CHECK(waitpid(daemon, &status, 0) == daemon);
	took_ns = ds_mono_ns() - started;
	for (unsigned i = 0; kills_n && i < READERS_N; i++)
		kill_reader(readers[i]);
	umount2(mountpoint, MNT_DETACH);
	rmdir(mountpoint);
	STRESS_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	printf("%llu readers killed; %llu parts of listings were made ahead; the end took %.2f s\n",
	       (unsigned long long)kills_n, (unsigned long long)ahead_n, (double)took_ns / 1e9);
	STRESS_CHECK(kills_n > 0 && ahead_n > 0 && took_ns < 5 * (uint64_t)DS_NS_PER_S);
	return 0;
}
