"""The peer of bench.quality, from start to predictions: python -m bench.run_qa START TRAIN DEV OUT SEED [LENGTH [LR]]

What run_qa.py of transformers does with the settings it is documented with, in the plainest code that does it: the fast tokenizer, everything
padded to 384 tokens with 128 of overlap, batches of 12 in random order, fp32, AdamW (fused), a rate that falls from 3e-5 to nothing, one epoch;
then the development set in batches of 8, and of each question the best span of at most 30 tokens. No Trainer, no data loader and no files in
between, so that it pays for none of them. OUT: {id: answer}, as JSON.
"""

import json
import sys

import numpy as np
import torch

OVERLAP, BATCH, EVALUATION_BATCH, LONGEST, CANDIDATES = 128, 12, 8, 30, 20


def questions_of(path):
    """[(id, question, context, answers)] of a SQuAD file."""
    with open(path, encoding="utf-8") as file:
        articles = json.load(file)["data"]
    return [
        (asked["id"], asked["question"].lstrip(), paragraph["context"], asked["answers"])
        for article in articles for paragraph in article["paragraphs"] for asked in paragraph["qas"]
    ]


def features_of(questions, tokenizer, length):
    """The windows of questions, as the fast tokenizer makes them: W rows of `length` tokens each."""
    return tokenizer(
        [question for _, question, _, _ in questions], [context for _, _, context, _ in questions], truncation="only_second",
        max_length=length, stride=min(OVERLAP, length // 3), padding="max_length", return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )


def labels_of(features, questions):
    """(W, 2): first and last token of the first answer in each window, or (0, 0)."""
    labels = np.zeros((len(features["input_ids"]), 2), np.int64)
    for window, number in enumerate(features["overflow_to_sample_mapping"]):
        answers = questions[number][3]
        if not answers:
            continue
        begin, end = answers[0]["answer_start"], answers[0]["answer_start"] + len(answers[0]["text"])
        here = [k for k, part in enumerate(features.sequence_ids(window)) if part == 1]
        offsets = features["offset_mapping"][window]
        if offsets[here[0]][0] <= begin and offsets[here[-1]][1] >= end:
            labels[window] = (
                max(k for k in here if offsets[k][0] <= begin), min(k for k in here if offsets[k][1] >= end),
            )
    return labels


def batches_of(features, order, size):
    """Yield (windows, what the model is called with) in the given order."""
    names = ("input_ids", "token_type_ids", "attention_mask")
    arrays = {name: torch.tensor(np.asarray(features[name])) for name in names if name in features}
    for first in range(0, len(order), size):
        chosen = order[first : first + size]
        yield chosen, {name: array[chosen] for name, array in arrays.items()}


def learn(model, features, labels, rate):
    """One epoch; each step with the next of evenly falling rates."""
    order = np.random.permutation(len(labels))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, fused=True)
    steps = -(-len(order) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model.train()
    for number, (chosen, batch) in enumerate(batches_of(features, order, BATCH)):
        start, end = torch.from_numpy(labels[chosen]).unbind(-1)
        loss = model(**batch, start_positions=start, end_positions=end).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if number % 50 == 0:
            print(f"peer: step {number} of {steps}, loss {loss.item():.3f}", file=sys.stderr, flush=True)


def best_span(start, end, first, last):
    """(score, first token, last token) of a window's best span among the best CANDIDATES starts and ends in [first, last]."""
    starts, ends = (first + np.argsort(-logits[first : last + 1])[:CANDIDATES] for logits in (start, end))
    scores = start[starts][:, None] + end[ends][None]
    length = ends[None] - starts[:, None] + 1
    scores[(length < 1) | (length > LONGEST)] = -np.inf
    place = np.unravel_index(scores.argmax(), scores.shape)
    return scores[place], starts[place[0]], ends[place[1]]


@torch.inference_mode()
def answer(model, features, questions):
    """{id: answer}: the best span over a question's windows."""
    model.eval()
    best = {}
    for chosen, batch in batches_of(features, np.arange(len(features["input_ids"])), EVALUATION_BATCH):
        out = model(**batch)
        for window, start, end in zip(chosen, out.start_logits.numpy(), out.end_logits.numpy(), strict=True):
            here = [k for k, part in enumerate(features.sequence_ids(window)) if part == 1]
            score, first, last = best_span(start, end, here[0], here[-1])
            name, _, context, _ = questions[features["overflow_to_sample_mapping"][window]]
            if name not in best or score > best[name][0]:
                offsets = features["offset_mapping"][window]
                best[name] = score, context[offsets[first][0] : offsets[last][1]]
    return {name: text for name, (_, text) in best.items()}


def main(argv):
    """Learn and answer; returns the exit code."""
    import transformers

    start, train, dev, out, seed, *more = argv
    length, rate = int(more[0]) if more else 384, float(more[1]) if more[1:] else 3e-5
    transformers.set_seed(int(seed))
    tokenizer = transformers.AutoTokenizer.from_pretrained(start)
    model = transformers.BertForQuestionAnswering.from_pretrained(start, dtype=torch.float32)
    questions = questions_of(train)
    features = features_of(questions, tokenizer, length)
    learn(model, features, labels_of(features, questions), rate)
    questions = questions_of(dev)
    with open(out, "w", encoding="utf-8") as file:
        json.dump(answer(model, features_of(questions, tokenizer, length), questions), file, ensure_ascii=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
