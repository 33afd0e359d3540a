#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <string.h>

#include "codec/content.h"
#include "codec_support.h"
#include "util/mem.h"

TestSuite(content, .fini = test_leaks_abort);

/* The expected digests were computed from schema/README.md by another program. */
Test(content, digest_of_a_large_file_is_as_the_format_says)
{
	struct ds_digest one = support_digest_of("one"), two = support_digest_of("two"), digest;
	struct ds_content_hasher *hasher = NULL;

	cr_assert_eq(ds_content_hasher_new(5000000, &hasher), 0);
	ds_content_hasher_extent(hasher, 1000000, &one);
	ds_content_hasher_extent(hasher, 3000000, NULL);
	ds_content_hasher_extent(hasher, 1000000, &two);
	ds_content_hasher_finish(hasher, &digest);
	support_digest_is(&digest,
			  "60c210edc4081142b0c165d2e1d19d61fa2f79b13512b45d128515be6a13d4f9");
	cr_assert_null(ds_content_hasher_free(hasher));

	cr_assert_eq(ds_content_hasher_new(UINT64_C(1) << 40, &hasher), 0);
	ds_content_hasher_extent(hasher, UINT64_C(1) << 40, NULL);
	ds_content_hasher_finish(hasher, &digest);
	support_digest_is(&digest,
			  "4a081b7d3660e0576e62a853e6636ad858602997a5c3d240b1a9aa8fb09b8206");
	cr_assert_null(ds_content_hasher_free(hasher));
	cr_assert_null(ds_content_hasher_free(NULL));
}

Test(content, digest_of_a_directory_is_as_the_format_says)
{
	struct ds_digest one = support_digest_of("one"), two = support_digest_of("two"),
			 target = support_digest_of("../target"), nothing = support_digest_of(""),
			 inner, digest;
	struct ds_tree_hasher *hasher = NULL;

	cr_assert_eq(ds_tree_hasher_new(&hasher), 0);
	ds_tree_hasher_finish(hasher, &digest);
	support_digest_is(&digest,
			  "8c0e755f1fa6b0c223ec47edd266876de88f1b769fc1c856f9cc058510baad4b");
	ds_tree_hasher_entry(hasher, DS_CONTENT_FILE, false, "x", 1, &one);
	ds_tree_hasher_finish(hasher, &inner);
	support_digest_is(&inner,
			  "a8fbb90327d44531eeb7dbad822796cc7c7f78d4d9d77d28cec863bf64aa5ea4");
	ds_tree_hasher_entry(hasher, DS_CONTENT_FILE, true, "A", 1, &one);
	ds_tree_hasher_entry(hasher, DS_CONTENT_DIRECTORY, false, "a", 1, &inner);
	ds_tree_hasher_entry(hasher, DS_CONTENT_SYMLINK, false, "a.b", 3, &target);
	ds_tree_hasher_entry(hasher, DS_CONTENT_FILE, false, "ab", 2, &two);
	ds_tree_hasher_entry(hasher, DS_CONTENT_FILE, false, "\xff\n", 2, &nothing);
	ds_tree_hasher_finish(hasher, &digest);
	support_digest_is(&digest,
			  "7828b184cc5cdf2865e7b6e22e1fcb13f3e145f0345179eda639fca8f1b76fee");
	cr_assert_null(ds_tree_hasher_free(hasher));
	cr_assert_null(ds_tree_hasher_free(NULL));
}

Test(content, each_property_of_an_entry_changes_the_digest)
{
	static const struct {
		enum ds_content_type type;
		bool executable;
		const char *name;
		const char *content;
	} entries[] = {
		{DS_CONTENT_FILE, false, "a", "1"},	 {DS_CONTENT_FILE, true, "a", "1"},
		{DS_CONTENT_FILE, false, "b", "1"},	 {DS_CONTENT_FILE, false, "a", "2"},
		{DS_CONTENT_DIRECTORY, false, "a", "1"}, {DS_CONTENT_SYMLINK, false, "a", "1"},
		{DS_CONTENT_FILE, false, "aa", "1"},
	};
	struct ds_digest digests[DS_ARRAY_SIZE(entries)];
	struct ds_tree_hasher *hasher = NULL;

	cr_assert_eq(ds_tree_hasher_new(&hasher), 0);
	for (size_t i = 0; i < DS_ARRAY_SIZE(entries); i++) {
		struct ds_digest content = support_digest_of(entries[i].content);

		ds_tree_hasher_entry(hasher, entries[i].type, entries[i].executable,
				     entries[i].name, strlen(entries[i].name), &content);
		ds_tree_hasher_finish(hasher, &digests[i]);
		for (size_t j = 0; j < i; j++)
			cr_assert_not(ds_digest_equal(&digests[i], &digests[j]), "%zu %zu", i, j);
	}
	ds_tree_hasher_free(hasher);
}

