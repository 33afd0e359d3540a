/*
 * How the kernel reaches the bytes: what is asked of it at INIT, and which mode the mount is in.
 *
 * classic       every open is asked for, every read that is not in the kernel's page cache comes here
 * stateless     open and opendir are answered ENOSYS, and the kernel never asks again: best for small files
 * passthrough   opens are asked for; a large file that the cache has whole is read by the kernel itself
 *
 * See Documentation/filesystems/fuse/fuse-passthrough.rst of Linux for the last; it needs Linux 6.9, libfuse 3.17 and
 * CAP_SYS_ADMIN in the machine's own user namespace.
 */
#include <errno.h>
#include <linux/capability.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "fs/fs_internal.h"
#include "util/clock.h"
#include "util/error.h"
#include "util/log.h"

/* Files over 4 MiB have images of their own; their sizes have this many bits or more (schema/README.md, `size_N`). */
#define LARGE_BITS 23u

/* A cache on overlayfs is one level already, and the mount itself one more, so that nothing could be stacked on it. */
#define STACK_DEPTH 1u

/* FUSE_PASSTHROUGH of include/uapi/linux/fuse.h: protocol 7.40, Linux 6.9. */
#define PASSTHROUGH_MAJOR 6u
#define PASSTHROUGH_MINOR 9u

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

/* The inode of the machine's user namespace: PROC_USER_INIT_INO of Linux's include/linux/proc_ns.h. */
#define MACHINE_USER_NS_INO 0xEFFFFFFDu

/* What fuse_backing_open of fs/fuse/backing.c asks for is capable(): a container's root has it in the container's namespace only. */
static enum fs_admin which_admin(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {0};
	struct stat st;

	if (syscall(SYS_capget, &header, data) < 0 ||
	    !(data[CAP_TO_INDEX(CAP_SYS_ADMIN)].effective & CAP_TO_MASK(CAP_SYS_ADMIN)))
		return FS_ADMIN_NONE;
	return stat("/proc/self/ns/user", &st) == 0 && st.st_ino != MACHINE_USER_NS_INO
		       ? FS_ADMIN_NAMESPACE
		       : FS_ADMIN_MACHINE;
}

/* On another one; f_type as in linux/magic.h. */
static bool is_stacked(const char *dir)
{
	struct statfs st;

	return dir && statfs(dir, &st) == 0 &&
	       (st.f_type == OVERLAYFS_SUPER_MAGIC || st.f_type == ECRYPTFS_SUPER_MAGIC);
}

/* What this process and the cache lack; of the kernel INIT tells, which knows of features that a distribution has put into an older one. */
static const char *own_lack(enum fs_admin admin, const char *cache_dir)
{
	if (!HAS_PASSTHROUGH)
		return "passthrough needs libfuse 3.17: build with the bundled one";
	if (admin == FS_ADMIN_NONE)
		return "passthrough needs CAP_SYS_ADMIN: mount as root";
	if (admin == FS_ADMIN_NAMESPACE)
		return "passthrough needs CAP_SYS_ADMIN, and not of a user namespace alone, as a "
		       "rootless container has it: mount as root outside of it";
	if (is_stacked(cache_dir))
		return "passthrough needs a cache that is not on a stacked file system, such as "
		       "overlayfs: give -o cache_dir=";
	return NULL;
}

const char *fs_kernel_lack(enum fs_admin admin, const char *cache_dir, const char *release)
{
	unsigned major = 0, minor = 0;
	const char *lack = own_lack(admin, cache_dir);

	if (lack)
		return lack;
	if (sscanf(release, "%u.%u", &major, &minor) < 1 || major < PASSTHROUGH_MAJOR ||
	    (major == PASSTHROUGH_MAJOR && minor < PASSTHROUGH_MINOR))
		return "passthrough needs Linux 6.9";
	return NULL;
}

const char *ds_fs_no_passthrough(const char *cache_dir)
{
	struct utsname name;

	return fs_kernel_lack(which_admin(), cache_dir, uname(&name) == 0 ? name.release : "");
}

/* A wait of this thread, which is not one of FUSE's. */
struct arrival {
	pthread_mutex_t mutex;
	pthread_cond_t cond;
	bool is_over; /* under mutex, and so is */
	int result;
};

static void on_arrived(struct ds_demand *demand, int result, void *ctx)
{
	struct arrival *arrival = ctx;

	(void)demand;
	pthread_mutex_lock(&arrival->mutex);
	arrival->result = result;
	arrival->is_over = true;
	pthread_cond_signal(&arrival->cond);
	pthread_mutex_unlock(&arrival->mutex);
}

