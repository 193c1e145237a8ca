#pragma once

#include <string>

#include "command.h"
#include "mcompress/formats/checkpoint_files.h"

namespace mcompress::cli {

// What is to be printed about a language model.
enum class InspectOutput { kNothing, kText, kJson };

// Tells what the model of a Hugging Face folder or GGUF file is, without reading its weights.
void inspect_language(const std::string& model, ModelFormat format, InspectOutput output, Report& report);

}  // namespace mcompress::cli
