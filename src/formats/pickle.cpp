#include "mcompress/formats/pickle.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "mcompress/base/checked.h"
#include "mcompress/base/error.h"

namespace mcompress {

namespace {

using Kind = PickleValue::Kind;

constexpr size_t kMaxValues = 400'000;  // also of the stack and the memo: some 60 MB together
constexpr int kMaxDepth = 128;

// Opcodes of protocols 0 to 5 that PyTorch's writers use (Python's Lib/pickletools.py).
enum Opcode : unsigned char {
  kMark = '(',
  kStop = '.',
  kPop = '0',
  kPopMark = '1',
  kBinInt = 'J',
  kBinInt1 = 'K',
  kBinInt2 = 'M',
  kNone = 'N',
  kBinPersId = 'Q',
  kReduce = 'R',
  kBinUnicode = 'X',
  kBinString = 'T',
  kShortBinString = 'U',
  kAppend = 'a',
  kBuild = 'b',
  kGlobal = 'c',
  kEmptyDict = '}',
  kAppends = 'e',
  kBinGet = 'h',
  kLongBinGet = 'j',
  kEmptyList = ']',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kSetItem = 's',
  kTuple = 't',
  kEmptyTuple = ')',
  kSetItems = 'u',
  kBinFloat = 'G',
  kProto = 0x80,
  kNewObj = 0x81,
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kNewTrue = 0x88,
  kNewFalse = 0x89,
  kLong1 = 0x8a,
  kBinBytes = 'B',
  kShortBinBytes = 'C',
  kShortBinUnicode = 0x8c,
  kBinUnicode8 = 0x8d,
  kBinBytes8 = 0x8e,
  kStackGlobal = 0x93,
  kMemoize = 0x94,
  kFrame = 0x95,
  kInst = 'i',
  kObj = 'o',
  kLong4 = 0x8b,
  kDup = '2'
};

}  // namespace

// The stack machine. Every read is checked against the bytes left.
class PickleMachine {
 public:
  PickleMachine(Pickle& pickle, Bytes bytes, Pickle::Allow allow, const std::string& what)
      : pickle_(pickle), bytes_(bytes), allow_(allow), what_(what) {}

  void run() {
    while (!step(static_cast<Opcode>(take<uint8_t>()))) {
    }
    pickle_.root_ = pop();
    pickle_.size_bytes_ = at_;
    if (measure_height(pickle_.root_, 1) > kMaxDepth)
      fail(fmt::format("values nested deeper than {}", kMaxDepth));
  }

 private:
  [[noreturn]] void fail(const std::string& problem) const {
    throw bad_data("{}: {} (pickle byte {})", what_, problem, at_);
  }

  std::string_view take_text(uint64_t size) {
    if (!fits(at_, size, bytes_.size())) fail("the pickle is cut");
    const std::string_view text(reinterpret_cast<const char*>(bytes_.data()) + at_, size);
    at_ += size;
    return text;
  }

  template <typename T>
  T take() {
    T value{};
    std::memcpy(&value, take_text(sizeof(T)).data(), sizeof(T));
    return value;
  }

  std::string_view take_line() {
    const void* end =
        at_ < bytes_.size() ? std::memchr(bytes_.data() + at_, '\n', bytes_.size() - at_) : nullptr;
    if (end == nullptr) fail("the pickle is cut");
    const std::string_view line =
        take_text(static_cast<uint64_t>(static_cast<const std::byte*>(end) - (bytes_.data() + at_)));
    ++at_;
    return line;
  }

  void check_count(size_t count) const {
    if (count >= kMaxValues) fail(fmt::format("more than {} values", kMaxValues));
  }

  PickleValue* make(Kind kind) {
    check_count(pickle_.values_.size());
    PickleValue& value = pickle_.values_.emplace_back();
    value.kind = kind;
    return &value;
  }

  void push(PickleValue* value) {
    check_count(stack_.size());
    stack_.push_back(value);
  }
  void push_int(int64_t integer) {
    push(make(Kind::kInt));
    stack_.back()->integer = integer;
  }
  void push_text(std::string_view text) {
    push(make(Kind::kText));
    stack_.back()->text = text;
  }

