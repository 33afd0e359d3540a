/*
 * A page source over a plain local file: blocking reads.
 */
#include "manifest/manifest.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/bytes.h"
#include "util/file.h"
#include "util/mem.h"

struct ds_manifest_file {
	int fd;
	uint32_t page_size;
};

static int file_read_page(void *ctx, void *want, uint64_t page, void *ret_page)
{
	const struct ds_manifest_file *file = ctx;
	size_t n;
	int r = ds_pread_full(file->fd, ret_page, file->page_size, page * file->page_size, &n);

	if (r == 0 && n != file->page_size)
		r = -EIO;
	return r;
}

int ds_manifest_file_open(const char *path, struct ds_manifest_file **ret_file,
			  struct ds_page_source *ret_source)
{
	_ds_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct ds_manifest_file *file;
	uint8_t header[18];
	uint32_t page_size;
	struct stat st;
	size_t n;
	int r;

	if (fd < 0 || fstat(fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode))
		return -EINVAL;
	r = ds_pread_full(fd, header, sizeof(header), 0, &n);
	if (r < 0)
		return r;
	if (n != sizeof(header))
		return -DS_E_MALFORMED;
	page_size = (uint32_t)header[16] << 8 | header[17];
	if (page_size == 1)
		page_size = 65536;
	if (page_size < 512 || (page_size & (page_size - 1)) || st.st_size % page_size != 0)
		return -DS_E_MALFORMED;
	file = ds_malloc(sizeof(*file));
	if (!file)
		return -ENOMEM;
	*file = (struct ds_manifest_file){.fd = fd, .page_size = page_size};
	fd = -1;
	*ret_file = file;
	*ret_source = (struct ds_page_source){.page_size = page_size,
					      .pages_n = (uint64_t)st.st_size / page_size,
					      .read_page = file_read_page,
					      .ctx = file};
	return 0;
}

struct ds_manifest_file *ds_manifest_file_close(struct ds_manifest_file *file)
{
	if (!file)
		return NULL;
	ds_close_ptr(&file->fd);
	ds_free(file);
	return NULL;
}
