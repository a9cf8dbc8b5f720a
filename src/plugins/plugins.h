// SPDX-License-Identifier: BSD-3-Clause
// The plugins that weft has. A new one is named here and in the table of registry.cc, in
// alphabetical order.
#pragma once

#include "disk/disk.h"

namespace weft::plugins {

extern const disk::PluginInfo data_plugin;     // data/data.cc
extern const disk::PluginInfo eval_plugin;     // eval/eval.cc
extern const disk::PluginInfo file_plugin;     // file/file.cc
extern const disk::PluginInfo memory_plugin;   // memory/memory.cc
extern const disk::PluginInfo null_plugin;     // null/null.cc
extern const disk::PluginInfo pattern_plugin;  // pattern/pattern.cc
extern const disk::PluginInfo sh_plugin;       // sh/sh.cc

}  // namespace weft::plugins
