#include "store/s3_credentials.h"

#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "util/file.h"
#include "util/mem.h"
#include "util/str.h"

/* Far above any real file; one that is larger is something else. */
#define FILE_MAX_BYTES ((size_t)1 << 20)

/* ---- the files' format */

#define NESTED_KEY_MAX 64

static char *trim(char *text)
{
	size_t len;

	text += strspn(text, " \t\r");
	len = strlen(text);
	while (len && strchr(" \t\r", text[len - 1]))
		text[--len] = '\0';
	return text;
}

/* A comment inside of a line begins with a blank and '#' or ';'. */
static void cut_comment(char *text)
{
	for (char *at = text; *at; at++)
		if ((*at == '#' || *at == ';') && at > text && (at[-1] == ' ' || at[-1] == '\t')) {
			*at = '\0';
			return;
		}
}

/* The name between the brackets, with one space between its words; NULL if the line is none. */
static char *section_of(char *line)
{
	char *end = strchr(line, ']'), *to, *from;

	if (!end)
		return NULL;
	*end = '\0';
	line = trim(line + 1);
	for (to = from = line; *from; from++)
		if (*from != '\t' && *from != ' ')
			*to++ = *from;
		else if (to[-1] != ' ')
			*to++ = ' ';
	*to = '\0';
	return line;
}

static void lower(char *text)
{
	for (; *text; text++)
		if (*text >= 'A' && *text <= 'Z')
			*text |= 0x20;
}

void ds_s3_ini_parse(char *text,
		     void (*on_value)(void *ctx, const char *section, const char *key,
				      const char *value),
		     void *ctx)
{
	const char *section = NULL, *parent = NULL; /* the last key, if its value is empty */
	size_t key_indent = SIZE_MAX; /* of the last key; what is indented more belongs to it */
	char nested[NESTED_KEY_MAX], *next;

	if (ds_starts_with(text, "\xef\xbb\xbf"))
		text += 3;
	for (char *line = text; line; line = next) {
		size_t indent = strspn(line, " \t");
		bool is_nested;
		char *equals, *key, *value;

		next = strchr(line, '\n');
		if (next)
			*next++ = '\0';
		line = trim(line);
		if (!*line || *line == '#' || *line == ';')
			continue;
		if (*line == '[') {
			section = section_of(line);
			key_indent = SIZE_MAX;
			continue;
		}
		is_nested = indent > key_indent;
		if (!section || (is_nested && !parent))
			continue;
		equals = strchr(line, '=');
		if (!equals)
			continue;
		*equals = '\0';
		key = trim(line);
		value = equals + 1;
		cut_comment(value);
		lower(key);
		value = trim(value);
		if (is_nested) {
			if (snprintf(nested, sizeof(nested), "%s.%s", parent, key) <
			    (int)sizeof(nested))
				on_value(ctx, section, nested, value);
			continue;
		}
		key_indent = indent;
		parent = *value ? NULL : key;
		on_value(ctx, section, key, value);
	}
}

/* ---- what is in the files */

struct found {
	const char *profile;
	bool is_config; /* sections are called "profile x" there */
	struct ds_s3_credentials credentials;
	char *region, *endpoint, *addressing;
	bool has_profile, is_out_of_memory;
};

static void credentials_release(struct ds_s3_credentials *credentials)
{
	ds_free_secret(credentials->access_key);
	ds_free_secret(credentials->secret_key);
	ds_free_secret(credentials->session_token);
	*credentials = (struct ds_s3_credentials){0};
}

static void found_release(struct found *found)
{
	credentials_release(&found->credentials);
	ds_free(found->region);
	ds_free(found->endpoint);
	ds_free(found->addressing);
}

static void on_value(void *ctx, const char *section, const char *key, const char *value)
{
	struct found *found = ctx;
	const struct {
		const char *key;
		char **to;
	} rows[] = {
		{"aws_access_key_id", &found->credentials.access_key},
		{"aws_secret_access_key", &found->credentials.secret_key},
		{"aws_session_token", &found->credentials.session_token},
		{"region", &found->region},
		{"endpoint_url", &found->endpoint},
		{"s3.addressing_style", &found->addressing},
	};

	/* In the config file "[profile x]", only "[default]" may go without the word. */
	if (found->is_config && ds_starts_with(section, "profile "))
		section += strlen("profile ");
	else if (found->is_config && strcmp(section, "default") != 0)
		return;
	if (strcmp(section, found->profile) != 0)
		return;
	found->has_profile = true;
	for (size_t i = 0; i < DS_ARRAY_SIZE(rows); i++) {
		char *copy;

		if (strcmp(key, rows[i].key) != 0)
			continue;
		copy = *value ? ds_strdup(value) : NULL;
		if (*value && !copy)
			found->is_out_of_memory = true;
		ds_free_secret(*rows[i].to);
		*rows[i].to = copy;
	}
}

