/*
 * The entry: which subcommand, and what the process needs before any of them.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/commands.h"
#include "util/log.h"
#include "util/mem.h"

/*
 * A closed standard descriptor would be taken by the next open, and then written to by a message. It is held by one
 * that cannot be used that way, so that what is lost is told: reading from input and writing to output fail.
 */
static void hold_standard_descriptors(void)
{
	int fd;

	do
		fd = open("/dev/null", fcntl(STDIN_FILENO, F_GETFD) < 0 ? O_WRONLY : O_RDONLY);
	while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd >= 0)
		close(fd);
}

static int fail_command(const char *name)
{
	char text[200];

	fprintf(stderr, "dsfs: no command '%s' (see 'dsfs help')\n",
		cli_safe(name, strlen(name), text, sizeof(text)));
	return CLI_EXIT_USAGE;
}

static int run_help(int argc, char **argv)
{
	const char *what = argc > 0 ? argv[0] : NULL;

	if (what && strcmp(what, "--man") == 0)
		return cli_help_print_man(argc > 1 ? argv[1] : NULL) < 0 ? fail_command(argv[1])
									 : 0;
	if (what && strcmp(what, "--completion") == 0) {
		cli_help_print_completion();
		return 0;
	}
	if (!what) {
		cli_help_print_overview();
		return 0;
	}
	for (size_t i = 0; cli_commands[i]; i++)
		if (strcmp(cli_commands[i]->name, what) == 0) {
			cli_help_print(cli_commands[i]);
			return 0;
		}
	return fail_command(what);
}

static int flushed(int status)
{
	if (fflush(stdout) != 0 || ferror(stdout)) {
		fprintf(stderr, "dsfs: cannot write to standard output\n");
		return CLI_EXIT_FAILURE;
	}
	return status;
}

static int run_command(const struct cli_command *command, int argc, char **argv)
{
	struct cli_call call = {.command = command};
	const char *cache_dir = getenv("DSFS_CACHE_DIR");
	int r = cli_parse(&call, argc, argv);

	if (r == 1) {
		cli_help_print(command);
		return flushed(CLI_EXIT_OK);
	}
	if (r < 0)
		return cli_fail(&call, r, NULL);
	if (cache_dir && *cache_dir && *cache_dir != '/')
		return cli_fail(&call,
				ds_diag_set(&call.diag, -DS_E_USAGE, cache_dir,
					    "DSFS_CACHE_DIR must be an absolute path"),
				NULL);
	if (cli_has(&call, "verbose"))
		ds_log_set_level(DS_LOG_DEBUG);
	return command->run(&call);
}

int main(int argc, char **argv)
{
	const char *program = argc > 0 ? strrchr(argv[0], '/') : NULL;

	program = program ? program + 1 : argc > 0 ? argv[0] : "dsfs";
	hold_standard_descriptors();
	signal(SIGPIPE, SIG_IGN);
	/* A caller that ignores it would take the statuses of our children away. */
	signal(SIGCHLD, SIG_DFL);
	if (strcmp(program, "mount.dsfs") == 0 || strcmp(program, "mount.fuse.dsfs") == 0)
		return cli_mount_helper(argc, argv);
	if (argc < 2) {
		fprintf(stderr, "dsfs: a command is missing (see 'dsfs help')\n");
		return CLI_EXIT_USAGE;
	}
	if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "version") == 0) {
		puts("dsfs " DS_VERSION);
		return flushed(CLI_EXIT_OK);
	}
	if (strcmp(argv[1], "help") == 0)
		return flushed(run_help(argc - 2, argv + 2));
	if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)
		return flushed(run_help(0, NULL));
	for (size_t i = 0; cli_commands[i]; i++)
		if (strcmp(cli_commands[i]->name, argv[1]) == 0)
			return run_command(cli_commands[i], argc - 2, argv + 2);
	return fail_command(argv[1]);
}
