/*
 * Images: one object for each name and process, reading and filling.
 *
 * INV-1 A byte is given out only from a slot that is trusted under exactly the reader's claim.
 * INV-2 The disk side is closed only after the gate is shut: no user is inside, none comes in.
 * INV-3 The path of a hit takes no mutex and allocates nothing.
 * INV-4 Trouble with the disk is a miss; damage makes the slot a miss for good (in this copy).
 *
 * The gate needs sequential consistency: a user adds itself, then loads `disk`; the closer takes `disk`, then
 * loads the count. One of the two sees the other.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "cache/cache_internal.h"
#include "util/bytes.h"
#include "util/clock.h"
#include "util/file.h"

#define RETRY_MS 1000u /* after trouble with the disk */
#define STAMP_MS 100u  /* how exact the times of last use are */

void ds_image_name(enum ds_image_kind kind, const struct ds_digest *id, struct ds_digest *ret_name)
{
	static const char *const tags[] = {[DS_IMAGE_PACK] = "dsfs-image-pack\n",
					   [DS_IMAGE_FILE] = "dsfs-image-file\n",
					   [DS_IMAGE_MANIFEST] = "dsfs-image-page\n",
					   [DS_IMAGE_INDEX] = "dsfs-image-node\n"};
	uint8_t text[16 + DS_DIGEST_LEN];

	memcpy(text, tags[kind], 16);
	memcpy(text + 16, id->bytes, DS_DIGEST_LEN);
	if (ds_digest_of(text, sizeof(text), ret_name) < 0) {
		/* Out of memory: any name that is the same next time will do. */
		*ret_name = *id;
		ret_name->bytes[0] ^= (uint8_t)(kind + 1);
	}
}

/* ---- the table */

static int image_new(struct ds_cache *cache, const struct ds_image_layout *layout,
		     struct ds_image **ret_image)
{
	struct ds_image *image = ds_calloc(1, sizeof(*image));

	if (!image)
		return -ENOMEM;
	image->cache = cache;
	image->layout = *layout;
	pthread_mutex_init(&image->mutex, NULL);
	*ret_image = image;
	return 0;
}

struct ds_image *ds_image_free(struct ds_image *image)
{
	if (!image)
		return NULL;
	if (image->mapping)
		munmap((void *)(uintptr_t)image->mapping, image->mapping_len);
	image->mapping = NULL;
	pthread_mutex_lock(&image->mutex);
	ds_image_detach_locked(image, 0);
	pthread_mutex_unlock(&image->mutex);
	pthread_mutex_destroy(&image->mutex);
	ds_free(image);
	return NULL;
}

/* The name on the disk says all that fixes the layout, so that a manifest that lies about the number of slots gets an
 * image of its own instead of spoiling another's. */
static int name_of_layout(const struct ds_image_layout *layout, struct ds_digest *ret_name)
{
	uint8_t text[8 + DS_DIGEST_LEN + 4 + 8] = "layout1\n";

	memcpy(text + 8, layout->name.bytes, DS_DIGEST_LEN);
	ds_put_le32(text + 8 + DS_DIGEST_LEN, layout->slots_n);
	ds_put_le64(text + 8 + DS_DIGEST_LEN + 4, layout->size_bytes);
	return ds_digest_of(text, sizeof(text), ret_name);
}

static int add_locked(struct ds_cache *cache, const struct ds_image_layout *layout,
		      struct ds_image **ret_image)
{
	struct ds_image *image;
	int r;

	r = image_new(cache, layout, &image);
	if (r < 0)
		return r;
	r = ds_map_put(cache->locked.images, layout->name.bytes, DS_DIGEST_LEN, image, NULL);
	if (r < 0)
		ds_image_free(image);
	else
		*ret_image = image;
	return r;
}

int ds_image_open(struct ds_cache *cache, const struct ds_image_layout *layout,
		  struct ds_image **ret_image)
{
	struct ds_image_layout own = *layout;
	struct ds_image *image;
	int r;

	r = name_of_layout(layout, &own.name);
	if (r < 0)
		return r;
	pthread_mutex_lock(&cache->mutex);
	image = ds_map_get(cache->locked.images, own.name.bytes, DS_DIGEST_LEN);
	if (!image)
		r = add_locked(cache, &own, &image);
	/* The users of an image together hold one reference to the cache. */
	if (r == 0 && atomic_fetch_add(&image->refs_n, 1) == 0)
		ds_cache_ref(cache);
	pthread_mutex_unlock(&cache->mutex);
	if (r == 0)
		*ret_image = image;
	return r;
}

