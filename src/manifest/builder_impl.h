/*
 * The builder's inside. Only for builder*.c.
 *
 * INV-1: totals, live counts and the counts of the directory being filled (`pending`) are right in
 * memory at the end of each public function; the file has them after flush and finish.
 * INV-2: a write that failed for another reason than a name that is there makes the builder useless
 * (`failed`): without a journal, nothing can be taken back.
 */
#ifndef DS_MANIFEST_BUILDER_IMPL_H
#define DS_MANIFEST_BUILDER_IMPL_H

#include <assert.h>

#include "manifest/builder.h"
#include "manifest/manifest_row.h"
#include "manifest/manifest_sql.h"
#include "util/map.h"
#include "util/mem.h"

enum builder_write {
	W_ADD = DS_SQL_READS_N, /* all columns of an entry, then link */
	W_SET,			/* id, type .. target */
	W_SET_COUNTS,		/* id, changes of nlink and size */
	W_SET_NLINK,		/* id, nlink */
	W_SET_DIGEST,		/* id, digest, mtime_s, mtime_ns */
	W_SET_MTIME,		/* id, mtime_s, mtime_ns */
	W_SET_LINK,		/* id, link */
	W_PROMOTE,		/* id of a further name, id of the first, whose contents it gets */
	W_REMOVE,		/* id */
	W_EXTENT_ADD,		/* file, off, slot, len, digest .. stored_len */
	W_EXTENT_REMOVE,	/* file, off */
	W_EXTENT_MOVE,		/* file, new file */
	W_XATTR_REMOVE,		/* entry */
	W_XATTR_MOVE,		/* entry, new entry */
	W_PACK_PUT,		/* number .. live */
	W_PACK_REMOVE,		/* number */
	W_META_PUT,		/* key, value */
	W_META_REMOVE,		/* key */
	W_REJECT_PUT,		/* path, reason */
	W_REJECT_CLEAR,
	W_MAX_ID,
	W_ENTRIES_N,
	W_LINKS_FILL,
	W_LINK_PUT,    /* ino, id */
	W_LINK_REMOVE, /* ino, id */
	W_LINK_NEXT,   /* ino, after id */
	W_END,
};

#define SIZE_CLASSES_N 64u

struct builder_totals {
	uint64_t files, directories, symlinks, bytes, rejected;
	uint64_t size_n[SIZE_CLASSES_N];
};

/* A pack in memory: all of them, in order of their numbers. */
struct builder_pack {
	struct ds_pack_row row;
	uint64_t stored_live_n; /* what the file says; 0: no row yet */
	bool is_known;		/* id and sizes were given */
	bool is_changed;	/* beyond its live count */
};

struct ds_builder {
	struct ds_sql sql;
	int failed;
	bool is_finished;
	bool has_links; /* temp.name_of is filled */
	uint64_t next_id;
	struct builder_totals totals, stored_totals;
	/* The directory that names are being added to or removed from; id 0: none. */
	struct {
		uint64_t id;
		int64_t nlink_change, size_change;
	} pending;
	struct builder_pack *packs;
	size_t packs_n, packs_capacity;
	struct ds_map *pack_numbers; /* id -> number */
	struct ds_digest empty_digest;
};

/* builder.c: a statement without rows; a failure is final (INV-2) unless it is -EEXIST. */
int builder_run(struct ds_builder *builder, sqlite3_stmt *stmt);
/* Fails for good. Returns r. */
int builder_give_up(struct ds_builder *builder, int r);
int builder_flush_pending(struct ds_builder *builder);
/* What the file does not show yet of an entry that was read. */
void builder_apply_pending(const struct ds_builder *builder, struct ds_entry *entry);
/* value += change; a parent whose totals cannot be right is refused. */
int builder_count(struct ds_builder *builder, uint64_t *value, int64_t change);

/* builder_packs.c */
int builder_packs_load(struct ds_builder *builder);
void builder_packs_release(struct ds_builder *builder);
int builder_packs_store(struct ds_builder *builder);
/* One reference more or less to a pack, which must exist. */
int builder_pack_count(struct ds_builder *builder, uint32_t number, int change);
int builder_totals_load(struct ds_builder *builder);
int builder_totals_store(struct ds_builder *builder);
/* A name of a file of this size more or less. */
int builder_count_size(struct ds_builder *builder, uint64_t size_bytes, int64_t change);

/* builder_extents.c: makes the rows of a file these; unchanged ones are not written. n 0: none
 * are left. */
int builder_extents_set(struct ds_builder *builder, uint64_t file, bool is_new,
			const struct ds_extent *extents, size_t n);

#endif
