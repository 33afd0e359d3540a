#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/mount_options.h"
#include "cli/session.h"
#include "suite.h"
#include "util/mem.h"

DS_SUITE(mount_options);

static int parse(struct cli_mount_options *options, const char *text)
{
	struct ds_diag diag = {0};
	int r;

	cli_mount_options_init(options);
	r = cli_mount_options_parse(options, text, &diag);
	if (r == -DS_E_USAGE)
		cr_assert(diag.object[0] && diag.detail[0], "'%s' is refused without a reason",
			  text);
	return r;
}

Test(mount_options, every_row_of_the_table_is_understood)
{
	for (const struct cli_option *row = cli_mount_option_table; row->name; row++) {
		struct cli_mount_options options;
		char text[128];

		/* The first of several words, a size within all bounds; 7 is a value for all that take other things. */
		if (row->argument && strchr(row->argument, '|'))
			snprintf(text, sizeof(text), "%s=%.*s", row->name,
				 (int)strcspn(row->argument, "|"), row->argument);
		else
			snprintf(text, sizeof(text), "%s%s", row->name,
				 !row->argument			      ? ""
				 : strcmp(row->argument, "SIZE") == 0 ? "=64M"
								      : "=7");
		cr_expect_eq(parse(&options, text), 0, "%s", text);
		cli_mount_options_release(&options);
	}
}

Test(mount_options, values_arrive)
{
	struct cli_mount_options options;

	cr_assert_eq(parse(&options,
			   "version=v2.1,cache_dir=/nvme/dsfs,cache_size=500G,uid=12,gid=0,"
			   "umask=077,timeout=90,allow_other,addressing=virtual,inflight=64M,"
			   "readahead=4M"),
		     0);
	cr_assert_str_eq(options.version, "v2.1");
	cr_assert_str_eq(options.cache_dir, "/nvme/dsfs");
	cr_assert_eq(options.cache_bytes, DS_GIB(500));
	cr_assert(options.has_uid && options.uid == 12 && options.has_gid && options.gid == 0);
	cr_assert_eq(options.umask, 077);
	cr_assert_eq(options.timeout_ms, 90000);
	cr_assert(options.allow_other);
	cr_assert_eq(options.addressing, DS_STORE_ADDRESSING_VIRTUAL);
	cr_assert_eq(options.inflight_bytes, DS_MIB(64));
	cr_assert_eq(options.readahead_bytes, DS_MIB(4));
	cr_assert_null(options.warm);
	cli_mount_options_release(&options);
}

Test(mount_options, what_fstab_means_for_itself_is_passed_over)
{
	struct cli_mount_options options;

	cr_assert_eq(parse(&options,
			   "rw,exec,user,nofail,_netdev,noauto,defaults,x-systemd.automount,"
			   "x-systemd.requires=network.target,comment=my data,,relatime"),
		     0);
	cli_mount_options_release(&options);
}

Test(mount_options, what_the_kernel_is_to_know_arrives_in_libfuses_words)
{
	static const struct {
		const char *text, *flags;
	} rows[] = {
		{"rw,nofail", NULL},
		{"noexec", "noexec"},
		{"nosuid,user,noauto", "noexec"},
		{"users", "noexec"},
		{"user=joe", "noexec"},
		{"user,exec", "noexec,exec"},
		{"exec,user", "exec,noexec"},
		{"owner,group", NULL},
		{"nosymfollow,version=1", "nosymfollow"},
		{"context=system_u:object_r:httpd_t:s0", "context=system_u:object_r:httpd_t:s0"},
		{"noexec,context=\"u:r:t:s0:c1,c2\",version=1",
		 "noexec,context=\"u:r:t:s0:c1\\,c2\""},
		{"fscontext=a,defcontext=b,rootcontext=c",
		 "fscontext=a,defcontext=b,rootcontext=c"},
	};

	for (size_t i = 0; i < DS_ARRAY_SIZE(rows); i++) {
		struct cli_mount_options options;

		cr_assert_eq(parse(&options, rows[i].text), 0, "%s", rows[i].text);
		if (rows[i].flags)
			cr_expect_str_eq(options.flags ? options.flags : "", rows[i].flags);
		else
			cr_expect_null(options.flags, "%s", rows[i].text);
		cli_mount_options_release(&options);
	}
}

Test(mount_options, what_is_unknown_is_passed_over_when_sloppy)
{
	struct cli_mount_options options;
	struct ds_diag diag = {0};

	cli_mount_options_init(&options);
	options.is_sloppy = true;
	cr_assert_eq(cli_mount_options_parse(&options, "frobnicate,x=1,version=3", &diag), 0);
	cr_assert_str_eq(options.version, "3");
	cr_assert_eq(cli_mount_options_parse(&options, "cache_size=lots", &diag), -DS_E_USAGE);
	ds_diag_clear(&diag);
	cli_mount_options_release(&options);
}

Test(mount_options, a_comma_may_be_escaped)
{
	struct cli_mount_options options;

	cr_assert_eq(parse(&options, "cache_dir=/a\\,b,version=1"), 0);
	cr_assert_str_eq(options.cache_dir, "/a,b");
	cr_assert_str_eq(options.version, "1");
	cli_mount_options_release(&options);
}

