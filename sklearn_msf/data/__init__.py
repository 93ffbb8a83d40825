"""Images between the user and the network.

May import `persistence` and `runtime`. `images.ImageFormat` knows the layout and the range of X and
converts images to tensors (n, C, H, W) in [-1, 1] and back; `images.check_finite` refuses NaN.
`stacking` makes one array of a list of images, `axes` finds channels in the wrong place, `ranges`
learns the range and notices another scale. `on_demand` copies and converts the images of X only
when they are asked for, `parts` goes through large arrays part by part, `resizing` makes images
larger or smaller. `augmentation` varies training images, `mirroring` finds out whether mirror
images still show the class.
"""
