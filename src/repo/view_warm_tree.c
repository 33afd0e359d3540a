/*
 * Warming: what is wanted. The paths, a walk over the directories below them, and the chunks of each file.
 *
 * The walk is done twice: first everything is counted (WARM_TALLY), so that a cache which cannot hold it is refused before
 * any file is fetched, and so that progress knows its end; then each chunk that is not here is fetched (WARM_FETCH). The tally
 * holds what the first walk met, and the second takes out of it what it meets: further names of a file, and files of equal
 * contents, cost nothing.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "repo/view_warm_internal.h"
#include "util/error.h"
#include "util/mem.h"

#define LIST_BATCH    256u
#define EXTENTS_BATCH 64u
#define BLOCK_BYTES   4096u

/* ---- what was met */

struct warm_pack {
	uint64_t raw_bytes, wanted_bytes; /* in whole blocks */
	uint64_t bits[];		  /* by ordinal: wanted */
};

int warm_tally_init(struct warm_tally *tally)
{
	int r = ds_map_new(&tally->packs);

	return r < 0 ? r : ds_map_new(&tally->files);
}

void warm_tally_release(struct warm_tally *tally)
{
	tally->packs = ds_map_free(tally->packs, ds_free);
	tally->files = ds_map_free(tally->files, NULL);
}

static uint64_t in_blocks(uint64_t bytes)
{
	return (bytes + BLOCK_BYTES - 1) / BLOCK_BYTES * BLOCK_BYTES;
}

static struct warm_pack *tally_pack(struct ds_warm *warm, const struct ds_pack_row *row)
{
	struct warm_pack *pack = ds_map_get(warm->tally.packs, &row->number, sizeof(row->number));
	size_t words_n = row->chunks_n / 64 + 1;

	if (pack)
		return pack;
	pack = ds_calloc(1, sizeof(*pack) + words_n * sizeof(pack->bits[0]));
	if (!pack)
		return NULL;
	pack->raw_bytes = in_blocks(row->raw_bytes);
	if (ds_map_put(warm->tally.packs, &row->number, sizeof(row->number), pack, NULL) < 0) {
		ds_free(pack);
		return NULL;
	}
	warm->needed_bytes += ds_image_map_bytes(row->chunks_n);
	return pack;
}

/* A chunk that is wanted alone shares its first and last block with nobody; all of a pack take no more than the pack. */
static void need(struct ds_warm *warm, struct warm_pack *pack, uint64_t len_bytes)
{
	warm->needed_bytes -= DS_MIN(pack->wanted_bytes, pack->raw_bytes);
	pack->wanted_bytes += in_blocks(len_bytes) + BLOCK_BYTES;
	warm->needed_bytes += DS_MIN(pack->wanted_bytes, pack->raw_bytes);
}

/* Whether this pass meets a file's chunk for the first time. -ENOMEM. */
static int is_new_chunk(struct ds_warm *warm, enum warm_pass pass, const struct ds_pack_row *row,
			const struct ds_entry *entry)
{
	uint32_t ordinal = entry->chunk.ordinal;
	struct warm_pack *pack = tally_pack(warm, row);
	uint64_t bit = UINT64_C(1) << ordinal % 64;
	bool is_wanted;

	if (!pack)
		return -ENOMEM;
	is_wanted = pack->bits[ordinal / 64] & bit;
	if (is_wanted != (pass == WARM_FETCH))
		return 0;
	pack->bits[ordinal / 64] ^= bit;
	if (pass == WARM_TALLY)
		need(warm, pack, entry->size_bytes);
	return 1;
}

static int is_new_file(struct ds_warm *warm, enum warm_pass pass, const struct ds_entry *entry)
{
	struct ds_map *files = warm->tally.files;
	int r;

	if (pass == WARM_FETCH)
		return ds_map_remove(files, &entry->digest, sizeof(entry->digest)) != NULL;
	if (ds_map_get(files, &entry->digest, sizeof(entry->digest)))
		return 0;
	r = ds_map_put(files, &entry->digest, sizeof(entry->digest), &warm->tally, NULL);
	return r < 0 ? r : 1;
}

static void count(struct ds_warm *warm, uint64_t files_n, uint64_t files_total_n, uint64_t bytes)
{
	pthread_mutex_lock(&warm->mutex);
	warm->locked.progress.files_n += files_n;
	warm->locked.progress.files_total_n += files_total_n;
	warm->locked.progress.bytes_total += bytes;
	pthread_mutex_unlock(&warm->mutex);
}