struct ds_image *ds_image_pin(struct ds_cache *cache, const struct ds_digest *name)
{
	struct ds_image *image;

	pthread_mutex_lock(&cache->mutex);
	image = ds_map_get(cache->locked.images, name->bytes, DS_DIGEST_LEN);
	if (image)
		image->pins_n++;
	pthread_mutex_unlock(&cache->mutex);
	return image;
}

void ds_image_unpin(struct ds_image *image)
{
	struct ds_cache *cache = image->cache;

	pthread_mutex_lock(&cache->mutex);
	image->pins_n--;
	pthread_mutex_unlock(&cache->mutex);
}

struct ds_image *ds_image_ref(struct ds_image *image)
{
	unsigned before = atomic_fetch_add(&image->refs_n, 1);

	assert(before > 0);
	return image;
}

struct ds_image *ds_image_unref(struct ds_image *image)
{
	struct ds_cache *cache;

	if (!image)
		return NULL;
	cache = image->cache;
	/* Idle now; the keeper, or the end of the cache, frees it. */
	if (atomic_fetch_sub(&image->refs_n, 1) == 1)
		ds_cache_unref(cache);
	return NULL;
}

/* ---- the gate */

static struct ds_image_disk *enter(struct ds_image *image)
{
	struct ds_image_disk *disk;

	atomic_fetch_add(&image->users_n, 1);
	disk = atomic_load(&image->disk);
	if (!disk)
		atomic_fetch_sub(&image->users_n, 1);
	return disk;
}

static void leave(struct ds_image *image)
{
	atomic_fetch_sub(&image->users_n, 1);
}

bool ds_image_detach_locked(struct ds_image *image, uint64_t only_idle_ms)
{
	struct ds_image_disk *disk = atomic_load(&image->disk);

	if (!disk)
		return true;
	if (image->mapping)
		return false;
	if (only_idle_ms &&
	    (ds_cache_now_ms() < disk->used_ms + only_idle_ms || atomic_load(&image->users_n) > 0))
		return false;
	atomic_store(&image->disk, NULL);
	/* Users inside do one piece of local work. */
	for (unsigned i = 0; atomic_load(&image->users_n) > 0; i++) {
		if (i < 64)
			sched_yield();
		else
			ds_sleep_ms(1);
	}
	ds_image_disk_flush(disk);
	/* Said aloud, since holders of slot locks keep the description open. */
	ds_map_lock(disk->map_fd, F_UNLCK, DS_MAP_LOCK_USE);
	ds_image_disk_unref(disk);
	image->cache->attached_n--;
	return true;
}

static int attach_locked(struct ds_image *image, bool create)
{
	struct ds_cache *cache = image->cache;
	struct ds_cache_root *root;
	struct ds_image_disk *disk;
	int r;

	if (image->retry_ns && ds_mono_ns() < image->retry_ns)
		return -EIO;
	root = ds_cache_root_get(cache);
	if (!root)
		return -ENOENT;
	ds_cache_start_keeper(cache);
	r = ds_image_disk_open(cache, root, &image->layout, create, &disk);
	ds_cache_root_unref(root);
	if (r == 0) {
		cache->attached_n++;
		image->retry_ns = 0;
		atomic_store(&image->disk, disk);
		return 0;
	}
	if (create && r != -ENOSPC)
		ds_cache_root_suspect(cache);
	if (r != -ENOENT || create)
		image->retry_ns =
			ds_deadline_in_ms(r == -ENOSPC || r == -EDQUOT ? RETRY_MS / 10 : RETRY_MS);
	return r;
}

static bool is_sane(const struct ds_image *image, const struct ds_image_slot *slot)
{
	return slot->slot < image->layout.slots_n && slot->raw_len_bytes > 0 &&
	       slot->raw_len_bytes <= DS_CHUNK_MAX &&
	       slot->raw_len_bytes <= image->layout.size_bytes &&
	       slot->raw_off <= image->layout.size_bytes - slot->raw_len_bytes;
}

