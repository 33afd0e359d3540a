#include "cli/mountinfo.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <grp.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util/clock.h"
#include "util/file.h"
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

/* A number of the superblock's options, "rw,user_id=0,group_id=0". */
static unsigned option_of(const char *options, const char *name)
{
	const char *at = options ? strstr(options, name) : NULL;

	return at ? (unsigned)strtoul(at + strlen(name), NULL, 10) : 0;
}

/* One line: "36 35 98:0 /root /mountpoint options - type source superoptions". 1: it is of dsfs. */
static int parse_line(char *line, struct cli_mount *mount)
{
	char *fields[6], *save = NULL, *tail = strstr(line, " - "), *type, *source, *options;
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
	options = strtok_r(NULL, " \n", &save);
	if (n < 5 || !type || strcmp(type, "fuse.dsfs") != 0)
		return 0;
	unescape(fields[4]);
	*mount = (struct cli_mount){
		.id = strtoull(fields[0], NULL, 10),
		.uid = option_of(options, ",user_id="),
		.gid = option_of(options, ",group_id="),
	};
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
		if (mount.uid == geteuid())
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

void cli_mounts_truncate(struct cli_mounts *mounts, size_t n)
{
	for (size_t i = n; i < mounts->mounts_n; i++) {
		ds_free(mounts->mounts[i].mountpoint);
		ds_free(mounts->mounts[i].source);
		ds_free(mounts->mounts[i].version);
		ds_free(mounts->mounts[i].selector);
		ds_free(mounts->mounts[i].how);
		ds_free(mounts->mounts[i].cache_dir);
	}
	mounts->mounts_n = n;
}

void cli_mounts_release(struct cli_mounts *mounts)
{
	cli_mounts_truncate(mounts, 0);
	ds_free(mounts->mounts);
	*mounts = (struct cli_mounts){0};
}

struct cli_mount *cli_mounts_find(const struct cli_mounts *mounts, const char *mountpoint)
{
	struct cli_mount *found = NULL;

	for (size_t i = 0; i < mounts->mounts_n; i++)
		if (strcmp(mounts->mounts[i].mountpoint, mountpoint) == 0)
			found = &mounts->mounts[i];
	return found;
}

/* As many as the kernel follows: MAXSYMLINKS, path_resolution(7). */
#define SYMLINKS_MAX 40

/* "parent/base", or the parent's own path if there is no base. Takes neither. */
static char *join(const char *parent, const char *base)
{
	return ds_asprintf("%s/%s", strcmp(parent, "/") == 0 ? "" : parent, base);
}

/* The directory above is resolved; the last component stays as it is. */
static int resolve_parent(const char *path, char **ret_path)
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
	*ret_path = join(parent, base);
	free(parent);
	return *ret_path ? 0 : -ENOMEM;
}

int cli_mountpoint_path(const char *path, char **ret_path)
{
	_ds_cleanup_free_ char *next = ds_strdup(path);

	for (int i = 0; next && i < SYMLINKS_MAX; i++) {
		char *here, target[PATH_MAX];
		ssize_t n;
		int r = resolve_parent(next, &here);

		if (r < 0)
			return r;
		/* Of a directory the kernel answers EINVAL by itself, mounted upon or not. */
		n = readlink(here, target, sizeof(target) - 1);
		if (n < 0) {
			*ret_path = here;
			return 0;
		}
		target[n] = '\0';
		ds_free(next);
		if (target[0] == '/') {
			next = ds_strdup(target);
		} else {
			*strrchr(here, '/') = '\0';
			next = join(here[0] ? here : "/", target);
		}
		ds_free(here);
	}
	return next ? -ELOOP : -ENOMEM;
}

#define ASK_STEP_MS 2u

bool cli_mount_is_on_top(const struct cli_mount *mount)
{
	return ds_mount_device(mount->mountpoint) == makedev(mount->major, mount->minor);
}

/* The child's whole life: its exit status is the state. */
static enum cli_mount_state ask(const struct cli_mount *mount)
{
	struct statvfs vfs;

