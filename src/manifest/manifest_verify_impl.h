/*
 * The check's inside. Only for manifest_verify*.c.
 */
#ifndef DS_MANIFEST_MANIFEST_VERIFY_IMPL_H
#define DS_MANIFEST_MANIFEST_VERIFY_IMPL_H

#include "manifest/manifest_impl.h"
#include "util/map.h"

#define SIZE_CLASSES_N 64u

struct pack {
	struct ds_pack_row row;
	uint64_t seen_n;
};

/* A file with more than one name. */
struct names {
	uint32_t nlink;
	uint64_t further_n;
};

struct verify {
	struct ds_sql *sql;
	ds_manifest_finding_fn *fn;
	void *ctx;
	uint64_t findings_n;

	struct pack *packs;
	size_t packs_n, packs_capacity;
	struct ds_map *names;  /* inode -> struct names */
	uint64_t *directories; /* a queue: found, not listed yet */
	size_t directories_first, directories_n, directories_capacity;

	uint64_t rows_n, reached_n, rejected_n;
	int64_t last_id; /* of the rows */
	uint64_t files_n, subdirectories_n, symlinks_n, bytes, size_n[SIZE_CLASSES_N];
	uint64_t extent_files_n, extent_files_seen_n;
};

/* Reports one finding. */
void verify_finding(struct verify *verify, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
/* Turns malformed contents into a finding (then 0); other errors stay. */
int verify_note(struct verify *verify, int r);
int verify_prepare(struct verify *verify, const char *text, sqlite3_stmt **ret_stmt);
/* A reference of a file to a chunk, whose raw bytes end at raw_end in the pack (or at least
 * there). */
void verify_chunk(struct verify *verify, uint64_t file, const struct ds_entry_chunk *chunk,
		  uint64_t raw_end);

/* manifest_verify_tree.c: directories from the root down, after the rows were counted; extents. */
int verify_tree(struct verify *verify);
int verify_extents(struct verify *verify);

#endif
