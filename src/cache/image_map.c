/*
 * The map of an image: which slots are claimed for which bytes, and which of them are there.
 *
 * INV-1 The claims of an image are disjoint, and ascend with their slots: a claim that would break this is refused.
 *       So no manifest, lying or not, can make a fill touch bytes that another claim covers.
 * INV-2 A claim is only taken back under the exclusive lock on byte 0, when nobody holds a private copy.
 * INV-3 `trusted` is set after the data were written, or found to fit the claim, in this boot.
 * INV-4 A state byte is written after the claim it belongs to. So one that was read together with the reader's claim is that claim's; who
 *       reads another claim with it may have read that too early, and reads again.
 *
 * Concurrent writers of claims exclude each other by the lock on byte 1 (between processes) and
 * claim_mutex (within one, since locks of one description do not conflict).
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "cache/cache_internal.h"
#include "util/clock.h"
#include "util/file.h"
#include "util/random.h"

_Static_assert(sizeof(struct ds_map_slot) == 48, "a slot is 48 bytes");
_Static_assert(sizeof(struct ds_map_header) <= DS_MAP_HEADER_LEN, "the header fits");

#define BLOCK_SLOTS	 1024u /* slots that are looked at in one piece */
#define CLAIM_AGAIN_MS	 1000u
#define CLAIM_BRIEFLY_MS 20u
#define AHEAD_MS \
	86400000u /* a stamp is no further ahead, unless the clock was wrong; more than a wrong zone */
#define LONG_AGO_MS 1u /* 0 stands for no use at all */

int ds_map_lock(int fd, short type, uint64_t off)
{
	struct flock lock = {.l_type = type,
			     .l_whence = SEEK_SET,
			     .l_start = (off_t)off,
			     .l_len = 1};

	if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
		return 0;
	return errno == EACCES ? -EAGAIN : -errno;
}

int ds_map_lock_soon(int fd, short type, uint64_t off)
{
	uint64_t deadline_ns = 0;
	int r;

	/* Held for microseconds, unless its holder was stopped: then it is better to do without. */
	for (uint64_t wait_ms = 0;; wait_ms = wait_ms < 16 ? wait_ms * 2 + 1 : wait_ms) {
		r = ds_map_lock(fd, type, off);
		if (r != -EAGAIN)
			return r;
		if (!deadline_ns)
			deadline_ns = ds_deadline_in_ms(1000);
		else if (ds_mono_ns() >= deadline_ns)
			return r;
		if (wait_ms)
			ds_sleep_ms(wait_ms);
	}
}

static int read_exactly(int fd, void *ret_data, size_t len_bytes, uint64_t off)
{
	size_t n;
	int r = ds_pread_full(fd, ret_data, len_bytes, off, &n);

	return r < 0 ? r : n == len_bytes ? 0 : -EIO;
}

int ds_map_read_header(int map_fd, struct ds_map_header *ret_header)
{
	int r = read_exactly(map_fd, ret_header, sizeof(*ret_header), 0);
	uint64_t latest_ms = ds_cache_now_ms() + AHEAD_MS;

	if (r < 0)
		return r;
	if (ret_header->used_ms > latest_ms)
		ret_header->used_ms = LONG_AGO_MS;
	for (size_t i = 0; i < DS_IMAGE_SEGMENTS_MAX; i++)
		if (ret_header->segment_used_ms[i] > latest_ms)
			ret_header->segment_used_ms[i] = LONG_AGO_MS;
	return 0;
}

/* ---- bitmap of claims */

static bool bit_of(const uint8_t *bitmap, uint32_t bit)
{
	return bitmap[bit / 8] >> (bit % 8) & 1;
}

static void set_bit(uint8_t *bitmap, uint32_t bit, bool value)
{
	uint8_t mask = (uint8_t)(1u << (bit % 8));

	bitmap[bit / 8] = (uint8_t)(value ? bitmap[bit / 8] | mask : bitmap[bit / 8] & ~mask);
}

