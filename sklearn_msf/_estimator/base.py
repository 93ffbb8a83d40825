"""Base class of both estimators: all public methods, which call functions of a fitted model."""

import functools
import inspect
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from sklearn_msf._estimator.auto_settings import check_steps, classification_settings
from sklearn_msf._estimator.callbacks import (
    CallbackSupportMixin,
    all_or_nothing,
    is_in_a_fit,
    with_callbacks,
    without_fit_context,
)
from sklearn_msf._estimator.data_validation import OF_FEATURES, check_prediction_rows
from sklearn_msf._estimator.fit import TrainingArguments, fit, fit_partially
from sklearn_msf._estimator.fit_result import Continuation, FitResult
from sklearn_msf._estimator.hub import check_upload, find_model, upload_model
from sklearn_msf._estimator.onnx_export import check_kind_of_export, export_model
from sklearn_msf._estimator.parameters import (
    GROUPS,
    PARAMETERS,
    Parameters,
    check_positive_integer,
    checked_entries,
    draw_seed,
    make_random_state,
    resolve_parameters,
)
from sklearn_msf._estimator.pickling import fitted_state, restore_fitted_state
from sklearn_msf._estimator.preparation import Preparation
from sklearn_msf._estimator.rejection import (
    RejectionRule,
    check_reject_label,
    check_rule,
    mark_rejected,
    prediction_parameters,
    rejects,
    warn_of_precision,
)
from sklearn_msf._estimator.rejection_learning import check_calibration, learn_rule
from sklearn_msf._estimator.risk_target import checked_target
from sklearn_msf._estimator.sampling_requests import (
    class_indices,
    sampling_ode,
    warn_of_few_images,
)
from sklearn_msf._estimator.serialization import (
    SavedClass,
    SpaceReader,
    open_model,
    save_model,
)
from sklearn_msf._evaluation.labels import as_labels
from sklearn_msf._evaluation.validation import check_fraction
from sklearn_msf.data.on_demand import RowsOnDemand
from sklearn_msf.flow.ode_solver import OdeSettings
from sklearn_msf.model.classification import (
    ClassificationSettings,
    Prediction,
    classify,
    images_a_pass,
    inputs_of,
    predict,
)
from sklearn_msf.model.denoising_error import typicality
from sklearn_msf.model.fitted_model import FittedModel
from sklearn_msf.model.image_space import FieldInputs
from sklearn_msf.model.sampling import change_class, sample, sample_trajectory
from sklearn_msf.model.uncertainty import UNCERTAINTIES
from sklearn_msf.runtime.process_group import telling_others
from sklearn_msf.runtime.progress import sampling_progress
from sklearn_msf.runtime.torch_state import standard_torch

__all__ = ["BaseMedSymmFlowClassifier"]

_TINY = np.finfo(np.float64).tiny
# Attributes that do not outlast another fit.
_OF_A_FIT = {"rejection_", "hub_source_", *OF_FEATURES}

Estimator = TypeVar("Estimator", bound="BaseMedSymmFlowClassifier")


@functools.cache
def _names_of_arguments(estimator_class: type) -> tuple[str, ...]:
    """Names of the arguments of a constructor; looking them up takes longer than all checks."""
    return tuple(inspect.signature(estimator_class).parameters)


