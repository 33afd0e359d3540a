#include "cli/mount_options.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/session.h"
#include "util/log.h"
#include "util/mem.h"
#include "util/str.h"

const struct cli_option cli_mount_option_table[] = {
	{0, "version", "VERSION",
	 "which version: number, tag, branch, BRANCH:NUMBER, date or id prefix; "
	 "instead of REPO@VERSION",
	 false},
	{0, "cache_dir", "DIR",
	 "where the cache lies ($DSFS_CACHE_DIR, else /var/cache/dsfs for root and "
	 "$XDG_CACHE_HOME/dsfs for others); it is shared by all mounts of the user; in fstab an "
	 "absolute path",
	 false},
	{0, "cache_size", "SIZE",
	 "the cache's quota, such as 500G (half of what is free and of what it takes "
	 "already; 10 % of the file system always stay free)",
	 false},
	{0, "endpoint", "URL", "S3 endpoint", false},
	{0, "region", "NAME", "S3 region", false},
	{0, "addressing", "path|virtual",
	 "put the bucket's name into the path or before the host's name (the profile's, else "
	 "virtual "
	 "for AWS and path for others)",
	 false},
	{0, "profile", "NAME", "profile of ~/.aws/credentials", false},
	{0, "allow_other", NULL,
	 "let other users in; not for root needs user_allow_other in "
	 "/etc/fuse.conf",
	 false},
	{0, "uid", "UID", "owner of all files (the mounting user)", false},
	{0, "gid", "GID", "group of all files (the mounting user's)", false},
	{0, "umask", "MODE",
	 "octal permission bits to take away from 0444 or 0555 for files and 0555 for "
	 "directories (0)",
	 false},
	{0, "noexec", NULL, "let no program be run from the mount; user and users imply it", false},
	{0, "nosymfollow", NULL, "follow no symlink of the mount", false},
	{0, "context", "CONTEXT",
	 "SELinux context of all files, in double quotes if it holds a comma; also fscontext, "
	 "defcontext and rootcontext (see mount(8))",
	 false},
	{0, "timeout", "TIME", "how long a read waits for the store before it fails with EIO (60s)",
	 false},
	{0, "kernel", "auto|stateless|passthrough|classic",
	 "how the kernel reads: stateless is best for small files, passthrough (root, Linux 6.9) "
	 "for "
	 "large ones; auto chooses by the version's sizes of files (auto)",
	 false},
	{0, "io_uring", "auto|on|off",
	 "take the kernel's requests through io_uring, which costs less (Linux 6.14, switched on "
	 "as "
	 "'dsfs doctor' says); auto does where it can be had (auto)",
	 false},
	{0, "readahead", "SIZE",
	 "how far the kernel reads ahead of who reads in order, 4K to 64M; more than its own 128K "
	 "needs root (512K)",
	 false},
	{0, "inflight", "SIZE",
	 "memory for all that is on its way from the store at once, as it is stored and unpacked, "
	 "at least 16M (256M)",
	 false},
	{0, "warm", "[PATH[:PATH]...]",
	 "fetch these files and directories, or without a value everything, into the cache as soon "
	 "as "
	 "the mount answers, behind what is read; \\: stands for a colon in a path",
	 false},
	{0, "log", "FILE|syslog|stderr",
	 "where messages go (syslog in the background, stderr with -f)", false},
	{0, "debug", NULL, "log more", false},
	{0, "insecure_http", NULL, "allow plain http:// to hosts other than this one", false},
	{0},
};

/*
 * What fstab and mount(8) mean for themselves or for other file systems, what a dsfs mount is anyway, and what mountinfo shows of one, which
 * `mount -o remount` gives back.
 */
static const char *const ignored[] = {
	"defaults",    "rw",
	"ro",	       "suid",
	"nosuid",      "dev",
	"nodev",       "nouser",
	"owner",       "group",
	"auto",	       "noauto",
	"nofail",      "_netdev",
	"atime",       "noatime",
	"relatime",    "norelatime",
	"strictatime", "nostrictatime",
	"diratime",    "nodiratime",
	"lazytime",    "nolazytime",
	"sync",	       "async",
	"dirsync",     "mand",
	"nomand",      "silent",
	"loud",	       "iversion",
	"noiversion",  "default_permissions",
	"user_id",     "group_id",
	"max_read",    "blksize",
};

