/*
 * The S3 backend: when which request goes out, and how requests end.
 *
 * Submit takes a request into the inbox and wakes the network thread; everything else happens there,
 * in `tick`, once a round of its loop: new requests are sorted by urgency, cancelled and late ones
 * end, retries whose pause is over take a token, and as many start as there may be connections.
 * States of an op: see s3_op.h.
 *
 * INV-1 An op is in exactly one of inbox, urgent, normal, timed, active. INV-2 req->internal points
 * to the op from submit until its end, and is set to NULL under the mutex before done is called, so
 * that a cancel under the caller's own lock finds either a living op or nothing.
 */
#include <assert.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "store/s3_op.h"
#include "util/mem.h"
#include "util/random.h"

#define CONNECTIONS_N	 64u
#define STALL_TIMEOUT_MS 10000u
#define FLOW_LOOK_NS	 (250 * (uint64_t)DS_NS_PER_MS)
#define VAIN_TOLD_NS	 (2 * (uint64_t)DS_NS_PER_S)
#define STALL_DOUBLE_MAX \
	3u /* a store that is only slow is waited for, at most so many times twice as long */

static struct s3_store *s3_of(struct ds_store *store)
{
	return ds_container_of(store, struct s3_store, base);
}

/* ---- ops */

static struct s3_op *op_free(struct s3_op *op)
{
	if (!op)
		return NULL;
	ds_s3_request_release(op);
	ds_buf_release(&op->side);
	ds_free(op->token);
	ds_free(op);
	return NULL;
}

static struct s3_op *op_new(struct s3_store *s3, struct ds_store_req *req)
{
	struct s3_op *op = ds_calloc(1, sizeof(*op));

	if (!op)
		return NULL;
	op->s3 = s3;
	op->req = req;
	op->since_ns = ds_mono_ns();
	ds_list_init(&op->node);
	ds_list_init(&op->cancel_node);
	ds_list_init(&op->hasten_node);
	ds_buf_init(&op->side, (size_t)8 << 20);
	if (req->op == DS_STORE_GET)
		op->into_before_bytes = req->into->len_bytes;
	if (req->op == DS_STORE_LIST)
		op->rows_before_n = req->listing->objects_n;
	if (req->op == DS_STORE_PUT)
		op->refused = ds_store_check_key(req->key, &req->diag);
	/* On the caller's thread: 32 MiB take a while. */
	if (ds_s3_hash(req->op == DS_STORE_PUT ? req->body : NULL,
		       req->op == DS_STORE_PUT ? req->body_len_bytes : 0, op->payload_hash) < 0)
		return op_free(op);
	return op;
}

static void finish_req(struct s3_store *s3, struct ds_store_req *req, int code)
{
	req->result = code;
	if (code == 0) {
		unsigned attempts_n = req->diag.attempts;

		ds_diag_clear(&req->diag);
		req->diag.attempts = attempts_n;
	}
	ds_store_count_result(&s3->counters, code);
	ds_store_complete(&s3->base, req);
}

/* The op is on no list. */
static void finish(struct s3_op *op, int code)
{
	struct s3_store *s3 = op->s3;
	struct ds_store_req *req = op->req;

	if (code < 0 && req->op == DS_STORE_GET)
		ds_buf_truncate(req->into, op->into_before_bytes);
	if (code < 0 && req->op == DS_STORE_LIST)
		ds_store_listing_truncate(req->listing, op->rows_before_n);
	if (code == 0 && req->op == DS_STORE_PUT)
		s3->counters.sent_bytes += req->body_len_bytes;
	if (code == 0 && req->by_headway)
		s3->headway_ns = ds_mono_ns();
	pthread_mutex_lock(&s3->mutex);
	req->internal = NULL;
	ds_list_remove(&op->cancel_node);
	ds_list_remove(&op->hasten_node);
	pthread_mutex_unlock(&s3->mutex);
	op_free(op);
	finish_req(s3, req, code);
}

