/*
 * For commit_read.c (the caller's side) and commit_read_file.c (the workers').
 *
 * Tasks (files to read) form a queue in tree order. A worker runs a task and appends what it finds to the task's own
 * list; the caller's thread takes the lists of the oldest task, packs, and goes on to the next. Chunks of a large file are hashed and
 * compressed on workers of another kind, which wait for nothing, while the file's worker reads on.
 *
 * INV-1  Tasks start in the order of the queue, so that the oldest one is running or finished: waiting for it ends.
 * INV-2  A worker waits for room only while its task is not the oldest, or while the oldest has more than `head_bytes`, which
 *        the caller is about to take: no deadlock.
 * INV-3  A piece with `restart` voids all pieces of its task before it: the file changed under the reader.
 * INV-4  A piece is the caller's once it is ready; whoever made it ready does not touch it, nor its task, any more.
 * INV-5  What the first name of a linked file gives counts for another name only if that was the same file, by device and inode,
 *        after the reading. Names of which this is not known leave the links, and are read by themselves. Where names differed when
 *        they were scanned (times change with each link that is made, but an inode may also have become another file), the first
 *        is read whatever the stat cache knows.
 * INV-6  A file is read when each write since then would show in its times, and its times are compared before and after. Times
 *        tick, and one write() stamps them once, at its start: so the last change must be TICK_NS ago, and if somebody has the
 *        file open for writing (or if that cannot be told) REST_NS, or in all that time it was only seen to grow. What stores through
 *        a mapping longer than that is not seen.
 */
#ifndef DS_REPO_COMMIT_READ_IMPL_H
#define DS_REPO_COMMIT_READ_IMPL_H

#include <pthread.h>
#include <sys/stat.h>

#include "repo/commit_read.h"
#include "repo/commit_watch.h"
#include "util/list.h"
#include "util/work.h"

#define READ_TRIES_MAX 3u

struct piece {
	struct ds_list node; /* in its task's pieces */
	struct ds_work_item work;
	struct task *task;
	uint64_t off, len_bytes;
	bool is_zeros, is_whole_file, restart;
	struct ds_digest digest;
	uint8_t *raw; /* until it is encoded */
	uint8_t *stored;
	uint32_t stored_len_bytes;
	/* under the pipeline's mutex */
	uint64_t counted_bytes;
	bool is_ready;
	int result;
};

struct pipeline;

struct task {
	struct ds_work_item work;
	struct ds_list node; /* in the pipeline's queue */
	struct pipeline *pipeline;
	struct commit_node *file;
	struct stat st;	  /* of what was read */
	bool is_uncached; /* somebody may yet change it without a new time */
	/* the caller's */
	uint64_t taken_bytes;
	struct commit_extent *extents;
	uint32_t extents_n;
	/* under the pipeline's mutex */
	struct ds_list pieces;
	uint64_t counted_bytes;
	bool is_done;
	int result;
};

struct pipeline {
	struct commit_read *read;
	struct commit_watch watch;
	struct ds_work *readers, *encoders;
	struct ds_list tasks; /* oldest first; the caller's thread only */
	unsigned tasks_n;
	bool has_left_links; /* some name did; the caller's thread only */
	uint64_t head_bytes;
	pthread_mutex_t mutex;
	pthread_cond_t changed; /* something for the caller */
	pthread_cond_t room;
	struct {
		uint64_t counted_bytes;
		struct task *head;
		bool is_stopped;
	} locked;
	uint64_t progress_ns;
};

/* Whether the open file, which changed age_ns ago, may yet change through a mapping without a new time. `is_free`: nobody has it open for
 * writing, or mapped so. */
bool commit_read_is_unsure(int fd, bool is_free, int64_t age_ns);
/* Work item of a task. */
void commit_read_task(struct ds_work_item *work);
void commit_piece_free(struct piece *piece);

#endif
