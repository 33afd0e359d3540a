/*
 * Manifests that a hostile writer made: a sound one is changed with SQLite's own functions, without
 * any of our checks, and has to be refused, or read with a meaning that its rows have. The digests
 * of pages play no part here.
 */
#include <criterion/criterion.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "manifest_support.h"
#include "util/bytes.h"
#include "util/mem.h"

static void end(void)
{
	support_clean();
	support_check_leaks();
}

TestSuite(manifest_hostile, .fini = end);

/* STRICT and the columns' types keep other values out; without them in the text, for one
 * connection, they go in. */
static void tamper_types(const char *path, const char *text)
{
	support_tamper(
		path,
		"PRAGMA writable_schema = ON;"
		"CREATE TABLE keep AS SELECT name AS n, sql AS s FROM sqlite_schema;"
		"UPDATE sqlite_schema SET sql = replace(replace(replace(sql, ') STRICT', ')'),"
		" ' INTEGER,', ','), ' INTEGER NOT', ' NOT') WHERE name = 'entry'");
	support_tamper(path, text);
	support_tamper(path, "PRAGMA writable_schema = ON;"
			     "UPDATE sqlite_schema SET sql = (SELECT s FROM keep WHERE n = name)"
			     " WHERE name = 'entry'; DROP TABLE keep;");
}

static void print_finding(void *ctx, const char *text)
{
	unsigned *n = ctx;

	if ((*n)++ < 3)
		fprintf(stderr, "    %s\n", text);
}

static int list_one(void *ctx, const struct ds_entry *entry)
{
	cr_assert(entry->name_len > 0);
	cr_assert_not(memchr(entry->name, '/', entry->name_len));
	return ++*(unsigned *)ctx > 10000;
}

/* Everything that a mount does; results do not matter, only that they are results. */
static void use(struct ds_manifest *manifest)
{
	struct ds_extent extents[64];
	struct ds_entry entry;
	struct ds_pack_row pack;
	uint64_t value;
	unsigned n = 0;
	size_t extents_n;

	for (uint64_t id = 0; id < NEXT + 2; id++) {
		struct ds_buf buf = DS_BUF_INIT(DS_TARGET_MAX);

		if (ds_manifest_get(manifest, NULL, id, &entry) == 0) {
			cr_assert_eq(entry.ino, id);
			cr_assert_leq(entry.size_bytes, DS_FILE_SIZE_MAX);
		}
		ds_manifest_list(manifest, NULL, id, 0, list_one, &n);
		ds_manifest_list(manifest, NULL, DIR, id, list_one, &n);
		ds_manifest_list_attrs(manifest, NULL, id, 0, list_one, &n);
		ds_manifest_list_attrs(manifest, NULL, DIR, id, list_one, &n);
		ds_manifest_readlink(manifest, NULL, id, &buf);
		if (ds_manifest_extents(manifest, NULL, id, DS_MIB(5), UINT64_MAX, extents, 64,
					&extents_n) == 0) {
			for (size_t i = 1; i < extents_n; i++)
				cr_assert_eq(extents[i].off,
					     extents[i - 1].off + extents[i - 1].len_bytes);
		}
		ds_manifest_pack(manifest, NULL, (uint32_t)id, &pack);
		ds_buf_release(&buf);
	}
	ds_manifest_lookup(manifest, NULL, DS_ROOT_ID, "dir", 3, &entry);
	ds_manifest_lookup(manifest, NULL, DIR, "other-a", 7, &entry);
	ds_manifest_total(manifest, NULL, "bytes", &value);
}

static uint64_t findings(const char *path, bool *ret_opens)
{
	struct support_source source;
	struct ds_manifest *manifest;
	uint64_t n = 0;
	unsigned printed = 0;

	support_source_load(&source, path);
	cr_assert_eq(ds_manifest_new(&source.source, &manifest), 0);
	*ret_opens = ds_manifest_check(manifest, NULL, NULL) == 0;
	use(manifest);
	cr_assert_eq(ds_manifest_verify(manifest, NULL, print_finding, &printed, &n), 0);
	ds_manifest_free(manifest);
	support_source_release(&source);
	return n;
}

