#include "mcompress/measure/perplexity.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "mcompress/base/clock.h"
#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"
#include "mcompress/base/progress.h"
#include "mcompress/data/text.h"
#include "mcompress/model/decoder.h"

namespace mcompress {

namespace {

// Windows whose hidden states are held at once; each block is read once for all of them.
int64_t windows_together(const Decoder& model, const TokenWindows& windows) {
  constexpr int64_t kBytes = int64_t{64} << 20, kFloat = 4;
  return std::max<int64_t>(1, kBytes / (windows.ids.size(1) * model.config().width * kFloat));
}

// One model among those that are run over the same windows.
struct Runner {
  const Decoder& model;
  double seconds = 0;
  at::Tensor hidden = {};  // of the windows at hand

  // Log-probabilities [end - begin, vocabulary] after tokens [begin, end) of a window.
  at::Tensor scores(int64_t window, int64_t begin, int64_t end) {
    const auto start = Clock::now();
    const at::Tensor result = model.logits(hidden[window].slice(0, begin, end)).log_softmax(1);
    seconds += seconds_since(start);
    return result;
  }
  void run(const at::Tensor& ids, int64_t first_window, Progress& progress) {
    const auto start = Clock::now();
    hidden = model.embed(ids);
    for (int64_t block = 0; block < model.config().blocks; ++block) {
      model.run_block(block, hidden, first_window);
      progress.step(ids.size(0));
    }
    seconds += seconds_since(start);
  }
};

// Runs all models over all windows, a group of windows at a time. `use` is called for some of the predicted
// tokens of a window: the runners give scores(window, begin, end), of which `targets` are the tokens that
// come next.
void for_tokens(
    std::vector<Runner>& runners, const TokenWindows& windows,
    const std::function<void(int64_t window, int64_t begin, int64_t end, const at::Tensor& targets)>& use,
    const std::function<void(int64_t predicted)>& end_window) {
  const c10::InferenceMode guard;
  const int64_t count = windows.ids.size(0), last = windows.ids.size(1) - 1;
  int64_t together = count, blocks = 0;
  for (const Runner& runner : runners) {
    together = std::min(together, windows_together(runner.model, windows));
    blocks += runner.model.config().blocks;
  }
  Progress progress("evaluate", count * blocks);
  for (int64_t first = 0; first < count; first += together) {
    const at::Tensor ids = windows.ids.slice(0, first, std::min(first + together, count));
    for (Runner& runner : runners) runner.run(ids, first, progress);
    for (int64_t i = 0; i < ids.size(0); ++i) {
      const int64_t predicted = windows.count(first + i);
      constexpr int64_t kTokens = 128;  // whose logits are held at once
      for (int64_t begin = last - predicted; begin < last; begin += kTokens) {
        check_interrupt();
        const int64_t end = std::min(begin + kTokens, last);
        use(i, begin, end, ids[i].slice(0, begin + 1, end + 1));
      }
      end_window(predicted);
    }
  }
}

// Cross entropies by window.
class LossSum {
 public:
  void add(const at::Tensor& log_probabilities, const at::Tensor& targets) {
    sum_ -= log_probabilities.gather(1, targets.unsqueeze(1)).to(at::kDouble).sum().item<double>();
    if (!std::isfinite(sum_))
      throw bad_data("the model's logits for window {} are not finite; check its final norm and head",
                     means_.size() + 1);
  }
  void end_window(int64_t count) {
    total_ += sum_;
    tokens_ += count;
    means_.push_back(sum_ / static_cast<double>(count));
    sum_ = 0;
  }
  TextLoss result(const TokenWindows& windows, double seconds) const {
    TextLoss loss{windows.ids.size(0),
                  windows.ids.size(1),
                  tokens_,
                  total_ / static_cast<double>(tokens_),
                  {},
                  seconds};
    if (!std::isfinite(loss.perplexity()))
      throw bad_data("the model's loss is {:.4g} nats a token, beyond any perplexity", loss.nats);
    const auto count = static_cast<double>(means_.size());
    if (means_.size() < 2) return loss;
    double mean = 0, squares = 0;
    for (const double value : means_) mean += value / count;
    for (const double value : means_) squares += (value - mean) * (value - mean);
    loss.nats_error = std::sqrt(squares / (count - 1) / count);
    return loss;
  }

 private:
  double sum_ = 0, total_ = 0;
  int64_t tokens_ = 0;
  std::vector<double> means_;
};

// Of sorted values, the one below which a share of them lies.
double percentile(const std::vector<double>& sorted, double share) {
  return sorted[static_cast<size_t>(std::ceil(share * static_cast<double>(sorted.size()))) - 1];
}

}  // namespace

double TextLoss::perplexity() const { return std::exp(nats); }

std::optional<double> TextLoss::perplexity_error() const {
  return nats_error ? std::optional(perplexity() * *nats_error) : std::nullopt;
}

TextLoss measure_text(const Decoder& model, const TokenWindows& windows) {
  std::vector<Runner> runners = {{model}};
  LossSum sum;
  for_tokens(
      runners, windows,
      [&](int64_t window, int64_t begin, int64_t end, const at::Tensor& targets) {
        sum.add(runners[0].scores(window, begin, end), targets);
      },
      [&](int64_t predicted) { sum.end_window(predicted); });
  return sum.result(windows, runners[0].seconds);
}

TextComparison compare_text(const Decoder& model, const Decoder& reference, const TokenWindows& windows) {
  if (model.config().vocabulary != reference.config().vocabulary) {
    throw bad_data("the model's vocabulary has {} tokens and the reference's {}, so they cannot be compared",
                   model.config().vocabulary, reference.config().vocabulary);
  }
  std::vector<Runner> runners = {{model}, {reference}};
  LossSum sum, reference_sum;
  Divergence result;
  double change = 0;
  std::vector<double> divergences;
  for_tokens(
      runners, windows,
      [&](int64_t window, int64_t begin, int64_t end, const at::Tensor& targets) {
        const at::Tensor q = runners[0].scores(window, begin, end), p = runners[1].scores(window, begin, end);
        sum.add(q, targets);
        reference_sum.add(p, targets);
        // Rounding can take a divergence of equal distributions below 0.
        const at::Tensor kl = (p.exp() * (p - q)).sum(1).clamp_min(0).to(at::kDouble);
        if (!kl.isfinite().all().item<bool>()) throw bad_data("the models' logits have no finite divergence");
        divergences.insert(divergences.end(), kl.const_data_ptr<double>(),
                           kl.const_data_ptr<double>() + kl.numel());
        result.same_top1.count += (p.argmax(1) == q.argmax(1)).sum().item<int64_t>();
        const at::Tensor right = targets.unsqueeze(1);
        change += (q.gather(1, right).exp() - p.gather(1, right).exp()).to(at::kDouble).sum().item<double>();
      },
      [&](int64_t predicted) {
        sum.end_window(predicted);
        reference_sum.end_window(predicted);
      });
  const auto tokens = static_cast<double>(divergences.size());
  for (const double value : divergences) result.mean += value / tokens;
  std::sort(divergences.begin(), divergences.end());
  result.p95 = percentile(divergences, 0.95);
  result.p99 = percentile(divergences, 0.99);
  result.largest = divergences.back();
  result.same_top1.total = static_cast<int64_t>(divergences.size());
  result.right_token_change = change / tokens;
  return {sum.result(windows, runners[0].seconds), reference_sum.result(windows, runners[1].seconds), result};
}

}  // namespace mcompress
