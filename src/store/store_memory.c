/*
 * The store in memory: for tests and simulations, and the reference for what the others must do.
 *
 * Objects live in a space that several handles may share (each stands for a client of the same
 * bucket). An object is immutable and counted, so that a GET copies it outside of the lock.
 * Lock: the space's mutex, a leaf.
 */
#include <pthread.h>
#include <string.h>

#include "store/store_backend.h"
#include "util/mem.h"
#include "util/str.h"

struct object {
	_Atomic unsigned refs_n;
	char *key;
	struct ds_time modified;
	size_t len_bytes;
	uint8_t data[];
};

struct space {
	_Atomic unsigned refs_n;
	pthread_mutex_t mutex;
	struct {
		struct object **objects; /* in byte order of keys */
		size_t objects_n, capacity_n;
	} locked;
};

struct memory_store {
	struct ds_store base;
	struct space *space;
	struct ds_clock clock;
	struct ds_store_pool *pool;
	struct ds_store_counters counters;
};

static struct memory_store *memory_of(struct ds_store *store)
{
	return ds_container_of(store, struct memory_store, base);
}

static void object_unref(struct object *object)
{
	if (object && --object->refs_n == 0) {
		ds_free(object->key);
		ds_free(object);
	}
}

static void space_unref(struct space *space)
{
	if (!space || --space->refs_n > 0)
		return;
	for (size_t i = 0; i < space->locked.objects_n; i++)
		object_unref(space->locked.objects[i]);
	ds_free(space->locked.objects);
	pthread_mutex_destroy(&space->mutex);
	ds_free(space);
}

