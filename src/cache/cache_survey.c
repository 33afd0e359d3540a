/*
 * The cache directory as a whole: survey and check. Pruning is eviction (image_evict.c).
 *
 * INV-1 A chunk is judged while the shared lock on byte 0 is held and the image is where its name says: nobody punches it
 *       meanwhile.
 * INV-2 A claim is taken back only with the exclusive lock, from an image that was never handed out; every other damaged
 *       image is unlinked, and those who use it find that out by themselves.
 * INV-3 What no chunk of a file claims reads as zeros, since the kernel may come to show it as such. A claim comes before its
 *       bytes: they are stray if, after they were seen, none covers them. They are punched with the exclusive lock only.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache/cache_internal.h"
#include "cache/cache_survey.h"
#include "util/clock.h"
#include "util/file.h"

#define DIR_FLAGS    (O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
#define FILE_FLAGS   (O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY)
#define WAIT_STEP_MS 20u
/* Of a hole, between two looks whether to stop. */
#define GAP_STEP_BYTES DS_MIB(64)
#define BETWEEN	       UINT32_MAX

/* One image, opened to be looked at. */
struct opened {
	int parent_fd; /* borrowed */
	const char *name;
	struct ds_digest digest;
	int dir_fd, map_fd, data_fd;
	struct stat map, data;
	struct ds_map_header header;
	bool is_damaged;
};

static void opened_close(struct opened *opened)
{
	ds_close_ptr(&opened->data_fd);
	ds_close_ptr(&opened->map_fd);
	ds_close_ptr(&opened->dir_fd);
}

static bool is_there(const struct opened *opened)
{
	struct stat here, there;

	return fstat(opened->dir_fd, &here) == 0 &&
	       fstatat(opened->parent_fd, opened->name, &there, AT_SYMLINK_NOFOLLOW) == 0 &&
	       here.st_ino == there.st_ino && here.st_dev == there.st_dev;
}

static bool is_file(int fd, struct stat *ret_st)
{
	return fd >= 0 && fstat(fd, ret_st) == 0 && S_ISREG(ret_st->st_mode);
}

static bool is_whole(struct opened *opened)
{
	struct ds_map_header *header = &opened->header;

	return is_file(opened->map_fd, &opened->map) && is_file(opened->data_fd, &opened->data) &&
	       ds_map_read_header(opened->map_fd, header) == 0 &&
	       memcmp(header->magic, DS_IMAGE_MAP_MAGIC, sizeof(header->magic)) == 0 &&
	       ds_digest_equal(&header->name, &opened->digest) &&
	       (uint64_t)opened->map.st_size == ds_map_len(header->slots_n) &&
	       (uint64_t)opened->data.st_size == header->size_bytes;
}

/* That a file cannot be opened for these says nothing of the file. */
static bool is_ours_to_have(int error)
{
	return error == EMFILE || error == ENFILE || error == ENOMEM || error == EACCES ||
	       error == EPERM || error == EROFS;
}

/* What is only read can be on a read-only file system. */
static int open_file(int dir_fd, const char *name, int access)
{
	int fd = openat(dir_fd, name, access | FILE_FLAGS);

	return fd < 0 && errno == EROFS ? openat(dir_fd, name, O_RDONLY | FILE_FLAGS) : fd;
}

/* 1: it is no image, or not there any more. */
static int open_image(int parent_fd, const char *name, int access, struct opened *ret_opened)
{
	*ret_opened = (struct opened){
		.parent_fd = parent_fd, .name = name, .dir_fd = -1, .map_fd = -1, .data_fd = -1};
	if (ds_digest_parse(name, &ret_opened->digest) < 0)
		return 1;
	ret_opened->dir_fd = openat(parent_fd, name, DIR_FLAGS);
	if (ret_opened->dir_fd < 0)
		return is_ours_to_have(errno) ? -errno : 1;
	ret_opened->map_fd = open_file(ret_opened->dir_fd, "map", access);
	if (ret_opened->map_fd < 0 && is_ours_to_have(errno))
		return -errno;
	ret_opened->data_fd = open_file(ret_opened->dir_fd, "data", access);
	if (ret_opened->data_fd < 0 && is_ours_to_have(errno))
		return -errno;
	/* Who evicts it has a lease on it (image_evict.c). */
	if (ret_opened->data_fd < 0 && errno == EWOULDBLOCK)
		return 1;
	ret_opened->is_damaged = !is_whole(ret_opened);
	/* Half of it was there because it was just going. */
	return ret_opened->is_damaged && !is_there(ret_opened) ? 1 : 0;
}

