/*
 * Where an error came from, beside its code. Filled by the layer that saw it, printed by fs and cli.
 * Plain storage of the caller: init with {0} or ds_diag_clear; no ownership, no threads.
 */
#ifndef DS_UTIL_DIAG_H
#define DS_UTIL_DIAG_H

#include <stddef.h>

#include "util/error.h"

struct ds_diag {
	int code;	     /* the error, as returned; 0: nothing noted */
	int http_status;     /* 0: none */
	int sqlite_code;     /* extended result code; 0: none */
	unsigned attempts;   /* requests sent for this operation */
	char s3_code[64];    /* <Code> of an S3 error document, or "" */
	char request_id[96]; /* x-amz-request-id, or "" */
	char object[320];    /* key or path, quoted for a log; "" if none */
	char detail[320];    /* one clause in plain words; "" if none; never a secret */
};

/* NULL is allowed. Who goes on after an error clears what it noted: the next error may have nothing to note. */
void ds_diag_clear(struct ds_diag *diag);

/*
 * Notes `code` with an optional object and a printf-style detail, and returns `code`, so that a
 * caller writes `return ds_diag_set(reterr_diag, -DS_E_MALFORMED, key, "no number")`. `diag` may be
 * NULL. The object is quoted (ds_quote); both are cut to fit.
 */
int ds_diag_set(struct ds_diag *diag, int code, const char *object, const char *detail_format, ...)
	__attribute__((format(printf, 4, 5)));

/* One line without a newline: "detail: object: text (HTTP 503 SlowDown, request id, 4 attempts)".
 * Never longer than `size`, always NUL-terminated. Returns buf. */
const char *ds_diag_format(const struct ds_diag *diag, char *buf, size_t size);

#endif
