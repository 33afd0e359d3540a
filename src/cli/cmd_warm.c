/*
 * warm: fills the cache ahead of use.
 */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/mount_options.h"
#include "cli/session.h"
#include "repo/refs.h"
#include "repo/view_warm.h"
#include "util/clock.h"
#include "util/mem.h"
#include "util/str.h"

#define FAILURES_TOLD 100u

struct warm_call {
	struct cli_call *call;
	struct cli_mount_options options;
	struct cli_progress progress;
	json_t *failures;
	uint64_t told_n;
	char *cache_dir;
	char **paths;
	struct ds_locator locator;
	struct cli_reading reading;
	struct ds_warm *warm;
};

static void on_failed(void *ctx, const char *path, const struct ds_diag *diag)
{
	struct warm_call *warm = ctx;
	char safe[1024], line[1200];

	ds_diag_format(diag, line, sizeof(line));
	ds_defuse(line);
	if (warm->told_n++ >= FAILURES_TOLD)
		return;
	if (warm->failures)
		json_array_append_new(warm->failures,
				      json_pack("{s:o, s:s, s:s}", "path",
						cli_name_json(path, strlen(path)), "error",
						ds_error_name(diag->code), "text", line));
	cli_progress_end(&warm->progress);
	fprintf(stderr, "dsfs: %s: %s\n", cli_safe(path, strlen(path), safe, sizeof(safe)), line);
}

static bool on_tick(void *ctx, const struct ds_warm_progress *progress)
{
	struct warm_call *warm = ctx;
	bool is_looking =
		progress->files_n == 0 && progress->fetched_bytes == 0 && progress->here_bytes == 0;

	if (is_looking)
		cli_progress_show(&warm->progress, "looking", progress->files_total_n, 0,
				  progress->bytes_total, 0);
	else
		cli_progress_show(&warm->progress, "warming", progress->files_n,
				  progress->files_total_n, progress->fetched_bytes,
				  progress->bytes_total - progress->here_bytes);
	return cli_interrupted;
}

/* What the mount options say, where the command's own do not. */
static int store_options(struct warm_call *warm, struct ds_store_options *ret_store)
{
	const struct cli_mount_options *o = &warm->options;
	int r = cli_store_of(warm->call, ret_store);

	if (r < 0)
		return r;
	if (!ret_store->endpoint)
		ret_store->endpoint = o->endpoint;
	if (!ret_store->region)
		ret_store->region = o->region;
	if (!ret_store->profile)
		ret_store->profile = o->profile;
	if (!cli_has(warm->call, "addressing"))
		ret_store->addressing = o->addressing;
	if (!ret_store->timeout_ms)
		ret_store->timeout_ms = o->timeout_ms;
	ret_store->insecure_http |= o->insecure_http;
	return 0;
}

static int parse_version(struct warm_call *warm)
{
	const char *version = warm->options.version, *text = warm->call->args[0];
	int r = ds_locator_parse(text, &warm->locator, &warm->call->diag);

	if (r < 0 || !version)
		return r;
	if (warm->locator.selector && strcmp(warm->locator.selector, version) != 0)
		return ds_diag_set(&warm->call->diag, -DS_E_USAGE, text,
				   "the source and version= name different versions");
	if (!warm->locator.selector)
		warm->locator.selector = ds_strdup(version);
	return warm->locator.selector ? 0 : -ENOMEM;
}

static int open_view(struct warm_call *warm, uint64_t *ret_timeout_ms)
{
	const struct cli_mount_options *o = &warm->options;
	struct ds_diag *diag = &warm->call->diag;
	struct ds_cache_options cache = {.capacity_bytes = o->cache_bytes};
	struct ds_store_options store;
	int r;

	warm->call->subject = warm->call->args[0];
	r = store_options(warm, &store);
	if (r == 0)
		r = parse_version(warm);
	if (r < 0)
		return r;
	*ret_timeout_ms = store.timeout_ms;
	warm->cache_dir = o->cache_dir ? ds_strdup(o->cache_dir) : cli_default_cache_dir();
	cache.dir = warm->cache_dir;
	if (!cache.dir)
		return ds_diag_set(diag, -DS_E_USAGE, NULL,
				   "there is no home directory for the cache: give -o cache_dir=");
	cli_raise_files_limit();
	r = ds_cache_open(&cache, &warm->reading.cache, diag);
	if (r == 0)
		r = ds_repo_open(warm->locator.url, &store, &warm->reading.repo, diag);
	if (r == 0)
		r = cli_reading_open(&warm->reading, warm->locator.selector, o->inflight_bytes,
				     false, store.timeout_ms, diag);
	return r;
}

/* Those of the command line, else those of warm=. */
static int get_paths(struct warm_call *warm, size_t *ret_n)
{
	const struct cli_call *call = warm->call;

	if (call->args_n == 1)
		return cli_mount_warm_paths(warm->options.warm ? warm->options.warm : "",
					    &warm->paths, ret_n);
	warm->paths = ds_calloc(call->args_n, sizeof(warm->paths[0]));
	for (size_t i = 1; warm->paths && i < call->args_n; i++) {
		warm->paths[i - 1] = cli_clean_path(call->args[i]);
		if (!warm->paths[i - 1])
			return -ENOMEM;
	}
	*ret_n = call->args_n - 1;
	return warm->paths ? 0 : -ENOMEM;
}

