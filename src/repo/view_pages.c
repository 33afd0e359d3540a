/*
 * The manifest's pages and the nodes of their index, through the cache: page p of the manifest is
 * slot p of one image, node n of the index is slot n of another; both are named by the digest of
 * the index's root.
 */
#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "codec/pack.h"
#include "repo/view_internal.h"
#include "util/error.h"
#include "util/mem.h"

#define READ_AHEAD_PAGES \
	15u /* pages after a missing one: rows that are read together were written together */
#define CHECK_AHEAD_PAGES  31u /* half a MiB of 16 KiB pages: some 0.3 ms of SHA-256 */
#define PREFETCH_BYTES_MAX DS_MIB(16)

static struct ds_fetch_target node_target(struct ds_view *view, uint64_t number,
					  const struct ds_chunk_ref *ref)
{
	return (struct ds_fetch_target){
		.image = view->nodes_image,
		.slot = (uint32_t)number,
		.raw_off = number * DS_PAGE_INDEX_NODE_MAX,
		.ref = *ref,
	};
}

/* The parsed node; `ref` says where it lies. */
static int get_node(struct ds_view *view, struct ds_demand *demand, unsigned level, uint64_t i,
		    const struct ds_chunk_ref *ref, const struct ds_page_index_node **ret_node)
{
	uint64_t number = ds_page_index_node_number(view->pages_n, level, i);
	struct ds_page_index_node *node =
		atomic_load_explicit(&view->index.nodes[number], memory_order_acquire);
	struct ds_page_index_node *expected = NULL;
	_ds_cleanup_free_ uint8_t *raw = NULL;
	struct ds_fetch_target target;
	int r;

	if (node) {
		*ret_node = node;
		return 0;
	}
	if (ref->raw_len_bytes == 0 || ref->raw_len_bytes > DS_PAGE_INDEX_NODE_MAX)
		return -DS_E_MALFORMED;
	raw = ds_malloc(ref->raw_len_bytes);
	if (!raw)
		return -ENOMEM;
	target = node_target(view, number, ref);
	r = view_chunk_read(view, demand, &target, 0, ref->raw_len_bytes, raw);
	if (r == 0)
		r = ds_page_index_node_parse(raw, ref->raw_len_bytes, &ref->pack, view->pages_n,
					     view->page_size, level, i, &node);
	if (r < 0)
		return r;
	if (!atomic_compare_exchange_strong(&view->index.nodes[number], &expected, node)) {
		ds_free(node);
		node = expected;
	}
	*ret_node = node;
	return 0;
}

static int get_leaf(struct ds_view *view, struct ds_demand *demand, uint64_t page,
		    const struct ds_page_index_node **ret_leaf)
{
	unsigned level = ds_page_index_levels_n(view->pages_n) - 1;
	const struct ds_page_index_node *node = NULL;
	struct ds_chunk_ref ref = view->index_root;
	uint64_t span = 1;
	int r;

	for (unsigned i = 0; i < level; i++)
		span *= DS_PAGE_INDEX_FANOUT;
	/* `span` is what one entry of a node of `level` covers. */
	for (;; level--, span /= DS_PAGE_INDEX_FANOUT) {
		r = get_node(view, demand, level, page / span / DS_PAGE_INDEX_FANOUT, &ref, &node);
		if (r < 0)
			return r;
		if (level == 0)
			break;
		ref = node->entries[page / span % DS_PAGE_INDEX_FANOUT];
	}
	*ret_leaf = node;
	return 0;
}

static struct ds_fetch_target page_target(struct ds_view *view, uint64_t page,
					  const struct ds_chunk_ref *ref)
{
	return (struct ds_fetch_target){
		.image = view->pages_image,
		.slot = (uint32_t)page,
		.raw_off = page * view->page_size,
		.ref = *ref,
	};
}

int view_page_target(struct ds_view *view, struct ds_demand *demand, uint64_t page,
		     struct ds_fetch_target *ret_target)
{
	const struct ds_page_index_node *leaf = NULL;
	int r;

