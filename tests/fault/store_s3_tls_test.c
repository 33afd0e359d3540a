/* The S3 backend over TLS: certificates that do not hold are refused in one clear line; sessions are
 * resumed. */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "store/store.h"
#include "store_contract.h"

TestSuite(store_s3_tls, .fini = test_leak_check, .timeout = 60);

struct tls_server {
	int fd;
	unsigned port;
	SSL_CTX *ctx;
	pthread_t thread;
	char cert_path[64];
	_Atomic unsigned answered_n, refused_n, resumed_n;
	_Atomic unsigned mute_n; /* so many more end in order without an answer */
};

/* Self-signed for one DNS name, valid from `from_s` on for an hour. */
static X509 *make_cert(EVP_PKEY *key, const char *name, long from_s)
{
	X509 *cert = X509_new();
	char alt_name[128];
	X509_EXTENSION *extension;

	X509_set_version(cert, 2);
	ASN1_INTEGER_set(X509_get_serialNumber(cert), 1);
	X509_gmtime_adj(X509_getm_notBefore(cert), from_s);
	X509_gmtime_adj(X509_getm_notAfter(cert), from_s + 3600);
	X509_set_pubkey(cert, key);
	X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_ASC,
				   (const unsigned char *)name, -1, -1, 0);
	X509_set_issuer_name(cert, X509_get_subject_name(cert));
	snprintf(alt_name, sizeof(alt_name), "DNS:%s", name);
	extension = X509V3_EXT_conf_nid(NULL, NULL, NID_subject_alt_name, alt_name);
	X509_add_ext(cert, extension, -1);
	X509_EXTENSION_free(extension);
	cr_assert_gt(X509_sign(cert, key, EVP_sha256()), 0);
	return cert;
}

