/*
 * Building a manifest: a local SQLite file, new or a copy of the parent's, changed in place by one
 * transaction, so that pages that did not change stay byte for byte the same.
 *
 * The builder keeps totals, histogram, nlink of directories, their sizes (number of entries), and
 * the packs' live counts right by itself; the caller gives digests of directories. Nothing is
 * durable before finish; a builder that is freed without leaves a file that nobody may use.
 *
 * Threads: one at a time. Blocks on the local disk. Errors: -ENOMEM, -EEXIST (the name is there),
 * -ENOENT, -ENOTDIR (of a parent), -EMLINK, -DS_E_LIMIT (ids, pack numbers, length of a rejected
 * path), -ENOSPC and other errnos of the disk (with the SQLite code in the diag of
 * ds_builder_error), -DS_E_MALFORMED (the parent's contents). After -ENOMEM, an errno of the disk or
 * -DS_E_MALFORMED, every later call may give the same: there is no journal to go back by.
 */
#ifndef DS_MANIFEST_BUILDER_H
#define DS_MANIFEST_BUILDER_H

#include "manifest/manifest.h"

struct ds_builder;

/* A new, empty tree (root only) in a file that does not exist yet. page_size: power of two,
 * 4096..65536. */
int ds_builder_create(const char *path, uint32_t page_size, struct ds_builder **ret_builder);
/* Goes on from a verified copy of a parent's manifest (the file is changed in place). Checks the
 * schema as a reader does. */
int ds_builder_open(const char *path, struct ds_builder **ret_builder);
struct ds_builder *ds_builder_free(struct ds_builder *builder);
const struct ds_diag *ds_builder_error(const struct ds_builder *builder);

/* Reading what is there now (blocking, no `want`). Semantics as in manifest.h. */
int ds_builder_lookup(struct ds_builder *builder, uint64_t parent, const char *name,
		      size_t name_len, struct ds_entry *ret_entry);
int ds_builder_get(struct ds_builder *builder, uint64_t ino, struct ds_entry *ret_entry);
/* All names of `dir` in byte order, until fn gives something else than 0: an error is returned, and
 * 0 for what is above. fn may look up and get, but neither change the tree nor list. */
int ds_builder_list(struct ds_builder *builder, uint64_t dir, ds_manifest_list_fn *fn, void *ctx);
int ds_builder_extents(struct ds_builder *builder, uint64_t ino, struct ds_extent *ret_extents,
		       size_t max_n, size_t *ret_n);
int ds_builder_pack(struct ds_builder *builder, uint32_t number, struct ds_pack_row *ret_pack);
/* Number of the pack with this id; -ENOENT. */
int ds_builder_pack_number(struct ds_builder *builder, const struct ds_digest *id,
			   uint32_t *ret_number);

/*
 * Adds a name. Takes parent, name, type, is_executable, mtime, and for files size, digest, chunk or
 * (size over DS_CHUNK_MAX) the extents, for symlinks the target (digest and size are computed
 * here), from the arguments; gives the id, which is larger than any in use. Directories start
 * empty, with the digest of an empty directory.
 */
int ds_builder_add(struct ds_builder *builder, const struct ds_entry *entry,
		   const struct ds_extent *extents, size_t extents_n, const char *target,
		   size_t target_len, uint64_t *ret_id);
/* A further name of a file (hard link): both names show the same inode, whose nlink grows. */
int ds_builder_add_link(struct ds_builder *builder, uint64_t parent, const char *name,
			size_t name_len, uint64_t ino, uint64_t *ret_id);
/* Replaces what an inode holds (file or symlink), keeping its id and names: is_executable,
 * mtime, size, digest, chunk, extents, target; the type too (file to symlink and back) if it has
 * one name. */
int ds_builder_set(struct ds_builder *builder, uint64_t ino, const struct ds_entry *entry,
		   const struct ds_extent *extents, size_t extents_n, const char *target,
		   size_t target_len);
/* A directory's digest and mtime. No write if they are the same. */
int ds_builder_set_directory(struct ds_builder *builder, uint64_t id,
			     const struct ds_digest *digest, struct ds_time mtime);
/* No write if it is the same. */
int ds_builder_set_mtime(struct ds_builder *builder, uint64_t ino, struct ds_time mtime);
/* Removes a name by entry id; a directory with everything in it. Removing the first name of a
 * file that has more makes one of the others the first: the inode number changes then. */
int ds_builder_remove(struct ds_builder *builder, uint64_t id);

/* Adds a data pack: its number is known at once, so that rows may name it; id, size, chunks and
 * raw bytes come with ds_builder_set_pack before finish. Packs that nothing refers to at finish
 * are left out. */
int ds_builder_add_pack(struct ds_builder *builder, uint32_t *ret_number);
int ds_builder_set_pack(struct ds_builder *builder, uint32_t number, const struct ds_digest *id,
			uint64_t size_bytes, uint32_t chunks_n, uint64_t raw_bytes);
/* Rejected paths are of the version, not inherited: begin with none. */
int ds_builder_clear_rejects(struct ds_builder *builder);
/* -EEXIST for a path that is there. */
int ds_builder_add_reject(struct ds_builder *builder, const char *path, size_t path_len,
			  const char *reason);

uint64_t ds_builder_total(struct ds_builder *builder, const char *key);
/* All entries, the root and what cannot be reached included: counted, not stored. */
int ds_builder_entries_n(struct ds_builder *builder, uint64_t *ret_n);

/* Commits, closes the database and leaves a plain file without journal. The builder can only be
 * freed then. */
int ds_builder_finish(struct ds_builder *builder);

#endif
