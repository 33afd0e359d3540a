/*
 * An HTTP server on loopback that counts how many requests it has at once, and answers 503 SlowDown to
 * those that are too many. Every other answer is the 206 of bytes 0-3 of 10, after LATENCY_MS or, while
 * it holds, not before it is told.
 *
 * Threads: one for accepting and one for each connection; the functions may be called from any.
 */
#pragma once

#include <stdbool.h>

#define HTTP_LOAD_LATENCY_MS 20

struct http_load;

struct http_load_counts {
	unsigned now_n;	     /* requests that it has */
	unsigned most_n;     /* the most that it had at once, since the limit was set */
	unsigned answered_n; /* since then as well, like the others */
	unsigned refused_n;
	unsigned connections_n; /* accepted since its start */
};

/* No limit yet. */
struct http_load *http_load_new(void);
/* Ends everything. Returns NULL. */
struct http_load *http_load_free(struct http_load *load);
/* "http://127.0.0.1:PORT" */
const char *http_load_url(const struct http_load *load);
/* So many requests at once and no more; counts anew. */
void http_load_set_limit(struct http_load *load, unsigned limit_n);
/* Answers nothing while it is set. */
void http_load_hold(struct http_load *load, bool holds);
struct http_load_counts http_load_counts(struct http_load *load);
/* Waits until it has, or has had, so many at once, or has answered so many; aborts after 90 s. */
void http_load_wait_now(struct http_load *load, unsigned now_n);
void http_load_wait_most(struct http_load *load, unsigned most_n);
void http_load_wait_answered(struct http_load *load, unsigned answered_n);
/* Whether a request for a path with this end has been among them. */
bool http_load_has_seen(struct http_load *load, const char *end);
