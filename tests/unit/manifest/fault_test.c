/*
 * Memory that cannot be had: the n-th allocation fails (SQLite's come from the same place), for n =
 * 0, 1, 2 ... until all goes well. Nothing leaks, nothing but -ENOMEM comes out, and the same
 * object works afterwards.
 */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "manifest_support.h"
#include "util/mem.h"

static void end(void)
{
	support_clean();
	support_check_leaks();
}

TestSuite(manifest_fault, .fini = end);

static int ignore_entry(void *ctx, const struct ds_entry *entry)
{
	return 0;
}

static int ignore_pack(void *ctx, const struct ds_pack_row *pack)
{
	return 0;
}

static void ignore_finding(void *ctx, const char *text)
{
}

static int ignore_difference(void *ctx, const char *path, size_t path_len,
			     const struct ds_entry *old, const struct ds_entry *new)
{
	return 0;
}

struct fixture {
	struct support_source source;
	uint64_t large, symlink;
	struct model_name name;
};

static int read_all(const struct fixture *fixture, struct ds_manifest *manifest)
{
	struct ds_buf buf = DS_BUF_INIT(DS_TARGET_MAX);
	struct ds_extent extents[8];
	struct ds_entry entry;
	uint64_t value, pages[16];
	size_t n;
	int r;

	r = ds_manifest_check(manifest, NULL, NULL);
	if (r == 0)
		r = ds_manifest_lookup(manifest, NULL, fixture->name.parent, fixture->name.name,
				       fixture->name.name_len, &entry);
	if (r == 0)
		r = ds_manifest_list(manifest, NULL, DS_ROOT_ID, 0, ignore_entry, NULL);
	if (r == 0)
		r = ds_manifest_list_attrs(manifest, NULL, DS_ROOT_ID, 0, ignore_entry, NULL);
	if (r == 0)
		r = ds_manifest_readlink(manifest, NULL, fixture->symlink, &buf);
	if (r == 0)
		r = ds_manifest_extents(manifest, NULL, fixture->large, 0, UINT64_MAX, extents, 8,
					&n);
	if (r == 0)
		r = ds_manifest_packs(manifest, NULL, 0, ignore_pack, NULL);
	if (r == 0)
		r = ds_manifest_total(manifest, NULL, "files", &value);
	if (r == 0)
		r = ds_manifest_verify(manifest, NULL, ignore_finding, NULL, &value);
	if (r == 0)
		cr_assert_eq(value, 0);
	if (r == 0)
		r = ds_manifest_diff(manifest, manifest, NULL, true, ignore_difference, NULL);
	if (r == 0)
		r = ds_manifest_hot_pages(&fixture->source.source, pages, 16, &n);
	ds_buf_release(&buf);
	return r;
}