static uint64_t bitmap_off(uint32_t slot)
{
	return DS_MAP_HEADER_LEN + slot / 8;
}

/* The nearest claimed slot below or above; *ret_found says whether there is one. */
static int nearest_claim(int map_fd, uint32_t slots_n, uint32_t slot, bool above,
			 uint32_t *ret_slot, bool *ret_found)
{
	uint8_t piece[512];
	const uint32_t piece_bits = sizeof(piece) * 8;
	uint32_t first = slot / piece_bits * piece_bits;
	int64_t at = above ? (int64_t)slot + 1 : (int64_t)slot - 1;

	for (;;) {
		int r;

		*ret_found = false;
		if (at < 0 || at >= slots_n)
			return 0;
		first = (uint32_t)at / piece_bits * piece_bits;
		/* The bitmap's length is a multiple of the piece's. */
		r = read_exactly(map_fd, piece, sizeof(piece), bitmap_off(first));
		if (r < 0)
			return r;
		for (; at >= first && at < (int64_t)first + piece_bits; at += above ? 1 : -1) {
			uint32_t bit = (uint32_t)at - first;

			if (bit % 8 == (above ? 0 : 7) && piece[bit / 8] == 0) {
				at += above ? 7 : -7;
				continue;
			}
			if (at < slots_n && bit_of(piece, bit)) {
				*ret_slot = (uint32_t)at;
				*ret_found = true;
				return 0;
			}
		}
	}
}

/* ---- slots */

static int read_slot(int map_fd, uint32_t slots_n, uint32_t slot, struct ds_map_slot *ret_slot)
{
	return read_exactly(map_fd, ret_slot, sizeof(*ret_slot), ds_map_slot_off(slots_n, slot));
}

static bool is_claim(const struct ds_map_slot *have, const struct ds_image_slot *want)
{
	return have->raw_off == want->raw_off && have->raw_len_bytes == want->raw_len_bytes &&
	       ds_digest_equal(&have->digest, &want->digest);
}

int ds_map_look(struct ds_image_disk *disk, const struct ds_image_slot *slot, bool may_wait,
		uint8_t *ret_state, bool *ret_is_claim)
{
	int (*read_it)(int fd, void *ret_data, size_t len_bytes, uint64_t off) =
		may_wait ? read_exactly : ds_pread_now;
	uint64_t off = ds_map_slot_off(disk->layout.slots_n, slot->slot);
	bool is_present = true, is_its = false;
	struct ds_map_slot have;

	for (int tries = 0; tries < 2 && is_present && !is_its; tries++) {
		int r = read_it(disk->map_fd, &have, sizeof(have), off);

		if (r < 0)
			return r;
		is_present = have.state & DS_SLOT_PRESENT;
		is_its = is_present && is_claim(&have, slot);
	}
	*ret_state = is_present ? have.state : 0;
	*ret_is_claim = is_its;
	return 0;
}

int ds_map_set_state(struct ds_image_disk *disk, uint32_t slot, uint8_t state)
{
	return ds_pwrite_full(disk->map_fd, &state, 1,
			      ds_map_slot_off(disk->layout.slots_n, slot) +
				      offsetof(struct ds_map_slot, state));
}

/* ---- claims */

/* The nearest claim, passing over slots that are claimed for nothing: what is left when a block was dropped and its bitmap
 * could not be written. */
static int read_neighbour(struct ds_image_disk *disk, uint32_t slot, bool above,
			  struct ds_map_slot *ret_slot, bool *ret_found)
{
	int r;

	do {
		r = nearest_claim(disk->map_fd, disk->layout.slots_n, slot, above, &slot,
				  ret_found);
		if (r == 0 && *ret_found)
			r = read_slot(disk->map_fd, disk->layout.slots_n, slot, ret_slot);
	} while (r == 0 && *ret_found && ret_slot->raw_len_bytes == 0);
	return r;
}

