/*
 * Eviction: the quota by allocated blocks and the floor of free space, least recently used images first.
 *
 * There is no index: a walk over the directory yields the list of candidates, and puts the counter of used bytes
 * right. The list is used up from its oldest end and walked anew when it is exhausted or old.
 *
 * INV-1 An image is removed or punched only with the exclusive lock on byte 0, which nobody gets while another
 *       process reads or fills it; this process closes its own side first.
 * INV-2 An image that was handed out is removed, never punched, and not while a program has it mapped.
 * INV-3 Bits go before data (ds_map_give_up).
 *
 * Images that this process has open are its working set: they are taken only when nothing else is left.
 *
 * For an image that yields (cache.h) only what is cold goes (cache_scan.c): a whole image, or the cold parts of one.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "cache/cache_internal.h"
#include "cache/cache_survey.h"
#include "util/clock.h"
#include "util/file.h"
#include "util/str.h"

#define DIR_FLAGS	  (O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
#define FILE_FLAGS	  (O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY)
#define LIST_LIFE_MS	  30000u
#define NO_ROOM_MS	  200u /* do not look again so soon when nothing could be evicted */
#define NO_COLD_MS_MAX	  10000u
#define PRUNE_STEP_MS	  200u
#define TMP_NEW_LIFE_S	  600 /* an image that is being made is not older than this */
#define SLACK_BYTES_MAX	  DS_MIB(256)
#define SLACK_OF_CAPACITY 32u /* 1/32 more than needed is evicted, so that it is worth the walk */
#define LIST_OF_CAPACITY  4u  /* a list of files may keep 1/4 of the cache from data */
#define PUNCH_BYTES_MIN	  DS_KIB(64)

/* ---- the walk */

struct walk {
	struct ds_cache *cache;
	struct ds_evict_candidate *list;
	size_t n, capacity_n;
	uint64_t allocated_bytes;
};

static uint64_t allocated_at(int dir_fd, const char *name)
{
	struct stat st;

	if (fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return 0;
	return (uint64_t)st.st_blocks * 512;
}

static void read_stamps(int dir_fd, struct ds_evict_candidate *candidate)
{
	_ds_cleanup_close_ int fd = openat(dir_fd, "map", FILE_FLAGS);
	struct ds_map_header header;
	struct stat st;

	candidate->used_ms = candidate->coldest_ms = 0;
	/* What cannot be read is damaged, and goes first. */
	if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) ||
	    ds_map_read_header(fd, &header) < 0)
		return;
	candidate->used_ms = candidate->coldest_ms = header.used_ms;
	for (size_t i = 0; i < DS_IMAGE_SEGMENTS_MAX; i++)
		if (header.segment_used_ms[i])
			candidate->coldest_ms =
				DS_MIN(candidate->coldest_ms, header.segment_used_ms[i]);
}

static int walk_image(struct walk *walk, int parent_fd, const char *name)
{
	_ds_cleanup_close_ int dir_fd = -1;
	struct ds_evict_candidate candidate;
	struct ds_image *image;

	if (ds_digest_parse(name, &candidate.name) < 0)
		return 0;
	dir_fd = openat(parent_fd, name, DIR_FLAGS);
	if (dir_fd < 0)
		return 0;
	candidate.allocated_bytes = allocated_at(dir_fd, "data") + allocated_at(dir_fd, "map");
	image = ds_image_pin(walk->cache, &candidate.name);
	if (image)
		ds_image_flush(image);
	read_stamps(dir_fd, &candidate);
	if (image) {
		candidate.used_ms = DS_MAX(candidate.used_ms, ds_image_used_ms(image));
		ds_image_unpin(image);
	}
	if (walk->n == walk->capacity_n) {
		size_t capacity_n = walk->capacity_n ? walk->capacity_n * 2 : 64;
		struct ds_evict_candidate *list =
			ds_reallocarray(walk->list, capacity_n, sizeof(list[0]));

		if (!list)
			return -ENOMEM;
		walk->list = list;
		walk->capacity_n = capacity_n;
	}
	walk->list[walk->n++] = candidate;
	walk->allocated_bytes += candidate.allocated_bytes;
	return 0;
}

