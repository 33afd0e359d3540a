/*
 * Our patches to libfuse's fuse-over-io_uring (subprojects/packagefiles), on a file system of this
 * program alone: nothing of dsfs is linked but its random numbers and its clock. The file system is in
 * fuse_uring_server.c, its readers are here.
 *
 *	fuse_uring_stress MODE [SECONDS [SEED]]
 *
 *	replies		random reads, every reply from another thread than the queue's; those threads
 *			come and go. No wrong byte, and no reader stands still for 10 s.
 *	interrupts	processes that wait in read and stat are killed, some just when their reply
 *			comes: each is gone in GONE_S, each request ends, and the ring is whole afterwards.
 *	depth		1,000 reads are parked, and stat and reads of another file answer.
 *	late		the loop ends while requests are parked, which are answered afterwards.
 *	reads		as replies, but most are the ring's own reads of a file, as a whole and short, by way
 *			of the page cache and past it; readers are interrupted and killed meanwhile, and
 *			the loop ends while reads are on their way.
 *	kept		as replies, with next to no memory allowed to idle entries; 400 large replies at a time leave
 *			no more than the first 32 KiB of each; nor do 400 that failed when they had been written.
 *	lost		the ring fails for good while the loop ends and reads are on their way: it ends all the
 *			same, nothing is replied, and the memory that the kernel may write to stays.
 *	refused		what the last ring needs is refused, one after the other: without rings all is read by way of
 *			/dev/fuse, and the reason is told; a core that is not ours is no reason, and no error. And of what
 *			the kernel refuses, a reply ends the loop with its error, until the connection has ended; entries do not.
 *
 * The server and the readers are children of the program, so that it outlives whatever they do.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fuse_uring_stress.h"

#ifndef DS_FUSE_URING
int main(void)
{
	fprintf(stderr, "skipped: libfuse is not the bundled one, or has no io_uring\n");
	return SKIP;
}
#else
#include "util/mem.h"

#define STALL_S	    10u
#define SLOW_MIN_NS UINT64_C(100000)
#define SLOW_MAX_NS UINT64_C(50000000)
/* What is promised, 2 s, is promised of a release; TSan makes all of it some ten times as slow, and CI's machines stand still for 2 s. */
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define GONE_S 20u
#else
#define GONE_S 2u
#endif
#define GONE_NS	   (GONE_S * UINT64_C(1000000000))
#define LARGE_N	   400u
#define KEEP_KIB   256u

struct shared *shared;
#define MOUNTPOINT "/tmp/dsfs-fuse-uring.XXXXXX"
char mountpoint[] = MOUNTPOINT;
int file_fd = -1, direct_fd = -1, pipe_fds[2] = {-1, -1};

static pid_t server_pid;
static int server_status; /* of one that ended before it was mounted */

static const char *path_of(const char *name)
{
	static _Thread_local char path[sizeof(mountpoint) + 32];

	snprintf(path, sizeof(path), "%s/%s", mountpoint, name);
	return path;
}

static pid_t fork_child(void)
{
	pid_t pid;

	fflush(NULL);
	pid = fork();
	STRESS_CHECK(pid >= 0);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		signal(SIGTERM, SIG_DFL);
		signal(SIGALRM, SIG_DFL);
	}
	return pid;
}

/* Whatever has gone wrong: nothing stays. */
static void remove_everything(void)
{
	if (server_pid > 0)
		kill(server_pid, SIGKILL);
	umount2(mountpoint, MNT_DETACH);
	rmdir(mountpoint);
}

/* SIGALRM: a call has hung. SIGTERM: the test has, or is to end. */
static void on_alarm(int number)
{
	static const char text[] = "fuse_uring_stress: FAILED: ended by a signal\n";

	(void)number;
	remove_everything();
	_exit(write(STDERR_FILENO, text, sizeof(text) - 1) < 0 ? 2 : 1);
}

