"""Fitting: from checked parameters and data to a fitted model."""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning

from sklearn_msf._estimator.auto_settings import (
    check_steps,
    classification_ode,
    classification_settings,
    field_layout,
    initial_fraction,
    resolve_augmentation,
    training_settings,
    warn_of_one_position,
)
from sklearn_msf._estimator.calibration import (
    MODEL_FRACTION,
    CalibrationPlan,
    HeldOut,
    check_several_classes,
    learn_temperature,
    plan_calibration,
    temperature_of,
)
from sklearn_msf._estimator.callbacks import FitCallbacks
from sklearn_msf._estimator.data_validation import (
    TrainingSamples,
    check_partial_classes,
    check_training_samples,
    check_validation_samples,
)
from sklearn_msf._estimator.fit_result import Continuation, FitResult
from sklearn_msf._estimator.mirroring_check import warn_of_mirroring
from sklearn_msf._estimator.parameters import (
    START_ANEW,
    Parameters,
    draw_seed,
    is_over_latents,
    make_random_state,
)
from sklearn_msf._estimator.preparation import Preparation, Run
from sklearn_msf._estimator.run_fingerprint import (
    describe_samples,
    describe_split,
    precision_of_run,
    run_fingerprint,
)
from sklearn_msf._estimator.splitting import hold_out
from sklearn_msf.data.augmentation import flipped_axes, seen_variations
from sklearn_msf.exceptions import DivergenceError
from sklearn_msf.flow.label_codes import N_RGB_CODES, make_label_codes
from sklearn_msf.flow.velocity_field import FieldLayout, VelocityField, build_field
from sklearn_msf.model.classification import classify
from sklearn_msf.model.fitted_model import FittedModel
from sklearn_msf.model.image_space import FieldInputs, ImageSpace
from sklearn_msf.persistence.paths import as_path
from sklearn_msf.runtime.device import resolve_device
from sklearn_msf.runtime.process_group import ProcessGroup, join_process_group, telling_others
from sklearn_msf.runtime.progress import training_progress
from sklearn_msf.runtime.torch_state import standard_torch
from sklearn_msf.runtime.user_warnings import warn_user
from sklearn_msf.training.batches import TrainingData, smallest_batch
from sklearn_msf.training.checkpoints import Checkpoints
from sklearn_msf.training.epoch_logs import count_images_of_image_branch
from sklearn_msf.training.trainer import Trainer

__all__ = ["TrainingArguments", "fit", "fit_partially"]


@dataclass(frozen=True, eq=False)
class TrainingArguments:
    """Arguments of fit, as the user passed them.

    Attributes
    ----------
    X, y, sample_weight, groups, X_val, y_val, sample_weight_val : array-like
        As in :meth:`MedSymmFlowClassifier.fit`.
    """

    X: Any
    y: Any
    sample_weight: Any = None
    groups: Any = None
    X_val: Any = None
    y_val: Any = None
    sample_weight_val: Any = None

    @property
    def has_validation(self) -> bool:
        """Whether there is a validation set, or a part of one."""
        parts = (self.X_val, self.y_val, self.sample_weight_val)
        return any(part is not None for part in parts)


@dataclass(frozen=True)
class _FitState:
    """State that the steps of a running fit share.

    `validation` is the user's validation set. `split_seed` and `split_of` are as in
    :class:`~sklearn_msf._estimator.fit_result.Continuation`.
    """

    p: Parameters
    samples: TrainingSamples
    validation: TrainingSamples | None
    device: torch.device
    group: ProcessGroup
    preparation: Preparation
    previous: FitResult | None
    run: Run
    split_seed: int | None = None
    split_of: str = ""

    @property
    def augment(self) -> str | None:
        """Kind of random variation of the training images."""
        return resolve_augmentation(self.p, self.samples.image_format)


