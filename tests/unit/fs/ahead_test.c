/*
 * Parts of listings that are made ahead (fs_ahead.c): who waits for whom. What makes a part is wrapped (see
 * meson.build), and stands still in between; so is waiting, to be seen.
 */
#include <criterion/criterion.h>
#include <errno.h>

#include "fs/fs_internal.h"
#include "test_leaks.h"

TestSuite(ahead, .fini = test_leaks_abort, .timeout = 60);

static struct {
	pthread_mutex_t mutex;
	pthread_cond_t cond;
	unsigned begun_n, waiting_n, asked_n;
	bool is_held;
	int result;
} maker = {.mutex = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER, .is_held = true};

static _Thread_local bool is_asker;

static void count(unsigned *n)
{
	pthread_mutex_lock(&maker.mutex);
	(*n)++;
	pthread_cond_broadcast(&maker.cond);
	pthread_mutex_unlock(&maker.mutex);
}

int __real_pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex);
int __wrap_pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex);
int __wrap_pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex)
{
	/* The part cannot be finished before its lock is given up, in here. */
	if (is_asker)
		count(&maker.waiting_n);
	return __real_pthread_cond_wait(cond, mutex);
}

int __wrap_fs_listing_make(struct ds_fs *fs, struct ds_demand *demand, struct fs_listing *listing);
int __wrap_fs_listing_make(struct ds_fs *fs, struct ds_demand *demand, struct fs_listing *listing)
{
	int r;

	(void)fs, (void)demand;
	pthread_mutex_lock(&maker.mutex);
	maker.begun_n++;
	pthread_cond_broadcast(&maker.cond);
	while (maker.is_held)
		pthread_cond_wait(&maker.cond, &maker.mutex);
	r = maker.result;
	pthread_mutex_unlock(&maker.mutex);
	listing->used = 17;
	return r;
}

/* One worker. */
static void begin(struct ds_fs *fs)
{
	*fs = (struct ds_fs){0};
	cr_assert_eq(ds_work_new(1, "ahead", &fs->work), 0);
	cr_assert_eq(fs_ahead_init(fs), 0);
}

/* The part of a directory that is asked for next. */
static struct fs_listing start(struct ds_fs *fs, uint64_t ino)
{
	struct fs_listing before = {
		.ino = ino, .off = 3, .size = 4096, .used = 100, .last = 55, .has_more = true};

	fs_ahead_start(fs, &before);
	return (struct fs_listing){.ino = ino, .off = 55, .size = 4096};
}

static void wait_begun(void)
{
	pthread_mutex_lock(&maker.mutex);
	while (!maker.begun_n)
		pthread_cond_wait(&maker.cond, &maker.mutex);
	pthread_mutex_unlock(&maker.mutex);
}

static void let_go(void)
{
	pthread_mutex_lock(&maker.mutex);
	maker.is_held = false;
	pthread_cond_broadcast(&maker.cond);
	pthread_mutex_unlock(&maker.mutex);
}

static void end(struct ds_fs *fs)
{
	ds_work_free(fs->work);
	fs_ahead_end(fs);
}

struct asker {
	struct ds_fs *fs;
	struct fs_listing asked, *found;
	bool is_making;
	pthread_t thread;
};

static void *ask(void *ctx)
{
	struct asker *asker = ctx;

	is_asker = true;
	asker->found = fs_ahead_take(asker->fs, &asker->asked, true, &asker->is_making);
	is_asker = false;
	count(&maker.asked_n);
	return NULL;
}

/* Another thread asks; the part is made when that one waits, or has not waited. */
static void ask_and_let_go(struct asker *asker)
{
	cr_assert_eq(pthread_create(&asker->thread, NULL, ask, asker), 0);
	pthread_mutex_lock(&maker.mutex);
	while (!maker.waiting_n && !maker.asked_n)
		pthread_cond_wait(&maker.cond, &maker.mutex);
	pthread_mutex_unlock(&maker.mutex);
	let_go();
	pthread_join(asker->thread, NULL);
	cr_assert_eq(maker.waiting_n, 1, "who asked has not waited");
	cr_assert(!asker->is_making);
}

Test(ahead, a_part_that_is_being_made_is_waited_for_and_not_made_twice)
{
	struct asker asker;
	bool is_making;
	struct ds_fs fs;

	begin(&fs);
	asker = (struct asker){.fs = &fs, .asked = start(&fs, 7)};
	wait_begun();
	/* A FUSE thread does not wait, and leaves it to the worker. */
	cr_assert_null(fs_ahead_take(&fs, &asker.asked, false, &is_making));
	cr_assert(is_making);
	ask_and_let_go(&asker);
	cr_assert_not_null(asker.found);
	cr_assert_eq(asker.found->used, 17);
	fs_ahead_put(&fs, asker.found);
	cr_assert_eq(maker.begun_n, 1);
	end(&fs);
}

Test(ahead, who_waits_for_a_part_that_cannot_be_had_makes_it_himself)
{
	struct asker asker;
	struct ds_fs fs;

	maker.result = -EIO;
	begin(&fs);
	asker = (struct asker){.fs = &fs, .asked = start(&fs, 7)};
	wait_begun();
	ask_and_let_go(&asker);
	cr_assert_null(asker.found);
	end(&fs);
}

Test(ahead, a_part_that_no_worker_has_begun_is_not_waited_for)
{
	struct fs_listing queued;
	bool is_making;
	struct ds_fs fs;

	begin(&fs);
	start(&fs, 7);
	wait_begun();
	queued = start(&fs, 8);
	cr_assert_null(fs_ahead_take(&fs, &queued, true, &is_making));
	cr_assert(!is_making);
	let_go();
	end(&fs);
	cr_assert_eq(maker.begun_n, 1, "made for nobody");
}

Test(ahead, what_was_answered_meanwhile_is_not_kept)
{
	struct fs_listing asked;
	bool is_making;
	struct ds_fs fs;

	begin(&fs);
	asked = start(&fs, 7);
	wait_begun();
	cr_assert_null(fs_ahead_take(&fs, &asked, false, &is_making));
	fs_ahead_drop(&fs, &asked);
	let_go();
	cr_assert_null(fs_ahead_take(&fs, &asked, true, &is_making));
	end(&fs);
}
