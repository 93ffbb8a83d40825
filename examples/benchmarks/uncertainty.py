"""Calibration, ranking of errors and certified rejection, beside a ResNet-18 at equal time.

Ours is ``MedSymmFlowClassifier(calibration="temperature")``, which trains twice. The ResNet-18
trains for as many seconds, on nine tenths of the images, and has its temperature from the rest. The
table of the kinds of uncertainty, by which the default is chosen, is of the validation splits; all
others are of the test splits. Each run is added to a JSON file as it ends, and runs that the file
already has are not repeated.

    python examples/benchmarks/uncertainty.py --datasets retinamnist breastmnist pneumoniamnist

Further data in MedMNIST's npz format: ``--npz bloodcells=PATH``.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from _common import (
    RESNET18,
    Benchmark,
    Records,
    Task,
    accuracy,
    add_data_options,
    asked_parameters,
    auc_score,
    calibration_error,
    chance_calibration_error,
    describe_data,
    described,
    gemm_gflops,
    grouped,
    load,
    machines,
    make_parser,
    markdown,
    mean_and_spread,
    resolved_parameters,
)
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

from sklearn_msf import MedSymmFlowClassifier
from sklearn_msf.model.temperature import apply_temperature, fit_temperature
from sklearn_msf.selective import (
    accuracy_rejection_curve,
    augrc,
    aurc,
    certified_threshold,
    risk_coverage_curve,
)

HELD_OUT = 0.1
COVERAGES = (1.0, 0.9, 0.8, 0.5)
KINDS = ("margin", "entropy", "distance", "draws", "image")
# Risks to certify: those that the classifier comes near to.
TARGETS = {"retinamnist": 0.4, "breastmnist": 0.15, "pneumoniamnist": 0.05}
DEFAULT_TARGET = 0.02
N_SIMULATIONS = 2000


def parameters(record: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that a record must have to count today."""
    name = record["dataset"]
    return {
        "ours": asked_parameters(MedSymmFlowClassifier(calibration="temperature")),
        "ResNet-18": RESNET18.parameters(name),
        "held out": HELD_OUT,
        "target risk": TARGETS.get(name, DEFAULT_TARGET),
        "simulations": N_SIMULATIONS,
    }


# Scores


def probability_scores(y, p):
    """AUC, accuracy, calibration error and that of chance alone, Brier score and log loss."""
    return {
        "auc": 100 * auc_score(y, p),
        "acc": 100 * accuracy(y, p),
        "ece": calibration_error(y, p),
        "ece_by_chance": chance_calibration_error(p),
        "brier": float(np.mean(np.sum((p - np.eye(p.shape[1])[y]) ** 2, axis=1))),
        "log_loss": float(log_loss(y, p, labels=range(p.shape[1]))),
    }


def ranking_scores(y, predicted, uncertainty):
    """Scores of an uncertainty."""
    errors = predicted != y
    curve = accuracy_rejection_curve(y, predicted, uncertainty)
    return {
        "aurc": 100 * aurc(errors, uncertainty),
        "augrc": 100 * augrc(errors, uncertainty),
        **{f"acc_at_{c:g}": 100 * curve.at(c) for c in COVERAGES},
    }


def simulated_failures(errors, uncertainty, target_risk, confidence, n_calibration, seed):
    """Fractions of calibrations whose certificate is broken, and that have one.

    Calibration images are drawn from a pool whose risk is known.
    """
    rng = np.random.default_rng(seed)
    curve = risk_coverage_curve(errors, uncertainty)
    broken = certified = 0
    for _ in range(N_SIMULATIONS):
        rows = rng.integers(len(errors), size=n_calibration)
        threshold = certified_threshold(
            errors[rows], uncertainty[rows], target_risk=target_risk, confidence=confidence
        )
        if threshold is not None:
            certified += 1
            risk = curve.risk[np.searchsorted(curve.threshold, threshold, side="right") - 1]
            broken += risk > target_risk
    return broken / N_SIMULATIONS, certified / N_SIMULATIONS


# Runs


