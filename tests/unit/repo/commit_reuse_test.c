/*
 * What a commit need not read or send again: the advisory index, the stat cache.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include "commit_support.h"
#include "codec/dedup.h"
#include "suite.h"
#include "repo/refs.h"
#include "util/file.h"
#include "util/mem.h"

DS_SUITE(commit_reuse);

static void make_many(struct box *box, const char *dir, unsigned n)
{
	char path[100];

	box_mkdir(box, dir);
	for (unsigned i = 0; i < n; i++) {
		snprintf(path, sizeof(path), "%s/%05u", dir, i);
		box_fill(box, path, 1000 + i, 300);
	}
}

/* The 10,000 files are committed by the real command line, in tests/integration/dedup.py. */
Test(commit_reuse, a_renamed_directory_uploads_no_data)
{
	struct box box;

	box_init(&box);
	make_many(&box, "before", 1000);
	box_commit(&box);
	box_rename(&box, "before", "after");
	box_commit(&box);
	cr_assert_eq(box.result.uploaded_data_bytes, 0);
	cr_assert_eq(box.result.reused_bytes, 1000 * 300);
	box_check(&box, NULL);
	box_rename(&box, "after", "later");
	box_move_elsewhere(&box);
	box_commit(&box);
	cr_assert_eq(box.result.uploaded_data_bytes, 0);
	box_check(&box, NULL);
	box_release(&box);
}

Test(commit_reuse, a_directory_that_comes_back_uploads_no_data)
{
	struct box box;

	box_init(&box);
	make_many(&box, "dir", 300);
	box_fill(&box, "other", 1, 100);
	box_commit(&box);
	box_remove(&box, "dir");
	box_commit(&box);
	box_fill(&box, "other", 2, 100);
	box_commit(&box);
	make_many(&box, "dir", 300);
	box_commit(&box);
	cr_assert_eq(box.result.uploaded_data_bytes, 0);
	box_check(&box, NULL);
	box_release(&box);
}

/* 5 MiB of zeros and a byte: an extent of zeros, and a chunk of one byte. */
static void write_large(struct box *box, const char *path, uint8_t first, uint8_t last)
{
	size_t len_bytes = DS_MIB(5) + 1;
	uint8_t *data = ds_calloc(1, len_bytes);

	cr_assert(data);
	data[0] = first;
	data[len_bytes - 1] = last;
	box_write(box, path, data, len_bytes);
	ds_free(data);
}

/* An extent does not say where its chunk lies in the pack's raw bytes; the entry of a file of one chunk has to. */
Test(commit_reuse, a_file_that_is_an_extent_of_an_earlier_version)
{
	struct box box;

	box_init(&box);
	box_fill(&box, "0-before-it-in-the-pack", 1, 1000);
	write_large(&box, "1-large", 0, 'x');
	write_large(&box, "2-large", 0, 'y');
	write_large(&box, "3-large", 0, 'z');
	box_commit(&box);
	/* In the same commit in which the extent is found again; at the same path; of a file that is not read again. */
	write_large(&box, "1-large", 1, 'x');
	box_write(&box, "1-part", "x", 1);
	box_remove(&box, "2-large");
	box_write(&box, "2-large", "y", 1);
	box_write(&box, "3-part", "z", 1);
	box_commit(&box);
	box_check(&box, NULL);
	box_release(&box);
}

