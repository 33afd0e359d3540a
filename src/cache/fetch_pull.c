/*
 * Whole packs, ahead of demand.
 *
 * A pack's table of contents says where each of its chunks lies and what it must be, and is checked against the pack's id: so all of
 * them can be fetched and verified without a look at the manifest, in a few large GETs. A chunk that somebody wants meanwhile
 * is found among the flights, and overtakes the others.
 *
 * Best effort: a pack that was moved, or cannot be read now, comes chunk by chunk as it is wanted; so does one that is not begun
 * since others are.
 *
 * A pull is busy from its start to its end: on a thread of the movers, or in their queue.
 *
 * INV-1 A pull makes flights in small batches, and none while there are DS_FETCH_PULL_FLIGHTS_MAX: packs of tiny files have a hundred
 *       thousand chunks, each of which costs more as a flight than its bytes do.
 * INV-2 Once the fetcher ends, no pull makes a flight, and each that is busy ends at its next step.
 */
#include "cache/fetch_internal.h"
#include "codec/pack.h"
#include "util/clock.h"

/* Not again before: what was brought and is wanted once more did not stay, and chunks are cheaper then. */
#define AGAIN_MS   300000u
#define PULLS_MAX  4096u /* packs that are remembered: some 600 KiB */
#define BUSY_MAX   4u	 /* at a time: more than there are movers; each has a table in memory */
#define TIMEOUT_MS 60000u
#define BATCH_N	   64u
#define PAUSE_MS   5u

struct pull {
	struct ds_work_item work;
	struct ds_fetcher *fetcher;
	struct ds_image *image; /* NULL: it is over */
	struct ds_digest pack;
	uint64_t over_ns;
	/* of the mover that is at it */
	struct ds_pack_toc *toc; /* NULL: to be fetched */
	uint32_t next;		 /* ordinal */
	bool is_paused;
};

void ds_fetch_pull_free(void *value)
{
	struct pull *pull = value;

	ds_image_unref(pull->image);
	ds_free(pull->toc);
	ds_free(pull);
}

bool ds_fetch_pull_is_busy(const void *value)
{
	return ((const struct pull *)value)->image;
}

static void fill_target(const struct pull *pull, const struct ds_pack_toc *toc, uint32_t ordinal,
			struct ds_fetch_target *ret_target)
{
	const struct ds_pack_entry *entry = &toc->entries[ordinal];

	*ret_target = (struct ds_fetch_target){
		.image = pull->image,
		.slot = ordinal,
		.raw_off = entry->raw_off,
		.ref = {.digest = entry->digest,
			.pack = pull->pack,
			.ordinal = ordinal,
			.stored_off = entry->stored_off,
			.stored_len_bytes = entry->stored_len_bytes,
			.raw_len_bytes = entry->raw_len_bytes},
	};
}

static bool is_local(const struct ds_fetch_target *target)
{
	struct ds_image_slot slot = {.slot = target->slot,
				     .raw_off = target->raw_off,
				     .raw_len_bytes = target->ref.raw_len_bytes,
				     .digest = target->ref.digest};

	return ds_image_look(target->image, &slot) == DS_IMAGE_READY;
}

/* What of the next chunks is not here yet. False: those were the last. */
static bool fetch_some(struct pull *pull)
{
	const struct ds_pack_toc *toc = pull->toc;
	struct ds_fetch_target targets[BATCH_N];
	size_t n = 0;

	for (unsigned i = 0; i < BATCH_N && pull->next < toc->chunks_n; i++) {
		fill_target(pull, toc, pull->next++, &targets[n]);
		n += !is_local(&targets[n]);
	}
	ds_fetch_ahead(pull->fetcher, targets, n, false);
	return pull->next < toc->chunks_n;
}

/* Of an image of the same layout: else the manifest said something else of the pack. */
static bool get_toc(struct pull *pull)
{
	return ds_fetch_toc_by(pull->fetcher, &pull->pack, pull->image->layout.slots_n,
			       ds_deadline_in_ms(TIMEOUT_MS), &pull->toc) == 0 &&
	       pull->toc->raw_len_bytes == pull->image->layout.size_bytes;
}

enum pace { PACE_GO_ON, PACE_PAUSE, PACE_END };

static enum pace pace_of(struct pull *pull)
{
	struct ds_fetcher *fetcher = pull->fetcher;
	size_t max = DS_FETCH_PULL_FLIGHTS_MAX;
	enum pace pace = PACE_GO_ON;

