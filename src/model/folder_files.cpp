#include "folder_files.h"

#include "mcompress/base/error.h"
#include "mcompress/base/mapped_file.h"
#include "mcompress/base/text.h"
#include "mcompress/formats/json.h"

namespace mcompress {

namespace fs = std::filesystem;

nlohmann::ordered_json read_ordered(const std::string& path) {
  const MappedFile file(path);
  const std::string_view text = text_of(file.bytes());
  parse_json(text, fmt::format("'{}'", path));
  return nlohmann::ordered_json::parse(text);
}

void write_text(const std::string& path, const std::string& text) {
  OutputFile file(path, true);
  file.write(std::as_bytes(std::span(text)));
  file.commit();
}

std::vector<fs::path> files_to_copy(const std::string& source,
                                    const std::map<std::string, std::string>& texts) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(source)) {
    const std::string name = entry.path().filename().string();
    if (entry.is_regular_file() && !name.ends_with(".safetensors") && !texts.contains(name))
      files.push_back(entry.path());
  }
  return files;
}

void copy_files(const std::vector<fs::path>& paths, const OutputFolder& folder) {
  for (const fs::path& path : paths) {
    OutputFile file(folder.path_of(path.filename().string()), true);
    file.write(MappedFile(path.string()).bytes());
    file.commit();
  }
}

}  // namespace mcompress