Test(manifest_hostile, G02_every_other_schema_is_refused)
{
	static const char *const texts[] = {
		"DROP TABLE xattr",
		"DROP INDEX entry_name",
		"CREATE TABLE more (a)",
		"CREATE INDEX more ON entry (digest)",
		"CREATE TRIGGER t AFTER INSERT ON entry BEGIN DELETE FROM pack; END",
		"CREATE VIEW v AS SELECT * FROM entry",
		"CREATE VIEW v AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)"
		" SELECT x FROM c",
		"ANALYZE",
		"ALTER TABLE entry ADD COLUMN more INTEGER",
		"ALTER TABLE entry RENAME COLUMN mode TO mod",
		"ALTER TABLE pack ADD COLUMN g INTEGER GENERATED ALWAYS AS (live + 1) VIRTUAL",
		"ALTER TABLE pack ADD COLUMN g INTEGER CHECK (abs(live) > 0) DEFAULT 1",
		"DROP TABLE xattr; CREATE VIEW xattr AS SELECT id AS entry, name, digest AS value "
		"FROM entry",
		"DROP TABLE meta; CREATE VIEW meta AS SELECT 'files' AS key, 7 AS value",
		"DROP TABLE source; CREATE TABLE source (number INTEGER PRIMARY KEY, url TEXT)",
		"PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = replace(sql, "
		"'STRICT', '')"
		" WHERE name = 'entry'",
		"PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = replace(sql, "
		"'raw_off', 'raw_of')"
		" WHERE name = 'entry'",
		"PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = sql || ' ' WHERE name "
		"= 'pack'",
		"PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = replace(sql, "
		"'UNIQUE', '')"
		" WHERE name = 'entry_name'",
		"PRAGMA writable_schema = ON; UPDATE sqlite_schema SET rootpage = 1 WHERE name = "
		"'entry'",
		"PRAGMA writable_schema = ON; UPDATE sqlite_schema SET rootpage = 0 WHERE name = "
		"'entry'",
		"PRAGMA writable_schema = ON; UPDATE sqlite_schema SET rootpage = 99999 WHERE name "
		"= 'entry'",
		"PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = NULL WHERE name = "
		"'entry_name'",
		"PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql ="
		" 'CREATE VIRTUAL TABLE source USING fts5(x)', rootpage = 0 WHERE name = 'source'",
		"PRAGMA writable_schema = ON; INSERT INTO sqlite_schema VALUES"
		" ('table', 'z', 'z', 0, 'CREATE VIRTUAL TABLE z USING dbstat')",
		"PRAGMA user_version = 0",
		"PRAGMA application_id = 1",
		"PRAGMA journal_mode = WAL",
	};
	bool opens;

	support_build_sound(support_path("sound"));
	support_copy(support_path("sound"), support_path("m"));
	findings(support_path("m"), &opens);
	cr_assert(opens);
	for (unsigned i = 0; i < DS_ARRAY_SIZE(texts); i++) {
		struct ds_builder *builder;

		fprintf(stderr, "  %s\n", texts[i]);
		support_copy(support_path("sound"), support_path("m"));
		support_tamper(support_path("m"), texts[i]);
		cr_assert_neq(findings(support_path("m"), &opens), 0);
		cr_assert(!opens);
		cr_assert_neq(ds_builder_open(support_path("m"), &builder), 0);
	}
}

Test(manifest_hostile, a_higher_schema_number_is_too_new)
{
	struct support_source source;
	struct ds_manifest *manifest;
	struct ds_builder *builder;
	struct ds_diag diag = {.code = 0};
	char text[400];

	support_build_sound(support_path("m"));
	support_tamper(support_path("m"), "CREATE TABLE more (a); PRAGMA user_version = 2");
	support_source_load(&source, support_path("m"));
	cr_assert_eq(ds_manifest_new(&source.source, &manifest), 0);
	cr_assert_eq(ds_manifest_check(manifest, NULL, &diag), -DS_E_TOO_NEW);
	cr_assert_eq(diag.code, -DS_E_TOO_NEW);
	cr_assert(strstr(ds_diag_format(&diag, text, sizeof(text)), "schema number 2"));
	ds_manifest_free(manifest);
	support_source_release(&source);
	cr_assert_eq(ds_builder_open(support_path("m"), &builder), -DS_E_TOO_NEW);
}

/* Rows that are refused wherever they are met, and found by verify. */
static void check_rows(const char *const *texts, size_t n, bool is_typed)
{
	uint64_t sound_n, found_n;
	bool opens;

	support_build_sound(support_path("sound"));
	sound_n = findings(support_path("sound"), &opens);
	for (size_t i = 0; i < n; i++) {
		fprintf(stderr, "  %s\n", texts[i]);
		support_copy(support_path("sound"), support_path("m"));
		if (is_typed)
			support_tamper(support_path("m"), texts[i]);
		else
			tamper_types(support_path("m"), texts[i]);
		found_n = findings(support_path("m"), &opens);
		cr_assert_gt(found_n, sound_n);
	}
}

