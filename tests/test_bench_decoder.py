"""The tools that make and measure decoders, at toy size."""

import json
import time

import pytest
import torch

from bench import decoder_memory, decoding, shapes, small_llama
from data.readers import read_dataset
from data.tokenizer import load_tokenizer, pair_layout
from model.weights import load_model
from answering.reader import Reader
from tests.tiny_model import make_folder


def test_a_small_llama_reads_and_is_asked_in_its_format(tmp_path):
    argv = ["--out", str(tmp_path / "llama"), "--vocab", "700", "--hidden", "48", "--layers", "2", "--heads", "4"]
    assert small_llama.main(argv) == 0
    reader = Reader.load(tmp_path / "llama", device="cpu", precision="fp32")
    assert reader.settings.chat == "tinyllama"
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "llama")
    from data.chat import FORMATS, encode_chat

    messages = [{"role": "user", "content": "What does Bormak have?"}]
    wanted = theirs.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert encode_chat(reader.tokenizer, [("user", messages[0]["content"])], FORMATS["tinyllama"]) == wanted
    assert small_llama.main(argv) == 2


def test_an_encoder_of_its_size_is_a_roberta(tmp_path):
    sizes = ["--vocab", "700", "--hidden", "48", "--layers", "2", "--heads", "4"]
    assert small_llama.main(["--out", str(tmp_path / "llama"), *sizes]) == 0
    assert small_llama.main(["--out", str(tmp_path / "roberta"), "--encoder", *sizes]) == 0
    ours, _ = load_model(tmp_path / "roberta")
    decoder, _ = load_model(tmp_path / "llama")
    counts = [sum(p.numel() for p in layers.parameters()) for layers in (ours.bert.encoder, decoder.model.layers)]
    assert abs(counts[0] / counts[1] - 1) < 0.05
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "roberta")
    pair = tokenizer("Who was it?", "Ada, in 1807.", return_tensors="pt")
    layout = pair_layout(load_tokenizer(tmp_path / "roberta"))
    begin, end = (tokenizer.convert_tokens_to_ids(token) for token in ("<s>", "</s>"))
    assert (layout.opening, layout.middle, layout.last) == ((begin,), (end, end), (end,))
    assert pair["input_ids"][0, 0] == begin and pair["input_ids"][0].tolist().count(end) == 3
    theirs = transformers.RobertaForQuestionAnswering.from_pretrained(tmp_path / "roberta").eval()
    with torch.no_grad():
        wanted = theirs(**pair)
        found = ours.eval()(pair["input_ids"], torch.zeros_like(pair["input_ids"]), pair["attention_mask"].bool())
    torch.testing.assert_close(found[0], wanted.start_logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1], wanted.end_logits, atol=1e-5, rtol=0)


def test_the_copy_task_has_its_answers_in_its_texts(tmp_path):
    assert small_llama.main(["--copy-task", "300", "--out", str(tmp_path / "copy")]) == 0
    train, dev = (read_dataset(tmp_path / f"copy/{part}.json").examples for part in ("train", "dev"))
    assert len(train) == 300 and len(dev) == 30
    known = {part: {kind: set(small_llama.values(kind, part)) for kind in small_llama.KINDS} for part in ("train", "dev")}
    asked = {question: kind for kind, (*_, questions) in small_llama.KINDS.items() for question in questions}
    for part, examples in (("train", train), ("dev", dev)):
        for one in examples:
            kind = asked[one.question]
            in_text = [value for value in known[part][kind] if value in one.context]
            assert in_text == [answer.text for answer in one.answers] and len(in_text) <= 1
        assert {bool(one.answers) for one in examples} == {True, False}
    for kind, (firsts, seconds, *_) in small_llama.KINDS.items():  # values are new, their words are known
        assert not known["train"][kind] & known["dev"][kind]
        assert {word for value in known["train"][kind] for word in value.split()} == {*firsts, *seconds}


def test_a_checkpoint_of_known_shapes_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "SHARD", 60_000)
    assert shapes.main(["toy", "--out", str(tmp_path / "toy")]) == 0
    assert len(list((tmp_path / "toy").glob("*.safetensors"))) == 3
    model, report = load_model(tmp_path / "toy")
    assert not report.new and json.loads((tmp_path / "toy/config.json").read_text())["dtype"] == "bfloat16"
    assert model.model.norm.weight.eq(1).all() and 0.01 < model.lm_head.weight.std() < 0.03
    for name, count in (("tinyllama", 1_100_048_384), ("llama3.1-8b", 8_030_261_248)):  # as the hub says of them
        from model.llama import LlamaConfig, LlamaForCausalLM

        with torch.device("meta"):
            assert sum(p.numel() for p in LlamaForCausalLM(LlamaConfig(**shapes.SHAPES[name])).parameters()) == count


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    assert shapes.main(["toy", "--out", str(tmp_path / "file")]) == 2
    assert "is there already" in capsys.readouterr().err

    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "write_json", fail)
    with pytest.raises(KeyboardInterrupt):
        shapes.main(["toy", "--out", str(tmp_path / "toy")])
    assert not (tmp_path / "toy").exists()