static void fail(const char *what)
{
	fprintf(stderr, "fuse_uring_stress: FAILED: %s\n", what);
	remove_everything();
	exit(1);
}

static void wait_for(bool is_true(void), const char *what)
{
	uint64_t until_ns = ds_mono_ns() + UINT64_C(20000000000);

	while (!is_true()) {
		if (ds_mono_ns() > until_ns)
			fail(what);
		usleep(200);
	}
}

static bool is_mounted(void)
{
	return shared->is_mounted || waitpid(server_pid, &server_status, WNOHANG) == server_pid;
}

static uint64_t parked_wanted;

static bool is_parked(void)
{
	return shared->parked_n >= parked_wanted;
}

static void wait_parked(uint64_t number)
{
	parked_wanted = number;
	wait_for(is_parked, "what is to be parked is not");
}

static bool is_begun(void)
{
	return shared->begun_n >= parked_wanted;
}

static void wait_begun(uint64_t number)
{
	parked_wanted = number;
	wait_for(is_begun, "the ring does not read");
}

static void start_server(unsigned depth, uint64_t seed)
{
	STRESS_CHECK(mkdtemp(mountpoint));
	server_pid = fork_child();
	if (server_pid == 0) {
		exit(run_server(depth, seed));
	}
	wait_for(is_mounted, "the mount does not answer");
	if (shared->is_mounted)
		return;
	server_pid = 0;
	if (!WIFEXITED(server_status) || WEXITSTATUS(server_status) != SKIP)
		fail("the server has ended");
	rmdir(mountpoint);
	fprintf(stderr, "skipped: FUSE cannot be mounted here\n");
	exit(SKIP);
}

static void end_server(void)
{
	int status;

	/* Which an error of the loop would give way to. */
	if (shared->refused == REFUSED_NOTHING)
		kill(server_pid, SIGTERM);
	else
		STRESS_CHECK(umount2(mountpoint, MNT_DETACH) == 0);
	alarm(30);
	STRESS_CHECK(waitpid(server_pid, &status, 0) == server_pid);
	alarm(0);
	server_pid = 0;
	if (status != 0)
		fail("the server did not end well");
	remove_everything();
	printf("  %llu requests through the ring, %llu through /dev/fuse\n",
	       (unsigned long long)shared->ring_n, (unsigned long long)shared->other_n);
	if (shared->refused != REFUSED_NOTHING && shared->refused != REFUSED_CORE)
		return;
	/* The first may come before the ring is there. */
	if (shared->refused == REFUSED_CORE
		    ? shared->ring_n == 0
		    : shared->ring_n < 100 * (shared->other_n + 1) && shared->ring_n < PARKED_N)
		fail("the ring was not used");
}

static void read_and_check(int fd, struct ds_prng *prng, unsigned reader)
{
	char buf[READ_BYTES], wanted[READ_BYTES];
	size_t len = 8 * (1 + ds_prng_below(prng, READ_BYTES / 8));
	uint64_t off = ds_prng_below(prng, FILE_BYTES - READ_BYTES);
	ssize_t n;

	/* What lies in a file has its place; and some reads go beyond the end. */
	if (file_fd >= 0)
		off = ds_prng_below(prng, BACKING_BYTES + BACKING_BYTES / 16) / 8 * 8;
	n = pread(fd, buf, len, (off_t)off);
	if (n < 0 && shared->is_ending)
		_exit(0);
	if (n < 0 && (shared->is_over || (file_fd >= 0 && errno == EINTR)))
		return;
	fill(off, len, wanted);
	if (n < 0)
		shared->failed_n++;
	else if ((size_t)n != len || memcmp(buf, wanted, len) != 0)
		shared->wrong_n++;
	shared->reads_n[reader]++;
}

static void on_nothing(int number)
{
	(void)number;
}

/* Each millisecond a signal, which the kernel passes on as the interrupt of the request that waits. */
static void be_interrupted(void)
{
	struct itimerval every = {.it_interval.tv_usec = 1000, .it_value.tv_usec = 1000};

	signal(SIGALRM, on_nothing);
	setitimer(ITIMER_REAL, &every, NULL);
}