/* ---- files */

struct file_call {
	const struct ds_entry *entry;
	struct ds_image *image;
	uint64_t off;
	/* found */
	struct view_pack *pack;
	struct ds_fetch_target targets[EXTENTS_BATCH];
	size_t n;
	uint64_t next_off;
};

static int find_small(struct ds_warm *warm, void *ctx)
{
	struct file_call *call = ctx;
	int r = view_pack_get(warm->view, &warm->demand, call->entry->chunk.pack, &call->pack);

	return r < 0 ? r : view_small_target(call->entry, &call->pack->row, &call->targets[0]);
}

static int find_extents(struct ds_warm *warm, void *ctx)
{
	struct ds_extent extents[EXTENTS_BATCH];
	struct file_call *call = ctx;
	size_t n;
	int r;

	r = ds_manifest_extents(warm->view->manifest, &warm->demand, call->entry->ino, call->off,
				call->entry->size_bytes - call->off, extents, EXTENTS_BATCH, &n);
	if (r == 0 && n == 0)
		r = -DS_E_MALFORMED;
	call->n = 0;
	for (size_t i = 0; r == 0 && i < n; i++) {
		call->next_off = extents[i].off + extents[i].len_bytes;
		if (extents[i].slot >= call->entry->extents_n)
			r = -DS_E_MALFORMED;
		else if (!extents[i].is_zeros)
			r = view_extent_target(warm->view, &warm->demand, call->image, &extents[i],
					       &call->targets[call->n++]);
	}
	return r;
}

static bool is_of_file(int error)
{
	return error == -DS_E_MALFORMED || error == -DS_E_IMPORTED;
}

/* What is wrong with one file's rows is no reason to leave the others. */
static int forgive(struct ds_warm *warm, enum warm_pass pass, uint64_t ino, int r)
{
	if (!is_of_file(r))
		return r;
	if (pass == WARM_FETCH)
		warm_file_failed(warm, ino, r);
	return 0;
}

static int do_small(struct ds_warm *warm, enum warm_pass pass, const struct ds_entry *entry)
{
	struct file_call call = {.entry = entry};
	struct warm_chunk chunk = {.ino = entry->ino};
	int r = warm_call(warm, find_small, &call);

	if (r < 0) {
		count(warm, pass == WARM_FETCH, 0, 0);
		return forgive(warm, pass, entry->ino, r);
	}
	r = is_new_chunk(warm, pass, &call.pack->row, entry);
	if (r < 0)
		return r;
	if (r == 0) {
		count(warm, pass == WARM_FETCH, 0, 0);
		return 0;
	}
	if (pass == WARM_TALLY) {
		count(warm, 0, 0, entry->size_bytes);
		return 0;
	}
	chunk.target = call.targets[0];
	r = view_pack_image(warm->view, call.pack, &chunk.target.image);
	return r < 0 ? r : warm_add(warm, &chunk);
}

static int tally_large(struct ds_warm *warm, const struct ds_entry *entry)
{
	struct file_call call = {.entry = entry};
	uint64_t bytes = 0;
	int r = 0;

	while (r == 0 && call.off < entry->size_bytes) {
		r = warm_call(warm, find_extents, &call);
		for (size_t i = 0; r == 0 && i < call.n; i++)
			bytes += call.targets[i].ref.raw_len_bytes;
		call.off = call.next_off;
	}
	if (r < 0)
		return forgive(warm, WARM_TALLY, entry->ino, r);
	count(warm, 0, 0, bytes);
	warm->needed_bytes += bytes + ds_image_map_bytes(entry->extents_n);
	return 0;
}

static int add_extents(struct ds_warm *warm, struct file_call *call, struct warm_file *file)
{
	struct warm_chunk chunk = {.ino = file->ino, .file = file};
	int r = 0;

	for (size_t i = 0; r == 0 && i < call->n; i++) {
		chunk.target = call->targets[i];
		pthread_mutex_lock(&warm->mutex);
		file->left_n++;
		pthread_mutex_unlock(&warm->mutex);
		r = warm_add(warm, &chunk);
	}
	return r;
}

