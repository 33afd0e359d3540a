/*
 * Open addressing with linear probing, at most 3/4 full; a removed slot stays as a tombstone until
 * the next growth.
 */
#include "util/map.h"

#include <errno.h>
#include <string.h>

#include "util/mem.h"
#include "util/random.h"

struct slot {
	uint64_t hash;
	void *key; /* NULL: never used, or with `dead`: tombstone */
	size_t key_len;
	void *value;
	bool dead;
};

struct ds_map {
	uint64_t seed;
	size_t capacity; /* power of two */
	size_t used_n;	 /* live and dead */
	size_t live_n;
	struct slot *slots;
};

/* FNV-1a started from a random seed, finished with the mixer of MurmurHash3. */
static uint64_t hash_of(uint64_t seed, const void *key, size_t len)
{
	const uint8_t *at = key;
	uint64_t h = 0xcbf29ce484222325u ^ seed;

	for (size_t i = 0; i < len; i++)
		h = (h ^ at[i]) * 0x100000001b3u;
	h ^= h >> 33;
	h *= 0xff51afd7ed558ccdu;
	h ^= h >> 33;
	return h;
}

int ds_map_new(struct ds_map **ret_map)
{
	struct ds_map *map = ds_calloc(1, sizeof(*map));

	if (!map)
		return -ENOMEM;
	map->capacity = 16;
	map->slots = ds_calloc(map->capacity, sizeof(*map->slots));
	if (!map->slots) {
		ds_free(map);
		return -ENOMEM;
	}
	ds_random_bytes(&map->seed, sizeof(map->seed));
	*ret_map = map;
	return 0;
}

struct ds_map *ds_map_free(struct ds_map *map, void (*free_value)(void *value))
{
	if (!map)
		return NULL;
	for (size_t i = 0; i < map->capacity; i++) {
		if (!map->slots[i].key)
			continue;
		if (free_value)
			free_value(map->slots[i].value);
		ds_free(map->slots[i].key);
	}
	ds_free(map->slots);
	ds_free(map);
	return NULL;
}

static struct slot *find(const struct ds_map *map, uint64_t hash, const void *key, size_t len)
{
	size_t mask = map->capacity - 1;

	for (size_t i = hash & mask;; i = (i + 1) & mask) {
		struct slot *slot = &map->slots[i];

		if (!slot->key && !slot->dead)
			return NULL;
		if (slot->key && slot->hash == hash && slot->key_len == len &&
		    memcmp(slot->key, key, len) == 0)
			return slot;
	}
}

static struct slot *find_free(struct slot *slots, size_t capacity, uint64_t hash)
{
	size_t i = hash & (capacity - 1);

	while (slots[i].key)
		i = (i + 1) & (capacity - 1);
	return &slots[i];
}

static int grow(struct ds_map *map)
{
	size_t capacity = map->capacity;
	struct slot *slots;

	if ((map->used_n + 1) * 4 <= capacity * 3)
		return 0;
	if ((map->live_n + 1) * 2 > capacity)
		capacity *= 2;
	slots = ds_calloc(capacity, sizeof(*slots));
	if (!slots)
		return -ENOMEM;
	for (size_t i = 0; i < map->capacity; i++)
		if (map->slots[i].key)
			*find_free(slots, capacity, map->slots[i].hash) = map->slots[i];
	ds_free(map->slots);
	map->slots = slots;
	map->capacity = capacity;
	map->used_n = map->live_n;
	return 0;
}

void *ds_map_get(const struct ds_map *map, const void *key, size_t key_len)
{
	struct slot *slot = find(map, hash_of(map->seed, key, key_len), key, key_len);

	return slot ? slot->value : NULL;
}

int ds_map_put(struct ds_map *map, const void *key, size_t key_len, void *value, void **ret_old)
{
	uint64_t hash = hash_of(map->seed, key, key_len);
	struct slot *slot = find(map, hash, key, key_len);
	void *copy;
	int r;

	if (slot) {
		if (ret_old)
			*ret_old = slot->value;
		slot->value = value;
		return 0;
	}
	r = grow(map);
	if (r < 0)
		return r;
	copy = ds_memdup(key, key_len);
	if (!copy)
		return -ENOMEM;
	slot = find_free(map->slots, map->capacity, hash);
	map->used_n += slot->dead ? 0 : 1;
	map->live_n++;
	*slot = (struct slot){.hash = hash, .key = copy, .key_len = key_len, .value = value};
	if (ret_old)
		*ret_old = NULL;
	return 0;
}

void *ds_map_remove(struct ds_map *map, const void *key, size_t key_len)
{
	struct slot *slot = find(map, hash_of(map->seed, key, key_len), key, key_len);
	void *value;

	if (!slot)
		return NULL;
	value = slot->value;
	ds_free(slot->key);
	*slot = (struct slot){.dead = true};
	map->live_n--;
	return value;
}

size_t ds_map_count(const struct ds_map *map)
{
	return map->live_n;
}

bool ds_map_each(const struct ds_map *map, size_t *cursor, const void **ret_key,
		 size_t *ret_key_len, void **ret_value)
{
	for (; *cursor < map->capacity; (*cursor)++) {
		struct slot *slot = &map->slots[*cursor];

		if (!slot->key)
			continue;
		if (ret_key)
			*ret_key = slot->key;
		if (ret_key_len)
			*ret_key_len = slot->key_len;
		if (ret_value)
			*ret_value = slot->value;
		(*cursor)++;
		return true;
	}
	return false;
}
