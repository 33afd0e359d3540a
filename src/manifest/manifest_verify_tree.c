/*
 * The passes of the check that compare rows with each other: the tree, and the pieces of large
 * files.
 */
#include "manifest/manifest_verify_impl.h"

#include <string.h>

#include "codec/content.h"
#include "util/str.h"

static int push_directory(struct verify *verify, uint64_t dir)
{
	/* What was listed makes room again. */
	if (verify->directories_first > 4096 &&
	    verify->directories_first > verify->directories_n / 2) {
		verify->directories_n -= verify->directories_first;
		memmove(verify->directories, verify->directories + verify->directories_first,
			verify->directories_n * sizeof(*verify->directories));
		verify->directories_first = 0;
	}
	if (verify->directories_n == verify->directories_capacity) {
		size_t capacity = DS_MAX(verify->directories_capacity * 2, (size_t)1024);
		uint64_t *directories =
			ds_reallocarray(verify->directories, capacity, sizeof(*directories));

		if (!directories)
			return -ENOMEM;
		verify->directories = directories;
		verify->directories_capacity = capacity;
	}
	verify->directories[verify->directories_n++] = dir;
	return 0;
}

struct listing {
	struct verify *verify;
	struct ds_tree_hasher *hasher;
	uint64_t entries_n;
	uint64_t subdirectories_n;
};

static int check_listed(void *ctx, const struct ds_entry *entry)
{
	static const enum ds_content_type types[] = {
		[DS_ENTRY_FILE] = DS_CONTENT_FILE,
		[DS_ENTRY_DIRECTORY] = DS_CONTENT_DIRECTORY,
		[DS_ENTRY_SYMLINK] = DS_CONTENT_SYMLINK,
	};
	struct listing *listing = ctx;

	listing->entries_n++;
	ds_tree_hasher_entry(listing->hasher, types[entry->type], entry->is_executable, entry->name,
			     entry->name_len, &entry->digest);
	if (entry->type != DS_ENTRY_DIRECTORY)
		return 0;
	listing->subdirectories_n++;
	return push_directory(listing->verify, entry->id);
}

static int check_directory(struct verify *verify, uint64_t dir)
{
	struct listing listing = {.verify = verify};
	struct ds_digest digest;
	struct ds_entry entry;
	char name[300];
	int r;

	r = ds_read_get(verify->sql, dir, &entry);
	if (r == -ENOENT)
		r = ds_sql_malformed(verify->sql, "directory %llu is missing",
				     (unsigned long long)dir);
	if (r < 0)
		return verify_note(verify, r);
	r = ds_tree_hasher_new(&listing.hasher);
	if (r < 0)
		return r;
	r = ds_read_list(verify->sql, dir, NULL, 0, check_listed, &listing);
	if (r == 0)
		ds_tree_hasher_finish(listing.hasher, &digest);
	ds_tree_hasher_free(listing.hasher);
	verify->reached_n += listing.entries_n;
	if (r < 0)
		return verify_note(verify, r);
	ds_quote(entry.name, entry.name_len, name, sizeof(name));
	if (listing.entries_n != entry.size_bytes)
		verify_finding(verify, "directory %llu %s: size is %llu, entries are %llu",
			       (unsigned long long)dir, name, (unsigned long long)entry.size_bytes,
			       (unsigned long long)listing.entries_n);
	if (listing.subdirectories_n + 2 != entry.nlink)
		verify_finding(verify, "directory %llu %s: nlink is %u, subdirectories are %llu",
			       (unsigned long long)dir, name, entry.nlink,
			       (unsigned long long)listing.subdirectories_n);
	if (!ds_digest_equal(&digest, &entry.digest))
		verify_finding(verify, "directory %llu %s: digest", (unsigned long long)dir, name);
	return 0;
}

/* Names those that the root does not lead to because of their own parent; what is in a cycle is
 * only counted. */
static int find_orphans(struct verify *verify)
{
	sqlite3_stmt *stmt = NULL;
	int64_t last_id = 0;
	bool has_row;
	int r;

	verify_finding(verify, "%lld entries cannot be reached from the root",
		       (long long)(verify->rows_n - verify->reached_n));
	r = verify_prepare(verify,
			   "SELECT e.id, p.type FROM entry e NOT INDEXED LEFT JOIN entry p"
			   " ON p.id = e.parent WHERE e.id > 1 ORDER BY e.id",
			   &stmt);
	while (r == 0 && (r = ds_sql_step(verify->sql, stmt, &has_row)) == 0 && has_row) {
		int64_t id = sqlite3_column_int64(stmt, 0);

		if (id <= last_id)
			break; /* told by the pass over all rows */
		last_id = id;
		if (sqlite3_column_type(stmt, 1) != SQLITE_INTEGER ||
		    sqlite3_column_int(stmt, 1) != DS_ROW_DIRECTORY)
			verify_finding(verify, "entry %lld: its parent is no directory",
				       (long long)id);
	}
	sqlite3_finalize(stmt);
	return r;
}

