/*
 * The rules of keeping, over whole logs.
 *
 * A version is kept in a union of intervals of the store's time: each entry that names it keeps it from its own time
 * on, for as long as the branch is open and the policy in force says so. Where the union has a gap, the version was dropped at the gap's
 * start; whether the next interval brings it back is rule 3.
 *
 * Two graces, both functions of time. Collectors wait for the *long* one: that of the newest policy entry, or a longer
 * one before it until that has passed since it was replaced. Writers count on no more than the *newest* one, since a longer one before it may run
 * out at any moment. And since a grace can become longer again, something that was once too old stays so:
 * `aged(from, to, G, f)` is true if at any moment t between the two t - from >= f * G(t), not only at the last.
 *
 * INV-1: a collector leaves out only what was dropped a long grace before, and deletes only packs older than that.
 * INV-2: a writer begins to rely on something only while no collector that has read the logs can have left it out: versions that are kept, packs that
 *        are aged less than a quarter of the newest grace, names of versions dropped less than half of it ago.
 * INV-3: what was dropped comes back by an entry that names it, if it was not yet aged a long grace when the entry was made (its writer had
 *        looked half a grace before at the most, by INV-2 and the publish limit), or by itself (a longer retention, a branch opened again)
 *        if not yet half of the newest grace. All readers of the logs judge alike, whenever they look.
 * INV-4: an object appears in the store up to PUT_HELD_MAX_S after the time that it states. The publish limit leaves room for it; the
 *        other rules have more slack than that, since a grace has at least two hours.
 */
#include "repo/keep.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "util/map.h"
#include "util/mem.h"

#define FOREVER INT64_MAX
/* S3 refuses what was signed 15 minutes before, so that a PUT cannot be held up for longer. */
#define PUT_HELD_MAX_S 900

typedef int64_t ns_time; /* ns since 1970, saturating */

/* A step function of time: value[i] from start[i] on. */
struct step {
	ns_time start;
	int64_t grace;
};

struct interval {
	ns_time start, end; /* end is not in it */
	bool is_named;	    /* starts with the entry that names the version */
};

struct version {
	struct interval *intervals; /* only while building */
	size_t intervals_n, capacity_n;
	bool is_kept;
	ns_time dropped;
};

struct ds_keep {
	ns_time now;
	struct step *newest, *longest; /* in order of start, the first at INT64_MIN */
	size_t newest_n, longest_n;
	struct ds_map *versions; /* digest -> struct version */
};

static ns_time add(ns_time a, int64_t b)
{
	ns_time sum;

	if (__builtin_add_overflow(a, b, &sum))
		return b < 0 ? INT64_MIN : FOREVER;
	return sum;
}

static int64_t ns_of_s(uint64_t s)
{
	return s > INT64_MAX / DS_NS_PER_S ? FOREVER : (int64_t)(s * DS_NS_PER_S);
}

static ns_time ns_of(struct ds_time time)
{
	return ds_time_diff_ns(time, (struct ds_time){0});
}

static struct ds_time time_of(ns_time ns)
{
	return ds_time_add_ns((struct ds_time){0}, ns);
}

static uint64_t clamp_grace_s(uint64_t grace_s)
{
	return DS_MAX(grace_s, DS_GRACE_MIN_S);
}

uint64_t ds_keep_grace_s(const struct ds_policy_entry *policies, size_t policies_n,
			 struct ds_time now)
{
	/* Before the first entry the default was in force. */
	uint64_t grace_s =
		policies_n ? clamp_grace_s(policies[policies_n - 1].grace_s) : DS_GRACE_DEFAULT_S;

	for (size_t i = 0; i < policies_n; i++) {
		uint64_t before_s = i ? clamp_grace_s(policies[i - 1].grace_s) : DS_GRACE_DEFAULT_S;
		ns_time replaced = ns_of(policies[i].time);

		if (before_s > grace_s && ns_of(now) < add(replaced, ns_of_s(before_s)))
			grace_s = before_s;
	}
	return grace_s;
}

