"""The bar of a run, on stderr, and how a signal gets through an evaluation."""

from contextlib import contextmanager

from tqdm import tqdm


class Stopped(Exception):
    """A signal came during an evaluation."""


class StoppableBar:
    """Passes updates on to a bar, and a signal on to whoever updates it."""

    def __init__(self, bar, stop):
        self.bar, self.stop = bar, stop

    def update(self, count):
        """Count `count` more; raises Stopped when a signal asked to leave."""
        self.bar.update(count)
        if self.stop.number is not None:
            raise Stopped


class Progress:
    """The bar of a run: loss, rate, and an ETA that counts the evaluations still to come."""

    def __init__(self, total_steps, state, evaluation_steps):
        self.state, self.total, self.evaluation_steps = state, total_steps, evaluation_steps
        self.loss = None
        self.began_at = state.step
        self.seconds = 0.0
        self.bar = tqdm(
            total=total_steps, initial=state.step, unit=" steps", disable=None, mininterval=0.5,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    def step(self, result, seconds):
        """Take note of one step."""
        self.loss = result.loss if self.loss is None else 0.95 * self.loss + 0.05 * result.loss
        self.seconds += seconds
        rate = result.windows / seconds
        self.bar.set_postfix_str(f"loss {self.loss:.3f}, {rate:.1f} windows/s, ETA {self.eta()}", refresh=False)
        self.bar.update()

    def eta(self):
        """Remaining steps at this sitting's mean, and remaining evaluations at their mean so far."""
        done = self.state.step - self.began_at
        steps = (self.total - self.state.step) * self.seconds / max(1, done)
        evaluations = [e["eval_seconds"] for e in self.state.evaluations]
        to_come = sum(step > self.state.step for step in self.evaluation_steps)
        if to_come and not evaluations:
            return f"{tqdm.format_interval(steps)} + {to_come} evaluations"
        return tqdm.format_interval(steps + to_come * sum(evaluations) / max(1, len(evaluations)))

    @contextmanager
    def evaluation(self, questions, stop):
        """A bar for an evaluation's questions; its update raises Stopped once a signal has come."""
        with tqdm(total=questions, desc="scoring", unit=" questions", leave=False, disable=None) as bar:
            yield StoppableBar(bar, stop)

    def show_scores(self, state):
        """One line that stays: the scores of the latest evaluation."""
        latest = state.evaluations[-1]
        mark = ", the best so far" if state.best_step == latest["step"] else ""
        tqdm.write(f"step {latest['step']}: exact match {latest['exact']:.2f}, F1 {latest['f1']:.2f}{mark}")