static void run_reader(unsigned reader, uint64_t seed)
{
	int data = open(path_of("data"), O_RDONLY), local = open(path_of("local"), O_RDONLY);
	int file = open(path_of("file"), O_RDONLY), direct = open(path_of("direct"), O_RDONLY);
	struct ds_prng prng = {.state = seed + reader};

	if (file_fd >= 0 && reader % 2)
		be_interrupted();
	while (!shared->is_over) {
		int others = ds_prng_below(&prng, 8) ? data : local;

		if (file_fd < 0 || ds_prng_below(&prng, 4) == 0)
			read_and_check(others, &prng, reader);
		else
			read_and_check(ds_prng_below(&prng, 2) ? file : direct, &prng, reader);
	}
	_exit(0);
}

static uint64_t gone_ns; /* how long the last one took */

static void kill_waiter(pid_t pid)
{
	uint64_t start_ns = ds_mono_ns(), until_ns = start_ns + GONE_NS;

	kill(pid, SIGKILL);
	while (waitpid(pid, NULL, WNOHANG) != pid) {
		if (ds_mono_ns() > until_ns)
			fail("a killed process is still there");
		usleep(200);
	}
	gone_ns = ds_mono_ns() - start_ns;
}

/* Reads from disk again, and readers that are killed within them. */
static void disturb(uint64_t *seed)
{
	struct ds_prng prng = {.state = ++*seed};
	pid_t pids[2];

	posix_fadvise(file_fd, 0, 0, POSIX_FADV_DONTNEED);
	for (unsigned i = 0; i < DS_ARRAY_SIZE(pids); i++) {
		pids[i] = fork_child();
		if (pids[i] == 0)
			run_reader(2 * i, *seed);
	}
	for (unsigned i = 0; i < DS_ARRAY_SIZE(pids); i++) {
		usleep((useconds_t)ds_prng_below(&prng, 10000));
		kill_waiter(pids[i]);
	}
}

#define READS_MIN  100u

/* Reads for that long, and as long as it takes for some; nobody stands still, nothing is wrong. */
static void read_for(double seconds, uint64_t seed)
{
	uint64_t before[READERS_N] = {0}, moved_ns[READERS_N], until_ns, all = 0, start_ns;
	pid_t pids[READERS_N];

	shared->is_over = false;
	start_ns = ds_mono_ns();
	until_ns = start_ns + (uint64_t)(seconds * 1e9);
	for (unsigned i = 0; i < READERS_N; i++) {
		shared->reads_n[i] = 0;
		moved_ns[i] = start_ns;
		pids[i] = fork_child();
		if (pids[i] == 0)
			run_reader(i, seed);
	}
	for (uint64_t sum = 0; ds_mono_ns() < until_ns || sum < READS_MIN;) {
		usleep(50000);
		if (file_fd >= 0)
			disturb(&seed);
		sum = 0;
		for (unsigned i = 0; i < READERS_N; i++) {
			uint64_t n = shared->reads_n[i], now_ns = ds_mono_ns();

			if (n != before[i])
				moved_ns[i] = now_ns;
			before[i] = n;
			sum += n;
			if (now_ns > moved_ns[i] + STALL_S * UINT64_C(1000000000))
				fail("a reader stands still");
		}
		if (shared->wrong_n)
			fail("wrong bytes");
		if (shared->failed_n)
			fail("a read failed");
	}
	shared->is_over = true;
	for (unsigned i = 0; i < READERS_N; i++) {
		waitpid(pids[i], NULL, 0);
		all += before[i];
	}
	printf("  %llu reads, %.0f a second, none wrong\n", (unsigned long long)all,
	       (double)all / seconds);
}

