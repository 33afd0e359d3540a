#include "cache_support.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util/file.h"
#include "util/mem.h"
#include "util/random.h"

#if defined(__SANITIZE_ADDRESS__)
#define HAS_LSAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HAS_LSAN 1
#endif
#endif
#ifdef HAS_LSAN
#include <sanitizer/lsan_interface.h>
#endif

static char root[256];
static pid_t root_pid;

const char *support_path(const char *name)
{
	static char paths[8][320];
	static unsigned next;
	char *path = paths[next++ % 8];
	const char *tmp = getenv("TMPDIR");

	if (!root[0]) {
		snprintf(root, sizeof(root), "%s/dsfs-cache-XXXXXX", tmp ? tmp : "/tmp");
		if (!mkdtemp(root))
			abort();
		root_pid = getpid();
	}
	snprintf(path, sizeof(paths[0]), "%s/%s", root, name);
	return path;
}

static void check_leaks(void)
{
#ifdef HAS_LSAN
	if (__lsan_do_recoverable_leak_check())
		abort();
#endif
}

void support_clean(void)
{
	if (root[0] && root_pid == getpid()) {
		char disk[320];

		snprintf(disk, sizeof(disk), "%s/t", root);
		umount2(disk, MNT_DETACH);
		ds_rmtree_at(AT_FDCWD, root);
	}
	root[0] = '\0';
	check_leaks();
}

void support_bytes(const struct support_pack *pack, uint32_t slot, uint8_t *data)
{
	struct ds_prng prng = {.state = pack->seed * 1000003 + slot};

	for (size_t i = 0; i < pack->slots[slot].raw_len_bytes; i += 8) {
		uint64_t value = ds_prng_next(&prng);

		memcpy(data + i, &value, DS_MIN((size_t)8, pack->slots[slot].raw_len_bytes - i));
	}
}

void support_pack_init(struct support_pack *pack, uint64_t seed, uint32_t slots_n, uint32_t len_max,
		       bool equal)
{
	struct ds_prng prng = {.state = seed};
	struct ds_digest id = {{0}};
	uint64_t off = 0;

	*pack = (struct support_pack){.seed = seed};
	pack->slots = calloc(slots_n, sizeof(pack->slots[0]));
	for (uint32_t i = 0; i < slots_n; i++) {
		struct ds_image_slot *slot = &pack->slots[i];
		uint8_t *data;

		slot->slot = i;
		slot->raw_off = off;
		slot->raw_len_bytes = equal ? len_max : 1 + (uint32_t)ds_prng_below(&prng, len_max);
		data = malloc(slot->raw_len_bytes);
		support_bytes(pack, i, data);
		ds_digest_of(data, slot->raw_len_bytes, &slot->digest);
		free(data);
		off += slot->raw_len_bytes;
	}
	memcpy(id.bytes, &seed, sizeof(seed));
	ds_image_name(DS_IMAGE_PACK, &id, &pack->layout.name);
	pack->layout.slots_n = slots_n;
	pack->layout.size_bytes = off;
}

void support_pack_release(struct support_pack *pack)
{
	free(pack->slots);
	pack->slots = NULL;
}

int support_fill(struct ds_image *image, const struct support_pack *pack, uint32_t slot)
{
	uint8_t *data = malloc(pack->slots[slot].raw_len_bytes);
	int r;

	support_bytes(pack, slot, data);
	r = ds_image_fill(image, &pack->slots[slot], data);
	free(data);
	return r;
}

int support_read(struct ds_image *image, const struct support_pack *pack, uint32_t slot,
		 bool may_check)
{
	size_t len = pack->slots[slot].raw_len_bytes;
	uint8_t *want = malloc(len), *have = calloc(1, len);
	int r;

	support_bytes(pack, slot, want);
	r = ds_image_read(image, &pack->slots[slot], 0, len, may_check, have);
	if (r == 0 && memcmp(want, have, len) != 0) {
		fprintf(stderr, "wrong bytes in slot %u of %llu\n", slot,
			(unsigned long long)pack->seed);
		abort();
	}
	free(want);
	free(have);
	if (r != 0 && r != -DS_E_NOT_LOCAL) {
		fprintf(stderr, "a read failed with %s\n", ds_strerror(r));
		abort();
	}
	return r == 0;
}

unsigned support_fill_all(struct ds_image *image, const struct support_pack *pack)
{
	unsigned n = 0;

	for (uint32_t i = 0; i < pack->layout.slots_n; i++)
		n += support_fill(image, pack, i) == 0;
	return n;
}

