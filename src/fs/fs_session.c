/*
 * The session: options for the kernel, the loop, the end.
 *
 * The end, by whatever cause (umount, SIGTERM, fusectl abort): the loop returns; what is parked is
 * answered; the file system is unmounted if it still is mounted, which aborts the connection, so
 * that a reader that is blocked is let go even if the store never answers. But what libfuse finds
 * aborted it takes for unmounted: after fusectl's abort the mount stays, dead.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "fs/fs_internal.h"
#include "util/buf.h"
#include "util/error.h"
#include "util/file.h"
#include "util/log.h"
#include "util/mem.h"

#define WORKERS_MIN 4u
#define THREADS_MAX 16u
#define OPTIONS_MAX DS_KIB(64)

const char *ds_fs_fuse_version(void)
{
#ifdef DS_FUSE_BUNDLED
	static char text[64];

	snprintf(text, sizeof(text), "%s (bundled)", fuse_pkgversion());
	return text;
#else
	return fuse_pkgversion();
#endif
}

/* libfuse splits options at commas and takes a backslash before one. */
static int append_escaped(struct ds_buf *buf, const char *text)
{
	int r = 0;

	for (; *text && r == 0; text++) {
		if (*text == ',' || *text == '\\')
			r = ds_buf_append_byte(buf, '\\');
		if (r == 0)
			r = ds_buf_append_byte(buf, (uint8_t)*text);
	}
	return r;
}

static int make_options(const struct ds_fs *fs, struct ds_buf *buf)
{
	const struct ds_fs_options *options = &fs->options;
	int r;

	/*
	 * `ro` on the superblock also spares a GETATTR after each first read (design, section 5).
	 */
	r = ds_buf_append_str(buf, "ro,nosuid,nodev,noatime,default_permissions,subtype=dsfs");
	if (r == 0 && options->allow_other)
		r = ds_buf_append_str(buf, ",allow_other");
	if (r == 0 && options->flags)
		r = ds_buf_append_byte(buf, ',');
	if (r == 0 && options->flags)
		r = ds_buf_append_str(buf, options->flags);
	if (r == 0)
		r = fs_uring_options(fs, buf);
	if (r == 0)
		r = ds_buf_append_str(buf, ",fsname=");
	return r < 0 ? r : append_escaped(buf, options->source);
}

static void on_fuse_log(enum fuse_log_level level, const char *format, va_list ap)
	__attribute__((format(printf, 2, 0)));

static void on_fuse_log(enum fuse_log_level level, const char *format, va_list ap)
{
	char text[1024];

	vsnprintf(text, sizeof(text), format, ap);
	text[strcspn(text, "\n")] = '\0';
	ds_log(level <= FUSE_LOG_ERR	   ? DS_LOG_ERROR
	       : level <= FUSE_LOG_WARNING ? DS_LOG_WARNING
					   : DS_LOG_DEBUG,
	       "libfuse: %s", text);
}

#define FUSE_CONF "/etc/fuse.conf"

/* Whether fusermount3 lets users give allow_other: a line of its own says so (fusermount3(1)). */
static bool may_allow_other(void)
{
	FILE *file = fopen(FUSE_CONF, "re");
	char *line = NULL, word[32];
	size_t size = 0;
	bool found = false;

	while (file && !found && getline(&line, &size, file) > 0)
		found = sscanf(line, "%31s", word) == 1 && strcmp(word, "user_allow_other") == 0;
	free(line);
	if (file)
		fclose(file);
	return found;
}

/* Of the kernel's options that are given, those that not every kernel or fusermount3 takes; NULL: none. */
static const char *rare_options(const struct ds_fs_options *options)
{
	const char *flags = options->flags ? options->flags : "";
	bool has_context = strstr(flags, "context=") != NULL;

	if (strstr(flags, "nosymfollow"))
		return has_context ? "nosymfollow and context=" : "nosymfollow";
	return has_context ? "context=" : NULL;
}

/* libfuse has failed to mount. `number` is errno, which tells something only if libfuse has made the system call itself. */
static int why_not(const struct ds_fs_options *options, int number, struct ds_diag *reterr_diag)
{
	const char *rare = rare_options(options);

	if (access("/dev/fuse", R_OK | W_OK) < 0)
		return ds_diag_set(reterr_diag, -EACCES, "/dev/fuse",
				   "FUSE is not available (see 'dsfs doctor')");
	if (geteuid() == 0 && number == EINVAL && rare && strstr(rare, "context="))
		return ds_diag_set(reterr_diag, -EINVAL, options->mountpoint,
				   "the kernel refuses these options (context= needs SELinux)");
	if (geteuid() == 0)
		return ds_diag_set(reterr_diag, number == 0 || number == EINVAL ? -EPERM : -number,
				   options->mountpoint, "cannot mount there");
	if (options->allow_other && !may_allow_other())
		return ds_diag_set(reterr_diag, -EACCES, FUSE_CONF,
				   "allow_other needs a line user_allow_other there, which root "
				   "can add; or mount without it");
	if (rare)
		return ds_diag_set(reterr_diag, -EACCES, options->mountpoint,
				   "fusermount3 has refused to mount there: it may not know %s: "
				   "leave that out, or mount as root; and it must be installed, "
				   "and the directory yours",
				   rare);
	return ds_diag_set(reterr_diag, -EACCES, options->mountpoint,
			   "fusermount3 has refused to mount there: it must be installed, and the "
			   "directory must be yours");
}

