/*
 * How the kernel reaches the bytes: what is asked of it at INIT, and which mode the mount is in.
 *
 * classic       every open is asked for, every read that is not in the kernel's page cache comes here
 * stateless     open and opendir are answered ENOSYS, and the kernel never asks again: best for small files
 * passthrough   opens are asked for; a large file that the cache has whole is read by the kernel itself
 *
 * See Documentation/filesystems/fuse/fuse-passthrough.rst of Linux for the last; it needs Linux 6.9, libfuse 3.17 and
 * CAP_SYS_ADMIN.
 */
#include <errno.h>
#include <linux/capability.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fs/fs_internal.h"
#include "util/error.h"
#include "util/log.h"

/* Files over 4 MiB have images of their own; their sizes have this many bits or more (schema/README.md, `size_N`). */
#define LARGE_BITS 23u

/* A cache on overlayfs is one level already, and the mount itself one more, so that nothing could be stacked on it. */
#define STACK_DEPTH 1u

#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)
#define HAS_PASSTHROUGH 1
#else
#define HAS_PASSTHROUGH 0
#endif

static const char *const names[] = {[DS_FS_AUTO] = "auto",
				    [DS_FS_CLASSIC] = "classic",
				    [DS_FS_STATELESS] = "stateless",
				    [DS_FS_PASSTHROUGH] = "passthrough"};

int ds_fs_mode_parse(const char *text, enum ds_fs_mode *ret_mode)
{
	for (size_t i = 0; i < DS_ARRAY_SIZE(names); i++) {
		if (strcmp(text, names[i]) == 0) {
			*ret_mode = (enum ds_fs_mode)i;
			return 0;
		}
	}
	return -EINVAL;
}

static bool is_admin(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {0};

	return syscall(SYS_capget, &header, data) == 0 &&
	       data[CAP_TO_INDEX(CAP_SYS_ADMIN)].effective & CAP_TO_MASK(CAP_SYS_ADMIN);
}

const char *ds_fs_no_passthrough(void)
{
	if (!HAS_PASSTHROUGH)
		return "passthrough needs libfuse 3.17: build with the bundled one";
	if (!is_admin())
		return "passthrough needs CAP_SYS_ADMIN: mount as root";
	return NULL;
}

/* Whether most bytes of the version are in large files, from its histogram of sizes; where that is not local yet, from the mean. */
static bool is_large(struct ds_fs *fs)
{
	const struct ds_version_totals *totals = &fs->record->totals;
	uint64_t small_bytes = 0, files_n;
	struct ds_demand demand;
	char key[16];
	int r = 0;

	ds_demand_init(&demand, fs->view);
	for (unsigned bits = 1; bits < LARGE_BITS && r == 0; bits++) {
		snprintf(key, sizeof(key), "size_%u", bits);
		r = ds_view_total(fs->view, &demand, key, &files_n);
		if (r == 0 && files_n <= totals->files_n)
			small_bytes += files_n * (UINT64_C(3) << bits) / 4;
	}
	ds_demand_release(&demand);
	if (r < 0)
		return totals->files_n && totals->bytes / totals->files_n >= DS_CHUNK_MAX;
	return totals->bytes && small_bytes < totals->bytes / 2;
}

void fs_kernel_prepare(struct ds_fs *fs)
{
	fs->is_large = fs->options.mode == DS_FS_AUTO && is_large(fs);
}

static void set_features(struct fuse_conn_info *conn, unsigned wanted, unsigned unwanted)
{
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)
	for (unsigned bit = 0; bit < 32; bit++) {
		if (wanted & 1u << bit)
			fuse_set_feature_flag(conn, UINT64_C(1) << bit);
		if (unwanted & 1u << bit)
			fuse_unset_feature_flag(conn, UINT64_C(1) << bit);
	}
#else
	conn->want |= conn->capable & wanted;
	conn->want &= ~unwanted;
#endif
}

static bool start_passthrough(struct fuse_conn_info *conn)
{
#if HAS_PASSTHROUGH
	if (!fuse_set_feature_flag(conn, FUSE_CAP_PASSTHROUGH))
		return false;
	conn->max_backing_stack_depth = STACK_DEPTH;
	return true;
#else
	(void)conn;
	return false;
#endif
}

static void choose(struct ds_fs *fs, struct fuse_conn_info *conn)
{
	enum ds_fs_mode wanted = fs->options.mode;
	const char *missing = ds_fs_no_passthrough(), *why = "most bytes are in small files";
	bool is_stateless = conn->capable & FUSE_CAP_NO_OPEN_SUPPORT &&
			    conn->capable & FUSE_CAP_NO_OPENDIR_SUPPORT;

	fs->mode = wanted;
	if (wanted == DS_FS_PASSTHROUGH || (wanted == DS_FS_AUTO && fs->is_large)) {
		if (!missing && !start_passthrough(conn))
			missing = "passthrough needs Linux 6.9";
		if (!missing)
			fs->mode = DS_FS_PASSTHROUGH;
		why = missing ? missing : "most bytes are in large files";
	}
	if (wanted == DS_FS_AUTO && fs->mode == DS_FS_AUTO)
		fs->mode = is_stateless ? DS_FS_STATELESS : DS_FS_CLASSIC;
	if (wanted == DS_FS_STATELESS && !is_stateless)
		fs->refusal = "the kernel is too old for kernel=stateless";
	else if (wanted == DS_FS_PASSTHROUGH)
		fs->refusal = missing;
	snprintf(fs->how, sizeof(fs->how), "kernel=%s, %s", names[fs->mode],
		 wanted == DS_FS_AUTO ? why : "as asked");
}

void fs_kernel_init(struct ds_fs *fs, struct fuse_conn_info *conn)
{
	/* Readdirplus always: what is listed is looked at next (T17). */
	set_features(conn,
		     FUSE_CAP_READDIRPLUS | FUSE_CAP_PARALLEL_DIROPS | FUSE_CAP_ASYNC_READ |
			     FUSE_CAP_CACHE_SYMLINKS | FUSE_CAP_EXPORT_SUPPORT,
		     FUSE_CAP_READDIRPLUS_AUTO | FUSE_CAP_AUTO_INVAL_DATA | FUSE_CAP_SPLICE_READ |
			     FUSE_CAP_ATOMIC_O_TRUNC | FUSE_CAP_WRITEBACK_CACHE);
	choose(fs, conn);
	/* The kernel takes the smaller of this and its own 128 KiB; fs_readahead.c has more. */
	conn->max_readahead = (unsigned)(fs->options.readahead_bytes ? fs->options.readahead_bytes
								     : DS_FS_READAHEAD_BYTES);
	/* Parked reads must not use up what the kernel lets run in the background (T5). */
	conn->max_background = 4096;
	conn->congestion_threshold = 3072;
	conn->time_gran = 1;
	fs_uring_init(fs, conn);
}
