/*
 * Keys, region and endpoint from where AWS's own tools have them: the environment, then the files
 * ~/.aws/credentials and ~/.aws/config (format: "Shared config and credentials files" of the AWS
 * SDKs and Tools reference guide). Static keys and session tokens only.
 *
 * Threads: one at a time. Reads files, blocks on nothing else. Nothing of a secret goes into diag.
 */
#ifndef DS_STORE_S3_CREDENTIALS_H
#define DS_STORE_S3_CREDENTIALS_H

#include <stdbool.h>

#include "store/s3_sign.h"
#include "util/diag.h"

struct ds_s3_config {
	struct ds_s3_credentials credentials;
	char *region;	  /* NULL: nothing said */
	char *endpoint;	  /* NULL: nothing said */
	char *addressing; /* the profile's s3.addressing_style; NULL: nothing said */
	/* where the keys came from */
	bool is_from_environment;
	bool is_named; /* the profile, by the caller */
	char *profile, *credentials_path, *config_path;
};

/* profile NULL: AWS_PROFILE, then "default"; otherwise keys in the environment do not count.
 * -DS_E_NO_KEYS: there are no usable keys, with the reason; -ENOMEM. */
int ds_s3_config_load(const char *profile, struct ds_s3_config *ret_config,
		      struct ds_diag *reterr_diag);
void ds_s3_config_release(struct ds_s3_config *config);

/* Reads the files again. True if there are usable keys that differ from those we had, which are
 * replaced then. Keys from the environment never change. */
bool ds_s3_config_reload(struct ds_s3_config *config);

/*
 * The parser, public for tests and fuzzing: calls on_value for each `key = value` with the section's
 * name as it stands in brackets ("profile x"), key in lower case, value trimmed. `text` is changed
 * and ends with NUL. A setting that is nested (indented below an empty value) has the key "s3.name".
 * What makes no sense is passed over.
 */
void ds_s3_ini_parse(char *text,
		     void (*on_value)(void *ctx, const char *section, const char *key,
				      const char *value),
		     void *ctx);

#endif
