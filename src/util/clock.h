/*
 * Time. Durations and deadlines are monotonic nanoseconds (uint64_t, CLOCK_MONOTONIC), so that a
 * jump of the wall clock moves none of them; instants that people and other hosts see are struct
 * ds_time (UTC). Code that a test must steer takes a struct ds_clock.
 *
 * Threads: any. Nothing here blocks but ds_sleep_ms.
 */
#ifndef DS_UTIL_CLOCK_H
#define DS_UTIL_CLOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DS_NS_PER_S	 1000000000u
#define DS_NS_PER_MS	 1000000u
#define DS_DEADLINE_NONE UINT64_MAX

struct ds_time {
	int64_t s;   /* seconds since 1970-01-01T00:00:00Z, may be negative */
	uint32_t ns; /* 0..999999999, counts forward */
};

struct ds_clock {
	uint64_t (*mono_ns)(void *ctx);
	struct ds_time (*real)(void *ctx);
	void *ctx;
};

/* The machine's clocks. */
extern const struct ds_clock ds_clock_system;

uint64_t ds_mono_ns(void);
struct ds_time ds_real_now(void);
/* now + ms, saturating at DS_DEADLINE_NONE. */
uint64_t ds_deadline_in_ms(uint64_t ms);
void ds_sleep_ms(uint64_t ms);

int ds_time_compare(struct ds_time a, struct ds_time b);
struct ds_time ds_time_add_ns(struct ds_time t, int64_t ns);
/* a - b in ns, saturating. */
int64_t ds_time_diff_ns(struct ds_time a, struct ds_time b);

/* "2026-11-21T03:47:27.123Z": UTC, milliseconds (cut, not rounded). Years 0000..9999; beyond them
 * the nearest that fits. Room for 32 bytes. Returns buf. */
#define DS_TIME_TEXT_MAX 32
const char *ds_time_format(struct ds_time t, char *buf);
/* The same with nine digits of the second: "2026-11-21T03:47:27.123456789Z". */
const char *ds_time_format_ns(struct ds_time t, char *buf);

/*
 * RFC 3339: "2026-11-21", "2026-11-21T03:47", "2026-11-21T03:47:27[.fraction]", with 'T', 't' or a
 * space, and an optional zone "Z" or "+hh:mm" (none: UTC). A leap second counts as the next second.
 * `ret_is_date` (may be NULL) says that no time of day was given; the instant is the day's start
 * then. -EINVAL.
 */
int ds_time_parse(const char *text, struct ds_time *ret_time, bool *ret_is_date);

/* IMF-fixdate of RFC 9110, "Sat, 21 Nov 2026 03:47:27 GMT". -EINVAL. */
int ds_time_parse_http(const char *text, struct ds_time *ret_time);

#endif
