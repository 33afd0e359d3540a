/*
 * The network thread: see http.h.
 *
 * INV-1 A transfer is on `active` exactly while its easy handle is in the multi handle.
 * INV-2 done is called outside of curl's callbacks, after the handle has left the multi handle, so
 *       that late bytes cannot reach a buffer that has a new owner.
 */
#include "store/http.h"

#include <curl/curl.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "util/clock.h"
#include "util/error.h"
#include "util/mem.h"
#include "util/str.h"

_Static_assert(sizeof(((struct ds_http_transfer *)0)->curl_error) >= CURL_ERROR_SIZE,
	       "curl writes its error there");

#define CONNECT_TIMEOUT_MS 5000L
/* libcurl takes it anew for each transfer: below what goes back to the system when it is freed (util/mem.h). */
#define RECEIVE_BUFFER_BYTES (256L << 10)
#define SEND_BUFFER_BYTES    (128L << 10)
#define DNS_CACHE_S	     30L
#define HEADWAY_BYTES	     1000u
#define WATCH_INTERVAL_NS    ((uint64_t)DS_NS_PER_S / 4)

struct ds_http {
	CURLM *multi;
	unsigned connections_max;
	bool no_proxy;
	char *ca_bundle; /* AWS_CA_BUNDLE; NULL: the system's */
	/* TLS sessions: by itself libcurl 7.88 keeps them in each handle. (From 8.12 on the multi handle does.) */
	CURLSH *share;
	bool (*tick)(void *ctx, uint64_t now_ns, uint64_t *ret_next_ns);
	void *ctx;
	bool is_running;
	pthread_t thread;
	/* of the network thread */
	struct ds_list active;
	uint64_t watch_ns; /* when headway is looked at next */
	CURL **idle;	   /* handles to use again */
	unsigned idle_n;
	struct ds_http_addresses addresses;
	uint64_t second_ns; /* the second in which were opened */
	unsigned opened_n;  /* so many sockets */
};

static pthread_once_t global_once = PTHREAD_ONCE_INIT;

static void init_global(void)
{
	curl_global_init(CURL_GLOBAL_DEFAULT);
}

/* ---- callbacks of curl */

static bool is_end_of_headers(const char *line, size_t len)
{
	return (len == 2 && line[0] == '\r' && line[1] == '\n') || (len == 1 && line[0] == '\n');
}

static int parse_status(const char *line, size_t len)
{
	const char *space = memchr(line, ' ', len);
	int status = 0;

	if (!space || (size_t)(line + len - space) < 4)
		return 0;
	for (int i = 1; i <= 3; i++) {
		if (space[i] < '0' || space[i] > '9')
			return 0;
		status = status * 10 + (space[i] - '0');
	}
	return status;
}

static size_t on_header(char *line, size_t size, size_t n, void *ctx)
{
	struct ds_http_transfer *transfer = ctx;
	size_t len = size * n;

	transfer->header_bytes += len;
	transfer->window_bytes += len;
	if (transfer->header_bytes > DS_HTTP_HEADERS_MAX || memchr(line, '\0', len)) {
		transfer->refused = -DS_E_PROTOCOL;
		snprintf(transfer->error, sizeof(transfer->error),
			 "the answer's headers are too long or hold a NUL");
		return 0;
	}
	if (transfer->is_body) /* a trailer says nothing that we want to hear */
		return len;
	if (len > 5 && memcmp(line, "HTTP/", 5) == 0) {
		ds_buf_clear(&transfer->headers_buf);
		transfer->status = parse_status(line, len);
		return len;
	}
	if (is_end_of_headers(line, len)) {
		if (transfer->status >= 100 && transfer->status < 200)
			return len;
		transfer->is_body = true;
		transfer->refused = transfer->on_response(transfer);
		return transfer->refused < 0 ? 0 : len;
	}
	if (ds_buf_append(&transfer->headers_buf, line, len) < 0) {
		transfer->refused = -ENOMEM;
		return 0;
	}
	return len;
}

