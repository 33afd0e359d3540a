/*
 * Tasks (files to read) form a queue in tree order. A worker runs a task and appends what it finds to the task's own
 * list; the caller's thread takes the lists of the oldest task, packs, and goes on to the next.
 *
 * INV-1  Tasks start in the order of the queue, so that the oldest one is running or finished: waiting for it ends.
 * INV-2  A worker waits for room only while its task is not the oldest, or while the oldest has HEAD_BYTES queued that
 *        the caller is about to take: no deadlock.
 * INV-3  A piece with `restart` voids all pieces of its task before it: the file changed under the reader.
 */
#include "repo/commit_read.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "codec/chunker.h"
#include "codec/content.h"
#include "util/error.h"
#include "util/file.h"
#include "util/mem.h"
#include "util/str.h"
#include "util/work.h"

#define TASKS_MAX   512u
#define HEAD_BYTES  DS_MIB(32)
#define READ_BYTES  DS_MIB(1)
#define TRIES_MAX   3u
#define PROGRESS_NS (200 * (uint64_t)DS_NS_PER_MS)

struct piece {
	struct ds_list node;
	uint64_t off, len_bytes;
	bool is_zeros, restart;
	struct ds_digest digest;
	uint32_t stored_len_bytes;
	uint8_t stored[];
};

struct pipeline;

struct task {
	struct ds_work_item work;
	struct ds_list node; /* in the pipeline's queue */
	struct pipeline *pipeline;
	struct commit_node *file;
	struct ds_list pieces; /* under the pipeline's mutex */
	uint64_t queued_bytes;
	bool is_done;
	int result;
	struct stat st; /* of what was read */
};

struct pipeline {
	struct commit_read *read;
	struct ds_work *work;
	struct ds_list tasks; /* oldest first; the caller's thread only */
	unsigned tasks_n;
	pthread_mutex_t mutex;
	pthread_cond_t changed; /* something for the caller */
	pthread_cond_t room;
	struct {
		uint64_t queued_bytes;
		struct task *head;
		bool is_stopped;
	} locked;
	uint64_t progress_ns;
};

static bool is_stopped(struct pipeline *pipeline)
{
	bool stopped;

	pthread_mutex_lock(&pipeline->mutex);
	stopped = pipeline->locked.is_stopped;
	pthread_mutex_unlock(&pipeline->mutex);
	return stopped;
}

/* Takes the piece. */
static int push(struct task *task, struct piece *piece)
{
	struct pipeline *pipeline = task->pipeline;
	uint64_t bytes = sizeof(*piece) + piece->stored_len_bytes;
	int r = 0;

	pthread_mutex_lock(&pipeline->mutex);
	/* INV-2 */
	while (!pipeline->locked.is_stopped &&
	       (pipeline->locked.head == task
			? task->queued_bytes > HEAD_BYTES
			: pipeline->locked.queued_bytes + bytes > pipeline->read->memory_bytes))
		pthread_cond_wait(&pipeline->room, &pipeline->mutex);
	if (pipeline->locked.is_stopped) {
		r = -DS_E_INTERRUPTED;
		ds_free(piece);
	} else {
		ds_list_push_back(&task->pieces, &piece->node);
		task->queued_bytes += bytes;
		pipeline->locked.queued_bytes += bytes;
		if (pipeline->locked.head == task)
			pthread_cond_signal(&pipeline->changed);
	}
	pthread_mutex_unlock(&pipeline->mutex);
	return r;
}

/* One extent of the file, on a worker. */
static int on_extent(void *ctx, uint64_t off, const void *data, uint64_t len_bytes)
{
	struct task *task = ctx;
	bool wants_bytes = data && task->pipeline->read->packs;
	struct piece *piece =
		ds_malloc(sizeof(*piece) + (wants_bytes ? ds_chunk_bound((size_t)len_bytes) : 0));
	int r = 0;

	if (!piece)
		return -ENOMEM;
	*piece = (struct piece){.off = off, .len_bytes = len_bytes, .is_zeros = data == NULL};
	if (data)
		r = ds_digest_of(data, (size_t)len_bytes, &piece->digest);
	if (r < 0) {
		ds_free(piece);
		return r;
	}
	if (wants_bytes)
		piece->stored_len_bytes =
			(uint32_t)ds_chunk_encode(data, (size_t)len_bytes, piece->stored);
	return push(task, piece);
}

