/*
 * INV-1  Chunks lie in the order in which they were added, packs too.
 * INV-2  For data packs advisory index objects without a version are left now and then, so that a commit that is killed and
 *        repeated finds what it had put (while the packs are young): whenever what no object names yet is a sixteenth of
 *        all, or 1 GiB, or 30 s have passed. So of a commit of N packs, 16 + 16 ln(N / 16) objects or one for each GiB.
 */
#include "repo/commit_packs.h"

#include <errno.h>
#include <stdio.h>

#include "codec/dedup.h"
#include "repo/commit_batch.h"
#include "repo/commit_upload.h"
#include "repo/repo.h"
#include "util/error.h"
#include "util/map.h"
#include "util/mem.h"

#define INDEX_OBJECT_MAX    DS_GIB(1)
#define INDEX_SHARE	    16u
#define INDEX_BYTES_MAX	    DS_GIB(1)
#define INDEX_BYTES_MIN	    DS_MIB(1) /* less is as quickly put again */
#define INDEX_PERIOD_NS	    (30 * (uint64_t)DS_NS_PER_S)
#define ABANDON_PATIENCE_MS 2000u
#define ABANDON_INDEX_MS    5000u

struct unnamed { /* a chunk that no index object names yet */
	struct ds_digest digest;
	uint32_t pack, ordinal;
};

struct commit_packs {
	struct ds_repo *repo;
	enum ds_pack_kind kind;
	const struct commit_watch *watch;
	struct commit_uploads *uploads;
	struct ds_pack_writer *writer; /* NULL: no pack is open */
	uint32_t open;		       /* its index */
	bool is_last;		       /* the open pack takes everything that comes */
	struct commit_pack *packs;
	uint32_t packs_n, packs_capacity_n;
	struct ds_map *by_id; /* id -> index + 1 */
	struct unnamed *unnamed;
	size_t unnamed_n, unnamed_capacity_n;
	size_t closed_n; /* of them: in packs that are closed */
	uint64_t unnamed_bytes, put_bytes;
	uint64_t left_ns;
	struct ds_buf left; /* ids of index objects */
};

int commit_packs_new(struct ds_repo *repo, enum ds_pack_kind kind, uint64_t memory_bytes,
		     const struct commit_watch *watch, struct commit_packs **ret_packs)
{
	struct commit_packs *packs = ds_calloc(1, sizeof(*packs));
	int r;

	if (!packs)
		return -ENOMEM;
	packs->repo = ds_repo_ref(repo);
	packs->kind = kind;
	packs->watch = watch;
	packs->left_ns = ds_mono_ns();
	ds_buf_init(&packs->left, DS_MIB(64));
	r = ds_map_new(&packs->by_id);
	if (r == 0)
		r = commit_uploads_new(ds_repo_store(repo), memory_bytes, watch, &packs->uploads);
	if (r < 0) {
		commit_packs_free(packs);
		return r;
	}
	*ret_packs = packs;
	return 0;
}

struct commit_packs *commit_packs_free(struct commit_packs *packs)
{
	if (!packs)
		return NULL;
	commit_uploads_free(packs->uploads);
	ds_pack_writer_free(packs->writer);
	ds_free(packs->unnamed);
	ds_free(packs->packs);
	ds_map_free(packs->by_id, NULL);
	ds_buf_release(&packs->left);
	ds_repo_unref(packs->repo);
	ds_free(packs);
	return NULL;
}

/* An index object for the chunks of closed packs that none names yet, and its key. */
static int build_index(struct commit_packs *packs, struct ds_buf *body, struct ds_digest *ret_id,
		       char *key, size_t key_size)
{
	struct ds_dedup_builder *builder = NULL;
	char text[DS_DIGEST_TEXT_MAX];
	int r = ds_dedup_builder_new(&builder);

	for (size_t i = 0; r == 0 && i < packs->closed_n; i++)
		r = ds_dedup_builder_add(builder, &packs->unnamed[i].digest,
					 &packs->packs[packs->unnamed[i].pack].id,
					 packs->unnamed[i].ordinal, NULL);
	if (r == 0)
		r = ds_dedup_builder_finish(builder, body, ret_id);
	ds_dedup_builder_free(builder);
	if (r == 0)
		snprintf(key, key_size, "index/0/%s", ds_digest_format(ret_id, text));
	return r;
}

