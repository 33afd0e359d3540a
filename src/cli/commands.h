/*
 * The subcommands, one struct each.
 */
#ifndef DS_CLI_COMMANDS_H
#define DS_CLI_COMMANDS_H

#include "cli/cli.h"

extern const struct cli_command cli_command_init;
extern const struct cli_command cli_command_commit;
extern const struct cli_command cli_command_mount;
extern const struct cli_command cli_command_umount;
extern const struct cli_command cli_command_log;
extern const struct cli_command cli_command_refs;
extern const struct cli_command cli_command_ls;
extern const struct cli_command cli_command_cat;
extern const struct cli_command cli_command_export;
extern const struct cli_command cli_command_tag;
extern const struct cli_command cli_command_diff;
extern const struct cli_command cli_command_fingerprint;
extern const struct cli_command cli_command_verify;
extern const struct cli_command cli_command_warm;
extern const struct cli_command cli_command_cache;
extern const struct cli_command cli_command_doctor;

/* mount.dsfs(8): as libmount calls it. Returns an exit status of mount(8). */
int cli_mount_helper(int argc, char **argv);

#endif
