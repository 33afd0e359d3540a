/*
 * The addresses of the store: which of them new connections pass over.
 *
 * A new connection goes to any address of the name, since each asks the name anew and shuffles what
 * it gets (libcurl shuffles when it resolves, not when it connects: with its cache of names all would go
 * to one). One that does not answer costs a connection half of what is left of its time to
 * connect before libcurl tries the next one; so it is remembered, and passed over for AVOID_S. After
 * that one connection tries it again, and the others go on passing it over until they know how that went.
 * An address is only remembered where another one was there to be tried instead.
 *
 * Of the network thread.
 */
#ifndef DS_STORE_HTTP_ADDRESSES_H
#define DS_STORE_HTTP_ADDRESSES_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#define DS_HTTP_AVOIDED_MAX 16u /* more addresses out of order than that are tried like others */

struct ds_http_addresses { /* all zero: none is avoided */
	struct {
		char ip[INET6_ADDRSTRLEN];
		uint64_t until_ns;
	} avoided[DS_HTTP_AVOIDED_MAX];
};

/* The addresses that one transfer has tried; all zero before it starts. */
struct ds_http_tries {
	char ip[2]
	       [INET6_ADDRSTRLEN]; /* the last one of each family: libcurl tries two families at once */
	bool has_passed_over;
};

/* Whether a connection may be tried to this address now; if so, the one that was tried before (of the
 * same family) did not answer. */
bool ds_http_addresses_try(struct ds_http_addresses *addresses, struct ds_http_tries *tries,
			   const struct sockaddr *addr, uint64_t now_ns);
/* A connection was made to this one; the other family's, if it was tried too, was slower or dead. */
void ds_http_addresses_worked(struct ds_http_addresses *addresses,
			      const struct ds_http_tries *tries, const char *ip, uint64_t now_ns);
/* None of those that were tried worked: then none is passed over any more. */
void ds_http_addresses_failed(struct ds_http_addresses *addresses,
			      const struct ds_http_tries *tries);

#endif
