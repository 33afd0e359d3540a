/*
 * The cache's directory: checks when it is opened (and opened anew, if it was moved away or deleted under a
 * mount), the counter of used bytes, and the keeper, a thread that looks after both.
 *
 * Below DIR: images/XX/NAME/{data,map}; tmp/ for images that are being made or deleted; usage, the counter
 * that the processes share. `usage` is a hint that scans put right; deleting it loses nothing. It also says that DIR is a cache
 * (cache_own.c).
 *
 * INV-1 Nothing below a directory is touched that is not ours alone to write, and nothing that dsfs did not make.
 * INV-2 seen + pending is this process's best knowledge of the bytes in use.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "cache/cache_internal.h"
#include "util/clock.h"
#include "util/file.h"
#include "util/random.h"
#include "util/str.h"

#define DIR_FLAGS	 (O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
#define KEEPER_PERIOD_MS 2000u
#define IDLE_MS		 30000u /* an image nobody used for so long is let go */
#define IDLE_PRESSED_MS	 500u	/* and for so long, while a process finds no room */
#define PRESSED_MS	 5000u
#define SCAN_PERIOD_MS	 300000u /* accounting is put right */
#define ROOT_RETRY_MS	 1000u
#define TELL_AGAIN_MS	 600000u
#define FLOOR_PERCENT	 10u
#define ATTACHED_MAX	 16384u
/* Copies of claims: 48 bytes for each of 350,000 chunks. Of those beyond it 1.1 bytes are kept (11 MiB for 10,000,000 small files),
 * and a hit costs one more system call: 0.5 us, where all that the cache does for 1,000 bytes costs 1.3. */
#define COPIED_MAX_BYTES  DS_MIB(16)
#define MAPPED_MEMORIES	  4u /* so many times the memory, of addresses */
#define USAGE_PENDING_MAX ((int64_t)DS_KIB(256))

/* The two are written apart: a process that finds no room does not hold the counter's lock. */
#define COUNTER_LEN offsetof(struct ds_usage_file, pressure_ms)

uint64_t ds_cache_now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME_COARSE, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* ---- the directory */

struct ds_cache_root *ds_cache_root_unref(struct ds_cache_root *root)
{
	if (root && atomic_fetch_sub(&root->refs_n, 1) == 1) {
		ds_close_ptr(&root->usage_fd);
		ds_close_ptr(&root->tmp_fd);
		ds_close_ptr(&root->images_fd);
		ds_close_ptr(&root->fd);
		ds_free(root);
	}
	return NULL;
}

static int check_dir(int fd, const char *path, struct ds_diag *reterr_diag)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return ds_diag_set(reterr_diag, -errno, path, "the cache directory");
	if (st.st_uid != geteuid())
		return ds_diag_set(reterr_diag, -EPERM, path,
				   "the cache directory belongs to another user");
	if (st.st_mode & 022)
		return ds_diag_set(reterr_diag, -EPERM, path,
				   "the cache directory may be written by others (chmod 700 it)");
	return 0;
}

/* Who may write to the directory above may put another one in its place, unless it is sticky. */
static int check_parent(const char *path, struct ds_diag *reterr_diag)
{
	_ds_cleanup_free_ char *parent = NULL;
	size_t len = strlen(path);
	struct stat st;

	while (len > 1 && path[len - 1] == '/')
		len--;
	while (len > 0 && path[len - 1] != '/')
		len--;
	while (len > 1 && path[len - 1] == '/')
		len--;
	parent = len ? ds_strndup(path, len) : ds_strdup(".");
	if (!parent)
		return -ENOMEM;
	if (stat(parent, &st) < 0)
		return ds_diag_set(reterr_diag, -errno, parent, "the directory of the cache");
	if ((st.st_mode & 022) && !(st.st_mode & S_ISVTX))
		return ds_diag_set(reterr_diag, -EPERM, parent,
				   "others may write to the directory that holds the cache");
	return 0;
}

