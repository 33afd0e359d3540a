/*
 * The packs and images that a view knows. Every read of a file asks here, so that what is known is found
 * without a lock that all threads share, and without hashing a name.
 *
 * INV-1  A struct view_pack is complete before it is published and never changes but for its image, which is
 *        set once, and what is about reading it ahead; it stays until the view is closed. So a pointer to it needs no lock and no reference.
 * INV-2  A slot of the table of packs is a shortcut: whoever finds another pack there asks the map.
 * INV-3  A shortcut to large files (struct nearby) is one thread's alone while it is taken, and holds references.
 */
#include <errno.h>
#include <string.h>

#include "repo/view_internal.h"
#include "util/clock.h"
#include "util/error.h"
#include "util/mem.h"

#define IMAGES_MAX    2048 /* images of large files that a view keeps open */
#define NEARBY_N      256u /* of them, what is found without asking other threads */
#define AHEAD_AGAIN_S 60u  /* from one time that an image is read ahead to the next */

struct view_image {
	struct ds_list node;
	struct ds_digest name;
	uint64_t size_bytes;
	uint32_t slots_n;
	struct ds_image *image;
};

/* The images of large files that were read last on a processor, by their digests. All of them have at most DS_LANES_N times as many
 * besides the IMAGES_MAX. */
struct nearby {
	struct nearby_image {
		struct ds_digest id; /* of the file's contents */
		uint64_t size_bytes;
		uint32_t slots_n;
		struct ds_image *image; /* NULL: none */
	} images[NEARBY_N];
};

/* ---- packs */

static int open_image(struct ds_view *view, enum ds_image_kind kind, const struct ds_digest *id,
		      uint32_t slots_n, uint64_t size_bytes, struct ds_image **ret_image)
{
	struct ds_image_layout layout = {.slots_n = slots_n,
					 .size_bytes = size_bytes,
					 .yields = true,
					 .kind = kind};

	ds_image_name(kind, id, &layout.name);
	return ds_image_open(view->cache, &layout, ret_image);
}

/* From the map, or made with this row and put there. NULL: no memory. */
static struct view_pack *find_pack(struct ds_view *view, uint32_t number,
				   const struct ds_pack_row *row)
{
	struct view_pack *pack, *made = NULL;

	if (row) {
		made = ds_calloc(1, sizeof(*made));
		if (!made)
			return NULL;
		made->row = *row;
	}
	pthread_mutex_lock(&view->mutex);
	pack = ds_map_get(view->locked.packs, &number, sizeof(number));
	if (!pack && made &&
	    ds_map_put(view->locked.packs, &number, sizeof(number), made, NULL) == 0) {
		pack = made;
		made = NULL;
	}
	pthread_mutex_unlock(&view->mutex);
	ds_free(made);
	return pack;
}

int view_pack_get(struct ds_view *view, struct ds_demand *demand, uint32_t number,
		  struct view_pack **ret_pack)
{
	struct view_pack *_Atomic *slot = &view->packs[number % VIEW_PACK_SLOTS];
	struct view_pack *pack = atomic_load_explicit(slot, memory_order_acquire);
	struct ds_pack_row row;
	int r;

	if (!pack || pack->row.number != number) {
		pack = find_pack(view, number, NULL);
		if (!pack) {
			r = ds_manifest_pack(view->manifest, demand, number, &row);
			if (r < 0)
				return r == -ENOENT ? -DS_E_MALFORMED : r;
			pack = find_pack(view, number, &row);
			if (!pack)
				return -ENOMEM;
		}
		atomic_store_explicit(slot, pack, memory_order_release);
	}
	*ret_pack = pack;
	return 0;
}

int view_pack_image(struct ds_view *view, struct view_pack *pack, struct ds_image **ret_image)
{
	struct ds_image *image = atomic_load_explicit(&pack->image, memory_order_acquire);
	struct ds_image *expected = NULL;
	int r;

	if (!image) {
		r = open_image(view, DS_IMAGE_PACK, &pack->row.id, pack->row.chunks_n,
			       pack->row.raw_bytes, &image);
		if (r < 0)
			return r;
		if (!atomic_compare_exchange_strong(&pack->image, &expected, image)) {
			ds_image_unref(image);
			image = expected;
		}
	}
	*ret_image = image;
	return 0;
}

static void run_ahead(struct ds_work_item *item)
{
	struct view_pack *pack = ds_container_of(item, struct view_pack, work);

	if (!pack->view->is_closing)
		ds_image_read_ahead(pack->image, &pack->view->is_closing);
	pack->is_ahead = false;
}

void view_pack_read_ahead(struct ds_view *view, struct view_pack *pack)
{
	struct ds_work *work;
	uint64_t now = ds_mono_ns(), last = pack->ahead_ns;

	/* Where it does not stay for an epoch, reading it over and over would only hurt. */
	if ((last && now < last + AHEAD_AGAIN_S * DS_NS_PER_S) ||
	    atomic_exchange(&pack->is_ahead, true))
		return;
	pack->ahead_ns = now;
	/* One thread: several images at a time are read no faster. */
	pthread_mutex_lock(&view->mutex);
	if (!view->locked.ahead && ds_work_new(1, "dsfs-ahead", &view->locked.ahead) < 0)
		view->locked.ahead = NULL;
	work = view->locked.ahead;
	pthread_mutex_unlock(&view->mutex);
	if (!work) {
		pack->is_ahead = false;
		return;
	}
	pack->view = view;
	pack->work.run = run_ahead;
	ds_work_submit(work, &pack->work, false);
}

