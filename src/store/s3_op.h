/*
 * One request to S3, in the making: what store_s3.c (when), s3_request.c (what is sent) and
 * s3_answer.c (what came back) share.
 *
 * States: INBOX (submitted; under the store's mutex), WAITING (for a connection, or until due_ns),
 * ACTIVE (its transfer runs), over (req->internal NULL). Only the network thread moves an op on from
 * the inbox; others may only mark it cancelled.
 */
#ifndef DS_STORE_S3_OP_H
#define DS_STORE_S3_OP_H

#include <pthread.h>

#include "store/http.h"
#include "store/s3_credentials.h"
#include "store/s3_retry.h"
#include "store/s3_sign.h"
#include "store/s3_url.h"
#include "store/s3_xml.h"
#include "store/store_backend.h"

#define DS_S3_HEADERS_MAX 10

struct s3_store {
	struct ds_store base;
	struct ds_s3_url url;
	struct ds_s3_endpoint endpoint;
	struct ds_s3_config config; /* of the network thread, once that runs */
	char *region;
	uint64_t stall_ns;
	struct ds_http *http;
	struct ds_store_counters counters;
	struct ds_s3_pacer pacer;
	pthread_mutex_t mutex; /* a leaf */
	struct {
		struct ds_list inbox;	  /* of requests */
		struct ds_list cancelled; /* of ops, by cancel_node */
		struct ds_list hastened;  /* of ops, by hasten_node */
		bool is_started, is_ending;
	} locked;
	/* of the network thread */
	struct ds_list urgent, normal; /* ops that can start, in order */
	struct ds_list timed;	       /* ops that wait for due_ns */
	uint64_t timers_ns;	       /* when timed and deadlines are looked at next */
	uint64_t headway_ns;	       /* last headway of a PUT that goes by it */
	struct ds_list active;
	unsigned active_n;
	void (*waits)(void *ctx, const char *why,
		      uint64_t left_ms); /* NULL: not, or not any more */
	void *waits_ctx;
};

enum s3_phase { S3_INBOX, S3_WAITING, S3_ACTIVE };

struct s3_op {
	struct ds_list node;
	struct ds_list cancel_node, hasten_node; /* under the mutex */
	struct s3_store *s3;
	struct ds_store_req *req;
	enum s3_phase phase;
	bool is_ready; /* WAITING: among urgent or normal */
	int refused;   /* why it ends as soon as it leaves the inbox; 0: it does not */
	uint64_t due_ns;
	bool needs_token; /* it is a retry that has not taken its token yet */
	bool wants_fresh; /* the connection failed: not over a kept one */

	struct ds_http_transfer transfer;
	char *url;
	char *headers[DS_S3_HEADERS_MAX];
	char payload_hash[DS_S3_HASH_TEXT];
	struct ds_time sign_time; /* of the attempt */
	bool is_head;		  /* the attempt is a HEAD: also for a GET of no bytes, and */
	bool wants_size;	  /* for one that was told 416 without the size */
	struct ds_buf side;	  /* error documents and pages */

	uint64_t started_ns; /* of the attempt */
	unsigned attempts_n;
	/* how often something of the kind was tried again */
	unsigned auth_n, protocol_n, conflict_n, stall_n, reused_n, skew_n, empty_pages_n;
	int last_error; /* of the last answer; 0: there was none */
	size_t into_before_bytes;
	uint64_t body_bytes; /* GET: how many must come */
	/* PUT by headway: when it was submitted; bytes of this attempt, when they last grew, and the most
	 * of any attempt */
	uint64_t since_ns;
	uint64_t flow_bytes, flow_ns, flow_bytes_max;
	uint64_t vain_ns; /* since when every attempt has failed; 0: none has */

	/* LIST */
	size_t rows_before_n;
	char *token;
};

/* s3_request.c: fills op->transfer for one attempt, signed afresh. -ENOMEM, -DS_E_LIMIT. */
int ds_s3_request_build(struct s3_op *op);
/* Frees what an attempt holds. */
void ds_s3_request_release(struct s3_op *op);
/* The key as the bucket has it, in a new string; or NULL. */
char *ds_s3_full_key(const struct s3_op *op, const char *key);

/* s3_expect.c: on_response of every attempt, and what it shares. */
int ds_s3_answer_on_response(struct ds_http_transfer *transfer);
/* -DS_E_PROTOCOL with the reason in transfer->error. */
int ds_s3_content_length(struct ds_http_transfer *transfer, uint64_t *ret_len);
/* Size of the object from the Content-Range of a 416. */
bool ds_s3_parse_unsatisfied(const char *text, uint64_t *ret_size_bytes);
void ds_s3_note_modified(struct s3_op *op);
bool ds_s3_has_range(const struct ds_store_req *req);

/* s3_answer.c */
enum s3_next {
	S3_DONE,      /* `code` is the result */
	S3_RETRY,     /* after a pause of its own and at least delay_ns */
	S3_RETRY_NOW, /* at once, not counted as a fault */
	S3_NEXT_PAGE, /* a LIST goes on */
};
struct s3_verdict {
	enum s3_next next;
	int code; /* of the answer; 0 or negative */
	uint64_t delay_ns;
};
/* What to do now that the transfer is over. Notes the answer in req->diag and op->last_error. */
struct s3_verdict ds_s3_answer_judge(struct s3_op *op);

#endif
