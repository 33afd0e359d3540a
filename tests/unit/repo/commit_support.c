#include "commit_support.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "repo/refs.h"
#include "repo/verify.h"
#include "repo/view.h"
#include "util/file.h"
#include "util/mem.h"
#include "util/random.h"
#include "util/str.h"

/* The decorator. */

enum fate { PASS, FAIL_BEFORE, FAIL_AFTER, LIE, DENY };

static struct spy_store *spy_of(struct ds_store *store)
{
	return ds_container_of(store, struct spy_store, base);
}

static enum fate decide(struct spy_store *spy, const struct ds_store_req *req)
{
	long at = spy->calls_n++;

	spy->gets_n += req->op == DS_STORE_GET;
	spy->puts_n += req->op == DS_STORE_PUT;
	spy->heads_n += req->op == DS_STORE_HEAD;
	spy->lists_n += req->op == DS_STORE_LIST;
	if (req->op == DS_STORE_PUT && ds_starts_with(req->key, "packs/"))
		spy->data_bytes += (long)req->body_len_bytes;
	if (spy->before)
		spy->before(spy->ctx, req);
	if ((spy->fails && spy->fails(spy->ctx, req)) ||
	    (spy->fail_at >= 0 &&
	     (at == spy->fail_at || (spy->fail_sticky && at > spy->fail_at)))) {
		spy->failed_n++;
		return spy->fail_after ? FAIL_AFTER : FAIL_BEFORE;
	}
	if (spy->deny && strstr(req->key, spy->deny))
		return DENY;
	if (spy->lie_about && req->op == DS_STORE_PUT && strstr(req->key, spy->lie_about) &&
	    (!spy->lie_max_n || spy->lied_n < spy->lie_max_n)) {
		spy->lied_n++;
		return LIE;
	}
	return PASS;
}

struct passing {
	struct ds_store_req req;
	struct spy_store *spy;
	struct ds_store_req *outer;
	int result; /* to give instead; 1: the inner one's */
};

/* The request that goes through in place of this one. */
static void prepare(struct spy_store *spy, enum fate fate, const struct ds_store_req *outer,
		    struct passing *passing)
{
	static const char nowhere[] = "spy/nothing";

	*passing = (struct passing){.req = *outer, .spy = spy, .result = 1};
	if (fate == FAIL_BEFORE || fate == FAIL_AFTER)
		passing->result = spy->fail_with;
	if (fate == DENY)
		passing->result = -DS_E_DENIED;
	if (fate == LIE)
		passing->result = 0;
	if (fate == LIE && spy->lie_short)
		passing->req.body_len_bytes--;
	else if (fate != PASS && fate != FAIL_AFTER)
		passing->req = (struct ds_store_req){.op = DS_STORE_HEAD, .key = nowhere};
}

static void copy_back(struct passing *passing)
{
	struct ds_store_req *outer = passing->outer;

	outer->result = passing->result == 1 ? passing->req.result : passing->result;
	outer->diag = passing->req.diag;
	outer->object_size_bytes = passing->req.object_size_bytes;
	outer->modified = passing->req.modified;
	outer->store_time = passing->req.store_time;
	if (passing->result < 0)
		ds_diag_set(&outer->diag, passing->result, outer->key, "injected");
}

static void spy_perform(struct ds_store *base, struct ds_store_req *req)
{
	struct spy_store *spy = spy_of(base);
	struct passing passing;

	prepare(spy, decide(spy, req), req, &passing);
	passing.outer = req;
	ds_store_perform(spy->inner, &passing.req);
	copy_back(&passing);
}

static void on_done(struct ds_store_req *req)
{
	struct passing *passing = ds_container_of(req, struct passing, req);
	struct ds_store_req *outer = passing->outer;
	struct spy_store *spy = passing->spy;

	copy_back(passing);
	free(passing);
	ds_store_complete(&spy->base, outer);
}

