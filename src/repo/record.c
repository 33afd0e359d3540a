#include "repo/record.h"

#include <jansson.h>
#include <string.h>

#include "codec/page_index.h"
#include "codec/pack.h"
#include "repo/repo_internal.h"
#include "repo/sealed.h"
#include "util/mem.h"
#include "util/random.h"
#include "util/str.h"

#define PAGE_SIZE_MIN 4096u
#define PAGE_SIZE_MAX 65536u

const char *ds_record_key(const struct ds_digest *id, char *buf)
{
	memcpy(buf, "versions/", 9);
	ds_digest_format(id, buf + 9);
	return buf;
}

struct ds_record *ds_record_free(struct ds_record *record)
{
	if (!record)
		return NULL;
	ds_free(record->parents);
	ds_free(record->author);
	ds_free(record->message);
	json_decref(record->json);
	ds_free(record);
	return NULL;
}

/* Encoding. A NULL anywhere ends in -ENOMEM: json_*_set_new and _append_new refuse it. */

static json_t *chunk_to_json(const struct ds_chunk_ref *chunk)
{
	char digest[DS_DIGEST_TEXT_MAX], pack[DS_DIGEST_TEXT_MAX];

	return json_pack("{s:s, s:s, s:I, s:I, s:I, s:I}", "digest",
			 ds_digest_format(&chunk->digest, digest), "pack",
			 ds_digest_format(&chunk->pack, pack), "ordinal",
			 (json_int_t)chunk->ordinal, "offset", (json_int_t)chunk->stored_off,
			 "stored", (json_int_t)chunk->stored_len_bytes, "raw",
			 (json_int_t)chunk->raw_len_bytes);
}

static json_t *parents_to_json(const struct ds_record *record)
{
	json_t *array = json_array();
	char text[DS_DIGEST_TEXT_MAX];

	for (size_t i = 0; array && i < record->parents_n; i++) {
		if (json_array_append_new(array, json_string(ds_digest_format(&record->parents[i],
									      text))) < 0) {
			json_decref(array);
			return NULL;
		}
	}
	return array;
}

static json_t *prefetch_to_json(const struct ds_record *record)
{
	json_t *array = json_array();

	for (size_t i = 0; array && i < record->prefetch_n; i++) {
		if (json_array_append_new(array, chunk_to_json(&record->prefetch[i])) < 0) {
			json_decref(array);
			return NULL;
		}
	}
	return array;
}

/* What only lives in JSON: from `extra`, or the default (which is taken). */
static int set_extra(json_t *object, const json_t *extra, const char *name, json_t *otherwise)
{
	json_t *value = json_object_get(extra, name);

	if (!value)
		return json_object_set_new(object, name, otherwise);
	json_decref(otherwise);
	return json_object_set(object, name, value);
}

