/*
 * What the kernel interface allows: a read-only file system with nothing behind it but memory. It
 * answers every request at once, on the thread that took it.
 *
 *	bench_fuse [-s] [-o OPTIONS] MOUNTPOINT LIST BYTES
 *
 * Serves the files of LIST (see bench.h; directories follow from the paths), whose bytes lie in the
 * file BYTES, which is read into memory first; "-" for none where no file is to be read. Stays in the
 * foreground; SIGTERM or umount ends it.
 *
 *	-s	stateless: open and opendir are answered ENOSYS, once
 *	-o	options for libfuse, such as io_uring,io_uring_q_depth=64
 */
#define FUSE_USE_VERSION 314

#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench.h"

#define FOR_EVER    86400.0
#define NONE	    0u /* no node's number: the root is nobody's child */
#define THREADS_MAX 16u

/* Its index is its inode's number less one. */
struct node {
	const char *name;
	uint32_t parent, next; /* the next of the same directory */
	uint32_t first, last;  /* a directory's own */
	uint64_t off, size;
	bool is_dir;
};

static struct node *nodes;
static uint32_t nodes_n = 1, nodes_max;
static uint32_t *table; /* open addressing; a power of two, at most half full */
static uint32_t table_mask;
static const char *bytes;
static uint64_t bytes_n;
static bool is_stateless;

static uint32_t *slot(uint32_t parent, const char *name, size_t len)
{
	uint32_t hash = 2166136261u ^ parent; /* FNV-1a */

	for (size_t i = 0; i < len; i++)
		hash = (hash ^ (uint8_t)name[i]) * 16777619u;
	hash ^= hash >> 15;
	for (;; hash++) {
		uint32_t *at = &table[hash & table_mask];
		const struct node *node = &nodes[*at];

		if (*at == NONE || (node->parent == parent && strlen(node->name) == len &&
				    memcmp(node->name, name, len) == 0))
			return at;
	}
}

static uint32_t add(uint32_t parent, const char *name, size_t len, bool is_dir)
{
	uint32_t *at = slot(parent, name, len), idx;

	if (*at != NONE)
		return *at;
	errno = 0;
	if (nodes_n == nodes_max)
		bench_die("too many directories");
	idx = *at = nodes_n++;
	nodes[idx] = (struct node){.name = strndup(name, len), .parent = parent, .is_dir = is_dir};
	if (!nodes[idx].name)
		bench_die("memory");
	if (nodes[parent].last != NONE)
		nodes[nodes[parent].last].next = idx;
	else
		nodes[parent].first = idx;
	nodes[parent].last = idx;
	return idx;
}

static void build(const char *list_path)
{
	struct bench_file *files;
	size_t n, size = 1;

	bench_list(list_path, &files, &n);
	nodes_max = (uint32_t)n * 2 + 16;
	while (size < 2 * (size_t)nodes_max)
		size *= 2;
	table_mask = (uint32_t)size - 1;
	table = calloc(size, sizeof(*table));
	nodes = calloc(nodes_max, sizeof(*nodes));
	if (!table || !nodes)
		bench_die("memory");
	nodes[0] = (struct node){.name = "", .is_dir = true};
	for (size_t i = 0; i < n; i++) {
		const char *name = files[i].path, *end;
		uint32_t idx = 0;

		for (; (end = strchr(name, '/')); name = end + 1)
			idx = add(idx, name, (size_t)(end - name), true);
		idx = add(idx, name, strlen(name), false);
		nodes[idx].size = files[i].size;
		nodes[idx].off = files[i].off;
		errno = 0;
		if (files[i].size > bytes_n || files[i].off > bytes_n - files[i].size)
			bench_die("'%s' lies beyond the end of the bytes", files[i].path);
	}
	bench_list_free(files, n);
}

