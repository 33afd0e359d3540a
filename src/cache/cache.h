/*
 * The cache: a directory of images, shared by all mounts and versions of a host.
 *
 * An image is a directory with `data` (the raw bytes of chunks at their offsets, sparse) and `map` (boot id, flags, and
 * for each slot: digest, offset, length, and the bits `present` and `trusted`). A chunk is served only if it is
 * trusted: filled, or checked against its digest, in this boot. Damage of whatever kind is a miss; bytes that are changed in place
 * within a boot, behind the back of the file system, are met only where checks_anew is set. There is no index: the
 * directory is the index.
 *
 * Locks (all of them go with the process): who reads or fills holds a shared OFD lock on byte 0 of `map`; a fill an
 * exclusive one on byte 2^40 + slot; punching and removing need byte 0 exclusively. An image whose `handed out` flag is
 * set is never punched, only unlinked, and, but for damage, not while anybody has its data open or mapped. A process
 * lets go of images that it has not used for a while (half a second when another one finds no room).
 *
 * An open image costs up to three descriptors, all of them up to half of RLIMIT_NOFILE as it is when the cache is opened: a
 * daemon raises it before.
 *
 * Data that are read in turn, more than the cache holds, do not drive each other out: a part stays (cache_scan.c). Other images
 * find room at any time, at the cost of the least recently used.
 *
 * The cache never makes a read fail: when the disk is full, read-only or broken, an image is "without a disk": reads
 * of it miss, fills do nothing, and the fetcher serves from memory.
 *
 * Threads: all functions may be called from any thread. ds_image_read copies from the page cache or the local disk;
 * fill, open and eviction do local disk I/O; nothing here touches the network. What opens an image's files waits up to a second
 * for a lock on them, which another process holds for moments, unless it was stopped; threads that others wait for take the
 * functions with _now and ds_image_direct_begin, which do not.
 */
#ifndef DS_CACHE_CACHE_H
#define DS_CACHE_CACHE_H

#include <stdatomic.h>

#include "codec/chunk.h"
#include "util/diag.h"

struct ds_cache;

struct ds_cache_options {
	/* Created 0700 if absent; refused if it is not ours, or writable by others, or a symlink, or if others
	 * may write to the directory above (unless that is sticky), or with -EEXIST if anything is in it that dsfs did not make, unless
	 * it is a cache already: that may have such things beside it, but not under a cache's own names. */
	const char *dir;
	bool makes_none; /* -ENOENT where there is no cache yet */
	/* Allocated blocks of all images; 0: half of what is free and used by the cache. */
	uint64_t capacity_bytes;
	unsigned free_floor_percent; /* of the file system stays free; 0: 10 */
	const uint8_t *boot_id;	     /* for tests: 16 bytes instead of the kernel's; NULL */
	/* Called by a thread of the cache's, at most each 10 minutes, once chunks could not be stored: -EROFS, -EIO, ...; -ENOSPC only where
	 * the disk leaves hardly any room, not where data make room for each other. Must not call the cache. NULL: not told. */
	void (*trouble)(void *ctx, int code);
	void *trouble_ctx;
};

/* Errnos, with a reason in diag. Starts no thread before the first image is used, and scans nothing. */
int ds_cache_open(const struct ds_cache_options *options, struct ds_cache **ret_cache,
		  struct ds_diag *reterr_diag);
/* No directory at all: every image is without a disk. */
int ds_cache_open_none(struct ds_cache **ret_cache);
struct ds_cache *ds_cache_ref(struct ds_cache *cache);
struct ds_cache *ds_cache_unref(struct ds_cache *cache);
const char *ds_cache_dir(const struct ds_cache *cache);

struct ds_cache_stats {
	uint64_t capacity_bytes;
	uint64_t used_bytes; /* allocated, at the last look */
	uint64_t images_n;
	uint64_t hits_n, misses_n, fills_n, fill_failures_n, evictions_n, damaged_n;
	uint64_t refusals_n; /* fill failures of images that yield */
	uint64_t
		unstored_n; /* fill failures of which `trouble` is told; those of no room are counted within seconds */
	int trouble; /* the last reason of these; 0: none */
};
void ds_cache_get_stats(struct ds_cache *cache, struct ds_cache_stats *ret_stats);

