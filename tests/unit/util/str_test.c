#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "test_leaks.h"
#include "util/mem.h"
#include "util/random.h"
#include "util/str.h"

TestSuite(str, .fini = test_leaks_abort);

Test(str, hex_goes_there_and_back_and_nothing_else_is_read)
{
	static const char *const bad[] = {"",	    "0",      "00ff1",	"00ff10a",
					  "00FF10", "00fg10", "00ff1 ", "0x0f10"};
	uint8_t bytes[3] = {1, 2, 3};
	char text[7];

	ds_hex_encode("\x00\xff\x10", 3, text);
	cr_assert_str_eq(text, "00ff10");
	for (size_t i = 0; i < DS_ARRAY_SIZE(bad); i++) {
		cr_assert_eq(ds_hex_decode(bad[i], bytes, 3), -EINVAL, "%s", bad[i]);
		cr_assert_arr_eq(bytes, "\1\2\3", 3);
	}
	cr_assert_eq(ds_hex_decode("00ff10", bytes, 3), 0);
	cr_assert_arr_eq(bytes, "\x00\xff\x10", 3);
	cr_assert_eq(ds_hex_decode("", bytes, 0), 0);
	ds_hex_encode(NULL, 0, text);
	cr_assert_str_eq(text, "");
}

static void expect_quoted(const char *data, size_t len, const char *expected)
{
	char buf[200];

	cr_assert_str_eq(ds_quote(data, len, buf, sizeof(buf)), expected);
}

Test(str, G03_quoting_leaves_nothing_that_moves_a_terminal)
{
	expect_quoted("plain", 5, "\"plain\"");
	expect_quoted("", 0, "\"\"");
	expect_quoted("a\"b\\c\nd\te", 9, "\"a\\\"b\\\\c\\nd\\te\"");
	expect_quoted("\0\x1b[2J\x7f\r", 7, "\"\\x00\\x1b[2J\\x7f\\x0d\"");
	expect_quoted("\xc3\xa4\xe2\x82\xac\xf0\x9f\x90\x87", 9,
		      "\"\xc3\xa4\xe2\x82\xac\xf0\x9f\x90\x87\"");
	/* C1 controls, Latin-1, a cut character, an overlong slash, a surrogate. */
	expect_quoted("\xc2\x9b", 2, "\"\\xc2\\x9b\"");
	expect_quoted("\xc2\xa0", 2, "\"\xc2\xa0\"");
	expect_quoted("\xe4", 1, "\"\\xe4\"");
	expect_quoted("\xe2\x82", 2, "\"\\xe2\\x82\"");
	expect_quoted("\xc0\xaf", 2, "\"\\xc0\\xaf\"");
	expect_quoted("\xed\xa0\x80", 3, "\"\\xed\\xa0\\x80\"");
	/* U+202E, U+2066, U+061C, U+2028 turn text around or end lines; U+202F and U+2065's neighbours do not. */
	expect_quoted("\xe2\x80\xae", 3, "\"\\xe2\\x80\\xae\"");
	expect_quoted("\xe2\x81\xa6", 3, "\"\\xe2\\x81\\xa6\"");
	expect_quoted("\xd8\x9c", 2, "\"\\xd8\\x9c\"");
	expect_quoted("\xe2\x80\xa8", 3, "\"\\xe2\\x80\\xa8\"");
	expect_quoted("\xe2\x80\xaf\xe2\x81\xa4", 6, "\"\xe2\x80\xaf\xe2\x81\xa4\"");
}

Test(str, G03_a_finished_line_is_defused_in_place)
{
	char text[] = "dsfs: \"a\\n\" \xc3\xa4\x1b[2J\n\xe2\x80\xae\xc2\x9b\xff";

	ds_defuse(text);
	cr_assert_str_eq(text, "dsfs: \"a\\n\" \xc3\xa4?[2J???????");
}

