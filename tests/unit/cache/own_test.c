/*
 * Whose a directory is: nothing that dsfs did not make is removed or overwritten, whatever directory is named as the cache; and what a
 * killed or a lost cache leaves is taken for a cache again.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache/cache_survey.h"
#include "cache_support.h"
#include "util/file.h"

TestSuite(own, .fini = support_clean, .timeout = 300);

#define SLOTS  40
#define DIGEST "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

/* "name/" is a directory, "name>" a link, "name" a file with what comes after '='. */
static void put(const char *what)
{
	char name[300], path[400], *slash;
	const char *text = strchr(what, '=');
	size_t len = strcspn(what, "=>");
	int fd;

	snprintf(name, sizeof(name), "c/%.*s", (int)len, what);
	strcpy(path, support_path(name));
	slash = strrchr(path, '/');
	if (slash[1]) {
		*slash = '\0';
		cr_assert_eq(ds_mkdir_p(AT_FDCWD, path, 0700), 0);
		*slash = '/';
	}
	if (what[len] == '>') {
		cr_assert_eq(symlink(support_path("elsewhere"), path), 0);
	} else if (!slash[1]) {
		cr_assert_eq(ds_mkdir_p(AT_FDCWD, path, 0700), 0);
	} else {
		fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		cr_assert_geq(fd, 0);
		if (text)
			cr_assert_eq(write(fd, text + 1, strlen(text + 1)),
				     (ssize_t)strlen(text + 1));
		cr_assert_eq(fchmod(fd, 0444), 0);
		close(fd);
	}
}

/* Names, kinds, modes and bytes of all that is below: equal only if nothing happened. */
static int note(void *ctx, int dir_fd, const char *name)
{
	uint64_t sum = 14695981039346656037u;
	char data[4096], line[600];
	uint64_t *total = ctx, below = 0;
	ssize_t n = 0;
	struct stat st;
	int fd;

	cr_assert_eq(fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW), 0);
	if (S_ISLNK(st.st_mode)) {
		n = readlinkat(dir_fd, name, data, sizeof(data));
	} else if (S_ISREG(st.st_mode)) {
		fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC);
		n = read(fd, data, sizeof(data));
		close(fd);
	} else {
		cr_assert_eq(ds_each_entry_at(dir_fd, name, note, &below), 0);
	}
	cr_assert_geq(n, 0);
	snprintf(line, sizeof(line), "%s %o %llu %llu", name, st.st_mode,
		 (unsigned long long)st.st_ino, (unsigned long long)below);
	for (const char *at = line; *at; at++)
		sum = (sum ^ (uint8_t)*at) * 1099511628211u;
	for (ssize_t i = 0; i < n; i++)
		sum = (sum ^ (uint8_t)data[i]) * 1099511628211u;
	/* In whatever order. */
	*total += sum;
	return 0;
}

static uint64_t sum_of(const char *name)
{
	uint64_t total = 0;

	cr_assert_eq(ds_each_entry_at(AT_FDCWD, support_path(name), note, &total), 0);
	return total;
}

static void begin(void)
{
	cr_assert_eq(ds_rmtree_at(AT_FDCWD, support_path("c")), 0);
	cr_assert_eq(mkdir(support_path("c"), 0700), 0);
}

static int try_open(bool makes_none, struct ds_cache **ret_cache, struct ds_diag *ret_diag)
{
	struct ds_cache_options options = {.dir = support_path("c"),
					   .capacity_bytes = DS_MIB(64),
					   .makes_none = makes_none};

	*ret_diag = (struct ds_diag){0};
	*ret_cache = NULL;
	return ds_cache_open(&options, ret_cache, ret_diag);
}

