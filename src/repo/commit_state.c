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

#include "util/file.h"
#include "util/mem.h"

static char *default_dir(void)
{
	const char *base = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");

	if (geteuid() == 0)
		return ds_strdup("/var/cache/dsfs");
	if (base && base[0] == '/')
		return ds_asprintf("%s/dsfs", base);
	return home && home[0] == '/' ? ds_asprintf("%s/.cache/dsfs", home) : NULL;
}

/* Removes what killed commits left: their lock files are free. */
static void clean_stale(const char *tmp_root)
{
	_ds_cleanup_close_ int root_fd = open(tmp_root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct dirent *entry;
	DIR *dir;

	if (root_fd < 0)
		return;
	dir = fdopendir(dup(root_fd));
	while (dir && (entry = readdir(dir))) {
		_ds_cleanup_free_ char *lock = ds_asprintf("%s/lock", entry->d_name);
		int fd;

		if (entry->d_name[0] == '.' || !lock)
			continue;
		fd = openat(root_fd, lock, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
		if (fd < 0)
			continue;
		if (flock(fd, LOCK_EX | LOCK_NB) == 0)
			ds_rmtree_at(root_fd, entry->d_name);
		close(fd);
	}
	if (dir)
		closedir(dir);
}

static int make_tmp(struct commit_state *state, const char *root)
{
	_ds_cleanup_free_ char *lock = NULL;

	if (ds_mkdir_p(AT_FDCWD, root, 0700) < 0)
		return -errno;
	clean_stale(root);
	state->tmp = ds_asprintf("%s/commit-XXXXXX", root);
	if (!state->tmp)
		return -ENOMEM;
	if (!mkdtemp(state->tmp)) {
		int r = -errno;

		ds_free(state->tmp);
		state->tmp = NULL;
		return r;
	}
	lock = ds_asprintf("%s/lock", state->tmp);
	state->lock_fd = lock ? open(lock, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600) : -1;
	if (state->lock_fd < 0 || flock(state->lock_fd, LOCK_EX | LOCK_NB) < 0)
		return lock ? -errno : -ENOMEM;
	return 0;
}

int commit_state_init(struct commit_state *state, const char *wanted, struct ds_diag *reterr_diag)
{
	_ds_cleanup_free_ char *root = NULL;
	const char *base = getenv("TMPDIR");
	int r = -ENOENT;

	*state = (struct commit_state){.lock_fd = -1};
	if (!wanted)
		state->dir = default_dir();
	else if (wanted[0])
		state->dir = ds_strdup(wanted);
	if (state->dir) {
		root = ds_asprintf("%s/tmp", state->dir);
		r = root ? make_tmp(state, root) : -ENOMEM;
		if (r < 0) {
			commit_state_release(state);
			ds_free(root);
		}
	}
	if (r < 0) {
		root = ds_asprintf("%s/dsfs-tmp-%u", base && base[0] == '/' ? base : "/var/tmp",
				   (unsigned)geteuid());
		r = root ? make_tmp(state, root) : -ENOMEM;
	}
	return r < 0 ? ds_diag_set(reterr_diag, r, root, "cannot make a temporary directory") : 0;
}

void commit_state_release(struct commit_state *state)
{
	if (state->tmp)
		ds_rmtree_at(AT_FDCWD, state->tmp);
	if (state->lock_fd >= 0)
		close(state->lock_fd);
	ds_free(state->tmp);
	ds_free(state->dir);
	*state = (struct commit_state){.lock_fd = -1};
}
