/*
 * The caller's side: queueing files in tree order, and packing what comes of them. Invariants: commit_read_impl.h.
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "codec/content.h"
#include "repo/commit_read_impl.h"
#include "util/error.h"
#include "util/file.h"
#include "util/mem.h"

#define TASKS_MAX   512u
#define HEAD_BYTES  DS_MIB(32)
#define PROGRESS_NS (200 * (uint64_t)DS_NS_PER_MS)

static int append_extent(struct task *task, const struct commit_extent *extent)
{
	/* Doubling by powers of two, without a field for the capacity. */
	if ((task->extents_n & (task->extents_n - 1)) == 0) {
		size_t n = task->extents_n ? task->extents_n * 2u : 1;
		struct commit_extent *grown =
			ds_reallocarray(task->extents, n, sizeof(*task->extents));

		if (!grown)
			return -ENOMEM;
		task->extents = grown;
	}
	task->extents[task->extents_n++] = *extent;
	return 0;
}

/* Where the chunk is already: in this commit, in the version before, or by the index; else packs it. */
static int place_piece(struct commit_read *read, const struct commit_node *file,
		       const struct piece *piece, struct commit_place *ret_place)
{
	bool is_stored = false;
	struct commit_place own;
	int r;

	if (commit_find_own(read->find, &piece->digest, piece->is_whole_file, &own)) {
		/* The parent's place is looked at all the same: a row that is right may stay as it is. */
		r = read->options->rehash && read->find_old
			    ? read->find_old(read->ctx, file, &piece->digest, piece->len_bytes,
					     ret_place)
			    : 0;
		*ret_place = own;
		return r < 0 ? r : 0;
	}
	r = read->find_old
		    ? read->find_old(read->ctx, file, &piece->digest, piece->len_bytes, ret_place)
		    : 0;
	if (r == 1 && piece->is_whole_file && ret_place->raw_off == COMMIT_RAW_OFF_NONE)
		r = 0;
	if (r == 1)
		return commit_find_note(read->find, &piece->digest, ret_place, false);
	if (r == 0) {
		r = commit_find_stored(read->find, &piece->digest, (uint32_t)piece->len_bytes,
				       ret_place);
		is_stored = r == 1;
	}
	if (is_stored)
		read->counters.reused_bytes += piece->len_bytes;
	else if (r == 0)
		r = commit_packs_add(read->packs, &piece->digest, piece->stored,
				     piece->stored_len_bytes, (uint32_t)piece->len_bytes,
				     ret_place);
	return r < 0 ? r : commit_find_note(read->find, &piece->digest, ret_place, true);
}

static int take_piece(struct commit_read *read, struct task *task, const struct piece *piece)
{
	struct commit_extent extent = {
		.off = piece->off,
		.len_bytes = piece->len_bytes,
		.is_zeros = piece->is_zeros,
		.digest = piece->digest,
	};
	int r = piece->result;

	if (r < 0)
		return r;
	if (piece->restart) {
		task->extents_n = 0;
		read->counters.bytes -= task->taken_bytes;
		task->taken_bytes = 0;
		return 0;
	}
	read->counters.read_bytes += piece->is_zeros ? 0 : piece->len_bytes;
	read->counters.bytes += piece->len_bytes;
	task->taken_bytes += piece->len_bytes;
	if (!piece->is_zeros && read->packs)
		r = place_piece(read, task->file, piece, &extent.place);
	return r < 0 ? r : append_extent(task, &extent);
}