static int fetch_large(struct ds_warm *warm, const struct ds_entry *entry)
{
	struct warm_file *file = ds_calloc(1, sizeof(*file));
	struct file_call call = {.entry = entry};
	bool is_bad = false, is_known;
	int r;

	if (!file)
		return -ENOMEM;
	file->ino = entry->ino;
	file->left_n = 1;
	r = view_file_image(warm->view, entry, &file->image);
	call.image = file->image;
	while (r == 0 && call.off < entry->size_bytes) {
		r = warm_call(warm, find_extents, &call);
		if (r == 0)
			r = add_extents(warm, &call, file);
		else
			is_bad = true;
		call.off = call.next_off;
	}
	pthread_mutex_lock(&warm->mutex);
	is_known = file->has_failed;
	file->has_failed |= is_bad;
	warm_file_over_locked(warm, file);
	pthread_mutex_unlock(&warm->mutex);
	if (is_bad)
		r = is_known && is_of_file(r) ? 0 : forgive(warm, WARM_FETCH, entry->ino, r);
	if (r == 0 && ++warm->batch_files_n >= WARM_FILES)
		r = warm_flush(warm);
	return r;
}

static int do_large(struct ds_warm *warm, enum warm_pass pass, const struct ds_entry *entry)
{
	int r = is_new_file(warm, pass, entry);

	if (r > 0)
		return pass == WARM_TALLY ? tally_large(warm, entry) : fetch_large(warm, entry);
	if (r == 0)
		count(warm, pass == WARM_FETCH, 0, 0);
	return r;
}

static int do_file(struct ds_warm *warm, enum warm_pass pass, const struct ds_entry *entry)
{
	if (pass == WARM_TALLY)
		count(warm, 0, 1, 0);
	if (entry->chunk.pack)
		return do_small(warm, pass, entry);
	if (entry->extents_n)
		return do_large(warm, pass, entry);
	count(warm, pass == WARM_FETCH, 0, 0);
	return 0;
}

/* ---- directories */

struct list_call {
	uint64_t dir, after;
	size_t n;
	struct ds_entry entries[LIST_BATCH];
};

static int take_entry(void *ctx, const struct ds_entry *entry)
{
	struct list_call *call = ctx;

	call->entries[call->n++] = *entry;
	call->after = entry->id;
	return call->n == LIST_BATCH;
}

static int list_some(struct ds_warm *warm, void *ctx)
{
	struct list_call *call = ctx;
	int r = ds_manifest_list(warm->view->manifest, &warm->demand, call->dir, call->after,
				 take_entry, call);

	/* What was given is as good as a whole batch. */
	return r == -DS_E_NOT_LOCAL && call->n ? 0 : r;
}

static int push(struct ds_warm *warm, uint64_t dir)
{
	size_t room_n = warm->stack_room_n;
	uint64_t *stack;

	if (warm->stack_n == WARM_STACK)
		return -DS_E_LIMIT;
	if (warm->stack_n == room_n) {
		room_n = room_n ? 2 * room_n : 64;
		stack = ds_reallocarray(warm->stack, room_n, sizeof(stack[0]));
		if (!stack)
			return -ENOMEM;
		warm->stack = stack;
		warm->stack_room_n = room_n;
	}
	warm->stack[warm->stack_n++] = dir;
	return 0;
}

static int do_directory(struct ds_warm *warm, enum warm_pass pass, struct list_call *call)
{
	size_t first = warm->stack_n;
	int r = 0;

	call->after = 0;
	do {
		call->n = 0;
		r = warm_call(warm, list_some, call);
		for (size_t i = 0; r == 0 && i < call->n; i++) {
			if (call->entries[i].type == DS_ENTRY_FILE)
				r = do_file(warm, pass, &call->entries[i]);
			else if (call->entries[i].type == DS_ENTRY_DIRECTORY)
				r = push(warm, call->entries[i].ino);
		}
		if (r == 0)
			r = warm_check(warm);
	} while (r == 0 && call->n > 0);
	/* The first of them comes next: in the order of the names, chunks lie as they were committed. */
	for (size_t last = warm->stack_n; first + 1 < last; first++) {
		uint64_t swap = warm->stack[first];

		warm->stack[first] = warm->stack[--last];
		warm->stack[last] = swap;
	}
	return r;
}

static int do_below(struct ds_warm *warm, enum warm_pass pass, uint64_t dir)
{
	_ds_cleanup_free_ struct list_call *call = ds_malloc(sizeof(*call));
	int r = call ? push(warm, dir) : -ENOMEM;

	warm->stack_n = r == 0;
	while (r == 0 && warm->stack_n > 0) {
		call->dir = warm->stack[--warm->stack_n];
		r = do_directory(warm, pass, call);
	}
	warm->stack_n = 0;
	return r;
}

