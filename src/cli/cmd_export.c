/*
 * export: a plain copy of a version. Everything is created below one directory descriptor, by names that
 * the manifest layer has checked (no "/", "." or ".."), with O_EXCL and O_NOFOLLOW, into a directory that was empty: nothing that
 * a hostile version holds can make it write elsewhere. Set-uid bits and owners are never set.
 */
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/commands.h"
#include "cli/session.h"
#include "util/file.h"
#include "util/map.h"
#include "util/mem.h"

#define COPY_BYTES DS_MIB(4)

struct level { /* a directory that is being written; the stack is a list, not recursion */
	struct level *up;
	int fd;
	struct dsfs_stat stat;
	uint64_t after;
};

/* A file that was made and awaits its bytes. */
struct pending {
	int fd;
	struct dsfs_stat stat;
	char *path;
};

/*
 * Files in tree order, of whatever directories, that are sent for together. One group is written while
 * the bytes of the next are on their way. The descriptors of two groups fit under the usual limit of
 * 1,024, half of which is the cache's.
 */
#define GROUP_FILES_MAX	     128
#define GROUP_BYTES_MAX	     DS_MIB(32)
#define GROUP_FILE_BYTES_MAX DS_MIB(8) /* what a large file counts: the rest is read as a stream */

struct group {
	size_t n;
	uint64_t bytes;
	struct pending files[GROUP_FILES_MAX];
};

struct export
{
	struct cli_call *call;
	struct dsfs_version *version;
	struct cli_progress progress;
	struct group *gathered, *fetched;
	struct ds_map *links; /* inode -> path of its first name, for files with more names */
	char *buffer;
	int root_fd;
	struct ds_buf path; /* of the current directory, relative to the root */
	uint64_t files_n, bytes;
};

/* `path` is relative to the root. */
static int note(struct export *export, int r, const char *path)
{
	if (r >= 0 || export->call->error.code == r)
		return r;
	return ds_diag_set(&export->call->diag, r, path, NULL);
}

static char *path_of(const struct export *export, const char *name)
{
	return ds_asprintf("%s%s%s", ds_buf_str(&export->path), export->path.len_bytes ? "/" : "",
			   name);
}

static int copy_bytes(struct export *export, const struct dsfs_stat *stat, int fd)
{
	uint64_t off = 0, hole, n64;
	size_t n;
	int r;

	if (ftruncate(fd, (off_t)stat->size_bytes) < 0)
		return -errno;
	while (off < stat->size_bytes) {
		r = dsfs_seek(export->version, stat->inode, off, false, &off, &export->call->error);
		if (r == -ENXIO) {
			export->call->error.code = 0;
			break;
		}
		if (r == 0)
			r = dsfs_seek(export->version, stat->inode, off, true, &hole,
				      &export->call->error);
		if (r < 0)
			return r;
		while (off < hole) {
			if (cli_interrupted)
				return -DS_E_INTERRUPTED;
			n64 = DS_MIN(hole - off, COPY_BYTES);
			r = dsfs_read(export->version, stat->inode, off, export->buffer,
				      (size_t)n64, &n, &export->call->error);
			if (r == 0)
				r = ds_pwrite_full(fd, export->buffer, n, off);
			if (r < 0)
				return r;
			off += n;
			export->bytes += n;
			cli_progress_show(&export->progress, "exporting", export->files_n,
					  dsfs_version_info(export->version)->files_n,
					  export->bytes, dsfs_version_info(export->version)->bytes);
		}
	}
	return 0;
}

static int write_file(struct export *export, const struct pending *file)
{
	struct timespec times[2] = {file->stat.mtime, file->stat.mtime};
	int r = copy_bytes(export, &file->stat, file->fd);

	if (r == 0 && futimens(file->fd, times) < 0)
		r = -errno;
	return note(export, r, file->path);
}

/* Ends the group's files; they are only closed if `r` is an error. */
static int write_group(struct export *export, struct group *group, int r)
{
	for (size_t i = 0; i < group->n; i++) {
		struct pending *file = &group->files[i];

		if (r == 0)
			r = write_file(export, file);
		close(file->fd);
		ds_free(file->path);
	}
	group->n = 0;
	group->bytes = 0;
	return r;
}

/* Sends for the files of the group that was gathered, and writes those of the group before it. */
static int turn_groups(struct export *export)
{
	struct group *gathered = export->gathered;
	uint64_t inodes[GROUP_FILES_MAX];

	for (size_t i = 0; i < gathered->n; i++)
		inodes[i] = gathered->files[i].stat.inode;
	dsfs_prefetch(export->version, inodes, gathered->n);
	export->gathered = export->fetched;
	export->fetched = gathered;
	return write_group(export, export->gathered, 0);
}

