/*
 * Contents of files: which chunks a range needs, and where their images are.
 */
#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "repo/view_internal.h"
#include "util/clock.h"
#include "util/error.h"
#include "util/mem.h"

/*
 * What is fetched along with a small file that is missed: the names after it, if they lie in the
 * same pack.
 */
#define NEIGHBOURS_MAX	     32u
#define NEIGHBOURS_BYTES_MAX DS_MIB(2)
/* As many misses, the earlier ones halved for each second that has passed since, are no accident. */
#define EPOCH_MISSES 8u
/* Of each large file on a list of what will be read: some 8 MiB. */
#define AHEAD_EXTENTS 8u
#define AHEAD_BATCH   256u
/*
 * What is read past the page cache: whole files, which are not read again soon, and parts of them that are large enough for a
 * disk; smaller parts want the kernel's read-ahead.
 */
#define DIRECT_PART_MIN DS_KIB(128)

struct range {
	uint64_t off;
	size_t len_bytes;
	uint8_t *data;
	bool is_missing;
};

/* What a row says of a chunk, with the pack's id in place of its number. */
static void fill_ref(struct ds_chunk_ref *ref, const struct ds_entry_chunk *chunk,
		     const struct ds_pack_row *pack, const struct ds_digest *digest,
		     uint64_t raw_len_bytes)
{
	*ref = (struct ds_chunk_ref){
		.digest = *digest,
		.pack = pack->id,
		.ordinal = chunk->ordinal,
		.stored_off = chunk->stored_off,
		.stored_len_bytes = chunk->stored_len_bytes,
		.raw_len_bytes = (uint32_t)raw_len_bytes,
	};
}

int view_small_target(const struct ds_entry *entry, const struct ds_pack_row *pack,
		      struct ds_fetch_target *ret_target)
{
	if (entry->chunk.ordinal >= pack->chunks_n || entry->size_bytes > DS_CHUNK_MAX ||
	    entry->chunk.raw_off > pack->raw_bytes ||
	    entry->size_bytes > pack->raw_bytes - entry->chunk.raw_off)
		return -DS_E_MALFORMED;
	*ret_target = (struct ds_fetch_target){.slot = entry->chunk.ordinal,
					       .raw_off = entry->chunk.raw_off};
	fill_ref(&ret_target->ref, &entry->chunk, pack, &entry->digest, entry->size_bytes);
	return 0;
}

struct neighbours {
	const struct ds_pack_row *pack;
	struct ds_image *image;
	struct ds_fetch_target targets[NEIGHBOURS_MAX];
	size_t targets_n;
	uint64_t bytes;
};

static int add_neighbour(void *ctx, const struct ds_entry *entry)
{
	struct neighbours *neighbours = ctx;
	struct ds_fetch_target *target = &neighbours->targets[neighbours->targets_n];

	if (entry->type != DS_ENTRY_FILE || entry->chunk.pack != neighbours->pack->number ||
	    view_small_target(entry, neighbours->pack, target) < 0)
		return 1;
	target->image = neighbours->image;
	if (view_chunk_is_local(target))
		return 1;
	neighbours->bytes += entry->size_bytes;
	if (neighbours->bytes > NEIGHBOURS_BYTES_MAX)
		return 1;
	return ++neighbours->targets_n == NEIGHBOURS_MAX;
}

/*
 * The next names in the directory lie next in the pack: one GET brings them too. Not where the
 * cache cannot keep them.
 */
static void prefetch_neighbours(struct ds_view *view, const struct ds_entry *entry,
				const struct ds_pack_row *pack, struct ds_image *image)
{
	struct neighbours neighbours = {.pack = pack, .image = image};

	if (!view->fits_cache || ds_cache_is_refusing(view->cache))
		return;
	if (ds_manifest_list(view->manifest, NULL, entry->parent, entry->id, add_neighbour,
			     &neighbours) == 0 &&
	    neighbours.targets_n)
		ds_fetcher_prefetch(view->fetcher, neighbours.targets, neighbours.targets_n);
}

bool view_pace_is_epoch(struct view_pace *pace, uint64_t second)
{
	uint64_t last_s = atomic_exchange(&pace->last_s, second);

	if (last_s < second)
		pace->lately_n = second - last_s < 32 ? pace->lately_n >> (second - last_s) : 0;
	return ++pace->lately_n >= EPOCH_MISSES;
}

static bool is_epoch(struct view_pace *pace)
{
	return view_pace_is_epoch(pace, ds_mono_ns() / DS_NS_PER_S);
}

