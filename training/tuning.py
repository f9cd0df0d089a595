"""From --tune and its options to what learns, and refusals of what does not go together."""

from pathlib import Path

from common.errors import InputError
from model.adapters import adapter_name, is_adapter
from model.fusion import add_fusion, tune_fusion
from model.lora import LoraConfig, fits, spellings, target_layers
from model.llama import LlamaConfig
from model.peft_config import is_plain_name
from model.prompts import has_prompt, tune_prompt
from model.quant import FourBitLinear
from model.tune import tune_bitfit, tune_full, tune_head, tune_lora
from answering.settings import stored_settings
from training.run import asked


USUAL_TARGETS = {"bert": ("query", "value"), "llama": ("q_proj", "k_proj", "v_proj", "o_proj")}


def quant_of(folder):
    """How the base was held when an adapter was trained; None for in full."""
    settings = stored_settings(folder)
    return settings.quant if settings else None


def refuse_other_quant(folder, options):
    """An adapter that was trained over 4-bit weights goes on over them; InputError otherwise."""
    stored = quant_of(folder)
    if stored is not None and options.quant is None:
        raise InputError(
            f"{options.model}: was trained over {stored} weights; go on with --tune qlora --quant {stored}"
        )


def tune(reader, options):
    """The pass that --tune names; InputError where the model that is there does not allow it."""
    model, name = reader.model, options.model
    packed = any(isinstance(module, FourBitLinear) for module in model.modules())
    if has_prompt(model) and options.tune != "prompt":
        raise InputError(f"--tune {options.tune}: {name} has virtual tokens; only --tune prompt trains them")
    if reader.adapter in getattr(model, "fusions", {}):
        raise InputError(f"--tune {options.tune}: {name} is a fusion, whose adapters are frozen")
    if reader.adapter is not None and options.tune not in ("lora", "qlora"):
        raise InputError(f"--tune {options.tune}: {name} is an adapter; --tune lora or qlora train it on")
    if packed and options.tune in ("full", "bitfit"):
        raise InputError(f"--tune {options.tune}: the weights of {name} are stored in 4 bits and cannot learn")
    decoder = isinstance(model.config, LlamaConfig)
    if options.tune == "bitfit" and not any(part.endswith(".bias") for part, _ in model.named_parameters()):
        raise InputError(f"--tune bitfit: {name} has no biases that could learn; take --tune lora")
    if options.tune == "head" and decoder and model.config.tie_word_embeddings and hasattr(model, "lm_head"):
        raise InputError(f"--tune head: the output layer of {name} is its word vectors; take --tune lora")
    whole = {"full": tune_full, "head": tune_head, "bitfit": tune_bitfit}
    if options.tune in whole:
        whole[options.tune](model)
    else:
        parts = {"lora": begin_lora, "qlora": begin_lora, "prompt": begin_prompt, "fusion": begin_fusion}
        parts[options.tune](reader, options)


def begin_lora(reader, options):
    """A new adapter, or the one that the model came with."""
    settings, continued = reader.settings, reader.adapter is not None
    config = lora_config(options, reader.model.config)
    if continued:
        refuse_other_lora(reader.model, reader.model.lora_configs[reader.adapter], options)
    else:
        refuse_idle_ranks(reader.model, config)
    tune_lora(reader.model, config)
    if not continued:
        reader.settings = settings


def refuse_idle_ranks(model, config):
    """InputError for a name of --lora-rank-pattern that is of no layer that learns."""
    learning = [name for layer, *_ in target_layers(model, config.targets) for name in spellings(model, layer)]
    for name in config.rank_pattern:
        if not any(fits(name, layer) for layer in learning):
            raise InputError(f"--lora-rank-pattern {name}: fits none of the layers of --lora-targets {','.join(config.targets)}")


def begin_prompt(reader, options):
    """Virtual tokens before the text."""
    if options.prompt_text is not None and not options.prompt_text.strip():
        raise InputError("--prompt-text: holds no words to begin with; leave it out for a random beginning")
    words = reader.tokenizer.encode(options.prompt_text or "", add_special_tokens=False).ids
    tune_prompt(reader.model, options.prompt_tokens, words)
    reader.settings = reader.settings  # checked again: virtual tokens take positions


def begin_fusion(reader, options):
    """A fusion of --adapter, called `fusion`."""
    names = [adapter_name(folder) for folder in options.adapter]
    if len(set(names)) < len(names) or "fusion" in names:
        listed = ", ".join(names)
        raise InputError(f"--adapter: {listed}: names must differ, and none be 'fusion'; rename the folders")
    held = {quant_of(adapter_of_run(folder)) for folder in options.adapter}
    if len(held) > 1:
        raise InputError("--adapter: these were trained over bases held in different ways, and a fusion stands on one")
    if held != {None}:
        reader.notices.append(f"the adapters were trained over {held.pop()} weights and are fused over full ones")
    for name, folder in zip(names, options.adapter, strict=True):
        reader.load_adapter(adapter_of_run(folder), name, settings=reader.settings)
    reader.all_settings["fusion"] = reader.settings
    add_fusion(reader.model, "fusion", names)
    tune_fusion(reader.model)


def refuse_other_lora(model, config, options):
    """An adapter that goes on keeps its rank, alpha and the rest: refuse options that ask for others."""
    wanted = lora_config(options, model.config)
    fields = {
        "lora_rank": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "lora_targets": "targets",
        "rslora": "rslora", "dora": "dora", "lora_rank_pattern": "rank_pattern",
    }
    for option, field in fields.items():
        if not asked(options, option):
            continue
        has, wants = getattr(config, field), getattr(wanted, field)
        same = has == wants
        if field == "targets" and not same:  # `query` may be called `q_lin` in the adapter's file
            same = target_layers(model, has) == target_layers(model, wants)
        if not same:
            flag = "--" + option.replace("_", "-")
            raise InputError(f"{flag}: the adapter {options.model} has {has}, and keeps it when it is trained on")


def adapter_of_run(folder):
    """The adapter's own folder, where a run is named."""
    inside = Path(folder) / "model"
    return inside if is_adapter(inside) else folder


def lora_config(options, config):
    """The LoraConfig that the options describe. config: the model's, which says what is adapted unless told."""
    usual = USUAL_TARGETS["llama" if isinstance(config, LlamaConfig) else "bert"]
    ranks = {}
    for text in options.lora_rank_pattern or ():
        name, _, rank = text.partition("=")
        if not is_plain_name(name) or not rank.isdecimal() or len(rank) > 4 or not 1 <= int(rank) <= 4096:
            raise InputError(
                f"--lora-rank-pattern {text}: expected NAME=RANK, such as layer.5.attention.self.query=16; a name or the last "
                f"parts of one, and a rank from 1 to 4096"
            )
        if name in ranks:
            raise InputError(f"--lora-rank-pattern {text}: {name} has a rank already")
        ranks[name] = int(rank)
    targets = tuple(sorted({part for name in options.lora_targets or usual for part in name.split(",")}))
    return LoraConfig(
        rank=options.lora_rank, alpha=options.lora_alpha, dropout=options.lora_dropout, rslora=options.rslora,
        targets=targets, dora=options.dora, rank_pattern=ranks,
    )
