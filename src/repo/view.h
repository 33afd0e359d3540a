/*
 * A view: one version, open for reading, over the cache. What a mount and the reading commands use.
 *
 * Look-ups never wait in a view that is opened for a mount: when something is not local, they note
 * it in the caller's `demand`, end with -DS_E_NOT_LOCAL, and the caller parks until ds_demand_wait
 * calls back, then calls again. A demand keeps what was delivered to it and is not in the cache for sure, and the last of all (pins
 * the bytes), so that each run gets further even if the cache can hold nothing.
 *
 * A blocking view waits inside; the demand may be NULL there, and if it is not, says more about an
 * error.
 *
 * Threads: a view is shared; a demand belongs to one request. Errors: -DS_E_NOT_LOCAL, -ENOENT
 * (only from the verified manifest), -ENOTDIR, -EISDIR, -EINVAL, -DS_E_MALFORMED, -DS_E_CORRUPT,
 * -ENOMEM, in a blocking view also what the fetcher gives.
 */
#ifndef DS_REPO_VIEW_H
#define DS_REPO_VIEW_H

#include "cache/fetch.h"
#include "manifest/manifest.h"
#include "repo/record.h"

struct ds_view;

/*
 * Takes references of repo and cache; what is needed of `record` is copied; the fetcher must outlive
 * the view. Blocks: unless the cache has the index's root already, it fetches the record's prefetch
 * list in one GET. That this fails is no error: what is missing is asked for when it is needed.
 */
int ds_view_open(struct ds_repo *repo, struct ds_cache *cache, struct ds_fetcher *fetcher,
		 const struct ds_record *record, bool blocking, uint64_t timeout_ms,
		 struct ds_view **ret_view, struct ds_diag *reterr_diag);
/*
 * Fetches the record's prefetch list in one GET all the same, but not twice: for who needs what a commit puts there, and finds that the
 * cache has the root only. Blocks, and is no error if it fails. Right after ds_view_open, before any request.
 */
void ds_view_fetch_listed(struct ds_view *view, const struct ds_record *record);
/* All requests must be over. */
struct ds_view *ds_view_close(struct ds_view *view);
const struct ds_digest *ds_view_version(const struct ds_view *view);
/* For blocking use: the manifest itself (verify, diff); `want` is NULL there. */
struct ds_manifest *ds_view_manifest(struct ds_view *view);
const struct ds_page_source *ds_view_page_source(struct ds_view *view);

#define DS_DEMAND_TARGETS_MAX 16

struct ds_demand {
	/* set by ds_view_* on -DS_E_NOT_LOCAL: what this request misses now */
	struct ds_fetch_target targets[DS_DEMAND_TARGETS_MAX];
	size_t targets_n;
	/*
	 * True after init: the call may wait for the disk and hash what is there from another boot.
	 * Without it (FUSE's threads), only what page cache gives at once is an answer; else the
	 * call ends with -DS_E_NOT_LOCAL and no targets: call again on a worker, with it.
	 */
	bool may_check;
	/*
	 * For a read without may_check, by who can have the kernel read: he sets the room that he has for it (0 after init). Then
	 * -DS_E_NOT_LOCAL with direct.image set says that all of the range lies there; he reads and ends it
	 * (ds_image_direct_end).
	 */
	size_t direct_room_bytes;
	struct ds_image_direct direct;
	/*
	 * For a read without may_check, by who passes the bytes on at once: he sets `may_be_lent` (false after init). Then 0 with
	 * lent.image set says that they lie at lent.data instead of where he asked for them, until
	 * ds_demand_give_back, which must follow soon; see ds_image_lend_now.
	 */
	bool may_be_lent;
	struct {
		struct ds_image *image;
		const uint8_t *data;
		size_t len_bytes;
	} lent;
	/* the demand's own */
	struct ds_view *view;
	bool is_listing;     /* pages are asked for in order: set while a directory is listed */
	struct ds_list pins; /* what was delivered */
	struct ds_diag diag; /* of an error */
	void *wait;
};
void ds_demand_init(struct ds_demand *demand, struct ds_view *view);
/* What was lent, if anything. */
void ds_demand_give_back(struct ds_demand *demand);
/* Drops pins and gives back. Not while a wait is on. */
void ds_demand_release(struct ds_demand *demand);
/*
 * Waits for the targets (at least one). 0: `done` is called exactly once, from a worker, with 0
 * (run the request again) or the first error, unless ds_demand_abandon returns true first; it may
 * come before this returns, never on this thread. An error: it will not be called. Not at the same
 * time as ds_demand_abandon: a lock of the caller's orders them, which `done` may have to wait for.
 */
