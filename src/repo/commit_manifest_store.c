/*
 * Order in the packs: changed pages in page order (as many packs as they need), then changed nodes that are not hot, then what a mount reads
 * first, side by side: hot pages, the leaves above them, upper nodes, the root. Children come before their parents
 * throughout, since a parent names its children's places.
 *
 * INV-1  All nodes that are written lie in the last pack, so that entries of that pack have pack number 0, whose id is not known yet.
 * INV-2  A page or node that the parent version has with the same digest (and for a node: the same entries) is not written again, unless
 *        it is hot.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "repo/commit_manifest.h"
#include "util/error.h"
#include "util/file.h"
#include "util/mem.h"

struct store {
	struct commit_packs *packs;
	const struct commit_manifest *parent;
	struct ds_page_source source;
	uint32_t page_size;
	uint64_t pages_n, nodes_n;
	unsigned levels_n;
	struct ds_chunk_ref *pages, *nodes; /* what is known so far; pack is filled in at the end */
	uint32_t *page_packs,
		*node_packs; /* index of the commit's packs + 1; 0: the parent's, pack is set */
	uint8_t *page_hot, *node_hot;
	uint64_t hot[DS_PREFETCH_MAX];
	size_t hot_n;
	uint8_t *raw, *stored;
};

static uint64_t number_of(const struct store *store, unsigned level, uint64_t i)
{
	return ds_page_index_node_number(store->pages_n, level, i);
}

/* Nodes above a page that are not hot yet. */
static unsigned new_nodes_n(const struct store *store, uint64_t page)
{
	unsigned n = 0;

	for (unsigned level = 0; level < store->levels_n; level++) {
		page /= DS_PAGE_INDEX_FANOUT;
		n += !store->node_hot[number_of(store, level, page)];
	}
	return n;
}

/* As many of the wanted pages, with the nodes above them, as fit into the record's list. */
static int choose_hot(struct store *store)
{
	uint64_t wanted[DS_PREFETCH_MAX];
	size_t wanted_n, used = 0;
	int r = ds_manifest_hot_pages(&store->source, wanted, DS_PREFETCH_MAX, &wanted_n);

	for (size_t i = 0; r == 0 && i < wanted_n; i++) {
		unsigned nodes_n = new_nodes_n(store, wanted[i]);
		uint64_t at = wanted[i];

		if (store->page_hot[at] || used + 1 + nodes_n > DS_PREFETCH_MAX)
			continue;
		used += 1 + nodes_n;
		store->page_hot[at] = 1;
		store->hot[store->hot_n++] = at;
		for (unsigned level = 0; level < store->levels_n; level++) {
			at /= DS_PAGE_INDEX_FANOUT;
			store->node_hot[number_of(store, level, at)] = 1;
		}
	}
	/* The root is needed whatever else fits. */
	store->node_hot[store->nodes_n - 1] = 1;
	return r;
}

static bool is_zeros(const uint8_t *data, size_t len)
{
	return data[0] == 0 && memcmp(data, data + 1, len - 1) == 0;
}

static int write_chunk(struct store *store, const void *raw, uint32_t raw_len,
		       const struct ds_digest *digest, struct ds_chunk_ref *ret_ref,
		       uint32_t *ret_pack)
{
	struct commit_place place;
	uint32_t stored_len = (uint32_t)ds_chunk_encode(raw, raw_len, store->stored);
	int r = commit_packs_add(store->packs, digest, store->stored, stored_len, raw_len, &place);

	if (r < 0)
		return r;
	*ret_ref = (struct ds_chunk_ref){
		.digest = *digest,
		.ordinal = place.ordinal,
		.stored_off = place.stored_off,
		.stored_len_bytes = stored_len,
		.raw_len_bytes = raw_len,
	};
	*ret_pack = place.pack + 1;
	return 0;
}

static int read_page(struct store *store, uint64_t page, struct ds_digest *ret_digest)
{
	int r = store->source.read_page(store->source.ctx, NULL, page, store->raw);

	return r < 0 ? r : ds_digest_of(store->raw, store->page_size, ret_digest);
}

