/*
 * verify: the golden repository is clean; damaged in whatever way, the damaged object is named, and no other one that is whole.
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "codec/chunk.h"
#include "codec/pack.h"
#include "golden.h"
#include "pack_mover.h"
#include "repo/refs.h"
#include "repo/verify.h"
#include "repo_support.h"
#include "store_contract.h"
#include "util/bytes.h"
#include "util/mem.h"
#include "util/random.h"
#include "util/str.h"

TestSuite(verify, .fini = test_leak_check, .timeout = 600);

struct findings {
	const char *wanted; /* key */
	size_t n, wanted_n, others_n;
	char other[400];
};

/* Versions may be named beside what they need. */
static void note(void *ctx, const char *object, const char *text)
{
	struct findings *findings = ctx;

	findings->n++;
	if (findings->wanted && strcmp(object, findings->wanted) == 0) {
		findings->wanted_n++;
	} else if (!ds_starts_with(object, "versions/")) {
		findings->others_n++;
		snprintf(findings->other, sizeof(findings->other), "%s: %s", object, text);
	}
}

static struct findings verify(struct ds_store *store, const char *wanted, bool read_data,
			      const char *selector)
{
	struct findings findings = {.wanted = wanted};
	struct ds_verify_options options = {.read_data = read_data,
					    .selector = selector,
					    .finding = note,
					    .ctx = &findings};
	struct ds_verify_result result;
	struct ds_diag diag = {0};
	struct ds_repo *repo;
	int r;

	r = ds_repo_open_store(store, &repo, &diag);
	if (r < 0) {
		/* dsfs.json itself. */
		char quoted[64];

		snprintf(quoted, sizeof(quoted), "\"%s\"", wanted ? wanted : "");
		cr_assert_str_eq(diag.object, quoted);
		findings.wanted_n = findings.n = 1;
		return findings;
	}
	r = ds_verify(repo, &options, &result, &diag);
	cr_assert_eq(r, 0, "%s: %s %s", wanted, ds_strerror(r), diag.detail);
	cr_assert_eq(result.findings_n, findings.n);
	ds_repo_unref(repo);
	return findings;
}

/* Objects whose damage is no finding: hints, what is advisory, what this format only reserves. */
static bool is_exempt(const char *key)
{
	return ds_starts_with(key, "hints/") || ds_starts_with(key, "index/") ||
	       ds_starts_with(key, "runs/") || ds_starts_with(key, "notes/") ||
	       ds_ends_with(key, ".sig") || strcmp(key, "probe.json") == 0;
}

static void list(struct ds_store *store, struct ds_store_listing *listing)
{
	struct ds_store_req req = {.op = DS_STORE_LIST, .key = "", .listing = listing};

	cr_assert_eq(ds_store_perform(store, &req), 0);
}

static void get(struct ds_store *store, const char *key, struct ds_buf *buf)
{
	cr_assert_eq(ds_store_get(store, key, buf, NULL), 0);
}

static void put(struct ds_store *store, const char *key, const void *data, size_t len)
{
	cr_assert_eq(ds_store_put(store, key, data, len, NULL), 0);
}

Test(verify, the_golden_repository_is_clean)
{
	struct ds_store *store = golden_load("repo");
	struct findings findings = verify(store, NULL, false, NULL);

	cr_assert_eq(findings.n, 0, "%s", findings.other);
	findings = verify(store, NULL, true, NULL);
	cr_assert_eq(findings.n, 0, "%s", findings.other);
	findings = verify(store, NULL, true, "v1.0");
	cr_assert_eq(findings.n, 0, "%s", findings.other);
	ds_store_unref(store);
}

Test(verify, imported_files_are_counted_and_no_finding)
{
	struct ds_store *store = golden_load("imported");
	struct ds_verify_options options = {.read_data = true};
	struct findings findings = verify(store, NULL, true, NULL);
	struct ds_verify_result result;
	struct ds_repo *repo;

	cr_assert_eq(findings.n, 0, "%s", findings.other);
	cr_assert_eq(ds_repo_open_store(store, &repo, NULL), 0);
	cr_assert_eq(ds_verify(repo, &options, &result, NULL), 0);
	cr_assert_eq(result.imported_n, 5);
	cr_assert_eq(result.versions_n, 1);
	ds_repo_unref(repo);
	ds_store_unref(store);
}

