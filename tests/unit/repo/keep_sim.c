#include "keep_sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void violate(struct sim *sim, const char *what)
{
	if (!sim->violation)
		sim->violation = what;
	sim_trace(sim, "VIOLATION: %s", what);
}

static void stop(struct actor *actor)
{
	ds_keep_free(actor->keep);
	ds_free(actor->marked);
	ds_free(actor->doomed);
	*actor = (struct actor){0};
}

static unsigned head_version(const struct log *log)
{
	return sim_version_of(&log->entries[log->n - 1].version);
}

/* The tree to be committed: the head's with changes. */
static void choose_contents(struct sim *sim, struct actor *actor)
{
	const struct log *log = &sim->logs[actor->log];
	struct version *version = &actor->version;

	version->n = 1 + (unsigned)sim_below(sim, WANT_MAX);
	for (unsigned i = 0; i < version->n; i++) {
		version->contents[i] = (unsigned)sim_below(sim, CONTENTS_N);
		if (log->n && !log->entries[log->n - 1].is_deleted && sim_chance(sim, 60)) {
			const struct version *parent = &sim->versions[head_version(log)];

			version->contents[i] = parent->contents[sim_below(sim, parent->n)];
		}
	}
}

static unsigned put_pack(struct sim *sim, unsigned content)
{
	unsigned pack = sim->packs_n;

	/* With ids that follow from the content there is one object per content. */
	if (sim->off == RULE_UNIQUE_IDS) {
		for (unsigned i = 0; i < sim->packs_n; i++) {
			if (sim->packs[i].content == content)
				pack = i;
		}
		if (pack < sim->packs_n && sim->packs[pack].exists)
			return UINT32_MAX; /* there, but may not be relied on */
	}
	if (pack == sim->packs_n) {
		if (sim->packs_n == PACKS_MAX)
			return UINT32_MAX;
		sim->packs_n++;
	}
	sim->packs[pack] = (struct pack){true, content, sim->now};
	return pack;
}

static bool is_in(const struct version *version, unsigned pack)
{
	for (unsigned i = 0; i < version->n; i++) {
		if (version->packs[i] == pack)
			return true;
	}
	return false;
}

/* Whether the index names the pack for the version. */
static bool is_claimed(const struct sim *sim, const struct version *version, unsigned pack)
{
	for (unsigned i = 0; sim->off == RULE_CLAIM && i < version->left_out_n; i++) {
		if (version->left_out[i] == pack)
			return true;
	}
	return is_in(version, pack);
}

/* A pack of what is there that the rules allow to refer to; UINT32_MAX: none. */
static unsigned find_pack(struct sim *sim, const struct actor *actor, unsigned content,
			  bool *ret_own)
{
	unsigned first = sim->packs_n ? (unsigned)sim_below(sim, sim->packs_n) : 0;

	for (unsigned k = 0; k < sim->packs_n; k++) {
		unsigned p = (first + k) % sim->packs_n;
		const struct pack *pack = &sim->packs[p];

		if (pack->content != content)
			continue;
		for (unsigned v = 0; v < sim->versions_n; v++) {
			if (is_claimed(sim, &sim->versions[v], p) &&
			    sim_is_base(sim, actor->keep, v)) {
				*ret_own = false;
				sim->counts.reuses++;
				return p;
			}
		}
		if (pack->exists && sim_is_young(sim, actor, pack->modified)) {
			*ret_own = true;
			sim->counts.takeovers++;
			return p;
		}
	}
	return UINT32_MAX;
}

static void take(struct sim *sim, struct actor *actor)
{
	unsigned i = actor->taken_n, pack;
	bool own = true;

	if (sim->off == RULE_REJUDGE && actor->own[i] &&
	    sim->packs[actor->version.packs[i]].content == actor->version.contents[i]) {
		actor->taken_n++;
		return;
	}
	pack = find_pack(sim, actor, actor->version.contents[i], &own);
	if (pack == UINT32_MAX)
		pack = put_pack(sim, actor->version.contents[i]);
	if (pack == UINT32_MAX) {
		stop(actor);
		return;
	}
	sim_trace(sim, "writer %d takes pack %u (content %u)", (int)(actor - sim->actors), pack,
		  actor->version.contents[i]);
	/* The source changed under the reader: what was just put is not what will be referred to. */
	if (sim_chance(sim, 10) && actor->version.left_out_n < WANT_MAX) {
		actor->version.left_out[actor->version.left_out_n++] = pack;
		actor->version.contents[i] = (unsigned)sim_below(sim, CONTENTS_N);
		sim->counts.left_outs++;
		return;
	}
	actor->version.packs[i] = pack;
	actor->own[i] = own;
	actor->taken_n++;
}

