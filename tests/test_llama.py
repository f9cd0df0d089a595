"""The decoder: equal to transformers' in logits, gradients and greedy tokens; cache and padding change nothing."""

import pytest
import torch
import torch.nn.functional as F

from common.errors import InputError
from model.llama import KeyValueCache, LlamaConfig, LlamaForCausalLM, frequencies

VOCABULARY, LENGTHS = 97, (13, 7, 1)
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0,
          "original_max_position_embeddings": 16}
KINDS = {  # ratios of query to key heads 1, 2 and 4; odd and pairwise different sizes
    "one-to-one": dict(hidden_size=30, num_attention_heads=5, intermediate_size=37),
    "two-to-one": dict(hidden_size=60, num_attention_heads=6, num_key_value_heads=3, intermediate_size=41,
                       rope={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}),
    "four-to-one": dict(hidden_size=44, num_attention_heads=4, num_key_value_heads=1, head_dim=6, intermediate_size=53,
                        rope=LLAMA3, tie_word_embeddings=True),
    "biased": dict(hidden_size=36, num_attention_heads=6, num_key_value_heads=2, intermediate_size=29, rope=LLAMA3,
                   attention_bias=True, mlp_bias=True),
}


def make(kind, seed=0):
    """A tiny random model; norms and biases are random too, so that nothing multiplies by one or adds zero."""
    torch.manual_seed(seed)
    sizes = dict(num_hidden_layers=3, max_position_embeddings=64, initializer_range=0.2)
    config = LlamaConfig(VOCABULARY, **sizes, **KINDS[kind])
    config.check("test")
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter += torch.randn_like(parameter) * 0.2
    return model.eval()


def twin(ours, attention="sdpa"):
    """transformers' model of the same sizes and weights."""
    import transformers

    c = ours.config
    names = ("vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads head_dim "
             "max_position_embeddings rms_norm_eps attention_bias mlp_bias tie_word_embeddings").split()
    values = {name: getattr(c, name) for name in names}
    config = transformers.LlamaConfig(
        **values, num_key_value_heads=c.key_heads, rope_parameters={"rope_type": "default", **c.rope},
        attn_implementation=attention, bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )
    theirs = transformers.LlamaForCausalLM(config)
    theirs.load_state_dict(ours.state_dict())
    return theirs.eval()


