"""Weights: every layout is read to the same model, what is doubtful is refused, saving is exact."""

import json
import random
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import InputError
from common.files import write_folder
from data.examples import Example
from data.tokenizer import load_tokenizer, save_tokenizer
from data.windows import WindowSet, WindowSettings
from model.bert import BertForQuestionAnswering
from model.names import BERT_TABLE
from model.saving import save_weights
from model.weights import load_model, load_weights, read_config
from tests.tiny_model import make_folder

TENSORS = 55  # of a model of three layers: 5 of embeddings, 16 in each block, 2 of the head


@pytest.fixture
def tensors(tiny_folder):
    """The tensors of `tiny_folder`, to be changed freely."""
    return load_file(tiny_folder / "model.safetensors")


@pytest.fixture
def folder_of(tiny_folder, tmp_path):
    """A function that writes a model folder of the tiny config around some tensors."""

    def write(tensors, name="model", file="model.safetensors"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_bytes((tiny_folder / "config.json").read_bytes())
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / file)
        return folder

    return write


def refusal(folder):
    """The sentence `load_model` refuses a folder with."""
    with pytest.raises(InputError) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same_weights(one, other):
    one, other = dict(one.named_parameters()), dict(other.named_parameters())
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def old_spelling(name):
    """A name as TensorFlow's checkpoints have it."""
    name = re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", name)
    return re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", name)


def test_the_name_map_covers_a_model_exactly(tiny_folder):
    model = BertForQuestionAnswering(read_config(tiny_folder))
    blocks = [str(n) for n in range(read_config(tiny_folder).num_hidden_layers)]
    per_block = [ours for ours in BERT_TABLE.values() if "{n}" in ours]
    expanded = [ours for ours in BERT_TABLE.values() if ours not in per_block]
    expanded += [ours.replace("{n}", n) for ours in per_block for n in blocks]
    assert sorted(expanded) == sorted(dict(model.named_parameters()))
    assert len(expanded) == TENSORS and len(BERT_TABLE) == 5 + 16 + 2
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()  # no buffers to forget
    for theirs, ours in BERT_TABLE.items():
        assert ours == (theirs if theirs.startswith("qa_outputs") else f"bert.{theirs}")


LEFTOVERS = {
    "pooler.dense.weight": torch.ones(35, 35),
    "pooler.dense.bias": torch.ones(35),
    "embeddings.position_ids": torch.arange(131)[None],
}
CLS_LEFTOVERS = {"cls.predictions.bias": torch.ones(1501), "cls.seq_relationship.weight": torch.ones(2, 35)}
CLASSIFIER = {"classifier.weight": torch.ones(3, 35)}


@pytest.mark.parametrize("leftovers", [False, True])
@pytest.mark.parametrize("spelling", [str, old_spelling])
@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_every_layout_gives_the_same_model(tensors, folder_of, tiny_folder, prefix, spelling, leftovers):
    laid_out = {spelling(name.replace("bert.", prefix, 1)): value for name, value in tensors.items()}
    assert len(laid_out) == TENSORS
    extra = {prefix + name: value for name, value in LEFTOVERS.items()} | CLS_LEFTOVERS | CLASSIFIER
    model, report = load_model(folder_of(laid_out | extra if leftovers else laid_out))
    assert same_weights(model, load_model(tiny_folder)[0])
    assert sorted(report.used) == sorted(laid_out)
    assert sorted(report.left_out) == (sorted(extra) if leftovers else [])
    assert report.new == () and not report.head_is_new
    expected = "; 6 left out (classifier.*, cls.*, embeddings.position_ids, pooler.*)" if leftovers else ""
    assert str(report) == f"55 tensors read{expected}"


def test_a_folder_without_head_says_so(tiny_encoder_folder, tiny_folder):
    torch.manual_seed(5)
    model, report = load_model(tiny_encoder_folder)
    assert report.head_is_new and report.new == ("qa_outputs.weight", "qa_outputs.bias")
    assert str(report) == "53 tensors read; newly made: qa_outputs.weight, qa_outputs.bias"
    whole = load_model(tiny_folder)[0]
    assert same_weights(model.bert, whole.bert)
    assert not torch.equal(model.qa_outputs.weight, whole.qa_outputs.weight)
    assert 0 < model.qa_outputs.weight.std() < 0.6 and model.qa_outputs.bias.eq(0).all()