Test(verify, counts_are_right)
{
	struct ds_store *store = golden_load("repo");
	struct ds_verify_options options = {.read_data = true};
	struct ds_verify_result result;
	uint64_t all_chunks_n;
	struct ds_repo *repo;

	cr_assert_eq(ds_repo_open_store(store, &repo, NULL), 0);
	cr_assert_eq(ds_verify(repo, &options, &result, NULL), 0);
	cr_assert_eq(result.versions_n, 3);
	cr_assert_eq(result.packs_n, 7);
	cr_assert_eq(result.unreachable_n, 0);
	cr_assert_gt(result.bytes, 60000);
	all_chunks_n = result.chunks_n;
	/* Without --read-data no fewer; of one version its own, each once. */
	options.read_data = false;
	cr_assert_eq(ds_verify(repo, &options, &result, NULL), 0);
	cr_assert_eq(result.packs_n, 7);
	cr_assert_eq(result.chunks_n, all_chunks_n);
	cr_assert_eq(result.bytes, 0);
	for (int read_data = 0; read_data < 2; read_data++) {
		options = (struct ds_verify_options){.selector = "v1.0", .read_data = read_data};
		cr_assert_eq(ds_verify(repo, &options, &result, NULL), 0);
		cr_assert_eq(result.versions_n, 1);
		cr_assert_eq(result.packs_n, 2);
		cr_assert(result.chunks_n > 0 && result.chunks_n < all_chunks_n);
		cr_assert_eq(result.bytes > 0, read_data);
	}
	ds_repo_unref(repo);
	ds_store_unref(store);
}

static void expect_named(struct ds_store *store, const char *key, const char *how)
{
	struct findings findings = verify(store, key, true, NULL);

	cr_assert_gt(findings.wanted_n, 0, "%s of %s was not found (%zu findings; %s)", how, key,
		     findings.n, findings.other);
	cr_assert_eq(findings.others_n, 0, "%s of %s accuses %s", how, key, findings.other);
}

/*
 * Whether a flip at `at` lies in a chunk of a pack that decodes to the very same bytes: an LZ4 match may lead to another copy
 * of the same zeros. Nothing is damaged then, and nothing can be found: the format's digests are of raw bytes.
 */
static bool is_harmless(const char *key, const struct ds_buf *flipped, size_t at)
{
	static uint8_t raw[DS_CHUNK_MAX];
	struct ds_pack_toc *toc;
	struct ds_digest id;
	uint64_t off, len;
	bool harmless = false;

	if (strncmp(key, "packs/", 6) != 0 || strlen(key) != 9 + 64 ||
	    ds_digest_parse(key + 9, &id) < 0 ||
	    ds_pack_toc_locate(flipped->data, flipped->len_bytes, flipped->len_bytes, &off, &len) <
		    0 ||
	    at >= off || ds_pack_toc_parse(flipped->data + off, len, &id, &toc) < 0)
		return false;
	for (uint32_t i = 0; i < toc->chunks_n; i++) {
		const struct ds_pack_entry *entry = &toc->entries[i];

		if (at >= entry->stored_off && at < entry->stored_off + entry->stored_len_bytes)
			harmless = ds_chunk_decode(flipped->data + entry->stored_off,
						   entry->stored_len_bytes, entry->raw_len_bytes,
						   &entry->digest, raw) == 0;
	}
	ds_free(toc);
	return harmless;
}

Test(verify, A14_every_flipped_object_is_named)
{
	struct ds_store *store = golden_load("repo");
	struct ds_prng prng = {.state = ds_random_u64()};
	struct ds_store_listing listing = {0};
	size_t flips_n = 0, objects_n = 0;

	printf("seed %llu\n", (unsigned long long)prng.state);
	list(store, &listing);
	for (size_t i = 0; i < listing.objects_n; i++) {
		const char *key = listing.objects[i].key;
		struct ds_buf buf = DS_BUF_INIT(1 << 20);
		size_t len;

		if (is_exempt(key))
			continue;
		get(store, key, &buf);
		objects_n++;
		len = buf.len_bytes;
		/* The classes of positions of all formats, then at random. */
		for (unsigned k = 0; k < 16; k++) {
			size_t fixed[] = {0,	   7,	    8,	      len - 1, len - 4,
					  len - 8, len - 9, len - 33, len / 2};
			size_t at = k < DS_ARRAY_SIZE(fixed) ? fixed[k] : ds_prng_below(&prng, len);
			uint8_t bit = (uint8_t)(1 << ds_prng_below(&prng, 8));
			char how[64];

			buf.data[at] ^= bit;
			put(store, key, buf.data, len);
			snprintf(how, sizeof(how), "bit 0x%02x of byte %zu", bit, at);
			if (is_harmless(key, &buf, at))
				cr_assert_eq(verify(store, NULL, true, NULL).n, 0, "%s of %s", how,
					     key);
			else
				expect_named(store, key, how);
			buf.data[at] ^= bit;
			flips_n++;
		}
		put(store, key, buf.data, len);
		ds_buf_release(&buf);
	}
	cr_assert_gt(objects_n, 20);
	printf("%zu flips in %zu objects\n", flips_n, objects_n);
	cr_assert_eq(verify(store, NULL, true, NULL).n, 0);
	ds_store_listing_release(&listing);
	ds_store_unref(store);
}

