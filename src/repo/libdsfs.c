/*
 * The public surface (dsfs/dsfs.h): thin functions over repo, refs, record and view. No state of its own.
 */
#include "dsfs/dsfs.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "repo/record.h"
#include "repo/refs.h"
#include "repo/repo.h"
#include "repo/view.h"
#include "util/mem.h"

struct dsfs_repository {
	struct ds_repo *repo;
	struct ds_cache *cache;
	struct ds_fetcher *fetcher;
	uint64_t timeout_ms;
};

struct dsfs_version {
	struct ds_view *view;
	struct ds_record *record;
	char branch[DS_REF_NAME_MAX + 1];
	char *text;
	struct dsfs_info info;
};

static int fail(struct dsfs_error *reterr, int code, struct ds_diag *diag)
{
	if (code >= 0 || !reterr)
		return code;
	diag->code = code;
	reterr->code = code;
	snprintf(reterr->name, sizeof(reterr->name), "%s", ds_error_name(code));
	ds_diag_format(diag, reterr->text, sizeof(reterr->text));
	return code;
}

int dsfs_repository_open(const char *url, const struct dsfs_options *options,
			 struct dsfs_repository **ret_repository, struct dsfs_error *reterr)
{
	struct dsfs_options none = {0};
	const struct dsfs_options *o = options ? options : &none;
	struct ds_store_options store_options = {
		.endpoint = o->endpoint,
		.region = o->region,
		.profile = o->profile,
		.insecure_http = o->insecure_http,
		.timeout_ms = o->timeout_ms,
		.waits = o->waits,
		.waits_ctx = o->waits_ctx,
	};
	struct ds_cache_options cache_options = {
		.dir = o->cache_dir,
		.capacity_bytes = o->cache_bytes,
	};
	struct dsfs_repository *repository = ds_calloc(1, sizeof(*repository));
	struct ds_diag diag = {0};
	int r = -ENOMEM;

	if (o->addressing &&
	    ds_store_addressing_parse(o->addressing, &store_options.addressing) < 0) {
		r = ds_diag_set(&diag, -DS_E_USAGE, o->addressing, "addressing is path or virtual");
		ds_free(repository);
		return fail(reterr, r, &diag);
	}
	if (!repository)
		return fail(reterr, r, &diag);
	repository->timeout_ms = o->timeout_ms ? o->timeout_ms : 60000;
	r = ds_repo_open(url, &store_options, &repository->repo, &diag);
	if (r == 0)
		r = o->cache_dir ? ds_cache_open(&cache_options, &repository->cache, &diag)
				 : ds_cache_open_none(&repository->cache);
	if (r == 0)
		r = ds_fetcher_new(ds_repo_store(repository->repo), repository->cache, NULL,
				   &repository->fetcher);
	if (r < 0) {
		dsfs_repository_close(repository);
		return fail(reterr, r, &diag);
	}
	*ret_repository = repository;
	return 0;
}

void dsfs_repository_close(struct dsfs_repository *repository)
{
	if (!repository)
		return;
	ds_fetcher_free(repository->fetcher);
	ds_cache_unref(repository->cache);
	ds_repo_unref(repository->repo);
	ds_free(repository);
}

static void fill_info(struct dsfs_info *info, const struct ds_record *record,
		      const struct ds_ref_entry *entry, const char *text)
{
	bool on_branch = entry && entry->number && entry->kind == DS_REF_BRANCH;

	*info = (struct dsfs_info){
		.number = on_branch ? entry->number : 0,
		.branch = on_branch ? entry->name : "",
		.time = {.tv_sec = record->time.s, .tv_nsec = record->time.ns},
		.entry_time = {.tv_sec = on_branch ? entry->time.s : 0,
			       .tv_nsec = on_branch ? entry->time.ns : 0},
		.author = record->author,
		.message = record->message,
		.files_n = record->totals.files_n,
		.directories_n = record->totals.directories_n,
		.symlinks_n = record->totals.symlinks_n,
		.bytes = record->totals.bytes,
		.rejected_n = record->totals.rejected_n,
		.record = text,
	};
	ds_digest_format(&record->id, info->id);
	if (record->has_fingerprint)
		ds_digest_format(&record->fingerprint, info->fingerprint);
}

