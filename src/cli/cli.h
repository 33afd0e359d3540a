/*
 * The command line: what all subcommands share.
 *
 * Each subcommand is a struct cli_command with a table of its options. The tables feed the parser,
 * `--help`, the man pages and the bash completion (`dsfs help --man|--completion`), so that they
 * cannot disagree. Everything here runs on the main thread.
 */
#ifndef DS_CLI_CLI_H
#define DS_CLI_CLI_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dsfs/dsfs.h"
#include "store/store.h"
#include "util/diag.h"

/* Exit statuses, by cause; documented in the README and in dsfs(1). X(name, number, text) */
#define CLI_EXITS(X)                                                                  \
	X(OK, 0, "success")                                                           \
	X(FAILURE, 1, "any other failure: the disk, memory, a bug")                   \
	X(USAGE, 2, "wrong usage: unknown option, bad value, bad URL")                \
	X(NOT_FOUND, 3, "no such repository, bucket, version, path or mount point")   \
	X(ACCESS, 4, "credentials missing or refused, or access denied")              \
	X(STORE, 5, "the store cannot be reached, fails, or answers too late")        \
	X(DAMAGED, 6, "damaged or hostile data; verify found something")              \
	X(CONFLICT, 7,                                                                \
	  "somebody else was first: branch moved (--parent), name taken; or the "     \
	  "directory for the cache holds what is not dsfs's")                         \
	X(SOURCE, 8,                                                                  \
	  "the source cannot be committed as it is: special, unreadable or changing " \
	  "files")                                                                    \
	X(TOO_NEW, 9, "the repository needs a newer dsfs")                            \
	X(BUSY, 10, "the mount is in use")                                            \
	X(DIFFERENT, 11, "diff --exit-code: the versions differ")                     \
	X(INTERRUPTED, 130, "interrupted by a signal")

enum cli_exit {
#define CLI_X(name, number, text) CLI_EXIT_##name = number,
	CLI_EXITS(CLI_X)
#undef CLI_X
};

struct cli_option {
	char letter;	      /* 0: no short form */
	const char *name;     /* without dashes */
	const char *argument; /* NULL: a flag */
	const char *help;     /* one or two sentences without a full stop at the end */
	bool repeats;
};

#define CLI_OPTIONS_MAX 48
#define CLI_ARGS_MAX	UINT_MAX /* as args_max: as many as the caller gives */

struct cli_call;

struct cli_command {
	const char *name;
	const char *arguments;		  /* for the synopsis: "SOURCE REPO" */
	const char *actions;		  /* the words that the first argument may be; NULL: any */
	const char *summary;		  /* one line, lower case, no full stop */
	const char *details;		  /* paragraphs for the man page and --help; may be NULL */
	const char *examples;		  /* lines, each a command; may be NULL */
	const struct cli_option *options; /* ends with name NULL; may be NULL */
	const struct cli_option *mount_options; /* what -o takes, for the help; may be NULL */
	bool takes_store;			/* also --endpoint and the like */
	bool takes_json;
	unsigned args_min, args_max;
	int (*run)(struct cli_call *call); /* returns an exit status */
};

struct cli_call {
	const struct cli_command *command;
	char **args; /* at the beginning of what was parsed */
	size_t args_n;
	bool json;
	const char *subject; /* the repository as typed: named in errors that do not */
	struct {
		const struct cli_option *option;
		const char *text; /* NULL for flags */
	} values[CLI_OPTIONS_MAX * 4];
	size_t values_n;
	struct ds_diag diag;	 /* what the command passes down to the layers */
	struct dsfs_error error; /* and to libdsfs; a whole line already */
	int output_error;	 /* standard output failed: a negative errno */
};

extern const struct cli_command *const cli_commands[]; /* ends with NULL */
extern const struct cli_option cli_store_options[];
extern const struct cli_option cli_common_options[];

/* Parses argv behind the subcommand's name, and moves the arguments to its beginning, where they stay. 0, or -DS_E_USAGE with the message in diag; 1: --help was asked for. */
int cli_parse(struct cli_call *call, int argc, char **argv);
bool cli_has(const struct cli_call *call, const char *name);
/* Last value given, or NULL. */
const char *cli_text(const struct cli_call *call, const char *name);
/* The i-th value of a repeated option, or NULL. */
const char *cli_text_at(const struct cli_call *call, const char *name, size_t i);
/* Numbers; `otherwise` if the option was not given. -DS_E_USAGE with a message naming option and value. */
int cli_number(struct cli_call *call, const char *name, uint64_t otherwise, uint64_t min,
	       uint64_t max, uint64_t *ret_value);
int cli_size(struct cli_call *call, const char *name, uint64_t otherwise, uint64_t *ret_bytes);
/* Store options from the call. */
int cli_store_of(struct cli_call *call, struct ds_store_options *ret_options);

/* For ds_store_options.waits; ctx is not used. */
void cli_tell_waits(void *ctx, const char *why, uint64_t left_ms);

/* Prints the error to stderr as one line (with --json also an object on stdout) and gives the exit status. */
int cli_fail(struct cli_call *call, int code, const char *what);
/* The one place where codes become exit statuses. */
enum cli_exit cli_exit_of(int code);
/* For who prints within a callback: 0, or a code that ends the walk if stdout fails; cli_fail then blames it and nothing else. */
int cli_check_output(struct cli_call *call);
/* A write to standard output failed with this code, which is returned. */
int cli_output_failed(struct cli_call *call, int code);
/* 0, or the exit status if stdout could not be written to the end. Call last. */
int cli_finish_output(struct cli_call *call);

/* Help in its forms, all from the tables. */
void cli_help_print(const struct cli_command *command);
void cli_help_print_overview(void);
int cli_help_print_man(const char *command_name); /* NULL: dsfs(1) */
void cli_help_print_completion(void);

/* A number and its noun, for "%" PRIu64 " %s". */
#define CLI_COUNT(n, noun) (n), (n) == 1 ? noun : noun "s"

/* Prints a json_t (takes it) as one document on stdout. */
void cli_print_json(void *take_json);
/* A file's name as a json_t: the text, or {"hex": ...} where it is not UTF-8. NULL without memory. */
void *cli_name_json(const char *name, size_t len_bytes);
void *cli_text_json(const char *text);
/* Text that may hold anything, on one line of a terminal. */
const char *cli_safe(const char *data, size_t len_bytes, char *buf, size_t size);

/* Set by SIGINT, SIGTERM and SIGHUP once cli_catch_signals was called, but not by those that were ignored then (nohup); a second
 * SIGINT ends the process. */
extern volatile int cli_interrupted;
void cli_catch_signals(void);

/* Progress on a terminal (stderr); nothing when it is not one, or with -q or --json. */
struct cli_progress {
	bool enabled;
	uint64_t started_ns, last_ns;
	unsigned width;
	const char *what; /* is counted; NULL: files */
};
void cli_progress_start(struct cli_progress *progress, const struct cli_call *call);
/* totals of 0: unknown. */
void cli_progress_show(struct cli_progress *progress, const char *phase, uint64_t files_n,
		       uint64_t files_total_n, uint64_t bytes, uint64_t bytes_total);
void cli_progress_end(struct cli_progress *progress);

/* Default cache directory: $DSFS_CACHE_DIR, else /var/cache/dsfs for root, else $XDG_CACHE_HOME/dsfs or
 * ~/.cache/dsfs. New string. */
char *cli_default_cache_dir(void);

#endif
