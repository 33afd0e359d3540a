/*
 * Input: changes to a sound manifest, 4 bytes each: u16 number of the page, modulo their number,
 * with the top bit for "in the first 64 bytes"; u8 place in it (times 16, or not at all); u8 value
 * to xor. The digests of pages are not checked here: what is changed is what a hostile writer could
 * have committed.
 */
#include <string.h>
#include <unistd.h>

#include "fuzz.h"
#include "manifest/builder.h"
#include "manifest/manifest.h"
#include "util/bytes.h"

#define PAGE_SIZE 4096u

static uint8_t *sound, *pages;
static uint64_t pages_n;

static void add(struct ds_builder *builder, uint64_t parent, enum ds_entry_type type,
		const char *name, uint64_t size_bytes, uint64_t *ret_id)
{
	struct ds_extent extents[3] = {
		{.len_bytes = DS_CHUNK_MAX, .is_zeros = true},
		{.off = DS_CHUNK_MAX, .len_bytes = 1000, .slot = 1},
		{.off = DS_CHUNK_MAX + 1000, .len_bytes = 1000, .slot = 2},
	};
	struct ds_entry entry = {.type = type, .parent = parent, .size_bytes = size_bytes};

	entry.name_len = (uint8_t)strlen(name);
	memcpy(entry.name, name, entry.name_len);
	entry.chunk = (struct ds_entry_chunk){.pack = 1, .stored_off = 8, .stored_len_bytes = 1};
	extents[1].chunk = extents[2].chunk = entry.chunk;
	FUZZ_CHECK(ds_builder_add(builder, &entry, extents, size_bytes > DS_CHUNK_MAX ? 3 : 0,
				  "the target of a link", 20, ret_id) == 0);
}

/* Some of everything, and enough names that both trees have an inner page. */
static void build(void)
{
	char path[] = "/tmp/dsfs-fuzz.XXXXXX", name[64];
	struct ds_digest id = {.bytes = "a pack"};
	struct ds_manifest_file *file;
	struct ds_page_source source;
	struct ds_builder *builder;
	uint64_t dir, made, link;
	uint32_t pack;

	FUZZ_CHECK(mkdtemp(path));
	snprintf(name, sizeof(name), "%s/m", path);
	FUZZ_CHECK(ds_builder_create(name, PAGE_SIZE, &builder) == 0);
	FUZZ_CHECK(ds_builder_add_pack(builder, &pack) == 0 && pack == 1);
	FUZZ_CHECK(ds_builder_set_pack(builder, pack, &id, 10000, 10, 10000) == 0);
	add(builder, DS_ROOT_ID, DS_ENTRY_DIRECTORY, "dir", 0, &dir);
	for (unsigned i = 0; i < 120; i++) {
		char file_name[64];

		snprintf(file_name, sizeof(file_name), "a-rather-long-name-of-a-file-%03u", i);
		add(builder, dir, DS_ENTRY_FILE, file_name, 1 + i, &made);
	}
	FUZZ_CHECK(ds_builder_add_link(builder, DS_ROOT_ID, "link", 4, made, &link) == 0);
	add(builder, DS_ROOT_ID, DS_ENTRY_FILE, "large", DS_CHUNK_MAX + 2000, &made);
	add(builder, DS_ROOT_ID, DS_ENTRY_SYMLINK, "symlink", 0, &made);
	FUZZ_CHECK(ds_builder_add_reject(builder, "path", 4, "reason") == 0);
	FUZZ_CHECK(ds_builder_finish(builder) == 0);
	ds_builder_free(builder);
	FUZZ_CHECK(ds_manifest_file_open(name, &file, &source) == 0);
	pages_n = source.pages_n;
	sound = fuzz_alloc(pages_n * PAGE_SIZE);
	pages = fuzz_alloc(pages_n * PAGE_SIZE);
	for (uint64_t i = 0; i < pages_n; i++)
		FUZZ_CHECK(source.read_page(source.ctx, NULL, i, sound + i * PAGE_SIZE) == 0);
	ds_manifest_file_close(file);
	unlink(name);
	rmdir(path);
}