/* Whether nobody else's claims are in the way of these, which are of slots side by side. */
static int check_neighbours(struct ds_image_disk *disk, const struct ds_image_slot *slots, size_t n)
{
	const struct ds_image_slot *last = &slots[n - 1];
	struct ds_map_slot have;
	bool found;
	int r;

	for (size_t i = 0; i + 1 < n; i++)
		if (slots[i].raw_off + slots[i].raw_len_bytes > slots[i + 1].raw_off)
			return -DS_E_MISMATCH;
	r = read_neighbour(disk, slots[0].slot, false, &have, &found);
	if (r == 0 && found && have.raw_off + have.raw_len_bytes > slots[0].raw_off)
		r = -DS_E_MISMATCH;
	if (r < 0)
		return r;
	r = read_neighbour(disk, last->slot, true, &have, &found);
	if (r == 0 && found && last->raw_off + last->raw_len_bytes > have.raw_off)
		r = -DS_E_MISMATCH;
	return r;
}

/* One pwrite for all of them. */
static int write_slots(struct ds_image_disk *disk, const struct ds_image_slot *slots, size_t n,
		       uint8_t state)
{
	struct ds_map_slot records[DS_IMAGE_RUN_MAX];

	assert(n <= DS_IMAGE_RUN_MAX);
	for (size_t i = 0; i < n; i++) {
		assert(slots[i].slot == slots[0].slot + i);
		records[i] = (struct ds_map_slot){.digest = slots[i].digest,
						  .raw_off = slots[i].raw_off,
						  .raw_len_bytes = slots[i].raw_len_bytes,
						  .state = state};
	}
	return ds_pwrite_full(disk->map_fd, records, n * sizeof(records[0]),
			      ds_map_slot_off(disk->layout.slots_n, slots[0].slot));
}

/* The bits of the claims, as bytes of the bitmap. */
struct bits {
	uint8_t bytes[DS_IMAGE_RUN_MAX / 8 + 2];
	size_t len_bytes;
	uint32_t first; /* slot of the first bit */
};

static int read_bits(int map_fd, uint32_t slot, size_t n, struct bits *ret_bits, bool *ret_any)
{
	int r;

	ret_bits->first = slot / 8 * 8;
	ret_bits->len_bytes = (slot + n - 1) / 8 - slot / 8 + 1;
	r = read_exactly(map_fd, ret_bits->bytes, ret_bits->len_bytes, bitmap_off(slot));
	*ret_any = false;
	for (uint32_t i = slot; r == 0 && i < slot + n; i++)
		*ret_any |= bit_of(ret_bits->bytes, i - ret_bits->first);
	return r;
}

static int set_bits(int map_fd, uint32_t slot, size_t n, struct bits *bits)
{
	for (uint32_t i = slot; i < slot + n; i++)
		set_bit(bits->bytes, i - bits->first, true);
	return ds_pwrite_full(map_fd, bits->bytes, bits->len_bytes, bitmap_off(slot));
}

static int claim_locked(struct ds_image_disk *disk, const struct ds_image_slot *slots, size_t n)
{
	struct ds_map_slot have;
	struct bits bits;
	bool any;
	int r;

	r = read_bits(disk->map_fd, slots[0].slot, n, &bits, &any);
	if (r < 0)
		return r;
	if (any) {
		if (n > 1)
			return -DS_E_MISMATCH;
		r = read_slot(disk->map_fd, disk->layout.slots_n, slots[0].slot, &have);
		if (r < 0 || have.raw_len_bytes > 0)
			return r < 0 ? r : is_claim(&have, &slots[0]) ? 0 : -DS_E_MISMATCH;
	}
	r = check_neighbours(disk, slots, n);
	if (r == 0)
		r = write_slots(disk, slots, n, 0);
	return r < 0 ? r : set_bits(disk->map_fd, slots[0].slot, n, &bits);
}

