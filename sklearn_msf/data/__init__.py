"""Images between the user and the network.

May import `persistence`. `images.ImageFormat` knows the layout and the range of X and converts
images to tensors (n, C, H, W) in [-1, 1] and back; `images.check_finite` refuses NaN.
`augmentation` varies training images.
"""