#define ADD_NAME(name)                                                                             \
	"INSERT INTO entry SELECT 50, parent, " name ", type, mtime_s, mtime_ns, 1, size, digest," \
	" pack, ordinal, stored_off, stored_len, raw_off, extents, target, link, uid, gid, mode"   \
	" FROM entry WHERE id = 5"

Test(manifest_hostile, G03_names)
{
	static const char *const names[] = {
		"x''",
		"x'2e'",
		"x'2e2e'",
		"CAST('a/b' AS BLOB)",
		"CAST('/' AS BLOB)",
		"x'610062'",
		"zeroblob(3)",
		"CAST('/lead' AS BLOB)",
		"CAST(printf('%.256c', 'a') AS BLOB)",
		"CAST(printf('%.65536c', 'a') AS BLOB)",
		"CAST(printf('%.900000c', 'a') AS BLOB)",
	};
	uint64_t sound_n, found_n;
	bool opens;

	support_build_sound(support_path("sound"));
	sound_n = findings(support_path("sound"), &opens);
	for (size_t i = 0; i < DS_ARRAY_SIZE(names); i++) {
		struct support_source source;
		struct ds_manifest *manifest;
		char *text = ds_asprintf("UPDATE entry SET name = %s WHERE id = 5", names[i]);
		struct ds_entry entry;
		unsigned n = 0;
		int r;

		fprintf(stderr, "  %s\n", text);
		support_copy(support_path("sound"), support_path("m"));
		support_tamper(support_path("m"), text);
		found_n = findings(support_path("m"), &opens);
		cr_assert_gt(found_n, sound_n);
		support_source_load(&source, support_path("m"));
		cr_assert_eq(ds_manifest_new(&source.source, &manifest), 0);
		cr_assert_eq(ds_manifest_get(manifest, NULL, 5, &entry), -DS_E_MALFORMED);
		r = ds_manifest_list(manifest, NULL, DIR, 0, list_one, &n);
		cr_assert(r == -DS_E_MALFORMED || i == 0, "%d",
			  r); /* the empty name: passed over */
		n = 0;
		r = ds_manifest_list_attrs(manifest, NULL, DIR, 0, list_one, &n);
		cr_assert(r == -DS_E_MALFORMED || i == 0, "%d", r);
		ds_manifest_free(manifest);
		support_source_release(&source);
		ds_free(text);
	}
}

Test(manifest_hostile, G03_odd_but_possible_names_are_served_as_they_are)
{
	static const char *const names[] = {"new\nline", "\033[31mred", "\xe2\x80\xae rtl",
					    "\xff\xfe",	 "...",		"-rf",
					    " ",	 "..a"};

	for (size_t i = 0; i < DS_ARRAY_SIZE(names); i++) {
		struct support_source source;
		struct ds_manifest *manifest;
		struct ds_builder *builder;
		struct ds_entry entry;
		struct model model;

		model_init(&model, 1);
		remove(support_path("m"));
		cr_assert_eq(ds_builder_create(support_path("m"), 4096, &builder), 0);
		model_add(&model, builder, DS_ROOT_ID, names[i], strlen(names[i]), DS_ENTRY_FILE,
			  1);
		model_seal(&model, builder);
		cr_assert_eq(ds_builder_finish(builder), 0);
		ds_builder_free(builder);
		support_source_load(&source, support_path("m"));
		cr_assert_eq(ds_manifest_new(&source.source, &manifest), 0);
		cr_assert_eq(ds_manifest_lookup(manifest, NULL, DS_ROOT_ID, names[i],
						strlen(names[i]), &entry),
			     0);
		cr_assert_str_eq(entry.name, names[i]);
		cr_assert_eq(support_verify(manifest), 0);
		ds_manifest_free(manifest);
		support_source_release(&source);
		model_release(&model);
	}
}

