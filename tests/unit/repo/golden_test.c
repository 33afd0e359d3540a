/*
 * The golden repository: written once, by another writer, and read by every later build. What must come out of it stands
 * in tests/golden/expected.json.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "golden.h"
#include "repo/keep.h"
#include "repo/record.h"
#include "repo/refs.h"
#include "repo/view.h"
#include "store_contract.h"
#include "util/file.h"
#include "util/mem.h"
#include "util/str.h"

TestSuite(golden, .fini = test_leak_check, .timeout = 300);

/* One version, open. */
struct opened {
	struct ds_store *store;
	struct ds_repo *repo;
	struct ds_cache *cache;
	struct ds_fetcher *fetcher;
	json_t *expected;
	char dir[64];
};

static void open_golden_of(struct opened *o, const char *name, const char *expected,
			   bool with_cache)
{
	struct ds_cache_options options = {.dir = o->dir, .capacity_bytes = DS_MIB(64)};

	snprintf(o->dir, sizeof(o->dir), "/tmp/dsfs-golden-XXXXXX");
	cr_assert_not_null(mkdtemp(o->dir));
	o->expected = json_load_file(expected, 0, NULL);
	cr_assert_not_null(o->expected);
	o->store = golden_load(name);
	cr_assert_eq(ds_repo_open_store(o->store, &o->repo, NULL), 0);
	if (with_cache)
		cr_assert_eq(ds_cache_open(&options, &o->cache, NULL), 0);
	else
		cr_assert_eq(ds_cache_open_none(&o->cache), 0);
	cr_assert_eq(ds_fetcher_new(o->store, o->cache, NULL, &o->fetcher), 0);
}

static void open_golden(struct opened *o, bool with_cache)
{
	open_golden_of(o, "repo", TEST_GOLDEN "/expected.json", with_cache);
}

static void close_golden(struct opened *o)
{
	ds_fetcher_free(o->fetcher);
	ds_cache_unref(o->cache);
	ds_repo_unref(o->repo);
	ds_store_unref(o->store);
	json_decref(o->expected);
	ds_rmtree_at(AT_FDCWD, o->dir);
}

static const char *text_of(const json_t *object, const char *name)
{
	return json_string_value(json_object_get(object, name));
}

static uint64_t number_of(const json_t *object, const char *name)
{
	return (uint64_t)json_integer_value(json_object_get(object, name));
}

/* Percent-encoded as Python's quote does. */
static size_t decode(const char *text, char *ret_bytes)
{
	size_t n = 0;

	for (; *text; text++) {
		char hex[3] = {0};

		if (*text != '%') {
			ret_bytes[n++] = *text;
			continue;
		}
		memcpy(hex, text + 1, 2);
		ret_bytes[n++] = (char)strtoul(hex, NULL, 16);
		text += 2;
	}
	ret_bytes[n] = '\0';
	return n;
}

static void expect_digest(const struct ds_digest *digest, const char *expected, const char *what)
{
	char text[DS_DIGEST_TEXT_MAX];

	cr_assert_str_eq(ds_digest_format(digest, text), expected, "%s", what);
}

/* The file's bytes, in pieces of an odd size, against their SHA-256. */
static void expect_content(struct ds_view *view, const struct ds_entry *entry, const char *sha256,
			   const char *what)
{
	size_t piece = 777777, n;
	uint8_t *bytes = ds_malloc(piece);
	struct ds_hasher *hasher;
	struct ds_digest digest;
	uint64_t off = 0;

	cr_assert_eq(ds_hasher_new(&hasher), 0);
	do {
		cr_assert_eq(ds_view_read(view, NULL, entry->ino, off, piece, bytes, &n), 0, "%s",
			     what);
		cr_assert_eq(n, DS_MIN(piece, entry->size_bytes - off));
		ds_hasher_update(hasher, bytes, n);
		off += n;
	} while (n > 0);
	ds_hasher_finish(hasher, &digest);
	expect_digest(&digest, sha256, what);
	ds_hasher_free(hasher);
	ds_free(bytes);
}

/* SEEK_HOLE and SEEK_DATA find the zeros, and nothing else. */
static void expect_holes(struct ds_view *view, const struct ds_entry *entry, const json_t *holes,
			 const char *what)
{
	uint64_t at = 0, found;

	for (size_t i = 0; i < json_array_size(holes); i++) {
		const json_t *hole = json_array_get(holes, i);
		uint64_t off = (uint64_t)json_integer_value(json_array_get(hole, 0));
		uint64_t len = (uint64_t)json_integer_value(json_array_get(hole, 1));
		int r;

		cr_assert_eq(ds_view_seek(view, NULL, entry->ino, at, true, &found), 0);
		cr_assert_eq(found, off, "%s: hole", what);
		at = off + len;
		r = ds_view_seek(view, NULL, entry->ino, off, false, &found);
		if (at == entry->size_bytes) {
			cr_assert_eq(r, -ENXIO);
			return;
		}
		cr_assert_eq(r, 0);
		cr_assert_eq(found, at, "%s: data", what);
	}
	cr_assert_eq(ds_view_seek(view, NULL, entry->ino, at, true, &found), 0);
	cr_assert_eq(found, entry->size_bytes, "%s: the end is a hole", what);
}

