/*
 * The directory backend: a key is a path below the root.
 *
 * INV-1 A file gets its key's name complete and synced, or not at all: temporary file in the same
 *       directory, fsync, link(2) (new only) or rename (replace), fsync of the directory.
 * INV-2 Before a PUT succeeds, the names of all directories above it are synced too, by this process
 *       even if another one made them (it may not have got that far).
 * INV-3 No component of a key is followed through a symbolic link; the root itself may be one.
 *
 * A crash leaves at most a ".tmp-*" file, which nothing reads (store_dir_tmp.c). Times are the file
 * system's. Where nothing can be made to learn it from, the machine's coarse clock is taken for it,
 * by which local file systems stamp files.
 */
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "store/store_dir.h"
#include "util/file.h"
#include "util/map.h"
#include "util/mem.h"
#include "util/str.h"

#define DIR_THREADS_N 10 /* 8 packs on their way, and index objects of theirs */
/* Directories remembered as synced; beyond, they are synced each time. packs/ has 256. */
#define SYNCED_MAX_N 4096

static struct dir_store *dir_of(struct ds_store *store)
{
	return ds_container_of(store, struct dir_store, base);
}

static struct ds_time time_of(struct timespec ts)
{
	return (struct ds_time){.s = ts.tv_sec, .ns = (uint32_t)ts.tv_nsec};
}

static struct ds_time coarse_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME_COARSE, &ts);
	return time_of(ts);
}

int ds_dir_fail(const struct dir_store *dir, struct ds_store_req *req, int code)
{
	char path[sizeof(req->diag.object)];

	snprintf(path, sizeof(path), "%s/%s", dir->path, req->key);
	return ds_diag_set(&req->diag, code, path, "%s",
			   code == -ELOOP ? "symbolic links in a store are not followed" : "");
}

/* Why a component could not be opened as a directory. */
static int why_not_directory(int dir_fd, const char *name, int err)
{
	struct stat st;

	if (err == ENOTDIR && fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
	    S_ISLNK(st.st_mode))
		return -ELOOP;
	return err == ENOENT || err == ENOTDIR ? -DS_E_ABSENT : -err;
}

int ds_dir_open_below(int dir_fd, const char *name)
{
	int fd = openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

	return fd >= 0 ? fd : why_not_directory(dir_fd, name, errno);
}

static bool is_synced(struct dir_store *dir, const char *path, size_t len)
{
	bool is;

	pthread_mutex_lock(&dir->mutex);
	is = ds_map_get(dir->locked.synced, path, len);
	pthread_mutex_unlock(&dir->mutex);
	return is;
}

static void note_synced(struct dir_store *dir, const char *path, size_t len)
{
	pthread_mutex_lock(&dir->mutex);
	/* Not remembering costs one fsync more, so that a failure does not matter. */
	if (ds_map_count(dir->locked.synced) < SYNCED_MAX_N)
		(void)ds_map_put(dir->locked.synced, path, len, dir, NULL);
	pthread_mutex_unlock(&dir->mutex);
}

/* Opens `name` in dir_fd, makes it if it is not there, and syncs its name in dir_fd (INV-2).
 * path[0..len) is its key. */
static int make_below(struct dir_store *dir, int dir_fd, const char *name, const char *path,
		      size_t len)
{
	int fd, r;

	if (mkdirat(dir_fd, name, 0777) < 0 && errno != EEXIST) {
		/* A read-only file system says EROFS even where the directory is there. */
		int err = errno;

		fd = ds_dir_open_below(dir_fd, name);
		return fd == -DS_E_ABSENT ? -err : fd;
	}
	fd = ds_dir_open_below(dir_fd, name);
	if (fd < 0)
		return fd == -DS_E_ABSENT ? -ENOTDIR : fd;
	if (is_synced(dir, path, len))
		return fd;
	r = ds_fsync_dir(dir_fd);
	if (r < 0) {
		close(fd);
		return r;
	}
	note_synced(dir, path, len);
	return fd;
}

