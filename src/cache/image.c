/*
 * Images: one object for each name and process, and the opening and closing of their disk sides.
 *
 * INV-1 The disk side is closed only after the gate is shut: no user is inside, none comes in.
 * INV-2 Only the table's lock makes references out of none, so that an idle image may be freed under it.
 *
 * The gate needs sequential consistency: a user adds itself, then loads `disk`; the closer takes `disk`, then
 * loads the count. One of the two sees the other.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/uio.h>
#include <unistd.h>

#include "cache/cache_internal.h"
#include "util/bytes.h"
#include "util/clock.h"
#include "util/file.h"

#define RETRY_MS 1000u /* after trouble with the disk */

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

struct ds_image_disk *ds_image_enter_now(struct ds_image *image)
{
	struct ds_image_disk *disk;

	atomic_fetch_add(&image->users_n, 1);
	disk = atomic_load(&image->disk);
	if (!disk)
		atomic_fetch_sub(&image->users_n, 1);
	return disk;
}

void ds_image_leave(struct ds_image *image)
{
	atomic_fetch_sub(&image->users_n, 1);
}

bool ds_image_detach_locked(struct ds_image *image, uint64_t only_idle_ms)
{
	struct ds_image_disk *disk = atomic_load(&image->disk);

	if (!disk)
		return true;
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
	/* Said aloud, since holders of slot locks and direct reads keep the description open. */
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
	if (!root) {
		image->attach_error = -ENOENT;
		return -ENOENT;
	}
	ds_cache_start_keeper(cache);
	r = ds_image_disk_open(cache, root, &image->layout, create, &disk);
	ds_cache_root_unref(root);
	if (create || r != -ENOENT)
		image->attach_error = r;
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

struct ds_image_disk *ds_image_enter(struct ds_image *image, bool create)
{
	struct ds_image_disk *disk = ds_image_enter_now(image);
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
		disk = ds_image_enter_now(image);
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
	struct ds_image_disk *disk = ds_image_enter_now(image);
	uint64_t used_ms = 0;

	if (disk) {
		used_ms = disk->used_ms;
		ds_image_leave(image);
	}
	return used_ms;
}

void ds_image_flush(struct ds_image *image)
{
	struct ds_image_disk *disk;

	if (pthread_mutex_trylock(&image->mutex) != 0)
		return;
	disk = atomic_load(&image->disk); /* stays, the mutex is ours */
	if (disk)
		ds_image_disk_flush(disk);
	pthread_mutex_unlock(&image->mutex);
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
		ds_image_disk_pull_back(disk);
		if (atomic_load(&disk->is_stamped))
			ds_scan_reads(&image->cache->scan, disk->used_ms);
		ds_image_disk_flush(disk);
		ds_image_disk_forget_lent(disk);
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
			    !atomic_load(&image->disk))
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