static size_t on_body(char *data, size_t size, size_t n, void *ctx)
{
	struct ds_http_transfer *transfer = ctx;
	size_t len = size * n;
	uint64_t left = transfer->into_max_bytes - transfer->received_bytes;
	int r;

	transfer->window_bytes += len;
	if (len > left) {
		if (transfer->cut_body) {
			(void)ds_buf_append(transfer->into, data, left);
			transfer->must_cut = true;
		} else {
			transfer->refused = -DS_E_PROTOCOL;
			snprintf(transfer->error, sizeof(transfer->error),
				 "the answer's body is longer than it may be");
		}
		return 0;
	}
	r = ds_buf_append(transfer->into, data, len);
	if (r < 0) {
		transfer->refused = r;
		return 0;
	}
	transfer->received_bytes += len;
	return len;
}

static size_t on_send(char *to, size_t size, size_t n, void *ctx)
{
	struct ds_http_transfer *transfer = ctx;
	size_t len = DS_MIN(size * n, transfer->body_len_bytes - (size_t)transfer->sent_bytes);

	if (len)
		memcpy(to, (const char *)transfer->body + transfer->sent_bytes, len);
	transfer->sent_bytes += len;
	transfer->window_bytes += len;
	return len;
}

static int on_seek(void *ctx, curl_off_t off, int origin)
{
	struct ds_http_transfer *transfer = ctx;

	if (origin != SEEK_SET || off < 0 || (uint64_t)off > transfer->body_len_bytes)
		return CURL_SEEKFUNC_FAIL;
	transfer->sent_bytes = (uint64_t)off;
	return CURL_SEEKFUNC_OK;
}

/* For a new connection. libcurl goes on to the next address when there is none. */
static curl_socket_t on_socket(void *ctx, curlsocktype purpose, struct curl_sockaddr *addr)
{
	struct ds_http_transfer *transfer = ctx;
	struct ds_http *http = transfer->http;
	int fd;

	(void)purpose;
	if (!ds_http_addresses_try(&http->addresses, &transfer->tries, &addr->addr, ds_mono_ns()))
		return CURL_SOCKET_BAD;
	http->opened_n++;
	fd = socket(addr->family, addr->socktype | SOCK_CLOEXEC, addr->protocol);
	return fd < 0 ? CURL_SOCKET_BAD : fd;
}

/* ---- transfers */

static int set_method(CURL *easy, struct ds_http_transfer *transfer)
{
	if (strcmp(transfer->method, "HEAD") == 0)
		return curl_easy_setopt(easy, CURLOPT_NOBODY, 1L);
	if (strcmp(transfer->method, "PUT") == 0)
		return curl_easy_setopt(easy, CURLOPT_UPLOAD, 1L) ||
		       curl_easy_setopt(easy, CURLOPT_INFILESIZE_LARGE,
					(curl_off_t)transfer->body_len_bytes) ||
		       curl_easy_setopt(easy, CURLOPT_READFUNCTION, on_send) ||
		       curl_easy_setopt(easy, CURLOPT_READDATA, transfer) ||
		       curl_easy_setopt(easy, CURLOPT_SEEKFUNCTION, on_seek) ||
		       curl_easy_setopt(easy, CURLOPT_SEEKDATA, transfer) ||
		       curl_easy_setopt(easy, CURLOPT_UPLOAD_BUFFERSIZE, SEND_BUFFER_BYTES);
	if (strcmp(transfer->method, "GET") == 0)
		return curl_easy_setopt(easy, CURLOPT_HTTPGET, 1L);
	return curl_easy_setopt(easy, CURLOPT_HTTPGET, 1L) ||
	       curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, transfer->method);
}

