"""The options of train.py, in the order --help shows them."""

from pathlib import Path

from common.options import Option

QUANTS = ("nf4", "fp4", "nf4-single", "fp4-single")  # as in model.quant, which brings torch

DATASETS = ("squad", "squad_v2", "persianqa", "sample")
DATA, MODEL, LORA, LOOP, WINDOWS, RUN = "Data", "Model", "LoRA", "Loop", "Windows and answers", "Run"
METHODS = ("full", "head", "bitfit", "lora", "qlora")

TRAIN_OPTIONS = (
    Option("dataset", str, None, "A named data set, downloaded when needed; sample comes with the project.", DATA,
           choices=DATASETS),
    Option("train", Path, None, "Files to train on, instead of a named data set's.", DATA, many=True, metavar="FILE"),
    Option("dev", Path, None, "Files to score on, instead of a named data set's.", DATA, many=True, metavar="FILE"),
    Option("max_train_examples", int, None, "Train on a subset of this many questions, chosen by the seed.", DATA,
           minimum=1),
    Option("max_dev_examples", int, None, "Score on a subset of this many questions, the same for every seed.", DATA,
           minimum=1),
    Option("references", str, "all", "Which references of a question to learn from, their mean or the first.", DATA,
           choices=("all", "first")),
    Option("skip_misaligned", bool, False, "Leave out answers that do not stand at their offset.", DATA),
    Option("model", str, "minilm", "minilm, a hub id such as bert-base-uncased, or a model folder.", MODEL),
    Option("revision", str, None, "Commit, tag or branch of the hub's model.", MODEL),
    Option("dropout", float, None, "Probability of dropping hidden values; unset: config.json's.", MODEL, minimum=0,
           maximum=0.9),
    Option("attention_dropout", float, None, "The same for attention probabilities.", MODEL, minimum=0, maximum=0.9),
    Option("tune", str, "full", "What learns: everything, the head alone, biases and head, or LoRA adapter and head; "
           "qlora is lora with --quant nf4 and --checkpointing.", MODEL, choices=METHODS),
    Option("quant", str, None, "Hold the frozen encoder in 4 bits, single without double quantisation.", MODEL,
           choices=QUANTS),
    Option("lora_rank", int, 8, "Rank of LoRA's updates.", LORA, minimum=1, maximum=4096),
    Option("lora_alpha", float, 16.0, "LoRA's alpha; updates are scaled by alpha / rank.", LORA, above=0),
    Option("lora_dropout", float, 0.0, "Probability of dropping inputs of the updates.", LORA, minimum=0, maximum=0.9),
    Option("lora_targets", str, ["query", "value"], "Linear layers to adapt, by name or its last parts; all-linear.",
           LORA, many=True, metavar="NAME"),
    Option("lora_rank_pattern", str, None, "Ranks for some layers: layer.5.attention.self.query=16.", LORA, many=True,
           metavar="NAME=RANK"),
    Option("rslora", bool, False, "Scale by alpha / sqrt(rank) instead.", LORA),
    Option("dora", bool, False, "Learn each row's magnitude apart from its direction (DoRA).", LORA),
    Option("lora_plus_ratio", float, 1.0, "How much faster B learns than A (LoRA+).", LORA, above=0),
    Option("checkpointing", bool, False, "Keep less of the forward pass and compute it again: slower, less memory.",
           MODEL),
    Option("epochs", float, 2.0, "Passes over the training windows.", LOOP, above=0, maximum=1000),
    Option("max_steps", int, None, "Optimizer steps, instead of --epochs.", LOOP, minimum=1, maximum=10_000_000),
    Option("batch_size", int, 16, "Windows per optimizer step.", LOOP, minimum=1),
    Option("tokens_per_micro_batch", int, 6144, "Most tokens, with padding, in one forward pass.", LOOP, minimum=1),
    Option("lr", float, 1e-4, "Peak learning rate.", LOOP, above=0),
    Option("warmup", float, 0.1, "Share of the steps in which the rate rises.", LOOP, minimum=0, maximum=1),
    Option("weight_decay", float, 0.01, "AdamW's decay of matrices.", LOOP, minimum=0),
    Option("clip", float, 1.0, "Largest norm of the gradient.", LOOP, above=0),
    Option("seed", int, 0, "Of the head, the order of the data and dropout.", LOOP, minimum=0, maximum=2**63 - 1),
    Option("precision", str, "auto", "Number format of the matrix products.", LOOP,
           choices=("auto", "fp32", "bf16", "fp16")),
    Option("device", str, "auto", "auto, cpu, cuda or cuda:1.", LOOP),
    Option("window_length", int, 384, "Tokens in a window, question included.", WINDOWS, minimum=8),
    Option("window_overlap", int, None, "Tokens that neighbouring windows share (128 unless a step is given).",
           WINDOWS, minimum=0),
    Option("window_step", int, None, "Tokens from one window's start to the next, instead of an overlap.", WINDOWS,
           minimum=1),
    Option("max_answer_tokens", int, 30, "Longest answer, in tokens.", WINDOWS, minimum=1),
    Option("n_best", int, 20, "Candidates kept per question.", WINDOWS, minimum=1),
    Option("out", Path, None, "Folder of the run; unset: runs/DATA-MODEL.", RUN, metavar="DIR"),
    Option("resume", bool, False, "Continue the run in --out exactly where its newest checkpoint stands.", RUN),
    Option("save_every", int, 200, "Steps between checkpoints.", RUN, minimum=1),
    Option("keep", int, 2, "Checkpoints kept.", RUN, minimum=1),
    Option("eval_every", int, None, "Steps between evaluations; unset: at the end of each epoch.", RUN, minimum=1),
    Option("eval_first", bool, False, "Also score before the first step.", RUN),
    Option("patience", int, None, "Stop after this many evaluations without a better F1.", RUN, minimum=1),
)