static void load(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	char *to;

	if (fd < 0 || fstat(fd, &st) < 0)
		bench_die("%s", path);
	bytes_n = (uint64_t)st.st_size;
	to = mmap(NULL, bytes_n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (to == MAP_FAILED)
		bench_die("%s: memory", path);
	for (uint64_t at = 0; at < bytes_n;) {
		ssize_t n = pread(fd, to + at, bytes_n - at, (off_t)at);

		if (n <= 0)
			bench_die("%s", path);
		at += (uint64_t)n;
	}
	bytes = to;
	close(fd);
}

static void fill(uint32_t idx, struct fuse_entry_param *ret_entry)
{
	const struct node *node = &nodes[idx];

	*ret_entry = (struct fuse_entry_param){
		.ino = idx + 1,
		.generation = 1,
		.attr_timeout = FOR_EVER,
		.entry_timeout = FOR_EVER,
		.attr = {.st_ino = idx + 1,
			 .st_mode = node->is_dir ? S_IFDIR | 0555 : S_IFREG | 0444,
			 .st_nlink = 1,
			 .st_size = (off_t)node->size,
			 .st_blocks = (blkcnt_t)((node->size + 511) / 512),
			 .st_blksize = 4096},
	};
}

static void op_init(void *userdata, struct fuse_conn_info *conn)
{
	unsigned wanted = FUSE_CAP_READDIRPLUS | FUSE_CAP_PARALLEL_DIROPS | FUSE_CAP_ASYNC_READ;
	unsigned unwanted =
		FUSE_CAP_READDIRPLUS_AUTO | FUSE_CAP_AUTO_INVAL_DATA | FUSE_CAP_SPLICE_READ;

	(void)userdata;
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)
	for (unsigned bit = 0; bit < 32; bit++) {
		if (wanted & 1u << bit)
			fuse_set_feature_flag(conn, UINT64_C(1) << bit);
		if (unwanted & 1u << bit)
			fuse_unset_feature_flag(conn, UINT64_C(1) << bit);
	}
#else
	conn->want |= conn->capable & wanted;
	conn->want &= ~unwanted;
#endif
	conn->max_readahead = 16u << 20;
	conn->max_background = 4096;
	conn->congestion_threshold = 3072;
	conn->time_gran = 1;
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct fuse_entry_param entry = {.entry_timeout = FOR_EVER};
	uint32_t idx = *slot((uint32_t)parent - 1, name, strlen(name));

	if (idx != NONE)
		fill(idx, &entry);
	fuse_reply_entry(req, &entry);
}

static void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct fuse_entry_param entry;

	(void)fi;
	fill((uint32_t)ino - 1, &entry);
	fuse_reply_attr(req, &entry.attr, FOR_EVER);
}

static void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	if (is_stateless) {
		fuse_reply_err(req, ENOSYS);
		return;
	}
	fi->keep_cache = 1;
	fi->noflush = 1;
	fuse_reply_open(req, fi);
}

static void op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	if (is_stateless) {
		fuse_reply_err(req, ENOSYS);
		return;
	}
	fi->keep_cache = 1;
	fi->cache_readdir = 1;
	fuse_reply_open(req, fi);
}

static void op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino, (void)fi;
	fuse_reply_err(req, 0);
}

static void op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t count)
{
	(void)ino, (void)count;
	fuse_reply_none(req);
}

static void op_forget_multi(fuse_req_t req, size_t n, struct fuse_forget_data *forgets)
{
	(void)n, (void)forgets;
	fuse_reply_none(req);
}

static void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
		    struct fuse_file_info *fi)
{
	const struct node *node = &nodes[ino - 1];
	uint64_t at = (uint64_t)off < node->size ? (uint64_t)off : node->size;

	(void)fi;
	if (size > node->size - at)
		size = node->size - at;
	fuse_reply_buf(req, bytes + node->off + at, size);
}