static int walk_entry(void *ctx, int dir_fd, const char *name)
{
	return walk_image(ctx, dir_fd, name);
}

static int walk_dir(void *ctx, int dir_fd, const char *name)
{
	int r = ds_each_entry_at(dir_fd, name, walk_entry, ctx);

	/* What is not a directory does not belong here, and costs nothing. */
	return r == -ENOMEM || r == -EMFILE || r == -ENFILE ? r : 0;
}

static int compare_candidates(const void *a, const void *b)
{
	const struct ds_evict_candidate *x = a, *y = b;

	if (x->used_ms != y->used_ms)
		return x->used_ms < y->used_ms ? -1 : 1;
	return memcmp(x->name.bytes, y->name.bytes, DS_DIGEST_LEN);
}

static uint64_t free_bytes(struct ds_cache_root *root, uint64_t *ret_total)
{
	struct statvfs vfs;

	if (fstatvfs(root->fd, &vfs) < 0) {
		*ret_total = 0;
		return UINT64_MAX / 2;
	}
	*ret_total = (uint64_t)vfs.f_blocks * vfs.f_frsize;
	return (uint64_t)vfs.f_bavail * vfs.f_frsize;
}

int ds_evict_scan_locked(struct ds_cache *cache, struct ds_cache_root *root)
{
	struct walk walk = {.cache = cache};
	uint64_t total, mark = ds_cache_usage_mark(cache);
	int r;

	r = ds_each_entry_at(root->images_fd, ".", walk_dir, &walk);
	if (r < 0) {
		ds_free(walk.list);
		return r;
	}
	if (walk.n)
		qsort(walk.list, walk.n, sizeof(walk.list[0]), compare_candidates);
	ds_free(cache->evict.list);
	cache->evict.list = walk.list;
	cache->evict.list_n = walk.n;
	cache->evict.next = 0;
	cache->evict.listed_ns = ds_mono_ns();
	cache->images_n = walk.n;
	cache->evict.doubt_bytes = ds_cache_usage_set(cache, root, walk.allocated_bytes, mark);
	if (cache->capacity_is_default)
		cache->capacity_bytes = (free_bytes(root, &total) + walk.allocated_bytes) / 2;
	return 0;
}

static int clean_entry(void *ctx, int dir_fd, const char *name)
{
	struct stat st;

	if (!ds_own_is_tmp(name))
		return 0;
	/* One that is being made is young; the others are being deleted, or nobody does it any more. */
	if (!ds_starts_with(name, "old-") && (fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0 ||
					      time(NULL) - st.st_ctime < TMP_NEW_LIFE_S))
		return 0;
	ds_rmtree_at(dir_fd, name);
	return 0;
}

void ds_evict_clean_tmp(struct ds_cache_root *root)
{
	ds_each_entry_at(root->tmp_fd, ".", clean_entry, NULL);
}

/* ---- one image */

struct victim {
	int data_fd, map_fd;
	struct stat data, map;
	bool is_handed_out;
};

static void victim_close(struct victim *victim)
{
	ds_close_ptr(&victim->data_fd);
	ds_close_ptr(&victim->map_fd);
}

static int punch(void *ctx, uint64_t off, uint64_t len_bytes)
{
	struct victim *victim = ctx;

	if (fallocate(victim->data_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off,
		      (off_t)len_bytes) < 0)
		return -errno;
	return 0;
}

