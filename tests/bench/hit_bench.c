/*
 * What a hit costs without the kernel: calls of a view as the mount makes them, for what is in the
 * cache and in the page cache. A plain program; not part of the tests.
 *
 *	hit_bench REPO CACHE_DIR [THREADS [SECONDS]]
 *
 * Reads the whole version once, so that all of it is local; then each thread does one kind of call
 * after the other in an order of its own, for so many seconds. One line for each: calls a second,
 * microseconds of CPU for each call, and how many calls had to be made again by who may wait for the
 * disk. Files of more than one chunk are read in pieces besides: here and there, and one after the other.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "repo/repo.h"
#include "repo/refs.h"
#include "repo/view.h"
#include "util/clock.h"
#include "util/mem.h"
#include "util/random.h"

#define THREADS_MAX 64u
#define READ_MAX    DS_MIB(1)
#define PIECE	    DS_KIB(128)

struct file {
	uint64_t ino, parent, size_bytes;
	char *name;
};

struct list {
	struct file *files;
	size_t n, room;
};

static struct list files, dirs, large;
static struct ds_view *view;
static uint64_t seconds = 2;

struct thread {
	pthread_t thread;
	struct ds_prng prng;
	int (*call)(struct thread *thread, struct ds_demand *demand);
	const struct file *file;
	uint8_t *data;
	uint64_t at; /* in a large file */
	uint64_t calls_n, again_n, entries_n;
} __attribute__((aligned(128)));

static void check(int r, const char *what)
{
	if (r < 0) {
		fprintf(stderr, "hit_bench: %s: %s\n", what, ds_strerror(r));
		exit(1);
	}
}

static int add_to(struct list *list, const struct ds_entry *entry)
{
	struct file *file;

	if (list->n == list->room) {
		list->room = list->room * 2 + 64;
		list->files = ds_reallocarray(list->files, list->room, sizeof(list->files[0]));
		if (!list->files)
			return -ENOMEM;
	}
	file = &list->files[list->n++];
	*file = (struct file){.ino = entry->ino,
			      .parent = entry->parent,
			      .size_bytes = entry->size_bytes,
			      .name = ds_strdup(entry->name)};
	return file->name ? 0 : -ENOMEM;
}

static int add_file(void *ctx, const struct ds_entry *entry)
{
	int r = add_to(entry->type == DS_ENTRY_DIRECTORY ? &dirs : &files, entry);

	(void)ctx;
	return r == 0 && entry->size_bytes > DS_CHUNK_MAX ? add_to(&large, entry) : r;
}

static int call_lookup(struct thread *thread, struct ds_demand *demand)
{
	struct ds_entry entry;

	return ds_view_lookup(view, demand, thread->file->parent, thread->file->name,
			      strlen(thread->file->name), &entry);
}

static int call_get(struct thread *thread, struct ds_demand *demand)
{
	struct ds_entry entry;

	return ds_view_get(view, demand, thread->file->ino, &entry);
}

static int read_file(struct thread *thread, struct ds_demand *demand)
{
	uint64_t off = 0;
	size_t n = 1;
	int r = 0;

	for (; r == 0 && n && off < thread->file->size_bytes; off += n)
		r = ds_view_read(view, demand, thread->file->ino, off, READ_MAX, thread->data, &n);
	return r;
}

/* What the kernel asks for when a file is read for the first time. */
static int call_both(struct thread *thread, struct ds_demand *demand)
{
	int r = call_lookup(thread, demand);

	return r < 0 ? r : read_file(thread, demand);
}

static int read_piece(struct thread *thread, struct ds_demand *demand, const struct file *file,
		      uint64_t off, size_t len_bytes)
{
	size_t n;

	return ds_view_read(view, demand, file->ino, off, len_bytes, thread->data, &n);
}

static int read_anywhere(struct thread *thread, struct ds_demand *demand, size_t len_bytes)
{
	const struct file *file = &large.files[ds_prng_below(&thread->prng, large.n)];
	uint64_t pieces_n = file->size_bytes / len_bytes;

	return read_piece(thread, demand, file, ds_prng_below(&thread->prng, pieces_n) * len_bytes,
			  len_bytes);
}

static int call_page(struct thread *thread, struct ds_demand *demand)
{
	return read_anywhere(thread, demand, 4096);
}

static int call_piece(struct thread *thread, struct ds_demand *demand)
{
	return read_anywhere(thread, demand, PIECE);
}

static int call_next(struct thread *thread, struct ds_demand *demand)
{
	const struct file *file = &large.files[0];

	thread->at += PIECE;
	if (thread->at >= file->size_bytes)
		thread->at = 0;
	return read_piece(thread, demand, file, thread->at, PIECE);
}

static int count_entry(void *ctx, const struct ds_entry *entry)
{
	struct thread *thread = ctx;

	(void)entry;
	thread->entries_n++;
	return 0;
}

static int call_list(struct thread *thread, struct ds_demand *demand)
{
	const struct file *dir = &dirs.files[ds_prng_below(&thread->prng, dirs.n)];

	return ds_view_list(view, demand, dir->ino, 0, count_entry, thread);
}

