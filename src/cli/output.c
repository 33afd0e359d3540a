#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "cli/cli.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/mem.h"
#include "util/str.h"

volatile int cli_interrupted;

enum cli_exit cli_exit_of(int code)
{
	switch (code < 0 ? -code : code) {
	case 0:
		return CLI_EXIT_OK;
	case DS_E_USAGE:
	case DS_E_AMBIGUOUS:
		return CLI_EXIT_USAGE;
	case DS_E_NO_REPO:
	case DS_E_NO_VERSION:
	case DS_E_NO_BUCKET:
	case DS_E_CLOSED:
	case DS_E_NOT_MOUNTED:
	case ENOENT:
	case ENOTDIR:
	case EISDIR:
		return CLI_EXIT_NOT_FOUND;
	case DS_E_DENIED:
	case DS_E_AUTH:
	case DS_E_NO_KEYS:
	case EACCES:
	case EPERM:
		return CLI_EXIT_ACCESS;
	case DS_E_THROTTLED:
	case DS_E_SERVER:
	case DS_E_NETWORK:
	case DS_E_TIMEOUT:
	case DS_E_PROTOCOL:
	case DS_E_UNSUPPORTED:
	case DS_E_LATE:
		return CLI_EXIT_STORE;
	case DS_E_CORRUPT:
	case DS_E_MALFORMED:
	case DS_E_LIMIT:
	case DS_E_ABSENT:
	case DS_E_MISMATCH:
		return CLI_EXIT_DAMAGED;
	case DS_E_CONFLICT:
	case DS_E_PRESENT:
	case DS_E_TAKEN:
	case EEXIST:
	case ENOTEMPTY:
		return CLI_EXIT_CONFLICT;
	case DS_E_SOURCE_CHANGED:
	case DS_E_SOURCE_REFUSED:
		return CLI_EXIT_SOURCE;
	case DS_E_TOO_NEW:
	case DS_E_IMPORTED:
		return CLI_EXIT_TOO_NEW;
	case EBUSY:
		return CLI_EXIT_BUSY;
	case DS_E_INTERRUPTED:
	case EINTR:
		return CLI_EXIT_INTERRUPTED;
	default:
		return CLI_EXIT_FAILURE;
	}
}

static int tell_output(int code)
{
	fprintf(stderr, "dsfs: standard output: %s\n", strerror(-code));
	return CLI_EXIT_FAILURE;
}

int cli_output_failed(struct cli_call *call, int code)
{
	if (!call->output_error)
		call->output_error = code;
	return code;
}

int cli_check_output(struct cli_call *call)
{
	return ferror(stdout) ? cli_output_failed(call, errno ? -errno : -EIO) : 0;
}

int cli_fail(struct cli_call *call, int code, const char *what)
{
	enum cli_exit status = cli_exit_of(code);
	char line[1200], text[2100], subject[800], hint[64] = "";

	if (call->output_error)
		return tell_output(call->output_error);
	/* A local path stands for itself. */
	if (!what && call->subject && code != -DS_E_USAGE && call->diag.object[1] != '/')
		what = call->subject;
	call->diag.code = code;
	if (call->error.code == code && code)
		snprintf(line, sizeof(line), "%s", call->error.text);
	else
		ds_diag_format(&call->diag, line, sizeof(line));
	/* A detail that was written for people stands alone where the cause is the user's own words. */
	if (code == -DS_E_USAGE && call->diag.detail[0] && !call->error.code)
		snprintf(line, sizeof(line), "%s%s%s", call->diag.object,
			 call->diag.object[0] ? ": " : "", call->diag.detail);
	if (what && strstr(line, what))
		what = NULL;
	if (what)
		what = cli_safe(what, strlen(what), subject, sizeof(subject));
	if (status == CLI_EXIT_USAGE && call->command && !call->diag.object[0])
		snprintf(hint, sizeof(hint), " (see 'dsfs %s --help')", call->command->name);
	snprintf(text, sizeof(text), "dsfs: %s%s%s%s", what ? what : "", what ? ": " : "", line,
		 hint);
	ds_defuse(text);
	fflush(stdout);
	fprintf(stderr, "%s\n", text);
	if (call->json)
		cli_print_json(json_pack("{s:{s:s, s:i, s:s, s:s*, s:i}}", "error", "name",
					 ds_error_name(code), "exit_status", (int)status, "text",
					 line, "object",
					 call->diag.object[0] ? call->diag.object : NULL,
					 "http_status", call->diag.http_status));
	return (int)status;
}

int cli_finish_output(struct cli_call *call)
{
	if (!call->output_error && fflush(stdout) == 0 && !ferror(stdout))
		return CLI_EXIT_OK;
	return tell_output(cli_output_failed(call, errno ? -errno : -EIO) ? call->output_error
									  : -EIO);
}

