/*
 * How fast a manifest is built, looked up in and listed. A plain program; not part of the tests.
 *
 *   manifest_bench FILE [rows] [page size]
 *
 * Builds FILE (which must not exist) with rows in directories of 1,000, then measures; prints one
 * line each.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "manifest/builder.h"
#include "manifest/manifest.h"
#include "util/random.h"

#define PER_DIRECTORY 1000u

static void check(int r, const char *what)
{
	if (r < 0) {
		fprintf(stderr, "%s: %s\n", what, ds_strerror(r));
		exit(1);
	}
}

static double seconds_since(uint64_t start_ns)
{
	return (double)(ds_mono_ns() - start_ns) / DS_NS_PER_S;
}

static void name_file(struct ds_entry *entry, uint64_t i)
{
	entry->name_len = (uint8_t)snprintf(entry->name, sizeof(entry->name), "n%08llu.JPEG",
					    (unsigned long long)i);
}

static void name_directory(struct ds_entry *entry, uint64_t i)
{
	entry->name_len = (uint8_t)snprintf(entry->name, sizeof(entry->name), "class-%06llu",
					    (unsigned long long)i);
}

static void build(const char *path, uint64_t rows_n, uint32_t page_size)
{
	uint64_t start = ds_mono_ns(), dir = 0, id;
	struct ds_prng random = {.state = 1};
	struct ds_builder *builder;
	uint32_t pack = 0;
	struct stat st;

	check(ds_builder_create(path, page_size, &builder), "create");
	for (uint64_t i = 0; i < rows_n; i++) {
		struct ds_entry entry = {.type = DS_ENTRY_DIRECTORY, .parent = DS_ROOT_ID};

		if (i % PER_DIRECTORY == 0) {
			name_directory(&entry, i / PER_DIRECTORY);
			check(ds_builder_add(builder, &entry, NULL, 0, NULL, 0, &dir), "add");
		}
		if (i % 1600 == 0) {
			struct ds_digest pack_id;

			memcpy(pack_id.bytes, &i, sizeof(i));
			memset(pack_id.bytes + 8, 1, 24);
			check(ds_builder_add_pack(builder, &pack), "add_pack");
			check(ds_builder_set_pack(builder, pack, &pack_id, DS_MIB(33), 1600,
						  DS_MIB(33)),
			      "set_pack");
		}
		entry.type = DS_ENTRY_FILE;
		entry.parent = dir;
		entry.mtime = (struct ds_time){.s = 1700000000 + (int64_t)i, .ns = 123456789};
		entry.size_bytes = 10000 + i % 20000;
		entry.chunk = (struct ds_entry_chunk){.pack = pack,
						      .ordinal = (uint32_t)(i % 1600),
						      .stored_off = 8 + i % 1600 * 20000,
						      .stored_len_bytes = 9000,
						      .raw_off = i % 1600 * 20000};
		for (unsigned k = 0; k < DS_DIGEST_LEN; k++)
			entry.digest.bytes[k] = (uint8_t)ds_prng_next(&random);
		name_file(&entry, i);
		check(ds_builder_add(builder, &entry, NULL, 0, NULL, 0, &id), "add");
	}
	check(ds_builder_finish(builder), "finish");
	ds_builder_free(builder);
	if (stat(path, &st) < 0)
		exit(1);
	printf("build: %llu rows in %.2f s, %.1f MB\n", (unsigned long long)rows_n,
	       seconds_since(start), (double)st.st_size / 1e6);
}

static void change(const char *path, uint64_t rows_n)
{
	uint64_t start = ds_mono_ns(), changed_n = rows_n / 100;
	struct ds_prng random = {.state = 2};
	struct ds_builder *builder;
	struct ds_entry entry, dir;

	check(ds_builder_open(path, &builder), "open");
	for (uint64_t i = 0; i < changed_n; i++) {
		uint64_t k = ds_prng_below(&random, rows_n);

		name_directory(&dir, k / PER_DIRECTORY);
		check(ds_builder_lookup(builder, DS_ROOT_ID, dir.name, dir.name_len, &dir), "dir");
		name_file(&entry, k);
		check(ds_builder_lookup(builder, dir.ino, entry.name, entry.name_len, &entry),
		      "lookup");
		entry.digest.bytes[0]++;
		check(ds_builder_set(builder, entry.ino, &entry, NULL, 0, NULL, 0), "set");
	}
	check(ds_builder_finish(builder), "finish");
	ds_builder_free(builder);
	printf("change: %llu rows at random in %.2f s\n", (unsigned long long)changed_n,
	       seconds_since(start));
}

static int count(void *ctx, const struct ds_entry *entry)
{
	++*(uint64_t *)ctx;
	return 0;
}

static const void *map;

static const void *mapping(void *ctx)
{
	return map;
}

/* Directories keep the digest of an empty one here: nothing else should be found. */
static void print_finding(void *ctx, const char *text)
{
	if (!strstr(text, "digest"))
		printf("    %s\n", text);
}

