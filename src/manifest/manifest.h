/*
 * Reading a manifest: the SQLite database that describes the tree of one version.
 *
 * Pages come from a page source of the caller, which never blocks in a mount: when a page is not
 * local, the source notes in the caller's `want` what has to be fetched and answers
 * -DS_E_NOT_LOCAL; the function below then ends with -DS_E_NOT_LOCAL too, has changed nothing, and
 * is called again later. (SQLite sees SQLITE_IOERR_READ from our VFS.) A command-line source may
 * block in read_page instead.
 *
 * Every page was checked against its digest before SQLite sees it; the database is still opened as
 * hostile: defensive, no trusted schema, no triggers or views, cell checks, an authorizer that
 * allows reading only, length limits, exact comparison of the schema's text, and every row is
 * checked before it is returned (-DS_E_MALFORMED with a reason).
 *
 * Threads: a ds_manifest is shared; each call takes a connection of its own from a pool, so that
 * calls run in parallel. Nothing blocks but the source. Errors: -DS_E_NOT_LOCAL, -DS_E_MALFORMED
 * (hostile or damaged contents), -DS_E_TOO_NEW (schema number), -ENOENT (only: the verified
 * manifest has no such entry), -ENOMEM, and what the source returned.
 */
#ifndef DS_MANIFEST_MANIFEST_H
#define DS_MANIFEST_MANIFEST_H

#include "codec/chunk.h"
#include "codec/digest.h"
#include "util/buf.h"
#include "util/clock.h"
#include "util/diag.h"

#define DS_MANIFEST_SCHEMA	   1
#define DS_MANIFEST_APPLICATION_ID 0x64736673u
#define DS_ROOT_ID		   1u
#define DS_ENTRY_ID_FIRST	   3u
#define DS_ENTRY_ID_MAX		   ((UINT64_C(1) << 40) - 1)
#define DS_NAME_MAX		   255u
#define DS_TARGET_MAX		   4095u
#define DS_FILE_SIZE_MAX	   ((uint64_t)INT64_MAX)

struct ds_page_source {
	uint32_t page_size;
	uint64_t pages_n;
	/* Copies page 0.. into ret_page. `want` is what the caller of the look-up passed. */
	int (*read_page)(void *ctx, void *want, uint64_t page, void *ret_page);
	/* The whole file mapped, if all of it is local and checked; else NULL. May be NULL
	 * itself. Asked for each page; a mapping stays until the manifest is freed. Not for who must not
	 * wait for the disk, as threads of a mount: a fault waits. */
	const void *(*mapping)(void *ctx);
	void *ctx;
};

enum ds_entry_type { DS_ENTRY_FILE, DS_ENTRY_DIRECTORY, DS_ENTRY_SYMLINK };

/* Where a chunk lies, as a row says it; `pack` is a number in the manifest's pack table. */
struct ds_entry_chunk {
	uint32_t pack; /* from 1; 0: none */
	uint32_t ordinal;
	uint64_t stored_off;
	uint32_t stored_len_bytes;
	uint64_t raw_off; /* in the pack's raw bytes (files of one chunk only) */
};

struct ds_entry {
	uint64_t id;  /* of this name: the readdir cookie */
	uint64_t ino; /* of the inode: id, or of a further name the id of the first */
	/* Directory that holds this name; for ds_manifest_get: of the first name. */
	uint64_t parent;
	enum ds_entry_type type;
	bool is_executable;
	struct ds_time mtime;
	uint32_t nlink;
	uint64_t size_bytes;
	struct ds_digest digest;
	struct ds_entry_chunk chunk; /* pack 0: empty, or more than one chunk, or not a file */
	uint32_t extents_n;	     /* of a file over DS_CHUNK_MAX */
	uint8_t name_len;
	char name[DS_NAME_MAX + 1];
};

struct ds_extent {
	uint64_t off;
	uint64_t len_bytes;
	uint32_t slot;
	bool is_zeros;
	struct ds_digest digest;     /* not for zeros */
	struct ds_entry_chunk chunk; /* not for zeros */
};

struct ds_pack_row {
	uint32_t number;
	struct ds_digest id;
	uint64_t size_bytes;
	uint32_t chunks_n;
	uint64_t raw_bytes;
	uint64_t live_n;
};

struct ds_manifest;

/* Does not read anything yet: the first look-up does (so that opening never waits). The source
 * is copied; its ctx must outlive the manifest. */
int ds_manifest_new(const struct ds_page_source *source, struct ds_manifest **ret_manifest);
struct ds_manifest *ds_manifest_free(struct ds_manifest *manifest);

/* Header, schema and root. The first two are checked by every look-up that opens a connection,
 * too. */
int ds_manifest_check(struct ds_manifest *manifest, void *want, struct ds_diag *reterr_diag);
/* Why the last call that failed did so (-DS_E_NOT_LOCAL and -ENOENT apart); code 0 if none has.
 * With many threads, it may be another's failure: for log lines only. */
void ds_manifest_error(struct ds_manifest *manifest, struct ds_diag *ret_diag);

/* Entry of `name` in the directory `parent`; -ENOENT; -ENOTDIR if parent is no directory is not
 * checked here. */