/* ---- the walk */

struct walk {
	struct ds_cache *cache;
	struct ds_cache_root *root;
	const volatile int *interrupted;
	int access;	 /* O_RDONLY, O_RDWR */
	const char *dir; /* images/XX */
	int (*fn)(struct walk *walk, struct opened *opened);
	void *ctx;
	int r;
};

static int walk_image(void *ctx, int parent_fd, const char *name)
{
	_ds_cleanup_(opened_close) struct opened opened = {-1, NULL, {{0}}, -1, -1, -1};
	struct walk *walk = ctx;

	if (walk->interrupted && *walk->interrupted)
		walk->r = -DS_E_INTERRUPTED;
	if (walk->r == 0)
		walk->r = open_image(parent_fd, name, walk->access, &opened);
	if (walk->r == 0)
		walk->r = walk->fn(walk, &opened);
	else if (walk->r == 1)
		walk->r = 0;
	return walk->r;
}

static int walk_dir(void *ctx, int dir_fd, const char *name)
{
	struct walk *walk = ctx;
	int r;

	walk->dir = name;
	r = ds_each_entry_at(dir_fd, name, walk_image, walk);
	/* What is not a directory does not belong here. */
	return walk->r != 0 || r == -ENOMEM || r == -EMFILE || r == -ENFILE ? r : 0;
}

static int walk_all(struct ds_cache *cache, const volatile int *interrupted, int access,
		    int (*fn)(struct walk *walk, struct opened *opened), void *ctx)
{
	struct walk walk = {
		.cache = cache, .interrupted = interrupted, .access = access, .fn = fn, .ctx = ctx};
	int r;

	walk.root = ds_cache_root_get(cache);
	if (!walk.root)
		return -ENOENT;
	r = ds_each_entry_at(walk.root->images_fd, ".", walk_dir, &walk);
	ds_cache_root_unref(walk.root);
	return walk.r ? walk.r : r;
}

/* ---- survey */

struct survey {
	int (*fn)(void *ctx, const struct ds_survey_image *image);
	void *ctx;
};

static int count_slot(void *ctx, uint32_t number, const struct ds_map_slot *slot)
{
	struct ds_survey_image *image = ctx;

	(void)number;
	if (!(slot->state & DS_SLOT_PRESENT))
		return 0;
	image->chunks_n++;
	image->present_bytes += slot->raw_len_bytes;
	if (slot->state & DS_SLOT_TRUSTED)
		image->trusted_bytes += slot->raw_len_bytes;
	return 0;
}

