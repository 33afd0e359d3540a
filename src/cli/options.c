#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "util/mem.h"
#include "util/str.h"

const struct cli_option cli_store_options[] = {
	{0, "endpoint", "URL",
	 "S3 endpoint; otherwise $AWS_ENDPOINT_URL_S3, $AWS_ENDPOINT_URL, the "
	 "profile's, or AWS's own",
	 false},
	{0, "region", "NAME", "S3 region; otherwise $AWS_REGION, the profile's, or us-east-1",
	 false},
	{0, "addressing", "path|virtual",
	 "put the bucket's name into the path or before the host's name; otherwise the profile's "
	 "(s3, addressing_style), or virtual for AWS and path for others",
	 false},
	{0, "profile", "NAME",
	 "profile in ~/.aws/credentials and ~/.aws/config; otherwise "
	 "$AWS_PROFILE or 'default'",
	 false},
	{0, "timeout", "TIME",
	 "longest wait for one answer of the store, retries included, such as "
	 "90s or 5m (60s); a large upload may take longer as long as it moves on",
	 false},
	{0, "insecure-http", NULL, "allow plain http:// to hosts other than this one", false},
	{0},
};

const struct cli_option cli_common_options[] = {
	{'q', "quiet", NULL, "print less", false},
	{'v', "verbose", NULL, "print more", false},
	{'h', "help", NULL, "print this help and exit", false},
	{0},
};

static const struct cli_option json_option = {0, "json", NULL, "print JSON", false};

static const struct cli_option *find_in(const struct cli_option *table, const char *name,
					size_t name_len, char letter)
{
	for (; table && table->name; table++)
		if (name ? strlen(table->name) == name_len &&
				    strncmp(table->name, name, name_len) == 0
			 : table->letter && table->letter == letter)
			return table;
	return NULL;
}

static const struct cli_option *find_option(const struct cli_command *command, const char *name,
					    size_t name_len, char letter)
{
	const struct cli_option *found = find_in(command->options, name, name_len, letter);

	if (!found && command->takes_store)
		found = find_in(cli_store_options, name, name_len, letter);
	if (!found)
		found = find_in(cli_common_options, name, name_len, letter);
	if (!found && command->takes_json && name && name_len == 4 && strncmp(name, "json", 4) == 0)
		found = &json_option;
	return found;
}

static int add_value(struct cli_call *call, const struct cli_option *option, const char *text)
{
	if (!option->repeats && option->argument && cli_has(call, option->name))
		return ds_diag_set(&call->diag, -DS_E_USAGE, NULL, "--%s is given twice",
				   option->name);
	if (call->values_n == DS_ARRAY_SIZE(call->values))
		return ds_diag_set(&call->diag, -DS_E_USAGE, NULL, "too many options");
	call->values[call->values_n].option = option;
	call->values[call->values_n].text = text;
	call->values_n++;
	return 0;
}

static int parse_long(struct cli_call *call, const char *text, int *i, int argc, char **argv)
{
	const char *equals = strchr(text, '=');
	size_t len = equals ? (size_t)(equals - text) : strlen(text);
	const struct cli_option *option = find_option(call->command, text, len, 0);
	char unknown[80];

	if (!option)
		return ds_diag_set(&call->diag, -DS_E_USAGE, NULL, "unknown option '--%s'",
				   ds_escape(text, len, unknown, sizeof(unknown)));
	if (!option->argument) {
		if (equals)
			return ds_diag_set(&call->diag, -DS_E_USAGE, NULL, "--%s takes no value",
					   option->name);
		return add_value(call, option, NULL);
	}
	if (equals)
		return add_value(call, option, equals + 1);
	if (*i + 1 >= argc)
		return ds_diag_set(&call->diag, -DS_E_USAGE, NULL, "--%s needs a value: %s",
				   option->name, option->argument);
	return add_value(call, option, argv[++*i]);
}

static int parse_short(struct cli_call *call, const char *text, int *i, int argc, char **argv)
{
	for (const char *at = text; *at; at++) {
		const struct cli_option *option = find_option(call->command, NULL, 0, *at);
		char unknown[8];
		int r;

		if (!option)
			return ds_diag_set(&call->diag, -DS_E_USAGE, NULL, "unknown option '-%s'",
					   ds_escape(at, 1, unknown, sizeof(unknown)));
		if (!option->argument) {
			r = add_value(call, option, NULL);
			if (r < 0)
				return r;
			continue;
		}
		if (at[1])
			return add_value(call, option, at + 1);
		if (*i + 1 >= argc)
			return ds_diag_set(&call->diag, -DS_E_USAGE, NULL, "-%c needs a value: %s",
					   *at, option->argument);
		return add_value(call, option, argv[++*i]);
	}
	return 0;
}

