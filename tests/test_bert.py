"""The layers: equal to transformers' in logits and gradients, and what each switch of them really does."""

import pytest
import torch
import torch.nn.functional as F

from common.errors import InputError
from data.batches import to_tensors
from data.readers import read_dataset
from data.tokenizer import load_tokenizer
from data.windows import WindowSet, WindowSettings
from model.bert import ACTIVATIONS, BertConfig, BertForQuestionAnswering, LayerNorm
from model.source import resolve_model
from model.weights import load_model
from tests.tiny_model import SAMPLE, TINY, make_model

VOCABULARY = 211
LENGTHS = (29, 17, 6)  # real tokens of the rows of `ragged_batch`
TOLERANCE = 1e-5


def ragged_batch(seed=0, vocabulary=VOCABULARY):
    """Three padded rows of 29 tokens: ids, token types and mask, all as WindowSet.fill makes them."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, vocabulary, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    types = (torch.arange(max(LENGTHS)) >= 4).long().expand_as(ids)
    return ids * mask, types * mask, mask


def reference_model(ours, attention="sdpa"):
    """transformers' BertForQuestionAnswering of the same sizes with the same weights."""
    import transformers

    values = ours.config.to_dict()
    config = transformers.BertConfig(**values, attn_implementation=attention)
    theirs = transformers.BertForQuestionAnswering(config)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return theirs


def scalar_loss(start, end, mask):
    """One number that depends on every real logit: cross-entropy at two tokens, and a wavy weighted sum."""
    lost = ~mask
    first = F.cross_entropy(start.masked_fill(lost, float("-inf")), torch.tensor([5, 3, 0])[: len(start)])
    last = F.cross_entropy(end.masked_fill(lost, float("-inf")), torch.tensor([7, 3, 0])[: len(end)])
    weights = torch.linspace(-3, 3, mask.numel()).sin().view(mask.shape) * mask
    return first + last + (start * weights).sum() / 7 - (end * weights.flip(0) * mask).sum() / 5


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def run_both(ours, theirs, ids, types, mask):
    """Logits (ours, theirs), each a pair, after a backward pass through the same loss on both."""
    mine = ours(ids, types, mask)
    other = theirs(input_ids=ids, token_type_ids=types, attention_mask=mask.long())
    other = other.start_logits, other.end_logits
    for model, logits in ((ours, mine), (theirs, other)):
        model.zero_grad()
        scalar_loss(*logits, mask).backward()
    return mine, other


def assert_same_gradients(ours, theirs, relative=0.0):
    mine, other = gradients(ours), gradients(theirs)
    assert mine.keys() == other.keys()
    for name, gradient in mine.items():
        allowed = TOLERANCE * max(1.0, relative * other[name].abs().max().item())
        assert (gradient - other[name]).abs().max() <= allowed, name
    # the softmax does not see a shift of all its scores, so a key's bias has none
    assert {name for name, gradient in other.items() if gradient.abs().max() < 1e-5} == {
        name for name in other if name.endswith("attention.self.key.bias")
    }


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("eps", [1e-12, 1e-3])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
def test_logits_and_every_gradient_are_those_of_transformers(activation, eps, attention):
    """Measured: at most 1.6e-6 in logits of up to 1.8, and 3.8e-6 in gradients of up to 9.4.

    Without gradients not a bit differs with "gelu", "gelu_pytorch_tanh" and "relu" by sdpa, the same kernels on both sides.
    """
    ours = make_model(VOCABULARY, hidden_act=activation, layer_norm_eps=eps, initializer_range=0.2).train()
    theirs, batch = reference_model(ours, attention).train(), ragged_batch()
    mine, other = run_both(ours, theirs, *batch)
    for a, b in zip(mine, other, strict=True):
        assert (a - b)[batch[2]].abs().max() <= TOLERANCE
        assert b[batch[2]].abs().max() > 1  # far from the size of the tolerance
    assert len(gradients(ours)) == 55
    assert_same_gradients(ours, theirs)


def test_the_settings_that_parity_is_shown_for_change_the_logits():
    """Otherwise parity would not show that config.json is followed."""
    batch = ragged_batch()
    base = make_model(VOCABULARY)(*batch)[0]
    for change in ({"hidden_act": "gelu_new"}, {"hidden_act": "relu"}, {"layer_norm_eps": 1e-3}):
        assert (make_model(VOCABULARY, **change)(*batch)[0] - base).abs().max() > 1e-4, change


