/*
 * mount, umount.
 */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/commands.h"
#include "cli/mount_run.h"
#include "cli/mountinfo.h"
#include "util/mem.h"

#define END_TIMEOUT_MS 10000u
#define PASSING_MS     2000u

/* What others have mounted is theirs to know. */
static void keep_own(struct cli_mounts *mounts)
{
	size_t n = 0;

	for (size_t i = 0; i < mounts->mounts_n; i++) {
		struct cli_mount swap = mounts->mounts[n];

		if (mounts->mounts[i].uid != geteuid())
			continue;
		mounts->mounts[n++] = mounts->mounts[i];
		mounts->mounts[i] = swap;
	}
	cli_mounts_truncate(mounts, n);
}

static json_t *row_of(const struct cli_mount *m)
{
	bool alive = m->state == CLI_MOUNT_ANSWERS || m->state == CLI_MOUNT_STUCK;

	return json_pack("{s:o, s:o, s:s*, s:o, s:I, s:s, s:o}", "source", cli_text_json(m->source),
			 "mountpoint", cli_text_json(m->mountpoint), "version", m->version, "pid",
			 m->pid ? json_integer(m->pid) : json_null(), "user", (json_int_t)m->uid,
			 "state", cli_mount_state_text(m->state), "alive",
			 m->state == CLI_MOUNT_UNKNOWN ? json_null() : json_boolean(alive));
}

static void print_row(const struct cli_mount *m)
{
	char source[512], place[4096];

	printf("%s on %s", cli_safe(m->source, strlen(m->source), source, sizeof(source)),
	       cli_safe(m->mountpoint, strlen(m->mountpoint), place, sizeof(place)));
	if (m->version)
		printf(" version %.16s", m->version);
	if (m->uid != geteuid())
		printf(" (of user %u; its version and process are not known)", (unsigned)m->uid);
	else if (!m->pid && m->state != CLI_MOUNT_DEAD)
		printf(" (its version and process are not known)");
	if (m->state == CLI_MOUNT_DEAD)
		printf(" (dead: its %s)", m->pid ? "connection is cut" : "process is gone");
	else if (m->state == CLI_MOUNT_STUCK)
		printf(" (stuck: no answer within %u s)", CLI_MOUNT_ASK_MS / 1000);
	else if (m->state == CLI_MOUNT_UNKNOWN)
		printf(" (it could not be asked)");
	printf("\n");
}

static int list_mounts(struct cli_call *call)
{
	struct cli_mounts mounts = {0};
	json_t *rows = call->json ? json_array() : NULL;
	int r = cli_mounts_read(&mounts);

	if (r == 0) {
		if (geteuid() != 0)
			keep_own(&mounts);
		cli_mounts_ask(mounts.mounts, mounts.mounts_n);
	}
	for (size_t i = 0; r == 0 && i < mounts.mounts_n; i++) {
		if (rows)
			json_array_append_new(rows, row_of(&mounts.mounts[i]));
		else
			print_row(&mounts.mounts[i]);
	}
	cli_print_json(rows);
	cli_mounts_release(&mounts);
	return r < 0 ? cli_fail(call, r, NULL) : cli_finish_output(call);
}

static int run_mount(struct cli_call *call)
{
	struct cli_mount_options options;
	struct cli_mount_request request;
	bool printed = false;
	const char *text;
	int r = 0;

	if (call->args_n == 0 && call->values_n == (call->json ? 1u : 0u))
		return list_mounts(call);
	if (call->args_n != 2) {
		ds_diag_set(&call->diag, -DS_E_USAGE, NULL,
			    "arguments are missing: dsfs mount REPO[@VERSION] MOUNTPOINT");
		return cli_fail(call, -DS_E_USAGE, NULL);
	}
	cli_mount_options_init(&options);
	for (size_t i = 0; r == 0 && (text = cli_text_at(call, "options", i)); i++)
		r = cli_mount_options_parse(&options, text, &call->diag);
	request = (struct cli_mount_request){
		.source = call->args[0],
		.mountpoint = call->args[1],
		.options = &options,
		.foreground = cli_has(call, "foreground"),
		.quiet = cli_has(call, "quiet"),
	};
	if (r == 0)
		r = cli_mount_run(call, &request, &printed);
	cli_mount_options_release(&options);
	if (printed)
		return r;
	return r < 0 ? cli_fail(call, r, NULL) : CLI_EXIT_OK;
}

static const struct cli_option mount_options[] = {
	{'o', "options", "LIST", "mount options, separated by commas; see below", true},
	{'f', "foreground", NULL, "stay in the foreground and log to standard error", false},
	{0},
};

