/*
 * What the two sides of fuse_uring_stress share: its file system (fuse_uring_server.c), and those who read
 * there and judge (fuse_uring_stress.c). They are processes of their own.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "stress.h"

#define SKIP	   77

#define FILE_BYTES (UINT64_C(1) << 30)
#define READ_BYTES 65536u
#define READERS_N  8u
#define PARKED_N   1000u
/* Of the reads of "park", at most. */
#define LARGE_BYTES (256u << 10)
/* Of the file that the ring reads, which ends within a block; the kernel is told of more. */
#define BACKING_BYTES ((UINT64_C(64) << 20) + 4096 + 616)

/* Node ids. What a name is, says its first letter. */
enum {
	INO_ROOT = 1,
	INO_DATA,   /* "data": each read is answered by another thread */
	INO_LOCAL,  /* "local": each read is answered at once */
	INO_PARK,   /* "park": reads are not answered until is_let_go; look-ups of "p..." neither */
	INO_SLOW,   /* "slow": reads after up to slow_ns; look-ups of "s..." too */
	INO_FILE,   /* "file": read by the ring, from the page cache or into it */
	INO_DIRECT, /* "direct": read by the ring, past the page cache */
	INO_PIPE,   /* "pipe": read by the ring, for ever */
};

/* What the server does not get, of what it needs for its rings; from REFUSED_ENTRIES on, the kernel refuses what it is told. */
enum refused {
	REFUSED_NOTHING,
	REFUSED_RING,	      /* the last ring */
	REFUSED_MEMORY,	      /* the last entry's */
	REFUSED_THREAD,	      /* the last ring's */
	REFUSED_CORE,	      /* the last ring's: rings can be had without */
	REFUSED_ENTRIES,      /* the last ring's */
	REFUSED_REPLY,	      /* the next, once */
	REFUSED_REPLY_AT_END, /* and then the connection ends */
};

/* Shared by all processes. */
struct shared {
	_Atomic uint64_t reads_n[READERS_N], wrong_n, failed_n;
	_Atomic uint64_t ring_n, other_n; /* requests by way of the ring, and of /dev/fuse */
	_Atomic uint64_t parked_n, interrupted_n, replied_n;
	/* The ring's own reads: all that of ours were begun, and what became of them. */
	_Atomic uint64_t begun_n, whole_n, short_n, lost_n;
	_Atomic uint64_t slow_ns;
	_Atomic bool is_ring_broken; /* from when it ends on */
	_Atomic bool is_mounted, is_over, is_ending;
	unsigned keep_kib;	  /* io_uring_keep; 0: all */
	bool is_failing;	  /* large reads are written to when they come, and end in EIO */
	_Atomic bool is_let_go;	  /* what is parked is answered by the next reads of others */
	_Atomic bool is_to_count; /* resident_bytes, by them too */
	_Atomic uint64_t resident_bytes; /* of the payloads of reads beyond READ_BYTES */
	enum refused refused;
	_Atomic bool is_next_refused; /* of REFUSED_REPLY... */
	_Atomic unsigned refusals_n;
	_Atomic int start_error; /* as libfuse has it when the mount answers */
	_Atomic int loop_result;
	_Atomic bool is_stdin_kept;
	_Atomic unsigned error_lines_n; /* of libfuse's log */
};

extern struct shared *shared;
extern char mountpoint[];
/* What the ring reads; the same file twice, the second with O_DIRECT, and a pipe that nobody writes to. */
extern int file_fd, direct_fd, pipe_fds[2];

/* Byte `off` of a file: 8 bytes at a time, so that each place has its own. */
void fill(uint64_t off, size_t len, char *buf);

/* In a process of its own: the exit status. */
int run_server(unsigned depth, uint64_t seed);
