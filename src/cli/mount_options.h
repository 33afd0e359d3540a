/*
 * The options of a mount, as fstab spells them: "version=v2.1,cache_dir=/nvme,ro,nofail".
 */
#ifndef DS_CLI_MOUNT_OPTIONS_H
#define DS_CLI_MOUNT_OPTIONS_H

#include "cli/cli.h"
#include "fs/fs.h"

/* Two of the largest chunks, stored and raw: less would be no pipeline. */
#define CLI_INFLIGHT_MIN  DS_MIB(16)
#define CLI_READAHEAD_MIN DS_KIB(4)
#define CLI_READAHEAD_MAX DS_MIB(64)

struct cli_mount_options {
	char *version;	      /* NULL: not given */
	char *cache_dir;      /* absolute, as a file for `log` */
	uint64_t cache_bytes; /* 0: default */
	char *endpoint, *region, *profile;
	enum ds_store_addressing addressing;
	bool allow_other, insecure_http;
	bool has_uid, has_gid;
	uint32_t uid, gid;
	uint32_t umask; /* 0: none */
	uint64_t timeout_ms;
	uint64_t inflight_bytes;  /* 0: default */
	uint64_t readahead_bytes; /* 0: default */
	char *warm; /* paths, a colon between them, "\:" for one in a path; "": everything; NULL: nothing */
	char *log; /* "syslog", "stderr", a path; NULL: default */
	bool debug;
	char *flags; /* what libfuse is to tell the kernel, escaped for it; NULL: nothing */
	enum ds_fs_mode mode;
	enum ds_fs_uring uring;
	bool is_remount;
	bool is_helper; /* mount.dsfs: nobody knows in which directory it runs */
	bool is_fake;	/* only mount.dsfs -f */
	bool is_sloppy; /* only mount.dsfs -s: what is unknown is a warning */
};

/* Table for help and man page, in struct cli_option's form (letter unused). */
extern const struct cli_option cli_mount_option_table[];

void cli_mount_options_init(struct cli_mount_options *options);
void cli_mount_options_release(struct cli_mount_options *options);
/* The paths of `warm`, cleaned: a list that ends with NULL, to be freed with cli_paths_free; none for everything. -ENOMEM. */
int cli_mount_warm_paths(const char *warm, char ***ret_paths, size_t *ret_n);
/* Takes one comma-separated list; "\," stands for a comma in a value, and a value in double quotes may hold commas; they go, but for SELinux's contexts. A
 * relative path becomes an absolute one, or is refused to mount.dsfs. May be called several times: later wins. -DS_E_USAGE naming the
 * option; -ENOMEM; an errno if the current directory is not known. */
int cli_mount_options_parse(struct cli_mount_options *options, const char *text,
			    struct ds_diag *reterr_diag);

#endif
