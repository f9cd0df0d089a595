"""A small LLaMA of random weights to be trained from scratch, and a synthetic task for it.

    python -m bench.small_llama --out tiny-llama --texts train.json more.json
    python -m bench.small_llama --copy-task 4000 --out copy-task
    python train.py --model tiny-llama --train copy-task/train.json --dev copy-task/dev.json

The vocabulary is a byte-level BPE of the sample corpus and the given files; turns are TinyLlama's. The copy task has
texts of made-up names and things ("Bormak has a red lamp. …") and asks what one of them has, or somebody who is not
there: to answer it, a decoder has to find the name and copy what follows. No name of dev.json is in train.json.
"""

import argparse
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
COLOURS = ["red", "blue", "green", "white", "black", "yellow", "grey", "brown"]
THINGS = ["lamp", "boat", "book", "coat", "door", "key", "bell", "cup", "hat", "ring", "cart", "drum"]
SENTENCES = 6  # of a text


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

    tokenizer = make_tokenizer([*texts_of(options.texts), *(text for text, _ in sentences(random.Random(0), 500))],
                               options.vocab)
    torch.manual_seed(options.seed)
    config = LlamaConfig(
        tokenizer.get_vocab_size(), hidden_size=options.hidden, intermediate_size=options.hidden * 8 // 3,
        num_hidden_layers=options.layers, num_attention_heads=options.heads, num_key_value_heads=options.heads // 2,
        max_position_embeddings=1024, tie_word_embeddings=True, token_ids={"bos_token_id": 1, "eos_token_id": 2},
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


def make_name(chance):
    """Two or three syllables and an ending: Dovazek."""
    return ("".join(chance.choices(SYLLABLES, k=chance.choice((2, 3)))) + chance.choice(ENDINGS)).capitalize()


def sentences(chance, count, taken=frozenset()):
    """Yield (sentence, (name, what is had)) with names that are not in `taken`."""
    for _ in range(count):
        while (name := make_name(chance)) in taken:
            pass
        had = f"{chance.choice(COLOURS)} {chance.choice(THINGS)}"
        yield f"{name} has a {had}.", (name, had)


def copy_task(count, seed, prefix, taken=frozenset()):
    """(a SQuAD file's contents of `count` texts with a question each, the names in it); one in five has no answer."""
    chance, paragraphs, names = random.Random(seed), [], set()
    for number in range(count):
        rows = list(sentences(chance, SENTENCES, taken))
        present = [name for _, (name, _) in rows]
        context = " ".join(sentence for sentence, _ in rows)
        names |= set(present)
        if chance.random() < 0.2:
            while (name := make_name(chance)) in {*present, *taken}:
                pass
            answers = []
        else:
            name, had = chance.choice([fact for _, fact in rows])
            had = next(what for _, (other, what) in rows if other == name)  # of equal names the first counts
            answers = [{"text": had, "answer_start": context.index(f"{name} has a {had}") + len(f"{name} has a ")}]
        question = {
            "id": f"{prefix}-{number}", "question": f"What does {name} have?", "answers": answers,
            "is_impossible": not answers,
        }
        paragraphs.append({"context": context, "qas": [question]})
    return {"version": "v2.0", "data": [{"title": "copy", "paragraphs": paragraphs}]}, names


def make_task(options):
    """Write train.json and dev.json of the copy task into --out."""
    dev, names = copy_task(max(1, options.copy_task // 10), options.seed + 1, "dev")
    train, _ = copy_task(options.copy_task, options.seed, "train", frozenset(names))

    def fill(folder):
        write_json(folder / "train.json", train)
        write_json(folder / "dev.json", dev)

    write_folder(options.out, fill)
    print(f"{options.out}: {options.copy_task} questions to train on, {len(dev['data'][0]['paragraphs'])} to score")


def main(argv=None):
    """Make the model or the task; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.small_llama", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--copy-task", type=int, metavar="N", help="make N questions of the copy task instead")
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
