/*
 * Commit when the store fails, lies or stalls, memory ends, or somebody presses Ctrl-C: afterwards there is nothing or a whole
 * version, and repeating it succeeds.
 */
#include <stdio.h>
#include <stdlib.h>

#include "commit_support.h"
#include "repo/refs.h"
#include "suite.h"
#include "util/mem.h"
#include "util/str.h"

DS_SUITE(commit_fault);

static void make_tree(struct box *box)
{
	char path[60];

	for (int d = 0; d < 3; d++) {
		snprintf(path, sizeof(path), "dir-%d", d);
		box_mkdir(box, path);
		for (int i = 0; i < 5; i++) {
			snprintf(path, sizeof(path), "dir-%d/file-%d", d, i);
			box_fill(box, path, (uint64_t)(d * 100 + i), 2000);
		}
	}
	box_fill(box, "large", 999, (5 << 20) + 3);
	box_symlink(box, "dir-1/file-1", "link");
	box_link(box, "dir-1/file-1", "hard");
}

static uint64_t head_of(struct box *box)
{
	struct ds_ref_entry head;
	int r = ds_ref_head(box->repo, DS_REF_BRANCH, "main", &head, NULL);

	cr_assert(r == 0 || r == -DS_E_NO_VERSION);
	return r == 0 ? head.number : 0;
}

/* A change that touches data, manifest and links, different for each n. */
static void change(struct box *box, unsigned n)
{
	box_fill(box, "dir-1/changed", n + 10000, 3000);
	box_fill(box, "dir-2/other", n + 20000, 30);
	if (n % 2)
		box_rename(box, "dir-0", "dir-9");
	else if (n)
		box_rename(box, "dir-9", "dir-0");
}

/* After a commit that met a fault: none or a whole version, and the repeated one is right. */
static void check_after(struct box *box, int r, uint64_t before)
{
	uint64_t after = head_of(box);

	cr_assert(after == before || after == before + 1);
	if (r == 0) {
		cr_assert_eq(after, before + 1, "an acknowledged version is missing");
		cr_assert_eq(box->result.number, after);
	}
	cr_assert_eq(box_verify(box, false), after);
	box_commit(box);
	cr_assert_eq(box->result.unchanged, after == before + 1);
	cr_assert_eq(head_of(box), before + 1);
	if (before % 16 == 1)
		box_check(box, NULL);
}

static void fail_every_call(bool after, bool sticky, int code)
{
	long failed_n = 0;
	struct box box;
	unsigned n;

	box_init(&box);
	make_tree(&box);
	box_commit(&box);
	for (n = 0;; n++) {
		uint64_t before = head_of(&box);
		long faults_n;
		int r;

		change(&box, n);
		spy_store_reset(&box.spy);
		box.spy.fail_at = n;
		box.spy.fail_after = after;
		box.spy.fail_sticky = sticky;
		box.spy.fail_with = code;
		r = box_try_commit(&box);
		faults_n = box.spy.failed_n;
		spy_store_reset(&box.spy);
		check_after(&box, r, before);
		failed_n += faults_n;
		if (faults_n == 0) {
			cr_assert_eq(r, 0);
			break;
		}
	}
	cr_log_info("%u calls, %ld faults", n, failed_n);
	cr_assert_geq(n, 10);
	box_check(&box, NULL);
	box_release(&box);
}

Test(commit_fault, E01_every_request_fails_before_it_is_made)
{
	fail_every_call(false, false, -DS_E_NETWORK);
}

Test(commit_fault, E01_every_reply_is_lost)
{
	fail_every_call(true, false, -DS_E_NETWORK);
}

Test(commit_fault, E01_the_store_is_gone_from_the_nth_request_on)
{
	fail_every_call(false, true, -DS_E_TIMEOUT);
}

Test(commit_fault, E01_every_reply_is_lost_from_the_nth_request_on)
{
	fail_every_call(true, true, -DS_E_NETWORK);
}

Test(commit_fault, E01_every_request_is_denied)
{
	fail_every_call(false, false, -DS_E_DENIED);
}

/* lie_max_n of 1: only about the first pack, which is the data's if there are new ones. */
static void lie(const char *about, bool is_short, bool new_data, long lie_max_n)
{
	struct box box;
	uint64_t before;

	box_init(&box);
	make_tree(&box);
	box_commit(&box);
	before = head_of(&box);
	if (new_data)
		box_fill(&box, "dir-1/changed", 1, 3000);
	else
		box_rename(&box, "dir-0", "dir-9");
	box.spy.lie_about = about;
	box.spy.lie_short = is_short;
	box.spy.lie_max_n = lie_max_n;
	cr_assert_eq(box_try_commit(&box), -DS_E_CORRUPT);
	cr_assert_gt(box.spy.lied_n, 0);
	cr_assert_not_null(strstr(box.diag.object, about));
	cr_assert_eq(head_of(&box), before);
	spy_store_reset(&box.spy);
	if (!is_short) {
		cr_assert_eq(box_verify(&box, true), before);
		box_commit(&box);
		box_check(&box, NULL);
	}
	box_release(&box);
}

