#include "cli/mount_warm.h"

#include <inttypes.h>
#include <string.h>

#include "cli/mount_options.h"
#include "cli/session.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/mem.h"
#include "util/str.h"
#include "util/work.h"

struct cli_mount_warm {
	struct ds_warm *warm;
	struct ds_work *work; /* one thread, with all signals blocked */
	struct ds_work_item item;
	char **paths;
};

static void on_begin(void *ctx, const struct ds_warm_progress *progress)
{
	char size[32];

	(void)ctx;
	ds_log_info("warming %" PRIu64 " %s, %s", CLI_COUNT(progress->files_total_n, "file"),
		    ds_format_size(progress->bytes_total, size, sizeof(size)));
}

static void on_failed(void *ctx, const char *path, const struct ds_diag *diag)
{
	char name[1024], line[1200];

	(void)ctx;
	ds_log_error("warming: %s: %s", ds_quote(path, strlen(path), name, sizeof(name)),
		     ds_diag_format(diag, line, sizeof(line)));
}

static void run(struct ds_work_item *item)
{
	struct cli_mount_warm *warm = ds_container_of(item, struct cli_mount_warm, item);
	uint64_t start_ns = ds_mono_ns();
	struct ds_warm_progress progress;
	struct ds_diag diag = {0};
	char line[1200], size[32];
	int r = ds_warm_run(warm->warm, &diag);

	ds_warm_get_progress(warm->warm, &progress);
	ds_format_size(progress.fetched_bytes, size, sizeof(size));
	if (r == -DS_E_INTERRUPTED) {
		ds_log_info("warming was stopped after %" PRIu64 " of %" PRIu64 " files",
			    progress.files_n, progress.files_total_n);
	} else if (r < 0) {
		diag.code = r;
		ds_log_error("warming ended: %s", ds_diag_format(&diag, line, sizeof(line)));
	} else {
		ds_log_info("warmed %" PRIu64 " %s, %s fetched, in %" PRIu64 " s",
			    CLI_COUNT(progress.files_n, "file"), size,
			    (ds_mono_ns() - start_ns) / DS_NS_PER_S);
	}
}

int cli_mount_warm_new(struct ds_view *view, const char *text, uint64_t timeout_ms,
		       struct cli_mount_warm **ret_warm)
{
	struct cli_mount_warm *warm = ds_calloc(1, sizeof(*warm));
	struct ds_warm_options options = {.timeout_ms = timeout_ms,
					  .begins = on_begin,
					  .failed = on_failed};
	int r;

	if (!warm)
		return -ENOMEM;
	warm->item.run = run;
	ds_list_init(&warm->item.node);
	r = cli_mount_warm_paths(text, &warm->paths, &options.paths_n);
	options.paths = (const char *const *)warm->paths;
	if (r == 0)
		r = ds_warm_new(view, &options, &warm->warm);
	if (r < 0) {
		cli_mount_warm_free(warm);
		return r;
	}
	*ret_warm = warm;
	return 0;
}

struct ds_warm *cli_mount_warm_of(struct cli_mount_warm *warm)
{
	return warm ? warm->warm : NULL;
}

void cli_mount_warm_start(struct cli_mount_warm *warm)
{
	int r = ds_work_new(1, "dsfs-warm", &warm->work);

	if (r == 0)
		ds_work_submit(warm->work, &warm->item, false);
	else
		ds_log_error("warming cannot start: %s", ds_strerror(r));
}

struct cli_mount_warm *cli_mount_warm_free(struct cli_mount_warm *warm)
{
	if (!warm)
		return NULL;
	if (warm->warm)
		ds_warm_stop(warm->warm);
	ds_work_free(warm->work);
	ds_warm_free(warm->warm);
	cli_paths_free(warm->paths);
	ds_free(warm);
	return NULL;
}
