"""A table of what this package and its neighbours do, from what was run.

    python examples/comparison/compare.py --environments FOLDER

FOLDER has one virtual environment for each package, named as in `PACKAGES`. A probe file may import
more than its package: its imports say what to install. For example

    python -m venv FOLDER/skorch
    FOLDER/skorch/bin/python -m pip install skorch torch mapie

Each package is asked in its own environment, without a network, by the functions in
`probes/PACKAGE.py`: a function has the name of a feature, tries it, and returns True, False or a
few words. What was not run is taken from `documented.toml`, where each answer has a link. The
answers go to docs/next_to_others.json and the page to docs/next_to_others.md. A package that has no
environment keeps the answers that the file has.
"""

import argparse
import json
import os
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
DOCS = HERE.parent.parent / "docs"
_TIME_LIMIT = 1800


class Package(NamedTuple):
    """A column of the table."""

    title: str
    link: str


PACKAGES = {
    "sklearn_msf": Package("sklearn_msf", "index.md"),
    "skorch": Package("skorch", "https://skorch.readthedocs.io"),
    "tabpfn": Package("TabPFN", "https://docs.priorlabs.ai"),
    "scikit_fallback": Package(
        "scikit-fallback", "https://github.com/sanjaradylov/scikit-fallback"
    ),
    "mapie": Package("MAPIE", "https://mapie.readthedocs.io"),
    "torch_uncertainty": Package("TorchUncertainty", "https://torch-uncertainty.github.io"),
    "paper": Package("the paper's code", "https://github.com/caetas/MedSymmFlow"),
}

# The rows: the name of a probe, and what the reader sees.
FEATURES = {
    "Data and models": {
        "images": "classifies arrays of images",
        "tables": "classifies tables",
        "regression": "regression",
        "segmentation": "segmentation",
        "own_network": "takes any torch network",
        "any_classifier": "takes any fitted scikit-learn classifier",
        "pretrained": "predicts without training, from weights learned elsewhere",
        "passes": "passes through a network to classify an image, by default",
    },
    "In scikit-learn": {
        "estimator_checks": "scikit-learn's estimator checks",
        "grid_search": "searches over its parameters by GridSearchCV",
        "sample_weight": "sample weights in `fit`",
        "groups": "keeps patients together in its own splits (`groups`)",
        "partial_fit": "`partial_fit`",
        "callbacks": "callbacks during training",
    },
    "Uncertainty": {
        "calibration": "calibrates probabilities",
        "abstains": "abstains, at a coverage that is asked for",
        "certified_risk": "abstains so that a risk is certified",
        "class_risks": "certifies a risk for single classes",
        "conformal_sets": "conformal sets of classes",
        "conformal_regression": "conformal intervals for regression",
        "selective_measures": "measures of selective prediction",
        "ensembles": "ensembles, Monte Carlo dropout, Bayesian layers",
        "unusual": "scores inputs unlike those of training",
    },
    "Generation": {
        "draws": "draws new images of a class",
        "counterfactuals": "shows an image in another class",
    },
    "Running and keeping": {
        "resumes": "an interrupted `fit` goes on to the same result",
        "several_devices": "trains on several devices",
        "files_without_code": "saves models as files without code",
        "onnx": "exports to ONNX",
        "offline": "works after installation without a network",
        "python_api": "is installed by pip and called from Python",
        "licence": "licence of the code",
    },
}


def interpreter(environment: Path) -> Path | None:
    """Find the interpreter of a virtual environment."""
    places = [environment / "bin" / "python", environment / "Scripts" / "python.exe"]
    return next((path for path in places if path.exists()), None)