static int leave_index(struct commit_packs *packs)
{
	struct ds_buf body = DS_BUF_INIT(INDEX_OBJECT_MAX);
	char key[DS_PACK_KEY_MAX];
	struct ds_digest id;
	int r = build_index(packs, &body, &id, key, sizeof(key));

	if (r == 0)
		r = commit_uploads_put(packs->uploads, key, &body, true);
	ds_buf_release(&body);
	if (r == 0)
		r = ds_buf_append(&packs->left, id.bytes, DS_DIGEST_LEN);
	if (r < 0)
		return r;
	packs->unnamed_n -= packs->closed_n;
	memmove(packs->unnamed, packs->unnamed + packs->closed_n,
		packs->unnamed_n * sizeof(*packs->unnamed));
	packs->closed_n = 0;
	packs->unnamed_bytes = 0;
	packs->left_ns = ds_mono_ns();
	return 0;
}

void commit_packs_abandon(struct commit_packs *packs)
{
	struct ds_buf body = DS_BUF_INIT(INDEX_OBJECT_MAX);
	char key[DS_PACK_KEY_MAX];
	struct ds_digest id;

	if (!packs)
		return;
	commit_uploads_stop(packs->uploads, ABANDON_PATIENCE_MS);
	if (packs->closed_n && build_index(packs, &body, &id, key, sizeof(key)) == 0) {
		struct ds_store_req req = {
			.op = DS_STORE_PUT,
			.key = key,
			.body = body.data,
			.body_len_bytes = body.len_bytes,
			.if_absent = true,
			.is_last_will = true,
			.deadline_ns = ds_deadline_in_ms(ABANDON_INDEX_MS),
		};

		ds_store_perform(ds_repo_store(packs->repo), &req);
	}
	ds_buf_release(&body);
}

static bool is_index_due(const struct commit_packs *packs)
{
	if (packs->kind != DS_PACK_DATA || packs->unnamed_bytes < INDEX_BYTES_MIN)
		return false;
	return packs->unnamed_bytes >= INDEX_BYTES_MAX ||
	       packs->unnamed_bytes >= packs->put_bytes / INDEX_SHARE ||
	       ds_mono_ns() - packs->left_ns >= INDEX_PERIOD_NS;
}

