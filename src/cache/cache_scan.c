/*
 * What of a full cache is cold to somebody who reads.
 *
 * Who reads more than the cache holds, in turn or shuffled anew for each epoch, wants everything equally seldom. Least recently used
 * is then the wrong order: of a cyclic scan it keeps what will be wanted last (no hit at all), of a shuffled one with a cache of a
 * fraction c it hits c + (1 - c) ln(1 - c) of the reads (3 % with c = 1/4). A part that stays hits c. So a fill takes
 * the place of another chunk only if it will be wanted again sooner, which is the rule of LIRS: a block's reuse distance
 * against the time since the other was last used (Jiang, Zhang: "LIRS: An Efficient Low Inter-reference Recency Set Replacement
 * Policy to Improve Buffer Cache Performance", SIGMETRICS 2002). What is not taken is served from memory, and saves a write.
 *
 * LIRS keeps a ghost of every block. Here a few of the refused chunks are markers, and the longest time after which one was wanted
 * again stands for all: T. It is about an epoch for a cyclic scan, and between one and two for a shuffled one, where a chunk
 * that is in the cache is used again within two epochs at most. What was not used for 2 T is cold.
 *
 * Until T is known, cold is what was not used since this process began to read (or took up again after a pause): data of whoever
 * is not reading any more go at once, and what is used stays. When readers move to other data of their own, these are taken in
 * once they were wanted a second time and the old ones were not used for 2 T: within some three epochs. A process that takes over
 * a full cache from a dead one has no T, and an epoch that takes its order anew may push out some of what it finds there, once.
 *
 * The times are those of the images' stamps, by the wall clock, so that processes that share the cache respect each other's use;
 * each has its own T.
 *
 * Marker i is replaced after 2^(i + 4) refusals, whether it was wanted again or not: whatever the length of an epoch, some
 * live long enough to see the end of it, and none stays for ever.
 */
#include "cache/cache_internal.h"
#include "util/clock.h"

#define PAUSE_MS       600000u /* who read nothing for so long begins anew */
#define PROTECT_MIN_MS 30000u  /* stamps of other processes are seconds old */
#define MARKER_SHIFT   4u
#define REFUSING_MS    10000u

void ds_scan_init(struct ds_cache_scan *scan)
{
	pthread_mutex_init(&scan->mutex, NULL);
	scan->protect_min_ms = PROTECT_MIN_MS;
}

void ds_scan_reads(struct ds_cache_scan *scan, uint64_t at_ms)
{
	pthread_mutex_lock(&scan->mutex);
	/* Earlier than it began: the clock was put back, and what is stamped from now on is no colder than before. */
	if (at_ms > scan->locked.last_ms + PAUSE_MS || at_ms < scan->locked.began_ms)
		scan->locked.began_ms = at_ms;
	scan->locked.last_ms = at_ms;
	pthread_mutex_unlock(&scan->mutex);
}

/* The longest of the spans that are not older than twice themselves; 0: none is known. */
static uint64_t reuse_ms_locked(const struct ds_cache_scan *scan, uint64_t now_ms)
{
	uint64_t longest = 0;

	for (size_t i = 0; i < DS_SCAN_MARKERS; i++) {
		const struct ds_scan_marker *marker = &scan->locked.markers[i];
		uint64_t span = DS_MAX(marker->again_ms, marker->before_it_ms);

		if (now_ms < marker->seen_ms + 2 * span)
			longest = DS_MAX(longest, span);
	}
	return longest;
}

uint64_t ds_scan_cold_before(struct ds_cache_scan *scan, uint64_t now_ms)
{
	uint64_t reuse_ms, before_ms;

	pthread_mutex_lock(&scan->mutex);
	before_ms = DS_MIN(scan->locked.began_ms, now_ms);
	reuse_ms = reuse_ms_locked(scan, now_ms);
	if (reuse_ms)
		before_ms = now_ms - DS_MIN(now_ms, DS_MAX(2 * reuse_ms, scan->protect_min_ms));
	pthread_mutex_unlock(&scan->mutex);
	return before_ms;
}

void ds_scan_refused(struct ds_cache_scan *scan, uint64_t key, uint64_t now_ms)
{
	pthread_mutex_lock(&scan->mutex);
	atomic_store(&scan->refused_ns, ds_mono_ns());
	for (unsigned i = 0; i < DS_SCAN_MARKERS; i++) {
		struct ds_scan_marker *marker = &scan->locked.markers[i];
		uint64_t turns = scan->locked.refused_n - i;

		if (marker->key == key) {
			/* No span can be told where the clock was put back. */
			if (now_ms >= marker->seen_ms) {
				marker->before_it_ms = marker->again_ms;
				/* At least 1, since 0 stands for none. */
				marker->again_ms = DS_MAX(now_ms - marker->seen_ms, UINT64_C(1));
			}
			marker->seen_ms = now_ms;
		} else if (scan->locked.refused_n >= i &&
			   turns % (UINT64_C(1) << (i + MARKER_SHIFT)) == 0) {
			*marker = (struct ds_scan_marker){.key = key, .seen_ms = now_ms};
		}
	}
	scan->locked.refused_n++;
	pthread_mutex_unlock(&scan->mutex);
}

bool ds_cache_is_refusing(struct ds_cache *cache)
{
	uint64_t refused_ns = atomic_load(&cache->scan.refused_ns);

	return refused_ns && ds_mono_ns() < refused_ns + REFUSING_MS * (uint64_t)DS_NS_PER_MS;
}
