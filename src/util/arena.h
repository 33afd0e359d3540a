/*
 * An arena: memory that is given out piece by piece and goes as a whole. It lies in a temporary file, so that the kernel may put it
 * aside when memory is short, as it does with other files: for a lot of data that is walked in the order in which it was made.
 *
 * Where the file cannot be made or grown the arena is ordinary memory. Threads: any, on different pieces.
 */
#ifndef DS_UTIL_ARENA_H
#define DS_UTIL_ARENA_H

#include <stddef.h>

struct ds_arena;

/* dir: where the file is made, which has no name there afterwards; NULL: no file. -ENOMEM. */
int ds_arena_new(const char *dir, struct ds_arena **ret_arena);
/* NULL is allowed. Returns NULL. */
struct ds_arena *ds_arena_free(struct ds_arena *arena);

/* Zeros, aligned to 16 bytes; NULL: no memory, or n * size is too much. */
void *ds_arena_calloc(struct ds_arena *arena, size_t n, size_t size)
	__attribute__((warn_unused_result));
void *ds_arena_memdup(struct ds_arena *arena, const void *data, size_t len)
	__attribute__((warn_unused_result));

#endif
