"""A tiny random LLaMA with a tokenizer of its own, as a folder."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from data.chat import FORMATS
from data.tokenizer import save_tokenizer
from model.llama import LlamaConfig, LlamaForCausalLM
from model.saving import save_weights
from tests.tiny_model import sample_texts

SPECIALS = ["<unk>", "<s>", "</s>", *FORMATS["llama3"].needs]
# odd and pairwise different where the architecture allows
TINY = dict(
    hidden_size=36, intermediate_size=53, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=3,
    max_position_embeddings=256, initializer_range=0.4, token_ids={"bos_token_id": 1, "eos_token_id": 2},
)


def make_tokenizer(vocab_size=600):
    """A small byte-level BPE with the special tokens of all formats."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(sample_texts(), trainer)
    return made


def make_model(vocab_size, seed=4, **changes):
    """A LlamaForCausalLM of TINY's sizes with random weights."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(vocab_size, **{**TINY, **changes}))


def make_folder(folder, *, seed=4, template="{{ '<|start_header_id|>' }}", **changes):
    """Write config.json, model.safetensors and the tokenizer; returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    save_weights(make_model(tokenizer.get_vocab_size(), seed, **changes), folder)
    save_tokenizer(tokenizer, folder, {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template})
    return folder
