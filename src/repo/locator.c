#include "repo/locator.h"

#include <string.h>

#include "util/mem.h"

int ds_locator_parse(const char *text, struct ds_locator *ret_locator, struct ds_diag *reterr_diag)
{
	const char *slash = strrchr(text, '/');
	const char *at = strrchr(slash ? slash : text, '@');
	size_t url_len = at ? (size_t)(at - text) : strlen(text);
	struct ds_locator locator = {0};

	for (const char *c = text; *c; c++) {
		if ((unsigned char)*c < 0x20 || *c == 0x7f)
			return ds_diag_set(reterr_diag, -DS_E_USAGE, text,
					   "a repository's name cannot hold control characters");
	}
	if (url_len == 0)
		return ds_diag_set(reterr_diag, -DS_E_USAGE, text, "no repository given");
	if (at && !at[1])
		return ds_diag_set(reterr_diag, -DS_E_USAGE, text,
				   "no version after '@' (a path that ends in '@' needs a '/' "
				   "behind it)");
	locator.url = ds_strndup(text, url_len);
	if (at)
		locator.selector = ds_strdup(at + 1);
	if (!locator.url || (at && !locator.selector)) {
		ds_locator_release(&locator);
		return -ENOMEM;
	}
	*ret_locator = locator;
	return 0;
}

void ds_locator_release(struct ds_locator *locator)
{
	ds_free(locator->url);
	ds_free(locator->selector);
	*locator = (struct ds_locator){0};
}