static int hash_content(struct ds_arena *arena, const struct task *task)
{
	struct commit_node *file = task->file;
	struct ds_content_hasher *hasher;
	int r;

	if (file->size_bytes == 0)
		return ds_digest_of("", 0, &file->digest);
	if (file->size_bytes <= DS_CHUNK_MAX) {
		file->digest = task->extents[0].digest;
		file->place = task->extents[0].place;
		return 0;
	}
	file->extents =
		ds_arena_memdup(arena, task->extents, task->extents_n * sizeof(*task->extents));
	r = file->extents ? ds_content_hasher_new(file->size_bytes, &hasher) : -ENOMEM;
	if (r < 0)
		return r;
	file->extents_n = task->extents_n;
	for (uint32_t i = 0; i < file->extents_n; i++)
		ds_content_hasher_extent(hasher, file->extents[i].len_bytes,
					 file->extents[i].is_zeros ? NULL
								   : &file->extents[i].digest);
	ds_content_hasher_finish(hasher, &file->digest);
	ds_content_hasher_free(hasher);
	return 0;
}

/* The name is none of its file any more (INV-5); what was its second name may be the first now. */
static void leave_links(struct pipeline *pipeline, struct commit_node *node)
{
	struct commit_links *links = node->links;
	uint32_t n = 0;

	commit_node_differs(node);
	for (uint32_t i = 0; i < links->nodes_n; i++)
		if (links->nodes[i] != node)
			links->nodes[n++] = links->nodes[i];
	links->nodes_n = n;
	if (n == 1)
		links->nodes[0]->links = NULL;
	node->links = NULL;
	pipeline->has_left_links = true;
}

static bool is_at(const struct commit_tree *tree, const struct commit_node *name,
		  const struct stat *file)
{
	_ds_cleanup_close_ int fd = commit_node_open(tree, name);
	struct stat st;

	return fd >= 0 && fstat(fd, &st) == 0 && st.st_dev == file->st_dev &&
	       st.st_ino == file->st_ino;
}

/* INV-5. To take a name away changes the file's ctime: most names need not be looked at again, if they were its names at all. */
static void check_links(struct pipeline *pipeline, struct commit_node *file, const struct stat *st,
			struct ds_time ctime)
{
	if (st->st_dev != file->dev || st->st_ino != file->ino) {
		leave_links(pipeline, file);
		return;
	}
	if (!file->links->is_unsure && ds_time_compare(file->ctime, ctime) == 0)
		return;
	for (uint32_t i = 1; file->links && i < file->links->nodes_n;)
		if (is_at(pipeline->read->tree, file->links->nodes[i], st))
			i++;
		else
			leave_links(pipeline, file->links->nodes[i]);
}

/* An error of one file, with its path. */
static int file_error(struct pipeline *pipeline, struct commit_node *file, int code,
		      struct ds_diag *reterr_diag)
{
	struct commit_read *read = pipeline->read;
	_ds_cleanup_free_ char *path = commit_node_path(file);

	if (!path)
		return -ENOMEM;
	if (code == -DS_E_SOURCE_CHANGED)
		return ds_diag_set(reterr_diag, code, path, "tried %u times", READ_TRIES_MAX);
	if (code == -ENOENT)
		return ds_diag_set(reterr_diag, -DS_E_SOURCE_CHANGED, path,
				   "it vanished after the source was scanned");
	if (code == -DS_E_INTERRUPTED || code == -ENOMEM)
		return code;
	if (code != -EACCES && code != -EPERM && code != -EIO)
		return ds_diag_set(reterr_diag, code, path, "cannot be read");
	if (read->options->warn)
		read->options->warn(read->options->ctx, path, strerror(-code));
	if (!read->options->skip_unreadable)
		return ds_diag_set(reterr_diag, -DS_E_SOURCE_REFUSED, path,
				   "unreadable; --skip-unreadable leaves such files out");
	if (file->links)
		leave_links(pipeline, file);
	read->tree->unreadable_n++;
	return commit_node_reject(read->tree, file, REJECT_UNREADABLE, strerror(-code));
}

