#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "codec_support.h"
#include "util/mem.h"

TestSuite(digest, .fini = test_leaks_abort);

/* FIPS 180-4's examples. */
static const char empty_hex[] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
static const char abc_hex[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
static const char million_hex[] =
	"cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";

Test(digest, known_answers_are_met)
{
	char *million = malloc(1000000);
	struct ds_digest digest;

	digest = support_digest_of("");
	support_digest_is(&digest, empty_hex);
	digest = support_digest_of("abc");
	support_digest_is(&digest, abc_hex);
	memset(million, 'a', 1000000);
	cr_assert_eq(ds_digest_of(million, 1000000, &digest), 0);
	support_digest_is(&digest, million_hex);
	cr_assert_eq(ds_digest_of(NULL, 0, &digest), 0);
	support_digest_is(&digest, empty_hex);
	free(million);
}

Test(digest, pieces_give_the_same_and_finish_starts_afresh)
{
	struct ds_hasher *hasher = NULL;
	struct ds_digest digest;

	cr_assert_eq(ds_hasher_new(&hasher), 0);
	for (int round = 0; round < 3; round++) {
		ds_hasher_update(hasher, "a", 1);
		ds_hasher_update(hasher, "", 0);
		ds_hasher_update(hasher, "bc", 2);
		ds_hasher_finish(hasher, &digest);
		support_digest_is(&digest, abc_hex);
		ds_hasher_finish(hasher, &digest);
		support_digest_is(&digest, empty_hex);
	}
	for (int i = 0; i < 1000; i++) {
		char piece[1000];

		memset(piece, 'a', sizeof(piece));
		ds_hasher_update(hasher, piece, sizeof(piece));
	}
	ds_hasher_finish(hasher, &digest);
	support_digest_is(&digest, million_hex);
	cr_assert_null(ds_hasher_free(hasher));
	cr_assert_null(ds_hasher_free(NULL));
}

Test(digest, text_goes_there_and_back)
{
	struct ds_digest digest = support_digest_of("abc"), back;

	cr_assert_eq(ds_digest_parse(abc_hex, &back), 0);
	cr_assert(ds_digest_equal(&digest, &back));
	back.bytes[31] ^= 1;
	cr_assert_not(ds_digest_equal(&digest, &back));
}

Test(digest, text_that_is_not_64_lower_case_digits_is_refused)
{
	static const char *const bad[] = {
		"",
		"ba7816bf",
		"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015a",
		"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad0",
		"BA7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
		"ga7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
		"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015a ",
		" ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015a",
		"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n",
	};
	struct ds_digest digest = support_digest_of("x"), before = digest;

	for (size_t i = 0; i < DS_ARRAY_SIZE(bad); i++) {
		cr_assert_eq(ds_digest_parse(bad[i], &digest), -EINVAL, "\"%s\"", bad[i]);
		cr_assert(ds_digest_equal(&digest, &before));
	}
}

Test(digest, only_all_zero_bytes_are_zero)
{
	struct ds_digest digest = {0};

	cr_assert(ds_digest_is_zero(&digest));
	for (size_t i = 0; i < DS_DIGEST_LEN; i++) {
		digest.bytes[i] = 0x80;
		cr_assert_not(ds_digest_is_zero(&digest));
		digest.bytes[i] = 0;
	}
}

Test(digest, no_memory_is_an_error)
{
	struct ds_hasher *hasher = NULL;

	ds_mem_fail_after(0, 1);
	cr_assert_eq(ds_hasher_new(&hasher), -ENOMEM);
	cr_assert_eq(ds_mem_fail_after(-1, 0), 1);
	cr_assert_null(hasher);
}

static void *digest_much(void *arg)
{
	struct ds_digest digest;

	for (int i = 0; i < 2000; i++) {
		digest = support_digest_of("abc");
		if (memcmp(&digest, arg, sizeof(digest)) != 0)
			return arg;
	}
	return NULL;
}

Test(digest, threads_do_not_disturb_each_other)
{
	struct ds_digest abc;
	pthread_t threads[8];
	void *bad;

	cr_assert_eq(ds_digest_parse(abc_hex, &abc), 0);
	for (size_t i = 0; i < DS_ARRAY_SIZE(threads); i++)
		cr_assert_eq(pthread_create(&threads[i], NULL, digest_much, &abc), 0);
	for (size_t i = 0; i < DS_ARRAY_SIZE(threads); i++) {
		cr_assert_eq(pthread_join(threads[i], &bad), 0);
		cr_assert_null(bad);
	}
}
