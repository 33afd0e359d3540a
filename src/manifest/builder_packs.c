/*
 * The pack table, the totals and the rejected paths. Packs and totals live in memory until finish,
 * where only what has changed is written.
 */
#include "manifest/builder_impl.h"

#include <stdio.h>
#include <string.h>

static struct builder_pack *find(struct ds_builder *builder, uint32_t number)
{
	size_t low = 0, high = builder->packs_n;

	/* Rows are added pack by pack, and the newest packs are the last. */
	if (high > 0 && builder->packs[high - 1].row.number == number)
		return &builder->packs[high - 1];
	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (builder->packs[middle].row.number < number)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == builder->packs_n || builder->packs[low].row.number != number)
		return NULL;
	return &builder->packs[low];
}

static int append(struct ds_builder *builder, const struct builder_pack *pack)
{
	if (builder->packs_n == builder->packs_capacity) {
		size_t capacity = DS_MAX(builder->packs_capacity * 2, (size_t)64);
		struct builder_pack *packs =
			ds_reallocarray(builder->packs, capacity, sizeof(*packs));

		if (!packs)
			return -ENOMEM;
		builder->packs = packs;
		builder->packs_capacity = capacity;
	}
	builder->packs[builder->packs_n++] = *pack;
	return 0;
}

static int note_number(struct ds_builder *builder, const struct ds_pack_row *row)
{
	return ds_map_put(builder->pack_numbers, row->id.bytes, DS_DIGEST_LEN,
			  (void *)(uintptr_t)row->number, NULL);
}

static int load_pack(void *ctx, const struct ds_pack_row *row)
{
	struct builder_pack pack = {.row = *row, .stored_live_n = row->live_n, .is_known = true};
	struct ds_builder *builder = ctx;
	int r = append(builder, &pack);

	return r < 0 ? r : note_number(builder, row);
}

int builder_packs_load(struct ds_builder *builder)
{
	return ds_read_packs(&builder->sql, 0, load_pack, builder);
}

void builder_packs_release(struct ds_builder *builder)
{
	ds_free(builder->packs);
	builder->packs = NULL;
	builder->packs_n = 0;
	builder->pack_numbers = ds_map_free(builder->pack_numbers, NULL);
}

static int put_pack(struct ds_builder *builder, const struct ds_pack_row *row)
{
	sqlite3_stmt *stmt = builder->sql.stmts[W_PACK_PUT];

	sqlite3_bind_int64(stmt, 1, row->number);
	sqlite3_bind_blob(stmt, 2, row->id.bytes, DS_DIGEST_LEN, SQLITE_STATIC);
	sqlite3_bind_int64(stmt, 3, (sqlite3_int64)row->size_bytes);
	sqlite3_bind_int64(stmt, 4, row->chunks_n);
	sqlite3_bind_int64(stmt, 5, (sqlite3_int64)row->raw_bytes);
	sqlite3_bind_int64(stmt, 6, (sqlite3_int64)row->live_n);
	return builder_run(builder, stmt);
}

int builder_packs_store(struct ds_builder *builder)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < builder->packs_n; i++) {
		const struct builder_pack *pack = &builder->packs[i];

		if (pack->row.live_n == 0) {
			if (pack->stored_live_n == 0)
				continue;
			sqlite3_bind_int64(builder->sql.stmts[W_PACK_REMOVE], 1, pack->row.number);
			r = builder_run(builder, builder->sql.stmts[W_PACK_REMOVE]);
		} else if (pack->is_changed || pack->row.live_n != pack->stored_live_n) {
			assert(pack->is_known);
			r = put_pack(builder, &pack->row);
		}
	}
	return r;
}

int builder_pack_count(struct ds_builder *builder, uint32_t number, int change)
{
	struct builder_pack *pack = find(builder, number);

	if (!pack)
		return builder_give_up(builder, ds_sql_malformed(&builder->sql,
								 "pack %u is missing", number));
	return builder_count(builder, &pack->row.live_n, change);
}

int ds_builder_pack(struct ds_builder *builder, uint32_t number, struct ds_pack_row *ret_pack)
{
	const struct builder_pack *pack = find(builder, number);

	if (builder->failed)
		return builder->failed;
	if (!pack)
		return -ENOENT;
	*ret_pack = pack->row;
	return 0;
}

int ds_builder_pack_number(struct ds_builder *builder, const struct ds_digest *id,
			   uint32_t *ret_number)
{
	const void *number = ds_map_get(builder->pack_numbers, id->bytes, DS_DIGEST_LEN);

	if (!number)
		return -ENOENT;
	*ret_number = (uint32_t)(uintptr_t)number;
	return 0;
}