static int finish_file(struct pipeline *pipeline, struct task *task, struct ds_diag *reterr_diag)
{
	struct commit_node *file = task->file;
	struct ds_time mtime = {.s = task->st.st_mtim.tv_sec,
				.ns = (uint32_t)task->st.st_mtim.tv_nsec};
	struct ds_time ctime = {.s = task->st.st_ctim.tv_sec,
				.ns = (uint32_t)task->st.st_ctim.tv_nsec};
	int r = task->result;

	pipeline->read->counters.files_n++;
	if (r < 0)
		return file_error(pipeline, file, r, reterr_diag);
	if (file->links)
		check_links(pipeline, file, &task->st, ctime);
	/* What was read is what counts, should it have changed since the scan. */
	if (ds_time_compare(file->mtime, mtime) != 0)
		commit_node_differs(file);
	file->size_bytes = (uint64_t)task->st.st_size;
	file->is_executable = (task->st.st_mode & 0111) != 0;
	file->mtime = mtime;
	file->ctime = ctime;
	file->dev = task->st.st_dev;
	file->ino = task->st.st_ino;
	file->is_uncached = task->is_uncached;
	file->is_done = true;
	return hash_content(pipeline->read->tree->arena, task);
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
		/* Files may have grown since the scan. */
		.bytes_total = DS_MAX(read->tree->bytes, read->counters.bytes),
	};

	if (!options->progress || (!now && ns - pipeline->progress_ns < PROGRESS_NS))
		return;
	if (read->packs)
		progress.uploaded_bytes = commit_packs_uploaded_bytes(read->packs);
	pipeline->progress_ns = ns;
	if (read->progress)
		*read->progress = progress;
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
		commit_piece_free(ds_list_entry(node, struct piece, node));
	}
	ds_list_remove(&task->node);
	pipeline->tasks_n--;
	ds_free(task->extents);
	ds_free(task);
}

/* The next piece, when it is ready; NULL: there are no more. */
static int wait_piece(struct pipeline *pipeline, struct task *task, struct piece **ret_piece)
{
	struct piece *piece = NULL;
	int r = 0;

	pthread_mutex_lock(&pipeline->mutex);
	for (;;) {
		if (!ds_list_is_empty(&task->pieces)) {
			piece = ds_list_entry(task->pieces.next, struct piece, node);
			if (piece->is_ready)
				break;
		} else if (task->is_done) {
			piece = NULL;
			break;
		}
		if (commit_is_interrupted(&pipeline->watch)) {
			r = -DS_E_INTERRUPTED;
			break;
		}
		commit_cond_wait(&pipeline->changed, &pipeline->mutex);
		pthread_mutex_unlock(&pipeline->mutex);
		show(pipeline, false);
		pthread_mutex_lock(&pipeline->mutex);
	}
	if (r == 0 && piece) {
		ds_list_remove(&piece->node);
		task->counted_bytes -= piece->counted_bytes;
		pipeline->locked.counted_bytes -= piece->counted_bytes;
		pthread_cond_broadcast(&pipeline->room);
	}
	pthread_mutex_unlock(&pipeline->mutex);
	*ret_piece = piece;
	return r;
}

/* Takes everything of the oldest task, and ends it. */
static int drain_head(struct pipeline *pipeline, struct ds_diag *reterr_diag)
{
	struct task *task = ds_list_entry(pipeline->tasks.next, struct task, node);
	struct piece *piece;
	int r;

	for (;;) {
		r = wait_piece(pipeline, task, &piece);
		if (r < 0)
			return r;
		if (!piece)
			break;
		r = take_piece(pipeline->read, task, piece);
		commit_piece_free(piece);
		show(pipeline, false);
		if (r < 0)
			return r;
	}
	r = finish_file(pipeline, task, reterr_diag);
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
	task->work.run = commit_read_task;
	task->pipeline = pipeline;
	task->file = file;
	ds_list_init(&task->pieces);
	ds_list_push_back(&pipeline->tasks, &task->node);
	pipeline->tasks_n++;
	if (pipeline->tasks_n == 1)
		set_head(pipeline);
	ds_work_submit(pipeline->readers, &task->work, false);
	return 0;
}

