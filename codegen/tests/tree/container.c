/* SPDX-License-Identifier: GPL-2.0 */
#define PILUS_CONFIG "container_config.h"
#include "lib/config.h"
#include "lib/extra.h"
#include "custom/hook.h"
#include <abi.h>

__attribute__((section("tc"), used)) int from_container(void *ctx)
{
	int sum = CONFIG_IPV4 + extra(CONFIG_EVENTS);
#if CONFIG_OWN
	sum += EP_MTU + EP_MAC.b[0] + (int)EP_SLOT;
#else
	sum += *(volatile int *)ctx;
#endif
	return sum;
}

char _license[] __attribute__((section("license"), used)) = "GPL";
