"""Builds everything from a config and runs it; the only module that knows all others."""

import dataclasses
import logging
import time
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf
import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from petseg import (
    augmentation,
    checkpointing,
    config as config_lib,
    distribution,
    evaluator,
    host_allocator,
    metrics,
    optimization,
    sample_weights,
    summaries,
    trainer,
    unet,
    visualization,
)
from petseg.config import CLASS_NAMES, Config, DistributionConfig, EvalConfig
from petseg.data import datasets, input_pipeline
from petseg.data.datasets import Examples
from petseg.distribution import Placement
from petseg.errors import ClusterError, DataError, NonFiniteLossError
from petseg.trainer import Trainer
from petseg.work_directory import WorkDirectory, write_json

logger = logging.getLogger(__name__)
SHEET_EXAMPLES = 8


def train(config: Config) -> dict[str, Any]:
    """Trains to the end of the schedule, from where the work directory stands.

    Returns:
      the scores of the last evaluation, as in its results file.

    Raises:
      PetsegError: if data, work directory or checkpoint cannot be used, or the loss is not finite.
    """
    workdir = WorkDirectory.for_training(config.runtime.workdir, config.data.dataset)
    config = dataclasses.replace(config, runtime=dataclasses.replace(config.runtime, workdir=str(workdir.path)))
    if workdir.config_file.exists():
        for name, (old, new) in workdir.reconcile(config).items():
            logger.info("changed: --%s was %r, is now %r", name, old, new)
    placement = set_up_runtime(config, config.distribution)
    with logging_redirect_tqdm(), placement.naming_lost_workers():
        return Experiment(config, workdir, placement).run()


def set_up_runtime(config: Config, devices: DistributionConfig) -> Placement:
    """Memory, seeds, determinism and devices of the process; before anything is built."""
    host_allocator.keep_freed_memory()
    keras.utils.set_random_seed(config.runtime.seed)
    if config.runtime.deterministic:
        tf.config.experimental.enable_op_determinism()
    placement = distribution.set_up(devices)
    if not placement.is_chief:  # what they all would say, one says
        logging.getLogger("petseg").setLevel(logging.WARNING)
    return placement


@dataclasses.dataclass(frozen=True)
class Clock:
    """When a run does what, in steps."""

    total: int
    per_loop: int
    summary: int
    evaluation: int
    checkpoint: int

    @classmethod
    def of(cls, config: Config, steps_per_epoch: int) -> "Clock":
        schedule = config.schedule
        return cls(
            total=schedule.train_steps or schedule.epochs * steps_per_epoch,
            per_loop=schedule.steps_per_loop,
            summary=schedule.summary_every,
            evaluation=schedule.eval_every or steps_per_epoch,
            checkpoint=schedule.checkpoint_every or steps_per_epoch,
        )

    def due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.total

    def steps_to_next(self, step: int) -> int:
        """How many steps until something is due, or the compiled loop returns anyway."""
        pauses = [every - step % every for every in (self.summary, self.evaluation, self.checkpoint)]
        return min(self.per_loop, self.total - step, *pauses)


