/*
 * A store, a cache and a fetcher, opened together: what every test of the fetcher starts with.
 */
#pragma once

#include "cache/fetch_internal.h"
#include "fetch_support.h"

/* A pack in memory behind the fault store, an image, a fetcher. */
struct bench {
	struct ds_store *memory;
	struct fault_store *store;
	struct ds_cache *cache;
	struct ds_fetcher *fetcher;
	struct support_pack pack;
	struct stored_pack stored;
	struct ds_image *image;
};

static inline void bench_open(struct bench *bench, uint32_t slots_n, uint32_t len, bool equal,
			      const struct ds_fetcher_options *options)
{
	cr_assert_eq(ds_store_memory_new(NULL, NULL, &bench->memory), 0);
	bench->store = fault_store_new(bench->memory);
	bench->cache = support_open(support_path("c"), DS_MIB(64), 1);
	support_pack_init(&bench->pack, 5, slots_n, len, equal);
	stored_pack_init(&bench->stored, &bench->pack, 0, slots_n, bench->memory);
	bench->image = support_image(bench->cache, &bench->pack);
	cr_assert_eq(ds_fetcher_new(&bench->store->base, bench->cache, options, &bench->fetcher),
		     0);
}

static inline void bench_close(struct bench *bench)
{
	ds_fetcher_free(bench->fetcher);
	ds_image_unref(bench->image);
	ds_cache_unref(bench->cache);
	ds_store_unref(&bench->store->base);
	ds_store_unref(bench->memory);
	stored_pack_release(&bench->stored);
	support_pack_release(&bench->pack);
}

static inline void start(struct bench *bench, struct want *want, uint32_t slot, uint64_t timeout_ms)
{
	want_start(want, bench->fetcher, bench->image, &bench->pack, &bench->stored, slot,
		   timeout_ms);
}

static inline int fetch(struct bench *bench, uint32_t slot)
{
	struct want want;

	start(bench, &want, slot, 20000);
	return want_wait(&want);
}

static inline struct ds_fetcher_stats stats_of(struct bench *bench)
{
	struct ds_fetcher_stats stats;

	ds_fetcher_get_stats(bench->fetcher, &stats);
	return stats;
}

/* Until flights and pulls are all over. Who joins a flight that has failed, and is not gone yet, gets its error. */
static inline void wait_quiet(struct bench *bench)
{
	for (unsigned still_n = 0; still_n < 3;) {
		size_t cursor = 0;
		bool is_busy;
		void *value;

		pthread_mutex_lock(&bench->fetcher->mutex);
		is_busy = bench->fetcher->locked.flights_n > 0 ||
			  !ds_list_is_empty(&bench->fetcher->locked.calls);
		while (ds_map_each(bench->fetcher->locked.pulls, &cursor, NULL, NULL, &value))
			is_busy |= ds_fetch_pull_is_busy(value);
		pthread_mutex_unlock(&bench->fetcher->mutex);
		still_n = is_busy ? 0 : still_n + 1;
		ds_sleep_ms(1);
	}
}

static inline void set(struct bench *bench, const char *match, unsigned flip_n, int fail,
		       unsigned fail_n)
{
	pthread_mutex_lock(&bench->store->mutex);
	bench->store->match = match;
	bench->store->flip_n = flip_n;
	bench->store->fail = fail;
	bench->store->fail_n = fail_n;
	pthread_mutex_unlock(&bench->store->mutex);
}

static inline void hold(struct bench *bench)
{
	pthread_mutex_lock(&bench->store->mutex);
	bench->store->hold = true;
	pthread_mutex_unlock(&bench->store->mutex);
}
