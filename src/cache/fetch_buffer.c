/*
 * What range GETs are received into. Memory that was just given back is used again: fresh pages cost a fault and
 * their clearing each, a tenth of the CPU time of a cold epoch.
 *
 * The budget in flight counts what a GET is to receive. A buffer that is used again may hold more than that, of longer ones before: this
 * counts as the pool's while it is out, too, or slow short GETs would sit on any amount of it.
 */
#include <assert.h>
#include <stdatomic.h>
#include <string.h>

#include "cache/fetch_internal.h"

#define SPARES_MAX 64u
#define SPARE_MIN  DS_KIB(256) /* shorter ones come from malloc's own lists */

struct ds_fetch_pool {
	_Atomic unsigned refs_n; /* the fetcher's, and one for each buffer */
	size_t spare_len_bytes;
	uint64_t touched_max_bytes;
	pthread_mutex_t mutex;
	struct {
		struct spare {
			struct ds_buf buf;
			size_t touched_bytes;
		} spares[SPARES_MAX];
		unsigned spares_n;
		uint64_t
			touched_bytes; /* of all spares, and what buffers that are out hold beyond their GET */
	} locked;
};

int ds_fetch_pool_new(size_t spare_len_bytes, uint64_t touched_max_bytes,
		      struct ds_fetch_pool **ret_pool)
{
	struct ds_fetch_pool *pool = ds_calloc(1, sizeof(*pool));

	if (!pool)
		return -ENOMEM;
	atomic_init(&pool->refs_n, 1);
	pool->spare_len_bytes = spare_len_bytes;
	pool->touched_max_bytes = touched_max_bytes;
	pthread_mutex_init(&pool->mutex, NULL);
	*ret_pool = pool;
	return 0;
}

/* Takes the i-th. What it holds still counts. */
static struct spare take_locked(struct ds_fetch_pool *pool, unsigned i)
{
	struct spare *spares = pool->locked.spares, spare = spares[i];

	pool->locked.spares_n--;
	memmove(&spares[i], &spares[i + 1], (pool->locked.spares_n - i) * sizeof(spares[0]));
	return spare;
}

/* The last one that was given back, which the CPU's caches hold, and which is not much too long. */
static unsigned best_locked(const struct ds_fetch_pool *pool, size_t len_bytes)
{
	for (unsigned i = pool->locked.spares_n; i-- > 0;)
		if (pool->locked.spares[i].touched_bytes <= 2 * len_bytes)
			return i;
	return pool->locked.spares_n - 1;
}

static size_t beyond(size_t touched_bytes, size_t len_bytes)
{
	return touched_bytes > len_bytes ? touched_bytes - len_bytes : 0;
}

void ds_fetch_pool_trim(struct ds_fetch_pool *pool, unsigned keep_n)
{
	struct spare spare;

	for (;;) {
		pthread_mutex_lock(&pool->mutex);
		if (pool->locked.spares_n <= keep_n)
			break;
		spare = take_locked(pool, pool->locked.spares_n - 1);
		pool->locked.touched_bytes -= spare.touched_bytes;
		pthread_mutex_unlock(&pool->mutex);
		ds_buf_release(&spare.buf);
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
		if (pool->locked.spares_n) {
			struct spare spare = take_locked(pool, best_locked(pool, len_bytes));

			buffer->buf = spare.buf;
			buffer->touched_bytes = spare.touched_bytes;
			pool->locked.touched_bytes -= spare.touched_bytes;
			buffer->beyond_bytes = beyond(spare.touched_bytes, len_bytes);
			pool->locked.touched_bytes += buffer->beyond_bytes;
		}
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
		size_t touched_bytes = DS_MAX(buffer->touched_bytes, buffer->buf.len_bytes);

		ds_buf_clear(&buffer->buf);
		pthread_mutex_lock(&pool->mutex);
		pool->locked.touched_bytes -= buffer->beyond_bytes;
		if (pool->locked.spares_n < SPARES_MAX &&
		    pool->locked.touched_bytes + touched_bytes <= pool->touched_max_bytes) {
			pool->locked.touched_bytes += touched_bytes;
			pool->locked.spares[pool->locked.spares_n++] =
				(struct spare){.buf = buffer->buf, .touched_bytes = touched_bytes};
			ds_buf_init(&buffer->buf, 0);
		}
		pthread_mutex_unlock(&pool->mutex);
	}
	ds_buf_release(&buffer->buf);
	ds_free(buffer);
	ds_fetch_pool_unref(pool);
	return NULL;
}
