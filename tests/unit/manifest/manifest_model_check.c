/*
 * What a builder or a reader shows, against the model.
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "codec/content.h"
#include "codec/pack.h"
#include "manifest_support.h"
#include "util/mem.h"

static void check_attrs(struct model *model, const struct model_name *name,
			const struct ds_entry *entry)
{
	const struct model_inode *inode = model_inode(model, name->ino);

	cr_assert_eq(entry->id, name->id);
	cr_assert_eq(entry->ino, name->ino);
	cr_assert_eq(entry->parent, name->parent);
	cr_assert_eq(entry->name_len, name->name_len);
	cr_assert_arr_eq(entry->name, name->name, name->name_len);
	cr_assert_eq(entry->name[entry->name_len], 0);
	cr_assert_eq(entry->type, inode->type);
	cr_assert_eq(entry->is_executable, inode->is_executable);
	cr_assert_eq(ds_time_compare(entry->mtime, inode->mtime), 0);
	cr_assert_eq(entry->nlink, inode->nlink);
	cr_assert_eq(entry->size_bytes, inode->size_bytes);
}

static void check_entry(struct model *model, const struct model_name *name,
			const struct ds_entry *entry)
{
	const struct model_inode *inode = model_inode(model, name->ino);

	check_attrs(model, name, entry);
	cr_assert(inode->type == DS_ENTRY_DIRECTORY ||
		  ds_digest_equal(&entry->digest, &inode->digest));
	cr_assert_eq(entry->extents_n, inode->extents_n);
	cr_assert_eq(entry->chunk.pack, inode->chunk.pack);
	cr_assert_eq(entry->chunk.ordinal, inode->chunk.ordinal);
	cr_assert_eq(entry->chunk.stored_off, inode->chunk.stored_off);
	cr_assert_eq(entry->chunk.stored_len_bytes, inode->chunk.stored_len_bytes);
	cr_assert_eq(entry->chunk.raw_off, inode->chunk.raw_off);
}

static void check_extents(const struct ds_extent *a, const struct ds_extent *b, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		cr_assert_eq(a[i].off, b[i].off);
		cr_assert_eq(a[i].len_bytes, b[i].len_bytes);
		cr_assert_eq(a[i].slot, b[i].slot);
		cr_assert_eq(a[i].is_zeros, b[i].is_zeros);
		cr_assert(ds_digest_equal(&a[i].digest, &b[i].digest));
		cr_assert_eq(a[i].chunk.pack, b[i].chunk.pack);
		cr_assert_eq(a[i].chunk.ordinal, b[i].chunk.ordinal);
		cr_assert_eq(a[i].chunk.stored_off, b[i].chunk.stored_off);
		cr_assert_eq(a[i].chunk.stored_len_bytes, b[i].chunk.stored_len_bytes);
	}
}

static const char *const keys[] = {"files",  "directories", "symlinks", "bytes",   "size_0",
				   "size_1", "size_5",	    "size_20",	"size_23", "size_24"};

struct list_check {
	struct model *model;
	const struct model_name **list;
	size_t i, n;
};

static int check_listed(void *ctx, const struct ds_entry *entry)
{
	struct list_check *check = ctx;

	cr_assert(check->i < check->n);
	check_entry(check->model, check->list[check->i++], entry);
	return 0;
}

static int check_listed_attrs(void *ctx, const struct ds_entry *entry)
{
	struct list_check *check = ctx;

	cr_assert(check->i < check->n);
	check_attrs(check->model, check->list[check->i++], entry);
	return 0;
}

void model_check_builder(struct model *model, struct ds_builder *builder)
{
	struct ds_extent *extents = malloc(10000 * sizeof(*extents));

	for (size_t d = 0; d < model->inodes_n; d++) {
		struct list_check check = {.model = model};
		struct ds_entry entry;

		if (model->inodes[d].type != DS_ENTRY_DIRECTORY)
			continue;
		check.list = model_list(model, model->inodes[d].ino, &check.n);
		cr_assert_eq(ds_builder_list(builder, model->inodes[d].ino, check_listed, &check),
			     0);
		cr_assert_eq(check.i, check.n);
		free(check.list);
		cr_assert_eq(ds_builder_get(builder, model->inodes[d].ino, &entry), 0);
		cr_assert_eq(entry.size_bytes, model->inodes[d].size_bytes);
		cr_assert_eq(entry.nlink, model->inodes[d].nlink);
	}
	for (size_t i = 0; i < model->inodes_n; i++) {
		size_t n;

		if (model->inodes[i].extents_n == 0)
			continue;
		cr_assert_eq(ds_builder_extents(builder, model->inodes[i].ino, extents, 10000, &n),
			     0);
		cr_assert_eq(n, model->inodes[i].extents_n);
		check_extents(extents, model->inodes[i].extents, n);
	}
	free(extents);
	for (size_t i = 0; i < DS_ARRAY_SIZE(keys); i++)
		cr_assert_eq(ds_builder_total(builder, keys[i]), model_total(model, keys[i]), "%s",
			     keys[i]);
	for (size_t i = 0; i < model->packs_n; i++) {
		struct ds_pack_row row;
		int r = ds_builder_pack(builder, model->packs[i].number, &row);

		cr_assert(r == 0 || (r == -ENOENT && model->packs[i].live_n == 0));
		cr_assert(r < 0 || row.live_n == model->packs[i].live_n);
	}
}

static int check_pack(void *ctx, const struct ds_pack_row *row)
{
	struct model *model = ctx;

	for (size_t i = 0; i < model->packs_n; i++) {
		if (model->packs[i].number == row->number) {
			cr_assert(ds_digest_equal(&row->id, &model->packs[i].id));
			cr_assert_eq(row->live_n, model->packs[i].live_n);
			cr_assert_eq(row->size_bytes, model->packs[i].size_bytes);
			cr_assert_eq(row->chunks_n, model->packs[i].chunks_n);
			cr_assert_eq(row->raw_bytes, model->packs[i].raw_bytes);
			return 0;
		}
	}
	cr_assert_fail("a pack too many");
	return -ENOENT;
}

void model_check_manifest(struct model *model, struct ds_manifest *manifest, void *want)
{
	struct ds_extent *extents = malloc(10000 * sizeof(*extents));
	struct ds_entry entry;
	uint64_t value;
	size_t n;

	cr_assert_eq(ds_manifest_check(manifest, want, NULL), 0);
	for (size_t d = 0; d < model->inodes_n; d++) {
		struct list_check check = {.model = model};
		uint64_t dir = model->inodes[d].ino;

		if (model->inodes[d].type != DS_ENTRY_DIRECTORY)
			continue;
		check.list = model_list(model, dir, &check.n);
		cr_assert_eq(ds_manifest_list(manifest, want, dir, 0, check_listed, &check), 0);
		cr_assert_eq(check.i, check.n);
		check.i = 0;
		cr_assert_eq(ds_manifest_list_attrs(manifest, want, dir, 0, check_listed_attrs,
						    &check),
			     0);
		cr_assert_eq(check.i, check.n);
		if (check.n > 0) {
			size_t from = model_below(model, check.n);

			check.i = from + 1;
			cr_assert_eq(ds_manifest_list(manifest, want, dir, check.list[from]->id,
						      check_listed, &check),
				     0);
			cr_assert_eq(check.i, check.n);
			check.i = from + 1;
			cr_assert_eq(ds_manifest_list_attrs(manifest, want, dir,
							    check.list[from]->id,
							    check_listed_attrs, &check),
				     0);
			cr_assert_eq(check.i, check.n);
		}
		free(check.list);
	}
	for (size_t i = 0; i < model->names_n; i++) {
		const struct model_name *name = &model->names[i];

		cr_assert_eq(ds_manifest_lookup(manifest, want, name->parent, name->name,
						name->name_len, &entry),
			     0);
		check_entry(model, name, &entry);
		cr_assert_eq(ds_manifest_get(manifest, want, name->id, &entry),
			     name->id == name->ino ? 0 : -ENOENT);
		if (name->id == name->ino)
			check_entry(model, name, &entry);
	}
	for (size_t i = 0; i < model->inodes_n; i++) {
		const struct model_inode *inode = &model->inodes[i];
		struct ds_buf buf = DS_BUF_INIT(DS_TARGET_MAX);

		if (inode->type == DS_ENTRY_SYMLINK) {
			cr_assert_eq(ds_manifest_readlink(manifest, want, inode->ino, &buf), 0);
			cr_assert_eq(buf.len_bytes, inode->target_len);
			cr_assert_arr_eq(buf.data, inode->target, inode->target_len);
		} else {
			cr_assert_eq(ds_manifest_readlink(manifest, want, inode->ino, &buf),
				     -EINVAL);
		}
		ds_buf_release(&buf);
		if (inode->extents_n > 0) {
			size_t at = model_below(model, inode->extents_n),
			       max = 1 + model_below(model, 5);
			const struct ds_extent *from = &inode->extents[at];
			uint64_t off = from->off + model_below(model, from->len_bytes);

			cr_assert_eq(ds_manifest_extents(manifest, want, inode->ino, 0,
							 inode->size_bytes, extents, 10000, &n),
				     0);
			cr_assert_eq(n, inode->extents_n);
			check_extents(extents, inode->extents, n);
			cr_assert_eq(ds_manifest_extents(manifest, want, inode->ino, off, 1,
							 extents, max, &n),
				     0);
			cr_assert_eq(n, 1);
			check_extents(extents, from, 1);
			cr_assert_eq(ds_manifest_extents(manifest, want, inode->ino, off,
							 UINT64_MAX, extents, max, &n),
				     0);
			cr_assert_eq(n, DS_MIN(max, inode->extents_n - at));
			check_extents(extents, from, n);
		}
	}
	free(extents);
	for (size_t i = 0; i < DS_ARRAY_SIZE(keys); i++) {
		cr_assert_eq(ds_manifest_total(manifest, want, keys[i], &value), 0);
		cr_assert_eq(value, model_total(model, keys[i]), "%s", keys[i]);
	}
	n = 0;
	for (size_t i = 0; i < model->packs_n; i++) {
		struct ds_pack_row row;

		n += model->packs[i].live_n > 0;
		cr_assert_eq(ds_manifest_pack(manifest, want, model->packs[i].number, &row),
			     model->packs[i].live_n ? 0 : -ENOENT);
	}
	cr_assert_eq(ds_manifest_packs(manifest, want, 0, check_pack, model), 0);
}