static bool is_in_use(int map_fd)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1};

	return fcntl(map_fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

static int survey_image(struct walk *walk, struct opened *opened)
{
	struct survey *survey = walk->ctx;
	const struct ds_map_header *header = &opened->header;
	struct ds_survey_image image = {.name = opened->digest, .is_damaged = opened->is_damaged};
	int r;

	image.allocated_bytes = (uint64_t)(opened->map.st_blocks + opened->data.st_blocks) * 512;
	if (!image.is_damaged) {
		image.size_bytes = header->size_bytes;
		image.has_kind =
			header->kind_plus_1 > 0 && header->kind_plus_1 <= DS_IMAGE_INDEX + 1u;
		if (image.has_kind)
			image.kind = (enum ds_image_kind)(header->kind_plus_1 - 1);
		image.is_handed_out = header->flags & DS_IMAGE_HANDED_OUT;
		image.is_in_use = is_in_use(opened->map_fd);
		r = ds_map_walk(opened->map_fd, header, count_slot, &image);
		if (r == -ENOMEM)
			return r;
		/* Bits of an earlier boot say nothing. */
		if (memcmp(header->boot_id, walk->cache->boot_id, DS_BOOT_ID_LEN) != 0)
			image.trusted_bytes = 0;
		if (r < 0) {
			image.is_damaged = true;
			image.chunks_n = image.present_bytes = image.trusted_bytes = 0;
		}
	}
	return survey->fn(survey->ctx, &image);
}

int ds_cache_survey(struct ds_cache *cache, const volatile int *interrupted,
		    int (*fn)(void *ctx, const struct ds_survey_image *image), void *ctx)
{
	struct survey survey = {.fn = fn, .ctx = ctx};

	return walk_all(cache, interrupted, O_RDONLY, survey_image, &survey);
}

/* ---- check */

/* What is not as it should be: a slot, or (BETWEEN) bytes where no chunk is. */
struct bad {
	uint32_t number;
	uint64_t off, len_bytes;
};

struct check {
	const struct ds_check_options *options;
	struct ds_check_result result;
	struct walk *walk;
	struct opened *opened;
	uint8_t *buffer; /* DS_CHUNK_MAX */
	struct bad *bad;
	size_t bad_n;
	struct gap {
		bool is_looked_at; /* files only */
		bool is_to_go;	   /* with the exclusive lock */
		uint64_t off;	   /* end of the last claim */
		uint32_t slot;	   /* the one after it */
	} gap;
};

static void path_of(const struct check *check, char *ret_path, size_t size)
{
	snprintf(ret_path, size, "images/%s/%s/data", check->walk->dir, check->opened->name);
}

static void tell(struct check *check, bool is_chunk, uint64_t off, uint64_t len_bytes)
{
	char path[128];

	check->result.findings_n++;
	path_of(check, path, sizeof(path));
	if (check->options->finding)
		check->options->finding(check->options->ctx, path, is_chunk, off, len_bytes);
}

/* 1: it is what the slot says. */
static int is_right(struct check *check, const struct ds_map_slot *slot)
{
	struct ds_digest digest;
	size_t n;
	int r;

	if (slot->raw_len_bytes > DS_CHUNK_MAX)
		return 0;
	r = ds_pread_full(check->opened->data_fd, check->buffer, slot->raw_len_bytes, slot->raw_off,
			  &n);
	/* What cannot be read is as bad. */
	if (r < 0 || n != slot->raw_len_bytes)
		return 0;
	r = ds_digest_of(check->buffer, n, &digest);
	return r < 0 ? r : ds_digest_equal(&digest, &slot->digest);
}

static int add_bad(struct check *check, uint32_t number, uint64_t off, uint64_t len_bytes)
{
	struct bad *grown = ds_reallocarray(check->bad, check->bad_n + 1, sizeof(grown[0]));

	if (!grown)
		return -ENOMEM;
	check->bad = grown;
	check->bad[check->bad_n++] =
		(struct bad){.number = number, .off = off, .len_bytes = len_bytes};
	return 0;
}

/* ---- between the chunks of a file */

static bool is_zeros(const struct ds_map_slot *slot)
{
	static const struct ds_digest none;

	return slot->raw_len_bytes == 1 && ds_digest_equal(&slot->digest, &none);
}

/* The end of the claim that covers `off`, of slots from *slot (which moves on) to before `last`; 0: none does. */
static int find_claim(struct check *check, uint64_t off, uint32_t *slot, uint32_t last,
		      uint64_t *ret_end)
{
	const struct opened *opened = check->opened;
	struct ds_map_slot now;

	*ret_end = 0;
	for (; *slot < last; (*slot)++) {
		int r = ds_map_read_slot(opened->map_fd, opened->header.slots_n, *slot, &now);

		if (r < 0)
			return r;
		if (now.raw_len_bytes == 0 || is_zeros(&now) ||
		    now.raw_off + now.raw_len_bytes <= off)
			continue;
		if (now.raw_off <= off)
			*ret_end = now.raw_off + now.raw_len_bytes;
		return 0;
	}
	return 0;
}

static int drop_stray(struct check *check, uint64_t off, uint64_t end)
{
	int fd = check->opened->data_fd;
	off_t hole = lseek(fd, (off_t)off, SEEK_HOLE);

	if (!check->gap.is_to_go)
		return add_bad(check, BETWEEN, off,
			       (hole < 0 ? end : DS_MIN((uint64_t)hole, end)) - off);
	/* With the zeros of its block, so that nothing stays of it. */
	off = DS_MAX(check->gap.off, off / 4096 * 4096);
	if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off,
		      (off_t)(end - off)) < 0)
		return -errno;
	return 0;
}

