/*
 * The fault proxy (tests/lib/fault_proxy.py) for tests in C: starts one, changes its rules, reads
 * its counts. The proxy ends by itself with the process that started it. Every call blocks for
 * some milliseconds; a failure is printed to stderr and returned as a negative errno, since the
 * test cannot go on without.
 */
#pragma once

#include <stdint.h>

struct test_proxy {
	char url[64];	  /* what a client uses as its endpoint */
	char control[64]; /* the proxy's control server, of the form http://127.0.0.1:PORT */
};

/*
 * upstream: HOST:PORT or http://HOST:PORT, such as the value of AWS_ENDPOINT_URL; NULL for none
 * (then only faults that answer by themselves make sense).
 */
int test_proxy_start(const char *upstream, struct test_proxy *ret_proxy);

/* Ends it; what it held is reset. */
int test_proxy_stop(const struct test_proxy *proxy);

/* Replaces the rules: a JSON list, "[]" for none. Their counts start anew; what is held goes on. */
int test_proxy_rules(const struct test_proxy *proxy, const char *json);

/*
 * One of the proxy's counts: "requests", "delivered", "delivered_ever", "held", "open",
 * "connections", "errors". A test that injects faults asserts on "delivered".
 */
int test_proxy_get(const struct test_proxy *proxy, const char *name, uint64_t *ret_value);

/* Waits until a count has reached a value, at most timeout_ms: -ETIMEDOUT then. */
int test_proxy_wait(const struct test_proxy *proxy, const char *name, uint64_t value,
		    unsigned int timeout_ms);
