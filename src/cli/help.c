/*
 * Help, man pages and completion, all from the option tables.
 */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "util/mem.h"

#define HELP_COLUMNS 90

/* Prints text wrapped at HELP_COLUMNS with a left margin; the first line starts at `at`. A newline in the text starts a
 * paragraph; a line that begins with a space is kept as it is. */
static void print_wrapped(const char *text, unsigned margin, unsigned at)
{
	while (*text) {
		size_t len = strcspn(text, " \n");

		if (at > margin && at + 1 + len > HELP_COLUMNS) {
			printf("\n%*s", (int)margin, "");
			at = margin;
		} else if (at > margin) {
			putchar(' ');
			at++;
		}
		printf("%.*s", (int)len, text);
		at += (unsigned)len;
		text += len;
		if (*text == '\n') {
			printf("\n%*s", (int)margin, "");
			at = margin;
		}
		if (*text)
			text++;
	}
	putchar('\n');
}

static void print_option(const struct cli_option *option)
{
	char left[64];
	int n;

	n = snprintf(left, sizeof(left), "  %s%c%s --%s%s%s", option->letter ? "-" : "",
		     option->letter ? option->letter : ' ', option->letter ? "," : "  ",
		     option->name, option->argument ? " " : "",
		     option->argument ? option->argument : "");
	printf("%s", left);
	if (n > 26) {
		putchar('\n');
		n = 0;
	}
	printf("%*s", 28 - n, "");
	print_wrapped(option->help, 28, 28);
}

static void print_options(const struct cli_option *table)
{
	for (; table && table->name; table++)
		print_option(table);
}

/* "=SIZE", or "[=PATH]" for a value that may be left away. */
static int print_mount_value(const struct cli_option *row, const char *before, const char *after)
{
	const char *text = row->argument;

	if (!text)
		return 0;
	if (text[0] == '[')
		return printf("[=%s%s%s", before, text + 1, after);
	return printf("=%s%s%s", before, text, after);
}

static void print_mount_options(const struct cli_option *table)
{
	for (; table->name; table++) {
		int n = printf("  %s", table->name);

		n += print_mount_value(table, "", "");

		if (n > 26) {
			putchar('\n');
			n = 0;
		}
		printf("%*s", 28 - n, "");
		print_wrapped(table->help, 28, 28);
	}
}

void cli_help_print(const struct cli_command *command)
{
	printf("Usage: dsfs %s [OPTION]... %s\n\n", command->name, command->arguments);
	printf("%c", command->summary[0] & ~0x20);
	print_wrapped(command->summary + 1, 1, 1);
	if (command->details) {
		putchar('\n');
		print_wrapped(command->details, 0, 0);
	}
	printf("\nOptions:\n");
	print_options(command->options);
	if (command->takes_json)
		printf("      --json                print JSON\n");
	print_options(cli_common_options);
	if (command->takes_store) {
		printf("\nStore:\n");
		print_options(cli_store_options);
	}
	if (command->mount_options) {
		printf("\nMount options (-o):\n");
		print_mount_options(command->mount_options);
	}
	if (command->examples)
		printf("\nExamples:\n%s", command->examples);
}

void cli_help_print_overview(void)
{
	printf("Usage: dsfs COMMAND [OPTION]... [ARGUMENT]...\n\n"
	       "dsfs mounts immutable, versioned datasets as directories. The bytes live in "
	       "S3-compatible\n"
	       "object storage (s3://bucket/prefix) or in a directory.\n\nCommands:\n");
	for (size_t i = 0; cli_commands[i]; i++)
		printf("  %-13s %s\n", cli_commands[i]->name, cli_commands[i]->summary);
	printf("\n'dsfs COMMAND --help' tells more; 'dsfs --version' prints the version.\n"
	       "REPO[@VERSION]: a version is a number, a tag, a branch, BRANCH:NUMBER, a date, or "
	       "the\n"
	       "first 8 or more digits of an id; without one it is the newest of the default "
	       "branch.\n");
}

/* Text for troff: backslashes, leading dots and quotes, hyphens that are typed. */
static void print_troff(const char *text)
{
	bool line_start = true;

	for (; *text; text++) {
		if (line_start && (*text == '.' || *text == '\''))
			printf("\\&");
		if (*text == '\\')
			printf("\\e");
		else if (*text == '-')
			printf("\\-");
		else
			putchar(*text);
		line_start = *text == '\n';
	}
	putchar('\n');
}

static void print_man_options(const struct cli_option *table)
{
	for (; table && table->name; table++) {
		printf(".TP\n");
		if (table->letter)
			printf("\\fB\\-%c\\fR, ", table->letter);
		printf("\\fB\\-\\-");
		for (const char *at = table->name; *at; at++)
			printf("%s%c", *at == '-' ? "\\" : "", *at);
		printf("\\fR");
		if (table->argument)
			printf(" \\fI%s\\fR", table->argument);
		putchar('\n');
		print_troff(table->help);
	}
}

