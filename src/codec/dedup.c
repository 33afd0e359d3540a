/*
 * Builder of advisory index objects. The parser is dedup_parse.c.
 */
#include "codec/dedup.h"

#include <errno.h>
#include <stdlib.h>

#include "codec/dedup_format.h"
#include "util/bytes.h"
#include "util/error.h"
#include "util/map.h"
#include "util/mem.h"

struct row {
	uint8_t prefix[DS_DEDUP_PREFIX_LEN];
	uint32_t pack, ordinal, version;
};

/* Ids in the order of their first appearance; the map gives number + 1. */
struct id_list {
	struct ds_map *numbers;
	struct ds_buf ids;
};

struct ds_dedup_builder {
	struct id_list packs, versions, covers;
	struct row *rows;
	size_t rows_n, capacity_n;
};

static int id_number(struct id_list *list, const struct ds_digest *id, uint32_t *ret_number)
{
	uintptr_t n = (uintptr_t)ds_map_get(list->numbers, id, sizeof(*id));
	int r;

	if (!n) {
		n = list->ids.len_bytes / DS_DIGEST_LEN + 1;
		r = ds_buf_append(&list->ids, id->bytes, DS_DIGEST_LEN);
		if (r < 0)
			return r;
		r = ds_map_put(list->numbers, id, sizeof(*id), (void *)n, NULL);
		if (r < 0) {
			ds_buf_truncate(&list->ids, list->ids.len_bytes - DS_DIGEST_LEN);
			return r;
		}
	}
	*ret_number = (uint32_t)n - 1;
	return 0;
}

int ds_dedup_builder_new(struct ds_dedup_builder **ret_builder)
{
	struct ds_dedup_builder *builder = ds_calloc(1, sizeof(*builder));
	struct id_list *lists[3];
	int r = 0;

	if (!builder)
		return -ENOMEM;
	lists[0] = &builder->packs;
	lists[1] = &builder->versions;
	lists[2] = &builder->covers;
	for (size_t i = 0; i < 3 && r == 0; i++) {
		ds_buf_init(&lists[i]->ids, (size_t)DEDUP_IDS_MAX * DS_DIGEST_LEN);
		r = ds_map_new(&lists[i]->numbers);
	}
	if (r < 0) {
		ds_dedup_builder_free(builder);
		return r;
	}
	*ret_builder = builder;
	return 0;
}

static void id_list_release(struct id_list *list)
{
	ds_map_free(list->numbers, NULL);
	ds_buf_release(&list->ids);
}

struct ds_dedup_builder *ds_dedup_builder_free(struct ds_dedup_builder *builder)
{
	if (!builder)
		return NULL;
	id_list_release(&builder->packs);
	id_list_release(&builder->versions);
	id_list_release(&builder->covers);
	ds_free(builder->rows);
	ds_free(builder);
	return NULL;
}

static int add_row(struct ds_dedup_builder *builder, const uint8_t *prefix,
		   const struct ds_digest *pack, uint32_t ordinal, const struct ds_digest *version)
{
	struct row row = {.ordinal = ordinal};
	int r;

	if (builder->rows_n == DEDUP_ENTRIES_MAX)
		return -DS_E_LIMIT;
	if (builder->rows_n == builder->capacity_n) {
		size_t capacity_n = DS_MAX(builder->capacity_n * 2, (size_t)1024);
		struct row *rows = ds_reallocarray(builder->rows, capacity_n, sizeof(*rows));

		if (!rows)
			return -ENOMEM;
		builder->rows = rows;
		builder->capacity_n = capacity_n;
	}
	memcpy(row.prefix, prefix, sizeof(row.prefix));
	r = id_number(&builder->packs, pack, &row.pack);
	if (r == 0 && version) {
		r = id_number(&builder->versions, version, &row.version);
		row.version++;
	}
	if (r == 0)
		builder->rows[builder->rows_n++] = row;
	return r;
}

int ds_dedup_builder_add(struct ds_dedup_builder *builder, const struct ds_digest *digest,
			 const struct ds_digest *pack, uint32_t ordinal,
			 const struct ds_digest *version)
{
	return add_row(builder, digest->bytes, pack, ordinal, version);
}

