/*
 * The next part of a directory, made by a worker while the kernel and its reader chew the part
 * before: a listing is one thread, so that else the mount and its reader sleep in turns.
 *
 *   FREE   -> QUEUED  a part was found that is not the last one of its directory
 *   QUEUED -> MAKING  by a worker
 *          -> FREE    by a worker: it was asked for before; who asked has made it himself
 *   MAKING -> READY   by a worker
 *          -> FREE    by a worker: it cannot be had (an error, a page that is not here), or a FUSE
 *                     thread had it answered meanwhile, from pages that are checked
 *   READY  -> TAKEN   by the request that asks for exactly this
 *          -> FREE    as the last
 *          -> QUEUED  of another part: nobody asked for this one for the longest time
 *   TAKEN  -> FREE
 *
 * FUSE threads wait for none of it. Another worker that is asked for a part waits for the one who is MAKING it, and
 * spares checking the same pages; not for a QUEUED one, for which it might have to wait for itself.
 *
 * A part that nobody asks for costs a worker's time once: the one after it is not made.
 *
 * INV-1 The listing of a part belongs to who made it QUEUED, MAKING or TAKEN; in the other states to the lock.
 * INV-2 A part is what its request would have made: the tree does not change.
 */
#include <errno.h>

#include "fs/fs_internal.h"
#include "util/mem.h"

#define PARTS_N	      16u	 /* directories that are listed at a time */
#define PART_SIZE_MAX DS_KIB(64) /* glibc's readdir asks for 32 KiB */

enum state { FREE, QUEUED, MAKING, READY, TAKEN };

struct part {
	struct ds_work_item work;
	struct fs_ahead *ahead;
	struct fs_listing listing;
	struct {
		enum state state;
		bool is_late; /* QUEUED or MAKING for nobody */
		uint64_t turn;
	} locked;
};

struct fs_ahead {
	struct ds_fs *fs;
	pthread_mutex_t mutex;
	pthread_cond_t made;
	uint64_t turns_n; /* under mutex */
	struct part parts[PARTS_N];
};

static void make(struct ds_work_item *item)
{
	struct part *part = ds_container_of(item, struct part, work);
	struct fs_ahead *ahead = part->ahead;
	struct ds_demand demand;
	bool is_late;
	int r;

	pthread_mutex_lock(&ahead->mutex);
	is_late = part->locked.is_late;
	part->locked.state = is_late ? FREE : MAKING;
	pthread_mutex_unlock(&ahead->mutex);
	if (is_late)
		return;
	ds_demand_init(&demand, ahead->fs->view);
	r = fs_listing_make(ahead->fs, &demand, &part->listing);
	ds_demand_release(&demand);
	pthread_mutex_lock(&ahead->mutex);
	part->locked.state = r < 0 || part->locked.is_late ? FREE : READY;
	pthread_cond_broadcast(&ahead->made);
	pthread_mutex_unlock(&ahead->mutex);
}

int fs_ahead_init(struct ds_fs *fs)
{
	struct fs_ahead *ahead = ds_calloc(1, sizeof(*ahead));

	if (!ahead)
		return -ENOMEM;
	ahead->fs = fs;
	pthread_mutex_init(&ahead->mutex, NULL);
	pthread_cond_init(&ahead->made, NULL);
	for (size_t i = 0; i < PARTS_N; i++) {
		ahead->parts[i].ahead = ahead;
		ahead->parts[i].work.run = make;
	}
	fs->ahead = ahead;
	return 0;
}

void fs_ahead_end(struct ds_fs *fs)
{
	struct fs_ahead *ahead = fs->ahead;

	if (!ahead)
		return;
	for (size_t i = 0; i < PARTS_N; i++)
		ds_free(ahead->parts[i].listing.buffer);
	pthread_cond_destroy(&ahead->made);
	pthread_mutex_destroy(&ahead->mutex);
	ds_free(ahead);
	fs->ahead = NULL;
}