Test(commit_fault, A25_a_store_that_forgets_packs_is_found_out)
{
	lie("packs/", false, true, 0);
	lie("packs/", false, false, 0);
	lie("packs/", false, true, 1);
}

Test(commit_fault, A25_a_store_that_cuts_packs_is_found_out)
{
	lie("packs/", true, true, 0);
	lie("packs/", true, false, 0);
	lie("packs/", true, true, 1);
}

Test(commit_fault, A25_a_store_that_forgets_records_is_found_out)
{
	lie("versions/", false, true, 0);
}

Test(commit_fault, A25_a_store_that_forgets_the_ref_entry_is_found_out)
{
	lie("refs/branches/", false, true, 0);
}

Test(commit_fault, A25_a_store_that_cuts_records_is_found_out)
{
	lie("versions/", true, true, 0);
}

struct press {
	struct box *box;
	long at;
};

static void press_at(void *ctx, const struct ds_store_req *req)
{
	struct press *press = ctx;

	(void)req;
	if (press->box->spy.calls_n > press->at)
		press->box->interrupted = 1;
}

Test(commit_fault, I07_an_interrupt_at_any_request_leaves_nothing_or_all)
{
	struct press press;
	unsigned interrupted_n = 0;
	struct box box;

	box_init(&box);
	press.box = &box;
	make_tree(&box);
	box_commit(&box);
	for (unsigned n = 0;; n++) {
		uint64_t before = head_of(&box);
		int r;

		change(&box, n);
		spy_store_reset(&box.spy);
		press.at = n;
		box.spy.before = press_at;
		box.spy.ctx = &press;
		r = box_try_commit(&box);
		cr_assert(r == 0 || r == -DS_E_INTERRUPTED);
		interrupted_n += r < 0;
		/* Nothing that ended well on the way is blamed for it. */
		cr_assert_eq(box.diag.code, r);
		cr_assert_str_empty(box.diag.object, "%s", box.diag.object);
		spy_store_reset(&box.spy);
		press.at = box.interrupted;
		box.interrupted = 0;
		check_after(&box, r, before);
		if (!press.at)
			break;
	}
	cr_assert_gt(interrupted_n, 5);
	box_release(&box);
}

static void press_after_a_pack(void *ctx, const struct ds_store_req *req)
{
	struct box *box = ctx;

	if (req->op == DS_STORE_PUT && ds_starts_with(req->key, "packs/"))
		box->interrupted = 1;
}

Test(commit_fault, what_was_put_before_an_interrupt_is_used_by_the_next)
{
	struct box box;
	long put;

	box_init(&box);
	for (int i = 0; i < 13; i++) {
		char path[20];

		snprintf(path, sizeof(path), "file-%02d", i);
		box_fill(&box, path, (uint64_t)i, 3 << 20);
	}
	box.spy.before = press_after_a_pack;
	box.spy.ctx = &box;
	cr_assert_eq(box_try_commit(&box), -DS_E_INTERRUPTED);
	put = box.spy.data_bytes;
	cr_assert_gt(put, 25 << 20);
	spy_store_reset(&box.spy);
	box.interrupted = 0;
	box_move_elsewhere(&box);
	box_commit(&box);
	cr_assert_lt((long)box.result.uploaded_data_bytes, (13 * 3 << 20) - put + 100000);
	box_check(&box, NULL);
	box_release(&box);
}

/* Commits whose n-th allocation fails, for n at such distances; with DSFS_TEST_ALL in the environment for each n. */
static void fail_allocations(int sticky, int64_t first, int64_t last, int64_t step)
{
	unsigned n = 0, failed_n = 0;
	struct box box;

	if (getenv("DSFS_TEST_ALL"))
		step = 1;
	box_init(&box);
	make_tree(&box);
	box_commit(&box);
	for (int64_t at = first; at < last; at += step, n++) {
		uint64_t before = head_of(&box), faults_n;
		int r;

		change(&box, n);
		ds_mem_fail_after(at, sticky);
		r = box_try_commit(&box);
		faults_n = ds_mem_fail_after(-1, 0);
		cr_assert(r == 0 || r == -ENOMEM, "%s", ds_strerror(r));
		failed_n += faults_n > 0;
		check_after(&box, r, before);
		if (faults_n == 0)
			break;
	}
	cr_log_info("%u commits, %u with failing allocations", n, failed_n);
	cr_assert_gt(failed_n, n / 2);
	box_check(&box, NULL);
	box_release(&box);
}

Test(commit_fault, J01_an_allocation_fails)
{
	fail_allocations(0, 0, 280, 7);
}

Test(commit_fault, J01_an_allocation_fails_later)
{
	fail_allocations(0, 280, 3000, 71);
}

Test(commit_fault, J01_all_allocations_fail_from_one_on)
{
	fail_allocations(1, 0, 2000, 71);
}