/* Its own packs are there with their size; those of bases are not looked at. */
static bool look(const struct sim *sim, const struct actor *actor)
{
	for (unsigned i = 0; i < actor->version.n; i++) {
		if (actor->own[i] && !sim->packs[actor->version.packs[i]].exists)
			return false;
	}
	return true;
}

static void start_again(struct sim *sim, struct actor *actor)
{
	ds_keep_free(actor->keep);
	actor->keep = NULL;
	actor->start = sim->now;
	actor->taken_n = 0;
	actor->step = READ;
	/* Patience ends some day. */
	if (sim_chance(sim, 40))
		stop(actor);
}

static void check_version(struct sim *sim, unsigned version)
{
	for (unsigned i = 0; i < sim->versions[version].n; i++) {
		if (!sim->packs[sim->versions[version].packs[i]].exists) {
			sim_trace(sim, "version %u lacks pack %u", version,
				  sim->versions[version].packs[i]);
			violate(sim, "a kept version misses a pack");
		}
	}
}

static void check_all(struct sim *sim)
{
	struct ds_keep *keep = sim_judge(sim, sim->now);

	for (unsigned v = 0; v < sim->versions_n; v++) {
		if (sim_is_kept(sim, keep, v))
			check_version(sim, v);
	}
	sim->counts.checks++;
	ds_keep_free(keep);
}

static void sign(struct sim *sim, struct actor *actor)
{
	struct log *log = &sim->logs[actor->log];
	struct ds_ref_entry *entry = &actor->entry;

	*entry = (struct ds_ref_entry){.kind = actor->log < BRANCHES_N ? DS_REF_BRANCH : DS_REF_TAG,
				       .number = actor->head_n + 1,
				       .time = sim_time_of(sim->now)};
	snprintf(entry->name, sizeof(entry->name), "log%u", actor->log);
	if (actor->head_n)
		entry->time.s = DS_MAX(sim->now, log->entries[actor->head_n - 1].time.s);
	entry->is_deleted = actor->kind == CLOSE;
	if (actor->kind == NAME)
		entry->version = sim_version_id(actor->named);
	actor->signed_at = sim->now;
	actor->step = LAND;
}

/* The PUT arrives at the store. */
static void land(struct sim *sim, struct actor *actor)
{
	struct log *log = &sim->logs[actor->log];
	struct ds_keep *keep;
	unsigned version;

	if (sim->off != RULE_SIGNED && sim->now - actor->signed_at > PUT_HELD_S) {
		sim->counts.lates++;
		if (actor->kind == COMMIT)
			start_again(sim, actor);
		else
			stop(actor);
		return;
	}
	if (log->n != actor->head_n || log->n == LOG_MAX || sim->versions_n == VERSIONS_MAX) {
		sim->counts.conflicts++;
		if (actor->kind == COMMIT && log->n < LOG_MAX)
			start_again(sim, actor);
		else
			stop(actor);
		return;
	}
	if (actor->kind == COMMIT) {
		actor->named = sim->versions_n;
		sim->versions[sim->versions_n++] = actor->version;
		actor->entry.version = sim_version_id(actor->named);
		sim->counts.commits++;
	}
	log->entries[log->n++] = actor->entry;
	version = actor->named;
	sim_trace(sim, "%s entry %zu: %s %u", actor->entry.name, log->n,
		  actor->kind == CLOSE ? "closed" : "version", version);
	if (actor->kind == CLOSE) {
		sim->counts.closes++;
	} else {
		sim->counts.names += actor->kind == NAME;
		/* It is acknowledged: so it is kept, and whole. */
		keep = sim_judge(sim, sim->now);
		if (!sim_is_kept(sim, keep, version))
			violate(sim, "a version that was named is not kept");
		check_version(sim, version);
		ds_keep_free(keep);
	}
	stop(actor);
}

static void run_commit(struct sim *sim, struct actor *actor)
{
	switch (actor->step) {
	case READ:
		actor->keep = sim_judge(sim, actor->start);
		actor->head_n = sim->logs[actor->log].n;
		if (actor->version.n == 0)
			choose_contents(sim, actor);
		actor->step = TAKE;
		return;
	case TAKE:
		do {
			take(sim, actor);
		} while (actor->step == TAKE && actor->taken_n < actor->version.n &&
			 sim_chance(sim, 70));
		if (actor->step == TAKE && actor->taken_n == actor->version.n)
			actor->step = LOOK;
		return;
	case LOOK:
		actor->step = SIGN;
		if (!look(sim, actor)) {
			memset(actor->own, 0, sizeof(actor->own));
			start_again(sim, actor);
		}
		return;
	case SIGN:
		if (sim_is_late(sim, actor)) {
			sim->counts.lates++;
			start_again(sim, actor);
			return;
		}
		sign(sim, actor);
		if (sim_chance(sim, 50))
			land(sim, actor);
		return;
	default:
		land(sim, actor);
	}
}