/* At every size: no longer, ended, quoted, cut with dots, and never within an escape or a character. */
Test(str, quoting_into_little_room_is_cut_with_dots)
{
	static const char text[] =
		"ab\n\x01\xc3\xa4\xe2\x82\xac\xf0\x9f\x90\x87 tail of some length";
	char full[200];

	ds_escape(text, sizeof(text) - 1, full, sizeof(full));
	for (size_t size = 8; size < 80; size++)
		for (int quoted = 0; quoted < 2; quoted++) {
			char *buf = malloc(size), *body = buf + quoted;
			size_t len;

			if (quoted)
				ds_quote(text, sizeof(text) - 1, buf, size);
			else
				ds_escape(text, sizeof(text) - 1, buf, size);
			len = strnlen(buf, size);
			cr_assert_lt(len, size);
			if (quoted) {
				cr_assert_eq(buf[0], '"');
				cr_assert_eq(buf[len - 1], '"');
				len -= 2;
			}
			if (len == strlen(full)) {
				cr_assert_eq(memcmp(body, full, len), 0);
			} else {
				cr_assert_geq(len, 3);
				cr_assert_eq(memcmp(body + len - 3, "...", 3), 0, "%zu", size);
				cr_assert_eq(memcmp(body, full, len - 3), 0, "%zu", size);
				cr_assert(ds_is_utf8(body, len - 3), "%zu", size);
				/* The next byte of the full text starts something. */
				cr_assert_neq((full[len - 3] & 0xc0), 0x80);
				cr_assert(len == 3 || body[len - 4] != '\\' ||
					  (len > 4 && body[len - 5] == '\\'));
			}
			free(buf);
		}
}

Test(str, G03_random_bytes_are_escaped_to_clean_text)
{
	struct ds_prng prng = {.state = ds_random_u64()};

	fprintf(stderr, "seed %llu\n", (unsigned long long)prng.state);
	for (int round = 0; round < 3000; round++) {
		char data[64], buf[300];
		size_t n = (size_t)ds_prng_below(&prng, sizeof(data) + 1);
		size_t size = 8 + (size_t)ds_prng_below(&prng, sizeof(buf) - 7);

		for (size_t i = 0; i < n; i++)
			data[i] = (char)ds_prng_next(&prng);
		ds_quote(data, n, buf, size);
		cr_assert_lt(strnlen(buf, size), size);
		cr_assert(ds_is_utf8(buf, strlen(buf)));
		for (const char *at = buf; *at; at++)
			cr_assert((uint8_t)*at >= 0x20 && *at != 0x7f);
	}
}

Test(str, only_well_formed_UTF_8_is_UTF_8)
{
	static const char *const good[] = {"",
					   "a",
					   "\xc2\x80",
					   "\xdf\xbf",
					   "\xe0\xa0\x80",
					   "\xed\x9f\xbf",
					   "\xee\x80\x80",
					   "\xf0\x90\x80\x80",
					   "\xf4\x8f\xbf\xbf"};
	static const char *const bad[] = {"\x80",
					  "\xc0\x80",
					  "\xc1\xbf",
					  "\xc2",
					  "\xc2\x41",
					  "\xe0\x9f\xbf",
					  "\xed\xa0\x80",
					  "\xed\xbf\xbf",
					  "\xf0\x8f\xbf\xbf",
					  "\xf4\x90\x80\x80",
					  "\xf5\x80\x80\x80",
					  "\xff",
					  "a\xfe",
					  "\xe2\x82",
					  "\xf0\x9f\x90"};

	for (size_t i = 0; i < DS_ARRAY_SIZE(good); i++)
		cr_assert(ds_is_utf8(good[i], strlen(good[i])), "%zu", i);
	for (size_t i = 0; i < DS_ARRAY_SIZE(bad); i++)
		cr_assert_not(ds_is_utf8(bad[i], strlen(bad[i])), "%zu", i);
	cr_assert(ds_is_utf8("a\0b", 3));
}