Test(manifest_hostile, G04_trees)
{
	static const char *const texts[] = {
		"UPDATE entry SET parent = 10 WHERE id = 3", /* a cycle: dir below its own sub */
		"UPDATE entry SET parent = 3 WHERE id = 3",  /* its own parent */
		"INSERT INTO entry (id, parent, name, type, mtime_s, mtime_ns, nlink, size, digest)"
		" SELECT 50, 0, x'61', type, mtime_s, mtime_ns, nlink, size, digest FROM entry "
		"WHERE "
		"id = 10",
		"UPDATE entry SET parent = 77 WHERE id = 5", /* an orphan */
		"UPDATE entry SET parent = 4 WHERE id = 5",  /* below a file */
		"UPDATE entry SET parent = 7 WHERE id = 5",  /* below a symlink */
		"UPDATE entry SET parent = 0 WHERE id = 5",
		"UPDATE entry SET parent = 2 WHERE id = 5",
		"UPDATE entry SET parent = -1 WHERE id = 5",
		"UPDATE entry SET link = 3 WHERE id = 6",  /* hard link to a directory */
		"UPDATE entry SET link = 6 WHERE id = 6",  /* to itself */
		"UPDATE entry SET link = 7 WHERE id = 6",  /* to a symlink */
		"UPDATE entry SET link = 77 WHERE id = 6", /* to nothing */
		"UPDATE entry SET link = NULL WHERE id = 6",
		"UPDATE entry SET link = 5 WHERE id = 6", /* to another file: nlink of both */
		"UPDATE entry SET link = 4 WHERE id = 5", /* a file that names another */
		"UPDATE entry SET size = 1 WHERE id = 6", /* a further name with a size */
		"DELETE FROM entry WHERE id = 1",
		"UPDATE entry SET parent = 1 WHERE id = 1",
		"UPDATE entry SET name = x'61' WHERE id = 1",
		"UPDATE entry SET type = 0 WHERE id = 1",
		"UPDATE entry SET type = 0 WHERE id = 3",
		"UPDATE entry SET type = 2 WHERE id = 4",
		"UPDATE entry SET type = 3 WHERE id = 4",
		"UPDATE entry SET type = 5 WHERE id = 4",
		"UPDATE entry SET type = -1 WHERE id = 4",
		"UPDATE entry SET type = 1 - type WHERE id = 4", /* the parent's digest */
		ADD_NAME("CAST('new' AS BLOB)"),		 /* counts, digests, totals */
		"DELETE FROM entry WHERE id = 9",
	};

	check_rows(texts, DS_ARRAY_SIZE(texts), true);
}

