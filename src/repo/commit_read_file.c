/*
 * The workers' side: reading one file, and hashing and compressing one chunk. Invariants: commit_read_impl.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "codec/chunk.h"
#include "codec/chunker.h"
#include "repo/commit_read_impl.h"
#include "util/clock.h"
#include "util/error.h"
#include "util/file.h"
#include "util/mem.h"

#define READ_BYTES DS_MIB(1)
/* Times of files tick with the kernel's timer, 1 to 10 ms; on old file systems, which keep no ns, by the second. */
#define TICK_NS (20 * (int64_t)DS_NS_PER_MS)
#define REST_NS (2 * (int64_t)DS_NS_PER_S)
/* A dirty page takes stores through a mapping without a new time until it is written: vm.dirty_expire_centisecs, 30 s, and a bit. */
#define DIRTY_NS (60 * (int64_t)DS_NS_PER_S)
#define POLL_MS	 5u

static bool is_stopped(struct pipeline *pipeline)
{
	bool stopped;

	pthread_mutex_lock(&pipeline->mutex);
	stopped = pipeline->locked.is_stopped;
	pthread_mutex_unlock(&pipeline->mutex);
	return stopped;
}

void commit_piece_free(struct piece *piece)
{
	ds_free(piece->raw);
	ds_free(piece->stored);
	ds_free(piece);
}

/* What a chunk needs while it is being worked on. */
static uint64_t working_bytes(const struct pipeline *pipeline, uint64_t len_bytes)
{
	return len_bytes + (pipeline->read->packs ? ds_chunk_bound((size_t)len_bytes) : 0);
}

/* A new piece, counted; waits for room (INV-2). */
static int new_piece(struct task *task, uint64_t off, uint64_t len_bytes, uint64_t counted_bytes,
		     struct piece **ret_piece)
{
	struct pipeline *pipeline = task->pipeline;
	struct piece *piece = ds_calloc(1, sizeof(*piece));
	int r = 0;

	if (!piece)
		return -ENOMEM;
	piece->task = task;
	piece->off = off;
	piece->len_bytes = len_bytes;
	piece->counted_bytes = counted_bytes + sizeof(*piece);
	ds_list_init(&piece->node);
	pthread_mutex_lock(&pipeline->mutex);
	while (!pipeline->locked.is_stopped &&
	       pipeline->locked.counted_bytes + piece->counted_bytes >
		       pipeline->read->memory_bytes &&
	       (pipeline->locked.head != task || task->counted_bytes > pipeline->head_bytes))
		pthread_cond_wait(&pipeline->room, &pipeline->mutex);
	if (pipeline->locked.is_stopped) {
		r = -DS_E_INTERRUPTED;
	} else {
		task->counted_bytes += piece->counted_bytes;
		pipeline->locked.counted_bytes += piece->counted_bytes;
	}
	pthread_mutex_unlock(&pipeline->mutex);
	if (r < 0) {
		ds_free(piece);
		return r;
	}
	*ret_piece = piece;
	return 0;
}

static void recount_locked(struct piece *piece, uint64_t bytes)
{
	struct task *task = piece->task;
	struct pipeline *pipeline = task->pipeline;

	task->counted_bytes += bytes - piece->counted_bytes;
	pipeline->locked.counted_bytes += bytes - piece->counted_bytes;
	piece->counted_bytes = bytes;
	pthread_cond_broadcast(&pipeline->room);
}

/* The piece never comes into the list. */
static void drop_piece(struct piece *piece)
{
	struct pipeline *pipeline = piece->task->pipeline;

	pthread_mutex_lock(&pipeline->mutex);
	recount_locked(piece, 0);
	pthread_mutex_unlock(&pipeline->mutex);
	commit_piece_free(piece);
}

