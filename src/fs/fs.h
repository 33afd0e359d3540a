/*
 * A version as a FUSE file system: the mount's whole life in one call.
 *
 * Threads: ds_fs_run is called once, from the main thread, after the process has gone to the
 * background: it starts FUSE's threads. It blocks until the file system is unmounted, by whomever,
 * or SIGTERM, SIGINT or SIGHUP comes (whose handlers are the default ones afterwards); the last two
 * not if they were ignored before. It makes the process not dumpable: no core, no ptrace by others
 * of the user.
 */
#ifndef DS_FS_FS_H
#define DS_FS_FS_H

#include "cache/fetch.h"
#include "repo/record.h"
#include "repo/view.h"
#include "repo/view_warm.h"

/* How the kernel reaches the bytes; `auto` chooses by the version's sizes of files and by what can be had. */
enum ds_fs_mode { DS_FS_AUTO, DS_FS_CLASSIC, DS_FS_STATELESS, DS_FS_PASSTHROUGH };
/* "auto", "classic", "stateless", "passthrough"; -EINVAL. */
int ds_fs_mode_parse(const char *text, enum ds_fs_mode *ret_mode);
/*
 * What this process, kernel or cache would need for passthrough, as a sentence; NULL: nothing that can be seen before a mount, whose INIT has
 * the last word (also about a kernel that calls itself an older one). cache_dir: where it is or is to be; NULL: not known.
 */
const char *ds_fs_no_passthrough(const char *cache_dir);

/* Whether requests come through io_uring; `auto`: where they can. */
enum ds_fs_uring { DS_FS_URING_AUTO, DS_FS_URING_ON, DS_FS_URING_OFF };
/* "auto", "on", "off"; -EINVAL. */
int ds_fs_uring_parse(const char *text, enum ds_fs_uring *ret_uring);
/* Why this process cannot have it, and what would help, as a sentence; NULL: nothing that can be seen before a mount. */
const char *ds_fs_no_uring(void);

/*
 * The kernel's own 128 KiB make large files slow (T13), more hurts random readers of mappings (T14). Measured on 2 cores, a file
 * that the cache has, 1 MiB reads: 512 KiB 1.1-1.5 times as fast as 128, 1 MiB 1.1-1.5, 2 MiB 1.2-1.8, of a cold store all the
 * same; pages of a mapping at random 0.40-0.59, 0.23-0.29 and 0.18-0.24 times.
 */
#define DS_FS_READAHEAD_BYTES DS_KIB(512)

/* Why this process cannot raise the kernel's readahead, and what would help, as a sentence; NULL: nothing that can be seen before a mount. */
const char *ds_fs_no_readahead(void);

struct ds_fs_options {
	const char *mountpoint; /* absolute */
	const char *source;	/* as typed: what mountinfo shows */
	const char *cache_dir;	/* the cache's files are there; NULL: it has none */
	const char *flags;    /* more mount options, as libfuse takes them: "noexec"; NULL: none */
	enum ds_fs_mode mode; /* one that cannot be had is an error */
	enum ds_fs_uring uring; /* `on` where it cannot be had is an error */
	bool allow_other;
	uint32_t uid, gid;   /* owner of everything */
	uint32_t umask;	     /* permission bits that are taken away */
	uint64_t timeout_ms; /* longest wait of a request */
	/*
	 * How far the kernel is to read ahead; 0: DS_FS_READAHEAD_BYTES, or further if it does already. More than its own
	 * needs the right to write to /sys.
	 */
	uint64_t readahead_bytes;
	/* Called on SIGHUP, in the signal handler; NULL: SIGHUP ends the mount, unless it was ignored before. */
	void (*hangup)(int signal);
	/*
	 * Called once, from a worker, when the mount has answered its first request; may be NULL. `how` says which
	 * ways of the kernel it uses, and why.
	 */
	void (*ready)(void *ctx, const char *how);
	void *ctx;
	struct ds_warm *warm;	/* of the view, for the counters; NULL: none */
	struct ds_cache *cache; /* the same; NULL: not counted */
};

/* Release of the libfuse that this program uses, and whether it is the bundled one. */
const char *ds_fs_fuse_version(void);

/*
 * Mounts, serves, unmounts. 0 after an orderly end, or when the connection was aborted (fusectl): then the dead mount is the caller's
 * to detach. Errors before `ready`: -ENOENT, -EACCES and
 * others of mount(2), -EINTR, -EOPNOTSUPP (the mode, io_uring), with a reason in the diag. The view must be non-blocking; all
 * requests of it are over on return.
 */
int ds_fs_run(const struct ds_fs_options *options, struct ds_view *view,
	      const struct ds_record *record, struct ds_fetcher *fetcher,
	      struct ds_diag *reterr_diag);

#endif
