"""Where and how tensors are computed: devices, batches, compilation, CUDA graphs, progress.

Imports nothing of the package and nothing of scikit-learn. The other rooms call
`device.resolve_device`, `device.autocast`, `batching.in_batches`, `cuda_graphs.replay`,
`compilation.compile_or_not` and the bars of `progress`.
"""
