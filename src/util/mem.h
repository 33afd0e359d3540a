/*
 * Allocation. Every heap object of dsfs comes through here, so that a test can make the n-th
 * allocation fail. Out of memory is an ordinary error: callers return -ENOMEM.
 *
 * Threads: any. Memory is released with ds_free (which is free) and may be given to free.
 */
#ifndef DS_UTIL_MEM_H
#define DS_UTIL_MEM_H

#include <stddef.h>
#include <stdint.h>

void *ds_malloc(size_t size) __attribute__((malloc, alloc_size(1), warn_unused_result));
void *ds_calloc(size_t n, size_t size)
	__attribute__((malloc, alloc_size(1, 2), warn_unused_result));
/* `align`: a power of two, at least the size of a pointer. */
void *ds_malloc_aligned(size_t align, size_t size)
	__attribute__((malloc, alloc_size(2), warn_unused_result));
/* On failure the old block is untouched. */
void *ds_realloc(void *ptr, size_t size) __attribute__((alloc_size(2), warn_unused_result));
/* n * size with a check for overflow; otherwise as ds_realloc. */
void *ds_reallocarray(void *ptr, size_t n, size_t size) __attribute__((warn_unused_result));
char *ds_strdup(const char *text) __attribute__((malloc, warn_unused_result));
char *ds_strndup(const char *text, size_t len) __attribute__((malloc, warn_unused_result));
void *ds_memdup(const void *data, size_t len) __attribute__((malloc, warn_unused_result));
/* printf into a new string; NULL on failure. */
char *ds_asprintf(const char *format, ...)
	__attribute__((format(printf, 1, 2), malloc, warn_unused_result));
void ds_free(void *ptr);

/* Of this host that this process may count on: the least of its memory, the limit of its cgroup (as a container sees it), and
 * RLIMIT_RSS, which Linux leaves to programs. */
uint64_t ds_memory_bytes(void);

/* Wipes secrets before the memory goes (explicit_bzero). NULL is allowed. */
void ds_free_secret(char *text);

/*
 * Blocks of 512 KiB and more go back to the system when they are freed. By default glibc does so only until the first was freed: from then on
 * such sizes come from its arenas (mallopt(3), M_MMAP_THRESHOLD), where those of a few MiB that come and go in any order leave room
 * between them. Call early, before threads.
 */
void ds_mem_return_large(void);

/* Test hook, process-wide: the n-th allocation from now (from 0) fails; with sticky all later ones
 * too; -1 switches off. Returns how many allocations failed since the last call. */
uint64_t ds_mem_fail_after(int64_t n, int sticky);

/* Cleanup attribute for locals: `_ds_cleanup_free_ char *key = NULL;` */
void ds_free_ptr(void *ptr_to_ptr);
#define _ds_cleanup_free_		   __attribute__((cleanup(ds_free_ptr)))
#define _ds_cleanup_(f)			   __attribute__((cleanup(f)))

#define DS_ARRAY_SIZE(a)		   (sizeof(a) / sizeof((a)[0]))
#define DS_MIN(a, b)			   ((a) < (b) ? (a) : (b))
#define DS_MAX(a, b)			   ((a) > (b) ? (a) : (b))
#define DS_KIB(n)			   ((uint64_t)(n) << 10)
#define DS_MIB(n)			   ((uint64_t)(n) << 20)
#define DS_GIB(n)			   ((uint64_t)(n) << 30)
#define ds_container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

#endif
