"""
Searching for settings
======================

The classifier works in pipelines and searches of scikit-learn. The settings of network, flow and
optimizer are dicts, so a grid has whole dicts.
"""

# %%
# A pipeline
# ----------
# Steps before the classifier may change values and shape of the images. Here rows, as a table has
# them, become images.

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from sklearn_msf import MedSymmFlowClassifier
from sklearn_msf.selective import neg_aurc_scorer


def to_images(rows):
    """Change rows of 64 values to images of 8 x 8 pixels."""
    return np.asarray(rows).reshape(-1, 8, 8)


X, y = load_digits(n_class=5, return_X_y=True)
X, X_test, y, y_test = train_test_split(X, y, train_size=300, random_state=0)
pipeline = make_pipeline(
    FunctionTransformer(to_images),
    MedSymmFlowClassifier(channels=16, augment="affine", max_epochs=50, random_state=0),
)

# %%
# One question
# ------------
# Should pixels of such small images be folded into channels? Candidates are compared by accuracy
# and by AURC, the mean risk over all coverages: the first asks how often the classifier is right,
# the second whether it knows when.

grid = {
    "medsymmflowclassifier__network_params": [
        {"channel_mult": (1, 2), "patch_size": patch_size} for patch_size in (1, 2)
    ]
}
search = GridSearchCV(
    pipeline,
    grid,
    scoring={"accuracy": "accuracy", "neg_aurc": neg_aurc_scorer},
    refit="accuracy",
    cv=StratifiedKFold(2, shuffle=True, random_state=0),
).fit(X, y)

for params, accuracy, neg_aurc in zip(
    search.cv_results_["params"],
    search.cv_results_["mean_test_accuracy"],
    search.cv_results_["mean_test_neg_aurc"],
    strict=True,
):
    network = params["medsymmflowclassifier__network_params"]
    print(f"patch_size {network['patch_size']}: accuracy {accuracy:.3f}, AURC {-neg_aurc:.4f}")

# %%
# The best candidate was fitted again on all training images. Methods that scikit-learn's search
# does not know are those of the last step, which gets what the steps before it return.

best = search.best_estimator_
print(f"test accuracy {best.score(X_test, y_test):.3f}")
answers = best[-1].predict_with_reject(best[:-1].transform(X_test), coverage=0.9)
print(f"answered {answers.count()} of {len(X_test)}")
