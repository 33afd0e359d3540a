/*
 * The file system of fuse_uring_stress.
 */
#ifdef DS_FUSE_URING
#define FUSE_USE_VERSION 314
#include <errno.h>
#include <fuse_lowlevel.h>
#include <liburing.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "fuse_uring_stress.h"
#include "util/list.h"
#include "util/mem.h"

#define REPLIERS_N 4u
/* A replying thread exits after that many, and another takes its place. */
#define REPLIES_EACH 200u
#define BLOCK	     4096u
/* linux/fuse.h, enum fuse_uring_cmd */
#define COMMAND_REGISTER 1u
#define COMMAND_REPLY	 2u

struct job {
	struct ds_list node;
	fuse_req_t req;
	uint64_t off;
	size_t size; /* 0: a look-up */
	uint64_t due_ns;
	/* Who sets it, answers. */
	atomic_bool is_taken;
};

static struct {
	struct fuse_session *session;
	unsigned depth;
	struct stat input; /* descriptor 0 */
	pthread_mutex_t mutex;
	pthread_cond_t cond;
	struct ds_list jobs;   /* to be answered by other threads */
	struct ds_list parked; /* never, but at the end */
	uint64_t seed;
	unsigned threads_n;
	bool is_ending;
	void *_Atomic lost; /* a payload */
	void *payloads[PARKED_N];
	_Atomic unsigned payloads_n; /* of large replies */
} server = {.mutex = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};

/* ---- what is refused */

/* Whether this call is the last of `n`, and to fail. */
static bool is_refused(enum refused what, unsigned n)
{
	static _Atomic unsigned calls_n;

	if (shared->refused != what || ++calls_n != n)
		return false;
	shared->refusals_n++;
	return true;
}

/* Of what is about to be submitted: up to `most` commands are made such that the kernel takes none of them. */
static unsigned spoil(struct io_uring *ring, unsigned command, unsigned most)
{
	unsigned n = 0;

	for (unsigned i = ring->sq.sqe_head; i != ring->sq.sqe_tail && n < most; i++) {
		/* Each has the room of two (IORING_SETUP_SQE128). */
		struct io_uring_sqe *sqe = &ring->sq.sqes[(i & ring->sq.ring_mask) << 1];

		if (sqe->opcode != IORING_OP_URING_CMD || sqe->cmd_op != command)
			continue;
		if (command == COMMAND_REGISTER)
			sqe->len = 1; /* a header without a payload */
		else
			sqe->cmd_op = 0; /* no command */
		n++;
	}
	return n;
}

/* A reply, if there is one among what is about to be submitted. */
static bool spoil_reply(struct io_uring *ring)
{
	if (!atomic_exchange(&shared->is_next_refused, false))
		return false;
	if (spoil(ring, COMMAND_REPLY, 1) == 0) {
		shared->is_next_refused = true;
		return false;
	}
	shared->refusals_n++;
	return true;
}

int __real_io_uring_submit_and_wait(struct io_uring *ring, unsigned wait_n);
int __wrap_io_uring_submit_and_wait(struct io_uring *ring, unsigned wait_n);
int __wrap_io_uring_submit_and_wait(struct io_uring *ring, unsigned wait_n)
{
	static _Thread_local bool is_registered;

	if (shared->is_ring_broken)
		return -EBADF;
	if (!is_registered && is_refused(REFUSED_ENTRIES, (unsigned)get_nprocs_conf()))
		STRESS_CHECK(spoil(ring, COMMAND_REGISTER, server.depth) == server.depth);
	is_registered = true;
	if (spoil_reply(ring) && shared->refused == REFUSED_REPLY_AT_END) {
		/* As if an abort had passed by when the kernel had begun with the reply. */
		__real_io_uring_submit_and_wait(ring, 0);
		umount2(mountpoint, MNT_FORCE);
	}
	return __real_io_uring_submit_and_wait(ring, wait_n);
}

int __real_io_uring_queue_init_params(unsigned entries, void *ring, void *params);
int __wrap_io_uring_queue_init_params(unsigned entries, void *ring, void *params);
int __wrap_io_uring_queue_init_params(unsigned entries, void *ring, void *params)
{
	if (!is_refused(REFUSED_RING, (unsigned)get_nprocs_conf()))
		return __real_io_uring_queue_init_params(entries, ring, params);
	/* As it does where the kernel has made the ring, and there is no room to map it. */
	memset(ring, 0, sizeof(struct io_uring));
	return -ENOMEM;
}

