#include <errno.h>
#include <string.h>

#include "repo/commit_apply.h"
#include "util/error.h"
#include "util/mem.h"

/* Index in the commit's table of packs of a row's pack. */
static int pack_of(struct commit_apply *apply, uint32_t number, uint32_t *ret_pack)
{
	struct ds_pack_row row;
	int r = ds_builder_pack(apply->builder, number, &row);

	if (r < 0)
		return r == -ENOENT ? -DS_E_MALFORMED : r;
	return commit_packs_known(apply->packs, &row.id, row.size_bytes, row.chunks_n,
				  row.raw_bytes, ret_pack);
}

static int place_of(struct commit_apply *apply, const struct ds_entry_chunk *chunk,
		    struct commit_place *ret_place)
{
	*ret_place = (struct commit_place){
		.ordinal = chunk->ordinal,
		.stored_off = chunk->stored_off,
		.raw_off = chunk->raw_off,
		.stored_len_bytes = chunk->stored_len_bytes,
	};
	return pack_of(apply, chunk->pack, &ret_place->pack);
}

static int take_extents(struct commit_apply *apply, struct commit_node *node,
			const struct ds_entry *entry)
{
	struct ds_extent *extents = ds_calloc(entry->extents_n, sizeof(*extents));
	size_t n = 0;
	int r = extents ? ds_builder_extents(apply->builder, entry->ino, extents, entry->extents_n,
					     &n)
			: -ENOMEM;

	if (r == 0 && n != entry->extents_n)
		r = -DS_E_MALFORMED;
	if (r == 0) {
		ds_free(node->extents);
		node->extents_n = 0;
		node->extents = ds_calloc(n, sizeof(*node->extents));
		r = node->extents ? 0 : -ENOMEM;
	}
	for (size_t i = 0; r == 0 && i < n; i++) {
		struct commit_extent *extent = &node->extents[i];

		extent->off = extents[i].off;
		extent->len_bytes = extents[i].len_bytes;
		extent->is_zeros = extents[i].is_zeros;
		extent->digest = extents[i].digest;
		if (!extent->is_zeros)
			r = place_of(apply, &extents[i].chunk, &extent->place);
	}
	node->extents_n = r == 0 ? (uint32_t)n : 0;
	ds_free(extents);
	return r;
}

/* The file is what the row says: digest and place come from there. */
static int take_row(struct commit_apply *apply, struct commit_node *node,
		    const struct ds_entry *entry)
{
	int r = 0;

	node->digest = entry->digest;
	if (entry->chunk.pack)
		r = place_of(apply, &entry->chunk, &node->place);
	else if (entry->extents_n)
		r = take_extents(apply, node, entry);
	node->is_done = r == 0;
	return r;
}

/* entry NULL: there was none, or it was no file. */
static int reuse(struct commit_apply *apply, struct commit_node *node, const struct ds_entry *entry)
{
	_ds_cleanup_free_ char *path = NULL;
	struct ds_digest digest;
	bool is_own;
	int r;

	if (entry && entry->size_bytes != node->size_bytes)
		entry = NULL;
	if (entry && apply->options->trust_mtime && ds_time_compare(entry->mtime, node->mtime) == 0)
		return take_row(apply, node, entry);
	if (apply->options->rehash || !apply->stat)
		return 0;
	path = commit_node_path(node);
	if (!path)
		return -ENOMEM;
	if (!commit_stat_has(apply->stat, path, node, &digest))
		return 0;
	if (entry && ds_digest_equal(&entry->digest, &digest))
		return take_row(apply, node, entry);
	if (node->size_bytes > DS_CHUNK_MAX)
		return 0;
	/* Known by the stat cache, and perhaps in the store although not at this path. */
	r = node->size_bytes == 0
		    ? 1
		    : commit_find_has(apply->find, &digest, (uint32_t)node->size_bytes,
				      &node->place, &is_own);
	if (r <= 0)
		return r;
	node->digest = digest;
	node->is_done = true;
	if (node->size_bytes && !is_own) {
		apply->reused_bytes += node->size_bytes;
		return commit_find_note(apply->find, &digest, &node->place);
	}
	return 0;
}

static bool is_linked_alike(const struct commit_node *node)
{
	const struct commit_links *links = node->links;

	if (!links)
		return node->old_nlink == 1;
	if (node->old_nlink != links->nodes_n)
		return false;
	for (uint32_t i = 0; i < links->nodes_n; i++)
		if (links->nodes[i]->old_ino != node->old_ino || !node->old_ino)
			return false;
	return true;
}

static int match_node(struct commit_apply *apply, struct commit_node *node, bool may_reuse)
{
	const struct commit_node *parent = node->parent;
	struct ds_entry entry;
	bool is_file;
	int r = -ENOENT;

	node->old_id = node->old_ino = 0;
	node->old_nlink = 0;
	if (!parent)
		r = ds_builder_get(apply->builder, DS_ROOT_ID, &entry);
	else if (parent->old_id && parent->old_type == DS_ENTRY_DIRECTORY)
		r = ds_builder_lookup(apply->builder, parent->old_id, node->name, node->name_len,
				      &entry);
	if (r < 0 && r != -ENOENT)
		return r;
	is_file = r == 0 && entry.type == DS_ENTRY_FILE;
	if (r == 0) {
		node->old_id = entry.id;
		node->old_ino = entry.ino;
		node->old_nlink = entry.nlink;
		node->old_type = (uint8_t)entry.type;
		if (ds_time_compare(entry.mtime, node->mtime) != 0)
			apply->meta_differs = true;
	}
	if (node->type != DS_ENTRY_FILE || !may_reuse || node->is_done ||
	    commit_node_content(node) != node)
		return 0;
	return reuse(apply, node, is_file ? &entry : NULL);
}

int commit_match(struct commit_apply *apply, bool may_reuse)
{
	struct commit_node *root = &apply->tree->root;
	int r = 0;

	apply->meta_differs = false;
	for (struct commit_node *node = root; r == 0 && node;
	     node = commit_node_next(root, node, true)) {
		if (apply->options->interrupted && *apply->options->interrupted)
			return -DS_E_INTERRUPTED;
		if (!node->reject)
			r = match_node(apply, node, may_reuse);
	}
	for (struct commit_node *node = root; r == 0 && node && !apply->meta_differs;
	     node = commit_node_next(root, node, true))
		if (node->type == DS_ENTRY_FILE && !node->reject &&
		    node->old_type == DS_ENTRY_FILE && !is_linked_alike(node))
			apply->meta_differs = true;
	return r;
}
