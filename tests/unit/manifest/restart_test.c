/*
 * Pages that are not local: every operation ends with -DS_E_NOT_LOCAL, is made again when the page
 * has come, and gives the same in the end. Here nothing is local at first, and each miss makes one
 * page local.
 */
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "manifest_support.h"
#include "util/mem.h"

static void end(void)
{
	support_clean();
	support_check_leaks();
}

TestSuite(manifest_restart, .fini = end);

/* Deep enough at 4 KiB pages: three levels in both trees. */
static void build(struct model *model, struct support_source *source, unsigned files_n)
{
	struct ds_builder *builder;
	char name[64];

	model_init(model, 7);
	cr_assert_eq(ds_builder_create(support_path("m"), 4096, &builder), 0);
	for (unsigned i = 0; i < files_n; i++) {
		snprintf(name, sizeof(name), "a-rather-long-name-of-a-file-%08u", i);
		model_add(model, builder, DS_ROOT_ID, name, strlen(name), DS_ENTRY_FILE, 100);
	}
	model_seal(model, builder);
	cr_assert_eq(ds_builder_finish(builder), 0);
	ds_builder_free(builder);
	support_source_load(source, support_path("m"));
}

#define LEVELS 3 /* of either tree */

Test(manifest_restart, a_lookup_misses_at_most_once_per_level)
{
	struct support_want want = {.is_set = false};
	struct support_source source;
	struct ds_manifest *manifest;
	struct ds_entry entry;
	struct model model;
	int r;

	build(&model, &source, 20000);
	for (unsigned i = 0; i < 200; i++) {
		const struct model_name *name = &model.names[ds_prng_below(&model.random, 20000)];

		/* Everything cold, the connection too: page 0 (schema) besides the two trees. */
		support_source_empty(&source);
		cr_assert_eq(ds_manifest_new(&source.source, &manifest), 0);
		SUPPORT_UNTIL_LOCAL(&source, want, 1 + 2 * LEVELS, r,
				    ds_manifest_lookup(manifest, &want, DS_ROOT_ID, name->name,
						       name->name_len, &entry));
		cr_assert_eq(r, 0);
		cr_assert_eq(entry.id, name->id);
		SUPPORT_UNTIL_LOCAL(&source, want, 0, r,
				    ds_manifest_get(manifest, &want, name->id, &entry));
		cr_assert_eq(r, 0);
		cr_assert(source.misses_n >= 4, "the tree is not deep enough to show anything");

		/* What is still in the connection's cache needs no page; what is not is asked
		 * for again. */
		support_source_empty(&source);
		name = &model.names[ds_prng_below(&model.random, 20000)];
		SUPPORT_UNTIL_LOCAL(&source, want, LEVELS, r,
				    ds_manifest_get(manifest, &want, name->id, &entry));
		cr_assert_eq(r, 0);
		cr_assert_eq(entry.id, name->id);
		SUPPORT_UNTIL_LOCAL(&source, want, LEVELS, r,
				    ds_manifest_lookup(manifest, &want, DS_ROOT_ID, "absent", 6,
						       &entry));
		cr_assert_eq(r, -ENOENT);
		ds_manifest_free(manifest);
	}
	support_source_release(&source);
	model_release(&model);
}

struct resumed {
	const struct model_name **list;
	size_t i, n;
	uint64_t last;
};

static int resume(void *ctx, const struct ds_entry *entry)
{
	struct resumed *resumed = ctx;

	cr_assert(resumed->i < resumed->n);
	cr_assert_eq(entry->id, resumed->list[resumed->i]->id);
	cr_assert_arr_eq(entry->name, resumed->list[resumed->i]->name, entry->name_len);
	resumed->i++;
	resumed->last = entry->id;
	return 0;
}