static int read_small(struct task *task, int fd, uint64_t size)
{
	_ds_cleanup_free_ uint8_t *data = ds_malloc((size_t)size);
	size_t n;
	int r;

	if (size == 0)
		return 0;
	if (!data)
		return -ENOMEM;
	r = ds_read_full(fd, data, (size_t)size, &n);
	if (r < 0)
		return r;
	return n == size ? on_extent(task, 0, data, size) : -DS_E_SOURCE_CHANGED;
}

/* The next stretch of data at or after off; holes before it are fed as zeros. Returns the end of the data stretch. */
static int skip_hole(struct ds_chunker *chunker, int fd, uint64_t size, uint64_t *off,
		     uint64_t *ret_end)
{
	off_t data = lseek(fd, (off_t)*off, SEEK_DATA), hole;
	int r = 0;

	*ret_end = size;
	/* File systems without SEEK_DATA, and files that shrank: read it all and let the end tell. */
	if (data < 0 && errno != ENXIO)
		return 0;
	if (data < 0 || (uint64_t)data > size)
		data = (off_t)size;
	if ((uint64_t)data > *off)
		r = ds_chunker_feed_zeros(chunker, (uint64_t)data - *off);
	*off = (uint64_t)data;
	hole = lseek(fd, data, SEEK_HOLE);
	if (hole > data && (uint64_t)hole < size)
		*ret_end = (uint64_t)hole;
	return r;
}

static int read_large(struct task *task, int fd, uint64_t size)
{
	_ds_cleanup_free_ uint8_t *data = ds_malloc(READ_BYTES);
	struct ds_chunker *chunker = NULL;
	uint64_t off = 0, end = 0;
	size_t n;
	int r = data ? ds_chunker_new(on_extent, task, &chunker) : -ENOMEM;

	while (r == 0 && off < size) {
		if (off >= end)
			r = skip_hole(chunker, fd, size, &off, &end);
		if (r < 0 || off >= size)
			break;
		r = ds_pread_full(fd, data, (size_t)DS_MIN(end - off, READ_BYTES), off, &n);
		if (r == 0 && n == 0)
			r = -DS_E_SOURCE_CHANGED;
		if (r == 0)
			r = ds_chunker_feed(chunker, data, n);
		off += n;
		if (r == 0 && is_stopped(task->pipeline))
			r = -DS_E_INTERRUPTED;
	}
	if (r == 0)
		r = ds_chunker_finish(chunker);
	ds_chunker_free(chunker);
	return r;
}

static bool is_same(const struct stat *a, const struct stat *b)
{
	return a->st_size == b->st_size && a->st_dev == b->st_dev && a->st_ino == b->st_ino &&
	       a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec &&
	       a->st_ctim.tv_sec == b->st_ctim.tv_sec && a->st_ctim.tv_nsec == b->st_ctim.tv_nsec;
}

static int read_once(struct task *task)
{
	_ds_cleanup_close_ int fd = commit_node_open(task->pipeline->read->tree, task->file);
	struct stat after;
	int r;

	if (fd < 0)
		return fd == -ENOENT || fd == -ELOOP || fd == -ENOTDIR ? -DS_E_SOURCE_CHANGED : fd;
	if (fstat(fd, &task->st) < 0)
		return -errno;
	if (!S_ISREG(task->st.st_mode))
		return -DS_E_SOURCE_CHANGED;
	if ((uint64_t)task->st.st_size <= DS_CHUNK_MAX)
		r = read_small(task, fd, (uint64_t)task->st.st_size);
	else
		r = read_large(task, fd, (uint64_t)task->st.st_size);
	if (r < 0)
		return r;
	if (fstat(fd, &after) < 0)
		return -errno;
	return is_same(&task->st, &after) ? 0 : -DS_E_SOURCE_CHANGED;
}