	/* Half of them, so that what comes then travels together. */
	if (pull->is_paused)
		max /= 2;
	pthread_mutex_lock(&fetcher->mutex);
	if (fetcher->locked.is_ending)
		pace = PACE_END;
	else if (fetcher->locked.flights_n >= max)
		pace = PACE_PAUSE;
	pthread_mutex_unlock(&fetcher->mutex);
	pull->is_paused = pace == PACE_PAUSE;
	return pace;
}

static bool is_large(const struct ds_image *image)
{
	return image->layout.slots_n > DS_FETCH_PULL_LARGE_N;
}

static void end_pull(struct pull *pull)
{
	struct ds_fetcher *fetcher = pull->fetcher;
	struct ds_image *image;

	ds_free(pull->toc);
	pull->toc = NULL;
	pthread_mutex_lock(&fetcher->mutex);
	image = pull->image;
	pull->image = NULL;
	pull->over_ns = ds_mono_ns();
	fetcher->locked.pulls_busy_n--;
	fetcher->locked.pulls_large_n -= is_large(image);
	pthread_mutex_unlock(&fetcher->mutex);
	ds_image_unref(image);
}

static void run_pull(struct ds_work_item *item)
{
	struct pull *pull = ds_container_of(item, struct pull, work);
	enum pace pace = pace_of(pull);

	while (pace == PACE_GO_ON && (pull->toc || get_toc(pull)) && fetch_some(pull))
		pace = pace_of(pull);
	if (pace != PACE_PAUSE) {
		end_pull(pull);
		return;
	}
	ds_sleep_ms(PAUSE_MS);
	/* Behind the others, and behind the look-ups of packs that were moved. */
	ds_work_submit(pull->fetcher->movers, &pull->work, false);
}

/* Makes room for one more to remember. */
static void forget_one_locked(struct ds_fetcher *fetcher)
{
	size_t cursor = 0;
	void *value;

	if (ds_map_count(fetcher->locked.pulls) < PULLS_MAX)
		return;
	while (ds_map_each(fetcher->locked.pulls, &cursor, NULL, NULL, &value)) {
		struct pull *pull = value;

		if (ds_fetch_pull_is_busy(pull))
			continue;
		ds_map_remove(fetcher->locked.pulls, pull->pack.bytes, DS_DIGEST_LEN);
		ds_free(pull);
		return;
	}
}

static void start_locked(struct ds_fetcher *fetcher, struct ds_image *image,
			 const struct ds_digest *pack)
{
	struct pull *pull = ds_map_get(fetcher->locked.pulls, pack->bytes, DS_DIGEST_LEN);

	if (pull &&
	    (ds_fetch_pull_is_busy(pull) || ds_mono_ns() < pull->over_ns + AGAIN_MS * DS_NS_PER_MS))
		return;
	/* Whoever misses something of it later asks again. */
	if (fetcher->locked.pulls_busy_n >= BUSY_MAX ||
	    (is_large(image) && fetcher->locked.pulls_large_n > 0))
		return;
	if (ds_fetch_start_locked(fetcher) < 0 || ds_fetch_movers_locked(fetcher) < 0)
		return;
	if (!pull) {
		forget_one_locked(fetcher);
		pull = ds_calloc(1, sizeof(*pull));
		if (!pull)
			return;
		pull->fetcher = fetcher;
		pull->pack = *pack;
		pull->work.run = run_pull;
		ds_list_init(&pull->work.node);
		if (ds_map_put(fetcher->locked.pulls, pack->bytes, DS_DIGEST_LEN, pull, NULL) < 0) {
			ds_free(pull);
			return;
		}
	}
	pull->image = ds_image_ref(image);
	pull->next = 0;
	pull->is_paused = false;
	fetcher->locked.pulls_busy_n++;
	fetcher->locked.pulls_large_n += is_large(image);
	fetcher->locked.stats.pulls_n++;
	ds_work_submit(fetcher->movers, &pull->work, false);
}

void ds_fetcher_pull(struct ds_fetcher *fetcher, struct ds_image *image,
		     const struct ds_digest *pack)
{
	pthread_mutex_lock(&fetcher->mutex);
	if (!fetcher->locked.is_ending &&
	    fetcher->locked.inflight_bytes + fetcher->locked.ahead_bytes <
		    fetcher->inflight_bytes_max)
		start_locked(fetcher, image, pack);
	pthread_mutex_unlock(&fetcher->mutex);
}
