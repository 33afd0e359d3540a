/*
 * Random trees, changed at random and committed again and again: each version is what the source was, whatever was
 * reused, skipped or read again for it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "commit_support.h"
#include "suite.h"
#include "util/clock.h"
#include "util/random.h"

DS_SUITE(commit_random);

static bool is_ahead; /* the clock: files have settled that were written just now */

struct ds_time __real_ds_real_now(void);
struct ds_time __wrap_ds_real_now(void);

struct ds_time __wrap_ds_real_now(void)
{
	return ds_time_add_ns(__real_ds_real_now(), is_ahead ? 5 * (int64_t)DS_NS_PER_S : 0);
}

enum { BULK_N = 600 };

struct tree {
	struct box box;
	struct ds_prng prng;
	uint64_t seed;
};

static uint64_t below(struct tree *tree, uint64_t n)
{
	return ds_prng_below(&tree->prng, n);
}

enum kind { NOTHING, FILE_THERE, DIRECTORY, OTHER };

static enum kind kind_of(struct tree *tree, const char *path)
{
	char whole[300];
	struct stat st;

	snprintf(whole, sizeof(whole), "%s/%s", tree->box.source, path);
	if (lstat(whole, &st) < 0)
		return NOTHING;
	return S_ISREG(st.st_mode) ? FILE_THERE : S_ISDIR(st.st_mode) ? DIRECTORY : OTHER;
}

/* A path that may or may not be there: up to three levels of few names, so that things meet; or one of many in one directory. */
static void pick(struct tree *tree, char *path, size_t size)
{
	uint64_t depth = 1 + below(tree, 3);

	if (kind_of(tree, "bulk") == DIRECTORY && below(tree, 3) == 0) {
		snprintf(path, size, "bulk/%u", (unsigned)below(tree, BULK_N + 20));
		return;
	}
	path[0] = '\0';
	for (uint64_t i = 0; i < depth; i++) {
		size_t len = strlen(path);

		snprintf(path + len, size - len, "%s%c", i ? "/" : "",
			 (char)('a' + below(tree, 4)));
	}
}

static void make_parents(struct tree *tree, const char *path)
{
	char parent[100];

	for (const char *slash = strchr(path, '/'); slash; slash = strchr(slash + 1, '/')) {
		snprintf(parent, sizeof(parent), "%.*s", (int)(slash - path), path);
		if (kind_of(tree, parent) == DIRECTORY)
			continue;
		box_remove(&tree->box, parent);
		box_mkdir(&tree->box, parent);
	}
}

/* Few contents, so that equal ones meet; now and then one of several chunks. */
static void write_file(struct tree *tree, const char *path)
{
	uint64_t seed = below(tree, 12);

	box_fill(&tree->box, path, seed, seed == 0 ? 0 : seed == 11 ? 5 << 20 : 1 + seed * 100);
}

static void change(struct tree *tree)
{
	struct box *box = &tree->box;
	char path[100], other[100];
	enum kind kind;

	pick(tree, path, sizeof(path));
	pick(tree, other, sizeof(other));
	kind = kind_of(tree, path);
	switch (below(tree, 9)) {
	case 0:
	case 1:
		make_parents(tree, path);
		if (kind_of(tree, path) == DIRECTORY || kind_of(tree, path) == OTHER)
			box_remove(box, path);
		write_file(tree, path);
		break;
	case 2:
		if (kind != NOTHING)
			box_remove(box, path);
		break;
	case 3:
		if (kind == FILE_THERE)
			box_chmod(box, path, below(tree, 2) ? 0755 : 0644);
		break;
	case 4:
		if (kind != NOTHING)
			box_set_mtime(box, path, (int64_t)below(tree, 1000), 5);
		break;
	case 5:
		make_parents(tree, path);
		if (kind_of(tree, path) != NOTHING)
			box_remove(box, path);
		box_symlink(box, other, path);
		break;
	case 6:
	case 7: /* a hard link, if there is something to link to */
		if (kind != FILE_THERE)
			break;
		make_parents(tree, other);
		if (kind_of(tree, path) == FILE_THERE && kind_of(tree, other) == NOTHING)
			box_link(box, path, other);
		break;
	default: /* a move, not into itself */
		if (kind == NOTHING || strncmp(path, other, strlen(path)) == 0 ||
		    strncmp(path, other, strlen(other)) == 0)
			break;
		make_parents(tree, other);
		if (kind_of(tree, path) != NOTHING && kind_of(tree, other) == NOTHING)
			box_rename(box, path, other);
	}
}

/* Whether a file in the directory has several names, of which some may lie elsewhere. */
static bool has_links(struct tree *tree, const char *path)
{
	char command[300];

	snprintf(command, sizeof(command), "test -n \"$(find '%s/%s' -type f -links +1)\"",
		 tree->box.source, path);
	return system(command) == 0;
}

/* A directory that makes the manifest several times as large, or small again. */
static void toggle_bulk(struct tree *tree)
{
	struct box *box = &tree->box;
	char path[64];

	if (kind_of(tree, "bulk") != NOTHING && has_links(tree, "bulk"))
		return;
	if (kind_of(tree, "bulk") != NOTHING) {
		box_rename(box, "bulk", "../bulk");
		return;
	}
	if (kind_of(tree, "../bulk") != NOTHING) {
		box_rename(box, "../bulk", "bulk");
		return;
	}
	box_mkdir(box, "bulk");
	for (unsigned i = 0; i < BULK_N; i++) {
		snprintf(path, sizeof(path), "bulk/%u", i);
		box_fill(box, path, i % 20, 20);
	}
}

static void run(uint64_t seed, unsigned versions_n)
{
	static const char *const branches[] = {NULL, "one", "two"};
	struct tree *tree = calloc(1, sizeof(*tree));
	uint64_t made_n = 0;

	cr_log_info("seed %llu", (unsigned long long)seed);
	tree->seed = seed;
	tree->prng.state = seed;
	box_init(&tree->box);
	/* Times and links make versions too, so that each can be compared. */
	tree->box.options.mtime = true;
	for (unsigned i = 0; i < versions_n; i++) {
		for (uint64_t n = 1 + below(tree, 15); n > 0; n--)
			change(tree);
		if (below(tree, 4) == 0)
			tree->box.options.state_dir = below(tree, 3) ? tree->box.state : "";
		if (i == 0 || below(tree, 8) == 0)
			toggle_bulk(tree);
		tree->box.options.rehash = below(tree, 8) == 0;
		is_ahead = below(tree, 4) != 0;
		/* Now and then: what is known of the version before is of use on its own branch. */
		if (i && below(tree, 4) == 0)
			tree->box.options.branch = branches[below(tree, 3)];
		box_commit(&tree->box);
		made_n += !tree->box.result.unchanged;
		box_check(&tree->box, tree->box.options.branch);
	}
	cr_assert_gt(made_n, versions_n / 2);
	box_release(&tree->box);
	free(tree);
}

Test(commit_random, every_version_equals_its_source)
{
	const char *seed = getenv("DSFS_TEST_SEED");

	run(seed ? strtoull(seed, NULL, 10) : 1, 40);
}

Test(commit_random, every_version_equals_its_source_with_a_seed_of_the_day)
{
	run(ds_random_u64() % 1000000, 30);
}
