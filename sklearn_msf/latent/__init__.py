"""Latents instead of pixels: autoencoders, the scaling of their latents, and their files.

May import `model`, `training` and the rooms below them. `autoencoder.ImageAutoencoder` wraps any
object that encodes and decodes images, `autoencoder_opening` opens one of a folder or of the hub
(which `hub` asks), `autoencoder_io` turns one into plain data, `autoencoder_training` trains a
small one, `latent_space.LatentSpace` converts between images and the latents that the field works
on, `cache` keeps encoded training images.
"""
