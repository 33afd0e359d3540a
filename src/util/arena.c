/*
 * INV-1  A segment of the file is mapped only when fallocate(2) has given it its blocks: a full disk is seen then, not as a SIGBUS later.
 * INV-2  Segments never move and are mapped until the end.
 */
#include "util/arena.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "util/file.h"
#include "util/mem.h"

#define SEGMENT_MIN DS_KIB(256)
#define SEGMENT_MAX DS_MIB(64)
#define PAGE	    DS_KIB(64) /* the largest page size there is */
#define ALIGN	    16u

struct segment {
	struct segment *next;
	uint8_t *data;
	size_t len_bytes;
};

struct ds_arena {
	pthread_mutex_t mutex;
	struct {
		int fd; /* -1: none, or none any more */
		off_t file_len;
		size_t next_bytes; /* length of the next segment */
		struct segment *segments;
		uint8_t *at; /* what is left of the newest one */
		size_t left_bytes;
	} locked;
};

int ds_arena_new(const char *dir, struct ds_arena **ret_arena)
{
	struct ds_arena *arena = ds_calloc(1, sizeof(*arena));
	_ds_cleanup_free_ char *path = dir ? ds_asprintf("%s/arena-XXXXXX", dir) : NULL;

	if (!arena || (dir && !path)) {
		ds_free(arena);
		return -ENOMEM;
	}
	pthread_mutex_init(&arena->mutex, NULL);
	arena->locked.next_bytes = SEGMENT_MIN;
	arena->locked.fd = path ? mkostemp(path, O_CLOEXEC) : -1;
	if (arena->locked.fd >= 0)
		unlink(path);
	*ret_arena = arena;
	return 0;
}

struct ds_arena *ds_arena_free(struct ds_arena *arena)
{
	if (!arena)
		return NULL;
	while (arena->locked.segments) {
		struct segment *segment = arena->locked.segments;

		arena->locked.segments = segment->next;
		munmap(segment->data, segment->len_bytes);
		ds_free(segment);
	}
	ds_close_ptr(&arena->locked.fd);
	pthread_mutex_destroy(&arena->mutex);
	ds_free(arena);
	return NULL;
}

static void *map_file_locked(struct ds_arena *arena, size_t len)
{
	void *data = MAP_FAILED;

	if (arena->locked.fd < 0)
		return MAP_FAILED;
	/* INV-1 */
	if (fallocate(arena->locked.fd, 0, arena->locked.file_len, (off_t)len) == 0)
		data = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, arena->locked.fd,
			    arena->locked.file_len);
	if (data == MAP_FAILED)
		ds_close_ptr(&arena->locked.fd);
	else
		arena->locked.file_len += (off_t)len;
	return data;
}

static bool add_segment_locked(struct ds_arena *arena, size_t want_bytes)
{
	struct segment *segment = ds_calloc(1, sizeof(*segment));
	size_t len = DS_MAX(want_bytes, arena->locked.next_bytes);

	if (!segment)
		return false;
	len = (len + PAGE - 1) & ~(PAGE - 1);
	segment->data = map_file_locked(arena, len);
	if (segment->data == MAP_FAILED)
		segment->data =
			mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (segment->data == MAP_FAILED) {
		ds_free(segment);
		return false;
	}
	segment->len_bytes = len;
	segment->next = arena->locked.segments;
	arena->locked.segments = segment;
	arena->locked.at = segment->data;
	arena->locked.left_bytes = len;
	arena->locked.next_bytes = DS_MIN(arena->locked.next_bytes * 2, SEGMENT_MAX);
	return true;
}

void *ds_arena_calloc(struct ds_arena *arena, size_t n, size_t size)
{
	void *piece = NULL;
	size_t len;

	if (__builtin_mul_overflow(n, size, &len) || len > SIZE_MAX / 4)
		return NULL;
	len = (DS_MAX(len, (size_t)1) + ALIGN - 1) & ~(size_t)(ALIGN - 1);
	pthread_mutex_lock(&arena->mutex);
	if (len <= arena->locked.left_bytes || add_segment_locked(arena, len)) {
		piece = arena->locked.at;
		arena->locked.at += len;
		arena->locked.left_bytes -= len;
	}
	pthread_mutex_unlock(&arena->mutex);
	return piece;
}

void *ds_arena_memdup(struct ds_arena *arena, const void *data, size_t len)
{
	void *copy = ds_arena_calloc(arena, 1, len);

	if (copy && len)
		memcpy(copy, data, len);
	return copy;
}
