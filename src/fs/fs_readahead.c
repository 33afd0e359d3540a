/*
 * How far the kernel reads ahead of who reads a file in order.
 *
 * The kernel gives a new FUSE mount 128 KiB (VM_READAHEAD_PAGES), offers that at INIT, and takes the smaller of it and of
 * the reply (fs/fuse/inode.c, process_init_reply): a reply can lower it only. What raises it is the mount's entry in
 * /sys/class/bdi, root's to write.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fs/fs_internal.h"
#include "util/buf.h"
#include "util/file.h"
#include "util/log.h"
#include "util/str.h"

#define KERNEL_KIB 128u

const char *ds_fs_no_readahead(void)
{
	if (access("/sys/class/bdi", F_OK) < 0)
		return "the kernel reads 128 KiB ahead: more needs /sys";
	if (geteuid() != 0)
		return "the kernel reads 128 KiB ahead: more needs root, who can mount, or raise "
		       "it as the mount's log line says";
	if (access("/sys/class/bdi", W_OK) < 0)
		return "the kernel reads 128 KiB ahead: /sys is read-only here; mount it "
		       "writable, or raise it on the host as the mount's log line says";
	return NULL;
}

/* What the entry says; 0: it cannot be read. */
static uint64_t read_kib(const char *path)
{
	_ds_cleanup_buf_ struct ds_buf buf = DS_BUF_INIT(64);

	return ds_file_read_at(AT_FDCWD, path, &buf) < 0 ? 0 : strtoull(ds_buf_str(&buf), NULL, 10);
}

static void write_kib(const char *path, uint64_t kib)
{
	_ds_cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);
	char text[32];
	int n = snprintf(text, sizeof(text), "%" PRIu64, kib);

	if (fd >= 0 && pwrite(fd, text, (size_t)n, 0) < 0)
		ds_log_debug("%s cannot be written", path);
}

void fs_readahead_set(struct ds_fs *fs)
{
	uint64_t asked_kib = fs->options.readahead_bytes / 1024;
	uint64_t wanted_kib = asked_kib ? asked_kib : DS_FS_READAHEAD_BYTES / 1024, kib;
	size_t len = strlen(fs->how);
	char path[64] = "", is[32];
	struct statx stx;

	/* Without asking the file system: attributes of the root may not be local yet. */
	if (statx(AT_FDCWD, fs->options.mountpoint, AT_STATX_DONT_SYNC, 0, &stx) == 0)
		snprintf(path, sizeof(path), "/sys/class/bdi/%u:%u/read_ahead_kb",
			 stx.stx_dev_major, stx.stx_dev_minor);
	kib = read_kib(path);
	if (asked_kib ? kib != wanted_kib : kib < wanted_kib)
		write_kib(path, wanted_kib);
	kib = read_kib(path);
	/* It cannot be seen here: it is as INIT has left it. */
	if (!kib)
		kib = DS_MIN(wanted_kib, KERNEL_KIB);
	ds_format_size(kib * 1024, is, sizeof(is));
	if (kib >= wanted_kib)
		snprintf(fs->how + len, sizeof(fs->how) - len, "; readahead %s", is);
	else
		snprintf(fs->how + len, sizeof(fs->how) - len,
			 "; readahead %s, the kernel's own: as root 'echo %" PRIu64 " > %s'", is,
			 wanted_kib, path);
}
