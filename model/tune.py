"""What learns: passes over a built model that leave requires_grad on the parts a method trains."""

from model.lora import HEAD, add_lora, switch_of
from model.quant import OUTPUTS


def train_only(model, chosen):
    """Freeze every parameter whose name `chosen` does not accept."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(chosen(name))


def tune_full(model):
    """Everything."""
    train_only(model, lambda name: True)


def tune_head(model):
    """The last layer alone, on a frozen model: the span head, or a decoder's output layer."""
    train_only(model, lambda name: name.startswith(OUTPUTS))


def tune_bitfit(model):
    """All biases and the head (Ben-Zaken et al. 2021, arXiv 2106.10199)."""
    train_only(model, lambda name: name.startswith(OUTPUTS) or name.endswith(".bias"))


def tune_lora(model, config, name="default"):
    """The active adapter and its head; without one a new one is made by `config`, a LoraConfig."""
    if switch_of(model) is None or switch_of(model).active is None:
        add_lora(model, config, name)
    active = switch_of(model).active
    ours = (f".updates.{active}.", f"{HEAD}.heads.{active}.")
    train_only(model, lambda parameter: any(part in parameter for part in ours))