unsigned support_count(struct ds_image *image, const struct support_pack *pack, bool may_check)
{
	unsigned n = 0;

	for (uint32_t i = 0; i < pack->layout.slots_n; i++)
		n += (unsigned)support_read(image, pack, i, may_check);
	return n;
}

void support_hand_out(struct ds_image *image, const struct support_pack *pack)
{
	struct ds_image_backing backing;
	int fd, hold_fd, r = ds_image_backing_begin(image, true, &backing);

	for (uint32_t i = 0; r == 0 && i < pack->layout.slots_n; i++)
		r = ds_image_backing_has(&backing, &pack->slots[i], true);
	if (r < 0 || ds_image_backing_take(&backing, &fd, &hold_fd) < 0)
		abort();
	ds_image_backing_end(&backing);
	close(fd);
	close(hold_fd);
}

struct ds_cache *support_open(const char *dir, uint64_t capacity_bytes, uint8_t boot)
{
	uint8_t boot_id[16] = {boot, 1, 2, 3};
	struct ds_cache_options options = {.dir = dir,
					   .capacity_bytes = capacity_bytes,
					   .free_floor_percent = 1,
					   .boot_id = boot_id};
	struct ds_cache *cache = NULL;
	struct ds_diag diag = {0};
	char text[512];

	if (ds_cache_open(&options, &cache, &diag) < 0) {
		fprintf(stderr, "%s\n", ds_diag_format(&diag, text, sizeof(text)));
		abort();
	}
	return cache;
}

struct ds_image *support_image(struct ds_cache *cache, const struct support_pack *pack)
{
	struct ds_image *image = NULL;

	if (ds_image_open(cache, &pack->layout, &image) < 0)
		abort();
	return image;
}

static bool is_dot(const char *name)
{
	return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

static void each_image(const char *dir, void (*fn)(void *ctx, int dir_fd), void *ctx)
{
	char path[512];
	struct dirent *a, *b;
	DIR *images, *parent;

	snprintf(path, sizeof(path), "%s/images", dir);
	images = opendir(path);
	while (images && (a = readdir(images))) {
		int fd;

		if (is_dot(a->d_name))
			continue;
		fd = openat(dirfd(images), a->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		parent = fd < 0 ? NULL : fdopendir(fd);
		while (parent && (b = readdir(parent))) {
			if (is_dot(b->d_name))
				continue;
			fd = openat(fd, b->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
			if (fd >= 0) {
				fn(ctx, fd);
				close(fd);
			}
			fd = dirfd(parent);
		}
		if (parent)
			closedir(parent);
	}
	if (images)
		closedir(images);
}

struct nth {
	unsigned n, which;
	int fd;
};

static void take_nth(void *ctx, int dir_fd)
{
	struct nth *nth = ctx;

	if (nth->n++ == nth->which)
		nth->fd = fcntl(dir_fd, F_DUPFD_CLOEXEC, 0);
}

unsigned support_images(const char *dir, unsigned which, int *ret_fd)
{
	struct nth nth = {.which = which, .fd = -1};

	each_image(dir, take_nth, &nth);
	if (ret_fd)
		*ret_fd = nth.fd;
	else if (nth.fd >= 0)
		close(nth.fd);
	return nth.n;
}

static void add_blocks(void *ctx, int dir_fd)
{
	static const char *const names[] = {"data", "map"};
	struct stat st;

	for (size_t i = 0; i < DS_ARRAY_SIZE(names); i++)
		if (fstatat(dir_fd, names[i], &st, AT_SYMLINK_NOFOLLOW) == 0)
			*(uint64_t *)ctx += (uint64_t)st.st_blocks * 512;
}

int support_data(const char *dir, int flags)
{
	int dir_fd, fd;

	if (support_images(dir, 0, &dir_fd) != 1)
		abort();
	fd = openat(dir_fd, "data", flags | O_CLOEXEC);
	if (fd < 0)
		abort();
	close(dir_fd);
	return fd;
}

uint64_t support_allocated(const char *dir)
{
	uint64_t bytes = 0;

	each_image(dir, add_blocks, &bytes);
	return bytes;
}

int support_fork(int (*fn)(void *ctx), void *ctx)
{
	pid_t pid;
	int r;

	fflush(NULL);
	pid = fork();
	if (pid < 0)
		abort();
	if (pid > 0)
		return pid;
	/* A test that fails leaves nobody behind. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	r = fn(ctx);
	_exit(r);
}

int support_wait(int pid)
{
	int status;

	if (waitpid(pid, &status, 0) < 0)
		return -1;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

bool support_tmpfs(const char *dir, const char *options)
{
	if (mkdir(dir, 0700) < 0 && errno != EEXIST)
		return false;
	return mount("dsfs-test", dir, "tmpfs", 0, options) == 0;
}
