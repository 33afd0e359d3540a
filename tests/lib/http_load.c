#include "http_load.h"

#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CONNECTIONS_MAX 512
#define SEEN_MAX	64
#define PATIENCE_S	90

struct connection {
	struct http_load *load;
	int fd;
	pthread_t thread;
};

struct http_load {
	char url[64];
	int listen_fd;
	int stop_fds[2]; /* closing the writing end wakes everybody */
	pthread_t thread;
	pthread_mutex_t mutex;
	pthread_cond_t changed;
	struct http_load_counts counts;
	unsigned limit_n;
	bool holds, is_ending;
	char seen[SEEN_MAX][32]; /* ends of the first paths */
	unsigned seen_n;
	struct connection connections[CONNECTIONS_MAX];
};

static const char refusal[] = "HTTP/1.1 503 Slow Down\r\nContent-Length: 36\r\n\r\n"
			      "<Error><Code>SlowDown</Code></Error>";
static const char answer[] = "HTTP/1.1 206 P\r\nContent-Range: bytes 0-3/10\r\n"
			     "Content-Length: 4\r\n\r\n0123";

/* False: it ends. */
static bool wait_readable(struct http_load *load, int fd, int timeout_ms)
{
	struct pollfd fds[2] = {{.fd = fd, .events = POLLIN},
				{.fd = load->stop_fds[0], .events = POLLIN}};

	poll(fds, 2, timeout_ms);
	return !fds[1].revents;
}

static void note_path(struct http_load *load, const char *head)
{
	const char *end = strchr(head + 4, ' ');
	size_t len = end ? (size_t)(end - head) : 0;
	size_t cut = len > 31 ? len - 31 : 0;

	if (load->seen_n < SEEN_MAX)
		snprintf(load->seen[load->seen_n++], sizeof(load->seen[0]), "%.*s",
			 (int)(len - cut), head + cut);
}

/* Takes part in the counts, waits, answers. */
static bool serve(struct http_load *load, int fd, const char *head)
{
	bool is_refused;
	const char *text;

	pthread_mutex_lock(&load->mutex);
	note_path(load, head);
	is_refused = load->limit_n && load->counts.now_n >= load->limit_n;
	if (!is_refused && ++load->counts.now_n > load->counts.most_n)
		load->counts.most_n = load->counts.now_n;
	pthread_cond_broadcast(&load->changed);
	if (!is_refused) {
		pthread_mutex_unlock(&load->mutex);
		wait_readable(load, -1, HTTP_LOAD_LATENCY_MS);
		pthread_mutex_lock(&load->mutex);
		while (load->holds && !load->is_ending)
			pthread_cond_wait(&load->changed, &load->mutex);
		load->counts.now_n--;
		load->counts.answered_n++;
	} else {
		load->counts.refused_n++;
	}
	pthread_cond_broadcast(&load->changed);
	pthread_mutex_unlock(&load->mutex);
	text = is_refused ? refusal : answer;
	return send(fd, text, strlen(text), MSG_NOSIGNAL) == (ssize_t)strlen(text);
}

static void *connection_thread(void *arg)
{
	struct connection *connection = arg;
	struct http_load *load = connection->load;
	char head[8192];
	size_t len = 0;

	while (len < sizeof(head) - 1 && wait_readable(load, connection->fd, -1)) {
		ssize_t n = recv(connection->fd, head + len, sizeof(head) - 1 - len, 0);

		if (n <= 0)
			break;
		len += (size_t)n;
		head[len] = '\0';
		if (!strstr(head, "\r\n\r\n"))
			continue;
		if (!serve(load, connection->fd, head))
			break;
		len = 0;
	}
	close(connection->fd);
	return NULL;
}

static void *accept_thread(void *arg)
{
	struct http_load *load = arg;

	while (wait_readable(load, load->listen_fd, -1)) {
		int fd = accept4(load->listen_fd, NULL, NULL, SOCK_CLOEXEC);
		struct connection *connection = &load->connections[load->counts.connections_n];

		if (fd < 0)
			continue;
		*connection = (struct connection){.load = load, .fd = fd};
		cr_assert_eq(pthread_create(&connection->thread, NULL, connection_thread,
					    connection),
			     0);
		pthread_mutex_lock(&load->mutex);
		cr_assert_lt(++load->counts.connections_n, CONNECTIONS_MAX);
		pthread_mutex_unlock(&load->mutex);
	}
	return NULL;
}

