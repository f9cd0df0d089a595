"""The sides of bench.train, a process each, which that program starts: python -m bench.learners SIDE JOB THREADS

Ours is made of train.py's own parts. The peer is transformers' BertForQuestionAnswering in the plainest loop that has
the recipe's settings; its batches come from the same arrays as ours, so that it pays for no data loader.

shipped: as run_qa.py is documented: batches of 12 in random order, everything padded to the window's length, fp32,
         AdamW as the Trainer chooses it (fused), no weight decay
tuned:   lengths sorted (our batches), padded to the longest of a batch, bf16 autocast, sdpa, fused AdamW; on a GPU
         compiled too
"""

import shlex
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import chain, count, islice

import numpy as np
import torch

from bench.gemm import wait
from bench.pairs import serve
from common.errors import InputError
from common.files import read_json
from common.options import parse
from common.pages import keep_few_kernels, keep_pages
from data.batches import epoch_batches, split_by_tokens, to_tensors
from data.tokenizer import load_tokenizer
from data.windows import WindowSet, WindowSettings
from model.precision import autocast, choose_device, choose_precision, make_scaler
from model.source import resolve_model
from training.measure import peak_memory_bytes
from training.optimizer import learning_rate, make_optimizer
from training.options import TRAIN_OPTIONS
from training.run import read_split, settle_options
from training.setup import build_reader, seed_everything
from training.step import ALONE, batch_loss, train_step

CLIP, WARMUP = 1.0, 0.1
RANK, ALPHA = 8, 16.0
EVALUATION_TOKENS = 6144


@dataclass(frozen=True)
class Job:
    """What both sides train. start: a model folder with a head. held_out: a file, or None to take it from `data`.

    pieces: how many of `steps` optimizer steps each there will be. ours: further flags of train.py, in one text.
    """

    start: str
    data: list[str]
    held_out: str | None
    questions: int
    held_out_windows: int
    tune: str
    recipe: str
    batch_size: int
    steps: int
    pieces: int
    window_length: int
    lr: float
    dropout: float
    attention_dropout: float
    device: str
    seed: int
    ours: str

    @property
    def peer_precision(self):
        """Of the peer's matrix products."""
        return "fp32" if self.recipe == "shipped" else "bf16"

    @property
    def total_steps(self):
        """Of each side, warming up included."""
        return self.steps * self.pieces


def split_examples(job):
    """(examples to learn from, held-out ones about other contexts); InputError where one of them would be empty."""
    examples = read_split(job.data, job.questions, job.seed, False, "training").examples
    if job.held_out:
        return examples, read_split([job.held_out], None, 0, False, "the held-out loss").examples
    asked, held, number = Counter(example.context for example in examples), set(), 0
    for context in reversed(asked):
        if number >= job.held_out_windows:
            break
        held.add(context)
        number += asked[context]
    learned = [example for example in examples if example.context not in held]
    if not learned:
        raise InputError(
            f"{job.data[0]}: {len(examples)} questions are too few to hold {job.held_out_windows} windows out of them; "
            "name a file with --held-out, or lower --held-out-windows"
        )
    return learned, [example for example in examples if example.context in held]


