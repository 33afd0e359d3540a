/*
 * Commit among others: races, what may be referred to, and until when.
 */
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "codec/pack.h"
#include "commit_support.h"
#include "repo/keep.h"
#include "repo/record.h"
#include "repo/refs.h"
#include "repo/sealed.h"
#include "suite.h"
#include "util/str.h"

DS_SUITE(commit_rules);

#define DAY 86400

Test(commit_rules, the_loser_of_a_race_commits_its_tree_on_the_winner)
{
	struct race race = {.left_n = 3};
	struct ds_record *record;
	struct box ours, other;
	uint64_t data_bytes;

	box_init(&ours);
	box_init_beside(&other, &ours);
	race.other = &other;
	box_mkdir(&ours, "dir");
	box_fill(&ours, "dir/a", 1, 100000);
	box_fill(&ours, "b", 2, 5 << 20);
	race_begin(&race, &ours);
	box_commit(&ours);
	cr_assert_eq(ours.result.races_n, 3);
	cr_assert_eq(ours.result.number, 4);
	data_bytes = ours.result.uploaded_data_bytes;
	/* The data went once. */
	cr_assert_lt(data_bytes, 100000 + (5 << 20) + 10000);
	ours.spy.before = NULL;
	box_check(&ours, "4");
	box_check(&other, "3");
	/* Its parent is the winner, and the differences are told against it. */
	cr_assert_eq(ds_record_get(ours.repo, &ours.result.version, &record, NULL), 0);
	cr_assert_eq(record->parents_n, 1);
	cr_assert(ds_digest_equal(&record->parents[0], &other.result.version));
	ds_record_free(record);
	cr_assert_eq(ours.result.added_n, 2);
	cr_assert_eq(ours.result.removed_n, 3);
	box_release(&other);
	box_release(&ours);
}

Test(commit_rules, a_race_with_a_wanted_parent_is_a_conflict)
{
	struct race race = {.left_n = 0};
	struct box ours, other;

	box_init(&ours);
	box_init_beside(&other, &ours);
	race.other = &other;
	box_fill(&ours, "a", 1, 1000);
	box_commit(&ours);
	ours.options.parent = "1";
	race_begin(&race, &ours);
	race.left_n = 1;
	box_fill(&ours, "a", 2, 1000);
	cr_assert_eq(box_try_commit(&ours), -DS_E_CONFLICT);
	cr_assert_eq(race.left_n, 0);
	cr_assert_eq(box_verify(&ours, true), 2);
	box_release(&other);
	box_release(&ours);
}

Test(commit_rules, a_race_against_the_same_tree_is_unchanged)
{
	struct race race = {.left_n = 1};
	struct box ours, other;

	box_init(&ours);
	box_init_beside(&other, &ours);
	race.other = &other;
	box_fill(&ours, "file-0", 1000, 500);
	race_begin(&race, &ours);
	box_commit(&ours);
	cr_assert(ours.result.unchanged);
	cr_assert_eq(ours.result.number, 1);
	cr_assert(ds_digest_equal(&ours.result.version, &other.result.version));
	box_release(&other);
	box_release(&ours);
}

struct writer {
	struct box box;
	unsigned seed, done_n;
};

enum { WRITERS_N = 3, COMMITS_N = 6 };

static void *write_many(void *arg)
{
	struct writer *writer = arg;

	for (unsigned i = 0; i < COMMITS_N; i++) {
		box_fill(&writer->box, "file", writer->seed * 1000 + i, 3000);
		if (box_try_commit(&writer->box) == 0 && !writer->box.result.unchanged)
			writer->done_n++;
	}
	return NULL;
}

Test(commit_rules, D01_writers_in_threads_make_one_chain)
{
	struct writer *writers = calloc(WRITERS_N, sizeof(*writers));
	struct ds_ref_entry head;
	pthread_t threads[WRITERS_N];
	struct box box;
	unsigned races_n = 0;

	box_init(&box);
	for (unsigned i = 0; i < WRITERS_N; i++) {
		box_init_beside(&writers[i].box, &box);
		writers[i].seed = i;
		cr_assert_eq(pthread_create(&threads[i], NULL, write_many, &writers[i]), 0);
	}
	for (unsigned i = 0; i < WRITERS_N; i++) {
		pthread_join(threads[i], NULL);
		cr_assert_eq(writers[i].done_n, COMMITS_N);
		races_n += writers[i].box.result.races_n;
	}
	printf("%u races in the last commits\n", races_n);
	cr_assert_eq(ds_ref_head(box.repo, DS_REF_BRANCH, "main", &head, NULL), 0);
	cr_assert_eq(head.number, WRITERS_N * COMMITS_N);
	cr_assert_eq(box_verify(&box, true), WRITERS_N * COMMITS_N);
	for (unsigned i = 0; i < WRITERS_N; i++)
		box_release(&writers[i].box);
	free(writers);
	box_release(&box);
}