def probe(package: str, environments: Path) -> dict[str, Any] | None:
    """Run the probes of a package in its environment.

    Returns
    -------
    dict or None
        The version, and for each probe the answer or the error; ``{"error": ...}`` if nothing could
        be run. None if there is no environment, or no probe.
    """
    script = HERE / "probes" / f"{package}.py"
    python = interpreter(environments / package)
    if python is None or not script.exists():
        return None
    # Nothing listens on port 9, so whatever asks the network fails at once.
    proxy = "http://127.0.0.1:9"
    offline = {"HF_HUB_OFFLINE": "1", "HTTP_PROXY": proxy, "HTTPS_PROXY": proxy}
    try:
        ended = subprocess.run(
            [str(python), "-P", str(HERE / "run_probes.py"), str(script)],
            env={**os.environ, **offline},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=_TIME_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {_TIME_LIMIT} s"}
    lines = ended.stdout.splitlines()
    if ended.returncode or not lines:
        return {"error": (ended.stderr.splitlines() or ["no output"])[-1]}
    return json.loads(lines[-1])


def cell(feature: str, seen: Mapping[str, Any], documented: Mapping[str, Any]) -> str:
    """Return a cell: what was run, else what is documented, else that it is unknown."""
    answer = seen.get("answers", {}).get(feature, {})
    if "answer" in answer:
        return f"**{_words(answer['answer'])}**"
    if feature in documented:
        entry = documented[feature]
        version = f", {entry['version']}" if "version" in entry else ""
        return f"{_words(entry['answer'])} ([documented{version}]({entry['link']}))"
    if "error" in answer:
        return f"unknown (failed: {answer['error']})"
    return "unknown"


def _words(answer: bool | str) -> str:
    return {True: "yes", False: "no"}.get(answer, str(answer))


def page(seen: Mapping[str, Mapping[str, Any]], documented: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page of documentation.

    Parameters
    ----------
    seen : dict
        For each package what `probe` returned.
    documented : dict
        For each package its table of documented.toml.
    """
    lines = [
        "# Next to other packages",
        "",
        "`examples/comparison/compare.py` wrote this page.",
        "",
        "- **Bold** answers come from calling the package, or from looking among its public "
        "names, each in its own environment and without a network.",
        '- "Documented" answers were not run; the link says where they come from.',
        '- A bold "no" means that the call was refused, or that no public name has to do with it. '
        "A few lines of the user's own may do it all the same.",
        '- "Unknown" was neither run nor found in the documentation. For packages around a fitted '
        "model it is often a matter of that model.",
        "- Nothing was timed. [The paper's tables](comparison.md) have scores at equal time beside "
        "those of a ResNet-18.",
        "",
        "What was run:",
        "",
    ]
    lines += [f"- {_title(key)} {_state(seen.get(key, {}))}" for key in PACKAGES]
    for heading, features in FEATURES.items():
        lines += ["", f"## {heading}", "", "<!-- settings -->"]
        lines += [
            _row(["", *(_title(key) for key in PACKAGES)]),
            "|---" * (1 + len(PACKAGES)) + "|",
        ]
        lines += [
            _row([title, *(cell(name, seen.get(p, {}), documented.get(p, {})) for p in PACKAGES)])
            for name, title in features.items()
        ]
    return "\n".join([*lines, *_CLOSING])


_CLOSING = (
    "",
    "## Which one to take",
    "",
    "- Rows of a table, a few thousand of them: TabPFN, whose weights are trained already, and "
    "have [terms of their own](https://docs.priorlabs.ai/models/accessing-model-weights).",
    "- A network of your own, or a pretrained one to fine-tune: skorch. Its estimators fit into "
    "MAPIE, scikit-fallback and `sklearn_msf.selective`.",
    "- Guarantees for a classifier or a regressor that you already have: MAPIE. It has more kinds "
    "of risk than this package, and regression.",
    "- Many methods of uncertainty side by side, segmentation, large benchmarks: TorchUncertainty.",
    "- A reject option around any scikit-learn classifier, or cascades of classifiers: "
    "scikit-fallback.",
    "- The paper's own networks and weights: its authors' code.",
    "- One model of small medical images that classifies, abstains with a certificate and draws: "
    "this package.",
    "",
)


def _title(key: str) -> str:
    return f"[{PACKAGES[key].title}]({PACKAGES[key].link})"


def _state(seen: Mapping[str, Any]) -> str:
    if "version" in seen:
        return f"{seen['version']}, with {seen['beside']}"
    return f"- could not be run: {seen['error']}" if "error" in seen else "- not run"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(text.replace('|', '/') for text in cells)} |"


def main() -> None:
    """Ask every package that has an environment, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environments", type=Path, required=True)
    parser.add_argument("--packages", nargs="*", choices=PACKAGES, default=list(PACKAGES))
    parser.add_argument("--output", type=Path, default=DOCS / "next_to_others.json")
    arguments = parser.parse_args()
    output = arguments.output
    seen = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
    for package in arguments.packages:
        print(f"{package} ...", flush=True)
        found = probe(package, arguments.environments)
        if found is not None:
            seen[package] = found
            output.write_text(json.dumps(seen, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    documented = tomllib.loads((HERE / "documented.toml").read_text(encoding="utf-8"))
    output.with_suffix(".md").write_text(page(seen, documented), encoding="utf-8")


if __name__ == "__main__":
    main()
