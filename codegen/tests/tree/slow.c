/* SPDX-License-Identifier: GPL-2.0 */
#define PILUS_CONFIG "slow_config.h"
#include "lib/config.h"

__attribute__((section("tc"), used)) int slow_path(void *ctx)
{
	return CONFIG_IPV4 + *(volatile int *)ctx;
}

char _license[] __attribute__((section("license"), used)) = "GPL";