static int await(struct ds_demand *demand, uint64_t deadline_ns)
{
	struct arrival arrival = {.is_over = false};
	int r;

	pthread_mutex_init(&arrival.mutex, NULL);
	pthread_cond_init(&arrival.cond, NULL);
	r = ds_demand_wait(demand, deadline_ns, on_arrived, &arrival);
	if (r == 0) {
		pthread_mutex_lock(&arrival.mutex);
		while (!arrival.is_over)
			pthread_cond_wait(&arrival.cond, &arrival.mutex);
		r = arrival.result;
		pthread_mutex_unlock(&arrival.mutex);
	}
	pthread_cond_destroy(&arrival.cond);
	pthread_mutex_destroy(&arrival.mutex);
	return r;
}

static uint64_t gets_n(struct ds_fs *fs)
{
	struct ds_fetcher_stats stats;

	ds_fetcher_get_stats(fs->fetcher, &stats);
	return stats.gets_n;
}

/*
 * Bytes in files that are not large, from the histogram of sizes: at most 22 rows of one page of the manifest, however many files
 * there are. A commit puts that page, and those on the way to it, on the record's prefetch list, which came in one GET when the view was
 * opened; what is waited for is that the fetcher hands it over. Where it did not come, since the cache had the index's root, that GET is made here if
 * something is missing, beside the one GET of what read-ahead has queued by then. So this takes one round trip at most, and where a record
 * without a list would make it more, it is given up: -DS_E_NOT_LOCAL.
 */
static int count_small(struct ds_fs *fs, uint64_t *ret_bytes)
{
	uint64_t deadline_ns = ds_deadline_in_ms(fs->options.timeout_ms);
	uint64_t bytes = 0, files_n, most_n = gets_n(fs) + (fs->record->prefetch_n > 0);
	struct ds_demand demand;
	unsigned bits = 1;
	char key[16];
	int r = 0;

	ds_demand_init(&demand, fs->view);
	while (r == 0 && bits < LARGE_BITS) {
		snprintf(key, sizeof(key), "size_%u", bits);
		r = ds_view_total(fs->view, &demand, key, &files_n);
		if (r == -DS_E_NOT_LOCAL && demand.targets_n && gets_n(fs) <= most_n) {
			ds_view_fetch_listed(fs->view, fs->record);
			r = await(&demand, deadline_ns);
		} else if (r == 0) {
			if (files_n <= fs->record->totals.files_n)
				bytes += files_n * (UINT64_C(3) << bits) / 4;
			bits++;
		}
	}
	ds_demand_release(&demand);
	if (r == 0)
		*ret_bytes = bytes;
	return r;
}

void fs_kernel_prepare(struct ds_fs *fs)
{
	const struct ds_version_totals *totals = &fs->record->totals;
	uint64_t small_bytes;
	int r;

	if (fs->options.mode != DS_FS_AUTO)
		return;
	r = count_small(fs, &small_bytes);
	if (r == 0) {
		fs->is_large = totals->bytes && small_bytes < totals->bytes / 2;
		fs->why_size = fs->is_large ? "most bytes are in large files"
					    : "most bytes are in small files";
		return;
	}
	ds_log_debug("the sizes of the version's files: %s", ds_strerror(r));
	fs->is_large = totals->files_n && totals->bytes / totals->files_n >= DS_CHUNK_MAX;
	fs->why_size = fs->is_large ? "the mean file is large, and more is not known yet"
				    : "the mean file is small, and more is not known yet";
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
	const char *missing = own_lack(which_admin(), fs->options.cache_dir), *why = fs->why_size;
	bool is_stateless = conn->capable & FUSE_CAP_NO_OPEN_SUPPORT &&
			    conn->capable & FUSE_CAP_NO_OPENDIR_SUPPORT;

	fs->mode = wanted;
	if (wanted == DS_FS_PASSTHROUGH || (wanted == DS_FS_AUTO && fs->is_large)) {
		if (!missing && !start_passthrough(conn))
			missing =
				"the kernel offers no passthrough: it needs Linux 6.9, built with "
				"CONFIG_FUSE_PASSTHROUGH";
		if (missing)
			why = missing;
		else
			fs->mode = DS_FS_PASSTHROUGH;
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
	/* libfuse has 256 pages here, of whatever size, and tells the kernel as many for its largest read: no buffer need be larger. */
	conn->max_write = DS_MIN(conn->max_write, (unsigned)FS_READ_MAX);
	/* Parked reads must not use up what the kernel lets run in the background (T5). */
	conn->max_background = 4096;
	conn->congestion_threshold = 3072;
	conn->time_gran = 1;
	fs_uring_init(fs, conn);
}
