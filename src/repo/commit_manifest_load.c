#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cache/fetch.h"
#include "repo/commit_batch.h"
#include "repo/commit_manifest.h"
#include "repo/repo.h"
#include "util/error.h"
#include "util/file.h"
#include "util/mem.h"

/* Reading over what is not wanted is cheaper than one more request. */
#define GAP_BYTES_MAX	DS_KIB(64)
#define RANGE_BYTES_MAX DS_MIB(8)
#define WINDOW		16u

void commit_manifest_release(struct commit_manifest *manifest)
{
	for (uint64_t i = 0; manifest->nodes && i < manifest->nodes_n; i++)
		ds_free(manifest->nodes[i]);
	ds_free(manifest->nodes);
	ds_free(manifest->node_refs);
	ds_free(manifest->pages);
	*manifest = (struct commit_manifest){0};
}

/* One chunk by itself, following .moved notes if its pack is gone. */
static int get_chunk(struct ds_repo *repo, struct ds_chunk_ref ref, void *ret_raw,
		     struct ds_diag *reterr_diag)
{
	_ds_cleanup_buf_ struct ds_buf body = DS_BUF_INIT(DS_CHUNK_MAX);
	struct ds_store_req req;
	char key[DS_PACK_KEY_MAX];
	int r;

	for (unsigned i = 0;; i++) {
		req = (struct ds_store_req){
			.op = DS_STORE_GET,
			.key = ds_pack_key(&ref.pack, key),
			.off = ref.stored_off,
			.len_bytes = ref.stored_len_bytes,
			.into = &body,
		};
		r = ds_store_perform(ds_repo_store(repo), &req);
		if ((r != -DS_E_ABSENT && r != -DS_E_DENIED) || i == 1)
			break;
		if (ds_fetch_locate(ds_repo_store(repo), &ref, NULL) < 0)
			break;
	}
	if (r < 0) {
		if (reterr_diag)
			*reterr_diag = req.diag;
		return r;
	}
	r = ds_chunk_decode(body.data, body.len_bytes, ref.raw_len_bytes, &ref.digest, ret_raw);
	return r < 0 ? ds_diag_set(reterr_diag, r, key, "chunk %u", ref.ordinal) : 0;
}

static int load_node(struct ds_repo *repo, struct commit_manifest *manifest, unsigned level,
		     uint64_t i, const struct ds_chunk_ref *ref, struct ds_diag *reterr_diag)
{
	uint64_t number = ds_page_index_node_number(manifest->pages_n, level, i);
	_ds_cleanup_free_ uint8_t *raw = NULL;
	int r;

	if (ref->raw_len_bytes == 0 || ref->raw_len_bytes > DS_PAGE_INDEX_NODE_MAX)
		return -DS_E_MALFORMED;
	raw = ds_malloc(ref->raw_len_bytes);
	if (!raw)
		return -ENOMEM;
	r = get_chunk(repo, *ref, raw, reterr_diag);
	if (r == 0)
		r = ds_page_index_node_parse(raw, ref->raw_len_bytes, &ref->pack, manifest->pages_n,
					     manifest->page_size, level, i,
					     &manifest->nodes[number]);
	if (r == 0)
		manifest->node_refs[number] = *ref;
	return r;
}

/* Room for the pages of a leaf: memory for what was read, not for what a record says. */
static int grow_pages(struct commit_manifest *manifest, uint64_t *capacity_n, uint64_t n)
{
	struct ds_chunk_ref *pages;

	if (n <= *capacity_n)
		return 0;
	n = DS_MIN(DS_MAX(n, 2 * *capacity_n), manifest->pages_n);
	pages = ds_reallocarray(manifest->pages, n, sizeof(*pages));
	if (!pages)
		return -ENOMEM;
	manifest->pages = pages;
	*capacity_n = n;
	return 0;
}

int commit_manifest_load_index(struct ds_repo *repo, const struct ds_record *record,
			       struct commit_manifest *ret_manifest, struct ds_diag *reterr_diag)
{
	struct commit_manifest manifest = {.page_size = record->page_size,
					   .pages_n = record->pages_n};
	unsigned level = ds_page_index_levels_n(record->pages_n) - 1;
	uint64_t capacity_n = 0;
	int r;

	manifest.nodes_n = ds_page_index_nodes_n(manifest.pages_n);
	manifest.nodes = ds_calloc(manifest.nodes_n, sizeof(*manifest.nodes));
	manifest.node_refs = ds_calloc(manifest.nodes_n, sizeof(*manifest.node_refs));
	r = manifest.nodes && manifest.node_refs ? 0 : -ENOMEM;
	if (r == 0)
		r = load_node(repo, &manifest, level, 0, &record->index, reterr_diag);
	/* Level by level from the root: each entry of a node is a node of the level below, or a page. */
	for (; r == 0; level--) {
		uint64_t n = ds_page_index_level_nodes_n(manifest.pages_n, level);

		for (uint64_t i = 0; r == 0 && i < n; i++) {
			const struct ds_page_index_node *node =
				manifest.nodes[ds_page_index_node_number(manifest.pages_n, level,
									 i)];

			if (level == 0)
				r = grow_pages(&manifest, &capacity_n,
					       node->first_page + node->entries_n);
			for (uint32_t e = 0; r == 0 && e < node->entries_n; e++) {
				uint64_t child = i * DS_PAGE_INDEX_FANOUT + e;

				if (level == 0)
					manifest.pages[child] = node->entries[e];
				else
					r = load_node(repo, &manifest, level - 1, child,
						      &node->entries[e], reterr_diag);
			}
		}
		if (level == 0)
			break;
	}
	if (r < 0) {
		commit_manifest_release(&manifest);
		return r;
	}
	*ret_manifest = manifest;
	return 0;
}

