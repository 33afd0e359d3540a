#include "cli/mount_state.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/cli.h"
#include "codec/digest.h"
#include "util/clock.h"
#include "util/file.h"
#include "util/mem.h"
#include "util/str.h"

#define COPIES_SHOWN_MAX 4u
#define STATE_MAX	 DS_KIB(64)

static char *state_dir(void)
{
	const char *runtime = getenv("XDG_RUNTIME_DIR");

	if (geteuid() == 0)
		return ds_strdup("/run/dsfs");
	if (runtime && runtime[0] == '/')
		return ds_asprintf("%s/dsfs", runtime);
	return ds_asprintf("/tmp/dsfs-%u", (unsigned)geteuid());
}

/* The directory must be ours alone: a stranger's could name any pid. */
static int open_state_dir(bool create)
{
	_ds_cleanup_free_ char *path = state_dir();
	struct stat st;
	int fd;

	if (!path)
		return -ENOMEM;
	if (create)
		mkdir(path, 0700);
	fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) < 0 || st.st_uid != geteuid() || (st.st_mode & 022)) {
		close(fd);
		return -EPERM;
	}
	return fd;
}

/* The mountpoint's digest: any path makes a short, safe name. */
static int state_name(const char *mountpoint, char *ret_name)
{
	struct ds_digest digest;
	int r = ds_digest_of(mountpoint, strlen(mountpoint), &digest);

	if (r == 0)
		ds_digest_format(&digest, ret_name);
	return r;
}

static int open_state(const char *mountpoint, int flags)
{
	_ds_cleanup_close_ int dir_fd = open_state_dir(flags & O_CREAT);
	char name[DS_DIGEST_TEXT_MAX];
	int fd;

	if (dir_fd < 0)
		return dir_fd;
	if (state_name(mountpoint, name) < 0)
		return -ENOMEM;
	fd = openat(dir_fd, name, flags | O_CLOEXEC | O_NOFOLLOW, 0600);
	return fd < 0 ? -errno : fd;
}

/* Somebody else holds the lock: the process lives. */
static bool is_locked(int fd)
{
	if (flock(fd, LOCK_SH | LOCK_NB) == 0) {
		flock(fd, LOCK_UN);
		return false;
	}
	return errno == EWOULDBLOCK;
}

/* What cli_text_json made of a path. NULL: none of it. */
static char *path_of(const json_t *json)
{
	const char *text = json_string_value(json);
	const char *hex = json_string_value(json_object_get(json, "hex"));
	size_t len = hex ? strlen(hex) / 2 : 0;
	char *path;

	if (!hex)
		return text ? ds_strdup(text) : NULL;
	path = ds_calloc(len + 1, 1);
	if (path && (strlen(hex) != 2 * len || ds_hex_decode(hex, path, len) < 0)) {
		ds_free(path);
		path = NULL;
	}
	return path;
}

void cli_mount_state_read(struct cli_mount *mount)
{
	_ds_cleanup_buf_ struct ds_buf buf = DS_BUF_INIT(STATE_MAX);
	_ds_cleanup_close_ int fd = open_state(mount->mountpoint, O_RDONLY | O_NONBLOCK);
	const char *version, *selector, *how = NULL;
	json_t *state, *cache_dir = NULL;
	int pid;

	if (fd < 0 || !is_locked(fd) || ds_file_read_fd(fd, &buf) < 0)
		return;
	state = json_loadb(ds_buf_str(&buf), buf.len_bytes, 0, NULL);
	if (state &&
	    json_unpack(state, "{s:i, s:s, s:s, s?s, s?o}", "pid", &pid, "version", &version,
			"selector", &selector, "how", &how, "cache_dir", &cache_dir) == 0) {
		mount->pid = pid;
		mount->version = ds_strdup(version);
		mount->selector = ds_strdup(selector);
		mount->how = how ? ds_strdup(how) : NULL;
		mount->cache_dir = cache_dir ? path_of(cache_dir) : NULL;
	}
	json_decref(state);
}

