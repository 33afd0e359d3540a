/*
 * What a hit takes: counted on the thread that reads, as a thread of FUSE does. The locks are counted for whoever takes them, SQLite
 * too: the program's own functions come before libc's.
 */
#include <criterion/criterion.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "repo/view_internal.h"
#include "util/random.h"
#include "view_support.h"

TestSuite(view_hit, .fini = support_clean, .timeout = 240);

#define LARGE	  VIEW_FILES_N
#define PIECE_MAX DS_MIB(1)

static _Thread_local unsigned locks_n;

/* In place of libc's (or a sanitizer's), which it calls. */
#define COUNT(name, type)                                                           \
	int name(type *lock)                                                        \
	{                                                                           \
		static int (*_Atomic real)(type * lock);                            \
                                                                                    \
		if (!real)                                                          \
			real = (int (*)(type *))(uintptr_t)dlsym(RTLD_NEXT, #name); \
		locks_n++;                                                          \
		return real(lock);                                                  \
	}

COUNT(pthread_mutex_lock, pthread_mutex_t)
COUNT(pthread_mutex_trylock, pthread_mutex_t)
COUNT(pthread_rwlock_rdlock, pthread_rwlock_t)
COUNT(pthread_rwlock_wrlock, pthread_rwlock_t)
COUNT(pthread_spin_lock, pthread_spinlock_t)

static uint8_t data[PIECE_MAX];
static unsigned lent_n; /* of all hits that could have been */

/* -DS_E_NOT_LOCAL: it is no hit; else how many locks that took. */
static int try_hit(struct ds_view *view, unsigned i, uint64_t ino, uint64_t off, size_t len_bytes,
		   bool may_be_lent)
{
	struct ds_demand demand;
	unsigned before = locks_n, taken_n;
	size_t n = 0;
	int r;

	ds_demand_init(&demand, view);
	demand.may_check = false;
	demand.may_be_lent = may_be_lent;
	memset(data, 0xa5, sizeof(data));
	r = ds_view_read(view, &demand, ino, off, len_bytes, data, &n);
	taken_n = locks_n - before;
	if (r == 0) {
		cr_assert_eq(n, DS_MIN((uint64_t)len_bytes, view_file_size(i) - off));
		cr_assert(
			view_file_is_right(i, off, demand.lent.image ? demand.lent.data : data, n));
		lent_n += demand.lent.image != NULL;
	}
	ds_demand_release(&demand);
	cr_assert(r == 0 || r == -DS_E_NOT_LOCAL, "file %u at %llu: %s", i, (unsigned long long)off,
		  ds_strerror(r));
	return r < 0 ? r : (int)taken_n;
}

/* Bytes of file i, copied and lent. A kernel may take pages at any time: who reads puts them back, and then it is a hit. */
static unsigned hit(struct ds_view *view, unsigned i, uint64_t ino, uint64_t off, size_t len_bytes)
{
	unsigned taken_n = 0;

	for (int may_be_lent = 0; may_be_lent < 2; may_be_lent++) {
		int n;

		while ((n = try_hit(view, i, ino, off, len_bytes, may_be_lent)) == -DS_E_NOT_LOCAL)
			cr_assert_eq(view_check_file(view, i, off, len_bytes, 20000), 0);
		taken_n += (unsigned)n;
	}
	return taken_n;
}

/* All of it in order, and as many bytes here and there. */
static void hit_all(struct ds_view *view, unsigned i, uint64_t ino, size_t piece, bool in_order)
{
	uint64_t size = view_file_size(i), pieces_n = size / piece + 1;
	struct ds_prng prng = {.state = i + piece};
	unsigned taken_n = 0;

	for (uint64_t k = 0; k < pieces_n; k++) {
		uint64_t off = (in_order ? k : ds_prng_below(&prng, pieces_n)) * piece;

		if (off < size)
			taken_n += hit(view, i, ino, off, piece);
	}
	cr_expect_eq(taken_n, 0, "file %u in pieces of %zu, %s: %u locks", i, piece,
		     in_order ? "in order" : "here and there", taken_n);
}

static void read_whole(struct ds_view *view, unsigned i)
{
	for (uint64_t off = 0; off < view_file_size(i); off += PIECE_MAX)
		cr_assert_eq(view_check_file(view, i, off, PIECE_MAX, 20000), 0);
}

Test(view_hit, a_hit_takes_no_lock)
{
	static const size_t pieces[] = {4096, 40000, DS_KIB(128), PIECE_MAX};
	struct view_bench bench;
	uint64_t ino;

	view_bench_init(&bench);
	cr_assert_eq(view_bench_open(&bench, support_path("c"), DS_MIB(256), 1, false), 0);
	for (unsigned i = 1; i <= VIEW_FILES_N; i++)
		read_whole(bench.view, i);
	view_bench_settle(&bench);
	/* The first time as who streamed it, then as who finds it here. */
	for (unsigned round = 0; round < 2; round++) {
		for (unsigned i = 1; i < VIEW_FILES_N; i += 7) {
			if (view_file_size(i) == 0)
				continue;
			cr_assert_eq(view_find(bench.view, i, 20000, &ino), 0);
			hit_all(bench.view, i, ino, 40000, true);
			hit_all(bench.view, i, ino, 4096, false);
		}
		cr_assert_eq(view_find(bench.view, LARGE, 20000, &ino), 0);
		/* So that it is open, and nobody streams: the first hit of a whole file ends that. */
		cr_assert_eq(view_check_file(bench.view, LARGE, 0, 1, 20000), 0);
		for (size_t k = 0; k < DS_ARRAY_SIZE(pieces); k++) {
			lent_n = 0;
			hit_all(bench.view, LARGE, ino, pieces[k], false);
			hit_all(bench.view, LARGE, ino, pieces[k], true);
			cr_expect_gt(lent_n, view_file_size(LARGE) / pieces[k]);
		}
		view_bench_close(&bench);
		cr_assert_eq(view_bench_open(&bench, support_path("c"), DS_MIB(256), 1, false), 0);
		for (unsigned i = 1; i < VIEW_FILES_N; i += 7)
			cr_assert_eq(view_check_file(bench.view, i, 0, 40000, 20000), 0);
	}
	view_bench_close(&bench);
	view_bench_release(&bench);
}

/* Of ASan; absent in other builds. Sees all allocations, whoever makes them. */
int __sanitizer_install_malloc_and_free_hooks(void (*on_malloc)(const volatile void *, size_t),
					      void (*on_free)(const volatile void *))
	__attribute__((weak));

static _Thread_local unsigned allocations_n;

static void on_malloc(const volatile void *memory, size_t size)
{
	(void)memory, (void)size;
	allocations_n++;
}

static void on_free(const volatile void *memory)
{
	(void)memory;
}

/* The look-ups of a piece of a large file alone. */
static void look_up(struct ds_view *view, uint64_t ino, uint64_t off)
{
	struct ds_extent extents[VIEW_EXTENTS_MAX];
	struct ds_demand demand;
	struct ds_entry entry;
	size_t n;

	ds_demand_init(&demand, view);
	demand.may_check = false;
	cr_assert_eq(ds_view_get(view, &demand, ino, &entry), 0);
	cr_assert_eq(ds_manifest_extents(view->manifest, &demand, ino, off, PIECE_MAX, extents,
					 VIEW_EXTENTS_MAX, &n),
		     0);
	ds_demand_release(&demand);
}

Test(view_hit, a_hit_of_a_large_file_allocates_nothing_but_what_sqlite_does_in_two_look_ups)
{
	struct view_bench bench;
	uint64_t ino;

	if (!__sanitizer_install_malloc_and_free_hooks)
		cr_skip_test("only ASan tells of allocations");
	view_bench_init(&bench);
	cr_assert_eq(view_bench_open(&bench, support_path("c"), DS_MIB(256), 1, false), 0);
	read_whole(bench.view, LARGE);
	view_bench_settle(&bench);
	cr_assert_eq(view_find(bench.view, LARGE, 20000, &ino), 0);
	(void)hit(bench.view, LARGE, ino, 0, 1);
	cr_assert(__sanitizer_install_malloc_and_free_hooks(on_malloc, on_free) > 0);
	for (uint64_t off = 0; off < VIEW_LARGE_SIZE;) {
		unsigned before = allocations_n, look_ups_n;
		int r = 0;

		look_up(bench.view, ino, off);
		look_ups_n = allocations_n - before;
		for (int may_be_lent = 0; may_be_lent < 2 && r >= 0; may_be_lent++) {
			before = allocations_n;
			r = try_hit(bench.view, LARGE, ino, off, PIECE_MAX, may_be_lent);
			if (r >= 0)
				cr_expect_eq(allocations_n - before, look_ups_n,
					     "at %llu: %u and %u", (unsigned long long)off,
					     look_ups_n, allocations_n - before);
		}
		if (r >= 0)
			off += PIECE_MAX;
		else
			cr_assert_eq(view_check_file(bench.view, LARGE, off, PIECE_MAX, 20000), 0);
	}
	view_bench_close(&bench);
	view_bench_release(&bench);
}

/* Nor where what is before and behind it is not here, and nobody streams. */
Test(view_hit, a_hit_in_a_file_of_which_most_is_missing_takes_no_lock)
{
	static const unsigned at_mib[] = {20, 31, 12, 40, 5, 26};
	struct view_bench bench;
	unsigned taken_n = 0;
	uint64_t ino;

	view_bench_init_stream(&bench);
	cr_assert_eq(view_bench_open(&bench, support_path("c"), DS_GIB(1), 1, false), 0);
	cr_assert_eq(view_find(bench.view, VIEW_STREAM, 20000, &ino), 0);
	for (size_t i = 0; i < DS_ARRAY_SIZE(at_mib); i++)
		cr_assert_eq(view_check_file(bench.view, VIEW_STREAM, DS_MIB(at_mib[i]), 100,
					     20000),
			     0);
	view_bench_settle(&bench);
	for (unsigned round = 0; round < 100; round++)
		for (size_t i = 0; i < DS_ARRAY_SIZE(at_mib); i++)
			taken_n += hit(bench.view, VIEW_STREAM, ino, DS_MIB(at_mib[i]), 100);
	cr_expect_eq(taken_n, 0, "%u locks", taken_n);
	view_bench_close(&bench);
	view_bench_release(&bench);
}

/* Whoever found the file whole has to look again. */
Test(view_hit, what_was_whole_and_left_the_cache_is_fetched_ahead_again)
{
	struct ds_fetcher_stats before, after;
	uint64_t chunks_n, waited_n;
	struct ds_cache_stats cache;
	struct view_bench bench;
	uint64_t ino;

	view_bench_init_stream(&bench);
	cr_assert_eq(view_bench_open(&bench, support_path("c"), DS_GIB(1), 1, false), 0);
	cr_assert_eq(view_find(bench.view, VIEW_STREAM, 20000, &ino), 0);
	for (unsigned round = 0; round < 3; round++) {
		ds_fetcher_get_stats(bench.fetcher, &before);
		for (uint64_t off = 0; off < VIEW_STREAM_SIZE; off += DS_KIB(128))
			cr_assert_eq(view_check_file(bench.view, VIEW_STREAM, off, DS_KIB(128),
						     20000),
				     0);
		view_bench_settle(&bench);
		ds_fetcher_get_stats(bench.fetcher, &after);
		chunks_n = after.chunks_n - before.chunks_n;
		waited_n = after.wants_n - before.wants_n - (after.joined_n - before.joined_n);
		cr_expect_gt(chunks_n, 30);
		/* Few of the extents were waited for one by one. */
		cr_expect_lt(waited_n, chunks_n / 3, "round %u: %llu of %llu", round,
			     (unsigned long long)waited_n, (unsigned long long)chunks_n);
		(void)hit(bench.view, VIEW_STREAM, ino, 0, 1);
		hit_all(bench.view, VIEW_STREAM, ino, DS_KIB(128), true);
		(void)ds_cache_make_room(bench.cache, DS_GIB(1));
		ds_cache_get_stats(bench.cache, &cache);
		cr_expect_gt(cache.evictions_n, round);
	}
	view_bench_close(&bench);
	view_bench_release(&bench);
}
