/*
 * An SQLite VFS whose only file is a page source: read-only, immutable, never locked. What lies in
 * one connection's hands belongs to the thread that has the connection.
 */
#ifndef DS_MANIFEST_MANIFEST_VFS_H
#define DS_MANIFEST_MANIFEST_VFS_H

#include <sqlite3.h>

#include "manifest/manifest.h"

/* The other end of a connection's file. */
struct ds_page_reader {
	const struct ds_page_source *source;
	void *want;	 /* of the present call */
	int error;	 /* the first that the source returned in the present call; 0 */
	uint8_t *header; /* page 0, read and checked before SQLite was opened; borrowed */
};

/* Opens SQLite over the reader, which must outlive the connection. Returns SQLite's result. */
int ds_vfs_open(struct ds_page_reader *reader, sqlite3 **ret_db);

#endif
