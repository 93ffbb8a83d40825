"""What is said where a package is not installed, or is installed and cannot be imported."""

import sys
from types import ModuleType

import diffusers
import pytest
import transformers
from test_backbones import backbone_folder

from sklearn_msf.latent.autoencoder import diffusers_class
from sklearn_msf.latent.backbone_opening import open_backbone
from sklearn_msf.runtime.optional_imports import first_cause, importing

ADVICE = 'Pictures need any: python -m pip install "any".'


def test_a_package_that_is_not_there_is_named_with_the_command_that_installs_it():
    missing = r'install "any"\. \(ModuleNotFoundError: No module named'
    with pytest.raises(ImportError, match=missing), importing(ADVICE):
        import surely_not_installed  # noqa: F401


@pytest.mark.parametrize("error", [ImportError, OSError, RuntimeError])
def test_a_package_that_cannot_be_imported_is_named_with_the_reason(tmp_path, monkeypatch, error):
    text = f"raise {error.__name__}('built for another torch')"
    (tmp_path / "broken_package.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    reason = f"{error.__name__}: built for another torch"
    with pytest.raises(ImportError, match=reason), importing(ADVICE):
        import broken_package  # noqa: F401


def test_what_is_no_failure_of_an_import_passes_through():
    with pytest.raises(ValueError, match="a number"), importing(ADVICE):
        raise ValueError("a number")


def raise_with_hidden_cause(*arguments, **keywords):
    """Fail as transformers does, which imports its parts when they are asked for."""
    try:
        raise RuntimeError("operator torchvision::nms does not exist")
    except RuntimeError as error:
        raise ModuleNotFoundError("Could not import module 'Dinov2Model'.") from error


def test_the_first_cause_is_told_and_not_those_that_hide_it():
    with pytest.raises(ModuleNotFoundError) as caught:
        raise_with_hidden_cause()
    assert first_cause(caught.value) == "RuntimeError: operator torchvision::nms does not exist"


def test_where_transformers_cannot_import_a_model_its_files_are_not_to_blame(monkeypatch):
    monkeypatch.setattr(transformers.AutoModel, "from_config", raise_with_hidden_cause)
    with pytest.raises(ImportError, match=r"needs transformers.*torchvision::nms does not exist"):
        open_backbone(backbone_folder())


def test_where_diffusers_cannot_import_its_classes_the_reason_is_told(monkeypatch):
    class Broken(ModuleType):
        def __getattr__(self, name):
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setitem(sys.modules, "diffusers", Broken("diffusers"))
    with pytest.raises(ImportError, match=r"need diffusers.*torchvision::nms does not exist"):
        diffusers_class("AutoencoderKL")
    monkeypatch.undo()
    assert diffusers_class("AutoencoderKL") is diffusers.AutoencoderKL
