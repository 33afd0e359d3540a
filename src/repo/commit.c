/*
 * Commit: the order of things. Each attempt is one parent; the tree, and what of it is in the store, outlives attempts.
 *
 *     scan -> unchanged? (by the stat cache) -> [load parent, match] -> read and upload -> hash -> unchanged?
 *          -> change the manifest -> upload it -> record -> look that all is there -> ref entry
 *                                                  lost the race: the winner is the parent, from [ on
 *          -> tag, advisory index
 *
 * The stat cache is saved beside what follows the reading.
 *
 * A start after which half a grace has passed before the ref entry publishes nothing; the next start begins with nothing of it
 * but what lies in the store.
 */
#include "repo/commit.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "repo/commit_apply.h"
#include "repo/commit_manifest.h"
#include "repo/commit_read.h"
#include "repo/commit_stat.h"
#include "repo/commit_state.h"
#include "repo/keep.h"
#include "repo/refs.h"
#include "repo/repo_internal.h"
#include "util/error.h"
#include "util/file.h"
#include "util/mem.h"
#include "util/random.h"

/* 8 KiB: see tests/bench and the release tests on the second version of 100,000 files. */
#define MANIFEST_PAGE_SIZE 8192u
#define RACES_MAX	   1000u
#define AGAIN		   1  /* of an attempt: another one with the same parent */
#define STARTS_MAX	   4u /* each may take half a grace */
#define TABLES_PART	   8u /* of the budget, for tables of packs besides: 64 MiB */
#define PROGRESS_NS	   (200 * (uint64_t)DS_NS_PER_MS)

struct commit {
	struct ds_repo *repo;
	const struct ds_commit_options *options;
	const char *branch;
	struct ds_diag *diag;
	struct commit_watch watch;
	struct commit_state state;
	struct commit_tree tree;
	struct commit_packs *packs;
	struct commit_find *find;
	struct commit_stat *stat;
	struct commit_stat_saving *saving; /* of what is_read says; NULL: it has not begun */
	struct ds_keep *keep;		   /* for the publish limit: the policy alone */
	struct ds_time start;
	struct ds_uuid writer;
	struct ds_commit_progress progress; /* as it was shown last */
	uint64_t progress_ns;
	bool is_read;  /* every file's place is known, or its row */
	bool is_wary;  /* no row is known but those that are had */
	bool has_rows; /* those of result.version are the tree's */
	bool has_head;
	bool is_published;
	bool is_told; /* diag says already what an interrupt left */
	struct ds_ref_entry head;
	struct ds_commit_result result;
};

struct attempt {
	struct ds_record *parent;	 /* NULL: none */
	struct commit_manifest manifest; /* the parent's */
	char *path;			 /* of the local manifest */
	struct ds_builder *builder;
	struct commit_packs *packs; /* of the manifest */
};

static void show(struct commit *commit)
{
	const struct ds_commit_options *options = commit->options;

	if (!options->progress)
		return;
	if (commit->packs)
		commit->progress.uploaded_bytes = commit_packs_uploaded_bytes(commit->packs);
	commit->progress_ns = ds_mono_ns();
	options->progress(options->ctx, &commit->progress);
}

/* While something is waited for. */
static void tick(void *ctx)
{
	struct commit *commit = ctx;

	if (ds_mono_ns() - commit->progress_ns >= PROGRESS_NS)
		show(commit);
}

static void show_phase(struct commit *commit, const char *phase)
{
	commit->progress.phase = phase;
	commit->progress.files_n = commit->progress.files_total_n = commit->tree.files_n;
	commit->progress.bytes = commit->progress.bytes_total = commit->tree.bytes;
	show(commit);
}

static int read_head(struct commit *commit)
{
	int r = ds_ref_head(commit->repo, DS_REF_BRANCH, commit->branch, &commit->head,
			    commit->diag);

	commit->has_head = r == 0;
	if (r == -DS_E_NO_VERSION) {
		ds_diag_clear(commit->diag);
		r = 0;
	}
	return r;
}

/* The version whose manifest the new one starts from: the branch's head; of a new branch, options.parent or the head of the
 * default branch; of a closed one nothing. */
