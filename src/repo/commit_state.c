#include "repo/commit_state.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/error.h"
#include "util/file.h"
#include "util/mem.h"

#define TMP_PREFIX "commit-"
#define TMP_RANDOM "XXXXXX"

static char *default_dir(void)
{
	const char *base = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");

	if (geteuid() == 0)
		return ds_strdup("/var/cache/dsfs");
	if (base && base[0] == '/')
		return ds_asprintf("%s/dsfs", base);
	return home && home[0] == '/' ? ds_asprintf("%s/.cache/dsfs", home) : NULL;
}

static int remove_but_lock(void *ctx, int dir_fd, const char *name)
{
	(void)ctx;
	return strcmp(name, "lock") == 0 ? 0 : ds_rmtree_at(dir_fd, name);
}

/* The lock file last: who is killed meanwhile leaves what the next one removes. */
static void remove_tmp(int dir_fd, const char *path)
{
	if (ds_each_entry_at(dir_fd, path, remove_but_lock, NULL) == 0)
		ds_rmtree_at(dir_fd, path);
}

/* Removes what killed commits left, and nothing else that lies there: it has a name as mkdtemp(3) gives, and a lock file, which is free;
 * or it is empty: killed before it had one (nobody is between the two, see make_tmp). */
static void clean_stale(int root_fd)
{
	int fd = fcntl(root_fd, F_DUPFD_CLOEXEC, 0);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;

	if (!dir && fd >= 0)
		close(fd);
	while (dir && (entry = readdir(dir))) {
		_ds_cleanup_free_ char *lock = ds_asprintf("%s/lock", entry->d_name);
		_ds_cleanup_close_ int lock_fd = -1;

		if (strncmp(entry->d_name, TMP_PREFIX, strlen(TMP_PREFIX)) != 0 ||
		    strlen(entry->d_name) != strlen(TMP_PREFIX TMP_RANDOM) || !lock)
			continue;
		lock_fd = openat(root_fd, lock, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
		if (lock_fd < 0 && errno == ENOENT)
			unlinkat(root_fd, entry->d_name, AT_REMOVEDIR);
		else if (lock_fd >= 0 && flock(lock_fd, LOCK_EX | LOCK_NB) == 0)
			remove_tmp(root_fd, entry->d_name);
	}
	if (dir)
		closedir(dir);
}

/* A directory of ours that nobody else may write into; others could plant links in it. */
static int open_root(const char *root, int *ret_fd)
{
	struct stat st;
	int fd, r = ds_mkdir_p(AT_FDCWD, root, 0700);

	if (r < 0)
		return r;
	fd = open(root, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	r = fstat(fd, &st) < 0				   ? -errno
	    : st.st_uid != geteuid() || (st.st_mode & 022) ? -EACCES
							   : 0;
	if (r < 0)
		close(fd);
	else
		*ret_fd = fd;
	return r;
}

static int make_tmp(struct commit_state *state, const char *root)
{
	_ds_cleanup_close_ int root_fd = -1, guard_fd = -1;
	_ds_cleanup_free_ char *lock = NULL, *tmp = NULL;
	int r = open_root(root, &root_fd);

	if (r < 0)
		return r;
	/* Whoever makes or cleans up holds this one, so that a new directory is not taken for a stale one. */
	guard_fd = openat(root_fd, ".guard", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (guard_fd < 0 || flock(guard_fd, LOCK_EX) < 0)
		return -errno;
	clean_stale(root_fd);
	tmp = ds_asprintf("%s/" TMP_PREFIX TMP_RANDOM, root);
	if (!tmp)
		return -ENOMEM;
	if (!mkdtemp(tmp))
		return -errno;
	lock = ds_asprintf("%s/lock", tmp);
	state->lock_fd = lock ? open(lock, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600) : -1;
	if (state->lock_fd < 0 || flock(state->lock_fd, LOCK_EX | LOCK_NB) < 0)
		r = lock ? -errno : -ENOMEM;
	state->tmp = tmp;
	tmp = NULL;
	return r;
}

/* In a directory that must be there: a mistyped one is not made. */
static int make_tmp_in(struct commit_state *state, const char *base)
{
	_ds_cleanup_free_ char *root = ds_asprintf("%s/dsfs-tmp-%u", base, (unsigned)geteuid());
	struct stat st;

	if (!root)
		return -ENOMEM;
	return stat(base, &st) < 0 ? -errno : make_tmp(state, root);
}

int commit_state_init(struct commit_state *state, const char *wanted, struct ds_diag *reterr_diag)
{
	_ds_cleanup_free_ char *root = NULL;
	const char *base = getenv("TMPDIR");
	int r = -ENOENT;

	base = base && base[0] == '/' ? base : "/var/tmp";

	*state = (struct commit_state){.lock_fd = -1};
	if (!wanted)
		state->dir = default_dir();
	else if (wanted[0])
		state->dir = ds_strdup(wanted);
	if (state->dir) {
		root = ds_asprintf("%s/tmp", state->dir);
		r = root ? make_tmp(state, root) : -ENOMEM;
		if (r < 0)
			commit_state_release(state);
	}
	if (r < 0)
		r = make_tmp_in(state, base);
	return r == 0 || r == -ENOMEM
		       ? r
		       : ds_diag_set(reterr_diag, -DS_E_SCRATCH, base, "%s", ds_strerror(r));
}

void commit_state_release(struct commit_state *state)
{
	if (state->tmp)
		remove_tmp(AT_FDCWD, state->tmp);
	if (state->lock_fd >= 0)
		close(state->lock_fd);
	ds_free(state->tmp);
	ds_free(state->dir);
	*state = (struct commit_state){.lock_fd = -1};
}
