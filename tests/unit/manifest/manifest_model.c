#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "codec/content.h"
#include "codec/pack.h"
#include "manifest_support.h"
#include "util/mem.h"

/* One more element; grows at powers of two. */
static void *grown(void *array, size_t n, size_t size)
{
	if (n & (n - 1))
		return array;
	array = realloc(array, (n ? n * 2 : 1) * size);
	cr_assert(array);
	return array;
}

void model_init(struct model *model, uint64_t seed)
{
	memset(model, 0, sizeof(*model));
	model->random.state = seed;
	model->next_id = DS_ENTRY_ID_FIRST;
	model->inodes = calloc(1, sizeof(*model->inodes));
	model->inodes[0] =
		(struct model_inode){.ino = DS_ROOT_ID, .type = DS_ENTRY_DIRECTORY, .nlink = 2};
	model->inodes_n = 1;
}

static void free_contents(struct model_inode *inode)
{
	free(inode->extents);
	free(inode->target);
	inode->extents = NULL;
	inode->target = NULL;
	inode->extents_n = 0;
}

void model_release(struct model *model)
{
	for (size_t i = 0; i < model->inodes_n; i++)
		free_contents(&model->inodes[i]);
	free(model->inodes);
	free(model->names);
	free(model->packs);
}

struct model_inode *model_inode(struct model *model, uint64_t ino)
{
	/* Where nothing was removed yet: the root, then 3, 4, 5 ... */
	if (ino > 2 && ino - 2 < model->inodes_n && model->inodes[ino - 2].ino == ino)
		return &model->inodes[ino - 2];
	for (size_t i = 0; i < model->inodes_n; i++) {
		if (model->inodes[i].ino == ino)
			return &model->inodes[i];
	}
	fprintf(stderr, "the model has no inode %llu\n", (unsigned long long)ino);
	abort();
}

const struct model_name *model_name(const struct model *model, uint64_t id)
{
	for (size_t i = 0; i < model->names_n; i++) {
		if (model->names[i].id == id)
			return &model->names[i];
	}
	fprintf(stderr, "the model has no name %llu\n", (unsigned long long)id);
	abort();
}

static const struct model_name *find_name(const struct model *model, uint64_t parent,
					  const char *name, size_t len)
{
	for (size_t i = 0; i < model->names_n; i++) {
		const struct model_name *n = &model->names[i];

		if (n->parent == parent && n->name_len == len && memcmp(n->name, name, len) == 0)
			return n;
	}
	return NULL;
}

static int compare_names(const void *a, const void *b)
{
	const struct model_name *x = *(const struct model_name *const *)a;
	const struct model_name *y = *(const struct model_name *const *)b;

	return ds_name_compare(x->name, x->name_len, y->name, y->name_len);
}

const struct model_name **model_list(const struct model *model, uint64_t dir, size_t *ret_n)
{
	const struct model_name **list = malloc((model->names_n + 1) * sizeof(struct model_name *));
	size_t n = 0;

	for (size_t i = 0; i < model->names_n; i++) {
		if (model->names[i].parent == dir)
			list[n++] = &model->names[i];
	}
	qsort(list, n, sizeof(*list), compare_names);
	*ret_n = n;
	return list;
}

uint64_t model_below(struct model *model, uint64_t bound)
{
	return ds_prng_below(&model->random, bound);
}

static void random_digest(struct model *model, struct ds_digest *digest)
{
	for (size_t i = 0; i < DS_DIGEST_LEN; i++)
		digest->bytes[i] = (uint8_t)ds_prng_next(&model->random);
}

/* A chunk in one of the last few packs; now and then a new one is begun. */
static struct ds_entry_chunk random_chunk(struct model *model, struct ds_builder *builder,
					  uint32_t raw_len)
{
	struct ds_pack_row *pack;

	if (model->packs_n == 0 || model_below(model, 20) == 0) {
		uint32_t number;

		cr_assert_eq(ds_builder_add_pack(builder, &number), 0);
		model->packs = grown(model->packs, model->packs_n, sizeof(*model->packs));
		pack = &model->packs[model->packs_n++];
		*pack = (struct ds_pack_row){.number = number};
		random_digest(model, &pack->id);
		pack->size_bytes = DS_MIB(64);
		pack->chunks_n = 1000;
		pack->raw_bytes = DS_MIB(100);
	}
	pack = &model->packs[model->packs_n - 1 -
			     model_below(model, DS_MIN(model->packs_n, (size_t)4))];
	pack->live_n++;
	return (struct ds_entry_chunk){
		.pack = pack->number,
		.ordinal = (uint32_t)model_below(model, 1000),
		.stored_off = DS_PACK_HEAD_LEN + model_below(model, DS_MIB(32)),
		.stored_len_bytes = (uint32_t)(1 + model_below(model, raw_len)),
		.raw_off = model_below(model, DS_MIB(50)),
	};
}