def run(identity, data):
    """Fit both systems and score them; returns one record."""
    name, seed = identity["dataset"], identity["seed"]
    gflops = gemm_gflops()
    X, y = data["train"]
    start = time.perf_counter()
    classifier = MedSymmFlowClassifier(calibration="temperature", random_state=seed).fit(X, y)
    seconds = time.perf_counter() - start
    record = described(
        identity,
        parameters=parameters(identity),
        data=describe_data(name, data),
        gflops=gflops,
        seconds=seconds,
        seed=seed,
        resolved=resolved_parameters(classifier, len(y)),
    )
    record |= {"temperature": classifier.model_.temperature, "ours": {}, "resnet18": {}}
    target = TARGETS.get(name, DEFAULT_TARGET)
    for split in ("val", "test"):
        X_split, y_split = data[split]
        p = classifier.predict_proba(X_split)
        predicted = p.argmax(axis=1)
        scores = probability_scores(y_split, p)
        calibrated = classifier.model_
        classifier.model_ = replace(calibrated, temperature=1.0)
        raw = probability_scores(y_split, classifier.predict_proba(X_split))
        classifier.model_ = calibrated
        scores |= {f"raw_{key}": raw[key] for key in ("ece", "brier", "log_loss")}
        scores["kinds"] = {}
        for kind in KINDS:
            start = time.perf_counter()
            uncertainty = classifier.predict_uncertainty(X_split, kind)
            scores["kinds"][kind] = {
                **ranking_scores(y_split, predicted, uncertainty),
                "seconds_per_1000": 1000 * (time.perf_counter() - start) / len(y_split),
            }
        record["ours"][split] = scores
    record["opinion"] = image_evidence(classifier, *data["test"])
    record["certified"] = certified(classifier, data, target, seed)
    X_fit, X_held, y_fit, y_held = train_test_split(
        X, y, test_size=HELD_OUT, stratify=y, random_state=seed
    )
    task = Task(name, (X_fit, y_fit), (X_held, y_held), seconds, seed)
    predict_proba = RESNET18.train(task).predict_proba
    temperature = fit_temperature(predict_proba(X_held), y_held, np.ones(len(y_held)))
    for split in ("val", "test"):
        X_split, y_split = data[split]
        p = apply_temperature(predict_proba(X_split), temperature)
        record["resnet18"][split] = {
            **probability_scores(y_split, p),
            **ranking_scores(y_split, p.argmax(axis=1), 1 - p.max(axis=1)),
        }
    return record


def image_evidence(classifier, X, y):
    """How often the image branch, as a Bayes classifier, agrees, and what that says of errors."""
    prediction = classifier._predict(X, "image")
    predicted = prediction.probabilities.argmax(axis=1)
    of_images = prediction.denoising_errors.argmin(axis=1)
    agrees = of_images == predicted
    errors = predicted != y
    return {
        "agreement": float(agrees.mean()),
        "accuracy_of_image_half": float((of_images == y).mean()),
        "error_where_they_agree": float(errors[agrees].mean()) if agrees.any() else None,
        "error_where_not": float(errors[~agrees].mean()) if not agrees.all() else None,
    }


def certified(classifier, data, target, seed):
    """Certify a risk on the validation split, and simulate it on both splits' scores."""
    parts = {}
    for split in ("val", "test"):
        X, y = data[split]
        parts[split] = classifier.predict(X) != y, classifier.predict_uncertainty(X)
    threshold = certified_threshold(*parts["val"], target_risk=target)
    errors, uncertainty = parts["test"]
    answered = uncertainty <= (-np.inf if threshold is None else threshold)
    pool = [np.concatenate(both) for both in zip(*parts.values(), strict=True)]
    broken, share = simulated_failures(*pool, target, 0.95, len(pool[0]), seed)
    return {
        "target_risk": target,
        "threshold": threshold,
        "test_coverage": float(answered.mean()),
        "test_risk": float(errors[answered].mean()) if answered.any() else None,
        "simulated_broken": broken,
        "simulated_certified": share,
    }


# Tables


def mean_of(records, *path, digits=1):
    """Mean ± standard deviation over seeds of an entry of the records."""
    values = []
    for record in records:
        for key in path:
            record = record[key]
        values.append(record)
    return "-" if any(value is None for value in values) else mean_and_spread(values, digits)


def probabilities_section(by_data):
    """Scores of the probabilities of both systems."""
    rows = []
    for name, chosen in by_data.items():
        for system, title in (("ours", "MedSymmFlowClassifier"), ("resnet18", "ResNet-18")):
            row = [name, title, mean_of(chosen, system, "test", "auc")]
            row += [mean_of(chosen, system, "test", "ece", digits=3)]
            row += [mean_of(chosen, system, "test", "ece_by_chance", digits=3)]
            row += [mean_of(chosen, system, "test", k, digits=3) for k in ("brier", "log_loss")]
            rows.append(row)
    header = ["data", "system", "AUC", "ECE", "ECE by chance", "Brier", "log loss"]
    return ["**Probabilities**", markdown(header, rows)]