Test(verify, A25_objects_that_are_short_long_or_empty_are_named)
{
	struct ds_store *store = golden_load("repo");
	struct ds_store_listing listing = {0};

	list(store, &listing);
	for (size_t i = 0; i < listing.objects_n; i++) {
		const char *key = listing.objects[i].key;
		struct ds_buf buf = DS_BUF_INIT(1 << 20);

		if (is_exempt(key))
			continue;
		get(store, key, &buf);
		put(store, key, buf.data, buf.len_bytes - 1);
		expect_named(store, key, "a missing byte");
		put(store, key, buf.data, buf.len_bytes / 2);
		expect_named(store, key, "a missing half");
		put(store, key, buf.data, 0);
		expect_named(store, key, "emptiness");
		cr_assert_eq(ds_buf_append_byte(&buf, 0), 0);
		put(store, key, buf.data, buf.len_bytes);
		expect_named(store, key, "a byte too many");
		put(store, key, buf.data, buf.len_bytes - 1);
		ds_buf_release(&buf);
	}
	ds_store_listing_release(&listing);
	ds_store_unref(store);
}

/* Chunks and table are whole, and do not fill the object. */
Test(verify, bytes_between_chunks_and_table_are_found)
{
	struct ds_store *store = golden_load("repo");
	struct ds_store_listing listing = {0};
	size_t n = 0;

	list(store, &listing);
	for (size_t i = 0; i < listing.objects_n; i++) {
		const char *key = listing.objects[i].key;
		struct ds_buf buf = DS_BUF_INIT(1 << 20), longer = DS_BUF_INIT(1 << 20);
		size_t table;

		if (!ds_starts_with(key, "packs/") || ds_ends_with(key, ".moved"))
			continue;
		get(store, key, &buf);
		table = buf.len_bytes - 8 - ds_get_le64(buf.data + buf.len_bytes - 8);
		cr_assert_eq(ds_buf_append(&longer, buf.data, table), 0);
		cr_assert_eq(ds_buf_append_byte(&longer, 0), 0);
		cr_assert_eq(ds_buf_append(&longer, buf.data + table, buf.len_bytes - table), 0);
		put(store, key, longer.data, longer.len_bytes);
		expect_named(store, key, "a byte in between");
		put(store, key, buf.data, buf.len_bytes);
		ds_buf_release(&buf);
		ds_buf_release(&longer);
		n++;
	}
	cr_assert_eq(n, 7);
	ds_store_listing_release(&listing);
	ds_store_unref(store);
}

Test(verify, a_note_beside_its_pack_is_checked_too)
{
	struct ds_store *store = golden_load("repo");
	struct ds_store_listing listing = {0};
	char key[200] = "";

	list(store, &listing);
	for (size_t i = 0; i < listing.objects_n; i++) {
		const char *pack = listing.objects[i].key;

		if (ds_starts_with(pack, "packs/") && !ds_ends_with(pack, ".moved"))
			snprintf(key, sizeof(key), "%s.moved", pack);
	}
	put(store, key, "nonsense", 8);
	expect_named(store, key, "nonsense");
	ds_store_listing_release(&listing);
	ds_store_unref(store);
}

Test(verify, A15_the_right_length_of_the_wrong_object_is_named)
{
	struct ds_store *store = golden_load("repo");
	struct ds_store_listing listing = {0};
	const char *before = NULL;

	list(store, &listing);
	for (size_t i = 0; i < listing.objects_n; i++) {
		const char *key = listing.objects[i].key;
		struct ds_buf mine = DS_BUF_INIT(1 << 20), other = DS_BUF_INIT(1 << 20);

		if (is_exempt(key))
			continue;
		if (before) {
			get(store, key, &mine);
			get(store, before, &other);
			put(store, key, other.data, other.len_bytes);
			expect_named(store, key, "another object's bytes");
			put(store, key, mine.data, mine.len_bytes);
		}
		before = key;
		ds_buf_release(&mine);
		ds_buf_release(&other);
	}
	ds_store_listing_release(&listing);
	ds_store_unref(store);
}