/* Without a value, as libfuse spells them; the later one wins there too. `user` and `users` imply noexec, nosuid and nodev (mount(8)). */
static const struct {
	const char *name, *means;
} flags[] = {
	{"exec", "exec"},    {"noexec", "noexec"},	 {"user", "noexec"},
	{"users", "noexec"}, {"symfollow", "symfollow"}, {"nosymfollow", "nosymfollow"},
};

/* Of SELinux, with a value: for the kernel's eyes, which want the quotes, too. */
static const char *const contexts[] = {"context", "fscontext", "defcontext", "rootcontext"};

void cli_mount_options_init(struct cli_mount_options *options)
{
	*options = (struct cli_mount_options){0};
}

void cli_mount_options_release(struct cli_mount_options *options)
{
	ds_free(options->version);
	ds_free(options->cache_dir);
	ds_free(options->endpoint);
	ds_free(options->region);
	ds_free(options->profile);
	ds_free(options->log);
	ds_free(options->flags);
	ds_free(options->warm);
	cli_mount_options_init(options);
}

static bool is_ignored(const char *name)
{
	if (ds_starts_with(name, "x-") || ds_starts_with(name, "X-") ||
	    strcmp(name, "comment") == 0)
		return true;
	for (size_t i = 0; i < DS_ARRAY_SIZE(ignored); i++)
		if (strcmp(name, ignored[i]) == 0)
			return true;
	return false;
}

static int set_text(char **field, const char *value)
{
	char *copy = ds_strdup(value);

	if (!copy)
		return -ENOMEM;
	ds_free(*field);
	*field = copy;
	return 0;
}

/* The process in the background has another directory. */
static int set_path(const struct cli_mount_options *options, char **field, const char *name,
		    const char *value, struct ds_diag *reterr_diag)
{
	_ds_cleanup_free_ char *path = NULL;
	char cwd[PATH_MAX];

	if (!value[0])
		return -EINVAL;
	if (value[0] == '/')
		return set_text(field, value);
	if (options->is_helper)
		return ds_diag_set(reterr_diag, -DS_E_USAGE, value,
				   "the mount option %s must be an absolute path here", name);
	if (!getcwd(cwd, sizeof(cwd)))
		return ds_diag_set(reterr_diag, -errno, value,
				   "a relative path for %s, and the current directory is not known",
				   name);
	path = ds_asprintf("%s/%s", strcmp(cwd, "/") == 0 ? "" : cwd, value);
	return path ? set_text(field, path) : -ENOMEM;
}

static int set_log(struct cli_mount_options *options, const char *value,
		   struct ds_diag *reterr_diag)
{
	if (strcmp(value, "stderr") == 0 || strcmp(value, "syslog") == 0)
		return set_text(&options->log, value);
	return set_path(options, &options->log, "log", value, reterr_diag);
}

static int set_id(const char *value, uint32_t *ret_id, bool *ret_has)
{
	uint64_t id;

	if (ds_parse_u64(value, UINT32_MAX - 1, &id) < 0)
		return -EINVAL;
	*ret_id = (uint32_t)id;
	*ret_has = true;
	return 0;
}

static int set_umask(const char *value, uint32_t *ret_mask)
{
	uint32_t mask = 0;

	if (!value[0] || strlen(value) > 4)
		return -EINVAL;
	for (; *value; value++) {
		if (*value < '0' || *value > '7')
			return -EINVAL;
		mask = mask * 8 + (uint32_t)(*value - '0');
	}
	if (mask > 0777)
		return -EINVAL;
	*ret_mask = mask;
	return 0;
}