/* From the end of the last claim to `end`, where slot `last` begins. */
static int check_gap(struct check *check, uint64_t end, uint32_t last)
{
	uint64_t off = check->gap.off, found, claim_end;
	uint32_t slot = check->gap.slot;

	while (off < end) {
		uint64_t stop = DS_MIN(end, off + GAP_STEP_BYTES);
		int r;

		if (check->options->interrupted && *check->options->interrupted)
			return -DS_E_INTERRUPTED;
		/* What cannot be read is as bad. */
		if (ds_image_find_byte(check->opened->data_fd, off, stop, &found) < 0)
			found = off;
		off = stop;
		if (found == stop)
			continue;
		r = find_claim(check, found, &slot, last, &claim_end);
		if (r < 0 || claim_end == 0)
			return r < 0 ? r : drop_stray(check, found, end);
		off = claim_end;
	}
	return 0;
}

static int check_gap_before(void *ctx, uint32_t number, const struct ds_map_slot *slot)
{
	struct check *check = ctx;
	int r;

	if (!check->gap.is_looked_at || is_zeros(slot))
		return 0;
	r = check_gap(check, slot->raw_off, number);
	check->gap.off = slot->raw_off + slot->raw_len_bytes;
	check->gap.slot = number + 1;
	return r;
}

static int check_slot(void *ctx, uint32_t number, const struct ds_map_slot *slot)
{
	const struct ds_map_header *header;
	struct check *check = ctx;
	struct ds_map_slot now;
	int r;

	r = check_gap_before(check, number, slot);
	if (r < 0 || !(slot->state & DS_SLOT_PRESENT))
		return r;
	if (check->options->interrupted && *check->options->interrupted)
		return -DS_E_INTERRUPTED;
	check->result.chunks_n++;
	check->result.bytes += slot->raw_len_bytes;
	if (check->options->progress)
		check->options->progress(check->options->ctx, check->result.images_n,
					 check->result.bytes);
	r = is_right(check, slot);
	if (r != 0)
		return DS_MIN(r, 0);
	/* It was read in a block, perhaps while it was written. */
	header = &check->opened->header;
	r = ds_map_read_slot(check->opened->map_fd, header->slots_n, number, &now);
	if (r < 0 || !(now.state & DS_SLOT_PRESENT))
		return r == -ENOMEM ? r : 0;
	r = is_right(check, &now);
	if (r != 0)
		return DS_MIN(r, 0);
	return add_bad(check, number, now.raw_off, now.raw_len_bytes);
}

/* Unlinks it, and waits for those who use it. */
static int take_away(struct check *check)
{
	uint64_t deadline_ns = ds_deadline_in_ms(check->options->wait_ms);
	struct opened *opened = check->opened;
	char path[128];
	int r;

	ds_map_lock(opened->map_fd, F_UNLCK, DS_MAP_LOCK_USE);
	r = ds_image_throw_away(check->walk->root, opened->parent_fd, opened->name);
	if (r < 0)
		return r;
	ds_cache_usage_add(check->walk->cache, check->walk->root,
			   -(int64_t)(opened->map.st_blocks + opened->data.st_blocks) * 512);
	if (!is_file(opened->map_fd, &opened->map))
		return 0;
	while (is_in_use(opened->map_fd) && ds_mono_ns() < deadline_ns)
		ds_sleep_ms(WAIT_STEP_MS);
	if (is_in_use(opened->map_fd)) {
		check->result.still_used_n++;
		path_of(check, path, sizeof(path));
		if (check->options->still_used)
			check->options->still_used(check->options->ctx, path);
	}
	return 0;
}

