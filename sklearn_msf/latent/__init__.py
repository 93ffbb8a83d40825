"""Latents and features instead of pixels: autoencoders and backbones, their scaling and files.

May import `model`, `training` and the rooms below them. `autoencoder.ImageAutoencoder` wraps any
object that encodes and decodes images, `autoencoder_opening` opens one of a folder or of the hub,
`autoencoder_io` turns one into plain data, `autoencoder_training` trains a small one, and
`autoencoder_latents` scales what it makes. `backbone.ImageBackbone` wraps a pretrained encoder,
`backbone_opening` opens one, `backbone_io` turns one into plain data, and `backbone_features`
makes channels of its maps. `latent_space.LatentSpace` converts between images and the latents and
features that the field works on, `latent_batches` encodes training images, and `cache` keeps them.
`frozen_network` has what both kinds of encoders share, and `model_files` reads the files of models.
"""
