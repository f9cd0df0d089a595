"""Questions without texts: reading them, chats as prompts, training on them, and answers said freely."""

import io
import json
import sys

import numpy as np
import pytest

import data.__main__ as data_command
import infer
import train
from answering.reader import Reader
from common.errors import InputError
from data.chat import FORMATS, encode_chat
from data.lint import lint
from data.prompts import IGNORED, PromptSettings, TalkSet
from data.readers import read_dataset
from metrics import corpus_bleu, f1_v1, rouge_l
from tests.tiny_decoder import make_folder, make_tokenizer
from tests.tiny_run import arguments, write_squad

RECORDS = [
    {"question": "Where is the mill?", "answer": "By the old river."},
    {"question": "Name its colours.", "answer_keywords": ["red", " white"], "id": 7},
    {"question": "And who built it?", "answer": ["Ada.", "Ada did, in 1807."], "history": [["Is it old?", "Very."]]},
    {"question": "Why?", "answers": "For flour.", "history": [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it used?"},
        {"role": "assistant", "content": "Yes."}], "colour": 3},
]


def write(path, records):
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def test_records_become_questions(tmp_path):
    dataset = read_dataset(write(tmp_path / "talk.json", RECORDS))
    assert not dataset.has_texts and not dataset.may_lack_answer
    assert [e.id for e in dataset.examples] == ["talk:1", "7", "talk:3", "talk:4"]
    texts = [[a.text for a in e.answers] for e in dataset.examples]
    assert texts == [["By the old river."], ["red, white"], ["Ada.", "Ada did, in 1807."], ["For flour."]]
    assert dataset.examples[2].history == (("user", "Is it old?"), ("assistant", "Very."))
    assert [role for role, _ in dataset.examples[3].history] == ["system", "user", "assistant"]
    assert dataset.notices == [f"{tmp_path / 'talk.json'}: extra keys left unread: colour (1)"]
    asked = write(tmp_path / "asked.json", [{"question": "Who?", "answer": None}])
    assert read_dataset(asked).examples[0].answers is None


@pytest.mark.parametrize(
    "record, sentence",
    [
        ({"answer": "x"}, r'\[1\]: "question" is missing'),
        ({"question": "q", "answer": ""}, r"\[1\].answer: an answer cannot be empty"),
        ({"question": "q", "answer": "a", "answer_keywords": ["a"]}, "answer and answer_keywords both give the answer"),
        ({"question": "q", "answer_keywords": ["a", 3]}, r"answer_keywords\[1\]: expected"),
        ({"question": "q", "context": "c", "answer": "a"}, "part the two kinds"),
        ({"question": "q", "history": [["a"]]}, r"\[1\].history\[0\]: expected a question and its answer"),
        ({"question": "q", "history": [{"role": "judge", "content": ""}]}, "role: expected one of system, user"),
        ({"question": "q", "history": [{"role": "user", "content": "x"}]}, "the assistant last"),
        (3, r"\[1\]: expected an object"),
    ],
)
def test_faults_are_named(tmp_path, record, sentence):
    with pytest.raises(InputError, match=sentence):
        read_dataset(write(tmp_path / "talk.json", [RECORDS[0], record]))


def test_the_two_kinds_do_not_mix(tmp_path):
    paths = [write_squad(tmp_path / "texts.json", [1]), write(tmp_path / "talk.json", RECORDS)]
    with pytest.raises(InputError, match="talk.json: asks without texts, and .*texts.json about texts"):
        read_dataset(paths)


