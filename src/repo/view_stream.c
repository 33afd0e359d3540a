/*
 * Sequential streams through large files: what follows is fetched ahead, in a window that grows.
 *
 * A stream is known by its file and its place, not by a handle: any number of them in one file work
 * (T6), and so do reads of one stream that come out of order, as the kernel's own read-ahead sends
 * them. The window doubles each time that half of it was used, like that of the page cache (Wu and
 * others, "On the design of a new Linux readahead framework", ACM SIGOPS OSR 42-5, 2008), up to the
 * stream's share of what the fetcher may have in flight. A random read begins no stream, and neither
 * does one where all that follows is here.
 *
 * The first hit in a file that is whole in its image ends its streams, and those that follow take no lock.
 *
 * INV-1 What lies below `ahead` was given to the fetcher, or was here.
 */
#include "repo/view_internal.h"
#include "util/clock.h"

/* At its start: 160 MB/s at 50 ms. */
#define WINDOW_MIN DS_MIB(8)
/* All together while the cache takes nothing: as much as the fetcher keeps in memory, but for what is being read. */
#define WINDOWS_KEPT	(DS_FETCH_KEPT_MAX / 4 * 3)
#define WINDOW_KEPT_MIN DS_MIB(2)
/* How far behind the furthest read another one is still of the same stream. */
#define SLACK DS_MIB(8)
/* After so long a stream has no share of the budget. */
#define IDLE_NS (2 * (uint64_t)DS_NS_PER_S)

/* A part of a file that is to be fetched ahead; none if `from` is `to`. */
struct part {
	uint64_t from, to;
};

static struct view_stream *find_locked(struct ds_view *view, uint64_t ino, uint64_t off)
{
	for (size_t i = 0; i < VIEW_STREAMS_N; i++) {
		struct view_stream *stream = &view->streams.all[i];

		if (stream->ino == ino && off + SLACK >= stream->at && off <= stream->ahead)
			return stream;
	}
	return NULL;
}

/* Bytes of the largest window: half of the budget, in which stored and raw bytes count, is for streams. */
static uint64_t window_max_locked(const struct ds_view *view, uint64_t now_ns)
{
	uint64_t busy_n = 0;

	if (!view->runs_ahead && !ds_cache_is_refusing(view->cache))
		return WINDOW_MIN;
	for (size_t i = 0; i < VIEW_STREAMS_N; i++)
		busy_n += view->streams.all[i].used_ns + IDLE_NS > now_ns;
	if (ds_cache_is_refusing(view->cache))
		return DS_MAX(WINDOWS_KEPT / DS_MAX(busy_n, (uint64_t)1), WINDOW_KEPT_MIN);
	return DS_MAX(view->streams.budget_bytes / 4 / DS_MAX(busy_n, (uint64_t)1), WINDOW_MIN);
}

/* Without the mutex: of a file that nobody streams through, a hit takes none. */
static bool has_stream(const struct ds_view *view, uint64_t ino)
{
	for (size_t i = 0; i < VIEW_STREAMS_N; i++)
		if (atomic_load_explicit(&view->streams.all[i].ino, memory_order_relaxed) == ino)
			return true;
	return false;
}

/* Somebody reads the extent [off, end). False: it is of no stream. */
static bool advance(struct ds_view *view, uint64_t ino, uint64_t off, uint64_t end,
		    struct part *ret_part)
{
	struct view_stream *stream;
	uint64_t now_ns;

	*ret_part = (struct part){0};
	if (!has_stream(view, ino))
		return false;
	pthread_mutex_lock(&view->streams.mutex);
	now_ns = ds_mono_ns();
	stream = find_locked(view, ino, off);
	if (stream) {
		stream->used_ns = now_ns;
		stream->at = DS_MAX(stream->at, end);
		stream->ahead = DS_MAX(stream->ahead, stream->at);
		if (stream->ahead - stream->at <= stream->window_bytes / 2) {
			stream->window_bytes =
				DS_MIN(stream->window_bytes * 2, window_max_locked(view, now_ns));
			ret_part->from = stream->ahead;
			ret_part->to = DS_MAX(stream->at + stream->window_bytes, stream->ahead);
			stream->ahead = ret_part->to;
		}
	}
	pthread_mutex_unlock(&view->streams.mutex);
	return stream;
}

/* In place of the one that was used last the longest ago. */
static void begin(struct ds_view *view, uint64_t ino, uint64_t at, uint64_t ahead)
{
	struct view_stream *stream = &view->streams.all[0];

	pthread_mutex_lock(&view->streams.mutex);
	for (size_t i = 1; i < VIEW_STREAMS_N; i++)
		if (view->streams.all[i].used_ns < stream->used_ns)
			stream = &view->streams.all[i];
	atomic_store_explicit(&stream->ino, ino, memory_order_relaxed);
	stream->at = at;
	stream->ahead = ahead;
	stream->window_bytes = WINDOW_MIN;
	stream->used_ns = ds_mono_ns();
	pthread_mutex_unlock(&view->streams.mutex);
}

