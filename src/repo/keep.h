/*
 * What refs and policy keep, and the rules by which writers and the collector stay out of each other's way without
 * locks (design, "Collecting"). The rules are pure functions over times of the store's clock, so that the simulation
 * of writers beside collectors runs the very code that commits.
 */
#ifndef DS_REPO_KEEP_H
#define DS_REPO_KEEP_H

#include "repo/refs.h"

#define DS_GRACE_DEFAULT_S 604800u /* 7 days */
#define DS_GRACE_MIN_S	   7200u

struct ds_policy_entry {
	uint64_t number;
	uint64_t grace_s;
	bool has_keep_entries, has_keep_s;
	uint64_t keep_entries, keep_s;
	struct ds_time time;
	struct ds_digest self;
};

/* Everything that decides what is kept: the whole logs. */
struct ds_keep_input {
	const struct ds_ref_entry *
		entries; /* all entries of all branches and tags, each log in order of its numbers */
	size_t entries_n;
	const struct ds_policy_entry *policies; /* in order of numbers */
	size_t policies_n;
};

/* The grace in force: that of the newest policy entry, or a longer earlier one that has not run out since it was replaced; never under the minimum. */
uint64_t ds_keep_grace_s(const struct ds_policy_entry *policies, size_t policies_n,
			 struct ds_time now);

struct ds_keep;
/* State at `now`. */
int ds_keep_new(const struct ds_keep_input *input, struct ds_time now, struct ds_keep **ret_keep);
struct ds_keep *ds_keep_free(struct ds_keep *keep);

enum ds_keep_state {
	DS_KEEP_KEPT,	 /* refs and policy keep it */
	DS_KEEP_DROPPED, /* nothing keeps it since *ret_dropped */
	DS_KEEP_UNKNOWN, /* no entry names it */
};
enum ds_keep_state ds_keep_state_of(const struct ds_keep *keep, const struct ds_digest *version,
				    struct ds_time *ret_dropped);

/* May a writer take this version as a base (refer to its chunks)? Kept at its start. */
bool ds_keep_is_base(const struct ds_keep *keep, const struct ds_digest *version);
/* May a tag or a moved branch name this version? Kept, or dropped less than half a grace ago; once dropped for longer it stays dropped. */
bool ds_keep_may_name(const struct ds_keep *keep, const struct ds_digest *version);
/* Must a collector mark it? Kept, or dropped less than a grace ago. */
bool ds_keep_must_mark(const struct ds_keep *keep, const struct ds_digest *version);
/* Is a pack put at `modified` (HEAD's) young (a quarter of the grace)? A writer that starts anew with a new keep asks this of the packs that it put
 * before, too: only what it puts after its start needs no question. */
bool ds_keep_is_young(const struct ds_keep *keep, struct ds_time modified);
/* May a collector delete an unmarked object of this age? Older than one grace. */
bool ds_keep_may_delete(const struct ds_keep *keep, struct ds_time modified);
/* Latest time of the store's clock at which a writer that started at `start` may sign its ref entry (not_after of ds_ref_append): half a grace, less the
 * 15 minutes that a signed PUT may be held up. */
struct ds_time ds_keep_publish_limit(const struct ds_keep *keep, struct ds_time start);
uint64_t ds_keep_grace_of(const struct ds_keep *keep);

/* Reads all refs and policy entries of a repository (LIST and GETs, in parallel) and judges at the store's time. Blocks. */
int ds_keep_load(struct ds_repo *repo, struct ds_keep **ret_keep, struct ds_time *ret_now,
		 struct ds_diag *reterr_diag);
/* Only the policy log (few GETs, no LIST of refs). */
int ds_policy_load(struct ds_repo *repo, struct ds_policy_entry **ret_policies,
		   size_t *ret_policies_n, struct ds_diag *reterr_diag);

#endif
