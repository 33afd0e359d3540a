/*
 * cache: what lies in the local cache, making room in it, checking it. Beside live mounts, by their own rules; the
 * directory is all there is to know, so that no mount is asked.
 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "cache/cache_survey.h"
#include "cli/commands.h"
#include "cli/mountinfo.h"
#include "util/clock.h"
#include "util/mem.h"
#include "util/str.h"

#define LET_GO_MS 10000u /* mounts look after what they have open every 2 s */
#define STANDS_MS 3000u	 /* none of them let go of anything */

static const char *const kind_names[] = {[DS_IMAGE_PACK] = "packs",
					 [DS_IMAGE_FILE] = "large files",
					 [DS_IMAGE_MANIFEST] = "manifests",
					 [DS_IMAGE_INDEX] = "indexes",
					 "not known"};
#define KINDS_N DS_ARRAY_SIZE(kind_names)

/* Opens the cache without making one. */
static int open_cache(struct cli_call *call, char **ret_dir, struct ds_cache **ret_cache)
{
	const char *given = cli_text(call, "cache-dir");
	char *dir = given ? ds_strdup(given) : cli_default_cache_dir();
	struct ds_cache_options options = {.dir = dir, .makes_none = true};
	struct stat st;
	int r = 0;

	if (!dir)
		r = given ? -ENOMEM
			  : ds_diag_set(
				    &call->diag, -DS_E_USAGE, NULL,
				    "there is no home directory for the cache: give --cache-dir");
	if (r == 0)
		r = stat(dir, &st) < 0 ? -errno : ds_cache_open(&options, ret_cache, &call->diag);
	if (r == -ENOENT)
		ds_diag_set(&call->diag, r, dir,
			    "no cache is there: a mount makes it, or --cache-dir names another");
	if (r < 0)
		ds_free(dir);
	else
		*ret_dir = dir;
	return r;
}

/* ---- status */

struct kind_row {
	uint64_t images_n, in_use_n, chunks_n, present_bytes, trusted_bytes, handed_out_bytes;
	uint64_t allocated_bytes;
};

struct status {
	struct kind_row rows[KINDS_N];
	uint64_t images_n, damaged_n, allocated_bytes;
	struct cli_progress progress;
};

static int add_image(void *ctx, const struct ds_survey_image *image)
{
	struct status *status = ctx;
	struct kind_row *row = &status->rows[image->has_kind ? (size_t)image->kind : KINDS_N - 1];

	row->images_n++;
	row->in_use_n += image->is_in_use;
	row->chunks_n += image->chunks_n;
	row->present_bytes += image->present_bytes;
	row->trusted_bytes += image->trusted_bytes;
	row->handed_out_bytes += image->is_handed_out ? image->present_bytes : 0;
	row->allocated_bytes += image->allocated_bytes;
	status->images_n++;
	status->damaged_n += image->is_damaged;
	status->allocated_bytes += image->allocated_bytes;
	cli_progress_show(&status->progress, "looking", status->images_n, 0,
			  status->allocated_bytes, 0);
	return 0;
}

/* Those of this user, as they said when they mounted: what a mount has open, only root may see. */
static void each_mount_of(const char *dir, void (*fn)(void *ctx, const struct cli_mount *mount),
			  void *ctx)
{
	char *real = realpath(dir, NULL);
	struct cli_mounts mounts = {0};

	if (real && cli_mounts_read(&mounts) == 0)
		for (size_t i = 0; i < mounts.mounts_n; i++) {
			const struct cli_mount *mount = &mounts.mounts[i];

			if (mount->pid && mount->cache_dir && strcmp(mount->cache_dir, real) == 0)
				fn(ctx, mount);
		}
	cli_mounts_release(&mounts);
	free(real);
}

static void add_mount_json(void *ctx, const struct cli_mount *mount)
{
	json_array_append_new(ctx,
			      json_pack("{s:o, s:o, s:i}", "source", cli_text_json(mount->source),
					"mountpoint", cli_text_json(mount->mountpoint), "pid",
					(int)mount->pid));
}

static void print_mount(void *ctx, const struct cli_mount *mount)
{
	char safe[PATH_MAX];

	(void)ctx;
	printf("used by %s on ",
	       cli_safe(mount->source, strlen(mount->source), safe, sizeof(safe)));
	printf("%s\n", cli_safe(mount->mountpoint, strlen(mount->mountpoint), safe, sizeof(safe)));
}

