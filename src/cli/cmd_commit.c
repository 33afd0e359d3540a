/*
 * commit, fingerprint.
 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/commands.h"
#include "cli/session.h"
#include "repo/commit.h"
#include "repo/refs.h"
#include "util/mem.h"
#include "util/str.h"

#define EXCLUDES_MAX 128
/* Less is a slip: a pack under way takes 36 MiB by itself (commit_upload.c). */
#define MEMORY_MIN DS_MIB(1)

struct commit_ui {
	struct cli_call *call;
	struct cli_progress progress;
	json_t *rejected;
	char *state_dir; /* the default one */
};

static void show_progress(void *ctx, const struct ds_commit_progress *progress)
{
	struct commit_ui *ui = ctx;

	cli_progress_show(&ui->progress, progress->phase, progress->files_n,
			  progress->files_total_n, progress->bytes, progress->bytes_total);
}

static void show_warning(void *ctx, const char *path, const char *reason)
{
	struct commit_ui *ui = ctx;
	char text[4400];

	if (ui->rejected)
		json_array_append_new(ui->rejected, json_pack("{s:o, s:s}", "path",
							      cli_name_json(path, strlen(path)),
							      "reason", reason));
	else
		fprintf(stderr, "dsfs: %s: %s\n", ds_quote(path, strlen(path), text, sizeof(text)),
			reason);
}

static void show_locked(void *ctx)
{
	struct commit_ui *ui = ctx;

	cli_tell_locked(ui->call, ui->call->args[1]);
}

static void show_anew(void *ctx)
{
	struct commit_ui *ui = ctx;

	if (ui->rejected)
		json_array_clear(ui->rejected);
	if (!cli_has(ui->call, "quiet"))
		fprintf(stderr,
			"dsfs: %s: half of the repository's grace has passed; starting anew, "
			"with what was uploaded lately\n",
			ui->call->args[1]);
}

static int fill_options(struct cli_call *call, struct commit_ui *ui, const char **excludes,
			struct ds_commit_options *options)
{
	uint64_t jobs_n;
	size_t n = 0;
	int r;

	while (n < EXCLUDES_MAX && (excludes[n] = cli_text_at(call, "exclude", n)))
		n++;
	if (n == EXCLUDES_MAX)
		return ds_diag_set(&call->diag, -DS_E_USAGE, NULL, "at most %d --exclude",
				   EXCLUDES_MAX - 1);
	*options = (struct ds_commit_options){
		.source = call->args[0],
		.branch = cli_text(call, "branch"),
		.tag = cli_text(call, "tag"),
		.message = cli_text(call, "message"),
		.author = cli_text(call, "author"),
		.parent = cli_text(call, "parent"),
		.excludes = excludes,
		.allow_empty = cli_has(call, "allow-empty"),
		.mtime = cli_has(call, "mtime"),
		.skip_special = cli_has(call, "skip-special"),
		.skip_unreadable = cli_has(call, "skip-unreadable"),
		.rehash = cli_has(call, "rehash"),
		.trust_mtime = cli_has(call, "trust-mtime"),
		.state_dir = cli_text(call, "state-dir"),
		.progress = show_progress,
		.warn = show_warning,
		.locked = show_locked,
		.anew = show_anew,
		.ctx = ui,
		.interrupted = &cli_interrupted,
	};
	if (!options->state_dir)
		options->state_dir = ui->state_dir = cli_default_cache_dir();
	r = cli_size(call, "memory", 0, &options->memory_bytes);
	if (r == 0 && cli_has(call, "memory") && options->memory_bytes < MEMORY_MIN)
		r = ds_diag_set(&call->diag, -DS_E_USAGE, cli_text(call, "memory"),
				"--memory is at least 1M");
	if (r == 0)
		r = cli_number(call, "jobs", 0, 1, 256, &jobs_n);
	if (r == 0)
		options->jobs_n = (unsigned)jobs_n;
	return r;
}