def test_sizes_are_pairwise_different():
    sizes = [size for size in TINY.values() if type(size) is int]
    sizes += [len(LENGTHS), max(LENGTHS), VOCABULARY]
    assert TINY["hidden_size"] == 35 and TINY["max_position_embeddings"] == 131
    assert len(set(sizes) - {3}) == len(sizes) - 2  # three rows and three layers are the only twins


@pytest.fixture(scope="module")
def minilm_pair():
    """MiniLM read by us and by transformers, with one new head."""
    import transformers

    folder = resolve_model("minilm", offline=True).folder
    torch.manual_seed(0)
    ours, report = load_model(folder, dropout=0.0, attention_dropout=0.0)
    assert report.head_is_new
    theirs = transformers.BertForQuestionAnswering.from_pretrained(
        folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    theirs.qa_outputs.load_state_dict(ours.qa_outputs.state_dict())
    examples = read_dataset(SAMPLE / "train.json").examples[:64]
    assert len(examples) == 64
    windows = WindowSet(examples, load_tokenizer(folder, ours.config.vocab_size), WindowSettings())
    return ours, theirs, windows


def test_minilm_gives_transformers_logits_on_64_questions(minilm_pair):
    """Both sides call the same kernels here; bench/parity.py compares with eager attention too."""
    ours, theirs, windows = minilm_pair
    ours.eval(), theirs.eval()
    lengths, worst, seen, padding = set(), 0.0, 0, 0
    with torch.inference_mode():
        while seen < len(windows):
            size = (3, 7, 11)[len(lengths) % 3]
            arrays = windows.fill(range(seen, min(seen + size, len(windows))))
            seen += len(arrays["input_ids"])
            batch, mask = to_tensors(arrays, "cpu"), torch.from_numpy(arrays["attention_mask"])
            inputs = {name: batch[name] for name in ("input_ids", "token_type_ids")}
            mine = ours(**inputs, attention_mask=batch["attention_mask"])
            other = theirs(**inputs, attention_mask=mask.long())
            for a, b in zip(mine, (other.start_logits, other.end_logits), strict=True):
                worst = max(worst, (a - b)[mask].abs().max().item())
            lengths.add(mask.shape[1])
            padding += int((~mask).sum())
    assert set(windows.example.tolist()) == set(range(64))
    assert len(lengths) > 3 and padding > 1000
    assert worst <= TOLERANCE


def test_minilm_gives_transformers_gradients(minilm_pair):
    ours, theirs, windows = minilm_pair
    ours.train(), theirs.train()
    shortest = windows.length.argsort()[[0, 20, 40]]
    batch = {name: torch.from_numpy(array) for name, array in windows.fill(shortest).items()}
    assert not batch["attention_mask"].all()
    run_both(ours, theirs, batch["input_ids"], batch["token_type_ids"], batch["attention_mask"])
    assert_same_gradients(ours, theirs, relative=1.0)


def test_eager_attention_is_the_fused_one():
    model = make_model(VOCABULARY).eval()
    ids, types, mask = ragged_batch()
    with torch.inference_mode():
        fused = model(ids, types, mask)
        *eager, maps = model.attention_maps(ids, types, mask)
    for a, b in zip(fused, eager, strict=True):
        torch.testing.assert_close(a[mask], b[mask], atol=TOLERANCE, rtol=0)
    assert [tuple(probabilities.shape) for probabilities in maps] == [(3, 5, 29, 29)] * 3
    for probabilities in maps:
        assert probabilities.dtype == torch.float32
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(3, 5, 29), atol=1e-6, rtol=0)
        assert probabilities.masked_select(~mask[:, None, None, :]).eq(0).all()
        assert probabilities.masked_select(mask[:, None, None, :]).gt(0).all()


