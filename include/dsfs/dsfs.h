/*
 * libdsfs: read versioned datasets without a mount.
 *
 *     struct dsfs_repository *repo;
 *     struct dsfs_version *version;
 *     struct dsfs_error error;
 *
 *     if (dsfs_repository_open("s3://bucket/imagenet", NULL, &repo, &error) < 0 ||
 *         dsfs_version_open(repo, "v2.1", &version, &error) < 0)
 *             errx(1, "%s", error.text);
 *
 * Every byte that comes back was checked against a digest that the version's id vouches for.
 *
 * All functions return 0 or a negative number (a negated errno, or below -4095 a code of dsfs itself, for
 * which error.text and error.name speak); `error` may be NULL. They block, up to the timeout. A repository and a version may be
 * used by several threads at once. Strings are UTF-8 but for file names and paths, which are bytes.
 */
#ifndef DSFS_DSFS_H
#define DSFS_DSFS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#ifdef __cplusplus
extern "C" {
#endif

#define DSFS_PUBLIC __attribute__((visibility("default")))

struct dsfs_error {
	int code;	 /* as returned */
	char name[32];	 /* "NO_VERSION", "ENOENT" */
	char text[1024]; /* one line for people */
};

struct dsfs_options {
	const char *endpoint, *region,
		*profile; /* NULL: environment and ~/.aws, as for other S3 tools */
	const char *
		addressing; /* of buckets: "path", "virtual"; NULL: the profile's, else by the endpoint */
	bool insecure_http;    /* allow http:// to other hosts */
	uint64_t timeout_ms;   /* 0: 60,000 */
	const char *cache_dir; /* NULL: none, memory only */
	uint64_t cache_bytes;  /* 0: half of what is free and what the cache takes already */
	/* Called once, from another thread, when the store has failed for 2 s and is still being tried: why, and for how
	 * long at most. May not block. NULL: nobody is told. */
	void (*waits)(void *ctx, const char *why, uint64_t left_ms);
	void *waits_ctx;
};

struct dsfs_repository;
struct dsfs_version;

/* url: s3://bucket/prefix, file:///path, or a path. */
DSFS_PUBLIC int dsfs_repository_open(const char *url, const struct dsfs_options *options,
				     struct dsfs_repository **ret_repository,
				     struct dsfs_error *reterr);
/* All its versions must be closed. NULL is allowed. */
DSFS_PUBLIC void dsfs_repository_close(struct dsfs_repository *repository);

#define DSFS_ID_TEXT_MAX 65

struct dsfs_info { /* what a version record says; strings live as long as the call, or the version */
	char id[DSFS_ID_TEXT_MAX];
	char fingerprint[DSFS_ID_TEXT_MAX]; /* "" if there is none */
	uint64_t number;      /* of the branch entry; 0 if it was found by id or tag */
	const char *branch;   /* "" if none */
	struct timespec time; /* of the record */
	/* Of the branch entry, to the millisecond, by which a selector finds it; zero without one. */
	struct timespec entry_time;
	const char *author, *message;
	uint64_t files_n, directories_n, symlinks_n, bytes, rejected_n;
	const char *record; /* the record's JSON text */
};

/* Versions of a branch (NULL: the default), newest first, beginning with `selector` (NULL: the head); `each` returns 0 to go on, else the walk ends with that
 * value. At most max_n (0: all). Follows the branch's entries; deleted entries are passed over. */
DSFS_PUBLIC int dsfs_history(struct dsfs_repository *repository, const char *branch,
			     const char *selector, uint64_t max_n,
			     int (*each)(void *ctx, const struct dsfs_info *info), void *ctx,
			     struct dsfs_error *reterr);

/* selector: number, tag, branch, BRANCH:number, date or time, id prefix; NULL: newest of the default branch. */
DSFS_PUBLIC int dsfs_version_open(struct dsfs_repository *repository, const char *selector,
				  struct dsfs_version **ret_version, struct dsfs_error *reterr);
DSFS_PUBLIC void dsfs_version_close(struct dsfs_version *version);
DSFS_PUBLIC const struct dsfs_info *dsfs_version_info(const struct dsfs_version *version);

enum dsfs_type { DSFS_FILE, DSFS_DIRECTORY, DSFS_SYMLINK };

struct dsfs_stat {
	uint64_t inode;
	enum dsfs_type type;
	bool executable;
	uint64_t size_bytes; /* file: bytes; directory: entries; symlink: length of its target */
	uint32_t nlink;
	struct timespec mtime;
	uint8_t digest[32]; /* content, target or directory digest */
	uint64_t cookie;    /* for dsfs_list */
	size_t name_len;
	char name[256];
};

/* path: "a/b/c" from the root, "" is the root. Symlinks are not followed. -ENOENT, -ENOTDIR. */
DSFS_PUBLIC int dsfs_stat(struct dsfs_version *version, const char *path,
			  struct dsfs_stat *ret_stat, struct dsfs_error *reterr);
/* Names of a directory in byte order, after the entry with that cookie (0: from the start). `each` as above. */
DSFS_PUBLIC int dsfs_list(struct dsfs_version *version, uint64_t directory_inode, uint64_t after,
			  int (*each)(void *ctx, const struct dsfs_stat *entry), void *ctx,
			  struct dsfs_error *reterr);
/* Fewer bytes than asked only at the end of the file. */
DSFS_PUBLIC int dsfs_read(struct dsfs_version *version, uint64_t inode, uint64_t offset, void *data,
			  size_t len_bytes, size_t *ret_n, struct dsfs_error *reterr);
/* A hint: these files will be read soon, in this order, from their starts. What is missing of them is fetched with few
 * requests while the caller goes on; their look-ups are waited for. Nothing without a cache, or with one under 512 MiB. */
DSFS_PUBLIC void dsfs_prefetch(struct dsfs_version *version, const uint64_t *inodes,
			       size_t inodes_n);
/* Where the next data, or hole, at or after offset is; -ENXIO past the end. */
DSFS_PUBLIC int dsfs_seek(struct dsfs_version *version, uint64_t inode, uint64_t offset, bool hole,
			  uint64_t *ret_offset, struct dsfs_error *reterr);
/* Target of a symlink with a NUL; -ERANGE if it does not fit. 4,096 bytes always do. */
DSFS_PUBLIC int dsfs_readlink(struct dsfs_version *version, uint64_t inode, char *target,
			      size_t size, struct dsfs_error *reterr);

#ifdef __cplusplus
}
#endif
#endif
