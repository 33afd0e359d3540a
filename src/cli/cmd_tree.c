/*
 * ls, cat, diff: looking at versions without a mount.
 */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/commands.h"
#include "cli/session.h"
#include "repo/refs.h"
#include "repo/view.h"
#include "util/file.h"
#include "util/mem.h"
#include "util/str.h"

#define CAT_BUFFER_BYTES DS_MIB(4)

struct ls_call {
	struct cli_call *call;
	struct dsfs_version *version;
	json_t *rows;
	bool is_long;
};

static const char type_letters[] = {
	[DSFS_FILE] = '-', [DSFS_DIRECTORY] = 'd', [DSFS_SYMLINK] = 'l'};
static const char *const type_names[] = {
	[DSFS_FILE] = "file", [DSFS_DIRECTORY] = "directory", [DSFS_SYMLINK] = "symlink"};

static int ls_json(struct ls_call *ls, const struct dsfs_stat *stat)
{
	struct ds_time mtime = {.s = stat->mtime.tv_sec, .ns = (uint32_t)stat->mtime.tv_nsec};
	char digest[2 * 32 + 1], when[DS_TIME_TEXT_MAX], target[4096];
	json_t *row;
	int r;

	ds_hex_encode(stat->digest, sizeof(stat->digest), digest);
	row = json_pack("{s:o, s:s, s:I, s:s, s:b, s:s, s:I, s:I}", "name",
			cli_name_json(stat->name, stat->name_len), "type", type_names[stat->type],
			"size", (json_int_t)stat->size_bytes, "mtime",
			ds_time_format_ns(mtime, when), "executable", stat->executable, "digest",
			digest, "inode", (json_int_t)stat->inode, "links", (json_int_t)stat->nlink);
	if (stat->type == DSFS_SYMLINK) {
		r = dsfs_readlink(ls->version, stat->inode, target, sizeof(target),
				  &ls->call->error);
		if (r < 0) {
			json_decref(row);
			return r;
		}
		json_object_set_new(row, "target", cli_name_json(target, strlen(target)));
	}
	return row && json_array_append_new(ls->rows, row) == 0 ? 0 : -ENOMEM;
}

static int ls_one(void *ctx, const struct dsfs_stat *stat)
{
	struct ds_time mtime = {.s = stat->mtime.tv_sec, .ns = (uint32_t)stat->mtime.tv_nsec};
	char name[4 * 256], when[DS_TIME_TEXT_MAX], target[4096];
	struct ls_call *ls = ctx;
	int r;

	if (cli_interrupted)
		return -DS_E_INTERRUPTED;
	if (ls->rows)
		return ls_json(ls, stat);
	cli_safe(stat->name, stat->name_len, name, sizeof(name));
	if (!ls->is_long) {
		printf("%s%s\n", name, stat->type == DSFS_DIRECTORY ? "/" : "");
		return cli_check_output(ls->call);
	}
	printf("%c%s %14" PRIu64 " %.19sZ %s", type_letters[stat->type],
	       stat->type == DSFS_FILE && !stat->executable ? "r--" : "r-x", stat->size_bytes,
	       ds_time_format(mtime, when), name);
	if (stat->type == DSFS_SYMLINK) {
		char safe[4 * sizeof(target)];

		r = dsfs_readlink(ls->version, stat->inode, target, sizeof(target),
				  &ls->call->error);
		if (r < 0)
			return r;
		printf(" -> %s", cli_safe(target, strlen(target), safe, sizeof(safe)));
	}
	putchar('\n');
	return cli_check_output(ls->call);
}

static int ls_itself(struct ls_call *ls, struct dsfs_stat *stat)
{
	/* The root has no name; without -l its mark makes one. */
	if (stat->name_len == 0 && (ls->rows || ls->is_long)) {
		strcpy(stat->name, "/");
		stat->name_len = 1;
	}
	return ls_one(ls, stat);
}

static int run_ls(struct cli_call *call)
{
	struct ls_call ls = {.call = call, .is_long = cli_has(call, "long")};
	_ds_cleanup_free_ char *path = cli_clean_path(call->args_n > 1 ? call->args[1] : "");
	struct dsfs_repository *repository = NULL;
	struct ds_locator locator = {0};
	struct dsfs_stat stat;
	int r = path ? 0 : -ENOMEM;

	if (r == 0)
		r = cli_open_library(call, call->args[0], &locator, &repository);
	if (r == 0)
		r = dsfs_version_open(repository, locator.selector, &ls.version, &call->error);
	if (r == 0)
		r = dsfs_stat(ls.version, path, &stat, &call->error);
	if (r == 0) {
		cli_catch_signals();
		ls.rows = call->json ? json_array() : NULL;
		if (stat.type == DSFS_DIRECTORY && !cli_has(call, "directory"))
			r = dsfs_list(ls.version, stat.inode, 0, ls_one, &ls, &call->error);
		else
			r = ls_itself(&ls, &stat);
	}
	if (r == 0)
		cli_print_json(ls.rows);
	else if (ls.rows)
		json_decref(ls.rows);
	dsfs_version_close(ls.version);
	dsfs_repository_close(repository);
	ds_locator_release(&locator);
	return r < 0 ? cli_fail(call, r, NULL) : cli_finish_output(call);
}

