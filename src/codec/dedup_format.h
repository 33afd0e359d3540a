/*
 * The layout of an advisory index object, and what its parser keeps; shared by dedup.c and
 * dedup_parse.c only.
 */
#ifndef DS_CODEC_DEDUP_FORMAT_H
#define DS_CODEC_DEDUP_FORMAT_H

#include "codec/dedup.h"

#define DEDUP_MAGIC	  "dsfsdup1"
#define DEDUP_MAGIC_LEN	  8u
#define DEDUP_ENTRY_LEN	  (DS_DEDUP_PREFIX_LEN + 12u)
#define DEDUP_IDS_MAX	  (1u << 22)
#define DEDUP_ENTRIES_MAX (UINT64_C(1) << 30)

struct ds_dedup { /* all pointers lead into the object's bytes */
	const uint8_t *packs, *versions, *covers, *entries;
	uint32_t packs_n, versions_n, covers_n;
	uint64_t entries_n;
};

/* Entry i < entries_n, whose numbers were checked. */
void ds_dedup_hit_at(const struct ds_dedup *dedup, uint64_t i, struct ds_dedup_hit *ret_hit);

#endif