@pytest.mark.parametrize("name", FORMATS)
def test_prompts_are_chats_with_the_turns_before(tmp_path, name):
    tokenizer, chat = make_tokenizer(), FORMATS[name]
    tokenizer.encode_special_tokens = True
    some = read_dataset(write(tmp_path / "talk.json", RECORDS)).examples
    settings = PromptSettings(length=120, max_answer=30)
    talks = TalkSet(some, tokenizer, chat, settings, with_labels=True, pad=3)
    assert talks.example.tolist() == [0, 1, 2, 2, 3] and talks.share.tolist() == [1, 1, 0.5, 0.5, 1]
    asked = [*some[2].history, ("user", some[2].question)]
    assert talks.prompt_ids(3) == encode_chat(tokenizer, asked, chat)
    # what is said is what the format would write as the assistant's turn
    with_answer = encode_chat(tokenizer, [*asked, ("assistant", "Ada."), ("user", "x")], chat)
    whole = talks.prompt_ids(2) + talks.answers[2]
    decode = lambda ids: tokenizer.decode(ids, skip_special_tokens=False).replace(" </s>", "</s>")  # noqa: E731
    assert decode(with_answer).startswith(decode(whole))
    batch = talks.fill(np.arange(5))
    assert (batch["labels"] != IGNORED).sum() == talks.said.sum() and batch["share"].tolist() == talks.share.tolist()
    assert talks.units(np.arange(5)) == pytest.approx(talks.said[[0, 1, 4]].sum() + talks.said[2:4].sum() / 2)
    short = TalkSet(some, tokenizer, chat, PromptSettings(length=67, max_answer=12), with_labels=True)
    assert short.length.max() <= 67
    first = TalkSet(some, tokenizer, chat, settings, with_labels=True, references="first")
    assert first.example.tolist() == [0, 1, 2, 3]


