#include "http_script.h"

#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define STEPS_MAX	4096
#define REQUESTS_MAX	4096
#define CONNECTIONS_MAX 512
#define HEAD_MAX	16384

struct step {
	char *answer;
	size_t answer_len;
	enum http_then then;
	bool is_fault, is_forever;
	uint64_t flood_bytes;
	const char *flood_pattern;
	unsigned drip_ms;
	unsigned used_n;
};

struct connection {
	struct http_script *script;
	int fd;
	pthread_t thread;
};

struct http_script {
	char url[64];
	int listen_fd;
	int stop_fds[2]; /* closing the writing end wakes everybody */
	pthread_t thread;
	pthread_mutex_t mutex;
	pthread_cond_t wake;
	struct step steps[STEPS_MAX];
	unsigned steps_n, next_step;
	char *requests[REQUESTS_MAX];
	unsigned requests_n, unexpected_n, faults_n;
	uint64_t sent_bytes;
	struct connection connections[CONNECTIONS_MAX];
	unsigned connections_n;
};

/* Whether the descriptor can be read; false: the script ends. */
static bool wait_readable(struct http_script *script, int fd, int timeout_ms)
{
	struct pollfd fds[2] = {{.fd = fd, .events = POLLIN},
				{.fd = script->stop_fds[0], .events = POLLIN}};

	poll(fds, 2, timeout_ms);
	return !fds[1].revents;
}

static void reset(int fd)
{
	struct linger linger = {.l_onoff = 1, .l_linger = 0};

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
}

static bool send_all(struct http_script *script, int fd, const char *data, size_t len)
{
	while (len) {
		struct pollfd fds[2] = {{.fd = fd, .events = POLLOUT},
					{.fd = script->stop_fds[0], .events = POLLIN}};
		ssize_t n;

		poll(fds, 2, -1);
		if (fds[1].revents)
			return false;
		n = send(fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n <= 0)
			return false;
		data += n;
		len -= (size_t)n;
		pthread_mutex_lock(&script->mutex);
		script->sent_bytes += (uint64_t)n;
		pthread_mutex_unlock(&script->mutex);
	}
	return true;
}

static size_t content_length(const char *head)
{
	for (const char *line = head; (line = strchr(line, '\n')); line++)
		if (strncasecmp(line + 1, "content-length:", 15) == 0)
			return strtoul(line + 16, NULL, 10);
	return 0;
}

/* Reads one request, body and all. NULL: there is none. */
static char *read_request(struct http_script *script, int fd)
{
	char *head = calloc(1, HEAD_MAX);
	size_t len = 0, body;
	char sink[65536];

	while (len < HEAD_MAX - 1) {
		char *end;
		ssize_t n;

		if (!wait_readable(script, fd, -1))
			break;
		/* Byte by byte, so that nothing of the body is among it. */
		n = recv(fd, head + len, 1, 0);
		if (n <= 0)
			break;
		len += (size_t)n;
		end = len >= 4 ? head + len - 4 : head;
		if (memcmp(end, "\r\n\r\n", 4) != 0)
			continue;
		for (body = content_length(head); body;) {
			if (!wait_readable(script, fd, -1))
				break;
			n = recv(fd, sink, body < sizeof(sink) ? body : sizeof(sink), 0);
			if (n <= 0)
				break;
			body -= (size_t)n;
		}
		return head;
	}
	free(head);
	return NULL;
}

/* The step for what happens now, if there is one that fits; under the mutex. */
static struct step *take_step(struct http_script *script, bool at_accept)
{
	struct step *step = &script->steps[script->next_step];

	if (script->next_step == script->steps_n ||
	    (step->then == HTTP_RESET_AT_ACCEPT) != at_accept)
		return NULL;
	step->used_n++;
	script->faults_n += step->is_fault;
	if (!step->is_forever)
		script->next_step++;
	return step;
}

