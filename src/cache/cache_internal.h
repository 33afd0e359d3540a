/*
 * What the parts of the cache share; for src/cache only.
 *
 *   cache.c        the directory, its checks, the counter of used bytes, the thread that looks after it
 *   cache_own.c    what in it is dsfs's
 *   image.c        the table of images; who uses the files of one, and who may close them
 *   image_slot.c   looking, reading
 *   image_fill.c   locks of slots, filling
 *   image_direct.c reading past the page cache
 *   image_lend.c   lending what is in the page cache, from a mapping
 *   image_backing.c  handing out to the kernel
 *   image_disk.c   the files of one image: opening, making, throwing away
 *   image_map.c    the map: header, slots, claims, locks
 *   image_evict.c  quota, floor, eviction
 *   cache_survey.c counting and checking all of it, by hand
 *   cache_scan.c   what of the cache is cold to a reader of more than it can hold
 *
 * An image object (struct ds_image) has a disk side (struct ds_image_disk) while it is in use: the open files
 * and a private copy of what the map was seen to say. The copy only ever holds trusted slots; it stays true while
 * the shared lock on byte 0 is held, since taking a bit back needs that lock exclusively. It is memory of this process, so that
 * the claims in it have a limit; of images beyond it only the states of slots are kept, and the map is looked at each time.
 * The map is read and written by pread and pwrite, not through a mapping (nor are the data, but by system calls): a mapping gives SIGBUS when the file is cut, when a
 * full tmpfs has no page for a hole, and when the disk fails, and none of these may kill a mount.
 *
 * Lock order: cache->evict_mutex, image->mutex, cache->mutex (the table), disk->claim_mutex, usage->mutex;
 * scan->mutex within any of them.
 * evict_mutex and image->mutex are held over disk I/O on purpose: they serialise eviction and the opening
 * of one image's files. The path of a hit takes none of them, and who must not wait (ds_image_enter_now) takes neither of the two.
 */
#ifndef DS_CACHE_CACHE_INTERNAL_H
#define DS_CACHE_CACHE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "cache/cache.h"
#include "util/list.h"
#include "util/map.h"

#define DS_BOOT_ID_LEN	      16
#define DS_IMAGE_SEGMENTS_MAX 256

/* ---- the map's layout. It never leaves the host: native byte order. */

#define DS_IMAGE_MAP_MAGIC  "dsfsmap1"
#define DS_IMAGE_HANDED_OUT 1u /* flag: the kernel may use `data` for ever */

struct ds_map_header { /* the first 4096 bytes, zeros to their end */
	char magic[8];
	uint32_t slots_n;
	uint32_t flags;
	uint64_t size_bytes; /* of data */
	uint8_t boot_id[DS_BOOT_ID_LEN];
	struct ds_digest name;
	uint64_t used_ms; /* last use, wall clock */
	uint64_t segment_used_ms
		[DS_IMAGE_SEGMENTS_MAX]; /* by equal parts of data; 0: nothing there */
	uint32_t kind_plus_1;		 /* enum ds_image_kind; 0: not known */
	uint32_t zero;
	/* Random; another one when the image is made anew, and in each boot. 0: of an older release. */
	uint64_t number;
};
#define DS_MAP_HEADER_LEN 4096u

enum { DS_SLOT_PRESENT = 1, DS_SLOT_TRUSTED = 2 }; /* bits of state */

struct ds_map_slot {
	struct ds_digest digest;
	uint64_t raw_off;
	uint32_t raw_len_bytes;
	uint8_t state; /* written after the claim and after the data */
	uint8_t zero[3];
};

/* Then a bitmap of claimed slots (whole 4096s), then the slots. */
static inline uint64_t ds_map_bitmap_len(uint32_t slots_n)
{
	return ((uint64_t)slots_n / 8 + 1 + 4095) / 4096 * 4096;
}

static inline uint64_t ds_map_slot_off(uint32_t slots_n, uint32_t slot)
{
	return DS_MAP_HEADER_LEN + ds_map_bitmap_len(slots_n) +
	       (uint64_t)slot * sizeof(struct ds_map_slot);
}