Test(manifest_restart, a_listing_goes_on_after_its_last_name)
{
	struct support_want want = {.is_set = false};
	struct resumed resumed = {.i = 0};
	struct support_source source;
	struct ds_manifest *manifest;
	struct model model;
	int r;

	build(&model, &source, 5000);
	resumed.list = model_list(&model, DS_ROOT_ID, &resumed.n);
	support_source_empty(&source);
	cr_assert_eq(ds_manifest_new(&source.source, &manifest), 0);
	SUPPORT_UNTIL_LOCAL(&source, want, source.source.pages_n, r,
			    ds_manifest_list(manifest, &want, DS_ROOT_ID, resumed.last, resume,
					     &resumed));
	cr_assert_eq(r, 0);
	cr_assert_eq(resumed.i, 5000);
	cr_assert(source.misses_n > 50);
	ds_manifest_free(manifest);
	free(resumed.list);
	support_source_release(&source);
	model_release(&model);
}

/* Evicts random pages before each try, so that even what was just fetched may be gone. */
Test(manifest_restart, pages_may_be_evicted_meanwhile)
{
	struct support_want want = {.is_set = false};
	struct support_source source;
	struct ds_manifest *manifest;
	struct ds_prng random = {.state = 11};
	struct ds_entry entry;
	struct model model;
	uint64_t value;

	build(&model, &source, 8000);
	support_source_empty(&source);
	cr_assert_eq(ds_manifest_new(&source.source, &manifest), 0);
	for (unsigned i = 0; i < 4000; i++) {
		const struct model_name *name = &model.names[ds_prng_below(&random, 8000)];
		unsigned tries = 0;
		int r;

		for (;;) {
			for (unsigned k = 0; k < 4; k++)
				atomic_store(&source.is_local[ds_prng_below(&random,
									    source.source.pages_n)],
					     0);
			if (i % 3 == 0)
				r = ds_manifest_get(manifest, &want, name->id, &entry);
			else if (i % 3 == 1)
				r = ds_manifest_lookup(manifest, &want, DS_ROOT_ID, name->name,
						       name->name_len, &entry);
			else
				r = ds_manifest_total(manifest, &want, "files", &value);
			if (r != -DS_E_NOT_LOCAL)
				break;
			cr_assert(++tries < 100);
			support_fetch(&source, &want);
		}
		cr_assert_eq(r, 0);
		if (i % 3 == 2)
			cr_assert_eq(value, 8000);
		else
			cr_assert_eq(entry.id, name->id);
	}
	cr_assert(source.misses_n > 1000);
	ds_manifest_free(manifest);
	support_source_release(&source);
	model_release(&model);
}

Test(manifest_restart, every_kind_of_call_can_be_made_again)
{
	struct support_want want = {.is_set = false};
	struct support_source source;
	struct ds_manifest *manifest;
	struct ds_extent extents[4];
	struct ds_pack_row pack;
	struct model model;
	uint64_t value;
	size_t n;
	int r;

	model_build(&model, support_path("m"), 4096, 21, 1500);
	support_source_load(&source, support_path("m"));
	for (size_t i = 0; i < model.inodes_n; i++) {
		const struct model_inode *inode = &model.inodes[i];
		struct ds_buf buf = DS_BUF_INIT(DS_TARGET_MAX);

		if (inode->type == DS_ENTRY_DIRECTORY)
			continue;
		support_source_empty(&source);
		cr_assert_eq(ds_manifest_new(&source.source, &manifest), 0);
		if (inode->type == DS_ENTRY_SYMLINK) {
			SUPPORT_UNTIL_LOCAL(&source, want, 8, r,
					    ds_manifest_readlink(manifest, &want, inode->ino,
								 &buf));
			cr_assert_eq(r, 0);
			cr_assert_eq(buf.len_bytes, inode->target_len);
			cr_assert_arr_eq(buf.data, inode->target, buf.len_bytes);
		} else if (inode->extents_n > 1) {
			SUPPORT_UNTIL_LOCAL(&source, want, 8, r,
					    ds_manifest_extents(manifest, &want, inode->ino,
								inode->extents[1].off, 1, extents,
								4, &n));
			cr_assert_eq(r, 0);
			cr_assert_eq(n, 1);
			cr_assert_eq(extents[0].slot, 1);
		} else if (inode->chunk.pack) {
			SUPPORT_UNTIL_LOCAL(&source, want, 8, r,
					    ds_manifest_pack(manifest, &want, inode->chunk.pack,
							     &pack));
			cr_assert_eq(r, 0);
			cr_assert_eq(pack.number, inode->chunk.pack);
		} else {
			SUPPORT_UNTIL_LOCAL(&source, want, 8, r,
					    ds_manifest_total(manifest, &want, "bytes", &value));
			cr_assert_eq(r, 0);
			cr_assert_eq(value, model_total(&model, "bytes"));
		}
		cr_assert(source.misses_n > 1);
		ds_manifest_free(manifest);
		ds_buf_release(&buf);
	}
	support_source_release(&source);
	model_release(&model);
}