/* Closes the open pack and starts its upload. */
static int close_pack(struct commit_packs *packs)
{
	struct ds_buf object = {0};
	struct commit_pack *pack;
	char key[DS_PACK_KEY_MAX];
	int r;

	if (!packs->writer)
		return 0;
	pack = &packs->packs[packs->open];
	pack->chunks_n = ds_pack_writer_chunks_n(packs->writer);
	pack->raw_bytes = ds_pack_writer_raw_bytes(packs->writer);
	r = ds_pack_writer_close(packs->writer, &pack->id, &object);
	packs->writer = ds_pack_writer_free(packs->writer);
	packs->is_last = false;
	if (r < 0)
		return r;
	pack->size_bytes = object.len_bytes;
	r = ds_map_put(packs->by_id, &pack->id, sizeof(pack->id),
		       (void *)(uintptr_t)(packs->open + 1), NULL);
	if (r == 0) {
		packs->put_bytes += object.len_bytes;
		packs->unnamed_bytes += object.len_bytes;
		r = commit_uploads_put(packs->uploads, ds_pack_key(&pack->id, key), &object, false);
	}
	ds_buf_release(&object);
	packs->closed_n = packs->unnamed_n;
	return r == 0 && is_index_due(packs) ? leave_index(packs) : r;
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

static int reserve_unnamed(struct commit_packs *packs)
{
	size_t capacity_n = DS_MAX(packs->unnamed_capacity_n * 2, (size_t)256);
	struct unnamed *grown;

	if (packs->unnamed_n < packs->unnamed_capacity_n)
		return 0;
	grown = ds_reallocarray(packs->unnamed, capacity_n, sizeof(*grown));
	if (!grown)
		return -ENOMEM;
	packs->unnamed = grown;
	packs->unnamed_capacity_n = capacity_n;
	return 0;
}

static int open_pack(struct commit_packs *packs)
{
	struct ds_buf memory;
	int r;

	if (packs->writer)
		return 0;
	commit_uploads_spare(packs->uploads, &memory);
	r = ds_pack_writer_new(packs->kind, &memory, &packs->writer);
	ds_buf_release(&memory);
	if (r == 0)
		r = append_pack(packs, &packs->open);
	if (r < 0) {
		packs->writer = ds_pack_writer_free(packs->writer);
		return r;
	}
	packs->packs[packs->open].is_new = true;
	return 0;
}

int commit_packs_make_room(struct commit_packs *packs, uint64_t bytes, uint32_t *ret_pack)
{
	int r = commit_packs_result(packs, NULL);

	if (r == 0 && packs->writer &&
	    ds_pack_writer_len_bytes(packs->writer) + bytes > DS_PACK_TARGET)
		r = close_pack(packs);
	if (r == 0)
		r = open_pack(packs);
	if (r < 0)
		return r;
	packs->is_last = true;
	*ret_pack = packs->open;
	return 0;
}

int commit_packs_add(struct commit_packs *packs, const struct ds_digest *digest, const void *stored,
		     uint32_t stored_len_bytes, uint32_t raw_len_bytes,
		     struct commit_place *ret_place)
{
	struct commit_place place = {.stored_len_bytes = stored_len_bytes};
	int r = commit_packs_result(packs, NULL);

	if (r == 0 && packs->writer && !packs->is_last &&
	    ds_pack_writer_len_bytes(packs->writer) + stored_len_bytes > DS_PACK_TARGET)
		r = close_pack(packs);
	if (r == 0)
		r = open_pack(packs);
	if (r == 0)
		r = reserve_unnamed(packs);
	if (r < 0)
		return r;
	place.pack = packs->open;
	place.raw_off = ds_pack_writer_raw_bytes(packs->writer);
	r = ds_pack_writer_add(packs->writer, digest, stored, stored_len_bytes, raw_len_bytes,
			       &place.ordinal, &place.stored_off);
	if (r < 0)
		return r;
	if (packs->kind == DS_PACK_DATA)
		packs->unnamed[packs->unnamed_n++] = (struct unnamed){.digest = *digest,
								      .pack = place.pack,
								      .ordinal = place.ordinal};
	*ret_place = place;
	return 0;
}

int commit_packs_flush(struct commit_packs *packs)
{
	int r = close_pack(packs);

	return r < 0 ? r : commit_uploads_wait(packs->uploads);
}

int commit_packs_result(struct commit_packs *packs, struct ds_diag *reterr_diag)
{
	return commit_uploads_result(packs->uploads, reterr_diag);
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

uint64_t commit_packs_uploaded_bytes(struct commit_packs *packs)
{
	return commit_uploads_bytes(packs->uploads);
}

const struct ds_digest *commit_packs_left(const struct commit_packs *packs, size_t *ret_n)
{
	*ret_n = packs->left.len_bytes / DS_DIGEST_LEN;
	return (const struct ds_digest *)packs->left.data;
}

struct look {
	struct commit_packs *packs;
	struct ds_diag *diag;
	const uint32_t *which;
};

static void start_look(void *ctx, struct commit_batch_slot *slot)
{
	const struct look *look = ctx;

	slot->req.op = DS_STORE_HEAD;
	ds_pack_key(&look->packs->packs[look->which[slot->idx]].id, slot->key);
}

static int finish_look(void *ctx, struct commit_batch_slot *slot)
{
	const struct look *look = ctx;
	const struct commit_pack *pack = &look->packs->packs[look->which[slot->idx]];
	int r = slot->req.result;

	if (r == 0 && slot->req.object_size_bytes == pack->size_bytes)
		return 0;
	if (r == 0 || r == -DS_E_ABSENT)
		return ds_diag_set(look->diag, -DS_E_CORRUPT, slot->key,
				   r == 0 ? "the store keeps another size than was sent"
					  : "the store said that it is there, and it is not");
	if (look->diag)
		*look->diag = slot->req.diag;
	return r;
}

int commit_packs_look(struct commit_packs *packs, struct ds_diag *reterr_diag)
{
	_ds_cleanup_free_ uint32_t *which = ds_calloc(packs->packs_n + 1u, sizeof(*which));
	struct look look = {.packs = packs, .diag = reterr_diag, .which = which};
	struct commit_batch batch = {.window = COMMIT_BATCH_WINDOW_MAX,
				     .start = start_look,
				     .finish = finish_look,
				     .ctx = &look};

	if (!which)
		return -ENOMEM;
	for (uint32_t i = 0; i < packs->packs_n; i++)
		if (packs->packs[i].is_new)
			which[batch.n++] = i;
	return commit_batch_run(ds_repo_store(packs->repo), &batch, packs->watch);
}