Test(commit_reuse, the_index_is_merged_and_still_finds_everything)
{
	struct ds_store_listing listing = {0};
	struct ds_store_req list = {.op = DS_STORE_LIST, .key = "index/", .listing = &listing};
	struct box box;
	bool merged = false;
	char path[40];

	box_init(&box);
	for (int i = 0; i < 20; i++) {
		snprintf(path, sizeof(path), "file-%d", i);
		box_fill(&box, path, (uint64_t)i, 1000);
		box_commit(&box);
	}
	cr_assert_eq(ds_store_perform(box.store, &list), 0);
	for (size_t i = 0; i < listing.objects_n; i++)
		merged |= strncmp(listing.objects[i].key, "index/1/", 8) == 0;
	ds_store_listing_release(&listing);
	cr_assert(merged);
	box_mkdir(&box, "moved");
	for (int i = 0; i < 20; i++) {
		char to[60];

		snprintf(path, sizeof(path), "file-%d", i);
		snprintf(to, sizeof(to), "moved/file-%d", i);
		box_rename(&box, path, to);
	}
	box_commit(&box);
	cr_assert_eq(box.result.uploaded_data_bytes, 0);
	box_check(&box, NULL);
	box_release(&box);
}

static void count_pack_gets(void *ctx, const struct ds_store_req *req)
{
	_Atomic long *gets_n = ctx;

	*gets_n += req->op == DS_STORE_GET && strncmp(req->key, "packs/", 6) == 0;
}

/* The n-th from now on. */
static bool fail_one_pack_get(void *ctx, const struct ds_store_req *req)
{
	_Atomic long *left_n = ctx;

	return req->op == DS_STORE_GET && strncmp(req->key, "packs/", 6) == 0 && (*left_n)-- == 0;
}

#define MIXED_N 20u

/* To names that take turns between the packs, or back. */
static void mix(struct box *box, bool back)
{
	char apart[40], mixed[40];

	for (unsigned i = 0; i < 3 * MIXED_N; i++) {
		snprintf(apart, sizeof(apart), "dir-%u/%05u", i % 3, i / 3);
		snprintf(mixed, sizeof(mixed), "mixed/%05u", i);
		box_rename(box, back ? mixed : apart, back ? apart : mixed);
	}
	box_move_elsewhere(box);
}

/* Three packs, of which the tables fit, and do not: then they are got anew, and nothing else is different. */
Test(commit_reuse, tables_of_packs_take_no_more_memory_than_they_may)
{
	_Atomic long gets_n = 0;
	long all_n;
	struct box box;
	char dir[20];

	box_init(&box);
	box_mkdir(&box, "mixed");
	for (unsigned i = 0; i < 3; i++) {
		snprintf(dir, sizeof(dir), "dir-%u", i);
		box_mkdir(&box, dir);
		for (unsigned k = 0; k < MIXED_N; k++) {
			char path[40];

			snprintf(path, sizeof(path), "%s/%05u", dir, k);
			box_fill(&box, path, 1000 + 100 * i + k, 300);
		}
		box_commit(&box);
	}
	mix(&box, false);
	box.spy.before = count_pack_gets;
	box.spy.ctx = &gets_n;
	box_commit(&box);
	cr_assert_eq(box.result.uploaded_data_bytes, 0);
	all_n = gets_n;
	mix(&box, true);
	box_commit(&box);
	mix(&box, false);
	/* 512 bytes of tables: less than one has. */
	box.options.memory_bytes = DS_KIB(4);
	gets_n = 0;
	box_commit(&box);
	cr_assert_eq(box.result.uploaded_data_bytes, 0);
	cr_assert_geq(gets_n, all_n + 2 * (long)MIXED_N, "%ld GETs, %ld with room for all",
		      (long)gets_n, all_n);
	/* One that fails when it is got anew costs one file, not all of its pack. */
	mix(&box, true);
	box.options.memory_bytes = 0;
	box_commit(&box);
	mix(&box, false);
	box.options.memory_bytes = DS_KIB(4);
	gets_n = all_n + MIXED_N;
	box.spy.before = NULL;
	box.spy.fails = fail_one_pack_get;
	box.spy.fail_with = -DS_E_SERVER;
	box_commit(&box);
	cr_assert_eq(box.spy.failed_n, 1);
	cr_assert_lt(box.result.uploaded_data_bytes, 1500, "%llu bytes",
		     (unsigned long long)box.result.uploaded_data_bytes);
	box.spy.fails = NULL;
	box_check(&box, NULL);
	box_release(&box);
}