def test_strictness(tensors, folder_of):
    query = "bert.encoder.layer.1.attention.self.query.weight"
    unknown = [
        "bert.encoder.layer.3.output.dense.bias",  # a block too many
        "encoder.layer.01.output.dense.bias",
        "encoder.layer.{n}.output.dense.bias",
        "bert.bert.pooler.dense.bias",
        "bert.embeddings.LayerNorm.gamma.bias",
        "lm_head.weight",
    ]
    for name in unknown:
        folder = folder_of(tensors | {name: torch.ones(35)})
        assert refusal(folder) == (
            f"{folder / 'model.safetensors'}: tensor {name} has no place in a BERT of this config.json"
        )
    lost = {name: value for name, value in tensors.items() if name != query}
    assert refusal(folder := folder_of(lost)) == (
        f"{folder}: the weights lack {query}, which config.json asks for"
    )
    for half in ("qa_outputs.bias", "qa_outputs.weight"):
        other_half = {name: value for name, value in tensors.items() if name != half}
        assert f"the weights lack {half}, which config.json asks for" in refusal(folder_of(other_half))
    headless = {name: value for name, value in lost.items() if not name.startswith("qa_outputs")}
    assert f"lack {query}, which config.json asks for" in refusal(folder_of(headless))
    wrong = tensors | {"bert.encoder.layer.1.intermediate.dense.weight": torch.ones(35, 53)}
    assert "has shape (35, 53), and config.json asks for (53, 35)" in refusal(folder_of(wrong))
    for twin, size in ((query.removeprefix("bert."), (35, 35)), ("embeddings.LayerNorm.gamma", (35,))):
        sentence = refusal(folder_of(tensors | {twin: torch.ones(size)}))
        assert re.search(r"tensor \S+ stands for bert\.\S+, which came already$", sentence)
    for dtype in (torch.int64, torch.int8, torch.bool, torch.complex64):
        folder = folder_of(tensors | {query: torch.ones(35, 35).to(dtype)})
        assert f"tensor {query} is {dtype}, and floating point is expected" in refusal(folder)
    for bad in (float("nan"), float("inf"), 1e300):
        broken = tensors[query].double()
        broken[3, 4] = bad
        assert f"tensor {query} holds NaN or infinity" in refusal(folder_of(tensors | {query: broken}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_fp32(tensors, folder_of, dtype):
    model, _ = load_model(folder_of({name: value.to(dtype) for name, value in tensors.items()}))
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, tensors[name].to(dtype).float()), name


def write_shards(tensors, folder_of, parts=3):
    """A model folder of shards; tensor k is in shard k % parts."""
    names = sorted(tensors)
    files = [f"model-{part + 1:05}-of-{parts:05}.safetensors" for part in range(parts)]
    for part, file in enumerate(files):
        folder = folder_of({name: tensors[name] for name in names[part::parts]}, file=file)
    places = {name: files[k % parts] for k, name in enumerate(names)}
    table = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(table))
    return folder, files


def test_shards_are_read_by_their_index(tensors, folder_of, tiny_folder):
    folder, files = write_shards(tensors, folder_of)
    model, report = load_model(folder)
    assert same_weights(model, load_model(tiny_folder)[0]) and len(report.used) == TENSORS
    (folder / files[1]).unlink()
    assert refusal(folder) == f"{folder / files[1]}: there is no such file, and the model's index names it"
    index = folder / "model.safetensors.index.json"
    for broken in ([], {}, *({"weight_map": value} for value in ([], {"a": 5}, {"a": "../a.safetensors"}))):
        index.write_text(json.dumps(broken))
        assert refusal(folder).startswith(f"{index}: weight_map: expected an object of tensor name to ")


def test_a_tensor_in_two_shards_is_refused(tensors, folder_of):
    folder, files = write_shards(tensors, folder_of)
    save_file(load_file(folder / files[1]) | {"qa_outputs.bias": torch.zeros(2)}, folder / files[1])
    assert "stands for qa_outputs.bias, which came already" in refusal(folder)


def test_folders_that_hold_no_readable_weights(tmp_path, tensors, folder_of):
    assert refusal(tmp_path / "gone") == f"{tmp_path / 'gone'}: there is no such model folder"
    folder = folder_of(tensors)
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    assert refusal(folder) == f"{folder}: no model.safetensors in it"
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    sentence = refusal(folder)
    assert "only pytorch_model.bin, a pickle, which can run code when read; convert it" in sentence
    assert "AutoModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER" in sentence
    (folder / "config.json").unlink()
    assert refusal(folder) == f"{folder}: no config.json in it, so this is not a model folder"
    (folder / "config.json").write_text('{"model_type": "bert", "hidden_size": NaN}')
    assert "config.json: holds NaN, which is not JSON" in refusal(folder)
    (folder / "config.json").write_text('{"model_type": "bert", "hidden')
    assert "the file looks truncated" in refusal(folder)


def damage(whole):
    """Broken variants of a safetensors file: cut, empty, longer, or another kind of file."""
    header = 8 + int.from_bytes(whole[:8], "little")
    cuts = [0, 1, 8, 20, header - 1, header, header + 100, len(whole) - 1]
    others = [whole + b"x", b"x" * 1000, b"PK\x03\x04" + bytes(500), b"version https://git-lfs"]
    return [whole[:cut] for cut in cuts] + others


def test_a_damaged_file_is_refused(tensors, folder_of):
    path = folder_of(tensors) / "model.safetensors"
    broken = damage(path.read_bytes())
    assert len(broken) == 12
    for data in broken:
        path.write_bytes(data)
        sentence = refusal(path.parent)
        assert sentence.startswith(f"{path}: not a whole safetensors file (")
        assert sentence.endswith("); fetch or copy it again")