  PickleValue* pop() {
    PickleValue* value = top();
    stack_.pop_back();
    return value;
  }

  PickleValue* top() {
    if (stack_.size() <= (marks_.empty() ? 0 : marks_.back())) fail("the pickle's stack is empty");
    return stack_.back();
  }

  // Everything above the last mark.
  std::vector<const PickleValue*> pop_to_mark() {
    if (marks_.empty()) fail("the pickle lacks a mark");
    std::vector<const PickleValue*> items(stack_.begin() + static_cast<ptrdiff_t>(marks_.back()),
                                          stack_.end());
    stack_.resize(marks_.back());
    marks_.pop_back();
    return items;
  }

  void push_tuple(size_t size) {
    PickleValue* tuple = make(Kind::kTuple);
    tuple->items.resize(size);
    for (size_t i = size; i-- > 0;) tuple->items[i] = pop();
    push(tuple);
  }

  void push_global(std::string_view module, std::string_view name) {
    PickleValue* global = make(Kind::kGlobal);
    global->text = pickle_.texts_.emplace_back(fmt::format("{}.{}", module, name));
    if (!allow_(global->text)) {
      fail(
          fmt::format("it names '{}', which is not on the list of harmless globals, so nothing was loaded; "
                      "save the weights alone, as a state dict or safetensors",
                      global->text));
    }
    push(global);
  }

  // A call or an object of `callee` with the arguments on top; nothing is called.
  void push_call() {
    const PickleValue* arguments = pop();
    const PickleValue* callee = pop();
    if (callee->kind != Kind::kGlobal || arguments->kind != Kind::kTuple)
      fail("a call of something that is no global");
    PickleValue* call = make(Kind::kCall);
    call->callee = callee;
    call->items = arguments->items;
    push(call);
  }

  void append(const std::vector<const PickleValue*>& items) {
    PickleValue* list = top();
    if (list->kind != Kind::kList) fail("an append to something that is no list");
    list->items.insert(list->items.end(), items.begin(), items.end());
  }

  void set_items(const std::vector<const PickleValue*>& items) {
    PickleValue* dict = top();
    if (dict->kind != Kind::kDict && dict->kind != Kind::kCall)
      fail("an item set in something that is no dict");
    if (items.size() % 2 != 0) fail("a key without a value");
    for (size_t i = 0; i < items.size(); i += 2) dict->entries.emplace_back(items[i], items[i + 1]);
  }

  void mark() {
    if (marks_.size() >= kMaxDepth) fail(fmt::format("values nested deeper than {}", kMaxDepth));
    marks_.push_back(stack_.size());
  }

  void put(uint64_t index) {
    check_count(memo_.size());
    memo_[index] = top();
  }
  void get(uint64_t index) {
    const auto found = memo_.find(index);
    if (found == memo_.end()) fail("the pickle refers to a value that it never stored");
    push(found->second);
  }

  void push_long(uint64_t size) {
    const std::string_view digits = take_text(size);
    if (size > sizeof(int64_t)) return push_int(INT64_MIN);
    uint64_t value = 0;
    std::memcpy(&value, digits.data(), size);
    const bool negative = size > 0 && (static_cast<unsigned char>(digits.back()) & 0x80U) != 0;
    if (negative && size < sizeof(int64_t)) value |= ~uint64_t{0} << (8 * size);
    push_int(static_cast<int64_t>(value));
  }

  void push_float() {
    const auto bits = __builtin_bswap64(take<uint64_t>());
    push(make(Kind::kFloat));
    std::memcpy(&stack_.back()->number, &bits, sizeof(bits));
  }

  void push_bool(bool value) {
    push(make(Kind::kBool));
    stack_.back()->integer = value ? 1 : 0;
  }

  void push_stack_global() {
    const PickleValue* name = pop();
    const PickleValue* module = pop();
    if (name->kind != Kind::kText || module->kind != Kind::kText) fail("a global without a name");
    push_global(module->text, name->text);
  }

  void push_storage() {
    const PickleValue* id = pop();
    if (id->kind != Kind::kTuple) fail("a persistent id that is no tuple");
    PickleValue* storage = make(Kind::kStorage);
    storage->items = id->items;
    push(storage);
  }

