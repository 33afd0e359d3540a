/*
 * What range GETs are received into. Memory that was just given back is used again: fresh pages cost a fault and
 * their clearing each, a tenth of the CPU time of a cold epoch.
 */
#include <assert.h>
#include <stdatomic.h>

#include "cache/fetch_internal.h"

#define SPARES_MAX 48u /* with some 2 MiB each that were touched, while something is fetched */
#define SPARE_MIN  DS_KIB(256) /* shorter ones come from malloc's own lists */

struct ds_fetch_pool {
	_Atomic unsigned refs_n; /* the fetcher's, and one for each buffer */
	size_t spare_len_bytes;
	pthread_mutex_t mutex;
	struct {
		struct ds_buf spares[SPARES_MAX];
		unsigned spares_n;
	} locked;
};

int ds_fetch_pool_new(size_t spare_len_bytes, struct ds_fetch_pool **ret_pool)
{
	struct ds_fetch_pool *pool = ds_calloc(1, sizeof(*pool));

	if (!pool)
		return -ENOMEM;
	atomic_init(&pool->refs_n, 1);
	pool->spare_len_bytes = spare_len_bytes;
	pthread_mutex_init(&pool->mutex, NULL);
	*ret_pool = pool;
	return 0;
}

void ds_fetch_pool_trim(struct ds_fetch_pool *pool, unsigned keep_n)
{
	struct ds_buf spare;

	for (;;) {
		pthread_mutex_lock(&pool->mutex);
		if (pool->locked.spares_n <= keep_n)
			break;
		spare = pool->locked.spares[--pool->locked.spares_n];
		pthread_mutex_unlock(&pool->mutex);
		ds_buf_release(&spare);
	}
	pthread_mutex_unlock(&pool->mutex);
}

struct ds_fetch_pool *ds_fetch_pool_unref(struct ds_fetch_pool *pool)
{
	if (!pool || atomic_fetch_sub(&pool->refs_n, 1) > 1)
		return NULL;
	ds_fetch_pool_trim(pool, 0);
	pthread_mutex_destroy(&pool->mutex);
	ds_free(pool);
	return NULL;
}

static bool is_poolable(const struct ds_fetch_pool *pool, size_t len_bytes)
{
	return len_bytes >= SPARE_MIN && len_bytes <= pool->spare_len_bytes;
}

int ds_fetch_buffer_new(struct ds_fetch_pool *pool, size_t len_bytes,
			struct ds_fetch_buffer **ret_buffer)
{
	struct ds_fetch_buffer *buffer = ds_calloc(1, sizeof(*buffer));

	if (!buffer)
		return -ENOMEM;
	atomic_init(&buffer->refs_n, 1);
	buffer->pool = pool;
	ds_buf_init(&buffer->buf, len_bytes);
	if (is_poolable(pool, len_bytes)) {
		pthread_mutex_lock(&pool->mutex);
		if (pool->locked.spares_n)
			buffer->buf = pool->locked.spares[--pool->locked.spares_n];
		pthread_mutex_unlock(&pool->mutex);
		/* All of one size, so that each fits the next. */
		buffer->buf.max_bytes = pool->spare_len_bytes;
		if (ds_buf_reserve(&buffer->buf, pool->spare_len_bytes) < 0) {
			ds_free(buffer);
			return -ENOMEM;
		}
		buffer->buf.max_bytes = len_bytes;
	}
	atomic_fetch_add(&pool->refs_n, 1);
	*ret_buffer = buffer;
	return 0;
}

struct ds_fetch_buffer *ds_fetch_buffer_ref(struct ds_fetch_buffer *buffer)
{
	unsigned before = atomic_fetch_add(&buffer->refs_n, 1);

	assert(before > 0);
	return buffer;
}

struct ds_fetch_buffer *ds_fetch_buffer_unref(struct ds_fetch_buffer *buffer)
{
	struct ds_fetch_pool *pool;

	if (!buffer || atomic_fetch_sub(&buffer->refs_n, 1) > 1)
		return NULL;
	pool = buffer->pool;
	if (buffer->buf.capacity_bytes == pool->spare_len_bytes) {
		ds_buf_clear(&buffer->buf);
		pthread_mutex_lock(&pool->mutex);
		if (pool->locked.spares_n < SPARES_MAX) {
			pool->locked.spares[pool->locked.spares_n++] = buffer->buf;
			ds_buf_init(&buffer->buf, 0);
		}
		pthread_mutex_unlock(&pool->mutex);
	}
	ds_buf_release(&buffer->buf);
	ds_free(buffer);
	ds_fetch_pool_unref(pool);
	return NULL;
}
