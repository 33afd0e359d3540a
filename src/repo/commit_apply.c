/*
 * Changing a manifest into the tree, one directory after the other: what was matched (commit_match.c) tells what each name needs, and only
 * what differs is touched; where there are names that match none, the directory is listed, and they go. All names of a directory are added
 * before anything below them, so that its rows stand together.
 *
 * INV-1  A row of a file that has, or had, several names is kept only if exactly the same names are links of each other before and now;
 *        otherwise each of them is removed and added anew. So setting a row never changes another file.
 */
#include "repo/commit_apply.h"

#include <errno.h>
#include <string.h>

#include "codec/content.h"
#include "util/error.h"
#include "util/mem.h"

enum change { ADD, CHANGE, STAY };

bool commit_apply_is_interrupted(const struct commit_apply *apply)
{
	return apply->options->interrupted && *apply->options->interrupted;
}

static int pack_number(struct commit_apply *apply, uint32_t pack, uint32_t *ret_number)
{
	struct commit_pack *row = commit_packs_get(apply->packs, pack);
	int r = 0;

	if (!row->builder_number) {
		r = ds_builder_pack_number(apply->builder, &row->id, &row->builder_number);
		if (r == -ENOENT) {
			r = ds_builder_add_pack(apply->builder, &row->builder_number);
			if (r == 0)
				r = ds_builder_set_pack(apply->builder, row->builder_number,
							&row->id, row->size_bytes, row->chunks_n,
							row->raw_bytes);
		}
	}
	if (r == 0)
		*ret_number = row->builder_number;
	return r;
}

static int fill_chunk(struct commit_apply *apply, const struct ds_digest *digest,
		      const struct commit_place *place, struct ds_entry_chunk *ret_chunk)
{
	commit_find_refer(apply->find, digest, place);
	*ret_chunk = (struct ds_entry_chunk){
		.ordinal = place->ordinal,
		.stored_off = place->stored_off,
		.stored_len_bytes = place->stored_len_bytes,
		.raw_off = place->raw_off,
	};
	return pack_number(apply, place->pack, &ret_chunk->pack);
}

static int fill_extents(struct commit_apply *apply, const struct commit_node *content,
			struct ds_extent **ret_extents)
{
	struct ds_extent *extents;
	int r = 0;

	*ret_extents = NULL;
	if (!content->extents_n)
		return 0;
	extents = ds_calloc(content->extents_n, sizeof(*extents));
	if (!extents)
		return -ENOMEM;
	for (uint32_t i = 0; r == 0 && i < content->extents_n; i++) {
		extents[i].off = content->extents[i].off;
		extents[i].len_bytes = content->extents[i].len_bytes;
		extents[i].slot = i;
		extents[i].is_zeros = content->extents[i].is_zeros;
		extents[i].digest = content->extents[i].digest;
		if (!extents[i].is_zeros) {
			r = fill_chunk(apply, &extents[i].digest, &content->extents[i].place,
				       &extents[i].chunk);
			extents[i].chunk.raw_off = 0;
		}
	}
	if (r < 0) {
		ds_free(extents);
		return r;
	}
	*ret_extents = extents;
	return 0;
}

static int fill_entry(struct commit_apply *apply, const struct commit_node *node,
		      const struct commit_node *content, uint64_t parent,
		      struct ds_entry *ret_entry)
{
	*ret_entry = (struct ds_entry){
		.parent = parent,
		.type = (enum ds_entry_type)node->type,
		.is_executable = node->type == DS_ENTRY_FILE && content->is_executable,
		.mtime = content->mtime,
		.nlink = 1,
		.size_bytes = content->size_bytes,
		.digest = content->digest,
		.name_len = node->name_len,
	};
	memcpy(ret_entry->name, node->name, node->name_len);
	if (node->type == DS_ENTRY_FILE && content->size_bytes && !content->extents_n)
		return fill_chunk(apply, &content->digest, &content->place, &ret_entry->chunk);
	ret_entry->extents_n = content->extents_n;
	return 0;
}

/* Adds a name that is not there. */
static int add_node(struct commit_apply *apply, struct commit_node *node, uint64_t parent)
{
	const struct commit_node *content = commit_node_content(node);
	struct ds_extent *extents = NULL;
	struct ds_entry entry;
	uint64_t id;
	int r;

	if (node->links && node->links->ino) {
		r = ds_builder_add_link(apply->builder, parent, node->name, node->name_len,
					node->links->ino, &id);
		return r;
	}
	r = fill_entry(apply, node, content, parent, &entry);
	if (r == 0)
		r = fill_extents(apply, content, &extents);
	if (r == 0)
		r = ds_builder_add(apply->builder, &entry, extents, content->extents_n,
				   node->target, node->target ? strlen(node->target) : 0, &id);
	ds_free(extents);
	if (r < 0)
		return r;
	if (node->type == DS_ENTRY_DIRECTORY)
		node->old_id = id;
	if (node->links)
		node->links->ino = id;
	return 0;
}