/* One system call that waits. */
static pid_t start_waiter(const char *name, bool is_read, uint64_t off)
{
	pid_t pid = fork_child();
	char buf[4096];
	struct stat st;

	if (pid != 0)
		return pid;
	if (is_read && pread(open(path_of(name), O_RDONLY), buf, sizeof(buf), (off_t)off) < 0)
		_exit(2);
	if (!is_read && stat(path_of(name), &st) < 0)
		_exit(errno == ENOENT ? 0 : 2);
	_exit(0);
}

/* Replies come when readers are killed, on however fast a machine: later if hardly one of so many was interrupted, earlier if nearly
 * all were. */
static void aim(uint64_t interrupted_n, uint64_t n)
{
	if (interrupted_n < n / 4)
		shared->slow_ns = DS_MIN(shared->slow_ns * 2, SLOW_MAX_NS);
	else if (interrupted_n > n - n / 4)
		shared->slow_ns = DS_MAX(shared->slow_ns / 2, SLOW_MIN_NS);
}

static void interrupts_mode(const struct stress *stress)
{
	struct ds_prng prng = {.state = stress->seed};
	uint64_t rounds = 0, killed = 0, races = 0;

	/* Few, so that entries that are lost are missed soon. */
	start_server(16, stress->seed);
	while (ds_mono_ns() < stress->until_ns) {
		uint64_t parked = shared->parked_n, interrupted = shared->interrupted_n;
		pid_t waiters[8];

		/* Two that surely wait. */
		waiters[0] = start_waiter("park", true, rounds);
		waiters[1] = start_waiter("p-look-up", false, 0);
		wait_parked(parked + 2);
		kill_waiter(waiters[0]);
		kill_waiter(waiters[1]);
		if (shared->interrupted_n < interrupted + 2)
			fail("an interrupt did not come");
		/* And some whose replies come about when they are killed. */
		for (unsigned i = 0; i < DS_ARRAY_SIZE(waiters); i++)
			waiters[i] = start_waiter(i % 2 ? "slow" : "s-look-up", i % 2,
						  ds_prng_below(&prng, 1000000) | 1);
		for (unsigned i = 0; i < DS_ARRAY_SIZE(waiters); i++) {
			usleep((useconds_t)ds_prng_below(&prng, 600));
			kill_waiter(waiters[i]);
		}
		killed += 2 + DS_ARRAY_SIZE(waiters);
		races += shared->interrupted_n - interrupted - 2;
		aim(shared->interrupted_n - interrupted - 2, DS_ARRAY_SIZE(waiters));
		rounds++;
	}
	printf("  %llu killed, %llu requests interrupted, %llu answered\n",
	       (unsigned long long)killed, (unsigned long long)shared->interrupted_n,
	       (unsigned long long)shared->replied_n);
	if (races < rounds / 4 || races < 5 || shared->replied_n < rounds)
		fail("the interrupts and replies did not race");
	read_for(1, stress->seed);
	end_server();
}

static void *park_thread(void *ctx)
{
	char buf[512];

	(void)ctx;
	return pread(open(path_of("park"), O_RDONLY), buf, sizeof(buf), 0) < 0 ? NULL : ctx;
}

static void depth_mode(const struct stress *stress)
{
	int local;
	pid_t pid;

	start_server(1024, stress->seed);
	local = open(path_of("local"), O_RDONLY);
	pid = fork_child();
	if (pid == 0) {
		pthread_t thread;

		/* All through one core's queue. */
		STRESS_CHECK(sched_setaffinity(0, sizeof(cpu_set_t), &(cpu_set_t){{1}}) == 0);
		for (unsigned i = 0; i < PARKED_N; i++)
			STRESS_CHECK(pthread_create(&thread, NULL, park_thread, NULL) == 0);
		pause();
	}
	wait_parked(PARKED_N);
	for (unsigned i = 0; i < 200; i++) {
		cpu_set_t one = {{1ul << i % 2}};
		uint64_t start_ns = ds_mono_ns();
		struct stat st;
		char buf[512];

		sched_setaffinity(0, sizeof(one), &one);
		alarm(10);
		if (stat(path_of("local"), &st) < 0 || pread(local, buf, sizeof(buf), 0) < 0)
			fail("stat or read beside 1,000 parked reads");
		alarm(0);
		if (ds_mono_ns() - start_ns > GONE_NS)
			fail("stat and read beside 1,000 parked reads took too long");
	}
	kill_waiter(pid);
	printf("  a process with %u reads was gone after %.2f s\n", PARKED_N,
	       (double)gone_ns / 1e9);
	close(local);
	end_server();
}