struct range { /* chunks of one pack that travel in one GET: places in `order` */
	size_t first, n;
	uint64_t end; /* in the pack: of the chunk that ends last, which need not be the last one */
};

struct load {
	struct ds_repo *repo;
	const struct commit_manifest *manifest;
	uint64_t *order; /* pages by place */
	size_t order_n;
	struct range *ranges;
	size_t ranges_n;
	int fd;
	uint8_t *page;
	struct ds_diag *diag;
};

/* qsort has no context argument in ISO C; glibc's qsort_r has. */
static int compare_places(const void *a, const void *b, void *ctx)
{
	const struct ds_chunk_ref *pages = ctx;
	const struct ds_chunk_ref *x = &pages[*(const uint64_t *)a];
	const struct ds_chunk_ref *y = &pages[*(const uint64_t *)b];
	int r = memcmp(x->pack.bytes, y->pack.bytes, DS_DIGEST_LEN);

	if (r != 0)
		return r;
	return x->stored_off < y->stored_off ? -1 : x->stored_off > y->stored_off;
}

static const struct ds_chunk_ref *ref_at(const struct load *load, size_t i)
{
	return &load->manifest->pages[load->order[i]];
}

/* The longest run from `first` that one GET should fetch. */
static struct range run_of(const struct load *load, size_t first)
{
	const struct ds_chunk_ref *start = ref_at(load, first);
	uint64_t end = start->stored_off + start->stored_len_bytes;
	size_t n = 1;

	for (; first + n < load->order_n; n++) {
		const struct ds_chunk_ref *ref = ref_at(load, first + n);

		if (!ds_digest_equal(&ref->pack, &start->pack) ||
		    ref->stored_off > end + GAP_BYTES_MAX ||
		    ref->stored_off + ref->stored_len_bytes - start->stored_off > RANGE_BYTES_MAX)
			break;
		end = DS_MAX(end, ref->stored_off + ref->stored_len_bytes);
	}
	return (struct range){.first = first, .n = n, .end = end};
}

static int find_ranges(struct load *load)
{
	size_t n = 0;

	/* At most as many as there are pages. */
	load->ranges = ds_calloc(load->order_n + 1, sizeof(*load->ranges));
	if (!load->ranges)
		return -ENOMEM;
	for (size_t i = 0; i < load->order_n; i += load->ranges[n++].n)
		load->ranges[n] = run_of(load, i);
	load->ranges_n = n;
	return 0;
}

static void start_range(void *ctx, struct commit_batch_slot *slot)
{
	const struct load *load = ctx;
	const struct range *range = &load->ranges[slot->idx];
	const struct ds_chunk_ref *start = ref_at(load, range->first);

	ds_buf_init(&slot->buf, RANGE_BYTES_MAX + DS_CHUNK_MAX);
	ds_pack_key(&start->pack, slot->key);
	slot->req.op = DS_STORE_GET;
	slot->req.off = start->stored_off;
	slot->req.len_bytes = range->end - start->stored_off;
	slot->req.into = &slot->buf;
}

static int finish_range(void *ctx, struct commit_batch_slot *slot)
{
	struct load *load = ctx;
	const struct range *range = &load->ranges[slot->idx];
	uint32_t page_size = load->manifest->page_size;
	int r = slot->req.result;
	bool by_one = r == -DS_E_ABSENT || r == -DS_E_DENIED;

	if (r < 0 && !by_one) {
		if (load->diag)
			*load->diag = slot->req.diag;
		return r;
	}
	r = 0;
	for (size_t i = range->first; r == 0 && i < range->first + range->n; i++) {
		const struct ds_chunk_ref *ref = ref_at(load, i);

		if (!by_one)
			r = ds_chunk_decode(slot->buf.data + (ref->stored_off - slot->req.off),
					    ref->stored_len_bytes, ref->raw_len_bytes, &ref->digest,
					    load->page);
		/* Damaged on the way, or moved: this chunk by itself. */
		if (by_one || r < 0)
			r = get_chunk(load->repo, *ref, load->page, load->diag);
		if (r == 0)
			r = ds_pwrite_full(load->fd, load->page, page_size,
					   load->order[i] * page_size);
	}
	return r;
}

int commit_manifest_load_pages(struct ds_repo *repo, const struct commit_manifest *manifest, int fd,
			       const struct commit_watch *watch, struct ds_diag *reterr_diag)
{
	struct load load = {.repo = repo, .manifest = manifest, .fd = fd, .diag = reterr_diag};
	struct commit_batch batch = {.window = WINDOW,
				     .start = start_range,
				     .finish = finish_range,
				     .ctx = &load};
	int r;

	load.order = ds_calloc(manifest->pages_n, sizeof(*load.order));
	load.page = ds_malloc(manifest->page_size);
	r = load.order && load.page ? 0 : -ENOMEM;
	for (uint64_t i = 0; r == 0 && i < manifest->pages_n; i++)
		if (manifest->pages[i].stored_len_bytes)
			load.order[load.order_n++] = i;
	/* Pages of zeros are holes. */
	if (r == 0 && ftruncate(fd, (off_t)(manifest->pages_n * manifest->page_size)) < 0)
		r = -errno;
	if (r == 0) {
		qsort_r(load.order, load.order_n, sizeof(*load.order), compare_places,
			manifest->pages);
		r = find_ranges(&load);
	}
	batch.n = load.ranges_n;
	if (r == 0)
		r = commit_batch_run(ds_repo_store(repo), &batch, watch);
	ds_free(load.ranges);
	ds_free(load.order);
	ds_free(load.page);
	return r;
}
