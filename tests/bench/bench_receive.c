/*
 * The least that a client can do with bytes that it must check and keep: receives ranges with libcurl,
 * takes their SHA-256 and writes them into a file. Prints what it took as one line of JSON.
 *
 *	bench_receive [-c CONNECTIONS] [-r RANGE] LIST OUT
 *
 * LIST has a line "SIZE 0 URL" for each object; OUT is made anew. Each connection (16) is a thread
 * with a handle of its own, which takes the next range (1 MiB) of one shared order.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <curl/curl.h>
#include <openssl/evp.h>

#include "bench.h"
#include "util/clock.h"

#define CONNECTIONS_MAX 256u

struct range {
	const struct bench_file *object;
	uint64_t off;
	uint64_t len;
	uint64_t out_off;
};

static struct range *ranges;
static size_t ranges_n;
static uint64_t range_max = 1u << 20;
static atomic_ulong next;
static int out;

struct receiver {
	pthread_t thread;
	struct bench_sum sum;
	EVP_MD_CTX *sha;
	char *buffer;
	size_t len;
	size_t wanted;
};

/* The digest is taken here, while the bytes are in the core's cache. */
static size_t on_data(char *data, size_t one, size_t len, void *ctx)
{
	struct receiver *receiver = ctx;

	(void)one;
	if (receiver->len + len > receiver->wanted)
		return 0;
	memcpy(receiver->buffer + receiver->len, data, len);
	EVP_DigestUpdate(receiver->sha, data, len);
	receiver->len += len;
	return len;
}

static void receive(struct receiver *receiver, CURL *curl, const struct range *range)
{
	struct bench_sum sum;
	char span[64];
	long status;
	CURLcode code;

	snprintf(span, sizeof(span), "%llu-%llu", (unsigned long long)range->off,
		 (unsigned long long)(range->off + range->len - 1));
	curl_easy_setopt(curl, CURLOPT_URL, range->object->path);
	curl_easy_setopt(curl, CURLOPT_RANGE, span);
	receiver->len = 0;
	receiver->wanted = range->len;
	EVP_DigestInit_ex(receiver->sha, EVP_sha256(), NULL);
	code = curl_easy_perform(curl);
	curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
	errno = 0;
	if (code != CURLE_OK || (status != 206 && status != 200) || receiver->len != range->len)
		bench_die("%s: %s: %s, status %ld, %zu bytes", range->object->path, span,
			  curl_easy_strerror(code), status, receiver->len);
	EVP_DigestFinal_ex(receiver->sha, sum.bytes, NULL);
	bench_sum_add(&receiver->sum, &sum);
	bench_write(out, receiver->buffer, receiver->len, range->out_off);
}

static void *run_receiver(void *ctx)
{
	struct receiver *receiver = ctx;
	CURL *curl = curl_easy_init();
	size_t i;

	receiver->sha = EVP_MD_CTX_new();
	receiver->buffer = malloc(range_max);
	if (!curl || !receiver->sha || !receiver->buffer)
		bench_die("memory");
	curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_data);
	curl_easy_setopt(curl, CURLOPT_WRITEDATA, receiver);
	curl_easy_setopt(curl, CURLOPT_BUFFERSIZE, 512L << 10);
	curl_easy_setopt(curl, CURLOPT_PROXY, "");
	curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
	while ((i = atomic_fetch_add(&next, 1)) < ranges_n)
		receive(receiver, curl, &ranges[i]);
	curl_easy_cleanup(curl);
	EVP_MD_CTX_free(receiver->sha);
	free(receiver->buffer);
	return NULL;
}

static uint64_t cut(const struct bench_file *objects, size_t objects_n)
{
	uint64_t total = 0;
	size_t n = 0;

	for (size_t i = 0; i < objects_n; i++)
		n += (objects[i].size + range_max - 1) / range_max;
	ranges = calloc(n, sizeof(*ranges));
	if (!ranges)
		bench_die("memory");
	for (size_t i = 0; i < objects_n; i++) {
		for (uint64_t off = 0; off < objects[i].size; off += range_max) {
			uint64_t left = objects[i].size - off;

			ranges[ranges_n] =
				(struct range){&objects[i], off,
					       left < range_max ? left : range_max, total};
			total += ranges[ranges_n++].len;
		}
	}
	return total;
}

int main(int argc, char **argv)
{
	static struct receiver receivers[CONNECTIONS_MAX];
	uint64_t connections_n = 16, start_ns, total;
	struct bench_file *objects;
	struct bench_sum sum = {0};
	size_t objects_n;
	char text[65];
	double seconds;
	int opt;

	while ((opt = getopt(argc, argv, "c:r:")) != -1) {
		if (opt == 'c')
			connections_n = bench_number(optarg, CONNECTIONS_MAX);
		else if (opt == 'r')
			range_max = bench_number(optarg, 1u << 30);
	}
	if (argc - optind != 2 || !connections_n || !range_max) {
		fprintf(stderr, "usage: bench_receive [-c CONNECTIONS] [-r RANGE] LIST OUT\n");
		return 2;
	}
	bench_list(argv[optind], &objects, &objects_n);
	total = cut(objects, objects_n);
	out = open(argv[optind + 1], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (out < 0)
		bench_die("%s", argv[optind + 1]);
	curl_global_init(CURL_GLOBAL_DEFAULT);
	start_ns = ds_mono_ns();
	for (uint64_t i = 0; i < connections_n; i++)
		if (pthread_create(&receivers[i].thread, NULL, run_receiver, &receivers[i]) != 0)
			bench_die("thread");
	for (uint64_t i = 0; i < connections_n; i++) {
		pthread_join(receivers[i].thread, NULL);
		bench_sum_add(&sum, &receivers[i].sum);
	}
	seconds = (double)(ds_mono_ns() - start_ns) / DS_NS_PER_S;
	printf("{\"bytes\": %llu, \"ranges\": %zu, \"seconds\": %.6f, \"bytes_per_s\": %.0f, "
	       "\"cpu_s\": %.3f, \"sum\": \"%s\"}\n",
	       (unsigned long long)total, ranges_n, seconds, (double)total / seconds, bench_cpu_s(),
	       bench_sum_format(&sum, text));
	return 0;
}
