/*
 * Where a bucket is: the store's URL, the endpoint, and how the bucket goes into an address. Pure
 * functions; any thread. -DS_E_USAGE with a reason in diag; -ENOMEM. A reason never repeats what may
 * be a password.
 */
#ifndef DS_STORE_S3_URL_H
#define DS_STORE_S3_URL_H

#include <stdbool.h>

#include "store/store.h"

struct ds_s3_url { /* s3://bucket/prefix */
	char *bucket;
	char *prefix; /* "", or with '/' at its end and none at its start */
};
int ds_s3_url_parse(const char *text, struct ds_s3_url *ret_url, struct ds_diag *reterr_diag);
void ds_s3_url_release(struct ds_s3_url *url);

struct ds_s3_endpoint {
	char *origin; /* "https://bucket.s3.eu-west-1.amazonaws.com": an object's URL up to its path */
	char *host;	 /* as in the header Host: without a default port */
	char *base_path; /* "/" or "/bucket/", not encoded; what a key is appended to */
	bool is_loopback;
};
/* `text` NULL: AWS's own endpoint of the region. */
int ds_s3_endpoint_parse(const char *text, const char *region, const char *bucket,
			 enum ds_store_addressing addressing, bool insecure_http,
			 struct ds_s3_endpoint *ret_endpoint, struct ds_diag *reterr_diag);
void ds_s3_endpoint_release(struct ds_s3_endpoint *endpoint);

/* Whether a region's name may go into a host name and a header: [a-z0-9-], at most 40 bytes. */
bool ds_s3_is_region(const char *region);

#endif