static void unref_pack(struct model *model, uint32_t number)
{
	for (size_t i = 0; i < model->packs_n; i++) {
		if (model->packs[i].number == number) {
			cr_assert(model->packs[i].live_n > 0);
			model->packs[i].live_n--;
			return;
		}
	}
	cr_assert_fail("no such pack");
}

static void unref_contents(struct model *model, const struct model_inode *inode)
{
	if (inode->type != DS_ENTRY_FILE)
		return;
	if (inode->extents_n == 0 && inode->size_bytes > 0)
		unref_pack(model, inode->chunk.pack);
	for (size_t i = 0; i < inode->extents_n; i++) {
		if (!inode->extents[i].is_zeros)
			unref_pack(model, inode->extents[i].chunk.pack);
	}
}

static void random_extents(struct model *model, struct ds_builder *builder,
			   struct model_inode *inode)
{
	struct ds_content_hasher *hasher;
	uint64_t off = 0;

	cr_assert_eq(ds_content_hasher_new(inode->size_bytes, &hasher), 0);
	while (off < inode->size_bytes) {
		uint64_t left = inode->size_bytes - off;
		struct ds_extent *extent;

		inode->extents = grown(inode->extents, inode->extents_n, sizeof(*inode->extents));
		extent = &inode->extents[inode->extents_n];
		memset(extent, 0, sizeof(*extent));
		extent->off = off;
		extent->slot = (uint32_t)inode->extents_n++;
		extent->is_zeros = model_below(model, 4) == 0;
		extent->len_bytes =
			1 + model_below(model, extent->is_zeros ? DS_MIB(40) : DS_CHUNK_MAX);
		extent->len_bytes = DS_MIN(extent->len_bytes, left);
		if (!extent->is_zeros) {
			random_digest(model, &extent->digest);
			extent->chunk = random_chunk(model, builder, (uint32_t)extent->len_bytes);
			extent->chunk.raw_off = 0;
		}
		ds_content_hasher_extent(hasher, extent->len_bytes,
					 extent->is_zeros ? NULL : &extent->digest);
		off += extent->len_bytes;
	}
	ds_content_hasher_finish(hasher, &inode->digest);
	ds_content_hasher_free(hasher);
}

/* Fills an inode whose type and size are set. */
static void random_contents(struct model *model, struct ds_builder *builder,
			    struct model_inode *inode)
{
	inode->mtime = (struct ds_time){.s = (int64_t)model_below(model, 4000000000u) - 1000000000,
					.ns = (uint32_t)model_below(model, DS_NS_PER_S)};
	if (inode->type == DS_ENTRY_SYMLINK) {
		inode->target_len =
			1 + model_below(model, model_below(model, 10) ? 60 : DS_TARGET_MAX);
		inode->target = malloc(inode->target_len);
		for (size_t i = 0; i < inode->target_len; i++)
			inode->target[i] = (char)(1 + model_below(model, 255));
		inode->size_bytes = inode->target_len;
		cr_assert_eq(ds_digest_of(inode->target, inode->target_len, &inode->digest), 0);
	}
	if (inode->type != DS_ENTRY_FILE)
		return;
	inode->is_executable = model_below(model, 2);
	if (inode->size_bytes > DS_CHUNK_MAX) {
		random_extents(model, builder, inode);
	} else if (inode->size_bytes > 0) {
		random_digest(model, &inode->digest);
		inode->chunk = random_chunk(model, builder, (uint32_t)inode->size_bytes);
	} else {
		cr_assert_eq(ds_digest_of("", 0, &inode->digest), 0);
	}
}

static uint64_t random_size(struct model *model)
{
	switch (model_below(model, 8)) {
	case 0:
		return 0;
	case 1:
		return DS_CHUNK_MAX;
	case 2:
		return DS_CHUNK_MAX + 1 + model_below(model, DS_MIB(30));
	default:
		return 1 + model_below(model, UINT64_C(1) << (1 + model_below(model, 21)));
	}
}