Test(manifest_restart, the_sources_own_error_is_returned_and_does_not_stay)
{
	static const int codes[] = {-DS_E_CORRUPT, -DS_E_NETWORK, -DS_E_TIMEOUT, -ENOMEM, -EIO};
	struct support_source source;
	struct ds_manifest *manifest;
	struct ds_entry entry;
	struct model model;
	unsigned failed_n = 0;

	build(&model, &source, 2000);
	for (uint64_t page = 0; page < source.source.pages_n; page++) {
		const struct model_name *name = &model.names[ds_prng_below(&model.random, 2000)];
		int r;

		source.fail_page = page;
		source.fail_code = codes[page % DS_ARRAY_SIZE(codes)];
		cr_assert_eq(ds_manifest_new(&source.source, &manifest), 0);
		for (unsigned i = 0; i < 2; i++) {
			r = ds_manifest_lookup(manifest, NULL, DS_ROOT_ID, name->name,
					       name->name_len, &entry);
			cr_assert(r == 0 || r == source.fail_code);
			failed_n += r < 0;
		}
		source.fail_code = 0;
		cr_assert_eq(ds_manifest_lookup(manifest, NULL, DS_ROOT_ID, name->name,
						name->name_len, &entry),
			     0);
		cr_assert_eq(entry.id, name->id);
		ds_manifest_free(manifest);
	}
	cr_assert(failed_n >= 4, "no fault was delivered");
	support_source_release(&source);
	model_release(&model);
}

struct worker {
	struct ds_manifest *manifest;
	struct support_source *source;
	const struct model *model;
	uint64_t seed;
	unsigned lookups_n, misses_n;
	bool is_right;
};

static void *look_up(void *arg)
{
	struct worker *worker = arg;
	struct ds_prng random = {.state = worker->seed};
	struct support_want want = {.is_set = false};
	struct ds_entry entry;

	for (unsigned i = 0; i < 3000; i++) {
		const struct model_name *name =
			&worker->model->names[ds_prng_below(&random, worker->model->names_n)];
		int r;

		atomic_store(
			&worker->source
				 ->is_local[ds_prng_below(&random, worker->source->source.pages_n)],
			0);
		while ((r = ds_manifest_lookup(worker->manifest, &want, DS_ROOT_ID, name->name,
					       name->name_len, &entry)) == -DS_E_NOT_LOCAL) {
			worker->misses_n++;
			atomic_store(&worker->source->is_local[want.page], 1);
		}
		if (r < 0 || entry.id != name->id)
			return NULL;
		worker->lookups_n++;
	}
	worker->is_right = true;
	return NULL;
}

Test(manifest_restart, eight_threads_look_up_while_pages_come_and_go)
{
	struct worker workers[8];
	pthread_t threads[8];
	struct support_source source;
	struct ds_manifest *manifest;
	unsigned misses_n = 0;
	struct model model;

	build(&model, &source, 8000);
	support_source_empty(&source);
	cr_assert_eq(ds_manifest_new(&source.source, &manifest), 0);
	for (unsigned i = 0; i < 8; i++) {
		workers[i] = (struct worker){.manifest = manifest,
					     .source = &source,
					     .model = &model,
					     .seed = i};
		cr_assert_eq(pthread_create(&threads[i], NULL, look_up, &workers[i]), 0);
	}
	for (unsigned i = 0; i < 8; i++) {
		pthread_join(threads[i], NULL);
		cr_assert(workers[i].is_right);
		misses_n += workers[i].misses_n;
	}
	cr_assert(misses_n > 100);
	ds_manifest_free(manifest);
	support_source_release(&source);
	model_release(&model);
}