class Experiment:
    """One training run in its work directory."""

    def __init__(self, config: Config, workdir: WorkDirectory, placement: Placement):
        self.config, self.workdir, self.placement = config, workdir, placement
        self.strategy, data = placement.strategy, config.data
        input_pipeline.check_divides(self.strategy, data.batch_size)
        trainer.check_step(
            self.strategy,
            batch_size=data.batch_size,
            micro_batches=config.compute.micro_batches,
            sync_batch_norm=config.model.sync_batch_norm,
            jit_compile=config.compute.jit_compile,
        )
        self.train_examples = datasets.load(data.dataset, data.train_split, data.image_size, data.data_dir)
        self.eval_examples = datasets.load(data.dataset, data.eval_split, data.image_size, data.data_dir)
        self.steps_per_epoch = input_pipeline.steps_per_epoch(len(self.train_examples), data.batch_size)
        self.clock = Clock.of(config, self.steps_per_epoch)
        self.class_weights = resolve_class_weights(config, self.train_examples)
        if self.class_weights is not None:
            logger.info("class weights: %s", _listed(self.class_weights))
        resume_from = tf.train.latest_checkpoint(str(workdir.checkpoints))
        with self.strategy.scope():
            self.model = build_model(config, self.strategy, None if resume_from else self.train_examples)
            self.trainer = build_trainer(config, self.strategy, self.model, self.class_weights, self.clock.total)
            self.evaluator = evaluator.Evaluator(
                self.strategy,
                self.model,
                class_weights=self.class_weights,
                loss_normalization=config.loss.loss_normalization,
            )
        saves, step = placement.is_chief, self.trainer.step
        self.checkpoints = checkpointing.Checkpoints(
            workdir.checkpoints,
            keep=config.schedule.keep_checkpoints,
            saves=saves,
            model=self.model,
            optimizer=self.trainer.optimizer,
            loss_scale=self.trainer.loss_scale,
            step=step,
        )
        self.best = checkpointing.BestCheckpoint(workdir.best, saves=saves, model=self.model, step=step)
        if resume_from:
            self.checkpoints.restore(resume_from)
            logger.info("resumed from %s", resume_from)
        self._check_agreement()

    def _check_agreement(self) -> None:
        """Processes that train different things would train nonsense together, or wait for each other for ever."""
        step, name = self._step(), "" if self.placement.cluster is None else self.placement.cluster.name
        if not self.placement.agree(step):
            raise ClusterError(
                f"{name} stands at step {step}, another process elsewhere: "
                f"--workdir={self.workdir.path} must be the same folder for all of them"
            )
        if not self.placement.agree(config_lib.fingerprint(self.config)):
            raise ClusterError(f"{name} was started with other flags than another process; takes the same for all")

    def run(self) -> dict[str, Any]:
        """The outer loop: train a while, then summarise, evaluate and save when the clock says so."""
        step, clock = self._step(), self.clock
        if step >= clock.total:
            logger.info("%s is complete: step %d of %d", self.workdir.path, step, clock.total)
            results = self._evaluate(step, log=None)
            if self.placement.is_chief:
                print(evaluator.table(results))
            return results
        logger.info("%s: steps %d to %d, %d an epoch", self.workdir.path, step, clock.total, self.steps_per_epoch)
        log = None
        if self.placement.is_chief:
            devices = [device.name for device in tf.config.list_logical_devices()]
            self.workdir.save_config(self.config, class_weights=self.class_weights, devices=devices)
            log = summaries.Summaries(self.workdir.path, self.workdir.metrics_file, first_step=step)
        try:
            results = self._loop(step, log)
        finally:
            if log is not None:
                log.close()
        if self.placement.is_chief:
            self._finish(results)
        self.placement.agree(0)  # nobody leaves while another one works
        return results

    def _loop(self, step: int, log: summaries.Summaries | None) -> dict[str, Any]:
        clock, results = self.clock, {}
        batches = iter(
            input_pipeline.distributed_training_batches(
                self.strategy,
                self.train_examples,
                batch_size=self.config.data.batch_size,
                seed=self.config.runtime.seed,
                first_step=step,
                last_step=clock.total,
            )
        )
        if step == 0:
            if log is not None:
                log.image(summaries.TRAIN, 0, "model", visualization.to_array(visualization.model_diagram(self.model)))
            results = self._evaluate(step, log)
        self.trainer.run(batches, 0)  # compiles, so that images/s does not contain it
        hidden = None if self.placement.is_chief else True
        with tqdm.tqdm(total=clock.total, initial=step, unit="step", disable=hidden, dynamic_ncols=True) as bar:
            timer = Timer()
            while step < clock.total:
                count = clock.steps_to_next(step)
                with timer:
                    self.trainer.run(batches, count)
                    step = self._step()
                self._check_finite()
                bar.update(count)
                if clock.due(step, clock.summary):
                    self._summarize(step, timer, log, bar)
                if clock.due(step, clock.evaluation):
                    results = self._evaluate(step, log)
                    self.best.offer(results["mean_iou"], step)
                if clock.due(step, clock.checkpoint):
                    if log is not None:
                        log.flush()
                    self.checkpoints.save(step)  # last, so that all that belongs to a step precedes its checkpoint
        return results

    def _step(self) -> int:
        return int(self.trainer.step.numpy())

    def _check_finite(self) -> None:
        step = int(self.trainer.nonfinite_step.numpy())
        if step >= 0:
            raise NonFiniteLossError(
                f"the loss or its gradient is not finite at step {step}; "
                f"the last good checkpoint is {self.checkpoints.latest or '(none yet)'}"
            )

    def _summarize(self, step: int, timer: "Timer", log: summaries.Summaries | None, bar: tqdm.tqdm) -> None:
        sums = self.trainer.read_sums()  # by all processes, for their sums meet here
        if log is None:
            return
        scores = metrics.from_confusion_matrix(sums.confusion_matrix, CLASS_NAMES)
        images_per_second = timer.rate(sums.steps * self.config.data.batch_size)
        scalars = {
            "loss": sums.loss,
            **summaries.scalars_of(scores),
            "learning_rate": sums.learning_rate,
            "gradient_norm": sums.gradient_norm,
            "loss_scale": sums.loss_scale,
            "skipped_steps": sums.skipped_steps,
            "images_per_second": images_per_second,
        }
        log.scalars(summaries.TRAIN, step, scalars)
        shown = f"loss {sums.loss:.4f}, mean IoU {scores['mean_iou']:.4f}, {images_per_second:.1f} images/s"
        bar.set_postfix_str(shown)
        if bar.disable:
            logger.info("step %d/%d: %s", step, self.clock.total, shown)

    def _evaluate(self, step: int, log: summaries.Summaries | None) -> dict[str, Any]:
        evaluation = self.evaluator.evaluate(self.eval_examples, batch_size=self.config.data.batch_size)
        split = self.config.data.eval_split
        results = evaluation.results(step, split)
        if not self.placement.is_chief:
            return results
        write_json(self.workdir.results_file(split, step), results)
        logger.info(
            "step %d: %s: loss %.4f, accuracy %.4f, mean IoU %.4f (%s)",
            step, split, results["loss"], results["accuracy"], results["mean_iou"],
            ", ".join(f"{name} {value:.4f}" for name, value in results["iou"].items()),
        )  # fmt: skip
        if log is not None:
            log.scalars(summaries.EVAL, step, summaries.scalars_of(results))
            sheet = visualization.to_array(self._prediction_sheet())
            log.image(summaries.EVAL, step, "predictions", sheet)
        return results

    def _prediction_sheet(self) -> Any:
        some = slice(0, SHEET_EXAMPLES)
        images = self.eval_examples.images[some]
        masks, names = self.eval_examples.masks[some, ..., 0], self.eval_examples.names[some]
        return visualization.prediction_sheet(images, masks, self.evaluator.predict(images), names)

    def _finish(self, results: Mapping[str, Any]) -> None:
        figures = self.workdir.figures
        rows = summaries.read_csv(self.workdir.metrics_file)
        visualization.save(visualization.training_curves(rows, self.steps_per_epoch), figures / "curves.png")
        visualization.save(self._prediction_sheet(), figures / "predictions.png")
        visualization.save(visualization.model_diagram(self.model), figures / "model.png")
        print(evaluator.table(results))
        print(f"\nwork directory: {self.workdir.path}")
        print(f"score it:       python eval.py --workdir={self.workdir.path} --checkpoint=best")
        print(f"watch it:       tensorboard --logdir={self.workdir.path}")