static void spy_submit(struct ds_store *base, struct ds_store_req *req)
{
	struct spy_store *spy = spy_of(base);
	struct passing *passing = malloc(sizeof(*passing));

	prepare(spy, decide(spy, req), req, passing);
	passing->outer = req;
	passing->req.done = on_done;
	ds_store_submit(spy->inner, &passing->req);
}

static void spy_cancel(struct ds_store *base, struct ds_store_req *req)
{
	/* What is in memory or in a directory is over in a moment. */
	(void)base;
	(void)req;
}

static void spy_destroy(struct ds_store *base)
{
	ds_store_unref(spy_of(base)->inner);
	ds_store_release(base);
}

static void spy_stats(struct ds_store *base, struct ds_store_stats *ret_stats)
{
	ds_store_get_stats(spy_of(base)->inner, ret_stats);
}

static const char *spy_local_path(const struct ds_store *base)
{
	return ds_store_local_path(
		((const struct spy_store *)(const void *)((const char *)base -
							  offsetof(struct spy_store, base)))
			->inner);
}

static int spy_lock(struct ds_store *base, bool exclusive, int *ret_fd)
{
	return ds_store_lock(spy_of(base)->inner, exclusive, ret_fd);
}

static int spy_now(struct ds_store *base, struct ds_time *ret_now)
{
	return ds_store_now(spy_of(base)->inner, ret_now, NULL);
}

static const struct ds_store_ops spy_ops = {
	.submit = spy_submit,
	.cancel = spy_cancel,
	.perform = spy_perform,
	.destroy = spy_destroy,
	.get_stats = spy_stats,
	.local_path = spy_local_path,
	.lock = spy_lock,
	.now = spy_now,
};

struct ds_store *spy_store_new(struct spy_store *spy, struct ds_store *inner)
{
	*spy = (struct spy_store){.fail_at = -1, .inner = inner};
	cr_assert_eq(ds_store_init(&spy->base, &spy_ops, "spy:", 0), 0);
	return &spy->base;
}

void spy_store_reset(struct spy_store *spy)
{
	spy->calls_n = spy->failed_n = spy->lied_n = 0;
	spy->gets_n = spy->puts_n = spy->heads_n = spy->lists_n = spy->data_bytes = 0;
	spy->fail_at = -1;
	spy->fail_after = spy->fail_sticky = spy->lie_short = false;
	spy->fail_with = 0;
	spy->lie_about = spy->deny = NULL;
	spy->lie_max_n = 0;
	spy->before = NULL;
}

/* The box. */

static void warn(void *ctx, const char *path, const char *reason)
{
	struct box *box = ctx;
	size_t len = strlen(box->warnings);

	snprintf(box->warnings + len, sizeof(box->warnings) - len, "%s: %s\n", path, reason);
}

static void progress(void *ctx, const struct ds_commit_progress *now)
{
	struct box *box = ctx;

	box->progress_n++;
	cr_assert_not_null(now->phase);
	if (strcmp(now->phase, "scanning") != 0) {
		cr_assert_leq(now->files_n, now->files_total_n);
		cr_assert_leq(now->bytes, now->bytes_total);
	}
}

static void begin(struct box *box)
{
	const char *tmp = getenv("TMPDIR");

	*box = (struct box){0};
	snprintf(box->dir, sizeof(box->dir), "%s/commit-XXXXXX", tmp ? tmp : "/tmp");
	cr_assert_not_null(mkdtemp(box->dir), "%s", box->dir);
	snprintf(box->source, sizeof(box->source), "%s/src", box->dir);
	snprintf(box->state, sizeof(box->state), "%s/state", box->dir);
	cr_assert_eq(mkdir(box->source, 0755), 0);
	box->options = (struct ds_commit_options){
		.source = box->source,
		.state_dir = box->state,
		.jobs_n = 3,
		.warn = warn,
		.progress = progress,
		.ctx = box,
		.interrupted = &box->interrupted,
	};
}

