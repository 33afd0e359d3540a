/*
 * The only global state of dsfs besides the signal flag.
 *
 * INV-1  A line reaches the sink in one write, so that lines of threads and processes do not mix.
 * INV-2  At most LINES_PER_S_MAX lines a second above the debug level; what is left out is counted.
 */
#include "util/log.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <syslog.h>
#include <unistd.h>

#include "util/clock.h"
#include "util/mem.h"

#define LINES_PER_S_MAX 10

enum sink_kind { SINK_STDERR, SINK_SYSLOG, SINK_FILE };

static struct {
	pthread_mutex_t mutex;
	struct {
		enum sink_kind kind;
		int fd;
		char *path;
		uint64_t second;
		unsigned lines_n;
		unsigned left_out_n;
		uint64_t left_out_total_n;
	} locked;
	_Atomic int level;
	_Atomic bool wants_reopen;
} sink = {
	.mutex = PTHREAD_MUTEX_INITIALIZER,
	.locked = {.kind = SINK_STDERR, .fd = STDERR_FILENO},
	.level = DS_LOG_INFO,
};

static const char *const level_names[] = {"error", "warning", "info", "debug"};
static const int level_priorities[] = {LOG_ERR, LOG_WARNING, LOG_INFO, LOG_DEBUG};

static int open_file(const char *path)
{
	int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK,
		      0600);

	return fd < 0 ? -errno : fd;
}

int ds_log_init(const char *to, enum ds_log_level level)
{
	enum sink_kind kind = SINK_FILE;
	char *path = NULL;
	int fd = -1;

	if (strcmp(to, "stderr") == 0) {
		kind = SINK_STDERR;
		fd = STDERR_FILENO;
	} else if (strcmp(to, "syslog") == 0) {
		kind = SINK_SYSLOG;
		openlog("dsfs", LOG_PID | LOG_NDELAY, LOG_DAEMON);
	} else {
		path = ds_strdup(to);
		if (!path)
			return -ENOMEM;
		fd = open_file(to);
		if (fd < 0) {
			ds_free(path);
			return fd;
		}
	}
	pthread_mutex_lock(&sink.mutex);
	if (sink.locked.kind == SINK_FILE)
		close(sink.locked.fd);
	ds_free(sink.locked.path);
	sink.locked.kind = kind;
	sink.locked.fd = fd;
	sink.locked.path = path;
	pthread_mutex_unlock(&sink.mutex);
	ds_log_set_level(level);
	return 0;
}

void ds_log_reopen(void)
{
	sink.wants_reopen = true;
}

static void reopen_locked(void)
{
	int fd;

	if (sink.locked.kind != SINK_FILE)
		return;
	fd = open_file(sink.locked.path);
	if (fd >= 0) {
		close(sink.locked.fd);
		sink.locked.fd = fd;
	}
}

void ds_log_set_level(enum ds_log_level level)
{
	sink.level = (int)level;
}

enum ds_log_level ds_log_get_level(void)
{
	return (enum ds_log_level)sink.level;
}

static void write_line_locked(enum ds_log_level level, const char *text)
{
	char line[2048], when[DS_TIME_TEXT_MAX];
	int n;

	if (sink.locked.kind == SINK_SYSLOG) {
		syslog(level_priorities[level], "%s", text);
		return;
	}
	if (sink.locked.kind == SINK_STDERR)
		n = snprintf(line, sizeof(line), "dsfs: %s%s%s\n",
			     level == DS_LOG_INFO ? "" : level_names[level],
			     level == DS_LOG_INFO ? "" : ": ", text);
	else
		n = snprintf(line, sizeof(line), "%s %d %s: %s\n",
			     ds_time_format(ds_real_now(), when), (int)getpid(), level_names[level],
			     text);
	if (n >= (int)sizeof(line)) {
		n = (int)sizeof(line) - 1;
		line[n - 1] = '\n';
	}
	/* INV-1; a lost line is not worth an error. */
	if (write(sink.locked.fd, line, (size_t)n) < 0)
		return;
}

/* INV-2. */
static int may_write_locked(void)
{
	uint64_t second = ds_mono_ns() / DS_NS_PER_S;

	if (second != sink.locked.second) {
		unsigned left_out_n = sink.locked.left_out_n;

		sink.locked.second = second;
		sink.locked.lines_n = 0;
		sink.locked.left_out_n = 0;
		if (left_out_n) {
			char text[64];

			snprintf(text, sizeof(text), "%u more lines left out", left_out_n);
			write_line_locked(DS_LOG_WARNING, text);
		}
	}
	if (sink.locked.lines_n < LINES_PER_S_MAX) {
		sink.locked.lines_n++;
		return 1;
	}
	sink.locked.left_out_n++;
	sink.locked.left_out_total_n++;
	return 0;
}

void ds_log(enum ds_log_level level, const char *format, ...)
{
	int saved_errno = errno;
	char text[1800];
	va_list ap;

	if ((int)level > sink.level)
		return;
	va_start(ap, format);
	vsnprintf(text, sizeof(text), format, ap);
	va_end(ap);
	for (char *at = text; *at; at++)
		if ((unsigned char)*at < 0x20)
			*at = ' ';
	pthread_mutex_lock(&sink.mutex);
	if (atomic_exchange(&sink.wants_reopen, false))
		reopen_locked();
	if (level == DS_LOG_DEBUG || may_write_locked())
		write_line_locked(level, text);
	pthread_mutex_unlock(&sink.mutex);
	errno = saved_errno;
}

uint64_t ds_log_suppressed_n(void)
{
	uint64_t n;

	pthread_mutex_lock(&sink.mutex);
	n = sink.locked.left_out_total_n;
	pthread_mutex_unlock(&sink.mutex);
	return n;
}