/* Whether its holder did not let go of it in time just before. */
static bool is_claim_lock_held(struct ds_image_disk *disk)
{
	uint64_t again_ns = disk->claim_again_ns;

	return again_ns && ds_mono_ns() < again_ns;
}

/* For one who holds it as long as it takes. */
static int lock_briefly(int map_fd)
{
	int r = ds_map_lock(map_fd, F_WRLCK, DS_MAP_LOCK_CLAIM);

	for (unsigned ms = 0; r == -EAGAIN && ms < CLAIM_BRIEFLY_MS; ms++) {
		ds_sleep_ms(1);
		r = ds_map_lock(map_fd, F_WRLCK, DS_MAP_LOCK_CLAIM);
	}
	return r;
}

/* A holder that was stopped may stay so for long: he is waited for once, not by every fill. With claim_mutex. */
static int lock_claims(struct ds_image_disk *disk)
{
	int r;

	if (is_claim_lock_held(disk))
		return -EAGAIN;
	r = disk->claim_again_ns ? lock_briefly(disk->map_fd)
				 : ds_map_lock_soon(disk->map_fd, F_WRLCK, DS_MAP_LOCK_CLAIM);
	disk->claim_again_ns = r == -EAGAIN ? ds_deadline_in_ms(CLAIM_AGAIN_MS) : 0;
	return r;
}

int ds_map_claim(struct ds_image_disk *disk, const struct ds_image_slot *slots, size_t n)
{
	int r;

	if (is_claim_lock_held(disk))
		return -EAGAIN;
	pthread_mutex_lock(&disk->claim_mutex);
	r = lock_claims(disk);
	if (r == 0) {
		r = claim_locked(disk, slots, n);
		ds_map_lock(disk->map_fd, F_UNLCK, DS_MAP_LOCK_CLAIM);
	}
	pthread_mutex_unlock(&disk->claim_mutex);
	return r;
}

int ds_map_set_filled(struct ds_image_disk *disk, const struct ds_image_slot *slots, size_t n)
{
	return write_slots(disk, slots, n, DS_SLOT_PRESENT | DS_SLOT_TRUSTED);
}

/* ---- all slots, block by block */

struct block {
	uint32_t first, n;
	uint8_t bitmap[BLOCK_SLOTS / 8];
	struct ds_map_slot slots[BLOCK_SLOTS];
};

static int block_read(int map_fd, uint32_t slots_n, uint32_t first, struct block *ret_block)
{
	int r;

	assert(first % BLOCK_SLOTS == 0);
	ret_block->first = first;
	ret_block->n = DS_MIN(BLOCK_SLOTS, slots_n - first);
	r = read_exactly(map_fd, ret_block->bitmap, sizeof(ret_block->bitmap), bitmap_off(first));
	if (r < 0)
		return r;
	return read_exactly(map_fd, ret_block->slots, ret_block->n * sizeof(ret_block->slots[0]),
			    ds_map_slot_off(slots_n, first));
}

/* Slots first: a claimed slot of zeros is never present, a present one that is not claimed might be. */
static int block_write(int map_fd, uint32_t slots_n, const struct block *block)
{
	int r = ds_pwrite_full(map_fd, block->slots, block->n * sizeof(block->slots[0]),
			       ds_map_slot_off(slots_n, block->first));

	return r < 0 ? r
		     : ds_pwrite_full(map_fd, block->bitmap, sizeof(block->bitmap),
				      bitmap_off(block->first));
}

static void drop_slot(struct block *block, uint32_t i)
{
	memset(&block->slots[i], 0, sizeof(block->slots[i]));
	set_bit(block->bitmap, i, false);
}

/* Whether a claim is within the file and after everything before it. */
static bool claim_makes_sense(const struct ds_map_slot *slot, uint64_t end, uint64_t size_bytes)
{
	return slot->raw_len_bytes > 0 && slot->raw_len_bytes <= size_bytes &&
	       slot->raw_off >= end && slot->raw_off <= size_bytes - slot->raw_len_bytes;
}

