#include "view_support.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "repo/commit.h"
#include "util/file.h"

static void check(int r, const char *what, const struct ds_diag *diag)
{
	char text[900];

	if (r >= 0)
		return;
	fprintf(stderr, "%s: %s: %s\n", what, ds_strerror(r),
		diag ? ds_diag_format(diag, text, sizeof(text)) : "");
	abort();
}

/* SplitMix64 (Steele and others, OOPSLA 2014): content that is cut where content is, on average. */
static uint8_t mixed_byte(uint64_t off)
{
	uint64_t z = (off / 8 + 1) * 0x9e3779b97f4a7c15;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return (uint8_t)((z ^ (z >> 31)) >> (off % 8 * 8));
}

/* Byte `off` of file i. Sizes differ, so do all files. */
static uint8_t byte_at(unsigned i, uint64_t off)
{
	if (i == VIEW_STREAM)
		return mixed_byte(off);
	if (i == VIEW_FILES_N &&
	    (off < VIEW_ZEROS_END || (off >= VIEW_HOLE_START && off < VIEW_HOLE_END)))
		return 0;
	return (uint8_t)((off * 2654435761u + i * 40503u) >> 13) | 1;
}

uint32_t view_file_size(unsigned i)
{
	return i == VIEW_STREAM	   ? VIEW_STREAM_SIZE
	       : i == VIEW_FILES_N ? VIEW_LARGE_SIZE
	       : i % 50 == 0	   ? 0
				   : i * 7919 % 30000 + 1;
}

void view_file_path(unsigned i, char *buf, size_t size)
{
	if (i >= VIEW_FILES_N)
		snprintf(buf, size, i == VIEW_STREAM ? "stream" : "large");
	else
		snprintf(buf, size, "d%02u/f%03u", i % VIEW_DIRS_N, i);
}

bool view_file_is_right(unsigned i, uint64_t off, const void *data, size_t len_bytes)
{
	const uint8_t *bytes = data;

	for (size_t k = 0; k < len_bytes; k++)
		if (bytes[k] != byte_at(i, off + k))
			return false;
	return true;
}

