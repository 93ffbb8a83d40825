"""The structure of the package: imports point one way and files stay short."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sklearn_msf

PACKAGE = Path(sklearn_msf.__file__).parent
# Data flows down this list; a module imports only from modules below it.
LAYERS = [
    "__init__",
    "plotting",
    "sample_augmentation",
    "latent",
    "classifier",
    "_latent",
    "_base",
    "_calibrating",
    "_rejection",
    "_drawing",
    "_prediction",
    "_latent_state",
    "_pretrained",
    "_state",
    "_model_card",
    "_callbacks",
    "_resume",
    "_parameters",
    "_recipe",
    "_data",
    "autoencoder_fitting",
    "latents",
    "latent_format",
    "latent_cache",
    "autoencoder_record",
    "autoencoder",
    "progress",
    "checkpoints",
    "persistence",
    "training",
    "optimiser",
    "muon",
    "early_stopping",
    "states",
    "schedule",
    "settings",
    "compilation",
    "uncertainty",
    "image_residuals",
    "representation",
    "batches",
    "inference",
    "passes",
    "cuda_graphs",
    "forms",
    "fields",
    "flow",
    "solver",
    "precision",
    "network",
    "dropout",
    "group_norm",
    "label_codes",
    "augmentation",
    "images",
    "temperature",
    "_plain_data",
    "device",
    "_curve_displays",
    "generation_metrics",
    "selective",
    "certificates",
    "_judge",
    "_nearest_images",
    "_scored_rows",
    "datasets",
    "_version",
]


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            pytest.fail(f"{path.name} has a relative import")
        elif isinstance(node, ast.ImportFrom) and node.module == "sklearn_msf":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sklearn_msf."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("sklearn_msf."):
                    yield alias.name.split(".")[1]


def test_every_module_has_its_place_in_the_layers():
    assert sorted(path.stem for path in PACKAGE.glob("*.py")) == sorted(LAYERS)


@pytest.mark.parametrize("module", LAYERS)
def test_a_module_imports_only_from_modules_below_it(module):
    below = LAYERS[LAYERS.index(module) + 1 :]
    assert set(imported_modules(PACKAGE / f"{module}.py")) <= set(below)


@pytest.mark.parametrize("module", LAYERS)
def test_no_file_outgrows_four_hundred_lines_of_code(module):
    assert len((PACKAGE / f"{module}.py").read_text().splitlines()) <= 400


@pytest.mark.parametrize(
    "module",
    [
        "label_codes",
        "flow",
        "fields",
        "network",
        "training",
        "checkpoints",
        "persistence",
        "inference",
    ],
)
def test_the_torch_side_knows_nothing_of_scikit_learn(module):
    assert "sklearn." not in (PACKAGE / f"{module}.py").read_text().replace("sklearn_msf", "")


def modules_loaded_by(statement):
    code = f"import sys; {statement}; print(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(output.stdout.split())


def test_importing_the_package_loads_next_to_nothing():
    loaded = modules_loaded_by("import sklearn_msf")
    assert not loaded & {"diffusers", "medmnist", "matplotlib", "pandas", "torch", "sklearn"}


def test_the_classifier_loads_no_optional_dependency():
    loaded = modules_loaded_by("from sklearn_msf import MedSymmFlowClassifier, datasets")
    # scikit-learn itself imports pandas where there is one.
    assert not loaded & {"diffusers", "medmnist", "matplotlib"}


def test_public_names_are_listed_and_others_refused():
    assert set(sklearn_msf.__all__) <= set(dir(sklearn_msf))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sklearn_msf.nothing  # noqa: B018
