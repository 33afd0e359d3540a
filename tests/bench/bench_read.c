/*
 * Reads as training does, and prints what it took as one line of JSON.
 *
 *	bench_read [OPTION]... epoch ROOT LIST	each file once, shuffled: open, read whole, close
 *	bench_read [OPTION]... stat ROOT LIST	lstat of each, shuffled
 *	bench_read [OPTION]... seq FILE		blocks in order, through one open descriptor
 *	bench_read [OPTION]... random FILE	blocks at random
 *
 *	-n N	readers (1), each a process, as the workers of a data loader are
 *	-s N	seed of the order (1)
 *	-t N	stop after so many seconds
 *	-c N	so many operations (each file or block once; `random` wants it)
 *	-b N	bytes of a block (1 MiB; random: 4096)
 *	-p N	passes; all but the first are measured, as their mean (1: that one is)
 *	-m	blocks are copied out of a shared mapping instead of read
 *	-e	seq, random: before each pass the page cache is asked to forget the file, not what serves it
 *	-f	epoch: fstat after open
 *	-d	print the XOR of the SHA-256 of all that was read; it costs time
 *
 * Readers take the next operation of one shared order. Every latency is kept: percentiles are exact.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"
#include "util/clock.h"
#include "util/random.h"

#define READERS_MAX 256u
#define BUFFER_MIN  (1u << 20)

struct reader {
	struct bench_sum sum;
	uint64_t bytes;
	uint64_t ops_n;
	uint64_t end_ns; /* when its last operation was done */
} __attribute__((aligned(128)));

struct shared {
	_Alignas(128) atomic_ulong next;
	_Alignas(128) atomic_uint ready_n;
	atomic_bool go;
	_Alignas(128) struct reader readers[READERS_MAX];
	uint32_t latency_ns[]; /* of each operation, cut at 4 s; 0 was not done */
};

static struct {
	enum { EPOCH, STAT, SEQ, RANDOM } what;
	const char *path;
	const char *list;
	uint64_t readers_n, seed, seconds, count, block, passes;
	bool is_mapped, is_forgotten, with_fstat, with_sum;
} options = {.readers_n = 1, .seed = 1, .passes = 1};

static struct bench_file *files;
static uint32_t *order;
static uint64_t ops_n, deadline_ns = DS_DEADLINE_NONE;
static int fd; /* of the root or of the file */
static uint64_t file_size;
static const char *mapping;
static struct shared *shared;

static char *buffer;
static size_t buffer_size;

