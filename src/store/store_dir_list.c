/*
 * LIST of the directory backend: a walk in byte order of keys.
 *
 * A directory sorts as if its name ended with '/', since that is what its keys go on with: "a.b"
 * comes before "a/b", which comes before "a0". Temporary files, the lock, links and special files
 * are not objects.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/store_dir.h"
#include "util/file.h"
#include "util/mem.h"
#include "util/str.h"

struct names {
	char **names; /* directories with a '/' at the end */
	size_t names_n, capacity_n;
};

struct walk {
	struct ds_store_req *req;
	size_t before_n;
	struct ds_buf key; /* of the directory being walked, with '/' unless it is the root */
};

static void names_release(struct names *names)
{
	for (size_t i = 0; i < names->names_n; i++)
		ds_free(names->names[i]);
	ds_free(names->names);
}

static int names_add(struct names *names, const char *name, bool is_dir)
{
	char *copy;

	if (names->names_n == names->capacity_n) {
		size_t capacity_n = names->capacity_n ? names->capacity_n * 2 : 64;
		char **more = ds_reallocarray(names->names, capacity_n, sizeof(*more));

		if (!more)
			return -ENOMEM;
		names->names = more;
		names->capacity_n = capacity_n;
	}
	copy = ds_asprintf("%s%s", name, is_dir ? "/" : "");
	if (!copy)
		return -ENOMEM;
	names->names[names->names_n++] = copy;
	return 0;
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool is_object_name(const char *name, bool is_root)
{
	return strcmp(name, ".") != 0 && strcmp(name, "..") != 0 &&
	       !ds_starts_with(name, ".tmp-") && !(is_root && strcmp(name, "lock") == 0);
}

/* DT_REG, DT_DIR or something else that is passed over. */
static unsigned char type_of(int dir_fd, const struct dirent *entry)
{
	struct stat st;

	if (entry->d_type != DT_UNKNOWN)
		return entry->d_type;
	if (fstatat(dir_fd, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return DT_UNKNOWN;
	return S_ISREG(st.st_mode) ? DT_REG : S_ISDIR(st.st_mode) ? DT_DIR : DT_LNK;
}

/* All names that begin with name_prefix, sorted. */
static int read_names(int dir_fd, const char *name_prefix, bool is_root, struct names *names)
{
	int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), r = 0;
	struct dirent *entry;
	DIR *stream;

	if (fd < 0)
		return -errno;
	stream = fdopendir(fd);
	if (!stream) {
		r = -errno;
		close(fd);
		return r;
	}
	while (r == 0) {
		unsigned char type;

		errno = 0;
		entry = readdir(stream);
		if (!entry) {
			r = -errno;
			break;
		}
		if (!is_object_name(entry->d_name, is_root) ||
		    !ds_starts_with(entry->d_name, name_prefix))
			continue;
		type = type_of(fd, entry);
		if (type == DT_REG || type == DT_DIR)
			r = names_add(names, entry->d_name, type == DT_DIR);
	}
	closedir(stream);
	if (r == 0 && names->names_n)
		qsort(names->names, names->names_n, sizeof(char *), compare_names);
	return r;
}

static int add_file(struct walk *walk, int dir_fd, const char *name)
{
	struct stat st;

	if (walk->req->list_after && strcmp(ds_buf_str(&walk->key), walk->req->list_after) <= 0)
		return 0;
	if (fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return errno == ENOENT ? 0 : -errno;
	if (!S_ISREG(st.st_mode))
		return 0;
	return ds_store_listing_append(walk->req->listing, ds_buf_str(&walk->key),
				       walk->key.len_bytes, (uint64_t)st.st_size,
				       (struct ds_time){.s = st.st_mtim.tv_sec,
							.ns = (uint32_t)st.st_mtim.tv_nsec});
}

/* Whether every key below walk->key (which ends with '/') comes before list_after. */
static bool is_before_start(const struct walk *walk)
{
	const char *after = walk->req->list_after, *key = ds_buf_str(&walk->key);

	return after && strcmp(key, after) < 0 && !ds_starts_with(after, key);
}

static bool is_full(const struct walk *walk)
{
	return walk->req->list_max_n &&
	       walk->req->listing->objects_n - walk->before_n >= walk->req->list_max_n;
}

/* The depth is bounded by the length of a key. */
static int walk_dir(struct walk *walk, int dir_fd, const char *name_prefix)
{
	_ds_cleanup_(names_release) struct names names = {0};
	size_t key_len = walk->key.len_bytes;
	int r = read_names(dir_fd, name_prefix, key_len == 0, &names);

	for (size_t i = 0; i < names.names_n && r == 0 && !is_full(walk); i++) {
		char *name = names.names[i];
		size_t len = strlen(name);

		r = ds_buf_append(&walk->key, name, len);
		if (r == -DS_E_LIMIT) { /* no PUT can have made it */
			r = 0;
			continue;
		}
		if (r == 0 && name[len - 1] != '/') {
			r = add_file(walk, dir_fd, name);
		} else if (r == 0 && !is_before_start(walk)) {
			_ds_cleanup_close_ int fd = -1;

			name[len - 1] = '\0';
			fd = ds_dir_open_below(dir_fd, name);
			if (fd >= 0)
				r = walk_dir(walk, fd, "");
			else if (fd != -DS_E_ABSENT && fd != -ELOOP)
				r = fd;
		}
		ds_buf_truncate(&walk->key, key_len);
	}
	return r;
}

int ds_dir_list(struct dir_store *dir, struct ds_store_req *req)
{
	struct walk walk = {.req = req,
			    .before_n = req->listing->objects_n,
			    .key = DS_BUF_INIT(DS_STORE_KEY_MAX_BYTES)};
	_ds_cleanup_close_ int fd = -1;
	const char *name;
	int r = ds_dir_open_parent(dir, req->key, false, &fd, &name);

	if (r == 0)
		r = ds_buf_append(&walk.key, req->key, (size_t)(name - req->key));
	if (r == 0)
		r = walk_dir(&walk, fd, name);
	ds_buf_release(&walk.key);
	if (r < 0)
		ds_store_listing_truncate(req->listing, walk.before_n);
	/* Nothing lies below a directory that is not there, or under a key that cannot be. */
	return r == -DS_E_ABSENT || r == -DS_E_LIMIT ? 0 : r;
}
