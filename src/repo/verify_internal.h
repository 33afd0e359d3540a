/*
 * For verify*.c only: what a check holds.
 *
 * Threads: the packs' own check runs on several (verify_packs.c), everything else on the caller's. `mutex` guards findings, counts, progress and
 * `error`; a struct verify_pack belongs to one item of work at a time, and to the caller's thread before and afterwards.
 */
#ifndef DS_REPO_VERIFY_INTERNAL_H
#define DS_REPO_VERIFY_INTERNAL_H

#include <pthread.h>

#include "codec/pack.h"
#include "repo/keep.h"
#include "repo/record.h"
#include "repo/repo_internal.h"
#include "repo/verify.h"
#include "util/map.h"

enum verify_pack_state {
	VERIFY_PACK_UNSEEN,
	VERIFY_PACK_THERE,
	VERIFY_PACK_MOVED,   /* gone, with a note */
	VERIFY_PACK_MISSING, /* gone */
	VERIFY_PACK_BAD,     /* table or note damaged: there is a finding */
};

struct verify_pack {
	struct ds_digest id;
	enum verify_pack_state state;
	bool is_listed, is_wanted;
	bool is_missed; /* there is a finding that it is missing */
	bool is_read;	/* its bytes were read (read_data) */
	bool is_counted;
	uint64_t object_len_bytes;
	struct ds_pack_toc *toc; /* may be dropped and read again; NULL unless THERE or MOVED */
	struct ds_pack_moved_to *targets; /* of a note, beside toc */
	struct ds_map *bad_chunks;	  /* ordinals with a finding; NULL: none */
};

/* The pages of one version after the other, in one unlinked file: what did not change is not read again. */
struct verify_pages {
	int fd;
	uint32_t page_size;
	uint64_t pages_n;
	struct ds_digest *digests; /* of what stands in the file; zero: a page of zeros */
	bool *bad;		   /* could not be read in this version */
	size_t capacity_n;
	uint64_t bad_n;
	void *mapping;
	size_t mapping_len;
};

struct verify {
	struct ds_repo *repo;
	const struct ds_verify_options *options;
	struct ds_diag *diag;
	struct ds_verify_result result;
	pthread_mutex_t mutex;
	int error;		  /* what ends the check; first one */
	uint64_t done_n, total_n; /* progress: packs and versions */
	struct ds_map *packs;	  /* id -> struct verify_pack */
	uint64_t toc_chunks_n;	  /* in memory */
	struct ds_map *named;	  /* version id -> itself: those that must be whole */
	struct verify_pages pages;
	const char *version_key; /* being checked */
	uint64_t version_findings_n;
};

/* verify.c */
void ds_verify_find(struct verify *verify, const char *object, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
/* A finding from what a parser said. */
void ds_verify_find_diag(struct verify *verify, const char *object, int r,
			 const struct ds_diag *diag);
/* Notes the first error that ends the check; returns it. */
int ds_verify_fail(struct verify *verify, int r, const struct ds_diag *diag);
bool ds_verify_is_over(struct verify *verify);
void ds_verify_step(struct verify *verify, uint64_t bytes);
/* Whether an error says that the object is damaged, not that the store or the machine failed. */
bool ds_verify_is_damage(int r);

/* verify_refs.c: all logs; fills `named` with the versions that are kept, and those of damaged logs. */
int ds_verify_refs(struct verify *verify);

/* verify_packs.c */
/* The pack's struct, new or known; NULL: out of memory. */
struct verify_pack *ds_verify_pack(struct verify *verify, const struct ds_digest *id);
/* Makes its table known: 0 with any state but UNSEEN; an error ends the check. */
int ds_verify_pack_load(struct verify *verify, struct verify_pack *pack);
/* All packs and notes of the store, on several threads. */
int ds_verify_packs(struct verify *verify);
/* The bytes of the packs that are wanted and were not read. *ret_moved: some are not there any more,
 * so that the versions have to be checked again. */
int ds_verify_wanted_packs(struct verify *verify, bool *ret_moved);
void ds_verify_pack_free(void *pack);

/* Where the bytes of a chunk are. */
struct verify_place {
	struct verify_pack *pack;
	uint32_t ordinal;
	uint64_t stored_off;
	uint32_t stored_len_bytes, raw_len_bytes;
	struct ds_digest digest;
};
/*
 * Checks a reference against the pack's table, and follows notes. `what` says in a finding what refers. raw_off: UINT64_MAX not compared.
 * *ret_ok false: there is a finding; an error ends the check.
 */
int ds_verify_ref(struct verify *verify, const struct ds_chunk_ref *ref, uint64_t raw_off,
		  const char *what, struct verify_place *ret_place, bool *ret_ok);
/* Reads and checks one chunk. `raw` has room for DS_CHUNK_MAX. */
int ds_verify_read_chunk(struct verify *verify, const struct verify_place *place, void *raw,
			 bool *ret_ok);
/* A finding about a chunk's bytes, once. */
void ds_verify_bad_chunk(struct verify *verify, struct verify_pack *pack, uint32_t ordinal, int r);

/* verify_pages.c: index and pages of a version, into verify->pages. *ret_ok: the index could be read. */
int ds_verify_index(struct verify *verify, const struct ds_record *record, bool *ret_ok);
void ds_verify_pages_release(struct verify_pages *pages);

/* verify_manifest.c: everything of one version from its record on. */
int ds_verify_version(struct verify *verify, const struct ds_record *record);

#endif
