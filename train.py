"""Fine-tune a BERT or a LLaMA to answer questions: python train.py --dataset squad

Reads top to bottom: `train` sets up, `loop` learns, `finish` scores and writes the model.
"""

import os
import shlex
import sys
import time
from contextlib import ExitStack

from common.errors import InputError, RankLost
from common.options import parse, render_config
from common.output import guarded_main, signed
from common.pages import keep_few_kernels
from training.options import TRAIN_OPTIONS
from training.signals import StopRequest, Terminated, terminable

DESCRIPTION = "Fine-tune a BERT or a LLaMA to answer questions from a text, or to say that it does not answer."
FIRST_STEPS = 5  # of each sitting, left out of the rates: caches and allocators warm up


@guarded_main("train.py", keep_going=True)
def main(argv=None):
    """Run the command line; returns the exit code: 0, 1 (training failed), 2 (unusable input), 130, 143."""
    keep_few_kernels()
    try:
        options = parse("train.py", DESCRIPTION, TRAIN_OPTIONS, argv)
        if options.print_config:
            from training.run import settle_options

            print(render_config(settle_options(options)), end="")
            return 0
        if options.print_prompt:
            return print_prompt(options)
        if options.plan:
            return plan(options)
        with terminable():
            return train(options)
    except InputError as error:
        print(f"{signed('train.py')}: {error}", file=sys.stderr)
        return 2
    except RankLost as error:
        print(f"{signed('train.py')}: {error}; go on with the same --out and --resume", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:  # outside the loop, where nothing waits to be saved
        print("train.py: stopped; a run that had begun goes on with the same --out and --resume", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130


def print_prompt(options):
    """Show what a decoder is asked first, and what it is to say; returns the exit code."""
    from model.source import resolve_model
    from training.asking import settings_for, shown_prompt
    from training.run import data_files, read_split, settle_options

    options = settle_options(options)
    source = resolve_model(options.model, revision=options.revision)
    settings = settings_for(source, options, None)  # refuses a model that takes no prompt
    train_files, _ = data_files(options, tqdm_bytes)
    examples = read_split(train_files, None, 0, options.skip_misaligned, "training").examples
    prompt, answer = shown_prompt(source.folder, settings, examples[:20])
    print(f"{prompt}\n--- and then it is to say:\n{answer}")
    return 0


def plan(options):
    """Say what the run would cost on this machine, and whether it fits, after trying a few of its steps; the exit code."""
    from training.distributed import Ranks
    from training.folder import RunFolder
    from training.plan import foresee
    from training.run import recorded_options, refuse_guessing, settle_options
    from training.setup import prepare
    from training.step import NonFinite

    if "RANK" in os.environ or options.shard:
        raise InputError("--plan: tries one process; call it without torchrun and --shard")
    options, began, done = settle_options(options), time.perf_counter(), 0
    if options.resume:
        run = RunFolder(options.out)
        if run.config.is_file():
            options, done = recorded_options(options, run), run.steps_done()
        else:
            refuse_guessing(options)
        if run.finished:
            print(f"{run.root}: this run is finished; nothing to do")
            return 0
    prepared = prepare(options, Ranks(), tqdm_bytes, tqdm_texts)
    seconds = time.perf_counter() - began
    try:
        with tqdm_texts(None, "trying out", " steps") as bar:
            foreseen = foresee(options, prepared, bar, done)
    except NonFinite as error:
        print(f"train.py: trying it out: {error}; choose --precision fp32 or other weights", file=sys.stderr)
        return 1
    print(foreseen.text(seconds))
    return 0


def train(options):
    """Enter the run's folder, alone, and train there; returns the exit code."""
    from training.distributed import joined
    from training.folder import RunFolder, enter_folder  # heavy, so after the options: --help is quick
    from training.run import recorded_options, refuse_guessing, settle_options, splits_the_model

    options = settle_options(options)
    run = RunFolder(options.out)
    shard = splits_the_model(options, run, "RANK" in os.environ)
    with joined(os.environ, options.device, shard) as ranks, ExitStack() as held:
        ranks.once(lambda: held.enter_context(enter_folder(run, options.resume)))
        if options.resume and run.config.is_file():
            options = recorded_options(options, run)
            if run.finished:
                print(f"{run.root}: this run is finished; nothing to do")
                return 0
        elif options.resume:
            refuse_guessing(options)
            print(f"{run.root}: no run to resume there; starting one")
        return train_in(run, options, ranks)


def train_in(run, options, ranks):
    """Set up what the options ask for, then learn, then finish; returns the exit code."""
    from common.pages import keep_pages
    from model.precision import make_scaler
    from training.folder import check_space, has_checkpoint
    from training.measure import parameter_counts
    from training.optimizer import make_optimizer
    from training.run import describe_run, write_or_compare
    from training.setup import prepare, print_setup
    from training.losses import loss_file
    from training.sharding import refuse_unshardable
    from training.state import LoopState, complete_checkpoints, load_checkpoint, sweep_leftovers
    from training.step import NonFinite

    prepared = prepare(options, ranks, tqdm_bytes, tqdm_texts)
    reader, windows, dev_set = prepared.reader, prepared.windows, prepared.dev_set
    device, precision = prepared.device, prepared.precision
    losses = loss_file(run, options, reader, windows, ranks)
    if ranks.sharded:
        refuse_unshardable(options, precision, reader.model)
    learner = ranks.learner(reader.model)
    optimizer = make_optimizer(reader.model, options.weight_decay, options.lora_plus_ratio, options.optimizer)
    ranks.once(check_space, run, parameter_counts(reader.model)[0], options.keep)
    description = describe_run(
        options, prepared.source, prepared.files, device, precision, reader.report.fingerprint, ranks.size
    )
    for what in ("options", "model", "model_files", "data", "adapters"):
        ranks.require_same(what, description[what])
    notices = ranks.once(write_or_compare, run, description)
    ranks.require_seen(run.config)
    print_setup(prepared, options.tokens_per_micro_batch, notices)
    prepared.train_set.examples.clear()  # what is learned stands in `windows`, on the disk

    scaler = make_scaler(device, precision)
    state = LoopState()
    if ranks.once(has_checkpoint, run):
        newest = complete_checkpoints(run.checkpoints)[-1]
        with ranks.whole(reader.model, optimizer, write_back=True):
            state = load_checkpoint(newest, reader.model, optimizer, scaler)
        print(f"resuming after step {state.step}")
    elif options.resume:
        print("no complete checkpoint: starting over")
    ranks.once(sweep_leftovers, run.root)
    ranks.once(sweep_leftovers, run.checkpoints)
    ranks.once(run.cut_log, state.step)
    if losses is not None:
        losses.cut(state.step)

    keep_pages()
    try:
        signal_number = loop(options, run, state, reader, learner, windows, dev_set, optimizer, scaler, ranks, losses)
    except NonFinite as error:  # the same on all ranks
        if ranks.first:
            print(
                f"train.py: step {state.step + 1}: {error}, and nothing was updated; start again in another --out with "
                f"a lower --lr or with --precision fp32", file=sys.stderr,
            )
        return 1
    if signal_number is not None:
        program = "python train.py" if ranks.size == 1 else f"torchrun --nproc-per-node {ranks.size} train.py"
        print(f"stopped after step {state.step}; continue with: {program} --resume --out {shlex.quote(str(run.root))}")
        return 128 + signal_number
    with ranks.whole(reader.model):
        ranks.once(finish, run, state, reader, dev_set)
    return 0


def loop(options, run, state, reader, learner, windows, dev_set, optimizer, scaler, ranks, losses=None):
    """Learn until the last step, early stopping or a signal; returns the signal's number or None.

    A checkpoint is written every --save-every steps, after each evaluation and when a signal asks to stop;
    `state` is all the loop knows, so that what a checkpoint holds is enough to go on from. losses: a LossFile or None.
    """
    from data.batches import epoch_batches
    from training.distributed import noticing_loss
    from training.evaluate import evaluate
    from training.optimizer import learning_rate
    from training.progress import Progress, Stopped
    from training.setup import plan_steps, save_best
    from training.state import save_checkpoint
    from training.step import train_step

    steps_per_epoch = -(-len(windows) // options.batch_size)
    total_steps, evaluation_steps = plan_steps(options, steps_per_epoch, has_dev=dev_set is not None)
    device, precision, model = reader.device, reader.precision, reader.model
    batches, batches_epoch = None, None
    sitting_steps, saved = 0, None

    def save():
        nonlocal saved
        if saved != (state.step, state.evaluated_step):
            with ranks.whole(model, optimizer):
                ranks.once(write)
            saved = state.step, state.evaluated_step

    def write():
        save_checkpoint(run.checkpoints, state, model, optimizer, scaler, options.keep)

    with StopRequest(once=ranks.size == 1) as stop, Progress(total_steps, state, evaluation_steps) as progress, \
            noticing_loss(ranks, rescue=write):
        while True:
            if state.step in evaluation_steps and state.evaluated_step < state.step:
                may_lack_answer = reader.settings.null_threshold is not None
                try:
                    with progress.evaluation(len(ranks.share(dev_set.examples)), stop) as bar:
                        result = evaluate(
                            reader, dev_set.examples, may_lack_answer=may_lack_answer, progress=bar, ranks=ranks
                        )
                except Stopped:
                    save()  # without this evaluation; it is the first thing after --resume
                    return ranks.largest(stop.number or 0)
                with ranks.whole(model):
                    ranks.once(save_best, run, state, reader, result)
                ranks.share_state(state)
                save()
                progress.show_scores(state)
            learned = state.step == total_steps or (options.patience and state.without_gain >= options.patience)
            stopped = ranks.largest(stop.number or 0)
            if learned or stopped:
                save()
                return stopped or None

            if batches_epoch != state.epoch:
                batches = epoch_batches(windows.length, options.batch_size, options.seed, state.epoch)
                batches_epoch = state.epoch
            rate = learning_rate(state.step, total_steps, options.lr, options.warmup)
            learner.train()
            ranks.seed(options.seed, state.step)
            began = time.perf_counter()
            result = train_step(
                learner, optimizer, scaler, windows, batches[state.position], learning_rate=rate,
                max_tokens=options.tokens_per_micro_batch, clip=options.clip, device=device, precision=precision,
                ranks=ranks, record=losses.take if losses is not None else None,
            )
            seconds = time.perf_counter() - began

            state.step += 1
            state.position += 1
            if state.position == len(batches):
                state.epoch, state.position = state.epoch + 1, 0
            sitting_steps += 1
            state.train_seconds += seconds
            if sitting_steps > FIRST_STEPS:
                state.timed_seconds += seconds
                state.timed_windows += result.windows
                state.timed_tokens += result.tokens
            if ranks.first:
                run.append_log({
                    "step": state.step, "epoch": batches_epoch, "loss": result.loss, "lr": rate,
                    "grad_norm": result.grad_norm if result.updated else None, "windows": result.windows,
                    "tokens": result.tokens, "padded_tokens": result.padded_tokens, "updated": result.updated,
                    "seconds": seconds,
                })
            if losses is not None:
                losses.write(state.step, batches_epoch)
            progress.step(result, seconds)
            if state.step % options.save_every == 0 and state.step not in evaluation_steps:
                save()


def finish(run, state, reader, dev_set):
    """Put the best weights into model/, time them, and write all files; metrics.json comes last."""
    from training.evaluate import score_lines
    from training.setup import write_results

    scores = write_results(run, state, reader, dev_set)
    if scores:
        before = next((e for e in state.evaluations if e["step"] == 0), None)
        for line in score_lines(scores, before=before):
            print(line)
    print(f"ask it: python infer.py --model {shlex.quote(str(run.model))}")


def tqdm_bytes(total, initial, desc):
    """A progress bar in bytes, for downloads."""
    from tqdm import tqdm

    return tqdm(total=total, initial=initial, desc=desc, unit="B", unit_scale=True, leave=False)


def tqdm_texts(total, desc="tokenising", unit=" texts"):
    """A progress bar in texts."""
    from tqdm import tqdm

    return tqdm(total=total, desc=desc, unit=unit, leave=False, disable=None)


if __name__ == "__main__":
    sys.exit(main())