static void *serve(void *arg)
{
	static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n"
				     "Connection: close\r\n\r\nover";
	struct tls_server *server = arg;
	int fd;

	while ((fd = accept4(server->fd, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
		SSL *ssl = SSL_new(server->ctx);
		char request[8192];

		SSL_set_fd(ssl, fd);
		if (SSL_accept(ssl) == 1 && SSL_read(ssl, request, sizeof(request)) > 0) {
			if (server->mute_n) {
				server->mute_n--;
			} else {
				SSL_write(ssl, answer, sizeof(answer) - 1);
				server->answered_n++;
			}
			SSL_shutdown(ssl);
			server->resumed_n += SSL_session_reused(ssl) == 1;
		} else {
			server->refused_n++;
		}
		SSL_free(ssl);
		close(fd);
	}
	OPENSSL_thread_stop();
	return NULL;
}

static void start(struct tls_server *server, const char *name, long from_s, int version_max)
{
	struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	socklen_t len = sizeof(addr);
	EVP_PKEY *key = EVP_EC_gen("P-256");
	X509 *cert = make_cert(key, name, from_s);
	FILE *file;

	signal(SIGPIPE, SIG_IGN);
	*server = (struct tls_server){.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
	cr_assert_eq(bind(server->fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	cr_assert_eq(listen(server->fd, 16), 0);
	cr_assert_eq(getsockname(server->fd, (struct sockaddr *)&addr, &len), 0);
	server->port = ntohs(addr.sin_port);
	server->ctx = SSL_CTX_new(TLS_server_method());
	SSL_CTX_use_certificate(server->ctx, cert);
	SSL_CTX_use_PrivateKey(server->ctx, key);
	if (version_max) {
		SSL_CTX_set_security_level(server->ctx, 0);
		SSL_CTX_set_min_proto_version(server->ctx, version_max);
		SSL_CTX_set_max_proto_version(server->ctx, version_max);
	}
	strcpy(server->cert_path, "/tmp/dsfs-tls-XXXXXX");
	file = fdopen(mkstemp(server->cert_path), "w");
	PEM_write_X509(file, cert);
	fclose(file);
	X509_free(cert);
	EVP_PKEY_free(key);
	cr_assert_eq(pthread_create(&server->thread, NULL, serve, server), 0);
}

static void stop(struct tls_server *server)
{
	shutdown(server->fd, SHUT_RDWR);
	pthread_join(server->thread, NULL);
	close(server->fd);
	SSL_CTX_free(server->ctx);
	unlink(server->cert_path);
}

/* Under the name localhost; `trusted`: the certificate is the only one that is trusted. */
static struct ds_store *open_store(const struct tls_server *server, bool trusted,
				   uint64_t timeout_ms, struct ds_diag *ret_diag)
{
	struct ds_store_options options = {.timeout_ms = timeout_ms};
	struct ds_store *store = NULL;
	char endpoint[64];

	setenv("AWS_ACCESS_KEY_ID", "ACCESSKEY", 1);
	setenv("AWS_SECRET_ACCESS_KEY", "SECRET", 1);
	if (trusted)
		setenv("AWS_CA_BUNDLE", server->cert_path, 1);
	else
		unsetenv("AWS_CA_BUNDLE");
	snprintf(endpoint, sizeof(endpoint), "https://localhost:%u", server->port);
	options.endpoint = endpoint;
	cr_assert_eq(ds_store_open("s3://bucket", &options, false, &store, ret_diag), 0);
	return store;
}

static int get(const struct tls_server *server, bool trusted, uint64_t timeout_ms,
	       struct ds_diag *ret_diag)
{
	struct ds_store *store = open_store(server, trusted, timeout_ms, ret_diag);
	struct ds_buf buf = DS_BUF_INIT(100);
	int r = ds_store_get(store, "k", &buf, ret_diag);

	if (r == 0)
		cr_assert_str_eq(ds_buf_str(&buf), "over");
	ds_buf_release(&buf);
	ds_store_unref(store);
	return r;
}

Test(store_s3_tls, B07_a_trusted_certificate_is_taken_and_an_unknown_one_refused_at_once)
{
	struct tls_server server;
	struct ds_diag diag = {0};

	start(&server, "localhost", -60, 0);
	cr_assert_eq(get(&server, true, 20000, &diag), 0, "%s", diag.detail);
	cr_assert_eq(server.answered_n, 1);
	cr_assert_eq(get(&server, false, 20000, &diag), -DS_E_NETWORK);
	cr_assert_eq(diag.attempts, 1);
	cr_assert(strstr(diag.detail, "certificate"), "%s", diag.detail);
	stop(&server);
	cr_assert_eq(server.answered_n, 1);
	cr_assert_geq(server.refused_n, 1);
}

static void expect_refused(const char *name, long from_s)
{
	struct tls_server server;
	struct ds_diag diag = {0};

	start(&server, name, from_s, 0);
	cr_assert_eq(get(&server, true, 20000, &diag), -DS_E_NETWORK);
	cr_assert_eq(diag.attempts, 1, "%s", diag.detail);
	cr_assert(strstr(diag.detail, "certificate"), "%s", diag.detail);
	stop(&server);
	cr_assert_eq(server.answered_n, 0);
}

Test(store_s3_tls, B07_a_certificate_for_another_host_is_refused)
{
	expect_refused("elsewhere.invalid", -60);
}

Test(store_s3_tls, B07_a_certificate_that_expired_is_refused)
{
	expect_refused("localhost", -7200);
}

Test(store_s3_tls, B07_a_certificate_of_the_future_is_refused)
{
	expect_refused("localhost", 3600);
}

Test(store_s3_tls, B07_old_versions_of_tls_are_not_spoken)
{
	struct tls_server server;
	struct ds_diag diag = {0};

	start(&server, "localhost", -60, TLS1_1_VERSION);
	cr_assert_eq(get(&server, true, 500, &diag), -DS_E_NETWORK);
	stop(&server);
	cr_assert_eq(server.answered_n, 0);
	cr_assert_geq(server.refused_n, 1);
}

Test(store_s3_tls, B07_a_bundle_that_is_missing_is_an_error)
{
	struct tls_server server;
	struct ds_diag diag = {0};

	start(&server, "localhost", -60, 0);
	unlink(server.cert_path);
	cr_assert_eq(get(&server, true, 20000, &diag), -DS_E_NETWORK);
	cr_assert_eq(diag.attempts, 1, "%s", diag.detail);
	stop(&server);
	cr_assert_eq(server.answered_n, 0);
}

/* A handle whose transfer failed is not used again: what it knew of the server must live on. (OpenSSL lets
 * a session of TLS 1.3 be used once, so that of several connections at once not all resume.) */
static void sessions_are_resumed(int version)
{
	struct ds_buf buf = DS_BUF_INIT(100);
	struct tls_server server;
	struct ds_diag diag = {0};
	struct ds_store *store;

	start(&server, "localhost", -60, version);
	store = open_store(&server, true, 20000, &diag);
	cr_assert_eq(ds_store_get(store, "k", &buf, &diag), 0, "%s", diag.detail);
	cr_assert_eq(server.resumed_n, 0);
	server.mute_n = 1;
	cr_assert_eq(ds_store_get(store, "k", &buf, &diag), 0, "%s", diag.detail);
	cr_assert_eq(server.mute_n, 0);
	ds_store_unref(store);
	stop(&server);
	cr_assert_eq(server.answered_n, 2);
	cr_assert_eq(server.resumed_n, 2, "TLS %x: %u", version, server.resumed_n);
	ds_buf_release(&buf);
}

Test(store_s3_tls, connections_resume_the_session_of_another)
{
	sessions_are_resumed(TLS1_3_VERSION);
	sessions_are_resumed(TLS1_2_VERSION);
}