/* A further name of a file that was made already. 1: linked, 0: it is the first. */
static int has_link(struct export *export, const struct level *level, const struct dsfs_stat *stat)
{
	char *path;
	int r;

	if (stat->nlink < 2)
		return 0;
	path = ds_map_get(export->links, &stat->inode, sizeof(stat->inode));
	if (path)
		return linkat(export->root_fd, path, level->fd, stat->name, 0) < 0 ? -errno : 1;
	path = path_of(export, stat->name);
	if (!path)
		return -ENOMEM;
	r = ds_map_put(export->links, &stat->inode, sizeof(stat->inode), path, NULL);
	if (r < 0)
		ds_free(path);
	return r;
}

/* Makes the file; its bytes are written with its group. */
static int export_file(struct export *export, const struct level *level,
		       const struct dsfs_stat *stat)
{
	struct group *group = export->gathered;
	struct pending file = {.stat = *stat};
	int r = has_link(export, level, stat);

	if (r != 0)
		return r < 0 ? r : 0;
	file.path = path_of(export, stat->name);
	if (!file.path)
		return -ENOMEM;
	file.fd =
		openat(level->fd, stat->name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
		       stat->executable ? 0777 : 0666);
	if (file.fd < 0) {
		r = -errno;
		ds_free(file.path);
		return r;
	}
	group->files[group->n++] = file;
	group->bytes += DS_MIN(stat->size_bytes, GROUP_FILE_BYTES_MAX);
	return group->n == GROUP_FILES_MAX || group->bytes >= GROUP_BYTES_MAX ? turn_groups(export)
									      : 0;
}

