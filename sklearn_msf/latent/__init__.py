"""Latents and features instead of pixels: autoencoders and backbones, their scaling and files.

May import `model`, `training` and the rooms below them. `autoencoder.ImageAutoencoder` wraps any
object that encodes and decodes images, `autoencoder_opening` opens one of a folder or of the hub,
`autoencoder_io` turns one into plain data, and `autoencoder_training` trains a small one.
`autoencoder_latents` scales what it makes, and `autoencoder_latents_io` turns that into plain data.
`backbone.ImageBackbone` wraps a pretrained encoder, `backbone_opening` opens one,
`backbone_preprocessing` reads what its images are to be, `backbone_features` makes channels of its
maps, and `backbone_io` turns these into plain data. `frozen_network` has what both kinds of
encoders share, `model_files` reads the files of models, `channel_checks` refuses images whose
channels an encoder does not take.

`latent_space.LatentSpace` converts between images and the latents and features that the field works
on. `latent_inputs` encodes images for predictions, when they are needed or before; `latent_batches`
encodes training images, and `cache` keeps them.
"""
