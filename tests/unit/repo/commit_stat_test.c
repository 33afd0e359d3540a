/*
 * Which files the local stat cache vouches for.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "suite.h"
#include "repo/commit_apply.h"
#include "repo/commit_stat.h"
#include "util/clock.h"

DS_SUITE(commit_stat);

/* Asks for these files in a directory of this path; returns how many are not known. */
static uint64_t ask(const struct commit_stat *stat, const char *path, struct commit_node *nodes,
		    uint32_t n)
{
	struct commit_node dir = {.children = nodes, .children_n = n};
	struct commit_stat_dir known = {0};
	uint64_t unknown_n;

	for (uint32_t i = 0; i < n; i++)
		nodes[i].is_known = nodes[i].is_row_known = false;
	unknown_n = commit_stat_ask(stat, &known, path, &dir);
	commit_stat_leave(&known);
	return unknown_n;
}

/* True if a file whose times are age_ns before the scan is vouched for by the next commit. */
static bool is_kept_if(int64_t mtime_age_ns, int64_t ctime_age_ns, bool is_uncached)
{
	char dir[] = "/tmp/dsfs-commit-stat.XXXXXX", name[] = "file", command[100];
	struct commit_tree tree = {.scanned = {.s = 1000, .ns = 50000000}};
	struct commit_node node = {.name = name,
				   .name_len = 4,
				   .type = DS_ENTRY_FILE,
				   .is_done = true,
				   .is_uncached = is_uncached,
				   .ino = 7,
				   .size_bytes = 3,
				   .parent = &tree.root};
	struct commit_stat *stat;
	bool has;

	node.mtime = ds_time_add_ns(tree.scanned, -mtime_age_ns);
	node.ctime = ds_time_add_ns(tree.scanned, -ctime_age_ns);
	node.digest.bytes[0] = 42;
	tree.root.name = name + 4;
	tree.root.type = DS_ENTRY_DIRECTORY;
	tree.root.children = &node;
	tree.root.children_n = 1;
	cr_assert(mkdtemp(dir));
	commit_stat_save_end(commit_stat_save_begin(dir, dir, dir, &tree, NULL), NULL);
	cr_assert_eq(commit_stat_load(dir, dir, dir, &stat), 0);
	node.digest.bytes[0] = 0;
	has = ask(stat, "", &node, 1) == 0;
	cr_assert_eq(has, node.is_known);
	cr_assert_eq(node.digest.bytes[0], has ? 42 : 0);
	node.ino = 8;
	cr_assert_eq(ask(stat, "", &node, 1), 1);
	cr_assert(!node.is_known);
	commit_stat_free(stat);
	snprintf(command, sizeof(command), "rm -r %s", dir);
	cr_assert_eq(system(command), 0);
	return has;
}

static bool is_kept(int64_t mtime_age_ns, int64_t ctime_age_ns)
{
	return is_kept_if(mtime_age_ns, ctime_age_ns, false);
}

/* Not by whole seconds: 2.1 s are enough also where the second has turned but twice. */
Test(commit_stat, two_seconds_of_rest)
{
	const int64_t ms = DS_NS_PER_MS;

	cr_assert(is_kept(5000 * ms, 5000 * ms));
	cr_assert(is_kept(2100 * ms, 2100 * ms));
	cr_assert(is_kept(2001 * ms, 3000 * ms));
	cr_assert(!is_kept(2000 * ms, 5000 * ms));
	cr_assert(!is_kept(5000 * ms, 1900 * ms));
	cr_assert(!is_kept(1900 * ms, 5000 * ms));
	cr_assert(!is_kept(-5000 * ms, 5000 * ms));
}

Test(commit_stat, what_is_not_for_the_cache_is_not_kept)
{
	const int64_t ms = DS_NS_PER_MS;

	cr_assert(is_kept_if(100000 * ms, 100000 * ms, false));
	cr_assert(!is_kept_if(100000 * ms, 100000 * ms, true));
}