@standard_torch()
def fit(
    estimator: BaseEstimator,
    p: Parameters,
    given: TrainingArguments,
    previous: FitResult | None,
    preparation: type[Preparation],
) -> tuple[FitResult, DivergenceError | None]:
    """Train a field on images and labels.

    Parameters
    ----------
    estimator : BaseEstimator
        Used for scikit-learn's checks and callbacks.
    p : Parameters
        Checked parameters.
    given : TrainingArguments
        Training data, as the user passed them.
    previous : FitResult or None
        The fit to continue.
    preparation : type
        Class that turns the images into training data.

    Returns
    -------
    fit : FitResult
        The result.
    failure : DivergenceError or None
        A failure after which the model is usable.
    """
    started = time.perf_counter()
    known = None if previous is None else previous.model.classes
    with telling_others():
        if given.has_validation:
            _check_validation_is_used(p)
        _check_steps(p, previous)
    state = _begin(estimator, p, given, known, previous, preparation, started, resumes=True)
    p = state.p
    checkpoints, seed = _open_run(state)
    goes_on = state.group.of_first(checkpoints is not None and checkpoints.holds_a_state)
    has_checkpoints = checkpoints is not None
    state = replace(state, run=replace(state.run, goes_on=goes_on, has_checkpoints=has_checkpoints))
    random_state = np.random.RandomState(seed)
    state, unseen = _hold_out(state, random_state, seed)
    if unseen is not None:
        state = replace(state, run=replace(state.run, n_unseen=unseen.n_images))
    _check_batches(state.group, p, state.samples.n_images)
    calibrates = _calibrates(p, previous, has_validation=given.has_validation)
    if calibrates and unseen is not None:
        check_several_classes(unseen)
    plan = None
    if calibrates and unseen is None:
        # Plan before training, so that a class with too few samples or a bad folder fails early.
        plan = plan_calibration(state.samples, seed, checkpoints)
        _check_batches(state.group, p, state.samples.take(plan.kept).n_images)
    data, trainer, model = _prepare_training(state, random_state)
    n_images = data.epoch_size * trainer.settings.max_epochs
    kind = seen_variations(state.augment, model.flipped_axes)
    warn_of_mirroring(p, state.samples, kind, trainer, n_images, model.space.shape)

    held_out = None
    if unseen is not None:
        inputs_of_unseen = partial(model.space.inputs, unseen.rows, model.device, repeated=True)
        held_out = _held_out(p, model, unseen, inputs_of_unseen)
    final = held_out if calibrates else None
    was_over = _divide_time(state, trainer, plan, final)

    def attributes_of(model: FittedModel, n_epochs_unused: int = 0) -> dict[str, Any]:
        # A copy, because further training changes the averages.
        model = model.with_field(copy.deepcopy(trainer.average), model.temperature)
        now = _outcome(state, trainer, model, n_epochs_unused=n_epochs_unused)
        return {**now.attributes(), "history_": list(trainer.history)}

    callbacks = FitCallbacks(
        estimator, given.X, given.y, given.sample_weight, trainer, partial(attributes_of, model)
    )
    validate = held_out.accuracy if p.early_stopping and held_out is not None else None
    name = type(estimator).__name__
    verbose = int(p.verbose) if state.group.is_first else 0
    failure = _train(name, verbose, trainer, data, callbacks, checkpoints, validate)
    if failure is None and not (was_over or goes_on):
        _warn_of_one_step(trainer)
    temperature: float | None = model.temperature
    if failure is None and plan is not None:
        inputs_of = partial(state.preparation.inputs_of, model.space, data, state.samples)
        temperature = learn_temperature(
            name,
            verbose,
            trainer,
            data,
            plan,
            lambda i: _held_out(p, model, state.samples.take(i), partial(inputs_of, i)),
            model.space.mask_codes,
        )
    elif failure is None and calibrates and held_out is not None:
        temperature = temperature_of(held_out, trainer)
    temperature = state.group.of_first(temperature)
    model = model.with_field(trainer.average, 1.0 if temperature is None else temperature)
    n_unused = trainer.n_epochs_unused
    _end_callbacks(callbacks, state.group, partial(attributes_of, model, n_unused))
    keeps = bool(p.warm_start)
    return _outcome(state, trainer, model, keep_state=keeps, n_epochs_unused=n_unused), failure