/* A directory of ours below root. -EEXIST: something else has its name. */
static int open_below(int root_fd, const char *name, int *ret_fd)
{
	struct stat st;
	int fd;

	if (mkdirat(root_fd, name, 0700) == 0) {
		if (fchmodat(root_fd, name, 0700, 0) < 0)
			return -errno;
	} else if (errno != EEXIST) {
		return -errno;
	}
	fd = openat(root_fd, name, DIR_FLAGS);
	if (fd < 0)
		return errno == ENOTDIR || errno == ELOOP ? -EEXIST : -errno;
	if (fstat(fd, &st) < 0 || st.st_uid != geteuid() || (st.st_mode & 022)) {
		close(fd);
		return -EPERM;
	}
	*ret_fd = fd;
	return 0;
}

static int refuse(int r, const char *path, const char *name, struct ds_diag *reterr_diag)
{
	_ds_cleanup_free_ char *object = ds_asprintf("%s/%s", path, name);

	if (r != -EEXIST || !object)
		return ds_diag_set(reterr_diag, r, path, "the cache directory cannot be used");
	return ds_diag_set(reterr_diag, r, object,
			   "this is not dsfs's, and so the directory is not taken for a cache "
			   "(give an empty one, or one that is a cache)");
}

/* Only once it is known for a cache, or for what may become one, anything is made in it. */
static int open_parts(struct ds_cache_root *root, const char *path, bool makes_none,
		      struct ds_diag *reterr_diag)
{
	char foreign[DS_OWN_NAME_MAX];
	bool is_cache = false;
	int r = ds_own_look(root->fd, &is_cache, foreign);

	if (r < 0)
		return refuse(r, path, foreign, reterr_diag);
	if (makes_none && !is_cache)
		return ds_diag_set(reterr_diag, -ENOENT, path, "this directory is not a cache");
	/* First, as it tells what the others are. */
	root->usage_fd = ds_own_open_usage(root->fd);
	r = open_below(root->fd, "images", &root->images_fd);
	if (r < 0)
		return refuse(r, path, "images", reterr_diag);
	r = open_below(root->fd, "tmp", &root->tmp_fd);
	return r < 0 ? refuse(r, path, "tmp", reterr_diag) : 0;
}

static int root_open(const char *path, bool makes_none, struct ds_cache_root **ret_root,
		     struct ds_diag *reterr_diag)
{
	struct ds_cache_root *root = ds_calloc(1, sizeof(*root));
	bool is_new;
	int r = 0;

	if (!root)
		return -ENOMEM;
	root->refs_n = 1;
	root->fd = root->images_fd = root->tmp_fd = root->usage_fd = -1;
	is_new = !makes_none && access(path, F_OK) < 0;
	if (!makes_none)
		r = ds_mkdir_p(AT_FDCWD, path, 0700);
	if (r < 0)
		ds_diag_set(reterr_diag, r, path, "the cache directory cannot be made");
	if (r == 0)
		r = check_parent(path, reterr_diag);
	if (r == 0) {
		root->fd = open(path, DIR_FLAGS);
		if (root->fd < 0)
			r = ds_diag_set(reterr_diag, -errno, path,
					errno == ELOOP || errno == ENOTDIR
						? "the cache directory is a symbolic link"
						: "the cache directory");
	}
	if (r == 0 && is_new && fchmod(root->fd, 0700) < 0) /* whatever the umask */
		r = -errno;
	if (r == 0)
		r = check_dir(root->fd, path, reterr_diag);
	if (r == 0)
		r = open_parts(root, path, makes_none, reterr_diag);
	if (r < 0) {
		ds_cache_root_unref(root);
		return r;
	}
	*ret_root = root;
	return 0;
}

struct ds_cache_root *ds_cache_root_get(struct ds_cache *cache)
{
	struct ds_cache_root *root;

	if (!cache->dir)
		return NULL;
	pthread_mutex_lock(&cache->mutex);
	if (!cache->locked.root && ds_mono_ns() >= cache->locked.root_tried_ns) {
		cache->locked.root_tried_ns = ds_deadline_in_ms(ROOT_RETRY_MS);
		if (root_open(cache->dir, cache->makes_none, &root, NULL) == 0)
			cache->locked.root = root;
	}
	root = cache->locked.root;
	if (root)
		atomic_fetch_add(&root->refs_n, 1);
	pthread_mutex_unlock(&cache->mutex);
	return root;
}