/* Whether the connection goes on. */
static bool answer(struct http_script *script, int fd, const struct step *step)
{
	size_t len = step->answer_len;
	uint64_t flood = step->flood_bytes;

	if (step->drip_ms) {
		for (size_t i = 0; i < len; i++) {
			if (!send_all(script, fd, step->answer + i, 1))
				return false;
			wait_readable(script, -1, (int)step->drip_ms);
		}
	} else if (!send_all(script, fd, step->answer, len)) {
		return false;
	}
	while (flood) {
		char block[65536];
		size_t n = strlen(step->flood_pattern);

		for (size_t i = 0; i < sizeof(block); i++)
			block[i] = step->flood_pattern[i % n];
		n = sizeof(block) / n * n;
		n = flood < n ? (size_t)flood : n;
		if (!send_all(script, fd, block, n))
			return false;
		flood -= n;
	}
	if (step->then == HTTP_HANG) {
		char byte;

		while (wait_readable(script, fd, -1) && recv(fd, &byte, 1, 0) > 0)
			;
		return false;
	}
	if (step->then == HTTP_RESET)
		reset(fd);
	return step->then == HTTP_KEEP;
}

static void *connection_thread(void *arg)
{
	struct connection *connection = arg;
	struct http_script *script = connection->script;
	int fd = connection->fd;
	char *request;
	bool goes_on = true;

	while (goes_on && (request = read_request(script, fd))) {
		const struct step *step;

		pthread_mutex_lock(&script->mutex);
		step = take_step(script, false);
		script->unexpected_n += !step;
		if (script->requests_n < REQUESTS_MAX)
			script->requests[script->requests_n++] = request;
		else
			free(request);
		pthread_cond_broadcast(&script->wake);
		pthread_mutex_unlock(&script->mutex);
		if (!step) {
			reset(fd);
			break;
		}
		goes_on = answer(script, fd, step);
	}
	close(fd);
	return NULL;
}

static void *accept_thread(void *arg)
{
	struct http_script *script = arg;

	while (wait_readable(script, script->listen_fd, -1)) {
		int fd = accept4(script->listen_fd, NULL, NULL, SOCK_CLOEXEC);
		struct connection *connection;
		struct step *step;

		if (fd < 0)
			continue;
		pthread_mutex_lock(&script->mutex);
		step = take_step(script, true);
		cr_assert_lt(script->connections_n, CONNECTIONS_MAX);
		connection = &script->connections[script->connections_n++];
		*connection = (struct connection){.script = script, .fd = step ? -1 : fd};
		pthread_mutex_unlock(&script->mutex);
		if (step) {
			reset(fd);
			close(fd);
			continue;
		}
		cr_assert_eq(pthread_create(&connection->thread, NULL, connection_thread,
					    connection),
			     0);
	}
	return NULL;
}

struct http_script *http_script_new(void)
{
	struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	struct http_script *script = calloc(1, sizeof(*script));
	socklen_t len = sizeof(addr);

