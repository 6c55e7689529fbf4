/* SPDX-License-Identifier: GPL-2.0 */
#pragma once
#define DOUBLE(x) ((x) * 2)

static inline int extra(int x)
{
	return DOUBLE(x);
}
