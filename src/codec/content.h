/*
 * Content digests: what a file, a link and a directory are identified by (schema/README.md,
 * "Digests"). A file of one chunk has the SHA-256 of its bytes, an empty file that of nothing.
 *
 * Threads: an object belongs to one thread. Errors: -ENOMEM from _new; -EINVAL for calls out of
 * order is an assert.
 */
#ifndef DS_CODEC_CONTENT_H
#define DS_CODEC_CONTENT_H

#include "codec/digest.h"

/* Digest of a file of more than one chunk's size (over DS_CHUNK_MAX bytes): its extents in file
 * order. The lengths must add up to size_bytes. */
struct ds_content_hasher;
int ds_content_hasher_new(uint64_t size_bytes, struct ds_content_hasher **ret_hasher);
struct ds_content_hasher *ds_content_hasher_free(struct ds_content_hasher *hasher);
/* digest NULL: an extent of zeros. */
void ds_content_hasher_extent(struct ds_content_hasher *hasher, uint64_t len_bytes,
			      const struct ds_digest *digest);
void ds_content_hasher_finish(struct ds_content_hasher *hasher, struct ds_digest *ret_digest);

/* Digest of a directory: its entries in byte order of their names, strictly ascending. */
enum ds_content_type {
	DS_CONTENT_FILE = 'f',
	DS_CONTENT_DIRECTORY = 'd',
	DS_CONTENT_SYMLINK = 'l'
};
struct ds_tree_hasher;
int ds_tree_hasher_new(struct ds_tree_hasher **ret_hasher);
struct ds_tree_hasher *ds_tree_hasher_free(struct ds_tree_hasher *hasher);
/* `digest`: of the content, of the link's target, or of the directory. */
void ds_tree_hasher_entry(struct ds_tree_hasher *hasher, enum ds_content_type type, bool executable,
			  const char *name, size_t name_len, const struct ds_digest *digest);
/* Gives the digest and starts afresh. */
void ds_tree_hasher_finish(struct ds_tree_hasher *hasher, struct ds_digest *ret_digest);

/* Byte order of names: memcmp, the shorter first if it is a prefix. */
int ds_name_compare(const char *a, size_t a_len, const char *b, size_t b_len);

#endif
