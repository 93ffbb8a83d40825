"""What TorchUncertainty does: uncertainty of torch networks, trained by Lightning."""

import inspect
from importlib.metadata import metadata

import torch
import torch_uncertainty
from lightning.pytorch import Trainer
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch_uncertainty import (
    TUTrainer,
    layers,
    methods,
    metrics,
    models,
    ood_criteria,
    post_processing,
    utils,
)
from torch_uncertainty.methods import deep_ensembles, mc_dropout
from torch_uncertainty.metrics.classification import AUGRC, AURC
from torch_uncertainty.post_processing import (
    ConformalClsTHR,
    ConformalRegCQR,
    LaplaceApprox,
    TemperatureScaler,
)
from torch_uncertainty.routines import (
    ClassificationRoutine,
    RegressionRoutine,
    SegmentationRoutine,
)

DISTRIBUTION = "torch-uncertainty"
X, y = load_digits(n_class=3, return_X_y=True)
IMAGES = torch.as_tensor(X.reshape(-1, 1, 8, 8), dtype=torch.float32)
LABELS = torch.as_tensor(y)
LOADER = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=64)


def _network(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 3)
    )


def _trained(network):
    routine = ClassificationRoutine(
        num_classes=3,
        model=network,
        loss=nn.CrossEntropyLoss(),
        optim_recipe=torch.optim.Adam(network.parameters(), lr=0.01),
    )
    trainer = TUTrainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(routine, train_dataloaders=LOADER, val_dataloaders=LOADER)
    return network.eval()


def images():
    network = _trained(_network())
    return bool((network(IMAGES).argmax(1) == LABELS).float().mean() > 0.8)


def own_network():
    return images()


def regression():
    routine = RegressionRoutine(model=nn.Linear(3, 1), output_dim=1, loss=nn.MSELoss())
    return len(routine(torch.zeros(2, 3))) == 2


def segmentation():
    routine = SegmentationRoutine(nn.Conv2d(1, 3, 1), num_classes=3, loss=nn.CrossEntropyLoss())
    return routine(torch.zeros(2, 1, 8, 8)).shape == (2, 3, 8, 8)


def passes():
    calls, network = [], _network()
    network.register_forward_hook(lambda *_: calls.append(1))
    ClassificationRoutine(network, num_classes=3, loss=nn.CrossEntropyLoss())(IMAGES[:1])
    return str(len(calls))


def estimator_checks():
    return hasattr(ClassificationRoutine, "get_params") or "not an estimator"


def grid_search():
    return hasattr(ClassificationRoutine, "get_params")


def partial_fit():
    return hasattr(ClassificationRoutine, "partial_fit")


def callbacks():
    return issubclass(TUTrainer, Trainer) and "those of Lightning"


def calibration():
    network = _trained(_network())
    scaler = TemperatureScaler(network, device="cpu")
    scaler.fit(LOADER, progress=False)
    scalers = [name for name in dir(post_processing) if name.endswith("Scaler")]
    works = scaler(IMAGES[:2]).shape == (2, 3)
    return f"{len(scalers)} scalers, among them temperature" if works else False


def abstains():
    return _has_name("reject", "abstain")


def certified_risk():
    return _has_name("certif", "riskcontrol")


def class_risks():
    return _has_name("certif", "riskcontrol")


def conformal_sets():
    conformal = ConformalClsTHR(alpha=0.1, model=_trained(_network()), device="cpu")
    conformal.fit(LOADER)
    return conformal.conformal(IMAGES[:2]).shape[0] == 2


def conformal_regression():
    return issubclass(ConformalRegCQR, post_processing.PostProcessing)


def selective_measures():
    for measure in (AURC(), AUGRC()):
        measure.update(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0, 1]))
        measure.compute()
    return "AURC, AUGRC, risk at a coverage, coverage at a risk, curves"


def ensembles():
    ensemble = deep_ensembles([_network(), _network()])
    dropout = mc_dropout(_network(0.1), num_estimators=3)
    bayesian = hasattr(layers, "BayesLinear") and issubclass(LaplaceApprox, nn.Module)
    return bayesian and len(ensemble(IMAGES[:2])) == 4 and len(dropout.eval()(IMAGES[:2])) == 6


def unusual():
    kinds = [name for name in dir(ood_criteria) if name.endswith("Criterion")]
    return f"{len(kinds) - 1} criteria" if len(kinds) > 1 else False


def draws():
    return _has_name("generate", "diffusion")


def counterfactuals():
    return _has_name("counterfactual")


def onnx():
    return hasattr(ClassificationRoutine, "to_onnx") and "by Lightning"


def several_devices():
    return "devices" in inspect.signature(TUTrainer).parameters and "by Lightning"


def offline():
    return images()


def python_api():
    return True


def licence():
    return metadata("torch-uncertainty")["License-Expression"]


def _has_name(*words):
    modules = (torch_uncertainty, layers, methods, metrics, models, post_processing, utils)
    names = [name.lower() for module in modules for name in dir(module)]
    return any(word in name for word in words for name in names)