/* A new attempt is no headway until it is further than those before: a store that takes all bytes and
 * then refuses would be asked for ever. */
static void note_flow(struct s3_op *op)
{
	uint64_t now_ns = ds_mono_ns();

	if (!op->req->by_headway || op->transfer.sent_bytes == op->flow_bytes)
		return;
	op->flow_bytes = op->transfer.sent_bytes;
	op->flow_ns = now_ns;
	if (op->flow_bytes > op->flow_bytes_max) {
		op->flow_bytes_max = op->flow_bytes;
		op->s3->headway_ns = now_ns;
	}
}

/* When it fails if nothing changes until then. */
static uint64_t deadline_of(const struct s3_op *op)
{
	const struct ds_store_req *req = op->req;
	uint64_t from_ns = DS_MAX(op->since_ns, op->s3->headway_ns);

	if (!req->by_headway)
		return req->deadline_ns;
	/* What flows is not cut off; only whether it is tried again is a matter of headway. */
	if (op->phase == S3_ACTIVE)
		from_ns = DS_MAX(from_ns, op->flow_ns);
	return from_ns + op->s3->base.timeout_ms * DS_NS_PER_MS;
}

static void look_at_timers(struct s3_store *s3, uint64_t at_ns)
{
	s3->timers_ns = DS_MIN(s3->timers_ns, at_ns);
}

/* To the ready ones; those that were ready before go first, but for a head start. */
static void make_ready(struct s3_op *op, bool first)
{
	struct ds_list *list = op->req->is_urgent ? &op->s3->urgent : &op->s3->normal;

	op->phase = S3_WAITING;
	op->is_ready = true;
	if (first)
		ds_list_push_front(list, &op->node);
	else
		ds_list_push_back(list, &op->node);
	look_at_timers(op->s3, deadline_of(op));
}

static void wait_until(struct s3_op *op, uint64_t due_ns)
{
	op->phase = S3_WAITING;
	op->is_ready = false;
	op->due_ns = due_ns;
	ds_list_push_back(&op->s3->timed, &op->node);
	look_at_timers(op->s3, DS_MIN(due_ns, deadline_of(op)));
}

static void tell_waits(struct s3_op *op, int code, uint64_t left_ns)
{
	struct s3_store *s3 = op->s3;
	const struct ds_diag *diag = &op->req->diag;
	const char *origin = s3->endpoint.origin, *detail = diag->detail;
	char why[512];

	if (op->transfer.connect_errno)
		detail = ds_strerror(-op->transfer.connect_errno);
	if (code == -DS_E_NETWORK && !diag->http_status)
		snprintf(why, sizeof(why), "cannot reach %s: %s", origin, detail);
	else
		snprintf(why, sizeof(why), "%s: %s%s%s", origin, ds_strerror(code),
			 detail[0] ? ": " : "", detail);
	s3->waits(s3->waits_ctx, why, left_ns / DS_NS_PER_MS);
	s3->waits = NULL;
}

static void retry(struct s3_op *op, struct s3_verdict verdict)
{
	struct s3_store *s3 = op->s3;
	uint64_t pause_ns = ds_s3_pacer_backoff_ns(&s3->pacer, op->attempts_n);
	uint64_t now_ns = ds_mono_ns();
	uint64_t due_ns = now_ns + DS_MAX(pause_ns, verdict.delay_ns);

	/* No use in waiting for what will not be tried. */
	if (due_ns >= deadline_of(op)) {
		op->req->retry_after_ns = due_ns - now_ns;
		finish(op, verdict.code);
		return;
	}
	if (!op->vain_ns)
		op->vain_ns = op->transfer.headway_ns;
	if (s3->waits && due_ns - op->vain_ns >= VAIN_TOLD_NS)
		tell_waits(op, verdict.code, deadline_of(op) - now_ns);
	op->needs_token = true;
	wait_until(op, due_ns);
}