static struct ds_entry to_entry(const struct model_inode *inode)
{
	return (struct ds_entry){
		.type = inode->type,
		.is_executable = inode->is_executable,
		.mtime = inode->mtime,
		.size_bytes = inode->size_bytes,
		.digest = inode->digest,
		.chunk = inode->chunk,
	};
}

static void add_name(struct model *model, uint64_t id, uint64_t parent, const char *name,
		     size_t name_len, uint64_t ino)
{
	struct model_name *n;
	struct model_inode *dir = model_inode(model, parent);

	model->names = grown(model->names, model->names_n, sizeof(*model->names));
	n = &model->names[model->names_n++];
	*n = (struct model_name){.id = id, .parent = parent, .ino = ino, .name_len = name_len};
	memcpy(n->name, name, name_len);
	dir->size_bytes++;
	if (model_inode(model, ino)->type == DS_ENTRY_DIRECTORY)
		dir->nlink++;
	cr_assert_eq(id, model->next_id);
	model->next_id++;
}

uint64_t model_add(struct model *model, struct ds_builder *builder, uint64_t parent,
		   const char *name, size_t name_len, enum ds_entry_type type, uint64_t size_bytes)
{
	struct model_inode inode = {.type = type, .size_bytes = size_bytes};
	struct ds_entry entry;
	uint64_t id;

	inode.nlink = type == DS_ENTRY_DIRECTORY ? 2 : 1;
	random_contents(model, builder, &inode);
	entry = to_entry(&inode);
	entry.parent = parent;
	entry.name_len = (uint8_t)name_len;
	memcpy(entry.name, name, name_len);
	cr_assert_eq(ds_builder_add(builder, &entry, inode.extents, inode.extents_n, inode.target,
				    inode.target_len, &id),
		     0);
	inode.ino = id;
	model->inodes = grown(model->inodes, model->inodes_n, sizeof(*model->inodes));
	model->inodes[model->inodes_n++] = inode;
	add_name(model, id, parent, name, name_len, id);
	return id;
}

uint64_t model_add_link(struct model *model, struct ds_builder *builder, uint64_t parent,
			const char *name, size_t name_len, uint64_t ino)
{
	uint64_t id;

	cr_assert_eq(ds_builder_add_link(builder, parent, name, name_len, ino, &id), 0);
	model_inode(model, ino)->nlink++;
	add_name(model, id, parent, name, name_len, ino);
	return id;
}

static uint64_t random_directory(struct model *model)
{
	for (;;) {
		const struct model_inode *inode =
			&model->inodes[model_below(model, model->inodes_n)];

		if (inode->type == DS_ENTRY_DIRECTORY)
			return inode->ino;
	}
}

static size_t random_name(struct model *model, char *name)
{
	size_t len = 1 + model_below(model, model_below(model, 8) ? 12 : DS_NAME_MAX);

	for (;;) {
		for (size_t i = 0; i < len; i++) {
			/* Few letters, so that names share beginnings. */
			name[i] =
				(char)(model_below(model, 4) ? 'a' + (char)model_below(model, 3)
							     : (char)(1 + model_below(model, 255)));
			if (name[i] == '/')
				name[i] = '.';
		}
		if (!(len <= 2 && memcmp(name, "..", len) == 0))
			return len;
	}
}

static void remove_inode(struct model *model, struct model_inode *inode)
{
	unref_contents(model, inode);
	free_contents(inode);
	*inode = model->inodes[--model->inodes_n];
}

static void remove_name(struct model *model, uint64_t id)
{
	struct model_name gone = *model_name(model, id);
	struct model_inode *inode = model_inode(model, gone.ino);

	if (inode->type == DS_ENTRY_DIRECTORY) {
		for (size_t i = 0; i < model->names_n;) {
			if (model->names[i].parent == id) {
				remove_name(model, model->names[i].id);
				i = 0;
			} else {
				i++;
			}
		}
		inode = model_inode(model, gone.ino);
	}
	model_inode(model, gone.parent)->size_bytes--;
	if (inode->type == DS_ENTRY_DIRECTORY)
		model_inode(model, gone.parent)->nlink--;
	for (size_t i = 0; i < model->names_n; i++) {
		if (model->names[i].id == id) {
			model->names[i] = model->names[--model->names_n];
			break;
		}
	}
	if (inode->type == DS_ENTRY_FILE && inode->nlink > 1) {
		uint64_t first = UINT64_MAX;

		inode->nlink--;
		if (gone.id != gone.ino)
			return;
		for (size_t i = 0; i < model->names_n; i++) {
			if (model->names[i].ino == gone.ino)
				first = DS_MIN(first, model->names[i].id);
		}
		inode->ino = first;
		for (size_t i = 0; i < model->names_n; i++) {
			if (model->names[i].ino == gone.ino)
				model->names[i].ino = first;
		}
		return;
	}
	remove_inode(model, inode);
}

