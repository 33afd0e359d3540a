/*
 * A version's manifest, from its index down: each node and each page is checked and put into one local file, which goes on from version to version.
 *
 * INV-1: page i of the file holds bytes whose digest is digests[i] (zero: a page of zeros), unless bad[i]. The file never shrinks: a later version may have more pages again.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "codec/page_index.h"
#include "repo/verify_internal.h"
#include "util/file.h"
#include "util/mem.h"

#define RUN_LEN DS_MIB(8)
#define RUN_GAP DS_KIB(64) /* read over rather than ask again */

/* A page that has to be read. */
struct wanted {
	uint64_t page;
	struct verify_place place;
};

struct wants {
	struct wanted *wanted;
	size_t n, capacity_n;
};

static const char *scratch_dir(void)
{
	const char *dir = getenv("TMPDIR");

	return dir && *dir ? dir : "/var/tmp";
}

static int fail_scratch(struct verify *verify, int r)
{
	struct ds_diag diag = {0};

	if (r != -ENOMEM)
		r = ds_diag_set(&diag, -DS_E_SCRATCH, scratch_dir(), "%s", ds_strerror(r));
	return ds_verify_fail(verify, r, &diag);
}

static int open_file(void)
{
	_ds_cleanup_free_ char *name = NULL;
	const char *dir = scratch_dir();
	int fd;

	fd = open(dir, O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
	if (fd >= 0)
		return fd;
	name = ds_asprintf("%s/dsfs-verify-XXXXXX", dir);
	if (!name)
		return -ENOMEM;
	fd = mkostemp(name, O_CLOEXEC);
	if (fd < 0)
		return -errno;
	unlink(name);
	return fd;
}

static void unmap(struct verify_pages *pages)
{
	if (pages->mapping)
		munmap(pages->mapping, pages->mapping_len);
	pages->mapping = NULL;
}

void ds_verify_pages_release(struct verify_pages *pages)
{
	unmap(pages);
	ds_free(pages->digests);
	ds_free(pages->bad);
	ds_close_ptr(&pages->fd);
}

/* Room for page numbers below n; what is new holds nothing yet. */
static int grow(struct verify_pages *pages, uint64_t n)
{
	size_t capacity_n = DS_MAX((size_t)n, 2 * pages->capacity_n);
	struct ds_digest *digests;
	bool *bad;

	if (n <= pages->capacity_n)
		return 0;
	digests = ds_reallocarray(pages->digests, capacity_n, sizeof(*digests));
	if (!digests)
		return -ENOMEM;
	pages->digests = digests;
	bad = ds_reallocarray(pages->bad, capacity_n, sizeof(*bad));
	if (!bad)
		return -ENOMEM;
	pages->bad = bad;
	memset(bad + pages->capacity_n, true, capacity_n - pages->capacity_n);
	pages->capacity_n = capacity_n;
	return 0;
}

static int add_wanted(struct wants *wants, uint64_t page, const struct verify_place *place)
{
	struct wanted *grown;

	if (wants->n == wants->capacity_n) {
		wants->capacity_n = wants->capacity_n ? 2 * wants->capacity_n : 256;
		grown = ds_reallocarray(wants->wanted, wants->capacity_n, sizeof(*grown));
		if (!grown)
			return -ENOMEM;
		wants->wanted = grown;
	}
	wants->wanted[wants->n++] = (struct wanted){page, *place};
	return 0;
}

static int write_page(struct verify *verify, uint64_t page, const void *raw)
{
	struct verify_pages *pages = &verify->pages;
	int r = ds_pwrite_full(pages->fd, raw, pages->page_size, page * pages->page_size);

	return r < 0 ? fail_scratch(verify, r) : 0;
}

/* Bad pages at the end were never written. */
static int lengthen(const struct verify_pages *pages)
{
	off_t size = (off_t)(pages->pages_n * pages->page_size);
	struct stat st;

	if (fstat(pages->fd, &st) < 0 || (st.st_size < size && ftruncate(pages->fd, size) < 0))
		return -errno;
	return 0;
}

static int leaf_page(struct verify *verify, struct wants *wants, uint64_t page,
		     const struct ds_chunk_ref *ref)
{
	static const uint8_t zeros[65536];
	struct verify_pages *pages = &verify->pages;
	struct verify_place place;
	char what[64];
	bool ok;
	int r;

	r = grow(pages, page + 1);
	if (r < 0)
		return ds_verify_fail(verify, r, NULL);
	if (ref->stored_len_bytes == 0) {
		if (pages->bad[page] || !ds_digest_is_zero(&pages->digests[page]))
			r = write_page(verify, page, zeros);
		memset(&pages->digests[page], 0, sizeof(pages->digests[page]));
		pages->bad[page] = false;
		return r;
	}
	snprintf(what, sizeof(what), "page %llu", (unsigned long long)page);
	r = ds_verify_ref(verify, ref, UINT64_MAX, what, &place, &ok);
	if (r < 0)
		return r;
	if (ok && !pages->bad[page] && ds_digest_equal(&pages->digests[page], &ref->digest))
		return 0;
	pages->bad[page] = true;
	pages->digests[page] = ref->digest;
	if (!ok)
		return 0;
	r = add_wanted(wants, page, &place);
	return r < 0 ? ds_verify_fail(verify, r, NULL) : 0;
}

/* Node `i` of `level`, and what is below it. Depth is at most DS_PAGE_INDEX_LEVELS_MAX. */
static int walk(struct verify *verify, const struct ds_record *record, struct wants *wants,
		const struct ds_chunk_ref *ref, uint32_t level, uint64_t i, bool *ret_ok)
{
	_ds_cleanup_free_ struct ds_page_index_node *node = NULL;
	_ds_cleanup_free_ uint8_t *raw = NULL;
	struct verify_place place;
	char what[64];
	bool ok;
	int r;

	if (ds_verify_is_over(verify))
		return verify->error;
	snprintf(what, sizeof(what), "node %llu of level %u of the index", (unsigned long long)i,
		 level);
	r = ds_verify_ref(verify, ref, UINT64_MAX, what, &place, &ok);
	if (r < 0)
		return r;
	raw = ds_malloc(DS_CHUNK_MAX);
	if (!raw)
		return ds_verify_fail(verify, -ENOMEM, NULL);
	if (ok)
		r = ds_verify_read_chunk(verify, &place, raw, &ok);
	if (r < 0)
		return r;
	if (!ok) {
		*ret_ok = false;
		return 0;
	}
	r = ds_page_index_node_parse(raw, place.raw_len_bytes, &ref->pack, record->pages_n,
				     record->page_size, level, i, &node);
	if (r == -ENOMEM)
		return ds_verify_fail(verify, r, NULL);
	if (r < 0) {
		ds_verify_find(verify, verify->version_key, "%s: %s", what, ds_strerror(r));
		*ret_ok = false;
		return 0;
	}
	ds_free(raw);
	raw = NULL;
	for (uint32_t k = 0; r == 0 && k < node->entries_n; k++) {
		if (level == 0)
			r = leaf_page(verify, wants, node->first_page + k, &node->entries[k]);
		else
			r = walk(verify, record, wants, &node->entries[k], level - 1,
				 i * DS_PAGE_INDEX_FANOUT + k, ret_ok);
	}
	return r;
}

static int compare_wanted(const void *a, const void *b)
{
	const struct wanted *x = a, *y = b;
	int r = memcmp(x->place.pack->id.bytes, y->place.pack->id.bytes, DS_DIGEST_LEN);

	if (r)
		return r;
	return x->place.stored_off < y->place.stored_off
		       ? -1
		       : x->place.stored_off > y->place.stored_off;
}

/* wanted[0..n) lie near each other in one pack. */
static int read_run(struct verify *verify, const struct wanted *wanted, size_t n,
		    struct ds_buf *buf, uint8_t *raw)
{
	struct verify_pages *pages = &verify->pages;
	uint64_t off = wanted[0].place.stored_off;
	char key[DS_PACK_KEY_MAX];
	struct ds_store_req req = {.op = DS_STORE_GET,
				   .key = ds_pack_key(&wanted[0].place.pack->id, key),
				   .off = off,
				   .len_bytes = wanted[n - 1].place.stored_off +
						wanted[n - 1].place.stored_len_bytes - off,
				   .into = buf};
	int r;

	ds_buf_clear(buf);
	r = ds_store_perform(ds_repo_store(verify->repo), &req);
	if (ds_verify_is_damage(r)) {
		ds_verify_find_diag(verify, key, r, &req.diag);
		return 0;
	}
	if (r < 0)
		return ds_verify_fail(verify, r, &req.diag);
	for (size_t i = 0; i < n; i++) {
		const struct verify_place *place = &wanted[i].place;

		r = place->raw_len_bytes == pages->page_size
			    ? ds_chunk_decode(buf->data + (place->stored_off - off),
					      place->stored_len_bytes, place->raw_len_bytes,
					      &place->digest, raw)
			    : -DS_E_MALFORMED;
		if (r == -ENOMEM)
			return ds_verify_fail(verify, r, NULL);
		if (r < 0) {
			ds_verify_bad_chunk(verify, place->pack, place->ordinal, r);
			continue;
		}
		r = write_page(verify, wanted[i].page, raw);
		if (r < 0)
			return r;
		pages->bad[wanted[i].page] = false;
	}
	return 0;
}

static int read_wanted(struct verify *verify, struct wants *wants)
{
	_ds_cleanup_buf_ struct ds_buf buf = DS_BUF_INIT(RUN_LEN + RUN_GAP + 2 * DS_CHUNK_MAX);
	_ds_cleanup_free_ uint8_t *raw = ds_malloc(DS_CHUNK_MAX);
	size_t first = 0;
	int r = 0;

	if (!raw)
		return ds_verify_fail(verify, -ENOMEM, NULL);
	if (wants->n > 0)
		qsort(wants->wanted, wants->n, sizeof(*wants->wanted), compare_wanted);
	while (r == 0 && first < wants->n) {
		const struct wanted *start = &wants->wanted[first];
		size_t end = first + 1;

		if (ds_verify_is_over(verify))
			return verify->error;
		for (; end < wants->n; end++) {
			const struct verify_place *place = &wants->wanted[end].place;
			const struct verify_place *before = &wants->wanted[end - 1].place;

			if (place->pack != start->place.pack ||
			    place->stored_off >
				    before->stored_off + before->stored_len_bytes + RUN_GAP ||
			    place->stored_off - start->place.stored_off > RUN_LEN)
				break;
		}
		r = read_run(verify, start, end - first, &buf, raw);
		first = end;
	}
	return r;
}

int ds_verify_index(struct verify *verify, const struct ds_record *record, bool *ret_ok)
{
	struct verify_pages *pages = &verify->pages;
	unsigned levels_n = ds_page_index_levels_n(record->pages_n);
	struct wants wants = {0};
	int r = 0;

	unmap(pages);
	if (pages->fd < 0)
		pages->fd = open_file();
	if (pages->fd < 0)
		return fail_scratch(verify, pages->fd);
	/* Of another page size nothing stands where it should. */
	if (pages->page_size != record->page_size && pages->capacity_n > 0)
		memset(pages->bad, true, pages->capacity_n);
	pages->page_size = record->page_size;
	pages->pages_n = record->pages_n;
	*ret_ok = true;
	r = walk(verify, record, &wants, &record->index, levels_n - 1, 0, ret_ok);
	if (r == 0)
		r = read_wanted(verify, &wants);
	ds_free(wants.wanted);
	if (r < 0 || !*ret_ok)
		return r;
	pages->bad_n = 0;
	for (uint64_t i = 0; i < pages->pages_n; i++)
		pages->bad_n += pages->bad[i];
	r = lengthen(pages);
	return r < 0 ? fail_scratch(verify, r) : 0;
}