	demand_clear(demand);
	r = get_leaf(view, demand, page, &leaf);
	if (r == 0)
		*ret_target = page_target(view, page, &leaf->entries[page - leaf->first_page]);
	return r;
}

/*
 * Queues a missing page and what follows it, as far as it lies directly behind it in the pack: one
 * GET brings all, and the demand for the page, which comes next, joins it.
 */
static void read_ahead(struct ds_view *view, const struct ds_page_index_node *leaf, uint64_t page)
{
	struct ds_fetch_target targets[1 + READ_AHEAD_PAGES];
	const struct ds_chunk_ref *last = NULL;
	size_t n = 0;

	for (uint64_t e = page - leaf->first_page;
	     e < leaf->entries_n && n < DS_ARRAY_SIZE(targets); e++) {
		const struct ds_chunk_ref *ref = &leaf->entries[e];

		targets[n] = page_target(view, leaf->first_page + e, ref);
		if (last &&
		    (ref->stored_off != last->stored_off + last->stored_len_bytes ||
		     ref->stored_len_bytes == 0 || !ds_digest_equal(&ref->pack, &last->pack) ||
		     view_chunk_is_local(&targets[n])))
			break;
		last = ref;
		n++;
	}
	if (n > 1)
		ds_fetcher_prefetch(view->fetcher, targets, n);
}

/*
 * What was here before this process is checked once more, which FUSE's threads may not: each such
 * page costs a listing a way to a worker and back. So the one that a listing comes upon takes along
 * those behind it.
 */
static void check_ahead(struct ds_view *view, const struct ds_page_index_node *leaf, uint64_t page)
{
	_ds_cleanup_free_ uint8_t *raw = ds_malloc(view->page_size);
	uint64_t end = DS_MIN(page - leaf->first_page + 1 + CHECK_AHEAD_PAGES, leaf->entries_n);

	for (uint64_t e = page - leaf->first_page + 1; raw && e < end; e++) {
		struct ds_fetch_target target =
			page_target(view, leaf->first_page + e, &leaf->entries[e]);

		if (target.ref.stored_len_bytes && view_chunk_check(&target, raw) < 0)
			return;
	}
}

static int read_page(void *ctx, void *want, uint64_t page, void *ret_page)
{
	const struct ds_page_index_node *leaf = NULL;
	struct ds_demand *demand = want;
	struct ds_view *view = ctx;
	const struct ds_chunk_ref *ref;
	struct ds_fetch_target target;
	bool is_new;
	int r;

	r = get_leaf(view, demand, page, &leaf);
	if (r < 0)
		return r;
	ref = &leaf->entries[page - leaf->first_page];
	if (ref->stored_len_bytes == 0) {
		memset(ret_page, 0, view->page_size);
		return 0;
	}
	target = page_target(view, page, ref);
	if (view->is_blocking && !view_chunk_is_local(&target))
		read_ahead(view, leaf, page);
	is_new = demand && demand->is_listing && demand->may_check && !view_chunk_is_local(&target);
	r = view_chunk_read(view, demand, &target, 0, view->page_size, ret_page);
	if (r == -DS_E_NOT_LOCAL && view_may_check(view, demand))
		read_ahead(view, leaf, page);
	else if (r == 0 && is_new)
		check_ahead(view, leaf, page);
	return r;
}

int view_pages_init(struct ds_view *view)
{
	struct ds_image_layout layout = {.slots_n = (uint32_t)view->pages_n,
					 .size_bytes = view->pages_n * view->page_size,
					 .checks_anew = true,
					 .kind = DS_IMAGE_MANIFEST};
	int r;

	view->index.nodes_n = ds_page_index_nodes_n(view->pages_n);
	view->index.nodes = ds_calloc(view->index.nodes_n, sizeof(view->index.nodes[0]));
	if (!view->index.nodes)
		return -ENOMEM;
	ds_image_name(DS_IMAGE_MANIFEST, &view->index_root.digest, &layout.name);
	r = ds_image_open(view->cache, &layout, &view->pages_image);
	if (r < 0)
		return r;
	layout.kind = DS_IMAGE_INDEX;
	layout.slots_n = (uint32_t)view->index.nodes_n;
	layout.size_bytes = view->index.nodes_n * DS_PAGE_INDEX_NODE_MAX;
	ds_image_name(DS_IMAGE_INDEX, &view->index_root.digest, &layout.name);
	r = ds_image_open(view->cache, &layout, &view->nodes_image);
	view->source = (struct ds_page_source){
		.page_size = view->page_size,
		.pages_n = view->pages_n,
		.read_page = read_page,
		.ctx = view,
	};
	return r;
}