/* What is fetched along with a file that is missed. In an epoch every pack is needed soon, in whatever order: whole packs
 * turn a shuffled first epoch into a sequential one. */
static void fetch_around(struct ds_view *view, const struct ds_entry *entry,
			 const struct ds_pack_row *pack, struct ds_image *image)
{
	if (view->fits_cache && view->runs_ahead && !ds_cache_is_refusing(view->cache) &&
	    is_epoch(&view->missed))
		ds_fetcher_pull(view->fetcher, image, &pack->id);
	else
		prefetch_neighbours(view, entry, pack, image);
}

/* Whether it can go on by copying: not where a part was lent, which is for system calls only (SIGBUS); that begins anew. */
static int stop_lending(struct ds_demand *demand)
{
	if (!demand || !demand->may_be_lent)
		return 0;
	demand->may_be_lent = false;
	if (!demand->lent.image)
		return 0;
	ds_demand_give_back(demand);
	return -EAGAIN;
}

/* Bytes [off, off + len) of a chunk. -EAGAIN: as stop_lending. */
static int read_piece(struct ds_view *view, struct ds_demand *demand,
		      const struct ds_fetch_target *target, uint64_t off, size_t len_bytes,
		      uint8_t *to)
{
	int r;

	if (demand && demand->may_be_lent && view_chunk_lend(demand, target, off, len_bytes))
		return 0;
	r = stop_lending(demand);
	return r < 0 ? r : view_chunk_read(view, demand, target, off, len_bytes, to);
}

/* A file of one chunk, from the image of its pack. */
static int read_small(struct ds_view *view, struct ds_demand *demand, const struct ds_entry *entry,
		      const struct range *range)
{
	struct ds_fetch_target target;
	struct view_pack *pack;
	int r;

	r = view_pack_get(view, demand, entry->chunk.pack, &pack);
	if (r == 0)
		r = view_small_target(entry, &pack->row, &target);
	if (r == 0)
		r = view_pack_image(view, pack, &target.image);
	if (r < 0)
		return r;
	if (demand && demand->direct_room_bytes && !view->fits_memory &&
	    !view_may_check(view, demand) &&
	    (range->len_bytes == entry->size_bytes || range->len_bytes >= DIRECT_PART_MIN) &&
	    view_chunk_direct(demand, &target, range->off, range->len_bytes))
		return -DS_E_NOT_LOCAL;
	/* Before the read that waits, so that they travel with it. */
	if (view->is_blocking && !view_chunk_is_local(&target))
		prefetch_neighbours(view, entry, &pack->row, target.image);
	r = read_piece(view, demand, &target, range->off, range->len_bytes, range->data);
	if (r == -DS_E_NOT_LOCAL && view_may_check(view, demand))
		fetch_around(view, entry, &pack->row, target.image);
	/* A worker, with nothing delivered to it, is asked only for what is not in the page cache, and for the first of an image. */
	if (r == 0 && view->fits_memory && !view->is_blocking && demand && demand->may_check &&
	    ds_list_is_empty(&demand->pins) && is_epoch(&view->from_disk))
		view_pack_read_ahead(view, pack);
	return r;
}

int view_extent_target(struct ds_view *view, struct ds_demand *demand, struct ds_image *image,
		       const struct ds_extent *extent, struct ds_fetch_target *ret_target)
{
	struct view_pack *pack;
	int r;

	if (extent->len_bytes > DS_CHUNK_MAX)
		return -DS_E_MALFORMED;
	r = view_pack_get(view, demand, extent->chunk.pack, &pack);
	if (r < 0)
		return r;
	if (extent->chunk.ordinal >= pack->row.chunks_n)
		return -DS_E_MALFORMED;
	*ret_target = (struct ds_fetch_target){
		.image = image,
		.slot = extent->slot,
		.raw_off = extent->off,
	};
	fill_ref(&ret_target->ref, &extent->chunk, &pack->row, &extent->digest, extent->len_bytes);
	return 0;
}

/* The part of the range that lies in this extent. */
static int read_extent(struct ds_view *view, struct ds_demand *demand, struct ds_image *image,
		       const struct ds_extent *extent, struct range *range)
{
	uint64_t start = DS_MAX(range->off, extent->off);
	uint64_t end = DS_MIN(range->off + range->len_bytes, extent->off + extent->len_bytes);
	uint8_t *to = range->data + (start - range->off);
	struct ds_fetch_target target;
	int r;

	if (extent->is_zeros) {
		ds_image_note_zeros(image, extent->slot);
		r = stop_lending(demand);
		if (r == 0)
			memset(to, 0, end - start);
		return r;
	}
	r = view_extent_target(view, demand, image, extent, &target);
	if (r == 0)
		r = read_piece(view, demand, &target, start - extent->off, end - start, to);
	if (r == -DS_E_NOT_LOCAL && view_may_check(view, demand)) {
		/* The other chunks of the range can be fetched at the same time. */
		range->is_missing = true;
		r = 0;
	}
	return r;
}

