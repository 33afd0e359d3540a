/*
 * Everything that can be wrong with a cache directory, before it is opened and while it is in use: what is read is right or a
 * miss, and afterwards the image can be filled again.
 */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "cache_support.h"
#include "util/clock.h"
#include "util/file.h"
#include "util/mem.h"
#include "util/random.h"

TestSuite(damage, .fini = support_clean, .timeout = 300);

#define SLOTS 40

static const char canary[] = "nobody may write here";

static void put_canary(void)
{
	int fd = open(support_path("canary"), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	cr_assert_eq(write(fd, canary, sizeof(canary)), (ssize_t)sizeof(canary));
	close(fd);
}

static void check_canary(void)
{
	struct ds_buf buf = DS_BUF_INIT(1000);

	cr_assert_eq(ds_file_read_at(AT_FDCWD, support_path("canary"), &buf), 0);
	cr_assert_eq(buf.len_bytes, sizeof(canary));
	cr_assert_str_eq(ds_buf_str(&buf), canary);
	ds_buf_release(&buf);
}

enum kind {
	GONE,
	FIFO,
	DIRECTORY,
	FULL_DIRECTORY,
	SYMLINK,
	DANGLING,
	SOCKET,
	DEVICE,
	EMPTY,
	CUT,
	LONGER,
	HUGE_SPARSE,
	HARD_LINK,
	FOREIGN,
	ZEROED,
	RANDOM,
	KINDS
};

static void make_socket(int dir_fd, const char *name)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/%s", dir_fd, name);
	cr_assert_eq(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	close(fd);
}

static void put_random(int fd, off_t size, uint64_t seed)
{
	struct ds_prng prng = {.state = seed};

	for (off_t off = 0; off < size; off += 8) {
		uint64_t value = ds_prng_next(&prng);

		cr_assert_gt(pwrite(fd, &value, (size_t)DS_MIN(8, size - off), off), 0);
	}
}

/* False: this kind cannot be made here. */
static bool damage(int dir_fd, const char *name, enum kind kind)
{
	struct stat st;
	bool can = true;
	int fd = openat(dir_fd, name, O_RDWR | O_CLOEXEC);

	cr_assert_geq(fd, 0);
	cr_assert_eq(fstat(fd, &st), 0);
	if (kind < EMPTY)
		cr_assert_eq(unlinkat(dir_fd, name, 0), 0);
	switch (kind) {
	case GONE:
		break;
	case FIFO:
		cr_assert_eq(mkfifoat(dir_fd, name, 0600), 0);
		break;
	case DIRECTORY:
	case FULL_DIRECTORY:
		cr_assert_eq(mkdirat(dir_fd, name, 0700), 0);
		if (kind == FULL_DIRECTORY) {
			int below = openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

			cr_assert_eq(mkdirat(below, "a", 0700), 0);
			cr_assert_eq(symlinkat(support_path("canary"), below, "b"), 0);
			close(below);
		}
		break;
	case SYMLINK:
		cr_assert_eq(symlinkat(support_path("canary"), dir_fd, name), 0);
		break;
	case DANGLING:
		cr_assert_eq(symlinkat(support_path("nothing"), dir_fd, name), 0);
		break;
	case SOCKET:
		make_socket(dir_fd, name);
		break;
	case DEVICE:
		can = mknodat(dir_fd, name, S_IFCHR | 0600, 0x0501) == 0 || errno != EPERM;
		break;
	case EMPTY:
		cr_assert_eq(ftruncate(fd, 0), 0);
		break;
	case CUT:
		cr_assert_eq(ftruncate(fd, st.st_size / 2), 0);
		break;
	case LONGER:
		cr_assert_eq(ftruncate(fd, st.st_size + 1), 0);
		break;
	case HUGE_SPARSE:
		can = ftruncate(fd, (off_t)1 << 40) == 0;
		break;
	case HARD_LINK:
		cr_assert_eq(linkat(dir_fd, name, AT_FDCWD, support_path("link"), 0), 0);
		break;
	case FOREIGN:
		can = fchown(fd, 65534, 65534) == 0;
		break;
	case ZEROED:
		cr_assert_eq(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
				       st.st_size),
			     0);
		break;
	case RANDOM:
		put_random(fd, st.st_size, 17);
		break;
	case KINDS:
		break;
	}
	close(fd);
	return can;
}

static struct ds_cache *open_filled(struct support_pack *pack, struct ds_image **ret_image)
{
	struct ds_cache *cache = support_open(support_path("c"), DS_MIB(64), 1);

	support_pack_init(pack, 7, SLOTS, 5000, false);
	*ret_image = support_image(cache, pack);
	cr_assert_eq(support_fill_all(*ret_image, pack), SLOTS);
	return cache;
}

