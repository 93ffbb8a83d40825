"""A search, and the prediction of many images, by the workers of a cluster: dask or ray.

    pip install distributed
    python examples/cluster.py dask

    pip install ray
    python examples/cluster.py ray

The cluster is two processes of this machine. For a real one, connect to its scheduler instead:
``Client("tcp://host:8786")`` or ``ray.init("auto")``. Everything else stays, because scikit-learn
and joblib hand their work to the backend that :func:`joblib.parallel_config` names.
"""

import sys

import numpy as np
from joblib import Parallel, delayed, parallel_config
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV

from sklearn_msf import MedSymmFlowClassifier

# Results repeat to the last bit if all processes compute in one precision and with one number of
# threads. Workers of dask and ray have one, unless OMP_NUM_THREADS is set where they are started.
SETTINGS = {"device": "cpu", "precision": "float32", "random_state": 0}


def predict_chunk(classifier, images):
    """Task of a worker."""
    return classifier.predict_proba(images)


def predict_stored(stored, images):
    """Task of a worker of ray: the classifier is in ray's object store."""
    import ray

    return predict_chunk(ray.get(stored["classifier"]), images)


def predict_in_chunks(task, classifier, X, n_chunks):
    """Class probabilities, (n, K), of chunks of X that the workers of the active backend predict.

    Only the chunks travel: X can be a memory map that is larger than the memory of a worker.
    """
    tasks = (delayed(task)(classifier, chunk) for chunk in np.array_split(X, n_chunks))
    # joblib would send several chunks as one task if each took less than a fifth of a second.
    return np.concatenate(Parallel(batch_size=1)(tasks))


def on_dask(search, X, y, X_new, n_chunks=4):
    """Fit the search and predict `X_new` by the workers of the current dask client."""
    with parallel_config("dask"):
        search.fit(X, y)
    best = search.best_estimator_
    # Every worker gets the model once; otherwise it would be sent with each chunk.
    with parallel_config("dask", scatter=[best]):
        return predict_in_chunks(predict_chunk, best, X_new, n_chunks)


def on_ray(search, X, y, X_new, n_chunks=4):
    """Fit the search and predict `X_new` by the workers of the ray cluster."""
    import ray
    from ray.util.joblib import register_ray

    register_ray()
    with parallel_config("ray", n_jobs=-1):
        search.fit(X, y)
        # Every machine gets the bytes of the model once; otherwise they would be sent with each
        # chunk. A worker still makes the model of them for each chunk, so chunks should be large.
        # In a dict, because some versions of ray put the object in the place of a bare reference.
        stored = {"classifier": ray.put(search.best_estimator_)}
        return predict_in_chunks(predict_stored, stored, X_new, n_chunks)


def main(backend, **settings):
    X, y = load_digits(n_class=3, return_X_y=True)
    X = X.reshape(-1, 8, 8)
    classifier = MedSymmFlowClassifier(augment=None, **SETTINGS, **settings)
    search = GridSearchCV(classifier, {"classification_fraction": [0.15, 0.8]}, cv=2)
    if backend == "dask":
        from dask.distributed import Client, LocalCluster

        with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster):
            probabilities = on_dask(search, X[:300], y[:300], X[300:])
    else:
        import ray

        with ray.init(num_cpus=2):
            probabilities = on_ray(search, X[:300], y[:300], X[300:])
    for parameters, score in zip(
        search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True
    ):
        print(f"{parameters}: accuracy {score:.3f}")
    labels = search.best_estimator_.classes_[probabilities.argmax(axis=1)]
    print(f"{len(labels)} new images: accuracy {np.mean(labels == y[300:]):.3f}")


if __name__ == "__main__":
    if sys.argv[1:] not in (["dask"], ["ray"]):
        sys.exit(__doc__)
    main(sys.argv[1], channels=16, max_epochs=5)
