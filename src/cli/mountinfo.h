/*
 * Mounts of dsfs on this host: /proc/self/mountinfo (proc(5)) and the state that each mount's process leaves
 * in a runtime directory. But for cli_mounts_ask, nothing here touches a mount itself, so that one that is dead or stuck
 * cannot hang it.
 */
#ifndef DS_CLI_MOUNTINFO_H
#define DS_CLI_MOUNTINFO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* X(name, text) */
#define CLI_MOUNT_STATES(X)                       \
	X(UNKNOWN, "unknown") /* not asked yet */ \
	X(ANSWERS, "answers")                     \
	X(STUCK, "stuck")                         \
	X(DEAD, "dead") /* its process is gone, or its connection is cut */

enum cli_mount_state {
#define CLI_X(name, text) CLI_MOUNT_##name,
	CLI_MOUNT_STATES(CLI_X)
#undef CLI_X
};

struct cli_mount {
	uint64_t id;
	unsigned major, minor;
	char *mountpoint; /* unescaped */
	char *source;
	uid_t uid; /* who mounted it, and alone may ask it */
	gid_t gid;
	enum cli_mount_state state;
	pid_t asking; /* cli_mounts_ask's own */
	/* from the state file; pid 0 if there is none, or its process has ended, or it is another user's */
	pid_t pid;
	char *version;	 /* id, or NULL */
	char *selector;	 /* as typed, or NULL */
	char *how;	 /* which ways of the kernel it uses, and why; NULL: not known */
	char *cache_dir; /* as realpath(3) gave it when it mounted; NULL: not known */
};

struct cli_mounts {
	struct cli_mount *mounts; /* of type fuse.dsfs, in the order of mounting */
	size_t mounts_n;
};

int cli_mounts_read(struct cli_mounts *ret_mounts);
/* Forgets all behind the first n. */
void cli_mounts_truncate(struct cli_mounts *mounts, size_t n);
void cli_mounts_release(struct cli_mounts *mounts);
/* The topmost dsfs mount at exactly this path, or NULL. */
struct cli_mount *cli_mounts_find(const struct cli_mounts *mounts, const char *mountpoint);

/* Whether nothing else is mounted over it. The kernel answers from its memory. */
bool cli_mount_is_on_top(const struct cli_mount *mount);

/*
 * Absolute path of a mountpoint without touching it: the directory above is resolved, and so is the last component while it is a symlink; what that
 * leads to need not exist. New string. Works for mounts that are dead or stuck. A negated errno.
 */
int cli_mountpoint_path(const char *path, char **ret_path);

/* A mount that has not answered after that long is stuck. */
#define CLI_MOUNT_ASK_MS 2000u

/*
 * Asks the mounts all at once, each from a process of its own that may hang, and sets their states: blocks for at most CLI_MOUNT_ASK_MS.
 * Root asks in the name of the mount's user. UNKNOWN: another mount lies above it, or it may not be asked. Before threads start.
 */
void cli_mounts_ask(struct cli_mount *mounts, size_t mounts_n);
const char *cli_mount_state_text(enum cli_mount_state state);

/*
 * State of a running mount: a file in /run/dsfs (root) or $XDG_RUNTIME_DIR/dsfs, locked while the process lives. The descriptor is kept open to hold the
 * lock. `how`, `cache_dir` (or NULL): as cli_mount's. Best effort: -1 in *ret_fd if it cannot be written.
 */
void cli_mount_state_write(const char *mountpoint, const char *version, const char *selector,
			   const char *how, const char *cache_dir, int *ret_fd);
/*
 * Holds the place for one that is mounting, against others of the same user, until *ret_fd and its copies in children are closed. Waits while another
 * holds it. -EBUSY after timeout_ms. Best effort: 0 and -1 in *ret_fd if there is nowhere to lock.
 */
int cli_mount_place_lock(const char *mountpoint, uint64_t timeout_ms, int *ret_fd);
void cli_mount_state_remove(const char *mountpoint, int fd);
/* A process's state (a letter) and number of threads, of proc_pid_stat(5); false: there is no such process. */
bool cli_process_stat(pid_t pid, char *ret_state, long *ret_threads_n);
/* Waits until the process of a mount has ended; false if it has not after timeout_ms. */
bool cli_mount_wait_end(const struct cli_mount *mount, uint64_t timeout_ms);

/* Prints who holds a mount (pid, command, what) as lines to stderr; returns how many processes were found. */
size_t cli_mount_print_holders(const struct cli_mount *mount);
/* The same of processes in other mount namespaces (containers) that have a copy of a mount that is gone here: it lives until all of them have unmounted
 * it or ended, mount_namespaces(7). At most 4. */
void cli_mount_print_copies(const struct cli_mount *mount);

/* Unmounts: umount2(2) as root, else fusermount3. lazy: detach now. -EBUSY, -EINVAL (not mounted), ...; what else
 * fusermount3 says goes to stderr: -EPERM. */
int cli_unmount(const char *mountpoint, bool lazy);

#endif
