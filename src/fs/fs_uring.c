/*
 * fuse-over-io_uring: whether it can be had, how many requests its rings hold, whether it is in use.
 *
 * The kernel sends a request to the ring of the core that asked, where it takes an entry until it is answered; without a
 * free entry it waits, whatever it is. So there must be more entries than requests that may be parked. Reads are told apart:
 * nearly all are requests in the background, of which the kernel sends max_background at most, over all rings. A ring
 * with more entries than that, as each has on up to 17 cores, always has some left for look-ups.
 *
 * An entry costs a page or two once it has been used (its header, and of its 1 MiB what the largest reply needed), and those
 * used last are used first; see Documentation/filesystems/fuse/fuse-io-uring.rst of Linux. But when many were parked at a
 * time, many have been used: what they have over 32 KiB each is bounded, by a share for each ring (our patch 0006 to libfuse),
 * of two answers of the usual read-ahead at least, since giving memory back and taking it anew for each costs more. Where cores
 * are many, each gets fewer entries, and a thousand requests of one core are not to be expected.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "fs/fs_internal.h"
#include "util/error.h"
#include "util/file.h"
#include "util/log.h"

/* For 1,000 parked reads and some more, and 128 other requests beside them. */
#define BACKGROUND_MAX 1152u
#define DEPTH_MAX      (BACKGROUND_MAX + 128u)
#define DEPTH_MIN      128u
/* Of all entries, for what they had to answer once. More costs memory beyond the budget of inflight=, less faults. */
#define KEEP_KIB      (16u * 1024)
#define KEEP_CORE_KIB 1024u
/* Of all cores: 16 of them have the full depth. */
#define ENTRIES_MAX (16u * DEPTH_MAX)

static unsigned ring_depth(void)
{
	unsigned cores = (unsigned)get_nprocs_conf();

	return DS_MIN(DS_MAX(ENTRIES_MAX / DS_MAX(cores, 1u), DEPTH_MIN), DEPTH_MAX);
}

static const char *const names[] = {
	[DS_FS_URING_AUTO] = "auto", [DS_FS_URING_ON] = "on", [DS_FS_URING_OFF] = "off"};

int ds_fs_uring_parse(const char *text, enum ds_fs_uring *ret_uring)
{
	for (size_t i = 0; i < DS_ARRAY_SIZE(names); i++) {
		if (strcmp(text, names[i]) == 0) {
			*ret_uring = (enum ds_fs_uring)i;
			return 0;
		}
	}
	return -EINVAL;
}

#ifdef DS_FUSE_URING

#include <linux/io_uring.h>
#include <sys/syscall.h>

#define PARAMETER "/sys/module/fuse/parameters/enable_uring"
#define CPUS	  "/sys/devices/system/cpu/possible"

/* The kernel wants a ring for each core that there may ever be; libfuse makes one for each that it knows. "0-7", "0,2-3". */
static bool has_ring_for_each_cpu(void)
{
	_ds_cleanup_buf_ struct ds_buf buf = DS_BUF_INIT(4096);
	const char *text, *last;

	if (ds_file_read_at(AT_FDCWD, CPUS, &buf) < 0)
		return false;
	text = ds_buf_str(&buf);
	last = text + strlen(text);
	while (last > text && strchr("0123456789\n", last[-1]))
		last--;
	return strtol(last, NULL, 10) + 1 == get_nprocs_conf();
}

/* 0, or the errno of making a ring as libfuse does, of a mount's size. */
static int try_ring(void)
{
	unsigned depth = ring_depth();
	struct io_uring_params params = {.flags = IORING_SETUP_SQE128 | IORING_SETUP_CQSIZE,
					 .cq_entries = 2 * depth};
	long fd = syscall(SYS_io_uring_setup, depth, &params);

	if (fd < 0)
		return errno;
	close((int)fd);
	return 0;
}

