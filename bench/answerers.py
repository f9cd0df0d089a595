"""The sides of bench.answer, a process each, which that program starts: python -m bench.answerers SIDE JOB THREADS

    ours:WAY            this project's Reader; WAY is fp32, bf16, int8+fp32 or int8+bf16 (products + the rest)
    pipeline            transformers 4.57's question-answering pipeline as called by default, in its own environment
    onnxruntime:TOKENS  an int8 model in place of the Reader's, in batches of at most TOKENS tokens: tokenising, batches
                        of like lengths and the best span are the Reader's business, so both sides pay the same for them.
                        One batch at a time on all cores; with :lanes after TOKENS, one on each core

Only what the pipeline's environment has (torch, transformers) may be imported at the top.
"""

import sys
from itertools import count
from threading import Lock

import torch

from bench.pairs import serve
from common.files import read_json
from common.memory import resident_bytes


class Tokens:
    """What a model was given to compute, real tokens and with padding; counted by a hook on its calls."""

    def __init__(self, model):
        self.tokens = self.padded_tokens = 0
        self.counting = Lock()  # lanes call a model side by side
        model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, model, arguments, named):
        """Of one call: input_ids, token types and attention mask, by place or by name; a mask of None hides nothing."""
        given = dict(zip(("input_ids", "token_type_ids", "attention_mask"), arguments)) | named
        size, mask = given["input_ids"].numel(), given.get("attention_mask")
        real = size if mask is None else int(mask.sum())
        with self.counting:
            self.padded_tokens += size
            self.tokens += real

    def take(self):
        """The counts since the last time."""
        taken = {"tokens": self.tokens, "padded_tokens": self.padded_tokens}
        self.tokens = self.padded_tokens = 0
        return taken


def piecework(job, answer, tokens, last):
    """(work, last) of a side. answer: [(id, question, context)] to {id: text}. job: with `questions` and `block`."""
    numbers = count(step=job["block"])

    def work():
        first = next(numbers)
        answers = answer(job["questions"][first : first + job["block"]])
        return {"units": len(answers), "answers": answers, **tokens.take()}

    return work, lambda: {"peak_bytes": resident_bytes(peak=True), "torch": torch.__version__, **last}


def build_ours(job, way):
    """Our side, by Reader.load and Reader.predict."""
    from answering.reader import Reader
    from common.pages import keep_few_kernels, keep_pages
    from model.packed import pack_linears

    keep_few_kernels()
    keep_pages()  # as infer.py --predict does
    quant, _, precision = way.rpartition("+")
    reader = Reader.load(job["model"], device="cpu", precision=precision, **({"quant": quant} if quant else {}))
    pack_linears(reader.model, reader.device, precision)  # the same
    return reading(job, reader, {"precision": quant or precision})


def reading(job, reader, last, **batches):
    """(work, last) of a Reader. batches: tokens_per_batch and lanes of `Reader.predict`, where they are not its own."""
    from data.examples import Example
    from training.evaluate import answer_text

    def answer(questions):
        examples = [Example(name, question, context, None, name) for name, question, context in questions]
        found = reader.predict(examples, offer_null=False, **batches)
        return {prediction.id: answer_text(prediction, None) for prediction in found}

    return piecework(job, answer, Tokens(reader.model), last)


def build_pipeline(job, _):
    """transformers 4.57's pipeline; lists of questions and of contexts, no other option."""
    import transformers

    qa = transformers.pipeline("question-answering", model=job["model"], device=-1)

    def answer(questions):
        _, asked, contexts = map(list, zip(*questions, strict=True))
        found = qa(question=asked, context=contexts)
        found = [found] if isinstance(found, dict) else found  # of a list of one question
        return {name: one["answer"] for (name, _, _), one in zip(questions, found, strict=True)}

    precision = {torch.float32: "fp32", torch.bfloat16: "bf16"}[qa.model.dtype]
    return piecework(job, answer, Tokens(qa.model), {"precision": precision, "transformers": transformers.__version__})


class OnnxModel(torch.nn.Module):
    """An exported model, called as ours is, on so many threads."""

    def __init__(self, path, config, threads):
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.config = config

    def forward(self, input_ids, token_type_ids, attention_mask):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        feed = {"input_ids": input_ids, "token_type_ids": token_type_ids, "attention_mask": mask}
        found = self.session.run(["start_logits", "end_logits"], {name: value.numpy() for name, value in feed.items()})
        return tuple(map(torch.from_numpy, found))


def build_onnxruntime(job, detail):
    """onnxruntime's side. detail: TOKENS or TOKENS:lanes."""
    import onnxruntime

    from answering.reader import Reader
    from answering.settings import default_settings, stored_settings
    from data.tokenizer import load_tokenizer
    from model.weights import read_config

    config = read_config(job["model"])
    settings = stored_settings(job["model"]) or default_settings(config)
    tokens, _, side_by_side = detail.partition(":")
    lanes = torch.get_num_threads() if side_by_side else 1
    model = OnnxModel(job["onnx"], config, torch.get_num_threads() // lanes)
    reader = Reader(
        model, load_tokenizer(job["model"], config.vocab_size), settings, device=torch.device("cpu"), precision="fp32",
    )
    last = {"precision": "int8", "onnxruntime": onnxruntime.__version__}
    return reading(job, reader, last, tokens_per_batch=int(tokens), lanes=lanes)


BUILDERS = {"ours": build_ours, "pipeline": build_pipeline, "onnxruntime": build_onnxruntime}


def main(argv):
    """Serve one side; returns the exit code."""
    side, job, threads = argv
    torch.set_num_threads(int(threads))
    name, _, detail = side.partition(":")
    return serve(lambda: BUILDERS[name](read_json(job), detail))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
