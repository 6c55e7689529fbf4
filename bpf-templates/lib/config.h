/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The only reader of the rendered names. FEATURE becomes CONFIG_<NAME>; a VALUE
 * becomes <NAME>_CONST, which holds the endpoint's own value in an own build
 * and is never used in a shared one, where the endpoint's row is read.
 */
#pragma once
#include <bpf.h>

typedef __u16 u16_value;
typedef __u32 u32_value;
typedef __be32 be32_value;
typedef __u8 mac_value[6];
typedef __u8 in6_value[16];

#define FEATURE(name, value) enum { CONFIG_##name = (value) };
#if CONFIG_OWN
#define VALUE(type, name, ...) static const type##_value name##_CONST __maybe_unused __aligned8 = __VA_ARGS__;
#else
#define VALUE(type, name, ...) static const type##_value name##_CONST __maybe_unused __aligned8 = { 0 };
#endif

#include PILUS_CONFIG

#undef FEATURE
#undef VALUE