void ds_cache_root_suspect(struct ds_cache *cache)
{
	struct ds_cache_root *root;
	struct stat have, found, below;
	bool is_lost;

	pthread_mutex_lock(&cache->mutex);
	root = cache->locked.root;
	if (root) {
		is_lost = lstat(cache->dir, &found) < 0 || fstat(root->fd, &have) < 0 ||
			  have.st_ino != found.st_ino || have.st_dev != found.st_dev;
		/* Or emptied: the directories that we hold are not there any more. */
		if (!is_lost)
			is_lost = fstat(root->images_fd, &below) < 0 || below.st_nlink == 0 ||
				  fstat(root->tmp_fd, &below) < 0 || below.st_nlink == 0;
		if (is_lost)
			cache->locked.root = NULL;
		else
			root = NULL;
	}
	pthread_mutex_unlock(&cache->mutex);
	ds_cache_root_unref(root);
}

/* ---- used bytes */

static int usage_read(int fd, int64_t *ret_bytes)
{
	struct ds_usage_file file;
	size_t n;
	int r = ds_pread_full(fd, &file, sizeof(file), 0, &n);

	if (r == 0 && (n != sizeof(file) || memcmp(file.magic, DS_USAGE_MAGIC, 8) != 0))
		r = -EIO;
	if (r == 0)
		*ret_bytes = DS_MAX(file.used_bytes, (int64_t)0);
	return r;
}

/* Adds what is pending, or with `set` replaces all. The file's lock is held for two system calls; if it cannot be had
 * soon (its holder was stopped), the pending bytes wait for the next time. */
static void usage_write_locked(struct ds_cache *cache, struct ds_cache_root *root,
			       const uint64_t *set)
{
	struct ds_cache_usage *usage = &cache->usage;
	int64_t base = usage->locked.seen_bytes;
	struct ds_usage_file file = {.magic = DS_USAGE_MAGIC};
	int r = -1;

	for (int tries = 0; root->usage_fd >= 0 && tries < 100; tries++) {
		r = ds_map_lock(root->usage_fd, F_WRLCK, 0);
		if (r != -EAGAIN)
			break;
		if (tries > 16)
			ds_sleep_ms(1);
	}
	if (root->usage_fd >= 0 && r < 0 && !set)
		return;
	if (r == 0)
		usage_read(root->usage_fd, &base);
	base += usage->locked.pending_bytes;
	if (set)
		base = (int64_t)*set;
	file.used_bytes = usage->locked.seen_bytes = DS_MAX(base, (int64_t)0);
	usage->locked.pending_bytes = 0;
	if (r == 0) {
		ds_pwrite_full(root->usage_fd, &file, COUNTER_LEN, 0);
		ds_map_lock(root->usage_fd, F_UNLCK, 0);
	}
}

void ds_cache_usage_add(struct ds_cache *cache, struct ds_cache_root *root, int64_t delta_bytes)
{
	int64_t limit =
		DS_MIN(USAGE_PENDING_MAX, (int64_t)(cache->capacity_bytes / 64 & INT64_MAX));

	if (!root)
		return;
	pthread_mutex_lock(&cache->usage.mutex);
	cache->usage.locked.pending_bytes += delta_bytes;
	if (delta_bytes > 0)
		cache->usage.locked.added_bytes += (uint64_t)delta_bytes;
	if (llabs(cache->usage.locked.pending_bytes) >= limit)
		usage_write_locked(cache, root, NULL);
	pthread_mutex_unlock(&cache->usage.mutex);
}

uint64_t ds_cache_usage_mark(struct ds_cache *cache)
{
	uint64_t mark;

	pthread_mutex_lock(&cache->usage.mutex);
	mark = cache->usage.locked.added_bytes;
	pthread_mutex_unlock(&cache->usage.mutex);
	return mark;
}

uint64_t ds_cache_usage_set(struct ds_cache *cache, struct ds_cache_root *root, uint64_t bytes,
			    uint64_t mark)
{
	uint64_t added;

	pthread_mutex_lock(&cache->usage.mutex);
	added = cache->usage.locked.added_bytes - mark;
	bytes += added;
	usage_write_locked(cache, root, &bytes);
	pthread_mutex_unlock(&cache->usage.mutex);
	return added;
}

