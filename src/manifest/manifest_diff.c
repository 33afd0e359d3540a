/*
 * Comparing two trees: both are walked side by side in the order of their names, and only where
 * directory digests differ (or everywhere, where times and hard links count too).
 *
 * INV-1: no recursion: a stack of frames on the heap, as deep as the tree, and one path.
 * INV-2: a frame keeps no open statement; its place is the name that its path ends with, so that a
 * step asks for the next name after it.
 */
#include "manifest/manifest_impl.h"

#include <assert.h>
#include <string.h>

#include "codec/content.h"
#include "util/map.h"

/* Paths longer than any that a mount can name are refused, and so are trees that deep. */
#define PATH_MAX_BYTES DS_MIB(16)

struct frame {
	uint64_t old_dir, new_dir; /* 0: not in that tree */
	size_t path_len; /* of the directory's path, with a slash at its end but for the root */
	size_t name_len; /* of the name dealt with last, which follows in `path`; 0: none */
	bool has_old, has_new; /* the names that come next are known */
	struct ds_entry old, new;
};

struct diff {
	struct ds_sql *old_sql, *new_sql;
	bool with_mtime;
	ds_manifest_diff_fn *fn;
	void *ctx;
	struct ds_buf path;
	struct frame *frames;
	size_t frames_n, frames_capacity;
	/* Which file of the new tree a file with several names of the old one is, and the
	 * reverse. */
	struct ds_map *new_of, *old_of;
};

static int push(struct diff *diff, uint64_t old_dir, uint64_t new_dir)
{
	struct frame *frame;

	if (diff->frames_n == diff->frames_capacity) {
		size_t capacity = DS_MAX(diff->frames_capacity * 2, (size_t)16);
		struct frame *frames =
			ds_reallocarray(diff->frames, capacity, sizeof(*diff->frames));

		if (!frames)
			return -ENOMEM;
		diff->frames = frames;
		diff->frames_capacity = capacity;
	}
	frame = &diff->frames[diff->frames_n++];
	memset(frame, 0, offsetof(struct frame, old));
	frame->old_dir = old_dir;
	frame->new_dir = new_dir;
	frame->path_len = diff->path.len_bytes;
	return 0;
}

static int next_of(struct ds_sql *sql, struct diff *diff, const struct frame *frame, uint64_t dir,
		   bool *has, struct ds_entry *ret_entry)
{
	const char *after =
		frame->name_len ? (const char *)diff->path.data + frame->path_len : NULL;
	int r;

	if (*has || !dir)
		return 0;
	r = ds_read_next(sql, dir, after, frame->name_len, ret_entry);
	if (r == 0)
		*has = true;
	return r == -ENOENT ? 0 : r;
}

static int map_ino(struct ds_map *map, uint64_t from, uint64_t to, bool *ret_is_same)
{
	void *known = ds_map_get(map, &from, sizeof(from));

	if (known) {
		*ret_is_same = (uint64_t)(uintptr_t)known == to;
		return 0;
	}
	*ret_is_same = true;
	return ds_map_put(map, &from, sizeof(from), (void *)(uintptr_t)to, NULL);
}

/* Files with more than one name: the same names must belong together in both trees, whatever
 * their ids are. */
static int compare_links(struct diff *diff, const struct ds_entry *old, const struct ds_entry *new,
			 bool *ret_is_same)
{
	bool is_same_old = true;
	int r;

	*ret_is_same = old->nlink == new->nlink;
	if (old->nlink == 1 && new->nlink == 1)
		return 0;
	r = map_ino(diff->new_of, old->ino, new->ino, &is_same_old);
	if (r == 0 && !is_same_old)
		*ret_is_same = false;
	if (r == 0)
		r = map_ino(diff->old_of, new->ino, old->ino, &is_same_old);
	if (r == 0 && !is_same_old)
		*ret_is_same = false;
	return r;
}

static int compare(struct diff *diff, const struct ds_entry *old, const struct ds_entry *new,
		   bool *ret_is_same)
{
	*ret_is_same = old->type == new->type && old->is_executable == new->is_executable;
	if (*ret_is_same && old->type != DS_ENTRY_DIRECTORY)
		*ret_is_same = old->size_bytes ==
			       new->size_bytes &&ds_digest_equal(&old->digest, &new->digest);
	if (!diff->with_mtime || !*ret_is_same)
		return 0;
	if (ds_time_compare(old->mtime, new->mtime) != 0) {
		*ret_is_same = false;
		return 0;
	}
	return old->type == DS_ENTRY_FILE ? compare_links(diff, old, new, ret_is_same) : 0;
}

static bool is_directory(const struct ds_entry *entry)
{
	return entry && entry->type == DS_ENTRY_DIRECTORY;
}