/* Enters, opening the disk side if there is none. NULL: without a disk. */
static struct ds_image_disk *enter_or_attach(struct ds_image *image, bool create)
{
	struct ds_image_disk *disk = enter(image);
	struct ds_cache *cache = image->cache;

	if (disk || !cache->dir)
		return disk;
	for (int tries = 0; tries < 3 && !disk; tries++) {
		bool crowded = cache->attached_n >= cache->attached_max;
		int r = 0;

		if (crowded)
			ds_image_detach_some(cache);
		pthread_mutex_lock(&image->mutex);
		if (!atomic_load(&image->disk))
			r = attach_locked(image, create);
		pthread_mutex_unlock(&image->mutex);
		if (r == -EMFILE || r == -ENFILE)
			ds_image_detach_some(cache);
		else if (r < 0)
			return NULL;
		disk = enter(image);
	}
	return disk;
}

struct found { /* pinned */
	struct ds_image **images;
	size_t n;
};

/* All images with a disk side. */
static int collect(struct ds_cache *cache, struct found *ret_found)
{
	size_t cursor = 0, key_len;
	const void *key;
	void *value;
	int r = 0;

	pthread_mutex_lock(&cache->mutex);
	ret_found->n = 0;
	ret_found->images =
		ds_calloc(ds_map_count(cache->locked.images) + 1, sizeof(ret_found->images[0]));
	if (!ret_found->images)
		r = -ENOMEM;
	while (r == 0 && ds_map_each(cache->locked.images, &cursor, &key, &key_len, &value)) {
		struct ds_image *image = value;

		if (!atomic_load(&image->disk))
			continue;
		image->pins_n++;
		ret_found->images[ret_found->n++] = image;
	}
	pthread_mutex_unlock(&cache->mutex);
	return r;
}

static void release_found(struct found *found)
{
	for (size_t i = 0; i < found->n; i++)
		ds_image_unpin(found->images[i]);
	ds_free(found->images);
}

uint64_t ds_image_used_ms(struct ds_image *image)
{
	struct ds_image_disk *disk = enter(image);
	uint64_t used_ms = 0;

	if (disk) {
		used_ms = disk->used_ms;
		leave(image);
	}
	return used_ms;
}

void ds_image_detach_some(struct ds_cache *cache)
{
	uint64_t oldest = UINT64_MAX, newest = 0, limit;
	struct found found;
	size_t closed = 0;

	if (collect(cache, &found) < 0)
		return;
	for (size_t i = 0; i < found.n; i++) {
		uint64_t used_ms = ds_image_used_ms(found.images[i]);

		oldest = DS_MIN(oldest, used_ms);
		newest = DS_MAX(newest, used_ms);
	}
	/* The oldest eighth of the time span, and in any case an eighth of the images. */
	limit = oldest + (newest - oldest) / 8;
	for (int pass = 0; pass < 2; pass++) {
		for (size_t i = 0; i < found.n && closed <= found.n / 8; i++) {
			struct ds_image *image = found.images[i];

			if ((pass == 0 && ds_image_used_ms(image) > limit) ||
			    pthread_mutex_trylock(&image->mutex) != 0)
				continue;
			if (atomic_load(&image->disk) && ds_image_detach_locked(image, 0))
				closed++;
			pthread_mutex_unlock(&image->mutex);
		}
	}
	release_found(&found);
}

static void keep_one(struct ds_image *image, uint64_t idle_ms)
{
	struct ds_image_disk *disk;

	if (pthread_mutex_trylock(&image->mutex) != 0)
		return;
	disk = atomic_load(&image->disk); /* stays, the mutex is ours */
	if (disk) {
		ds_image_disk_flush(disk);
		if (!ds_image_disk_is_sound(disk))
			ds_image_detach_locked(image, 0);
		else
			ds_image_detach_locked(image, idle_ms);
	}
	pthread_mutex_unlock(&image->mutex);
}