Test(str, I02_numbers_are_digits_only)
{
	static const char *const bad[] = {"",	  "-1",	 "+1",	" 1",	    "1 ",
					  "0x10", "1e3", "1.0", "\xd9\xa3", "a"};
	uint64_t value = 77;

	for (size_t i = 0; i < DS_ARRAY_SIZE(bad); i++)
		cr_assert_eq(ds_parse_u64(bad[i], UINT64_MAX, &value), -EINVAL, "%s", bad[i]);
	cr_assert_eq(ds_parse_u64("18446744073709551616", UINT64_MAX, &value), -ERANGE);
	cr_assert_eq(ds_parse_u64("99999999999999999999999", UINT64_MAX, &value), -ERANGE);
	cr_assert_eq(ds_parse_u64("11", 10, &value), -ERANGE);
	cr_assert_eq(value, 77);
	cr_assert_eq(ds_parse_u64("18446744073709551615", UINT64_MAX, &value), 0);
	cr_assert_eq(value, UINT64_MAX);
	cr_assert_eq(ds_parse_u64("0010", 10, &value), 0);
	cr_assert_eq(value, 10);
}

Test(str, I02_sizes_are_read_as_people_write_them)
{
	static const struct {
		const char *text;
		uint64_t bytes;
	} good[] = {
		{"0", 0},
		{"4096", 4096},
		{"500G", 500ull << 30},
		{"1.5T", 3ull << 39},
		{"64KiB", 65536},
		{"64kib", 0},
		{"10MB", 10 << 20},
		{"10m", 10 << 20},
		{"0.5K", 512},
		{"0.25k", 256},
		{"1P", 1ull << 50},
		{"7B", 7},
		{"18446744073709551615", UINT64_MAX},
	};
	static const char *const bad[] = {"",	   "K",	       "-1",	"1 K",	" 1K", "1X",
					  "1KiBs", "1Ki",      "1.K",	".5K",	"1KK", "0x10",
					  "1e9",   "\xd9\xa3", "10GB ", "1,5G", "nan"};
	uint64_t bytes;

	for (size_t i = 0; i < DS_ARRAY_SIZE(good); i++) {
		int r = ds_parse_size(good[i].text, &bytes);

		/* The unit's letter may be small, the rest of it not. */
		if (good[i].bytes == 0 && good[i].text[0] != '0') {
			cr_assert_eq(r, -EINVAL, "%s", good[i].text);
			continue;
		}
		cr_assert_eq(r, 0, "%s", good[i].text);
		cr_assert_eq(bytes, good[i].bytes, "%s", good[i].text);
	}
	for (size_t i = 0; i < DS_ARRAY_SIZE(bad); i++)
		cr_assert_eq(ds_parse_size(bad[i], &bytes), -EINVAL, "\"%s\"", bad[i]);
	cr_assert_eq(ds_parse_size("18446744073709551616", &bytes), -ERANGE);
	cr_assert_eq(ds_parse_size("16385P", &bytes), -ERANGE);
	cr_assert_eq(ds_parse_size("99999999999999999999G", &bytes), -ERANGE);
}

Test(str, I02_durations_are_read_as_people_write_them)
{
	static const struct {
		const char *text;
		uint64_t ms;
	} good[] = {
		{"90", 90000},	   {"90s", 90000}, {"15m", 900000}, {"2h", 7200000},
		{"7d", 604800000}, {"250ms", 250}, {"0", 0},	    {"1.5h", 5400000},
		{"0.001", 1},	   {"0.0005s", 0},
	};
	static const char *const bad[] = {"",	"s",   "-1",  "1 s", "1w",
					  "1S", "1hm", "1e3", ".5",  "5."};
	uint64_t ms;

	for (size_t i = 0; i < DS_ARRAY_SIZE(good); i++) {
		cr_assert_eq(ds_parse_duration_ms(good[i].text, &ms), 0, "%s", good[i].text);
		cr_assert_eq(ms, good[i].ms, "%s", good[i].text);
	}
	for (size_t i = 0; i < DS_ARRAY_SIZE(bad); i++)
		cr_assert_eq(ds_parse_duration_ms(bad[i], &ms), -EINVAL, "\"%s\"", bad[i]);
	cr_assert_eq(ds_parse_duration_ms("18446744073709551615d", &ms), -ERANGE);
	cr_assert_eq(ds_parse_duration_ms("18446744073709551d", &ms), -ERANGE);
}

