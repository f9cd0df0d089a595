"""What tests/test_distributed.py runs in several processes: short trainings whose every step is written down."""

import os
from pathlib import Path

import numpy as np
import torch

from common.errors import InputError
from data.batches import epoch_batches
from data.windows import WindowSet, WindowSettings
from model.lora import LoraConfig
from model.precision import make_scaler
from model.tune import tune_full, tune_lora
from answering.reader import Reader, ReaderSettings
from tests.tiny_run import WINDOW, examples
from training.distributed import joined
from training.optimizer import make_optimizer
from training.step import accumulate, train_step

CPU = torch.device("cpu")


def learn(argv):
    """Train for some steps and save all there is: argv is folder, method, optimizer, steps, shard, out."""
    folder, method, kind, steps, shard, out = argv
    torch.set_num_threads(1)
    with joined(os.environ, "cpu", shard == "shard") as ranks:
        reader = Reader.load(
            folder, settings=ReaderSettings(WindowSettings(WINDOW, overlap=20)), device="cpu", precision="fp32"
        )
        settings = reader.settings
        tune_lora(reader.model, LoraConfig(3, 6.0)) if method == "lora" else tune_full(reader.model)
        windows = WindowSet(list(examples(range(9))), reader.tokenizer, settings.windows, with_labels=True)
        model, scaler = ranks.learner(reader.model), make_scaler(CPU, "fp32")
        parameters = [p for p in reader.model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=0.0) if kind == "sgd" else make_optimizer(reader.model, 0.01)
        model.train()
        # 5 of some 20 windows a step, so the last step of an epoch has fewer; 130 tokens: two or three micro-batches
        batches = [b for epoch in range(40) for b in epoch_batches(windows.length, 5, 7, epoch)]
        accumulate(model, windows, batches[0], 130, device=CPU, precision="fp32", scaler=scaler, ranks=ranks)
        saved = {f"grad.{n}": p.grad for n, p in reader.model.named_parameters() if p.requires_grad}
        saved = {name: ranks.whole_tensor(grad).numpy().copy() for name, grad in saved.items()}
        results = [
            train_step(model, optimizer, scaler, windows, batch, learning_rate=0.3 if kind == "sgd" else 0.002,
                       max_tokens=130, clip=1.0, device=CPU, precision="fp32", ranks=ranks)
            for batch in batches[: int(steps)]
        ]
        saved["loss"] = np.array([result.loss for result in results])
        saved["norm"] = np.array([result.grad_norm for result in results])
        saved["tokens"] = np.array([result.tokens for result in results])
        with ranks.whole(reader.model, optimizer):
            if ranks.first:
                saved |= {n: p.detach().numpy() for n, p in reader.model.named_parameters() if p.requires_grad}
                np.savez(out, **saved)
    return 0


def lonely_batches(argv):
    """Steps of one window, where all ranks but the first have nothing: the gradient is that of the window."""
    folder, shard, out = argv
    with joined(os.environ, "cpu", shard == "shard") as ranks:
        reader = Reader.load(folder, settings=ReaderSettings(WindowSettings(WINDOW, overlap=20)), device="cpu",
                             precision="fp32")
        windows = WindowSet(list(examples(range(3))), reader.tokenizer, reader.settings.windows, with_labels=True)
        model, scaler = ranks.learner(reader.model), make_scaler(CPU, "fp32")
        found = accumulate(model, windows, np.array([1]), 130, device=CPU, precision="fp32", scaler=scaler, ranks=ranks)
        saved = {n: ranks.whole_tensor(p.grad).numpy() for n, p in reader.model.named_parameters()}
        if ranks.first:
            np.savez(out, loss=found[0], **saved)
    return 0


def refuse_on_the_second(argv):
    """Ranks that were given different files; each writes down what it was told."""
    from common.errors import InputError

    try:
        with joined(os.environ, "cpu") as ranks:
            ranks.require_same("windows", 7)
            ranks.require_same("data", f"file of {min(ranks.rank, 1)}")
    except InputError as error:
        Path(f"{argv[0]}.{os.environ['RANK']}").write_text(str(error))
        return 2
    return 0


def sum_once(argv):
    """One all-reduce of fp32 numbers; each rank writes down the bytes that it wrote meanwhile."""
    import torch.distributed as dist

    def written():
        return int(Path("/proc/self/io").read_text().split("wchar: ")[1].split()[0])

    with joined(os.environ, "cpu") as ranks:
        numbers = torch.ones(int(argv[0]) // 4)
        dist.barrier()
        before = written()
        dist.all_reduce(numbers)
        dist.barrier()
        Path(f"{argv[1]}.{ranks.rank}").write_text(str(written() - before))
        assert numbers.eq(ranks.size).all()
    return 0


def refuse_while_whole(argv):
    """What a full disk does to a checkpoint of a sharded model: it must not be lost on the way out of `whole`."""
    (folder,) = argv
    torch.set_num_threads(1)
    with joined(os.environ, "cpu", True) as ranks:
        reader = Reader.load(folder, device="cpu", precision="fp32")
        tune_full(reader.model)
        ranks.learner(reader.model)
        optimizer = make_optimizer(reader.model, 0.01)

        def refuse():
            raise InputError("the disk is full")

        try:
            with ranks.whole(reader.model, optimizer):
                ranks.once(refuse)
        except InputError:
            return 2
    return 0


def predict_each(argv):
    """infer.py on every rank, with {rank} in its arguments filled in."""
    import infer

    return infer.main([one.replace("{rank}", os.environ["RANK"]) for one in argv])