Test(manifest_hostile, G05_numbers)
{
	static const char *const texts[] = {
		"UPDATE entry SET id = 0 WHERE id = 5",
		"UPDATE entry SET id = -5 WHERE id = 5",
		"UPDATE entry SET id = 2 WHERE id = 5",
		"UPDATE entry SET id = 1099511627776 WHERE id = 5",
		"UPDATE entry SET id = 9223372036854775807 WHERE "
		"id = 5",
		"UPDATE entry SET nlink = 0 WHERE id = 5",
		"UPDATE entry SET nlink = 2 WHERE id = 5",
		"UPDATE entry SET nlink = 1 WHERE id = 4",
		"UPDATE entry SET nlink = 4294967296 WHERE id = 5",
		"UPDATE entry SET nlink = 1 WHERE id = 3",
		"UPDATE entry SET nlink = 4 WHERE id = 3",
		"UPDATE entry SET nlink = 2 WHERE id = 7",
		"UPDATE entry SET nlink = NULL WHERE id = 5",
		"UPDATE entry SET size = -1 WHERE id = 5",
		"UPDATE entry SET size = 9223372036854775807 WHERE "
		"id = 5",
		"UPDATE entry SET size = 9500000000000000 WHERE id "
		"= 8",
		"UPDATE entry SET size = size + 1 WHERE id = 8",
		"UPDATE entry SET size = 0 WHERE id = 5",
		"UPDATE entry SET size = 1 WHERE id = 9",
		"UPDATE entry SET size = size + 1 WHERE id = 7",
		"UPDATE entry SET size = size + 1 WHERE id = 3",
		"UPDATE entry SET size = NULL WHERE id = 5",
		"UPDATE entry SET mtime_ns = 1000000000 WHERE id = "
		"5",
		"UPDATE entry SET mtime_ns = -1 WHERE id = 5",
		"UPDATE entry SET mtime_s = NULL WHERE id = 5",
		"UPDATE entry SET digest = x'00' WHERE id = 5",
		"UPDATE entry SET digest = NULL WHERE id = 5",
		"UPDATE entry SET digest = zeroblob(33) WHERE id = "
		"5",
		"UPDATE entry SET digest = randomblob(32) WHERE id "
		"= 5", /* the directory's digest */
		"UPDATE entry SET digest = randomblob(32) WHERE id "
		"= 7",
		"UPDATE entry SET digest = randomblob(32) WHERE id "
		"= 8",
		"UPDATE entry SET digest = randomblob(32) WHERE id "
		"= 9",
		"UPDATE entry SET digest = randomblob(32) WHERE id "
		"= 10",
		"UPDATE entry SET digest = randomblob(32) WHERE id "
		"= 1",
		"UPDATE entry SET pack = 0 WHERE id = 5",
		"UPDATE entry SET pack = 99 WHERE id = 5",
		"UPDATE entry SET pack = 4294967296 WHERE id = 5",
		"UPDATE entry SET pack = NULL WHERE id = 5",
		"UPDATE entry SET pack = 1 WHERE id = 9",
		"UPDATE entry SET pack = 1 WHERE id = 8",
		"UPDATE entry SET ordinal = -1 WHERE id = 5",
		"UPDATE entry SET ordinal = 1000 WHERE id = 5",
		"UPDATE entry SET ordinal = 1048576 WHERE id = 5",
		"UPDATE entry SET stored_off = 7 WHERE id = 5",
		"UPDATE entry SET stored_off = 9223372036854775807 "
		"WHERE id = 5",
		"UPDATE entry SET stored_off = 67108860 WHERE id = "
		"5",
		"UPDATE entry SET stored_len = 0 WHERE id = 5",
		"UPDATE entry SET stored_len = size + 1 WHERE id = "
		"5",
		"UPDATE entry SET raw_off = -1 WHERE id = 5",
		"UPDATE entry SET raw_off = 104857600 WHERE id = 5",
		"UPDATE entry SET raw_off = 9223372036854775807 "
		"WHERE id = 5",
		"UPDATE entry SET raw_off = NULL WHERE id = 5",
		"UPDATE entry SET extents = 1 WHERE id = 5",
		"UPDATE entry SET extents = 0 WHERE id = 8",
		"UPDATE entry SET extents = extents + 1 WHERE id = "
		"8",
		"UPDATE entry SET extents = extents - 1 WHERE id = "
		"8",
		"UPDATE entry SET extents = 4294967296 WHERE id = "
		"8",
		"UPDATE entry SET extents = 4294967295 WHERE id = "
		"8",
		"UPDATE entry SET target = NULL WHERE id = 7",
		"UPDATE entry SET target = x'', size = 0 WHERE id "
		"= 7",
		"UPDATE entry SET target = x'610061', size = 3 "
		"WHERE id = 7",
		"UPDATE entry SET target = CAST(printf('%.4096c', "
		"'a') AS BLOB), size = 4096 WHERE id = 7",
		"UPDATE entry SET target = CAST(printf('%.70000c', "
		"'a') AS BLOB), size = 70000 WHERE id = 7",
		"UPDATE entry SET target = "
		"CAST(printf('%.1000000c', 'a') AS BLOB), size = "
		"1000000 WHERE id = 7",
		"UPDATE entry SET target = x'61' WHERE id = 5",
		"UPDATE extent SET off = off + 1 WHERE slot = 1",
		"UPDATE extent SET off = off - 1 WHERE slot = 1",
		"UPDATE extent SET off = -1 WHERE slot = 0",
		"UPDATE extent SET off = 1 WHERE slot = 0",
		"UPDATE extent SET off = 9223372036854775807 WHERE "
		"slot = 3",
		"UPDATE extent SET len = len + 1 WHERE slot = 1",
		"UPDATE extent SET len = 0 WHERE slot = 1",
		"UPDATE extent SET len = -1 WHERE slot = 1",
		"UPDATE extent SET len = 9223372036854775807 WHERE "
		"slot = 1",
		"UPDATE extent SET slot = 77 WHERE slot = 1",
		"UPDATE extent SET slot = 1 - slot WHERE slot < 2",
		"UPDATE extent SET slot = -1 WHERE slot = 0",
		"DELETE FROM extent WHERE slot = 0",
		"DELETE FROM extent WHERE slot = 2",
		"DELETE FROM extent WHERE slot = (SELECT max(slot) "
		"FROM extent)",
		"DELETE FROM extent",
		"UPDATE extent SET file = 5",
		"UPDATE extent SET file = 77",
		"UPDATE extent SET file = -1",
		"UPDATE extent SET digest = randomblob(32) WHERE "
		"digest NOT NULL",
		"UPDATE extent SET digest = x'00' WHERE digest NOT "
		"NULL",
		"UPDATE extent SET digest = NULL WHERE digest NOT "
		"NULL",
		"UPDATE extent SET digest = NULL, pack = NULL, "
		"ordinal = NULL, stored_off = NULL, stored_len = "
		"NULL",
		"UPDATE extent SET pack = 99 WHERE pack NOT NULL",
		"UPDATE extent SET stored_len = len + 1 WHERE pack "
		"NOT NULL",
		"UPDATE extent SET stored_off = 1073741824 WHERE "
		"pack NOT NULL",
		"UPDATE pack SET live = live + 1",
		"UPDATE pack SET live = 0",
		"UPDATE pack SET live = -1",
		"UPDATE pack SET size = 15",
		"UPDATE pack SET size = 20000",
		"UPDATE pack SET size = 1073741825",
		"UPDATE pack SET chunks = 0",
		"UPDATE pack SET chunks = 1048577",
		"UPDATE pack SET raw = 0",
		"UPDATE pack SET raw = 4503599627370496",
		"UPDATE pack SET id = x'00'",
		"UPDATE pack SET number = 4294967296 WHERE number "
		"= 1",
		"UPDATE pack SET number = -1 WHERE number = 1",
		"DELETE FROM pack",
		"INSERT INTO pack SELECT 1000, id, size, chunks, "
		"raw, 1 FROM pack LIMIT 1",
		"UPDATE meta SET value = value + 1 WHERE key = "
		"'files'",
		"UPDATE meta SET value = value + 1 WHERE key = "
		"'bytes'",
		"UPDATE meta SET value = 'x' WHERE key = 'bytes'",
		"UPDATE meta SET value = -1 WHERE key = 'bytes'",
		"UPDATE meta SET value = 1.5 WHERE key = 'bytes'",
		"DELETE FROM meta WHERE key LIKE 'size%'",
		"INSERT INTO meta VALUES ('size_63', 1)",
		"INSERT INTO reject VALUES (x'61', 'why')",
		"INSERT INTO reject VALUES (x'', 'why')",
		"INSERT INTO reject VALUES (zeroblob(1000000), "
		"'why')",
	};

	check_rows(texts, DS_ARRAY_SIZE(texts), true);
}

