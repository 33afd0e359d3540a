/*
 * Lending from a mapping (image_lend.c). Needs a TMPDIR whose files can leave the page cache: tests/lib/with_o_direct.sh.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cache/cache_internal.h"
#include "cache_support.h"
#include "util/clock.h"

TestSuite(lend, .fini = support_clean, .timeout = 120);

#define SLOTS	40
#define LEN_MAX 30000

/* The keeper gives pages back, whenever it passes: here nobody does but the test. */
void __wrap_ds_cache_start_keeper(struct ds_cache *cache);
void __wrap_ds_cache_start_keeper(struct ds_cache *cache)
{
	(void)cache;
}

static bool no_mmap;

void *__real_mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t off);
void *__wrap_mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t off);
void *__wrap_mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
	if (no_mmap && fd >= 0) {
		errno = ENOMEM;
		return MAP_FAILED;
	}
	return __real_mmap64(addr, len, prot, flags, fd, off);
}

struct box {
	struct support_pack pack;
	struct ds_cache *cache;
	struct ds_image *image;
	int data_fd;
};

static void box_init(struct box *box)
{
	box->cache = support_open(support_path("c"), DS_MIB(64), 1);
	support_pack_init(&box->pack, 7, SLOTS, LEN_MAX, false);
	box->image = support_image(box->cache, &box->pack);
	cr_assert_eq(support_fill_all(box->image, &box->pack), SLOTS);
	box->data_fd = support_data(support_path("c"), O_RDWR);
}

static void box_release(struct box *box)
{
	close(box->data_fd);
	ds_image_unref(box->image);
	ds_cache_unref(box->cache);
	support_pack_release(&box->pack);
}

static void check_bytes(const struct box *box, uint32_t slot, uint64_t off, size_t len_bytes,
			const uint8_t *data)
{
	uint8_t want[LEN_MAX];

	support_bytes(&box->pack, slot, want);
	cr_assert_eq(memcmp(data, want + off, len_bytes), 0, "wrong bytes in slot %u", slot);
}

/* Of all of a slot, which has to be in the page cache: a kernel may take pages at any time, and who reads puts them there. */
static const uint8_t *lend(const struct box *box, uint32_t slot)
{
	const uint8_t *data;
	int r;

	do {
		cr_assert_eq(support_read(box->image, &box->pack, slot, true), 1);
		r = ds_image_lend_now(box->image, &box->pack.slots[slot], 0,
				      box->pack.slots[slot].raw_len_bytes, &data);
	} while (r == -EAGAIN);
	cr_assert_eq(r, 0);
	return data;
}

Test(lend, what_is_lent_is_the_image)
{
	struct box box;
	const uint8_t *data;

	box_init(&box);
	for (uint32_t slot = 0; slot < SLOTS; slot++) {
		const struct ds_image_slot *wanted = &box.pack.slots[slot];
		uint64_t off = wanted->raw_len_bytes / 3;
		struct ds_image_slot other = *wanted;

		check_bytes(&box, slot, 0, wanted->raw_len_bytes, lend(&box, slot));
		if (ds_image_lend_now(box.image, wanted, off, wanted->raw_len_bytes - off, &data) ==
		    0) {
			check_bytes(&box, slot, off, wanted->raw_len_bytes - off, data);
			ds_image_lend_end(box.image);
		}
		ds_image_lend_end(box.image);
		other.digest.bytes[0] ^= 1;
		cr_assert_eq(ds_image_lend_now(box.image, &other, 0, 1, &data), -EAGAIN,
			     "lent under another claim");
	}
	box_release(&box);
}

Test(lend, what_is_on_the_disk_alone_is_not_lent)
{
	struct box box;
	const uint8_t *data;
	bool was_lent = true;

	box_init(&box);
	/* Nobody has mapped it, so that it goes; a page that somebody looks at just then stays for a moment. */
	for (int i = 0; i < 1000 && was_lent; i++) {
		cr_assert_eq(fdatasync(box.data_fd), 0);
		cr_assert_eq(posix_fadvise(box.data_fd, 0, 0, POSIX_FADV_DONTNEED), 0);
		was_lent = ds_image_lend_now(box.image, &box.pack.slots[5], 0,
					     box.pack.slots[5].raw_len_bytes, &data) == 0;
		if (was_lent)
			ds_image_lend_end(box.image);
	}
	cr_assert_not(was_lent);
	check_bytes(&box, 5, 0, box.pack.slots[5].raw_len_bytes, lend(&box, 5));
	ds_image_lend_end(box.image);
	box_release(&box);
}