static void count_index_gets(void *ctx, const struct ds_store_req *req)
{
	_Atomic long *gets_n = ctx;

	*gets_n += req->op == DS_STORE_GET && strncmp(req->key, "index/", 6) == 0;
}

Test(commit_reuse, index_objects_are_kept_in_the_state_directory)
{
	struct box box;
	_Atomic long gets_n = 0;

	box_init(&box);
	make_many(&box, "a", 50);
	box_commit(&box);
	box_rename(&box, "a", "b");
	box_commit(&box);
	box_rename(&box, "b", "c");
	box.spy.ctx = &gets_n;
	box.spy.before = count_index_gets;
	box_commit(&box);
	cr_assert_eq(gets_n, 0);
	cr_assert_eq(box.result.uploaded_data_bytes, 0);
	/* Without them there is more to get. */
	box_rename(&box, "c", "d");
	cr_assert_eq(ds_rmtree_at(AT_FDCWD, box.state), 0);
	box_commit(&box);
	cr_assert_gt(gets_n, 0);
	cr_assert_eq(box.result.uploaded_data_bytes, 0);
	box_release(&box);
}

Test(commit_reuse, the_index_may_be_lost_or_forbidden)
{
	struct box box;

	box_init(&box);
	make_many(&box, "a", 50);
	box.spy.deny = "index/";
	box_commit(&box);
	box_rename(&box, "a", "b");
	box_commit(&box);
	cr_assert_gt(box.result.uploaded_data_bytes, 0);
	box.spy.deny = NULL;
	box_check(&box, NULL);
	box_release(&box);
}

Test(commit_reuse, the_stat_cache_spares_reading)
{
	struct box box;

	box_init(&box);
	box_make_tree(&box);
	box_settle(&box);
	box_commit(&box);
	cr_assert_gt(box.result.read_bytes, 0);
	box_fill(&box, "size-1", 300, 1);
	box_commit(&box);
	cr_assert_eq(box.result.read_bytes, 1);
	box_check(&box, NULL);
	/* A changed entry is not trusted until it has settled. */
	box_commit(&box);
	cr_assert(box.result.unchanged);
	cr_assert_eq(box.result.read_bytes, 1);
	/* rehash reads it all again. */
	box.options.rehash = true;
	box_commit(&box);
	cr_assert_gt(box.result.read_bytes, 1000000);
	box_release(&box);
}

Test(commit_reuse, where_the_stat_cache_knows_all_the_manifest_is_not_read)
{
	_Atomic long gets_n = 0;
	struct box box;

	box_init(&box);
	box_make_tree(&box);
	box_settle(&box);
	box_commit(&box);
	box.spy.before = count_pack_gets;
	box.spy.ctx = &gets_n;
	box.options.tag = "again";
	box_commit(&box);
	cr_assert(box.result.unchanged);
	cr_assert_eq(box.result.number, 1);
	cr_assert_eq(gets_n, 0);
	box.options.tag = NULL;
	/* The name alone is another; the manifest's times are, too. */
	box_rename(&box, "size-1", "size-one");
	box_commit(&box);
	cr_assert(!box.result.unchanged);
	cr_assert_gt(gets_n, 0);
	box_check(&box, NULL);
	box_settle(&box);
	box_commit(&box);
	cr_assert(box.result.unchanged);
	gets_n = 0;
	box.options.allow_empty = true;
	box_commit(&box);
	cr_assert(!box.result.unchanged);
	cr_assert_gt(gets_n, 0);
	box.options.allow_empty = false;
	/* The stat cache knows the new time, the manifest does not. */
	box_set_mtime(&box, "size-one", 1000, 0);
	box_settle(&box);
	box_commit(&box);
	cr_assert(box.result.unchanged);
	box.options.mtime = true;
	box_commit(&box);
	cr_assert(!box.result.unchanged);
	box_check(&box, NULL);
	/* A file less. */
	box.options.mtime = false;
	box_remove(&box, "size-one");
	box_commit(&box);
	cr_assert(!box.result.unchanged);
	cr_assert_eq(box.result.removed_n, 1);
	box.spy.before = NULL;
	box_check(&box, NULL);
	box_release(&box);
}