int verify_tree(struct verify *verify)
{
	int r = push_directory(verify, DS_ROOT_ID);

	verify->reached_n = 1;
	while (r == 0 && verify->directories_first < verify->directories_n)
		r = check_directory(verify, verify->directories[verify->directories_first++]);
	if (r == 0 && verify->reached_n != verify->rows_n)
		r = find_orphans(verify);
	return verify_note(verify, r);
}

/* The file whose extents are being read. */
struct extents {
	struct ds_entry entry; /* id 0: none, or one that is not worth looking at */
	struct ds_content_hasher *hasher;
	uint64_t end;
	uint32_t n;
	bool is_imported;
};

static void end_file(struct verify *verify, struct extents *extents)
{
	const struct ds_entry *entry = &extents->entry;
	struct ds_digest digest;

	if (!entry->id)
		return;
	verify->extent_files_seen_n++;
	if (extents->n != entry->extents_n || extents->end != entry->size_bytes) {
		verify_finding(verify, "file %llu: extents with a gap or an overlap",
			       (unsigned long long)entry->id);
		return;
	}
	if (extents->is_imported)
		return;
	ds_content_hasher_finish(extents->hasher, &digest);
	if (!ds_digest_equal(&digest, &entry->digest))
		verify_finding(verify, "file %llu: digest", (unsigned long long)entry->id);
}

static int begin_file(struct verify *verify, struct extents *extents, uint64_t file)
{
	int r;

	extents->hasher = ds_content_hasher_free(extents->hasher);
	memset(extents, 0, sizeof(*extents));
	r = ds_read_get(verify->sql, file, &extents->entry);
	if (r == -ENOENT || (r == 0 && extents->entry.extents_n == 0)) {
		extents->entry.id = 0;
		verify_finding(verify, "extents of %llu, which is no large file",
			       (unsigned long long)file);
		return 0;
	}
	if (r < 0) {
		extents->entry.id = 0;
		return verify_note(verify, r);
	}
	return ds_content_hasher_new(extents->entry.size_bytes, &extents->hasher);
}

static int check_extent(struct verify *verify, struct extents *extents, sqlite3_stmt *stmt)
{
	struct ds_extent extent;
	bool is_imported = false;
	int r;

	r = ds_row_extent(verify->sql, stmt, extents->entry.id, &extent);
	if (r == -DS_E_IMPORTED)
		extents->is_imported = is_imported = true;
	else if (r < 0)
		return verify_note(verify, r);
	if (extent.off != extents->end || extent.slot != extents->n ||
	    extent.len_bytes > extents->entry.size_bytes - extents->end) {
		extents->n = UINT32_MAX; /* told once, by end_file */
		return 0;
	}
	extents->end += extent.len_bytes;
	extents->n++;
	if (is_imported)
		return 0;
	ds_content_hasher_extent(extents->hasher, extent.len_bytes,
				 extent.is_zeros ? NULL : &extent.digest);
	if (!extent.is_zeros)
		verify_chunk(verify, extents->entry.id, &extent.chunk, extent.len_bytes);
	return 0;
}

int verify_extents(struct verify *verify)
{
	struct extents extents = {.n = 0};
	sqlite3_stmt *stmt = NULL;
	int64_t file = 0, last_off = 0;
	bool has_row, is_first = true, is_in_order;
	int r;

	r = verify_prepare(verify,
			   "SELECT " DS_ROW_EXTENT_COLUMNS " FROM extent ORDER BY file, off",
			   &stmt);
	while (r == 0 && (r = ds_sql_step(verify->sql, stmt, &has_row)) == 0 && has_row) {
		int64_t owner = sqlite3_column_int64(stmt, DS_ROW_EXTENT_FILE);
		int64_t off = sqlite3_column_int64(stmt, 0);

		if (is_first || owner != file) {
			is_in_order = is_first || owner > file;
			end_file(verify, &extents);
			r = begin_file(verify, &extents, (uint64_t)owner);
		} else {
			is_in_order = off > last_off;
		}
		if (r == 0 && !is_in_order)
			r = ds_sql_malformed(verify->sql, "file %lld: extents out of order",
					     (long long)owner);
		is_first = false;
		file = owner;
		last_off = off;
		if (r == 0 && extents.entry.id)
			r = check_extent(verify, &extents, stmt);
	}
	if (r == 0)
		end_file(verify, &extents);
	ds_content_hasher_free(extents.hasher);
	sqlite3_finalize(stmt);
	if (r == 0 && verify->extent_files_n != verify->extent_files_seen_n)
		verify_finding(verify, "%llu large files, extents of %llu",
			       (unsigned long long)verify->extent_files_n,
			       (unsigned long long)verify->extent_files_seen_n);
	return verify_note(verify, r);
}
