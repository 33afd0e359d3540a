#include "repo/commit_tree.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "codec/content.h"
#include "util/mem.h"

struct commit_node *commit_node_next(const struct commit_node *root, struct commit_node *node,
				     bool descend)
{
	if (descend && node->children_n)
		return &node->children[0];
	while (node != root) {
		struct commit_node *parent = node->parent;

		if (node + 1 < parent->children + parent->children_n)
			return node + 1;
		node = parent;
	}
	return NULL;
}

struct commit_node *commit_node_content(struct commit_node *node)
{
	return node->links ? node->links->nodes[0] : node;
}

char *commit_node_path(const struct commit_node *node)
{
	size_t len = 0;
	char *path, *at;

	for (const struct commit_node *up = node; up->parent; up = up->parent)
		len += up->name_len + 1u;
	path = ds_malloc(len + 1);
	if (!path)
		return NULL;
	at = path + len;
	*at = '\0';
	for (const struct commit_node *up = node; up->parent; up = up->parent) {
		if (up != node)
			*--at = '/';
		at -= up->name_len;
		memcpy(at, up->name, up->name_len);
	}
	/* Without a slash before the first name one byte is left over. */
	if (at > path)
		memmove(path, at, strlen(at) + 1);
	return path;
}

/* Reading should leave no trace, where the kernel lets us (owner or root). */
static int open_quietly(int dir_fd, const char *name, int flags)
{
	int fd = openat(dir_fd, name, flags | O_NOATIME);

	if (fd < 0 && errno == EPERM)
		fd = openat(dir_fd, name, flags);
	return fd < 0 ? -errno : fd;
}

int commit_node_open(const struct commit_tree *tree, const struct commit_node *node)
{
	const struct commit_node **up;
	size_t depth = 0;
	int fd, next;

	for (const struct commit_node *at = node; at->parent; at = at->parent)
		depth++;
	up = ds_calloc(depth + 1, sizeof(struct commit_node *));
	if (!up)
		return -ENOMEM;
	for (const struct commit_node *at = node; at->parent; at = at->parent)
		up[--depth] = at;
	fd = fcntl(tree->root_fd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		fd = -errno;
	for (size_t i = 0; fd >= 0 && up[i]; i++) {
		bool is_directory = up[i] != node || node->type == DS_ENTRY_DIRECTORY;

		next = open_quietly(fd, up[i]->name,
				    O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK |
					    (is_directory ? O_DIRECTORY : 0));
		close(fd);
		fd = next;
	}
	ds_free(up);
	return fd;
}

int commit_node_reject(struct commit_tree *tree, struct commit_node *node, enum commit_reject why,
		       const char *reason)
{
	char *copy = ds_arena_memdup(tree->arena, reason, strlen(reason) + 1);

	if (!copy)
		return -ENOMEM;
	node->target = copy;
	node->reject = (uint8_t)why;
	return 0;
}

static void differs(struct commit_node *node)
{
	for (; node && node->is_meta_same; node = node->parent)
		node->is_meta_same = false;
}

void commit_node_differs(struct commit_node *node)
{
	for (uint32_t i = 0; node->links && i < node->links->nodes_n; i++)
		differs(node->links->nodes[i]);
	differs(node);
}

int commit_tree_count(struct commit_tree *tree, const char *source, struct ds_diag *reterr_diag)
{
	tree->files_n = tree->directories_n = tree->symlinks_n = tree->bytes = 0;
	for (struct commit_node *node = &tree->root; node;
	     node = commit_node_next(&tree->root, node, true)) {
		if (node->reject || node == &tree->root)
			continue;
		if (node->type == DS_ENTRY_DIRECTORY)
			tree->directories_n++;
		else if (node->type == DS_ENTRY_SYMLINK)
			tree->symlinks_n++;
		else
			tree->files_n++;
		if (node->type == DS_ENTRY_FILE && commit_node_content(node) == node &&
		    (__builtin_add_overflow(tree->bytes, node->size_bytes, &tree->bytes) ||
		     tree->bytes > INT64_MAX))
			return ds_diag_set(reterr_diag, -DS_E_SOURCE_REFUSED, source,
					   "its files are over 8 EiB in all");
	}
	return 0;
}

static enum ds_entry_type type_of(const struct commit_node *node)
{
	return (enum ds_entry_type)node->type;
}

static int hash_directory(struct commit_node *dir, struct ds_tree_hasher *hasher)
{
	static const enum ds_content_type types[] = {
		[DS_ENTRY_FILE] = DS_CONTENT_FILE,
		[DS_ENTRY_DIRECTORY] = DS_CONTENT_DIRECTORY,
		[DS_ENTRY_SYMLINK] = DS_CONTENT_SYMLINK,
	};

	for (uint32_t i = 0; i < dir->children_n; i++) {
		struct commit_node *node = &dir->children[i];
		const struct commit_node *content = commit_node_content(node);

		if (node->reject)
			continue;
		ds_tree_hasher_entry(hasher, types[type_of(node)],
				     type_of(node) == DS_ENTRY_FILE && content->is_executable,
				     node->name, node->name_len, &content->digest);
	}
	ds_tree_hasher_finish(hasher, &dir->digest);
	return 0;
}

int commit_tree_hash(struct commit_tree *tree)
{
	struct commit_node *node = &tree->root, *last = NULL;
	struct ds_tree_hasher *hasher;
	int r = ds_tree_hasher_new(&hasher);

	/* Bottom up without recursion: a directory is hashed when the walk comes back to it from its last child. */
	while (r == 0 && node) {
		bool is_back = last && last->parent == node;
		struct commit_node *next = NULL;

		if (!is_back && node->children_n) {
			next = &node->children[0];
		} else {
			if (node->type == DS_ENTRY_DIRECTORY && !node->reject)
				r = hash_directory(node, hasher);
			if (node == &tree->root)
				break;
			next = node + 1 < node->parent->children + node->parent->children_n
				       ? node + 1
				       : node->parent;
		}
		/* A sibling is entered, not come back to. */
		last = next == node->parent ? node : NULL;
		node = next;
	}
	ds_tree_hasher_free(hasher);
	return r;
}

void commit_tree_release(struct commit_tree *tree)
{
	while (tree->links) {
		struct commit_links *links = tree->links;

		tree->links = links->next;
		ds_free(links->nodes);
		ds_free(links);
	}
	if (tree->root_fd >= 0)
		close(tree->root_fd);
	tree->root_fd = -1;
	tree->arena = ds_arena_free(tree->arena);
}
