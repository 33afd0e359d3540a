/*
 * Open addressing with linear probing, at most 3/4 full. A slot holds four bytes of the digest, which decide where it stands too, so that
 * neither probing nor growing touches the arena but for a hit.
 */
#include "repo/commit_noted.h"

#include <errno.h>

#include "util/bytes.h"
#include "util/mem.h"
#include "util/random.h"

#define BLOCK_N 1024u

struct slot {
	uint32_t tag;
	uint32_t number; /* 1 more than that of the entry; 0: the slot is free */
};

struct noted_table {
	struct ds_arena *arena;
	uint32_t seed; /* odd */
	struct slot *slots;
	size_t slots_n; /* a power of two */
	struct noted **blocks;
	size_t blocks_n, blocks_capacity_n;
	size_t n;
};

int noted_table_new(const char *scratch, struct noted_table **ret_table)
{
	struct noted_table *table = ds_calloc(1, sizeof(*table));
	int r;

	if (!table)
		return -ENOMEM;
	table->seed = (uint32_t)ds_random_u64() | 1;
	table->slots_n = 1024;
	table->slots = ds_calloc(table->slots_n, sizeof(*table->slots));
	r = table->slots ? ds_arena_new(scratch, &table->arena) : -ENOMEM;
	if (r < 0) {
		noted_table_free(table);
		return r;
	}
	*ret_table = table;
	return 0;
}

struct noted_table *noted_table_free(struct noted_table *table)
{
	if (!table)
		return NULL;
	ds_arena_free(table->arena);
	ds_free(table->slots);
	ds_free(table->blocks);
	ds_free(table);
	return NULL;
}

size_t noted_table_count(const struct noted_table *table)
{
	return table->n;
}

struct noted *noted_table_at(const struct noted_table *table, size_t i)
{
	return &table->blocks[i / BLOCK_N][i % BLOCK_N];
}

/* Where the search for a tag starts: the upper bits of a product depend on all bits of the tag. */
static size_t start_of(const struct noted_table *table, uint32_t tag)
{
	return (size_t)(((uint64_t)(tag * table->seed) * table->slots_n) >> 32);
}

/* The slot of the digest, or the free one where it would stand. */
static struct slot *find(const struct noted_table *table, const struct ds_digest *digest)
{
	uint32_t tag = ds_get_le32(digest->bytes);

	for (size_t i = start_of(table, tag);; i++) {
		struct slot *slot = &table->slots[i & (table->slots_n - 1)];

		if (!slot->number ||
		    (slot->tag == tag &&
		     ds_digest_equal(&noted_table_at(table, slot->number - 1)->digest, digest)))
			return slot;
	}
}

struct noted *noted_table_get(const struct noted_table *table, const struct ds_digest *digest)
{
	const struct slot *slot = find(table, digest);

	return slot->number ? noted_table_at(table, slot->number - 1) : NULL;
}

static int grow_slots(struct noted_table *table)
{
	struct slot *old = table->slots;
	size_t old_n = table->slots_n;

	if (table->n < old_n / 4 * 3)
		return 0;
	table->slots = ds_calloc(old_n * 2, sizeof(*table->slots));
	if (!table->slots) {
		table->slots = old;
		return -ENOMEM;
	}
	table->slots_n = old_n * 2;
	for (size_t i = 0; i < old_n; i++) {
		size_t at;

		if (!old[i].number)
			continue;
		at = start_of(table, old[i].tag);
		while (table->slots[at & (table->slots_n - 1)].number)
			at++;
		table->slots[at & (table->slots_n - 1)] = old[i];
	}
	ds_free(old);
	return 0;
}

static int grow_blocks(struct noted_table *table)
{
	if (table->n < table->blocks_n * BLOCK_N)
		return 0;
	if (table->n >= UINT32_MAX - BLOCK_N)
		return -ENOMEM;
	if (table->blocks_n == table->blocks_capacity_n) {
		size_t n = DS_MAX(table->blocks_n * 2, (size_t)16);
		struct noted **blocks = ds_reallocarray(table->blocks, n, sizeof(struct noted *));

		if (!blocks)
			return -ENOMEM;
		table->blocks = blocks;
		table->blocks_capacity_n = n;
	}
	table->blocks[table->blocks_n] =
		ds_arena_calloc(table->arena, BLOCK_N, sizeof(struct noted));
	if (!table->blocks[table->blocks_n])
		return -ENOMEM;
	table->blocks_n++;
	return 0;
}

struct noted *noted_table_put(struct noted_table *table, const struct ds_digest *digest)
{
	struct noted *noted = noted_table_get(table, digest);
	struct slot *slot;

	if (noted)
		return noted;
	if (grow_slots(table) < 0 || grow_blocks(table) < 0)
		return NULL;
	slot = find(table, digest);
	noted = noted_table_at(table, table->n);
	noted->digest = *digest;
	slot->tag = ds_get_le32(digest->bytes);
	slot->number = (uint32_t)++table->n;
	return noted;
}
