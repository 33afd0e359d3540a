/*
 * mount.dsfs(8), as libmount calls it (mount(8), "External helpers"):
 *
 *     mount.dsfs SOURCE DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]
 *     mount.dsfs --help | -h | --version | -V        for people
 *
 * Options come after the paths, and -f means fake here; hence a parser of its own (trap T47). The
 * source name is kept as typed, so that a second `mount -a` finds it in mountinfo and does nothing. HOME and PATH may be unset. Exit
 * statuses are mount(8)'s.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/mount_run.h"
#include "util/log.h"

enum {
	MOUNT_OK = 0,
	MOUNT_USAGE = 1,
	MOUNT_SYSTEM = 2,
	MOUNT_BUG = 4,
	MOUNT_USER = 8,
	MOUNT_FAILED = 32
};

struct helper {
	struct cli_call call;
	struct cli_mount_options options;
	const char *source, *mountpoint;
};

#define USAGE "usage: mount.dsfs REPO[@VERSION] MOUNTPOINT [-sfnv] [-N NAMESPACE] [-o OPTIONS]"

/* Alone, as people ask. */
static bool answer(const char *text)
{
	bool is_version = strcmp(text, "-V") == 0 || strcmp(text, "--version") == 0;

	if (!is_version && strcmp(text, "-h") != 0 && strcmp(text, "--help") != 0)
		return false;
	puts(is_version ? "mount.dsfs " DS_VERSION
			: USAGE "\n\n"
				"Mounts a version of a repository, as mount(8) has it done; see "
				"mount.dsfs(8), and 'dsfs "
				"mount --help'\nfor the options.\n\n"
				"  -o OPTIONS    mount options, separated by commas\n"
				"  -f            look at the arguments, and mount nothing\n"
				"  -s            pass over options that are unknown\n"
				"  -v            print more\n"
				"  -n, -N, -t    are taken, and mean nothing here");
	return true;
}

/* Lists of options are read once all flags are known: -s may follow them. */
static int parse_flags(struct helper *helper, const char *text, bool lists, int *i, int argc,
		       char **argv)
{
	for (const char *at = text; *at; at++) {
		const char *value;

		switch (*at) {
		case 'f':
			helper->options.is_fake = true;
			break;
		case 's':
			helper->options.is_sloppy = true;
			break;
		case 'n':
			break;
		case 'v':
			ds_log_set_level(DS_LOG_DEBUG);
			break;
		case 'o':
		case 't':
		case 'N':
			value = at[1] ? at + 1 : *i + 1 < argc ? argv[++*i] : NULL;
			if (!value)
				return ds_diag_set(&helper->call.diag, -DS_E_USAGE, NULL,
						   "-%c needs a value", *at);
			return *at == 'o' && lists
				       ? cli_mount_options_parse(&helper->options, value,
								 &helper->call.diag)
				       : 0;
		default:
			return ds_diag_set(&helper->call.diag, -DS_E_USAGE, NULL,
					   "unknown option '-%c'", *at);
		}
	}
	return 0;
}

static int parse(struct helper *helper, bool lists, int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		int r = 0;

		if (argv[i][0] == '-' && argv[i][1])
			r = parse_flags(helper, argv[i] + 1, lists, &i, argc, argv);
		else if (lists)
			continue;
		else if (!helper->source)
			helper->source = argv[i];
		else if (!helper->mountpoint)
			helper->mountpoint = argv[i];
		else
			r = ds_diag_set(&helper->call.diag, -DS_E_USAGE, argv[i],
					"one argument too many");
		if (r < 0)
			return r;
	}
	if (!helper->mountpoint)
		return ds_diag_set(&helper->call.diag, -DS_E_USAGE, NULL, USAGE);
	return 0;
}

static int status_of(int exit_status)
{
	switch (exit_status) {
	case CLI_EXIT_OK:
		return MOUNT_OK;
	case CLI_EXIT_USAGE:
		return MOUNT_USAGE;
	case CLI_EXIT_INTERRUPTED:
		return MOUNT_USER;
	default:
		return MOUNT_FAILED;
	}
}

int cli_mount_helper(int argc, char **argv)
{
	static const struct cli_command command = {.name = "mount"};
	struct helper helper = {.call = {.command = &command}};
	bool printed = false;
	int r;

	if (argc == 2 && answer(argv[1]))
		return fflush(stdout) == 0 ? MOUNT_OK : MOUNT_SYSTEM;
	cli_mount_options_init(&helper.options);
	helper.options.is_helper = true;
	r = parse(&helper, false, argc, argv);
	if (r == 0)
		r = parse(&helper, true, argc, argv);
	if (r == 0 && !helper.options.is_fake) {
		struct cli_mount_request request = {
			.source = helper.source,
			.mountpoint = helper.mountpoint,
			.options = &helper.options,
		};

		r = cli_mount_run(&helper.call, &request, &printed);
	}
	if (r == -ENOMEM)
		r = MOUNT_SYSTEM;
	else if (r < 0)
		r = status_of(cli_fail(&helper.call, r, NULL));
	else
		r = status_of(r);
	cli_mount_options_release(&helper.options);
	return r;
}
