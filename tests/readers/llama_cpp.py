"""llama.cpp, by its binding cyllama, on a GGUF file."""
import cyllama.llama.llama_cpp as llama
import numpy as np

llama.disable_logging()


class Model(llama.LlamaModel):
    @property
    def n_vocab(self):  # which get_logits_ith of 0.2.18 looks for here
        return self.get_vocab().n_vocab


def open_model(path):
    settings = llama.LlamaModelParams()
    settings.n_gpu_layers = 0
    return Model(str(path), settings, verbose=False)


def tokens(model, text):
    return list(model.get_vocab().tokenize(text, False, False))


def perplexity(model, windows):
    """Of token ids [windows, length], keys and values in F32."""
    length = windows.shape[1]
    settings = llama.LlamaContextParams()
    settings.n_ctx = max(256, length)
    settings.n_batch = settings.n_ubatch = length
    settings.n_threads = settings.n_threads_batch = 2
    settings.type_k = settings.type_v = 0  # F32
    context = llama.LlamaContext(model, settings, verbose=False)
    losses = []
    for window in windows:
        context.kv_cache_clear(True)
        batch = llama.LlamaBatch(n_tokens=length, embd=0, n_seq_max=1)
        for position, token in enumerate(window):
            batch.add(int(token), position, [0], True)
        context.decode(batch)
        logits = np.array([context.get_logits_ith(i) for i in range(length - 1)], np.float64)
        largest = logits.max(1)
        sums = largest + np.log(np.exp(logits - largest[:, None]).sum(1))
        losses.append(sums - logits[np.arange(length - 1), window[1:]])
    return float(np.exp(np.mean(losses)))