/* A log for a new tag; or a branch. */
static bool choose_log(struct sim *sim, struct actor *actor)
{
	actor->log = (unsigned)sim_below(sim, BRANCHES_N);
	if (sim_chance(sim, 60)) {
		if (sim->logs_n == LOGS_MAX)
			return false;
		actor->log = sim->logs_n++;
		sim->logs[actor->log].n = 0;
	}
	return true;
}

static void run_name(struct sim *sim, struct actor *actor)
{
	switch (actor->step) {
	case READ:
		actor->keep = sim_judge(sim, actor->start);
		if (sim->versions_n == 0 || !choose_log(sim, actor)) {
			stop(actor);
			return;
		}
		actor->head_n = sim->logs[actor->log].n;
		actor->named = (unsigned)sim_below(sim, sim->versions_n);
		actor->step = SIGN;
		if (!sim_may_name(sim, actor->keep, actor->named)) {
			sim->counts.refused_names++;
			stop(actor);
		}
		return;
	case SIGN:
		if (sim_is_late(sim, actor))
			stop(actor);
		else
			sign(sim, actor);
		return;
	default:
		land(sim, actor);
	}
}

static void run_close(struct sim *sim, struct actor *actor)
{
	const struct log *log;

	if (actor->step == LAND) {
		land(sim, actor);
		return;
	}
	/* Tags more often. */
	actor->log = (unsigned)sim_below(sim, sim_chance(sim, 20) ? BRANCHES_N : sim->logs_n);
	log = &sim->logs[actor->log];
	if (log->n == 0 || log->entries[log->n - 1].is_deleted) {
		stop(actor);
		return;
	}
	actor->head_n = log->n;
	sign(sim, actor);
}

static void run_policy(struct sim *sim, struct actor *actor)
{
	static const unsigned hours[] = {2, 2, 3, 6, 24, 168};
	struct ds_policy_entry *policy = &actor->policy;

	if (actor->step == READ) {
		*policy = (struct ds_policy_entry){
			.number = sim->policies_n + 1,
			.grace_s = 3600 * hours[sim_below(sim, DS_ARRAY_SIZE(hours))],
			.has_keep_entries = sim_chance(sim, 50),
			.has_keep_s = sim_chance(sim, 50),
			.keep_entries = sim_below(sim, 4),
			.time = sim_time_of(sim->now)};
		policy->keep_s = policy->grace_s * sim_below(sim, 20) / 10;
		if (sim->policies_n)
			policy->time.s =
				DS_MAX(sim->now, sim->policies[sim->policies_n - 1].time.s);
		actor->signed_at = sim->now;
		actor->step = LAND;
		return;
	}
	if (policy->number == sim->policies_n + 1 && sim->policies_n < POLICIES_MAX &&
	    sim->now - actor->signed_at <= PUT_HELD_S) {
		sim->policies[sim->policies_n++] = *policy;
		sim->counts.policies++;
		sim_trace(sim, "policy %zu: grace %u h, %d entries, %ld s", sim->policies_n,
			  (unsigned)(policy->grace_s / 3600),
			  policy->has_keep_entries ? (int)policy->keep_entries : -1,
			  policy->has_keep_s ? (long)policy->keep_s : -1L);
	}
	stop(actor);
}

static void run_collect(struct sim *sim, struct actor *actor)
{
	switch (actor->step) {
	case READ:
		actor->keep = sim_judge(sim, actor->start);
		actor->marked = calloc(PACKS_MAX, sizeof(*actor->marked));
		actor->doomed = calloc(PACKS_MAX, sizeof(*actor->doomed));
		for (unsigned v = 0; v < sim->versions_n; v++) {
			for (unsigned i = 0;
			     sim_must_mark(sim, actor->keep, v) && i < sim->versions[v].n; i++)
				actor->marked[sim->versions[v].packs[i]] = true;
		}
		actor->step = LIST;
		return;
	case LIST:
		for (unsigned p = 0; p < sim->packs_n; p++) {
			if (sim->packs[p].exists && !actor->marked[p] &&
			    sim_may_delete(sim, actor, sim->packs[p].modified))
				actor->doomed[actor->doomed_n++] = p;
		}
		actor->step = DELETE;
		return;
	default:
		if (actor->next < actor->doomed_n) {
			struct pack *pack = &sim->packs[actor->doomed[actor->next++]];

			sim_trace(sim, "collector %d deletes pack %u", (int)(actor - sim->actors),
				  (unsigned)(pack - sim->packs));
			sim->counts.deletes += pack->exists;
			pack->exists = false;
		}
		if (actor->next == actor->doomed_n)
			stop(actor);
	}
}

