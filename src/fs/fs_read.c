/*
 * Contents: read, and where data and holes are.
 *
 * With io_uring the bytes are read straight into what the kernel takes the reply from; else large parts are replied from a mapping, and
 * others from a buffer that stays for the next (per_cpu.h).
 */
#include <errno.h>
#include <string.h>

#include "fs/fs_internal.h"
#include "util/error.h"
#include "util/mem.h"

#define BUFFER_STEP DS_KIB(128)
#define PAGE	    4096u
#define LENT_MIN    DS_KIB(32) /* less is copied as fast as it is looked for */

struct buffer {
	size_t size;
	char *data; /* page-aligned, behind this */
};

static struct buffer *take_buffer(struct ds_fs *fs, size_t size)
{
	struct buffer *buffer = ds_lanes_take(&fs->buffers);

	if (buffer && buffer->size >= size)
		return buffer;
	ds_free(buffer);
	/* Rounded, so that one of the first fits those that follow. */
	size = (size + BUFFER_STEP - 1) / BUFFER_STEP * BUFFER_STEP;
	buffer = ds_malloc(sizeof(*buffer) + PAGE - 1 + size);
	if (!buffer)
		return NULL;
	buffer->size = size;
	buffer->data = (char *)(buffer + 1);
	buffer->data += -(uintptr_t)buffer->data % PAGE;
	return buffer;
}

static void put_buffer(struct ds_fs *fs, struct buffer *buffer)
{
	if (!ds_lanes_put(&fs->buffers, buffer))
		ds_free(buffer);
}

void fs_read_end(struct ds_fs *fs)
{
	struct buffer *buffer;

	while ((buffer = ds_lanes_take(&fs->buffers)))
		ds_free(buffer);
}

static int read_into(struct fs_request *request, char *data, size_t size)
{
	struct ds_fs *fs = request->fs;
	size_t n = 0;
	int r = ds_view_read(fs->view, &request->demand, request->ino, request->off, size, data,
			     &n);

	if (r < 0)
		return r;
	ds_counter_add(&fs->stats.read_bytes, n);
	fuse_reply_buf(request->req,
		       request->demand.lent.image ? (const char *)request->demand.lent.data : data,
		       n);
	ds_demand_give_back(&request->demand);
	return 0;
}

#ifdef FUSE_HAS_READ_PAYLOAD

/* A read by the ring that the request came from. */
struct direct {
	struct ds_fs *fs;
	uint64_t ino, off;
	size_t size;
	struct ds_image_direct image;
};

/* On the thread of the ring. */
static void on_direct(fuse_req_t req, int result, void *data)
{
	struct direct *direct = data;
	struct ds_fs *fs = direct->fs;
	size_t n = direct->image.wanted_bytes, payload_size;
	struct fs_request again = {.run = fs_run_read,
				   .op = "read",
				   .ino = direct->ino,
				   .off = direct->off,
				   .size = direct->size,
				   .flag = true};
	char *payload;

	if (ds_image_direct_end(&direct->image, result) == 0 &&
	    fuse_req_get_payload(req, &payload, &payload_size, NULL) == 0) {
		if (direct->image.skip_bytes)
			memmove(payload, payload + direct->image.skip_bytes, n);
		ds_counter_add(&fs->stats.read_bytes, n);
		fuse_reply_buf(req, payload, n);
	} else {
		fs_request_start_uncounted(req, &again);
	}
	ds_free(direct);
}

/* What the view has noted; it ends here in any case. */
static int start_direct(struct fs_request *request)
{
	struct ds_image_direct *image = &request->demand.direct;
	struct direct *direct = ds_malloc(sizeof(*direct));
	int r = -ENOMEM;

	if (direct) {
		*direct = (struct direct){.fs = request->fs,
					  .ino = request->ino,
					  .off = request->off,
					  .size = request->size,
					  .image = *image};
		r = fuse_req_read_payload(request->req, image->fd, image->len_bytes,
					  (off_t)image->off, on_direct, direct);
	}
	if (r == 0)
		return 0;
	ds_free(direct);
	ds_image_direct_end(image, -EAGAIN);
	return -DS_E_NOT_LOCAL;
}

static int read_direct(struct fs_request *request, char *payload, size_t size, size_t payload_size)
{
	int r;

	/* The thread that serves the ring, the first time. */
	if (!request->demand.may_check && !request->flag)
		request->demand.direct_room_bytes = payload_size;
	r = read_into(request, payload, size);
	return r == -DS_E_NOT_LOCAL && request->demand.direct.image ? start_direct(request) : r;
}

#endif

/* Where the kernel takes the reply from, if that can be written to. */
static bool get_payload(struct fs_request *request, size_t size, char **ret_payload,
			size_t *ret_size)
{
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 18)
	return fuse_req_get_payload(request->req, ret_payload, ret_size, NULL) == 0 &&
	       *ret_size >= size;
#else
	(void)request, (void)size, (void)ret_payload, (void)ret_size;
	return false;
#endif
}

int fs_run_read(struct fs_request *request)
{
	size_t size = request->size; /* a short answer would be the end of the file */
	struct buffer *buffer;
	size_t payload_size;
	char *payload;
	int r;

	if (get_payload(request, size, &payload, &payload_size))
#ifdef FUSE_HAS_READ_PAYLOAD
		return read_direct(request, payload, size, payload_size);
#else
		return read_into(request, payload, size);
#endif
	buffer = take_buffer(request->fs, size);
	if (!buffer)
		return -ENOMEM;
	request->demand.may_be_lent = !request->demand.may_check && size >= LENT_MIN;
	r = read_into(request, buffer->data, size);
	put_buffer(request->fs, buffer);
	return r;
}

int fs_run_lseek(struct fs_request *request)
{
	uint64_t off;
	int r = ds_view_seek(request->fs->view, &request->demand, request->ino, request->off,
			     request->flag, &off);

	if (r == 0)
		fuse_reply_lseek(request->req, (off_t)off);
	return r;
}
