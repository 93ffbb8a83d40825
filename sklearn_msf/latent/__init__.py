"""Latents instead of pixels: autoencoders, the scaling of their latents, and their files.

May import `model`, `training` and what lies below. `autoencoder.ImageAutoencoder` wraps whatever
encodes and decodes, `autoencoder_training` trains a small one, `latent_space.LatentSpace` stands
between images and field, `cache` keeps encoded training images.
"""
