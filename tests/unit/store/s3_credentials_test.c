#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/s3_credentials.h"
#include "store_contract.h"
#include "util/file.h"
#include "util/mem.h"

static char home[64];

static void set_up(void)
{
	static const char *const names[] = {"AWS_ACCESS_KEY_ID",
					    "AWS_SECRET_ACCESS_KEY",
					    "AWS_SESSION_TOKEN",
					    "AWS_PROFILE",
					    "AWS_REGION",
					    "AWS_DEFAULT_REGION",
					    "AWS_ENDPOINT_URL",
					    "AWS_ENDPOINT_URL_S3",
					    "AWS_SHARED_CREDENTIALS_FILE",
					    "AWS_CONFIG_FILE"};
	char path[128];

	for (size_t i = 0; i < DS_ARRAY_SIZE(names); i++)
		unsetenv(names[i]);
	strcpy(home, "/tmp/dsfs-home-XXXXXX");
	cr_assert_not_null(mkdtemp(home));
	setenv("HOME", home, 1);
	snprintf(path, sizeof(path), "%s/.aws", home);
	cr_assert_eq(mkdir(path, 0700), 0);
}

static void tear_down(void)
{
	ds_rmtree_at(AT_FDCWD, home);
	test_leak_check();
}

TestSuite(s3_credentials, .init = set_up, .fini = tear_down);

static void write_file(const char *name, const void *data, size_t len)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "%s/.aws/%s", home, name);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	cr_assert_eq(ds_write_full(fd, data, len), 0);
	close(fd);
}

static void write_text(const char *name, const char *text)
{
	write_file(name, text, strlen(text));
}

static void expect_keys(const char *profile, const char *access_key, const char *secret_key,
			const char *token)
{
	struct ds_s3_config config;
	struct ds_diag diag = {0};
	int r = ds_s3_config_load(profile, &config, &diag);

	cr_assert_eq(r, 0, "%s", diag.detail);
	cr_assert_str_eq(config.credentials.access_key, access_key);
	cr_assert_str_eq(config.credentials.secret_key, secret_key);
	if (token)
		cr_assert_str_eq(config.credentials.session_token, token);
	else
		cr_assert_null(config.credentials.session_token);
	ds_s3_config_release(&config);
}

static void expect_no_keys(const char *profile, const char *why)
{
	struct ds_s3_config config;
	struct ds_diag diag = {0};
	char line[1024];

	cr_assert_eq(ds_s3_config_load(profile, &config, &diag), -DS_E_NO_KEYS);
	ds_diag_format(&diag, line, sizeof(line));
	cr_assert(strstr(line, why), "%s", line);
	cr_assert_null(strstr(line, "SECRET"));
}

Test(s3_credentials, the_environment_goes_first)
{
	write_text("credentials", "[default]\naws_access_key_id=F\naws_secret_access_key=G\n");
	setenv("AWS_ACCESS_KEY_ID", "A", 1);
	setenv("AWS_SECRET_ACCESS_KEY", "SECRET", 1);
	expect_keys(NULL, "A", "SECRET", NULL);
	setenv("AWS_SESSION_TOKEN", "T", 1);
	expect_keys(NULL, "A", "SECRET", "T");
	/* But not before a profile that was named. */
	expect_keys("default", "F", "G", NULL);
	unsetenv("AWS_SECRET_ACCESS_KEY");
	expect_no_keys(NULL, "secret access key is missing");
	setenv("AWS_SECRET_ACCESS_KEY", "SECRET\r\nEvil: header", 1);
	expect_no_keys(NULL, "a character that no key has");
}