static int store_pages(struct store *store)
{
	const struct commit_manifest *parent = store->parent;
	int r = 0;

	for (uint64_t i = 0; r == 0 && i < store->pages_n; i++) {
		struct ds_digest digest;

		r = read_page(store, i, &digest);
		if (r < 0)
			break;
		if (is_zeros(store->raw, store->page_size)) {
			store->pages[i].raw_len_bytes = store->page_size;
			store->page_hot[i] = 0;
		} else if (store->page_hot[i]) {
			continue;
		} else if (parent && parent->page_size == store->page_size && i < parent->pages_n &&
			   ds_digest_equal(&parent->pages[i].digest, &digest) &&
			   parent->pages[i].stored_len_bytes) {
			store->pages[i] = parent->pages[i];
		} else {
			r = write_chunk(store, store->raw, store->page_size, &digest,
					&store->pages[i], &store->page_packs[i]);
		}
	}
	return r;
}

static int store_hot_pages(struct store *store)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < store->hot_n; i++) {
		uint64_t page = store->hot[i];
		struct ds_digest digest;

		if (!store->page_hot[page])
			continue;
		r = read_page(store, page, &digest);
		if (r == 0)
			r = write_chunk(store, store->raw, store->page_size, &digest,
					&store->pages[page], &store->page_packs[page]);
	}
	return r;
}

/* Entries of a node, with the ids of packs that are closed; the last pack's stay zero (INV-1). */
static int encode_node(struct store *store, unsigned level, uint64_t i, uint32_t last_pack,
		       struct ds_chunk_ref *entries, uint32_t *ret_n, struct ds_buf *buf)
{
	uint64_t first = i * DS_PAGE_INDEX_FANOUT, span = 1;
	uint64_t below_n =
		level ? ds_page_index_level_nodes_n(store->pages_n, level - 1) : store->pages_n;
	uint32_t n = (uint32_t)DS_MIN(below_n - first, (uint64_t)DS_PAGE_INDEX_FANOUT);

	for (uint32_t e = 0; e < n; e++) {
		uint64_t child = level ? number_of(store, level - 1, first + e) : first + e;
		uint32_t pack = level ? store->node_packs[child] : store->page_packs[child];

		entries[e] = level ? store->nodes[child] : store->pages[child];
		if (pack && pack != last_pack)
			entries[e].pack = commit_packs_get(store->packs, pack - 1)->id;
	}
	for (unsigned l = 0; l < level; l++)
		span *= DS_PAGE_INDEX_FANOUT;
	*ret_n = n;
	return ds_page_index_node_encode(level, first * span, entries, n, buf);
}

static bool has_same_entries(const struct ds_page_index_node *node,
			     const struct ds_chunk_ref *entries, uint32_t n)
{
	if (!node || node->entries_n != n)
		return false;
	for (uint32_t e = 0; e < n; e++) {
		const struct ds_chunk_ref *a = &node->entries[e], *b = &entries[e];

		if (!ds_digest_equal(&a->digest, &b->digest) ||
		    !ds_digest_equal(&a->pack, &b->pack) || a->ordinal != b->ordinal ||
		    a->stored_off != b->stored_off || a->stored_len_bytes != b->stored_len_bytes)
			return false;
	}
	return true;
}

/* Number of the parent's node in the same place. */
static bool find_old_node(const struct store *store, unsigned level, uint64_t i,
			  uint64_t *ret_number)
{
	const struct commit_manifest *parent = store->parent;

	if (!parent || parent->page_size != store->page_size ||
	    level >= ds_page_index_levels_n(parent->pages_n) ||
	    i >= ds_page_index_level_nodes_n(parent->pages_n, level))
		return false;
	*ret_number = ds_page_index_node_number(parent->pages_n, level, i);
	return true;
}

static int store_node(struct store *store, unsigned level, uint64_t i, uint32_t *last_pack)
{
	_ds_cleanup_buf_ struct ds_buf buf = DS_BUF_INIT(DS_PAGE_INDEX_NODE_MAX);
	_ds_cleanup_free_ struct ds_chunk_ref *entries =
		ds_calloc(DS_PAGE_INDEX_FANOUT, sizeof(*entries));
	const struct commit_manifest *parent = store->parent;
	uint64_t number = number_of(store, level, i), old;
	struct ds_digest digest;
	uint32_t n;
	int r;

	if (!entries)
		return -ENOMEM;
	r = encode_node(store, level, i, *last_pack, entries, &n, &buf);
	if (r < 0)
		return r;
	/* INV-2 */
	if (!store->node_hot[number] && find_old_node(store, level, i, &old) &&
	    has_same_entries(parent->nodes[old], entries, n)) {
		store->nodes[number] = parent->node_refs[old];
		return 0;
	}
	r = ds_digest_of(buf.data, buf.len_bytes, &digest);
	if (r == 0)
		r = write_chunk(store, buf.data, (uint32_t)buf.len_bytes, &digest,
				&store->nodes[number], &store->node_packs[number]);
	return r;
}