static inline uint64_t ds_map_len(uint32_t slots_n)
{
	return ds_map_slot_off(slots_n, slots_n);
}

static inline uint64_t ds_image_segment_bytes(uint64_t size_bytes)
{
	uint64_t part = size_bytes / DS_IMAGE_SEGMENTS_MAX + 1;

	return (part + DS_KIB(64) - 1) / DS_KIB(64) * DS_KIB(64);
}

/* ---- the private copy */

/* UNKNOWN -> LOADING -> TRUSTED -> DEAD, UNKNOWN -> SEEN -> DEAD, or UNKNOWN -> ZEROS -> DEAD; never back. Only of TRUSTED ones is
 * the claim copied. SEEN ones were found trusted where claims are not copied; they, and those of ZEROS, are looked up in the map. */
enum {
	DS_COPY_UNKNOWN,
	DS_COPY_LOADING,
	DS_COPY_TRUSTED,
	DS_COPY_SEEN,
	DS_COPY_DEAD,
	DS_COPY_ZEROS
};

struct ds_copy_byte {
	_Atomic uint8_t value;
};

struct ds_copy_claim {
	struct ds_digest digest;
	uint64_t raw_off;
	uint32_t raw_len_bytes;
};

struct ds_image_disk {
	_Atomic unsigned
		refs_n; /* the image's, and one for each slot lock, direct read, and reading ahead */
	int data_fd, map_fd;
	_Atomic int direct_fd;	       /* of data, opened with O_DIRECT; -1: not opened yet */
	_Atomic uint32_t direct_align; /* of what is read through it */
	_Atomic bool is_never_direct;  /* the file system cannot */
	struct ds_cache *cache;	       /* whose images hold it */
	void *_Atomic mapping;	       /* of data; NULL: not made yet */
	_Atomic bool is_never_mapped;  /* it cannot be made */
	_Atomic uint64_t lent_bytes;   /* since that was forgotten */
	uint64_t number;	       /* as the map has it */
	_Atomic bool is_handed_out;    /* as the map has it, at least */
	struct ds_image_layout layout;
	uint64_t segment_bytes;
	_Atomic uint64_t used_ms;
	_Atomic uint64_t segment_used_ms[DS_IMAGE_SEGMENTS_MAX];
	_Atomic bool is_stamped; /* one of these was set since the map got them */
	pthread_mutex_t claim_mutex;
	struct ds_copy_byte *states;  /* of the slots: DS_COPY_... */
	struct ds_copy_byte *filling; /* bits: this process holds the slot's lock */
	struct ds_copy_claim *claims; /* NULL: they are not copied */
	_Atomic uint32_t here_n;      /* slots that are TRUSTED, SEEN or ZEROS */
	_Atomic uint64_t
		claim_again_ns; /* the claims' lock is held: not before then; 0: it is not */
};

/* ---- the directory */

struct ds_cache_root {
	_Atomic unsigned refs_n;
	int fd, images_fd, tmp_fd;
	int usage_fd; /* -1: this process alone counts */
};

#define DS_USAGE_MAGIC	"dsfsuse1"
#define DS_OWN_NAME_MAX 288

struct ds_usage_file {
	char magic[8];
	int64_t used_bytes;
	uint64_t
		pressure_ms; /* wall clock: when a process last found nothing that it could evict */
};

/* Whether the directory is a cache; if not, it may become one. Changes nothing. -EEXIST: it may not, since `ret_foreign` in it is not
 * dsfs's. Other errnos: it cannot be told. */
int ds_own_look(int root_fd, bool *ret_is_cache, char ret_foreign[DS_OWN_NAME_MAX]);
/* `usage`, made if need be; -1 if it cannot be had. */
int ds_own_open_usage(int root_fd);
/* Whether a name in tmp/ is one that we give. */
bool ds_own_is_tmp(const char *name);

