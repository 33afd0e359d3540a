/*
 * Mounts of dsfs on this host: /proc/self/mountinfo (proc(5)) and the state that each mount's process leaves
 * in a runtime directory. Nothing here touches a mount itself, so that a dead one cannot hang it.
 */
#ifndef DS_CLI_MOUNTINFO_H
#define DS_CLI_MOUNTINFO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct cli_mount {
	uint64_t id;
	unsigned major, minor;
	char *mountpoint; /* unescaped */
	char *source;
	/* from the state file; pid 0 if there is none, or its process has ended */
	pid_t pid;
	char *version;	/* id, or NULL */
	char *selector; /* as typed, or NULL */
};

struct cli_mounts {
	struct cli_mount *mounts; /* of type fuse.dsfs, in the order of mounting */
	size_t mounts_n;
};

int cli_mounts_read(struct cli_mounts *ret_mounts);
void cli_mounts_release(struct cli_mounts *mounts);
/* The topmost dsfs mount at exactly this path, or NULL. */
const struct cli_mount *cli_mounts_find(const struct cli_mounts *mounts, const char *mountpoint);

/*
 * Absolute path of a mountpoint without touching it: the directory above is resolved, the last component stays as it is. New string. Works for dead
 * mounts. A negated errno.
 */
int cli_mountpoint_path(const char *path, char **ret_path);

/* Whether the mount answers at once: false if its process is gone (ENOTCONN). Looks only at the root's attributes, which the kernel holds. */
bool cli_mount_is_dead(const char *mountpoint);

/*
 * State of a running mount: a file in /run/dsfs (root) or $XDG_RUNTIME_DIR/dsfs, locked while the process lives. The descriptor is kept open to hold the
 * lock. Best effort: -1 in *ret_fd if it cannot be written.
 */
void cli_mount_state_write(const char *mountpoint, const char *source, const char *version,
			   const char *selector, int *ret_fd);
void cli_mount_state_remove(const char *mountpoint, int fd);
/* Waits until the process of a mount has ended; false if it has not after timeout_ms. */
bool cli_mount_wait_end(const struct cli_mount *mount, uint64_t timeout_ms);

/* Prints who holds a mount (pid, command, what) as lines to stderr; returns how many processes were found. */
size_t cli_mount_print_holders(const char *mountpoint);

/* Unmounts: umount2(2) as root, else fusermount3. lazy: detach now. -EBUSY, -EINVAL (not mounted), ... */
int cli_unmount(const char *mountpoint, bool lazy);

#endif