static void run_task(struct ds_work_item *work)
{
	struct task *task = ds_container_of(work, struct task, work);
	struct pipeline *pipeline = task->pipeline;
	int r = -DS_E_INTERRUPTED;

	for (unsigned i = 0; i < TRIES_MAX && !is_stopped(pipeline); i++) {
		r = read_once(task);
		if (r != -DS_E_SOURCE_CHANGED)
			break;
		if (i + 1 < TRIES_MAX) {
			struct piece *piece = ds_calloc(1, sizeof(*piece));

			r = -ENOMEM;
			if (!piece)
				break;
			piece->restart = true;
			r = push(task, piece);
			if (r < 0)
				break;
			r = -DS_E_SOURCE_CHANGED;
		}
	}
	pthread_mutex_lock(&pipeline->mutex);
	task->result = r;
	task->is_done = true;
	pthread_cond_signal(&pipeline->changed);
	pthread_mutex_unlock(&pipeline->mutex);
}

/* The caller's side. */

static int append_extent(struct commit_node *file, const struct commit_extent *extent)
{
	/* Doubling by powers of two, without a field for the capacity. */
	if ((file->extents_n & (file->extents_n - 1)) == 0) {
		size_t n = file->extents_n ? file->extents_n * 2u : 1;
		struct commit_extent *grown =
			ds_reallocarray(file->extents, n, sizeof(*file->extents));

		if (!grown)
			return -ENOMEM;
		file->extents = grown;
	}
	file->extents[file->extents_n++] = *extent;
	return 0;
}

static int take_piece(struct commit_read *read, struct commit_node *file, const struct piece *piece)
{
	struct commit_extent extent = {
		.off = piece->off,
		.len_bytes = piece->len_bytes,
		.is_zeros = piece->is_zeros,
		.digest = piece->digest,
	};
	bool is_own;
	int r;

	if (piece->restart) {
		file->extents_n = 0;
		return 0;
	}
	read->counters.read_bytes += piece->is_zeros ? 0 : piece->len_bytes;
	read->counters.bytes += piece->len_bytes;
	if (!piece->is_zeros && read->packs) {
		r = commit_find_has(read->find, &piece->digest, (uint32_t)piece->len_bytes,
				    &extent.place, &is_own);
		if (r == 0) {
			r = commit_packs_add(read->packs, &piece->digest, piece->stored,
					     piece->stored_len_bytes, (uint32_t)piece->len_bytes,
					     &extent.place);
			is_own = false;
		} else if (r == 1) {
			read->counters.reused_bytes += is_own ? 0 : piece->len_bytes;
			r = 0;
		}
		if (r == 0 && !is_own)
			r = commit_find_note(read->find, &piece->digest, &extent.place);
		if (r < 0)
			return r;
	}
	return append_extent(file, &extent);
}

static int hash_content(struct commit_node *file)
{
	struct ds_content_hasher *hasher;
	int r;

	if (file->size_bytes == 0)
		return ds_digest_of("", 0, &file->digest);
	if (file->size_bytes <= DS_CHUNK_MAX) {
		file->digest = file->extents[0].digest;
		file->place = file->extents[0].place;
		ds_free(file->extents);
		file->extents = NULL;
		file->extents_n = 0;
		return 0;
	}
	r = ds_content_hasher_new(file->size_bytes, &hasher);
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < file->extents_n; i++)
		ds_content_hasher_extent(hasher, file->extents[i].len_bytes,
					 file->extents[i].is_zeros ? NULL
								   : &file->extents[i].digest);
	ds_content_hasher_finish(hasher, &file->digest);
	ds_content_hasher_free(hasher);
	return 0;
}

