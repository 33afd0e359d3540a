#include "codec/digest.h"

#include <errno.h>
#include <openssl/evp.h>
#include <pthread.h>

#include "util/mem.h"
#include "util/str.h"

struct ds_hasher {
	EVP_MD_CTX *ctx;
};

/* EVP_sha256() is looked up anew, under OpenSSL's locks, by each use: as much time as 500 bytes
 * take, and threads wait for each other. What is fetched once is not. It is constant from then on,
 * and OpenSSL's own exit handler does not need it back. */
static EVP_MD *fetched;
static pthread_once_t fetched_once = PTHREAD_ONCE_INIT;

static void fetch(void)
{
	fetched = EVP_MD_fetch(NULL, "SHA256", NULL);
}

static const EVP_MD *sha256(void)
{
	pthread_once(&fetched_once, fetch);
	return fetched ? fetched : EVP_sha256();
}

bool ds_digest_is_zero(const struct ds_digest *digest)
{
	uint8_t any = 0;

	for (size_t i = 0; i < DS_DIGEST_LEN; i++)
		any |= digest->bytes[i];
	return any == 0;
}

int ds_digest_of(const void *data, size_t len_bytes, struct ds_digest *ret_digest)
{
	/* Fails only when it cannot allocate. */
	return EVP_Digest(data, len_bytes, ret_digest->bytes, NULL, sha256(), NULL) == 1 ? 0
											 : -ENOMEM;
}

int ds_hasher_new(struct ds_hasher **ret_hasher)
{
	struct ds_hasher *hasher = ds_calloc(1, sizeof(*hasher));

	if (!hasher)
		return -ENOMEM;
	hasher->ctx = EVP_MD_CTX_new();
	if (!hasher->ctx || EVP_DigestInit_ex2(hasher->ctx, sha256(), NULL) != 1) {
		ds_hasher_free(hasher);
		return -ENOMEM;
	}
	*ret_hasher = hasher;
	return 0;
}

struct ds_hasher *ds_hasher_free(struct ds_hasher *hasher)
{
	if (!hasher)
		return NULL;
	EVP_MD_CTX_free(hasher->ctx);
	ds_free(hasher);
	return NULL;
}

void ds_hasher_update(struct ds_hasher *hasher, const void *data, size_t len_bytes)
{
	EVP_DigestUpdate(hasher->ctx, data, len_bytes);
}

void ds_hasher_finish(struct ds_hasher *hasher, struct ds_digest *ret_digest)
{
	EVP_DigestFinal_ex(hasher->ctx, ret_digest->bytes, NULL);
	/* NULL: the same algorithm again, without an allocation. */
	EVP_DigestInit_ex2(hasher->ctx, NULL, NULL);
}

const char *ds_digest_format(const struct ds_digest *digest, char *buf)
{
	ds_hex_encode(digest->bytes, DS_DIGEST_LEN, buf);
	return buf;
}

int ds_digest_parse(const char *text, struct ds_digest *ret_digest)
{
	struct ds_digest digest;
	int r = ds_hex_decode(text, digest.bytes, DS_DIGEST_LEN);

	if (r == 0)
		*ret_digest = digest;
	return r;
}