/* All claims, and what lies between and after them. */
static int walk_claims(struct check *check,
		       int (*fn)(void *ctx, uint32_t number, const struct ds_map_slot *slot))
{
	const struct ds_map_header *header = &check->opened->header;
	int r = ds_map_walk(check->opened->map_fd, header, fn, check);

	if (r == 0 && check->gap.is_looked_at)
		r = check_gap(check, header->size_bytes, header->slots_n);
	return r;
}

static int drop_bad(struct check *check)
{
	struct opened *opened = check->opened;
	struct stat after;
	int r;

	/* Flagged meanwhile? Nobody can do it any more once the lock is ours alone. */
	r = ds_map_lock(opened->map_fd, F_WRLCK, DS_MAP_LOCK_USE);
	if (r == 0)
		r = ds_map_read_header(opened->map_fd, &opened->header);
	if (r < 0 || (opened->header.flags & DS_IMAGE_HANDED_OUT))
		return take_away(check);
	for (size_t i = 0; i < check->bad_n && r == 0; i++)
		if (check->bad[i].number != BETWEEN)
			r = ds_map_drop(opened->map_fd, opened->header.slots_n,
					check->bad[i].number);
	if (r < 0 || !check->gap.is_looked_at)
		return r;
	/* With what was just dropped, and without what was filled until we had the lock. */
	check->gap = (struct gap){.is_looked_at = true, .is_to_go = true};
	r = walk_claims(check, check_gap_before);
	if (r == 0 && fstat(opened->data_fd, &after) == 0)
		ds_cache_usage_add(check->walk->cache, check->walk->root,
				   (int64_t)(after.st_blocks - opened->data.st_blocks) * 512);
	return r == 0 || r == -DS_E_INTERRUPTED ? r : take_away(check);
}

static int check_image(struct walk *walk, struct opened *opened)
{
	struct check *check = walk->ctx;
	int r;

	check->walk = walk;
	check->opened = opened;
	check->bad_n = 0;
	check->gap = (struct gap){.is_looked_at = opened->header.kind_plus_1 == DS_IMAGE_FILE + 1u};
	if (opened->is_damaged) {
		r = take_away(check);
		if (r == 0)
			tell(check, false, 0, 0);
		return r;
	}
	r = ds_map_lock_soon(opened->map_fd, F_RDLCK, DS_MAP_LOCK_USE);
	if (r < 0)
		return r == -EAGAIN ? 0 : r; /* it is being removed */
	if (!is_there(opened))
		return 0;
	/* The disk is asked, not what is left in memory of what was written. */
	posix_fadvise(opened->data_fd, 0, 0, POSIX_FADV_DONTNEED);
	r = walk_claims(check, check_slot);
	posix_fadvise(opened->data_fd, 0, 0, POSIX_FADV_DONTNEED);
	check->result.images_n++;
	if (r == -DS_E_MALFORMED || r == -EIO) {
		r = take_away(check);
		if (r == 0)
			tell(check, false, 0, 0);
		return r;
	}
	if (r == 0 && check->bad_n)
		r = drop_bad(check);
	/* What was found is said to be dropped. */
	for (size_t i = 0; r == 0 && i < check->bad_n; i++)
		tell(check, true, check->bad[i].off, check->bad[i].len_bytes);
	return r;
}

int ds_cache_check(struct ds_cache *cache, const struct ds_check_options *options,
		   struct ds_check_result *ret_result)
{
	struct check check = {.options = options, .buffer = ds_malloc(DS_CHUNK_MAX)};
	int r = check.buffer ? walk_all(cache, options->interrupted, O_RDWR, check_image, &check)
			     : -ENOMEM;

	ds_free(check.bad);
	ds_free(check.buffer);
	*ret_result = check.result;
	return r;
}
