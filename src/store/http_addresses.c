#include "store/http_addresses.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#include "util/clock.h"
#include "util/mem.h"

#define AVOID_S 60u
/* At least as long as one connection may take to find out (http.c). */
#define PROBE_S 5u

static int find(const struct ds_http_addresses *addresses, const char *ip)
{
	for (unsigned i = 0; i < DS_HTTP_AVOIDED_MAX; i++)
		if (strcmp(addresses->avoided[i].ip, ip) == 0)
			return (int)i;
	return -1;
}

static void avoid(struct ds_http_addresses *addresses, const char *ip, uint64_t now_ns)
{
	int idx = find(addresses, ip);

	for (unsigned i = 0; i < DS_HTTP_AVOIDED_MAX && idx < 0; i++)
		if (addresses->avoided[i].until_ns <= now_ns)
			idx = (int)i;
	if (idx < 0)
		return;
	snprintf(addresses->avoided[idx].ip, sizeof(addresses->avoided[idx].ip), "%s", ip);
	addresses->avoided[idx].until_ns = now_ns + AVOID_S * (uint64_t)DS_NS_PER_S;
}

static bool is_avoided(struct ds_http_addresses *addresses, const char *ip, uint64_t now_ns)
{
	int idx = find(addresses, ip);

	if (idx < 0)
		return false;
	if (now_ns < addresses->avoided[idx].until_ns)
		return true;
	addresses->avoided[idx].until_ns = now_ns + PROBE_S * (uint64_t)DS_NS_PER_S;
	return false;
}

bool ds_http_addresses_try(struct ds_http_addresses *addresses, struct ds_http_tries *tries,
			   const struct sockaddr *addr, uint64_t now_ns)
{
	const void *bytes = addr->sa_family == AF_INET6
				    ? (const void *)&((const struct sockaddr_in6 *)addr)->sin6_addr
				    : &((const struct sockaddr_in *)addr)->sin_addr;
	char *last = tries->ip[addr->sa_family == AF_INET6], ip[INET6_ADDRSTRLEN];

	if (!inet_ntop(addr->sa_family, bytes, ip, sizeof(ip)))
		return true;
	if (is_avoided(addresses, ip, now_ns)) {
		tries->has_passed_over = true;
		return false;
	}
	if (*last)
		avoid(addresses, last, now_ns);
	memcpy(last, ip, sizeof(ip));
	return true;
}

void ds_http_addresses_worked(struct ds_http_addresses *addresses,
			      const struct ds_http_tries *tries, const char *ip, uint64_t now_ns)
{
	int idx = find(addresses, ip);

	if (idx >= 0)
		memset(&addresses->avoided[idx], 0, sizeof(addresses->avoided[idx]));
	for (unsigned i = 0; i < DS_ARRAY_SIZE(tries->ip); i++)
		if (tries->ip[i][0] && strcmp(tries->ip[i], ip) != 0)
			avoid(addresses, tries->ip[i], now_ns);
}

void ds_http_addresses_failed(struct ds_http_addresses *addresses,
			      const struct ds_http_tries *tries)
{
	if (tries->has_passed_over)
		*addresses = (struct ds_http_addresses){0};
}