static const struct cli_option ls_options[] = {
	{'l', "long", NULL, "type, size, time, target", false},
	{'d', "directory", NULL, "show a directory itself, not what is in it", false},
	{0},
};

const struct cli_command cli_command_ls = {
	.name = "ls",
	.arguments = "REPO[@VERSION] [PATH]",
	.summary = "list a directory of a version",
	.details =
		"Names that are no plain text are shown escaped; --json gives those that are not "
		"UTF-8 as {\"hex\": ...}. Its digest of a file is the SHA-256 of the content up "
		"to 4 MiB; of a larger file it is that of the list of its chunks, and not what "
		"sha256sum says; equal files have equal ones.",
	.options = ls_options,
	.takes_store = true,
	.takes_json = true,
	.args_min = 1,
	.args_max = 2,
	.run = run_ls,
};

static int refuse_symlink(struct cli_call *call, struct dsfs_version *version, const char *path,
			  uint64_t inode)
{
	char target[4096], safe[200];
	int r = dsfs_readlink(version, inode, target, sizeof(target), &call->error);

	if (r < 0)
		return r;
	return ds_diag_set(&call->diag, -DS_E_USAGE, path,
			   "it is a symlink to %s, and cat follows none",
			   ds_quote(target, strlen(target), safe, sizeof(safe)));
}

static int cat_file(struct cli_call *call, struct dsfs_version *version, const char *path)
{
	_ds_cleanup_free_ char *buffer = ds_malloc(CAT_BUFFER_BYTES);
	struct dsfs_stat stat;
	uint64_t off = 0;
	int r;

	if (!buffer)
		return -ENOMEM;
	r = dsfs_stat(version, path, &stat, &call->error);
	if (r < 0)
		return r;
	if (stat.type == DSFS_DIRECTORY)
		return ds_diag_set(&call->diag, -EISDIR, path, "not a file");
	if (stat.type == DSFS_SYMLINK)
		return refuse_symlink(call, version, path, stat.inode);
	dsfs_prefetch(version, &stat.inode, 1);
	while (off < stat.size_bytes) {
		size_t n;

		if (cli_interrupted)
			return -DS_E_INTERRUPTED;
		r = dsfs_read(version, stat.inode, off, buffer, CAT_BUFFER_BYTES, &n, &call->error);
		if (r < 0)
			return r;
		r = ds_write_full(STDOUT_FILENO, buffer, n);
		if (r < 0)
			return cli_output_failed(call, r);
		off += n;
	}
	return 0;
}

static int run_cat(struct cli_call *call)
{
	struct dsfs_repository *repository = NULL;
	struct dsfs_version *version = NULL;
	struct ds_locator locator = {0};
	int r;

	r = cli_open_library(call, call->args[0], &locator, &repository);
	if (r == 0)
		r = dsfs_version_open(repository, locator.selector, &version, &call->error);
	cli_catch_signals();
	for (size_t i = 1; r == 0 && i < call->args_n; i++) {
		_ds_cleanup_free_ char *path = cli_clean_path(call->args[i]);

		r = path ? cat_file(call, version, path) : -ENOMEM;
	}
	dsfs_version_close(version);
	dsfs_repository_close(repository);
	ds_locator_release(&locator);
	return r < 0 ? cli_fail(call, r, NULL) : CLI_EXIT_OK;
}

const struct cli_command cli_command_cat = {
	.name = "cat",
	.arguments = "REPO[@VERSION] PATH...",
	.summary = "write files of a version to standard output",
	.takes_store = true,
	.args_min = 2,
	.args_max = CLI_ARGS_MAX,
	.run = run_cat,
};

struct diff_call {
	struct cli_call *call;
	json_t *rows;
	uint64_t added_n, removed_n, changed_n;
};

struct change {
	char letter;
	const char *word;
};

static const struct change added = {'A', "added"}, removed = {'D', "removed"},
			   changed = {'C', "changed"}, other_type = {'T', "type"},
			   other_mode = {'M', "mode"}, other_time = {'U', "time"};

static const struct change *change_of(const struct ds_entry *old, const struct ds_entry *new)
{
	if (!old)
		return &added;
	if (!new)
		return &removed;
	if (old->type != new->type)
		return &other_type;
	/* A directory that only holds changed things is not one itself. */
	if (old->type != DS_ENTRY_DIRECTORY && !ds_digest_equal(&old->digest, &new->digest))
		return &changed;
	return old->is_executable != new->is_executable ? &other_mode : &other_time;
}

