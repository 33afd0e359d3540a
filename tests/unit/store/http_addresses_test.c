#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <stdio.h>

#include "store/http_addresses.h"
#include "store_contract.h"
#include "util/clock.h"

TestSuite(http_addresses, .fini = test_leak_check);

#define SECOND ((uint64_t)DS_NS_PER_S)

static struct ds_http_addresses addresses;

static bool try_at(struct ds_http_tries *tries, const char *ip, uint64_t now_ns)
{
	struct sockaddr_in v4 = {.sin_family = AF_INET};
	struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};

	if (inet_pton(AF_INET, ip, &v4.sin_addr) == 1)
		return ds_http_addresses_try(&addresses, tries, (struct sockaddr *)&v4, now_ns);
	cr_assert_eq(inet_pton(AF_INET6, ip, &v6.sin6_addr), 1);
	return ds_http_addresses_try(&addresses, tries, (struct sockaddr *)&v6, now_ns);
}

/* Whether a transfer of its own would be let at it. */
static bool goes_to(const char *ip, uint64_t now_ns)
{
	struct ds_http_tries tries = {0};

	return try_at(&tries, ip, now_ns);
}

/* The first one does not answer. */
static void find_dead(const char *dead, const char *living, uint64_t now_ns)
{
	struct ds_http_tries tries = {0};

	cr_assert(try_at(&tries, dead, now_ns));
	cr_assert(try_at(&tries, living, now_ns));
	ds_http_addresses_worked(&addresses, &tries, living, now_ns);
}

Test(http_addresses, one_that_does_not_answer_is_passed_over_for_a_while)
{
	find_dead("10.0.0.1", "10.0.0.2", SECOND);
	cr_assert_not(goes_to("10.0.0.1", 2 * SECOND));
	cr_assert_not(goes_to("10.0.0.1", 60 * SECOND));
	cr_assert(goes_to("10.0.0.2", 2 * SECOND));
	cr_assert(goes_to("10.0.0.3", 2 * SECOND));
}

Test(http_addresses, after_that_one_at_a_time_tries_it_until_it_works)
{
	struct ds_http_tries tries = {0};

	find_dead("10.0.0.1", "10.0.0.2", SECOND);
	cr_assert(try_at(&tries, "10.0.0.1", 61 * SECOND));
	cr_assert_not(goes_to("10.0.0.1", 61 * SECOND));
	cr_assert_not(goes_to("10.0.0.1", 65 * SECOND));
	ds_http_addresses_worked(&addresses, &tries, "10.0.0.1", 65 * SECOND);
	cr_assert(goes_to("10.0.0.1", 65 * SECOND));
	cr_assert(goes_to("10.0.0.1", 65 * SECOND));
}

Test(http_addresses, the_only_one_is_never_passed_over)
{
	struct ds_http_tries tries = {0};

	for (unsigned i = 0; i < 10; i++) {
		cr_assert(goes_to("10.0.0.1", i * SECOND));
		ds_http_addresses_failed(&addresses, &tries);
	}
}

Test(http_addresses, when_nothing_answers_all_are_tried_again)
{
	struct ds_http_tries tries = {0};

	find_dead("10.0.0.1", "10.0.0.2", SECOND);
	cr_assert(try_at(&tries, "10.0.0.2", 2 * SECOND));
	cr_assert_not(try_at(&tries, "10.0.0.1", 2 * SECOND));
	cr_assert(goes_to("10.0.0.2", 2 * SECOND), "nothing was tried instead of it");
	ds_http_addresses_failed(&addresses, &tries);
	cr_assert(goes_to("10.0.0.1", 3 * SECOND));
	cr_assert(goes_to("10.0.0.2", 3 * SECOND));
}

Test(http_addresses, of_two_families_the_one_that_lost_is_passed_over)
{
	find_dead("fd00::1", "10.0.0.1", SECOND);
	cr_assert_not(goes_to("fd00::1", 2 * SECOND));
	cr_assert(goes_to("10.0.0.1", 2 * SECOND));
	/* The other one at the same time: one of both remains. */
	find_dead("10.0.0.1", "fd00::2", 2 * SECOND);
	cr_assert(goes_to("fd00::2", 2 * SECOND));
}

Test(http_addresses, more_dead_ones_than_can_be_noted_are_tried)
{
	char ip[32];

	for (unsigned i = 0; i < 2 * DS_HTTP_AVOIDED_MAX; i++) {
		snprintf(ip, sizeof(ip), "10.0.1.%u", i);
		find_dead(ip, "10.0.0.2", SECOND);
	}
	cr_assert_not(goes_to("10.0.1.0", 2 * SECOND));
	cr_assert(goes_to(ip, 2 * SECOND));
	/* There is room again once those are tried again. */
	find_dead(ip, "10.0.0.2", 100 * SECOND);
	cr_assert_not(goes_to(ip, 101 * SECOND));
}
