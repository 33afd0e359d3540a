#include <string.h>
#include <sys/stat.h>

#include "fs/fs_internal.h"

void fs_stat_fill(const struct ds_fs *fs, const struct ds_entry *entry, struct stat *ret_st)
{
	mode_t mode = S_IFREG | 0444;

	if (entry->type == DS_ENTRY_DIRECTORY)
		mode = S_IFDIR | 0555;
	else if (entry->type == DS_ENTRY_SYMLINK)
		mode = S_IFLNK | 0777;
	else if (entry->is_executable)
		mode = S_IFREG | 0555;
	if (entry->type != DS_ENTRY_SYMLINK)
		mode &= ~(mode_t)fs->options.umask;
	memset(ret_st, 0, sizeof(*ret_st));
	ret_st->st_ino = entry->ino;
	ret_st->st_mode = mode;
	ret_st->st_nlink = entry->nlink;
	ret_st->st_uid = fs->options.uid;
	ret_st->st_gid = fs->options.gid;
	ret_st->st_size = (off_t)entry->size_bytes;
	ret_st->st_blksize = FS_BLOCK_BYTES;
	ret_st->st_blocks =
		entry->type == DS_ENTRY_FILE
			? (blkcnt_t)(entry->size_bytes / 512 + (entry->size_bytes % 512 != 0))
			: 0;
	ret_st->st_mtim.tv_sec = entry->mtime.s;
	ret_st->st_mtim.tv_nsec = entry->mtime.ns;
	ret_st->st_atim = ret_st->st_ctim = ret_st->st_mtim;
}

void fs_entry_fill(const struct ds_fs *fs, const struct ds_entry *entry,
		   struct fuse_entry_param *ret_param)
{
	*ret_param = (struct fuse_entry_param){
		.ino = entry->ino,
		.generation = 1,
		.attr_timeout = FS_TIMEOUT_S,
		.entry_timeout = FS_TIMEOUT_S,
	};
	fs_stat_fill(fs, entry, &ret_param->attr);
}