static void finish(struct box *box, struct ds_store *inner)
{
	box->inner = inner;
	box->store = spy_store_new(&box->spy, inner);
	cr_assert_eq(ds_repo_init_store(box->store, "main", &box->repo, NULL), 0);
	spy_store_reset(&box->spy);
}

void box_init(struct box *box)
{
	struct ds_store *inner;

	begin(box);
	cr_assert_eq(ds_store_memory_new(NULL, NULL, &inner), 0);
	finish(box, inner);
}

static struct ds_time clock_real(void *ctx)
{
	return *(struct ds_time *)ctx;
}

static uint64_t clock_mono(void *ctx)
{
	(void)ctx;
	return ds_mono_ns();
}

void box_init_clock(struct box *box, struct ds_time *now)
{
	struct ds_store *inner;

	begin(box);
	*now = (struct ds_time){.s = 1800000000};
	box->clock = (struct ds_clock){.mono_ns = clock_mono, .real = clock_real, .ctx = now};
	cr_assert_eq(ds_store_memory_new(NULL, &box->clock, &inner), 0);
	finish(box, inner);
}

void box_init_beside(struct box *box, struct box *of)
{
	begin(box);
	box->inner = ds_store_ref(of->inner);
	box->store = spy_store_new(&box->spy, box->inner);
	cr_assert_eq(ds_repo_open_store(box->store, &box->repo, NULL), 0);
	spy_store_reset(&box->spy);
}

void box_init_dir(struct box *box)
{
	struct ds_store *inner;
	char path[96];

	begin(box);
	snprintf(path, sizeof(path), "%s/repo", box->dir);
	cr_assert_eq(ds_store_open(path, NULL, true, &inner, NULL), 0);
	finish(box, inner);
}

void box_release(struct box *box)
{
	ds_repo_unref(box->repo);
	ds_store_unref(box->store);
	cr_assert_eq(ds_rmtree_at(AT_FDCWD, box->dir), 0);
}

static const char *full(struct box *box, const char *path)
{
	static _Thread_local char buf[2][5000];
	static _Thread_local unsigned at;
	char *to = buf[at++ % 2];

	snprintf(to, sizeof(buf[0]), "%s/%s", box->source, path);
	return to;
}

void box_write(struct box *box, const char *path, const void *data, size_t len_bytes)
{
	int fd = open(full(box, path), O_WRONLY | O_CREAT | O_TRUNC, 0644);

	cr_assert_geq(fd, 0, "%s", path);
	cr_assert_eq(ds_write_full(fd, data, len_bytes), 0);
	close(fd);
}

void box_fill(struct box *box, const char *path, uint64_t seed, size_t len_bytes)
{
	struct ds_prng prng = {.state = seed};
	uint64_t *data = malloc(len_bytes + 8);

	for (size_t i = 0; i < len_bytes / 8 + 1; i++)
		data[i] = ds_prng_next(&prng);
	box_write(box, path, data, len_bytes);
	free(data);
}

void box_mkdir(struct box *box, const char *path)
{
	cr_assert_eq(mkdir(full(box, path), 0755), 0, "%s", path);
}

void box_symlink(struct box *box, const char *target, const char *path)
{
	cr_assert_eq(symlink(target, full(box, path)), 0);
}

void box_link(struct box *box, const char *from, const char *path)
{
	cr_assert_eq(link(full(box, from), full(box, path)), 0);
}

void box_rename(struct box *box, const char *from, const char *path)
{
	cr_assert_eq(rename(full(box, from), full(box, path)), 0);
}

void box_remove(struct box *box, const char *path)
{
	cr_assert_eq(ds_rmtree_at(AT_FDCWD, full(box, path)), 0);
}

void box_chmod(struct box *box, const char *path, unsigned mode)
{
	cr_assert_eq(chmod(full(box, path), mode), 0);
}