def test_decoding_and_memory_are_measured(tmp_path, capfd, monkeypatch):
    assert decoding.seconds_of(lambda: time.sleep(0.01), torch.device("cpu")) >= 0.01

    def a_millisecond_per_token(work, device):
        said = work()
        return 1e-3 * sum(map(len, said)) if isinstance(said, list) else 1e-3

    monkeypatch.setattr(decoding, "seconds_of", a_millisecond_per_token)
    shapes.write_checkpoint(tmp_path / "toy", "toy")
    options = ["--tokens", "5", "--prompt-tokens", "9", "--text-tokens", "40", "--repeats", "1"]
    assert decoding.main([str(tmp_path / "toy"), *options, "--bandwidth-numbers", "1000"]) == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith("{")]
    assert [row["row"] for row in rows] == [
        "bf16, batch 1", "bf16, batch 8", "eight questions on one text", "nf4, batch 8"
    ]
    assert all(abs(row["ratio"] - 1) < 1e-6 for row in rows if "ours" in row)
    taken = rows[2]["seconds"]
    for beside, way in (("beside one by one", "one by one"), ("beside a batch", "batch")):
        assert rows[2][beside] == taken[way] / taken["prefix reused"]
    assert all(abs(row[side] - 1000) < 1e-3 for row in rows if "ours" in row for side in ("ours", "theirs"))
    assert set(rows[0]["share_of_bandwidth"]) == {"ours", "theirs"}
    monkeypatch.setattr(decoding, "seconds_of", lambda work, device: 1e-3)
    assert decoding.main([str(tmp_path / "toy"), *options]) == 2
    assert "more --tokens" in capfd.readouterr().err
    assert decoder_memory.main([str(tmp_path / "toy"), "--tokens", "40", "--device", "cpu"]) == 0
    found = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert found["largest_tensor_16_and_32"] == 6 * 600 * 64 and found["step_seconds"] > 0
    assert 0 < found["load_peak"] <= found["step_peak"] and found["weights"] > found["linear_weights"] > 0


def test_a_qlora_step_beside_peft_learns_the_same(tmp_path, capfd):
    shapes.write_checkpoint(tmp_path / "toy", "toy")
    argv = [str(tmp_path / "toy"), "--tokens", "40", "--steps", "2", "--device", "cpu"]
    assert decoder_memory.main([*argv, "--beside"]) == 0
    ours, theirs = map(json.loads, capfd.readouterr().out.splitlines())
    assert (ours["side"], theirs["side"]) == ("ours", "theirs") and ours["precision"] == theirs["precision"]
    assert ours["first_loss"] == pytest.approx(theirs["first_loss"], abs=0.01)  # of weights rounded to the same 4 bits
    assert ours["tokens_per_second"] > 0 < theirs["tokens_per_second"]
    assert decoder_memory.main([str(tmp_path / "toy"), "--tokens", "17"]) == 2
    assert "--tokens 17: expected a number of at least 18" in capfd.readouterr().err
    assert decoder_memory.main([str(tmp_path / "no"), "--device", "cpu"]) == 2
    assert "no such model folder" in capfd.readouterr().err
    assert decoder_memory.main([str(make_folder(tmp_path / "bert")), "--device", "cpu"]) == 2
    assert "a BERT; here a LLaMA is measured" in capfd.readouterr().err
    assert small_llama.main(["--encoder", "--copy-task", "20", "--out", str(tmp_path / "task")]) == 2
    assert "--copy-task makes questions" in capfd.readouterr().err and not (tmp_path / "task").exists()


def test_loading_in_4_bits_holds_little_more_than_the_4_bits(tmp_path, capfd, monkeypatch):
    wide = dict(
        vocab_size=1000, hidden_size=1000, intermediate_size=2750, num_hidden_layers=6, num_attention_heads=20,
        num_key_value_heads=10, max_position_embeddings=64,
    )
    monkeypatch.setitem(shapes.SHAPES, "wide", wide)
    numbers = shapes.write_checkpoint(tmp_path / "wide", "wide")
    assert decoder_memory.main([str(tmp_path / "wide"), "--tokens", "40", "--device", "cpu"]) == 0
    found = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert numbers > 65e6 and found["weights"] < 40e6
    assert found["load_peak"] < 180e6  # 130 MB here; 230 where what quantising leaves free stays between the weights


def test_both_sides_say_the_same(tmp_path):
    shapes.write_checkpoint(tmp_path / "toy", "toy")
    cpu = torch.device("cpu")
    mine, other = (make(tmp_path / "toy", cpu, False).float() for make in (decoding.ours, decoding.theirs))
    prompts = decoding.random_prompts(mine.config, 3, 11)
    assert decoding.speak(mine, prompts, 7) == decoding.speak_theirs(other, prompts, 7)