static void late_mode(const struct stress *stress)
{
	pid_t pids[PARKED_N / 20];

	start_server(256, stress->seed);
	for (unsigned i = 0; i < DS_ARRAY_SIZE(pids); i++)
		pids[i] = start_waiter("park", true, i);
	wait_parked(DS_ARRAY_SIZE(pids));
	read_for(0.5, stress->seed);
	/* Answers after the loop; then the unmount lets the readers go. */
	end_server();
	for (unsigned i = 0; i < DS_ARRAY_SIZE(pids); i++)
		kill_waiter(pids[i]);
}

/* What the ring is to read. */
static void make_backing(void)
{
	const char *dir = getenv("TMPDIR");
	char path[4096], buf[READ_BYTES];

	snprintf(path, sizeof(path), "%s/dsfs-fuse-uring.XXXXXX", dir ? dir : "/tmp");
	file_fd = mkstemp(path);
	STRESS_CHECK(file_fd >= 0);
	direct_fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	unlink(path);
	if (direct_fd < 0) {
		fprintf(stderr, "skipped: no O_DIRECT in the directory of %s\n", path);
		exit(SKIP);
	}
	for (uint64_t off = 0; off < BACKING_BYTES; off += sizeof(buf)) {
		size_t len = DS_MIN(sizeof(buf), BACKING_BYTES - off);

		fill(off, sizeof(buf), buf);
		STRESS_CHECK(pwrite(file_fd, buf, len, (off_t)off) == (ssize_t)len);
	}
	/* Only what is clean can be dropped. */
	STRESS_CHECK(fdatasync(file_fd) == 0);
}

static void reads_mode(const struct stress *stress)
{
	pid_t pids[READERS_N];

	make_backing();
	start_server(16, stress->seed);
	read_for((double)(stress->until_ns - ds_mono_ns()) / 1e9, stress->seed);
	/* Once more, for the loop to end meanwhile. Whoever fails then, leaves. */
	shared->is_over = false;
	for (unsigned i = 0; i < READERS_N; i++) {
		pids[i] = fork_child();
		if (pids[i] == 0)
			run_reader(i, stress->seed + READERS_N);
	}
	usleep(50000);
	shared->is_ending = true;
	end_server();
	for (unsigned i = 0; i < READERS_N; i++)
		kill_waiter(pids[i]);
	printf("  %llu reads by the ring, %llu whole, %llu short; %llu requests interrupted\n",
	       (unsigned long long)shared->begun_n, (unsigned long long)shared->whole_n,
	       (unsigned long long)shared->short_n, (unsigned long long)shared->interrupted_n);
	if (shared->whole_n + shared->short_n != shared->begun_n)
		fail("the end of a read by the ring was not told");
	if (shared->whole_n < 100 || shared->short_n == 0)
		fail("the ring hardly read anything");
	if (shared->interrupted_n == 0)
		fail("nobody was interrupted");
	if (shared->wrong_n || shared->failed_n)
		fail("a read was wrong, or failed");
}

static void *large_thread(void *ctx)
{
	uint64_t off = *(uint64_t *)ctx;
	char *buf = malloc(LARGE_BYTES), *wanted = malloc(LARGE_BYTES);
	bool is_right;

	STRESS_CHECK(buf && wanted);
	fill(off, LARGE_BYTES, wanted);
	is_right = pread(open(path_of("park"), O_RDONLY), buf, LARGE_BYTES, (off_t)off) ==
			   (ssize_t)LARGE_BYTES &&
		   memcmp(buf, wanted, LARGE_BYTES) == 0;
	free(buf);
	free(wanted);
	return is_right ? NULL : ctx;
}