int ds_dedup_builder_merge(struct ds_dedup_builder *builder, const struct ds_dedup *dedup,
			   const struct ds_digest *id)
{
	uint32_t number;
	int r = id_number(&builder->covers, id, &number);

	/* What the object covers is covered by the merged one too. */
	for (size_t i = 0; r == 0 && i < ds_dedup_covers_n(dedup); i++)
		r = id_number(&builder->covers, ds_dedup_covered(dedup, i), &number);
	for (uint64_t i = 0; r == 0 && i < dedup->entries_n; i++) {
		struct ds_dedup_hit hit;

		ds_dedup_hit_at(dedup, i, &hit);
		r = add_row(builder, dedup->entries + i * DEDUP_ENTRY_LEN, &hit.pack, hit.ordinal,
			    hit.has_version ? &hit.version : NULL);
	}
	return r;
}

int ds_dedup_builder_cover(struct ds_dedup_builder *builder, const struct ds_digest *id)
{
	uint32_t number;

	return id_number(&builder->covers, id, &number);
}

/* By prefix, pack, ordinal; of equal ones those with a version first. */
static int compare_rows(const void *a_row, const void *b_row)
{
	const struct row *a = a_row, *b = b_row;
	int r = memcmp(a->prefix, b->prefix, sizeof(a->prefix));

	if (r != 0)
		return r;
	if (a->pack != b->pack)
		return a->pack < b->pack ? -1 : 1;
	if (a->ordinal != b->ordinal)
		return a->ordinal < b->ordinal ? -1 : 1;
	if ((a->version == 0) != (b->version == 0))
		return a->version ? -1 : 1;
	return a->version == b->version ? 0 : a->version < b->version ? -1 : 1;
}

static void drop_repeated(struct ds_dedup_builder *builder)
{
	struct row *rows = builder->rows;
	size_t n = 0;

	for (size_t i = 0; i < builder->rows_n; i++)
		if (n == 0 || rows[i].pack != rows[n - 1].pack ||
		    rows[i].ordinal != rows[n - 1].ordinal ||
		    memcmp(rows[i].prefix, rows[n - 1].prefix, sizeof(rows[i].prefix)) != 0)
			rows[n++] = rows[i];
	builder->rows_n = n;
}

static int append_ids(struct ds_buf *buf, const struct id_list *list)
{
	return ds_buf_append(buf, list->ids.data, list->ids.len_bytes);
}

int ds_dedup_builder_finish(struct ds_dedup_builder *builder, struct ds_buf *buf,
			    struct ds_digest *ret_id)
{
	size_t start = buf->len_bytes;
	int r;

	if (builder->rows_n)
		qsort(builder->rows, builder->rows_n, sizeof(*builder->rows), compare_rows);
	drop_repeated(builder);
	r = ds_buf_append(buf, DEDUP_MAGIC, DEDUP_MAGIC_LEN);
	if (r == 0)
		r = ds_buf_append_le32(buf,
				       (uint32_t)(builder->packs.ids.len_bytes / DS_DIGEST_LEN));
	if (r == 0)
		r = ds_buf_append_le32(buf,
				       (uint32_t)(builder->versions.ids.len_bytes / DS_DIGEST_LEN));
	if (r == 0)
		r = ds_buf_append_le32(buf,
				       (uint32_t)(builder->covers.ids.len_bytes / DS_DIGEST_LEN));
	if (r == 0)
		r = ds_buf_append_le32(buf, 0);
	if (r == 0)
		r = ds_buf_append_le64(buf, builder->rows_n);
	if (r == 0)
		r = append_ids(buf, &builder->packs);
	if (r == 0)
		r = append_ids(buf, &builder->versions);
	if (r == 0)
		r = append_ids(buf, &builder->covers);
	if (r == 0)
		r = ds_buf_reserve(buf, builder->rows_n * DEDUP_ENTRY_LEN);
	for (size_t i = 0; r == 0 && i < builder->rows_n; i++) {
		uint8_t raw[DEDUP_ENTRY_LEN];

		memcpy(raw, builder->rows[i].prefix, DS_DEDUP_PREFIX_LEN);
		ds_put_le32(raw + 8, builder->rows[i].pack);
		ds_put_le32(raw + 12, builder->rows[i].ordinal);
		ds_put_le32(raw + 16, builder->rows[i].version);
		r = ds_buf_append(buf, raw, sizeof(raw));
	}
	if (r == 0)
		r = ds_digest_of(buf->data + start, buf->len_bytes - start, ret_id);
	if (r < 0)
		ds_buf_truncate(buf, start);
	return r;
}