static int set_headers(CURL *easy, struct ds_http_transfer *transfer)
{
	/* An Expect: 100-continue costs a round trip, or a second where nobody answers it. */
	struct curl_slist *list = curl_slist_append(NULL, "Expect:");

	for (size_t i = 0; i < transfer->headers_n && list; i++) {
		struct curl_slist *more = curl_slist_append(list, transfer->headers[i]);

		if (!more) {
			curl_slist_free_all(list);
			list = NULL;
			break;
		}
		list = more;
	}
	if (!list)
		return 1;
	transfer->header_list = list;
	return curl_easy_setopt(easy, CURLOPT_HTTPHEADER, list);
}

/* Each new connection asks the name anew; not where a server ends them so soon that this were a flood. */
static long dns_cache_s(struct ds_http *http, const struct ds_http_transfer *transfer)
{
	if (transfer->headway_ns - http->second_ns >= (uint64_t)DS_NS_PER_S) {
		http->second_ns = transfer->headway_ns;
		http->opened_n = 0;
	}
	return transfer->fresh_connection || http->opened_n <= http->connections_max ? 0
										     : DNS_CACHE_S;
}

static int set_options(struct ds_http *http, CURL *easy, struct ds_http_transfer *transfer)
{
	return curl_easy_setopt(easy, CURLOPT_URL, transfer->url) ||
	       curl_easy_setopt(easy, CURLOPT_PATH_AS_IS, 1L) ||
	       curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https") ||
	       curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L) ||
	       curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, CURL_HTTP_VERSION_1_1) ||
	       curl_easy_setopt(easy, CURLOPT_HTTP09_ALLOWED, 0L) ||
	       curl_easy_setopt(easy, CURLOPT_HTTP_CONTENT_DECODING, 0L) ||
	       curl_easy_setopt(easy, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L) ||
	       curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, 1L) ||
	       curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, 2L) ||
	       curl_easy_setopt(easy, CURLOPT_SSLVERSION, CURL_SSLVERSION_TLSv1_2) ||
	       (http->ca_bundle && curl_easy_setopt(easy, CURLOPT_CAINFO, http->ca_bundle)) ||
	       (http->no_proxy && curl_easy_setopt(easy, CURLOPT_PROXY, "")) ||
	       curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L) ||
#if LIBCURL_VERSION_NUM >= 0x075700 /* do not wait for a name server when a transfer ends */
	       curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L) ||
#endif
	       curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, CONNECT_TIMEOUT_MS) ||
	       curl_easy_setopt(easy, CURLOPT_DNS_CACHE_TIMEOUT, dns_cache_s(http, transfer)) ||
	       curl_easy_setopt(easy, CURLOPT_DNS_SHUFFLE_ADDRESSES, 1L) ||
	       curl_easy_setopt(easy, CURLOPT_OPENSOCKETFUNCTION, on_socket) ||
	       curl_easy_setopt(easy, CURLOPT_OPENSOCKETDATA, transfer) ||
	       curl_easy_setopt(easy, CURLOPT_SHARE, http->share) ||
	       curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L) ||
	       curl_easy_setopt(easy, CURLOPT_FRESH_CONNECT, (long)transfer->fresh_connection) ||
	       curl_easy_setopt(easy, CURLOPT_BUFFERSIZE, RECEIVE_BUFFER_BYTES) ||
	       curl_easy_setopt(easy, CURLOPT_USERAGENT, "dsfs/" DS_VERSION) ||
	       curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, on_header) ||
	       curl_easy_setopt(easy, CURLOPT_HEADERDATA, transfer) ||
	       curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_body) ||
	       curl_easy_setopt(easy, CURLOPT_WRITEDATA, transfer) ||
	       curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, transfer->curl_error) ||
	       curl_easy_setopt(easy, CURLOPT_PRIVATE, transfer) || set_method(easy, transfer) ||
	       set_headers(easy, transfer);
}

