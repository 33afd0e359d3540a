/*
 * The control directory `/.dsfs`: looked up by name, never listed in the root, so that no
 * class-per-folder loader trips over it. version.json is the version's record, stats counters of
 * this mount as text.
 *
 * Who looks up `stats` gets a node of his own, which shows one moment for as long as it is known to
 * the kernel: so it needs no handle (there is none where opens are not asked for), and may be cached
 * like everything else. To programs all of them are one inode.
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

/* From NODE_END on: snapshots. */
enum { NODE_DIR = 1, NODE_VERSION, NODE_STATS, NODE_END };

static const char *const node_names[NODE_END] = {
	[NODE_DIR] = ".dsfs", [NODE_VERSION] = "version.json", [NODE_STATS] = "stats"};

static fuse_ino_t ino_of(uint64_t node)
{
	return FS_SLOT_CONTROL << FS_SLOT_SHIFT | node;
}

static uint64_t node_of(fuse_ino_t ino)
{
	return ino & ((UINT64_C(1) << FS_SLOT_SHIFT) - 1);
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
	struct ds_warm_progress warm = {0};
	struct ds_cache_stats cache = {0};
	struct ds_fetcher_stats fetch;

	ds_fetcher_get_stats(fs->fetcher, &fetch);
	ds_buf_appendf(buf,
		       "requests %llu\nopens %llu\nparked %llu\ninterrupted %llu\ntimeouts "
		       "%llu\nfailures %llu\n"
		       "read_bytes %llu\npassthrough_opens %llu\nlistings_ahead %llu\n",
		       (unsigned long long)ds_counter_get(&fs->stats.requests_n),
		       (unsigned long long)ds_counter_get(&fs->stats.opens_n),
		       (unsigned long long)fs->stats.parked_n,
		       (unsigned long long)fs->stats.interrupted_n,
		       (unsigned long long)fs->stats.timeouts_n,
		       (unsigned long long)fs->stats.failures_n,
		       (unsigned long long)ds_counter_get(&fs->stats.read_bytes),
		       (unsigned long long)fs->stats.passthrough_opens_n,
		       (unsigned long long)fs->stats.listings_ahead_n);
	ds_buf_appendf(
		buf,
		"fetch_wants %llu\nfetch_joined %llu\nfetch_gets %llu\nfetch_chunks %llu\n"
		"fetch_chunk_bytes %llu\n"
		"fetch_corrupt %llu\nfetch_moved %llu\nfetch_pulls %llu\nfetch_waiting %llu\n"
		"fetch_underway %llu\nfetch_inflight_bytes %llu\nfetch_inflight_most_bytes %llu\n",
		(unsigned long long)fetch.wants_n, (unsigned long long)fetch.joined_n,
		(unsigned long long)fetch.gets_n, (unsigned long long)fetch.chunks_n,
		(unsigned long long)fetch.chunk_bytes, (unsigned long long)fetch.corrupt_n,
		(unsigned long long)fetch.moved_n, (unsigned long long)fetch.pulls_n,
		(unsigned long long)fetch.waiting_n, (unsigned long long)fetch.underway_n,
		(unsigned long long)fetch.inflight_bytes,
		(unsigned long long)fetch.inflight_most_bytes);
	if (fs->options.cache)
		ds_cache_get_stats(fs->options.cache, &cache);
	ds_buf_appendf(buf, "cache_fills %llu\ncache_unstored %llu\n",
		       (unsigned long long)cache.fills_n, (unsigned long long)cache.unstored_n);
	if (fs->options.warm)
		ds_warm_get_progress(fs->options.warm, &warm);
	ds_buf_appendf(buf,
		       "warm_running %d\nwarm_incomplete %d\nwarm_files %llu\n"
		       "warm_files_wanted %llu\nwarm_files_failed %llu\nwarm_bytes_wanted %llu\n"
		       "warm_bytes_here %llu\nwarm_bytes_fetched %llu\n",
		       fs->options.warm && !warm.is_over, warm.is_incomplete,
		       (unsigned long long)warm.files_n, (unsigned long long)warm.files_total_n,
		       (unsigned long long)warm.failed_n, (unsigned long long)warm.bytes_total,
		       (unsigned long long)warm.here_bytes, (unsigned long long)warm.fetched_bytes);
}

/* What a node of `stats` shows. Never changes; goes when the kernel has forgotten the node. */
struct snapshot {
	struct ds_list node; /* in fs->locked.snapshots */
	uint64_t number;     /* of the node */
	size_t len;
	char text[];
};

static struct snapshot *snapshot_new(struct ds_fs *fs)
{
	_ds_cleanup_buf_ struct ds_buf buf = DS_BUF_INIT(DS_KIB(64));
	struct snapshot *snapshot;

	print_stats(fs, &buf);
	snapshot = ds_malloc(sizeof(*snapshot) + buf.len_bytes);
	if (!snapshot)
		return NULL;
	snapshot->len = buf.len_bytes;
	memcpy(snapshot->text, buf.data, buf.len_bytes);
	pthread_mutex_lock(&fs->mutex);
	snapshot->number = NODE_END + fs->locked.snapshots_n++;
	ds_list_push_back(&fs->locked.snapshots, &snapshot->node);
	pthread_mutex_unlock(&fs->mutex);
	return snapshot;
}

/* It stays as long as the kernel knows it, and so while a request for it runs. */
static struct snapshot *snapshot_of(struct ds_fs *fs, uint64_t number)
{
	struct snapshot *found = NULL;

	pthread_mutex_lock(&fs->mutex);
	ds_list_for_each (node, &fs->locked.snapshots) {
		struct snapshot *snapshot = ds_list_entry(node, struct snapshot, node);

		if (snapshot->number == number)
			found = snapshot;
	}
	pthread_mutex_unlock(&fs->mutex);
	return found;
}

