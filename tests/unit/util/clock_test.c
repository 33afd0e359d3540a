#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "test_leaks.h"
#include "util/clock.h"
#include "util/mem.h"
#include "util/random.h"

TestSuite(clock, .fini = test_leaks_abort);

/* Seconds computed by date(1). */
Test(clock, times_are_read_with_zone_fraction_and_leap_second)
{
	static const struct {
		const char *text;
		int64_t s;
		uint32_t ns;
		bool is_date;
	} good[] = {
		{"1970-01-01", 0, 0, true},
		{"2026-11-21", 1795219200, 0, true},
		{"2026-11-21T03:47", 1795232820, 0, false},
		{"2026-11-21T03:47:27", 1795232847, 0, false},
		{"2026-11-21t03:47:27z", 1795232847, 0, false},
		{"2026-11-21 03:47:27.123Z", 1795232847, 123000000, false},
		{"2026-11-21T03:47:27.1234567899Z", 1795232847, 123456789, false},
		{"2026-11-21T03:47:27+01:30", 1795232847 - 5400, 0, false},
		{"2026-11-21T03:47:27-00:00", 1795232847, 0, false},
		{"2026-11-20T23:47:27-04:00", 1795232847, 0, false},
		{"2024-02-29", 1709164800, 0, true},
		{"2000-02-29", 951782400, 0, true},
		{"2038-01-19T03:14:08Z", 2147483648, 0, false},
		{"1969-12-31T23:59:59.5Z", -1, 500000000, false},
		{"1900-03-01", -2203891200, 0, true},
		{"2016-12-31T23:59:60Z", 1483228800, 0, false},
		{"9999-12-31T23:59:59Z", 253402300799, 0, false},
		{"0000-01-01", -62167219200, 0, true},
	};

	for (size_t i = 0; i < DS_ARRAY_SIZE(good); i++) {
		struct ds_time t = {0};
		bool is_date = !good[i].is_date;

		cr_assert_eq(ds_time_parse(good[i].text, &t, &is_date), 0, "%s", good[i].text);
		cr_assert_eq(t.s, good[i].s, "%s: %lld", good[i].text, (long long)t.s);
		cr_assert_eq(t.ns, good[i].ns, "%s", good[i].text);
		cr_assert_eq(is_date, good[i].is_date, "%s", good[i].text);
		cr_assert_eq(ds_time_parse(good[i].text, &t, NULL), 0);
	}
}

Test(clock, what_is_not_a_time_is_refused)
{
	static const char *const bad[] = {
		"",
		"2026",
		"2026-11",
		"2026-11-",
		"2026-1-21",
		"26-11-21",
		"2026-13-01",
		"2026-00-01",
		"2026-11-31",
		"2026-11-00",
		"2025-02-29",
		"1900-02-29",
		"2026-11-21T",
		"2026-11-21T03",
		"2026-11-21T24:00",
		"2026-11-21T03:60",
		"2026-11-21T03:47:61",
		"2026-11-21T03:47:27.",
		"2026-11-21T03:47:27.Z",
		"2026-11-21T03:47:27+1:00",
		"2026-11-21T03:47:27+24:00",
		"2026-11-21T03:47:27+01:60",
		"2026-11-21T03:47:27+0100",
		"2026-11-21T03:47:27ZZ",
		"2026-11-21T03:47:27 Z",
		" 2026-11-21",
		"2026-11-21 ",
		"2026/11/21",
		"+026-11-21",
		"-026-11-21",
		"2026-11-21Z",
		"10000-01-01",
		"2026-11-2a",
		"yesterday",
		"42",
	};
	struct ds_time t = {.s = 7, .ns = 8};
	bool is_date = true;

	for (size_t i = 0; i < DS_ARRAY_SIZE(bad); i++)
		cr_assert_eq(ds_time_parse(bad[i], &t, &is_date), -EINVAL, "\"%s\"", bad[i]);
	cr_assert_eq(t.s, 7);
	cr_assert_eq(t.ns, 8);
}

Test(clock, L04_times_are_written_in_UTC_with_milliseconds_cut)
{
	static const struct {
		struct ds_time t;
		const char *text;
	} times[] = {
		{{0, 0}, "1970-01-01T00:00:00.000Z"},
		{{1795232847, 123999999}, "2026-11-21T03:47:27.123Z"},
		{{-1, 999999999}, "1969-12-31T23:59:59.999Z"},
		{{-62167219200, 0}, "0000-01-01T00:00:00.000Z"},
		{{-62167219201, 999999999}, "0000-01-01T00:00:00.000Z"},
		{{INT64_MIN, 0}, "0000-01-01T00:00:00.000Z"},
		{{253402300799, 0}, "9999-12-31T23:59:59.000Z"},
		{{253402300800, 0}, "9999-12-31T23:59:59.999Z"},
		{{INT64_MAX, 0}, "9999-12-31T23:59:59.999Z"},
	};
	char buf[DS_TIME_TEXT_MAX];

	setenv("TZ", "America/New_York", 1);
	for (size_t i = 0; i < DS_ARRAY_SIZE(times); i++)
		cr_assert_str_eq(ds_time_format(times[i].t, buf), times[i].text);
}