/* A place for another part; NULL: workers have them all. */
static struct part *find_place_locked(struct fs_ahead *ahead)
{
	struct part *oldest = NULL;

	for (size_t i = 0; i < PARTS_N; i++) {
		struct part *part = &ahead->parts[i];

		if (part->locked.state == FREE)
			return part;
		if (part->locked.state == READY &&
		    (!oldest || part->locked.turn < oldest->locked.turn))
			oldest = part;
	}
	return oldest;
}

static struct part *find_locked(struct fs_ahead *ahead, const struct fs_listing *asked)
{
	for (size_t i = 0; i < PARTS_N; i++) {
		const struct fs_listing *listing = &ahead->parts[i].listing;
		enum state state = ahead->parts[i].locked.state;

		/* What it is of does not change while it is made. */
		if ((state == QUEUED || state == MAKING || state == READY) &&
		    listing->ino == asked->ino && listing->off == asked->off &&
		    listing->size == asked->size && listing->is_plus == asked->is_plus)
			return &ahead->parts[i];
	}
	return NULL;
}

void fs_ahead_start(struct ds_fs *fs, const struct fs_listing *before)
{
	struct fs_listing next = {.ino = before->ino,
				  .off = before->last,
				  .size = before->size,
				  .is_plus = before->is_plus};
	struct fs_ahead *ahead = fs->ahead;
	struct part *part;

	if (!before->has_more || before->used == 0 || before->size > PART_SIZE_MAX)
		return;
	pthread_mutex_lock(&ahead->mutex);
	/* Two that list the same directory share what one of them takes first. */
	part = find_locked(ahead, &next) ? NULL : find_place_locked(ahead);
	if (part) {
		next.buffer = part->listing.buffer;
		if (!next.buffer)
			next.buffer = ds_malloc(PART_SIZE_MAX);
		part->listing = next;
		part->locked.is_late = false;
		part->locked.turn = ++ahead->turns_n;
		part->locked.state = next.buffer ? QUEUED : FREE;
		if (!next.buffer)
			part = NULL;
	}
	pthread_mutex_unlock(&ahead->mutex);
	if (part)
		ds_work_submit(fs->work, &part->work, false);
}

struct fs_listing *fs_ahead_take(struct ds_fs *fs, const struct fs_listing *asked, bool may_wait,
				 bool *ret_is_making)
{
	struct fs_ahead *ahead = fs->ahead;
	struct part *part;

	*ret_is_making = false;
	pthread_mutex_lock(&ahead->mutex);
	/* A late one comes to nothing. */
	while ((part = find_locked(ahead, asked)) && part->locked.state == MAKING && may_wait &&
	       !part->locked.is_late)
		pthread_cond_wait(&ahead->made, &ahead->mutex);
	if (part && part->locked.state == READY) {
		part->locked.state = TAKEN;
	} else if (part) {
		*ret_is_making = part->locked.state == MAKING && !part->locked.is_late;
		if (part->locked.state == QUEUED)
			part->locked.is_late = true;
		part = NULL;
	}
	pthread_mutex_unlock(&ahead->mutex);
	return part ? &part->listing : NULL;
}

void fs_ahead_drop(struct ds_fs *fs, const struct fs_listing *answered)
{
	struct part *part;

	pthread_mutex_lock(&fs->ahead->mutex);
	part = find_locked(fs->ahead, answered);
	if (part && part->locked.state == READY)
		part->locked.state = FREE;
	else if (part)
		part->locked.is_late = true;
	pthread_mutex_unlock(&fs->ahead->mutex);
}

void fs_ahead_put(struct ds_fs *fs, struct fs_listing *taken)
{
	struct part *part = ds_container_of(taken, struct part, listing);

	pthread_mutex_lock(&fs->ahead->mutex);
	part->locked.state = FREE;
	pthread_mutex_unlock(&fs->ahead->mutex);
}
