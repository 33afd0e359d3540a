/*
 * The manifest's chunk index: a tree of nodes that says for every page of the manifest which chunk
 * holds it (schema/README.md, "Index of the manifest"). A node is itself a chunk.
 *
 * Shape: with F = DS_PAGE_INDEX_FANOUT, a leaf (level 0) covers F pages, a node of level k covers
 * F^(k+1); the root is the only node of the lowest level that covers all pages. Node i of a level
 * covers pages [i * F^(k+1), ...). Nodes are numbered level by level from the leaves up (the
 * image's slots).
 *
 * Threads: pure; a parsed node is read-only. No I/O.
 */
#ifndef DS_CODEC_PAGE_INDEX_H
#define DS_CODEC_PAGE_INDEX_H

#include "codec/chunk.h"
#include "util/buf.h"

#define DS_PAGE_INDEX_FANOUT	 512u
#define DS_PAGE_INDEX_LEVELS_MAX 4u	     /* 512^4 pages */
#define DS_PAGE_INDEX_NODE_MAX	 DS_KIB(128) /* raw bytes of a node, at most */
#define DS_MANIFEST_PAGES_MAX	 (UINT64_C(1) << 30)

/* Number of levels (1..), and of nodes in a level / altogether, for a manifest of pages_n (>= 1)
 * pages. */
unsigned ds_page_index_levels_n(uint64_t pages_n);
uint64_t ds_page_index_level_nodes_n(uint64_t pages_n, unsigned level);
uint64_t ds_page_index_nodes_n(uint64_t pages_n);
/* Number (slot) of node `i` of `level`. */
uint64_t ds_page_index_node_number(uint64_t pages_n, unsigned level, uint64_t i);

/* An entry of a node: for a leaf, a page; above, a child node. stored_len 0: a page of zeros. */
struct ds_page_index_node {
	uint32_t level;
	uint32_t entries_n;
	uint64_t first_page;
	struct ds_chunk_ref entries[]; /* pack ids filled in */
};

/* Encodes a node. An entry whose pack id is all zero (and is not zeros) lies in the same pack as
 * the node itself, whose id is not known yet: it gets pack number 0. */
int ds_page_index_node_encode(uint32_t level, uint64_t first_page,
			      const struct ds_chunk_ref *entries, uint32_t entries_n,
			      struct ds_buf *buf);
/* Parses and checks against what the reader expects: level, first page, number of entries that a
 * manifest of pages_n pages has there, raw length of pages, lengths in range. `own_pack` is the
 * pack in the reference by which the node was reached; entries of pack number 0 get it.
 * -DS_E_MALFORMED, -ENOMEM. Free with ds_free. */
int ds_page_index_node_parse(const void *data, size_t len_bytes, const struct ds_digest *own_pack,
			     uint64_t pages_n, uint32_t page_size, uint32_t level, uint64_t i,
			     struct ds_page_index_node **ret_node);

#endif
