"""Kill a training run at random moments, let it go on each time, and compare the end.

    python examples/benchmarks/kill.py --kills 20

The run is killed in a way that no process can prepare for. At the end its weights are compared
bit by bit with those of a run that was never killed.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CHILD = """
import sys
from sklearn.datasets import load_digits
from sklearn_msf import MedSymmFlowClassifier

X, y = load_digits(n_class=5, return_X_y=True)
folder = sys.argv[1] or None
classifier = MedSymmFlowClassifier(
    channels=16, max_epochs=int(sys.argv[2]), early_stopping=True, n_iter_no_change=1000,
    checkpoint_dir=folder, checkpoint_every=1, random_state=0, device="cpu",
    optimizer="muon",
).fit(X.reshape(-1, 8, 8), y)
classifier.save_pretrained(sys.argv[3])
"""


def start(checkpoints, epochs, saved):
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(checkpoints), str(epochs), str(saved)]
    )


def weights(folder):
    from sklearn_msf import MedSymmFlowClassifier

    classifier = MedSymmFlowClassifier.from_pretrained(folder)
    return np.concatenate([p.numpy().ravel() for p in classifier.model_.field.parameters()])


def newest(folder):
    """Number of epochs in the newest checkpoint."""
    numbers = [int(path.stem[-7:]) for path in folder.glob("checkpoint-*.json")]
    return max(numbers, default=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--longest", type=float, default=8.0, help="seconds before a kill")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as root:
        whole, killed, folder = Path(root) / "whole", Path(root) / "killed", Path(root) / "run"
        if start("", arguments.epochs, whole).wait():
            raise SystemExit("the run that is not killed failed")
        for kill in range(1, arguments.kills + 1):
            process = start(folder, arguments.epochs, killed)
            # Any moment: starting up, opening a checkpoint, training, writing one.
            time.sleep(rng.random() * arguments.longest)
            if process.poll() is not None:
                raise SystemExit(
                    f"the run ended with code {process.returncode} after {kill - 1} kills"
                    + ("; give it more --epochs" if process.returncode == 0 else "")
                )
            process.kill()
            process.wait()
            print(f"kill {kill}: epoch {newest(folder)} of {arguments.epochs}", flush=True)
        if start(folder, arguments.epochs, killed).wait():
            raise SystemExit("the run failed after the last kill")
        equal = np.array_equal(weights(whole), weights(killed))
        leftovers = len(list(folder.iterdir())) - 4
        print(
            f"{arguments.kills} kills; weights bit-identical: {equal}; files beside the two "
            f"checkpoints: {leftovers}"
        )
        raise SystemExit(0 if equal and not leftovers else 1)


if __name__ == "__main__":
    main()
