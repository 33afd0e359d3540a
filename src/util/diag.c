#include "util/diag.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "util/str.h"

void ds_diag_clear(struct ds_diag *diag)
{
	if (diag)
		memset(diag, 0, sizeof(*diag));
}

int ds_diag_set(struct ds_diag *diag, int code, const char *object, const char *detail_format, ...)
{
	va_list ap;

	if (!diag)
		return code;
	diag->code = code;
	if (object)
		ds_quote(object, strlen(object), diag->object, sizeof(diag->object));
	if (detail_format) {
		va_start(ap, detail_format);
		vsnprintf(diag->detail, sizeof(diag->detail), detail_format, ap);
		va_end(ap);
	}
	return code;
}

static void append(char *buf, size_t size, size_t *len, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

static void append(char *buf, size_t size, size_t *len, const char *format, ...)
{
	va_list ap;
	int n;

	if (*len >= size)
		return;
	va_start(ap, format);
	n = vsnprintf(buf + *len, size - *len, format, ap);
	va_end(ap);
	if (n > 0)
		*len += (size_t)n;
}

const char *ds_diag_format(const struct ds_diag *diag, char *buf, size_t size)
{
	size_t len = 0;
	const char *sep = " (";

	if (size == 0)
		return buf;
	buf[0] = '\0';
	if (diag->object[0])
		append(buf, size, &len, "%s: ", diag->object);
	append(buf, size, &len, "%s", ds_strerror(diag->code));
	if (diag->detail[0])
		append(buf, size, &len, ": %s", diag->detail);
	if (diag->http_status) {
		append(buf, size, &len, "%sHTTP %d%s%s", sep, diag->http_status,
		       diag->s3_code[0] ? " " : "", diag->s3_code);
		sep = ", ";
	}
	if (diag->sqlite_code) {
		append(buf, size, &len, "%sSQLite %d", sep, diag->sqlite_code);
		sep = ", ";
	}
	if (diag->request_id[0]) {
		append(buf, size, &len, "%srequest %s", sep, diag->request_id);
		sep = ", ";
	}
	if (diag->attempts > 1) {
		append(buf, size, &len, "%s%u attempts", sep, diag->attempts);
		sep = ", ";
	}
	if (sep[0] == ',')
		append(buf, size, &len, ")");
	return buf;
}