void cli_mount_state_write(const char *mountpoint, const char *version, const char *selector,
			   const char *how, const char *cache_dir, int *ret_fd)
{
	int fd = open_state(mountpoint, O_RDWR | O_CREAT);
	json_t *state;
	char *text;

	*ret_fd = -1;
	if (fd < 0)
		return;
	/* A predecessor at the same place may still be ending; the name is ours from now on. */
	if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		_ds_cleanup_close_ int dir_fd = open_state_dir(false);
		char name[DS_DIGEST_TEXT_MAX];

		close(fd);
		if (dir_fd < 0 || state_name(mountpoint, name) < 0)
			return;
		unlinkat(dir_fd, name, 0);
		fd = open_state(mountpoint, O_RDWR | O_CREAT);
		if (fd < 0)
			return;
		if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
			close(fd);
			return;
		}
	}
	state = json_pack("{s:i, s:s, s:s, s:s*}", "pid", (int)getpid(), "version", version,
			  "selector", selector ? selector : "", "how", how);
	if (state && cache_dir)
		json_object_set_new(state, "cache_dir", cli_text_json(cache_dir));
	text = state ? json_dumps(state, JSON_COMPACT) : NULL;
	if (text && ftruncate(fd, 0) == 0 && ds_pwrite_full(fd, text, strlen(text), 0) == 0) {
		*ret_fd = fd;
		fd = -1;
	}
	free(text);
	json_decref(state);
	if (fd >= 0)
		close(fd);
}

void cli_mount_state_remove(const char *mountpoint, int fd)
{
	_ds_cleanup_close_ int dir_fd = open_state_dir(false);
	char name[DS_DIGEST_TEXT_MAX];
	struct stat ours, there;

	if (fd < 0)
		return;
	/* Only if the name still means our file. */
	if (dir_fd >= 0 && state_name(mountpoint, name) == 0 && fstat(fd, &ours) == 0 &&
	    fstatat(dir_fd, name, &there, AT_SYMLINK_NOFOLLOW) == 0 && ours.st_ino == there.st_ino)
		unlinkat(dir_fd, name, 0);
	close(fd);
}

#define PLACES_NAME  "places.lock"
#define LOCK_STEP_MS 20u

int cli_mount_place_lock(const char *mountpoint, uint64_t timeout_ms, int *ret_fd)
{
	uint64_t deadline_ns = ds_deadline_in_ms(timeout_ms);
	_ds_cleanup_close_ int dir_fd = open_state_dir(true);
	struct flock place = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1};
	struct ds_digest digest;
	int fd;

	*ret_fd = -1;
	if (dir_fd < 0 || ds_digest_of(mountpoint, strlen(mountpoint), &digest) < 0)
		return 0;
	fd = openat(dir_fd, PLACES_NAME, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return 0;
	/* One file for all places, a byte for each: nothing to remove while another may be waiting for it. */
	for (size_t i = 0; i < sizeof(place.l_start); i++)
		place.l_start = (off_t)((uint64_t)place.l_start << 8 | digest.bytes[i]);
	place.l_start &= INT64_MAX - 1;
	/* Of the open file, not of the process: the child that mounts goes on holding it. */
	while (fcntl(fd, F_OFD_SETLK, &place) < 0) {
		if (errno != EAGAIN && errno != EACCES) {
			close(fd);
			return 0;
		}
		if (ds_mono_ns() > deadline_ns) {
			close(fd);
			return -EBUSY;
		}
		ds_sleep_ms(LOCK_STEP_MS);
	}
	*ret_fd = fd;
	return 0;
}

bool cli_process_stat(pid_t pid, char *ret_state, long *ret_threads_n)
{
	_ds_cleanup_buf_ struct ds_buf buf = DS_BUF_INIT(DS_KIB(4));
	const char *after_name;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	if (ds_file_read_at(AT_FDCWD, path, &buf) < 0)
		return false;
	after_name = strrchr(ds_buf_str(&buf), ')');
	/* Fields 3 and 20. */
	return after_name &&
	       sscanf(after_name + 1,
		      " %c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %ld",
		      ret_state, ret_threads_n) == 2;
}

/*
 * A zombie has ended: in a container nobody may ever reap it. But the first thread may be one while others are still ending.
 */
static bool has_ended(pid_t pid)
{
	long threads_n;
	char state;

	return !cli_process_stat(pid, &state, &threads_n) ||
	       (strchr("ZX", state) && threads_n <= 1);
}

bool cli_mount_wait_end(const struct cli_mount *mount, uint64_t timeout_ms)
{
	uint64_t deadline_ns = ds_deadline_in_ms(timeout_ms);

	if (mount->pid <= 0)
		return true;
	while (!has_ended(mount->pid)) {
		if (ds_mono_ns() > deadline_ns)
			return false;
		ds_sleep_ms(10);
	}
	return true;
}

static bool is_below(const char *path, const char *mountpoint)
{
	size_t len = strlen(mountpoint);

	return strncmp(path, mountpoint, len) == 0 && (path[len] == '/' || path[len] == '\0');
}

