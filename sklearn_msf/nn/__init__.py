"""The velocity network and its parts.

May import `runtime`. `unet.UNet` is the network; `group_norm` and `dropout` are its own because
torch's are slow on a CPU; `precision.resolve_precision` times a block of it to choose between
float32 and bfloat16.
"""