static void change_contents(struct model *model, struct ds_builder *builder,
			    struct model_inode *inode)
{
	struct model_inode old = *inode;
	struct ds_entry entry;

	inode->extents = NULL;
	inode->extents_n = 0;
	inode->target = NULL;
	inode->is_executable = false;
	memset(&inode->chunk, 0, sizeof(inode->chunk));
	if (old.nlink == 1 && model_below(model, 4) == 0)
		inode->type = old.type == DS_ENTRY_FILE ? DS_ENTRY_SYMLINK : DS_ENTRY_FILE;
	inode->size_bytes = random_size(model);
	if (old.extents_n > 0 && inode->type == DS_ENTRY_FILE && model_below(model, 2)) {
		/* The same file with its tail replaced: a row or so in common. */
		inode->size_bytes = old.extents[0].len_bytes + DS_CHUNK_MAX;
		inode->extents = malloc(sizeof(*inode->extents) * 3);
		inode->extents[0] = old.extents[0];
		if (!old.extents[0].is_zeros) {
			struct ds_pack_row *pack = model->packs;

			while (pack->number != old.extents[0].chunk.pack)
				pack++;
			pack->live_n++;
		}
		inode->extents[1] = (struct ds_extent){.off = old.extents[0].len_bytes,
						       .slot = 1,
						       .is_zeros = true,
						       .len_bytes = 1};
		inode->extents[2] = (struct ds_extent){.off = old.extents[0].len_bytes + 1,
						       .slot = 2,
						       .len_bytes = DS_CHUNK_MAX - 1};
		random_digest(model, &inode->extents[2].digest);
		inode->extents[2].chunk = random_chunk(model, builder, DS_CHUNK_MAX - 1);
		inode->extents[2].chunk.raw_off = 0;
		inode->extents_n = 3;
		struct ds_content_hasher *hasher;
		cr_assert_eq(ds_content_hasher_new(inode->size_bytes, &hasher), 0);
		for (size_t i = 0; i < 3; i++)
			ds_content_hasher_extent(hasher, inode->extents[i].len_bytes,
						 inode->extents[i].is_zeros
							 ? NULL
							 : &inode->extents[i].digest);
		ds_content_hasher_finish(hasher, &inode->digest);
		ds_content_hasher_free(hasher);
	} else {
		random_contents(model, builder, inode);
	}
	unref_contents(model, &old);
	free_contents(&old);
	entry = to_entry(inode);
	cr_assert_eq(ds_builder_set(builder, inode->ino, &entry, inode->extents, inode->extents_n,
				    inode->target, inode->target_len),
		     0, "%s", ds_builder_error(builder)->detail);
}

void model_change(struct model *model, struct ds_builder *builder)
{
	uint64_t what = model_below(model, 100), dir = random_directory(model), id;
	char name[DS_NAME_MAX];
	size_t len = random_name(model, name);
	const struct model_name *n;

	if (model->names_n == 0 || what < 45) {
		enum ds_entry_type type = what < 6    ? DS_ENTRY_DIRECTORY
					  : what < 12 ? DS_ENTRY_SYMLINK
						      : DS_ENTRY_FILE;

		if (find_name(model, dir, name, len)) {
			struct ds_entry entry = {.type = DS_ENTRY_DIRECTORY,
						 .parent = dir,
						 .name_len = (uint8_t)len};

			memcpy(entry.name, name, len);
			cr_assert_eq(ds_builder_add(builder, &entry, NULL, 0, NULL, 0, &id),
				     -EEXIST);
			return;
		}
		model_add(model, builder, dir, name, len, type,
			  type == DS_ENTRY_FILE ? random_size(model) : 0);
		return;
	}
	n = &model->names[model_below(model, model->names_n)];
	if (what < 58) {
		uint64_t ino = n->ino;

		if (model_inode(model, ino)->type != DS_ENTRY_FILE)
			return;
		if (find_name(model, dir, name, len)) {
			cr_assert_eq(ds_builder_add_link(builder, dir, name, len, ino, &id),
				     -EEXIST);
			return;
		}
		model_add_link(model, builder, dir, name, len, ino);
	} else if (what < 70) {
		struct model_inode *inode = model_inode(model, n->ino);

		if (inode->type != DS_ENTRY_DIRECTORY)
			change_contents(model, builder, inode);
	} else if (what < 75) {
		struct model_inode *inode = model_inode(model, n->ino);

		inode->mtime.s++;
		cr_assert_eq(ds_builder_set_mtime(builder, inode->ino, inode->mtime), 0);
	} else {
		struct model_inode *inode = model_inode(model, n->ino);

		/* Rarely a whole directory, or the tree stays small. */
		if (inode->type == DS_ENTRY_DIRECTORY && inode->size_bytes > 0 &&
		    model_below(model, 4))
			return;
		id = n->id;
		remove_name(model, id);
		cr_assert_eq(ds_builder_remove(builder, id), 0);
	}
}

