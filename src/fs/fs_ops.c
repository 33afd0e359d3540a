/*
 * What the kernel asks: one function for each operation, most of them a field list for
 * fs_request_start. Every operation that would write answers EROFS itself, whatever the mount flags
 * say.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "fs/fs_internal.h"
#include "util/error.h"
#include "util/mem.h"

static void op_init(void *userdata, struct fuse_conn_info *conn)
{
	struct ds_fs *fs = userdata;

	fs_kernel_init(fs, conn);
	if (fs->refusal)
		fuse_session_exit(fs->session);
	else
		fs_ready_start(fs);
}

/* "." and ".." are what NFS asks for when it knows nothing but the number. */
static int look_up(struct fs_request *request, struct ds_entry *ret_entry)
{
	struct ds_view *view = request->fs->view;
	struct ds_entry entry;
	int r;

	if (request->name[0] != '.' ||
	    strcmp(request->name + 1 + (request->name[1] == '.'), "") != 0)
		return ds_view_lookup(view, &request->demand, request->ino, request->name,
				      strlen(request->name), ret_entry);
	r = ds_view_get(view, &request->demand, request->ino, &entry);
	if (r == 0 && request->name[1] == '.' && entry.ino != DS_ROOT_ID)
		r = ds_view_get(view, &request->demand, entry.parent, &entry);
	if (r == 0)
		*ret_entry = entry;
	return r;
}

static int run_lookup(struct fs_request *request)
{
	struct fuse_entry_param param;
	struct ds_entry entry;
	int r;

	r = look_up(request, &entry);
	if (r == -ENOENT) {
		/* Node id 0 with a timeout: the kernel remembers that there is nothing. */
		param = (struct fuse_entry_param){.entry_timeout = FS_TIMEOUT_S};
		fuse_reply_entry(request->req, &param);
		return 0;
	}
	if (r < 0)
		return r;
	fs_entry_fill(request->fs, &entry, &param);
	fuse_reply_entry(request->req, &param);
	return 0;
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct fs_request fields = {.run = run_lookup,
				    .op = "lookup",
				    .ino = parent,
				    .name = (char *)(uintptr_t)name};

	if (fs_control_lookup(fuse_req_userdata(req), req, parent, name))
		return;
	if (strlen(name) > DS_NAME_MAX)
		fuse_reply_err(req, ENAMETOOLONG);
	else
		fs_request_start(req, &fields);
}

static int run_getattr(struct fs_request *request)
{
	struct ds_entry entry;
	struct stat st;
	int r = ds_view_get(request->fs->view, &request->demand, request->ino, &entry);

	if (r < 0)
		return r;
	fs_stat_fill(request->fs, &entry, &st);
	fuse_reply_attr(request->req, &st, FS_TIMEOUT_S);
	return 0;
}

static void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct fs_request fields = {.run = run_getattr, .op = "getattr", .ino = ino};

	(void)fi;
	if (fs_control_is(ino))
		fs_control_getattr(fuse_req_userdata(req), req, ino);
	else
		fs_request_start(req, &fields);
}

static int run_readlink(struct fs_request *request)
{
	_ds_cleanup_buf_ struct ds_buf buf = DS_BUF_INIT(DS_TARGET_MAX);
	int r = ds_view_readlink(request->fs->view, &request->demand, request->ino, &buf);

	if (r == 0)
		fuse_reply_readlink(request->req, ds_buf_str(&buf));
	return r;
}

static void op_readlink(fuse_req_t req, fuse_ino_t ino)
{
	struct fs_request fields = {.run = run_readlink, .op = "readlink", .ino = ino};

	fs_request_start(req, &fields);
}

static void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct fs_request fields = {.run = fs_run_open, .op = "open", .ino = ino};
	struct ds_fs *fs = fuse_req_userdata(req);

	ds_counter_add(&fs->stats.opens_n, 1);
	fi->keep_cache = 1;
	fi->noflush = 1;
	if ((fi->flags & O_ACCMODE) != O_RDONLY)
		fuse_reply_err(req, EROFS);
	else if (fs->mode == DS_FS_STATELESS)
		fuse_reply_err(req, ENOSYS);
	else if (fs->mode == DS_FS_PASSTHROUGH && !fs_control_is(ino))
		fs_request_start_uncounted(req, &fields);
	else
		fuse_reply_open(req, fi);
}