/* Names that may be those of two files: what the cache knows of the first is not what the others are. */
Test(commit_stat, unsure_links_are_read_whatever_the_cache_knows)
{
	char dir[] = "/tmp/dsfs-commit-stat.XXXXXX", names[] = "a\0b", command[100], path[100];
	struct commit_tree tree = {.scanned = {.s = 1000}};
	struct commit_node nodes[2], *links_nodes[] = {&nodes[0], &nodes[1]};
	struct commit_links links = {.nodes = links_nodes, .nodes_n = 2};
	struct ds_commit_options options = {0};
	struct commit_apply apply = {.options = &options, .tree = &tree};
	struct commit_stat *stat;

	tree.root = (struct commit_node){.name = names + 1,
					 .type = DS_ENTRY_DIRECTORY,
					 .children = nodes,
					 .children_n = 2};
	for (unsigned i = 0; i < 2; i++)
		nodes[i] = (struct commit_node){.name = names + 2 * i,
						.name_len = 1,
						.type = DS_ENTRY_FILE,
						.is_done = true,
						.ino = 7,
						.links = &links,
						.parent = &tree.root};
	cr_assert(mkdtemp(dir));
	commit_stat_save_end(commit_stat_save_begin(dir, dir, dir, &tree, NULL), NULL);
	cr_assert_eq(commit_stat_load(dir, dir, dir, &stat), 0);
	snprintf(path, sizeof(path), "%s/manifest", dir);
	cr_assert_eq(ds_builder_create(path, 8192, &apply.builder), 0);
	for (unsigned i = 0; i < 2; i++) {
		cr_assert_eq(ask(stat, "", nodes, 2), 0);
		links.is_unsure = i == 1;
		nodes[0].is_done = false;
		cr_assert_eq(commit_match(&apply, true), 0);
		cr_assert_eq(nodes[0].is_done, i == 0);
	}
	ds_builder_free(apply.builder);
	commit_stat_free(stat);
	snprintf(command, sizeof(command), "rm -r %s", dir);
	cr_assert_eq(system(command), 0);
}

/* A tree of many files in many directories: each is found again, as it is, in its own directory alone, whoever is left out. */
Test(commit_stat, each_of_many_is_found)
{
	enum { DIRS = 30, N = 100 };
	char dir[] = "/tmp/dsfs-commit-stat.XXXXXX", command[100], empty[] = "";
	struct commit_tree tree = {.scanned = {.s = 1000}};
	struct commit_node *dirs = calloc(DIRS, sizeof(*dirs));
	struct commit_node *nodes = calloc(DIRS * N, sizeof(*nodes));
	static char names[N][12];
	struct commit_stat *stat;

	cr_assert(mkdtemp(dir));
	tree.root = (struct commit_node){.name = empty,
					 .type = DS_ENTRY_DIRECTORY,
					 .children = dirs,
					 .children_n = DIRS};
	for (uint32_t i = 0; i < N; i++)
		snprintf(names[i], sizeof(names[i]), "%05u", i);
	for (uint32_t d = 0; d < DIRS; d++)
		dirs[d] = (struct commit_node){.name = names[d],
					       .name_len = 5,
					       .type = DS_ENTRY_DIRECTORY,
					       .parent = &tree.root,
					       .children = &nodes[d * N],
					       .children_n = N};
	for (uint32_t i = 0; i < DIRS * N; i++) {
		nodes[i] = (struct commit_node){.name = names[i % N],
						.name_len = 5,
						.type = DS_ENTRY_FILE,
						.is_done = i % 3 != 0,
						.ino = i,
						.parent = &dirs[i / N]};
		memcpy(nodes[i].digest.bytes, &i, sizeof(i));
	}
	commit_stat_save_end(commit_stat_save_begin(dir, dir, dir, &tree, NULL), NULL);
	cr_assert_eq(commit_stat_load(dir, dir, dir, &stat), 0);
	for (uint32_t d = 0; d < DIRS; d++) {
		struct commit_node *in = &nodes[d * N], some[N / 2];

		for (uint32_t i = 0; i < N; i++)
			in[i].digest = (struct ds_digest){0};
		ask(stat, names[d], in, N);
		for (uint32_t i = 0; i < N; i++) {
			uint32_t number = d * N + i;

			cr_assert_eq(in[i].is_known, number % 3 != 0);
			if (in[i].is_known)
				cr_assert_arr_eq(in[i].digest.bytes, &number, sizeof(number));
		}
		for (uint32_t i = 0; i < N / 2; i++)
			some[i] = in[2 * i + d % 2];
		ask(stat, names[d], some, N / 2);
		for (uint32_t i = 0; i < N / 2; i++)
			cr_assert_eq(some[i].is_known, some[i].ino % 3 != 0);
		cr_assert_eq(ask(stat, names[d ? 0 : 1], in, N), N);
		cr_assert_eq(ask(stat, names[DIRS], in, N), N);
	}
	commit_stat_free(stat);
	free(dirs);
	free(nodes);
	snprintf(command, sizeof(command), "rm -r %s", dir);
	cr_assert_eq(system(command), 0);
}

/* How many of the files of one directory are found; none with another digest than its own. */
static unsigned found_n(const char *dir, struct commit_node *nodes, uint32_t n)
{
	struct commit_stat *stat;
	unsigned has_n = 0;

	cr_assert_eq(commit_stat_load(dir, dir, dir, &stat), 0);
	for (uint32_t i = 0; i < n; i++)
		nodes[i].digest = (struct ds_digest){0};
	ask(stat, "", nodes, n);
	for (uint32_t i = 0; i < n; i++) {
		if (nodes[i].is_known)
			cr_assert_arr_eq(nodes[i].digest.bytes, &i, sizeof(i));
		has_n += nodes[i].is_known;
	}
	commit_stat_free(stat);
	return has_n;
}

