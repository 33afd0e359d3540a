/*
 * A manifest between the store and a local file: loading a parent's, storing a new one (design, "Manifest").
 *
 * Threads: one at a time. Blocks.
 */
#ifndef DS_REPO_COMMIT_MANIFEST_H
#define DS_REPO_COMMIT_MANIFEST_H

#include "codec/page_index.h"
#include "repo/commit_packs.h"
#include "repo/commit_watch.h"
#include "repo/record.h"

/* Where all pages and nodes of a manifest lie. */
struct commit_manifest {
	uint32_t page_size;
	uint64_t pages_n;
	struct ds_chunk_ref *pages; /* stored_len 0: zeros */
	uint64_t nodes_n;
	struct ds_page_index_node **nodes; /* parsed, by number */
	struct ds_chunk_ref *node_refs;	   /* by number */
};
void commit_manifest_release(struct commit_manifest *manifest);

/* Reads the index of a version's manifest. */
int commit_manifest_load_index(struct ds_repo *repo, const struct ds_record *record,
			       struct commit_manifest *ret_manifest, struct ds_diag *reterr_diag);
/* Writes all its pages into a new file, verified, with few large range GETs. */
int commit_manifest_load_pages(struct ds_repo *repo, const struct commit_manifest *manifest, int fd,
			       const struct commit_watch *watch, struct ds_diag *reterr_diag);

/*
 * Stores the manifest in `path`: pages that differ from `parent`'s (NULL: all) and the index go into packs of their own. Fills in the
 * record's page_size, pages_n, index and prefetch.
 */
int commit_manifest_store(struct commit_packs *packs, const char *path,
			  const struct commit_manifest *parent, struct ds_record *record,
			  struct ds_diag *reterr_diag);

#endif
