#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "suite.h"
#include "util/mem.h"

DS_SUITE(options);

static const struct cli_option table[] = {
	{'m', "message", "MSG", "text", false}, {0, "exclude", "PATTERN", "text", true},
	{'f', "force", NULL, "text", false},	{'n', "number", "N", "text", false},
	{0, "size", "SIZE", "text", false},	{0},
};

static const struct cli_command command = {
	.name = "try",
	.arguments = "A [B]",
	.options = table,
	.takes_store = true,
	.takes_json = true,
	.args_min = 1,
	.args_max = 2,
};

static const char *last_argv[100];

#define PARSE(call, ...)                                                                  \
	({                                                                                \
		const char *argv[] = {__VA_ARGS__};                                       \
		memcpy(last_argv, argv, sizeof(argv));                                    \
		memset(call, 0, sizeof(*(call)));                                         \
		(call)->command = &command;                                               \
		cli_parse(call, (int)DS_ARRAY_SIZE(argv), (char **)(uintptr_t)last_argv); \
	})

Test(options, forms_of_options_are_equal)
{
	struct cli_call call;

	cr_assert_eq(PARSE(&call, "-m", "x", "a"), 0);
	cr_assert_str_eq(cli_text(&call, "message"), "x");
	cr_assert_eq(PARSE(&call, "-mx", "a"), 0);
	cr_assert_str_eq(cli_text(&call, "message"), "x");
	cr_assert_eq(PARSE(&call, "a", "--message=x"), 0);
	cr_assert_str_eq(cli_text(&call, "message"), "x");
	cr_assert_eq(PARSE(&call, "a", "--message", "-x"), 0);
	cr_assert_str_eq(cli_text(&call, "message"), "-x");
	cr_assert_eq(PARSE(&call, "-fmx", "a"), 0);
	cr_assert(cli_has(&call, "force"));
	cr_assert_str_eq(cli_text(&call, "message"), "x");
}

Test(options, two_dashes_end_the_options)
{
	struct cli_call call;

	cr_assert_eq(PARSE(&call, "--", "-f", "--json"), 0);
	cr_assert_eq(call.args_n, 2);
	cr_assert_str_eq(call.args[0], "-f");
	cr_assert_not(call.json);
}

Test(options, repeated_ones_keep_their_order)
{
	struct cli_call call;

	cr_assert_eq(PARSE(&call, "a", "--exclude", "1", "--exclude=2"), 0);
	cr_assert_str_eq(cli_text_at(&call, "exclude", 0), "1");
	cr_assert_str_eq(cli_text_at(&call, "exclude", 1), "2");
	cr_assert_null(cli_text_at(&call, "exclude", 2));
}

Test(options, I01_wrong_usage_is_refused_with_a_message)
{
	struct cli_call call;

	cr_assert_eq(PARSE(&call, "a", "--nonsense"), -DS_E_USAGE);
	cr_assert(strstr(call.diag.detail, "nonsense"));
	cr_assert_eq(PARSE(&call, "a", "-x"), -DS_E_USAGE);
	cr_assert_eq(PARSE(&call, "a", "--message"), -DS_E_USAGE);
	cr_assert(strstr(call.diag.detail, "message"));
	cr_assert_eq(PARSE(&call, "a", "-m"), -DS_E_USAGE);
	cr_assert_eq(PARSE(&call, "a", "--force=1"), -DS_E_USAGE);
	cr_assert_eq(PARSE(&call, "a", "-m", "1", "-m", "2"), -DS_E_USAGE);
	cr_assert(strstr(call.diag.detail, "twice"));
	cr_assert_eq(PARSE(&call, "a", "b", "c"), -DS_E_USAGE);
	cr_assert_eq(PARSE(&call, "-f"), -DS_E_USAGE);
}

Test(options, I02_numbers_and_sizes_are_strict)
{
	static const char *const bad[] = {"-1", "", "1e3", "18446744073709551616", "٣", " 1", "1 "};
	struct cli_call call;
	uint64_t value;

	for (size_t i = 0; i < DS_ARRAY_SIZE(bad); i++) {
		char text[64];

		snprintf(text, sizeof(text), "--number=%s", bad[i]);
		cr_assert_eq(PARSE(&call, "a", text), 0);
		cr_expect_eq(cli_number(&call, "number", 0, 0, UINT64_MAX, &value), -DS_E_USAGE,
			     "%s", bad[i]);
	}
	cr_assert_eq(PARSE(&call, "a", "--number=5", "--size=1.5K"), 0);
	cr_assert_eq(cli_number(&call, "number", 0, 0, 4, &value), -DS_E_USAGE);
	cr_assert_eq(cli_number(&call, "number", 0, 6, 7, &value), -DS_E_USAGE);
	cr_assert_eq(cli_number(&call, "number", 0, 5, 5, &value), 0);
	cr_assert_eq(cli_size(&call, "size", 0, &value), 0);
	cr_assert_eq(value, 1536);
}

Test(options, help_is_asked_for_before_arguments_are_counted)
{
	struct cli_call call;

	cr_assert_eq(PARSE(&call, "--help"), 1);
	cr_assert_eq(PARSE(&call, "-h"), 1);
}

Test(options, every_command_has_a_summary_and_distinct_options)
{
	for (size_t c = 0; cli_commands[c]; c++) {
		const struct cli_option *rows = cli_commands[c]->options;

		cr_expect(cli_commands[c]->summary && cli_commands[c]->run);
		for (size_t i = 0; rows && rows[i].name; i++) {
			cr_expect(rows[i].help && rows[i].help[0]);
			for (size_t j = 0; j < i; j++) {
				cr_expect_str_neq(rows[i].name, rows[j].name);
				cr_expect(!rows[i].letter || rows[i].letter != rows[j].letter);
			}
		}
	}
}
