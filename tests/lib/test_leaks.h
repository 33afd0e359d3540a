/*
 * For a suite's .fini: ends the test if something leaked, which a Criterion test by itself only
 * prints. TestSuite(name, .fini = test_leaks_abort);
 */
#pragma once

#include <stdlib.h>

#if defined(__SANITIZE_ADDRESS__)
#define TEST_HAS_LSAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define TEST_HAS_LSAN 1
#endif
#endif

#ifdef TEST_HAS_LSAN
#include <sanitizer/lsan_interface.h>
#endif

static inline void test_leaks_abort(void)
{
#ifdef TEST_HAS_LSAN
	if (__lsan_do_recoverable_leak_check())
		abort();
#endif
}
