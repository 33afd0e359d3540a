/*
 * What every backend of the store must do, as functions over an open store, so that each backend's
 * suite runs the same ones. Each uses keys below "c/NAME/" only; the store need not be empty.
 *
 *	#define T(name) Test(store_dir, name) { ... contract_##name(store); ... }
 *	STORE_CONTRACT(T)
 */
#pragma once

#include "store/store.h"

#define STORE_CONTRACT(X)                                 \
	X(put_then_get_gives_the_same_bytes)              \
	X(get_of_what_is_not_there_is_absent)             \
	X(put_if_absent_never_replaces)                   \
	X(put_replaces)                                   \
	X(an_empty_object_is_an_object)                   \
	X(get_takes_exactly_the_range_that_was_asked)     \
	X(a_range_beyond_the_end_is_malformed)            \
	X(get_from_the_end_takes_what_there_is)           \
	X(the_buffers_maximum_bounds_a_get)               \
	X(head_tells_size_and_time)                       \
	X(list_is_in_byte_order_and_by_prefix)            \
	X(list_goes_on_after_a_key_and_stops_at_a_number) \
	X(list_of_an_odd_prefix_is_empty)                 \
	X(list_and_get_take_odd_keys)                     \
	X(delete_removes_and_may_be_repeated)             \
	X(put_refuses_keys_that_some_backend_cannot_hold) \
	X(of_16_racing_writers_exactly_one_wins)          \
	X(submitted_requests_are_done_once_each)          \
	X(a_cancelled_request_is_done_once)               \
	X(a_hastened_request_is_done_once)                \
	X(done_may_submit_again)                          \
	X(now_follows_what_was_written)                   \
	X(stats_count_requests_and_bytes)

#define STORE_CONTRACT_DECLARE(name) void contract_##name(struct ds_store *store);
STORE_CONTRACT(STORE_CONTRACT_DECLARE)

/* Aborts on a leak (a leak alone does not fail a Criterion test): for a suite's .fini. */
void test_leak_check(void);
