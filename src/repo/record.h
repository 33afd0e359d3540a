/*
 * Version records, `versions/ID` (schema/README.md). Encoding is pure; get and put block.
 */
#ifndef DS_REPO_RECORD_H
#define DS_REPO_RECORD_H

#include "codec/chunk.h"
#include "repo/repo.h"

#define DS_RECORD_MAX	DS_MIB(1)
#define DS_PREFETCH_MAX 64

struct ds_version_totals {
	uint64_t files_n, directories_n, symlinks_n, bytes, rejected_n;
};

struct ds_record {
	struct ds_digest id; /* of the encoded bytes */
	struct ds_digest *parents;
	size_t parents_n;
	struct ds_time time;
	char *author, *message; /* never NULL; UTF-8 */
	bool has_fingerprint;
	struct ds_digest fingerprint;
	struct ds_version_totals totals;
	uint64_t schema;
	uint32_t page_size;
	uint64_t pages_n;
	struct ds_chunk_ref index; /* root of the manifest's chunk index */
	struct ds_chunk_ref prefetch[DS_PREFETCH_MAX];
	size_t prefetch_n;
	void *json; /* json_t of everything, unknown fields included; labels, inputs, transform, run live here only */
};

/* Encodes with a fresh nonce; fills id and json. Extra top-level fields come from `extra` (a json_t object or NULL). */
int ds_record_encode(struct ds_record *record, const void *extra, struct ds_buf *buf);
/* The bytes must hash to `id`. -DS_E_CORRUPT, -DS_E_MALFORMED, -DS_E_TOO_NEW. */
int ds_record_parse(const void *data, size_t len_bytes, const struct ds_digest *id,
		    struct ds_record **ret_record, struct ds_diag *reterr_diag);
int ds_record_get(struct ds_repo *repo, const struct ds_digest *id, struct ds_record **ret_record,
		  struct ds_diag *reterr_diag);
struct ds_record *ds_record_free(struct ds_record *record);
/* "versions/ID"; room for DS_RECORD_KEY_MAX. */
#define DS_RECORD_KEY_MAX 80
const char *ds_record_key(const struct ds_digest *id, char *buf);

#endif
