/*
 * Extended attributes: user.dsfs.digest (content, target or directory digest) and user.dsfs.version
 * (the version's id), both in hex, on everything. Others than user.* are not supported (op_getxattr).
 */
#include <errno.h>
#include <string.h>

#include "fs/fs_internal.h"

static const char names[] = "user.dsfs.digest\0user.dsfs.version";

int fs_run_getxattr(struct fs_request *request)
{
	char value[DS_DIGEST_TEXT_MAX];
	struct ds_entry entry;
	size_t len = DS_DIGEST_TEXT_MAX - 1;
	int r;

	if (strcmp(request->name, "user.dsfs.version") == 0) {
		ds_digest_format(ds_view_version(request->fs->view), value);
	} else if (strcmp(request->name, "user.dsfs.digest") == 0) {
		r = ds_view_get(request->fs->view, &request->demand, request->ino, &entry);
		if (r < 0)
			return r;
		ds_digest_format(&entry.digest, value);
	} else {
		return -ENODATA;
	}
	if (request->size == 0)
		fuse_reply_xattr(request->req, len);
	else if (request->size < len)
		return -ERANGE;
	else
		fuse_reply_buf(request->req, value, len);
	return 0;
}

void fs_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
	size_t len = fs_control_is(ino) ? 0 : sizeof(names);

	if (size == 0)
		fuse_reply_xattr(req, len);
	else if (size < len)
		fuse_reply_err(req, ERANGE);
	else
		fuse_reply_buf(req, names, len);
}
