// SPDX-License-Identifier: BSD-3-Clause
// struct nbdkit_plugin as its header has it. The fields for plugins of API 1 are called _pread_v1
// and so on here; those of API 2 have the plain names.
#pragma once

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>
