"""Where and how tensors are computed: devices, batches, compilation, CUDA graphs, progress.

Imports nothing from the rest of the package but `exceptions`, and nothing from scikit-learn. The
other folders call `device.resolve_device`, `device.autocast`, `torch_state.standard_torch`,
`batching.in_batches`, `cuda_graphs.replay`, `compilation.compile_or_not`,
`user_warnings.warn_user` and the progress bars of `progress`.
Which precision is used is decided in `nn.precision`, which times a block of the network.
"""
