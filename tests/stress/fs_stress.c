/*
 * A mount whose store stops and goes, with readers that are killed: parked requests, interrupts,
 * deadlines and the end, all at once. What is read is right or EIO; the mount ends within END_S of
 * SIGTERM whatever is parked. A third of the readers list directories, the same and others, of which
 * the mount makes the next part ahead. With kernel=passthrough the large file is now whole and read by the kernel itself, now gone from
 * the cache. Where no version fits the memory (a limit of RSS), with rings, what is here
 * is dropped from the page cache now and then, and has to be read past it.
 *
 * STEADY_N readers are not killed: each of them gets some answer within STALL_S, and one of all readers a right one. Where
 * none has for a second the store is let go and nobody is killed, so that a slow machine has its chance. At the end
 * the store is let go, too, and each steady reader gets what is right.
 *
 *	fs_stress MODE RINGS [SECONDS [SEED]]	as in kernel= and io_uring=
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
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cache/cache_survey.h"
#include "fs/fs.h"
#include "stress.h"
#include "util/mem.h"
#include "view_support.h"

#define READERS_N  12u
#define READ_BYTES 65536u
#define STEADY_N   4u
#define STALL_S	   10u
#define HUNGRY_NS  DS_NS_PER_S /* without a right read for so long the store is let go */
#define LEAST_N	   5u /* right reads in a second; some 270 came under TSan with a load of 25 */
#define LATE_S	   60u /* a slow machine may take so much longer for these, or for the last listing */
#define TIMEOUT_MS 150u
#define TURN_NS	   (DS_NS_PER_S / 10)
/* Of all requests, look-ups, opens and listings too, waits this part at least, so that other threads reply. */
#define PARKED_ONE_IN 10u
/* One stop of so many outlasts the deadline of a read, and of the one that the kernel makes of its failed read-ahead. */
#define LONG_EVERY_N 16u
#define LONG_MS	     (2 * TIMEOUT_MS + 50)
/* Of the cache. What was read is missed again; what the kernel is to read by itself has to fit, beside next to nothing. */
#define SMALL_BYTES  DS_MIB(3)
#define LARGE_BYTES  DS_MIB(12)
#define PRUNE_ONE_IN 16u
#define SKIP	     77

/* 8.5 s were seen of six such programs under TSan at once, on two cores with a load of 50. */
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define END_S 30u
#else
#define END_S 5u
#endif

/*
 * libfuse asserts on a channel's count before it takes the channel's lock (3.18.3, fuse_loop_mt.c,
 * fuse_chan_get). A node of .dsfs is forgotten after the reply that named it: the kernel sees to that, of which a reply by
 * a ring tells TSan nothing.
 */
__attribute__((visibility("default"))) const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void)
{
	return "race:fuse_chan_get\nrace:fs_control_forget\n";
}

/* What the readers of one place got, one after the other; those of a killed one count. */
struct place {
	_Atomic uint64_t reads_n, listings_n, eios_n; /* right and whole ones */
	_Atomic uint64_t answered_ns;		      /* the last answer of any kind, */
	_Atomic uint64_t right_ns;		      /* the last right read or listing */
};

struct shared {
	struct place places[READERS_N]; /* the first STEADY_N are not killed */
	_Atomic uint64_t right_ns;	/* the last right read of all */
	_Atomic uint64_t holds_n;	/* the store stopped */
	_Atomic uint64_t rests_n;	/* it went on because nobody had read */
	_Atomic uint64_t directs_n;	/* reads past the page cache that went well */
	_Atomic bool is_calm;		/* the store is not to stop */
	bool reads_directly;		/* there are to be some */
	bool passes;			/* the kernel is to read by itself, too */
};

static struct shared *shared;
static struct place *place; /* a reader's own */
static char mountpoint[] = "/tmp/dsfs-fs-stress-XXXXXX";
static pid_t daemon_pid;
static uint64_t kills_n;

struct daemon {
	struct view_bench bench;
	uint64_t seed;
	int ready_fd;
	_Atomic bool is_over;
	pthread_t troubler;
};

