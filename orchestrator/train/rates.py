"""Rates: the range test that finds a learning rate, made once for a run by whichever worker needs it first.

On a CPU it is a function of what its id is made of, like a trial: it always begins with fresh weights of seed 0.
"""

import math
import time
from dataclasses import replace

import keras
import tensorflow as tf

from orchestrator.data.arrays import Stopped
from orchestrator.plans.rates import STEPS, of_test, pick_rate, rates_to_try, tells, tested
from orchestrator.plans.trials import Trial
from orchestrator.runs.context import Reporter, WorkerContext
from orchestrator.runs.rates import RateFound, keep_rate, read_rate
from orchestrator.spec.axes import Settings
from orchestrator.train.inputs import open_inputs
from orchestrator.train.training import Training
from orchestrator.words import label


def with_rate(settings: Settings, trial: Trial, context: WorkerContext, reporter: Reporter) -> Settings:
    """The settings with a number for learning_rate: what the range test found, which is made if nobody has.

    Raises what opening inputs and building a model do, and Stopped where the reporter says so.
    """
    if trial.rate_test is None:
        return settings
    found = read_rate(context.run, trial.rate_test, reporter.say)
    if found is None:
        found = keep_rate(context.run, _find(settings, trial, trial.rate_test, context, reporter))
        reporter.say(f"learning_rate auto: {found.rate:g} for {label(found.values)}")
    return replace(settings, train=settings.train.model_copy(update={"learning_rate": found.rate}))


def _find(settings: Settings, trial: Trial, test_id: str, context: WorkerContext, reporter: Reporter) -> RateFound:
    """Make the range test of a trial."""
    values = of_test(settings, trial.values)
    settings = tested(settings, context.networks.codes[settings.model].defaults)
    # as many epochs, each of one step at least
    own = replace(trial, seed=0, fold=0, frozen=None, stable=None, refit=None, milestones=(STEPS,))
    images, _ = open_inputs(context, settings, own, reporter)
    rates, losses = rates_to_try(settings.train), list[float | None]()
    try:
        training = Training(settings, own, context, images)
        fresh = training.snapshot()
        while len(losses) < len(rates) and not (losses and tells(losses)):
            training.resume(fresh)
            losses.append(_loss_at(rates[len(losses)], training, reporter))
    except tf.errors.OpError:
        if images.source.encoded and images.source.encoded.failures:  # what tf.data hides
            raise images.source.encoded.failures.pop() from None
        raise
    finally:
        keras.backend.clear_session()
    tried = list(rates[: len(losses)])
    return RateFound(test_id=test_id, values=values, rate=pick_rate(tried, losses), rates=tried, losses=losses)


def _loss_at(rate: float, training: Training, reporter: Reporter) -> float | None:
    """The mean loss over the second half of STEPS steps at this rate; None where it is no number. Raises Stopped."""
    loop, done, ask_at = training.loop, 0, time.monotonic() + 1
    training.optimizer.learning_rate = rate
    for end in (STEPS // 2, STEPS):
        loop.take_sums()
        while done < end:
            done += loop.train(*divmod(done, loop.steps), most=end - done)[0]
            if time.monotonic() >= ask_at:
                ask_at = time.monotonic() + 1
                if reporter.stopping():
                    raise Stopped
    sums = loop.take_sums()
    loss = sums.objective / sums.images
    return loss if math.isfinite(loss) else None