def test_random_damage_to_the_header_never_escapes_as_another_error(tensors, folder_of, tiny_folder):
    path = folder_of(tensors) / "model.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    model, _ = load_model(tiny_folder)
    numbers, refused = random.Random(0), 0
    for _ in range(150):
        data = bytearray(whole)
        data[numbers.randrange(header)] = numbers.randrange(256)
        path.write_bytes(data)
        try:
            load_weights(model, path.parent)
        except InputError:
            refused += 1
    assert refused > 130  # the rest changed white space, or a byte into itself


def test_saving_and_reading_gives_the_same_bits(tiny_folder, tmp_path):
    model, _ = load_model(tiny_folder)
    one, two = tmp_path / "one", tmp_path / "two"
    write_folder(one, lambda folder: save_weights(model, folder))
    again, report = load_model(one)
    assert same_weights(model, again) and again.config == model.config and len(report.used) == TENSORS
    write_folder(two, lambda folder: save_weights(again, folder))
    for name in ("model.safetensors", "config.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes() == (tiny_folder / name).read_bytes()


def test_a_file_that_cannot_be_written_is_an_error_of_the_disk(tiny_folder, tmp_path):
    model, _ = load_model(tiny_folder)

    def fill(folder):
        (folder / "model.safetensors").mkdir()  # stands for a full disk: writing the weights fails
        save_weights(model, folder)

    with pytest.raises(InputError, match="cannot be written"):
        write_folder(tmp_path / "model", fill)
    assert list(tmp_path.iterdir()) == []


def test_dropout_can_be_replaced_on_reading(tiny_folder):
    model, _ = load_model(tiny_folder, dropout=0.25, attention_dropout=0.125)
    assert model.config.hidden_dropout_prob == model.bert.embeddings.dropout.p == 0.25
    assert {layer.attention.self.dropout_prob for layer in model.bert.encoder.layer} == {0.125}
    with pytest.raises(InputError, match="hidden_dropout_prob cannot be 1.5"):
        load_model(tiny_folder, dropout=1.5)


TEXTS = [
    "Where did Łukasz eat crème brûlée [SEP] in 1999?",
    "کتاب‌ها را می‌خوانم؛ آب و مؤمن و ئەو ۱۲۳",
    "Don't! 東京タワー x² \u200d",
]


@pytest.mark.parametrize(
    "activation, lowercase, accents, chinese",
    [
        ("gelu", True, None, True),
        ("gelu_new", False, None, True),
        ("relu", True, False, False),
        ("silu", False, True, True),
    ],
)
def test_a_saved_folder_opens_in_transformers(tmp_path, activation, lowercase, accents, chinese):
    from tokenizers.normalizers import BertNormalizer
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    made = make_folder(tmp_path / "made", lowercase=lowercase, hidden_act=activation, layer_norm_eps=1e-3)
    model, _ = load_model(made)
    tokenizer = load_tokenizer(made, model.config.vocab_size)
    tokenizer.normalizer = BertNormalizer(
        lowercase=lowercase, strip_accents=accents, handle_chinese_chars=chinese
    )
    folder = tmp_path / "saved"
    folder.mkdir()
    save_weights(model, folder)
    save_tokenizer(tokenizer, folder)

    theirs, loading = AutoModelForQuestionAnswering.from_pretrained(folder, output_loading_info=True)
    assert type(theirs).__name__ == "BertForQuestionAnswering"
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    their_tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        plain = text.replace("[SEP]", "")  # theirs takes a "[SEP]" in a text for the real one
        assert their_tokenizer(plain, add_special_tokens=False)["input_ids"] == tokenizer.encode(plain).ids
    pair = their_tokenizer(TEXTS[2], TEXTS[1], return_tensors="pt")
    example = Example("1", TEXTS[2], TEXTS[1], None, "1")
    window = WindowSet([example], tokenizer, WindowSettings()).fill([0])
    for name in ("input_ids", "token_type_ids"):
        assert pair[name].tolist() == window[name].tolist()
    with torch.inference_mode():
        mine = model.eval()(pair["input_ids"], pair["token_type_ids"])
        other = theirs.eval()(**pair)
    for a, b in zip(mine, (other.start_logits, other.end_logits), strict=True):
        assert (a - b).abs().max() <= 1e-6 * b.abs().max() + 1e-6


def test_a_folder_that_transformers_saved_is_read(tiny_folder, tmp_path):
    """With the pooler of BertModel, which it saves without prefix, and in shards."""
    import transformers

    theirs = transformers.AutoModel.from_pretrained(tiny_folder)
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="200kB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
    model, report = load_model(tmp_path / "shards")
    assert report.head_is_new and sorted(report.left_out) == ["pooler.dense.bias", "pooler.dense.weight"]
    assert same_weights(model.bert, load_model(tiny_folder)[0].bert)


def test_absurd_sizes_are_refused_before_memory_is_asked_for(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"vocab_size": 10**12}))
    with pytest.raises(InputError, match="do not belong together"):
        load_model(folder)
