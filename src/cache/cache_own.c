/*
 * What in a directory is dsfs's own. Somebody names a directory of his data where a cache was meant, and finds it as it was.
 *
 * A cache is known by `usage`, which begins with a word of ours. Without one (an interrupted beginning, a lost file) the directory
 * may hold nothing but what dsfs puts there, down to the names of images.
 *
 * INV-1 Nothing is removed or overwritten here but a `usage` of ours, or one that holds nothing.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache/cache_internal.h"
#include "util/file.h"
#include "util/str.h"

#define READ_FLAGS (O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY)

/* ---- the counter's file */

enum usage { USAGE_NONE, USAGE_OURS, USAGE_FOREIGN };

/* One that holds nothing is none: who made it was killed, or the power went. */
static int judge_usage(int fd, const struct stat *st, enum usage *ret_usage, size_t *ret_n)
{
	static const struct ds_usage_file nothing;
	struct ds_usage_file file = {0};
	int r = ds_pread_full(fd, &file, sizeof(file), 0, ret_n);

	if (r < 0)
		return r;
	if (*ret_n >= sizeof(file.magic) &&
	    memcmp(file.magic, DS_USAGE_MAGIC, sizeof(file.magic)) == 0)
		*ret_usage = USAGE_OURS;
	else if ((uint64_t)st->st_size <= sizeof(file) &&
		 memcmp(&file, &nothing, sizeof(file)) == 0)
		*ret_usage = USAGE_NONE;
	else
		*ret_usage = USAGE_FOREIGN;
	return 0;
}

static int look_at_usage(int root_fd, enum usage *ret_usage)
{
	_ds_cleanup_close_ int fd = -1;
	struct stat st;
	size_t n;

	*ret_usage = USAGE_NONE;
	if (fstatat(root_fd, "usage", &st, AT_SYMLINK_NOFOLLOW) < 0)
		return errno == ENOENT ? 0 : -errno;
	*ret_usage = USAGE_FOREIGN;
	if (!S_ISREG(st.st_mode))
		return 0;
	fd = openat(root_fd, "usage", READ_FLAGS);
	if (fd < 0 || fstat(fd, &st) < 0)
		return -errno;
	return S_ISREG(st.st_mode) ? judge_usage(fd, &st, ret_usage, &n) : 0;
}

int ds_own_open_usage(int root_fd)
{
	static const struct ds_usage_file fresh = {.magic = DS_USAGE_MAGIC};

	for (int tries = 0; tries < 2; tries++) {
		_ds_cleanup_close_ int fd =
			openat(root_fd, "usage",
			       O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY,
			       0600);
		bool is_read_only = fd < 0 && (errno == EROFS || errno == EACCES);
		enum usage usage;
		struct stat st;
		size_t n;
		int got;

		if (is_read_only)
			fd = openat(root_fd, "usage", READ_FLAGS);
		if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) ||
		    judge_usage(fd, &st, &usage, &n) < 0 || usage == USAGE_FOREIGN)
			return -1;
		/* Another cache's too, which was copied by links: that one counts for itself. */
		if (st.st_uid != geteuid() || st.st_nlink != 1) {
			if (usage != USAGE_OURS || unlinkat(root_fd, "usage", 0) < 0)
				return -1;
			continue;
		}
		fchmod(fd, 0600);
		/* What is only read is believed, and stays as it is, also when the file system can be written again. */
		if (is_read_only)
			continue;
		if ((usage == USAGE_NONE || n != sizeof(fresh)) &&
		    ds_pwrite_full(fd, &fresh, sizeof(fresh), 0) < 0)
			return -1;
		got = fd;
		fd = -1;
		return got;
	}
	return -1;
}

/* ---- the rest */

struct look {
	char *ret_foreign;
	size_t images_n;
};

static int foreign(struct look *look, const char *dir, const char *name)
{
	snprintf(look->ret_foreign, DS_OWN_NAME_MAX, "%s%s%s", dir, dir[0] ? "/" : "", name);
	return -EEXIST;
}

static int look_at_image(void *ctx, int dir_fd, const char *name)
{
	struct look *look = ctx;
	struct ds_digest digest;

	(void)dir_fd;
	look->images_n++;
	return ds_digest_parse(name, &digest) < 0 ? foreign(look, "images/..", name) : 0;
}

static int look_at_images(void *ctx, int dir_fd, const char *name)
{
	struct look *look = ctx;
	uint8_t byte;
	int r = ds_hex_decode(name, &byte, 1) < 0
			? -ENOTDIR
			: ds_each_entry_at(dir_fd, name, look_at_image, look);

	return r == -ENOTDIR || r == -ELOOP ? foreign(look, "images", name) : r == -ENOENT ? 0 : r;
}

static int look_at_tmp(void *ctx, int dir_fd, const char *name)
{
	(void)dir_fd;
	/* Commits put theirs there too (commit_state.c). */
	if (ds_own_is_tmp(name) || strcmp(name, ".guard") == 0 ||
	    (ds_starts_with(name, "commit-") && strlen(name) == strlen("commit-XXXXXX")))
		return 0;
	return foreign(ctx, "tmp", name);
}

static int look_at_entry(void *ctx, int root_fd, const char *name)
{
	/* A file system's own, and what commits keep in the same place by default. */
	static const char *const others[] = {"usage", "lost+found", "index", "stat"};
	struct look *look = ctx;
	int r;

	for (size_t i = 0; i < DS_ARRAY_SIZE(others); i++)
		if (strcmp(name, others[i]) == 0)
			return 0;
	if (strcmp(name, "images") == 0)
		r = ds_each_entry_at(root_fd, name, look_at_images, look);
	else if (strcmp(name, "tmp") == 0)
		r = ds_each_entry_at(root_fd, name, look_at_tmp, look);
	else
		return foreign(look, "", name);
	return r == -ENOTDIR || r == -ELOOP ? foreign(look, "", name) : r == -ENOENT ? 0 : r;
}

bool ds_own_is_tmp(const char *name)
{
	uint8_t number[8];

	return (ds_starts_with(name, "old-") || ds_starts_with(name, "new-")) &&
	       ds_hex_decode(name + 4, number, sizeof(number)) == 0;
}

int ds_own_look(int root_fd, bool *ret_is_cache, char ret_foreign[DS_OWN_NAME_MAX])
{
	struct look look = {.ret_foreign = ret_foreign};
	enum usage usage = USAGE_NONE;
	int r = look_at_usage(root_fd, &usage);

	ret_foreign[0] = '\0';
	if (r == 0 && usage == USAGE_FOREIGN)
		return foreign(&look, "", "usage");
	if (r == 0 && usage == USAGE_NONE)
		r = ds_each_entry_at(root_fd, ".", look_at_entry, &look);
	if (r == 0)
		*ret_is_cache = usage == USAGE_OURS || look.images_n > 0;
	return r;
}