static void append_piece(struct piece *piece, bool ready)
{
	struct task *task = piece->task;
	struct pipeline *pipeline = task->pipeline;

	pthread_mutex_lock(&pipeline->mutex);
	piece->is_ready = ready;
	ds_list_push_back(&task->pieces, &piece->node);
	if (ready && pipeline->locked.head == task)
		pthread_cond_signal(&pipeline->changed);
	pthread_mutex_unlock(&pipeline->mutex);
}

/* Digest, and if it is to be packed the stored form. The raw bytes go. */
static int encode(struct piece *piece)
{
	struct pipeline *pipeline = piece->task->pipeline;
	size_t len = (size_t)piece->len_bytes;
	uint64_t left_bytes;
	int r = ds_digest_of(piece->raw, len, &piece->digest);

	if (r == 0 && pipeline->read->packs) {
		uint8_t *fit;

		piece->stored = ds_malloc(ds_chunk_bound(len));
		if (!piece->stored)
			return -ENOMEM;
		piece->stored_len_bytes = (uint32_t)ds_chunk_encode(piece->raw, len, piece->stored);
		fit = ds_realloc(piece->stored, piece->stored_len_bytes);
		if (fit)
			piece->stored = fit;
	}
	ds_free(piece->raw);
	piece->raw = NULL;
	left_bytes = sizeof(*piece) + piece->stored_len_bytes;
	pthread_mutex_lock(&pipeline->mutex);
	recount_locked(piece, left_bytes);
	pthread_mutex_unlock(&pipeline->mutex);
	return r;
}

static void run_encoder(struct ds_work_item *work)
{
	struct piece *piece = ds_container_of(work, struct piece, work);
	struct task *task = piece->task;
	struct pipeline *pipeline = task->pipeline;
	int r = is_stopped(pipeline) ? -DS_E_INTERRUPTED : encode(piece);

	/* INV-4 */
	pthread_mutex_lock(&pipeline->mutex);
	piece->result = r;
	piece->is_ready = true;
	if (pipeline->locked.head == task)
		pthread_cond_signal(&pipeline->changed);
	pthread_mutex_unlock(&pipeline->mutex);
}

/* One extent of a large file. */
static int on_extent(void *ctx, uint64_t off, const void *data, uint64_t len_bytes)
{
	struct task *task = ctx;
	struct pipeline *pipeline = task->pipeline;
	struct piece *piece;
	int r = new_piece(task, off, len_bytes, data ? working_bytes(pipeline, len_bytes) : 0,
			  &piece);

	if (r < 0)
		return r;
	if (!data) {
		piece->is_zeros = true;
		append_piece(piece, true);
		return 0;
	}
	piece->raw = ds_memdup(data, (size_t)len_bytes);
	if (!piece->raw) {
		drop_piece(piece);
		return -ENOMEM;
	}
	piece->work.run = run_encoder;
	append_piece(piece, false);
	ds_work_submit(pipeline->encoders, &piece->work, false);
	return 0;
}

