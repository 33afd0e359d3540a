/*
 * usage: fuzz_TARGET FILE|DIRECTORY...
 * Calls the target with the bytes of each file, and with each file cut at every length up to 1,024
 * and each of its first 256 bytes changed: a corpus that is replayed in the ordinary run, with any
 * compiler. An input that breaks a target kills the process; its name is the last line.
 */
#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "fuzz.h"
#include "util/buf.h"
#include "util/file.h"

static size_t files_n;

static void replay(const char *path, const struct ds_buf *buf)
{
	uint8_t *data = fuzz_copy(buf->data ? buf->data : (const uint8_t *)"", buf->len_bytes);

	printf("%s\n", path);
	fflush(stdout);
	LLVMFuzzerTestOneInput(data, buf->len_bytes);
	for (size_t n = 0; n < buf->len_bytes && n < 1024; n++) {
		uint8_t *part = fuzz_copy(data, n);

		LLVMFuzzerTestOneInput(part, n);
		fuzz_free(part);
	}
	for (size_t i = 0; i < buf->len_bytes && i < 256; i++) {
		static const uint8_t changes[] = {1, 0x80, 0xff};
		uint8_t saved = data[i];

		for (size_t c = 0; c < DS_ARRAY_SIZE(changes); c++) {
			data[i] = saved ^ changes[c];
			LLVMFuzzerTestOneInput(data, buf->len_bytes);
		}
		data[i] = saved;
	}
	fuzz_free(data);
	files_n++;
}

static int replay_path(const char *path)
{
	_ds_cleanup_buf_ struct ds_buf buf = DS_BUF_INIT(DS_MIB(64));
	struct dirent *entry;
	DIR *dir = opendir(path);
	int r;

	if (!dir) {
		r = ds_file_read_at(AT_FDCWD, path, &buf);
		if (r == 0)
			replay(path, &buf);
		else
			fprintf(stderr, "%s: %d\n", path, r);
		return r;
	}
	for (r = 0; r == 0 && (entry = readdir(dir));) {
		char name[4096];

		if (entry->d_name[0] == '.')
			continue;
		snprintf(name, sizeof(name), "%s/%s", path, entry->d_name);
		r = replay_path(name);
	}
	closedir(dir);
	return r;
}

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		if (replay_path(argv[i]) < 0)
			return 1;
	printf("%zu files\n", files_n);
	/* Nothing replayed is nothing shown. */
	return files_n ? 0 : 1;
}
