/*
 * State files of running mounts; see mountinfo.h.
 */
#ifndef DS_CLI_MOUNT_STATE_H
#define DS_CLI_MOUNT_STATE_H

#include "cli/mountinfo.h"

/* Fills pid, version, selector and how from the mount's state file, if it is there and its process lives. */
void cli_mount_state_read(struct cli_mount *mount);

#endif
