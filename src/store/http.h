/*
 * HTTP/1.1 on one network thread: the only user of curl.
 *
 * A transfer is one request and its answer, without retries: what an answer means is the caller's
 * business. TLS is always verified, redirects are not followed, only http and https are spoken. Headers
 * are bounded at 64 KiB (all interim answers included), bodies by what on_response allows; a body
 * goes straight into the buffer that on_response names. A transfer that makes no headway is ended.
 *
 * Connections are kept, up to as many as may be at once; new ones resume TLS sessions, and spread over the
 * addresses of the host (http_addresses.h). HTTP/2 would put all transfers on one of them.
 *
 * Threads: ds_http_wake from any. `tick` and the transfers' callbacks run on the network thread, and
 * only there may transfers be started or aborted; they must not block. The memory of a transfer
 * and what it points to belongs to ds_http from start until done is called or abort returns.
 */
#ifndef DS_STORE_HTTP_H
#define DS_STORE_HTTP_H

#include <stdbool.h>
#include <stdint.h>

#include "store/http_addresses.h"
#include "util/buf.h"
#include "util/list.h"

#define DS_HTTP_HEADERS_MAX ((size_t)65536)

struct ds_http;

struct ds_http_transfer {
	/* set by the caller; everything else zero */
	const char *method; /* GET, HEAD, PUT, DELETE */
	const char *url;
	const char *const *headers; /* "Name: value" each */
	size_t headers_n;
	const void *body; /* PUT */
	size_t body_len_bytes;
	uint64_t deadline_ns;
	uint64_t stall_ns;     /* fewer than 1,000 bytes in so long a time: given up */
	bool fresh_connection; /* never one from the pool */
	/* Status and headers are here. Names the buffer for the body (`into`, appended) and how many
	 * bytes may come (into_max_bytes); more end the transfer: as an error, or with cut_body
	 * quietly. A negative code ends it at once. */
	int (*on_response)(struct ds_http_transfer *transfer);
	void (*done)(struct ds_http_transfer *transfer);
	void *ctx;

	/* set by on_response */
	struct ds_buf *into;
	uint64_t into_max_bytes;
	bool cut_body;

	/* the answer */
	int result;		   /* 0: complete, or cut as allowed; or a code, with `error` */
	int status;		   /* 0: there was none */
	struct ds_buf headers_buf; /* of the final answer, lines with CR LF */
	uint64_t received_bytes;   /* of the body */
	char error[256];	   /* plain words; "" if none */
	uint64_t headway_ns;	   /* when it was last seen to move, at first its start */
	int connect_errno;	   /* why no connection could be made; 0: not known, or not that */
	bool is_reused;		   /* it went over a connection from the pool */
	bool is_stall;		   /* given up for want of headway */
	bool is_final; /* trying again cannot help (a certificate that does not verify) */

	/* ds_http's own */
	struct ds_list node;
	struct ds_http *http;
	void *easy, *header_list;
	char curl_error[256];
	struct ds_http_tries tries;
	size_t header_bytes; /* of all answers, interim ones too */
	uint64_t sent_bytes;
	uint64_t window_bytes; /* since headway_ns */
	bool is_body, must_cut;
	int refused; /* code of on_response */
};

/*
 * tick is called in each round of the loop. It returns false when the thread shall end, and no
 * transfer runs any more, else the monotonic time of its next call, which a wake brings forward.
 * no_proxy: the environment's proxies do not count. No thread yet. -ENOMEM.
 */
int ds_http_new(unsigned connections_max, bool no_proxy,
		bool (*tick)(void *ctx, uint64_t now_ns, uint64_t *ret_next_ns), void *ctx,
		struct ds_http **ret_http);
/* Joins the thread, if there is one: tick must be about to return false. Returns NULL. */
struct ds_http *ds_http_free(struct ds_http *http);
/* Starts the thread. -EAGAIN, -ENOMEM. Once. */
int ds_http_run(struct ds_http *http);
void ds_http_wake(struct ds_http *http);

/* -ENOMEM: done is not called. Else done is called later, from the loop. */
int ds_http_start(struct ds_http *http, struct ds_http_transfer *transfer);
/* Ends it without done; nothing of it is touched afterwards. Not from its own on_response. */
void ds_http_abort(struct ds_http *http, struct ds_http_transfer *transfer);
/* Frees what an answer holds. */
void ds_http_transfer_release(struct ds_http_transfer *transfer);

/* Value of the idx-th header of this name (any case) in the answer, as a copy cut to size; false if
 * there is none. */
bool ds_http_header(const struct ds_http_transfer *transfer, const char *name, unsigned idx,
		    char *buf, size_t size);

#endif
