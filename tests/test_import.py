"""What an import loads, and which names and modules are public."""

import dataclasses
import importlib
import inspect
import pkgutil
import re

import pytest
from forked_scripts import LIBRARIES, run_code

import sklearn_msf

PUBLIC_MODULES = [
    "sklearn_msf",
    "sklearn_msf.classifier",
    "sklearn_msf.datasets",
    "sklearn_msf.exceptions",
    "sklearn_msf.generation_metrics",
    "sklearn_msf.latent_classifier",
    "sklearn_msf.operating_points",
    "sklearn_msf.plotting",
    "sklearn_msf.prevalence",
    "sklearn_msf.sample_augmentation",
    "sklearn_msf.selective",
]
OPTIONAL = {"diffusers", "medmnist", "matplotlib", "PIL", "pydicom", "transformers"}


def modules_loaded_by(statement, imported=LIBRARIES):
    """Run a statement where some modules are imported, and name all that are afterwards."""
    ended = run_code(imported, f"import sys; {statement}; print(*sys.modules)")
    assert ended.code == 0, ended.errors
    return set(ended.output.split())


def top_level_modules():
    """Every module and folder directly in the package whose name has no underscore before it."""
    names = [module.name for module in pkgutil.iter_modules(sklearn_msf.__path__)]
    return [f"sklearn_msf.{name}" for name in names if not name.startswith("_")]


def test_importing_the_package_loads_next_to_nothing():
    loaded = modules_loaded_by("import sklearn_msf", imported=())
    assert not loaded & {*OPTIONAL, "pandas", "torch", "sklearn"}


@pytest.mark.parametrize("name", ["MedSymmFlowClassifier", "LatentMedSymmFlowClassifier"])
def test_the_classifiers_load_no_optional_dependency(name):
    loaded = modules_loaded_by(f"from sklearn_msf import {name}, datasets")
    # scikit-learn itself imports pandas where there is one.
    assert not loaded & OPTIONAL


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_no_public_module_loads_an_optional_dependency(module):
    assert not modules_loaded_by(f"import {module}") & OPTIONAL


def test_public_names_are_listed_and_others_refused():
    assert set(sklearn_msf.__all__) <= set(dir(sklearn_msf))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sklearn_msf.nothing  # noqa: B018


def test_public_modules_are_attributes_whatever_was_imported_before():
    own = [name.removeprefix("sklearn_msf.") for name in PUBLIC_MODULES[1:]]
    homes = {"classifier", "latent_classifier"}
    code = f"""
import sklearn_msf
for name in {sorted(set(own) - homes)}:
    assert name in dir(sklearn_msf)
    assert getattr(sklearn_msf, name).__all__
assert dir(sklearn_msf) == sorted(set(dir(sklearn_msf)))
"""
    assert run_code((), code) == (0, "", "")


def test_the_public_modules_are_exactly_these():
    # The folders that are no part of the interface list no names, and have none of their own.
    modules = {name: importlib.import_module(name) for name in top_level_modules()}
    public = [name for name, module in modules.items() if hasattr(module, "__all__")]
    assert sorted(["sklearn_msf", *public]) == PUBLIC_MODULES
    for name in modules.keys() - set(public):
        submodules = {module.name for module in pkgutil.iter_modules(modules[name].__path__)}
        own = {key for key in vars(modules[name]) if not key.startswith("_")}
        assert own <= submodules


ROOMS = [module.name for module in pkgutil.iter_modules(sklearn_msf.__path__) if module.ispkg]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_each_of_its_modules_is_for(room):
    room = importlib.import_module(f"sklearn_msf.{room}")
    # A name of a module may be followed by one that is in it.
    named = {name.split(".")[0] for name in re.findall(r"`([\w.]+)`", room.__doc__)}
    assert {module.name for module in pkgutil.iter_modules(room.__path__)} <= named


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_every_public_name_is_there(module):
    module = importlib.import_module(module)
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None


def records_of_arrays():
    """Every dataclass of the package with a field that is an array or a tensor."""
    modules = pkgutil.walk_packages(sklearn_msf.__path__, "sklearn_msf.")
    members = [c for m in modules for c in vars(importlib.import_module(m.name)).values()]
    records = {c for c in members if inspect.isclass(c) and dataclasses.is_dataclass(c)}
    return [
        record
        for record in sorted(records, key=lambda record: record.__qualname__)
        if record.__module__.startswith("sklearn_msf")
        and any(
            kind in str(field.type) and "Callable" not in str(field.type)
            for field in dataclasses.fields(record)
            for kind in ("Tensor", "ndarray")
        )
    ]


@pytest.mark.parametrize("record", records_of_arrays(), ids=lambda record: record.__name__)
def test_records_of_arrays_equal_only_themselves(record):
    # Arrays have no single answer to "==": comparing field by field, as dataclasses do, raises.
    assert record.__eq__ is object.__eq__
    assert record.__hash__ is object.__hash__
