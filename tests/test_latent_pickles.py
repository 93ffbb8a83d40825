"""Pickles, joblib files, copies and skops files of models over an autoencoder that is an object."""

import copy
import io
import pickle
from typing import NamedTuple

import joblib
import numpy as np
import pytest
import skops.io
import torch
from conftest import Averages, tiny_autoencoder, tiny_latent_classifier
from sklearn.base import clone
from torch import nn

from sklearn_msf.latent.autoencoder import ImageAutoencoder

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
Y = [0, 1] * 3


class Own(nn.Module):
    """A module of the user's own; `marks` are weights that are easy to find in a file."""

    def __init__(self, marks=None):
        super().__init__()
        self.register_buffer("marks", torch.randn(64) if marks is None else marks)
        self.register_buffer("n_calls", torch.tensor(3))

    def encode(self, images):
        return self.marks[0] * nn.functional.avg_pool2d(images, 4)

    def decode(self, latents):
        return latents.repeat_interleave(4, 2).repeat_interleave(4, 3) / self.marks[0]


class OnAnotherDevice(Own):
    """Stands for weights of a GPU, which `cpu` brings to the CPU and which no pickle may hold."""

    def __init__(self, marks=None):
        super().__init__(marks)
        self.device_type = "gpu"

    def cpu(self):
        self.device_type = "cpu"
        return super().cpu()

    def __getstate__(self):
        assert self.device_type == "cpu", "a pickle with weights of another device"
        return super().__getstate__()

    def __deepcopy__(self, memo):
        # A copy stays on its device, and needs no pickle.
        copied = OnAnotherDevice(self.marks.clone())
        copied.device_type = self.device_type
        return copied


class PlainObject(Averages):
    """No torch module, with weights all the same."""

    def __init__(self):
        self.marks = torch.randn(64)


def kl_with_marks():
    module = tiny_autoencoder(block_out_channels=[8, 64], norm_num_groups=8)
    nn.init.normal_(module.encoder.mid_block.resnets[0].norm1.bias)
    return module


def marks_of(module):
    """The bytes of 64 random weights."""
    if hasattr(module, "marks"):
        return module.marks.cpu().numpy().tobytes()
    return module.encoder.mid_block.resnets[0].norm1.bias.detach().cpu().numpy().tobytes()


OBJECTS = {"module": Own, "KL": kl_with_marks, "plain object": PlainObject}


def through_pickle(classifier):
    data = pickle.dumps(classifier)
    return data, pickle.loads(data)


def through_joblib(classifier):
    file = io.BytesIO()
    joblib.dump(classifier, file)
    return file.getvalue(), joblib.load(io.BytesIO(file.getvalue()))


@pytest.fixture(scope="module", params=OBJECTS)
def classifier(request):
    torch.manual_seed(0)
    module = OBJECTS[request.param]()
    return tiny_latent_classifier(autoencoder=module, max_epochs=1).fit(X, Y)


@pytest.mark.parametrize("through", [through_pickle, through_joblib])
def test_a_file_holds_the_weights_of_the_autoencoder_once(classifier, through):
    data, opened = through(classifier)
    marks = marks_of(classifier.autoencoder)
    assert len(marks) == 4 * 64
    assert data.count(marks) == 1
    np.testing.assert_array_equal(opened.predict_proba(X), classifier.predict_proba(X))
    assert type(opened.autoencoder) is type(classifier.autoencoder)
    assert opened.autoencoder is opened.autoencoder_


def test_a_copy_predicts_the_same_and_shares_nothing(classifier):
    copied = copy.deepcopy(classifier)
    np.testing.assert_array_equal(copied.predict_proba(X), classifier.predict_proba(X))
    assert copied.autoencoder is not classifier.autoencoder
    assert marks_of(copied.autoencoder) == marks_of(classifier.autoencoder)


def test_what_was_unpickled_is_cloned_fitted_anew_and_fitted_further(classifier):
    _, opened = through_pickle(classifier)
    again = clone(opened).fit(X, Y)
    np.testing.assert_array_equal(again.predict_proba(X), classifier.predict_proba(X))
    assert opened.partial_fit(X, Y).n_iter_ == 2
    # A warm start takes the parameter for the autoencoder of the first fit.
    module = opened.autoencoder_
    assert opened.set_params(warm_start=True).fit(X, Y).autoencoder_ is module


