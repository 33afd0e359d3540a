#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "repo/refs.h"
#include "repo/repo_internal.h"
#include "repo/sealed.h"
#include "util/mem.h"
#include "util/str.h"

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static bool is_hex(char c)
{
	return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

/* ASCII's, and those of U+0080..U+009F in UTF-8. */
static bool has_control(const char *name)
{
	for (const unsigned char *c = (const unsigned char *)name; *c; c++) {
		if (*c < 0x20 || *c == 0x7f || (c[0] == 0xc2 && c[1] >= 0x80 && c[1] <= 0x9f))
			return true;
	}
	return false;
}

static const char *name_fault(const char *name)
{
	size_t len = strlen(name), digits_n = 0, hex_n = 0;
	struct ds_time time;

	for (size_t i = 0; i < len; i++) {
		digits_n += is_digit(name[i]);
		hex_n += is_hex(name[i]);
	}
	if (len == 0)
		return "the name of a branch or tag cannot be empty";
	if (!ds_is_utf8(name, len))
		return "the name of a branch or tag must be UTF-8";
	if (name[strcspn(name, "/@:,")])
		return "the name of a branch or tag cannot hold '/', '@', ':' or ','";
	if (has_control(name))
		return "the name of a branch or tag cannot hold control characters";
	if (digits_n == len)
		return "the name of a branch or tag cannot be a number";
	if (hex_n == len && len >= 8)
		return "the name of a branch or tag cannot look like an id";
	if (ds_time_parse(name, &time, NULL) == 0)
		return "the name of a branch or tag cannot be a date";
	if (name[0] == '.' || name[0] == '-')
		return "the name of a branch or tag cannot begin with '.' or '-'";
	return NULL;
}

int ds_ref_name_check(const char *name, struct ds_diag *reterr_diag)
{
	const char *fault = name_fault(name);
	_ds_cleanup_free_ char *encoded = NULL;

	if (fault)
		return ds_diag_set(reterr_diag, -DS_E_USAGE, name, "%s", fault);
	encoded = ds_percent_encode(name, strlen(name), false);
	if (!encoded)
		return -ENOMEM;
	if (strlen(encoded) > DS_REF_NAME_MAX)
		return ds_diag_set(reterr_diag, -DS_E_USAGE, name,
				   "the name of a branch or tag is too long (%u bytes "
				   "percent-encoded)",
				   DS_REF_NAME_MAX);
	return 0;
}

char *ds_ref_key(enum ds_ref_kind kind, const char *name, uint64_t number)
{
	_ds_cleanup_free_ char *encoded = ds_percent_encode(name, strlen(name), false);

	if (!encoded)
		return NULL;
	return ds_asprintf("refs/%s/%s/%010" PRIu64, kind == DS_REF_TAG ? "tags" : "branches",
			   encoded, number);
}

uint64_t ds_entry_number_parse(const char *text)
{
	uint64_t number;

	if (strlen(text) != DS_ENTRY_NUMBER_CHARS ||
	    ds_parse_u64(text, DS_ENTRY_NUMBER_MAX, &number) < 0)
		return 0;
	return number;
}

int ds_ref_entry_encode(const struct ds_repo *repo, struct ds_ref_entry *entry, struct ds_buf *buf)
{
	char uuid[2 * DS_UUID_LEN + 1], writer[2 * DS_UUID_LEN + 1], time[DS_TIME_TEXT_MAX];
	char previous[DS_DIGEST_TEXT_MAX], version[DS_DIGEST_TEXT_MAX];
	size_t start = buf->len_bytes;
	json_t *object;
	int r = -ENOMEM;

	ds_hex_encode(ds_repo_id(repo)->bytes, DS_UUID_LEN, uuid);
	ds_hex_encode(entry->writer.bytes, DS_UUID_LEN, writer);
	entry->time.ns -= entry->time.ns % DS_NS_PER_MS; /* what will be read back */
	object = json_pack("{s:i, s:s, s:s, s:I}", "format", DS_FORMAT, "repository", uuid,
			   entry->kind == DS_REF_TAG ? "tag" : "branch", entry->name, "number",
			   (json_int_t)entry->number);
	if (!object)
		return -ENOMEM;
	if (entry->is_deleted)
		r = json_object_set_new(object, "deleted", json_true());
	else
		r = json_object_set_new(object, "version",
					json_string(ds_digest_format(&entry->version, version)));
	if (r == 0)
		r = json_object_set_new(object, "previous",
					entry->number == 1
						? json_null()
						: json_string(ds_digest_format(&entry->previous,
									       previous)));
	if (r == 0)
		r = json_object_set_new(object, "writer", json_string(writer));
	if (r == 0)
		r = json_object_set_new(object, "time",
					json_string(ds_time_format(entry->time, time)));
	r = r < 0 ? -ENOMEM : ds_sealed_encode(object, buf);
	json_decref(object);
	if (r < 0)
		return r;
	r = ds_digest_of(buf->data + start, buf->len_bytes - start, &entry->self);
	if (r < 0)
		ds_buf_truncate(buf, start);
	return r;
}

static int malformed(struct ds_diag *diag, const char *text)
{
	return ds_diag_set(diag, -DS_E_MALFORMED, NULL, "%s", text);
}

static int parse_target(const json_t *object, struct ds_ref_entry *entry,
			struct ds_diag *reterr_diag)
{
	const json_t *deleted = json_object_get(object, "deleted");

	if (deleted && !json_is_boolean(deleted))
		return malformed(reterr_diag, "`deleted` is not true or false");
	entry->is_deleted = json_is_true(deleted);
	if (entry->is_deleted) {
		if (json_object_get(object, "version"))
			return malformed(reterr_diag, "both `deleted` and `version`");
		return 0;
	}
	return ds_json_digest(object, "version", &entry->version, reterr_diag);
}

static int parse_fields(const struct ds_repo *repo, const json_t *object,
			struct ds_ref_entry *entry, struct ds_diag *reterr_diag)
{
	struct ds_uuid repository;
	const char *name;
	uint64_t number;
	int r;

	r = ds_json_uuid(object, "repository", &repository, reterr_diag);
	if (r < 0)
		return r;
	if (memcmp(repository.bytes, ds_repo_id(repo)->bytes, DS_UUID_LEN) != 0)
		return malformed(reterr_diag, "it is of another repository");
	r = ds_json_string(object, entry->kind == DS_REF_TAG ? "tag" : "branch", DS_REF_NAME_MAX,
			   &name, reterr_diag);
	if (r < 0)
		return r;
	if (strcmp(name, entry->name) != 0)
		return malformed(reterr_diag, "it is of another branch or tag");
	r = ds_json_u64(object, "number", DS_ENTRY_NUMBER_MAX, &number, reterr_diag);
	if (r < 0)
		return r;
	if (number != entry->number)
		return malformed(reterr_diag, "it has another number");
	r = parse_target(object, entry, reterr_diag);
	if (r < 0)
		return r;
	if (entry->kind == DS_REF_TAG &&
	    (entry->number > 2 || (entry->number == 2) != entry->is_deleted))
		return malformed(reterr_diag, "a tag is entry 1, and entry 2 deletes it");
	if (entry->number > 1)
		r = ds_json_digest(object, "previous", &entry->previous, reterr_diag);
	else if (!json_is_null(json_object_get(object, "previous")))
		r = malformed(reterr_diag, "`previous` of entry 1 is not null");
	if (r == 0)
		r = ds_json_uuid(object, "writer", &entry->writer, reterr_diag);
	if (r == 0)
		r = ds_json_time(object, "time", &entry->time, reterr_diag);
	return r;
}

int ds_ref_entry_parse(const struct ds_repo *repo, enum ds_ref_kind kind, const char *name,
		       uint64_t number, const void *data, size_t len_bytes,
		       struct ds_ref_entry *ret_entry, struct ds_diag *reterr_diag)
{
	_ds_cleanup_free_ char *key = ds_ref_key(kind, name, number);
	struct ds_ref_entry entry = {.kind = kind, .number = number};
	json_t *object;
	int r;

	if (!key)
		return -ENOMEM;
	if (strlen(name) > DS_REF_NAME_MAX)
		return ds_diag_set(reterr_diag, -DS_E_USAGE, name, "the name is too long");
	memcpy(entry.name, name, strlen(name) + 1);
	r = ds_sealed_parse(data, len_bytes, key, &object, &entry.self, reterr_diag);
	if (r < 0)
		return r;
	r = parse_fields(repo, object, &entry, reterr_diag);
	json_decref(object);
	if (r < 0)
		return ds_diag_set(reterr_diag, r, key, NULL);
	*ret_entry = entry;
	return 0;
}
