/*
 * Listings of attributes: what is shown was checked. That they show the right thing is the model's
 * to say (manifest_model_check.c).
 */
#include <criterion/criterion.h>
#include <stdio.h>

#include "manifest_support.h"

static void end(void)
{
	support_clean();
	support_check_leaks();
}

TestSuite(manifest_attrs, .fini = end);

static int count(void *ctx, const struct ds_entry *entry)
{
	++*(unsigned *)ctx;
	return 0;
}

/* What a listing of attributes shows was checked; what it does not look at, by who does. */
Test(manifest_attrs, G05_a_listing_of_attributes_refuses_what_it_would_show)
{
	static const struct {
		const char *text;
		bool is_shown;
	} cases[] = {
		{"UPDATE entry SET size = -1 WHERE id = 5", true},
		{"UPDATE entry SET size = NULL WHERE id = 5", true},
		{"UPDATE entry SET nlink = 0 WHERE id = 5", true},
		{"UPDATE entry SET nlink = 1 WHERE id = 10", true},
		{"UPDATE entry SET mtime_s = NULL WHERE id = 5", true},
		{"UPDATE entry SET mtime_ns = 1000000000 WHERE id = 5", true},
		{"UPDATE entry SET type = 5 WHERE id = 5", true},
		{"UPDATE entry SET id = 1099511627776 WHERE id = 5", true},
		{"UPDATE entry SET link = 77 WHERE id = 6", true},
		{"UPDATE entry SET link = 7 WHERE id = 6", true},
		{"UPDATE entry SET link = 6 WHERE id = 6", true},
		{"UPDATE entry SET size = 1 WHERE id = 6", true},
		{"UPDATE entry SET digest = x'00' WHERE id = 5", false},
		{"UPDATE entry SET pack = 0 WHERE id = 5", false},
		{"UPDATE entry SET size = size + 1 WHERE id = 7", false},
		{"UPDATE entry SET extents = 1 WHERE id = 5", false},
	};

	support_build_sound(support_path("sound"));
	for (size_t i = 0; i < DS_ARRAY_SIZE(cases); i++) {
		struct support_source source;
		struct ds_manifest *manifest;
		unsigned n = 0;

		fprintf(stderr, "  %s\n", cases[i].text);
		support_copy(support_path("sound"), support_path("m"));
		support_tamper(support_path("m"), cases[i].text);
		support_source_load(&source, support_path("m"));
		cr_assert_eq(ds_manifest_new(&source.source, &manifest), 0);
		cr_expect_eq(ds_manifest_list_attrs(manifest, NULL, DIR, 0, count, &n),
			     cases[i].is_shown ? -DS_E_MALFORMED : 0);
		cr_expect_eq(ds_manifest_list(manifest, NULL, DIR, 0, count, &n), -DS_E_MALFORMED);
		ds_manifest_free(manifest);
		support_source_release(&source);
	}
}