const char *ds_fs_no_uring(void)
{
	_ds_cleanup_buf_ struct ds_buf buf = DS_BUF_INIT(256);
	/* Loads the module. */
	_ds_cleanup_close_ int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	int error;

	(void)fd;
	if (ds_file_read_at(AT_FDCWD, PARAMETER, &buf) < 0)
		return "the kernel has no fuse-over-io_uring: Linux 6.14 and newer can have it";
	if (ds_buf_str(&buf)[0] != 'Y')
		return "the kernel's fuse-over-io_uring is switched off: as root "
		       "'echo Y > " PARAMETER "'";
	error = try_ring();
	if (error == ENOMEM)
		return "this process may not lock as much memory as io_uring takes: raise "
		       "'ulimit -l', or LimitMEMLOCK= of its service";
	if (error != 0)
		return "this process may not use io_uring: 'sysctl kernel.io_uring_disabled=0' as "
		       "root, or in a container a seccomp profile that allows it";
	if (!has_ring_for_each_cpu())
		return "fuse-over-io_uring needs a ring for each possible CPU, and some are not "
		       "there: start Linux with possible_cpus= or nr_cpus=";
	return NULL;
}

#else

const char *ds_fs_no_uring(void)
{
	return "fuse-over-io_uring needs the bundled libfuse, which is patched for it: install "
	       "liburing-dev and libnuma-dev, run scripts/setup.sh, and build anew";
}

#endif

int fs_uring_prepare(struct ds_fs *fs, struct ds_diag *reterr_diag)
{
	enum ds_fs_uring wanted = fs->options.uring;

	fs->uring.missing = wanted == DS_FS_URING_OFF ? "as asked" : ds_fs_no_uring();
	if (fs->uring.missing) {
		if (wanted == DS_FS_URING_ON)
			return ds_diag_set(reterr_diag, -EOPNOTSUPP, fs->options.mountpoint, "%s",
					   fs->uring.missing);
		return 0;
	}
	fs->uring.depth = ring_depth();
	return 0;
}

int fs_uring_options(const struct ds_fs *fs, struct ds_buf *buf)
{
	char text[96];

	if (!fs->uring.depth)
		return 0;
	snprintf(text, sizeof(text), ",io_uring,io_uring_q_depth=%u,io_uring_keep=%u",
		 fs->uring.depth, DS_MAX(KEEP_KIB, KEEP_CORE_KIB * (unsigned)get_nprocs_conf()));
	return ds_buf_append_str(buf, text);
}

void fs_uring_init(struct ds_fs *fs, struct fuse_conn_info *conn)
{
#ifdef DS_FUSE_URING
	/* libfuse has an environment variable that switches it on. */
	if (!fs->uring.depth)
		fuse_unset_feature_flag(conn, FUSE_CAP_OVER_IO_URING);
	else if (fuse_set_feature_flag(conn, FUSE_CAP_OVER_IO_URING))
		conn->max_background = BACKGROUND_MAX;
	conn->congestion_threshold = DS_MIN(conn->congestion_threshold, conn->max_background);
#else
	(void)fs;
	(void)conn;
#endif
}

void fs_uring_note(struct ds_fs *fs, fuse_req_t req)
{
#ifdef DS_FUSE_URING
	if (!fs->is_ready && fuse_req_is_uring(req))
		fs->uring.is_used = true;
#else
	(void)fs;
	(void)req;
#endif
}

/* They were to be had, and are not used. */
static const char *why_not(struct ds_fs *fs)
{
#ifdef DS_FUSE_URING
	int error = fuse_session_uring_error(fs->session);

	/* An entry has a MiB for its reply, set aside at once and used when needed. */
	if (error == ENOMEM) {
		snprintf(
			fs->uring.why, sizeof(fs->uring.why),
			"no memory for the rings: they take some %u MiB of addresses, of which few "
			"are used, and a little that is locked ('ulimit -v', 'ulimit -l', "
			"vm.overcommit_memory)",
			fs->uring.depth * (unsigned)get_nprocs_conf());
		return fs->uring.why;
	}
	if (error) {
		snprintf(fs->uring.why, sizeof(fs->uring.why), "the rings could not be made: %s",
			 ds_strerror(-error));
		return fs->uring.why;
	}
#endif
	return "the kernel has not taken the rings: see its log (dmesg)";
}

const char *fs_uring_settle(struct ds_fs *fs)
{
	size_t len = strlen(fs->how);

	if (fs->uring.depth && !fs->uring.is_used)
		fs->uring.missing = why_not(fs);
	if (fs->uring.missing)
		snprintf(fs->how + len, sizeof(fs->how) - len, "; io_uring=off, %s",
			 fs->uring.missing);
	else
		snprintf(fs->how + len, sizeof(fs->how) - len,
			 "; io_uring=on, for %u requests of each core", fs->uring.depth);
	return fs->options.uring == DS_FS_URING_ON ? fs->uring.missing : NULL;
}