static int read_page(void *ctx, void *want, uint64_t page, void *ret_page)
{
	FUZZ_CHECK(page < pages_n);
	memcpy(ret_page, pages + page * PAGE_SIZE, PAGE_SIZE);
	return 0;
}

static void print(void *ctx, const char *text)
{
	FUZZ_CHECK(text[0]);
}

struct walk {
	struct ds_manifest *manifest;
	unsigned depth;
};

static int visit_attrs(void *ctx, const struct ds_entry *entry)
{
	FUZZ_CHECK(entry->name_len > 0 && !memchr(entry->name, '/', entry->name_len));
	FUZZ_CHECK(entry->size_bytes <= DS_FILE_SIZE_MAX);
	return 0;
}

static int visit(void *ctx, const struct ds_entry *entry)
{
	const struct walk *walk = ctx;
	struct walk below = {.manifest = walk->manifest, .depth = walk->depth + 1};
	struct ds_buf buf = DS_BUF_INIT(DS_TARGET_MAX);
	struct ds_extent extents[4];
	struct ds_entry again;
	uint64_t end = 0;
	size_t n;

	FUZZ_CHECK(entry->name_len > 0 && !memchr(entry->name, '/', entry->name_len));
	FUZZ_CHECK(entry->id >= DS_ENTRY_ID_FIRST && entry->id <= DS_ENTRY_ID_MAX);
	FUZZ_CHECK(entry->size_bytes <= DS_FILE_SIZE_MAX);
	if (ds_manifest_lookup(walk->manifest, NULL, entry->parent, entry->name, entry->name_len,
			       &again) == 0)
		FUZZ_CHECK(again.parent == entry->parent);
	if (entry->type == DS_ENTRY_DIRECTORY && walk->depth < 5)
		ds_manifest_list(walk->manifest, NULL, entry->id, 0, visit, &below);
	if (entry->type == DS_ENTRY_DIRECTORY)
		ds_manifest_list_attrs(walk->manifest, NULL, entry->id, 0, visit_attrs, NULL);
	if (entry->type == DS_ENTRY_SYMLINK &&
	    ds_manifest_readlink(walk->manifest, NULL, entry->ino, &buf) == 0)
		FUZZ_CHECK(buf.len_bytes > 0);
	if (entry->extents_n > 0 && ds_manifest_extents(walk->manifest, NULL, entry->ino, 0,
							UINT64_MAX, extents, 4, &n) == 0) {
		for (size_t i = 0; i < n; i++) {
			FUZZ_CHECK(extents[i].off == end && extents[i].len_bytes > 0);
			end += extents[i].len_bytes;
		}
	}
	ds_buf_release(&buf);
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct ds_page_source source = {.page_size = PAGE_SIZE, .read_page = read_page};
	struct walk walk = {.depth = 0};
	uint64_t hot[16], findings_n;
	size_t n;

	if (!sound)
		build();
	memcpy(pages, sound, pages_n * PAGE_SIZE);
	for (size_t i = 0; i + 4 <= size; i += 4) {
		uint32_t page = data[i] | (uint32_t)data[i + 1] << 8;
		uint32_t at = page & 0x8000 ? data[i + 2] % 64u : data[i + 2] * 16u;

		/* The header of the file proper stays, or nearly nothing would be opened at all. */
		page = (page & 0x7fff) % (uint32_t)pages_n;
		if (page == 0 && at < 100)
			at += 100;
		pages[page * PAGE_SIZE + at] ^= data[i + 3];
	}
	source.pages_n = pages_n;
	FUZZ_CHECK(ds_manifest_new(&source, &walk.manifest) == 0);
	ds_manifest_list(walk.manifest, NULL, DS_ROOT_ID, 0, visit, &walk);
	ds_manifest_verify(walk.manifest, NULL, print, NULL, &findings_n);
	ds_manifest_hot_pages(&source, hot, DS_ARRAY_SIZE(hot), &n);
	ds_manifest_free(walk.manifest);
	return 0;
}
