"""A classifier in a service: onnxruntime and numpy, neither torch nor this package.

    python examples/onnx_service.py model.onnx images.npy

`model.onnx` is what `export_onnx` of a fitted classifier wrote. For each image of the array the
script prints its number, the class or "abstains", and the uncertainty. It abstains where the
uncertainty is above the threshold of `fit_reject`, which the file holds; without one it answers
always.
"""

import argparse
import json

import numpy as np
import onnxruntime


class Service:
    """Classifies images, and abstains.

    Parameters
    ----------
    path : str or Path
        File of an exported classifier.
    """

    def __init__(self, path):
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        entries = self.session.get_modelmeta().custom_metadata_map
        self.metadata = {key: json.loads(value) for key, value in entries.items()}
        self.shape = tuple(self.session.get_inputs()[0].shape[1:])

    def __call__(self, images):
        """Return the class of each image, whether to abstain from it, and its uncertainty."""
        dtype = self.metadata["image_format"]["dtype"]
        if images.dtype != dtype or images.shape[1:] != self.shape:
            expected = f"(n, {', '.join(map(str, self.shape))})"
            raise ValueError(
                f"images must be {dtype} of shape {expected}, got {images.dtype} of {images.shape}."
            )
        probabilities, uncertainty = self.session.run(None, {"images": images})
        classes = [self.metadata["classes"][i] for i in probabilities.argmax(axis=1)]
        rule = self.metadata["rejection"]
        if rule is None:
            return classes, np.zeros(len(images), dtype=bool), uncertainty
        # Where no threshold could be certified nothing is answered. Not ">", which NaN would pass.
        threshold = -np.inf if rule["threshold"] is None else rule["threshold"]
        return classes, ~(uncertainty <= threshold), uncertainty


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="ONNX file of a classifier")
    parser.add_argument("images", help="array of images, as np.save writes it")
    arguments = parser.parse_args()
    answers = Service(arguments.model)(np.load(arguments.images))
    for number, (label, abstains, uncertainty) in enumerate(zip(*answers, strict=True)):
        print(f"{number} {'abstains' if abstains else label} {uncertainty:.4f}")


if __name__ == "__main__":
    main()