static int read_small(struct task *task, int fd, uint64_t size)
{
	struct piece *piece;
	size_t n = 0;
	int r;

	if (size == 0)
		return 0;
	r = new_piece(task, 0, size, working_bytes(task->pipeline, size), &piece);
	if (r < 0)
		return r;
	piece->is_whole_file = true;
	piece->raw = ds_malloc((size_t)size);
	r = piece->raw ? ds_read_full(fd, piece->raw, (size_t)size, &n) : -ENOMEM;
	if (r == 0 && n < size)
		r = -DS_E_SOURCE_CHANGED;
	if (r == 0)
		r = encode(piece);
	if (r < 0) {
		drop_piece(piece);
		return r;
	}
	append_piece(piece, true);
	return 0;
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

bool commit_read_is_unsure(int fd, bool is_free, int64_t age_ns)
{
	struct statfs fs;

	if (is_free)
		return false;
	if (age_ns < DIRTY_NS)
		return true;
	if (fstatfs(fd, &fs) < 0)
		return true;
	/* What lies in memory is never written, and its pages stay dirty. */
	switch ((uint32_t)fs.f_type) {
	case TMPFS_MAGIC:
	case RAMFS_MAGIC:
	case HUGETLBFS_MAGIC:
		return true;
	default:
		return false;
	}
}

/* INV-6. Waits for at most about REST_NS, which files written before the commit share. */
static int wait_rest(struct task *task, int fd)
{
	uint64_t until_ns = ds_mono_ns() + REST_NS + TICK_NS;
	struct ds_time last_ctime = {0};
	off_t last_size = -1;
	bool only_grows = true;

	for (;;) {
		/* In this order: what is written between them gets a time that is too young. */
		struct ds_time ctime, now = ds_real_now();
		int64_t age_ns, rest_ns;
		bool is_free;

		if (fstat(fd, &task->st) < 0)
			return -errno;
		if (!S_ISREG(task->st.st_mode))
			return -DS_E_SOURCE_CHANGED;
		is_free = ds_try_lease(fd, F_RDLCK) == 0;
		ctime = (struct ds_time){.s = task->st.st_ctim.tv_sec,
					 .ns = (uint32_t)task->st.st_ctim.tv_nsec};
		age_ns = ds_time_diff_ns(now, ctime);
		rest_ns = !is_free ? REST_NS : ctime.ns ? TICK_NS : (int64_t)DS_NS_PER_S;
		task->is_uncached = commit_read_is_unsure(fd, is_free, age_ns);
		/* From a clock ahead of ours nothing follows. */
		if (age_ns >= rest_ns || age_ns < -TICK_NS)
			return 0;
		only_grows &=
			task->st.st_size > last_size || ds_time_compare(ctime, last_ctime) == 0;
		last_size = task->st.st_size;
		last_ctime = ctime;
		/* A log: what lies before its end stands. */
		if (ds_mono_ns() >= until_ns)
			return only_grows ? 0 : -DS_E_SOURCE_CHANGED;
		if (is_stopped(task->pipeline))
			return -DS_E_INTERRUPTED;
		ds_sleep_ms(POLL_MS);
	}
}

static int read_once(struct task *task)
{
	const struct commit_read *read = task->pipeline->read;
	_ds_cleanup_close_ int fd = commit_node_open(read->tree, task->file);
	struct stat after;
	int r;

	/* It was there, and was a file, when it was scanned. */
	if (fd < 0)
		return fd == -ELOOP || fd == -ENOTDIR || fd == -ENXIO || fd == -ESTALE
			       ? -DS_E_SOURCE_CHANGED
			       : fd;
	r = wait_rest(task, fd);
	if (r < 0)
		return r;
	if ((uint64_t)task->st.st_size <= DS_CHUNK_MAX)
		r = read_small(task, fd, (uint64_t)task->st.st_size);
	else
		r = read_large(task, fd, (uint64_t)task->st.st_size);
	if (r < 0)
		return r;
	if (read->was_read)
		read->was_read(read->was_read_ctx, task->file);
	if (fstat(fd, &after) < 0)
		return -errno;
	return is_same(&task->st, &after) ? 0 : -DS_E_SOURCE_CHANGED;
}

void commit_read_task(struct ds_work_item *work)
{
	struct task *task = ds_container_of(work, struct task, work);
	struct pipeline *pipeline = task->pipeline;
	int r = -DS_E_INTERRUPTED;

	for (unsigned i = 0; i < READ_TRIES_MAX && !is_stopped(pipeline); i++) {
		struct piece *piece;

		r = read_once(task);
		/* Who replaces a file may take the name away first. */
		if ((r != -DS_E_SOURCE_CHANGED && r != -ENOENT) || i + 1 == READ_TRIES_MAX)
			break;
		r = new_piece(task, 0, 0, 0, &piece);
		if (r < 0)
			break;
		piece->restart = true;
		append_piece(piece, true);
	}
	pthread_mutex_lock(&pipeline->mutex);
	task->result = r;
	task->is_done = true;
	pthread_cond_signal(&pipeline->changed);
	pthread_mutex_unlock(&pipeline->mutex);
}
