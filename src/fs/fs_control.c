/*
 * The control directory `/.dsfs`: looked up by name, never listed in the root, so that no
 * class-per-folder loader trips over it. version.json is the version's record, stats counters of
 * this mount as text.
 */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "fs/fs_internal.h"
#include "util/buf.h"
#include "util/mem.h"

enum { NODE_DIR = 1, NODE_VERSION, NODE_STATS, NODE_END };

static const char *const node_names[NODE_END] = {
	[NODE_DIR] = ".dsfs", [NODE_VERSION] = "version.json", [NODE_STATS] = "stats"};

static fuse_ino_t ino_of(unsigned node)
{
	return FS_SLOT_CONTROL << FS_SLOT_SHIFT | node;
}

static unsigned node_of(fuse_ino_t ino)
{
	return (unsigned)(ino & ((UINT64_C(1) << FS_SLOT_SHIFT) - 1));
}

int fs_control_init(struct ds_fs *fs)
{
	json_t *json = json_copy(fs->record->json);
	char id[DS_DIGEST_TEXT_MAX];

	if (json)
		json_object_set_new(json, "id", json_string(ds_digest_format(&fs->record->id, id)));
	fs->version_json = json ? json_dumps(json, JSON_INDENT(2)) : NULL;
	json_decref(json);
	return fs->version_json ? 0 : -ENOMEM;
}

static void print_stats(struct ds_fs *fs, struct ds_buf *buf)
{
	struct ds_fetcher_stats fetch;

	ds_fetcher_get_stats(fs->fetcher, &fetch);
	ds_buf_appendf(
		buf,
		"requests %llu\nparked %llu\ninterrupted %llu\ntimeouts %llu\nfailures %llu\n"
		"read_bytes %llu\n",
		(unsigned long long)fs->stats.requests_n, (unsigned long long)fs->stats.parked_n,
		(unsigned long long)fs->stats.interrupted_n,
		(unsigned long long)fs->stats.timeouts_n, (unsigned long long)fs->stats.failures_n,
		(unsigned long long)fs->stats.read_bytes);
	ds_buf_appendf(buf,
		       "fetch_wants %llu\nfetch_joined %llu\nfetch_gets %llu\nfetch_chunks %llu\n"
		       "fetch_corrupt %llu\nfetch_moved %llu\nfetch_waiting %llu\n",
		       (unsigned long long)fetch.wants_n, (unsigned long long)fetch.joined_n,
		       (unsigned long long)fetch.gets_n, (unsigned long long)fetch.chunks_n,
		       (unsigned long long)fetch.corrupt_n, (unsigned long long)fetch.moved_n,
		       (unsigned long long)fetch.waiting_n);
}

static void fill(struct ds_fs *fs, unsigned node, struct stat *ret_st)
{
	*ret_st = (struct stat){
		.st_ino = ino_of(node),
		.st_mode = node == NODE_DIR ? S_IFDIR | 0555 : S_IFREG | 0444,
		.st_nlink = node == NODE_DIR ? 2 : 1,
		.st_uid = fs->options.uid,
		.st_gid = fs->options.gid,
		.st_blksize = FS_BLOCK_BYTES,
		.st_mtim = {.tv_sec = fs->record->time.s, .tv_nsec = fs->record->time.ns},
	};
	ret_st->st_mode &= ~(mode_t)fs->options.umask;
	if (node == NODE_VERSION)
		ret_st->st_size = (off_t)strlen(fs->version_json);
}

bool fs_control_lookup(struct ds_fs *fs, fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct fuse_entry_param param = {0};
	unsigned node = 0;

	if (parent == DS_ROOT_ID && strcmp(name, node_names[NODE_DIR]) == 0)
		node = NODE_DIR;
	else if (!fs_control_is(parent))
		return false;
	else if (strcmp(name, ".") == 0)
		node = node_of(parent);
	for (unsigned i = NODE_VERSION; !node && i < NODE_END; i++)
		if (strcmp(name, node_names[i]) == 0)
			node = i;
	if (!node || node >= NODE_END) {
		fuse_reply_err(req, ENOENT);
		return true;
	}
	param.ino = ino_of(node);
	param.generation = 1;
	param.attr_timeout = param.entry_timeout = FS_TIMEOUT_S;
	fill(fs, node, &param.attr);
	fuse_reply_entry(req, &param);
	return true;
}