  void build() {
    const PickleValue* state = pop();
    PickleValue* object = top();
    if (object->kind != Kind::kCall) fail("a state for something that is no object");
    object->state = state;
  }

  void global_line() {
    const std::string_view module = take_line();
    push_global(module, take_line());
  }

  // Executes one opcode; true at the end of the pickle.
  bool step(Opcode opcode) {
    switch (opcode) {
      case kStop: return true;
      case kProto:
        if (take<uint8_t>() > 5) fail("a pickle protocol above 5");
        break;
      case kFrame: take<uint64_t>(); break;
      case kMark: mark(); break;
      case kPop: pop(); break;
      case kPopMark: pop_to_mark(); break;
      case kNone: push(make(Kind::kNone)); break;
      case kNewTrue: push_bool(true); break;
      case kNewFalse: push_bool(false); break;
      case kBinInt: push_int(take<int32_t>()); break;
      case kBinInt1: push_int(take<uint8_t>()); break;
      case kBinInt2: push_int(take<uint16_t>()); break;
      case kLong1: push_long(take<uint8_t>()); break;
      case kBinFloat: push_float(); break;
      case kBinUnicode:
      case kBinString:
      case kBinBytes: push_text(take_text(take<uint32_t>())); break;
      case kShortBinString:
      case kShortBinBytes:
      case kShortBinUnicode: push_text(take_text(take<uint8_t>())); break;
      case kBinUnicode8:
      case kBinBytes8: push_text(take_text(take<uint64_t>())); break;
      case kEmptyTuple: push_tuple(0); break;
      case kTuple1: push_tuple(1); break;
      case kTuple2: push_tuple(2); break;
      case kTuple3: push_tuple(3); break;
      case kTuple: {
        auto items = pop_to_mark();
        PickleValue* tuple = make(Kind::kTuple);
        tuple->items = std::move(items);
        push(tuple);
        break;
      }
      case kEmptyList: push(make(Kind::kList)); break;
      case kEmptyDict: push(make(Kind::kDict)); break;
      case kAppend: {
        const PickleValue* item = pop();
        append({item});
        break;
      }
      case kAppends: {
        const auto items = pop_to_mark();
        append(items);
        break;
      }
      case kSetItem: {
        const PickleValue* value = pop();
        const PickleValue* key = pop();
        set_items({key, value});
        break;
      }
      case kSetItems: {
        const auto items = pop_to_mark();
        set_items(items);
        break;
      }
      case kGlobal: global_line(); break;
      case kStackGlobal: push_stack_global(); break;
      case kReduce:
      case kNewObj: push_call(); break;
      case kBuild: build(); break;
      case kBinPersId: push_storage(); break;
      case kBinPut: put(take<uint8_t>()); break;
      case kLongBinPut: put(take<uint32_t>()); break;
      case kMemoize: put(memo_.size()); break;
      case kBinGet: get(take<uint8_t>()); break;
      case kLongBinGet: get(take<uint32_t>()); break;
      default: fail(fmt::format("opcode 0x{:02x} is not allowed", static_cast<unsigned>(opcode)));
    }
    return false;
  }

  // Later code walks the values recursively, so their nesting has a limit; cycles exceed it too.
  int measure_height(const PickleValue* value, int depth) {
    if (value == nullptr) return 0;
    if (depth > kMaxDepth) fail(fmt::format("values nested deeper than {}", kMaxDepth));
    if (value->height > 0) return value->height;
    int height = measure_height(value->state, depth + 1);
    for (const PickleValue* item : value->items) height = std::max(height, measure_height(item, depth + 1));
    for (const auto& [key, item] : value->entries) {
      height = std::max({height, measure_height(key, depth + 1), measure_height(item, depth + 1)});
    }
    value->height = height + 1;
    return value->height;
  }

  Pickle& pickle_;
  Bytes bytes_;
  Pickle::Allow allow_;
  const std::string& what_;
  uint64_t at_ = 0;
  std::vector<PickleValue*> stack_;
  std::vector<size_t> marks_;
  std::map<uint64_t, PickleValue*> memo_;
};

Pickle::Pickle(Bytes bytes, Allow allow, const std::string& what) {
  PickleMachine(*this, bytes, allow, what).run();
}

}  // namespace mcompress
