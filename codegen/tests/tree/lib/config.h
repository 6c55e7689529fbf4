/* SPDX-License-Identifier: GPL-2.0 */
#pragma once
#include <linux/types.h>
typedef __u16 u16;
typedef __u32 u32;
typedef __u32 be32;
typedef struct { __u8 b[6]; } mac;
typedef struct { __u8 b[16]; } in6;
#define FEATURE(name, on) enum { CONFIG_##name = on };
#if CONFIG_OWN
#define VALUE(type, name, ...) static const type name __attribute__((unused)) = __VA_ARGS__;
#else
#define VALUE(type, name, ...)
#endif
#include PILUS_CONFIG
