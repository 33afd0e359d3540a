/*
 * Telling the owner that the mount answers. INIT alone does not prove it (its reply is sent after
 * the callback), so that a worker asks the mount for something that is answered from memory; if the
 * mount goes away meanwhile, that ends with ENOTCONN.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "fs/fs_internal.h"
#include "util/file.h"
#include "util/log.h"

/*
 * The kernel's 128 KiB make large files slow (T13), many megabytes hurt mappings and random readers
 * (T14).
 */
#define READAHEAD_KIB 1024

/* Needs the right to write to /sys; without it, all works with smaller requests. */
static void raise_readahead(const char *mountpoint)
{
	_ds_cleanup_close_ int fd = -1;
	struct statx stx;
	char path[64], text[32];
	ssize_t n;

	/* Without asking the file system: attributes of the root may not be local yet. */
	if (statx(AT_FDCWD, mountpoint, AT_STATX_DONT_SYNC, 0, &stx) < 0)
		return;
	snprintf(path, sizeof(path), "/sys/class/bdi/%u:%u/read_ahead_kb", stx.stx_dev_major,
		 stx.stx_dev_minor);
	fd = open(path, O_RDWR | O_CLOEXEC);
	n = fd >= 0 ? pread(fd, text, sizeof(text) - 1, 0) : -1;
	if (n <= 0)
		return;
	text[n] = '\0';
	if (strtol(text, NULL, 10) >= READAHEAD_KIB)
		return;
	n = snprintf(text, sizeof(text), "%d", READAHEAD_KIB);
	if (pwrite(fd, text, (size_t)n, 0) < 0)
		ds_log_debug("the readahead of %s cannot be raised", mountpoint);
}

static void run_ready(struct ds_work_item *item)
{
	struct ds_fs *fs = ds_container_of(item, struct ds_fs, ready_work);
	struct statvfs vfs;

	if (statvfs(fs->options.mountpoint, &vfs) < 0)
		return;
	fs->refusal = fs_uring_settle(fs);
	if (fs->refusal) {
		fuse_session_exit(fs->session);
		return;
	}
	fs->is_ready = true;
	raise_readahead(fs->options.mountpoint);
	if (fs->options.ready)
		fs->options.ready(fs->options.ctx, fs->how);
}

void fs_ready_start(struct ds_fs *fs)
{
	fs->ready_work.run = run_ready;
	ds_list_init(&fs->ready_work.node);
	ds_work_submit(fs->work, &fs->ready_work, true);
}
