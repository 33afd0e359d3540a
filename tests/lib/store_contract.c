#include "store_contract.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/mem.h"
#include "util/random.h"

#if defined(__SANITIZE_ADDRESS__)
int __lsan_do_recoverable_leak_check(void);
#endif

void test_leak_check(void)
{
#if defined(__SANITIZE_ADDRESS__)
	if (__lsan_do_recoverable_leak_check())
		abort();
#endif
}

static void put_ok(struct ds_store *store, const char *key, const char *text)
{
	struct ds_diag diag = {0};
	char line[512];
	int r = ds_store_put(store, key, text, strlen(text), &diag);

	cr_assert_eq(r, 0, "put %s: %s", key, ds_diag_format(&diag, line, sizeof(line)));
}

static void expect_get(struct ds_store *store, const char *key, const char *text)
{
	struct ds_buf buf = DS_BUF_INIT(1 << 20);
	struct ds_diag diag = {0};
	char line[512];
	int r = ds_store_get(store, key, &buf, &diag);

	cr_assert_eq(r, 0, "get %s: %s", key, ds_diag_format(&diag, line, sizeof(line)));
	cr_assert_eq(buf.len_bytes, strlen(text));
	cr_assert_str_eq(ds_buf_str(&buf), text);
	ds_buf_release(&buf);
}

static int get_range(struct ds_store *store, const char *key, uint64_t off, uint64_t len,
		     bool from_end, struct ds_buf *into)
{
	struct ds_store_req req = {.op = DS_STORE_GET,
				   .key = key,
				   .off = off,
				   .len_bytes = len,
				   .from_end = from_end,
				   .into = into};

	return ds_store_perform(store, &req);
}

void contract_put_then_get_gives_the_same_bytes(struct ds_store *store)
{
	size_t len = 3000017; /* more than any buffer on the way */
	uint8_t *body = malloc(len);
	struct ds_prng prng = {1};
	struct ds_buf buf = DS_BUF_INIT(len + 5);

	for (size_t i = 0; i < len; i++)
		body[i] = (uint8_t)ds_prng_next(&prng);
	cr_assert_eq(ds_store_put_if_absent(store, "c/same/deep/er/big", body, len, NULL), 0);
	cr_assert_eq(ds_buf_append(&buf, "head:", 5), 0);
	cr_assert_eq(ds_store_get(store, "c/same/deep/er/big", &buf, NULL), 0);
	cr_assert_eq(buf.len_bytes, len + 5);
	cr_assert_arr_eq(buf.data, "head:", 5, "it is appended");
	cr_assert_arr_eq(buf.data + 5, body, len);
	ds_buf_release(&buf);
	free(body);
}

void contract_get_of_what_is_not_there_is_absent(struct ds_store *store)
{
	struct ds_buf buf = DS_BUF_INIT(100);
	struct ds_store_req head = {.op = DS_STORE_HEAD, .key = "c/absent/no"};
	struct ds_diag diag = {0};

	put_ok(store, "c/absent/dir/yes", "y");
	cr_assert_eq(ds_store_get(store, "c/absent/no", &buf, &diag), -DS_E_ABSENT);
	cr_assert_eq(diag.code, -DS_E_ABSENT);
	cr_assert(strstr(diag.object, "c/absent/no"));
	cr_assert_eq(ds_store_get(store, "c/absent/dir", &buf, NULL), -DS_E_ABSENT);
	cr_assert_eq(ds_store_get(store, "c/absent/dir/yes/no", &buf, NULL), -DS_E_ABSENT);
	cr_assert_eq(ds_store_perform(store, &head), -DS_E_ABSENT);
	cr_assert_eq(buf.len_bytes, 0);
	ds_buf_release(&buf);
}

void contract_put_if_absent_never_replaces(struct ds_store *store)
{
	cr_assert_eq(ds_store_put_if_absent(store, "c/once/k", "first", 5, NULL), 0);
	cr_assert_eq(ds_store_put_if_absent(store, "c/once/k", "second", 6, NULL), -DS_E_PRESENT);
	cr_assert_eq(ds_store_put_if_absent(store, "c/once/k", "first", 5, NULL), -DS_E_PRESENT);
	expect_get(store, "c/once/k", "first");
}

void contract_put_replaces(struct ds_store *store)
{
	put_ok(store, "c/replace/k", "first");
	put_ok(store, "c/replace/k", "second and longer");
	expect_get(store, "c/replace/k", "second and longer");
	put_ok(store, "c/replace/k", "3");
	expect_get(store, "c/replace/k", "3");
}