size_t view_extents_prefetch(struct ds_view *view, struct ds_demand *demand,
			     const struct ds_entry *entry, struct ds_image *image,
			     const struct ds_extent *extents, size_t n, size_t *ret_taken_n)
{
	struct ds_fetch_target targets[VIEW_EXTENTS_MAX];
	size_t at[VIEW_EXTENTS_MAX], targets_n = 0, taken_n;
	bool is_local;
	int r;

	assert(n <= VIEW_EXTENTS_MAX);
	for (size_t i = 0; i < n; i++) {
		if (extents[i].is_zeros)
			ds_image_note_zeros(image, extents[i].slot);
		if (extents[i].is_zeros || extents[i].slot >= entry->extents_n)
			continue;
		r = view_extent_target(view, demand, image, &extents[i], &targets[targets_n]);
		if (r == 0)
			r = view_chunk_look(view, demand, &targets[targets_n], &is_local);
		if (r == -DS_E_NOT_LOCAL)
			n = i;
		else if (r == 0 && !is_local)
			at[targets_n++] = i;
	}
	taken_n = targets_n ? ds_fetcher_prefetch(view->fetcher, targets, targets_n) : 0;
	*ret_taken_n = taken_n < targets_n ? at[taken_n] : n;
	return targets_n;
}

static int read_large(struct ds_view *view, struct ds_demand *demand, const struct ds_entry *entry,
		      struct range *range)
{
	struct ds_extent extents[VIEW_EXTENTS_MAX];
	uint64_t off = range->off, end = range->off + range->len_bytes;
	struct ds_image *image = NULL;
	size_t n = 0, taken_n;
	int r;

	r = view_file_image(view, entry, &image);
	while (r == 0 && off < end) {
		r = ds_manifest_extents(view->manifest, demand, entry->ino, off, end - off, extents,
					VIEW_EXTENTS_MAX, &n);
		if (r == 0 && (n == 0 || extents[0].off > off))
			r = -DS_E_MALFORMED;
		if (r == 0 && view->is_blocking)
			view_extents_prefetch(view, NULL, entry, image, extents, n, &taken_n);
		for (size_t i = 0; r == 0 && i < n; i++) {
			if (extents[i].slot >= entry->extents_n)
				r = -DS_E_MALFORMED;
			else
				r = read_extent(view, demand, image, &extents[i], range);
			off = extents[i].off + extents[i].len_bytes;
			if (extents[i].off >= range->off && off >= range->off + range->len_bytes &&
			    r == 0)
				view_stream_follow(view, demand, entry, image, &extents[i],
						   !range->is_missing);
		}
	}
	if (image)
		ds_image_unref(image);
	if (r == 0 && range->is_missing)
		r = -DS_E_NOT_LOCAL;
	return r;
}

static int read_contents(struct ds_view *view, struct ds_demand *demand,
			 const struct ds_entry *entry, struct range *range)
{
	if (entry->chunk.pack)
		return read_small(view, demand, entry, range);
	return entry->extents_n ? read_large(view, demand, entry, range) : -DS_E_MALFORMED;
}

int ds_view_read(struct ds_view *view, struct ds_demand *demand, uint64_t ino, uint64_t off,
		 size_t len_bytes, void *ret_data, size_t *ret_n)
{
	struct range range = {.off = off, .data = ret_data};
	bool is_lending = demand && demand->may_be_lent;
	struct ds_entry entry;
	int r = ds_view_get(view, demand, ino, &entry);

	if (r < 0)
		return r;
	if (entry.type != DS_ENTRY_FILE)
		return entry.type == DS_ENTRY_DIRECTORY ? -EISDIR : -EINVAL;
	if (off >= entry.size_bytes || len_bytes == 0) {
		*ret_n = 0;
		return 0;
	}
	range.len_bytes = (size_t)DS_MIN((uint64_t)len_bytes, entry.size_bytes - off);
	r = read_contents(view, demand, &entry, &range);
	/* Only a part could be lent. */
	if (r == -EAGAIN && is_lending)
		r = read_contents(view, demand, &entry, &range);
	if (r == 0)
		*ret_n = range.len_bytes;
	else if (demand)
		ds_demand_give_back(demand);
	assert(r < 0 || !demand || !demand->lent.image ||
	       demand->lent.len_bytes == range.len_bytes);
	return r;
}

