/*
 * Looking at a cache directory as a whole, beside whoever uses it: counting, giving up, checking.
 *
 * Nothing here opens an image as a reader does, or starts a thread; all of it does local disk I/O on the caller's thread, and a check
 * reads everything. Locks and rules are those of cache.h: what another process reads or fills is neither punched nor removed
 * by a prune. `interrupted` ends a walk with -DS_E_INTERRUPTED once it is not 0. Other errors: of the disk, -ENOMEM.
 */
#ifndef DS_CACHE_CACHE_SURVEY_H
#define DS_CACHE_CACHE_SURVEY_H

#include "cache/cache.h"

struct ds_survey_image {
	struct ds_digest name;
	bool has_kind;
	enum ds_image_kind kind;
	uint64_t size_bytes, allocated_bytes;
	uint64_t chunks_n, present_bytes, trusted_bytes; /* trusted: checked in this boot */
	bool is_handed_out;				 /* to the kernel: never punched */
	bool is_in_use;					 /* by a process, just now */
	bool is_damaged; /* no map that makes sense; the counts are 0 */
};
/* fn ends the walk with anything but 0, which is then returned. */
int ds_cache_survey(struct ds_cache *cache, const volatile int *interrupted,
		    int (*fn)(void *ctx, const struct ds_survey_image *image), void *ctx);

struct ds_prune_options {
	uint64_t to_bytes;  /* no more than this is to stay */
	uint64_t before_ms; /* only what was last used before this, wall clock; 0: whatever it is */
	uint64_t
		wait_ms; /* for what others have open, but do not read: so long after they last were fewer than ever before */
	const volatile int *interrupted;
};
struct ds_prune_result {
	uint64_t freed_bytes, used_bytes; /* used: afterwards */
	uint64_t evictions_n, in_use_n;	  /* in use: would have gone, but they are read or mapped */
};
/* Evicts, least recently used first, as the mounts themselves do. -EROFS, -EACCES: nothing can be. */
int ds_cache_prune(struct ds_cache *cache, const struct ds_prune_options *options,
		   struct ds_prune_result *ret_result);

struct ds_check_options {
	/* A chunk, or what should be zeros, or (chunk false) an image as a whole, is damaged, and was dropped. `file` is its path below the
	 * directory. */
	void (*finding)(void *ctx, const char *file, bool is_chunk, uint64_t off,
			uint64_t len_bytes);
	/* A damaged image could not be taken away from a process that uses it; NULL: not told. */
	void (*still_used)(void *ctx, const char *file);
	void (*progress)(void *ctx, uint64_t images_n, uint64_t bytes);
	void *ctx;
	const volatile int *interrupted;
	uint64_t wait_ms; /* for those who use a damaged image to let go of it */
};
struct ds_check_result {
	uint64_t images_n, chunks_n, bytes, findings_n, still_used_n;
};
/*
 * Reads every chunk that is present and compares it with its digest, from the disk as far as the page cache can be emptied of it, and
 * whatever of a file lies where no chunk does, as zeros: also what a fill left there that did not end before the host stopped. What
 * is wrong is dropped: a chunk from its image, if nobody uses that, else the image as a whole, which who uses it lets go of
 * within seconds. It is fetched anew when it is wanted. Programs that have a file open which the kernel reads from the image by itself
 * see the old bytes until they close it. Where nothing can be dropped (-EROFS, ...), the first that should be ends the check. What a mount has given to the kernel's page cache is not asked for again: it stays there.
 */
int ds_cache_check(struct ds_cache *cache, const struct ds_check_options *options,
		   struct ds_check_result *ret_result);

#endif