static void on_done(struct ds_http_transfer *transfer)
{
	struct s3_op *op = transfer->ctx;
	struct s3_store *s3 = op->s3;
	struct s3_verdict verdict;

	note_flow(op);
	op->phase = S3_WAITING;
	ds_list_remove(&op->node);
	s3->active_n--;
	if (transfer->status < 300)
		s3->counters.received_bytes += transfer->received_bytes;
	verdict = ds_s3_answer_judge(op);
	/* Nor on the word of the same DNS answer. */
	op->wants_fresh = transfer->result == -DS_E_NETWORK;
	if (op->req->op == DS_STORE_GET && verdict.next != S3_DONE)
		ds_buf_truncate(op->req->into, op->into_before_bytes);
	switch (verdict.next) {
	case S3_DONE:
		finish(op, verdict.code);
		break;
	case S3_RETRY:
		retry(op, verdict);
		break;
	case S3_RETRY_NOW:
		make_ready(op, true);
		break;
	case S3_NEXT_PAGE:
		op->attempts_n = 0;
		op->protocol_n = 0;
		op->vain_ns = 0;
		make_ready(op, false);
		break;
	}
}

static void start(struct s3_op *op)
{
	struct s3_store *s3 = op->s3;
	unsigned stalls_n = DS_MIN(op->stall_n, STALL_DOUBLE_MAX);
	int r;

	r = ds_s3_request_build(op);
	if (r == 0) {
		op->transfer.done = on_done;
		op->transfer.stall_ns = s3->stall_ns << stalls_n;
		op->transfer.fresh_connection = op->wants_fresh;
		r = ds_http_start(s3->http, &op->transfer);
	}
	if (r < 0) {
		finish(op, r);
		return;
	}
	if (op->needs_token)
		s3->counters.retries_n++;
	op->needs_token = false;
	op->attempts_n++;
	s3->counters.requests_n[op->req->op]++;
	op->phase = S3_ACTIVE;
	op->flow_bytes = 0;
	op->started_ns = op->flow_ns = ds_mono_ns();
	ds_list_push_back(&s3->active, &op->node);
	s3->active_n++;
	if (op->req->by_headway)
		look_at_timers(s3, op->flow_ns + FLOW_LOOK_NS);
}

/* ---- the network thread's round */

static void end_early(struct s3_op *op, int code)
{
	if (op->phase == S3_ACTIVE) {
		ds_http_abort(op->s3->http, &op->transfer);
		op->s3->active_n--;
	} else if (op->phase == S3_WAITING && !op->is_ready) {
		uint64_t now_ns = ds_mono_ns();

		op->req->retry_after_ns = op->due_ns > now_ns ? op->due_ns - now_ns : 0;
	}
	ds_list_remove(&op->node);
	finish(op, code);
}

static struct s3_op *op_of(struct ds_list *node)
{
	return ds_list_entry(node, struct s3_op, node);
}

/* What is ready changes its place; what is not will come to the right one. */
static void hasten(struct s3_op *op)
{
	if (op->req->is_urgent)
		return;
	op->req->is_urgent = true;
	if (op->phase != S3_WAITING || !op->is_ready)
		return;
	ds_list_remove(&op->node);
	make_ready(op, false);
}

static struct s3_op *take_hastened(struct s3_store *s3)
{
	struct s3_op *op = NULL;

	pthread_mutex_lock(&s3->mutex);
	if (!ds_list_is_empty(&s3->locked.hastened)) {
		op = ds_list_entry(s3->locked.hastened.next, struct s3_op, hasten_node);
		ds_list_remove(&op->hasten_node);
	}
	pthread_mutex_unlock(&s3->mutex);
	return op;
}