void contract_an_empty_object_is_an_object(struct ds_store *store)
{
	struct ds_buf buf = DS_BUF_INIT(10);

	cr_assert_eq(ds_store_put_if_absent(store, "c/empty/k", NULL, 0, NULL), 0);
	cr_assert_eq(ds_store_put_if_absent(store, "c/empty/k", NULL, 0, NULL), -DS_E_PRESENT);
	expect_get(store, "c/empty/k", "");
	cr_assert_eq(get_range(store, "c/empty/k", 0, 0, false, &buf), 0);
	cr_assert_eq(get_range(store, "c/empty/k", 0, 5, true, &buf), 0);
	cr_assert_eq(buf.len_bytes, 0);
	cr_assert_eq(get_range(store, "c/empty/k", 0, 1, false, &buf), -DS_E_MALFORMED);
	ds_buf_release(&buf);
}

void contract_get_takes_exactly_the_range_that_was_asked(struct ds_store *store)
{
	static const char text[] = "0123456789";

	put_ok(store, "c/range/k", text);
	for (uint64_t off = 0; off <= 10; off++) {
		for (uint64_t len = 0; off + len <= 11; len++) {
			struct ds_buf buf = DS_BUF_INIT(10);
			bool all = off + len == 11; /* the last one: all of the rest */
			uint64_t n = all ? 10 - off : len;

			cr_assert_eq(get_range(store, "c/range/k", off,
					       all ? DS_STORE_LEN_ALL : len, false, &buf),
				     0, "off %u len %u", (unsigned)off, (unsigned)len);
			cr_assert_eq(buf.len_bytes, n);
			cr_assert(n == 0 || memcmp(buf.data, text + off, n) == 0);
			ds_buf_release(&buf);
		}
	}
}

void contract_a_range_beyond_the_end_is_malformed(struct ds_store *store)
{
	struct ds_buf buf = DS_BUF_INIT(100);

	put_ok(store, "c/beyond/k", "0123456789");
	cr_assert_eq(get_range(store, "c/beyond/k", 5, 6, false, &buf), -DS_E_MALFORMED);
	cr_assert_eq(get_range(store, "c/beyond/k", 10, 1, false, &buf), -DS_E_MALFORMED);
	cr_assert_eq(get_range(store, "c/beyond/k", 11, 1, false, &buf), -DS_E_MALFORMED);
	cr_assert_eq(get_range(store, "c/beyond/k", 11, DS_STORE_LEN_ALL, false, &buf),
		     -DS_E_MALFORMED);
	cr_assert_eq(get_range(store, "c/beyond/none", 0, 1, false, &buf), -DS_E_ABSENT);
	cr_assert_eq(buf.len_bytes, 0);
	ds_buf_release(&buf);
}

void contract_get_from_the_end_takes_what_there_is(struct ds_store *store)
{
	struct ds_buf buf = DS_BUF_INIT(100);
	struct ds_store_req req = {.op = DS_STORE_GET,
				   .key = "c/tail/k",
				   .len_bytes = 4,
				   .from_end = true,
				   .into = &buf};

	put_ok(store, "c/tail/k", "0123456789");
	cr_assert_eq(ds_store_perform(store, &req), 0);
	cr_assert_str_eq(ds_buf_str(&buf), "6789");
	cr_assert_eq(req.object_size_bytes, 10);
	ds_buf_clear(&buf);
	cr_assert_eq(get_range(store, "c/tail/k", 7, 10, true, &buf), 0);
	cr_assert_str_eq(ds_buf_str(&buf), "0123456789");
	ds_buf_clear(&buf);
	cr_assert_eq(get_range(store, "c/tail/k", 0, 1000, true, &buf), 0);
	cr_assert_str_eq(ds_buf_str(&buf), "0123456789");
	ds_buf_clear(&buf);
	cr_assert_eq(get_range(store, "c/tail/k", 0, 0, true, &buf), 0);
	cr_assert_eq(buf.len_bytes, 0);
	ds_buf_release(&buf);
}

void contract_the_buffers_maximum_bounds_a_get(struct ds_store *store)
{
	struct ds_buf buf = DS_BUF_INIT(9), exact = DS_BUF_INIT(10);

	put_ok(store, "c/max/k", "0123456789");
	cr_assert_eq(ds_store_get(store, "c/max/k", &buf, NULL), -DS_E_LIMIT);
	cr_assert_eq(get_range(store, "c/max/k", 0, 10, false, &buf), -DS_E_LIMIT);
	cr_assert_eq(get_range(store, "c/max/k", 0, 10, true, &buf), -DS_E_LIMIT);
	cr_assert_eq(buf.len_bytes, 0);
	cr_assert_eq(get_range(store, "c/max/k", 1, 9, false, &buf), 0);
	cr_assert_eq(ds_store_get(store, "c/max/k", &exact, NULL), 0);
	ds_buf_release(&buf);
	ds_buf_release(&exact);
}