static void make_file(int dir_fd, unsigned i)
{
	uint32_t size = view_file_size(i);
	uint8_t *data = malloc(size + 1);
	char path[64];
	int fd;

	view_file_path(i, path, sizeof(path));
	for (uint32_t k = 0; k < size; k++)
		data[k] = byte_at(i, k);
	fd = openat(dir_fd, path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	check(ds_write_full(fd, data, size), path, NULL);
	close(fd);
	free(data);
}

static void make_tree(int fd)
{
	char name[200];

	for (unsigned d = 0; d < VIEW_DIRS_N; d++) {
		snprintf(name, sizeof(name), "d%02u", d);
		mkdirat(fd, name, 0755);
	}
	for (unsigned i = 0; i <= VIEW_FILES_N; i++)
		make_file(fd, i);
	mkdirat(fd, "links", 0755);
	for (unsigned i = 0; i < VIEW_LINKS_N; i++) {
		snprintf(name, sizeof(name), "links/%05u-%0120d", i, 0);
		check(linkat(fd, "d01/f001", fd, name, 0) < 0 ? -errno : 0, name, NULL);
	}
}

static void make_stream(int fd)
{
	make_file(fd, VIEW_STREAM);
}

static void init(struct view_bench *bench, void (*make)(int fd))
{
	const char *source = support_path("src");
	struct ds_commit_options options = {.source = source,
					    .state_dir = "",
					    .page_size = 4096,
					    .message = "m"};
	struct ds_commit_result result;
	struct ds_diag diag = {0};
	int fd;

	memset(bench, 0, sizeof(*bench));
	mkdir(source, 0755);
	fd = open(source, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	check(fd < 0 ? -errno : 0, source, NULL);
	make(fd);
	close(fd);
	check(ds_store_memory_new(NULL, NULL, &bench->memory), "store", NULL);
	bench->store = fault_store_new(bench->memory);
	bench->store->match = "packs/";
	check(ds_repo_init_store(&bench->store->base, "main", &bench->repo, &diag), "init", &diag);
	check(ds_commit(bench->repo, &options, &result, &diag), "commit", &diag);
	check(ds_record_get(bench->repo, &result.version, &bench->record, &diag), "record", &diag);
	ds_rmtree_at(AT_FDCWD, source);
}

void view_bench_init(struct view_bench *bench)
{
	init(bench, make_tree);
}

void view_bench_init_stream(struct view_bench *bench)
{
	init(bench, make_stream);
}

void view_bench_release(struct view_bench *bench)
{
	ds_record_free(bench->record);
	ds_repo_unref(bench->repo);
	ds_store_unref(&bench->store->base);
	ds_store_unref(bench->memory);
}

int view_bench_open(struct view_bench *bench, const char *cache_dir, uint64_t capacity_bytes,
		    uint8_t boot, bool blocking)
{
	struct ds_fetcher_options options = {.workers_n = 2,
					     .inflight_bytes_max = bench->inflight_bytes_max};
	uint8_t boot_id[16] = {boot};
	struct ds_cache_options cache = {.dir = cache_dir,
					 .capacity_bytes = capacity_bytes,
					 .free_floor_percent = 1,
					 .boot_id = boot_id};
	int r;

	bench->cache = NULL;
	bench->fetcher = NULL;
	bench->view = NULL;
	r = cache_dir ? ds_cache_open(&cache, &bench->cache, NULL)
		      : ds_cache_open_none(&bench->cache);
	if (r == 0)
		r = ds_fetcher_new(&bench->store->base, bench->cache, &options, &bench->fetcher);
	if (r == 0)
		r = ds_view_open(bench->repo, bench->cache, bench->fetcher, bench->record, blocking,
				 20000, &bench->view, NULL);
	if (r < 0)
		view_bench_close(bench);
	return r;
}

void view_bench_close(struct view_bench *bench)
{
	ds_view_close(bench->view);
	ds_fetcher_free(bench->fetcher);
	if (bench->cache)
		ds_cache_unref(bench->cache);
	bench->view = NULL;
	bench->fetcher = NULL;
	bench->cache = NULL;
}

void view_bench_settle(struct view_bench *bench)
{
	struct ds_fetcher_stats stats;

	do {
		ds_fetcher_get_stats(bench->fetcher, &stats);
		usleep(1000);
	} while (stats.underway_n);
}

struct wake {
	pthread_mutex_t mutex;
	pthread_cond_t cond;
	pthread_t starter;
	bool is_over;
	int result;
};

static void on_done(struct ds_demand *demand, int result, void *ctx)
{
	struct wake *wake = ctx;

	(void)demand;
	if (pthread_equal(pthread_self(), wake->starter))
		abort();
	pthread_mutex_lock(&wake->mutex);
	wake->is_over = true;
	wake->result = result;
	pthread_cond_signal(&wake->cond);
	pthread_mutex_unlock(&wake->mutex);
}

static int wait_once(struct ds_demand *demand, uint64_t deadline_ns)
{
	struct wake wake = {.mutex = PTHREAD_MUTEX_INITIALIZER,
			    .cond = PTHREAD_COND_INITIALIZER,
			    .starter = pthread_self()};
	int r = ds_demand_wait(demand, deadline_ns, on_done, &wake);

	if (r < 0)
		return r;
	pthread_mutex_lock(&wake.mutex);
	while (!wake.is_over)
		pthread_cond_wait(&wake.cond, &wake.mutex);
	pthread_mutex_unlock(&wake.mutex);
	return wake.result;
}

int view_run(struct ds_view *view, uint64_t timeout_ms, view_call_fn *call, void *ctx,
	     struct view_run *ret_run)
{
	uint64_t deadline_ns = ds_deadline_in_ms(timeout_ms);
	struct view_run run = {0};
	struct ds_demand demand;
	int r;

	ds_demand_init(&demand, view);
	for (;;) {
		r = call(&demand, ctx);
		if (r != -DS_E_NOT_LOCAL)
			break;
		r = wait_once(&demand, deadline_ns);
		if (r < 0)
			break;
		/* A mount without a cache gets further with each wait, too. */
		if (++run.waits_n > 1000)
			abort();
	}
	run.diag = demand.diag;
	ds_demand_release(&demand);
	if (ret_run)
		*ret_run = run;
	return r;
}

struct find {
	struct ds_view *view;
	uint64_t parent;
	const char *name;
	struct ds_entry entry;
};

static int call_lookup(struct ds_demand *demand, void *ctx)
{
	struct find *find = ctx;

	return ds_view_lookup(find->view, demand, find->parent, find->name, strlen(find->name),
			      &find->entry);
}

int view_find(struct ds_view *view, unsigned i, uint64_t timeout_ms, uint64_t *ret_ino)
{
	struct find find = {.view = view, .parent = DS_ROOT_ID};
	char path[64], *slash;
	int r;

	view_file_path(i, path, sizeof(path));
	slash = strchr(path, '/');
	find.name = path;
	if (slash) {
		*slash = '\0';
		r = view_run(view, timeout_ms, call_lookup, &find, NULL);
		if (r < 0)
			return r;
		find.parent = find.entry.ino;
		find.name = slash + 1;
	}
	r = view_run(view, timeout_ms, call_lookup, &find, NULL);
	if (r < 0)
		return r;
	if (find.entry.size_bytes != view_file_size(i) || find.entry.type != DS_ENTRY_FILE)
		abort();
	*ret_ino = find.entry.ino;
	return 0;
}

struct reading {
	struct ds_view *view;
	uint64_t ino, off;
	size_t len, n;
	uint8_t *data;
};

static int call_read(struct ds_demand *demand, void *ctx)
{
	struct reading *reading = ctx;

	return ds_view_read(reading->view, demand, reading->ino, reading->off, reading->len,
			    reading->data, &reading->n);
}

int view_check_file(struct ds_view *view, unsigned i, uint64_t off, size_t len_bytes,
		    uint64_t timeout_ms)
{
	struct reading reading = {.view = view, .off = off, .len = len_bytes};
	uint64_t size = view_file_size(i);
	size_t wanted = off < size ? (size_t)DS_MIN((uint64_t)len_bytes, size - off) : 0;
	int r = view_find(view, i, timeout_ms, &reading.ino);

	if (r < 0)
		return r;
	reading.data = malloc(len_bytes + 1);
	r = view_run(view, timeout_ms, call_read, &reading, NULL);
	if (r == 0 && (reading.n != wanted || !view_file_is_right(i, off, reading.data, wanted))) {
		fprintf(stderr, "file %u at %llu: %zu bytes of %zu, or wrong ones\n", i,
			(unsigned long long)off, reading.n, wanted);
		abort();
	}
	free(reading.data);
	return r;
}