static void put_policy(struct box *box, json_int_t keep_entries, struct ds_time now)
{
	struct ds_buf body = DS_BUF_INIT(DS_SEALED_MAX);
	char id[2 * DS_UUID_LEN + 1], time[DS_TIME_TEXT_MAX];
	json_t *object;

	ds_hex_encode(ds_repo_id(box->repo)->bytes, DS_UUID_LEN, id);
	object = json_pack("{s:i, s:s, s:i, s:n, s:s, s:s, s:I, s:I, s:n}", "format", 1,
			   "repository", id, "number", 1, "previous", "writer",
			   "00112233445566778899aabbccddeeff", "time", ds_time_format(now, time),
			   "grace_s", (json_int_t)7 * DAY, "keep_entries", keep_entries, "keep_s");
	cr_assert_not_null(object);
	cr_assert_eq(ds_sealed_encode(object, &body), 0);
	json_decref(object);
	cr_assert_eq(ds_store_put_if_absent(box->inner, "policy/0000000001", body.data,
					    body.len_bytes, NULL),
		     0);
	ds_buf_release(&body);
}

/* "dir" is in version 1 alone; then time goes by, and it comes back. */
static uint64_t bytes_of_coming_back(bool with_policy, int64_t days)
{
	struct ds_time now;
	struct box box;
	uint64_t bytes;

	box_init_clock(&box, &now);
	box_mkdir(&box, "dir");
	box_fill(&box, "dir/a", 1, 100000);
	box_fill(&box, "b", 2, 1000);
	box_commit(&box);
	box_remove(&box, "dir");
	box_fill(&box, "b", 3, 1000);
	now.s += 60;
	box_commit(&box);
	if (with_policy)
		put_policy(&box, 1, now);
	now.s += days * DAY;
	box_mkdir(&box, "dir");
	box_fill(&box, "dir/a", 1, 100000);
	box_commit(&box);
	bytes = box.result.uploaded_data_bytes;
	box_check(&box, NULL);
	box_release(&box);
	return bytes;
}

Test(commit_rules, chunks_of_kept_versions_are_referred_to_however_old)
{
	cr_assert_eq(bytes_of_coming_back(false, 1000), 0);
}

Test(commit_rules, chunks_of_a_dropped_version_are_referred_to_only_in_young_packs)
{
	cr_assert_eq(bytes_of_coming_back(true, 1), 0);
	/* A quarter of 7 days. */
	cr_assert_gt(bytes_of_coming_back(true, 2), 100000);
}

struct jump {
	struct ds_time *now;
	int64_t by_s;
	const char *key;
	unsigned times_n;
};

static void time_jumps(void *ctx, const struct ds_store_req *req)
{
	struct jump *jump = ctx;

	if (req->op != DS_STORE_PUT || !ds_starts_with(req->key, jump->key))
		return;
	if (jump->times_n) {
		jump->times_n--;
		jump->now->s += jump->by_s;
	}
}

static void count_anew(void *ctx)
{
	((struct box *)ctx)->anew_n++;
}

/* A second commit, of 2 MB, before whose first `times_n` such PUTs so much time passes. */
static int commit_with_jumps(struct box *box, struct jump *jump, struct ds_time *now)
{
	box_init_clock(box, now);
	jump->now = now;
	box_fill(box, "a", 1, 1000);
	box_commit(box);
	box_fill(box, "a", 2, 2000000);
	box->spy.before = time_jumps;
	box->spy.ctx = jump;
	box->options.anew = count_anew;
	return box_try_commit(box);
}

Test(commit_rules, D08_a_commit_that_always_takes_half_a_grace_publishes_nothing)
{
	struct jump jump = {.key = "versions/", .by_s = 4 * DAY, .times_n = 100};
	struct ds_time now;
	struct box box;

	cr_assert_eq(commit_with_jumps(&box, &jump, &now), -DS_E_LATE);
	cr_assert_eq(box.anew_n, 3);
	cr_assert_eq(jump.times_n, 96);
	cr_assert_eq(box_verify(&box, true), 1);
	box_release(&box);
}

/* The commit starts anew once: four days pass before its first PUT of such a key. */
static void commit_anew(struct box *box, const char *key)
{
	struct jump jump = {.key = key, .by_s = 4 * DAY, .times_n = 1};
	struct ds_time now;

	cr_assert_eq(commit_with_jumps(box, &jump, &now), 0);
	cr_assert_eq(box->anew_n, 1);
	cr_assert_eq(box->result.number, 2);
	box->spy.before = NULL;
	box_check(box, NULL);
	cr_assert_eq(box_verify(box, true), 2);
	box_release(box);
}

