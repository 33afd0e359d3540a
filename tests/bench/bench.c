#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <openssl/evp.h>

#include "bench.h"
#include "util/file.h"

void bench_die(const char *format, ...)
{
	int number = errno;
	va_list ap;

	fprintf(stderr, "%s: ", program_invocation_short_name);
	va_start(ap, format);
	vfprintf(stderr, format, ap);
	va_end(ap);
	if (number)
		fprintf(stderr, ": %s", strerror(number));
	fputc('\n', stderr);
	exit(1);
}

static double seconds(struct timeval time)
{
	return (double)time.tv_sec + (double)time.tv_usec / 1e6;
}

double bench_cpu_s(void)
{
	struct rusage self, children;

	getrusage(RUSAGE_SELF, &self);
	getrusage(RUSAGE_CHILDREN, &children);
	return seconds(self.ru_utime) + seconds(self.ru_stime) + seconds(children.ru_utime) +
	       seconds(children.ru_stime);
}

void bench_write(int fd, const void *data, size_t len_bytes, uint64_t off)
{
	int r = ds_pwrite_full(fd, data, len_bytes, off);

	if (r < 0) {
		errno = -r;
		bench_die("write");
	}
}

void *bench_shared(size_t len_bytes)
{
	void *p = mmap(NULL, len_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		bench_die("%zu bytes of memory", len_bytes);
	return p;
}

uint64_t bench_number(const char *text, uint64_t max)
{
	char *end;
	uint64_t value;

	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno || end == text || *end || *text == '-' || value > max)
		bench_die("not a number of at most %llu: '%s'", (unsigned long long)max, text);
	return value;
}

void bench_list(const char *list_path, struct bench_file **ret_files, size_t *ret_n)
{
	FILE *list = fopen(list_path, "re");
	struct bench_file *files = NULL;
	size_t n = 0, room = 0, size = 0;
	char *line = NULL;
	ssize_t len;

	if (!list)
		bench_die("%s", list_path);
	while ((len = getline(&line, &size, list)) > 0) {
		unsigned long long file_size, off;
		int at = 0;

		if (line[len - 1] == '\n')
			line[len - 1] = '\0';
		errno = 0;
		if (sscanf(line, "%llu %llu %n", &file_size, &off, &at) < 2 || !at || !line[at])
			bench_die("%s: line %zu", list_path, n + 1);
		if (n == room) {
			room = room ? room * 2 : 1024;
			files = realloc(files, room * sizeof(*files));
		}
		if (!files)
			bench_die("memory");
		files[n] = (struct bench_file){file_size, off, strdup(line + at)};
		if (!files[n++].path)
			bench_die("memory");
	}
	free(line);
	fclose(list);
	errno = 0;
	if (n == 0)
		bench_die("%s: no files", list_path);
	*ret_files = files;
	*ret_n = n;
}

void bench_list_free(struct bench_file *files, size_t n)
{
	for (size_t i = 0; i < n; i++)
		free(files[i].path);
	free(files);
}

void bench_sum_digest(const void *data, size_t len_bytes, struct bench_sum *ret_sum)
{
	if (EVP_Digest(data, len_bytes, ret_sum->bytes, NULL, EVP_sha256(), NULL) != 1)
		bench_die("SHA-256");
}

void bench_sum_add(struct bench_sum *sum, const struct bench_sum *other)
{
	for (size_t i = 0; i < sizeof(sum->bytes); i++)
		sum->bytes[i] ^= other->bytes[i];
}

const char *bench_sum_format(const struct bench_sum *sum, char *text)
{
	for (size_t i = 0; i < sizeof(sum->bytes); i++)
		sprintf(text + 2 * i, "%02x", sum->bytes[i]);
	return text;
}