static int find_base(struct commit *commit, bool *ret_has, struct ds_digest *ret_base)
{
	struct ds_resolved resolved = {0};
	struct ds_ref_entry entry = {0};
	int r;

	*ret_has = false;
	if (commit->has_head) {
		*ret_has = !commit->head.is_deleted;
		*ret_base = commit->head.version;
		if (!commit->options->parent)
			return 0;
		r = ds_resolve(commit->repo, commit->options->parent, &resolved, commit->diag);
		if (r < 0)
			return r;
		if (!*ret_has || !ds_digest_equal(&resolved.version, ret_base))
			return ds_diag_set(commit->diag, -DS_E_CONFLICT, commit->branch,
					   "%s is not the newest version any more",
					   commit->options->parent);
		return 0;
	}
	if (commit->options->parent) {
		struct ds_keep *keep = NULL;
		struct ds_time now;

		r = ds_resolve(commit->repo, commit->options->parent, &resolved, commit->diag);
		if (r == 0)
			r = ds_keep_load(commit->repo, &keep, &now, commit->diag);
		if (r == 0 && !ds_keep_is_base(keep, &resolved.version))
			r = ds_diag_set(commit->diag, -DS_E_NO_VERSION, commit->options->parent,
					"nothing keeps this version any more");
		ds_keep_free(keep);
		*ret_has = r == 0;
		*ret_base = resolved.version;
		return r;
	}
	r = ds_ref_head(commit->repo, DS_REF_BRANCH, ds_repo_default_branch(commit->repo), &entry,
			commit->diag);
	if (r == -DS_E_NO_VERSION) {
		ds_diag_clear(commit->diag);
		return 0;
	}
	*ret_has = r == 0 && !entry.is_deleted;
	*ret_base = entry.version;
	return r;
}

/* An error of the parent's manifest that nobody has noted yet: by the version, with what the builder says of it. */
static int blame_parent(struct commit *commit, const struct attempt *attempt, int r)
{
	const struct ds_diag *said = attempt->builder ? ds_builder_error(attempt->builder) : NULL;
	char key[DS_RECORD_KEY_MAX];

	if (!commit->diag || commit->diag->code)
		return r;
	if (said && said->code == r)
		*commit->diag = *said;
	if (attempt->parent && (r == -DS_E_MALFORMED || r == -DS_E_CORRUPT || r == -DS_E_TOO_NEW))
		ds_diag_set(commit->diag, r, ds_record_key(&attempt->parent->id, key),
			    commit->diag->detail[0] ? NULL : "its manifest");
	return r;
}