static int diff_one(void *ctx, const char *path, size_t path_len, const struct ds_entry *old,
		    const struct ds_entry *new)
{
	const struct change *change = change_of(old, new);
	struct diff_call *diff = ctx;
	_ds_cleanup_free_ char *text = NULL;

	if (cli_interrupted)
		return -DS_E_INTERRUPTED;
	diff->added_n += old ? 0 : 1;
	diff->removed_n += new ? 0 : 1;
	diff->changed_n += old && new ? 1 : 0;
	if (diff->rows) {
		const struct ds_entry *any = new ? new : old;
		json_t *row = json_pack("{s:o, s:s, s:s}", "path", cli_name_json(path, path_len),
					"change", change->word, "type", type_names[any->type]);

		if (old)
			json_object_set_new(row, "old_size",
					    json_integer((json_int_t)old->size_bytes));
		if (new)
			json_object_set_new(row, "new_size",
					    json_integer((json_int_t) new->size_bytes));
		return json_array_append_new(diff->rows, row) < 0 ? -ENOMEM : 0;
	}
	if (cli_has(diff->call, "quiet"))
		return 0;
	text = ds_malloc(4 * path_len + 8); /* "\x01" for each byte */
	if (!text)
		return -ENOMEM;
	printf("%c %s%s\n", change->letter, cli_safe(path, path_len, text, 4 * path_len + 8),
	       (new ? new : old)->type == DS_ENTRY_DIRECTORY ? "/" : "");
	return cli_check_output(diff->call);
}

struct side {
	struct ds_locator locator;
	struct cli_reading reading;
};

static int open_side(struct cli_call *call, const char *text, struct side *side)
{
	_ds_cleanup_free_ char *dir = cli_default_cache_dir();
	struct ds_cache_options cache_options = {.dir = dir};
	struct ds_store_options store;
	struct ds_diag ignored = {0};
	int r;

	r = cli_store_of(call, &store);
	if (r == 0)
		r = cli_open_repo(call, text, &side->locator, &side->reading.repo);
	if (r == 0 && (!dir || ds_cache_open(&cache_options, &side->reading.cache, &ignored) < 0))
		r = ds_cache_open_none(&side->reading.cache);
	if (r == 0)
		r = cli_reading_open(&side->reading, side->locator.selector, 0, true,
				     store.timeout_ms, &call->diag);
	return r;
}

static void close_side(struct side *side)
{
	cli_reading_close(&side->reading);
	ds_locator_release(&side->locator);
}

static int run_diff(struct cli_call *call)
{
	struct diff_call diff = {.call = call};
	struct side old = {0}, new = {0};
	int r;

	r = open_side(call, call->args[0], &old);
	if (r == 0)
		r = open_side(call, call->args[1], &new);
	if (r == 0) {
		cli_catch_signals();
		diff.rows = call->json ? json_array() : NULL;
		r = ds_manifest_diff(ds_view_manifest(old.reading.view),
				     ds_view_manifest(new.reading.view), NULL,
				     cli_has(call, "mtime"), diff_one, &diff);
	}
	if (r == 0 && diff.rows)
		cli_print_json(json_pack("{s:I, s:I, s:I, s:O}", "added", (json_int_t)diff.added_n,
					 "removed", (json_int_t)diff.removed_n, "changed",
					 (json_int_t)diff.changed_n, "entries", diff.rows));
	else if (r == 0 && !cli_has(call, "quiet"))
		printf("%" PRIu64 " added, %" PRIu64 " removed, %" PRIu64 " changed\n",
		       diff.added_n, diff.removed_n, diff.changed_n);
	json_decref(diff.rows);
	close_side(&new);
	close_side(&old);
	if (r < 0)
		return cli_fail(call, r, NULL);
	r = cli_finish_output(call);
	if (r == 0 && cli_has(call, "exit-code") && diff.added_n + diff.removed_n + diff.changed_n)
		return CLI_EXIT_DIFFERENT;
	return r;
}

static const struct cli_option diff_options[] = {
	{0, "mtime", NULL, "also compare modification times and hard links", false},
	{0, "exit-code", NULL, "exit with 11 if there are differences", false},
	{0},
};

const struct cli_command cli_command_diff = {
	.name = "diff",
	.arguments = "REPO@A REPO@B",
	.summary = "show what changed between two versions",
	.details = "One line a path: A added, D removed, C changed, T other type, M executable "
		   "bit, U only times or hard links (with --mtime; of a directory its own time, "
		   "whatever changed in it). Equal directories are skipped unread. The two may lie "
		   "in different repositories. With -q nothing is printed, which leaves "
		   "--exit-code; --json is the same with it.",
	.options = diff_options,
	.takes_store = true,
	.takes_json = true,
	.args_min = 2,
	.args_max = 2,
	.run = run_diff,
};
