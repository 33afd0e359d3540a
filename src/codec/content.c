#include "codec/content.h"

#include <assert.h>
#include <errno.h>

#include "util/bytes.h"
#include "util/mem.h"

static const char file_tag[] = "dsfs-file-1\n";
static const char directory_tag[] = "dsfs-dir-1\n";

struct ds_content_hasher {
	struct ds_hasher *hasher;
	uint64_t left_bytes;
};

int ds_content_hasher_new(uint64_t size_bytes, struct ds_content_hasher **ret_hasher)
{
	struct ds_content_hasher *content = ds_calloc(1, sizeof(*content));
	uint8_t raw[8];

	if (!content)
		return -ENOMEM;
	if (ds_hasher_new(&content->hasher) < 0) {
		ds_free(content);
		return -ENOMEM;
	}
	content->left_bytes = size_bytes;
	ds_put_le64(raw, size_bytes);
	ds_hasher_update(content->hasher, file_tag, sizeof(file_tag) - 1);
	ds_hasher_update(content->hasher, raw, sizeof(raw));
	*ret_hasher = content;
	return 0;
}

struct ds_content_hasher *ds_content_hasher_free(struct ds_content_hasher *content)
{
	if (!content)
		return NULL;
	ds_hasher_free(content->hasher);
	ds_free(content);
	return NULL;
}

void ds_content_hasher_extent(struct ds_content_hasher *content, uint64_t len_bytes,
			      const struct ds_digest *digest)
{
	uint8_t raw[9];

	assert(len_bytes <= content->left_bytes);
	content->left_bytes -= len_bytes;
	raw[0] = digest ? 1 : 0;
	ds_put_le64(raw + 1, len_bytes);
	ds_hasher_update(content->hasher, raw, sizeof(raw));
	if (digest)
		ds_hasher_update(content->hasher, digest->bytes, DS_DIGEST_LEN);
}

void ds_content_hasher_finish(struct ds_content_hasher *content, struct ds_digest *ret_digest)
{
	assert(content->left_bytes == 0);
	ds_hasher_finish(content->hasher, ret_digest);
}

struct ds_tree_hasher {
	struct ds_hasher *hasher;
	bool has_entries;
	size_t last_len;
	char last[256];
};

static void begin(struct ds_tree_hasher *tree)
{
	tree->has_entries = false;
	ds_hasher_update(tree->hasher, directory_tag, sizeof(directory_tag) - 1);
}

int ds_tree_hasher_new(struct ds_tree_hasher **ret_hasher)
{
	struct ds_tree_hasher *tree = ds_calloc(1, sizeof(*tree));

	if (!tree)
		return -ENOMEM;
	if (ds_hasher_new(&tree->hasher) < 0) {
		ds_free(tree);
		return -ENOMEM;
	}
	begin(tree);
	*ret_hasher = tree;
	return 0;
}

struct ds_tree_hasher *ds_tree_hasher_free(struct ds_tree_hasher *tree)
{
	if (!tree)
		return NULL;
	ds_hasher_free(tree->hasher);
	ds_free(tree);
	return NULL;
}

void ds_tree_hasher_entry(struct ds_tree_hasher *tree, enum ds_content_type type, bool executable,
			  const char *name, size_t name_len, const struct ds_digest *digest)
{
	uint8_t head[6] = {(uint8_t)type, executable ? 1 : 0};

	assert(name_len > 0 && name_len <= sizeof(tree->last));
	assert(!tree->has_entries ||
	       ds_name_compare(tree->last, tree->last_len, name, name_len) < 0);
	assert(!executable || type == DS_CONTENT_FILE);
	tree->has_entries = true;
	tree->last_len = name_len;
	memcpy(tree->last, name, name_len);
	ds_put_le32(head + 2, (uint32_t)name_len);
	ds_hasher_update(tree->hasher, head, sizeof(head));
	ds_hasher_update(tree->hasher, name, name_len);
	ds_hasher_update(tree->hasher, digest->bytes, DS_DIGEST_LEN);
}

void ds_tree_hasher_finish(struct ds_tree_hasher *tree, struct ds_digest *ret_digest)
{
	ds_hasher_finish(tree->hasher, ret_digest);
	begin(tree);
}

int ds_name_compare(const char *a, size_t a_len, const char *b, size_t b_len)
{
	int r = memcmp(a, b, DS_MIN(a_len, b_len));

	if (r != 0)
		return r;
	return a_len == b_len ? 0 : a_len < b_len ? -1 : 1;
}
