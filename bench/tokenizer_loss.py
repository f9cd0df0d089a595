"""What a tokenizer does to the letters of a data set: python -m bench.tokenizer_loss FILE… [--model minilm]

Counts, over contexts and questions, the characters that its normaliser drops or replaces, the words it changes (beyond
their case), the different words that it makes equal, and the words it cannot spell at all.
"""

import argparse
import json
import sys
import unicodedata
from collections import Counter

from common.errors import InputError
from data.readers import read_dataset
from data.tokenizer import load_tokenizer
from model.source import resolve_model

ZWNJ = "\u200c"


def measure(texts, tokenizer):
    """Counts over all white-space words of `texts`; shares are of words or of different words (types)."""
    normalise = tokenizer.normalizer.normalize_str
    words = Counter(word for text in texts for word in text.split())
    types = list(words)
    after = {word: normalise(word) for word in types}
    spelled = Counter(normalise(word) for word in {word.lower() for word in types})
    unknown = {
        word for word, encoding in zip(types, tokenizer.encode_batch(types, add_special_tokens=False), strict=True)
        if "[UNK]" in encoding.tokens
    }
    total = sum(words.values())
    dropped, replaced = Counter(), Counter()
    for word, count in words.items():
        for character in word:
            result = normalise(character)
            # an ideograph gets spaces around it, which is no loss
            if result.strip() == character.lower():
                continue
            (replaced if result.strip() else dropped)[character] += count
    changed = sum(count for word, count in words.items() if "".join(after[word].split()) != word.lower())
    return {
        "words": total,
        "word_types": len(types),
        "words_changed_share": changed / total,
        "types_that_collide_share": sum(n for n in spelled.values() if n > 1) / sum(spelled.values()),
        "words_unknown_share": sum(words[w] for w in unknown) / total,
        "zwnj_dropped": dropped[ZWNJ],
        "format_characters_dropped": sum(n for c, n in dropped.items() if unicodedata.category(c) == "Cf"),
        "marks_dropped": sum(n for c, n in dropped.items() if unicodedata.category(c) == "Mn"),
        "letters_replaced": sum(replaced.values()),
        "most_replaced": {f"{c} -> {normalise(c)}": n for c, n in replaced.most_common(5)},
    }


def main(argv=None):
    """Print one JSON object; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.tokenizer_loss", description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--model", default="minilm")
    options = parser.parse_args(argv)
    try:
        tokenizer = load_tokenizer(resolve_model(options.model).folder)
        examples = read_dataset(options.files, misaligned="keep").examples
    except InputError as error:
        print(f"bench.tokenizer_loss: {error}", file=sys.stderr)
        return 2
    texts = [*dict.fromkeys(example.context for example in examples), *(example.question for example in examples)]
    print(json.dumps(measure(texts, tokenizer), ensure_ascii=False, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