Test(verify, A17_missing_objects_are_named)
{
	struct ds_store *store = golden_load("repo");
	struct ds_store_listing listing = {0};
	size_t n = 0;

	list(store, &listing);
	for (size_t i = 0; i < listing.objects_n; i++) {
		const char *key = listing.objects[i].key;
		struct ds_store_req drop = {.op = DS_STORE_DELETE, .key = key};
		struct ds_buf buf = DS_BUF_INIT(1 << 20);
		char named[200];

		/* The last entry of a log, and a log of one, leave no trace. */
		if (is_exempt(key) || ds_starts_with(key, "dsfs.json") ||
		    (!ds_starts_with(key, "packs/") && !ds_starts_with(key, "versions/") &&
		     strcmp(key, "refs/branches/main/0000000003") != 0 &&
		     strcmp(key, "refs/tags/gone/0000000001") != 0 &&
		     strcmp(key, "policy/0000000001") != 0))
			continue;
		get(store, key, &buf);
		cr_assert_eq(ds_store_perform(store, &drop), 0);
		/* Without its note, a pack is just missing. */
		snprintf(named, sizeof(named), "%s", key);
		if (ds_ends_with(named, ".moved"))
			named[strlen(named) - strlen(".moved")] = '\0';
		expect_named(store, named, "absence");
		put(store, key, buf.data, buf.len_bytes);
		ds_buf_release(&buf);
		n++;
	}
	cr_assert_gt(n, 10);
	ds_store_listing_release(&listing);
	ds_store_unref(store);
}

Test(verify, one_version_alone)
{
	struct ds_store *store = golden_load("repo");
	struct ds_buf buf = DS_BUF_INIT(1 << 20);
	struct ds_store_listing listing = {0};
	size_t seen_n = 0, unseen_n = 0;

	list(store, &listing);
	for (size_t i = 0; i < listing.objects_n; i++) {
		const char *key = listing.objects[i].key;
		struct findings findings;

		if (!ds_starts_with(key, "packs/") || ds_ends_with(key, ".moved"))
			continue;
		ds_buf_clear(&buf);
		get(store, key, &buf);
		buf.data[8] ^= 1;
		put(store, key, buf.data, buf.len_bytes);
		findings = verify(store, key, true, "v1.0");
		cr_assert_eq(findings.others_n, 0, "%s", findings.other);
		seen_n += findings.wanted_n > 0;
		unseen_n += findings.wanted_n == 0;
		buf.data[8] ^= 1;
		put(store, key, buf.data, buf.len_bytes);
	}
	cr_assert_eq(seen_n, 2, "its data and its manifest, where they were moved to");
	cr_assert_eq(unseen_n, 5);
	ds_buf_release(&buf);
	ds_store_listing_release(&listing);
	ds_store_unref(store);
}

/* What befalls a pack while verify is at it: on the n-th request for it, or for its table. */
static struct harm {
	const char *key;
	void (*befall)(struct ds_store *store, const char *key);
	bool of_tables; /* only requests for its table count */
	int at;
	_Atomic int requests_n;
} harm;

static void harm_before(struct test_store *store, const struct ds_store_req *req)
{
	if (req->op == DS_STORE_GET && strcmp(req->key, harm.key) == 0 &&
	    (req->from_end || !harm.of_tables) && harm.requests_n++ == harm.at)
		harm.befall(store->inner, harm.key);
}

static void befall_damage(struct ds_store *store, const char *key)
{
	struct ds_buf buf = DS_BUF_INIT(1 << 20);

	get(store, key, &buf);
	buf.data[buf.len_bytes - DS_PACK_TRAILER_LEN - 1] ^= 1;
	put(store, key, buf.data, buf.len_bytes);
	ds_buf_release(&buf);
}

static void drop(struct ds_store *store, const char *key)
{
	struct ds_store_req req = {.op = DS_STORE_DELETE, .key = key};

	cr_assert_eq(ds_store_perform(store, &req), 0);
}

static void befall_move(struct ds_store *store, const char *key)
{
	move_pack(store, key, true);
}

