/*
 * What the parts of the view share (view*.c only).
 */
#ifndef DS_REPO_VIEW_INTERNAL_H
#define DS_REPO_VIEW_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "codec/page_index.h"
#include "repo/view.h"
#include "util/map.h"
#include "util/per_cpu.h"
#include "util/work.h"

#define VIEW_RECENT_N	  64 /* chunks that a blocking view keeps in memory */
#define VIEW_RECENT_BYTES DS_MIB(32)
#define VIEW_PACK_SLOTS	  4096u /* packs that are found without a lock: 128 GiB of 32 MiB each */
#define VIEW_STREAMS_N	  32u
#define VIEW_EXTENTS_MAX  32u /* at once */
/* Of what the fetcher has in flight at most: a cache of this size does not evict them unread. */
#define VIEW_AHEAD_BUDGETS_MIN 2u

/* A pack of the manifest; never freed while the view is open. */
struct view_pack {
	struct ds_pack_row row;
	struct ds_image *_Atomic image; /* NULL: not wanted yet */
	_Atomic bool is_ahead;		/* its image is being read ahead */
	_Atomic uint64_t ahead_ns;	/* when that began last; 0: never */
	struct ds_work_item work;
	struct ds_view *view;
};

/* How fast something comes. */
struct view_pace {
	_Atomic uint64_t last_s; /* when it came last: seconds, monotonic */
	_Atomic uint32_t lately_n;
};
/* Notes one more. Whether they come so fast that this is an epoch, and not a look at a file or two. Any thread: what two note in one
 * moment may count as one. */
bool view_pace_is_epoch(struct view_pace *pace, uint64_t second);

/* A sequential reader of a large file (view_stream.c). */
struct view_stream {
	_Atomic uint64_t ino; /* 0: none; read without the mutex too */
	uint64_t at;	      /* the end of the furthest extent that was read */
	uint64_t ahead;	      /* the end of what was fetched ahead */
	uint64_t window_bytes;
	uint64_t used_ns;
};

struct ds_view {
	struct ds_repo *repo;
	struct ds_cache *cache;
	struct ds_fetcher *fetcher;
	bool is_blocking;
	uint64_t timeout_ms;
	struct ds_digest version;
	uint32_t page_size;
	uint64_t pages_n;
	bool fits_cache;	    /* what the version holds, by the sizes of its files */
	bool runs_ahead;	    /* the cache keeps what is fetched ahead until it is read */
	bool fits_memory;	    /* the same, and with room to spare */
	bool has_listed;	    /* the record's prefetch list was asked for */
	struct view_pace missed;    /* small files that are not here */
	struct view_pace from_disk; /* small files that are here, and not in the page cache */
	_Atomic bool is_closing;
	struct ds_chunk_ref index_root;
	struct ds_page_source source;
	struct ds_manifest *manifest;
	struct ds_image *pages_image, *nodes_image;
	struct { /* parsed nodes by number; each is set once and stays */
		struct ds_page_index_node *_Atomic *nodes;
		uint64_t nodes_n;
	} index;
	/* Shortcuts to what `locked` has (view_images.c). */
	struct view_pack *_Atomic packs[VIEW_PACK_SLOTS]; /* by number */
	struct ds_lanes nearby;				  /* images of large files */
	struct {
		pthread_mutex_t mutex; /* of `all`; no other is taken under it */
		struct view_stream all[VIEW_STREAMS_N];
		uint64_t budget_bytes; /* of the fetcher */
	} streams;
	pthread_mutex_t mutex;
	struct {
		struct ds_map *packs;  /* number -> struct view_pack */
		struct ds_map *images; /* of large files: name -> struct view_image */
		struct ds_map *backed; /* inode -> struct view_backed (view_backing.c) */
		struct ds_list lru;    /* of view_image, least recently used first */
		struct ds_work *ahead; /* reads images ahead; NULL: not wanted yet */
		struct view_recent {
			struct ds_digest digest;
			struct ds_chunk_bytes *bytes;
		} recent[VIEW_RECENT_N];
		size_t recent_next;
		uint64_t recent_bytes;
	} locked;
};

/* Whether the caller may wait for the disk, and so whether what is not here now is a miss. */
static inline bool view_may_check(const struct ds_view *view, const struct ds_demand *demand)
{
	return view->is_blocking || !demand || demand->may_check;
}

/*
 * Copies [off, off + len) of a chunk: from the demand's pins, the image, or (blocking view) the
 * store. Else notes the target in the demand (if it may check): -DS_E_NOT_LOCAL.
 */
