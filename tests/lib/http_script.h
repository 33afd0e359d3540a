/*
 * An HTTP server on loopback that answers from a script: for answers that no real server gives.
 *
 * Steps are taken in order, one for each request, over all connections; a request without a step is
 * counted as unexpected and its connection reset. A step may be marked as a fault, so that a test can
 * see that its faults were really delivered: http_script_check fails otherwise.
 *
 * Threads: one for accepting and one for each connection. Steps may be added while it runs.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct http_script;

enum http_then {
	HTTP_KEEP,  /* the connection stays open for the next request */
	HTTP_CLOSE, /* closed in order after the answer */
	HTTP_RESET, /* reset after the answer */
	HTTP_HANG,  /* held open, nothing more is sent; ends with the client or the script */
	HTTP_RESET_AT_ACCEPT, /* no request is read, the connection is reset at once */
};

struct http_script *http_script_new(void);
/* Ends everything. Returns NULL. */
struct http_script *http_script_free(struct http_script *script);
/* "http://127.0.0.1:PORT" */
const char *http_script_url(const struct http_script *script);

/* Adds a step: the raw answer, from its status line on; "" for none. */
void http_script_add(struct http_script *script, enum http_then then, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
/* Adds an answer with this status, a Content-Length, a Date, and more header lines ("" or each with
 * CR LF); the connection stays open. */
void http_script_answer(struct http_script *script, int status, const char *headers,
			const char *body);
/* These change the step added last. */
void http_script_is_fault(struct http_script *script);
void http_script_flood(struct http_script *script, uint64_t bytes, const char *pattern);
void http_script_drip(struct http_script *script, unsigned interval_ms); /* byte by byte */
void http_script_forever(struct http_script *script); /* it answers all further requests too */

unsigned http_script_requests_n(struct http_script *script);
unsigned http_script_connections_n(struct http_script *script);
unsigned http_script_faults_n(struct http_script *script);
uint64_t http_script_sent_bytes(struct http_script *script);
/* Head of the idx-th request, from its request line to the empty line; valid until the script's end. */
const char *http_script_request(struct http_script *script, unsigned idx);
/* Waits until so many requests have come; aborts after 10 s. */
void http_script_wait(struct http_script *script, unsigned requests_n);

/* Asserts that every step was used, that no request was without one, and that every step that is a
 * fault was delivered (at least one). Prints how many. */
void http_script_check(struct http_script *script);