static void print_status_json(const char *dir, const struct status *status,
			      const struct ds_cache_stats *stats, const struct statvfs *vfs)
{
	json_t *kinds = json_array(), *mounts = json_array();

	each_mount_of(dir, add_mount_json, mounts);
	for (size_t i = 0; i < KINDS_N; i++) {
		const struct kind_row *row = &status->rows[i];

		if (row->images_n)
			json_array_append_new(
				kinds,
				json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "kind",
					  kind_names[i], "images", (json_int_t)row->images_n,
					  "in_use", (json_int_t)row->in_use_n, "chunks",
					  (json_int_t)row->chunks_n, "present_bytes",
					  (json_int_t)row->present_bytes, "trusted_bytes",
					  (json_int_t)row->trusted_bytes, "handed_out_bytes",
					  (json_int_t)row->handed_out_bytes, "allocated_bytes",
					  (json_int_t)row->allocated_bytes));
	}
	cli_print_json(json_pack("{s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o}", "directory",
				 cli_text_json(dir), "used_bytes",
				 (json_int_t)status->allocated_bytes, "default_capacity_bytes",
				 (json_int_t)stats->capacity_bytes, "file_system_bytes",
				 (json_int_t)(vfs->f_blocks * vfs->f_frsize), "free_bytes",
				 (json_int_t)(vfs->f_bavail * vfs->f_frsize), "images",
				 (json_int_t)status->images_n, "damaged_images",
				 (json_int_t)status->damaged_n, "kinds", kinds, "mounts", mounts));
}

static void print_status(const char *dir, const struct status *status,
			 const struct ds_cache_stats *stats, const struct statvfs *vfs)
{
	char safe[PATH_MAX], a[32], b[32], c[32];

	printf("%s: %s used, %s free on a file system of %s\n",
	       cli_safe(dir, strlen(dir), safe, sizeof(safe)),
	       ds_format_size(status->allocated_bytes, a, sizeof(a)),
	       ds_format_size(vfs->f_bavail * vfs->f_frsize, b, sizeof(b)),
	       ds_format_size(vfs->f_blocks * vfs->f_frsize, c, sizeof(c)));
	printf("without cache_size=, a mount lets it grow to %s\n",
	       ds_format_size(stats->capacity_bytes, a, sizeof(a)));
	for (size_t i = 0; i < KINDS_N; i++) {
		const struct kind_row *row = &status->rows[i];

		if (!row->images_n)
			continue;
		printf("%-11s  %" PRIu64 " %s, %" PRIu64 " in use; %" PRIu64
		       " %s, %s (%s checked in this boot)",
		       kind_names[i], CLI_COUNT(row->images_n, "image"), row->in_use_n,
		       CLI_COUNT(row->chunks_n, "chunk"),
		       ds_format_size(row->present_bytes, a, sizeof(a)),
		       ds_format_size(row->trusted_bytes, b, sizeof(b)));
		if (row->handed_out_bytes)
			printf("; %s handed out",
			       ds_format_size(row->handed_out_bytes, a, sizeof(a)));
		putchar('\n');
	}
	if (status->damaged_n)
		printf("damaged: %" PRIu64 " %s ('dsfs cache verify' drops %s)\n",
		       CLI_COUNT(status->damaged_n, "image"),
		       status->damaged_n == 1 ? "it" : "them");
	each_mount_of(dir, print_mount, NULL);
}

static int run_status(struct cli_call *call, struct ds_cache *cache, const char *dir)
{
	struct status status = {0};
	struct ds_cache_stats stats;
	struct statvfs vfs;
	int r;

	cli_progress_start(&status.progress, call);
	status.progress.what = "images";
	r = ds_cache_survey(cache, &cli_interrupted, add_image, &status);
	cli_progress_end(&status.progress);
	if (r == 0 && statvfs(dir, &vfs) < 0)
		r = -errno;
	if (r < 0)
		return cli_fail(call, r, dir);
	ds_cache_get_stats(cache, &stats);
	if (call->json)
		print_status_json(dir, &status, &stats, &vfs);
	else
		print_status(dir, &status, &stats, &vfs);
	return cli_finish_output(call);
}

/* ---- prune */

static int prune_options_of(struct cli_call *call, struct ds_prune_options *ret_options)
{
	const char *older = cli_text(call, "older-than");
	struct ds_time now = ds_real_now();
	uint64_t age_ms, now_ms;
	int r;

	*ret_options =
		(struct ds_prune_options){.wait_ms = STANDS_MS, .interrupted = &cli_interrupted};
	if (cli_has(call, "all") + cli_has(call, "to") + cli_has(call, "older-than") != 1)
		return ds_diag_set(&call->diag, -DS_E_USAGE, NULL,
				   "cache prune takes one of --all, --to SIZE, --older-than TIME");
	r = cli_size(call, "to", 0, &ret_options->to_bytes);
	if (r < 0 || !older)
		return r;
	if (ds_parse_duration_ms(older, &age_ms) < 0)
		return ds_diag_set(&call->diag, -DS_E_USAGE, older,
				   "--older-than takes a time such as 90m or 7d");
	now_ms = (uint64_t)now.s * 1000 + now.ns / 1000000;
	ret_options->before_ms = now_ms > age_ms ? now_ms - age_ms + 1 : 1;
	return 0;
}

