/*
 * What the programs of the benchmark share. A failure of any of these ends the program with a
 * message and status 1: a measurement that went wrong is none.
 */
#ifndef DS_BENCH_H
#define DS_BENCH_H

#include <stddef.h>
#include <stdint.h>

/* Prints "PROGRAM: text: errno's text" (the last part only where errno is set) and ends. */
void bench_die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

/* CPU seconds, user and system, of this process and of the children that it waited for. */
double bench_cpu_s(void);

/* Zeros, shared with children. Never freed. */
void *bench_shared(size_t len_bytes);

/* All of it at an offset, or it ends the program. */
void bench_write(int fd, const void *data, size_t len_bytes, uint64_t off);

/* A whole number of at most `max`. */
uint64_t bench_number(const char *text, uint64_t max);

/*
 * A list of files, one a line: "SIZE OFFSET PATH", where the file's bytes are those from OFFSET on of
 * another file; the driver writes it. Paths are relative.
 */
struct bench_file {
	uint64_t size;
	uint64_t off;
	char *path;
};

void bench_list(const char *list_path, struct bench_file **ret_files, size_t *ret_n);
void bench_list_free(struct bench_file *files, size_t n);

/* Takes `data` into a sum in which the order of the calls does not count: the XOR of SHA-256. */
struct bench_sum {
	uint8_t bytes[32];
};

void bench_sum_digest(const void *data, size_t len_bytes, struct bench_sum *ret_sum);
void bench_sum_add(struct bench_sum *sum, const struct bench_sum *other);
/* Room for 65 bytes. Returns text. */
const char *bench_sum_format(const struct bench_sum *sum, char *text);

#endif
