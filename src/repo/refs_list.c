#include <stdlib.h>
#include <string.h>

#include "repo/refs.h"
#include "repo/repo_internal.h"
#include "repo/sealed.h"
#include "util/mem.h"
#include "util/str.h"

int ds_ref_key_parse(const char *key, enum ds_ref_kind *ret_kind, char *ret_name,
		     uint64_t *ret_number)
{
	_ds_cleanup_free_ char *encoded = NULL;
	_ds_cleanup_free_ char *name = NULL;
	const char *slash, *at;
	uint64_t number;
	int r;

	if (ds_starts_with(key, "refs/branches/"))
		at = key + strlen("refs/branches/");
	else if (ds_starts_with(key, "refs/tags/"))
		at = key + strlen("refs/tags/");
	else
		return -ENOENT;
	slash = strchr(at, '/');
	if (!slash || slash - at > DS_REF_NAME_MAX)
		return -ENOENT;
	number = ds_entry_number_parse(slash + 1);
	if (number == 0)
		return -ENOENT;
	encoded = ds_strndup(at, (size_t)(slash - at));
	if (!encoded)
		return -ENOMEM;
	r = ds_percent_decode(encoded, &name);
	if (r < 0)
		return r == -ENOMEM ? r : -ENOENT;
	r = ds_ref_name_check(name, NULL);
	if (r < 0)
		return r == -ENOMEM ? r : -ENOENT;
	*ret_kind = ds_starts_with(key, "refs/tags/") ? DS_REF_TAG : DS_REF_BRANCH;
	memcpy(ret_name, name, strlen(name) + 1);
	*ret_number = number;
	return 0;
}

static int compare_entries(const void *a, const void *b)
{
	const struct ds_ref_entry *x = a, *y = b;

	if (x->kind != y->kind)
		return x->kind < y->kind ? -1 : 1;
	return strcmp(x->name, y->name);
}

/* The logs with their highest numbers. */
static int list_names(struct ds_repo *repo, struct ds_ref_list *list, struct ds_diag *reterr_diag)
{
	struct ds_store_listing listing = {0};
	struct ds_store_req req = {.op = DS_STORE_LIST, .key = "refs/", .listing = &listing};
	struct ds_ref_entry *last = NULL, *grown;
	size_t capacity_n = 0;
	int r;

	r = ds_store_perform(ds_repo_store(repo), &req);
	if (r < 0)
		ds_diag_copy(reterr_diag, &req.diag);
	for (size_t i = 0; r == 0 && i < listing.objects_n; i++) {
		char name[DS_REF_NAME_MAX + 1];
		enum ds_ref_kind kind;
		uint64_t number;

		r = ds_ref_key_parse(listing.objects[i].key, &kind, name, &number);
		if (r == -ENOENT) {
			r = 0;
			continue;
		}
		if (r < 0)
			break;
		if (last && last->kind == kind && strcmp(last->name, name) == 0) {
			last->number = DS_MAX(last->number, number);
			continue;
		}
		if (list->heads_n == capacity_n) {
			capacity_n = capacity_n ? 2 * capacity_n : 16;
			grown = ds_reallocarray(list->heads, capacity_n, sizeof(*list->heads));
			if (!grown) {
				r = -ENOMEM;
				break;
			}
			list->heads = grown;
		}
		last = &list->heads[list->heads_n++];
		*last = (struct ds_ref_entry){.kind = kind, .number = number};
		memcpy(last->name, name, strlen(name) + 1);
	}
	ds_store_listing_release(&listing);
	return r;
}

struct read_ctx {
	struct ds_repo *repo;
	struct ds_ref_list *list;
	struct ds_diag *diag;
};

static char *read_key(void *ctx, size_t i)
{
	struct read_ctx *read = ctx;
	const struct ds_ref_entry *entry = &read->list->heads[i];

	return ds_ref_key(entry->kind, entry->name, entry->number);
}

static int read_each(void *ctx, size_t i, int result, const struct ds_buf *buf,
		     const struct ds_diag *diag)
{
	struct read_ctx *read = ctx;
	struct ds_ref_entry *entry = &read->list->heads[i];
	char name[DS_REF_NAME_MAX + 1];

	if (result < 0) {
		ds_diag_copy(read->diag, diag);
		return result == -DS_E_LIMIT ? -DS_E_MALFORMED : result;
	}
	memcpy(name, entry->name, sizeof(name));
	return ds_ref_entry_parse(read->repo, entry->kind, name, entry->number, buf->data,
				  buf->len_bytes, entry, read->diag);
}

int ds_refs_list(struct ds_repo *repo, struct ds_ref_list *ret_list, struct ds_diag *reterr_diag)
{
	struct ds_ref_list list = {0};
	struct read_ctx read = {.repo = repo, .list = &list, .diag = reterr_diag};
	struct ds_get_many many = {.len_max = DS_SEALED_MAX,
				   .key = read_key,
				   .each = read_each,
				   .ctx = &read};
	int r;

	r = list_names(repo, &list, reterr_diag);
	if (r == 0) {
		many.n = list.heads_n;
		r = ds_repo_get_many(repo, &many);
	}
	if (r < 0) {
		ds_ref_list_release(&list);
		return r;
	}
	if (list.heads_n > 0)
		qsort(list.heads, list.heads_n, sizeof(*list.heads), compare_entries);
	*ret_list = list;
	return 0;
}

void ds_ref_list_release(struct ds_ref_list *list)
{
	ds_free(list->heads);
	*list = (struct ds_ref_list){0};
}