/* What lies in an imported object is not read, and said to be there. */
static void expect_imported(struct ds_view *view, const struct ds_entry *entry, const char *what)
{
	uint8_t byte;
	size_t n;

	cr_assert_gt(entry->extents_n, 0, "%s", what);
	cr_assert_eq(ds_view_read(view, NULL, entry->ino, 0, 1, &byte, &n), -DS_E_IMPORTED, "%s",
		     what);
}

static void expect_entry(struct ds_view *view, const json_t *item)
{
	static const char *const types[] = {"file", "dir", "symlink"};
	const char *path = text_of(item, "path"), *type = text_of(item, "type");
	const json_t *mtime = json_object_get(item, "mtime");
	struct ds_entry entry, by_ino;
	char bytes[4096], target[4096];

	decode(path, bytes);
	cr_assert_eq(ds_view_walk(view, NULL, bytes, &entry), 0, "%s", path);
	cr_assert_eq(entry.ino, number_of(item, "ino"), "%s", path);
	if (*path)
		cr_assert_eq(entry.id, number_of(item, "id"), "%s", path);
	cr_assert_eq(entry.is_executable, strcmp(type, "exec") == 0, "%s", path);
	cr_assert_str_eq(types[entry.type], entry.is_executable ? "file" : type, "%s", path);
	if (entry.is_executable)
		cr_assert_eq(entry.type, DS_ENTRY_FILE);
	cr_assert_eq(entry.mtime.s, json_integer_value(json_array_get(mtime, 0)), "%s", path);
	cr_assert_eq(entry.mtime.ns, json_integer_value(json_array_get(mtime, 1)), "%s", path);
	cr_assert_eq(entry.size_bytes, number_of(item, "size"), "%s", path);
	if (json_object_get(item, "nlink"))
		cr_assert_eq(entry.nlink, number_of(item, "nlink"), "%s", path);
	expect_digest(&entry.digest, text_of(item, "digest"), path);
	cr_assert_eq(ds_view_get(view, NULL, entry.ino, &by_ino), 0);
	cr_assert_eq(by_ino.size_bytes, entry.size_bytes);
	if (entry.type == DS_ENTRY_SYMLINK) {
		struct ds_buf buf = DS_BUF_INIT(DS_TARGET_MAX);
		size_t n = decode(text_of(item, "target"), target);

		cr_assert_eq(ds_view_readlink(view, NULL, entry.ino, &buf), 0);
		cr_assert_eq(buf.len_bytes, n);
		cr_assert_eq(memcmp(buf.data, target, n), 0);
		ds_buf_release(&buf);
	} else if (json_is_true(json_object_get(item, "imported"))) {
		expect_imported(view, &entry, path);
	} else if (entry.type == DS_ENTRY_FILE) {
		expect_content(view, &entry, text_of(item, "sha256"), path);
		if (json_object_get(item, "holes"))
			expect_holes(view, &entry, json_object_get(item, "holes"), path);
	}
}

/* Names as a listing gives them, depth first. */
struct names {
	struct ds_view *view;
	struct ds_buf paths; /* percent-encoded, one a line */
	char prefix[4096];
};

static void list_dir(struct names *names, uint64_t dir);

static int list_entry(void *ctx, const struct ds_entry *entry)
{
	struct names *names = ctx;
	size_t len = strlen(names->prefix);
	char *encoded;

	snprintf(names->prefix + len, sizeof(names->prefix) - len, "%s%.*s", len ? "/" : "",
		 entry->name_len, entry->name);
	encoded = ds_percent_encode(names->prefix, strlen(names->prefix), true);
	cr_assert_eq(ds_buf_appendf(&names->paths, "%s\n", encoded), 0);
	ds_free(encoded);
	if (entry->type == DS_ENTRY_DIRECTORY)
		list_dir(names, entry->id);
	names->prefix[len] = '\0';
	return 0;
}

static void list_dir(struct names *names, uint64_t dir)
{
	cr_assert_eq(ds_view_list(names->view, NULL, dir, 0, list_entry, names), 0);
}