static size_t read_whole(const char *path)
{
	int file = openat(fd, path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	size_t at = 0;
	ssize_t n;

	if (file < 0)
		bench_die("%s", path);
	if (options.with_fstat && fstat(file, &st) < 0)
		bench_die("fstat: %s", path);
	while ((n = read(file, buffer + at, buffer_size - at)) > 0) {
		at += (size_t)n;
		if (at == buffer_size) {
			buffer_size *= 2;
			buffer = realloc(buffer, buffer_size);
			if (!buffer)
				bench_die("memory");
		}
	}
	if (n < 0)
		bench_die("read: %s", path);
	close(file);
	return at;
}

static size_t stat_one(const char *path)
{
	struct stat st;

	if (fstatat(fd, path, &st, AT_SYMLINK_NOFOLLOW) < 0)
		bench_die("%s", path);
	return 0;
}

static size_t read_block(uint64_t op)
{
	uint64_t blocks_n = (file_size + options.block - 1) / options.block;
	struct ds_prng prng = {.state = options.seed * 0x10001 + op};
	uint64_t off = (options.what == RANDOM ? ds_prng_below(&prng, blocks_n) : op % blocks_n) *
		       options.block;
	size_t wanted = off + options.block > file_size ? file_size - off : options.block;

	if (options.is_mapped) {
		memcpy(buffer, mapping + off, wanted);
		return wanted;
	}
	for (size_t at = 0; at < wanted;) {
		ssize_t n = pread(fd, buffer + at, wanted - at, (off_t)(off + at));

		if (n <= 0)
			bench_die("%s: read at %llu", options.path, (unsigned long long)off);
		at += (size_t)n;
	}
	return wanted;
}

static size_t operate(uint64_t op)
{
	switch (options.what) {
	case EPOCH:
		return read_whole(files[order[op]].path);
	case STAT:
		return stat_one(files[order[op]].path);
	default:
		return read_block(op);
	}
}

static void run_reader(struct reader *reader)
{
	struct bench_sum sum;
	uint64_t op, start_ns, end_ns;

	atomic_fetch_add(&shared->ready_n, 1);
	while (!atomic_load(&shared->go))
		usleep(100);
	end_ns = ds_mono_ns();
	while (end_ns < deadline_ns && (op = atomic_fetch_add(&shared->next, 1)) < ops_n) {
		size_t n;

		start_ns = ds_mono_ns();
		n = operate(op);
		end_ns = ds_mono_ns();
		reader->bytes += n;
		reader->ops_n++;
		shared->latency_ns[op] = end_ns - start_ns > UINT32_MAX
						 ? UINT32_MAX
						 : (uint32_t)(end_ns - start_ns + 1);
		if (options.with_sum) {
			bench_sum_digest(buffer, n, &sum);
			bench_sum_add(&reader->sum, &sum);
		}
	}
	reader->end_ns = end_ns;
}

static void start_reader(struct reader *reader)
{
	pid_t pid = fork();

	if (pid < 0)
		bench_die("fork");
	if (pid)
		return;
	run_reader(reader);
	_exit(0);
}

/* One pass with all readers; returns its seconds, from the word go to the last operation's end. */
static double run_pass(void)
{
	uint64_t start_ns, end_ns = 0;
	int status, failed = 0;

	memset(shared, 0, sizeof(*shared));
	for (uint64_t i = 0; i < options.readers_n; i++)
		start_reader(&shared->readers[i]);
	while (atomic_load(&shared->ready_n) < options.readers_n)
		usleep(100);
	start_ns = ds_mono_ns();
	if (options.seconds)
		deadline_ns = start_ns + options.seconds * DS_NS_PER_S;
	atomic_store(&shared->go, true);
	for (uint64_t i = 0; i < options.readers_n; i++)
		if (wait(&status) < 0 || status)
			failed = 1;
	errno = 0;
	if (failed)
		bench_die("a reader has failed");
	for (uint64_t i = 0; i < options.readers_n; i++)
		if (shared->readers[i].end_ns > end_ns)
			end_ns = shared->readers[i].end_ns;
	return (double)(end_ns - start_ns) / DS_NS_PER_S;
}

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static void print(double seconds, double cpu_s)
{
	struct bench_sum sum = {0};
	uint64_t bytes = 0, done_n = 0, kept_n = 0;
	char text[65];

	for (uint64_t i = 0; i < options.readers_n; i++) {
		bytes += shared->readers[i].bytes;
		done_n += shared->readers[i].ops_n;
		bench_sum_add(&sum, &shared->readers[i].sum);
	}
	for (uint64_t op = 0; op < ops_n; op++)
		if (shared->latency_ns[op])
			shared->latency_ns[kept_n++] = shared->latency_ns[op];
	qsort(shared->latency_ns, kept_n, sizeof(*shared->latency_ns), compare);
	printf("{\"ops\": %llu, \"bytes\": %llu, \"seconds\": %.6f, \"ops_per_s\": %.1f, "
	       "\"bytes_per_s\": %.0f, \"cpu_s\": %.3f",
	       (unsigned long long)done_n, (unsigned long long)bytes, seconds,
	       (double)done_n / seconds, (double)bytes / seconds, cpu_s);
	if (kept_n)
		printf(", \"us\": {\"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f, \"max\": %.1f}",
		       shared->latency_ns[kept_n / 2] / 1e3,
		       shared->latency_ns[kept_n * 9 / 10] / 1e3,
		       shared->latency_ns[kept_n * 99 / 100] / 1e3,
		       shared->latency_ns[kept_n - 1] / 1e3);
	if (options.with_sum)
		printf(", \"sum\": \"%s\"", bench_sum_format(&sum, text));
	printf("}\n");
}

static void shuffle(size_t n)
{
	struct ds_prng prng = {.state = options.seed};

	order = calloc(n, sizeof(*order));
	if (!order)
		bench_die("memory");
	for (size_t i = 0; i < n; i++)
		order[i] = (uint32_t)i;
	for (size_t i = n - 1; i > 0; i--) {
		size_t k = ds_prng_below(&prng, i + 1);
		uint32_t other = order[i];

		order[i] = order[k];
		order[k] = other;
	}
}

static void open_file(void)
{
	struct stat st;

	fd = open(options.path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0)
		bench_die("%s", options.path);
	file_size = (uint64_t)st.st_size;
	if (!options.block)
		options.block = options.what == RANDOM ? 4096 : 1u << 20;
	ops_n = (file_size + options.block - 1) / options.block;
	if (ops_n == 0)
		bench_die("%s: empty", options.path);
	if (!options.is_mapped)
		return;
	mapping = mmap(NULL, file_size, PROT_READ, MAP_SHARED, fd, 0);
	if (mapping == MAP_FAILED)
		bench_die("mmap: %s", options.path);
}

static void open_tree(void)
{
	size_t n;

	fd = open(options.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		bench_die("%s", options.path);
	bench_list(options.list, &files, &n);
	shuffle(n);
	ops_n = n;
}

static void usage(void)
{
	fprintf(stderr, "usage: bench_read [-n READERS] [-s SEED] [-t SECONDS] [-c COUNT] "
			"[-b BLOCK] [-p PASSES] [-m] [-e] [-f] [-d]\n"
			"                  epoch|stat ROOT LIST | seq|random FILE\n");
	exit(2);
}

static void parse(int argc, char **argv)
{
	static const char *const names[] = {"epoch", "stat", "seq", "random"};
	unsigned what = 0;
	int opt;

	while ((opt = getopt(argc, argv, "n:s:t:c:b:p:mefd")) != -1) {
		switch (opt) {
		case 'n':
			options.readers_n = bench_number(optarg, READERS_MAX);
			break;
		case 's':
			options.seed = bench_number(optarg, UINT32_MAX);
			break;
		case 't':
			options.seconds = bench_number(optarg, 86400);
			break;
		case 'c':
			options.count = bench_number(optarg, UINT32_MAX);
			break;
		case 'b':
			options.block = bench_number(optarg, 1u << 30);
			break;
		case 'p':
			options.passes = bench_number(optarg, 1000);
			break;
		case 'm':
			options.is_mapped = true;
			break;
		case 'e':
			options.is_forgotten = true;
			break;
		case 'f':
			options.with_fstat = true;
			break;
		case 'd':
			options.with_sum = true;
			break;
		default:
			usage();
		}
	}
	while (what < 4 && (optind >= argc || strcmp(argv[optind], names[what]) != 0))
		what++;
	if (what == 4 || argc - optind != (what < 2 ? 3 : 2) || !options.readers_n ||
	    !options.passes || (options.is_forgotten && what < 2))
		usage();
	options.what = what;
	options.path = argv[optind + 1];
	options.list = what < 2 ? argv[optind + 2] : NULL;
}

int main(int argc, char **argv)
{
	double seconds = 0, cpu_s = 0;

	parse(argc, argv);
	if (options.list)
		open_tree();
	else
		open_file();
	if (options.count && (!options.list || options.count < ops_n))
		ops_n = options.count;
	shared = bench_shared(sizeof(*shared) + ops_n * sizeof(*shared->latency_ns));
	buffer_size = options.block > BUFFER_MIN ? options.block : BUFFER_MIN;
	buffer = malloc(buffer_size);
	if (!buffer)
		bench_die("memory");
	/* Its first touch is no part of what is measured; it would be in each child, though. */
	memset(buffer, 1, buffer_size);
	for (uint64_t pass = 0; pass < options.passes; pass++) {
		double before, took;

		if (options.is_forgotten && posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0)
			bench_die("fadvise: %s", options.path);
		before = bench_cpu_s();
		took = run_pass();

		if (pass == 0 && options.passes > 1)
			continue;
		seconds += took;
		cpu_s += bench_cpu_s() - before;
	}
	if (options.passes > 2) {
		seconds /= (double)(options.passes - 1);
		cpu_s /= (double)(options.passes - 1);
	}
	print(seconds, cpu_s);
	return 0;
}