/* Bytes in use, counted by all processes together in the file `usage`. */
struct ds_cache_usage {
	pthread_mutex_t mutex;
	struct {
		int64_t seen_bytes;    /* of the file, at the last look */
		int64_t pending_bytes; /* not yet added to it */
		uint64_t added_bytes;  /* by this process, ever */
	} locked;
};

/* See cache_scan.c. */
#define DS_SCAN_MARKERS 32u

struct ds_scan_marker {
	uint64_t key;	  /* of a chunk that was refused; 0: none */
	uint64_t seen_ms; /* when, the last time */
	uint64_t again_ms,
		before_it_ms; /* from one time to the next: the last two such spans; 0: none yet */
};

struct ds_cache_scan {
	pthread_mutex_t mutex;
	uint64_t protect_min_ms; /* set at the start; tests make it shorter */
	_Atomic uint64_t refused_ns;
	struct {
		uint64_t began_ms, last_ms;
		uint64_t refused_n;
		struct ds_scan_marker markers[DS_SCAN_MARKERS];
	} locked;
};

struct ds_evict_candidate {
	struct ds_digest name;
	uint64_t used_ms;
	uint64_t coldest_ms; /* of its parts */
	uint64_t allocated_bytes;
};

struct ds_cache {
	_Atomic unsigned refs_n;
	char *dir; /* NULL: no directory */
	bool makes_none;
	uint8_t boot_id[DS_BOOT_ID_LEN];
	_Atomic uint64_t capacity_bytes;
	uint64_t free_at_open_bytes; /* the default capacity follows from it and the first scan */
	bool capacity_is_default;
	unsigned free_floor_percent;
	unsigned attached_max;
	_Atomic unsigned attached_n;
	_Atomic uint64_t mapped_bytes; /* of addresses, of all images */
	uint64_t mapped_max_bytes;
	_Atomic uint64_t copied_bytes; /* for claims, of all open images */
	uint64_t copied_max_bytes;
	struct ds_cache_usage usage;
	struct ds_cache_scan scan;

	pthread_mutex_t mutex;
	struct {
		struct ds_map *images; /* by name */
		struct ds_cache_root *root;
		uint64_t root_tried_ns;
		uint64_t hits_n, misses_n; /* of images that are gone */
		bool keeper_started, ending;
	} locked;
	pthread_cond_t wake;
	pthread_t keeper;

	pthread_mutex_t evict_mutex;
	struct {
		struct ds_evict_candidate *list; /* oldest first */
		size_t list_n, next;
		uint64_t listed_ns;
		uint64_t no_room_until_ns;
		_Atomic uint64_t no_cold_until_ns;
		uint64_t scanned_ns;
		uint64_t keep_again_ns;	      /* the keeper's own */
		_Atomic uint64_t doubt_bytes; /* what the last scan may have counted twice */
	} evict;

	_Atomic uint64_t images_n; /* at the last scan, and since */
	_Atomic uint64_t fills_n, fill_failures_n, refusals_n, evictions_n, damaged_n;
	_Atomic uint64_t evicted_bytes;

	/* Fills that the disk was in the way of (image_fill.c); the keeper tells. */
	_Atomic uint64_t unstored_n, no_room_n;
	_Atomic int trouble; /* why the last one failed */
	struct {
		void (*fn)(void *ctx, int code);
		void *ctx;
		uint64_t unstored_n, no_room_n, again_ns;
	} tell; /* the keeper's */
};

struct ds_image {
	struct ds_cache *cache;
	struct ds_image_layout layout;
	_Atomic unsigned refs_n; /* 0: idle, kept by the table until the keeper lets go */
	unsigned pins_n;	 /* keeper and evictors; by cache->mutex */

	/* The gate: who uses the disk side counts itself first and looks at `disk` then; who closes it takes
	 * the pointer first and waits for the count to fall. */
	_Atomic unsigned users_n;
	_Atomic(struct ds_image_disk *) disk;
	_Atomic uint64_t hits_n, misses_n;

	pthread_mutex_t mutex;	  /* opening and closing of the disk side */
	uint64_t retry_ns;	  /* trouble with the disk: not before then */
	_Atomic int attach_error; /* this one, written by the mutex; 0: none */
};