/* Takes images out of the table that nobody holds and that have no disk side. */
static void forget_idle(struct ds_cache *cache)
{
	struct ds_image *idle[64];
	size_t idle_n;

	do {
		size_t cursor = 0, key_len;
		const void *key;
		void *value;

		idle_n = 0;
		pthread_mutex_lock(&cache->mutex);
		while (idle_n < DS_ARRAY_SIZE(idle) &&
		       ds_map_each(cache->locked.images, &cursor, &key, &key_len, &value)) {
			struct ds_image *image = value;

			/* Only the table's lock turns 0 into 1. */
			if (atomic_load(&image->refs_n) == 0 && image->pins_n == 0 &&
			    (!atomic_load(&image->disk) || image->mapping))
				idle[idle_n++] = image;
		}
		for (size_t i = 0; i < idle_n; i++) {
			ds_map_remove(cache->locked.images, idle[i]->layout.name.bytes,
				      DS_DIGEST_LEN);
			cache->locked.hits_n += idle[i]->hits_n;
			cache->locked.misses_n += idle[i]->misses_n;
		}
		pthread_mutex_unlock(&cache->mutex);
		for (size_t i = 0; i < idle_n; i++)
			ds_image_free(idle[i]);
	} while (idle_n == DS_ARRAY_SIZE(idle));
}

void ds_image_keep(struct ds_cache *cache, uint64_t idle_ms)
{
	struct found found;

	if (collect(cache, &found) == 0) {
		for (size_t i = 0; i < found.n; i++)
			keep_one(found.images[i], idle_ms);
		release_found(&found);
	}
	forget_idle(cache);
}

/* ---- slots */

static void touch(struct ds_image_disk *disk, uint64_t raw_off)
{
	uint64_t now = ds_cache_now_ms();
	_Atomic uint64_t *stamp = &disk->segment_used_ms[raw_off / disk->segment_bytes];

	/* Seldom written, so that readers do not fight for the line. */
	if (now >= atomic_load_explicit(stamp, memory_order_relaxed) + STAMP_MS)
		atomic_store_explicit(stamp, now, memory_order_relaxed);
	if (now >= atomic_load_explicit(&disk->used_ms, memory_order_relaxed) + STAMP_MS)
		atomic_store_explicit(&disk->used_ms, now, memory_order_relaxed);
}

static bool copy_is_claim(const struct ds_copy_slot *copy, const struct ds_image_slot *slot)
{
	return copy->raw_off == slot->raw_off && copy->raw_len_bytes == slot->raw_len_bytes &&
	       ds_digest_equal(&copy->digest, &slot->digest);
}

/* Notes a trusted slot in the private copy. */
static void publish(struct ds_image_disk *disk, const struct ds_image_slot *slot)
{
	struct ds_copy_slot *copy = &disk->slots[slot->slot];
	uint8_t expected = DS_COPY_UNKNOWN;

	if (!atomic_compare_exchange_strong(&copy->state, &expected, DS_COPY_LOADING))
		return;
	copy->digest = slot->digest;
	copy->raw_off = slot->raw_off;
	copy->raw_len_bytes = slot->raw_len_bytes;
	atomic_store_explicit(&copy->state, DS_COPY_TRUSTED, memory_order_release);
}

static enum ds_image_state look(struct ds_image_disk *disk, const struct ds_image_slot *slot)
{
	struct ds_copy_slot *copy = &disk->slots[slot->slot];
	uint8_t state;
	bool is_claim;

	if (atomic_load_explicit(&copy->state, memory_order_acquire) == DS_COPY_TRUSTED)
		return copy_is_claim(copy, slot) ? DS_IMAGE_READY : DS_IMAGE_NOTHING;
	if (ds_map_look(disk, slot, &state, &is_claim) < 0 || !is_claim)
		return DS_IMAGE_NOTHING;
	if (!(state & DS_SLOT_TRUSTED))
		return DS_IMAGE_UNCHECKED;
	publish(disk, slot);
	return DS_IMAGE_READY;
}

/* The bytes are not what they should be: gone, for other processes too. */
static void forget_slot(struct ds_image *image, struct ds_image_disk *disk,
			const struct ds_image_slot *slot)
{
	image->cache->damaged_n++;
	atomic_store(&disk->slots[slot->slot].state, DS_COPY_DEAD);
	ds_map_set_state(disk, slot->slot, 0);
}

static int read_all(struct ds_image_disk *disk, void *ret_data, size_t len_bytes, uint64_t off)
{
	size_t n;
	int r = ds_pread_full(disk->data_fd, ret_data, len_bytes, off, &n);

	return r < 0 ? r : n == len_bytes ? 0 : -DS_E_CORRUPT;
}

