"""Other programs that round language models, each in an environment of its own beside this file, and what they wrote as float weights."""
import json
import subprocess
import sys
from pathlib import Path

from processes import run_process

VENVS = Path(__file__).resolve().parent / "peers.venvs"
TORCH = "torch==2.13.0"
PACKAGES = {
    "GPTQModel": [["setuptools", "wheel", "numpy"], ["--no-build-isolation", "gptqmodel==7.6.0", "optimum"]],
    "llm-compressor": [["llmcompressor==0.14.0.1"]],
    "auto-round": [["auto-round==0.16.1"]],
}

# Each peer has two steps: the timed one rounds and writes its own format, the other makes float weights of it by its own code.
START = """
import json, os, sys, torch
torch.set_num_threads(2)
from tokenizers import Tokenizer
folder, text, out = sys.argv[1:4]
nsamples, bits, group_size = map(int, sys.argv[4:7])
ids = Tokenizer.from_file(folder + "/tokenizer.json").encode(open(text, encoding="utf-8", newline="").read(), add_special_tokens=False).ids
windows = [ids[i * 512 : (i + 1) * 512] for i in range(nsamples)]
"""

GPTQMODEL = START + """
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
config = QuantizeConfig(bits=bits, group_size=group_size)
model = GPTQModel.load(folder, config, device="cpu")
model.quantize([{"input_ids": w, "attention_mask": [1] * 512} for w in windows], batch_size=1, backend=BACKEND.GPTQ_TORCH)
model.save(out)
"""
GPTQMODEL_AWQ = START + """
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from gptqmodel.quantization import FORMAT, METHOD
config = QuantizeConfig(bits=bits, group_size=group_size, method=METHOD.AWQ, format=FORMAT.GEMM)
model = GPTQModel.load(folder, config, device="cpu")
model.quantize([{"input_ids": w, "attention_mask": [1] * 512} for w in windows], batch_size=1, backend=BACKEND.AWQ_TORCH)
model.save(out)
"""
GPTQMODEL_DENSE = """
import sys, torch
from gptqmodel import BACKEND, GPTQModel
from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear, dequantize_gemm
packed, dense = sys.argv[1:3]
config = open(packed + "/config.json").read()
backend = BACKEND.AWQ_TORCH if '"awq"' in config else BACKEND.GPTQ_TORCH
model = GPTQModel.load(packed, device="cpu", dtype=torch.float16 if '"awq"' in config else torch.bfloat16, backend=backend).model
tensors = {name: value.float() for name, value in model.state_dict().items() if name.endswith("norm.weight")}
for name, module in model.named_modules():
    if isinstance(module, AwqTorchLinear):
        values = dequantize_gemm(qweight=module.qweight, qzeros=module.qzeros, scales=module.scales, bits=module.bits, group_size=module.group_size)
    elif hasattr(module, "dequantize_weight"):
        values = module.dequantize_weight()
    else:
        continue
    tensors[name + ".weight"] = values.t().float().contiguous()
torch.save(tensors, dense)
"""

# Without its optimization of scales on text, for RTN. It starts processes that read the script again.
AUTOROUND = """
import sys, torch
from auto_round import AutoRound
if __name__ == "__main__":
    torch.set_num_threads(2)
    folder, _, out, _, bits, group_size = sys.argv[1:]
    args = dict(bits=int(bits), group_size=int(group_size), sym=True, iters=0, disable_opt_rtn=True, device_map="cpu")
    AutoRound(folder, scheme="W4A16", **args).quantize_and_save(out, format="auto_round")
"""
AUTOROUND_DENSE = """
import glob, os, sys, torch
from transformers import AutoModelForCausalLM
packed, dense = sys.argv[1:3]
if not os.path.exists(packed + "/config.json"):
    packed = os.path.dirname(glob.glob(packed + "/*/config.json")[0])
model = AutoModelForCausalLM.from_pretrained(packed, device_map="cpu", dtype=torch.float32)
tensors = {name: value.float() for name, value in model.state_dict().items() if name.endswith("norm.weight")}
with torch.no_grad():
    for name, module in model.named_modules():
        if hasattr(module, "qweight"):
            tensors[name + ".weight"] = module(torch.eye(module.infeatures)).t().float().contiguous()
torch.save(tensors, dense)
"""

LLMCOMPRESSOR = START + """
torch.Tensor.pin_memory = lambda self, *_: self  # AWQ pins what it caches, which fails without an accelerator
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(folder)
args = {"num_bits": bits, "type": "int", "symmetric": SYMMETRIC, "strategy": "group", "group_size": group_size}
scheme = {"config_groups": {"group_0": {"targets": ["Linear"], "weights": args}}, "ignore": ["lm_head"]}
data = Dataset.from_dict({"input_ids": windows, "attention_mask": [[1] * 512] * nsamples})
oneshot(model=model, tokenizer=tokenizer, dataset=data, recipe=RECIPE, max_seq_length=512, num_calibration_samples=nsamples)
model.save_pretrained(out, save_compressed=True)
"""
LLMCOMPRESSOR_DENSE = """
import sys, torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig
packed, dense = sys.argv[1:3]
model = AutoModelForCausalLM.from_pretrained(packed, dtype=torch.float32, quantization_config=CompressedTensorsConfig(run_compressed=False))
ends = ("_proj.weight", "norm.weight")
torch.save({name: value.float() for name, value in model.state_dict().items() if name.endswith(ends)}, dense)
"""