Test(s3_credentials, profiles_come_from_both_files)
{
	struct ds_s3_config config;

	write_text("credentials", "[default]\naws_access_key_id = A\naws_secret_access_key = B\n"
				  "[two]\naws_access_key_id = C\naws_secret_access_key = D\n"
				  "aws_session_token = E\n");
	write_text("config",
		   "[default]\nregion = eu-west-1\n"
		   "[profile two]\nregion = eu-west-2\nendpoint_url = https://two.example\n"
		   "s3 =\n  endpoint_url = https://nested.example\n"
		   "[profile three]\naws_access_key_id = G\naws_secret_access_key = H\n"
		   "[four]\naws_access_key_id = I\naws_secret_access_key = J\n");
	expect_keys(NULL, "A", "B", NULL);
	expect_keys("two", "C", "D", "E");
	expect_keys("three", "G", "H", NULL);
	expect_no_keys("four", "there is no such profile in ");
	setenv("AWS_PROFILE", "two", 1);
	cr_assert_eq(ds_s3_config_load(NULL, &config, NULL), 0);
	cr_assert_str_eq(config.region, "eu-west-2");
	cr_assert_str_eq(config.endpoint, "https://two.example");
	ds_s3_config_release(&config);
	setenv("AWS_REGION", "us-west-1", 1);
	setenv("AWS_ENDPOINT_URL", "https://all.example", 1);
	cr_assert_eq(ds_s3_config_load(NULL, &config, NULL), 0);
	cr_assert_str_eq(config.region, "us-west-1");
	cr_assert_str_eq(config.endpoint, "https://all.example");
	ds_s3_config_release(&config);
	setenv("AWS_ENDPOINT_URL_S3", "https://s3.example", 1);
	cr_assert_eq(ds_s3_config_load(NULL, &config, NULL), 0);
	cr_assert_str_eq(config.endpoint, "https://s3.example");
	ds_s3_config_release(&config);
}

Test(s3_credentials, settings_for_s3_are_nested)
{
	static const char *const texts[] = {
		"[default]\nregion = r\ns3 =\n  addressing_style = virtual\n",
		"[default]\ns3=\n\tmax_queue_size = 5\n\tAddressing_Style=virtual # here\nregion = "
		"r\n",
		"[other]\ns3 =\n addressing_style = path\n[default]\n s3 =\n  addressing_style = "
		"virtual\n"
		" region = r\n[profile x]\ns3 =\n addressing_style = path\n",
		/* Of another service, below a value, and at the top: none of these. */
		"[default]\ns3 =\n addressing_style = virtual\nregion = r\n addressing_style = a\n"
		"other =\n addressing_style = path\n addressing_style = path\naddressing_style = "
		"b\n",
	};
	struct ds_s3_config config;

	write_text("credentials", "[default]\naws_access_key_id = A\naws_secret_access_key = B\n");
	for (size_t i = 0; i < DS_ARRAY_SIZE(texts); i++) {
		write_text("config", texts[i]);
		cr_assert_eq(ds_s3_config_load(NULL, &config, NULL), 0);
		cr_assert_str_eq(config.addressing, "virtual", "text %d", (int)i);
		cr_assert_str_eq(config.region, "r", "text %d", (int)i);
		ds_s3_config_release(&config);
	}
	/* Also where the keys come from the environment. */
	setenv("AWS_ACCESS_KEY_ID", "A", 1);
	setenv("AWS_SECRET_ACCESS_KEY", "B", 1);
	cr_assert_eq(ds_s3_config_load(NULL, &config, NULL), 0);
	cr_assert_str_eq(config.addressing, "virtual");
	ds_s3_config_release(&config);
}

Test(s3_credentials, the_region_of_the_profile_also_counts_for_keys_from_the_environment)
{
	struct ds_s3_config config;

	write_text("config", "[default]\nregion = eu-west-1\naws_access_key_id = A\n");
	setenv("AWS_ACCESS_KEY_ID", "A", 1);
	setenv("AWS_SECRET_ACCESS_KEY", "B", 1);
	cr_assert_eq(ds_s3_config_load(NULL, &config, NULL), 0);
	cr_assert_str_eq(config.region, "eu-west-1");
	cr_assert_str_eq(config.credentials.secret_key, "B");
	cr_assert(config.is_from_environment);
	cr_assert(!ds_s3_config_reload(&config));
	ds_s3_config_release(&config);
}

Test(s3_credentials, C02_files_as_people_and_editors_write_them_are_read)
{
	static const char *const texts[] = {
		"\xef\xbb\xbf[default]\r\naws_access_key_id = A\r\naws_secret_access_key = "
		"B/+=\r\n",
		"# comment\n; another\n\n[default] # mine\naws_access_key_id=A # this\n"
		"aws_secret_access_key=B/+= ; that",
		"[other]\naws_access_key_id = X\naws_secret_access_key = Y\n[ default ]\n"
		"  AWS_ACCESS_KEY_ID =  A\t\n  Aws_Secret_Access_Key\t=B/+=\n",
		"aws_access_key_id = stray\n[default]\nnonsense\n=\n= x\naws_access_key_id = old\n"
		"aws_access_key_id = A\naws_secret_access_key = B/+=\n[broken\n"
		"aws_access_key_id = Z\n",
	};

	for (size_t i = 0; i < DS_ARRAY_SIZE(texts); i++) {
		write_text("credentials", texts[i]);
		expect_keys(NULL, "A", "B/+=", NULL);
	}
}