static void *failing_thread(void *ctx)
{
	char *buf = malloc(LARGE_BYTES);
	bool is_right;

	STRESS_CHECK(buf);
	is_right = pread(open(path_of("park"), O_RDONLY), buf, LARGE_BYTES,
			 (off_t) * (uint64_t *)ctx) < 0 &&
		   errno == EIO;
	free(buf);
	return is_right ? NULL : ctx;
}

static void run_large(void)
{
	uint64_t offs[LARGE_N];
	pthread_t threads[LARGE_N];
	unsigned wrong_n = 0;
	void *wrong;

	for (unsigned i = 0; i < LARGE_N; i++) {
		offs[i] = (uint64_t)i * LARGE_BYTES;
		STRESS_CHECK(pthread_create(&threads[i], NULL,
					    shared->is_failing ? failing_thread : large_thread,
					    &offs[i]) == 0);
	}
	for (unsigned i = 0; i < LARGE_N; i++) {
		pthread_join(threads[i], &wrong);
		wrong_n += wrong != NULL;
	}
	_exit(wrong_n > 0);
}

static bool is_counted(void)
{
	return shared->resident_bytes > 0;
}

/* Another server. */
static void begin_again(void)
{
	strcpy(mountpoint, MOUNTPOINT);
	shared->ring_n = shared->other_n = shared->parked_n = 0;
	shared->is_mounted = false;
}

static void keep(const struct stress *stress, double seconds, bool is_failing)
{
	pid_t pid, other;
	int status;

	begin_again();
	shared->keep_kib = KEEP_KIB;
	shared->is_failing = is_failing;
	shared->is_let_go = shared->is_to_count = false;
	shared->resident_bytes = 0;
	start_server(2 * LARGE_N, stress->seed);
	pid = fork_child();
	if (pid == 0)
		run_large();
	wait_parked(LARGE_N);
	shared->is_let_go = true;
	other = start_waiter("data", true, 0);
	/* Under TSan the bytes alone take many seconds. */
	alarm(60);
	STRESS_CHECK(waitpid(pid, &status, 0) == pid && waitpid(other, NULL, 0) == other);
	alarm(0);
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
		fail(is_failing ? "a large read did not fail"
				: "a large read was wrong, or failed");
	read_for(seconds / 2, stress->seed);
	shared->is_to_count = true;
	read_for(seconds / 2, stress->seed + READERS_N);
	wait_for(is_counted, "nobody counts");
	printf("  %u large replies%s, %llu KiB of them are kept\n", LARGE_N,
	       is_failing ? " that failed" : "", (unsigned long long)shared->resident_bytes >> 10);
	/* And what the others have written since to as few entries as there are readers. */
	if (shared->resident_bytes >
	    LARGE_N * (32u << 10) + (KEEP_KIB << 10) + READERS_N * READ_BYTES)
		fail("idle entries keep their memory");
	end_server();
}

static void kept_mode(const struct stress *stress)
{
	double seconds = (double)(stress->until_ns - ds_mono_ns()) / 1e9;

	keep(stress, seconds / 2, false);
	keep(stress, seconds / 2, true);
}

static void lost_mode(const struct stress *stress)
{
	pid_t pids[8];

	STRESS_CHECK(pipe2(pipe_fds, O_CLOEXEC) == 0);
	start_server(16, stress->seed);
	for (unsigned i = 0; i < DS_ARRAY_SIZE(pids); i++)
		pids[i] = start_waiter("pipe", true, i);
	wait_begun(DS_ARRAY_SIZE(pids));
	read_for(0.5, stress->seed);
	shared->is_ring_broken = true;
	end_server();
	for (unsigned i = 0; i < DS_ARRAY_SIZE(pids); i++) {
		int status;

		STRESS_CHECK(waitpid(pids[i], &status, 0) == pids[i]);
		if (!WIFEXITED(status) || WEXITSTATUS(status) == 0)
			fail("what the kernel may still write to was replied");
	}
	if (shared->lost_n != DS_ARRAY_SIZE(pids))
		fail("the end of a read by the ring was not told");
}

