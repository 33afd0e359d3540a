/*
 * Verify: checks a repository from its refs down. Structure: every ref entry (seal, chain, times), every record, index node, page, manifest row, pack
 * (there, with its size and table), every chunk that a manifest refers to in its pack's table. With read_data every byte of
 * every pack. Findings name the object. Blocks.
 */
#ifndef DS_REPO_VERIFY_H
#define DS_REPO_VERIFY_H

#include "repo/repo.h"

struct ds_verify_options {
	bool read_data;
	const char *selector; /* only this version; NULL: all */
	/* object: key, or key and what in it; text: one clause */
	void (*finding)(void *ctx, const char *object, const char *text);
	void (*progress)(void *ctx, uint64_t done_n, uint64_t total_n, uint64_t bytes);
	void *ctx;
	const volatile int *interrupted;
};

struct ds_verify_result {
	/* packs_n: whose tables were checked, with the chunks in these; bytes: of chunks that were read */
	uint64_t versions_n, packs_n, chunks_n, objects_n, bytes, findings_n;
	uint64_t unreachable_n; /* packs that no version refers to: no finding */
	uint64_t
		imported_n; /* files of the versions that lie in imported objects: not checked, no finding */
};

/* 0 if the check could be made, whatever it found. */
int ds_verify(struct ds_repo *repo, const struct ds_verify_options *options,
	      struct ds_verify_result *ret_result, struct ds_diag *reterr_diag);

#endif