int ds_builder_add_pack(struct ds_builder *builder, uint32_t *ret_number)
{
	struct builder_pack pack = {.is_changed = true};
	uint32_t last = builder->packs_n ? builder->packs[builder->packs_n - 1].row.number : 0;
	int r;

	if (builder->failed)
		return builder->failed;
	if (last == UINT32_MAX)
		return -DS_E_LIMIT;
	pack.row.number = last + 1;
	r = append(builder, &pack);
	if (r == 0)
		*ret_number = pack.row.number;
	return r;
}

int ds_builder_set_pack(struct ds_builder *builder, uint32_t number, const struct ds_digest *id,
			uint64_t size_bytes, uint32_t chunks_n, uint64_t raw_bytes)
{
	struct builder_pack *pack = find(builder, number);
	int r;

	assert(pack);
	if (builder->failed)
		return builder->failed;
	pack->row.id = *id;
	pack->row.size_bytes = size_bytes;
	pack->row.chunks_n = chunks_n;
	pack->row.raw_bytes = raw_bytes;
	r = note_number(builder, &pack->row);
	if (r < 0)
		return r;
	pack->is_known = pack->is_changed = true;
	return 0;
}

/* The totals as one array of numbers with their keys. */
#define TOTALS_N     (sizeof(struct builder_totals) / sizeof(uint64_t))
#define TOTALS_FIRST (TOTALS_N - SIZE_CLASSES_N)

static void total_key(size_t i, char *key, size_t size)
{
	static const char *const keys[TOTALS_FIRST] = {"files", "directories", "symlinks", "bytes",
						       "rejected"};

	if (i < TOTALS_FIRST)
		snprintf(key, size, "%s", keys[i]);
	else
		snprintf(key, size, "size_%zu", i - TOTALS_FIRST);
}

static uint64_t *total_at(struct builder_totals *totals, size_t i)
{
	switch (i) {
	case 0:
		return &totals->files;
	case 1:
		return &totals->directories;
	case 2:
		return &totals->symlinks;
	case 3:
		return &totals->bytes;
	case 4:
		return &totals->rejected;
	default:
		return &totals->size_n[i - TOTALS_FIRST];
	}
}

int builder_totals_load(struct ds_builder *builder)
{
	char key[32];

	for (size_t i = 0; i < TOTALS_N; i++) {
		int r;

		total_key(i, key, sizeof(key));
		r = ds_read_total(&builder->sql, key, total_at(&builder->totals, i));
		if (r < 0)
			return r;
	}
	builder->stored_totals = builder->totals;
	return 0;
}

int builder_totals_store(struct ds_builder *builder)
{
	char key[32];

	for (size_t i = 0; i < TOTALS_N; i++) {
		uint64_t value = *total_at(&builder->totals, i);
		bool is_put = value > 0 || i < TOTALS_FIRST;
		sqlite3_stmt *stmt = builder->sql.stmts[is_put ? W_META_PUT : W_META_REMOVE];
		int r;

		if (value == *total_at(&builder->stored_totals, i))
			continue;
		total_key(i, key, sizeof(key));
		sqlite3_bind_text(stmt, 1, key, -1, SQLITE_STATIC);
		if (is_put)
			sqlite3_bind_int64(stmt, 2, (sqlite3_int64)value);
		r = builder_run(builder, stmt);
		if (r < 0)
			return r;
	}
	return 0;
}

uint64_t ds_builder_total(struct ds_builder *builder, const char *key)
{
	char name[32];

	for (size_t i = 0; i < TOTALS_N; i++) {
		total_key(i, name, sizeof(name));
		if (strcmp(key, name) == 0)
			return *total_at(&builder->totals, i);
	}
	return 0;
}

int builder_count_size(struct ds_builder *builder, uint64_t size_bytes, int64_t change)
{
	return builder_count(builder, &builder->totals.size_n[ds_size_class(size_bytes)], change);
}

int ds_builder_clear_rejects(struct ds_builder *builder)
{
	int r = builder->failed;

	if (r == 0)
		r = builder_run(builder, builder->sql.stmts[W_REJECT_CLEAR]);
	if (r == 0)
		builder->totals.rejected = 0;
	return r;
}

int ds_builder_add_reject(struct ds_builder *builder, const char *path, size_t path_len,
			  const char *reason)
{
	sqlite3_stmt *stmt = builder->sql.stmts[W_REJECT_PUT];
	int r;

	assert(path_len > 0);
	if (builder->failed)
		return builder->failed;
	/* A row has to stay below what a reader accepts. */
	if (path_len + strlen(reason) > DS_SQL_LENGTH_MAX / 2)
		return -DS_E_LIMIT;
	sqlite3_bind_blob(stmt, 1, path, (int)path_len, SQLITE_STATIC);
	sqlite3_bind_text(stmt, 2, reason, -1, SQLITE_STATIC);
	r = builder_run(builder, stmt);
	return r < 0 ? r : builder_count(builder, &builder->totals.rejected, 1);
}
