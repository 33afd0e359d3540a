/*
 * init, refs, log, tag: what deals with names of versions.
 */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/session.h"
#include "repo/keep.h"
#include "repo/record.h"
#include "repo/refs.h"
#include "util/file.h"
#include "util/mem.h"
#include "util/random.h"
#include "util/str.h"

static int run_init(struct cli_call *call)
{
	const char *branch = cli_text(call, "branch");
	struct ds_store_options options;
	struct ds_locator locator = {0};
	struct ds_repo *repo = NULL;
	char id[2 * DS_UUID_LEN + 1];
	int r;

	call->subject = call->args[0];
	r = cli_store_of(call, &options);
	if (r == 0)
		r = ds_locator_parse(call->args[0], &locator, &call->diag);
	if (r == 0 && locator.selector)
		r = ds_diag_set(&call->diag, -DS_E_USAGE, call->args[0],
				"a repository to make has no version yet");
	if (r == 0)
		r = ds_repo_init(locator.url, &options, branch, &repo, &call->diag);
	if (r == 0) {
		ds_hex_encode(ds_repo_id(repo)->bytes, DS_UUID_LEN, id);
		if (call->json)
			cli_print_json(json_pack("{s:s, s:o, s:s}", "repository", id, "url",
						 cli_text_json(locator.url), "default_branch",
						 ds_repo_default_branch(repo)));
		else if (!cli_has(call, "quiet"))
			printf("made repository %s in %s\n", id, locator.url);
	}
	ds_repo_unref(repo);
	ds_locator_release(&locator);
	return r < 0 ? cli_fail(call, r, NULL) : cli_finish_output(call);
}

static const struct cli_option init_options[] = {
	{0, "branch", "NAME", "name of the default branch (main)", false},
	{0},
};

const struct cli_command cli_command_init = {
	.name = "init",
	.arguments = "REPO",
	.summary = "make an empty repository",
	.details = "Probes that the store refuses a second conditional PUT of the same key, which "
		   "commits rely on, and writes the marker dsfs.json. Where anything else lies no "
		   "repository is made.",
	.examples = "  dsfs init s3://bucket/imagenet\n  dsfs init /srv/datasets/imagenet\n",
	.options = init_options,
	.takes_store = true,
	.takes_json = true,
	.args_min = 1,
	.args_max = 1,
	.run = run_init,
};

static void print_ref(const struct ds_ref_entry *entry, bool is_default)
{
	char id[DS_DIGEST_TEXT_MAX], when[DS_TIME_TEXT_MAX];

	if (entry->is_deleted)
		snprintf(id, sizeof(id), "%-16s", "deleted");
	else
		ds_digest_format(&entry->version, id);
	printf("%-6s %-24s %6" PRIu64 "  %.16s  %.19sZ%s\n",
	       entry->kind == DS_REF_TAG ? "tag" : "branch", entry->name, entry->number, id,
	       ds_time_format(entry->time, when), is_default ? "  (default)" : "");
}

static json_t *ref_json(const struct ds_ref_entry *entry, bool is_default)
{
	char id[DS_DIGEST_TEXT_MAX], when[DS_TIME_TEXT_MAX];

	ds_digest_format(&entry->version, id);
	return json_pack("{s:s, s:s, s:I, s:o, s:b, s:s, s:b}", "kind",
			 entry->kind == DS_REF_TAG ? "tag" : "branch", "name", entry->name,
			 "number", (json_int_t)entry->number, "version",
			 entry->is_deleted ? json_null() : json_string(id), "deleted",
			 entry->is_deleted, "time", ds_time_format(entry->time, when), "default",
			 is_default);
}

