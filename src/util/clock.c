#include "util/clock.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static uint64_t system_mono_ns(void *ctx)
{
	struct timespec ts;

	(void)ctx;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * DS_NS_PER_S + (uint64_t)ts.tv_nsec;
}

static struct ds_time system_real(void *ctx)
{
	struct timespec ts;

	(void)ctx;
	clock_gettime(CLOCK_REALTIME, &ts);
	return (struct ds_time){.s = ts.tv_sec, .ns = (uint32_t)ts.tv_nsec};
}

const struct ds_clock ds_clock_system = {.mono_ns = system_mono_ns, .real = system_real};

uint64_t ds_mono_ns(void)
{
	return system_mono_ns(NULL);
}

struct ds_time ds_real_now(void)
{
	return system_real(NULL);
}

uint64_t ds_deadline_in_ms(uint64_t ms)
{
	uint64_t ns;

	if (__builtin_mul_overflow(ms, DS_NS_PER_MS, &ns) ||
	    __builtin_add_overflow(ns, ds_mono_ns(), &ns))
		return DS_DEADLINE_NONE;
	return ns;
}

void ds_sleep_ms(uint64_t ms)
{
	struct timespec ts = {.tv_sec = (time_t)(ms / 1000),
			      .tv_nsec = (long)(ms % 1000) * 1000000};

	while (nanosleep(&ts, &ts) < 0 && errno == EINTR)
		;
}

int ds_time_compare(struct ds_time a, struct ds_time b)
{
	if (a.s != b.s)
		return a.s < b.s ? -1 : 1;
	return a.ns == b.ns ? 0 : a.ns < b.ns ? -1 : 1;
}

struct ds_time ds_time_add_ns(struct ds_time t, int64_t ns)
{
	int64_t s = ns / (int64_t)DS_NS_PER_S;
	int64_t rest = ns % (int64_t)DS_NS_PER_S + t.ns;

	if (rest < 0) {
		rest += DS_NS_PER_S;
		s--;
	} else if (rest >= (int64_t)DS_NS_PER_S) {
		rest -= DS_NS_PER_S;
		s++;
	}
	if (__builtin_add_overflow(t.s, s, &t.s))
		t.s = s < 0 ? INT64_MIN : INT64_MAX;
	t.ns = (uint32_t)rest;
	return t;
}

int64_t ds_time_diff_ns(struct ds_time a, struct ds_time b)
{
	__int128 diff = ((__int128)a.s - b.s) * DS_NS_PER_S + ((__int128)a.ns - b.ns);

	if (diff > INT64_MAX)
		return INT64_MAX;
	if (diff < INT64_MIN)
		return INT64_MIN;
	return (int64_t)diff;
}

/* Days since 1970-01-01 of a date of the proleptic Gregorian calendar (H. Hinnant, "chrono-
 * compatible low-level date algorithms", days_from_civil). */