/* A chunk from another boot: reads all of it, and trusts it if it fits. */
static int read_checking(struct ds_image_disk *disk, const struct ds_image_slot *slot, uint64_t off,
			 size_t len_bytes, void *ret_data)
{
	bool whole = off == 0 && len_bytes == slot->raw_len_bytes;
	_ds_cleanup_free_ uint8_t *buffer = NULL;
	struct ds_digest digest;
	uint8_t *raw = ret_data;
	int r;

	if (!whole) {
		raw = buffer = ds_malloc(slot->raw_len_bytes);
		if (!buffer)
			return -ENOMEM;
	}
	r = read_all(disk, raw, slot->raw_len_bytes, slot->raw_off);
	if (r == 0)
		r = ds_digest_of(raw, slot->raw_len_bytes, &digest);
	if (r == 0 && !ds_digest_equal(&digest, &slot->digest))
		r = -DS_E_CORRUPT;
	if (r < 0)
		return r;
	if (ds_map_set_state(disk, slot->slot, DS_SLOT_PRESENT | DS_SLOT_TRUSTED) == 0)
		publish(disk, slot);
	if (!whole)
		memcpy(ret_data, raw + off, len_bytes);
	return 0;
}

static int read_now(struct ds_image_disk *disk, const struct ds_image_slot *slot, uint64_t off,
		    size_t len_bytes, void *ret_data)
{
	struct iovec iov = {.iov_base = ret_data, .iov_len = len_bytes};
	ssize_t n = preadv2(disk->data_fd, &iov, 1, (off_t)(slot->raw_off + off), RWF_NOWAIT);

	if (n == (ssize_t)len_bytes)
		return 0;
	if (n < 0 && errno == EOPNOTSUPP)
		return read_all(disk, ret_data, len_bytes, slot->raw_off + off);
	if (n < 0 && errno != EAGAIN && errno != EINTR)
		return -errno;
	return -EAGAIN;
}

enum how { READ_NOW, READ_TRUSTED, READ_CHECKING };

static int read_slot(struct ds_image *image, const struct ds_image_slot *slot, uint64_t off,
		     size_t len_bytes, enum how how, void *ret_data)
{
	struct ds_image_disk *disk;
	int r;

	assert(off <= slot->raw_len_bytes && len_bytes <= slot->raw_len_bytes - off);
	if (!is_sane(image, slot))
		return -DS_E_NOT_LOCAL;
	disk = enter_or_attach(image, false);
	if (!disk)
		return -DS_E_NOT_LOCAL;
	switch (look(disk, slot)) {
	case DS_IMAGE_READY:
		r = how == READ_NOW ? read_now(disk, slot, off, len_bytes, ret_data)
				    : read_all(disk, ret_data, len_bytes, slot->raw_off + off);
		break;
	case DS_IMAGE_UNCHECKED:
		r = how == READ_CHECKING ? read_checking(disk, slot, off, len_bytes, ret_data)
					 : -DS_E_NOT_LOCAL;
		break;
	default:
		r = -DS_E_NOT_LOCAL;
	}
	if (r == 0)
		touch(disk, slot->raw_off);
	else if (r != -DS_E_NOT_LOCAL && r != -EAGAIN && r != -ENOMEM) {
		forget_slot(image, disk, slot);
		r = -DS_E_NOT_LOCAL;
	}
	leave(image);
	return r;
}

static int count(struct ds_image *image, int r)
{
	if (r == 0)
		atomic_fetch_add_explicit(&image->hits_n, 1, memory_order_relaxed);
	else if (r == -DS_E_NOT_LOCAL)
		atomic_fetch_add_explicit(&image->misses_n, 1, memory_order_relaxed);
	return r;
}

int ds_image_read(struct ds_image *image, const struct ds_image_slot *slot, uint64_t off,
		  size_t len_bytes, bool may_check, void *ret_data)
{
	int r = read_slot(image, slot, off, len_bytes, may_check ? READ_CHECKING : READ_TRUSTED,
			  ret_data);

	/* Out of memory for a check is a miss too. */
	return count(image, r == -ENOMEM ? -DS_E_NOT_LOCAL : r);
}