static int fill_json(const struct ds_record *record, const json_t *extra, json_t *object)
{
	char time[DS_TIME_TEXT_MAX], digest[DS_DIGEST_TEXT_MAX];
	char nonce[2 * DS_UUID_LEN + 1];
	struct ds_uuid random;
	int r = 0;

	ds_random_bytes(random.bytes, sizeof(random.bytes));
	ds_hex_encode(random.bytes, sizeof(random.bytes), nonce);
	r |= json_object_set_new(object, "format", json_integer(DS_FORMAT));
	r |= json_object_set_new(object, "nonce", json_string(nonce));
	r |= json_object_set_new(object, "parents", parents_to_json(record));
	r |= json_object_set_new(object, "time", json_string(ds_time_format(record->time, time)));
	r |= json_object_set_new(object, "author", json_string(record->author));
	r |= json_object_set_new(object, "message", json_string(record->message));
	r |= json_object_set_new(object, "fingerprint",
				 record->has_fingerprint
					 ? json_string(
						   ds_digest_format(&record->fingerprint, digest))
					 : json_null());
	r |= json_object_set_new(object, "totals",
				 json_pack("{s:I, s:I, s:I, s:I, s:I}", "files",
					   (json_int_t)record->totals.files_n, "directories",
					   (json_int_t)record->totals.directories_n, "symlinks",
					   (json_int_t)record->totals.symlinks_n, "bytes",
					   (json_int_t)record->totals.bytes, "rejected",
					   (json_int_t)record->totals.rejected_n));
	r |= set_extra(object, extra, "inputs", json_array());
	r |= set_extra(object, extra, "transform", json_null());
	r |= json_object_set_new(object, "producer", json_string("dsfs " DS_VERSION));
	r |= set_extra(object, extra, "run", json_null());
	r |= set_extra(object, extra, "labels", json_object());
	r |= json_object_set_new(object, "manifest",
				 json_pack("{s:I, s:I, s:I, s:o}", "schema",
					   (json_int_t)record->schema, "page_size",
					   (json_int_t)record->page_size, "pages",
					   (json_int_t)record->pages_n, "index",
					   chunk_to_json(&record->index)));
	r |= json_object_set_new(object, "prefetch", prefetch_to_json(record));
	if (extra)
		r |= json_object_update_missing(object, (json_t *)(uintptr_t)extra);
	return r == 0 ? 0 : -ENOMEM;
}

int ds_record_encode(struct ds_record *record, const void *extra, struct ds_buf *buf)
{
	size_t start = buf->len_bytes;
	json_t *object;
	int r;

	/* json_string would take it for a lack of memory. */
	if (!ds_is_utf8(record->author, strlen(record->author)) ||
	    !ds_is_utf8(record->message, strlen(record->message)))
		return -DS_E_USAGE;
	record->time.ns -= record->time.ns % DS_NS_PER_MS; /* what will be read back */
	object = json_object();
	if (!object)
		return -ENOMEM;
	r = fill_json(record, extra, object);
	if (r == 0)
		r = ds_json_store(object, buf);
	if (r == 0 && buf->len_bytes - start > DS_RECORD_MAX)
		r = -DS_E_LIMIT;
	if (r == 0)
		r = ds_digest_of(buf->data + start, buf->len_bytes - start, &record->id);
	if (r < 0) {
		json_decref(object);
		ds_buf_truncate(buf, start);
		return r;
	}
	json_decref(record->json);
	record->json = object;
	return 0;
}

/* Parsing. */

static int malformed(struct ds_diag *diag, const char *text)
{
	return ds_diag_set(diag, -DS_E_MALFORMED, NULL, "%s", text);
}

static int chunk_from_json(const json_t *object, uint64_t raw_max, struct ds_chunk_ref *ret_chunk,
			   struct ds_diag *reterr_diag)
{
	uint64_t ordinal = 0, offset = 0, stored = 0, raw = 0;
	int r;

	if (!json_is_object(object))
		return malformed(reterr_diag, "a chunk is not an object");
	r = ds_json_digest(object, "digest", &ret_chunk->digest, reterr_diag);
	if (r == 0)
		r = ds_json_digest(object, "pack", &ret_chunk->pack, reterr_diag);
	if (r == 0)
		r = ds_json_u64(object, "ordinal", DS_PACK_CHUNKS_MAX - 1, &ordinal, reterr_diag);
	if (r == 0)
		r = ds_json_u64(object, "offset", DS_PACK_MAX, &offset, reterr_diag);
	if (r == 0)
		r = ds_json_u64(object, "raw", raw_max, &raw, reterr_diag);
	if (r == 0)
		r = ds_json_u64(object, "stored", raw, &stored, reterr_diag);
	if (r < 0)
		return r;
	if (offset < DS_PACK_HEAD_LEN || stored == 0)
		return malformed(reterr_diag, "a chunk's offset or length is out of range");
	ret_chunk->ordinal = (uint32_t)ordinal;
	ret_chunk->stored_off = offset;
	ret_chunk->stored_len_bytes = (uint32_t)stored;
	ret_chunk->raw_len_bytes = (uint32_t)raw;
	return 0;
}