/* What was last used before `before_ms` goes. 0 if the image is only worth removing (`ret_may_go`), or could not be punched. */
static uint64_t punch_some(struct victim *victim, uint64_t goal_bytes, uint64_t before_ms,
			   bool *ret_may_go)
{
	struct ds_map_header header;
	struct stat after;

	*ret_may_go = true;
	if (ds_map_read_header(victim->map_fd, &header) < 0)
		return 0;
	*ret_may_go = header.used_ms < before_ms;
	victim->is_handed_out = header.flags & DS_IMAGE_HANDED_OUT;
	if (victim->is_handed_out ||
	    (*ret_may_go && (uint64_t)victim->data.st_blocks * 512 / 2 <= goal_bytes) ||
	    (uint64_t)victim->map.st_size != ds_map_len(header.slots_n) ||
	    (uint64_t)victim->data.st_size != header.size_bytes)
		return 0;
	/* Of a few small chunks no whole block may become free. */
	goal_bytes = DS_MAX(goal_bytes, PUNCH_BYTES_MIN);
	if (ds_map_give_up(victim->map_fd, &header, goal_bytes, before_ms, punch, victim) < 0 ||
	    fstat(victim->data_fd, &after) < 0 || after.st_blocks >= victim->data.st_blocks)
		return 0;
	return (uint64_t)(victim->data.st_blocks - after.st_blocks) * 512;
}

static bool is_file(int fd, struct stat *ret_st)
{
	return fd >= 0 && fstat(fd, ret_st) == 0 && S_ISREG(ret_st->st_mode);
}

/* Network file systems lease only what the server has delegated to this host: EAGAIN (nfs4_add_lease and cifs_setlease of Linux) says
 * nothing of who has the file open. */
static bool has_leases(int fd)
{
	struct statfs fs;

	if (fstatfs(fd, &fs) < 0)
		return false;
	switch ((uint32_t)fs.f_type) {
	case NFS_SUPER_MAGIC:
	case SMB_SUPER_MAGIC:
	case CIFS_SUPER_MAGIC:
	case SMB2_SUPER_MAGIC:
		return false;
	default:
		return true;
	}
}

/* Whether anybody has the data open: a program's mapping of what the kernel reads by itself stays when its file is closed, and nothing of
 * that comes to the mount. False where the file system has no leases. */
static bool is_open_elsewhere(int data_fd)
{
	return ds_try_lease(data_fd, F_WRLCK) == -EAGAIN && has_leases(data_fd);
}

/* Without a descriptor: what is there is none of ours, and goes with the image. -EBUSY: somebody else asks for a lease just now. */
static int open_file(int dir_fd, const char *name, int *ret_fd)
{
	*ret_fd = openat(dir_fd, name, FILE_FLAGS);
	if (*ret_fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOMEM))
		return -errno;
	return *ret_fd < 0 && errno == EWOULDBLOCK ? -EBUSY : 0;
}

/* This process has no side of it open. -EBUSY: another has, or a program has mapped it. -ESTALE: gone, or used meanwhile. */
static int evict_files(struct ds_cache *cache, struct ds_cache_root *root,
		       const struct ds_evict_candidate *candidate, uint64_t goal_bytes,
		       uint64_t before_ms)
{
	_ds_cleanup_(victim_close) struct victim victim = {.data_fd = -1, .map_fd = -1};
	_ds_cleanup_close_ int parent_fd = -1, dir_fd = -1;
	char dir[3], name[DS_DIGEST_TEXT_MAX];
	uint64_t freed = candidate->allocated_bytes, punched;
	struct stat here, there;
	bool may_go;
	int r;

	ds_image_path(&candidate->name, dir, name);
	r = ds_image_open_parent(root, dir, false, &parent_fd);
	if (r < 0)
		return r;
	dir_fd = openat(parent_fd, name, DIR_FLAGS);
	if (dir_fd < 0)
		return -ESTALE;
	r = open_file(dir_fd, "map", &victim.map_fd);
	if (r == 0 && is_file(victim.map_fd, &victim.map))
		r = ds_map_lock(victim.map_fd, F_WRLCK, DS_MAP_LOCK_USE);
	/* Behind the lock: an open file denies others their lease. */
	if (r == 0)
		r = open_file(dir_fd, "data", &victim.data_fd);
	if (r < 0)
		return r == -EAGAIN ? -EBUSY : r;
	if (fstat(dir_fd, &here) < 0 || fstatat(parent_fd, name, &there, AT_SYMLINK_NOFOLLOW) < 0 ||
	    here.st_ino != there.st_ino || here.st_dev != there.st_dev)
		return -ESTALE;
	if (is_file(victim.map_fd, &victim.map) && is_file(victim.data_fd, &victim.data)) {
		freed = (uint64_t)(victim.map.st_blocks + victim.data.st_blocks) * 512;
		punched = punch_some(&victim, goal_bytes, before_ms, &may_go);
		if (punched > 0) {
			ds_cache_usage_add(cache, root, -(int64_t)punched);
			cache->evicted_bytes += punched;
			return 0;
		}
		if (!may_go)
			return -ESTALE;
		if (victim.is_handed_out && is_open_elsewhere(victim.data_fd))
			return -EBUSY;
	}
	r = ds_image_throw_away(root, parent_fd, name);
	if (r < 0)
		return r;
	ds_cache_usage_add(cache, root, -(int64_t)freed);
	cache->evicted_bytes += freed;
	if (cache->images_n > 0)
		cache->images_n--;
	return 0;
}

