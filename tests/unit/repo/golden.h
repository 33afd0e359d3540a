/*
 * The golden repository (tests/golden), as a copy in memory that a test may damage.
 */
#pragma once

#include "repo/repo.h"

/* All objects of tests/golden/NAME in a new store in memory. */
struct ds_store *golden_load(const char *name);
