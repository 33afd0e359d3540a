/*
 * Packs in a store, and waiters that can be waited for. Used by the Criterion suites and by tests/stress, so that it
 * aborts instead of asserting.
 */
#pragma once

#include "cache/fetch.h"
#include "codec/pack.h"
#include "cache_support.h"
#include "fault_store.h"

/* A pack with the chunks of `pack`, in the store, and where they are. */
struct stored_pack {
	struct ds_digest id;
	struct ds_chunk_ref *refs;
	uint8_t *table;
	size_t table_len;
	char key[DS_PACK_KEY_MAX];
};
/* `put`: into the store. Every chunk of the model from `first` on, `n` of them. */
void stored_pack_init(struct stored_pack *stored, const struct support_pack *pack, uint32_t first,
		      uint32_t n, struct ds_store *store);
void stored_pack_release(struct stored_pack *stored);
/* Deletes the pack and says where its chunks are now: chunk i of it is chunk i of `to`. NULL: gone for good. */
void stored_pack_move(struct stored_pack *from, const struct stored_pack *to,
		      struct ds_store *store);

struct ds_fetch_target target_of(struct ds_image *image, const struct support_pack *pack,
				 const struct stored_pack *stored, uint32_t slot);

struct want {
	struct ds_fetch_waiter waiter;
	const struct support_pack *pack;
	uint32_t slot;
	_Atomic int is_over;
	int result;
	struct ds_diag diag;
	uint64_t over_ns;
};
/* For who starts it himself; the bytes are compared when they come. */
void want_init(struct want *want, const struct support_pack *pack, uint32_t slot);
/* Starts it. */
void want_start(struct want *want, struct ds_fetcher *fetcher, struct ds_image *image,
		const struct support_pack *pack, const struct stored_pack *stored, uint32_t slot,
		uint64_t timeout_ms);
/* Blocks (at most 60 s) and gives the result. */
int want_wait(struct want *want);
