/*
 * doctor: what this machine and this store allow, and what would have to be done for more. A mount whose process is
 * not known is asked as the list of mounts asks, which it cannot hang.
 */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "cli/commands.h"
#include "cli/mountinfo.h"
#include "cli/session.h"
#include "fs/fs.h"
#include "repo/refs.h"
#include "util/clock.h"
#include "util/file.h"
#include "util/mem.h"
#include "util/str.h"

enum verdict { GOOD, NOTE, BAD };

struct doctor {
	struct cli_call *call;
	json_t *rows;
	unsigned bad_n;
};

static void say(struct doctor *doctor, enum verdict verdict, const char *what, const char *format,
		...) __attribute__((format(printf, 4, 5)));

static void say(struct doctor *doctor, enum verdict verdict, const char *what, const char *format,
		...)
{
	static const char *const names[] = {"ok", "note", "bad"};
	char text[2 * PATH_MAX];
	va_list ap;

	va_start(ap, format);
	vsnprintf(text, sizeof(text), format, ap);
	va_end(ap);
	/* Other users' mount points are in it, of any bytes. */
	ds_defuse(text);
	doctor->bad_n += verdict == BAD;
	if (doctor->rows)
		json_array_append_new(doctor->rows,
				      json_pack("{s:s, s:s, s:s}", "what", what, "verdict",
						names[verdict], "text", text));
	else
		printf("%-4s  %-12s %s\n", names[verdict], what, text);
}

static void check_kernel(struct doctor *doctor)
{
	struct utsname name;

	if (uname(&name) == 0)
		say(doctor, GOOD, "kernel", "%s %s", name.sysname, name.release);
	say(doctor, GOOD, "libfuse", "%s", ds_fs_fuse_version());
	if (access("/dev/fuse", R_OK | W_OK) == 0)
		say(doctor, GOOD, "/dev/fuse", "can be opened");
	else if (errno == EACCES)
		say(doctor, BAD, "/dev/fuse",
		    "is there, but this user may not open it: as root 'chmod 666 /dev/fuse', or "
		    "put the user into the group that may");
	else
		say(doctor, BAD, "/dev/fuse",
		    "cannot be opened: load it with 'modprobe fuse', or in a container add "
		    "--device /dev/fuse --cap-add SYS_ADMIN");
	if (geteuid() != 0 && system("command -v fusermount3 >/dev/null 2>&1") != 0)
		say(doctor, BAD, "fusermount3", "is missing: install the package fuse3");
	if (ds_fs_no_uring())
		say(doctor, NOTE, "io_uring", "%s", ds_fs_no_uring());
	else
		say(doctor, GOOD, "io_uring", "mounts take the kernel's requests through it");
	if (ds_fs_no_readahead())
		say(doctor, NOTE, "readahead", "%s", ds_fs_no_readahead());
	else
		say(doctor, GOOD, "readahead",
		    "the kernel can be made to read ahead as far as readahead= says");
}

static void check_cache(struct doctor *doctor)
{
	_ds_cleanup_free_ char *dir = cli_default_cache_dir();
	struct ds_cache_options options = {.dir = dir};
	struct ds_diag diag = {0};
	struct ds_cache *cache = NULL;
	char total[32], avail[32], line[512];
	struct statvfs st;
	bool is_full;
	int r;

	if (!dir) {
		say(doctor, BAD, "cache", "there is no home directory: give -o cache_dir=");
		return;
	}
	r = ds_cache_open(&options, &cache, &diag);
	if (r < 0) {
		diag.code = r;
		say(doctor, BAD, "cache", "%s", ds_diag_format(&diag, line, sizeof(line)));
		return;
	}
	is_full = ds_cache_room_bytes(cache) < DS_CHUNK_MAX;
	if (faccessat(AT_FDCWD, dir, W_OK, AT_EACCESS) < 0)
		say(doctor, BAD, "cache", "%s: %s: nothing can be stored in it", dir,
		    ds_strerror(-errno));
	else if (statvfs(dir, &st) == 0)
		say(doctor, is_full ? NOTE : GOOD, "cache",
		    "%s, on a file system of %s with %s free%s", dir,
		    ds_format_size((uint64_t)st.f_blocks * st.f_frsize, total, sizeof(total)),
		    ds_format_size((uint64_t)st.f_bavail * st.f_frsize, avail, sizeof(avail)),
		    is_full ? ": it is full (a tenth of it stays free), and what is not in the "
			      "cache yet will not stay in it"
			    : "");
	ds_cache_unref(cache);
}

/* It depends on where the cache is. */
static void check_passthrough(struct doctor *doctor)
{
	_ds_cleanup_free_ char *cache_dir = cli_default_cache_dir();
	const char *missing = ds_fs_no_passthrough(cache_dir);

	if (missing)
		say(doctor, NOTE, "passthrough", "%s", missing);
	else
		say(doctor, GOOD, "passthrough",
		    "large files can be read by the kernel from the cache");
}