Test(own, a_directory_of_somebodys_data_is_refused_and_stays_as_it_is)
{
	/* What is there, and what the error names. */
	static const char *const cases[][3] = {
		{"usage/deep/report.txt=precious", NULL, "usage"},
		{"usage/", NULL, "usage"},
		{"usage=use it in this way, and never in another one", NULL, "usage"},
		{"usage=short", NULL, "usage"},
		{"usage>", NULL, "usage"},
		{"images>", NULL, "images"},
		{"images=a list", NULL, "images"},
		{"images=", NULL, "images"},
		{"images/cat.png=a cat", NULL, "images/cat.png"},
		{"images/00/cat.png=a cat", NULL, "cat.png"},
		{"images/00=a cat", NULL, "images/00"},
		{"images/00>", NULL, "images/00"},
		{"tmp>", NULL, "tmp"},
		{"tmp=a note", NULL, "tmp"},
		{"tmp/old-photos/cat.png=a cat", NULL, "tmp/old-photos"},
		{"report.txt=precious", NULL, "report.txt"},
		{"images/", "report.txt=precious", "report.txt"},
		{"usage=", "report.txt=precious", "report.txt"},
		{"tmp/commit-messages/", "usage=", "commit-messages"},
		/* A cache, but with something else under a name of its own. */
		{"usage=dsfsuse1................", "images>", "images"},
		{"usage=dsfsuse1................", "tmp=a note", "tmp"},
	};
	struct ds_cache *cache;
	struct ds_diag diag;

	cr_assert_eq(mkdir(support_path("elsewhere"), 0700), 0);
	for (size_t i = 0; i < DS_ARRAY_SIZE(cases); i++) {
		bool is_cache = strncmp(cases[i][0], "usage=dsfs", 10) == 0;
		uint64_t before;

		begin();
		put(cases[i][0]);
		if (cases[i][1])
			put(cases[i][1]);
		before = sum_of("c");
		for (int makes_none = 0; makes_none < 2; makes_none++) {
			int r = try_open(makes_none, &cache, &diag);

			cr_assert_eq(r, -EEXIST, "%s: %d", cases[i][0], r);
			cr_assert(strstr(diag.object, cases[i][2]), "%s: %s", cases[i][0],
				  diag.object);
			cr_assert(strstr(diag.detail, "give an empty one"), "%s", diag.detail);
			/* Of a cache that is one, the rest may have been put right. */
			if (!is_cache)
				cr_assert_eq(sum_of("c"), before, "%s was touched", cases[i][0]);
		}
		if (is_cache) {
			struct stat st;

			bool is_link = strcmp(cases[i][1], "images>") == 0;

			cr_assert_eq(lstat(support_path(is_link ? "c/images" : "c/tmp"), &st), 0);
			cr_assert_eq(st.st_mode & S_IFMT, is_link ? S_IFLNK : S_IFREG);
		}
	}
	cr_assert_eq(rmdir(support_path("elsewhere")), 0);
}

Test(own, what_is_no_cache_yet_becomes_one_but_not_by_a_look)
{
	static const char *const cases[][3] = {
		{NULL, NULL, NULL},
		{"lost+found/", NULL, NULL},
		{"usage=", NULL, NULL},
		{"images/", NULL, NULL},
		{"images/", "tmp/", NULL},
		{"images/", "tmp/new-0123456789abcdef/", "usage="},
		{"tmp/.guard=", "stat/x=1", "index/y/z=1"},
		{"tmp/commit-aB3xYz/lock=", "tmp/.guard=", NULL},
	};
	struct ds_cache *cache;
	struct ds_diag diag;

	for (size_t i = 0; i < DS_ARRAY_SIZE(cases); i++) {
		uint64_t before;

		begin();
		for (size_t k = 0; k < 3 && cases[i][k]; k++)
			put(cases[i][k]);
		before = sum_of("c");
		cr_assert_eq(try_open(true, &cache, &diag), -ENOENT, "case %zu", i);
		cr_assert_eq(sum_of("c"), before, "a look changed case %zu", i);
		if (strcmp(cases[i][0] ? cases[i][0] : "", "usage=") == 0 || i == 5)
			cr_assert_eq(chmod(support_path("c/usage"), 0600), 0);
		cr_assert_eq(try_open(false, &cache, &diag), 0, "case %zu: %s", i, diag.object);
		ds_cache_unref(cache);
		cr_assert_eq(try_open(true, &cache, &diag), 0, "case %zu", i);
		ds_cache_unref(cache);
	}
	/* The power went while it was written. */
	begin();
	put("usage=");
	cr_assert_eq(truncate(support_path("c/usage"), 24), 0);
	cr_assert_eq(try_open(false, &cache, &diag), 0);
	ds_cache_unref(cache);
	cr_assert_eq(ds_rmtree_at(AT_FDCWD, support_path("c")), 0);
	cr_assert_eq(try_open(true, &cache, &diag), -ENOENT);
	cr_assert_lt(access(support_path("c"), F_OK), 0);
}