static int load_parent(struct commit *commit, struct attempt *attempt, const struct ds_digest *base)
{
	_ds_cleanup_close_ int fd = -1;
	int r;

	r = ds_record_get(commit->repo, base, &attempt->parent, commit->diag);
	if (r == 0)
		r = commit_manifest_load_index(commit->repo, attempt->parent, &attempt->manifest,
					       commit->diag);
	if (r < 0)
		return blame_parent(commit, attempt, r);
	fd = open(attempt->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return ds_diag_set(commit->diag, -errno, attempt->path, NULL);
	r = commit_manifest_load_pages(commit->repo, &attempt->manifest, fd, &commit->watch,
				       commit->diag);
	if (r == 0)
		r = ds_builder_open(attempt->path, &attempt->builder);
	return r < 0 ? blame_parent(commit, attempt, r) : 0;
}

static int create_manifest(struct commit *commit, struct attempt *attempt)
{
	uint32_t page_size = commit->options->page_size;

	return ds_builder_create(attempt->path, page_size ? page_size : MANIFEST_PAGE_SIZE,
				 &attempt->builder);
}

static int begin_attempt(struct commit *commit, struct attempt *attempt)
{
	struct ds_digest base;
	bool has_base;
	int r = find_base(commit, &has_base, &base);

	if (r < 0)
		return r;
	attempt->path = ds_asprintf("%s/manifest-%u", commit->state.tmp, commit->result.races_n);
	if (!attempt->path)
		return -ENOMEM;
	r = has_base ? load_parent(commit, attempt, &base) : create_manifest(commit, attempt);
	if (r == 0)
		r = commit_packs_new(commit->repo, DS_PACK_MANIFEST, DS_MIB(128), &commit->watch,
				     &attempt->packs);
	return r;
}

static void end_attempt(struct attempt *attempt)
{
	ds_builder_free(attempt->builder);
	commit_packs_free(attempt->packs);
	commit_manifest_release(&attempt->manifest);
	ds_record_free(attempt->parent);
	if (attempt->path)
		unlink(attempt->path);
	ds_free(attempt->path);
	*attempt = (struct attempt){0};
}

static int find_old(void *ctx, const struct commit_node *file, const struct ds_digest *digest,
		    uint64_t len_bytes, struct commit_place *ret_place)
{
	struct commit_apply *apply = ctx;
	int r = commit_match_chunk(apply, file, digest, len_bytes, ret_place);

	if (r == 1 && apply->options->rehash)
		r = commit_find_check(apply->find, digest, (uint32_t)len_bytes, ret_place);
	return r;
}

static int read_files(struct commit *commit, struct commit_apply *apply)
{
	struct commit_read read = {
		.options = commit->options,
		.tree = &commit->tree,
		.find = commit->find,
		.packs = commit->packs,
		.find_old = find_old,
		.ctx = apply,
		/* Half for what is read and compressed, half for what is on its way to the store. */
		.memory_bytes = commit_memory_bytes(commit->options) / 2,
		.progress = &commit->progress,
	};
	int r;

	if (commit->is_read)
		return 0;
	r = commit_read_files(&read, commit->diag);
	commit_apply_release(apply);
	if (r < 0)
		return r;
	commit->progress.phase = "uploading";
	r = commit_packs_flush(commit->packs);
	if (r < 0)
		commit_packs_result(commit->packs, commit->diag);
	if (r == 0)
		r = commit_tree_hash(&commit->tree);
	if (r < 0)
		return r;
	commit->is_read = true;
	commit->result.fingerprint = commit->tree.root.digest;
	commit->result.read_bytes += read.counters.read_bytes;
	commit->result.reused_bytes += read.counters.reused_bytes + apply->reused_bytes;
	return 0;
}

static bool is_unchanged(const struct commit *commit, const struct attempt *attempt)
{
	const struct ds_record *parent = attempt->parent;

	if (!parent || !commit->has_head || commit->head.is_deleted ||
	    commit->options->allow_empty || commit_find_has_lost(commit->find))
		return false;
	return parent->has_fingerprint &&
	       ds_digest_equal(&parent->fingerprint, &commit->result.fingerprint) &&
	       (!commit->options->mtime || commit->tree.root.is_meta_same);
}

/* The stat cache, while other things are done. */
static void begin_saving(struct commit *commit)
{
	if (!commit->saving)
		commit->saving = commit_stat_save_begin(commit->state.dir, commit->options->source,
							commit->state.tmp, &commit->tree,
							commit->options->interrupted);
}

static void fill_totals(struct ds_builder *builder, struct ds_version_totals *ret_totals)
{
	*ret_totals = (struct ds_version_totals){
		.files_n = ds_builder_total(builder, "files"),
		.directories_n = ds_builder_total(builder, "directories"),
		.symlinks_n = ds_builder_total(builder, "symlinks"),
		.bytes = ds_builder_total(builder, "bytes"),
		.rejected_n = ds_builder_total(builder, "rejected"),
	};
}

/* Whether the manifest holds as much as the tree: -DS_E_MALFORMED if damage of the parent's stayed in it. */
static int check_totals(const struct commit *commit, struct ds_builder *builder)
{
	const struct commit_tree *tree = &commit->tree;
	struct ds_version_totals totals;
	uint64_t entries_n;
	int r = ds_builder_entries_n(builder, &entries_n);

	if (r < 0)
		return r;
	fill_totals(builder, &totals);
	if (totals.files_n == tree->files_n && totals.directories_n == tree->directories_n &&
	    totals.symlinks_n == tree->symlinks_n && totals.bytes == tree->bytes &&
	    entries_n == 1 + totals.files_n + totals.directories_n + totals.symlinks_n)
		return 0;
	return -DS_E_MALFORMED;
}

/* Makes the attempt's manifest that of the tree: from the parent's, or if that is damaged, or names what is lost, from an empty one. AGAIN:
 * only when all rows of the parent's were had. */
static int change_manifest(struct commit *commit, struct attempt *attempt,
			   struct commit_apply *apply)
{
	bool is_lost = attempt->parent && commit_find_has_lost(commit->find);
	int r = commit_tree_count(&commit->tree, commit->options->source, commit->diag);

	if (r == 0)
		r = is_lost ? -DS_E_MALFORMED : commit_apply(apply);
	if (r == 0)
		r = check_totals(commit, attempt->builder);
	if (r != -DS_E_MALFORMED || !attempt->parent)
		return r;
	if (commit->tree.has_as_before)
		return AGAIN;
	commit->result.parent_is_damaged = true;
	commit->result.parent = attempt->parent->id;
	attempt->builder = apply->builder = ds_builder_free(attempt->builder);
	unlink(attempt->path);
	r = create_manifest(commit, attempt);
	apply->builder = attempt->builder;
	/* What is matched anew must not be saved meanwhile. */
	commit->saving = commit_stat_save_drop(commit->saving);
	if (r == 0)
		r = commit_match(apply, false);
	begin_saving(commit);
	return r < 0 ? r : commit_apply(apply);
}

/* The record: put, and looked at like the packs. */
static int put_record(struct commit *commit, struct ds_record *record)
{
	_ds_cleanup_buf_ struct ds_buf body = DS_BUF_INIT(DS_RECORD_MAX);
	struct ds_store *store = ds_repo_store(commit->repo);
	char key[DS_RECORD_KEY_MAX];
	struct ds_store_req look = {.op = DS_STORE_HEAD, .key = key};
	int r = ds_record_encode(record, NULL, &body);

	if (r < 0)
		return r;
	ds_record_key(&record->id, key);
	r = ds_store_put_if_absent(store, key, body.data, body.len_bytes, commit->diag);
	if (r == -DS_E_PRESENT)
		r = 0; /* the name is the digest: it can only be this one */
	if (r == 0)
		r = commit_packs_look(commit->packs, commit->diag);
	if (r < 0)
		return r;
	r = ds_store_perform(store, &look);
	if (r == 0 && look.object_size_bytes == body.len_bytes)
		return 0;
	if (r == 0 || r == -DS_E_ABSENT)
		return ds_diag_set(commit->diag, -DS_E_CORRUPT, key,
				   "the store does not keep what it took");
	if (commit->diag)
		*commit->diag = look.diag;
	return r;
}

static int publish(struct commit *commit, const struct ds_record *record)
{
	struct ds_ref_entry wanted = {.kind = DS_REF_BRANCH,
				      .version = record->id,
				      .writer = commit->writer},
			    made;
	int r;

	if (commit_is_interrupted(&commit->watch))
		return -DS_E_INTERRUPTED;
	snprintf(wanted.name, sizeof(wanted.name), "%s", commit->branch);
	r = ds_ref_append(commit->repo, commit->has_head ? &commit->head : NULL, &wanted,
			  ds_keep_publish_limit(commit->keep, commit->start), &made, commit->diag);
	if (r == -DS_E_INTERRUPTED) {
		commit->is_told = true;
		ds_diag_set(commit->diag, r, commit->branch,
			    "it was being published; 'dsfs log' tells whether it was in time");
	}
	if (r < 0)
		return r;
	commit->result.number = made.number;
	commit->result.version = record->id;
	commit->is_published = true;
	return 0;
}

static int make_record(struct commit *commit, struct attempt *attempt, struct ds_record *record)
{
	const struct ds_commit_options *options = commit->options;
	int r;

	record->parents_n = attempt->parent ? 1 : 0;
	record->parents = attempt->parent ? &attempt->parent->id : NULL;
	record->author = (char *)(uintptr_t)(options->author ? options->author : "");
	record->message = (char *)(uintptr_t)(options->message ? options->message : "");
	record->has_fingerprint = true;
	record->fingerprint = commit->result.fingerprint;
	record->totals = commit->result.totals;
	r = ds_store_now(ds_repo_store(commit->repo), &record->time, commit->diag);
	/* Never before its parent's, whatever the store's clock says. */
	if (r == 0 && attempt->parent && ds_time_compare(record->time, attempt->parent->time) < 0)
		record->time = attempt->parent->time;
	return r;
}

/* Whether the parent's rows are what the stat cache tells. */
static bool has_known_rows(const struct commit *commit, const struct attempt *attempt)
{
	const struct ds_digest *version = commit_stat_version(commit->stat);

	return version && attempt->parent && !commit->is_wary && !commit->options->rehash &&
	       ds_digest_equal(version, &attempt->parent->id);
}

/* Everything but the race. -DS_E_CONFLICT: another writer was first. AGAIN: as change_manifest. */
static int run_attempt(struct commit *commit, struct attempt *attempt)
{
	struct commit_apply apply = {
		.options = commit->options,
		.tree = &commit->tree,
		.packs = commit->packs,
		.find = commit->find,
	};
	struct ds_record record = {0};
	int r;

	commit->result.parent_is_damaged = false;
	r = begin_attempt(commit, attempt);
	if (r < 0)
		return r;
	apply.builder = attempt->builder;
	apply.has_known_rows = has_known_rows(commit, attempt);
	r = commit_match(&apply, !commit->is_read);
	if (r == 0)
		r = read_files(commit, &apply);
	if (r < 0)
		return blame_parent(commit, attempt, r);
	commit_match_contents(&apply);
	if (is_unchanged(commit, attempt)) {
		commit->result.unchanged = true;
		commit->result.number = commit->head.number;
		commit->result.version = attempt->parent->id;
		commit->result.totals = attempt->parent->totals;
		commit->has_rows = commit->tree.root.is_meta_same;
		return 0;
	}
	show_phase(commit, "publishing");
	begin_saving(commit);
	r = change_manifest(commit, attempt, &apply);
	if (r == 0) {
		fill_totals(attempt->builder, &commit->result.totals);
		r = ds_builder_finish(attempt->builder);
	}
	if (r != 0)
		return r == AGAIN ? r : blame_parent(commit, attempt, r);
	r = make_record(commit, attempt, &record);
	if (r == 0)
		r = commit_manifest_store(attempt->packs, attempt->path,
					  attempt->parent ? &attempt->manifest : NULL, &record,
					  commit->diag);
	if (r < 0)
		return r;
	commit->result.added_n = apply.added_n;
	commit->result.changed_n = apply.changed_n;
	commit->result.removed_n = apply.removed_n;
	commit->result.uploaded_manifest_bytes += commit_packs_uploaded_bytes(attempt->packs);
	r = commit_packs_look(attempt->packs, commit->diag);
	if (r == 0)
		r = put_record(commit, &record);
	if (r == 0)
		r = publish(commit, &record);
	json_decref(record.json);
	return r;
}

/* For another attempt. The files of which only the row was known are matched anew, and read where they are not found. */
static void forget_attempt(struct commit *commit)
{
	commit->saving = commit_stat_save_drop(commit->saving);
	commit->is_wary = true;
	if (!commit->tree.has_as_before)
		return;
	commit_match_forget(&commit->tree);
	commit->is_read = false;
}

static int run_attempts(struct commit *commit)
{
	for (;;) {
		struct attempt attempt = {0};
		int r = run_attempt(commit, &attempt);

		end_attempt(&attempt);
		if (r == AGAIN || r == -DS_E_CONFLICT)
			forget_attempt(commit);
		if (r == AGAIN)
			continue;
		if (r != -DS_E_CONFLICT || commit->options->parent ||
		    ++commit->result.races_n == RACES_MAX)
			return r;
		ds_diag_clear(commit->diag);
		r = read_head(commit);
		if (r < 0)
			return r;
	}
}

static bool may_be_unchanged(const struct commit *commit)
{
	const struct ds_commit_options *options = commit->options;

	return commit->has_head && !commit->head.is_deleted && !options->parent &&
	       !options->allow_empty && !options->mtime && !options->rehash;
}

/* Whether the stat cache alone tells that nothing has changed: then the manifest of before need not be had. */
static int try_unchanged(struct commit *commit, bool *ret_is_unchanged)
{
	struct ds_record *parent = NULL;
	bool knows_all = commit->tree.unknown_n == 0;
	int r = 0;

	*ret_is_unchanged = false;
	/* What is wrong with the record the attempt will tell. */
	if (!knows_all || !may_be_unchanged(commit) ||
	    ds_record_get(commit->repo, &commit->head.version, &parent, NULL) < 0)
		return 0;
	r = commit_tree_hash(&commit->tree);
	if (r == 0 && parent->has_fingerprint &&
	    ds_digest_equal(&parent->fingerprint, &commit->tree.root.digest)) {
		*ret_is_unchanged = commit->result.unchanged = true;
		commit->result.number = commit->head.number;
		commit->result.version = parent->id;
		commit->result.fingerprint = parent->fingerprint;
		commit->result.totals = parent->totals;
	}
	ds_record_free(parent);
	return r;
}

/* Before anything is uploaded. */
static int check_names(struct commit *commit)
{
	const char *tag = commit->options->tag;
	int r = 0;

	if (tag)
		r = ds_ref_check_new(commit->repo, DS_REF_TAG, tag, commit->diag);
	if (r == 0 && !commit->has_head)
		r = ds_ref_check_new(commit->repo, DS_REF_BRANCH, commit->branch, commit->diag);
	return r;
}

static int put_tag(struct commit *commit)
{
	struct ds_ref_entry wanted = {.kind = DS_REF_TAG, .version = commit->result.version}, made;
	int r;

	if (!commit->options->tag)
		return 0;
	snprintf(wanted.name, sizeof(wanted.name), "%s", commit->options->tag);
	wanted.writer = commit->writer;
	r = ds_ref_append(commit->repo, NULL, &wanted,
			  ds_keep_publish_limit(commit->keep, commit->start), &made, commit->diag);
	commit->is_told = true;
	if (r == -DS_E_CONFLICT)
		return ds_diag_set(commit->diag, -DS_E_TAKEN, commit->options->tag,
				   "the version was made, but somebody else took this tag "
				   "meanwhile");
	return r == 0 ? 0
		      : ds_diag_set(commit->diag, r, commit->options->tag,
				    "the version was made, but not the tag");
}

static int load_policy(struct commit *commit)
{
	struct ds_policy_entry *policies = NULL;
	struct ds_keep_input input = {0};
	int r = ds_policy_load(commit->repo, &policies, &input.policies_n, commit->diag);

	input.policies = policies;
	if (r == 0)
		r = ds_keep_new(&input, commit->start, &commit->keep);
	ds_free(policies);
	return r;
}

static int run(struct commit *commit)
{
	const struct ds_commit_options *options = commit->options;
	bool is_unchanged = false;
	size_t left_n;
	const struct ds_digest *left;
	int r;

	r = commit_check_options(options, commit->branch, commit->diag);
	if (r == 0)
		r = commit_check_place(ds_store_local_path(ds_repo_store(commit->repo)),
				       options->source, commit->diag);
	if (r == 0)
		r = ds_store_now(ds_repo_store(commit->repo), &commit->start, commit->diag);
	if (r == 0)
		r = read_head(commit);
	if (r == 0)
		r = check_names(commit);
	if (r == 0)
		r = load_policy(commit);
	if (r == 0)
		r = commit_state_init(&commit->state, options->state_dir, commit->diag);
	if (r < 0)
		return r;
	show_phase(commit, "scanning");
	r = commit_stat_load(commit->state.dir, options->source, commit->state.tmp, &commit->stat);
	if (r == 0)
		r = commit_scan(options, ds_store_local_path(ds_repo_store(commit->repo)),
				commit->state.tmp, commit->stat, &commit->tree, commit->diag);
	if (r == 0)
		r = try_unchanged(commit, &is_unchanged);
	if (r == 0 && is_unchanged)
		return put_tag(commit);
	if (r == 0)
		r = commit_packs_new(commit->repo, DS_PACK_DATA, commit_memory_bytes(options) / 2,
				     &commit->watch, &commit->packs);
	if (r == 0)
		r = commit_find_new(commit->repo, commit->packs,
				    commit->has_head && !commit->head.is_deleted
					    ? &commit->head.version
					    : NULL,
				    commit->state.dir, commit->state.tmp,
				    commit_memory_bytes(options) / TABLES_PART, &commit->watch,
				    &commit->find);
	if (r == 0)
		r = run_attempts(commit);
	if (r < 0)
		return r;
	begin_saving(commit);
	commit->has_rows |= !commit->result.unchanged;
	if (!commit->result.unchanged) {
		left = commit_packs_left(commit->packs, &left_n);
		commit_find_publish(commit->find, &commit->result.version, left, left_n);
	}
	return put_tag(commit);
}

/* What is known of an error, when diag does not say: it may hold an object that was missed without harm. */
static void tell(struct commit *commit, int r)
{
	struct ds_diag *diag = commit->diag;

	if (!diag)
		return;
	if (r == -DS_E_INTERRUPTED && !commit->is_told)
		ds_diag_set(diag, r, NULL,
			    "nothing was published; repeating it uses what was uploaded");
	if (diag->code != r)
		ds_diag_clear(diag);
	/* A directory store names its own path. */
	if ((r == -ENOSPC || r == -EDQUOT) && !diag->object[0] && commit->state.tmp)
		ds_diag_set(diag, r, commit->state.tmp, "the local temporary directory");
}

/* One start, with everything that hangs on its time. `result`: of the starts before. */
static int run_start(struct ds_repo *repo, const struct ds_commit_options *options,
		     struct ds_commit_result *result, bool *ret_is_published,
		     struct ds_diag *reterr_diag)
{
	struct commit commit = {
		.repo = repo,
		.options = options,
		.branch = options->branch ? options->branch : ds_repo_default_branch(repo),
		.diag = reterr_diag,
		.state = {.lock_fd = -1},
		.tree = {.root_fd = -1},
	};
	uint64_t data_bytes = 0;
	int r;

	commit.watch = (struct commit_watch){.interrupted = options->interrupted,
					     .tick = tick,
					     .ctx = &commit};
	commit.result.races_n = result->races_n;
	commit.result.uploaded_manifest_bytes = result->uploaded_manifest_bytes;
	ds_random_bytes(&commit.writer, sizeof(commit.writer));
	r = run(&commit);
	if (r < 0) {
		/* Leaves an index of what was put, by which the next start finds what is young of it. */
		commit_packs_abandon(commit.packs);
		tell(&commit, r);
	}
	if (commit.packs)
		data_bytes = commit_packs_uploaded_bytes(commit.packs);
	commit.result.uploaded_data_bytes = result->uploaded_data_bytes + data_bytes;
	commit_stat_save_end(commit.saving, commit.has_rows ? &commit.result.version : NULL);
	commit_find_free(commit.find);
	commit_packs_free(commit.packs);
	commit_stat_free(commit.stat);
	commit_tree_release(&commit.tree);
	ds_keep_free(commit.keep);
	commit_state_release(&commit.state);
	*result = commit.result;
	*ret_is_published = commit.is_published;
	return r;
}

int ds_commit(struct ds_repo *repo, const struct ds_commit_options *options,
	      struct ds_commit_result *ret_result, struct ds_diag *reterr_diag)
{
	struct ds_commit_result result = {0};
	_ds_cleanup_close_ int lock_fd = -1;
	bool is_published = false;
	int r = ds_repo_lock(repo, options->interrupted, options->locked, options->ctx, &lock_fd);

	if (r == -DS_E_INTERRUPTED)
		ds_diag_set(reterr_diag, r, NULL, "nothing was published");
	if (r < 0)
		return r;
	for (unsigned starts_n = 1;; starts_n++) {
		r = run_start(repo, options, &result, &is_published, reterr_diag);
		if (r != -DS_E_LATE || is_published || starts_n == STARTS_MAX)
			break;
		/* Nothing of the last start may be relied on: not its head, its policy, its hits, nor its packs. */
		if (reterr_diag)
			ds_diag_clear(reterr_diag);
		if (options->anew)
			options->anew(options->ctx);
	}
	if (r == 0)
		*ret_result = result;
	return r;
}