static int run_prune(struct cli_call *call, struct ds_cache *cache, const char *dir)
{
	struct ds_prune_result result = {0};
	struct ds_prune_options options;
	char freed[32], used[32];
	int r;

	r = prune_options_of(call, &options);
	if (r < 0)
		return cli_fail(call, r, NULL);
	r = ds_cache_prune(cache, &options, &result);
	if (r < 0)
		return cli_fail(call, r, dir);
	if (call->json)
		cli_print_json(json_pack("{s:o, s:I, s:I, s:I}", "directory", cli_text_json(dir),
					 "freed_bytes", (json_int_t)result.freed_bytes,
					 "used_bytes", (json_int_t)result.used_bytes,
					 "in_use_images", (json_int_t)result.in_use_n));
	else if (!cli_has(call, "quiet"))
		printf("freed %s, %s still used\n",
		       ds_format_size(result.freed_bytes, freed, sizeof(freed)),
		       ds_format_size(result.used_bytes, used, sizeof(used)));
	if (!call->json && !cli_has(call, "quiet") && result.in_use_n)
		printf("%" PRIu64 " %s read or mapped\n", result.in_use_n,
		       result.in_use_n == 1 ? "image stays, since it is"
					    : "images stay, since they are");
	return cli_finish_output(call);
}

/* ---- verify */

struct check_ui {
	struct cli_progress progress;
	struct status before;
	json_t *findings;
};

static void show_finding(void *ctx, const char *file, bool is_chunk, uint64_t off,
			 uint64_t len_bytes)
{
	struct check_ui *ui = ctx;

	if (ui->findings && is_chunk)
		json_array_append_new(ui->findings,
				      json_pack("{s:s, s:I, s:I}", "file", file, "offset",
						(json_int_t)off, "bytes", (json_int_t)len_bytes));
	else if (ui->findings)
		json_array_append_new(ui->findings, json_pack("{s:s}", "file", file));
	else if (is_chunk)
		printf("%s: %" PRIu64 " %s at %" PRIu64 " %s not what %s must be; dropped\n", file,
		       CLI_COUNT(len_bytes, "byte"), off, len_bytes == 1 ? "is" : "are",
		       len_bytes == 1 ? "it" : "they");
	else
		printf("%s: the image is damaged; dropped\n", file);
}

static void show_still_used(void *ctx, const char *file)
{
	(void)ctx;
	fprintf(stderr,
		"dsfs: %s: dropped, but a mount still uses it: unmount it to be rid of it\n", file);
}

static void show_progress(void *ctx, uint64_t images_n, uint64_t bytes)
{
	struct check_ui *ui = ctx;
	uint64_t total = 0;

	for (size_t i = 0; i < KINDS_N; i++)
		total += ui->before.rows[i].present_bytes;
	cli_progress_show(&ui->progress, "verifying", images_n, ui->before.images_n, bytes, total);
}

static int run_check(struct cli_call *call, struct ds_cache *cache, const char *dir)
{
	struct check_ui ui = {.findings = call->json ? json_array() : NULL};
	struct ds_check_options options = {.finding = show_finding,
					   .still_used = show_still_used,
					   .progress = show_progress,
					   .ctx = &ui,
					   .interrupted = &cli_interrupted,
					   .wait_ms = LET_GO_MS};
	struct ds_check_result result = {0};
	char size[32];
	int r = 0;

	cli_progress_start(&ui.progress, call);
	ui.progress.what = "images";
	/* What there is to do; only a terminal wants to know. */
	if (ui.progress.enabled)
		r = ds_cache_survey(cache, &cli_interrupted, add_image, &ui.before);
	if (r == 0)
		r = ds_cache_check(cache, &options, &result);
	cli_progress_end(&ui.progress);
	if (r < 0) {
		json_decref(ui.findings);
		return cli_fail(call, r, dir);
	}
	if (ui.findings)
		cli_print_json(json_pack("{s:o, s:b, s:I, s:I, s:I, s:I, s:o}", "directory",
					 cli_text_json(dir), "clean", result.findings_n == 0,
					 "images", (json_int_t)result.images_n, "chunks",
					 (json_int_t)result.chunks_n, "bytes",
					 (json_int_t)result.bytes, "still_used_images",
					 (json_int_t)result.still_used_n, "findings", ui.findings));
	else if (!(cli_has(call, "quiet") && result.findings_n == 0))
		printf("%s: %" PRIu64 " %s, %" PRIu64 " %s, %s read, %" PRIu64 " %s\n",
		       result.findings_n ? "damaged" : "clean", CLI_COUNT(result.images_n, "image"),
		       CLI_COUNT(result.chunks_n, "chunk"),
		       ds_format_size(result.bytes, size, sizeof(size)),
		       CLI_COUNT(result.findings_n, "finding"));
	r = cli_finish_output(call);
	return r == 0 && result.findings_n ? CLI_EXIT_DAMAGED : r;
}

