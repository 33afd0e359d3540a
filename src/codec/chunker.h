/*
 * Content-defined chunking of one file that is larger than DS_CHUNK_MAX: every maximal run of at
 * least DS_ZEROS_MIN zero bytes is one extent of zeros, each stretch between is cut by FastCDC
 * with normalised chunking (Xia et al., "The Design of Fast Content-Defined Chunking", IEEE TPDS
 * 2020) started afresh. The exact rule, gear table and masks are format (schema/README.md,
 * "Chunks").
 *
 * Push in, extents out: feed the file's bytes in order; the callback gets each extent in file order
 * with its bytes (NULL for zeros), which are valid during the callback only. Result does not
 * depend on how the bytes were split over calls. Holds at most about 2 * DS_CHUNK_MAX of memory.
 * Threads: one at a time. Errors: -ENOMEM, or what the callback returned (then the chunker is done
 * for).
 */
#ifndef DS_CODEC_CHUNKER_H
#define DS_CODEC_CHUNKER_H

#include <stddef.h>
#include <stdint.h>

typedef int ds_chunker_fn(void *ctx, uint64_t off, const void *data, uint64_t len_bytes);

struct ds_chunker;
int ds_chunker_new(ds_chunker_fn *fn, void *ctx, struct ds_chunker **ret_chunker);
struct ds_chunker *ds_chunker_free(struct ds_chunker *chunker);
int ds_chunker_feed(struct ds_chunker *chunker, const void *data, size_t len_bytes);
/* As if len zero bytes had been fed, without touching memory for long runs (holes of sparse
 * files). */
int ds_chunker_feed_zeros(struct ds_chunker *chunker, uint64_t len_bytes);
/* Emits what is left. */
int ds_chunker_finish(struct ds_chunker *chunker);

#endif