/* Takes what other threads left. Returns false when the store is ending and nothing is left. */
static bool take_inbox(struct s3_store *s3)
{
	struct ds_list inbox, *lists[] = {&s3->urgent, &s3->normal, &s3->timed, &s3->active};
	struct s3_op *op;
	bool is_ending;

	ds_list_init(&inbox);
	pthread_mutex_lock(&s3->mutex);
	ds_list_splice(&inbox, &s3->locked.inbox);
	is_ending = s3->locked.is_ending;
	pthread_mutex_unlock(&s3->mutex);
	while (!ds_list_is_empty(&inbox)) {
		struct ds_store_req *req = ds_list_entry(inbox.next, struct ds_store_req, node);

		op = req->internal;
		ds_list_remove(&req->node);
		if (!op) /* there was no memory for it */
			finish_req(s3, req, -ENOMEM);
		else if (op->refused < 0)
			finish(op, op->refused);
		else
			make_ready(op, false);
	}
	while ((op = take_hastened(s3)))
		hasten(op);
	for (;;) {
		pthread_mutex_lock(&s3->mutex);
		op = NULL;
		if (!ds_list_is_empty(&s3->locked.cancelled)) {
			op = ds_list_entry(s3->locked.cancelled.next, struct s3_op, cancel_node);
			ds_list_remove(&op->cancel_node);
		}
		pthread_mutex_unlock(&s3->mutex);
		if (!op)
			break;
		if (op->phase == S3_INBOX)
			op->refused = -DS_E_INTERRUPTED;
		else
			end_early(op, -DS_E_INTERRUPTED);
	}
	if (!is_ending)
		return true;
	for (size_t i = 0; i < DS_ARRAY_SIZE(lists); i++)
		while (!ds_list_is_empty(lists[i]))
			end_early(op_of(lists[i]->next), -DS_E_INTERRUPTED);
	pthread_mutex_lock(&s3->mutex);
	is_ending = ds_list_is_empty(&s3->locked.inbox);
	pthread_mutex_unlock(&s3->mutex);
	return !is_ending;
}

static void end_late(struct s3_op *op)
{
	if (!op->last_error)
		ds_diag_set(&op->req->diag, -DS_E_TIMEOUT, op->req->key,
			    "there was no answer in time");
	end_early(op, op->last_error ? op->last_error : -DS_E_TIMEOUT);
}

/* Those that go by headway: the deadline of the others' transfers is ds_http's business. */
static void look_at_flows(struct s3_store *s3, uint64_t now_ns)
{
	struct ds_list all;

	ds_list_init(&all);
	ds_list_splice(&all, &s3->active);
	while (!ds_list_is_empty(&all)) {
		struct s3_op *op = op_of(all.next);

		ds_list_remove(&op->node);
		ds_list_push_back(&s3->active, &op->node);
		if (!op->req->by_headway)
			continue;
		note_flow(op);
		if (now_ns >= deadline_of(op))
			end_late(op);
		else
			look_at_timers(s3, DS_MIN(now_ns + FLOW_LOOK_NS, deadline_of(op)));
	}
}

/* Ends the late ones among those that wait, and readies those whose pause is over. */
static void run_timers(struct s3_store *s3, uint64_t now_ns)
{
	struct ds_list *lists[] = {&s3->urgent, &s3->normal, &s3->timed};

	if (now_ns < s3->timers_ns)
		return;
	s3->timers_ns = DS_DEADLINE_NONE;
	look_at_flows(s3, now_ns);
	for (size_t i = 0; i < DS_ARRAY_SIZE(lists); i++) {
		struct ds_list all;

		ds_list_init(&all);
		ds_list_splice(&all, lists[i]);
		while (!ds_list_is_empty(&all)) {
			struct s3_op *op = op_of(all.next);
			uint64_t when_ns = op->due_ns;

			ds_list_remove(&op->node);
			if (now_ns >= deadline_of(op))
				end_late(op);
			else if (lists[i] != &s3->timed)
				make_ready(op, false);
			else if (now_ns < op->due_ns ||
				 !ds_s3_pacer_take(&s3->pacer, now_ns, &when_ns))
				wait_until(op, when_ns);
			else
				make_ready(op, true);
		}
	}
}

