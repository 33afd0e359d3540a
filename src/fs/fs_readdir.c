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

struct listing {
	struct fs_request *request;
	char *buffer;
	size_t used;
};

static size_t room(const struct listing *listing)
{
	return listing->request->size - listing->used;
}

/* 1: it does not fit any more. */
static int add(struct listing *listing, const char *name, const struct fuse_entry_param *param,
	       uint64_t cookie)
{
	struct fs_request *request = listing->request;
	char *at = listing->buffer + listing->used;
	size_t n;

	if (request->flag)
		n = fuse_add_direntry_plus(request->req, at, room(listing), name, param,
					   (off_t)cookie);
	else
		n = fuse_add_direntry(request->req, at, room(listing), name, &param->attr,
				      (off_t)cookie);
	if (n > room(listing))
		return 1;
	listing->used += n;
	return 0;
}

static int add_dot(struct listing *listing, const char *name, uint64_t ino, uint64_t cookie)
{
	/* Node id 0: the kernel takes no look-up from these two. */
	struct fuse_entry_param param = {.attr = {.st_ino = ino, .st_mode = S_IFDIR}};

	return add(listing, name, &param, cookie);
}

static int add_entry(void *ctx, const struct ds_entry *entry)
{
	struct listing *listing = ctx;
	struct fuse_entry_param param;

	fs_entry_fill(listing->request->fs, entry, &param);
	return add(listing, entry->name, &param, entry->id);
}

static int fill(struct listing *listing)
{
	struct fs_request *request = listing->request;
	struct ds_view *view = request->fs->view;
	uint64_t after = request->off;
	struct ds_entry dir;
	int r;

	if (after < COOKIE_DOTDOT) {
		r = ds_view_get(view, &request->demand, request->ino, &dir);
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
	return ds_view_list_attrs(view, &request->demand, request->ino, after, add_entry, listing);
}

int fs_run_readdir(struct fs_request *request)
{
	_ds_cleanup_free_ char *buffer = ds_malloc(request->size);
	struct listing listing = {.request = request, .buffer = buffer};
	int r;

	if (!buffer)
		return -ENOMEM;
	r = fill(&listing);
	/*
	 * What was had before a page was missing is an answer; the kernel asks on after its last
	 * name. "." and ".." alone are too: the next call then waits.
	 */
	if (r == -DS_E_NOT_LOCAL && listing.used)
		r = 0;
	if (r == 0)
		fuse_reply_buf(request->req, buffer, listing.used);
	return r;
}