int ds_map_new_boot(int map_fd, const struct ds_image_layout *layout,
		    const uint8_t boot_id[DS_BOOT_ID_LEN])
{
	_ds_cleanup_free_ struct block *block = ds_malloc(sizeof(*block));
	uint64_t number = ds_random_u64(), end = 0;
	int r = 0;

	if (!block)
		return -ENOMEM;
	for (uint32_t first = 0; first < layout->slots_n && r == 0;
	     first += DS_MIN(BLOCK_SLOTS, layout->slots_n - first)) {
		r = block_read(map_fd, layout->slots_n, first, block);
		if (r < 0)
			break;
		for (uint32_t i = 0; i < block->n; i++) {
			struct ds_map_slot *slot = &block->slots[i];

			if (!bit_of(block->bitmap, i) || !(slot->state & DS_SLOT_PRESENT) ||
			    !claim_makes_sense(slot, end, layout->size_bytes)) {
				drop_slot(block, i);
				continue;
			}
			slot->state = DS_SLOT_PRESENT;
			end = slot->raw_off + slot->raw_len_bytes;
		}
		r = block_write(map_fd, layout->slots_n, block);
	}
	/* What was found in an earlier boot is to be found again. */
	if (r == 0)
		r = ds_pwrite_full(map_fd, &number, sizeof(number),
				   offsetof(struct ds_map_header, number));
	/* The stamp comes last: whoever finds it finds no bit of another boot. */
	if (r == 0)
		r = ds_pwrite_full(map_fd, boot_id, DS_BOOT_ID_LEN,
				   offsetof(struct ds_map_header, boot_id));
	return r;
}

/* ---- giving up the least recently used parts */

struct segment {
	uint64_t used_ms;
	uint64_t off, end;    /* of its chunks */
	uint64_t bytes;	      /* present */
	uint32_t first, last; /* slots */
	uint32_t number;
	bool has_slots;
};

static int compare_segments(const void *a, const void *b)
{
	const struct segment *x = a, *y = b;

	return x->used_ms < y->used_ms ? -1 : x->used_ms > y->used_ms;
}

static int collect_segments(int map_fd, const struct ds_map_header *header, struct block *block,
			    struct segment *segments)
{
	uint64_t segment_bytes = ds_image_segment_bytes(header->size_bytes), end = 0;

	for (uint32_t i = 0; i < DS_IMAGE_SEGMENTS_MAX; i++)
		segments[i] = (struct segment){.used_ms = header->segment_used_ms[i], .number = i};
	for (uint32_t first = 0; first < header->slots_n;
	     first += DS_MIN(BLOCK_SLOTS, header->slots_n - first)) {
		int r = block_read(map_fd, header->slots_n, first, block);

		if (r < 0)
			return r;
		for (uint32_t i = 0; i < block->n; i++) {
			const struct ds_map_slot *slot = &block->slots[i];
			struct segment *segment;

			if (!bit_of(block->bitmap, i) || slot->raw_len_bytes == 0)
				continue;
			if (!claim_makes_sense(slot, end, header->size_bytes))
				return -DS_E_MALFORMED;
			end = slot->raw_off + slot->raw_len_bytes;
			segment = &segments[slot->raw_off / segment_bytes];
			if (!segment->has_slots) {
				segment->has_slots = true;
				segment->first = first + i;
				segment->off = slot->raw_off;
			}
			segment->last = first + i;
			segment->end = end;
			if (slot->state & DS_SLOT_PRESENT)
				segment->bytes += slot->raw_len_bytes;
		}
	}
	return 0;
}

static int drop_slots(int map_fd, uint32_t slots_n, uint32_t from, uint32_t to, struct block *block)
{
	for (uint32_t first = from / BLOCK_SLOTS * BLOCK_SLOTS; first <= to;) {
		int r = block_read(map_fd, slots_n, first, block);

		if (r < 0)
			return r;
		for (uint32_t i = 0; i < block->n; i++)
			if (first + i >= from && first + i <= to)
				drop_slot(block, i);
		r = block_write(map_fd, slots_n, block);
		if (r < 0)
			return r;
		if (slots_n - first <= BLOCK_SLOTS)
			break;
		first += BLOCK_SLOTS;
	}
	return 0;
}