def temperature_section(by_data):
    """What the temperature changes."""
    rows = [
        [name]
        + [mean_of(chosen, "temperature", digits=2)]
        + [
            f"{mean_of(chosen, 'ours', 'test', 'raw_' + k, digits=3)} → "
            f"{mean_of(chosen, 'ours', 'test', k, digits=3)}"
            for k in ("ece", "brier", "log_loss")
        ]
        for name, chosen in by_data.items()
    ]
    header = ["data", "temperature", "ECE", "Brier", "log loss"]
    return ["Without → with the temperature:", markdown(header, rows)]


def rejection_section(by_data):
    """Accuracies at a coverage, and areas under curves of risk and coverage."""
    rows = []
    for name, chosen in by_data.items():
        for path, title in (
            (("ours", "test", "kinds", "margin"), "MedSymmFlowClassifier, margin"),
            (("resnet18", "test"), "ResNet-18, 1 - max p"),
        ):
            rows.append(
                [name, title]
                + [mean_of(chosen, *path, f"acc_at_{c:g}") for c in COVERAGES]
                + [mean_of(chosen, *path, k, digits=2) for k in ("aurc", "augrc")]
            )
    header = ["data", "system", *(f"acc. at {c:g}" for c in COVERAGES), "AURC", "AUGRC"]
    return ["**Rejection**", markdown(header, rows)]


def kinds_section(by_data, records):
    """A table of the kinds of uncertainty for each split; times are means over all records."""
    texts = ["**Kinds of uncertainty**"]
    for split, title in (("val", "Validation splits (the choice)"), ("test", "Test splits")):
        rows = [
            [name, *(mean_of(chosen, "ours", split, "kinds", k, "aurc", digits=2) for k in KINDS)]
            for name, chosen in by_data.items()
        ]
        seconds = [
            np.mean([r["ours"][split]["kinds"][k]["seconds_per_1000"] for r in records])
            for k in KINDS
        ]
        rows.append(["seconds for 1,000 images", *(f"{s:.2f}" for s in seconds)])
        texts += [f"{title}, AURC:", markdown(["data", *KINDS], rows)]
    return texts


def second_opinion_section(by_data):
    """What the image branch says of the errors."""
    keys = ("accuracy_of_image_half", "agreement", "error_where_they_agree", "error_where_not")
    rows = [
        [name, *(mean_of(chosen, "opinion", key, digits=2) for key in keys)]
        for name, chosen in by_data.items()
    ]
    header = ["data", "accuracy of the image branch", "agreement", "errors where they agree"]
    return ["**Second opinion**", markdown([*header, "errors where not"], rows)]


def certified_section(by_data):
    """Certified risks of each seed, and how often simulated certificates hold."""
    rows = []
    for name, chosen in by_data.items():
        for record in chosen:
            c = record["certified"]
            risk = "-" if c["test_risk"] is None else f"{c['test_risk']:.3f}"
            found = "none" if c["threshold"] is None else f"{c['threshold']:.3f}"
            row = [name, str(record["seed"]), f"{c['target_risk']:g}", found]
            row += [f"{c['test_coverage']:.2f}", risk]
            rows.append([*row, f"{c['simulated_broken']:.4f}", f"{c['simulated_certified']:.2f}"])
    header = ["data", "seed", "target risk", "threshold", "test coverage", "test risk"]
    header += ["simulations broken", "simulations certified"]
    return ["**Certified rejection**", markdown(header, rows)]


def tables(records):
    """Markdown of everything."""
    by_data = {name: of_data for (name,), of_data in grouped(records, "dataset").items()}
    texts = [
        *probabilities_section(by_data),
        *temperature_section(by_data),
        *rejection_section(by_data),
        *kinds_section(by_data, records),
        *second_opinion_section(by_data),
        *certified_section(by_data),
        f"{machines(records)}; seeds {sorted({r['seed'] for r in records})}; mean ± standard "
        "deviation over seeds.",
    ]
    return "\n\n".join(texts) + "\n"


BENCHMARK = Benchmark("uncertainty", ("dataset", "seed"), parameters, tables)


def main():
    parser = make_parser(__doc__, "uncertainty.json", [3, 4, 5])
    add_data_options(parser, ["retinamnist", "breastmnist"])
    arguments = parser.parse_args()

    files = dict(arguments.npz)
    records = Records(BENCHMARK, arguments.output)
    for seed in arguments.seeds:
        for name in [*arguments.datasets, *files]:
            data = load(name, files)
            identity = {"dataset": name, "seed": seed}
            if records.has(identity, describe_data(name, data)):
                continue
            records.add(run(identity, data))
            print(name, seed, flush=True)
    records.show()


if __name__ == "__main__":
    main()