int ds_image_read_now(struct ds_image *image, const struct ds_image_slot *slot, uint64_t off,
		      size_t len_bytes, void *ret_data)
{
	return count(image, read_slot(image, slot, off, len_bytes, READ_NOW, ret_data));
}

enum ds_image_state ds_image_look(struct ds_image *image, const struct ds_image_slot *slot)
{
	enum ds_image_state state = DS_IMAGE_NOTHING;
	struct ds_image_disk *disk;

	if (!is_sane(image, slot))
		return state;
	disk = enter_or_attach(image, false);
	if (disk) {
		state = look(disk, slot);
		leave(image);
	}
	return state;
}

bool ds_image_has(struct ds_image *image, const struct ds_image_slot *slot)
{
	return ds_image_look(image, slot) == DS_IMAGE_READY;
}

/* ---- locks of slots, filling */

static int lock_slot(struct ds_image_disk *disk, uint32_t slot)
{
	struct ds_copy_slot *copy = &disk->slots[slot];
	uint8_t expected = 0;
	int r;

	/* Locks of one description do not exclude each other, so this process has its own mark. (A
	 * description for each slot would cost thousands of descriptors.) */
	if (!atomic_compare_exchange_strong(&copy->is_filling, &expected, 1))
		return -EBUSY;
	r = ds_map_lock(disk->map_fd, F_WRLCK, DS_MAP_LOCK_SLOT + slot);
	if (r < 0) {
		atomic_store(&copy->is_filling, 0);
		return r == -EAGAIN ? -EBUSY : r;
	}
	return 0;
}

static void unlock_slot(struct ds_image_disk *disk, uint32_t slot)
{
	ds_map_lock(disk->map_fd, F_UNLCK, DS_MAP_LOCK_SLOT + slot);
	atomic_store(&disk->slots[slot].is_filling, 0);
}

void ds_image_unlock_slot(struct ds_image_lock *lock)
{
	if (!lock->disk)
		return;
	unlock_slot(lock->disk, lock->slot);
	lock->disk = ds_image_disk_unref(lock->disk);
}

int ds_image_lock_slot(struct ds_image *image, const struct ds_image_slot *slot,
		       struct ds_image_lock *ret_lock)
{
	struct ds_image_disk *disk;
	int r;

	if (!is_sane(image, slot))
		return -DS_E_MISMATCH;
	disk = enter_or_attach(image, true);
	if (!disk)
		return -ENOENT;
	r = lock_slot(disk, slot->slot);
	if (r == 0) {
		atomic_fetch_add(&disk->refs_n, 1);
		*ret_lock = (struct ds_image_lock){.disk = disk, .slot = slot->slot};
	}
	leave(image);
	return r;
}

/* With the slot's lock. */
static int fill_slot(struct ds_image *image, struct ds_image_disk *disk,
		     const struct ds_image_slot *slot, const void *raw)
{
	uint64_t rounded = (uint64_t)(slot->raw_len_bytes + 4095u) / 4096 * 4096;
	struct ds_cache_root *root;
	int r;

	r = ds_map_claim(disk, slot);
	if (r == 0)
		r = ds_pwrite_full(disk->data_fd, raw, slot->raw_len_bytes, slot->raw_off);
	if (r == 0)
		r = ds_map_set_state(disk, slot->slot, DS_SLOT_PRESENT | DS_SLOT_TRUSTED);
	if (r < 0)
		return r;
	publish(disk, slot);
	touch(disk, slot->raw_off);
	/* Rather too much: chunks share blocks at their ends. Scans put it right. */
	root = ds_cache_root_get(image->cache);
	ds_cache_usage_add(image->cache, root, (int64_t)rounded);
	ds_cache_root_unref(root);
	return 0;
}

/* `reterr_stale`: the files are not those of the cache any more, or were cut. */
static int try_fill(struct ds_image *image, const struct ds_image_slot *slot, const void *raw,
		    struct ds_image_lock *lock, bool *reterr_stale)
{
	struct ds_image_disk *disk = enter_or_attach(image, true);
	bool own_lock = false;
	int r = 0;

