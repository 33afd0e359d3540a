/*
 * The fixture of fault tests of the S3 backend: a store on a scripted server, with keys that must
 * never show, and a buffer and a diag for its requests. Criterion runs each test in a process of its
 * own, so that these are plain variables.
 */
#pragma once

#include "http_script.h"
#include "store/store.h"

#define S3_SCRIPT_SECRET "verysecretverysecretverysecret"

extern struct http_script *script;
extern struct ds_store *store;
extern struct ds_buf buf;
extern struct ds_diag diag;

/* Opens s3://bucket/pre on a new script; without options: 20 s. */
void set_up_with(struct ds_store_options options);
void set_up(void);
void tear_down(void);
/* http_script_check, and tear_down. */
void end(void);

/* GET of a range of "k" into buf (emptied first); fills diag. */
int get_range(uint64_t off, uint64_t len);
/* Asserts on a result, and that diag holds no secret. */
void expect(int r, int code);
/* Adds the answer 206 with this Content-Range ("0-3/10") and body. */
void good_range(const char *range, const char *body);
struct ds_store_stats stats(void);
/* Value of a header of the idx-th request. */
void header_of(unsigned idx, const char *name, char *value, size_t size);
/* Marks the step added last as a fault, adds a good answer, and asserts that a GET gets it. */
void refused_then_good(void);
