#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <string.h>

#include "test_leaks.h"
#include "util/buf.h"
#include "util/bytes.h"
#include "util/error.h"
#include "util/mem.h"

TestSuite(buf, .fini = test_leaks_abort);

Test(buf, what_is_appended_is_there_with_a_NUL_behind)
{
	struct ds_buf buf = DS_BUF_INIT(1000);

	cr_assert_str_eq(ds_buf_str(&buf), "");
	cr_assert_eq(ds_buf_append(&buf, NULL, 0), 0);
	cr_assert_eq(ds_buf_append_str(&buf, "one "), 0);
	cr_assert_eq(ds_buf_appendf(&buf, "%s %d", "two", 3), 0);
	cr_assert_eq(ds_buf_append_byte(&buf, '!'), 0);
	cr_assert_str_eq(ds_buf_str(&buf), "one two 3!");
	cr_assert_eq(buf.len_bytes, 10);
	ds_buf_truncate(&buf, 3);
	cr_assert_str_eq(ds_buf_str(&buf), "one");
	ds_buf_clear(&buf);
	cr_assert_str_eq(ds_buf_str(&buf), "");
	cr_assert_eq(buf.len_bytes, 0);
	ds_buf_release(&buf);
	cr_assert_null(buf.data);
}

Test(buf, numbers_are_little_endian)
{
	static const uint8_t expected[] = {0x06, 0x05, 0x04, 0x03, 0x0e, 0x0d,
					   0x0c, 0x0b, 0x0a, 0x09, 0x08, 0x07};
	struct ds_buf buf = DS_BUF_INIT(12);

	cr_assert_eq(ds_buf_append_le32(&buf, 0x03040506), 0);
	cr_assert_eq(ds_buf_append_le64(&buf, 0x0708090a0b0c0d0e), 0);
	cr_assert_eq(buf.len_bytes, sizeof(expected));
	cr_assert_arr_eq(buf.data, expected, sizeof(expected));
	cr_assert_eq(ds_get_le32(buf.data), 0x03040506);
	cr_assert_eq(ds_get_le64(buf.data + 4), 0x0708090a0b0c0d0e);
	ds_buf_release(&buf);
}

Test(buf, memory_stays_aligned_while_it_grows)
{
	struct ds_buf buf = {.max_bytes = 100000, .align_bytes = 4096};

	for (uint32_t i = 0; i < 25000; i++) {
		cr_assert_eq(ds_buf_append_le32(&buf, i), 0);
		cr_assert_eq((uintptr_t)buf.data % 4096, 0);
	}
	cr_assert_eq(ds_buf_append_byte(&buf, 0), -DS_E_LIMIT);
	for (uint32_t i = 0; i < 25000; i++)
		cr_assert_eq(ds_get_le32(buf.data + i * 4), i);
	ds_buf_truncate(&buf, 0);
	ds_mem_fail_after(0, 1);
	cr_assert_eq(ds_buf_reserve(&buf, 50000), 0, "there is room");
	cr_assert_eq(ds_mem_fail_after(-1, 0), 0);
	ds_buf_release(&buf);
	ds_mem_fail_after(0, 0);
	cr_assert_eq(ds_buf_reserve(&buf, 5), -ENOMEM);
	cr_assert_eq(ds_mem_fail_after(-1, 0), 1);
}

Test(buf, the_maximum_is_exact_and_an_error_changes_nothing)
{
	struct ds_buf buf = DS_BUF_INIT(5);

	cr_assert_eq(ds_buf_append_str(&buf, "1234"), 0);
	cr_assert_eq(ds_buf_append_str(&buf, "56"), -DS_E_LIMIT);
	cr_assert_eq(ds_buf_append_le32(&buf, 1), -DS_E_LIMIT);
	cr_assert_eq(ds_buf_appendf(&buf, "%d", 56), -DS_E_LIMIT);
	cr_assert_str_eq(ds_buf_str(&buf), "1234");
	cr_assert_eq(ds_buf_append_str(&buf, "5"), 0);
	cr_assert_eq(ds_buf_append_byte(&buf, '6'), -DS_E_LIMIT);
	cr_assert_eq(ds_buf_append(&buf, NULL, 0), 0);
	cr_assert_str_eq(ds_buf_str(&buf), "12345");
	ds_buf_release(&buf);
	ds_buf_init(&buf, 0);
	cr_assert_eq(ds_buf_append_byte(&buf, '6'), -DS_E_LIMIT);
	cr_assert_eq(ds_buf_append(&buf, NULL, 0), 0);
	ds_buf_release(&buf);
}

