/*
 * Telling the owner that the mount answers. INIT alone does not prove it (its reply is sent after
 * the callback), so that a worker asks the mount for something that is answered from memory; if the
 * mount goes away meanwhile, that ends with ENOTCONN.
 */
#include <sys/statvfs.h>

#include "fs/fs_internal.h"

static void run_ready(struct ds_work_item *item)
{
	struct ds_fs *fs = ds_container_of(item, struct ds_fs, ready_work);
	struct statvfs vfs;

	if (statvfs(fs->options.mountpoint, &vfs) < 0)
		return;
	fs->refusal = fs_uring_settle(fs);
	if (fs->refusal) {
		fuse_session_exit(fs->session);
		return;
	}
	fs->is_ready = true;
	fs_readahead_set(fs);
	if (fs->options.ready)
		fs->options.ready(fs->options.ctx, fs->how);
}

void fs_ready_start(struct ds_fs *fs)
{
	fs->ready_work.run = run_ready;
	ds_list_init(&fs->ready_work.node);
	ds_work_submit(fs->work, &fs->ready_work, true);
}