/* ---- cache.c */

uint64_t ds_cache_now_ms(void); /* wall clock, coarse */
/* A reference to the directory; tries to open it anew if it was lost. NULL: none. */
struct ds_cache_root *ds_cache_root_get(struct ds_cache *cache);
struct ds_cache_root *ds_cache_root_unref(struct ds_cache_root *root);
/* Says that something in it is not as it should be: is the directory still the one behind its name? */
void ds_cache_root_suspect(struct ds_cache *cache);
void ds_cache_usage_add(struct ds_cache *cache, struct ds_cache_root *root, int64_t delta_bytes);
/* Taken when a scan begins. */
uint64_t ds_cache_usage_mark(struct ds_cache *cache);
/* What a scan has found, and what this process has added since: the scan may have seen that or not. It is returned: so much may be
 * counted twice, until the next scan. */
uint64_t ds_cache_usage_set(struct ds_cache *cache, struct ds_cache_root *root, uint64_t bytes,
			    uint64_t mark);
uint64_t ds_cache_usage_get(struct ds_cache *cache, struct ds_cache_root *root, bool look);
void ds_cache_usage_flush(struct ds_cache *cache, struct ds_cache_root *root);
/* Tells the other processes that there is nothing left to evict but what they have open. */
void ds_cache_press(struct ds_cache_root *root);
/* Starts the thread that looks after the cache, once. */
void ds_cache_start_keeper(struct ds_cache *cache);

/* ---- image.c */

/* The disk side, opened (and with `create` made) if there is none; it stays until ds_image_leave. NULL: without a disk. Waits for
 * the disk, for who opens or closes it just now, and up to a second, now and then, for a lock that another process holds. */
struct ds_image_disk *ds_image_enter(struct ds_image *image, bool create);
/* The same if it is open; NULL: it is not, and ds_image_enter may open it. Waits for nothing. */
struct ds_image_disk *ds_image_enter_now(struct ds_image *image);
void ds_image_leave(struct ds_image *image);

/* Takes the disk side away from its users and closes it. image->mutex held. Nothing if (only_idle_ms not 0) it was
 * used in the last so many ms. True if there is no disk side now. */
bool ds_image_detach_locked(struct ds_image *image, uint64_t only_idle_ms);
/* The image of that name, or NULL; pinned: it stays in the table. */
struct ds_image *ds_image_pin(struct ds_cache *cache, const struct ds_digest *name);
void ds_image_unpin(struct ds_image *image);
/* Last use of an image that is open in this process; 0: it is not. */
uint64_t ds_image_used_ms(struct ds_image *image);
/* Writes its stamps now, if it is open here and nobody opens or closes it just now. */
void ds_image_flush(struct ds_image *image);
/* Keeper's round: flushes stamps, lets go of idle and unlinked images. */
void ds_image_keep(struct ds_cache *cache, uint64_t idle_ms);
/* Closes the least recently used disk sides, an eighth of those that are open. */
void ds_image_detach_some(struct ds_cache *cache);
struct ds_image *ds_image_free(struct ds_image *image);

/* ---- image_slot.c */

/* For the fetcher. What is known of a slot (NOT_NOW: only by ds_image_disk_look_now, of what is not in the page cache): */
enum ds_image_state { DS_IMAGE_NOTHING, DS_IMAGE_UNCHECKED, DS_IMAGE_READY, DS_IMAGE_NOT_NOW };
enum ds_image_state ds_image_look(struct ds_image *image, const struct ds_image_slot *slot);

/* The same with the disk side in hand, and what of it filling needs. `is_sane`: it can be a slot of this image. */
bool ds_image_slot_is_sane(const struct ds_image *image, const struct ds_image_slot *slot);
enum ds_image_state ds_image_disk_look(struct ds_image_disk *disk,
				       const struct ds_image_slot *slot);
/* Without waiting for the disk. */
enum ds_image_state ds_image_disk_look_now(struct ds_image_disk *disk,
					   const struct ds_image_slot *slot);