def ids(length=13, rows=3, seed=0):
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def ragged():
    """Three rows padded on the left: ids and mask."""
    batch, longest = ids(), max(LENGTHS)
    mask = torch.arange(longest) >= longest - torch.tensor(LENGTHS)[:, None]
    return batch.masked_fill(~mask, 0), mask


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_every_gradient_are_those_of_transformers(kind, attention):
    ours, batch = make(kind), ids(rows=2)
    theirs = twin(ours, attention)
    mine, other = ours(batch), theirs(input_ids=batch).logits
    assert (mine - other).abs().max() <= 1e-5 and other.abs().max() > 1
    for logits in (mine, other):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten()).backward()
    wanted = dict(theirs.named_parameters())
    checked = 0
    for name, parameter in ours.named_parameters():
        assert (parameter.grad - wanted[name].grad).abs().max() <= 1e-5, name
        checked += wanted[name].grad.abs().max() > 1e-4
    assert checked == len(wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_on_the_left_changes_nothing(kind):
    model, (batch, mask) = make(kind), ragged()
    with torch.no_grad():
        together = model(batch, mask)
        for row, length in enumerate(LENGTHS):
            alone = model(batch[row : row + 1, -length:])
            assert (together[row, -length:] - alone[0]).abs().max() < 1e-5
        places = (mask.long().cumsum(1) - 1).clamp(0)
        theirs = twin(model)(input_ids=batch, attention_mask=mask.long(), position_ids=places)
    assert (together - theirs.logits)[mask].abs().max() < 1e-5
    assert together.isfinite().all()


@pytest.mark.parametrize("pieces", [(13,), (5, 8), (1,) * 13, (6, 1, 1, 5)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_changes_nothing(kind, pieces):
    model, (batch, mask) = make(kind), ragged()
    with torch.no_grad():
        for given in (None, mask):
            whole, cache = model(batch, given), KeyValueCache(model.config, 3, 13)
            found, seen = [], 0
            for piece in pieces:
                stop = seen + piece
                found.append(model(batch[:, seen:stop], None if given is None else given[:, :stop], cache))
                seen = stop
            assert cache.length == 13
            real = mask if given is not None else torch.ones_like(mask)
            assert (torch.cat(found, 1) - whole)[real].abs().max() < 2e-5  # logits of up to 10; sums differ in order
    with pytest.raises(AssertionError, match="full"):
        model(batch[:, :1], None, cache)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_are_those_of_transformers(kind):
    model, (batch, mask) = make(kind), ragged()
    cache, tokens, new = KeyValueCache(model.config, 3, 13 + 20), batch, batch
    seen = mask
    with torch.no_grad():
        for _ in range(20):
            new = model(new, seen, cache, last_only=True)[:, -1].argmax(-1, keepdim=True)
            tokens, seen = torch.cat([tokens, new], 1), torch.cat([seen, torch.ones_like(new, dtype=torch.bool)], 1)
        wanted = twin(model).generate(batch, attention_mask=mask.long(), max_new_tokens=20, do_sample=False)
    assert torch.equal(tokens, wanted) and len(tokens[:, 13:].unique()) > 5


def test_checkpointing_changes_no_gradient():
    found = []
    for checkpointing in (False, True):
        model = make("two-to-one").train()
        model.model.gradient_checkpointing = checkpointing
        model(ids()).square().mean().backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_rotations_by_hand():
    config = LlamaConfig(9, head_dim=64)
    turn = frequencies(config)
    assert turn[0] == 1 and 1 / turn[-1].item() == pytest.approx(10000 ** (62 / 64))
    slow = frequencies(LlamaConfig(9, head_dim=64, rope=LLAMA3 | {"rope_theta": 10000.0}))
    waves = 2 * torch.pi / turn
    assert torch.allclose(slow[waves < 16 / 3], turn[waves < 16 / 3])
    assert torch.allclose(slow[waves > 16], turn[waves > 16] / 4)
    between = (waves > 16 / 3) & (waves < 16)
    assert between.any() and (slow[between] < turn[between]).all() and (slow[between] > turn[between] / 4).all()


def test_configs_old_and_new(tmp_path):
    base = {"model_type": "llama", "vocab_size": 97, "hidden_size": 60, "num_attention_heads": 6}
    old = LlamaConfig.from_dict(base | {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}})
    new = LlamaConfig.from_dict(base | {"rope_parameters": {"rope_type": "linear", "factor": 2, "rope_theta": 5e5}})
    assert torch.equal(frequencies(old), frequencies(new)) and old.key_heads == 6 and old.head_size == 10
    both = {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2}, "rope_parameters": {"rope_type": "default"}}
    assert torch.equal(frequencies(LlamaConfig.from_dict(base | both)), frequencies(old))  # as transformers takes it
    with pytest.raises(InputError, match="keep one of them"):
        LlamaConfig.from_dict(base | both | {"rope_parameters": {"rope_theta": 1e4}}, "c.json")
    assert LlamaConfig.from_dict(base | {"rope_theta": None}).rope["rope_theta"] == 10000.0
    import transformers

    theirs = transformers.LlamaConfig(**base, **both)
    assert theirs.rope_parameters["factor"] == 2 and theirs.rope_parameters["rope_theta"] == 5e5
    for change, sentence in (
        ({"model_type": "bert"}, "'llama' is expected"), ({"hidden_size": 61}, "not a multiple of num_attention_heads"),
        ({"num_key_value_heads": 4}, "not a multiple of num_key_value_heads"), ({"head_dim": 5}, "in pairs"),
        ({"hidden_act": "gelu"}, "only 'silu'"), ({"vocab_size": None}, "vocab_size is missing"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2}}, "not one of default, linear, llama3"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "low_freq_factor: expected a positive number"),
        ({"rope_scaling": "linear"}, "rope_scaling: expected an object, found 'linear'"),
        ({"rope_scaling": {"rope_type": ["x"], "factor": 2}}, "not one of default, linear, llama3"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps: expected float"), ({"num_hidden_layers": 0}, "cannot be 0"),
        ({"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "keep one of them"),
        ({"eos_token_id": "x"}, "eos_token_id: expected a whole number, found 'x'"),
        ({"eos_token_id": [2, None]}, "eos_token_id: expected a whole number"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings: expected bool"), ({"hidden_size": True}, "expected int"),
    ):
        with pytest.raises(InputError, match=sentence):
            LlamaConfig.from_dict(base | change, "c.json")


@pytest.mark.parametrize("kind", KINDS)
def test_our_config_says_the_rotation_in_both_spellings(kind):
    """transformers before 5, and Ollama, read rope_theta and rope_scaling; without them they take 10,000 in silence."""
    import transformers

    config = make(kind).config
    values = config.to_dict()
    assert values["rope_theta"] == config.rope["rope_theta"] == values["rope_parameters"]["rope_theta"]
    scaling = values["rope_scaling"]
    assert (scaling is None) == (config.rope.get("rope_type", "default") == "default")
    assert scaling is None or scaling == {k: v for k, v in values["rope_parameters"].items() if k != "rope_theta"}
    old = {key: value for key, value in values.items() if key != "rope_parameters"}
    for described in (values, old):
        again = LlamaConfig.from_dict(described)
        assert torch.equal(frequencies(again), frequencies(config))
        theirs = transformers.LlamaConfig(**described).rope_parameters
        assert {key: theirs[key] for key in config.rope} == config.rope
