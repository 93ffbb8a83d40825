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

import matplotlib.pyplot as plt
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

patch_sizes = [1, 2]
grid = {
    "medsymmflowclassifier__network_params": [
        {"channel_mult": (1, 2), "patch_size": patch_size} for patch_size in patch_sizes
    ]
}
search = GridSearchCV(
    pipeline,
    grid,
    scoring={"accuracy": "accuracy", "neg_aurc": neg_aurc_scorer},
    refit="accuracy",
    cv=StratifiedKFold(2, shuffle=True, random_state=0),
).fit(X, y)

# %%
# A point for each split, a bar for their mean. Two splits show whether the candidates differ by
# more than the splits do, and no more than that.

figure, axes = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
for ax, score, title in zip(
    axes, ("accuracy", "neg_aurc"), ("accuracy", "AURC, lower is better"), strict=True
):
    sign = -1 if score.startswith("neg") else 1
    splits = sign * np.stack([search.cv_results_[f"split{i}_test_{score}"] for i in range(2)])
    places = np.arange(len(patch_sizes))
    ax.bar(places, splits.mean(axis=0), width=0.5, alpha=0.5)
    ax.plot(places, splits.T, "o", color="black")
    ax.set(xticks=places, xticklabels=patch_sizes, xlabel="patch_size", title=title)
    for patch_size, mean in zip(patch_sizes, splits.mean(axis=0), strict=True):
        print(f"patch_size {patch_size}: {title.split(',')[0]} {mean:.4f}")

# %%
# The best candidate was fitted again on all training images. Methods that scikit-learn's search
# does not know are those of the last step, which gets what the steps before it return.

best = search.best_estimator_
print(f"test accuracy {best.score(X_test, y_test):.3f}")
answers = best[-1].predict_with_reject(best[:-1].transform(X_test), coverage=0.9)
print(f"answered {answers.count()} of {len(X_test)}")