static int image_dir(void)
{
	int fd = -1;

	cr_assert_eq(support_images(support_path("c"), 0, &fd), 1);
	return fd;
}

/* Everything can be filled again, at the latest after the pause that trouble with a disk costs. */
static void fill_again(struct ds_image *image, const struct support_pack *pack)
{
	uint64_t deadline = ds_deadline_in_ms(10000);

	while (support_fill_all(image, pack) < SLOTS) {
		cr_assert_lt(ds_mono_ns(), deadline, "the image cannot be filled any more");
		usleep(50000);
	}
	cr_assert_eq(support_count(image, pack, true), SLOTS);
}

static void start_afresh(void)
{
	cr_assert_eq(ds_rmtree_at(AT_FDCWD, support_path("c")), 0);
	ds_rmtree_at(AT_FDCWD, support_path("link"));
}

static void damage_while_closed(const char *name)
{
	unsigned delivered = 0;

	put_canary();
	for (enum kind kind = 0; kind < KINDS; kind++) {
		/* In the same boot, and after another one. */
		for (uint8_t boot = 1; boot <= 2; boot++) {
			struct support_pack pack;
			struct ds_image *image;
			struct ds_cache *cache = open_filled(&pack, &image);
			int dir_fd;

			ds_image_unref(image);
			ds_cache_unref(cache);
			dir_fd = image_dir();
			/* Data that change in place within one boot are not looked for: only who may write to
			 * the directory can do that. */
			if ((boot == 2 || kind < ZEROED || strcmp(name, "map") == 0) &&
			    damage(dir_fd, name, kind)) {
				delivered++;
				cache = support_open(support_path("c"), DS_MIB(64), boot);
				image = support_image(cache, &pack);
				support_count(image, &pack, true);
				fill_again(image, &pack);
				ds_image_unref(image);
				ds_cache_unref(cache);
			}
			close(dir_fd);
			support_pack_release(&pack);
			start_afresh();
		}
	}
	cr_assert_geq(delivered, KINDS);
	check_canary();
}

Test(damage, F06_of_data_while_closed)
{
	damage_while_closed("data");
}

Test(damage, F06_of_map_while_closed)
{
	damage_while_closed("map");
}

static void damage_while_open(const char *name)
{
	unsigned delivered = 0;

	put_canary();
	for (enum kind kind = 0; kind < KINDS; kind++) {
		struct support_pack pack;
		struct ds_image *image;
		struct ds_cache *cache = open_filled(&pack, &image);
		int dir_fd = image_dir();

		if ((kind < ZEROED || strcmp(name, "map") == 0) && damage(dir_fd, name, kind)) {
			delivered++;
			support_count(image, &pack, true);
			fill_again(image, &pack);
		}
		close(dir_fd);
		ds_image_unref(image);
		ds_cache_unref(cache);
		support_pack_release(&pack);
		start_afresh();
	}
	cr_assert_geq(delivered, KINDS - 4);
	check_canary();
}

Test(damage, F06_of_data_while_open)
{
	damage_while_open("data");
}

Test(damage, F06_of_map_while_open)
{
	damage_while_open("map");
}

Test(damage, F06_of_the_image_directory_and_its_parent)
{
	put_canary();
	for (int what = 0; what < 8; what++) {
		struct support_pack pack;
		struct ds_image *image;
		struct ds_cache *cache = open_filled(&pack, &image);
		char path[512], link[512];
		int dir_fd = image_dir();
		ssize_t n;

		snprintf(link, sizeof(link), "/proc/self/fd/%d", dir_fd);
		n = readlink(link, path, sizeof(path) - 1);
		cr_assert_gt(n, 0);
		path[n] = '\0';
		if (what >= 4)
			*strrchr(path, '/') = '\0';
		close(dir_fd);
		cr_assert_eq(ds_rmtree_at(AT_FDCWD, path), 0);
		switch (what % 4) {
		case 0:
			break;
		case 1:
			cr_assert_eq(mkfifo(path, 0600), 0);
			break;
		case 2:
			cr_assert_eq(symlink(support_path("canary"), path), 0);
			break;
		case 3:
			cr_assert_eq(mkdir(support_path("elsewhere"), 0700), 0);
			cr_assert_eq(symlink(support_path("elsewhere"), path), 0);
			break;
		}
		support_count(image, &pack, true);
		fill_again(image, &pack);
		/* Never through the link. */
		if (what % 4 == 3)
			cr_assert_eq(rmdir(support_path("elsewhere")), 0);
		ds_image_unref(image);
		ds_cache_unref(cache);
		support_pack_release(&pack);
		start_afresh();
	}
	check_canary();
}

