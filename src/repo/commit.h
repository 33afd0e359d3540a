/*
 * Commit: makes a version of a directory and puts it on a branch.
 *
 * Order (design, "Commit order"): packs, manifest packs, record, a look that each is there with its size, ref entry,
 * index, hint. A crash at any point leaves only unreachable objects. A writer that lost the race commits the same tree
 * again with the winner as its parent. All times are the store's.
 *
 * Of a source that changes meanwhile each file is as it was at one moment, though not all at the same. Read again, up to three times, is
 * what changed while it was read; what somebody has open for writing is read when it has rested, or only grown, for 2 s (where leases,
 * fcntl(2), do not tell who has: any file that is younger than 2 s). Not seen are a write() that takes longer, and stores through a
 * mapping into pages that are dirty already.
 *
 * Blocks; uses its own threads. One call at a time for an options struct. Errors besides those of store and disk:
 * -DS_E_SOURCE_REFUSED (special or unreadable files, source inside the repository or the other way round, names that cannot be kept),
 * -DS_E_SOURCE_CHANGED (a file that did not stand still, or vanished), -DS_E_CONFLICT (options.parent is no longer the head), -DS_E_TAKEN
 * (the name of the tag or of the new branch), -DS_E_LATE (half a grace passed before the ref entry, in each of 4 starts; nothing was
 * published), -DS_E_INTERRUPTED.
 */
#ifndef DS_REPO_COMMIT_H
#define DS_REPO_COMMIT_H

#include "repo/repo.h"
#include "repo/record.h"

struct ds_commit_progress { /* snapshot; totals are what is known so far */
	const char *phase;  /* "scanning", "reading", "uploading", "publishing" */
	uint64_t files_n, files_total_n;
	uint64_t bytes, bytes_total;
	uint64_t uploaded_bytes;
};

struct ds_commit_options {
	const char *source;  /* directory */
	const char *branch;  /* NULL: the default branch; a new one must have no tag's name */
	const char *tag;     /* NULL: none; must be free, also of branches */
	const char *message; /* NULL: "" */
	const char *author;  /* NULL: user@host is NOT used (nothing of the host): "" */
	const char *parent;  /* selector; NULL: whatever the head is */
	const char *const *
		excludes; /* fnmatch patterns (FNM_PATHNAME; without '/' they match names anywhere), NULL-terminated; or NULL */
	bool allow_empty, mtime;
	bool skip_special, skip_unreadable;
	bool rehash, trust_mtime; /* with rehash nothing is trusted */
	/* Stat cache and temporary files (the manifest, and some 550 bytes for each file of the source). NULL: $XDG_CACHE_HOME/dsfs, or
	 * /var/cache/dsfs for root; "": none kept. */
	const char *state_dir;
	/* For chunks and packs in flight, and an eighth more for tables of packs; 0: 512 MiB */
	uint64_t memory_bytes;
	unsigned jobs_n;    /* readers; 0: CPUs + 2 */
	uint32_t page_size; /* of a first manifest; 0: the default */
	void (*progress)(
		void *ctx,
		const struct ds_commit_progress *
			progress); /* called about 5 times a second, from one thread; may be NULL */
	void (*warn)(
		void *ctx, const char *path,
		const char *
			reason); /* each rejected or excluded-by-error path; path as it is: any bytes */
	void (*anew)(
		void *ctx); /* half a grace has passed: it starts anew, and warns of what it warned of again; may be NULL */
	void (*locked)(
		void *ctx); /* once, if another process has locked the directory store and is waited for; may be NULL */
	void *ctx;
	/* Becomes non-zero: stop soon; may be NULL. Where the store may stand still, the same as its own. */
	const volatile int *interrupted;
};

struct ds_commit_result {
	bool unchanged;	 /* no new version was made; version is the head's */
	uint64_t number; /* of the branch entry */
	struct ds_digest version;
	struct ds_digest fingerprint;
	struct ds_version_totals totals;
	uint64_t added_n, changed_n, removed_n; /* files and links, against the parent */
	uint64_t uploaded_data_bytes, uploaded_manifest_bytes; /* stored bytes of packs */
	uint64_t
		reused_bytes; /* raw bytes found in packs that were already there, other than by the same path */
	uint64_t read_bytes; /* of files that were read */
	unsigned races_n;    /* times that another writer was first */
	/* The parent's manifest is damaged, or (with rehash) names chunks that are lost: the new one was made without it, and all counts
	 * as added. */
	bool parent_is_damaged;
	struct ds_digest parent;
};

int ds_commit(struct ds_repo *repo, const struct ds_commit_options *options,
	      struct ds_commit_result *ret_result, struct ds_diag *reterr_diag);

/* What can be told before the repository at `url` is made for a commit with these options: whether names and texts are well-formed,
 * and `source` is a directory in its place. Errors as ds_commit's. */
int ds_commit_check(const struct ds_commit_options *options, const char *url,
		    struct ds_diag *reterr_diag);

/* Fingerprint of a directory as commit would compute it, without a repository. The tree lies in a temporary file in $TMPDIR or /var/tmp,
 * some 350 bytes for each file; in memory where none can be made. */
int ds_fingerprint_directory(const struct ds_commit_options *options,
			     struct ds_digest *ret_fingerprint,
			     struct ds_version_totals *ret_totals, struct ds_diag *reterr_diag);

#endif
