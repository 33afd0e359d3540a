/*
 * The source of a commit as a tree in memory: scanned once, filled with digests and places while it is read, and
 * applied to a manifest as often as another writer is first.
 *
 * Threads: scanning uses its own; afterwards the tree belongs to one thread at a time, except that the reader of a file
 * fills that file's node, and that the stat cache is saved from it (commit_stat.h) while a manifest is changed into it.
 */
#ifndef DS_REPO_COMMIT_TREE_H
#define DS_REPO_COMMIT_TREE_H

#include "manifest/manifest.h"
#include "repo/commit.h"
#include "util/arena.h"

enum commit_reject { REJECT_NONE, REJECT_SPECIAL, REJECT_UNREADABLE };

#define COMMIT_PACK_NONE UINT32_MAX

/* What extents of earlier versions do not say (schema/README.md): such a place is none for a file of one chunk. */
#define COMMIT_RAW_OFF_NONE UINT64_MAX

/* A chunk's place: `pack` is an index of the commit's table of packs. */
struct commit_place {
	uint32_t pack;
	uint32_t ordinal;
	uint64_t stored_off, raw_off;
	uint32_t stored_len_bytes;
};

struct commit_extent {
	uint64_t off, len_bytes;
	bool is_zeros;
	struct ds_digest digest;
	struct commit_place place;
};

struct commit_links;

/* Nodes and what they point to lie in the tree's arena, links apart. */
struct commit_node {
	char *name; /* "" for the root */
	uint8_t name_len;
	uint8_t type; /* enum ds_entry_type */
	bool is_executable;
	uint8_t reject; /* enum commit_reject: left out of the tree */
	bool is_known;	/* the stat cache has it: the digest is what it was when it was last read */
	bool is_row_known; /* ... and the version of the stat cache has a row at this path that says exactly this */
	bool is_done;	  /* digest and place are known */
	bool is_uncached; /* ... but not for sure: not for the stat cache */
	bool is_meta_same; /* it, and all below it, is what the manifest's entry says: times and links, and what is read */
	struct ds_time mtime, ctime;
	uint64_t size_bytes;
	uint64_t dev, ino; /* of the source */
	struct ds_digest digest;
	struct commit_place place;
	struct commit_extent *extents;
	uint32_t extents_n;
	char *target;		    /* of a symlink; why, if rejected */
	struct commit_links *links; /* of a file with several names in the tree; NULL else */
	struct commit_node *parent;
	/* directories */
	struct commit_node *children; /* in byte order of names */
	uint32_t children_n;
	/* against the manifest that the tree is applied to; 0: no such entry there */
	uint64_t old_id, old_ino, old_size_bytes;
	struct ds_digest old_digest;
	uint32_t old_nlink;
	uint8_t old_type;
	bool old_is_executable, old_has_extents;
	bool has_no_others; /* of a directory: each name there is one of the children's */
	bool is_as_before; /* of a file: its row was not had, and says exactly this; it has no place, and nothing else of old_* */
};

/* All names of one file of the source. */
struct commit_links {
	struct commit_links *next;  /* all of them, for release */
	struct commit_node **nodes; /* in tree order; the first is read */
	uint32_t nodes_n, capacity_n;
	bool is_unsure; /* names had different sizes or times when they were scanned: are they one file's? */
	uint64_t ino;	 /* in the manifest, once a name is there */
	bool is_changed; /* once a name is there: its content is not what it was */
};

struct commit_stat;

struct commit_tree {
	struct ds_arena *arena;
	struct commit_node root;
	char root_name[1]; /* "" */
	struct commit_links *links;
	uint64_t files_n, directories_n, symlinks_n, bytes; /* as a version counts */
	uint64_t special_n, unreadable_n;
	bool has_as_before; /* at least one node is_as_before */
	uint64_t unknown_n; /* files that the stat cache does not know for sure; at least */
	int root_fd;
	struct ds_time scanned; /* local clock at the start of the scan */
};

/* The budget for chunks and packs in flight. */
static inline uint64_t commit_memory_bytes(const struct ds_commit_options *options)
{
	return options->memory_bytes ? options->memory_bytes : DS_MIB(512);
}

/*
 * Scans options->source. Calls options->warn for what is rejected, in tree order. `avoid`: a directory that must not lie in the source (the
 * repository), or NULL. Gives progress. Each directory is asked of the stat cache, if there is one. The tree lies in a file in `scratch`,
 * or in memory if that is NULL. -DS_E_SOURCE_REFUSED, -DS_E_SOURCE_CHANGED, -DS_E_INTERRUPTED, errnos.
 */
int commit_scan(const struct ds_commit_options *options, const char *avoid, const char *scratch,
		const struct commit_stat *stat, struct commit_tree *tree,
		struct ds_diag *reterr_diag);
/* The tree may be half-built. */
void commit_tree_release(struct commit_tree *tree);

/* The next node in tree order (a directory before what is in it), without recursion; NULL at the end. `descend` false: not into node. */
struct commit_node *commit_node_next(const struct commit_node *root, struct commit_node *node,
				     bool descend);
/* "a/b/c" into a new string. */
char *commit_node_path(const struct commit_node *node);
/* The node that is read for this one: the first of its links. */
struct commit_node *commit_node_content(struct commit_node *node);
/* Whether its links may be names of several files, one of which was made of the other's inode: only reading tells. */
static inline bool commit_node_is_unsure(const struct commit_node *node)
{
	return node->links && node->links->is_unsure;
}
/* Opens the file or directory of a node below the root, step by step, without following links or waiting for a FIFO. A descriptor or
 * a negated errno. */
int commit_node_open(const struct commit_tree *tree, const struct commit_node *node);
/* Leaves it out of the tree. -ENOMEM. */
int commit_node_reject(struct commit_tree *tree, struct commit_node *node, enum commit_reject why,
		       const char *reason);
/* Its times, links or content (of all its names) are not those of the manifest. */
void commit_node_differs(struct commit_node *node);
/* Counts files_n, directories_n, symlinks_n, bytes anew. -DS_E_SOURCE_REFUSED: more bytes than a version can count. `source` names it. */
int commit_tree_count(struct commit_tree *tree, const char *source, struct ds_diag *reterr_diag);
/* Digests of all directories, bottom up; all other nodes are done. */
int commit_tree_hash(struct commit_tree *tree);

/* What the options alone tell: -DS_E_USAGE, -DS_E_TAKEN. */
int commit_check_options(const struct ds_commit_options *options, const char *branch,
			 struct ds_diag *reterr_diag);
/* Refuses a source that holds the repository or lies in it, or on a dsfs mount. `repo_path`: the repository's, which need not be
 * there yet; NULL: it is in no directory. */
int commit_check_place(const char *repo_path, const char *source, struct ds_diag *reterr_diag);

#endif