/* A row is believed before its extents are looked at, and costs the cache a slot for each. */
Test(manifest_hostile, more_extents_than_the_bytes_can_have)
{
	static const char *const texts[] = {
		"UPDATE entry SET extents = size / 65536 * 2 + 1 WHERE id = 8",
		"UPDATE entry SET extents = size / 65536 * 2 + 2 WHERE id = 8",
		"UPDATE entry SET extents = size WHERE id = 8",
	};

	for (size_t i = 0; i < DS_ARRAY_SIZE(texts); i++) {
		struct support_source source;
		struct ds_manifest *manifest;
		struct ds_entry entry;

		support_build_sound(support_path("m"));
		support_tamper(support_path("m"), texts[i]);
		support_source_load(&source, support_path("m"));
		cr_assert_eq(ds_manifest_new(&source.source, &manifest), 0);
		cr_assert_eq(ds_manifest_get(manifest, NULL, 8, &entry),
			     i == 0 ? 0 : -DS_E_MALFORMED, "%s", texts[i]);
		cr_assert_neq(support_verify(manifest), 0, "%s", texts[i]);
		ds_manifest_free(manifest);
		support_source_release(&source);
		cr_assert_eq(unlink(support_path("m")), 0);
	}
}

Test(manifest_hostile, G02_values_of_another_type)
{
	static const char *const texts[] = {
		"UPDATE entry SET size = x'01' WHERE id = 5",
		"UPDATE entry SET size = 'a' WHERE id = 5",
		"UPDATE entry SET size = '1000' WHERE id = 5",
		"UPDATE entry SET size = 1000.5 WHERE id = 5",
		"UPDATE entry SET name = 'text' WHERE id = 5",
		"UPDATE entry SET name = 5 WHERE id = 5",
		"UPDATE entry SET digest = 'text' WHERE id = 5",
		"UPDATE entry SET digest = 5 WHERE id = 5",
		"UPDATE entry SET parent = x'03' WHERE id = 5",
		"UPDATE entry SET type = 'a' WHERE id = 5",
		"UPDATE entry SET mtime_s = 1.5 WHERE id = 5",
		"UPDATE entry SET target = 'text', size = 4 WHERE id = 7",
		"UPDATE entry SET link = 'text' WHERE id = 6",
	};

	check_rows(texts, DS_ARRAY_SIZE(texts), false);
}