void box_set_mtime(struct box *box, const char *path, int64_t s, uint32_t ns)
{
	struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = s, .tv_nsec = ns}};

	cr_assert_eq(utimensat(AT_FDCWD, full(box, path), times, AT_SYMLINK_NOFOLLOW), 0);
}

/* ctime cannot be set: the caller waits for it. Tests that need it say so by calling this, and pay 3 s. */
void box_settle(struct box *box)
{
	(void)box;
	ds_sleep_ms(3100);
}

int box_try_commit(struct box *box)
{
	ds_diag_clear(&box->diag);
	box->warnings[0] = '\0';
	return ds_commit(box->repo, &box->options, &box->result, &box->diag);
}

const struct ds_commit_result *box_commit(struct box *box)
{
	char text[800];
	int r = box_try_commit(box);

	cr_assert_eq(r, 0, "commit: %s: %s", ds_strerror(r),
		     ds_diag_format(&box->diag, text, sizeof(text)));
	cr_assert(!box->result.parent_is_damaged);
	cr_assert_eq(box->diag.code, 0, "left behind: %s",
		     ds_diag_format(&box->diag, text, sizeof(text)));
	return &box->result;
}

static void on_finding(void *ctx, const char *object, const char *text)
{
	(void)ctx;
	cr_log_error("verify: %s: %s", object, text);
}

uint64_t box_verify(struct box *box, bool read_data)
{
	struct ds_verify_options options = {.read_data = read_data, .finding = on_finding};
	struct ds_verify_result result;

	cr_assert_eq(ds_verify(box->repo, &options, &result, NULL), 0);
	cr_assert_eq(result.findings_n, 0);
	return result.versions_n;
}

struct check {
	struct ds_view *view;
	char path[5000]; /* of the source */
	uint64_t names_n;
	struct {
		uint64_t dev_ino, ino;
	} links[64];
	size_t links_n;
};

/* Names of one file are names of one inode, and the other way round. */
static void check_link(struct check *check, const struct stat *st, const struct ds_entry *entry)
{
	cr_assert_eq((uint64_t)entry->nlink, (uint64_t)st->st_nlink, "%s: nlink", check->path);
	if (st->st_nlink == 1)
		return;
	for (size_t i = 0; i < check->links_n; i++) {
		cr_assert_eq(check->links[i].dev_ino == st->st_ino,
			     check->links[i].ino == entry->ino, "%s: link", check->path);
		if (check->links[i].ino == entry->ino)
			return;
	}
	cr_assert_lt(check->links_n, DS_ARRAY_SIZE(check->links));
	check->links[check->links_n].dev_ino = st->st_ino;
	check->links[check->links_n++].ino = entry->ino;
}

static void check_contents(struct check *check, const struct ds_entry *entry)
{
	enum { STEP = 1 << 20 };
	int fd = open(check->path, O_RDONLY | O_NOFOLLOW);
	char *a = malloc(STEP), *b = malloc(STEP);
	uint64_t off = 0;
	size_t got, want;

	cr_assert_geq(fd, 0, "%s", check->path);
	do {
		int r;

		cr_assert_eq(ds_pread_full(fd, a, STEP, off, &want), 0);
		r = ds_view_read(check->view, NULL, entry->ino, off, STEP, b, &got);
		cr_assert_eq(r, 0, "%s at %llu: %s", check->path, (unsigned long long)off,
			     ds_strerror(r));
		cr_assert_eq(got, want, "%s: length", check->path);
		cr_assert_eq(memcmp(a, b, got), 0, "%s: contents", check->path);
		off += got;
	} while (got == STEP);
	free(a);
	free(b);
	close(fd);
}

static int check_entry(void *ctx, const struct ds_entry *entry);