int ds_manifest_lookup(struct ds_manifest *manifest, void *want, uint64_t parent, const char *name,
		       size_t name_len, struct ds_entry *ret_entry);
/* By inode number (also the root, whose name is ""). */
int ds_manifest_get(struct ds_manifest *manifest, void *want, uint64_t ino,
		    struct ds_entry *ret_entry);
/*
 * Names of a directory in byte order, after the entry with id `after` (0: from the start; an entry
 * that is not in this directory: -EINVAL). `fn` returns 0 to go on, 1 to stop (the call returns 0),
 * or an error. On -DS_E_NOT_LOCAL the names already given to fn stay given: the caller resumes
 * after the last.
 */
typedef int ds_manifest_list_fn(void *ctx, const struct ds_entry *entry);
int ds_manifest_list(struct ds_manifest *manifest, void *want, uint64_t dir, uint64_t after,
		     ds_manifest_list_fn *fn, void *ctx);
/*
 * The same for who shows attributes only, at 0.6 of the cost: of a file, what says where its contents
 * lie (digest, chunk, extents_n) is neither looked at nor set; of a further name it is.
 */
int ds_manifest_list_attrs(struct ds_manifest *manifest, void *want, uint64_t dir, uint64_t after,
			   ds_manifest_list_fn *fn, void *ctx);
/* Target of a symlink, appended to buf without a NUL (1..DS_TARGET_MAX bytes). */
int ds_manifest_readlink(struct ds_manifest *manifest, void *want, uint64_t ino,
			 struct ds_buf *buf);
/* Extents of a file over DS_CHUNK_MAX that overlap [off, off + len), in order, at most max_n;
 * checked to be without gap. */
int ds_manifest_extents(struct ds_manifest *manifest, void *want, uint64_t ino, uint64_t off,
			uint64_t len_bytes, struct ds_extent *ret_extents, size_t max_n,
			size_t *ret_n);
int ds_manifest_pack(struct ds_manifest *manifest, void *want, uint32_t number,
		     struct ds_pack_row *ret_pack);
/* All packs, by number > after. */
typedef int ds_manifest_pack_fn(void *ctx, const struct ds_pack_row *pack);
int ds_manifest_packs(struct ds_manifest *manifest, void *want, uint32_t after,
		      ds_manifest_pack_fn *fn, void *ctx);
typedef int ds_manifest_reject_fn(void *ctx, const char *path, size_t path_len, const char *reason);
int ds_manifest_rejects(struct ds_manifest *manifest, void *want, ds_manifest_reject_fn *fn,
			void *ctx);
/* A number of the `meta` table ("files", "bytes", "size_17"); 0 if it is not there. */
int ds_manifest_total(struct ds_manifest *manifest, void *want, const char *key,
		      uint64_t *ret_value);

/*
 * Whole check, for verify: every row of every table, the tree (one root, no cycles, parents are
 * directories, order, counts, nlink, sizes, directory digests, content digests over extents, live
 * counts, totals). `fn` gets each finding as one line; the first 1,000 are reported. Needs a source
 * that blocks or is local. Recursion-free; memory bounded by the number of directories, packs, and
 * files with several names. 0 if it could be read (findings or not; a header or schema that is
 * refused is one finding).
 */
typedef void ds_manifest_finding_fn(void *ctx, const char *text);
int ds_manifest_verify(struct ds_manifest *manifest, void *want, ds_manifest_finding_fn *fn,
		       void *ctx, uint64_t *ret_findings_n);

/*
 * Differences between two trees. Paths come in byte order of their components (a directory before
 * what is in it, and all of that before the next name); equal directory digests are skipped unseen
 * (with_mtime: not skipped, and changed times and link structure count too). For each difference,
 * `old` or `new` is NULL for added or removed; a removed or added directory is given, then
 * everything in it. A directory whose entries alone differ is not given itself; with_mtime, the
 * root may be, with an empty path. `path` is relative, without leading slash. `fn` returns 0 to go
 * on, 1 to stop (the call returns 0), or an error. Sources that block or are local. -DS_E_LIMIT for
 * paths over 16 MiB.
 */
typedef int ds_manifest_diff_fn(void *ctx, const char *path, size_t path_len,
				const struct ds_entry *old, const struct ds_entry *new);
int ds_manifest_diff(struct ds_manifest *old_manifest, struct ds_manifest *new_manifest, void *want,
		     bool with_mtime, ds_manifest_diff_fn *fn, void *ctx);

/* A source over a plain local SQLite file (blocking reads); for commit, tests and tools. */
struct ds_manifest_file;
int ds_manifest_file_open(const char *path, struct ds_manifest_file **ret_file,
			  struct ds_page_source *ret_source);
struct ds_manifest_file *ds_manifest_file_close(struct ds_manifest_file *file);

/*
 * Pages that a mount wants at once, most wanted first: page 0, the root page of each table and
 * index, the way to the first entry and the first name, then interior pages level by level of the
 * b-trees (found by walking page headers; SQLite file format, section 1.6). At most max_n. Source
 * local. `ret_pages` has room for max_n.
 */
int ds_manifest_hot_pages(const struct ds_page_source *source, uint64_t *ret_pages, size_t max_n,
			  size_t *ret_n);

/* The text of schema/manifest.sql, embedded. */
extern const char ds_manifest_schema_sql[];

#endif