static int compare_times(const void *a, const void *b)
{
	const ns_time *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

/* How many policy entries were there at `t`. */
static size_t policies_at(const struct ds_keep_input *input, ns_time t)
{
	size_t n = 0;

	while (n < input->policies_n && ns_of(input->policies[n].time) <= t)
		n++;
	return n;
}

/* The two graces as step functions: they change where a policy was made and where a replaced one ran out. */
static int build_steps(struct ds_keep *keep, const struct ds_keep_input *input)
{
	size_t n = input->policies_n;
	_ds_cleanup_free_ ns_time *starts = ds_calloc(2 * n + 1, sizeof(*starts));

	keep->newest = ds_calloc(n + 1, sizeof(*keep->newest));
	keep->longest = ds_calloc(2 * n + 1, sizeof(*keep->longest));
	if (!starts || !keep->newest || !keep->longest)
		return -ENOMEM;
	keep->newest[0] = (struct step){INT64_MIN, ns_of_s(DS_GRACE_DEFAULT_S)};
	starts[0] = INT64_MIN;
	for (size_t i = 0; i < n; i++) {
		ns_time made = ns_of(input->policies[i].time);

		starts[2 * i + 1] = made;
		starts[2 * i + 2] = add(made, keep->newest[i].grace);
		keep->newest[i + 1] =
			(struct step){made, ns_of_s(clamp_grace_s(input->policies[i].grace_s))};
	}
	keep->newest_n = n + 1;
	keep->longest_n = 2 * n + 1;
	qsort(starts, keep->longest_n, sizeof(*starts), compare_times);
	for (size_t i = 0; i < keep->longest_n; i++)
		keep->longest[i] =
			(struct step){starts[i],
				      ns_of_s(ds_keep_grace_s(input->policies,
							      policies_at(input, starts[i]),
							      time_of(starts[i])))};
	return 0;
}

/* Whether t - from >= grace(t) / divisor at any t from `from` to `to`. */
static bool is_aged(const struct step *steps, size_t steps_n, ns_time from, ns_time to,
		    int64_t divisor)
{
	if (to < from)
		return false;
	for (size_t i = 0; i < steps_n; i++) {
		ns_time end = i + 1 < steps_n ? DS_MIN(steps[i + 1].start, to) : to;

		if (steps[i].start > to)
			break;
		if (end >= from && end >= add(from, steps[i].grace / divisor))
			return true;
	}
	return false;
}

static bool is_aged_newest(const struct ds_keep *keep, ns_time from, ns_time to, int64_t divisor)
{
	return is_aged(keep->newest, keep->newest_n, from, to, divisor);
}

static bool is_aged_long(const struct ds_keep *keep, ns_time from, ns_time to)
{
	return is_aged(keep->longest, keep->longest_n, from, to, 1);
}

static void version_free(void *value)
{
	struct version *version = value;

	ds_free(version->intervals);
	ds_free(version);
}

static int add_interval(struct ds_keep *keep, const struct ds_digest *id, ns_time start,
			ns_time end, bool is_named)
{
	struct version *version = ds_map_get(keep->versions, id->bytes, DS_DIGEST_LEN);
	struct interval *last, *grown;
	int r;

	if (!version) {
		version = ds_calloc(1, sizeof(*version));
		if (!version)
			return -ENOMEM;
		r = ds_map_put(keep->versions, id->bytes, DS_DIGEST_LEN, version, NULL);
		if (r < 0) {
			ds_free(version);
			return r;
		}
	}
	last = version->intervals_n ? &version->intervals[version->intervals_n - 1] : NULL;
	if (last && !is_named && start == last->end) {
		last->end = end;
		return 0;
	}
	if (version->intervals_n == version->capacity_n) {
		size_t capacity_n = version->capacity_n ? 2 * version->capacity_n : 1;

		grown = ds_reallocarray(version->intervals, capacity_n, sizeof(*grown));
		if (!grown)
			return -ENOMEM;
		version->intervals = grown;
		version->capacity_n = capacity_n;
	}
	version->intervals[version->intervals_n++] = (struct interval){start, end, is_named};
	return 0;
}

/* One log: entries[0..n). */
struct log {
	const struct ds_ref_entry *entries;
	size_t n;
};

static ns_time log_time(const struct log *log, size_t i)
{
	return i < log->n ? ns_of(log->entries[i].time) : FOREVER;
}

/* That the entry names its version, even if it keeps it for no time at all. */
static int add_name(struct ds_keep *keep, const struct log *log, size_t idx)
{
	ns_time at = log_time(log, idx);

	return add_interval(keep, &log->entries[idx].version, at, at, true);
}

/* Adds [start, end) of an entry, less the times at which the branch was closed. */
static int add_open(struct ds_keep *keep, const struct log *log, size_t idx, ns_time start,
		    ns_time end)
{
	int r;

	for (size_t i = idx + 1; i < log->n && start < end; i++) {
		ns_time closed = log_time(log, i);

		if (!log->entries[i].is_deleted || log_time(log, i + 1) <= start)
			continue;
		if (closed >= end)
			break;
		if (closed > start) {
			r = add_interval(keep, &log->entries[idx].version, start, closed, false);
			if (r < 0)
				return r;
		}
		start = log_time(log, i + 1);
	}
	if (start >= end)
		return 0;
	return add_interval(keep, &log->entries[idx].version, start, end, false);
}

/* Until when a branch's entry would keep its version if `policy` (NULL: keep everything) were always in force. */
static ns_time keeps_until(const struct log *log, size_t idx, const struct ds_policy_entry *policy)
{
	ns_time superseded = log_time(log, idx + 1);
	ns_time end = superseded;

	if (!policy || (!policy->has_keep_entries && !policy->has_keep_s))
		return FOREVER;
	if (policy->has_keep_entries && policy->keep_entries > log->n - idx)
		return FOREVER;
	if (policy->has_keep_entries && policy->keep_entries > 0)
		end = DS_MAX(end, log_time(log, idx + (size_t)policy->keep_entries));
	if (policy->has_keep_s)
		end = DS_MAX(end, add(superseded, ns_of_s(policy->keep_s)));
	return end;
}

static int add_branch(struct ds_keep *keep, const struct ds_keep_input *input,
		      const struct log *log)
{
	for (size_t i = 0; i < log->n; i++) {
		int r;

		if (log->entries[i].is_deleted)
			continue;
		r = add_name(keep, log, i);
		if (r < 0)
			return r;
		for (size_t p = 0; p <= input->policies_n; p++) {
			const struct ds_policy_entry *policy = p ? &input->policies[p - 1] : NULL;
			ns_time start = policy ? ns_of(policy->time) : INT64_MIN;
			ns_time end =
				p < input->policies_n ? ns_of(input->policies[p].time) : FOREVER;

			start = DS_MAX(start, log_time(log, i));
			end = DS_MIN(end, keeps_until(log, i, policy));
			r = start < end ? add_open(keep, log, i, start, end) : 0;
			if (r < 0)
				return r;
		}
	}
	return 0;
}

static int add_tag(struct ds_keep *keep, const struct log *log)
{
	int r;

	if (log->entries[0].is_deleted)
		return -DS_E_MALFORMED;
	r = add_name(keep, log, 0);
	if (r < 0)
		return r;
	return add_interval(keep, &log->entries[0].version, log_time(log, 0), log_time(log, 1),
			    false);
}

/* A change of how many entries keep a version. */
struct event {
	ns_time at;
	int change;
	bool is_named;
};

static int compare_events(const void *a, const void *b)
{
	const struct event *x = a, *y = b;

	return x->at < y->at ? -1 : x->at > y->at;
}

/* Walks through the version's intervals and leaves its state at `now`. */
static int settle(const struct ds_keep *keep, struct version *version)
{
	size_t n = 2 * version->intervals_n, i = 0;
	_ds_cleanup_free_ struct event *events = ds_calloc(n, sizeof(*events));
	bool is_kept = false, is_first = true;
	ns_time dropped = INT64_MIN;
	int keepers_n = 0;

	if (!events)
		return -ENOMEM;
	for (size_t k = 0; k < version->intervals_n; k++) {
		const struct interval *from = &version->intervals[k];

		events[2 * k] = (struct event){from->start, 1, from->is_named};
		events[2 * k + 1] = (struct event){from->end, -1, false};
	}
	qsort(events, n, sizeof(*events), compare_events);
	while (i < n && events[i].at <= keep->now) {
		ns_time at = events[i].at;
		bool is_named = false;

		for (; i < n && events[i].at == at; i++) {
			keepers_n += events[i].change;
			is_named |= events[i].is_named;
		}
		if (!is_first && !is_kept &&
		    (is_named ? is_aged_long(keep, dropped, at)
			      : keepers_n == 0 || is_aged_newest(keep, dropped, at, 2)))
			continue; /* it stays dropped */
		is_first = false;
		is_kept = keepers_n > 0;
		if (!is_kept)
			dropped = at;
	}
	version->is_kept = is_kept;
	version->dropped = dropped;
	ds_free(version->intervals);
	version->intervals = NULL;
	version->intervals_n = version->capacity_n = 0;
	return 0;
}

static bool is_same_log(const struct ds_ref_entry *a, const struct ds_ref_entry *b)
{
	return a->kind == b->kind && strcmp(a->name, b->name) == 0;
}

static int add_logs(struct ds_keep *keep, const struct ds_keep_input *input)
{
	for (size_t i = 0; i < input->entries_n;) {
		struct log log = {.entries = &input->entries[i]};
		int r;

		while (i < input->entries_n && is_same_log(&input->entries[i], log.entries)) {
			const struct ds_ref_entry *entry = &input->entries[i++];

			if (entry->number != ++log.n)
				return -DS_E_MALFORMED;
			if (log.n > 1 && ds_time_compare(entry->time, entry[-1].time) < 0)
				return -DS_E_MALFORMED;
			keep->now = DS_MAX(keep->now, ns_of(entry->time));
		}
		r = log.entries->kind == DS_REF_TAG ? add_tag(keep, &log)
						    : add_branch(keep, input, &log);
		if (r < 0)
			return r;
	}
	return 0;
}

int ds_keep_new(const struct ds_keep_input *input, struct ds_time now, struct ds_keep **ret_keep)
{
	struct ds_keep *keep = ds_calloc(1, sizeof(*keep));
	size_t cursor = 0;
	void *version;
	int r;

	if (!keep)
		return -ENOMEM;
	/* What has been read is of the past, even if the clock that we learned is a little behind. */
	keep->now = ns_of(now);
	for (size_t i = 0; i < input->policies_n; i++)
		keep->now = DS_MAX(keep->now, ns_of(input->policies[i].time));
	r = ds_map_new(&keep->versions);
	if (r == 0)
		r = build_steps(keep, input);
	for (size_t i = 1; r == 0 && i < input->policies_n; i++) {
		if (ds_time_compare(input->policies[i].time, input->policies[i - 1].time) < 0)
			r = -DS_E_MALFORMED;
	}
	if (r == 0)
		r = add_logs(keep, input);
	while (r == 0 && ds_map_each(keep->versions, &cursor, NULL, NULL, &version))
		r = settle(keep, version);
	if (r < 0) {
		ds_keep_free(keep);
		return r;
	}
	*ret_keep = keep;
	return 0;
}

struct ds_keep *ds_keep_free(struct ds_keep *keep)
{
	if (!keep)
		return NULL;
	ds_map_free(keep->versions, version_free);
	ds_free(keep->newest);
	ds_free(keep->longest);
	ds_free(keep);
	return NULL;
}

enum ds_keep_state ds_keep_state_of(const struct ds_keep *keep, const struct ds_digest *version,
				    struct ds_time *ret_dropped)
{
	const struct version *found = ds_map_get(keep->versions, version->bytes, DS_DIGEST_LEN);

	if (!found)
		return DS_KEEP_UNKNOWN;
	if (found->is_kept)
		return DS_KEEP_KEPT;
	if (ret_dropped)
		*ret_dropped = time_of(found->dropped);
	return DS_KEEP_DROPPED;
}

bool ds_keep_is_base(const struct ds_keep *keep, const struct ds_digest *version)
{
	return ds_keep_state_of(keep, version, NULL) == DS_KEEP_KEPT;
}

bool ds_keep_may_name(const struct ds_keep *keep, const struct ds_digest *version)
{
	struct ds_time dropped;

	switch (ds_keep_state_of(keep, version, &dropped)) {
	case DS_KEEP_KEPT:
		return true;
	case DS_KEEP_DROPPED:
		return !is_aged_newest(keep, ns_of(dropped), keep->now, 2);
	case DS_KEEP_UNKNOWN:
		break;
	}
	return false;
}

bool ds_keep_must_mark(const struct ds_keep *keep, const struct ds_digest *version)
{
	struct ds_time dropped;

	switch (ds_keep_state_of(keep, version, &dropped)) {
	case DS_KEEP_KEPT:
		return true;
	case DS_KEEP_DROPPED:
		return !is_aged_long(keep, ns_of(dropped), keep->now);
	case DS_KEEP_UNKNOWN:
		break;
	}
	return false;
}

bool ds_keep_is_young(const struct ds_keep *keep, struct ds_time modified)
{
	return !is_aged_newest(keep, ns_of(modified), keep->now, 4);
}

static int64_t long_grace(const struct ds_keep *keep)
{
	size_t i = keep->longest_n;

	while (keep->longest[i - 1].start > keep->now)
		i--;
	return keep->longest[i - 1].grace;
}

bool ds_keep_may_delete(const struct ds_keep *keep, struct ds_time modified)
{
	return keep->now > add(ns_of(modified), long_grace(keep));
}

struct ds_time ds_keep_publish_limit(const struct ds_keep *keep, struct ds_time start)
{
	int64_t grace = keep->newest[keep->newest_n - 1].grace;

	return time_of(add(ns_of(start), grace / 2 - ns_of_s(PUT_HELD_MAX_S)));
}

uint64_t ds_keep_grace_of(const struct ds_keep *keep)
{
	return (uint64_t)long_grace(keep) / DS_NS_PER_S;
}
