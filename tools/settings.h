#pragma once

#include <set>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "mcompress/report/report.h"

namespace mcompress::cli {

// The command line with what a recipe adds to it. Flags and MCOMPRESS_* win over the recipe.
struct Arguments {
  std::vector<std::string> all;       // as parsed: given and from the recipe
  std::set<std::string> from_config;  // long names of the options that the recipe set
};

// Gives each option of `command` its variable: --eval-data has MCOMPRESS_EVAL_DATA.
void name_variables(CLI::App& command);

// Adds the keys of the TOML files that --config and --data-config name; of a key in both, the recipe's
// value holds. Keys stand at the top or in a table named as the command; tables of other commands are
// passed over. Throws Error: 66 missing file; 78 unknown key, with the nearest known one, or a file
// that is no TOML.
Arguments add_config(const CLI::App& command, const std::vector<std::string>& given);

// Every option of the parsed command with its typed value and where it came from.
std::vector<Setting> collect_settings(const CLI::App& command, const std::vector<std::string>& given,
                                      const std::set<std::string>& from_config);

// ", did you mean 'x'" for the candidate nearest to `word`, or nothing where none is near.
std::string suggestion(const std::string& word, const std::vector<std::string>& candidates);

// Long names of the options of `command`, with their dashes.
std::vector<std::string> option_names(const CLI::App& command);

}  // namespace mcompress::cli