const struct cli_command cli_command_mount = {
	.name = "mount",
	.arguments = "[REPO[@VERSION] MOUNTPOINT]",
	.summary = "mount a version as a directory; alone: list the mounts",
	.details =
		"Returns once the mount answers, or prints the error. The mount is read-only, "
		"and its "
		"contents never change, whatever is committed meanwhile. SIGTERM or 'dsfs "
		"umount' ends it; SIGHUP has the log file opened anew with its next line. In the "
		"foreground SIGINT and "
		"SIGHUP end the mount, too, unless nohup or a shell has turned them off.\n"
		"Every byte that is read was checked; what cannot be had, or does not fit its "
		"digest, "
		"is an I/O error and a line in the log, never wrong data.\n"
		"The cache's chunks of files are checked when they are filled, and again before "
		"their first use after a boot; those of the manifest also before their first use "
		"by each process.\n"
		"A read that waits for a stalled store may end after up to twice timeout=: when "
		"its read-ahead has failed, the kernel asks once more.\n"
		"A sparse file's zeros cost no space in store or cache, but st_blocks, and so du, "
		"counts them.\n"
		"Of several that mount at one place at once, one succeeds. A mount point that is "
		"a symlink is what it leads to.\n"
		"Alone it lists your own mounts; root's lists those of all users, without their "
		"versions and processes, which are known to their user only. A mount that does "
		"not answer within 2 s is listed as stuck: its process is stopped, or has no "
		"time; one whose process is gone, or whose connection is cut, as dead.",
	.examples = "  dsfs mount s3://bucket/imagenet@v2.1 /mnt/imagenet\n"
		    "  dsfs mount /srv/datasets/imagenet /mnt/imagenet -o version=2026-03-01\n"
		    "  mount -t dsfs s3://bucket/imagenet /mnt/imagenet -o "
		    "version=v2.1,cache_size=500G\n",
	.options = mount_options,
	.mount_options = cli_mount_option_table,
	.takes_json = true,
	.args_max = 2,
	.run = run_mount,
};

/* Somebody's stat or statfs on its way (df, a listing of mounts) makes a mount busy too, for as long as it takes, and is no holder
 * that a user could ask to go: it is waited for. */
static int unmount_unless_held(const struct cli_mount *mount, const char *path, bool lazy)
{
	uint64_t deadline_ns = ds_deadline_in_ms(PASSING_MS);
	int r;

	while ((r = cli_unmount(path, lazy)) == -EBUSY && !cli_mount_print_holders(mount) &&
	       ds_mono_ns() < deadline_ns)
		ds_sleep_ms(20);
	return r;
}

static int unmount(struct cli_call *call, const char *typed, bool lazy)
{
	struct cli_mount *mount;
	struct cli_mounts mounts = {0};
	char *path = NULL;
	int r;

	r = cli_mountpoint_path(typed, &path);
	if (r < 0)
		return ds_diag_set(&call->diag, -ENOENT, typed, "the mount point does not exist");
	r = cli_mounts_read(&mounts);
	mount = r == 0 ? cli_mounts_find(&mounts, path) : NULL;
	if (r == 0 && !mount) {
		r = ds_diag_set(&call->diag, -DS_E_NOT_MOUNTED, typed, NULL);
	} else if (r == 0 && geteuid() != 0 && mount->uid != geteuid()) {
		r = ds_diag_set(&call->diag, -EPERM, typed,
				"another user (%u) has mounted it, who or root can unmount it",
				(unsigned)mount->uid);
	} else if (r == 0) {
		if (!mount->pid)
			cli_mounts_ask(mount, 1);
		/* Nobody can use a dead mount: what still holds it must not keep it in the way. */
		r = unmount_unless_held(mount, path, lazy || mount->state == CLI_MOUNT_DEAD);
		if (r == -EBUSY) {
			ds_diag_set(&call->diag, r, typed,
				    "the mount is in use; -l detaches it now");
		} else if (r < 0) {
			ds_diag_set(&call->diag, r, typed, "cannot unmount");
		}
	}
	if (r == 0 && mount && !lazy && !cli_mount_wait_end(mount, END_TIMEOUT_MS)) {
		r = ds_diag_set(&call->diag, -DS_E_TIMEOUT, typed,
				"unmounted, but process %d has not ended yet", (int)mount->pid);
		cli_mount_print_copies(mount);
	}
	cli_mounts_release(&mounts);
	ds_free(path);
	return r;
}

static int run_umount(struct cli_call *call)
{
	int status = CLI_EXIT_OK;

	for (size_t i = 0; i < call->args_n; i++) {
		int r;

		ds_diag_clear(&call->diag);
		r = unmount(call, call->args[i], cli_has(call, "lazy"));
		if (r < 0)
			status = cli_fail(call, r, NULL);
	}
	return status;
}

static const struct cli_option umount_options[] = {
	{'l', "lazy", NULL, "detach now, and let it end when the last user is gone", false},
	{0},
};

const struct cli_command cli_command_umount = {
	.name = "umount",
	.arguments = "MOUNTPOINT...",
	.summary = "unmount, and wait for the mount's process to end",
	.details = "A mount that is in use stays (exit status 10), and its holders are named. A "
		   "dead mount "
		   "is cleaned away.",
	.options = umount_options,
	.args_min = 1,
	.args_max = CLI_ARGS_MAX,
	.run = run_umount,
};