enum ds_image_kind { DS_IMAGE_PACK, DS_IMAGE_FILE, DS_IMAGE_MANIFEST, DS_IMAGE_INDEX };

/* What an image is, from its layout: the name is a digest over what fixes the layout. */
struct ds_image_layout {
	struct ds_digest name;
	uint32_t slots_n;
	uint64_t size_bytes; /* of `data`, at most */
	/* Trust ends with the process, not with the boot: each chunk is checked once more before its first use. For what is small, and
	 * would mislead the reader of everything else. */
	bool checks_anew;
	/* For data that are read in turn: a fill takes the room only of what nobody will want before its own chunk is wanted again, and else
	 * fails with -ENOSPC (cache_scan.c). Without it the least recently used goes, whatever it is. */
	bool yields;
	enum ds_image_kind
		kind; /* noted in the image when it is made, for who looks at the cache */
};
/* Layout names: SHA-256 of a tag and the id. */
void ds_image_name(enum ds_image_kind kind, const struct ds_digest *id, struct ds_digest *ret_name);

/* Layouts that differ in any field are different images, whatever the name says. */
struct ds_image;
/* One object for each name and process, counted. Makes the directory if it is not there. Fails only with -ENOMEM: trouble with the disk gives an image without one. */
int ds_image_open(struct ds_cache *cache, const struct ds_image_layout *layout,
		  struct ds_image **ret_image);
struct ds_image *ds_image_ref(struct ds_image *image);
struct ds_image *ds_image_unref(struct ds_image *image);

/* A chunk's place in an image, and what must lie there. */
struct ds_image_slot {
	uint32_t slot;
	uint64_t raw_off;
	uint32_t raw_len_bytes;
	struct ds_digest digest;
};

/*
 * Copies bytes [off, off + len) of the chunk. -DS_E_NOT_LOCAL: it is not there, or the map says something else about the
 * slot. A chunk that is present but not yet trusted in this boot is checked first (reads and hashes it, CPU), with `may_check` only;
 * without it the answer is -DS_E_NOT_LOCAL. An I/O error or a digest that does not fit makes it absent.
 */
int ds_image_read(struct ds_image *image, const struct ds_image_slot *slot, uint64_t off,
		  size_t len_bytes, bool may_check, void *ret_data);
/* Like it, but only from page cache, and never waiting: -EAGAIN if the bytes, or what the map says of them, have to come from the
 * disk, or the image is not open at this moment (then a worker calls ds_image_read, which opens it). Never checks. As
 * ds_pread_now, it waits for the disk where the file system does not know RWF_NOWAIT. */
int ds_image_read_now(struct ds_image *image, const struct ds_image_slot *slot, uint64_t off,
		      size_t len_bytes, void *ret_data);
/*
 * The same without a copy, for who passes the bytes on at once: 0: they lie at `ret_data` until ds_image_lend_end, which
 * must follow soon, from any thread: who takes the disk side away waits for it. -EAGAIN: by the one above, since they are not here
 * or not in the page cache, or the image is not open at this moment or cannot be mapped. Should the disk fail in the moment between, a
 * system call is told EFAULT, and a program that looks for itself SIGBUS.
 */
int ds_image_lend_now(struct ds_image *image, const struct ds_image_slot *slot, uint64_t off,
		      size_t len_bytes, const uint8_t **ret_data);
void ds_image_lend_end(struct ds_image *image);
/*
 * The same past the page cache, for who can have the kernel read while he does other things: begin, then `len_bytes` at `off` of
 * `fd` into page-aligned memory, then end, always, with what that read gave: bytes, or a negative errno.
 * begin: 0, or -EAGAIN: by the two above, since the chunk is not here, or is in the page cache, or the kernel (before Linux 6.5) does not
 * tell, or the file system has no O_DIRECT, or more than `room_bytes` would have to be read, or the image is not open at this
 * moment. Waits where ds_image_read_now does.
 * end: 0: what was asked for lies at `skip_bytes`, `wanted_bytes` of it; -EAGAIN: it does not count, by ds_image_read. Never waits.
 */
struct ds_image_direct {
	int fd;
	uint64_t off;
	size_t len_bytes, skip_bytes, wanted_bytes;
	/* the cache's own */
	struct ds_image *image;
	void *disk;
	uint64_t raw_off;
};
int ds_image_direct_begin(struct ds_image *image, const struct ds_image_slot *slot, uint64_t off,
			  size_t len_bytes, size_t room_bytes, struct ds_image_direct *ret_direct);
