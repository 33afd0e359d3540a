/*
 * A version as a FUSE file system: the mount's whole life in one call.
 *
 * Threads: ds_fs_run is called once, from the main thread, after the process has gone to the
 * background: it starts FUSE's threads. It blocks until the file system is unmounted, by whomever,
 * or SIGTERM, SIGINT or SIGHUP comes (whose handlers are the default ones afterwards). It makes the
 * process not dumpable: no core, no ptrace by others of the user.
 */
#ifndef DS_FS_FS_H
#define DS_FS_FS_H

#include "cache/fetch.h"
#include "repo/record.h"
#include "repo/view.h"

struct ds_fs_options {
	const char *mountpoint; /* absolute */
	const char *source;	/* as typed: what mountinfo shows */
	const char *kernel; /* more mount options, as libfuse takes them: "noexec"; NULL: none */
	bool allow_other;
	uint32_t uid, gid;   /* owner of everything */
	uint32_t umask;	     /* permission bits that are taken away */
	uint64_t timeout_ms; /* longest wait of a request */
	/* Called on SIGHUP, in the signal handler; NULL: SIGHUP ends the mount. */
	void (*hangup)(int signal);
	/*
	 * Called once, from a worker, when the mount has answered its first request; may be NULL.
	 */
	void (*ready)(void *ctx);
	void *ctx;
};

/* Release of the libfuse that this program uses, and whether it is the bundled one. */
const char *ds_fs_fuse_version(void);

/*
 * Mounts, serves, unmounts. 0 after an orderly end. Errors before `ready`: -ENOENT, -EACCES and
 * others of mount(2), -EINTR, with a reason in the diag. The view must be non-blocking; all
 * requests of it are over on return.
 */
int ds_fs_run(const struct ds_fs_options *options, struct ds_view *view,
	      const struct ds_record *record, struct ds_fetcher *fetcher,
	      struct ds_diag *reterr_diag);

#endif
