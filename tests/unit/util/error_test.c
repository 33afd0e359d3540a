#include <criterion/criterion.h>
#include <string.h>

#include "test_leaks.h"
#include "util/diag.h"
#include "util/error.h"
#include "util/mem.h"

TestSuite(error, .fini = test_leaks_abort);

Test(error, every_code_has_a_number_a_name_an_errno_and_a_text_of_its_own)
{
	static const struct {
		int number;
		const char *name;
	} codes[] = {
#define DS_X(name, number, err, retry, text) {number, #name},
		DS_ERRORS(DS_X)
#undef DS_X
	};

	for (size_t i = 0; i < DS_ARRAY_SIZE(codes); i++) {
		int code = -codes[i].number;

		cr_assert_gt(codes[i].number, 4095);
		cr_assert_str_eq(ds_error_name(code), codes[i].name);
		cr_assert_str_eq(ds_error_name(-code), codes[i].name);
		cr_assert_gt(ds_error_errno(code), 0);
		cr_assert_lt(ds_error_errno(code), 4096);
		cr_assert_gt(strlen(ds_strerror(code)), 3);
		for (size_t j = 0; j < i; j++) {
			cr_assert_neq(codes[i].number, codes[j].number);
			cr_assert_str_neq(codes[i].name, codes[j].name);
			cr_assert_str_neq(ds_strerror(-codes[j].number), ds_strerror(code));
		}
	}
}

/* 503 is never ENOENT: only what says so by its name is. */
Test(error, T9_no_trouble_with_the_store_reads_as_ENOENT)
{
	static const int codes[] = {DS_E_ABSENT,    DS_E_DENIED, DS_E_AUTH,    DS_E_NO_KEYS,
				    DS_E_THROTTLED, DS_E_SERVER, DS_E_NETWORK, DS_E_TIMEOUT,
				    DS_E_PROTOCOL,  DS_E_CORRUPT};

	for (size_t i = 0; i < DS_ARRAY_SIZE(codes); i++)
		cr_assert_neq(ds_error_errno(-codes[i]), ENOENT);
}

Test(error, an_errno_stands_for_itself)
{
	cr_assert_eq(ds_error_errno(-ENOSPC), ENOSPC);
	cr_assert_eq(ds_error_errno(0), 0);
	cr_assert_str_eq(ds_error_name(-ENOENT), "ENOENT");
	cr_assert_str_eq(ds_strerror(-ENOENT), "No such file or directory");
	cr_assert_str_eq(ds_strerror(0), "success");
	cr_assert_not(ds_error_is_retryable(-EIO));
}

Test(error, unknown_codes_are_EIO_and_have_words)
{
	static const int codes[] = {-4999, 4999, -4095, 1 << 30, -(1 << 30)};

	for (size_t i = 0; i < DS_ARRAY_SIZE(codes); i++) {
		cr_assert_not_null(ds_strerror(codes[i]));
		cr_assert_not_null(ds_error_name(codes[i]));
		cr_assert_gt(ds_error_errno(codes[i]), 0);
		cr_assert_not(ds_error_is_retryable(codes[i]));
	}
	cr_assert_eq(ds_error_errno(-4999), EIO);
}

Test(error, what_may_be_tried_again_is_what_can_pass)
{
	cr_assert(ds_error_is_retryable(-DS_E_THROTTLED));
	cr_assert(ds_error_is_retryable(-DS_E_NETWORK));
	cr_assert(ds_error_is_retryable(-DS_E_SERVER));
	cr_assert_not(ds_error_is_retryable(-DS_E_ABSENT));
	cr_assert_not(ds_error_is_retryable(-DS_E_DENIED));
	cr_assert_not(ds_error_is_retryable(-DS_E_CORRUPT));
}

Test(error, a_diag_is_one_line_with_what_is_known)
{
	struct ds_diag diag = {0};
	char line[1024];

	cr_assert_eq(ds_diag_set(&diag, -DS_E_SERVER, "packs/a\nb", "part %d", 3), -DS_E_SERVER);
	cr_assert_str_eq(ds_diag_format(&diag, line, sizeof(line)),
			 "\"packs/a\\nb\": the store failed: part 3");
	diag.http_status = 503;
	strcpy(diag.s3_code, "SlowDown");
	strcpy(diag.request_id, "tx1");
	diag.attempts = 4;
	cr_assert_str_eq(
		ds_diag_format(&diag, line, sizeof(line)),
		"\"packs/a\\nb\": the store failed: part 3 (HTTP 503 SlowDown, request tx1, "
		"4 attempts)");
	ds_diag_clear(&diag);
	diag.code = -ENOSPC;
	diag.sqlite_code = 13;
	cr_assert_str_eq(ds_diag_format(&diag, line, sizeof(line)),
			 "No space left on device (SQLite 13)");
	cr_assert_eq(ds_diag_set(NULL, -EIO, "x", "y"), -EIO);
}

Test(error, a_diag_is_cut_at_every_size_and_never_longer)
{
	struct ds_diag diag = {.http_status = 403, .s3_code = "AccessDenied", .attempts = 2};
	char object[2000], full[1024];

	memset(object, '\x01', sizeof(object) - 1);
	object[sizeof(object) - 1] = '\0';
	ds_diag_set(&diag, -DS_E_DENIED, object, "%s", object);
	ds_diag_format(&diag, full, sizeof(full));
	for (size_t size = 1; size <= sizeof(full); size++) {
		char *line = malloc(size);

		memset(line, 'x', size);
		ds_diag_format(&diag, line, size);
		cr_assert_lt(strnlen(line, size), size);
		cr_assert_eq(strncmp(line, full, strlen(line)), 0);
		free(line);
	}
}