static void print_result(struct cli_call *call, struct ds_repo *repo,
			 const struct ds_commit_options *options,
			 const struct ds_commit_result *result, json_t *rejected)
{
	const char *branch = options->branch ? options->branch : ds_repo_default_branch(repo);
	char id[DS_DIGEST_TEXT_MAX], fingerprint[DS_DIGEST_TEXT_MAX], size[32], up[32];

	if (result->parent_is_damaged)
		fprintf(stderr,
			"dsfs: version %s is damaged (see 'dsfs verify'): nothing of its manifest "
			"was taken over\n",
			ds_digest_format(&result->parent, id));
	ds_digest_format(&result->version, id);
	ds_digest_format(&result->fingerprint, fingerprint);
	if (call->json) {
		json_t *row = json_pack("{s:s, s:s, s:I, s:s, s:b, s:{s:I, s:I, s:I, s:I, s:I}}",
					"version", id, "branch", branch, "number",
					(json_int_t)result->number, "fingerprint", fingerprint,
					"unchanged", result->unchanged, "totals", "files",
					(json_int_t)result->totals.files_n, "directories",
					(json_int_t)result->totals.directories_n, "symlinks",
					(json_int_t)result->totals.symlinks_n, "bytes",
					(json_int_t)result->totals.bytes, "rejected",
					(json_int_t)result->totals.rejected_n);

		json_object_update_new(row,
				       json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}",
						 "added", (json_int_t)result->added_n, "changed",
						 (json_int_t)result->changed_n, "removed",
						 (json_int_t)result->removed_n,
						 "uploaded_data_bytes",
						 (json_int_t)result->uploaded_data_bytes,
						 "uploaded_manifest_bytes",
						 (json_int_t)result->uploaded_manifest_bytes,
						 "reused_bytes", (json_int_t)result->reused_bytes,
						 "read_bytes", (json_int_t)result->read_bytes,
						 "races", (json_int_t)result->races_n));
		json_object_set(row, "rejected", rejected);
		json_object_set_new(row, "parent_damaged", json_boolean(result->parent_is_damaged));
		cli_print_json(row);
		return;
	}
	if (cli_has(call, "quiet")) {
		puts(id);
		return;
	}
	printf("%s:%" PRIu64 " %s\n", branch, result->number, id);
	if (result->unchanged) {
		printf("nothing has changed; no new version\n");
		return;
	}
	/* Directories do not count, as they do for diff. */
	printf("%" PRIu64 " %s, %s; of files and links %" PRIu64 " added, %" PRIu64
	       " changed, %" PRIu64 " removed; %s uploaded\n",
	       CLI_COUNT(result->totals.files_n, "file"),
	       ds_format_size(result->totals.bytes, size, sizeof(size)), result->added_n,
	       result->changed_n, result->removed_n,
	       ds_format_size(result->uploaded_data_bytes + result->uploaded_manifest_bytes, up,
			      sizeof(up)));
	if (result->totals.rejected_n)
		printf("%" PRIu64 " left out\n", result->totals.rejected_n);
}

static int open_or_init(struct cli_call *call, const struct ds_commit_options *options,
			struct ds_locator *locator, struct ds_repo **ret_repo)
{
	struct ds_store_options store;
	int r = cli_open_repo(call, call->args[1], locator, ret_repo);

	if ((r == 0 || r == -DS_E_NO_REPO) && locator->selector) {
		ds_diag_clear(&call->diag);
		return ds_diag_set(&call->diag, -DS_E_USAGE, call->args[1],
				   "a commit goes to a branch: give --branch, not @VERSION");
	}
	if (r != -DS_E_NO_REPO || !cli_has(call, "init"))
		return r;
	ds_diag_clear(&call->diag);
	r = cli_store_of(call, &store);
	if (r == 0)
		r = ds_commit_check(options, locator->url, &call->diag);
	if (r == 0)
		r = ds_repo_init(locator->url, &store, options->branch, ret_repo, &call->diag);
	/* Another writer made it meanwhile. */
	if (r == -DS_E_PRESENT) {
		ds_diag_clear(&call->diag);
		r = ds_repo_open(locator->url, &store, ret_repo, &call->diag);
	}
	return r;
}