Test(str, sizes_are_written_for_people)
{
	static const struct {
		uint64_t bytes;
		const char *text;
	} sizes[] = {
		{0, "0 B"},
		{312, "312 B"},
		{1023, "1023 B"},
		{1024, "1.0 KiB"},
		{1536, "1.5 KiB"},
		{(1 << 20) - 1, "1.0 MiB"},
		{3ull << 29, "1.5 GiB"},
		{UINT64_MAX, "16.0 EiB"},
	};
	char buf[32];

	for (size_t i = 0; i < DS_ARRAY_SIZE(sizes); i++)
		cr_assert_str_eq(ds_format_size(sizes[i].bytes, buf, sizeof(buf)), sizes[i].text);
}

Test(str, names_are_percent_encoded_as_in_keys)
{
	char *text = ds_percent_encode("a/b c\xc3\xa4%+~_.-Z9", 15, false), *name = NULL;

	cr_assert_str_eq(text, "a%2Fb%20c%C3%A4%25%2B%7E_.-Z9");
	cr_assert_eq(ds_percent_decode(text, &name), 0);
	cr_assert_str_eq(name, "a/b c\xc3\xa4%+~_.-Z9");
	ds_free(text);
	ds_free(name);
	text = ds_percent_encode("a/b c", 5, true);
	cr_assert_str_eq(text, "a/b%20c");
	ds_free(text);
	text = ds_percent_encode("", 0, true);
	cr_assert_str_eq(text, "");
	ds_free(text);
}

/* One name, one key: what the encoder would not have written is refused. */
Test(str, G11_other_spellings_of_a_name_are_refused)
{
	static const char *const bad[] = {"%2f", "%61",	 "%",	   "%2",  "a%",	      "a%2",
					  "%zz", "%00",	 "a b",	   "a/b", "\xc3\xa4", "%2E",
					  "%5F", "%%20", "%C3%a4", "a+b", "%-1",      "% 1"};
	char *name = NULL;

	for (size_t i = 0; i < DS_ARRAY_SIZE(bad); i++) {
		cr_assert_eq(ds_percent_decode(bad[i], &name), -EINVAL, "%s", bad[i]);
		cr_assert_null(name);
	}
}

Test(str, every_byte_goes_through_percent_encoding)
{
	char data[255], *text, *name = NULL;

	for (int i = 0; i < 255; i++)
		data[i] = (char)(i + 1);
	text = ds_percent_encode(data, sizeof(data), false);
	cr_assert_eq(ds_percent_decode(text, &name), 0);
	cr_assert_eq(strlen(name), sizeof(data));
	cr_assert_eq(memcmp(name, data, sizeof(data)), 0);
	ds_free(name);
	ds_mem_fail_after(0, 0);
	cr_assert_eq(ds_percent_decode(text, &name), -ENOMEM);
	ds_mem_fail_after(0, 0);
	cr_assert_null(ds_percent_encode(data, sizeof(data), false));
	ds_mem_fail_after(-1, 0);
	ds_free(text);
}

Test(str, starts_and_ends)
{
	cr_assert(ds_starts_with("abc", "ab"));
	cr_assert(ds_starts_with("abc", ""));
	cr_assert_not(ds_starts_with("a", "ab"));
	cr_assert(ds_ends_with("abc", "bc"));
	cr_assert(ds_ends_with("abc", ""));
	cr_assert_not(ds_ends_with("c", "bc"));
	cr_assert_not(ds_ends_with("abd", "bc"));
}