class BaseMedSymmFlowClassifier(CallbackSupportMixin, ClassifierMixin, BaseEstimator):
    """Base of the MedSymmFlow classifiers.

    Subclasses define the constructor, the defaults of its dict parameters, and how the space that
    converts between images and inputs of the field is made.
    """

    # Class that turns images into training data, and default entries of each dict parameter.
    _preparation: ClassVar[type[Preparation]]
    _group_defaults: ClassVar[Mapping[str, Mapping[str, Any]]]

    # Fitted attributes; documented on the subclasses.
    _continuation: Continuation
    model_: FittedModel
    n_features_in_: int
    image_shape_: tuple[int, ...]
    n_iter_: int
    history_: list[dict[str, Any]]
    rejection_: RejectionRule
    hub_source_: dict[str, str]

    # Methods that subclasses override

    def _saved_parameters(self, done: FitResult) -> dict[str, Any]:
        """Collect the constructor parameters of a fit, with values that a file can hold."""
        return {name: getattr(self, name) for name in self._constructor_names()}

    # Parameters and state

    def set_params(self: Estimator, **params: Any) -> Estimator:
        """Set parameters of the constructor.

        Parameters
        ----------
        **params : dict
            Parameters by name; `network_params`, `flow_params` and `optimizer_params` as a whole.

        Returns
        -------
        self : object
            The estimator.

        Raises
        ------
        ValueError
            For an unknown parameter, and for an entry of a dict parameter that is given by itself.
        """
        for name, value in params.items():
            group, _, entry = name.partition("__")
            if not entry and name in PARAMETERS and name not in self.get_params(deep=False):
                group, entry = PARAMETERS[name].group or "", name
            if group in GROUPS and entry:
                checked_entries(group, {entry: value}, self._group_defaults[group])
                raise ValueError(
                    f"{name}={value!r}: {entry!r} is an entry of the dict {group}, which is set as "
                    f"a whole: {group}={{{entry!r}: {value!r}}}, with all other entries that are "
                    "to differ from their defaults."
                )
        return super().set_params(**params)

    def _store_parameters(self, values: Mapping[str, Any]) -> None:
        """Store the arguments of the constructor unchanged."""
        for name in self._constructor_names():
            setattr(self, name, values[name])

    @classmethod
    def _constructor_names(cls) -> tuple[str, ...]:
        """Names of the parameters of our class, of which a user's class may be a subclass."""
        ours = next(parent for parent in cls.__mro__ if "_preparation" in vars(parent))
        return _names_of_arguments(ours)

    def _parameters(self) -> Parameters:
        """Check the constructor parameters."""
        given = {name: getattr(self, name) for name in self._constructor_names()}
        return resolve_parameters(given, self._group_defaults)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.non_deterministic = False
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """Return the state with fitted attributes as plain data and arrays."""
        return fitted_state(without_fit_context(super().__getstate__()))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the fitted attributes, with the network on a device of this machine."""
        super().__setstate__(restore_fitted_state(state, state.get("device")))

    def __copy__(self: Estimator) -> Estimator:
        """Copy the attributes alone; during a fit without those that belong to an earlier one.

        Scikit-learn copies an estimator for callbacks in every epoch.
        """
        stale = _OF_A_FIT if is_in_a_fit(self) else ()
        copied = object.__new__(type(self))
        kept = without_fit_context(vars(self)).items()
        copied.__dict__.update({name: value for name, value in kept if name not in stale})
        return copied

    @property
    def classes_(self) -> np.ndarray:
        """Class labels, in order."""
        return self.model_.classes

    @property
    def loss_curve_(self) -> list[float]:
        """Training loss of each epoch."""
        return [epoch_log["loss"] for epoch_log in self.history_]

    # Fitting

    @with_callbacks
    def fit(
        self: Estimator,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        groups: Any = None,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
    ) -> Estimator:
        """Train the velocity field.

        Ctrl-C ends training early, with a warning; the model is usable. Before the first step
        there is none, and KeyboardInterrupt is raised, as it always is with several processes.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, n_features)
            Training images, or a list of images of one shape and dtype; with ``n_spatial_dims=3``
            volumes, here and in all methods, of shape (n, D, H, W) or (n, D, H, W, C). Channels
            come last; more than 4 need `image_shape`. uint8 has the range [0, 255]. Other numbers
            have the range [0, 1] if all are inside it; otherwise the range is from the minimum to
            the maximum of X. A few values very far outside (hot pixels), or a fill value, are left
            out of the range and clipped to it, with a warning. The rows of a 2-d X are images of
            `image_shape`; without it they are images of height 1.
        y : array-like of shape (n,) or (n, 1)
            Class labels: numbers, booleans, text or numpy's dates.
        sample_weight : array-like of shape (n,), optional
            Weights relative to each other. Whole weights are divided by their greatest common
            divisor, and a weight of k then counts as k copies of the image; other weights are
            shares of an epoch in which each image is seen once on average. Whole weights are shares
            too, with a warning, if the copies would be more than 10 for each image on average.
            An image of weight 0 is left out; its class stays in `classes_`.
        groups : array-like of shape (n,), optional
            What the image shows a part of, such as the id of the patient. With several images of
            a patient pass it whenever fit holds images out, with `early_stopping` or `calibration`:
            images of one group are then never on both sides, where the model would be tested on
            patients that it knows, look better than it is and stop too late. The fraction that is
            held out is then met approximately.
        X_val : array-like of shape (n_val, H, W), (n_val, H, W, C) or (n_val, n_features), optional
            Validation images, of other patients than X, in the shape and range of X. They replace
            the part of X that `early_stopping` and `calibration` hold out: training uses all of X,
            and the temperature needs no second model. In a pipeline with
            ``transform_input=["X_val"]`` they are transformed as X is.
        y_val : array-like of shape (n_val,) or (n_val, 1), optional
            Labels of the validation images; all must occur in y. Where scikit-learn fits on the
            numbers of the classes (`cross_val_predict` of probabilities, `VotingClassifier` and
            other ensembles), pass such numbers here too.
        sample_weight_val : array-like of shape (n_val,), optional
            Weights of the validation images.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            For parameters, images, labels, weights or groups that cannot be used, for a
            validation set that does not fit X or is not used, and for a `checkpoint_dir` of another
            run, or one that cannot be read or written to. The message names the value and what is
            expected.
        DivergenceError
            A ValueError: loss or weights were not finite, and repeating the epoch at lower learning
            rates did not help. If earlier epochs were complete, the estimator is fitted with their
            result.
        MemoryError
            If memory runs out; the message names what to lower.
        OSError
            If latents that are kept in a file cannot be written. (A checkpoint that cannot be
            written later is a warning.)
        ProcessGroupError
            A RuntimeError: the processes of a group differ in data or parameters, or one has ended.
        AutoencoderError, BackboneError, ImportError
            Over latents, for an encoder that cannot be opened or used, also where the hub cannot be
            reached, and if the package that it needs cannot be imported.
        """
        with all_or_nothing(self):
            p = self._parameters_of_fit()
            previous = self._fit_so_far() if p.warm_start else None
            given = TrainingArguments(X, y, sample_weight, groups, X_val, y_val, sample_weight_val)
            done, failure = fit(self, p, given, previous, self._preparation)
            self._take(done)
        if failure is not None:
            try:
                raise failure
            finally:
                # The traceback holds this frame, which must not hold the error in its turn.
                del failure
        return self

    def partial_fit(
        self: Estimator, X: Any, y: Any, classes: Any = None, sample_weight: Any = None
    ) -> Estimator:
        """Train for one epoch on a part of the data, at the full learning rate.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, n_features)
            Images. The first call determines shape and range.
        y : array-like of shape (n,) or (n, 1)
            Class labels, all in `classes`.
        classes : array-like of shape (K,)
            All classes that any call will see; required at the first call.
        sample_weight : array-like of shape (n,), optional
            Weights as in :meth:`fit`.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            If the first call has no `classes`, or a later one has other classes or images of
            another shape or scale; with ``class_weight="balanced"`` or ``early_stopping=True``;
            and if `calibration` is not None.
        DivergenceError
            A ValueError: loss or weights were not finite, and repeating the part at lower learning
            rates did not help. The estimator is as it was before the call.
        MemoryError, ProcessGroupError, AutoencoderError, BackboneError, ImportError
            As in :meth:`fit`.

        Warns
        -----
        ConvergenceWarning
            If `time_budget`, which is for each call, ended before all images of the part were seen.
        """
        with all_or_nothing(self):
            p, previous = self._parameters_of_fit(), self._fit_so_far()
            make = self._preparation
            self._take(fit_partially(self, p, X, y, classes, sample_weight, previous, make))
        return self

    def _parameters_of_fit(self) -> Parameters:
        with telling_others():
            return self._parameters()

    def _fit_so_far(self) -> FitResult | None:
        """Collect the result of an earlier fit, if there is one."""
        return FitResult.from_attributes(vars(self))

    def _take(self, done: FitResult) -> None:
        """Store the result of a fit, and delete the rejection rule, which is of an older model."""
        kept = {name: value for name, value in vars(self).items() if name not in _OF_A_FIT}
        # At once: another thread may be predicting.
        self.__dict__ = {**kept, **done.attributes()}

    # Predicting

    def predict(self, X: Any) -> np.ndarray:
        """Predict the most probable class of each image.

        With ``label_prediction="velocity"`` this is the class whose label code is nearest to the
        predicted mask (paper, eq. 2). RGB codes of three classes and, with
        ``label_decoding="latent"``, encoded masks of which none is nearly a mixture of the others
        are exceptions: their codes are not equally far apart, the mask is read as a mixture of
        codes, and the class with the largest weight is predicted.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, n_features)
            Images as in :meth:`fit`, on the same scale. What is clearly on another scale is
            refused, as are floats in [0, 1] after 12-bit integers; what may be is warned of. Of a
            single image pass ``X[None]``.

        Returns
        -------
        ndarray of shape (n,)
            Labels from `classes_`.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            For images of another shape than in fit, clearly on another scale, or with NaN or
            infinity, and for several steps without a trained image branch. The message says what
            to change.

        Warns
        -----
        UserWarning
            For images that may be on another scale, and for `n_steps` or an `ode_solver` that
            classify worse than one step.
        """
        model, inputs, settings = self._prepared(X)
        return _labels(model, predict(model, inputs, settings, "margin"))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Predict class probabilities.

        With ``label_prediction="posterior"`` they are the class posterior of the network. With
        several `n_steps` they are the one at the start of the last step, which is too near 0 or 1
        and worse: it takes the mask that the first step has made for the class. With "velocity"
        they are computed from the predicted mask. The prediction for an image does not depend on
        the other images of X.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, n_features)
            Images as in :meth:`fit`.

        Returns
        -------
        ndarray of shape (n, K), float64
            Columns in the order of `classes_`; rows sum to 1.

        Raises
        ------
        NotFittedError, ValueError
            As :meth:`predict`.
        """
        return self._predict(X).probabilities

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Predict the logarithms of the class probabilities.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, n_features)
            Images as in :meth:`fit`.

        Returns
        -------
        ndarray of shape (n, K), float64
            All finite: smaller probabilities count as the smallest normal float64.

        Raises
        ------
        NotFittedError, ValueError
            As :meth:`predict`.
        """
        return np.log(np.maximum(self.predict_proba(X), _TINY))

    def decision_function(self, X: Any) -> np.ndarray:
        """Compute scores: log-odds of the second of two classes, else log-probabilities.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, n_features)
            Images as in :meth:`fit`.

        Returns
        -------
        ndarray of shape (n,) for two classes, (n, K) for more

        Raises
        ------
        NotFittedError, ValueError
            As :meth:`predict`.
        """
        scores = self.predict_log_proba(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict_uncertainty(self, X: Any, kind: str = "margin") -> np.ndarray:
        """Compute the uncertainty of each prediction.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, n_features)
            Images as in :meth:`fit`.
        kind : {"margin", "entropy", "distance", "draws", "image"}, default="margin"
            - "margin": 1 - (largest - second largest probability); in [0, 1].
            - "entropy": entropy of the probabilities, in nats; in [0, log K].
            - "distance": distance between the predicted mask and the code of the predicted class
              (paper, eq. 2 and section 4.4); 0 or more, in units of the codes.
            - "draws": disagreement between the noise draws, measured as the mutual information of
              class and draw in nats, before any temperature; in [0, log(min(K, n_draws))]. Needs
              ``n_draws >= 2``. If training flipped images, it mostly measures the difference
              between an image and its flips; if not, draws of the class posterior by one step are
              equal, and it is 0.
            - "image": "margin" plus evidence of the image branch: 3 times the logarithm of a
              ratio, its squared error under the code of the predicted class divided by the
              smallest one under another code. Unbounded. Takes 4 K passes of the whole network
              for each image.

            On validation data the default ranks errors best for its computing time; "Knowing when
            not to answer" in the documentation has the comparison.

        Returns
        -------
        ndarray of shape (n,), float64
            Higher is less certain.

        Raises
        ------
        ValueError
            For another kind, for "draws" with ``n_draws=1``, and for "image" if ``image_weight=0``
            or ``classification_fraction=1`` left the image branch untrained.
        NotFittedError, ValueError
            As :meth:`predict`.
        """
        return UNCERTAINTIES[self._checked_kind(kind)](self._predict(X, kind))

    def score_samples(self, X: Any) -> np.ndarray:
        """Compute how typical images are, compared with the training images.

        The score is minus the mean logarithm of the squared error of the image branch's velocity on
        the path through each image, under the code of its predicted class, at t = 0.1, 0.2 and 0.5
        with noise that is always the same. Images that are unlike the training images have large
        errors.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, n_features)
            Images as in :meth:`fit`.

        Returns
        -------
        ndarray of shape (n,), float64
            Higher is more typical. Compare with the scores of images that are known to be typical,
            preferably of images that training did not see.

        Raises
        ------
        ValueError
            If ``image_weight=0`` or ``classification_fraction=1`` left the image branch untrained.
        NotFittedError, ValueError
            As :meth:`predict`.
        """
        self._generating_model("score_samples")
        model, inputs, settings = self._prepared(X)
        labels = classify(model, inputs, settings).class_indices
        return typicality(model, inputs, labels, settings.precision, images_a_pass(model))

    @standard_torch()
    def _checked(self, X: Any) -> tuple[FittedModel, RowsOnDemand, ClassificationSettings]:
        """Check the parameters, and X against the images of fit."""
        check_is_fitted(self)
        model = self.model_
        settings = classification_settings(self._parameters(), model.device)
        label_prediction = model.field.layout.label_prediction
        check_steps(settings.ode, label_prediction, generates=model.generates)
        return model, check_prediction_rows(self, X, model.image_format), settings

    def _prepared(self, X: Any) -> tuple[FittedModel, FieldInputs, ClassificationSettings]:
        """Check the parameters and X, and prepare X for the field."""
        model, rows, settings = self._checked(X)
        return model, inputs_of(model, rows, settings), settings

    def _predict(self, X: Any, kind: str = "margin") -> Prediction:
        """Check X and classify it, and add what a kind of uncertainty needs."""
        return predict(*self._prepared(X), kind)

    def _checked_kind(self, kind: Any) -> str:
        """Return `kind`, or refuse one that is unknown or that this model cannot compute."""
        if not isinstance(kind, str) or kind not in UNCERTAINTIES:
            raise ValueError(f"kind must be one of {sorted(UNCERTAINTIES)}, got {kind!r}.")
        if kind == "draws" and self._parameters().n_draws == 1:
            raise ValueError("kind='draws' compares noise draws: it needs n_draws >= 2, got 1.")
        if kind == "image":
            self._generating_model("kind='image'")
        return kind

    def _generating_model(self, wanted: str) -> FittedModel:
        """Return the model, or refuse if its image branch was not trained."""
        check_is_fitted(self)
        if not self.model_.generates:
            raise ValueError(
                f"{wanted} needs the image branch, which was not trained because image_weight=0 "
                "(in flow_params) or classification_fraction=1: fit with other values."
            )
        return self.model_

    def _sampling_model(self, wanted: str) -> FittedModel:
        """Return the model, or refuse if it cannot make images."""
        model = self._generating_model(wanted)
        if not model.space.makes_images:
            raise ValueError(
                f"{wanted} makes images, and this model has no autoencoder to decode them: it was "
                "fitted with autoencoder=None, on the features of a backbone alone. Fit with an "
                "autoencoder beside the backbone, such as autoencoder='fit'. Classes, "
                "probabilities, uncertainties and score_samples need none."
            )
        return model

    def _for_sampling(
        self, n_steps: Any, ode_solver: Any, guidance: Any
    ) -> tuple[FittedModel, OdeSettings]:
        """Return the model and checked settings; warn if it was trained too little to sample."""
        model = self._sampling_model("Sampling")
        ode = sampling_ode(model, n_steps, ode_solver, guidance)
        self._warn_of_few_images(model)
        return model, ode

    def _warn_of_few_images(self, model: FittedModel) -> None:
        done = self._fit_so_far()
        assert done is not None
        warn_of_few_images(model, done.n_images_of_image_branch)

    # Rejecting

    def fit_reject(
        self: Estimator,
        X_cal: Any,
        y_cal: Any,
        *,
        groups: Any = None,
        target_risk: float | Mapping[Any, float] = 0.05,
        cost_matrix: Any = None,
        confidence: float = 0.95,
        kind: str = "margin",
    ) -> Estimator:
        """Learn a threshold of uncertainty above which to reject, with a certified risk.

        The threshold is the one that accepts most images among those whose risk can be certified,
        see :func:`~sklearn_msf.selective.certified_threshold`. On new images from the same
        distribution as the calibration images, the risk is at most `target_risk`, except in a
        fraction 1 - `confidence` of calibrations. The risk is the error rate of the accepted
        predictions; with `cost_matrix` their mean cost; with risks of classes, for each of these
        classes, the fraction of its images whose prediction is accepted and wrong.

        The calibration images must be independent, and images of one patient are not: pass `groups`
        if there are several. Use new calibration images for each further `kind` or target that you
        try. `fit` and `partial_fit` delete the threshold.

        With `groups` one image of each group is drawn at random, and only these count, so that the
        bound is again that of independent images: "subsampling once" of Dunn, Wasserman and Ramdas
        ("Distribution-free prediction sets for two-layer hierarchical models", 2023). It then holds
        for an image drawn at random from those of a new patient, where each patient counts once,
        however many images there are. For risks of classes one image of each class in each group is
        drawn, and the bound holds for an image drawn from those of this class of a new patient. The
        draw depends on the seed of the model and the order of the images alone, so the same call
        gives the same threshold.

        Parameters
        ----------
        X_cal : array-like of shape (n, H, W), (n, H, W, C) or (n, n_features)
            Calibration images, which fit did not see.
        y_cal : array-like of shape (n,) or (n, 1)
            Their labels, with two or more of `classes_` unless `target_risk` names classes.
        groups : array-like of shape (n,), optional
            Group of each image, such as the id of the patient.
        target_risk : float or mapping of labels to floats, default=0.05
            Fraction of the accepted predictions that may be wrong, in (0, 1). With `cost_matrix`
            the mean cost that they may have, less than the largest cost. Or a mapping, such as
            ``{"melanoma": 0.02, "nevus": 0.1}``: for each of its labels the fraction of all images
            of this class that may be accepted and predicted wrongly, in (0, 1). All of these hold
            at once; classes that are not named are not bounded.
        cost_matrix : array-like of shape (K, K), default=None
            Entry (i, j) is the cost of the prediction ``classes_[j]`` for an image of
            ``classes_[i]``, at least 0. None counts errors.
        confidence : float, default=0.95
            Probability that the bound holds, over the choice of calibration images; in (0, 1).
        kind : {"margin", "entropy", "distance", "draws", "image"}, default="margin"
            Uncertainty to compare with the threshold, see :meth:`predict_uncertainty`.

        Returns
        -------
        self : object
            The estimator with `rejection_`. If no threshold can be certified, there is a warning,
            the threshold is None, and :meth:`predict_with_reject` rejects every image.

        Raises
        ------
        ValueError
            For a `target_risk` or `confidence` outside its range, labels in `target_risk` that are
            no class, a `cost_matrix` of another shape, with negative entries or beside risks of
            classes, for a `kind` as in :meth:`predict_uncertainty`, for labels of a single class
            (with one risk for all) or of a class that fit did not see, and for so few images or
            groups that nothing could be certified even if every prediction was right.
        RuntimeError
            If another thread fits the estimator meanwhile.

        Warns
        -----
        UserWarning
            If no threshold can be certified, and if every prediction is right, as on images that
            training saw.
        """
        self._checked_kind(kind)
        check_is_fitted(self)
        fitted = self.model_
        target = checked_target(target_risk, confidence, cost_matrix, fitted.classes)
        model, rows, settings = self._checked(X_cal)
        _check_same_model(fitted, model)
        calibration = check_calibration(y_cal, groups, model, len(rows), target)
        rule = learn_rule(
            predict(model, inputs_of(model, rows, settings), settings, kind),
            calibration,
            kind,
            prediction_parameters(self._parameters()),
            precision=settings.precision,
            classes=model.classes,
            target=target,
        )
        _check_same_model(model, self.model_)
        self.rejection_ = rule
        return self

    def predict_with_reject(
        self,
        X: Any,
        coverage: float | None = None,
        *,
        kind: str | None = None,
        reject_label: Any = None,
        return_mask: bool = False,
    ) -> Any:
        """Predict the class of images, and reject those whose prediction is too uncertain.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, n_features)
            Images as in :meth:`fit`.
        coverage : float, default=None
            Fraction of X to accept, in (0, 1]: exactly floor(coverage * n) images, at least one,
            with the lowest uncertainty; of images with equal uncertainty the earlier ones (paper,
            section 4.4). Images whose uncertainty is not finite are never accepted. None accepts up
            to the threshold of :meth:`fit_reject`, which does not depend on the other images of X;
            if `fit_reject` was not called, None is 0.9.
        kind : {"margin", "entropy", "distance", "draws", "image"}, default=None
            Kind of uncertainty, see :meth:`predict_uncertainty`. None is the kind of
            :meth:`fit_reject`, or "margin" if that was not called.
        reject_label : label, default=None
            Label for rejected images. It must have the type of the class labels, and must not be
            one of them; boolean classes leave none.
        return_mask : bool, default=False
            Whether to return also which images are rejected.

        Returns
        -------
        labels : numpy.ma.MaskedArray of shape (n,), or ndarray where `reject_label` is given
            Labels. Rejected images are masked, or have `reject_label`. Functions that convert a
            masked array to a plain one, as metrics do, lose the mask: pass them
            ``labels.compressed()``, and select the accepted images by ``~labels.mask``.
        rejected : ndarray of shape (n,), bool
            Only with ``return_mask=True``.

        Raises
        ------
        ValueError
            For a `reject_label` that is a class or has another type, for a coverage outside
            (0, 1], and for a `kind` as in :meth:`predict_uncertainty`. If the threshold of
            :meth:`fit_reject` is used: for another `kind`, and if `n_draws` or another parameter of
            predictions has changed since.
        RuntimeError
            If the threshold of :meth:`fit_reject` is used, and another thread fits the estimator
            meanwhile.

        Warns
        -----
        UserWarning
            If the threshold of :meth:`fit_reject` is used, and was learned in another precision,
            as on a machine where ``precision="auto"`` is another one.
        """
        if coverage is not None:
            check_fraction("coverage", coverage, includes_one=True)
        check_is_fitted(self)
        if reject_label is not None:
            check_reject_label(reject_label, self.classes_)
        # A fit in another thread replaces all attributes at once.
        fitted = vars(self)
        learned = fitted.get("rejection_")
        rule = learned if coverage is None else None
        if rule is not None:
            check_rule(rule, kind, prediction_parameters(self._parameters()))
        if kind is None:
            kind = "margin" if learned is None else learned.kind
        self._checked_kind(kind)
        model, inputs, of_prediction = self._prepared(X)
        if rule is not None:
            _check_same_model(fitted["model_"], model)
            warn_of_precision(rule, of_prediction.precision)
        prediction = predict(model, inputs, of_prediction, kind)
        rejected = rejects(UNCERTAINTIES[kind](prediction), rule, coverage)
        labels = mark_rejected(_labels(model, prediction), rejected, reject_label)
        return (labels, rejected) if return_mask else labels

    # Sampling

    def sample(
        self,
        class_id: Any = None,
        n_samples: int = 1,
        *,
        n_steps: int = 5,
        ode_solver: str = "midpoint",
        guidance: float | None = None,
        random_state: Any = None,
    ) -> np.ndarray:
        """Generate new images.

        Parameters
        ----------
        class_id : label or sequence of labels, default=None
            Class or classes of the images, from `classes_`; None means all classes.
        n_samples : int, default=1
            Number of images of each class.
        n_steps : int, default=5
            Number of steps of the ODE solver. On three data sets 5 midpoint steps drew images
            nearer to the real ones than the 25 Euler steps of the paper's figures, in less than
            half the time; after very short training 25 Euler steps are better. Sampling is always
            in float32.
        ode_solver : {"euler", "midpoint", "rk4", "dopri5"}, default="midpoint"
            ODE solver; a step of "midpoint" takes two passes of the network, one of "rk4" four.
            "dopri5" chooses its own steps, whatever `n_steps`, and generates one image
            at a time.
        guidance : float, default=None
            How far to go beyond the velocity of the class, away from the unconditional one, in
            units of their difference (classifier-free guidance); in [0, 100]. With more guidance
            images are more typical of their class and less varied; any guidance above 0 doubles
            the time. None is 0.5 if the field learned unconditional samples (`class_dropout` of
            `flow_params`), else 0.
        random_state : int, RandomState instance or None, default=None
            Seed of the noise. Image i of a seed has the same noise, however many images are
            generated.

        Returns
        -------
        ndarray of shape (n_classes_asked * n_samples, ...)
            Images in the dtype, layout and range of the training X, in the order of the classes
            asked for.

        Raises
        ------
        ValueError
            For a class that is not in `classes_`, for `n_samples` or `n_steps` that is not a
            positive integer, for an unknown solver, for a guidance outside [0, 100], for a guidance
            above 0 if the field did not learn unconditional samples, if ``image_weight=0`` or
            ``classification_fraction=1`` left the image branch untrained, and for a model over
            features alone (``autoencoder=None``), which makes no images.

        Warns
        -----
        ConvergenceWarning
            If the image branch has seen too few images to generate more than blotches.
        """
        classes, seed = self._request(class_id, n_samples, random_state)
        model, ode = self._for_sampling(n_steps, ode_solver, guidance)
        labels = np.repeat(classes, n_samples)
        name, verbose = type(self).__name__, self._parameters().verbose
        with sampling_progress(name, len(labels), verbose=verbose) as report:
            return sample(model, labels, seed, ode, report=report)

    def iter_samples(
        self,
        class_id: Any = None,
        n_samples: int = 1,
        *,
        batch_size: int = 64,
        n_steps: int = 5,
        ode_solver: str = "midpoint",
        guidance: float | None = None,
        random_state: Any = None,
    ) -> Iterator[np.ndarray]:
        """Generate new images batch by batch, holding at most one batch in memory.

        Parameters
        ----------
        class_id, n_samples, n_steps, ode_solver, guidance, random_state :
            As in :meth:`sample`, which returns the same images in one array.
        batch_size : int, default=64
            Number of images in a batch; the last one may have fewer. Multiples of 16, on a GPU
            multiples of 64, are fastest.

        Yields
        ------
        ndarray of shape (batch_size, ...)
            Images as :meth:`sample` returns them.

        Raises
        ------
        ValueError
            As :meth:`sample` and for a `batch_size` that is not a positive integer, before the
            first batch is requested.

        Warns
        -----
        ConvergenceWarning
            As :meth:`sample`.
        """
        check_positive_integer("batch_size", batch_size)
        classes, seed = self._request(class_id, n_samples, random_state)
        model, ode = self._for_sampling(n_steps, ode_solver, guidance)
        n_samples, batch_size = int(n_samples), int(batch_size)
        n_images = len(classes) * n_samples
        # The generator keeps the current model: a later fit does not change its images.
        return (
            sample(model, classes[numbers // n_samples], seed, ode, first=int(numbers[0]))
            for start in range(0, n_images, batch_size)
            for numbers in [np.arange(start, min(start + batch_size, n_images))]
        )

    def sample_trajectory(
        self,
        class_id: Any,
        *,
        n_steps: int = 5,
        ode_solver: str = "midpoint",
        guidance: float | None = None,
        random_state: Any = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Generate one image, and return it and its mask after every step (paper, Figure 1).

        Parameters
        ----------
        class_id : label
            Class of the image, from `classes_`.
        n_steps, ode_solver, guidance, random_state :
            As in :meth:`sample`. Except for rounding, the first image of `sample` is the last one
            of the trajectory. An adaptive solver is restarted at each step.

        Returns
        -------
        images : ndarray of shape (n_steps + 1, ...)
            From noise (t = 0) to the image (t = 1), in the dtype, layout and range of the
            training X; values outside the range are clipped.
        masks : ndarray of shape (n_steps + 1, height, width, C), float32
            From the code of the class (t = 0) to noise (t = 1), in units of the codes; with
            ``label_prediction="velocity"`` over pixels and `beta` above 0 as far as the predicted
            velocity carries them. They have the size of the images or volumes, or the "input_size"
            of `network_params`; over latents they have the size of the latents, or of the decoded
            images if the field carries encoded masks.
        times : ndarray of shape (n_steps + 1,)
            Times of the images and masks, from 0 to 1, in equal steps. With
            ``image_prediction="denoised"`` the last step is at least 0.05 long.

        Raises
        ------
        ValueError
            For several classes or one that is not in `classes_`, and for `n_steps`, `ode_solver`,
            `guidance` and a model that makes no images as in :meth:`sample`.

        Warns
        -----
        ConvergenceWarning
            As :meth:`sample`.
        """
        classes, seed = self._request(class_id, 1, random_state)
        if len(classes) > 1:
            raise ValueError(
                f"class_id must be a single one of the classes {self.classes_.tolist()}, got "
                f"{class_id!r}."
            )
        model, ode = self._for_sampling(n_steps, ode_solver, guidance)
        return sample_trajectory(model, int(classes[0]), seed, ode)

    def reconstruct(self, X: Any, *, n_steps: int = 25, ode_solver: str = "midpoint") -> np.ndarray:
        """Integrate images to noise under their predicted class, and back, without guidance.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, n_features)
            Images as in :meth:`fit`.
        n_steps : int, default=25
            Number of steps of the ODE solver in each direction; with more steps the result is
            closer to X. A single Euler step loses the image entirely with
            ``image_prediction="denoised"``.
        ode_solver : {"euler", "midpoint", "rk4", "dopri5"}, default="midpoint"
            ODE solver.

        Returns
        -------
        ndarray of shape (n, ...)
            Images in the dtype, layout and range of the training X.

        Raises
        ------
        ValueError
            For X as in :meth:`predict`, for `n_steps` that is not a positive integer, for an
            unknown solver, and for a model that makes no images as in :meth:`sample`.
        """
        ode = sampling_ode(self._sampling_model("reconstruct"), n_steps, ode_solver, 0.0)
        model, inputs, settings = self._prepared(X)
        sources = classify(model, inputs, settings).class_indices
        return change_class(model, inputs, sources, sources, ode)

    def counterfactual(
        self,
        X: Any,
        to_class: Any,
        *,
        n_steps: int = 25,
        ode_solver: str = "midpoint",
        guidance: float | None = None,
    ) -> np.ndarray:
        """Integrate images to noise under their predicted class, and back under another class.

        The result shows what the model has learned about how the image would look in the other
        class. Position, colours and texture are in the noise, which both images share. `guidance`
        makes the result more typical of the other class; it applies to the integration back.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, n_features)
            Images as in :meth:`fit`.
        to_class : label, or array-like of shape (n,)
            Class of the result, from `classes_`: one for all images, or one for each image.
        n_steps : int, default=25
            Number of steps of the ODE solver in each direction, as in :meth:`reconstruct`.
        ode_solver : {"euler", "midpoint", "rk4", "dopri5"}, default="midpoint"
            ODE solver.
        guidance : float, default=None
            As in :meth:`sample`, for the integration from noise back to an image.

        Returns
        -------
        ndarray of shape (n, ...)
            Images in the dtype, layout and range of the training X.

        Raises
        ------
        ValueError
            For a class that is not in `classes_`, for a `to_class` that is neither one class nor
            one for each image, for X as in :meth:`predict`, and for `n_steps`, `ode_solver`,
            `guidance` and a model that makes no images as in :meth:`sample`.

        Warns
        -----
        ConvergenceWarning
            As :meth:`sample`.
        """
        generating = self._sampling_model("counterfactual")
        ode = sampling_ode(generating, n_steps, ode_solver, guidance)
        asked = as_labels("to_class", to_class)
        indices = class_indices("to_class", asked.ravel(), self.classes_)
        model, rows, settings = self._checked(X)
        if asked.shape not in ((), (len(rows),)):
            raise ValueError(
                f"to_class must be one class, or one for each of the {len(rows)} images; "
                f"got an array of shape {asked.shape}."
            )
        self._warn_of_few_images(generating)
        inputs = inputs_of(model, rows, settings)
        sources = classify(model, inputs, settings).class_indices
        targets = np.broadcast_to(indices, sources.shape)
        return change_class(model, inputs, sources, targets, ode)

    def _request(self, class_id: Any, n_samples: int, random_state: Any) -> tuple[np.ndarray, int]:
        """Check what is asked for; return the index of each class and the seed of the noise."""
        check_is_fitted(self)
        check_positive_integer("n_samples", n_samples)
        asked = self.classes_
        if class_id is not None:
            asked = np.atleast_1d(as_labels("class_id", class_id))
        if asked.ndim != 1 or not len(asked):
            raise ValueError(
                f"class_id must be one or more of the classes {self.classes_.tolist()}, "
                f"got {class_id!r}."
            )
        seed = draw_seed(make_random_state(random_state))
        return class_indices("class_id", asked, self.classes_), seed

    # Saving

    def save_pretrained(self, folder: Any) -> None:
        """Save the fitted model as safetensors and JSON files, with a model card.

        The files contain no code. A model that is already in the folder is replaced as a whole, in
        one step. A README.md is replaced only if it is an unchanged model card of this package. The
        moments of the optimizer are not saved: `warm_start` and `partial_fit` continue from the
        weights with new moments. `checkpoint_dir` and `checkpoint_every` are not saved either,
        because they belong to the machine and not to the model.

        Parameters
        ----------
        folder : str or Path
            Folder to save to; created if it is missing.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        TypeError
            For parameters or labels that cannot be saved as plain data, and for a subclass with a
            parameter of its own.
        ValueError
            For a model that :meth:`from_pretrained` would refuse, for example with parameters that
            have become invalid since fit. A model that was already in the folder is kept. Also for
            a folder in which there is a model.json of another program.
        OSError
            If the files cannot be written. A model that was already in the folder is kept.

        Warns
        -----
        UserWarning
            If a README.md that is kept is a changed model card, and if the card cannot be written.
        """
        self._save(folder)

    def _save(self, folder: Any, **of_card: Any) -> None:
        check_is_fitted(self)
        others = sorted(self.get_params(deep=False).keys() - set(self._constructor_names()))
        if others:
            raise TypeError(
                f"The parameter {others[0]!r} of {type(self).__name__} is not saved, as "
                "save_pretrained knows those of this package alone: pickle the estimator."
            )
        # At once: a fit in another thread replaces all attributes.
        fitted = vars(self)
        done = FitResult.from_attributes(fitted)
        assert done is not None
        save_model(
            folder,
            self._saved_class(self, self._preparation.read_space),
            self._saved_parameters(done),
            done,
            fitted.get("rejection_"),
            **of_card,
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        license: str | None = None,
        commit_message: str = "Upload a fitted model",
    ) -> str:
        """Upload the fitted model to the Hugging Face hub, with a model card.

        The files are those of :meth:`save_pretrained`. One commit adds them and removes the weights
        of a model that was there. A README.md is replaced only if it is an unchanged model card of
        this package. The files hold class labels and parameters, and models can reveal training
        images, see "Security" in the documentation.

        Parameters
        ----------
        repo_id : str
            Id of the model, "user/model". The repository is created if it is missing.
        private : bool, default=None
            Whether a new repository is private. None is the default of the user's account.
        license : str, default=None
            Licence of the weights, by the identifier that the hub has for it, such as "cc-by-4.0".
            None is the one that the card of an earlier push states.
        commit_message : str, default="Upload a fitted model"
            Message of the commit.

        Returns
        -------
        str
            The commit, for the `revision` of :meth:`from_pretrained`.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        HubError
            If the hub cannot be reached or refuses. A model that was there is kept.
        TypeError, ValueError
            For a `repo_id` or a `license` that cannot be one, and as :meth:`save_pretrained`.
        ImportError
            If huggingface_hub is not installed.

        Warns
        -----
        UserWarning
            If a README.md that is kept is a changed model card, or does not state the `license`.
        """
        check_is_fitted(self)
        check_upload(repo_id, license)
        with tempfile.TemporaryDirectory() as folder:
            self._save(folder, place=repo_id)
            return upload_model(
                Path(folder), repo_id, private=private, license=license, message=commit_message
            )

    @classmethod
    def from_pretrained(
        cls: type[Estimator], folder: Any, *, revision: str | None = None
    ) -> Estimator:
        """Open a model that :meth:`save_pretrained` saved or :meth:`push_to_hub` uploaded.

        Nothing in the files is executed. Damaged or exchanged files are refused. If somebody
        changed the files on purpose, digests included, they are refused only if they are not a
        valid model. A model whose device this machine lacks is opened on the CPU, with a warning.

        Parameters
        ----------
        folder : str or Path
            Folder of the model, or its id on the Hugging Face hub, "user/model". A Path is always a
            folder, and so is a str that names one if there is no `revision`. A model of the hub
            that is in its cache is opened without asking the hub.
        revision : str, default=None
            Commit, branch or tag of a model on the hub. A branch or a tag is looked up at the hub,
            and in its cache if the hub does not answer. None is the newest commit of an earlier
            call without a revision that the cache knows, or else of the hub. The commit that was
            opened is in `hub_source_`.

        Returns
        -------
        object
            Fitted estimator. On the same machine its predictions equal those of the saved one, to
            the last bit.

        Raises
        ------
        FileNotFoundError
            If the folder holds no model.
        HubError
            If neither the hub nor its cache gives the model.
        ValueError
            For files that were cut off, changed or exchanged, for a model of another class, and for
            a `revision` of a folder.
        ImportError
            If huggingface_hub is needed and not installed.
        """
        return cls._open(folder, revision, cls._preparation.read_space)

    @classmethod
    def _open(cls: type[Estimator], given: Any, revision: str | None, read_space: Any) -> Estimator:
        folder, source = find_model(given, revision)
        saved = open_model(folder, cls._saved_class(cls(), read_space))
        # The constructor of a user's subclass may take none of them.
        estimator = cls()
        estimator._store_parameters(saved.parameters)
        estimator._take(saved.fit)
        if saved.rejection is not None:
            estimator.rejection_ = saved.rejection
        if source is not None:
            estimator.hub_source_ = source
        return estimator

    @classmethod
    def _saved_class(
        cls, default: "BaseMedSymmFlowClassifier", read_space: SpaceReader
    ) -> SavedClass:
        """Describe the class, and an estimator that has what files lack, for saving and opening."""
        defaults = {name: getattr(default, name) for name in cls._constructor_names()}
        return SavedClass(cls.__name__, defaults, cls._group_defaults, read_space)

    def export_onnx(self, path: Any, kind: str = "classifier") -> None:
        """Export the fitted model as one ONNX file, which runs without torch and this package.

        The file is compared with the model in onnxruntime, and replaces one that was there only if
        it agrees to 1e-4 (of the range of generated images, whose whole numbers may differ by one;
        of uncertainties above 1 relatively). It holds everything: scaling of the images, noise,
        flips, temperature and, over latents, the autoencoder. It computes in float32, also where
        `precision` is "bfloat16".

        Parameters
        ----------
        path : str or Path
            File to write.
        kind : {"classifier", "sampler"}, default="classifier"
            - "classifier": input "images" of shape (n, ...) in the dtype, layout and range of the
              training X; outputs "probabilities" of shape (n, K), float32, and "uncertainty" of
              shape (n,), float64, of the kind of :meth:`fit_reject`, else "margin". n is at least
              1.
            - "sampler": inputs "labels" of shape (n,), int64, the places of the classes in
              `classes_`, and "noise" from a standard normal distribution, float32, of the shape
              that the file asks for; output "images" of shape (n, ...) as :meth:`sample` with its
              defaults returns them.

            The metadata of the file has the classes, the format of the images, the threshold of
            :meth:`fit_reject` and more, see "Deployment" in the documentation; each entry is JSON.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            For another kind; for a classifier with several steps or another solver than "euler",
            with a threshold for ``kind="image"`` or one that was learned in bfloat16, or whose
            parameters have changed since `fit_reject`; for a sampler that makes no images; for X of
            a dtype that ONNX lacks; for a model with an "input_size"; for a classifier over a
            backbone; and for an autoencoder that cannot be exported. The message says what to
            change.
        TypeError
            For class labels that are neither numbers nor strings.
        ImportError
            If onnx, onnxscript or onnxruntime is not installed.
        OSError
            If the file cannot be written. A file that was already there is kept.

        Warns
        -----
        UserWarning
            For a classifier that computes in bfloat16 on this machine: its own answers differ from
            those of the file. For one whose threshold of rejection is so low that rounding decides.
        ConvergenceWarning
            For a sampler, as :meth:`sample`.
        """
        check_is_fitted(self)
        check_kind_of_export(kind)
        # At once: a fit in another thread replaces all attributes.
        fitted = vars(self)
        model = fitted["model_"] if kind == "classifier" else self._sampling_model(f"kind={kind!r}")
        if kind == "sampler":
            self._warn_of_few_images(model)
        export_model(path, kind, model, self._parameters(), fitted.get("rejection_"))

    # The paper's settings

    @classmethod
    def _with_overrides(
        cls: type[Estimator], settings: Mapping[str, Any], overrides: Mapping[str, Any]
    ) -> Estimator:
        """Make an estimator; an override of a dict parameter changes only the entries it has."""
        merged = {**settings, **overrides}
        for group in GROUPS:
            entries = checked_entries(group, overrides.get(group), cls._group_defaults[group])
            merged[group] = {**settings.get(group, {}), **entries}
        return cls(**merged)


def _labels(model: FittedModel, prediction: Prediction) -> np.ndarray:
    """Return the most probable class of each image."""
    labels: np.ndarray = model.classes[prediction.class_indices]
    return labels


def _check_same_model(before: FittedModel, now: FittedModel) -> None:
    """Refuse to use a threshold of another model, after a fit in another thread."""
    if before is not now:
        raise RuntimeError(
            "Another thread has fitted the estimator meanwhile, and a threshold belongs to one "
            "model: call this again, or fit a clone instead."
        )