int view_chunk_read(struct ds_view *view, struct ds_demand *demand,
		    const struct ds_fetch_target *target, uint64_t off, size_t len_bytes,
		    void *ret_data);
/* True: noted in demand->direct, whose room is not 0; -DS_E_NOT_LOCAL is the answer then. */
bool view_chunk_direct(struct ds_demand *demand, const struct ds_fetch_target *target, uint64_t off,
		       size_t len_bytes);
/* True: noted in demand->lent, behind what is lent of the same image already; demand->may_be_lent must be set. */
bool view_chunk_lend(struct ds_demand *demand, const struct ds_fetch_target *target, uint64_t off,
		     size_t len_bytes);
/* Whether the chunk is here and checked. May wait for the disk. */
bool view_chunk_is_local(const struct ds_fetch_target *target);
/* The same for any demand. -DS_E_NOT_LOCAL: it may not wait, and the answer is not at hand. */
int view_chunk_look(const struct ds_view *view, const struct ds_demand *demand,
		    const struct ds_fetch_target *target, bool *ret_is_local);
/* As ds_image_check. */
int view_chunk_check(const struct ds_fetch_target *target, void *buffer);

/* Packs and images (view_images.c). Release waits for what is being read ahead. */
int view_images_init(struct ds_view *view);
void view_images_release(struct ds_view *view);
/* The pack of this number, which stays until the view is closed. -DS_E_MALFORMED: there is none. */
int view_pack_get(struct ds_view *view, struct ds_demand *demand, uint32_t number,
		  struct view_pack **ret_pack);
/* Its image, for as long as the view is open: no reference for the caller. */
int view_pack_image(struct ds_view *view, struct view_pack *pack, struct ds_image **ret_image);
/* Reads the image of a pack into the page cache, on a thread of the view's; not again for a while. */
void view_pack_read_ahead(struct ds_view *view, struct view_pack *pack);
/* The image of a large file. The caller drops the reference. */
int view_file_image(struct ds_view *view, const struct ds_entry *entry,
		    struct ds_image **ret_image);

/* Where the chunk of a file of one lies and goes, its row checked against its pack's; the image is left to the caller. -DS_E_MALFORMED. */
int view_small_target(const struct ds_entry *entry, const struct ds_pack_row *pack,
		      struct ds_fetch_target *ret_target);
/* Where an extent's chunk lies and goes; -DS_E_MALFORMED: nowhere. */
int view_extent_target(struct ds_view *view, struct ds_demand *demand, struct ds_image *image,
		       const struct ds_extent *extent, struct ds_fetch_target *ret_target);

/*
 * Queues those of at most VIEW_EXTENTS_MAX extents that are not here; not from the first one on of which
 * the demand may not find out now where it is. Returns how many there were; `ret_taken_n`: the extents before the
 * first one for which the fetcher had no room.
 */
size_t view_extents_prefetch(struct ds_view *view, struct ds_demand *demand,
			     const struct ds_entry *entry, struct ds_image *image,
			     const struct ds_extent *extents, size_t n, size_t *ret_taken_n);

/* Streams (view_stream.c). */
void view_streams_init(struct ds_view *view);
void view_streams_release(struct ds_view *view);
/* Called for each read that has the start of an extent in it: if it is of a stream, what follows is fetched ahead. Never waits. `is_hit`: all
 * of the read was here; of a whole file, that takes no lock. */
void view_stream_follow(struct ds_view *view, struct ds_demand *demand,
			const struct ds_entry *entry, struct ds_image *image,
			const struct ds_extent *extent, bool is_hit);

/* The manifest's pages (view_pages.c). */
int view_pages_init(struct ds_view *view);
void view_pages_release(struct ds_view *view);
/* Where a page of the manifest lies and goes. ref.stored_len_bytes is 0 for one of zeros, which lies nowhere. */
int view_page_target(struct ds_view *view, struct ds_demand *demand, uint64_t page,
		     struct ds_fetch_target *ret_target);
/*
 * Fetches the record's prefetch list, unless the index's root is in the cache already. Best effort.
 */
void view_pages_prefetch(struct ds_view *view, const struct ds_record *record);

/* Targets of a demand (view_demand.c). Clear drops them; add takes a reference of the image. */
void demand_clear(struct ds_demand *demand);
void demand_add(struct ds_demand *demand, const struct ds_fetch_target *target);
/* Pinned bytes of this digest, or NULL. */
struct ds_chunk_bytes *demand_pinned(const struct ds_demand *demand,
				     const struct ds_digest *digest);

#endif
