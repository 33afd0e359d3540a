/* The directory backend's own struct, shared by store_dir.c and store_dir_list.c. */
#ifndef DS_STORE_STORE_DIR_H
#define DS_STORE_STORE_DIR_H

#include <pthread.h>
#include <time.h>

#include "store/store_backend.h"

struct ds_map;

struct dir_store {
	struct ds_store base;
	int fd;	    /* the root */
	char *path; /* absolute, without links */
	struct ds_store_pool *pool;
	struct ds_store_counters counters;
	pthread_mutex_t mutex; /* a leaf */
	struct {
		struct ds_map *synced; /* keys of directories whose names last */
		struct ds_map *swept;  /* keys of directories that were looked through */
	} locked;
};

/* Notes the path of the request's key; returns code. */
int ds_dir_fail(const struct dir_store *dir, struct ds_store_req *req, int code);
/* A descriptor, -DS_E_ABSENT, -ELOOP for a symbolic link, or another errno. */
int ds_dir_open_below(int dir_fd, const char *name);
/* The directory of a key (made if `make`), and the key's last component within `key`. */
int ds_dir_open_parent(struct dir_store *dir, const char *key, bool make, int *ret_fd,
		       const char **ret_name);
#define DS_DIR_TMP_MAX 22 /* ".tmp-", 16 digits, NUL */
/* A new temporary file: its descriptor and name, or an errno. */
int ds_dir_make_tmp(int dir_fd, char *ret_name);
/* Writes a new, empty file, past the page cache where that can be done. */
int ds_dir_write_body(int fd, const void *body, size_t len_bytes);
/* The first time, removes from the directory with this key what killed writers left there a day before `now`. */
void ds_dir_sweep_once(struct dir_store *dir, const char *path, size_t len, int dir_fd,
		       struct timespec now);
/* The file system's time, by a file that is made and removed. */
int ds_dir_time(struct dir_store *dir, struct timespec *ret_now);
int ds_dir_list(struct dir_store *dir, struct ds_store_req *req);

#endif
