/*
 * Contents: read, and where data and holes are.
 */
#include <errno.h>

#include "fs/fs_internal.h"
#include "util/mem.h"

#define READ_MAX DS_MIB(4) /* the kernel asks for 1 MiB at most */

int fs_run_read(struct fs_request *request)
{
	struct ds_fs *fs = request->fs;
	size_t size = DS_MIN(request->size, (size_t)READ_MAX), n = 0;
	_ds_cleanup_free_ char *buffer = ds_malloc(size);
	int r;

	if (!buffer)
		return -ENOMEM;
	r = ds_view_read(fs->view, &request->demand, request->ino, request->off, size, buffer, &n);
	if (r < 0)
		return r;
	fs->stats.read_bytes += n;
	fuse_reply_buf(request->req, buffer, n);
	return 0;
}

int fs_run_lseek(struct fs_request *request)
{
	uint64_t off;
	int r = ds_view_seek(request->fs->view, &request->demand, request->ino, request->off,
			     request->flag, &off);

	if (r == 0)
		fuse_reply_lseek(request->req, (off_t)off);
	return r;
}