/* An eighth of the connections, and one at least, is kept for what somebody waits for. */
static void start_ready(struct s3_store *s3)
{
	unsigned max_n = ds_s3_pacer_connections(&s3->pacer);

	while (s3->active_n < max_n && !ds_list_is_empty(&s3->urgent)) {
		struct s3_op *op = op_of(s3->urgent.next);

		ds_list_remove(&op->node);
		start(op);
	}
	if (max_n > 1)
		max_n -= DS_MAX(max_n / 8, 1u);
	while (s3->active_n < max_n && !ds_list_is_empty(&s3->normal)) {
		struct s3_op *op = op_of(s3->normal.next);

		ds_list_remove(&op->node);
		start(op);
	}
}

static bool tick(void *ctx, uint64_t now_ns, uint64_t *ret_next_ns)
{
	struct s3_store *s3 = ctx;

	if (!take_inbox(s3))
		return false;
	run_timers(s3, now_ns);
	start_ready(s3);
	*ret_next_ns = s3->timers_ns;
	return true;
}

/* ---- the store's operations, from any thread */

static int s3_start(struct ds_store *store)
{
	struct s3_store *s3 = s3_of(store);
	int r = 0;

	pthread_mutex_lock(&s3->mutex);
	if (!s3->locked.is_started) {
		r = ds_http_run(s3->http);
		s3->locked.is_started = r == 0;
	}
	pthread_mutex_unlock(&s3->mutex);
	return r;
}

static void s3_submit(struct ds_store *store, struct ds_store_req *req)
{
	struct s3_store *s3 = s3_of(store);
	bool must_wake;

	req->internal = op_new(s3, req);
	/* Without the thread nobody could call done; it can only be tried again. */
	while (s3_start(store) < 0)
		ds_sleep_ms(50);
	pthread_mutex_lock(&s3->mutex);
	must_wake = ds_list_is_empty(&s3->locked.inbox);
	ds_list_push_back(&s3->locked.inbox, &req->node);
	pthread_mutex_unlock(&s3->mutex);
	if (must_wake)
		ds_http_wake(s3->http);
}

static void s3_cancel(struct ds_store *store, struct ds_store_req *req)
{
	struct s3_store *s3 = s3_of(store);
	struct s3_op *op;

	pthread_mutex_lock(&s3->mutex);
	op = req->internal;
	if (op && ds_list_is_empty(&op->cancel_node))
		ds_list_push_back(&s3->locked.cancelled, &op->cancel_node);
	pthread_mutex_unlock(&s3->mutex);
	ds_http_wake(s3->http);
}

static void s3_hasten(struct ds_store *store, struct ds_store_req *req)
{
	struct s3_store *s3 = s3_of(store);
	struct s3_op *op;

	pthread_mutex_lock(&s3->mutex);
	op = req->internal;
	if (op && ds_list_is_empty(&op->hasten_node))
		ds_list_push_back(&s3->locked.hastened, &op->hasten_node);
	pthread_mutex_unlock(&s3->mutex);
	ds_http_wake(s3->http);
}

static struct s3_store *s3_free(struct s3_store *s3)
{
	ds_http_free(s3->http);
	ds_s3_url_release(&s3->url);
	ds_s3_endpoint_release(&s3->endpoint);
	ds_s3_config_release(&s3->config);
	ds_free(s3->region);
	pthread_mutex_destroy(&s3->mutex);
	ds_free(s3);
	return NULL;
}

static void s3_destroy(struct ds_store *store)
{
	struct s3_store *s3 = s3_of(store);

	pthread_mutex_lock(&s3->mutex);
	s3->locked.is_ending = true;
	pthread_mutex_unlock(&s3->mutex);
	ds_http_wake(s3->http);
	s3->http = ds_http_free(s3->http);
	ds_store_release(&s3->base);
	s3_free(s3);
}

static void s3_get_stats(struct ds_store *store, struct ds_store_stats *ret_stats)
{
	ds_store_counters_get(&s3_of(store)->counters, ret_stats);
}

