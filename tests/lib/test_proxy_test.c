/* The C side of the fault proxy; what each fault does is fault_proxy_test.py's business. */
#include "test_proxy.h"

#include <criterion/criterion.h>
#include <errno.h>

Test(test_proxy, rules_and_counts_reach_the_proxy)
{
	struct test_proxy proxy;
	uint64_t n = 99;

	cr_assert_eq(test_proxy_start(NULL, &proxy), 0);
	cr_assert_eq(strncmp(proxy.url, "http://127.0.0.1:", 17), 0);
	cr_assert_eq(test_proxy_rules(&proxy, "[{\"fault\": \"hang\"}]"), 0);
	cr_assert_eq(test_proxy_get(&proxy, "delivered", &n), 0);
	cr_assert_eq(n, 0);
	cr_assert_eq(test_proxy_wait(&proxy, "requests", 0, 0), 0);
	cr_assert_eq(test_proxy_wait(&proxy, "requests", 1, 20), -ETIMEDOUT);
	cr_assert_eq(test_proxy_stop(&proxy), 0);
}

Test(test_proxy, refused_rules_are_an_error)
{
	struct test_proxy proxy;
	uint64_t n;

	cr_assert_eq(test_proxy_start(NULL, &proxy), 0);
	cr_assert_eq(test_proxy_rules(&proxy, "[{\"fault\": \"none such\"}]"), -EPROTO);
	cr_assert_eq(test_proxy_get(&proxy, "no such count", &n), -EPROTO);
	cr_assert_eq(test_proxy_stop(&proxy), 0);
}