static void seal_directory(struct model *model, struct ds_builder *builder, uint64_t dir)
{
	const struct model_name **list;
	struct ds_tree_hasher *hasher;
	struct model_inode *inode;
	size_t n;

	list = model_list(model, dir, &n);
	cr_assert_eq(ds_tree_hasher_new(&hasher), 0);
	for (size_t i = 0; i < n; i++) {
		static const enum ds_content_type types[] = {[DS_ENTRY_FILE] = DS_CONTENT_FILE,
							     [DS_ENTRY_DIRECTORY] =
								     DS_CONTENT_DIRECTORY,
							     [DS_ENTRY_SYMLINK] =
								     DS_CONTENT_SYMLINK};

		inode = model_inode(model, list[i]->ino);
		if (inode->type == DS_ENTRY_DIRECTORY)
			seal_directory(model, builder, inode->ino);
		ds_tree_hasher_entry(hasher, types[inode->type], inode->is_executable,
				     list[i]->name, list[i]->name_len, &inode->digest);
	}
	inode = model_inode(model, dir);
	ds_tree_hasher_finish(hasher, &inode->digest);
	ds_tree_hasher_free(hasher);
	free(list);
	cr_assert_eq(ds_builder_set_directory(builder, dir, &inode->digest, inode->mtime), 0);
}

void model_seal(struct model *model, struct ds_builder *builder)
{
	seal_directory(model, builder, DS_ROOT_ID);
	for (size_t i = 0; i < model->packs_n; i++) {
		const struct ds_pack_row *pack = &model->packs[i];
		uint32_t number;

		if (ds_builder_pack_number(builder, &pack->id, &number) == 0) {
			cr_assert_eq(number, pack->number);
			continue;
		}
		cr_assert_eq(ds_builder_set_pack(builder, pack->number, &pack->id, pack->size_bytes,
						 pack->chunks_n, pack->raw_bytes),
			     0);
	}
	for (size_t i = model->packs_n; i-- > 0;) {
		if (model->packs[i].live_n == 0) {
			model->packs_n--;
			memmove(&model->packs[i], &model->packs[i + 1],
				(model->packs_n - i) * sizeof(*model->packs));
		}
	}
}

static unsigned class_of(uint64_t size)
{
	unsigned bits = 0;

	for (; size; size >>= 1)
		bits++;
	return bits;
}

uint64_t model_total(const struct model *model, const char *key)
{
	uint64_t total = 0;

	for (size_t i = 0; i < model->inodes_n; i++) {
		const struct model_inode *inode = &model->inodes[i];
		char class[32];

		snprintf(class, sizeof(class), "size_%u", class_of(inode->size_bytes));
		if (inode->type == DS_ENTRY_DIRECTORY)
			total += strcmp(key, "directories") == 0 && inode->ino != DS_ROOT_ID;
		else if (inode->type == DS_ENTRY_SYMLINK)
			total += strcmp(key, "symlinks") == 0;
		else if (strcmp(key, "files") == 0 || strcmp(key, class) == 0)
			total += inode->nlink;
		else if (strcmp(key, "bytes") == 0)
			total += inode->size_bytes;
	}
	return total;
}

void model_build(struct model *model, const char *path, uint32_t page_size, uint64_t seed,
		 unsigned changes)
{
	struct ds_builder *builder;

	model_init(model, seed);
	cr_assert_eq(ds_builder_create(path, page_size, &builder), 0);
	for (unsigned i = 0; i < changes; i++)
		model_change(model, builder);
	model_seal(model, builder);
	cr_assert_eq(ds_builder_finish(builder), 0);
	ds_builder_free(builder);
}