static int export_symlink(struct export *export, const struct level *level,
			  const struct dsfs_stat *stat)
{
	struct timespec times[2] = {stat->mtime, stat->mtime};
	char target[4096];
	int r = dsfs_readlink(export->version, stat->inode, target, sizeof(target),
			      &export->call->error);

	if (r < 0)
		return r;
	if (symlinkat(target, level->fd, stat->name) < 0)
		return -errno;
	return utimensat(level->fd, stat->name, times, AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
}

#define BATCH_N 256

struct batch {
	size_t n;
	struct dsfs_stat stats[BATCH_N];
};

static int collect_one(void *ctx, const struct dsfs_stat *stat)
{
	struct batch *batch = ctx;

	batch->stats[batch->n++] = *stat;
	return batch->n == BATCH_N;
}

static int push(struct export *export, struct level **stack, const struct dsfs_stat *stat)
{
	struct level *level = ds_calloc(1, sizeof(*level));
	int r;

	if (!level)
		return -ENOMEM;
	level->stat = *stat;
	level->up = *stack;
	if (*stack) {
		if (mkdirat((*stack)->fd, stat->name, 0777) < 0) {
			r = -errno;
			ds_free(level);
			return r;
		}
		level->fd = openat((*stack)->fd, stat->name,
				   O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		r = export->path.len_bytes ? ds_buf_append_byte(&export->path, '/') : 0;
		if (r == 0)
			r = ds_buf_append_str(&export->path, stat->name);
	} else {
		level->fd = dup(export->root_fd);
		r = 0;
	}
	if (level->fd < 0)
		r = -errno;
	*stack = level;
	return r;
}

/* Nothing is made in it any more: its time stays. */
static int pop(struct export *export, struct level **stack)
{
	struct level *level = *stack;
	struct timespec times[2] = {level->stat.mtime, level->stat.mtime};
	const char *slash = strrchr(ds_buf_str(&export->path), '/');
	int r = futimens(level->fd, times) < 0 ? -errno : 0;

	r = note(export, r, ds_buf_str(&export->path));
	ds_buf_truncate(&export->path, slash ? (size_t)(slash - ds_buf_str(&export->path)) : 0);
	*stack = level->up;
	close(level->fd);
	ds_free(level);
	return r;
}

static int make_entry(struct export *export, struct level **stack, const struct dsfs_stat *stat)
{
	switch (stat->type) {
	case DSFS_DIRECTORY:
		return push(export, stack, stat);
	case DSFS_SYMLINK:
		return export_symlink(export, *stack, stat);
	default:
		export->files_n++;
		return export_file(export, *stack, stat);
	}
}

static int export_entry(struct export *export, struct level **stack, const struct dsfs_stat *stat)
{
	int r = make_entry(export, stack, stat);
	_ds_cleanup_free_ char *path = NULL;

	/* It is another file's if it comes from a group. */
	if (r >= 0 || export->call->diag.object[0] || export->call->error.code == r)
		return r;
	path = path_of(export, stat->name);
	return note(export, r, path ? path : stat->name);
}

static int export_tree(struct export *export)
{
	_ds_cleanup_free_ struct batch *batch = ds_malloc(sizeof(*batch));
	struct level *stack = NULL;
	struct dsfs_stat root;
	int r;

	if (!batch)
		return -ENOMEM;
	r = dsfs_stat(export->version, "", &root, &export->call->error);
	if (r == 0)
		r = push(export, &stack, &root);
	while (r == 0 && stack) {
		struct level *level = stack;

		/* Lists again from the last name after each directory: the listing holds no state. */
		batch->n = 0;
		r = dsfs_list(export->version, level->stat.inode, level->after, collect_one, batch,
			      &export->call->error);
		if (r >= 0)
			r = 0;
		if (r == 0 && batch->n == 0)
			r = pop(export, &stack);
		for (size_t i = 0; r == 0 && i < batch->n && stack == level; i++) {
			level->after = batch->stats[i].cookie;
			r = export_entry(export, &stack, &batch->stats[i]);
			if (r == 0 && cli_interrupted)
				r = -DS_E_INTERRUPTED;
		}
	}
	if (r == 0)
		r = turn_groups(export);
	r = write_group(export, export->fetched, r);
	write_group(export, export->gathered, r);
	while (stack) {
		struct level *level = stack;

		stack = level->up;
		if (level->fd >= 0)
			close(level->fd);
		ds_free(level);
	}
	return r;
}

/* Opens the target, making it if need be; -DS_E_USAGE if something is in it. */
static int open_target(struct cli_call *call, const char *path, int *ret_fd)
{
	struct dirent *entry;
	DIR *dir;
	int fd, r = ds_mkdir_p(AT_FDCWD, path, 0777);

	if (r < 0)
		return ds_diag_set(&call->diag, r, path, "cannot make the directory");
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return ds_diag_set(&call->diag, -errno, path, NULL);
	dir = fdopendir(dup(fd));
	while (dir && (entry = readdir(dir)))
		if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
			r = -DS_E_USAGE;
	if (dir)
		closedir(dir);
	if (r < 0) {
		close(fd);
		return ds_diag_set(&call->diag, r, path,
				   "export writes only into a new or empty directory");
	}
	*ret_fd = fd;
	return 0;
}

static int run_export(struct cli_call *call)
{
	struct export export = {.call = call, .root_fd = -1, .path = DS_BUF_INIT(DS_MIB(8))};
	struct dsfs_repository *repository = NULL;
	struct ds_locator locator = {0};
	int r;

	export.buffer = ds_malloc(COPY_BYTES);
	export.gathered = ds_calloc(1, sizeof(*export.gathered));
	export.fetched = ds_calloc(1, sizeof(*export.fetched));
	r = export.buffer && export.gathered && export.fetched ? ds_map_new(&export.links)
							       : -ENOMEM;
	if (r == 0)
		r = cli_open_library(call, call->args[0], &locator, &repository);
	if (r == 0)
		r = dsfs_version_open(repository, locator.selector, &export.version, &call->error);
	if (r == 0)
		r = open_target(call, call->args[1], &export.root_fd);
	if (r == 0) {
		cli_catch_signals();
		cli_progress_start(&export.progress, call);
		r = export_tree(&export);
		cli_progress_end(&export.progress);
		if (r == -DS_E_INTERRUPTED)
			ds_diag_set(&call->diag, r, call->args[1],
				    "the copy is incomplete: remove it and export again (what was "
				    "fetched is in the cache)");
	}
	if (r == 0 && call->json)
		cli_print_json(json_pack("{s:s, s:I, s:I}", "version",
					 dsfs_version_info(export.version)->id, "files",
					 (json_int_t) export.files_n, "bytes",
					 (json_int_t) export.bytes));
	else if (r == 0 && !cli_has(call, "quiet"))
		printf("exported %" PRIu64 " %s of %s\n", CLI_COUNT(export.files_n, "file"),
		       dsfs_version_info(export.version)->id);
	if (export.root_fd >= 0)
		close(export.root_fd);
	ds_map_free(export.links, ds_free);
	ds_free(export.gathered);
	ds_free(export.fetched);
	ds_free(export.buffer);
	ds_buf_release(&export.path);
	dsfs_version_close(export.version);
	dsfs_repository_close(repository);
	ds_locator_release(&locator);
	return r < 0 ? cli_fail(call, r, NULL) : cli_finish_output(call);
}

const struct cli_command cli_command_export = {
	.name = "export",
	.arguments = "REPO[@VERSION] DIR",
	.summary = "write a plain copy of a version into an empty directory",
	.details = "Keeps the executable bit, modification times, hard links, symlinks and holes. "
		   "DIR is made if it is not there, and refused (2) if it is not empty. What an "
		   "export that failed or was "
		   "interrupted leaves is incomplete: remove it and export again.",
	.takes_store = true,
	.takes_json = true,
	.args_min = 2,
	.args_max = 2,
	.run = run_export,
};