@standard_torch()
def fit_partially(
    estimator: BaseEstimator,
    p: Parameters,
    X: Any,
    y: Any,
    classes: Any,
    sample_weight: Any,
    previous: FitResult | None,
    preparation: type[Preparation],
) -> FitResult:
    """Train for one epoch on a part of the data, at the full learning rate.

    Parameters are those of :func:`fit`, with `classes`: all classes of all parts.
    """
    started = time.perf_counter()
    with telling_others():
        known = _check_partial(p, classes, previous)
    given = TrainingArguments(X, y, sample_weight)
    # A part writes no checkpoints, and what lies beside those of a run belongs to the run.
    p = Parameters(**{**vars(p), "checkpoint_dir": None})
    state = _begin(estimator, p, given, known, previous, preparation, started)
    random_state = make_random_state(p.random_state)
    if state.group.size > 1 and p.random_state is None:
        # numpy's own generator, of which each process may have another seed.
        random_state = np.random.RandomState(state.group.of_first(draw_seed(random_state)))
    elif state.group.size > 1:
        # The user may go on to draw from it, and the same numbers in every process.
        random_state.set_state(state.group.of_first(random_state.get_state(legacy=False)))
    data, trainer, model = _prepare_training(state, random_state, is_part=True)
    if previous is None:
        n_images = data.epoch_size
        kind = seen_variations(state.augment, model.flipped_axes)
        warn_of_mirroring(p, state.samples, kind, trainer, n_images, model.space.shape)
    trainer.history = [] if previous is None else list(previous.history)
    trainer.fit_epoch(data)
    if trainer.was_cut_short:
        n_seen = trainer.history[-1]["n_images"]
        warn_user(
            f"time_budget={p.time_budget!r} was over after {n_seen:,} of {data.epoch_size:,} "
            "images, and the others were not trained on: set a larger time_budget for partial_fit, "
            "or None.",
            ConvergenceWarning,
        )
    model = model.with_field(trainer.average, model.temperature)
    return _outcome(state, trainer, model, keep_state=True, keeps_history=True)


def _begin(
    estimator: BaseEstimator,
    p: Parameters,
    given: TrainingArguments,
    classes: np.ndarray | None,
    previous: FitResult | None,
    preparation: type[Preparation],
    started: float,
    *,
    resumes: bool = False,
) -> _FitState:
    """Check X, y, weights and all else that can be checked before slow steps; begin the fit.

    With `resumes` the fit may go on from checkpoints, and then keeps their precision.
    """
    with telling_others():
        samples, validation = _checked_samples(estimator, p, given, classes, previous)
        wanted_device = resolve_device(p.device)
    checked = time.perf_counter() - started
    group, device = join_process_group(wanted_device)
    # Waiting for other processes is no time of the budget, and all have the same clock.
    started = time.perf_counter() - max(group.gather(checked))
    _check_same_in_all(group, p, samples, validation, previous)
    # Early stopping may hold out some, of which more is known later.
    holds_out = p.early_stopping and validation is None
    n_images = min(samples.n_images, int(p.batch_size)) if holds_out else samples.n_images
    _check_batches(group, p, n_images)
    if resumes:
        # Not before the check: only the first process may have the checkpoints.
        precision = group.of_first(precision_of_run(p))
        p = Parameters(**{**vars(p), "precision": precision})
    space = None if previous is None else previous.model.space
    origin = None if previous is None else previous.continuation.origin
    prepared = preparation(p, device, space, origin)
    if previous is not None:
        # After the preparation, which names a changed autoencoder. Here only those defaults of the
        # network would be named that depend on it.
        before = previous.model.field.layout
        layout = field_layout(p, len(samples.classes), previous.model.space.shape, before)
        _check_layout(before, layout)
    run = Run(started, group.is_first)
    return _FitState(p, samples, validation, device, group, prepared, previous, run)


def _check_partial(p: Parameters, classes: Any, previous: FitResult | None) -> np.ndarray:
    """Check what partial_fit does not support, and return all classes of all parts."""
    if p.early_stopping:
        raise ValueError(
            "early_stopping=True is not supported by partial_fit, which holds out nothing: set "
            "early_stopping=False, and stop by a score on images of your own."
        )
    if p.calibration is not None:
        raise ValueError(
            f"calibration={p.calibration!r} is not supported by partial_fit, which holds "
            "out nothing: set calibration=None, and calibrate afterwards by scikit-learn's "
            "CalibratedClassifierCV(FrozenEstimator(clf), method='sigmoid'), or "
            "method='temperature' (scikit-learn 1.8, with an array of labels that are text or 0 to "
            "K - 1)."
        )
    return check_partial_classes(
        classes, p.class_weight, None if previous is None else previous.model.classes
    )


