/*
 * INV-1  At most `flights_max` objects are on their way; each holds its bytes until the store has them.
 * INV-2  The first error stays: nothing is started after it, and every call returns it.
 * INV-3  For each data pack that arrived an advisory index object without a version is left, so that a commit that is killed
 *        and repeated finds it (while the pack is young).
 */
#include "repo/commit_packs.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>

#include "codec/dedup.h"
#include "repo/repo.h"
#include "util/error.h"
#include "util/map.h"
#include "util/mem.h"

#define FLIGHTS_MAX	 8u
#define INDEX_OBJECT_MAX DS_GIB(1)

struct upload {
	struct ds_store_req req;
	struct commit_packs *packs;
	char key[DS_PACK_KEY_MAX];
	struct ds_buf body;
	bool is_busy;
};

struct commit_packs {
	struct ds_repo *repo;
	enum ds_pack_kind kind;
	const volatile int *interrupted;
	unsigned flights_max;
	struct ds_pack_writer *writer; /* NULL: no pack is open */
	uint32_t open;		       /* its index */
	bool is_last;		       /* the open pack takes everything that comes */
	struct pending_digest {
		struct ds_digest digest;
		uint32_t ordinal;
	} * digests;
	size_t digests_n, digests_capacity_n;
	struct commit_pack *packs;
	uint32_t packs_n, packs_capacity_n;
	struct ds_map *by_id; /* id -> index + 1 */
	struct ds_buf left;   /* ids of index objects */
	uint64_t uploaded_bytes;
	pthread_mutex_t mutex;
	pthread_cond_t done;
	struct {
		unsigned flights_n;
		int result;
		struct ds_diag diag;
	} locked;
	struct upload uploads[2 * FLIGHTS_MAX];
};

int commit_packs_new(struct ds_repo *repo, enum ds_pack_kind kind, uint64_t memory_bytes,
		     const volatile int *interrupted, struct commit_packs **ret_packs)
{
	struct commit_packs *packs = ds_calloc(1, sizeof(*packs));
	int r;

	if (!packs)
		return -ENOMEM;
	packs->repo = ds_repo_ref(repo);
	packs->kind = kind;
	packs->interrupted = interrupted;
	packs->flights_max = (unsigned)DS_MAX(DS_MIN(memory_bytes / (DS_PACK_TARGET + DS_CHUNK_MAX),
						     (uint64_t)FLIGHTS_MAX),
					      (uint64_t)1);
	ds_buf_init(&packs->left, DS_MIB(64));
	pthread_mutex_init(&packs->mutex, NULL);
	pthread_cond_init(&packs->done, NULL);
	r = ds_map_new(&packs->by_id);
	if (r < 0) {
		commit_packs_free(packs);
		return r;
	}
	*ret_packs = packs;
	return 0;
}

static void wait_all(struct commit_packs *packs)
{
	pthread_mutex_lock(&packs->mutex);
	while (packs->locked.flights_n)
		pthread_cond_wait(&packs->done, &packs->mutex);
	pthread_mutex_unlock(&packs->mutex);
}

struct commit_packs *commit_packs_free(struct commit_packs *packs)
{
	if (!packs)
		return NULL;
	wait_all(packs);
	ds_pack_writer_free(packs->writer);
	ds_free(packs->digests);
	ds_free(packs->packs);
	ds_map_free(packs->by_id, NULL);
	ds_buf_release(&packs->left);
	pthread_cond_destroy(&packs->done);
	pthread_mutex_destroy(&packs->mutex);
	ds_repo_unref(packs->repo);
	ds_free(packs);
	return NULL;
}

static int result_of(struct commit_packs *packs)
{
	int r;

	pthread_mutex_lock(&packs->mutex);
	if (packs->locked.result == 0 && packs->interrupted && *packs->interrupted)
		packs->locked.result = -DS_E_INTERRUPTED;
	r = packs->locked.result;
	pthread_mutex_unlock(&packs->mutex);
	return r;
}

/* On a thread of the store. */
static void on_put(struct ds_store_req *req)
{
	struct upload *upload = req->ctx;
	struct commit_packs *packs = upload->packs;

	ds_buf_release(&upload->body);
	pthread_mutex_lock(&packs->mutex);
	/* Random ids: what is there under this name is our own, sent twice. */
	if (req->result < 0 && req->result != -DS_E_PRESENT && packs->locked.result == 0) {
		packs->locked.result = req->result;
		packs->locked.diag = req->diag;
		if (!packs->locked.diag.object[0])
			ds_diag_set(&packs->locked.diag, req->result, upload->key, NULL);
	}
	upload->is_busy = false;
	packs->locked.flights_n--;
	pthread_cond_broadcast(&packs->done);
	pthread_mutex_unlock(&packs->mutex);
}

