/*
 * Packs: objects that hold many chunks, and the note that stands for a pack that is gone
 * (`.moved`). Layout: schema/README.md, "Packs". Everything parsed here is hostile until its
 * digest was checked: lengths, counts and sums are bounded before use.
 *
 * Threads: an object belongs to one thread; a parsed table is read-only and may be shared. No I/O.
 */
#ifndef DS_CODEC_PACK_H
#define DS_CODEC_PACK_H

#include "codec/chunk.h"
#include "codec/digest.h"
#include "util/buf.h"

#define DS_PACK_TARGET	    DS_MIB(32) /* a writer closes a pack when it reaches this */
#define DS_PACK_MAX	    DS_GIB(1)  /* no reader accepts a larger one */
#define DS_PACK_CHUNKS_MAX  (1u << 20) /* nor one of more chunks */
#define DS_PACK_HEAD_LEN    8	       /* the magic; the first chunk starts here */
#define DS_PACK_TRAILER_LEN 8	       /* length of the table of contents */

enum ds_pack_kind { DS_PACK_DATA = 0, DS_PACK_MANIFEST = 1 };

struct ds_pack_entry {
	struct ds_digest digest;
	uint32_t raw_len_bytes;
	uint32_t stored_len_bytes;
	uint64_t stored_off; /* sum of what precedes */
	uint64_t raw_off;    /* sum of what precedes: place in the pack's cache image */
};

/* Writer: chunks go into one buffer in memory (at most DS_PACK_TARGET + DS_CHUNK_MAX + table), which is aligned to
 * DS_PACK_ALIGN so that a store may write it without a copy. */
#define DS_PACK_ALIGN 4096
struct ds_pack_writer;
/* `take_memory`: an object that is done with, whose memory is used again; or NULL. */
int ds_pack_writer_new(enum ds_pack_kind kind, struct ds_buf *take_memory,
		       struct ds_pack_writer **ret_writer);
struct ds_pack_writer *ds_pack_writer_free(struct ds_pack_writer *writer);
/* Appends an encoded chunk; gives its ordinal and stored offset. -ENOMEM, -DS_E_LIMIT. */
int ds_pack_writer_add(struct ds_pack_writer *writer, const struct ds_digest *digest,
		       const void *stored, uint32_t stored_len_bytes, uint32_t raw_len_bytes,
		       uint32_t *ret_ordinal, uint64_t *ret_stored_off);
uint32_t ds_pack_writer_chunks_n(const struct ds_pack_writer *writer);
/* Bytes that the object would have if it were closed now. */
uint64_t ds_pack_writer_len_bytes(const struct ds_pack_writer *writer);
uint64_t ds_pack_writer_raw_bytes(const struct ds_pack_writer *writer);
/* Appends table and trailer, gives the id, and moves the object's bytes into `ret_object`
 * (initialised by the callee; caller releases). 128 fresh random bits make the id unique. The
 * writer may only be freed then. */
int ds_pack_writer_close(struct ds_pack_writer *writer, struct ds_digest *ret_id,
			 struct ds_buf *ret_object);

/* Table of contents, parsed. */
struct ds_pack_toc {
	enum ds_pack_kind kind;
	uint32_t chunks_n;
	uint64_t object_len_bytes; /* what the whole object must measure */
	uint64_t raw_len_bytes;	   /* sum over the chunks */
	struct ds_pack_entry entries[];
};
/* `table` are the bytes of the table alone; its SHA-256 must be `id`. -DS_E_CORRUPT,
 * -DS_E_MALFORMED, -ENOMEM. Free with ds_free. */
int ds_pack_toc_parse(const void *table, size_t len_bytes, const struct ds_digest *id,
		      struct ds_pack_toc **ret_toc);
/* Finds the table in the last bytes of the object (`tail`, 8 bytes or more, ending at the object's
 * end, whose length is object_len): offset and length of the table within the object. With a tail
 * too short to hold it still 0, and the caller reads more. -DS_E_MALFORMED. */
int ds_pack_toc_locate(const void *tail, size_t tail_len_bytes, uint64_t object_len_bytes,
		       uint64_t *ret_off, uint64_t *ret_len_bytes);

/* The note `packs/AA/ID.moved`. */
struct ds_pack_moved_to {
	struct ds_digest pack; /* all zero: this chunk is gone for good */
	uint32_t ordinal;
};
struct ds_pack_moved {
	struct ds_pack_toc *toc;	  /* the old table */
	struct ds_pack_moved_to *targets; /* toc->chunks_n of them */
};
int ds_pack_moved_encode(const void *old_table, size_t old_table_len_bytes,
			 const struct ds_pack_moved_to *targets, struct ds_buf *buf);
/* Checks the old table against `id`, and that every target is in range. */
int ds_pack_moved_parse(const void *data, size_t len_bytes, const struct ds_digest *id,
			struct ds_pack_moved *ret_moved);
void ds_pack_moved_release(struct ds_pack_moved *moved);

/* "packs/AA/ID" and "packs/AA/ID.moved"; room for DS_PACK_KEY_MAX. Returns buf. */
#define DS_PACK_KEY_MAX 96
const char *ds_pack_key(const struct ds_digest *id, char *buf);
const char *ds_pack_moved_key(const struct ds_digest *id, char *buf);

#endif