Test(s3_credentials, C02_files_that_cannot_be_right_are_refused)
{
	char *large = malloc(11 << 20), path[128];

	expect_no_keys(NULL, "no keys for the store that could be used: neither");
	write_text("credentials", "");
	expect_no_keys(NULL, "no keys for the store that could be used: neither");
	write_text("credentials", "[default]\naws_access_key_id = A\naws_secret_acc");
	expect_no_keys(NULL, "secret access key is missing");
	write_text("credentials", "[default]\naws_secret_access_key = SECRET\n");
	expect_no_keys(NULL, "access key id is missing");
	write_text("credentials", "[default]\naws_access_key_id = A\naws_secret_access_key =\n");
	expect_no_keys(NULL, "secret access key is missing");
	write_text("credentials",
		   "[default]\naws_access_key_id = A\naws_secret_access_key = B C\n");
	expect_no_keys(NULL, "a character that no key has");
	write_file("credentials", "[default]\naws_access_key_id = A\0\n", 33);
	expect_no_keys(NULL, "it is no text");
	memset(large, '#', 11 << 20);
	write_file("credentials", large, 11 << 20);
	expect_no_keys(NULL, "too large");
	free(large);
	snprintf(path, sizeof(path), "%s/.aws/credentials", home);
	unlink(path);
	cr_assert_eq(mkfifo(path, 0600), 0);
	expect_no_keys(NULL, "cannot be read");
	unlink(path);
	write_text("config", "[default]\nsso_session = x\n");
	expect_no_keys(NULL, "no keys of its own");
}

Test(s3_credentials, paths_from_the_environment_count)
{
	char path[128];

	write_text("elsewhere", "[default]\naws_access_key_id = A\naws_secret_access_key = B\n");
	snprintf(path, sizeof(path), "%s/.aws/elsewhere", home);
	setenv("AWS_SHARED_CREDENTIALS_FILE", path, 1);
	unsetenv("HOME"); /* the password database has one then */
	expect_keys(NULL, "A", "B", NULL);
}

Test(s3_credentials, C02_reloading_takes_only_whole_new_keys)
{
	static const char old[] = "[default]\naws_access_key_id = A\naws_secret_access_key = B\n";
	struct ds_s3_config config;

	write_text("credentials", old);
	cr_assert_eq(ds_s3_config_load(NULL, &config, NULL), 0);
	cr_assert(!ds_s3_config_reload(&config), "nothing is new");
	write_text("credentials", "[default]\naws_access_key_id = C\naws_secr");
	cr_assert(!ds_s3_config_reload(&config));
	write_text("credentials", "");
	cr_assert(!ds_s3_config_reload(&config));
	cr_assert_str_eq(config.credentials.access_key, "A");
	write_text("credentials", "[default]\naws_access_key_id = C\naws_secret_access_key = D\n"
				  "aws_session_token = T\nregion = eu-west-9\n");
	cr_assert(ds_s3_config_reload(&config));
	cr_assert_str_eq(config.credentials.access_key, "C");
	cr_assert_str_eq(config.credentials.session_token, "T");
	write_text("credentials", old);
	cr_assert(ds_s3_config_reload(&config));
	cr_assert_null(config.credentials.session_token);
	ds_s3_config_release(&config);
}

Test(s3_credentials, J01_every_failing_allocation_is_an_error)
{
	uint64_t delivered_n = 0;

	write_text("credentials", "[default]\naws_access_key_id = A\naws_secret_access_key = B\n"
				  "aws_session_token = C\n");
	write_text("config", "[default]\nregion = eu-west-1\nendpoint_url = https://x\n"
			     "s3 =\n  addressing_style = path\n");
	for (int64_t n = 0;; n++) {
		struct ds_s3_config config = {0};
		uint64_t failed_n;
		int r;

		ds_mem_fail_after(n, 0);
		r = ds_s3_config_load(NULL, &config, NULL);
		failed_n = ds_mem_fail_after(-1, 0);
		delivered_n += failed_n;
		ds_s3_config_release(&config);
		if (failed_n == 0)
			break;
		cr_assert_eq(r, -ENOMEM, "allocation %d", (int)n);
	}
	cr_assert_gt(delivered_n, 8);
}
