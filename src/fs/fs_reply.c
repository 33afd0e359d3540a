#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "fs/fs_internal.h"
#include "util/error.h"
#include "util/log.h"
#include "util/str.h"

#define PATH_DEPTH_MAX 64

/* Path of an inode as far as it is in memory, for the log: "…/a/b", or "inode 42". Threads of FUSE and the fetcher's timer come here, too:
 * none of them waits for the sake of a line in the log. */
static const char *path_of(struct fs_request *request, char *buf, size_t size)
{
	struct ds_view *view = request->fs->view;
	struct ds_demand demand;
	struct ds_entry entry;
	uint64_t ino = request->ino;
	char part[DS_NAME_MAX + 2], path[1024] = "";

	if (strcmp(request->op, "lookup") == 0)
		snprintf(path, sizeof(path), "/%s", request->name);
	ds_demand_init(&demand, view);
	demand.may_check = false;
	for (unsigned depth = 0; depth < PATH_DEPTH_MAX && ino != DS_ROOT_ID; depth++) {
		size_t len = strlen(path);

		if (ds_view_get(view, &demand, ino, &entry) < 0 ||
		    len + entry.name_len + 2 > sizeof(path))
			break;
		snprintf(part, sizeof(part), "/%s", entry.name);
		memmove(path + strlen(part), path, len + 1);
		memcpy(path, part, strlen(part));
		ino = entry.parent;
	}
	ds_demand_release(&demand);
	if (!path[0] && request->ino != DS_ROOT_ID)
		snprintf(path, sizeof(path), "inode %llu", (unsigned long long)request->ino);
	if (!path[0])
		strcpy(path, "/");
	return ds_quote(path, strlen(path), buf, size);
}

/*
 * The one place where a code of ours becomes an errno. Only the manifest says that something does
 * not exist.
 */
static int errno_of(int code)
{
	int number = ds_error_errno(code);

	switch (code) {
	case -EINTR:
		return EINTR;
	case -ENOENT:
	case -ENOTDIR:
	case -EISDIR:
	case -ENXIO:
	case -EINVAL:
	case -ENODATA:
	case -ERANGE:
	case -ENAMETOOLONG:
	case -EROFS:
	case -ENOMEM:
		return number;
	default:
		return EIO;
	}
}

void fs_reply_error(struct fs_request *request, int code)
{
	struct ds_fs *fs = request->fs;
	int number = errno_of(code);

	if (code == -DS_E_TIMEOUT)
		fs->stats.timeouts_n++;
	if (number == EINTR)
		fs->stats.interrupted_n++;
	/* At the end of the mount there is nobody to tell. */
	if ((number == EIO || number == ENOMEM) && code != -DS_E_INTERRUPTED) {
		char path[1100], why[900];

		fs->stats.failures_n++;
		if (request->demand.diag.code != code)
			ds_manifest_error(ds_view_manifest(fs->view), &request->demand.diag);
		if (request->demand.diag.code != code)
			ds_diag_clear(&request->demand.diag);
		request->demand.diag.code = code;
		ds_log_error("%s of %s: %s: %s", request->op, path_of(request, path, sizeof(path)),
			     ds_error_name(code),
			     ds_diag_format(&request->demand.diag, why, sizeof(why)));
	}
	fuse_reply_err(request->req, number);
}
