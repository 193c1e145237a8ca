#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <variant>

#include "expression.h"
#include "pre_tokenizer.h"

namespace mcompress {

// A step that cuts text into pieces, between which no token reaches. `at_start`: the text begins where the
// whole text does. The names are those of the tokenizers library.
using SplitStep = std::function<void(std::string_view text, bool at_start, const UsePiece& use)>;

// A pattern that is run as code; a space may be put in front first.
SplitStep split_by_pattern(Split split, bool prefix_space = false);

// What becomes of the places that are found.
enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

// `pattern`: a text, or an expression. `invert`: the pieces between matches are what is found.
SplitStep split_by_expression(std::variant<std::string, Expression> pattern, Behavior behavior, bool invert);

SplitStep split_punctuation(Behavior behavior);
SplitStep split_white_space();  // WhitespaceSplit: pieces without white space
SplitStep split_words();        // Whitespace: \w+|[^\w\s]+
SplitStep split_for_bert();     // pieces without white space, each punctuation alone

// White space becomes `replacement`, which begins a piece; it may be put in front first.
enum class Prepend { kNever, kFirst, kAlways };
SplitStep metaspace(std::string replacement, Prepend prepend, bool split);

}  // namespace mcompress
