/*
 * Listings. The cookie of an entry is its id, 1 and 2 are "." and "..": a listing resumes after any
 * of them without state of an open handle.
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "fs/fs_internal.h"
#include "util/error.h"
#include "util/mem.h"

#define COOKIE_DOT    1u
#define COOKIE_DOTDOT 2u

struct call {
	struct ds_fs *fs;
	struct fs_listing *listing;
};

static size_t room(const struct fs_listing *listing)
{
	return listing->size - listing->used;
}

/* 1: it does not fit any more. */
static int add(struct fs_listing *listing, const char *name, const struct fuse_entry_param *param,
	       uint64_t cookie)
{
	char *at = listing->buffer + listing->used;
	size_t n;

	/* libfuse does not look at the request. */
	if (listing->is_plus)
		n = fuse_add_direntry_plus(NULL, at, room(listing), name, param, (off_t)cookie);
	else
		n = fuse_add_direntry(NULL, at, room(listing), name, &param->attr, (off_t)cookie);
	listing->has_more = n > room(listing);
	if (listing->has_more)
		return 1;
	listing->used += n;
	listing->last = cookie;
	return 0;
}

static int add_dot(struct fs_listing *listing, const char *name, uint64_t ino, uint64_t cookie)
{
	/* Node id 0: the kernel takes no look-up from these two. */
	struct fuse_entry_param param = {.attr = {.st_ino = ino, .st_mode = S_IFDIR}};

	return add(listing, name, &param, cookie);
}

static int add_entry(void *ctx, const struct ds_entry *entry)
{
	struct call *call = ctx;
	struct fuse_entry_param param;

	fs_entry_fill(call->fs, entry, &param);
	return add(call->listing, entry->name, &param, entry->id);
}

int fs_listing_make(struct ds_fs *fs, struct ds_demand *demand, struct fs_listing *listing)
{
	struct call call = {.fs = fs, .listing = listing};
	uint64_t after = listing->off;
	struct ds_entry dir;
	int r;

	listing->used = 0;
	listing->has_more = false;
	if (after < COOKIE_DOTDOT) {
		r = ds_view_get(fs->view, demand, listing->ino, &dir);
		if (r < 0)
			return r;
		if (dir.type != DS_ENTRY_DIRECTORY)
			return -ENOTDIR;
		if (after < COOKIE_DOT && add_dot(listing, ".", dir.ino, COOKIE_DOT))
			return 0;
		if (add_dot(listing, "..", dir.parent ? dir.parent : dir.ino, COOKIE_DOTDOT))
			return 0;
		after = 0;
	} else if (after == COOKIE_DOTDOT) {
		after = 0;
	}
	return ds_view_list_attrs(fs->view, demand, listing->ino, after, add_entry, &call);
}

int fs_run_readdir(struct fs_request *request)
{
	struct ds_fs *fs = request->fs;
	struct fs_listing listing = {.ino = request->ino,
				     .off = request->off,
				     .size = request->size,
				     .is_plus = request->flag};
	bool is_making;
	struct fs_listing *ahead =
		fs_ahead_take(fs, &listing, request->demand.may_check, &is_making);
	_ds_cleanup_free_ char *buffer = NULL;
	int r;

	if (ahead) {
		fs->stats.listings_ahead_n++;
		fuse_reply_buf(request->req, ahead->buffer, ahead->used);
		fs_ahead_start(fs, ahead);
		fs_ahead_put(fs, ahead);
		return 0;
	}
	listing.buffer = buffer = ds_malloc(request->size);
	if (!buffer)
		return -ENOMEM;
	r = fs_listing_make(fs, &request->demand, &listing);
	/*
	 * What was had before a page was missing is an answer; the kernel asks on after its last
	 * name. "." and ".." alone are too: the next call then waits. But where a worker is checking that
	 * page just now, all of it is answered by what he makes.
	 */
	if (r == -DS_E_NOT_LOCAL && listing.used && !is_making)
		r = 0;
	if (r == 0) {
		if (is_making)
			fs_ahead_drop(fs, &listing);
		fuse_reply_buf(request->req, buffer, listing.used);
		fs_ahead_start(fs, &listing);
	}
	return r;
}