static void check_directory(struct check *check, uint64_t ino)
{
	uint64_t before_n = check->names_n, source_n = 0;
	struct dirent *name;
	DIR *dir = opendir(check->path);

	cr_assert_not_null(dir, "%s", check->path);
	while ((name = readdir(dir)))
		source_n += strcmp(name->d_name, ".") != 0 && strcmp(name->d_name, "..") != 0;
	closedir(dir);
	check->names_n = 0;
	cr_assert_eq(ds_view_list(check->view, NULL, ino, 0, check_entry, check), 0);
	cr_assert_eq(check->names_n, source_n, "%s: number of names", check->path);
	check->names_n = before_n;
}

static int check_entry(void *ctx, const struct ds_entry *entry)
{
	struct check *check = ctx;
	size_t len = strlen(check->path);
	struct stat st;

	check->names_n++;
	snprintf(check->path + len, sizeof(check->path) - len, "/%s", entry->name);
	cr_assert_eq(lstat(check->path, &st), 0, "%s: not in the source", check->path);
	cr_assert_eq(entry->mtime.s, st.st_mtim.tv_sec, "%s: mtime", check->path);
	cr_assert_eq(entry->mtime.ns, st.st_mtim.tv_nsec, "%s: mtime", check->path);
	if (S_ISDIR(st.st_mode)) {
		cr_assert_eq(entry->type, DS_ENTRY_DIRECTORY, "%s: type", check->path);
		check_directory(check, entry->ino);
	} else if (S_ISLNK(st.st_mode)) {
		struct ds_buf target = DS_BUF_INIT(DS_TARGET_MAX);
		char want[4096];
		ssize_t n = readlink(check->path, want, sizeof(want));

		cr_assert_eq(entry->type, DS_ENTRY_SYMLINK, "%s: type", check->path);
		cr_assert_eq(ds_view_readlink(check->view, NULL, entry->ino, &target), 0);
		cr_assert_eq(target.len_bytes, (size_t)n, "%s: target", check->path);
		cr_assert_eq(memcmp(target.data, want, (size_t)n), 0, "%s: target", check->path);
		ds_buf_release(&target);
	} else {
		cr_assert(S_ISREG(st.st_mode), "%s", check->path);
		cr_assert_eq(entry->type, DS_ENTRY_FILE, "%s: type", check->path);
		cr_assert_eq(entry->is_executable, (st.st_mode & 0111) != 0, "%s: x", check->path);
		cr_assert_eq(entry->size_bytes, (uint64_t)st.st_size, "%s: size", check->path);
		check_link(check, &st, entry);
		check_contents(check, entry);
	}
	check->path[len] = '\0';
	return 0;
}

void box_check(struct box *box, const char *selector)
{
	struct check *check = calloc(1, sizeof(*check));
	struct ds_version_totals totals;
	struct ds_resolved resolved;
	struct ds_fetcher *fetcher;
	struct ds_digest fingerprint;
	struct ds_record *record;
	struct ds_cache *cache;

	cr_assert_eq(ds_resolve(box->repo, selector, &resolved, NULL), 0);
	cr_assert_eq(ds_record_get(box->repo, &resolved.version, &record, NULL), 0);
	cr_assert_eq(ds_cache_open_none(&cache), 0);
	cr_assert_eq(ds_fetcher_new(box->store, cache, NULL, &fetcher), 0);
	cr_assert_eq(ds_view_open(box->repo, cache, fetcher, record, true, 20000, &check->view,
				  NULL),
		     0);
	snprintf(check->path, sizeof(check->path), "%s", box->source);
	check_directory(check, DS_ROOT_ID);
	cr_assert_eq(ds_fingerprint_directory(&box->options, &fingerprint, &totals, NULL), 0);
	cr_assert(ds_digest_equal(&fingerprint, &record->fingerprint));
	cr_assert_eq(totals.files_n, record->totals.files_n);
	cr_assert_eq(totals.directories_n, record->totals.directories_n);
	cr_assert_eq(totals.symlinks_n, record->totals.symlinks_n);
	cr_assert_eq(totals.bytes, record->totals.bytes);
	ds_view_close(check->view);
	ds_fetcher_free(fetcher);
	ds_cache_unref(cache);
	ds_record_free(record);
	free(check);
	box_verify(box, true);
}

