/*
 * What a collector does to a pack: its chunks go into a new one, a note says where they are, and it is gone.
 */
#pragma once

#include <stdbool.h>

#include "store/store.h"

/* `damage`: a byte of the new pack's first chunk is flipped. Asserts. */
void move_pack(struct ds_store *store, const char *key, bool damage);
