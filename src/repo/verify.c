/*
 * The whole check, in three passes: logs (which say what must be whole), packs for themselves, versions.
 *
 * INV-1: a finding is about what lies in the store; what the store or the machine does not answer ends the check with an error.
 * INV-2: an object that is damaged is named by its key, once, however many versions need it.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "repo/verify_internal.h"
#include "util/mem.h"
#include "util/str.h"

#define VERSION_FINDINGS_MAX 1000u /* of one version's rows */

void ds_verify_find(struct verify *verify, const char *object, const char *format, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, format);
	vsnprintf(text, sizeof(text), format, ap);
	va_end(ap);
	pthread_mutex_lock(&verify->mutex);
	verify->result.findings_n++;
	if (object == verify->version_key && verify->version_findings_n++ >= VERSION_FINDINGS_MAX)
		object = NULL;
	if (object && verify->options->finding)
		verify->options->finding(verify->options->ctx, object, text);
	pthread_mutex_unlock(&verify->mutex);
}

void ds_verify_find_diag(struct verify *verify, const char *object, int r,
			 const struct ds_diag *diag)
{
	ds_verify_find(verify, object, "%s%s%s", ds_strerror(r), diag->detail[0] ? ": " : "",
		       diag->detail);
}

int ds_verify_fail(struct verify *verify, int r, const struct ds_diag *diag)
{
	pthread_mutex_lock(&verify->mutex);
	if (!verify->error) {
		verify->error = r;
		if (diag)
			ds_diag_copy(verify->diag, diag);
	}
	pthread_mutex_unlock(&verify->mutex);
	return r;
}

bool ds_verify_is_over(struct verify *verify)
{
	bool is_over;

	pthread_mutex_lock(&verify->mutex);
	if (verify->options->interrupted && *verify->options->interrupted && !verify->error)
		verify->error = -DS_E_INTERRUPTED;
	is_over = verify->error != 0;
	pthread_mutex_unlock(&verify->mutex);
	return is_over;
}

void ds_verify_step(struct verify *verify, uint64_t bytes)
{
	pthread_mutex_lock(&verify->mutex);
	verify->result.bytes += bytes;
	verify->done_n += bytes == 0;
	if (verify->options->progress)
		verify->options->progress(verify->options->ctx, verify->done_n, verify->total_n,
					  verify->result.bytes);
	pthread_mutex_unlock(&verify->mutex);
}

bool ds_verify_is_damage(int r)
{
	return r == -DS_E_MALFORMED || r == -DS_E_CORRUPT || r == -DS_E_TOO_NEW || r == -DS_E_LIMIT;
}

/* A version that is to be checked. */
struct candidate {
	struct ds_digest id;
	struct ds_time time;
};

static int compare_candidates(const void *a, const void *b)
{
	const struct candidate *x = a, *y = b;
	int r = ds_time_compare(x->time, y->time);

	return r ? r : memcmp(x->id.bytes, y->id.bytes, DS_DIGEST_LEN);
}

static int check_record(struct verify *verify, const struct ds_digest *id, bool is_named,
			struct ds_record **ret_record)
{
	char key[DS_RECORD_KEY_MAX];
	struct ds_diag diag = {0};
	int r;

	*ret_record = NULL;
	r = ds_record_get(verify->repo, id, ret_record, &diag);
	verify->result.objects_n++;
	if (ds_verify_is_damage(r))
		ds_verify_find_diag(verify, ds_record_key(id, key), r, &diag);
	else if (r == -DS_E_NO_VERSION && is_named)
		ds_verify_find(verify, ds_record_key(id, key), "missing");
	else if (r < 0 && r != -DS_E_NO_VERSION) /* else a collector was faster */
		return ds_verify_fail(verify, r, &diag);
	return 0;
}

