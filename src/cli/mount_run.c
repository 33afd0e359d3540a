/*
 * A mount's life: check the place, fork, open the repository in the child (threads, curl and SQLite start
 * there only), mount, tell the parent, serve until the end.
 *
 * The parent waits on a pipe for one byte: the child's exit status so far. 0 means that the mount answers. A pipe that
 * closes without a byte means that the child died. A parent that is gone before it took the byte was interrupted: the
 * child ends, and with it the mount.
 */
#include "cli/mount_run.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/mount_warm.h"
#include "cli/mountinfo.h"
#include "cli/session.h"
#include "fs/fs.h"
#include "repo/record.h"
#include "repo/refs.h"
#include "repo/view.h"
#include "util/clock.h"
#include "util/file.h"
#include "util/log.h"
#include "util/mem.h"
#include "util/str.h"

#define TIMEOUT_MS_DEFAULT 60000u
/* What is waited for longer is said. */
#define SILENT_MS 2000u

struct mount_job {
	struct cli_call *call;
	const struct cli_mount_request *request;
	char *mountpoint; /* absolute */
	char *cache_dir;
	struct ds_locator locator;
	struct cli_reading reading;
	struct cli_mount_warm *warm; /* NULL: not asked for */
	int ready_fd;		     /* -1 in the foreground */
	int watch_fd;		     /* the same pipe, for the thread that watches the parent */
	int state_fd;
	int place_fd; /* holds the place until the mount is there */
	atomic_bool is_ready;
};

static bool is_below(const char *path, const char *dir)
{
	size_t len = strlen(dir);

	return strncmp(path, dir, len) == 0 && (path[len] == '/' || path[len] == '\0');
}

/* The nearest existing ancestor, resolved, with the rest appended: works for what does not exist yet. */
static char *resolve_future(const char *path)
{
	_ds_cleanup_free_ char *copy = ds_strdup(path);
	char *tail, *found, *whole;

	for (tail = copy ? copy + strlen(copy) : NULL; tail;) {
		char c = *tail;

		*tail = '\0';
		found = realpath(copy[0] ? copy : path[0] == '/' ? "/" : ".", NULL);
		*tail = c;
		if (found) {
			whole = ds_asprintf("%s%s%s", strcmp(found, "/") == 0 ? "" : found,
					    *tail && *tail != '/' ? "/" : "", tail);
			free(found);
			return whole;
		}
		while (tail > copy && *--tail != '/')
			;
		if (tail == copy && *tail != '/') {
			found = realpath(".", NULL);
			whole = found ? ds_asprintf("%s/%s", found, copy) : NULL;
			free(found);
			return whole;
		}
	}
	return NULL;
}

/* -EBUSY if a dsfs is mounted at the place; one that is dead is detached. */
static int check_free(struct mount_job *job, bool asks)
{
	const char *typed = job->request->mountpoint;
	struct ds_diag *diag = &job->call->diag;
	struct cli_mounts mounts = {0};
	struct cli_mount *there;
	int r = cli_mounts_read(&mounts);

	if (r < 0)
		return r;
	there = cli_mounts_find(&mounts, job->mountpoint);
	if (there && asks)
		cli_mounts_ask(there, 1);
	if (there && there->state == CLI_MOUNT_DEAD) {
		r = cli_unmount(job->mountpoint, true);
		if (r < 0)
			r = ds_diag_set(diag, r, typed,
					"cannot detach the dead mount that is there");
	} else if (there) {
		r = ds_diag_set(diag, -EBUSY, typed, "%s is mounted there already%s", there->source,
				there->state == CLI_MOUNT_STUCK
					? ", and does not answer; 'dsfs umount -l' detaches it"
					: "");
	}
	cli_mounts_release(&mounts);
	return r;
}

/*
 * libfuse looks at these files, through the links that they are, once the mount is there and before it answers: it would wait for itself, and with it
 * every process that comes that way. The root directory's mount lies in the way of all "..".
 */
static int check_system(struct mount_job *job)
{
	static const char *const needed[] = {"/proc/self/mounts", "/run/mount/utab"};
	bool is_needed = strcmp(job->mountpoint, "/") == 0;

	for (size_t i = 0; i < DS_ARRAY_SIZE(needed); i++)
		is_needed = is_needed || is_below(needed[i], job->mountpoint);
	return is_needed ? ds_diag_set(&job->call->diag, -DS_E_USAGE, job->request->mountpoint,
				       "a directory that the system needs cannot be a mount point")
			 : 0;
}