void box_move_elsewhere(struct box *box)
{
	char command[600];

	snprintf(command, sizeof(command),
		 "cp -a '%s' '%s-2' && rm -rf '%s' '%s' && mv '%s-2' '%s-e'", box->source,
		 box->source, box->source, box->state, box->source, box->source);
	cr_assert_eq(system(command), 0);
	strcat(box->source, "-e");
}

/* Sizes around every limit of chunks and zeros. */
static void make_sizes(struct box *box)
{
	static const size_t sizes[] = {0,
				       1,
				       2,
				       4095,
				       65535,
				       65536,
				       DS_CHUNK_MIN,
				       DS_CHUNK_MAX - 1,
				       DS_CHUNK_MAX,
				       DS_CHUNK_MAX + 1,
				       2 * DS_CHUNK_MAX + 12345};
	char path[64];
	char *zeros;

	for (size_t i = 0; i < DS_ARRAY_SIZE(sizes); i++) {
		snprintf(path, sizeof(path), "size-%zu", sizes[i]);
		box_fill(box, path, i, sizes[i]);
	}
	zeros = calloc(1, DS_CHUNK_MAX + 100000);
	box_write(box, "zeros-one-chunk", zeros, 100000);
	box_write(box, "zeros-large", zeros, DS_CHUNK_MAX + 100000);
	free(zeros);
}

static void make_hole(struct box *box, const char *path, off_t at, off_t size)
{
	char full[200];
	int fd;

	snprintf(full, sizeof(full), "%s/%s", box->source, path);
	fd = open(full, O_WRONLY | O_CREAT, 0644);
	cr_assert_geq(fd, 0);
	cr_assert_eq(pwrite(fd, "data", 4, at), 4);
	cr_assert_eq(ftruncate(fd, size), 0);
	close(fd);
}

static void make_names(struct box *box)
{
	char longest[256];

	memset(longest, 'n', 255);
	longest[255] = '\0';
	box_fill(box, longest, 100, 10);
	box_fill(box, "-dash", 101, 10);
	box_fill(box, "new\nline", 102, 10);
	box_fill(box, "not utf-8 \xff\xfe", 103, 10);
	box_fill(box, " ", 104, 10);
	box_fill(box, "a'b\"c\\d%2f", 105, 10);
}

void box_make_tree(struct box *box)
{
	make_sizes(box);
	make_names(box);
	make_hole(box, "hole", 70000000, 100000001);
	box_mkdir(box, "empty");
	box_mkdir(box, "dir");
	box_mkdir(box, "dir/sub");
	box_fill(box, "dir/sub/file", 200, 1000);
	box_fill(box, "dir.txt", 201, 1000);
	box_fill(box, "dir0", 202, 1000);
	box_chmod(box, "dir0", 0755);
	box_symlink(box, "no/such/target", "dangling");
	box_symlink(box, "dir", "dir/link");
	box_link(box, "dir/sub/file", "a-hard-link");
	box_link(box, "dir/sub/file", "empty/../z-hard-link");
	box_set_mtime(box, "dir0", -5, 999999999);
	box_set_mtime(box, "dangling", 4000000000, 1);
	box_set_mtime(box, "dir/sub", 12345, 6789);
}

static void other_is_first(void *ctx, const struct ds_store_req *req)
{
	struct race *race = ctx;
	char path[40];

	if (req->op != DS_STORE_PUT || !ds_starts_with(req->key, "refs/branches/") ||
	    race->left_n == 0)
		return;
	race->left_n--;
	snprintf(path, sizeof(path), "file-%u", race->left_n);
	box_fill(race->other, race->path ? race->path : path, 1000 + race->left_n, 500);
	box_commit(race->other);
}

void race_begin(struct race *race, struct box *ours)
{
	ours->spy.before = other_is_first;
	ours->spy.ctx = race;
}
