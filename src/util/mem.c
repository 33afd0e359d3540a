#include "util/mem.h"

#include <malloc.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define LARGE_BYTES DS_KIB(512)

/* Counts down to the allocation that fails; negative: off. */
static _Atomic int64_t fail_countdown = -1;
static _Atomic int fail_sticky;
static _Atomic uint64_t fail_n;

static bool must_fail(void)
{
	int64_t left = atomic_load_explicit(&fail_countdown, memory_order_relaxed);

	if (left < 0)
		return false;
	left = atomic_fetch_sub(&fail_countdown, 1);
	if (left > 0)
		return false;
	if (left < 0 && !atomic_load(&fail_sticky))
		return false;
	if (left == 0 && atomic_load(&fail_sticky))
		atomic_store(&fail_countdown, 0);
	atomic_fetch_add(&fail_n, 1);
	return true;
}

uint64_t ds_mem_fail_after(int64_t n, int sticky)
{
	atomic_store(&fail_sticky, sticky);
	atomic_store(&fail_countdown, n);
	return atomic_exchange(&fail_n, 0);
}

void ds_mem_return_large(void)
{
#ifdef M_MMAP_THRESHOLD
	mallopt(M_MMAP_THRESHOLD, (int)LARGE_BYTES);
#endif
}

void *ds_malloc(size_t size)
{
	return must_fail() ? NULL : malloc(size ? size : 1);
}

void *ds_calloc(size_t n, size_t size)
{
	return must_fail() ? NULL : calloc(n ? n : 1, size ? size : 1);
}

void *ds_malloc_aligned(size_t align, size_t size)
{
	void *ptr;

	if (must_fail())
		return NULL;
	return posix_memalign(&ptr, align, size ? size : 1) == 0 ? ptr : NULL;
}

void *ds_realloc(void *ptr, size_t size)
{
	return must_fail() ? NULL : realloc(ptr, size ? size : 1);
}

void *ds_reallocarray(void *ptr, size_t n, size_t size)
{
	size_t total;

	if (__builtin_mul_overflow(n, size, &total))
		return NULL;
	return ds_realloc(ptr, total);
}

char *ds_strdup(const char *text)
{
	return ds_strndup(text, strlen(text));
}

char *ds_strndup(const char *text, size_t len)
{
	char *copy = ds_malloc(len + 1);

	if (!copy)
		return NULL;
	memcpy(copy, text, len);
	copy[len] = '\0';
	return copy;
}

void *ds_memdup(const void *data, size_t len)
{
	void *copy = ds_malloc(len);

	if (copy && len)
		memcpy(copy, data, len);
	return copy;
}

char *ds_asprintf(const char *format, ...)
{
	va_list ap;
	char *text;
	int n;

	va_start(ap, format);
	n = vsnprintf(NULL, 0, format, ap);
	va_end(ap);
	if (n < 0)
		return NULL;
	text = ds_malloc((size_t)n + 1);
	if (!text)
		return NULL;
	va_start(ap, format);
	vsnprintf(text, (size_t)n + 1, format, ap);
	va_end(ap);
	return text;
}

void ds_free(void *ptr)
{
	free(ptr);
}

void ds_free_secret(char *text)
{
	if (!text)
		return;
	explicit_bzero(text, strlen(text));
	free(text);
}

void ds_free_ptr(void *ptr_to_ptr)
{
	free(*(void **)ptr_to_ptr);
}

/* The number in a file; UINT64_MAX: none. */
static uint64_t number_in(const char *path)
{
	FILE *file = fopen(path, "re");
	unsigned long long value;
	bool found = file && fscanf(file, "%llu", &value) == 1;

	if (file)
		fclose(file);
	return found ? value : UINT64_MAX;
}

uint64_t ds_memory_bytes(void)
{
	uint64_t bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
	struct rlimit limit;

	/* cgroup 2 and 1, as seen from within a container. */
	bytes = DS_MIN(bytes, number_in("/sys/fs/cgroup/memory.max"));
	bytes = DS_MIN(bytes, number_in("/sys/fs/cgroup/memory/memory.limit_in_bytes"));
	if (getrlimit(RLIMIT_RSS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
		bytes = DS_MIN(bytes, (uint64_t)limit.rlim_cur);
	return bytes;
}