static int store_nodes(struct store *store, bool hot, uint32_t *last_pack)
{
	int r = 0;

	for (unsigned level = 0; level < store->levels_n; level++) {
		uint64_t n = ds_page_index_level_nodes_n(store->pages_n, level);

		for (uint64_t i = 0; r == 0 && i < n; i++)
			if ((store->node_hot[number_of(store, level, i)] != 0) == hot)
				r = store_node(store, level, i, last_pack);
	}
	return r;
}

/* Bytes that the last part may need: all nodes and hot pages, uncompressed. */
static uint64_t tail_bytes(const struct store *store)
{
	return store->nodes_n * DS_PAGE_INDEX_NODE_MAX / 4 + DS_PREFETCH_MAX * store->page_size;
}

static int store_all(struct store *store)
{
	uint32_t last_pack;
	int r;

	r = choose_hot(store);
	if (r == 0)
		r = store_pages(store);
	/* Nodes must not be split over two packs: begin a new one if the open one has no room for them all. */
	if (r == 0)
		r = commit_packs_make_room(store->packs, tail_bytes(store), &last_pack);
	if (r < 0)
		return r;
	last_pack++;
	r = store_nodes(store, false, &last_pack);
	if (r == 0)
		r = store_hot_pages(store);
	if (r == 0)
		r = store_nodes(store, true, &last_pack);
	return r;
}

static void fill_record(struct store *store, struct ds_record *record)
{
	const struct ds_digest *last =
		&commit_packs_get(store->packs, store->node_packs[store->nodes_n - 1] - 1)->id;

	record->schema = DS_MANIFEST_SCHEMA;
	record->page_size = store->page_size;
	record->pages_n = store->pages_n;
	record->prefetch_n = 0;
	for (size_t i = 0; i < store->hot_n; i++)
		if (store->page_hot[store->hot[i]] && record->prefetch_n < DS_PREFETCH_MAX)
			record->prefetch[record->prefetch_n++] = store->pages[store->hot[i]];
	for (uint64_t i = 0; i < store->nodes_n; i++)
		if (store->node_hot[i] && record->prefetch_n < DS_PREFETCH_MAX)
			record->prefetch[record->prefetch_n++] = store->nodes[i];
	for (size_t i = 0; i < record->prefetch_n; i++)
		record->prefetch[i].pack = *last;
	record->index = store->nodes[store->nodes_n - 1];
	record->index.pack = *last;
}

int commit_manifest_store(struct commit_packs *packs, const char *path,
			  const struct commit_manifest *parent, struct ds_record *record,
			  struct ds_diag *reterr_diag)
{
	struct store store = {.packs = packs, .parent = parent};
	struct ds_manifest_file *file = NULL;
	int r = ds_manifest_file_open(path, &file, &store.source);

	if (r < 0)
		return ds_diag_set(reterr_diag, r, path, "the new manifest");
	store.page_size = store.source.page_size;
	store.pages_n = store.source.pages_n;
	store.levels_n = ds_page_index_levels_n(store.pages_n);
	store.nodes_n = ds_page_index_nodes_n(store.pages_n);
	store.pages = ds_calloc(store.pages_n, sizeof(*store.pages));
	store.nodes = ds_calloc(store.nodes_n, sizeof(*store.nodes));
	store.page_packs = ds_calloc(store.pages_n, sizeof(*store.page_packs));
	store.node_packs = ds_calloc(store.nodes_n, sizeof(*store.node_packs));
	store.page_hot = ds_calloc(store.pages_n, 1);
	store.node_hot = ds_calloc(store.nodes_n, 1);
	store.raw = ds_malloc(store.page_size);
	store.stored = ds_malloc(ds_chunk_bound(DS_CHUNK_MAX));
	r = store.pages && store.nodes && store.page_packs && store.node_packs && store.page_hot &&
			    store.node_hot && store.raw && store.stored
		    ? 0
		    : -ENOMEM;
	if (r == 0)
		r = store_all(&store);
	if (r == 0)
		r = commit_packs_flush(packs);
	if (r < 0 && commit_packs_result(packs, NULL) == r)
		commit_packs_result(packs, reterr_diag);
	if (r == 0)
		fill_record(&store, record);
	ds_free(store.pages);
	ds_free(store.nodes);
	ds_free(store.page_packs);
	ds_free(store.node_packs);
	ds_free(store.page_hot);
	ds_free(store.node_hot);
	ds_free(store.raw);
	ds_free(store.stored);
	ds_manifest_file_close(file);
	return r;
}