static int start_file(struct pipeline *pipeline, struct commit_node *file,
		      struct ds_diag *reterr_diag)
{
	int r = pipeline->tasks_n == TASKS_MAX ? drain_head(pipeline, reterr_diag) : 0;

	return r < 0 ? r : start_task(pipeline, file);
}

static int read_all(struct pipeline *pipeline, struct ds_diag *reterr_diag)
{
	struct commit_read *read = pipeline->read;
	struct commit_node *root = &read->tree->root;
	int r = 0;

	for (struct commit_node *node = root; r == 0 && node;
	     node = commit_node_next(root, node, true)) {
		if (commit_is_interrupted(&pipeline->watch))
			return -DS_E_INTERRUPTED;
		if (node->type != DS_ENTRY_FILE || node->reject)
			continue;
		if (commit_node_content(node) != node || node->is_done) {
			read->counters.files_n++;
			read->counters.bytes +=
				commit_node_content(node) == node ? node->size_bytes : 0;
			show(pipeline, false);
			continue;
		}
		r = start_file(pipeline, node, reterr_diag);
	}
	while (r == 0 && pipeline->tasks_n)
		r = drain_head(pipeline, reterr_diag);
	return r;
}

/* Names that were passed over as second ones and are files of their own, or first ones, now (INV-5). */
static int read_left(struct pipeline *pipeline, struct ds_diag *reterr_diag)
{
	struct commit_node *root = &pipeline->read->tree->root;
	int r = 0;

	pipeline->has_left_links = false;
	for (struct commit_node *node = root; r == 0 && node;
	     node = commit_node_next(root, node, true)) {
		if (node->type != DS_ENTRY_FILE || node->reject || node->is_done ||
		    commit_node_content(node) != node)
			continue;
		pipeline->read->counters.files_n--; /* it was counted when it was passed over */
		r = start_file(pipeline, node, reterr_diag);
	}
	while (r == 0 && pipeline->tasks_n)
		r = drain_head(pipeline, reterr_diag);
	return r;
}

int commit_read_files(struct commit_read *read, struct ds_diag *reterr_diag)
{
	unsigned jobs_n = read->options->jobs_n ? read->options->jobs_n : ds_cpu_count() + 2;
	struct pipeline pipeline = {
		.read = read,
		.watch.interrupted = read->options->interrupted,
		.head_bytes = DS_MIN(HEAD_BYTES, read->memory_bytes),
	};
	int r = ds_work_new(jobs_n, "dsfs-read", &pipeline.readers);

	if (r == 0)
		r = ds_work_new(ds_cpu_count(), "dsfs-encode", &pipeline.encoders);
	ds_list_init(&pipeline.tasks);
	pthread_mutex_init(&pipeline.mutex, NULL);
	commit_cond_init(&pipeline.changed);
	pthread_cond_init(&pipeline.room, NULL);
	if (r == 0)
		r = read_all(&pipeline, reterr_diag);
	/* It ends: each time there are fewer links. */
	while (r == 0 && pipeline.has_left_links)
		r = read_left(&pipeline, reterr_diag);
	if (r == 0)
		show(&pipeline, true);
	pthread_mutex_lock(&pipeline.mutex);
	pipeline.locked.is_stopped = true;
	pthread_cond_broadcast(&pipeline.room);
	pthread_mutex_unlock(&pipeline.mutex);
	/* Readers give work to encoders. */
	ds_work_free(pipeline.readers);
	ds_work_free(pipeline.encoders);
	while (pipeline.tasks_n)
		free_task(&pipeline, ds_list_entry(pipeline.tasks.next, struct task, node));
	pthread_cond_destroy(&pipeline.room);
	pthread_cond_destroy(&pipeline.changed);
	pthread_mutex_destroy(&pipeline.mutex);
	if (r < 0 && read->packs && commit_packs_result(read->packs, NULL) == r)
		commit_packs_result(read->packs, reterr_diag);
	return r;
}