void cli_print_json(void *take_json)
{
	json_t *json = take_json;
	char *text;

	if (!json)
		return;
	text = json_dumps(json, JSON_INDENT(2) | JSON_ENCODE_ANY);
	if (text)
		puts(text);
	free(text);
	json_decref(json);
}

/* A file's name as JSON can hold it: the text, or {"hex": ...} where it is not UTF-8. */
void *cli_name_json(const char *name, size_t len)
{
	json_t *json;
	char *hex;

	if (ds_is_utf8(name, len))
		return json_stringn(name, len);
	hex = ds_malloc(2 * len + 1);
	if (!hex)
		return NULL;
	ds_hex_encode(name, len, hex);
	json = json_pack("{s:s}", "hex", hex);
	ds_free(hex);
	return json;
}

void *cli_text_json(const char *text)
{
	return cli_name_json(text, strlen(text));
}

const char *cli_safe(const char *data, size_t len_bytes, char *buf, size_t size)
{
	return ds_escape(data, len_bytes, buf, size);
}

static void on_signal(int number)
{
	if (cli_interrupted && number == SIGINT)
		_exit(CLI_EXIT_INTERRUPTED);
	cli_interrupted = 1;
}

void cli_catch_signals(void)
{
	static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
	struct sigaction action = {.sa_handler = on_signal}, old;

	sigemptyset(&action.sa_mask);
	for (size_t i = 0; i < DS_ARRAY_SIZE(numbers); i++)
		/* What nohup, or a shell for its background, has turned off stays off. */
		if (sigaction(numbers[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
			sigaction(numbers[i], &action, NULL);
}

void cli_progress_start(struct cli_progress *progress, const struct cli_call *call)
{
	struct winsize size = {0};

	*progress = (struct cli_progress){
		.enabled = !call->json && !cli_has(call, "quiet") && isatty(STDERR_FILENO),
		.started_ns = ds_mono_ns(),
		.width = 80,
	};
	if (progress->enabled && ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 20)
		progress->width = size.ws_col;
}

void cli_progress_show(struct cli_progress *progress, const char *phase, uint64_t files_n,
		       uint64_t files_total_n, uint64_t bytes, uint64_t bytes_total)
{
	char line[256], done[32], total[40] = "", rate[32], files[64], left[48] = "";
	const char *what = progress->what ? progress->what : "files";
	uint64_t now = ds_mono_ns();
	double seconds = (double)(now - progress->started_ns) / 1e9;

	if (!progress->enabled || now - progress->last_ns < 100 * DS_NS_PER_MS)
		return;
	progress->last_ns = now;
	if (files_total_n)
		snprintf(files, sizeof(files), "%llu of %llu %s", (unsigned long long)files_n,
			 (unsigned long long)files_total_n, what);
	else
		snprintf(files, sizeof(files), "%llu %s", (unsigned long long)files_n, what);
	if (bytes_total > bytes && bytes && seconds > 1) {
		unsigned long long s = (unsigned long long)((double)(bytes_total - bytes) *
							    seconds / (double)bytes);

		snprintf(left, sizeof(left), ", %llu:%02llu left", s / 60, s % 60);
	}
	if (bytes_total) {
		char size[32];

		snprintf(total, sizeof(total), " of %s",
			 ds_format_size(bytes_total, size, sizeof(size)));
	}
	snprintf(line, sizeof(line), "%s: %s, %s%s, %s/s%s", phase, files,
		 ds_format_size(bytes, done, sizeof(done)), total,
		 ds_format_size(seconds > 0.5 ? (uint64_t)((double)bytes / seconds) : 0, rate,
				sizeof(rate)),
		 left);
	fprintf(stderr, "\r%-*.*s", (int)progress->width - 1, (int)progress->width - 1, line);
	fflush(stderr);
}

void cli_progress_end(struct cli_progress *progress)
{
	if (progress->enabled && progress->last_ns)
		fprintf(stderr, "\r%*s\r", (int)progress->width - 1, "");
}

char *cli_default_cache_dir(void)
{
	const char *base = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
	const char *own = getenv("DSFS_CACHE_DIR");
	struct passwd *entry;

	if (own && own[0] == '/')
		return ds_strdup(own);
	if (geteuid() == 0)
		return ds_strdup("/var/cache/dsfs");
	if (base && base[0] == '/')
		return ds_asprintf("%s/dsfs", base);
	if (!home || home[0] != '/') {
		entry = getpwuid(geteuid());
		home = entry ? entry->pw_dir : NULL;
	}
	return home ? ds_asprintf("%s/.cache/dsfs", home) : NULL;
}