	*reterr_stale = false;
	if (!disk)
		return -ENOENT;
	if (!ds_image_disk_is_sound(disk)) {
		*reterr_stale = true;
		r = -ESTALE;
	} else if (look(disk, slot) != DS_IMAGE_READY) {
		if (lock->disk != disk) {
			/* Of other files: they were evicted and made anew meanwhile. */
			ds_image_unlock_slot(lock);
			r = lock_slot(disk, slot->slot);
			own_lock = r == 0;
		}
		/* Somebody may have filled it just before we got the lock. */
		if (r == 0 && look(disk, slot) != DS_IMAGE_READY)
			r = fill_slot(image, disk, slot, raw);
		if (own_lock)
			unlock_slot(disk, slot->slot);
	}
	leave(image);
	return r;
}

static int fill_with_room(struct ds_image *image, const struct ds_image_slot *slot, const void *raw,
			  struct ds_image_lock *lock)
{
	struct ds_cache *cache = image->cache;
	bool is_stale;
	int r = 0;

	for (int tries = 0; tries < 3; tries++) {
		struct ds_cache_root *root = ds_cache_root_get(cache);

		if (!root)
			return -ENOENT;
		r = ds_evict_for(cache, root, slot->raw_len_bytes);
		ds_cache_root_unref(root);
		if (r < 0)
			return r;
		r = try_fill(image, slot, raw, lock, &is_stale);
		if (r == -ENOSPC || r == -EDQUOT) {
			/* The disk is fuller than statvfs says. Once: more would only thrash. */
			if (tries > 0 || ds_cache_make_room(cache, DS_MIB(1)) < 0)
				return r;
		} else if (is_stale) {
			pthread_mutex_lock(&image->mutex);
			/* What is cut is damage, found so when it is opened again. */
			ds_image_detach_locked(image, 0);
			pthread_mutex_unlock(&image->mutex);
		} else {
			return r;
		}
	}
	return r;
}

int ds_image_fill_locked(struct ds_image *image, const struct ds_image_slot *slot, const void *raw,
			 struct ds_image_lock *lock)
{
	int r = -ENOENT;

	if (!is_sane(image, slot))
		return -DS_E_MISMATCH;
	if (image->cache->dir)
		r = fill_with_room(image, slot, raw, lock);
	if (r == 0)
		image->cache->fills_n++;
	else
		image->cache->fill_failures_n++;
	return r;
}

int ds_image_fill(struct ds_image *image, const struct ds_image_slot *slot, const void *raw)
{
	struct ds_image_lock none = {0};

	return ds_image_fill_locked(image, slot, raw, &none);
}

/* ---- handing out */

static bool all_ready(struct ds_image *image, struct ds_image_disk *disk,
		      const struct ds_image_slot *slots, size_t slots_n)
{
	for (size_t i = 0; i < slots_n; i++)
		if (!is_sane(image, &slots[i]) || look(disk, &slots[i]) != DS_IMAGE_READY)
			return false;
	return true;
}

static int hand_out(struct ds_image *image, struct ds_image_disk *disk)
{
	uint32_t flags = DS_IMAGE_HANDED_OUT;
	void *mapping;
	int r;

	/* The flag first: from then on nobody punches. */
	r = ds_pwrite_full(disk->map_fd, &flags, sizeof(flags),
			   offsetof(struct ds_map_header, flags));
	if (r < 0)
		return r;
	mapping = mmap(NULL, image->layout.size_bytes, PROT_READ, MAP_SHARED, disk->data_fd, 0);
	if (mapping == MAP_FAILED)
		return -errno;
	image->mapping = mapping;
	image->mapping_len = image->layout.size_bytes;
	return 0;
}

const void *ds_image_map_slots(struct ds_image *image, const struct ds_image_slot *slots,
			       size_t slots_n)
{
	const void *mapping = NULL;
	struct ds_image_disk *disk;

	if (image->layout.size_bytes == 0 || !image->cache->dir)
		return NULL;
	disk = enter_or_attach(image, false);
	if (!disk)
		return NULL;
	leave(image);
	/* The mutex keeps the disk side: see ds_image_detach_locked. */
	pthread_mutex_lock(&image->mutex);
	disk = atomic_load(&image->disk);
	if (disk && ds_image_disk_is_sound(disk) && all_ready(image, disk, slots, slots_n) &&
	    (image->mapping || hand_out(image, disk) == 0))
		mapping = image->mapping;
	pthread_mutex_unlock(&image->mutex);
	return mapping;
}
