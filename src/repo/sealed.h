/*
 * Sealed JSON (schema/README.md): one line of JSON, a line with its digest. Pure; any thread.
 */
#ifndef DS_REPO_SEALED_H
#define DS_REPO_SEALED_H

#include <jansson.h>

#include "codec/digest.h"
#include "repo/repo.h"
#include "util/buf.h"

#define DS_SEALED_MAX DS_KIB(64)

/* Compact, keys in the order in which they were set. -ENOMEM. */
int ds_sealed_encode(const json_t *object, struct ds_buf *buf);
/* Checks seal, size, UTF-8, that it is one object without duplicate keys, and `format` (-DS_E_TOO_NEW naming `needs`). `key` only for
 * the diag. The digest of the whole bytes is what the next entry's `previous` holds. ret_digest may be NULL. */
int ds_sealed_parse(const void *data, size_t len_bytes, const char *key, json_t **ret_object,
		    struct ds_digest *ret_digest, struct ds_diag *reterr_diag);

/* JSON without a seal (records): appended, compact, keys in the order in which they were set. -ENOMEM, or buf's limit; then a part of it may be there. */
int ds_json_store(const json_t *object, struct ds_buf *buf);
/* Parses it: one object without duplicate keys, and its `format`. -ENOMEM, -DS_E_MALFORMED, -DS_E_TOO_NEW. */
int ds_json_load(const void *data, size_t len_bytes, const char *key, json_t **ret_object,
		 struct ds_diag *reterr_diag);

/* Checked fields of a JSON object: -DS_E_MALFORMED with the key's name in the diag. */
int ds_json_string(const json_t *object, const char *name, size_t len_max, const char **ret_text,
		   struct ds_diag *reterr_diag);
int ds_json_u64(const json_t *object, const char *name, uint64_t max, uint64_t *ret_value,
		struct ds_diag *reterr_diag);
int ds_json_digest(const json_t *object, const char *name, struct ds_digest *ret_digest,
		   struct ds_diag *reterr_diag);
int ds_json_uuid(const json_t *object, const char *name, struct ds_uuid *ret_uuid,
		 struct ds_diag *reterr_diag);
int ds_json_time(const json_t *object, const char *name, struct ds_time *ret_time,
		 struct ds_diag *reterr_diag);

#endif
