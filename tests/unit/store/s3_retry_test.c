#include <criterion/criterion.h>

#include "store/s3_retry.h"
#include "store_contract.h"
#include "util/clock.h"

TestSuite(s3_retry, .fini = test_leak_check);

#define SECOND ((uint64_t)DS_NS_PER_S)

Test(s3_retry, backoff_is_spread_between_nothing_and_its_bound)
{
	struct ds_s3_pacer pacer;

	ds_s3_pacer_init(&pacer, 64, 42, 0);
	for (unsigned attempt = 1; attempt < 40; attempt++) {
		uint64_t bound = attempt < 8 ? SECOND / 20 << (attempt - 1) : 5 * SECOND;
		uint64_t least = UINT64_MAX, most = 0;

		for (int i = 0; i < 1000; i++) {
			uint64_t ns = ds_s3_pacer_backoff_ns(&pacer, attempt);

			least = ns < least ? ns : least;
			most = ns > most ? ns : most;
		}
		cr_assert_leq(most, bound);
		cr_assert_gt(most, bound / 10 * 9);
		cr_assert_lt(least, bound / 10);
	}
}

Test(s3_retry, A04_in_an_outage_ten_retries_a_second_go_out)
{
	struct ds_s3_pacer pacer;
	uint64_t when = 0;
	unsigned taken_n = 0;

	ds_s3_pacer_init(&pacer, 64, 1, 0);
	for (uint64_t now = 0; now < 60 * SECOND; now += SECOND / 1000)
		taken_n += ds_s3_pacer_take(&pacer, now, &when);
	cr_assert_leq(taken_n, 100 + 60 * 10 + 1);
	cr_assert_geq(taken_n, 100 + 60 * 10 - 10);
	cr_assert_gt(when, 59 * SECOND);
}

Test(s3_retry, A03_half_of_all_requests_may_fail_with_hardly_a_wait)
{
	struct ds_s3_pacer pacer;
	struct ds_prng prng = {5};
	unsigned waits_n = 0;
	uint64_t when;

	ds_s3_pacer_init(&pacer, 64, 1, 0);
	for (int i = 0; i < 100000; i++) {
		/* 2,000 requests a second. */
		uint64_t now = (uint64_t)i * (SECOND / 2000);

		if (ds_prng_below(&prng, 100) < 50)
			waits_n += !ds_s3_pacer_take(&pacer, now, &when);
		else
			ds_s3_pacer_succeeded(&pacer, now);
	}
	cr_assert_lt(waits_n, 1000);
}

#define MS (SECOND / 1000)

/* Successes, one every `each_ns`, until there are so many connections; how long that took. */
static uint64_t rise(struct ds_s3_pacer *pacer, unsigned connections_n, uint64_t each_ns,
		     uint64_t *now)
{
	uint64_t began = *now;

	for (unsigned n = 0; ds_s3_pacer_connections(pacer) < connections_n; n++) {
		cr_assert_lt(n, 1000000);
		*now += each_ns;
		ds_s3_pacer_succeeded(pacer, *now);
	}
	return *now - began;
}

Test(s3_retry, T9_connections_fall_at_once_and_come_back)
{
	struct ds_s3_pacer pacer;
	uint64_t now = SECOND, took;

	ds_s3_pacer_init(&pacer, 64, 1, 0);
	cr_assert_eq(ds_s3_pacer_connections(&pacer), 64);
	ds_s3_pacer_slow_down(&pacer, false, 64, now - 2 * MS, now);
	cr_assert_eq(ds_s3_pacer_connections(&pacer), 32);
	/* Those that set out with it say the same. */
	for (unsigned i = 0; i < 63; i++)
		ds_s3_pacer_slow_down(&pacer, false, 63 - i, now - 2 * MS, now + MS);
	cr_assert_eq(ds_s3_pacer_connections(&pacer), 32);
	for (unsigned i = 1; i < 20; i++)
		ds_s3_pacer_slow_down(&pacer, false, 64, now + i * MS - 1, now + i * MS);
	cr_assert_eq(ds_s3_pacer_connections(&pacer), 1);
	now += SECOND;
	took = rise(&pacer, 64, MS, &now);
	cr_assert(took > 3 * SECOND && took < 4 * SECOND, "a fast store: %llu ms",
		  (unsigned long long)(took / MS));
	ds_s3_pacer_slow_down(&pacer, false, 8, now, now + MS);
	cr_assert_eq(ds_s3_pacer_connections(&pacer), 4, "half of what ran");
	now += MS;
	/* 4 + 5 + ... + 63 of them. */
	took = rise(&pacer, 64, 100 * MS, &now);
	cr_assert_eq(took, 2010 * 100 * MS, "a slow store: one for each round trip");
	for (unsigned i = 0; i < 1000; i++)
		ds_s3_pacer_succeeded(&pacer, now += SECOND);
	cr_assert_eq(ds_s3_pacer_connections(&pacer), 64);
}

Test(s3_retry, other_trouble_leaves_an_eighth)
{
	struct ds_s3_pacer pacer;

	ds_s3_pacer_init(&pacer, 64, 1, 0);
	for (unsigned i = 1; i < 20; i++)
		ds_s3_pacer_slow_down(&pacer, true, 64, i * SECOND, i * SECOND + 1);
	cr_assert_eq(ds_s3_pacer_connections(&pacer), 8);
	ds_s3_pacer_slow_down(&pacer, false, 8, 30 * SECOND, 31 * SECOND);
	cr_assert_eq(ds_s3_pacer_connections(&pacer), 4);
	ds_s3_pacer_slow_down(&pacer, true, 4, 32 * SECOND, 33 * SECOND);
	cr_assert_eq(ds_s3_pacer_connections(&pacer), 4, "it never rises by trouble");
	ds_s3_pacer_init(&pacer, 1, 1, 0);
	ds_s3_pacer_slow_down(&pacer, true, 1, SECOND, SECOND + 1);
	cr_assert_eq(ds_s3_pacer_connections(&pacer), 1);
}

Test(s3_retry, A05_retry_after_is_capped_or_ignored)
{
	static const char date[] = "Sat, 21 Nov 2026 03:47:27 GMT";

	cr_assert_eq(ds_s3_retry_after_ns("3", NULL), 3 * SECOND);
	cr_assert_eq(ds_s3_retry_after_ns("0", NULL), 0);
	cr_assert_eq(ds_s3_retry_after_ns("1000000000", NULL), 30 * SECOND);
	cr_assert_eq(ds_s3_retry_after_ns("99999999999999999999999", NULL), 30 * SECOND);
	cr_assert_eq(ds_s3_retry_after_ns("1e9", NULL), 0);
	cr_assert_eq(ds_s3_retry_after_ns("-1", NULL), 0);
	cr_assert_eq(ds_s3_retry_after_ns("abc", date), 0);
	cr_assert_eq(ds_s3_retry_after_ns("", date), 0);
	cr_assert_eq(ds_s3_retry_after_ns(NULL, date), 0);
	cr_assert_eq(ds_s3_retry_after_ns("Sat, 21 Nov 2026 03:47:32 GMT", date), 5 * SECOND);
	cr_assert_eq(ds_s3_retry_after_ns("Sat, 21 Nov 2026 03:47:20 GMT", date), 0);
	cr_assert_eq(ds_s3_retry_after_ns("Sat, 21 Nov 2037 03:47:20 GMT", date), 30 * SECOND);
	cr_assert_eq(ds_s3_retry_after_ns("Sat, 21 Nov 2026 03:47:32 GMT", NULL), 0);
}