static void expect_listing(struct ds_view *view, const json_t *entries)
{
	struct names names = {.view = view, .paths = DS_BUF_INIT(1 << 20)};
	struct ds_buf expected = DS_BUF_INIT(1 << 20);

	list_dir(&names, DS_ROOT_ID);
	for (size_t i = 1; i < json_array_size(entries); i++) {
		char bytes[4096], *encoded;
		size_t n = decode(text_of(json_array_get(entries, i), "path"), bytes);

		encoded = ds_percent_encode(bytes, n, true);
		cr_assert_eq(ds_buf_appendf(&expected, "%s\n", encoded), 0);
		ds_free(encoded);
	}
	cr_assert_str_eq(ds_buf_str(&names.paths), ds_buf_str(&expected));
	ds_buf_release(&names.paths);
	ds_buf_release(&expected);
}

static int expect_reject(void *ctx, const char *path, size_t path_len, const char *reason)
{
	json_t *rejects = ctx;

	for (size_t i = 0; i < json_array_size(rejects); i++) {
		const json_t *reject = json_array_get(rejects, i);
		char bytes[4096];
		size_t n = decode(json_string_value(json_array_get(reject, 0)), bytes);

		if (n != path_len || memcmp(bytes, path, n) != 0)
			continue;
		cr_assert_str_eq(json_string_value(json_array_get(reject, 1)), reason);
		json_array_remove(rejects, i);
		return 0;
	}
	cr_assert_fail("no such reject: %.*s", (int)path_len, path);
	return 0;
}

/* is_unread: parts of it were never read, so that nobody knows its fingerprint. */
static void expect_version(struct opened *o, const char *id_text, const json_t *version,
			   bool is_unread)
{
	const json_t *entries = json_object_get(version, "entries");
	const json_t *totals = json_object_get(version, "totals");
	const char *root = text_of(json_array_get(entries, 0), "digest");
	struct ds_record *record;
	struct ds_digest id;
	struct ds_view *view;

	cr_assert_eq(ds_digest_parse(id_text, &id), 0);
	cr_assert_eq(ds_record_get(o->repo, &id, &record, NULL), 0);
	cr_assert_str_eq(record->message, text_of(version, "message"));
	cr_assert_eq(record->totals.files_n, number_of(totals, "files"));
	cr_assert_eq(record->totals.directories_n, number_of(totals, "directories"));
	cr_assert_eq(record->totals.symlinks_n, number_of(totals, "symlinks"));
	cr_assert_eq(record->totals.bytes, number_of(totals, "bytes"));
	cr_assert_eq(record->totals.rejected_n, number_of(totals, "rejected"));
	cr_assert_eq(record->has_fingerprint, !is_unread);
	if (!is_unread)
		expect_digest(&record->fingerprint, root, "fingerprint");
	cr_assert_eq(ds_view_open(o->repo, o->cache, o->fetcher, record, true, 60000, &view, NULL),
		     0);
	expect_listing(view, entries);
	for (size_t i = 0; i < json_array_size(entries); i++)
		expect_entry(view, json_array_get(entries, i));
	if (json_object_get(version, "rejects")) {
		json_t *rejects = json_deep_copy(json_object_get(version, "rejects"));

		cr_assert_eq(ds_manifest_rejects(ds_view_manifest(view), NULL, expect_reject,
						 rejects),
			     0);
		cr_assert_eq(json_array_size(rejects), 0);
		json_decref(rejects);
	}
	ds_view_close(view);
	ds_record_free(record);
}

static void expect_versions(bool with_cache)
{
	struct opened o = {0};
	const char *id;
	json_t *version;

	open_golden(&o, with_cache);
	cr_assert_eq(json_object_size(json_object_get(o.expected, "versions")), 3);
	json_object_foreach (json_object_get(o.expected, "versions"), id, version)
		expect_version(&o, id, version, false);
	close_golden(&o);
}

Test(golden, every_version_is_read_through_a_cache)
{
	expect_versions(true);
}

Test(golden, every_version_is_read_without_a_disk)
{
	expect_versions(false);
}