static bool link_is_below(int proc_fd, const char *name, const char *mountpoint, char *ret_what)
{
	char target[PATH_MAX];
	ssize_t n = readlinkat(proc_fd, name, target, sizeof(target) - 1);

	if (n < 0)
		return false;
	target[n] = '\0';
	if (!is_below(target, mountpoint))
		return false;
	snprintf(ret_what, 160, "%.150s", target);
	return true;
}

static bool has_open_file(int proc_fd, const char *mountpoint, char *ret_what)
{
	int fd = openat(proc_fd, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct dirent *entry;
	bool found = false;
	DIR *dir;

	if (fd < 0)
		return false;
	dir = fdopendir(fd);
	if (!dir) {
		close(fd);
		return false;
	}
	while (!found && (entry = readdir(dir)))
		found = link_is_below(dirfd(dir), entry->d_name, mountpoint, ret_what);
	closedir(dir);
	return found;
}

static bool has_mapping(int proc_fd, const char *mountpoint, char *ret_what)
{
	int fd = openat(proc_fd, "maps", O_RDONLY | O_CLOEXEC);
	bool found = false;
	char *line = NULL, *path;
	size_t size = 0;
	FILE *file;

	if (fd < 0)
		return false;
	file = fdopen(fd, "r");
	if (!file) {
		close(fd);
		return false;
	}
	while (!found && getline(&line, &size, file) > 0) {
		line[strcspn(line, "\n")] = '\0';
		path = strchr(line, '/');
		found = path && is_below(path, mountpoint);
		if (found)
			snprintf(ret_what, 160, "%.150s", path);
	}
	free(line);
	fclose(file);
	return found;
}

/* Whether a process uses the mount, and as what (160 bytes). */
typedef bool (*holds_fn)(int proc_fd, const struct cli_mount *mount, char *ret_what);

static bool uses_path(int proc_fd, const struct cli_mount *mount, char *ret_what)
{
	const char *path = mount->mountpoint;

	return link_is_below(proc_fd, "cwd", path, ret_what) ||
	       link_is_below(proc_fd, "root", path, ret_what) ||
	       link_is_below(proc_fd, "exe", path, ret_what) ||
	       has_open_file(proc_fd, path, ret_what) || has_mapping(proc_fd, path, ret_what);
}

static bool has_copy(int proc_fd, const struct cli_mount *mount, char *ret_what)
{
	int fd = openat(proc_fd, "mountinfo", O_RDONLY | O_CLOEXEC);
	FILE *file = fd < 0 ? NULL : fdopen(fd, "r");
	bool found = false;
	char *line = NULL;
	size_t size = 0;

	if (!file) {
		if (fd >= 0)
			close(fd);
		return false;
	}
	while (!found && getline(&line, &size, file) > 0) {
		unsigned major, minor;

		found = sscanf(line, "%*u %*u %u:%u", &major, &minor) == 2 &&
			major == mount->major && minor == mount->minor;
	}
	free(line);
	fclose(file);
	snprintf(ret_what, 160, "a mount namespace with a copy of the mount");
	return found;
}

static void read_comm(int proc_fd, char *ret_comm, size_t size)
{
	int fd = openat(proc_fd, "comm", O_RDONLY | O_CLOEXEC);
	size_t len = 0;

	snprintf(ret_comm, size, "?");
	if (fd < 0)
		return;
	ds_read_full(fd, ret_comm, size - 1, &len);
	ret_comm[len] = '\0';
	ret_comm[strcspn(ret_comm, "\n")] = '\0';
	close(fd);
}

static size_t print_processes(const struct cli_mount *mount, holds_fn holds, size_t lines_max)
{
	struct dirent *entry;
	DIR *proc = opendir("/proc");
	size_t n = 0;

	while (proc && n < lines_max && (entry = readdir(proc))) {
		_ds_cleanup_close_ int fd = -1;
		char comm[64], what[160];

		/* Its own process is no stranger. */
		if (!isdigit((unsigned char)entry->d_name[0]) || atoi(entry->d_name) == mount->pid)
			continue;
		fd = openat(dirfd(proc), entry->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (fd < 0 || !holds(fd, mount, what))
			continue;
		read_comm(fd, comm, sizeof(comm));
		fprintf(stderr, "dsfs:   held by process %s (%s): %s\n", entry->d_name, comm, what);
		n++;
	}
	if (proc)
		closedir(proc);
	return n;
}

size_t cli_mount_print_holders(const struct cli_mount *mount)
{
	return print_processes(mount, uses_path, SIZE_MAX);
}

void cli_mount_print_copies(const struct cli_mount *mount)
{
	print_processes(mount, has_copy, COPIES_SHOWN_MAX);
}