Test(manifest_hostile, spare_columns_and_tables_are_passed_over)
{
	uint64_t sound_n;
	bool opens;

	support_build_sound(support_path("m"));
	sound_n = findings(support_path("m"), &opens);
	support_tamper(support_path("m"),
		       "UPDATE entry SET uid = 1, gid = -1, mode = 4095;"
		       "INSERT INTO xattr VALUES (5, CAST('user.a' AS BLOB), zeroblob(50000));"
		       "INSERT INTO source VALUES (1, 'url', x'00', NULL, 'etag');"
		       "INSERT INTO meta VALUES ('anything', x'00'), ('else', 'text')");
	cr_assert_eq(findings(support_path("m"), &opens), sound_n);
	cr_assert(opens);
}

Test(manifest_hostile, an_index_that_disagrees_with_its_table_is_found)
{
	struct support_source source;
	struct ds_manifest *manifest;
	struct ds_entry entry;
	unsigned n = 0;
	uint8_t *at;

	support_build_sound(support_path("m"));
	support_source_load(&source, support_path("m"));
	/* The name stands twice: in the row and in the index. One of them becomes "file-X". */
	at = memmem(source.data, source.source.pages_n * 4096, "file-b", 6);
	cr_assert(at);
	at[5] = 'X';
	cr_assert_eq(ds_manifest_new(&source.source, &manifest), 0);
	cr_assert_neq(ds_manifest_lookup(manifest, NULL, DIR, "file-b", 6, &entry), 0);
	cr_assert_neq(ds_manifest_lookup(manifest, NULL, DIR, "file-X", 6, &entry), 0);
	cr_assert_eq(ds_manifest_list(manifest, NULL, DIR, 0, list_one, &n), -DS_E_MALFORMED);
	cr_assert_eq(ds_manifest_list_attrs(manifest, NULL, DIR, 0, list_one, &n), -DS_E_MALFORMED);
	cr_assert_neq(support_verify(manifest), 0);
	ds_manifest_free(manifest);
	support_source_release(&source);
}

static void put_be16(uint8_t *to, unsigned value)
{
	to[0] = (uint8_t)(value >> 8);
	to[1] = (uint8_t)value;
}

/* An interior page of a table (SQLite's file format, section 1.6) whose 200 children are one page. */
static void put_interior(uint8_t *page, uint32_t child)
{
	uint32_t be = __builtin_bswap32(child);

	memset(page, 0, 4096);
	page[0] = 5;
	put_be16(page + 3, 200);
	put_be16(page + 5, 4096 - 200 * 6);
	memcpy(page + 8, &be, 4);
	for (unsigned i = 0; i < 200; i++) {
		unsigned at = 4096 - 6 * (i + 1);

		put_be16(page + 12 + 2 * i, at);
		memcpy(page + at, &be, 4);
		page[at + 4] = 0x81; /* the key, a varint of two bytes: 128 and more */
		page[at + 5] = (uint8_t)(i & 0x7f);
	}
}

Test(manifest_hostile, G10_a_tree_that_says_the_same_for_ever_is_given_up)
{
	static const char *const tables[] = {"entry", "pack"};
	struct support_source source;
	struct model model;

	model_build(&model, support_path("sound"), 4096, 9, 2500);
	model_release(&model);
	for (size_t t = 0; t < DS_ARRAY_SIZE(tables); t++) {
		struct ds_manifest *manifest;
		uint32_t root, page;
		sqlite3_stmt *stmt;
		sqlite3 *db;
		unsigned n = 0;
		char text[200];

		snprintf(text, sizeof(text), "SELECT rootpage FROM sqlite_schema WHERE name = '%s'",
			 tables[t]);
		cr_assert_eq(sqlite3_open(support_path("sound"), &db), SQLITE_OK);
		cr_assert_eq(sqlite3_prepare_v2(db, text, -1, &stmt, NULL), SQLITE_OK);
		cr_assert_eq(sqlite3_step(stmt), SQLITE_ROW);
		root = (uint32_t)sqlite3_column_int(stmt, 0);
		sqlite3_finalize(stmt);
		sqlite3_close(db);
		support_source_load(&source, support_path("sound"));
		cr_assert(source.source.pages_n > 40);
		/* The root leads to other pages of the file, one below the other, and the last of them to a
		 * true leaf: 200^6 ways to it. */
		for (page = (uint32_t)source.source.pages_n; source.data[(page - 1) * 4096] != 13;)
			page--;
		for (uint32_t level = 0; level < 6; level++) {
			uint32_t above = level == 5 ? root : 10 + level;

			cr_assert_neq(above, page);
			put_interior(source.data + (above - 1) * 4096, page);
			page = above;
		}
		cr_assert_eq(ds_manifest_new(&source.source, &manifest), 0);
		cr_assert_neq(support_verify(manifest), 0);
		ds_manifest_list(manifest, NULL, DS_ROOT_ID, 0, list_one, &n);
		ds_manifest_free(manifest);
		support_source_release(&source);
	}
}

