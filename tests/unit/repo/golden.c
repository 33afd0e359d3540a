#include "golden.h"

#include <criterion/criterion.h>
#include <stdio.h>

struct ds_store *golden_load(const char *name)
{
	struct ds_store_listing listing = {0};
	struct ds_store_req list = {.op = DS_STORE_LIST, .key = "", .listing = &listing};
	struct ds_store *from, *to;
	char path[4096];

	snprintf(path, sizeof(path), "%s/%s", TEST_GOLDEN, name);
	cr_assert_eq(ds_store_open(path, NULL, false, &from, NULL), 0, "%s", path);
	cr_assert_eq(ds_store_memory_new(NULL, NULL, &to), 0);
	cr_assert_eq(ds_store_perform(from, &list), 0);
	for (size_t i = 0; i < listing.objects_n; i++) {
		struct ds_buf buf = DS_BUF_INIT(1 << 20);
		const char *key = listing.objects[i].key;

		cr_assert_eq(ds_store_get(from, key, &buf, NULL), 0);
		cr_assert_eq(ds_store_put(to, key, buf.data, buf.len_bytes, NULL), 0);
		ds_buf_release(&buf);
	}
	ds_store_listing_release(&listing);
	ds_store_unref(from);
	return to;
}