/* Takes the body; waits for a free place. */
static int start_upload(struct commit_packs *packs, const char *key, struct ds_buf *take_body)
{
	struct upload *upload = NULL;
	int r;

	pthread_mutex_lock(&packs->mutex);
	while (packs->locked.flights_n >= packs->flights_max)
		pthread_cond_wait(&packs->done, &packs->mutex);
	r = packs->locked.result;
	for (size_t i = 0; r == 0 && i < DS_ARRAY_SIZE(packs->uploads); i++)
		if (!packs->uploads[i].is_busy) {
			upload = &packs->uploads[i];
			break;
		}
	if (upload) {
		upload->is_busy = true;
		packs->locked.flights_n++;
	}
	pthread_mutex_unlock(&packs->mutex);
	if (!upload)
		return r;
	upload->packs = packs;
	upload->body = *take_body;
	*take_body = (struct ds_buf){0};
	snprintf(upload->key, sizeof(upload->key), "%s", key);
	upload->req = (struct ds_store_req){
		.op = DS_STORE_PUT,
		.key = upload->key,
		.body = upload->body.data,
		.body_len_bytes = upload->body.len_bytes,
		.if_absent = true,
		/* A slow line is not a dead one: 32 MiB at 1 Mbit/s take 4.5 minutes. */
		.deadline_ns = ds_deadline_in_ms(600000),
		.done = on_put,
		.ctx = upload,
	};
	packs->uploaded_bytes += upload->body.len_bytes;
	ds_store_submit(ds_repo_store(packs->repo), &upload->req);
	return 0;
}

static int leave_index(struct commit_packs *packs, const struct ds_digest *pack)
{
	_ds_cleanup_buf_ struct ds_buf body = DS_BUF_INIT(INDEX_OBJECT_MAX);
	struct ds_dedup_builder *builder = NULL;
	struct ds_digest id;
	char key[DS_PACK_KEY_MAX], text[DS_DIGEST_TEXT_MAX];
	uint64_t before = packs->uploaded_bytes;
	int r = ds_dedup_builder_new(&builder);

	for (size_t i = 0; r == 0 && i < packs->digests_n; i++)
		r = ds_dedup_builder_add(builder, &packs->digests[i].digest, pack,
					 packs->digests[i].ordinal, NULL);
	if (r == 0)
		r = ds_dedup_builder_finish(builder, &body, &id);
	ds_dedup_builder_free(builder);
	if (r == 0)
		r = ds_buf_append(&packs->left, id.bytes, DS_DIGEST_LEN);
	if (r < 0)
		return r;
	snprintf(key, sizeof(key), "index/0/%s", ds_digest_format(&id, text));
	r = start_upload(packs, key, &body);
	packs->uploaded_bytes = before;
	return r;
}

int commit_packs_close(struct commit_packs *packs)
{
	struct ds_buf object = {0};
	struct commit_pack *pack;
	char key[DS_PACK_KEY_MAX];
	int r;

	if (!packs->writer)
		return result_of(packs);
	pack = &packs->packs[packs->open];
	pack->chunks_n = ds_pack_writer_chunks_n(packs->writer);
	pack->raw_bytes = ds_pack_writer_raw_bytes(packs->writer);
	r = ds_pack_writer_close(packs->writer, &pack->id, &object);
	packs->writer = ds_pack_writer_free(packs->writer);
	packs->is_last = false;
	if (r == 0) {
		pack->size_bytes = object.len_bytes;
		r = ds_map_put(packs->by_id, &pack->id, sizeof(pack->id),
			       (void *)(uintptr_t)(packs->open + 1), NULL);
	}
	if (r == 0)
		r = start_upload(packs, ds_pack_key(&pack->id, key), &object);
	if (r == 0 && packs->kind == DS_PACK_DATA)
		r = leave_index(packs, &pack->id);
	packs->digests_n = 0;
	ds_buf_release(&object);
	return r;
}

static int append_pack(struct commit_packs *packs, uint32_t *ret_index)
{
	if (packs->packs_n == packs->packs_capacity_n) {
		uint32_t capacity_n = DS_MAX(packs->packs_capacity_n * 2, 64u);
		struct commit_pack *grown =
			ds_reallocarray(packs->packs, capacity_n, sizeof(*grown));

		if (!grown)
			return -ENOMEM;
		packs->packs = grown;
		packs->packs_capacity_n = capacity_n;
	}
	packs->packs[packs->packs_n] = (struct commit_pack){0};
	*ret_index = packs->packs_n++;
	return 0;
}

static int note_digest(struct commit_packs *packs, const struct ds_digest *digest, uint32_t ordinal)
{
	if (packs->kind != DS_PACK_DATA)
		return 0;
	if (packs->digests_n == packs->digests_capacity_n) {
		size_t capacity_n = DS_MAX(packs->digests_capacity_n * 2, (size_t)256);
		struct pending_digest *grown =
			ds_reallocarray(packs->digests, capacity_n, sizeof(*grown));

		if (!grown)
			return -ENOMEM;
		packs->digests = grown;
		packs->digests_capacity_n = capacity_n;
	}
	packs->digests[packs->digests_n].digest = *digest;
	packs->digests[packs->digests_n++].ordinal = ordinal;
	return 0;
}