int ds_map_give_up(int map_fd, struct ds_map_header *header, uint64_t goal_bytes,
		   uint64_t before_ms, int (*punch)(void *ctx, uint64_t off, uint64_t len_bytes),
		   void *ctx)
{
	_ds_cleanup_free_ struct block *block = ds_malloc(sizeof(*block));
	_ds_cleanup_free_ struct segment *segments =
		ds_calloc(DS_IMAGE_SEGMENTS_MAX, sizeof(*segments));
	uint64_t given_up = 0;
	int r;

	if (!block || !segments)
		return -ENOMEM;
	r = collect_segments(map_fd, header, block, segments);
	if (r < 0)
		return r;
	qsort(segments, DS_IMAGE_SEGMENTS_MAX, sizeof(*segments), compare_segments);
	for (uint32_t i = 0; i < DS_IMAGE_SEGMENTS_MAX && given_up < goal_bytes; i++) {
		struct segment *segment = &segments[i];

		if (segment->used_ms >= before_ms)
			break;
		if (segment->has_slots)
			r = drop_slots(map_fd, header->slots_n, segment->first, segment->last,
				       block);
		if (r == 0 && segment->has_slots)
			r = punch(ctx, segment->off, segment->end - segment->off);
		if (r < 0)
			return r;
		given_up += segment->bytes;
		header->segment_used_ms[segment->number] = 0;
	}
	/* So that the walk finds what is cold. A failure costs a look in vain. */
	ds_pwrite_full(map_fd, header->segment_used_ms, sizeof(header->segment_used_ms),
		       offsetof(struct ds_map_header, segment_used_ms));
	return 0;
}

uint64_t ds_image_map_bytes(uint32_t slots_n)
{
	return (ds_map_len(slots_n) + 4095) / 4096 * 4096;
}

/* ---- by hand */

int ds_map_read_slot(int map_fd, uint32_t slots_n, uint32_t slot, struct ds_map_slot *ret_slot)
{
	uint64_t off = ds_map_slot_off(slots_n, slot);
	uint8_t state;
	int r;

	r = read_exactly(map_fd, &state, 1, off + offsetof(struct ds_map_slot, state));
	if (r == 0)
		r = read_slot(map_fd, slots_n, slot, ret_slot);
	if (r == 0)
		ret_slot->state = state;
	return r;
}

int ds_map_walk(int map_fd, const struct ds_map_header *header,
		int (*fn)(void *ctx, uint32_t number, const struct ds_map_slot *slot), void *ctx)
{
	_ds_cleanup_free_ struct block *block = ds_malloc(sizeof(*block));
	uint64_t end = 0;
	int r = block ? 0 : -ENOMEM;

	for (uint32_t first = 0; r == 0 && first < header->slots_n;
	     first += DS_MIN(BLOCK_SLOTS, header->slots_n - first)) {
		r = block_read(map_fd, header->slots_n, first, block);
		for (uint32_t i = 0; r == 0 && i < block->n; i++) {
			const struct ds_map_slot *slot = &block->slots[i];

			if (!bit_of(block->bitmap, i) || slot->raw_len_bytes == 0)
				continue;
			if (!claim_makes_sense(slot, end, header->size_bytes))
				return -DS_E_MALFORMED;
			end = slot->raw_off + slot->raw_len_bytes;
			r = fn(ctx, first + i, slot);
		}
	}
	return r;
}

int ds_map_drop(int map_fd, uint32_t slots_n, uint32_t slot)
{
	_ds_cleanup_free_ struct block *block = ds_malloc(sizeof(*block));

	return block ? drop_slots(map_fd, slots_n, slot, slot, block) : -ENOMEM;
}