static void free_pack(void *value)
{
	struct view_pack *pack = value;

	ds_image_unref(pack->image);
	ds_free(pack);
}

/* ---- large files */

/* Finds the image among the open ones, or opens it; past IMAGES_MAX, lets go of the least recently used. */
static int file_image(struct ds_view *view, const struct ds_entry *entry,
		      struct ds_image **ret_image)
{
	struct ds_image_layout layout = {.slots_n = entry->extents_n,
					 .size_bytes = entry->size_bytes,
					 .yields = true,
					 .kind = DS_IMAGE_FILE};
	struct view_image *found, *oldest = NULL;
	struct ds_image *image = NULL;
	int r;

	ds_image_name(DS_IMAGE_FILE, &entry->digest, &layout.name);
	pthread_mutex_lock(&view->mutex);
	found = ds_map_get(view->locked.images, &layout.name, sizeof(layout.name));
	/* One of another layout, as nearby_get has it, is passed by: the cache knows this file's. */
	if (found && found->size_bytes == layout.size_bytes && found->slots_n == layout.slots_n) {
		ds_list_remove(&found->node);
		ds_list_push_back(&view->locked.lru, &found->node);
		image = ds_image_ref(found->image);
	}
	pthread_mutex_unlock(&view->mutex);
	if (image) {
		*ret_image = image;
		return 0;
	}
	r = ds_image_open(view->cache, &layout, &image);
	if (r < 0)
		return r;
	found = ds_calloc(1, sizeof(*found));
	if (found) {
		found->name = layout.name;
		found->size_bytes = layout.size_bytes;
		found->slots_n = layout.slots_n;
		found->image = ds_image_ref(image);
		pthread_mutex_lock(&view->mutex);
		/* Another thread may have been quicker; the cache gave both the same object (or a lying manifest has said two sizes). */
		if (ds_map_get(view->locked.images, &layout.name, sizeof(layout.name)) ||
		    ds_map_put(view->locked.images, &layout.name, sizeof(layout.name), found,
			       NULL) < 0) {
			oldest = found;
		} else {
			ds_list_push_back(&view->locked.lru, &found->node);
			if (ds_map_count(view->locked.images) > IMAGES_MAX) {
				oldest = ds_list_entry(view->locked.lru.next, struct view_image,
						       node);
				ds_list_remove(&oldest->node);
				ds_map_remove(view->locked.images, &oldest->name,
					      sizeof(oldest->name));
			}
		}
		pthread_mutex_unlock(&view->mutex);
	}
	if (oldest) {
		ds_image_unref(oldest->image);
		ds_free(oldest);
	}
	*ret_image = image;
	return 0;
}

/* A reference of the slot's image, if it is this file's: a lying manifest may say two sizes of one digest. */
static struct ds_image *nearby_get(const struct nearby_image *slot, const struct ds_entry *entry)
{
	if (slot->image && ds_digest_equal(&slot->id, &entry->digest) &&
	    slot->size_bytes == entry->size_bytes && slot->slots_n == entry->extents_n)
		return ds_image_ref(slot->image);
	return NULL;
}

static void nearby_set(struct nearby_image *slot, const struct ds_entry *entry,
		       struct ds_image *image)
{
	ds_image_unref(slot->image);
	*slot = (struct nearby_image){.id = entry->digest,
				      .size_bytes = entry->size_bytes,
				      .slots_n = entry->extents_n,
				      .image = ds_image_ref(image)};
}

static void nearby_free(struct nearby *nearby)
{
	for (unsigned i = 0; nearby && i < NEARBY_N; i++)
		ds_image_unref(nearby->images[i].image);
	ds_free(nearby);
}

int view_file_image(struct ds_view *view, const struct ds_entry *entry, struct ds_image **ret_image)
{
	struct nearby *nearby = ds_lanes_take(&view->nearby);
	struct nearby_image none = {0}, *slot = &none;
	struct ds_image *image;
	int r = 0;

	/* Without memory, only slower. */
	if (!nearby)
		nearby = ds_calloc(1, sizeof(*nearby));
	if (nearby)
		slot = &nearby->images[entry->digest.bytes[0] % NEARBY_N];
	image = nearby_get(slot, entry);
	if (!image) {
		r = file_image(view, entry, &image);
		if (r == 0 && nearby)
			nearby_set(slot, entry, image);
	}
	if (nearby && !ds_lanes_put(&view->nearby, nearby))
		nearby_free(nearby);
	if (r == 0)
		*ret_image = image;
	return r;
}

/* ---- both */

int view_images_init(struct ds_view *view)
{
	int r;

	ds_list_init(&view->locked.lru);
	r = ds_map_new(&view->locked.packs);
	return r < 0 ? r : ds_map_new(&view->locked.images);
}

static void free_view_image(void *value)
{
	struct view_image *entry = value;

	ds_image_unref(entry->image);
	ds_free(entry);
}

void view_images_release(struct ds_view *view)
{
	struct nearby *nearby;

	view->is_closing = true;
	view->locked.ahead = ds_work_free(view->locked.ahead);
	while ((nearby = ds_lanes_take(&view->nearby)))
		nearby_free(nearby);
	ds_map_free(view->locked.images, free_view_image);
	ds_map_free(view->locked.packs, free_pack);
}