struct http_load *http_load_new(void)
{
	struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	struct http_load *load = calloc(1, sizeof(*load));
	socklen_t len = sizeof(addr);

	pthread_mutex_init(&load->mutex, NULL);
	pthread_cond_init(&load->changed, NULL);
	cr_assert_eq(pipe(load->stop_fds), 0);
	load->listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	cr_assert_eq(bind(load->listen_fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	cr_assert_eq(listen(load->listen_fd, 256), 0);
	cr_assert_eq(getsockname(load->listen_fd, (struct sockaddr *)&addr, &len), 0);
	snprintf(load->url, sizeof(load->url), "http://127.0.0.1:%u", ntohs(addr.sin_port));
	cr_assert_eq(pthread_create(&load->thread, NULL, accept_thread, load), 0);
	return load;
}

struct http_load *http_load_free(struct http_load *load)
{
	pthread_mutex_lock(&load->mutex);
	load->is_ending = true;
	pthread_cond_broadcast(&load->changed);
	pthread_mutex_unlock(&load->mutex);
	close(load->stop_fds[1]);
	pthread_join(load->thread, NULL);
	for (unsigned i = 0; i < load->counts.connections_n; i++)
		pthread_join(load->connections[i].thread, NULL);
	close(load->stop_fds[0]);
	close(load->listen_fd);
	pthread_cond_destroy(&load->changed);
	pthread_mutex_destroy(&load->mutex);
	free(load);
	return NULL;
}

const char *http_load_url(const struct http_load *load)
{
	return load->url;
}

void http_load_set_limit(struct http_load *load, unsigned limit_n)
{
	pthread_mutex_lock(&load->mutex);
	load->limit_n = limit_n;
	load->counts.most_n = load->counts.now_n;
	load->counts.answered_n = load->counts.refused_n = 0;
	pthread_mutex_unlock(&load->mutex);
}

void http_load_hold(struct http_load *load, bool holds)
{
	pthread_mutex_lock(&load->mutex);
	load->holds = holds;
	pthread_cond_broadcast(&load->changed);
	pthread_mutex_unlock(&load->mutex);
}

struct http_load_counts http_load_counts(struct http_load *load)
{
	struct http_load_counts counts;

	pthread_mutex_lock(&load->mutex);
	counts = load->counts;
	pthread_mutex_unlock(&load->mutex);
	return counts;
}

static void wait_for(struct http_load *load, const unsigned *count, unsigned wanted_n)
{
	struct timespec until;
	int r = 0;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += PATIENCE_S;
	pthread_mutex_lock(&load->mutex);
	while (*count < wanted_n && r != ETIMEDOUT)
		r = pthread_cond_timedwait(&load->changed, &load->mutex, &until);
	pthread_mutex_unlock(&load->mutex);
	cr_assert_geq(*count, wanted_n);
}

void http_load_wait_now(struct http_load *load, unsigned now_n)
{
	wait_for(load, &load->counts.now_n, now_n);
}

void http_load_wait_most(struct http_load *load, unsigned most_n)
{
	wait_for(load, &load->counts.most_n, most_n);
}

void http_load_wait_answered(struct http_load *load, unsigned answered_n)
{
	wait_for(load, &load->counts.answered_n, answered_n);
}

bool http_load_has_seen(struct http_load *load, const char *end)
{
	size_t end_len = strlen(end);
	bool has_seen = false;

	pthread_mutex_lock(&load->mutex);
	for (unsigned i = 0; i < load->seen_n; i++) {
		size_t len = strlen(load->seen[i]);

		has_seen |= len >= end_len && strcmp(load->seen[i] + len - end_len, end) == 0;
	}
	pthread_mutex_unlock(&load->mutex);
	return has_seen;
}
