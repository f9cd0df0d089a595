"""A small LLaMA of random weights to be trained from scratch, and a synthetic task for it.

    python -m bench.small_llama --out tiny-llama --texts train.json more.json
    python -m bench.small_llama --copy-task 4000 --out copy-task
    python train.py --model tiny-llama --train copy-task/train.json --dev copy-task/dev.json

The vocabulary is a byte-level BPE of the sample corpus and the given files; turns are TinyLlama's. The copy task has
texts of made-up names and things ("Dovaz Ribek has a red lamp. …") and asks what one of them has, or somebody who is
not there: to answer it, a decoder has to find the name and copy what follows. No name of dev.json is in train.json;
the words of its names are, each a token in a vocabulary of 1,024 or more. With
--rounds the texts of train.json say everything more than once, each time in another order: with `--train-on-inputs`
each sentence after the first round is then a question of its own.
"""

import argparse
import itertools
import random
import sys
from pathlib import Path

from common.errors import InputError
from common.files import write_folder, write_json

SPECIALS = ["<unk>", "<s>", "</s>"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|user|>\n' if m['role'] == 'user' else '<|assistant|>\n' if m['role'] == 'assistant' "
    "else '<|system|>\n' }}{{ m['content'] + '</s>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
SYLLABLES = ["ba", "do", "ki", "lu", "me", "no", "pa", "ri", "so", "tu", "va", "ze"]
ENDINGS = ["k", "n", "r", "s", "t"]
FIRST_NAMES, LAST_NAMES = 40, 100
COLOURS = ["red", "blue", "green", "white", "black", "yellow", "grey", "brown"]
OPENING = "Look around."  # so that every name stands after a space, and has the same tokens wherever it is
THINGS = ["lamp", "boat", "book", "coat", "door", "key", "bell", "cup", "hat", "ring", "cart", "drum"]


def texts_of(paths):
    """Contexts and questions of the sample corpus and of data files."""
    from data.readers import read_dataset

    sample = Path(__file__).parents[1] / "data/sample"
    for path in (sample / "train.json", sample / "dev.json", *paths):
        examples = read_dataset(path, misaligned="keep").examples
        yield from dict.fromkeys(example.context for example in examples if example.context)
        yield from (example.question for example in examples)


def make_tokenizer(texts, vocab_size):
    """A byte-level BPE trained on `texts`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIALS, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def make_model(options):
    """Fill --out with config.json, weights and tokenizer."""
    import torch

    from data.tokenizer import save_tokenizer
    from model.llama import LlamaConfig, LlamaForCausalLM
    from model.weights import save_weights

    chance, names = random.Random(0), all_names("train")  # whose words are those of all names
    copied = [said(facts_of(chance, 50, names)) + "<|user|>\n<|assistant|>\nunanswerable" for _ in range(200)]
    tokenizer = make_tokenizer([*texts_of(options.texts), *copied], options.vocab)
    torch.manual_seed(options.seed)
    config = LlamaConfig(
        tokenizer.get_vocab_size(), hidden_size=options.hidden, intermediate_size=options.hidden * 8 // 3,
        num_hidden_layers=options.layers, num_attention_heads=options.heads, num_key_value_heads=options.heads // 2,
        max_position_embeddings=1024, tie_word_embeddings=True, token_ids={"bos_token_id": 1, "eos_token_id": 2},
        initializer_range=options.hidden**-0.5,  # the usual 0.02 is for thousands: here all would be nearly 0
    )
    config.check("--hidden and --heads")
    model = LlamaForCausalLM(config)

    def fill(folder):
        save_weights(model, folder)
        names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
        save_tokenizer(tokenizer, folder, names)

    write_folder(options.out, fill)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{options.out}: {count:,} parameters, {tokenizer.get_vocab_size():,} tokens")


def all_names(part):
    """Names of two words, Dovaz Ribek: one of five pairs of first and last names is for "dev", the others for "train"."""
    words = {"".join(parts).capitalize() for parts in itertools.product(SYLLABLES, SYLLABLES, ENDINGS)}
    words = random.Random(0).sample(sorted(words), FIRST_NAMES + LAST_NAMES)
    pairs = itertools.product(range(FIRST_NAMES), range(FIRST_NAMES, len(words)))
    return [f"{words[a]} {words[b]}" for a, b in pairs if ((a + b) % 5 == 0) is (part == "dev")]


def facts_of(chance, count, names):
    """(name, what is had) of `count` different names."""
    return [(name, f"{chance.choice(COLOURS)} {chance.choice(THINGS)}") for name in chance.sample(names, count)]


def said(facts):
    """A text of some facts."""
    return " ".join([OPENING, *(f"{name} has a {had}." for name, had in facts)])


def copy_task(count, seed, part, facts=6, rounds=1):
    """A SQuAD file's contents of `count` texts with a question each; one in five has no answer.

    facts: sentences of a text. rounds: how often they stand there, each time in another order.
    """
    chance, names, paragraphs = random.Random(seed), all_names(part), []
    for number in range(count):
        rows = facts_of(chance, facts, names)
        context = said([*rows, *(fact for _ in range(rounds - 1) for fact in chance.sample(rows, facts))])
        if chance.random() < 0.2:
            present = [name for name, _ in rows]
            name, answers = chance.choice([name for name in names if name not in present]), []
        else:
            name, had = chance.choice(rows)
            answers = [{"text": had, "answer_start": context.index(f"{name} has a ") + len(f"{name} has a ")}]
        question = {
            "id": f"{part}-{number}", "question": f"What does {name} have?", "answers": answers,
            "is_impossible": not answers,
        }
        paragraphs.append({"context": context, "qas": [question]})
    return {"version": "v2.0", "data": [{"title": "copy", "paragraphs": paragraphs}]}


def make_task(options):
    """Write train.json and dev.json of the copy task into --out."""
    questions = min(400, max(1, options.copy_task // 10))
    dev = copy_task(questions, options.seed + 1, "dev", options.facts)
    train = copy_task(options.copy_task, options.seed, "train", options.facts, options.rounds)

    def fill(folder):
        write_json(folder / "train.json", train)
        write_json(folder / "dev.json", dev)

    write_folder(options.out, fill)
    print(f"{options.out}: {options.copy_task:,} questions to train on, {questions} to score")


def main(argv=None):
    """Make the model or the task; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.small_llama", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--copy-task", type=int, metavar="N", help="make N questions of the copy task instead")
    parser.add_argument("--facts", type=int, default=6, metavar="N", help="sentences of a text of the copy task")
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="how often its texts to train on say it")
    parser.add_argument("--texts", nargs="*", type=Path, default=[], metavar="FILE", help="for the vocabulary")
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    try:
        if options.out.exists():
            raise InputError(f"{options.out}: is there already; choose another --out")
        (make_model if options.copy_task is None else make_task)(options)
    except InputError as error:
        print(f"bench.small_llama: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