/* The handle leaves the multi handle. A good one, whose transfer ended well, is used again; others are not: of one that could not resolve
 * a name libcurl 7.88 refuses to take options even after a reset. Connections are the multi handle's, and stay. */
static void detach(struct ds_http *http, struct ds_http_transfer *transfer, bool is_good)
{
	CURL *easy = transfer->easy;

	ds_list_remove(&transfer->node);
	curl_multi_remove_handle(http->multi, easy);
	curl_slist_free_all(transfer->header_list);
	transfer->easy = NULL;
	transfer->header_list = NULL;
	if (is_good && http->idle_n < http->connections_max) {
		curl_easy_reset(easy);
		http->idle[http->idle_n++] = easy;
	} else {
		curl_easy_cleanup(easy);
	}
}

int ds_http_start(struct ds_http *http, struct ds_http_transfer *transfer)
{
	CURL *easy = http->idle_n ? http->idle[--http->idle_n] : curl_easy_init();

	if (!easy)
		return -ENOMEM;
	transfer->http = http;
	transfer->easy = easy;
	transfer->headway_ns = ds_mono_ns();
	ds_buf_init(&transfer->headers_buf, DS_HTTP_HEADERS_MAX);
	ds_list_push_back(&http->active, &transfer->node);
	if (set_options(http, easy, transfer) != 0 ||
	    curl_multi_add_handle(http->multi, easy) != CURLM_OK) {
		detach(http, transfer, false);
		return -ENOMEM;
	}
	http->watch_ns = DS_MIN(http->watch_ns, transfer->headway_ns + WATCH_INTERVAL_NS);
	return 0;
}

void ds_http_abort(struct ds_http *http, struct ds_http_transfer *transfer)
{
	detach(http, transfer, false);
}

void ds_http_transfer_release(struct ds_http_transfer *transfer)
{
	ds_buf_release(&transfer->headers_buf);
}

/* What curl's code means for the caller, when no callback of ours has said it. */
static void judge(struct ds_http_transfer *transfer, CURLcode code)
{
	const char *text;

	switch (code) {
	case CURLE_OK:
		transfer->result = 0;
		return;
	case CURLE_OUT_OF_MEMORY:
		transfer->result = -ENOMEM;
		/* It also says so of a header line over 100 KiB. */
		if (transfer->header_bytes && !transfer->is_body)
			transfer->result = -DS_E_PROTOCOL;
		break;
	case CURLE_PEER_FAILED_VERIFICATION:
	case CURLE_SSL_CACERT_BADFILE:
	case CURLE_SSL_ISSUER_ERROR:
	case CURLE_SSL_CIPHER:
	case CURLE_URL_MALFORMAT:
		transfer->is_final = true;
		transfer->result = -DS_E_NETWORK;
		break;
	case CURLE_WEIRD_SERVER_REPLY:
	case CURLE_UNSUPPORTED_PROTOCOL: /* an answer without a status line (HTTP/0.9) */
	case CURLE_BAD_CONTENT_ENCODING:
	case CURLE_FILESIZE_EXCEEDED:
		transfer->result = -DS_E_PROTOCOL;
		break;
	default:
		transfer->result = -DS_E_NETWORK;
	}
	/* Escaped, since curl may quote the server. */
	text = transfer->curl_error[0] ? transfer->curl_error : curl_easy_strerror(code);
	if (!transfer->error[0])
		ds_escape(text, strlen(text), transfer->error, sizeof(transfer->error));
}

