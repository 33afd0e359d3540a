#include "cli/session.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "repo/refs.h"
#include "util/log.h"
#include "util/mem.h"

int cli_open_repo(struct cli_call *call, const char *text, struct ds_locator *ret_locator,
		  struct ds_repo **ret_repo)
{
	struct ds_store_options options;
	int r;

	call->subject = text;
	r = cli_store_of(call, &options);
	if (r == 0)
		r = ds_locator_parse(text, ret_locator, &call->diag);
	if (r < 0)
		return r;
	return ds_repo_open(ret_locator->url, &options, ret_repo, &call->diag);
}

int cli_open_library(struct cli_call *call, const char *text, struct ds_locator *ret_locator,
		     struct dsfs_repository **ret_repository)
{
	_ds_cleanup_free_ char *cache_dir = cli_default_cache_dir();
	struct ds_store_options store;
	struct dsfs_options options;
	int r;

	call->subject = text;
	r = cli_store_of(call, &store);
	if (r == 0)
		r = ds_locator_parse(text, ret_locator, &call->diag);
	if (r < 0)
		return r;
	options = (struct dsfs_options){
		.endpoint = store.endpoint,
		.region = store.region,
		.profile = store.profile,
		.addressing = cli_text(call, "addressing"),
		.insecure_http = store.insecure_http,
		.timeout_ms = store.timeout_ms,
		.cache_dir = cache_dir,
		.waits = store.waits,
		.waits_ctx = store.waits_ctx,
	};
	r = dsfs_repository_open(ret_locator->url, &options, ret_repository, &call->error);
	if (r < 0 && cache_dir &&
	    (r == -EACCES || r == -EROFS || r == -EPERM || r == -ENOENT || r == -EEXIST)) {
		/* The cache is a help, not a need: e.g. a home that is read-only. A mount tells what is wrong. */
		options.cache_dir = NULL;
		call->error = (struct dsfs_error){0};
		r = dsfs_repository_open(ret_locator->url, &options, ret_repository, &call->error);
	}
	return r;
}

int cli_reading_open(struct cli_reading *reading, const char *selector, uint64_t inflight_bytes,
		     bool is_blocking, uint64_t timeout_ms, struct ds_diag *reterr_diag)
{
	struct ds_fetcher_options options = {.inflight_bytes_max = inflight_bytes};
	struct ds_resolved resolved;
	int r = ds_resolve(reading->repo, selector, &resolved, reterr_diag);

	if (r == 0)
		r = ds_record_get(reading->repo, &resolved.version, &reading->record, reterr_diag);
	if (r == 0)
		r = ds_fetcher_new(ds_repo_store(reading->repo), reading->cache, &options,
				   &reading->fetcher);
	if (r == 0)
		r = ds_view_open(reading->repo, reading->cache, reading->fetcher, reading->record,
				 is_blocking, timeout_ms, &reading->view, reterr_diag);
	return r;
}

void cli_reading_close(struct cli_reading *reading)
{
	ds_view_close(reading->view);
	ds_fetcher_free(reading->fetcher);
	ds_cache_unref(reading->cache);
	ds_record_free(reading->record);
	ds_repo_unref(reading->repo);
}

void cli_tell_locked(const struct cli_call *call, const char *typed)
{
	if (!cli_has(call, "quiet"))
		fprintf(stderr,
			"dsfs: %s: another process has locked the repository; waiting for it\n",
			typed);
}

char *cli_clean_path(const char *path)
{
	char *clean = ds_malloc(strlen(path) + 1), *out = clean;

	if (!clean)
		return NULL;
	while (*path) {
		size_t len = strcspn(path, "/");

		if (len > 0 && !(len == 1 && path[0] == '.')) {
			if (out > clean)
				*out++ = '/';
			memcpy(out, path, len);
			out += len;
		}
		path += len + (path[len] == '/');
	}
	*out = '\0';
	return clean;
}

void cli_paths_free(char **paths)
{
	for (size_t i = 0; paths && paths[i]; i++)
		ds_free(paths[i]);
	ds_free(paths);
}

void cli_raise_files_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur == limit.rlim_max)
		return;
	limit.rlim_cur = limit.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
		ds_log_debug("the limit of open files stays");
}