/* The list of files that this process serves: what is in the kernel's memory is not read here for long, and to fetch it again costs
 * more data their place than it takes. Unless it leaves them hardly any. */
static bool is_own_list(const struct ds_cache *cache, const struct ds_image *image,
			const struct ds_evict_candidate *candidate)
{
	return !image->layout.yields &&
	       candidate->allocated_bytes <= cache->capacity_bytes / LIST_OF_CAPACITY;
}

static int evict_one(struct ds_cache *cache, struct ds_cache_root *root,
		     const struct ds_evict_candidate *candidate, uint64_t goal_bytes,
		     uint64_t before_ms, bool own_too)
{
	struct ds_image *image = ds_image_pin(cache, &candidate->name);
	int r = -EBUSY;

	if (image && before_ms != UINT64_MAX && is_own_list(cache, image, candidate)) {
		r = -ESTALE;
		ds_image_unpin(image);
	} else if (image) {
		/* Busy: it is just being opened; perhaps by who waits for us to make room. */
		if ((own_too || !atomic_load(&image->disk)) &&
		    pthread_mutex_trylock(&image->mutex) == 0) {
			if (ds_image_detach_locked(image, 0))
				r = evict_files(cache, root, candidate, goal_bytes, before_ms);
			pthread_mutex_unlock(&image->mutex);
		}
		ds_image_unpin(image);
	} else {
		r = evict_files(cache, root, candidate, goal_bytes, before_ms);
	}
	if (r == 0)
		cache->evictions_n++;
	return r;
}

/* ---- quota and floor */

/* How many bytes must go so that `bytes` more fit; 0: they fit. */
static uint64_t shortage(struct ds_cache *cache, struct ds_cache_root *root, uint64_t bytes)
{
	uint64_t used = ds_cache_usage_get(cache, root, true);
	uint64_t total, left = free_bytes(root, &total), over = 0, under = 0;
	uint64_t floor = total / 100 * cache->free_floor_percent;
	uint64_t doubt = bytes ? 0 : (uint64_t)cache->evict.doubt_bytes;

	if (used + bytes > cache->capacity_bytes + doubt)
		over = used + bytes - cache->capacity_bytes - doubt;
	if (floor + bytes > left)
		under = floor + bytes - left;
	return DS_MAX(over, under);
}

/* Goes through the list once: 0 when there is room, with slack. `*ret_busy`: what could have gone is in use. */
static int evict_listed(struct ds_cache *cache, struct ds_cache_root *root, uint64_t bytes,
			uint64_t before_ms, bool own_too, bool *ret_busy)
{
	while (cache->evict.next < cache->evict.list_n) {
		const struct ds_evict_candidate *candidate;
		uint64_t short_bytes = shortage(cache, root, bytes);

		if (short_bytes == 0)
			return 0;
		candidate = &cache->evict.list[cache->evict.next++];
		if (candidate->coldest_ms < before_ms &&
		    evict_one(cache, root, candidate, short_bytes, before_ms, own_too) == -EBUSY)
			*ret_busy = true;
	}
	return -ENOSPC;
}