def window_set(job, examples, tokenizer):
    """The windows of both sides. Only the first reference is a label: transformers can learn from no more."""
    settings = WindowSettings(job.window_length, overlap=min(128, job.window_length // 3))
    return WindowSet(examples, tokenizer, settings, with_labels=True, references="first", on_disk=True)


def pieces(job, windows):
    """Yield the batches of each piece of work, epoch after epoch."""
    epochs = (epoch_batches(windows.length, job.batch_size, job.seed, epoch) for epoch in count())
    batches = chain.from_iterable(epochs)
    while True:
        yield list(islice(batches, job.steps))


def shuffled(batches, batch_size, seed):
    """The windows of a piece in random order, in as many batches."""
    windows = np.random.default_rng(seed).permutation(np.concatenate(batches))
    return [windows[first : first + batch_size] for first in range(0, len(windows), batch_size)]


@torch.inference_mode()
def held_out_loss(model, windows, limit, device):
    """Mean loss, as ours is defined, of a model's fp32 logits on the first `limit` windows."""
    chosen = np.arange(min(limit, len(windows)))
    losses = (
        batch_loss(model, to_tensors(windows.fill(part), device), device, "fp32").item()
        for part in split_by_tokens(windows.length, chosen, EVALUATION_TOKENS)
    )
    return sum(losses) / len(chosen)


def farewell(job, model, held, device, precision, tokenizer):
    """A side's last words. The peak is read before the evaluation adds to it."""
    peak = peak_memory_bytes(torch.device(device))
    held = window_set(job, held, tokenizer)
    loss = held_out_loss(model, held, job.held_out_windows, device)
    return {"peak_bytes": peak, "held_out_loss": loss, "precision": precision, "torch": torch.__version__}


def ours_options(job):
    """train.py's options for our side."""
    flags = {
        "model": job.start, "tune": job.tune, "batch-size": job.batch_size, "dropout": job.dropout,
        "attention-dropout": job.attention_dropout, "lr": job.lr, "warmup": WARMUP, "clip": CLIP, "seed": job.seed,
        "device": job.device, "window-length": job.window_length,
    }
    if job.tune != "full":
        flags |= {"lora-rank": RANK, "lora-alpha": ALPHA}
    argv = ["--train", *job.data, *(str(part) for name, value in flags.items() for part in (f"--{name}", value))]
    try:
        further = shlex.split(job.ours)
    except ValueError as error:
        raise InputError(f"--ours {job.ours!r}: {error}") from None
    return settle_options(parse("bench.train", "", TRAIN_OPTIONS, [*argv, *further]))


def build_ours(job):
    """(work, last) of our side: set-up, batches and step are those of train.py."""
    options = ours_options(job)
    device = choose_device(options.device)
    precision = choose_precision(options.precision, device)
    seed_everything(options.seed)
    keep_few_kernels()
    keep_pages()  # as train.py does
    reader = build_reader(resolve_model(options.model), options, device, precision, may_lack_answer=False)
    learned, held = split_examples(job)
    windows = window_set(job, learned, reader.tokenizer)
    optimizer = make_optimizer(reader.model, options.weight_decay, options.lora_plus_ratio, options.optimizer)
    scaler, learner = make_scaler(device, precision), ALONE.learner(reader.model)
    stock, numbers = pieces(job, windows), count()

    def work():
        results = []
        for batch in next(stock):
            step = next(numbers)
            learner.train()
            ALONE.seed(options.seed, step)
            results.append(train_step(
                learner, optimizer, scaler, windows, batch,
                learning_rate=learning_rate(step, job.total_steps, options.lr, options.warmup),
                max_tokens=options.tokens_per_micro_batch, clip=options.clip, device=device, precision=precision,
            ))
        wait(device)
        return {
            "units": sum(result.windows for result in results), "tokens": sum(result.tokens for result in results),
            "padded_tokens": sum(result.padded_tokens for result in results),
        }

    return work, lambda: farewell(job, reader.model.eval(), held, device, precision, reader.tokenizer)


def peer_model(job, device):
    """transformers' model with what the recipe and --tune ask for."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    more = {}
    if job.tune == "qlora":
        more["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=["qa_outputs"],
        )
        more["device_map"] = {"": device}
    model = transformers.BertForQuestionAnswering.from_pretrained(
        job.start, dtype=torch.float32, attn_implementation="sdpa", hidden_dropout_prob=job.dropout,
        attention_probs_dropout_prob=job.attention_dropout, **more,
    ).to(device)
    if job.tune == "full":
        return model
    import peft

    if job.tune == "qlora":  # without checkpointing: it fits, and is faster
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    # no task_type: peft 0.21's PeftModelForQuestionAnswering drops token_type_ids, and would read other text than ours
    return peft.get_peft_model(model, peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=["query", "value"], modules_to_save=["qa_outputs"],
    ))


def padded_to(batch, length, pad):
    """A batch of tensors with rows of `length` tokens."""
    short = length - batch["input_ids"].shape[1]
    fill = {"input_ids": pad, "token_type_ids": 0, "attention_mask": False}
    return batch | {name: torch.nn.functional.pad(batch[name], (0, short), value=value) for name, value in fill.items()}


def peer_inputs(arrays, device):
    """What transformers' model is called with, of a batch as WindowSet.fill gives it."""
    names = ("input_ids", "token_type_ids", "attention_mask", "label")
    batch = {name: torch.from_numpy(arrays[name]).to(device, non_blocking=True) for name in names}
    start, end = batch.pop("label")[:, 0].unbind(-1)
    return batch | {"start_positions": start, "end_positions": end}


def peer_logits(model):
    """The model called as ours is, for the loss that both are measured by."""

    def call(input_ids, token_type_ids, attention_mask):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        out = model(input_ids=input_ids, token_type_ids=token_type_ids, attention_mask=mask)
        return out.start_logits.float(), out.end_logits.float()

    return call


def build_peer(job):
    """(work, last) of transformers' side."""
    device, shipped = choose_device(job.device), job.recipe == "shipped"
    seed_everything(job.seed)
    model = peer_model(job, device)
    tokenizer = load_tokenizer(job.start)
    learned, held = split_examples(job)
    windows = window_set(job, learned, tokenizer)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=job.lr, weight_decay=0.0 if shipped else 0.01, fused=True)
    learner = torch.compile(model, dynamic=True) if device.type == "cuda" and not shipped else model
    stock, numbers = pieces(job, windows), count()

    def step(chosen):
        arrays = windows.fill(chosen)
        batch = peer_inputs(arrays, device)
        if shipped:
            batch = padded_to(batch, job.window_length, windows.layout.pad)
        batch["attention_mask"] = batch["attention_mask"].long()  # as tokenizers give it
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(next(numbers), job.total_steps, job.lr, WARMUP)
        with autocast(device, job.peer_precision):
            loss = learner(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return batch["input_ids"].numel()

    def work():
        batches = next(stock)
        if shipped:
            batches = shuffled(batches, job.batch_size, job.seed)
        model.train()
        padded = sum(map(step, batches))
        wait(device)
        chosen = np.concatenate(batches)
        return {"units": len(chosen), "tokens": int(windows.length[chosen].sum()), "padded_tokens": padded}

    def last():
        words = farewell(job, peer_logits(model.eval()), held, device, job.peer_precision, tokenizer)
        import transformers

        return words | {"transformers": transformers.__version__}

    return work, last


def main(argv):
    """Serve one side; returns the exit code."""
    side, job, threads = argv
    torch.set_num_threads(int(threads))
    job = Job(**read_json(job))
    return serve(lambda: {"ours": build_ours, "peer": build_peer}[side](job))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