static int parse_parents(const json_t *object, struct ds_record *record,
			 struct ds_diag *reterr_diag)
{
	const json_t *array = json_object_get(object, "parents");
	size_t n = json_array_size(array);

	if (!json_is_array(array))
		return malformed(reterr_diag, "`parents` is missing or not an array");
	if (n == 0)
		return 0;
	record->parents = ds_calloc(n, sizeof(*record->parents));
	if (!record->parents)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		const char *text = json_string_value(json_array_get(array, i));

		if (!text || ds_digest_parse(text, &record->parents[i]) < 0)
			return malformed(reterr_diag, "a parent is not 64 hex digits");
	}
	record->parents_n = n;
	return 0;
}

static int parse_texts(const json_t *object, struct ds_record *record, struct ds_diag *reterr_diag)
{
	const char *author = NULL, *message = NULL;
	int r;

	r = ds_json_string(object, "author", DS_RECORD_MAX, &author, reterr_diag);
	if (r == 0)
		r = ds_json_string(object, "message", DS_RECORD_MAX, &message, reterr_diag);
	if (r < 0)
		return r;
	record->author = ds_strdup(author);
	record->message = ds_strdup(message);
	return record->author && record->message ? 0 : -ENOMEM;
}

static int parse_totals(const json_t *object, struct ds_version_totals *totals,
			struct ds_diag *reterr_diag)
{
	const json_t *from = json_object_get(object, "totals");
	int r;

	r = ds_json_u64(from, "files", INT64_MAX, &totals->files_n, reterr_diag);
	if (r == 0)
		r = ds_json_u64(from, "directories", INT64_MAX, &totals->directories_n,
				reterr_diag);
	if (r == 0)
		r = ds_json_u64(from, "symlinks", INT64_MAX, &totals->symlinks_n, reterr_diag);
	if (r == 0)
		r = ds_json_u64(from, "bytes", INT64_MAX, &totals->bytes, reterr_diag);
	if (r == 0)
		r = ds_json_u64(from, "rejected", INT64_MAX, &totals->rejected_n, reterr_diag);
	return r;
}

static int parse_manifest(const json_t *object, struct ds_record *record,
			  struct ds_diag *reterr_diag)
{
	const json_t *from = json_object_get(object, "manifest");
	uint64_t page_size = 0;
	int r;

	r = ds_json_u64(from, "schema", INT64_MAX, &record->schema, reterr_diag);
	if (r == 0)
		r = ds_json_u64(from, "page_size", PAGE_SIZE_MAX, &page_size, reterr_diag);
	if (r == 0)
		r = ds_json_u64(from, "pages", DS_MANIFEST_PAGES_MAX, &record->pages_n,
				reterr_diag);
	if (r == 0)
		r = chunk_from_json(json_object_get(from, "index"), DS_PAGE_INDEX_NODE_MAX,
				    &record->index, reterr_diag);
	if (r < 0)
		return r;
	if (page_size < PAGE_SIZE_MIN || (page_size & (page_size - 1)) != 0)
		return malformed(reterr_diag, "`page_size` is not a power of two from 4096");
	if (record->schema == 0 || record->pages_n == 0)
		return malformed(reterr_diag, "`schema` or `pages` is 0");
	record->page_size = (uint32_t)page_size;
	return 0;
}

/* All in one pack and side by side: so a reader fetches them by one GET and no more than them. */
static int parse_prefetch(const json_t *object, struct ds_record *record,
			  struct ds_diag *reterr_diag)
{
	const json_t *array = json_object_get(object, "prefetch");
	uint64_t low = UINT64_MAX, high = 0, sum = 0;
	size_t n = json_array_size(array);