/* -EINVAL: the value makes no sense. -ENOENT: no such option. */
static int apply(struct cli_mount_options *options, const char *name, const char *value,
		 struct ds_diag *reterr_diag)
{
	if (strcmp(name, "version") == 0)
		return value[0] ? set_text(&options->version, value) : -EINVAL;
	if (strcmp(name, "cache_dir") == 0)
		return set_path(options, &options->cache_dir, name, value, reterr_diag);
	if (strcmp(name, "endpoint") == 0)
		return set_text(&options->endpoint, value);
	if (strcmp(name, "region") == 0)
		return set_text(&options->region, value);
	if (strcmp(name, "profile") == 0)
		return set_text(&options->profile, value);
	if (strcmp(name, "addressing") == 0)
		return ds_store_addressing_parse(value, &options->addressing);
	if (strcmp(name, "uid") == 0)
		return set_id(value, &options->uid, &options->has_uid);
	if (strcmp(name, "gid") == 0)
		return set_id(value, &options->gid, &options->has_gid);
	if (strcmp(name, "umask") == 0)
		return set_umask(value, &options->umask);
	if (strcmp(name, "timeout") == 0)
		return ds_parse_duration_ms(value, &options->timeout_ms) < 0 || !options->timeout_ms
			       ? -EINVAL
			       : 0;
	if (strcmp(name, "kernel") == 0)
		return ds_fs_mode_parse(value, &options->mode);
	if (strcmp(name, "io_uring") == 0)
		return ds_fs_uring_parse(value, &options->uring);
	if (strcmp(name, "warm") == 0)
		return set_text(&options->warm, value);
	if (strcmp(name, "log") == 0)
		return set_log(options, value, reterr_diag);
	if (strcmp(name, "allow_other") == 0)
		options->allow_other = true;
	else if (strcmp(name, "insecure_http") == 0)
		options->insecure_http = true;
	else if (strcmp(name, "debug") == 0)
		options->debug = true;
	else
		return -ENOENT;
	return 0;
}

static const struct {
	const char *name;
	size_t field;
	uint64_t min_bytes, max_bytes;
} sizes[] = {
	{"cache_size", offsetof(struct cli_mount_options, cache_bytes), 1, UINT64_MAX},
	{"inflight", offsetof(struct cli_mount_options, inflight_bytes), CLI_INFLIGHT_MIN,
	 UINT64_MAX},
	{"readahead", offsetof(struct cli_mount_options, readahead_bytes), CLI_READAHEAD_MIN,
	 CLI_READAHEAD_MAX},
};

/* -ENOENT: it is no size. */
static int apply_size(struct cli_mount_options *options, const char *name, const char *value,
		      struct ds_diag *reterr_diag)
{
	char least[32], most[32];
	uint64_t bytes;
	size_t i = 0;

	while (i < DS_ARRAY_SIZE(sizes) && strcmp(name, sizes[i].name) != 0)
		i++;
	if (i == DS_ARRAY_SIZE(sizes))
		return -ENOENT;
	if (ds_parse_size(value, &bytes) < 0 || !bytes)
		return ds_diag_set(reterr_diag, -DS_E_USAGE, value,
				   "bad value for the mount option %s", name);
	ds_format_size(sizes[i].min_bytes, least, sizeof(least));
	ds_format_size(sizes[i].max_bytes, most, sizeof(most));
	if (bytes < sizes[i].min_bytes)
		return ds_diag_set(reterr_diag, -DS_E_USAGE, value,
				   "the mount option %s is at least %s", name, least);
	if (bytes > sizes[i].max_bytes)
		return ds_diag_set(reterr_diag, -DS_E_USAGE, value,
				   "the mount option %s is at most %s", name, most);
	*(uint64_t *)((char *)options + sizes[i].field) = bytes;
	return 0;
}

static const struct cli_option *row_of(const char *name)
{
	for (const struct cli_option *row = cli_mount_option_table; row->name; row++)
		if (strcmp(row->name, name) == 0)
			return row;
	return NULL;
}

/* Appends to what libfuse is given; it takes a backslash before a comma. */
static int add_kernel(struct cli_mount_options *options, const char *name, const char *value)
{
	size_t len = strlen(name) + (value ? 1 + 2 * strlen(value) : 0) + 1;
	_ds_cleanup_free_ char *escaped = ds_malloc(len);
	char *out = escaped, *whole;

	if (!escaped)
		return -ENOMEM;
	out = stpcpy(out, name);
	if (value)
		*out++ = '=';
	for (; value && *value; value++) {
		if (*value == ',' || *value == '\\')
			*out++ = '\\';
		*out++ = *value;
	}
	*out = '\0';
	whole = options->flags ? ds_asprintf("%s,%s", options->flags, escaped) : ds_strdup(escaped);
	if (!whole)
		return -ENOMEM;
	ds_free(options->flags);
	options->flags = whole;
	return 0;
}