static void print_man_command(const struct cli_command *command)
{
	printf(".TH DSFS\\-%s 1 \"\" \"dsfs " DS_VERSION "\" \"dsfs\"\n.SH NAME\ndsfs\\-%s \\- ",
	       command->name, command->name);
	print_troff(command->summary);
	printf(".SH SYNOPSIS\n.B dsfs %s\n[\\fIOPTION\\fR]... ", command->name);
	print_troff(command->arguments);
	if (command->details) {
		printf(".SH DESCRIPTION\n");
		for (const char *at = command->details; *at;) {
			size_t len = strcspn(at, "\n");
			_ds_cleanup_free_ char *line = ds_strndup(at, len);

			if (line)
				print_troff(line);
			at += len;
			if (*at) {
				at++;
				printf(".PP\n");
			}
		}
	}
	printf(".SH OPTIONS\n");
	print_man_options(command->options);
	if (command->takes_json)
		printf(".TP\n\\fB\\-\\-json\\fR\nprint JSON\n");
	print_man_options(cli_common_options);
	if (command->takes_store)
		print_man_options(cli_store_options);
	if (command->mount_options) {
		printf(".SH MOUNT OPTIONS\n");
		for (const struct cli_option *row = command->mount_options; row->name; row++) {
			printf(".TP\n\\fB%s\\fR", row->name);
			print_mount_value(row, "\\fI", "\\fR");
			putchar('\n');
			print_troff(row->help);
		}
	}
	if (command->examples) {
		printf(".SH EXAMPLES\n.nf\n");
		print_troff(command->examples);
		printf(".fi\n");
	}
	printf(".SH EXIT STATUS\nSee \\fBdsfs\\fR(1).\n.SH SEE ALSO\n\\fBdsfs\\fR(1)\n");
}

