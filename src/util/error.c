#include "util/error.h"

#include <string.h>

struct error_row {
	int number;
	int err;
	bool retry;
	const char *name;
	const char *text;
};

static const struct error_row rows[] = {
#define DS_X(name, number, err, retry, text) {number, err, retry, #name, text},
	DS_ERRORS(DS_X)
#undef DS_X
};

static const struct error_row *find(int code)
{
	int number = code < 0 ? -code : code;

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		if (rows[i].number == number)
			return &rows[i];
	return NULL;
}

const char *ds_strerror(int code)
{
	const struct error_row *row = find(code);
	const char *text;

	if (row)
		return row->text;
	if (code == 0)
		return "success";
	text = strerrordesc_np(code < 0 ? -code : code);
	return text ? text : "unknown error";
}

const char *ds_error_name(int code)
{
	const struct error_row *row = find(code);
	const char *name;

	if (row)
		return row->name;
	name = strerrorname_np(code < 0 ? -code : code);
	return name ? name : "UNKNOWN";
}

int ds_error_errno(int code)
{
	const struct error_row *row = find(code);
	int number = code < 0 ? -code : code;

	if (row)
		return row->err;
	return number < 4096 ? number : EIO;
}

bool ds_error_is_retryable(int code)
{
	const struct error_row *row = find(code);

	return row && row->retry;
}
