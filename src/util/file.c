#include "util/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

#include "util/error.h"
#include "util/mem.h"
#include "util/random.h"

void ds_close_ptr(int *fd)
{
	int saved_errno = errno;

	if (*fd >= 0)
		close(*fd);
	*fd = -1;
	errno = saved_errno;
}

int ds_read_full(int fd, void *ret_data, size_t len_bytes, size_t *ret_n)
{
	size_t done = 0;

	while (done < len_bytes) {
		ssize_t n = read(fd, (char *)ret_data + done, len_bytes - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		done += (size_t)n;
	}
	*ret_n = done;
	return 0;
}

int ds_pread_full(int fd, void *ret_data, size_t len_bytes, uint64_t off, size_t *ret_n)
{
	size_t done = 0;

	while (done < len_bytes) {
		ssize_t n =
			pread(fd, (char *)ret_data + done, len_bytes - done, (off_t)(off + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		done += (size_t)n;
	}
	*ret_n = done;
	return 0;
}

int ds_pread_now(int fd, void *ret_data, size_t len_bytes, uint64_t off)
{
	struct iovec iov = {.iov_base = ret_data, .iov_len = len_bytes};
	ssize_t n = preadv2(fd, &iov, 1, (off_t)off, RWF_NOWAIT);
	size_t full_n = 0;

	if (n < 0 && errno == EOPNOTSUPP &&
	    ds_pread_full(fd, ret_data, len_bytes, off, &full_n) == 0)
		n = (ssize_t)full_n;
	return n == (ssize_t)len_bytes ? 0 : -EAGAIN;
}

int ds_write_full(int fd, const void *data, size_t len_bytes)
{
	const char *at = data;

	while (len_bytes) {
		ssize_t n = write(fd, at, len_bytes);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		at += n;
		len_bytes -= (size_t)n;
	}
	return 0;
}

int ds_pwrite_full(int fd, const void *data, size_t len_bytes, uint64_t off)
{
	const char *at = data;

	while (len_bytes) {
		ssize_t n = pwrite(fd, at, len_bytes, (off_t)off);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		at += n;
		off += (uint64_t)n;
		len_bytes -= (size_t)n;
	}
	return 0;
}

int ds_file_read_fd(int fd, struct ds_buf *buf)
{
	struct stat st;
	int r;

	if (fstat(fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode))
		return -EINVAL;
	/* One byte more than it should have, to see the end; the file may still grow meanwhile. */
	for (;;) {
		size_t want = DS_MIN((size_t)65536, buf->max_bytes - buf->len_bytes), n = 0;

		if (want == 0) {
			char more;

			r = ds_read_full(fd, &more, 1, &n);
			return r < 0 ? r : n ? -DS_E_LIMIT : 0;
		}
		r = ds_buf_reserve(buf, want);
		if (r < 0)
			return r;
		r = ds_read_full(fd, buf->data + buf->len_bytes, want, &n);
		if (r < 0)
			return r;
		buf->len_bytes += n;
		buf->data[buf->len_bytes] = '\0';
		if (n < want)
			return 0;
	}
}

int ds_file_read_at(int dir_fd, const char *path, struct ds_buf *buf)
{
	_ds_cleanup_close_ int fd = -1;

	fd = openat(dir_fd, path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0)
		return -errno;
	return ds_file_read_fd(fd, buf);
}

int ds_try_lease(int fd, int type)
{
	if (fcntl(fd, F_SETSIG, SIGURG) < 0 || fcntl(fd, F_SETLEASE, type) < 0)
		return -errno;
	fcntl(fd, F_SETLEASE, F_UNLCK);
	return 0;
}

int ds_fsync_dir(int dir_fd)
{
	return fsync(dir_fd) < 0 ? -errno : 0;
}

static int write_and_close(int fd, const void *data, size_t len_bytes, bool sync)
{
	int r = ds_write_full(fd, data, len_bytes);

	if (r == 0 && sync && fsync(fd) < 0)
		r = -errno;
	if (close(fd) < 0 && r == 0)
		r = -errno;
	return r;
}

int ds_file_write_atomic(int dir_fd, const char *name, const void *data, size_t len_bytes,
			 mode_t mode, enum ds_file_write how, bool sync)
{
	char tmp[64];
	int fd, r;

	snprintf(tmp, sizeof(tmp), ".tmp-%016llx", (unsigned long long)ds_random_u64());
	fd = openat(dir_fd, tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);
	if (fd < 0)
		return -errno;
	r = write_and_close(fd, data, len_bytes, sync);
	if (r == 0 && how == DS_FILE_NEW_ONLY && linkat(dir_fd, tmp, dir_fd, name, 0) < 0)
		r = -errno;
	if (r == 0 && how == DS_FILE_REPLACE && renameat(dir_fd, tmp, dir_fd, name) < 0)
		r = -errno;
	if (r < 0 || how == DS_FILE_NEW_ONLY)
		unlinkat(dir_fd, tmp, 0);
	if (r == 0 && sync)
		r = ds_fsync_dir(dir_fd);
	return r;
}

int ds_mkdir_p(int dir_fd, const char *path, mode_t mode)
{
	_ds_cleanup_free_ char *copy = ds_strdup(path);
	struct stat st;

	if (!copy)
		return -ENOMEM;
	for (char *at = copy + 1; *copy; at++) {
		char c = *at;

		if (c != '/' && c != '\0')
			continue;
		*at = '\0';
		if (mkdirat(dir_fd, copy, mode) < 0 && errno != EEXIST) {
			/* A read-only parent answers EROFS although the directory is there. */
			int err = errno;

			if (fstatat(dir_fd, copy, &st, 0) < 0 || !S_ISDIR(st.st_mode))
				return -err;
		}
		*at = c;
		if (c == '\0')
			break;
	}
	if (fstatat(dir_fd, path, &st, 0) < 0)
		return -errno;
	return S_ISDIR(st.st_mode) ? 0 : -ENOTDIR;
}

int ds_each_entry_at(int dir_fd, const char *path, ds_entry_fn *fn, void *ctx)
{
	struct dirent *entry;
	int fd, r = 0;
	DIR *dir;

	fd = openat(dir_fd, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	dir = fdopendir(fd);
	if (!dir) {
		r = -errno;
		close(fd);
		return r;
	}
	while (r == 0 && (entry = readdir(dir)))
		if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
			r = fn(ctx, dirfd(dir), entry->d_name);
	closedir(dir);
	return r;
}

dev_t ds_mount_device(const char *path)
{
	struct statx stx;

	if (statx(AT_FDCWD, path, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, 0, &stx) < 0)
		return 0;
	return makedev(stx.stx_dev_major, stx.stx_dev_minor);
}

static int rm_entry(void *ctx, int dir_fd, const char *name)
{
	(void)ctx;
	return ds_rmtree_at(dir_fd, name);
}

/* Depth is bounded by what the kernel lets a path of ours become; each level holds one descriptor. */
int ds_rmtree_at(int dir_fd, const char *path)
{
	int r;

	if (unlinkat(dir_fd, path, 0) == 0 || errno == ENOENT)
		return 0;
	if (errno != EISDIR && errno != EPERM)
		return -errno;
	r = ds_each_entry_at(dir_fd, path, rm_entry, NULL);
	if (r == -ENOENT)
		return 0;
	if (r == 0 && unlinkat(dir_fd, path, AT_REMOVEDIR) < 0 && errno != ENOENT)
		r = -errno;
	return r;
}
