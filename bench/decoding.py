"""Tokens per second of cached decoding, beside transformers' `generate`: python -m bench.decoding DIR

    batch 1 and 8 in 16 bit, batch 8 in 4 bits (NF4), and eight questions on one shared text with its prefix read once

A rate is that of the tokens after the first: time for all less time for one, over the same prompts, both sides by
turns, the median of --repeats. In 16 bit every step reads all weights once, so rate × bytes is held against what this
machine reads at most. DIR: any LLaMA folder, such as one of bench.shapes.
"""

import argparse
import json
import statistics
import sys
import time

import torch

from bench.report import measuring, require
from common.errors import InputError
from common.pages import keep_few_kernels, keep_pages
from model.generate import Prefix, go_on
from model.packed import pack_linears
from model.precision import choose_device
from model.quant import FourBit
from model.weights import load_model

NEVER = -1  # as the stop token: all answers have all tokens


def ours(folder, device, four_bit):
    """Our model in bf16 or in 4 bits."""
    keep_few_kernels()
    keep_pages()  # as infer.py --predict does
    model, _ = load_model(folder, four_bit=FourBit.named("nf4", "bf16") if four_bit else None, keep_16_bits=True)
    model = model.to(device).to(torch.bfloat16).eval()
    pack_linears(model, device, "bf16")  # as infer.py --predict does
    return model


def theirs(folder, device, four_bit):
    """The same by transformers, and by bitsandbytes through it."""
    import transformers

    quantisation = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    ) if four_bit else None
    options = {"quantization_config": quantisation, "device_map": {"": str(device)}} if four_bit else {}
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **options)
    return (model if four_bit else model.to(device)).eval()


@torch.inference_mode()
def speak(model, prompts, count):
    """Our `count` tokens after each prompt, (B, count)."""
    said = go_on(Prefix(model, prompts, count + 1), max_new=count, stop={NEVER})
    return [one.tokens for one in said]


@torch.inference_mode()
def speak_theirs(model, prompts, count):
    """Theirs."""
    ids = torch.tensor(prompts, device=model.device)
    said = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, do_sample=False,
        pad_token_id=0, eos_token_id=None,
    )
    return [tuple(row) for row in said[:, ids.shape[1] :].tolist()]


def seconds_of(work, device):
    """How long work() takes."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def rates(sides, prompts, count, repeats, device):
    """{side: tokens per second} of [(side, function of (prompts, count))], measured by turns.

    Raises:
        InputError: more tokens took no longer than one.
    """
    seconds = {name: [] for name, _ in sides}
    for _, speak_one in sides:
        speak_one(prompts, 2)  # the first call pays for warming up
    for _ in range(repeats):
        for name, speak_one in sides:
            one = seconds_of(lambda: speak_one(prompts, 1), device)
            seconds[name].append(seconds_of(lambda: speak_one(prompts, count), device) - one)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    if min(medians.values()) <= 0:
        raise InputError(f"{count} tokens took no longer than one; give more --tokens or --repeats, or a quieter machine")
    return {name: len(prompts) * (count - 1) / median for name, median in medians.items()}


def read_bandwidth(device, size=2**28):
    """Bytes per second that this machine reads at most: summing `size` numbers of 4 bytes, the best of five."""
    numbers = torch.ones(size, device=device)
    return 4 * size / min(seconds_of(numbers.sum, device) for _ in range(5))


@torch.inference_mode()
def shared_prefix(model, options, device):
    """Seconds for eight questions on one text: one by one, as a batch, and with the text read once."""
    text, *tails = random_prompts(model.config, 1, options.text_tokens) + random_prompts(model.config, 8, 20, 1)

    def reuse():
        prefix = Prefix(model, [text], 0)
        return [one.tokens for one in go_on(
            Prefix(model, tails, options.tokens + 1, after=prefix), max_new=options.tokens, stop={NEVER}
        )]

    def one_by_one():
        return [speak(model, [text + tail], options.tokens)[0] for tail in tails]

    ways = {"one by one": one_by_one, "batch": lambda: speak(model, [text + tail for tail in tails], options.tokens),
            "prefix reused": reuse}
    reuse()
    taken = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, way in ways.items():
            taken[name].append(seconds_of(way, device))
    return {name: statistics.median(values) for name, values in taken.items()}


def random_prompts(config, count, length, seed=0):
    """Lists of ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, config.vocab_size, (count, length), generator=generator).tolist()


def measure(options):
    """Yield the rows, as dicts."""
    device = choose_device(options.device)
    bandwidth = read_bandwidth(device, options.bandwidth_numbers)
    for four_bit, batches in ((False, (1, 8)), (True, (8,))):
        if four_bit and options.no_4_bit:
            continue
        mine, other = ours(options.folder, device, four_bit), theirs(options.folder, device, four_bit)
        sides = [
            ("ours", lambda prompts, count, model=mine: speak(model, prompts, count)),
            ("theirs", lambda prompts, count, model=other: speak_theirs(model, prompts, count)),
        ]
        for batch in batches:
            prompts = random_prompts(mine.config, batch, options.prompt_tokens)
            found = rates(sides, prompts, options.tokens, options.repeats, device)
            row = {"row": f"{'nf4' if four_bit else 'bf16'}, batch {batch}", **found,
                   "ratio": found["ours"] / found["theirs"]}
            if not four_bit:
                size = sum(p.numel() * p.element_size() for name, p in other.named_parameters() if "embed" not in name)
                row["share_of_bandwidth"] = {
                    name: rate / batch * size / bandwidth for name, rate in found.items()
                }
            yield row
        if not four_bit:
            seconds = shared_prefix(mine, options, device)
            yield {"row": "eight questions on one text", "seconds": seconds,
                   "beside one by one": seconds["one by one"] / seconds["prefix reused"],
                   "beside a batch": seconds["batch"] / seconds["prefix reused"]}
        del mine, other, sides


@measuring("bench.decoding")
def main(argv=None):
    """Print one JSON object per row; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.decoding", description=__doc__.split("\n")[0])
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32, help="said after each prompt")
    parser.add_argument("--text-tokens", type=int, default=512, help="of the shared text")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bandwidth-numbers", type=int, default=2**28, help=argparse.SUPPRESS)
    parser.add_argument("--no-4-bit", action="store_true")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(argv)
    require("transformers", *(() if options.no_4_bit else ("bitsandbytes", "accelerate")))
    for row in measure(options):
        print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
