/*
 * Our patches to libfuse's fuse-over-io_uring (subprojects/packagefiles), on a file system of this
 * program alone: nothing of dsfs is linked but its random numbers and its clock.
 *
 *	fuse_uring_stress MODE [SECONDS [SEED]]
 *
 *	replies		random reads, every reply from another thread than the queue's; those threads
 *			come and go. No wrong byte, and no reader stands still for 10 s.
 *	interrupts	processes that wait in read and stat are killed, some just when their reply
 *			comes: each is gone in 2 s, each request ends, and the ring is whole afterwards.
 *	depth		1,000 reads are parked, and stat and reads of another file answer.
 *	late		the loop ends while requests are parked, which are answered afterwards.
 *
 * The server and the readers are children of the program, so that it outlives whatever they do.
 */
#define FUSE_USE_VERSION 314
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
#include <sys/wait.h>
#include <unistd.h>

#include "stress.h"

#define SKIP 77

#ifndef DS_FUSE_URING
int main(void)
{
	fprintf(stderr, "skipped: libfuse is not the bundled one, or has no io_uring\n");
	return SKIP;
}
#else
#include <fuse_lowlevel.h>

#include "util/list.h"
#include "util/mem.h"

#define FILE_BYTES   (UINT64_C(1) << 30)
#define READ_BYTES   65536u
#define READERS_N    8u
#define REPLIERS_N   4u
/* A replying thread exits after that many, and another takes its place. */
#define REPLIES_EACH 200u
#define STALL_S	     10u
#define SLOW_MIN_NS  UINT64_C(100000)
#define SLOW_MAX_NS  UINT64_C(50000000)
#define GONE_NS	     UINT64_C(2000000000)
#define PARKED_N     1000u

/* Node ids. What a name is, says its first letter. */
enum {
	INO_ROOT = FUSE_ROOT_ID,
	INO_DATA,  /* "data": each read is answered by another thread */
	INO_LOCAL, /* "local": each read is answered at once */
	INO_PARK,  /* "park": reads are never answered; look-ups of "p..." neither */
	INO_SLOW,  /* "slow": reads after up to slow_ns; look-ups of "s..." too */
};

/* Shared by all processes. */
struct shared {
	_Atomic uint64_t reads_n[READERS_N], wrong_n, failed_n;
	_Atomic uint64_t ring_n, other_n; /* requests by way of the ring, and of /dev/fuse */
	_Atomic uint64_t parked_n, interrupted_n, replied_n;
	_Atomic uint64_t slow_ns;
	_Atomic bool is_mounted, is_over;
};

struct job {
	struct ds_list node;
	fuse_req_t req;
	uint64_t off;
	size_t size; /* 0: a look-up */
	uint64_t due_ns;
	/* Who sets it, answers. */
	atomic_bool is_taken;
};

static struct shared *shared;
static char mountpoint[] = "/tmp/dsfs-fuse-uring.XXXXXX";

static struct {
	struct fuse_session *session;
	unsigned depth;
	pthread_mutex_t mutex;
	pthread_cond_t cond;
	struct ds_list jobs;   /* to be answered by other threads */
	struct ds_list parked; /* never, but at the end */
	uint64_t seed;
	unsigned threads_n;
	bool is_ending;
} server = {.mutex = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};

/* Byte `off` of a file: 8 bytes at a time, so that each place has its own. */
static void fill(uint64_t off, size_t len, char *buf)
{
	for (size_t i = 0; i < len; i += 8) {
		struct ds_prng prng = {.state = off + i};
		uint64_t word = ds_prng_next(&prng);

		memcpy(buf + i, &word, 8);
	}
}

static void reply_data(fuse_req_t req, uint64_t off, size_t size)
{
	char buf[READ_BYTES];

	fill(off, size, buf);
	fuse_reply_buf(req, buf, size);
}

static void attr_of(fuse_ino_t ino, struct stat *ret_st)
{
	*ret_st = (struct stat){.st_ino = ino, .st_nlink = 1};
	ret_st->st_mode = ino == INO_ROOT ? S_IFDIR | 0755 : S_IFREG | 0444;
	ret_st->st_size = ino == INO_ROOT ? 0 : (off_t)FILE_BYTES;
}

static void reply_job(struct job *job)
{
	/* Waits until no callback of this request runs. */
	fuse_req_interrupt_func(job->req, NULL, NULL);
	shared->replied_n++;
	if (job->size)
		reply_data(job->req, job->off, job->size);
	else
		fuse_reply_err(job->req, ENOENT);
}

/* With the request's lock held. The job is freed by who takes it off its list. */
static void on_interrupt(fuse_req_t req, void *data)
{
	struct job *job = data;

	if (atomic_exchange(&job->is_taken, true))
		return;
	shared->interrupted_n++;
	fuse_reply_err(req, EINTR);
}