/* Notes a trusted slot in the private copy. */
void ds_image_disk_publish(struct ds_image_disk *disk, const struct ds_image_slot *slot);
/* It was used now. */
void ds_image_disk_touch(struct ds_image_disk *disk, uint64_t raw_off);

/* ---- image_fill.c */

/* The lock of a slot: who holds it fetches and fills. */
struct ds_image_lock {
	struct ds_image_disk *disk; /* NULL: not held */
	uint32_t slot;
};
/* 0: held; -EBUSY: another process, or another part of this one, holds it; other errors: no disk. Never waits. */
int ds_image_lock_slot(struct ds_image *image, const struct ds_image_slot *slot,
		       struct ds_image_lock *ret_lock);
void ds_image_unlock_slot(struct ds_image_lock *lock);
/* Chunks that are filled together, at most. */
#define DS_IMAGE_RUN_MAX 64u
struct ds_image_fill {
	struct ds_image_slot slot;
	const void *raw;
	struct ds_image_lock *
		lock; /* the slot's, or an empty one, which may be held afterwards: the caller's to release */
	int result; /* as of ds_image_fill */
};
/* Those whose slots, places in the image and bytes in memory lie side by side, one after the other, are claimed and written in one
 * piece: a few system calls in place of twenty for each. `n` is at most DS_IMAGE_RUN_MAX. */
void ds_image_fill_run(struct ds_image *image, struct ds_image_fill *fills, size_t n);

/* ---- image_disk.c */

/* Opens the files (makes them if `create`), takes the shared lock, and stamps the boot. -ENOENT: not there; others: trouble. What is
 * damaged is thrown away and counts as not there. */
int ds_image_disk_open(struct ds_cache *cache, struct ds_cache_root *root,
		       const struct ds_image_layout *layout, bool create,
		       struct ds_image_disk **ret_disk);
struct ds_image_disk *ds_image_disk_unref(struct ds_image_disk *disk);
/* For the last one. */
void ds_image_disk_unmap(struct ds_image_disk *disk);
/* What was lent is no longer counted as memory of this process; it stays in the page cache. image->mutex held, or in the gate. */
void ds_image_disk_forget_lent(struct ds_image_disk *disk);
/* Stamps ahead of the clock, which was put back since, become stamps of now. image->mutex held. */
void ds_image_disk_pull_back(struct ds_image_disk *disk);
/* Writes the stamps of last use into the map, and learns those of other processes. image->mutex held. */
void ds_image_disk_flush(struct ds_image_disk *disk);
/* The first byte from `off` on that is not zero, or is not there; `end`: none before it. Reads only what the file system does not call a
 * hole (some part of a block at each end). Errors of the disk. */
int ds_image_find_byte(int fd, uint64_t off, uint64_t end, uint64_t *ret_off);
/* Neither unlinked nor cut. */
bool ds_image_disk_is_sound(const struct ds_image_disk *disk);
/* Room for 3 and DS_DIGEST_TEXT_MAX bytes. */
void ds_image_path(const struct ds_digest *name, char *ret_dir, char *ret_name);
/* Opens images/xx without following links; makes it if `create`. */
int ds_image_open_parent(struct ds_cache_root *root, const char *dir, bool create, int *ret_fd);
/* Moves the entry out of the way and deletes it. */
int ds_image_throw_away(struct ds_cache_root *root, int parent_fd, const char *name);

/* ---- image_map.c */

/* OFD locks on `len` bytes at off: type F_RDLCK, F_WRLCK, F_UNLCK. Without waiting: -EAGAIN; with retries for up to a second, not for
 * FUSE's threads. */
int ds_map_lock(int fd, short type, uint64_t off);
int ds_map_lock_soon(int fd, short type, uint64_t off);
#define DS_MAP_LOCK_USE	  0u
#define DS_MAP_LOCK_CLAIM 1u
#define DS_MAP_LOCK_SLOT  (UINT64_C(1) << 40)

/* A stamp more than a day ahead of the clock, which was put back since, says nothing: it comes as one of long ago, or what has it would be
 * the last to go until the clock has caught up. One that is less ahead comes as it is: the process that set it may live and set it right. */
