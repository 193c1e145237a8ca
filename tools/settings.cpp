#include "settings.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <optional>

#include "mcompress/base/error.h"

namespace mcompress::cli {

namespace {

std::string variable_of(const CLI::Option& option) {
  std::string name = "MCOMPRESS_" + option.get_lnames().front();
  std::transform(name.begin(), name.end(), name.begin(),
                 [](char c) { return c == '-' ? '_' : static_cast<char>(std::toupper(c)); });
  return name;
}

bool is_flag(const CLI::Option& option) { return option.get_expected_max() == 0; }

// True where the command line names the option: --name, --name=value or -n.
bool is_given(const CLI::Option& option, const std::vector<std::string>& given) {
  const auto names = [&](const std::string& word) {
    const std::string head = word.substr(0, word.find('='));
    const auto is_long = [&](const std::string& name) { return head == "--" + name; };
    const auto is_short = [&](const std::string& name) {
      return word.starts_with("-" + name) && !word.starts_with("--");
    };
    return std::any_of(option.get_lnames().begin(), option.get_lnames().end(), is_long) ||
           std::any_of(option.get_snames().begin(), option.get_snames().end(), is_short);
  };
  return std::any_of(given.begin(), given.end(), names);
}

// The other name of a switch that has one for on and one for off.
std::string opposite_of(const CLI::Option& option, const std::string& name) {
  const std::vector<std::string>& negative = option.get_fnames();
  const auto is_negative = [&](const std::string& n) {
    return std::find(negative.begin(), negative.end(), n) != negative.end();
  };
  for (const std::string& other : option.get_lnames()) {
    if (!negative.empty() && is_negative(other) != is_negative(name)) return other;
  }
  return "";
}

bool is_in_environment(const CLI::Option& option) {
  return !option.get_envname().empty() && std::getenv(option.get_envname().c_str()) != nullptr;
}

// The value of an option in the raw command line or the environment, before it is parsed.
std::optional<std::string> raw_value(const CLI::App& command, const std::vector<std::string>& given,
                                     const std::string& name) {
  for (size_t i = 0; i < given.size(); ++i) {
    if (given[i] == "--" + name && i + 1 < given.size()) return given[i + 1];
    if (given[i].starts_with("--" + name + "=")) return given[i].substr(name.size() + 3);
  }
  const CLI::Option* option = command.get_option_no_throw("--" + name);
  if (option == nullptr || !is_in_environment(*option)) return std::nullopt;
  return std::getenv(option->get_envname().c_str());
}

std::vector<CLI::ConfigItem> read_toml(const std::string& path) {
  constexpr uintmax_t kMaxBytes = uintmax_t{1} << 20;
  if (!std::filesystem::exists(path)) throw error(Exit::kNoInput, "configuration '{}' does not exist", path);
  if (!std::filesystem::is_regular_file(path))
    throw error(Exit::kConfig, "configuration '{}' is no regular file", path);
  if (std::filesystem::file_size(path) > kMaxBytes)
    throw error(Exit::kConfig, "configuration '{}' has more than {} bytes", path, kMaxBytes);
  try {
    return CLI::ConfigTOML().from_file(path);
  } catch (const std::exception& failure) {
    throw error(Exit::kConfig, "'{}' is not TOML: {}", path, failure.what());
  }
}

// True for a key in a table that is named as another command, which a shared recipe may hold.
bool is_for_another_command(const CLI::App& command, const CLI::ConfigItem& item) {
  if (item.parents.size() != 1 || item.parents[0] == command.get_name()) return false;
  const auto commands = command.get_parent()->get_subcommands([](const CLI::App*) { return true; });
  return std::any_of(commands.begin(), commands.end(),
                     [&](const CLI::App* other) { return other->get_name() == item.parents[0]; });
}

// What a file of settings may hold, and which of the settings were made before it.
struct ConfigFile {
  std::string path;
  std::vector<std::string> keys;  // all that the command has where empty
  std::set<std::string> made;
};

void add_item(const CLI::App& command, const CLI::ConfigItem& item, const ConfigFile& file,
              const std::vector<std::string>& given, Arguments& arguments) {
  if (item.name == "++" || item.name == "--") return;  // table begins and ends
  if (is_for_another_command(command, item)) return;
  const bool here =
      item.parents.empty() || (item.parents.size() == 1 && item.parents[0] == command.get_name());
  const bool allowed =
      file.keys.empty() || std::find(file.keys.begin(), file.keys.end(), item.name) != file.keys.end();
  const CLI::Option* option = here && allowed ? command.get_option_no_throw("--" + item.name) : nullptr;
  const std::string& path = file.path;
  if (option == nullptr || item.name == "config" || item.name == "help") {
    const std::vector<std::string> known = file.keys.empty() ? option_names(command) : file.keys;
    throw error(Exit::kConfig, "'{}' has the unknown key '{}'{}", path, item.fullname(),
                suggestion((file.keys.empty() ? "--" : "") + item.name, known));
  }
  const bool made = file.made.contains(option->get_lnames().front());
  if (made || is_given(*option, given) || is_in_environment(*option)) return;
  arguments.from_config.insert(option->get_lnames().front());
  for (const std::string& value : item.inputs) {
    if (!is_flag(*option)) {
      arguments.all.push_back("--" + item.name + "=" + value);
    } else if (value == "true") {
      arguments.all.push_back("--" + item.name);
    } else if (value == "false") {
      // A switch that is on by default has a name that turns it off.
      const std::string opposite = opposite_of(*option, item.name);
      if (!opposite.empty()) arguments.all.push_back("--" + opposite);
    } else {
      throw error(Exit::kConfig, "'{}' sets '{}' to '{}'; true or false is allowed", path, item.name, value);
    }
  }
}

// An option's text as the type that its help announces.
Setting::Value typed(const CLI::Option& option, const std::vector<std::string>& texts) {
  if (is_flag(option)) return !texts.empty() && texts.back() != "false";
  if (option.get_items_expected_max() > 1) {
    std::vector<double> numbers(texts.size());
    for (size_t i = 0; i < texts.size(); ++i) {
      if (!option.get_type_name().starts_with("FLOAT") || !CLI::detail::lexical_cast(texts[i], numbers[i]))
        return texts;
    }
    return numbers;
  }
  if (texts.empty()) return {};
  const std::string text = texts.back();
  const std::string type = option.get_type_name();
  int64_t integer = 0;
  double number = 0;
  if ((type.starts_with("INT") || type.starts_with("UINT")) && CLI::detail::lexical_cast(text, integer))
    return integer;
  if (type.starts_with("FLOAT") && CLI::detail::lexical_cast(text, number)) return number;
  return text;
}

size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

}  // namespace

void name_variables(CLI::App& command) {
  for (CLI::Option* option : command.get_options()) {
    if (!option->get_lnames().empty() && option != command.get_help_ptr())
      option->envname(variable_of(*option));
  }
}

Arguments add_config(const CLI::App& command, const std::vector<std::string>& given) {
  Arguments arguments{given, {}};
  const auto add_file = [&](const std::string& path, std::vector<std::string> keys) {
    const ConfigFile file{path, std::move(keys), arguments.from_config};
    for (const CLI::ConfigItem& item : read_toml(path)) add_item(command, item, file, given, arguments);
  };
  if (const auto recipe = raw_value(command, given, "config")) add_file(*recipe, {});
  // The recipe may name the data's own settings, and wins over them.
  if (const auto data = raw_value(command, arguments.all, "data-config"))
    add_file(*data, {"scale", "mean", "std", "layout", "split", "limit"});
  return arguments;
}

std::vector<Setting> collect_settings(const CLI::App& command, const std::vector<std::string>& given,
                                      const std::set<std::string>& from_config) {
  std::vector<Setting> settings;
  for (const CLI::Option* option : command.get_options()) {
    if (option->get_lnames().empty() || option == command.get_help_ptr()) continue;
    const std::string& long_name = option->get_lnames().front();
    std::vector<std::string> texts;
    if (option->count() > 0) texts = option->reduced_results();
    if (texts.empty() && !option->get_default_str().empty() && option->get_items_expected_max() <= 1) {
      texts = {option->get_default_str()};
    }
    std::string source = "default";
    if (option->count() > 0)
      source = from_config.contains(long_name)                           ? "config"
               : is_in_environment(*option) && !is_given(*option, given) ? "environment"
                                                                         : "flag";
    std::string name = long_name;
    std::replace(name.begin(), name.end(), '-', '_');
    settings.push_back({name, typed(*option, texts), source});
  }
  return settings;
}

std::string suggestion(const std::string& word, const std::vector<std::string>& candidates) {
  std::string best;
  size_t best_distance = std::max<size_t>(2, word.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    const size_t distance = edit_distance(word, candidate);
    if (distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best.empty() ? "" : fmt::format(", did you mean '{}'", best);
}

std::vector<std::string> option_names(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

}  // namespace mcompress::cli
