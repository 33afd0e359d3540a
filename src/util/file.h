/*
 * Files: complete reads and writes, atomic creation, and opening below a directory without following
 * links. All calls block on the disk. Errors are negated errnos. Threads: any.
 */
#ifndef DS_UTIL_FILE_H
#define DS_UTIL_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "util/buf.h"

/* Closes and sets to -1; -1 is allowed. Keeps errno. For `_ds_cleanup_close_ int fd = -1;` */
void ds_close_ptr(int *fd);
#define _ds_cleanup_close_ __attribute__((cleanup(ds_close_ptr)))

/* All bytes or an error; EINTR is retried. The first two stop early only at the end of the file. */
int ds_read_full(int fd, void *ret_data, size_t len_bytes, size_t *ret_n);
int ds_pread_full(int fd, void *ret_data, size_t len_bytes, uint64_t off, size_t *ret_n);
int ds_write_full(int fd, const void *data, size_t len_bytes);
int ds_pwrite_full(int fd, const void *data, size_t len_bytes, uint64_t off);
/* All of it, and only from page cache. -EAGAIN: it is not there, or the file ends before, or anything else is wrong: ds_pread_full
 * tells. Waits for the disk only where the file system does not know RWF_NOWAIT. */
int ds_pread_now(int fd, void *ret_data, size_t len_bytes, uint64_t off);

/* The whole regular file behind an open descriptor or below dir_fd (AT_FDCWD is allowed; symlinks
 * are followed only by the first) appended to `buf`; -DS_E_LIMIT beyond the buffer's maximum. A
 * FIFO, device or directory is -EINVAL and never blocks. */
int ds_file_read_fd(int fd, struct ds_buf *buf);
int ds_file_read_at(int dir_fd, const char *path, struct ds_buf *buf);

/*
 * Creates `name` in dir_fd with these bytes, complete or not at all, also over a crash: a temporary
 * file in the same directory, fsync, then link (new only: -EEXIST if it is there) or rename
 * (replaces), then fsync of the directory. With sync false nothing is fsynced.
 */
enum ds_file_write { DS_FILE_NEW_ONLY, DS_FILE_REPLACE };
int ds_file_write_atomic(int dir_fd, const char *name, const void *data, size_t len_bytes,
			 mode_t mode, enum ds_file_write how, bool sync);

/* mkdir -p below dir_fd (AT_FDCWD and absolute paths are allowed); no error if it is there. */
int ds_mkdir_p(int dir_fd, const char *path, mode_t mode);

/* Calls fn for each name but . and .. in a directory (no symlink), in no order, with the directory's descriptor, which is closed afterwards.
 * The first that is not 0 ends it and is returned; or -errno of opening. */
typedef int ds_entry_fn(void *ctx, int dir_fd, const char *name);
int ds_each_entry_at(int dir_fd, const char *path, ds_entry_fn *fn, void *ctx);

/* Device of what is mounted at a path, from the kernel's memory: asks no file system, and has autofs mount nothing. 0: not known. */
dev_t ds_mount_device(const char *path);

/*
 * Whether others have the file open: asks for a lease (fcntl(2), "Leases") and gives it back at once. F_RDLCK, through a descriptor
 * that only reads, is granted where nobody has the file open for writing, or mapped so; F_WRLCK where nobody else has it open at
 * all, be it in the kernel. 0: granted. -EAGAIN: somebody has; on NFS and SMB also what the server has not delegated. Else -errno: no
 * leases there, or none for this user (they are for the owner, and root).
 * Who opens the file in the moment between waits, or with O_NONBLOCK is told EWOULDBLOCK; this process then gets SIGURG,
 * which does nothing: SIGIO would end it.
 */
int ds_try_lease(int fd, int type);

/* Removes a directory with everything below it, without following links. No error if absent. */
int ds_rmtree_at(int dir_fd, const char *path);

/* fsync of the directory itself, so that names in it survive a crash. */
int ds_fsync_dir(int dir_fd);

#endif