def _checked_samples(
    estimator: BaseEstimator,
    p: Parameters,
    given: TrainingArguments,
    classes: np.ndarray | None,
    previous: FitResult | None,
) -> tuple[TrainingSamples, TrainingSamples | None]:
    """Check training and validation data, and that a network can be made for them."""
    samples = check_training_samples(
        estimator,
        given.X,
        given.y,
        given.sample_weight,
        image_shape=p.image_shape,
        n_spatial_dims=p.n_spatial_dims,
        class_weight=p.class_weight,
        classes=classes,
        image_format=None if previous is None else previous.model.image_format,
        groups=given.groups,
    )
    validation = None
    if given.has_validation:
        validation = check_validation_samples(
            estimator,
            given.X_val,
            given.y_val,
            given.sample_weight_val,
            training=samples,
            class_weight=p.class_weight,
        )
    if previous is None:
        _check_codes(p, len(samples.classes))
    return samples, validation


def _check_same_in_all(
    group: ProcessGroup,
    p: Parameters,
    samples: TrainingSamples,
    validation: TrainingSamples | None,
    previous: FitResult | None,
) -> None:
    """Refuse to train together with processes that have other data, parameters or models."""
    if group.size == 1:
        return
    described = describe_samples(samples, "X", "y", "sample_weight", "groups")
    if validation is not None:
        described |= describe_samples(validation, "X_val", "y_val", "sample_weight_val")
    described["the model to go on with"] = _describe_model(previous)
    named = {name: _described(value) for name, value in vars(p).items() if name not in _MAY_DIFFER}
    group.check_same({**described, **named})


def _described(value: Any) -> str:
    """Describe a parameter; the order of weights of classes means nothing."""
    return repr(sorted(map(repr, value.items())) if isinstance(value, Mapping) else value)


def _describe_model(previous: FitResult | None) -> str:
    """Say how a model was trained, but for numbers that other processors round otherwise."""
    if previous is None:
        return "none"
    model, before = previous.model, previous.continuation
    state = before.training_state
    n_steps = "not kept" if state is None else f"{state.metadata['n_steps']} steps"
    image_format = model.image_format
    return (
        f"seed of noise {model.noise_seed}, trained in {before.n_continued + 1} calls and "
        f"{len(previous.history)} epochs, state of the optimizer: {n_steps}, images of "
        f"{image_format.dtype} from {image_format.low:.6g} to {image_format.high:.6g}"
    )


def _check_batches(group: ProcessGroup, p: Parameters, n_images: int) -> None:
    """Refuse batches of so few images that a process would get none, before any slow step."""
    batch_size = int(p.batch_size)
    smallest = smallest_batch(n_images, batch_size, even=bool(p.even_batches))
    group.check_batch(smallest, batch_size)


# Parameters that may differ from process to process.
_MAY_DIFFER = ("device", "random_state", "verbose", "checkpoint_dir", "autoencoder")


def _open_run(state: _FitState) -> tuple[Checkpoints | None, int]:
    """Open the checkpoints if there is a folder for them, and return the seed of the run."""
    p, previous = state.p, state.previous
    random_state = make_random_state(p.random_state)
    if p.checkpoint_dir is None:
        return None, state.group.of_first(draw_seed(random_state))
    # In every process: to read large data takes longer than the others would wait for the first.
    fingerprint = run_fingerprint(
        p,
        state.samples,
        state.device,
        state.preparation.fingerprint(),
        random_state,
        None if previous is None else previous.model.field,
        state.validation,
    )
    # Every process draws: the user may go on to draw from the same random_state.
    seed = draw_seed(random_state)
    if not state.group.is_first:
        return None, state.group.of_first(seed)
    checkpoints = Checkpoints(
        # Callbacks may change the working directory.
        as_path("checkpoint_dir", p.checkpoint_dir).absolute(),
        int(p.checkpoint_every),
        fingerprint,
        seed,
        any_seed=fingerprint["random_state"] is None,
    )
    # A resumed run keeps the seed it started with, whatever random_state is.
    return checkpoints, state.group.of_first(checkpoints.seed)