/* An error of one file, with its path. */
static int file_error(struct commit_read *read, struct commit_node *file, int code,
		      struct ds_diag *reterr_diag)
{
	_ds_cleanup_free_ char *path = commit_node_path(file);

	if (!path)
		return -ENOMEM;
	if (code == -DS_E_SOURCE_CHANGED)
		return ds_diag_set(reterr_diag, code, path, "read %u times", TRIES_MAX);
	if (code != -EACCES && code != -EPERM && code != -EIO)
		return code < -4095 ? code : ds_diag_set(reterr_diag, code, path, "cannot be read");
	if (read->options->warn)
		read->options->warn(read->options->ctx, path, strerror(-code));
	if (!read->options->skip_unreadable)
		return ds_diag_set(reterr_diag, -DS_E_SOURCE_REFUSED, path,
				   "unreadable; --skip-unreadable leaves such files out");
	for (uint32_t i = 0; file->links && i < file->links->nodes_n; i++)
		file->links->nodes[i]->reject = REJECT_UNREADABLE;
	file->reject = REJECT_UNREADABLE;
	read->tree->unreadable_n++;
	return 0;
}

static int finish_file(struct commit_read *read, struct task *task, struct ds_diag *reterr_diag)
{
	struct commit_node *file = task->file;
	int r = task->result;

	read->counters.files_n++;
	if (r < 0)
		return file_error(read, file, r, reterr_diag);
	/* What was read is what counts, should it have changed since the scan. */
	file->size_bytes = (uint64_t)task->st.st_size;
	file->is_executable = (task->st.st_mode & 0111) != 0;
	file->mtime = (struct ds_time){.s = task->st.st_mtim.tv_sec,
				       .ns = (uint32_t)task->st.st_mtim.tv_nsec};
	file->ctime = (struct ds_time){.s = task->st.st_ctim.tv_sec,
				       .ns = (uint32_t)task->st.st_ctim.tv_nsec};
	file->is_done = true;
	return hash_content(file);
}

static void show(struct pipeline *pipeline, bool now)
{
	const struct ds_commit_options *options = pipeline->read->options;
	const struct commit_read *read = pipeline->read;
	uint64_t ns = ds_mono_ns();
	struct ds_commit_progress progress = {
		.phase = "reading",
		.files_n = read->counters.files_n,
		.files_total_n = read->tree->files_n,
		.bytes = read->counters.bytes,
		.bytes_total = read->tree->bytes,
		.uploaded_bytes = read->packs ? commit_packs_uploaded_bytes(read->packs) : 0,
	};

	if (!options->progress || (!now && ns - pipeline->progress_ns < PROGRESS_NS))
		return;
	pipeline->progress_ns = ns;
	options->progress(options->ctx, &progress);
}

static void set_head(struct pipeline *pipeline)
{
	pthread_mutex_lock(&pipeline->mutex);
	pipeline->locked.head = ds_list_is_empty(&pipeline->tasks)
					? NULL
					: ds_list_entry(pipeline->tasks.next, struct task, node);
	pthread_cond_broadcast(&pipeline->room);
	pthread_mutex_unlock(&pipeline->mutex);
}

static void free_task(struct pipeline *pipeline, struct task *task)
{
	ds_list_for_each_safe (node, next, &task->pieces) {
		ds_list_remove(node);
		ds_free(ds_list_entry(node, struct piece, node));
	}
	ds_list_remove(&task->node);
	pipeline->tasks_n--;
	ds_free(task);
}

