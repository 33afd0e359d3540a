/*
 * "REPO[@VERSION]" as people type it: the last '@' after the last '/' splits off the version. Pure text; any thread.
 */
#ifndef DS_REPO_LOCATOR_H
#define DS_REPO_LOCATOR_H

#include "util/diag.h"

struct ds_locator {
	char *url;	/* as ds_store_open takes it; a relative path stays relative */
	char *selector; /* NULL: none given */
};

/* -DS_E_USAGE (empty repository, empty version after '@', control characters), -ENOMEM. */
int ds_locator_parse(const char *text, struct ds_locator *ret_locator, struct ds_diag *reterr_diag);
void ds_locator_release(struct ds_locator *locator);

#endif