static int run_commit(struct cli_call *call)
{
	struct commit_ui ui = {.call = call, .rejected = call->json ? json_array() : NULL};
	const char *excludes[EXCLUDES_MAX];
	struct ds_commit_options options;
	struct ds_commit_result result;
	struct ds_locator locator = {0};
	struct ds_repo *repo = NULL;
	int r;

	r = fill_options(call, &ui, excludes, &options);
	if (r == 0)
		r = open_or_init(call, &options, &locator, &repo);
	if (r == 0) {
		cli_catch_signals();
		cli_progress_start(&ui.progress, call);
		r = ds_commit(repo, &options, &result, &call->diag);
		cli_progress_end(&ui.progress);
	}
	if (r == 0)
		print_result(call, repo, &options, &result, ui.rejected);
	if (r == -DS_E_NO_REPO && !call->diag.detail[0])
		ds_diag_set(&call->diag, r, call->args[1], "make it with 'dsfs init' or --init");
	json_decref(ui.rejected);
	ds_free(ui.state_dir);
	ds_repo_unref(repo);
	ds_locator_release(&locator);
	return r < 0 ? cli_fail(call, r, NULL) : cli_finish_output(call);
}

#define SOURCE_OPTIONS                                                                           \
	{0, "exclude", "PATTERN",                                                                \
	 "leave out paths that fit this shell pattern; without a slash it fits names "           \
	 "anywhere; may be given up to 127 times",                                               \
	 true},                                                                                  \
		{0, "skip-special", NULL,                                                        \
		 "leave out FIFOs, sockets and devices instead of failing", false},              \
		{0, "skip-unreadable", NULL, "leave out what cannot be read instead of failing", \
		 false},                                                                         \
		{'j', "jobs", "N", "read so many files at once, 1 to 256 (CPUs + 2)", false},    \
	{                                                                                        \
		0, "memory", "SIZE",                                                             \
			"memory for what is being read and uploaded, at least 1M (512M)", false  \
	}

static const struct cli_option commit_options[] = {
	{'m', "message", "MSG", "what changed and why", false},
	{0, "author", "NAME", "who made it", false},
	{0, "branch", "NAME",
	 "branch to commit to; default: the repository's; made if it is new, and then "
	 "must not have a tag's name",
	 false},
	{0, "tag", "NAME",
	 "also give the new version this tag, which must not have a branch's name", false},
	{0, "init", NULL,
	 "make the repository if there is none, with --branch as its default branch", false},
	{0, "parent", "VERSION", "fail (exit status 7) if this is not the newest version any more",
	 false},
	{0, "allow-empty", NULL, "make a version even if nothing has changed", false},
	{0, "mtime", NULL, "make a version even if only times or hard links have changed", false},
	{0, "rehash", NULL, "read every file, whatever the stat cache and --trust-mtime say",
	 false},
	{0, "trust-mtime", NULL,
	 "take a file for unchanged if size and time are as in the parent version", false},
	SOURCE_OPTIONS,
	{0, "state-dir", "DIR",
	 "where the local stat cache lies; default: the cache directory; '' for none", false},
	{0},
};

const struct cli_command cli_command_commit = {
	.name = "commit",
	.arguments = "SOURCE REPO",
	.summary = "make a new version of a directory",
	.details =
		"The new version is SOURCE exactly: files, directories, symlinks, hard links, the "
		"executable bit and modification times. Only what is not in the repository yet is "
		"uploaded. On success the version's number and id are printed, and how many files "
		"and links are new, changed or gone; directories do not count, as they do for "
		"diff. An unchanged SOURCE makes no version.\n"
		"SOURCE may change meanwhile: each file is stored as it was at one moment, though "
		"not all at the same. A file that keeps changing fails the commit (exit status "
		"8); so does one that is open for writing and is changed, other than by growing, "
		"at least every 2 seconds. What a program writes through a shared memory mapping "
		"may be missed: until the system "
		"has written it to disk, the file's times need not show it. By those times later "
		"commits then take the file for unchanged, too: --rehash reads every file.\n"
		"If somebody else commits at the same time, the one who is later commits the same "
		"tree again with the other's version as its parent, unless --parent forbids it. "
		"Interrupted or killed, a commit leaves nothing half-visible, and repeating it "
		"soon uses what was uploaded. One that has taken half of the repository's grace "
		"starts anew, three times at most, since a collector might take what it refers "
		"to.\n"
		"If rows of the parent's manifest turn out not to be a tree, nothing of it is "
		"taken over, and a warning names that version. --rehash also looks whether the "
		"packs that the parent names have what it says: what is lost is stored again, and "
		"makes a version of an unchanged SOURCE, too.",
	.examples = "  dsfs commit ./data s3://bucket/imagenet -m 'relabelled cats'\n"
		    "  dsfs commit --init ./data /srv/datasets/imagenet --tag v1\n",
	.options = commit_options,
	.takes_store = true,
	.takes_json = true,
	.args_min = 2,
	.args_max = 2,
	.run = run_commit,
};