Test(commit_reuse, a_damaged_stat_cache_is_as_none)
{
	struct box box;
	char command[300];

	box_init(&box);
	make_many(&box, "a", 20);
	box_settle(&box);
	box_commit(&box);
	box_commit(&box);
	cr_assert_eq(box.result.read_bytes, 0);
	snprintf(command, sizeof(command),
		 "for f in '%s'/stat/*; do printf X | dd of=\"$f\" bs=1 seek=100 conv=notrunc "
		 "2>/dev/null; done",
		 box.state);
	cr_assert_eq(system(command), 0);
	box_commit(&box);
	cr_assert_eq(box.result.read_bytes, 20 * 300);
	box_commit(&box);
	cr_assert_eq(box.result.read_bytes, 0);
	box_release(&box);
}

Test(commit_reuse, trust_mtime_compares_with_the_parents_rows)
{
	struct box box;

	box_init(&box);
	box_make_tree(&box);
	box_commit(&box);
	box_fill(&box, "size-2", 300, 100);
	box_move_elsewhere(&box);
	box.options.trust_mtime = true;
	box_commit(&box);
	cr_assert_eq(box.result.read_bytes, 100);
	box_check(&box, NULL);
	box_release(&box);
}

Test(commit_reuse, rehash_trusts_no_mtime)
{
	struct box box;

	box_init(&box);
	box_fill(&box, "sly", 1, 100);
	box_set_mtime(&box, "sly", 1000, 5);
	box_commit(&box);
	box_fill(&box, "sly", 3, 100);
	box_set_mtime(&box, "sly", 1000, 5);
	box.options.trust_mtime = box.options.rehash = true;
	box_commit(&box);
	cr_assert(!box.result.unchanged);
	cr_assert_eq(box.result.read_bytes, 100);
	box_check(&box, NULL);
	box_release(&box);
}

/* Trust lasts for the commit that it was asked of. */
Test(commit_reuse, what_trust_mtime_missed_the_next_commit_reads)
{
	struct box box;

	box_init(&box);
	box_fill(&box, "sly", 1, 100);
	box_fill(&box, "rests", 2, 70);
	box_set_mtime(&box, "sly", 1000, 5);
	box_settle(&box);
	box_commit(&box);
	box_fill(&box, "sly", 3, 100);
	box_set_mtime(&box, "sly", 1000, 5);
	box_settle(&box);
	box.options.trust_mtime = true;
	box_commit(&box);
	cr_assert(box.result.unchanged);
	cr_assert_eq(box.result.read_bytes, 0);
	box.options.trust_mtime = false;
	box_commit(&box);
	cr_assert(!box.result.unchanged);
	/* The trusting commit has not forgotten what is known for sure. */
	cr_assert_eq(box.result.read_bytes, 100);
	box_check(&box, NULL);
	box_release(&box);
}

/* A page that is dirty already takes stores through a mapping without a new time. */
Test(commit_reuse, the_stat_cache_does_not_keep_what_is_mapped_for_writing)
{
	char path[200];
	uint8_t *page;
	struct box box;
	int fd;

	box_init(&box);
	box_fill(&box, "mapped", 1, 4096);
	box_fill(&box, "other", 2, 50);
	snprintf(path, sizeof(path), "%s/mapped", box.source);
	fd = open(path, O_RDWR | O_CLOEXEC);
	cr_assert_geq(fd, 0);
	page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	cr_assert_neq(page, MAP_FAILED);
	page[0] = 'A';
	box_settle(&box);
	box_commit(&box);
	page[0] = 'B';
	box_commit(&box);
	cr_assert(!box.result.unchanged);
	cr_assert_eq(box.result.read_bytes, 4096);
	box_check(&box, NULL);
	/* Nobody can write it any more without a new time. */
	munmap(page, 4096);
	close(fd);
	box_commit(&box);
	cr_assert_eq(box.result.read_bytes, 4096);
	box_commit(&box);
	cr_assert_eq(box.result.read_bytes, 0);
	box_release(&box);
}

