#include "repo/sealed.h"

#include <string.h>

#include "util/mem.h"
#include "util/str.h"

/* "\n", 64 hex digits, "\n". */
#define SEAL_LEN 66u

struct sink {
	struct ds_buf *buf;
	int r;
};

static int sink_write(const char *data, size_t len_bytes, void *ctx)
{
	struct sink *sink = ctx;

	if (sink->r == 0)
		sink->r = ds_buf_append(sink->buf, data, len_bytes);
	return sink->r < 0 ? -1 : 0;
}

int ds_json_store(const json_t *object, struct ds_buf *buf)
{
	struct sink sink = {.buf = buf};

	if (json_dump_callback(object, sink_write, &sink, JSON_COMPACT) < 0)
		return sink.r < 0 ? sink.r : -ENOMEM;
	return 0;
}

int ds_sealed_encode(const json_t *object, struct ds_buf *buf)
{
	size_t start = buf->len_bytes;
	char text[DS_DIGEST_TEXT_MAX];
	struct ds_digest digest;
	int r;

	r = ds_json_store(object, buf);
	if (r < 0)
		goto undo;
	r = ds_buf_append_byte(buf, '\n');
	if (r < 0)
		goto undo;
	r = ds_digest_of(buf->data + start, buf->len_bytes - start, &digest);
	if (r < 0)
		goto undo;
	r = ds_buf_appendf(buf, "%s\n", ds_digest_format(&digest, text));
	if (r < 0)
		goto undo;
	r = -DS_E_LIMIT;
	if (buf->len_bytes - start > DS_SEALED_MAX)
		goto undo;
	return 0;
undo:
	ds_buf_truncate(buf, start);
	return r;
}

static int check_format(const json_t *object, const char *key, struct ds_diag *reterr_diag)
{
	const char *needs = NULL;
	uint64_t format;
	char text[64];
	int r;

	r = ds_json_u64(object, "format", INT64_MAX, &format, reterr_diag);
	if (r < 0)
		return ds_diag_set(reterr_diag, r, key, NULL);
	if (format == 0)
		return ds_diag_set(reterr_diag, -DS_E_MALFORMED, key, "format 0");
	if (format <= DS_FORMAT)
		return 0;
	needs = json_string_value(json_object_get(object, "needs"));
	if (!needs || !*needs)
		return ds_diag_set(reterr_diag, -DS_E_TOO_NEW, key,
				   "format %llu needs a later release of dsfs",
				   (unsigned long long)format);
	return ds_diag_set(reterr_diag, -DS_E_TOO_NEW, key,
			   "format %llu needs dsfs %s or later (this is " DS_VERSION ")",
			   (unsigned long long)format,
			   ds_escape(needs, strlen(needs), text, sizeof(text)));
}

int ds_json_load(const void *data, size_t len_bytes, const char *key, json_t **ret_object,
		 struct ds_diag *reterr_diag)
{
	json_error_t error;
	json_t *object;
	int r;

	object = json_loadb(data, len_bytes, JSON_REJECT_DUPLICATES, &error);
	if (!object) {
		/* Out of memory is mostly said by saying nothing; now and then the parser takes it for
		 * a bad token, and then so do we. */
		if (!error.text[0] || json_error_code(&error) == json_error_out_of_memory)
			return -ENOMEM;
		return ds_diag_set(reterr_diag, -DS_E_MALFORMED, key, "JSON: %s", error.text);
	}
	r = json_is_object(object)
		    ? check_format(object, key, reterr_diag)
		    : ds_diag_set(reterr_diag, -DS_E_MALFORMED, key, "not a JSON object");
	if (r < 0) {
		json_decref(object);
		return r;
	}
	*ret_object = object;
	return 0;
}

int ds_sealed_parse(const void *data, size_t len_bytes, const char *key, json_t **ret_object,
		    struct ds_digest *ret_digest, struct ds_diag *reterr_diag)
{
	const char *text = data;
	char seal[DS_DIGEST_TEXT_MAX];
	struct ds_digest expected, found;
	json_t *object;
	size_t json_len;
	int r;