void view_pages_release(struct ds_view *view)
{
	for (uint64_t i = 0; view->index.nodes && i < view->index.nodes_n; i++)
		ds_free(view->index.nodes[i]);
	ds_free(view->index.nodes);
	if (view->pages_image)
		ds_image_unref(view->pages_image);
	if (view->nodes_image)
		ds_image_unref(view->nodes_image);
}

static int stash_one(struct ds_view *view, const struct ds_chunk_ref *ref, const uint8_t *stored)
{
	struct ds_chunk_bytes *bytes;
	int r = ds_chunk_bytes_new(ref->raw_len_bytes, &bytes);

	if (r < 0)
		return r;
	r = ds_chunk_decode(stored, ref->stored_len_bytes, ref->raw_len_bytes, &ref->digest,
			    bytes->data);
	if (r == 0)
		r = ds_fetcher_stash(view->fetcher, &ref->digest, bytes);
	ds_chunk_bytes_unref(bytes);
	return r;
}

/* Whether the index's root is in the cache: then a mount of this version was here before. */
static bool has_root(struct ds_view *view)
{
	unsigned level = ds_page_index_levels_n(view->pages_n) - 1;
	struct ds_fetch_target target =
		node_target(view, ds_page_index_node_number(view->pages_n, level, 0),
			    &view->index_root);
	struct ds_image_slot slot = {
		.slot = target.slot,
		.raw_off = target.raw_off,
		.raw_len_bytes = view->index_root.raw_len_bytes,
		.digest = view->index_root.digest,
	};
	uint8_t first;

	return ds_image_read(view->nodes_image, &slot, 0, 1, true, &first) == 0;
}

void view_pages_prefetch(struct ds_view *view, const struct ds_record *record)
{
	if (!has_root(view))
		ds_view_fetch_listed(view, record);
}

void ds_view_fetch_listed(struct ds_view *view, const struct ds_record *record)
{
	_ds_cleanup_buf_ struct ds_buf body = DS_BUF_INIT(PREFETCH_BYTES_MAX);
	uint64_t start = UINT64_MAX, end = 0;
	char key[DS_PACK_KEY_MAX];
	struct ds_store_req req;

	for (size_t i = 0; i < record->prefetch_n; i++) {
		const struct ds_chunk_ref *ref = &record->prefetch[i];

		start = DS_MIN(start, ref->stored_off);
		end = DS_MAX(end, ref->stored_off + ref->stored_len_bytes);
	}
	if (view->has_listed || record->prefetch_n == 0 || end - start > PREFETCH_BYTES_MAX)
		return;
	view->has_listed = true;
	req = (struct ds_store_req){
		.op = DS_STORE_GET,
		.key = ds_pack_key(&record->prefetch[0].pack, key),
		.off = start,
		.len_bytes = end - start,
		.into = &body,
		.deadline_ns = ds_deadline_in_ms(view->timeout_ms),
		.is_urgent = true,
	};
	/* What does not come now is asked for when it is needed, with its own error. */
	if (ds_store_perform(ds_repo_store(view->repo), &req) < 0)
		return;
	for (size_t i = 0; i < record->prefetch_n; i++) {
		const struct ds_chunk_ref *ref = &record->prefetch[i];

		if (stash_one(view, ref, body.data + (ref->stored_off - start)) < 0)
			return;
	}
}
