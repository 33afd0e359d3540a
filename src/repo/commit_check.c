/*
 * What can be told before anything is done: of the options alone, and where a source may not lie.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>
#include <sys/xattr.h>

#include "repo/commit_tree.h"
#include "repo/refs.h"
#include "repo/repo_internal.h"
#include "util/error.h"
#include "util/file.h"
#include "util/mem.h"
#include "util/str.h"

#define TEXT_MAX   (DS_RECORD_MAX / 8) /* of message and author: JSON may need 6 bytes for one */
#define FUSE_MAGIC 0x65735546	       /* statfs(2) */

/* Whether `path` is `dir` or lies in it; both are real paths. */
static bool is_within(const char *path, const char *dir)
{
	size_t len = strcmp(dir, "/") == 0 ? 0 : strlen(dir);

	return strncmp(path, dir, len) == 0 && (path[len] == '/' || !path[len]);
}

static int check(const char *source, const char *from, const char *to, struct ds_diag *reterr_diag)
{
	char version[DS_DIGEST_TEXT_MAX];
	struct statfs fs;

	if (to && is_within(from, to))
		return ds_diag_set(reterr_diag, -DS_E_SOURCE_REFUSED, source,
				   "the source lies inside the repository");
	if (to && is_within(to, from))
		return ds_diag_set(reterr_diag, -DS_E_SOURCE_REFUSED, source,
				   "the repository lies inside the source");
	/* A dsfs mount answers for itself by an attribute of all that is in it. */
	if (statfs(from, &fs) == 0 && fs.f_type == FUSE_MAGIC &&
	    getxattr(from, "user.dsfs.version", version, sizeof(version)) > 0)
		return ds_diag_set(reterr_diag, -DS_E_SOURCE_REFUSED, source,
				   "the source is a dsfs mount: its version is committed already");
	return 0;
}

/* The path that a directory will have once it is made: the real one of what is there of it, and the rest. New string or NULL. */
static char *real_path(const char *path)
{
	size_t len = strlen(path);

	for (;;) {
		_ds_cleanup_free_ char *part =
			len ? ds_strndup(path, len) : ds_strdup(path[0] == '/' ? "/" : ".");
		char *real = part ? realpath(part, NULL) : NULL, *whole;

		if (real) {
			whole = path[len] ? ds_asprintf("%s/%s", real, path + len)
					  : ds_strdup(real);
			free(real);
			return whole;
		}
		if (!part || len == 0)
			return NULL;
		while (len && path[len - 1] == '/')
			len--;
		while (len && path[len - 1] != '/')
			len--;
	}
}

int commit_check_place(const char *repo_path, const char *source, struct ds_diag *reterr_diag)
{
	_ds_cleanup_free_ char *to = repo_path ? real_path(repo_path) : NULL;
	char *from = realpath(source, NULL);
	int r;

	if (!from)
		return ds_diag_set(reterr_diag, -errno, source, "the source cannot be opened");
	r = repo_path && !to ? -ENOMEM : check(source, from, to, reterr_diag);
	free(from);
	return r;
}

static int check_text(const char *text, const char *what, struct ds_diag *reterr_diag)
{
	size_t len = text ? strlen(text) : 0;

	if (len > TEXT_MAX)
		return ds_diag_set(reterr_diag, -DS_E_USAGE, NULL, "%s is longer than %u KiB", what,
				   (unsigned)(TEXT_MAX / 1024));
	if (len && !ds_is_utf8(text, len))
		return ds_diag_set(reterr_diag, -DS_E_USAGE, NULL, "%s must be UTF-8", what);
	return 0;
}

int commit_check_options(const struct ds_commit_options *options, const char *branch,
			 struct ds_diag *reterr_diag)
{
	const char *tag = options->tag;
	int r = check_text(options->message, "the message", reterr_diag);

	if (r == 0)
		r = check_text(options->author, "the author", reterr_diag);
	if (r == 0)
		r = ds_ref_name_check(branch, reterr_diag);
	if (r == 0 && tag)
		r = ds_ref_name_check(tag, reterr_diag);
	if (r == 0 && tag && strcmp(tag, branch) == 0)
		r = ds_diag_set(reterr_diag, -DS_E_TAKEN, tag,
				"it is the branch's, and '@%s' can mean only one of them; choose "
				"another name",
				tag);
	return r;
}

int ds_commit_check(const struct ds_commit_options *options, const char *url,
		    struct ds_diag *reterr_diag)
{
	_ds_cleanup_free_ char *path = NULL;
	_ds_cleanup_close_ int fd = -1;
	int r = commit_check_options(options, options->branch ? options->branch : DS_BRANCH_DEFAULT,
				     reterr_diag);

	if (r == 0 && options->parent)
		r = ds_diag_set(reterr_diag, -DS_E_NO_VERSION, options->parent,
				"the repository is to be made: it has no versions");
	if (r == 0)
		r = ds_store_path_of(url, &path, reterr_diag);
	if (r == 0)
		r = commit_check_place(path, options->source, reterr_diag);
	if (r < 0)
		return r;
	fd = open(options->source, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? ds_diag_set(reterr_diag, -errno, options->source,
				    "the source cannot be opened")
		      : 0;
}
