#include "store/s3_xml.h"

#include <expat.h>
#include <string.h>

#include "store/store_backend.h"
#include "util/mem.h"
#include "util/str.h"

#define DEPTH_MAX      8
#define TEXT_MAX_BYTES ((size_t)16384) /* a key of 1,024 bytes, percent-encoded, has 3,072 */

enum element {
	EL_OTHER,
	EL_ERROR,
	EL_CODE,
	EL_MESSAGE,
	EL_REGION,
	EL_REQUEST_ID,
	EL_OBJECT_SIZE,
	EL_PAGE,
	EL_TRUNCATED,
	EL_TOKEN,
	EL_ENCODING,
	EL_CONTENTS,
	EL_KEY,
	EL_SIZE,
	EL_MODIFIED,
};

static const struct {
	const char *name;
	enum element element, parent;
} elements[] = {
	{"Error", EL_ERROR, EL_OTHER},
	{"Code", EL_CODE, EL_ERROR},
	{"Message", EL_MESSAGE, EL_ERROR},
	{"Region", EL_REGION, EL_ERROR},
	{"RequestId", EL_REQUEST_ID, EL_ERROR},
	{"ActualObjectSize", EL_OBJECT_SIZE, EL_ERROR},
	{"ListBucketResult", EL_PAGE, EL_OTHER},
	{"IsTruncated", EL_TRUNCATED, EL_PAGE},
	{"NextContinuationToken", EL_TOKEN, EL_PAGE},
	{"EncodingType", EL_ENCODING, EL_PAGE},
	{"Contents", EL_CONTENTS, EL_PAGE},
	{"Key", EL_KEY, EL_CONTENTS},
	{"Size", EL_SIZE, EL_CONTENTS},
	{"LastModified", EL_MODIFIED, EL_CONTENTS},
};

struct parse {
	XML_Parser parser;
	enum element stack[DEPTH_MAX];
	int depth;
	struct ds_buf text; /* of the innermost element */
	int failed;	    /* the code that stopped it */
	bool has_root;
	/* one of the two */
	struct ds_s3_error *error;
	struct ds_s3_page *page;
	/* of the page */
	bool is_encoded;
	bool has_truncated, has_key, has_size, has_modified;
	struct ds_buf key;
	uint64_t size_bytes;
	struct ds_time modified;
};

/* Expat may still call handlers after it was told to stop (the end of `<a/>`): they return at once. */
static void stop(struct parse *parse, int code)
{
	if (!parse->failed)
		parse->failed = code;
	XML_StopParser(parse->parser, XML_FALSE);
}

static void on_doctype(void *ctx, const char *name, const char *sysid, const char *pubid, int has)
{
	(void)name, (void)sysid, (void)pubid, (void)has;
	stop(ctx, -DS_E_PROTOCOL);
}

static void on_start(void *ctx, const char *name, const char **attributes)
{
	struct parse *parse = ctx;
	enum element parent = parse->depth ? parse->stack[parse->depth - 1] : EL_OTHER;
	enum element element = EL_OTHER;
	const char *colon = strrchr(name, ':');

	(void)attributes;
	if (parse->failed)
		return;
	if (parse->depth == DEPTH_MAX) {
		stop(parse, -DS_E_PROTOCOL);
		return;
	}
	name = colon ? colon + 1 : name;
	/* A root is a child of EL_OTHER only at depth 0. */
	for (size_t i = 0; i < DS_ARRAY_SIZE(elements); i++)
		if (strcmp(name, elements[i].name) == 0 && parent == elements[i].parent &&
		    (parse->depth == 0) == (elements[i].parent == EL_OTHER))
			element = elements[i].element;
	if (parse->depth == 0) {
		if (element != (parse->error ? EL_ERROR : EL_PAGE)) {
			stop(parse, -DS_E_PROTOCOL);
			return;
		}
		parse->has_root = true;
	}
	if (element == EL_CONTENTS)
		parse->has_key = parse->has_size = parse->has_modified = false;
	parse->stack[parse->depth++] = element;
	ds_buf_clear(&parse->text);
}

static void on_text(void *ctx, const char *text, int len)
{
	struct parse *parse = ctx;
	int r;

	if (parse->failed || parse->depth == 0 || parse->stack[parse->depth - 1] == EL_OTHER)
		return;
	r = ds_buf_append(&parse->text, text, (size_t)len);
	/* A long message is cut; nothing else may be so long. */
	if (r < 0 && !(r == -DS_E_LIMIT && parse->error))
		stop(parse, r == -DS_E_LIMIT ? -DS_E_PROTOCOL : r);
}

/* ---- error documents */

static void note(const struct parse *parse, char *to, size_t size)
{
	ds_escape(ds_buf_str(&parse->text), parse->text.len_bytes, to, size);
}

static void end_in_error(struct parse *parse, enum element element)
{
	struct ds_s3_error *error = parse->error;

	if (element == EL_CODE)
		note(parse, error->code, sizeof(error->code));
	else if (element == EL_MESSAGE)
		note(parse, error->message, sizeof(error->message));
	else if (element == EL_REGION)
		note(parse, error->region, sizeof(error->region));
	else if (element == EL_REQUEST_ID)
		note(parse, error->request_id, sizeof(error->request_id));
	else if (element == EL_OBJECT_SIZE)
		error->has_object_size = ds_parse_u64(ds_buf_str(&parse->text), UINT64_MAX,
						      &error->object_size_bytes) == 0;
}

/* ---- pages */