static int show_version(struct dsfs_repository *repository, const struct ds_ref_entry *entry,
			int (*each)(void *ctx, const struct dsfs_info *info), void *ctx,
			struct ds_diag *diag)
{
	struct ds_record *record = NULL;
	struct dsfs_info info;
	char *text;
	int r;

	r = ds_record_get(repository->repo, &entry->version, &record, diag);
	if (r < 0)
		return r;
	text = json_dumps(record->json, JSON_COMPACT);
	if (text) {
		fill_info(&info, record, entry, text);
		r = each(ctx, &info);
		free(text);
	} else {
		r = -ENOMEM;
	}
	ds_record_free(record);
	return r;
}

int dsfs_history(struct dsfs_repository *repository, const char *branch, const char *selector,
		 uint64_t max_n, int (*each)(void *ctx, const struct dsfs_info *info), void *ctx,
		 struct dsfs_error *reterr)
{
	struct ds_diag diag = {0};
	struct ds_resolved resolved;
	struct ds_ref_entry entry;
	uint64_t shown_n = 0;
	int r;

	if (branch && !selector) {
		r = ds_ref_head(repository->repo, DS_REF_BRANCH, branch, &entry, &diag);
	} else {
		r = ds_resolve(repository->repo, selector, &resolved, &diag);
		if (r == 0)
			entry = resolved.entry;
	}
	if (r < 0)
		return fail(reterr, r, &diag);
	/* A tag or an id stands in no log: only the version itself is shown. */
	if (entry.number == 0 || entry.kind != DS_REF_BRANCH) {
		entry.version = resolved.version;
		return fail(reterr, show_version(repository, &entry, each, ctx, &diag), &diag);
	}
	for (;;) {
		if (!entry.is_deleted) {
			r = show_version(repository, &entry, each, ctx, &diag);
			if (r != 0)
				return fail(reterr, r, &diag);
			shown_n++;
		}
		if (entry.number == 1 || shown_n == max_n)
			return 0;
		r = ds_ref_get(repository->repo, DS_REF_BRANCH, entry.name, entry.number - 1,
			       &entry, &diag);
		if (r < 0)
			return fail(reterr, r, &diag);
	}
}

int dsfs_version_open(struct dsfs_repository *repository, const char *selector,
		      struct dsfs_version **ret_version, struct dsfs_error *reterr)
{
	struct dsfs_version *version = ds_calloc(1, sizeof(*version));
	struct ds_diag diag = {0};
	struct ds_resolved resolved;
	int r = version ? 0 : -ENOMEM;

	if (r == 0)
		r = ds_resolve(repository->repo, selector, &resolved, &diag);
	if (r == 0)
		r = ds_record_get(repository->repo, &resolved.version, &version->record, &diag);
	if (r == 0) {
		version->text = json_dumps(version->record->json, JSON_COMPACT);
		r = version->text ? 0 : -ENOMEM;
	}
	if (r == 0)
		r = ds_view_open(repository->repo, repository->cache, repository->fetcher,
				 version->record, true, repository->timeout_ms, &version->view,
				 &diag);
	if (r < 0) {
		dsfs_version_close(version);
		return fail(reterr, r, &diag);
	}
	fill_info(&version->info, version->record, &resolved.entry, version->text);
	if (version->info.number) {
		snprintf(version->branch, sizeof(version->branch), "%s", resolved.entry.name);
		version->info.branch = version->branch;
	}
	*ret_version = version;
	return 0;
}

void dsfs_version_close(struct dsfs_version *version)
{
	if (!version)
		return;
	ds_view_close(version->view);
	ds_record_free(version->record);
	free(version->text);
	ds_free(version);
}

const struct dsfs_info *dsfs_version_info(const struct dsfs_version *version)
{
	return &version->info;
}

static void fill_stat(struct dsfs_stat *stat, const struct ds_entry *entry)
{
	static const enum dsfs_type types[] = {
		[DS_ENTRY_FILE] = DSFS_FILE,
		[DS_ENTRY_DIRECTORY] = DSFS_DIRECTORY,
		[DS_ENTRY_SYMLINK] = DSFS_SYMLINK,
	};

	*stat = (struct dsfs_stat){
		.inode = entry->ino,
		.type = types[entry->type],
		.executable = entry->is_executable,
		.size_bytes = entry->size_bytes,
		.nlink = entry->nlink,
		.mtime = {.tv_sec = entry->mtime.s, .tv_nsec = entry->mtime.ns},
		.cookie = entry->id,
		.name_len = entry->name_len,
	};
	memcpy(stat->digest, entry->digest.bytes, sizeof(stat->digest));
	memcpy(stat->name, entry->name, entry->name_len);
}