void *__real_numa_alloc_local(size_t size);
void *__wrap_numa_alloc_local(size_t size);
void *__wrap_numa_alloc_local(size_t size)
{
	/* A header and a payload each. */
	unsigned n = (unsigned)get_nprocs_conf() * server.depth * 2;

	return is_refused(REFUSED_MEMORY, n) ? NULL : __real_numa_alloc_local(size);
}

/* libfuse asserts on a channel's count before it takes the channel's lock (3.18.3, fuse_loop_mt.c, fuse_chan_get): met where the
 * rings are refused. */
__attribute__((visibility("default"))) const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void)
{
	return "race:fuse_chan_get\n";
}

static _Thread_local bool is_starting; /* the rings, after INIT */

typedef void *thread_fn(void *ctx);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attr, thread_fn *run, void *ctx);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, thread_fn *run, void *ctx);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, thread_fn *run, void *ctx)
{
	if (!is_starting || !is_refused(REFUSED_THREAD, (unsigned)get_nprocs_conf()))
		return __real_pthread_create(thread, attr, run, ctx);
	/* As glibc leaves it: of a thread that is gone. */
	memset(thread, 0x5a, sizeof(*thread));
	return EAGAIN;
}

int __real_sched_setaffinity(pid_t pid, size_t size, const cpu_set_t *set);
int __wrap_sched_setaffinity(pid_t pid, size_t size, const cpu_set_t *set);
int __wrap_sched_setaffinity(pid_t pid, size_t size, const cpu_set_t *set)
{
	if (!is_refused(REFUSED_CORE, (unsigned)get_nprocs_conf()))
		return __real_sched_setaffinity(pid, size, set);
	errno = EINVAL;
	return -1;
}

static void on_log(enum fuse_log_level level, const char *format, va_list ap)
	__attribute__((format(printf, 2, 0)));

static void on_log(enum fuse_log_level level, const char *format, va_list ap)
{
	if (level <= FUSE_LOG_ERR)
		shared->error_lines_n++;
	if (level <= FUSE_LOG_WARNING)
		vfprintf(stderr, format, ap);
}

void fill(uint64_t off, size_t len, char *buf)
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

/* Not another request is parked, so that each payload is noted once. */
static char *note_payload(fuse_req_t req)
{
	void **payload = &server.payloads[server.payloads_n++];
	size_t payload_size;

	STRESS_CHECK(fuse_req_get_payload(req, (char **)payload, &payload_size, NULL) == 0);
	return *payload;
}

static void reply_large(fuse_req_t req, uint64_t off, size_t size)
{
	char *buf = malloc(size);

	STRESS_CHECK(buf && note_payload(req));
	fill(off, size, buf);
	fuse_reply_buf(req, buf, size);
	free(buf);
}