/* Of a directory of many blocks in a file that has a wrong byte, wherever, or ends early, nothing wrong is known. */
Test(commit_stat, what_is_damaged_is_not_known)
{
	enum { N = 4000, TRIES = 200 };
	char dir[] = "/tmp/dsfs-commit-stat.XXXXXX", command[100], path[100], empty[] = "";
	struct commit_tree tree = {.scanned = {.s = 1000}};
	struct commit_node *nodes = calloc(N, sizeof(*nodes));
	static char names[N][8];
	unsigned worse_n = 0;
	off_t len;
	FILE *found;
	int fd;

	cr_assert(mkdtemp(dir));
	tree.root = (struct commit_node){.name = empty,
					 .type = DS_ENTRY_DIRECTORY,
					 .children = nodes,
					 .children_n = N};
	for (uint32_t i = 0; i < N; i++) {
		snprintf(names[i], sizeof(names[i]), "%05u", i);
		nodes[i] = (struct commit_node){.name = names[i],
						.name_len = 5,
						.type = DS_ENTRY_FILE,
						.is_done = true,
						.ino = i,
						.parent = &tree.root};
		memcpy(nodes[i].digest.bytes, &i, sizeof(i));
	}
	commit_stat_save_end(commit_stat_save_begin(dir, dir, dir, &tree, NULL), NULL);
	cr_assert_eq(found_n(dir, nodes, N), N);
	snprintf(command, sizeof(command), "echo %s/stat/*", dir);
	found = popen(command, "r");
	cr_assert(found && fscanf(found, "%99s", path) == 1);
	pclose(found);
	fd = open(path, O_RDWR);
	cr_assert(fd >= 0);
	len = lseek(fd, 0, SEEK_END);
	cr_assert_gt(len, N * 80);
	for (unsigned i = 0; i <= TRIES; i++) {
		off_t at = (len - 1) * i / TRIES;
		uint8_t byte;

		cr_assert_eq(pread(fd, &byte, 1, at), 1);
		byte ^= 0x10;
		cr_assert_eq(pwrite(fd, &byte, 1, at), 1);
		worse_n += found_n(dir, nodes, N) < N;
		byte ^= 0x10;
		cr_assert_eq(pwrite(fd, &byte, 1, at), 1);
	}
	cr_assert_geq(worse_n, TRIES);
	cr_assert_eq(found_n(dir, nodes, N), N);
	for (unsigned i = 1; i <= 20; i++) {
		cr_assert_eq(ftruncate(fd, len - len * i / 20), 0);
		cr_assert_eq(found_n(dir, nodes, N), 0);
	}
	close(fd);
	free(nodes);
	snprintf(command, sizeof(command), "rm -r %s", dir);
	cr_assert_eq(system(command), 0);
}

/* Of some file systems the mode changes, and no time with it: the row says what it was. And what was given up is as it was. */
Test(commit_stat, another_mode_is_no_known_row)
{
	char dir[] = "/tmp/dsfs-commit-stat.XXXXXX", name[] = "file", command[100];
	struct commit_tree tree = {.scanned = {.s = 1000}};
	struct commit_node node = {.name = name,
				   .name_len = 4,
				   .type = DS_ENTRY_FILE,
				   .is_done = true,
				   .parent = &tree.root};
	struct ds_digest version = {.bytes = {1, 2, 3}};
	struct commit_stat_saving *saving;
	struct commit_stat *stat;

	tree.root = (struct commit_node){.name = name + 4,
					 .type = DS_ENTRY_DIRECTORY,
					 .children = &node,
					 .children_n = 1};
	cr_assert(mkdtemp(dir));
	for (unsigned executable = 0; executable < 2; executable++) {
		node.is_executable = executable;
		saving = commit_stat_save_begin(dir, dir, dir, &tree, NULL);
		commit_stat_save_end(saving, &version);
		/* Also when it is written already. */
		saving = commit_stat_save_begin(dir, dir, dir, &tree, NULL);
		ds_sleep_ms(executable * 200);
		commit_stat_save_drop(saving);
		cr_assert_eq(commit_stat_load(dir, dir, dir, &stat), 0);
		cr_assert(commit_stat_version(stat));
		cr_assert(ds_digest_equal(commit_stat_version(stat), &version));
		for (unsigned now = 0; now < 2; now++) {
			node.is_executable = now;
			cr_assert_eq(ask(stat, "", &node, 1), 0);
			cr_assert(node.is_known);
			cr_assert_eq(node.is_row_known, now == executable);
		}
		commit_stat_free(stat);
	}
	snprintf(command, sizeof(command), "rm -r %s", dir);
	cr_assert_eq(system(command), 0);
}
