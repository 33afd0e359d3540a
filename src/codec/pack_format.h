/*
 * The pack's layout in numbers; shared by the writer and the parsers only.
 */
#ifndef DS_CODEC_PACK_FORMAT_H
#define DS_CODEC_PACK_FORMAT_H

#define PACK_MAGIC	     "dsfspak1"
#define PACK_TABLE_MAGIC     "dsfstoc1"
#define PACK_MOVED_MAGIC     "dsfsmov1"
#define PACK_MAGIC_LEN	     8u
#define PACK_NONCE_LEN	     16u
#define PACK_TABLE_HEAD_LEN  (PACK_MAGIC_LEN + PACK_NONCE_LEN + 4u + 4u)
#define PACK_TABLE_ENTRY_LEN 40u
#define PACK_TABLE_MAX	     (PACK_TABLE_HEAD_LEN + DS_PACK_CHUNKS_MAX * PACK_TABLE_ENTRY_LEN)

#endif
