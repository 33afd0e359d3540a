#include <criterion/criterion.h>
#include <string.h>

#include "store_contract.h"
#include "util/mem.h"

TestSuite(store_memory, .fini = test_leak_check);

#define T(name)                                                           \
	Test(store_memory, name)                                          \
	{                                                                 \
		struct ds_store *store = NULL;                            \
                                                                          \
		cr_assert_eq(ds_store_memory_new(NULL, NULL, &store), 0); \
		contract_##name(store);                                   \
		cr_assert_null(ds_store_unref(store));                    \
	}
STORE_CONTRACT(T)

Test(store_memory, handles_that_share_see_the_same_objects)
{
	struct ds_store *a = NULL, *b = NULL;
	struct ds_buf buf = DS_BUF_INIT(10);

	cr_assert_eq(ds_store_memory_new(NULL, NULL, &a), 0);
	cr_assert_eq(ds_store_memory_new(a, NULL, &b), 0);
	cr_assert_eq(ds_store_put_if_absent(a, "k", "v", 1, NULL), 0);
	cr_assert_eq(ds_store_put_if_absent(b, "k", "w", 1, NULL), -DS_E_PRESENT);
	ds_store_unref(a);
	cr_assert_eq(ds_store_get(b, "k", &buf, NULL), 0);
	cr_assert_str_eq(ds_buf_str(&buf), "v");
	ds_buf_release(&buf);
	ds_store_unref(b);
}

static struct ds_time fake_now;

static struct ds_time fake_real(void *ctx)
{
	(void)ctx;
	return fake_now;
}

Test(store_memory, the_injected_clock_stamps_objects_and_refuses_old_signatures)
{
	struct ds_clock clock = {.mono_ns = ds_clock_system.mono_ns, .real = fake_real};
	struct ds_store_req put = {.op = DS_STORE_PUT,
				   .key = "k",
				   .body = "v",
				   .body_len_bytes = 1};
	struct ds_store_req head = {.op = DS_STORE_HEAD, .key = "k"};
	struct ds_store *store = NULL;
	struct ds_time now;

	fake_now = (struct ds_time){.s = 1000000};
	cr_assert_eq(ds_store_memory_new(NULL, &clock, &store), 0);
	put.signed_at = (struct ds_time){.s = 1000000 - 901};
	cr_assert_eq(ds_store_perform(store, &put), -DS_E_LATE);
	cr_assert_eq(ds_store_perform(store, &head), -DS_E_ABSENT);
	put.signed_at.s = 1000000 - 899;
	cr_assert_eq(ds_store_perform(store, &put), 0);
	fake_now.s = 2000000;
	cr_assert_eq(ds_store_perform(store, &head), 0);
	cr_assert_eq(head.modified.s, 1000000);
	cr_assert_eq(head.store_time.s, 2000000);
	cr_assert_eq(ds_store_now(store, &now, NULL), 0);
	cr_assert_eq(now.s, 2000000);
	ds_store_unref(store);
}

static int whole_life(void)
{
	struct ds_store_listing listing = {0};
	struct ds_store_req list = {.op = DS_STORE_LIST, .key = "", .listing = &listing};
	struct ds_buf buf = DS_BUF_INIT(1000);
	struct ds_store *store = NULL;
	int r = ds_store_memory_new(NULL, NULL, &store);

	for (int i = 0; i < 20 && r == 0; i++) {
		char key[2] = {(char)('a' + i), '\0'};

		r = ds_store_put_if_absent(store, key, "value", 5, NULL);
	}
	if (r == 0)
		r = ds_store_get(store, "c", &buf, NULL);
	if (r == 0)
		r = ds_store_perform(store, &list);
	cr_assert(r == 0 ? listing.objects_n == 20 : listing.objects_n == 0);
	ds_store_listing_release(&listing);
	ds_buf_release(&buf);
	ds_store_unref(store);
	return r;
}

Test(store_memory, J01_every_failing_allocation_is_an_error)
{
	uint64_t delivered_n = 0;

	for (int64_t n = 0;; n++) {
		uint64_t failed_n;
		int r;

		ds_mem_fail_after(n, 0);
		r = whole_life();
		failed_n = ds_mem_fail_after(-1, 0);
		delivered_n += failed_n;
		if (failed_n == 0) {
			cr_assert_eq(r, 0);
			break;
		}
		cr_assert_eq(r, -ENOMEM, "allocation %d: %s", (int)n, ds_strerror(r));
	}
	cr_assert_gt(delivered_n, 40);
}