def test_eager_probabilities_are_those_of_transformers():
    model = make_model(VOCABULARY).eval()
    ids, types, mask = ragged_batch()
    with torch.inference_mode():
        *_, maps = model.attention_maps(ids, types, mask)
        other = reference_model(model, "eager").eval()(
            input_ids=ids, token_type_ids=types, attention_mask=mask.long(), output_attentions=True
        )
    assert len(maps) == len(other.attentions) == 3
    for mine, theirs in zip(maps, other.attentions, strict=True):
        rows = mask[:, None, :, None].expand_as(mine)
        assert (mine - theirs)[rows].abs().max() <= TOLERANCE


def test_eager_and_fused_gradients_agree():
    ids, types, mask = ragged_batch()
    found = []
    for fused in (True, False):
        model = make_model(VOCABULARY)
        logits = model(ids, types, mask) if fused else model.attention_maps(ids, types, mask)[:2]
        scalar_loss(*logits, mask).backward()
        found.append(gradients(model))
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], atol=TOLERANCE, rtol=1e-5, msg=name)


def test_padding_does_not_change_a_row():
    model = make_model(VOCABULARY).eval()
    ids, types, mask = ragged_batch()
    with torch.inference_mode():
        together = model(ids, types, mask)
        for row, length in enumerate(LENGTHS):
            alone = model(ids[row : row + 1, :length], types[row : row + 1, :length])
            for a, b in zip(together, alone, strict=True):
                torch.testing.assert_close(a[row, :length], b[0], atol=TOLERANCE, rtol=0)
        unmasked = model(ids, types)
    assert (unmasked[0] - together[0])[1, :17].abs().max() > 1e-2  # the mask does matter


def test_what_stands_in_the_padding_does_not_matter():
    model = make_model(VOCABULARY).eval()
    ids, types, mask = ragged_batch()
    with torch.inference_mode():
        clean, dirty = model(ids, types, mask), model(ids.masked_fill(~mask, 77), types, mask)
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a[mask], b[mask])


@pytest.mark.parametrize("autocast", [False, True])
def test_gradient_checkpointing_gives_the_same_bits(autocast):
    found, passes = [], []
    for checkpointing in (False, True):
        model = make_model(VOCABULARY, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3).train()
        model.bert.encoder.gradient_checkpointing = checkpointing
        calls = []
        model.bert.encoder.layer[1].intermediate.register_forward_hook(lambda *_: calls.append(1))
        ids, types, mask = ragged_batch()
        torch.manual_seed(11)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(ids, types, mask)
        scalar_loss(*logits, mask).backward()
        found.append(gradients(model))
        passes.append(len(calls))
    assert passes == [1, 2]  # the second pass of a block is what checkpointing is
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name
        assert gradient.isfinite().all()


def test_under_autocast_norms_and_logits_stay_fp32():
    model = make_model(VOCABULARY).train()
    norms, products = [], []
    for module in model.modules():
        if isinstance(module, LayerNorm):
            module.register_forward_hook(lambda module, inputs, output: norms.append(output.dtype))
        elif isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda module, inputs, output: products.append(output.dtype))
    ids, types, mask = ragged_batch()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids, types, mask)
    assert norms == [torch.float32] * 7
    assert products == [torch.bfloat16] * 19  # 6 in each block, and the head
    assert [x.dtype for x in logits] == [torch.float32] * 2
    plain = model(ids, types, mask)
    assert 0 < (plain[0] - logits[0])[mask].abs().max() < 0.2 * plain[0][mask].abs().max()
    scalar_loss(*logits, mask).backward()
    assert {gradient.dtype for gradient in gradients(model).values()} == {torch.float32}