void ds_cache_usage_flush(struct ds_cache *cache, struct ds_cache_root *root)
{
	pthread_mutex_lock(&cache->usage.mutex);
	if (cache->usage.locked.pending_bytes)
		usage_write_locked(cache, root, NULL);
	pthread_mutex_unlock(&cache->usage.mutex);
}

uint64_t ds_cache_usage_get(struct ds_cache *cache, struct ds_cache_root *root, bool look)
{
	int64_t used;

	pthread_mutex_lock(&cache->usage.mutex);
	if (look && root->usage_fd >= 0)
		usage_read(root->usage_fd, &cache->usage.locked.seen_bytes);
	used = cache->usage.locked.seen_bytes + cache->usage.locked.pending_bytes;
	pthread_mutex_unlock(&cache->usage.mutex);
	return used < 0 ? 0 : (uint64_t)used;
}

void ds_cache_press(struct ds_cache_root *root)
{
	uint64_t now = ds_cache_now_ms();

	if (root->usage_fd >= 0)
		ds_pwrite_full(root->usage_fd, &now, sizeof(now),
			       offsetof(struct ds_usage_file, pressure_ms));
}

static bool is_pressed(struct ds_cache_root *root)
{
	uint64_t now = ds_cache_now_ms(), pressed_ms;
	size_t n;

	return root->usage_fd >= 0 &&
	       ds_pread_full(root->usage_fd, &pressed_ms, sizeof(pressed_ms),
			     offsetof(struct ds_usage_file, pressure_ms), &n) == 0 &&
	       n == sizeof(pressed_ms) && pressed_ms <= now && now - pressed_ms < PRESSED_MS;
}

/* ---- the keeper */

/* No room is nothing to tell of where the cache is as full as it may be; but where not even one chunk may stay, it is no cache. */
static void tell_trouble(struct ds_cache *cache)
{
	uint64_t no_room_n = cache->no_room_n;

	if (no_room_n != cache->tell.no_room_n) {
		/* Who asked for so little has it. */
		if ((cache->capacity_is_default || cache->capacity_bytes >= DS_CHUNK_MAX) &&
		    ds_cache_room_bytes(cache) < DS_CHUNK_MAX) {
			cache->trouble = -ENOSPC;
			cache->unstored_n += no_room_n - cache->tell.no_room_n;
		}
		cache->tell.no_room_n = no_room_n;
	}
	if (!cache->tell.fn || cache->unstored_n == cache->tell.unstored_n ||
	    ds_mono_ns() < cache->tell.again_ns)
		return;
	cache->tell.unstored_n = cache->unstored_n;
	cache->tell.again_ns = ds_deadline_in_ms(TELL_AGAIN_MS);
	cache->tell.fn(cache->tell.ctx, cache->trouble);
}

static void keep(struct ds_cache *cache)
{
	struct ds_cache_root *root;

	ds_cache_root_suspect(cache);
	root = ds_cache_root_get(cache);
	if (!root) {
		ds_image_keep(cache, IDLE_MS);
		return;
	}
	/* Another process needs room: what we do not need just now he may have. */
	if (is_pressed(root)) {
		ds_image_keep(cache, IDLE_PRESSED_MS);
		ds_image_detach_some(cache);
	} else {
		ds_image_keep(cache, IDLE_MS);
	}
	ds_cache_usage_flush(cache, root);
	pthread_mutex_lock(&cache->evict_mutex);
	if (!cache->evict.scanned_ns ||
	    ds_mono_ns() - cache->evict.scanned_ns > SCAN_PERIOD_MS * (uint64_t)DS_NS_PER_MS) {
		cache->evict.scanned_ns = ds_mono_ns();
		ds_evict_clean_tmp(root);
		ds_evict_scan_locked(cache, root);
	}
	pthread_mutex_unlock(&cache->evict_mutex);
	/* Others fill the disk too. */
	ds_evict_keep(cache, root);
	ds_cache_root_unref(root);
}