/* Index of the first object whose key is not before `key`. */
static size_t lower_bound_locked(const struct space *space, const char *key)
{
	size_t low = 0, high = space->locked.objects_n;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (strcmp(space->locked.objects[mid]->key, key) < 0)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

static bool is_at_locked(const struct space *space, size_t idx, const char *key)
{
	return idx < space->locked.objects_n && strcmp(space->locked.objects[idx]->key, key) == 0;
}

static struct object *find(struct space *space, const char *key)
{
	struct object *object = NULL;
	size_t idx;

	pthread_mutex_lock(&space->mutex);
	idx = lower_bound_locked(space, key);
	if (is_at_locked(space, idx, key)) {
		object = space->locked.objects[idx];
		object->refs_n++;
	}
	pthread_mutex_unlock(&space->mutex);
	return object;
}

static int reserve_one_locked(struct space *space)
{
	size_t capacity_n = space->locked.capacity_n;
	struct object **objects;

	if (space->locked.objects_n < capacity_n)
		return 0;
	capacity_n = capacity_n ? capacity_n * 2 : 16;
	objects = ds_reallocarray(space->locked.objects, capacity_n, sizeof(struct object *));
	if (!objects)
		return -ENOMEM;
	space->locked.objects = objects;
	space->locked.capacity_n = capacity_n;
	return 0;
}

/* Takes over the reference on success; *ret_old is what was replaced. */
static int insert(struct space *space, struct object *object, bool if_absent,
		  struct object **ret_old)
{
	struct object **at;
	size_t idx;
	int r = 0;

	pthread_mutex_lock(&space->mutex);
	idx = lower_bound_locked(space, object->key);
	if (is_at_locked(space, idx, object->key)) {
		at = &space->locked.objects[idx];
		if (if_absent) {
			r = -DS_E_PRESENT;
		} else {
			*ret_old = *at;
			*at = object;
		}
	} else {
		r = reserve_one_locked(space);
		if (r == 0) {
			at = &space->locked.objects[idx];
			memmove(at + 1, at, (space->locked.objects_n - idx) * sizeof(*at));
			space->locked.objects_n++;
			*at = object;
		}
	}
	pthread_mutex_unlock(&space->mutex);
	return r;
}

static int memory_put(struct memory_store *memory, struct ds_store_req *req)
{
	struct object *object, *old = NULL;
	int r = ds_store_check_key(req->key, &req->diag);

	if (r < 0)
		return r;
	if (req->signed_at.s && ds_time_diff_ns(req->store_time, req->signed_at) >
					(int64_t)DS_STORE_SIGNATURE_LIFE_S * DS_NS_PER_S)
		return -DS_E_LATE;
	object = ds_malloc(sizeof(*object) + req->body_len_bytes);
	if (!object)
		return -ENOMEM;
	object->refs_n = 1;
	object->key = ds_strdup(req->key);
	object->modified = req->store_time;
	object->len_bytes = req->body_len_bytes;
	if (req->body_len_bytes)
		memcpy(object->data, req->body, req->body_len_bytes);
	r = object->key ? insert(memory->space, object, req->if_absent, &old) : -ENOMEM;
	object_unref(r < 0 ? object : old);
	if (r == 0)
		memory->counters.sent_bytes += req->body_len_bytes;
	return r;
}

static int memory_get(struct memory_store *memory, struct ds_store_req *req)
{
	struct object *object = find(memory->space, req->key);
	uint64_t off, len;
	int r = 0;

	if (!object)
		return -DS_E_ABSENT;
	req->object_size_bytes = object->len_bytes;
	req->modified = object->modified;
	if (req->op == DS_STORE_GET) {
		r = ds_store_get_range(req, object->len_bytes, &off, &len);
		if (r == 0)
			r = ds_buf_append(req->into, object->data + off, len);
		if (r == 0)
			memory->counters.received_bytes += len;
	}
	object_unref(object);
	return r;
}

static int memory_list(struct memory_store *memory, struct ds_store_req *req)
{
	struct space *space = memory->space;
	size_t before_n = req->listing->objects_n;
	int r = 0;

	pthread_mutex_lock(&space->mutex);
	for (size_t i = lower_bound_locked(space, req->key); i < space->locked.objects_n && r == 0;
	     i++) {
		const struct object *object = space->locked.objects[i];

		if (!ds_starts_with(object->key, req->key) ||
		    (req->list_max_n && req->listing->objects_n - before_n == req->list_max_n))
			break;
		if (req->list_after && strcmp(object->key, req->list_after) <= 0)
			continue;
		r = ds_store_listing_append(req->listing, object->key, strlen(object->key),
					    object->len_bytes, object->modified);
	}
	pthread_mutex_unlock(&space->mutex);
	if (r < 0)
		ds_store_listing_truncate(req->listing, before_n);
	return r;
}

static int memory_delete(struct memory_store *memory, struct ds_store_req *req)
{
	struct space *space = memory->space;
	struct object *object = NULL;
	size_t idx;

	pthread_mutex_lock(&space->mutex);
	idx = lower_bound_locked(space, req->key);
	if (is_at_locked(space, idx, req->key)) {
		struct object **at = &space->locked.objects[idx];

		object = *at;
		space->locked.objects_n--;
		memmove(at, at + 1, (space->locked.objects_n - idx) * sizeof(*at));
	}
	pthread_mutex_unlock(&space->mutex);
	object_unref(object);
	return 0;
}

static void memory_run(struct ds_store *store, struct ds_store_req *req)
{
	struct memory_store *memory = memory_of(store);

	memory->counters.requests_n[req->op]++;
	req->store_time = memory->clock.real(memory->clock.ctx);
	req->diag.attempts = 1;
	switch (req->op) {
	case DS_STORE_GET:
	case DS_STORE_HEAD:
		req->result = memory_get(memory, req);
		break;
	case DS_STORE_PUT:
		req->result = memory_put(memory, req);
		break;
	case DS_STORE_LIST:
		req->result = memory_list(memory, req);
		break;
	case DS_STORE_DELETE:
		req->result = memory_delete(memory, req);
		break;
	}
	ds_store_count_result(&memory->counters, req->result);
}

static int memory_start(struct ds_store *store)
{
	return ds_store_pool_start(memory_of(store)->pool);
}

static void memory_submit(struct ds_store *store, struct ds_store_req *req)
{
	ds_store_pool_submit(memory_of(store)->pool, req);
}

static void memory_cancel(struct ds_store *store, struct ds_store_req *req)
{
	ds_store_pool_cancel(memory_of(store)->pool, req);
}

static void memory_hasten(struct ds_store *store, struct ds_store_req *req)
{
	ds_store_pool_hasten(memory_of(store)->pool, req);
}

static void memory_destroy(struct ds_store *store)
{
	struct memory_store *memory = memory_of(store);

	ds_store_pool_free(memory->pool);
	space_unref(memory->space);
	ds_store_release(&memory->base);
	ds_free(memory);
}

static void memory_get_stats(struct ds_store *store, struct ds_store_stats *ret_stats)
{
	ds_store_counters_get(&memory_of(store)->counters, ret_stats);
}

static int memory_now(struct ds_store *store, struct ds_time *ret_now)
{
	struct memory_store *memory = memory_of(store);

	*ret_now = memory->clock.real(memory->clock.ctx);
	return 0;
}

static const struct ds_store_ops memory_ops = {
	.start = memory_start,
	.submit = memory_submit,
	.cancel = memory_cancel,
	.hasten = memory_hasten,
	.perform = memory_run,
	.destroy = memory_destroy,
	.get_stats = memory_get_stats,
	.now = memory_now,
};

static int space_new(struct space **ret_space)
{
	struct space *space = ds_calloc(1, sizeof(*space));

	if (!space)
		return -ENOMEM;
	space->refs_n = 1;
	pthread_mutex_init(&space->mutex, NULL);
	*ret_space = space;
	return 0;
}

int ds_store_memory_new(struct ds_store *share, const struct ds_clock *clock,
			struct ds_store **ret_store)
{
	struct memory_store *memory = ds_calloc(1, sizeof(*memory));
	int r = 0;

	if (!memory)
		return -ENOMEM;
	memory->clock = clock ? *clock : ds_clock_system;
	if (share) {
		memory->space = memory_of(share)->space;
		memory->space->refs_n++;
	} else {
		r = space_new(&memory->space);
	}
	if (r == 0)
		r = ds_store_pool_new(&memory->base, 4, "dsfs-store", memory_run, &memory->pool);
	if (r == 0)
		r = ds_store_init(&memory->base, &memory_ops, "memory:", 0);
	if (r < 0) {
		ds_store_pool_free(memory->pool);
		space_unref(memory->space);
		ds_free(memory);
		return r;
	}
	*ret_store = &memory->base;
	return 0;
}