static int take_place(struct mount_job *job)
{
	struct cli_mount_options *o = job->request->options;
	uint64_t timeout_ms = o->timeout_ms ? o->timeout_ms : TIMEOUT_MS_DEFAULT;
	uint64_t silent_ms = DS_MIN(timeout_ms, SILENT_MS);
	int r = cli_mount_place_lock(job->mountpoint, silent_ms, &job->place_fd);

	if (r == -EBUSY && timeout_ms > silent_ms) {
		if (!job->request->quiet)
			fprintf(stderr,
				"dsfs: %s: another dsfs is mounting there; waiting for it\n",
				job->request->mountpoint);
		r = cli_mount_place_lock(job->mountpoint, timeout_ms - silent_ms, &job->place_fd);
	}
	return r < 0 ? ds_diag_set(&job->call->diag, r, job->request->mountpoint,
				   "another dsfs has been mounting there for %llu s",
				   (unsigned long long)(timeout_ms / 1000))
		     : 0;
}

/* Looks at the place: exists, is a directory, is free, lies apart from the cache. */
static int check_place(struct mount_job *job)
{
	const char *typed = job->request->mountpoint;
	struct ds_diag *diag = &job->call->diag;
	_ds_cleanup_free_ char *cache = NULL;
	struct stat st;
	int r;

	r = cli_mountpoint_path(typed, &job->mountpoint);
	if (r == -ELOOP)
		return ds_diag_set(diag, r, typed, "too many symlinks");
	if (r < 0)
		return ds_diag_set(diag, -ENOENT, typed, "the mount point does not exist");
	r = check_system(job);
	if (r < 0)
		return r;
	r = take_place(job);
	if (r == 0)
		r = check_free(job, true);
	if (r < 0)
		return r;
	if (lstat(job->mountpoint, &st) < 0)
		return ds_diag_set(diag, errno == ENOENT ? -ENOENT : -errno, typed,
				   errno == ENOENT ? "the mount point does not exist"
						   : "the mount point cannot be looked at");
	if (!S_ISDIR(st.st_mode))
		return ds_diag_set(diag, -ENOTDIR, typed, "the mount point is not a directory");
	if (!job->cache_dir)
		return 0;
	cache = resolve_future(job->cache_dir);
	if (!cache)
		return -ENOMEM;
	if (is_below(cache, job->mountpoint))
		return ds_diag_set(diag, -DS_E_USAGE, typed,
				   "the cache %s lies inside the mount point; give -o cache_dir=",
				   job->cache_dir);
	if (is_below(job->mountpoint, cache))
		return ds_diag_set(diag, -DS_E_USAGE, typed,
				   "the mount point lies inside the cache %s", job->cache_dir);
	return 0;
}

/* Only who waits for the mount is told; later the log has what fails. */
static void tell_waits(void *ctx, const char *why, uint64_t left_ms)
{
	struct mount_job *job = ctx;

	if (!job->is_ready)
		cli_tell_waits(NULL, why, left_ms);
}

static void tell_trouble(void *ctx, int code)
{
	struct mount_job *job = ctx;

	ds_log_warning(
		"the cache \"%s\" cannot store what is read: %s: it comes from the store each "
		"time",
		job->cache_dir, ds_strerror(code));
}

static int open_everything(struct mount_job *job)
{
	struct cli_mount_options *o = job->request->options;
	struct ds_store_options store = {
		.endpoint = o->endpoint,
		.region = o->region,
		.profile = o->profile,
		.addressing = o->addressing,
		.insecure_http = o->insecure_http,
		.timeout_ms = o->timeout_ms ? o->timeout_ms : TIMEOUT_MS_DEFAULT,
		.waits = job->request->quiet ? NULL : tell_waits,
		.waits_ctx = job,
	};
	struct ds_cache_options cache = {.dir = job->cache_dir,
					 .capacity_bytes = o->cache_bytes,
					 .trouble = tell_trouble,
					 .trouble_ctx = job};
	struct ds_diag *diag = &job->call->diag;
	int r;

	cli_raise_files_limit();
	r = job->cache_dir ? ds_cache_open(&cache, &job->reading.cache, diag)
			   : ds_diag_set(diag, -DS_E_USAGE, NULL,
					 "there is no home directory for the cache: give -o "
					 "cache_dir=");
	if (r == 0)
		r = ds_repo_open(job->locator.url, &store, &job->reading.repo, diag);
	if (r == 0)
		r = cli_reading_open(&job->reading, job->locator.selector, o->inflight_bytes, false,
				     store.timeout_ms, diag);
	return r;
}

static void release_everything(struct mount_job *job)
{
	cli_reading_close(&job->reading);
	ds_locator_release(&job->locator);
	ds_close_ptr(&job->place_fd);
	ds_free(job->cache_dir);
	ds_free(job->mountpoint);
}

static void log_mounted(const struct mount_job *job, const char *how)
{
	char id[DS_DIGEST_TEXT_MAX];

	ds_log_info("mounted %s (version %s) on %s: %s", job->request->source,
		    ds_digest_format(&job->reading.record->id, id), job->mountpoint, how);
}