void contract_head_tells_size_and_time(struct ds_store *store)
{
	struct ds_store_req head = {.op = DS_STORE_HEAD, .key = "c/head/k"};
	struct ds_buf buf = DS_BUF_INIT(10);
	struct ds_store_req get = {
		.op = DS_STORE_GET, .key = "c/head/k", .off = 2, .len_bytes = 3, .into = &buf};

	put_ok(store, "c/head/k", "0123456789");
	cr_assert_eq(ds_store_perform(store, &head), 0);
	cr_assert_eq(head.object_size_bytes, 10);
	cr_assert_neq(head.store_time.s, 0);
	cr_assert_leq(head.modified.s, head.store_time.s + 1);
	cr_assert_geq(head.modified.s, head.store_time.s - 60);
	cr_assert_eq(ds_store_perform(store, &get), 0);
	cr_assert_eq(get.object_size_bytes, 10, "of the whole object");
	cr_assert_eq(get.modified.s, head.modified.s);
	ds_buf_release(&buf);
}

static void list_is(struct ds_store *store, const char *prefix, const char *after, size_t max_n,
		    const char *expected)
{
	struct ds_store_listing listing = {0};
	struct ds_store_req req = {.op = DS_STORE_LIST,
				   .key = prefix,
				   .listing = &listing,
				   .list_after = after,
				   .list_max_n = max_n};
	struct ds_buf got = DS_BUF_INIT(1 << 16);
	char line[512];

	cr_assert_eq(ds_store_perform(store, &req), 0, "list %s: %s", prefix,
		     ds_diag_format(&req.diag, line, sizeof(line)));
	for (size_t i = 0; i < listing.objects_n; i++)
		cr_assert_eq(ds_buf_appendf(&got, "%s%s=%u", i ? " " : "",
					    strrchr(listing.objects[i].key, '/') - 2,
					    (unsigned)listing.objects[i].size_bytes),
			     0);
	cr_assert_str_eq(ds_buf_str(&got), expected, "list of \"%s\" is\n%s, not\n%s", prefix,
			 ds_buf_str(&got), expected);
	ds_buf_release(&got);
	ds_store_listing_release(&listing);
}

void contract_list_is_in_byte_order_and_by_prefix(struct ds_store *store)
{
	/* Names of two bytes before the last slash, so that the helper shows enough. */
	static const char *const keys[] = {"aa/b", "aa.b/x", "aa/a/ay/z", "aa/a.", "ab/1", "aa0/y"};

	for (size_t i = 0; i < DS_ARRAY_SIZE(keys); i++) {
		char key[64];

		snprintf(key, sizeof(key), "c/list/%s", keys[i]);
		put_ok(store, key, keys[i]);
	}
	list_is(store, "c/list/", NULL, 0, ".b/x=6 aa/a.=5 ay/z=9 aa/b=4 a0/y=5 ab/1=4");
	list_is(store, "c/list/aa", NULL, 0, ".b/x=6 aa/a.=5 ay/z=9 aa/b=4 a0/y=5");
	list_is(store, "c/list/aa/", NULL, 0, "aa/a.=5 ay/z=9 aa/b=4");
	list_is(store, "c/list/aa/a", NULL, 0, "aa/a.=5 ay/z=9");
	list_is(store, "c/list/aa/a/ay/z", NULL, 0, "ay/z=9");
	list_is(store, "c/list/aa/a/ay/z/", NULL, 0, "");
	list_is(store, "c/list/ac", NULL, 0, "");
	list_is(store, "c/none/", NULL, 0, "");
}

