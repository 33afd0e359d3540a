/*
 * What every Criterion suite declares: a leak fails it (Criterion alone only prints the report).
 *
 *	DS_SUITE(block_cache);
 *	Test(block_cache, evict_skips_pinned_images) { ... }
 */
#pragma once

#include <criterion/criterion.h>
#include <stdlib.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/lsan_interface.h>
static void ds_suite_fini(void)
{
	if (__lsan_do_recoverable_leak_check())
		abort();
}
#else
static void ds_suite_fini(void)
{
}
#endif

#define DS_SUITE(name) TestSuite(name, .fini = ds_suite_fini)