	if (!json_is_array(array) || n > DS_PREFETCH_MAX)
		return malformed(reterr_diag,
				 "`prefetch` is missing, not an array, or has over 64 chunks");
	for (size_t i = 0; i < n; i++) {
		struct ds_chunk_ref *chunk = &record->prefetch[i];
		int r;

		r = chunk_from_json(json_array_get(array, i), DS_CHUNK_MAX, chunk, reterr_diag);
		if (r < 0)
			return r;
		low = DS_MIN(low, chunk->stored_off);
		high = DS_MAX(high, chunk->stored_off + chunk->stored_len_bytes);
		sum += chunk->stored_len_bytes;
		if (!ds_digest_equal(&chunk->pack, &record->prefetch[0].pack))
			return malformed(reterr_diag, "`prefetch` is not in one pack");
	}
	if (n > 0 && high - low != sum)
		return malformed(reterr_diag, "`prefetch` is not side by side");
	record->prefetch_n = n;
	return 0;
}

static int parse_fields(const json_t *object, struct ds_record *record, struct ds_diag *reterr_diag)
{
	const json_t *fingerprint = json_object_get(object, "fingerprint");
	int r;

	r = parse_parents(object, record, reterr_diag);
	if (r == 0)
		r = ds_json_time(object, "time", &record->time, reterr_diag);
	if (r == 0)
		r = parse_texts(object, record, reterr_diag);
	if (r == 0 && !json_is_null(fingerprint)) {
		record->has_fingerprint = true;
		r = ds_json_digest(object, "fingerprint", &record->fingerprint, reterr_diag);
	}
	if (r == 0)
		r = parse_totals(object, &record->totals, reterr_diag);
	if (r == 0)
		r = parse_manifest(object, record, reterr_diag);
	if (r == 0)
		r = parse_prefetch(object, record, reterr_diag);
	return r;
}

int ds_record_parse(const void *data, size_t len_bytes, const struct ds_digest *id,
		    struct ds_record **ret_record, struct ds_diag *reterr_diag)
{
	struct ds_record *record;
	char key[DS_RECORD_KEY_MAX];
	struct ds_digest digest;
	json_t *object;
	int r;

	ds_record_key(id, key);
	if (len_bytes > DS_RECORD_MAX)
		return ds_diag_set(reterr_diag, -DS_E_MALFORMED, key, "over 1 MiB");
	r = ds_digest_of(data, len_bytes, &digest);
	if (r < 0)
		return r;
	if (!ds_digest_equal(&digest, id))
		return ds_diag_set(reterr_diag, -DS_E_CORRUPT, key, NULL);
	record = ds_calloc(1, sizeof(*record));
	if (!record)
		return -ENOMEM;
	record->id = *id;
	r = ds_json_load(data, len_bytes, key, &object, reterr_diag);
	record->json = r == 0 ? object : NULL;
	if (r == 0)
		r = parse_fields(record->json, record, reterr_diag);
	if (r < 0) {
		ds_record_free(record);
		return r == -DS_E_MALFORMED ? ds_diag_set(reterr_diag, r, key, NULL) : r;
	}
	*ret_record = record;
	return 0;
}

int ds_record_get(struct ds_repo *repo, const struct ds_digest *id, struct ds_record **ret_record,
		  struct ds_diag *reterr_diag)
{
	_ds_cleanup_buf_ struct ds_buf buf = DS_BUF_INIT(DS_RECORD_MAX);
	char key[DS_RECORD_KEY_MAX];
	int r;

	r = ds_store_get(ds_repo_store(repo), ds_record_key(id, key), &buf, reterr_diag);
	if (r == -DS_E_ABSENT)
		return ds_diag_set(reterr_diag, -DS_E_NO_VERSION, key,
				   "the version's record is not there");
	if (r == -DS_E_LIMIT)
		return ds_diag_set(reterr_diag, -DS_E_MALFORMED, key, "over 1 MiB");
	if (r < 0)
		return r;
	return ds_record_parse(buf.data, buf.len_bytes, id, ret_record, reterr_diag);
}