/* A file that is not there says nothing. The path may be a link (home directories are). */
static int read_file(const char *path, struct found *found, struct ds_diag *reterr_diag)
{
	struct ds_buf text = DS_BUF_INIT(FILE_MAX_BYTES);
	_ds_cleanup_close_ int fd = -1;
	int r;

	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0 && (errno == ENOENT || errno == ENOTDIR))
		return 0;
	r = fd < 0 ? -errno : ds_file_read_fd(fd, &text);
	if (r == -DS_E_LIMIT)
		r = ds_diag_set(reterr_diag, -DS_E_NO_KEYS, path, "it is too large for what it is");
	else if (r < 0 && r != -ENOMEM)
		r = ds_diag_set(reterr_diag, -DS_E_NO_KEYS, path, "it cannot be read: %s",
				ds_strerror(r));
	else if (r == 0 && text.len_bytes && memchr(text.data, '\0', text.len_bytes))
		r = ds_diag_set(reterr_diag, -DS_E_NO_KEYS, path, "it is no text");
	if (r == 0 && text.len_bytes)
		ds_s3_ini_parse((char *)text.data, on_value, found);
	if (r == 0 && found->is_out_of_memory)
		r = -ENOMEM;
	if (text.data)
		explicit_bzero(text.data, text.capacity_bytes);
	ds_buf_release(&text);
	return r;
}

/* They go into headers, where a blank or a line's end would make another header. */
static bool is_header_text(const char *text)
{
	if (!*text)
		return false;
	for (; *text; text++)
		if (*text <= ' ' || *text > '~')
			return false;
	return true;
}

/* 0: usable; 1: there are none; -DS_E_NO_KEYS: half of them. */
static int judge(const struct ds_s3_credentials *credentials, const char *where,
		 struct ds_diag *reterr_diag)
{
	if (!credentials->access_key && !credentials->secret_key)
		return 1;
	if (!credentials->access_key || !credentials->secret_key)
		return ds_diag_set(reterr_diag, -DS_E_NO_KEYS, where, "the %s is missing",
				   credentials->access_key ? "secret access key" : "access key id");
	if (!is_header_text(credentials->access_key) || !is_header_text(credentials->secret_key) ||
	    (credentials->session_token && !is_header_text(credentials->session_token)))
		return ds_diag_set(reterr_diag, -DS_E_NO_KEYS, where,
				   "a key has a character that no key has");
	return 0;
}

static void move_text(char **to, char **from)
{
	if (*to || !*from)
		return;
	*to = *from;
	*from = NULL;
}

/* As judge; usable keys move into the config. */
static int take_keys(struct ds_s3_config *config, struct found *found, const char *where,
		     struct ds_diag *reterr_diag)
{
	int r = judge(&found->credentials, where, reterr_diag);

	if (r == 0) {
		config->credentials = found->credentials;
		found->credentials = (struct ds_s3_credentials){0};
	}
	return r;
}

static int tell_no_keys(const struct ds_s3_config *config, bool has_profile,
			struct ds_diag *reterr_diag)
{
	const char *shared = config->credentials_path, *other = config->config_path;

	if (has_profile)
		return ds_diag_set(reterr_diag, -DS_E_NO_KEYS, config->profile,
				   "the profile has no keys of its own");
	if (config->is_named)
		return ds_diag_set(reterr_diag, -DS_E_NO_KEYS, config->profile,
				   "there is no such profile in %s or %s",
				   shared ? shared : "~/.aws/credentials",
				   other ? other : "~/.aws/config");
	return ds_diag_set(reterr_diag, -DS_E_NO_KEYS, config->profile,
			   "neither AWS_ACCESS_KEY_ID nor such a profile in "
			   "~/.aws/credentials");
}

/* Both files: keys of the credentials file win, and are never mixed with the other's. */
static int load_files(struct ds_s3_config *config, struct ds_diag *reterr_diag)
{
	struct found shared = {.profile = config->profile};
	struct found other = {.profile = config->profile, .is_config = true};
	int r = 0, judged = 1;

	if (config->credentials_path)
		r = read_file(config->credentials_path, &shared, reterr_diag);
	if (r == 0 && config->config_path)
		r = read_file(config->config_path, &other, reterr_diag);
	if (r == 0) {
		move_text(&config->region, &other.region);
		move_text(&config->region, &shared.region);
		move_text(&config->endpoint, &other.endpoint);
		move_text(&config->endpoint, &shared.endpoint);
		move_text(&config->addressing, &other.addressing);
		move_text(&config->addressing, &shared.addressing);
		judged = take_keys(config, &shared, config->credentials_path, reterr_diag);
		if (judged == 1)
			judged = take_keys(config, &other, config->config_path, reterr_diag);
		r = judged;
	}
	if (r == 1)
		r = tell_no_keys(config, shared.has_profile || other.has_profile, reterr_diag);
	found_release(&shared);
	found_release(&other);
	return r;
}

