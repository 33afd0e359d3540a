/*
 * What the parts of the FUSE layer share.
 *
 * Node ids and inode numbers are slot << 40 | inode (design, section 5): slot 0 is the mount's
 * version, the highest the control directory.
 */
#ifndef DS_FS_FS_INTERNAL_H
#define DS_FS_FS_INTERNAL_H

#define FUSE_USE_VERSION 314
#include <fuse_lowlevel.h>

#include <pthread.h>

#include "fs/fs.h"
#include "util/map.h"
#include "util/per_cpu.h"
#include "util/work.h"

#define FS_SLOT_SHIFT	40
#define FS_SLOT_CONTROL ((UINT64_C(1) << (64 - FS_SLOT_SHIFT)) - 1)
#define FS_TIMEOUT_S	1e9 /* attributes and entries never change: some 30 years */
#define FS_BLOCK_BYTES	4096u
#define FS_READ_MAX	DS_MIB(4)

struct fs_stats {
	struct ds_counter requests_n, opens_n,
		read_bytes; /* of every request: not one line for all threads */
	_Atomic uint64_t parked_n, interrupted_n, timeouts_n, failures_n, passthrough_opens_n;
	_Atomic uint64_t listings_ahead_n; /* made before they were asked for */
};

struct ds_fs {
	struct ds_fs_options options;
	struct ds_view *view;
	const struct ds_record *record;
	struct ds_fetcher *fetcher;
	struct fuse_session *session;
	dev_t device;	      /* of the mount; 0: not known */
	struct ds_work *work; /* what may hash or wait for the disk */
	enum ds_fs_mode mode; /* auto until INIT */
	bool is_large;	      /* most bytes are in files that passthrough serves; of auto */
	const char *why_size; /* how that is known, in words */
	char how[512];	      /* in words */
	const char *refusal;  /* why what was asked for cannot be had */
	struct {
		unsigned depth;	     /* requests of each core; 0: not tried */
		const char *missing; /* why not; NULL: in use, as far as is known */
		char why[192];	     /* what `missing` points to, if it had to be made up */
		_Atomic bool is_used;
	} uring;
	struct {
		pthread_mutex_t mutex;
		struct ds_map *files; /* inode -> struct open_file (fs_open.c) */
		uint64_t backings_n, backings_max;
		_Atomic bool is_off; /* the kernel takes no file */
	} opens;
	struct fs_stats stats;
	struct ds_lanes buffers; /* fs_read.c */
	struct fs_ahead *ahead;	 /* fs_ahead.c */
	char *version_json;	 /* contents of /.dsfs/version.json */
	struct ds_work_item ready_work;
	_Atomic bool is_ready;
	pthread_mutex_t mutex;
	pthread_cond_t idle;
	struct {
		/* Every request that is not answered yet and has left its FUSE thread. */
		struct ds_list requests;
		size_t requests_n;
		struct ds_list snapshots; /* of nodes in the control directory */
		uint64_t snapshots_n;	  /* ever */
		bool is_ending;
	} locked;
};

struct fs_request;
/*
 * One run of a request: replies and returns 0, or gives an error; -DS_E_NOT_LOCAL parks it. Must be
 * able to run again.
 */
typedef int fs_run_fn(struct fs_request *request);

struct fs_request {
	fuse_req_t req;
	struct ds_fs *fs;
	fs_run_fn *run;
	const char *op; /* for the log */
	uint64_t ino;
	uint64_t off;
	size_t size;
	bool flag;  /* readdir: plus; lseek: hole; read: not past the page cache */
	char *name; /* of a lookup or an xattr; owned */
	uint64_t deadline_ns;
	struct ds_demand demand;
	struct ds_work_item work;
	struct ds_list node; /* in fs->locked.requests */
	bool was_parked;
	pthread_mutex_t mutex;
	bool is_interrupted; /* under mutex */
};

/*
 * fs_request.c: starts a request with these fields set; it is answered sooner or later. Copies
 * name.
 */
void fs_request_start(fuse_req_t req, const struct fs_request *fields);
/* The same of what is no other request, as one that was started once and left all this, or is counted elsewhere. */
void fs_request_start_uncounted(fuse_req_t req, const struct fs_request *fields);
/* At the end: answers whatever waits with EIO and returns when no request is left. */
void fs_request_end_all(struct ds_fs *fs);

/* fs_reply.c: the one place where codes become errnos; logs what is not an ordinary answer. */
void fs_reply_error(struct fs_request *request, int code);

/* fs_stat.c */
void fs_stat_fill(const struct ds_fs *fs, const struct ds_entry *entry, struct stat *ret_st);
void fs_entry_fill(const struct ds_fs *fs, const struct ds_entry *entry,
		   struct fuse_entry_param *ret_param);