int __real_ds_image_direct_end(struct ds_image_direct *direct, int64_t n);
int __wrap_ds_image_direct_end(struct ds_image_direct *direct, int64_t n);
int __wrap_ds_image_direct_end(struct ds_image_direct *direct, int64_t n)
{
	int r = __real_ds_image_direct_end(direct, n);

	shared->directs_n += r == 0;
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

static bool has_limit(void)
{
	struct rlimit limit;

	return getrlimit(RLIMIT_RSS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY;
}

static void pause_ms(uint64_t ms)
{
	ds_sleep_ms(ms);
}

/* The stamp is another process's: it is looked at before the clock. */
static uint64_t since(const _Atomic uint64_t *stamp_ns)
{
	uint64_t stamp = *stamp_ns;

	return ds_mono_ns() - stamp;
}

static bool is_hungry(void)
{
	return since(&shared->right_ns) > HUNGRY_NS;
}

/* The kernel gets the large file when all of it is in the cache and nobody else has it open: one of four seconds is one reader's, who
 * reads it in order. The cache is emptied as it begins, and then not before it is over. */
static bool is_apart(uint64_t now_ns)
{
	return shared->passes && now_ns / DS_NS_PER_S % 4 == 0;
}

/* Lets the store stop and go on. */
static void *troubler_thread(void *ctx)
{
	struct daemon *daemon = ctx;
	struct ds_prng prng = {.state = daemon->seed};
	struct ds_prune_options prune = {0};
	struct ds_prune_result pruned;
	bool is_resting = false, is_long, apart = false, was_apart;
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	while (!daemon->is_over) {
		struct fault_store *store = daemon->bench.store;

		if (shared->is_calm || is_hungry()) {
			shared->rests_n += !shared->is_calm && !is_resting;
			is_resting = true;
			pause_ms(20);
			continue;
		}
		is_resting = false;
		pthread_mutex_lock(&store->mutex);
		store->hold = ds_prng_below(&prng, 3) > 0;
		store->fail = -DS_E_SERVER;
		store->fail_n = ds_prng_below(&prng, 4) ? 0 : 2;
		shared->holds_n += store->hold;
		pthread_mutex_unlock(&store->mutex);
		is_long = store->hold && shared->holds_n % LONG_EVERY_N == 0;
		pause_ms(is_long ? LONG_MS : 1 + ds_prng_below(&prng, 60));
		fault_store_release(store);
		pause_ms(ds_prng_below(&prng, 20));
		if (shared->reads_directly)
			nftw(support_path("c"), drop_pages, 8, FTW_PHYS);
		was_apart = apart;
		apart = is_apart(ds_mono_ns());
		if (shared->passes &&
		    (apart ? !was_apart : ds_prng_below(&prng, PRUNE_ONE_IN) == 0))
			STRESS_CHECK(ds_cache_prune(daemon->bench.cache, &prune, &pruned) == 0);
	}
	fault_store_release(daemon->bench.store);
	return NULL;
}

static void on_ready(void *ctx, const char *how)
{
	struct daemon *daemon = ctx;

	(void)how;
	shared->right_ns = ds_mono_ns();
	STRESS_CHECK(pthread_create(&daemon->troubler, NULL, troubler_thread, daemon) == 0);
	STRESS_CHECK(write(daemon->ready_fd, "", 1) == 1);
}

static int run_daemon(uint64_t seed, enum ds_fs_mode mode, enum ds_fs_uring uring, int ready_fd)
{
	struct daemon daemon = {.seed = seed, .ready_fd = ready_fd};
	struct ds_fs_options options = {.mountpoint = mountpoint,
					.source = "stress, of commas",
					.timeout_ms = TIMEOUT_MS,
					.mode = mode,
					.uring = uring,
					.ready = on_ready,
					.ctx = &daemon};
	struct ds_diag diag = {0};
	char text[900];
	int r;

	/* Whatever the program ends of, the mount does. */
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	view_bench_init(&daemon.bench);
	STRESS_CHECK(view_bench_open(&daemon.bench, support_path("c"),
				     shared->passes ? LARGE_BYTES : SMALL_BYTES, 1, false) == 0);
	r = ds_fs_run(&options, daemon.bench.view, daemon.bench.record, daemon.bench.fetcher,
		      &diag);
	daemon.is_over = true;
	if (r < 0)
		fprintf(stderr, "ds_fs_run: %s\n", ds_diag_format(&diag, text, sizeof(text)));
	else
		pthread_join(daemon.troubler, NULL);
	view_bench_close(&daemon.bench);
	view_bench_release(&daemon.bench);
	support_clean();
	return r < 0;
}

/*
 * EIO is an answer. Anything else is one only when the mount has ended; then the reader waits to be
 * killed.
 */
static void check_errno(void)
{
	struct statfs fs;

	if (errno == EIO) {
		place->eios_n++;
		place->answered_ns = ds_mono_ns();
		return;
	}
	STRESS_CHECK(statfs(mountpoint, &fs) < 0 || fs.f_type != FUSE_SUPER_MAGIC);
	for (;;)
		pause();
}

static void read_one(unsigned i, uint64_t off, struct ds_prng *prng)
{
	char path[512], name[64];
	uint8_t data[READ_BYTES];
	size_t wanted = DS_MIN(sizeof(data), (size_t)(view_file_size(i) - off));
	struct stat st;
	ssize_t n;
	int fd;

	view_file_path(i, name, sizeof(name));
	snprintf(path, sizeof(path), "%s/%s", mountpoint, name);
	if (ds_prng_below(prng, 4) == 0 && stat(path, &st) < 0)
		check_errno();
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		check_errno();
		return;
	}
	/* The kernel's own copy would spare the daemon the work. */
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	n = pread(fd, data, sizeof(data), (off_t)off);
	if (n < 0)
		check_errno();
	/* It ends before a part that failed. */
	STRESS_CHECK(n < 0 || ((size_t)n <= wanted && (n > 0 || !wanted)));
	STRESS_CHECK(n <= 0 || view_file_is_right(i, off, data, (size_t)n));
	if (n >= 0)
		place->answered_ns = ds_mono_ns();
	/* The end of a file is known without the mount's bytes. */
	if (wanted && n == (ssize_t)wanted) {
		place->reads_n++;
		place->right_ns = shared->right_ns = ds_mono_ns();
	}
	close(fd);
}

/* "links", or one of the small ones: each of its names once, or EIO. */
static void list_one(struct ds_prng *prng)
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
		check_errno();
		return;
	}
	/* The kernel keeps listings too. */
	posix_fadvise(dirfd(dir), 0, 0, POSIX_FADV_DONTNEED);
	memset(seen, 0, sizeof(seen));
	while (errno = 0, (entry = readdir(dir))) {
		unsigned i;

		place->answered_ns = ds_mono_ns();
		if (entry->d_name[0] == '.')
			continue;
		STRESS_CHECK(sscanf(entry->d_name, is_large ? "%5u-" : "f%3u", &i) == 1);
		STRESS_CHECK(is_large ? i < VIEW_LINKS_N
				      : i < VIEW_FILES_N && i % VIEW_DIRS_N == which);
		STRESS_CHECK(seen[i]++ == 0);
		seen_n++;
	}
	if (errno) {
		check_errno();
	} else {
		STRESS_CHECK(seen_n == (is_large ? VIEW_LINKS_N : VIEW_FILES_N / VIEW_DIRS_N));
		place->listings_n++;
		place->right_ns = ds_mono_ns();
	}
	closedir(dir);
}

