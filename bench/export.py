"""A BERT's folder as the int8 model that onnxruntime's users make of it: python -m bench.export FOLDER OUT.onnx

Exported by torch.onnx (dynamo) from transformers' BertForQuestionAnswering with free batch and length, then quantised
dynamically: weights once, row by row, inputs as they come.
"""

import argparse
import sys
import tempfile
import warnings
from contextlib import redirect_stdout
from pathlib import Path

from common.errors import InputError

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUTS = ("start_logits", "end_logits")


def export_fp32(folder, path):
    """Write the model in fp32."""
    import torch
    import transformers

    model = transformers.BertForQuestionAnswering.from_pretrained(folder, dtype=torch.float32).eval()
    example = {name: torch.ones(2, 7, dtype=torch.int64) for name in INPUTS}
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", max=model.config.max_position_embeddings)}
    torch.onnx.export(
        model, kwargs=example, f=str(path), dynamo=True, input_names=list(INPUTS), output_names=list(OUTPUTS),
        dynamic_shapes={name: free for name in INPUTS}, verbose=False,
    )


def export_int8(folder, path):
    """Write the model in int8; InputError when the folder is not a BERT's."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from answering.reader import base_folder
    from model.weights import read_config

    config, own = read_config(base_folder(folder)), base_folder(folder) == Path(folder)
    if not own or getattr(config, "model_type", "llama") != "bert":
        raise InputError(f"{folder}: only a BERT's own folder can be exported here, no adapter's")
    scratch, quiet = tempfile.TemporaryDirectory(prefix="bench-export-"), warnings.catch_warnings(action="ignore")
    with scratch as name, redirect_stdout(sys.stderr), quiet:
        plain = Path(name) / "fp32.onnx"
        export_fp32(folder, plain)
        quantize_dynamic(plain, path, weight_type=QuantType.QInt8, per_channel=True)


def main(argv=None):
    """Export; returns the exit code."""
    from bench.report import require

    parser = argparse.ArgumentParser(prog="python -m bench.export", description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="of a BERT with a span head")
    parser.add_argument("out", type=Path, help="the file to write")
    options = parser.parse_args(argv)
    try:
        require("transformers", "onnx", "onnxscript", "onnxruntime")
        export_int8(options.folder, options.out)
    except InputError as error:
        print(f"bench.export: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
