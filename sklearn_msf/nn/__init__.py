"""The velocity network and its parts.

May import `runtime`. `unet.UNet` is the network. `convolution` has those over images and over
volumes, `patches` folds pixels into channels. `group_norm` and `dropout` replace torch's versions,
which are slow on a CPU. `precision.resolve_precision` chooses between float32 and bfloat16; on a
CPU it times a block of the network in both.
"""