/* ---- where the files are, and the environment */

static const char *environment(const char *name)
{
	const char *value = getenv(name);

	return value && *value ? value : NULL;
}

/* `name` in the environment, or a file below the home directory. NULL without a home. */
static int path_of(const char *name, const char *below_home, char **ret_path)
{
	const char *path = environment(name), *home = environment("HOME");
	struct passwd pw, *found = NULL;
	char text[4096];

	if (!path && !home && getpwuid_r(getuid(), &pw, text, sizeof(text), &found) == 0 && found)
		home = pw.pw_dir;
	*ret_path = path ? ds_strdup(path) : home ? ds_asprintf("%s/%s", home, below_home) : NULL;
	return (path || home) && !*ret_path ? -ENOMEM : 0;
}

static int copy_text(char **to, const char *from)
{
	if (!from)
		return 0;
	*to = ds_strdup(from);
	return *to ? 0 : -ENOMEM;
}

static int load_environment(struct ds_s3_config *config, bool with_keys,
			    struct ds_diag *reterr_diag)
{
	struct ds_s3_credentials *credentials = &config->credentials;
	const char *region = environment("AWS_REGION"),
		   *endpoint = environment("AWS_ENDPOINT_URL_S3");
	int r;

	r = copy_text(&config->region, region ? region : environment("AWS_DEFAULT_REGION"));
	if (r == 0)
		r = copy_text(&config->endpoint,
			      endpoint ? endpoint : environment("AWS_ENDPOINT_URL"));
	if (r < 0 || !with_keys)
		return r;
	if (copy_text(&credentials->access_key, environment("AWS_ACCESS_KEY_ID")) < 0 ||
	    copy_text(&credentials->secret_key, environment("AWS_SECRET_ACCESS_KEY")) < 0 ||
	    copy_text(&credentials->session_token, environment("AWS_SESSION_TOKEN")) < 0)
		return -ENOMEM;
	r = judge(credentials, "the environment", reterr_diag);
	config->is_from_environment = r == 0;
	if (r == 1)
		credentials_release(credentials);
	return DS_MIN(r, 0);
}

int ds_s3_config_load(const char *profile, struct ds_s3_config *ret_config,
		      struct ds_diag *reterr_diag)
{
	struct ds_s3_config config = {.is_named = profile};
	struct ds_diag ignored;
	int r;

	r = load_environment(&config, !profile, reterr_diag);
	if (!profile)
		profile = environment("AWS_PROFILE");
	if (r == 0)
		r = copy_text(&config.profile, profile ? profile : "default");
	if (r == 0)
		r = path_of("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials",
			    &config.credentials_path);
	if (r == 0)
		r = path_of("AWS_CONFIG_FILE", ".aws/config", &config.config_path);
	if (r == 0 && !config.is_from_environment)
		r = load_files(&config, reterr_diag);
	if (r == 0 && config.is_from_environment) {
		/* Only region and endpoint are wanted; a broken file does not matter then. */
		struct ds_s3_credentials keys = config.credentials;

		config.credentials = (struct ds_s3_credentials){0};
		r = load_files(&config, &ignored) == -ENOMEM ? -ENOMEM : 0;
		credentials_release(&config.credentials);
		config.credentials = keys;
	}
	if (r < 0) {
		ds_s3_config_release(&config);
		return r;
	}
	*ret_config = config;
	return 0;
}

void ds_s3_config_release(struct ds_s3_config *config)
{
	credentials_release(&config->credentials);
	ds_free(config->region);
	ds_free(config->endpoint);
	ds_free(config->addressing);
	ds_free(config->profile);
	ds_free(config->credentials_path);
	ds_free(config->config_path);
	*config = (struct ds_s3_config){0};
}

static bool is_same(const char *a, const char *b)
{
	return a && b ? strcmp(a, b) == 0 : a == b;
}

bool ds_s3_config_reload(struct ds_s3_config *config)
{
	struct ds_s3_config fresh = {.profile = config->profile,
				     .credentials_path = config->credentials_path,
				     .config_path = config->config_path};
	bool is_new = false;

	if (config->is_from_environment)
		return false;
	if (load_files(&fresh, NULL) == 0) {
		struct ds_s3_credentials *old = &config->credentials, *new = &fresh.credentials;

		is_new = !is_same(old->access_key, new->access_key) ||
			 !is_same(old->secret_key, new->secret_key) ||
			 !is_same(old->session_token, new->session_token);
		if (is_new) {
			struct ds_s3_credentials swap = *old;

			*old = *new;
			*new = swap;
		}
	}
	credentials_release(&fresh.credentials);
	ds_free(fresh.region);
	ds_free(fresh.endpoint);
	ds_free(fresh.addressing);
	return is_new;
}