/* Opens the directory of a key; *ret_name is the key's last component. */
int ds_dir_open_parent(struct dir_store *dir, const char *key, bool make, int *ret_fd,
		       const char **ret_name)
{
	_ds_cleanup_close_ int fd = -1;
	const char *at = key, *slash;
	char name[256];

	fd = fcntl(dir->fd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	for (; (slash = strchr(at, '/')); at = slash + 1) {
		size_t len = (size_t)(slash - at);
		int next;

		if (len == 0 || len >= sizeof(name))
			return -DS_E_ABSENT;
		memcpy(name, at, len);
		name[len] = '\0';
		if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
			return -DS_E_ABSENT;
		next = make ? make_below(dir, fd, name, key, (size_t)(slash - key))
			    : ds_dir_open_below(fd, name);
		if (next < 0)
			return next;
		close(fd);
		fd = next;
	}
	*ret_fd = fd;
	fd = -1;
	*ret_name = at;
	return 0;
}

/* Opens the file of a key for reading and looks at it. */
static int open_file(struct dir_store *dir, const char *key, int *ret_fd, struct stat *ret_st)
{
	_ds_cleanup_close_ int parent_fd = -1, fd = -1;
	const char *name;
	int r;

	if (ds_store_check_key(key, NULL) < 0)
		return -DS_E_ABSENT;
	r = ds_dir_open_parent(dir, key, false, &parent_fd, &name);
	if (r < 0)
		return r;
	fd = openat(parent_fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? -DS_E_ABSENT : -errno;
	if (fstat(fd, ret_st) < 0)
		return -errno;
	if (S_ISDIR(ret_st->st_mode))
		return -DS_E_ABSENT;
	if (!S_ISREG(ret_st->st_mode))
		return -EINVAL;
	*ret_fd = fd;
	fd = -1;
	return 0;
}

static int dir_get(struct dir_store *dir, struct ds_store_req *req)
{
	_ds_cleanup_close_ int fd = -1;
	uint64_t off, len;
	struct stat st;
	size_t n;
	int r = open_file(dir, req->key, &fd, &st);

	if (r < 0)
		return r;
	req->object_size_bytes = (uint64_t)st.st_size;
	req->modified = time_of(st.st_mtim);
	if (req->op == DS_STORE_HEAD)
		return 0;
	r = ds_store_get_range(req, req->object_size_bytes, &off, &len);
	if (r == 0)
		r = ds_buf_reserve(req->into, len);
	if (r == 0)
		r = ds_pread_full(fd, req->into->data + req->into->len_bytes, len, off, &n);
	if (r < 0)
		return r;
	if (n < len)
		return ds_diag_set(&req->diag, -DS_E_MALFORMED, NULL,
				   "the file became shorter while it was read");
	req->into->len_bytes += len;
	req->into->data[req->into->len_bytes] = '\0';
	dir->counters.received_bytes += len;
	return 0;
}

/* Gives the temporary file its name, only if the name is free. */
static int link_new(int dir_fd, const char *tmp, const char *name, int fd)
{
	struct stat st;

	if (linkat(dir_fd, tmp, dir_fd, name, 0) == 0)
		return 0;
	/* A link whose success was not told (NFS) shows in the count. */
	if (errno == EEXIST)
		return fstat(fd, &st) == 0 && st.st_nlink == 2 ? 0 : -DS_E_PRESENT;
	if (errno != EPERM && errno != EOPNOTSUPP && errno != EMLINK)
		return -errno;
	/* No hard links here (FAT, some FUSE file systems). */
	if (renameat2(dir_fd, tmp, dir_fd, name, RENAME_NOREPLACE) == 0)
		return 0;
	return errno == EEXIST ? -DS_E_PRESENT : errno == EINVAL ? -DS_E_UNSUPPORTED : -errno;
}

static int write_named(struct ds_store_req *req, int dir_fd, const char *name,
		       struct timespec *ret_now)
{
	_ds_cleanup_close_ int fd = -1;
	char tmp[DS_DIR_TMP_MAX];
	struct stat st;
	int r;

	fd = ds_dir_make_tmp(dir_fd, tmp);
	if (fd < 0)
		return fd;
	r = ds_dir_write_body(fd, req->body, req->body_len_bytes);
	if (r == 0 && fsync(fd) < 0)
		r = -errno;
	if (r == 0 && fstat(fd, &st) < 0)
		r = -errno;
	if (r == 0) {
		req->store_time = time_of(st.st_mtim);
		*ret_now = st.st_mtim;
	}
	if (r == 0 && req->if_absent)
		r = link_new(dir_fd, tmp, name, fd);
	else if (r == 0 && renameat(dir_fd, tmp, dir_fd, name) < 0)
		r = -errno;
	if (r < 0 || req->if_absent)
		unlinkat(dir_fd, tmp, 0);
	return r;
}

static int dir_put(struct dir_store *dir, struct ds_store_req *req)
{
	_ds_cleanup_close_ int parent_fd = -1;
	struct timespec now;
	const char *name;
	int r = ds_store_check_key(req->key, &req->diag);

	if (r == 0)
		r = ds_dir_open_parent(dir, req->key, true, &parent_fd, &name);
	if (r == 0)
		r = write_named(req, parent_fd, name, &now);
	/* Who is told PRESENT will build on what is there, so that it must last as well. */
	if (r == 0 || r == -DS_E_PRESENT) {
		int synced = ds_fsync_dir(parent_fd);

		r = synced < 0 ? synced : r;
	}
	if (r == 0) {
		dir->counters.sent_bytes += req->body_len_bytes;
		ds_dir_sweep_once(dir, req->key, (size_t)(name - req->key), parent_fd, now);
	}
	return r;
}

static int dir_delete(struct dir_store *dir, struct ds_store_req *req)
{
	_ds_cleanup_close_ int parent_fd = -1;
	const char *name;
	struct stat st;
	int r;

	if (ds_store_check_key(req->key, NULL) < 0)
		return 0;
	r = ds_dir_open_parent(dir, req->key, false, &parent_fd, &name);
	if (r < 0)
		return r == -DS_E_ABSENT ? 0 : r;
	if (unlinkat(parent_fd, name, 0) == 0 || errno == ENOENT)
		return 0;
	r = -errno;
	/* A directory is no object. */
	if (fstatat(parent_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(st.st_mode))
		return 0;
	return r;
}

static void dir_run(struct ds_store *store, struct ds_store_req *req)
{
	struct dir_store *dir = dir_of(store);
	int r = -EINVAL;

	dir->counters.requests_n[req->op]++;
	req->store_time = coarse_now();
	req->diag.attempts = 1;
	switch (req->op) {
	case DS_STORE_GET:
	case DS_STORE_HEAD:
		r = dir_get(dir, req);
		break;
	case DS_STORE_PUT:
		r = dir_put(dir, req);
		break;
	case DS_STORE_LIST:
		r = ds_dir_list(dir, req);
		break;
	case DS_STORE_DELETE:
		r = dir_delete(dir, req);
		break;
	}
	if (r < 0 && !req->diag.detail[0])
		ds_dir_fail(dir, req, r);
	req->result = r;
	ds_store_count_result(&dir->counters, r);
}

static int dir_start(struct ds_store *store)
{
	return ds_store_pool_start(dir_of(store)->pool);
}

static void dir_submit(struct ds_store *store, struct ds_store_req *req)
{
	ds_store_pool_submit(dir_of(store)->pool, req);
}

static void dir_cancel(struct ds_store *store, struct ds_store_req *req)
{
	ds_store_pool_cancel(dir_of(store)->pool, req);
}

static void dir_hasten(struct ds_store *store, struct ds_store_req *req)
{
	ds_store_pool_hasten(dir_of(store)->pool, req);
}

static void dir_get_stats(struct ds_store *store, struct ds_store_stats *ret_stats)
{
	ds_store_counters_get(&dir_of(store)->counters, ret_stats);
}

static const char *dir_local_path(const struct ds_store *store)
{
	return ((const struct dir_store *)store)->path;
}

static int dir_lock(struct ds_store *store, bool exclusive, int *ret_fd)
{
	struct dir_store *dir = dir_of(store);
	_ds_cleanup_close_ int fd = -1;

	fd = openat(dir->fd, "lock", O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0666);
	/* flock needs no write access; the file is there if anybody ever wrote here. */
	if (fd < 0 && (errno == EACCES || errno == EROFS))
		fd = openat(dir->fd, "lock", O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	while (flock(fd, (exclusive ? LOCK_EX : LOCK_SH) | LOCK_NB) < 0)
		if (errno != EINTR)
			return errno == EWOULDBLOCK ? -EBUSY : -errno;
	*ret_fd = fd;
	fd = -1;
	return 0;
}

static int dir_now(struct ds_store *store, struct ds_time *ret_now)
{
	struct timespec now;

	*ret_now = ds_dir_time(dir_of(store), &now) == 0 ? time_of(now) : coarse_now();
	return 0;
}

static struct dir_store *dir_free(struct dir_store *dir)
{
	ds_store_pool_free(dir->pool);
	ds_map_free(dir->locked.synced, NULL);
	ds_map_free(dir->locked.swept, NULL);
	pthread_mutex_destroy(&dir->mutex);
	ds_close_ptr(&dir->fd);
	ds_free(dir->path);
	ds_free(dir);
	return NULL;
}

static void dir_destroy(struct ds_store *store)
{
	struct dir_store *dir = dir_of(store);

	dir->pool = ds_store_pool_free(dir->pool);
	ds_store_release(&dir->base);
	dir_free(dir);
}

static const struct ds_store_ops dir_ops = {
	.start = dir_start,
	.submit = dir_submit,
	.cancel = dir_cancel,
	.hasten = dir_hasten,
	.perform = dir_run,
	.destroy = dir_destroy,
	.get_stats = dir_get_stats,
	.local_path = dir_local_path,
	.lock = dir_lock,
	.now = dir_now,
};

/* Syncs the directories above a new root, as far up as its file system goes and we may. */
static void sync_above(int root_fd)
{
	_ds_cleanup_close_ int fd = -1;
	struct stat st, above;

	fd = fcntl(root_fd, F_DUPFD_CLOEXEC, 0);
	while (fd >= 0 && fstat(fd, &st) == 0) {
		int next = openat(fd, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

		close(fd);
		fd = next;
		if (fd < 0 || fstat(fd, &above) < 0 || above.st_dev != st.st_dev ||
		    above.st_ino == st.st_ino)
			break;
		(void)fsync(fd);
	}
}

static int open_root(const char *path, bool create, int *ret_fd, struct ds_diag *reterr_diag)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), r;

	if (fd < 0 && errno == ENOENT && create) {
		r = ds_mkdir_p(AT_FDCWD, path, 0777);
		if (r < 0)
			return ds_diag_set(reterr_diag, r, path, "the directory cannot be made");
		fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (fd >= 0)
			sync_above(fd);
	}
	if (fd < 0 && errno == ENOENT)
		return ds_diag_set(reterr_diag, -DS_E_NO_REPO, path, "there is no such directory");
	if (fd < 0 && errno == ENOTDIR)
		return ds_diag_set(reterr_diag, -DS_E_NO_REPO, path, "it is not a directory");
	if (fd < 0)
		return ds_diag_set(reterr_diag, -errno, path, NULL);
	*ret_fd = fd;
	return 0;
}

int ds_store_dir_open(const char *url, const char *path, bool create, uint64_t timeout_ms,
		      struct ds_store **ret_store, struct ds_diag *reterr_diag)
{
	struct dir_store *dir = ds_calloc(1, sizeof(*dir));
	int r;

	if (!dir)
		return -ENOMEM;
	dir->fd = -1;
	pthread_mutex_init(&dir->mutex, NULL);
	r = open_root(path, create, &dir->fd, reterr_diag);
	if (r == 0) {
		dir->path = realpath(path, NULL);
		if (!dir->path)
			r = ds_diag_set(reterr_diag, -errno, path, NULL);
	}
	if (r == 0)
		r = ds_map_new(&dir->locked.synced);
	if (r == 0)
		r = ds_map_new(&dir->locked.swept);
	if (r == 0)
		r = ds_store_pool_new(&dir->base, DIR_THREADS_N, "dsfs-store", dir_run, &dir->pool);
	if (r == 0)
		r = ds_store_init(&dir->base, &dir_ops, url, timeout_ms);
	if (r < 0) {
		dir_free(dir);
		return r;
	}
	*ret_store = &dir->base;
	return 0;
}