/* Takes everything of the oldest task, and ends it. */
static int drain_head(struct pipeline *pipeline, struct ds_diag *reterr_diag)
{
	struct task *task = ds_list_entry(pipeline->tasks.next, struct task, node);
	bool is_done = false;
	int r = 0;

	while (!is_done && r == 0) {
		struct ds_list pieces;

		ds_list_init(&pieces);
		pthread_mutex_lock(&pipeline->mutex);
		while (ds_list_is_empty(&task->pieces) && !task->is_done)
			pthread_cond_wait(&pipeline->changed, &pipeline->mutex);
		ds_list_splice(&pieces, &task->pieces);
		pipeline->locked.queued_bytes -= task->queued_bytes;
		task->queued_bytes = 0;
		is_done = task->is_done;
		pthread_cond_broadcast(&pipeline->room);
		pthread_mutex_unlock(&pipeline->mutex);
		ds_list_for_each_safe (node, next, &pieces) {
			struct piece *piece = ds_list_entry(node, struct piece, node);

			ds_list_remove(&piece->node);
			if (r == 0)
				r = take_piece(pipeline->read, task->file, piece);
			ds_free(piece);
		}
		show(pipeline, false);
	}
	if (r == 0)
		r = finish_file(pipeline->read, task, reterr_diag);
	if (r == 0) {
		free_task(pipeline, task);
		set_head(pipeline);
	}
	return r;
}

static int start_task(struct pipeline *pipeline, struct commit_node *file)
{
	struct task *task = ds_calloc(1, sizeof(*task));

	if (!task)
		return -ENOMEM;
	task->work.run = run_task;
	task->pipeline = pipeline;
	task->file = file;
	ds_list_init(&task->pieces);
	ds_list_push_back(&pipeline->tasks, &task->node);
	pipeline->tasks_n++;
	if (pipeline->tasks_n == 1)
		set_head(pipeline);
	ds_work_submit(pipeline->work, &task->work, false);
	return 0;
}

static int read_all(struct pipeline *pipeline, struct ds_diag *reterr_diag)
{
	struct commit_read *read = pipeline->read;
	struct commit_node *root = &read->tree->root;
	int r = 0;

	for (struct commit_node *node = root; r == 0 && node;
	     node = commit_node_next(root, node, true)) {
		if (read->options->interrupted && *read->options->interrupted)
			return -DS_E_INTERRUPTED;
		if (node->type != DS_ENTRY_FILE || node->reject)
			continue;
		if (commit_node_content(node) != node) {
			read->counters.files_n++;
			continue;
		}
		if (!node->is_done && read->reuse) {
			r = read->reuse(read->ctx, node);
			if (r < 0)
				return r;
			node->is_done = r == 1;
			r = 0;
		}
		if (node->is_done) {
			read->counters.files_n++;
			read->counters.bytes += node->size_bytes;
			show(pipeline, false);
			continue;
		}
		if (pipeline->tasks_n == TASKS_MAX)
			r = drain_head(pipeline, reterr_diag);
		if (r == 0)
			r = start_task(pipeline, node);
	}
	while (r == 0 && pipeline->tasks_n)
		r = drain_head(pipeline, reterr_diag);
	if (r == 0)
		show(pipeline, true);
	return r;
}

int commit_read_files(struct commit_read *read, struct ds_diag *reterr_diag)
{
	struct pipeline pipeline = {.read = read};
	unsigned jobs_n = read->options->jobs_n ? read->options->jobs_n : ds_cpu_count() + 2;
	int r = ds_work_new(jobs_n, "dsfs-read", &pipeline.work);

	if (r < 0)
		return r;
	ds_list_init(&pipeline.tasks);
	pthread_mutex_init(&pipeline.mutex, NULL);
	pthread_cond_init(&pipeline.changed, NULL);
	pthread_cond_init(&pipeline.room, NULL);
	r = read_all(&pipeline, reterr_diag);
	pthread_mutex_lock(&pipeline.mutex);
	pipeline.locked.is_stopped = true;
	pthread_cond_broadcast(&pipeline.room);
	pthread_mutex_unlock(&pipeline.mutex);
	ds_work_free(pipeline.work);
	while (pipeline.tasks_n)
		free_task(&pipeline, ds_list_entry(pipeline.tasks.next, struct task, node));
	pthread_cond_destroy(&pipeline.room);
	pthread_cond_destroy(&pipeline.changed);
	pthread_mutex_destroy(&pipeline.mutex);
	return r;
}
