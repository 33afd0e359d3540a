#include "fetch_support.h"

#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "util/clock.h"

static void check(int r, const char *what)
{
	if (r >= 0)
		return;
	fprintf(stderr, "%s: %s\n", what, ds_strerror(r));
	abort();
}

void stored_pack_init(struct stored_pack *stored, const struct support_pack *pack, uint32_t first,
		      uint32_t n, struct ds_store *store)
{
	struct ds_pack_writer *writer;
	struct ds_buf object;
	uint64_t size, off, len;

	stored->refs = calloc(n, sizeof(stored->refs[0]));
	check(ds_pack_writer_new(DS_PACK_DATA, NULL, &writer), "writer");
	for (uint32_t i = 0; i < n; i++) {
		const struct ds_image_slot *slot = &pack->slots[first + i];
		struct ds_chunk_ref *ref = &stored->refs[i];
		uint8_t *raw = malloc(slot->raw_len_bytes);
		uint8_t *coded = malloc(ds_chunk_bound(slot->raw_len_bytes));

		support_bytes(pack, first + i, raw);
		ref->digest = slot->digest;
		ref->raw_len_bytes = slot->raw_len_bytes;
		ref->stored_len_bytes = (uint32_t)ds_chunk_encode(raw, slot->raw_len_bytes, coded);
		check(ds_pack_writer_add(writer, &ref->digest, coded, ref->stored_len_bytes,
					 ref->raw_len_bytes, &ref->ordinal, &ref->stored_off),
		      "add");
		free(raw);
		free(coded);
	}
	check(ds_pack_writer_close(writer, &stored->id, &object), "close");
	for (uint32_t i = 0; i < n; i++)
		stored->refs[i].pack = stored->id;
	size = object.len_bytes;
	check(ds_pack_toc_locate(object.data, object.len_bytes, size, &off, &len), "toc");
	stored->table_len = len;
	stored->table = malloc(len);
	memcpy(stored->table, object.data + off, len);
	ds_pack_key(&stored->id, stored->key);
	check(ds_store_put_if_absent(store, stored->key, object.data, object.len_bytes, NULL),
	      "put");
	ds_buf_release(&object);
	ds_pack_writer_free(writer);
}

void stored_pack_release(struct stored_pack *stored)
{
	free(stored->refs);
	free(stored->table);
}

void stored_pack_move(struct stored_pack *from, const struct stored_pack *to,
		      struct ds_store *store)
{
	struct ds_store_req req = {.op = DS_STORE_DELETE, .key = from->key};
	struct ds_buf note = DS_BUF_INIT(DS_MIB(16));
	struct ds_pack_moved_to *targets;
	uint32_t n = (uint32_t)((from->table_len - 32) / 40);
	char key[DS_PACK_KEY_MAX];

	targets = calloc(n, sizeof(targets[0]));
	for (uint32_t i = 0; i < n && to; i++)
		targets[i] = (struct ds_pack_moved_to){.pack = to->id, .ordinal = i};
	check(ds_pack_moved_encode(from->table, from->table_len, targets, &note), "encode");
	check(ds_store_put_if_absent(store, ds_pack_moved_key(&from->id, key), note.data,
				     note.len_bytes, NULL),
	      "put note");
	check(ds_store_perform(store, &req), "delete");
	ds_buf_release(&note);
	free(targets);
}

struct ds_fetch_target target_of(struct ds_image *image, const struct support_pack *pack,
				 const struct stored_pack *stored, uint32_t slot)
{
	return (struct ds_fetch_target){.image = image,
					.slot = slot,
					.raw_off = pack->slots[slot].raw_off,
					.ref = stored->refs[slot]};
}

static void over(struct ds_fetch_waiter *waiter, int result, struct ds_chunk_bytes *bytes,
		 const struct ds_diag *diag)
{
	struct want *want = ds_container_of(waiter, struct want, waiter);
	const struct ds_image_slot *slot = &want->pack->slots[want->slot];

	if (want->is_over) {
		fprintf(stderr, "done is called twice\n");
		abort();
	}
	want->result = result;
	want->over_ns = ds_mono_ns();
	if (diag)
		want->diag = *diag;
	if (result == 0) {
		uint8_t *right = malloc(slot->raw_len_bytes);

		support_bytes(want->pack, want->slot, right);
		if (bytes->len_bytes != slot->raw_len_bytes ||
		    memcmp(right, bytes->data, bytes->len_bytes) != 0) {
			fprintf(stderr, "wrong bytes in slot %u\n", want->slot);
			abort();
		}
		free(right);
	}
	want->is_over = 1;
	syscall(SYS_futex, &want->is_over, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

void want_init(struct want *want, const struct support_pack *pack, uint32_t slot)
{
	memset(want, 0, sizeof(*want));
	want->waiter.done = over;
	want->pack = pack;
	want->slot = slot;
}

void want_start(struct want *want, struct ds_fetcher *fetcher, struct ds_image *image,
		const struct support_pack *pack, const struct stored_pack *stored, uint32_t slot,
		uint64_t timeout_ms)
{
	struct ds_fetch_target target = target_of(image, pack, stored, slot);

	want_init(want, pack, slot);
	want->waiter.deadline_ns = ds_deadline_in_ms(timeout_ms);
	check(ds_fetcher_want(fetcher, &target, &want->waiter), "want");
}

int want_wait(struct want *want)
{
	struct timespec limit = {.tv_sec = 60};
	uint64_t deadline = ds_deadline_in_ms(60000);

	while (!want->is_over) {
		syscall(SYS_futex, &want->is_over, FUTEX_WAIT_PRIVATE, 0, &limit, NULL, 0);
		if (ds_mono_ns() > deadline) {
			fprintf(stderr, "a want is never over\n");
			abort();
		}
	}
	return want->result;
}