/* How often the pack-th pack was asked for before the harm came too late. */
static int befalls(size_t pack, const char *selector, bool of_tables,
		   void (*befall)(struct ds_store *store, const char *key))
{
	for (int at = 0;; at++) {
		static struct test_store decorator;
		struct ds_store *base = test_store_new(&decorator);
		struct ds_store_listing listing = {0};
		struct ds_verify_options options = {.read_data = true, .selector = selector};
		struct ds_verify_result result;
		struct ds_repo *repo;
		size_t i, left = pack;
		int r;

		ds_store_unref(decorator.inner);
		decorator.inner = golden_load("repo");
		list(decorator.inner, &listing);
		for (i = 0; i < listing.objects_n; i++)
			if (ds_starts_with(listing.objects[i].key, "packs/") &&
			    !ds_ends_with(listing.objects[i].key, ".moved") && left-- == 0)
				break;
		cr_assert_lt(i, listing.objects_n);
		harm = (struct harm){.key = listing.objects[i].key,
				     .befall = befall,
				     .of_tables = of_tables,
				     .at = at};
		decorator.before = harm_before;
		cr_assert_eq(ds_repo_open_store(base, &repo, NULL), 0);
		r = ds_verify(repo, &options, &result, NULL);
		if (harm.requests_n > at)
			cr_assert(r == -DS_E_ABSENT || (r == 0 && result.findings_n > 0),
				  "%s, request %d: %s", harm.key, at, ds_strerror(r));
		else
			cr_assert(r == 0 && result.findings_n == 0, "%s, request %d: %s", harm.key,
				  at, ds_strerror(r));
		ds_repo_unref(repo);
		ds_store_listing_release(&listing);
		ds_store_unref(base);
		if (harm.requests_n <= at)
			return at;
	}
}

static void befall_everywhere(bool of_tables, void (*befall)(struct ds_store *, const char *))
{
	int again_n = 0;

	for (size_t pack = 0; pack < 7; pack++) {
		cr_assert_gt(befalls(pack, NULL, of_tables, befall), 0);
		again_n += befalls(pack, "v1.0", of_tables, befall) > 1;
	}
	cr_assert_gt(again_n, 1, "its data and its manifest");
}

Test(verify, a_table_that_is_damaged_before_it_is_read_again_is_named)
{
	befall_everywhere(true, befall_damage);
}

Test(verify, a_pack_that_goes_before_it_is_read_again_is_not_clean)
{
	befall_everywhere(false, drop);
}

Test(verify, a_pack_that_is_moved_meanwhile_is_read_where_it_is_now)
{
	befall_everywhere(false, befall_move);
}

Test(verify, a_store_that_fails_is_an_error_and_no_finding)
{
	static struct test_store decorator;
	struct ds_store *base = test_store_new(&decorator);
	struct ds_verify_options options = {.read_data = true};
	struct ds_store *golden = golden_load("repo");
	struct ds_repo *repo;
	long n;

	ds_store_unref(decorator.inner);
	decorator.inner = golden;
	cr_assert_eq(ds_repo_open_store(base, &repo, NULL), 0);
	for (n = 0;; n++) {
		struct ds_verify_result result;
		int r;

		test_store_reset(&decorator);
		decorator.fail_at = n;
		decorator.fail_with = -DS_E_SERVER;
		r = ds_verify(repo, &options, &result, NULL);
		if (decorator.failed_n == 0) {
			cr_assert_eq(r, 0);
			break;
		}
		cr_assert_eq(r, -DS_E_SERVER, "call %ld: %s", n, ds_strerror(r));
	}
	cr_assert_gt(n, 30);
	test_store_reset(&decorator);
	ds_repo_unref(repo);
	ds_store_unref(base);
}

Test(verify, a_lack_of_memory_is_an_error_and_no_finding)
{
	struct ds_store *store = golden_load("repo");
	struct findings findings = {0};
	struct ds_verify_options options = {.finding = note, .ctx = &findings};
	struct ds_verify_result result;
	struct ds_repo *repo;
	int r = -ENOMEM, failures_n = 0;

	cr_assert_eq(ds_repo_open_store(store, &repo, NULL), 0);
	/* A step that meets all kinds of them, and grows, so that it ends. */
	for (int64_t n = 0; r < 0; n += 1 + n / 40) {
		ds_mem_fail_after(n, false);
		r = ds_verify(repo, &options, &result, NULL);
		failures_n += ds_mem_fail_after(-1, false) > 0;
		cr_assert(r == 0 || r == -ENOMEM, "%ld: %s", (long)n, ds_strerror(r));
		cr_assert_eq(findings.n, 0, "%ld: %s", (long)n, findings.other);
	}
	cr_assert_gt(failures_n, 100);
	ds_repo_unref(repo);
	ds_store_unref(store);
}

Test(verify, it_can_be_interrupted)
{
	struct ds_store *store = golden_load("repo");
	volatile int interrupted = 1;
	struct ds_verify_options options = {.interrupted = &interrupted};
	struct ds_verify_result result;
	struct ds_repo *repo;

	cr_assert_eq(ds_repo_open_store(store, &repo, NULL), 0);
	cr_assert_eq(ds_verify(repo, &options, &result, NULL), -DS_E_INTERRUPTED);
	ds_repo_unref(repo);
	ds_store_unref(store);
}