static void *run_thread(void *ctx)
{
	struct thread *thread = ctx;
	uint64_t deadline_ns = ds_deadline_in_ms(seconds * 1000);

	while (ds_mono_ns() < deadline_ns) {
		struct ds_demand demand;
		int r;

		thread->file = &files.files[ds_prng_below(&thread->prng, files.n)];
		ds_demand_init(&demand, view);
		demand.may_check = false;
		r = thread->call(thread, &demand);
		if (r == -DS_E_NOT_LOCAL) {
			demand.may_check = true;
			thread->again_n++;
			r = thread->call(thread, &demand);
		}
		check(r, "a call");
		ds_demand_release(&demand);
		thread->calls_n++;
	}
	return NULL;
}

static double cpu_s(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
	       (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void measure(const char *name, unsigned threads_n,
		    int (*call)(struct thread *thread, struct ds_demand *demand))
{
	static struct thread threads[THREADS_MAX];
	uint64_t calls_n = 0, again_n = 0, entries_n = 0;
	double cpu = cpu_s();

	for (unsigned i = 0; i < threads_n; i++) {
		threads[i] = (struct thread){.prng = {.state = i + 1},
					     .call = call,
					     .data = ds_malloc(READ_MAX)};
		check(threads[i].data ? 0 : -ENOMEM, "memory");
		check(-pthread_create(&threads[i].thread, NULL, run_thread, &threads[i]), "thread");
	}
	for (unsigned i = 0; i < threads_n; i++) {
		pthread_join(threads[i].thread, NULL);
		calls_n += threads[i].calls_n;
		again_n += threads[i].again_n;
		entries_n += threads[i].entries_n;
		ds_free(threads[i].data);
	}
	cpu = cpu_s() - cpu;
	calls_n = DS_MAX(calls_n, 1u);
	printf("%-8s %2u threads: %9.0f /s, %7.2f us of CPU, %6.3f again", name, threads_n,
	       (double)calls_n / (double)seconds, cpu * 1e6 / (double)calls_n,
	       (double)again_n / (double)calls_n);
	if (entries_n)
		printf(", %.0f entries/s, %.2f us each", (double)entries_n / (double)seconds,
		       cpu * 1e6 / (double)entries_n);
	printf("\n");
	fflush(stdout);
}

static void open_view(struct ds_repo *repo, struct ds_cache *cache, struct ds_fetcher *fetcher,
		      const struct ds_record *record, bool blocking)
{
	check(ds_view_open(repo, cache, fetcher, record, blocking, 60000, &view, NULL), "the view");
}

static void read_all(void)
{
	static struct thread thread;

	thread.data = ds_malloc(READ_MAX);
	check(thread.data ? 0 : -ENOMEM, "memory");
	dirs.files = ds_calloc(1, sizeof(dirs.files[0]));
	check(dirs.files ? 0 : -ENOMEM, "memory");
	dirs.n = dirs.room = 1;
	dirs.files[0].ino = DS_ROOT_ID;
	for (size_t i = 0; i < dirs.n; i++)
		check(ds_view_list(view, NULL, dirs.files[i].ino, 0, add_file, NULL), "list");
	check(files.n ? 0 : -ENOENT, "files");
	for (size_t i = 0; i < files.n; i++) {
		thread.file = &files.files[i];
		check(read_file(&thread, NULL), "read");
	}
	ds_free(thread.data);
}

int main(int argc, char *argv[])
{
	unsigned threads_n = argc > 3 ? (unsigned)atoi(argv[3]) : 2;
	struct ds_cache_options options = {.capacity_bytes = DS_GIB(64), .free_floor_percent = 1};
	struct ds_store_options store = {.timeout_ms = 60000};
	struct ds_fetcher *fetcher;
	struct ds_resolved resolved;
	struct ds_record *record;
	struct ds_cache *cache;
	struct ds_repo *repo;

	if (argc < 3 || threads_n < 1 || threads_n > THREADS_MAX) {
		fprintf(stderr, "Usage: hit_bench REPO CACHE_DIR [THREADS [SECONDS]]\n");
		return 2;
	}
	if (argc > 4)
		seconds = (uint64_t)atoi(argv[4]);
	options.dir = argv[2];
	check(ds_cache_open(&options, &cache, NULL), "the cache");
	check(ds_repo_open(argv[1], &store, &repo, NULL), "the repository");
	check(ds_resolve(repo, NULL, &resolved, NULL), "the version");
	check(ds_record_get(repo, &resolved.version, &record, NULL), "the record");
	check(ds_fetcher_new(ds_repo_store(repo), cache, NULL, &fetcher), "the fetcher");
	open_view(repo, cache, fetcher, record, true);
	read_all();
	ds_view_close(view);
	open_view(repo, cache, fetcher, record, false);
	measure("lookup", threads_n, call_lookup);
	measure("get", threads_n, call_get);
	measure("read", threads_n, read_file);
	measure("both", threads_n, call_both);
	measure("list", threads_n, call_list);
	if (large.n) {
		measure("page", threads_n, call_page);
		measure("piece", threads_n, call_piece);
		measure("next", threads_n, call_next);
	}
	ds_view_close(view);
	ds_fetcher_free(fetcher);
	ds_record_free(record);
	ds_repo_unref(repo);
	ds_cache_unref(cache);
	return 0;
}