__attribute__((noreturn)) static void run_reader(unsigned which, uint64_t seed)
{
	struct ds_prng prng = {.state = seed};
	bool lists = which < STEADY_N ? which == 0 : ds_prng_below(&prng, 3) == 0;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	place = &shared->places[which];
	while (lists)
		list_one(&prng);
	for (uint64_t in_order_off = 0;;) {
		bool apart = is_apart(ds_mono_ns());
		unsigned i = (unsigned)ds_prng_below(&prng, VIEW_FILES_N);
		uint64_t off;

		if (apart ? which == STEADY_N - 1 : ds_prng_below(&prng, 3) == 0)
			i = VIEW_FILES_N;
		off = ds_prng_below(&prng, view_file_size(i) + 1u);
		if (apart && i == VIEW_FILES_N) {
			off = in_order_off;
			in_order_off = (off + READ_BYTES) % view_file_size(i);
		}
		read_one(i, off, &prng);
	}
}

static pid_t start_reader(unsigned which, uint64_t seed)
{
	pid_t pid;

	shared->places[which].answered_ns = ds_mono_ns();
	pid = fork();
	STRESS_CHECK(pid >= 0);
	if (pid == 0)
		run_reader(which, seed);
	return pid;
}

/* How long a wait took, of which a turn counts TURN_NS at most: a machine that stands still, as a virtual one that is
 * moved does, lets nobody end. */