static void *keeper_thread(void *arg)
{
	struct ds_cache *cache = arg;

	pthread_setname_np(pthread_self(), "dsfs-cache");
	for (;;) {
		struct timespec until;
		bool ending;

		keep(cache);
		tell_trouble(cache);
		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_sec += KEEPER_PERIOD_MS / 1000;
		pthread_mutex_lock(&cache->mutex);
		if (!cache->locked.ending)
			pthread_cond_timedwait(&cache->wake, &cache->mutex, &until);
		ending = cache->locked.ending;
		pthread_mutex_unlock(&cache->mutex);
		if (ending) {
			tell_trouble(cache);
			return NULL;
		}
	}
}

void ds_cache_start_keeper(struct ds_cache *cache)
{
	sigset_t all, old;

	pthread_mutex_lock(&cache->mutex);
	if (!cache->locked.keeper_started) {
		sigfillset(&all);
		pthread_sigmask(SIG_SETMASK, &all, &old);
		/* Without it (no more threads) the cache still works; it is tried again. */
		if (pthread_create(&cache->keeper, NULL, keeper_thread, cache) == 0)
			cache->locked.keeper_started = true;
		pthread_sigmask(SIG_SETMASK, &old, NULL);
	}
	pthread_mutex_unlock(&cache->mutex);
}

/* ---- opening and closing */

/* The kernel's, as 16 bytes; random ones (nothing is ever trusted from before) where it cannot be read. */
static void read_boot_id(uint8_t ret_id[DS_BOOT_ID_LEN])
{
	_ds_cleanup_buf_ struct ds_buf text = DS_BUF_INIT(64);
	char digits[2 * DS_BOOT_ID_LEN + 1];
	size_t n = 0;

	if (ds_file_read_at(AT_FDCWD, "/proc/sys/kernel/random/boot_id", &text) == 0)
		for (size_t i = 0; i < text.len_bytes && n < sizeof(digits) - 1; i++)
			if (text.data[i] != '-' && text.data[i] != '\n')
				digits[n++] = (char)text.data[i];
	digits[n] = '\0';
	if (ds_hex_decode(digits, ret_id, DS_BOOT_ID_LEN) < 0)
		ds_random_bytes(ret_id, DS_BOOT_ID_LEN);
}

static int cache_new(struct ds_cache **ret_cache)
{
	struct ds_cache *cache = ds_calloc(1, sizeof(*cache));
	pthread_condattr_t attr;
	struct rlimit limit;

	if (!cache)
		return -ENOMEM;
	if (ds_map_new(&cache->locked.images) < 0) {
		ds_free(cache);
		return -ENOMEM;
	}
	cache->refs_n = 1;
	pthread_mutex_init(&cache->mutex, NULL);
	pthread_mutex_init(&cache->evict_mutex, NULL);
	pthread_mutex_init(&cache->usage.mutex, NULL);
	ds_scan_init(&cache->scan);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&cache->wake, &attr);
	pthread_condattr_destroy(&attr);
	/* Up to three descriptors each; half of what the process may have. */
	cache->attached_max = ATTACHED_MAX;
	if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur / 6 < ATTACHED_MAX)
		cache->attached_max = (unsigned)DS_MAX(limit.rlim_cur / 6, (rlim_t)4);
	cache->copied_max_bytes = COPIED_MAX_BYTES;
	/* A ulimit is for all that the process does. */
	cache->mapped_max_bytes = MAPPED_MEMORIES * ds_memory_bytes();
	if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
		cache->mapped_max_bytes = DS_MIN(cache->mapped_max_bytes, limit.rlim_cur / 4);
	*ret_cache = cache;
	return 0;
}

int ds_cache_open_none(struct ds_cache **ret_cache)
{
	return cache_new(ret_cache);
}

int ds_cache_open(const struct ds_cache_options *options, struct ds_cache **ret_cache,
		  struct ds_diag *reterr_diag)
{
	struct ds_cache *cache = NULL;
	struct statvfs vfs;
	int r;

