/*
 * Advisory index objects, `index/LEVEL/ID`: which digest lies in which pack (schema/README.md,
 * "Advisory index"). Derived data: what is missing or wrong costs duplicates, never a wrong byte,
 * since the pack's table confirms each hit.
 *
 * Threads: pure; a parsed object is read-only and may be shared. No I/O.
 */
#ifndef DS_CODEC_DEDUP_H
#define DS_CODEC_DEDUP_H

#include "codec/digest.h"
#include "util/buf.h"

#define DS_DEDUP_PREFIX_LEN 8
#define DS_DEDUP_MERGE_N    8

struct ds_dedup_hit {
	struct ds_digest pack;
	uint32_t ordinal;
	bool has_version; /* false: left by a writer at work, counts only while the pack is young */
	struct ds_digest version; /* the version it was found for */
};

/* Builder: collects and sorts. -ENOMEM, -DS_E_LIMIT. */
struct ds_dedup_builder;
int ds_dedup_builder_new(struct ds_dedup_builder **ret_builder);
struct ds_dedup_builder *ds_dedup_builder_free(struct ds_dedup_builder *builder);
/* version NULL: none yet. */
int ds_dedup_builder_add(struct ds_dedup_builder *builder, const struct ds_digest *digest,
			 const struct ds_digest *pack, uint32_t ordinal,
			 const struct ds_digest *version);
struct ds_dedup;
/* All entries of an object, for a merge; notes that the result covers it (`id`). */
int ds_dedup_builder_merge(struct ds_dedup_builder *builder, const struct ds_dedup *dedup,
			   const struct ds_digest *id);
/* Notes that the result covers this object. */
int ds_dedup_builder_cover(struct ds_dedup_builder *builder, const struct ds_digest *id);
int ds_dedup_builder_finish(struct ds_dedup_builder *builder, struct ds_buf *buf,
			    struct ds_digest *ret_id);

/* Parsed object; refers to `data`, which must outlive it (an mmap will do). */
int ds_dedup_parse(const void *data, size_t len_bytes, const struct ds_digest *id,
		   struct ds_dedup **ret_dedup);
struct ds_dedup *ds_dedup_free(struct ds_dedup *dedup);
/* Next hit for a digest: start with *cursor = 0; false when there is none. Several may fit, also
 * by accident (8 bytes). */
bool ds_dedup_find(const struct ds_dedup *dedup, const struct ds_digest *digest, size_t *cursor,
		   struct ds_dedup_hit *ret_hit);
/* Ids of the objects that this one covers. */
size_t ds_dedup_covers_n(const struct ds_dedup *dedup);
const struct ds_digest *ds_dedup_covered(const struct ds_dedup *dedup, size_t i);

#endif
