"""What the workers of a cluster run in test_cluster.py, as a module that they can import."""

import os
from pathlib import Path

from sklearn_msf import MedSymmFlowClassifier


class Logged(MedSymmFlowClassifier):
    """A classifier with an attribute `log`, a file that tells where it was pickled and opened."""

    def __getstate__(self):
        self._note("pickled")
        return super().__getstate__()

    def __setstate__(self, state):
        super().__setstate__(state)
        self._note("opened")

    def _note(self, what):
        with open(self.log, "a") as file:
            file.write(f"{what} {os.getpid()}\n")


def process_of_scorer(classifier, X, y):
    """A scorer that tells which process scores."""
    return float(os.getpid())


def die_once(marker):
    """End the process that runs this first; return the number of a later one."""
    path = Path(marker)
    if not path.exists():
        path.touch()
        os._exit(3)
    return os.getpid()


def n_threads(_):
    """Threads of torch in the process that runs this."""
    import torch

    return torch.get_num_threads()