Test(mount_options, quotes_around_a_value_guard_its_commas_and_go)
{
	static const struct {
		const char *text, *dir;
	} rows[] = {
		{"cache_dir=\"/path/c,y\",version=1", "/path/c,y"},
		{"version=1,cache_dir=\"/path\"", "/path"},
		{"version=\"1\",cache_dir=\"/a\\,b\"", "/a,b"},
		{"cache_dir=/a\"b\",version=1", "/a\"b\""},
		{"cache_dir=/a\",version=1", "/a\""},
	};

	for (size_t i = 0; i < DS_ARRAY_SIZE(rows); i++) {
		struct cli_mount_options options;

		cr_assert_eq(parse(&options, rows[i].text), 0, "%s", rows[i].text);
		cr_expect_str_eq(options.cache_dir, rows[i].dir);
		cr_expect_str_eq(options.version, "1");
		cli_mount_options_release(&options);
	}
}

Test(mount_options, a_relative_path_is_made_absolute_at_once)
{
	struct cli_mount_options options;

	cr_assert_eq(chdir("/usr"), 0);
	cr_assert_eq(parse(&options, "cache_dir=rel,log=x/log"), 0);
	cr_assert_str_eq(options.cache_dir, "/usr/rel");
	cr_assert_str_eq(options.log, "/usr/x/log");
	cli_mount_options_release(&options);
	cr_assert_eq(chdir("/"), 0);
	cr_assert_eq(parse(&options, "cache_dir=rel,log=syslog"), 0);
	cr_assert_str_eq(options.cache_dir, "/rel");
	cr_assert_str_eq(options.log, "syslog");
	cli_mount_options_release(&options);
}

Test(mount_options, a_relative_path_is_refused_to_mount_dsfs)
{
	static const char *const bad[] = {"cache_dir=rel", "log=./x"};

	for (size_t i = 0; i < DS_ARRAY_SIZE(bad); i++) {
		struct cli_mount_options options;
		struct ds_diag diag = {0};

		cli_mount_options_init(&options);
		options.is_helper = true;
		cr_expect_eq(cli_mount_options_parse(&options, bad[i], &diag), -DS_E_USAGE, "%s",
			     bad[i]);
		cr_expect_str_not_empty(diag.detail);
		ds_diag_clear(&diag);
		cr_expect_eq(cli_mount_options_parse(&options, "log=stderr,cache_dir=/x", &diag),
			     0);
		cli_mount_options_release(&options);
	}
}

Test(mount_options, the_later_one_wins)
{
	struct cli_mount_options options;

	cr_assert_eq(parse(&options, "version=1,version=2"), 0);
	cr_assert_str_eq(options.version, "2");
	cli_mount_options_release(&options);
}

Test(mount_options, warm_takes_paths_or_nothing)
{
	static const struct {
		const char *text;
		const char *paths[4];
	} rows[] = {
		{"warm", {NULL}},
		{"warm=", {NULL}},
		{"warm=a", {"a"}},
		{"warm=a:/b//c/:./d", {"a", "b/c", "d"}},
		{"warm=a\\:b\\,c:d\\e", {"a:b,c", "d\\e"}},
		{"warm=/", {""}},
		{"warm=a,warm=b", {"b"}},
	};

	for (size_t i = 0; i < DS_ARRAY_SIZE(rows); i++) {
		struct cli_mount_options options;
		char **paths;
		size_t n, wanted_n = 0;

		cr_assert_eq(parse(&options, rows[i].text), 0, "%s", rows[i].text);
		cr_assert_not_null(options.warm, "%s", rows[i].text);
		cr_assert_eq(cli_mount_warm_paths(options.warm, &paths, &n), 0);
		while (rows[i].paths[wanted_n])
			wanted_n++;
		cr_assert_eq(n, wanted_n, "%s", rows[i].text);
		for (size_t k = 0; k < n; k++)
			cr_expect_str_eq(paths[k], rows[i].paths[k]);
		cr_expect_null(paths[n]);
		cli_paths_free(paths);
		cli_mount_options_release(&options);
	}
}

Test(mount_options, I02_nonsense_is_refused_by_name)
{
	static const char *const bad[] = {
		"no_such_option", "no_such=1",
		"version",	  "version=",
		"cache_size=",	  "cache_size=10 G",
		"cache_size=-1",  "cache_size=1e99",
		"cache_size=0",	  "cache_size=99999999999P",
		"uid=-1",	  "uid=4294967295",
		"uid=root",	  "umask=8",
		"umask=01777",	  "umask=",
		"timeout=0",	  "timeout=soon",
		"allow_other=1",  "log=",
		"addressing=dns", "addressing",
		"context",	  "context=",
		"noexec=1",	  "nosymfollow=yes",
		"inflight=15M",	  "inflight=",
		"inflight",	  "readahead=4000",
		"readahead=65M",  "readahead=far",
	};

	for (size_t i = 0; i < DS_ARRAY_SIZE(bad); i++) {
		struct cli_mount_options options;

		cr_expect_eq(parse(&options, bad[i]), -DS_E_USAGE, "%s", bad[i]);
		cli_mount_options_release(&options);
	}
}

Test(mount_options, out_of_memory_is_an_error_and_no_leak)
{
	for (int64_t n = 0;; n++) {
		struct cli_mount_options options;
		uint64_t failed_n;
		int r;

		ds_mem_fail_after(n, 0);
		r = parse(&options,
			  "version=v1,cache_dir=/x,endpoint=e,region=r,profile=p,log=syslog,"
			  "noexec,nosymfollow,warm=a");
		failed_n = ds_mem_fail_after(-1, 0);
		cli_mount_options_release(&options);
		if (!failed_n) {
			cr_assert_eq(r, 0);
			cr_assert_gt(n, 3);
			break;
		}
		cr_assert_eq(r, -ENOMEM);
	}
}