/* Uses a manifest whose bytes are in memory. */
static bool try_bytes(struct support_source *source, bool is_thorough)
{
	struct ds_manifest *manifest;
	unsigned printed = 3;
	uint64_t n = 0;
	bool opens;

	if (ds_manifest_new(&source->source, &manifest) < 0)
		return false;
	opens = ds_manifest_check(manifest, NULL, NULL) == 0;
	if (opens || is_thorough)
		use(manifest);
	if (is_thorough)
		ds_manifest_verify(manifest, NULL, print_finding, &printed, &n);
	ds_manifest_free(manifest);
	return opens;
}

Test(manifest_hostile, G01_no_manifest_at_all)
{
	struct support_source source = {.fail_code = 0}, sound;
	struct ds_prng random = {.state = 1};

	support_build_sound(support_path("m"));
	support_source_load(&sound, support_path("m"));
	support_source_load(&source, support_path("m"));
	for (unsigned i = 0; i < 50; i++) {
		source.source.pages_n = 1 + i % sound.source.pages_n;
		for (size_t k = 0; k < source.source.pages_n * 4096; k++)
			source.data[k] = (uint8_t)(i ? ds_prng_next(&random) : 0);
		cr_assert_not(try_bytes(&source, true));
		memcpy(source.data, sound.data, 100);
		try_bytes(&source, true);
	}
	memcpy(source.data, sound.data, sound.source.pages_n * 4096);
	for (uint64_t n = 0; n < sound.source.pages_n; n++) {
		source.source.pages_n = n; /* cut */
		cr_assert_not(try_bytes(&source, true));
		if (n > 0) {
			ds_put_le32(source.data + 28, __builtin_bswap32((uint32_t)n));
			try_bytes(&source, true);
			memcpy(source.data, sound.data, 100);
		}
	}
	source.source.pages_n = sound.source.pages_n;
	cr_assert(try_bytes(&source, true));
	support_source_release(&source);
	support_source_release(&sound);
}

Test(manifest_hostile, G01_each_byte_of_the_first_page_flipped, .timeout = 300)
{
	struct support_source source;

	support_build_sound(support_path("m"));
	support_source_load(&source, support_path("m"));
	for (unsigned i = 0; i < 4096; i++) {
		uint8_t was = source.data[i];

		/* Most of the page is empty space between the header and the schema's text. */
		if (was == 0 && i > 140 && i % 16)
			continue;
		source.data[i] ^= (uint8_t)(1u << (i % 8));
		/* What the header may say otherwise: where a free list would be, which nobody
		 * reads, the schema's cookie, a default cache size, the writing library's
		 * version. */
		if (try_bytes(&source, false))
			cr_assert((i >= 32 && i < 44) || (i >= 48 && i < 52) || i >= 96, "byte %u",
				  i);
		source.data[i] = was;
	}
	support_source_release(&source);
}

Test(manifest_hostile, G01_random_flips, .timeout = 3600)
{
	const char *text = getenv("DSFS_TEST_FLIPS");
	unsigned tries = text ? (unsigned)strtoul(text, NULL, 0) : 1000;
	struct support_source source;
	struct ds_prng random = {.state = 77};
	struct model model;
	uint8_t *copy;
	size_t size;

	model_build(&model, support_path("m"), 4096, 77, 400);
	model_release(&model);
	support_source_load(&source, support_path("m"));
	size = source.source.pages_n * 4096;
	copy = ds_memdup(source.data, size);
	for (unsigned i = 0; i < tries; i++) {
		unsigned flips = 1 + (unsigned)ds_prng_below(&random, 8);

		for (unsigned k = 0; k < flips; k++) {
			size_t page = ds_prng_below(&random, source.source.pages_n);
			/* Headers and cell pointers are where a flip does most. */
			size_t at = page * 4096 + ds_prng_below(&random, k & 1 ? 64 : 4096);

			source.data[at] ^= (uint8_t)(1 + ds_prng_below(&random, 255));
		}
		source.is_mapped = i & 1;
		try_bytes(&source, true);
		memcpy(source.data, copy, size);
	}
	ds_free(copy);
	support_source_release(&source);
}
