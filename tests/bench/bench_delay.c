/*
 * A line with latency: a TCP proxy on loopback that hands on what it receives half of DELAY_MS
 * later, in each direction, so that a request and its answer take DELAY_MS more. Throughput and the
 * number of connections are not limited; how long connecting takes is not changed.
 *
 *	bench_delay UPSTREAM_PORT DELAY_MS
 *
 * Prints the port that it listens on, on a line of its own, and serves until it is killed. A
 * direction of a connection has two threads, one that receives blocks and one that sends each when
 * it is due; between them at most QUEUE_MAX bytes, more than any line of a benchmark holds.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"
#include "util/clock.h"

#define BLOCK_BYTES (128u << 10)
#define QUEUE_MAX   (256u << 20)

struct block {
	struct block *next;
	uint64_t due_ns;
	size_t len;
	char data[BLOCK_BYTES];
};

struct connection {
	int fds[2];
	atomic_int users_n; /* threads that still use it */
};

struct direction {
	struct connection *connection;
	int from, to;
	pthread_mutex_t mutex;
	pthread_cond_t changed;
	struct {
		struct block *first, *last, *spare;
		size_t bytes;
		bool is_over; /* nothing comes any more */
		bool is_dead; /* nobody takes it any more */
		int users_n;
	} locked;
};

static uint64_t delay_ns;
static uint16_t upstream_port;

static void end_connection(struct connection *connection)
{
	if (atomic_fetch_sub(&connection->users_n, 1) > 1)
		return;
	close(connection->fds[0]);
	close(connection->fds[1]);
	free(connection);
}

static void free_blocks(struct block *block)
{
	while (block) {
		struct block *next = block->next;

		free(block);
		block = next;
	}
}

static void end_direction(struct direction *direction)
{
	bool is_last;

	pthread_mutex_lock(&direction->mutex);
	is_last = --direction->locked.users_n == 0;
	pthread_cond_signal(&direction->changed);
	pthread_mutex_unlock(&direction->mutex);
	if (!is_last)
		return;
	end_connection(direction->connection);
	free_blocks(direction->locked.first);
	free_blocks(direction->locked.spare);
	pthread_cond_destroy(&direction->changed);
	pthread_mutex_destroy(&direction->mutex);
	free(direction);
}

/* A free block, when there is room; NULL when the other end is gone. */
static struct block *take_block(struct direction *direction)
{
	struct block *block;
	bool is_dead;

	pthread_mutex_lock(&direction->mutex);
	while (direction->locked.bytes > QUEUE_MAX && !direction->locked.is_dead)
		pthread_cond_wait(&direction->changed, &direction->mutex);
	is_dead = direction->locked.is_dead;
	block = direction->locked.spare;
	if (block)
		direction->locked.spare = block->next;
	pthread_mutex_unlock(&direction->mutex);
	if (!block)
		block = malloc(sizeof(*block));
	if (!block)
		bench_die("memory");
	if (!is_dead)
		return block;
	free(block);
	return NULL;
}

static void *receive(void *ctx)
{
	struct direction *direction = ctx;
	struct block *block;
	ssize_t n = 0;

	while ((block = take_block(direction))) {
		n = recv(direction->from, block->data, BLOCK_BYTES, 0);
		if (n <= 0)
			break;
		block->next = NULL;
		block->len = (size_t)n;
		block->due_ns = ds_mono_ns() + delay_ns;
		pthread_mutex_lock(&direction->mutex);
		if (direction->locked.first)
			direction->locked.last->next = block;
		else
			direction->locked.first = block;
		direction->locked.last = block;
		direction->locked.bytes += block->len;
		pthread_cond_signal(&direction->changed);
		pthread_mutex_unlock(&direction->mutex);
	}
	free(block);
	pthread_mutex_lock(&direction->mutex);
	direction->locked.is_over = true;
	pthread_mutex_unlock(&direction->mutex);
	end_direction(direction);
	return NULL;
}