static int open_pack(struct commit_packs *packs)
{
	int r;

	if (packs->writer)
		return 0;
	r = append_pack(packs, &packs->open);
	if (r < 0)
		return r;
	packs->packs[packs->open].is_new = true;
	return ds_pack_writer_new(packs->kind, &packs->writer);
}

int commit_packs_make_room(struct commit_packs *packs, uint64_t bytes, uint32_t *ret_pack)
{
	int r = result_of(packs);

	if (r == 0 && packs->writer &&
	    ds_pack_writer_len_bytes(packs->writer) + bytes > DS_PACK_TARGET)
		r = commit_packs_close(packs);
	if (r == 0)
		r = open_pack(packs);
	packs->is_last = true;
	if (r == 0)
		*ret_pack = packs->open;
	return r;
}

int commit_packs_add(struct commit_packs *packs, const struct ds_digest *digest, const void *stored,
		     uint32_t stored_len_bytes, uint32_t raw_len_bytes,
		     struct commit_place *ret_place)
{
	struct commit_place place = {.stored_len_bytes = stored_len_bytes};
	int r = result_of(packs);

	if (r == 0 && packs->writer && !packs->is_last &&
	    ds_pack_writer_len_bytes(packs->writer) + stored_len_bytes > DS_PACK_TARGET)
		r = commit_packs_close(packs);
	if (r == 0)
		r = open_pack(packs);
	if (r < 0)
		return r;
	place.pack = packs->open;
	place.raw_off = ds_pack_writer_raw_bytes(packs->writer);
	r = ds_pack_writer_add(packs->writer, digest, stored, stored_len_bytes, raw_len_bytes,
			       &place.ordinal, &place.stored_off);
	if (r == 0)
		r = note_digest(packs, digest, place.ordinal);
	if (r == 0)
		*ret_place = place;
	return r;
}

int commit_packs_flush(struct commit_packs *packs, struct ds_diag *reterr_diag)
{
	int r = commit_packs_close(packs), result;

	wait_all(packs);
	result = result_of(packs);
	if (result < 0) {
		if (reterr_diag && packs->locked.diag.code)
			*reterr_diag = packs->locked.diag;
		return result;
	}
	return r;
}

int commit_packs_known(struct commit_packs *packs, const struct ds_digest *id, uint64_t size_bytes,
		       uint32_t chunks_n, uint64_t raw_bytes, uint32_t *ret_pack)
{
	uintptr_t found = (uintptr_t)ds_map_get(packs->by_id, id, sizeof(*id));
	struct commit_pack *pack;
	uint32_t index;
	int r;

	if (found) {
		*ret_pack = (uint32_t)found - 1;
		return 0;
	}
	r = append_pack(packs, &index);
	if (r < 0)
		return r;
	pack = &packs->packs[index];
	pack->id = *id;
	pack->size_bytes = size_bytes;
	pack->chunks_n = chunks_n;
	pack->raw_bytes = raw_bytes;
	r = ds_map_put(packs->by_id, id, sizeof(*id), (void *)(uintptr_t)(index + 1), NULL);
	if (r < 0) {
		packs->packs_n--;
		return r;
	}
	*ret_pack = index;
	return 0;
}

struct commit_pack *commit_packs_get(struct commit_packs *packs, uint32_t pack)
{
	return &packs->packs[pack];
}

uint32_t commit_packs_count(const struct commit_packs *packs)
{
	return packs->packs_n;
}

uint64_t commit_packs_uploaded_bytes(const struct commit_packs *packs)
{
	return packs->uploaded_bytes;
}

const struct ds_digest *commit_packs_left(const struct commit_packs *packs, size_t *ret_n)
{
	*ret_n = packs->left.len_bytes / DS_DIGEST_LEN;
	return (const struct ds_digest *)packs->left.data;
}

/* A lying store is found before a ref names what is not there (A25). */
int commit_packs_look(struct commit_packs *packs, struct ds_diag *reterr_diag)
{
	for (uint32_t i = 0; i < packs->packs_n; i++) {
		const struct commit_pack *pack = &packs->packs[i];
		char key[DS_PACK_KEY_MAX];
		struct ds_store_req req = {.op = DS_STORE_HEAD, .key = key};
		int r;

		if (!pack->is_new)
			continue;
		ds_pack_key(&pack->id, key);
		r = ds_store_perform(ds_repo_store(packs->repo), &req);
		if (r == 0 && req.object_size_bytes == pack->size_bytes)
			continue;
		if (r == -DS_E_ABSENT || r == 0)
			return ds_diag_set(
				reterr_diag, -DS_E_CORRUPT, key,
				r == 0 ? "the store keeps another size than was sent"
				       : "the store said that it is there, and it is not");
		if (reterr_diag)
			*reterr_diag = req.diag;
		return r;
	}
	return 0;
}