/* The cookie of an entry is its index + 2, so that 1 and 2 are left for "." and "..". */
static void list(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, bool is_plus)
{
	struct fuse_entry_param entry;
	char *buffer = malloc(size);
	size_t used = 0, n;
	uint32_t idx;

	if (!buffer) {
		fuse_reply_err(req, ENOMEM);
		return;
	}
	for (; off < 2; off++) {
		const char *name = off == 0 ? "." : "..";

		/* Node id 0: no look-up. */
		entry = (struct fuse_entry_param){.attr = {.st_ino = ino, .st_mode = S_IFDIR}};
		used += is_plus ? fuse_add_direntry_plus(req, buffer + used, size - used, name,
							 &entry, off + 1)
				: fuse_add_direntry(req, buffer + used, size - used, name,
						    &entry.attr, off + 1);
	}
	idx = off == 2 ? nodes[ino - 1].first : nodes[off - 2].next;
	for (; idx != NONE; idx = nodes[idx].next, used += n) {
		fill(idx, &entry);
		n = is_plus ? fuse_add_direntry_plus(req, buffer + used, size - used,
						     nodes[idx].name, &entry, idx + 2)
			    : fuse_add_direntry(req, buffer + used, size - used, nodes[idx].name,
						&entry.attr, idx + 2);
		if (n > size - used)
			break;
	}
	fuse_reply_buf(req, buffer, used);
	free(buffer);
}

static void op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
		       struct fuse_file_info *fi)
{
	(void)fi;
	list(req, ino, size, off, false);
}

static void op_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
			   struct fuse_file_info *fi)
{
	(void)fi;
	list(req, ino, size, off, true);
}

static void op_statfs(fuse_req_t req, fuse_ino_t ino)
{
	struct statvfs st = {.f_bsize = 4096, .f_frsize = 4096, .f_namemax = 255};

	(void)ino;
	fuse_reply_statfs(req, &st);
}

static const struct fuse_lowlevel_ops ops = {
	.init = op_init,
	.lookup = op_lookup,
	.forget = op_forget,
	.forget_multi = op_forget_multi,
	.getattr = op_getattr,
	.open = op_open,
	.release = op_release,
	.opendir = op_opendir,
	.releasedir = op_release,
	.read = op_read,
	.readdir = op_readdir,
	.readdirplus = op_readdirplus,
	.statfs = op_statfs,
};

static int serve(const char *mountpoint, const char *more)
{
	char text[512], name[] = "bench_fuse", flag[] = "-o";
	char *argv[] = {name, flag, text, NULL};
	struct fuse_args args = FUSE_ARGS_INIT(3, argv);
	struct fuse_loop_config *config = fuse_loop_cfg_create();
	struct fuse_session *session;
	int r;

	/* What the mount of dsfs has, too. */
	snprintf(text, sizeof(text),
		 "ro,nosuid,nodev,noatime,default_permissions,fsname=bench,subtype=bench%s%s",
		 more ? "," : "", more ? more : "");
	session = fuse_session_new(&args, &ops, sizeof(ops), NULL);
	errno = 0;
	if (!session || !config)
		bench_die("libfuse refused the options");
	if (fuse_set_signal_handlers(session) != 0 || fuse_session_mount(session, mountpoint) != 0)
		bench_die("cannot mount");
	fuse_loop_cfg_set_clone_fd(config, 1);
	fuse_loop_cfg_set_max_threads(config, THREADS_MAX);
	fuse_loop_cfg_set_idle_threads(config, THREADS_MAX);
	r = fuse_session_loop_mt(session, config);
	fuse_loop_cfg_destroy(config);
	fuse_session_unmount(session);
	fuse_remove_signal_handlers(session);
	fuse_session_destroy(session);
	fuse_opt_free_args(&args);
	return r < 0;
}

int main(int argc, char **argv)
{
	const char *more = NULL;
	int opt;

	while ((opt = getopt(argc, argv, "so:")) != -1) {
		if (opt == 's') {
			is_stateless = true;
		} else if (opt == 'o') {
			more = optarg;
		} else {
			optind = argc;
			break;
		}
	}
	if (argc - optind != 3) {
		fprintf(stderr, "usage: bench_fuse [-s] [-o OPTIONS] MOUNTPOINT LIST BYTES\n");
		return 2;
	}
	if (strcmp(argv[optind + 2], "-") == 0)
		bytes_n = UINT64_MAX;
	else
		load(argv[optind + 2]);
	build(argv[optind + 1]);
	return serve(argv[optind], more);
}
