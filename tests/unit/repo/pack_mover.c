#include "pack_mover.h"

#include <criterion/criterion.h>
#include <string.h>

#include "codec/pack.h"
#include "util/mem.h"

void move_pack(struct ds_store *store, const char *key, bool damage)
{
	struct ds_store_req drop = {.op = DS_STORE_DELETE, .key = key};
	struct ds_buf old = DS_BUF_INIT(1 << 20), object, note = DS_BUF_INIT(1 << 20);
	struct ds_pack_moved_to *targets;
	struct ds_pack_writer *writer;
	struct ds_pack_toc *toc;
	struct ds_digest id, to;
	char to_key[DS_PACK_KEY_MAX], note_key[DS_PACK_KEY_MAX];
	uint64_t off, len;

	cr_assert_eq(ds_store_get(store, key, &old, NULL), 0);
	cr_assert_eq(ds_digest_parse(strrchr(key, '/') + 1, &id), 0);
	cr_assert_eq(ds_pack_toc_locate(old.data, old.len_bytes, old.len_bytes, &off, &len), 0);
	cr_assert_eq(ds_pack_toc_parse(old.data + off, len, &id, &toc), 0);
	targets = ds_calloc(toc->chunks_n + 1, sizeof(*targets));
	cr_assert_eq(ds_pack_writer_new(toc->kind, NULL, &writer), 0);
	for (uint32_t i = 0; i < toc->chunks_n; i++) {
		const struct ds_pack_entry *entry = &toc->entries[i];
		uint64_t stored_off;

		cr_assert_eq(ds_pack_writer_add(writer, &entry->digest,
						old.data + entry->stored_off,
						entry->stored_len_bytes, entry->raw_len_bytes,
						&targets[i].ordinal, &stored_off),
			     0);
	}
	cr_assert_eq(ds_pack_writer_close(writer, &to, &object), 0);
	ds_pack_writer_free(writer);
	for (uint32_t i = 0; i < toc->chunks_n; i++)
		targets[i].pack = to;
	if (damage)
		object.data[DS_PACK_HEAD_LEN] ^= 1;
	cr_assert_eq(ds_store_put(store, ds_pack_key(&to, to_key), object.data, object.len_bytes,
				  NULL),
		     0);
	cr_assert_eq(ds_pack_moved_encode(old.data + off, len, targets, &note), 0);
	cr_assert_eq(ds_store_put(store, ds_pack_moved_key(&id, note_key), note.data,
				  note.len_bytes, NULL),
		     0);
	cr_assert_eq(ds_store_perform(store, &drop), 0);
	ds_free(targets);
	ds_free(toc);
	ds_buf_release(&old);
	ds_buf_release(&object);
	ds_buf_release(&note);
}