Test(commit_rules, D08_a_commit_that_took_half_a_grace_starts_anew)
{
	struct box box;

	commit_anew(&box, "versions/");
	/* Its own packs had become as old as those that a collector may take: they were put again. */
	cr_assert_gt(box.result.uploaded_data_bytes, 4000000);
}

Test(commit_rules, D08_a_new_start_uses_what_the_one_before_has_put_lately)
{
	struct box box;

	commit_anew(&box, "packs/");
	cr_assert_lt(box.result.uploaded_data_bytes, 2100000);
	cr_assert_geq(box.result.reused_bytes, 2000000);
}

struct meanwhile {
	struct jump jump;
	struct box *other;
};

static void other_commits(void *ctx, const struct ds_store_req *req)
{
	struct meanwhile *meanwhile = ctx;
	bool is_first = meanwhile->jump.times_n;

	time_jumps(&meanwhile->jump, req);
	if (is_first && !meanwhile->jump.times_n)
		box_commit(meanwhile->other);
}

Test(commit_rules, D08_a_new_start_looks_at_the_branch_again)
{
	struct meanwhile meanwhile = {.jump = {.key = "versions/", .by_s = 4 * DAY, .times_n = 1}};
	struct box box, other;
	struct ds_time now;

	box_init_clock(&box, &now);
	box_init_beside(&other, &box);
	box_fill(&box, "a", 1, 1000);
	box_commit(&box);
	box_fill(&other, "b", 3, 1000);
	box_fill(&box, "a", 2, 1000);
	meanwhile.jump.now = &now;
	meanwhile.other = &other;
	box.spy.before = other_commits;
	box.spy.ctx = &meanwhile;
	box_commit(&box);
	cr_assert_eq(other.result.number, 2);
	cr_assert_eq(box.result.number, 3);
	cr_assert_eq(box.result.races_n, 0);
	box.spy.before = NULL;
	box_check(&box, NULL);
	box_release(&other);
	box_release(&box);
}

Test(commit_rules, D08_less_than_half_a_grace_is_in_time)
{
	struct jump jump = {.key = "packs/", .by_s = 3 * DAY, .times_n = 1};
	struct ds_time now;
	struct box box;

	cr_assert_eq(commit_with_jumps(&box, &jump, &now), 0);
	cr_assert_eq(box.anew_n, 0);
	cr_assert_eq(box.result.number, 2);
	box.spy.before = NULL;
	box_check(&box, NULL);
	box_release(&box);
}

/* A commit that failed after its data was there, and was repeated by somebody else after `days`. */
static void repeat_after(int64_t days, uint64_t *ret_first, uint64_t *ret_second)
{
	struct ds_time now;
	struct box box;

	box_init_clock(&box, &now);
	box_fill(&box, "a", 1, 3 << 20);
	box_fill(&box, "b", 2, 3 << 20);
	box.spy.deny = "versions/";
	cr_assert_eq(box_try_commit(&box), -DS_E_DENIED);
	*ret_first = (uint64_t)box.spy.data_bytes;
	box.spy.deny = NULL;
	now.s += days * DAY;
	box_move_elsewhere(&box);
	box_commit(&box);
	*ret_second = box.result.uploaded_data_bytes;
	box_check(&box, NULL);
	box_release(&box);
}

Test(commit_rules, what_a_failed_commit_put_is_used_while_it_is_young)
{
	uint64_t first, second;

	repeat_after(1, &first, &second);
	cr_assert_gt(first, 6 << 20);
	cr_assert_eq(second, 0);
	repeat_after(2, &first, &second);
	cr_assert_gt(second, 6 << 20);
}

/* What was found by an index object without a version is found for good by the version that took it. */
Test(commit_rules, what_was_taken_over_is_indexed_for_the_version_that_took_it)
{
	struct ds_time now;
	struct box box;

	box_init_clock(&box, &now);
	box_mkdir(&box, "dir");
	box_fill(&box, "dir/a", 1, 3 << 20);
	box.spy.deny = "versions/";
	cr_assert_eq(box_try_commit(&box), -DS_E_DENIED);
	box.spy.deny = NULL;
	box_commit(&box);
	cr_assert_eq(box.result.uploaded_data_bytes, 0);
	now.s += 100 * DAY;
	box_rename(&box, "dir", "moved");
	box_commit(&box);
	cr_assert_eq(box.result.uploaded_data_bytes, 0);
	box_check(&box, NULL);
	box_release(&box);
}

struct change {
	struct box *box;
	const char *path;
	size_t len_bytes;
	bool done;
};

/* While the first pack goes to the store the file is overwritten under its reader. */
static void source_changes(void *ctx, const struct ds_store_req *req)
{
	struct change *change = ctx;

	if (req->op != DS_STORE_PUT || !ds_starts_with(req->key, "packs/") || change->done)
		return;
	change->done = true;
	box_fill(change->box, change->path, 2, change->len_bytes);
}