def test_what_does_not_fit_is_left_away(tmp_path):
    tokenizer, chat = make_tokenizer(), FORMATS["tinyllama"]
    history = [["What is it? " * 3, f"Answer number {k}."] for k in range(9)]
    record = {"question": "And what else is there to see? " * 9, "answer": "Nothing.", "history": history}
    some = read_dataset(write(tmp_path / "talk.json", [record])).examples
    talks = TalkSet(some, tokenizer, chat, PromptSettings(length=150, max_question=20, max_answer=9), with_labels=True)
    text = tokenizer.decode(talks.prompt_ids(0), skip_special_tokens=False)
    assert (talks.cut_questions, talks.cut_histories) == (1, 1)
    assert "number 8" in text and "number 0" not in text and len(talks.prompts[0]) <= 140
    whole = TalkSet(some, tokenizer, chat, PromptSettings(length=2000, max_question=400, max_answer=9))
    assert (whole.cut_questions, whole.cut_histories) == (0, 0)
    with pytest.raises(InputError, match="leave no room for this question"):
        TalkSet(some, tokenizer, chat, PromptSettings(length=30, max_answer=9))
    none = TalkSet(some, tokenizer, chat, PromptSettings(length=150, max_answer=1), with_labels=True)
    assert none.unlabelled == [0] and len(none) == 0


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A run that learned RECORDS by heart."""
    folder = tmp_path_factory.mktemp("talk")
    for name in ("train", "dev"):
        write(folder / f"{name}.json", RECORDS)
    model = make_folder(folder / "llama", initializer_range=0.1)
    argv = arguments(
        folder, model, folder / "run", window_length=120, max_steps=60, lr=0.01, save_every=60, eval_every=30,
        eval_first=True, tokens_per_micro_batch=2000,
    )
    assert train.main(list(map(str, argv))) == 0
    return folder


def test_training_on_talks_is_scored_with_bleu_and_rouge(learned):
    metrics = json.loads((learned / "run/metrics.json").read_text())
    said = json.loads((learned / "run/predictions.json").read_text())
    examples = read_dataset(learned / "dev.json").examples
    pairs = [(said[e.id], [a.text for a in e.answers]) for e in examples]
    assert metrics["bleu"] == pytest.approx(corpus_bleu(*zip(*pairs)))
    assert metrics["rouge_l"] == pytest.approx(100 * sum(rouge_l(*pair) for pair in pairs) / 4)
    assert metrics["f1"] == pytest.approx(100 * sum(max(f1_v1(text, r) for r in texts) for text, texts in pairs) / 4)
    assert metrics["evaluations"][0]["f1"] < 30 < metrics["f1"] and said["dev:1"] == "By the old river."


def test_infer_answers_without_a_text(learned, capsys, monkeypatch, tmp_path, tiny_folder):
    ask = ["--model", str(learned / "run"), "--chat"]
    assert infer.main([*ask, "--question", "Where is the mill?", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["answer"] == "By the old river." and found["start"] is None and 0 < found["score"] <= 1
    script = "Is it old?\nWhere is the mill?\n/quit\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(script.encode())))
    seen = []
    original = Reader.predict

    def predict(self, examples, **more):
        seen.append(examples[0])
        return original(self, examples, **more)

    monkeypatch.setattr(Reader, "predict", predict)
    assert infer.main(ask) == 0
    assert "not in the text" not in capsys.readouterr().out
    assert [e.question for e in seen] == ["Is it old?", "Where is the mill?"]
    assert seen[0].history == () and [text for _, text in seen[1].history][0] == "Is it old?"
    monkeypatch.undo()
    argv = ["--model", str(learned / "run"), "--predict", str(learned / "dev.json"), "--out", str(tmp_path / "out")]
    assert infer.main(argv) == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    run_metrics = json.loads((learned / "run/metrics.json").read_text())
    assert all(metrics[name] == run_metrics[name] for name in ("f1", "bleu", "rouge_l", "total"))
    assert "not_in_text" not in metrics
    assert infer.main([*ask, "--question", "Who?", "--null-threshold", "1", "--template", "{context} {question}"]) == 2
    assert "--chat asks without a text, and does not go with --template, --null-threshold" in capsys.readouterr().err
    assert infer.main([*ask, "--question", "Who?", "--null-threshold", "0"]) == 2  # 0 == False
    assert "does not go with --null-threshold" in capsys.readouterr().err
    assert infer.main(["--model", str(tiny_folder), "--chat", "--question", "Who?"]) == 2
    assert "--chat is for a decoder" in capsys.readouterr().err


def test_a_bert_cannot_learn_them(learned, tiny_folder, tmp_path, capsys):
    assert train.main(list(map(str, arguments(learned, tiny_folder, tmp_path / "out")))) == 2
    assert "a question without a text, which only a decoder answers" in capsys.readouterr().err


def test_turns_that_were_left_away_are_said_once(learned, tmp_path, capsys):
    history = [["What is it? " * 3, f"Answer number {k}."] for k in range(9)]
    write(tmp_path / "train.json", [{"question": "And?", "answer": "Nothing.", "history": history}, RECORDS[0]])
    write(tmp_path / "dev.json", RECORDS)
    argv = arguments(tmp_path, learned / "llama", tmp_path / "out", window_length=120, max_steps=1)
    assert train.main(list(map(str, argv))) == 0
    shown = capsys.readouterr().out
    assert "note: 1 conversation too long for prompts of 120 tokens, whose oldest turns were left away" in shown


@pytest.mark.parametrize("flag", [["--template", "{context} {question}"], ["--no-answer-phrase", "none"], ["--shots", "x.json"]])
def test_what_is_for_questions_about_texts_is_refused(learned, tmp_path, capsys, flag):
    argv = [*map(str, arguments(learned, learned / "llama", tmp_path / "out")), *flag]
    assert train.main(argv) == 2
    assert f"train.json: asks without texts, and {flag[0]} is for questions about them" in capsys.readouterr().err
    argv = ["--model", str(learned / "run"), "--predict", str(learned / "dev.json"), "--out", str(tmp_path / "out"), *flag]
    assert infer.main(argv) == 2
    assert f"dev.json asks without a text, and does not go with {flag[0]}" in capsys.readouterr().err
    assert infer.main(["--model", str(learned / "run"), "--chat", "--question", "Who?", "--decode", "span"]) == 2
    assert "--chat asks without a text, and does not go with --decode span" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_linter_knows_them(tmp_path, capsys):
    again, empty = {**RECORDS[0], "question": " Where is the mill?"}, {"question": "", "answer": "x"}
    path = write(tmp_path / "talk.json", [*RECORDS, again, empty])
    report = lint(path)
    (summary,) = report.summaries
    assert summary.counts == {
        "questions without a text": 6, "after other turns": 2, "without references": 0, "references": 7
    }
    assert summary.lengths["question", "words"][0] == 0 and summary.references == {1: 5, 2: 1}
    assert [(one.kind, one.where) for one in report.findings] == [
        ("outer whitespace", "[4].question"), ("duplicate question", "[4]"), ("empty question", "[5].question"),
    ]
    assert data_command.main([str(path)]) == 1 and "asks the same after the same turns as [0]" in capsys.readouterr().out
    assert data_command.main([str(write(path, RECORDS))]) == 0
    assert "questions without a text 4, after other turns 2" in capsys.readouterr().out
    assert data_command.main([str(path), str(write_squad(tmp_path / "texts.json", [1]))]) == 2
    assert "give one kind at a time" in capsys.readouterr().err
    assert data_command.main([str(path), "--repair", str(tmp_path / "out.json")]) == 2
    assert "questions without texts hold no places that could be mended" in capsys.readouterr().err
