/* Input: a store's URL behind its scheme, then a newline and an endpoint. */
#include <string.h>

#include "fuzz.h"
#include "store/s3_url.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text = (char *)fuzz_alloc(size + 6), *endpoint_text;
	struct ds_s3_endpoint endpoint;
	struct ds_diag diag = {0};
	struct ds_s3_url url;

	memcpy(text, "s3://", 5);
	if (size)
		memcpy(text + 5, data, size);
	text[size + 5] = '\0';
	endpoint_text = strchr(text, '\n');
	if (endpoint_text)
		*endpoint_text++ = '\0';
	if (ds_s3_url_parse(text, &url, &diag) == 0) {
		size_t len = strlen(url.prefix);

		FUZZ_CHECK(len == 0 || (url.prefix[0] != '/' && url.prefix[len - 1] == '/'));
		FUZZ_CHECK(strlen(url.bucket) >= 3 && !strpbrk(url.bucket, "/@:?#"));
		FUZZ_CHECK(!strstr(url.prefix, "//") && !strstr(url.prefix, "/../"));
		ds_s3_url_release(&url);
	}
	if (endpoint_text &&
	    ds_s3_endpoint_parse(endpoint_text, "r", "bucket", DS_STORE_ADDRESSING_AUTO, false,
				 &endpoint, &diag) == 0) {
		FUZZ_CHECK(!strpbrk(endpoint.host, "/@?#\r\n "));
		FUZZ_CHECK(strncmp(endpoint.origin, "https://", 8) == 0 || endpoint.is_loopback);
		ds_s3_endpoint_release(&endpoint);
	}
	fuzz_free((uint8_t *)text);
	return 0;
}