/* Of a file that is whole. If it leaves the cache, nothing of it was fetched ahead. */
static void end_all(struct ds_view *view, uint64_t ino)
{
	pthread_mutex_lock(&view->streams.mutex);
	for (size_t i = 0; i < VIEW_STREAMS_N; i++) {
		struct view_stream *stream = &view->streams.all[i];

		if (stream->ino == ino) {
			atomic_store_explicit(&stream->ino, 0, memory_order_relaxed);
			stream->used_ns = 0;
		}
	}
	pthread_mutex_unlock(&view->streams.mutex);
}

/* Not all of a part was taken: the rest is tried again. */
static void fall_back(struct ds_view *view, uint64_t ino, const struct part *part, uint64_t reached)
{
	pthread_mutex_lock(&view->streams.mutex);
	for (size_t i = 0; i < VIEW_STREAMS_N; i++) {
		struct view_stream *stream = &view->streams.all[i];

		if (stream->ino == ino && stream->ahead == part->to)
			stream->ahead = DS_MAX(reached, stream->at);
	}
	pthread_mutex_unlock(&view->streams.mutex);
}

/*
 * Gives the fetcher what is missing in a part, as far as the manifest is here and the budget allows;
 * `ret_reached`: how far that was. Returns how many chunks were missing.
 */
static size_t fetch_part(struct ds_view *view, struct ds_demand *quiet,
			 const struct ds_entry *entry, struct ds_image *image,
			 const struct part *part, uint64_t *ret_reached)
{
	uint64_t to = DS_MIN(part->to, entry->size_bytes), off = part->from;
	struct ds_extent extents[VIEW_EXTENTS_MAX];
	size_t missing_n = 0, taken_n, n = 1;

	while (off < to && n > 0 &&
	       ds_manifest_extents(view->manifest, quiet, entry->ino, off, to - off, extents,
				   VIEW_EXTENTS_MAX, &n) == 0) {
		missing_n += view_extents_prefetch(view, quiet, entry, image, extents, n, &taken_n);
		if (taken_n == 0)
			break;
		off = extents[taken_n - 1].off + extents[taken_n - 1].len_bytes;
		if (taken_n < n)
			break;
	}
	*ret_reached = off;
	return missing_n;
}

/* If the extent before is here too, somebody streams. */
static bool is_beginning(struct ds_view *view, struct ds_demand *quiet,
			 const struct ds_entry *entry, struct ds_image *image, uint64_t off)
{
	struct ds_fetch_target before;
	struct ds_extent extent;
	bool is_local;
	size_t n;

	if (off == 0)
		return true;
	if (ds_manifest_extents(view->manifest, quiet, entry->ino, off - 1, 1, &extent, 1, &n) <
		    0 ||
	    n != 1)
		return false;
	return extent.is_zeros ||
	       (extent.slot < entry->extents_n &&
		view_extent_target(view, quiet, image, &extent, &before) == 0 &&
		((view_chunk_look(view, quiet, &before, &is_local) == 0 && is_local) ||
		 ds_fetcher_keeps(view->fetcher, &before.ref.digest)));
}

void view_stream_follow(struct ds_view *view, struct ds_demand *demand,
			const struct ds_entry *entry, struct ds_image *image,
			const struct ds_extent *extent, bool is_hit)
{
	uint64_t end = extent->off + extent->len_bytes, reached;
	struct ds_demand quiet; /* what is not local here is no reason to wait */
	struct part part;

	if (is_hit && ds_image_is_whole(image)) {
		if (has_stream(view, entry->ino))
			end_all(view, entry->ino);
		return;
	}
	if (end >= entry->size_bytes)
		return;
	ds_demand_init(&quiet, view);
	quiet.may_check = view_may_check(view, demand);
	if (advance(view, entry->ino, extent->off, end, &part)) {
		if (part.from < part.to) {
			fetch_part(view, &quiet, entry, image, &part, &reached);
			if (reached < DS_MIN(part.to, entry->size_bytes))
				fall_back(view, entry->ino, &part, reached);
		}
	} else if (is_beginning(view, &quiet, entry, image, extent->off)) {
		part = (struct part){.from = end, .to = end + WINDOW_MIN};
		if (fetch_part(view, &quiet, entry, image, &part, &reached))
			begin(view, entry->ino, end, reached);
	}
	ds_demand_release(&quiet);
}

void view_streams_init(struct ds_view *view)
{
	struct ds_fetcher_stats stats;

	ds_fetcher_get_stats(view->fetcher, &stats);
	view->streams.budget_bytes = stats.inflight_bytes_max;
	pthread_mutex_init(&view->streams.mutex, NULL);
}

void view_streams_release(struct ds_view *view)
{
	pthread_mutex_destroy(&view->streams.mutex);
}