static int fingerprint_version(struct cli_call *call, struct dsfs_error *error, char *ret_text)
{
	struct dsfs_repository *repository = NULL;
	struct dsfs_version *version = NULL;
	struct ds_locator locator = {0};
	int r;

	r = cli_open_library(call, call->args[0], &locator, &repository);
	if (r == 0)
		r = dsfs_version_open(repository, locator.selector, &version, error);
	if (r == 0) {
		strcpy(ret_text, dsfs_version_info(version)->fingerprint);
		if (!ret_text[0])
			r = ds_diag_set(&call->diag, -ENODATA, call->args[0],
					"this version has no fingerprint: not all of it was read "
					"when it was imported");
	}
	dsfs_version_close(version);
	dsfs_repository_close(repository);
	ds_locator_release(&locator);
	return r;
}

/* A file of the marker's name does not make a repository yet: there are refs, or what init left. */
static bool is_plain_directory(const char *path)
{
	static const char *const names[] = {"dsfs.json", "refs", "probe.json"};
	bool there[3] = {false};
	struct stat st;

	if (stat(path, &st) < 0 || !S_ISDIR(st.st_mode))
		return false;
	for (size_t i = 0; i < DS_ARRAY_SIZE(names); i++) {
		_ds_cleanup_free_ char *whole = ds_asprintf("%s/%s", path, names[i]);

		there[i] = whole && stat(whole, &st) == 0;
	}
	return !there[0] || (!there[1] && !there[2]);
}

static int run_fingerprint(struct cli_call *call)
{
	struct commit_ui ui = {.call = call, .rejected = call->json ? json_array() : NULL};
	const char *excludes[EXCLUDES_MAX];
	struct ds_version_totals totals;
	struct ds_commit_options options;
	struct ds_digest fingerprint;
	char text[DS_DIGEST_TEXT_MAX] = "";
	int r;

	if (is_plain_directory(call->args[0])) {
		r = fill_options(call, &ui, excludes, &options);
		if (r == 0) {
			cli_catch_signals();
			cli_progress_start(&ui.progress, call);
			r = ds_fingerprint_directory(&options, &fingerprint, &totals, &call->diag);
			cli_progress_end(&ui.progress);
		}
		if (r == 0)
			ds_digest_format(&fingerprint, text);
	} else {
		r = fingerprint_version(call, &call->error, text);
	}
	if (r == 0 && call->json)
		cli_print_json(json_pack("{s:s}", "fingerprint", text));
	else if (r == 0)
		puts(text);
	json_decref(ui.rejected);
	ds_free(ui.state_dir);
	return r < 0 ? cli_fail(call, r, NULL) : cli_finish_output(call);
}

static const struct cli_option fingerprint_options[] = {
	SOURCE_OPTIONS,
	{0},
};

const struct cli_command cli_command_fingerprint = {
	.name = "fingerprint",
	.arguments = "REPO[@VERSION]|DIR",
	.summary = "print the fingerprint of a version, or of a directory as it is now",
	.details = "Equal content has an equal fingerprint, on any machine at any time: names, "
		   "types, the executable bit, contents and link targets count, times do not. Of a "
		   "directory every file is read, and some 350 bytes for each lie in a temporary "
		   "file meanwhile, in $TMPDIR or /var/tmp.",
	.options = fingerprint_options,
	.takes_store = true,
	.takes_json = true,
	.args_min = 1,
	.args_max = 1,
	.run = run_fingerprint,
};
