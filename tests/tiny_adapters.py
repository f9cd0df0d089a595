"""Two random adapters of a tiny model, as folders, with thresholds that make one of them always or never answer."""

import json

from model.lora import LoraConfig, add_lora
from answering.reader import Reader
from tests.test_lora import randomise

PLACES = ("wiki", "reviews/model")  # the second is called `reviews`, after its run
THRESHOLDS = (1e9, -1e9)


def make_adapters(root, base):
    """Write the adapters of model folder `base` below `root`; returns their folders."""
    made = []
    for number, (place, threshold) in enumerate(zip(PLACES, THRESHOLDS, strict=True)):
        reader = Reader.load(base, device="cpu", precision="fp32")
        reader.base = str(base), None
        add_lora(reader.model, LoraConfig(3, 7.0), "default")
        randomise(reader.model, "default", number)
        reader.all_settings["default"] = reader.all_settings[None]
        folder = root / place
        folder.mkdir(parents=True)
        reader.save(folder)
        settings = json.loads((folder / "reader.json").read_text()) | {"null_threshold": threshold}
        (folder / "reader.json").write_text(json.dumps(settings))
        made.append(folder)
    return made