static void fill_cache(const struct support_pack *pack)
{
	struct ds_cache *cache = support_open(support_path("c"), DS_MIB(64), 1);
	struct ds_image *image = support_image(cache, pack);

	cr_assert_eq(support_fill_all(image, pack), SLOTS);
	ds_image_unref(image);
	ds_cache_unref(cache);
}

Test(own, a_cache_that_lost_its_usage_keeps_what_it_holds)
{
	struct ds_cache *cache;
	struct support_pack pack;
	struct ds_image *image;
	struct ds_diag diag;

	support_pack_init(&pack, 7, SLOTS, 5000, false);
	for (int makes_none = 0; makes_none < 2; makes_none++) {
		begin();
		fill_cache(&pack);
		cr_assert_eq(unlink(support_path("c/usage")), 0);
		cr_assert_eq(try_open(makes_none, &cache, &diag), 0, "%s", diag.object);
		ds_cache_unref(cache);
		cache = support_open(support_path("c"), DS_MIB(64), 1);
		image = support_image(cache, &pack);
		cr_assert_eq(support_count(image, &pack, true), SLOTS);
		ds_image_unref(image);
		ds_cache_unref(cache);
	}
	support_pack_release(&pack);
}

/* As an older release took them in. */
Test(own, what_else_lies_in_a_cache_stays)
{
	struct ds_prune_options options = {.wait_ms = 1};
	struct ds_prune_result result;
	struct support_pack pack;
	struct ds_cache *cache;
	struct stat st;

	support_pack_init(&pack, 7, SLOTS, 5000, false);
	begin();
	fill_cache(&pack);
	put("report.txt=precious");
	put("images/cat.png=a cat");
	put("tmp/old-photos/cat.png=a cat");
	put("tmp/old-" DIGEST "=a list");
	put("tmp/commit-aB3xYz/lock=");
	put("tmp/old-0123456789abcdef/data=ours");
	cache = support_open(support_path("c"), DS_MIB(64), 1);
	cr_assert_eq(ds_cache_prune(cache, &options, &result), 0);
	ds_cache_unref(cache);
	cr_assert_eq(stat(support_path("c/report.txt"), &st), 0);
	cr_assert_eq(stat(support_path("c/images/cat.png"), &st), 0);
	cr_assert_eq(stat(support_path("c/tmp/old-photos/cat.png"), &st), 0);
	cr_assert_eq(stat(support_path("c/tmp/old-" DIGEST), &st), 0);
	cr_assert_lt(stat(support_path("c/tmp/old-0123456789abcdef"), &st), 0);
	support_pack_release(&pack);
}

/* `cp -al` of a cache: the two count apart. */
Test(own, a_usage_with_two_names_is_left_to_the_other)
{
	struct ds_cache *cache;
	struct stat st;

	begin();
	ds_cache_unref(support_open(support_path("c"), DS_MIB(64), 1));
	cr_assert_eq(link(support_path("c/usage"), support_path("other")), 0);
	cache = support_open(support_path("c"), DS_MIB(64), 1);
	cr_assert_eq(stat(support_path("other"), &st), 0);
	cr_assert_eq(st.st_nlink, 1);
	cr_assert_eq(st.st_size, 24);
	cr_assert_eq(stat(support_path("c/usage"), &st), 0);
	ds_cache_unref(cache);
	cr_assert_eq(unlink(support_path("other")), 0);
}