class Timer:
    """Seconds spent in ``with timer:`` since the last `rate`: training without evaluation and checkpoints."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self._seconds += time.perf_counter() - self._start

    def rate(self, count: int) -> float:
        """Count per second; starts anew."""
        rate = count / self._seconds if self._seconds else float("nan")
        self._seconds = 0.0
        return rate


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """Scores one checkpoint of a run on a split, writes the results file, prints the table.

    Raises:
      PetsegError: if work directory, checkpoint or split cannot be used.
    """
    score = config.score
    workdir = WorkDirectory(score.workdir)
    run = workdir.load_config()
    path = checkpointing.find(workdir.checkpoints, workdir.best, score.checkpoint)
    split, data_dir = score.split or run.data.eval_split, score.data_dir or run.data.data_dir
    shared = datasets.overlap(run.data.dataset, split, run.data.train_split, data_dir)
    if shared and not score.allow_training_images:
        raise DataError(
            f"--split={split}: {shared} of its images were trained on ({run.data.train_split}); "
            "a score on them says little; --allow_training_images scores them all the same"
        )
    placement = set_up_runtime(run, config.distribution)
    strategy = placement.strategy
    examples = datasets.load(run.data.dataset, split, run.data.image_size, data_dir)
    with strategy.scope():
        model = build_model(run, strategy, None)
        scorer = evaluator.Evaluator(
            strategy,
            model,
            class_weights=workdir.load_class_weights(),
            loss_normalization=run.loss.loss_normalization,
        )
    step = checkpointing.restore_model(path, model)
    evaluation = scorer.evaluate(examples, batch_size=score.batch_size or run.data.batch_size)
    results = evaluation.results(step, split)
    if placement.is_chief:
        results_file = workdir.results_file(split, step)
        write_json(results_file, results)
        print(evaluator.table(results))
        print(f"\ncheckpoint: {path}\nresults:    {results_file}")
    placement.agree(0)
    return results


def build_model(config: Config, strategy: tf.distribute.Strategy, examples: Examples | None) -> keras.Model:
    """The network of a config.

    Args:
      config: the run's.
      strategy: decides whether batch norms must be synchronised.
      examples: what to initialise a new network's encoder with; None if a checkpoint will fill it.
    """
    size, model = config.data.image_size, config.model
    with unet.dtype_policy(config.compute.precision):
        encoder = unet.build_encoder(image_size=size, alpha=model.encoder_alpha)
        network = unet.build_unet(
            image_size=size,
            num_classes=len(CLASS_NAMES),
            encoder=encoder,
            train_encoder=model.train_encoder,
            input_scaling=model.input_scaling,
            batch_norm_momentum=model.batch_norm_momentum,
            sync_batch_norm=model.sync_batch_norm,
        )
    if examples is not None and model.encoder_weights != "none":
        unet.load_encoder_weights(encoder, model.encoder_weights, image_size=size, alpha=model.encoder_alpha)
    elif examples is not None:
        some = tf.cast(examples.images[:64], tf.float32)
        unet.calibrate_batch_norm(encoder, network.get_layer("scaling")(some))
    return network


def build_trainer(
    config: Config,
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    class_weights: tuple[float, ...] | None,
    total_steps: int,
) -> Trainer:
    """The loop of a config."""
    optimizer, compute, batch_size = config.optimizer, config.compute, config.data.batch_size
    return Trainer(
        strategy,
        model,
        optimization.make_optimizer(optimizer.optimizer, model.trainable_variables),
        optimization.learning_rate_schedule(optimizer.learning_rate_schedule, optimizer.learning_rate, total_steps),
        augmentation.augmentation(config.data.augment, seed=config.runtime.seed, batch_size=batch_size),
        optimization.LossScale(
            initial=compute.initial_loss_scale,
            growth_interval=compute.loss_scale_growth_interval,
            dynamic=compute.precision == "mixed_float16",
        ),
        batch_size=batch_size,
        class_weights=class_weights,
        loss_normalization=config.loss.loss_normalization,
        clip_norm=optimizer.clip_norm,
        micro_batches=compute.micro_batches,
        sync_batch_norm=config.model.sync_batch_norm,
        jit_compile=compute.jit_compile,
    )


def resolve_class_weights(config: Config, examples: Examples) -> tuple[float, ...] | None:
    """The class weights of a config, normalised to sum to 1."""
    if config.loss.class_weights == "balanced":
        return sample_weights.balanced(examples.masks, len(CLASS_NAMES))
    given = config.loss.class_weight_values()
    return given and sample_weights.normalized(given)


def _listed(weights: tuple[float, ...]) -> str:
    return ", ".join(f"{name} {weight:.3f}" for name, weight in zip(CLASS_NAMES, weights, strict=True))