/* All records of the store for themselves; gives those that must be whole. */
static int check_records(struct verify *verify, struct candidate *candidates, size_t *ret_n)
{
	struct ds_store_listing listing = {0};
	struct ds_store_req req = {.op = DS_STORE_LIST, .key = "versions/", .listing = &listing};
	struct ds_record *record;
	const void *name;
	size_t name_len, cursor = 0, n = 0;
	int r;

	r = ds_store_perform(ds_repo_store(verify->repo), &req);
	if (r < 0)
		r = ds_verify_fail(verify, r, &req.diag);
	for (size_t i = 0; r == 0 && i < listing.objects_n; i++) {
		struct ds_digest id;

		if (ds_digest_parse(listing.objects[i].key + strlen("versions/"), &id) < 0)
			continue; /* a signature */
		if (ds_map_get(verify->named, id.bytes, DS_DIGEST_LEN))
			continue; /* below */
		r = check_record(verify, &id, false, &record);
		ds_record_free(record);
	}
	ds_store_listing_release(&listing);
	while (r == 0 && ds_map_each(verify->named, &cursor, &name, &name_len, NULL)) {
		memcpy(candidates[n].id.bytes, name, DS_DIGEST_LEN);
		r = check_record(verify, &candidates[n].id, true, &record);
		if (record)
			candidates[n++].time = record->time;
		ds_record_free(record);
	}
	/* Neighbours share most of their pages. */
	qsort(candidates, n, sizeof(*candidates), compare_candidates);
	*ret_n = n;
	return r;
}

static int check_version(struct verify *verify, const struct ds_digest *id)
{
	struct ds_record *record;
	int r;

	r = check_record(verify, id, true, &record);
	if (r < 0 || !record)
		return r;
	r = ds_verify_version(verify, record);
	ds_record_free(record);
	verify->result.versions_n++;
	ds_verify_step(verify, 0);
	return r;
}

/*
 * The versions, and the bytes of what they need that were not read before. A pack may be moved meanwhile, or
 * go: then once more with what is there now, unless it is known already that not all is right. It ends since a pack
 * goes once.
 */
static int check_versions(struct verify *verify, const struct candidate *candidates, size_t n)
{
	bool again = true;
	int r = 0;

	while (r == 0 && again && !ds_verify_is_over(verify)) {
		again = false;
		verify->result.versions_n = verify->result.imported_n = 0;
		for (size_t i = 0; r == 0 && i < n && !ds_verify_is_over(verify); i++)
			r = check_version(verify, &candidates[i].id);
		if (r == 0 && verify->options->read_data && !ds_verify_is_over(verify))
			r = ds_verify_wanted_packs(verify, &again);
		again = again && verify->result.findings_n == 0;
		verify->total_n += again ? n : 0;
	}
	return r;
}

static int check_all(struct verify *verify)
{
	_ds_cleanup_free_ struct candidate *candidates = NULL;
	size_t n, cursor = 0;
	void *pack;
	int r;

	r = ds_verify_refs(verify);
	if (r < 0)
		return r;
	candidates = ds_calloc(ds_map_count(verify->named) + 1, sizeof(*candidates));
	if (!candidates)
		return ds_verify_fail(verify, -ENOMEM, NULL);
	r = check_records(verify, candidates, &n);
	verify->total_n += n;
	if (r == 0)
		r = ds_verify_packs(verify);
	if (r == 0)
		r = check_versions(verify, candidates, n);
	while (ds_map_each(verify->packs, &cursor, NULL, NULL, &pack)) {
		const struct verify_pack *p = pack;

		verify->result.unreachable_n += p->is_listed && !p->is_wanted;
	}
	return r;
}

static int check_one(struct verify *verify)
{
	struct candidate candidate = {0};
	struct ds_resolved resolved;
	struct ds_diag diag = {0};
	int r;

	r = ds_resolve(verify->repo, verify->options->selector, &resolved, &diag);
	if (r < 0)
		return ds_verify_fail(verify, r, &diag);
	candidate.id = resolved.version;
	verify->total_n = 1;
	return check_versions(verify, &candidate, 1);
}

int ds_verify(struct ds_repo *repo, const struct ds_verify_options *options,
	      struct ds_verify_result *ret_result, struct ds_diag *reterr_diag)
{
	struct verify verify = {.repo = repo,
				.options = options,
				.diag = reterr_diag,
				.mutex = PTHREAD_MUTEX_INITIALIZER,
				.pages = {.fd = -1}};
	int r;

	r = ds_map_new(&verify.packs);
	if (r == 0)
		r = ds_map_new(&verify.named);
	if (r == 0)
		r = options->selector && *options->selector ? check_one(&verify)
							    : check_all(&verify);
	if (ds_verify_is_over(&verify))
		r = verify.error;
	ds_map_free(verify.packs, ds_verify_pack_free);
	ds_map_free(verify.named, NULL);
	ds_verify_pages_release(&verify.pages);
	pthread_mutex_destroy(&verify.mutex);
	if (r < 0)
		return r;
	*ret_result = verify.result;
	return 0;
}