Test(lend, what_the_file_has_lost_is_not_lent)
{
	struct box box;
	const uint8_t *data;

	box_init(&box);
	(void)lend(&box, 5);
	ds_image_lend_end(box.image);
	cr_assert_eq(ftruncate(box.data_fd, 0), 0);
	for (uint32_t slot = 0; slot < SLOTS; slot++)
		cr_assert_eq(ds_image_lend_now(box.image, &box.pack.slots[slot], 0,
					       box.pack.slots[slot].raw_len_bytes, &data),
			     -EAGAIN);
	box_release(&box);
}

struct closer {
	struct ds_image *image;
	_Atomic bool is_done;
};

static void *take_away(void *arg)
{
	struct closer *closer = arg;

	pthread_mutex_lock(&closer->image->mutex);
	ds_image_detach_locked(closer->image, 0);
	pthread_mutex_unlock(&closer->image->mutex);
	closer->is_done = true;
	return NULL;
}

Test(lend, who_takes_the_disk_side_away_waits_for_what_is_lent)
{
	struct closer closer = {0};
	const uint8_t *data, *again;
	pthread_t thread;
	struct box box;

	box_init(&box);
	closer.image = box.image;
	data = lend(&box, 5);
	cr_assert_eq(pthread_create(&thread, NULL, take_away, &closer), 0);
	while (atomic_load(&box.image->disk))
		ds_sleep_ms(1);
	/* Long enough for who does not wait. */
	for (int i = 0; i < 50; i++) {
		cr_assert_not(closer.is_done);
		check_bytes(&box, 5, 0, box.pack.slots[5].raw_len_bytes, data);
		ds_sleep_ms(1);
	}
	cr_assert_eq(ds_image_lend_now(box.image, &box.pack.slots[5], 0, 1, &again), -EAGAIN);
	ds_image_lend_end(box.image);
	pthread_join(thread, NULL);
	cr_assert(closer.is_done);
	box_release(&box);
}

Test(lend, without_a_mapping_nothing_is_lent)
{
	struct box box;
	const uint8_t *data;

	box_init(&box);
	no_mmap = true;
	for (int i = 0; i < 2; i++) {
		cr_assert_eq(support_read(box.image, &box.pack, 5, true), 1);
		cr_assert_eq(ds_image_lend_now(box.image, &box.pack.slots[5], 0, 1, &data),
			     -EAGAIN);
		/* It is not tried for each read. */
		no_mmap = false;
	}
	box_release(&box);
}

Test(lend, addresses_have_a_limit_and_come_back)
{
	struct box box;
	const uint8_t *data;
	uint64_t size;

	box_init(&box);
	size = box.pack.layout.size_bytes;
	(void)lend(&box, 5);
	ds_image_lend_end(box.image);
	cr_assert_eq(box.cache->mapped_bytes, size);
	pthread_mutex_lock(&box.image->mutex);
	cr_assert(ds_image_detach_locked(box.image, 0));
	pthread_mutex_unlock(&box.image->mutex);
	cr_assert_eq(box.cache->mapped_bytes, 0);
	box.cache->mapped_max_bytes = size - 1;
	for (int i = 0; i < 3; i++) {
		cr_assert_eq(support_read(box.image, &box.pack, 5, true), 1);
		cr_assert_eq(ds_image_lend_now(box.image, &box.pack.slots[5], 0, 1, &data),
			     -EAGAIN);
	}
	cr_assert_eq(box.cache->mapped_bytes, 0);
	box_release(&box);
}

/* Bytes of a mapping that count as this process's (smaps: Rss). */
static size_t rss_of(const void *address)
{
	char line[256];
	unsigned long from, to, kib = 0;
	bool is_it = false;
	FILE *file = fopen("/proc/self/smaps", "re");

	cr_assert(file);
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
			is_it = from <= (uintptr_t)address && (uintptr_t)address < to;
		else if (is_it && sscanf(line, "Rss: %lu kB", &kib) == 1)
			break;
	}
	fclose(file);
	return kib * 1024;
}

Test(lend, what_was_lent_does_not_stay_memory_of_the_process)
{
	struct box box;
	const uint8_t *data;

	box_init(&box);
	data = lend(&box, 5);
	check_bytes(&box, 5, 0, box.pack.slots[5].raw_len_bytes, data);
	cr_assert_gt(rss_of(data), 0);
	ds_image_lend_end(box.image);
	ds_image_keep(box.cache, 60000);
	cr_assert_eq(rss_of(data), 0);
	/* As long as it is open. */
	cr_assert_neq(atomic_load(&box.image->disk), NULL);
	check_bytes(&box, 5, 0, box.pack.slots[5].raw_len_bytes, lend(&box, 5));
	ds_image_lend_end(box.image);
	box_release(&box);
}