static int evict_locked(struct ds_cache *cache, struct ds_cache_root *root, uint64_t bytes,
			uint64_t before_ms, bool *ret_busy)
{
	/* None where nobody waits for room: fills side by side go a little over the quota, and each time that much would go. */
	uint64_t slack =
		bytes ? DS_MIN(cache->capacity_bytes / SLACK_OF_CAPACITY, SLACK_BYTES_MAX) : 0;
	bool scanned = false;
	int r;

	/* Where nobody waits for room, nothing goes by a count that was added to since. */
	if (ds_mono_ns() - cache->evict.listed_ns > LIST_LIFE_MS * (uint64_t)DS_NS_PER_MS ||
	    !cache->evict.listed_ns || !bytes) {
		r = ds_evict_scan_locked(cache, root);
		scanned = bytes > 0;
		if (r < 0)
			return r;
		if (shortage(cache, root, bytes) == 0)
			return 0;
	}
	for (bool own_too = false;;) {
		if (evict_listed(cache, root, bytes + slack, before_ms, own_too, ret_busy) == 0 ||
		    shortage(cache, root, bytes) == 0)
			return 0;
		if (own_too)
			return -ENOSPC;
		/* A list that is used up may be old; our own images are taken by a fresh one. */
		if (scanned) {
			own_too = true;
			cache->evict.next = 0;
			continue;
		}
		r = ds_evict_scan_locked(cache, root);
		scanned = true;
		if (r < 0)
			return r;
		if (shortage(cache, root, bytes) == 0)
			return 0;
	}
}

/* How long not to look again: a look costs at most a fiftieth of the time. */
static uint64_t pause_after_ns(uint64_t started_ns, uint64_t min_ms)
{
	uint64_t took_ns = ds_mono_ns() - started_ns;

	return DS_MIN(DS_MAX(took_ns * 50, min_ms * DS_NS_PER_MS),
		      NO_COLD_MS_MAX * (uint64_t)DS_NS_PER_MS);
}

/* For a fill that may take only what is cold. */
static int evict_cold_locked(struct ds_cache *cache, struct ds_cache_root *root, uint64_t bytes)
{
	uint64_t started_ns = ds_mono_ns();
	uint64_t before_ms = ds_scan_cold_before(&cache->scan, ds_cache_now_ms());
	bool is_busy = false;
	int r;

	if (started_ns < atomic_load(&cache->evict.no_cold_until_ns))
		return -ENOSPC;
	cache->evict.next = 0;
	r = evict_locked(cache, root, bytes, before_ms, &is_busy);
	/* What was passed over here is still there for who may take anything. */
	cache->evict.next = 0;
	if (r == 0)
		return 0;
	atomic_store(&cache->evict.no_cold_until_ns,
		     ds_mono_ns() + pause_after_ns(started_ns, NO_ROOM_MS));
	if (is_busy)
		ds_cache_press(root);
	return r;
}

static int evict_any_locked(struct ds_cache *cache, struct ds_cache_root *root, uint64_t bytes)
{
	bool is_busy = false;
	int r;

	if (ds_mono_ns() < cache->evict.no_room_until_ns)
		return -ENOSPC;
	r = evict_locked(cache, root, bytes, UINT64_MAX, &is_busy);
	cache->evict.no_room_until_ns = r == 0 ? 0 : ds_deadline_in_ms(NO_ROOM_MS);
	if (r < 0)
		ds_cache_press(root);
	return r;
}

int ds_evict_for(struct ds_cache *cache, struct ds_cache_root *root, uint64_t bytes, bool yields)
{
	int r = 0;

	bytes = (bytes + 4095) / 4096 * 4096;
	if (bytes > cache->capacity_bytes)
		return -ENOSPC;
	if (shortage(cache, root, bytes) == 0)
		return 0;
	/* Every miss of a scan comes here: not through the lock. */
	if (yields && ds_mono_ns() < atomic_load(&cache->evict.no_cold_until_ns))
		return -ENOSPC;
	pthread_mutex_lock(&cache->evict_mutex);
	if (shortage(cache, root, bytes) > 0)
		r = yields ? evict_cold_locked(cache, root, bytes)
			   : evict_any_locked(cache, root, bytes);
	pthread_mutex_unlock(&cache->evict_mutex);
	return r;
}

