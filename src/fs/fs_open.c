/*
 * Opens, and which of them the kernel serves from the cache's file itself.
 *
 * INV-1 All handles of an inode that are open at the same time are of one kind, cached or passthrough with one backing id: else the
 *       kernel answers the open with EIO (T46). The first one decides. The table counts an inode's handles from before the
 *       reply to the open until after the kernel has let go, so that it never believes an inode closed that is open.
 * INV-2 Only large files in passthrough mode are in the table.
 * INV-3 What the kernel reads by itself is not evicted while it is open: its bytes would stay on the disk, uncounted. (Nor while it is
 *       mapped only: image_evict.c.)
 * INV-4 What holds it is a descriptor for each such file: of these there are no more than a quarter of all that may be open, so that
 *       programs that keep many files open leave enough for everything else. Whatever is beyond it is answered cached.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "fs/fs_internal.h"
#include "util/error.h"
#include "util/file.h"
#include "util/log.h"
#include "util/mem.h"

/* Linux 6.9, include/uapi/linux/fuse.h. */
#ifndef FUSE_DEV_IOC_BACKING_CLOSE
#define FUSE_DEV_IOC_BACKING_CLOSE _IOW(229, 2, uint32_t)
#endif

struct open_file {
	uint64_t handles_n;
	int backing_id; /* 0: cached */
	int hold_fd;	/* of ds_view_backing; -1: none */
};

static void free_file(void *value)
{
	struct open_file *file = value;

	if (file)
		ds_close_ptr(&file->hold_fd);
	ds_free(file);
}

int fs_open_init(struct ds_fs *fs)
{
	struct rlimit limit = {.rlim_cur = RLIM_INFINITY};

	getrlimit(RLIMIT_NOFILE, &limit);
	fs->opens.backings_max = limit.rlim_cur / 4;
	pthread_mutex_init(&fs->opens.mutex, NULL);
	return ds_map_new(&fs->opens.files);
}

void fs_open_end(struct ds_fs *fs)
{
	ds_map_free(fs->opens.files, free_file);
	pthread_mutex_destroy(&fs->opens.mutex);
}

/* 0: the kernel does not take it. */
static int register_backing(struct ds_fs *fs, fuse_req_t req, int fd)
{
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)
	int id;

	errno = 0;
	id = fuse_passthrough_open(req, fd);
	if (id > 0)
		return id;
	/* The same for every file, so said once: no privilege after all, or the cache is on a stacked file system. What else there is
	 * (EMFILE, ENOMEM) goes by. */
	if ((errno == EPERM || errno == ELOOP || errno == EOPNOTSUPP) &&
	    !atomic_exchange(&fs->opens.is_off, true))
		ds_log_warning("the kernel does not read the cache's files itself: %s%s",
			       strerror(errno),
			       errno == ELOOP ? " (the cache is on a stacked file system, such as "
						"overlayfs: give -o cache_dir=)"
					      : "");
	return 0;
#else
	(void)fs, (void)req, (void)fd;
	return 0;
#endif
}

/* As fuse_passthrough_close, but without a request: that of an open whose reply has failed is gone. */
static void unregister_backing(struct ds_fs *fs, int id)
{
	uint32_t number = (uint32_t)id;

	if (id && ioctl(fuse_session_fd(fs->session), FUSE_DEV_IOC_BACKING_CLOSE, &number) < 0)
		ds_log_debug("a file of the cache stays with the kernel: %s", strerror(errno));
}

/* One more handle of an inode that is open, or the first, with a file (data_fd -1: none) to read from, whose hold_fd is taken over. */
static int add_handle_locked(struct ds_fs *fs, fuse_req_t req, uint64_t ino,
			     struct ds_view_backing *backing, int *ret_backing_id)
{
	struct open_file *file = ds_map_get(fs->opens.files, &ino, sizeof(ino));

	if (!file) {
		file = ds_calloc(1, sizeof(*file));
		if (!file)
			return -ENOMEM;
		if (ds_map_put(fs->opens.files, &ino, sizeof(ino), file, NULL) < 0) {
			ds_free(file);
			return -ENOMEM;
		}
		file->hold_fd = -1;
		if (backing->data_fd >= 0 && fs->opens.backings_n < fs->opens.backings_max)
			file->backing_id = register_backing(fs, req, backing->data_fd);
		if (file->backing_id) {
			file->hold_fd = backing->hold_fd;
			backing->hold_fd = -1;
			fs->opens.backings_n++;
		}
	}
	file->handles_n++;
	*ret_backing_id = file->backing_id;
	return 0;
}

void fs_open_release(struct ds_fs *fs, uint64_t ino)
{
	struct open_file *file;

	pthread_mutex_lock(&fs->opens.mutex);
	file = ds_map_get(fs->opens.files, &ino, sizeof(ino));
	if (file && --file->handles_n == 0) {
		unregister_backing(fs, file->backing_id);
		fs->opens.backings_n -= file->backing_id != 0;
		free_file(ds_map_remove(fs->opens.files, &ino, sizeof(ino)));
	}
	pthread_mutex_unlock(&fs->opens.mutex);
}

/* Whether the first handle of this inode, which decides, may be one for the kernel. */
static bool may_pass(struct ds_fs *fs, uint64_t ino)
{
	bool may;

	pthread_mutex_lock(&fs->opens.mutex);
	may = !fs->opens.is_off && fs->opens.backings_n < fs->opens.backings_max &&
	      !ds_map_get(fs->opens.files, &ino, sizeof(ino));
	pthread_mutex_unlock(&fs->opens.mutex);
	return may;
}

static int reply_large(struct fs_request *request, struct ds_view_backing *backing)
{
	struct fuse_file_info fi = {.noflush = 1, .fh = FS_OPEN_COUNTED};
	struct ds_fs *fs = request->fs;
	int backing_id, r;

	pthread_mutex_lock(&fs->opens.mutex);
	r = add_handle_locked(fs, request->req, request->ino, backing, &backing_id);
	pthread_mutex_unlock(&fs->opens.mutex);
	if (r < 0)
		return r;
	/* What the kernel reads itself, it need not keep twice. */
	fi.keep_cache = backing_id == 0;
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)
	fi.backing_id = backing_id;
#endif
	fs->stats.passthrough_opens_n += backing_id != 0;
	/* An open that was interrupted gets no release. */
	if (fuse_reply_open(request->req, &fi) < 0)
		fs_open_release(fs, request->ino);
	return 0;
}

int fs_run_open(struct fs_request *request)
{
	struct fuse_file_info fi = {.keep_cache = 1, .noflush = 1};
	struct ds_fs *fs = request->fs;
	struct ds_view_backing backing = {.data_fd = -1, .hold_fd = -1};
	struct ds_entry entry;
	int r = ds_view_get(fs->view, &request->demand, request->ino, &entry);

	if (r < 0)
		return r;
	if (entry.type != DS_ENTRY_FILE || entry.extents_n == 0) {
		fuse_reply_open(request->req, &fi);
		return 0;
	}
	if (may_pass(fs, request->ino)) {
		r = ds_view_backing(fs->view, &request->demand, request->ino, &backing);
		if (r == -DS_E_NOT_LOCAL || r == -ENOMEM)
			return r;
		/* Whatever is wrong with it, reads will tell. */
	}
	r = reply_large(request, &backing);
	ds_close_ptr(&backing.data_fd);
	ds_close_ptr(&backing.hold_fd);
	return r;
}
