/* See test_proxy.h. */
#include "test_proxy.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int connect_to(const char *url)
{
	struct sockaddr_in addr = {.sin_family = AF_INET};
	const char *port = strrchr(url, ':');
	int fd;

	addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	addr.sin_port = htons((uint16_t)strtoul(port ? port + 1 : "0", NULL, 10));
	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
		int r = -errno;

		close(fd);
		return r;
	}
	return fd;
}

/* One request to the control server; the reply is small and ends with the connection. */
static int ask(const struct test_proxy *proxy, const char *method, const char *path,
	       const char *body, char *ret_body, size_t body_size)
{
	char reply[4096];
	size_t len = 0;
	const char *start;
	ssize_t n;
	int fd, code = 0;

	fd = connect_to(proxy->control);
	if (fd < 0) {
		fprintf(stderr, "fault proxy at %s: %s\n", proxy->control, strerror(-fd));
		return fd;
	}
	dprintf(fd, "%s %s HTTP/1.1\r\nHost: proxy\r\nContent-Length: %zu\r\n\r\n%s", method, path,
		strlen(body), body);
	while (len < sizeof(reply) - 1) {
		n = read(fd, reply + len, sizeof(reply) - 1 - len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		len += (size_t)n;
	}
	close(fd);
	reply[len] = '\0';
	start = strstr(reply, "\r\n\r\n");
	if (sscanf(reply, "HTTP/1.1 %d", &code) != 1 || code != 200 || !start) {
		fprintf(stderr, "fault proxy: %s %s %s: %s\n", method, path, body, reply);
		return -EPROTO;
	}
	if (ret_body)
		snprintf(ret_body, body_size, "%s", start + 4);
	return 0;
}

int test_proxy_start(const char *upstream, struct test_proxy *ret_proxy)
{
	struct test_proxy proxy = {{0}};
	char command[512], line[256];
	FILE *out;

	snprintf(command, sizeof(command), "%s start --owner %d --upstream '%s'", TEST_FAULT_PROXY,
		 (int)getpid(), upstream ? upstream : "");
	out = popen(command, "re");
	if (!out)
		return -errno;
	while (fgets(line, sizeof(line), out)) {
		sscanf(line, "export PROXY_URL=%63s", proxy.url);
		sscanf(line, "export PROXY_CONTROL=%63s", proxy.control);
	}
	if (pclose(out) != 0 || !proxy.url[0] || !proxy.control[0]) {
		fprintf(stderr, "the fault proxy does not start: %s\n", command);
		return -EPROTO;
	}
	*ret_proxy = proxy;
	return 0;
}

int test_proxy_stop(const struct test_proxy *proxy)
{
	return ask(proxy, "GET", "/stop", "", NULL, 0);
}

int test_proxy_rules(const struct test_proxy *proxy, const char *json)
{
	return ask(proxy, "PUT", "/rules", json, NULL, 0);
}

int test_proxy_get(const struct test_proxy *proxy, const char *name, uint64_t *ret_value)
{
	char path[128], body[128];
	uint64_t value;
	int r;

	snprintf(path, sizeof(path), "/stats/%s", name);
	r = ask(proxy, "GET", path, "", body, sizeof(body));
	if (r < 0)
		return r;
	if (sscanf(body, "%" SCNu64, &value) != 1)
		return -EPROTO;
	*ret_value = value;
	return 0;
}

int test_proxy_wait(const struct test_proxy *proxy, const char *name, uint64_t value,
		    unsigned int timeout_ms)
{
	const unsigned int step_ms = 10;
	unsigned int waited_ms;
	uint64_t now;
	int r;

	for (waited_ms = 0;; waited_ms += step_ms) {
		r = test_proxy_get(proxy, name, &now);
		if (r < 0)
			return r;
		if (now >= value)
			return 0;
		if (waited_ms >= timeout_ms)
			return -ETIMEDOUT;
		poll(NULL, 0, (int)step_ms);
	}
}
