#include <cstring>

#include "mcompress/base/checked.h"
#include "mcompress/base/error.h"
#include "mcompress/formats/gguf_write.h"

namespace mcompress {

namespace {

constexpr uint64_t kAlignment = 32;

uint64_t aligned(uint64_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

// Little-endian fields one after the other.
class Text {
 public:
  template <typename Number>
  void number(Number value) {
    char bytes[sizeof(value)];
    std::memcpy(bytes, &value, sizeof(value));
    text_.append(bytes, sizeof(value));
  }
  void string(const std::string& value) {
    number<uint64_t>(value.size());
    text_ += value;
  }
  std::string take() { return std::move(text_); }

  // The type of a value (ggml/docs/gguf.md), then the value.
  void field(uint32_t value) { typed(4, value); }
  void field(int32_t value) { typed(5, value); }
  void field(float value) { typed(6, value); }
  void field(bool value) { typed<uint8_t>(7, value ? 1 : 0); }
  void field(const std::string& value) {
    number<uint32_t>(8);
    string(value);
  }
  void field(const std::vector<int32_t>& values) { array(5, values); }
  void field(const std::vector<float>& values) { array(6, values); }
  void field(const std::vector<std::string>& values) {
    begin_array(8, values.size());
    for (const std::string& value : values) string(value);
  }

 private:
  template <typename Number>
  void typed(uint32_t type, Number value) {
    number(type);
    number(value);
  }
  void begin_array(uint32_t type, size_t count) {
    number<uint32_t>(9);
    number(type);
    number<uint64_t>(count);
  }
  template <typename Number>
  void array(uint32_t type, const std::vector<Number>& values) {
    begin_array(type, values.size());
    for (const Number value : values) number(value);
  }

  std::string text_;
};

uint64_t bytes_of(const GgufWriter::Entry& entry) {
  const GgufBlock block = block_of(entry.type);
  return count_elements(entry.shape).value() / static_cast<uint64_t>(block.values) * block.bytes;
}

}  // namespace

GgufWriter::GgufWriter(const std::vector<std::pair<std::string, GgufField>>& metadata,
                       std::vector<Entry> entries)
    : entries_(std::move(entries)) {
  constexpr size_t kLongestName = 63;
  Text text;
  text.number<uint32_t>(0x46554747);  // "GGUF"
  text.number<uint32_t>(3);
  text.number<uint64_t>(entries_.size());
  text.number<uint64_t>(metadata.size());
  for (const auto& [key, value] : metadata) {
    text.string(key);
    std::visit([&](const auto& field) { text.field(field); }, value);
  }
  uint64_t place = 0;
  for (const Entry& entry : entries_) {
    if (entry.name.size() > kLongestName)
      throw bad_data("tensor name '{}' is longer than the {} bytes that GGUF has for one", entry.name,
                     kLongestName);
    text.string(entry.name);
    text.number<uint32_t>(static_cast<uint32_t>(entry.shape.size()));
    for (auto size = entry.shape.rbegin(); size != entry.shape.rend(); ++size)
      text.number<uint64_t>(static_cast<uint64_t>(*size));
    text.number<uint32_t>(static_cast<uint32_t>(entry.type));
    text.number<uint64_t>(place);
    places_.push_back(place);
    place += aligned(bytes_of(entry));
  }
  places_.push_back(place);
  header_ = text.take();
  header_.resize(aligned(header_.size()), '\0');
  for (uint64_t& at : places_) at += header_.size();
}

uint64_t GgufWriter::file_bytes() const { return places_.back(); }

// The file has its whole length from the start, so that what lies between tensors is 0.
void GgufWriter::write_header(OutputFile& file) const {
  file.write(std::as_bytes(std::span(header_)));
  if (places_.back() > header_.size()) file.write_at(places_.back() - 1, std::as_bytes(std::span("", 1)));
}

void GgufWriter::write(OutputFile& file, size_t entry, uint64_t offset, Bytes bytes) const {
  file.write_at(places_[entry] + offset, bytes);
}

}  // namespace mcompress