	r = cache_new(&cache);
	if (r < 0)
		return r;
	/* Absolute, since a daemon changes its directory. */
	cache->dir = options->dir[0] == '/' ? ds_strdup(options->dir) : NULL;
	if (!cache->dir) {
		char *cwd = options->dir[0] == '/' ? NULL : getcwd(NULL, 0);

		cache->dir = cwd ? ds_asprintf("%s/%s", cwd, options->dir) : NULL;
		free(cwd);
	}
	cache->makes_none = options->makes_none;
	cache->tell.fn = options->trouble;
	cache->tell.ctx = options->trouble_ctx;
	r = cache->dir ? root_open(cache->dir, cache->makes_none, &cache->locked.root, reterr_diag)
		       : -ENOMEM;
	if (r < 0) {
		ds_cache_unref(cache);
		return r;
	}
	if (options->boot_id)
		memcpy(cache->boot_id, options->boot_id, DS_BOOT_ID_LEN);
	else
		read_boot_id(cache->boot_id);
	cache->free_floor_percent =
		options->free_floor_percent ? options->free_floor_percent : FLOOR_PERCENT;
	cache->capacity_bytes = options->capacity_bytes;
	if (!options->capacity_bytes) {
		cache->capacity_is_default = true;
		cache->capacity_bytes = DS_GIB(1);
		if (fstatvfs(cache->locked.root->fd, &vfs) == 0)
			cache->capacity_bytes =
				((uint64_t)vfs.f_bavail * vfs.f_frsize +
				 ds_cache_usage_get(cache, cache->locked.root, true)) /
				2;
	}
	*ret_cache = cache;
	return 0;
}

struct ds_cache *ds_cache_ref(struct ds_cache *cache)
{
	atomic_fetch_add(&cache->refs_n, 1);
	return cache;
}

static void free_image(void *value)
{
	ds_image_free(value);
}

struct ds_cache *ds_cache_unref(struct ds_cache *cache)
{
	if (!cache || atomic_fetch_sub(&cache->refs_n, 1) > 1)
		return NULL;
	pthread_mutex_lock(&cache->mutex);
	cache->locked.ending = true;
	pthread_cond_signal(&cache->wake);
	pthread_mutex_unlock(&cache->mutex);
	if (cache->locked.keeper_started)
		pthread_join(cache->keeper, NULL);
	ds_map_free(cache->locked.images, free_image);
	if (cache->locked.root)
		ds_cache_usage_flush(cache, cache->locked.root);
	ds_cache_root_unref(cache->locked.root);
	pthread_cond_destroy(&cache->wake);
	pthread_mutex_destroy(&cache->scan.mutex);
	pthread_mutex_destroy(&cache->usage.mutex);
	pthread_mutex_destroy(&cache->evict_mutex);
	pthread_mutex_destroy(&cache->mutex);
	ds_free(cache->evict.list);
	ds_free(cache->dir);
	ds_free(cache);
	return NULL;
}

const char *ds_cache_dir(const struct ds_cache *cache)
{
	return cache->dir;
}

void ds_cache_get_stats(struct ds_cache *cache, struct ds_cache_stats *ret_stats)
{
	struct ds_cache_root *root = ds_cache_root_get(cache);
	struct ds_cache_stats stats = {.capacity_bytes = cache->capacity_bytes,
				       .images_n = cache->images_n,
				       .fills_n = cache->fills_n,
				       .fill_failures_n = cache->fill_failures_n,
				       .refusals_n = cache->refusals_n,
				       .evictions_n = cache->evictions_n,
				       .damaged_n = cache->damaged_n,
				       .unstored_n = cache->unstored_n,
				       .trouble = cache->trouble};
	size_t cursor = 0, key_len;
	const void *key;
	void *value;

	if (root)
		stats.used_bytes = ds_cache_usage_get(cache, root, true);
	ds_cache_root_unref(root);
	pthread_mutex_lock(&cache->mutex);
	stats.hits_n = cache->locked.hits_n;
	stats.misses_n = cache->locked.misses_n;
	while (ds_map_each(cache->locked.images, &cursor, &key, &key_len, &value)) {
		const struct ds_image *image = value;

		stats.hits_n += image->hits_n;
		stats.misses_n += image->misses_n;
	}
	pthread_mutex_unlock(&cache->mutex);
	*ret_stats = stats;
}