@pytest.mark.parametrize("kind", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
@pytest.mark.parametrize("eager", [False, True])
def test_dropout_drops_in_training_only(kind, eager):
    model, plain, batch = make_model(VOCABULARY, **{kind: 0.3}), make_model(VOCABULARY), ragged_batch()
    run = (lambda m: m.attention_maps(*batch)[0]) if eager else (lambda m: m(*batch)[0])
    with torch.inference_mode():
        assert torch.equal(run(model.eval()), run(plain.eval()))
        model.train()
        torch.manual_seed(1)
        first, second = run(model), run(model)
        torch.manual_seed(1)
        assert torch.equal(run(model), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_dropout_drops_where_the_reference_does(attention, masks_of_torch):
    """From one seed both draw the same masks, if and only if they draw at the same places."""
    ours = make_model(VOCABULARY, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3).train()
    theirs = reference_model(ours, attention).train()
    ids, types, mask = ragged_batch()
    torch.manual_seed(7)
    mine = ours(ids, types, mask) if attention == "sdpa" else ours.attention_maps(ids, types, mask)[:2]
    torch.manual_seed(7)
    other = theirs(input_ids=ids, token_type_ids=types, attention_mask=mask.long())
    for a, b in zip(mine, (other.start_logits, other.end_logits), strict=True):
        assert (a - b)[mask].abs().max() <= TOLERANCE
    assert (mine[0] - ours.eval()(ids, types, mask)[0])[mask].abs().max() > 0.1


def test_a_new_model_starts_as_the_reference_does():
    torch.manual_seed(3)
    model = BertForQuestionAnswering(BertConfig(vocab_size=997, **{**TINY, "initializer_range": 0.02}))
    for name, parameter in model.named_parameters():
        if name.endswith("LayerNorm.weight"):
            assert parameter.eq(1).all()
        elif name.endswith("bias"):
            assert parameter.eq(0).all()
        elif name == "bert.embeddings.word_embeddings.weight":
            assert parameter[0].eq(0).all() and 0.019 < parameter[1:].std() < 0.021
        elif parameter.numel() > 1000:
            assert 0.018 < parameter.std() < 0.022, name


REFUSALS = [
    (dict(hidden_size=36), "hidden_size 36 is not a multiple of num_attention_heads 5"),
    (dict(hidden_act="swoosh"), f"hidden_act 'swoosh' is unknown; known are {', '.join(ACTIVATIONS)}"),
    (dict(hidden_act=3), "hidden_act should be str, found 3"),
    (dict(model_type=["bert"]), "model_type is ['bert'], and only bert, roberta, xlm-roberta, distilbert, electra can be read here"),
    (dict(model_type="gpt2"), "model_type is 'gpt2', and only bert, roberta, xlm-roberta, distilbert, electra can be read here"),
    (dict(position_embedding_type="relative_key"), "position_embedding_type must be 'absolute'"),
    (dict(is_decoder=True), "a decoder (is_decoder, add_cross_attention) is not a reader"),
    (dict(hidden_size="35"), "hidden_size should be int, found '35'"),
    (dict(hidden_size=35.0), "hidden_size should be int, found 35.0"),
    (dict(num_hidden_layers=True), "num_hidden_layers should be int, found True"),
    (dict(layer_norm_eps="1e-12"), "layer_norm_eps should be float, found '1e-12'"),
    (dict(num_attention_heads=0), "num_attention_heads cannot be 0"),
    (dict(vocab_size=-1), "vocab_size cannot be -1"),
    (dict(type_vocab_size=1), "type_vocab_size cannot be 1"),
    (dict(hidden_dropout_prob=1.5), "hidden_dropout_prob cannot be 1.5"),
    (dict(attention_probs_dropout_prob=-0.1), "attention_probs_dropout_prob cannot be -0.1"),
    (dict(layer_norm_eps=float("inf")), "layer_norm_eps cannot be inf"),
    (dict(initializer_range=-1), "initializer_range cannot be -1"),
    (dict(pad_token_id=211), "pad_token_id 211 is not below vocab_size 211"),
]
assert len(REFUSALS) == 19


@pytest.mark.parametrize("change, sentence", REFUSALS)
def test_an_impossible_config_is_refused_by_name(change, sentence):
    values = BertConfig(vocab_size=VOCABULARY, **TINY).to_dict() | change
    with pytest.raises(InputError) as caught:
        BertConfig.from_dict(values, "some/config.json")
    assert str(caught.value) == f"some/config.json: {sentence}"
    with pytest.raises(InputError, match="expected a JSON object that describes a model"):
        BertConfig.from_dict([change])


def test_a_config_may_leave_out_what_has_a_default_and_carry_more():
    config = BertConfig.from_dict({"use_cache": True, "hidden_dropout_prob": 0, "classifier_dropout": None})
    assert config == BertConfig(hidden_dropout_prob=0)
    assert (config.hidden_size, config.num_hidden_layers, config.layer_norm_eps) == (768, 12, 1e-12)
    assert BertConfig.from_dict(config.to_dict()) == config