Test(content, a_name_of_255_bytes_is_hashed)
{
	struct ds_digest one = support_digest_of("one"), digest;
	struct ds_tree_hasher *hasher = NULL;
	char name[255];

	memset(name, 'n', sizeof(name));
	cr_assert_eq(ds_tree_hasher_new(&hasher), 0);
	ds_tree_hasher_entry(hasher, DS_CONTENT_FILE, false, name, 254, &one);
	ds_tree_hasher_entry(hasher, DS_CONTENT_FILE, false, name, 255, &one);
	ds_tree_hasher_finish(hasher, &digest);
	ds_tree_hasher_free(hasher);
}

/* The order is that of bytes, which a locale or a signed char would spoil. */
Test(content, names_compare_as_unsigned_bytes_the_shorter_first)
{
	static const char *const names[] = {"\x01", "-",	"A",	  "Z",
					    "a",    "a\x01",	"a-",	  "a.txt",
					    "ab",   "\xc3\xa4", "\xff\n", "\xff\xff"};

	for (size_t i = 0; i < DS_ARRAY_SIZE(names); i++)
		for (size_t j = 0; j < DS_ARRAY_SIZE(names); j++) {
			int r = ds_name_compare(names[i], strlen(names[i]), names[j],
						strlen(names[j]));

			cr_assert_eq((r > 0) - (r < 0), (i > j) - (i < j), "%zu %zu", i, j);
		}
	cr_assert_lt(ds_name_compare("a\0b", 3, "a\0c", 3), 0);
	cr_assert_gt(ds_name_compare("a", 1, "", 0), 0);
}

static void add_names(const char *first, const char *second)
{
	struct ds_digest one = support_digest_of("one");
	struct ds_tree_hasher *hasher = NULL;

	cr_assert_eq(ds_tree_hasher_new(&hasher), 0);
	ds_tree_hasher_entry(hasher, DS_CONTENT_FILE, false, first, strlen(first), &one);
	ds_tree_hasher_entry(hasher, DS_CONTENT_FILE, false, second, strlen(second), &one);
}

Test(content, names_out_of_order_are_a_wrong_call, .signal = SIGABRT)
{
	add_names("b", "a");
}

Test(content, a_repeated_name_is_a_wrong_call, .signal = SIGABRT)
{
	add_names("a", "a");
}

Test(content, extents_that_do_not_add_up_are_a_wrong_call, .signal = SIGABRT)
{
	struct ds_content_hasher *hasher = NULL;
	struct ds_digest digest;

	cr_assert_eq(ds_content_hasher_new(10, &hasher), 0);
	ds_content_hasher_extent(hasher, 9, NULL);
	ds_content_hasher_finish(hasher, &digest);
}

Test(content, no_memory_is_an_error)
{
	struct ds_content_hasher *content = NULL;
	struct ds_tree_hasher *tree = NULL;

	for (int n = 0; n < 2; n++) {
		ds_mem_fail_after(n, 0);
		cr_assert_eq(ds_content_hasher_new(1, &content), -ENOMEM);
		cr_assert_eq(ds_mem_fail_after(n, 0), 1);
		cr_assert_eq(ds_tree_hasher_new(&tree), -ENOMEM);
		cr_assert_eq(ds_mem_fail_after(-1, 0), 1);
	}
	cr_assert_null(content);
	cr_assert_null(tree);
	cr_assert_eq(ds_tree_hasher_new(&tree), 0);
	ds_tree_hasher_free(tree);
}