static void say_mount(struct doctor *doctor, const struct cli_mount *mount)
{
	if (mount->state == CLI_MOUNT_STUCK)
		say(doctor, NOTE, "mount",
		    "%s: stuck: it has not answered within %u s: its log says more; dsfs umount "
		    "--lazy %s",
		    mount->mountpoint, CLI_MOUNT_ASK_MS / 1000, mount->mountpoint);
	else if (mount->state == CLI_MOUNT_DEAD)
		say(doctor, NOTE, "mount", "%s: dead: its %s: dsfs umount %s", mount->mountpoint,
		    mount->pid ? "connection is cut" : "process is gone", mount->mountpoint);
	else if (mount->pid)
		say(doctor, GOOD, "mount", "%s on %s, process %d%s%s", mount->source,
		    mount->mountpoint, (int)mount->pid, mount->how ? ": " : "",
		    mount->how ? mount->how : "");
	else
		say(doctor, NOTE, "mount", "%s: its process is not known here", mount->mountpoint);
}

static void check_mounts(struct doctor *doctor)
{
	struct cli_mounts mounts = {0};

	if (cli_mounts_read(&mounts) < 0)
		return;
	cli_mounts_ask(mounts.mounts, mounts.mounts_n);
	for (size_t i = 0; i < mounts.mounts_n; i++)
		if (geteuid() == 0 || mounts.mounts[i].uid == geteuid())
			say_mount(doctor, &mounts.mounts[i]);
	cli_mounts_release(&mounts);
}

static bool is_empty(struct ds_repo *repo)
{
	struct ds_ref_list list;
	bool is_empty;

	if (ds_refs_list(repo, &list, NULL) < 0)
		return false;
	is_empty = list.heads_n == 0;
	ds_ref_list_release(&list);
	return is_empty;
}

static void check_repository(struct doctor *doctor, const char *text)
{
	struct cli_call *call = doctor->call;
	struct ds_locator locator = {0};
	struct ds_repo *repo = NULL;
	struct ds_resolved resolved;
	uint64_t start_ns = ds_mono_ns();
	char line[1024], id[DS_DIGEST_TEXT_MAX];
	struct ds_time now;
	int r;

	r = cli_open_repo(call, text, &locator, &repo);
	if (r == 0)
		say(doctor, GOOD, "repository", "%s answers in %llu ms", locator.url,
		    (unsigned long long)((ds_mono_ns() - start_ns) / DS_NS_PER_MS));
	if (r == 0 && ds_store_now(ds_repo_store(repo), &now, NULL) == 0) {
		int64_t skew_s = ds_time_diff_ns(ds_real_now(), now) / (int64_t)DS_NS_PER_S;

		say(doctor, skew_s > 300 || skew_s < -300 ? NOTE : GOOD, "clock",
		    "%lld s ahead of the store's", (long long)skew_s);
	}
	if (r == 0) {
		r = ds_resolve(repo, locator.selector, &resolved, &call->diag);
		if (r == -DS_E_NO_VERSION && !locator.selector && is_empty(repo)) {
			r = 0;
			say(doctor, NOTE, "version", "there is none yet: 'dsfs commit' makes one");
		} else if (r == 0) {
			say(doctor, GOOD, "version", "%s", ds_digest_format(&resolved.version, id));
		}
	}
	if (r < 0) {
		call->diag.code = r;
		say(doctor, BAD, "repository", "%s",
		    ds_diag_format(&call->diag, line, sizeof(line)));
	}
	ds_repo_unref(repo);
	ds_locator_release(&locator);
}

static int run_doctor(struct cli_call *call)
{
	struct doctor doctor = {.call = call, .rows = call->json ? json_array() : NULL};
	int status;

	check_kernel(&doctor);
	check_cache(&doctor);
	check_passthrough(&doctor);
	check_mounts(&doctor);
	if (call->args_n)
		check_repository(&doctor, call->args[0]);
	cli_print_json(doctor.rows);
	status = cli_finish_output(call);
	return status == 0 && doctor.bad_n ? CLI_EXIT_FAILURE : status;
}

const struct cli_command cli_command_doctor = {
	.name = "doctor",
	.arguments = "[REPO[@VERSION]]",
	.summary = "say what this machine and this store allow, and what is missing",
	.details = "A dead mount cannot hang it. Exits with 1 if "
		   "something "
		   "would keep dsfs from working. Of each mount it says which ways of the kernel "
		   "it uses (kernel=, io_uring=, readahead=), and why, as the mount's log does.",
	.takes_store = true,
	.takes_json = true,
	.args_max = 1,
	.run = run_doctor,
};
