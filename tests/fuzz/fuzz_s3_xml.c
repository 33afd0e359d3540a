/* Input: an answer of S3, read as a page of a list and as an error document. */
#include <string.h>

#include "fuzz.h"
#include "store/s3_xml.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t *copy = fuzz_copy(data, size);
	struct ds_s3_page page;
	struct ds_s3_error error;
	int r = ds_s3_parse_page(copy, size, &page);

	FUZZ_CHECK(r == 0 || r == -DS_E_PROTOCOL);
	if (r == 0) {
		FUZZ_CHECK(page.rows.objects_n <= DS_S3_PAGE_MAX_ROWS);
		FUZZ_CHECK(!page.is_truncated || page.token);
		for (size_t i = 0; i < page.rows.objects_n; i++)
			FUZZ_CHECK(page.rows.objects[i].key);
		ds_s3_page_release(&page);
	}
	r = ds_s3_parse_error(copy, size, &error);
	FUZZ_CHECK(r == 0 || r == -DS_E_PROTOCOL);
	/* What goes into a log is one line. */
	FUZZ_CHECK(!strpbrk(error.message, "\n\r\033") && !strpbrk(error.code, "\n\r\033"));
	fuzz_free(copy);
	return 0;
}