def _hold_out(
    state: _FitState, random_state: np.random.RandomState, seed: int
) -> tuple[_FitState, TrainingSamples | None]:
    """Split off the validation part of early stopping, or take the user's validation set.

    A continued fit splits as the one before did, whatever random_state is, because it must not
    validate on images that were trained on.
    """
    if state.validation is not None:
        return state, state.validation
    if not state.p.early_stopping:
        return state, None
    fraction = float(state.p.validation_fraction)
    split_seed, split_of = None, describe_split(state.samples, fraction)
    if state.previous is not None:
        before = state.previous.continuation
        split_seed = before.split_seed
        if split_seed is None or split_of != before.split_of:
            # All that goes on from here has seen images that may be held out.
            split_of = ""
            warn_user(
                "early_stopping=True holds out images that the model may have been trained on, as "
                "the fit that warm_start continues held out none, or others (of other images, "
                "groups or another validation_fraction), or it is not known which: validation "
                "scores may be too good. Pass X_val and y_val, or fit anew with warm_start=False.",
            )
    split_seed = seed if split_seed is None else split_seed
    by_seed = random_state if split_seed == seed else np.random.RandomState(split_seed)
    samples, held_out = hold_out(state.samples, fraction, by_seed)
    return replace(state, samples=samples, split_seed=split_seed, split_of=split_of), held_out


def _divide_time(
    state: _FitState,
    trainer: Trainer,
    plan: CalibrationPlan | None,
    final: HeldOut | None,
) -> bool:
    """Reserve part of the time budget for calibration: a second run, or one more prediction.

    A resumed run does not count the time of preparing again. Returns True, with a warning, if no
    time was left.
    """
    budget = state.p.time_budget
    if budget is None:
        return False
    if plan is not None:
        trainer.budget.divide(MODEL_FRACTION)
    if final is not None:
        trainer.reserve_time_of(final.probabilities)
    trainer.budget.begin()
    was_over = trainer.budget.is_over() and not state.run.goes_on
    if was_over:
        spent = f"{trainer.budget.elapsed:.1f} seconds"
        if final is not None:
            spent += " and what predictions at the end will take"
        warn_user(
            f"time_budget={budget!r} was over before training began, after {spent}: the model "
            "learns next to nothing. Set a larger time_budget.",
            ConvergenceWarning,
        )
    return was_over


def _warn_of_one_step(trainer: Trainer) -> None:
    """Warn where the time was over after one step, at whose rate hardly anything is learned.

    A step, or a validation, can take longer than what was left.
    """
    if trainer.was_cut_short and trainer.n_steps <= 1:
        warn_user(
            f"time_budget={trainer.settings.time_budget!r} was over after one step: the model "
            "learns next to nothing. Set a larger time_budget, or a smaller batch_size.",
            ConvergenceWarning,
        )


def _check_steps(p: Parameters, previous: FitResult | None) -> None:
    """Refuse steps by which held-out images cannot be classified, before any slow step."""
    trains_images = p.image_weight > 0 and initial_fraction(p) < 1
    generates = trains_images or (previous is not None and previous.model.generates)
    if p.early_stopping or p.calibration is not None:
        check_steps(classification_ode(p), p.label_prediction, generates=generates)


def _check_codes(p: Parameters, n_classes: int) -> None:
    """Refuse numbers of classes that the label codes do not allow, before any slow step."""
    encodes_masks = is_over_latents(vars(p)) and p.label_prediction == "velocity"
    if encodes_masks and n_classes > N_RGB_CODES:
        raise ValueError(
            f"label_encoding='rgb' has {N_RGB_CODES} codes, got {n_classes} classes, and over "
            "latents label_prediction='velocity' takes no other encoding: use "
            "label_prediction='posterior' and label_encoding='simplex' in flow_params."
        )
    make_label_codes(p.label_encoding, n_classes, float(p.beta))
    field_layout(p, n_classes, (1, 1, 1))


def _check_validation_is_used(p: Parameters) -> None:
    """Refuse a validation set with parameters that do not need one."""
    if not p.early_stopping and p.calibration is None:
        raise ValueError(
            "X_val and y_val would not be used, as early_stopping=False and calibration=None: set "
            "one of the two, or leave them out."
        )


