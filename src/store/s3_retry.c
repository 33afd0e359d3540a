#include "store/s3_retry.h"

#include <errno.h>

#include "util/clock.h"
#include "util/mem.h"
#include "util/str.h"

#define BACKOFF_FIRST_NS  (50 * (uint64_t)DS_NS_PER_MS)
#define BACKOFF_MAX_NS	  (5 * (uint64_t)DS_NS_PER_S)
#define RETRY_AFTER_MAX_S 30
#define TOKENS_MAX	  100.0
#define TOKENS_PER_S	  10.0
#define INCREASE_PAUSE_NS (50 * (uint64_t)DS_NS_PER_MS)

void ds_s3_pacer_init(struct ds_s3_pacer *pacer, unsigned connections_max, uint64_t seed,
		      uint64_t now_ns)
{
	*pacer = (struct ds_s3_pacer){.prng = {seed},
				      .tokens = TOKENS_MAX,
				      .filled_ns = now_ns,
				      .connections = connections_max,
				      .connections_max = connections_max};
}

uint64_t ds_s3_pacer_backoff_ns(struct ds_s3_pacer *pacer, unsigned attempt_n)
{
	uint64_t bound = BACKOFF_FIRST_NS;

	while (attempt_n-- > 1 && bound < BACKOFF_MAX_NS)
		bound *= 2;
	return ds_prng_below(&pacer->prng, DS_MIN(bound, BACKOFF_MAX_NS) + 1);
}

bool ds_s3_pacer_take(struct ds_s3_pacer *pacer, uint64_t now_ns, uint64_t *ret_when_ns)
{
	double gained = (double)(now_ns - pacer->filled_ns) / DS_NS_PER_S * TOKENS_PER_S;

	pacer->tokens = DS_MIN(pacer->tokens + gained, TOKENS_MAX);
	pacer->filled_ns = now_ns;
	if (pacer->tokens >= 1.0) {
		pacer->tokens -= 1.0;
		return true;
	}
	*ret_when_ns = now_ns + DS_NS_PER_MS +
		       (uint64_t)((1.0 - pacer->tokens) / TOKENS_PER_S * DS_NS_PER_S);
	return false;
}

void ds_s3_pacer_succeeded(struct ds_s3_pacer *pacer, uint64_t now_ns)
{
	pacer->tokens = DS_MIN(pacer->tokens + 1.0, TOKENS_MAX);
	/* As many successes as requests at once: a round trip. */
	if (++pacer->successes_n < pacer->connections ||
	    now_ns - pacer->changed_ns < INCREASE_PAUSE_NS)
		return;
	pacer->connections = DS_MIN(pacer->connections + 1, pacer->connections_max);
	pacer->successes_n = 0;
	pacer->changed_ns = now_ns;
}

void ds_s3_pacer_slow_down(struct ds_s3_pacer *pacer, bool is_trouble, unsigned running_n,
			   uint64_t sent_ns, uint64_t now_ns)
{
	unsigned least = is_trouble ? pacer->connections_max / 8 : 1;

	/* It set out when there were more. */
	if (sent_ns <= pacer->decreased_ns)
		return;
	least = DS_MIN(DS_MAX(least, 1u), pacer->connections);
	pacer->connections = DS_MAX(DS_MIN(pacer->connections, running_n) / 2, least);
	pacer->successes_n = 0;
	pacer->changed_ns = pacer->decreased_ns = now_ns;
}

unsigned ds_s3_pacer_connections(const struct ds_s3_pacer *pacer)
{
	return pacer->connections;
}

uint64_t ds_s3_retry_after_ns(const char *text, const char *date)
{
	struct ds_time until, now;
	uint64_t s;
	int r;

	if (!text)
		return 0;
	r = ds_parse_u64(text, UINT64_MAX, &s);
	if (r == -ERANGE)
		return (uint64_t)RETRY_AFTER_MAX_S * DS_NS_PER_S;
	if (r == 0)
		return DS_MIN(s, (uint64_t)RETRY_AFTER_MAX_S) * DS_NS_PER_S;
	if (!date || ds_time_parse_http(text, &until) < 0 || ds_time_parse_http(date, &now) < 0 ||
	    until.s <= now.s)
		return 0;
	return (uint64_t)DS_MIN(until.s - now.s, (int64_t)RETRY_AFTER_MAX_S) * DS_NS_PER_S;
}
