/*
 * Threads that look up and read through one view, opened anew again and again over a cache that is warm, too
 * small, or not there: what a view keeps of packs, images and connections is made by several at once.
 */
#include <pthread.h>
#include <string.h>

#include "repo/view_warm.h"
#include "stress.h"
#include "view_support.h"

#define THREADS_N 8u
#define READS_N	  60u

struct reader {
	pthread_t thread;
	struct ds_view *view;
	struct ds_cache *cache;
	struct ds_prng prng;
};

static void *run_reader(void *ctx)
{
	struct reader *reader = ctx;

	for (unsigned i = 0; i < READS_N; i++) {
		/* Most threads at the same few files, so that they meet. */
		bool is_large = ds_prng_below(&reader->prng, 6) == 0;
		unsigned file = is_large ? VIEW_FILES_N
					 : (unsigned)ds_prng_below(&reader->prng,
								   i % 2 ? VIEW_FILES_N : 10);
		uint64_t off = ds_prng_below(&reader->prng, view_file_size(file) + 1u);

		STRESS_CHECK(view_check_file(reader->view, file, off, 70000, 20000) == 0);
		/* What was found whole goes from under who reads it. */
		if (ds_prng_below(&reader->prng, 200) == 0)
			(void)ds_cache_make_room(reader->cache, DS_MIB(256));
	}
	return NULL;
}

/* One that warms the view meanwhile, to its end or until it is stopped. */
static void *run_warmer(void *ctx)
{
	int r = ds_warm_run(ctx, NULL);

	STRESS_CHECK(r == 0 || r == -ENOSPC || r == -DS_E_INTERRUPTED);
	return NULL;
}

int main(int argc, char *argv[])
{
	static const uint64_t capacities[] = {DS_MIB(256), DS_MIB(256), 300000, 0};
	struct stress stress = stress_begin(argc, argv, 8);
	struct ds_prng prng = {.state = stress.seed};
	struct reader readers[THREADS_N];
	struct ds_warm_options options = {.timeout_ms = 20000};
	struct ds_warm_progress progress;
	struct ds_warm *warm;
	struct view_bench bench;
	pthread_t warmer;
	uint64_t rounds_n = 0;

	view_bench_init(&bench);
	do {
		uint64_t capacity = capacities[ds_prng_below(&prng, DS_ARRAY_SIZE(capacities))];

		STRESS_CHECK(view_bench_open(&bench, capacity ? support_path("c") : NULL, capacity,
					     (uint8_t)(1 + ds_prng_below(&prng, 2)), false) == 0);
		for (unsigned i = 0; i < THREADS_N; i++) {
			readers[i].view = bench.view;
			readers[i].cache = bench.cache;
			readers[i].prng.state = ds_prng_next(&prng);
			STRESS_CHECK(pthread_create(&readers[i].thread, NULL, run_reader,
						    &readers[i]) == 0);
		}
		STRESS_CHECK(ds_warm_new(bench.view, &options, &warm) == 0);
		STRESS_CHECK(pthread_create(&warmer, NULL, run_warmer, warm) == 0);
		if (ds_prng_below(&prng, 2))
			ds_warm_stop(warm);
		ds_warm_get_progress(warm, &progress);
		for (unsigned i = 0; i < THREADS_N; i++)
			pthread_join(readers[i].thread, NULL);
		ds_warm_get_progress(warm, &progress);
		ds_warm_stop(warm);
		pthread_join(warmer, NULL);
		ds_warm_free(warm);
		view_bench_close(&bench);
		rounds_n++;
	} while (ds_mono_ns() < stress.until_ns);
	view_bench_release(&bench);
	support_clean();
	printf("%llu rounds\n", (unsigned long long)rounds_n);
	return 0;
}
