"""Fitted models as ONNX files, which need neither torch nor this package.

May import `latent`, `model` and the rooms below them, but not scikit-learn. `graphs` has the torch
modules that are exported, from images in the dtype and range of X on, which `image_conversion`
converts in operations that ONNX has; `conversion` makes ONNX of them;
`onnx_files.export_classifier` and `export_sampler` add what a service must know, compare the result
with the model, and write it.
"""
