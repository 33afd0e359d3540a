/*
 * The model of keep_sim_test.c: a store, its clock, writers and collectors.
 */
#pragma once

#include "repo/keep.h"
#include "util/mem.h"
#include "util/random.h"

#define STEPS_N	     300
#define LOGS_MAX     24
#define LOG_MAX	     48
#define BRANCHES_N   2
#define POLICIES_MAX 12
#define VERSIONS_MAX 256
#define PACKS_MAX    1024
#define CONTENTS_N   7
#define WANT_MAX     4
#define ACTORS_N     7
#define PUT_HELD_S   900

/* The rules that can be switched off. */
#define RULES(X)                                                                                 \
	X(YOUNG, "young: packs of any age are taken over")                                       \
	X(PUBLISH_LIMIT, "publish limit: a writer publishes however late it is")                 \
	X(SIGNED, "signed with the check's time: a PUT may be held up for any time")             \
	X(BASE, "bases: chunks of any version are referred to")                                  \
	X(DROPPED, "one grace after the drop: the collector marks kept versions only")           \
	X(PACK_AGE, "age of packs: the collector deletes unmarked packs of any age")             \
	X(UNIQUE_IDS, "unique ids: a pack's id follows from its content, so that it comes back") \
	X(MAY_NAME, "names: a tag or a moved branch may name any version")                       \
	X(STAYS_DROPPED, "what was dropped stays so: whatever entries keep now is kept")         \
	X(SHORTER_GRACE, "a shorter grace counts only later: it counts at once")                 \
	X(OLDER_GRACE, "writers count on the newest grace: they count on the collector's")       \
	X(AGED, "what was too old stays so: a longer grace makes packs young again")             \
	X(REJUDGE, "starting anew: packs put before are not judged again")                       \
	X(CLAIM, "index: what a writer put and then left out counts as its version's")

enum rule {
	RULE_NONE,
#define X(name, text) RULE_##name,
	RULES(X)
#undef X
		RULES_N
};

struct pack {
	bool exists;
	unsigned content;
	int64_t modified; /* seconds */
};

struct version {
	unsigned contents[WANT_MAX], packs[WANT_MAX];
	unsigned n;
	unsigned left_out[WANT_MAX]; /* packs put for what the source held before it changed */
	unsigned left_out_n;
};

struct log {
	struct ds_ref_entry entries[LOG_MAX];
	size_t n;
};

enum kind { COMMIT, NAME, CLOSE, POLICY, COLLECT };
enum step { IDLE, READ, TAKE, LOOK, SIGN, LAND, LIST, DELETE };

/* A writer or a collector. */
struct actor {
	enum kind kind;
	enum step step;
	int64_t start, signed_at;
	int64_t wakes; /* stopped until then */
	struct ds_keep *keep;
	unsigned log;
	size_t head_n;		/* entries of the log when it was read */
	struct version version; /* being made */
	bool own[WANT_MAX];	/* put or found young: looked at before publishing */
	unsigned taken_n, named;
	struct ds_ref_entry entry;
	struct ds_policy_entry policy;
	bool *marked;
	unsigned *doomed;
	unsigned doomed_n, next;
};

struct sim {
	struct ds_prng prng;
	uint64_t seed;
	enum rule off;
	bool trace;
	int64_t now, unit;
	struct pack packs[PACKS_MAX];
	unsigned packs_n;
	struct version versions[VERSIONS_MAX];
	unsigned versions_n;
	struct log logs[LOGS_MAX]; /* branches, then tags */
	unsigned logs_n;
	struct ds_policy_entry policies[POLICIES_MAX];
	size_t policies_n;
	struct actor actors[ACTORS_N];
	const char *violation;
	struct {
		uint64_t commits, takeovers, reuses, names, closes, policies, deletes, lates,
			conflicts, kills, checks, refused_names, left_outs;
	} counts;
};

/* keep_sim_rules.c: random choices; the trace; the rules, each with its switch. */
uint64_t sim_below(struct sim *sim, uint64_t n);
bool sim_chance(struct sim *sim, unsigned percent);
struct ds_time sim_time_of(int64_t s);
void sim_trace(const struct sim *sim, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
struct ds_digest sim_version_id(unsigned version);
unsigned sim_version_of(const struct ds_digest *id);
/* What a reader of the logs sees now, judged at `at`. */
struct ds_keep *sim_judge(const struct sim *sim, int64_t at);
bool sim_is_kept(const struct sim *sim, const struct ds_keep *keep, unsigned version);
bool sim_is_base(const struct sim *sim, const struct ds_keep *keep, unsigned version);
bool sim_may_name(const struct sim *sim, const struct ds_keep *keep, unsigned version);
bool sim_must_mark(const struct sim *sim, const struct ds_keep *keep, unsigned version);
int64_t sim_newest_grace(const struct sim *sim);
bool sim_is_young(const struct sim *sim, const struct actor *actor, int64_t modified);
bool sim_may_delete(const struct sim *sim, const struct actor *actor, int64_t modified);
bool sim_is_late(const struct sim *sim, const struct actor *actor);

/* keep_sim.c: one history; sim->violation says what was found. */
void sim_run_history(struct sim *sim, uint64_t seed, enum rule off, bool with_trace);
