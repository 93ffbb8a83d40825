"""What a fitted MedSymmFlow estimator draws: new images, and others made of given ones."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from sklearn_msf._estimator.parameters import (
    check_ode_solver,
    check_parameters,
    check_positive_integer,
    draw_seed,
    make_random_state,
)
from sklearn_msf._estimator.prediction import PredictingEstimator
from sklearn_msf.data.images import ImageFormat
from sklearn_msf.flow.velocity_field import VelocityField
from sklearn_msf.model.inference import FieldInputs, InferenceSettings, generate, trace, translate
from sklearn_msf.model.pixel_space import Representation
from sklearn_msf.runtime.progress import drawing_progress

__all__ = ["DrawingEstimator"]

# Images of a pass that draws, which is repeated for every step: on a CPU one should not wait for
# many, on a GPU a pass takes as long for one as for many.
_MAX_DRAWN = 16
_MAX_DRAWN_ON_GPU = 64


class DrawingEstimator(PredictingEstimator):
    """Draws images of the classes."""

    def sample(
        self,
        class_id: Any = None,
        n_samples: int = 1,
        *,
        n_steps: int = 25,
        ode_solver: str | None = None,
        random_state: Any = None,
    ) -> np.ndarray:
        """Draw new images.

        Parameters
        ----------
        class_id : label or sequence of labels, default=None
            Class or classes to draw, out of `classes_`; None draws all.
        n_samples : int, default=1
            Images of each class asked for.
        n_steps : int, default=25
            Steps of the ODE solver; the paper's figures have 25 Euler steps. Always in
            float32.
        ode_solver : {"euler", "midpoint", "rk4", "dopri5"}, default=None
            ODE solver; None is that of the estimator. "dopri5" chooses its own steps whatever
            `n_steps`, for one image at a time.
        random_state : int, RandomState instance or None, default=None
            Seed of the noise. Image i of a seed has the same noise however many are drawn.

        Returns
        -------
        ndarray of shape (n_classes_asked * n_samples, ...)
            Images in the dtype, layout and range of the training X, in the order asked for.

        Raises
        ------
        ValueError
            For a class that is not in `classes_`, for counts and solvers that are none, where
            ``image_weight=0`` or ``t1_share=1`` left the image half untrained, and for a `guidance`
            without `class_dropout`.
        """
        classes, seed = self._asked_for(class_id, n_samples, random_state)
        settings = self._sampling_settings(n_steps, ode_solver)
        labels = np.repeat(classes, n_samples)
        with drawing_progress(type(self).__name__, len(labels), verbose=self.verbose) as report:
            return _drawn(self._model(), labels, seed, settings, report=report)

    def iter_samples(
        self,
        class_id: Any = None,
        n_samples: int = 1,
        *,
        batch_size: int = 64,
        n_steps: int = 25,
        ode_solver: str | None = None,
        random_state: Any = None,
    ) -> Iterator[np.ndarray]:
        """Draw new images batch by batch, holding at most one batch in memory.

        Parameters
        ----------
        class_id, n_samples, n_steps, ode_solver, random_state :
            As in :meth:`sample`, which gives the same images at once.
        batch_size : int, default=64
            Images of a batch; the last one may have fewer. Multiples of 16 lose no time, on a
            GPU multiples of 64.

        Yields
        ------
        ndarray of shape (batch_size, ...)
            Images as :meth:`sample` returns them.
        """
        check_positive_integer("batch_size", batch_size)
        classes, seed = self._asked_for(class_id, n_samples, random_state)
        settings = self._sampling_settings(n_steps, ode_solver)
        n_samples, batch_size = int(n_samples), int(batch_size)
        n_images = len(classes) * n_samples
        model = self._model()
        return (
            _drawn(model, classes[numbers // n_samples], seed, settings, first=int(numbers[0]))
            for start in range(0, n_images, batch_size)
            for numbers in [np.arange(start, min(start + batch_size, n_images))]
        )

    def sample_trajectory(
        self,
        class_id: Any,
        *,
        n_steps: int = 25,
        ode_solver: str | None = None,
        random_state: Any = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw one image and show it and its mask on their way (paper, Figure 1).

        Parameters
        ----------
        class_id : label
            Class to draw, out of `classes_`.
        n_steps, ode_solver, random_state :
            As in :meth:`sample`, whose first image is the last one here, but for rounding; an
            adaptive solver starts anew at each step.

        Returns
        -------
        images : ndarray of shape (n_steps + 1, ...)
            From noise (t = 0) to the image (t = 1), in the dtype, layout and range of the
            training X; what lies outside is cut off.
        masks : ndarray of shape (n_steps + 1, height, width, C), float32
            From the code of the class (t = 0) to noise (t = 1), in units of the codes; of the
            size that the field works on, which over latents is that of the latents.
        times : ndarray of shape (n_steps + 1,)
            Times of them, from 0 to 1. Equal steps, but of mean images the last one is at least
            0.05 long.

        Raises
        ------
        ValueError
            For a class that is not in `classes_` or several, and for steps and solvers that are
            none.
        """
        classes, seed = self._asked_for(class_id, 1, random_state)
        if len(classes) > 1:
            raise ValueError(
                f"class_id must be a single one of the classes {self.classes_.tolist()}, got "
                f"{class_id!r}."
            )
        settings = self._sampling_settings(n_steps, ode_solver)
        representation = self._representation
        points, masks, times = trace(
            self.field_, int(classes[0]), representation.shape, seed, settings
        )
        images = self._image_format.from_tensor(representation.images(points.float()))
        colours = representation.masks(masks.float()).permute(0, 2, 3, 1).cpu().numpy()
        return images, colours, times

    def reconstruct(self, X: Any, *, n_steps: int = 25, ode_solver: str = "midpoint") -> np.ndarray:
        """Carry images to noise under their predicted class, and back, without guidance.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, n_features)
            Images as in :meth:`fit`.
        n_steps : int, default=25
            Steps of the ODE solver each way; more of them come closer to X. A single Euler step
            keeps nothing of it where the field has mean images.
        ode_solver : {"euler", "midpoint", "rk4", "dopri5"}, default="midpoint"
            ODE solver.

        Returns
        -------
        ndarray of shape (n, ...)
            Images in the dtype, layout and range of the training X.

        Raises
        ------
        ValueError
            For images unlike those of fit, and for steps and solvers that are none.
        """
        check_ode_solver(ode_solver)
        settings = self._drawing_settings(n_steps, ode_solver)
        inputs, sources = self._with_classes(X)
        return self._translated(inputs, sources, sources, settings)

    def counterfactual(
        self, X: Any, to_class: Any, *, n_steps: int = 25, ode_solver: str = "midpoint"
    ) -> np.ndarray:
        """Carry images to noise under their predicted class, and back under another.

        What the image would look like in the other class, as far as the model knows: position,
        colours and texture are in the noise, which both share. `guidance` goes further into the
        other class on the way back.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, n_features)
            Images as in :meth:`fit`.
        to_class : label, or array-like of shape (n,)
            Class to come back under, out of `classes_`: one for all, or one for each image.
        n_steps : int, default=25
            Steps of the ODE solver each way, as in :meth:`reconstruct`.
        ode_solver : {"euler", "midpoint", "rk4", "dopri5"}, default="midpoint"
            ODE solver.

        Returns
        -------
        ndarray of shape (n, ...)
            Images in the dtype, layout and range of the training X.

        Raises
        ------
        ValueError
            For a class that is not in `classes_`, for counts and solvers that are none, and for a
            `guidance` without `class_dropout`.
        """
        check_ode_solver(ode_solver)
        settings = self._sampling_settings(n_steps, ode_solver)
        asked = np.asarray(to_class)
        indices = self._indices_of("to_class", asked.ravel())
        inputs, sources = self._with_classes(X)
        if asked.shape not in ((), sources.shape):
            raise ValueError(
                f"to_class must be one class, or one for each of the {len(inputs)} images; "
                f"got an array of shape {asked.shape}."
            )
        targets = np.broadcast_to(indices, sources.shape)
        return self._translated(inputs, sources, targets, settings)

    def _with_classes(self, X: Any) -> tuple[FieldInputs, np.ndarray]:
        """Check images and predict the index of the class of each."""
        inputs = self._checked_inputs(X)
        return inputs, self._classify_inputs(inputs, self.field_).probabilities.argmax(axis=1)

    def _translated(
        self,
        inputs: FieldInputs,
        sources: np.ndarray,
        targets: np.ndarray,
        settings: InferenceSettings,
    ) -> np.ndarray:
        e_y = self._noise(1, self.field_.codes.n_channels)
        images = translate(
            self.field_,
            inputs,
            torch.from_numpy(sources.astype(np.int64)),
            torch.from_numpy(targets.astype(np.int64)),
            e_y.to(self.field_.device),
            settings,
            self._representation.images,
        )
        return self._image_format.from_tensor(images)

    def _asked_for(
        self, class_id: Any, n_samples: int, random_state: Any
    ) -> tuple[np.ndarray, int]:
        """Index of each class to draw, and the seed of the noise."""
        self._check_fitted()
        check_positive_integer("n_samples", n_samples)
        asked = self.classes_ if class_id is None else np.atleast_1d(np.asarray(class_id))
        if asked.ndim != 1 or not len(asked):
            raise ValueError(
                f"class_id must be one or more of the classes {self.classes_.tolist()}, "
                f"got {class_id!r}."
            )
        return self._indices_of("class_id", asked), draw_seed(make_random_state(random_state))

    def _indices_of(self, name: str, labels: np.ndarray) -> np.ndarray:
        """Class index of each label."""
        classes = self.classes_.tolist()
        unknown = [label for label in labels.tolist() if label not in classes]
        if unknown:
            raise ValueError(
                f"{name} must be one or more of the classes {classes}, got {unknown[0]!r}."
            )
        return np.searchsorted(self.classes_, labels)

    def _drawing_settings(self, n_steps: int, ode_solver: str | None) -> InferenceSettings:
        self._check_fitted()
        check_parameters(self.get_params(deep=False))
        self._check_image_half("Drawing")
        check_positive_integer("n_steps", n_steps)
        solver = self.ode_solver if ode_solver is None else ode_solver
        check_ode_solver(solver)
        on_gpu = self.field_.device.type != "cpu"
        batch_size = self._batch_size(_MAX_DRAWN_ON_GPU if on_gpu else _MAX_DRAWN, 1, solver)
        return self._inference_settings(n_steps, "float32", batch_size, solver)

    def _sampling_settings(self, n_steps: int, ode_solver: str | None) -> InferenceSettings:
        """Collect the settings of what comes from noise, which may be guided."""
        settings = self._drawing_settings(n_steps, ode_solver)
        if self.guidance and not self._can_draw_classless:
            raise ValueError(
                f"guidance={self.guidance} needs a field that can draw without a class: fit with "
                "class_dropout=0.1, or set guidance=0."
            )
        return replace(settings, guidance=float(self.guidance))

    def _model(self) -> tuple[VelocityField, Representation, ImageFormat]:
        """Collect what draws now: fitting anew does not change it."""
        return self.field_, self._representation, self._image_format


def _drawn(
    model: tuple[VelocityField, Representation, ImageFormat],
    labels: np.ndarray,
    seed: int,
    settings: InferenceSettings,
    first: int = 0,
    report: Callable[[int], object] | None = None,
) -> np.ndarray:
    field, representation, image_format = model
    images = generate(
        field,
        torch.from_numpy(labels.astype(np.int64)),
        representation.shape,
        seed,
        settings,
        representation.images,
        first,
        report,
    )
    return image_format.from_tensor(images)
