/*
 * Bytes that the cache has not taken, for a little while in memory.
 *
 * A chunk is asked for in pieces, and what was fetched ahead is asked for later: when the disk does not take it (the cache is full of what
 * is wanted as much, or there is none), it would be fetched once for each piece. These are not counted as in flight.
 *
 * First in, first out: in a stream what was read last is what will not be read again, and by last use it would push out what was
 * fetched ahead.
 */
#include "cache/fetch_internal.h"

#define KEPT_OF_BUDGET 8u

struct kept {
	struct ds_list node;
	struct ds_digest digest;
	struct ds_chunk_bytes *bytes;
};

static void let_go_locked(struct ds_fetcher *fetcher, struct kept *kept)
{
	ds_map_remove(fetcher->locked.kept, kept->digest.bytes, DS_DIGEST_LEN);
	ds_list_remove(&kept->node);
	fetcher->locked.kept_bytes -= kept->bytes->len_bytes;
	ds_chunk_bytes_unref(kept->bytes);
	ds_free(kept);
}

static struct kept *oldest_locked(struct ds_fetcher *fetcher)
{
	return ds_list_entry(fetcher->locked.kept_list.next, struct kept, node);
}

/* Takes the reference if it returns true. */
static bool keep_locked(struct ds_fetcher *fetcher, const struct ds_digest *digest,
			struct ds_chunk_bytes *bytes)
{
	uint64_t max = DS_MIN(DS_FETCH_KEPT_MAX, fetcher->inflight_bytes_max / KEPT_OF_BUDGET);
	struct kept *kept;

	if (bytes->len_bytes > max ||
	    ds_map_get(fetcher->locked.kept, digest->bytes, DS_DIGEST_LEN))
		return false;
	kept = ds_malloc(sizeof(*kept));
	if (!kept)
		return false;
	if (ds_map_put(fetcher->locked.kept, digest->bytes, DS_DIGEST_LEN, kept, NULL) < 0) {
		ds_free(kept);
		return false;
	}
	kept->digest = *digest;
	kept->bytes = bytes;
	fetcher->locked.kept_bytes += bytes->len_bytes;
	ds_list_push_back(&fetcher->locked.kept_list, &kept->node);
	while (fetcher->locked.kept_bytes > max)
		let_go_locked(fetcher, oldest_locked(fetcher));
	return true;
}

void ds_fetch_keep(struct ds_fetcher *fetcher, const struct ds_digest *digest,
		   struct ds_chunk_bytes *bytes)
{
	bool is_taken;

	bytes = ds_chunk_bytes_keep(bytes);
	if (!bytes)
		return;
	pthread_mutex_lock(&fetcher->mutex);
	is_taken = keep_locked(fetcher, digest, bytes);
	pthread_mutex_unlock(&fetcher->mutex);
	if (!is_taken)
		ds_chunk_bytes_unref(bytes);
}

struct ds_chunk_bytes *ds_fetch_kept_locked(struct ds_fetcher *fetcher,
					    const struct ds_digest *digest)
{
	struct kept *kept = ds_map_get(fetcher->locked.kept, digest->bytes, DS_DIGEST_LEN);

	if (!kept)
		return NULL;
	return ds_chunk_bytes_ref(kept->bytes);
}

bool ds_fetcher_keeps(struct ds_fetcher *fetcher, const struct ds_digest *digest)
{
	bool is_kept;

	/* As it is unless the cache refuses. */
	if (atomic_load_explicit(&fetcher->locked.kept_bytes, memory_order_relaxed) == 0)
		return false;
	pthread_mutex_lock(&fetcher->mutex);
	is_kept = ds_map_get(fetcher->locked.kept, digest->bytes, DS_DIGEST_LEN);
	pthread_mutex_unlock(&fetcher->mutex);
	return is_kept;
}

void ds_fetch_kept_free(struct ds_fetcher *fetcher)
{
	while (!ds_list_is_empty(&fetcher->locked.kept_list))
		let_go_locked(fetcher, oldest_locked(fetcher));
	ds_map_free(fetcher->locked.kept, NULL);
}
