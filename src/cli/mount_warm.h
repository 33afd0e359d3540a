/*
 * `-o warm` of a mount: a warming on a thread of its own, behind what is read. The log tells its begin and its end,
 * /.dsfs/stats its progress.
 */
#ifndef DS_CLI_MOUNT_WARM_H
#define DS_CLI_MOUNT_WARM_H

#include "repo/view_warm.h"

struct cli_mount_warm;

/* `text`: the option's value. The view outlives it. Starts nothing yet. -ENOMEM. */
int cli_mount_warm_new(struct ds_view *view, const char *text, uint64_t timeout_ms,
		       struct cli_mount_warm **ret_warm);
/* For the mount's counters; NULL for NULL. */
struct ds_warm *cli_mount_warm_of(struct cli_mount_warm *warm);
/* From any thread, once. That it cannot start is logged. */
void cli_mount_warm_start(struct cli_mount_warm *warm);
/* Ends it soon if it runs, and waits until it has ended. NULL is allowed. Returns NULL. */
struct cli_mount_warm *cli_mount_warm_free(struct cli_mount_warm *warm);

#endif