/* ---- */

static int run_cache(struct cli_call *call)
{
	static const struct {
		const char *name;
		int (*run)(struct cli_call *call, struct ds_cache *cache, const char *dir);
	} actions[] = {{"status", run_status}, {"prune", run_prune}, {"verify", run_check}};
	static const char *const of_prune[] = {"all", "to", "older-than"};
	_ds_cleanup_free_ char *dir = NULL;
	struct ds_cache *cache = NULL;
	struct ds_prune_options unused;
	size_t which = 0;
	int r = 0;

	while (which < DS_ARRAY_SIZE(actions) && strcmp(call->args[0], actions[which].name) != 0)
		which++;
	if (which == DS_ARRAY_SIZE(actions))
		return cli_fail(call,
				ds_diag_set(&call->diag, -DS_E_USAGE, call->args[0],
					    "dsfs cache takes status, prune or verify"),
				NULL);
	for (size_t i = 0; i < DS_ARRAY_SIZE(of_prune) && r == 0; i++)
		if (actions[which].run != run_prune && cli_has(call, of_prune[i]))
			r = ds_diag_set(&call->diag, -DS_E_USAGE, NULL, "--%s is of cache prune",
					of_prune[i]);
	if (r == 0 && actions[which].run == run_prune)
		r = prune_options_of(call, &unused);
	if (r == 0)
		r = open_cache(call, &dir, &cache);
	if (r < 0)
		return cli_fail(call, r, NULL);
	cli_catch_signals();
	r = actions[which].run(call, cache, dir);
	ds_cache_unref(cache);
	return r;
}

static const struct cli_option cache_options[] = {
	{0, "cache-dir", "DIR",
	 "the cache directory; otherwise that of mounts without cache_dir=: $DSFS_CACHE_DIR, "
	 "/var/cache/dsfs for root, else $XDG_CACHE_HOME/dsfs or ~/.cache/dsfs",
	 false},
	{0, "all", NULL, "prune: all that is neither read nor mapped", false},
	{0, "to", "SIZE", "prune: the least recently used, until no more than this is used", false},
	{0, "older-than", "TIME", "prune: what was not used for this long, such as 90m or 7d",
	 false},
	{0},
};

const struct cli_command cli_command_cache = {
	.name = "cache",
	.arguments = "status|prune|verify",
	.actions = "status prune verify",
	.summary = "look at the local cache, make room in it, or check it",
	.details =
		"The cache directory is shared by all mounts and commands of a user; each of these "
		"may run beside them.\n"
		"status: what it uses and holds, by kind, and the mounts of this user that use it. "
		"A "
		"quota is of each mount (cache_size=); all of them count the same bytes.\n"
		"prune: evicts by the rules of the mounts, which read what is missing from the "
		"store "
		"again. What a mount is reading stays; a file that the kernel reads by itself "
		"keeps "
		"its space until it is closed, and no longer mapped.\n"
		"verify: reads every chunk and compares it with its digest. What is wrong is "
		"dropped, "
		"named, and fetched anew when it is wanted; the exit status is 6 then. Programs "
		"that "
		"have a file open which the kernel reads by itself see what they saw until they "
		"close "
		"it. And what the kernel's page cache has of a mount, read before that, it may go "
		"on "
		"giving, in "
		"each kernel= mode, also to who opens a file anew: unmount and mount again after "
		"findings, or, as root, 'echo 3 > /proc/sys/vm/drop_caches'.",
	.examples = "  dsfs cache status\n"
		    "  dsfs cache prune --to 100G --cache-dir /nvme/dsfs\n"
		    "  dsfs cache verify --json\n",
	.options = cache_options,
	.takes_json = true,
	.args_min = 1,
	.args_max = 1,
	.run = run_cache,
};