struct wait {
	uint64_t counted_ns, longest_ns; /* the longest turn, whole */
};

static bool is_gone(pid_t pid, unsigned limit_s, int *ret_status, struct wait *ret_wait)
{
	uint64_t last_ns = ds_mono_ns();
	struct wait wait = {0};
	pid_t r;

	while ((r = waitpid(pid, ret_status, WNOHANG)) == 0 &&
	       wait.counted_ns < limit_s * (uint64_t)DS_NS_PER_S) {
		uint64_t now_ns, turn_ns;

		pause_ms(1);
		now_ns = ds_mono_ns();
		turn_ns = now_ns - last_ns;
		last_ns = now_ns;
		wait.counted_ns += DS_MIN(turn_ns, (uint64_t)TURN_NS);
		wait.longest_ns = DS_MAX(wait.longest_ns, turn_ns);
	}
	STRESS_CHECK(r == 0 || r == pid);
	*ret_wait = wait;
	return r == pid;
}

/* Of a process, where the kernel tells: what each of its threads waits for. */
static void print_waits(pid_t pid)
{
	static const char *const files[] = {"comm", "wchan", "stack"};
	char path[64], text[2048];
	struct dirent *entry;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	dir = opendir(path);
	while (dir && (entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		for (size_t i = 0; i < DS_ARRAY_SIZE(files); i++) {
			FILE *file;
			size_t n;

			snprintf(path, sizeof(path), "/proc/%d/task/%.16s/%s", (int)pid,
				 entry->d_name, files[i]);
			file = fopen(path, "re");
			n = file ? fread(text, 1, sizeof(text) - 1, file) : 0;
			text[n] = 0;
			fprintf(stderr, "%s%s", text, n && text[n - 1] == '\n' ? "" : "\n");
			if (file)
				fclose(file);
		}
	}
	if (dir)
		closedir(dir);
}

struct counts {
	uint64_t reads_n, listings_n, eios_n;
};

static struct counts count(void)
{
	struct counts counts = {0};

	for (unsigned i = 0; i < READERS_N; i++) {
		counts.reads_n += shared->places[i].reads_n;
		counts.listings_n += shared->places[i].listings_n;
		counts.eios_n += shared->places[i].eios_n;
	}
	return counts;
}

static void print_counts(FILE *file)
{
	struct counts counts = count();

	fprintf(file,
		"%llu right reads, %llu listings, %llu EIOs; %llu readers killed; "
		"the store stopped %llu times, and rested %llu times\n",
		(unsigned long long)counts.reads_n, (unsigned long long)counts.listings_n,
		(unsigned long long)counts.eios_n, (unsigned long long)kills_n,
		(unsigned long long)shared->holds_n, (unsigned long long)shared->rests_n);
}

/* The readers go with this program; it leaves no mount, unless it cannot be ended. */
__attribute__((noreturn)) static void fail(const char *what)
{
	struct wait wait;
	int status;

	fprintf(stderr, "%s: ", what);
	print_counts(stderr);
	/* ECHILD: it is what has ended. */
	if (kill(daemon_pid, SIGTERM) == 0 && waitpid(daemon_pid, &status, WNOHANG) == 0 &&
	    !is_gone(daemon_pid, 5, &status, &wait)) {
		fprintf(stderr, "and SIGTERM does not end the mount\n");
		kill(daemon_pid, SIGKILL);
	}
	umount2(mountpoint, MNT_DETACH);
	rmdir(mountpoint);
	exit(1);
}

/* Looks again after a second, should it be the machine that has stood still. */
static bool is_stalled(const _Atomic uint64_t *stamp_ns)
{
	if (since(stamp_ns) <= STALL_S * (uint64_t)DS_NS_PER_S)
		return false;
	pause_ms(1000);
	return since(stamp_ns) > STALL_S * (uint64_t)DS_NS_PER_S;
}

static void check_progress(void)
{
	if (waitpid(-1, NULL, WNOHANG) != 0)
		fail("a reader or the mount has ended by itself");
	if (is_stalled(&shared->right_ns))
		fail("a stall: no right read for 10 s");
	for (unsigned i = 0; i < STEADY_N; i++)
		if (is_stalled(&shared->places[i].answered_ns))
			fail(i ? "a stall: no answer to a reader for 10 s"
			       : "a stall: no answer to who lists for 10 s");
}

/* A reader is killed at any moment, and is gone soon. */
static void kill_reader(pid_t pid)
{
	struct wait wait;
	int status;

	STRESS_CHECK(kill(pid, SIGKILL) == 0);
	if (!is_gone(pid, 20, &status, &wait)) {
		fprintf(stderr, "the longest turn took %llu ms; the reader, then the mount:\n",
			(unsigned long long)(wait.longest_ns / DS_NS_PER_MS));
		print_waits(pid);
		print_waits(daemon_pid);
		fail("a killed reader is still there after 20 s");
	}
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
		fail("a reader has ended by itself");
}

/* The store is let go: who is not killed gets what is right. Then it stops again. */
static void check_calm(void)
{
	uint64_t started_ns = ds_mono_ns(), holds_n;

	shared->is_calm = true;
	for (unsigned i = 0; i < STEADY_N; i++) {
		while (shared->places[i].right_ns <= started_ns) {
			check_progress();
			if (ds_mono_ns() - started_ns > LATE_S * (uint64_t)DS_NS_PER_S)
				fail("a reader gets nothing right of a store that answers");
			pause_ms(1);
		}
	}
	holds_n = shared->holds_n;
	shared->is_calm = false;
	while (shared->holds_n == holds_n) {
		check_progress();
		pause_ms(1);
	}
}

struct stats {
	unsigned long long requests_n, opens_n, parked_n, ahead_n, passed_n;
};

static struct stats read_stats(void)
{
	struct stats stats = {0};
	char path[512], line[128];
	FILE *file;

	snprintf(path, sizeof(path), "%s/.dsfs/stats", mountpoint);
	file = fopen(path, "re");
	STRESS_CHECK(file);
	while (fgets(line, sizeof(line), file)) {
		sscanf(line, "requests %llu", &stats.requests_n);
		sscanf(line, "opens %llu", &stats.opens_n);
		sscanf(line, "parked %llu", &stats.parked_n);
		sscanf(line, "listings_ahead %llu", &stats.ahead_n);
		sscanf(line, "passthrough_opens %llu", &stats.passed_n);
	}
	fclose(file);
	return stats;
}

/* A slow machine is waited for. */
static bool is_enough(const struct stress *stress)
{
	struct counts counts = count();

	return counts.reads_n >= LEAST_N * stress->length_ns / DS_NS_PER_S && counts.eios_n > 0 &&
	       kills_n > 0 && (!shared->reads_directly || shared->directs_n > 0) &&
	       (!shared->passes || read_stats().passed_n > 0);
}

static void trouble_readers(const struct stress *stress, struct ds_prng *prng, pid_t *readers)
{
	uint64_t now_ns;

	while ((now_ns = ds_mono_ns()) < stress->until_ns ||
	       (!is_enough(stress) && now_ns < stress->until_ns + LATE_S * (uint64_t)DS_NS_PER_S)) {
		unsigned which = STEADY_N + (unsigned)ds_prng_below(prng, READERS_N - STEADY_N);

		pause_ms(ds_prng_below(prng, 30));
		check_progress();
		if (is_hungry())
			continue;
		kill_reader(readers[which]);
		readers[which] = start_reader(which, ds_prng_next(prng));
		kills_n++;
	}
	if (!is_enough(stress))
		fail("too few right reads, or none past the page cache or by the kernel itself, or "
		     "no EIO");
}

int main(int argc, char *argv[])
{
	const char *missing = NULL;
	enum ds_fs_mode mode;
	enum ds_fs_uring uring;
	struct stress stress;
	struct ds_prng prng;
	pid_t readers[READERS_N];
	struct stats stats;
	struct wait end;
	int fds[2], status;
	char byte;

	if (argc < 3 || ds_fs_mode_parse(argv[1], &mode) < 0 ||
	    ds_fs_uring_parse(argv[2], &uring) < 0) {
		fprintf(stderr, "usage: fs_stress MODE RINGS [SECONDS [SEED]]\n");
		return 2;
	}
	stress = stress_begin(argc - 2, argv + 2, 8);
	prng.state = stress.seed;
	if (access("/dev/fuse", R_OK | W_OK) < 0)
		missing = "/dev/fuse cannot be opened";
	if (!missing && mode == DS_FS_PASSTHROUGH)
		missing = ds_fs_no_passthrough(getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
	if (!missing && uring == DS_FS_URING_ON)
		missing = ds_fs_no_uring();
	if (missing) {
		fprintf(stderr, "%s\n", missing);
		return SKIP;
	}
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	STRESS_CHECK(shared != MAP_FAILED);
	shared->passes = mode == DS_FS_PASSTHROUGH;
	shared->reads_directly = uring == DS_FS_URING_ON && has_limit();
	STRESS_CHECK(mkdtemp(mountpoint) && pipe2(fds, O_CLOEXEC) == 0);
	daemon_pid = fork();
	STRESS_CHECK(daemon_pid >= 0);
	if (daemon_pid == 0) {
		close(fds[0]);
		exit(run_daemon(stress.seed, mode, uring, fds[1]));
	}
	close(fds[1]);
	if (read(fds[0], &byte, 1) != 1)
		fail("no mount");
	/* Not counted: on a busy machine the mount alone may take as long. */
	stress.until_ns = ds_mono_ns() + stress.length_ns;
	for (unsigned i = 0; i < READERS_N; i++)
		readers[i] = start_reader(i, ds_prng_next(&prng));
	trouble_readers(&stress, &prng, readers);
	check_calm();
	stats = read_stats();
	pause_ms(ds_prng_below(&prng, 30));
	kill(daemon_pid, SIGTERM);
	if (!is_gone(daemon_pid, 60, &status, &end))
		fail("the mount does not end");
	for (unsigned i = 0; i < READERS_N; i++)
		kill_reader(readers[i]);
	umount2(mountpoint, MNT_DETACH);
	rmdir(mountpoint);
	print_counts(stdout);
	printf("%llu of %llu requests and opens were parked; %llu parts of listings were made "
	       "ahead; "
	       "%llu reads past the page cache; %llu opens read by the kernel itself; the end took "
	       "%.2f s\n",
	       stats.parked_n, stats.requests_n + stats.opens_n, stats.ahead_n,
	       (unsigned long long)shared->directs_n, stats.passed_n, (double)end.counted_ns / 1e9);
	STRESS_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	STRESS_CHECK(kills_n > 0 && stats.ahead_n > 0 &&
		     stats.parked_n * PARKED_ONE_IN >= stats.requests_n + stats.opens_n &&
		     end.counted_ns < END_S * (uint64_t)DS_NS_PER_S);
	return 0;
}
