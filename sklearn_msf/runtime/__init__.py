"""Where and how tensors are computed: devices, batches, compilation, CUDA graphs, progress.

Imports nothing from the rest of the package but `exceptions`, and nothing from scikit-learn.
`device` has devices, precisions and threads, `torch_state.standard_torch` torch's settings while
the package computes, `tensor_axes` the axes of images and volumes.
`batching.in_batches` computes batches in parallel, `batch_sizes` pads one that is not full to a
size at which the bits stay the same, `module_changes.is_changed` finds hooks of users,
`out_of_memory` recognises the errors of any device, `optional_imports` says what to install.
`compilation.compile_or_not` compiles a network, `cuda_graphs` captures functions and replays them,
`device_queue` keeps the CPU from running far ahead of a GPU. `process_group` lets several processes
train together, and `locks` makes locks that a forked process can use. `progress` has the progress
bars, `user_warnings.warn_user` points at the user's own line. Which precision is used is decided in
`nn.precision`, which times a block of the network.
"""