Test(manifest_fault, reading_survives_every_failing_allocation, .timeout = 300)
{
	struct fixture fixture = {.large = 0};
	struct ds_builder *builder;
	struct ds_manifest *kept;
	uint64_t faults_n = 0;
	struct model model;

	model_init(&model, 1);
	cr_assert_eq(ds_builder_create(support_path("m"), 4096, &builder), 0);
	model_add(&model, builder, DS_ROOT_ID, "file", 4, DS_ENTRY_FILE, 10);
	fixture.large =
		model_add(&model, builder, DS_ROOT_ID, "large", 5, DS_ENTRY_FILE, DS_MIB(20));
	fixture.symlink = model_add(&model, builder, DS_ROOT_ID, "symlink", 7, DS_ENTRY_SYMLINK, 0);
	model_add_link(&model, builder, DS_ROOT_ID, "other", 5, fixture.large);
	model_seal(&model, builder);
	cr_assert_eq(ds_builder_finish(builder), 0);
	ds_builder_free(builder);
	support_source_load(&fixture.source, support_path("m"));
	fixture.name = model.names[0];
	for (unsigned sticky = 0; sticky < 2; sticky++) {
		cr_assert_eq(ds_manifest_new(&fixture.source.source, &kept), 0);
		for (int64_t n = 0;; n += sticky ? 5 : 1) {
			struct ds_manifest *manifest = NULL;
			uint64_t failed_n;
			int r;

			ds_mem_fail_after(n, (int)sticky);
			r = ds_manifest_new(&fixture.source.source, &manifest);
			if (r == 0)
				r = read_all(&fixture, manifest);
			ds_manifest_free(manifest);
			failed_n = ds_mem_fail_after(-1, 0);
			faults_n += failed_n;
			/* SQLite may do without some of its memory (caches). */
			cr_assert(r == 0 || (r == -ENOMEM && failed_n > 0), "n %lld: %d",
				  (long long)n, r);

			/* The same, with connections that lived through earlier failures. */
			ds_mem_fail_after(n, (int)sticky);
			r = read_all(&fixture, kept);
			ds_mem_fail_after(-1, 0);
			cr_assert(r == 0 || r == -ENOMEM, "n %lld: %d", (long long)n, r);
			if (n % 50 == 0)
				cr_assert_eq(read_all(&fixture, kept), 0);
			if (failed_n == 0)
				break;
		}
		ds_manifest_free(kept);
	}
	cr_assert_gt(faults_n, 500);
	support_source_release(&fixture.source);
	model_release(&model);
}

static int check_nlink(void *ctx, const struct ds_entry *entry)
{
	(void)ctx;
	cr_assert_eq(entry->nlink, 1);
	return 0;
}

static int build_all(const char *path)
{
	struct ds_entry entry = {.type = DS_ENTRY_DIRECTORY, .parent = DS_ROOT_ID};
	struct ds_extent extents[2] = {{.len_bytes = DS_CHUNK_MAX, .is_zeros = true},
				       {.off = DS_CHUNK_MAX, .len_bytes = 10, .slot = 1}};
	struct ds_builder *builder = NULL;
	struct ds_digest id = {.bytes = {1}};
	uint64_t dir, file, symlink, link;
	uint32_t pack;
	int r;

	r = ds_builder_open(path, &builder);
	if (r == 0)
		r = ds_builder_add_pack(builder, &pack);
	if (r == 0)
		r = ds_builder_set_pack(builder, pack, &id, 1000, 10, 1000);
	memcpy(entry.name, "d", 2);
	entry.name_len = 1;
	if (r == 0)
		r = ds_builder_add(builder, &entry, NULL, 0, NULL, 0, &dir);
	if (r == 0) {
		entry.type = DS_ENTRY_FILE;
		entry.parent = dir;
		entry.size_bytes = DS_CHUNK_MAX + 10;
		extents[1].chunk = (struct ds_entry_chunk){.pack = pack,
							   .stored_off = 8,
							   .stored_len_bytes = 10};
		r = ds_builder_add(builder, &entry, extents, 2, NULL, 0, &file);
	}
	if (r == 0)
		r = ds_builder_add_link(builder, dir, "l", 1, file, &link);
	if (r == 0) {
		entry.type = DS_ENTRY_SYMLINK;
		entry.name[0] = 's';
		r = ds_builder_add(builder, &entry, NULL, 0, "target", 6, &symlink);
	}
	if (r == 0)
		r = ds_builder_set_directory(builder, dir, &id, (struct ds_time){.s = 5});
	if (r == 0)
		r = ds_builder_remove(builder, file);
	if (r == 0)
		r = ds_builder_list(builder, dir, check_nlink, NULL);
	if (r == 0)
		r = ds_builder_add_reject(builder, "path", 4, "reason");
	if (r == 0)
		r = ds_builder_finish(builder);
	ds_builder_free(builder);
	return r;
}