/* Reports one name, of which the path is complete, and goes down where there is something to
 * see. */
static int visit(struct diff *diff, const struct ds_entry *old, const struct ds_entry *new)
{
	bool is_same = false, goes_down;
	int r = 0;

	if (old && new)
		r = compare(diff, old, new, &is_same);
	if (r == 0 && !is_same)
		r = diff->fn(diff->ctx, ds_buf_str(&diff->path), diff->path.len_bytes, old, new);
	if (r != 0)
		return r;
	goes_down = is_directory(old) || is_directory(new);
	if (is_directory(old) && is_directory(new) && !diff->with_mtime)
		goes_down = !ds_digest_equal(&old->digest, &new->digest);
	if (!goes_down)
		return 0;
	r = ds_buf_append_byte(&diff->path, '/');
	return r < 0 ? r
		     : push(diff, is_directory(old) ? old->id : 0, is_directory(new) ? new->id : 0);
}

/* One step in the frame on top. */
static int step(struct diff *diff)
{
	struct frame *frame = &diff->frames[diff->frames_n - 1];
	struct ds_entry old, new; /* copies: a push may move the frames */
	const struct ds_entry *lower;
	int order, r;

	r = next_of(diff->old_sql, diff, frame, frame->old_dir, &frame->has_old, &frame->old);
	if (r == 0)
		r = next_of(diff->new_sql, diff, frame, frame->new_dir, &frame->has_new,
			    &frame->new);
	if (r < 0)
		return r;
	if (!frame->has_old && !frame->has_new) {
		diff->frames_n--;
		/* The slash goes too: the path is that of the name in the frame below. */
		ds_buf_truncate(&diff->path, frame->path_len ? frame->path_len - 1 : 0);
		return 0;
	}
	if (frame->has_old && frame->has_new)
		order = ds_name_compare(frame->old.name, frame->old.name_len, frame->new.name,
					frame->new.name_len);
	else
		order = frame->has_old ? -1 : 1;
	lower = order <= 0 ? &frame->old : &frame->new;
	ds_buf_truncate(&diff->path, frame->path_len);
	r = ds_buf_append(&diff->path, lower->name, lower->name_len);
	if (r < 0)
		return r;
	frame->name_len = lower->name_len;
	if (order <= 0) {
		old = frame->old;
		frame->has_old = false;
	}
	if (order >= 0) {
		new = frame->new;
		frame->has_new = false;
	}
	return visit(diff, order <= 0 ? &old : NULL, order >= 0 ? &new : NULL);
}

static int run(struct diff *diff)
{
	struct ds_entry old, new;
	bool is_same;
	int r;

	r = ds_read_get(diff->old_sql, DS_ROOT_ID, &old);
	if (r == 0)
		r = ds_read_get(diff->new_sql, DS_ROOT_ID, &new);
	if (r == 0)
		r = compare(diff, &old, &new, &is_same);
	if (r < 0)
		return r == -ENOENT ? -DS_E_MALFORMED : r;
	if (!is_same) {
		r = diff->fn(diff->ctx, "", 0, &old, &new);
		if (r != 0)
			return r;
	}
	if (!diff->with_mtime && ds_digest_equal(&old.digest, &new.digest))
		return 0;
	r = push(diff, DS_ROOT_ID, DS_ROOT_ID);
	while (r == 0 && diff->frames_n > 0)
		r = step(diff);
	return r;
}

int ds_manifest_diff(struct ds_manifest *old_manifest, struct ds_manifest *new_manifest, void *want,
		     bool with_mtime, ds_manifest_diff_fn *fn, void *ctx)
{
	struct diff diff = {.with_mtime = with_mtime, .fn = fn, .ctx = ctx};
	struct ds_conn *old_conn, *new_conn;
	int r;

	r = ds_conn_take(old_manifest, want, &old_conn);
	if (r < 0)
		return r;
	r = ds_conn_take(new_manifest, want, &new_conn);
	if (r < 0) {
		ds_conn_put(old_manifest, old_conn, 0);
		return r;
	}
	diff.old_sql = &old_conn->sql;
	diff.new_sql = &new_conn->sql;
	ds_buf_init(&diff.path, PATH_MAX_BYTES);
	r = ds_map_new(&diff.new_of);
	if (r == 0)
		r = ds_map_new(&diff.old_of);
	if (r == 0)
		r = run(&diff);
	ds_map_free(diff.old_of, NULL);
	ds_map_free(diff.new_of, NULL);
	ds_free(diff.frames);
	ds_buf_release(&diff.path);
	ds_conn_put(new_manifest, new_conn, r);
	ds_conn_put(old_manifest, old_conn, r);
	return r > 0 ? 0 : r;
}