static void op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct ds_fs *fs = fuse_req_userdata(req);

	(void)ino;
	ds_counter_add(&fs->stats.opens_n, 1);
	fi->keep_cache = 1;
	fi->cache_readdir = 1;
	/* Directories have no handles in any mode: only `classic` is asked for them. */
	if (fs->mode == DS_FS_CLASSIC)
		fuse_reply_open(req, fi);
	else
		fuse_reply_err(req, ENOSYS);
}

static void op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct ds_fs *fs = fuse_req_userdata(req);

	if (fi->fh == FS_OPEN_COUNTED)
		fs_open_release(fs, ino);
	fuse_reply_err(req, 0);
}

static void op_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	(void)fi;
	fuse_reply_err(req, 0);
}

static void forget(fuse_req_t req, fuse_ino_t ino)
{
	/* All others follow from the manifest: there is nothing to let go of. */
	if (fs_control_is(ino))
		fs_control_forget(fuse_req_userdata(req), ino);
}

static void op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t lookups_n)
{
	(void)lookups_n;
	forget(req, ino);
	fuse_reply_none(req);
}

static void op_forget_multi(fuse_req_t req, size_t n, struct fuse_forget_data *forgets)
{
	for (size_t i = 0; i < n; i++)
		forget(req, forgets[i].ino);
	fuse_reply_none(req);
}

static void op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	(void)ino;
	(void)datasync;
	(void)fi;
	fuse_reply_err(req, 0);
}

static void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
		    struct fuse_file_info *fi)
{
	struct fs_request fields = {
		.run = fs_run_read, .op = "read", .ino = ino, .off = (uint64_t)off, .size = size};

	(void)fi;
	if (fs_control_is(ino))
		fs_control_read(fuse_req_userdata(req), req, ino, size, off);
	else
		fs_request_start(req, &fields);
}

static void readdir_any(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, bool plus)
{
	struct fs_request fields = {.run = fs_run_readdir,
				    .op = "readdir",
				    .ino = ino,
				    .off = (uint64_t)off,
				    .size = size,
				    .flag = plus};

	if (fs_control_is(ino))
		fs_control_readdir(fuse_req_userdata(req), req, ino, size, off, plus);
	else
		fs_request_start(req, &fields);
}

static void op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
		       struct fuse_file_info *fi)
{
	(void)fi;
	readdir_any(req, ino, size, off, false);
}

static void op_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
			   struct fuse_file_info *fi)
{
	(void)fi;
	readdir_any(req, ino, size, off, true);
}

static void op_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence,
		     struct fuse_file_info *fi)
{
	struct fs_request fields = {.run = fs_run_lseek,
				    .op = "lseek",
				    .ino = ino,
				    .off = (uint64_t)off,
				    .flag = whence == SEEK_HOLE};

	(void)fi;
	if (whence != SEEK_HOLE && whence != SEEK_DATA)
		fuse_reply_err(req, EINVAL);
	else if (off < 0)
		fuse_reply_err(req, ENXIO);
	else if (fs_control_is(ino))
		fs_control_lseek(fuse_req_userdata(req), req, ino, off, whence == SEEK_HOLE);
	else
		fs_request_start(req, &fields);
}

static void op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
	struct fs_request fields = {.run = fs_run_getxattr,
				    .op = "getxattr",
				    .ino = ino,
				    .size = size,
				    .name = (char *)(uintptr_t)name};

	/*
	 * Not ENODATA for other name spaces: `ls -l` asks for security.selinux and system.posix_acl_access
	 * of each file, but where they are not supported of one file only.
	 */
	if (strncmp(name, "user.", strlen("user.")) != 0)
		fuse_reply_err(req, EOPNOTSUPP);
	else if (fs_control_is(ino))
		fuse_reply_err(req, ENODATA);
	else
		fs_request_start(req, &fields);
}