static bool send_block(int fd, const struct block *block)
{
	struct timespec due = {.tv_sec = (time_t)(block->due_ns / DS_NS_PER_S),
			       .tv_nsec = (long)(block->due_ns % DS_NS_PER_S)};

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL) == EINTR)
		;
	for (size_t at = 0; at < block->len;) {
		ssize_t n = send(fd, block->data + at, block->len - at, MSG_NOSIGNAL);

		if (n <= 0)
			return false;
		at += (size_t)n;
	}
	return true;
}

/* The next block to send; NULL at the end. */
static struct block *next_block(struct direction *direction, struct block *sent)
{
	struct block *block;

	pthread_mutex_lock(&direction->mutex);
	if (sent) {
		direction->locked.bytes -= sent->len;
		sent->next = direction->locked.spare;
		direction->locked.spare = sent;
		pthread_cond_signal(&direction->changed);
	}
	while (!direction->locked.first && !direction->locked.is_over)
		pthread_cond_wait(&direction->changed, &direction->mutex);
	block = direction->locked.first;
	if (block)
		direction->locked.first = block->next;
	pthread_mutex_unlock(&direction->mutex);
	return block;
}

static void *transmit(void *ctx)
{
	struct direction *direction = ctx;
	struct block *block = NULL;
	bool is_well = true;

	while (is_well && (block = next_block(direction, block)))
		is_well = send_block(direction->to, block);
	if (!is_well) {
		free(block);
		pthread_mutex_lock(&direction->mutex);
		direction->locked.is_dead = true;
		pthread_mutex_unlock(&direction->mutex);
		shutdown(direction->from, SHUT_RD);
	}
	shutdown(direction->to, SHUT_WR);
	end_direction(direction);
	return NULL;
}

static void start_thread(void *(*run)(void *), void *ctx)
{
	pthread_attr_t attr;
	pthread_t thread;

	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attr, 64u << 10);
	errno = pthread_create(&thread, &attr, run, ctx);
	if (errno)
		bench_die("thread");
	pthread_attr_destroy(&attr);
}

static void start_direction(struct connection *connection, int from, int to)
{
	struct direction *direction = calloc(1, sizeof(*direction));

	if (!direction)
		bench_die("memory");
	direction->connection = connection;
	direction->from = from;
	direction->to = to;
	direction->locked.users_n = 2;
	pthread_mutex_init(&direction->mutex, NULL);
	pthread_cond_init(&direction->changed, NULL);
	start_thread(receive, direction);
	start_thread(transmit, direction);
}

static int connect_upstream(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_port = htons(upstream_port),
				      .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		bench_die("socket");
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0)
		return fd;
	close(fd);
	return -1;
}

static void serve(int client)
{
	struct connection *connection = calloc(1, sizeof(*connection));
	int upstream = connect_upstream(), one = 1;

	if (!connection)
		bench_die("memory");
	if (upstream < 0) {
		close(client);
		free(connection);
		return;
	}
	setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	setsockopt(upstream, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	connection->fds[0] = client;
	connection->fds[1] = upstream;
	atomic_store(&connection->users_n, 2);
	start_direction(connection, client, upstream);
	start_direction(connection, upstream, client);
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(address);
	int listener, client;

	if (argc != 3) {
		fprintf(stderr, "usage: bench_delay UPSTREAM_PORT DELAY_MS\n");
		return 2;
	}
	upstream_port = (uint16_t)bench_number(argv[1], UINT16_MAX);
	delay_ns = bench_number(argv[2], 60000) * DS_NS_PER_MS / 2;
	/* It is worth nothing without the program that measures. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* A timer may be 50 us late by default; that would be one part in 400 of 20 ms. */
	prctl(PR_SET_TIMERSLACK, 1000);
	listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof(address)) < 0 ||
	    listen(listener, 1024) < 0 ||
	    getsockname(listener, (struct sockaddr *)&address, &len) < 0)
		bench_die("listen");
	printf("%u\n", ntohs(address.sin_port));
	fflush(stdout);
	for (;;) {
		client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (client >= 0)
			serve(client);
		else if (errno != EINTR && errno != ECONNABORTED)
			bench_die("accept");
	}
}
