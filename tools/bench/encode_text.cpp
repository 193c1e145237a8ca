#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <limits>

#include "mcompress/data/tokenizer.h"

// encode_text FOLDER TEXT: prints how many tokens the text has, and the megabytes encoded in a second on one
// core, the fastest of five times.
int main(int count, char** arguments) {
  if (count != 3) return 2;
  const mcompress::Tokenizer tokenizer = mcompress::load_tokenizer(arguments[1]);
  std::ifstream file(arguments[2], std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  double best = std::numeric_limits<double>::infinity();
  size_t tokens = 0;
  for (int i = 0; i < 5; ++i) {
    const auto start = std::chrono::steady_clock::now();
    tokens = tokenizer.encode(text).size();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::printf("[%zu, %.6f]\n", tokens, static_cast<double>(text.size()) / 1e6 / best);
}