void contract_list_goes_on_after_a_key_and_stops_at_a_number(struct ds_store *store)
{
	char key[64];

	for (int i = 0; i < 12; i++) {
		snprintf(key, sizeof(key), "c/page/d%d/%02d", i / 4, i);
		put_ok(store, key, "x");
	}
	list_is(store, "c/page/", NULL, 3, "d0/00=1 d0/01=1 d0/02=1");
	list_is(store, "c/page/", "c/page/d0/02", 3, "d0/03=1 d1/04=1 d1/05=1");
	list_is(store, "c/page/", "c/page/d0", 1, "d0/00=1");
	list_is(store, "c/page/", "c/page/d0/", 1, "d0/00=1");
	list_is(store, "c/page/", "c/page/d0/03", 1, "d1/04=1");
	list_is(store, "c/page/", "c/page/d00", 1, "d1/04=1");
	list_is(store, "c/page/", "c/page/d2/10", 0, "d2/11=1");
	list_is(store, "c/page/", "c/page/d2/11", 0, "");
	list_is(store, "c/page/d1/", "c/page/a", 2, "d1/04=1 d1/05=1");
	list_is(store, "c/page/d1/", "c/page/d2/", 2, "");
}

void contract_list_of_an_odd_prefix_is_empty(struct ds_store *store)
{
	put_ok(store, "c/oddp/k/l", "x");
	list_is(store, "c/oddp//k", NULL, 0, "");
	list_is(store, "c/oddp/../oddp/k/", NULL, 0, "");
	list_is(store, "c/oddp/./k/", NULL, 0, "");
	list_is(store, "c/oddp/k/l/", NULL, 0, "");
}

void contract_list_and_get_take_odd_keys(struct ds_store *store)
{
	static const char *const names[] = {
		"a b",
		"a+b",
		"a%2Fb",
		"100%",
		"&<>\"'",
		"~tilde",
		"\xc3\xa4\xe2\x82\xac",
		"x?y#z",
		"semi;colon=,",
		"-dash",
		".hidden",
		"...",
		"[br]{ac}|\\^`",
		"UPPER",
		"e\xcc\x81",
		"!*()$@:",
	};
	struct ds_store_listing listing = {0};
	struct ds_store_req req = {.op = DS_STORE_LIST, .key = "c/odd/", .listing = &listing};
	char key[300];

	for (size_t i = 0; i < DS_ARRAY_SIZE(names); i++) {
		snprintf(key, sizeof(key), "c/odd/%s", names[i]);
		put_ok(store, key, names[i]);
		expect_get(store, key, names[i]);
	}
	memset(key, 'n', 255);
	memcpy(key, "c/odd/", 6);
	key[255] = '\0';
	put_ok(store, key, "long");
	expect_get(store, key, "long");
	cr_assert_eq(ds_store_perform(store, &req), 0);
	cr_assert_eq(listing.objects_n, DS_ARRAY_SIZE(names) + 1);
	for (size_t i = 0; i + 1 < listing.objects_n; i++)
		cr_assert_lt(strcmp(listing.objects[i].key, listing.objects[i + 1].key), 0);
	for (size_t i = 0; i < listing.objects_n; i++) {
		const char *name = listing.objects[i].key + strlen("c/odd/");

		expect_get(store, listing.objects[i].key,
			   strncmp(name, "nnn", 3) == 0 ? "long" : name);
	}
	ds_store_listing_release(&listing);
}

void contract_delete_removes_and_may_be_repeated(struct ds_store *store)
{
	struct ds_store_req del = {.op = DS_STORE_DELETE, .key = "c/del/k"};
	struct ds_store_req dir = {.op = DS_STORE_DELETE, .key = "c/del"};
	struct ds_buf buf = DS_BUF_INIT(10);

	put_ok(store, "c/del/k", "x");
	put_ok(store, "c/del/l", "y");
	cr_assert_eq(ds_store_perform(store, &del), 0);
	cr_assert_eq(ds_store_get(store, "c/del/k", &buf, NULL), -DS_E_ABSENT);
	cr_assert_eq(ds_store_perform(store, &del), 0);
	cr_assert_eq(ds_store_perform(store, &dir), 0);
	expect_get(store, "c/del/l", "y");
	cr_assert_eq(ds_store_put_if_absent(store, "c/del/k", "z", 1, NULL), 0);
	ds_buf_release(&buf);
}