/* IMF-fixdate of RFC 9110. */
static void format_http(struct ds_time t, char *buf)
{
	time_t s = (time_t)t.s;
	struct tm tm;
	size_t n;

	gmtime_r(&s, &tm);
	n = strftime(buf, DS_TIME_TEXT_MAX, "%a, %d %b ", &tm);
	n += (size_t)snprintf(buf + n, DS_TIME_TEXT_MAX - n, "%04u",
			      (unsigned)(tm.tm_year + 1900) % 10000u);
	strftime(buf + n, DS_TIME_TEXT_MAX - n, " %H:%M:%S GMT", &tm);
}

Test(clock, what_was_written_is_read)
{
	struct ds_prng prng = {.state = ds_random_u64()};

	fprintf(stderr, "seed %llu\n", (unsigned long long)prng.state);
	for (int i = 0; i < 20000; i++) {
		struct ds_time t = {.s = (int64_t)ds_prng_below(&prng, 253402300800 + 62167219200) -
					 62167219200,
				    .ns = (uint32_t)ds_prng_below(&prng, 1000) * 1000000},
			       back;
		char buf[DS_TIME_TEXT_MAX];

		cr_assert_eq(ds_time_parse(ds_time_format(t, buf), &back, NULL), 0, "%s", buf);
		cr_assert_eq(ds_time_compare(t, back), 0, "%s", buf);
		if (t.s < -62135596800)
			continue; /* HTTP has no year 0 */
		t.ns = 0;
		format_http(t, buf);
		cr_assert_eq(ds_time_parse_http(buf, &back), 0, "%s", buf);
		cr_assert_eq(ds_time_compare(t, back), 0, "%s", buf);
	}
}

Test(clock, the_times_of_HTTP_are_read)
{
	static const char *const bad[] = {
		"",
		"Sat, 21 Nov 2026 03:47:27",
		"Sat, 21 Nov 2026 03:47:27 UTC",
		"Sat 21 Nov 2026 03:47:27 GMT ",
		"Sat, 1 Nov 2026 03:47:27 GMT",
		"Sat, 31 Nov 2026 03:47:27 GMT",
		"Sat, 21 nov 2026 03:47:27 GMT",
		"Sat, 21 Nov 2026 24:47:27 GMT",
		"Sat, 21 Nov 2026 03:60:27 GMT",
		"Saturday, 21-Nov-26 03:47:27 GMT",
		"Sat Nov 21 03:47:27 2026     ",
		"Sat, 00 Nov 2026 03:47:27 GMT",
		"Sat, 21 Nov 0000 03:47:27 GMT",
		"Sat, 21 Nov -026 03:47:27 GMT",
		"Sat, 21 Nov 2026 03:47:2x GMT",
	};
	struct ds_time t;

	cr_assert_eq(ds_time_parse_http("Sat, 21 Nov 2026 03:47:27 GMT", &t), 0);
	cr_assert_eq(t.s, 1795232847);
	cr_assert_eq(t.ns, 0);
	for (size_t i = 0; i < DS_ARRAY_SIZE(bad); i++)
		cr_assert_eq(ds_time_parse_http(bad[i], &t), -EINVAL, "\"%s\"", bad[i]);
}

Test(clock, differences_and_sums_saturate)
{
	struct ds_time t = {.s = 10, .ns = 1}, u;

	u = ds_time_add_ns(t, -2);
	cr_assert_eq(u.s, 9);
	cr_assert_eq(u.ns, 999999999);
	cr_assert_eq(ds_time_diff_ns(t, u), 2);
	cr_assert_eq(ds_time_diff_ns(u, t), -2);
	cr_assert_lt(ds_time_compare(u, t), 0);
	u = ds_time_add_ns(t, 3999999999);
	cr_assert_eq(u.s, 14);
	cr_assert_eq(u.ns, 0);
	cr_assert_eq(ds_time_diff_ns((struct ds_time){.s = INT64_MAX}, t), INT64_MAX);
	cr_assert_eq(ds_time_diff_ns((struct ds_time){.s = INT64_MIN}, t), INT64_MIN);
	cr_assert_eq(ds_time_add_ns((struct ds_time){.s = INT64_MAX}, INT64_MAX).s, INT64_MAX);
	cr_assert_eq(ds_time_add_ns((struct ds_time){.s = INT64_MIN}, INT64_MIN).s, INT64_MIN);
}

Test(clock, L02_deadlines_saturate_and_do_not_go_back)
{
	uint64_t before = ds_mono_ns(), deadline = ds_deadline_in_ms(1000);

	cr_assert_geq(deadline, before + 1000 * (uint64_t)DS_NS_PER_MS);
	cr_assert_eq(ds_deadline_in_ms(UINT64_MAX), DS_DEADLINE_NONE);
	cr_assert_eq(ds_deadline_in_ms(UINT64_MAX / DS_NS_PER_MS), DS_DEADLINE_NONE);
	cr_assert_geq(ds_mono_ns(), before);
	cr_assert_gt(ds_real_now().s, 1600000000);
	cr_assert_geq(ds_clock_system.mono_ns(ds_clock_system.ctx), before);
	cr_assert_gt(ds_clock_system.real(ds_clock_system.ctx).s, 1600000000);
}
