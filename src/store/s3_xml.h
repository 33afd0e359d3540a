/*
 * S3's XML answers: a page of ListObjectsV2, and error documents. What comes in is hostile: document
 * types are refused (and with them entities), depth, texts and rows are bounded.
 * Pure functions; any thread.
 */
#ifndef DS_STORE_S3_XML_H
#define DS_STORE_S3_XML_H

#include "store/store.h"

#define DS_S3_PAGE_MAX_ROWS 1000u

struct ds_s3_error {
	char code[64]; /* "" if the document has none */
	char message[256];
	char region[48];
	char request_id[96];
	uint64_t object_size_bytes; /* ActualObjectSize of InvalidRange */
	bool has_object_size;
};
/* 0 if the bytes are an error document, whole or cut off at their end (as much is filled in as is
 * there); -DS_E_PROTOCOL if not; -ENOMEM. Texts come out escaped, fit for a log. */
int ds_s3_parse_error(const void *data, size_t len_bytes, struct ds_s3_error *ret_error);

struct ds_s3_page {
	struct ds_store_listing rows; /* keys are whole, as in the bucket */
	bool is_truncated;
	char *token; /* NextContinuationToken; NULL: none */
};
/* -DS_E_PROTOCOL for anything else than such a page, -ENOMEM. */
int ds_s3_parse_page(const void *data, size_t len_bytes, struct ds_s3_page *ret_page);
void ds_s3_page_release(struct ds_s3_page *page);

#endif