/* -ENOENT: it is none of the kernel's. */
static int apply_kernel(struct cli_mount_options *options, const char *name, const char *value)
{
	for (size_t i = 0; i < DS_ARRAY_SIZE(flags); i++)
		if (strcmp(name, flags[i].name) == 0)
			return value && strcmp(name, "user") != 0
				       ? -EINVAL
				       : add_kernel(options, flags[i].means, NULL);
	for (size_t i = 0; i < DS_ARRAY_SIZE(contexts); i++)
		if (strcmp(name, contexts[i]) == 0)
			return value && value[0] ? add_kernel(options, name, value) : -EINVAL;
	return -ENOENT;
}

/* Takes away the quotes around a value, which have done their work. */
static char *unquoted(char *value)
{
	size_t len = value ? strlen(value) : 0;

	if (len < 2 || value[0] != '"' || value[len - 1] != '"')
		return value;
	value[len - 1] = '\0';
	return value + 1;
}

static int parse_one(struct cli_mount_options *options, char *text, struct ds_diag *reterr_diag)
{
	char *value = strchr(text, '=');
	const struct cli_option *row;
	int r;

	if (value)
		*value++ = '\0';
	if (!text[0] || is_ignored(text))
		return 0;
	if (strcmp(text, "remount") == 0) {
		options->is_remount = true;
		return 0;
	}
	r = apply_kernel(options, text, value);
	if (r == -EINVAL)
		return ds_diag_set(reterr_diag, -DS_E_USAGE, text,
				   value ? "bad value for a mount option" : "needs a value");
	if (r != -ENOENT)
		return r;
	value = unquoted(value);
	row = row_of(text);
	if (!row && options->is_sloppy) {
		ds_log_warning("the mount option \"%s\" is unknown, and passed over", text);
		return 0;
	}
	if (!row)
		return ds_diag_set(reterr_diag, -DS_E_USAGE, text, "unknown mount option");
	if (!row->argument && value)
		return ds_diag_set(reterr_diag, -DS_E_USAGE, text, "takes no value");
	if (row->argument && row->argument[0] != '[' && !value)
		return ds_diag_set(reterr_diag, -DS_E_USAGE, text, "needs a value: %s=%s", text,
				   row->argument);
	r = apply_size(options, text, value, reterr_diag);
	if (r != -ENOENT)
		return r;
	r = apply(options, text, value ? value : "", reterr_diag);
	if (r == -EINVAL)
		return ds_diag_set(reterr_diag, -DS_E_USAGE, value,
				   "bad value for the mount option %s", text);
	return r;
}

/* Whether a value in quotes starts here and ends before the list does, as mount(8) writes those with commas. */
static bool is_quote(const char *one, const char *out, const char *at)
{
	return out > one && out[-1] == '=' && strchr(at + 1, '"');
}

int cli_mount_options_parse(struct cli_mount_options *options, const char *text,
			    struct ds_diag *reterr_diag)
{
	_ds_cleanup_free_ char *copy = ds_strdup(text);
	char *one = copy, *out = copy;
	bool is_quoted = false;
	int r = 0;

	if (!copy)
		return -ENOMEM;
	for (char *at = copy; r == 0; at++) {
		if (at[0] == '\\' && at[1] == ',') {
			*out++ = *++at;
		} else if (*at == '"' && (is_quoted || is_quote(one, out, at))) {
			is_quoted = !is_quoted;
			*out++ = *at;
		} else if (is_quoted) {
			*out++ = *at;
		} else if (*at == ',' || *at == '\0') {
			bool is_last = *at == '\0';

			*out = '\0';
			r = parse_one(options, one, reterr_diag);
			if (is_last)
				break;
			one = out = at + 1;
		} else {
			*out++ = *at;
		}
	}
	return r;
}

int cli_mount_warm_paths(const char *warm, char ***ret_paths, size_t *ret_n)
{
	_ds_cleanup_free_ char *one = ds_malloc(strlen(warm) + 1);
	char **paths = ds_calloc(strlen(warm) / 2 + 2, sizeof(paths[0])), *out = one;
	size_t n = 0;

	for (const char *at = warm; one && paths; at++) {
		if (at[0] == '\\' && at[1] == ':') {
			*out++ = *++at;
		} else if (*at == ':' || *at == '\0') {
			*out = '\0';
			if (out > one) {
				paths[n] = cli_clean_path(one);
				if (!paths[n])
					break;
				n++;
			}
			out = one;
			if (*at)
				continue;
			*ret_paths = paths;
			*ret_n = n;
			return 0;
		} else {
			*out++ = *at;
		}
	}
	cli_paths_free(paths);
	return -ENOMEM;
}