int ds_demand_wait(struct ds_demand *demand, uint64_t deadline_ns,
		   void (*done)(struct ds_demand *demand, int result, void *ctx), void *ctx);
/* true: done will not be called. false: it is being called or has been, or there is no wait. */
bool ds_demand_abandon(struct ds_demand *demand);

/* As in manifest.h, with a demand (NULL in a blocking view) as `want`. */
int ds_view_lookup(struct ds_view *view, struct ds_demand *demand, uint64_t parent,
		   const char *name, size_t name_len, struct ds_entry *ret_entry);
int ds_view_get(struct ds_view *view, struct ds_demand *demand, uint64_t ino,
		struct ds_entry *ret_entry);
int ds_view_list(struct ds_view *view, struct ds_demand *demand, uint64_t dir, uint64_t after,
		 ds_manifest_list_fn *fn, void *ctx);
int ds_view_list_attrs(struct ds_view *view, struct ds_demand *demand, uint64_t dir, uint64_t after,
		       ds_manifest_list_fn *fn, void *ctx);
int ds_view_readlink(struct ds_view *view, struct ds_demand *demand, uint64_t ino,
		     struct ds_buf *buf);
/* As ds_manifest_total. */
int ds_view_total(struct ds_view *view, struct ds_demand *demand, const char *key,
		  uint64_t *ret_value);
/*
 * Reads up to len bytes at off of a file; fewer only at its end. All or nothing: on -DS_E_NOT_LOCAL
 * every missing chunk of the range (up to DS_DEMAND_TARGETS_MAX) is in demand->targets.
 */
int ds_view_read(struct ds_view *view, struct ds_demand *demand, uint64_t ino, uint64_t off,
		 size_t len_bytes, void *ret_data, size_t *ret_n);
/*
 * Files that will be read soon and in this order, from their starts: what is missing of them is fetched,
 * with few GETs, while the caller goes on. A hint: no error, and nothing at all where the cache could not
 * keep it. Look-ups wait: for blocking views.
 */
void ds_view_prefetch(struct ds_view *view, const uint64_t *inodes, size_t inodes_n);
/*
 * A cached file that is, byte for byte, this file, for the kernel to read: once all of it is here and checked. -ENODATA: it is not, or it is
 * too small to have a file of its own. The cached file never changes afterwards, and stays readable after it was evicted, which it is not
 * while `hold_fd` is open. Errors besides: as above, -EMFILE, -EIO.
 */
struct ds_view_backing { /* the caller's to close */
	int data_fd;
	int hold_fd; /* -1: it could not be had */
};
int ds_view_backing(struct ds_view *view, struct ds_demand *demand, uint64_t ino,
		    struct ds_view_backing *ret_backing);
/*
 * The next data (or hole, with `hole`) at or after off: SEEK_DATA and SEEK_HOLE. -ENXIO past the
 * end.
 */
int ds_view_seek(struct ds_view *view, struct ds_demand *demand, uint64_t ino, uint64_t off,
		 bool hole, uint64_t *ret_off);
/*
 * Walks a path ("a/b/c", no leading slash, no ".." handling; "" is the root) without following
 * symlinks.
 */
int ds_view_walk(struct ds_view *view, struct ds_demand *demand, const char *path,
		 struct ds_entry *ret_entry);

#endif