int ds_map_read_header(int map_fd, struct ds_map_header *ret_header);
/* First opener in this boot, with the exclusive lock: no slot is trusted, claims that are not present or make no sense are dropped. */
int ds_map_new_boot(int map_fd, const struct ds_image_layout *layout,
		    const uint8_t boot_id[DS_BOOT_ID_LEN]);
/* What the map says of a slot; *ret_is_claim: it is claimed with just this claim. Without `may_wait` as ds_pread_now, with its -EAGAIN. */
int ds_map_look(struct ds_image_disk *disk, const struct ds_image_slot *slot, bool may_wait,
		uint8_t *ret_state, bool *ret_is_claim);
int ds_map_set_state(struct ds_image_disk *disk, uint32_t slot, uint8_t state);
/* Claims `n` slots side by side, at most DS_IMAGE_RUN_MAX: all or none. 0; -DS_E_MISMATCH: other claims are in the way, or (only if `n` is
 * not 1) one of them is claimed already; -EAGAIN: another process has held the lock of the claims for a second. Who comes in the second after that
 * is told so at once, and the next waits for it for some 20 ms. */
int ds_map_claim(struct ds_image_disk *disk, const struct ds_image_slot *slots, size_t n);
/* Their data are there, and trusted. After ds_map_claim, with their locks. */
int ds_map_set_filled(struct ds_image_disk *disk, const struct ds_image_slot *slots, size_t n);
/* One slot as the map has it; the state is read first. */
int ds_map_read_slot(int map_fd, uint32_t slots_n, uint32_t slot, struct ds_map_slot *ret_slot);
/* Calls fn for each slot that is claimed for bytes, in their order, until it gives anything but 0. -DS_E_MALFORMED: the claims make no
 * sense. */
int ds_map_walk(int map_fd, const struct ds_map_header *header,
		int (*fn)(void *ctx, uint32_t number, const struct ds_map_slot *slot), void *ctx);
/* With the exclusive lock: takes back the claim of a slot. */
int ds_map_drop(int map_fd, uint32_t slots_n, uint32_t slot);
/*
 * With the exclusive lock on `map_fd`: gives up the slots of least recently used segments, of those that were last used before
 * `before_ms`, until about `goal` bytes are given up; calls `punch` for the range of each after the bits are gone.
 */
int ds_map_give_up(int map_fd, struct ds_map_header *header, uint64_t goal_bytes,
		   uint64_t before_ms, int (*punch)(void *ctx, uint64_t off, uint64_t len_bytes),
		   void *ctx);

/* ---- image_evict.c */

/* Walks all images: counts, sets the usage, lists candidates. evict_mutex held. */
int ds_evict_scan_locked(struct ds_cache *cache, struct ds_cache_root *root);
/* Removes what killed processes left in tmp. */
void ds_evict_clean_tmp(struct ds_cache_root *root);
/* Whether `bytes` fit, evicting if need be (with `yields`, only what is cold): 0 or -ENOSPC. With 0 bytes nobody waits for room,
 * and nothing goes for what the last scan may have counted twice. */
int ds_evict_for(struct ds_cache *cache, struct ds_cache_root *root, uint64_t bytes, bool yields);
/* For one thread, every few seconds: brings the cache back to its quota. Walking all images for it takes a fiftieth of the time at most,
 * unless that would be less often than every 10 s. */
void ds_evict_keep(struct ds_cache *cache, struct ds_cache_root *root);

/* ---- cache_scan.c */

void ds_scan_init(struct ds_cache_scan *scan);
/* Something of the cache was read, or filled. */
void ds_scan_reads(struct ds_cache_scan *scan, uint64_t at_ms);
/* Somebody reads, and the cache is full: what was last used before this time (wall clock, ms) may go for him. */
uint64_t ds_scan_cold_before(struct ds_cache_scan *scan, uint64_t now_ms);
/* This chunk found no room. `key` is not 0. */
void ds_scan_refused(struct ds_cache_scan *scan, uint64_t key, uint64_t now_ms);

#endif
