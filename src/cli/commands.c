/*
 * The list of subcommands, in the order of the help.
 */
#include "cli/commands.h"

const struct cli_command *const cli_commands[] = {
	&cli_command_init,
	&cli_command_commit,
	&cli_command_mount,
	&cli_command_umount,
	&cli_command_log,
	&cli_command_refs,
	&cli_command_ls,
	&cli_command_cat,
	&cli_command_export,
	&cli_command_tag,
	&cli_command_diff,
	&cli_command_fingerprint,
	&cli_command_verify,
	&cli_command_cache,
	&cli_command_warm,
	&cli_command_doctor,
	NULL,
};