static bool is_ignored(int number)
{
	struct sigaction action;

	return sigaction(number, NULL, &action) == 0 && action.sa_handler == SIG_IGN;
}

/*
 * By its path, at which there may be another mount: ours was detached while it was in use, or is below that. If it is gone already (POLLERR,
 * as libfuse has it), nothing is looked for by the path: whatever is there now might let us wait.
 */
static void unmount_session(struct ds_fs *fs)
{
	struct pollfd state = {.fd = fuse_session_fd(fs->session)};
	bool is_gone = poll(&state, 1, 0) == 1 && (state.revents & POLLERR);
	dev_t there = fs->device && !is_gone ? ds_mount_device(fs->options.mountpoint) : 0;

	if (!there || there == fs->device)
		fuse_session_unmount(fs->session);
}

static int start_session(struct ds_fs *fs, struct ds_diag *reterr_diag)
{
	_ds_cleanup_buf_ struct ds_buf options = DS_BUF_INIT(OPTIONS_MAX);
	char name[] = "dsfs", flag[] = "-o";
	char *argv[] = {name, flag, NULL, NULL};
	struct fuse_args args = FUSE_ARGS_INIT(3, argv);
	const int signals[] = {SIGTERM, SIGINT, SIGHUP};
	int r = make_options(fs, &options);

	if (r < 0)
		return r;
	argv[2] = (char *)options.data;
	fuse_set_log_func(on_fuse_log);
	fs->session = fuse_session_new(&args, &fs_ops, sizeof(fs_ops), fs);
	fuse_opt_free_args(&args);
	if (!fs->session)
		return ds_diag_set(reterr_diag, -EINVAL, fs->options.mountpoint,
				   "libfuse refused the options");
	/*
	 * Before there is a mount that a signal could leave behind; libfuse replaces default
	 * handlers only. What nohup, or a shell for its background, has turned off stays off;
	 * SIGTERM ends a mount in any case.
	 */
	for (size_t i = 0; i < DS_ARRAY_SIZE(signals); i++)
		if (signals[i] == SIGTERM || !is_ignored(signals[i]))
			signal(signals[i], SIG_DFL);
	if (fs->options.hangup)
		signal(SIGHUP, fs->options.hangup);
	if (fuse_set_signal_handlers(fs->session) != 0)
		return -EIO;
	errno = 0;
	if (fuse_session_mount(fs->session, fs->options.mountpoint) != 0)
		return why_not(&fs->options, errno, reterr_diag);
	fs->device = ds_mount_device(fs->options.mountpoint);
	return 0;
}

static int loop(struct ds_fs *fs)
{
	struct fuse_loop_config *config = fuse_loop_cfg_create();
	int r;

	if (!config)
		return -ENOMEM;
	/* No thread waits for the network: a few are enough, and more only contend. */
	fuse_loop_cfg_set_clone_fd(config, 1);
	fuse_loop_cfg_set_max_threads(config, THREADS_MAX);
	fuse_loop_cfg_set_idle_threads(config, THREADS_MAX);
	r = fuse_session_loop_mt(fs->session, config);
	fuse_loop_cfg_destroy(config);
	/* A signal's number is an orderly end. */
	return r < 0 ? r : 0;
}

static int run(struct ds_fs *fs, struct ds_diag *reterr_diag)
{
	unsigned workers_n = DS_MAX(ds_cpu_count() * 2, WORKERS_MIN);
	int r;

	fs_kernel_prepare(fs);
	r = fs_uring_prepare(fs, reterr_diag);
	if (r == 0)
		r = fs_control_init(fs);
	if (r == 0)
		r = fs_open_init(fs);
	if (r == 0)
		r = fs_ahead_init(fs);
	if (r == 0)
		r = ds_work_new(workers_n, "dsfs-work", &fs->work);
	if (r == 0)
		r = start_session(fs, reterr_diag);
	if (r == 0) {
		r = loop(fs);
		fs_request_end_all(fs);
		unmount_session(fs);
		if (r == 0 && fs->refusal)
			r = ds_diag_set(reterr_diag, -EOPNOTSUPP, fs->options.mountpoint, "%s",
					fs->refusal);
		else if (r == 0 && !fs->is_ready)
			r = ds_diag_set(reterr_diag, -EINTR, fs->options.mountpoint,
					"ended before the mount answered");
	}
	fs->work = ds_work_free(fs->work);
	if (fs->session) {
		fuse_remove_signal_handlers(fs->session);
		fuse_session_destroy(fs->session);
	}
	return r;
}

int ds_fs_run(const struct ds_fs_options *options, struct ds_view *view,
	      const struct ds_record *record, struct ds_fetcher *fetcher,
	      struct ds_diag *reterr_diag)
{
	struct ds_fs fs = {
		.options = *options,
		.view = view,
		.record = record,
		.fetcher = fetcher,
	};
	pthread_condattr_t attr;
	int r;

	/* Credentials in memory: no core dump, no ptrace by others of the user. */
	prctl(PR_SET_DUMPABLE, 0);
	pthread_mutex_init(&fs.mutex, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&fs.idle, &attr);
	pthread_condattr_destroy(&attr);
	ds_list_init(&fs.locked.requests);
	ds_list_init(&fs.locked.snapshots);
	r = run(&fs, reterr_diag);
	fs_control_end(&fs);
	fs_open_end(&fs);
	fs_read_end(&fs);
	fs_ahead_end(&fs);
	pthread_cond_destroy(&fs.idle);
	pthread_mutex_destroy(&fs.mutex);
	return r;
}