/* As a query string is encoded ('+' is a space): what encoding-type=url gives. In place. */
static int decode_url(char *text)
{
	char *to = text;

	for (; *text; text++) {
		uint8_t byte;

		if (*text == '%') {
			char hex[3] = {0};

			hex[0] = text[1];
			hex[1] = hex[0] ? text[2] : '\0';
			for (int i = 0; i < 2; i++)
				if (hex[i] >= 'A' && hex[i] <= 'F')
					hex[i] |= 0x20;
			if (ds_hex_decode(hex, &byte, 1) < 0 || byte == 0)
				return -DS_E_PROTOCOL;
			*to++ = (char)byte;
			text += 2;
		} else {
			*to++ = *text == '+' ? ' ' : *text;
		}
	}
	*to = '\0';
	return 0;
}

static int end_contents(struct parse *parse)
{
	struct ds_s3_page *page = parse->page;

	if (!parse->has_key || !parse->has_size || !parse->has_modified ||
	    parse->key.len_bytes == 0 || page->rows.objects_n == DS_S3_PAGE_MAX_ROWS)
		return -DS_E_PROTOCOL;
	return ds_store_listing_append(&page->rows, ds_buf_str(&parse->key), parse->key.len_bytes,
				       parse->size_bytes, parse->modified);
}

static int end_in_page(struct parse *parse, enum element element)
{
	const char *text = ds_buf_str(&parse->text);
	struct ds_s3_page *page = parse->page;

	switch (element) {
	case EL_TRUNCATED:
		page->is_truncated = strcmp(text, "true") == 0;
		parse->has_truncated = page->is_truncated || strcmp(text, "false") == 0;
		return parse->has_truncated ? 0 : -DS_E_PROTOCOL;
	case EL_TOKEN:
		ds_free(page->token);
		page->token = ds_strdup(text);
		return page->token ? 0 : -ENOMEM;
	case EL_ENCODING:
		parse->is_encoded = strcmp(text, "url") == 0;
		return parse->is_encoded ? 0 : -DS_E_PROTOCOL;
	case EL_KEY:
		parse->has_key = true;
		ds_buf_clear(&parse->key);
		return ds_buf_append_str(&parse->key, text);
	case EL_SIZE:
		parse->has_size = true;
		return ds_parse_u64(text, INT64_MAX, &parse->size_bytes) < 0 ? -DS_E_PROTOCOL : 0;
	case EL_MODIFIED:
		parse->has_modified = true;
		return ds_time_parse(text, &parse->modified, NULL) < 0 ? -DS_E_PROTOCOL : 0;
	case EL_CONTENTS:
		return end_contents(parse);
	default:
		return 0;
	}
}

static void on_end(void *ctx, const char *name)
{
	struct parse *parse = ctx;
	enum element element;
	int r = 0;

	(void)name;
	if (parse->failed)
		return;
	element = parse->stack[--parse->depth];
	if (parse->error)
		end_in_error(parse, element);
	else
		r = end_in_page(parse, element);
	ds_buf_clear(&parse->text);
	if (r < 0)
		stop(parse, r);
}

/* 0 if the document was well-formed to its end. */
static int run(struct parse *parse, const void *data, size_t len_bytes)
{
	static const XML_Memory_Handling_Suite memory = {ds_malloc, ds_realloc, ds_free};

	if (len_bytes > (size_t)1 << 26)
		return -DS_E_PROTOCOL;
	parse->parser = XML_ParserCreate_MM(NULL, &memory, NULL);
	if (!parse->parser)
		return -ENOMEM;
	ds_buf_init(&parse->text, TEXT_MAX_BYTES);
	ds_buf_init(&parse->key, TEXT_MAX_BYTES);
	XML_SetUserData(parse->parser, parse);
	XML_SetElementHandler(parse->parser, on_start, on_end);
	XML_SetCharacterDataHandler(parse->parser, on_text);
	XML_SetStartDoctypeDeclHandler(parse->parser, on_doctype);
	if (XML_Parse(parse->parser, data ? data : "", (int)len_bytes, XML_TRUE) != XML_STATUS_OK &&
	    !parse->failed)
		parse->failed = XML_GetErrorCode(parse->parser) == XML_ERROR_NO_MEMORY
					? -ENOMEM
					: -DS_E_PROTOCOL;
	XML_ParserFree(parse->parser);
	ds_buf_release(&parse->text);
	ds_buf_release(&parse->key);
	return parse->failed;
}

int ds_s3_parse_error(const void *data, size_t len_bytes, struct ds_s3_error *ret_error)
{
	struct parse parse = {.error = ret_error};

	*ret_error = (struct ds_s3_error){0};
	if (run(&parse, data, len_bytes) == -ENOMEM)
		return -ENOMEM;
	return parse.has_root ? 0 : -DS_E_PROTOCOL;
}

int ds_s3_parse_page(const void *data, size_t len_bytes, struct ds_s3_page *ret_page)
{
	struct ds_s3_page page = {0};
	struct parse parse = {.page = &page};
	int r = run(&parse, data, len_bytes);

	if (r == 0 && (!parse.has_truncated || (page.is_truncated && !page.token)))
		r = -DS_E_PROTOCOL;
	/* The element that says so may stand behind the keys. */
	for (size_t i = 0; i < page.rows.objects_n && r == 0 && parse.is_encoded; i++)
		r = decode_url(page.rows.objects[i].key);
	if (r < 0) {
		ds_s3_page_release(&page);
		return r;
	}
	*ret_page = page;
	return 0;
}

void ds_s3_page_release(struct ds_s3_page *page)
{
	ds_store_listing_release(&page->rows);
	ds_free(page->token);
	*page = (struct ds_s3_page){0};
}
