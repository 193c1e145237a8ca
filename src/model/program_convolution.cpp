#include <numeric>

#include "weight_use.h"

namespace mcompress {

namespace {

using torch::jit::Module;
using torch::jit::Node;
using torch::jit::Value;

// A constant, a list of constants, or an attribute of the module that holds one.
std::optional<c10::IValue> constant_of(const Value* value, const Module& owner) {
  if (auto constant = torch::jit::toIValue(value)) return constant;
  const Node* node = value->node();
  if (node->kind() == c10::prim::GetAttr && node->input(0)->node()->kind() == c10::prim::Param)
    return owner.attr(node->s(c10::attr::name));
  if (node->kind() != c10::prim::ListConstruct) return std::nullopt;
  c10::List<int64_t> list;
  for (const Value* item : node->inputs()) {
    const auto number = constant_of(item, owner);
    if (!number || !number->isInt()) return std::nullopt;
    list.push_back(number->toInt());
  }
  return list;
}

// One number for all dimensions is written once.
std::optional<std::vector<int64_t>> numbers_of(const Value* value, const Module& owner, size_t dimensions) {
  const auto constant = constant_of(value, owner);
  if (constant && constant->isInt()) return std::vector<int64_t>(dimensions, constant->toInt());
  if (!constant || !constant->isIntList()) return std::nullopt;
  std::vector<int64_t> numbers = constant->toIntVector();
  if (numbers.size() == 1) numbers.resize(dimensions, numbers[0]);
  return numbers;
}

// "same" and "valid" as numbers; what "same" adds on the right side alone is padded before.
bool name_padding(const std::string& name, at::IntArrayRef kernel, Convolution& conv) {
  conv.padding.assign(kernel.size(), 0);
  if (name != "same") return name == "valid";
  std::vector<int64_t> pad;
  bool uneven = false;
  for (size_t i = 0; i < kernel.size(); ++i) {
    const int64_t total = conv.dilation[i] * (kernel[i] - 1);
    conv.padding[i] = total / 2;
    pad.insert(pad.begin(), {0, total % 2});
    uneven = uneven || total % 2 != 0;
  }
  if (uneven) conv.pad = pad;
  return true;
}

// The padding before a convolution, as nn.Conv2d does it for modes other than zeros.
bool read_pad(const Value* input, const Module& owner, Convolution& conv) {
  const Node* node = input->node();
  const bool calls = node->kind() == c10::prim::CallFunction;
  const size_t first = calls ? 1 : 0;  // the function itself
  const auto sizes = constant_of(node->input(first + 1), owner);
  const auto mode = constant_of(node->input(first + 2), owner);
  const auto value = constant_of(node->input(first + 3), owner);
  const bool fits = sizes && sizes->isIntList() && mode && mode->isString() && value &&
                    (value->isNone() || value->isDouble());
  if (!fits || (value->isDouble() && value->toDouble() != 0)) return false;
  conv.pad = sizes->toIntVector();
  conv.pad_mode = mode->toStringRef();
  return true;
}

const Node* find_convolution(const torch::jit::Graph& graph) {
  for (const Node* node : graph.nodes()) {
    const std::string name = node->kind().toQualString();
    if (name == "aten::conv1d" || name == "aten::conv2d" || name == "aten::_convolution" ||
        name == "aten::_convolution_mode")
      return node;
  }
  return nullptr;
}

}  // namespace

bool is_pad(const Value* value) {
  const Node* node = value->node();
  return node->kind() == c10::aten::pad || (called_function(node) == "pad" && node->inputs().size() == 5);
}

namespace {

// Whether torch's own helper, or one that does the same, is all there is.
bool only_convolves(const torch::jit::Graph& helper, const Node* convolution) {
  if (helper.outputs().size() != 1 || helper.outputs()[0] != convolution->output()) return false;
  constexpr size_t kWeight = 2;  // of self, input, weight, bias
  if (convolution->input(1) != helper.inputs()[kWeight]) return false;
  for (const Node* node : helper.nodes()) {
    const bool plain = node->kind() == c10::prim::Constant || node->kind() == c10::prim::GetAttr ||
                       node->kind() == c10::prim::ListConstruct;
    if (!plain && node != convolution && node != convolution->input(0)->node()) return false;
  }
  const Value* input = convolution->input(0);
  if (is_pad(input)) input = input->node()->input(input->node()->kind() == c10::prim::CallFunction ? 1 : 0);
  return input == helper.inputs()[1];
}

}  // namespace

std::optional<Convolution> read_convolution(const Module& module, const torch::jit::Graph& method) {
  const auto helper = module.find_method("_conv_forward");
  const auto graph = helper ? helper->graph() : nullptr;
  const Node* node = find_convolution(helper ? *graph : method);
  if (node == nullptr || (helper && !only_convolves(*graph, node))) return std::nullopt;
  const at::IntArrayRef kernel = module.attr("weight").toTensor().sizes().slice(2);
  constexpr size_t kStride = 3, kPadding = 4, kDilation = 5;
  const size_t groups_at = node->kind() == c10::aten::_convolution ? 8 : 6;
  Convolution conv;
  const auto stride = numbers_of(node->input(kStride), module, kernel.size());
  const auto dilation = numbers_of(node->input(kDilation), module, kernel.size());
  const auto groups = constant_of(node->input(groups_at), module);
  if (!stride || !dilation || !groups || !groups->isInt()) return std::nullopt;
  conv.stride = *stride;
  conv.dilation = *dilation;
  conv.groups = groups->toInt();
  const auto named = constant_of(node->input(kPadding), module);
  if (named && named->isString()) {
    if (!name_padding(named->toStringRef(), kernel, conv)) return std::nullopt;
  } else {
    const auto padding = numbers_of(node->input(kPadding), module, kernel.size());
    if (!padding) return std::nullopt;
    conv.padding = *padding;
  }
  if (is_pad(node->input(0)) && (!conv.pad.empty() || !read_pad(node->input(0), module, conv)))
    return std::nullopt;
  return conv;
}

}  // namespace mcompress
