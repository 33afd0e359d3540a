#include "keep_sim.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint64_t sim_below(struct sim *sim, uint64_t n)
{
	return ds_prng_below(&sim->prng, n);
}

bool sim_chance(struct sim *sim, unsigned percent)
{
	return sim_below(sim, 100) < percent;
}

struct ds_time sim_time_of(int64_t s)
{
	return (struct ds_time){.s = s};
}

void sim_trace(const struct sim *sim, const char *format, ...)
{
	va_list ap;

	if (!sim->trace)
		return;
	printf("%9.2f h  ", (double)sim->now / 3600);
	va_start(ap, format);
	vprintf(format, ap);
	va_end(ap);
	putchar('\n');
}

struct ds_digest sim_version_id(unsigned version)
{
	struct ds_digest id = {{0}};

	memcpy(id.bytes, &version, sizeof(version));
	id.bytes[31] = 1;
	return id;
}

unsigned sim_version_of(const struct ds_digest *id)
{
	unsigned version;

	memcpy(&version, id->bytes, sizeof(version));
	return version;
}

/* What a reader of the logs sees now, judged at `at`. */
struct ds_keep *sim_judge(const struct sim *sim, int64_t at)
{
	static struct ds_ref_entry all[LOGS_MAX * LOG_MAX];
	struct ds_keep_input input = {.entries = all,
				      .policies = sim->policies,
				      .policies_n = sim->policies_n};
	struct ds_keep *keep = NULL;

	for (unsigned i = 0; i < sim->logs_n; i++) {
		memcpy(all + input.entries_n, sim->logs[i].entries,
		       sim->logs[i].n * sizeof(all[0]));
		input.entries_n += sim->logs[i].n;
	}
	if (ds_keep_new(&input, sim_time_of(at), &keep) < 0)
		abort();
	return keep;
}

/* ---- the rules, each with its switch */

/* What entries keep now, as if there had been no past (for STAYS_DROPPED). */
static bool is_kept_now(const struct sim *sim, unsigned version)
{
	const struct ds_policy_entry *policy =
		sim->policies_n ? &sim->policies[sim->policies_n - 1] : NULL;

	for (unsigned l = 0; l < sim->logs_n; l++) {
		const struct log *log = &sim->logs[l];

		if (log->n == 0 || log->entries[log->n - 1].is_deleted)
			continue;
		for (size_t i = 0; i < log->n; i++) {
			const struct ds_ref_entry *entry = &log->entries[i];

			if (entry->is_deleted || sim_version_of(&entry->version) != version)
				continue;
			if (i + 1 == log->n || !policy ||
			    (!policy->has_keep_entries && !policy->has_keep_s))
				return true;
			if (policy->has_keep_entries && log->n - i <= policy->keep_entries)
				return true;
			if (policy->has_keep_s &&
			    sim->now - entry[1].time.s < (int64_t)policy->keep_s)
				return true;
		}
	}
	return false;
}

bool sim_is_kept(const struct sim *sim, const struct ds_keep *keep, unsigned version)
{
	struct ds_digest id = sim_version_id(version);

	if (sim->off == RULE_STAYS_DROPPED && is_kept_now(sim, version))
		return true;
	return ds_keep_state_of(keep, &id, NULL) == DS_KEEP_KEPT;
}

bool sim_is_base(const struct sim *sim, const struct ds_keep *keep, unsigned version)
{
	struct ds_digest id = sim_version_id(version);

	if (sim->off == RULE_BASE)
		return true;
	if (sim->off == RULE_STAYS_DROPPED && is_kept_now(sim, version))
		return true;
	return ds_keep_is_base(keep, &id);
}

bool sim_may_name(const struct sim *sim, const struct ds_keep *keep, unsigned version)
{
	struct ds_digest id = sim_version_id(version);

	return sim->off == RULE_MAY_NAME || ds_keep_may_name(keep, &id);
}

bool sim_must_mark(const struct sim *sim, const struct ds_keep *keep, unsigned version)
{
	struct ds_digest id = sim_version_id(version);

	if (sim->off == RULE_DROPPED)
		return ds_keep_is_base(keep, &id);
	if (sim->off == RULE_STAYS_DROPPED && is_kept_now(sim, version))
		return true;
	return ds_keep_must_mark(keep, &id);
}

int64_t sim_newest_grace(const struct sim *sim)
{
	return sim->policies_n ? (int64_t)sim->policies[sim->policies_n - 1].grace_s
			       : DS_GRACE_DEFAULT_S;
}

bool sim_is_young(const struct sim *sim, const struct actor *actor, int64_t modified)
{
	switch (sim->off) {
	case RULE_YOUNG:
		return true;
	case RULE_OLDER_GRACE:
		return actor->start - modified < (int64_t)ds_keep_grace_of(actor->keep) / 4;
	case RULE_AGED:
		return actor->start - modified < sim_newest_grace(sim) / 4;
	default:
		return ds_keep_is_young(actor->keep, sim_time_of(modified));
	}
}

bool sim_may_delete(const struct sim *sim, const struct actor *actor, int64_t modified)
{
	if (sim->off == RULE_PACK_AGE)
		return true;
	if (sim->off == RULE_SHORTER_GRACE)
		return actor->start - modified > sim_newest_grace(sim);
	return ds_keep_may_delete(actor->keep, sim_time_of(modified));
}

bool sim_is_late(const struct sim *sim, const struct actor *actor)
{
	if (sim->off == RULE_PUBLISH_LIMIT)
		return false;
	if (sim->off == RULE_OLDER_GRACE)
		return sim->now >
		       actor->start + (int64_t)ds_keep_grace_of(actor->keep) / 2 - PUT_HELD_S;
	return sim->now > ds_keep_publish_limit(actor->keep, sim_time_of(actor->start)).s;
}