/* ---- paths */

struct path_call {
	const char *path;
	uint64_t ino;
	struct ds_entry entry;
};

static int find_path(struct ds_warm *warm, void *ctx)
{
	struct path_call *call = ctx;

	return ds_view_walk(warm->view, &warm->demand, call->path, &call->entry);
}

static int find_ino(struct ds_warm *warm, void *ctx)
{
	struct path_call *call = ctx;

	return ds_view_get(warm->view, &warm->demand, call->ino, &call->entry);
}

static bool is_at_or_below(const char *path, const char *above)
{
	size_t len = strlen(above);

	return strncmp(path, above, len) == 0 &&
	       (len == 0 || path[len] == '/' || path[len] == '\0');
}

/* Another path has it too: of equal ones the first counts. */
static bool is_covered(const struct ds_warm *warm, size_t i)
{
	const char *const *paths = warm->options.paths;

	for (size_t j = 0; j < warm->options.paths_n; j++)
		if (j != i && is_at_or_below(paths[i], paths[j]) &&
		    (j < i || strcmp(paths[i], paths[j]) != 0))
			return true;
	return false;
}

static int do_path(struct ds_warm *warm, enum warm_pass pass, const char *path)
{
	struct path_call call = {.path = path};
	int r = warm_call(warm, find_path, &call);

	if (r == -ENOENT || r == -ENOTDIR || r == -ENAMETOOLONG)
		return ds_diag_set(warm->diag, r, path, NULL);
	if (r < 0)
		return r;
	if (call.entry.type == DS_ENTRY_DIRECTORY)
		return do_below(warm, pass, call.entry.ino);
	return call.entry.type == DS_ENTRY_FILE ? do_file(warm, pass, &call.entry) : 0;
}

int warm_tree(struct ds_warm *warm, enum warm_pass pass)
{
	int r = 0;

	if (warm->options.paths_n == 0)
		r = do_below(warm, pass, DS_ROOT_ID);
	for (size_t i = 0; r == 0 && i < warm->options.paths_n; i++)
		if (!is_covered(warm, i))
			r = do_path(warm, pass, warm->options.paths[i]);
	if (pass == WARM_TALLY)
		return r;
	/* Also what was gathered before an error: files wait for it. */
	if (r < 0)
		warm_flush(warm);
	return r < 0 ? r : warm_flush(warm);
}

char *warm_path(struct ds_warm *warm, uint64_t ino)
{
	struct path_call call = {.ino = ino};
	struct ds_diag *diag = warm->diag, ignored = {0};
	char *path = NULL, *longer;
	unsigned levels_n = 0;

	/* Of an error that is told already. */
	warm->diag = &ignored;
	while (call.ino != DS_ROOT_ID && levels_n++ < WARM_LEVELS) {
		if (warm_call(warm, find_ino, &call) < 0)
			break;
		longer = ds_asprintf("%s%s%s", call.entry.name, path ? "/" : "", path ? path : "");
		ds_free(path);
		path = longer;
		if (!path)
			break;
		call.ino = call.entry.parent;
	}
	warm->diag = diag;
	return path ? path : ds_asprintf("inode %llu", (unsigned long long)ino);
}

/* ---- the manifest */

struct page_call {
	uint64_t page;
	struct ds_fetch_target target;
};

static int find_page(struct ds_warm *warm, void *ctx)
{
	struct page_call *call = ctx;

	return view_page_target(warm->view, &warm->demand, call->page, &call->target);
}

void warm_tally_manifest(struct ds_warm *warm)
{
	warm->needed_bytes += warm->view->pages_n * warm->view->page_size +
			      ds_image_map_bytes((uint32_t)warm->view->pages_n);
}

int warm_manifest(struct ds_warm *warm)
{
	struct page_call call = {0};
	struct warm_chunk chunk = {0};
	int r = 0;

	for (; r == 0 && call.page < warm->view->pages_n; call.page++) {
		r = warm_call(warm, find_page, &call);
		chunk.target = call.target;
		if (r == 0 && chunk.target.ref.stored_len_bytes)
			r = warm_add(warm, &chunk);
	}
	return r < 0 ? r : warm_flush(warm);
}