Test(damage, F06_single_bits_of_the_map)
{
	struct support_pack pack;
	struct ds_image *image;
	struct ds_cache *cache = open_filled(&pack, &image);
	struct ds_prng prng = {.state = 3};
	struct stat st;
	uint8_t *whole, byte;
	int dir_fd, fd;

	ds_image_unref(image);
	ds_cache_unref(cache);
	dir_fd = image_dir();
	fd = openat(dir_fd, "map", O_RDWR | O_CLOEXEC);
	cr_assert_eq(fstat(fd, &st), 0);
	whole = malloc((size_t)st.st_size);
	cr_assert_eq(pread(fd, whole, (size_t)st.st_size, 0), st.st_size);
	close(fd);
	close(dir_fd);
	for (int i = 0; i < 300; i++) {
		off_t off;

		/* Header, bitmap, slots in turn. */
		if (i % 3 == 0)
			off = (off_t)ds_prng_below(&prng, 100);
		else if (i % 3 == 1)
			off = 4096 + (off_t)ds_prng_below(&prng, SLOTS / 8);
		else
			off = 8192 + (off_t)ds_prng_below(&prng, SLOTS * 48);
		if (support_images(support_path("c"), 0, &dir_fd) == 1) {
			fd = openat(dir_fd, "map", O_RDWR | O_CLOEXEC);
			cr_assert_eq(pwrite(fd, whole, (size_t)st.st_size, 0), st.st_size);
			byte = (uint8_t)(whole[off] ^ (1 << ds_prng_below(&prng, 8)));
			cr_assert_eq(pwrite(fd, &byte, 1, off), 1);
			close(fd);
			close(dir_fd);
		}
		cache = support_open(support_path("c"), DS_MIB(64), (uint8_t)(1 + i % 2));
		image = support_image(cache, &pack);
		support_count(image, &pack, true);
		/* Some slots may stay blocked by a claim that nobody makes. */
		support_fill_all(image, &pack);
		support_count(image, &pack, true);
		ds_image_unref(image);
		ds_cache_unref(cache);
	}
	free(whole);
	support_pack_release(&pack);
}

/* ---- the whole directory */

/* The cache may make a new file in it at any moment. */
static void remove_in_use(const char *name)
{
	for (int tries = 0; ds_rmtree_at(AT_FDCWD, support_path(name)) < 0; tries++)
		cr_assert_lt(tries, 100);
}

Test(damage, F05_the_directory_goes_away_and_comes_back)
{
	for (int what = 0; what < 5; what++) {
		struct support_pack pack;
		struct ds_image *image;
		struct ds_cache *cache = open_filled(&pack, &image);

		switch (what) {
		case 0:
			remove_in_use("c");
			break;
		case 1:
			cr_assert_eq(rename(support_path("c"), support_path("old")), 0);
			break;
		case 2:
			cr_assert_eq(rename(support_path("c"), support_path("old")), 0);
			cr_assert_eq(mkdir(support_path("c"), 0700), 0);
			break;
		case 3:
			remove_in_use("c/images");
			break;
		case 4:
			remove_in_use("c/tmp");
			cr_assert_eq(ds_rmtree_at(AT_FDCWD, support_path("c/usage")), 0);
			break;
		}
		support_count(image, &pack, true);
		fill_again(image, &pack);
		ds_image_unref(image);
		ds_cache_unref(cache);
		support_pack_release(&pack);
		ds_rmtree_at(AT_FDCWD, support_path("old"));
		start_afresh();
	}
}

Test(damage, F05_permissions_are_dropped)
{
	struct support_pack pack;
	struct ds_image *image;
	struct ds_cache *cache = open_filled(&pack, &image);

	cr_assert_eq(chmod(support_path("c/images"), 0), 0);
	cr_assert_eq(chmod(support_path("c/tmp"), 0), 0);
	support_count(image, &pack, true);
	support_fill_all(image, &pack);
	cr_assert_eq(chmod(support_path("c/images"), 0700), 0);
	cr_assert_eq(chmod(support_path("c/tmp"), 0700), 0);
	fill_again(image, &pack);
	ds_image_unref(image);
	ds_cache_unref(cache);
	support_pack_release(&pack);
}