	if (len_bytes > DS_SEALED_MAX)
		return ds_diag_set(reterr_diag, -DS_E_MALFORMED, key, "over 64 KiB");
	if (len_bytes <= SEAL_LEN)
		return ds_diag_set(reterr_diag, -DS_E_MALFORMED, key, "too short");
	json_len = len_bytes - SEAL_LEN;
	if (text[len_bytes - 1] != '\n' || memchr(text, '\n', len_bytes) != text + json_len)
		return ds_diag_set(reterr_diag, -DS_E_MALFORMED, key, "not two lines");
	memcpy(seal, text + json_len + 1, DS_DIGEST_TEXT_MAX - 1);
	seal[DS_DIGEST_TEXT_MAX - 1] = '\0';
	if (ds_digest_parse(seal, &expected) < 0)
		return ds_diag_set(reterr_diag, -DS_E_MALFORMED, key, "no digest in its last line");
	r = ds_digest_of(text, json_len + 1, &found);
	if (r < 0)
		return r;
	if (!ds_digest_equal(&expected, &found))
		return ds_diag_set(reterr_diag, -DS_E_CORRUPT, key,
				   "the digest in its last line does not fit");
	r = ds_json_load(text, json_len, key, &object, reterr_diag);
	if (r < 0)
		return r;
	if (r == 0 && ret_digest)
		r = ds_digest_of(data, len_bytes, ret_digest);
	if (r < 0) {
		json_decref(object);
		return r;
	}
	*ret_object = object;
	return 0;
}

int ds_json_string(const json_t *object, const char *name, size_t len_max, const char **ret_text,
		   struct ds_diag *reterr_diag)
{
	const json_t *value = json_object_get(object, name);

	if (!json_is_string(value))
		return ds_diag_set(reterr_diag, -DS_E_MALFORMED, NULL,
				   "`%s` is missing or not a string", name);
	if (json_string_length(value) > len_max)
		return ds_diag_set(reterr_diag, -DS_E_MALFORMED, NULL, "`%s` is too long", name);
	*ret_text = json_string_value(value);
	return 0;
}

int ds_json_u64(const json_t *object, const char *name, uint64_t max, uint64_t *ret_value,
		struct ds_diag *reterr_diag)
{
	const json_t *value = json_object_get(object, name);

	if (!json_is_integer(value) || json_integer_value(value) < 0)
		return ds_diag_set(reterr_diag, -DS_E_MALFORMED, NULL,
				   "`%s` is missing or not a number from 0", name);
	if ((uint64_t)json_integer_value(value) > max)
		return ds_diag_set(reterr_diag, -DS_E_MALFORMED, NULL, "`%s` is too large", name);
	*ret_value = (uint64_t)json_integer_value(value);
	return 0;
}

int ds_json_digest(const json_t *object, const char *name, struct ds_digest *ret_digest,
		   struct ds_diag *reterr_diag)
{
	const char *text = json_string_value(json_object_get(object, name));

	if (!text || ds_digest_parse(text, ret_digest) < 0)
		return ds_diag_set(reterr_diag, -DS_E_MALFORMED, NULL,
				   "`%s` is missing or not 64 hex digits", name);
	return 0;
}

int ds_json_uuid(const json_t *object, const char *name, struct ds_uuid *ret_uuid,
		 struct ds_diag *reterr_diag)
{
	const char *text = json_string_value(json_object_get(object, name));

	if (!text || ds_hex_decode(text, ret_uuid->bytes, DS_UUID_LEN) < 0)
		return ds_diag_set(reterr_diag, -DS_E_MALFORMED, NULL,
				   "`%s` is missing or not 32 hex digits", name);
	return 0;
}

int ds_json_time(const json_t *object, const char *name, struct ds_time *ret_time,
		 struct ds_diag *reterr_diag)
{
	const char *text = json_string_value(json_object_get(object, name));
	bool is_date;

	if (!text || ds_time_parse(text, ret_time, &is_date) < 0 || is_date)
		return ds_diag_set(reterr_diag, -DS_E_MALFORMED, NULL,
				   "`%s` is missing or not a time", name);
	return 0;
}
