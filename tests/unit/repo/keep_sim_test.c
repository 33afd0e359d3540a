/*
 * Writers beside collectors, simulated: random histories over a small model of a store with a clock of its own. Every decision is made by the
 * rules of repo/keep.h, which are what commits. After each history no kept version may miss a pack.
 *
 * What is in a history: writers that commit (the source changing under them, stopping for any time at any step, being killed, starting anew when
 * they are late or lost the race, taking over young packs that others left), tags, branches moved back, closed, opened again, tags deleted, policies changed; collectors,
 * several at once, as slow. A PUT may appear up to 15 minutes after it was signed.
 *
 * Then each rule is switched off in turn, and the simulation must find a violation: else it would prove nothing.
 *
 *	keep_sim_test [--seed N] [--histories N] [--rule NAME] [--trace]
 * One history of a seed: --seed N --histories 1.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "keep_sim.h"
#include "util/str.h"

#define HISTORIES_N	   10000
#define MUTANT_HISTORIES_N 10000 /* at most; a violation ends it */

static const char *const rule_names[] = {"none",
#define X(name, text) #name,
					 RULES(X)
#undef X
};
static const char *const rule_texts[] = {"all rules hold",
#define X(name, text) text,
					 RULES(X)
#undef X
};

/* Runs up to n histories; the seed of a violation, or UINT64_MAX. */
static uint64_t run_many(struct sim *sim, uint64_t seed, uint64_t n, enum rule off, bool with_trace,
			 uint64_t *ret_run_n)
{
	struct ds_prng seeds = {.state = seed};

	for (uint64_t i = 0; i < n; i++) {
		/* The first history of a seed is that seed's own, so that it can be run again alone. */
		uint64_t history = i == 0 ? seed : ds_prng_next(&seeds) >> 1;

		sim_run_history(sim, history, off, with_trace);
		*ret_run_n = i + 1;
		if (sim->violation)
			return history;
	}
	return UINT64_MAX;
}

static void print_counts(const struct sim *sim, uint64_t run_n)
{
	const struct {
		const char *name;
		uint64_t n;
	} counts[] = {
		{"histories", run_n},
		{"commits", sim->counts.commits},
		{"takeovers of young packs", sim->counts.takeovers},
		{"uses of bases", sim->counts.reuses},
		{"names", sim->counts.names},
		{"refused names", sim->counts.refused_names},
		{"closes", sim->counts.closes},
		{"policies", sim->counts.policies},
		{"deletions", sim->counts.deletes},
		{"late", sim->counts.lates},
		{"conflicts", sim->counts.conflicts},
		{"left out", sim->counts.left_outs},
		{"kills", sim->counts.kills},
		{"checks", sim->counts.checks},
	};

	for (size_t i = 0; i < DS_ARRAY_SIZE(counts); i++)
		printf("%s%llu %s", i ? ", " : "", (unsigned long long)counts[i].n, counts[i].name);
	printf("\n");
}

static bool check_rules_hold(struct sim *sim, uint64_t seed, uint64_t histories_n, bool with_trace)
{
	uint64_t run_n = 0, found;

	found = run_many(sim, seed, histories_n, RULE_NONE, with_trace, &run_n);
	print_counts(sim, run_n);
	if (found != UINT64_MAX) {
		printf("FAILED: %s; again with --seed %llu --histories 1 --rule none --trace\n",
		       sim->violation, (unsigned long long)found);
		return false;
	}
	/* A simulation in which nothing happens shows nothing. */
	if (histories_n >= 100 &&
	    (sim->counts.deletes == 0 || sim->counts.takeovers == 0 || sim->counts.names == 0 ||
	     sim->counts.lates == 0 || sim->counts.conflicts == 0 || sim->counts.policies == 0 ||
	     sim->counts.left_outs == 0)) {
		printf("FAILED: nothing happened\n");
		return false;
	}
	return true;
}

static bool check_rule_is_needed(struct sim *sim, uint64_t seed, uint64_t histories_n,
				 enum rule rule, bool with_trace)
{
	uint64_t run_n = 0, found;

	found = run_many(sim, seed, histories_n, rule, with_trace, &run_n);
	if (found == UINT64_MAX) {
		printf("FAILED: without %s (%s) nothing was found in %llu histories\n",
		       rule_names[rule], rule_texts[rule], (unsigned long long)run_n);
		return false;
	}
	printf("without %s (%s): %s, history %llu, the %llu.\n", rule_names[rule], rule_texts[rule],
	       sim->violation, (unsigned long long)found, (unsigned long long)run_n);
	return true;
}

static int find_rule(const char *name)
{
	for (int rule = 0; rule < RULES_N; rule++) {
		if (strcmp(name, rule_names[rule]) == 0)
			return rule;
	}
	return -1;
}

static int usage(void)
{
	fprintf(stderr,
		"usage: keep_sim_test [--seed N] [--histories N] [--rule NAME] [--trace]\n");
	return 2;
}

int main(int argc, char **argv)
{
	uint64_t seed = ds_random_u64() >> 1, histories_n = HISTORIES_N;
	bool with_trace = false, ok = true;
	struct sim *sim;
	int only = -1;

	for (int i = 1; i < argc; i++) {
		const char *value = i + 1 < argc ? argv[i + 1] : "";
		int r = 0;

		if (strcmp(argv[i], "--trace") == 0) {
			with_trace = true;
			continue;
		}
		if (strcmp(argv[i], "--seed") == 0)
			r = ds_parse_u64(value, UINT64_MAX, &seed);
		else if (strcmp(argv[i], "--histories") == 0)
			r = ds_parse_u64(value, UINT64_MAX, &histories_n);
		else if (strcmp(argv[i], "--rule") == 0)
			r = only = find_rule(value);
		else
			r = -1;
		if (r < 0)
			return usage();
		i++;
	}
	sim = calloc(1, sizeof(*sim));
	if (!sim)
		return 1;
	printf("seed %llu\n", (unsigned long long)seed);
	if (only <= 0)
		ok = check_rules_hold(sim, seed, histories_n, with_trace);
	for (int rule = 1; rule < RULES_N; rule++) {
		if (only < 0)
			ok &= check_rule_is_needed(sim, seed, MUTANT_HISTORIES_N, (enum rule)rule,
						   with_trace);
		else if (rule == only)
			ok &= check_rule_is_needed(sim, seed, histories_n, (enum rule)rule,
						   with_trace);
	}
	free(sim);
	return ok ? 0 : 1;
}