void fs_control_getattr(struct ds_fs *fs, fuse_req_t req, fuse_ino_t ino)
{
	struct stat st;

	fill(fs, node_of(ino), &st);
	fuse_reply_attr(req, &st, FS_TIMEOUT_S);
}

/* What one handle of `stats` shows: one moment. */
struct snapshot {
	struct ds_list node; /* in fs->locked.snapshots */
	struct ds_buf text;
};

static int snapshot_new(struct ds_fs *fs, struct snapshot **ret_snapshot)
{
	struct snapshot *snapshot = ds_calloc(1, sizeof(*snapshot));

	if (!snapshot)
		return -ENOMEM;
	ds_buf_init(&snapshot->text, DS_KIB(64));
	print_stats(fs, &snapshot->text);
	pthread_mutex_lock(&fs->mutex);
	ds_list_push_back(&fs->locked.snapshots, &snapshot->node);
	pthread_mutex_unlock(&fs->mutex);
	*ret_snapshot = snapshot;
	return 0;
}

static void snapshot_free(struct ds_fs *fs, struct snapshot *snapshot)
{
	if (!snapshot)
		return;
	pthread_mutex_lock(&fs->mutex);
	ds_list_remove(&snapshot->node);
	pthread_mutex_unlock(&fs->mutex);
	ds_buf_release(&snapshot->text);
	ds_free(snapshot);
}

static struct snapshot *snapshot_of(const struct fuse_file_info *fi)
{
	return (struct snapshot *)(uintptr_t)fi->fh;
}

void fs_control_end(struct ds_fs *fs)
{
	while (!ds_list_is_empty(&fs->locked.snapshots))
		snapshot_free(fs, ds_list_entry(fs->locked.snapshots.next, struct snapshot, node));
	free(fs->version_json);
}

void fs_control_open(struct ds_fs *fs, fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct snapshot *snapshot = NULL;
	int r;

	fi->noflush = 1;
	if (node_of(ino) == NODE_STATS) {
		r = snapshot_new(fs, &snapshot);
		if (r < 0) {
			fuse_reply_err(req, -r);
			return;
		}
		/* The length is not known before: the page cache must stay out. */
		fi->direct_io = 1;
	} else {
		fi->keep_cache = 1;
	}
	fi->fh = (uintptr_t)snapshot;
	/* An open that was interrupted gets no release. */
	if (fuse_reply_open(req, fi) < 0)
		snapshot_free(fs, snapshot);
}

void fs_control_release(struct ds_fs *fs, const struct fuse_file_info *fi)
{
	snapshot_free(fs, snapshot_of(fi));
}

void fs_control_read(struct ds_fs *fs, fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
		     const struct fuse_file_info *fi)
{
	const char *text = fs->version_json;
	_ds_cleanup_free_ char *copy = NULL;
	size_t len;

	if (node_of(ino) == NODE_STATS)
		text = ds_buf_str(&snapshot_of(fi)->text);
	len = strlen(text);
	if ((size_t)off >= len) {
		fuse_reply_buf(req, NULL, 0);
		return;
	}
	/*
	 * The reader may have the reply, and have closed the file, before fuse_reply_buf returns.
	 */
	size = DS_MIN(size, len - (size_t)off);
	copy = ds_memdup(text + off, size);
	if (copy)
		fuse_reply_buf(req, copy, size);
	else
		fuse_reply_err(req, ENOMEM);
}

void fs_control_readdir(struct ds_fs *fs, fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
			bool plus)
{
	char buffer[1024];
	size_t used = 0;

	(void)ino;
	size = DS_MIN(size, sizeof(buffer));
	/* Cookies: 1 and 2 are "." and "..", then the nodes. */
	for (unsigned i = (unsigned)off; i < NODE_END; i++) {
		const char *name = i == 0 ? "." : i == 1 ? ".." : node_names[i];
		unsigned node = i < 2 ? NODE_DIR : i;
		struct fuse_entry_param param = {0};
		size_t n;

		fill(fs, node, &param.attr);
		if (i == 1)
			param.attr.st_ino = DS_ROOT_ID;
		if (i >= 2) {
			param.ino = ino_of(node);
			param.attr_timeout = param.entry_timeout = FS_TIMEOUT_S;
		}
		n = plus ? fuse_add_direntry_plus(req, buffer + used, size - used, name, &param,
						  (off_t)i + 1)
			 : fuse_add_direntry(req, buffer + used, size - used, name, &param.attr,
					     (off_t)i + 1);
		if (n > size - used)
			break;
		used += n;
	}
	fuse_reply_buf(req, buffer, used);
}
