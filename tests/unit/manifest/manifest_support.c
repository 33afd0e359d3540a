#include "manifest_support.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/file.h"
#include "util/mem.h"

#if defined(__SANITIZE_ADDRESS__)
#define HAS_LSAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HAS_LSAN 1
#endif
#endif
#ifdef HAS_LSAN
#include <sanitizer/lsan_interface.h>
#endif

void support_check_leaks(void)
{
#ifdef HAS_LSAN
	if (__lsan_do_recoverable_leak_check())
		abort();
#endif
}

static char directory[64];

const char *support_path(const char *name)
{
	static char paths[8][128];
	static unsigned next;
	char *path = paths[next++ % 8];

	if (!directory[0]) {
		snprintf(directory, sizeof(directory), "%s/dsfs-manifest.XXXXXX",
			 access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
		cr_assert(mkdtemp(directory));
	}
	snprintf(path, 128, "%s/%s", directory, name);
	return path;
}

void support_clean(void)
{
	if (directory[0])
		ds_rmtree_at(AT_FDCWD, directory);
	directory[0] = '\0';
}

void support_copy(const char *from, const char *to)
{
	struct ds_buf buf = DS_BUF_INIT(SIZE_MAX / 2);
	int fd;

	cr_assert_eq(ds_file_read_at(AT_FDCWD, from, &buf), 0);
	fd = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	cr_assert(fd >= 0);
	cr_assert_eq(ds_write_full(fd, buf.data, buf.len_bytes), 0);
	close(fd);
	ds_buf_release(&buf);
}

static int read_page(void *ctx, void *want, uint64_t page, void *ret_page)
{
	struct support_source *source = ctx;

	cr_assert(page < source->source.pages_n);
	atomic_fetch_add(&source->reads_n, 1);
	if (source->fail_code && page == source->fail_page)
		return source->fail_code;
	if (source->is_local && !atomic_load(&source->is_local[page])) {
		struct support_want *wanted = want;

		cr_assert(wanted);
		wanted->page = page;
		wanted->is_set = true;
		atomic_fetch_add(&source->misses_n, 1);
		return -DS_E_NOT_LOCAL;
	}
	memcpy(ret_page, source->data + page * source->source.page_size, source->source.page_size);
	return 0;
}

static const void *mapping(void *ctx)
{
	struct support_source *source = ctx;

	return source->is_mapped ? source->data : NULL;
}

void support_source_load(struct support_source *source, const char *path)
{
	struct ds_manifest_file *file;
	struct ds_page_source plain;

	memset(source, 0, sizeof(*source));
	cr_assert_eq(ds_manifest_file_open(path, &file, &plain), 0);
	source->source = plain;
	source->source.read_page = read_page;
	source->source.mapping = mapping;
	source->source.ctx = source;
	source->data = malloc(plain.page_size * plain.pages_n);
	for (uint64_t i = 0; i < plain.pages_n; i++)
		cr_assert_eq(plain.read_page(plain.ctx, NULL, i,
					     source->data + i * plain.page_size),
			     0);
	ds_manifest_file_close(file);
}

void support_source_release(struct support_source *source)
{
	free(source->data);
	free((void *)(uintptr_t)source->is_local);
	source->data = NULL;
	source->is_local = NULL;
}

void support_source_empty(struct support_source *source)
{
	free((void *)(uintptr_t)source->is_local);
	source->is_local = calloc(source->source.pages_n, 1);
	source->misses_n = 0;
	source->reads_n = 0;
}

void support_fetch(struct support_source *source, struct support_want *want)
{
	cr_assert(want->is_set, "not local, but nothing is wanted");
	cr_assert(!atomic_load(&source->is_local[want->page]));
	atomic_store(&source->is_local[want->page], 1);
	want->is_set = false;
}

static void print_finding(void *ctx, const char *text)
{
	cr_assert(text[0] && !strchr(text, '\n'), "a finding is one line");
	fprintf(stderr, "finding: %s\n", text);
}

uint64_t support_verify(struct ds_manifest *manifest)
{
	uint64_t n = 0;

	cr_assert_eq(ds_manifest_verify(manifest, NULL, print_finding, NULL, &n), 0);
	return n;
}

void support_build_sound(const char *path)
{
	static const char *const names[] = {"file-a", "file-b", "other-a", "symlink",
					    "large",  "empty",	"sub"};
	static const enum ds_entry_type types[] = {DS_ENTRY_FILE,     DS_ENTRY_FILE, DS_ENTRY_FILE,
						   DS_ENTRY_SYMLINK,  DS_ENTRY_FILE, DS_ENTRY_FILE,
						   DS_ENTRY_DIRECTORY};
	static const uint64_t sizes[] = {1000, 2000, 0, 0, DS_MIB(40), 0, 0};
	struct ds_builder *builder;
	struct model model;
	struct ds_entry entry;
	uint64_t id;

	model_init(&model, 5);
	cr_assert_eq(ds_builder_create(path, 4096, &builder), 0);
	model_add(&model, builder, DS_ROOT_ID, "dir", 3, DS_ENTRY_DIRECTORY, 0);
	for (unsigned i = 0; i < DS_ARRAY_SIZE(names); i++) {
		if (DIR + 1 + i == LINK_TO_A) {
			id = model_add_link(&model, builder, DIR, names[i], strlen(names[i]),
					    FILE_A);
		} else {
			id = model_add(&model, builder, DIR, names[i], strlen(names[i]), types[i],
				       sizes[i]);
		}
		cr_assert_eq(id, DIR + 1 + i);
	}
	model_seal(&model, builder);
	cr_assert_eq(ds_builder_get(builder, LARGE, &entry), 0);
	cr_assert_geq(entry.extents_n, 4);
	cr_assert_eq(ds_builder_finish(builder), 0);
	ds_builder_free(builder);
	model_release(&model);
}

void support_tamper(const char *path, const char *text)
{
	sqlite3 *db;
	char *error = NULL;

	cr_assert_eq(sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE, NULL), SQLITE_OK);
	sqlite3_db_config(db, SQLITE_DBCONFIG_WRITABLE_SCHEMA, 1, NULL);
	cr_assert_eq(sqlite3_exec(db, text, NULL, NULL, &error), SQLITE_OK, "%s: %s", text, error);
	cr_assert_eq(sqlite3_close(db), SQLITE_OK);
}