def _calibrates(p: Parameters, previous: FitResult | None, *, has_validation: bool) -> bool:
    """Decide whether this fit learns a temperature; warn if a continued fit cannot."""
    if has_validation:
        return p.calibration is not None
    if previous is not None and p.calibration is not None and previous.model.temperature == 1:
        # The model may have been trained on the samples that would be held out now.
        warn_user(
            f"calibration={p.calibration!r} is left out: warm_start goes on with a model "
            "without a temperature. Fit anew with warm_start=False for one.",
        )
    return p.calibration is not None and previous is None


def _space(state: _FitState, random_state: np.random.RandomState) -> ImageSpace:
    """Learn the space between images and field, or keep that of the fit to continue."""
    if state.previous is not None:
        before = state.previous.model.space
        # Encoders are large: they are sent only if processes have others.
        if state.group.size > 1 and len(set(state.group.gather(before.digest()))) > 1:
            before = state.group.of_first(before)
        # The earlier fit may have had another device, where its model stays if this one fails.
        return before.on(state.device)
    space = state.group.of_first(
        state.preparation.learn_space(state.samples, random_state, state.run)
    )
    # That of the first process has come to all of them.
    space.move_to(state.device)
    return space


def _prepare_training(
    state: _FitState, random_state: np.random.RandomState, *, is_part: bool = False
) -> tuple[TrainingData, Trainer, FittedModel]:
    """Make the training data, and a trainer of a new field or of a copy of the previous one.

    A part of the data is trained on for one epoch, else it is for `max_epochs`. The model that is
    returned too is complete, except that its field is not trained yet.
    """
    space = _space(state, random_state)
    p, device, previous = state.p, state.device, state.previous
    part = None
    if is_part:
        part = 0 if previous is None else previous.continuation.n_continued + 1
    data = state.preparation.training_data(space, state.samples, state.augment, state.run, part)
    seed = draw_seed(random_state)
    if previous is None:
        layout = field_layout(p, len(state.samples.classes), space.shape)
        if not is_over_latents(vars(p)):
            warn_of_one_position(layout, space.shape[1:])
        noise_seed, temperature, trained_by = draw_seed(random_state), 1.0, None
        field = build_field(layout, seed, space.mask_codes)
    else:
        noise_seed, trained_by = previous.model.noise_seed, previous.continuation.optimizer
        temperature = 1.0 if p.calibration is None else previous.model.temperature
        field = copy.deepcopy(previous.model.field).requires_grad_(True).train()
        if state.group.size > 1 and previous.continuation.training_state is None:
            # Else the weights come below, with the state that has them.
            field.load_state_dict(state.group.tensors_of_first(field.state_dict()))
        # An integer random_state gives the same seed in each call, but the noise must differ.
        n_continued = previous.continuation.n_continued + 1
        seed = int(np.random.SeedSequence([seed, n_continued]).generate_state(1)[0])
    n_epochs = 1 if is_part else None
    settings = training_settings(p, data.epoch_size, device, trained_by, n_epochs)
    settings = state.group.of_first(settings)
    before = None if previous is None else previous.model
    # How many flips are encoded may depend on measured times.
    flips = state.group.of_first(_seen_flips(state, data))
    model = FittedModel(
        field=field,
        classes=state.samples.classes,
        space=space,
        image_format=state.samples.image_format,
        noise_seed=noise_seed,
        temperature=temperature,
        flipped_axes=flips,
        # The axes always come in the same order, and the last one first.
        ever_flipped_axes=max(flips, () if before is None else before.ever_flipped_axes, key=len),
        generates=settings.trains_images or (before is not None and before.generates),
        generates_unconditionally=settings.trains_unconditionally
        or (before is not None and before.generates_unconditionally),
    )
    generator = torch.Generator(device).manual_seed(seed)
    trainer = Trainer(field.move_to(device), settings, generator, state.run.started, state.group)
    if previous is not None:
        before_this = previous.continuation
        kept = before_this.training_state
        if kept is not None:
            tensors = state.group.tensors_of_first(kept.tensors)
            trainer.load_weights(kept._replace(tensors=tensors))
            trainer.begin_after(before_this.n_steps_before)
        else:
            trainer.begin_after(before_this.n_continued + 1)
    return data, trainer, model