static int64_t days_of(int64_t year, unsigned month, unsigned day)
{
	int64_t y = month <= 2 ? year - 1 : year;
	int64_t era = (y >= 0 ? y : y - 399) / 400;
	int64_t yoe = y - era * 400;
	int64_t doy = (153 * ((int64_t)month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;

	return era * 146097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719468;
}

static unsigned days_in(int64_t year, unsigned month)
{
	static const unsigned char days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
	bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;

	return days[month - 1] + (month == 2 && leap ? 1 : 0);
}

static const char *format(struct ds_time t, char *buf, bool with_ns)
{
	unsigned ns;
	time_t s = (time_t)t.s;
	struct tm tm;

	/* Years 0000 and 9999 are as far as RFC 3339 goes. */
	if (t.s < -62167219200)
		s = -62167219200, t.ns = 0;
	if (t.s > 253402300799)
		s = 253402300799, t.ns = 999999999;
	gmtime_r(&s, &tm);
	ns = t.ns % 1000000000u;
	snprintf(buf, DS_TIME_TEXT_MAX, "%04u-%02u-%02uT%02u:%02u:%02u.%0*uZ",
		 (unsigned)(tm.tm_year + 1900) % 10000u, (unsigned)(tm.tm_mon + 1) % 100u,
		 (unsigned)tm.tm_mday % 100u, (unsigned)tm.tm_hour % 100u,
		 (unsigned)tm.tm_min % 100u, (unsigned)tm.tm_sec % 100u, with_ns ? 9 : 3,
		 with_ns ? ns : ns / 1000000u);
	return buf;
}

const char *ds_time_format(struct ds_time t, char *buf)
{
	return format(t, buf, false);
}

const char *ds_time_format_ns(struct ds_time t, char *buf)
{
	return format(t, buf, true);
}

/* Exactly n digits; -1 if there are not so many. */
static int64_t digits(const char **at, unsigned n)
{
	int64_t value = 0;

	for (unsigned i = 0; i < n; i++) {
		if (**at < '0' || **at > '9')
			return -1;
		value = value * 10 + (*(*at)++ - '0');
	}
	return value;
}

static bool take(const char **at, char c)
{
	if (**at != c)
		return false;
	(*at)++;
	return true;
}

static int parse_zone(const char **at, int64_t *ret_offset_s)
{
	int64_t hour, minute, sign;

	*ret_offset_s = 0;
	if (!**at || take(at, 'Z') || take(at, 'z'))
		return 0;
	if (**at != '+' && **at != '-')
		return -EINVAL;
	sign = *(*at)++ == '-' ? -1 : 1;
	hour = digits(at, 2);
	if (hour < 0 || hour > 23 || !take(at, ':'))
		return -EINVAL;
	minute = digits(at, 2);
	if (minute < 0 || minute > 59)
		return -EINVAL;
	*ret_offset_s = sign * (hour * 3600 + minute * 60);
	return 0;
}

int ds_time_parse(const char *text, struct ds_time *ret_time, bool *ret_is_date)
{
	int64_t year, month, day, hour = 0, minute = 0, second = 0, offset_s = 0;
	const char *at = text;
	bool is_date = true;
	uint32_t ns = 0;

	year = digits(&at, 4);
	if (year < 0 || !take(&at, '-'))
		return -EINVAL;
	month = digits(&at, 2);
	if (month < 1 || month > 12 || !take(&at, '-'))
		return -EINVAL;
	day = digits(&at, 2);
	if (day < 1 || day > days_in(year, (unsigned)month))
		return -EINVAL;
	if (*at) {
		is_date = false;
		if (!take(&at, 'T') && !take(&at, 't') && !take(&at, ' '))
			return -EINVAL;
		hour = digits(&at, 2);
		if (hour < 0 || hour > 23 || !take(&at, ':'))
			return -EINVAL;
		minute = digits(&at, 2);
		if (minute < 0 || minute > 59)
			return -EINVAL;
		if (take(&at, ':')) {
			second = digits(&at, 2);
			if (second < 0 || second > 60)
				return -EINVAL;
			if (take(&at, '.')) {
				uint32_t scale = 100000000;

				if (*at < '0' || *at > '9')
					return -EINVAL;
				for (; *at >= '0' && *at <= '9'; at++, scale /= 10)
					ns += (uint32_t)(*at - '0') * scale;
			}
		}
		if (parse_zone(&at, &offset_s) < 0)
			return -EINVAL;
	}
	if (*at)
		return -EINVAL;
	ret_time->s = days_of(year, (unsigned)month, (unsigned)day) * 86400 + hour * 3600 +
		      minute * 60 + second - offset_s;
	ret_time->ns = ns;
	if (ret_is_date)
		*ret_is_date = is_date;
	return 0;
}

static const char *const month_names[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
					  "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};

int ds_time_parse_http(const char *text, struct ds_time *ret_time)
{
	int64_t day, year, hour, minute, second;
	unsigned month = 0;
	const char *at = text;

	if (strlen(text) != 29 || text[3] != ',' || text[4] != ' ')
		return -EINVAL;
	at += 5;
	day = digits(&at, 2);
	if (!take(&at, ' '))
		return -EINVAL;
	while (month < 12 && strncmp(at, month_names[month], 3) != 0)
		month++;
	if (month == 12)
		return -EINVAL;
	at += 3;
	if (!take(&at, ' '))
		return -EINVAL;
	year = digits(&at, 4);
	if (!take(&at, ' '))
		return -EINVAL;
	hour = digits(&at, 2);
	if (!take(&at, ':'))
		return -EINVAL;
	minute = digits(&at, 2);
	if (!take(&at, ':'))
		return -EINVAL;
	second = digits(&at, 2);
	if (strcmp(at, " GMT") != 0 || year < 1 || day < 1 || day > days_in(year, month + 1) ||
	    hour < 0 || hour > 23 || minute < 0 || minute > 59 || second < 0 || second > 60)
		return -EINVAL;
	ret_time->s = days_of(year, month + 1, (unsigned)day) * 86400 + hour * 3600 + minute * 60 +
		      second;
	ret_time->ns = 0;
	return 0;
}
