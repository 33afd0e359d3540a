/*
 * Error codes: the one channel by which every function of dsfs reports failure.
 *
 * A function returns 0 or a negative code. -1..-4095 is a negated errno; below that are the codes
 * of this list. Counts and objects come back through `ret_` parameters, never through the return
 * value. Three-valued functions (-code, 0, 1) are those named is_, has_ or _next.
 *
 * The list yields the enum, the name, the errno that a FUSE reply carries, whether trying again can
 * help, and the text. Codes become an errno in one place (fs/fs_reply.c) and an exit status in one
 * place (cli/main.c).
 *
 * Threads: all functions here are pure and may be called from anywhere.
 */
#ifndef DS_UTIL_ERROR_H
#define DS_UTIL_ERROR_H

#include <errno.h>
#include <stdbool.h>

/* X(name, number, errno, may be retried, text) */
#define DS_ERRORS(X)                                                                        \
	X(NOT_LOCAL, 4100, EAGAIN, false, "not in the cache yet")                           \
	X(CORRUPT, 4101, EIO, false, "the bytes do not match their digest")                 \
	X(MALFORMED, 4102, EIO, false, "malformed")                                         \
	X(TOO_NEW, 4103, EIO, false, "written by a newer format than this build reads")     \
	X(LIMIT, 4104, EIO, false, "over a limit")                                          \
	X(ABSENT, 4110, EIO, false, "no such object in the store")                          \
	X(PRESENT, 4111, EEXIST, false, "the object is already there")                      \
	X(DENIED, 4112, EACCES, false, "access denied by the store")                        \
	X(AUTH, 4113, EACCES, false, "the store refused the credentials")                   \
	X(NO_BUCKET, 4114, EIO, false, "no such bucket")                                    \
	X(THROTTLED, 4115, EIO, true, "the store asks to slow down")                        \
	X(SERVER, 4116, EIO, true, "the store failed")                                      \
	X(NETWORK, 4117, EIO, true, "the store cannot be reached")                          \
	X(TIMEOUT, 4118, EIO, true, "the deadline passed")                                  \
	X(PROTOCOL, 4119, EIO, true, "the store's answer makes no sense")                   \
	X(UNSUPPORTED, 4120, ENOTSUP, false, "the store lacks what this needs")             \
	X(MISMATCH, 4121, EIO, false, "the object has changed")                             \
	X(NO_REPO, 4130, ENOENT, false, "not a dsfs repository")                            \
	X(NO_VERSION, 4131, ENOENT, false, "no such version")                               \
	X(AMBIGUOUS, 4132, EINVAL, false, "more than one version fits")                     \
	X(CLOSED, 4133, ENOENT, false, "deleted")                                           \
	X(CONFLICT, 4134, EBUSY, false, "the branch has moved")                             \
	X(LATE, 4135, ETIMEDOUT, true, "too much time has passed since the start")          \
	X(SOURCE_CHANGED, 4136, EBUSY, true, "the source changed while it was read")        \
	X(SOURCE_REFUSED, 4137, EINVAL, false, "the source holds what cannot be committed") \
	X(INTERRUPTED, 4138, EINTR, false, "interrupted")                                   \
	X(USAGE, 4139, EINVAL, false, "wrong usage")                                        \
	X(TAKEN, 4140, EEXIST, false, "the name is taken")                                  \
	X(IMPORTED, 4141, EIO, false,                                                       \
	  "it lies in an imported object, which this release does not read")                \
	X(SCRATCH, 4142, EIO, false, "the directory for temporary files cannot be used")    \
	X(NO_KEYS, 4143, EACCES, false, "no keys for the store that could be used")         \
	X(NOT_MOUNTED, 4144, ENOENT, false, "no dsfs is mounted there")

enum ds_error {
#define DS_X(name, number, err, retry, text) DS_E_##name = number,
	DS_ERRORS(DS_X)
#undef DS_X
};

/* Text of a code, never NULL; `code` may be negative (as returned) or positive. */
const char *ds_strerror(int code);

/* Short constant name: "CORRUPT", "ENOENT"; for log lines and JSON. Never NULL. */
const char *ds_error_name(int code);

/* The errno (positive) that stands for a code; 0 for 0. */
int ds_error_errno(int code);

/* Whether the same call may succeed if it is made again. */
bool ds_error_is_retryable(int code);

#endif