def of_llmcompressor(recipe, symmetric=True):
    return ("llm-compressor", LLMCOMPRESSOR.replace("RECIPE", recipe).replace("SYMMETRIC", str(symmetric)), LLMCOMPRESSOR_DENSE)


# By method and name: its environment and its two steps.
PEERS = {
    "RTN": {"llm-compressor": of_llmcompressor("[QuantizationModifier(**scheme)]"),
            "auto-round": ("auto-round", AUTOROUND, AUTOROUND_DENSE)},
    "GPTQ": {"GPTQModel": ("GPTQModel", GPTQMODEL, GPTQMODEL_DENSE), "llm-compressor": of_llmcompressor("[GPTQModifier(**scheme)]")},
    "AWQ": {"GPTQModel": ("GPTQModel", GPTQMODEL_AWQ, GPTQMODEL_DENSE),
            "llm-compressor": of_llmcompressor("[AWQModifier(), QuantizationModifier(**scheme)]", False)},
    "AWQ+GPTQ": {"llm-compressor": of_llmcompressor("[AWQModifier(), GPTQModifier(**scheme)]", False)},
}

# Puts a peer's float weights into a copy of the folder.
MERGE = """
import shutil, sys, torch
from safetensors.torch import load_file, save_file
folder, dense, out = sys.argv[1:4]
shutil.copytree(folder, out, dirs_exist_ok=True)
tensors = load_file(folder + "/model.safetensors")
found = torch.load(dense)
assert found and set(found) <= set(tensors), sorted(set(found) - set(tensors))[:3]
for name, value in found.items():
    assert tensors[name].shape == value.shape, name
    tensors[name] = value.to(tensors[name].dtype).contiguous()
save_file(tensors, out + "/model.safetensors", metadata={"format": "pt"})
"""


def python_of(environment):
    """Its Python; the environment is made where it is missing, which takes minutes."""
    venv = VENVS / environment
    if not (venv / "done").exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        install = [venv / "bin/python", "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, TORCH], check=True)
        (venv / "constraints.txt").write_text(TORCH + "\n")
        for packages in PACKAGES[environment]:
            subprocess.run([*install, "-c", venv / "constraints.txt", *packages], check=True)
        (venv / "done").touch()
    return venv / "bin/python"


def perplexity(binary, folder, test, scratch):
    """In fp32, over the first 40 windows of 512 tokens of a text ("rows")."""
    subprocess.run([binary, "evaluate", folder, "--eval-data", test, "--text-layout", "rows", "--seqlen", "512", "--windows", "40",
                    "--threads", "2", "-q", "--force", "--report", f"{scratch}/report.json"], check=True, stdout=subprocess.DEVNULL)
    return json.loads(Path(f"{scratch}/report.json").read_text())["metrics"]["before"]["perplexity"]["value"]


def measure_peer(method, name, options, scratch):
    """Perplexity, wall seconds and peak memory of what a peer rounds."""
    environment, quantize, dense = PEERS[method][name]
    python, stem = python_of(environment), f"{scratch}/{method}-{name}"
    for step, text in (("quantize", quantize), ("dense", dense), ("merge", MERGE)):
        Path(f"{scratch}/{step}.py").write_text(text)
    log = f"2> {scratch}/log.txt > {scratch}/out.txt"
    words = f"{options.folder} {options.calibration} {stem} {options.nsamples} {options.bits} {options.group_size}"
    seconds, peak = run_process(1, ["sh", "-c", f"cd {scratch}; GPTQMODEL_CPU_WORKERS=2 OMP_NUM_THREADS=2 exec {python} {scratch}/quantize.py {words} {log}"])
    run_process(1, ["sh", "-c", f"exec {python} {scratch}/dense.py {stem} {stem}.pt {log}"])
    run_process(1, ["sh", "-c", f"exec {python} {scratch}/merge.py {options.folder} {stem}.pt {stem}.dense {log}"])
    return perplexity(options.binary, f"{stem}.dense", options.test, scratch), seconds, peak


def measure_ours(command, options, scratch, *more):
    out = f"{scratch}/ours"
    words = [options.binary, *command, options.folder, "-o", out, "--bits", options.bits, "--group-size", options.group_size,
             "--group-size-fallback", "tail", "--threads", 2, "--force", "-q", *more]
    seconds, peak = run_process(1, [str(word) for word in words])
    return perplexity(options.binary, out, options.test, scratch), seconds, peak


def calibration_of(options):
    return ["--nsamples", options.nsamples, "--seqlen", 512, "--calib-data", options.calibration]


def add_arguments(parser, root):
    parser.add_argument("folder")
    parser.add_argument("calibration")
    parser.add_argument("test")
    parser.add_argument("binary", nargs="?", default=root / "build/release/tools/mcompress")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--nsamples", type=int, default=128)
    parser.add_argument("--peers", default="GPTQModel,llm-compressor,auto-round", help="names with commas between, or nothing")
    parser.add_argument("--scratch", help="folder for what is written on the way")


def parse(parser):
    options = parser.parse_args()
    for name in ("folder", "calibration", "test", "binary"):
        setattr(options, name, str(Path(getattr(options, name)).resolve()))
    return options
