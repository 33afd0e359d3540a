/*
 * The log: one sink for the process. Lower layers return errors and do not log; fs and cli log each
 * once. Never give it a credential or a signed URL.
 *
 * Threads: any, after ds_log_init. A line is one write. More than 10 lines in a second (the debug
 * level excepted) are counted instead of written, and the count follows when the second is over.
 * A sink that fails (full disk, closed stderr) loses lines, nothing else.
 */
#ifndef DS_UTIL_LOG_H
#define DS_UTIL_LOG_H

#include <stdint.h>

enum ds_log_level { DS_LOG_ERROR, DS_LOG_WARNING, DS_LOG_INFO, DS_LOG_DEBUG };

/* Where lines go: "stderr" (with the prefix "dsfs: "), "syslog", or a file's path (appended, created
 * 0600; each line with time and level). Until the first call: stderr, level info. May be called
 * again, e.g. after going to the background. A negated errno if the file cannot be opened; the old
 * sink stays then. */
int ds_log_init(const char *sink, enum ds_log_level level);
/* The next line opens a file sink anew (after a rotation); nothing for other sinks. Async-signal-safe. */
void ds_log_reopen(void);
void ds_log_set_level(enum ds_log_level level);
enum ds_log_level ds_log_get_level(void);

void ds_log(enum ds_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define ds_log_error(...)   ds_log(DS_LOG_ERROR, __VA_ARGS__)
#define ds_log_warning(...) ds_log(DS_LOG_WARNING, __VA_ARGS__)
#define ds_log_info(...)    ds_log(DS_LOG_INFO, __VA_ARGS__)
#define ds_log_debug(...)   ds_log(DS_LOG_DEBUG, __VA_ARGS__)

/* Lines that the limit has swallowed since the start. */
uint64_t ds_log_suppressed_n(void);

#endif