static void finish(struct ds_http *http, struct ds_http_transfer *transfer, CURLcode code)
{
	long connects_n = 0, connect_errno = 0;
	const char *ip = NULL;

	curl_easy_getinfo(transfer->easy, CURLINFO_NUM_CONNECTS, &connects_n);
	transfer->is_reused = connects_n == 0;
	if (code == CURLE_COULDNT_CONNECT || code == CURLE_OPERATION_TIMEDOUT)
		ds_http_addresses_failed(&http->addresses, &transfer->tries);
	else if (connects_n && code == CURLE_OK &&
		 curl_easy_getinfo(transfer->easy, CURLINFO_PRIMARY_IP, &ip) == CURLE_OK && ip)
		ds_http_addresses_worked(&http->addresses, &transfer->tries, ip, ds_mono_ns());
	if (code == CURLE_COULDNT_CONNECT &&
	    curl_easy_getinfo(transfer->easy, CURLINFO_OS_ERRNO, &connect_errno) == CURLE_OK)
		transfer->connect_errno = (int)connect_errno;
	detach(http, transfer, code == CURLE_OK);
	if (transfer->refused < 0)
		transfer->result = transfer->refused;
	else if (transfer->must_cut)
		transfer->result = 0;
	else
		judge(transfer, code);
	/* curl does not mind an answer that is nothing but a status line's end. */
	if (transfer->result == 0 && !transfer->is_body) {
		transfer->result = -DS_E_PROTOCOL;
		snprintf(transfer->error, sizeof(transfer->error), "there is no answer");
	}
	transfer->done(transfer);
}

static void give_up(struct ds_http *http, struct ds_http_transfer *transfer, bool is_stall)
{
	detach(http, transfer, false);
	transfer->is_stall = is_stall;
	transfer->result = is_stall ? -DS_E_NETWORK : -DS_E_TIMEOUT;
	snprintf(transfer->error, sizeof(transfer->error),
		 is_stall ? "the connection stands still" : "there was no answer in time");
	transfer->done(transfer);
}

/* Ends what is late or stands still; whether there was any. */
static bool watch(struct ds_http *http, uint64_t now_ns)
{
	struct ds_list all;
	bool any = false;

	if (now_ns < http->watch_ns)
		return false;
	http->watch_ns = now_ns + WATCH_INTERVAL_NS;
	ds_list_init(&all);
	ds_list_splice(&all, &http->active);
	while (!ds_list_is_empty(&all)) {
		struct ds_http_transfer *transfer =
			ds_list_entry(all.next, struct ds_http_transfer, node);

		ds_list_remove(&transfer->node);
		ds_list_push_back(&http->active, &transfer->node);
		if (transfer->window_bytes >= HEADWAY_BYTES) {
			transfer->window_bytes = 0;
			transfer->headway_ns = now_ns;
		}
		if (now_ns >= transfer->deadline_ns)
			give_up(http, transfer, false);
		else if (now_ns - transfer->headway_ns >= transfer->stall_ns)
			give_up(http, transfer, true);
		else
			continue;
		any = true;
	}
	return any;
}

/* ---- the loop */

/* Ends what curl says is over; whether there was any. */
static bool reap(struct ds_http *http)
{
	bool any = false;
	CURLMsg *msg;
	int left_n;

	while ((msg = curl_multi_info_read(http->multi, &left_n))) {
		struct ds_http_transfer *transfer = NULL;

		if (msg->msg != CURLMSG_DONE)
			continue;
		curl_easy_getinfo(msg->easy_handle, CURLINFO_PRIVATE, (char **)&transfer);
		finish(http, transfer, msg->data.result);
		any = true;
	}
	return any;
}

static int poll_ms(const struct ds_http *http, uint64_t now_ns, uint64_t next_ns)
{
	uint64_t ms;

	if (!ds_list_is_empty(&http->active))
		next_ns = DS_MIN(next_ns, http->watch_ns);
	if (next_ns <= now_ns)
		return 0;
	ms = (next_ns - now_ns) / DS_NS_PER_MS + 1;
	return (int)DS_MIN(ms, (uint64_t)60000);
}

