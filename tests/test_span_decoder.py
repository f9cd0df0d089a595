"""A LLaMA with a span head: logits and files of transformers' class, both masks, training like a BERT's."""

import json

import pytest
import torch
from safetensors.torch import load_file

import infer
import train
from model.llama import LlamaConfig
from model.llama_span import LlamaForQuestionAnswering
from answering.reader import Reader
from tests.tiny_decoder import TINY
from data.examples import Example
from tests.tiny_run import arguments, examples


def run(decoder_place, out, **changes):
    usual = {"max_steps": 4, "save_every": 2, "head": "span", "window_length": 90}
    return train.main(list(map(str, arguments(*decoder_place, out, **usual | changes))))


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_padding_and_masks(attention):
    """On the right padding shows to nobody; a causal token knows only what stands before it, a free one all."""
    torch.manual_seed(3)
    model = LlamaForQuestionAnswering(LlamaConfig(71, **TINY), causal=attention == "causal").eval()
    ids = torch.randint(0, 71, (2, 9))
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 6:] = False
    with torch.no_grad():
        start, end = model(ids, None, mask)
        alone = model(ids[1:, :6])
        assert (start[1, :6] - alone[0][0]).abs().max() < 1e-5 and (end[1, :6] - alone[1][0]).abs().max() < 1e-5
        changed = ids.clone()
        changed[0, 7] = (ids[0, 7] + 1) % 71
        moved = (model(changed, None, mask)[0][0] - start[0]).abs() > 1e-6
    assert moved[7:].all() and moved[:7].all() == (attention == "bidirectional") and moved[:7].any() == moved[:7].all()


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_it_trains_and_answers_with_spans(decoder_place, tmp_path, capsys, attention):
    out = tmp_path / "run"
    assert run(decoder_place, out, attention=attention, eval_first=True) == 0
    assert json.loads((out / "model/reader.json").read_text())["attention"] == attention
    reader = Reader.load(out / "model", device="cpu", precision="fp32")
    assert reader.model.transformer.causal is (attention == "causal") and not reader.report.new
    (prediction,) = reader.predict(list(examples([3])))
    assert prediction.spans and prediction.null is not None
    capsys.readouterr()
    ask = ["--model", str(out), "--question", "Who?", "--context", "A miller lived there.", "--json"]
    assert infer.main(ask) == 0
    assert "answer" in json.loads(capsys.readouterr().out)
    if attention == "causal":
        import transformers

        theirs = transformers.LlamaForQuestionAnswering.from_pretrained(out / "model").eval()
        ids = torch.randint(0, 600, (2, 17))
        with torch.no_grad():
            mine, other = reader.model.eval()(ids), theirs(ids)
        assert (mine[0] - other.start_logits).abs().max() < 1e-4 and (mine[1] - other.end_logits).abs().max() < 1e-4


def test_no_answer_is_the_last_token(decoder_place, tmp_path):
    assert run(decoder_place, tmp_path / "run") == 0
    reader = Reader.load(tmp_path / "run/model", device="cpu", precision="fp32")
    from data.readers import read_dataset

    some = read_dataset(decoder_place[0] / "dev.json").examples
    windows = reader.training_set(some)
    batch = windows.fill(range(len(windows)))
    assert (batch["null"] == windows.length - 1).all()
    assert {tuple(pair) for row, pair in zip(windows.length, windows.label[:, 0].tolist()) if pair[0] == row - 1}
    ids = [row[:length] for row, length in zip(batch["input_ids"].tolist(), windows.length)]
    assert all(row[0] == 1 and row[-1] == 2 for row in ids)  # <s> … </s>
    prediction = next(iter(reader.predict(some[:1])))
    with torch.no_grad():
        tensor = torch.tensor([ids[0]])
        start, end = reader.model.eval()(tensor)
    if prediction.windows == 1:
        assert prediction.null == pytest.approx((start[0, -1].item(), end[0, -1].item()), abs=1e-4)


def test_lora_brings_its_head_and_peft_opens_it(decoder_place, tmp_path):
    import peft
    import transformers

    assert run(decoder_place, tmp_path / "run", tune="lora", lora_rank=3) == 0
    config = json.loads((tmp_path / "run/model/adapter_config.json").read_text())
    assert config["modules_to_save"] == ["qa_outputs"]
    assert config["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    reader = Reader.load(tmp_path / "run/model", device="cpu", precision="fp32")
    # from_pretrained would make all weights anew: it does not find a causal checkpoint's names (transformers#30381)
    base = transformers.LlamaForQuestionAnswering(transformers.LlamaConfig.from_pretrained(decoder_place[1]))
    tensors = {
        name.replace("model.", "transformer.", 1): tensor
        for name, tensor in load_file(decoder_place[1] / "model.safetensors").items() if name != "lm_head.weight"
    }
    lacking, unknown = base.load_state_dict(tensors, strict=False)
    assert lacking == ["qa_outputs.weight", "qa_outputs.bias"] and not unknown
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "run/model").eval()
    ids = torch.randint(0, 600, (2, 17))
    with torch.no_grad():
        assert (reader.model.eval()(ids)[0] - theirs(ids).start_logits).abs().max() < 1e-4
    assert run(decoder_place, tmp_path / "more", tune="lora", lora_rank=3, head=None, model=tmp_path / "run/model") == 0
    assert (tmp_path / "more/model/reader.json").is_file()  # it goes on as it began
    before, after = (load_file(tmp_path / r / "model/adapter_model.safetensors") for r in ("run", "more"))
    assert before.keys() == after.keys()


