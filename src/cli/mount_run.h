/*
 * What `dsfs mount` and mount.dsfs(8) share: checks, going to the background, the mount's life.
 */
#ifndef DS_CLI_MOUNT_RUN_H
#define DS_CLI_MOUNT_RUN_H

#include "cli/cli.h"
#include "cli/mount_options.h"

struct cli_mount_request {
	const char *source;	/* REPO[@VERSION] as typed: the source name that mountinfo shows */
	const char *mountpoint; /* as typed */
	struct cli_mount_options *options;
	bool foreground;
	bool quiet;
};

/*
 * Mounts, and returns 0 once the mount answers (in the background) or has ended (foreground); else an error with the reason in call->diag, or
 * printed already by the background process (*ret_printed: then the value is an exit status).
 */
int cli_mount_run(struct cli_call *call, const struct cli_mount_request *request,
		  bool *ret_printed);

#endif
