/*
 * What the tests of the cache share: a directory of their own, made-up packs whose bytes follow from a seed, and
 * looking at what lies in a cache directory.
 */
#pragma once

#include "cache/cache.h"
#include "store/store.h"

/* A path in this test's own temporary directory, which support_clean removes. */
const char *support_path(const char *name);
/* Ends what support_path began; aborts on a leak. For .fini. */
void support_clean(void);

/* A model of an image: `slots_n` chunks back to back, their bytes from the seed. */
struct support_pack {
	uint64_t seed;
	struct ds_image_layout layout;
	struct ds_image_slot *slots;
};
/* Lengths between 1 and len_max (all of len_max if `equal`). */
void support_pack_init(struct support_pack *pack, uint64_t seed, uint32_t slots_n, uint32_t len_max,
		       bool equal);
void support_pack_release(struct support_pack *pack);
/* `data` has room for slots[slot].raw_len_bytes. */
void support_bytes(const struct support_pack *pack, uint32_t slot, uint8_t *data);

int support_fill(struct ds_image *image, const struct support_pack *pack, uint32_t slot);
/* Reads the whole chunk: 1 right, 0 not there; a wrong byte is an abort. */
int support_read(struct ds_image *image, const struct support_pack *pack, uint32_t slot,
		 bool may_check);
unsigned support_fill_all(struct ds_image *image, const struct support_pack *pack);
unsigned support_count(struct ds_image *image, const struct support_pack *pack, bool may_check);

/* Gives all of the image to the kernel. */
void support_hand_out(struct ds_image *image, const struct support_pack *pack);

struct ds_cache *support_open(const char *dir, uint64_t capacity_bytes, uint8_t boot);
struct ds_image *support_image(struct ds_cache *cache, const struct support_pack *pack);

/* Directories of images below DIR/images; -1 in *ret_fd if there is no such. Returns how many there are, and a
 * descriptor of the one at `which`. */
unsigned support_images(const char *dir, unsigned which, int *ret_fd);
/* A descriptor of the bytes of the only image below DIR. */
int support_data(const char *dir, int flags);
/* Allocated bytes of all files in the cache directory's images. */
uint64_t support_allocated(const char *dir);

/* Runs fn in a child process; returns its pid. The child ends with fn's value. */
int support_fork(int (*fn)(void *ctx), void *ctx);
/* Exit status of the child, 128 + signal if it was killed. */
int support_wait(int pid);

/* Mounts a tmpfs at `dir`, which is support_path("t") (see own_mounts.sh). */
bool support_tmpfs(const char *dir, const char *options);