int ds_image_direct_end(struct ds_image_direct *direct, int64_t n);
/* Checks a chunk ahead of its use, unless it is trusted already: neither a hit nor a miss. `buffer` has room for it. 0: trusted
 * now. -DS_E_NOT_LOCAL: as of ds_image_read; -ENOMEM. */
int ds_image_check(struct ds_image *image, const struct ds_image_slot *slot, void *buffer);
/*
 * Has the kernel read all of an image into the page cache, in order, a little ahead of what has come: for who is about to read all of
 * it in whatever order. Waits for the disk; ends early once *stop. Nothing for an image that is not all here.
 */
void ds_image_read_ahead(struct ds_image *image, const _Atomic bool *stop);
/* Cheap look at the map: present and trusted. Opens the image if need be. */
bool ds_image_has(struct ds_image *image, const struct ds_image_slot *slot);
/* The same for who must not wait: -EAGAIN where ds_image_read_now gives it. */
int ds_image_has_now(struct ds_image *image, const struct ds_image_slot *slot, bool *ret_has);
/*
 * For who fetches ahead: whether each slot was found here by one of the above, or filled, since the image was opened, or was said to stand
 * for zeros. Waits for nothing, and is a hint: some may have been found under another manifest's claims.
 */
bool ds_image_is_whole(struct ds_image *image);
void ds_image_note_zeros(struct ds_image *image, uint32_t slot);
/* Stores a chunk whose bytes were verified, evicting if need be. 0, or why it could not (-ENOSPC, -DS_E_MISMATCH: the slot or its neighbours are taken by other
 * claims...); callers then serve from memory. */
int ds_image_fill(struct ds_image *image, const struct ds_image_slot *slot, const void *raw);

/*
 * The kernel reads `data` itself: begin, then in the order of the slots each of them, then take, then end. In between the image may be
 * taken away, as no lock is held and no thread is kept waiting: take sees it. `number` names what is on the disk: with the same one,
 * unless it is 0, all that was found before and was taken still holds. may_wait false: nothing is opened, no lock is taken, the disk
 * is not waited for; -EAGAIN where that would be needed. An image that was taken is never punched again, only unlinked.
 */
struct ds_image_backing {
	struct ds_image *image;
	uint64_t number;
	void *disk; /* the cache's own */
};
/* -ENOENT: there is nothing on the disk. */
int ds_image_backing_begin(struct ds_image *image, bool may_wait,
			   struct ds_image_backing *ret_backing);
void ds_image_backing_end(struct ds_image_backing *backing);
/* 0: trusted under this claim; -ENODATA: not. */
int ds_image_backing_has(struct ds_image_backing *backing, const struct ds_image_slot *slot,
			 bool may_wait);
/* Reserves a slot that stands for `len_bytes` of zeros from `raw_off` on, so that nobody fills it. Waits. -DS_E_MISMATCH: somebody has;
 * -ENODATA: something else lies there; -ESTALE; or errors of the disk. */
int ds_image_backing_add_zeros(struct ds_image_backing *backing, uint32_t slot, uint64_t raw_off,
			       uint64_t len_bytes);
/*
 * Descriptors, the caller's to close: of `data`, and one that keeps the image from being evicted while it is open (-1: it cannot be had).
 * Waits for the disk unless an image of this number was taken before. -ESTALE: the image was taken away since begin; or errors of the disk,
 * -EMFILE.
 */
int ds_image_backing_take(struct ds_image_backing *backing, int *ret_data_fd, int *ret_hold_fd);

/* What the map of an image takes of the disk, at most. */
uint64_t ds_image_map_bytes(uint32_t slots_n);
/* What all images together may take of the disk as it is now, under quota and floor. 0 without a directory. */
uint64_t ds_cache_room_bytes(struct ds_cache *cache);
/* Evicts until `bytes` more fit under quota and floor, as far as possible. */
int ds_cache_make_room(struct ds_cache *cache, uint64_t bytes);
/* Whether a fill of an image that yields was refused lately: what is fetched ahead now will not stay. */
bool ds_cache_is_refusing(struct ds_cache *cache);

#endif