static void leave_to_others(fuse_req_t req, uint64_t off, size_t size, bool forever)
{
	struct job *job = calloc(1, sizeof(*job));

	STRESS_CHECK(job);
	*job = (struct job){.req = req, .off = off, .size = size};
	pthread_mutex_lock(&server.mutex);
	job->due_ns =
		ds_mono_ns() + ds_prng_below(&(struct ds_prng){server.seed++}, shared->slow_ns);
	pthread_mutex_unlock(&server.mutex);
	/* Interrupted at once where the interrupt has come already. */
	fuse_req_interrupt_func(req, on_interrupt, job);
	pthread_mutex_lock(&server.mutex);
	ds_list_push_back(forever ? &server.parked : &server.jobs, &job->node);
	if (forever)
		shared->parked_n++;
	else
		pthread_cond_signal(&server.cond);
	pthread_mutex_unlock(&server.mutex);
}

static void *replier_thread(void *ctx)
{
	unsigned left = REPLIES_EACH;
	pthread_t next;

	(void)ctx;
	pthread_mutex_lock(&server.mutex);
	while (!server.is_ending && left > 0) {
		struct job *job;

		if (ds_list_is_empty(&server.jobs)) {
			pthread_cond_wait(&server.cond, &server.mutex);
			continue;
		}
		job = ds_list_entry(server.jobs.next, struct job, node);
		ds_list_remove(&job->node);
		pthread_mutex_unlock(&server.mutex);
		if (job->off & 1 || !job->size)
			while (ds_mono_ns() < job->due_ns)
				usleep(100);
		if (!atomic_exchange(&job->is_taken, true))
			reply_job(job);
		free(job);
		left--;
		pthread_mutex_lock(&server.mutex);
	}
	if (server.is_ending || pthread_create(&next, NULL, replier_thread, NULL) != 0) {
		server.threads_n--;
		pthread_cond_broadcast(&server.cond);
	} else {
		pthread_detach(next);
	}
	pthread_mutex_unlock(&server.mutex);
	return NULL;
}

static void count(fuse_req_t req)
{
	if (fuse_req_is_uring(req))
		shared->ring_n++;
	else
		shared->other_n++;
}

static void op_init(void *userdata, struct fuse_conn_info *conn)
{
	(void)userdata;
	conn->max_background = 4096;
	conn->congestion_threshold = 4096;
	fuse_set_feature_flag(conn, FUSE_CAP_OVER_IO_URING);
	/* A look-up that waits must not keep others from the directory. */
	fuse_set_feature_flag(conn, FUSE_CAP_PARALLEL_DIROPS);
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	static const char *const names[] = {"data", "local", "park", "slow"};
	struct fuse_entry_param entry = {0};

	(void)parent;
	count(req);
	for (unsigned i = 0; i < DS_ARRAY_SIZE(names) && !entry.ino; i++)
		if (strcmp(name, names[i]) == 0)
			entry.ino = INO_DATA + i;
	if (entry.ino) {
		attr_of(entry.ino, &entry.attr);
		fuse_reply_entry(req, &entry);
	} else if (name[0] == 'p' || name[0] == 's') {
		leave_to_others(req, 0, 0, name[0] == 'p');
	} else {
		fuse_reply_err(req, ENOENT);
	}
}

static void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct stat st;

	(void)fi;
	count(req);
	attr_of(ino, &st);
	fuse_reply_attr(req, &st, 0);
}

static void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	count(req);
	/* Each read of a reader is one of ours, at any offset, and waits in its own name. */
	fi->direct_io = 1;
	fuse_reply_open(req, fi);
}

static void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
		    struct fuse_file_info *fi)
{
	(void)fi;
	count(req);
	if (size > READ_BYTES)
		fuse_reply_err(req, EINVAL);
	else if (ino == INO_LOCAL)
		reply_data(req, (uint64_t)off, size);
	else
		leave_to_others(req, (uint64_t)off, size, ino == INO_PARK);
}

static void *mounted_thread(void *ctx)
{
	struct stat st;

	(void)ctx;
	STRESS_CHECK(stat(mountpoint, &st) == 0);
	shared->is_mounted = true;
	return NULL;
}

static void start_repliers(void)
{
	for (server.threads_n = 0; server.threads_n < REPLIERS_N; server.threads_n++) {
		pthread_t thread;

		STRESS_CHECK(pthread_create(&thread, NULL, replier_thread, NULL) == 0);
		pthread_detach(thread);
	}
}

/* As a file system does that ends in good order: what it still has is answered, after the loop. */
static void end_requests(void)
{
	pthread_mutex_lock(&server.mutex);
	server.is_ending = true;
	pthread_cond_broadcast(&server.cond);
	while (server.threads_n > 0)
		pthread_cond_wait(&server.cond, &server.mutex);
	ds_list_splice(&server.parked, &server.jobs);
	while (!ds_list_is_empty(&server.parked)) {
		struct job *job = ds_list_entry(server.parked.next, struct job, node);

		ds_list_remove(&job->node);
		if (!atomic_exchange(&job->is_taken, true))
			reply_job(job);
		free(job);
	}
	pthread_mutex_unlock(&server.mutex);
}