static void run(struct sim *sim, struct actor *actor)
{
	switch (actor->kind) {
	case COMMIT:
		run_commit(sim, actor);
		break;
	case NAME:
		run_name(sim, actor);
		break;
	case CLOSE:
		run_close(sim, actor);
		break;
	case POLICY:
		run_policy(sim, actor);
		break;
	case COLLECT:
		run_collect(sim, actor);
		break;
	}
}

static void begin(struct sim *sim, struct actor *actor)
{
	static const enum kind kinds[] = {COMMIT, COMMIT,  COMMIT,  COMMIT, COMMIT,
					  NAME,	  NAME,	   NAME,    CLOSE,  CLOSE,
					  POLICY, COLLECT, COLLECT, COLLECT};

	*actor = (struct actor){.kind = kinds[sim_below(sim, DS_ARRAY_SIZE(kinds))],
				.step = READ,
				.start = sim->now};
	if (actor->kind == COMMIT)
		actor->log = (unsigned)sim_below(sim, BRANCHES_N);
	sim_trace(sim, "%s %d begins",
		  actor->kind == COLLECT  ? "collector"
		  : actor->kind == COMMIT ? "writer"
					  : "other",
		  (int)(actor - sim->actors));
}

static int64_t part_of_grace(struct sim *sim)
{
	static const unsigned permille[] = {2, 10, 30, 60, 100, 150, 240, 260, 400, 490, 600, 1050};

	return sim->unit * permille[sim_below(sim, DS_ARRAY_SIZE(permille))] / 1000;
}

/* Mostly nothing or moments, now and then a good part of a grace. */
static void pass_time(struct sim *sim)
{
	if (sim_chance(sim, 75))
		sim->now += (int64_t)sim_below(sim, 60);
	else if (sim_chance(sim, 50))
		sim->now += (int64_t)sim_below(sim, PUT_HELD_S + 30);
	else
		sim->now += part_of_grace(sim);
}

static int64_t choose_unit(struct sim *sim)
{
	int64_t now_s =
		(int64_t)ds_keep_grace_s(sim->policies, sim->policies_n, sim_time_of(sim->now));

	return sim_chance(sim, 30) ? now_s : sim_chance(sim, 60) ? sim_newest_grace(sim) : 7200;
}

void sim_run_history(struct sim *sim, uint64_t seed, enum rule off, bool with_trace)
{
	struct actor *last = &sim->actors[0];

	memset(sim, 0, offsetof(struct sim, violation));
	sim->violation = NULL;
	sim->prng.state = sim->seed = seed;
	sim->off = off;
	sim->trace = with_trace;
	sim->now = 1000000000;
	sim->logs_n = BRANCHES_N;
	if (sim_chance(sim, 80)) {
		struct actor first = {.kind = POLICY, .step = READ};

		run_policy(sim, &first);
		run_policy(sim, &first);
	}
	for (unsigned i = 0; i < STEPS_N && !sim->violation; i++) {
		struct actor *actor = &sim->actors[sim_below(sim, ACTORS_N)];

		if (i % 8 == 0)
			sim->unit = choose_unit(sim);
		pass_time(sim);
		if (actor->step == IDLE) {
			begin(sim, actor);
			continue;
		}
		if (actor->wakes > sim->now)
			continue;
		if (sim_chance(sim, 3)) {
			sim_trace(sim, "%d is killed", (int)(actor - sim->actors));
			sim->counts.kills++;
			stop(actor);
			continue;
		}
		run(sim, actor);
		if (actor->step != IDLE && sim_chance(sim, 5))
			actor->wakes = sim->now + part_of_grace(sim);
	}
	/* Whatever is in the works ends; later collectors run on their own. */
	for (unsigned i = 0; i < ACTORS_N; i++) {
		for (unsigned k = 0; k < 40 && sim->actors[i].step != IDLE && !sim->violation; k++)
			run(sim, &sim->actors[i]);
		stop(&sim->actors[i]);
	}
	for (unsigned round = 0; round < 3 && !sim->violation; round++) {
		check_all(sim);
		*last = (struct actor){.kind = COLLECT, .step = READ, .start = sim->now};
		while (last->step != IDLE)
			run_collect(sim, last);
		check_all(sim);
		sim->now += sim->unit * 2 / 3;
	}
}