static int run_refs(struct cli_call *call)
{
	struct ds_locator locator = {0};
	struct ds_ref_list list = {0};
	struct ds_repo *repo = NULL;
	json_t *rows = NULL;
	int r;

	r = cli_open_repo(call, call->args[0], &locator, &repo);
	if (r == 0)
		r = ds_refs_list(repo, &list, &call->diag);
	if (r == 0 && call->json)
		rows = json_array();
	for (size_t i = 0; r == 0 && i < list.heads_n; i++) {
		const struct ds_ref_entry *entry = &list.heads[i];
		bool is_default = entry->kind == DS_REF_BRANCH &&
				  strcmp(entry->name, ds_repo_default_branch(repo)) == 0;

		if (entry->is_deleted && !cli_has(call, "all"))
			continue;
		if (rows)
			json_array_append_new(rows, ref_json(entry, is_default));
		else
			print_ref(entry, is_default);
	}
	cli_print_json(rows);
	ds_ref_list_release(&list);
	ds_repo_unref(repo);
	ds_locator_release(&locator);
	return r < 0 ? cli_fail(call, r, NULL) : cli_finish_output(call);
}

static const struct cli_option refs_options[] = {
	{'a', "all", NULL, "also what is deleted", false},
	{0},
};

const struct cli_command cli_command_refs = {
	.name = "refs",
	.arguments = "REPO",
	.summary = "list branches and tags",
	.options = refs_options,
	.takes_store = true,
	.takes_json = true,
	.args_min = 1,
	.args_max = 1,
	.run = run_refs,
};

struct log_call {
	struct cli_call *call;
	json_t *rows;
	bool verbose;
};

static int log_one(void *ctx, const struct dsfs_info *info)
{
	const struct timespec *of = info->number ? &info->entry_time : &info->time;
	struct ds_time time = {.s = of->tv_sec, .ns = (uint32_t)of->tv_nsec};
	struct log_call *log = ctx;
	char when[DS_TIME_TEXT_MAX], size[32], text[512];

	ds_time_format(time, when);
	if (log->rows) {
		json_t *row = json_pack("{s:s, s:s, s:o, s:s?, s:o}", "version", info->id, "branch",
					info->branch, "number",
					info->number ? json_integer((json_int_t)info->number)
						     : json_null(),
					"entry_time", info->number ? when : NULL, "record",
					json_loads(info->record, 0, NULL));

		return json_array_append_new(log->rows, row) < 0 ? -ENOMEM : 0;
	}
	if (info->number)
		printf("%s:%" PRIu64 "  ", info->branch, info->number);
	printf("%s\n", info->id);
	printf("    %s  %" PRIu64 " %s, %s", when, CLI_COUNT(info->files_n, "file"),
	       ds_format_size(info->bytes, size, sizeof(size)));
	if (info->author[0])
		printf("  %s", cli_safe(info->author, strlen(info->author), text, sizeof(text)));
	if (log->verbose)
		printf("\n    fingerprint %s", info->fingerprint[0] ? info->fingerprint : "none");
	printf("\n");
	if (info->message[0]) {
		for (const char *at = info->message; *at;) {
			size_t len = strcspn(at, "\n");

			printf("    %s\n", cli_safe(at, len, text, sizeof(text)));
			at += len + (at[len] != '\0');
		}
	}
	return cli_check_output(log->call);
}

static int run_log(struct cli_call *call)
{
	struct log_call log = {.call = call, .verbose = cli_has(call, "verbose")};
	struct dsfs_repository *repository = NULL;
	struct ds_locator locator = {0};
	uint64_t max_n;
	int r;

	r = cli_number(call, "number", 0, 0, UINT64_MAX, &max_n);
	if (r == 0)
		r = cli_open_library(call, call->args[0], &locator, &repository);
	if (r == 0 && locator.selector && cli_has(call, "branch"))
		r = ds_diag_set(&call->diag, -DS_E_USAGE, NULL, "either @VERSION or --branch");
	if (r == 0) {
		log.rows = call->json ? json_array() : NULL;
		/* For the library 0 is all; who types it wants none. */
		if (max_n > 0 || !cli_has(call, "number"))
			r = dsfs_history(repository, cli_text(call, "branch"), locator.selector,
					 max_n, log_one, &log, &call->error);
	}
	if (r == 0)
		cli_print_json(log.rows);
	else if (log.rows)
		json_decref(log.rows);
	dsfs_repository_close(repository);
	ds_locator_release(&locator);
	return r < 0 ? cli_fail(call, r, NULL) : cli_finish_output(call);
}