static void print_result(struct warm_call *warm, double seconds)
{
	struct ds_fetcher_stats stats;
	struct ds_warm_progress progress;
	char id[DS_DIGEST_TEXT_MAX], fetched[32], all[32];

	ds_warm_get_progress(warm->warm, &progress);
	ds_fetcher_get_stats(warm->reading.fetcher, &stats);
	ds_digest_format(&warm->reading.record->id, id);
	if (warm->call->json)
		cli_print_json(json_pack(
			"{s:s, s:o, s:I, s:I, s:I, s:I, s:I, s:f, s:O}", "version", id, "cache",
			cli_text_json(ds_cache_dir(warm->reading.cache)), "files",
			(json_int_t)progress.files_n, "bytes", (json_int_t)progress.bytes_total,
			"fetched_bytes", (json_int_t)progress.fetched_bytes, "requests",
			(json_int_t)stats.gets_n, "failed_files", (json_int_t)progress.failed_n,
			"seconds", seconds, "failures", warm->failures));
	else if (!cli_has(warm->call, "quiet"))
		printf("warmed %" PRIu64 " %s of %s: %s, of which %s were fetched in %" PRIu64
		       " %s\n",
		       CLI_COUNT(progress.files_n - progress.failed_n, "file"), id,
		       ds_format_size(progress.bytes_total, all, sizeof(all)),
		       ds_format_size(progress.fetched_bytes, fetched, sizeof(fetched)),
		       CLI_COUNT(stats.gets_n, "request"));
}

static int warm_view(struct warm_call *warm, uint64_t timeout_ms)
{
	struct ds_warm_options options = {.timeout_ms = timeout_ms,
					  .failed = on_failed,
					  .tick = on_tick,
					  .ctx = warm};
	uint64_t start_ns = ds_mono_ns();
	struct cli_call *call = warm->call;
	struct ds_warm_progress progress;
	int r = get_paths(warm, &options.paths_n);

	options.paths = (const char *const *)warm->paths;
	if (r == 0)
		r = ds_warm_new(warm->reading.view, &options, &warm->warm);
	if (r < 0)
		return r;
	warm->failures = call->json ? json_array() : NULL;
	cli_catch_signals();
	cli_progress_start(&warm->progress, call);
	r = ds_warm_run(warm->warm, &call->diag);
	cli_progress_end(&warm->progress);
	ds_warm_get_progress(warm->warm, &progress);
	if (warm->told_n > FAILURES_TOLD)
		fprintf(stderr, "dsfs: %" PRIu64 " more %s could not be had\n",
			CLI_COUNT(warm->told_n - FAILURES_TOLD, "file"));
	if (r == 0 || (call->json && progress.failed_n))
		print_result(warm, (double)(ds_mono_ns() - start_ns) / 1e9);
	/* There is one document on standard output, and it is there. */
	if (r < 0 && progress.failed_n)
		call->json = false;
	return r;
}

static int run_warm(struct cli_call *call)
{
	struct warm_call warm = {.call = call};
	uint64_t timeout_ms = 0;
	const char *text;
	int r = 0;

	cli_mount_options_init(&warm.options);
	for (size_t i = 0; r == 0 && (text = cli_text_at(call, "options", i)); i++)
		r = cli_mount_options_parse(&warm.options, text, &call->diag);
	if (r == 0)
		r = open_view(&warm, &timeout_ms);
	if (r == 0)
		r = warm_view(&warm, timeout_ms);
	ds_warm_free(warm.warm);
	cli_reading_close(&warm.reading);
	ds_locator_release(&warm.locator);
	cli_paths_free(warm.paths);
	ds_free(warm.cache_dir);
	json_decref(warm.failures);
	cli_mount_options_release(&warm.options);
	return r < 0 ? cli_fail(call, r, NULL) : cli_finish_output(call);
}

static const struct cli_option warm_options[] = {
	{'o', "options", "LIST",
	 "mount options, separated by commas, as the mount has them: version, cache_dir, "
	 "cache_size, "
	 "inflight, warm and those of the store count, others are passed over",
	 true},
	{0},
};

const struct cli_command cli_command_warm = {
	.name = "warm",
	.arguments = "REPO[@VERSION] [PATH...]",
	.summary = "fetch a version, or parts of it, into the cache ahead of use",
	.details =
		"Afterwards a mount with the same cache reads these files and directories without "
		"the store; without PATH everything, the list of names included. Each chunk is "
		"checked as it comes. What is there already is not fetched again, so that a "
		"warming that was interrupted goes on where it was. Mounts go on beside it, and "
		"their reads come first where they share a process (see -o warm of dsfs mount).\n"
		"Refused (1) before any file is fetched if the cache cannot hold it, and (3) if a "
		"PATH is not there. Files that are damaged in the store are named, the others are "
		"fetched, and the exit status is 6. A cache_size= below what the cache takes now "
		"makes it smaller at once, also for the list of names alone. When nothing comes "
		"from the store for the time "
		"of --timeout, it ends with 5.\n"
		"With --json, one object: version, cache, files, bytes (of what was asked for), "
		"fetched_bytes and requests (of what was missing), failed_files, seconds, and "
		"failures, the first 100 of them.",
	.examples = "  dsfs warm s3://bucket/imagenet@v2.1\n"
		    "  dsfs warm s3://bucket/imagenet@v2.1 train/n01440764 labels.csv\n"
		    "  dsfs warm s3://bucket/imagenet -o "
		    "version=v2.1,cache_dir=/nvme/dsfs,cache_size=500G\n",
	.options = warm_options,
	.takes_store = true,
	.takes_json = true,
	.args_min = 1,
	.args_max = CLI_ARGS_MAX,
	.run = run_warm,
};
