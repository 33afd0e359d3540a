#include "cli/mountinfo.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util/mem.h"
#include "util/str.h"

#include "cli/mount_state.h"

/* mountinfo writes space, tab, newline and backslash as three octal digits. In place. */
static void unescape(char *text)
{
	char *out = text;

	for (char *at = text; *at; at++) {
		if (at[0] == '\\' && at[1] >= '0' && at[1] <= '3' && at[2] >= '0' && at[2] <= '7' &&
		    at[3] >= '0' && at[3] <= '7') {
			*out++ = (char)((at[1] - '0') << 6 | (at[2] - '0') << 3 | (at[3] - '0'));
			at += 3;
		} else {
			*out++ = *at;
		}
	}
	*out = '\0';
}

/* One line: "36 35 98:0 /root /mountpoint options - type source superoptions". 1: it is of dsfs. */
static int parse_line(char *line, struct cli_mount *mount)
{
	char *fields[6], *save = NULL, *tail = strstr(line, " - "), *type, *source;
	size_t n = 0;

	if (!tail)
		return 0;
	*tail = '\0';
	tail += 3;
	for (char *at = strtok_r(line, " ", &save); at && n < 6; at = strtok_r(NULL, " ", &save))
		fields[n++] = at;
	save = NULL;
	type = strtok_r(tail, " ", &save);
	source = strtok_r(NULL, " \n", &save);
	if (n < 5 || !type || strcmp(type, "fuse.dsfs") != 0)
		return 0;
	unescape(fields[4]);
	*mount = (struct cli_mount){.id = strtoull(fields[0], NULL, 10)};
	if (sscanf(fields[2], "%u:%u", &mount->major, &mount->minor) != 2)
		return 0;
	if (source)
		unescape(source);
	mount->mountpoint = ds_strdup(fields[4]);
	mount->source = ds_strdup(source ? source : "");
	return mount->mountpoint && mount->source ? 1 : -ENOMEM;
}

int cli_mounts_read(struct cli_mounts *ret_mounts)
{
	FILE *file = fopen("/proc/self/mountinfo", "re");
	struct cli_mounts mounts = {0};
	char *line = NULL;
	size_t size = 0;
	int r = 0;

	if (!file)
		return -errno;
	while (r >= 0 && getline(&line, &size, file) > 0) {
		struct cli_mount mount, *grown;

		r = parse_line(line, &mount);
		if (r <= 0)
			continue;
		grown = ds_reallocarray(mounts.mounts, mounts.mounts_n + 1, sizeof(mount));
		if (!grown) {
			r = -ENOMEM;
			break;
		}
		mounts.mounts = grown;
		cli_mount_state_read(&mount);
		mounts.mounts[mounts.mounts_n++] = mount;
	}
	free(line);
	fclose(file);
	if (r < 0) {
		cli_mounts_release(&mounts);
		return r;
	}
	*ret_mounts = mounts;
	return 0;
}

void cli_mounts_release(struct cli_mounts *mounts)
{
	for (size_t i = 0; i < mounts->mounts_n; i++) {
		ds_free(mounts->mounts[i].mountpoint);
		ds_free(mounts->mounts[i].source);
		ds_free(mounts->mounts[i].version);
		ds_free(mounts->mounts[i].selector);
	}
	ds_free(mounts->mounts);
	*mounts = (struct cli_mounts){0};
}

const struct cli_mount *cli_mounts_find(const struct cli_mounts *mounts, const char *mountpoint)
{
	const struct cli_mount *found = NULL;

	for (size_t i = 0; i < mounts->mounts_n; i++)
		if (strcmp(mounts->mounts[i].mountpoint, mountpoint) == 0)
			found = &mounts->mounts[i];
	return found;
}

int cli_mountpoint_path(const char *path, char **ret_path)
{
	_ds_cleanup_free_ char *copy = ds_strdup(path);
	const char *base;
	char *slash, *parent;
	size_t len;

	if (!copy)
		return -ENOMEM;
	len = strlen(copy);
	while (len > 1 && copy[len - 1] == '/')
		copy[--len] = '\0';
	if (len == 0)
		return -ENOENT;
	slash = strrchr(copy, '/');
	base = slash ? slash + 1 : copy;
	/* "." and ".." have no name of their own to keep. */
	if (strcmp(base, ".") == 0 || strcmp(base, "..") == 0 || strcmp(copy, "/") == 0) {
		parent = realpath(copy, NULL);
		*ret_path = parent;
		return parent ? 0 : -errno;
	}
	if (slash)
		*slash = '\0';
	parent = realpath(!slash ? "." : slash == copy ? "/" : copy, NULL);
	if (!parent)
		return -errno;
	*ret_path = ds_asprintf("%s/%s", strcmp(parent, "/") == 0 ? "" : parent, base);
	free(parent);
	return *ret_path ? 0 : -ENOMEM;
}

bool cli_mount_is_dead(const char *mountpoint)
{
	struct statvfs vfs;

	/* The kernel answers stat from its own memory for ever; statvfs asks the process, which answers from memory too. */
	return statvfs(mountpoint, &vfs) < 0 && (errno == ENOTCONN || errno == ECONNABORTED);
}

static int run_fusermount(const char *mountpoint, bool lazy)
{
	int status;
	pid_t pid = fork();

	if (pid < 0)
		return -errno;
	if (pid == 0) {
		int null = open("/dev/null", O_WRONLY | O_CLOEXEC);

		/* Its message says no more than our own will. */
		if (null >= 0)
			dup2(null, STDERR_FILENO);
		execlp("fusermount3", "fusermount3", lazy ? "-uz" : "-u", "--", mountpoint,
		       (char *)NULL);
		_exit(127);
	}
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return 0;
	return WIFEXITED(status) && WEXITSTATUS(status) == 127 ? -ENOSYS : -EBUSY;
}

int cli_unmount(const char *mountpoint, bool lazy)
{
	if (umount2(mountpoint, UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0)) == 0)
		return 0;
	if (errno == EPERM)
		return run_fusermount(mountpoint, lazy);
	return -errno;
}