static void op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
	fs_listxattr(req, ino, size);
}

/* From memory: it never asks the store, so that `df` cannot hang (T34). */
static void op_statfs(fuse_req_t req, fuse_ino_t ino)
{
	struct ds_fs *fs = fuse_req_userdata(req);
	const struct ds_version_totals *totals = &fs->record->totals;
	struct statvfs st = {
		.f_bsize = FS_BLOCK_BYTES,
		.f_frsize = FS_BLOCK_BYTES,
		.f_blocks = (totals->bytes + FS_BLOCK_BYTES - 1) / FS_BLOCK_BYTES,
		.f_files = totals->files_n + totals->directories_n + totals->symlinks_n + 1,
		.f_namemax = DS_NAME_MAX,
	};

	(void)ino;
	fs_uring_note(fs, req);
	fuse_reply_statfs(req, &st);
}

static void op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev)
{
	fuse_reply_err(req, EROFS);
	(void)parent, (void)name, (void)mode, (void)rdev;
}

static void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
	fuse_reply_err(req, EROFS);
	(void)parent, (void)name, (void)mode;
}

static void op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	fuse_reply_err(req, EROFS);
	(void)parent, (void)name;
}

static void op_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name)
{
	fuse_reply_err(req, EROFS);
	(void)target, (void)parent, (void)name;
}

static void op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t new_parent,
		      const char *new_name, unsigned flags)
{
	fuse_reply_err(req, EROFS);
	(void)parent, (void)name, (void)new_parent, (void)new_name, (void)flags;
}

static void op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t parent, const char *name)
{
	fuse_reply_err(req, EROFS);
	(void)ino, (void)parent, (void)name;
}

static void op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *st, int what,
		       struct fuse_file_info *fi)
{
	fuse_reply_err(req, EROFS);
	(void)ino, (void)st, (void)what, (void)fi;
}

static void op_write(fuse_req_t req, fuse_ino_t ino, const char *data, size_t size, off_t off,
		     struct fuse_file_info *fi)
{
	fuse_reply_err(req, EROFS);
	(void)ino, (void)data, (void)size, (void)off, (void)fi;
}

static void op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
		      struct fuse_file_info *fi)
{
	fuse_reply_err(req, EROFS);
	(void)parent, (void)name, (void)mode, (void)fi;
}

static void op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value,
			size_t size, int flags)
{
	fuse_reply_err(req, EROFS);
	(void)ino, (void)name, (void)value, (void)size, (void)flags;
}

static void op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name)
{
	fuse_reply_err(req, EROFS);
	(void)ino, (void)name;
}

static void op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t len,
			 struct fuse_file_info *fi)
{
	fuse_reply_err(req, EROFS);
	(void)ino, (void)mode, (void)off, (void)len, (void)fi;
}

const struct fuse_lowlevel_ops fs_ops = {
	.init = op_init,
	.lookup = op_lookup,
	.forget = op_forget,
	.forget_multi = op_forget_multi,
	.getattr = op_getattr,
	.readlink = op_readlink,
	.open = op_open,
	.read = op_read,
	.release = op_release,
	.fsync = op_fsync,
	.opendir = op_opendir,
	.readdir = op_readdir,
	.readdirplus = op_readdirplus,
	.releasedir = op_releasedir,
	.fsyncdir = op_fsync,
	.statfs = op_statfs,
	.getxattr = op_getxattr,
	.listxattr = op_listxattr,
	.lseek = op_lseek,
	.mknod = op_mknod,
	.mkdir = op_mkdir,
	.unlink = op_unlink,
	.rmdir = op_unlink,
	.symlink = op_symlink,
	.rename = op_rename,
	.link = op_link,
	.setattr = op_setattr,
	.write = op_write,
	.create = op_create,
	.setxattr = op_setxattr,
	.removexattr = op_removexattr,
	.fallocate = op_fallocate,
};
