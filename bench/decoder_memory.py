"""Memory of loading a LLaMA in 4 bits and of QLoRA steps, alone or beside peft: python -m bench.decoder_memory DIR

A process of its own for each side, so that the peak is its own: resident memory over what it held after its imports
(Linux), on a GPU what torch allocated at most. The step is that of train.py: --tune qlora, checkpointing, one prompt of
--tokens; theirs is transformers', peft's and bitsandbytes' as their documentation has it, of the same prompt.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from bench.report import at_least, measuring, require
from common.errors import InputError
from common.memory import resident_bytes

RANK, ALPHA, TARGETS = 8, 16.0, ("q_proj", "k_proj", "v_proj", "o_proj")
RATE = 1e-4
SAID = 16  # tokens at the end of the prompt, which are learned


def ours(options, device, precision):
    """(load, learn): load() gives the model and its weights' bytes; learn(model), a function that does a step."""
    import torch

    from common.pages import keep_few_kernels
    from model.lora import LoraConfig
    from model.precision import make_scaler
    from model.quant import FourBit, bitsandbytes_layers, weight_bytes
    from model.tune import tune_lora
    from model.weights import load_model
    from training.optimizer import make_optimizer
    from training.step import train_step

    keep_few_kernels()  # as train.py does
    bitsandbytes_layers()
    torch.ops.bitsandbytes  # noqa: B018  the kernels, part of the imports

    def load():
        model, _ = load_model(
            options.folder, four_bit=FourBit.named("nf4", precision), keep_16_bits=precision != "fp32"
        )
        model.to(device)
        largest = max(p.numel() for p in model.model.embed_tokens.parameters())
        held = weight_bytes(model) + sum(
            p.numel() * p.element_size() for name, p in model.named_parameters() if ".quantised." not in name
        )
        return model, {
            "linear_weights": weight_bytes(model), "weights": held, "largest_tensor_16_and_32": 6 * largest,
            "load_allowed": held + 6 * largest + 500_000_000,
        }

    def learn(model):
        tune_lora(model, LoraConfig(RANK, ALPHA, targets=TARGETS))
        model.model.gradient_checkpointing = True
        optimizer, scaler = make_optimizer(model, 0.0), make_scaler(device, precision)
        prompts = OnePrompt(model.config.vocab_size, options.tokens)

        def step():
            model.train()
            return train_step(
                model, optimizer, scaler, prompts, prompts.all, learning_rate=RATE, max_tokens=options.tokens, clip=1.0,
                device=device, precision=precision,
            ).loss

        return step

    return load, learn


def theirs(options, device, precision):
    """The same of transformers with peft and bitsandbytes."""
    import peft
    import torch
    import transformers

    from model.precision import autocast, make_scaler

    transformers.utils.logging.disable_progress_bar()
    torch.ops.bitsandbytes  # noqa: B018
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]

    def load():
        quantisation = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype,
        )
        return transformers.LlamaForCausalLM.from_pretrained(
            options.folder, dtype=dtype, quantization_config=quantisation, device_map={"": str(device)},
        ), {}

    def learn(model):
        model = peft.prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False}
        )
        model = peft.get_peft_model(model, peft.LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS), task_type="CAUSAL_LM"
        ))
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer, scaler = torch.optim.AdamW(learning, lr=RATE, weight_decay=0.0), make_scaler(device, precision)
        ids = torch.from_numpy(OnePrompt(model.config.vocab_size, options.tokens).ids)[None].to(device)
        labels = ids.clone()
        labels[:, :-SAID] = -100

        def step():
            model.train()
            with autocast(device, precision):
                loss = model(input_ids=ids, labels=labels).loss
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            return loss.item()

        return step

    return load, learn


SIDES = {"ours": ours, "theirs": theirs}


def measure(options):
    """Load, learn, and print what it took; runs in a process of its own.

    Raises:
        InputError: there is no LLaMA in the folder.
    """
    import torch

    from model.llama import LlamaConfig
    from model.weights import read_config

    if not isinstance(read_config(options.folder), LlamaConfig):
        raise InputError(f"{options.folder}: a BERT; here a LLaMA is measured")

    from model.precision import choose_device, choose_precision

    device = choose_device(options.device)
    precision = choose_precision("auto", device)
    load, learn = SIDES[options.here](options, device, precision)

    def peak():
        return torch.cuda.max_memory_allocated() if device.type == "cuda" else resident_bytes(peak=True) - before

    before = resident_bytes()
    began = time.perf_counter()
    model, sizes = load()
    result = {"side": options.here, "device": str(device), "precision": precision, **sizes}
    result |= {"load_seconds": time.perf_counter() - began, "load_peak": peak()}
    result["host_load_peak"] = resident_bytes(peak=True) - before
    step, seconds = learn(model), []
    for number in range(options.steps):
        began = time.perf_counter()
        loss = step()
        seconds.append(time.perf_counter() - began)
        if not number:
            result["first_loss"] = loss  # of the same numbers rounded alike: of both sides about the same
    result |= {"step_peak": peak(), "step_seconds": min(seconds), "tokens_per_second": options.tokens / min(seconds)}
    print(json.dumps(result))


class OnePrompt:
    """One prompt of random tokens, the last of them to be said; of the shape of a PromptSet."""

    def __init__(self, vocabulary, tokens):
        import numpy as np

        self.ids = np.random.default_rng(0).integers(3, vocabulary, tokens)
        self.length, self.all = np.array([tokens]), np.array([0])

    def units(self, prompts):
        """Tokens to be said."""
        return float(SAID)

    def fill(self, prompts):
        """The batch."""
        from data.prompts import fill_left

        return fill_left([(self.ids[:-SAID].tolist(), self.ids[-SAID:].tolist())], [1.0], 0)


@measuring("bench.decoder_memory")
def main(argv=None):
    """Measure each side in a process of its own and print a JSON object for it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.decoder_memory", description=__doc__.split("\n")[0])
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--beside", action="store_true", help="measure transformers with peft and bitsandbytes too")
    parser.add_argument("--here", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.here:
        measure(options)
        return 0
    at_least(1, steps=options.steps)
    at_least(SAID + 2, tokens=options.tokens)
    if options.beside:
        require("transformers", "peft", "bitsandbytes", "accelerate")
    given = ["--tokens", str(options.tokens), "--steps", str(options.steps), "--device", options.device]
    for side in SIDES if options.beside else ("ours",):
        argv = [sys.executable, "-m", "bench.decoder_memory", options.folder, *given, "--here", side]
        if code := subprocess.run(argv, cwd=Path(__file__).parents[1]).returncode:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
