/*
 * Temporary files of the directory backend: ".tmp-" and 16 hex digits.
 *
 * They tell the file system's time, which on a file server is not this machine's. What a killed
 * writer left is removed by the next one that writes into that directory, when it is a day old by
 * that time: whoever has been stopped for so long finds its file gone, and fails.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "store/store_dir.h"
#include "util/file.h"
#include "util/map.h"
#include "util/random.h"

#define TMP_PREFIX  ".tmp-"
#define TMP_AGE_S   86400
#define SWEPT_MAX_N 4096

int ds_dir_make_tmp(int dir_fd, char *ret_name)
{
	int fd;

	snprintf(ret_name, DS_DIR_TMP_MAX, TMP_PREFIX "%016llx",
		 (unsigned long long)ds_random_u64());
	fd = openat(dir_fd, ret_name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0444);
	return fd < 0 ? -errno : fd;
}

static bool is_tmp_name(const char *name)
{
	size_t prefix_len = strlen(TMP_PREFIX);

	return strncmp(name, TMP_PREFIX, prefix_len) == 0 && strlen(name) == DS_DIR_TMP_MAX - 1 &&
	       strspn(name + prefix_len, "0123456789abcdef") == 16;
}

static void sweep(int dir_fd, struct timespec now)
{
	int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *stream = fd >= 0 ? fdopendir(fd) : NULL;
	struct dirent *entry;
	struct stat st;

	if (!stream) {
		ds_close_ptr(&fd);
		return;
	}
	while ((entry = readdir(stream)))
		if (is_tmp_name(entry->d_name) &&
		    fstatat(dir_fd, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
		    S_ISREG(st.st_mode) && now.tv_sec - st.st_mtim.tv_sec > TMP_AGE_S)
			unlinkat(dir_fd, entry->d_name, 0);
	closedir(stream);
}

void ds_dir_sweep_once(struct dir_store *dir, const char *path, size_t len, int dir_fd,
		       struct timespec now)
{
	bool is_first;

	pthread_mutex_lock(&dir->mutex);
	/* What cannot be remembered is not done, or it would be done each time. */
	is_first = !ds_map_get(dir->locked.swept, path, len) &&
		   ds_map_count(dir->locked.swept) < SWEPT_MAX_N &&
		   ds_map_put(dir->locked.swept, path, len, dir, NULL) == 0;
	pthread_mutex_unlock(&dir->mutex);
	if (is_first)
		sweep(dir_fd, now);
}

int ds_dir_time(struct dir_store *dir, struct timespec *ret_now)
{
	_ds_cleanup_close_ int fd = -1;
	char name[DS_DIR_TMP_MAX];
	struct stat st;
	int r;

	fd = ds_dir_make_tmp(dir->fd, name);
	if (fd < 0)
		return fd;
	r = fstat(fd, &st) < 0 ? -errno : 0;
	unlinkat(dir->fd, name, 0);
	if (r < 0)
		return r;
	ds_dir_sweep_once(dir, "", 0, dir->fd, st.st_mtim);
	*ret_now = st.st_mtim;
	return 0;
}
