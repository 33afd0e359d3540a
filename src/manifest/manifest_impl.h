/*
 * The reading side's inside: a connection, and the pool that hands them out. Only for manifest_*.c.
 */
#ifndef DS_MANIFEST_MANIFEST_IMPL_H
#define DS_MANIFEST_MANIFEST_IMPL_H

#include <pthread.h>

#include "manifest/manifest.h"
#include "manifest/manifest_row.h"
#include "manifest/manifest_sql.h"
#include "manifest/manifest_vfs.h"
#include "util/per_cpu.h"

struct ds_conn {
	struct ds_sql sql;
	struct ds_page_reader reader;
	unsigned cache_kib; /* of pages, at most */
};

struct ds_manifest {
	struct ds_page_source source;
	struct ds_lanes conns;	  /* the pool: those that are idle */
	_Atomic unsigned conns_n; /* with those in use */
	pthread_mutex_t lock;
	struct {
		struct ds_diag error;
	} locked;
};

/* A connection for one call, opened if none is idle; `want` is passed to the page source until
 * it is given back. */
int ds_conn_take(struct ds_manifest *manifest, void *want, struct ds_conn **ret_conn);
/* Gives it back with the call's result, which is returned; a connection that may be damaged is
 * closed. */
int ds_conn_put(struct ds_manifest *manifest, struct ds_conn *conn, int r);

#endif
