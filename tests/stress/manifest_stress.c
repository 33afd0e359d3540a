/*
 * Threads that look up, list and read one manifest at once while pages come and go. For the thread
 * sanitizer; a plain program, since Criterion does not run under it.
 *
 * usage: manifest_stress [ROUNDS]
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "manifest/builder.h"
#include "manifest/manifest.h"
#include "util/mem.h"
#include "util/random.h"

#define THREADS_N 8u
#define FILES_N	  4000u
#define PAGE_SIZE 4096u

static struct ds_manifest *manifest;
static uint8_t *pages;
static uint64_t pages_n;
static _Atomic uint8_t *is_local;
static unsigned rounds_n = 1500;
static _Atomic unsigned wrong_n, done_n, misses_n;

static void check(int r, const char *what)
{
	if (r < 0) {
		fprintf(stderr, "%s: %s\n", what, ds_strerror(r));
		exit(1);
	}
}

static size_t name_file(char *name, size_t size, unsigned i)
{
	return (size_t)snprintf(name, size, "a-rather-long-name-of-a-file-%06u", i);
}

static int read_page(void *ctx, void *want, uint64_t page, void *ret_page)
{
	if (!atomic_load(&is_local[page])) {
		*(uint64_t *)want = page;
		return -DS_E_NOT_LOCAL;
	}
	memcpy(ret_page, pages + page * PAGE_SIZE, PAGE_SIZE);
	return 0;
}

static void build(void)
{
	char path[] = "/tmp/dsfs-stress.XXXXXX", name[64];
	struct ds_manifest_file *file;
	struct ds_page_source source;
	struct ds_builder *builder;
	uint64_t id;

	if (!mkdtemp(path))
		exit(1);
	snprintf(name, sizeof(name), "%s/m", path);
	check(ds_builder_create(name, PAGE_SIZE, &builder), "create");
	for (unsigned i = 0; i < FILES_N; i++) {
		struct ds_entry entry = {.type = DS_ENTRY_FILE, .parent = DS_ROOT_ID};

		entry.name_len = (uint8_t)name_file(entry.name, sizeof(entry.name), i);
		check(ds_builder_add(builder, &entry, NULL, 0, NULL, 0, &id), "add");
	}
	check(ds_builder_finish(builder), "finish");
	ds_builder_free(builder);
	check(ds_manifest_file_open(name, &file, &source), "open");
	pages_n = source.pages_n;
	pages = ds_malloc(pages_n * PAGE_SIZE);
	is_local = ds_calloc(pages_n, 1);
	if (!pages || !is_local)
		exit(1);
	for (uint64_t i = 0; i < pages_n; i++)
		check(source.read_page(source.ctx, NULL, i, pages + i * PAGE_SIZE), "read");
	ds_manifest_file_close(file);
	unlink(name);
	rmdir(path);
	source.read_page = read_page;
	check(ds_manifest_new(&source, &manifest), "new");
}

struct listing {
	uint64_t last;
	unsigned n;
};

static int take(void *ctx, const struct ds_entry *entry)
{
	struct listing *listing = ctx;

	listing->last = entry->id;
	return ++listing->n % 100 == 0;
}

static int one_call(struct ds_prng *random, uint64_t *want, unsigned i)
{
	struct listing listing = {.last = DS_ENTRY_ID_FIRST + i};
	struct ds_entry entry;
	uint64_t value;
	char name[64];
	int r;

	switch (ds_prng_below(random, 4)) {
	case 0:
		r = ds_manifest_get(manifest, want, DS_ENTRY_ID_FIRST + i, &entry);
		return r < 0 ? r : entry.id != DS_ENTRY_ID_FIRST + i;
	case 1:
		r = ds_manifest_total(manifest, want, "files", &value);
		return r < 0 ? r : value != FILES_N;
	case 2:
		r = ds_manifest_list(manifest, want, DS_ROOT_ID, listing.last, take, &listing);
		return r < 0 ? r : listing.n != DS_MIN(100u, FILES_N - 1 - i);
	default:
		r = ds_manifest_lookup(manifest, want, DS_ROOT_ID, name,
				       name_file(name, sizeof(name), i), &entry);
		return r < 0 ? r : entry.id != DS_ENTRY_ID_FIRST + i;
	}
}

static void *work(void *arg)
{
	struct ds_prng random = {.state = (uint64_t)(uintptr_t)arg};
	uint64_t want = 0;

	for (unsigned k = 0; k < rounds_n; k++) {
		unsigned i = (unsigned)ds_prng_below(&random, FILES_N);
		struct ds_prng same = random;
		int r;

		atomic_store(&is_local[ds_prng_below(&random, pages_n)], 0);
		while ((r = one_call(&same, &want, i)) == -DS_E_NOT_LOCAL) {
			atomic_fetch_add(&misses_n, 1);
			atomic_store(&is_local[want], 1);
			same = random;
		}
		atomic_fetch_add(r ? &wrong_n : &done_n, 1);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[THREADS_N];

	if (argc > 1)
		rounds_n = (unsigned)strtoul(argv[1], NULL, 10);
	build();
	for (unsigned i = 0; i < THREADS_N; i++)
		pthread_create(&threads[i], NULL, work, (void *)(uintptr_t)(i + 1));
	for (unsigned i = 0; i < THREADS_N; i++)
		pthread_join(threads[i], NULL);
	printf("%u calls, %u misses, %u wrong\n", done_n, misses_n, wrong_n);
	ds_manifest_free(manifest);
	ds_free((void *)(uintptr_t)is_local);
	ds_free(pages);
	return wrong_n || !misses_n ? 1 : 0;
}
