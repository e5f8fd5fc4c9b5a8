"""Steps of a run one by one, each in the weights while it is looked at."""

from retcon.run.driver import fold


def solve(model, method, state, edits, plan):
    """Every step, as it is solved; carried ones are in the weights, others are not."""
    for steps in fold(model, method, state, edits, plan):
        yield from steps


def run(model, method, state, edits, plan, *, past=()):
    """Every step, written."""
    for steps in fold(model, method, state, edits, plan, past=past):
        for step in steps:
            if plan.carry:
                yield step
                continue
            with model.scratch():
                model.write(step.update.deltas)
                yield step