static bool is_same(const struct ds_entry *old, const struct commit_node *node,
		    const struct commit_node *content)
{
	/* A small file with extents is imported, or not of a sound manifest: now it has a chunk. */
	return ds_digest_equal(&old->digest, &content->digest) &&
	       old->size_bytes == content->size_bytes && old->extents_n == content->extents_n &&
	       !commit_is_misplaced(old) &&
	       (node->type != DS_ENTRY_FILE || old->is_executable == content->is_executable);
}

/* A name that was there before and is now, but not as a directory both times: keeps the row if it can. */
static int change_node(struct commit_apply *apply, struct commit_node *node,
		       const struct ds_entry *old, uint64_t parent)
{
	const struct commit_node *content = commit_node_content(node);
	bool is_alike = node->type == DS_ENTRY_FILE && commit_is_linked_alike(node);
	bool is_first = content == node, same;
	struct ds_extent *extents = NULL;
	struct ds_entry entry;
	int r;

	same = old->type == (enum ds_entry_type)node->type && is_same(old, node, content);
	/* The row of all names may be the new one already. */
	if (is_alike && node->links) {
		if (node->links->ino)
			same = !node->links->is_changed;
		node->links->is_changed = !same;
	}
	if (node->type != DS_ENTRY_DIRECTORY && old->type == DS_ENTRY_DIRECTORY)
		apply->added_n++;
	else if (node->type != DS_ENTRY_DIRECTORY && !same)
		apply->changed_n++;
	if (old->type != (enum ds_entry_type)node->type ||
	    (node->type == DS_ENTRY_FILE && !is_alike)) {
		/* INV-1 */
		r = ds_builder_remove(apply->builder, old->id);
		return r < 0 ? r : add_node(apply, node, parent);
	}
	if (node->links)
		node->links->ino = old->ino;
	if (!is_first)
		return 0; /* set once, with the first name */
	if (same)
		return ds_time_compare(old->mtime, content->mtime) == 0
			       ? 0
			       : ds_builder_set_mtime(apply->builder, old->ino, content->mtime);
	r = fill_entry(apply, node, content, parent, &entry);
	if (r == 0)
		r = fill_extents(apply, content, &extents);
	if (r == 0)
		r = ds_builder_set(apply->builder, old->ino, &entry, extents, content->extents_n,
				   node->target, node->target ? strlen(node->target) : 0);
	ds_free(extents);
	return r;
}

/* What becomes of a name, by what was matched (commit_match.c): of several names, and of large files, change_node tells. */
static enum change change_of(const struct commit_node *node)
{
	if (node->is_as_before)
		return STAY;
	if (!node->old_id)
		return ADD;
	if (node->type == DS_ENTRY_DIRECTORY && node->old_type == DS_ENTRY_DIRECTORY)
		return STAY;
	return node->is_meta_same && !node->links && !node->old_has_extents && !node->extents_n
		       ? STAY
		       : CHANGE;
}

/* The names of a directory that go. */
struct merge {
	const struct commit_node *dir;
	uint32_t next; /* the first child that was not come to yet */
	uint64_t *gone;
	size_t gone_n, gone_capacity_n;
};

static int note_gone(struct merge *merge, uint64_t id)
{
	if (merge->gone_n == merge->gone_capacity_n) {
		size_t n = DS_MAX(merge->gone_capacity_n * 2, (size_t)16);
		uint64_t *gone = ds_reallocarray(merge->gone, n, sizeof(*gone));

		if (!gone)
			return -ENOMEM;
		merge->gone = gone;
		merge->gone_capacity_n = n;
	}
	merge->gone[merge->gone_n++] = id;
	return 0;
}

static int merge_row(void *ctx, const struct ds_entry *old)
{
	struct merge *merge = ctx;
	const struct commit_node *dir = merge->dir;

	for (; merge->next < dir->children_n; merge->next++) {
		const struct commit_node *node = &dir->children[merge->next];
		int order;

		if (node->reject)
			continue;
		order = ds_name_compare(old->name, old->name_len, node->name, node->name_len);
		if (order < 0)
			break;
		if (order > 0)
			continue;
		merge->next++;
		return 0;
	}
	return note_gone(merge, old->id);
}