/* Nothing marks the packs that were put before: the collector may take them once they are old. */
Test(commit_rules, chunks_of_a_read_that_was_given_up_are_of_no_version)
{
	struct change change = {.path = "f", .len_bytes = DS_PACK_TARGET + (16 << 20)};
	struct ds_time now;
	struct box box;

	box_init_clock(&box, &now);
	change.box = &box;
	/* The reader cannot be at the end when the first pack is full. */
	box.options.memory_bytes = 16 << 20;
	box_fill(&box, "f", 1, change.len_bytes);
	box.spy.before = source_changes;
	box.spy.ctx = &change;
	box_commit(&box);
	cr_assert(change.done);
	cr_assert_gt(box.result.read_bytes, change.len_bytes + DS_PACK_TARGET / 2);
	box.spy.before = NULL;
	now.s += 60 * DAY;
	box_fill(&box, "g", 1, change.len_bytes);
	box_commit(&box);
	cr_assert_eq(box.result.reused_bytes, 0);
	cr_assert_gt(box.result.uploaded_data_bytes, change.len_bytes);
	box_check(&box, NULL);
	/* What the version does refer to it finds, however old. */
	now.s += 60 * DAY;
	box_rename(&box, "f", "h");
	box_commit(&box);
	cr_assert_eq(box.result.uploaded_data_bytes, 0);
	box_release(&box);
}

/* The winner has the same file in a pack of its own: the loser's manifest keeps that row. */
Test(commit_rules, what_the_winner_of_a_race_has_too_is_indexed_where_the_version_has_it)
{
	struct race race = {.left_n = 1};
	struct box ours, other;
	struct ds_time now;

	box_init_clock(&ours, &now);
	box_init_beside(&other, &ours);
	race.other = &other;
	box_fill(&ours, "a", 1, 100000);
	box_fill(&other, "a", 1, 100000);
	other.spy.deny = "index/";
	race_begin(&race, &ours);
	box_commit(&ours);
	cr_assert_eq(ours.result.number, 2);
	ours.spy.before = NULL;
	now.s += 60 * DAY;
	box_rename(&ours, "a", "b");
	box_commit(&ours);
	cr_assert_gt(ours.result.uploaded_data_bytes, 100000);
	box_check(&ours, NULL);
	box_release(&other);
	box_release(&ours);
}

Test(commit_rules, a_closed_branch_starts_afresh)
{
	struct ds_ref_entry head, closed = {.kind = DS_REF_BRANCH, .is_deleted = true};
	struct ds_record *record;
	struct box box;

	box_init(&box);
	box_fill(&box, "a", 1, 1000);
	box_commit(&box);
	cr_assert_eq(ds_ref_head(box.repo, DS_REF_BRANCH, "main", &head, NULL), 0);
	snprintf(closed.name, sizeof(closed.name), "main");
	cr_assert_eq(ds_ref_append(box.repo, &head, &closed, (struct ds_time){0}, &head, NULL), 0);
	box_commit(&box);
	cr_assert(!box.result.unchanged);
	cr_assert_eq(box.result.number, 3);
	cr_assert_eq(ds_record_get(box.repo, &box.result.version, &record, NULL), 0);
	cr_assert_eq(record->parents_n, 0);
	ds_record_free(record);
	box_check(&box, NULL);
	box_release(&box);
}

/* After the scan, which has seen that it may be read: then the parent is loaded. */
static void close_secret(void *ctx, const struct ds_store_req *req)
{
	if (req->op == DS_STORE_GET && strncmp(req->key, "packs/", 6) == 0)
		box_chmod(ctx, "dir/secret", 0);
}

/* Known only when all names have been matched with the parent's. */
Test(commit_rules, what_cannot_be_read_any_more_goes)
{
	uid_t uid = geteuid();
	struct box box;

	/* Root reads everything: become nobody, who owns what is made from here on. */
	if (uid == 0)
		cr_assert_eq(seteuid(65534), 0);
	box_init(&box);
	box.options.skip_unreadable = true;
	box_mkdir(&box, "dir");
	box_fill(&box, "dir/before", 1, 10);
	box_fill(&box, "dir/secret", 2, 10);
	box_fill(&box, "secret", 3, 10);
	box_commit(&box);
	cr_assert_eq(box.result.totals.files_n, 3);
	box_fill(&box, "dir/secret", 4, 20);
	box.spy.before = close_secret;
	box.spy.ctx = &box;
	box_commit(&box);
	cr_assert_eq(box.result.removed_n, 1);
	cr_assert_eq(box.result.totals.files_n, 2);
	cr_assert_eq(box.result.totals.rejected_n, 1);
	cr_assert_not(box.result.parent_is_damaged);
	box_release(&box);
	cr_assert_eq(seteuid(uid), 0); /* the leak checker needs it */
}
