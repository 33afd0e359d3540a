/*
 * Whether passthrough can be had, as doctor says it before any mount (fs_kernel.c).
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>

#include "fs/fs_internal.h"
#include "test_leaks.h"

TestSuite(kernel, .fini = test_leaks_abort);

#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)

Test(kernel, passthrough_needs_linux_6_9)
{
	static const char *const without[] = {
		"", "?", "5.15.0-91-generic", "6", "6.1.0-18-amd64", "6.8.12", "6.8", "4.19.0"};
	static const char *const with[] = {"6.9.0",   "6.9.0-rc1", "6.9", "6.10.3",
					   "6.18.44", "7.0.0-rc2", "10.1"};

	for (size_t i = 0; i < DS_ARRAY_SIZE(without); i++)
		cr_assert_str_eq(fs_kernel_lack(FS_ADMIN_MACHINE, NULL, without[i]),
				 "passthrough needs Linux 6.9", "\"%s\"", without[i]);
	for (size_t i = 0; i < DS_ARRAY_SIZE(with); i++)
		cr_assert_null(fs_kernel_lack(FS_ADMIN_MACHINE, NULL, with[i]), "\"%s\"", with[i]);
}

Test(kernel, passthrough_needs_a_privilege_on_any_linux)
{
	cr_assert(strstr(fs_kernel_lack(FS_ADMIN_NONE, NULL, "6.9.0"), "CAP_SYS_ADMIN: "));
	cr_assert(strstr(fs_kernel_lack(FS_ADMIN_NONE, NULL, "6.1.0"), "CAP_SYS_ADMIN: "));
	cr_assert(strstr(fs_kernel_lack(FS_ADMIN_NAMESPACE, NULL, "6.9.0"), "user namespace"));
}

#else

Test(kernel, passthrough_needs_a_newer_libfuse)
{
	cr_assert(strstr(fs_kernel_lack(FS_ADMIN_MACHINE, NULL, "6.18.0"), "libfuse 3.17"));
}

#endif

/* A read that is answered short ends the file for the kernel: what it may ask for is what is answered. As libfuse has it with pages
 * of 4 and 64 KiB. */
Test(kernel, no_read_is_larger_than_what_is_answered)
{
	static const unsigned sizes[][2] = {{256u * 4096, 256u * 4096},
					    {256u * 65536, FS_READ_MAX}};

	for (size_t i = 0; i < DS_ARRAY_SIZE(sizes); i++) {
		struct ds_fs fs = {.options.mode = DS_FS_CLASSIC};
		struct fuse_conn_info conn = {.max_write = sizes[i][0]};

		fs_kernel_init(&fs, &conn);
		cr_assert_eq(conn.max_write, sizes[i][1]);
	}
}

Test(kernel, what_is_said_of_this_kernel_is_of_this_kernel)
{
	const char *said = ds_fs_no_passthrough(NULL), *lack;
	struct utsname name;

	cr_assert_eq(uname(&name), 0);
	lack = fs_kernel_lack(!said || !strstr(said, "CAP_SYS_ADMIN") ? FS_ADMIN_MACHINE
			      : strstr(said, "user namespace")	      ? FS_ADMIN_NAMESPACE
								      : FS_ADMIN_NONE,
			      NULL, name.release);
	cr_assert_eq(!said, !lack);
	if (said)
		cr_assert_str_eq(said, lack);
}