static void *http_thread(void *arg)
{
	struct ds_http *http = arg;
	uint64_t next_ns = 0;

	pthread_setname_np(pthread_self(), "dsfs-net");
	while (http->tick(http->ctx, ds_mono_ns(), &next_ns)) {
		uint64_t now_ns;
		int running_n;
		bool any;

		curl_multi_perform(http->multi, &running_n);
		any = reap(http);
		now_ns = ds_mono_ns();
		/* Whoever is done may have left work for tick. */
		if (watch(http, now_ns) || any)
			continue;
		curl_multi_poll(http->multi, NULL, 0, poll_ms(http, now_ns, next_ns), NULL);
	}
	return NULL;
}

int ds_http_new(unsigned connections_max, bool no_proxy,
		bool (*tick)(void *ctx, uint64_t now_ns, uint64_t *ret_next_ns), void *ctx,
		struct ds_http **ret_http)
{
	struct ds_http *http = ds_calloc(1, sizeof(*http));
	const char *ca_bundle = getenv("AWS_CA_BUNDLE");

	if (!http)
		return -ENOMEM;
	ds_list_init(&http->active);
	http->connections_max = connections_max;
	http->no_proxy = no_proxy;
	http->tick = tick;
	http->ctx = ctx;
	http->idle = ds_calloc(connections_max, sizeof(*http->idle));
	if (ca_bundle && *ca_bundle)
		http->ca_bundle = ds_strdup(ca_bundle);
	if (!http->idle || (ca_bundle && *ca_bundle && !http->ca_bundle)) {
		ds_http_free(http);
		return -ENOMEM;
	}
	*ret_http = http;
	return 0;
}

struct ds_http *ds_http_free(struct ds_http *http)
{
	if (!http)
		return NULL;
	if (http->is_running)
		pthread_join(http->thread, NULL);
	while (http->idle_n)
		curl_easy_cleanup(http->idle[--http->idle_n]);
	if (http->multi)
		curl_multi_cleanup(http->multi);
	if (http->share)
		curl_share_cleanup(http->share);
	ds_free(http->idle);
	ds_free(http->ca_bundle);
	ds_free(http);
	return NULL;
}

int ds_http_run(struct ds_http *http)
{
	sigset_t all, old;
	int r;

	/* Not before: what curl and OpenSSL start must not be there when the process forks. */
	pthread_once(&global_once, init_global);
	if (!http->multi) {
		http->multi = curl_multi_init();
		if (!http->multi)
			return -ENOMEM;
		curl_multi_setopt(http->multi, CURLMOPT_MAXCONNECTS, (long)http->connections_max);
	}
	/* Without lock functions: it is used by the network thread alone. */
	if (!http->share) {
		http->share = curl_share_init();
		if (!http->share || curl_share_setopt(http->share, CURLSHOPT_SHARE,
						      CURL_LOCK_DATA_SSL_SESSION) != CURLSHE_OK)
			return -ENOMEM;
	}
	/* Among the blocked signals is SIGPIPE, which OpenSSL's writes could raise. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&http->thread, NULL, http_thread, http);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	http->is_running = r == 0;
	return -r;
}

void ds_http_wake(struct ds_http *http)
{
	if (http->multi)
		curl_multi_wakeup(http->multi);
}

/* ---- headers */

bool ds_http_header(const struct ds_http_transfer *transfer, const char *name, unsigned idx,
		    char *buf, size_t size)
{
	const char *at = ds_buf_str(&transfer->headers_buf);
	size_t name_len = strlen(name);

	while (*at) {
		size_t line_len = strcspn(at, "\n");
		const char *value = at + name_len + 1, *end = at + line_len;
		bool is_it = line_len > name_len && at[name_len] == ':' &&
			     strncasecmp(at, name, name_len) == 0;

		at = end + (*end == '\n');
		if (!is_it || idx-- > 0)
			continue;
		while (value < end && (*value == ' ' || *value == '\t'))
			value++;
		while (value < end && (end[-1] == ' ' || end[-1] == '\t' || end[-1] == '\r'))
			end--;
		snprintf(buf, size, "%.*s", (int)(end - value), value);
		return true;
	}
	return false;
}
