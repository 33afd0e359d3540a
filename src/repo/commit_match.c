#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "codec/content.h"
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

/* Each chunk before it has a byte at least. Such rows were made of files that are an extent of an earlier version. */
bool commit_is_misplaced(const struct ds_entry *entry)
{
	return entry->type == DS_ENTRY_FILE && entry->chunk.pack &&
	       entry->chunk.raw_off < entry->chunk.ordinal;
}

static int place_of_extent(struct commit_apply *apply, const struct ds_extent *extent,
			   struct commit_place *ret_place)
{
	int r = place_of(apply, &extent->chunk, ret_place);

	ret_place->raw_off = COMMIT_RAW_OFF_NONE;
	return r;
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
		node->extents_n = 0;
		node->extents = ds_arena_calloc(apply->tree->arena, n, sizeof(*node->extents));
		r = node->extents ? 0 : -ENOMEM;
	}
	for (size_t i = 0; r == 0 && i < n; i++) {
		struct commit_extent *extent = &node->extents[i];

		extent->off = extents[i].off;
		extent->len_bytes = extents[i].len_bytes;
		extent->is_zeros = extents[i].is_zeros;
		extent->digest = extents[i].digest;
		if (!extent->is_zeros)
			r = place_of_extent(apply, &extents[i], &extent->place);
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

/* One directory of the tree, and what its names are compared with. */
struct matching {
	struct commit_apply *apply;
	struct commit_node *dir;
	bool may_reuse;
	uint32_t next; /* the first child that is not matched yet */
	bool has_others;
};

/* entry NULL: there was none, or it was no file. */
static int reuse(struct matching *matching, struct commit_node *node, const struct ds_entry *entry)
{
	struct commit_apply *apply = matching->apply;
	bool is_known = node->is_known && !apply->options->rehash;
	struct ds_digest digest = node->digest;
	int r;

	/* A small file with extents is imported, or not of a sound manifest: there is no place to take. */
	if (entry && (entry->size_bytes != node->size_bytes || commit_is_misplaced(entry) ||
		      (entry->extents_n && entry->size_bytes <= DS_CHUNK_MAX)))
		entry = NULL;
	if (!is_known && entry && apply->options->trust_mtime && !apply->options->rehash &&
	    ds_time_compare(entry->mtime, node->mtime) == 0) {
		/* Nobody has read it: later commits, without trust, must. */
		node->is_uncached = true;
		return take_row(apply, node, entry);
	}
	if (!is_known)
		return 0;
	if (entry && ds_digest_equal(&entry->digest, &digest))
		return take_row(apply, node, entry);
	if (node->size_bytes > DS_CHUNK_MAX)
		return 0;
	/* Known by the stat cache, and perhaps in the store although not at this path. */
	r = 1;
	if (node->size_bytes && !commit_find_own(apply->find, &digest, true, &node->place)) {
		r = commit_find_stored(apply->find, &digest, (uint32_t)node->size_bytes,
				       &node->place);
		if (r == 1) {
			apply->reused_bytes += node->size_bytes;
			r = commit_find_note(apply->find, &digest, &node->place, true);
			r = r < 0 ? r : 1;
		}
	}
	if (r <= 0)
		return r;
	node->digest = digest;
	node->is_done = true;
	return 0;
}

bool commit_is_linked_alike(const struct commit_node *node)
{
	const struct commit_links *links = node->links;

	if (node->old_type != DS_ENTRY_FILE || !node->old_ino)
		return false;
	if (node->old_nlink != (links ? links->nodes_n : 1))
		return false;
	for (uint32_t i = 0; links && i < links->nodes_n; i++)
		if (links->nodes[i]->old_type != DS_ENTRY_FILE ||
		    links->nodes[i]->old_ino != node->old_ino)
			return false;
	return true;
}

/* entry NULL: the manifest has no such name. */
static int match_node(struct matching *matching, struct commit_node *node,
		      const struct ds_entry *entry)
{
	uint64_t names_n = 0;
	int r;

	node->is_meta_same = true;
	node->is_as_before = false;
	node->old_id = entry ? entry->id : 0;
	node->old_ino = entry ? entry->ino : 0;
	node->old_nlink = entry ? entry->nlink : 0;
	node->old_size_bytes = entry ? entry->size_bytes : 0;
	node->old_digest = entry ? entry->digest : (struct ds_digest){0};
	node->old_is_executable = entry && entry->is_executable;
	node->old_has_extents = entry && entry->extents_n;
	node->old_type = (uint8_t)(entry ? entry->type : DS_ENTRY_SYMLINK);
	for (uint32_t i = 0; i < node->children_n; i++)
		names_n += !node->children[i].reject;
	if (!entry || entry->type != (enum ds_entry_type)node->type ||
	    ds_time_compare(entry->mtime, node->mtime) != 0 || commit_is_misplaced(entry) ||
	    (node->type == DS_ENTRY_DIRECTORY && entry->size_bytes != names_n) ||
	    (node->type == DS_ENTRY_FILE && !node->links && !commit_is_linked_alike(node)))
		commit_node_differs(node);
	if (node->type != DS_ENTRY_FILE || !matching->may_reuse || node->is_done ||
	    commit_node_content(node) != node || commit_node_is_unsure(node))
		return 0;
	r = reuse(matching, node, entry && entry->type == DS_ENTRY_FILE ? entry : NULL);
	/* Imported: there is no chunk to refer to, and the file is read. */
	return r == -DS_E_IMPORTED ? 0 : r;
}

static struct commit_node *next_child(struct matching *matching)
{
	const struct commit_node *dir = matching->dir;

	while (matching->next < dir->children_n && dir->children[matching->next].reject)
		matching->next++;
	return matching->next < dir->children_n ? &dir->children[matching->next] : NULL;
}

/* A row of the directory: the names before it are new. */
static int match_row(void *ctx, const struct ds_entry *entry)
{
	struct matching *matching = ctx;
	struct commit_node *node;
	int r = 0, order = 1;

	if (commit_apply_is_interrupted(matching->apply))
		return -DS_E_INTERRUPTED;
	while (r == 0 && order > 0 && (node = next_child(matching))) {
		order = ds_name_compare(entry->name, entry->name_len, node->name, node->name_len);
		if (order < 0)
			break;
		matching->next++;
		r = match_node(matching, node, order == 0 ? entry : NULL);
	}
	matching->has_others |= order != 0;
	return r;
}

/* The version that the stat cache tells of is the parent: a file's row is what the cache says. */
static bool is_row_known(const struct commit_node *node)
{
	return node->is_row_known && !node->links;
}

/* Whether asking for the names that are not known is quicker than listing all: a look-up costs as much as some rows of a listing. */
static bool is_mostly_known(const struct commit_node *dir)
{
	uint32_t others_n = 0;

	for (uint32_t i = 0; i < dir->children_n; i++)
		others_n += !is_row_known(&dir->children[i]);
	return others_n < dir->children_n / 4;
}

/* Name by name: what no name asks for may be damaged. With `is_known` the rows that are known are not had. Gives how many names are there. */
static int look_up_children(struct matching *matching, bool is_known, uint64_t *ret_there_n)
{
	const struct commit_node *dir = matching->dir;
	struct commit_node *node;
	struct ds_entry entry;

	*ret_there_n = 0;
	for (matching->next = 0; (node = next_child(matching)); matching->next++) {
		int r;

		if (commit_apply_is_interrupted(matching->apply))
			return -DS_E_INTERRUPTED;
		if (is_known && is_row_known(node)) {
			node->is_meta_same = node->is_as_before = node->is_done = true;
			matching->apply->tree->has_as_before = true;
			++*ret_there_n;
			continue;
		}
		r = ds_builder_lookup(matching->apply->builder, dir->old_id, node->name,
				      node->name_len, &entry);
		*ret_there_n += r == 0;
		if (r == 0 || r == -ENOENT)
			r = match_node(matching, node, r == 0 ? &entry : NULL);
		if (r < 0)
			return r;
	}
	return 0;
}

static int match_children(struct commit_apply *apply, struct commit_node *dir, bool may_reuse)
{
	struct matching matching = {.apply = apply, .dir = dir, .may_reuse = may_reuse};
	struct commit_node *node;
	uint64_t there_n;
	int r = 0;

	dir->has_no_others = false;
	if (dir->old_id && dir->old_type == DS_ENTRY_DIRECTORY) {
		if (may_reuse && apply->has_known_rows && is_mostly_known(dir)) {
			r = look_up_children(&matching, true, &there_n);
			/* The directory's row counts its names. */
			dir->has_no_others = r == 0 && there_n == dir->old_size_bytes;
			return r;
		}
		r = ds_builder_list(apply->builder, dir->old_id, match_row, &matching);
		if (r == -DS_E_MALFORMED)
			return look_up_children(&matching, false, &there_n);
	}
	dir->has_no_others = r == 0 && !matching.has_others;
	for (; r == 0 && (node = next_child(&matching)); matching.next++)
		r = match_node(&matching, node, NULL);
	return r;
}

/* Links can be told when all names are matched; and if one name differs, all do. Of one name here, and others elsewhere, match_node told. */
static void match_links(const struct commit_tree *tree)
{
	for (const struct commit_links *links = tree->links; links; links = links->next) {
		bool is_same = true;

		for (uint32_t i = 0; links->nodes_n > 1 && i < links->nodes_n; i++) {
			const struct commit_node *node = links->nodes[i];

			is_same &= node->reject ||
				   (node->is_meta_same && commit_is_linked_alike(node));
		}
		if (!is_same)
			commit_node_differs(links->nodes[0]);
	}
}

int commit_match(struct commit_apply *apply, bool may_reuse)
{
	struct commit_node *root = &apply->tree->root;
	struct matching top = {.apply = apply};
	struct ds_entry entry;
	int r = ds_builder_get(apply->builder, DS_ROOT_ID, &entry);

	if (r < 0 && r != -ENOENT)
		return r;
	r = match_node(&top, root, r == 0 ? &entry : NULL);
	for (struct commit_node *node = root; r == 0 && node;
	     node = commit_node_next(root, node, true)) {
		if (commit_apply_is_interrupted(apply))
			return -DS_E_INTERRUPTED;
		if (node->type == DS_ENTRY_DIRECTORY && !node->reject)
			r = match_children(apply, node, may_reuse);
	}
	if (r == 0)
		match_links(apply->tree);
	return r;
}

void commit_match_forget(struct commit_tree *tree)
{
	struct commit_node *root = &tree->root;

	for (struct commit_node *node = root; node; node = commit_node_next(root, node, true)) {
		if (node->is_as_before)
			node->is_as_before = node->is_done = false;
	}
	tree->has_as_before = false;
}

void commit_match_contents(struct commit_apply *apply)
{
	struct commit_node *root = &apply->tree->root;

	for (struct commit_node *node = root; node; node = commit_node_next(root, node, true)) {
		const struct commit_node *content = commit_node_content(node);

		if (node->type == DS_ENTRY_DIRECTORY || node->reject || node->is_as_before ||
		    !node->is_meta_same)
			continue;
		if (node->old_size_bytes != content->size_bytes ||
		    !ds_digest_equal(&node->old_digest, &content->digest) ||
		    (node->type == DS_ENTRY_FILE &&
		     node->old_is_executable != content->is_executable))
			commit_node_differs(node);
	}
}

static int compare_extents(const void *a, const void *b)
{
	const struct ds_extent *x = a, *y = b;

	return memcmp(x->digest.bytes, y->digest.bytes, DS_DIGEST_LEN);
}

/* Zeros have no digest and go; an imported file has no chunk that may be referred to. */
static int load_old_extents(struct commit_apply *apply)
{
	size_t n = 0, kept_n = 0;
	struct ds_extent *extents = ds_calloc(apply->old.entry.extents_n, sizeof(*extents));
	int r = extents ? ds_builder_extents(apply->builder, apply->old.ino, extents,
					     apply->old.entry.extents_n, &n)
			: -ENOMEM;

	if (r < 0) {
		ds_free(extents);
		return r == -DS_E_IMPORTED ? 0 : r;
	}
	for (size_t i = 0; i < n; i++)
		if (!extents[i].is_zeros)
			extents[kept_n++] = extents[i];
	qsort(extents, kept_n, sizeof(*extents), compare_extents);
	apply->old.extents = extents;
	apply->old.extents_n = kept_n;
	return 0;
}

static int load_old(struct commit_apply *apply, uint64_t ino)
{
	int r;

	commit_apply_release(apply);
	r = ds_builder_get(apply->builder, ino, &apply->old.entry);
	if (r < 0)
		return r == -ENOENT ? -DS_E_MALFORMED : r;
	apply->old.ino = ino;
	return apply->old.entry.extents_n ? load_old_extents(apply) : 0;
}

void commit_apply_release(struct commit_apply *apply)
{
	ds_free(apply->old.extents);
	apply->old.extents = NULL;
	apply->old.extents_n = 0;
	apply->old.ino = 0;
}

int commit_match_chunk(struct commit_apply *apply, const struct commit_node *node,
		       const struct ds_digest *digest, uint64_t len_bytes,
		       struct commit_place *ret_place)
{
	struct ds_extent key = {.digest = *digest};
	const struct ds_extent *extent;
	const struct ds_entry *entry = &apply->old.entry;
	int r = 0;

	if (!node->old_ino || node->old_type != DS_ENTRY_FILE)
		return 0;
	if (apply->old.ino != node->old_ino)
		r = load_old(apply, node->old_ino);
	if (r < 0)
		return r;
	if (entry->chunk.pack) {
		if (entry->size_bytes != len_bytes || !ds_digest_equal(&entry->digest, digest))
			return 0;
		r = place_of(apply, &entry->chunk, ret_place);
		if (commit_is_misplaced(entry))
			ret_place->raw_off = COMMIT_RAW_OFF_NONE;
		return r < 0 ? r : 1;
	}
	extent = apply->old.extents_n ? bsearch(&key, apply->old.extents, apply->old.extents_n,
						sizeof(key), compare_extents)
				      : NULL;
	if (!extent || extent->len_bytes != len_bytes)
		return 0;
	r = place_of_extent(apply, extent, ret_place);
	return r < 0 ? r : 1;
}
