/*
 * What the manifest's tests share: page sources with holes, a temporary directory, and a tree in
 * memory that says what a manifest must hold after any sequence of changes.
 */
#ifndef DS_TEST_MANIFEST_SUPPORT_H
#define DS_TEST_MANIFEST_SUPPORT_H

#include <stdatomic.h>

#include "manifest/builder.h"
#include "manifest/manifest.h"
#include "util/random.h"

/* For each suite's .fini: aborts if something leaked. */
void support_check_leaks(void);

/* A path in a directory of this process, which support_clean removes. */
const char *support_path(const char *name);
void support_clean(void);
void support_copy(const char *from, const char *to);

/* A manifest's file in memory as a page source. */
struct support_source {
	struct ds_page_source source;
	uint8_t *data;
	_Atomic uint8_t *is_local; /* per page; NULL: all are */
	_Atomic uint64_t reads_n, misses_n;
	uint64_t fail_page;
	int fail_code; /* what a read of fail_page gives; 0: nothing */
	bool is_mapped;
};
/* What a look-up passes as `want`: the page that it lacked. */
struct support_want {
	uint64_t page;
	bool is_set;
};
void support_source_load(struct support_source *source, const char *path);
void support_source_release(struct support_source *source);
/* No page is local any more. */
void support_source_empty(struct support_source *source);
/* Makes local what was wanted. */
void support_fetch(struct support_source *source, struct support_want *want);

/* Runs `call` (which mentions `want`, a struct support_want) until it says something else than
 * "not local", at most max_n misses. */
#define SUPPORT_UNTIL_LOCAL(src, want, max_n, r, call)                        \
	do {                                                                  \
		unsigned misses_n_ = 0;                                       \
		while ((r = (call)) == -DS_E_NOT_LOCAL) {                     \
			cr_assert(++misses_n_ <= (max_n), "too many misses"); \
			support_fetch(src, &(want));                          \
		}                                                             \
	} while (0)

/* Findings of the whole check; each is printed. */
uint64_t support_verify(struct ds_manifest *manifest);

/* A sound manifest with these ids, for who spoils it: all names in DIR, which is in the root. */
enum { DIR = 3, FILE_A, FILE_B, LINK_TO_A, SYMLINK, LARGE, EMPTY, SUB, NEXT };
void support_build_sound(const char *path);
/* Runs SQL over the file as its writer could; "schema" statements too. */
void support_tamper(const char *path, const char *text);

/* A tree in memory. */
struct model_name {
	uint64_t id, parent, ino;
	char name[DS_NAME_MAX + 1];
	size_t name_len;
};
struct model_inode {
	uint64_t ino;
	enum ds_entry_type type;
	bool is_executable;
	struct ds_time mtime;
	uint32_t nlink;
	uint64_t size_bytes;
	struct ds_digest digest;
	struct ds_entry_chunk chunk;
	struct ds_extent *extents;
	size_t extents_n;
	char *target;
	size_t target_len;
};
struct model {
	struct model_name *names;
	size_t names_n;
	struct model_inode *inodes;
	size_t inodes_n;
	uint64_t next_id;
	struct ds_pack_row *packs;
	size_t packs_n;
	struct ds_prng random;
};
void model_init(struct model *model, uint64_t seed);
void model_release(struct model *model);
/* One random change, made to both. */
void model_change(struct model *model, struct ds_builder *builder);
/* A file, directory or symlink of random contents under this name; its id. */
uint64_t model_add(struct model *model, struct ds_builder *builder, uint64_t parent,
		   const char *name, size_t name_len, enum ds_entry_type type, uint64_t size_bytes);
uint64_t model_add_link(struct model *model, struct ds_builder *builder, uint64_t parent,
			const char *name, size_t name_len, uint64_t ino);
struct model_inode *model_inode(struct model *model, uint64_t ino);
/* 0 <= value < bound, by the seed. */
uint64_t model_below(struct model *model, uint64_t bound);
const struct model_name *model_name(const struct model *model, uint64_t id);
/* Gives all directories the digests of what they hold, and all packs ids and sizes. */
void model_seal(struct model *model, struct ds_builder *builder);
/* Asserts that the builder, or the manifest, shows exactly the model. */
void model_check_builder(struct model *model, struct ds_builder *builder);
void model_check_manifest(struct model *model, struct ds_manifest *manifest, void *want);
/* A whole manifest of that many random changes, sealed and finished; the caller releases the
 * model. */
void model_build(struct model *model, const char *path, uint32_t page_size, uint64_t seed,
		 unsigned changes);
/* Names of a directory in byte order; the caller frees the array. */
const struct model_name **model_list(const struct model *model, uint64_t dir, size_t *ret_n);
uint64_t model_total(const struct model *model, const char *key);

#endif