static void snapshot_free(struct ds_fs *fs, struct snapshot *snapshot)
{
	if (!snapshot)
		return;
	pthread_mutex_lock(&fs->mutex);
	ds_list_remove(&snapshot->node);
	pthread_mutex_unlock(&fs->mutex);
	ds_free(snapshot);
}

void fs_control_end(struct ds_fs *fs)
{
	while (!ds_list_is_empty(&fs->locked.snapshots))
		snapshot_free(fs, ds_list_entry(fs->locked.snapshots.next, struct snapshot, node));
	free(fs->version_json);
}

void fs_control_forget(struct ds_fs *fs, fuse_ino_t ino)
{
	/* Each was looked up once. */
	snapshot_free(fs, snapshot_of(fs, node_of(ino)));
}

/* The text of a file; NULL: it is none. */
static const char *text_of(struct ds_fs *fs, uint64_t node, size_t *ret_len)
{
	struct snapshot *snapshot = node >= NODE_END ? snapshot_of(fs, node) : NULL;

	*ret_len = snapshot ? snapshot->len : node == NODE_VERSION ? strlen(fs->version_json) : 0;
	return snapshot ? snapshot->text : node == NODE_VERSION ? fs->version_json : NULL;
}

static void fill(struct ds_fs *fs, uint64_t node, struct stat *ret_st)
{
	size_t len;

	text_of(fs, node, &len);
	*ret_st = (struct stat){
		/* Of all snapshots the same: `cp` looks a file up twice, and takes another number for another file. */
		.st_ino = ino_of(DS_MIN(node, (uint64_t)NODE_STATS)),
		.st_mode = node == NODE_DIR ? S_IFDIR | 0555 : S_IFREG | 0444,
		.st_nlink = node == NODE_DIR ? 2 : 1,
		.st_uid = fs->options.uid,
		.st_gid = fs->options.gid,
		.st_size = (off_t)len,
		.st_blksize = FS_BLOCK_BYTES,
		/* With fewer `cp` would take it for sparse. */
		.st_blocks = (blkcnt_t)((len + 511) / 512),
		.st_mtim = {.tv_sec = fs->record->time.s, .tv_nsec = fs->record->time.ns},
	};
	ret_st->st_mode &= ~(mode_t)fs->options.umask;
}

bool fs_control_lookup(struct ds_fs *fs, fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct fuse_entry_param param = {.generation = 1,
					 .attr_timeout = FS_TIMEOUT_S,
					 .entry_timeout = FS_TIMEOUT_S};
	struct snapshot *snapshot = NULL;
	uint64_t node = 0;

	if (parent == DS_ROOT_ID && strcmp(name, node_names[NODE_DIR]) == 0)
		node = NODE_DIR;
	else if (!fs_control_is(parent))
		return false;
	else if (strcmp(name, ".") == 0)
		node = node_of(parent);
	for (unsigned i = NODE_VERSION; !node && i < NODE_END; i++)
		if (strcmp(name, node_names[i]) == 0)
			node = i;
	/* "." by a file handle of NFS, which may be older than this mount. */
	if (!node || (node >= NODE_END && !snapshot_of(fs, node))) {
		fuse_reply_err(req, node ? ESTALE : ENOENT);
		return true;
	}
	if (node == NODE_STATS) {
		snapshot = snapshot_new(fs);
		if (!snapshot) {
			fuse_reply_err(req, ENOMEM);
			return true;
		}
		node = snapshot->number;
		param.entry_timeout = 0;
	}
	param.ino = ino_of(node);
	fill(fs, node, &param.attr);
	/* What the kernel did not take, it does not forget. */
	if (fuse_reply_entry(req, &param) < 0)
		snapshot_free(fs, snapshot);
	return true;
}

void fs_control_getattr(struct ds_fs *fs, fuse_req_t req, fuse_ino_t ino)
{
	struct stat st;

	fill(fs, node_of(ino), &st);
	fuse_reply_attr(req, &st, FS_TIMEOUT_S);
}

void fs_control_read(struct ds_fs *fs, fuse_req_t req, fuse_ino_t ino, size_t size, off_t off)
{
	_ds_cleanup_free_ char *copy = NULL;
	size_t len;
	const char *text = text_of(fs, node_of(ino), &len);

	if (!text) {
		fuse_reply_err(req, EISDIR);
		return;
	}
	if ((size_t)off >= len) {
		fuse_reply_buf(req, NULL, 0);
		return;
	}
	/* The reader may have the reply, and the kernel have forgotten the node, before fuse_reply_buf returns. */
	size = DS_MIN(size, len - (size_t)off);
	copy = ds_memdup(text + off, size);
	if (copy)
		fuse_reply_buf(req, copy, size);
	else
		fuse_reply_err(req, ENOMEM);
}

void fs_control_lseek(struct ds_fs *fs, fuse_req_t req, fuse_ino_t ino, off_t off, bool is_hole)
{
	size_t len;

	text_of(fs, node_of(ino), &len);
	if ((size_t)off >= len)
		fuse_reply_err(req, ENXIO);
	else
		fuse_reply_lseek(req, is_hole ? (off_t)len : off);
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
		/* That of a look-up: with another the kernel takes the inode it knows for one that is gone, and fails its handles. */
		struct fuse_entry_param param = {.generation = 1};
		size_t n;

		fill(fs, node, &param.attr);
		if (i == 1)
			param.attr.st_ino = DS_ROOT_ID;
		/* Nobody has looked up `stats` by being listed: no node then. */
		if (i >= 2 && node != NODE_STATS) {
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