int cli_parse(struct cli_call *call, int argc, char **argv)
{
	bool only_args = false;

	call->args = argv;
	/* For errors before it. */
	for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++)
		call->json |= call->command->takes_json && strcmp(argv[i], "--json") == 0;
	for (int i = 0; i < argc; i++) {
		const char *text = argv[i];
		int r = 0;

		if (!only_args && strcmp(text, "--") == 0) {
			only_args = true;
		} else if (!only_args && ds_starts_with(text, "--")) {
			r = parse_long(call, text + 2, &i, argc, argv);
		} else if (!only_args && text[0] == '-' && text[1]) {
			r = parse_short(call, text + 1, &i, argc, argv);
		} else if (call->args_n == call->command->args_max) {
			r = ds_diag_set(&call->diag, -DS_E_USAGE, text, "one argument too many");
		} else {
			call->args[call->args_n++] = argv[i];
		}
		if (r < 0)
			return r;
	}
	call->json = cli_has(call, "json");
	if (cli_has(call, "help"))
		return 1;
	if (call->args_n < call->command->args_min)
		return ds_diag_set(&call->diag, -DS_E_USAGE, NULL,
				   "arguments are missing: dsfs %s %s", call->command->name,
				   call->command->arguments);
	return 0;
}

const char *cli_text_at(const struct cli_call *call, const char *name, size_t i)
{
	for (size_t v = 0; v < call->values_n; v++)
		if (strcmp(call->values[v].option->name, name) == 0 && i-- == 0)
			return call->values[v].text ? call->values[v].text : "";
	return NULL;
}

bool cli_has(const struct cli_call *call, const char *name)
{
	return cli_text_at(call, name, 0) != NULL;
}

const char *cli_text(const struct cli_call *call, const char *name)
{
	return cli_text_at(call, name, 0);
}

int cli_number(struct cli_call *call, const char *name, uint64_t otherwise, uint64_t min,
	       uint64_t max, uint64_t *ret_value)
{
	const char *text = cli_text(call, name);

	*ret_value = otherwise;
	if (text && (ds_parse_u64(text, max, ret_value) < 0 || *ret_value < min))
		return ds_diag_set(&call->diag, -DS_E_USAGE, text,
				   "--%s takes a whole number from %llu to %llu", name,
				   (unsigned long long)min, (unsigned long long)max);
	return 0;
}

int cli_size(struct cli_call *call, const char *name, uint64_t otherwise, uint64_t *ret_bytes)
{
	const char *text = cli_text(call, name);

	*ret_bytes = otherwise;
	if (text && ds_parse_size(text, ret_bytes) < 0)
		return ds_diag_set(&call->diag, -DS_E_USAGE, text,
				   "--%s takes a size such as 500M or 20G", name);
	return 0;
}

void cli_tell_waits(void *ctx, const char *why, uint64_t left_ms)
{
	(void)ctx;
	fprintf(stderr, "dsfs: %s; trying for %llu s more\n", why,
		(unsigned long long)(left_ms + 500) / 1000);
}

int cli_store_of(struct cli_call *call, struct ds_store_options *ret_options)
{
	const char *timeout = cli_text(call, "timeout"), *addressing = cli_text(call, "addressing");

	*ret_options = (struct ds_store_options){
		.endpoint = cli_text(call, "endpoint"),
		.region = cli_text(call, "region"),
		.profile = cli_text(call, "profile"),
		.insecure_http = cli_has(call, "insecure-http"),
		.interrupted = &cli_interrupted,
		.waits = cli_has(call, "quiet") ? NULL : cli_tell_waits,
	};
	if (addressing && ds_store_addressing_parse(addressing, &ret_options->addressing) < 0)
		return ds_diag_set(&call->diag, -DS_E_USAGE, addressing,
				   "--addressing takes path or virtual");
	if (timeout && (ds_parse_duration_ms(timeout, &ret_options->timeout_ms) < 0 ||
			ret_options->timeout_ms == 0))
		return ds_diag_set(&call->diag, -DS_E_USAGE, timeout,
				   "--timeout takes a time such as 90s or 5m");
	return 0;
}