	/* The kernel lets nobody but the mount's user in, and to others it answers without asking. */
	if (geteuid() == 0 && mount->uid != 0 &&
	    (setgroups(0, NULL) < 0 || setresgid(mount->gid, mount->gid, mount->gid) < 0 ||
	     setresuid(mount->uid, mount->uid, mount->uid) < 0))
		return CLI_MOUNT_UNKNOWN;
	if (!cli_mount_is_on_top(mount))
		return CLI_MOUNT_UNKNOWN;
	/* The kernel answers stat from its own memory for ever; statvfs asks the process, which answers from memory too. */
	if (statvfs(mount->mountpoint, &vfs) == 0)
		return CLI_MOUNT_ANSWERS;
	return errno == ENOTCONN || errno == ECONNABORTED ? CLI_MOUNT_DEAD : CLI_MOUNT_UNKNOWN;
}

/*
 * Whether the mount's process is stopped, by SIGSTOP or a debugger (proc_pid_stat(5)). Who asks such a one over io_uring cannot
 * be killed before it goes on (Linux 6.18: the request is on its way in the process's name, and no interrupt reaches it).
 */
static bool is_stopped(const struct cli_mount *mount)
{
	long threads_n;
	char state;

	return mount->pid && cli_process_stat(mount->pid, &state, &threads_n) &&
	       strchr("Tt", state);
}

/* True once the mount's state is known. */
static bool collect(struct cli_mount *mount, bool is_late)
{
	int status;
	pid_t pid = mount->asking > 0 ? waitpid(mount->asking, &status, WNOHANG) : mount->asking;

	if (pid == 0 && mount->asking > 0) {
		if (!is_late)
			return false;
		/* Not waited for: it ends with the request that it waits in. */
		kill(mount->asking, SIGKILL);
		mount->state = CLI_MOUNT_STUCK;
	} else if (pid > 0 && WIFEXITED(status)) {
		mount->state = (enum cli_mount_state)WEXITSTATUS(status);
	}
	mount->asking = 0;
	return true;
}

void cli_mounts_ask(struct cli_mount *mounts, size_t mounts_n)
{
	uint64_t deadline_ns = ds_deadline_in_ms(CLI_MOUNT_ASK_MS);
	bool is_done = false;

	for (size_t i = 0; i < mounts_n; i++) {
		mounts[i].asking = 0;
		mounts[i].state = CLI_MOUNT_STUCK;
		if (is_stopped(&mounts[i]))
			continue;
		mounts[i].state = CLI_MOUNT_UNKNOWN;
		mounts[i].asking = fork();
		if (mounts[i].asking == 0) {
			/*
			 * It may outlive its SIGKILL, and who reads what this command prints waits for
			 * the pipe's end, who mounts at the place for its lock.
			 */
			closefrom(0);
			_exit((int)ask(&mounts[i]));
		}
	}
	while (!is_done) {
		bool is_late = ds_mono_ns() > deadline_ns;

		is_done = true;
		for (size_t i = 0; i < mounts_n; i++)
			if (!collect(&mounts[i], is_late))
				is_done = false;
		if (!is_done)
			ds_sleep_ms(ASK_STEP_MS);
	}
}

const char *cli_mount_state_text(enum cli_mount_state state)
{
	static const char *const texts[] = {
#define CLI_X(name, text) [CLI_MOUNT_##name] = text,
		CLI_MOUNT_STATES(CLI_X)
#undef CLI_X
	};

	return texts[state];
}

/* Its only reason that is known beforehand is a mount in use; any other is passed on to stderr, as it stands. */
static int run_fusermount(const char *mountpoint, bool lazy)
{
	char said[512];
	size_t len = 0;
	int status, fds[2];
	pid_t pid;

	if (pipe2(fds, O_CLOEXEC) < 0)
		return -errno;
	pid = fork();
	if (pid < 0) {
		int r = -errno;

		close(fds[0]);
		close(fds[1]);
		return r;
	}
	if (pid == 0) {
		dup2(fds[1], STDERR_FILENO);
		execlp("fusermount3", "fusermount3", lazy ? "-uz" : "-u", "--", mountpoint,
		       (char *)NULL);
		_exit(127);
	}
	close(fds[1]);
	ds_read_full(fds[0], said, sizeof(said) - 1, &len);
	close(fds[0]);
	said[len] = '\0';
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return 0;
	if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
		return -ENOSYS;
	if (strstr(said, strerror(EBUSY)))
		return -EBUSY;
	fprintf(stderr, "dsfs:   %s\n", said[0] ? strtok(said, "\n") : "fusermount3 fails");
	return -EPERM;
}

int cli_unmount(const char *mountpoint, bool lazy)
{
	if (umount2(mountpoint, UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0)) == 0)
		return 0;
	if (errno == EPERM)
		return run_fusermount(mountpoint, lazy);
	return -errno;
}
