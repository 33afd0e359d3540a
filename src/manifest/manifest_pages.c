/*
 * Which pages a mount wants first: found by walking the headers of b-tree pages (SQLite's file
 * format, section 1.6).
 *
 * INV-1: each page is listed once and read at most once, so that a damaged tree costs no more than
 * a sound one.
 * INV-2: nothing is trusted: what is no b-tree page, or points outside the file, is passed over.
 */
#include "manifest/manifest_impl.h"

#include <string.h>

#define INTERIOR_INDEX 2
#define INTERIOR_TABLE 5
#define LEAF_INDEX     10
#define LEAF_TABLE     13

struct walk {
	const struct ds_page_source *source;
	uint64_t *pages;
	uint8_t *bytes;	 /* one page */
	uint8_t *listed; /* bit per page */
	size_t n, max_n;
	uint64_t *level, *next_level; /* pages whose children are still to be listed */
	size_t level_n, next_level_n, level_capacity;
};

static uint32_t be16(const uint8_t *p)
{
	return (uint32_t)p[0] << 8 | p[1];
}

static uint32_t be32(const uint8_t *p)
{
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static bool is_listed(const struct walk *walk, uint64_t page)
{
	return walk->listed[page / 8] >> (page % 8) & 1;
}

static void list_page(struct walk *walk, uint64_t page)
{
	if (walk->n < walk->max_n && !is_listed(walk, page)) {
		walk->listed[page / 8] |= (uint8_t)(1u << (page % 8));
		walk->pages[walk->n++] = page;
	}
}

static int read_page(struct walk *walk, uint64_t page)
{
	return walk->source->read_page(walk->source->ctx, NULL, page, walk->bytes);
}

static const uint8_t *page_header(const struct walk *walk, uint64_t page)
{
	return walk->bytes + (page == 0 ? 100 : 0);
}

static bool is_interior(const struct walk *walk, uint64_t page)
{
	uint8_t kind = *page_header(walk, page);

	return kind == INTERIOR_INDEX || kind == INTERIOR_TABLE;
}

/* The i-th child of the interior page that was read; false where there is none (past the last,
 * or nonsense). */
static bool child_at(const struct walk *walk, uint64_t page, uint32_t i, uint64_t *ret_child)
{
	const uint8_t *header = page_header(walk, page);
	uint32_t cells_n = be16(header + 3), at, number;

	if (i > cells_n)
		return false;
	if (i == cells_n) {
		number = be32(header + 8);
	} else {
		size_t cell = (size_t)(header - walk->bytes) + 12 + 2 * (size_t)i;

		if (cell + 2 > walk->source->page_size)
			return false;
		at = be16(walk->bytes + cell);
		if (at + 4 > walk->source->page_size)
			return false;
		number = be32(walk->bytes + at);
	}
	if (number == 0 || number > walk->source->pages_n)
		return false;
	*ret_child = number - 1;
	return true;
}

/* From a root down to the first leaf: what the first names of the tree need. */
static int list_leftmost(struct walk *walk, uint64_t page)
{
	int r = read_page(walk, page);

	while (r == 0 && is_interior(walk, page) && child_at(walk, page, 0, &page)) {
		if (is_listed(walk, page))
			break;
		list_page(walk, page);
		r = read_page(walk, page);
	}
	return r;
}

static int keep_for_next_level(struct walk *walk, uint64_t page)
{
	if (walk->next_level_n == walk->level_capacity)
		return 0; /* more than are wanted */
	walk->next_level[walk->next_level_n++] = page;
	return 0;
}

/* The interior children of one page. All children of a page are of one kind, so that the first
 * tells. */
static int list_children(struct walk *walk, uint64_t page)
{
	_ds_cleanup_free_ uint64_t *children = NULL;
	uint32_t n = 0, cells_n;
	int r = read_page(walk, page);

	if (r < 0 || !is_interior(walk, page))
		return r;
	cells_n = be16(page_header(walk, page) + 3);
	children = ds_malloc(((size_t)cells_n + 1) * sizeof(*children));
	if (!children)
		return -ENOMEM;
	for (uint32_t i = 0; i <= cells_n; i++) {
		if (child_at(walk, page, i, &children[n]))
			n++;
	}
	if (n == 0)
		return 0;
	r = read_page(walk, children[0]);
	if (r < 0 || !is_interior(walk, children[0]))
		return r;
	for (uint32_t i = 0; r == 0 && i < n && walk->n < walk->max_n; i++) {
		list_page(walk, children[i]);
		r = keep_for_next_level(walk, children[i]);
	}
	return r;
}

static int walk_levels(struct walk *walk)
{
	/* A b-tree of SQLite is at most 20 levels deep. */
	for (unsigned depth = 0; depth < 20 && walk->level_n > 0; depth++) {
		uint64_t *done = walk->level;

		walk->next_level_n = 0;
		for (size_t i = 0; i < walk->level_n && walk->n < walk->max_n; i++) {
			int r = list_children(walk, walk->level[i]);

			if (r < 0)
				return r;
		}
		walk->level = walk->next_level;
		walk->level_n = walk->next_level_n;
		walk->next_level = done;
	}
	return 0;
}

/* The roots, as the schema (checked) says them; the two trees that every look-up walks come
 * first. */
static int read_roots(const struct ds_page_source *source, uint64_t *roots, size_t max_n,
		      size_t *ret_n)
{
	struct ds_manifest *manifest;
	sqlite3_stmt *stmt = NULL;
	struct ds_conn *conn;
	size_t n = 0;
	bool has_row;
	int r;

	r = ds_manifest_new(source, &manifest);
	if (r < 0)
		return r;
	r = ds_conn_take(manifest, NULL, &conn);
	if (r < 0)
		goto out;
	if (sqlite3_prepare_v2(conn->sql.db,
			       "SELECT rootpage FROM main.sqlite_schema WHERE rootpage > 0"
			       " ORDER BY name NOT IN ('entry', 'entry_name'), rowid",
			       -1, &stmt, NULL) != SQLITE_OK)
		r = ds_sql_fail(&conn->sql, sqlite3_errcode(conn->sql.db));
	while (r == 0 && (r = ds_sql_step(&conn->sql, stmt, &has_row)) == 0 && has_row) {
		int64_t root = sqlite3_column_int64(stmt, 0);

		if (root >= 1 && (uint64_t)root <= source->pages_n && n < max_n)
			roots[n++] = (uint64_t)root - 1;
	}
	sqlite3_finalize(stmt);
	r = ds_conn_put(manifest, conn, r);
	*ret_n = n;
out:
	ds_manifest_free(manifest);
	return r;
}

int ds_manifest_hot_pages(const struct ds_page_source *source, uint64_t *ret_pages, size_t max_n,
			  size_t *ret_n)
{
	struct walk walk = {.source = source, .pages = ret_pages, .max_n = max_n};
	uint64_t roots[32];
	size_t roots_n;
	int r;

	r = read_roots(source, roots, DS_ARRAY_SIZE(roots), &roots_n);
	if (r < 0)
		return r;
	walk.level_capacity = DS_MAX(max_n, DS_ARRAY_SIZE(roots));
	walk.bytes = ds_malloc(source->page_size);
	walk.listed = ds_calloc(source->pages_n / 8 + 1, 1);
	walk.level = ds_calloc(walk.level_capacity, sizeof(*walk.level));
	walk.next_level = ds_calloc(walk.level_capacity, sizeof(*walk.next_level));
	if (!walk.bytes || !walk.listed || !walk.level || !walk.next_level) {
		r = -ENOMEM;
		goto out;
	}
	list_page(&walk, 0);
	for (size_t i = 0; i < roots_n; i++) {
		list_page(&walk, roots[i]);
		walk.level[walk.level_n++] = roots[i];
	}
	for (size_t i = 0; r == 0 && i < roots_n && i < 2; i++)
		r = list_leftmost(&walk, roots[i]);
	if (r == 0)
		r = walk_levels(&walk);
	if (r == 0)
		*ret_n = walk.n;
out:
	ds_free(walk.next_level);
	ds_free(walk.level);
	ds_free(walk.listed);
	ds_free(walk.bytes);
	return r;
}