Test(manifest_fault, building_survives_every_failing_allocation, .timeout = 300)
{
	uint64_t faults_n = 0;
	struct model model;

	model_build(&model, support_path("parent"), 4096, 31, 100);
	model_release(&model);
	for (int64_t n = 0;; n++) {
		uint64_t failed_n;
		int r;

		support_copy(support_path("parent"), support_path("m"));
		ds_mem_fail_after(n, 0);
		r = build_all(support_path("m"));
		failed_n = ds_mem_fail_after(-1, 0);
		faults_n += failed_n;
		cr_assert(r == 0 || (r == -ENOMEM && failed_n > 0), "n %lld: %d", (long long)n, r);
		if (r == 0) {
			struct support_source source;
			struct ds_manifest *manifest;
			uint64_t value;

			support_source_load(&source, support_path("m"));
			cr_assert_eq(ds_manifest_new(&source.source, &manifest), 0);
			cr_assert_eq(ds_manifest_total(manifest, NULL, "rejected", &value), 0);
			cr_assert_eq(value, 1);
			ds_manifest_free(manifest);
			support_source_release(&source);
		}
		if (failed_n == 0)
			break;
	}
	cr_assert_gt(faults_n, 200);
	for (int64_t n = 0;; n++) {
		struct ds_builder *builder = NULL;
		int r;

		unlink(support_path("new"));
		ds_mem_fail_after(n, 0);
		r = ds_builder_create(support_path("new"), 4096, &builder);
		if (ds_mem_fail_after(-1, 0) == 0)
			n = -2;
		cr_assert(r == 0 || r == -ENOMEM);
		cr_assert((r == 0) == (access(support_path("new"), F_OK) == 0));
		ds_builder_free(builder);
		if (n == -2)
			break;
	}
}

/* The file may not grow beyond a limit: every write past it fails, as on a full disk. */
Test(manifest_fault, E09_a_full_disk_ends_the_builder_for_good)
{
	struct rlimit limit = {.rlim_cur = DS_MIB(2), .rlim_max = RLIM_INFINITY};
	struct ds_entry entry = {.type = DS_ENTRY_SYMLINK, .parent = DS_ROOT_ID};
	char target[4000];
	struct ds_builder *builder;
	uint64_t id;
	unsigned i;
	int r = 0;

	memset(target, 'x', sizeof(target));
	cr_assert_eq(ds_builder_create(support_path("m"), 4096, &builder), 0);
	signal(SIGXFSZ, SIG_IGN);
	cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
	/* More than the page cache holds, so that pages are written before the end. */
	for (i = 0; r == 0 && i < 30000; i++) {
		entry.name_len = (uint8_t)snprintf(entry.name, sizeof(entry.name), "link-%u", i);
		r = ds_builder_add(builder, &entry, NULL, 0, target, sizeof(target), &id);
	}
	cr_assert_eq(r, -EFBIG, "%d after %u", r, i);
	cr_assert_eq(ds_builder_error(builder)->code, -EFBIG);
	cr_assert_neq(ds_builder_error(builder)->sqlite_code, 0);
	cr_assert_eq(ds_builder_add(builder, &entry, NULL, 0, target, 1, &id), -EFBIG);
	cr_assert_eq(ds_builder_lookup(builder, DS_ROOT_ID, "link-1", 6, &entry), -EFBIG);
	cr_assert_eq(ds_builder_finish(builder), -EFBIG);
	ds_builder_free(builder);

	/* Or only when all is written. */
	unlink(support_path("m"));
	cr_assert_eq(ds_builder_create(support_path("m"), 4096, &builder), 0);
	for (i = 0; i < 1000; i++) {
		entry.name_len = (uint8_t)snprintf(entry.name, sizeof(entry.name), "link-%u", i);
		cr_assert_eq(ds_builder_add(builder, &entry, NULL, 0, target, sizeof(target), &id),
			     0);
	}
	r = ds_builder_finish(builder);
	cr_assert_eq(r, -EFBIG, "%d, sqlite %d", r, ds_builder_error(builder)->sqlite_code);
	ds_builder_free(builder);
}