Test(golden, what_is_imported_is_listed_and_not_read)
{
	struct ds_entry entry;
	struct opened o = {0};
	struct ds_digest id;
	struct ds_record *record;
	struct ds_view *view;
	const char *id_text;
	json_t *version;
	char bytes[4];
	size_t n;

	open_golden_of(&o, "imported", TEST_GOLDEN "/expected_imported.json", true);
	json_object_foreach (json_object_get(o.expected, "versions"), id_text, version)
		expect_version(&o, id_text, version, true);
	/* Of a file in two places, the part in a pack, and zeros. */
	cr_assert_eq(ds_resolve(o.repo, "main", &(struct ds_resolved){0}, NULL), 0);
	id_text = json_object_iter_key(json_object_iter(json_object_get(o.expected, "versions")));
	cr_assert_eq(ds_digest_parse(id_text, &id), 0);
	cr_assert_eq(ds_record_get(o.repo, &id, &record, NULL), 0);
	cr_assert_eq(ds_view_open(o.repo, o.cache, o.fetcher, record, true, 60000, &view, NULL), 0);
	cr_assert_eq(ds_view_walk(view, NULL, "mixed", &entry), 0);
	cr_assert_eq(ds_view_read(view, NULL, entry.ino, entry.size_bytes - 4, 4, bytes, &n), 0);
	cr_assert_eq(memcmp(bytes, "\0end", 4), 0);
	cr_assert_eq(ds_view_walk(view, NULL, "large", &entry), 0);
	cr_assert_eq(ds_view_read(view, NULL, entry.ino, entry.size_bytes - 4, 1, bytes, &n), 0);
	cr_assert_eq(bytes[0], 0);
	ds_view_close(view);
	ds_record_free(record);
	close_golden(&o);
}

Test(golden, every_selector_finds_what_it_should)
{
	struct opened o = {0};
	json_t *item;
	size_t i;

	open_golden(&o, false);
	json_array_foreach (json_object_get(o.expected, "selectors"), i, item) {
		const char *selector = text_of(item, "selector");
		struct ds_resolved resolved;
		int r = ds_resolve(o.repo, selector, &resolved, NULL);

		if (text_of(item, "error")) {
			cr_assert_str_eq(ds_error_name(r), text_of(item, "error"), "%s", selector);
			continue;
		}
		cr_assert_eq(r, 0, "%s: %s", selector, ds_strerror(r));
		expect_digest(&resolved.version, text_of(item, "version"), selector);
		cr_assert_eq(resolved.entry.number, number_of(item, "number"), "%s", selector);
	}
	close_golden(&o);
}

Test(golden, policy_and_logs_are_read)
{
	struct opened o = {0};
	struct ds_policy_entry *policies;
	struct ds_keep *keep;
	const char *id_text;
	json_t *version;
	size_t n;

	open_golden(&o, false);
	cr_assert_eq(ds_policy_load(o.repo, &policies, &n, NULL), 0);
	cr_assert_eq(n, 2);
	cr_assert(!policies[0].has_keep_entries && !policies[0].has_keep_s);
	cr_assert_eq(policies[0].grace_s, 1209600);
	cr_assert(policies[1].has_keep_entries && policies[1].has_keep_s);
	cr_assert_eq(policies[1].keep_entries, 100);
	ds_free(policies);
	cr_assert_eq(ds_keep_load(o.repo, &keep, NULL, NULL), 0);
	json_object_foreach (json_object_get(o.expected, "versions"), id_text, version) {
		struct ds_digest id;

		cr_assert_eq(ds_digest_parse(id_text, &id), 0);
		cr_assert(ds_keep_is_base(keep, &id));
	}
	ds_keep_free(keep);
	close_golden(&o);
}

Test(golden, unknown_fields_of_a_record_are_kept)
{
	struct opened o = {0};
	struct ds_resolved resolved;
	struct ds_record *record;
	const json_t *transform;

	open_golden(&o, false);
	cr_assert_eq(ds_resolve(o.repo, "v1.0", &resolved, NULL), 0);
	cr_assert_eq(ds_record_get(o.repo, &resolved.version, &record, NULL), 0);
	cr_assert(json_is_array(json_object_get(record->json, "later")));
	transform = json_object_get(record->json, "transform");
	cr_assert_str_eq(text_of(transform, "command"), "make");
	ds_record_free(record);
	close_golden(&o);
}

Test(golden, a_newer_format_is_refused_with_the_release_that_reads_it)
{
	struct ds_store *store = golden_load("newer");
	struct ds_diag diag = {0};
	struct ds_repo *repo;

	cr_assert_eq(ds_repo_open_store(store, &repo, &diag), -DS_E_TOO_NEW);
	cr_assert(strstr(diag.detail, "dsfs 2.3.4"), "%s", diag.detail);
	ds_store_unref(store);
}

Test(golden, a_newer_record_is_refused_with_the_release_that_reads_it)
{
	struct ds_store *store = golden_load("newer_record");
	struct ds_resolved resolved;
	struct ds_record *record;
	struct ds_diag diag = {0};
	struct ds_repo *repo;

	cr_assert_eq(ds_repo_open_store(store, &repo, NULL), 0);
	cr_assert_eq(ds_resolve(repo, NULL, &resolved, NULL), 0);
	cr_assert_eq(ds_record_get(repo, &resolved.version, &record, &diag), -DS_E_TOO_NEW);
	cr_assert(strstr(diag.detail, "dsfs 2.3.4"), "%s", diag.detail);
	ds_repo_unref(repo);
	ds_store_unref(store);
}