static void start_warming(struct mount_job *job)
{
	if (job->warm)
		cli_mount_warm_start(job->warm);
}

/* Called once the kernel's INIT was answered: from now on paths below the mountpoint work. */
static void on_ready(void *ctx, const char *how)
{
	struct mount_job *job = ctx;
	const char *log = job->request->options->log;
	char id[DS_DIGEST_TEXT_MAX];
	char *cache_dir = realpath(job->cache_dir, NULL);
	unsigned char status = 0;
	int null;

	ds_digest_format(&job->reading.record->id, id);
	cli_mount_state_write(job->mountpoint, id, job->locator.selector, how, cache_dir,
			      &job->state_fd);
	free(cache_dir);
	job->is_ready = true;
	ds_close_ptr(&job->place_fd);
	if (job->ready_fd < 0) {
		log_mounted(job, how);
		start_warming(job);
		return;
	}
	/* Not before: autofs lets nobody mount at its places but the process group that it asks (Linux, Documentation/filesystems/autofs.rst). */
	setsid();
	if (!log)
		ds_log_init("syslog", ds_log_get_level());
	log_mounted(job, how);
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null >= 0) {
		dup2(null, STDIN_FILENO);
		dup2(null, STDOUT_FILENO);
		if (!log || strcmp(log, "stderr") != 0)
			dup2(null, STDERR_FILENO);
		if (null > STDERR_FILENO)
			close(null);
	}
	start_warming(job);
	if (write(job->ready_fd, &status, 1) < 0)
		kill(getpid(), SIGTERM);
	close(job->ready_fd);
	job->ready_fd = -1;
}

/* A mount in the background has no terminal that could hang up: its log was rotated. */
static void on_hangup(int signal)
{
	(void)signal;
	ds_log_reopen();
}

/* Where the connection was aborted, our mount is still there, dead: it would be in the way of all who come by. */
static void detach_dead(struct mount_job *job)
{
	struct cli_mounts mounts = {0};
	struct cli_mount *there = NULL;

	/* Who has the place is about to mount there, and detaches it by himself. */
	if (!job->is_ready || cli_mount_place_lock(job->mountpoint, 0, &job->place_fd) < 0)
		return;
	if (cli_mounts_read(&mounts) == 0)
		there = cli_mounts_find(&mounts, job->mountpoint);
	if (there && there->pid == getpid() && cli_mount_is_on_top(there)) {
		ds_log_warning("the connection of %s was aborted: detaching it", job->mountpoint);
		cli_unmount(job->mountpoint, true);
	}
	cli_mounts_release(&mounts);
	ds_close_ptr(&job->place_fd);
}

static int serve(struct mount_job *job)
{
	struct cli_mount_options *o = job->request->options;
	struct ds_fs_options options = {
		.mountpoint = job->mountpoint,
		.source = job->request->source,
		.cache_dir = job->cache_dir,
		.flags = o->flags,
		.mode = o->mode,
		.uring = o->uring,
		.allow_other = o->allow_other,
		.uid = o->has_uid ? o->uid : (uint32_t)geteuid(),
		.gid = o->has_gid ? o->gid : (uint32_t)getegid(),
		.umask = o->umask,
		.timeout_ms = o->timeout_ms ? o->timeout_ms : TIMEOUT_MS_DEFAULT,
		.readahead_bytes = o->readahead_bytes,
		.hangup = job->request->foreground ? NULL : on_hangup,
		.ready = on_ready,
		.ctx = job,
	};
	int r;

	job->call->subject = job->request->source;
	ds_mem_return_large();
	r = open_everything(job);

	/* Others of another user, or before whom the lock could not be had. */
	if (r == 0)
		r = check_free(job, false);
	if (r == 0 && o->warm)
		r = cli_mount_warm_new(job->reading.view, o->warm, o->timeout_ms, &job->warm);
	options.warm = cli_mount_warm_of(job->warm);
	options.cache = job->reading.cache;
	if (r == 0)
		r = ds_fs_run(&options, job->reading.view, job->reading.record,
			      job->reading.fetcher, &job->call->diag);
	detach_dead(job);
	job->warm = cli_mount_warm_free(job->warm);
	cli_mount_state_remove(job->mountpoint, job->state_fd);
	/* Nobody waits for a mount in the foreground to be ready: a signal is its end, however early. */
	return r == -EINTR && job->request->foreground ? 0 : r;
}

static int start_log(struct mount_job *job)
{
	struct cli_mount_options *o = job->request->options;
	enum ds_log_level level = o->debug ? DS_LOG_DEBUG : ds_log_get_level();
	int r;

	if (!o->log) {
		ds_log_set_level(level);
		return 0;
	}
	r = ds_log_init(o->log, level);
	return r < 0 ? ds_diag_set(&job->call->diag, r, o->log, "cannot open the log") : 0;
}

