/*
 * The buffers that range GETs are received into: what of them counts in no GET is bounded.
 */
#include <criterion/criterion.h>

#include "cache/fetch_internal.h"

#define SPARE_BYTES DS_MIB(6)
#define MAX_BYTES   DS_MIB(24)
#define SHORT_BYTES DS_KIB(300)

/* Received whole, of which the pool sees only the length. */
static struct ds_fetch_buffer *receive(struct ds_fetch_pool *pool, size_t len_bytes)
{
	struct ds_fetch_buffer *buffer;

	cr_assert_eq(ds_fetch_buffer_new(pool, len_bytes, &buffer), 0);
	cr_assert_eq(buffer->buf.max_bytes, len_bytes);
	buffer->buf.len_bytes = len_bytes;
	return buffer;
}

static void receive_side_by_side(struct ds_fetch_pool *pool, const size_t *lens, unsigned n)
{
	struct ds_fetch_buffer *buffers[4];

	for (unsigned i = 0; i < n; i++)
		buffers[i] = receive(pool, lens[i]);
	for (unsigned i = 0; i < n; i++)
		ds_fetch_buffer_unref(buffers[i]);
}

Test(fetch_buffer, what_slow_short_gets_sit_on_is_bounded)
{
	static const size_t whole[] = {SPARE_BYTES, SPARE_BYTES, SPARE_BYTES, SPARE_BYTES};
	struct ds_fetch_buffer *slow[80];
	struct ds_fetch_pool *pool;
	uint64_t beyond = 0;

	cr_assert_eq(ds_fetch_pool_new(SPARE_BYTES, MAX_BYTES, &pool), 0);
	for (unsigned i = 0; i < DS_ARRAY_SIZE(slow); i++) {
		if (i % 4 == 0)
			receive_side_by_side(pool, whole, 4);
		slow[i] = receive(pool, SHORT_BYTES);
		beyond += slow[i]->touched_bytes - DS_MIN(slow[i]->touched_bytes, SHORT_BYTES);
	}
	cr_assert_gt(beyond, 0);
	cr_assert_leq(beyond, MAX_BYTES);
	/* And it is not lost with them. */
	for (unsigned i = 0; i < DS_ARRAY_SIZE(slow); i++)
		ds_fetch_buffer_unref(slow[i]);
	ds_fetch_pool_trim(pool, 0);
	receive_side_by_side(pool, whole, 4);
	for (unsigned i = 0; i < 4; i++) {
		slow[i] = receive(pool, SPARE_BYTES);
		cr_assert_eq(slow[i]->touched_bytes, SPARE_BYTES, "%u", i);
	}
	for (unsigned i = 0; i < 4; i++)
		ds_fetch_buffer_unref(slow[i]);
	ds_fetch_pool_unref(pool);
}

Test(fetch_buffer, the_last_one_that_is_not_much_too_long_is_used_again)
{
	static const size_t lens[] = {DS_MIB(1), DS_MIB(6), DS_MIB(2), DS_KIB(512)};
	static const struct {
		size_t len_bytes, touched_bytes;
	} wants[] = {{DS_KIB(256), DS_KIB(512)},
		     {DS_MIB(1) - 1, DS_MIB(1)},
		     {DS_MIB(4), DS_MIB(2)},
		     {DS_KIB(256), DS_MIB(6)},
		     {DS_KIB(256), 0}};
	struct ds_fetch_buffer *buffers[DS_ARRAY_SIZE(wants)];
	struct ds_fetch_pool *pool;

	cr_assert_eq(ds_fetch_pool_new(SPARE_BYTES, MAX_BYTES, &pool), 0);
	receive_side_by_side(pool, lens, 4);
	for (unsigned i = 0; i < DS_ARRAY_SIZE(wants); i++) {
		buffers[i] = receive(pool, wants[i].len_bytes);
		cr_assert_eq(buffers[i]->touched_bytes, wants[i].touched_bytes, "%u", i);
	}
	for (unsigned i = 0; i < DS_ARRAY_SIZE(wants); i++)
		ds_fetch_buffer_unref(buffers[i]);
	ds_fetch_pool_unref(pool);
}
