"""A checkpoint of random bf16 weights in the exact shapes of a known LLaMA: python -m bench.shapes tinyllama --out DIR

Shards are written tensor by tensor, a few hundred MB each, so that making 16 GB takes little memory.
"""

import argparse
import sys
from pathlib import Path

from common.errors import InputError
from common.files import write_folder, write_json

SHAPES = {
    "tinyllama": dict(
        vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
        num_key_value_heads=4, max_position_embeddings=2048, rms_norm_eps=1e-5,
    ),
    "llama3.1-8b": dict(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=131072, rms_norm_eps=1e-5, rope={
            "rope_theta": 500000.0, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    ),
    "toy": dict(
        vocab_size=600, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256,
    ),
}
SHARD = 400_000_000  # numbers


def write_checkpoint(folder, shape, seed=0):
    """Fill `folder` with config.json, shards and their index; returns the number of parameters."""
    import torch
    from safetensors.torch import save_file

    from model.llama import LlamaConfig, LlamaForCausalLM
    from model.weights import slots

    config = LlamaConfig(**SHAPES[shape])
    with torch.device("meta"):
        wanted = {name: shape for name, (_, _, shape) in slots(LlamaForCausalLM(config)).items()}
    generator, folder = torch.Generator().manual_seed(seed), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards, held, place, total = [{}], 0, {}, 0
    for name, size in wanted.items():
        drawn = torch.randn(size, generator=generator) * config.initializer_range
        tensor = torch.ones(size) if "norm" in name else drawn
        if held and held + tensor.numel() > SHARD:
            save_file(shards[-1], folder / f"model-{len(shards):05d}.safetensors", metadata={"format": "pt"})
            shards[-1] = None  # its place in the numbering stays
            shards.append({})
            held = 0
        shards[-1][name] = tensor.bfloat16()
        place[name] = f"model-{len(shards):05d}.safetensors"
        held, total = held + tensor.numel(), total + tensor.numel()
    save_file(shards[-1], folder / f"model-{len(shards):05d}.safetensors", metadata={"format": "pt"})
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": 2 * total}, "weight_map": place})
    write_json(folder / "config.json", config.to_dict() | {"dtype": "bfloat16"})
    return total


def main(argv=None):
    """Make one; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.shapes", description=__doc__.split("\n")[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    try:
        if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
            raise InputError(f"{options.out}: is there already; choose another --out")
        totals = []
        write_folder(options.out, lambda folder: totals.append(write_checkpoint(folder, options.shape, options.seed)))
        (total,) = totals
    except InputError as error:
        print(f"bench.shapes: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {total:,} parameters in bf16")
    return 0


if __name__ == "__main__":
    sys.exit(main())