static void count_resident(void)
{
	unsigned char pages[LARGE_BYTES / BLOCK];
	uint64_t bytes = 0;

	for (unsigned i = 0; i < server.payloads_n; i++) {
		STRESS_CHECK(mincore(server.payloads[i], LARGE_BYTES, pages) == 0);
		for (unsigned k = 0; k < LARGE_BYTES / BLOCK; k++)
			bytes += (pages[k] & 1) * BLOCK;
	}
	shared->resident_bytes = bytes;
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
	if (job->size > READ_BYTES && shared->is_failing)
		fuse_reply_err(job->req, EIO);
	else if (job->size > READ_BYTES)
		reply_large(job->req, job->off, job->size);
	else if (job->size)
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

/* ---- reads by the ring */

struct ring_read {
	fuse_ino_t ino;
	uint64_t off;
	size_t size, skip;
};

/* On the queue's thread. */
static void on_ring_read(fuse_req_t req, int n, void *data)
{
	struct ring_read *read = data;
	size_t payload_size;
	char *payload;

	STRESS_CHECK(fuse_req_get_payload(req, &payload, &payload_size, NULL) == 0);
	if (read->ino == INO_PIPE) {
		STRESS_CHECK(n < 0 && shared->is_ring_broken);
		server.lost = payload;
		shared->lost_n++;
		reply_data(req, read->off, read->size);
	} else if (n < 0) {
		shared->failed_n++;
		fuse_reply_err(req, EIO);
	} else if ((size_t)n >= read->skip + read->size) {
		memmove(payload, payload + read->skip, read->size);
		shared->whole_n++;
		fuse_reply_buf(req, payload, read->size);
	} else {
		/* Where the file ends: made good from memory, here or by others. */
		shared->short_n++;
		if (read->off & 8)
			reply_data(req, read->off, read->size);
		else
			leave_to_others(req, read->off, read->size, false);
	}
	free(read);
}

static bool start_ring_read(fuse_req_t req, fuse_ino_t ino, uint64_t off, size_t size)
{
	uint64_t start = ino == INO_DIRECT ? off / BLOCK * BLOCK : off;
	uint64_t end = ino == INO_DIRECT ? (off + size + BLOCK - 1) / BLOCK * BLOCK : off + size;
	int fd = ino == INO_DIRECT ? direct_fd : ino == INO_FILE ? file_fd : pipe_fds[0];
	struct ring_read *read = malloc(sizeof(*read));

	STRESS_CHECK(read);
	*read = (struct ring_read){.ino = ino, .off = off, .size = size, .skip = off - start};
	if (fuse_req_read_payload(req, fd, end - start, (off_t)start, on_ring_read, read) == 0) {
		shared->begun_n++;
		return true;
	}
	free(read);
	return false;
}

static void *replier_thread(void *ctx)
{
	unsigned left = REPLIES_EACH;
	pthread_t next;

	(void)ctx;
	pthread_mutex_lock(&server.mutex);
	while (!server.is_ending && left > 0) {
		struct job *job;

		if (shared->is_let_go)
			ds_list_splice(&server.jobs, &server.parked);
		if (atomic_exchange(&shared->is_to_count, false))
			count_resident();
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
	is_starting = true;
	/* A look-up that waits must not keep others from the directory. */
	fuse_set_feature_flag(conn, FUSE_CAP_PARALLEL_DIROPS);
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	static const char *const names[] = {"data", "local",  "park", "slow",
					    "file", "direct", "pipe"};
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
	/* As with what is there of a file of which the rest has to come. */
	if (shared->is_failing && size > READ_BYTES)
		memset(note_payload(req), 1, size);
	if (size > (ino == INO_PARK ? LARGE_BYTES : READ_BYTES))
		fuse_reply_err(req, EINVAL);
	else if (ino == INO_LOCAL)
		reply_data(req, (uint64_t)off, size);
	else if (ino < INO_FILE || !start_ring_read(req, ino, (uint64_t)off, size))
		leave_to_others(req, (uint64_t)off, size, ino == INO_PARK);
}

static void *mounted_thread(void *ctx)
{
	struct stat st;

	(void)ctx;
	STRESS_CHECK(stat(mountpoint, &st) == 0);
	shared->start_error = fuse_session_uring_error(server.session);
	shared->is_stdin_kept = fstat(STDIN_FILENO, &st) == 0 && st.st_dev == server.input.st_dev &&
				st.st_ino == server.input.st_ino;
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

int run_server(unsigned depth, uint64_t seed)
{
	static const struct fuse_lowlevel_ops ops = {.init = op_init,
						     .lookup = op_lookup,
						     .getattr = op_getattr,
						     .open = op_open,
						     .read = op_read};
	char options[96], name[] = "fuse_uring_stress", flag[] = "-o";
	char *argv[] = {name, flag, options, NULL};
	struct fuse_args args = FUSE_ARGS_INIT(3, argv);
	struct fuse_loop_config *config = fuse_loop_cfg_create();
	pthread_t thread;
	int r;

	server.depth = depth;
	server.seed = seed;
	/* Whatever it is: something that nobody else opens. */
	close(STDIN_FILENO);
	STRESS_CHECK(memfd_create("stdin", 0) == STDIN_FILENO);
	STRESS_CHECK(fstat(STDIN_FILENO, &server.input) == 0);
	snprintf(options, sizeof(options), "io_uring,io_uring_q_depth=%u,io_uring_keep=%u",
		 server.depth, shared->keep_kib);
	ds_list_init(&server.jobs);
	ds_list_init(&server.parked);
	fuse_set_log_func(on_log);
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
	shared->loop_result = r;
	end_requests();
	fuse_session_unmount(server.session);
	pthread_join(thread, NULL);
	fuse_remove_signal_handlers(server.session);
	fuse_session_destroy(server.session);
	/* The kernel would write to what lies there now. */
	STRESS_CHECK(!server.lost || madvise(server.lost, BLOCK, MADV_NORMAL) == 0);
	fuse_loop_cfg_destroy(config);
	return r == 0 || r == SIGTERM ? 0 : 1;
}
#endif