/* fs_kernel.c: before the session starts; it may wait for the disk and for one answer of the store, timeout_ms at most. */
void fs_kernel_prepare(struct ds_fs *fs);
/* Where a process has CAP_SYS_ADMIN. */
enum fs_admin { FS_ADMIN_NONE, FS_ADMIN_NAMESPACE, FS_ADMIN_MACHINE };
/* What ds_fs_no_passthrough says to such a process on a kernel of this release ("6.9.0-rc1", uname(2)). */
const char *fs_kernel_lack(enum fs_admin admin, const char *cache_dir, const char *release);
/* At INIT: what is asked of the kernel, and the mode. */
void fs_kernel_init(struct ds_fs *fs, struct fuse_conn_info *conn);

/* fs_uring.c: before the session starts. -EOPNOTSUPP: it was asked for, and cannot be had. */
int fs_uring_prepare(struct ds_fs *fs, struct ds_diag *reterr_diag);
/* Appends options for libfuse, each after a comma. */
int fs_uring_options(const struct ds_fs *fs, struct ds_buf *buf);
/* At INIT, when all else is set. */
void fs_uring_init(struct ds_fs *fs, struct fuse_conn_info *conn);
/* Of each statfs: how it came. */
void fs_uring_note(struct ds_fs *fs, fuse_req_t req);
/* Once the mount has answered a statfs: completes `how`; why the mount is to end, or NULL. */
const char *fs_uring_settle(struct ds_fs *fs);

/* fs_open.c: opens and releases in passthrough mode. In `fh` of the handles that are counted there: */
#define FS_OPEN_COUNTED 1u
int fs_open_init(struct ds_fs *fs);
void fs_open_end(struct ds_fs *fs);
int fs_run_open(struct fs_request *request);
/* Before the reply to the release. */
void fs_open_release(struct ds_fs *fs, uint64_t ino);

/* fs_readahead.c: once the mount answers; completes `how`. */
void fs_readahead_set(struct ds_fs *fs);

/* fs_ready.c: called by INIT; tells the owner as soon as the mount answers, from a worker. */
void fs_ready_start(struct ds_fs *fs);

/* fs_control.c: the control directory. True: the node is one of it. */
static inline bool fs_control_is(fuse_ino_t ino)
{
	return ino >> FS_SLOT_SHIFT == FS_SLOT_CONTROL;
}
int fs_control_init(struct ds_fs *fs);
/* When no request can come any more. */
void fs_control_end(struct ds_fs *fs);
/* True if the name is the control directory's in the root: then it is answered. */
bool fs_control_lookup(struct ds_fs *fs, fuse_req_t req, fuse_ino_t parent, const char *name);
void fs_control_getattr(struct ds_fs *fs, fuse_req_t req, fuse_ino_t ino);
void fs_control_read(struct ds_fs *fs, fuse_req_t req, fuse_ino_t ino, size_t size, off_t off);
/* To the next data or, is_hole, to the hole that follows it: the end. */
void fs_control_lseek(struct ds_fs *fs, fuse_req_t req, fuse_ino_t ino, off_t off, bool is_hole);
/* The kernel has let go of a node of it. */
void fs_control_forget(struct ds_fs *fs, fuse_ino_t ino);
void fs_control_readdir(struct ds_fs *fs, fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
			bool plus);

/* fs_ops.c, fs_readdir.c, fs_read.c, fs_xattr.c */
extern const struct fuse_lowlevel_ops fs_ops;
int fs_run_readdir(struct fs_request *request);

/* One answer to a readdir. */
struct fs_listing {
	/* set by who wants it */
	uint64_t ino, off;
	size_t size;
	bool is_plus;
	char *buffer; /* of `size` bytes */
	/* made */
	size_t used;
	uint64_t last; /* cookie of its last name */
	bool has_more; /* a name did not fit */
};
/* Makes it, in one run or (-DS_E_NOT_LOCAL) in several, each of which starts afresh. */
int fs_listing_make(struct ds_fs *fs, struct ds_demand *demand, struct fs_listing *listing);

/* fs_ahead.c: parts of listings that are made before they are asked for. */
int fs_ahead_init(struct ds_fs *fs);
/* When no work is queued any more. */
void fs_ahead_end(struct ds_fs *fs);
/* Has the part after this one made, if there is one. Never waits. */
void fs_ahead_start(struct ds_fs *fs, const struct fs_listing *before);
/*
 * The part that is asked for, if it is ready; until fs_ahead_put. NULL: the caller makes it. may_wait: not
 * on a FUSE thread; waits for a worker who is at it just now, else *ret_is_making says that there is one.
 */
struct fs_listing *fs_ahead_take(struct ds_fs *fs, const struct fs_listing *asked, bool may_wait,
				 bool *ret_is_making);
/* The caller has made it himself all the same. */
void fs_ahead_drop(struct ds_fs *fs, const struct fs_listing *answered);
void fs_ahead_put(struct ds_fs *fs, struct fs_listing *taken);

int fs_run_read(struct fs_request *request);
/* When no request can come any more. */
void fs_read_end(struct ds_fs *fs);
int fs_run_lseek(struct fs_request *request);
int fs_run_getxattr(struct fs_request *request);
void fs_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size);

#endif