@pytest.mark.parametrize(
    "changes, sentence",
    [({"head": "answer", "attention": "causal"}, "--attention is for a LLaMA with --head span"),
     ({"template": "{context}{question}"}, "--template is for a decoder")],
)
def test_what_cannot_be_is_said(decoder_place, tmp_path, capsys, changes, sentence):
    assert run(decoder_place, tmp_path / "out", **changes) == 2
    assert sentence in capsys.readouterr().err


def test_a_bert_has_no_words(decoder_place, tmp_path, capsys, tiny_folder):
    argv = arguments(decoder_place[0], tiny_folder, tmp_path / "out", head="answer")
    assert train.main(list(map(str, argv))) == 2
    assert "which finds spans and says nothing" in capsys.readouterr().err


def test_adapters_of_a_span_head_go_on_the_bare_base(decoder_place, tmp_path, capsys, monkeypatch):
    """The base, opened by itself, would answer in its own words."""
    lora = {"tune": "lora", "lora_rank": 2, "max_steps": 1}
    runs = {"one": {}, "two": {"seed": 5}, "both-ways": {"attention": "bidirectional"},
            "says": {"head": "answer", "template": "{context} {question}"}}
    for name, changes in runs.items():
        assert run(decoder_place, tmp_path / name, **lora, **changes) == 0
    monkeypatch.chdir(tmp_path)
    ask = ["--question", "Who?", "--context", "A miller lived there.", "--json", "--null-threshold", "99"]
    alone = {}
    for name in ("one", "two", "both-ways"):
        capsys.readouterr()
        assert infer.main(["--model", name, *ask]) == 0
        alone[name] = json.loads(capsys.readouterr().out)
    for given, active in ((["one"], "one"), (["one", "two"], "two"), (["both-ways"], "both-ways")):
        assert infer.main(["--adapter", *given, *ask]) == 0
        found = json.loads(capsys.readouterr().out)
        assert {**found, "seconds": 0} == {**alone[active], "seconds": 0}
    refused = {("one", "both-ways"): "by spans with bidirectional attention, and this model answers by spans with causal",
               ("one", "says"): "in its own words, and this model answers by spans with causal attention",
               ("says", "one"): "by spans with causal attention, and this model answers in its own words"}
    for given, sentence in refused.items():
        assert infer.main(["--adapter", *given, *ask]) == 2
        said = capsys.readouterr().err
        assert sentence in said and f"{given[1]}/model: this adapter was trained to answer" in said


@pytest.mark.parametrize("framed", [False, True])
def test_the_pipeline_reads_what_the_reader_reads(decoder_place, tmp_path, framed):
    """It took the tokenizer's own frame: with one, other windows and the first token's null; without one, a TypeError."""
    from answering.pipeline import QuestionAnsweringPipeline

    assert run(decoder_place, tmp_path / "run") == 0
    if framed:
        path = tmp_path / "run/model/tokenizer.json"
        values = json.loads(path.read_text())
        parts = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        pair = parts + [{"SpecialToken": {"id": "<s>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
        special = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
        values["post_processor"] = {"type": "TemplateProcessing", "single": parts, "pair": pair, "special_tokens": special}
        path.write_text(json.dumps(values))
    reader = Reader.load(tmp_path / "run/model", device="cpu", precision="fp32")
    some = Example("a", "Who lived there?", "A miller lived there, and left.", None, "")
    windows = reader.way.windows([some], reader.settings)
    assert len(windows) == 1
    start, end, tensors = reader.way.logits(windows, [0], None)
    last = int(windows.length[0]) - 1
    weighed = tensors["answer_mask"][0].clone()
    weighed[last] = True
    share = [torch.where(weighed, one[0], -torch.inf).softmax(0)[last].item() for one in (start, end)]
    found = QuestionAnsweringPipeline(reader)(
        question=some.question, context=some.context, top_k=30, max_seq_len=90, doc_stride=reader.settings.windows.overlap,
        handle_impossible_answer=True,
    )
    (nothing,) = [one for one in found if not one["answer"]]
    assert nothing["score"] == pytest.approx(share[0] * share[1], rel=1e-4)