/* Ends the process in order when the parent goes away before it took a word that the mount is ready. */
static void *watch_parent(void *arg)
{
	struct mount_job *job = arg;
	struct pollfd wait = {.fd = job->watch_fd};
	int unread = 0;

	while (poll(&wait, 1, -1) < 0 && errno == EINTR)
		;
	if (ioctl(job->watch_fd, FIONREAD, &unread) < 0 || unread > 0 || !job->is_ready)
		kill(getpid(), SIGTERM);
	close(job->watch_fd);
	return NULL;
}

static int start_watch(struct mount_job *job)
{
	pthread_t thread;
	int r;

	job->watch_fd = fcntl(job->ready_fd, F_DUPFD_CLOEXEC, 0);
	if (job->watch_fd < 0)
		return -errno;
	r = pthread_create(&thread, NULL, watch_parent, job);
	if (r == 0)
		pthread_detach(thread);
	return -r;
}

/* The child: never returns. */
static void background(struct mount_job *job, int fd) __attribute__((noreturn));

static void background(struct mount_job *job, int fd)
{
	unsigned char status;
	int r;

	job->ready_fd = fd;
	if (chdir("/") < 0)
		ds_log_warning("cannot change to the root directory");
	r = start_watch(job);
	if (r == 0)
		r = serve(job);
	if (!job->is_ready) {
		status = (unsigned char)cli_fail(job->call, r, NULL);
		if (write(fd, &status, 1) < 0)
			_exit(status);
	} else if (r < 0) {
		ds_log_error("the mount on %s ended: %s", job->mountpoint, ds_strerror(r));
	}
	status = (unsigned char)cli_exit_of(r);
	release_everything(job);
	exit(status);
}

/* 0, or the exit status that the child gave; its message is printed already. */
static int wait_ready(struct mount_job *job, int fd, pid_t pid)
{
	unsigned char status;
	int child;
	size_t n;

	if (ds_read_full(fd, &status, 1, &n) == 0 && n == 1) {
		if (status != 0)
			waitpid(pid, NULL, 0);
		return status;
	}
	if (waitpid(pid, &child, 0) == pid && WIFSIGNALED(child))
		fprintf(stderr, "dsfs: %s: the background process was killed by signal %d\n",
			job->request->mountpoint, WTERMSIG(child));
	else
		fprintf(stderr, "dsfs: %s: the background process ended without a word\n",
			job->request->mountpoint);
	return CLI_EXIT_FAILURE;
}

static int prepare(struct mount_job *job)
{
	struct cli_mount_options *o = job->request->options;
	struct ds_diag *diag = &job->call->diag;
	char *absolute;
	int r;

	if (o->is_remount)
		return ds_diag_set(diag, -EOPNOTSUPP, job->request->mountpoint,
				   "a mount cannot be changed, and is read-only in any case: "
				   "unmount it, and mount it anew");
	r = ds_locator_parse(job->request->source, &job->locator, diag);
	if (r < 0)
		return r;
	if (job->locator.selector && o->version && strcmp(job->locator.selector, o->version) != 0)
		return ds_diag_set(diag, -DS_E_USAGE, job->request->source,
				   "the source and version= name different versions");
	if (!job->locator.selector && o->version) {
		job->locator.selector = ds_strdup(o->version);
		if (!job->locator.selector)
			return -ENOMEM;
	}
	/* The background process changes its directory. */
	if (!strstr(job->locator.url, "://") && job->locator.url[0] != '/') {
		absolute = resolve_future(job->locator.url);
		if (!absolute)
			return -ENOMEM;
		ds_free(job->locator.url);
		job->locator.url = absolute;
	}
	job->cache_dir = o->cache_dir ? resolve_future(o->cache_dir) : cli_default_cache_dir();
	return check_place(job);
}

int cli_mount_run(struct cli_call *call, const struct cli_mount_request *request, bool *ret_printed)
{
	struct mount_job job = {
		.call = call, .request = request, .ready_fd = -1, .state_fd = -1, .place_fd = -1};
	int fds[2], r;
	pid_t pid;

	*ret_printed = false;
	r = prepare(&job);
	if (r == 0)
		r = start_log(&job);
	if (r < 0 || request->foreground) {
		if (r == 0)
			r = serve(&job);
		release_everything(&job);
		return r;
	}
	if (pipe2(fds, O_CLOEXEC) < 0)
		r = -errno;
	fflush(NULL);
	pid = r == 0 ? fork() : -1;
	if (pid == 0) {
		close(fds[0]);
		background(&job, fds[1]);
	}
	if (pid < 0) {
		r = r < 0 ? r : -errno;
	} else {
		close(fds[1]);
		ds_close_ptr(&job.place_fd);
		r = wait_ready(&job, fds[0], pid);
		*ret_printed = r != 0;
		close(fds[0]);
	}
	release_everything(&job);
	return r;
}