static int change_name(struct commit_apply *apply, struct commit_node *node, uint64_t parent)
{
	struct ds_entry old;
	int r = ds_builder_lookup(apply->builder, parent, node->name, node->name_len, &old);

	/* It was there when it was matched. */
	if (r == -ENOENT)
		return -DS_E_MALFORMED;
	return r < 0 ? r : change_node(apply, node, &old, parent);
}

/* Whether the manifest may have names in the directory that the tree has not; what was rejected when it was read was matched before. */
static bool may_have_others(const struct commit_node *dir)
{
	bool has_others = !dir->has_no_others;

	for (uint32_t i = 0; !has_others && i < dir->children_n; i++)
		has_others = dir->children[i].reject && dir->children[i].old_id;
	return has_others;
}

static int apply_directory(struct commit_apply *apply, struct commit_node *dir)
{
	struct merge merge = {.dir = dir};
	int r = 0;

	if (may_have_others(dir))
		r = ds_builder_list(apply->builder, dir->old_id, merge_row, &merge);
	for (size_t i = 0; r == 0 && i < merge.gone_n; i++)
		r = ds_builder_remove(apply->builder, merge.gone[i]);
	ds_free(merge.gone);
	for (uint32_t i = 0; r == 0 && i < dir->children_n; i++) {
		struct commit_node *node = &dir->children[i];
		enum change change = change_of(node);

		if (node->reject || change == STAY)
			continue;
		if (change == ADD) {
			apply->added_n += node->type != DS_ENTRY_DIRECTORY;
			r = add_node(apply, node, dir->old_id);
		} else {
			r = change_name(apply, node, dir->old_id);
		}
	}
	return r;
}

static int add_rejects(struct commit_apply *apply)
{
	struct commit_node *root = &apply->tree->root;
	int r = ds_builder_clear_rejects(apply->builder);

	for (struct commit_node *node = root; r == 0 && node;
	     node = commit_node_next(root, node, true)) {
		_ds_cleanup_free_ char *path = NULL;

		if (!node->reject)
			continue;
		path = commit_node_path(node);
		r = path ? ds_builder_add_reject(apply->builder, path, strlen(path), node->target)
			 : -ENOMEM;
	}
	return r;
}

/* Whether nothing in the directory has changed, contents, times and links; by its rows as well as by its digest. */
static int is_unchanged(struct commit_apply *apply, const struct commit_node *dir)
{
	struct ds_entry old;
	int r;

	if (!dir->is_meta_same)
		return 0;
	r = ds_builder_get(apply->builder, dir->old_id, &old);
	return r < 0 ? r : ds_digest_equal(&old.digest, &dir->digest);
}

static int apply_tree(struct commit_apply *apply)
{
	struct commit_node *root = &apply->tree->root, *node = root;

	while (node) {
		bool descend = node->type == DS_ENTRY_DIRECTORY && !node->reject;
		int r = 0;

		if (commit_apply_is_interrupted(apply))
			return -DS_E_INTERRUPTED;
		if (descend) {
			r = is_unchanged(apply, node);
			descend = r == 0;
		}
		if (descend)
			r = apply_directory(apply, node);
		if (descend && r == 0)
			r = ds_builder_set_directory(apply->builder, node->old_id, &node->digest,
						     node->mtime);
		if (r < 0)
			return r;
		node = commit_node_next(root, node, descend);
	}
	return 0;
}

int commit_apply(struct commit_apply *apply)
{
	uint64_t before_n = ds_builder_total(apply->builder, "files") +
			    ds_builder_total(apply->builder, "symlinks");
	uint64_t after_n;
	int r;

	apply->added_n = apply->changed_n = apply->removed_n = 0;
	apply->tree->root.old_id = DS_ROOT_ID;
	commit_find_refer_none(apply->find);
	for (uint32_t i = 0; i < commit_packs_count(apply->packs); i++)
		commit_packs_get(apply->packs, i)->builder_number = 0;
	for (struct commit_links *links = apply->tree->links; links; links = links->next)
		links->ino = 0;
	r = apply_tree(apply);
	if (r == 0)
		r = add_rejects(apply);
	after_n = ds_builder_total(apply->builder, "files") +
		  ds_builder_total(apply->builder, "symlinks");
	apply->removed_n = before_n + apply->added_n - after_n;
	return r;
}