def test_a_second_pickle_is_as_small_as_the_first(classifier):
    data, opened = through_pickle(classifier)
    assert pickle.dumps(opened).count(marks_of(classifier.autoencoder)) == 1
    assert abs(len(pickle.dumps(opened)) - len(data)) < 1000


def test_skops_holds_an_autoencoder_of_diffusers_and_trusts_only_the_class():
    classifier = tiny_latent_classifier(autoencoder=tiny_autoencoder(), max_epochs=1).fit(X, Y)
    data = skops.io.dumps(classifier)
    untrusted = skops.io.get_untrusted_types(data=data)
    assert untrusted == ["sklearn_msf.latent_classifier.LatentMedSymmFlowClassifier"]
    opened = skops.io.loads(data, trusted=untrusted)
    np.testing.assert_array_equal(opened.predict_proba(X), classifier.predict_proba(X))
    assert type(opened.autoencoder).__name__ == "AutoencoderKL"


def test_skops_holds_a_plain_object_that_is_trusted():
    classifier = tiny_latent_classifier(autoencoder=Averages(), max_epochs=1).fit(X, Y)
    data = skops.io.dumps(classifier)
    opened = skops.io.loads(data, trusted=skops.io.get_untrusted_types(data=data))
    np.testing.assert_array_equal(opened.predict_proba(X), classifier.predict_proba(X))


def test_weights_are_written_from_the_cpu_whatever_device_they_are_on():
    module = OnAnotherDevice()
    classifier = tiny_latent_classifier(autoencoder=module, max_epochs=1)
    for state in (classifier, classifier.fit(X, Y)):
        data, opened = through_pickle(state)
        assert opened.autoencoder.device_type == "cpu"
        assert data.count(marks_of(module)) == 1
    # What the user passed stays where it is.
    assert module.device_type == classifier.autoencoder_.device_type == "gpu"


def test_an_autoencoder_that_replaced_the_one_of_the_fit_is_kept_beside_it():
    first, second = Own(), Own()
    classifier = tiny_latent_classifier(autoencoder=first, max_epochs=1).fit(X, Y)
    wanted = classifier.predict_proba(X)
    data, opened = through_pickle(classifier.set_params(autoencoder=second))
    assert marks_of(opened.autoencoder) == marks_of(second)
    assert marks_of(opened.autoencoder_) == marks_of(first)
    assert data.count(marks_of(first)) == data.count(marks_of(second)) == 1
    np.testing.assert_array_equal(opened.predict_proba(X), wanted)


def test_a_module_that_was_trained_further_after_the_fit_is_kept_beside_its_copy():
    module = Own()
    classifier = tiny_latent_classifier(autoencoder=module, max_epochs=1).fit(X, Y)
    wanted = classifier.predict_proba(X)
    module.marks.mul_(2)
    _, opened = through_pickle(classifier)
    assert torch.equal(opened.autoencoder.marks, module.marks)
    assert torch.equal(opened.autoencoder_.marks.cpu(), module.marks / 2)
    np.testing.assert_array_equal(opened.predict_proba(X), wanted)


class AsTuple(NamedTuple):
    """An autoencoder that is a container too."""

    gain: torch.Tensor

    def encode(self, images):
        return self.gain * Averages().encode(images)

    def decode(self, latents):
        return Averages().decode(latents / self.gain)


def test_an_object_that_is_a_tuple_comes_back_from_a_pickle():
    autoencoder = AsTuple(torch.full((1,), 2.0))
    classifier = tiny_latent_classifier(autoencoder=autoencoder, max_epochs=1).fit(X, Y)
    for opened in (through_pickle(classifier)[1], copy.deepcopy(classifier)):
        assert isinstance(opened.autoencoder, AsTuple)
        np.testing.assert_array_equal(opened.predict_proba(X), classifier.predict_proba(X))


def test_a_module_in_another_dtype_and_mode_is_known_again():
    module = tiny_autoencoder().to(torch.bfloat16).train()
    wrapped = ImageAutoencoder(copy.deepcopy(module))
    assert wrapped.is_made_of(module)
    assert wrapped.is_made_of(wrapped.module)
    assert not wrapped.is_made_of(tiny_autoencoder())
    assert not wrapped.is_made_of(tiny_autoencoder(scaling_factor=5.0).to(torch.bfloat16))
    assert not wrapped.is_made_of(tiny_autoencoder("AutoencoderTiny"))
    assert not wrapped.is_made_of(Averages())
