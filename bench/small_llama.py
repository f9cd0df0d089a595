"""A small LLaMA of random weights to be trained from scratch, an encoder of its size, and a synthetic task for both.

    python -m bench.small_llama --out tiny-llama --texts train.json more.json
    python -m bench.small_llama --out tiny-roberta --texts train.json more.json --encoder
    python -m bench.small_llama --copy-task 4000 --out copy-task
    python train.py --model tiny-llama --train copy-task/train.json --dev copy-task/dev.json

The vocabulary is a byte-level BPE of the sample corpus and the given files; turns are TinyLlama's. Texts of the copy
task say who, what, where and when, each most of the time, between sentences that say nothing ("Nobody spoke. It was told
by Dovaz Ribek. The red lamp is gone."), and a question asks for one of the four: a decoder has to know which words are of
that kind and copy them, or say that there are none. No value of dev.json is in train.json ("Dovaz Ribek", "red lamp");
the words that they are made of are. It need not look anything up by a name: docs/experiments.md tells what came of that.
"""

import argparse
import itertools
import random
import sys
from pathlib import Path

from common.errors import InputError
from common.files import write_folder, write_json

SPECIALS = ["<unk>", "<s>", "</s>"]
ENCODER_SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]
POSITIONS = 1024
TEMPLATE = (
    "{% for m in messages %}{{ '<|user|>\n' if m['role'] == 'user' else '<|assistant|>\n' if m['role'] == 'assistant' "
    "else '<|system|>\n' }}{{ m['content'] + '</s>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
SYLLABLES = ["ba", "do", "ki", "lu", "me", "no", "pa", "ri", "so", "tu", "va", "ze"]
ENDINGS = ["k", "n", "r", "s", "t"]
WORDS = random.Random(0).sample(["".join(x).capitalize() for x in itertools.product(SYLLABLES, SYLLABLES, ENDINGS)], 200)
COLOURS = ["red", "blue", "green", "white", "black", "yellow", "grey", "brown"]
THINGS = ["lamp", "boat", "book", "coat", "door", "key", "bell", "cup", "hat", "ring", "cart", "drum"]
PLACES = ["Bay", "Hill", "Ford", "Field", "Bridge"]
MONTHS = ["January", "March", "April", "June", "August", "October", "December"]
KINDS = {  # the words that a value's two parts come from; how a text says it; how a question asks for it
    "who": (WORDS[:40], WORDS[40:140], ["It was told by {}.", "{} was there.", "All waited for {}."],
            ["Who is named?", "Which person is it about?", "Who was it?"]),
    "what": (COLOURS, THINGS, ["The {} is gone.", "They had a {}.", "A {} was found."],
             ["Which thing is named?", "What is it about?", "What was it?"]),
    "where": (WORDS[140:], PLACES, ["The road goes to {}.", "It began at {}.", "Boats left {}."],
              ["Which place is named?", "Where was it?", "At which place?"]),
    "when": (MONTHS, [str(year) for year in range(1850, 1950)],
             ["That was in {}.", "In {} it rained.", "Until {} all was well."],
             ["Which date is named?", "When was it?", "Which month was it?"]),
}
FILLERS = ["Nobody spoke.", "The evening was quiet.", "So they say.", "It was cold.", "Some laughed.", "The rest is known."]
SAID = 0.8  # of the four, how many a text says on average


def texts_of(paths):
    """Contexts and questions of the sample corpus and of data files."""
    from data.readers import read_dataset

    sample = Path(__file__).parents[1] / "data/sample"
    for path in (sample / "train.json", sample / "dev.json", *paths):
        examples = read_dataset(path, misaligned="keep").examples
        yield from dict.fromkeys(example.context for example in examples if example.context)
        yield from (example.question for example in examples)


def make_tokenizer(texts, vocab_size, specials):
    """A byte-level BPE trained on `texts`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=specials, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def make_model(options):
    """Fill --out with config.json, weights and tokenizer."""
    import torch

    from data.tokenizer import save_tokenizer
    from model.saving import save_weights

    copied = [text + "<|user|>\n<|assistant|>\nunanswerable" for text in texts_of_task(4000)]
    specials = ENCODER_SPECIALS if options.encoder else SPECIALS
    tokenizer = make_tokenizer([*texts_of(options.texts), *copied], options.vocab, specials)
    torch.manual_seed(options.seed)
    model = (encoder if options.encoder else decoder)(tokenizer.get_vocab_size(), options)
    if options.encoder:
        frame(tokenizer)

    def fill(folder):
        save_weights(model, folder)
        names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
        save_tokenizer(tokenizer, folder, names | ({} if options.encoder else {"chat_template": TEMPLATE}))

    write_folder(options.out, fill)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{options.out}: {count:,} parameters, {tokenizer.get_vocab_size():,} tokens")


def decoder(words, options):
    """A LLaMA whose query heads share key heads two by two."""
    from model.llama import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        words, hidden_size=options.hidden, intermediate_size=options.hidden * 8 // 3,
        num_hidden_layers=options.layers, num_attention_heads=options.heads, num_key_value_heads=options.heads // 2,
        max_position_embeddings=POSITIONS, tie_word_embeddings=True, token_ids={"bos_token_id": 1, "eos_token_id": 2},
        initializer_range=options.hidden**-0.5,  # the usual 0.02 is for thousands: here all would be nearly 0
    )
    config.check("--hidden and --heads")
    return LlamaForCausalLM(config)


def encoder(words, options):
    """A RoBERTa whose layers have as many parameters: 4 D² + 2 DF is the decoder's 11 D² where F is 3.5 D."""
    from model.bert import BertConfig, BertForQuestionAnswering

    values = dict(
        vocab_size=words, hidden_size=options.hidden, intermediate_size=options.hidden * 7 // 2,
        num_hidden_layers=options.layers, num_attention_heads=options.heads, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, max_position_embeddings=POSITIONS + 2, type_vocab_size=1, layer_norm_eps=1e-5,
        pad_token_id=1, model_type="roberta", initializer_range=options.hidden**-0.5,
    )
    return BertForQuestionAnswering(BertConfig.from_dict(values, "--hidden and --heads"))


def frame(tokenizer):
    """Let a tokenizer put a pair of texts between RoBERTa's special tokens."""
    from tokenizers.processors import RobertaProcessing

    ids = {token: tokenizer.token_to_id(token) for token in ("</s>", "<s>")}
    tokenizer.post_processor = RobertaProcessing(*ids.items(), trim_offsets=False, add_prefix_space=False)


def values(kind, part):
    """What a text may say of a kind: one of five pairs of first and second words is for "dev", the others for "train"."""
    firsts, seconds = KINDS[kind][:2]
    pairs = itertools.product(enumerate(firsts), enumerate(seconds))
    return [f"{one} {other}" for (a, one), (b, other) in pairs if ((a + b) % 5 == 0) is (part == "dev")]


def copy_task(count, seed, part):
    """A SQuAD file's contents of `count` texts with a question each."""
    chance, known, paragraphs = random.Random(seed), {kind: values(kind, part) for kind in KINDS}, []
    for number in range(count):
        said = {kind: chance.choice(known[kind]) for kind in KINDS if chance.random() < SAID}
        sentences = [chance.choice(KINDS[kind][2]).format(value) for kind, value in said.items()]
        sentences += chance.sample(FILLERS, 3)
        chance.shuffle(sentences)
        context, kind = " ".join(sentences), chance.choice(list(KINDS))
        answers = [{"text": said[kind], "answer_start": context.index(said[kind])}] if kind in said else []
        question = {
            "id": f"{part}-{number}", "question": chance.choice(KINDS[kind][3]), "answers": answers,
            "is_impossible": not answers,
        }
        paragraphs.append({"context": context, "qas": [question]})
    return {"version": "v2.0", "data": [{"title": "copy", "paragraphs": paragraphs}]}


def texts_of_task(count):
    """Some of its texts and questions, for a vocabulary."""
    for paragraph in copy_task(count, 0, "train")["data"][0]["paragraphs"]:
        yield f"{paragraph['context']} {paragraph['qas'][0]['question']}"


def make_task(options):
    """Write train.json and dev.json of the copy task into --out."""
    questions = min(400, max(1, options.copy_task // 10))
    dev, train = copy_task(questions, options.seed + 1, "dev"), copy_task(options.copy_task, options.seed, "train")

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
    parser.add_argument("--encoder", action="store_true", help="make a RoBERTa of the decoder's size instead")
    parser.add_argument("--texts", nargs="*", type=Path, default=[], metavar="FILE", help="for the vocabulary")
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    try:
        if options.encoder and options.copy_task is not None:
            raise InputError("--encoder is of a model, and --copy-task makes questions")
        if options.out.exists():
            raise InputError(f"{options.out}: is there already; choose another --out")
        (make_model if options.copy_task is None else make_task)(options)
    except InputError as error:
        print(f"bench.small_llama: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
