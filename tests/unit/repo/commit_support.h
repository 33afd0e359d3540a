/*
 * What the tests of commit share: a box with a source directory, a repository in memory or in a directory, and a decorator
 * between that counts, fails, lies and calls back.
 */
#pragma once

#include <pthread.h>

#include "repo/commit.h"
#include "store/store.h"

/* Sees each request once, when it is submitted or performed. Thread-safe. Fields may be set while nothing runs. */
struct spy_store {
	struct ds_store base;
	struct ds_store *inner;
	_Atomic long calls_n, failed_n, lied_n;
	long fail_at;	 /* the n-th call from now (0: the next); -1: none */
	bool fail_after; /* after it was performed: the reply is lost */
	bool fail_sticky;
	int fail_with;
	const char *lie_about; /* a PUT of such a key is answered well and forgotten */
	bool lie_short;	       /* or kept without its last byte */
	long lie_max_n;	       /* only so many; 0: all */
	const char *deny;      /* requests for such keys are denied */
	/* Before each request; may use the inner store. */
	void (*before)(void *ctx, const struct ds_store_req *req);
	bool (*fails)(void *ctx, const struct ds_store_req *req); /* with fail_with */
	void *ctx;
	_Atomic long gets_n, puts_n, heads_n, lists_n;
	_Atomic long data_bytes; /* put below packs/ */
};
/* Takes over the reference. */
struct ds_store *spy_store_new(struct spy_store *spy, struct ds_store *inner);
void spy_store_reset(struct spy_store *spy);

struct box {
	char dir[64];
	char source[80], state[80];
	struct spy_store spy;
	struct ds_store *store, *inner;
	struct ds_repo *repo;
	struct ds_commit_options options;
	struct ds_commit_result result; /* of the last commit */
	struct ds_diag diag;
	char warnings[4096];
	volatile int interrupted;
	unsigned progress_n, anew_n;
	struct ds_clock clock;
};

void box_init(struct box *box); /* the store is in memory */
/* In memory, by a clock that stands until `now` is moved. */
void box_init_clock(struct box *box, struct ds_time *now);
/* Another writer to the repository of `of`, with a source and state of its own. */
void box_init_beside(struct box *box, struct box *of);
void box_init_dir(struct box *box); /* in BOX/repo */
void box_release(struct box *box);

/* Paths are relative to the source. All assert. */
void box_write(struct box *box, const char *path, const void *data, size_t len_bytes);
/* Bytes that follow from the seed: different for different seeds, incompressible. */
void box_fill(struct box *box, const char *path, uint64_t seed, size_t len_bytes);
void box_mkdir(struct box *box, const char *path);
void box_symlink(struct box *box, const char *target, const char *path);
void box_link(struct box *box, const char *from, const char *path);
void box_rename(struct box *box, const char *from, const char *path);
void box_remove(struct box *box, const char *path);
void box_chmod(struct box *box, const char *path, unsigned mode);
void box_set_mtime(struct box *box, const char *path, int64_t s, uint32_t ns);
/* All times below the source become old enough for the stat cache. */
void box_settle(struct box *box);

/* 0 or the error. The state directory is BOX/state unless options.state_dir says otherwise. */
int box_try_commit(struct box *box);
/* Asserts success. */
const struct ds_commit_result *box_commit(struct box *box);
/* The version `selector` is what lies in the source, byte for byte, and `verify` finds nothing. */
void box_check(struct box *box, const char *selector);
/* `verify` finds nothing; gives the number of versions. */
uint64_t box_verify(struct box *box, bool read_data);
/* The source moves to another path, with other inode numbers; no state. */
void box_move_elsewhere(struct box *box);

/*
 * Another writer is first: `left_n` times, just before our entry on the branch is put, `other` changes a file and commits. `path`: that
 * file; NULL: a new one, "file-N", N the times that are left. From race_begin until ours.spy.before is NULL again.
 */
struct race {
	struct box *other;
	const char *path;
	unsigned left_n;
};
void race_begin(struct race *race, struct box *ours);

/* A tree of every kind: sizes around the limits, odd names, links, holes. */
void box_make_tree(struct box *box);