/* A demand only takes the reason of an error here: the view blocks. */
static int fail_demand(struct dsfs_error *reterr, int code, struct ds_demand *demand,
		       const char *path)
{
	if (code < 0 && path && !demand->diag.object[0])
		ds_diag_set(&demand->diag, code, path, NULL);
	code = fail(reterr, code, &demand->diag);
	ds_demand_release(demand);
	return code;
}

int dsfs_stat(struct dsfs_version *version, const char *path, struct dsfs_stat *ret_stat,
	      struct dsfs_error *reterr)
{
	struct ds_demand demand;
	struct ds_entry entry;
	int r;

	ds_demand_init(&demand, version->view);
	r = ds_view_walk(version->view, &demand, path, &entry);
	if (r == 0)
		fill_stat(ret_stat, &entry);
	return fail_demand(reterr, r, &demand, path);
}

struct list_call {
	int (*each)(void *ctx, const struct dsfs_stat *entry);
	void *ctx;
	int result;
};

static int list_one(void *ctx, const struct ds_entry *entry)
{
	struct list_call *call = ctx;
	struct dsfs_stat stat;

	fill_stat(&stat, entry);
	call->result = call->each(call->ctx, &stat);
	return call->result != 0;
}

int dsfs_list(struct dsfs_version *version, uint64_t directory_inode, uint64_t after,
	      int (*each)(void *ctx, const struct dsfs_stat *entry), void *ctx,
	      struct dsfs_error *reterr)
{
	struct list_call call = {.each = each, .ctx = ctx};
	struct ds_demand demand;
	int r;

	ds_demand_init(&demand, version->view);
	r = ds_view_list(version->view, &demand, directory_inode, after, list_one, &call);
	r = fail_demand(reterr, r, &demand, NULL);
	return r < 0 ? r : call.result;
}

/* An error that names nothing is the file's. */
static int fail_file(struct dsfs_error *reterr, int code, struct ds_demand *demand,
		     struct dsfs_version *version, uint64_t inode)
{
	struct ds_entry entry;
	bool has_name = code < 0 && ds_view_get(version->view, NULL, inode, &entry) == 0;

	return fail_demand(reterr, code, demand, has_name ? entry.name : NULL);
}

int dsfs_read(struct dsfs_version *version, uint64_t inode, uint64_t offset, void *data,
	      size_t len_bytes, size_t *ret_n, struct dsfs_error *reterr)
{
	struct ds_demand demand;
	int r;

	ds_demand_init(&demand, version->view);
	r = ds_view_read(version->view, &demand, inode, offset, len_bytes, data, ret_n);
	return fail_file(reterr, r, &demand, version, inode);
}

void dsfs_prefetch(struct dsfs_version *version, const uint64_t *inodes, size_t inodes_n)
{
	ds_view_prefetch(version->view, inodes, inodes_n);
}

int dsfs_seek(struct dsfs_version *version, uint64_t inode, uint64_t offset, bool hole,
	      uint64_t *ret_offset, struct dsfs_error *reterr)
{
	struct ds_demand demand;
	int r;

	ds_demand_init(&demand, version->view);
	r = ds_view_seek(version->view, &demand, inode, offset, hole, ret_offset);
	return fail_file(reterr, r, &demand, version, inode);
}

int dsfs_readlink(struct dsfs_version *version, uint64_t inode, char *target, size_t size,
		  struct dsfs_error *reterr)
{
	_ds_cleanup_buf_ struct ds_buf buf = DS_BUF_INIT(DS_TARGET_MAX);
	struct ds_demand demand;
	int r;

	ds_demand_init(&demand, version->view);
	r = ds_view_readlink(version->view, &demand, inode, &buf);
	if (r == 0 && buf.len_bytes >= size)
		r = -ERANGE;
	if (r == 0)
		memcpy(target, ds_buf_str(&buf), buf.len_bytes + 1);
	return fail_demand(reterr, r, &demand, NULL);
}