void ds_evict_keep(struct ds_cache *cache, struct ds_cache_root *root)
{
	uint64_t started_ns = ds_mono_ns();

	if (started_ns < cache->evict.keep_again_ns)
		return;
	ds_evict_for(cache, root, 0, false);
	cache->evict.keep_again_ns = ds_mono_ns() + pause_after_ns(started_ns, 0);
}

int ds_cache_make_room(struct ds_cache *cache, uint64_t bytes)
{
	struct ds_cache_root *root = ds_cache_root_get(cache);
	int r;

	if (!root)
		return -ENOENT;
	r = ds_evict_for(cache, root, bytes, false);
	ds_cache_root_unref(root);
	return r;
}

uint64_t ds_cache_room_bytes(struct ds_cache *cache)
{
	struct ds_cache_root *root = ds_cache_root_get(cache);
	uint64_t total, ours, floor;

	if (!root)
		return 0;
	ours = free_bytes(root, &total) + ds_cache_usage_get(cache, root, true);
	floor = total / 100 * cache->free_floor_percent;
	ds_cache_root_unref(root);
	return ours > floor ? DS_MIN(ours - floor, (uint64_t)cache->capacity_bytes) : 0;
}

/* ---- by hand */

/* One round over a fresh list. */
static int prune_listed(struct ds_cache *cache, struct ds_cache_root *root,
			const struct ds_prune_options *options, struct ds_prune_result *result)
{
	int r = ds_evict_scan_locked(cache, root);

	result->in_use_n = 0;
	for (size_t i = 0; r == 0 && i < cache->evict.list_n; i++) {
		const struct ds_evict_candidate *candidate = &cache->evict.list[i];
		uint64_t used = ds_cache_usage_get(cache, root, true);

		if (options->interrupted && *options->interrupted)
			return -DS_E_INTERRUPTED;
		if (used <= options->to_bytes ||
		    (options->before_ms && candidate->used_ms >= options->before_ms))
			break;
		if (evict_one(cache, root, candidate,
			      options->to_bytes ? used - options->to_bytes : UINT64_MAX, UINT64_MAX,
			      true) == -EBUSY)
			result->in_use_n++;
	}
	cache->evict.next = cache->evict.list_n;
	return r;
}

int ds_cache_prune(struct ds_cache *cache, const struct ds_prune_options *options,
		   struct ds_prune_result *ret_result)
{
	uint64_t deadline_ns = 0, least_n = UINT64_MAX;
	struct ds_cache_root *root = ds_cache_root_get(cache);
	uint64_t freed = cache->evicted_bytes, evicted_n = cache->evictions_n;
	struct ds_prune_result result = {0};
	int r;

	if (!root)
		return -ENOENT;
	/* Rather than nothing evicted, and no word. */
	if (faccessat(root->tmp_fd, ".", W_OK, AT_EACCESS) < 0) {
		r = -errno;
		ds_cache_root_unref(root);
		return r;
	}
	pthread_mutex_lock(&cache->evict_mutex);
	ds_evict_clean_tmp(root);
	for (;;) {
		r = prune_listed(cache, root, options, &result);
		/* Who reads all the while lets go of some and opens others: no headway. */
		if (result.in_use_n < least_n) {
			least_n = result.in_use_n;
			deadline_ns = ds_deadline_in_ms(options->wait_ms);
		}
		if (r < 0 || !result.in_use_n || ds_mono_ns() >= deadline_ns)
			break;
		/* They let go of what they do not need just now. */
		ds_cache_press(root);
		ds_sleep_ms(PRUNE_STEP_MS);
	}
	pthread_mutex_unlock(&cache->evict_mutex);
	ds_cache_usage_flush(cache, root);
	result.freed_bytes = cache->evicted_bytes - freed;
	result.evictions_n = cache->evictions_n - evicted_n;
	result.used_bytes = ds_cache_usage_get(cache, root, true);
	ds_cache_root_unref(root);
	*ret_result = result;
	return r;
}