static const struct cli_option log_options[] = {
	{'n', "number", "N", "show at most N versions", false},
	{0, "branch", "NAME", "history of this branch instead of the default one", false},
	{0},
};

const struct cli_command cli_command_log = {
	.name = "log",
	.arguments = "REPO[@VERSION]",
	.summary = "show the versions of a branch, newest first",
	.details = "With @VERSION the history begins there. Only the small version records are "
		   "read. The "
		   "time is that of the branch's entry (with --json entry_time, and record.time is "
		   "when "
		   "the commit began): as a selector, REPO@TIME, it finds that version. A version "
		   "that "
		   "was found by a tag or an id shows its record's time.",
	.options = log_options,
	.takes_store = true,
	.takes_json = true,
	.args_min = 1,
	.args_max = 1,
	.run = run_log,
};

static int make_tag(struct cli_call *call, struct ds_repo *repo, const char *selector,
		    const char *name, struct ds_resolved *ret_resolved)
{
	struct ds_ref_entry wanted = {.kind = DS_REF_TAG}, made;
	struct ds_keep *keep = NULL;
	struct ds_time now;
	int r;

	r = ds_ref_check_new(repo, DS_REF_TAG, name, &call->diag);
	if (r == 0)
		r = ds_resolve(repo, selector, ret_resolved, &call->diag);
	if (r == 0)
		r = ds_keep_load(repo, &keep, &now, &call->diag);
	if (r < 0)
		return r;
	if (ds_keep_state_of(keep, &ret_resolved->version, NULL) != DS_KEEP_UNKNOWN &&
	    !ds_keep_may_name(keep, &ret_resolved->version))
		r = ds_diag_set(&call->diag, -DS_E_CLOSED, name,
				"the version was dropped too long ago to be named again; commit it "
				"anew");
	if (r == 0) {
		snprintf(wanted.name, sizeof(wanted.name), "%s", name);
		wanted.version = ret_resolved->version;
		ds_random_bytes(&wanted.writer, sizeof(wanted.writer));
		r = ds_ref_append(repo, NULL, &wanted, ds_keep_publish_limit(keep, now), &made,
				  &call->diag);
		if (r == -DS_E_CONFLICT)
			r = ds_diag_set(&call->diag, -DS_E_TAKEN, name,
					"somebody else took this tag meanwhile");
	}
	ds_keep_free(keep);
	return r;
}

static void show_locked(void *ctx)
{
	struct cli_call *call = ctx;

	cli_tell_locked(call, call->args[0]);
}

static int run_tag(struct cli_call *call)
{
	_ds_cleanup_close_ int lock_fd = -1;
	struct ds_locator locator = {0};
	struct ds_resolved resolved;
	struct ds_repo *repo = NULL;
	char id[DS_DIGEST_TEXT_MAX];
	int r;

	r = cli_open_repo(call, call->args[0], &locator, &repo);
	if (r == 0) {
		cli_catch_signals();
		r = ds_repo_lock(repo, &cli_interrupted, show_locked, call, &lock_fd);
	}
	if (r == 0)
		r = make_tag(call, repo, locator.selector, call->args[1], &resolved);
	if (r == 0) {
		ds_digest_format(&resolved.version, id);
		if (call->json)
			cli_print_json(
				json_pack("{s:s, s:s}", "tag", call->args[1], "version", id));
		else if (!cli_has(call, "quiet"))
			printf("%s is %s\n", call->args[1], id);
	}
	ds_repo_unref(repo);
	ds_locator_release(&locator);
	return r < 0 ? cli_fail(call, r, NULL) : cli_finish_output(call);
}

const struct cli_command cli_command_tag = {
	.name = "tag",
	.arguments = "REPO[@VERSION] NAME",
	.summary = "give a version a name that never moves",
	.details = "The name must be free: no branch and no tag has it or had it, since REPO@NAME "
		   "can mean only one of them.",
	.examples = "  dsfs tag s3://bucket/imagenet@42 v2.1\n",
	.takes_store = true,
	.takes_json = true,
	.args_min = 2,
	.args_max = 2,
	.run = run_tag,
};