Test(commit_reuse, a_file_that_moved_is_found_by_its_stat_entry)
{
	struct box box;

	/* Other repository, same host: nothing is read that is in the store already. */
	box_init(&box);
	make_many(&box, "a", 20);
	box_settle(&box);
	box_commit(&box);
	box_fill(&box, "a/00003", 5, 10);
	box_commit(&box);
	box_remove(&box, "a/00003");
	box_commit(&box);
	cr_assert_eq(box.result.read_bytes, 0);
	box_check(&box, NULL);
	box_release(&box);
}

/* An index object that has the chunk of `path` at each place of each pack there is, and of one there is not. */
static void put_lying_index(struct box *box, const char *path)
{
	struct ds_store_listing listing = {0};
	struct ds_store_req list = {.op = DS_STORE_LIST, .key = "packs/", .listing = &listing};
	struct ds_buf content = DS_BUF_INIT(DS_MIB(1)), body = DS_BUF_INIT(DS_MIB(1));
	struct ds_digest digest, id, pack = {0};
	char whole[200], key[DS_DIGEST_TEXT_MAX + 8], text[DS_DIGEST_TEXT_MAX];
	struct ds_dedup_builder *builder;

	snprintf(whole, sizeof(whole), "%s/%s", box->source, path);
	cr_assert_eq(ds_file_read_at(AT_FDCWD, whole, &content), 0);
	cr_assert_eq(ds_digest_of(content.data, content.len_bytes, &digest), 0);
	cr_assert_eq(ds_dedup_builder_new(&builder), 0);
	cr_assert_eq(ds_store_perform(box->inner, &list), 0);
	cr_assert_eq(listing.objects_n, 2, "a data pack and a manifest pack");
	for (size_t i = 0; i <= listing.objects_n; i++) {
		if (i < listing.objects_n)
			cr_assert_eq(ds_digest_parse(strrchr(listing.objects[i].key, '/') + 1,
						     &pack),
				     0);
		else
			pack.bytes[0] ^= 1;
		for (uint32_t ordinal = 0; ordinal < 4; ordinal++)
			cr_assert_eq(ds_dedup_builder_add(builder, &digest, &pack, ordinal,
							  &box->result.version),
				     0);
	}
	cr_assert_eq(ds_dedup_builder_finish(builder, &body, &id), 0);
	snprintf(key, sizeof(key), "index/0/%s", ds_digest_format(&id, text));
	cr_assert_eq(ds_store_put(box->inner, key, body.data, body.len_bytes, NULL), 0);
	ds_dedup_builder_free(builder);
	ds_store_listing_release(&listing);
	ds_buf_release(&content);
	ds_buf_release(&body);
}

/* The chunks in the store are as long as the new one, longer, shorter. */
Test(commit_reuse, an_index_that_lies_costs_duplicates_and_no_wrong_byte)
{
	static const size_t sizes[] = {300, 299, 301};

	for (size_t i = 0; i < DS_ARRAY_SIZE(sizes); i++) {
		struct box box;

		box_init(&box);
		make_many(&box, "before", 3);
		box_commit(&box);
		box_fill(&box, "new", 99, sizes[i]);
		put_lying_index(&box, "new");
		box_commit(&box);
		cr_assert_geq(box.result.uploaded_data_bytes, sizes[i]);
		cr_assert_eq(box.result.reused_bytes, 0);
		box_check(&box, NULL);
		box_release(&box);
	}
}