Test(damage, H01_a_directory_that_is_not_ours_alone_is_refused)
{
	struct ds_cache_options options = {.dir = support_path("c")};
	struct ds_diag diag = {0};
	struct ds_cache *cache;

	cr_assert_eq(mkdir(options.dir, 0700), 0);
	cr_assert_eq(chmod(options.dir, 0770), 0);
	cr_assert_eq(ds_cache_open(&options, &cache, &diag), -EPERM);
	cr_assert_neq(diag.detail[0], 0);
	cr_assert_eq(chmod(options.dir, 0707), 0);
	cr_assert_eq(ds_cache_open(&options, &cache, &diag), -EPERM);
	cr_assert_eq(chmod(options.dir, 0700), 0);
	if (geteuid() == 0) {
		cr_assert_eq(chown(options.dir, 65534, 65534), 0);
		cr_assert_eq(ds_cache_open(&options, &cache, &diag), -EPERM);
	}
	cr_assert_eq(rmdir(options.dir), 0);
	/* A link, even to a good one. */
	cr_assert_eq(mkdir(support_path("real"), 0700), 0);
	cr_assert_eq(symlink(support_path("real"), options.dir), 0);
	cr_assert_lt(ds_cache_open(&options, &cache, &diag), 0);
	cr_assert_eq(unlink(options.dir), 0);
	/* A file. */
	put_canary();
	cr_assert_eq(rename(support_path("canary"), options.dir), 0);
	cr_assert_lt(ds_cache_open(&options, &cache, &diag), 0);
	cr_assert_eq(unlink(options.dir), 0);
	/* Below a directory that others may write to; with the sticky bit they cannot replace it. */
	options.dir = support_path("open/c");
	cr_assert_eq(mkdir(support_path("open"), 0700), 0);
	cr_assert_eq(chmod(support_path("open"), 0777), 0);
	cr_assert_eq(ds_cache_open(&options, &cache, &diag), -EPERM);
	cr_assert_eq(chmod(support_path("open"), 01777), 0);
	cr_assert_eq(ds_cache_open(&options, &cache, &diag), 0);
	ds_cache_unref(cache);
}

Test(damage, H09_the_umask_does_not_matter)
{
	static const mode_t masks[] = {0, 0777};

	for (size_t i = 0; i < DS_ARRAY_SIZE(masks); i++) {
		mode_t old = umask(masks[i]);
		struct support_pack pack;
		struct ds_image *image;
		struct ds_cache *cache = open_filled(&pack, &image);
		struct stat st;

		umask(old);
		ds_image_unref(image);
		ds_cache_unref(cache);
		cr_assert_eq(stat(support_path("c"), &st), 0);
		cr_assert_eq(st.st_mode & 07777, 0700);
		cache = support_open(support_path("c"), DS_MIB(64), 1);
		image = support_image(cache, &pack);
		cr_assert_eq(support_count(image, &pack, false), SLOTS);
		ds_image_unref(image);
		ds_cache_unref(cache);
		support_pack_release(&pack);
		start_afresh();
	}
}

/* ---- crashes */

struct filler {
	const struct support_pack *packs;
	char dir[320];
	uint64_t seed;
};

static int fill_until_killed(void *ctx)
{
	struct filler *filler = ctx;
	struct ds_prng prng = {.state = filler->seed};
	struct ds_cache *cache = support_open(filler->dir, DS_KIB(400), 1);

	for (;;) {
		const struct support_pack *pack = &filler->packs[ds_prng_below(&prng, 4)];
		struct ds_image *image = support_image(cache, pack);

		for (int i = 0; i < 10; i++)
			support_fill(image, pack, (uint32_t)ds_prng_below(&prng, SLOTS));
		if (ds_prng_below(&prng, 4) == 0)
			ds_cache_make_room(cache, DS_KIB(300));
		ds_image_unref(image);
	}
	return 0;
}

Test(damage, E03_kill_9_while_filling_and_evicting)
{
	struct support_pack packs[4];
	struct filler filler = {.packs = packs};
	struct ds_prng prng = {.state = 99};
	unsigned found = 0;

	strcpy(filler.dir, support_path("c"));
	for (uint64_t i = 0; i < 4; i++)
		support_pack_init(&packs[i], i, SLOTS, 5000, false);
	for (int round = 0; round < 30; round++) {
		struct ds_cache *cache;
		int pid;

		filler.seed = ds_prng_next(&prng);
		pid = support_fork(fill_until_killed, &filler);
		usleep((useconds_t)(5000 + ds_prng_below(&prng, 60000)));
		kill(pid, SIGKILL);
		cr_assert_eq(support_wait(pid), 128 + SIGKILL);
		cache = support_open(filler.dir, DS_MIB(64), (uint8_t)(1 + round % 2));
		for (uint64_t i = 0; i < 4; i++) {
			struct ds_image *image = support_image(cache, &packs[i]);

			found += support_count(image, &packs[i], true);
			if (round % 5 == 4)
				fill_again(image, &packs[i]);
			ds_image_unref(image);
		}
		ds_cache_unref(cache);
	}
	cr_assert_gt(found, 100);
	for (uint64_t i = 0; i < 4; i++)
		support_pack_release(&packs[i]);
}