	pthread_mutex_init(&script->mutex, NULL);
	pthread_cond_init(&script->wake, NULL);
	script->listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	cr_assert_eq(bind(script->listen_fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	cr_assert_eq(listen(script->listen_fd, 128), 0);
	cr_assert_eq(getsockname(script->listen_fd, (struct sockaddr *)&addr, &len), 0);
	cr_assert_eq(pipe(script->stop_fds), 0);
	snprintf(script->url, sizeof(script->url), "http://127.0.0.1:%u", ntohs(addr.sin_port));
	cr_assert_eq(pthread_create(&script->thread, NULL, accept_thread, script), 0);
	return script;
}

struct http_script *http_script_free(struct http_script *script)
{
	close(script->stop_fds[1]);
	pthread_join(script->thread, NULL);
	for (unsigned i = 0; i < script->connections_n; i++)
		if (script->connections[i].fd >= 0)
			pthread_join(script->connections[i].thread, NULL);
	close(script->stop_fds[0]);
	close(script->listen_fd);
	for (unsigned i = 0; i < script->requests_n; i++)
		free(script->requests[i]);
	for (unsigned i = 0; i < script->steps_n; i++)
		free(script->steps[i].answer);
	pthread_cond_destroy(&script->wake);
	pthread_mutex_destroy(&script->mutex);
	free(script);
	return NULL;
}

const char *http_script_url(const struct http_script *script)
{
	return script->url;
}

static void add(struct http_script *script, enum http_then then, char *text)
{
	pthread_mutex_lock(&script->mutex);
	cr_assert_lt(script->steps_n, STEPS_MAX);
	script->steps[script->steps_n++] =
		(struct step){.answer = text, .answer_len = strlen(text), .then = then};
	pthread_mutex_unlock(&script->mutex);
}

void http_script_add(struct http_script *script, enum http_then then, const char *format, ...)
{
	char *text = NULL;
	va_list ap;

	va_start(ap, format);
	cr_assert_geq(vasprintf(&text, format, ap), 0);
	va_end(ap);
	add(script, then, text);
}

void http_script_answer(struct http_script *script, int status, const char *headers,
			const char *body)
{
	time_t now = time(NULL);
	char *text = NULL, date[64];
	struct tm tm;

	gmtime_r(&now, &tm);
	strftime(date, sizeof(date), "%a, %d %b %Y %H:%M:%S GMT", &tm);
	cr_assert_geq(
		asprintf(&text,
			 "HTTP/1.1 %d Scripted\r\nDate: %s\r\n%sContent-Length: %zu\r\n\r\n%s",
			 status, date, headers, strlen(body), body),
		0);
	add(script, HTTP_KEEP, text);
}

static struct step *last(struct http_script *script)
{
	cr_assert_gt(script->steps_n, 0);
	return &script->steps[script->steps_n - 1];
}

void http_script_is_fault(struct http_script *script)
{
	last(script)->is_fault = true;
}

void http_script_flood(struct http_script *script, uint64_t bytes, const char *pattern)
{
	last(script)->flood_bytes = bytes;
	last(script)->flood_pattern = pattern;
}

void http_script_drip(struct http_script *script, unsigned interval_ms)
{
	last(script)->drip_ms = interval_ms;
}

void http_script_forever(struct http_script *script)
{
	last(script)->is_forever = true;
}

static uint64_t look(struct http_script *script, const unsigned *value)
{
	unsigned n;

	pthread_mutex_lock(&script->mutex);
	n = *value;
	pthread_mutex_unlock(&script->mutex);
	return n;
}

unsigned http_script_requests_n(struct http_script *script)
{
	return (unsigned)look(script, &script->requests_n);
}

unsigned http_script_connections_n(struct http_script *script)
{
	return (unsigned)look(script, &script->connections_n);
}

unsigned http_script_faults_n(struct http_script *script)
{
	return (unsigned)look(script, &script->faults_n);
}

uint64_t http_script_sent_bytes(struct http_script *script)
{
	uint64_t n;

	pthread_mutex_lock(&script->mutex);
	n = script->sent_bytes;
	pthread_mutex_unlock(&script->mutex);
	return n;
}

const char *http_script_request(struct http_script *script, unsigned idx)
{
	const char *request;

	pthread_mutex_lock(&script->mutex);
	cr_assert_lt(idx, script->requests_n);
	request = script->requests[idx];
	pthread_mutex_unlock(&script->mutex);
	return request;
}

void http_script_wait(struct http_script *script, unsigned requests_n)
{
	struct timespec until;
	int r = 0;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 10;
	pthread_mutex_lock(&script->mutex);
	while (script->requests_n < requests_n && r == 0)
		r = pthread_cond_timedwait(&script->wake, &script->mutex, &until);
	pthread_mutex_unlock(&script->mutex);
	cr_assert_eq(r, 0, "only %u requests came", script->requests_n);
}

void http_script_check(struct http_script *script)
{
	unsigned marked_n = 0;

	pthread_mutex_lock(&script->mutex);
	cr_assert_eq(script->unexpected_n, 0, "%u requests had no step", script->unexpected_n);
	for (unsigned i = 0; i < script->steps_n; i++) {
		const struct step *step = &script->steps[i];

		cr_assert(step->used_n > 0, "step %u was not used", i);
		marked_n += step->is_fault;
	}
	cr_assert(marked_n > 0 && script->faults_n >= marked_n, "%u of %u faults were delivered",
		  script->faults_n, marked_n);
	fprintf(stderr, "faults delivered: %u\n", script->faults_n);
	pthread_mutex_unlock(&script->mutex);
}