def _seen_flips(state: _FitState, data: TrainingData) -> tuple[int, ...]:
    """Find the axes along which the images that training sees are flipped."""
    axes = flipped_axes(state.augment, len(state.samples.image_format.size))
    return axes[: data.n_flipped_axes]


def _check_layout(fitted: FieldLayout, wanted: FieldLayout) -> None:
    """Refuse to continue with a network whose layout differs from the parameters."""
    before, now = vars(fitted), vars(wanted)
    changed = [name for name in before if before[name] != now[name]]
    if changed:
        raise ValueError(
            f"Training cannot go on with another {', '.join(changed)} than the model was fitted "
            f"with; set them back, or {START_ANEW}."
        )


def _train(
    name: str,
    verbose: int,
    trainer: Trainer,
    data: TrainingData,
    callbacks: FitCallbacks,
    checkpoints: Checkpoints | None,
    validate: Callable[[VelocityField], float] | None,
) -> DivergenceError | None:
    """Train to the end of the schedule; return a failure after which the model is usable."""
    failure = None
    with training_progress(name, verbose=verbose) as report:
        try:
            trainer.fit(
                data,
                validate=validate,
                report=report,
                callback=callbacks if callbacks.are_there else None,
                checkpoints=checkpoints,
            )
        except DivergenceError as error:
            if not trainer.history:
                raise
            # The frames of the traceback hold the trainer, its data, and this error.
            failure = error.with_traceback(None)
            failure.__context__ = None
    return failure


def _end_callbacks(
    callbacks: FitCallbacks, group: ProcessGroup, attributes: Callable[[], dict[str, Any]]
) -> None:
    """Tell the callbacks that the fit has ended; an interrupt of them loses no model."""
    try:
        callbacks.end(attributes)
    except KeyboardInterrupt:
        if group.size > 1:
            raise
        warn_user("Training has ended, but its callbacks were interrupted at the end of it.")


def _outcome(
    state: _FitState,
    trainer: Trainer,
    model: FittedModel,
    *,
    keep_state: bool = False,
    keeps_history: bool = False,
    n_epochs_unused: int = 0,
) -> FitResult:
    """Collect the result.

    `keep_state` keeps the state that an exact continuation needs. With `keeps_history` the history
    of the trainer begins with that of the previous fit. `n_epochs_unused` is the number of the last
    epochs whose weights are not those of `model`.
    """
    previous, n_images_before = state.previous, 0.0
    n_kept = len(trainer.history) - n_epochs_unused
    n_images_unused = count_images_of_image_branch(trainer.history[n_kept:])
    if previous is not None and keeps_history:
        n_images_before = previous.continuation.n_images_before
        n_images_unused += previous.continuation.n_images_unused
    elif previous is not None:
        n_images_before = previous.n_images_of_image_branch
    lacks_epochs = previous is not None and (
        not keeps_history or previous.continuation.lacks_epochs
    )
    continuation = Continuation(
        optimizer=trainer.settings.optimizer,
        n_continued=0 if previous is None else previous.continuation.n_continued + 1,
        training_state=trainer.state() if keep_state and trainer.is_at_its_best else None,
        origin=state.preparation.origin,
        n_images_before=n_images_before,
        split_seed=state.split_seed,
        split_of=state.split_of,
        lacks_epochs=lacks_epochs,
        n_images_unused=n_images_unused,
        n_steps_before=trainer.n_steps_before,
    )
    return FitResult(model, trainer.history, continuation, state.samples.features)


def _held_out(
    p: Parameters,
    model: FittedModel,
    samples: TrainingSamples,
    inputs_of: Callable[[str, list[tuple[int, ...]]], FieldInputs],
) -> HeldOut:
    """Prepare samples to be classified by fields; `inputs_of` does so for a precision and flips."""
    settings = classification_settings(p, model.device)
    inputs = inputs_of(settings.precision, model.flips(settings.n_draws))

    def probabilities(field: VelocityField) -> np.ndarray:
        return classify(model.with_field(field), inputs, settings).probabilities

    return HeldOut(samples, probabilities)
