#include "store/store_backend.h"

int ds_store_s3_open(const char *url, const struct ds_store_options *options,
		     struct ds_store **ret_store, struct ds_diag *reterr_diag)
{
	(void)options;
	(void)ret_store;
	return ds_diag_set(reterr_diag, -DS_E_UNSUPPORTED, NULL, "this build has no S3 yet");
}