static void refuse(const struct stress *stress, enum refused what, int error)
{
	begin_again();
	shared->refused = what;
	shared->refusals_n = shared->error_lines_n = 0;
	start_server(16, stress->seed);
	read_for(0.2, stress->seed);
	end_server();
	if (shared->refusals_n != 1)
		fail("nothing was refused");
	if (shared->start_error != error)
		fail("the reason is not what it was");
	if (what != REFUSED_CORE && shared->ring_n)
		fail("half of the rings are used");
	if (!shared->is_stdin_kept)
		fail("a descriptor of others was closed");
	if (shared->error_lines_n)
		fail("what it can do without is an error");
}

static bool is_ended(void)
{
	return waitpid(server_pid, &server_status, WNOHANG) == server_pid;
}

/* Whoever waits for that reply is let go. */
static void refuse_reply(const struct stress *stress, enum refused what, int result)
{
	pid_t waiter;

	begin_again();
	shared->refused = what;
	shared->refusals_n = 0;
	start_server(16, stress->seed);
	read_for(0.2, stress->seed);
	shared->is_next_refused = true;
	waiter = start_waiter("local", true, 0);
	wait_for(is_ended, "a refused reply does not end the loop");
	server_pid = 0;
	kill_waiter(waiter);
	remove_everything();
	if (!WIFEXITED(server_status) || WEXITSTATUS(server_status) != (result ? 1 : 0))
		fail("the server did not end in good order");
	if (shared->refusals_n != 1)
		fail("no reply was refused");
	if (shared->loop_result != result)
		fail("the loop did not end as it should");
}

static void refused_mode(const struct stress *stress)
{
	refuse(stress, REFUSED_RING, ENOMEM);
	refuse(stress, REFUSED_MEMORY, ENOMEM);
	refuse(stress, REFUSED_THREAD, EAGAIN);
	refuse(stress, REFUSED_CORE, 0);
	refuse(stress, REFUSED_ENTRIES, 0);
	refuse_reply(stress, REFUSED_REPLY, -EINVAL);
	refuse_reply(stress, REFUSED_REPLY_AT_END, 0);
}

int main(int argc, char *argv[])
{
	const char *mode = argc > 1 ? argv[1] : "";
	struct stress stress;

	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	STRESS_CHECK(shared != MAP_FAILED);
	shared->slow_ns = 2000000;
	signal(SIGALRM, on_alarm);
	signal(SIGTERM, on_alarm);
	stress = stress_begin(argc - 1, argv + 1, 5);
	if (strcmp(mode, "replies") == 0) {
		start_server(16, stress.seed);
		read_for((double)(stress.until_ns - ds_mono_ns()) / 1e9, stress.seed);
		end_server();
	} else if (strcmp(mode, "interrupts") == 0) {
		interrupts_mode(&stress);
	} else if (strcmp(mode, "depth") == 0) {
		depth_mode(&stress);
	} else if (strcmp(mode, "late") == 0) {
		late_mode(&stress);
	} else if (strcmp(mode, "reads") == 0) {
		reads_mode(&stress);
	} else if (strcmp(mode, "kept") == 0) {
		kept_mode(&stress);
	} else if (strcmp(mode, "lost") == 0) {
		lost_mode(&stress);
	} else if (strcmp(mode, "refused") == 0) {
		refused_mode(&stress);
	} else {
		fprintf(stderr, "usage: fuse_uring_stress "
				"replies|interrupts|depth|late|reads|kept|lost|refused "
				"[SECONDS [SEED]]\n");
		return 2;
	}
	return 0;
}
#endif