Test(buf, lengths_that_overflow_are_over_the_limit)
{
	struct ds_buf buf = DS_BUF_INIT(SIZE_MAX);

	cr_assert_eq(ds_buf_reserve(&buf, SIZE_MAX), -DS_E_LIMIT);
	cr_assert_eq(ds_buf_append_str(&buf, "1234"), 0);
	cr_assert_eq(ds_buf_reserve(&buf, SIZE_MAX), -DS_E_LIMIT);
	cr_assert_eq(ds_buf_reserve(&buf, SIZE_MAX - 3), -DS_E_LIMIT);
	cr_assert_eq(ds_buf_reserve(&buf, SIZE_MAX - 4), -DS_E_LIMIT); /* the NUL */
	cr_assert_str_eq(ds_buf_str(&buf), "1234");
	ds_buf_release(&buf);
}

Test(buf, many_small_pieces_grow_it)
{
	struct ds_buf buf = DS_BUF_INIT(DS_MIB(1));

	for (uint32_t i = 0; i < DS_MIB(1) / 4; i++)
		cr_assert_eq(ds_buf_append_le32(&buf, i), 0);
	cr_assert_eq(buf.len_bytes, DS_MIB(1));
	cr_assert_leq(buf.capacity_bytes, DS_MIB(1));
	for (uint32_t i = 0; i < DS_MIB(1) / 4; i += 777)
		cr_assert_eq(ds_get_le32(buf.data + 4 * i), i);
	cr_assert_eq(ds_buf_append_byte(&buf, 1), -DS_E_LIMIT);
	ds_buf_release(&buf);
}

Test(buf, stolen_memory_is_the_callers)
{
	struct ds_buf buf = DS_BUF_INIT(100);
	uint8_t *data;

	cr_assert_null(ds_buf_steal(&buf));
	cr_assert_eq(ds_buf_append_str(&buf, "text"), 0);
	data = ds_buf_steal(&buf);
	cr_assert_str_eq((char *)data, "text");
	cr_assert_eq(buf.len_bytes, 0);
	cr_assert_eq(ds_buf_append_str(&buf, "more"), 0);
	cr_assert_str_eq(ds_buf_str(&buf), "more");
	ds_free(data);
	ds_buf_release(&buf);
}

Test(buf, J01_no_memory_changes_nothing)
{
	struct ds_buf buf = DS_BUF_INIT(1000);
	char big[200] = {0};

	ds_mem_fail_after(0, 1);
	cr_assert_eq(ds_buf_append_str(&buf, "text"), -ENOMEM);
	cr_assert_str_eq(ds_buf_str(&buf), "");
	cr_assert_eq(ds_mem_fail_after(-1, 0), 1);
	cr_assert_eq(ds_buf_append_str(&buf, "text"), 0);
	ds_mem_fail_after(0, 1);
	cr_assert_eq(ds_buf_append(&buf, big, sizeof(big)), -ENOMEM);
	cr_assert_eq(ds_mem_fail_after(-1, 0), 1);
	cr_assert_str_eq(ds_buf_str(&buf), "text");
	ds_buf_release(&buf);
}

Test(buf, cutting_to_more_than_there_is_is_a_wrong_call, .signal = SIGABRT)
{
	struct ds_buf buf = DS_BUF_INIT(10);

	ds_buf_truncate(&buf, 1);
}

Test(buf, a_cursor_never_runs_past_its_end_and_stays_failed)
{
	static const uint8_t bytes[] = {1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 9};
	struct ds_cursor cursor = ds_cursor_of(bytes, sizeof(bytes));

	cr_assert_eq(ds_cursor_le32(&cursor), 1);
	cr_assert_eq(ds_cursor_le64(&cursor), 2);
	cr_assert_not_null(ds_cursor_take(&cursor, 0));
	cr_assert_not(cursor.failed);
	cr_assert_eq(ds_cursor_le32(&cursor), 0);
	cr_assert(cursor.failed);
	/* The last byte is there, but no longer to be had. */
	cr_assert_null(ds_cursor_take(&cursor, 1));
	cr_assert_null(ds_cursor_take(&cursor, 0));
	cr_assert_eq(ds_cursor_le64(&cursor), 0);
	cursor = ds_cursor_of(bytes, sizeof(bytes));
	cr_assert_null(ds_cursor_take(&cursor, SIZE_MAX));
	cr_assert(cursor.failed);
	cursor = ds_cursor_of(bytes, sizeof(bytes));
	cr_assert_eq(ds_cursor_take(&cursor, sizeof(bytes)), bytes);
	cr_assert_eq(cursor.left_bytes, 0);
	cr_assert_not(cursor.failed);
}