void contract_put_refuses_keys_that_some_backend_cannot_hold(struct ds_store *store)
{
	static const char *const keys[] = {
		"/c",	   "c/bad/",   "c//bad",	  "c/./bad", "c/bad/..", "../c",
		"c/.tmp-", ".tmp-123", "c/.tmp-1/object", "lock",    "lock/x",
	};
	struct ds_buf buf = DS_BUF_INIT(10);
	char *longest = malloc(1000);

	for (size_t i = 0; i < DS_ARRAY_SIZE(keys); i++)
		cr_assert_eq(ds_store_put(store, keys[i], "x", 1, NULL), -EINVAL, "%s", keys[i]);
	snprintf(longest, 1000, "c/%0256d", 1);
	cr_assert_eq(ds_store_put_if_absent(store, longest, "x", 1, NULL), -EINVAL);
	for (int i = 0; i < 901; i++)
		longest[i] = i % 100 == 99 ? '/' : 'k';
	longest[901] = '\0';
	cr_assert_eq(ds_store_put_if_absent(store, longest, "x", 1, NULL), -EINVAL);
	cr_assert_eq(ds_store_get(store, "c/../c/bad", &buf, NULL), -DS_E_ABSENT);
	free(longest);
	ds_buf_release(&buf);
}

struct racer {
	struct ds_store *store;
	pthread_barrier_t *start;
	unsigned number;
	int result[8];
};

static void *race(void *arg)
{
	struct racer *racer = arg;
	char key[64], body[64];

	for (unsigned round = 0; round < DS_ARRAY_SIZE(racer->result); round++) {
		snprintf(key, sizeof(key), "c/race/%u", round);
		snprintf(body, sizeof(body), "writer %u of round %u", racer->number, round);
		pthread_barrier_wait(racer->start);
		racer->result[round] =
			ds_store_put_if_absent(racer->store, key, body, strlen(body), NULL);
	}
	return NULL;
}

void contract_of_16_racing_writers_exactly_one_wins(struct ds_store *store)
{
	struct racer racers[16];
	pthread_t threads[16];
	pthread_barrier_t start;

	pthread_barrier_init(&start, NULL, 16);
	for (unsigned i = 0; i < 16; i++) {
		racers[i] = (struct racer){.store = store, .start = &start, .number = i};
		cr_assert_eq(pthread_create(&threads[i], NULL, race, &racers[i]), 0);
	}
	for (unsigned i = 0; i < 16; i++)
		pthread_join(threads[i], NULL);
	pthread_barrier_destroy(&start);
	for (unsigned round = 0; round < DS_ARRAY_SIZE(racers[0].result); round++) {
		unsigned won_n = 0, winner = 0;
		char key[64], body[64];

		for (unsigned i = 0; i < 16; i++) {
			int r = racers[i].result[round];

			cr_assert(r == 0 || r == -DS_E_PRESENT, "%s", ds_strerror(r));
			if (r == 0) {
				won_n++;
				winner = i;
			}
		}
		cr_assert_eq(won_n, 1, "round %u has %u winners", round, won_n);
		snprintf(key, sizeof(key), "c/race/%u", round);
		snprintf(body, sizeof(body), "writer %u of round %u", winner, round);
		expect_get(store, key, body);
	}
}

struct many {
	pthread_mutex_t mutex;
	pthread_cond_t wake;
	unsigned done_n;
};

struct one {
	struct ds_store_req req;
	struct many *many;
	struct ds_store *store;
	char key[64];
	struct ds_buf buf;
	unsigned done_n, again_n;
};

static void one_done(struct ds_store_req *req)
{
	struct one *one = req->ctx;

	if (one->again_n && req->result == 0) {
		one->again_n--;
		ds_buf_clear(&one->buf);
		req->is_urgent = !req->is_urgent;
		ds_store_submit(one->store, req);
		return;
	}
	pthread_mutex_lock(&one->many->mutex);
	one->done_n++;
	one->many->done_n++;
	pthread_cond_signal(&one->many->wake);
	pthread_mutex_unlock(&one->many->mutex);
}

static void wait_for(struct many *many, unsigned n)
{
	pthread_mutex_lock(&many->mutex);
	while (many->done_n < n)
		pthread_cond_wait(&many->wake, &many->mutex);
	pthread_mutex_unlock(&many->mutex);
}

static struct one *start_gets(struct ds_store *store, struct many *many, unsigned n,
			      const char *dir, unsigned again_n)
{
	struct one *ones = calloc(n, sizeof(*ones));

	pthread_mutex_init(&many->mutex, NULL);
	pthread_cond_init(&many->wake, NULL);
	many->done_n = 0;
	for (unsigned i = 0; i < n; i++) {
		struct one *one = &ones[i];

		/* Every third is not there. */
		snprintf(one->key, sizeof(one->key), "c/%s/%u", dir, i);
		if (i % 3)
			put_ok(store, one->key, one->key);
	}
	for (unsigned i = 0; i < n; i++) {
		struct one *one = &ones[i];

		one->many = many;
		one->store = store;
		one->again_n = again_n;
		ds_buf_init(&one->buf, 100);
		one->req = (struct ds_store_req){.op = DS_STORE_GET,
						 .key = one->key,
						 .len_bytes = DS_STORE_LEN_ALL,
						 .into = &one->buf,
						 .is_urgent = i % 2,
						 .done = one_done,
						 .ctx = one};
		ds_store_submit(store, &one->req);
	}
	return ones;
}