static void print_man_overview(void)
{
	printf(".TH DSFS 1 \"\" \"dsfs " DS_VERSION "\" \"dsfs\"\n.SH NAME\n"
	       "dsfs \\- mounts immutable, versioned datasets as directories\n.SH SYNOPSIS\n"
	       ".B dsfs\n\\fICOMMAND\\fR [\\fIOPTION\\fR]... [\\fIARGUMENT\\fR]...\n.SH "
	       "DESCRIPTION\n");
	print_troff(
		"dsfs keeps versions of a directory in S3-compatible object storage or in a "
		"directory, and mounts any of them. A version never changes; every byte that is "
		"read was checked against a digest that its id vouches for.");
	printf(".SH COMMANDS\n");
	for (size_t i = 0; cli_commands[i]; i++) {
		printf(".TP\n\\fBdsfs %s\\fR\n", cli_commands[i]->name);
		print_troff(cli_commands[i]->summary);
	}
	printf(".SH REPOSITORIES AND VERSIONS\n");
	print_troff(
		"REPO is s3://bucket/prefix, file:///path, or a path. REPO@VERSION names a "
		"version; the last '@' after the last '/' splits it off. VERSION is tried as a "
		"number (entry of the default branch), BRANCH:NUMBER, a tag, a branch, a date or "
		"time as in RFC 3339 (UTC without a zone; a bare date means the end of that day; "
		"the newest version at or before it), and the first 8 or more digits of an id. "
		"Without it the newest version of the default branch is meant.");
	printf(".SH EXIT STATUS\n");
#define CLI_X(name, number, text)        \
	printf(".TP\n.B " #number "\n"); \
	print_troff(text);
	CLI_EXITS(CLI_X)
#undef CLI_X
	printf(".SH ENVIRONMENT\n.TP\n.B AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
	       "AWS_SESSION_TOKEN\ncredentials; otherwise ~/.aws/credentials\n"
	       ".TP\n.B AWS_ENDPOINT_URL, AWS_ENDPOINT_URL_S3, AWS_REGION, "
	       "AWS_DEFAULT_REGION, AWS_PROFILE, AWS_SHARED_CREDENTIALS_FILE, "
	       "AWS_CONFIG_FILE\nas for other S3 tools\n"
	       ".TP\n.B AWS_CA_BUNDLE\na file of the certificates that are trusted for "
	       "https, instead of the system's\n"
	       ".TP\n.B https_proxy, http_proxy, no_proxy\n"
	       "as for curl; what goes to this machine itself never takes a proxy\n"
	       ".TP\n.B DSFS_CACHE_DIR\nthe cache directory, an absolute path\n"
	       ".TP\n.B XDG_CACHE_HOME\nwhere the cache of users other than root lies (~/.cache)\n"
	       ".TP\n.B XDG_RUNTIME_DIR\nwhere the state of their mounts lies\n"
	       ".TP\n.B HOME\nwhat ~ stands for\n"
	       ".TP\n.B TMPDIR\nfor temporary files of verify and fingerprint, and of commit where "
	       "there is no cache directory (/var/tmp)\n"
	       ".SH SEE ALSO\n");
	for (size_t i = 0; cli_commands[i]; i++)
		printf("\\fBdsfs\\-%s\\fR(1),\n", cli_commands[i]->name);
	printf("\\fBmount.dsfs\\fR(8)\n");
}

int cli_help_print_man(const char *command_name)
{
	if (!command_name) {
		print_man_overview();
		return 0;
	}
	for (size_t i = 0; cli_commands[i]; i++)
		if (strcmp(cli_commands[i]->name, command_name) == 0) {
			print_man_command(cli_commands[i]);
			return 0;
		}
	return -DS_E_USAGE;
}

static void print_words(const struct cli_option *table)
{
	for (; table && table->name; table++) {
		printf(" --%s", table->name);
		if (table->letter)
			printf(" -%c", table->letter);
	}
}

static void print_commands(void)
{
	for (size_t i = 0; cli_commands[i]; i++)
		printf("%s%s", i ? " " : "", cli_commands[i]->name);
}

/*
 * File names are left to readline (-o default), which quotes them as they were begun. It also splits words at '=', so
 * that what is behind -o is put together again, and only the part behind its last comma completed.
 */
void cli_help_print_completion(void)
{
	printf("# bash completion for dsfs, made from its option tables\n"
	       "_dsfs()\n{\n"
	       "\tlocal cur=${COMP_WORDS[COMP_CWORD]} words= mount= i=$COMP_CWORD whole last\n"
	       "\tCOMPREPLY=()\n"
	       "\tif [ \"$COMP_CWORD\" -eq 1 ]; then\n"
	       "\t\tmapfile -t COMPREPLY < <(compgen -W 'help version ");
	print_commands();
	printf(" --help --version' -- \"$cur\")\n\t\treturn\n\tfi\n"
	       "\tcase ${COMP_WORDS[1]} in\n"
	       "\thelp) words='");
	print_commands();
	printf(" --man --completion' ;;\n");
	for (size_t i = 0; cli_commands[i]; i++) {
		printf("\t%s) words='", cli_commands[i]->name);
		print_words(cli_commands[i]->options);
		print_words(cli_common_options);
		if (cli_commands[i]->takes_json)
			printf(" --json");
		if (cli_commands[i]->takes_store)
			print_words(cli_store_options);
		printf("' ;;\n");
	}
	printf("\tesac\n");
	for (size_t i = 0; cli_commands[i]; i++)
		if (cli_commands[i]->actions)
			printf("\tif [ \"${COMP_WORDS[1]}\" = %s ] && [ \"$COMP_CWORD\" -eq 2 ] "
			       "&&\n"
			       "\t\t[ \"${cur#-}\" = \"$cur\" ]; then\n"
			       "\t\tmapfile -t COMPREPLY < <(compgen -W '%s' -- \"$cur\")\n"
			       "\t\treturn\n\tfi\n",
			       cli_commands[i]->name, cli_commands[i]->actions);
	for (size_t i = 0; cli_commands[i]; i++) {
		const struct cli_option *row = cli_commands[i]->mount_options;

		if (!row)
			continue;
		printf("\t[ \"${COMP_WORDS[1]}\" = %s ] && mount='", cli_commands[i]->name);
		for (; row->name; row++)
			printf(" %s%s", row->name,
			       row->argument && row->argument[0] != '[' ? "=" : "");
		printf("'\n");
	}
	printf("\twhole=$cur\n"
	       "\twhile [ \"$i\" -gt 2 ] && { [ \"${COMP_WORDS[i]}\" = = ] ||\n"
	       "\t\t[ \"${COMP_WORDS[i - 1]}\" = = ]; }; do\n"
	       "\t\ti=$((i - 1))\n"
	       "\t\twhole=${COMP_WORDS[i]}$whole\n"
	       "\tdone\n"
	       "\tcase ${COMP_WORDS[i - 1]} in\n"
	       "\t-o | --options)\n"
	       "\t\tlast=${whole##*,}\n"
	       "\t\tcase $last in *=*) mount= ;; esac\n"
	       "\t\t[ -n \"$mount\" ] || return\n"
	       "\t\tcompopt -o nospace 2>/dev/null\n"
	       "\t\tmapfile -t COMPREPLY < <(compgen -P \"${cur%%\"$last\"}\" -W \"$mount\" -- "
	       "\"$last\")\n"
	       "\t\treturn ;;\n"
	       "\tesac\n"
	       "\tcase ${COMP_WORDS[1]}:$cur in\n"
	       "\thelp:* | *:-*) mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$cur\") ;;\n"
	       "\tesac\n"
	       "}\n"
	       "complete -o default -F _dsfs dsfs\n");
}
