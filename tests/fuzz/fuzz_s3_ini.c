/* Input: a credentials or config file. */
#include <string.h>

#include "fuzz.h"
#include "store/s3_credentials.h"

static void on_value(void *ctx, const char *section, const char *key, const char *value)
{
	size_t *sum = ctx;

	FUZZ_CHECK(!strpbrk(section, "\n]") && !strpbrk(key, "\n=") && !strchr(value, '\n'));
	FUZZ_CHECK(*value != ' ' && *value != '\t');
	*sum += strlen(section) + strlen(key) + strlen(value);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text = (char *)fuzz_alloc(size + 1);
	size_t sum = 0;

	if (size)
		memcpy(text, data, size);
	text[size] = '\0';
	ds_s3_ini_parse(text, on_value, &sum);
	fuzz_free((uint8_t *)text);
	return 0;
}
