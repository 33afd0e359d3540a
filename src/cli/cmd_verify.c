/*
 * verify: whether a repository is whole.
 */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/session.h"
#include "repo/verify.h"
#include "util/mem.h"
#include "util/str.h"

struct verify_ui {
	struct cli_progress progress;
	json_t *findings;
};

static void show_finding(void *ctx, const char *object, const char *text)
{
	struct verify_ui *ui = ctx;
	char safe[1024];

	if (ui->findings)
		json_array_append_new(ui->findings,
				      json_pack("{s:s, s:s}", "object", object, "finding", text));
	else
		printf("%s: %s\n", cli_safe(object, strlen(object), safe, sizeof(safe)), text);
}

static void show_progress(void *ctx, uint64_t done_n, uint64_t total_n, uint64_t bytes)
{
	struct verify_ui *ui = ctx;

	cli_progress_show(&ui->progress, "verifying", done_n, total_n, bytes, 0);
}

static int run_verify(struct cli_call *call)
{
	struct verify_ui ui = {.findings = call->json ? json_array() : NULL};
	struct ds_verify_options options = {
		.read_data = cli_has(call, "read-data"),
		.finding = show_finding,
		.progress = show_progress,
		.ctx = &ui,
		.interrupted = &cli_interrupted,
	};
	struct ds_verify_result result;
	struct ds_locator locator = {0};
	struct ds_repo *repo = NULL;
	char size[32];
	int r;

	r = cli_open_repo(call, call->args[0], &locator, &repo);
	if (r == 0) {
		options.selector = locator.selector;
		cli_catch_signals();
		cli_progress_start(&ui.progress, call);
		ui.progress.what = "packs";
		r = ds_verify(repo, &options, &result, &call->diag);
		cli_progress_end(&ui.progress);
	}
	if (r == 0 && ui.findings)
		cli_print_json(
			json_pack("{s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:O}", "clean",
				  result.findings_n == 0, "versions", (json_int_t)result.versions_n,
				  "packs", (json_int_t)result.packs_n, "chunks",
				  (json_int_t)result.chunks_n, "bytes", (json_int_t)result.bytes,
				  "unreachable_packs", (json_int_t)result.unreachable_n,
				  "imported_files", (json_int_t)result.imported_n, "findings_n",
				  (json_int_t)result.findings_n, "findings", ui.findings));
	else if (r == 0 && !(cli_has(call, "quiet") && result.findings_n == 0))
		printf("%s: %" PRIu64 " %s, %" PRIu64 " %s, %" PRIu64 " %s, %s read, %" PRIu64
		       " %s\n",
		       result.findings_n ? "damaged" : "clean",
		       CLI_COUNT(result.versions_n, "version"), CLI_COUNT(result.packs_n, "pack"),
		       CLI_COUNT(result.chunks_n, "chunk"),
		       ds_format_size(result.bytes, size, sizeof(size)),
		       CLI_COUNT(result.findings_n, "finding"));
	if (r == 0 && !ui.findings && result.imported_n && !cli_has(call, "quiet"))
		printf("not checked: %" PRIu64 " %s in imported objects\n",
		       CLI_COUNT(result.imported_n, "file"));
	json_decref(ui.findings);
	ds_repo_unref(repo);
	ds_locator_release(&locator);
	if (r < 0)
		return cli_fail(call, r, NULL);
	r = cli_finish_output(call);
	return r == 0 && result.findings_n ? CLI_EXIT_DAMAGED : r;
}

static const struct cli_option verify_options[] = {
	{0, "read-data", NULL, "read and check every byte of every pack, not only the structure",
	 false},
	{0},
};

const struct cli_command cli_command_verify = {
	.name = "verify",
	.arguments = "REPO[@VERSION]",
	.summary = "check that a repository is whole",
	.details = "Checks refs, version records, manifests, and that every chunk is where the "
		   "manifests say. Each finding names the object; with any, the exit status is 6. "
		   "Hints and the advisory index are derived and not judged; files in imported "
		   "objects are not checked, but counted.",
	.options = verify_options,
	.takes_store = true,
	.takes_json = true,
	.args_min = 1,
	.args_max = 1,
	.run = run_verify,
};