static void read_back(const char *path, uint64_t rows_n, bool is_mapped)
{
	const char *how = is_mapped ? "mapped" : "copied";
	struct ds_prng random = {.state = 3};
	struct ds_manifest_file *file;
	struct ds_page_source source;
	struct ds_manifest *manifest;
	struct ds_entry entry, dir;
	uint64_t start, n = 0, found_n;
	const unsigned tries = 300000;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	check(ds_manifest_file_open(path, &file, &source), "open");
	map = mmap(NULL, source.pages_n * source.page_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (is_mapped)
		source.mapping = mapping;
	check(ds_manifest_new(&source, &manifest), "new");
	start = ds_mono_ns();
	check(ds_manifest_check(manifest, NULL, NULL), "check");
	printf("open (%s): %.0f us\n", how, seconds_since(start) * 1e6);

	start = ds_mono_ns();
	for (unsigned i = 0; i < tries; i++) {
		uint64_t k = ds_prng_below(&random, rows_n);
		/* Directories were added each before its files: the id is known without a
		 * look-up. */
		uint64_t parent = DS_ENTRY_ID_FIRST + k / PER_DIRECTORY * (PER_DIRECTORY + 1);

		name_file(&entry, k);
		check(ds_manifest_lookup(manifest, NULL, parent, entry.name, entry.name_len, &dir),
		      "lookup");
	}
	printf("look up at random (%s): %.0f /s\n", how, tries / seconds_since(start));
	start = ds_mono_ns();
	for (unsigned i = 0; i < tries; i++)
		check(ds_manifest_get(manifest, NULL,
				      DS_ENTRY_ID_FIRST + ds_prng_below(&random, rows_n), &entry),
		      "get");
	printf("get at random (%s): %.0f /s\n", how, tries / seconds_since(start));
	start = ds_mono_ns();
	for (uint64_t i = 0; i < rows_n; i += PER_DIRECTORY)
		check(ds_manifest_list(manifest, NULL,
				       DS_ENTRY_ID_FIRST + i / PER_DIRECTORY * (PER_DIRECTORY + 1),
				       0, count, &n),
		      "list");
	printf("list (%s): %llu entries, %.0f /s\n", how, (unsigned long long)n,
	       (double)n / seconds_since(start));
	n = 0;
	start = ds_mono_ns();
	for (uint64_t i = 0; i < rows_n; i += PER_DIRECTORY)
		check(ds_manifest_list_attrs(manifest, NULL,
					     DS_ENTRY_ID_FIRST +
						     i / PER_DIRECTORY * (PER_DIRECTORY + 1),
					     0, count, &n),
		      "list");
	printf("list attributes (%s): %llu entries, %.0f /s\n", how, (unsigned long long)n,
	       (double)n / seconds_since(start));
	if (is_mapped) {
		start = ds_mono_ns();
		check(ds_manifest_verify(manifest, NULL, print_finding, NULL, &found_n), "verify");
		printf("verify: %.2f s\n", seconds_since(start));
	}
	ds_manifest_free(manifest);
	ds_manifest_file_close(file);
	munmap((void *)(uintptr_t)map, source.pages_n * source.page_size);
	close(fd);
}

int main(int argc, char **argv)
{
	uint64_t rows_n = argc > 2 ? strtoull(argv[2], NULL, 10) : 1000000;
	uint32_t page_size = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 10) : 16384;

	if (argc < 2) {
		fprintf(stderr, "usage: manifest_bench FILE [rows] [page size]\n");
		return 2;
	}
	build(argv[1], rows_n, page_size);
	read_back(argv[1], rows_n, false);
	read_back(argv[1], rows_n, true);
	change(argv[1], rows_n);
	return 0;
}
