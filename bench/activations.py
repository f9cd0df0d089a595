"""What transformers makes of a BERT or a relative, layer by layer: `python -m inside.verify` compares with it.

    python -m bench.activations MODEL --out activations.safetensors
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save as to_safetensors

from common.errors import InputError
from common.files import write_atomic
from inside.activations import probe
from model.source import resolve_model
from model.weights import read_config


def reference_version():
    """The version of transformers."""
    import transformers

    return transformers.__version__


@torch.inference_mode()
def reference_activations(folder, ids, types, mask):
    """{name: fp32 tensor} as inside.activations.activations gives them, by transformers' eager attention."""
    import transformers

    transformers.logging.set_verbosity_error()  # it would warn of a head that is new, which is left out then
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    inputs = {"input_ids": ids, "attention_mask": mask.long()}
    if read_config(folder).family.token_types > 1:
        inputs["token_type_ids"] = types
    result = model(**inputs, output_hidden_states=True, output_attentions=True)
    found = {"hidden.0": result.hidden_states[0]}
    for layer, probabilities in enumerate(result.attentions):
        found |= {f"attention.{layer}": probabilities, f"hidden.{layer + 1}": result.hidden_states[layer + 1]}
    return found | {"start_logits": result.start_logits, "end_logits": result.end_logits}


def main(argv=None):
    """Write the file; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.activations", description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL", help="a model folder, a hub id or minilm")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(argv)
    try:
        folder = resolve_model(options.model).folder
        found = reference_activations(folder, *probe(read_config(folder)))
        tensors = {name: tensor.contiguous() for name, tensor in found.items()}
        write_atomic(options.out, to_safetensors(tensors, metadata={"order": json.dumps([*tensors])}))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