static const struct ds_store_ops s3_ops = {
	.start = s3_start,
	.submit = s3_submit,
	.cancel = s3_cancel,
	.hasten = s3_hasten,
	.destroy = s3_destroy,
	.get_stats = s3_get_stats,
};

/* ---- opening */

static int choose_addressing(const struct s3_store *s3, enum ds_store_addressing *addressing,
			     struct ds_diag *reterr_diag)
{
	const char *style = s3->config.addressing;

	if (*addressing != DS_STORE_ADDRESSING_AUTO || !style || strcmp(style, "auto") == 0 ||
	    ds_store_addressing_parse(style, addressing) == 0)
		return 0;
	return ds_diag_set(reterr_diag, -DS_E_USAGE, style,
			   "the profile's addressing_style is neither path, virtual nor auto");
}

static int configure(struct s3_store *s3, const char *url, const struct ds_store_options *options,
		     struct ds_diag *reterr_diag)
{
	enum ds_store_addressing addressing = options->addressing;
	const char *region;
	int r = ds_s3_url_parse(url, &s3->url, reterr_diag);

	if (r == 0)
		r = ds_s3_config_load(options->profile, &s3->config, reterr_diag);
	if (r == 0)
		r = choose_addressing(s3, &addressing, reterr_diag);
	if (r < 0)
		return r;
	region = options->region     ? options->region
		 : s3->config.region ? s3->config.region
				     : "us-east-1";
	if (!ds_s3_is_region(region))
		return ds_diag_set(reterr_diag, -DS_E_USAGE, region,
				   "a region's name has only a-z, 0-9 and '-'");
	s3->region = ds_strdup(region);
	if (!s3->region)
		return -ENOMEM;
	r = ds_s3_endpoint_parse(options->endpoint ? options->endpoint : s3->config.endpoint,
				 region, s3->url.bucket, addressing, options->insecure_http,
				 &s3->endpoint, reterr_diag);
	/* The profile's choice is for all endpoints, this one for this endpoint. */
	if (r == 0 && options->addressing == DS_STORE_ADDRESSING_VIRTUAL &&
	    strcmp(s3->endpoint.base_path, "/") != 0)
		r = ds_diag_set(reterr_diag, -DS_E_USAGE, s3->endpoint.origin,
				"no bucket's name goes before an IP address: give the endpoint "
				"by name, or addressing=path");
	return r;
}

int ds_store_s3_open(const char *url, const struct ds_store_options *options,
		     struct ds_store **ret_store, struct ds_diag *reterr_diag)
{
	unsigned connections_n = options->connections_n ? options->connections_n : CONNECTIONS_N;
	uint64_t stall_ms =
		options->stall_timeout_ms ? options->stall_timeout_ms : STALL_TIMEOUT_MS;
	struct s3_store *s3 = ds_calloc(1, sizeof(*s3));
	int r;

	if (!s3)
		return -ENOMEM;
	pthread_mutex_init(&s3->mutex, NULL);
	ds_list_init(&s3->locked.inbox);
	ds_list_init(&s3->locked.cancelled);
	ds_list_init(&s3->locked.hastened);
	ds_list_init(&s3->urgent);
	ds_list_init(&s3->normal);
	ds_list_init(&s3->timed);
	ds_list_init(&s3->active);
	s3->timers_ns = DS_DEADLINE_NONE;
	s3->stall_ns = stall_ms * DS_NS_PER_MS;
	s3->waits = options->waits;
	s3->waits_ctx = options->waits_ctx;
	ds_s3_pacer_init(&s3->pacer, connections_n, ds_random_u64(), ds_mono_ns());
	r = configure(s3, url, options, reterr_diag);
	/* What goes to this machine itself does not go through a proxy. */
	if (r == 0)
		r = ds_http_new(connections_n, s3->endpoint.is_loopback, tick, s3, &s3->http);
	if (r == 0)
		r = ds_store_init(&s3->base, &s3_ops, url, options->timeout_ms);
	if (r < 0) {
		s3_free(s3);
		return r;
	}
	*ret_store = &s3->base;
	return 0;
}
