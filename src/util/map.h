/*
 * Hash map from byte strings (copied) to pointers (the caller's). Seeded at random per map, so that
 * keys chosen by a stranger cannot make it slow. Grows as needed; never shrinks.
 *
 * Threads: one at a time.
 */
#ifndef DS_UTIL_MAP_H
#define DS_UTIL_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ds_map;

/* -ENOMEM. */
int ds_map_new(struct ds_map **ret_map);
/* Frees the map and its keys; `free_value` (may be NULL) is called for each value. Returns NULL. */
struct ds_map *ds_map_free(struct ds_map *map, void (*free_value)(void *value));

/* The value, or NULL if the key is not there. */
void *ds_map_get(const struct ds_map *map, const void *key, size_t key_len);
/* Adds or replaces; the replaced value is returned through ret_old (may be NULL; NULL if none).
 * Values are not NULL. -ENOMEM leaves the map unchanged. */
int ds_map_put(struct ds_map *map, const void *key, size_t key_len, void *value, void **ret_old);
/* Removes and returns the value; NULL if the key is not there. */
void *ds_map_remove(struct ds_map *map, const void *key, size_t key_len);
size_t ds_map_count(const struct ds_map *map);

/* Iterates in no particular order: start with *cursor = 0; false at the end. The map must not be
 * changed meanwhile. */
bool ds_map_each(const struct ds_map *map, size_t *cursor, const void **ret_key,
		 size_t *ret_key_len, void **ret_value);

#endif