static int run_server(void)
{
	static const struct fuse_lowlevel_ops ops = {.init = op_init,
						     .lookup = op_lookup,
						     .getattr = op_getattr,
						     .open = op_open,
						     .read = op_read};
	char options[64], name[] = "fuse_uring_stress", flag[] = "-o";
	char *argv[] = {name, flag, options, NULL};
	struct fuse_args args = FUSE_ARGS_INIT(3, argv);
	struct fuse_loop_config *config = fuse_loop_cfg_create();
	pthread_t thread;
	int r;

	snprintf(options, sizeof(options), "io_uring,io_uring_q_depth=%u", server.depth);
	ds_list_init(&server.jobs);
	ds_list_init(&server.parked);
	server.session = fuse_session_new(&args, &ops, sizeof(ops), NULL);
	fuse_opt_free_args(&args);
	STRESS_CHECK(server.session && config);
	fuse_loop_cfg_set_clone_fd(config, 1);
	STRESS_CHECK(fuse_set_signal_handlers(server.session) == 0);
	if (fuse_session_mount(server.session, mountpoint) != 0)
		return SKIP;
	start_repliers();
	STRESS_CHECK(pthread_create(&thread, NULL, mounted_thread, NULL) == 0);
	r = fuse_session_loop_mt(server.session, config);
	end_requests();
	fuse_session_unmount(server.session);
	pthread_join(thread, NULL);
	fuse_remove_signal_handlers(server.session);
	fuse_session_destroy(server.session);
	fuse_loop_cfg_destroy(config);
	return r == 0 || r == SIGTERM ? 0 : 1;
}

/* ---- the other side ---- */

static pid_t server_pid;

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
	return shared->is_mounted || waitpid(server_pid, NULL, WNOHANG) == server_pid;
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

static void start_server(unsigned depth, uint64_t seed)
{
	STRESS_CHECK(mkdtemp(mountpoint));
	server_pid = fork_child();
	if (server_pid == 0) {
		server.depth = depth;
		server.seed = seed;
		exit(run_server());
	}
	wait_for(is_mounted, "the mount does not answer");
	if (shared->is_mounted)
		return;
	rmdir(mountpoint);
	fprintf(stderr, "skipped: FUSE cannot be mounted here\n");
	exit(SKIP);
}

static void end_server(void)
{
	int status;

	kill(server_pid, SIGTERM);
	alarm(30);
	STRESS_CHECK(waitpid(server_pid, &status, 0) == server_pid);
	alarm(0);
	server_pid = 0;
	if (status != 0)
		fail("the server did not end well");
	remove_everything();
	printf("  %llu requests through the ring, %llu through /dev/fuse\n",
	       (unsigned long long)shared->ring_n, (unsigned long long)shared->other_n);
	/* The first may come before the ring is there. */
	if (shared->ring_n < 100 * (shared->other_n + 1) && shared->ring_n < PARKED_N)
		fail("the ring was not used");
}

static void read_and_check(int fd, struct ds_prng *prng, unsigned reader)
{
	char buf[READ_BYTES], wanted[READ_BYTES];
	size_t len = 8 * (1 + ds_prng_below(prng, READ_BYTES / 8));
	uint64_t off = ds_prng_below(prng, FILE_BYTES - READ_BYTES);
	ssize_t n = pread(fd, buf, len, (off_t)off);

	if (n < 0 && shared->is_over)
		return;
	fill(off, len, wanted);
	if (n < 0)
		shared->failed_n++;
	else if ((size_t)n != len || memcmp(buf, wanted, len) != 0)
		shared->wrong_n++;
	shared->reads_n[reader]++;
}

static void run_reader(unsigned reader, uint64_t seed)
{
	int data = open(path_of("data"), O_RDONLY), local = open(path_of("local"), O_RDONLY);
	struct ds_prng prng = {.state = seed + reader};

	while (!shared->is_over)
		read_and_check(ds_prng_below(&prng, 8) ? data : local, &prng, reader);
	_exit(0);
}

/* Reads for that long; nobody stands still, nothing is wrong. */
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
	while (ds_mono_ns() < until_ns) {
		usleep(50000);
		for (unsigned i = 0; i < READERS_N; i++) {
			uint64_t n = shared->reads_n[i], now_ns = ds_mono_ns();

			if (n != before[i])
				moved_ns[i] = now_ns;
			before[i] = n;
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
	if (all < 100)
		fail("hardly anything was read");
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

static void kill_waiter(pid_t pid)
{
	uint64_t until_ns = ds_mono_ns() + GONE_NS;

	kill(pid, SIGKILL);
	while (waitpid(pid, NULL, WNOHANG) != pid) {
		if (ds_mono_ns() > until_ns)
			fail("a killed process is still there after 2 s");
		usleep(200);
	}
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
			fail("stat and read beside 1,000 parked reads took 2 s");
	}
	kill_waiter(pid);
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
	} else {
		fprintf(stderr, "usage: fuse_uring_stress replies|interrupts|depth|late [SECONDS "
				"[SEED]]\n");
		return 2;
	}
	return 0;
}
#endif