static void expect_got(struct one *one, unsigned i, bool may_be_cancelled)
{
	cr_assert_eq(one->done_n, 1);
	if (may_be_cancelled && one->req.result == -DS_E_INTERRUPTED)
		cr_assert_eq(one->buf.len_bytes, 0);
	else if (i % 3 == 0)
		cr_assert_eq(one->req.result, -DS_E_ABSENT);
	else
		cr_assert(one->req.result == 0 && strcmp(ds_buf_str(&one->buf), one->key) == 0);
	ds_buf_release(&one->buf);
}

void contract_submitted_requests_are_done_once_each(struct ds_store *store)
{
	struct many many;
	struct one *ones = start_gets(store, &many, 120, "submit", 0);

	wait_for(&many, 120);
	for (unsigned i = 0; i < 120; i++)
		expect_got(&ones[i], i, false);
	free(ones);
}

void contract_a_cancelled_request_is_done_once(struct ds_store *store)
{
	struct many many;
	struct one *ones = start_gets(store, &many, 60, "cancel", 0);

	for (unsigned i = 0; i < 60; i++) {
		pthread_mutex_lock(&many.mutex);
		if (ones[i].done_n == 0)
			ds_store_cancel(store, &ones[i].req);
		pthread_mutex_unlock(&many.mutex);
	}
	wait_for(&many, 60);
	for (unsigned i = 0; i < 60; i++)
		expect_got(&ones[i], i, true);
	free(ones);
}

void contract_a_hastened_request_is_done_once(struct ds_store *store)
{
	struct many many;
	struct one *ones = start_gets(store, &many, 60, "hasten", 0);

	for (unsigned i = 0; i < 120; i++) {
		struct one *one = &ones[i * 7 % 60];

		pthread_mutex_lock(&many.mutex);
		if (one->done_n == 0)
			ds_store_hasten(store, &one->req);
		pthread_mutex_unlock(&many.mutex);
	}
	wait_for(&many, 60);
	for (unsigned i = 0; i < 60; i++)
		expect_got(&ones[i], i, false);
	free(ones);
}

void contract_done_may_submit_again(struct ds_store *store)
{
	struct many many;
	struct one *ones = start_gets(store, &many, 30, "again", 3);

	wait_for(&many, 30);
	for (unsigned i = 0; i < 30; i++)
		expect_got(&ones[i], i, false);
	free(ones);
}

void contract_now_follows_what_was_written(struct ds_store *store)
{
	struct ds_store_req head = {.op = DS_STORE_HEAD, .key = "c/now/k"};
	struct ds_time before, after;

	cr_assert_eq(ds_store_now(store, &before, NULL), 0);
	put_ok(store, "c/now/k", "x");
	cr_assert_eq(ds_store_perform(store, &head), 0);
	cr_assert_eq(ds_store_now(store, &after, NULL), 0);
	cr_assert_leq(before.s, head.modified.s + 1);
	cr_assert_geq(after.s, head.modified.s - 1);
	cr_assert_leq(after.s, head.modified.s + 30);
	cr_assert_leq(ds_time_compare(before, after), 0);
}

void contract_stats_count_requests_and_bytes(struct ds_store *store)
{
	struct ds_buf buf = DS_BUF_INIT(100);
	struct ds_store_stats before, after;

	ds_store_get_stats(store, &before);
	put_ok(store, "c/stats/k", "0123456789");
	expect_get(store, "c/stats/k", "0123456789");
	cr_assert_eq(ds_store_get(store, "c/stats/none", &buf, NULL), -DS_E_ABSENT);
	ds_store_get_stats(store, &after);
	cr_assert_eq(after.requests_n[DS_STORE_PUT], before.requests_n[DS_STORE_PUT] + 1);
	cr_assert_eq(after.requests_n[DS_STORE_GET], before.requests_n[DS_STORE_GET] + 2);
	cr_assert_eq(after.received_bytes, before.received_bytes + 10);
	cr_assert_eq(after.sent_bytes, before.sent_bytes + 10);
	cr_assert_eq(after.failures_n, before.failures_n);
	cr_assert_eq(after.retries_n, before.retries_n);
	ds_buf_release(&buf);
}
