/*
 * What the parts of warming share (view_warm*.c only). One thread runs it: what is not under the mutex is that thread's.
 */
#ifndef DS_REPO_VIEW_WARM_INTERNAL_H
#define DS_REPO_VIEW_WARM_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "repo/view_internal.h"
#include "repo/view_warm.h"

#define WARM_BATCH  65536u     /* chunks that are sorted by their places at once: 8 MiB */
#define WARM_FILES  256u       /* large files in one batch: each holds an image */
#define WARM_WANTS  4096u      /* chunks under way */
#define WARM_STACK  (1u << 24) /* directories that are still to be listed: 128 MiB */
#define WARM_LEVELS 4096u

/* A large file of which chunks are in the batch or under way. */
struct warm_file {
	uint64_t ino;
	struct ds_image *image;
	uint64_t left_n; /* chunks, and 1 while there may come more; by the mutex */
	bool has_failed; /* by the mutex */
};

struct warm_chunk {
	struct ds_fetch_target target;
	uint64_t ino;		/* 0: of the manifest */
	struct warm_file *file; /* NULL: a file of one chunk, or the manifest */
};

struct warm_want {
	struct ds_list node; /* in `free` or `busy` */
	struct ds_fetch_waiter fetch;
	struct ds_warm *warm;
	struct warm_chunk chunk;
	uint64_t sent_ns;
};

struct warm_failure {
	struct ds_list node;
	uint64_t ino;
	struct ds_diag diag;
};

/* What is wanted and was not met yet, so that no chunk counts twice. */
struct warm_tally {
	struct ds_map *packs; /* number -> struct warm_pack */
	struct ds_map *files; /* digest of the contents -> the tally itself */
};

struct ds_warm {
	struct ds_view *view;
	struct ds_warm_options options;
	struct ds_diag *diag; /* of ds_warm_run's caller, or one that is passed over */
	atomic_bool is_stopped;
	uint64_t ticked_ns;
	struct ds_demand demand;
	struct warm_tally tally;
	uint64_t needed_bytes; /* of the cache, maps and all */
	uint64_t unstored_n;   /* of the cache, when it began */
	uint64_t *stack;
	size_t stack_n, stack_room_n;
	struct warm_chunk *batch;
	size_t batch_n, batch_files_n;
	struct warm_want *wants;
	pthread_mutex_t mutex;
	pthread_cond_t wake;
	struct {
		struct ds_warm_progress progress;
		struct ds_list free, busy;
		struct ds_list failures; /* to be told */
		uint64_t busy_bytes;	 /* cost of what is under way */
		uint64_t window_bytes;	 /* how much of it there should be */
		uint64_t lost_bytes;	 /* were brought, and did not stay */
		uint64_t moved_ns,
			chunks_n; /* when, and at which count of the fetcher, something came last */
		int error;	  /* that ends it: the first */
		struct ds_diag diag; /* of it */
		int damage;	     /* of files: the first */
		bool is_answered;    /* the demand */
		int answer;
	} locked;
};

/* ---- view_warm.c */

/* Runs it again and again until it needs nothing more of the store. The reason of an error is in warm->diag. */
typedef int warm_call_fn(struct ds_warm *warm, void *ctx);
int warm_call(struct ds_warm *warm, warm_call_fn *call, void *ctx);
/* Whether it was stopped, or something has ended it: to be asked now and then. */
int warm_check(struct ds_warm *warm);
/* Into the batch, unless it is here; sends the batch when it is full. */
int warm_add(struct ds_warm *warm, const struct warm_chunk *chunk);
/* Sends the batch, and waits until all of it has come. */
int warm_flush(struct ds_warm *warm);
/* One chunk less of a large file. */
void warm_file_over_locked(struct ds_warm *warm, struct warm_file *file);
/* A file that cannot be had, for reasons of the manifest, which are in warm->diag. */
void warm_file_failed(struct ds_warm *warm, uint64_t ino, int code);

/* ---- view_warm_tree.c */

enum warm_pass {
	WARM_TALLY, /* counts what is wanted */
	WARM_FETCH, /* brings it */
};
int warm_tree(struct ds_warm *warm, enum warm_pass pass);
void warm_tally_manifest(struct ds_warm *warm);
int warm_manifest(struct ds_warm *warm);
int warm_tally_init(struct warm_tally *tally);
void warm_tally_release(struct warm_tally *tally);
/* Of the first name; "inode N" if it cannot be told. New string or NULL. */
char *warm_path(struct ds_warm *warm, uint64_t ino);

#endif