/* What is to be fetched ahead, with the references of the images. */
struct ahead {
	struct ds_fetch_target targets[AHEAD_BATCH];
	size_t n;
};

static void send_ahead(struct ds_view *view, struct ahead *ahead)
{
	if (ahead->n)
		ds_fetcher_prefetch(view->fetcher, ahead->targets, ahead->n);
	for (size_t i = 0; i < ahead->n; i++)
		ds_image_unref(ahead->targets[i].image);
	ahead->n = 0;
}

static void add_ahead(struct ds_view *view, struct ahead *ahead,
		      const struct ds_fetch_target *target)
{
	if (view_chunk_is_local(target))
		return;
	ds_image_ref(target->image);
	ahead->targets[ahead->n++] = *target;
	if (ahead->n == AHEAD_BATCH)
		send_ahead(view, ahead);
}

static void ahead_small(struct ds_view *view, const struct ds_entry *entry, struct ahead *ahead)
{
	struct ds_fetch_target target;
	struct view_pack *pack;

	if (view_pack_get(view, NULL, entry->chunk.pack, &pack) == 0 &&
	    view_small_target(entry, &pack->row, &target) == 0 &&
	    view_pack_image(view, pack, &target.image) == 0)
		add_ahead(view, ahead, &target);
}

static void ahead_large(struct ds_view *view, const struct ds_entry *entry, struct ahead *ahead)
{
	struct ds_extent extents[AHEAD_EXTENTS];
	struct ds_fetch_target target;
	struct ds_image *image;
	size_t n;

	if (view_file_image(view, entry, &image) < 0)
		return;
	if (ds_manifest_extents(view->manifest, NULL, entry->ino, 0, entry->size_bytes, extents,
				AHEAD_EXTENTS, &n) == 0)
		for (size_t i = 0; i < n; i++)
			if (!extents[i].is_zeros && extents[i].slot < entry->extents_n &&
			    view_extent_target(view, NULL, image, &extents[i], &target) == 0)
				add_ahead(view, ahead, &target);
	ds_image_unref(image);
}

void ds_view_prefetch(struct ds_view *view, const uint64_t *inodes, size_t inodes_n)
{
	_ds_cleanup_free_ struct ahead *ahead = NULL;
	struct ds_entry entry;

	if (!view->runs_ahead || ds_cache_is_refusing(view->cache))
		return;
	ahead = ds_malloc(sizeof(*ahead));
	if (!ahead)
		return;
	ahead->n = 0;
	for (size_t i = 0; i < inodes_n; i++) {
		if (ds_view_get(view, NULL, inodes[i], &entry) < 0 || entry.type != DS_ENTRY_FILE)
			continue;
		if (entry.chunk.pack)
			ahead_small(view, &entry, ahead);
		else if (entry.extents_n)
			ahead_large(view, &entry, ahead);
	}
	send_ahead(view, ahead);
}

int ds_view_seek(struct ds_view *view, struct ds_demand *demand, uint64_t ino, uint64_t off,
		 bool hole, uint64_t *ret_off)
{
	struct ds_extent extents[VIEW_EXTENTS_MAX];
	struct ds_entry entry;
	size_t n;
	int r = ds_view_get(view, demand, ino, &entry);

	if (r < 0)
		return r;
	if (entry.type != DS_ENTRY_FILE)
		return -EINVAL;
	if (off >= entry.size_bytes)
		return -ENXIO;
	while (entry.extents_n && off < entry.size_bytes) {
		r = ds_manifest_extents(view->manifest, demand, ino, off, entry.size_bytes - off,
					extents, VIEW_EXTENTS_MAX, &n);
		if (r < 0)
			return r;
		if (n == 0 || extents[0].off > off)
			return -DS_E_MALFORMED;
		for (size_t i = 0; i < n; i++) {
			if (extents[i].is_zeros == hole) {
				*ret_off = DS_MAX(off, extents[i].off);
				return 0;
			}
			off = extents[i].off + extents[i].len_bytes;
		}
	}
	/* A file of one chunk is all data; behind every file's end is a hole. */
	if (!hole && off >= entry.size_bytes)
		return -ENXIO;
	*ret_off = hole ? entry.size_bytes : off;
	return 0;
}
